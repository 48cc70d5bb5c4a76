"""Tokens and the frames they take, of a path."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathsum.errors import InvalidValueError


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

    def seconds(self, seconds_per_frame: float) -> tuple[float, float]:
        """Start and end in seconds, frame t lasting from t to t + 1 times ``seconds_per_frame``."""
        return self.start * seconds_per_frame, self.end * seconds_per_frame


def token_spans(path: Tensor, scores: Tensor, blank: int | None = 0) -> list[TokenSpan]:
    """The tokens of one path with their frames: runs of a class merged, blanks left out.

    Args:
        path: (T,) class of each frame, such as ``forced_align(...).paths[n]``. Frames of -1 belong to no token.
        scores: (T,) score of each frame, such as ``forced_align(...).scores[n]``.
        blank: The class to leave out; ``None`` leaves none out.

    Returns:
        A ``TokenSpan`` for each token, in order: token, start, end (the frame after the last) and score, the mean of
        ``scores`` over its frames. Of log-probabilities it is the logarithm of their geometric mean: ``exp(score)``
        is a confidence in [0, 1]. Given ``scores.exp()`` it is the mean probability, as torchaudio's tutorials have
        it.

    Raises:
        InvalidValueError: (a ValueError) path or scores are not (T,), or not of the same length.

    Notes:
        The blank is written as in the path, not counted from the end. ``TokenSpan.seconds`` turns frames to seconds.

    Example:
        >>> import torch
        >>> from pathsum.torch import token_spans
        >>> path, scores = torch.tensor([0, 3, 3, 0, 3, -1]), torch.tensor([-0.1, -0.5, -0.25, 0.0, -1.0, 0.0])
        >>> for span in token_spans(path, scores):
        ...     print(span.token, span.seconds(0.02), span.score)
        3 (0.02, 0.06) -0.375
        3 (0.08, 0.1) -1.0
    """
    for name, value in (("path", path), ("scores", scores)):
        if value.ndim != 1 or len(value) != len(path):
            raise InvalidValueError("token_spans", name, f"have shape (T,) = ({len(path)},)", tuple(value.shape))
    classes = path.detach().cpu().numpy()
    values = scores.detach().to("cpu", torch.float64).numpy()
    bounds = [0, *(np.flatnonzero(np.diff(classes)) + 1), len(classes)]
    return [
        TokenSpan(int(classes[start]), int(start), int(end), float(values[start:end].mean()))
        for start, end in pairwise(bounds)
        if start < end and classes[start] not in (-1, blank)
    ]
