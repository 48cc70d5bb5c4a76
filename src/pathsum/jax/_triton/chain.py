"""Chains by the Triton kernels: losses and, where it is asked for, their gradient."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from pathsum.jax._triton.launching import Plane, Updated, Written, launch, rounded
from pathsum.kernels.jax.rows import work_dtype
from pathsum.kernels.triton import chain, chain_gradient, plan
from pathsum.kernels.triton.compilation import float_of
from pathsum.lattice import Array, ChainLattice


def forward(
    scores: Array, lattice: ChainLattice, *, logits: bool, need_gradient: bool
) -> tuple[Array, tuple[Array, ...]]:
    """Losses (N,) of scores (N, T, C), none of whose sizes is 0, and the gradient of each with respect to its scores.

    The lattice has no transitions.
    """
    shape, work, shared = scores.shape, work_dtype(scores), lattice.shared_labels
    num_samples, num_frames, _ = shape
    num_rows, width = num_samples * num_frames, lattice.step_labels.shape[1]
    lengths, labels = (lattice.input_lengths, lattice.num_states), (lattice.stay_labels, lattice.step_labels)
    rows, block = plan.tiles(shape[2], work.itemsize)
    constants: dict[str, Any] = {
        "LOGITS": logits, "WORK": float_of(work.itemsize), "ROWS": rows, "BLOCK": block,
        "ALIGNED": plan.aligned(shape[2], scores.dtype.itemsize),
    }  # fmt: skip
    frames, states = Written((num_rows,), work), Written((num_rows, width), work)
    # What a constant rules out is not there.
    found = launch(
        chain.score_rows, (plan.programs(num_rows, rows),),
        scores, *_strides(shape), *shape, *lengths, *labels, width, width, frames,
        Written((num_rows,)) if logits else None, Written((num_rows,), jnp.int32) if logits else None,
        None if shared else states, states, Written((num_samples,), jnp.int32, zeroed=True), SHARED=shared,
        RELATIVE=False, **constants,
    )  # fmt: skip
    maxima, *statistics, step, extents = found if shared else (*found[:-3], *found[-2:])
    stay = step if shared else found[-3]
    sums, powers = statistics if logits else (None, None)

    # Skips, and transitions that are not there.
    arcs, fixed = (lattice.skips, None, None, None), work == jnp.float64
    beta = Written((num_rows, width) if need_gradient else (1, 1), "int64")
    alpha, beta, losses = launch(
        chain.solve, (num_samples, 2 if need_gradient else 1),
        stay, step, maxima, sums, powers, extents, *lengths, *arcs, None, num_frames, width, width,
        lattice.start_state, lattice.num_final, Written((num_rows, width)), beta, Written((num_samples,), work),
        LOGITS=logits, SHARED=shared, FIXED=fixed, TRANSITIONS=False, STRIPS=width > plan.STRIP,
        **plan.recursion(width),
    )  # fmt: skip
    if not need_gradient:
        return losses, ()
    rows, columns = plan.tiles(width, 8)
    posteriors = launch(
        chain.find_posteriors, (plan.programs(num_rows, rows), 1 if fixed else 2),
        None if shared else Updated(stay), Updated(step), extents, losses, *lengths, *arcs, alpha, beta, num_samples,
        num_frames, width, width, lattice.start_state, SHARED=shared, TRANSITIONS=False, ROWS=rows, BLOCK=columns,
        FIXED=fixed,
    )  # fmt: skip
    sums = rounded(sums, work) if isinstance(sums, Plane) else None
    saved = losses, maxima if logits else None, sums
    return losses, (_gradient(scores, lattice, saved, (posteriors[0], posteriors[-1]), constants),)


def _gradient(
    scores: Array,
    lattice: ChainLattice,
    saved: tuple[Array, Array | None, Array | None],
    posteriors: tuple[Array, Array],
    constants: dict[str, Any],
) -> Array:
    """``saved``: the losses, and of logits the maxima and sums of rows."""
    shape, strides = scores.shape, _strides(scores.shape)
    num_samples, num_rows, width = shape[0], shape[0] * shape[1], lattice.step_labels.shape[1]
    upstream = jnp.ones(num_samples, saved[0].dtype)
    read = (upstream, scores, *strides, *shape, lattice.input_lengths, *saved)
    (gradient,) = launch(
        chain_gradient.write_gradient, (plan.programs(num_rows, constants["ROWS"]),),
        *read, Written(shape, scores.dtype), *strides, **constants,
    )  # fmt: skip
    count = width if lattice.shared_labels else 2 * width
    listed = Written((num_samples, count), jnp.int32)
    classes, owners = launch(
        chain_gradient.sort_entries, (num_samples, plan.programs(count, 32)),
        lattice.num_states, lattice.stay_labels, lattice.step_labels, shape[2], width, count, listed, listed, BLOCK=32,
    )  # fmt: skip
    entries = plan.entries(count)
    (gradient,) = launch(
        chain_gradient.write_entries, (plan.programs(num_rows, entries["ROWS"]),),
        *read, *posteriors, classes, owners, count, width, Updated(gradient), *strides, LOGITS=constants["LOGITS"],
        WORK=constants["WORK"], **entries,
    )  # fmt: skip
    return gradient


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1] * shape[2], shape[2], 1
