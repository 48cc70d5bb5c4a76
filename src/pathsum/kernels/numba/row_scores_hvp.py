"""The second derivative of rows of scores read into planes.

The gradient is bilinear in the planes' gradients and the softmax. Along a tangent v of the scores,

    d gradient(plane of class c) = v[c] - <softmax, v>
    d gradient(scores)           = -mass * softmax * (v - <softmax, v>)

where the mass is the sum of a row's plane gradients; a lone class has a sigmoid in the place of its softmax, in which
the others have part. One pass over the rows makes both.
"""

from __future__ import annotations

import numpy as np

from pathsum.kernels.numba import parallel
from pathsum.kernels.numba.compilation import kernel
from pathsum.kernels.numba.grid import GridRows, frame_tasks
from pathsum.kernels.numba.row_scores import Wanted, _sigmoid, _without, label_of
from pathsum.kernels.numba.rows import (
    borrow,
    load_row,
    softmax_mean,
    softmax_tangent_row,
    store_row,
    target_row,
    work_dtype,
)
from pathsum.lattice import LABEL, ArcLattice


def hvp(
    tangent: GridRows,
    grad_planes: np.ndarray,
    rows: GridRows,
    num_classes: int,
    lattice: ArcLattice,
    wanted: Wanted,
    maxima: np.ndarray,
    sums: np.ndarray,
    out: GridRows,
    *,
    num_threads: int,
) -> np.ndarray:
    """The derivatives of <tangent, gradient>: (K, rows) with respect to the planes' gradients, returned, and with
    respect to the scores, written into ``out``, padding included.
    """
    work = work_dtype(rows.flat)
    planes = np.empty_like(grad_planes)
    num_threads = parallel.worthwhile(num_threads, int((out.frames * out.labels).sum()) * num_classes // 4)

    def write(first_sample: int, last_sample: int, first: int, last: int) -> None:
        _write_product(
            first_sample, last_sample, first, last, tangent.flat, tangent.starts, tangent.strides_t, tangent.stride_u,
            tangent.stride_v, grad_planes, rows.flat, rows.starts, rows.strides_t, rows.stride_u, rows.stride_v,
            rows.encoding, np.empty((3, num_classes), work), lattice.row_offsets, lattice.logit_lengths,
            lattice.target_lengths, lattice.targets, lattice.first_frames, lattice.last_frames, *wanted, maxima, sums,
            planes, out.flat, out.starts, out.strides_t, out.stride_u, out.stride_v, out.frames, out.labels,
        )  # fmt: skip

    parallel.run(write, frame_tasks(out.frames, out.labels, 0, num_threads), num_threads)
    return planes


@kernel
def _write_product(
    first_sample, last_sample, first, last, tangent, tangent_starts, tangent_strides_t, tangent_stride_u,
    tangent_stride_v, grad_planes, flat, starts, strides_t, stride_u, stride_v, encoding, scratch, row_offsets, frames,
    labels, targets, first_frames, last_frames, classes, lone, logits, maxima, sums, planes, out, out_starts,
    out_strides_t, out_stride_u, out_stride_v, padded_frames, padded_labels,
):  # fmt: skip
    tangent, flat, out, scratch = borrow(tangent), borrow(flat), borrow(out), borrow(scratch)
    grad_planes, planes = borrow(grad_planes), borrow(planes)
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
                label = label_of(t, u, num_labels, own, earliest, latest)
                mass, lone_gradient = 0.0, 0.0
                for k in range(classes.size):
                    c = label if classes[k] == LABEL else classes[k]
                    planes[k, node] = 0.0
                    if c >= 0 and c == lone:
                        lone_gradient = grad_planes[k, node]
                        planes[k, node] = (1.0 - lone_probability) * lone_moved
                    elif c >= 0:
                        mass += grad_planes[k, node]
                        planes[k, node] = moved[c] - mean - lone_probability * lone_moved
                if logits and mass != 0 and sums[node] > 0:
                    softmax_tangent_row(scores, maxima[node], number(0), number(-mass / sums[node]), moved, mean, row)
                else:
                    row[:] = 0
                if lone >= 0:
                    curvature = lone_probability * (1.0 - lone_probability)
                    row[lone] = number(-(mass + lone_gradient) * curvature * lone_moved)
                store_row(out, row_start, out_stride_v, encoding, row)
