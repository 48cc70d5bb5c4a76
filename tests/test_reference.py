"""The reference where its own arithmetic could fail it: large offsets, options, results without a path, NaN."""

import math

import pytest
import torch

from pathsum.testing import assert_close
from pathsum.torch import (
    asg_entropy,
    asg_loss,
    asg_posteriors,
    ctc_entropy,
    ctc_loss,
    ctc_posteriors,
    multi_blank_rnnt_loss,
    rnnt_entropy,
    rnnt_loss,
    rnnt_posteriors,
    simple_ctc_loss,
    tdt_loss,
    wildcard_rnnt_loss,
)

DOUBLE = torch.float64
CHAIN = (3, 1, 4)
GRID = (1, 3, 3, 4)
TRANSITIONS = torch.zeros(4, 4, dtype=DOUBLE)

# Losses that a common offset of all scores does not change, of equal scores: what they are, by counting paths.
INVARIANT = {
    "ctc": (CHAIN, lambda x: ctc_loss(x, [[1, 2]], [3], [2], fused_log_softmax=True, reduction="sum", impl="reference"),
            3 * math.log(4) - math.log(5)),
    "simple_ctc": (CHAIN, lambda x: simple_ctc_loss(
        x, [[1, 2]], [3], [2], fused_log_softmax=True, reduction="sum", impl="reference"
    ), 3 * math.log(4) - math.log(3)),
    "asg": (CHAIN, lambda x: asg_loss(x, [[1, 2]], TRANSITIONS, impl="reference"), 3 * math.log(4) - math.log(2)),
    "asg with ends": (CHAIN, lambda x: asg_loss(
        x, [[1, 2]], TRANSITIONS, start_scores=x[0, 0] * -3, final_scores=x[1, 0], impl="reference"
    ), 3 * math.log(4) - math.log(2)),
    "asg of transitions": ((4, 4), lambda x: asg_loss(TRANSITIONS[:3, None], [[1, 2]], x, impl="reference"),
                           3 * math.log(4) - math.log(2)),
    "asg entropy": (CHAIN, lambda x: asg_entropy(x, [[1, 2]], TRANSITIONS, impl="reference"), math.log(2)),
    "asg entropy by numba": (CHAIN, lambda x: asg_entropy(x, [[1, 2]], TRANSITIONS, paths="all"), 3 * math.log(4)),
    "ctc entropy": (CHAIN, lambda x: ctc_entropy(
        x, [[1, 2]], [3], [2], fused_log_softmax=True, reduction="sum", impl="reference"
    ), math.log(5)),
    "rnnt": (GRID, lambda x: rnnt_loss(x, [[1, 2]], [3], [2], impl="reference"), 5 * math.log(4) - math.log(6)),
    "rnnt modified": (GRID, lambda x: rnnt_loss(x, [[1, 2]], [3], [2], rnnt_type="modified", impl="reference"),
                      3 * math.log(4) - math.log(3)),
    "rnnt entropy": (GRID, lambda x: rnnt_entropy(x, [[1, 2]], [3], [2], impl="reference"), math.log(6)),
    "tdt": (GRID, lambda x: tdt_loss(x, x[..., :1], [[1, 2]], [3], [2], [1], final="any", impl="reference"),
            3 * math.log(4) - math.log(3)),
}  # fmt: skip


@pytest.mark.parametrize("offset", [0.0, -1e17, 1e17, 1e300])
@pytest.mark.parametrize("name", INVARIANT)
def test_a_common_offset_costs_no_digit(name, offset):
    shape, function, expected = INVARIANT[name]
    gradients = []
    for value in (0.0, offset):
        scores = torch.full(shape, value, dtype=DOUBLE, requires_grad=True)
        loss = function(scores)
        loss.backward()
        gradients.append(scores.grad)
    assert_close(loss.detach(), expected, absolute=1e-12)
    assert_close(gradients[1], gradients[0], absolute=1e-12)


@pytest.mark.parametrize("offset", [1e17, -1e17])
def test_scores_that_are_no_log_probabilities_have_the_same_posteriors_at_an_offset(offset):
    integers = ([[1, 2]], [3], [2])
    for function, shape in (
        (lambda x: ctc_loss(x, *integers, reduction="sum", impl="reference"), CHAIN),
        (lambda x: simple_ctc_loss(x, *integers, reduction="sum", impl="reference"), CHAIN),
        (lambda x: rnnt_loss(x, *integers, fused_log_softmax=False, impl="reference"), GRID),
    ):
        found = []
        for value in (0.0, offset):
            scores = torch.full(shape, value, dtype=DOUBLE, requires_grad=True)
            function(scores).backward()
            found.append(scores.grad)
        assert_close(found[1], found[0], absolute=1e-12)
    chain, grid = torch.full((1, 3, 4), offset, dtype=DOUBLE), torch.full(GRID, offset, dtype=DOUBLE)
    for function, scores in (
        (lambda x: ctc_posteriors(x, *integers, impl="reference").nodes, chain),
        (lambda x: asg_posteriors(x, [[1, 2]], TRANSITIONS, impl="reference").classes, chain),
        (lambda x: rnnt_posteriors(x, *integers, impl="reference").nodes, grid),
    ):
        assert_close(function(scores), function(torch.zeros_like(scores)), absolute=1e-12)


# A number that float32 does not hold: the loss of float64 logits must move with it as float64 does.
THIRD = 1 / 3


@pytest.mark.parametrize("impl", ["numba", "reference"])
def test_options_are_not_rounded(impl):
    logits = torch.zeros(1, 2, 1, 4, dtype=DOUBLE)
    blanks = 2 * math.log(4)
    skip = wildcard_rnnt_loss(logits, [[]], [2], [0], skip_score=THIRD, impl=impl)
    # Two blanks; a skip and a blank, the skip from the front or to the end.
    assert_close(skip, -math.log(math.exp(-blanks) + 2 * math.exp(THIRD - blanks / 2)), absolute=1e-15)
    any_end = wildcard_rnnt_loss(logits, [[]], [2], [0], skip_score=THIRD, final="any", impl=impl)
    # Here the skip from the front needs a blank behind it, and the one to the end none.
    ways = math.exp(-blanks) + math.exp(THIRD - blanks / 2) + math.exp(THIRD)
    assert_close(any_end, -math.log(ways), absolute=1e-15)
    sigma = multi_blank_rnnt_loss(logits, [[]], [2], [0], [2], [0], sigma=THIRD, impl=impl)
    assert_close(sigma, -math.log(math.exp(-2 * THIRD - blanks) + math.exp(-THIRD - blanks / 2)), absolute=1e-15)
    one = torch.zeros(1, 2, 2, 4, dtype=DOUBLE)
    delayed = rnnt_loss(one, [[1]], [2], [1], delay_penalty=THIRD, impl=impl)
    assert_close(delayed, 3 * math.log(4) - math.log(math.exp(THIRD / 2) + math.exp(-THIRD / 2)), absolute=1e-15)
    traced = torch.func.vmap(lambda x: rnnt_loss(x, [[1]], [2], [1], delay_penalty=THIRD, impl=impl))(one[None])
    assert_close(traced[0], delayed, absolute=1e-15)
    leaf = one.clone().requires_grad_()
    rnnt_loss(leaf, [[1]], [2], [1], clamp=THIRD, impl=impl).backward()
    assert leaf.grad.abs().max() == THIRD
    leaf = one.clone().requires_grad_()
    rnnt_loss(leaf, [[1]], [2], [1], fused_log_softmax=False, fastemit_lambda=THIRD, impl=impl).backward()
    assert_close(-leaf.grad[..., 1].sum(), 1 + THIRD, absolute=1e-15)


@pytest.mark.parametrize("impl", ["numba", "reference"])
def test_every_result_has_a_graph_to_any_order(impl):
    tokens, spans = torch.zeros(1, 2, 2, 4, dtype=DOUBLE), torch.zeros(1, 2, 2, 1, dtype=DOUBLE)
    calls = [
        ([tokens, spans], lambda x, y: tdt_loss(x, y, [[1]], [2], [1], [5], impl=impl)),
        ([tokens], lambda x: rnnt_loss(x, [[1]], [0], [1], impl=impl)),
        ([tokens[0]], lambda x: ctc_loss(x, [[1, 2, 3]] * 2, [2, 2], [3, 3], impl=impl)),
        ([tokens[0], TRANSITIONS], lambda x, y: asg_loss(x, [[1, 2, 3]] * 2, y, impl=impl)),
        ([tokens[0, :0], TRANSITIONS], lambda x, y: asg_loss(x, [[1]] * 2, y, impl=impl)),
    ]
    for tensors, function in calls:
        leaves = [x.clone().requires_grad_() for x in tensors]
        loss = function(*leaves)
        gradients = torch.autograd.grad(loss, leaves, create_graph=True)
        assert loss == torch.inf
        assert not any(gradient.any() for gradient in gradients)
        products = torch.autograd.grad(gradients, leaves, [torch.ones_like(x) for x in leaves])
        assert not any(product.any() for product in products)


UNDEFINED = {"nan": math.nan, "inf": math.inf}


@pytest.mark.parametrize("impl", ["numba", "reference"])
@pytest.mark.parametrize("value", UNDEFINED.values(), ids=UNDEFINED)
@pytest.mark.parametrize("target", [[1, 2], [1, 2, 1, 2]], ids=["feasible", "infeasible"])
def test_a_score_that_is_not_defined_makes_the_loss_of_its_sample_nan_be_it_feasible_or_not(target, value, impl):
    integers = ([target, target], [3, 3], [len(target)] * 2)
    chain = torch.zeros(3, 2, 4, dtype=DOUBLE)
    chain[1, 0, 1] = value
    chain[2, 0] = -1.0
    for zero_infinity in (False, True):
        options = {"zero_infinity": zero_infinity, "reduction": "none", "impl": impl}
        for function in (
            lambda x: ctc_loss(x, *integers, fused_log_softmax=True, **options),  # noqa: B023
            lambda x: ctc_loss(x, *integers, **options),  # noqa: B023
            lambda x: simple_ctc_loss(x, *integers, **options),  # noqa: B023
            lambda x: asg_loss(x, integers[0], TRANSITIONS, **options),  # noqa: B023
        ):
            scores = chain.clone().requires_grad_()
            losses = function(scores)
            losses.sum().backward()
            assert losses[0].isnan()
            assert scores.grad[:, 0].isnan().any()
            # The neighbour is as it is without.
            clean = torch.zeros_like(chain).requires_grad_()
            expected = function(clean)
            expected[1].backward()
            assert losses[1] == expected[1]
            assert_close(scores.grad[:, 1], clean.grad[:, 1], absolute=1e-15)
        table = TRANSITIONS.clone()
        table[3, 0] = value
        scores = torch.zeros_like(chain).requires_grad_()
        losses = asg_loss(scores, integers[0], table, **options)
        losses.sum().backward()
        assert losses.isnan().all()
        assert scores.grad.isnan().any()
