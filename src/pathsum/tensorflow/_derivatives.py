"""Losses with their derivatives: those of TensorFlow's own operations, or the compiled kernels'.

The compiled kernels have two derivatives. Further ones, and those with respect to a tangent, are TensorFlow's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import record  # pyright: ignore

from pathsum.errors import NotDifferentiableError
from pathsum.kernels.tensorflow.grid import refuse
from pathsum.kernels.tensorflow.log_domain import with_a_frame
from pathsum.lattice import Array
from pathsum.tensorflow._ops import host
from pathsum.tensorflow._solvers import Batch, Integers, Solver

Scores = Sequence[Array]


def losses(solver: Solver, scores: Scores, batch: Batch) -> Array:
    """Losses (N,) in the dtype of arithmetic; NaN where a sample's integers are out of range."""
    if solver.impl == "numba":
        return _compiled(solver, scores, batch)
    losses = _plain(solver, scores, batch.integers)
    return losses if batch.valid is None else losses * tf.where(batch.valid, tf.ones([], losses.dtype), math.nan)


def _plain(solver: Solver, scores: Scores, integers: Integers) -> Array:
    """By TensorFlow's own operations, whose loops are those of a graph."""
    program = _program(solver) if tf.executing_eagerly() else solver.plain
    integers = Integers(*(tf.convert_to_tensor(array) for array in integers))
    return tf.cast(program((with_a_frame(scores[0]), *scores[1:]), integers), _work_dtype(scores[0]))


@cache
def _program(solver: Solver) -> Callable[..., Array]:
    return tf.function(solver.plain, autograph=False, reduce_retracing=True)


def _compiled(solver: Solver, scores: Scores, batch: Batch) -> Array:
    """By the kernels on arrays."""
    count = len(scores)
    work = _work_dtype(scores[0])

    def forward(*scores: Array) -> tuple[list[Array], Any]:
        def run(*arrays: Any) -> Any:
            lattice, valid = batch.lattice(solver, arrays[:count], arrays[count:])
            found = solver.forward(arrays[:count], lattice)
            if valid is not None:
                found[0][~valid] = np.nan
            return found

        result = scores[0].shape[:1], work
        values, *kept = host.call(run, [*scores, *batch.fed], [result], [dtype or work for dtype in solver.kept])
        return [values], lambda upstream: _gradient(solver, upstream, scores, batch, kept)

    return _with_gradient(forward, scores)[0]


def _gradient(solver: Solver, upstream: Array, scores: Scores, batch: Batch, kept: Sequence[Any]) -> Any:
    """The gradients of upstream * losses."""
    count = len(scores)
    end = count + len(batch.fed)

    def backward(upstream: Array, *scores: Array) -> tuple[list[Array], Any]:
        def run(upstream: Any, *arrays: Any) -> Any:
            lattice, _ = batch.lattice(solver, arrays[:count], arrays[count:end])
            return solver.backward(upstream, arrays[:count], lattice, arrays[end:])

        results = [(array.shape, array.dtype) for array in scores]
        gradients = host.call(run, [upstream, *scores, *batch.fed, *kept], results)

        def derivative(*tangents: Array) -> Any:
            if solver.reweighted:
                refuse()
            return _products(solver, tangents, upstream, scores, batch, kept)

        return gradients, derivative

    return _with_gradient(backward, [upstream, *scores])


def _products(
    solver: Solver, tangents: Scores, upstream: Array, scores: Scores, batch: Batch, kept: Sequence[Any]
) -> Any:
    """The derivatives of <tangents, gradients> with respect to the upstream gradient and to the scores."""
    count = len(scores)
    end = count + len(batch.fed)

    def move(*arguments: Array) -> tuple[list[Array], Any]:
        def run(*arrays: Any) -> Any:
            tangents, upstream, *rest = arrays[:count], *arrays[count:]
            lattice, _ = batch.lattice(solver, rest[:count], rest[count:end])
            return solver.hvp(tangents, upstream, rest[:count], lattice, rest[end:])

        results = [(array.shape, array.dtype) for array in arguments[count:]]
        products = host.call(run, [*arguments, *batch.fed, *kept], results)

        def derivative(*further: Array) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(arguments)
                again = _plain_products(solver, arguments, batch.integers)
            return tape.gradient(again, arguments, list(further), tf.UnconnectedGradients.ZERO)

        return products, derivative

    return _with_gradient(move, [*tangents, upstream, *scores])


def _with_gradient(function: Callable[..., tuple[list[Array], Any]], arguments: Scores) -> list[Array]:
    """What ``tf.custom_gradient`` does, which takes as long as a small loss to look at the function."""
    if not tf.executing_eagerly():
        return tf.custom_gradient(function)(*arguments)
    outputs, gradient = function(*arguments)
    record.record_operation("pathsum", outputs, list(arguments), gradient)
    return outputs


def _plain_products(solver: Solver, arguments: Sequence[Array], integers: Integers) -> Any:
    """The same by TensorFlow's own operations, of tangents, upstream gradient and scores."""
    count = len(arguments) // 2
    tangents, upstream, scores = arguments[:count], arguments[count], arguments[count + 1 :]
    with tf.GradientTape() as second:
        second.watch([upstream, *scores])
        with tf.GradientTape() as first:
            first.watch(scores)
            values = _plain(solver, scores, integers)
        gradients: Any = first.gradient(values, scores, upstream)
    if any(gradient is None for gradient in gradients):
        raise NotDifferentiableError("ForwardAccumulator cannot differentiate a gradient; a second GradientTape can")
    return second.gradient(gradients, [upstream, *scores], list(tangents), tf.UnconnectedGradients.ZERO)


def _work_dtype(scores: Array) -> Any:
    return tf.float64 if scores.dtype == tf.float64 else tf.float32
