"""The drop-in for optimized_transducer: the peer's own numbers, its README's example among them."""

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


README = load("optimized_transducer_readme")[0].values[0]


def readme_joiner():
    """The two halves of the README's example: a joiner over padded frames, and over the real ones alone."""
    names = ("encoder_out", "decoder_out", "weight", "bias")
    encoder_out, decoder_out, weight, bias = (torch.tensor(README[name]) for name in names)
    weight.requires_grad_()
    padded = torch.tanh(encoder_out.unsqueeze(2) + decoder_out.unsqueeze(1)) @ weight.T + bias
    rows = [
        (encoder_out[i, :t].unsqueeze(1) + decoder_out[i, : u + 1].unsqueeze(0)).reshape(-1, encoder_out.shape[2])
        for i, (t, u) in enumerate(zip(README["logit_lengths"], README["target_lengths"], strict=True))
    ]
    packed = torch.tanh(torch.cat(rows)) @ weight.T + bias
    return weight, padded, packed, integers_of(README)


def test_optimized_transducer_readme():
    weight, padded, packed, integers = readme_joiner()
    options = {"blank": 0, "reduction": "mean"}
    losses = {
        "before": torchaudio.rnnt_loss(padded, *integers, **options),
        "after": optimized_transducer.transducer_loss(packed, *integers, from_log_softmax=False, **options),
        "normalised": optimized_transducer.transducer_loss(
            packed.log_softmax(-1), *integers, from_log_softmax=True, **options
        ),
    }
    for name, loss in losses.items():
        assert_close(loss, README["losses"], relative=1e-6, what=name)
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        assert_close(gradient, README["gradient"], absolute=1e-6, what=name)


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
