"""The second derivative of rows of scores read into planes.

The gradient is bilinear in the planes' gradients g and the softmax. Along a tangent v of the scores, with which the
gradients of the planes move by g',

    d plane of class c = v[c] - <softmax, v>
    d gradient         = g' - softmax * (sum of g' + sum of g * (v - <softmax, v>))

where g and g' are of the planes of each class; a lone class has a sigmoid in the place of its softmax, in which the
others have part. One pass over the rows moves the planes, another, behind what moves g by them, makes the product.
"""

from __future__ import annotations

import numpy as np

from pathsum.kernels.numba import parallel
from pathsum.kernels.numba.compilation import kernel
from pathsum.kernels.numba.grid import GridRows, frame_tasks
from pathsum.kernels.numba.row_scores import Wanted, _sigmoid, _without, label_of
from pathsum.kernels.numba.rows import (
    load_row,
    softmax_mean,
    softmax_tangent_row,
    store_row,
    target_row,
    work_dtype,
)
from pathsum.kernels.numba.views import borrow
from pathsum.lattice import LABEL, ArcLattice


def gather(
    tangent: GridRows,
    rows: GridRows,
    num_classes: int,
    lattice: ArcLattice,
    wanted: Wanted,
    maxima: np.ndarray,
    sums: np.ndarray,
    planes: np.ndarray,
    *,
    num_threads: int,
) -> np.ndarray:
    """Fill planes (K, rows) with their derivatives along the tangent; the mean (rows,) of each row's tangent."""
    work = work_dtype(rows.flat)
    means = np.empty(planes.shape[1], work)
    num_threads = parallel.worthwhile(num_threads, planes.shape[1] * (8 + num_classes // 8))

    def move(first_sample: int, last_sample: int, first: int, last: int) -> None:
        _move_planes(
            first_sample, last_sample, first, last, tangent.flat, tangent.starts, tangent.strides_t, tangent.stride_u,
            tangent.stride_v, rows.flat, rows.starts, rows.strides_t, rows.stride_u, rows.stride_v, rows.encoding,
            np.empty((2, num_classes), work), lattice.row_offsets, lattice.logit_lengths, lattice.target_lengths,
            lattice.targets, lattice.first_frames, lattice.last_frames, *wanted, maxima, sums, means, planes,
        )  # fmt: skip

    parallel.run(move, frame_tasks(lattice.logit_lengths, lattice.target_lengths, 1, num_threads), num_threads)
    return means


def hvp(
    tangent: GridRows,
    grad_planes: np.ndarray,
    moved_planes: np.ndarray,
    rows: GridRows,
    num_classes: int,
    lattice: ArcLattice,
    wanted: Wanted,
    maxima: np.ndarray,
    sums: np.ndarray,
    means: np.ndarray,
    out: GridRows,
    *,
    num_threads: int,
) -> None:
    """Write how the gradient of the scores moves, padding included, into ``out``.

    The planes' gradients (K, rows) are ``grad_planes`` and move by ``moved_planes``; the ``means`` are ``gather``'s.
    """
    work = work_dtype(rows.flat)
    num_threads = parallel.worthwhile(num_threads, int((out.frames * out.labels).sum()) * num_classes // 4)

    def write(first_sample: int, last_sample: int, first: int, last: int) -> None:
        _write_product(
            first_sample, last_sample, first, last, tangent.flat, tangent.starts, tangent.strides_t, tangent.stride_u,
            tangent.stride_v, grad_planes, moved_planes, rows.flat, rows.starts, rows.strides_t, rows.stride_u,
            rows.stride_v, rows.encoding, np.empty((3, num_classes), work), lattice.row_offsets, lattice.logit_lengths,
            lattice.target_lengths, lattice.targets, lattice.first_frames, lattice.last_frames, *wanted, maxima, sums,
            means, out.flat, out.starts, out.strides_t, out.stride_u, out.stride_v, out.frames, out.labels,
        )  # fmt: skip

    parallel.run(write, frame_tasks(out.frames, out.labels, 0, num_threads), num_threads)


@kernel
def _move_planes(
    first_sample, last_sample, first, last, tangent, tangent_starts, tangent_strides_t, tangent_stride_u,
    tangent_stride_v, flat, starts, strides_t, stride_u, stride_v, encoding, scratch, row_offsets, frames, labels,
    targets, first_frames, last_frames, classes, lone, logits, maxima, sums, means, planes,
):  # fmt: skip
    """Frames [first, last) of some samples."""
    tangent, flat, scratch, planes = borrow(tangent), borrow(flat), borrow(scratch), borrow(planes)
    number = scratch.dtype.type
    for n in range(first_sample, last_sample):
        own, num_labels = borrow(targets)[n], labels[n]
        earliest, latest = borrow(first_frames)[n], borrow(last_frames)[n]
        for t in range(first, min(last, frames[n])):
            for u in range(num_labels + 1):
                node = row_offsets[n] + t * (num_labels + 1) + u
                moved = load_row(
                    tangent, tangent_starts[n] + t * tangent_strides_t[n] + u * tangent_stride_u, tangent_stride_v,
                    encoding, scratch[0],
                )  # fmt: skip
                scores = load_row(flat, starts[n] + t * strides_t[n] + u * stride_u, stride_v, encoding, scratch[1])
                mean, lone_probability, lone_moved = number(0), 0.0, 0.0
                if lone >= 0:
                    lone_probability, lone_moved = _sigmoid(np.float64(scores[lone])), np.float64(moved[lone])
                    scores = _without(scores, lone, scratch[1])
                if logits and sums[node] > 0:
                    mean = softmax_mean(scores, maxima[node], moved) / sums[node]
                means[node] = mean
                label = label_of(t, u, num_labels, own, earliest, latest)
                for k in range(classes.size):
                    c = label if classes[k] == LABEL else classes[k]
                    if c >= 0 and c == lone:
                        planes[k, node] = (1.0 - lone_probability) * lone_moved
                    else:
                        planes[k, node] = moved[c] - mean - lone_probability * lone_moved if c >= 0 else 0.0


@kernel
def _write_product(
    first_sample, last_sample, first, last, tangent, tangent_starts, tangent_strides_t, tangent_stride_u,
    tangent_stride_v, grad_planes, moved_planes, flat, starts, strides_t, stride_u, stride_v, encoding, scratch,
    row_offsets, frames, labels, targets, first_frames, last_frames, classes, lone, logits, maxima, sums, means, out,
    out_starts, out_strides_t, out_stride_u, out_stride_v, padded_frames, padded_labels,
):  # fmt: skip
    """Frames [first, last) of some samples, padding included."""
    tangent, flat, out, scratch = borrow(tangent), borrow(flat), borrow(out), borrow(scratch)
    grad_planes, moved_planes = borrow(grad_planes), borrow(moved_planes)
    number = scratch.dtype.type
    for n in range(first_sample, last_sample):
        own, num_labels = borrow(targets)[n], labels[n]
        earliest, latest = borrow(first_frames)[n], borrow(last_frames)[n]
        for t in range(first, min(last, padded_frames[n])):
            for u in range(padded_labels[n]):
                row_start = out_starts[n] + t * out_strides_t[n] + u * out_stride_u
                row = target_row(out, row_start, out_stride_v, scratch[2])
                if t >= frames[n] or u > num_labels:
                    row[:] = 0
                    store_row(out, row_start, out_stride_v, encoding, row)
                    continue
                node = row_offsets[n] + t * (num_labels + 1) + u
                label = label_of(t, u, num_labels, own, earliest, latest)
                # What the softmax spreads over its classes, and how that moves.
                mass, moved_mass, lone_gradient, lone_slope, touched = 0.0, 0.0, 0.0, 0.0, False
                for k in range(classes.size):
                    c = label if classes[k] == LABEL else classes[k]
                    if c >= 0:
                        touched = touched or grad_planes[k, node] != 0 or moved_planes[k, node] != 0
                        if c == lone:
                            lone_gradient, lone_slope = grad_planes[k, node], moved_planes[k, node]
                        else:
                            mass += grad_planes[k, node]
                            moved_mass += moved_planes[k, node]
                if not touched:
                    # What no path passes has no part in the product, and may have no softmax.
                    row[:] = 0
                    store_row(out, row_start, out_stride_v, encoding, row)
                    continue
                lone_probability, lone_moved = 0.0, 0.0
                scores = load_row(flat, starts[n] + t * strides_t[n] + u * stride_u, stride_v, encoding, scratch[1])
                moved = load_row(
                    tangent, tangent_starts[n] + t * tangent_strides_t[n] + u * tangent_stride_u, tangent_stride_v,
                    encoding, scratch[0],
                )  # fmt: skip
                if lone >= 0:
                    lone_probability, lone_moved = _sigmoid(np.float64(scores[lone])), np.float64(moved[lone])
                    scores = _without(scores, lone, scratch[1])
                if logits and (sums[node] > 0 or mass != mass):
                    softmax_tangent_row(
                        scores, maxima[node], number(-moved_mass / sums[node]), number(-mass / sums[node]), moved,
                        means[node], row,
                    )  # fmt: skip
                else:
                    row[:] = 0
                for k in range(classes.size):
                    c = label if classes[k] == LABEL else classes[k]
                    if c >= 0 and c != lone:
                        row[c] += number(moved_planes[k, node])
                if lone >= 0:
                    curvature = lone_probability * (1.0 - lone_probability) * lone_moved
                    row[lone] = number(
                        lone_slope * (1.0 - lone_probability) - moved_mass * lone_probability
                        - (mass + lone_gradient) * curvature
                    )  # fmt: skip
                store_row(out, row_start, out_stride_v, encoding, row)
