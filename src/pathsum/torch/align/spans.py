"""Tokens and words and the frames they take, of a path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathsum import _checks
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.torch._bounded import special_kind
from pathsum.torch._inputs import Integers, as_integers, check_values, dtype_of, own_blank


class TokenSpan(NamedTuple):
    """A token and the frames it takes.

    Attributes:
        token: Its class.
        start: Its first frame.
        end: The frame after its last.
        score: Mean over its frames of the scores given.
    """

    token: int
    start: int
    end: int
    score: float

    @property
    def confidence(self) -> float:
        """``exp(score)``, in [0, 1]: of log-probabilities the geometric mean of the frames' probabilities."""
        return _confidence(self.score)

    def seconds(self, seconds_per_frame: float) -> tuple[float, float]:
        """Start and end in seconds, frame t lasting from t to t + 1 times ``seconds_per_frame``."""
        return self.start * seconds_per_frame, self.end * seconds_per_frame


class WordSpan(NamedTuple):
    """A word and the frames it takes.

    Attributes:
        start: The first frame of its first token.
        end: The frame after the last of its last token.
        score: Mean of the scores over the frames of its tokens; blanks between them say nothing of the word.
    """

    start: int
    end: int
    score: float

    @property
    def confidence(self) -> float:
        """``exp(score)``, in [0, 1]: of log-probabilities the geometric mean of the frames' probabilities."""
        return _confidence(self.score)

    def seconds(self, seconds_per_frame: float) -> tuple[float, float]:
        """Start and end in seconds, frame t lasting from t to t + 1 times ``seconds_per_frame``."""
        return self.start * seconds_per_frame, self.end * seconds_per_frame


def token_spans(
    path: Tensor | np.ndarray | Sequence[int],
    scores: Tensor | np.ndarray | Sequence[float],
    blank: int | None = 0,
    *,
    positions: Integers | None = None,
    num_classes: int | None = None,
) -> list[TokenSpan]:
    """The tokens of one path with their frames.

    With ``positions`` there is a token for each label of the target, of the frames that belong to it. Without, runs of
    a class are merged and blanks left out, which is as good for ``forced_align``: blanks part equal labels there.

    Args:
        path: (T,) class of each frame, such as ``forced_align(...).paths[n]``. Frames of -1 belong to no token.
        scores: (T,) score of each frame, such as ``forced_align(...).scores[n]``.
        blank: The class to leave out; ``None`` leaves none out. Negative counts from the end of ``num_classes``. Not
            read where there are positions.
        positions: (T,) which label of the target each frame belongs to, such as ``simple_ctc_align(...).positions[n]``.
            Frames of -1 belong to no token.
        num_classes: C, of which a negative blank counts from the end.

    Returns:
        A ``TokenSpan`` for each token, in order: token, start, end (the frame after the last) and score, the mean of
        ``scores`` over its frames. Of log-probabilities it is the logarithm of their geometric mean, and
        ``TokenSpan.confidence`` is that mean. Given ``scores.exp()`` the score is the mean probability, as torchaudio's
        tutorials have it.

    Raises:
        InvalidValueError: (a ValueError) path, scores or positions are not (T,), or not of the same length; the blank
            is negative and ``num_classes`` not given, or too small.
        InvalidTypeError: (a TypeError) path or positions are no integers.

    Notes:
        ``TokenSpan.seconds`` turns frames to seconds. ``word_spans`` joins the spans of a word.

    Example:
        >>> import torch
        >>> from pathsum.torch import token_spans
        >>> path, scores = torch.tensor([0, 3, 3, 0, 3, -1]), torch.tensor([-0.1, -0.5, -0.25, 0.0, -1.0, 0.0])
        >>> for span in token_spans(path, scores):
        ...     print(span.token, span.seconds(0.02), span.score)
        3 (0.02, 0.06) -0.375
        3 (0.08, 0.1) -1.0
        >>> [span[:3] for span in token_spans(path, scores, positions=[-1, 0, 1, -1, 2, -1])]
        [(3, 1, 2), (3, 2, 3), (3, 4, 5)]
    """
    function = "token_spans"
    classes = as_integers(function, "path", path)
    if classes.ndim != 1:
        raise InvalidValueError(function, "path", "have shape (T,)", f"shape {classes.shape}")
    classes = _checks.check_integers(function, "path", classes, (1,))
    groups, values = classes, _as_floats(function, scores)
    if positions is not None:
        groups = _checks.check_integers(function, "positions", as_integers(function, "positions", positions), (1,))
    for name, value in (("scores", values), ("positions", groups)):
        if value.shape != classes.shape:
            raise InvalidValueError(function, name, f"have shape (T,) = {classes.shape}", tuple(value.shape))
    left_out = -1 if positions is not None or blank is None else own_blank(function, blank, num_classes)
    bounds = [0, *(np.flatnonzero(np.diff(groups)) + 1), len(classes)]
    return [
        TokenSpan(int(classes[start]), int(start), int(end), float(values[start:end].mean()))
        for start, end in pairwise(bounds)
        if start < end and groups[start] not in (-1, left_out)
    ]


def word_spans(spans: Sequence[TokenSpan], lengths: Sequence[int], *, between: int = 0) -> list[WordSpan]:
    """The words of a transcript with their frames, of the spans of its tokens.

    Args:
        spans: Of all tokens of the target, in order, as ``token_spans`` gives them.
        lengths: How many tokens each word has, at least 1.
        between: How many tokens stand between a word and the next and belong to neither: 1 where the target has a token
            for the space.

    Returns:
        A ``WordSpan`` for each word, in order: start, end and score, the mean of the scores over the frames of its
        tokens.

    Raises:
        InvalidValueError: (a ValueError) a length below 1, or more or fewer tokens than there are spans.
        InvalidTypeError: (a TypeError) a length that is no int.

    Example:
        >>> import torch
        >>> from pathsum.torch import token_spans, word_spans
        >>> path, scores = torch.tensor([1, 2, 2, 0, 3, 0, 1]), torch.tensor([-1.0, -4.0, -4.0, 0.0, 0.0, 0.0, -2.0])
        >>> for word in word_spans(token_spans(path, scores), [2, 1], between=1):  # 1 2, the space 3, 1
        ...     print(word.seconds(0.5), word.score)
        (0.0, 1.5) -3.0
        (3.0, 3.5) -2.0
    """
    function = "word_spans"
    sizes = [_checks.check_count(function, "lengths", length, 1) for length in lengths]
    gap = _checks.check_count(function, "between", between)
    total = sum(sizes) + gap * max(len(sizes) - 1, 0)
    if total != len(spans):
        raise InvalidValueError(function, "spans", f"have one entry a token, {total}", f"{len(spans)} entries")
    words, first = [], 0
    for size in sizes:
        tokens = spans[first : first + size]
        frames = [token.end - token.start for token in tokens]
        score = sum(token.score * count for token, count in zip(tokens, frames, strict=True)) / sum(frames)
        words.append(WordSpan(tokens[0].start, tokens[-1].end, score))
        first += size + gap
    return words


def _as_floats(function: str, scores: Any) -> np.ndarray:
    if isinstance(scores, Tensor):
        if special_kind(scores) or scores.is_complex():
            raise InvalidTypeError(function, "scores", "be floats (T,)", dtype_of(scores))
        check_values(function, "scores", scores)
        return scores.detach().to("cpu", torch.float64).resolve_neg().numpy()
    try:
        array = np.asarray(scores)
        if array.dtype.kind not in "fiu":
            raise TypeError(array.dtype)
        return array.astype(np.float64)
    except (ValueError, TypeError) as error:
        raise InvalidTypeError(function, "scores", "be floats (T,)", type(scores).__name__) from error


def _confidence(log_prob: float) -> float:
    return math.exp(min(log_prob, 0.0))
