"""Grids, as chains whose frames are the anti-diagonals t + u, and whose states are the labels.

A node's two arcs both lead to the next diagonal: a blank stays at its label, and a label steps to the next one. Every
path takes one arc out of each diagonal.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pathsum.kernels.jax import chain, extended, rows
from pathsum.kernels.jax.extended import Number
from pathsum.lattice import Array, ChainLattice, GridLattice


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

    def solved(narrow: bool) -> tuple[Array, ...]:
        arcs = (extended.narrow(blanks), extended.narrow(steps)) if narrow else (blanks, steps)
        paths = _solve(*arcs, lattice)
        feasible = (lattice.logit_lengths > 0) & (paths.total.mantissa > 0)
        total = extended.select(feasible, paths.total, extended.ones(feasible.shape, paths.total))
        assert paths.stay is not None
        blank_posteriors = _by_frame(paths.stay, scores.shape[1], 0)
        return feasible, -extended.log(total) - paths.lost, blank_posteriors, _by_frame(paths.step, scores.shape[1], 1)

    reaches = extended.reach(blanks.high, 2).sum(1) + extended.reach(steps.high, 1).sum(1)
    feasible, losses, blank_posteriors, label_posteriors = extended.by_range(reaches, solved)
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


def _solve(blanks: Number, labels: Number, lattice: GridLattice) -> chain.Solved:
    """Of the weights (N, T, U+1) of the arcs out of each node."""
    width = blanks.high.shape[2]
    same = jnp.broadcast_to(jnp.arange(width), (len(lattice.logit_lengths), width))
    as_chain = ChainLattice(
        input_lengths=lattice.logit_lengths + lattice.target_lengths,
        num_states=lattice.target_lengths + 1,
        stay_labels=same,
        step_labels=same,
        skips=jnp.zeros(same.shape, bool),
        start_state=0,
        num_final=1,
    )
    stay, step = _by_diagonal(blanks, 0), _by_diagonal(labels, 1)
    return chain.solve(chain.Frames(step, stay, chain.real_frames(len(stay.high), as_chain)), as_chain)


def _by_diagonal(plane: Number, step: int) -> Number:
    """Of arcs out of nodes (N, T, U+1) those out of each diagonal by the label that they lead to, a step further
    (T+U, N, U+1); zeros where there is none.
    """
    _, num_frames, width = plane.high.shape
    u = jnp.arange(width) - step
    t = jnp.arange(num_frames + width - 1)[:, None] - u
    inside = (t >= 0) & (t < num_frames) & (u >= 0)
    gathered = extended.at(plane, (slice(None), jnp.clip(t, 0, num_frames - 1), jnp.maximum(u, 0)))
    return jax.tree.map(lambda part: part.swapaxes(0, 1), extended.keep(inside, gathered))


def _by_frame(diagonals: Array, num_frames: int, step: int) -> Array:
    """The way back, of (N, T+U, U+1); 0 of the last label's step."""
    u = jnp.arange(diagonals.shape[2])
    t = jnp.arange(num_frames)[:, None]
    values = diagonals[:, t + u, jnp.minimum(u + step, len(u) - 1)]
    return jnp.where(u + step < len(u), values, 0)
