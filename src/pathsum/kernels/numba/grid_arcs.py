"""Grids with arcs of several kinds on the CPU: planes of log-scores in, losses and posteriors out.

One sample a task: alpha frame by frame, then beta with the posteriors, in extended range with float64 mantissas as in
the grid of two kinds. Arcs into later frames are added a whole frame at a time; those within a frame one after another.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from pathsum.kernels.numba import arc_scores, parallel
from pathsum.kernels.numba.compilation import COMPILE, kernel
from pathsum.kernels.numba.extended import log, normalise, shift, split
from pathsum.kernels.numba.rows import borrow
from pathsum.lattice import ArcLattice
from pathsum.numerics import ZERO_EXPONENT_64


def solve(
    planes: np.ndarray, lattice: ArcLattice, skip_score: float = 0.0, *, need_gradient: bool, num_threads: int
) -> np.ndarray:
    """Losses (N,) of planes (K, rows); with ``need_gradient`` the planes are overwritten by the arcs' posteriors.

    NaN or +inf in the rows of a sample makes its loss NaN. Where there is no path the posteriors are 0.
    """
    skip_score, skips_to = (-np.inf, 0) if lattice.skips_to is None else (skip_score, lattice.skips_to)
    losses = np.empty(len(lattice.logit_lengths), np.float64)
    frames_on, labels_on = (np.array(steps) for steps in zip(*lattice.arcs, strict=True))
    num_threads = parallel.worthwhile(num_threads, planes.size * 8)
    memory = parallel.Memory()

    def solve_sample(sample: int) -> None:
        first, last = int(lattice.row_offsets[sample]), int(lattice.row_offsets[sample + 1])
        if not (planes[:, first:last] < np.inf).all():
            losses[sample] = np.nan
            planes[:, first:last] = np.nan
            return
        num_frames, width = int(lattice.logit_lengths[sample]), int(lattice.target_lengths[sample]) + 1
        shape = (num_frames if need_gradient else int(frames_on.max()) + 1, width)
        alpha, exponents = memory.take(shape, np.float64), memory.take(shape, np.float64)
        losses[sample] = _solve_sample(
            planes, first, num_frames, width, frames_on, labels_on, lattice.label_ends, skip_score, skips_to,
            need_gradient, alpha, exponents,
        )  # fmt: skip
        memory.give(alpha, exponents)

    order = np.argsort(-np.diff(lattice.row_offsets), kind="stable")
    parallel.run(solve_sample, [(int(n),) for n in order], num_threads)
    return losses


@kernel
def _solve_sample(
    planes, offset, num_frames, width, frames_on, labels_on, label_ends, skip_score, skips_to, need_gradient, alpha,
    exponents,
):  # fmt: skip
    """The loss of one sample. ``alpha`` has one row a frame with ``need_gradient``, else as many as an arc spans."""
    if num_frames == 0:
        return np.inf
    planes, alpha, exponents = borrow(planes), borrow(alpha), borrow(exponents)
    num_rows = alpha.shape[0]
    arriving, arriving_exponents = np.zeros(width), np.full(width, ZERO_EXPONENT_64)
    weights, weight_exponents = np.empty(width), np.empty(width)
    arriving[0], arriving_exponents[0] = 1.0, 0.0
    skip, skip_exponent = split(skip_score)
    skipped, skipped_exponent = 0.0, ZERO_EXPONENT_64
    for t in range(num_frames):
        if t > 0:
            arriving[0], arriving_exponents[0] = _add(arriving[0], arriving_exponents[0], skip, skip_exponent)
        if skips_to == 1 and t == num_frames - 1:
            arriving[-1], arriving_exponents[-1] = _add(arriving[-1], arriving_exponents[-1], skipped, skipped_exponent)
        _sum_within_frame(planes, offset + t * width, frames_on, weights, weight_exponents)
        row = t % num_rows
        mass, exponent = 0.0, ZERO_EXPONENT_64
        for u in range(width):
            total, largest = _add(mass, exponent, arriving[u], arriving_exponents[u])
            total, largest = normalise(total, largest)
            alpha[row, u], exponents[row, u] = total, largest
            mass, exponent = total * weights[u], largest + weight_exponents[u]
        if t < num_frames - 1:
            skipped, skipped_exponent = _add(
                skipped, skipped_exponent, alpha[row, width - 1] * skip, exponents[row, width - 1] + skip_exponent
            )
            skipped, skipped_exponent = normalise(skipped, skipped_exponent)
        arriving[:] = 0.0
        arriving_exponents[:] = ZERO_EXPONENT_64
        for k in range(frames_on.size):
            source = t + 1 - frames_on[k]
            if 0 <= source <= t and _exists(t + 1, labels_on[k], num_frames, label_ends):
                first = offset + source * width
                _arrive(
                    planes[k, first : first + width], labels_on[k], alpha[source % num_rows],
                    exponents[source % num_rows], arriving, arriving_exponents,
                )  # fmt: skip
    if skips_to == 0:
        arriving[-1], arriving_exponents[-1] = _add(arriving[-1], arriving_exponents[-1], skipped, skipped_exponent)
    total, exponent = normalise(arriving[width - 1], arriving_exponents[width - 1])
    log_z = log(total, exponent)
    if need_gradient:
        if log_z > -np.inf:
            _write_posteriors(
                planes, offset, num_frames, width, frames_on, labels_on, label_ends, skip, skip_exponent, skips_to,
                alpha, exponents, total, exponent,
            )  # fmt: skip
        else:
            planes[:, offset : offset + num_frames * width] = 0.0
    return -log_z


@njit(**COMPILE)
def _add(mantissa, exponent, other, other_exponent):
    largest = max(exponent, other_exponent)
    return shift(mantissa, exponent - largest) + shift(other, other_exponent - largest), largest


@njit(**COMPILE)
def _exists(reach, labels_on, num_frames, label_ends):
    """Whether arcs that go ``labels_on`` labels may enter frame ``reach``."""
    return reach < num_frames or (reach == num_frames and (label_ends or labels_on == 0))


@njit(**COMPILE)
def _sum_within_frame(planes, first, frames_on, weights, exponents):
    """The weight of going from each label to the next within the frame; there is no next one after the last."""
    weights[:] = 0.0
    exponents[:] = ZERO_EXPONENT_64
    for k in range(frames_on.size):
        if frames_on[k] == 0:
            scores = planes[k, first : first + weights.size]
            for u in range(weights.size - 1):
                weight, exponent = split(scores[u])
                weights[u], exponents[u] = _add(weights[u], exponents[u], weight, exponent)


@njit(**COMPILE)
def _arrive(scores, labels_on, alpha, exponents, arriving, arriving_exponents):
    """Add the mass that the arcs of one kind carry from one frame to another."""
    into, into_exponents = arriving[labels_on:], arriving_exponents[labels_on:]
    for u in range(into.size):
        weight, exponent = split(scores[u])
        weight, exponent = weight * alpha[u], exponent + exponents[u]
        into[u], into_exponents[u] = _add(into[u], into_exponents[u], weight, exponent)


@njit(**COMPILE)
def _write_posteriors(
    planes, offset, num_frames, width, frames_on, labels_on, label_ends, skip, skip_exponent, skips_to, alpha,
    exponents, total, total_exponent,
):  # fmt: skip
    """Beta from the last frame back, each frame's scores replaced by alpha * score * beta / total of their arcs."""
    depth = 1 + frames_on.max()
    beta, beta_exponents = np.zeros((depth, width)), np.full((depth, width), ZERO_EXPONENT_64)
    beta[num_frames % depth, width - 1], beta_exponents[num_frames % depth, width - 1] = 1.0, 0.0
    leaving, leaving_exponents = np.empty(width), np.empty(width)
    weights, weight_exponents = np.empty(width), np.empty(width)
    scale = 1.0 / total
    # What skipping the rest leads to.
    rest, rest_exponent = 1.0, 0.0
    for t in range(num_frames - 1, -1, -1):
        first, row = offset + t * width, t % depth
        leaving[:] = 0.0
        leaving_exponents[:] = ZERO_EXPONENT_64
        if t < num_frames - 1:
            leaving[width - 1], leaving_exponents[width - 1] = rest * skip, rest_exponent + skip_exponent
        for k in range(frames_on.size):
            if frames_on[k] > 0:
                scores = planes[k, first : first + width]
                if _exists(t + frames_on[k], labels_on[k], num_frames, label_ends):
                    reached = (t + frames_on[k]) % depth
                    _leave(
                        scores, labels_on[k], beta[reached], beta_exponents[reached], alpha[t], exponents[t], scale,
                        total_exponent, leaving, leaving_exponents,
                    )  # fmt: skip
                else:
                    scores[:] = 0.0
        _sum_within_frame(planes, first, frames_on, weights, weight_exponents)
        mass, exponent = 0.0, ZERO_EXPONENT_64
        for u in range(width - 1, -1, -1):
            mass, exponent = mass * weights[u], exponent + weight_exponents[u]
            mass, exponent = _add(mass, exponent, leaving[u], leaving_exponents[u])
            mass, exponent = normalise(mass, exponent)
            beta[row, u], beta_exponents[row, u] = mass, exponent
        if skips_to == 1 and t == num_frames - 1:
            rest, rest_exponent = beta[row, width - 1], beta_exponents[row, width - 1]
        for k in range(frames_on.size):
            if frames_on[k] == 0:
                _leave(
                    planes[k, first : first + width], 1, beta[row], beta_exponents[row], alpha[t], exponents[t], scale,
                    total_exponent, leaving, leaving_exponents,
                )  # fmt: skip


@njit(**COMPILE)
def _leave(
    scores, labels_on, beta, beta_exponents, alpha, exponents, scale, total_exponent, leaving, leaving_exponents
):  # fmt: skip
    """Replace the scores of one kind's arcs out of a frame by posteriors and add what they lead to."""
    after, after_exponents = beta[labels_on:], beta_exponents[labels_on:]
    for u in range(after.size):
        weight, exponent = split(scores[u])
        weight, exponent = weight * after[u], exponent + after_exponents[u]
        # A posterior's exponent is at most 1 but for rounding.
        bounded = min(exponents[u] + exponent - total_exponent - 1.0, 0.0)
        scores[u] = 2.0 * shift(alpha[u] * weight * scale, bounded)
        leaving[u], leaving_exponents[u] = _add(leaving[u], leaving_exponents[u], weight, exponent)
    scores[after.size :] = 0.0


def solve_two(
    blank_scores: np.ndarray,
    label_scores: np.ndarray,
    maxima: np.ndarray,
    lattice: ArcLattice,
    *,
    label_bonus: np.ndarray | None,
    need_gradient: bool,
    num_threads: int,
) -> np.ndarray:
    """Losses of a batch from its two planes of classes' scores, which are overwritten by the arcs' posteriors.

    A NaN among the ``maxima`` says that a score of its row is not defined. ``label_bonus`` is added to the label arcs'
    scores.
    """
    sample = np.repeat(np.arange(len(lattice.logit_lengths)), np.diff(lattice.row_offsets))
    node, width = np.arange(len(sample)) - lattice.row_offsets[sample], lattice.target_lengths[sample] + 1
    t, u = node // width, np.minimum(node % width, lattice.targets.shape[1] - 1)
    label_scores[(t < lattice.first_frames[sample, u]) | (t > lattice.last_frames[sample, u])] = -np.inf
    labels_on = [labels for _, labels in lattice.arcs]
    planes = arc_scores.forward([blank_scores, label_scores], lattice.terms, labels_on, label_bonus=label_bonus)
    planes[:, np.isnan(maxima)] = np.nan
    losses = solve(planes, lattice, need_gradient=need_gradient, num_threads=num_threads)
    blank_scores[:], label_scores[:] = planes
    return losses
