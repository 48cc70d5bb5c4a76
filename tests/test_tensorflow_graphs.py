"""TensorFlow's loss over graphs beside torch's, which has been compared with the enumeration of all paths."""

import os

import numpy as np
import pytest
import torch

import pathsum.torch
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.graphs import Graph, ctc_topology, linear, over_ctc
from test_graphs import random_graph

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = pytest.importorskip("tensorflow")

from pathsum.tensorflow import lattice_loss  # noqa: E402

IMPLEMENTATIONS = ("numba", "tensorflow")


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_random_graphs(impl):
    for seed in range(2):
        graphs = [random_graph(10 * seed + n) for n in range(5)]
        scores, lengths = tf.constant(numbers(5, 3, 3, seed=seed)), [3, 2, 3, 0, 1]
        given = torch.from_numpy(scores.numpy()).requires_grad_()
        expected = pathsum.torch.lattice_loss(given, graphs, lengths, reduction="none", batch_first=True)
        (wanted,) = torch.autograd.grad(expected[expected < torch.inf].sum(), given)
        with tf.GradientTape() as tape:
            tape.watch(scores)
            found = lattice_loss(scores, graphs, lengths, impl=impl)
            total = tf.reduce_sum(tf.where(found < np.inf, found, 0))
        np.testing.assert_allclose(found, expected.detach(), rtol=1e-9)
        np.testing.assert_allclose(tape.gradient(total, scores), wanted, atol=1e-9)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("in_a_graph", [False, True])
def test_weights_and_second_derivatives(impl, in_a_graph):
    graph = over_ctc(linear([1, 2]), 3)
    scores, weights, along = numbers(2, 4, 3), numbers(graph.num_arcs, seed=1), numbers(2, 4, 3, seed=2)

    def derivatives(x, y):
        with tf.GradientTape() as outer:
            outer.watch([x, y])
            with tf.GradientTape(persistent=True) as inner:
                inner.watch([x, y])
                loss = tf.reduce_sum(lattice_loss(x, graph, [4, 3], weights=y, fused_log_softmax=True, impl=impl))
            first, of_weights = inner.gradient(loss, [x, y])
            moved = tf.reduce_sum(first * along)
        return [loss, first, of_weights, *outer.gradient(moved, [x, y])]

    found = (tf.function(derivatives) if in_a_graph else derivatives)(tf.constant(scores), tf.constant(weights))
    given = [torch.from_numpy(array).requires_grad_() for array in (scores, weights)]
    options = {"reduction": "sum", "fused_log_softmax": True, "batch_first": True}
    loss = pathsum.torch.lattice_loss(given[0], graph, [4, 3], weights=given[1], **options)
    first = torch.autograd.grad(loss, given, create_graph=True)
    second = torch.autograd.grad((first[0] * torch.from_numpy(along)).sum(), given)
    for actual, wanted in zip(found, [loss, *first, *second], strict=True):
        np.testing.assert_allclose(actual, wanted.detach(), atol=1e-9)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_nan_infeasible_and_half_precision(impl):
    graph, scores = over_ctc(linear([1, 2]), 4), numbers(4, 3, 4).astype(np.float32)
    scores[0, 1, 1], scores[1, :, 3], scores[3, 2:] = np.nan, np.nan, np.nan
    given = tf.constant(scores)
    with tf.GradientTape() as tape:
        tape.watch(given)
        found = lattice_loss(given, graph, [3, 3, 1, 2], impl=impl)
        total = tf.reduce_sum(found[1:2]) + tf.reduce_sum(found[3:])
    assert np.isnan(found).tolist() == [True, False, False, False]
    assert found[2] == np.inf
    assert lattice_loss(given, graph, [3, 3, 1, 2], zero_infinity=True, impl=impl)[2] == 0
    gradient = tape.gradient(total, given).numpy()
    assert np.isfinite(gradient[1:]).all()
    assert not gradient[2].any()
    half = tf.cast(given[1:2], tf.bfloat16)
    expected = lattice_loss(tf.cast(half, tf.float32), graph, impl=impl)
    np.testing.assert_allclose(lattice_loss(half, graph, impl=impl), expected, rtol=1e-6)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_frame_in_which_nothing_is_possible_leaves_no_path(impl):
    logits = np.zeros((2, 3, 2))
    logits[0, 1] = -np.inf
    given = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(given)
        found = lattice_loss(given, over_ctc(linear([1]), 2), fused_log_softmax=True, impl=impl)
        total = tf.reduce_sum(tf.where(found < np.inf, found, 0))
    np.testing.assert_allclose(found, [np.inf, np.log(8 / 6)])  # 6 of 8 labellings
    gradient = tape.gradient(total, given).numpy()
    assert not gradient[0].any()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("call, error, words", [
    (lambda x: lattice_loss(x, [ctc_topology(3)]), InvalidValueError, "graphs must be one or one a sample"),
    (lambda x: lattice_loss(x, [1, 2]), InvalidTypeError, "graphs must be a Graph"),
    (lambda x: lattice_loss(x, linear([7])), InvalidValueError, "got 7 on arc 0"),
    (lambda x: lattice_loss(x, Graph([0], [0], [-1])), InvalidValueError, "no cycle of epsilon arcs"),
    (lambda x: lattice_loss(x, linear([1]), weights=x[0, 0]), InvalidValueError, "one entry an arc, A = 1"),
])  # fmt: skip
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call(tf.zeros((2, 3, 3)))
