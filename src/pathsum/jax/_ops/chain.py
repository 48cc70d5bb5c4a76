"""The compiled chains as a foreign function: losses and, where there is room for it, their gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pathsum.jax._ops import ffi
from pathsum.jax._ops.arrays import encoded, in_one_batch, num_threads
from pathsum.kernels.numba import chain
from pathsum.kernels.numba.posing import NO_BOUND, pose
from pathsum.kernels.numba.rows import strided
from pathsum.kernels.numba.xla import CHAINS, PYTHON
from pathsum.lattice import Array
from pathsum.problems.crf import pose_crf
from pathsum.problems.ctc import pose_ctc
from pathsum.problems.simple_ctc import pose_simple_ctc

# Of these one poses a call. The compiled function knows the first two by their numbers.
PROBLEMS = pose_ctc, pose_simple_ctc, pose_crf
_NUM_COMPILED = 2


def forward(
    scores: Array,
    targets: Array,
    input_lengths: Array,
    target_lengths: Array,
    *,
    problem: int,
    blank: int,
    logits: bool,
    need_gradient: bool,
) -> list[Array]:
    """Losses (N,) of scores (N, T, C), and the gradient of each with respect to the scores."""
    dtype = jnp.float64 if scores.dtype == jnp.float64 else jnp.float32
    losses = jax.ShapeDtypeStruct(scores.shape[:1], dtype)
    results = [losses, jax.ShapeDtypeStruct(scores.shape, scores.dtype)] if need_gradient else [losses]
    compiled = CHAINS if scores.dtype == jnp.float32 and problem < _NUM_COMPILED else PYTHON
    integers = (array.astype(jnp.int32) for array in (targets, input_lengths, target_lengths))
    options = {"compiled": compiled, "problem": problem, "blank": blank, "logits": logits}
    return ffi.call("chain", results, "broadcast_all", scores, *integers, **options)


def _run(arguments: list[np.ndarray], results: list[np.ndarray], options: dict[str, float]) -> None:
    scores, encoding = encoded(in_one_batch(arguments[0], 3))
    _, num_frames, num_classes = scores.shape
    targets, *lengths = (in_one_batch(array, rank) for array, rank in zip(arguments[1:], (2, 1, 1), strict=True))
    sizes = (num_frames, NO_BOUND, num_classes, int(options["blank"]))
    lattice = pose(PROBLEMS[int(options["problem"])], targets, lengths[0], lengths[1], *sizes)
    logits, need_gradient = bool(options["logits"]), len(results) > 1
    rows, threads = strided(scores, encoding), num_threads()
    saved = chain.forward(
        rows,
        num_classes,
        lattice,
        logits=logits,
        need_gradient=need_gradient,
        num_threads=threads,
    )
    in_one_batch(results[0], 1)[:] = saved.losses
    if need_gradient:
        chain.backward(
            np.ones(len(saved.losses)),
            rows,
            num_classes,
            lattice,
            saved,
            strided(*encoded(in_one_batch(results[1], 3))),
            num_frames,
            logits=logits,
            num_threads=threads,
        )


ffi.register("chain", _run, "problem", "blank", "logits")
