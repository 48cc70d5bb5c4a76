"""The variants that the fused joiner can express, beside the same loss of its logits."""

import pytest
import torch

from pathsum.options import RNNT_TYPES
from pathsum.testing import assert_close, grid_inputs
from pathsum.torch import rnnt_joint_loss, rnnt_loss, rnnt_loss_from_joint

OPTIONS = [{"rnnt_type": rnnt_type, "delay_penalty": penalty} for rnnt_type in RNNT_TYPES for penalty in (0.0, 0.2)]
OPTIONS += [{"hat": True}, {"hat": True, "rnnt_type": "constrained", "delay_penalty": 0.2}]
NUM_CLASSES, BLANK = 7, 2


def operands(seed=0):
    """Encoder, predictor, weight, bias, and the integers of a ragged batch, among them T = 1 and U = 0."""
    inputs = grid_inputs(4, 9, 4, NUM_CLASSES, blank=BLANK, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    shapes = ((4, 9, 5), (4, 5, 5), (NUM_CLASSES, 5), (NUM_CLASSES,))
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    logit_lengths, target_lengths = inputs.logit_lengths.copy(), inputs.target_lengths.copy()
    logit_lengths[1], target_lengths[1], target_lengths[2] = 1, 1, 0
    return tensors, (inputs.targets, logit_lengths, target_lengths)


def solved(losses, tensors):
    upstream = torch.tensor([1.0, 2.0, -0.5, 0.0], dtype=torch.float64)
    return losses.detach(), torch.autograd.grad(losses, tensors, upstream)


def materialised(tensors, integers, **options):
    encoder, predictor, weight, bias = tensors
    logits = torch.tanh(encoder[:, :, None] + predictor[:, None]) @ weight.T + bias
    return solved(rnnt_loss(logits, *integers, BLANK, **options), tensors)


def assert_agree(actual, expected):
    assert_close(actual[0], expected[0], absolute=1e-10)
    for gradient, wanted in zip(actual[1], expected[1], strict=True):
        assert_close(gradient, wanted, absolute=1e-9)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("further", [{}, {"fastemit_lambda": 0.3}, {"clamp": 0.1, "zero_infinity": True}], ids=str)
@pytest.mark.parametrize("impl", ["numba", "reference"])
def test_the_fused_joint_is_the_loss_of_its_logits(impl, further, options):
    tensors, integers = operands()
    options = {"reduction": "none"} | options | further
    losses = rnnt_joint_loss(*tensors, *integers, BLANK, impl=impl, gate=0.0, tile_memory=4096, **options)
    assert_agree(solved(losses, tensors), materialised(tensors, integers, **options))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("fastemit_lambda", [0.0, 0.3])
@pytest.mark.parametrize("impl", ["numba", "reference"])
def test_any_joiner_in_tiles_is_the_loss_of_its_logits(impl, fastemit_lambda, options):
    tensors, integers = operands(seed=1)
    encoder, predictor, weight, bias = tensors
    options = {"reduction": "none", "fastemit_lambda": fastemit_lambda} | options
    losses = rnnt_loss_from_joint(
        lambda e, p: torch.tanh(e + p) @ weight.T + bias,
        encoder,
        predictor,
        *integers,
        BLANK,
        rows_per_tile=7,
        impl=impl,
        **options,
    )
    assert_agree(solved(losses, tensors), materialised(tensors, integers, **options))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_undefined_sample_stays_alone(options):
    tensors, integers = operands(seed=2)
    expected, _ = materialised(tensors, integers, reduction="none", **options)
    with torch.no_grad():
        tensors[0][0, 1, 2] = torch.nan
    losses = rnnt_joint_loss(*tensors, *integers, BLANK, reduction="none", **options)
    assert losses[0].isnan()
    assert_close(losses[1:], expected[1:], absolute=1e-10)
    gradients = torch.autograd.grad(losses[1:].nan_to_num(posinf=0.0).sum(), tensors[:2])
    for gradient in gradients:
        assert gradient[1:].isfinite().all()
