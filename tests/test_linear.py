"""CTC of a linear layer's output: beside the reference on the logits, which are held there."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch.nn.functional import linear

from pathsum.dispatch import kernels_of
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.kernels.protocol import Call, LinearOptions
from pathsum.lattice import Columns
from pathsum.testing import assert_close
from pathsum.torch import _linear, ctc_linear_loss, ctc_loss
from support import DTYPES, random_like, second_derivative

# Ragged, with a repeat, no label, no frame, and a target that does not fit. 7 classes: chunks of 3 leave one over.
T, N, H, C = 6, 5, 3, 7
TARGETS = torch.tensor([[2, 2, 5], [0, 0, 0], [6, 1, 3], [1, 0, 0], [3, 3, 3]])
LENGTHS, LABELS = torch.tensor([6, 5, 4, 0, 4]), torch.tensor([3, 0, 3, 0, 3])
INTEGERS = (TARGETS, LENGTHS, LABELS, 4)


def operands(dtype=torch.float64, scale=1.0, bias=True):
    made = random_like([torch.empty(shape, dtype=dtype) for shape in ((T, N, H), (C, H), (C,))])
    return [(x * scale).requires_grad_() for x in made[: 2 + bias]]


def expected_of(tensors, *integers, upstream=None, **options):
    """Losses of the reference in float64 and their gradients, the logits being held."""
    doubles = [x.detach().double().requires_grad_() for x in tensors]
    losses = ctc_loss(linear(*doubles), *integers, fused_log_softmax=True, impl="reference", **options)
    return losses, torch.autograd.grad(losses, doubles, upstream)


@pytest.mark.parametrize("chunk", [None, 1, 3, 10**12])
@pytest.mark.parametrize("impl", ["numba", "reference"])
def test_it_is_the_loss_of_the_logits(impl, chunk):
    upstream = torch.tensor([1.0, -2.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    for bias in (True, False):
        tensors = operands(bias=bias)
        losses, gradients = expected_of(tensors, *INTEGERS, reduction="none", upstream=upstream)
        given = tensors if bias else [*tensors, None]
        found = ctc_linear_loss(*given, *INTEGERS, reduction="none", chunk=chunk, impl=impl)
        assert_close(found, losses, absolute=1e-12)
        for one, other in zip(torch.autograd.grad(found, tensors, upstream), gradients, strict=True):
            assert_close(one, other, absolute=1e-12)
        assert found[4] == torch.inf
        assert found[3] == 0


def test_frames_in_blocks(monkeypatch):
    """More frames than a tile has rows."""
    monkeypatch.setattr(_linear, "_ROWS", 4)
    tensors = operands()
    losses, gradients = expected_of(tensors, *INTEGERS, reduction="none", upstream=torch.ones(N, dtype=torch.float64))
    found = ctc_linear_loss(*tensors, *INTEGERS, reduction="none", chunk=2)
    assert_close(found, losses, absolute=1e-12)
    for one, other in zip(torch.autograd.grad(found.sum(), tensors), gradients, strict=True):
        assert_close(one, other, absolute=1e-12)


@pytest.mark.parametrize("scale", [1.0, 12.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_precision(dtype, scale):
    """Products of halves are exact and summed in float32; a gradient is rounded to its dtype once."""
    tensors = operands(DTYPES[dtype], scale)
    losses, gradients = expected_of(tensors, *INTEGERS, reduction="none", upstream=torch.ones(N, dtype=torch.float64))
    found = ctc_linear_loss(*tensors, *INTEGERS, reduction="none", chunk=3)
    assert found.dtype == torch.float32
    size = max(float(x.detach().abs().max()) for x in tensors)
    eps = torch.finfo(torch.float32).eps
    logit_error = eps * H * size**2
    real = losses.isfinite()
    bound = T * (logit_error + eps * losses[real].max().item())
    assert_close(found[real], losses[real], absolute=bound)
    assert (found[~real] == torch.inf).all()
    for own, exact in zip(torch.autograd.grad(found.sum(), tensors), gradients, strict=True):
        assert own.dtype == DTYPES[dtype]
        rounding = torch.finfo(own.dtype).eps * exact.abs().max().item()
        # As many frames as there are add up to a gradient, each with its logits' errors.
        assert_close(own.double(), exact, absolute=rounding + T * N * size * (4 * logit_error + 4 * eps))


@pytest.mark.parametrize("impl", ["numba", "triton"])
def test_columns_by_every_implementation(impl):
    """That of GPUs has its softmax in torch's operations, which run here too."""
    classes = np.array([[4, 2, 2, 6], [4, 0, 4, 4]])
    tensors = operands()
    batch_first = [tensors[0].detach().transpose(0, 1)[:2].contiguous().requires_grad_(), *tensors[1:]]
    lattice = Columns(np.array([6, 3]), classes)
    upstream = torch.randn(2, T, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    upstream[1, 3:] = 0
    upstream[0, :, 2] = 0  # of equal columns one has a gradient
    upstream[1, :, 2:] = 0
    real = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])[:, :, None]

    def losses_of(impl):
        def losses(*given):
            made = kernels_of(impl, "linear").losses(Call(given, lattice, LinearOptions(chunk=3)))
            return torch.where(real, made, 0.0)

        return losses

    expected, found = losses_of("reference")(*batch_first), losses_of(impl)(*batch_first)
    assert_close(found, expected, absolute=1e-12)
    tangents = random_like(batch_first, 5)
    second = [second_derivative(losses_of(i), batch_first, upstream, tangents) for i in ("reference", impl)]
    gradients = [torch.autograd.grad(x, batch_first, upstream) for x in (expected, found)]
    for one, other in (*zip(*gradients, strict=True), *zip(*second, strict=True)):
        assert_close(one, other, absolute=1e-12)


def test_scores_without_values_are_seen():
    """NaN, infinities, impossible classes and impossible rows, in the tile that has them and in others."""
    tensors = [x.detach() for x in operands()]
    bias = tensors[2].clone()
    bias[[0, 5]] = -torch.inf
    upstream = torch.ones(N, dtype=torch.float64)
    given = [*(x.clone().requires_grad_() for x in tensors[:2]), bias]
    losses = ctc_loss(linear(*given), *INTEGERS, fused_log_softmax=True, impl="reference", reduction="none")
    found = ctc_linear_loss(*given, *INTEGERS, reduction="none", chunk=2)
    assert found[0] == losses[0] == torch.inf
    assert_close(found, losses, absolute=1e-12)
    for one, other in zip(*(torch.autograd.grad(x, given[:2], upstream) for x in (found, losses)), strict=True):
        assert_close(one, other, absolute=1e-12)
    nothing = ctc_linear_loss(*tensors[:2], torch.full((C,), -torch.inf).double(), *INTEGERS, reduction="none", chunk=2)
    assert nothing.tolist() == [torch.inf, torch.inf, torch.inf, 0.0, torch.inf]
    for value in (torch.nan, torch.inf):
        hidden = tensors[0].clone()
        hidden[1, 2, 0], hidden[5, 2] = value, value  # the second in padding
        hidden = hidden.requires_grad_()
        loss = ctc_linear_loss(hidden, *tensors[1:], *INTEGERS, reduction="none", chunk=2)
        assert loss.isnan().tolist() == [False, False, True, False, False]
        (gradient,) = torch.autograd.grad(loss.sum(), hidden)
        assert gradient.isnan().any(2).any(0).tolist() == [False, False, True, False, False]
        assert not gradient[5, 2].any()


@pytest.mark.parametrize("impl", ["numba", "reference"])
def test_padding_is_not_read(impl):
    tensors = operands()
    options = {"reduction": "none", "impl": impl}
    expected = torch.autograd.grad(ctc_linear_loss(*tensors, *INTEGERS, **options)[:4].sum(), tensors)
    with torch.no_grad():
        tensors[0][torch.arange(T)[:, None] >= LENGTHS] = torch.nan
    found = torch.autograd.grad(ctc_linear_loss(*tensors, *INTEGERS, **options)[:4].sum(), tensors)
    assert all(map(torch.equal, found, expected))


def test_huge_logits_have_digits():
    """What all logits of a frame have in common is taken off before a log could be lost beside it."""
    hidden = torch.full((3, 1, 1), 1e9, dtype=torch.float64, requires_grad=True)
    weight = torch.full((2, 1), 1e8, dtype=torch.float64)
    loss = ctc_linear_loss(hidden, weight, None, [[1]], [3], [1], reduction="sum", chunk=1)
    assert_close(loss, np.log(8 / 6), absolute=1e-12)


def test_layouts_one_sample_and_reductions():
    tensors = operands()
    hidden, weight, bias = tensors
    expected, gradients = expected_of(tensors, *INTEGERS, "mean", True)
    for given, options in (
        (hidden, {}),
        (hidden.transpose(0, 1).contiguous(), {"batch_first": True}),
        (hidden.repeat_interleave(2, 2)[..., ::2], {}),
    ):
        found = ctc_linear_loss(given, weight, bias, *INTEGERS, "mean", True, **options)
        assert_close(found, expected, absolute=1e-12)
        for one, other in zip(torch.autograd.grad(found, tensors), gradients, strict=True):
            assert_close(one, other, absolute=1e-12)
    whole = ctc_linear_loss(*tensors, *INTEGERS, reduction="none")
    alone = ctc_linear_loss(hidden[:, 0], weight, bias, [2, 2, 5], 6, 3, 4, reduction="none")
    assert alone.shape == ()
    assert_close(alone, whole[0], absolute=1e-12)
    arrays = [x.detach().numpy() for x in tensors]
    assert_close(ctc_linear_loss(*arrays, *INTEGERS, reduction="none"), whole, absolute=1e-12)


def test_operands_are_checked():
    hidden, weight, bias = operands(torch.float32)
    for given, error, message in (
        (
            (hidden, weight.double(), bias),
            InvalidTypeError,
            "weight must have hidden's dtype and device, float32 on cpu",
        ),
        ((hidden, weight, bias.half()), InvalidTypeError, "bias must have hidden's dtype and device, float32 on cpu"),
        ((hidden, weight[:, :2], bias), InvalidValueError, r"weight must have shape \(C, H\) = \(any, 3\); got shape"),
        ((hidden, weight, bias[:2]), InvalidValueError, r"bias must have shape \(C\) = \(7\); got shape \(2,\)"),
        ((hidden[0, 0], weight, bias), InvalidValueError, r"hidden must have shape \(T, N, H\) or \(T, H\)"),
        ((hidden, None, bias), InvalidTypeError, "weight must have dtype"),
    ):
        with pytest.raises(error, match=f"^ctc_linear_loss: {message}"):
            ctc_linear_loss(*given, *INTEGERS)
    for chunk in (0, -1, 1.5, True):
        with pytest.raises((InvalidValueError, InvalidTypeError), match=r"^ctc_linear_loss: chunk must be"):
            ctc_linear_loss(hidden, weight, bias, *INTEGERS, chunk=chunk)
    with pytest.raises(InvalidValueError, match=r"targets must lie in \[0, C\) with C = 7; got 9 at sample 1"):
        ctc_linear_loss(hidden, weight, bias, torch.where(TARGETS == 0, 9, TARGETS), LENGTHS, [3, 1, 3, 0, 3], 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = ctc_linear_loss(hidden, weight.double().float(), bias, *INTEGERS, reduction="none")
    halves = [x.bfloat16() for x in (hidden, weight, bias)]
    assert torch.equal(found, ctc_linear_loss(*halves, *INTEGERS, reduction="none"))


PEAK = """
import resource, torch
from pathsum.torch import ctc_linear_loss

def run(T, N, H, C, S):
    hidden, weight = torch.randn(T, N, H, requires_grad=True), torch.randn(C, H).div_(H**0.5).requires_grad_()
    bias, targets = torch.zeros(C, requires_grad=True), torch.randint(1, C, (N, S))
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loss = ctc_linear_loss(hidden, weight, bias, targets, [T] * N, [S] * N)
    gradients = torch.autograd.grad(loss, (hidden, weight, bias))
    used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begin) * 1024
    return used - sum(x.nbytes for x in gradients)

run(20, 2, 8, 64, 3)
print(run(200, 4, 64, 32768, 30))
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="counts resident memory in bytes there")
def test_the_logits_are_never_held():
    """The logits alone would be 105 MB."""
    run = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 60e6
