"""Which samples of a batch no path fits, how many frames they need, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pathsum import _checks
from pathsum.errors import InvalidValueError
from pathsum.options import FINALS, LOSSES, RNNT_TYPES, Final, LossName, RNNTType
from pathsum.problems.frames import Bands, frames_needed
from pathsum.torch._inputs import Integers, as_integers, tdt_durations


class Infeasible(NamedTuple):
    """A sample whose loss is infinite whatever its scores are.

    Attributes:
        sample: Its index in the batch.
        frames: How many it has.
        needed: The fewest that fit, not fewer than it has where more can fail too; ``None`` where no number fits.
        reason: What they are needed for, as a sentence.
    """

    sample: int
    frames: int
    needed: int | None
    reason: str


def infeasible(
    loss: LossName,
    targets: Integers,
    input_lengths: Integers | int,
    target_lengths: Integers | int | None = None,
    *,
    rnnt_type: RNNTType = "regular",
    durations: Sequence[int] | None = None,
    final: Final = "blank",
    alignment: Integers | None = None,
    left: int | None = None,
    right: int | None = None,
) -> list[Infeasible]:
    """Which samples do not fit their frames, how many frames they need, and why.

    The frames that L labels need: CTC ``L + r``, r being how often two equal labels follow one another; simplified CTC
    and ASG ``L``; the transducer 1, its ``rnnt_type`` ``"modified"`` and ``"constrained"`` ``max(L, 1)``,
    ``"one_sym_per_frame"`` ``L + 1``; the token-and-duration transducer a sum of its durations above 0; the
    alignment-restricted transducer as many as its bands leave room for.

    Args:
        loss: ``"ctc"``, ``"simple_ctc"``, ``"asg"``, ``"rnnt"``, ``"tdt"``, ``"multi_blank"``, ``"wildcard_rnnt"`` or
            ``"ar_rnnt"``.
        targets: Labels (N, S), or (sum of target_lengths,) one target after another; (S,) for one sample whose lengths
            are numbers.
        input_lengths: Frames of each sample (N,).
        target_lengths: Labels of each sample (N,), at most S; S where ``None``.
        rnnt_type: As in ``rnnt_loss``; of ``"rnnt"`` and ``"ar_rnnt"`` alone.
        durations: As in ``tdt_loss``; of ``"tdt"`` alone, which needs them.
        final: As in ``tdt_loss``.
        alignment: As in ``ar_rnnt_loss``; like ``left`` and ``right`` of ``"ar_rnnt"`` alone, which needs the three.
        left: As in ``ar_rnnt_loss``.
        right: As in ``ar_rnnt_loss``.

    Returns:
        An ``Infeasible`` for each sample that does not fit, in order: sample, frames, needed and reason. Empty where
        all fit.

    Raises:
        InvalidValueError: (a ValueError) an unknown loss or option, a negative length, shapes that do not match.
        InvalidTypeError: (a TypeError) no integers.

    Notes:
        Reads no scores: a sample that fits may still have loss infinity, by scores of -inf. Cost: O(N*S); of ``"tdt"``
        O(T*D) a sample.

    Example:
        >>> from pathsum.torch import infeasible
        >>> for found in infeasible("ctc", [[1, 2, 3], [4, 4, 4]], [3, 4]):
        ...     print(found.sample, found.frames, found.needed)
        ...     print(found.reason)
        1 4 5
        needs 5 frames, has 4: a frame for each of 3 labels, and a blank between equal neighbours 2 times
        >>> infeasible("tdt", [[1]], [3], durations=[2, 4])[0].needed
        4
    """
    function = "infeasible"
    _checks.check_option(function, "loss", loss, LOSSES)
    _checks.check_option(function, "rnnt_type", rnnt_type, RNNT_TYPES)
    _checks.check_option(function, "final", final, FINALS)
    steps = None if durations is None else tdt_durations(function, durations)
    if (steps is None) == (loss == "tdt"):
        rule = "be given with loss='tdt', and with it alone"
        raise InvalidValueError(function, "durations", rule, steps)
    for name, value in (("alignment", alignment), ("left", left), ("right", right)):
        if (value is None) == (loss == "ar_rnnt"):
            rule = "be given with loss='ar_rnnt', and with it alone"
            raise InvalidValueError(function, name, rule, type(value).__name__)
    labels = as_integers(function, "targets", targets)
    lengths = as_integers(function, "input_lengths", input_lengths)
    if lengths.ndim == 0:
        lengths, labels = lengths[None], np.atleast_2d(labels)
        alignment = None if alignment is None else np.atleast_2d(as_integers(function, "alignment", alignment))
    if target_lengths is None:
        if labels.ndim < 2:
            raise InvalidValueError(function, "target_lengths", "be given where targets are concatenated", None)
        target_lengths = [labels.shape[1]] * len(labels)
    batch = _checks.check_batch(
        function,
        labels,
        lengths,
        np.atleast_1d(as_integers(function, "target_lengths", target_lengths)),
        lengths_name="input_lengths",
        num_samples=None,
        num_frames=None,
        max_labels=None,
        num_classes=np.iinfo(np.int64).max,
        blank=None,
    )
    bands = [None] * len(batch.input_lengths)
    if alignment is not None:
        sides = [_checks.check_count(function, name, value) for name, value in (("left", left), ("right", right))]
        frames = _checks.check_alignment(function, as_integers(function, "alignment", alignment), *batch)
        bands = [Bands(own[:size], *sides) for own, size in zip(frames, batch.target_lengths, strict=True)]
    options = {"rnnt_type": rnnt_type, "durations": steps or (), "final": final}
    found = []
    for sample, (target, length, size) in enumerate(zip(*batch, strict=True)):
        frames = int(length)
        need = frames_needed(loss, target[:size], frames, bands=bands[sample], **options)
        if need.frames is None or frames < need.frames:
            none = "fits no number of frames" + (" but 0" if loss == "asg" else "")
            wanted = none if need.frames is None else f"needs {count(need.frames)}"
            reason = f"{wanted}, has {frames}: {need.reason}"
            found.append(Infeasible(sample, frames, need.frames, reason))
    return found


def count(frames: int) -> str:
    return f"{frames} frame{'' if frames == 1 else 's'}"
