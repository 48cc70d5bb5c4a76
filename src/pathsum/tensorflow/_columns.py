"""Log-probabilities of logits, and the columns of them that CTC reads: the blank's and one a label."""

from __future__ import annotations

import math

import tensorflow as tf

from pathsum.kernels.tensorflow.log_domain import sizes
from pathsum.lattice import Array
from pathsum.tensorflow._solvers import Integers


def log_softmax(scores: Array, lengths: Array) -> Array:
    """Of the real frames of scores (N, T, C), in the dtype of arithmetic; a row of nothing but -inf stays so."""
    zero = tf.zeros([], tf.float64 if scores.dtype == tf.float64 else tf.float32)
    real = tf.sequence_mask(lengths, sizes(scores)[1])
    logits = tf.where(real[:, :, None], tf.cast(scores, zero.dtype), zero)
    possible = tf.reduce_max(logits, 2, keepdims=True) != -math.inf
    return tf.where(possible, tf.nn.log_softmax(tf.where(possible, logits, zero)), logits)


def classes_of(integers: Integers, blank: int) -> tuple[Array, Integers]:
    """The class (N, S + 1) of each column, and the integers whose targets are columns, the blank being column 0.

    Equal labels read the first column that is theirs.
    """
    targets, input_lengths, target_lengths = map(tf.convert_to_tensor, integers)
    used = tf.sequence_mask(target_lengths, sizes(targets)[1])
    labels = tf.where(used, targets, tf.cast(blank, targets.dtype))
    classes = tf.concat([tf.fill(tf.stack([tf.shape(labels)[0], 1]), tf.cast(blank, labels.dtype)), labels], 1)
    column = tf.range(tf.shape(classes, tf.int64)[1])
    last = tf.shape(classes, tf.int64)[1] - 1
    places = tf.reduce_min(tf.where(classes[:, :, None] == classes[:, None], column, last), 2)
    return classes, Integers(places[:, 1:], input_lengths, target_lengths)
