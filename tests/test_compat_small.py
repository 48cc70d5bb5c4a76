"""The drop-ins for transformers' TDT, warp-ctc and ESPnet's multi-blank transducer."""

import pytest
import torch

from pathsum.compat import espnet, nemo, transformers, warpctc_pytorch
from pathsum.testing import assert_close

TDT = torch.tensor([[0, 1], [2, 0]]), torch.tensor([4, 3]), torch.tensor([2, 1])
DURATIONS = [0, 1, 2]


def heads(dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, 3, size, dtype=dtype, generator=random) for size in (4, 3)]


@pytest.mark.parametrize("reduction, theirs", [
    ("none", None), ("sum", "sum"), ("mean", "mean"), ("mean_batch", "mean_batch"), ("mean_volume", "mean_volume"),
])  # fmt: skip
def test_transformers_tdt_has_nemo_s_reductions(reduction, theirs):
    loss = transformers.tdt_loss(*heads(), *TDT, 3, DURATIONS, 0.1, reduction)
    options = {"durations": DURATIONS, "sigma": 0.1}
    expected = nemo.RNNTLoss(3, theirs, "tdt", options)(torch.cat(heads(), -1), *TDT)
    assert_close(loss, expected, relative=1e-12)


def test_transformers_tdt_refuses_another_reduction():
    with pytest.raises(ValueError, match=r"tdt_loss: reduction must be one of .* got 'batchmean'"):
        transformers.tdt_loss(*heads(), *TDT, 3, DURATIONS, reduction="batchmean")


@pytest.mark.peer
@pytest.mark.parametrize("reduction", ["none", "mean", "mean_volume"])
def test_transformers_tdt_is_the_peer_s(reduction):
    peer = pytest.importorskip("transformers.loss.loss_tdt")
    leaves = [[head.requires_grad_() for head in heads(torch.float32)] for _ in range(2)]
    losses = [
        function(*given, *TDT, 3, DURATIONS, 0.1, reduction)
        for function, given in zip((transformers.tdt_loss, peer.tdt_loss), leaves, strict=True)
    ]
    assert_close(losses[0], losses[1], relative=1e-5)
    gradients = [torch.autograd.grad(loss.sum(), given) for loss, given in zip(losses, leaves, strict=True)]
    for own, other in zip(*gradients, strict=True):
        assert_close(own, other, absolute=1e-5)


CTC = torch.tensor([1, 2, 2, 3]), torch.tensor([5, 4]), torch.tensor([3, 1])


@pytest.mark.parametrize("options, scale", [
    ({}, 1), ({"size_average": True}, 2), ({"length_average": True}, 9),
    ({"size_average": True, "length_average": True}, 9),
])  # fmt: skip
def test_warp_ctc_s_averages(options, scale):
    logits = torch.randn(5, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    losses = torch.nn.functional.ctc_loss(logits.log_softmax(2), *CTC, reduction="none")
    loss = warpctc_pytorch.CTCLoss(**options)(logits, *CTC)
    assert loss.shape == (1,)
    assert_close(loss[0], losses.sum() / scale, relative=1e-12)
    expected = torch.autograd.grad(losses.sum() / scale, logits)
    assert_close(torch.autograd.grad(loss, logits)[0], expected[0], absolute=1e-11)


def test_warp_ctc_unreduced_has_a_column():
    logits = torch.randn(5, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    losses = torch.nn.functional.ctc_loss(logits.log_softmax(2), *CTC, reduction="none")
    loss = warpctc_pytorch.CTCLoss(reduce=False, size_average=True)(logits, *CTC)
    assert loss.shape == (2, 1)
    assert_close(loss[:, 0], losses, relative=1e-12)


def test_the_number_of_warp_ctc_s_own_tests():
    # Two frames, the label 1 2: one path, and the peer's logits 0.6 among four of 0.1.
    logits = torch.tensor([[[0.1, 0.6, 0.1, 0.1, 0.1]], [[0.1, 0.1, 0.6, 0.1, 0.1]]])
    loss = warpctc_pytorch.CTCLoss()(logits, torch.IntTensor([1, 2]), torch.IntTensor([2]), torch.IntTensor([2]))
    assert_close(loss, [2.4628584], absolute=1e-5)


def test_espnet_s_multi_blank_with_its_own_arguments():
    # As ESPnetASRModel makes it: the big blanks lie before the blank, the logits come as they are.
    criterion = espnet.MultiblankRNNTLossNumba(
        blank=3, big_blank_durations=[2], sigma=0.0, reduction="mean", fastemit_lambda=0.0
    )
    loss = criterion(
        torch.zeros(1, 2, 1, 4), torch.zeros(1, 0, dtype=torch.int32), torch.tensor([2]), torch.tensor([0])
    )
    assert_close(loss.neg().exp(), [0.3125], relative=1e-6)  # two blanks, 1/16, or a big one, 1/4
