"""Dense lattices: two scans over the frames, each step all pairs of states at once, in extended range.

Sums over fewer paths of the same scores, a target's, are made of the same factors: what rounding does to them is then
no part of the difference.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from pathsum.kernels.jax import extended
from pathsum.kernels.jax.extended import Number
from pathsum.lattice import Array, DenseLattice


class Solved(NamedTuple):
    """Of each sample the sum over all paths (N,), the posteriors of the states (N, T, C), and how often each
    transition is expected (N, C, C), [to, from].
    """

    total: Number
    gamma: Array
    transitions: Array


class Factors(NamedTuple):
    """What an arc's weight is the product of: of entering a state in each frame (T, N, C), and of passing from state to
    state (C, C), [to, from].
    """

    states: Number
    arcs: Number


def factors(scores: Array, maxima: Array, transitions: Array) -> Factors:
    """Of scores (N, T, C) less the maxima (N, T) of their rows, with transitions (C, C), [to, from]."""
    frame = jnp.arange(scores.shape[1])[:, None, None]
    # To stay counts as 1 and the scores have the rest: most arcs stay, and one rounding of theirs would add up.
    shifts = lax.stop_gradient(jnp.diagonal(transitions))
    shifts = jnp.where(jnp.isfinite(shifts), shifts, 0)
    arcs = extended.exp(*extended.exact_sum(transitions, -shifts[:, None]))
    score, rest = extended.exact_sum(scores.swapaxes(0, 1), -maxima.T[:, :, None])
    score, more = extended.exact_sum(score, jnp.where(frame > 0, shifts, 0))
    return Factors(extended.exp(score, rest + more), arcs)


def solve(of: Factors, lattice: DenseLattice) -> Solved:
    weights, arcs = of
    num_frames, num_samples, num_classes = weights.high.shape
    frame = jnp.arange(num_frames)[:, None, None]
    real = frame < lattice.input_lengths[:, None]
    inner = (frame > 0) & real

    def advance(alpha: Number, step: tuple[Number, Array, Array]) -> tuple[Number, Number]:
        weight, is_real, is_inner = step
        arriving = extended.total(extended.multiply(_from(alpha), arcs), 2)
        entered = extended.multiply(extended.select(is_inner, arriving, alpha), weight)
        return extended.select(is_real, entered, alpha), extended.rounded(alpha)

    def retreat(
        carried: tuple[Number, tuple[Array, Array]], step: tuple[Number, Array, Array, Number]
    ) -> tuple[tuple[Number, tuple[Array, Array]], Array]:
        (beta, counts), (weight, is_real, is_inner, before) = carried, step
        entering = extended.multiply(beta, weight)
        pairs = extended.multiply(_to(entering), arcs)
        through = extended.shares(extended.multiply(pairs, _from(before)), (1, 2))
        count, rest = extended.exact_sum(counts[0], jnp.where(is_inner[:, :, None], through, 0))
        first = extended.shares(entering, 1)
        gamma = jnp.where(is_inner, through.sum(2), first)
        leaving = extended.select(is_inner, extended.total(pairs, 1), entering)
        carried = extended.select(is_real, leaving, beta), (count, counts[1] + rest)
        return carried, jnp.where(is_real, gamma, 0)

    nothing = jnp.zeros((num_samples, num_classes, num_classes), weights.high.dtype)
    one = extended.rounded(weights)
    start, nothing = extended.varying_as(
        (extended.ones((num_samples, num_classes), one), nothing), (weights, arcs, real)
    )
    alpha, before = lax.scan(advance, extended.with_rest(start), (weights, real, inner))
    # Posteriors are right to the rounding of a mantissa as they are.
    weights, arcs = extended.rounded(weights), extended.rounded(arcs)
    total = extended.total(alpha, 1)
    total = extended.select(lattice.input_lengths > 0, total, extended.ones((num_samples,), total))
    last = (start, (nothing, nothing))
    (_, (counts, rest)), gamma = lax.scan(retreat, last, (weights, real, inner, before), reverse=True)
    return Solved(total, gamma.swapaxes(0, 1), counts + rest)


def _from(number: Number) -> Number:
    """(N, 1, C): states that arcs leave."""
    return extended.at(number, (slice(None), None))


def _to(number: Number) -> Number:
    """(N, C, 1): states that arcs enter."""
    return extended.at(number, (..., None))
