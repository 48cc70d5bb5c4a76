"""What the transducer drop-ins have in common: the example of all their peers."""

import pytest
import torch

from pathsum.compat import nemo, torchaudio, warp_transducer
from pathsum.compat import warprnnt_numba as wn
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.testing import assert_close
from transducer_example import COST, GRADIENT, INTEGERS, example


@pytest.mark.parametrize("criterion", [
    torchaudio.RNNTLoss(blank=0), warp_transducer.RNNTLoss(), wn.RNNTLossNumba(), wn.rnnt_numpy.RNNTLoss(),
    nemo.RNNTLoss(0, loss_name="pytorch"), nemo.RNNTLoss(0, loss_name="warprnnt"), nemo.RNNTLoss(0),
    nemo.RNNTLoss(0, loss_name="graph_rnnt"), nemo.RNNTLossPytorch(0, "sum"),
], ids=lambda criterion: type(criterion).__module__)  # fmt: skip
def test_the_example_of_them_all(criterion):
    acts = example()
    loss = criterion(acts, *INTEGERS)
    loss.backward()
    assert_close(loss.sum(), COST, absolute=1e-6)
    assert_close(acts.grad[0], GRADIENT, absolute=1e-6)


@pytest.mark.parametrize(
    "position, value, error, message",
    [
        (4, 3, InvalidValueError, r"blank must lie in \[-3, 3\); got 3"),
        (4, -4, InvalidValueError, "blank must lie in"),
        (4, torch.tensor([0, 1]), InvalidTypeError, "blank must be an int"),
        (0, [[0.0]], InvalidTypeError, "(logits|acts) must be a dense tensor that has values"),
        (1, [["a"]], InvalidTypeError, "targets must"),
        (1, torch.tensor([[2**62]]), InvalidValueError, "targets must lie in"),
        (1, torch.tensor([[1.5]]), InvalidTypeError, "targets must have an integer dtype"),
        (2, torch.tensor([[2]]), InvalidValueError, "logit_lengths must"),
        (3, torch.tensor([1, 1]), InvalidValueError, "target_lengths must"),
        (3, torch.tensor([1], device="meta"), InvalidTypeError, "target_lengths must"),
    ],
)
def test_what_is_wrong_is_said_by_the_loss(position, value, error, message):
    for function in (torchaudio.rnnt_loss, warp_transducer.rnnt_loss, wn.rnnt_loss):
        arguments = [torch.zeros(1, 2, 2, 3), torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1]), 0]
        arguments[position] = value
        with pytest.raises(error, match=f"^rnnt_loss: {message}"):
            function(*arguments)
