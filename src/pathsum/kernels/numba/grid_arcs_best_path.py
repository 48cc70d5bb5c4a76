"""The best path of an arc lattice on the CPU: max-plus over planes of arc scores, and the path traced back."""

from __future__ import annotations

import numpy as np

from pathsum.kernels.numba import parallel
from pathsum.kernels.numba.compilation import exact_kernel
from pathsum.kernels.numba.rows import borrow
from pathsum.kernels.protocol import GridPath
from pathsum.lattice import ArcLattice


def best_path(planes: np.ndarray, lattice: ArcLattice, *, skip_score: float, num_threads: int) -> GridPath:
    """The best path of each sample of planes (kinds, rows), in arrays as wide as the lattice's targets."""
    num_samples, num_labels = lattice.targets.shape
    frames = np.full((num_samples, num_labels), -1, np.int64)
    label_scores, log_probs = np.zeros((num_samples, num_labels)), np.empty(num_samples)
    steps = np.array(lattice.arcs, np.int64).reshape(-1, 2)
    skips_to = -1 if lattice.skips_to is None else lattice.skips_to

    def solve(sample: int) -> None:
        own, count = slice(*lattice.row_offsets[sample : sample + 2]), int(lattice.target_lengths[sample])
        shape = (len(planes), int(lattice.logit_lengths[sample]), count + 1)
        arcs, scores = np.ascontiguousarray(planes[:, own]).reshape(shape), label_scores[sample, :count]
        log_probs[sample] = _solve_sample(
            arcs, steps, lattice.label_ends, skips_to, float(skip_score), frames[sample, :count], scores
        )
        if not log_probs[sample] > -np.inf:
            scores[:] = log_probs[sample]

    num_threads = parallel.worthwhile(num_threads, planes.size)
    order = np.argsort(-np.diff(lattice.row_offsets), kind="stable")
    parallel.run(solve, [(int(n),) for n in order], num_threads)
    return GridPath(log_probs, frames, label_scores)


@exact_kernel
def _solve_sample(planes, steps, label_ends, skips_to, skip_score, frames, scores):
    """The log-score of the best path; the frame and score of each label are written where there is one."""
    planes = borrow(planes)
    num_kinds, num_frames, width = planes.shape
    if num_frames == 0:
        return -np.inf
    best = np.full((num_frames + 1, width), -np.inf)
    # The kind of the arc into a node; behind the kinds the skips, that of the last frames out of ``left_from``.
    came_by = np.full((num_frames + 1, width), -1, np.int64)
    left_from = 0
    best[0, 0] = 0.0
    for t in range(num_frames + 1):
        for u in range(width):
            for k in range(num_kinds):
                source, before = t - steps[k, 0], u - steps[k, 1]
                if source < 0 or before < 0 or (t == num_frames and steps[k, 1] and not label_ends):
                    continue
                if source == num_frames:
                    continue
                score = planes[k, source, before]
                if not score < np.inf:
                    return np.nan
                # Strictly: of several the first kind, so that a blank goes before a label.
                if best[source, before] + score > best[t, u]:
                    best[t, u], came_by[t, u] = best[source, before] + score, k
            if skips_to >= 0 and u == 0 and 0 < t < num_frames and skip_score > best[t, 0]:
                best[t, 0], came_by[t, 0] = skip_score, num_kinds
            if skips_to >= 0 and u == width - 1 and t == num_frames - skips_to:
                for source in range(min(num_frames - 1, t)):
                    if best[source, u] + skip_score > best[t, u]:
                        best[t, u], came_by[t, u], left_from = best[source, u] + skip_score, num_kinds + 1, source
    log_prob = best[num_frames, width - 1]
    if log_prob == -np.inf:
        return log_prob
    t, u = num_frames, width - 1
    while t > 0 or u > 0:
        k = came_by[t, u]
        if k == num_kinds:
            t = 0
        elif k > num_kinds:
            t = left_from
        else:
            t, u = t - steps[k, 0], u - steps[k, 1]
            if steps[k, 1]:
                frames[u], scores[u] = t, planes[k, t, u]
    return log_prob
