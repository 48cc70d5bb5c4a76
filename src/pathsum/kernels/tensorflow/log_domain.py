"""Log-domain sums whose values and derivatives of any order survive -inf, and what is summed: rows of scores.

Recursions are in float64, where a log keeps nine digits behind the point at a million frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from pathsum.lattice import Array

IMPOSSIBLE = -math.inf


def log_sum(terms: Array, axis: int) -> Array:
    """log(sum(exp(terms))), -inf with zero derivative where every term is -inf."""
    largest = _finite(tf.reduce_max(tf.stop_gradient(terms), axis, keepdims=True))
    total = tf.reduce_sum(tf.exp(terms - largest), axis)
    return _where_positive(total, tf.squeeze(largest, axis))


def log_add(*terms: Array) -> Array:
    """The same of a few tensors of one shape."""
    largest = tf.stop_gradient(terms[0])
    for term in terms[1:]:
        largest = tf.maximum(largest, tf.stop_gradient(term))
    largest = _finite(largest)
    return _where_positive(tf.add_n([tf.exp(term - largest) for term in terms]), largest)


class Rows(NamedTuple):
    """Rows of scores, those of padding 0.

    Attributes:
        scores: (..., C) in the dtype of arithmetic, never below float32.
        maxima: (...) the greatest score, 0 where it is not finite; it has no derivative.
        log_sums: (...) float64 log(sum(exp(scores - maxima))), 0 in padding and in a row of nothing but -inf.
    """

    scores: Array
    maxima: Array
    log_sums: Array


def rows(scores: Array, real: Array) -> Rows:
    """Look at scores (..., C) where the rows are a sample's own (...)."""
    work = tf.float64 if scores.dtype == tf.float64 else tf.float32
    own = tf.where(tf.expand_dims(real, -1), tf.cast(scores, work), tf.zeros([], work))
    greatest = tf.reduce_max(tf.stop_gradient(own), -1)
    maxima = tf.where(tf.math.is_finite(greatest), greatest, tf.zeros([], work))
    # In float64: a row that is sure of a class has a sum of 1 and what a float32 would round off.
    log_sums = log_sum(tf.cast(own, tf.float64) - tf.expand_dims(tf.cast(maxima, tf.float64), -1), -1)
    log_sums = tf.where(real & (log_sums != IMPOSSIBLE), log_sums, tf.zeros([], tf.float64))
    return Rows(own, maxima, log_sums)


def common(scores: Array, axis: int | Sequence[int]) -> Array:
    """The greatest of some scores along axes, which stay, as a constant; 0 where it is not finite.

    Taken off, and added to a log-sum at last: beside 1e17 the log of a sum would be lost.
    """
    greatest = tf.reduce_max(tf.stop_gradient(scores), axis, keepdims=True)
    return tf.where(tf.math.is_finite(greatest), greatest, tf.zeros([], scores.dtype))


def not_negative(losses: Array) -> Array:
    """Losses whose paths share a probability of 1: what rounding has left below 0 is 0, and has a gradient still."""
    return tf.where(losses < 0, losses - tf.stop_gradient(losses), losses)


def with_a_frame(scores: Array) -> Array:
    """Scores (N, T, ...) with a frame of padding where they have none: XLA has no loop over nothing."""
    num_frames = sizes(scores)[1]
    if isinstance(num_frames, int) and num_frames > 0:
        return scores
    missing = tf.maximum(1 - tf.cast(num_frames, tf.int64), 0)
    paddings = tf.stack([[0, 0], tf.stack([0, tf.cast(missing, tf.int32)]), *[[0, 0]] * (len(scores.shape) - 2)])
    return tf.pad(scores, paddings)


def undefined(*scores: Array) -> Array:
    """(N,) 0 with derivative 0, or NaN with derivative NaN in a sample that has a NaN or +inf among its scores."""
    axes = [list(range(1, len(own.shape))) for own in scores]
    defined = tf.reduce_all([tf.reduce_all(own < math.inf, axis) for own, axis in zip(scores, axes, strict=True)], 0)
    factor = tf.where(defined, tf.zeros([], tf.float64), tf.constant(math.nan, tf.float64))
    total = tf.zeros_like(factor)
    for own, axis in zip(scores, axes, strict=True):
        of_sample = [-1, *[1] * len(axis)]
        # Where all is well -inf is there, and 0 times it would not be 0.
        is_harmful = tf.reshape(defined, of_sample) & ~tf.math.is_finite(own)
        harmless = tf.cast(tf.where(is_harmful, tf.zeros([], own.dtype), own), tf.float64)
        total += tf.reduce_sum(tf.reshape(factor, of_sample) * harmless, axis)
    return total


def losses(log_all: Array, log_z: Array, undefined: Array) -> Array:
    """(N,) log_all - log_z; infinity with derivative 0 where no path exists, NaN where a score is undefined."""
    counted = (log_z != IMPOSSIBLE) | tf.math.is_nan(undefined)
    zero = tf.zeros([], tf.float64)
    difference = tf.where(counted, log_all, zero) - tf.where(counted, log_z, zero)
    return tf.where(counted, difference + undefined, tf.constant(math.inf, tf.float64))


def fold(step: Callable[..., Array], start: Array, planes: Sequence[Array]) -> Array:
    """What is left of ``start`` after a step for each entry of the planes' first axis."""
    return tf.foldl(lambda state, entry: step(state, *entry), tuple(planes), initializer=start)


def sizes(tensor: Array) -> tuple[Any, ...]:
    """The shape of a tensor: numbers where they are known beforehand, tensors of int64 elsewhere."""
    shape = tuple(tensor.shape)
    if None not in shape:
        return shape
    dynamic = tf.shape(tensor, tf.int64)
    return tuple(dynamic[k] if size is None else size for k, size in enumerate(shape))


def _finite(largest: Array) -> Array:
    return tf.where(largest == IMPOSSIBLE, tf.zeros([], largest.dtype), largest)


def _where_positive(total: Array, largest: Array) -> Array:
    possible = total != 0
    log = tf.math.log(tf.where(possible, total, tf.ones([], total.dtype))) + largest
    return tf.where(possible, log, tf.constant(IMPOSSIBLE, total.dtype))
