"""Language models of KenLM's, by its own package, to rescore with."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from pathsum import _checks
from pathsum.decoding.beam import Beams
from pathsum.errors import FrameworkMissingError, InvalidTypeError, InvalidValueError

_LN_10 = math.log(10.0)


class KenLM:
    """A model of the package ``kenlm``, in natural logarithms, with the verbs of ``NGram``.

    It is asked word by word, from Python, so that no search can be led by it: ``rescore`` orders what one has found.
    Binary files are read by kenlm alone; of an ARPA file ``NGram`` makes a model that leads the search.

    Args:
        model: A ``kenlm.Model``.
    """

    def __init__(self, model: Any) -> None:
        self._kenlm = _package()
        if not isinstance(model, self._kenlm.Model):
            raise InvalidTypeError("KenLM", "model", "be a kenlm.Model", type(model).__name__)
        self._model = model

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> KenLM:
        """Read a binary or an ARPA file.

        Args:
            path: The file.

        Returns:
            The model.

        Raises:
            FrameworkMissingError: (an ImportError) there is no package kenlm.
            InvalidValueError: (a ValueError) the file is none of kenlm's.
            OSError: the file cannot be read.
        """
        package = _package()
        with open(path, "rb"):
            pass
        try:
            return cls(package.Model(os.fspath(path)))
        except (OSError, RuntimeError) as error:
            raise InvalidValueError("KenLM.read", "path", "be a file of kenlm's", f"{path}: {error}") from error

    @property
    def order(self) -> int:
        """Words of the longest n-gram."""
        return self._model.order

    def __contains__(self, word: object) -> bool:
        return word in self._model

    def score(self, words: Iterable[str], *, bos: bool = True, eos: bool = True) -> float:
        """ln P(words, "</s>").

        Args:
            words: The words, without "<s>" and "</s>".
            bos: The words begin behind "<s>".
            eos: They end in "</s>".

        Returns:
            The natural logarithm.
        """
        state, total = self.begin(bos), 0.0
        for word in words:
            score, state = self.follow(state, word)
            total += score
        return total + (self.end(state) if eos else 0.0)

    def begin(self, bos: bool = True) -> Any:
        """The state before the first word: behind "<s>", or without any context."""
        state = self._kenlm.State()
        (self._model.BeginSentenceWrite if bos else self._model.NullContextWrite)(state)
        return state

    def follow(self, state: Any, word: str) -> tuple[float, Any]:
        """ln P of a word behind a state, and the state behind both."""
        after = self._kenlm.State()
        return self._model.BaseScore(state, word, after) * _LN_10, after

    def end(self, state: Any) -> float:
        """ln P("</s>") in a state."""
        return self.follow(state, "</s>")[0]


def _package() -> Any:
    try:
        import kenlm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise FrameworkMissingError("KenLM: needs the package kenlm (pip install kenlm)") from error
    return kenlm


def rescore(beams: Beams, lm: Any, *, lm_weight: float, word_score: float = 0.0) -> Beams:
    """The lists of a decoder in the order of another language model.

    ``score = ctc_score + lm_weight * ln P(words, "</s>") + word_score * words``

    Args:
        beams: Of ``ctc_beam_decode`` and its like, with ``words`` that are texts, and a batch axis.
        lm: A ``KenLM`` or ``NGram``, or another object with ``score(words)``, a natural logarithm.
        lm_weight: What ln P of the language model counts.
        word_score: What each word counts.

    Returns:
        ``Beams`` with new ``scores``, ``lm_scores`` and order; what the decoder added to the scores is not in them.

    Raises:
        InvalidValueError: (a ValueError) there are no words, or a weight is no number.

    Example:
        >>> import numpy as np
        >>> from pathsum.decoding import ctc_beam_decode, rescore
        >>> probs = np.array([[[0.0, 0.6, 0.4, 0.0]]])
        >>> found = ctc_beam_decode(np.log(probs + 1e-30), n_best=2, separator=3, labels=["", "a", "b", " "])
        >>> class Model:
        ...     def score(self, words):
        ...         return 0.0 if words == ["b"] else -1.0
        >>> rescore(found, Model(), lm_weight=1.0).words
        [[['b'], ['a']]]
    """
    function = "rescore"
    if not isinstance(beams, Beams) or beams.words is None or np.ndim(beams.scores) != 2:
        raise InvalidValueError(function, "beams", "be a batch with words", type(beams).__name__)
    lm_weight = _checks.check_number(function, "lm_weight", lm_weight)
    word_score = _checks.check_number(function, "word_score", word_score)
    lm_scores, scores = beams.lm_scores.copy(), beams.scores.copy()
    words = []
    orders = np.tile(np.arange(scores.shape[1]), (len(scores), 1))
    for n, listed in enumerate(beams.words):
        for k, own in enumerate(listed):
            lm_scores[n, k] = lm.score(own)
            scores[n, k] = beams.ctc_scores[n, k] + lm_weight * lm_scores[n, k] + word_score * len(own)
        orders[n, : len(listed)] = np.argsort(-scores[n, : len(listed)], kind="stable")
        words.append([listed[k] for k in orders[n, : len(listed)]])
    tables = {
        name: np.take_along_axis(table, orders if table.ndim == 2 else orders[:, :, None], 1)
        for name, table in beams._replace(scores=scores, lm_scores=lm_scores)._asdict().items()
        if name not in ("words", "mass")
    }
    return Beams(**tables, words=words, mass=beams.mass)
