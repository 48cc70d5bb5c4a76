"""The second derivative of a grid's losses with respect to its rows of scores.

Two passes over the rows with the sweep over the nodes between them: the tangents of the scores become those of the
arcs, ``v[class] - <softmax, v>``, and the tangents of the arcs' posteriors become the product's rows, written once.
"""

from __future__ import annotations

import numpy as np

from pathsum.kernels.numba import grid_arcs_hvp, parallel
from pathsum.kernels.numba.compilation import COMPILE, kernel
from pathsum.kernels.numba.grid import GridRows, frame_tasks
from pathsum.kernels.numba.linking import part
from pathsum.kernels.numba.rows import (
    load_row,
    softmax_mean,
    softmax_tangent_row,
    store_row,
    target_row,
    work_dtype,
)
from pathsum.kernels.numba.views import borrow
from pathsum.kernels.protocol import GridSaved
from pathsum.lattice import GridLattice


def hvp(
    tangent: GridRows,
    grad_losses: np.ndarray,
    rows: GridRows,
    num_classes: int,
    lattice: GridLattice,
    saved: GridSaved,
    out: GridRows,
    *,
    logits: bool,
    num_threads: int,
) -> np.ndarray:
    """Write how the gradient moves along a tangent of the scores, padding included, into ``out``.

    Returns:
        (N,) the derivative of each loss along the tangent, that of the gradient with respect to ``grad_losses``.
    """
    work = work_dtype(rows.flat)
    num_nodes = int(lattice.row_offsets[-1])
    posteriors = np.stack(saved.posteriors)
    means, tangents = np.empty(num_nodes, work), np.empty((2, num_nodes))
    row_threads = parallel.worthwhile(num_threads, num_nodes * (8 + num_classes // 8))

    def gather(first_sample: int, last_sample: int, first: int, last: int) -> None:
        _gather_tangents(
            first_sample, last_sample, first, last, tangent.flat, tangent.starts, tangent.strides_t, tangent.stride_u,
            tangent.stride_v, rows.flat, rows.starts, rows.strides_t, rows.stride_u, rows.stride_v, rows.encoding,
            np.empty((2, num_classes), work), lattice.row_offsets, lattice.logit_lengths, lattice.target_lengths,
            lattice.targets, lattice.blank, logits, saved.maxima, saved.sums, posteriors, means, tangents,
        )  # fmt: skip

    parallel.run(gather, frame_tasks(lattice.logit_lengths, lattice.target_lengths, 1, row_threads), row_threads)
    costs = grid_arcs_hvp.hvp(tangents, saved.losses, posteriors, lattice, num_threads=num_threads)
    row_threads = parallel.worthwhile(num_threads, int((out.frames * out.labels).sum()) * num_classes // 4)

    def write(first_sample: int, last_sample: int, first: int, last: int) -> None:
        _write_product(
            first_sample, last_sample, first, last, grad_losses, tangent.flat, tangent.starts, tangent.strides_t,
            tangent.stride_u, tangent.stride_v, rows.flat, rows.starts, rows.strides_t, rows.stride_u, rows.stride_v,
            rows.encoding, np.empty((3, num_classes), work), lattice.row_offsets, lattice.logit_lengths,
            lattice.target_lengths, lattice.targets, lattice.blank, logits, saved.losses, saved.maxima, saved.sums,
            posteriors, means, tangents, out.flat, out.starts, out.strides_t, out.stride_u, out.stride_v, out.frames,
            out.labels,
        )  # fmt: skip

    parallel.run(write, frame_tasks(out.frames, out.labels, 0, row_threads), row_threads)
    return -costs


@kernel
def _gather_tangents(
    first_sample, last_sample, first, last, tangent, tangent_starts, tangent_strides_t, tangent_stride_u,
    tangent_stride_v, flat, starts, strides_t, stride_u, stride_v, encoding, scratch, row_offsets, frames, labels,
    targets, blank, logits, maxima, sums, posteriors, means, tangents,
):  # fmt: skip
    """Frames [first, last) of some samples: the tangents of the arcs, and of each row the mean under its softmax."""
    tangent, flat, scratch = borrow(tangent), borrow(flat), borrow(scratch)
    for n in range(first_sample, last_sample):
        own, num_labels = borrow(targets)[n], labels[n]
        for t in range(first, min(last, frames[n])):
            for u in range(num_labels + 1):
                node = row_offsets[n] + t * (num_labels + 1) + u
                means[node], tangents[0, node], tangents[1, node] = 0.0, 0.0, 0.0
                # What no path passes has no part in the product, and may have no softmax.
                if posteriors[0, node] + posteriors[1, node] > 0:
                    moved = load_row(
                        tangent, tangent_starts[n] + t * tangent_strides_t[n] + u * tangent_stride_u, tangent_stride_v,
                        encoding, scratch[0],
                    )  # fmt: skip
                    if logits:
                        row = load_row(
                            flat, starts[n] + t * strides_t[n] + u * stride_u, stride_v, encoding, scratch[1]
                        )
                        means[node] = softmax_mean(row, maxima[node], moved) / sums[node]
                    tangents[0, node] = moved[blank] - means[node]
                    if u < num_labels:
                        tangents[1, node] = moved[own[u]] - means[node]


@kernel
def _write_product(
    first_sample, last_sample, first, last, grad_losses, tangent, tangent_starts, tangent_strides_t, tangent_stride_u,
    tangent_stride_v, flat, starts, strides_t, stride_u, stride_v, encoding, scratch, row_offsets, frames, labels,
    targets, blank, logits, losses, maxima, sums, posteriors, means, tangents, out, out_starts, out_strides_t,
    out_stride_u, out_stride_v, padded_frames, padded_labels,
):  # fmt: skip
    """Frames [first, last) of some samples, padding included."""
    tangent, flat, out, scratch = borrow(tangent), borrow(flat), borrow(out), borrow(scratch)
    nothing = scratch.dtype.type(0)
    for n in range(first_sample, last_sample):
        own, num_labels, loss = borrow(targets)[n], labels[n], losses[n]
        for t in range(first, min(last, padded_frames[n])):
            for u in range(padded_labels[n]):
                row_start = out_starts[n] + t * out_strides_t[n] + u * out_stride_u
                row = target_row(out, row_start, out_stride_v, scratch[2])
                node = row_offsets[n] + t * (num_labels + 1) + u
                inside = t < frames[n] and u <= num_labels
                if inside and loss != loss:
                    row[:] = np.nan
                elif not inside or loss == np.inf or posteriors[0, node] + posteriors[1, node] <= 0:
                    row[:] = 0
                else:
                    moved = load_row(
                        tangent, tangent_starts[n] + t * tangent_strides_t[n] + u * tangent_stride_u, tangent_stride_v,
                        encoding, scratch[0],
                    )  # fmt: skip
                    scores = load_row(flat, starts[n] + t * strides_t[n] + u * stride_u, stride_v, encoding, scratch[1])
                    differentiate_row_again(
                        scores, row, blank, own[u] if u < num_labels else -1, grad_losses[n],
                        maxima[node] if logits else nothing, sums[node] if logits else nothing, moved, means[node],
                        posteriors[0, node] + posteriors[1, node], tangents[0, node], tangents[1, node],
                    )  # fmt: skip
                store_row(out, row_start, out_stride_v, encoding, row)


@part(**COMPILE)
def differentiate_row_again(
    scores, out, blank, label, grad_loss, maximum, total, moved, mean, occupancy, blank_tangent, label_tangent
):  # fmt: skip
    """The tangent of grad_loss * (occupancy * softmax - posterior of each class), where the row's scores and its two
    posteriors move; no softmax where ``total`` is 0.
    """
    number = out.dtype.type
    upstream = number(grad_loss)
    blank_tangent, label_tangent = number(blank_tangent), number(label_tangent)
    if total > 0:
        scale = upstream / number(total)
        slope = number(occupancy) * scale
        softmax_tangent_row(scores, maximum, (blank_tangent + label_tangent) * scale, slope, moved, mean, out)
    else:
        out[:] = 0
    out[blank] -= upstream * blank_tangent
    if label >= 0:
        out[label] -= upstream * label_tangent
