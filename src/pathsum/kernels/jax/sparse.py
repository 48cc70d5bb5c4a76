"""Lattices of graphs: a scan over the frames, each step all arcs of all samples at once, in logs.

Logs are those beside the greatest of a sample's frame, so that they keep their digits in long inputs; what they are
taken from is summed with its rounding. JAX differentiates the scan: a derivative is made of the shares of arcs in the
states that they lead to, which are numbers from 0 to 1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from pathsum.kernels.jax import extended
from pathsum.kernels.jax.rows import work_dtype
from pathsum.lattice import Array
from pathsum.problems.graphs import SideBySide


def forward(
    scores: Array, weights: Array, graphs: SideBySide, input_lengths: Array
) -> tuple[Array, tuple[Array, Array]]:
    """Losses (N,) of scores (N, T, C) and weights (W,), and their gradients (N, T, C) and (N, W)."""
    work = work_dtype(scores)
    own = jnp.broadcast_to(weights.astype(work), (scores.shape[0], len(weights)))
    losses, pull = jax.vjp(lambda x, y: _losses(x, y, graphs, input_lengths), scores.astype(work), own)
    gradients = pull(jnp.ones_like(losses))
    real = jnp.arange(scores.shape[1]) < input_lengths[:, None]
    undefined = jnp.isnan(losses)[:, None]
    of_scores = jnp.where((undefined & real)[:, :, None], jnp.nan, gradients[0])
    return losses, (of_scores.astype(scores.dtype), jnp.where(undefined, jnp.nan, gradients[1]))


def _losses(scores: Array, weights: Array, graphs: SideBySide, input_lengths: Array) -> Array:
    num_samples, num_frames, _ = scores.shape
    real = jnp.arange(num_frames) < input_lengths[:, None]
    read = real[:, :, None] & graphs.used[:, None]
    defined = (~read | (scores < jnp.inf)).all((1, 2))
    defined &= (~graphs.counted | (weights < jnp.inf)).all(1)
    # What is not defined is 0 in the scan, and NaN at last.
    emitted = jnp.where(read & defined[:, None, None], scores, 0)
    table = jnp.where(defined[:, None], weights, 0)
    greatest = lax.stop_gradient(jnp.where(read, emitted, -jnp.inf).max(2, initial=-jnp.inf))
    greatest = jnp.where(jnp.isfinite(greatest), greatest, 0)
    arcs = table[graphs.of_arcs, graphs.weights]
    epsilons = [(level[0], level[1], table[level[2], level[3]]) for level in graphs.levels]
    num_states = len(graphs.samples)

    def relaxed(alpha: Array) -> Array:
        for sources, destinations, own in epsilons:
            terms = jnp.concatenate([alpha, alpha[sources] + own])
            alpha = _log_sums(terms, jnp.concatenate([jnp.arange(num_states), destinations]), num_states)
        return alpha

    def advance(
        carried: tuple[Array, Array, Array], frame: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, ...], None]:
        (alpha, taken, rest), (own, largest, is_real) = carried, frame
        terms = alpha[graphs.sources] + (arcs + (own[graphs.of_arcs, graphs.classes] - largest[graphs.of_arcs]))
        entered = relaxed(_log_sums(terms, graphs.destinations, num_states))
        top = _tops(entered, graphs.samples, num_samples)
        entered = jnp.where(is_real[graphs.samples], entered - top[graphs.samples], alpha)
        for part in (largest, top):
            taken, more = extended.exact_sum(taken, jnp.where(is_real, part, 0))
            rest = rest + more
        return (entered, taken, rest), None

    alpha = relaxed(table[graphs.samples, graphs.starts])
    nothing = jnp.zeros(num_samples, scores.dtype)
    start = extended.varying_as((alpha, nothing, nothing), (emitted, greatest, real))
    frames = emitted.swapaxes(0, 1), greatest.T, real.T
    (alpha, taken, rest), _ = lax.scan(advance, start, frames)
    log_z = _log_sums(alpha + table[graphs.samples, graphs.finals], graphs.samples, num_samples)
    return jnp.where(defined, -((log_z + rest) + taken), jnp.nan)


def _tops(terms: Array, groups: Array, count: int) -> Array:
    """The greatest term of each group as a constant; 0 where there is nothing."""
    top = jax.ops.segment_max(lax.stop_gradient(terms), groups, count)
    return jnp.where(top == -jnp.inf, 0, top)


def _log_sums(terms: Array, groups: Array, count: int) -> Array:
    """The log-sum of the terms of each group, -inf with zero derivative where there is nothing."""
    top = _tops(terms, groups, count)
    possible = terms > -jnp.inf
    shares = jnp.where(possible, jnp.exp(jnp.where(possible, terms - top[groups], 0)), 0)
    total = jax.ops.segment_sum(shares, groups, count)
    return jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1)) + top, -jnp.inf)
