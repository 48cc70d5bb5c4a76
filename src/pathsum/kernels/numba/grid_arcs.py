"""Grids with arcs of several kinds on the CPU: planes of log-scores in, losses and posteriors out.

One sample a task: alpha frame by frame in extended range with float64 mantissas, as in the grid of two kinds, then the
posteriors back along the arcs. Arcs from earlier frames are added a whole frame at a time; those within a frame, which
one kind at most has, one after another.
"""

from __future__ import annotations

import numpy as np

from pathsum.kernels.numba import arc_scores, parallel
from pathsum.kernels.numba.compilation import COMPILE, kernel
from pathsum.kernels.numba.extended import log, normalise, shift, split
from pathsum.kernels.numba.grid import raise_to
from pathsum.kernels.numba.linking import part
from pathsum.kernels.numba.rows import greatest, take_off, unit_of
from pathsum.kernels.numba.views import borrow
from pathsum.lattice import ArcLattice
from pathsum.numerics import LEAST_POSTERIOR, ZERO_EXPONENT_64


def solve(
    planes: np.ndarray,
    lattice: ArcLattice,
    skip_score: float = 0.0,
    *,
    need_gradient: bool,
    num_threads: int,
    skips: np.ndarray | None = None,
    at_least: float = -np.inf,
) -> np.ndarray:
    """Losses (N,) of planes (K, rows); with ``need_gradient`` the planes are overwritten by the arcs' posteriors.

    Where given, so are the zeros (2, rows) of ``skips`` by those of leaving frames out, into and out of each node. NaN
    or +inf in the rows of a sample makes its loss NaN. Where there is no path the posteriors are 0. What rounding has
    left of a loss below ``at_least`` is that.
    """
    skip_score, skips_to = (-np.inf, 0) if lattice.skips_to is None else (skip_score, lattice.skips_to)
    skips = np.empty((0, 0)) if skips is None else skips
    losses, kinds = np.empty(len(lattice.logit_lengths)), arc_scores.kinds_of(lattice)
    num_threads = parallel.worthwhile(num_threads, planes.size * 8)

    def of_samples(first: int, last: int) -> None:
        _solve_samples(
            first, last, planes, lattice.row_offsets, lattice.logit_lengths, lattice.target_lengths, kinds.frames_on,
            kinds.labels_on, lattice.label_ends, float(skip_score), skips_to, skips, need_gradient, at_least, losses,
        )  # fmt: skip

    parallel.run(of_samples, parallel.of_falling_cost(lattice.row_offsets, num_threads), num_threads)
    return losses


@kernel
def _solve_samples(
    first_sample, last_sample, planes, row_offsets, frames, labels, frames_on, labels_on, label_ends, skip_score,
    skips_to, skips, need_gradient, at_least, losses,
):  # fmt: skip
    planes, skips = borrow(planes), borrow(skips)
    for n in range(first_sample, last_sample):
        first, last = row_offsets[n], row_offsets[n + 1]
        defined = True
        for k in range(len(planes)):
            for row in range(first, last):
                defined = defined and planes[k, row] < np.inf
        if not defined:
            losses[n] = np.nan
            planes[:, first:last] = np.nan
            continue
        longest = np.int64(0)
        for k in range(frames_on.size):
            # Arcs that span more frames than there are are in nobody's way; nor is there room for them.
            longest = max(longest, min(frames_on[k], frames[n] + 1))
        shape = (frames_on.size + 1 + longest, labels[n] + 1)
        loss = _solve_sample(
            planes, first, frames[n], labels[n] + 1, frames_on, labels_on, label_ends, skip_score, skips_to, skips,
            need_gradient, np.zeros(shape), np.zeros(shape),
        )  # fmt: skip
        losses[n] = at_least if loss < at_least else loss


@part(**COMPILE)
def _solve_sample(
    planes, offset, num_frames, width, frames_on, labels_on, label_ends, skip_score, skips_to, skips, need_gradient,
    mantissas, exponents,
):  # fmt: skip
    """The loss of one sample. Of mantissas and exponents there is a row a kind, and one a frame that an arc spans."""
    if num_frames == 0:
        return np.inf
    planes, skips, mantissas, exponents = borrow(planes), borrow(skips), borrow(mantissas), borrow(exponents)
    num_kinds, end = frames_on.size, width - 1
    taken_off = 0.0
    if skip_score == -np.inf and _paths_have_alike(frames_on, labels_on):
        taken_off = _take_off_common(planes, offset, num_frames, width, frames_on)
    brought, brought_exponents = mantissas[:num_kinds], exponents[:num_kinds]
    alpha, alpha_exponents = mantissas[num_kinds:], exponents[num_kinds:]
    depth = len(alpha)
    totals, largest = np.empty(width), np.empty(width)
    skip, skip_exponent = split(skip_score)
    skipped, skipped_exponent = 0.0, ZERO_EXPONENT_64
    # Of what comes to (t, 0) and to (t, U), and of all that has skipped to the end, what skips there or in frame t.
    skip_shares = np.zeros((3, num_frames + 1))
    for t in range(num_frames + 1):
        totals[:] = 0.0
        largest[:] = ZERO_EXPONENT_64
        if t == 0:
            totals[0], largest[0] = 1.0, 0.0
        elif t < num_frames:
            totals[0], largest[0] = skip, skip_exponent
        if t == num_frames - skips_to:
            totals[end], largest[end] = _add(totals[end], largest[end], skipped, skipped_exponent)
        for k in range(num_kinds):
            if frames_on[k] > 0 and _exists(t - frames_on[k], t, labels_on[k], num_frames, label_ends):
                row, first = (t - frames_on[k]) % depth, offset + (t - frames_on[k]) * width
                _split_row(planes[k, first : first + width], labels_on[k], brought[k], brought_exponents[k])
                _bring(labels_on[k], alpha[row], alpha_exponents[row], brought[k], brought_exponents[k])
                _add_row(labels_on[k], brought[k], brought_exponents[k], totals, largest)
        row, first = t % depth, offset + t * width
        _normalise_row(totals, largest, alpha[row], alpha_exponents[row])
        for k in range(num_kinds):
            if frames_on[k] == 0 and t < num_frames:
                _split_row(planes[k, first : first + width], 1, brought[k], brought_exponents[k])
                _pass_on(alpha[row], alpha_exponents[row], brought[k], brought_exponents[k], totals, largest)
        if need_gradient:
            for k in range(num_kinds):
                if _exists(t - frames_on[k], t, labels_on[k], num_frames, label_ends):
                    first = offset + (t - frames_on[k]) * width
                    _write_shares(
                        planes[k, first : first + width], labels_on[k], brought[k], brought_exponents[k], totals,
                        largest,
                    )  # fmt: skip
            if 0 < t < num_frames:
                skip_shares[0, t] = _share(skip, skip_exponent, totals[0], largest[0])
            if t == num_frames - skips_to:
                skip_shares[1, t] = _share(skipped, skipped_exponent, totals[end], largest[end])
        if t < num_frames - 1:
            leaving, exponent = alpha[row, end] * skip, alpha_exponents[row, end] + skip_exponent
            total, most = _add(skipped, skipped_exponent, leaving, exponent)
            skip_shares[2, t] = _share(leaving, exponent, total, most)
            skipped, skipped_exponent = normalise(total, most)
    log_z = log(totals[end], largest[end])
    if need_gradient:
        if log_z > -np.inf:
            _write_posteriors(
                planes, offset, num_frames, width, frames_on, labels_on, label_ends, skips_to, skips, skip_shares, alpha
            )
        else:
            planes[:, offset : offset + num_frames * width] = 0.0
    return -(log_z + taken_off)


@part(**COMPILE)
def _paths_have_alike(frames_on, labels_on):
    """Whether all paths have an arc out of each frame, and one into each label if these are of another kind."""
    within, across = 0, 0
    for k in range(frames_on.size):
        if frames_on[k] > 1:
            return False
        within += 1 if frames_on[k] == 0 else 0
        across += 1 if frames_on[k] == 1 and labels_on[k] == 1 else 0
    return within == 0 or across == 0


@part(**COMPILE)
def _take_off_common(planes, offset, num_frames, width, frames_on):
    """As that of the grid: the sum of the greatest score out of each frame and into each label, where they are huge."""
    total = 0.0
    largest = np.full(width, -np.inf)
    for t in range(num_frames):
        nodes = planes[:, offset + t * width : offset + (t + 1) * width]
        of_frame = -np.inf
        for k in range(frames_on.size):
            if frames_on[k] > 0:
                of_frame = max(of_frame, greatest(nodes[k]))
            else:
                raise_to(nodes[k], largest)
        total += unit_of(of_frame)[0]
        for k in range(frames_on.size):
            if frames_on[k] > 0:
                take_off(nodes[k], of_frame)
    common, huge = 0.0, False
    for u in range(width):
        largest[u], _ = unit_of(largest[u])
        common += largest[u]
        huge = huge or largest[u] != 0.0
    if huge:
        for k in range(frames_on.size):
            if frames_on[k] == 0:
                for t in range(num_frames):
                    for u in range(width):
                        planes[k, offset + t * width + u] -= largest[u]
    return total + common


@part(**COMPILE)
def _normalise_row(totals, largest, alpha, exponents):
    for u in range(totals.size):
        alpha[u], exponents[u] = normalise(totals[u], largest[u])


@part(**COMPILE)
def _add(mantissa, exponent, other, other_exponent):
    largest = max(exponent, other_exponent)
    return shift(mantissa, exponent - largest) + shift(other, other_exponent - largest), largest


@part(**COMPILE)
def _share(part, exponent, total, largest):
    """Which share of a total a part of it is."""
    return shift(part, exponent - largest) / total if total > 0.0 else 0.0


@part(**COMPILE)
def _exists(source, target, labels_on, num_frames, label_ends):
    """Whether arcs that go ``labels_on`` labels lead from one frame to another."""
    inside = 0 <= source < num_frames and target <= num_frames
    return inside and (target < num_frames or label_ends or labels_on == 0)


@part(**COMPILE)
def _split_row(scores, labels_on, mantissas, exponents):
    """The scores of one kind's arcs, each where it leads to."""
    for u in range(scores.size - labels_on):
        mantissas[u + labels_on], exponents[u + labels_on] = split(scores[u])


@part(**COMPILE)
def _bring(labels_on, alpha, alpha_exponents, brought, exponents):
    """What the arcs of one kind, whose scores ``brought`` holds, carry from one frame to another."""
    for u in range(alpha.size - labels_on):
        brought[u + labels_on] *= alpha[u]
        exponents[u + labels_on] += alpha_exponents[u]


@part(**COMPILE)
def _add_row(labels_on, brought, exponents, totals, largest):
    for u in range(labels_on, totals.size):
        totals[u], largest[u] = _add(totals[u], largest[u], brought[u], exponents[u])


@part(**COMPILE)
def _pass_on(alpha, alpha_exponents, brought, exponents, totals, largest):
    """Add what the arcs within a frame, whose scores ``brought`` holds, carry from each label to the next."""
    for u in range(1, alpha.size):
        brought[u], exponents[u] = brought[u] * alpha[u - 1], exponents[u] + alpha_exponents[u - 1]
        totals[u], largest[u] = _add(totals[u], largest[u], brought[u], exponents[u])
        alpha[u], alpha_exponents[u] = normalise(totals[u], largest[u])


@part(**COMPILE)
def _write_shares(scores, labels_on, brought, exponents, totals, largest):
    """Replace the scores of one kind's arcs by their share of the mass that comes to the node they lead to."""
    for u in range(scores.size - labels_on):
        to = u + labels_on
        scores[u] = _share(brought[to], exponents[to], totals[to], largest[to])


@part(**COMPILE)
def _write_posteriors(
    planes, offset, num_frames, width, frames_on, labels_on, label_ends, skips_to, skips, skip_shares, leaving
):  # fmt: skip
    """From the end back: a node's posterior goes to the arcs into it by their shares, which they overwrite.

    ``leaving`` is for the posteriors of the arcs out of each node that arcs may come from.
    """
    num_kinds, depth, end = frames_on.size, len(leaving), width - 1
    leaving[:] = 0.0
    leaving[num_frames % depth, end] = 1.0
    # The posterior of having skipped to the end from this frame or before.
    rest = 0.0
    for t in range(num_frames, -1, -1):
        gamma, first = leaving[t % depth], offset + t * width
        skipping = rest * skip_shares[2, t]
        rest -= skipping
        gamma[end] += skipping
        for u in range(width):
            # Subnormal numbers are slow.
            gamma[u] = gamma[u] if gamma[u] > LEAST_POSTERIOR else 0.0
        for k in range(num_kinds):
            if frames_on[k] == 0 and t < num_frames:
                _send_back_within(planes[k, first : first + width], gamma)
        rest += gamma[end] * skip_shares[1, t]
        if skips.size > 0 and t < num_frames:
            skips[0, first], skips[1, first + end] = gamma[0] * skip_shares[0, t], skipping
        for k in range(num_kinds):
            if frames_on[k] > 0 and _exists(t - frames_on[k], t, labels_on[k], num_frames, label_ends):
                source = offset + (t - frames_on[k]) * width
                _send_back(planes[k, source : source + width], labels_on[k], gamma, leaving[(t - frames_on[k]) % depth])
            if t < num_frames and not _exists(t, t + frames_on[k], labels_on[k], num_frames, label_ends):
                planes[k, first : first + width] = 0.0
        gamma[:] = 0.0


@part(**COMPILE)
def _send_back_within(shares, gamma):
    shares[-1] = 0.0
    for u in range(shares.size - 2, -1, -1):
        posterior = shares[u] * gamma[u + 1]
        shares[u] = posterior if posterior > LEAST_POSTERIOR else 0.0
        gamma[u] += shares[u]


@part(**COMPILE)
def _send_back(shares, labels_on, gamma, leaving):
    """Replace the shares of one kind's arcs by posteriors and add these to the nodes they come from."""
    for u in range(shares.size - labels_on):
        shares[u] *= gamma[u + labels_on]
        leaving[u] += shares[u]
    shares[shares.size - labels_on :] = 0.0


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
    read = np.stack([blank_scores, label_scores])
    planes = arc_scores.forward(read, arc_scores.kinds_of(lattice), label_bonus=label_bonus)
    planes[:, np.isnan(maxima)] = np.nan
    losses = solve(planes, lattice, need_gradient=need_gradient, num_threads=num_threads)
    blank_scores[:], label_scores[:] = planes
    return losses
