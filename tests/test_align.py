"""Best paths, posteriors and greedy decoding, beside enumeration of all paths."""

import copy
import itertools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pathsum.torch
from pathsum.problems.ctc import pose_ctc
from pathsum.problems.rnnt import pose_rnnt
from pathsum.problems.simple_ctc import pose_simple_ctc
from pathsum.testing import (
    assert_close,
    assert_same_bits,
    chain_inputs,
    count_paths,
    enumerate_paths,
    grid_inputs,
    sum_over_paths,
)
from pathsum.torch import (
    TokenSpan,
    asg_align,
    ctc_greedy_decode,
    ctc_loss,
    ctc_posteriors,
    forced_align,
    multi_blank_rnnt_greedy_decode,
    rnnt_align,
    rnnt_greedy_decode,
    rnnt_loss,
    rnnt_posteriors,
    simple_ctc_align,
    simple_ctc_posteriors,
    tdt_greedy_decode,
    token_spans,
    word_spans,
)
from support import DTYPES, IMPLEMENTATIONS, tensor

CHAIN = {"ctc": (forced_align, pose_ctc), "simple_ctc": (simple_ctc_align, pose_simple_ctc)}
CHAIN_POSTERIORS = {"ctc": (ctc_posteriors, pose_ctc), "simple_ctc": (simple_ctc_posteriors, pose_simple_ctc)}
# To stay before to step before to skip, and a blank before a label.
ORDER = {"stay": 0, "step": 1, "skip": 2, "blank": 0, "label": 1}

TARGETS = st.lists(st.integers(1, 2), max_size=3)


def best_of_all(scores, lattice, sample=0):
    """The best path by enumeration, ties by the documented rule: (score, its arcs), or (-inf, None)."""
    found = []
    for path in enumerate_paths(lattice, sample):
        score = sum(scores[(*arc.row, arc.label)] for arc in path)
        last = path[-1].target[1] if path else 0
        found.append((-score, last, [ORDER[arc.kind] for arc in reversed(path)], path))
    if not found or min(found)[0] == np.inf:
        return -np.inf, None
    score, *_, path = min(found)
    return -score, path


def batch_with_ties(data, most_frames, labels_first, most_labels=3, num_samples=5):
    """Scores (N, T, 3) or (N, T, U+1, 3), targets without a 0, and lengths, some of them 0."""
    random = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    num_frames = data.draw(st.integers(0, most_frames), label="frames")
    num_labels = data.draw(st.integers(0, most_labels), label="labels")
    shape = (num_samples, num_frames, *([num_labels + 1] if labels_first else []), 3)
    # Few values, exact in any float, so that many paths are equally good; some of them -inf.
    scores = random.integers(0, data.draw(st.integers(1, 4), label="values"), shape) * -0.5
    scores[random.random(shape) < data.draw(st.sampled_from([0.0, 0.0, 0.2]), label="impossible")] = -np.inf
    lengths = random.integers(0, num_frames + 1, num_samples), random.integers(0, num_labels + 1, num_samples)
    lengths[0][0], lengths[1][0] = num_frames, num_labels
    targets = random.integers(1, 3, (num_samples, num_labels))
    return scores, targets, *lengths


def posed(pose, targets, *lengths):
    return pose(np.pad(targets, ((0, 0), (0, 1))), *lengths, 0)  # no problem is posed without a label


@pytest.mark.parametrize("impl, examples", [("numba", 600), ("reference", 60)])
@pytest.mark.parametrize("loss", CHAIN)
def test_chains_best_path_is_that_of_enumeration(loss, impl, examples):
    align, pose = CHAIN[loss]

    @settings(max_examples=examples)
    @given(data=st.data())
    def check(data):
        scores, targets, lengths, target_lengths = batch_with_ties(data, most_frames=6, labels_first=False)
        lattice = posed(pose, targets, lengths, target_lengths)
        paths, path_scores = align(tensor(scores), targets, lengths, target_lengths, impl=impl)
        for n, length in enumerate(lengths):
            expected, arcs = best_of_all(scores[n], lattice, n)
            path = [-1] * length if arcs is None else [arc.label for arc in arcs]
            assert paths[n].tolist() == path + [-1] * (len(paths[n]) - length)
            if arcs is None:
                assert path_scores[n, :length].tolist() == [-np.inf] * length
            else:
                assert path_scores[n].sum().item() == expected

    check()


@pytest.mark.parametrize("impl, examples", [("numba", 600), ("reference", 60)])
def test_grids_best_path_is_that_of_enumeration(impl, examples):
    @settings(max_examples=examples)
    @given(data=st.data())
    def check(data):
        scores, targets, *lengths = batch_with_ties(data, most_frames=4, labels_first=True)
        lattice = posed(pose_rnnt, targets, *lengths)
        options = {"blank": 0, "fused_log_softmax": False, "impl": impl}
        frames, label_scores, log_probs = rnnt_align(tensor(scores), targets, *lengths, **options)
        for n, count in enumerate(lengths[1]):
            expected, arcs = best_of_all(scores[n], lattice, n)
            assert log_probs[n] == expected
            labels = [] if arcs is None else [arc for arc in arcs if arc.kind == "label"]
            emitted = [-1] * count if arcs is None else [arc.source[0] for arc in labels]
            their_scores = [-np.inf] * count if arcs is None else [scores[(n, *arc.row, arc.label)] for arc in labels]
            padding = len(frames[n]) - count
            assert frames[n].tolist() == emitted + [-1] * padding
            assert label_scores[n].tolist() == their_scores + [0] * padding

    check()


# One stretch; several; a last one that is short; states far beyond the reach of a stretch.
@pytest.mark.parametrize("num_frames, num_labels", [(40, 3), (300, 40), (301, 140), (500, 7)])
@pytest.mark.parametrize("loss", CHAIN)
def test_long_chains_are_those_of_the_reference(loss, num_frames, num_labels):
    inputs = chain_inputs(num_frames, 3, 9, num_labels, seed=num_frames)
    scores = tensor(inputs.logits).log_softmax(2).transpose(0, 1)
    expected = CHAIN[loss][0](scores, *inputs[1:], impl="reference")
    actual = CHAIN[loss][0](scores, *inputs[1:], impl="numba")
    assert_same_bits(actual.paths, expected.paths)
    assert_same_bits(actual.scores, expected.scores)


def test_long_grids_are_those_of_the_reference():
    inputs = grid_inputs(3, 30, 11, 7, seed=1)
    arguments = (tensor(inputs.logits), *inputs[1:])
    expected, actual = (rnnt_align(*arguments, impl=impl) for impl in ("reference", "numba"))
    assert_same_bits(actual.frames, expected.frames)
    assert_close(actual.scores, expected.scores, absolute=1e-12)
    assert_close(actual.log_probs, expected.log_probs, absolute=1e-12)


@pytest.mark.parametrize("loss", CHAIN)
@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbours_padding_and_strides_change_nothing(loss, dtype):
    align, _ = CHAIN[loss]
    inputs = chain_inputs(23, 4, 6, 5, blank=-1, seed=3)
    scores = tensor(inputs.logits, DTYPES[dtype])
    batch = scores.transpose(0, 1).contiguous()
    lengths = torch.from_numpy(inputs.input_lengths)
    batch[torch.arange(23) >= lengths[:, None]] = torch.nan
    expected = align(batch, *inputs[1:], blank=-1)
    strided = torch.stack([batch, batch], 3)[..., 0]
    assert_same_bits(align(strided, *inputs[1:], blank=5).paths, expected.paths)
    for n in range(4):
        frames, labels = int(inputs.input_lengths[n]), int(inputs.target_lengths[n])
        alone = align(batch[n : n + 1, :frames], inputs.targets[n : n + 1, :labels], blank=-1)
        assert_same_bits(alone.paths[0], expected.paths[n, :frames])
        assert_same_bits(alone.scores[0], expected.scores[n, :frames])
        assert expected.paths[n, frames:].tolist() == [-1] * (23 - frames)
        assert expected.scores[n, frames:].tolist() == [0] * (23 - frames)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_sample_that_does_not_fit_or_has_a_nan_leaves_the_others_alone(impl):
    log_probs = torch.randn(4, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(2)
    log_probs[2, 3, 1] = torch.nan
    targets, lengths = [[1, 2, 0], [1, 1, 1], [1, 2, 3], [3, 0, 0]], [5, 4, 5, 3]
    paths, scores = forced_align(log_probs, targets, lengths, [2, 3, 3, 1], impl=impl)
    for n in (0, 3):
        length, labels = lengths[n], [label for label in targets[n] if label]
        alone = forced_align(log_probs[n : n + 1, :length], [labels], impl=impl)
        assert_same_bits(paths[n, :length], alone.paths[0])
        assert_same_bits(scores[n, :length], alone.scores[0])
    assert paths[1].tolist() == paths[2].tolist() == [-1] * 5
    assert scores[1].tolist() == [-torch.inf] * 4 + [0]
    assert scores[2].isnan().all()


def test_a_class_that_the_target_does_not_have_may_be_nan():
    log_probs = torch.zeros(1, 3, 4)
    log_probs[:, :, 3] = torch.nan
    assert forced_align(log_probs, [[1, 2]]).paths.tolist() == [[1, 2, 2]]


def test_paths_have_the_dtype_of_the_targets_and_scores_that_of_the_scores():
    for integers in (torch.int32, torch.int64):
        for dtype in DTYPES.values():
            result = forced_align(torch.zeros(1, 3, 2, dtype=dtype), torch.ones(1, 1, dtype=integers))
            assert (result.paths.dtype, result.scores.dtype) == (integers, dtype)


def test_scores_are_differentiable():
    log_probs = torch.randn(
        2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True
    )
    paths, scores = forced_align(log_probs, [[1, 2], [2, 2]], [6, 4])
    (gradient,) = torch.autograd.grad(scores.sum(), log_probs)
    real = paths >= 0
    assert_same_bits(gradient, torch.nn.functional.one_hot(paths.clamp(min=0), 3).double() * real[:, :, None])


def test_batches_of_no_samples_and_of_no_frames():
    assert forced_align(torch.zeros(0, 4, 3), torch.zeros(0, 2, dtype=torch.int64)).paths.shape == (0, 4)
    assert forced_align(torch.zeros(2, 0, 3), [[1], [1]], [0, 0], [0, 1]).paths.shape == (2, 0)
    none = torch.zeros(0, dtype=torch.int64)
    assert rnnt_align(torch.zeros(0, 4, 3, 5), torch.zeros(0, 2, dtype=torch.int64), none, none).frames.shape == (0, 2)
    frames, _, log_probs = rnnt_align(torch.zeros(1, 0, 3, 5), [[1, 2]], [0], [2])
    assert frames.tolist() == [[-1, -1]]
    assert log_probs.tolist() == [-torch.inf]
    assert ctc_posteriors(torch.zeros(2, 0, 3), [[1], [1]]).nodes.shape == (2, 0, 3)
    assert ctc_greedy_decode(torch.zeros(0, 4, 3)).tokens.shape == (0, 0)
    assert ctc_greedy_decode(torch.zeros(2, 0, 3)).tokens.shape == (2, 0)


# ---- beside torchaudio ----


def vectors():
    return json.loads((Path(__file__).parent / "vectors" / "torchaudio_forced_align.json").read_text())["vectors"]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_forced_align_has_torchaudios_vectors(impl):
    for vector in vectors():
        log_probs = torch.tensor(vector["logits"], dtype=torch.float64)[None]
        paths, scores = forced_align(log_probs, [vector["target"]], blank=vector["blank"], impl=impl)
        assert paths[0].tolist() == vector["path"]
        assert scores[0].tolist() == vector["scores"]


@pytest.mark.peer
@settings(max_examples=300)
@given(
    num_frames=st.integers(1, 60),
    target=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    blank=st.sampled_from([0, 5]),
    seed=st.integers(0, 2**32),
)
def test_forced_align_equals_torchaudios(num_frames, target, blank, seed):
    functional = pytest.importorskip("torchaudio.functional")
    repeats = sum(a == b for a, b in itertools.pairwise(target))
    log_probs = tensor(np.random.default_rng(seed).standard_normal((1, num_frames + len(target) + repeats, 6)))
    targets = torch.tensor([target], dtype=torch.int32)
    expected = functional.forced_align(log_probs, targets, blank=blank)
    actual = forced_align(log_probs, targets, blank=blank)
    assert_same_bits(actual.paths, expected[0])
    assert_same_bits(actual.scores, expected[1])
    spans = token_spans(actual.paths[0], actual.scores[0], blank)
    assert [(s.token, s.start, s.end) for s in functional.merge_tokens(*(x[0] for x in expected), blank)] == [
        span[:3] for span in spans
    ]


@pytest.mark.peer
def test_where_a_step_and_a_skip_are_equal_torchaudio_may_stay_and_lose():
    functional = pytest.importorskip("torchaudio.functional")
    log_probs = torch.tensor([[[-9, 0, -9], [0, 0, -9], [0, 0, -5], [-9, -9, 0.0]]])
    targets = torch.tensor([[1, 2]])
    assert functional.forced_align(log_probs, targets)[1].sum() == -14
    assert forced_align(log_probs, targets).scores.sum() == 0


# ---- posteriors ----


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("loss", CHAIN_POSTERIORS)
@given(num_frames=st.integers(0, 5), target=TARGETS, impossible=st.sampled_from([0.0, 0.2]), seed=st.integers(0, 999))
def test_chains_posteriors_are_those_of_enumeration(loss, impl, num_frames, target, impossible, seed):
    find, pose = CHAIN_POSTERIORS[loss]
    random = np.random.default_rng(seed)
    scores = np.where(random.random((num_frames, 3)) < impossible, -np.inf, random.standard_normal((num_frames, 3)))
    lengths = np.array([num_frames]), np.array([len(target)])
    lattice = pose(np.array([[*target, -1]]), *lengths, 0)
    expected = {"stay": np.zeros((num_frames, lattice.skips.shape[1]))}
    expected["enter"] = np.zeros_like(expected["stay"])
    log_z = sum_over_paths(scores, lattice).log_z
    if log_z > -np.inf:
        for path in enumerate_paths(lattice):
            probability = np.exp(sum(scores[(*arc.row, arc.label)] for arc in path) - log_z)
            for arc in path:
                expected["stay" if arc.kind == "stay" else "enter"][arc.row[0], arc.target[1]] += probability
    nodes, stays, entries = find(tensor(scores)[None], [[*target, -1]], *lengths, impl=impl)
    assert_close(stays[0], expected["stay"], absolute=1e-12)
    assert_close(entries[0], expected["enter"], absolute=1e-12)
    assert_close(nodes[0], expected["stay"] + expected["enter"], absolute=1e-12)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@given(num_frames=st.integers(0, 4), target=TARGETS, impossible=st.sampled_from([0.0, 0.2]), seed=st.integers(0, 999))
def test_grids_posteriors_are_those_of_enumeration(impl, num_frames, target, impossible, seed):
    random = np.random.default_rng(seed)
    shape = (num_frames, len(target) + 1, 3)
    scores = np.where(random.random(shape) < impossible, -np.inf, random.standard_normal(shape))
    lengths = np.array([num_frames]), np.array([len(target)])
    lattice = pose_rnnt(np.array([[*target, -1]]), *lengths, 0)
    expected = {"blank": np.zeros(shape[:2]), "label": np.zeros(shape[:2])}
    log_z = sum_over_paths(scores, lattice).log_z
    if log_z > -np.inf:
        for path in enumerate_paths(lattice):
            probability = np.exp(sum(scores[(*arc.row, arc.label)] for arc in path) - log_z)
            for arc in path:
                expected[arc.kind][arc.source] += probability
    targets = np.array([target], np.int64).reshape(1, -1)
    nodes, blanks, labels = rnnt_posteriors(tensor(scores)[None], targets, *lengths, 0, False, impl=impl)
    assert_close(blanks[0], expected["blank"], absolute=1e-12)
    assert_close(labels[0], expected["label"][:, :-1], absolute=1e-12)
    assert_close(nodes[0], expected["blank"] + expected["label"], absolute=1e-12)


# Of ordinary size; peaky; long.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_frames, num_labels, std", [(30, 6, 1.0), (40, 9, 20.0), (700, 90, 3.0)])
@pytest.mark.parametrize("loss", CHAIN_POSTERIORS)
def test_the_nodes_and_the_arcs_of_a_frame_sum_to_one(loss, num_frames, num_labels, std, dtype):
    find, _ = CHAIN_POSTERIORS[loss]
    inputs = chain_inputs(num_frames, 3, 8, num_labels, std=std, seed=4)
    scores = tensor(inputs.logits, DTYPES[dtype]).transpose(0, 1)
    nodes, stays, entries = find(scores, *inputs[1:], fused_log_softmax=True)
    real = (np.arange(num_frames) < inputs.input_lengths[:, None]).astype(float)
    assert_close(nodes.double().sum(2), real, absolute=1e-6)
    assert_close(stays.double().sum(2) + entries.double().sum(2), real, absolute=1e-6)
    assert (nodes >= 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_frames, num_labels, std", [(12, 6, 1.0), (9, 14, 8.0), (150, 40, 3.0)])
def test_the_cuts_of_a_grid_sum_to_one(num_frames, num_labels, std, dtype):
    inputs = grid_inputs(3, num_frames, num_labels, 6, std=std, seed=5)
    nodes, blanks, labels = rnnt_posteriors(tensor(inputs.logits, DTYPES[dtype]), *inputs[1:])
    for n in range(3):
        length, count = int(inputs.logit_lengths[n]), int(inputs.target_lengths[n])
        own = nodes[n].double().numpy()
        diagonals = [
            sum(own[t, d - t] for t in range(d + 1) if t < length and d - t <= count) for d in range(length + count)
        ]
        assert_close(diagonals, np.ones(length + count), absolute=1e-6)
        assert_close(blanks[n].double().sum(1), (np.arange(num_frames) < length) * 1.0, absolute=1e-6)
        assert_close(labels[n].double().sum(0), (np.arange(num_labels) < count) * 1.0, absolute=1e-6)


def log_add(*terms):
    return np.logaddexp.reduce(np.array(terms, np.float64))


@pytest.mark.parametrize("loss", CHAIN_POSTERIORS)
@given(num_frames=st.integers(1, 30), target=st.lists(st.integers(1, 3), max_size=8), seed=st.integers(0, 999))
def test_every_cut_of_a_chain_carries_its_log_sum(loss, num_frames, target, seed):
    find, pose = CHAIN_POSTERIORS[loss]
    lengths = np.array([num_frames]), np.array([len(target)])
    lattice = pose(np.array([[*target, -1]]), *lengths, 0)
    scores = 3 * np.random.default_rng(seed).standard_normal((num_frames, 4))
    count = int(lattice.num_states[0])
    stay, step = lattice.stay_labels[0], lattice.step_labels[0]

    # Columns from state -2 on; alpha from the front, beta from the back, both by the recursion's own words.
    alpha = np.full((num_frames + 1, count + 2), -np.inf)
    beta = np.full((num_frames + 1, count + 4), -np.inf)
    alpha[0, lattice.start_state + 2] = 0
    first_final = max(count - lattice.num_final, -1)
    beta[num_frames, first_final + 2 : count + 2] = 0
    with np.errstate(invalid="ignore"):
        for t in range(num_frames):
            for s in range(count):
                skip = alpha[t, s] + scores[t, step[s]] if lattice.skips[0, s] else -np.inf
                alpha[t + 1, s + 2] = log_add(
                    alpha[t, s + 2] + scores[t, stay[s]], alpha[t, s + 1] + scores[t, step[s]], skip
                )
        for t in range(num_frames - 1, -1, -1):
            for s in range(lattice.start_state, count):
                leaving = [(s, stay)] if s >= 0 else []
                leaving += [(s + 1, step)] if s + 1 < count else []
                leaving += [(s + 2, step)] if s + 2 < count and lattice.skips[0, s + 2] else []
                terms = [beta[t + 1, to + 2] + scores[t, labels[to]] for to, labels in leaving]
                beta[t, s + 2] = log_add(-np.inf, *terms)
    through = alpha + beta[:, : count + 2]
    cuts = np.logaddexp.reduce(through, 1)
    loss_function = {"ctc": ctc_loss, "simple_ctc": pathsum.torch.simple_ctc_loss}[loss]
    log_z = -loss_function(tensor(scores)[:, None], [[*target, -1]], *lengths, reduction="sum").item()
    assert_close(cuts, np.full(num_frames + 1, log_z), relative=1e-12, absolute=1e-12)
    if log_z > -np.inf:
        nodes = find(tensor(scores)[None], [[*target, -1]], *lengths).nodes[0, :, :count]
        assert_close(nodes, np.exp(through[1:, 2:] - log_z), absolute=1e-11)


@given(num_frames=st.integers(1, 12), target=st.lists(st.integers(1, 3), max_size=8), seed=st.integers(0, 999))
def test_every_cut_of_a_grid_carries_its_log_sum(num_frames, target, seed):
    count = len(target)
    scores = 3 * np.random.default_rng(seed).standard_normal((num_frames, count + 1, 4))
    blank, label = scores[..., 0], np.take_along_axis(scores, np.array([*target, 0])[None, :, None], 2)[..., 0]
    alpha, beta = (np.full((num_frames + 1, count + 2), -np.inf) for _ in range(2))
    for t, u in itertools.product(range(num_frames), range(count + 1)):
        by_blank = alpha[t - 1, u] + blank[t - 1, u] if t else (0.0 if u == 0 else -np.inf)
        alpha[t, u] = log_add(by_blank, alpha[t, u - 1] + label[t, u - 1] if u else -np.inf)
    beta[num_frames, count] = 0
    for t, u in itertools.product(reversed(range(num_frames)), reversed(range(count + 1))):
        by_label = beta[t, u + 1] + label[t, u] if u < count else -np.inf
        beta[t, u] = log_add(beta[t + 1, u] + blank[t, u], by_label)
    inside = (slice(0, num_frames), slice(0, count + 1))
    by_blank = alpha[inside] + blank + beta[1:, : count + 1]
    by_label = (alpha[inside] + label + beta[:num_frames, 1:])[:, :count]
    through = (alpha + beta)[inside]
    diagonals = [
        log_add(*(through[t, d - t] for t in range(num_frames) if 0 <= d - t <= count))
        for d in range(num_frames + count)
    ]
    arguments = (tensor(scores)[None], np.array([target], np.int64).reshape(1, -1), [num_frames], [count])
    log_z = -rnnt_loss(*arguments, blank=0, fused_log_softmax=False, reduction="sum").item()
    for cut in (diagonals, np.logaddexp.reduce(by_blank, 1), np.logaddexp.reduce(by_label, 0)):
        assert_close(cut, np.full(len(cut), log_z), relative=1e-12, absolute=1e-12)
    nodes, blanks, labels = rnnt_posteriors(*arguments, blank=0, fused_log_softmax=False)
    assert_close(nodes[0], np.exp(through - log_z), absolute=1e-11)
    assert_close(blanks[0], np.exp(by_blank - log_z), absolute=1e-11)
    assert_close(labels[0], np.exp(by_label - log_z), absolute=1e-11)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_posteriors_of_samples_without_a_path_or_with_a_nan(impl):
    logits = torch.randn(3, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    logits[2, 1, 1] = torch.nan
    for plane in ctc_posteriors(logits, [[1, 2, 1], [1, 1, 1], [1, 2, 1]], impl=impl):
        assert plane[0].isfinite().all()
        assert (plane[1] == 0).all()
        assert plane[2].isnan().all()
    logits = torch.zeros(3, 2, 3, 3, dtype=torch.float64)
    logits[1], logits[2, 1, 0, 2] = -torch.inf, torch.nan
    for plane in rnnt_posteriors(logits, [[0, 1]] * 3, [2] * 3, [2] * 3, impl=impl):
        assert plane[0].isfinite().all()
        assert (plane[1] == 0).all()
        assert plane[2].isnan().all()


def test_a_posterior_of_one_means_a_path_of_its_own():
    lattice = pose_ctc(np.array([[1, 1]]), np.array([3]), np.array([2]), 0)
    assert count_paths(lattice) == 1
    nodes = ctc_posteriors(torch.zeros(1, 3, 2), [[1, 1]]).nodes
    assert nodes[0].argmax(1).tolist() == [1, 2, 3]
    assert nodes[0].amax(1).tolist() == [1, 1, 1]


# ---- spans and greedy decoding ----


def test_spans_of_a_path():
    path, scores = torch.tensor([2, 2, 0, 2, 1, 0, -1, -1]), torch.tensor([-1.0, -3, -9, -5, -6, -9, 0, 0])
    assert token_spans(path, scores) == [(2, 0, 2, -2.0), (2, 3, 4, -5.0), (1, 4, 5, -6.0)]
    assert [span[:3] for span in token_spans(path, scores, blank=None)][2] == (2, 3, 4)
    assert token_spans(path, scores)[1].seconds(0.5) == (1.5, 2.0)
    assert token_spans(path[:0], scores[:0]) == []
    for wrong in ((path[None], scores), (path, scores[1:])):
        with pytest.raises(ValueError, match=r"token_spans: (path|scores) must have shape"):
            token_spans(*wrong)


def test_one_span_for_each_label_of_the_target():
    log_probs = torch.tensor([[0.1, 0.1, 0.8], [0.2, 0.1, 0.7], [0.8, 0.1, 0.1]]).log()
    found = simple_ctc_align(log_probs, [2, 2])
    assert (found.paths.tolist(), found.positions.tolist()) == ([2, 2, 0], [0, 1, -1])
    spans = token_spans(found.paths, found.scores, positions=found.positions)
    assert [span[:3] for span in spans] == [(2, 0, 1), (2, 1, 2)]
    assert_close([span.confidence for span in spans], [0.8, 0.7], relative=1e-6)
    # A target of ASG's may repeat a label as well.
    found = asg_align(torch.zeros(4, 2), [1, 1, 0], torch.zeros(2, 2))
    assert found.positions.tolist() == [0, 1, 2, 2]
    assert [span[:3] for span in token_spans(found.paths, found.scores, positions=found.positions)] == [
        (1, 0, 1),
        (1, 1, 2),
        (0, 2, 4),
    ]


@pytest.mark.parametrize("loss", CHAIN)
@given(num_frames=st.integers(0, 9), target=TARGETS, seed=st.integers(0, 999))
def test_positions_spell_the_target(loss, num_frames, target, seed):
    scores = torch.randn(num_frames, 3, generator=torch.Generator().manual_seed(seed))
    found = CHAIN[loss][0](scores, target)
    if not num_frames or (found.paths < 0).any():
        assert (found.positions == -1).all()
        return
    assert ((found.positions == -1) == (found.paths == 0)).all()
    spans = token_spans(found.paths, found.scores, positions=found.positions)
    assert [span.token for span in spans] == target
    assert all(
        found.positions[span.start : span.end].tolist() == [k] * (span.end - span.start) for k, span in enumerate(spans)
    )
    if loss == "ctc":
        assert spans == token_spans(found.paths, found.scores)


def test_an_alignment_is_a_pair_that_keeps_its_positions():
    found = forced_align(torch.zeros(2, 4, 3), [[1], [2]])
    paths, scores = found
    assert paths is found.paths
    assert scores is found.scores
    for copied in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert torch.equal(copied.positions, found.positions)
        assert torch.equal(copied.paths, found.paths)


def test_a_negative_blank_counts_from_the_end_of_the_classes():
    path, scores = [4, 1, 1, 4, 2], [-1.0] * 5
    expected = token_spans(path, scores, blank=4)
    assert [span.token for span in expected] == [1, 2]
    assert token_spans(path, scores, blank=-1, num_classes=5) == expected
    assert token_spans(np.array(path, np.uint8), np.array(scores), blank=4) == expected
    with pytest.raises(
        ValueError, match="token_spans: blank must be at least 0 where num_classes is not given; got -1"
    ):
        token_spans(path, scores, blank=-1)
    with pytest.raises(ValueError, match=r"token_spans: blank must lie in \[-2, 2\)"):
        token_spans(path, scores, blank=-3, num_classes=2)
    with pytest.raises(TypeError, match="token_spans: blank must be an int"):
        token_spans(path, scores, blank=1.0)
    heard = torch.eye(3)[torch.tensor([[0, 2, 1]])] * 9
    options = (lambda tokens, state: (0.0 * tokens[:, None], state), torch.add)
    found = rnnt_greedy_decode(heard, None, *options, -1, num_classes=3, max_symbols=1)
    assert (
        found.tokens.tolist() == rnnt_greedy_decode(heard, None, *options, 2, max_symbols=1).tokens.tolist() == [[0, 1]]
    )


def test_words_are_what_their_tokens_are():
    spans = [TokenSpan(1, 0, 1, -1.0), TokenSpan(2, 2, 4, -4.0), TokenSpan(9, 4, 5, -9.0), TokenSpan(1, 7, 8, 0.5)]
    words = word_spans(spans, [2, 1], between=1)
    assert words == [(0, 4, -3.0), (7, 8, 0.5)]
    assert [word.confidence for word in words] == [np.exp(-3.0), 1.0]
    assert words[0].seconds(0.5) == (0.0, 2.0)
    assert word_spans(spans, [4]) == [(0, 8, (-1.0 - 8 - 9 + 0.5) / 5)]
    assert word_spans([], []) == []
    with pytest.raises(ValueError, match="word_spans: spans must have one entry a token, 5; got 4 entries"):
        word_spans(spans, [3, 1], between=1)
    with pytest.raises(ValueError, match="word_spans: lengths must be at least 1; got 0"):
        word_spans(spans, [4, 0])


@given(num_frames=st.integers(0, 9), blank=st.integers(-3, 2), seed=st.integers(0, 999))
def test_greedy_ctc_merges_runs_and_drops_blanks(num_frames, blank, seed):
    random = np.random.default_rng(seed)
    scores = random.integers(0, 3, (3, num_frames, 3)) * 1.0
    lengths = random.integers(0, num_frames + 1, 3)
    tokens, counts, frames, token_scores = ctc_greedy_decode(tensor(scores), lengths, blank)
    for n in range(3):
        best = scores[n, : lengths[n]].argmax(1)
        runs = [(label, next(run)) for label, run in itertools.groupby(range(lengths[n]), key=lambda t: best[t])]
        expected = [(label, t) for label, t in runs if label != blank % 3]
        count = len(expected)
        assert counts[n] == count
        assert list(zip(tokens[n, :count].tolist(), frames[n, :count].tolist(), strict=True)) == expected
        assert token_scores[n, :count].tolist() == [scores[n, t, label] for label, t in expected]
        assert (tokens[n, count:] == -1).all()


def _repeat(tokens, state):
    """A predictor."""
    return tokens[:, None], state


class Transducer(torch.nn.Module):
    """A predictor with an LSTM, whose states have the samples on axis 1, and a joiner."""

    def __init__(self, num_classes, size):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(num_classes, size)
        self.recurrent = torch.nn.LSTM(size, size, num_layers=2)
        self.output = torch.nn.Linear(size, num_classes)

    def predict(self, tokens, state):
        output, state = self.recurrent(self.embedding(tokens)[None], state)
        return output[0], state

    def join(self, frames, outputs):
        return 4 * self.output(torch.tanh(frames + outputs))


@pytest.mark.parametrize("max_symbols", [1, 2, 10])
def test_greedy_transducer_decoding_in_a_batch_is_that_of_each_sample(max_symbols):
    model = Transducer(5, 8).double()
    encoder_out = 2 * torch.randn(6, 12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    lengths = [12, 0, 7, 1, 12, 9]
    options = {"blank": 2, "max_symbols": max_symbols, "state_axis": 1}
    batch = rnnt_greedy_decode(encoder_out, lengths, model.predict, model.join, **options)
    assert batch.lengths.max() > 3
    for n, length in enumerate(lengths):
        tokens, frames, scores = [], [], []
        with torch.no_grad():
            output, state = model.predict(torch.tensor([2]), None)
            for t in range(length):
                for _ in range(max_symbols):
                    log_probs = model.join(encoder_out[n, t : t + 1], output)[0].log_softmax(0)
                    best = int(log_probs.argmax())
                    if best == 2:
                        break
                    tokens, frames, scores = [*tokens, best], [*frames, t], [*scores, log_probs[best].item()]
                    output, state = model.predict(torch.tensor([best]), state)
        count = int(batch.lengths[n])
        assert batch.tokens[n, :count].tolist() == tokens
        assert batch.frames[n, :count].tolist() == frames
        assert_close(batch.scores[n, :count], scores, absolute=1e-9)
        assert (batch.tokens[n, count:] == -1).all()


@pytest.mark.parametrize("max_symbols", [1, 3])
@pytest.mark.parametrize("kind", ["tdt", "multi_blank"])
def test_greedy_decoding_goes_as_many_frames_on_as_a_symbol_has(kind, max_symbols):
    """Beside a loop over one sample's frames, written from the definition."""
    durations, blank, big_blanks = ([1, 0, 3], 2, ()) if kind == "tdt" else ([2, 3], 2, (0, -1))
    num_classes = 6
    model = Transducer(num_classes + (3 if kind == "tdt" else 0), 8).double()
    encoder_out = 2 * torch.randn(6, 14, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    lengths = [14, 0, 7, 1, 13, 2]

    def join(frames, outputs):
        logits = model.join(frames, outputs)
        return (logits[:, :num_classes], logits[:, num_classes:]) if kind == "tdt" else logits

    options = {"max_symbols": max_symbols, "state_axis": 1}
    if kind == "tdt":
        batch = tdt_greedy_decode(encoder_out, lengths, model.predict, join, durations, blank, **options)
    else:
        arguments = (durations, big_blanks, blank - num_classes)
        options["num_classes"] = num_classes
        batch = multi_blank_rnnt_greedy_decode(encoder_out, lengths, model.predict, join, *arguments, **options)
    assert batch.lengths.max() > 3
    for n, length in enumerate(lengths):
        expected, t, emitted_here = [], 0, 0
        with torch.no_grad():
            output, state = model.predict(torch.tensor([blank]), None)
            while t < length:
                logits = join(encoder_out[n, t : t + 1], output)
                tokens = (logits[0] if kind == "tdt" else logits)[0].log_softmax(0)
                best = int(tokens.argmax())
                if kind == "tdt":
                    is_label = best != blank
                    order = logits[1][0].argsort(descending=True).tolist()
                    step = next(durations[d] for d in order if is_label or durations[d] > 0)
                else:
                    step = {blank: 1, 0: 2, num_classes - 1: 3}.get(best, 0)
                    is_label = step == 0
                if is_label:
                    expected.append((best, t, tokens[best].item(), step))
                    output, state = model.predict(torch.tensor([best]), state)
                emitted_here = emitted_here + 1 if step == 0 else 0
                if emitted_here == max_symbols:
                    emitted_here, step = 0, 1
                    t += 1
                    continue
                t += step
        count = int(batch.lengths[n])
        assert batch.tokens[n, :count].tolist() == [token for token, *_ in expected]
        assert batch.frames[n, :count].tolist() == [frame for _, frame, *_ in expected]
        assert_close(batch.scores[n, :count], [score for *_, score, _ in expected], absolute=1e-9)
        if kind == "tdt":
            assert batch.durations[n, :count].tolist() == [step for *_, step in expected]
        assert (batch.tokens[n, count:] == -1).all()


def test_states_may_be_nested():
    def predict(tokens, state):
        count = torch.zeros_like(tokens) if state is None else state["count"][0] + 1
        return torch.nn.functional.one_hot(count % 3, 3).float(), {"count": [count]}

    encoder_out = torch.tensor([[[0.0, 0, 0.5], [0, 0, 0.5]], [[0.0, 0, 2], [0.0, 0, 2]]])
    tokens = rnnt_greedy_decode(encoder_out, [2, 2], predict, torch.add, 2).tokens
    assert tokens.tolist() == [[0, 1], [-1, -1]]


# ---- bad input ----


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda x: forced_align(x[0, 0], [[1]]),
            r"forced_align: log_probs must have shape \(N, T, C\) or \(T, C\); got shape \(3,\)",
        ),
        (lambda x: forced_align(x.int(), [[1], [1]]), "forced_align: log_probs must have dtype"),
        (lambda x: forced_align(x, [[1], [3]]), r"forced_align: targets must lie in .* got 3 at sample 1"),
        (
            lambda x: forced_align(x, [[1], [0]]),
            "forced_align: targets must not contain the blank, 0; got 0 at sample 1",
        ),
        (lambda x: forced_align(x, [[1]]), "forced_align: target"),
        (
            lambda x: forced_align(x, [1, 1]),
            "forced_align: target_lengths must be given where targets are concatenated",
        ),
        (
            lambda x: forced_align(x, [[1], [1]], [4, 5]),
            r"forced_align: input_lengths must lie in .* got 5 at sample 1",
        ),
        (lambda x: forced_align(x, [[1], [1]], [4, 4], [1, 2]), r"forced_align: target_lengths .* got 2 at sample 1"),
        (lambda x: forced_align(x, [[1], [1]], blank=3), r"forced_align: blank must lie in \[-3, 3\); got 3"),
        (lambda x: forced_align(x, [[1], [1]], impl="best"), "forced_align: impl must be one of"),
        (lambda x: simple_ctc_align(x, [[1], [3]]), "simple_ctc_align: targets"),
        (lambda x: ctc_posteriors(x, [[1], [3]]), "ctc_posteriors: targets"),
        (lambda x: simple_ctc_posteriors(x, [[1], [3]]), "simple_ctc_posteriors: targets"),
        (lambda x: rnnt_align(x[0], [[1]], [4], [1]), r"rnnt_align: logits must have shape \(N, T, U\+1, V\)"),
        (lambda x: rnnt_align(x[None], [[1]], [2], [4]), "rnnt_align: target_lengths must lie in"),
        (lambda x: rnnt_posteriors(x[None], [[1]], [3], [1]), "rnnt_posteriors: logit_lengths must lie in"),
        (lambda x: ctc_greedy_decode(x, [4]), "ctc_greedy_decode: input_lengths must have one entry a sample, N = 2"),
        (lambda x: ctc_greedy_decode(x, [4, -1]), "ctc_greedy_decode: input_lengths must lie in .* got -1 at sample 1"),
        (lambda x: ctc_greedy_decode(x, None, 7), "ctc_greedy_decode: blank must lie in"),
        (lambda x: rnnt_greedy_decode(x, [4, 9], None, None, 0), "rnnt_greedy_decode: encoder_lengths must lie in"),
        (lambda x: rnnt_greedy_decode(x, None, None, None, -1), "blank must be at least 0 where num_classes is"),
        (
            lambda x: tdt_greedy_decode(x, None, None, None, [0], 0),
            "tdt_greedy_decode: durations must have one above 0",
        ),
        (lambda x: tdt_greedy_decode(x, None, None, None, [1, 1], 0), "tdt_greedy_decode: durations must be different"),
        (
            lambda x: tdt_greedy_decode(x, None, _repeat, lambda f, o: (f, f), [1, 2], 0),
            r"tdt_greedy_decode: join must return logits \(N, V\) and \(N, D\), D = 2",
        ),
        (
            lambda x: multi_blank_rnnt_greedy_decode(x, None, None, None, [2], [], 0),
            "multi_blank_rnnt_greedy_decode: big_blanks must have one class a duration, 1",
        ),
        (
            lambda x: multi_blank_rnnt_greedy_decode(x, None, _repeat, lambda f, o: f, [2], [0], 0),
            "multi_blank_rnnt_greedy_decode: big_blanks must differ from the blank",
        ),
        (
            lambda x: rnnt_greedy_decode(x, None, _repeat, lambda f, o: f, 5),
            r"rnnt_greedy_decode: blank must lie in \[-3, 3\); got 5",
        ),
        (lambda x: rnnt_greedy_decode(x, None, None, None, 0, max_symbols=0), "max_symbols must be at least 1"),
    ],
)
def test_messages(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(torch.zeros(2, 4, 3))


MEMORY = """
import resource, sys, torch
from pathsum.torch import forced_align
log_probs = torch.randn(1, 20000, 32, generator=torch.Generator().manual_seed(0)).log_softmax(2)
targets = torch.randint(1, 32, (1, 5000), generator=torch.Generator().manual_seed(1))
forced_align(log_probs[:, :100], targets[:, :20])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
paths, scores = forced_align(log_probs, targets)
assert scores.isfinite().all()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / (2**20 if sys.platform == "darwin" else 2**10))
"""


def test_half_an_hour_of_speech_is_aligned_in_little_memory():
    pytest.importorskip("resource")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, env=environment, check=True)
    # Two bits a frame and state would be 50 MB.
    assert float(done.stdout) < 25
