"""The documented accuracy, at the sizes it is documented for: float32 against the exact result on the same numbers.

The exact result is that of the kernels in float64, which the first tests here tie to torch and to the reference.
"""

import pytest
import torch

from pathsum.testing import assert_close, chain_inputs, grid_inputs
from pathsum.torch import rnnt_loss
from support import CHAIN, solve, tensor

FUSED = {"fused_log_softmax": True, "impl": "numba"}


def test_float64_ctc_of_long_audio_is_that_of_torch():
    inputs = chain_inputs(1000, 1, 100, 200, ragged=False)
    solved = solve(CHAIN["ctc"], tensor(inputs.logits), *inputs[1:], **FUSED)
    logits = tensor(inputs.logits).requires_grad_()
    integers = [tensor(array, torch.int64) for array in inputs[1:]]
    losses = torch.nn.functional.ctc_loss(logits.log_softmax(-1), *integers, reduction="none")
    losses.sum().backward()
    assert_close(solved.loss, losses, relative=1e-12)
    assert_close(solved.gradient, logits.grad, absolute=1e-9)


@pytest.mark.parametrize("std", [1.0, 8.0])
def test_float64_rnnt_of_long_audio_is_the_reference(std):
    inputs = grid_inputs(1, 200, 60, 8, std=std, ragged=False)
    solved = solve(rnnt_loss, tensor(inputs.logits), *inputs[1:], **FUSED)
    expected = solve(rnnt_loss, tensor(inputs.logits), *inputs[1:], impl="reference")
    assert_close(solved.loss, expected.loss, relative=1e-12)
    assert_close(solved.gradient, expected.gradient, absolute=1e-10)


# A long sentence, a minute, and a quarter of an hour in small pieces; few classes, so that memory stays small.
@pytest.mark.parametrize(
    "num_frames, num_classes, num_labels", [(1000, 100, 200), (2000, 1000, 200), (10000, 100, 1000)]
)
@pytest.mark.parametrize("loss", CHAIN)
def test_chain_gradients_keep_two_parts_in_a_million(loss, num_frames, num_classes, num_labels):
    if loss == "simple_ctc" and num_frames == 10000:
        pytest.skip("the CTC of this size runs the same recursion with more arcs")
    inputs = chain_inputs(num_frames, 1, num_classes, num_labels, ragged=False)
    scores = tensor(inputs.logits, torch.float32)
    solved = solve(CHAIN[loss], scores, *inputs[1:], **FUSED)
    exact = solve(CHAIN[loss], scores.double(), *inputs[1:], **FUSED)
    assert_close(solved.gradient, exact.gradient, absolute=2e-6)
    assert_close(solved.loss, exact.loss, relative=1e-7, absolute=1e-6 * num_frames**0.5)


# Logits as they start and as they end: near uniform, and peaky.
@pytest.mark.parametrize("std", [1.0, 8.0])
def test_peaky_chains_keep_it_too(std):
    inputs = chain_inputs(3000, 2, 30, 300, std=std)
    for loss in CHAIN:
        scores = tensor(inputs.logits, torch.float32)
        solved = solve(CHAIN[loss], scores, *inputs[1:], **FUSED)
        exact = solve(CHAIN[loss], scores.double(), *inputs[1:], **FUSED)
        assert_close(solved.gradient, exact.gradient, absolute=2e-6)
        assert_close(solved.loss, exact.loss, relative=1e-7, absolute=1e-6 * 3000**0.5)


@pytest.mark.parametrize("std", [1.0, 8.0])
def test_rnnt_gradients_keep_five_parts_in_a_million(std):
    inputs = grid_inputs(1, 1500, 300, 8, std=std, ragged=False)
    scores = tensor(inputs.logits, torch.float32)
    solved = solve(rnnt_loss, scores, *inputs[1:], **FUSED)
    exact = solve(rnnt_loss, scores.double(), *inputs[1:], **FUSED)
    error = solved.gradient.double() - exact.gradient
    assert error.abs().max() <= 5e-6
    assert error.norm() <= 1e-5 * exact.gradient.norm()
    assert_close(solved.loss, exact.loss, relative=1e-7, absolute=1e-6 * 1500**0.5)
