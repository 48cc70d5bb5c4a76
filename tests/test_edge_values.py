"""Scores at the ends of their range, targets that do not fit, batches with one bad sample."""

import numpy as np
import pytest
import torch

from pathsum.kernels.numba.chain_recursion import NARROW, WIDE, is_held, pairs_for
from pathsum.numerics import LOG2_E, MAX_EXPONENT_32
from pathsum.testing import assert_close, assert_same_bits, chain_inputs, grid_inputs, pack_rows, unpack_rows
from pathsum.torch import ctc_loss, rnnt_loss, rnnt_packed_loss
from support import CHAIN, IMPLEMENTATIONS, assert_within_bounds, solve, tensor, truth

LOSSES = [*CHAIN, "rnnt"]
INF = float("inf")


def make(loss, dtype=torch.float32, *, seed=0, std=1.0):
    """Function, scores and integers of three feasible ragged samples of five classes, and the axis of the samples."""
    if loss == "rnnt":
        inputs = grid_inputs(3, 7, 3, 5, seed=seed, std=std)
        return rnnt_loss, tensor(inputs.logits, dtype), list(inputs[1:]), 0
    inputs = chain_inputs(14, 3, 5, 3, blank=-1, seed=seed, std=std)
    return CHAIN[loss], tensor(inputs.logits, dtype), list(inputs[1:]), 1


def options(loss, fused, impl):
    return {"blank": -1, "fused_log_softmax": fused, "impl": impl}


def assert_others_untouched(solved, expected, axis, sample):
    for n in set(range(3)) - {sample}:
        assert_same_bits(solved.loss[n], expected.loss[n])
        assert_same_bits(solved.gradient.select(axis, n), expected.gradient.select(axis, n))


# What a mask leaves: a class that the target lacks, one that it has, the blank, all but the blank, the whole row.
MASKS = {"unused": [0], "label": [1], "blank": [4], "labels": [0, 1, 2, 3], "row": [0, 1, 2, 3, 4]}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fused", [False, True], ids=["log_probs", "logits"])
@pytest.mark.parametrize("loss", LOSSES)
def test_minus_infinity_is_an_impossible_class(loss, fused, dtype, mask):
    function, scores, integers, _ = make(loss, dtype)
    integers[0] = np.where(integers[0] >= 0, integers[0].clip(1), -1)  # class 0 is in no target
    for every in (slice(0, 1), slice(None)):  # in the first frame, or in all of them
        masked = scores.clone()
        frames = (slice(None), every) if loss == "rnnt" else (every,)
        masked[(*frames, ..., MASKS[mask])] = -INF
        solved = solve(function, masked, *integers, **options(loss, fused, "numba"))
        expected = truth(function, masked, *integers, blank=-1, fused_log_softmax=fused)
        assert not solved.loss.isnan().any()
        assert solved.gradient.isfinite().all()
        assert_within_bounds(solved, expected, 14, gradient_bound=5e-6)
        if mask == "row":
            assert (solved.loss == INF).all()
            assert not solved.gradient.any()
        if mask == "unused":
            assert solved.loss.isfinite().all()
            assert not solved.gradient[(*frames, ..., MASKS[mask])].any()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("targets", [[], torch.tensor([]), torch.zeros(3, 0), torch.zeros(3, 0, dtype=torch.int64)])
def test_targets_of_an_all_silence_batch_have_no_dtype_of_their_own(loss, targets):
    function, scores, (_, lengths, target_lengths), axis = make(loss)
    losses = function(scores, targets, lengths, 0 * target_lengths, blank=-1, reduction="none")
    log_probs = scores.double() if loss != "rnnt" else scores.double().log_softmax(-1)[:, :, 0]
    blanks = log_probs[..., -1].movedim(axis, 0)
    within = torch.arange(blanks.shape[1]) < torch.as_tensor(lengths)[:, None]
    assert_close(losses, -(blanks * within).sum(1), relative=1e-6)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("fused", [False, True], ids=["log_probs", "logits"])
@pytest.mark.parametrize("loss", LOSSES)
def test_an_impossible_sample_has_loss_infinity_gradient_zero_and_no_influence(loss, fused, impl):
    function, scores, integers, axis = make(loss)
    expected = solve(function, scores, *integers, **options(loss, fused, impl))
    barred = scores.clone()
    barred.select(axis, 1)[...] = -INF
    short = [array.copy() for array in integers]
    short[1][1] = 0  # no frames, and the target is not empty
    assert short[2][1] > 0
    for inputs in ((barred, *integers), (scores, *short)):
        solved = solve(function, *inputs, **options(loss, fused, impl))
        assert solved.loss[1] == INF
        assert not solved.gradient.select(axis, 1).any()
        assert_others_untouched(solved, expected, axis, 1)
        zeroed = solve(function, *inputs, **options(loss, fused, impl), zero_infinity=True)
        assert zeroed.loss[1] == 0
        assert not zeroed.gradient.select(axis, 1).any()
        assert_others_untouched(zeroed, expected, axis, 1)


# One frame too few, by repeats or by length, for targets of one label to eight; exactly enough.
TIGHT = [(1, [1, 1]), (2, [1, 1]), (2, [1, 2, 1]), (3, [1, 1, 1]), (4, [1, 1, 1]), (4, [1] * 8), (9, [1, 2] * 5)]
FITS = [(3, [1, 1]), (5, [1, 1, 1]), (15, [1] * 8), (10, [1, 2] * 5), (1, [1]), (1, []), (0, [])]


@pytest.mark.parametrize("need_gradient", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_frames, target", TIGHT + FITS, ids=str)
def test_ctc_knows_which_targets_fit(num_frames, target, dtype, need_gradient):
    scores = torch.zeros(num_frames, 1, 3, dtype=dtype, requires_grad=need_gradient)
    loss = ctc_loss(scores, [target or [-1]], [num_frames], [len(target)], reduction="none", fused_log_softmax=True)
    assert bool(loss.isinf()) == ((num_frames, target) in TIGHT)
    if (num_frames, target) not in TIGHT:
        expected = ctc_loss(scores.double(), [target or [-1]], [num_frames], [len(target)], reduction="none",
                            fused_log_softmax=True, impl="reference")  # fmt: skip
        assert_close(loss, expected, relative=1e-7, absolute=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("num_frames, num_labels", [(0, 1), (1, 2), (3, 4), (3, 8), (64, 65), (3, 3), (1, 0), (0, 0)])
def test_simple_ctc_knows_which_targets_fit(num_frames, num_labels, dtype):
    scores = torch.zeros(num_frames, 1, 3, dtype=dtype, requires_grad=True)
    loss = CHAIN["simple_ctc"](scores, [[1] * max(1, num_labels)], [num_frames], [num_labels], reduction="none")
    assert loss.item() == (INF if num_labels > num_frames else 0)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_no_frames(impl):
    none, one = torch.zeros(0, 2, 3, requires_grad=True), torch.zeros(2, 0, 2, 3, requires_grad=True)
    for function in CHAIN.values():
        losses = function(none, [[1], [1]], [0, 0], [0, 1], reduction="none", impl=impl)
        assert losses.tolist() == [0, INF]
        losses.sum().backward()
    losses = rnnt_loss(one, [[1], [1]], [0, 0], [0, 1], reduction="none", impl=impl)
    assert losses.tolist() == [INF, INF]
    losses.sum().backward()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("fused", [False, True], ids=["log_probs", "logits"])
@pytest.mark.parametrize("poison", [float("nan"), INF])
@pytest.mark.parametrize("loss", LOSSES)
def test_an_undefined_score_makes_its_own_sample_nan(loss, poison, fused, impl):
    function, scores, integers, axis = make(loss)
    expected = solve(function, scores, *integers, **options(loss, fused, impl))
    # In the blank of the first node, which every implementation reads; and in the last frame's.
    for frame in (0, int(integers[1][1]) - 1):
        poisoned = scores.clone()
        poisoned.select(axis, 1).select(0, frame)[..., -1] = poison
        solved = solve(function, poisoned, *integers, **options(loss, fused, impl))
        assert solved.loss[1].isnan()
        assert solved.gradient.select(axis, 1).isnan().any()
        assert_others_untouched(solved, expected, axis, 1)
        still = solve(function, poisoned, *integers, **options(loss, fused, impl), zero_infinity=True)
        assert still.loss[1].isnan()  # NaN is no infinity


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_nan_of_either_sign_anywhere_in_a_row_of_logits_is_seen(loss, dtype, sign):
    # The row maximum compares bits, and a NaN's sign is one: 0 / 0 is negative on some machines.
    function, scores, integers, axis = make(loss, dtype)
    for label in range(5):
        poisoned = scores.clone()
        poisoned.select(axis, 0).select(0, 0)[..., label] = torch.tensor(float("nan"), dtype=dtype).copysign(
            torch.tensor(float(sign), dtype=dtype)
        )
        losses = function(poisoned, *integers, blank=-1, reduction="none", fused_log_softmax=True)
        assert losses.isnan().tolist() == [True, False, False]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("fused", [False, True], ids=["log_probs", "logits"])
@pytest.mark.parametrize("poison", [float("nan"), INF, -INF, 1e30])
@pytest.mark.parametrize("loss", [*LOSSES, "rnnt_packed"])
def test_padding_leaks_neither_into_losses_nor_into_gradients(loss, poison, fused, impl):
    function, scores, integers, axis = make("rnnt" if loss == "rnnt_packed" else loss)
    expected = solve(function, scores, *integers, **options(loss, fused, impl))
    padding = torch.ones_like(scores, dtype=torch.bool)
    for n in range(3):
        inside = (slice(int(integers[1][n])), slice(int(integers[2][n]) + 1))
        padding.select(axis, n)[inside if axis == 0 else inside[:1]] = False
    assert padding.any()
    filled = torch.where(padding, poison, scores)
    if loss == "rnnt_packed":
        lengths = integers[1], integers[2]
        rows = torch.from_numpy(pack_rows(filled.numpy(), *lengths))
        solved = solve(rnnt_packed_loss, rows, *integers, **options(loss, fused, impl))
        solved = solved._replace(gradient=unpack_rows(solved.gradient.numpy(), scores.shape, *lengths))
        assert_same_bits(solved.gradient, expected.gradient.numpy())
    else:
        solved = solve(function, filled, *integers, **options(loss, fused, impl))
        assert_same_bits(solved.gradient, expected.gradient)
        assert not solved.gradient[padding].any()
    assert_same_bits(solved.loss, expected.loss)


# The largest round numbers of issue reports; near the largest float32 and float64 (their sums stay below infinity).
@pytest.mark.parametrize(
    "dtype, scale",
    [
        *[(torch.float64, scale) for scale in (1e10, 1e14, 1e15, 1e16, 1e17, 1e30, 3e38, 1e290)],
        *[(torch.float32, scale) for scale in (1e10, 1e15, 1e16, 1e17, 1e30, 3e38)],
        (torch.bfloat16, 1e30),
        (torch.float16, 1e4),
    ],
    ids=str,
)
@pytest.mark.parametrize("fused", [False, True], ids=["log_probs", "logits"])
@pytest.mark.parametrize("loss", LOSSES)
def test_huge_scores(loss, fused, scale, dtype):
    function, scores, integers, _ = make(loss, torch.float64, seed=3)
    scores = (scores * (scale / 4)).to(dtype)
    if not fused:
        scores = -scores.abs()
    solved = solve(function, scores, *integers, **options(loss, fused, "numba"))
    expected = truth(function, scores, *integers, blank=-1, fused_log_softmax=fused)
    assert expected.loss.isfinite().all()
    assert solved.gradient.isfinite().all()
    losses = expected.loss.to(solved.loss.dtype)  # may round to infinity
    assert_close(solved.loss, losses, relative=1e-6 if dtype != torch.float64 else 1e-12)
    rounding = 0 if dtype in (torch.float32, torch.float64) else torch.finfo(dtype).eps / 2
    assert_close(solved.gradient, expected.gradient, relative=rounding, absolute=5e-6)


def test_logits_of_1e10_on_paths_that_compete():
    # Each path must take one frame's gap of 1e10; which one is a matter of the small numbers beside it, as far as the
    # dtype can tell 1e10 from its neighbours: not at all in float32, to 2e-6 in float64.
    for dtype, small in ((torch.float32, [0.0] * 4), (torch.float64, [0.0, 1.0, -2.0, 0.5])):
        scores = torch.zeros(4, 1, 2, dtype=dtype)
        scores[:, 0, 0] = 1e10
        scores[:, 0, 1] = torch.tensor(small, dtype=dtype)
        for function in CHAIN.values():
            solved = solve(function, scores, [[1]], [4], [1], fused_log_softmax=True)
            expected = truth(function, scores, [[1]], [4], [1], fused_log_softmax=True)
            assert_close(solved.loss, expected.loss, relative=1e-7)
            assert_close(solved.gradient, expected.gradient, absolute=5e-6)


# Sides of the switch between the float32 pair and the float64 pair: one frame whose gap alone decides, several frames
# that share it.
@pytest.mark.parametrize("num_frames", [1, 4, 1000])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.61, 0.8, 0.99, 1.01, 1.5, 100.0])
@pytest.mark.parametrize("loss", CHAIN)
def test_both_sides_of_the_switch_of_number_pairs(loss, share, num_frames):
    gap = np.float32(share * MAX_EXPONENT_32 / LOG2_E / num_frames)
    shifted = np.full((num_frames, 3), -gap, np.float32)
    assert pairs_for(None, np.float32) == (NARROW, WIDE)
    assert pairs_for(None, np.float64) == (WIDE,)
    held, reaches = [], np.zeros(1)
    for pair in (NARROW, WIDE):
        held.append(is_held.py_func(0, shifted, shifted, True, np.empty(0, pair.mantissa), reaches))
    assert held == [share < 1, share >= 1]
    scores = torch.zeros(num_frames, 1, 3)
    # The middle frame alone is free of the gap, so that several paths of as many gaps compete.
    scores[:, 0, 1:] = -float(gap)
    target = [[1, 2]] if num_frames > 2 else [[1]]
    length = [len(target[0])]
    solved = solve(CHAIN[loss], scores, target, [num_frames], length, fused_log_softmax=True)
    expected = truth(CHAIN[loss], scores, target, [num_frames], length, fused_log_softmax=True)
    assert_close(solved.loss, expected.loss, relative=1e-7, absolute=1e-6 * num_frames**0.5)
    assert_close(solved.gradient, expected.gradient, absolute=2e-6)
    # Every frame a label, so that a path takes all the gaps and the exponent goes as far as it can.
    if num_frames <= 4:
        scores = torch.zeros(num_frames, 1, num_frames + 1)
        scores[:, 0, 1:] = -float(gap)
        target = [list(range(1, num_frames + 1))]
        solved = solve(CHAIN[loss], scores, target, [num_frames], [num_frames], fused_log_softmax=True)
        assert_close(solved.loss, [float(gap) * num_frames], relative=1e-7)


def test_scores_of_opposite_ends_meet_in_one_batch():
    # One sample needs the float64 pair, its neighbours do not; nor do they notice.
    function, scores, integers, axis = make("ctc")
    expected = solve(function, scores, *integers, **options("ctc", True, "numba"))
    mixed = scores.clone()
    mixed[:, 1] *= 1e9
    solved = solve(function, mixed, *integers, **options("ctc", True, "numba"))
    assert_others_untouched(solved, expected, axis, 1)
    assert_close(
        solved.loss[1], truth(function, mixed, *integers, blank=-1, fused_log_softmax=True).loss[1], relative=1e-7
    )


@pytest.mark.parametrize("impl", ["numba", "reference"])
def test_a_loss_that_is_infinite_in_its_own_dtype_alone_is_infeasible_to_zero_infinity(impl):
    # 4e38 is a number in float64 and none in float32: a loss that became 0 must not have a gradient.
    log_probs = torch.full((4, 1, 2), -1e38, requires_grad=True)
    loss = ctc_loss(log_probs, [[1]], [4], [1], reduction="sum", zero_infinity=True, impl=impl)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert loss == 0
    assert not gradient.any()
