"""The drop-in for SpeechBrain: the peer's own numbers, its docstring's example first, and its odd gradient."""

import pytest
import torch

from pathsum.compat import speechbrain
from pathsum.testing import assert_close, grid_inputs
from pathsum.torch import rnnt_loss
from transducer_example import GRADIENT, INTEGERS, example, integers_of, load


# Of SpeechBrain 1.1.2's own kernels. The first is the example of TransducerLoss's docstring, the last has the blank
# among its labels.
@pytest.mark.parametrize("vector", load("speechbrain"))
def test_speechbrain_s_own_numbers(vector):
    logits = torch.tensor(vector["logits"], requires_grad=True)
    loss = speechbrain.TransducerLoss(vector["blank"], vector["options"]["reduction"])(logits, *integers_of(vector))
    loss.sum().backward()
    assert_close(loss, vector["losses"], relative=1e-6)
    assert_close(logits.grad, vector["gradient"], absolute=3e-6)


def test_the_number_of_its_tests_and_its_gradient():
    # Its test_transducer_loss: 2.2478. The gradient is that of the loss not divided by the frames.
    acts = example()
    loss = speechbrain.TransducerLoss(blank=0)(acts, *INTEGERS)
    loss.backward()
    assert_close(loss, 2.2478, absolute=1e-4)
    assert_close(acts.grad[0], GRADIENT, absolute=1e-6)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_speechbrain_s_gradient_is_divided_by_nothing(reduction):
    inputs = grid_inputs(3, 5, 3, 4, seed=2, blank=0)
    log_probs = torch.from_numpy(inputs.logits).log_softmax(-1).requires_grad_()
    integers = [torch.from_numpy(array) for array in inputs[1:]]
    losses = rnnt_loss(log_probs, *integers, blank=0, reduction="none", fused_log_softmax=False)
    (expected,) = torch.autograd.grad(losses.sum(), log_probs)
    value = speechbrain.Transducer.apply(log_probs, *integers, 0, reduction)
    (gradient,) = torch.autograd.grad(value.sum(), log_probs)
    divided = (losses / integers[1]).detach()
    reduced = {"none": divided, "sum": divided.sum(), "mean": divided.mean()}[reduction]
    assert_close(value, reduced, relative=1e-12)
    assert_close(gradient, expected, absolute=1e-12)
    assert torch.autograd.gradcheck(
        lambda scores: speechbrain.transducer_loss(scores, *integers, 0, reduction, corrected=True), log_probs
    )


def test_an_infeasible_sample_costs_only_itself():
    log_probs = torch.zeros(2, 3, 2, 2).log_softmax(-1).requires_grad_()
    integers = torch.tensor([[1], [1]]), torch.tensor([0, 3]), torch.tensor([1, 1])
    loss = speechbrain.transducer_loss(log_probs, *integers, 0, "sum")
    loss.backward()
    assert loss.isinf()
    assert not log_probs.grad[0].any()
    assert log_probs.grad[1].any()
    assert log_probs.grad.isfinite().all()
