"""whisperX's forced alignment: ``get_trellis``, ``backtrack``, ``merge_repeats`` and ``merge_words`` of ``alignment``.

What is aligned is simplified CTC: a label has one frame, and blanks fill the rest. The peer's quirks that are kept: a
path ends with its last label, in the frame where the score is the highest, whatever comes behind; a point belongs to
the last label so far, the blanks behind it too; the blank may be among the tokens, as a hyphen is with torchaudio's
models; a trellis has infinity where the tokens that are left do not fit in the frames that are left. Not kept: sums of
log-probabilities in float32.

``align``, the peer's own, takes text apart and puts times together; it is whisperX's with these functions under it, and
so needs whisperX.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from pathsum.compat import install
from pathsum.compat.conventions import blanks_apart, check_class, check_floats, checked
from pathsum.errors import InvalidValueError
from pathsum.torch import simple_ctc_align


@dataclass
class Point:
    """A frame of a path: its token, its time and the probability of its class."""

    token_index: int
    time_index: int
    score: float


@dataclass
class Segment:
    """Frames from ``start`` to before ``end``, what they say, and the mean probability of their classes."""

    label: str
    start: int
    end: int
    score: float

    def __repr__(self) -> str:
        return f"{self.label}\t({self.score:4.2f}): [{self.start:5d}, {self.end:5d})"

    @property
    def length(self) -> int:
        return self.end - self.start


@checked
def get_trellis(emission: Tensor, tokens: Sequence[int], blank_id: int = 0) -> Tensor:
    """``whisperx.alignment.get_trellis``: the best score of the first t frames with the first j tokens in them.

    Args:
        emission: Log-probabilities (T, C).
        tokens: Classes, J of them.
        blank_id: Index of the blank class.

    Returns:
        Scores (T+1, J+1).

    Example:
        >>> import torch
        >>> from pathsum.compat.whisperx import get_trellis
        >>> emission = torch.tensor([[0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.1, 0.7]]).log()
        >>> round(get_trellis(emission, [1, 2])[3, 2].exp().item(), 3)  # 0.8 * 0.6 * 0.7
        0.336
    """
    tokens, blank_id = _classes("get_trellis", emission, tokens, blank_id)
    blanks, labels = emission[:, blank_id].double(), emission[:, tokens].double()
    # Relative to blanks in all frames a token's column is a running maximum, anew behind a frame that cannot be blank.
    never = blanks == -torch.inf
    blanks = blanks.masked_fill(never, 0)
    rows = (never.nonzero()[:, 0] + 1).tolist()
    column = blanks.new_zeros(len(blanks) + 1)
    column[rows[0] if rows else len(column) :] = -torch.inf
    column[max(len(column) - labels.shape[1], 0) :] = torch.inf
    columns = [column]
    for gain in (labels - blanks[:, None]).unbind(1):
        entered = torch.nn.functional.pad(columns[-1][:-1] + gain, (1, 0), value=-torch.inf)
        columns.append(torch.cat([part.cummax(0).values for part in entered.tensor_split(rows)]))
    all_blank = torch.nn.functional.pad(blanks.cumsum(0), (1, 0))
    return (torch.stack(columns, 1) + all_blank[:, None]).to(torch.get_default_dtype())


def _classes(function: str, emission: Tensor, tokens: Sequence[int], blank_id: int) -> tuple[list[int], int]:
    """The tokens and the blank as classes of the emission, checked."""
    check_floats(function, "emission", emission, "(T, C)")
    classes = [check_class(function, "tokens", token, emission.shape[1]) for token in tokens]
    return classes, check_class(function, "blank_id", blank_id, emission.shape[1])


@checked
def backtrack(trellis: Tensor, emission: Tensor, tokens: Sequence[int], blank_id: int = 0) -> list[Point] | None:
    """``whisperx.alignment.backtrack``: the best path from the first token's frame to the last token's.

    Args:
        trellis: What ``get_trellis`` made.
        emission: As in ``get_trellis``; so are the next two.
        tokens: See there.
        blank_id: See there.

    Returns:
        A ``Point`` a frame; ``None`` where the tokens do not fit.

    Example:
        >>> import torch
        >>> from pathsum.compat.whisperx import backtrack, get_trellis, merge_repeats
        >>> emission = torch.tensor([[0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.1, 0.7]]).log()
        >>> path = backtrack(get_trellis(emission, [1, 2]), emission, [1, 2])
        >>> merge_repeats(path or [], "ab")
        [a	(0.70): [    0,     2), b	(0.70): [    2,     3)]
    """
    tokens, blank_id = _classes("backtrack", emission, tokens, blank_id)
    check_floats("backtrack", "trellis", trellis, "(T+1, J+1)")
    if not trellis.numel():
        raise InvalidValueError("backtrack", "trellis", "have shape (T+1, J+1)", f"shape {tuple(trellis.shape)}")
    end = int(trellis[:, -1].argmax())
    targets = torch.tensor([tokens], dtype=torch.int64)
    is_blank = targets == blank_id
    scores = emission[None, :end]
    if is_blank.any():
        scores, targets = blanks_apart(scores, targets, is_blank, blank_id)
    found = simple_ctc_align(scores, targets, blank=blank_id)
    times = (found.positions[0] >= 0).nonzero()[:, 0]
    if not len(times):
        return None
    labels = found.positions[0].cummax(0).values.tolist()
    probabilities = found.scores[0].exp().tolist()
    return [Point(labels[t], t, probabilities[t]) for t in range(int(times[0]), end)]


def merge_repeats(path: Sequence[Point], transcript: Sequence[str]) -> list[Segment]:
    """``whisperx.alignment.merge_repeats``: the frames of each token as one segment."""
    runs = [list(run) for _, run in groupby(path, lambda point: point.token_index)]
    return [
        Segment(
            transcript[run[0].token_index],
            run[0].time_index,
            run[-1].time_index + 1,
            sum(point.score for point in run) / len(run),
        )
        for run in runs
    ]


def merge_words(segments: Sequence[Segment], separator: str = "|") -> list[Segment]:
    """``whisperx.alignment.merge_words``: the segments between separators as one, scores weighted by lengths."""
    words = []
    for is_separator, run in groupby(segments, lambda segment: segment.label == separator):
        parts = list(run)
        if not is_separator:
            frames = sum(part.length for part in parts)
            score = sum(part.score * part.length for part in parts) / frames
            words.append(Segment("".join(part.label for part in parts), parts[0].start, parts[-1].end, score))
    return words


def align(*arguments: Any, **options: Any) -> Any:
    """``whisperx.align``, by the functions above.

    Args:
        arguments: The peer's, as are its result and errors.
        options: The peer's.

    Raises:
        ModuleNotFoundError: whisperX is not installed.
    """
    alignment = importlib.import_module("whisperx.alignment")
    with install("whisperx"):
        return alignment.align(*arguments, **options)


PLACES: dict[str, dict[str, Any]] = {"whisperx.alignment": {"get_trellis": get_trellis, "backtrack": backtrack}}
HELPERS = {
    "whisperx.alignment": {
        "Point": Point,
        "Segment": Segment,
        "merge_repeats": merge_repeats,
        "merge_words": merge_words,
    }
}
