"""Grids: two scans over the anti-diagonals t + u, each step all of a diagonal's nodes at once, in extended range.

A node's two arcs both lead to the next diagonal, and every path visits each diagonal once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from pathsum.kernels.jax import extended, rows
from pathsum.kernels.jax.extended import Number
from pathsum.lattice import Array, GridLattice


def forward(
    scores: Array, lattice: GridLattice, *, logits: bool, fastemit_lambda: float = 0.0, clamp: float = -1.0
) -> tuple[Array, Array]:
    """Losses (N,) of scores (N, T, U+1, V), and the gradient of each with respect to the scores."""
    if scores.shape[1] == 0:
        return jnp.full(len(scores), jnp.inf, rows.work_dtype(scores)), jnp.zeros_like(scores)
    frames, labels = jnp.arange(scores.shape[1]), jnp.arange(scores.shape[2])
    real = frames[:, None] < lattice.logit_lengths[:, None, None]
    real &= labels <= lattice.target_lengths[:, None, None]
    scores = rows.real_rows(scores, real)
    found = rows.statistics(scores)

    # (N, 1, U+1): the class that each column's label arcs emit. The last column has none, and reads any.
    missing = max(0, scores.shape[2] - lattice.targets.shape[1])
    targets = jnp.pad(lattice.targets, ((0, 0), (0, missing)), constant_values=lattice.blank)[:, : scores.shape[2]]
    has_label = labels < lattice.target_lengths[:, None]
    label_scores = jnp.take_along_axis(scores, targets[:, None, :, None], 3)[..., 0]
    blank_scores = scores[..., lattice.blank]
    used = real & has_label[:, None]
    if logits:
        defined = found.defined
    else:
        defined = (blank_scores < jnp.inf) & ((label_scores < jnp.inf) | ~used)
    defined = (defined | ~real).all((1, 2))
    offset = jnp.zeros((), scores.dtype)
    if not logits:
        # What all paths have in common, a blank of each frame and every label, where it is huge.
        of_blanks = rows.huge(jnp.where(real, blank_scores, -jnp.inf).max(2, keepdims=True))
        of_labels = rows.huge(jnp.where(used, label_scores, -jnp.inf).max(1, keepdims=True))
        blank_scores, label_scores = blank_scores - of_blanks, label_scores - of_labels
        offset = of_blanks.sum((1, 2)) + of_labels.sum((1, 2))
    blanks = extended.keep(real, _probability(blank_scores, found, logits))
    steps = extended.keep(used, _probability(label_scores, found, logits))

    total, blank_posteriors, label_posteriors = _solve(blanks, steps, lattice)
    feasible = (lattice.logit_lengths > 0) & (total.mantissa > 0)
    losses = -extended.log(total)
    losses = rows.not_negative(losses) if logits else losses - offset
    losses = jnp.where(feasible, losses, jnp.inf)

    label_posteriors *= 1 + fastemit_lambda
    classes = jnp.arange(scores.shape[3])
    gradient = -jnp.where(classes == lattice.blank, blank_posteriors[..., None], 0)
    gradient -= jnp.where(classes == targets[:, None, :, None], label_posteriors[..., None], 0)
    if logits:
        gradient += (blank_posteriors + label_posteriors)[..., None] * rows.softmax(scores, found)
    if clamp > 0:
        gradient = jnp.clip(gradient, -clamp, clamp)
    gradient = jnp.where((real & feasible[:, None, None])[..., None], gradient, 0)
    gradient = jnp.where((real & ~defined[:, None, None])[..., None], jnp.nan, gradient)
    return jnp.where(defined, losses, jnp.nan), gradient


def _probability(scores: Array, found: rows.Statistics, logits: bool) -> Number:
    """exp(score) over its row's sum. No logarithm of it is taken: rounded ones would cost the gradient three digits."""
    if not logits:
        return extended.exp(scores, jnp.zeros_like(scores))
    sums = extended.number_of(jnp.where(found.sums > 0, found.sums, 1), found.rests)
    return extended.divide(extended.exp(*extended.exact_sum(scores, -found.maxima)), sums)


def _solve(blanks: Number, labels: Number, lattice: GridLattice) -> tuple[Number, Array, Array]:
    """The sum over all paths (N,), and the posteriors of the blank and the label arcs (N, T, U+1)."""
    num_samples, num_frames, width = blanks.high.shape
    dtype = blanks.high.dtype
    u = jnp.arange(width)
    start = extended.one_where(jnp.broadcast_to(u == 0, (num_samples, width)), dtype)
    end = lattice.logit_lengths + lattice.target_lengths
    outside = extended.zeros((num_samples, 1), dtype)
    beside = extended.with_rest(outside)
    diagonals = _by_diagonal(blanks), _by_diagonal(labels)
    at_end = extended.one_where(u == lattice.target_lengths[:, None], dtype)

    def advance(carried: tuple[Number, Number], step: tuple[Array, tuple[Number, Number]]):
        (alpha, total), (d, (blank, label)) = carried, step
        by_blank, by_label = extended.multiply(alpha, blank), extended.multiply(alpha, label)
        # The blank out of the last node is the only arc onto its diagonal that ends a path.
        ended = extended.keep((d == end - 1)[:, None] & (u == lattice.target_lengths[:, None]), by_blank)
        total = extended.add(total, extended.only(ended, 1))
        right = extended.concatenate([beside, extended.at(by_label, (..., slice(None, -1)))], 1)
        return (extended.add(by_blank, right), total), extended.rounded(alpha)

    def retreat(beta: Number, step: tuple[Array, tuple[Number, Number], Number]):
        d, (blank, label), alpha = step
        beta = extended.select((d == end - 1)[:, None], at_end, beta)
        right = extended.concatenate([extended.at(beta, (..., slice(1, None))), outside], 1)
        by_blank, by_label = extended.multiply(beta, blank), extended.multiply(right, label)
        masses = [extended.multiply(alpha, by_blank), extended.multiply(alpha, by_label)]
        # The posteriors of the arcs out of a diagonal sum to 1.
        shares = extended.shares(extended.concatenate(masses, 1), 1)
        return extended.add(by_blank, by_label), (shares[:, :width], shares[:, width:])

    numbers = jnp.arange(num_frames + width - 1)
    none = extended.zeros((num_samples,), dtype), extended.zeros((num_samples, width), dtype)
    start, nothing, last = extended.varying_as((start, *none), (diagonals, end, lattice.target_lengths))
    first = extended.with_rest(start), extended.with_rest(nothing)
    (_, total), alphas = lax.scan(advance, first, (numbers, diagonals))
    # Posteriors are right to the rounding of a mantissa as they are.
    diagonals = extended.rounded(diagonals[0]), extended.rounded(diagonals[1])
    _, (blank_posteriors, label_posteriors) = lax.scan(retreat, last, (numbers, diagonals, alphas), reverse=True)
    return total, _by_frame(blank_posteriors, num_frames), _by_frame(label_posteriors, num_frames)


def _by_diagonal(plane: Number) -> Number:
    """(N, T, U+1) as (T+U, N, U+1), zeros where a diagonal leaves the grid."""
    _, num_frames, width = plane.high.shape
    u = jnp.arange(width)
    t = jnp.arange(num_frames + width - 1)[:, None] - u
    inside = (t >= 0) & (t < num_frames)
    gathered = extended.at(plane, (slice(None), jnp.clip(t, 0, num_frames - 1), u))
    kept = extended.keep(inside, gathered)
    return jax.tree.map(lambda part: part.swapaxes(0, 1), kept)


def _by_frame(diagonals: Array, num_frames: int) -> Array:
    """(T+U, N, U+1) as (N, T, U+1)."""
    u = jnp.arange(diagonals.shape[2])
    t = jnp.arange(num_frames)[:, None]
    return diagonals.swapaxes(0, 1)[:, t + u, u]
