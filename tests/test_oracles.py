"""Losses and gradients against what cannot share their mistakes: enumeration, torch in float64, finite differences."""

import numpy as np
import pytest
import torch

from pathsum.problems.ctc import pose_ctc
from pathsum.problems.rnnt import pose_rnnt
from pathsum.problems.simple_ctc import pose_simple_ctc
from pathsum.testing import assert_close, chain_inputs, count_paths, grid_inputs, sum_over_paths
from pathsum.torch import rnnt_loss
from support import CHAIN, IMPLEMENTATIONS, chain_scores, solve, tensor

POSE = {"ctc": pose_ctc, "simple_ctc": pose_simple_ctc}


def by_logits(posteriors, log_probs):
    """The gradient of the loss by logits: each row's mass times its softmax, less the posteriors."""
    return posteriors.sum(-1, keepdims=True) * np.exp(log_probs) - posteriors


# One frame; a target as long as the input (feasible without repeats, infeasible with them); room to spare.
@pytest.mark.parametrize("num_frames, num_labels", [(1, 1), (4, 4), (6, 2), (5, 3)])
@pytest.mark.parametrize("fused", [False, True], ids=["log_probs", "logits"])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("loss", CHAIN)
def test_chain_losses_sum_their_paths(loss, impl, fused, num_frames, num_labels):
    inputs = chain_inputs(num_frames, 4, 3, num_labels, seed=num_frames, std=2.0)
    scores = chain_scores(inputs, fused=fused)
    solved = solve(CHAIN[loss], scores, *inputs[1:], fused_log_softmax=fused, impl=impl)
    lattice = POSE[loss](inputs.targets, inputs.input_lengths, inputs.target_lengths, 0)
    log_probs = tensor(inputs.logits).log_softmax(-1).numpy()
    for n, frames in enumerate(inputs.input_lengths):
        log_z, posteriors = sum_over_paths(log_probs[:, n], lattice, n)
        assert_close(solved.loss[n], -log_z, absolute=1e-12)
        feasible = log_z > -np.inf
        expected = by_logits(posteriors, log_probs[:, n]) * feasible if fused else -posteriors
        expected[frames:] = 0
        assert_close(solved.gradient[:, n], expected, absolute=1e-12)


# One frame without and with labels; more labels than frames; more frames than labels.
@pytest.mark.parametrize("num_frames, num_labels", [(1, 0), (1, 3), (2, 4), (5, 2)])
@pytest.mark.parametrize("fused", [False, True], ids=["log_probs", "logits"])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_grid_losses_sum_their_paths(impl, fused, num_frames, num_labels):
    inputs = grid_inputs(4, num_frames, num_labels, 3, seed=num_frames, std=2.0)
    log_probs = tensor(inputs.logits).log_softmax(-1)
    scores = tensor(inputs.logits) if fused else log_probs
    solved = solve(rnnt_loss, scores, *inputs[1:], fused_log_softmax=fused, impl=impl)
    targets = np.pad(inputs.targets, ((0, 0), (0, 1)))  # posing wants at least one column
    lattice = pose_rnnt(targets, inputs.logit_lengths, inputs.target_lengths, 2)
    for n in range(4):
        log_z, posteriors = sum_over_paths(log_probs[n], lattice, n)
        assert_close(solved.loss[n], -log_z, absolute=1e-12)
        expected = by_logits(posteriors, log_probs[n].numpy()) if fused else -posteriors
        assert_close(solved.gradient[n], expected, absolute=1e-12)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_log_probs_of_zero_count_the_paths(impl):
    # 20 frames and up to 9 labels: too many paths to enumerate, few enough to hold in a float64.
    inputs = chain_inputs(20, 5, 4, 9, seed=3)
    for loss, function in CHAIN.items():
        lattice = POSE[loss](*inputs[1:], 0)
        counts = [count_paths(lattice, n) for n in range(5)]
        solved = solve(function, torch.zeros(20, 5, 4, dtype=torch.float64), *inputs[1:], impl=impl)
        assert_close((-solved.loss).exp(), counts, relative=1e-12)
    grid = grid_inputs(5, 20, 9, 4, seed=3)
    counts = [count_paths(pose_rnnt(*grid[1:], 3), n) for n in range(5)]
    zeros = torch.zeros(5, 20, 10, 4, dtype=torch.float64)
    solved = solve(rnnt_loss, zeros, *grid[1:], fused_log_softmax=False, impl=impl)
    assert_close((-solved.loss).exp(), counts, relative=1e-12)


# Shortest, odd and ragged, few classes (many repeats), and the size of a short utterance.
@pytest.mark.parametrize("size", [(1, 1, 2, 1), (11, 5, 7, 3), (13, 8, 3, 4), (150, 4, 33, 40)], ids=str)
@pytest.mark.parametrize("fused", [False, True], ids=["log_probs", "logits"])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_ctc_is_that_of_torch_in_float64(impl, fused, size):
    inputs = chain_inputs(*size, seed=sum(size))
    integers = [tensor(array, torch.int64) for array in inputs[1:]]

    def through_logits(function, **options):
        logits = tensor(inputs.logits).requires_grad_()
        scores = logits if options.get("fused_log_softmax") else logits.log_softmax(-1)
        losses = function(scores, *integers, reduction="none", zero_infinity=True, **options)
        losses.sum().backward()
        return losses.detach(), logits.grad

    losses, gradient = through_logits(CHAIN["ctc"], fused_log_softmax=fused, impl=impl)
    expected_losses, expected_gradient = through_logits(torch.nn.functional.ctc_loss)
    assert_close(losses, expected_losses, relative=1e-11, absolute=1e-11)
    assert_close(gradient, expected_gradient, absolute=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ctc_reduces_as_torch_does(reduction):
    inputs = chain_inputs(9, 4, 5, 3, seed=1)
    integers = [tensor(array, torch.int64) for array in inputs[1:]]
    integers[2][1] = 0  # an empty target counts as one label in the mean
    scores = tensor(inputs.logits).log_softmax(-1)
    ours = CHAIN["ctc"](scores, *integers, reduction=reduction)
    theirs = torch.nn.functional.ctc_loss(scores, *integers, reduction=reduction)
    assert_close(ours, theirs, relative=1e-12)


@pytest.mark.parametrize("fused", [False, True], ids=["log_probs", "logits"])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("loss", [*CHAIN, "rnnt"])
def test_gradients_are_finite_differences(loss, impl, fused):
    if loss == "rnnt":
        inputs, function = grid_inputs(2, 3, 2, 3, seed=5), rnnt_loss
    else:
        inputs, function = chain_inputs(5, 2, 3, 2, seed=5), CHAIN[loss]
    scores = tensor(inputs.logits).requires_grad_()
    options = {"reduction": "none", "fused_log_softmax": fused, "impl": impl}
    assert torch.autograd.gradcheck(lambda x: function(x, *inputs[1:], **options), scores)


@pytest.mark.parametrize("fused", [False, True], ids=["log_probs", "logits"])
@pytest.mark.parametrize("loss", [*CHAIN, "rnnt"])
def test_the_reference_has_second_derivatives(loss, fused):
    if loss == "rnnt":
        inputs, function = grid_inputs(1, 2, 2, 3, seed=5), rnnt_loss
    else:
        inputs, function = chain_inputs(3, 2, 3, 2, seed=6), CHAIN[loss]
    scores = tensor(inputs.logits).requires_grad_()
    options = {"reduction": "none", "zero_infinity": True, "fused_log_softmax": fused, "impl": "reference"}
    assert torch.autograd.gradgradcheck(lambda x: function(x, *inputs[1:], **options), scores)
