"""Rows of scores to planes: the log-probability of a few classes of each node, the log-softmax fused.

Forward goes once through the scores and keeps the softmax statistics of each row; backward turns the gradients of the
planes into that of the scores, written once. Which classes: some that are the same for all nodes, and the node's label.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pathsum.kernels.numba import parallel
from pathsum.kernels.numba.compilation import COMPILE, kernel
from pathsum.kernels.numba.grid import GridRows, frame_tasks
from pathsum.kernels.numba.linking import part
from pathsum.kernels.numba.rows import (
    CONFIDENT,
    inexactness,
    less_both,
    load_row,
    log_total,
    softmax_row,
    softmax_statistics,
    store_row,
    target_row,
    work_dtype,
)
from pathsum.kernels.numba.views import borrow
from pathsum.lattice import LABEL, ArcLattice


class Wanted(NamedTuple):
    """What is read of each row.

    Attributes:
        classes: (K,) class of each plane; ``LABEL`` for the node's label, which is -inf where no label may be emitted.
        lone: a class without a share in the softmax, or -1. Its probability is the sigmoid of its score, and the others
            share the rest.
        logits: whether the log-softmax is to be taken.
    """

    classes: np.ndarray
    lone: int
    logits: bool


def forward(
    rows: GridRows, num_classes: int, lattice: ArcLattice, wanted: Wanted, planes: np.ndarray, *, num_threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fill planes (K, rows) in float64, NaN in a row with an undefined score; softmax maxima and sums."""
    work = work_dtype(rows.flat)
    num_nodes = planes.shape[1]
    num_threads = parallel.worthwhile(num_threads, num_nodes * (24 + num_classes // 8))
    maxima, sums = np.empty(num_nodes if wanted.logits else 0, work), np.empty(num_nodes if wanted.logits else 0, work)

    def score(first_sample: int, last_sample: int, first: int, last: int) -> None:
        _score_rows(
            first_sample, last_sample, first, last, rows.flat, rows.starts, rows.strides_t, rows.stride_u,
            rows.stride_v, rows.encoding, np.empty((2, num_classes), work), lattice.row_offsets, lattice.logit_lengths,
            lattice.target_lengths, lattice.targets, lattice.first_frames, lattice.last_frames, *wanted, maxima, sums,
            planes,
        )  # fmt: skip

    parallel.run(score, frame_tasks(lattice.logit_lengths, lattice.target_lengths, 1, num_threads), num_threads)
    return maxima, sums


def backward(
    grad_planes: np.ndarray,
    upstream: np.ndarray,
    rows: GridRows,
    num_classes: int,
    lattice: ArcLattice,
    wanted: Wanted,
    maxima: np.ndarray,
    sums: np.ndarray,
    out: GridRows,
    *,
    clamp: float,
    num_threads: int,
) -> None:
    """Write upstream[n] * clamp(gradient with respect to the scores), padding included, into ``out``."""
    work = work_dtype(rows.flat)
    num_threads = parallel.worthwhile(num_threads, out.flat.size // num_classes * (16 + num_classes // 4))

    def write(first_sample: int, last_sample: int, first: int, last: int) -> None:
        _write_gradient(
            first_sample, last_sample, first, last, upstream, clamp, grad_planes, rows.flat, rows.starts,
            rows.strides_t, rows.stride_u, rows.stride_v, rows.encoding, np.empty((2, num_classes), work),
            lattice.row_offsets, lattice.logit_lengths, lattice.target_lengths, lattice.targets, lattice.first_frames,
            lattice.last_frames, *wanted, maxima, sums, out.flat, out.starts, out.strides_t, out.stride_u,
            out.stride_v, out.frames, out.labels,
        )  # fmt: skip

    parallel.run(write, frame_tasks(out.frames, out.labels, 0, num_threads), num_threads)


@part(**COMPILE)
def label_of(t, u, num_labels, targets, first_frames, last_frames):
    """The label that node (t, u) may emit; -1 for none."""
    return targets[u] if u < num_labels and first_frames[u] <= t <= last_frames[u] else -1


@part(**COMPILE)
def _without(row, lone, scratch):
    """A row in which the lone class has no share of the softmax."""
    for v in range(row.size):
        scratch[v] = row[v]
    scratch[lone] = -np.inf
    return scratch


@part(**COMPILE)
def _log_sigmoid(x):
    return min(x, 0.0) - np.log1p(np.exp(-abs(x)))


@part(**COMPILE)
def _sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


@part(forceinline=True, **COMPILE)
def read_row(row, label, classes, lone, logits, scratch, planes, node):
    """Write the planes of a node, NaN where a score is not defined; the row's softmax maximum and sum."""
    number = scratch.dtype.type
    maximum, total = number(0), 1.0
    defined, taken_off, log_sum, log_share = True, 0.0, 0.0, 0.0
    if logits:
        if lone >= 0:
            maximum, total = softmax_statistics(_without(row, lone, scratch))
            defined, log_share = row[lone] < np.inf, _log_sigmoid(-np.float64(row[lone]))
        else:
            maximum, total = softmax_statistics(row)
        defined = defined and maximum == maximum
        if 0 < total < CONFIDENT:
            # Of the classes on paths; what the other terms lack is small beside what they cost each path.
            for k in range(classes.size):
                c = label if classes[k] == LABEL else classes[k]
                total += inexactness(row[c], maximum) if c >= 0 and c != lone else 0.0
        log_sum, taken_off = log_total(maximum, total)
    for k in range(classes.size):
        c = label if classes[k] == LABEL else classes[k]
        score = np.float64(row[c]) if c >= 0 else -np.inf
        defined = defined and score < np.inf
        planes[k, node] = _log_sigmoid(score) if c == lone else less_both(score, taken_off, log_sum - log_share)
    if not defined:
        for k in range(classes.size):
            planes[k, node] = np.nan
    return maximum, total


@part(forceinline=True, **COMPILE)
def differentiate_row(
    scores, out, label, grad_planes, node, classes, lone, logits, maximum, total, scratch, upstream, clamp
):  # fmt: skip
    """The gradient with respect to a row of scores, upstream * clamp(that of the planes); not written over the row.

    ``scratch`` may be the row's own.
    """
    number = out.dtype.type
    bound, scale = number(clamp), number(1) if clamp > 0 else number(upstream)
    # The mass that the softmax spreads over its classes.
    mass, lone_gradient, lone_probability = 0.0, 0.0, 0.0
    for k in range(classes.size):
        c = label if classes[k] == LABEL else classes[k]
        if c >= 0 and c == lone:
            lone_gradient = grad_planes[k, node]
        elif c >= 0:
            mass += grad_planes[k, node]
    if logits and (mass != 0 or lone_gradient != 0):
        if lone >= 0:
            lone_probability = _sigmoid(np.float64(scores[lone]))
            scores = _without(scores, lone, scratch)
        factor = -scale * mass / total if total > 0 else 0.0
        softmax_row(scores, maximum, number(factor), out)
    else:
        out[:] = 0
    for k in range(classes.size):
        c = label if classes[k] == LABEL else classes[k]
        if c >= 0 and c == lone:
            out[c] = scale * number(lone_gradient * (1.0 - lone_probability) - mass * lone_probability)
        elif c >= 0:
            out[c] += scale * number(grad_planes[k, node])
    if clamp > 0:
        for v in range(out.size):
            out[v] = number(upstream) * min(max(out[v], -bound), bound)


@kernel
def _score_rows(
    first_sample, last_sample, first, last, flat, starts, strides_t, stride_u, stride_v, encoding, scratch, row_offsets,
    frames, labels, targets, first_frames, last_frames, classes, lone, logits, maxima, sums, planes,
):  # fmt: skip
    """Frames [first, last) of some samples."""
    flat, scratch, planes, maxima, sums = borrow(flat), borrow(scratch), borrow(planes), borrow(maxima), borrow(sums)
    for n in range(first_sample, last_sample):
        own, num_labels = borrow(targets)[n], labels[n]
        earliest, latest = borrow(first_frames)[n], borrow(last_frames)[n]
        for t in range(first, min(last, frames[n])):
            for u in range(num_labels + 1):
                node = row_offsets[n] + t * (num_labels + 1) + u
                row = load_row(flat, starts[n] + t * strides_t[n] + u * stride_u, stride_v, encoding, scratch[0])
                label = label_of(t, u, num_labels, own, earliest, latest)
                maximum, total = read_row(row, label, classes, lone, logits, scratch[1], planes, node)
                if logits:
                    maxima[node], sums[node] = maximum, total


@kernel
def _write_gradient(
    first_sample, last_sample, first, last, upstream, clamp, grad_planes, flat, starts, strides_t, stride_u, stride_v,
    encoding, scratch, row_offsets, frames, labels, targets, first_frames, last_frames, classes, lone, logits, maxima,
    sums, out, out_starts, out_strides_t, out_stride_u, out_stride_v, padded_frames, padded_labels,
):  # fmt: skip
    """Frames [first, last) of some samples, padding included."""
    flat, out, scratch, grad_planes = borrow(flat), borrow(out), borrow(scratch), borrow(grad_planes)
    number = scratch.dtype.type
    for n in range(first_sample, last_sample):
        own, num_labels = borrow(targets)[n], labels[n]
        earliest, latest = borrow(first_frames)[n], borrow(last_frames)[n]
        for t in range(first, min(last, padded_frames[n])):
            for u in range(padded_labels[n]):
                row_start = out_starts[n] + t * out_strides_t[n] + u * out_stride_u
                row = target_row(out, row_start, out_stride_v, scratch[1])
                if t >= frames[n] or u > num_labels:
                    row[:] = 0
                    store_row(out, row_start, out_stride_v, encoding, row)
                    continue
                node = row_offsets[n] + t * (num_labels + 1) + u
                label = label_of(t, u, num_labels, own, earliest, latest)
                start = starts[n] + t * strides_t[n] + u * stride_u
                scores = load_row(flat, start, stride_v, encoding, scratch[0])
                maximum, total = (maxima[node], sums[node]) if logits else (number(0), number(0))
                differentiate_row(
                    scores, row, label, grad_planes, node, classes, lone, logits, maximum, total, scratch[0],
                    upstream[n], clamp,
                )  # fmt: skip
                store_row(out, row_start, out_stride_v, encoding, row)
