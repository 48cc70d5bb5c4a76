"""pyctcdecode: ``build_ctcdecoder``, ``BeamSearchDecoderCTC``, ``Alphabet``, ``LanguageModel``, as transformers'
``Wav2Vec2ProcessorWithLM`` needs them.

Kept: names, arguments, defaults, what is returned, files of ``save_to_dir``; alpha, beta, the offset of unknown words
and hotwords count as the peer's. Not kept: a text that ends in a space has no empty last word, which the peer scores as
an unknown one; ``logit_score`` is the exact log-probability of the text, over all its alignments, where the peer has
those that its beam met; frames are those of the best alignment. ARPA files are read without kenlm and lead the search.
A binary file of KenLM's, and any language model behind an alphabet of word pieces ("▁"), orders the list of texts that
the search finds without it: such a model does not lead the search as the peer's does.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from pathsum.decoding import KenLM, NGram, ctc_beam_decode
from pathsum.errors import InvalidValueError

DEFAULT_ALPHA = 0.5
DEFAULT_BETA = 1.5
DEFAULT_UNK_LOGP_OFFSET = -10.0
DEFAULT_BEAM_WIDTH = 100
DEFAULT_HOTWORD_WEIGHT = 10.0
DEFAULT_PRUNE_LOGP = -10.0
DEFAULT_PRUNE_BEAMS = False
DEFAULT_MIN_TOKEN_LOGP = -5.0
DEFAULT_SCORE_LM_BOUNDARY = True
MIN_TOKEN_CLIP_P = 1e-15
LOG_BASE_CHANGE_FACTOR = math.log(10.0)

BPE_TOKEN, UNK_TOKEN, UNK_BPE_TOKEN = "▁", "⁇", "▁⁇▁"
BLANK_TOKEN_PTN = re.compile(r"^[<\[]pad[>\]]$", re.IGNORECASE)
UNK_TOKEN_PTN = re.compile(r"^[<\[]unk[>\]]$", re.IGNORECASE)
_SPECIAL = re.compile(r"^[<\[].+[>\]]$")
# Characters of a word, above which an unknown one costs the peer more.
_EXPECTED_LENGTH = 6
# ln P of a word unknown to a model that has no "<unk>": KenLM's.
_UNHEARD_OF = -100.0 * LOG_BASE_CHANGE_FACTOR


class OutputBeam(NamedTuple):
    """A text that was found.

    Attributes:
        text: The text.
        last_lm_state: Where the language model is behind it, for ``lm_start_state``; ``None`` without one.
        text_frames: Each word with its first frame and the one behind its last.
        logit_score: The log-probability of the text.
        lm_score: What the order goes by: with the language model and hotwords.
    """

    text: str
    last_lm_state: Any
    text_frames: list[tuple[str, tuple[int, int]]]
    logit_score: float
    lm_score: float


class OutputBeamMPSafe(NamedTuple):
    """``OutputBeam`` as batches have it, without the state."""

    text: str
    text_frames: list[tuple[str, tuple[int, int]]]
    logit_score: float
    lm_score: float


class Alphabet:
    """``pyctcdecode.Alphabet``: the classes' texts, "" the blank, " " the separator of words."""

    def __init__(self, labels: list[str], is_bpe: bool) -> None:
        self._labels = labels
        self._is_bpe = is_bpe

    @property
    def is_bpe(self) -> bool:
        """Whether the labels are word pieces, of which "▁" begins a word."""
        return self._is_bpe

    @property
    def labels(self) -> list[str]:
        """A copy of the labels."""
        return list(self._labels)

    @classmethod
    def build_alphabet(cls, labels: list[str]) -> Alphabet:
        """Labels as tokenizers have them: the blank may be "[pad]", "<pad>" or "_", or lack; the space "|".

        Args:
            labels: The classes' texts.

        Returns:
            The alphabet. Where there is no blank one is appended.

        Raises:
            ValueError: A label is there twice; a space in word pieces.
        """
        if len(set(labels)) != len(labels):
            raise ValueError("Alphabet contains duplicate entries, this is not allowed.")
        pieces = any(label.startswith("##") for label in labels)
        is_bpe = pieces or any(label.startswith(BPE_TOKEN) for label in labels)
        if is_bpe and any(" " in label for label in labels):
            raise ValueError("Space token ' ' found in vocabulary even though it looks like BPE.")
        own = [_with_boundary(label) for label in labels] if pieces else list(labels)
        if not is_bpe and "|" in own and " " not in own:
            own[own.index("|")] = " "
        own = ["" if BLANK_TOKEN_PTN.match(label) else label for label in own]
        if not is_bpe and "_" in own and "" not in own:
            own[own.index("_")] = ""
        if "" not in own:
            own.append("")
        unknown = UNK_BPE_TOKEN if is_bpe else UNK_TOKEN
        return cls([unknown if UNK_TOKEN_PTN.match(label) else label for label in own], is_bpe)

    def dumps(self) -> str:
        """The alphabet as JSON."""
        return json.dumps({"labels": self._labels, "is_bpe": self._is_bpe})

    @classmethod
    def loads(cls, text: str) -> Alphabet:
        """The alphabet that ``dumps`` has written."""
        found = json.loads(text)
        if set(found) != {"labels", "is_bpe"}:
            raise ValueError(f"unexpected keys found: {sorted(found)}; expected is_bpe, labels")
        return cls(found["labels"], found["is_bpe"])


def _with_boundary(label: str) -> str:
    """A word piece of "##" style as one of "▁" style."""
    if label.startswith("##"):
        return label[2:]
    return label if label in ("", BPE_TOKEN, UNK_BPE_TOKEN) or _SPECIAL.match(label) else BPE_TOKEN + label


class AbstractLanguageModel:
    """What scores words one after another. ``MultiLanguageModel`` is one, and any other orders the list of texts."""

    @property
    def order(self) -> int:
        """Words of the longest n-gram."""
        raise NotImplementedError

    def get_start_state(self) -> Any:
        """The state before the first word."""
        raise NotImplementedError

    def score(self, prev_state: Any, word: str, is_last_word: bool = False) -> tuple[float, Any]:
        """What a word is worth behind a state, and the state behind it."""
        raise NotImplementedError

    def reset_params(self, **params: Any) -> None:
        """Change parameters; ``None`` leaves one as it is."""


class LanguageModel(AbstractLanguageModel):
    """``pyctcdecode.LanguageModel``.

    A word is worth ``alpha * ln P + beta``, an unknown one ``alpha * (ln P + unk_score_offset * ln 10) + beta``.

    Args:
        kenlm_model: A ``pathsum.decoding.NGram`` or ``KenLM``, a ``kenlm.Model``, or the path of a file. One that was
            read from an ARPA file leads the search.
        unigrams: The known words; all of the model where ``None``.
        alpha: What ln P counts.
        beta: What each word counts.
        unk_score_offset: Logarithm to base 10, added to an unknown word's.
        score_boundary: Whether sentences begin in "<s>" and end in "</s>".
    """

    JSON_ATTRS = ("alpha", "beta", "unk_score_offset", "score_boundary")
    _ATTRS_SERIALIZED_FILENAME = "attrs.json"
    _UNIGRAMS_SERIALIZED_FILENAME = "unigrams.txt"

    def __init__(
        self,
        kenlm_model: Any,
        unigrams: Collection[str] | None = None,
        alpha: float = DEFAULT_ALPHA,
        beta: float = DEFAULT_BETA,
        unk_score_offset: float = DEFAULT_UNK_LOGP_OFFSET,
        score_boundary: bool = DEFAULT_SCORE_LM_BOUNDARY,
    ) -> None:
        self._path, self._model = _model_of(kenlm_model)
        self._unigram_set = {word for word in unigrams or () if word in self._model}
        self.alpha, self.beta = alpha, beta
        self.unk_score_offset, self.score_boundary = unk_score_offset, score_boundary
        self._ngram: tuple[Any, NGram] | None = None

    @property
    def order(self) -> int:
        """Words of the longest n-gram."""
        return self._model.order

    def reset_params(self, **params: Any) -> None:
        """Change ``alpha``, ``beta``, ``unk_score_offset``, ``score_boundary``; ``None`` leaves one as it is."""
        for name in self.JSON_ATTRS:
            value = params.get(name)
            if value is not None:
                wanted = bool if name == "score_boundary" else float
                if not isinstance(value, wanted):
                    raise ValueError(f"{name} must be a {wanted.__name__}. Got {type(value)}.")
                setattr(self, name, value)

    def get_start_state(self) -> Any:
        """The state before the first word."""
        return self._model.begin(self.score_boundary)

    def score(self, prev_state: Any, word: str, is_last_word: bool = False) -> tuple[float, Any]:
        """What a word is worth behind a state, and the state behind it.

        Args:
            prev_state: The state.
            word: The word.
            is_last_word: The sentence ends with it.

        Returns:
            Its score and the state.
        """
        ngram = self.ngram()
        model = self._model if ngram is None else ngram
        score, state = model.follow(prev_state, word)
        if ngram is None and (word not in model or (self._unigram_set and word not in self._unigram_set)):
            score += self.unk_score_offset * LOG_BASE_CHANGE_FACTOR
        if is_last_word and self.score_boundary:
            score += model.end(state)
        return self.alpha * score + self.beta, state

    def score_partial_token(self, partial_token: str) -> float:
        """What a part of a word costs the peer's search: the offset of unknown words, where no known word begins so.

        No search here asks for it, which knows what the words below a part promise.
        """
        known = any(word.startswith(partial_token) for word in self._unigram_set)
        return 0.0 if known else self.unk_score_offset * max(1.0, len(partial_token) / _EXPECTED_LENGTH)

    def ngram(self) -> NGram | None:
        """The model that leads the search, unknown words at their worth; ``None`` of one that cannot."""
        if not isinstance(self._model, NGram):
            return None
        key = (self.unk_score_offset, self.score_boundary)
        if self._ngram is None or self._ngram[0] != key:
            offset = self.unk_score_offset * LOG_BASE_CHANGE_FACTOR
            known = self._unigram_set or set(self._model.words) - {"<unk>", "<UNK>"}
            # The markers are no words that anyone could have left out.
            markers = {"<s>", "</s>"}
            offsets = np.array([0.0 if word in known or word in markers else offset for word in self._model.words])
            self._ngram = (
                key,
                self._model.changed(offsets=offsets, missing=_UNHEARD_OF + offset, bounded=self.score_boundary),
            )
        return self._ngram[1]

    def save_to_dir(self, filepath: str, unigram_encoding: str | None = None) -> None:
        """Write the parameters, the known words and a copy of the model's file into a folder."""
        if self._path is None:
            raise ValueError("a model that was not read from a file cannot be saved")
        with open(os.path.join(filepath, self._ATTRS_SERIALIZED_FILENAME), "w", encoding="utf-8") as file:
            json.dump({name: getattr(self, name) for name in self.JSON_ATTRS}, file)
        with open(os.path.join(filepath, self._UNIGRAMS_SERIALIZED_FILENAME), "w", encoding=unigram_encoding) as file:
            file.writelines(f"{word}\n" for word in sorted(self._unigram_set))
        shutil.copy2(self._path, os.path.join(filepath, os.path.basename(self._path)))

    @classmethod
    def parse_directory_contents(cls, filepath: str) -> dict[str, str]:
        """The files of a folder that ``save_to_dir`` has written, by what they are."""
        names = _visible(filepath)
        models = [name for name in names if os.path.splitext(name)[1] in (".arpa", ".bin", ".binary")]
        own = [cls._ATTRS_SERIALIZED_FILENAME, cls._UNIGRAMS_SERIALIZED_FILENAME]
        if len(names) != 3 or len(models) != 1 or not set(own) <= set(names):
            raise ValueError(f"expected {', '.join(own)} and one .arpa, .bin or .binary; found {names}")
        return {
            what: os.path.join(filepath, name)
            for what, name in zip(("json_attrs", "unigrams", "kenlm"), own + models, strict=True)
        }

    @classmethod
    def load_from_dir(cls, filepath: str, unigram_encoding: str | None = None) -> LanguageModel:
        """The language model that ``save_to_dir`` has written."""
        names = cls.parse_directory_contents(filepath)
        with open(names["json_attrs"], encoding="utf-8") as file:
            attributes = json.load(file)
        if set(attributes) != set(cls.JSON_ATTRS):
            raise ValueError(f"expected the attributes {cls.JSON_ATTRS}; found {sorted(attributes)}")
        with open(names["unigrams"], encoding=unigram_encoding) as file:
            unigrams = file.read().splitlines()
        return cls(names["kenlm"], unigrams, **attributes)


class MultiLanguageModel(AbstractLanguageModel):
    """``pyctcdecode.language_model.MultiLanguageModel``: the mean of several, which orders the list of texts."""

    def __init__(self, language_models: list[LanguageModel]) -> None:
        if len(language_models) < 2:
            raise ValueError("This class is meant to contain at least 2 language models.")
        self._language_models = language_models

    @property
    def order(self) -> int:
        """Words of the longest n-gram."""
        return max(model.order for model in self._language_models)

    def get_start_state(self) -> list[Any]:
        """The states before the first word."""
        return [model.get_start_state() for model in self._language_models]

    def score(self, prev_state: list[Any], word: str, is_last_word: bool = False) -> tuple[float, list[Any]]:
        """The mean of what a word is worth to each, and the states behind it."""
        pairs = zip(self._language_models, prev_state, strict=True)
        scores, states = zip(*(model.score(state, word, is_last_word) for model, state in pairs), strict=True)
        return sum(scores) / len(scores), list(states)


def _model_of(model: Any) -> tuple[str | None, Any]:
    """A model as ``NGram`` or ``KenLM``, and its file where it has one."""
    if isinstance(model, (NGram, KenLM)):
        return getattr(model, "path", None), model
    path = getattr(model, "path", model)  # kenlm.Model has its own as bytes
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise InvalidValueError("LanguageModel", "kenlm_model", "be a model or a file", type(model).__name__)
    path = os.fsdecode(path)
    if path.endswith((".arpa", ".arpa.gz")):
        return path, NGram.read(path)
    return path, KenLM.read(path) if model is path else KenLM(model)


@dataclass
class _Text:
    """A text on its list, as the search has it."""

    words: list[tuple[str, tuple[int, int]]]
    logit_score: float
    score: float


class BeamSearchDecoderCTC:
    """``pyctcdecode.BeamSearchDecoderCTC``.

    Args:
        alphabet: The classes' texts.
        language_model: The language model.

    Example:
        >>> import numpy as np
        >>> from pathsum.compat.pyctcdecode import build_ctcdecoder
        >>> decoder = build_ctcdecoder(["", "a", "b", " "])
        >>> probs = np.array([[0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7], [0.1, 0.1, 0.7, 0.1]])
        >>> beam = decoder.decode_beams(np.log(probs))[0]
        >>> beam.text, beam.text_frames
        ('a b', [('a', (0, 1)), ('b', (2, 3))])
    """

    model_container: ClassVar[dict[bytes, AbstractLanguageModel | None]] = {}
    _ALPHABET_SERIALIZED_FILENAME = "alphabet.json"
    _LANGUAGE_MODEL_SERIALIZED_DIRECTORY = "language_model"

    def __init__(self, alphabet: Alphabet, language_model: AbstractLanguageModel | None = None) -> None:
        self._alphabet = alphabet
        self._model_key = os.urandom(16)
        self.model_container[self._model_key] = language_model

    @property
    def _language_model(self) -> AbstractLanguageModel | None:
        return self.model_container[self._model_key]

    @classmethod
    def clear_class_models(cls) -> None:
        """Forget the language models of all decoders."""
        cls.model_container.clear()

    def cleanup(self) -> None:
        """Forget the decoder's language model."""
        self.model_container.pop(self._model_key, None)

    def reset_params(
        self,
        alpha: float | None = None,
        beta: float | None = None,
        unk_score_offset: float | None = None,
        lm_score_boundary: bool | None = None,
    ) -> None:
        """Change parameters of the language model; ``None`` leaves one as it is."""
        model = self._language_model
        if model is not None:
            model.reset_params(
                alpha=alpha, beta=beta, unk_score_offset=unk_score_offset, score_boundary=lm_score_boundary
            )

    def decode(
        self,
        logits: np.ndarray,
        beam_width: int = DEFAULT_BEAM_WIDTH,
        beam_prune_logp: float = DEFAULT_PRUNE_LOGP,
        token_min_logp: float = DEFAULT_MIN_TOKEN_LOGP,
        hotwords: Iterable[str] | None = None,
        hotword_weight: float = DEFAULT_HOTWORD_WEIGHT,
        lm_start_state: Any = None,
    ) -> str:
        """The best text of logits, log-probabilities or probabilities (T, C); arguments as in ``decode_beams``."""
        options = (beam_width, beam_prune_logp, token_min_logp, hotwords, hotword_weight)
        return self._found([logits], *options, lm_start_state, 1)[0][0].text

    def decode_batch(
        self,
        pool: Any,
        logits_list: Sequence[np.ndarray],
        beam_width: int = DEFAULT_BEAM_WIDTH,
        beam_prune_logp: float = DEFAULT_PRUNE_LOGP,
        token_min_logp: float = DEFAULT_MIN_TOKEN_LOGP,
        hotwords: Iterable[str] | None = None,
        hotword_weight: float = DEFAULT_HOTWORD_WEIGHT,
    ) -> list[str]:
        """``decode`` of each; by threads, the pool is not used."""
        options = (beam_width, beam_prune_logp, token_min_logp, hotwords, hotword_weight)
        return [beams[0].text for beams in self._found(logits_list, *options, None, 1)]

    def decode_beams(
        self,
        logits: np.ndarray,
        beam_width: int = DEFAULT_BEAM_WIDTH,
        beam_prune_logp: float = DEFAULT_PRUNE_LOGP,
        token_min_logp: float = DEFAULT_MIN_TOKEN_LOGP,
        prune_history: bool = DEFAULT_PRUNE_BEAMS,
        hotwords: Iterable[str] | None = None,
        hotword_weight: float = DEFAULT_HOTWORD_WEIGHT,
        lm_start_state: Any = None,
    ) -> list[OutputBeam]:
        """The best texts.

        Args:
            logits: Logits, log-probabilities or probabilities (T, C).
            beam_width: How many labellings are kept after each frame, and how many texts are returned at most.
            beam_prune_logp: How far behind the best, below 0, a text may be.
            token_min_logp: Least log-probability of a class that a labelling grows by, where a frame has one as great.
            prune_history: Changes nothing: texts that the model cannot tell apart are all kept.
            hotwords: Words, or phrases of them.
            hotword_weight: What each occurrence of a word among them counts.
            lm_start_state: ``last_lm_state`` of what is before.

        Returns:
            The texts, the best first.

        Raises:
            ValueError: Logits that are not (T, C), or an argument out of range.
        """
        options = (beam_width, beam_prune_logp, token_min_logp, hotwords, hotword_weight)
        return self._found([logits], *options, lm_start_state, beam_width)[0]

    def decode_beams_batch(
        self,
        pool: Any,
        logits_list: Sequence[np.ndarray],
        beam_width: int = DEFAULT_BEAM_WIDTH,
        beam_prune_logp: float = DEFAULT_PRUNE_LOGP,
        token_min_logp: float = DEFAULT_MIN_TOKEN_LOGP,
        prune_history: bool = DEFAULT_PRUNE_BEAMS,
        hotwords: Iterable[str] | None = None,
        hotword_weight: float = DEFAULT_HOTWORD_WEIGHT,
    ) -> list[list[OutputBeamMPSafe]]:
        """``decode_beams`` of each; by threads, the pool is not used."""
        options = (beam_width, beam_prune_logp, token_min_logp, hotwords, hotword_weight)
        found = self._found(logits_list, *options, None, beam_width)
        return [[OutputBeamMPSafe(beam.text, *beam[2:]) for beam in beams] for beams in found]

    def _found(
        self,
        logits: Sequence[np.ndarray],
        beam_width: int,
        beam_prune_logp: float,
        token_min_logp: float,
        hotwords: Iterable[str] | None,
        hotword_weight: float,
        lm_state: Any,
        n_best: int,
    ) -> list[list[OutputBeam]]:
        if not logits:
            return []
        log_probs = [self._log_probs(each) for each in logits]
        lengths = [len(each) for each in log_probs]
        labels, model = self._alphabet.labels, self._language_model
        separator = None if self._alphabet.is_bpe else labels.index(" ") if " " in labels else len(labels)
        if separator == len(labels):  # no class is between words: one that is impossible
            labels = [*labels, " "]
        scores = np.full((len(logits), max(lengths), len(labels)), -np.inf)
        for own, each in zip(scores, log_probs, strict=True):
            own[: len(each), : each.shape[1]] = each
        # The peer takes the greatest class of a frame always.
        least = min([token_min_logp, *(float(each.max(1).min()) for each in log_probs if len(each))])
        words = [word for phrase in hotwords or () for word in phrase.split()]
        leads = model is None or (separator is not None and isinstance(model, LanguageModel) and model.ngram())
        options: dict[str, Any] = {}
        threshold = -beam_prune_logp
        if leads and separator is not None:
            spelled = re.compile("|".join(re.escape(label) for label in labels if label.strip()) or r"(?!)")
            options["hotwords"] = {word: hotword_weight for word in words if not spelled.sub("", word)} or None
            if isinstance(model, LanguageModel):
                ngram = model.ngram()
                assert ngram is not None
                ngram = ngram if lm_state is None else ngram.changed(start=lm_state, bounded=model.score_boundary)
                options |= {"lm": ngram, "lm_weight": model.alpha, "word_score": model.beta}
                # An unknown word costs a labelling at once what it costs the text: that alone is not to drop it.
                threshold += abs(model.alpha * model.unk_score_offset) * LOG_BASE_CHANGE_FACTOR
        own_order = bool(options)
        found = ctc_beam_decode(
            scores, lengths, labels.index(""), beam_size=beam_width, n_best=n_best if own_order else beam_width,
            separator=separator, labels=labels, token_min=least, beam_threshold=threshold, **options,
        )  # fmt: skip
        return [
            self._ordered(
                self._texts(found, n, log_probs[n], labels, separator), None if own_order else words, hotword_weight,
                lm_state, beam_prune_logp,
            )[:n_best]
            for n in range(len(logits))
        ]  # fmt: skip

    def _log_probs(self, logits: Any) -> np.ndarray:
        logits = np.asarray(logits)
        size = len(self._alphabet.labels)
        if logits.ndim != 2 or logits.shape[1] != size:
            raise ValueError(f"Input logits must be (time, vocabulary), vocabulary {size}; got shape {logits.shape}")
        logits = logits.astype(np.float64)
        least = math.log(MIN_TOKEN_CLIP_P)
        with np.errstate(divide="ignore", invalid="ignore"):
            if len(logits) and math.isclose(logits.sum(1).mean(), 1):
                return np.log(np.clip(logits, MIN_TOKEN_CLIP_P, 1))
            above = logits - np.where(np.isfinite(logits.max(1)), logits.max(1), 0.0)[:, None]
            return np.clip(above - np.log(np.exp(above).sum(1, keepdims=True)), least, 0)

    def _texts(
        self, found: Any, n: int, log_probs: np.ndarray, labels: list[str], separator: int | None
    ) -> list[_Text]:
        """The texts of a sample, each once."""
        texts: dict[str, _Text] = {}
        for k in np.flatnonzero(found.scores[n] > -np.inf):
            length = int(found.lengths[n, k])
            tokens, begins = found.tokens[n, k, :length], found.frames[n, k, :length]
            ends = _ends(tokens, begins, log_probs, labels.index(""))
            words, opened = [], True
            for token, begin, end in zip(tokens.tolist(), begins.tolist(), ends, strict=True):
                label = labels[token]
                opened = opened or (separator is None and label.startswith(BPE_TOKEN))
                piece = label.strip(BPE_TOKEN) if separator is None else label
                if token == separator:
                    opened = True
                    continue
                if opened or not words:
                    words.append((piece, (begin, end)))
                else:
                    words[-1] = (words[-1][0] + piece, (words[-1][1][0], end))
                opened = separator is None and len(label) > 1 and label.endswith(BPE_TOKEN)
            words = [word for word in words if word[0]]
            own = _Text(words, float(found.ctc_scores[n, k]), float(found.scores[n, k]))
            text = " ".join(word for word, _ in words)
            if text in texts:
                texts[text].logit_score = float(np.logaddexp(texts[text].logit_score, own.logit_score))
            else:
                texts[text] = own
        return list(texts.values())

    def _ordered(
        self, texts: list[_Text], hotwords: list[str] | None, weight: float, lm_state: Any, beam_prune_logp: float
    ) -> list[OutputBeam]:
        """The list in its order; scored here where the search did not know of the words, ``hotwords`` not ``None``."""
        model, beams = self._language_model, []
        for text in texts:
            score, state = text.logit_score, lm_state
            words = [word for word, _ in text.words]
            if model is not None:
                state = model.get_start_state() if lm_state is None else lm_state
                for place, word in enumerate(words):
                    worth, state = model.score(state, word, place == len(words) - 1)
                    score += worth
            if hotwords is not None:
                score += weight * sum(word in hotwords for word in words)
            else:
                score = text.score
            beams.append(OutputBeam(" ".join(words), state, text.words, text.logit_score, score))
        beams.sort(key=lambda beam: -beam.lm_score)
        # Nothing was found of scores that are no numbers.
        beams = beams or [OutputBeam("", lm_state, [], math.nan, math.nan)]
        return [beam for beam in beams if not beam.lm_score < beams[0].lm_score + beam_prune_logp]

    def save_to_dir(self, filepath: str) -> None:
        """Write the alphabet and the language model into a folder."""
        with open(os.path.join(filepath, self._ALPHABET_SERIALIZED_FILENAME), "w", encoding="utf-8") as file:
            file.write(self._alphabet.dumps())
        model = self._language_model
        if isinstance(model, LanguageModel):
            folder = os.path.join(filepath, self._LANGUAGE_MODEL_SERIALIZED_DIRECTORY)
            os.makedirs(folder)
            model.save_to_dir(folder)
        elif model is not None:
            raise NotImplementedError(f"a {type(model).__name__} cannot be saved")

    @classmethod
    def parse_directory_contents(cls, filepath: str) -> dict[str, str | None]:
        """The files of a folder that ``save_to_dir`` has written, by what they are."""
        names = _visible(filepath)
        alphabet, folder = cls._ALPHABET_SERIALIZED_FILENAME, cls._LANGUAGE_MODEL_SERIALIZED_DIRECTORY
        if alphabet not in names:
            raise ValueError(f"Could not find alphabet file {alphabet}. Found {names}")
        if len(names) > 1 and folder not in names:
            raise ValueError(f"Could not find language model directory {folder}. Found {names}")
        return {
            "alphabet": os.path.join(filepath, alphabet),
            "language_model": os.path.join(filepath, folder) if folder in names else None,
        }

    @classmethod
    def load_from_dir(cls, filepath: str, unigram_encoding: str | None = None) -> BeamSearchDecoderCTC:
        """The decoder that ``save_to_dir``, pyctcdecode's or this one, has written."""
        names = cls.parse_directory_contents(filepath)
        with open(str(names["alphabet"]), encoding="utf-8") as file:
            alphabet = Alphabet.loads(file.read())
        folder = names["language_model"]
        return cls(alphabet, None if folder is None else LanguageModel.load_from_dir(folder, unigram_encoding))

    @classmethod
    def load_from_hf_hub(cls, model_id: str, cache_dir: str | None = None, **kwargs: Any) -> BeamSearchDecoderCTC:
        """The decoder of a repository of Hugging Face's, by ``huggingface_hub``."""
        try:
            from huggingface_hub import snapshot_download  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("load_from_hf_hub needs the package huggingface_hub") from error
        cache_dir = cache_dir or os.path.join(os.path.expanduser("~"), ".cache", "pyctcdecode")
        return cls.load_from_dir(snapshot_download(model_id, cache_dir=cache_dir, **kwargs))


def _visible(folder: str) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith((".", "__")))


def _ends(tokens: np.ndarray, begins: np.ndarray, log_probs: np.ndarray, blank: int) -> list[int]:
    """The frame behind each token, in the best alignment in which they begin where they do."""
    ends = []
    for place, (token, begin) in enumerate(zip(tokens, begins, strict=True)):
        last = place + 1 == len(tokens)
        until = len(log_probs) if last else int(begins[place + 1])
        # Equal neighbours have a blank between them.
        longest = until - begin - (0 if last or tokens[place + 1] != token else 1)
        gains = log_probs[begin + 1 : begin + longest, token] - log_probs[begin + 1 : begin + longest, blank]
        ends.append(int(begin) + 1 + int(np.argmax(np.concatenate([[0.0], np.cumsum(gains)]))))
    return ends


def build_ctcdecoder(
    labels: list[str],
    kenlm_model_path: str | None = None,
    unigrams: Collection[str] | None = None,
    alpha: float = DEFAULT_ALPHA,
    beta: float = DEFAULT_BETA,
    unk_score_offset: float = DEFAULT_UNK_LOGP_OFFSET,
    lm_score_boundary: bool = DEFAULT_SCORE_LM_BOUNDARY,
) -> BeamSearchDecoderCTC:
    """``pyctcdecode.build_ctcdecoder``.

    Args:
        labels: The classes' texts: see ``Alphabet.build_alphabet``.
        kenlm_model_path: A language model of words: an ARPA file, which needs no kenlm, or a binary file of KenLM's.
        unigrams: The known words; those of an ARPA file where ``None``.
        alpha: What ln P of the words counts.
        beta: What each word counts.
        unk_score_offset: Logarithm to base 10, added to an unknown word's.
        lm_score_boundary: Whether sentences begin in "<s>" and end in "</s>".

    Returns:
        The decoder.

    Raises:
        ValueError: A label is there twice, or the file is no ARPA file.
        ImportError: A binary file, and no package kenlm.

    Example:
        >>> import numpy as np
        >>> from pathsum.compat.pyctcdecode import build_ctcdecoder
        >>> build_ctcdecoder(["a", "b", "|", "<pad>"]).decode(np.eye(4)[[0, 2, 1]])
        'a b'
    """
    alphabet = Alphabet.build_alphabet(labels)
    if kenlm_model_path is None:
        return BeamSearchDecoderCTC(alphabet)
    options = (alpha, beta, unk_score_offset, lm_score_boundary)
    return BeamSearchDecoderCTC(alphabet, LanguageModel(kenlm_model_path, unigrams, *options))


_DECODERS = {"BeamSearchDecoderCTC": BeamSearchDecoderCTC, "build_ctcdecoder": build_ctcdecoder}
_MODELS = {"LanguageModel": LanguageModel}
PLACES = {
    "pyctcdecode": {"Alphabet": Alphabet, **_DECODERS, **_MODELS},
    "pyctcdecode.alphabet": {"Alphabet": Alphabet},
    "pyctcdecode.decoder": {"OutputBeam": OutputBeam, "OutputBeamMPSafe": OutputBeamMPSafe, **_DECODERS},
    "pyctcdecode.language_model": {
        "AbstractLanguageModel": AbstractLanguageModel, "MultiLanguageModel": MultiLanguageModel, **_MODELS,
    },
}  # fmt: skip
_TOKENS = ("BPE_TOKEN", "UNK_TOKEN", "UNK_BPE_TOKEN", "BLANK_TOKEN_PTN", "UNK_TOKEN_PTN")
_NUMBERS = ("MIN_TOKEN_CLIP_P", "LOG_BASE_CHANGE_FACTOR")
HELPERS = {
    "pyctcdecode.alphabet": {name: globals()[name] for name in _TOKENS},
    "pyctcdecode.constants": {
        name: value for name, value in globals().items() if name.startswith("DEFAULT_") or name in _NUMBERS
    },
}
