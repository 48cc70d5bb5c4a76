"""Grids by the Triton kernels: losses and, where it is asked for, their gradient."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from pathsum.jax._triton.launching import Plane, Updated, Written, launch, widened
from pathsum.kernels.jax.rows import huge, work_dtype
from pathsum.kernels.triton import grid, plan
from pathsum.kernels.triton.compilation import float_of
from pathsum.lattice import Array, GridLattice


def forward(
    scores: Array,
    lattice: GridLattice,
    *,
    logits: bool,
    fastemit_lambda: float,
    clamp: float,
    need_gradient: bool,
) -> tuple[Array, tuple[Array, ...]]:
    """Losses (N,) of scores (N, T, U+1, V), none of whose sizes is 0, and the gradient of each with respect to its
    scores.
    """
    shape, work = scores.shape, work_dtype(scores)
    num_samples, num_frames, width, num_classes = shape
    num_rows, longest = num_samples * num_frames * width, lattice.targets.shape[1]
    # Rows are padded: there are no offsets.
    lengths, sizes = (lattice.logit_lengths, lattice.target_lengths), (num_samples, num_frames, width - 1)
    strides = num_frames * width * num_classes, width * num_classes, num_classes, 1
    read = (
        scores, *strides, num_rows, *lengths, lattice.targets, None, *sizes, longest, num_classes, lattice.blank,
    )  # fmt: skip
    rows, block = plan.row_tiles(num_classes, work.itemsize)
    constants: dict[str, Any] = {
        "LOGITS": logits, "PACKED": False, "WORK": float_of(work.itemsize), "ROWS": rows, "BLOCK": block,
        **plan.layout(num_classes, scores.dtype.itemsize),
    }  # fmt: skip
    each, offset = plan.programs(num_rows, rows), None
    if logits:
        of_rows = Written((num_rows,), work)
        maxima, sums, blanks, labels, undefined = launch(
            grid.score_rows, (each,),
            *read, of_rows, of_rows, Written((num_rows,)), Written((num_rows,)),
            Written((num_samples,), jnp.int32, zeroed=True), **constants,
        )  # fmt: skip
    else:
        maxima, sums = None, None
        blanks, labels, undefined, offset = _planes(scores, lattice)

    beta = Written((num_rows if need_gradient else 1,))
    alpha, beta, losses, totals = launch(
        grid.solve, (num_samples, 2 if need_gradient else 1),
        # Paths of a softmax share a probability of 1: what rounding has left below 0 is 0.
        blanks, labels, *lengths, None, *sizes[1:], undefined, 0.0 if logits else -jnp.inf, Written((num_rows,)), beta,
        Written((num_samples,), work), Written((num_samples,)), PACKED=False,
        **plan.recursion(min(width, longest + 1)),
    )  # fmt: skip
    told = losses if offset is None else losses - offset
    if not need_gradient:
        return told, ()
    blanks, labels = launch(
        grid.find_posteriors, (plan.programs(num_rows, plan.NODES),),
        Updated(blanks), Updated(labels), alpha, beta, losses, totals, num_rows, *lengths, None, *sizes, PACKED=False,
        ROWS=plan.NODES,
    )  # fmt: skip
    (gradient,) = launch(
        grid.write_gradient, (each,),
        jnp.ones(num_samples, work), *read, losses, maxima, sums, blanks, labels, float(fastemit_lambda), float(clamp),
        Written(shape, scores.dtype), *strides, **constants,
    )  # fmt: skip
    return told, (gradient,)


def _planes(scores: Array, lattice: GridLattice) -> tuple[Plane, Plane, Array, Array]:
    """Blank and label scores of log-probabilities, which samples have an undefined one, and what was taken off the
    scores of all their paths.
    """
    frames, labels = jnp.arange(scores.shape[1]), jnp.arange(scores.shape[2])
    real = frames[:, None] < lattice.logit_lengths[:, None, None]
    real &= labels <= lattice.target_lengths[:, None, None]
    used = real & (labels < lattice.target_lengths[:, None])[:, None]
    missing = max(0, scores.shape[2] - lattice.targets.shape[1])
    targets = jnp.pad(lattice.targets, ((0, 0), (0, missing)), constant_values=lattice.blank)[:, : scores.shape[2]]
    work = work_dtype(scores)
    by_blank = jnp.where(real, scores[..., lattice.blank].astype(work), -jnp.inf)
    found = jnp.take_along_axis(scores, targets[:, None, :, None], 3)[..., 0]
    by_label = jnp.where(used, found.astype(work), -jnp.inf)
    undefined = ~((by_blank < jnp.inf) & (by_label < jnp.inf)).all((1, 2))
    # What all paths have in common, a blank of each frame and every label, where it is huge.
    of_blanks, of_labels = huge(by_blank.max(2, keepdims=True)), huge(by_label.max(1, keepdims=True))
    planes = [widened((own - common).reshape(-1)) for own, common in ((by_blank, of_blanks), (by_label, of_labels))]
    return planes[0], planes[1], undefined.astype(jnp.int32), of_blanks.sum((1, 2)) + of_labels.sum((1, 2))
