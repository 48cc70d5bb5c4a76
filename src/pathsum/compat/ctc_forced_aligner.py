"""ctc-forced-aligner's ``forced_align`` and what is made of it: ``get_alignments`` and ``get_spans``.

The peer's quirks that are kept: scores of one sample are (T,), its path is (1, T); a target that does not fit stops the
call; ``get_alignments`` takes a star to be the last column and leaves out what the tokenizer lacks; the last frame is
part of a segment, ``start`` to ``end``. Not kept: ``input_lengths`` and ``target_lengths`` were ignored; one sample and
float32 alone; where two paths score the same, one that is not the best.

``install`` replaces ``forced_align``, on which the peer's others rest. The package of the same name on PyPI by another
author has these functions too, of NumPy's arrays, and is changed the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathsum.compat.doors import array
from pathsum.compat.torchaudio import forced_align as _forced_align
from pathsum.errors import InvalidValueError


@dataclass
class Segment:
    """A run of frames of one class, from ``start`` to ``end``, which is among them."""

    label: str
    start: int
    end: int

    def __repr__(self) -> str:
        return f"{self.label}: [{self.start:5d}, {self.end:5d})"

    @property
    def length(self) -> int:
        return self.end - self.start


def forced_align(
    log_probs: Any,
    targets: Any,
    input_lengths: Any = None,
    target_lengths: Any = None,
    blank: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """``ctc_forced_aligner.forced_align``.

    Args:
        log_probs: Log-probabilities (N, T, C).
        targets: Labels (N, L).
        input_lengths: Frames of each sample (N,); T where ``None``.
        target_lengths: Labels of each sample (N,); L where ``None``.
        blank: Index of the blank class.

    Returns:
        Paths (N, T), the class of each frame, and its log-probability: (T,) of one sample, (N, T) of more.

    Raises:
        RuntimeError: A target does not fit in its frames.
        InvalidValueError: As in ``pathsum.torch.forced_align``.

    Example:
        >>> import numpy as np
        >>> from pathsum.compat.ctc_forced_aligner import forced_align
        >>> probs = np.array([[[0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.1, 0.7]]], np.float32)
        >>> paths, scores = forced_align(np.log(probs), np.array([[1, 2]]))
        >>> paths.tolist(), scores.shape
        ([[1, 0, 2]], (3,))
    """
    given = array("forced_align", "log_probs", log_probs, torch.as_tensor)
    found = _forced_align(given, targets, input_lengths, target_lengths, blank)
    paths, scores = (result.numpy() for result in found)
    return paths, scores[0] if len(scores) == 1 else scores


def get_alignments(
    emissions: Tensor | np.ndarray, tokens: Sequence[str], tokenizer: Any
) -> tuple[list[Segment], np.ndarray, str]:
    """``ctc_forced_aligner.get_alignments``.

    Args:
        emissions: Log-probabilities (T, C), the last column that of the star.
        tokens: Words, their letters separated by blanks.
        tokenizer: What has ``get_vocab()`` and ``pad_token_id``, of transformers for example.

    Returns:
        The runs of the path, the log-probabilities (T,) of its classes, and the token of the blank.

    Raises:
        RuntimeError: The tokens do not fit in the frames.
        InvalidValueError: There are no tokens, or none is in the vocabulary.
    """
    vocabulary = {token.lower(): index for token, index in tokenizer.get_vocab().items()}
    vocabulary["<star>"] = len(vocabulary)
    blank = vocabulary.get("<blank>", tokenizer.pad_token_id)
    targets = [vocabulary[letter] for token in tokens for letter in token.split(" ") if letter in vocabulary]
    if not targets:
        raise InvalidValueError("get_alignments", "tokens", "have a letter of the vocabulary", list(tokens))
    scores = torch.as_tensor(emissions).cpu().float().numpy()
    path, log_probs = forced_align(scores[None], np.array([targets]), blank=blank)
    names = {index: token for token, index in vocabulary.items()}
    return merge_repeats(path[0].tolist(), names), log_probs, names[blank]


def merge_repeats(path: Sequence[int], idx_to_token_map: dict[int, str]) -> list[Segment]:
    """``ctc_forced_aligner.merge_repeats``: the runs of a path."""
    segments, start = [], 0
    for index, run in groupby(path):
        end = start + len(list(run))
        segments.append(Segment(idx_to_token_map[index], start, end - 1))
        start = end
    return segments


def get_spans(tokens: Sequence[str], segments: Sequence[Segment], blank: str) -> list[list[Segment]]:
    """``ctc_forced_aligner.get_spans``: the segments of each token, with half of the blank before and behind them.

    The first token has all of the blank before it, the last all of that behind. An empty token has the last segment of
    the token before.

    Raises:
        InvalidValueError: The segments are not those of the tokens.

    Example:
        >>> from pathsum.compat.ctc_forced_aligner import Segment, get_spans
        >>> runs = [Segment("a", 0, 0), Segment("b", 1, 1), Segment("-", 2, 5), Segment("c", 6, 6)]
        >>> get_spans(["a b", "c"], runs, "-")
        [[a: [    0,     0), b: [    1,     1), -: [    1,     3)], [-: [    3,     6), c: [    6,     6)]]
    """
    spoken = [k for k, segment in enumerate(segments) if segment.label != blank]
    letters = [letter for token in tokens if token for letter in token.split(" ")]
    if [segments[k].label for k in spoken] != letters:
        raise InvalidValueError("get_spans", "segments", f"spell {' '.join(letters)}", list(segments))
    ends, used = [], 0
    for token in tokens:
        if token:
            first, used = used, used + len(token.split(" "))
            ends.append((spoken[first], spoken[used - 1]))
        else:
            ends.append((spoken[max(used - 1, 0)],) * 2)
    spans = []
    for k, (first, last) in enumerate(ends):
        span = list(segments[first : last + 1])
        before = segments[first - 1] if first else None
        behind = segments[last + 1] if last + 1 < len(segments) else None
        if before is not None and before.label == blank:
            start = before.start if k == 0 else (before.start + before.end) // 2
            span.insert(0, Segment(blank, start, span[0].start))
        if behind is not None and behind.label == blank:
            end = behind.end if k == len(ends) - 1 else (behind.start + behind.end) // 2
            span.append(Segment(blank, span[-1].end, end))
        spans.append(span)
    return spans


_PACKAGE = "ctc_forced_aligner"
PLACES: dict[str, dict[str, Any]] = {
    _PACKAGE: {"forced_align": forced_align},
    f"{_PACKAGE}.alignment_utils": {"forced_align": forced_align},
}
HELPERS = {
    place: {
        "Segment": Segment,
        "get_alignments": get_alignments,
        "get_spans": get_spans,
        "merge_repeats": merge_repeats,
    }
    for place in PLACES
}
