"""The compiled kernels of both lattices of ASG as one foreign function: their difference is taken in float64."""

from __future__ import annotations

import jax
import numpy as np

from pathsum.jax._ops import ffi
from pathsum.jax._ops.arrays import num_threads
from pathsum.kernels.numba import chain, dense
from pathsum.kernels.numba.posing import NO_BOUND, NO_CLASS, pose
from pathsum.kernels.numba.rows import Strided, strided
from pathsum.kernels.protocol import ChainSaved, DenseSaved
from pathsum.lattice import Array, ChainLattice, DenseLattice
from pathsum.problems.asg import pose_asg


def forward(
    scores: Array,
    transitions: Array,
    targets: Array,
    input_lengths: Array,
    target_lengths: Array,
    *,
    need_gradient: bool,
) -> list[Array]:
    """Losses (N,) of scores (N, T, C) and transitions (C, C), and the gradients of each, (N, T, C) and (N, C, C)."""
    num_samples, _, num_classes = scores.shape
    results = [jax.ShapeDtypeStruct((num_samples,), scores.dtype)]
    if need_gradient:
        results.append(jax.ShapeDtypeStruct(scores.shape, scores.dtype))
        results.append(jax.ShapeDtypeStruct((num_samples, num_classes, num_classes), scores.dtype))
    # One table of transitions a call: samples that vmap batches may each have their own.
    return ffi.call(
        "asg",
        results,
        "sequential",
        scores,
        transitions,
        targets,
        input_lengths,
        target_lengths,
    )


def _run(arguments: list[np.ndarray], results: list[np.ndarray], _: dict[str, float]) -> None:
    scores, transitions, targets, input_lengths, target_lengths = arguments
    sizes = (scores.shape[1], NO_BOUND, scores.shape[2], NO_CLASS)
    every, target = pose(pose_asg, targets, input_lengths, target_lengths, *sizes)
    rows, num_classes = strided(scores), scores.shape[2]
    need_gradient = len(results) > 1
    options = {"need_gradient": need_gradient, "num_threads": num_threads()}
    all_paths = dense.forward(rows, num_classes, every, transitions, relative=True, **options)
    target_paths = chain.forward(rows, num_classes, target, transitions, logits=False, relative=True, **options)
    with np.errstate(invalid="ignore"):
        # Where no path spells the target there may be none at all, and infinities must not meet.
        difference = target_paths.losses - all_paths.losses
    infeasible = (target_paths.losses == np.inf) & ~np.isnan(all_paths.losses)
    results[0][:] = np.where(infeasible, np.inf, difference)
    if need_gradient:
        upstream = np.where(results[0] == np.inf, 0.0, 1.0)
        _write_gradient(upstream, rows, every, target, all_paths, target_paths, results[1])
        for n, own in enumerate(results[2]):
            alone = np.where(np.arange(len(upstream)) == n, upstream, 0.0)
            own[:] = chain.transition_gradient(alone, num_classes, target, target_paths) - dense.transition_gradient(
                alone, rows, num_classes, every, transitions, all_paths, num_threads=num_threads()
            )


def _write_gradient(
    upstream: np.ndarray,
    scores: Strided,
    every: DenseLattice,
    target: ChainLattice,
    all_paths: DenseSaved,
    target_paths: ChainSaved,
    out: np.ndarray,
) -> None:
    _, num_frames, num_classes = out.shape
    chain.backward(
        upstream,
        scores,
        num_classes,
        target,
        target_paths,
        strided(out),
        num_frames,
        logits=False,
        num_threads=num_threads(),
    )
    other = np.empty_like(out)
    dense.backward(upstream, num_classes, every, all_paths, strided(other), num_frames, num_threads=num_threads())
    out -= other


ffi.register("asg", _run)
