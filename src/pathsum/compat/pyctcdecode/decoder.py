"""``pyctcdecode.decoder``: logits in, texts out."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from pathsum.compat.pyctcdecode.alphabet import Alphabet
from pathsum.compat.pyctcdecode.constants import (
    DEFAULT_ALPHA,
    DEFAULT_BEAM_WIDTH,
    DEFAULT_BETA,
    DEFAULT_HOTWORD_WEIGHT,
    DEFAULT_MIN_TOKEN_LOGP,
    DEFAULT_PRUNE_BEAMS,
    DEFAULT_PRUNE_LOGP,
    DEFAULT_SCORE_LM_BOUNDARY,
    DEFAULT_UNK_LOGP_OFFSET,
    LOG_BASE_CHANGE_FACTOR,
)
from pathsum.compat.pyctcdecode.language_model import AbstractLanguageModel, LanguageModel, visible
from pathsum.compat.pyctcdecode.texts import Text, log_probs_of, texts_of
from pathsum.decoding import ctc_beam_decode


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
        log_probs = [log_probs_of(each, len(self._alphabet.labels)) for each in logits]
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
                texts_of(found, n, log_probs[n], labels, separator), None if own_order else words, hotword_weight,
                lm_state, beam_prune_logp,
            )[:n_best]
            for n in range(len(logits))
        ]  # fmt: skip

    def _ordered(
        self, texts: list[Text], hotwords: list[str] | None, weight: float, lm_state: Any, beam_prune_logp: float
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
        names = visible(filepath)
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
