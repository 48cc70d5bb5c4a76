"""alpha[t, s] = alpha[t-1, s] * stay[t, s] + alpha[t-1, s-1] * step[t, s] + alpha[t-1, s-2] * skip[t, s], in logs."""

from __future__ import annotations

import tensorflow as tf

from pathsum.kernels.tensorflow.log_domain import (
    IMPOSSIBLE,
    Rows,
    common,
    fold,
    log_add,
    log_sum,
    losses,
    not_negative,
    rows,
    sizes,
    undefined,
)
from pathsum.lattice import Array, ChainLattice

# Columns in front of the first state: the virtual state, and one more for a skip into state 0 to come from.
FRONT = 2


def forward(scores: Array, lattice: ChainLattice, *, logits: bool) -> Array:
    """Losses (N,) in float64 of scores (N, T, C)."""
    real = tf.sequence_mask(lattice.input_lengths, sizes(scores)[1])
    found = rows(scores, real)
    if not logits:
        found = found._replace(maxima=tf.zeros_like(found.maxima))
    log_z, used = solve(found, lattice)
    if logits:
        return not_negative(losses(tf.reduce_sum(found.log_sums, 1), log_z, undefined(found.scores)))
    return losses(tf.zeros_like(log_z), log_z, undefined(used))


def solve(found: Rows, lattice: ChainLattice, transitions: Array | None = None) -> tuple[Array, Array]:
    """The log-sum (N,) over all paths of scores (N, T, C) less their rows' maxima, of transitions (C, C) where the
    lattice has any; and the scores that its arcs have.
    """
    num_samples, num_frames, _ = sizes(found.scores)
    num_states = sizes(lattice.step_labels)[1]
    own_states = tf.sequence_mask(lattice.num_states, num_states)
    step, used = _emitted(found, lattice.step_labels, own_states)
    stay, used_by_stays = (
        (step, used[:, :, :0]) if lattice.shared_labels else _emitted(found, lattice.stay_labels, own_states)
    )
    if transitions is not None:
        stay += _constant(transitions, lattice.stay_transitions)
        step += _constant(transitions, lattice.step_transitions)
    real = tf.transpose(tf.sequence_mask(lattice.input_lengths, num_frames))[:, :, None]
    # What all arcs of a frame have in common.
    arcs = [step] if lattice.shared_labels and transitions is None else [step, stay]
    offset = common(tf.concat([tf.where(own_states, own, tf.constant(IMPOSSIBLE, tf.float64)) for own in arcs], 2), 2)
    stay, step = stay - offset, step - offset

    front = tf.fill([num_samples, FRONT], tf.constant(IMPOSSIBLE, tf.float64))
    outside = tf.where(lattice.skips, tf.zeros([], tf.float64), tf.constant(IMPOSSIBLE, tf.float64))

    def advance(alpha: Array, stay: Array, step: Array, real: Array) -> Array:
        entered = log_add(alpha[:, 2:] + stay, alpha[:, 1:-1] + step, alpha[:, :-2] + (step + outside))
        return tf.where(real, tf.concat([front, entered], 1), alpha)

    state = tf.range(-FRONT, tf.cast(num_states, tf.int64), dtype=tf.int64)
    start = tf.where(state == lattice.start_state, tf.zeros([], tf.float64), tf.constant(IMPOSSIBLE, tf.float64))
    alpha = fold(advance, tf.tile(start[None], [num_samples, 1]), (stay, step, real))
    last = lattice.num_states[:, None]
    final = (state >= -1) & (state >= last - lattice.num_final) & (state < last)
    log_z = log_sum(tf.where(final, alpha, tf.constant(IMPOSSIBLE, tf.float64)), 1)
    log_z += tf.reduce_sum(tf.where(real, offset, tf.zeros([], tf.float64)), [0, 2])
    return log_z, tf.concat([used, used_by_stays], 2)


def _emitted(found: Rows, labels: Array, own_states: Array) -> tuple[Array, Array]:
    """(T, N, S') score of each state's label in each frame, relative; (N, T, S') as it is, 0 beyond the own states."""
    scores = tf.gather(found.scores, labels, axis=2, batch_dims=1)
    relative = tf.cast(scores, tf.float64) - tf.cast(found.maxima, tf.float64)[:, :, None]
    used = tf.where(own_states[:, None], scores, tf.zeros([], scores.dtype))
    return tf.transpose(relative, [1, 0, 2]), used


def _constant(transitions: Array, indices: Array) -> Array:
    """(N, S') score of each state's arc that is the same in all frames."""
    values = tf.gather(tf.reshape(tf.cast(transitions, tf.float64), [-1]), tf.maximum(indices, 0))
    return tf.where(indices >= 0, values, tf.zeros([], tf.float64))
