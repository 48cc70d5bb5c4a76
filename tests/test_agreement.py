"""The kernels against the reference in float64, over every loss, dtype, option and layout."""

import numpy as np
import pytest
import torch

from pathsum.testing import (
    assert_close,
    assert_same_bits,
    chain_inputs,
    concatenate_targets,
    grid_inputs,
    pack_rows,
    unpack_rows,
)
from pathsum.torch import rnnt_loss, rnnt_packed_loss
from support import CHAIN, DTYPES, assert_same, assert_within_bounds, chain_scores, solve, tensor, truth

# (T, N, C, S): all of them one; odd and ragged; few classes, so that labels repeat, more labels than fit; one class
# beyond a power of two, so that a vector loop has a remainder; more frames than one task of a thread.
CHAIN_SIZES = [(1, 1, 2, 1), (7, 3, 5, 3), (6, 4, 3, 5), (16, 4, 33, 8), (70, 2, 9, 12)]

# (N, T, U, V): all of them one; no label at all; odd and ragged; more labels than frames; one class beyond a power of
# two; longer.
GRID_SIZES = [(1, 1, 1, 2), (2, 3, 0, 3), (3, 7, 3, 5), (2, 2, 9, 4), (2, 8, 4, 33), (2, 40, 12, 6)]
GRID_BOUND = 5e-6


@pytest.mark.parametrize("size", CHAIN_SIZES, ids=str)
@pytest.mark.parametrize("fused", [False, True], ids=["log_probs", "logits"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", CHAIN)
def test_chain_losses(loss, dtype, fused, size):
    inputs = chain_inputs(*size, seed=sum(size))
    scores = chain_scores(inputs, DTYPES[dtype], fused)
    options = {"fused_log_softmax": fused}
    solved = solve(CHAIN[loss], scores, *inputs[1:], **options, impl="numba")
    assert solved.gradient.dtype == scores.dtype
    assert solved.loss.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    assert_within_bounds(solved, truth(CHAIN[loss], scores, *inputs[1:], **options), size[0])


@pytest.mark.parametrize("size", GRID_SIZES, ids=str)
@pytest.mark.parametrize("fused", [False, True], ids=["log_probs", "logits"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_grid_losses_padded_and_packed(dtype, fused, size):
    inputs = grid_inputs(*size, seed=sum(size))
    logits = tensor(inputs.logits)
    scores = (logits if fused else logits.log_softmax(-1)).to(DTYPES[dtype])
    options = {"fused_log_softmax": fused}
    padded = solve(rnnt_loss, scores, *inputs[1:], **options, impl="numba")
    assert padded.gradient.dtype == scores.dtype
    assert padded.loss.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    expected = truth(rnnt_loss, scores, *inputs[1:], **options)
    assert_within_bounds(padded, expected, size[1] + size[2], gradient_bound=GRID_BOUND)

    lengths = inputs.logit_lengths, inputs.target_lengths
    rows = torch.from_numpy(pack_rows(scores.float().numpy(), *lengths)).to(scores.dtype)
    if dtype == "float64":
        rows = torch.from_numpy(pack_rows(scores.numpy(), *lengths))
    packed = solve(rnnt_packed_loss, rows, *inputs[1:], **options, impl="numba")
    assert_same_bits(packed.loss, padded.loss)
    assert packed.gradient.dtype == scores.dtype
    wide = packed.gradient.double()
    assert_same_bits(unpack_rows(wide.numpy(), scores.shape, *lengths), padded.gradient.double().numpy())
    assert_close(truth(rnnt_packed_loss, rows, *inputs[1:], **options).loss, expected.loss, absolute=1e-11)


# First, middle, last, and each as counted from the end.
@pytest.mark.parametrize("blank", [0, 2, 4, -1, -5])
@pytest.mark.parametrize("loss", [*CHAIN, "rnnt"])
def test_any_class_may_be_the_blank(loss, blank):
    if loss == "rnnt":
        inputs, function = grid_inputs(3, 6, 4, 5, blank=blank, seed=7), rnnt_loss
    else:
        inputs, function = chain_inputs(9, 3, 5, 4, blank=blank, seed=7), CHAIN[loss]
    scores = tensor(inputs.logits, torch.float32)
    options = {"blank": blank, "fused_log_softmax": True}
    solved = solve(function, scores, *inputs[1:], **options, impl="numba")
    assert_within_bounds(solved, truth(function, scores, *inputs[1:], **options), 10)
    from_the_front = solve(function, scores, *inputs[1:], fused_log_softmax=True, blank=blank % 5)
    assert_same(solved, from_the_front)


@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("loss", [*CHAIN, "rnnt"])
def test_reductions_are_their_formulas(loss, zero_infinity):
    if loss == "rnnt":
        inputs, function = grid_inputs(4, 6, 3, 5, seed=8), rnnt_loss
        inputs.logit_lengths[2] = 0  # infeasible
        weights = np.ones(4)
    else:
        inputs, function = chain_inputs(9, 4, 5, 4, seed=8), CHAIN[loss]
        inputs.input_lengths[2] = 1  # infeasible
        inputs.target_lengths[1] = 0  # divides as 1 in the mean
        weights = np.maximum(inputs.target_lengths, 1)
    options = {"fused_log_softmax": True, "zero_infinity": zero_infinity}
    scores = tensor(inputs.logits)
    unit = solve(function, scores, *inputs[1:], **options)
    assert bool(unit.loss[2] == (0 if zero_infinity else torch.inf))
    axis = (-1, 1, 1, 1) if loss == "rnnt" else (1, -1, 1)
    for impl in ("numba", "reference"):
        for reduction, scale in (("none", np.ones(4)), ("sum", np.ones(4)), ("mean", 1 / weights / 4)):
            solved = solve(function, scores, *inputs[1:], **options, reduction=reduction, impl=impl)
            losses = unit.loss * tensor(scale)
            assert_close(solved.loss, losses if reduction == "none" else losses.sum(), relative=1e-12)
            assert_close(solved.gradient, unit.gradient * tensor(scale).reshape(axis), absolute=1e-12)


def forms_of(array, dtype=np.int64):
    """The same integers as everything that may hold them."""
    yield array.tolist()
    for width in (np.int32, np.int64):
        yield array.astype(width)
        yield torch.from_numpy(array.astype(width))
    yield torch.from_numpy(np.stack([array, array], -1).astype(dtype))[..., 0]  # strided


@pytest.mark.parametrize("loss", [*CHAIN, "rnnt"])
def test_integers_may_come_in_any_form(loss):
    if loss == "rnnt":
        inputs, function = grid_inputs(3, 6, 4, 5, seed=9), rnnt_loss
    else:
        inputs, function = chain_inputs(9, 3, 5, 4, seed=9), CHAIN[loss]
    scores, targets, lengths, target_lengths = tensor(inputs.logits, torch.float32), *inputs[1:]
    expected = solve(function, scores, targets, lengths, target_lengths)
    for form in (*forms_of(targets), *forms_of(concatenate_targets(targets, target_lengths))):
        assert_same(solve(function, scores, form, lengths, target_lengths), expected)
    for form in forms_of(lengths):
        assert_same(solve(function, scores, targets, form, target_lengths), expected)
    for form in forms_of(target_lengths):
        assert_same(solve(function, scores, targets, lengths, form), expected)


def layouts_of(scores):
    """The same values at other places in memory: transposed, every other one of a larger tensor, offset, channels."""
    dims = range(scores.ndim)
    yield scores.permute(*reversed(dims)).contiguous().permute(*reversed(dims))
    yield scores.transpose(0, 1).contiguous().transpose(0, 1)
    for dim in dims:
        yield torch.stack([scores, torch.full_like(scores, torch.nan)], dim + 1).select(dim + 1, 0)
    yield torch.cat([torch.full_like(scores[:1], torch.nan), scores])[1:]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("loss", [*CHAIN, "rnnt", "rnnt_packed"])
def test_strides_change_no_bit(loss, dtype):
    if loss in CHAIN:
        inputs, function = chain_inputs(9, 3, 5, 4, seed=10), CHAIN[loss]
        scores = tensor(inputs.logits, DTYPES[dtype])
    else:
        inputs, function = grid_inputs(3, 6, 4, 5, seed=10), rnnt_loss
        scores = tensor(inputs.logits, DTYPES[dtype])
        if loss == "rnnt_packed":
            function = rnnt_packed_loss
            scores = tensor(pack_rows(inputs.logits, *inputs[2:]), DTYPES[dtype])
    options = {"fused_log_softmax": True, "impl": "numba"}
    expected = solve(function, scores, *inputs[1:], **options)
    for layout in layouts_of(scores):
        assert layout.stride() != scores.stride() or layout.storage_offset() != scores.storage_offset()
        before = layout.clone()
        assert_same(solve(function, layout, *inputs[1:], **options), expected)
        assert_same_bits(layout, before)  # forward and backward wrote to no input


@pytest.mark.parametrize("loss", [*CHAIN, "rnnt"])
def test_expanded_scores_are_read_in_place_and_their_gradients_add_up(loss):
    # One frame's scores for all frames, and one sample's for all samples: strides of 0.
    for axis in (0, 1):
        if loss == "rnnt":
            inputs, function = grid_inputs(3, 5, 2, 4, seed=11), rnnt_loss
        else:
            inputs, function = chain_inputs(5, 3, 4, 2, seed=11), CHAIN[loss]
        small = tensor(inputs.logits).narrow(axis, 0, 1)

        def expanded(scores, *integers, shape=inputs.logits.shape, function=function, **options):
            return function(scores.expand(shape), *integers, **options)

        solved = solve(expanded, small, *inputs[1:], fused_log_softmax=True, impl="numba")
        assert_within_bounds(solved, truth(expanded, small, *inputs[1:], fused_log_softmax=True), 10)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("loss", CHAIN)
def test_batch_first_and_unbatched_are_the_same_loss(loss, dtype):
    inputs = chain_inputs(9, 3, 5, 4, seed=12)
    function, scores = CHAIN[loss], tensor(inputs.logits, DTYPES[dtype])
    options = {"fused_log_softmax": True}
    expected = solve(function, scores, *inputs[1:], **options)
    first = solve(function, scores.transpose(0, 1).contiguous(), *inputs[1:], **options, batch_first=True)
    assert_same_bits(first.loss, expected.loss)
    assert_same_bits(first.gradient.transpose(0, 1), expected.gradient)
    for n in range(3):
        frames, labels = int(inputs.input_lengths[n]), int(inputs.target_lengths[n])
        for target in (inputs.targets[n, :labels], inputs.targets[n : n + 1]):
            for lengths in ((frames, labels), (torch.tensor(frames), torch.tensor(labels)), ([frames], [labels])):
                alone = solve(function, scores[:, n], target, *lengths, **options)
                assert alone.loss.shape == ()
                assert_same_bits(alone.loss, expected.loss[n])
                assert_same_bits(alone.gradient, expected.gradient[:, n])
    mean = function(scores[:, 0], inputs.targets[:1], *(int(length[0]) for length in inputs[2:]), **options)
    assert_close(mean, expected.loss[0] / int(inputs.target_lengths[0]), relative=1e-6)


@pytest.mark.parametrize("impl", ["numba", "reference"])
@pytest.mark.parametrize("loss", [*CHAIN, "rnnt"])
def test_lengths_may_all_be_shorter_than_the_padded_sizes(loss, impl):
    # Three more frames and two more labels than any sample has, filled with NaN.
    if loss == "rnnt":
        inputs, function = grid_inputs(3, 6, 4, 5, seed=13), rnnt_loss
        inner = tuple(slice(size) for size in inputs.logits.shape)
        shape = (3, 9, 7, 5)
    else:
        inputs, function = chain_inputs(9, 3, 5, 4, seed=13), CHAIN[loss]
        inner = tuple(slice(size) for size in inputs.logits.shape)
        shape = (12, 3, 5)
    scores = tensor(inputs.logits, torch.float32)
    padded = torch.full(shape, torch.nan)
    padded[inner] = scores
    targets = np.pad(inputs.targets, ((0, 0), (0, 2)), constant_values=-1)
    options = {"fused_log_softmax": True, "impl": impl}
    expected = solve(function, scores, *inputs[1:], **options)
    solved = solve(function, padded, targets, *inputs[2:], **options)
    assert_same_bits(solved.loss, expected.loss)
    assert_same_bits(solved.gradient[inner], expected.gradient)
    assert not solved.gradient.isnan().any()
    assert solved.gradient.count_nonzero() == expected.gradient.count_nonzero()


# Off, at the scale of a training run, and large; clamp off by 0 and by -1, loose, tight.
@pytest.mark.parametrize("clamp", [-1, 0, 0.5, 0.01])
@pytest.mark.parametrize("fastemit_lambda", [0.0, 0.01, 2.0])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_fastemit_and_clamp(dtype, fastemit_lambda, clamp):
    inputs = grid_inputs(3, 6, 3, 5, seed=14, std=2.0)
    scores = tensor(inputs.logits, DTYPES[dtype])
    upstream = torch.tensor([1.0, -3.0, 0.25], dtype=torch.float64 if dtype == "float64" else torch.float32)
    for fused in (True, False):
        options = {"fastemit_lambda": fastemit_lambda, "clamp": clamp, "fused_log_softmax": fused}
        solved = solve(rnnt_loss, scores, *inputs[1:], **options, upstream=upstream, impl="numba")
        expected = truth(rnnt_loss, scores, *inputs[1:], **options, upstream=upstream.double())
        assert_within_bounds(solved, expected, 6, gradient_bound=3 * GRID_BOUND)
        plain = solve(rnnt_loss, scores, *inputs[1:], fused_log_softmax=fused)
        assert_same_bits(solved.loss, plain.loss)  # FastEmit and clamp leave the loss alone
        if clamp > 0:
            largest = (solved.gradient.double().abs().amax((1, 2, 3)) / upstream.double().abs()).max()
            assert largest <= clamp * 1.004
            if clamp == 0.01:
                assert largest > 0.009


def test_fastemit_scales_the_label_posteriors_alone():
    # By log-probabilities the gradient is minus the posteriors, so that the formula can be read off.
    inputs = grid_inputs(2, 5, 3, 4, seed=15, ragged=False)
    log_probs = tensor(inputs.logits).log_softmax(-1)
    plain = solve(rnnt_loss, log_probs, *inputs[1:], fused_log_softmax=False)
    weighted = solve(rnnt_loss, log_probs, *inputs[1:], fused_log_softmax=False, fastemit_lambda=0.75)
    scale = torch.tensor([1.75, 1.75, 1.75, 1.0], dtype=torch.float64)  # the blank is the last class
    assert_close(weighted.gradient, plain.gradient * scale, absolute=1e-15)


@pytest.mark.parametrize("need_gradient", [False, True])
@pytest.mark.parametrize("loss", [*CHAIN, "rnnt"])
def test_a_loss_without_gradient_is_the_same_loss(loss, need_gradient):
    # Without a gradient to prepare, forward keeps two rows of alpha instead of all.
    if loss == "rnnt":
        inputs, function = grid_inputs(3, 7, 4, 5, seed=16), rnnt_loss
    else:
        inputs, function = chain_inputs(9, 3, 5, 4, seed=16), CHAIN[loss]
    scores = tensor(inputs.logits, torch.float32)
    expected = solve(function, scores, *inputs[1:])
    assert_same_bits(function(scores, *inputs[1:], reduction="none"), expected.loss)
    with torch.no_grad():
        assert_same_bits(function(scores.requires_grad_(), *inputs[1:], reduction="none"), expected.loss)


@pytest.mark.parametrize("impl", ["numba", "reference"])
@pytest.mark.parametrize("loss", [*CHAIN, "rnnt", "rnnt_packed"])
def test_a_batch_of_no_samples(loss, impl):
    none = torch.zeros(0, dtype=torch.int64)
    function = CHAIN.get(loss) or {"rnnt": rnnt_loss, "rnnt_packed": rnnt_packed_loss}[loss]
    shape = {"rnnt": (0, 4, 3, 5), "rnnt_packed": (0, 5)}.get(loss, (4, 0, 5))
    targets = torch.zeros(0, 2, dtype=torch.int64)
    solved = solve(function, torch.zeros(shape), targets, none, none, impl=impl)
    assert solved.loss.shape == (0,)
    assert solved.gradient.shape == shape
    assert function(torch.zeros(shape), targets, none, none, reduction="sum", impl=impl) == 0


# U = 1030 is beyond what peers can do on a grid; S = 1100 is more states than a block of threads has elsewhere.
def test_more_than_a_thousand_labels():
    grid = grid_inputs(1, 3, 1030, 4, ragged=False)
    scores = tensor(grid.logits, torch.float32)
    expected = truth(rnnt_loss, scores, *grid[1:])
    assert_within_bounds(solve(rnnt_loss, scores, *grid[1:]), expected, 1033, gradient_bound=GRID_BOUND)

    chain = chain_inputs(1500, 1, 9, 1100, repeats=0.1, ragged=False)
    scores = tensor(chain.logits, torch.float32)
    logits = scores.double().requires_grad_()
    integers = [tensor(array, torch.int64) for array in chain[1:]]
    losses = torch.nn.functional.ctc_loss(logits.log_softmax(-1), *integers, reduction="none")
    losses.sum().backward()
    solved = solve(CHAIN["ctc"], scores, *chain[1:], fused_log_softmax=True)
    assert_close(solved.gradient, logits.grad, absolute=2e-6)
    assert_close(solved.loss, losses, relative=1e-7, absolute=4e-5)
    exact = solve(CHAIN["simple_ctc"], scores.double(), *chain[1:], fused_log_softmax=True)
    assert_within_bounds(solve(CHAIN["simple_ctc"], scores, *chain[1:], fused_log_softmax=True), exact, 1500)
