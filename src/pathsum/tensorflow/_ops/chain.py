"""The compiled chains on arrays: losses, their gradient, and how it moves along a tangent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pathsum.kernels.numba import chain
from pathsum.kernels.numba import chain_hvp as of_chain
from pathsum.kernels.numba.rows import strided, work_dtype
from pathsum.kernels.protocol import ChainSaved
from pathsum.lattice import ChainLattice
from pathsum.tensorflow._ops.host import aligned, empty, encoded, num_threads


def forward(scores: np.ndarray, lattice: ChainLattice, *, logits: bool) -> list[np.ndarray]:
    """Losses (N,) of scores (N, T, C), and what is kept for the derivatives."""
    rows = strided(*encoded(scores))
    saved = chain.forward(rows, scores.shape[2], lattice, logits=logits, need_gradient=True, num_threads=num_threads())
    return [aligned(saved.losses, work_dtype(rows.flat)), saved.losses, saved.maxima, saved.sums, *saved.posteriors]


def backward(
    upstream: np.ndarray, scores: np.ndarray, lattice: ChainLattice, kept: Sequence[np.ndarray], *, logits: bool
) -> list[np.ndarray]:
    """The gradient (N, T, C) of the sum of upstream * losses."""
    gradient = empty(scores.shape, scores.dtype)
    chain.backward(
        upstream.astype(np.float64),
        strided(*encoded(scores)),
        scores.shape[2],
        lattice,
        _saved(kept),
        strided(*encoded(gradient)),
        scores.shape[1],
        logits=logits,
        num_threads=num_threads(),
    )
    return [gradient]


def hvp(
    tangent: np.ndarray,
    upstream: np.ndarray,
    scores: np.ndarray,
    lattice: ChainLattice,
    kept: Sequence[np.ndarray],
    *,
    logits: bool,
) -> list[np.ndarray]:
    """The derivative of <tangent, gradient> with respect to the upstream gradient and to the scores."""
    product = empty(scores.shape, scores.dtype)
    slopes, _ = of_chain.hvp(
        upstream.astype(np.float64),
        strided(*encoded(tangent)),
        None,
        strided(*encoded(scores)),
        scores.shape[2],
        lattice,
        None,
        _saved(kept),
        strided(*encoded(product)),
        scores.shape[1],
        logits=logits,
        num_threads=num_threads(),
    )
    return [aligned(slopes, upstream.dtype), product]


def _saved(kept: Sequence[np.ndarray]) -> ChainSaved:
    return ChainSaved(*kept)
