"""The best path of a grid on the CPU: arcs scored as in ``grid``, max-plus over them, and the path traced back."""

from __future__ import annotations

import numpy as np

from pathsum.kernels.numba import grid, parallel
from pathsum.kernels.numba.compilation import exact_kernel
from pathsum.kernels.numba.rows import work_dtype
from pathsum.kernels.numba.views import borrow
from pathsum.kernels.protocol import GridPath
from pathsum.lattice import GridLattice


def best_path(
    rows: grid.GridRows,
    num_classes: int,
    lattice: GridLattice,
    *,
    num_labels: int,
    logits: bool,
    num_threads: int,
) -> GridPath:
    """The best path of each sample, in arrays as wide as ``num_labels``."""
    num_samples, num_nodes = len(lattice.logit_lengths), int(lattice.row_offsets[-1])
    maxima, blank_plane, label_plane = _gather(rows, num_classes, lattice, logits, num_threads)
    frames = np.full((num_samples, num_labels), -1, np.int64)
    label_scores = np.zeros((num_samples, num_labels))
    log_probs = np.empty(num_samples)

    def solve(sample: int) -> None:
        nodes = slice(lattice.row_offsets[sample], lattice.row_offsets[sample + 1])
        count = int(lattice.target_lengths[sample])
        own_frames, own_scores = frames[sample, :count], label_scores[sample, :count]
        if np.isnan(maxima[nodes]).any():
            log_probs[sample] = np.nan
        else:
            shape = (int(lattice.logit_lengths[sample]), count + 1)
            blank, label = blank_plane[nodes].reshape(shape), label_plane[nodes].reshape(shape)
            log_probs[sample] = _solve_sample(blank, label, own_frames, own_scores)
        if not log_probs[sample] > -np.inf:
            own_scores[:] = log_probs[sample]

    num_threads = parallel.worthwhile(num_threads, num_nodes)
    order = np.argsort(-np.diff(lattice.row_offsets), kind="stable")
    parallel.run(solve, [(int(n),) for n in order], num_threads)
    return GridPath(log_probs, frames, label_scores)


def _gather(
    rows: grid.GridRows, num_classes: int, lattice: GridLattice, logits: bool, num_threads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The maxima, NaN where a row is not defined, and the scores of the blank and of the label arcs of all nodes."""
    num_nodes, work = int(lattice.row_offsets[-1]), work_dtype(rows.flat)
    maxima, sums = np.empty(num_nodes, work), np.empty(num_nodes if logits else 0, work)
    blank_scores, label_scores = np.empty(num_nodes), np.empty(num_nodes)

    num_threads = parallel.worthwhile(num_threads, num_nodes * (8 + num_classes // 8))
    grid.gather(rows, num_classes, lattice, logits, (maxima, sums, blank_scores, label_scores), num_threads)
    return maxima, blank_scores, label_scores


@exact_kernel
def _solve_sample(blank_scores, label_scores, frames, scores):
    """The log-score of the best path; the frame and score of each label are written where there is one."""
    blank_scores, label_scores = borrow(blank_scores), borrow(label_scores)
    num_frames, width = blank_scores.shape
    if num_frames == 0:
        return -np.inf
    by_label = np.zeros((num_frames, width), np.bool_)
    arriving = np.full(width, -np.inf)
    arriving[0] = 0.0
    for t in range(num_frames):
        written = -np.inf
        for u in range(width):
            # The blank on a tie: traced from the end, the path goes back in time as long as it can.
            by_label[t, u] = written > arriving[u]
            best = written if written > arriving[u] else arriving[u]
            written = best + label_scores[t, u]
            arriving[u] = best + blank_scores[t, u]
    log_prob = arriving[width - 1]
    if log_prob == -np.inf:
        return log_prob
    t, u = num_frames - 1, width - 1
    while u > 0:
        if by_label[t, u]:
            u -= 1
            frames[u] = t
            scores[u] = label_scores[t, u]
        else:
            t -= 1
    return log_prob
