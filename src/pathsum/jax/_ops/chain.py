"""The compiled chains as a foreign function: losses and, where there is room for it, their gradient."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pathsum.jax._ops import ffi
from pathsum.jax._ops.arrays import encoded, in_one_batch, integers, num_threads
from pathsum.kernels.numba import chain
from pathsum.kernels.numba.rows import strided
from pathsum.lattice import Array, ChainLattice

_TARGET = "pathsum_chain"


def forward(scores: Array, lattice: ChainLattice, *, logits: bool, need_gradient: bool) -> list[Array]:
    """Losses (N,) of scores (N, T, C), and the gradient of each with respect to the scores."""
    dtype = jnp.float64 if scores.dtype == jnp.float64 else jnp.float32
    losses = jax.ShapeDtypeStruct(scores.shape[:1], dtype)
    results = [losses, jax.ShapeDtypeStruct(scores.shape, scores.dtype)] if need_gradient else [losses]
    return ffi.call(
        _TARGET,
        results,
        "broadcast_all",
        scores,
        lattice.input_lengths,
        lattice.num_states,
        lattice.stay_labels,
        lattice.step_labels,
        lattice.skips,
        start_state=np.int32(lattice.start_state),
        num_final=np.int32(lattice.num_final),
        shared_labels=np.int32(lattice.shared_labels),
        logits=np.int32(logits),
    )


def _run(arguments: list[np.ndarray], results: list[np.ndarray], attributes: dict[str, Any]) -> None:
    scores, encoding = encoded(in_one_batch(arguments[0], 3))
    step_labels = integers(arguments[4], 2)
    lattice = ChainLattice(
        input_lengths=integers(arguments[1], 1),
        num_states=integers(arguments[2], 1),
        stay_labels=step_labels if attributes["shared_labels"] else integers(arguments[3], 2),
        step_labels=step_labels,
        skips=in_one_batch(arguments[5], 2),
        start_state=attributes["start_state"],
        num_final=attributes["num_final"],
        shared_labels=bool(attributes["shared_labels"]),
    )
    logits, need_gradient = bool(attributes["logits"]), len(results) > 1
    num_classes = scores.shape[2]
    saved = chain.forward(
        strided(scores, encoding),
        num_classes,
        lattice,
        logits=logits,
        need_gradient=need_gradient,
        num_threads=num_threads(),
    )
    in_one_batch(results[0], 1)[:] = saved.losses
    if need_gradient:
        chain.backward(
            np.ones(len(saved.losses)),
            strided(scores, encoding),
            num_classes,
            lattice,
            saved,
            strided(*encoded(in_one_batch(results[1], 3))),
            scores.shape[1],
            logits=logits,
            num_threads=num_threads(),
        )


ffi.register(_TARGET, _run)
