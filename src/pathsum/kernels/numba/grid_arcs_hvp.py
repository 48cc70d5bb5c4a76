"""The second derivative on planes: how the posteriors of a grid's arcs move when the arcs' scores do.

A path drawn with the lattice's posterior is a Markov chain whose laws the posteriors tell: it comes into a node, and
leaves it, by one of the node's arcs in the ratio of their posteriors. Let a path cost the sum of its arcs' tangents.
With ``before`` and ``after``, the cost expected up to a node and from it on, and E, that of the whole path,

    d posterior(arc) = posterior(arc) * (before(source) + tangent(arc) + after(destination) - E).

Both are averages with weights that are not negative: no exponents are needed, and no digits lost.
"""

from __future__ import annotations

import numpy as np

from pathsum.kernels.numba import parallel
from pathsum.kernels.numba.compilation import COMPILE, kernel
from pathsum.kernels.numba.linking import part
from pathsum.kernels.numba.views import borrow
from pathsum.lattice import ArcLattice, GridLattice

# The arcs of a grid of two kinds, in the order of its planes.
BLANK_AND_LABEL = ((1, 0), (0, 1))


def hvp(
    tangents: np.ndarray,
    losses: np.ndarray,
    posteriors: np.ndarray,
    lattice: GridLattice | ArcLattice,
    *,
    skips: np.ndarray | None = None,
    num_threads: int,
) -> np.ndarray:
    """Expected cost (N,) of a path, that is minus the derivative of its loss along the tangents of the arcs' scores.

    The tangents (K, rows) are overwritten by those of the posteriors (K, rows). ``skips`` are the posteriors (2, rows)
    of leaving frames out, into and out of each node, where the lattice allows it; a skip's score has no tangent.
    NaN where the loss is; 0 where there is no path.
    """
    arcs, skips_to = (lattice.arcs, lattice.skips_to) if isinstance(lattice, ArcLattice) else (BLANK_AND_LABEL, None)
    frames_on, labels_on = (np.array(steps) for steps in zip(*arcs, strict=True))
    if skips is None:
        skips = np.empty((0, tangents.shape[1]))
    costs = np.empty(len(losses))
    num_threads = parallel.worthwhile(num_threads, tangents.size * 8)
    memory = parallel.Memory()

    def sweep(sample: int) -> None:
        first, last = int(lattice.row_offsets[sample]), int(lattice.row_offsets[sample + 1])
        if not np.isfinite(losses[sample]):
            costs[sample] = tangents[:, first:last] = np.nan if np.isnan(losses[sample]) else 0.0
            return
        num_frames, width = int(lattice.logit_lengths[sample]), int(lattice.target_lengths[sample]) + 1
        before = memory.take((num_frames, width), np.float64)
        costs[sample] = _sweep_sample(
            posteriors, skips, tangents, first, num_frames, width, frames_on, labels_on, skips_to or 0, before
        )
        memory.give(before)

    order = np.argsort(-np.diff(lattice.row_offsets), kind="stable")
    parallel.run(sweep, [(int(n),) for n in order], num_threads)
    return costs


@kernel
def _sweep_sample(posteriors, skips, tangents, offset, num_frames, width, frames_on, labels_on, skips_to, before):
    posteriors, skips, tangents, before = borrow(posteriors), borrow(skips), borrow(tangents), borrow(before)
    cost = _sweep_forward(
        posteriors, skips, tangents, offset, num_frames, width, frames_on, labels_on, skips_to, before
    )
    _sweep_back(posteriors, skips, tangents, offset, num_frames, width, frames_on, labels_on, skips_to, before, cost)
    return cost


@part(**COMPILE)
def _average(total, mass):
    return total / mass if mass > 0 else 0.0


@part(**COMPILE)
def _sweep_forward(posteriors, skips, tangents, offset, num_frames, width, frames_on, labels_on, skips_to, before):
    """Write ``before`` and return the expected cost of the whole path."""
    totals, masses = np.empty(width), np.empty(width)
    # What the skips of the last frames carry to their common end.
    skipped, skipped_mass = 0.0, 0.0
    has_skips = skips.shape[0] > 0
    for t in range(num_frames + 1):
        totals[:] = 0.0
        masses[:] = 0.0
        for k in range(frames_on.size):
            source = t - frames_on[k]
            if frames_on[k] > 0 and source >= 0:
                nodes = slice(offset + source * width, offset + (source + 1) * width)
                _arrive(posteriors[k, nodes], tangents[k, nodes], labels_on[k], before[source], totals, masses)
        if has_skips and t == num_frames - skips_to:
            totals[width - 1] += skipped
            masses[width - 1] += skipped_mass
        if t == num_frames:
            break
        first = offset + t * width
        if has_skips:
            # A skip comes from (0, 0), before which there is no cost.
            masses[0] += skips[0, first]
        for u in range(width):
            before[t, u] = _average(totals[u], masses[u])
            if u + 1 < width:
                for k in range(frames_on.size):
                    if frames_on[k] == 0:
                        posterior = posteriors[k, first + u]
                        totals[u + 1] += posterior * (before[t, u] + tangents[k, first + u])
                        masses[u + 1] += posterior
        if has_skips:
            posterior = skips[1, first + width - 1]
            skipped += posterior * before[t, width - 1]
            skipped_mass += posterior
    return _average(totals[width - 1], masses[width - 1])


@part(**COMPILE)
def _arrive(posteriors, tangents, labels_on, before, totals, masses):
    """Add what the arcs of one kind bring from one frame to another."""
    into, into_masses = totals[labels_on:], masses[labels_on:]
    for u in range(into.size):
        into[u] += posteriors[u] * (before[u] + tangents[u])
        into_masses[u] += posteriors[u]


@part(**COMPILE)
def _sweep_back(posteriors, skips, tangents, offset, num_frames, width, frames_on, labels_on, skips_to, before, cost):
    """From the last frame back, each frame's tangents replaced by those of the posteriors."""
    # Arcs that span more frames than there are lead nowhere.
    depth = 1 + min(frames_on.max(), num_frames + 1)
    after = np.zeros((depth, width))
    totals, masses = np.empty(width), np.empty(width)
    # What is expected where the skips of the last frames end.
    rest = 0.0
    for t in range(num_frames - 1, -1, -1):
        first = offset + t * width
        nodes, here = slice(first, first + width), after[t % depth]
        totals[:] = 0.0
        masses[:] = 0.0
        if skips.shape[0] > 0:
            masses[width - 1] = skips[1, first + width - 1]
            totals[width - 1] = masses[width - 1] * rest
        for k in range(frames_on.size):
            reached = t + frames_on[k]
            if frames_on[k] > 0 and reached <= num_frames:
                _leave(
                    posteriors[k, nodes], tangents[k, nodes], labels_on[k], after[reached % depth], before[t], cost,
                    totals, masses,
                )  # fmt: skip
            elif reached > num_frames:
                tangents[k, nodes] = 0.0
        for u in range(width - 1, -1, -1):
            for k in range(frames_on.size):
                if frames_on[k] == 0 and u + 1 < width:
                    posterior = posteriors[k, first + u]
                    onwards = tangents[k, first + u] + here[u + 1]
                    totals[u] += posterior * onwards
                    masses[u] += posterior
                    tangents[k, first + u] = posterior * (before[t, u] + onwards - cost)
                elif frames_on[k] == 0:
                    tangents[k, first + u] = 0.0
            here[u] = _average(totals[u], masses[u])
        if skips_to == 1 and t == num_frames - 1:
            rest = here[width - 1]


@part(**COMPILE)
def _leave(posteriors, tangents, labels_on, after, before, cost, totals, masses):
    """Replace the tangents of one kind's arcs out of a frame and add what they lead to."""
    onto = after[labels_on:]
    for u in range(onto.size):
        onwards = tangents[u] + onto[u]
        totals[u] += posteriors[u] * onwards
        masses[u] += posteriors[u]
        tangents[u] = posteriors[u] * (before[u] + onwards - cost)
    tangents[onto.size :] = 0.0
