"""A joiner's rows to planes: the log-probability of a few classes of each node, of logits made a tile at a time.

What ``row_scores`` is for logits that exist. Backward makes the tiles again, for the nodes whose share of the planes'
gradients matters: those gradients are posteriors, and gated as in ``joint``.
"""

from __future__ import annotations

import numpy as np

from pathsum.kernels.numba import parallel
from pathsum.kernels.numba.compilation import kernel
from pathsum.kernels.numba.joint import GradientTiles, Joiner, Matmul, Tiles, heavy_nodes, node_of
from pathsum.kernels.numba.row_scores import Wanted, differentiate_row, label_of, read_row
from pathsum.kernels.numba.rows import softmax_statistics
from pathsum.kernels.numba.views import borrow
from pathsum.lattice import ArcLattice


def forward(
    joiner: Joiner, lattice: ArcLattice, wanted: Wanted, matmul: Matmul, *, rows_per_tile: int, num_threads: int
) -> np.ndarray:
    """Planes (K, rows) in float64, NaN in a row with an undefined score."""
    num_nodes = int(lattice.row_offsets[-1])
    num_threads = parallel.worthwhile(num_threads, num_nodes * sum(joiner.weight.shape) // 8)
    planes = np.empty((len(wanted.classes), num_nodes))
    tiles = Tiles(joiner, lattice, matmul, min(rows_per_tile, num_nodes), num_threads)

    for first in range(0, num_nodes, rows_per_tile):
        rows = np.arange(first, min(first + rows_per_tile, num_nodes))
        logits = tiles.logits(rows)

        def score(first_row: int, last_row: int, rows: np.ndarray = rows, logits: np.ndarray = logits) -> None:
            _score_rows(
                logits, rows, first_row, last_row, lattice.row_offsets, lattice.target_lengths, lattice.targets,
                lattice.first_frames, lattice.last_frames, wanted.classes, wanted.lone, planes,
            )  # fmt: skip

        parallel.run(score, parallel.split_evenly(len(rows), num_threads), num_threads)
    return planes


def backward(
    grad_planes: np.ndarray,
    upstream: np.ndarray,
    joiner: Joiner,
    lattice: ArcLattice,
    wanted: Wanted,
    matmul: Matmul,
    *,
    rows_per_tile: int,
    clamp: float,
    gate: float | None,
    num_threads: int,
) -> Joiner:
    """The gradients with respect to the operands; that of the logits is upstream[n] * clamp(that of the planes)."""
    gate = np.finfo(joiner.weight.dtype).eps / 2 if gate is None else gate
    alive = _alive_rows(upstream, np.abs(grad_planes).sum(0), lattice, gate)
    num_threads = parallel.worthwhile(num_threads, len(alive) * sum(joiner.weight.shape) // 4)
    tiles = GradientTiles(joiner, lattice, matmul, min(rows_per_tile, len(alive)), num_threads)

    for first in range(0, len(alive), rows_per_tile):
        rows = alive[first : first + rows_per_tile]
        logits = tiles.logits(rows)

        def differentiate(first_row: int, last_row: int, rows: np.ndarray = rows, logits: np.ndarray = logits) -> None:
            _differentiate_rows(
                logits, rows, first_row, last_row, lattice.row_offsets, lattice.target_lengths, lattice.targets,
                lattice.first_frames, lattice.last_frames, wanted.classes, wanted.lone, grad_planes, upstream, clamp,
            )  # fmt: skip

        parallel.run(differentiate, parallel.split_evenly(len(rows), num_threads), num_threads)
        tiles.add(rows, logits)
    return tiles.gradients


def _alive_rows(upstream: np.ndarray, mass: np.ndarray, lattice: ArcLattice, gate: float) -> np.ndarray:
    """The nodes whose gradient is computed; all of a sample that is not defined."""
    alive = np.zeros(len(mass), np.bool_)
    for n in np.flatnonzero(upstream != 0):
        nodes = slice(lattice.row_offsets[n], lattice.row_offsets[n + 1])
        shape = (int(lattice.logit_lengths[n]), int(lattice.target_lengths[n]) + 1)
        defined = np.isfinite(mass[nodes]).all()
        alive[nodes] = heavy_nodes(mass[nodes].reshape(shape), gate).ravel() if defined else True
    return np.flatnonzero(alive)


@kernel
def _score_rows(
    logits, rows, first, last, row_offsets, target_lengths, targets, first_frames, last_frames, classes, lone, planes
):  # fmt: skip
    logits, planes, targets = borrow(logits), borrow(planes), borrow(targets)
    first_frames, last_frames = borrow(first_frames), borrow(last_frames)
    scratch = np.empty(logits.shape[1], logits.dtype)
    n = 0
    for r in range(first, last):
        n, t, u = node_of(rows[r], n, row_offsets, target_lengths)
        label = label_of(t, u, target_lengths[n], targets[n], first_frames[n], last_frames[n])
        read_row(logits[r], label, classes, lone, True, scratch, planes, rows[r])


@kernel
def _differentiate_rows(
    logits, rows, first, last, row_offsets, target_lengths, targets, first_frames, last_frames, classes, lone,
    grad_planes, upstream, clamp,
):  # fmt: skip
    """Each row of logits replaced by its gradient."""
    logits, grad_planes, targets = borrow(logits), borrow(grad_planes), borrow(targets)
    first_frames, last_frames = borrow(first_frames), borrow(last_frames)
    # Rows of their own: written over what it is read from, a loop is not vectorised.
    gradient, scores = np.empty(logits.shape[1], logits.dtype), np.empty(logits.shape[1], logits.dtype)
    n = 0
    for r in range(first, last):
        n, t, u = node_of(rows[r], n, row_offsets, target_lengths)
        label = label_of(t, u, target_lengths[n], targets[n], first_frames[n], last_frames[n])
        scores[:] = logits[r]
        if lone >= 0:
            scores[lone] = -np.inf
        # Not forward's, as in ``joint``.
        maximum, total = softmax_statistics(scores)
        differentiate_row(
            logits[r], gradient, label, grad_planes, rows[r], classes, lone, True, maximum, total, scores,
            upstream[n], clamp,
        )  # fmt: skip
        logits[r] = gradient
