"""alpha[t, j] = emit[t, j] * sum over i of alpha[t-1, i] * transition[j, i], in logs."""

from __future__ import annotations

import tensorflow as tf

from pathsum.kernels.tensorflow.log_domain import Rows, fold, log_sum, sizes
from pathsum.lattice import Array, DenseLattice


def solve(found: Rows, lattice: DenseLattice, transitions: Array) -> Array:
    """The log-sum (N,) over all paths of scores (N, T, C) less their rows' maxima, and transitions (C, C)."""
    num_samples, num_frames, num_classes = sizes(found.scores)
    table = tf.cast(transitions, tf.float64)
    emitted = tf.cast(found.scores, tf.float64) - tf.cast(found.maxima, tf.float64)[:, :, None]
    real = tf.transpose(tf.sequence_mask(lattice.input_lengths, num_frames))[:, :, None]
    first = tf.range(num_frames)[:, None, None] == 0

    def advance(alpha: Array, emitted: Array, real: Array, first: Array) -> Array:
        arriving = tf.where(first, alpha, log_sum(alpha[:, None, :] + table, 2))
        return tf.where(real, arriving + emitted, alpha)

    start = tf.zeros([num_samples, num_classes], tf.float64)
    alpha = fold(advance, start, (tf.transpose(emitted, [1, 0, 2]), real, first))
    return tf.where(lattice.input_lengths > 0, log_sum(alpha, 1), tf.zeros([], tf.float64))
