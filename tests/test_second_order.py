"""Second derivatives of the losses on chains and dense lattices, by the numba kernels.

A ``Case`` is a loss as a function of the tensors it can be differentiated by, so that every loss is tested alike.
"""

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import pathsum
from pathsum.kernels.numba import dense_extended
from pathsum.testing import assert_close, assert_rows_sum_to_zero, assert_same_bits, chain_inputs
from pathsum.torch import asg_loss
from support import CHAIN, IMPLEMENTATIONS, tensor

LOSSES = [*CHAIN, "asg"]
MOVE = dense_extended.move
pytestmark = pytest.mark.filterwarnings("ignore:asg_loss. the target")


class Case(NamedTuple):
    function: Callable[..., Tensor]
    leaves: list[Tensor]


def case(loss, logits, targets, lengths, target_lengths, dtype=torch.float64, std=1.0, **options):
    """Logits (T, N, C) and integers; ASG's transitions are drawn, of the scale std."""
    scores = tensor(logits)
    if loss == "asg":
        random = np.random.default_rng(scores.shape[2])
        table = tensor(std * random.standard_normal((scores.shape[2],) * 2), dtype)

        def function(inputs, transitions, **more):
            return asg_loss(inputs, targets, transitions, lengths, target_lengths, **options | more)

        return Case(function, [scores.to(dtype), table])
    options = {"fused_log_softmax": True} | options
    scores = scores if options["fused_log_softmax"] else scores.log_softmax(-1)

    def function(scores, **more):
        return CHAIN[loss](scores, targets, lengths, target_lengths, **options | more)

    return Case(function, [scores.to(dtype)])


# Ragged; a target of repeats that needs every frame; an empty target; one that does not fit; one frame, one label.
TARGETS = [[1, 2, 1], [2, 2, 1], [1, 1, 1], [3, 1, 2], [2, 1, 1]]
LENGTHS, TARGET_LENGTHS = [5, 4, 3, 2, 1], [2, 3, 0, 3, 1]


def tiny(loss, dtype=torch.float64, impossible=True, seed=0, **options):
    """The batch above. With ``impossible`` entries of -inf that leave paths, and among the transitions too."""
    logits = np.random.default_rng(seed).standard_normal((5, 5, 4))
    made = case(loss, logits, TARGETS, LENGTHS, TARGET_LENGTHS, dtype, **options)
    if impossible:
        made.leaves[0][1, 0, 3] = made.leaves[0][0, 1, 1] = -torch.inf
        if loss == "asg":
            made.leaves[1][3, 0] = -torch.inf
    return made


class Second(NamedTuple):
    """A gradient, its product with the tangents, and the derivative of both by what the losses are weighed with."""

    gradients: list[Tensor]
    products: list[Tensor]
    slopes: Tensor


def second(made, tangents, upstream=None, **options):
    leaves = [leaf.detach().clone().requires_grad_() for leaf in made.leaves]
    losses = made.function(*leaves, **{"reduction": "none"} | options)
    upstream = torch.ones_like(losses) if upstream is None else upstream.to(losses)
    upstream.requires_grad_()
    gradients = torch.autograd.grad(losses, leaves, upstream, create_graph=True)
    *products, slopes = torch.autograd.grad(gradients, [*leaves, upstream], tangents)
    return Second([gradient.detach() for gradient in gradients], products, slopes)


def tangents_of(made, seed=1):
    random = np.random.default_rng(seed)
    return [tensor(random.standard_normal(leaf.shape), leaf.dtype) for leaf in made.leaves]


def assert_seconds_close(actual, expected, **bounds):
    for ours, theirs in zip([*actual.gradients, *actual.products, actual.slopes],
                            [*expected.gradients, *expected.products, expected.slopes], strict=True):  # fmt: skip
        assert_close(ours, theirs, **bounds)


def inner(xs, ys):
    return sum((x.double() * y.double()).sum() for x, y in zip(xs, ys, strict=True))


FUSED = pytest.mark.parametrize("loss, options", [
    *((loss, {"fused_log_softmax": fused}) for loss in CHAIN for fused in (True, False)), ("asg", {})
], ids=str)  # fmt: skip


@FUSED
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_derivatives_of_the_gradient_are_finite_differences(loss, options, reduction):
    made = tiny(loss, impossible=False, reduction=reduction, zero_infinity=True, **options)
    leaves = [leaf.requires_grad_() for leaf in made.leaves]
    # By the upstream gradient too: gradgradcheck draws one for each output and differentiates by it.
    assert torch.autograd.gradgradcheck(made.function, leaves)


@FUSED
@pytest.mark.parametrize("impossible", [False, True])
def test_it_is_the_second_derivative_of_the_reference(loss, options, impossible):
    made = tiny(loss, impossible=impossible, **options)
    upstream = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0])
    ours, theirs = (second(made, tangents_of(made), upstream, impl=impl) for impl in IMPLEMENTATIONS)
    assert_seconds_close(ours, theirs, absolute=1e-12)
    assert any(product.abs().max() > 0.01 for product in ours.products)
    assert ours.slopes[[0, 1, 4]].abs().min() > 0.001


@FUSED
def test_it_is_the_difference_of_two_gradients(loss, options):
    made, step = tiny(loss, **options), 1e-5
    tangents = tangents_of(made)
    ours = second(made, tangents)
    ends = []
    for way in (step, -step):
        moved = made._replace(leaves=[leaf + way * own for leaf, own in zip(made.leaves, tangents, strict=True)])
        ends.append(second(moved, tangents).gradients)
    for product, after, before in zip(ours.products, *ends, strict=True):
        assert_close(product, (after - before) / (2 * step), absolute=1e-8)
    assert_close(ours.slopes.sum(), inner(ours.gradients, tangents), absolute=1e-12)


# Transitions beyond what plain floats hold of either dtype; and those of 1e4 that compete, which differ by nothing.
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("impossible", [False, True])
@pytest.mark.parametrize("scale", [150.0, 1e4])
def test_asg_in_extended_range(dtype, impossible, scale, monkeypatch):
    made = tiny("asg", dtype, impossible=impossible)
    rounded = (made.leaves[1] * 2).round().clamp(-1, 1)
    made.leaves[1].copy_(scale * rounded + (made.leaves[1] - rounded).nan_to_num(neginf=-torch.inf))
    solved = []
    monkeypatch.setattr(dense_extended, "move", lambda *given: solved.append(len(given[0])) or MOVE(*given))
    tangents = tangents_of(made)
    ours = second(made, tangents)
    assert sorted(solved) == [2, 3, 4, 5]
    exact = made._replace(leaves=[leaf.double() for leaf in made.leaves])
    theirs = second(exact, [tangent.double() for tangent in tangents], impl="reference")
    assert_seconds_close(ours, theirs, absolute=1e-10 if dtype == torch.float64 else 1e-5)
    assert all(product.abs().max() > 0.01 for product in ours.products)


@pytest.mark.parametrize("loss", LOSSES)
@given(data=st.data())
def test_hessians_are_symmetric(loss, data):
    made = drawn(loss, data)
    one, other = tangents_of(made, 1), tangents_of(made, 2)
    forth, back = (second(made, tangents).products for tangents in (one, other))
    size = max(inner(forth, forth).sqrt() * inner(other, other).sqrt(), 1.0)
    assert abs(inner(forth, other) - inner(back, one)) <= 1e-10 * size


@pytest.mark.parametrize("loss", CHAIN)
@given(data=st.data())
def test_rows_of_a_product_by_logits_sum_to_zero(loss, data):
    made = drawn(loss, data)
    (product,) = second(made, tangents_of(made)).products
    assert_rows_sum_to_zero(product, absolute=1e-12 * max(1.0, float(product.abs().max())))


@pytest.mark.parametrize("loss", CHAIN)
@given(data=st.data())
def test_a_tangent_that_is_the_same_for_all_classes_of_a_frame_moves_nothing(loss, data):
    made = drawn(loss, data)
    constant = [tangent[..., :1].expand(tangent.shape) for tangent in tangents_of(made)]
    (product,) = second(made, constant).products
    assert_close(product, torch.zeros_like(product), absolute=1e-12)


def drawn(loss, data):
    num_samples, num_frames = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    num_labels, num_classes = data.draw(st.integers(0, 4)), data.draw(st.integers(2, 6))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    std = data.draw(st.sampled_from([0.0, 1.0, 8.0]))
    return case(
        loss, std * random.standard_normal((num_frames, num_samples, num_classes)),
        random.integers(1, num_classes, (num_samples, num_labels)), random.integers(1, num_frames + 1, num_samples),
        random.integers(0, num_labels + 1, num_samples), std=std,
    )  # fmt: skip


@FUSED
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_infeasible_samples_and_padding_give_exactly_zero(loss, options, impl):
    made = tiny(loss, **options)
    solved = second(made, tangents_of(made), impl=impl)
    product = solved.products[0]
    assert not product[:, 3].any()
    assert solved.slopes[3] == 0
    assert product[:, 0].any()
    for n, length in enumerate(LENGTHS):
        assert not product[length:, n].any()


@FUSED
def test_nan_stays_in_its_sample(loss, options):
    made = tiny(loss, **options)
    tangents = tangents_of(made)
    expected = second(made, tangents)
    made.leaves[0][1, 1, 0] = torch.nan
    solved = second(made, tangents)
    others = [0, 2, 3, 4]
    assert_same_bits(solved.products[0][:, others], expected.products[0][:, others])
    assert_same_bits(solved.slopes[others], expected.slopes[others])
    assert solved.products[0][: LENGTHS[1], 1].isnan().all()
    assert solved.slopes[1].isnan()


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_is_not_read(loss):
    made = tiny(loss)
    tangents = tangents_of(made)
    expected = second(made, tangents)
    for n, length in enumerate(LENGTHS):
        made.leaves[0][length:, n] = torch.nan
        tangents[0][length:, n] = torch.nan
    assert_seconds_close(second(made, tangents), expected)


@FUSED
def test_backward_twice_gives_the_same_twice(loss, options):
    made = tiny(loss, **options)
    leaves = [leaf.requires_grad_() for leaf in made.leaves]
    gradients = torch.autograd.grad(made.function(*leaves, zero_infinity=True), leaves, create_graph=True)
    tangents = tangents_of(made)
    first, other, again = (
        torch.autograd.grad(gradients, leaves, [scale * own for own in tangents], retain_graph=True)
        for scale in (1.0, -2.0, 1.0)
    )
    for one, two, three in zip(first, other, again, strict=True):
        assert_same_bits(three, one)
        assert_close(two, -2 * one, absolute=1e-14)


@FUSED
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_number_of_threads_changes_no_bit(loss, options, dtype, threads):
    # More work than is done by one thread whatever is asked for.
    inputs = chain_inputs(90, 9, 70, 12, seed=4)
    made = case(loss, *inputs, dtype=dtype, **options)
    tangents, results = tangents_of(made), []
    for count in (1, 2):
        threads(count)
        results.append(second(made, tangents))
    for one, two in zip(*([*result.products, result.slopes] for result in results), strict=True):
        assert_same_bits(two, one)


@FUSED
@pytest.mark.parametrize("layout", ["batch first", "every other class", "expanded tangent"])
def test_strides_change_nothing(loss, options, layout):
    made = tiny(loss, **options)
    tangents = tangents_of(made)
    if layout == "expanded tangent":
        tangents[0] = torch.ones((), dtype=torch.float64).expand(made.leaves[0].shape)
        contiguous = [tangent.contiguous() for tangent in tangents]
        assert_seconds_close(second(made, tangents), second(made, contiguous), absolute=1e-15)
        return

    def strided(tensors):
        first = tensors[0]
        if layout == "batch first":
            first = first.transpose(0, 1).contiguous().transpose(0, 1)
        else:
            first = first.repeat_interleave(2, 2)[..., ::2]
        return [first, *(other.T.contiguous().T for other in tensors[1:])]

    leaves = [leaf.detach().requires_grad_() for leaf in strided(made.leaves)]
    losses = made.function(*leaves, reduction="none")
    gradients = torch.autograd.grad(losses, leaves, torch.ones_like(losses), create_graph=True)
    products = torch.autograd.grad(gradients, leaves, strided(tangents))
    for actual, expected in zip(products, second(made, tangents).products, strict=True):
        assert_close(actual, expected, absolute=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@FUSED
def test_half_precision(loss, options, dtype):
    made = tiny(loss, dtype, **options)
    exact = made._replace(leaves=[leaf.double() for leaf in made.leaves])
    tangents = tangents_of(made)
    ours = second(made, tangents)
    theirs = second(exact, [tangent.double() for tangent in tangents])
    for product, expected, leaf in zip(ours.products, theirs.products, made.leaves, strict=True):
        assert product.dtype == leaf.dtype
        # Computed in float32 and rounded once; ASG's is the difference of two that are in float32.
        assert_close(product, expected, relative=torch.finfo(dtype).eps, absolute=1e-5)


# Sizes at which a recursion that lost its digits would show it; few classes, so that memory stays small.
@pytest.mark.parametrize("std", [1.0, 8.0])
@FUSED
def test_float32_keeps_four_digits_over_two_thousand_frames(loss, options, std):
    inputs = chain_inputs(2000, 1, 20, 100, std=std, ragged=False, repeats=0.0)
    made = case(loss, *inputs, dtype=torch.float32, std=std, **options)
    exact = made._replace(leaves=[leaf.double() for leaf in made.leaves])
    tangents = tangents_of(made)
    ours = second(made, tangents).products
    theirs = second(exact, [tangent.double() for tangent in tangents]).products
    for product, expected in zip(ours, theirs, strict=True):
        assert_close(product, expected, absolute=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("loss", LOSSES)
def test_without_a_gradient_of_one_input_that_of_the_other_is_the_same(loss):
    # One tangent given, the other left out; and one input held fixed.
    made = tiny(loss)
    tangents = tangents_of(made)
    whole = second(made, [tangents[0], *map(torch.zeros_like, tangents[1:])])
    leaves = [leaf.clone().requires_grad_() for leaf in made.leaves]
    losses = made.function(*leaves, reduction="none")
    gradients = torch.autograd.grad(losses, leaves, torch.ones_like(losses), create_graph=True)
    products = torch.autograd.grad(gradients[0], leaves, tangents[0])
    for actual, expected in zip(products, whole.products, strict=True):
        assert_close(actual, expected, absolute=1e-14)
    if loss == "asg":
        for index in (0, 1):
            held = [leaf.detach() for leaf in made.leaves]
            held[index] = held[index].clone().requires_grad_()
            losses = made.function(*held, reduction="none")
            (gradient,) = torch.autograd.grad(losses, held[index], torch.ones_like(losses), create_graph=True)
            (product,) = torch.autograd.grad(gradient, held[index], tangents[index])
            only = [own if own is tangents[index] else torch.zeros_like(own) for own in tangents]
            assert_close(product, second(made, only).products[index], absolute=1e-14)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_third_derivative_raises(loss):
    made = tiny(loss)
    leaves = [leaf.requires_grad_() for leaf in made.leaves]
    gradients = torch.autograd.grad(made.function(*leaves, zero_infinity=True), leaves, create_graph=True)
    seconds = torch.autograd.grad([own.square().sum() for own in gradients], leaves, create_graph=True)
    for product in seconds:
        with pytest.raises(pathsum.NotDifferentiableError, match="two derivatives; impl='reference'"):
            torch.autograd.grad(product.square().sum(), leaves, retain_graph=True)


@pytest.mark.parametrize("loss", CHAIN)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_hessians_of_tf_seq2seq_losses(loss, impl):
    path = Path(__file__).parent / "vectors" / "tf_seq2seq_losses_hessian.json"
    vectors = [v for v in json.loads(path.read_text())["vectors"] if v["options"]["function"] == f"{loss}_loss"]
    assert len(vectors) == 2
    for vector in vectors:
        scores = tensor(vector["logits"]).log_softmax(-1)
        expected = np.asarray(vector["hessian"])
        assert np.abs(expected).max() > 0.05

        def total(scores, integers=(vector["targets"], vector["input_lengths"], vector["target_lengths"])):
            return CHAIN[loss](scores, *integers, batch_first=True, reduction="sum", impl=impl)

        hessian = torch.autograd.functional.hessian(total, scores)
        for n in range(len(scores)):
            # Theirs is float32, from exponentials of float32 logarithms.
            assert_close(hessian[n, :, :, n], expected[n], absolute=3e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_memory_grows_as_the_frames_do(loss, threads):
    threads(1)  # each thread has room for a sample of its own

    def peak(num_frames):
        inputs = chain_inputs(num_frames, 4, 12, 20, ragged=False, repeats=0.0)
        made = case(loss, *inputs, dtype=torch.float32)
        leaves = [leaf.requires_grad_() for leaf in made.leaves]
        gradients = torch.autograd.grad(made.function(*leaves), leaves, create_graph=True)
        tracemalloc.start()
        torch.autograd.grad(gradients, leaves, tangents_of(made))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(100)  # what is kept from call to call
    once, twice = peak(1000), peak(2000)
    assert 1.5 * once < twice < 2.1 * once
    # A few planes of 64 floats a frame; the Hessian of a sample would be 500 MB.
    assert once < 16 * 4 * 4 * 1000 * 64


UNCOMPILED = """
import sys
sys.path.insert(0, sys.argv[1])
import numba
assert numba.config.DISABLE_JIT
import torch, test_second_order as own
for loss in own.LOSSES:
    for dtype in (torch.float64, torch.float32):
        for options in ({}, {"fused_log_softmax": False}) if loss != "asg" else ({}, {"std": 200.0}):
            made = own.tiny(loss, dtype, **options)
            tangents = own.tangents_of(made)
            ours, theirs = (own.second(made, tangents, impl=impl) for impl in own.IMPLEMENTATIONS)
            own.assert_seconds_close(ours, theirs, relative=1e-5, absolute=1e-5)
"""


def test_the_kernels_run_uncompiled():
    # What an index out of bounds or an overflow does is an error there, and silence in compiled code.
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", UNCOMPILED, os.path.dirname(__file__)], env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
