"""The compiled lattices of graphs on arrays: losses, their gradients, and how those move along tangents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pathsum.kernels.numba import sparse, sparse_hvp
from pathsum.kernels.protocol import SparseOptions, SparseSaved
from pathsum.lattice import SparseLattice
from pathsum.tensorflow._ops.host import aligned, empty, num_threads

_OPTIONS = SparseOptions(by_weights=True)


def forward(scores: np.ndarray, weights: np.ndarray, lattice: SparseLattice) -> list[np.ndarray]:
    """Losses (N,) of scores (N, T, C) and weights (W,), and what is kept for the derivatives."""
    numbers = _numbers(scores)
    table = weights.astype(np.float64)
    saved = sparse.forward(numbers, lattice, table, _OPTIONS, need_gradient=True, num_threads=num_threads())
    return [aligned(saved.losses, numbers.dtype), *saved]


def backward(
    upstream: np.ndarray, scores: np.ndarray, weights: np.ndarray, lattice: SparseLattice, kept: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """The gradients (N, T, C) and (W,) of the sum of upstream * losses."""
    saved, factors = SparseSaved(*kept), upstream.astype(np.float64)
    gradient = empty(scores.shape, _numbers(scores[:0]).dtype)
    sparse.write_gradient(factors, lattice, saved, gradient)
    return [_like(gradient, scores), aligned(sparse.weight_gradient(factors, lattice, saved.counts), weights.dtype)]


def hvp(
    tangents: Sequence[np.ndarray],
    upstream: np.ndarray,
    scores: np.ndarray,
    weights: np.ndarray,
    lattice: SparseLattice,
    kept: Sequence[np.ndarray],
) -> list[np.ndarray]:
    """The derivative of <tangents, gradients> with respect to the upstream gradient, to scores and to weights."""
    product = empty(scores.shape, _numbers(scores[:0]).dtype)
    slopes, of_weights = sparse_hvp.hvp(
        upstream.astype(np.float64),
        _numbers(tangents[0]),
        tangents[1].astype(np.float64),
        _numbers(scores),
        lattice,
        weights.astype(np.float64),
        SparseSaved(*kept),
        product,
        need_weights=True,
        num_threads=num_threads(),
    )
    return [aligned(slopes, upstream.dtype), _like(product, scores), aligned(of_weights, weights.dtype)]


def _numbers(scores: np.ndarray) -> np.ndarray:
    """The scores in the dtype of arithmetic; half precision is not one of NumPy's own."""
    return scores if scores.dtype in (np.float32, np.float64) else scores.astype(np.float32)


def _like(gradient: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return gradient if gradient.dtype == scores.dtype else aligned(gradient, scores.dtype)
