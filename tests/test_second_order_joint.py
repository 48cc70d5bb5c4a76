"""The fused joiner's second derivatives are those of the materialised logits, for all four operands and upstream."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pathsum
from pathsum.testing import assert_close, assert_same_bits
from pathsum.torch import rnnt_joint_loss
from support import random_like, second_derivative
from test_joint import ACTIVATIONS, FRAMES, LABELS, TARGETS, by_callable, fused, materialised, operands

UPSTREAM = [1.0, -2.0, 0.5]
TYPES = {
    "regular": {},
    "delayed": {"delay_penalty": 0.2},
    "modified": {"rnnt_type": "modified"},
    "constrained": {"rnnt_type": "constrained", "delay_penalty": -0.1},
}
activations = pytest.mark.parametrize("activation", ACTIVATIONS)
types = pytest.mark.parametrize("options", TYPES.values(), ids=TYPES)


def plain(dtype=torch.float64, scale=1.0, seed=0):
    return [operand.detach() for operand in operands(dtype, scale, seed)]


def assert_all_close(found, expected, absolute):
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, absolute=absolute)


@types
@activations
def test_fused_equals_materialised(activation, options):
    given = plain()
    options = options | {"activation": activation}

    def by_reference(*given):
        return materialised(*given, impl="reference", **options)

    tangents = random_like(given)
    expected = second_derivative(by_reference, given, UPSTREAM, tangents)
    # A tile of 64 rows splits frames and samples.
    for tile_memory in (1, 2**25):

        def by_kernels(*given, tile_memory=tile_memory):
            return fused(*given, gate=0.0, tile_memory=tile_memory, **options)

        assert_all_close(second_derivative(by_kernels, given, UPSTREAM, tangents), expected, absolute=1e-11)


@types
@activations
def test_any_joiner_equals_materialised(activation, options):
    given = plain()
    options = options | {"activation": activation}
    tangents = random_like(given)
    expected = second_derivative(
        lambda *given: materialised(*given, impl="reference", **options), given, UPSTREAM, tangents
    )
    found = second_derivative(lambda *given: by_callable(*given, **options), given, UPSTREAM, tangents)
    assert_all_close(found, expected, absolute=1e-11)


@activations
def test_second_derivatives_are_finite_differences(activation):
    sizes = ((2, 3, 2), (2, 2, 2), (3, 2), (3,))
    generator = torch.Generator().manual_seed(4)
    given = [torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_() for size in sizes]

    def loss(*given):
        return rnnt_joint_loss(
            *given, [[1], [0]], [3, 1], [1, 0], reduction="none", activation=activation, gate=0.0, impl="numba"
        )

    assert torch.autograd.gradgradcheck(loss, given)


def test_a_joiner_without_bias_and_one_operand_alone():
    given = plain()[:3]
    tangents = random_like(given)

    def loss(*given, impl="numba"):
        return rnnt_joint_loss(*given, None, TARGETS, FRAMES, LABELS, reduction="none", impl=impl)

    expected = second_derivative(lambda *given: loss(*given, impl="reference"), given, UPSTREAM, tangents)
    assert_all_close(second_derivative(loss, given, UPSTREAM, tangents), expected, absolute=1e-11)
    alone = second_derivative(lambda weight: loss(*given[:2], weight), given[2:], UPSTREAM, tangents[2:])
    by_reference = second_derivative(
        lambda weight: loss(*given[:2], weight, impl="reference"), given[2:], UPSTREAM, tangents[2:]
    )
    assert_all_close(alone, by_reference, absolute=1e-11)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.1, 1.0, 4.0]), activation=st.sampled_from([*ACTIVATIONS]))
def test_the_hessian_is_symmetric(seed, scale, activation):
    given = plain(scale=scale, seed=seed)
    u, v = random_like(given, seed), random_like(given, seed + 1)

    def times(vectors):
        return second_derivative(lambda *given: fused(*given, activation=activation), given, [1, 1, 1], vectors)[1:]

    one, other = (sum((a * b).sum() for a, b in zip(*pair, strict=True)) for pair in ((u, times(v)), (v, times(u))))
    assert_close(one, other, absolute=1e-10 * max(1.0, float(one.abs())))


# What is dropped from a frame, or a label position, is a share of the mass through it; what moves with it is bounded by
# the cost of a path along the tangent, which has at most 14 arcs here.
@types
def test_the_gate_keeps_second_derivatives(options):
    given = plain(scale=4.0, seed=3)
    tangents = random_like(given)
    whole, gated, closed = (
        second_derivative(lambda *given, gate=gate: fused(*given, gate=gate, **options), given, UPSTREAM, tangents)
        for gate in (0.0, 1e-9, 1e6)
    )
    for one, other in zip(gated, whole, strict=True):
        assert_close(one, other, absolute=1e-6 * max(1.0, float(other.abs().max())))
    assert any(not torch.equal(one, other) for one, other in zip(gated, whole, strict=True))
    assert not any(product.any() for product in closed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    given = plain(dtype)
    tangents = random_like(given)
    found = second_derivative(fused, given, UPSTREAM, tangents)
    expected = second_derivative(
        materialised, [x.double() for x in given], UPSTREAM, [tangent.double() for tangent in tangents]
    )
    budget = {torch.float32: 1e-5, torch.bfloat16: 0.15, torch.float16: 0.01}[dtype]
    assert_close(found[0], expected[0], absolute=budget * float(expected[0].abs().max()))
    for product, truth, operand in zip(found[1:], expected[1:], given, strict=True):
        assert product.dtype == operand.dtype
        assert_close(product, truth, absolute=budget * max(1.0, float(truth.abs().max())))


@pytest.mark.parametrize("options", [TYPES["regular"], TYPES["constrained"]], ids=str)
def test_an_undefined_sample_spoils_its_own_rows_alone(options):
    given = plain()
    tangents = random_like(given)

    def loss(*given):
        return fused(*given, zero_infinity=True, **options)

    expected = second_derivative(loss, given, [0.0, 1.0, 0.5], tangents)
    # Also of a loss without an upstream gradient.
    assert expected[0][0] != 0
    given[0][0, 0, 0] = torch.nan
    for poisoned in (given[0], tangents[0]):
        poisoned[2, 5:] = torch.nan  # padding
    slopes, *products = second_derivative(loss, given, [0.0, 1.0, 0.5], tangents)
    assert slopes.isnan().tolist() == [True, False, False]
    assert_same_bits(slopes[1:], expected[0][1:])
    assert_all_close(products, expected[1:], absolute=1e-12)
    assert second_derivative(loss, given, [1.0, 1.0, 0.5], tangents)[1][0, 0].isnan().all()


@types
def test_no_frames_have_second_derivative_zero(options):
    given = plain()
    tangents = random_like(given)

    def loss(*given):
        return rnnt_joint_loss(
            *given, TARGETS, [9, 0, 5], LABELS, reduction="none", zero_infinity=True, impl="numba", **options
        )

    slopes, encoder, predictor, *_ = second_derivative(loss, given, [1, 1, 1], tangents)
    assert slopes[1] == 0
    assert not encoder[1].any()
    assert not predictor[1].any()
    assert encoder[0].any()


@pytest.mark.parametrize("impl", ["numba", "reference"])
@pytest.mark.parametrize("option", ["clamp", "fastemit_lambda"])
def test_a_reweighted_gradient_refuses_a_graph(option, impl):
    for wanted in range(4):
        given = [operand.requires_grad_(i == wanted) for i, operand in enumerate(plain())]
        loss = fused(*given, impl=impl, **{option: 0.1}).sum()
        with pytest.raises(pathsum.NotDifferentiableError, match="fastemit_lambda or clamp"):
            torch.autograd.grad(loss, given[wanted], create_graph=True)
        assert torch.autograd.grad(loss, given[wanted])[0].any()


def test_hat_refuses_a_graph_by_the_kernels():
    given = operands()
    with pytest.raises(pathsum.NotDifferentiableError, match="impl='reference'"):
        torch.autograd.grad(fused(*given, hat=True).sum(), given, create_graph=True)
    gradients = torch.autograd.grad(fused(*given, hat=True, impl="reference").sum(), given, create_graph=True)
    gradients[0].square().sum().backward()
    assert given[2].grad.any()


def test_any_joiner_with_fastemit_refuses_a_graph():
    given = operands()
    loss = by_callable(*given, fastemit_lambda=0.1).sum()
    with pytest.raises(pathsum.NotDifferentiableError, match="fastemit_lambda or clamp"):
        torch.autograd.grad(loss, given, create_graph=True)


def test_a_loss_and_a_penalty_of_its_gradient_at_once():
    found, expected = [], []
    for impl, results in (("numba", found), ("reference", expected)):
        given = operands()
        loss = fused(*given, impl=impl, **({"gate": 0.0} if impl == "numba" else {})).mul(torch.arange(1.0, 4.0)).sum()
        gradients = torch.autograd.grad(loss, given, create_graph=True)
        (loss + sum(gradient.square().sum() for gradient in gradients)).backward()
        results += [operand.grad for operand in given]
    assert_all_close(found, expected, absolute=1e-11)


def test_a_third_derivative_raises():
    given = operands()
    gradients = torch.autograd.grad(fused(*given).sum(), given, create_graph=True)
    penalty = sum(gradient.square().sum() for gradient in gradients)
    products = torch.autograd.grad(penalty, given, create_graph=True)
    with pytest.raises(pathsum.NotDifferentiableError, match="impl='reference'"):
        products[0].sum().backward()
