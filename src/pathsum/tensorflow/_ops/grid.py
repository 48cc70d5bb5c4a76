"""The compiled grids on arrays: losses, their gradient, and how it moves along a tangent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pathsum.kernels.numba import grid
from pathsum.kernels.numba import grid_hvp as of_grid
from pathsum.kernels.numba.rows import strided
from pathsum.kernels.protocol import GridSaved
from pathsum.lattice import GridLattice
from pathsum.tensorflow._ops.host import aligned, empty, encoded, num_threads


def forward(scores: np.ndarray, lattice: GridLattice, *, logits: bool) -> list[np.ndarray]:
    """Losses (N,) of scores (N, T, U+1, V), and what is kept for the derivatives."""
    saved = grid.forward(
        _rows(scores), scores.shape[3], lattice, logits=logits, need_gradient=True, num_threads=num_threads()
    )
    dtype = np.float64 if scores.dtype == np.float64 else np.float32
    return [aligned(saved.losses, dtype), saved.losses, saved.maxima, saved.sums, *saved.posteriors]


def backward(
    upstream: np.ndarray,
    scores: np.ndarray,
    lattice: GridLattice,
    kept: Sequence[np.ndarray],
    *,
    logits: bool,
    fastemit_lambda: float,
    clamp: float,
) -> list[np.ndarray]:
    """The gradient (N, T, U+1, V) of the sum of upstream * losses."""
    gradient = empty(scores.shape, scores.dtype)
    grid.backward(
        upstream.astype(np.float64),
        _rows(scores),
        scores.shape[3],
        lattice,
        _saved(kept),
        _rows(gradient),
        logits=logits,
        fastemit_lambda=fastemit_lambda,
        clamp=clamp,
        num_threads=num_threads(),
    )
    return [gradient]


def hvp(
    tangent: np.ndarray,
    upstream: np.ndarray,
    scores: np.ndarray,
    lattice: GridLattice,
    kept: Sequence[np.ndarray],
    *,
    logits: bool,
) -> list[np.ndarray]:
    """The derivative of <tangent, gradient> with respect to the upstream gradient and to the scores."""
    product = empty(scores.shape, scores.dtype)
    slopes = of_grid.hvp(
        _rows(tangent),
        upstream.astype(np.float64),
        _rows(scores),
        scores.shape[3],
        lattice,
        _saved(kept),
        _rows(product),
        logits=logits,
        num_threads=num_threads(),
    )
    return [aligned(slopes, upstream.dtype), product]


def _rows(scores: np.ndarray) -> grid.GridRows:
    return grid.padded_rows(strided(*encoded(scores)), scores.shape)


def _saved(kept: Sequence[np.ndarray]) -> GridSaved:
    return GridSaved(*kept)
