"""Losses over any graph: beside the enumeration of all paths, and beside the losses that are such graphs."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pathsum import dispatch
from pathsum.errors import ImplementationError, InvalidTypeError, InvalidValueError, NotDifferentiableError
from pathsum.graphs import EPSILON, Graph, ctc_topology, linear, over_ctc, star, words
from pathsum.problems.crf import all_kmers
from pathsum.torch import (
    LatticeLoss,
    asg_loss,
    crf_ctc_loss,
    ctc_entropy,
    ctc_loss,
    ctc_posteriors,
    lattice_align,
    lattice_entropy,
    lattice_expected_risk,
    lattice_loss,
    lattice_posteriors,
    lattice_sample,
    lattice_score,
    lfmmi_loss,
    simple_ctc_loss,
)
from pathsum.torch.paths import graph_paths
from test_graphs import random_graph

IMPLEMENTATIONS = ("numba", "reference")
CLASSES = 3
# How many times as many random graphs as usually: see CONTRIBUTING.md.
TIMES = int(os.environ.get("PATHSUM_TEST_TIMES", "1"))
VECTORS = json.loads((Path(__file__).parent / "vectors" / "graphs.json").read_text())


def enumerated(graph, scores):
    """log Z, posteriors (T, C) and (A,), entropy and the scores of all paths."""
    paths = list(graph.paths(len(scores)))
    totals = np.array([p.score + sum(scores[t, c] for t, c in enumerate(p.labels)) for p in paths])
    classes, arcs = np.zeros_like(scores), np.zeros(graph.num_arcs)
    largest = totals.max(initial=-np.inf)
    if largest == -np.inf:
        return -np.inf, classes, arcs, 0.0, totals
    shares = np.exp(totals - largest)
    log_z = largest + np.log(shares.sum())
    shares /= shares.sum()
    for path, share in zip(paths, shares, strict=True):
        for t, c in enumerate(path.labels):
            classes[t, c] += share
        for arc in path.arcs:
            arcs[arc] += share
    entropy = log_z - (shares * np.where(shares > 0, totals, 0)).sum()
    return log_z, classes, arcs, entropy, totals


def random_batch(seed, *, scale=1.0, num_samples=6, num_frames=4):
    """Graphs, some twice, scores (T, N, C) and ragged lengths."""
    rng = np.random.default_rng(seed)
    kinds = [random_graph(1000 * seed + n) for n in range(num_samples - 1)]
    graphs = [*kinds, kinds[0]]
    scores = scale * rng.normal(size=(num_frames, num_samples, CLASSES))
    lengths = rng.integers(0, num_frames + 1, num_samples)
    return graphs, scores, lengths


LIMITS = [("numba", 2**30), ("numba", 0), ("reference", 0)]
SWEEPS = [(impl, scale, limit) for impl, limit in LIMITS for scale in (1.0, 400.0)]


@pytest.mark.parametrize("impl, scale, limit", SWEEPS)
def test_equal_to_enumeration(impl, scale, limit):
    for seed in range(TIMES * (40 if impl == "numba" else 12)):
        graphs, scores, lengths = random_batch(seed, scale=scale)
        given = torch.from_numpy(scores).requires_grad_()
        found = lattice_score(given, graphs, lengths, memory_limit=limit, impl=impl)
        (gradient,) = torch.autograd.grad(found.sum(), given)
        posteriors = lattice_posteriors(given, graphs, lengths, impl=impl)
        best = lattice_align(given, graphs, lengths, impl=impl)
        for n, (graph, length) in enumerate(zip(graphs, lengths, strict=True)):
            log_z, classes, _, _, totals = enumerated(graph, scores[:length, n])
            assert found[n].item() == pytest.approx(log_z, rel=1e-12, abs=1e-12)
            np.testing.assert_allclose(gradient[:length, n], classes, atol=1e-9)
            np.testing.assert_allclose(posteriors[n, :length], classes, atol=1e-9)
            assert not gradient[length:, n].any()
            assert not posteriors[n, length:].any()
            assert best.log_probs[n].item() == pytest.approx(totals.max(initial=-np.inf), rel=1e-12)
            arcs = best.arcs[n].tolist()
            assert arcs[length:] == [-1] * (len(arcs) - length)
            feasible = totals.max(initial=-np.inf) > -np.inf
            paths = [path for path, total in zip(graph.paths(int(length)), totals, strict=True)
                     if total > -np.inf and total == pytest.approx(totals.max(), rel=1e-12)]  # fmt: skip
            emitting = [tuple(arc for arc in path.arcs if graph.labels[arc] != EPSILON) for path in paths]
            assert tuple(arcs[:length]) in emitting if feasible else arcs == [-1] * len(arcs)
            taken = best.arcs[n, :length].numpy()
            if feasible:
                assert best.labels[n, :length].tolist() == graph.labels[taken].tolist()
                assert best.outputs[n, :length].tolist() == graph.outputs[taken].tolist()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_weights_entropies_and_risks_are_those_of_enumeration(impl):
    for seed in range(TIMES * (25 if impl == "numba" else 8)):
        graph, rng = random_graph(seed), np.random.default_rng(seed)
        scores, lengths = rng.normal(size=(3, 2, CLASSES)), [3, 2]
        costs = rng.normal(size=graph.num_arcs)
        weights = torch.from_numpy(rng.normal(size=graph.num_arcs)).requires_grad_()
        own = Graph(graph.sources, graph.destinations, graph.labels, weights.detach(), graph.start, graph.final)
        found = lattice_score(scores, graph, lengths, weights=weights, impl=impl)
        options = {"weights": weights, "reduction": "none", "impl": impl}
        entropies = lattice_entropy(scores, graph, lengths, **options)
        risks = lattice_expected_risk(scores, costs, graph, lengths, **options)
        upstream = torch.tensor([1.0, -0.5], dtype=torch.float64)
        (gradient,) = torch.autograd.grad(found, weights, upstream)
        expected = np.zeros(graph.num_arcs)
        for n, length in enumerate(lengths):
            log_z, _, arcs, entropy, _ = enumerated(own, scores[:length, n])
            assert found[n].item() == pytest.approx(log_z, rel=1e-12, abs=1e-12)
            assert entropies[n].item() == pytest.approx(entropy, abs=1e-10)
            assert risks[n].item() == pytest.approx(arcs @ costs, abs=1e-10)
            expected += upstream[n].item() * arcs
        np.testing.assert_allclose(gradient, expected, atol=1e-11)


@pytest.mark.parametrize("scale", [1.0, 30.0, 400.0])
def test_samples_that_share_a_graph(scale):
    # So many that some are solved side by side and some are left; scores in and out of reach of plain floats.
    for seed in range(15):
        graph, rng = random_graph(seed), np.random.default_rng(seed)
        scores = scale * rng.normal(size=(4, 21, CLASSES))
        scores[:, 3] = rng.normal(size=(4, CLASSES))
        lengths = rng.integers(0, 5, 21)
        if (graph.labels == 0).any() and graph.count_paths(4):
            scores[:, 7] = np.nan
        given = torch.from_numpy(scores).requires_grad_()
        found = lattice_score(given, graph, lengths)
        feasible = found[found > -torch.inf]
        (gradient,) = torch.autograd.grad(feasible.sum(), given)
        alone = lattice_score(given.detach(), [graph.trim() for _ in range(21)], lengths)
        np.testing.assert_allclose(found.detach(), alone, rtol=1e-13, atol=1e-12)
        for n, length in enumerate(lengths):
            if n == 7:
                continue
            log_z, classes, *_ = enumerated(graph, scores[:length, n])
            assert found[n].item() == pytest.approx(log_z, rel=1e-12, abs=1e-12)
            np.testing.assert_allclose(gradient[:length, n], classes, atol=1e-9)
            assert not gradient[length:, n].any()


def test_samples_far_from_one_another_share_a_graph():
    # A row of states: the first are left behind by more than a float64 holds.
    graph = over_ctc(linear([1, 2] * 60), 3)
    logits = logits_of(300, 5, 3, deviation=5.0)
    lengths = [300, 250, 121, 300, 119]
    gradients = []
    for graphs in (graph, [over_ctc(linear([1, 2] * 60), 3) for _ in range(5)]):
        given = logits.clone().requires_grad_()
        losses = lattice_loss(given, graphs, lengths, reduction="none", fused_log_softmax=True)
        gradients.append([losses.detach(), *torch.autograd.grad(losses[losses < torch.inf].sum(), given)])
    for actual, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_entropies_and_risks_of_different_graphs_at_once(impl):
    for seed in range(TIMES * (15 if impl == "numba" else 5)):
        graphs, scores, lengths = random_batch(seed)
        rng = np.random.default_rng(seed)
        different = list({id(graph): graph for graph in graphs}.values())
        tables = {id(graph): rng.normal(size=graph.num_arcs) for graph in different}
        given = torch.from_numpy(scores).requires_grad_()
        costs = [torch.from_numpy(tables[id(graph)]).requires_grad_() for graph in different]
        paths = graph_paths(given, graphs, lengths, impl=impl)
        entropies, risks = paths.entropy(), paths.expected(costs)
        by_costs = torch.autograd.grad(risks.sum(), costs, retain_graph=True)
        expected_counts = {id(graph): np.zeros(graph.num_arcs) for graph in different}
        for n, (graph, length) in enumerate(zip(graphs, lengths, strict=True)):
            _, _, arcs, entropy, _ = enumerated(graph, scores[:length, n])
            assert entropies[n].item() == pytest.approx(entropy, abs=1e-10)
            assert risks[n].item() == pytest.approx(arcs @ tables[id(graph)], abs=1e-10)
            expected_counts[id(graph)] += arcs
        for graph, found in zip(different, by_costs, strict=True):
            np.testing.assert_allclose(found, expected_counts[id(graph)], atol=1e-10)
        # Each alone, of which each has the gradient of the whole.
        (together,) = torch.autograd.grad((entropies + risks).sum(), given)
        for n, graph in enumerate(graphs):
            own = given.detach()[:, n].requires_grad_()
            alone = graph_paths(own, graph, [lengths[n]], impl=impl)
            both = alone.entropy() + alone.expected(tables[id(graph)])
            np.testing.assert_allclose(together[:, n], torch.autograd.grad(both, own)[0], atol=1e-10)


def test_paths_of_graphs_are_what_the_functions_are_made_of():
    graph, scores = over_ctc(linear([1]), 3), logits_of(4, 2, 3)
    paths = graph_paths(scores, graph, [4, 3])
    np.testing.assert_array_equal(paths.losses(), lattice_loss(scores, graph, [4, 3], reduction="none"))
    assert paths.loss() == lattice_loss(scores, graph, [4, 3])
    assert repr(paths) == "GraphPaths(graph_paths: N=2, T=4, C=3, 3 states, float64, impl='numba')"
    for empty in (graph, []):
        paths = graph_paths(torch.zeros(4, 0, 3, requires_grad=True), empty)
        for values in (paths.losses(), paths.entropy(), paths.expected(torch.zeros(paths.graphs[0].num_arcs))):
            assert values.shape == (0,)
            values.sum().backward()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_drawn_as_often_as_they_are_probable(impl):
    generator, count = torch.Generator().manual_seed(0), 3000 if impl == "numba" else 60
    for seed in range(12 if impl == "numba" else 4):
        graphs, scores, lengths = random_batch(seed, num_frames=3)
        drawn = lattice_sample(scores, graphs, lengths, num_samples=count, generator=generator, impl=impl)
        for n, (graph, length) in enumerate(zip(graphs, lengths, strict=True)):
            *_, totals = enumerated(graph, scores[:length, n])
            shares = {}
            for path, total in zip(graph.paths(int(length)), totals, strict=True):
                emitting = tuple(arc for arc in path.arcs if graph.labels[arc] != EPSILON)
                shares[emitting] = shares.get(emitting, 0.0) + np.exp(total - np.logaddexp.reduce(totals))
            arcs = [tuple(row[:length]) for row in drawn.arcs[n].tolist()]
            if not shares:
                assert (drawn.arcs[n] == -1).all()
                continue
            assert set(arcs) <= set(shares)
            for path, share in shares.items():
                # Five standard deviations.
                assert abs(arcs.count(path) / count - share) <= 5 * (share * max(1 - share, 0) / count) ** 0.5 + 1e-9


def test_twice_differentiable():
    for seed in (1, 4, 7, 12, 20):
        graph, generator = random_graph(seed), torch.Generator().manual_seed(seed)
        scores = torch.randn(3, 2, CLASSES, generator=generator, dtype=torch.float64, requires_grad=True)
        weights = torch.randn(graph.num_arcs, generator=generator, dtype=torch.float64, requires_grad=True)
        if graph.count_paths(3) == 0 or graph.count_paths(2) == 0:
            continue

        def score(scores, weights, graph=graph):
            return lattice_score(scores, graph, [3, 2], weights=weights)

        assert torch.autograd.gradcheck(score, (scores, weights))
        assert torch.autograd.gradgradcheck(score, (scores, weights))


@pytest.mark.parametrize("scale", [1.0, 400.0])
def test_hessian_vector_products_are_those_of_the_reference(scale):
    for seed in range(20):
        graphs, scores, lengths = random_batch(seed, scale=scale)
        along = torch.from_numpy(np.random.default_rng(seed).normal(size=scores.shape))
        products = []
        for impl in IMPLEMENTATIONS:
            given = torch.from_numpy(scores).requires_grad_()
            losses = lattice_score(given, graphs, lengths, impl=impl)
            (gradient,) = torch.autograd.grad(losses[losses > -torch.inf].sum(), given, create_graph=True)
            products.append(torch.autograd.grad((gradient * along).sum(), given)[0])
        np.testing.assert_allclose(*products, atol=1e-8)


def test_a_third_derivative_raises():
    scores = torch.randn(3, 1, 2, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(lattice_score(scores, ctc_topology(2)).sum(), scores, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), scores, create_graph=True)
    with pytest.raises(NotDifferentiableError):
        second.sum().backward()


def logits_of(num_frames, num_samples, num_classes, seed=0, dtype=torch.float64, deviation=1.0):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(num_frames, num_samples, num_classes, generator=generator, dtype=torch.float64)
    return (deviation * drawn).to(dtype)


@pytest.mark.parametrize("kind, function", [("standard", ctc_loss), ("simple", simple_ctc_loss)])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_ctc_as_a_graph(kind, function, impl):
    targets, lengths, sizes = [[1, 2, 2], [3, 1, 0], [0, 0, 0], [2, 2, 2]], [9, 6, 5, 4], [3, 2, 0, 3]
    graphs = [over_ctc(linear(y[:size]), 4, kind=kind) for y, size in zip(targets, sizes, strict=True)]
    both = []
    for loss in (lambda x: lattice_loss(x, graphs, lengths, reduction="none", fused_log_softmax=True, impl=impl),
                 lambda x: function(x, targets, lengths, sizes, reduction="none", fused_log_softmax=True)):  # fmt: skip
        logits = logits_of(9, 4, 4).requires_grad_()
        losses = loss(logits)
        both.append((losses.detach(), *torch.autograd.grad(losses.sum(), logits)))
    for actual, expected in zip(*both, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


def test_modified_ctc_counts_equal_neighbours_without_a_blank():
    # Of 1 1 in four frames: 15 paths, and 5 of them have the blank that the standard topology wants.
    scores = torch.zeros(4, 1, 2)
    counts = {kind: lattice_score(scores, over_ctc(linear([1, 1]), 2, kind=kind)).exp().item()
              for kind in ("standard", "modified")}  # fmt: skip
    assert counts == pytest.approx({"standard": 5.0, "modified": 15.0})


def test_all_labellings_sum_to_one():
    log_probs = logits_of(50, 2, 5).log_softmax(-1)
    for kind in ("standard", "simple"):
        np.testing.assert_allclose(lattice_score(log_probs, ctc_topology(5, kind=kind)), 0, atol=1e-12)


def test_posteriors_and_entropy_of_ctc():
    log_probs, target, graph = logits_of(6, 1, 3).log_softmax(-1), [[1, 2]], over_ctc(linear([1, 2]), 3)
    nodes = ctc_posteriors(log_probs, target, batch_first=False).nodes[0]
    by_class = torch.stack([nodes[:, 0::2].sum(1), nodes[:, 1], nodes[:, 3]], 1)
    np.testing.assert_allclose(lattice_posteriors(log_probs, graph)[0], by_class, atol=1e-12)
    expected = ctc_entropy(log_probs, target, [6], [2], reduction="sum")
    found = lattice_entropy(log_probs.requires_grad_(), graph)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(found, log_probs)
    (wanted,) = torch.autograd.grad(ctc_entropy(log_probs, target, [6], [2], reduction="sum"), log_probs)
    np.testing.assert_allclose(gradient, wanted, atol=1e-12)


def test_asg_is_two_graphs():
    classes, target = 3, [2, 0, 1]
    inputs, transitions = logits_of(6, 1, classes), logits_of(1, classes, classes, seed=1)[0]
    arcs = [(source, to, to, transitions[to, source]) for source in range(classes) for to in range(classes)]
    arcs += [(classes, to, to, 0.0) for to in range(classes)]
    every = Graph(*zip(*arcs, strict=True), start=classes, final=dict.fromkeys(range(classes), 0.0))
    chain = [(0, 1, target[0], 0.0)]
    for place, label in enumerate(target, 1):
        chain.append((place, place, label, transitions[label, label]))
        if place < len(target):
            chain.append((place, place + 1, target[place], transitions[target[place], label]))
    own = Graph(*zip(*chain, strict=True), final=len(target))
    expected = asg_loss(inputs, [target], transitions)
    assert lfmmi_loss(inputs, [own], every, reduction="sum").item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("vector", VECTORS["lattices"], ids=lambda vector: vector["name"])
def test_vectors(vector, impl):
    sources, to, labels, weights = zip(*vector["arcs"], strict=True)
    final = {int(state): score for state, score in vector["final"].items()}
    graph = Graph(sources, to, labels, weights, vector["start"], final)
    scores = torch.tensor(vector["scores"], dtype=torch.float64)[:, None].requires_grad_()
    assert graph.count_paths(len(scores)) == vector["paths"]
    found = lattice_score(scores, graph, impl=impl)
    assert found.item() == pytest.approx(vector["total"], rel=1e-12, abs=1e-12)
    np.testing.assert_allclose(torch.autograd.grad(found.sum(), scores)[0][:, 0], vector["gradient"], atol=1e-12)
    best = lattice_align(scores, graph, impl=impl)
    assert best.log_probs.item() == pytest.approx(vector["best"], rel=1e-9)
    assert best.labels[0].tolist() == vector["best_labels"]


def test_lfmmi_vector_scale_and_reductions():
    known = {vector["name"]: vector for vector in VECTORS["lattices"]}

    def graph(name):
        vector = known[name]
        final = {int(state): score for state, score in vector["final"].items()}
        return Graph(*zip(*vector["arcs"], strict=True), start=vector["start"], final=final)

    own, every, wanted = graph("lfmmi_num"), graph("lfmmi_den"), VECTORS["lfmmi"]
    scores = torch.tensor(known["lfmmi_den"]["scores"], dtype=torch.float64)[:, None].expand(-1, 2, -1)
    losses = lfmmi_loss(scores, [own, own], every, reduction="none")
    assert losses.tolist() == pytest.approx([wanted, wanted], rel=1e-10)
    assert lfmmi_loss(scores, [own, own], every).item() == pytest.approx(wanted / 4, rel=1e-10)
    total = lfmmi_loss(scores, [own, own], every, reduction="sum", den_scale=0.5)
    expected = 2 * (0.5 * known["lfmmi_den"]["total"] - known["lfmmi_num"]["total"])
    assert total.item() == pytest.approx(expected, rel=1e-10)
    given = scores.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(lfmmi_loss(given, own, every, reduction="sum"), given)
    shares = np.array(known["lfmmi_den"]["gradient"]) - np.array(known["lfmmi_num"]["gradient"])
    np.testing.assert_allclose(gradient[:, 0], shares, atol=1e-12)


def paths_of_bases(scores, state_len, first_state=None, states=None):
    """The sum over walks of k-mers by brute force: of all, or along given states."""
    count, num_frames = 4**state_len, len(scores)
    totals = []

    def walk(t, state, at, score):
        if t == num_frames:
            if states is None or at == len(states) - 1:
                totals.append(score)
            return
        walk(t + 1, state, at, score + scores[t, 5 * state])
        for base in range(4):
            following = (4 * state + base) % count
            dropped = state // 4 ** (state_len - 1)
            if states is None or (at + 1 < len(states) and states[at + 1] == following):
                walk(t + 1, following, at + 1, score + scores[t, 5 * following + 1 + dropped])

    for state in range(count) if states is None else states[:1]:
        walk(0, state, 0, 0.0)
    return np.logaddexp.reduce(totals) if totals else -np.inf


@pytest.mark.parametrize("state_len, target", [(1, [1, 4, 4]), (2, [3, 1, 1, 2]), (2, [2, 2]), (1, [])])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_crf_is_its_walks(state_len, target, impl):
    scores = logits_of(4, 1, 5 * 4**state_len)
    bases = [base - 1 for base in target]
    states = [sum(b * 4 ** (state_len - 1 - i) for i, b in enumerate(bases[n : n + state_len]))
              for n in range(len(bases) - state_len + 1)]  # fmt: skip
    plain = scores[:, 0].numpy()
    own = paths_of_bases(plain, state_len, states=states) if states else -np.inf
    expected = paths_of_bases(plain, state_len) - own
    given = scores.requires_grad_()
    arguments = (given, [target] if target else torch.zeros(1, 0, dtype=torch.int64), [4], [len(target)], state_len)
    loss = crf_ctc_loss(*arguments, "none", impl=impl)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    mean = crf_ctc_loss(*arguments, impl=impl)
    assert mean.item() == pytest.approx(expected / max(len(target), 1), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), given)
    # Every frame takes a class of both, or nothing where the target has no path.
    np.testing.assert_allclose(gradient.sum(-1), 0, atol=1e-12)
    assert all_kmers(state_len).num_states == 4**state_len


def test_long_inputs_keep_their_digits():
    # As a chain, whose own float64 kernel is the truth; frames scaled by their sums would give NaN here.
    num_frames, labels = 2000, (np.arange(300) % 4 + 1).tolist()
    graph = over_ctc(linear(labels), 5)
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 2e-6)):
        log_probs = logits_of(num_frames, 1, 5, deviation=3.0).log_softmax(-1).to(dtype)
        gradients = []
        for loss in (lambda x: lattice_loss(x, graph), lambda x: lattice_loss(x, graph, memory_limit=2**20),
                     lambda x: ctc_loss(x.double(), [labels], [num_frames], [300], reduction="sum")):  # fmt: skip
            given = log_probs.clone().requires_grad_()
            found = loss(given)
            gradients.append(torch.autograd.grad(found, given)[0])
            assert found.item() == pytest.approx(-lattice_score(log_probs.double(), graph).item(), rel=1e-7)
        np.testing.assert_allclose(gradients[0], gradients[2], atol=bound)
        np.testing.assert_array_equal(gradients[0], gradients[1])


@pytest.mark.parametrize("size", [300.0, 3000.0, 1e9])
def test_scores_and_weights_of_any_size(size):
    # Large enough for a state to leave its exponent, for a weight to have one, and for a score to be no plain float.
    for seed in range(12):
        rng = np.random.default_rng(seed)
        graph, length = random_graph(seed), int(rng.integers(1, 25))
        scores = 3 * rng.normal(size=(length, 1, CLASSES)) - size * (rng.random((length, 1, CLASSES)) < 0.2)
        weights = size / 3 * rng.integers(-1, 2, graph.num_arcs)
        found = []
        for impl, limit in (("numba", 2**30), ("numba", 0), ("reference", 2**30)):
            given = [torch.tensor(array, requires_grad=True) for array in (scores, weights)]
            loss = lattice_loss(given[0], graph, weights=given[1], reduction="sum", memory_limit=limit, impl=impl)
            found.append([loss.detach(), *torch.autograd.grad(loss, given)])
        for swept, again, expected in zip(*found, strict=True):
            np.testing.assert_array_equal(swept, again)
            np.testing.assert_allclose(swept, expected, rtol=1e-14, atol=1e-12 + 1e-15 * length**2 * size)


def test_the_same_for_any_number_of_threads(threads):
    graph, logits = ctc_topology(40), logits_of(120, 5, 40)
    weights = torch.randn(graph.num_arcs, dtype=torch.float64)
    found = []
    for count in (1, 2, 3):
        threads(count)
        given = [logits.clone().requires_grad_(), weights.clone().requires_grad_()]
        losses = lattice_score(given[0], graph, weights=given[1])
        found.append([losses.detach(), *torch.autograd.grad(losses.sum(), given)])
    for other in found[1:]:
        for actual, expected in zip(other, found[0], strict=True):
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_and_layouts(dtype):
    graph = over_ctc(words([[1], [2, 1]], 3), 4)
    log_probs = logits_of(8, 3, 4).log_softmax(-1).to(dtype)
    truth = log_probs.double().requires_grad_()
    expected = lattice_loss(truth, graph, [8, 7, 5], reduction="sum")
    (wanted,) = torch.autograd.grad(expected, truth)
    rounding = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    for batch_first in (False, True):
        given = (log_probs.transpose(0, 1).contiguous() if batch_first else log_probs.clone()).requires_grad_()
        loss = lattice_loss(given, graph, [8, 7, 5], reduction="sum", batch_first=batch_first)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        loss.backward()
        gradient = given.grad.transpose(0, 1) if batch_first else given.grad
        assert gradient.dtype == dtype
        np.testing.assert_allclose(gradient.double(), wanted, atol=2e-6, rtol=rounding)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_nan_stays_in_its_sample_and_infeasible_is_infinite(impl):
    graph = over_ctc(linear([1, 2]), 5)  # which does not emit 3 and 4
    scores = logits_of(4, 5, 5)
    scores[2, 1, 1] = torch.nan
    scores[1, 2, 0] = torch.inf
    scores[:, 3, 3:] = torch.nan  # read by nobody
    scores[2:, 4] = torch.nan  # padding
    scores[:, 0, 0] = -torch.inf
    given = scores.requires_grad_()
    losses = lattice_loss(given, graph, [4, 4, 4, 4, 1], reduction="none", impl=impl)
    assert losses.isnan().tolist() == [False, True, True, False, False]
    assert losses[4] == torch.inf
    (gradient,) = torch.autograd.grad(losses[[0, 3, 4]].sum(), given, retain_graph=True)
    assert gradient[:, [0, 3, 4]].isfinite().all()
    assert not gradient[:, 4].any()
    np.testing.assert_allclose(gradient[:, 3].sum(-1), -1)
    assert lattice_loss(given[:, 4:], graph, [1], zero_infinity=True, impl=impl) == 0
    (of_nan,) = torch.autograd.grad(losses[1], given)
    assert of_nan.isnan().any()
    align = lattice_align(given, graph, [4, 4, 4, 4, 1], impl=impl)
    assert align.log_probs.isnan().tolist() == [False, True, True, False, False]
    assert (align.arcs[[1, 2, 4]] == -1).all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_graphs_without_paths_and_batches_of_none(impl):
    for graph in (Graph([], [], [], final={}), Graph([0], [1], [0], final={}), Graph([0], [0], [0], start={}, final=0)):
        scores = torch.zeros(2, 3, 2, requires_grad=True)
        found = lattice_score(scores, graph, impl=impl)
        assert found.tolist() == [-torch.inf] * 3
        assert not torch.autograd.grad(found.sum(), scores)[0].any()
    assert (
        lattice_score(torch.zeros(0, 2, 1), Graph([0], [0], [0], start={0: 0.5}, final=0), impl=impl).tolist()
        == [0.5] * 2
    )
    assert lattice_score(torch.zeros(2, 0, 1), ctc_topology(1), impl=impl).shape == (0,)
    assert lattice_score(torch.zeros(2, 0, 1), [], impl=impl).shape == (0,)
    assert lattice_loss(torch.zeros(2, 2), ctc_topology(2), reduction="none", impl=impl).shape == ()


def test_paths_and_strings():
    known = {vector["name"]: vector["total"] for vector in VECTORS["lattices"]}
    assert known["ambiguous_paths"] > known["ambiguous_determinised"]
    twice = linear([1]).union(linear([1]))
    assert lattice_score(torch.zeros(1, 1, 2), twice).item() == pytest.approx(np.log(2))


def test_modules_and_reductions():
    graph, logits = star([1], 2), logits_of(5, 3, 3)
    each = lattice_loss(logits, graph, reduction="none")
    assert lattice_loss(logits, graph).item() == pytest.approx(each.mean().item())
    assert LatticeLoss(reduction="sum")(logits, graph).item() == pytest.approx(each.sum().item())
    assert lattice_score(logits, graph, reduction="mean").item() == pytest.approx(-each.mean().item())
    weights = torch.full((graph.num_arcs,), -1.0)
    assert LatticeLoss(reduction="none")(logits, graph, weights=weights)[0] == pytest.approx(each[0].item() + 5)


CYCLE = Graph([0, 1, 1], [1, 0, 1], [-1, -1, 0])
EVERY = ctc_topology(3)
WRONG_VALUES = [
    (lambda x: lattice_score(x, [EVERY]), "graphs must be one or one a sample, N = 2; got 1"),
    (
        lambda x: lattice_score(x, ctc_topology(4)),
        r"lattice_score: graphs must have labels in \[0, C\) with C = 3; got 3",
    ),
    (lambda x: lattice_loss(x, [linear([1, 1]), linear([1, 5])]), "got 5 on arc 1 at sample 1"),
    (
        lambda x: lattice_score(x, CYCLE),
        "lattice_score: graphs must have no cycle of epsilon arcs; got one through state",
    ),
    (lambda x: lattice_score(x, [EVERY, CYCLE]), "got one through state [01] at sample 1"),
    (lambda x: lattice_score(x, EVERY, [3, 5]), "input_lengths must lie in"),
    (lambda x: lattice_score(x, EVERY, [3]), "input_lengths must have one entry a sample"),
    (lambda x: lattice_score(x, EVERY, weights=torch.zeros(2)), "weights must have one entry an arc, A = 9"),
    (lambda x: lattice_score(x, EVERY, memory_limit=-1), "memory_limit must be at least 0"),
    (lambda x: lattice_score(x, EVERY, reduction="max"), "reduction must be one of"),
    (lambda x: lattice_sample(x, EVERY, num_samples=-1), "num_samples must be at least 0"),
    (lambda x: lattice_expected_risk(x, torch.zeros(8), EVERY), "costs must have one entry an arc, A = 9"),
    (lambda x: lattice_expected_risk(x, [torch.zeros(9)] * 3, EVERY), "costs must be one tensor a graph, 1; got 3"),
    (lambda x: lfmmi_loss(x, [linear([1])], EVERY), "numerators must be one or one a sample"),
    (lambda x: lfmmi_loss(x, linear([1]), EVERY, den_scale=torch.nan), "den_scale must be finite"),
    (lambda x: crf_ctc_loss(x, [[1], [2]], [4, 4], [1, 1], 1), "scores must have 5.* = 20 classes with k = 1"),
    (lambda x: crf_ctc_loss(x, [[1], [2]], [4, 4], [1, 1], 0), "state_len must be at least 1"),
    (lambda x: crf_ctc_loss(torch.zeros(4, 1, 20), [[5]], [4], [1], 1), "targets must lie in"),
    (lambda x: crf_ctc_loss(torch.zeros(4, 1, 20), [[0]], [4], [1], 1), "targets must not contain"),
]
WRONG_TYPES = [
    (lambda x: lattice_score(x, "graph"), "graphs must be a Graph or a list of them; got str"),
    (lambda x: lattice_score(x, [EVERY, 1]), "got int"),
    (lambda x: lattice_score(x, [EVERY] * 2, weights=torch.zeros(9)), "weights must be given with a single Graph"),
    (lambda x: lattice_score(x, EVERY, weights=torch.zeros(9).long()), "weights must have dtype"),
    (lambda x: lattice_score(x.long(), EVERY), "log_probs must have dtype"),
    (lambda x: lfmmi_loss(x, linear([1]), [EVERY]), "denominator must be a Graph"),
    (lambda x: lattice_sample(x, EVERY, generator=0.5), "generator must be a torch.Generator"),
]


@pytest.mark.parametrize("call, words", WRONG_VALUES)
def test_wrong_values(call, words):
    with pytest.raises(InvalidValueError, match=words):
        call(torch.zeros(4, 2, 3))


@pytest.mark.parametrize("call, words", WRONG_TYPES)
def test_wrong_types(call, words):
    with pytest.raises(InvalidTypeError, match=words):
        call(torch.zeros(4, 2, 3))


def test_an_implementation_without_kernels_is_refused_and_not_chosen(monkeypatch):
    monkeypatch.setattr(dispatch, "_has_triton", lambda: True)
    with pytest.raises(ImplementationError, match="lattice_sample: impl='triton' has no kernels that list or draw"):
        lattice_sample(torch.zeros(4, 2, 3), EVERY, impl="triton")
    assert dispatch.select("lattice_sample", "cuda", "auto", "routes") == "reference"
    assert dispatch.select("lattice_score", "cuda", "auto", "sparse") == "triton"


def test_transforms():
    graph = over_ctc(linear([1]), 3)
    scores = logits_of(4, 2, 3)
    given = scores.clone().requires_grad_()
    (expected,) = torch.autograd.grad(lattice_loss(given, graph), given)
    found = torch.func.grad(lambda x: lattice_loss(x, graph))(scores)
    np.testing.assert_allclose(found, expected, atol=1e-14)
    tangent = torch.randn(scores.shape, dtype=torch.float64)
    _, slope = torch.func.jvp(lambda x: lattice_loss(x, graph), (scores,), (tangent,))
    assert slope.item() == pytest.approx((expected * tangent).sum().item())
