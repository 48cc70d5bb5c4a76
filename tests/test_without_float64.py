"""A device without float64, as MPS: nothing makes a tensor of it there.

The CPU stands for such a device: whether a device has float64 is asked in one place.
"""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pathsum.kernels.reference import log_domain
from pathsum.testing import assert_close
from pathsum.torch import (
    ar_rnnt_loss,
    asg_align,
    asg_entropy,
    asg_expected_risk,
    asg_loss,
    asg_posteriors,
    ctc_entropy,
    ctc_expected_risk,
    ctc_loss,
    ctc_posteriors,
    forced_align,
    multi_blank_rnnt_loss,
    rnnt_align,
    rnnt_entropy,
    rnnt_expected_risk,
    rnnt_joint_loss,
    rnnt_loss,
    rnnt_loss_from_joint,
    rnnt_posteriors,
    simple_ctc_loss,
    tdt_loss,
    wildcard_rnnt_loss,
)

INTEGERS = ([[1, 2], [1, -1]], [4, 3], [2, 1])
CHAIN, GRID, FRAMES, LABELS = (4, 2, 4), (2, 4, 3, 4), (2, 4, 4), (2, 3, 4)
TABLE, WEIGHT = torch.linspace(-1, 1, 16).reshape(4, 4), torch.eye(4)


class WithoutFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        made = operator(*arguments, **(options or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
                raise TypeError(f"{operator} made a float64 tensor")
        return made


FUNCTIONS = {
    "ctc_loss": (CHAIN, lambda x, **o: ctc_loss(x, *INTEGERS, fused_log_softmax=True, **o)),
    "simple_ctc_loss": (CHAIN, lambda x, **o: simple_ctc_loss(x, *INTEGERS, **o)),
    "asg_loss": (CHAIN, lambda x, **o: asg_loss(x, INTEGERS[0], TABLE, *INTEGERS[1:], **o)),
    "rnnt_loss": (GRID, lambda x, **o: rnnt_loss(x, *INTEGERS, clamp=0.5, **o)),
    "modified": (GRID, lambda x, **o: rnnt_loss(x, *INTEGERS, rnnt_type="modified", delay_penalty=0.1, **o)),
    "tdt_loss": (GRID, lambda x, **o: tdt_loss(x, x[..., :2], *INTEGERS, [0, 1], **o)),
    "multi_blank_rnnt_loss": (GRID, lambda x, **o: multi_blank_rnnt_loss(x, *INTEGERS, [2], [3], blank=0, **o)),
    "ar_rnnt_loss": (GRID, lambda x, **o: ar_rnnt_loss(x, *INTEGERS, [[0, 1], [0, 0]], 1, 3, **o)),
    "wildcard_rnnt_loss": (GRID, lambda x, **o: wildcard_rnnt_loss(x, *INTEGERS, skip_score=-0.3, **o)),
    "rnnt_joint_loss": (FRAMES, lambda x, **o: rnnt_joint_loss(
        x, torch.ones(LABELS), WEIGHT, torch.ones(4), *INTEGERS, **o
    )),
    "rnnt_loss_from_joint": (FRAMES, lambda x, **o: rnnt_loss_from_joint(
        torch.add, x, torch.ones(LABELS), *INTEGERS, **o
    )),
    "hat from joint": (FRAMES, lambda x, **o: rnnt_loss_from_joint(
        torch.add, x, torch.ones(LABELS), *INTEGERS, hat=True, **o
    )),
    "ctc_entropy": (CHAIN, lambda x, **o: ctc_entropy(x, *INTEGERS, fused_log_softmax=True, **o)),
    "asg_entropy": (CHAIN, lambda x, **o: asg_entropy(x, INTEGERS[0], TABLE, *INTEGERS[1:], paths="all", **o)),
    "rnnt_entropy": (GRID, lambda x, **o: rnnt_entropy(x, *INTEGERS, **o)),
    "ctc_expected_risk": (CHAIN, lambda x, **o: ctc_expected_risk(
        x, torch.ones(CHAIN), *INTEGERS, fused_log_softmax=True, **o
    )),
    "asg_expected_risk": (CHAIN, lambda x, **o: asg_expected_risk(
        x, torch.ones(CHAIN), INTEGERS[0], TABLE, *INTEGERS[1:], **o
    )),
    "rnnt_expected_risk": (GRID, lambda x, **o: rnnt_expected_risk(x, torch.ones(2, 4, 3, 2), *INTEGERS, **o)),
}  # fmt: skip
FOUND = {
    "ctc_posteriors": (FRAMES, lambda x, **o: ctc_posteriors(x, *INTEGERS, **o)),
    "asg_posteriors": (FRAMES, lambda x, **o: asg_posteriors(x, INTEGERS[0], TABLE, *INTEGERS[1:], **o)),
    "rnnt_posteriors": (GRID, lambda x, **o: rnnt_posteriors(x, *INTEGERS, **o)),
    "forced_align": (FRAMES, lambda x, **o: forced_align(x, *INTEGERS, **o)),
    "asg_align": (FRAMES, lambda x, **o: asg_align(x, INTEGERS[0], TABLE, *INTEGERS[1:], **o)),
    "rnnt_align": (GRID, lambda x, **o: rnnt_align(x, *INTEGERS, **o)),
}


def scores_of(shape):
    return torch.linspace(-2, 0, 2 * 4 * 12).cos()[: torch.Size(shape).numel()].reshape(shape).clone()


@pytest.fixture
def nowhere(monkeypatch):
    """A context in which no device has float64."""

    @contextmanager
    def enter():
        with monkeypatch.context() as patch, WithoutFloat64():
            patch.setattr(log_domain, "has_float64", lambda device: False)
            yield

    return enter


@pytest.mark.parametrize("name", FUNCTIONS)
def test_losses_and_their_gradients(name, nowhere):
    shape, function = FUNCTIONS[name]
    scores = scores_of(shape).requires_grad_()
    with nowhere():
        loss = function(scores, impl="reference")
        loss.backward()
    expected = scores.detach().clone().requires_grad_()
    exact = function(expected, impl="numba")
    exact.backward()
    assert_close(loss.detach(), exact.detach(), relative=1e-5, absolute=1e-5)
    assert_close(scores.grad, expected.grad, absolute=1e-5)


@pytest.mark.parametrize("name", FOUND)
def test_paths_and_posteriors(name, nowhere):
    shape, function = FOUND[name]
    with nowhere():
        found = function(scores_of(shape), impl="reference")
    for one, other in zip(found, function(scores_of(shape), impl="numba"), strict=True):
        assert_close(one, other, absolute=1e-5)
