"""The compiled grids as a foreign function: losses and, where there is room for it, their gradient."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pathsum.jax._ops import ffi
from pathsum.jax._ops.arrays import encoded, in_one_batch, integers, num_threads
from pathsum.kernels.numba import grid
from pathsum.kernels.numba.rows import strided
from pathsum.lattice import Array, GridLattice
from pathsum.problems.rnnt import pose_rnnt

_TARGET = "pathsum_grid"


def forward(
    scores: Array,
    lattice: GridLattice,
    *,
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
        _TARGET,
        results,
        "broadcast_all",
        scores,
        lattice.targets,
        lattice.logit_lengths,
        lattice.target_lengths,
        blank=np.int32(lattice.blank),
        logits=np.int32(logits),
        fastemit_lambda=np.float64(fastemit_lambda),
        clamp=np.float64(clamp),
    )


def _run(arguments: list[np.ndarray], results: list[np.ndarray], attributes: dict[str, Any]) -> None:
    rows = _rows(arguments[0])
    num_classes = arguments[0].shape[-1]
    # Posed again: the first rows of the samples count from the first sample of the batch that has come here.
    lattice = pose_rnnt(
        integers(arguments[1], 2), integers(arguments[2], 1), integers(arguments[3], 1), int(attributes["blank"])
    )
    logits, need_gradient = bool(attributes["logits"]), len(results) > 1
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
            fastemit_lambda=attributes["fastemit_lambda"],
            clamp=attributes["clamp"],
            num_threads=num_threads(),
        )


def _rows(scores: np.ndarray) -> grid.GridRows:
    scores = in_one_batch(scores, 4)
    return grid.padded_rows(strided(*encoded(scores)), scores.shape)


ffi.register(_TARGET, _run)
