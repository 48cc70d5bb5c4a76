"""Losses with their derivatives: forward and reverse, to any order, under every transformation.

The derivative of a loss is the inner product of its gradient, computed beside it, with the change of the scores: JAX
turns that around for reverse mode. The gradient's own derivative is that of JAX's implementation, whose operations are
all differentiable; the compiled kernels have the first derivative alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pathsum.errors import NotDifferentiableError
from pathsum.jax._solvers import Integers, Scores, Solver
from pathsum.kernels.jax.rows import work_dtype
from pathsum.lattice import Array


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def losses(solver: Solver, scores: Scores, integers: Integers) -> Array:
    """Losses (N,) in the dtype of arithmetic."""
    if solver.impl == "jax":
        return solver.by_jax(scores, integers)[0]
    compiled = partial(_losses_by_numba, solver)
    return _on_platform(solver, compiled, lambda *arguments: solver.by_jax(*arguments)[0], scores, integers)


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
    compiled = partial(solver.by_numba, need_gradient=True)
    return _on_platform(solver, compiled, solver.by_jax, scores, integers)


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


def _losses_by_numba(solver: Solver, scores: Scores, integers: Integers) -> Array:
    return solver.by_numba(scores, integers, need_gradient=False)[0]


def _on_platform(solver: Solver, compiled: Any, plain: Any, scores: Scores, integers: Integers) -> Any:
    """The compiled kernels where the program is compiled for the CPU; elsewhere JAX's, unless they are ruled out."""
    if solver.impl == "numba":
        return lax.platform_dependent(scores, integers, cpu=compiled)
    return lax.platform_dependent(scores, integers, cpu=compiled, default=plain)


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
