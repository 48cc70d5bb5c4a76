"""The drop-in for optimized_transducer: its stored answers and its README."""

import pytest
import torch

from pathsum.compat import optimized_transducer, torchaudio
from pathsum.testing import assert_close
from transducer_example import integers_of, load


@pytest.mark.parametrize("vector", load("optimized_transducer"))
def test_optimized_transducer_vectors(vector):
    logits = torch.tensor(vector["logits"], requires_grad=True)
    options = {"from_log_softmax": False, "reduction": vector["options"]["reduction"]}
    loss = optimized_transducer.transducer_loss(logits, *integers_of(vector), vector["blank"], **options)
    loss.backward()
    assert_close(loss, vector["losses"], relative=1e-6, absolute=1e-6)
    assert_close(logits.grad, vector["gradient"], absolute=3e-6)


def readme_joiner(seed=0):
    """The two halves of the README's example: a joiner over padded frames, and over the real ones alone."""
    random = torch.Generator().manual_seed(seed)
    num_samples, num_frames, num_labels, width = 2, 6, 3, 4
    encoder_out = torch.rand(num_samples, num_frames, width, generator=random)
    decoder_out = torch.rand(num_samples, num_labels + 1, width, generator=random)
    linear = torch.nn.Linear(width, 5)
    logit_lengths, target_lengths = torch.tensor([6, 4]), torch.tensor([2, 3])
    targets = torch.tensor([[1, 2, 0], [4, 4, 3]])
    padded = linear(torch.tanh(encoder_out.unsqueeze(2) + decoder_out.unsqueeze(1)))
    rows = [
        (encoder_out[i, :t].unsqueeze(1) + decoder_out[i, : u + 1].unsqueeze(0)).reshape(-1, width)
        for i, (t, u) in enumerate(zip(logit_lengths, target_lengths, strict=True))
    ]
    packed = linear(torch.tanh(torch.cat(rows)))
    return linear, padded, packed, (targets, logit_lengths, target_lengths)


def test_optimized_transducer_readme():
    linear, padded, packed, integers = readme_joiner()
    options = {"blank": 0, "reduction": "mean"}
    before = torchaudio.rnnt_loss(padded, *integers, **options)
    after = optimized_transducer.transducer_loss(packed, *integers, from_log_softmax=False, **options)
    normalised = optimized_transducer.transducer_loss(
        packed.log_softmax(-1), *integers, from_log_softmax=True, **options
    )
    gradients = [torch.autograd.grad(loss, linear.weight, retain_graph=True)[0] for loss in (before, after, normalised)]
    for loss, gradient in ((after, gradients[1]), (normalised, gradients[2])):
        assert_close(loss, before, relative=1e-6)
        assert_close(gradient, gradients[0], absolute=1e-6)


def test_optimized_transducer_one_symbol_a_frame():
    # The last frame is a blank: of T - 1 frames any U have a label.
    loss = optimized_transducer.transducer_loss(
        torch.zeros(5 * 3, 2), torch.tensor([[1, 1]]), torch.tensor([5]), torch.tensor([2]), 0, False, True, "sum"
    )
    assert_close(2**5 / loss.exp(), 6.0, relative=1e-6)


def test_optimized_transducer_has_no_reduction_none_and_keeps_the_logits():
    _, _, packed, integers = readme_joiner()
    with pytest.raises(AssertionError):
        optimized_transducer.transducer_loss(packed, *integers, 0, False, reduction="none")
    criterion = optimized_transducer.TransducerLoss(blank=0, reduction="sum")
    logits = packed.detach().requires_grad_()
    before = logits.detach().clone()
    criterion(logits, *integers, from_log_softmax=False).backward()
    assert torch.equal(logits.detach(), before)
    gradient = logits.grad
    overwritten = before.clone().requires_grad_()
    options = {"from_log_softmax": False, "reduction": "sum", "overwrite_logits": True}
    optimized_transducer.transducer_loss(overwritten, *integers, 0, **options).backward()
    assert torch.equal(overwritten.grad, gradient)
    assert torch.equal(overwritten.detach(), gradient)
