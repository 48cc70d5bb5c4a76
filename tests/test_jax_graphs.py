"""JAX's losses over graphs beside torch's, which have been compared with the enumeration of all paths."""

import numpy as np
import pytest
import torch

import pathsum.torch
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.graphs import Graph, ctc_topology, linear, over_ctc
from test_graphs import random_graph

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

import pathsum.jax  # noqa: E402

IMPLEMENTATIONS = ("numba", "jax")
pytestmark = pytest.mark.usefixtures("x64")


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_random_graphs(impl):
    for seed in range(2):
        graphs = [random_graph(10 * seed + n) for n in range(5)]
        scores, lengths = numbers(5, 3, 3, seed=seed), [3, 2, 3, 0, 1]
        given = torch.from_numpy(scores).requires_grad_()
        expected = pathsum.torch.lattice_loss(given, graphs, lengths, reduction="none", batch_first=True)
        (wanted,) = torch.autograd.grad(expected[expected < torch.inf].sum(), given)

        def total(x, graphs=graphs, lengths=lengths):
            return pathsum.jax.lattice_loss(x, graphs, lengths, reduction="sum", zero_infinity=True, impl=impl)

        np.testing.assert_allclose(
            pathsum.jax.lattice_loss(scores, graphs, lengths, impl=impl), expected.detach(), rtol=1e-9
        )
        np.testing.assert_allclose(jax.grad(total)(scores), wanted, atol=1e-9)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_weights_and_second_derivatives(impl):
    graph = over_ctc(linear([1, 2]), 3)
    scores, weights = numbers(2, 4, 3), numbers(graph.num_arcs, seed=1)

    def by_jax(x, y):
        return pathsum.jax.lattice_loss(x, graph, [4, 3], weights=y, reduction="sum", impl=impl)

    def by_torch(x, y):
        return pathsum.torch.lattice_loss(x, graph, [4, 3], weights=y, reduction="sum", batch_first=True)

    given = [torch.from_numpy(array).requires_grad_() for array in (scores, weights)]
    expected = torch.autograd.grad(by_torch(*given), given)
    for actual, wanted in zip(jax.grad(by_jax, (0, 1))(scores, weights), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-10)
    along = numbers(*scores.shape, seed=2)
    (first,) = torch.autograd.grad(by_torch(*given), given[:1], create_graph=True)
    wanted = torch.autograd.grad((first * torch.from_numpy(along)).sum(), given)
    products = jax.grad(lambda x, y: (jax.grad(by_jax)(x, y) * along).sum(), (0, 1))(scores, weights)
    for actual, of_torch in zip(products, wanted, strict=True):
        np.testing.assert_allclose(actual, of_torch, atol=1e-9)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_lfmmi_and_crf(impl):
    every, own = ctc_topology(4), [over_ctc(linear(y), 4) for y in ([1], [3, 2])]
    scores, lengths = numbers(2, 5, 4), np.array([5, 3])
    for reduction in ("none", "mean", "sum"):
        expected = pathsum.torch.lfmmi_loss(scores, own, every, lengths, reduction, den_scale=0.7, batch_first=True)
        found = pathsum.jax.lfmmi_loss(jnp.asarray(scores), own, every, lengths, reduction, den_scale=0.7, impl=impl)
        np.testing.assert_allclose(found, expected, rtol=1e-10)
        bases, arguments = numbers(2, 4, 80, seed=3), ([[1, 4, 2], [2, 2, 0]], [4, 3], [3, 2], 2, reduction)
        expected = pathsum.torch.crf_ctc_loss(bases, *arguments, batch_first=True)
        np.testing.assert_allclose(pathsum.jax.crf_ctc_loss(bases, *arguments, impl=impl), expected, rtol=1e-10)


def test_float32_keeps_its_digits_and_transforms():
    graph, long = over_ctc(linear([1, 2, 1]), 3), (3 * numbers(1, 600, 3)).astype(np.float32)

    def loss(x, impl="jax"):
        return pathsum.jax.lattice_loss(x, graph, fused_log_softmax=True, reduction="sum", impl=impl)

    given = torch.from_numpy(long).double().requires_grad_()
    expected = pathsum.torch.lattice_loss(given, graph, fused_log_softmax=True, reduction="sum", batch_first=True)
    (wanted,) = torch.autograd.grad(expected, given)
    for impl in IMPLEMENTATIONS:
        value, gradient = jax.jit(jax.value_and_grad(lambda x, impl=impl: loss(x, impl)))(long)
        assert value == pytest.approx(expected.item(), rel=1e-6)
        np.testing.assert_allclose(gradient, wanted, atol=1e-5)
    many = jax.vmap(lambda x: loss(x[None]))(jnp.asarray(numbers(3, 5, 3)))
    assert many.shape == (3,)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_nan_and_infeasible(impl):
    graph, scores = over_ctc(linear([1, 2]), 4), numbers(4, 3, 4)
    scores[0, 1, 1], scores[1, :, 3], scores[3, 2:] = np.nan, np.nan, np.nan
    found = pathsum.jax.lattice_loss(scores, graph, [3, 3, 1, 2], impl=impl)
    assert np.isnan(found).tolist() == [True, False, False, False]
    assert found[2] == np.inf
    gradient = jax.grad(lambda x: pathsum.jax.lattice_loss(x, graph, [3, 3, 1, 2], impl=impl)[1:].sum())(scores)
    assert np.isfinite(gradient[1:]).all()
    assert not gradient[2].any()
    assert not gradient[3, 2:].any()


@pytest.mark.parametrize("call, error, words", [
    (lambda x: pathsum.jax.lattice_loss(x, [ctc_topology(3)]), InvalidValueError, "graphs must be one or one a sample"),
    (lambda x: pathsum.jax.lattice_loss(x, [1, 2]), InvalidTypeError, "graphs must be a Graph"),
    (lambda x: pathsum.jax.lattice_loss(x, linear([7])), InvalidValueError, "got 7 on arc 0"),
    (lambda x: pathsum.jax.lattice_loss(x, Graph([0], [0], [-1])), InvalidValueError, "no cycle of epsilon arcs"),
    (lambda x: pathsum.jax.lattice_loss(x, linear([1]), weights=x[0, 0]), InvalidValueError, "one entry an arc, A = 1"),
    (lambda x: pathsum.jax.lfmmi_loss(x, linear([1]), [linear([1])]), InvalidTypeError, "denominator must be a Graph"),
    (lambda x: pathsum.jax.crf_ctc_loss(x, [[1], [1]], None, None, 1), InvalidValueError, "20 classes with k = 1"),
])  # fmt: skip
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call(jnp.zeros((2, 3, 3)))
