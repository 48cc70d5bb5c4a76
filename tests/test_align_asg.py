"""Best paths and posteriors of ASG, beside all label sequences one by one."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pathsum.testing import assert_close, assert_same_bits
from pathsum.torch import asg_align, asg_loss, asg_posteriors, asg_viterbi, token_spans
from support import DTYPES, IMPLEMENTATIONS, tensor

CLASSES = 3


def score_of(path, inputs, transitions):
    moves = sum(transitions[to, before] for before, to in itertools.pairwise(path))
    return sum(inputs[t, label] for t, label in enumerate(path)) + moves


def stretches(target, num_frames):
    """The position in the target of every frame, for each way to stretch it."""
    if not target:
        return [()] if num_frames == 0 else []
    cuts = itertools.combinations(range(1, num_frames), len(target) - 1) if num_frames >= len(target) else []
    bounds = ([0, *cut, num_frames] for cut in cuts)
    return [tuple(s for s in range(len(target)) for _ in range(bound[s], bound[s + 1])) for bound in bounds]


def batch(data, ties):
    random = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    num_frames, num_labels = data.draw(st.integers(0, 5), label="frames"), data.draw(st.integers(0, 3), label="labels")
    draw = (lambda *shape: random.integers(0, 3, shape) * -0.5) if ties else (lambda *shape: random.normal(size=shape))
    inputs, transitions = draw(4, num_frames, CLASSES), draw(CLASSES, CLASSES)
    for scores in (inputs, transitions):
        scores[random.random(scores.shape) < data.draw(st.sampled_from([0.0, 0.0, 0.2]))] = -np.inf
    lengths, target_lengths = random.integers(0, num_frames + 1, 4), random.integers(0, num_labels + 1, 4)
    targets = random.integers(0, CLASSES, (4, num_labels))
    return inputs, transitions, targets, lengths, target_lengths


def filled(values, size, padding):
    return [*values, *[padding] * (size - len(values))]


@pytest.mark.parametrize("impl, examples", [("numba", 300), ("reference", 40)])
def test_the_best_of_all_paths_is_that_of_enumeration(impl, examples):
    @settings(max_examples=examples)
    @given(data=st.data())
    def check(data):
        inputs, transitions, _, lengths, _ = batch(data, ties=True)
        paths, scores = asg_viterbi(tensor(inputs), tensor(transitions), lengths, impl=impl)
        for n, length in enumerate(lengths):
            every = itertools.product(range(CLASSES), repeat=int(length))
            # The lowest last class, then the lowest before it, and so on.
            best, path = min((-score_of(path, inputs[n], transitions), path[::-1]) for path in every)
            expected = [-1] * length if best == np.inf else path[::-1]
            assert paths[n].tolist() == filled(expected, paths.shape[1], -1)
            assert scores[n].sum() == -best or length == 0

    check()


@pytest.mark.parametrize("impl, examples", [("numba", 300), ("reference", 40)])
def test_the_best_path_of_a_target_is_that_of_enumeration(impl, examples):
    @settings(max_examples=examples)
    @given(data=st.data())
    def check(data):
        inputs, transitions, targets, lengths, target_lengths = batch(data, ties=True)
        arguments = (tensor(inputs), targets, tensor(transitions), lengths, target_lengths)
        paths, scores, positions = asg_align(*arguments, impl=impl)
        for n, length in enumerate(lengths):
            target = targets[n, : target_lengths[n]]
            found = [
                (-score_of([target[s] for s in position], inputs[n], transitions), [-s for s in reversed(position)])
                for position in stretches(list(target), int(length))
            ]
            best, path = min(found, default=(np.inf, None))
            expected = [-1] * length if best == np.inf else [-s for s in reversed(path)]
            assert positions[n].tolist() == filled(expected, paths.shape[1], -1)
            labels = [target[s] if s >= 0 else -1 for s in expected]
            assert paths[n].tolist() == filled(labels, paths.shape[1], -1)
            assert scores[n].sum() == -best or length == 0

    check()


@pytest.mark.parametrize("impl, examples", [("numba", 100), ("reference", 20)])
def test_posteriors_are_those_of_enumeration(impl, examples):
    @settings(max_examples=examples)
    @given(data=st.data())
    def check(data):
        inputs, transitions, targets, lengths, target_lengths = batch(data, ties=False)
        arguments = (tensor(inputs), targets, tensor(transitions), lengths, target_lengths)
        found = asg_posteriors(*arguments, impl=impl)
        counts = np.zeros((CLASSES, CLASSES))
        for n, length in enumerate(lengths):
            classes = np.zeros(inputs.shape[1:])
            every = list(itertools.product(range(CLASSES), repeat=int(length)))
            for path, probability in weighted(every, [score_of(path, inputs[n], transitions) for path in every]):
                for t, label in enumerate(path):
                    classes[t, label] += probability
                for before, to in itertools.pairwise(path):
                    counts[to, before] += probability
            stays, entries = np.zeros((2, inputs.shape[1], max(targets.shape[1], 1)))
            target = list(targets[n, : target_lengths[n]])
            spelled = stretches(target, int(length))
            scores = [score_of([target[s] for s in path], inputs[n], transitions) for path in spelled]
            for path, probability in weighted(spelled, scores):
                for t, s in enumerate(path):
                    (stays if t and path[t - 1] == s else entries)[t, s] += probability
            assert_close(found.classes[n], classes, absolute=1e-12)
            assert_close(found.stays[n], stays, absolute=1e-12)
            assert_close(found.entries[n], entries, absolute=1e-12)
            assert_close(found.nodes[n], stays + entries, absolute=1e-12)
        assert_close(found.transitions, counts, absolute=1e-11)

    check()


def weighted(paths, scores):
    scores = np.array(scores)
    if not (scores > -np.inf).any():
        return []
    weights = np.exp(scores - scores.max())
    return list(zip(paths, weights / weights.sum(), strict=True))


# Ragged; long; wide.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_frames, num_classes, num_labels", [(30, 5, 6), (400, 30, 60), (60, 150, 9)])
def test_the_classes_of_a_frame_sum_to_one_and_the_path_is_the_references(dtype, num_frames, num_classes, num_labels):
    random = np.random.default_rng(num_frames)
    inputs, transitions = (
        tensor(random.normal(size=shape), DTYPES[dtype])
        for shape in ((3, num_frames, num_classes), (num_classes, num_classes))
    )
    targets = random.integers(0, num_classes, (3, num_labels))
    lengths = np.array([num_frames, num_frames // 2, num_frames - 1])
    found = asg_posteriors(inputs, targets, transitions, lengths)
    real = (np.arange(num_frames) < lengths[:, None]) * 1.0
    assert_close(found.classes.double().sum(2), real, absolute=1e-6)
    assert_close(found.nodes.double().sum(2), real, absolute=1e-6)
    assert_close(found.transitions.double().sum(), (lengths - 1).sum(), relative=1e-6)
    for results in (
        [asg_align(inputs, targets, transitions, lengths, impl=impl) for impl in IMPLEMENTATIONS],
        [asg_viterbi(inputs, transitions, lengths, impl=impl) for impl in IMPLEMENTATIONS],
    ):
        assert_same_bits(results[0].paths, results[1].paths)


def test_every_cut_carries_the_log_sum_of_all_paths():
    random = np.random.default_rng(0)
    inputs, transitions = 3 * random.normal(size=(20, 6)), 2 * random.normal(size=(6, 6))
    alpha, beta = np.zeros((2, 20, 6))
    alpha[0] = inputs[0]
    for t in range(1, 20):
        alpha[t] = inputs[t] + np.logaddexp.reduce(alpha[t - 1] + transitions, 1)
    for t in range(18, -1, -1):
        beta[t] = np.logaddexp.reduce(beta[t + 1] + inputs[t + 1] + transitions.T, 1)
    cuts = np.logaddexp.reduce(alpha + beta, 1)
    arguments = (tensor(inputs)[None], [[0, 1, 2]], tensor(transitions))
    # A target as long as the input has one path.
    target = np.arange(20) % 6
    loss = asg_loss(tensor(inputs)[:, None], target[None], tensor(transitions), reduction="sum").item()
    assert_close(cuts, np.full(20, loss + score_of(target, inputs, transitions)), relative=1e-12)
    assert_close(asg_posteriors(*arguments).classes[0], np.exp(alpha + beta - cuts[0]), absolute=1e-12)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_scores_of_the_ends_count(impl, dtype):
    inputs, ends = torch.zeros(2, 4, 3, dtype=DTYPES[dtype]), torch.tensor([0, 2, 1], dtype=DTYPES[dtype])
    transitions = torch.zeros(3, 3, dtype=DTYPES[dtype])
    options = {"start_scores": ends, "final_scores": -ends, "impl": impl}
    paths, scores = asg_viterbi(inputs, transitions, [4, 3], **options)
    assert paths.tolist() == [[1, 0, 0, 0], [1, 0, 0, -1]]
    assert scores.tolist() == [[2, 0, 0, 0], [2, 0, 0, 0]]
    aligned = asg_align(inputs, [[1, 2], [1, 2]], transitions, [4, 3], **options)
    assert aligned.scores.sum(1).tolist() == [1, 1]
    classes = asg_posteriors(inputs, [[1], [1]], transitions, [4, 3], **options).classes
    share = torch.tensor([0.0, 2, 1]).softmax(0).double()
    assert_close(classes[:, 0].double(), torch.stack([share, share]), absolute=1e-6)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_sample_that_does_not_fit_or_has_a_nan_leaves_the_others_alone(impl):
    inputs = tensor(np.random.default_rng(1).normal(size=(4, 5, 3)))
    transitions = tensor(np.random.default_rng(2).normal(size=(3, 3)))
    inputs[2, 1, 0] = torch.nan
    inputs[3, 4] = torch.nan  # padding
    targets, lengths = [[0, 1], [0, 1], [0, 1], [2, 0]], [5, 1, 5, 4]
    paths, scores, positions = asg_align(inputs, targets, transitions, lengths, impl=impl)
    for n in (0, 3):
        alone = asg_align(inputs[n : n + 1, : lengths[n]], targets[n : n + 1], transitions, impl=impl)
        assert_same_bits(paths[n, : lengths[n]], alone.paths[0])
        assert_same_bits(scores[n, : lengths[n]], alone.scores[0])
        assert paths[n, : lengths[n]].tolist() == [targets[n][s] for s in positions[n, : lengths[n]]]
    assert paths[1].tolist() == paths[2].tolist() == [-1] * 5
    assert scores[1].tolist() == [-torch.inf, 0, 0, 0, 0]
    assert scores[2].isnan().all()
    paths, scores = asg_viterbi(inputs, transitions, lengths, impl=impl)
    assert (paths[2] == -1).all()
    assert scores[2].isnan().all()
    assert (paths[[0, 1, 3], 0] >= 0).all()
    found = asg_posteriors(inputs, targets, transitions, lengths, impl=impl)
    assert found.nodes[2].isnan().all()
    assert found.classes[2].isnan().all()
    assert (found.nodes[1] == 0).all()
    assert_close(found.transitions.sum(), 4 + 0 + 3, absolute=1e-9)


def test_spans_of_the_best_path():
    inputs = torch.tensor([[[2.0, 0], [2, 0], [0, 2]]])
    paths, scores = asg_viterbi(inputs, torch.zeros(2, 2))
    assert [span[:3] for span in token_spans(paths[0], scores[0], blank=None)] == [(0, 0, 2), (1, 2, 3)]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, w: asg_align(x[0, 0], [[1]], w), r"asg_align: inputs must have shape \(N, T, C\)"),
        (lambda x, w: asg_align(x, [[1], [3]], w), r"asg_align: targets must lie in .* got 3 at sample 1"),
        (lambda x, w: asg_align(x, [[1], [1]], w[:2]), r"asg_align: transitions must have shape \(C, C\) = \(3, 3\)"),
        (lambda x, w: asg_align(x, [[1], [1]], w.double()), "asg_align: transitions must have dtype float32"),
        (lambda x, w: asg_align(x, [[1], [1]], w, start_scores=w), r"asg_align: start_scores must have shape \(C,\)"),
        (lambda x, w: asg_align(x, [[1], [1]], w, [4, 9]), "asg_align: input_lengths must lie in .* got 9 at sample 1"),
        (lambda x, w: asg_viterbi(x, w[0]), "asg_viterbi: transitions must have shape"),
        (lambda x, w: asg_viterbi(x, w, [4]), "asg_viterbi: input_lengths must have one entry a sample"),
        (lambda x, w: asg_viterbi(x, w, impl="best"), "asg_viterbi: impl must be one of"),
        (lambda x, w: asg_posteriors(x, [[1], [3]], w), "asg_posteriors: targets must lie in"),
    ],
)
def test_messages(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(torch.zeros(2, 4, 3), torch.zeros(3, 3))
