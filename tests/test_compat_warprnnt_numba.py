"""The drop-in for warprnnt_numba: its stored answers, its README, and what it does that others do not."""

import numpy as np
import pytest
import torch

from pathsum.compat import warprnnt_numba as wn
from pathsum.testing import assert_close
from transducer_example import GRADIENT, INTEGERS, example, integers_of, load


@pytest.mark.parametrize("vector", load("warprnnt_numba"))
def test_warprnnt_numba_reports_what_the_peer_does(vector):
    acts = torch.tensor(vector["logits"], requires_grad=True)
    losses = wn.RNNTLossNumba(blank=vector["blank"], reduction="none", **vector["options"])(acts, *integers_of(vector))
    losses.sum().backward()
    assert_close(losses, vector["losses"], relative=1e-6, absolute=1e-6)
    assert_close(acts.grad, vector["gradient"], absolute=3e-6)


# The example of the README, its scores rounded, with the numbers of the peer 0.4.1 on the CPU.
README = load("warprnnt_numba_readme")[0].values[0]


def test_warprnnt_numba_readme():
    # The blank, 4, is each sample's first label. And the labels are wider than U: on the CPU the peer goes U entries to
    # the next sample, and so reads the second's from the end of the first's. Given what it reads, its numbers are ours.
    acts, (labels, *lengths) = torch.tensor(README["logits"], requires_grad=True), integers_of(README)
    read = labels.flatten()[:8].view(2, 4)
    criterion = wn.RNNTLossNumba(blank=4, reduction="none", fastemit_lambda=0.0, clamp=0.0)
    loss = criterion(acts, read, *lengths)
    loss.sum().backward()
    assert_close(loss, README["losses"], relative=1e-6)
    assert_close(acts.grad, README["gradient"], absolute=2e-6)
    # As the README says: nothing in the padding of T and of U.
    assert not acts.grad[0, 5:].any()
    assert not acts.grad[0, :, 4:].any()
    as_given = criterion(acts, labels, *lengths)
    assert torch.equal(as_given, criterion(acts, labels[:, :4].contiguous(), *lengths))
    assert torch.equal(as_given[0], loss[0])
    first = wn.RNNTLossNumba(blank=4, reduction="sum", fastemit_lambda=0.001)(acts, labels, *lengths)
    assert first.shape == (1,)
    assert_close(first[0], 1.001 * as_given.sum().detach(), relative=1e-6)


def test_a_label_that_is_the_blank_loses_an_arc_s_gradient_unless_corrected():
    acts, integers = example().detach().double(), (torch.tensor([[1, 0]]), *INTEGERS[1:])

    def corrected(scores):
        return wn.rnnt_loss(scores, *integers, corrected=True)

    def quirk(scores):
        return wn.rnnt_loss(scores, *integers)

    assert_close(corrected(acts), quirk(acts), relative=1e-12)
    assert torch.autograd.gradcheck(corrected, acts.requires_grad_())
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(quirk, acts)


def test_fastemit_corrected_reports_the_likelihood():
    acts = example()
    losses = [wn.rnnt_loss(acts, *INTEGERS, fastemit_lambda=0.5, corrected=flag) for flag in (False, True)]
    gradients = [torch.autograd.grad(loss, acts)[0] for loss in losses]
    assert_close(losses[0], 1.5 * losses[1].detach(), relative=1e-6)
    assert_close(gradients[0], gradients[1], relative=1e-6)


def test_the_clamp_of_the_cpu_comes_behind_the_upstream_gradient():
    acts = example()
    (late,) = torch.autograd.grad(10 * wn.rnnt_loss(acts, *INTEGERS, clamp=0.1), acts)
    (early,) = torch.autograd.grad(10 * wn.rnnt_loss(acts, *INTEGERS, clamp=0.1, corrected=True), acts)
    assert_close(late[0], np.clip(10 * np.array(GRADIENT), -0.1, 0.1), absolute=1e-6)
    assert_close(early[0], 10 * np.clip(GRADIENT, -0.1, 0.1), absolute=1e-5)


def test_warprnnt_numba_refuses_what_the_peer_refuses():
    with pytest.raises(ValueError, match="clamp"):
        wn.rnnt_loss(example(), *INTEGERS, clamp=-1.0)


def test_numba_utils():
    minimum = wn.__NUMBA_MINIMUM_VERSION__
    assert wn.numba_utils.numba_cpu_is_supported(minimum)
    assert wn.numba_utils.numba_cuda_is_supported(minimum) == torch.cuda.is_available()
