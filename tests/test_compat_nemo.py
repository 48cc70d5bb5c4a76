"""The drop-in for NeMo: its reductions and options, the numbers of its own tests."""

import pytest
import torch

from pathsum.compat import nemo
from pathsum.testing import assert_close, grid_inputs
from pathsum.torch import rnnt_loss
from transducer_example import COST, INTEGERS, example


def nemo_batch():
    inputs = grid_inputs(3, 6, 3, 5, seed=3)
    targets, target_lengths = torch.tensor([[0, 1, 2], [3, 0, 0], [1, 1, 0]]), torch.tensor([3, 1, 2])
    return torch.from_numpy(inputs.logits), targets, torch.from_numpy(inputs.logit_lengths), target_lengths


@pytest.mark.parametrize("reduction, expected", [
    (None, lambda x, u: x), ("sum", lambda x, u: x.sum()), ("mean_batch", lambda x, u: x.mean()),
    ("mean", lambda x, u: (x / u).mean()), ("mean_volume", lambda x, u: x.sum() / u.sum()),
])  # fmt: skip
def test_nemo_reductions(reduction, expected):
    logits, targets, frames, lengths = nemo_batch()
    losses = rnnt_loss(logits, targets, frames, lengths, reduction="none")
    actual = nemo.RNNTLoss(4, reduction)(
        log_probs=logits, targets=targets, input_lengths=frames, target_lengths=lengths
    )
    assert_close(actual, expected(losses, lengths), relative=1e-12)


@pytest.mark.parametrize("reduction", nemo.REDUCTIONS)
def test_nemo_reduces_the_parts_of_a_batch_as_the_whole(reduction):
    # As NeMo's fused joint: it scores a few samples at a time, with no reduction, and reduces the lists at the end.
    logits, targets, frames, lengths = nemo_batch()
    criterion = nemo.RNNTLoss(4, reduction)
    expected = criterion(logits, targets, frames, lengths)
    criterion.reduction = None
    parts = [slice(0, 1), slice(1, 3)]
    losses = [criterion(logits[part], targets[part], frames[part], lengths[part]) for part in parts]
    criterion.reduction = reduction
    assert_close(criterion.reduce(losses, [lengths[part] for part in parts]), expected, relative=1e-12)


def test_nemo_loss_kwargs():
    acts = example()
    emphasised = nemo.RNNTLoss(0, loss_kwargs={"fastemit_lambda": 0.01})(acts, *INTEGERS)
    assert_close(emphasised, 1.01 * COST, absolute=1e-5)
    with pytest.warns(UserWarning, match="takes no fastemit_lambda; ignored"):
        plain = nemo.RNNTLoss(0, loss_name="pytorch", loss_kwargs={"fastemit_lambda": 0.01})
    assert_close(plain(acts, *INTEGERS), COST, absolute=1e-6)
    with pytest.raises(ValueError, match="reduction"):
        nemo.RNNTLoss(0, reduction="batchmean")
    with pytest.raises(ValueError, match="loss_name"):
        nemo.RNNTLoss(0, loss_name="flash")


# NeMo, TestTDTLoss, the fixed case: 3 frames, 1 label, 3 labels and the blank, durations 0 1 2, all logits 0.
TDT = torch.zeros(1, 3, 2, 7, dtype=torch.float64), torch.tensor([[0]]), torch.tensor([3]), torch.tensor([1])
TDT_OPTIONS = {"blank": 3, "durations": [0, 1, 2], "sigma": 0.05}


@pytest.mark.parametrize("criterion", [
    nemo.TDTLossNumba(**TDT_OPTIONS), nemo.TDTLossPytorch(**TDT_OPTIONS),
    nemo.RNNTLoss(3, loss_name="tdt", loss_kwargs={"durations": [0, 1, 2], "sigma": 0.05}),
], ids=lambda criterion: type(criterion).__name__)  # fmt: skip
def test_nemo_tdt(criterion):
    assert_close(criterion(*TDT).sum(), 4.155739, absolute=1e-6)


def test_nemo_tdt_emphasises_and_clamps_the_labels_alone():
    def gradient(**options):
        acts = TDT[0].clone().requires_grad_()
        loss = nemo.TDTLossNumba(**TDT_OPTIONS, **options)(acts, *TDT[1:])
        loss.backward()
        return loss.detach(), acts.grad[..., :4], acts.grad[..., 4:]

    loss, labels, durations = gradient()
    emphasised = gradient(fastemit_lambda=0.5)
    assert_close(emphasised[0], 1.5 * loss, relative=1e-9)
    assert (emphasised[1] - labels).abs().max() > 0.1
    assert_close(emphasised[2], durations, absolute=1e-12)
    clamped = gradient(clamp=0.05)
    assert_close(clamped[1], labels.clamp(-0.05, 0.05), absolute=1e-12)
    assert_close(clamped[2], durations, absolute=1e-12)


def test_nemo_omega_scores_as_plain_rnnt():
    always = nemo.TDTLossNumba(**TDT_OPTIONS, omega=1.1)
    acts = torch.randn(1, 3, 2, 7, generator=torch.Generator().manual_seed(0))
    assert_close(always(acts, *TDT[1:]), [rnnt_loss(acts[..., :4], *TDT[1:])], relative=1e-6)


def test_nemo_multi_blank():
    # NeMo's layout: labels, big blanks, the blank last; the duration 2 belongs to the column next to the blank.
    acts = torch.randn(2, 5, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    integers = torch.tensor([[0, 1], [3, 2]]), torch.tensor([5, 4]), torch.tensor([2, 1])
    options = {"big_blank_durations": [2, 4], "sigma": 0.1}
    numba = nemo.MultiblankRNNTLossNumba(6, reduction="sum", **options)(acts, *integers)
    assert numba.shape == (1,)
    assert_close(nemo.MultiblankRNNTLossPytorch(6, **options)(acts, *integers), numba[0], relative=1e-12)
    closed = acts.clone()
    closed[..., 4:6] = -torch.inf  # without big blanks it is RNN-T, an arc costing sigma more
    arcs = (integers[1] + integers[2]).double()
    expected = rnnt_loss(closed, *integers, reduction="none") + 0.1 * arcs
    actual = nemo.MultiblankRNNTLossNumba(6, reduction="none", **options)(closed, *integers)
    assert_close(actual, expected, relative=1e-12)


def test_nemo_graph_w_transducer():
    logits, targets, frames, lengths = nemo_batch()
    plain = rnnt_loss(logits, targets, frames, lengths, reduction="none")
    options = {"eps_weight": -1e9, "last_blank_mode": "allow_ignore"}
    criterion = nemo.RNNTLoss(4, None, "graph_w_transducer", options)
    assert_close(criterion(logits, targets, frames, lengths), plain, relative=1e-9)
    assert (nemo.GraphWTransducerLoss(4)(logits, targets, frames, lengths) < plain).all()


def test_nemo_graph_losses_take_what_the_peer_s_take():
    logits, targets, frames, lengths = nemo_batch()
    options = {"use_grid_implementation": False, "double_scores": True, "use_triton": False}
    criterion = nemo.RNNTLoss(4, None, "graph_rnnt", options)
    plain = rnnt_loss(logits, targets, frames, lengths, reduction="none")
    assert_close(criterion(logits, targets, frames, lengths), plain, relative=1e-12)
    with pytest.raises(ValueError, match="return_graph must be False"):
        nemo.GraphRnntLoss(4, return_graph=True)
