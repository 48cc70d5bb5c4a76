"""The drop-in for torchaudio: its stored answers, and itself where it is installed."""

import pytest
import torch

from pathsum.compat import torchaudio
from pathsum.testing import assert_close, grid_inputs
from transducer_example import INTEGERS, example, integers_of, load


@pytest.mark.parametrize("vector", load("torchaudio"))
def test_torchaudio_vectors(vector):
    logits = torch.tensor(vector["logits"])
    if vector["options"].get("fused_log_softmax") is False:
        logits = logits.log_softmax(-1)
    logits.requires_grad_()
    losses = torchaudio.RNNTLoss(vector["blank"], reduction="none", **vector["options"])(logits, *integers_of(vector))
    losses.sum().backward()
    assert_close(losses, vector["losses"], relative=1e-6, absolute=1e-6)
    assert_close(logits.grad, vector["gradient"], absolute=3e-6)


def test_torchaudio_half_precision_has_its_own_dtype():
    acts = example().detach().half()
    assert torchaudio.rnnt_loss(acts, *INTEGERS, blank=0).item() == 4.49609375  # what the peer returns
    assert torchaudio.rnnt_loss(acts, *INTEGERS, blank=0, corrected=True).dtype == torch.float32


@pytest.mark.peer
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_torchaudio_itself(reduction):
    peer = pytest.importorskip("torchaudio").functional
    inputs = grid_inputs(3, 7, 3, 5, seed=1)
    inputs.logit_lengths[0], inputs.target_lengths[0] = 7, 3  # it wants one sample of the padded size
    # The last label becomes the blank: neither complains.
    inputs.targets[inputs.targets < 0] = 0
    inputs.targets[0, 2] = 4
    logits = torch.from_numpy(inputs.logits).float()
    integers = [torch.from_numpy(array).int() for array in inputs[1:]]
    ours, theirs = (f(logits, *integers, reduction=reduction) for f in (torchaudio.rnnt_loss, peer.rnnt_loss))
    assert_close(ours, theirs, relative=2e-6)


def test_forced_align_stops_where_the_peer_does():
    log_probs = torch.zeros(2, 3, 4).log_softmax(2)
    targets = torch.tensor([[1, 2], [3, 3]])
    assert torchaudio.forced_align(log_probs, targets)[0].shape == (2, 3)
    lengths = torch.tensor([3, 2])
    with pytest.raises(RuntimeError, match="targets length is too long for CTC, at sample 1"):
        torchaudio.forced_align(log_probs, targets, lengths)
    paths, _ = torchaudio.forced_align(log_probs, targets, lengths, corrected=True)
    assert paths[1].tolist() == [-1, -1, -1]
