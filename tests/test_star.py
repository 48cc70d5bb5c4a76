"""The star of CTC: its column of scores by its formula, losses and best paths by enumeration."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathsum.testing import assert_close
from pathsum.torch import (
    CTCLoss,
    SimpleCTCLoss,
    ctc_entropy,
    ctc_expected_risk,
    ctc_loss,
    ctc_posteriors,
    forced_align,
    simple_ctc_align,
    simple_ctc_entropy,
    simple_ctc_expected_risk,
    simple_ctc_loss,
    simple_ctc_posteriors,
)
from support import IMPLEMENTATIONS

NUM_CLASSES, BLANK, STAR = 3, 1, 3


def collapse(labelling, simple=False):
    return [c for c in (labelling if simple else (c for c, _ in itertools.groupby(labelling))) if c != BLANK]


def probabilities_by_hand(logits, star):
    """(T, C+1): softmax, and the star's probability, 1 or that of no blank."""
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    of_star = np.ones(len(logits)) if star == "any" else 1 - probabilities[:, BLANK]
    return np.concatenate([probabilities, of_star[:, None]], 1)


def labellings(probabilities, target, simple=False):
    """Each labelling of the frames by classes and stars that reads as the target, with its probability."""
    for labelling in itertools.product(range(NUM_CLASSES + 1), repeat=len(probabilities)):
        if collapse(labelling, simple) == target:
            yield np.prod([probabilities[t, c] for t, c in enumerate(labelling)]), labelling


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("star", ["any", "label"])
@given(
    num_frames=st.integers(0, 5),
    target=st.lists(st.sampled_from([0, 2, STAR]), max_size=3),
    seed=st.integers(0, 999),
)
def test_losses_and_best_paths_are_those_of_enumeration(star, impl, num_frames, target, seed):
    logits = np.random.default_rng(seed).normal(size=(num_frames, NUM_CLASSES)) * 2
    found = list(labellings(probabilities_by_hand(logits, star), target))
    scores = torch.from_numpy(logits)
    integers = ([target], [num_frames], [len(target)])
    options = {"blank": BLANK - NUM_CLASSES, "star": star, "impl": impl}  # counted from the end of the classes given
    losses = [
        ctc_loss(scores[:, None], *integers, reduction="none", fused_log_softmax=True, **options),
        ctc_loss(scores.log_softmax(1)[:, None], *integers, reduction="none", **options),
    ]
    total = sum(probability for probability, _ in found)
    for loss in losses:
        assert_close(loss, [-np.log(total) if total > 0 else np.inf], relative=1e-9, absolute=1e-9)
    aligned = forced_align(scores.log_softmax(1), target, **options)
    if not found:
        assert (aligned.paths == -1).all()
        assert (aligned.positions == -1).all()
        return
    best = max(found)[0]
    assert_close(aligned.scores.sum().exp(), best, relative=1e-9)
    assert any(
        probability >= best * (1 - 1e-12) and list(path) == aligned.paths.tolist() for probability, path in found
    )
    shares = np.zeros((num_frames, NUM_CLASSES + 1))
    for probability, path in found:
        shares[range(num_frames), path] += probability / total
    nodes = ctc_posteriors(scores, target, fused_log_softmax=True, **options).nodes
    for k in set(target):
        assert_close(nodes[:, 1::2][:, [c == k for c in target]].sum(1), shares[:, k], absolute=1e-9)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("star", ["any", "label"])
@pytest.mark.parametrize("simple", [False, True], ids=["ctc", "simple"])
@pytest.mark.parametrize("target", [[STAR], [0, STAR, STAR, 2], [STAR, 0, 0], [0, STAR, 0, STAR, 2]], ids=str)
def test_all_that_is_asked_of_paths_with_stars_is_that_of_enumeration(impl, star, simple, target):
    logits = np.random.default_rng(len(target)).normal(size=(4, NUM_CLASSES)) * 2
    costs = np.random.default_rng(1).normal(size=(4, NUM_CLASSES + 1))
    found = list(labellings(probabilities_by_hand(logits, star), target, simple))
    weights = np.array([probability for probability, _ in found])
    shares = weights / weights.sum()
    scores, call = torch.from_numpy(logits), (target, 4, len(target), BLANK)
    options = {"star": star, "impl": impl, "fused_log_softmax": True}
    entropy = simple_ctc_entropy if simple else ctc_entropy
    risk = simple_ctc_expected_risk if simple else ctc_expected_risk
    path_costs = [costs[range(4), path].sum() for _, path in found]
    assert_close(entropy(scores, *call, "sum", **options), -(shares * np.log(shares)).sum(), absolute=1e-9)
    expected = risk(scores, torch.from_numpy(costs), *call, "sum", **options)
    assert_close(expected, (shares * path_costs).sum() if found else 0.0, absolute=1e-9)
    with pytest.raises(ValueError, match="costs must have"):
        risk(scores, torch.zeros(4, NUM_CLASSES), *call, **options)
    if simple:
        loss = -np.log(weights.sum()) if found else np.inf
        assert_close(simple_ctc_loss(scores, *call, "sum", **options), loss, absolute=1e-9)
        assert_close(SimpleCTCLoss(BLANK, "sum", **options)(scores, *call[:3]), loss, absolute=1e-9)
        aligned = simple_ctc_align(scores.log_softmax(1), *call, star=star, impl=impl)
        if found:
            assert_close(aligned.scores.sum().exp(), weights.max(), relative=1e-9)
            assert aligned.positions.tolist().count(-1) == 4 - len(target)
        entries = simple_ctc_posteriors(scores, *call, **options).entries
        for k in set(target):
            frames = [
                sum(share for share, (_, path) in zip(shares, found, strict=True) if path[t] == k) for t in range(4)
            ]
            assert_close(entries[:, 1:][:, [c == k for c in target]].sum(1), frames, absolute=1e-9)


@pytest.mark.parametrize("star", ["any", "label"])
def test_gradients_are_those_of_finite_differences_and_padding_is_not_read(star):
    logits = torch.randn(6, 2, NUM_CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits[4:, 1] = torch.nan
    logits.requires_grad_()
    criterion = CTCLoss(BLANK, "sum", fused_log_softmax=True, star=star)
    targets, lengths = torch.tensor([[0, STAR, 2], [STAR, 0, 0]]), ([6, 4], [3, 2])
    (gradient,) = torch.autograd.grad(criterion(logits, targets, *lengths), logits)
    assert (gradient[4:, 1] == 0).all()
    clean = logits.detach().clone()
    for t, n, c in itertools.product(range(6), range(2), range(NUM_CLASSES)):
        if t < lengths[0][n]:
            moved = [clean.clone(), clean.clone()]
            moved[0][t, n, c] += 1e-5
            moved[1][t, n, c] -= 1e-5
            up, down = (float(criterion(x, targets, *lengths)) for x in moved)
            assert abs((up - down) / 2e-5 - gradient[t, n, c]) < 1e-7


def test_without_labels_the_star_of_labels_is_impossible():
    alone = torch.zeros(1, 2, 1)
    assert ctc_loss(alone, [[1]], [2], [1], star="label", batch_first=True) == torch.inf
    assert (forced_align(alone, [[1]], star="label").paths == -1).all()
    assert forced_align(alone, [[1]], star="any").paths.tolist() == [[1, 1]]


def test_half_precision_and_messages():
    half = torch.zeros(1, 4, 3, dtype=torch.bfloat16).log_softmax(2)
    assert forced_align(half, [[1, 3]], star="any").scores.dtype == torch.float32
    assert ctc_loss(half, [[1, 3]], [4], [2], star="label", batch_first=True).dtype == torch.float32
    with pytest.raises(ValueError, match="ctc_loss: star must be one of any, label; got 'all'"):
        ctc_loss(half, [[1, 3]], [4], [2], star="all", batch_first=True)
    with pytest.raises(ValueError, match=r"forced_align: targets must lie in \[0, C\) with C = 4; got 4 at sample 0"):
        forced_align(half, [[4]], star="any")
    with pytest.raises(ValueError, match=r"forced_align: targets must lie in \[0, C\) with C = 3; got 3 at sample 0"):
        forced_align(half, [[3]])
