"""Losses with their derivatives: forward and reverse, to any order, under every transformation.

The derivative of a loss is the inner product of its gradient, computed beside it, with the change of the scores: JAX
turns that around for reverse mode. The gradient's own derivative is that of JAX's implementation, whose operations are
all differentiable; the compiled kernels have the first derivative alone.
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pathsum.errors import NotDifferentiableError
from pathsum.jax._ops import ffi
from pathsum.jax._solvers import Integers, Scores, Solver
from pathsum.jax._triton.installed import missing
from pathsum.kernels.jax.rows import work_dtype
from pathsum.lattice import Array


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def losses(solver: Solver, scores: Scores, integers: Integers) -> Array:
    """Losses (N,) in the dtype of arithmetic."""
    if solver.impl == "jax":
        return solver.by_jax(scores, integers)[0]
    return _on_platform(solver, False, scores, integers)[0]


@losses.defjvp
def _(solver: Solver, primals: Any, tangents: Any) -> tuple[Array, Array]:
    values, gradients = _with_gradients(solver, *primals)
    own = [mask & _feasible(values, mask.ndim) for mask in solver.own(*primals)]
    changes = jnp.stack([_inner(*parts) for parts in zip(gradients, tangents[0], own, strict=True)])
    return values, changes.sum(0).astype(values.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_gradients(solver: Solver, scores: Scores, integers: Integers) -> tuple[Array, Scores]:
    if solver.impl == "jax":
        return solver.by_jax(scores, integers)
    return _on_platform(solver, True, scores, integers)


@_with_gradients.defjvp
def _(solver: Solver, primals: Any, tangents: Any) -> tuple[Any, Any]:
    if solver.reweighted:
        raise NotDifferentiableError(
            "the gradient of a loss with fastemit_lambda or clamp is re-weighted: it is not the gradient of anything, "
            "and has no derivative"
        )
    scores, integers = primals
    values, changes = jax.jvp(lambda scores: solver.by_jax(scores, integers), (scores,), (tangents[0],))
    return values if solver.impl == "jax" else _with_gradients(solver, scores, integers), changes


def _on_platform(solver: Solver, need_gradient: bool, scores: Scores, integers: Integers) -> tuple[Array, Scores]:
    """Kernels where the program is compiled for a device that has them; elsewhere JAX's, unless they are ruled out."""

    def plain(scores: Scores, integers: Integers) -> tuple[Array, Scores]:
        losses, gradients = solver.by_jax(scores, integers)
        return losses, gradients if need_gradient else ()

    kernels: dict[str, Any] = {}
    if solver.impl == "numba" or (solver.impl == "auto" and ffi.supported()):
        kernels["cpu"] = partial(solver.by_numba, need_gradient=need_gradient)
    if solver.impl == "triton" or (solver.impl == "auto" and solver.in_triton and missing() is None):
        launches = importlib.import_module("pathsum.jax._triton.launching")
        kernels["cuda"] = launches.in_one_batch(partial(solver.by_triton, need_gradient=need_gradient))
    return lax.platform_dependent(scores, integers, **kernels, default=plain if solver.impl == "auto" else None)


def _feasible(losses: Array, rank: int) -> Array:
    """(N, 1, ..., 1) whether a sample has a gradient at all."""
    return (losses != jnp.inf).reshape(-1, *[1] * (rank - 1))


def _inner(gradient: Array, change: Array, own: Array) -> Array:
    """(N,) inner products; what is no part of a sample's loss has no part here either, infinite or NaN as it may be.

    That is told by its place. A gradient that is 0 may have a derivative.
    """
    work = work_dtype(gradient)
    products = gradient.astype(work) * change.astype(work)
    return jnp.where(own, products, 0).sum(tuple(range(1, gradient.ndim)))
