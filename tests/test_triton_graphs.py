"""The Triton kernels of graphs, interpreted, beside enumeration and beside the numba kernels in float64."""

import numpy as np
import pytest
import torch

from pathsum.graphs import EPSILON, Graph, linear, over_ctc
from pathsum.testing import assert_close, assert_same_bits
from pathsum.torch import lattice_align, lattice_entropy, lattice_posteriors, lattice_score
from support import random_like
from test_graphs import random_graph
from test_lattice import CLASSES, enumerated
from triton_targets import interpreted  # noqa: F401


def batch(seeds, *, scale, num_frames=3):
    """Different graphs, the first for two samples; scores (T, N, C), ragged lengths."""
    rng = np.random.default_rng(seeds[0])
    graphs = [random_graph(seed) for seed in seeds]
    graphs.append(graphs[0])
    scores = scale * rng.normal(size=(num_frames, len(graphs), CLASSES))
    return graphs, torch.from_numpy(scores), rng.integers(0, num_frames + 1, len(graphs))


def derivatives(scores, graphs, lengths, impl, weights=None, tangents=None, **options):
    """Scores of the graphs, first derivatives and, along the tangents, slopes and second ones."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in (scores, weights) if leaf is not None]
    options |= {} if weights is None else {"weights": leaves[1]}
    found = lattice_score(leaves[0], graphs, lengths, impl=impl, **options)
    upstream = torch.linspace(0.5, -1.5, len(found), dtype=found.dtype)
    counted = torch.where(found > -torch.inf, found, 0.0) @ upstream
    first = torch.autograd.grad(counted, leaves, create_graph=tangents is not None)
    results = [found.detach(), *(gradient.detach() for gradient in first)]
    if tangents is not None:
        along = torch.stack([(g * tangent).sum() for g, tangent in zip(first, tangents, strict=True)]).sum()
        results += [along.detach(), *torch.autograd.grad(along, leaves)]
    return results


def assert_agree(found, expected, absolute=1e-10):
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, relative=1e-11, absolute=absolute)


# Loops, parallel arcs, epsilon arcs, several starts and ends; a graph without states, one without a path, no frame.
# Scores in and out of reach of plain floats.
@pytest.mark.parametrize("scale", [1.0, 400.0])
def test_equal_to_enumeration(scale):
    graphs, scores, lengths = batch([28, 1001, 1000, 12], scale=scale)
    found, gradient = derivatives(scores, graphs, lengths, "triton")
    posteriors = lattice_posteriors(scores, graphs, lengths, impl="triton")
    best = lattice_align(scores, graphs, lengths, impl="triton")
    upstream = torch.linspace(0.5, -1.5, len(found))
    for n, (graph, length) in enumerate(zip(graphs, lengths, strict=True)):
        log_z, classes, *_, totals = enumerated(graph, scores[:length, n].numpy())
        assert found[n].item() == pytest.approx(log_z, rel=1e-12, abs=1e-12)
        assert_close(gradient[:length, n], upstream[n].item() * classes, absolute=1e-9)
        assert_close(posteriors[n, :length], classes, absolute=1e-9)
        assert not gradient[length:, n].any()
        assert not posteriors[n, length:].any()
        assert best.log_probs[n].item() == pytest.approx(totals.max(initial=-np.inf), rel=1e-12)
    expected = lattice_align(scores, graphs, lengths, impl="reference")
    assert_same_bits(best.arcs, expected.arcs)
    assert_same_bits(best.labels, expected.labels)


# Two states more than a block has rows would take long: so has a state more arcs than it has lanes, of both kinds.


def broad():
    rng = np.random.default_rng(0)
    emitting, silent = [(0, 0), (0, 1), (2, 1)] * 40, [(0, 1)] * 90 + [(1, 2)]
    sources, to = zip(*emitting, *silent, strict=True)
    labels = [*rng.integers(0, 2, len(emitting)), *[EPSILON] * len(silent)]
    return Graph(sources, to, labels, rng.normal(size=len(labels)), start=[0.1, -np.inf, 0.3], final=[0.2, 0.4, 0.0])


@pytest.mark.parametrize("graph", [random_graph(16), broad()], ids=["narrow", "broad"])
def test_derivatives_by_scores_and_weights(graph):
    scores = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 2, CLASSES)))
    weights = torch.tensor(graph.weights)
    both = [derivatives(scores, graph, [3, 2], impl, weights, random_like([scores, weights]))
            for impl in ("triton", "numba")]  # fmt: skip
    assert both[0][2].abs().max() > 1e-3
    assert_agree(both[0], both[1])
    best = [lattice_align(scores, graph, [3, 2], impl=impl).arcs for impl in ("triton", "numba")]
    assert_same_bits(*best)


def test_entropies_of_different_graphs():
    graphs, scores, lengths = batch([40, 10], scale=1.0, num_frames=2)
    found, expected = (lattice_entropy(scores, graphs, lengths, reduction="none", impl=impl)
                       for impl in ("triton", "numba"))  # fmt: skip
    assert_close(found, expected, absolute=1e-11)


# float32 as its own, bfloat16 to its rounding; of a memory for no frame each sample is a group.
def test_dtypes_and_memory():
    graph = over_ctc(linear([1, 2, 2]), 3)
    scores = torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(0)).log_softmax(2)
    for dtype, rounding in ((torch.float32, 0.0), (torch.bfloat16, 2.0**-7)):
        given = scores.to(dtype)
        found = derivatives(given, graph, [9, 6], "triton")
        exact = derivatives(given.double(), graph, [9, 6], "numba")
        assert found[1].dtype == dtype
        assert_close(found[0], exact[0], relative=1e-6)
        assert_close(found[1], exact[1], absolute=2e-7, relative=rounding)
    for one, other in zip(derivatives(scores, graph, [9, 6], "triton", memory_limit=0),
                          derivatives(scores, graph, [9, 6], "triton"), strict=True):  # fmt: skip
        assert_same_bits(one, other)


def test_undefined_samples_and_weights_leave_the_others_alone():
    graph = Graph([0, 0, 1], [1, 1, 1], [0, 1, 1], [0.0, 0.5, 0.0], final=1)
    scores = torch.from_numpy(np.random.default_rng(2).normal(size=(2, 4, 3)))
    scores[1, 0, 2], scores[1, 1, 1], scores[1, 2], scores[1, 3] = torch.nan, torch.inf, -torch.inf, torch.nan
    both = [derivatives(scores, graph, [2, 2, 2, 1], impl, torch.tensor(graph.weights)) for impl in ("triton", "numba")]
    assert both[0][0].isnan().tolist() == [False, True, False, False]
    assert both[0][0][2] == -torch.inf
    for one, other in zip(*both, strict=True):
        assert_same_bits(one.isnan(), other.isnan())
        assert_close(one.nan_to_num(), other.nan_to_num(), relative=1e-12, absolute=1e-12)
    weights = torch.tensor([0.0, torch.nan, 0.0], dtype=torch.float64)
    assert lattice_score(scores[:, :1], graph, weights=weights, impl="triton").isnan().all()
    assert lattice_score(scores[:, :0], graph, impl="triton").shape == (0,)
