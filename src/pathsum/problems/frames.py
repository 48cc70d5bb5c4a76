"""How many frames a target needs under each loss, and why: what makes a sample infeasible whatever its scores are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Bands(NamedTuple):
    """The frames (L,) near which the labels of an alignment-restricted transducer are emitted, and how near."""

    alignment: np.ndarray
    left: int
    right: int


class Need(NamedTuple):
    """What a target needs.

    Attributes:
        frames: The fewest frames that fit, and not fewer than there are where more may fit worse; ``None``: none fit.
        reason: Why, in words.
    """

    frames: int | None
    reason: str


def frames_needed(
    loss: str,
    target: np.ndarray,
    num_frames: int,
    *,
    rnnt_type: str,
    durations: tuple[int, ...],
    final: str,
    bands: Bands | None = None,
) -> Need:
    """What a target (L,) needs under one of ``LOSSES``; ``bands`` are of ``"ar_rnnt"``, which has them."""
    size = len(target)
    labels = f"{size} label{'' if size == 1 else 's'}"
    if loss == "ctc":
        repeats = int((target[1:] == target[:-1]).sum())
        between = f", and a blank between equal neighbours {repeats} time{'' if repeats == 1 else 's'}"
        return Need(size + repeats, f"a frame for each of {labels}{between if repeats else ''}")
    if loss == "asg" and size == 0:
        return Need(None if num_frames else 0, "an empty target spells no frame at all")
    if loss in ("simple_ctc", "asg"):
        return Need(size, f"a frame for each of {labels}")
    if loss == "tdt":
        return _frames_of_durations(size, labels, num_frames, durations, final)
    if bands is not None and size:
        return _frames_of_bands(bands, rnnt_type)
    if loss == "rnnt" and rnnt_type == "one_sym_per_frame":
        return Need(size + 1, f"a frame for each of {labels}, and one for the last blank")
    if loss == "rnnt" and rnnt_type != "regular" and size:
        return Need(size, f"a frame for each of {labels}")
    return Need(1, "a walk has at least one frame")


def _frames_of_durations(size: int, labels: str, num_frames: int, durations: tuple[int, ...], final: str) -> Need:
    """A walk is a sum of durations above 0, as many as there are symbols that cannot last 0 frames, or more."""
    steps = [d for d in durations if d > 0]
    last_is_blank = final == "blank"
    at_least = 1 if 0 in durations else max(size + last_is_blank, 1)
    shortest = min(steps)
    # Multiples of the shortest duration fit from at_least of them on.
    bound = max(at_least, -(-num_frames // shortest)) * shortest
    most = [0] + [-1] * bound  # of how many durations a number of frames can be the sum
    for t in range(1, bound + 1):
        most[t] = max((most[t - d] + 1 for d in steps if d <= t and most[t - d] >= 0), default=-1)
    fits = next(t for t in range(max(num_frames, 1), bound + 1) if most[t] >= at_least)
    given = ", ".join(map(str, durations))
    if 0 in durations:
        return Need(fits, f"a sum of one or more of the durations {given}")
    end = " and the last blank" if last_is_blank else ""
    return Need(fits, f"a sum of {at_least} or more of the durations {given}, for {labels}{end}")


def _frames_of_bands(bands: Bands, rnnt_type: str) -> Need:
    """Each label is as early as its band and the label before it allow."""
    frame = next_frame = 0
    for label, own in enumerate(bands.alignment.tolist()):
        frame = max(own - bands.left, next_frame)
        if frame > own + bands.right:
            band = f"frames {max(own - bands.left, 0)} to {own + bands.right}"
            return Need(None, f"label {label} is to be in {band}, and behind those before it")
        next_frame = frame if rnnt_type == "regular" else frame + 1
    if rnnt_type == "one_sym_per_frame":
        return Need(frame + 2, f"the last label is in frame {frame} at the earliest, and the last blank behind it")
    return Need(frame + 1, f"the last label is in frame {frame} at the earliest")
