"""The fused joiner's Triton kernels, interpreted, against the reference in float64."""

from dataclasses import replace

import pytest
import torch

from pathsum.lattice import LABEL
from pathsum.problems.rnnt import pose_rnnt
from pathsum.problems.rnnt_types import pose_rnnt_type
from pathsum.testing import assert_close, assert_same_bits, grid_inputs
from pathsum.torch import Joiner, rnnt_joint_loss
from pathsum.torch._inputs import on_device
from support import second_derivative
from test_joiner import FUSED, joiners
from triton_targets import interpreted, tiles  # noqa: F401


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Rows are a multiple of eight, in two slices; with ``tile_memory=1`` no more."""
    monkeypatch.setattr(tiles, "_STEP", 4)
    monkeypatch.setattr(tiles, "_SLICES", 2)


def case(num_samples, num_frames, num_labels, num_classes, size, dtype=torch.float32, seed=0):
    inputs = grid_inputs(num_samples, num_frames, num_labels, num_classes, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    shapes = ((num_samples, num_frames, size), (num_samples, num_labels + 1, size), (num_classes, size), (num_classes,))
    operands = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return operands, [torch.from_numpy(array) for array in inputs[1:]]


def solve(operands, integers, impl, dtype=None, upstream=None, **options):
    leaves = [operand.detach().to(dtype or operand.dtype).requires_grad_() for operand in operands]
    loss = rnnt_joint_loss(*leaves, *integers, reduction="none", impl=impl, **options)
    upstream = torch.ones_like(loss) if upstream is None else upstream.to(loss)
    return loss.detach(), *torch.autograd.grad(loss, leaves, upstream)


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


@pytest.mark.parametrize("dtype, bound", [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_half_precision(dtype, bound):
    operands, integers = case(2, 3, 2, 5, 6, dtype, seed=2)
    assert_agrees(operands, integers, bound=bound, loss_bound=bound / 4)


def test_weights_of_the_gradient():
    operands, integers = case(3, 4, 2, 5, 6, seed=3)
    upstream = torch.tensor([1.0, 0.0, -2.0])
    assert_agrees(operands, integers, fastemit_lambda=0.3, clamp=0.05, upstream=upstream)


def test_tiles_change_no_more_than_the_rounding():
    operands, integers = case(2, 3, 2, 5, 6, seed=4)
    whole = solve(operands, integers, "triton")
    tiled = solve(operands, integers, "triton", tile_memory=1)
    for actual, expected in zip(tiled, whole, strict=True):
        assert_close(actual, expected, absolute=2e-6)
    for actual, expected in zip(solve(operands, integers, "triton", tile_memory=1), tiled, strict=True):
        assert_same_bits(actual, expected)


def test_integers_that_nobody_reads_give_the_same(monkeypatch):
    """The number of nodes and that of those which count are not known then, but what they may be at most."""
    operands, integers = case(3, 4, 3, 5, 6, seed=9)
    integers[1][:], integers[2][:] = torch.tensor([4, 2, 0]), torch.tensor([2, 3, 1])
    known = solve(operands, integers, "triton", tile_memory=1, gate=0.01)
    monkeypatch.setattr(tiles, "in_memory", lambda _: False)
    for actual, expected in zip(solve(operands, integers, "triton", tile_memory=1, gate=0.01), known, strict=True):
        assert_close(actual, expected, absolute=2e-6)


def test_a_tile_takes_the_memory_it_may():
    operands, integers = case(2, 3, 2, 5, 6)
    targets, logit_lengths, target_lengths = integers
    lattice = pose_rnnt_type(pose_rnnt(targets, logit_lengths, target_lengths, 0), "regular")
    lattice = replace(lattice, row_offsets=torch.tensor([0, 10**6, 2 * 10**6]))
    for dtype, memory in ((torch.float32, 2**20), (torch.bfloat16, 2**16)):
        operands = [torch.empty(shape, dtype=dtype, device="meta") for shape in ((2, 3, 40), (2, 3, 40), (50, 40), 50)]
        own = tiles.JoinerTiles(
            operands, on_device(lattice, torch.device("meta")), (0, LABEL), -1, "tanh", memory, None
        )
        own.num_nodes = 2 * 10**6
        room = tiles._Room(own, gradient=True)
        held = {id(kept): kept.nbytes for kept in vars(room).values() if isinstance(kept, torch.Tensor)}
        taken = sum(held.values()) + own.slices * own.weight.nbytes * 4 // dtype.itemsize
        assert 0.8 * memory < taken <= memory


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


def test_tiles_that_hold_no_node_that_counts_are_not_made(monkeypatch):
    operands, integers = case(1, 3, 1, 5, 6, seed=5)
    made = []
    product = tiles.product
    monkeypatch.setattr(tiles, "product", lambda *factors: made.append(factors) or product(*factors))
    gradients = solve(operands, integers, "triton", gate=1e3)[1:]
    assert len(made) == 1  # forward's
    assert not any(gradient.any() for gradient in gradients)


def test_float64():
    operands, integers = case(2, 3, 2, 4, 5, torch.float64, seed=8)
    assert_agrees(operands, integers, bound=1e-12, loss_bound=1e-13)


@pytest.mark.parametrize("options", [
    *({"activation": activation} for activation in ("tanh", "relu", "sigmoid", "gelu")),
    {"rnnt_type": "constrained", "delay_penalty": 0.2}, {"hat": True},
], ids=str)  # fmt: skip
def test_second_derivatives(options):
    operands, integers = case(3, 3, 2, 5, 6, torch.float64, seed=3)
    integers[1][:], integers[2][:] = torch.tensor([3, 1, 2]), torch.tensor([2, 1, 0])
    options = options | {"reduction": "none", "zero_infinity": True}
    tangents = [torch.randn_like(operand) for operand in operands]

    def by(impl, **further):
        return second_derivative(
            lambda *given: rnnt_joint_loss(*given, *integers, impl=impl, **options, **further), operands,
            [1.0, -2.0, 0.5], tangents,
        )  # fmt: skip

    for found, expected in zip(by("triton", gate=0.0, tile_memory=1), by("reference"), strict=True):
        assert_close(found, expected, absolute=1e-11)


def test_second_derivatives_of_halves():
    operands, integers = case(2, 3, 2, 5, 6, torch.bfloat16, seed=3)
    tangents = [torch.randn_like(operand) for operand in operands]
    exact = [[operand.double() for operand in given] for given in (operands, tangents)]

    def loss(impl):
        return lambda *given: rnnt_joint_loss(*given, *integers, reduction="none", impl=impl)

    found = second_derivative(loss("triton"), operands, [1.0, -2.0], tangents)
    expected = second_derivative(loss("reference"), exact[0], [1.0, -2.0], exact[1])
    for actual, wanted in zip(found, expected, strict=True):
        assert_close(actual, wanted, absolute=0.05 * max(1.0, float(wanted.abs().max())))


def of_heads(variant, seed):
    """Encoder and predictor, weight and bias of each head, and a small ragged batch."""
    shapes = [(3, 4, 5), (3, 3, 5)]
    for size in variant.heads:
        shapes += [(size, 5), (size,)]
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return tensors, ([[0, 2], [3, 3], [2, 0]], [4, 1, 3], [2, 1, 0])


@pytest.mark.parametrize("name, further", [
    ("tdt", {}), ("multi-blank", {"clamp": 0.05}), ("band-hat", {"fastemit_lambda": 0.3}), ("wildcard", {}),
])  # fmt: skip
def test_variants_make_their_logits_in_tiles(name, further, monkeypatch):
    tensors, integers = of_heads(FUSED[name], seed=1)
    tensors = [tensor.requires_grad_() for tensor in tensors]

    def solved(heads, impl):
        losses = FUSED[name].loss(heads, *integers, reduction="none", zero_infinity=True, impl=impl, **further)
        return losses.detach(), *torch.autograd.grad(losses, tensors, torch.tensor([1.0, -2.0, 0.5]).double())

    expected = solved([head.logits() for head in joiners(tensors)], "reference")
    mixed = [head.logits() if k else head for k, head in enumerate(joiners(tensors, gate=0.0))]
    tiled = joiners(tensors, gate=0.0, tile_memory=1)
    monkeypatch.setattr(Joiner, "logits", None)
    for heads in (tiled, mixed)[: len(mixed)]:
        for found, wanted in zip(solved(heads, "triton"), expected, strict=True):
            assert_close(found, wanted, absolute=1e-11)


@pytest.mark.parametrize("name", ["tdt", "band-hat"])
def test_second_derivatives_of_a_variant(name):
    variant = FUSED[name]
    tensors, integers = of_heads(variant, seed=3)
    tangents = [torch.randn_like(tensor) for tensor in tensors]

    def by(impl):
        def loss(*tensors):
            heads = [head if impl == "triton" else head.logits() for head in joiners(tensors, gate=0.0)]
            return variant.loss(heads, *integers, reduction="none", zero_infinity=True, impl=impl)

        return second_derivative(loss, tensors, [1.0, -2.0, 0.5], tangents)

    for found, expected in zip(by("triton"), by("reference"), strict=True):
        assert_close(found, expected, absolute=1e-11)
