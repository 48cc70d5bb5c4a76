"""Dense lattices on the CPU.

Every sample is solved with plain floats, a row of states times a power of two (``dense_linear``), where that is sound
and in extended range (``dense_extended``), slower and without limits, where it is not. Planes over frames hold the
frames of the samples one after another.
"""

from __future__ import annotations

import numpy as np

from pathsum.kernels.numba import dense_extended, dense_linear, parallel
from pathsum.kernels.numba.compilation import kernel
from pathsum.kernels.numba.rows import (
    Strided,
    common_of,
    greatest,
    less_common,
    load_row,
    store_row,
    target_row,
    unit_of,
    work_dtype,
)
from pathsum.kernels.numba.views import borrow
from pathsum.kernels.protocol import DenseSaved
from pathsum.lattice import DenseLattice


def forward(
    scores: Strided,
    num_classes: int,
    lattice: DenseLattice,
    transitions: np.ndarray,
    *,
    need_gradient: bool,
    num_threads: int,
    relative: bool = False,
) -> DenseSaved:
    """Losses of a batch, -log of the sum over all paths, and where asked what ``backward`` needs.

    ``relative``: without what huge scores of a frame, and huge transitions, have in common.
    """
    given, transitions = transitions, less_common(transitions)
    lengths, offsets = lattice.input_lengths, offsets_of(lattice)
    num_threads = parallel.worthwhile(num_threads, work_of(offsets, num_classes))
    work = work_dtype(scores.flat)
    matrix = dense_linear.exponential(transitions, work)
    rows = dense_linear.exponentiate(scores, num_classes, offsets, matrix.shifts, num_threads)

    undefined, linear = np.empty(len(lengths), np.bool_), np.empty(len(lengths), np.bool_)
    _choose(rows.maxima, offsets, matrix.defined, matrix.narrow, undefined, linear)
    saved = dense_linear.solve(rows, matrix, num_classes, offsets, linear, need_gradient, num_threads)

    def solve(sample: int) -> None:
        own = relative_scores(scores, num_classes, sample, int(lengths[sample]))
        gamma = saved.gamma[offsets[sample] : offsets[sample + 1]] if need_gradient else saved.gamma
        saved.losses[sample] = dense_extended.solve(own, transitions, need_gradient, gamma)

    # The linear ones that are not sound, and those that are not linear.
    if _leave_to_others(undefined, saved.extended):
        parallel.run(solve, [(int(n),) for n in np.flatnonzero(saved.extended)], num_threads)
    if not relative:
        in_common = (lengths - 1).clip(0) * common_of(given)
        _add_greatest(scores.flat, *scores.strides, scores.encoding, np.empty(num_classes, work), lengths, in_common)
        saved.losses[:] -= in_common
    return saved


def backward(
    grad_losses: np.ndarray,
    num_classes: int,
    lattice: DenseLattice,
    saved: DenseSaved,
    out: Strided,
    num_frames: int,
    *,
    num_threads: int,
) -> None:
    """Write the gradient with respect to the scores, padding included, into ``out`` with axes (N, T, C)."""
    offsets = offsets_of(lattice)

    def write(first: int, last: int) -> None:
        _write_gradient(
            grad_losses, saved.losses, saved.gamma, offsets, num_classes, num_frames, first, last, out.flat,
            *out.strides, out.encoding,
        )  # fmt: skip

    rows = len(lattice.input_lengths) * num_frames
    num_threads = parallel.worthwhile(num_threads, rows * num_classes // 4)
    parallel.run(write, parallel.split_evenly(rows, num_threads), num_threads)


def transition_gradient(
    grad_losses: np.ndarray,
    scores: Strided,
    num_classes: int,
    lattice: DenseLattice,
    transitions: np.ndarray,
    saved: DenseSaved,
    *,
    num_threads: int,
) -> np.ndarray:
    """The gradient with respect to the transitions, (C, C) in float64: minus their expected counts."""
    transitions = less_common(transitions)
    offsets = offsets_of(lattice)
    upstream, others = np.zeros(len(offsets) - 1), np.zeros(len(offsets) - 1)
    samples = np.empty(len(upstream), np.int64)
    linear, has_others, undefined = _share_out(
        grad_losses, saved.losses, saved.extended, offsets, upstream, others, samples
    )
    gradient = np.zeros((num_classes, num_classes))
    if linear:
        matrix = dense_linear.exponential(transitions, saved.alpha.dtype.type)
        num_threads = parallel.worthwhile(num_threads, work_of(offsets, num_classes))
        dense_linear.add_transition_gradient(
            upstream, samples[:linear], saved, matrix, offsets, num_threads, gradient
        )  # fmt: skip
    for n in np.flatnonzero(others) if has_others else ():
        own = relative_scores(scores, num_classes, int(n), int(lattice.input_lengths[n]))
        dense_extended.add_transition_gradient(own, transitions, others[n], gradient)
    if undefined:
        gradient[:] = np.nan
    return gradient


def offsets_of(lattice: DenseLattice) -> np.ndarray:
    offsets = np.empty(len(lattice.input_lengths) + 1, np.int64)
    _count_frames(lattice.input_lengths, offsets)
    return offsets


def work_of(offsets: np.ndarray, num_classes: int) -> int:
    """Elements of work: some per class of a frame, and its share of a product that does many at a time."""
    return int(offsets[-1]) * num_classes * (2 + num_classes // 64)


def sample_scores(scores: Strided, num_classes: int, sample: int, num_frames: int) -> np.ndarray:
    """The frames of one sample as (T, C) in float64."""
    rows = np.empty((num_frames, num_classes))
    scratch = np.empty(num_classes, work_dtype(scores.flat))
    _load_rows(scores.flat, *scores.strides, scores.encoding, sample, scratch, rows)
    return rows


def relative_scores(scores: Strided, num_classes: int, sample: int, num_frames: int) -> np.ndarray:
    """The same, each frame less its greatest where that is huge."""
    rows = sample_scores(scores, num_classes, sample, num_frames)
    _take_off_greatest(rows)
    return rows


@kernel
def _count_frames(lengths, offsets):
    offsets[0] = 0
    for n in range(lengths.size):
        offsets[n + 1] = offsets[n] + lengths[n]


@kernel
def _share_out(grad_losses, losses, extended, offsets, linear, others, samples):
    """Minus the upstream gradient of the samples that have arcs, of those of plain floats and of the others; the
    first's numbers and how many they are, whether there are others, and whether a sample is not defined.
    """
    count, has_others, undefined = 0, False, False
    for n in range(losses.size):
        if offsets[n + 1] - offsets[n] > 1 and grad_losses[n] != 0:
            if losses[n] != losses[n]:
                undefined = True
            elif losses[n] < np.inf and extended[n]:
                others[n], has_others = -grad_losses[n], True
            elif losses[n] < np.inf:
                linear[n], samples[count] = -grad_losses[n], n
                count += 1
    return count, has_others, undefined


@kernel
def _choose(maxima, offsets, defined, narrow, undefined, linear):
    """Which samples have an undefined score, and which of the others are for plain floats."""
    for n in range(undefined.size):
        has_arcs = offsets[n + 1] - offsets[n] > 1
        undefined[n] = has_arcs and not defined
        for frame in range(offsets[n], offsets[n + 1]):
            undefined[n] |= maxima[frame] != maxima[frame]
        linear[n] = not undefined[n] and (narrow or not has_arcs)


@kernel
def _leave_to_others(undefined, unsound):
    """Of the samples that are not sound those that are defined; how many they are."""
    count = 0
    for n in range(unsound.size):
        unsound[n] = unsound[n] and not undefined[n]
        count += unsound[n]
    return count


@kernel
def _add_greatest(flat, stride_n, stride_t, stride_c, encoding, scratch, lengths, totals):
    """To each sample's total what is taken off the scores of its frames."""
    for n in range(lengths.size):
        for t in range(lengths[n]):
            row = load_row(flat, n * stride_n + t * stride_t, stride_c, encoding, scratch)
            totals[n] += unit_of(greatest(row))[0]


@kernel
def _take_off_greatest(rows):
    for t in range(rows.shape[0]):
        rows[t] -= unit_of(greatest(rows[t]))[0]


@kernel
def _load_rows(flat, stride_n, stride_t, stride_c, encoding, sample, scratch, rows):
    for t in range(rows.shape[0]):
        rows[t] = load_row(flat, sample * stride_n + t * stride_t, stride_c, encoding, scratch)


@kernel
def _write_gradient(
    grad_losses, losses, gamma, offsets, num_classes, padded_frames, first, last, out, stride_n, stride_t, stride_c,
    encoding,
):  # fmt: skip
    """Rows [first, last) of the padded batch: -grad_loss * posterior of each class, or 0."""
    gamma, out = borrow(gamma), borrow(out)
    scratch = np.empty(num_classes, gamma.dtype)
    for position in range(first, last):
        n, t = position // padded_frames, position % padded_frames
        start = n * stride_n + t * stride_t
        frame = offsets[n] + t
        row = target_row(out, start, stride_c, scratch)
        if frame >= offsets[n + 1] or losses[n] == np.inf:
            row[:] = 0
        elif losses[n] != losses[n]:
            row[:] = np.nan
        else:
            upstream = gamma.dtype.type(-grad_losses[n])
            posteriors = gamma[frame]
            # Over the padding too, with a mask: a rest would be gone through one element at a time.
            for c in range(posteriors.size):
                if c < num_classes:
                    row[c] = upstream * posteriors[c]
        store_row(out, start, stride_c, encoding, row)
