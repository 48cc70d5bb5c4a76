"""The compiled kernels of both lattices of ASG on arrays: their difference is taken in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pathsum.kernels.numba import chain, dense
from pathsum.kernels.numba import chain_hvp as of_chain
from pathsum.kernels.numba import dense_hvp as of_dense
from pathsum.kernels.numba.rows import Strided, strided, work_dtype
from pathsum.kernels.protocol import ChainSaved, DenseSaved
from pathsum.lattice import ChainLattice, DenseLattice
from pathsum.tensorflow._ops.host import aligned, empty, num_threads

Posed = tuple[DenseLattice, ChainLattice]


def forward(scores: np.ndarray, transitions: np.ndarray, posed: Posed) -> list[np.ndarray]:
    """Losses (N,) of scores (N, T, C) and transitions (C, C) of one dtype, and what is kept for the derivatives."""
    every, target = posed
    rows, num_classes = strided(scores), scores.shape[2]
    options = {"need_gradient": True, "num_threads": num_threads()}
    all_paths = dense.forward(rows, num_classes, every, transitions, relative=True, **options)
    target_paths = chain.forward(rows, num_classes, target, transitions, logits=False, relative=True, **options)
    losses = _difference(target_paths, all_paths)
    found = target_paths.losses, target_paths.maxima, target_paths.sums, *target_paths.posteriors
    return [aligned(losses, work_dtype(rows.flat)), *all_paths, *found]


def backward(
    upstream: np.ndarray, scores: np.ndarray, transitions: np.ndarray, posed: Posed, kept: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """The gradients (N, T, C) and (C, C) of the sum of upstream * losses."""
    every, target = posed
    all_paths, target_paths = _saved(kept)
    upstream = _of_feasible(upstream, target_paths, all_paths)
    rows, (_, num_frames, num_classes) = strided(scores), scores.shape
    parts = empty(scores.shape, scores.dtype), np.empty_like(scores)
    chain.backward(
        upstream, rows, num_classes, target, target_paths, strided(parts[0]), num_frames,
        logits=False, num_threads=num_threads(),
    )  # fmt: skip
    dense.backward(upstream, num_classes, every, all_paths, strided(parts[1]), num_frames, num_threads=num_threads())
    _subtract(*parts)
    counts = chain.transition_gradient(upstream, num_classes, target, target_paths)
    counts -= _every_transition(upstream, rows, transitions, every, all_paths)
    return [parts[0], aligned(counts, transitions.dtype)]


def hvp(
    tangent: np.ndarray,
    transition_tangent: np.ndarray,
    upstream: np.ndarray,
    scores: np.ndarray,
    transitions: np.ndarray,
    posed: Posed,
    kept: Sequence[np.ndarray],
) -> list[np.ndarray]:
    """The derivative of <tangents, gradients> with respect to the upstream gradient, the scores and the transitions."""
    every, target = posed
    all_paths, target_paths = _saved(kept)
    weights = _of_feasible(upstream, target_paths, all_paths)
    rows, (_, num_frames, num_classes) = strided(scores), scores.shape
    parts = empty(scores.shape, scores.dtype), np.empty_like(scores)
    by_target = of_chain.hvp(
        weights, strided(tangent), transition_tangent, rows, num_classes, target, transitions, target_paths,
        strided(parts[0]), num_frames, logits=False, num_threads=num_threads(),
    )  # fmt: skip
    by_all = of_dense.hvp(
        weights, strided(tangent), transition_tangent, rows, num_classes, every, transitions, all_paths,
        _every_transition(weights, rows, transitions, every, all_paths), strided(parts[1]), num_frames,
        need_transitions=True, num_threads=num_threads(),
    )  # fmt: skip
    _subtract(*parts)
    slopes = np.where(_difference(target_paths, all_paths) == np.inf, 0.0, by_target.slopes - by_all.slopes)
    products = aligned(by_target.transitions - by_all.transitions, transitions.dtype)
    return [aligned(slopes, upstream.dtype), parts[0], products]


def _difference(target_paths: ChainSaved, all_paths: DenseSaved) -> np.ndarray:
    """Losses (N,): infinite where no path spells the target, NaN where a score is undefined, whichever else holds."""
    with np.errstate(invalid="ignore"):
        # Where no path spells the target there may be none at all, and infinities must not meet.
        difference = target_paths.losses - all_paths.losses
    return np.where((target_paths.losses == np.inf) & ~np.isnan(all_paths.losses), np.inf, difference)


def _of_feasible(upstream: np.ndarray, target_paths: ChainSaved, all_paths: DenseSaved) -> np.ndarray:
    return np.where(_difference(target_paths, all_paths) == np.inf, 0.0, upstream.astype(np.float64))


def _subtract(total: np.ndarray, part: np.ndarray) -> None:
    with np.errstate(invalid="ignore"):  # NaN in a sample that has one among its scores
        total -= part


def _every_transition(
    upstream: np.ndarray, rows: Strided, transitions: np.ndarray, every: DenseLattice, all_paths: DenseSaved
) -> np.ndarray:
    num_classes = len(transitions)
    return dense.transition_gradient(
        upstream, rows, num_classes, every, transitions, all_paths, num_threads=num_threads()
    )


def _saved(kept: Sequence[np.ndarray]) -> tuple[DenseSaved, ChainSaved]:
    return DenseSaved(*kept[:5]), ChainSaved(*kept[5:])
