"""The transducer's variants, expectations and posteriors by the Triton kernels, interpreted."""

import pytest
import torch

from pathsum.errors import NotDifferentiableError
from pathsum.testing import assert_close, assert_same_bits, chain_inputs, grid_inputs, pack_rows
from pathsum.torch import (
    asg_entropy,
    asg_posteriors,
    ctc_entropy,
    ctc_posteriors,
    rnnt_entropy,
    rnnt_loss,
    rnnt_loss_from_joint,
    rnnt_posteriors,
    simple_ctc_expected_risk,
    tdt_loss,
)
from support import random_like, second_derivative, tensor
from test_second_order_grid import inputs_of
from triton_targets import interpreted  # noqa: F401
from variants import BLANK, VARIANTS

pytestmark = pytest.mark.filterwarnings("ignore:asg_loss. the target")
BOUND = 2e-6


def solve(variant, heads, integers, impl, upstream=(1.0, -2.0), **options):
    leaves = [head.detach().clone().requires_grad_() for head in heads]
    loss = variant.loss(leaves, *integers, reduction="none", impl=impl, **options)
    return loss.detach(), *torch.autograd.grad(loss, leaves, torch.tensor(upstream[: len(loss)]).to(loss))


def assert_agrees(variant, heads, integers, bound=BOUND, **options):
    """In the heads' dtype what the reference gives in float64."""
    solved = solve(variant, heads, integers, "triton", **options)
    expected = solve(variant, [head.double() for head in heads], integers, "reference", **options)
    for actual, wanted in zip(solved, expected, strict=True):
        rounding = torch.finfo(actual.dtype).eps if actual.dtype.itemsize == 2 else 0.0
        assert_close(actual, wanted, absolute=bound, relative=rounding)
    return solved


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_and_gradients(name):
    heads, integers = inputs_of(VARIANTS[name], 2, 4, 2, seed=5)
    solved = assert_agrees(VARIANTS[name], [head.float() for head in heads], integers)
    assert solved[0].isfinite().all()
    assert all(gradient.abs().max() > 0.1 for gradient in solved[1:])


@pytest.mark.parametrize("name", ["constrained-delayed", "hat", "tdt", "multi-blank", "wildcard", "wildcard-any"])
def test_second_derivatives(name):
    variant = VARIANTS[name]
    heads, integers = inputs_of(variant, 2, 4, 2, seed=5)
    heads = [head.float() for head in heads]
    tangents = random_like(heads)

    def second(impl, heads, tangents):
        def loss(*heads):
            return variant.loss(heads, *integers, reduction="none", impl=impl)

        return second_derivative(loss, heads, [1.0, -2.0], tangents)

    found = second("triton", heads, tangents)
    expected = second("numba", [head.double() for head in heads], [tangent.double() for tangent in tangents])
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, absolute=BOUND)
    assert all(product.abs().max() > 0.05 for product in found)


@pytest.mark.parametrize("name, dtype", [("hat", torch.float64), ("tdt-any", torch.float16)], ids=str)
def test_other_dtypes(name, dtype):
    heads, integers = inputs_of(VARIANTS[name], 2, 4, 2, seed=6)
    heads = [head.to(dtype) for head in heads]
    solved = assert_agrees(VARIANTS[name], heads, integers, bound=1e-12 if dtype == torch.float64 else BOUND)
    assert [gradient.dtype for gradient in solved[1:]] == [dtype] * len(heads)


@pytest.mark.parametrize("name", ["tdt", "hat"])
def test_gradients_are_weighted_as_asked(name):
    heads, integers = inputs_of(VARIANTS[name], 2, 4, 2, seed=7)
    heads = [head.float() for head in heads]
    solved = assert_agrees(VARIANTS[name], heads, integers, fastemit_lambda=0.3, clamp=0.05)
    assert max(float(gradient.abs().max()) for gradient in solved[1:]) == pytest.approx(0.1)
    loss = VARIANTS[name].loss([head.requires_grad_() for head in heads], *integers, impl="triton", clamp=0.1)
    with pytest.raises(NotDifferentiableError, match="fastemit_lambda"):
        torch.autograd.grad(loss, heads, create_graph=True)


def test_packed_scores_have_the_same_losses():
    heads, integers = inputs_of(VARIANTS["tdt"], 3, 4, 3, seed=8)
    heads = [head.float() for head in heads]
    padded = solve(VARIANTS["tdt"], heads, integers, "triton", upstream=(1.0, -2.0, 0.5))
    packed = [torch.from_numpy(pack_rows(head.numpy(), *integers[1:])) for head in heads]
    solved = solve(VARIANTS["tdt"], packed, integers, "triton", upstream=(1.0, -2.0, 0.5))
    assert_same_bits(solved[0], padded[0])
    for actual, expected in zip(solved[1:], padded[1:], strict=True):
        assert_same_bits(actual, torch.from_numpy(pack_rows(expected.numpy(), *integers[1:])))


@pytest.mark.parametrize("name", ["tdt-without-0", "wildcard", "constrained"])
def test_undefined_infeasible_and_empty_samples(name):
    heads, integers = inputs_of(VARIANTS[name], 4, 4, 2, seed=9, ragged=False)
    heads = [head.float() for head in heads]
    integers[1][:] = [4, 0, 4, 4]
    heads[0][2, 1, 1, BLANK] = torch.nan
    heads[0][3, :, :2] = -torch.inf
    solved = solve(VARIANTS[name], heads, integers, "triton", upstream=(1.0, 1.0, 1.0, 1.0))
    expected = solve(VARIANTS[name], heads, integers, "reference", upstream=(1.0, 1.0, 1.0, 1.0))
    assert_close(solved[0], expected[0], absolute=BOUND)
    assert solved[0][1] == solved[0][3] == torch.inf
    assert solved[0][2].isnan()
    for gradient, wanted in zip(solved[1:], expected[1:], strict=True):
        assert_close(gradient[0], wanted[0], absolute=BOUND)
        assert not gradient[1].any()
        assert gradient[2].isnan().any()
        assert not gradient[3].any()


def test_wide_grids_are_done_in_strips(monkeypatch):
    from pathsum.torch._triton import arcs

    for name in ("tdt", "wildcard-any"):
        heads, integers = inputs_of(VARIANTS[name], 2, 3, 9, seed=10)
        heads = [head.float() for head in heads]
        whole = solve(VARIANTS[name], heads, integers, "triton")
        with monkeypatch.context() as patch:
            patch.setattr(arcs, "STRIP", 4)
            strips = solve(VARIANTS[name], heads, integers, "triton")
        for one, other in zip(strips, whole, strict=True):
            assert_same_bits(one, other)


def test_the_same_input_gives_the_same_bits():
    heads, integers = inputs_of(VARIANTS["tdt-any"], 2, 4, 2, seed=11)
    first, again = (solve(VARIANTS["tdt-any"], heads, integers, "triton") for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert_same_bits(one, other)


def both(function, *inputs, **options):
    """By Triton and by the reference: values and the gradients of their sum."""
    for impl in ("triton", "reference"):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        value = function(*leaves, **options, impl=impl)
        yield value.detach(), *torch.autograd.grad(value.sum(), leaves)


def test_entropies_and_risks_with_their_gradients():
    chain, grid = chain_inputs(5, 2, 4, 2, seed=1), grid_inputs(2, 4, 2, 4, seed=1)
    logits, transitions = tensor(chain.logits), torch.linspace(-1, 1, 16, dtype=torch.float64).view(4, 4).sin()
    costs = tensor(chain.logits).cos()
    functions = [
        (lambda x, impl: ctc_entropy(x.log_softmax(-1), *chain[1:], reduction="none", impl=impl), [logits]),
        (
            lambda x, c, impl: simple_ctc_expected_risk(x.log_softmax(-1), c, *chain[1:], reduction="none", impl=impl),
            [logits, costs],
        ),
        (
            lambda x, w, impl: asg_entropy(x, chain.targets, w, *chain[2:], reduction="none", impl=impl),
            [logits, transitions],
        ),
        (
            lambda x, impl: rnnt_entropy(x, *grid[1:], rnnt_type="modified", reduction="none", impl=impl),
            [tensor(grid.logits)],
        ),
    ]
    for function, inputs in functions:
        for actual, wanted in zip(*both(function, *inputs), strict=True):
            assert_close(actual, wanted, absolute=1e-11)
            assert wanted.abs().max() > 0.01


def test_posteriors():
    chain, grid = chain_inputs(5, 3, 4, 2, seed=2), grid_inputs(3, 4, 2, 4, seed=2)
    scores = tensor(chain.logits).transpose(0, 1)
    targets, lengths, labels = (torch.from_numpy(array) for array in chain[1:])
    scores[2, 0, :] = torch.nan
    transitions = torch.linspace(-1, 1, 16, dtype=torch.float64).view(4, 4).sin()
    found = [
        [
            *ctc_posteriors(scores, targets, lengths, labels, fused_log_softmax=True, impl=impl),
            *asg_posteriors(scores, targets, transitions, lengths, labels, impl=impl),
            *rnnt_posteriors(tensor(grid.logits), *grid[1:], impl=impl),
        ]
        for impl in ("triton", "reference")
    ]
    for actual, wanted in zip(*found, strict=True):
        assert_close(actual, wanted, absolute=1e-12)


def test_fast_emit_leaves_the_loss_alone():
    inputs = grid_inputs(2, 3, 2, 4, seed=12)
    tokens, spans = tensor(inputs.logits), torch.zeros(2, 3, 3, 2, dtype=torch.float64)
    targets, lengths, labels = inputs[1:]
    plain, fast = (
        tdt_loss(tokens, spans, targets, lengths, labels, [0, 1], fastemit_lambda=weight, impl="triton")
        for weight in (0.0, 0.5)
    )
    assert_same_bits(plain, fast)
    hats = [
        rnnt_loss(tokens, targets, lengths, labels, hat=True, fastemit_lambda=weight, impl="triton")
        for weight in (0.0, 0.5)
    ]
    assert_same_bits(*hats)


@pytest.mark.parametrize("options", [{}, {"rnnt_type": "modified", "fastemit_lambda": 0.3}, {"hat": True}], ids=str)
def test_any_joiner_in_tiles(options):
    inputs = grid_inputs(2, 4, 2, 5, seed=5)
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 4, 3), (2, 3, 3), (5, 3)
    operands = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]

    def solved(impl):
        encoder, predictor, weight = operands
        loss = rnnt_loss_from_joint(
            lambda e, p: torch.tanh(e + p) @ weight.T, encoder, predictor, *inputs[1:], rows_per_tile=7,
            reduction="none", impl=impl, **options,
        )  # fmt: skip
        return loss.detach(), *torch.autograd.grad(loss, operands, torch.tensor([1.0, -2.0], dtype=torch.float64))

    for found, expected in zip(solved("triton"), solved("reference"), strict=True):
        assert_close(found, expected, absolute=1e-9)
