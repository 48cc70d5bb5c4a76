"""The transducer's variants of a joiner's operands, beside the same loss of its logits: losses, and all gradients."""

import numpy as np
import pytest
import torch

from pathsum.errors import InvalidTypeError, InvalidValueError, NotDifferentiableError
from pathsum.testing import assert_close, grid_inputs
from pathsum.torch import Joiner, TDTLoss, multi_blank_rnnt_loss, rnnt_loss, tdt_loss, wildcard_rnnt_loss
from pathsum.torch.joiner import ACTIVATIONS
from support import IMPLEMENTATIONS
from variants import BLANK, NUM_CLASSES, VARIANTS, rnnt

# Those of one lattice but rnnt_loss's own, whose fused form is rnnt_joint_loss.
FUSED = {name: variant for name, variant in VARIANTS.items() if name.startswith(("tdt", "multi-blank", "band", "wild"))}
FUSED["band-hat"] = rnnt(hat=True, left=1, right=1)
FUSED["band-constrained-delayed"] = rnnt("constrained", delay_penalty=0.2, left=2, right=1)
variants = pytest.mark.parametrize("variant", FUSED.values(), ids=FUSED)
HIDDEN, UPSTREAM = 5, [1.0, 2.0, -0.5, 0.0, 3.0]


def operands(variant, seed=0, dtype=torch.float64, scale=1.0):
    """Encoder and predictor, then weight and bias of each head; and a ragged batch, among it T = 1 and U = 0."""
    inputs = grid_inputs(5, 9, 4, NUM_CLASSES, blank=BLANK, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    shapes = [(5, 9, HIDDEN), (5, 5, HIDDEN)]
    for size in variant.heads:
        shapes += [(size, HIDDEN), (size,)]
    tensors = [scale * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    logit_lengths, target_lengths = inputs.logit_lengths.copy(), inputs.target_lengths.copy()
    logit_lengths[1], target_lengths[1], target_lengths[2] = 1, 1, 0
    return [tensor.to(dtype).requires_grad_() for tensor in tensors], (inputs.targets, logit_lengths, target_lengths)


def joiners(tensors, **options):
    encoder, predictor, *layers = tensors
    pairs = zip(layers[::2], layers[1::2], strict=True)
    return [Joiner(encoder, predictor, weight, bias, **options) for weight, bias in pairs]


def solved(variant, heads, tensors, integers, **options):
    losses = variant.loss(heads, *integers, **{"reduction": "none"} | options)
    # An infeasible sample has no gradient either way.
    upstream = torch.tensor(UPSTREAM, dtype=losses.dtype)
    return losses.detach(), torch.autograd.grad(losses, tensors, upstream)


def fused(variant, tensors, integers, *, joiner=None, **options):
    return solved(variant, joiners(tensors, **joiner or {"gate": 0.0}), tensors, integers, **options)


def materialised(variant, tensors, integers, activation="tanh", **options):
    heads = [head.logits() for head in joiners(tensors, activation=activation)]
    return solved(variant, heads, tensors, integers, **options)


def assert_agree(actual, expected):
    assert_close(actual[0], expected[0], absolute=1e-10)
    for gradient, wanted in zip(actual[1], expected[1], strict=True):
        assert_close(gradient, wanted, absolute=1e-9)


@variants
@pytest.mark.parametrize("further", [{}, {"fastemit_lambda": 0.3}, {"clamp": 0.05, "zero_infinity": True}], ids=str)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_the_loss_of_a_joiner_is_that_of_its_logits(impl, further, variant):
    tensors, integers = operands(variant)
    expected = materialised(variant, tensors, integers, impl=impl, **further)
    # A tile of 64 rows splits frames and samples.
    found = fused(variant, tensors, integers, joiner={"gate": 0.0, "tile_memory": 1}, impl=impl, **further)
    assert_agree(found, expected)


@variants
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation, variant):
    tensors, integers = operands(variant, seed=1)
    expected = materialised(variant, tensors, integers, activation=activation)
    assert_agree(fused(variant, tensors, integers, joiner={"gate": 0.0, "activation": activation}), expected)


def test_one_head_may_be_logits():
    variant = FUSED["tdt"]
    tensors, integers = operands(variant, seed=2)
    expected = materialised(variant, tensors, integers)
    tokens, spans = joiners(tensors, gate=0.0)
    for heads in ([tokens, spans.logits()], [tokens.logits(), spans]):
        assert_agree(solved(variant, heads, tensors, integers), expected)


def test_no_bias():
    variant = FUSED["wildcard"]
    tensors, integers = operands(variant, seed=3)
    encoder, predictor, weight, _ = tensors
    joiner = Joiner(encoder, predictor, weight, gate=0.0)
    found = solved(variant, [joiner], tensors[:3], integers)
    assert_agree(found, solved(variant, [joiner.logits()], tensors[:3], integers))


# In float32, where the gate is open by half an eps: random, peaky, and paths of very different scores.
@variants
@pytest.mark.parametrize("scale", [0.3, 2.0, 20.0])
def test_the_gate_costs_less_than_rounding(scale, variant):
    exact, integers = operands(variant, seed=4, scale=scale)
    native, _ = operands(variant, seed=4, scale=scale, dtype=torch.float32)
    options = {"zero_infinity": True}
    truth = materialised(variant, exact, integers, **options)
    plain = materialised(variant, native, integers, **options)
    gated = fused(variant, native, integers, joiner={"gate": None}, **options)

    def error(found):
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found[1], truth[1], strict=True))

    assert error(gated) <= 2 * (error(plain) + torch.finfo(torch.float32).eps)


# A unit of mass moves an encoder entry by at most twice the largest weight; a node of TDT has it in both heads.
@variants
@pytest.mark.parametrize("gate", [1e-2, 1e-5])
def test_the_gate_keeps_its_bound(gate, variant):
    tensors, integers = operands(variant, seed=5, scale=3.0)
    options = {"zero_infinity": True}
    whole = fused(variant, tensors, integers, **options)
    gated = fused(variant, tensors, integers, joiner={"gate": gate}, **options)
    weights = sum(float(weight.detach().abs().max()) for weight in tensors[2::2])
    assert not all(torch.equal(one, other) for one, other in zip(gated[1], whole[1], strict=True))
    for one, other in zip(gated[1][:2], whole[1][:2], strict=True):
        assert (one - other).abs().max() <= 2 * gate * max(map(abs, UPSTREAM)) * weights


@variants
def test_the_gate_drops_rows(variant):
    tensors, integers = operands(variant, seed=6)
    _, gradients = fused(variant, tensors, integers, joiner={"gate": 1e6}, zero_infinity=True)
    assert all((gradient == 0).all() for gradient in gradients)


@variants
def test_an_undefined_sample_stays_alone(variant):
    tensors, integers = operands(variant, seed=7)
    expected, _ = materialised(variant, tensors, integers)
    with torch.no_grad():
        tensors[0][0, 1, 2] = torch.nan
        tensors[0][1, 1:] = torch.nan  # padding
    losses = variant.loss(joiners(tensors), *integers, reduction="none")
    assert losses[0].isnan()
    assert_close(losses[1:], expected[1:], absolute=1e-10)
    gradients = torch.autograd.grad(losses[1:].nan_to_num(posinf=0.0).sum(), tensors)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    variant = FUSED["tdt"]
    given, integers = operands(variant, seed=8, dtype=dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    options = {"zero_infinity": True}
    losses, gradients = fused(variant, given, integers, joiner={"gate": None}, **options)
    expected = materialised(variant, exact, integers, **options)
    assert losses.dtype == torch.float32
    budget = {torch.float32: 1e-5, torch.bfloat16: 0.15, torch.float16: 0.01}[dtype]
    assert torch.allclose(losses.double(), expected[0], rtol=budget, atol=budget)
    for gradient, truth in zip(gradients, expected[1], strict=True):
        assert gradient.dtype == dtype
        assert (gradient.double() - truth).abs().max() <= budget * max(1.0, float(truth.abs().max()))


def test_backward_twice_is_the_same():
    variant = FUSED["multi-blank"]
    tensors, integers = operands(variant, seed=9)
    loss = variant.loss(joiners(tensors), *integers, reduction="sum", zero_infinity=True)
    first = torch.autograd.grad(loss, tensors, retain_graph=True)
    second = torch.autograd.grad(loss, tensors)
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


def test_a_second_derivative_is_refused():
    variant = FUSED["wildcard"]
    tensors, integers = operands(variant, seed=10)
    loss = variant.loss(joiners(tensors), *integers, reduction="sum", zero_infinity=True)
    with pytest.raises(NotDifferentiableError, match=r"Joiner\.logits\(\)"):
        torch.autograd.grad(loss, tensors, create_graph=True)

    def gradient(weight):
        def of(weight):
            return variant.loss(joiners([*tensors[:2], weight, tensors[3]]), *integers, zero_infinity=True)

        return torch.func.grad(of)(weight)

    weight = tensors[2].detach()
    with pytest.raises(NotDifferentiableError, match=r"Joiner\.logits\(\)"):
        torch.func.grad(lambda weight: gradient(weight).square().sum())(weight)
    assert gradient(weight).any()


def test_a_joiner_has_the_shape_of_its_logits():
    joiner = Joiner(torch.zeros(2, 7, 3), torch.zeros(2, 4, 3), torch.zeros(5, 3))
    assert joiner.shape == tuple(joiner.logits().shape) == (2, 7, 4, 5)
    assert joiner.ndim == joiner.logits().ndim
    assert (joiner.dtype, joiner.device) == (joiner.logits().dtype, joiner.logits().device)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"predictor_out": torch.zeros(2, 4, 5)}, "predictor_out must have shape (N, U+1, H) = (2, any, 3)"),
        ({"weight": torch.zeros(5, 4)}, "weight must have shape (V, H) = (any, 3)"),
        ({"bias": torch.zeros(6)}, "bias must have shape (V) = (5)"),
        ({"activation": "softplus"}, "activation must be one of tanh, relu, sigmoid, gelu; got 'softplus'"),
        ({"gate": -1.0}, "gate must be finite and at least 0; got -1.0"),
        ({"tile_memory": 0}, "tile_memory must be finite and at least 1; got 0"),
    ],
)
def test_a_joiner_that_does_not_fit(changed, message):
    given = {"encoder_out": torch.zeros(2, 7, 3), "predictor_out": torch.zeros(2, 4, 3), "weight": torch.zeros(5, 3)}
    with pytest.raises(InvalidValueError) as raised:
        wildcard_rnnt_loss(Joiner(**given | changed), np.zeros((2, 3), int), [7, 7], [3, 3])
    assert str(raised.value).startswith(f"wildcard_rnnt_loss: {message}")


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_heads_of_different_dtypes(impl):
    variant = FUSED["tdt"]
    tensors, integers = operands(variant, seed=2, dtype=torch.float32)
    tokens, spans = joiners(tensors, gate=0.0)
    spans = spans.logits().detach().double()
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected = solved(variant, [joiners(exact)[0].logits(), spans], exact[:4], integers)
    for heads in ([tokens, spans], [tokens.logits(), spans]):
        losses, gradients = solved(variant, heads, tensors[:4], integers, impl=impl)
        assert losses.dtype == torch.float32
        assert_close(losses, expected[0], relative=1e-6, absolute=1e-5)
        for gradient, wanted in zip(gradients, expected[1], strict=True):
            assert_close(gradient, wanted, relative=1e-4, absolute=1e-5)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_encoder_and_predictor_of_different_dtypes(impl):
    variant = FUSED["wildcard"]
    tensors, integers = operands(variant, seed=2)
    rounded = [tensors[0].detach().bfloat16().requires_grad_(), *(t.detach().float() for t in tensors[1:])]
    exact = [tensor.detach().double().requires_grad_() for tensor in rounded]
    expected = materialised(variant, exact, integers)
    losses, (gradient,) = solved(variant, joiners(rounded, gate=0.0), rounded[:1], integers, impl=impl)
    assert losses.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    assert_close(losses, expected[0], relative=1e-6, absolute=1e-5)
    assert_close(gradient, expected[1][0], relative=2**-8, absolute=1e-4)


def test_heads_that_do_not_fit_each_other():
    def joiner(num_frames, num_classes):
        return Joiner(*(torch.zeros(shape) for shape in ((1, num_frames, 3), (1, 2, 3), (num_classes, 3))))

    integers = [[0]], [4], [1]
    with pytest.raises(InvalidValueError, match="duration_logits must have shape"):
        tdt_loss(joiner(4, 3), joiner(5, 2), *integers, durations=[0, 1])
    with pytest.raises(InvalidValueError, match="big_blanks"):
        multi_blank_rnnt_loss(joiner(4, 3), *integers, [2], [3])


def test_a_module_takes_joiners():
    variant = FUSED["tdt"]
    tensors, integers = operands(variant, seed=11)
    module = TDTLoss([0, 1, 2], BLANK, reduction="none")
    assert torch.equal(
        module(*joiners(tensors), *integers), variant.loss(joiners(tensors), *integers, reduction="none")
    )


def test_the_regular_loss_of_a_joiner_has_a_function_of_its_own():
    joiner = Joiner(torch.zeros(1, 4, 3), torch.zeros(1, 2, 3), torch.zeros(5, 3))
    with pytest.raises(InvalidTypeError, match=r"rnnt_loss: logits must .*; got Joiner"):
        rnnt_loss(joiner, [[0]], [4], [1])  # pyright: ignore[reportArgumentType]
