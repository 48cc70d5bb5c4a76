"""``pyctcdecode.language_model``: what words are worth."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection
from typing import Any

import numpy as np

from pathsum.compat.pyctcdecode.constants import (
    DEFAULT_ALPHA,
    DEFAULT_BETA,
    DEFAULT_SCORE_LM_BOUNDARY,
    DEFAULT_UNK_LOGP_OFFSET,
    LOG_BASE_CHANGE_FACTOR,
)
from pathsum.decoding import KenLM, NGram
from pathsum.errors import InvalidValueError

# Characters of a word, above which an unknown one costs the peer more.
_EXPECTED_LENGTH = 6
# ln P of a word unknown to a model that has no "<unk>": KenLM's.
_UNHEARD_OF = -100.0 * LOG_BASE_CHANGE_FACTOR


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
        names = visible(filepath)
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


def visible(folder: str) -> list[str]:
    """The names in a folder, but hidden ones and Python's."""
    return sorted(name for name in os.listdir(folder) if not name.startswith((".", "__")))
