"""alpha[t, u] = alpha[t-1, u] * blank[t-1, u] + alpha[t, u-1] * label[t, u-1], in logs, by anti-diagonals t + u."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from pathsum.errors import NotDifferentiableError
from pathsum.kernels.tensorflow.log_domain import (
    IMPOSSIBLE,
    common,
    fold,
    log_add,
    losses,
    not_negative,
    rows,
    sizes,
    undefined,
)
from pathsum.lattice import Array, GridLattice


def forward(
    scores: Array, lattice: GridLattice, *, logits: bool, fastemit_lambda: float = 0.0, clamp: float = -1.0
) -> Array:
    """Losses (N,) in float64 of scores (N, T, U+1, V)."""
    if fastemit_lambda > 0 or clamp > 0:
        return _reweighted(scores, lattice, logits, fastemit_lambda, clamp)
    return _losses(scores, lattice, logits, 0.0)


def _losses(scores: Array, lattice: GridLattice, logits: bool, fastemit_lambda: float) -> Array:
    _, num_frames, width, _ = sizes(scores)
    has_label = tf.sequence_mask(lattice.target_lengths, width)
    real = tf.sequence_mask(lattice.target_lengths + 1, width)[:, None]
    real &= tf.sequence_mask(lattice.logit_lengths, num_frames)[:, :, None]
    found = rows(scores, real)

    # The last column has no label, and reads any.
    missing = tf.maximum(tf.cast(width, tf.int64) - sizes(lattice.targets)[1], 0)
    targets = tf.pad(lattice.targets, [[0, 0], [0, missing]], constant_values=lattice.blank)[:, :width]
    targets = tf.tile(targets[:, None], [1, num_frames, 1])
    label_scores = tf.gather(found.scores, targets, axis=3, batch_dims=3)
    label_scores = tf.where(has_label[:, None], label_scores, tf.zeros([], label_scores.dtype))
    blank_scores = found.scores[..., lattice.blank]
    impossible = tf.constant(IMPOSSIBLE, tf.float64)

    def log_probs(scores: Array) -> Array:
        wide = tf.cast(scores, tf.float64)
        # The greatest first: beside 1e17 the log of the sum would be lost.
        return (wide - tf.cast(found.maxima, tf.float64)) - found.log_sums if logits else wide

    blank = tf.where(real, log_probs(blank_scores), impossible)
    label = tf.where(real & has_label[:, None], log_probs(label_scores), impossible)
    # What all paths have in common, a blank of each frame and every label.
    offsets = common(blank, 2), common(label, 1)
    blank, label = blank - offsets[0], label - offsets[1]
    label = _with_scaled_gradient(label, 1 + fastemit_lambda) if fastemit_lambda else label

    read = found.scores if logits else tf.stack([blank_scores, label_scores], 3)
    log_z = _solve(blank, label, lattice)
    log_z = tf.where(lattice.logit_lengths > 0, log_z, impossible)
    found_losses = losses(-sum(tf.reduce_sum(offset, [1, 2]) for offset in offsets), log_z, undefined(read))
    return not_negative(found_losses) if logits else found_losses


def _solve(blank: Array, label: Array, lattice: GridLattice) -> Array:
    """The log-sum (N,) over all paths of two planes (N, T, U+1)."""
    num_samples, num_frames, width = sizes(blank)
    u = tf.range(tf.cast(width, tf.int64))
    impossible = tf.constant(IMPOSSIBLE, tf.float64)
    outside = tf.fill([num_samples, 1], impossible)
    at_end = u == lattice.target_lengths[:, None]
    last = (lattice.logit_lengths + lattice.target_lengths - 1)[:, None]

    def advance(state: Array, blank: Array, label: Array, diagonal: Array) -> Array:
        alpha, log_z = state[:, 0], state[:, 1]
        by_blank, by_label = alpha + blank, alpha + label
        # The blank out of the last node, the only arc onto its diagonal that ends a path.
        log_z = tf.where(at_end & (diagonal == last), by_blank, log_z)
        alpha = log_add(by_blank, tf.concat([outside, by_label[:, :-1]], 1))
        return tf.stack([alpha, log_z], 1)

    start = tf.where(u == 0, tf.zeros([], tf.float64), impossible)
    start = tf.tile(tf.stack([start, tf.fill([width], impossible)])[None], [num_samples, 1, 1])
    diagonals = tf.range(tf.cast(num_frames + width - 1, tf.int64))
    state = fold(advance, start, (_by_diagonal(blank), _by_diagonal(label), diagonals))
    return tf.reduce_max(tf.where(at_end, state[:, 1], impossible), 1)


def _by_diagonal(plane: Array) -> Array:
    """(N, T, U+1) as (T+U, N, U+1), -inf where a diagonal leaves the grid."""
    num_samples, num_frames, width = sizes(plane)
    # In a row longer by one than there are diagonals, each column of the grid is shifted by one more than the last.
    columns = tf.pad(tf.transpose(plane, [0, 2, 1]), [[0, 0], [0, 0], [0, width]], constant_values=IMPOSSIBLE)
    diagonals = num_frames + width - 1
    flat = tf.reshape(columns, [num_samples, width * (diagonals + 1)])[:, : width * diagonals]
    return tf.transpose(tf.reshape(flat, [num_samples, width, diagonals]), [2, 0, 1])


def _with_scaled_gradient(plane: Array, factor: float) -> Array:
    @tf.custom_gradient
    def same(plane: Array) -> tuple[Array, Any]:
        return tf.identity(plane), lambda upstream: factor * upstream

    return same(plane)


def _reweighted(scores: Array, lattice: GridLattice, logits: bool, fastemit_lambda: float, clamp: float) -> Array:
    """The same losses with a gradient that is not theirs: clamped before the upstream gradient multiplies it."""

    @tf.custom_gradient
    def solved(scores: Array) -> tuple[Array, Any]:
        with tf.GradientTape() as tape:
            tape.watch(scores)
            values = _losses(scores, lattice, logits, fastemit_lambda)
        gradient = tape.gradient(values, scores)
        gradient = tf.clip_by_value(gradient, -clamp, clamp) if clamp > 0 else gradient
        # Where no path exists an infinite upstream gradient meets a gradient of exactly 0.
        infeasible = values == math.inf

        @tf.custom_gradient
        def weigh(upstream: Array, scores: Array) -> tuple[Array, Any]:
            upstream = tf.where(infeasible, tf.zeros([], tf.float64), upstream)
            return gradient * tf.cast(upstream, gradient.dtype)[:, None, None, None], refuse

        return values, lambda upstream: weigh(upstream, scores)

    return solved(scores)


def refuse(*_: Array) -> Any:
    """Raise what a second derivative of re-weighted gradients is answered with."""
    error = NotDifferentiableError(
        "the gradient of a loss with fastemit_lambda or clamp is re-weighted: it is not the gradient of anything, "
        "and has no derivative"
    )
    # Or else AutoGraph puts an error of its own in its place.
    error.ag_pass_through = True  # pyright: ignore
    raise error
