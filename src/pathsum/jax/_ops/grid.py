"""The compiled grids as a foreign function: losses and, where there is room for it, their gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pathsum.jax._ops import ffi
from pathsum.jax._ops.arrays import encoded, in_one_batch, num_threads
from pathsum.kernels.numba import grid
from pathsum.kernels.numba.posing import pose
from pathsum.kernels.numba.rows import strided
from pathsum.kernels.numba.xla import GRIDS, PYTHON
from pathsum.lattice import Array
from pathsum.problems.rnnt import pose_rnnt


def forward(
    scores: Array,
    targets: Array,
    logit_lengths: Array,
    target_lengths: Array,
    *,
    blank: int,
    logits: bool,
    fastemit_lambda: float,
    clamp: float,
    need_gradient: bool,
) -> list[Array]:
    """Losses (N,) of scores (N, T, U+1, V), and the gradient of each with respect to the scores."""
    dtype = jnp.float64 if scores.dtype == jnp.float64 else jnp.float32
    losses = jax.ShapeDtypeStruct(scores.shape[:1], dtype)
    results = [losses, jax.ShapeDtypeStruct(scores.shape, scores.dtype)] if need_gradient else [losses]
    return ffi.call(
        "grid",
        results,
        "broadcast_all",
        scores,
        *(array.astype(jnp.int32) for array in (targets, logit_lengths, target_lengths)),
        compiled=GRIDS if scores.dtype == jnp.float32 else PYTHON,
        blank=blank,
        logits=logits,
        fastemit_lambda=fastemit_lambda,
        clamp=clamp,
    )


def _run(arguments: list[np.ndarray], results: list[np.ndarray], options: dict[str, float]) -> None:
    rows = _rows(arguments[0])
    num_frames, num_rows, num_classes = arguments[0].shape[-3:]
    targets, *lengths = (in_one_batch(array, rank) for array, rank in zip(arguments[1:], (2, 1, 1), strict=True))
    sizes = (num_frames, num_rows - 1, num_classes, int(options["blank"]))
    lattice = pose(pose_rnnt, targets, lengths[0], lengths[1], *sizes)
    logits, need_gradient = bool(options["logits"]), len(results) > 1
    saved = grid.forward(
        rows, num_classes, lattice, logits=logits, need_gradient=need_gradient, num_threads=num_threads()
    )
    in_one_batch(results[0], 1)[:] = saved.losses
    if need_gradient:
        grid.backward(
            np.ones(len(saved.losses)),
            rows,
            num_classes,
            lattice,
            saved,
            _rows(results[1]),
            logits=logits,
            fastemit_lambda=options["fastemit_lambda"],
            clamp=options["clamp"],
            num_threads=num_threads(),
        )


def _rows(scores: np.ndarray) -> grid.GridRows:
    scores = in_one_batch(scores, 4)
    return grid.padded_rows(strided(*encoded(scores)), scores.shape)


ffi.register("grid", _run, "blank", "logits", "fastemit_lambda", "clamp")
