"""Grids on the CPU.

Three passes, each parallel: rows (softmax statistics, the two score planes), samples (alpha in extended range, then the
posteriors back along the arcs), and in backward rows again (the gradient written once). Planes hold the T*(U+1) nodes
of the samples one after another, whether the logits are padded or packed; padding is never read.

The planes and the recursion are float64 for every input: they are a small share of the logits' bytes and work, and
float32 log-scores of a thousand frames would cost the gradient three digits.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pathsum.kernels.numba import parallel
from pathsum.kernels.numba.compilation import COMPILE, kernel
from pathsum.kernels.numba.extended import log, normalise, shift, split
from pathsum.kernels.numba.linking import part
from pathsum.kernels.numba.rows import (
    CONFIDENT,
    Strided,
    greatest,
    inexactness,
    less_both,
    load_row,
    log_total,
    softmax_row,
    softmax_statistics,
    store_row,
    take_off,
    target_row,
    unit_of,
    work_dtype,
)
from pathsum.kernels.numba.views import borrow
from pathsum.kernels.protocol import GridSaved
from pathsum.lattice import ArcLattice, GridLattice
from pathsum.numerics import LEAST_POSTERIOR, ZERO_EXPONENT_64

# More frames than a sample has.
ALL = 2**62


class GridRows(NamedTuple):
    """Where the row of classes of node (t, u) of sample n is: flat[starts[n] + t*strides_t[n] + u*stride_u + ...].

    ``frames`` and ``labels`` are the sizes a gradient of this layout has to be written for, padding included.
    """

    flat: np.ndarray
    starts: np.ndarray
    strides_t: np.ndarray
    stride_u: int
    stride_v: int
    frames: np.ndarray
    labels: np.ndarray
    encoding: int


def padded_rows(scores: Strided, shape: tuple[int, ...]) -> GridRows:
    """Rows of scores of a shape (N, T, U+1, V)."""
    stride_n, stride_t, stride_u, stride_v = scores.strides
    starts, strides_t, frames, labels = _places(shape[0], stride_n, stride_t, shape[1], shape[2])
    return GridRows(scores.flat, starts, strides_t, stride_u, stride_v, frames, labels, scores.encoding)


@lru_cache(maxsize=64)
def _places(count: int, stride_n: int, stride_t: int, frames: int, labels: int) -> tuple[np.ndarray, ...]:
    """Where the rows of padded samples are, which nobody writes to: starts, strides and sizes (N,)."""
    same = (np.full(count, size) for size in (stride_t, frames, labels))
    return stride_n * np.arange(count), *same


def packed_rows(scores: Strided, lattice: GridLattice | ArcLattice) -> GridRows:
    """Rows of scores (sum of T*(U+1), V), the samples one after another."""
    stride, stride_v = scores.strides
    labels = lattice.target_lengths + 1
    return GridRows(
        scores.flat, lattice.row_offsets[:-1] * stride, labels * stride, stride, stride_v, lattice.logit_lengths,
        labels, scores.encoding,
    )  # fmt: skip


def forward(
    rows: GridRows,
    num_classes: int,
    lattice: GridLattice,
    *,
    logits: bool,
    need_gradient: bool,
    num_threads: int,
) -> GridSaved:
    """Losses of a batch and, where asked, the posteriors of the blank and of the label arcs."""
    work = work_dtype(rows.flat)
    num_nodes = int(lattice.row_offsets[-1])
    num_threads = parallel.worthwhile(num_threads, num_nodes * (8 + num_classes // 8))
    maxima = np.empty(num_nodes, work)
    sums = np.empty(num_nodes if logits else 0, work)
    blank_scores, label_scores = np.empty(num_nodes), np.empty(num_nodes)

    gather(rows, num_classes, lattice, logits, (maxima, sums, blank_scores, label_scores), num_threads)
    losses = solve(
        blank_scores,
        label_scores,
        maxima,
        lattice,
        need_gradient=need_gradient,
        num_threads=num_threads,
        at_least=0.0 if logits else -np.inf,
    )
    none = np.empty(0)
    posteriors = (blank_scores, label_scores) if need_gradient else (none, none)
    return GridSaved(losses, maxima if logits else maxima[:0], sums, *posteriors)


def gather(
    rows: GridRows,
    num_classes: int,
    lattice: GridLattice,
    logits: bool,
    planes: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    num_threads: int,
) -> None:
    """Fill softmax maxima and sums, blank and label scores (rows,)."""

    def of_samples(first_sample: int, last_sample: int, first: int, last: int) -> None:
        _gather_scores(
            first_sample, last_sample, first, last, rows.flat, rows.starts, rows.strides_t, rows.stride_u,
            rows.stride_v, rows.encoding, np.empty(num_classes, work_dtype(rows.flat)), lattice.row_offsets,
            lattice.logit_lengths, lattice.target_lengths, lattice.targets, lattice.blank, logits, *planes,
        )  # fmt: skip

    parallel.run(of_samples, frame_tasks(lattice.logit_lengths, lattice.target_lengths, 1, num_threads), num_threads)


def solve(
    blank_scores: np.ndarray,
    label_scores: np.ndarray,
    maxima: np.ndarray,
    lattice: GridLattice,
    *,
    need_gradient: bool,
    num_threads: int,
    at_least: float = -np.inf,
) -> np.ndarray:
    """Losses of a batch from its two planes, which are overwritten by the posteriors where asked.

    A NaN among the ``maxima`` of a sample says that a score of it is not defined.
    """
    losses = np.empty(len(lattice.logit_lengths))

    def of_samples(first: int, last: int) -> None:
        _solve_samples(
            first, last, blank_scores, label_scores, maxima, lattice.row_offsets, lattice.target_lengths, need_gradient,
            at_least, losses,
        )  # fmt: skip

    parallel.run(of_samples, parallel.of_falling_cost(lattice.row_offsets, num_threads), num_threads)
    return losses


def backward(
    grad_losses: np.ndarray,
    rows: GridRows,
    num_classes: int,
    lattice: GridLattice,
    saved: GridSaved,
    out: GridRows,
    *,
    logits: bool,
    fastemit_lambda: float,
    clamp: float,
    num_threads: int,
) -> None:
    """Write the gradient with respect to the scores, padding included, into ``out``, which may be ``rows``."""
    work = work_dtype(rows.flat)
    num_threads = parallel.worthwhile(num_threads, out.flat.size // 4)

    def write(first_sample: int, last_sample: int, first: int, last: int) -> None:
        _write_gradient(
            first_sample, last_sample, first, last, grad_losses, rows.flat, rows.starts, rows.strides_t, rows.stride_u,
            rows.stride_v, rows.encoding, np.empty((2, num_classes), work), lattice.row_offsets, lattice.logit_lengths,
            lattice.target_lengths, lattice.targets, lattice.blank, logits, fastemit_lambda, clamp, *saved, out.flat,
            out.starts, out.strides_t, out.stride_u, out.stride_v, out.frames, out.labels,
        )  # fmt: skip

    parallel.run(write, frame_tasks(out.frames, out.labels, 0, num_threads), num_threads)


def frame_tasks(
    frames: np.ndarray, labels: np.ndarray, beyond: int, num_threads: int
) -> list[tuple[int, int, int, int]]:
    """Samples [first, last) and frames [first, last), those that a sample has, in pieces of about equal numbers of
    nodes: frames * (labels + beyond).
    """
    if num_threads == 1:
        return [(0, len(frames), 0, ALL)]
    widths = labels + beyond
    piece = max(1, int((frames * widths).sum()) // (8 * num_threads))
    tasks = []
    for n in range(len(frames)):
        count = max(1, int(frames[n]) * int(widths[n]) // piece)
        bounds = [int(frames[n]) * i // count for i in range(count + 1)]
        tasks += [(n, n + 1, first, last) for first, last in pairwise(bounds) if first < last]
    return tasks


@kernel
def _gather_scores(
    first_sample, last_sample, first, last, flat, starts, strides_t, stride_u, stride_v, encoding, scratch, row_offsets,
    frames, labels, targets, blank, logits, maxima, sums, blank_scores, label_scores,
):  # fmt: skip
    """Frames [first, last) of some samples: softmax statistics and the log-probabilities of the arcs out of nodes."""
    flat, scratch = borrow(flat), borrow(scratch)
    for n in range(first_sample, last_sample):
        own, num_labels = borrow(targets)[n], labels[n]
        for t in range(first, min(last, frames[n])):
            for u in range(num_labels + 1):
                node = row_offsets[n] + t * (num_labels + 1) + u
                row = load_row(flat, starts[n] + t * strides_t[n] + u * stride_u, stride_v, encoding, scratch)
                label = own[u] if u < num_labels else -1
                maxima[node], total, blank_scores[node], label_scores[node] = score_row(row, blank, label, logits)
                if logits:
                    sums[node] = total


@part(**COMPILE)
def score_row(row, blank, label, logits):
    """Softmax maximum and sum of a row and the log-probabilities of its two arcs; no label arc where label is -1.

    The maximum is NaN where a score that is needed is not defined.
    """
    maximum, total, log_sum, taken_off = row.dtype.type(0), 1.0, 0.0, 0.0
    if logits:
        maximum, total = softmax_statistics(row)
        if 0 < total < CONFIDENT:
            # Of the classes on paths; what the other terms lack is small beside what they cost each path.
            total += inexactness(row[blank], maximum)
            total += inexactness(row[label], maximum) if label >= 0 else 0.0
        log_sum, taken_off = log_total(maximum, total)
    blank_score = less_both(row[blank], taken_off, log_sum)
    label_score = less_both(row[label], taken_off, log_sum) if label >= 0 else -np.inf
    defined = maximum == maximum and blank_score < np.inf and label_score < np.inf
    return maximum if defined else row.dtype.type(np.nan), total, blank_score, label_score


@kernel
def _solve_samples(
    first, last, blank_scores, label_scores, maxima, row_offsets, labels, need_gradient, at_least, losses
):  # fmt: skip
    for n in range(first, last):
        begin, end = row_offsets[n], row_offsets[n + 1]
        loss = 0.0
        for node in range(begin, end):
            if maxima[node] != maxima[node]:
                loss = np.nan
        if loss == loss:
            shape = ((end - begin) // (labels[n] + 1), labels[n] + 1)
            blanks, own_labels = blank_scores[begin:end].reshape(shape), label_scores[begin:end].reshape(shape)
            loss = _solve_sample(blanks, own_labels, need_gradient)
        # What rounding has left below.
        losses[n] = at_least if loss < at_least else loss


@part(**COMPILE)
def _solve_sample(blank_scores, label_scores, need_gradient):
    """The loss of one sample; with ``need_gradient`` its scores are overwritten by the posteriors of their arcs."""
    blank_scores, label_scores = borrow(blank_scores), borrow(label_scores)
    num_frames, width = blank_scores.shape
    if num_frames == 0:
        return np.inf
    taken_off = _take_off_common(blank_scores, label_scores)
    by_blank, exponents = np.zeros(width), np.full(width, ZERO_EXPONENT_64)
    by_label, alpha = np.empty(width), np.empty(width)
    blanks, blank_exponents = np.empty(width), np.empty(width)
    labels, label_exponents = np.empty(width), np.empty(width)
    by_blank[0], exponents[0] = 1.0, 0.0
    for t in range(num_frames):
        _split_row(blank_scores[t], blanks, blank_exponents)
        _split_row(label_scores[t], labels, label_exponents)
        mass, exponent = 0.0, ZERO_EXPONENT_64
        for u in range(width):
            largest = max(exponent, exponents[u])
            by_label[u] = shift(mass, exponent - largest)
            by_blank[u] = shift(by_blank[u], exponents[u] - largest)
            alpha[u], exponents[u] = normalise(by_label[u] + by_blank[u], largest)
            mass, exponent = alpha[u] * labels[u], exponents[u] + label_exponents[u]
        if need_gradient:
            _write_shares(by_blank, by_label, blank_scores[t], label_scores[t])
        for u in range(width):
            by_blank[u] = alpha[u] * blanks[u]
            exponents[u] += blank_exponents[u]
    log_z = log(by_blank[width - 1], exponents[width - 1])
    if need_gradient and log_z > -np.inf:
        _write_posteriors(blank_scores, label_scores)
    return -(log_z + taken_off)


@part(**COMPILE)
def _take_off_common(blank_scores, label_scores):
    """Take off what all paths have in common, a blank of each frame and every label, where it is huge; their sum."""
    num_frames, width = blank_scores.shape
    total = 0.0
    largest = np.full(width, -np.inf)
    for t in range(num_frames):
        total += take_off(blank_scores[t], greatest(blank_scores[t]))
        raise_to(label_scores[t], largest)
    common, huge = 0.0, False
    for u in range(width):
        largest[u], _ = unit_of(largest[u])
        common += largest[u]
        huge = huge or largest[u] != 0.0
    if huge:
        for t in range(num_frames):
            for u in range(width):
                label_scores[t, u] -= largest[u]
    return total + common


@part(**COMPILE)
def raise_to(scores, largest):
    for u in range(scores.size):
        largest[u] = scores[u] if scores[u] > largest[u] else largest[u]


@part(**COMPILE)
def _split_row(scores, mantissas, exponents):
    for u in range(scores.size):
        mantissas[u], exponents[u] = split(scores[u])


@part(**COMPILE)
def _write_shares(by_blank, by_label, blank_shares, label_shares):
    """Of the mass that comes to each node, what comes by the blank and what by the label."""
    for u in range(by_blank.size):
        total = by_blank[u] + by_label[u]
        scale = 1.0 / total if total > 0.0 else 0.0
        blank_shares[u], label_shares[u] = by_blank[u] * scale, by_label[u] * scale


@part(**COMPILE)
def _write_posteriors(blank_shares, label_shares):
    """From the end back: a node's posterior goes to the arcs into it by their shares, which they overwrite.

    No beta is needed, nor a difference of exponents: where scores are so large that these are rounded, the shares are
    those of the rounded sums, and posteriors still.
    """
    num_frames, width = blank_shares.shape
    blank = np.zeros(width)
    blank[width - 1] = 1.0
    for t in range(num_frames - 1, -1, -1):
        label = 0.0
        for u in range(width - 1, -1, -1):
            gamma = blank[u] + label
            # Subnormal numbers are slow.
            gamma = gamma if gamma > LEAST_POSTERIOR else 0.0
            blank_share, label_share = blank_shares[t, u], label_shares[t, u]
            blank_shares[t, u], label_shares[t, u] = blank[u], label
            blank[u], label = gamma * blank_share, gamma * label_share


@kernel
def _write_gradient(
    first_sample, last_sample, first, last, grad_losses, flat, starts, strides_t, stride_u, stride_v, encoding, scratch,
    row_offsets, frames, labels, targets, blank, logits, fastemit_lambda, clamp, losses, maxima, sums, blank_posteriors,
    label_posteriors, out, out_starts, out_strides_t, out_stride_u, out_stride_v, padded_frames, padded_labels,
):  # fmt: skip
    """Frames [first, last) of some samples, padding included; FastEmit scales the label posteriors."""
    flat, out, scratch = borrow(flat), borrow(out), borrow(scratch)
    nothing = scratch.dtype.type(0)
    for n in range(first_sample, last_sample):
        own, num_labels, loss = borrow(targets)[n], labels[n], losses[n]
        for t in range(first, min(last, padded_frames[n])):
            for u in range(padded_labels[n]):
                row_start = out_starts[n] + t * out_strides_t[n] + u * out_stride_u
                row = target_row(out, row_start, out_stride_v, scratch[1])
                if t >= frames[n] or u > num_labels or loss == np.inf:
                    row[:] = 0
                    store_row(out, row_start, out_stride_v, encoding, row)
                    continue
                if loss != loss:
                    row[:] = np.nan
                    store_row(out, row_start, out_stride_v, encoding, row)
                    continue
                node = row_offsets[n] + t * (num_labels + 1) + u
                start = starts[n] + t * strides_t[n] + u * stride_u
                scores = load_row(flat, start, stride_v, encoding, scratch[0])
                differentiate_row(
                    scores, row, blank, own[u] if u < num_labels else -1, grad_losses[n],
                    maxima[node] if logits else nothing, sums[node] if logits else nothing, blank_posteriors[node],
                    label_posteriors[node] * (1.0 + fastemit_lambda), clamp,
                )  # fmt: skip
                store_row(out, row_start, out_stride_v, encoding, row)


@part(**COMPILE)
def differentiate_row(
    scores, out, blank, label, grad_loss, maximum, total, blank_posterior, label_posterior, clamp
):  # fmt: skip
    """grad_loss * clamp(occupancy * softmax - posterior of each class); no softmax where ``total`` is 0."""
    number = out.dtype.type
    upstream, bound = number(grad_loss), number(clamp)
    blank_posterior, label_posterior = number(blank_posterior), number(label_posterior)
    occupancy = blank_posterior + label_posterior
    scale = upstream if clamp <= 0 else number(1)
    if occupancy > 0 and total > 0:
        softmax_row(scores, maximum, scale * occupancy / number(total), out)
    else:
        out[:] = 0
    out[blank] -= scale * blank_posterior
    if label >= 0:
        out[label] -= scale * label_posterior
    if clamp > 0:
        for v in range(out.size):
            out[v] = upstream * min(max(out[v], -bound), bound)
