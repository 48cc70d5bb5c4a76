"""The fused joiner's Triton kernels, interpreted, against the reference in float64."""

import pytest
import torch

from pathsum.errors import NotDifferentiableError
from pathsum.testing import assert_close, assert_same_bits, grid_inputs
from pathsum.torch import rnnt_joint_loss
from triton_targets import interpreted  # noqa: F401


def case(num_samples, num_frames, num_labels, num_classes, size, dtype=torch.float32, seed=0):
    inputs = grid_inputs(num_samples, num_frames, num_labels, num_classes, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    shapes = ((num_samples, num_frames, size), (num_samples, num_labels + 1, size), (num_classes, size), (num_classes,))
    operands = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return operands, [torch.from_numpy(array) for array in inputs[1:]]


def solve(operands, integers, impl, dtype=None, upstream=None, **options):
    leaves = [operand.detach().to(dtype or operand.dtype).requires_grad_() for operand in operands]
    loss = rnnt_joint_loss(*leaves, *integers, reduction="none", impl=impl, **options)
    loss.backward(torch.ones_like(loss) if upstream is None else upstream.to(loss))
    return loss.detach(), *(leaf.grad for leaf in leaves)


def assert_agrees(operands, integers, bound=2e-5, loss_bound=2e-6, **options):
    solved = solve(operands, integers, "triton", **options)
    expected = solve(operands, integers, "reference", torch.float64, **options)
    assert_close(solved[0], expected[0], relative=loss_bound)
    names = ("encoder", "predictor", "weight", "bias")
    for name, actual, wanted, operand in zip(names, solved[1:], expected[1:], operands, strict=True):
        assert actual.dtype == operand.dtype
        assert_close(actual, wanted, absolute=bound * max(1.0, float(wanted.abs().max())), what=name)
    return solved


@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid", "gelu"])
def test_every_activation(activation):
    operands, integers = case(2, 3, 2, 5, 6, seed=1)
    assert_agrees(operands, integers, activation=activation)


# All of them one; no label; more hidden units and classes than a block, ragged.
@pytest.mark.parametrize("size", [(1, 1, 1, 2, 1), (2, 3, 0, 3, 4), (3, 4, 3, 70, 40)], ids=str)
def test_sizes(size):
    operands, integers = case(*size, seed=sum(size))
    assert_agrees(operands, integers)


def test_half_precision():
    # float16: of bfloat16 the interpreter multiplies the bits.
    operands, integers = case(2, 3, 2, 5, 6, torch.float16, seed=2)
    assert_agrees(operands, integers, bound=4e-3, loss_bound=1e-3)


def test_weights_of_the_gradient():
    operands, integers = case(3, 4, 2, 5, 6, seed=3)
    upstream = torch.tensor([1.0, 0.0, -2.0])
    assert_agrees(operands, integers, fastemit_lambda=0.3, clamp=0.05, upstream=upstream)


def test_chunks_change_no_more_than_the_rounding(monkeypatch):
    from pathsum.torch._triton import joint

    operands, integers = case(2, 3, 2, 5, 6, seed=4)
    whole = solve(operands, integers, "triton")
    monkeypatch.setattr(joint, "_LEAST_CHUNK", 7)
    monkeypatch.setattr(joint, "_CHUNKS", 99)
    chunked = solve(operands, integers, "triton", tile_memory=1)
    assert_same_bits(chunked[0], whole[0])
    for actual, expected in zip(chunked[1:], whole[1:], strict=True):
        assert_close(actual, expected, absolute=2e-6)
    assert_same_bits(chunked[3], solve(operands, integers, "triton", tile_memory=1)[3])


def test_the_gate_leaves_out_what_it_may():
    operands, integers = case(1, 5, 3, 5, 6, seed=5)
    exact = solve(operands, integers, "triton", gate=0.0)
    gated = solve(operands, integers, "triton", gate=0.5)
    assert not torch.equal(gated[1], exact[1])
    # Of a frame's unit mass at most half is left out.
    assert_close(gated[4], exact[4], absolute=0.5 * 5)
    for actual, expected in zip(solve(operands, integers, "triton")[1:], exact[1:], strict=True):
        assert_close(actual, expected, absolute=1e-6)


def test_undefined_and_infeasible_samples_leave_the_others_alone():
    operands, integers = case(3, 3, 2, 4, 5, seed=6)
    integers[1][1] = 0
    clean = solve(operands, integers, "triton", upstream=torch.tensor([1.0, 1.0, 0.0]))
    operands[0][2, 0, 0] = torch.nan
    solved = solve(operands, integers, "triton", upstream=torch.tensor([1.0, 1.0, 0.0]))
    assert solved[0][1] == torch.inf
    assert solved[0][2].isnan()
    assert_same_bits(solved[0][0], clean[0][0])
    for actual, expected in zip(solved[1:], clean[1:], strict=True):
        assert_same_bits(actual, expected)
    assert solve(operands, integers, "triton")[3].isnan().all()


def test_padding_is_not_read():
    operands, integers = case(2, 4, 3, 5, 6, seed=7)
    integers[1][:], integers[2][:] = torch.tensor([2, 4]), torch.tensor([3, 1])
    integers[0][1, 1:] = -1
    integers[0][0] = torch.tensor([0, 1, 2])
    clean = solve(operands, integers, "triton")
    operands[0][0, 2:], operands[1][1, 2:] = torch.nan, torch.nan
    for actual, expected in zip(solve(operands, integers, "triton"), clean, strict=True):
        assert_same_bits(actual, expected)


def test_what_the_tiles_do_not_do_is_done_with_all_logits():
    operands, integers = case(2, 3, 2, 4, 5, torch.float64, seed=8)
    assert_agrees(operands, integers, bound=1e-12, loss_bound=1e-13)
    operands, integers = case(2, 3, 2, 4, 5, seed=8)
    assert_agrees(operands, integers, rnnt_type="modified", clamp=0.2)


def test_what_has_first_derivatives_only_says_so():
    operands, integers = case(1, 2, 1, 3, 2)
    leaves = [operand.requires_grad_() for operand in operands]
    loss = rnnt_joint_loss(*leaves, *integers, impl="triton")
    with pytest.raises(NotDifferentiableError, match="impl='triton' has first derivatives only"):
        torch.autograd.grad(loss, leaves, create_graph=True)
