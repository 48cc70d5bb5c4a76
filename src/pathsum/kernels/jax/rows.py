"""Rows of scores: their greatest, which scores are taken less of, and what is left of the softmax."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from pathsum.lattice import Array


class Statistics(NamedTuple):
    """Of each row: the greatest score (0 where it is -inf), sum of exp(score - maximum), whether it is defined.

    ``rests`` are what the sums have rounded off, constants.
    """

    maxima: Array
    sums: Array
    rests: Array
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
    return Statistics(maxima, *_sums_of_exp(scores, maxima), greatest < jnp.inf)


def _sums_of_exp(scores: Array, maxima: Array) -> tuple[Array, Array]:
    """Sums over the last axis of exp(score - maximum), and what these have rounded off, a constant."""
    exponentials = jnp.exp(scores - maxima[..., None])
    plain = exponentials.sum(-1)
    # Beside the greatest, each 1, the others of a row that is sure are small, and so are their own sum's errors. The
    # derivative is the plain sum's: a rule of its own would be forgotten in a scan that is differentiated twice.
    is_greatest = scores == maxima[..., None]
    count = is_greatest.sum(-1).astype(scores.dtype)
    others = lax.stop_gradient(jnp.where(is_greatest, 0, exponentials).sum(-1))
    sums = plain + lax.stop_gradient(count + others - plain)
    constant = lax.stop_gradient(sums)
    return sums, jnp.where(jnp.isfinite(constant), (count - constant) + others, 0)


def huge(largest: Array) -> Array:
    """A greatest score where it is so large that scores are taken less of it, else 0; it has no derivative."""
    largest = lax.stop_gradient(largest)
    return jnp.where((jnp.abs(largest) > 1024) & jnp.isfinite(largest), largest, 0)


def not_negative(losses: Array) -> Array:
    """Losses whose paths share a probability of 1: what rounding has left below 0 is 0, and has a derivative still."""
    return losses + lax.stop_gradient(jnp.maximum(losses, 0) - losses)


def softmax(scores: Array, of: Statistics) -> Array:
    """exp(score) / sum of exp(scores); 0 in a row of nothing but -inf."""
    sums = jnp.where(of.sums > 0, of.sums, 1)
    return jnp.exp(scores - of.maxima[..., None]) / sums[..., None]
