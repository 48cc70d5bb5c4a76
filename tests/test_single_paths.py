"""Paths that are listed in order and paths that are drawn, beside every path there is."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch

from pathsum.errors import ImplementationError, InvalidTypeError, InvalidValueError
from pathsum.graphs import EPSILON, Graph, ctc_topology
from pathsum.testing import assert_close
from pathsum.torch import lattice_sample
from pathsum.torch.paths import asg_paths, ctc_paths, graph_paths, rnnt_paths, simple_ctc_paths
from test_graphs import random_graph
from test_lattice import CLASSES, TIMES, random_batch
from test_paths import GRIDS, walks

IMPLEMENTATIONS = ("numba", "reference")
everywhere = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
close = partial(assert_close, relative=1e-9, absolute=1e-9)

TARGETS = [[1, 2, 0], [1, 1, 0], [2, 1, 2], [1, 0, 0], [0, 0, 0], [1, 0, 0]]
# ASG has no word for equal neighbours.
DIFFERENT = [TARGETS[0], [1, 0, 0], *TARGETS[2:]]
LENGTHS, SIZES = [5, 4, 3, 0, 4, 3], [2, 2, 3, 1, 0, 1]


def reads_as(frames):
    return tuple(label for label, _ in itertools.groupby(frames) if label != 0)


def once(frames):
    return tuple(label for label in frames if label != 0)


def stretched(frames):
    return tuple(label for label, _ in itertools.groupby(frames))


def anything(frames):
    return None


def frame_paths(kind, scores, transitions, impl):
    """Paths of T=5, N=6, C=3, and how a sequence of classes is told to be one of theirs."""
    integers = (TARGETS, LENGTHS, SIZES)
    if kind == "ctc":
        return ctc_paths(scores, *integers, impl=impl), reads_as
    if kind == "simple":
        return simple_ctc_paths(scores, *integers, impl=impl), once
    every, target = asg_paths(scores, DIFFERENT, transitions, LENGTHS, SIZES, impl=impl)
    return (target, stretched) if kind == "asg" else (every, anything)


def sequences(kind, reads, scores, transitions, n):
    """Every sequence of a sample and its score, from the best on."""
    found = []
    for frames in itertools.product(range(3), repeat=LENGTHS[n]):
        target = (DIFFERENT if reads is stretched else TARGETS)[n][: SIZES[n]]
        if reads is anything or reads(frames) == tuple(target):
            score = sum(float(scores[t, n, c]) for t, c in enumerate(frames))
            if kind in ("asg", "dense"):
                score += sum(float(transitions[b, a]) for a, b in itertools.pairwise(frames))
            found.append((score, frames))
    return sorted(found, key=lambda path: -path[0])


def as_expected(observed, shares, count):
    """Whether counts are those of a distribution: the statistic is within five deviations of a chi-square's mean.

    What is expected fewer than five times is not spread as that is, and is bounded alone.
    """
    assert set(observed) <= set(shares)
    cases = [(observed.get(path, 0), count * share) for path, share in shares.items()]
    assert all(seen <= 16 for seen, expected in cases if expected < 5)
    often = [(seen, expected) for seen, expected in cases if expected >= 5]
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in often)
    return statistic <= len(often) + 5 * (2 * len(often)) ** 0.5


def counted(rows):
    found = {}
    for row in rows:
        found[tuple(row)] = found.get(tuple(row), 0) + 1
    return found


@everywhere
@pytest.mark.parametrize("kind", ["ctc", "simple", "asg", "dense"])
def test_sequences_are_listed_and_drawn(kind, impl):
    generator = torch.Generator().manual_seed(7)
    scores = torch.randn(5, 6, 3, generator=generator, dtype=torch.float64)
    transitions = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    scores[1, 5, 1] = torch.nan
    scores[0, 4, 1] = -torch.inf
    paths, reads = frame_paths(kind, scores, transitions, impl)
    k, count = 12, 3000 if impl == "numba" else 150
    best, one, drawn = paths.k_best(k), paths.best(), paths.sample(count, generator)
    for n, length in enumerate(LENGTHS):
        if n == 5:
            assert best.log_probs[n].isnan().all()
            assert (best.paths[n] == -1).all()
            assert drawn.log_probs[n].isnan().all()
            continue
        every = [path for path in sequences(kind, reads, scores, transitions, n) if path[0] > -np.inf]
        expected = every[:k]
        close(best.log_probs[n, : len(expected)], np.array([score for score, _ in expected]))
        assert [tuple(row) for row in best.paths[n, : len(expected), :length].tolist()] == [f for _, f in expected]
        assert (best.log_probs[n, len(expected) :] == -torch.inf).all()
        assert (best.paths[n, len(expected) :] == -1).all()
        assert (best.paths[n, :, length:] == -1).all()
        if not every:
            assert (drawn.log_probs[n] == -torch.inf).all()
            assert (drawn.paths[n] == -1).all()
            continue
        assert best.paths[n, 0].tolist() == one.paths[n].tolist()
        scores_of = {frames: score for score, frames in every}
        totals = np.array([score for score, _ in every])
        shares = dict(zip((f for _, f in every), np.exp(totals - np.logaddexp.reduce(totals)), strict=True))
        rows = [tuple(row[:length]) for row in drawn.paths[n].tolist()]
        assert as_expected(counted(rows), shares, count)
        close(drawn.log_probs[n], np.array([scores_of[row] for row in rows]))
        if kind not in ("dense",):
            assert best.positions[n, 0].tolist() == one.positions[n].tolist()


@everywhere
@pytest.mark.parametrize("variant", GRIDS)
def test_walks_are_listed_and_drawn(variant, impl):
    num_frames, num_labels = 4, 2
    random, generator = np.random.default_rng(3), torch.Generator().manual_seed(1)
    shape = (3, num_frames, num_labels + 1)
    heads = [torch.from_numpy(2.0 * random.standard_normal((*shape, size))) for size in GRIDS[variant].heads]
    heads[0][2, 0, 0] = torch.nan
    integers = ([[2, 3], [4, 4], [5, 0]], [4, 3, 4], [2, 2, 1])
    paths = GRIDS[variant].paths(heads, *integers, impl=impl)
    k, count = 9, 2000 if impl == "numba" else 100
    best, one, drawn = paths.k_best(k), paths.best(), paths.sample(count, generator)
    assert best.log_probs[2].isnan().all()
    assert drawn.log_probs[2].isnan().all()
    assert (best.kinds[2] == -1).all()
    for n, (target, length, size) in enumerate(zip(*integers, strict=True)):
        if n == 2:
            continue
        out_of = GRIDS[variant].arcs([head[n] for head in heads], target[:size], length)
        every = []
        for walk in walks(out_of, (0, 0), (length, size)):
            every.append((sum(s for _, s, _ in walk), tuple(node[0] for node, _, label in walk if label)))
        every.sort(key=lambda walk: -walk[0])
        expected = every[:k]
        close(best.log_probs[n, : len(expected)], np.array([score for score, _ in expected]))
        assert [tuple(row) for row in best.frames[n, : len(expected), :size].tolist()] == [f for _, f in expected]
        assert (best.log_probs[n, len(expected) :] == -torch.inf).all()
        assert (best.kinds[n, len(expected) :] == -1).all()
        if not every:
            continue
        assert best.frames[n, 0].tolist() == one.frames[n].tolist()
        close(best.scores[n, 0], one.scores[n])
        # The kinds lead from the start to the end, each walk by others.
        kinds = [tuple(kind for kind in row if kind >= 0) for row in best.kinds[n, : len(expected)].tolist()]
        steps = getattr(paths.lattice, "arcs", ((1, 0), (0, 1)))
        for walk in kinds:
            if len(steps) not in walk:
                assert tuple(np.sum([steps[kind] for kind in walk], 0)) == (length, size)
        if "wildcard" not in variant:
            assert len(set(kinds)) == len(kinds)
        totals = np.array([score for score, _ in every])
        shares = {}
        for (_, frames), share in zip(every, np.exp(totals - np.logaddexp.reduce(totals)), strict=True):
            shares[frames] = shares.get(frames, 0.0) + share
        rows = [tuple(row[:size]) for row in drawn.frames[n].tolist()]
        assert as_expected(counted(rows), shares, count)
        distances = np.abs(drawn.log_probs[n].numpy()[:, None] - totals)
        assert distances.min(1).max() < 1e-9


@everywhere
def test_paths_of_graphs_are_listed_and_drawn(impl):
    generator, k = torch.Generator().manual_seed(0), 15
    for seed in range(TIMES * (25 if impl == "numba" else 3)):
        graphs, scores, lengths = random_batch(seed)
        for distinct in (False, True):
            paths = graph_paths(scores, graphs, lengths, impl=impl)
            best, one = paths.k_best(k, distinct), paths.best()
            for n, (graph, length) in enumerate(zip(graphs, lengths, strict=True)):
                every = []
                for path in graph.paths(int(length)):
                    score = path.score + sum(scores[t, n, c] for t, c in enumerate(path.labels))
                    outputs = tuple(int(graph.outputs[arc]) for arc in path.arcs if graph.outputs[arc] != EPSILON)
                    emitting = [arc for arc in path.arcs if graph.labels[arc] != EPSILON]
                    every.append((score, outputs, emitting))
                every = sorted((path for path in every if path[0] > -np.inf), key=lambda path: -path[0])
                expected = every[:k]
                if distinct:
                    best_of = {outputs: (s, outputs, arcs) for s, outputs, arcs in reversed(every)}
                    expected = sorted(best_of.values(), key=lambda path: -path[0])[:k]
                    told = best.outputs[n, : len(expected)].tolist()
                    strings = [tuple(c for c in row if c >= 0) for row in told]
                    assert len(set(strings)) == len(strings)
                close(best.log_probs[n, : len(expected)], np.array([score for score, _, _ in expected]))
                assert (best.log_probs[n, len(expected) :] == -torch.inf).all()
                assert (best.arcs[n, len(expected) :] == -1).all()
                # Of paths that are as good, by rounding either may be the first: each is one of those that there are.
                known = {}
                for score, outputs, arcs in every:
                    known.setdefault(tuple(arcs), []).append((score, outputs))
                rows = [tuple(row) for row in best.arcs[n, : len(expected), :length].tolist()]
                for row, log_prob in zip(rows, best.log_probs[n].tolist(), strict=False):
                    assert any(log_prob == pytest.approx(score, abs=1e-9) for score, _ in known[row])
                assert all(rows.count(row) <= len(known[row]) for row in rows)
                taken = best.arcs[n, : len(expected), :length].numpy()
                assert (best.labels[n, : len(expected), :length].numpy() == graph.labels[taken]).all()
                assert (best.outputs[n, : len(expected), :length].numpy() == graph.outputs[taken]).all()
                assert best.arcs[n, 0].tolist() == one.arcs[n].tolist()
        drawn = lattice_sample(scores, graphs, lengths, num_samples=20, generator=generator, impl=impl)
        every = graph_paths(scores, graphs, lengths, impl=impl).k_best(400)
        for n in range(len(graphs)):
            known = {}
            for arcs, log_prob in zip(every.arcs[n].tolist(), every.log_probs[n].tolist(), strict=True):
                known.setdefault(tuple(arcs), []).append(log_prob)
            for arcs, log_prob in zip(drawn.arcs[n].tolist(), drawn.log_probs[n].tolist(), strict=True):
                assert any(log_prob == pytest.approx(other, abs=1e-9) for other in known[tuple(arcs)])


@everywhere
def test_equals_are_listed_from_the_end_back(impl):
    # Of labellings of 1 in four frames: the lower last state first, and staying before stepping.
    paths = ctc_paths(torch.zeros(4, 1, 2), [[1]], impl=impl)
    states = [[row.index(1), 4 - row[::-1].index(1)] for row in paths.k_best(10).paths[0].tolist()]
    # (first, behind the last) frame of the 1: those that end in it, then the others.
    assert states[:4] == [[0, 4], [1, 4], [2, 4], [3, 4]]
    assert sorted(states) == [[a, b] for a in range(4) for b in range(a + 1, 5)]
    walks = rnnt_paths(torch.zeros(1, 3, 3, 3), [[1, 2]], [3], [2], 0, impl=impl).k_best(6)
    # By the last arc a blank; the earlier labels first, the last label counting most.
    assert walks.frames[0].tolist() == [[0, 0], [0, 1], [1, 1], [0, 2], [1, 2], [2, 2]]
    listed = graph_paths(torch.zeros(3, 1, 2), ctc_topology(2), impl=impl).k_best(8)
    arcs = listed.arcs[0].tolist()
    graph = ctc_topology(2)
    order = [[(graph.destinations[arc], graph.sources[arc], arc) for arc in reversed(row)] for row in arcs]
    assert order == sorted(order)


def test_implementations_list_equals_alike():
    # Small integers, whose sums are exact: many paths are as good as others.
    rng = np.random.default_rng(5)
    for seed in range(5):
        drawn = [random_graph(100 * seed + n) for n in range(3)]
        graphs = [
            Graph(g.sources, g.destinations, g.labels, g.weights.round(), g.start.round(), g.final.round())
            for g in drawn
        ]
        scores = rng.integers(-1, 2, (4, 3, CLASSES)).astype(float)
        for distinct in (False, True):
            found = [graph_paths(scores, graphs, impl=impl).k_best(25, distinct) for impl in IMPLEMENTATIONS]
            assert torch.equal(found[0].log_probs, found[1].log_probs)
            assert torch.equal(found[0].arcs, found[1].arcs)
    for variant in GRIDS:
        heads = [torch.from_numpy(rng.integers(-1, 2, (2, 4, 3, size)).astype(float)) for size in GRIDS[variant].heads]
        lists = [GRIDS[variant].paths(heads, [[2, 3], [4, 4]], [4, 3], [2, 1], impl=impl) for impl in IMPLEMENTATIONS]
        found = [paths.k_best(20) for paths in lists]
        np.testing.assert_allclose(found[0].log_probs, found[1].log_probs, atol=1e-12)


@everywhere
def test_distinct_strings_of_the_free_topology(impl):
    scores = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64).log_softmax(-1)
    best = graph_paths(scores, ctc_topology(3), [5, 4], impl=impl).k_best(100, distinct=True)
    for n, length in enumerate((5, 4)):
        every = {}
        for frames in itertools.product(range(3), repeat=length):
            score = sum(float(scores[t, n, c]) for t, c in enumerate(frames))
            every[reads_as(frames)] = max(score, every.get(reads_as(frames), -np.inf))
        expected = sorted(every.items(), key=lambda item: -item[1])
        found = [tuple(c for c in row if c >= 0) for row in best.outputs[n, : len(expected)].tolist()]
        assert found == [string for string, _ in expected]
        close(best.log_probs[n, : len(expected)], np.array([score for _, score in expected]))


def test_log_probs_are_differentiable_and_those_of_logits_are_normalised():
    logits = torch.randn(4, 1, 3, generator=torch.Generator().manual_seed(2)).requires_grad_()
    listed = ctc_paths(logits, [[1]], fused_log_softmax=True).k_best(10)
    assert listed.log_probs.dtype == torch.float32
    (gradient,) = torch.autograd.grad(listed.log_probs[0, 0], logits)
    shares = logits.detach().softmax(2)
    shares[torch.arange(4), 0, listed.paths[0, 0]] -= 1
    close(gradient, -shares, absolute=1e-6)
    # All ten: the loss, in float32.
    total = ctc_paths(logits, [[1]], fused_log_softmax=True).losses()
    close(listed.log_probs.logsumexp(1), -total, absolute=1e-5)
    best = ctc_paths(logits, [[1]], fused_log_softmax=True).best()
    close(best.scores.sum(1), listed.log_probs[:, 0], absolute=1e-5)
    alone = ctc_paths(logits[:, 0], [1], fused_log_softmax=True)
    assert alone.k_best(3).paths.shape == (3, 4)
    assert alone.sample(2).log_probs.shape == (2,)


@everywhere
def test_of_nothing(impl):
    scores = torch.zeros(4, 0, 3)
    targets = torch.zeros(0, 2, dtype=torch.int64)
    every, target = asg_paths(scores, targets, torch.zeros(3, 3), [], [], impl=impl)
    for paths in (ctc_paths(scores, targets, [], [], impl=impl), every, target, graph_paths(scores, [], impl=impl)):
        assert paths.k_best(2).log_probs.shape == (0, 2)
        assert paths.sample(3).log_probs.shape == (0, 3)
    walks = rnnt_paths(torch.zeros(0, 4, 3, 3), targets, [], [], 0, impl=impl)
    assert walks.k_best(2).frames.shape == (0, 2, 2)
    assert walks.sample(0).frames.shape == (0, 0, 2)
    # A frame, whose score is finite, and transitions, of which it takes none.
    every, target = asg_paths(torch.zeros(1, 1, 2), [[1]], torch.full((2, 2), torch.nan), impl=impl)
    assert every.k_best(3).log_probs.tolist() == [[0.0, 0.0, -torch.inf]]
    assert every.k_best(1).paths.tolist() == every.best().paths[:, None].tolist()
    empty = ctc_paths(torch.zeros(0, 1, 2), torch.zeros(1, 0, dtype=torch.int64), [0], [0], impl=impl)
    assert empty.k_best(2).log_probs.tolist() == [[0.0, -torch.inf]]
    assert empty.sample(2).log_probs.tolist() == [[0.0, 0.0]]


@everywhere
def test_huge_scores_and_their_neighbours(impl):
    scores = torch.zeros(3, 2, 2, dtype=torch.float64)
    scores[:, 0, 1] = 3000.0
    paths = ctc_paths(scores, [[1], [1]], impl=impl)
    drawn = paths.sample(50, torch.Generator().manual_seed(0))
    assert (drawn.paths[0] == 1).all()
    assert drawn.log_probs[0].tolist() == [9000.0] * 50
    assert len(drawn.paths[1].unique(dim=0)) == 6
    assert paths.k_best(2).log_probs.tolist() == [[9000.0, 6000.0], [0.0, 0.0]]


def test_a_generator_gives_the_same_paths_and_any_number_of_threads(threads):
    scores = torch.randn(30, 4, 5, generator=torch.Generator().manual_seed(0))
    paths = ctc_paths(scores, [[1, 2], [3, 4], [1, 1], [2, 2]])
    found = []
    for count in (1, 3):
        threads(count)
        found.append(paths.sample(5, torch.Generator().manual_seed(4)).paths)
    assert torch.equal(*found)
    assert not torch.equal(found[0], paths.sample(5).paths)


def test_what_cannot_be_listed_is_an_error():
    scores, logits = torch.zeros(4, 1, 3), torch.zeros(1, 3, 2, 3)
    steps, every = rnnt_paths(logits, [[1]], [3], [1], 0), graph_paths(scores, ctc_topology(3))
    for paths in (ctc_paths(scores, [[1]]), steps, every):
        for k in (0, -1):
            with pytest.raises(InvalidValueError, match="k must be at least 1"):
                paths.k_best(k)
        with pytest.raises(InvalidValueError, match="num_samples must be at least 0"):
            paths.sample(-1)
        with pytest.raises(InvalidTypeError, match="generator must be"):
            paths.sample(1, 0)
        paths.impl = "triton"
        for ask in (paths.k_best, paths.sample):
            with pytest.raises(ImplementationError, match="impl='triton' has no kernels that list or draw"):
                ask(1)
    with pytest.raises(InvalidTypeError, match="distinct"):
        graph_paths(scores, ctc_topology(3)).k_best(1, distinct=1)
