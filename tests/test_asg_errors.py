"""ASG's messages: one test each, and no kernel has run by then."""

from unittest import mock

import pytest
import torch

import pathsum
from pathsum import dispatch
from pathsum.kernels.protocol import Kernels
from pathsum.torch import asg_loss
from support import IMPLEMENTATIONS

VALUE, TYPE = pathsum.InvalidValueError, pathsum.InvalidTypeError


def arguments():
    """A legal call with two samples of 4 and 3 frames, 2 and 1 labels, five classes."""
    return {
        "inputs": torch.zeros(4, 2, 5),
        "targets": torch.tensor([[1, 2], [3, 4]]),
        "transitions": torch.zeros(5, 5),
        "input_lengths": torch.tensor([4, 3]),
        "target_lengths": torch.tensor([2, 1]),
    }


@pytest.fixture(autouse=True)
def no_kernel_runs(monkeypatch):
    def ran(*_, **__):
        pytest.fail("a kernel ran before the check")

    # Kernels with derivatives of their own are asked of both lattices at once.
    monkeypatch.setattr("pathsum.torch.asg.losses_apart", ran)
    told = {"losses": ran, "reads_on_device": False}
    monkeypatch.setattr(
        dispatch,
        "kernels_of",
        lambda impl, _: mock.Mock(Kernels, impl=impl, own_derivatives=impl != "reference", **told),
    )


def test_the_legal_call_reaches_a_kernel():
    for impl in IMPLEMENTATIONS:
        with pytest.raises(pytest.fail.Exception, match="a kernel ran"):
            asg_loss(**arguments(), impl=impl)


@pytest.mark.parametrize("error, message, changes", [
    (VALUE, "inputs must have shape (T, N, C) or (T, C); got shape (4,)", {"inputs": torch.zeros(4)}),
    (VALUE, "inputs must have shape (N, T, C) or (T, C); got shape (4,)",
     {"inputs": torch.zeros(4), "batch_first": True}),
    (TYPE, "inputs must have dtype float32, float64, bfloat16, float16; got int64",
     {"inputs": torch.zeros(4, 2, 5, dtype=torch.int64)}),
    (VALUE, "transitions must have shape (C, C) = (5, 5); got shape (5, 4)", {"transitions": torch.zeros(5, 4)}),
    (VALUE, "transitions must have shape (C, C) = (5, 5); got shape (6, 6)", {"transitions": torch.zeros(6, 6)}),
    (TYPE, "transitions must have dtype float32 beside float32 scores; got float64",
     {"transitions": torch.zeros(5, 5, dtype=torch.float64)}),
    (TYPE, "transitions must have dtype bfloat16 or float32 beside bfloat16 scores; got float16",
     {"inputs": torch.zeros(4, 2, 5, dtype=torch.bfloat16), "transitions": torch.zeros(5, 5, dtype=torch.float16)}),
    (TYPE, "transitions must have dtype float32 beside float32 scores; got list", {"transitions": [[0.0]]}),
    (TYPE, "transitions must be on cpu, as the scores are; got meta",
     {"transitions": torch.zeros(5, 5, device="meta")}),
    (VALUE, "start_scores must have shape (C,) = (5,); got shape (4,)", {"start_scores": torch.zeros(4)}),
    (VALUE, "final_scores must have shape (C,) = (5,); got shape (5, 1)", {"final_scores": torch.zeros(5, 1)}),
    (VALUE, "targets must lie in [0, C) with C = 5; got 5 at sample 1", {"targets": torch.tensor([[1, 2], [5, 0]])}),
    (VALUE, "targets must lie in [0, C) with C = 5; got -1 at sample 0", {"targets": torch.tensor([[1, -1], [3, 0]])}),
    (TYPE, "targets must have an integer dtype; got float32", {"targets": torch.zeros(2, 2)}),
    (VALUE, "targets must have one row a sample, N = 2; got 1 rows", {"targets": torch.tensor([[1, 2]])}),
    (VALUE, "target_lengths must be given where targets are concatenated; got None",
     {"targets": torch.tensor([1, 2, 3]), "target_lengths": None}),
    (VALUE, "input_lengths must lie in [0, T] with T = 4; got 5 at sample 1", {"input_lengths": [4, 5]}),
    (VALUE, "input_lengths must lie in [0, T] with T = 4; got -1 at sample 0", {"input_lengths": [-1, 3]}),
    (VALUE, "input_lengths must have one entry a sample, N = 2; got 3 entries", {"input_lengths": [4, 4, 4]}),
    (VALUE, "target_lengths must lie in [0, the width of targets] with the width of targets = 2; got 3 at sample 0",
     {"target_lengths": [3, 1]}),
    (VALUE, "reduction must be one of none, mean, sum; got 'median'", {"reduction": "median"}),
    (VALUE, "scale_mode must be one of none, input_size, input_size_sqrt, target_size, target_size_sqrt; got 'size'",
     {"scale_mode": "size"}),
])  # fmt: skip
def test_messages(error, message, changes):
    for impl in ("auto", *IMPLEMENTATIONS):
        with pytest.raises(error) as caught:
            asg_loss(**arguments() | changes, impl=impl)
        assert str(caught.value) == f"asg_loss: {message}"
        assert caught.value.argument == message.split()[0]


def test_an_unknown_implementation():
    with pytest.raises(VALUE, match="impl must be one of auto, reference, numba"):
        asg_loss(**arguments(), impl="cuda")
