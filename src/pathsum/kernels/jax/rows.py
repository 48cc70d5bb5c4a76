"""Rows of scores: their greatest, which scores are taken less of, and what is left of the softmax."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from pathsum.lattice import Array


class Statistics(NamedTuple):
    """Of each row: the greatest score (0 where it is -inf), sum of exp(score - maximum), whether it is defined."""

    maxima: Array
    sums: Array
    defined: Array


def work_dtype(scores: Array) -> jnp.dtype:
    """The dtype of arithmetic: never below float32."""
    return jnp.dtype(jnp.float64 if scores.dtype == jnp.float64 else jnp.float32)


def real_rows(scores: Array, real: Array) -> Array:
    """The scores in the dtype of arithmetic, those of padded rows 0: what padding holds goes nowhere."""
    return jnp.where(real[..., None], scores.astype(work_dtype(scores)), 0)


def statistics(scores: Array) -> Statistics:
    """Statistics over the last axis."""
    greatest = lax.stop_gradient(scores).max(-1)
    maxima = jnp.where(jnp.isfinite(greatest), greatest, 0)
    sums = jnp.exp(scores - maxima[..., None]).sum(-1)
    return Statistics(maxima, sums, greatest < jnp.inf)


def softmax(scores: Array, of: Statistics) -> Array:
    """exp(score) / sum of exp(scores); 0 in a row of nothing but -inf."""
    sums = jnp.where(of.sums > 0, of.sums, 1)
    return jnp.exp(scores - of.maxima[..., None]) / sums[..., None]
