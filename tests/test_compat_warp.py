"""The drop-ins for warp_rnnt and warp-transducer: the numbers of their own tests."""

import numpy as np
import pytest
import torch

from pathsum.compat import warp_rnnt, warp_transducer
from pathsum.testing import assert_close
from transducer_example import ACTS, COST, INTEGERS, example

# warp-rnnt's test_forward_batch: the example above, and it again with a frame more; gradients by log-probabilities.
WARP_RNNT_COSTS = [4.495666773770733, 5.7367250428101615]
WARP_RNNT_FIRST = [
    [[-0.308198071906, -0.6918019280939998, 0, 0, 0], [-0.308198071906, 0, -0.3836038561880001, 0, 0],
     [-0.3836038561880001, 0, 0, 0, 0]],
    [[0, -0.308198071906, 0, 0, 0], [0, 0, -0.6163961438119995, 0, 0], [-1, 0, 0, 0, 0]],
]  # fmt: skip


def warp_rnnt_batch():
    logits = torch.zeros(2, 3, 3, 5)
    logits[:, :2] = torch.tensor(ACTS)
    logits[1, 2] = torch.tensor(ACTS[0])
    labels, frames = torch.tensor([[1, 2], [1, 2]]).int(), torch.tensor([2, 3]).int()
    return logits.log_softmax(-1).requires_grad_(), labels, frames, torch.tensor([2, 2]).int()


@pytest.mark.parametrize("options", [{}, {"gather": True}, {"reduction": None}], ids=str)
def test_warp_rnnt(options):
    log_probs, *integers = warp_rnnt_batch()
    costs = warp_rnnt.rnnt_loss(log_probs, *integers, **options)
    costs.sum().backward()
    assert_close(costs, WARP_RNNT_COSTS, absolute=1e-6)
    assert_close(log_probs.grad[0, :2], WARP_RNNT_FIRST, absolute=1e-6)
    assert not log_probs.grad[0, 2].any()


def test_warp_rnnt_options():
    log_probs, labels, frames, lengths = warp_rnnt_batch()
    packed = torch.cat([log_probs[0, :2].reshape(-1, 5), log_probs[1].reshape(-1, 5)])
    compact = warp_rnnt.rnnt_loss(packed.double(), labels.flatten(), frames, lengths, compact=True)
    assert compact.dtype == torch.float32
    assert_close(compact, WARP_RNNT_COSTS, absolute=1e-6)
    mean = warp_rnnt.rnnt_loss(log_probs, labels, frames, lengths, average_frames=True, reduction="mean")
    assert_close(mean, np.mean(np.array(WARP_RNNT_COSTS) / [2, 3]), absolute=1e-6)
    plain, emphasised = (
        torch.autograd.grad(warp_rnnt.rnnt_loss(log_probs, labels, frames, lengths, **o).sum(), log_probs)[0]
        for o in ({}, {"fastemit_lambda": 1.0})
    )
    assert_close(emphasised[..., 0], plain[..., 0], relative=1e-6)
    assert_close(emphasised[..., 1:], 2 * plain[..., 1:], relative=1e-6)


def test_warp_transducer_has_one_number_in_a_row():
    acts, integers = example(), INTEGERS
    assert warp_transducer.rnnt_loss(acts, *integers, reduction="none").shape == (1,)
    twice = acts.expand(2, -1, -1, -1), *(integer.repeat_interleave(2, 0) for integer in integers)
    for reduction in ("mean", "sum"):
        assert warp_transducer.rnnt_loss(*twice, reduction=reduction).shape == (1,)
    espnet = warp_transducer.RNNTLoss(fastemit_lambda=0.001)
    assert_close(espnet(acts, *integers), [COST], absolute=1e-6)  # the gradient alone is emphasised
