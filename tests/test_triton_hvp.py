"""Second derivatives by the Triton kernels, interpreted, beside those by the numba kernels in float64."""

import pytest
import torch

from pathsum.errors import NotDifferentiableError
from pathsum.testing import assert_close, assert_same_bits, chain_inputs, grid_inputs
from pathsum.torch import ctc_loss, rnnt_loss
from support import random_like, second_derivative, tensor
from test_second_order import FUSED, case, second, tangents_of, tiny
from test_second_order_grid import GRIDS, scores_of
from triton_targets import interpreted  # noqa: F401
from variants import BLANK

pytestmark = pytest.mark.filterwarnings("ignore:asg_loss. the target")
# Of products of order 1 in float32.
BOUND = 2e-6


def assert_agrees(loss, inputs, upstream, bound=BOUND):
    """By Triton in the inputs' dtype what numba gives in float64, for a random tangent."""
    tangents = random_like(inputs)
    found = second_derivative(lambda *x: loss(*x, impl="triton"), inputs, upstream, tangents)
    exact = [[x.double() for x in given] for given in (inputs, tangents)]
    expected = second_derivative(lambda *x: loss(*x, impl="numba"), exact[0], upstream, exact[1])
    for one, other in zip(found, expected, strict=True):
        rounding = torch.finfo(one.dtype).eps if one.dtype.itemsize == 2 else 0.0
        assert_close(one, other, absolute=bound, relative=rounding)
    return found


@pytest.mark.parametrize("layout, fused, dtype", [
    *((layout, fused, torch.float32) for layout in GRIDS for fused in (True, False)),
    ("padded", True, torch.float64), ("packed", True, torch.float16),
], ids=str)  # fmt: skip
def test_grids(layout, fused, dtype):
    options = {"blank": BLANK, "reduction": "none", "fused_log_softmax": fused}
    slopes, product = assert_agrees(
        lambda x, impl: GRIDS[layout](x, impl=impl, **options), [scores_of(layout).to(dtype)], [1, -2, 0.3],
        1e-13 if dtype == torch.float64 else BOUND,
    )  # fmt: skip
    assert slopes.abs().min() > 1e-3
    assert product.dtype == dtype


# All of them one; no label at all; more labels than frames, one class beyond a block.
@pytest.mark.parametrize("size", [(1, 1, 1, 2), (2, 3, 0, 3), (2, 2, 6, 17)], ids=str)
def test_sizes_of_grids(size):
    inputs = grid_inputs(*size, seed=sum(size))
    scores = tensor(inputs.logits, torch.float32)
    upstream = [1.0, -2.0][: size[0]]
    assert_agrees(lambda x, impl: rnnt_loss(x, *inputs[1:], reduction="none", impl=impl), [scores], upstream)


@pytest.mark.parametrize("fused", [True, False], ids=["logits", "log_probs"])
def test_impossible_undefined_and_empty_samples_of_grids(fused):
    inputs = grid_inputs(4, 3, 2, 4, seed=5, ragged=False)
    inputs.logit_lengths[1] = 0
    scores = tensor(inputs.logits, torch.float32)
    scores[0, 1, 0, 0] = -torch.inf
    scores[2, 1, 1, -1] = torch.nan
    scores[3, 1, :, -1] = -torch.inf  # no blank leaves frame 1
    options = {"reduction": "none", "zero_infinity": True, "fused_log_softmax": fused}
    slopes, product = assert_agrees(
        lambda x, impl: rnnt_loss(x, *inputs[1:], impl=impl, **options), [scores], [1, -2, 0.3, 1]
    )
    assert slopes.isnan().tolist() == [False, False, True, False]
    assert product[2].isnan().all()
    assert product[0].any()
    assert not product[1].any()
    assert not product[3].any()


def test_padding_of_grids_is_not_read():
    scores, tangents = scores_of("padded").float(), random_like([scores_of("padded").float()])

    def solve():
        return second_derivative(
            lambda x: GRIDS["padded"](x, blank=BLANK, reduction="none", impl="triton"), [scores], [1, -2, 0.3], tangents
        )

    expected = solve()
    for poisoned in (scores, *tangents):
        poisoned[1, 1:], poisoned[1, :, 2:], poisoned[2, :, 1:] = torch.nan, torch.nan, torch.nan
    for one, other in zip(solve(), expected, strict=True):
        assert_same_bits(one, other)


def test_wide_grids_and_long_chains_are_done_in_strips(monkeypatch):
    from pathsum.torch._triton import chain, grid

    inputs, labels = grid_inputs(2, 3, 9, 3, seed=7), chain_inputs(12, 2, 4, 6, seed=2)
    losses = (
        (lambda x: rnnt_loss(x, *inputs[1:], reduction="none", impl="triton"), tensor(inputs.logits, torch.float32)),
        (lambda x: ctc_loss(x, *labels[1:], reduction="none", impl="triton"), tensor(labels.logits, torch.float32)),
    )
    for loss, scores in losses:
        with monkeypatch.context() as patch:
            whole = second_derivative(loss, [scores], [1, -2], random_like([scores]))
            for module in (chain, grid):
                patch.setattr(module, "STRIP", 4)
                patch.setattr(module, "MEANS_STRIP", 2)
            strips = second_derivative(loss, [scores], [1, -2], random_like([scores]))
        assert whole[1].abs().max() > 1e-3
        for one, other in zip(strips, whole, strict=True):
            assert_same_bits(one, other)


UPSTREAM = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0])


def assert_second_agrees(made, bound=BOUND):
    """As above, of a ``Case``, by all its leaves."""
    tangents = tangents_of(made)
    ours = second(made, tangents, UPSTREAM, impl="triton")
    exact = made._replace(leaves=[leaf.double() for leaf in made.leaves])
    theirs = second(exact, [tangent.double() for tangent in tangents], UPSTREAM, impl="numba")
    for one, other in zip([*ours.products, ours.slopes], [*theirs.products, theirs.slopes], strict=True):
        rounding = torch.finfo(one.dtype).eps if one.dtype.itemsize == 2 else 0.0
        assert_close(one, other, absolute=bound, relative=rounding)
    return ours


# Among the samples: an empty target, one that does not fit, one frame; entries of -inf that leave paths.
@FUSED
def test_chains_and_asg(loss, options):
    ours = assert_second_agrees(tiny(loss, torch.float32, **options))
    assert not ours.products[0][:, 3].any()
    assert ours.slopes[3] == 0
    assert ours.slopes[[0, 1, 4]].abs().min() > 1e-3


@pytest.mark.parametrize("loss, dtype", [
    ("ctc", torch.float64), ("simple_ctc", torch.float64), ("asg", torch.float64), ("ctc", torch.float16)
], ids=str)  # fmt: skip
def test_other_dtypes(loss, dtype):
    made = tiny(loss, dtype)
    ours = assert_second_agrees(made, bound=1e-12 if dtype == torch.float64 else BOUND)
    assert [product.dtype for product in ours.products] == [leaf.dtype for leaf in made.leaves]


@pytest.mark.parametrize("loss", ["ctc", "asg"])
def test_undefined_and_frameless_samples(loss):
    made = tiny(loss, torch.float32)
    made.leaves[0][1, 1, 0] = torch.nan
    ours = assert_second_agrees(made)
    assert ours.products[0][:4, 1].isnan().all()
    assert not ours.products[0][4:, 1].any()
    assert ours.slopes.isnan().tolist() == [False, True, False, False, False]
    inputs = chain_inputs(3, 2, 4, 1, seed=1)
    made = case(loss, inputs.logits, inputs.targets, [0, 2], [0, 1], torch.float32)
    solved = second(made, tangents_of(made), impl="triton")
    assert solved.slopes[0] == 0
    assert not solved.products[0][:, 0].any()
    assert solved.products[0][:2, 1].any()


def test_chains_beyond_the_narrow_pair_and_beside_it():
    inputs = chain_inputs(6, 3, 4, 2, seed=3, ragged=False)
    made = case("ctc", *inputs, dtype=torch.float32)
    made.leaves[0][:, 1] *= 1e8
    made.leaves[0][:, 2] -= 1e5
    tangents = tangents_of(made)
    ours = second(made, tangents, impl="triton")
    exact = made._replace(leaves=[leaf.double() for leaf in made.leaves])
    theirs = second(exact, [tangent.double() for tangent in tangents], impl="reference")
    assert_close(ours.products[0], theirs.products[0], absolute=BOUND)
    assert_close(ours.slopes, theirs.slopes, absolute=BOUND)


# Transitions beyond what plain floats hold, which are solved in logarithms; more states than a tile.
@pytest.mark.parametrize("scale, num_classes", [(150.0, 4), (1e4, 4), (1.0, 70)])
def test_asg_out_of_range_and_in_tiles(scale, num_classes):
    inputs = chain_inputs(4, 2, num_classes, 2, seed=6)
    made = case("asg", *inputs, dtype=torch.float64)
    rounded = (made.leaves[1] * 2).round().clamp(-1, 1)
    made.leaves[1].add_(scale * rounded)
    made.leaves[1][3, 0] = -torch.inf
    tangents = tangents_of(made)
    ours, theirs = (second(made, tangents, impl=impl) for impl in ("triton", "numba"))
    for one, other in zip([*ours.products, ours.slopes], [*theirs.products, theirs.slopes], strict=True):
        assert_close(one, other, absolute=1e-9)
    assert ours.products[1].abs().max() > 0.01


def test_one_input_held_fixed_and_one_tangent_left_out():
    made = tiny("asg", torch.float64)
    tangents = tangents_of(made)
    for index in (0, 1):
        leaves = [leaf.detach().clone() for leaf in made.leaves]
        leaves[index].requires_grad_()
        products = []
        for impl in ("triton", "numba"):
            loss = made.function(*leaves, reduction="none", impl=impl)
            (gradient,) = torch.autograd.grad(loss, leaves[index], torch.ones_like(loss), create_graph=True)
            products.extend(torch.autograd.grad(gradient, leaves[index], tangents[index]))
        assert_close(*products, absolute=1e-12)


def test_forward_mode_gives_the_slopes():
    made = tiny("ctc", torch.float64)
    (scores,), (tangent,) = made.leaves, tangents_of(made)

    def loss(scores):
        return made.function(scores, reduction="none", impl="triton")

    _, slopes = torch.func.jvp(loss, (scores,), (tangent,))
    assert_close(slopes, second(made, [tangent], impl="triton").slopes, absolute=1e-12)


def test_the_same_input_gives_the_same_bits_and_a_third_derivative_raises():
    made = tiny("ctc", torch.float32)
    tangents = tangents_of(made)
    first, again = (second(made, tangents, impl="triton") for _ in range(2))
    assert_same_bits(first.products[0], again.products[0])
    assert_same_bits(first.slopes, again.slopes)
    scores = made.leaves[0].requires_grad_()
    (gradient,) = torch.autograd.grad(
        made.function(scores, impl="triton", zero_infinity=True), scores, create_graph=True
    )
    (product,) = torch.autograd.grad(gradient.square().sum(), scores, create_graph=True)
    with pytest.raises(NotDifferentiableError, match="two derivatives; impl='reference'"):
        torch.autograd.grad(product.square().sum(), scores)
