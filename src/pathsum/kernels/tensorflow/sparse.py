"""Lattices of graphs, all arcs of all samples at once, in logs."""

from __future__ import annotations

import math

import tensorflow as tf

from pathsum.kernels.tensorflow.log_domain import IMPOSSIBLE, fold, sizes
from pathsum.kernels.tensorflow.log_domain import losses as finished
from pathsum.kernels.tensorflow.log_domain import undefined as is_undefined
from pathsum.lattice import Array
from pathsum.problems.graphs import SideBySide


def forward(scores: Array, weights: Array, graphs: SideBySide, input_lengths: Array) -> Array:
    """Losses (N,) of scores (N, T, C) and weights (W,)."""
    num_samples, num_frames, _ = sizes(scores)
    nothing = tf.zeros([], tf.float64)
    frames = tf.sequence_mask(input_lengths, num_frames)
    read = frames[:, :, None] & graphs.used[:, None]
    own = tf.where(read, tf.cast(scores, tf.float64), nothing)
    table = tf.cast(weights, tf.float64)
    undefined = is_undefined(own, tf.where(graphs.counted, table[None], nothing))
    emitted = tf.where(own < math.inf, own, nothing)
    table = tf.where(table < math.inf, table, nothing)
    num_states = len(graphs.samples)
    every = tf.range(num_states, dtype=tf.int64)
    arcs = tf.gather(table, graphs.weights)
    epsilons = [(level[0], level[1], tf.gather(table, level[3])) for level in graphs.levels]

    def relaxed(alpha: Array) -> Array:
        for sources, destinations, weight in epsilons:
            terms = tf.concat([alpha, tf.gather(alpha, sources) + weight], 0)
            alpha = _log_sums(terms, tf.concat([every, destinations], 0), num_states)
        return alpha

    places = tf.stack([graphs.of_arcs, graphs.classes], 1)

    def advance(alpha: Array, emitted: Array, real: Array) -> Array:
        terms = tf.gather(alpha, graphs.sources) + arcs + tf.gather_nd(emitted, places)
        entered = relaxed(_log_sums(terms, graphs.destinations, num_states))
        return tf.where(tf.gather(real, graphs.samples), entered, alpha)

    start = relaxed(tf.gather(table, graphs.starts))
    alpha = fold(advance, start, (tf.transpose(emitted, [1, 0, 2]), tf.transpose(frames)))
    log_z = _log_sums(alpha + tf.gather(table, graphs.finals), graphs.samples, num_samples)
    return finished(tf.zeros_like(log_z), log_z, undefined)


def _log_sums(terms: Array, groups: Array, count: int) -> Array:
    """The log-sum of the terms of each group, -inf with zero derivative where there is nothing."""
    nothing = tf.zeros([], terms.dtype)
    top = tf.math.unsorted_segment_max(tf.stop_gradient(terms), groups, count)
    top = tf.where(top > -1e300, top, nothing)
    possible = terms > IMPOSSIBLE
    shares = tf.where(possible, tf.exp(tf.where(possible, terms - tf.gather(top, groups), nothing)), nothing)
    total = tf.math.unsorted_segment_sum(shares, groups, count)
    log = tf.math.log(tf.where(total > 0, total, nothing + 1)) + top
    return tf.where(total > 0, log, tf.constant(IMPOSSIBLE, terms.dtype))
