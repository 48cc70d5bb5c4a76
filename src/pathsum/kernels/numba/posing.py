"""The integers of a batch checked and posed in one call: what ``_checks`` and ``problems`` do in fifty.

A function returns ``None`` where a rule of ``_checks.check_batch`` is broken, which then says what is wrong. Targets
are padded (N, S) with S >= 1; all arrays are contiguous and int64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pathsum.kernels.numba.compilation import COMPILE, kernel
from pathsum.kernels.numba.linking import part
from pathsum.lattice import ChainLattice, DenseLattice, GridLattice
from pathsum.problems import asg, ctc, rnnt, simple_ctc


def pose_ctc(
    targets: np.ndarray,
    input_lengths: np.ndarray,
    target_lengths: np.ndarray,
    num_frames: int,
    most_labels: int,
    num_classes: int,
    blank: int,
) -> ChainLattice | None:
    """The chain of ``problems.ctc``."""
    num_samples, width = targets.shape
    num_states = np.empty(num_samples, np.int64)
    labels = np.empty((num_samples, 2 * width + 1), np.int64)
    skips = np.empty(labels.shape, np.bool_)
    sizes = (num_frames, most_labels, num_classes, blank)
    if not _fill_ctc(targets, input_lengths, target_lengths, *sizes, num_states, labels, skips):
        return None
    # A copy: backward must not see the caller change its lengths.
    return ChainLattice(
        input_lengths=input_lengths.copy(), num_states=num_states, stay_labels=labels, step_labels=labels,
        skips=skips, start_state=-1, num_final=2, shared_labels=True,
    )  # fmt: skip


def pose_simple_ctc(
    targets: np.ndarray,
    input_lengths: np.ndarray,
    target_lengths: np.ndarray,
    num_frames: int,
    most_labels: int,
    num_classes: int,
    blank: int,
) -> ChainLattice | None:
    """The chain of ``problems.simple_ctc``."""
    num_samples, width = targets.shape
    labels = np.full((num_samples, width + 1), blank)
    sizes = (num_frames, most_labels, num_classes, blank)
    if not _fill_simple_ctc(targets, input_lengths, target_lengths, *sizes, labels):
        return None
    stays, skips = np.full_like(labels, blank), np.zeros(labels.shape, np.bool_)
    return ChainLattice(input_lengths.copy(), target_lengths + 1, stays, labels, skips, 0, 1)


def pose_rnnt(
    targets: np.ndarray,
    logit_lengths: np.ndarray,
    target_lengths: np.ndarray,
    num_frames: int,
    most_labels: int,
    num_classes: int,
    blank: int,
) -> GridLattice | None:
    """The grid of ``problems.rnnt``."""
    labels, row_offsets = np.empty_like(targets), np.empty(len(targets) + 1, np.int64)
    sizes = (num_frames, most_labels, num_classes, blank)
    if not _fill_rnnt(targets, logit_lengths, target_lengths, *sizes, labels, row_offsets):
        return None
    return GridLattice(
        logit_lengths=logit_lengths.copy(), target_lengths=target_lengths.copy(), targets=labels,
        blank=blank, row_offsets=row_offsets,
    )  # fmt: skip


def pose_asg(
    targets: np.ndarray,
    input_lengths: np.ndarray,
    target_lengths: np.ndarray,
    num_frames: int,
    most_labels: int,
    num_classes: int,
    blank: int,
) -> tuple[DenseLattice, ChainLattice] | None:
    """The lattices of ``problems.asg``; a blank that is no class."""
    # An array each: kernels on a GPU are compiled for where arrays begin, which in a common one goes with its size.
    labels, stays, steps = np.empty_like(targets), np.empty_like(targets), np.empty_like(targets)
    sizes = (num_frames, most_labels, num_classes, blank)
    if not _fill_asg(targets, input_lengths, target_lengths, *sizes, labels, stays, steps):
        return None
    lengths, skips = input_lengths.copy(), np.zeros(labels.shape, np.bool_)
    chain = ChainLattice(
        input_lengths=lengths, num_states=target_lengths.copy(), stay_labels=labels, step_labels=labels,
        skips=skips, start_state=-1, num_final=1, stay_transitions=stays, step_transitions=steps, shared_labels=True,
    )  # fmt: skip
    return DenseLattice(lengths, num_classes), chain


# By the function of ``problems`` that does the same.
COMPILED: dict[Callable[..., Any], Callable[..., Any]] = {
    ctc.pose_ctc: pose_ctc,
    simple_ctc.pose_simple_ctc: pose_simple_ctc,
    rnnt.pose_rnnt: pose_rnnt,
    asg.pose_asg: pose_asg,
}


# More labels than there are, and a blank that no label is.
NO_BOUND, NO_CLASS = 2**62, -1


def pose(
    problem: Callable[..., Any],
    targets: np.ndarray,
    input_lengths: np.ndarray,
    target_lengths: np.ndarray,
    num_frames: int,
    most_labels: int,
    num_classes: int,
    blank: int,
) -> Any:
    """What a function of ``problems`` makes of integers in range, whatever their dtype."""
    integers = (np.ascontiguousarray(array, np.int64) for array in (targets, input_lengths, target_lengths))
    if problem in COMPILED:
        return COMPILED[problem](*integers, num_frames, most_labels, num_classes, blank)
    return problem(*integers, blank)


def pose_in_range(
    problem: Callable[..., Any],
    targets: np.ndarray,
    input_lengths: np.ndarray,
    target_lengths: np.ndarray,
    num_frames: int,
    most_labels: int,
    num_classes: int,
    blank: int,
) -> tuple[Any, np.ndarray | None]:
    """The same of integers that may be out of range, and which samples' are not (N,); ``None`` where none is.

    The others have no frame and no label.
    """
    lengths = [np.ascontiguousarray(array, np.int64) for array in (input_lengths, target_lengths)]
    labels, most_labels = np.ascontiguousarray(targets, np.int64), min(most_labels, targets.shape[1])
    if labels.shape[1] == 0:
        labels = np.zeros((len(labels), 1), np.int64)
    sizes = (num_frames, most_labels, num_classes, blank)
    posed = COMPILED[problem](labels, *lengths, *sizes)
    if posed is not None:
        return posed, None
    used = np.arange(labels.shape[1]) < lengths[1][:, None]
    wrong = used & ((labels < 0) | (labels >= num_classes) | (labels == blank))
    valid = in_range(lengths[0], num_frames) & in_range(lengths[1], most_labels) & ~wrong.any(1)
    lengths = [np.where(valid, array, 0) for array in lengths]
    return COMPILED[problem](labels, *lengths, *sizes), valid


def in_range(lengths: np.ndarray, most: int) -> np.ndarray:
    return (lengths >= 0) & (lengths <= most)


@part(**COMPILE)
def _obey(targets, input_lengths, target_lengths, num_frames, most_labels, num_classes, blank):
    """Whether lengths and labels lie in their ranges."""
    num_samples, width = targets.shape
    if input_lengths.size != num_samples or target_lengths.size != num_samples:
        return False
    for n in range(num_samples):
        length = target_lengths[n]
        if not 0 <= input_lengths[n] <= num_frames or not 0 <= length <= min(width, most_labels):
            return False
        for s in range(length):
            label = targets[n, s]
            if not 0 <= label < num_classes or label == blank:
                return False
    return True


@kernel
def _fill_ctc(
    targets, input_lengths, target_lengths, num_frames, most_labels, num_classes, blank, num_states, labels, skips
):  # fmt: skip
    if not _obey(targets, input_lengths, target_lengths, num_frames, most_labels, num_classes, blank):
        return False
    for n in range(len(targets)):
        length = target_lengths[n]
        num_states[n] = 2 * length + 1
        labels[n, 0], skips[n, 0] = blank, False
        for s in range(targets.shape[1]):
            label = targets[n, s] if s < length else blank
            labels[n, 2 * s + 1], labels[n, 2 * s + 2] = label, blank
            skips[n, 2 * s + 1], skips[n, 2 * s + 2] = s == 0 or label != labels[n, 2 * s - 1], False
    return True


@kernel
def _fill_simple_ctc(targets, input_lengths, target_lengths, num_frames, most_labels, num_classes, blank, labels):
    if not _obey(targets, input_lengths, target_lengths, num_frames, most_labels, num_classes, blank):
        return False
    for n in range(len(targets)):
        for s in range(target_lengths[n]):
            labels[n, s + 1] = targets[n, s]
    return True


@kernel
def _fill_asg(
    targets, input_lengths, target_lengths, num_frames, most_labels, num_classes, blank, labels, stays, steps
):  # fmt: skip
    if not _obey(targets, input_lengths, target_lengths, num_frames, most_labels, num_classes, blank):
        return False
    for n in range(len(targets)):
        for s in range(targets.shape[1]):
            label = targets[n, s] if s < target_lengths[n] else 0
            labels[n, s], stays[n, s] = label, label * num_classes + label
            steps[n, s] = label * num_classes + labels[n, s - 1] if s > 0 else -1
    return True


@kernel
def _fill_rnnt(
    targets, logit_lengths, target_lengths, num_frames, most_labels, num_classes, blank, labels, row_offsets
):  # fmt: skip
    if not _obey(targets, logit_lengths, target_lengths, num_frames, most_labels, num_classes, blank):
        return False
    row_offsets[0] = 0
    for n in range(len(targets)):
        row_offsets[n + 1] = row_offsets[n] + logit_lengths[n] * (target_lengths[n] + 1)
        for u in range(targets.shape[1]):
            labels[n, u] = targets[n, u] if u < target_lengths[n] else blank
    return True


@kernel
def repeat_in(targets, lengths):
    """The first sample whose target has two equal neighbours, -1 where there is none."""
    for n in range(lengths.size):
        for s in range(1, lengths[n]):
            if targets[n, s] == targets[n, s - 1]:
                return n
    return -1
