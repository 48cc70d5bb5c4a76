"""Second derivatives of the transducer's losses by the kernels: finite differences, the reference, and properties."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pathsum
from pathsum.testing import assert_close, assert_rows_sum_to_zero, assert_same_bits, grid_inputs, pack_rows
from pathsum.torch import rnnt_loss, rnnt_packed_loss
from support import DTYPES, random_like, second_derivative, tensor
from variants import BLANK, VARIANTS

# Ragged; one frame; no label; no sample reaches both padded sizes.
FRAMES, LABELS = np.array([4, 1, 3]), np.array([2, 1, 0])
TARGETS = np.array([[0, 2, -1], [3, -1, -1], [-1, -1, -1]])
GRIDS = {
    "padded": lambda x, **options: rnnt_loss(x, TARGETS, FRAMES, LABELS, **options),
    "packed": lambda x, **options: rnnt_packed_loss(x, TARGETS, FRAMES, LABELS, **options),
}
variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
grids = pytest.mark.parametrize("layout", GRIDS)
softmax = pytest.mark.parametrize("fused", [True, False], ids=["logits", "log_probs"])


def scores_of(layout, seed=0, std=1.0):
    logits = std * np.random.default_rng(seed).standard_normal((3, 5, 4, 4))
    return tensor(logits if layout == "padded" else pack_rows(logits, FRAMES, LABELS))


def inputs_of(variant, num_samples, num_frames, num_labels, seed=0, std=1.0, ragged=True):
    """Heads and integers of a batch for a variant."""
    batch = grid_inputs(num_samples, num_frames, num_labels, 6, blank=BLANK, std=std, ragged=ragged, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    heads = [
        std * torch.randn(*batch.logits.shape[:3], size, generator=generator, dtype=torch.float64)
        for size in variant.heads
    ]
    return heads, batch[1:]


def assert_like_reference(loss, inputs, upstream, absolute=1e-12):
    """By the kernels what differentiating the reference twice gives, for a random tangent."""
    tangents = random_like(inputs)
    found, expected = (
        second_derivative(lambda *x, impl=impl: loss(*x, impl=impl), inputs, upstream, tangents)
        for impl in ("numba", "reference")
    )
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, absolute=absolute)


@softmax
@grids
def test_second_derivatives_are_finite_differences(layout, fused):
    scores = scores_of(layout).requires_grad_()
    for reduction in ("none",) if layout == "padded" else ("none", "sum", "mean"):
        options = {"blank": BLANK, "reduction": reduction, "fused_log_softmax": fused, "impl": "numba"}
        assert torch.autograd.gradgradcheck(lambda x, options=options: GRIDS[layout](x, **options), scores)


@softmax
@grids
def test_the_kernels_equal_the_reference(layout, fused):
    options = {"blank": BLANK, "reduction": "none", "fused_log_softmax": fused}
    loss = GRIDS[layout]
    for std in (0.1, 1.0, 10.0):
        assert_like_reference(lambda x, impl: loss(x, impl=impl, **options), [scores_of(layout, std=std)], [1, -2, 0.3])


@softmax
def test_impossible_classes_and_samples(fused):
    scores = scores_of("padded", seed=2)
    scores[torch.from_numpy(np.random.default_rng(3).random(scores.shape) < 0.15)] = -torch.inf
    scores[0, :, :, BLANK] = 0.0
    scores[0, 1] = 0.5
    scores[2, 1] = -torch.inf  # no arc is possible
    options = {"blank": BLANK, "reduction": "none", "zero_infinity": True, "fused_log_softmax": fused}

    def loss(x, impl):
        return GRIDS["padded"](x, impl=impl, **options)

    assert loss(scores, "numba")[0] != 0
    assert_like_reference(loss, [scores], [1, -2, 0.3])
    _, product = second_derivative(lambda x: loss(x, "numba"), [scores], [1, 1, 1], random_like([scores]))
    assert product[0].any()
    assert not product[2].any()


def test_no_frames_have_second_derivative_zero():
    scores = scores_of("padded")

    def loss(x):
        return rnnt_loss(x, TARGETS, [4, 0, 3], LABELS, BLANK, reduction="none", zero_infinity=True)

    slopes, product = second_derivative(loss, [scores], [1, 1, 1], random_like([scores]))
    assert slopes[1] == 0
    assert not product[1].any()
    assert product[0].any()


@softmax
def test_undefined_scores_stay_with_their_sample_and_padding_is_not_read(fused):
    options = {"blank": BLANK, "reduction": "none", "fused_log_softmax": fused}
    scores = scores_of("padded")
    tangents = random_like([scores])

    def loss(x):
        return GRIDS["padded"](x, **options)

    expected = second_derivative(loss, [scores], [1, -2, 0.3], tangents)
    for poisoned in (scores, tangents[0]):
        for n in range(3):
            poisoned[n, FRAMES[n] :] = torch.nan
            poisoned[n, :, LABELS[n] + 1 :] = torch.nan
    found = second_derivative(loss, [scores], [1, -2, 0.3], tangents)
    for one, other in zip(found, expected, strict=True):
        assert_same_bits(one, other)
    scores[0, 1, 1, BLANK] = torch.nan
    slopes, product = second_derivative(loss, [scores], [1, -2, 0.3], tangents)
    assert slopes.isnan().tolist() == [True, False, False]
    assert product[0, :4, :3].isnan().all()
    assert not product[0, 4:].any()
    assert_same_bits(product[1:], expected[1][1:])


def test_an_impossible_sample_of_scores_that_are_no_probabilities():
    # Where there is no path the kernels keep scores in the place of posteriors; these here are positive.
    scores = scores_of("padded").abs()
    scores[0, 3, 2, BLANK] = -torch.inf

    def loss(x, impl):
        return GRIDS["padded"](x, blank=BLANK, reduction="none", fused_log_softmax=False, impl=impl)

    assert loss(scores, "numba")[0] == torch.inf
    slopes, product = second_derivative(lambda x: loss(x, "numba"), [scores], [1, 1, 1], random_like([scores]))
    assert (slopes != 0).tolist() == [False, True, True]
    assert not product[0].any()


@variants
def test_variants_equal_the_reference(variant):
    for seed, (num_frames, num_labels, std) in enumerate(
        [(1, 0, 1.0), (1, 1, 1.0), (6, 0, 1.0), (7, 3, 1.0), (5, 2, 9.0)]
    ):
        heads, integers = inputs_of(variant, 3, num_frames, num_labels, seed=seed, std=std)

        def loss(*heads, impl, integers=integers):
            return variant.loss(heads, *integers, reduction="none", zero_infinity=True, impl=impl)

        assert_like_reference(loss, heads, [1, -2, 0.3], absolute=1e-11)
        packed = [torch.from_numpy(pack_rows(head.numpy(), *integers[1:])) for head in heads]
        assert_like_reference(loss, packed, [1, -2, 0.3], absolute=1e-11)


@variants
def test_a_loss_and_a_penalty_of_its_gradient_at_once(variant):
    heads, integers = inputs_of(variant, 3, 6, 2, seed=22)
    found, expected = [], []
    for impl, results in (("numba", found), ("reference", expected)):
        leaves = [head.clone().requires_grad_() for head in heads]
        loss = 3.0 * variant.loss(leaves, *integers, reduction="sum", zero_infinity=True, impl=impl)
        gradients = torch.autograd.grad(loss, leaves, create_graph=True)
        (loss + sum(gradient.square().sum() for gradient in gradients)).backward()
        results += [leaf.grad for leaf in leaves]
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, absolute=1e-11)


@variants
def test_variants_with_impossible_classes_and_samples(variant):
    heads, integers = inputs_of(variant, 4, 5, 2, seed=12, ragged=False)
    for seed, head in enumerate(heads):
        head[torch.rand(head.shape, generator=torch.Generator().manual_seed(seed)) < 0.08] = -torch.inf
    heads[0][3] = -torch.inf  # no arc is possible
    tangents = random_like(heads)

    def loss(*heads, impl="numba"):
        return variant.loss(heads, *integers, reduction="none", zero_infinity=True, impl=impl)

    assert loss(*heads)[:3].any()
    slopes, *products = second_derivative(loss, heads, [1, -2, 0.3, 1], tangents)
    assert_like_reference(loss, heads, [1, -2, 0.3, 1], absolute=1e-11)
    assert slopes[3] == 0
    assert not any(product[3].any() for product in products)
    heads[0][1, 1, 1] = torch.nan
    spoiled_slopes, *spoiled = second_derivative(loss, heads, [1, -2, 0.3, 1], tangents)
    assert spoiled_slopes[1].isnan()
    others = [0, 2, 3]
    assert_same_bits(spoiled_slopes[others], slopes[others])
    for product, expected in zip(spoiled, products, strict=True):
        assert product[1].isnan().any()
        assert_same_bits(product[others], expected[others])


@variants
def test_variants_are_symmetric_and_their_rows_sum_to_zero(variant, threads):
    heads, integers = inputs_of(variant, 3, 30, 5, seed=21)

    def loss(*heads):
        return variant.loss(heads, *integers, reduction="sum", zero_infinity=True)

    u, v = random_like(heads, 1), random_like(heads, 2)
    threads(1)
    _, *by_v = second_derivative(loss, heads, 1.0, v)
    _, *by_u = second_derivative(loss, heads, 1.0, u)
    one, other = (sum((a * b).sum() for a, b in zip(*pair, strict=True)) for pair in ((u, by_v), (v, by_u)))
    assert_close(one, other, absolute=1e-10)
    if variant not in (VARIANTS["hat"], VARIANTS["hat-constrained"]):
        for product in by_v:
            assert_rows_sum_to_zero(product, absolute=1e-11)
    threads(2)
    for product, again in zip(by_v, second_derivative(loss, heads, 1.0, v)[1:], strict=True):
        assert_same_bits(again, product)


@variants
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_variants_in_lower_precision(variant, dtype):
    heads, integers = inputs_of(variant, 3, 9, 3, seed=13, ragged=False)
    heads = [head.to(DTYPES[dtype]) for head in heads]
    tangents = random_like(heads)

    def loss(*heads):
        return variant.loss(heads, *integers, reduction="none")

    slopes, *products = second_derivative(loss, heads, [1, -2, 0.3], tangents)
    doubles = [head.double() for head in heads], [1, -2, 0.3], [tangent.double() for tangent in tangents]
    expected_slopes, *expected = second_derivative(loss, *doubles)
    assert_close(slopes, expected_slopes, absolute=1e-4)
    # The product is a sum of two, each of which is rounded.
    rounding = 0.0 if dtype == "float32" else torch.finfo(heads[0].dtype).eps
    for product, truth in zip(products, expected, strict=True):
        assert product.dtype == heads[0].dtype
        largest = float(truth.abs().max())
        assert_close(product, truth, relative=rounding, absolute=(1e-5 + 2 * rounding) * max(1.0, largest))


@variants
@pytest.mark.parametrize("impl", ["numba", "reference"])
@pytest.mark.parametrize("option", ["clamp", "fastemit_lambda"])
def test_variants_with_a_reweighted_gradient_refuse_a_graph(variant, option, impl):
    heads, integers = inputs_of(variant, 2, 5, 2, seed=15)
    heads = [head.requires_grad_() for head in heads]
    loss = variant.loss(heads, *integers, zero_infinity=True, impl=impl, **{option: 0.1})
    with pytest.raises(pathsum.NotDifferentiableError, match="fastemit_lambda or clamp"):
        torch.autograd.grad(loss, heads, create_graph=True)
    assert torch.autograd.grad(loss, heads)[0].any()


@given(seed=st.integers(0, 10**6), std=st.sampled_from([0.1, 1.0, 5.0, 30.0]), fused=st.booleans())
def test_the_hessian_is_symmetric_and_its_rows_sum_to_zero(seed, std, fused):
    inputs = grid_inputs(2, 6, 4, 5, std=std, seed=seed)
    scores = tensor(inputs.logits)
    u, v = random_like([scores, scores], seed)

    def times(vector):

        def loss(x):
            return rnnt_loss(x, *inputs[1:], reduction="sum", fused_log_softmax=fused)

        return second_derivative(loss, [scores], 1.0, [vector])[1]

    by_v, by_u = times(v), times(u)
    assert_close((u * by_v).sum(), (v * by_u).sum(), absolute=1e-10)
    if fused:
        assert_rows_sum_to_zero(by_v, absolute=1e-12)


def test_padded_packed_strided_and_threaded_are_the_same(threads):
    inputs = grid_inputs(3, 40, 6, 37, blank=BLANK, seed=5)
    logits = tensor(inputs.logits).float()
    (tangent,) = random_like([logits])

    def loss(x):
        return rnnt_loss(x, *inputs[1:], blank=BLANK, reduction="none")

    threads(1)
    slopes, product = second_derivative(loss, [logits], [1, -2, 0.3], [tangent])
    threads(2)
    again = second_derivative(loss, [logits], [1, -2, 0.3], [tangent])
    strided = [x.transpose(1, 3).contiguous().transpose(1, 3) for x in (logits, tangent)]
    elsewhere = second_derivative(loss, strided[:1], [1, -2, 0.3], strided[1:])
    for other in (again, elsewhere):
        assert_same_bits(other[0], slopes)
        assert_same_bits(other[1], product)
    packed = [torch.from_numpy(pack_rows(x.numpy(), *inputs[2:])) for x in (logits, tangent)]

    def by_packed(x):
        return rnnt_packed_loss(x, *inputs[1:], blank=BLANK, reduction="none")

    packed_slopes, packed_product = second_derivative(by_packed, packed[:1], [1, -2, 0.3], packed[1:])
    assert_same_bits(packed_slopes, slopes)
    assert_same_bits(packed_product, torch.from_numpy(pack_rows(product.numpy(), *inputs[2:])))


def test_a_tangent_that_is_one_number_everywhere():
    # The gradient of a sum comes back as one number in memory, its strides 0. Rows of the Hessian sum to 0.
    scores = scores_of("padded").requires_grad_()
    loss = rnnt_loss(scores, TARGETS, FRAMES, LABELS, BLANK)
    (gradient,) = torch.autograd.grad(loss, scores, create_graph=True)
    gradient.sum().backward()
    assert_close(scores.grad, torch.zeros_like(scores), absolute=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_lower_precision(dtype):
    inputs = grid_inputs(3, 9, 3, 6, seed=13)
    scores = tensor(inputs.logits, DTYPES[dtype])
    (tangent,) = random_like([scores])

    def loss(x):
        return rnnt_loss(x, *inputs[1:], reduction="none")

    slopes, product = second_derivative(loss, [scores], [1, -2, 0.3], [tangent])
    expected = second_derivative(loss, [scores.double()], [1, -2, 0.3], [tangent.double()])
    assert product.dtype == scores.dtype
    rounding = 0.0 if dtype == "float32" else torch.finfo(scores.dtype).eps / 2
    assert_close(slopes, expected[0], absolute=1e-5)
    assert_close(product, expected[1], relative=rounding, absolute=1e-5)


# The documented bound: 1e-4 of the largest entry at T = 2000; flat, and peaky.
@pytest.mark.parametrize("std", [1.0, 8.0])
def test_long_inputs_keep_their_digits(std):
    inputs = grid_inputs(1, 2000, 12, 8, std=std, seed=16, ragged=False)
    scores = tensor(inputs.logits, torch.float32)
    (tangent,) = random_like([scores])
    # The same number added to a row's tangent changes nothing but roundings.
    for shift in (0.0, 100.0):
        moved = tangent + shift

        def loss(x):
            return rnnt_loss(x, *inputs[1:])

        _, product = second_derivative(loss, [scores], 1.0, [moved])
        _, expected = second_derivative(loss, [scores.double()], 1.0, [moved.double()])
        assert_close(product, expected, absolute=1e-4 * float(expected.abs().max()))


REWEIGHTED = {"clamp": 0.1, "fastemit_lambda": 0.2}


@pytest.mark.parametrize("impl", ["numba", "reference"])
@pytest.mark.parametrize("option", REWEIGHTED)
@grids
def test_a_reweighted_gradient_refuses_a_graph(layout, option, impl):
    scores = scores_of(layout).requires_grad_()
    loss = GRIDS[layout](scores, blank=BLANK, impl=impl, **{option: REWEIGHTED[option]})
    with pytest.raises(pathsum.NotDifferentiableError, match="fastemit_lambda or clamp"):
        torch.autograd.grad(loss, scores, create_graph=True)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient.any()


@pytest.mark.parametrize("option", REWEIGHTED)
def test_a_reweighted_gradient_by_torch_func(option):
    def loss(x):
        return GRIDS["padded"](x, blank=BLANK, **{option: REWEIGHTED[option]})

    scores = scores_of("padded")
    gradient = torch.func.grad(loss)(scores)
    leaf = scores.clone().requires_grad_()
    assert_same_bits(gradient, torch.autograd.grad(loss(leaf), leaf)[0])
    with pytest.raises(pathsum.NotDifferentiableError, match="fastemit_lambda or clamp"):
        torch.func.grad(lambda x: torch.func.grad(loss)(x).square().sum())(scores)


def test_overwritten_logits_refuse_a_graph():
    scores = scores_of("padded").requires_grad_()
    logits = scores * 1
    loss = rnnt_loss(logits, TARGETS, FRAMES, LABELS, BLANK, overwrite_logits=True)
    with pytest.raises(pathsum.NotDifferentiableError, match="overwrite_logits=False"):
        torch.autograd.grad(loss, scores, create_graph=True)
    # Nothing is overwritten yet.
    assert_close(logits, scores, absolute=0.0)
    loss.backward()
    assert scores.grad.any()


@grids
def test_a_third_derivative_raises(layout):
    scores = scores_of(layout).requires_grad_()
    loss = GRIDS[layout](scores, blank=BLANK, impl="numba")
    (gradient,) = torch.autograd.grad(loss, scores, create_graph=True)
    (product,) = torch.autograd.grad(gradient.square().sum(), scores, create_graph=True)
    with pytest.raises(pathsum.NotDifferentiableError, match="impl='reference'"):
        product.sum().backward()
