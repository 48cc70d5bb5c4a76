"""One sample of the transducer's without a batch axis, beside the same sample in a batch of one."""

import inspect

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

import pathsum.torch
from pathsum.torch import Joiner

FRAMES, LABELS, CLASSES = 4, 2, 5
WIDTH = LABELS + 1  # one label more than the target has, so that its length matters
VALUES = torch.randn(FRAMES, WIDTH + 1, CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
ENCODER, PREDICTOR = VALUES[:, 0, :3], VALUES[0, :, 2:5]
WEIGHT = VALUES[:, 1, :3].repeat(2, 1)[:CLASSES]
EXTRA = {
    "tdt_loss": {"durations": [0, 1, 2]},
    "multi_blank_rnnt_loss": {"big_blank_durations": [2], "big_blanks": [3]},
    "ar_rnnt_loss": {"alignment": [1, 2, 0], "left": 1, "right": 2},
}
OPTIONS = [("rnnt_loss", {"rnnt_type": "modified"}), ("rnnt_loss", {"delay_penalty": 0.1, "impl": "reference"})]
LOSSES = [
    *((name, {}) for name in ("rnnt_loss", *EXTRA, "wildcard_rnnt_loss", "rnnt_entropy", "rnnt_expected_risk")),
    *OPTIONS,
]
RESULTS = ["rnnt_align", "rnnt_posteriors"]
TARGETS = [1, 2, 0]


def call(name, scores, *, batched, lengths=(FRAMES, LABELS), targets=TARGETS, **options):
    """A function of scores without a batch axis, or of a batch of them alone."""
    function, (frames, labels) = getattr(pathsum.torch, name), lengths

    def in_batch(value):
        return [value] if isinstance(value, (list, int)) else value[None]

    arguments = {"targets": targets, "logit_lengths": frames, "target_lengths": labels, **EXTRA.get(name, {})}
    given = {"token_logits" if name == "tdt_loss" else "logits": scores}
    if name == "tdt_loss":
        given["duration_logits"] = scores[..., :3]
    if name == "rnnt_expected_risk":
        given["costs"] = scores[..., :2].detach().abs()
    given |= {
        k: arguments.pop(k) for k in ("targets", "logit_lengths", "target_lengths", "alignment") if k in arguments
    }
    if batched:
        given = {k: in_batch(value) for k, value in given.items()}
    return function(**given, **arguments, **options)


@pytest.mark.parametrize(("name", "options"), LOSSES, ids=lambda of: of if isinstance(of, str) else "-".join(of))
def test_a_loss_of_one_sample_is_that_of_a_batch_of_one(name, options):
    for reduction in ("none", "sum"):
        inputs = [VALUES.clone().requires_grad_() for _ in range(2)]
        given = {**options, "blank": 4, "reduction": reduction}
        expected, found = (call(name, scores, batched=k == 0, **given) for k, scores in enumerate(inputs))
        assert found.shape == ()
        assert torch.equal(found, expected.reshape(()))
        gradients = [
            torch.autograd.grad(loss.sum(), scores)[0] for loss, scores in zip((expected, found), inputs, strict=True)
        ]
        assert torch.equal(*gradients)
        assert gradients[0].any()


@pytest.mark.parametrize("name", RESULTS)
def test_results_of_one_sample_have_no_batch_axis(name):
    expected, found = (call(name, VALUES, batched=batched, blank=4) for batched in (True, False))
    for whole, own in zip(expected, found, strict=True):
        assert torch.equal(whole[0], own)


@pytest.mark.parametrize("kind", [np.array, torch.tensor, lambda x: torch.tensor(x, dtype=torch.uint8)])
def test_integers_of_one_sample_may_be_tensors_and_arrays(kind):
    expected = call("rnnt_loss", VALUES, batched=False)
    assert torch.equal(
        call("rnnt_loss", VALUES, batched=False, lengths=(kind(FRAMES), kind(LABELS)), targets=kind(TARGETS)), expected
    )
    assert torch.equal(call("rnnt_loss", VALUES, batched=False, lengths=([FRAMES], [LABELS])), expected)
    assert torch.equal(call("rnnt_loss", VALUES, batched=False, targets=[TARGETS]), expected)
    assert torch.equal(call("rnnt_loss", VALUES.numpy(), batched=False), expected)


def test_one_sample_is_checked():
    for wrong, message in (
        ({"targets": [9, 1, 1]}, r"targets must lie in \[0, C\) with C = 5; got 9 at sample 0"),
        ({"lengths": (9, 1)}, r"logit_lengths must lie in \[0, T\] with T = 4"),
        ({"targets": [1]}, r"target_lengths must lie in \[0, the width of targets\]"),
        ({"targets": [0.5]}, "targets must have an integer dtype"),
    ):
        with pytest.raises((ValueError, TypeError), match=f"^rnnt_loss: {message}"):
            call("rnnt_loss", VALUES, batched=False, **wrong)
    with pytest.raises(ValueError, match=r"^rnnt_packed_loss: logits must have shape \(rows, V\)"):
        call("rnnt_packed_loss", VALUES, batched=False)


def test_the_gradient_of_one_sample_is_written_over_its_logits():
    expected, found = (VALUES.clone().requires_grad_() for _ in range(2))
    call("rnnt_loss", expected, batched=True).backward()
    copy = found.clone()
    gradient = torch.autograd.grad(call("rnnt_loss", copy, batched=False, overwrite_logits=True), copy)[0]
    assert torch.equal(gradient, expected.grad)
    assert gradient.data_ptr() == copy.data_ptr()


def joined(function, encoder_out, predictor_out, integers, bias=None, weight=WEIGHT):
    if function == "rnnt_joint_loss":
        return pathsum.torch.rnnt_joint_loss(encoder_out, predictor_out, weight, bias, *integers, reduction="none")
    if function == "rnnt_loss_from_joint":
        return pathsum.torch.rnnt_loss_from_joint(
            lambda e, p: torch.tanh(e + p) @ WEIGHT.T, encoder_out, predictor_out, *integers, reduction="none"
        )
    joiner = Joiner(encoder_out, predictor_out, weight, bias)
    return pathsum.torch.wildcard_rnnt_loss(joiner, *integers, reduction="none")


JOINERS = ["rnnt_joint_loss", "rnnt_loss_from_joint", "Joiner"]


@pytest.mark.parametrize("function", JOINERS)
def test_joiners_take_one_sample_and_numpy_arrays(function):
    whole = joined(function, ENCODER[None], PREDICTOR[None], ([TARGETS], [FRAMES], [LABELS]))
    logits = torch.tanh(ENCODER[:, None] + PREDICTOR) @ WEIGHT.T
    name = "wildcard_rnnt_loss" if function == "Joiner" else "rnnt_loss"
    torch.testing.assert_close(whole[0], call(name, logits, batched=False), rtol=1e-12, atol=1e-12)
    assert torch.equal(joined(function, ENCODER, PREDICTOR, (TARGETS, FRAMES, LABELS)), whole[0])
    arrays = ENCODER.numpy(), PREDICTOR.numpy()
    found = joined(function, *arrays, (TARGETS, FRAMES, LABELS), bias=np.zeros(CLASSES), weight=WEIGHT.numpy())
    assert torch.equal(found, whole[0])
    turned = torch._neg_view(-ENCODER), torch._neg_view(-PREDICTOR)
    assert torch.equal(joined(function, *turned, (TARGETS, FRAMES, LABELS), weight=torch._neg_view(-WEIGHT)), whole[0])
    with pytest.raises(ValueError, match=r"predictor_out must have as many axes as encoder_out, 3; got shape \(4, 3\)"):
        joined(function, ENCODER[None], PREDICTOR, ([TARGETS], [FRAMES], [LABELS]))


def test_every_transducers_function_is_here():
    public = [name for name in pathsum.torch.__all__ if "logit_lengths" in _arguments(name)]
    covered = {name for name, _ in LOSSES} | set(RESULTS) | set(JOINERS)
    # Those have no batch axis to lack, or one more.
    assert set(public) - {"rnnt_packed_loss", "rnnt_mwer_loss"} <= covered


def _arguments(name):
    public = getattr(pathsum.torch, name)
    return inspect.signature(public).parameters if inspect.isfunction(public) else ()
