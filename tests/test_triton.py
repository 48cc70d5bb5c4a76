"""The Triton kernels, interpreted on the CPU, against the reference in float64."""

import pytest
import torch

from pathsum.compat import torch_functional
from pathsum.errors import GradientConsumedError, ImplementationError
from pathsum.testing import (
    assert_close,
    assert_rows_sum_to_zero,
    assert_same_bits,
    chain_inputs,
    grid_inputs,
    pack_rows,
    unpack_rows,
)
from pathsum.torch import rnnt_loss, rnnt_packed_loss
from support import CHAIN, Solved, assert_same, chain_scores, solve, tensor, truth
from support import assert_within_bounds as assert_within_rounded_bounds
from triton_targets import interpreted  # noqa: F401

# (N, T, U, V): all of them one; no label at all; odd and ragged; more labels than frames, one class beyond a block.
GRID_SIZES = [(1, 1, 1, 2), (2, 3, 0, 3), (3, 5, 3, 5), (2, 2, 6, 17)]


def assert_within_bounds(actual, expected, num_frames, *, gradient_bound=2e-6):
    """The documented bounds; but the interpreter cuts a bfloat16, which devices round: its last place counts."""
    if actual.gradient.dtype == torch.bfloat16:
        assert_close(actual.gradient, expected.gradient, relative=2.0**-7, absolute=gradient_bound)
        actual = Solved(actual.loss, expected.gradient.to(actual.loss.dtype))
    assert_within_rounded_bounds(actual, expected, num_frames, gradient_bound=gradient_bound)


@pytest.mark.parametrize(
    "size, dtype, fused",
    [
        *((size, torch.float32, True) for size in GRID_SIZES),
        *((GRID_SIZES[1], dtype, True) for dtype in (torch.float64, torch.bfloat16, torch.float16)),
        *((GRID_SIZES[1], dtype, False) for dtype in (torch.float32, torch.bfloat16)),
    ],
    ids=str,
)
def test_grid_losses_padded_and_packed(size, dtype, fused):
    inputs = grid_inputs(*size, seed=sum(size))
    logits = tensor(inputs.logits)
    scores = (logits if fused else logits.log_softmax(-1)).to(dtype)
    options = {"fused_log_softmax": fused}
    padded = solve(rnnt_loss, scores, *inputs[1:], **options, impl="triton")
    assert padded.gradient.dtype == dtype
    expected = truth(rnnt_loss, scores, *inputs[1:], **options)
    assert_within_bounds(padded, expected, size[1] + size[2], gradient_bound=5e-6)

    lengths = inputs.logit_lengths, inputs.target_lengths
    rows = torch.from_numpy(pack_rows(scores.double().numpy(), *lengths)).to(dtype)
    packed = solve(rnnt_packed_loss, rows, *inputs[1:], **options, impl="triton")
    assert_same_bits(packed.loss, padded.loss)
    unpacked = unpack_rows(packed.gradient.double().numpy(), scores.shape, *lengths)
    assert_same_bits(unpacked, padded.gradient.double().numpy())


def test_grid_gradients_are_weighted_as_asked():
    inputs = grid_inputs(3, 5, 3, 5, blank=1, seed=3)
    scores = tensor(inputs.logits, torch.float32)
    options = {"blank": 1, "fastemit_lambda": 0.3, "clamp": 0.1, "upstream": tensor([2.0, -1.0, 0.5], torch.float32)}
    solved = solve(rnnt_loss, scores, *inputs[1:], **options, impl="triton")
    assert_within_bounds(solved, truth(rnnt_loss, scores, *inputs[1:], **options), 8, gradient_bound=1e-5)
    assert float(solved.gradient.abs().max()) == pytest.approx(0.2)


def test_padding_is_not_read_and_its_gradient_is_zero():
    inputs = grid_inputs(3, 5, 3, 5, seed=4)
    inputs.logit_lengths[:], inputs.target_lengths[:] = [3, 5, 4], [3, 1, 2]
    inputs.targets[:] = [[0, 1, 2], [3, -1, -1], [1, 1, -1]]
    scores = tensor(inputs.logits, torch.float32)
    inside = torch.zeros(scores.shape, dtype=torch.bool)
    for n, (frames, labels) in enumerate(zip(*inputs[2:], strict=True)):
        inside[n, :frames, : labels + 1] = True
    clean = solve(rnnt_loss, scores, *inputs[1:], impl="triton")
    dirty = solve(rnnt_loss, torch.where(inside, scores, torch.nan), *inputs[1:], impl="triton")
    assert_same(dirty, clean)
    assert not clean.gradient[~inside].any()
    assert_rows_sum_to_zero(clean.gradient, absolute=1e-6)


def test_undefined_and_infeasible_samples_leave_the_others_alone():
    inputs = grid_inputs(4, 4, 2, 4, seed=5, ragged=False)
    inputs.logit_lengths[1] = 0
    scores = tensor(inputs.logits, torch.float32)
    expected = solve(rnnt_loss, scores, *inputs[1:], impl="triton")
    scores[2, 1, 1, 0] = torch.nan
    scores[3, 1, :, -1] = -torch.inf  # no blank leaves frame 1
    solved = solve(rnnt_loss, scores, *inputs[1:], impl="triton")
    assert_same_bits(solved.loss[0], expected.loss[0])
    assert_same_bits(solved.gradient[0], expected.gradient[0])
    assert solved.loss[1] == torch.inf
    assert not solved.gradient[1].any()
    assert solved.loss[2].isnan()
    assert solved.gradient[2].isnan().all()
    assert solved.loss[3] == torch.inf
    assert not solved.gradient[3].any()


def test_masked_classes_and_huge_logits():
    inputs = grid_inputs(2, 4, 2, 4, seed=6)
    scores = tensor(inputs.logits, torch.float64)
    scores[:, 1, 0, 0] = -torch.inf
    assert_within_bounds(solve(rnnt_loss, scores, *inputs[1:], impl="triton"), truth(rnnt_loss, scores, *inputs[1:]), 6)
    solved = solve(rnnt_loss, 1e10 * scores, *inputs[1:], impl="triton")
    assert_close(solved.loss, truth(rnnt_loss, 1e10 * scores, *inputs[1:]).loss, relative=1e-12)


def test_a_wide_grid_is_done_in_strips(monkeypatch):
    from pathsum.torch._triton import grid

    inputs = grid_inputs(2, 3, 9, 3, seed=7)
    scores = tensor(inputs.logits, torch.float32)
    whole = solve(rnnt_loss, scores, *inputs[1:], impl="triton")
    assert_within_bounds(whole, truth(rnnt_loss, scores, *inputs[1:]), 12, gradient_bound=5e-6)
    monkeypatch.setattr(grid, "STRIP", 4)
    assert_same(solve(rnnt_loss, scores, *inputs[1:], impl="triton"), whole)


@pytest.mark.parametrize("dims", [(3, 2, 1, 0), (1, 0, 2, 3)], ids=str)
def test_strided_logits_are_read_in_place(dims):
    inputs = grid_inputs(2, 4, 2, 16, seed=8)
    scores = tensor(inputs.logits, torch.float32)
    inverse = [dims.index(d) for d in range(4)]
    layout = scores.permute(*dims).contiguous().permute(*inverse)
    expected = solve(rnnt_loss, scores, *inputs[1:], impl="triton")
    assert_same(solve(rnnt_loss, layout, *inputs[1:], impl="triton"), expected)


def test_the_gradient_may_overwrite_the_logits():
    inputs = grid_inputs(2, 4, 2, 5, seed=9)
    scores = tensor(inputs.logits, torch.float32)
    expected = solve(rnnt_loss, scores, *inputs[1:], impl="triton")
    leaf = scores.clone().requires_grad_()
    logits = leaf * 1
    loss = rnnt_loss(logits, *inputs[1:], reduction="none", overwrite_logits=True, impl="triton")
    loss.sum().backward(retain_graph=True)
    assert_same_bits(leaf.grad, expected.gradient)
    assert_same_bits(logits.detach(), expected.gradient)
    with pytest.raises(GradientConsumedError):
        loss.sum().backward()


def test_without_a_gradient_the_loss_is_the_same():
    inputs = grid_inputs(2, 4, 2, 5, seed=10)
    scores = tensor(inputs.logits, torch.float32)
    expected = solve(rnnt_loss, scores, *inputs[1:], impl="triton").loss
    assert_same_bits(rnnt_loss(scores, *inputs[1:], reduction="none", impl="triton"), expected)


def test_triton_runs_where_it_can_or_says_why_not(monkeypatch):
    inputs = grid_inputs(1, 2, 1, 3)
    scores = tensor(inputs.logits, torch.float32)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ImplementationError, match="TRITON_INTERPRET"):
        rnnt_loss(scores, *inputs[1:], impl="triton")


# (T, N, C, S): all of them one; odd and ragged; few classes, so that labels repeat, more labels than fit; one class
# beyond a block.
CHAIN_SIZES = [(1, 1, 2, 1), (5, 3, 5, 3), (4, 3, 3, 5), (9, 2, 17, 3)]


@pytest.mark.parametrize("loss", CHAIN)
@pytest.mark.parametrize(
    "size, dtype, fused",
    [
        *((size, torch.float32, True) for size in CHAIN_SIZES),
        *((CHAIN_SIZES[1], dtype, True) for dtype in (torch.float64, torch.bfloat16, torch.float16)),
        *((CHAIN_SIZES[1], dtype, False) for dtype in (torch.float32, torch.bfloat16)),
    ],
    ids=str,
)
def test_chain_losses(loss, size, dtype, fused):
    inputs = chain_inputs(*size, seed=sum(size))
    scores = chain_scores(inputs, dtype, fused)
    options = {"fused_log_softmax": fused}
    solved = solve(CHAIN[loss], scores, *inputs[1:], **options, impl="triton")
    assert solved.gradient.dtype == dtype
    assert_within_bounds(solved, truth(CHAIN[loss], scores, *inputs[1:], **options), size[0])


@pytest.mark.parametrize("loss", CHAIN)
def test_a_long_chain_is_done_in_strips(loss, monkeypatch):
    from pathsum.torch._triton import chain

    inputs = chain_inputs(9, 2, 4, 7, seed=2)
    scores = chain_scores(inputs, torch.float32)
    options = {"fused_log_softmax": True}
    whole = solve(CHAIN[loss], scores, *inputs[1:], **options, impl="triton")
    monkeypatch.setattr(chain, "STRIP", 4)
    assert_same(solve(CHAIN[loss], scores, *inputs[1:], **options, impl="triton"), whole)


def test_chains_beyond_the_narrow_pair_and_beside_it():
    inputs = chain_inputs(6, 3, 4, 2, seed=3, ragged=False)
    scores = chain_scores(inputs, torch.float32)
    scores[:, 1] *= 1e10
    scores[:, 2] -= 1e5
    options = {"fused_log_softmax": True}
    solved = solve(CHAIN["ctc"], scores, *inputs[1:], **options, impl="triton")
    assert_within_bounds(solved, truth(CHAIN["ctc"], scores, *inputs[1:], **options), 6)


def test_a_class_of_many_states_is_added_up_over_blocks():
    # All labels alike, so that with their blanks they are two classes, each of more states than a block.
    inputs = chain_inputs(40, 1, 2, 18, seed=4, ragged=False)
    scores = chain_scores(inputs, torch.float32)
    options = {"fused_log_softmax": True}
    solved = solve(CHAIN["ctc"], scores, *inputs[1:], **options, impl="triton")
    assert_within_bounds(solved, truth(CHAIN["ctc"], scores, *inputs[1:], **options), 40)


@pytest.mark.parametrize("loss", CHAIN)
def test_chains_of_undefined_infeasible_and_empty_samples(loss):
    inputs = chain_inputs(5, 6, 4, 2, seed=5, ragged=False)
    inputs.input_lengths[:] = [5, 1, 5, 0, 0, 3]
    inputs.target_lengths[:] = [2, 2, 2, 0, 1, 0]
    scores = chain_scores(inputs, torch.float32)
    options = {"fused_log_softmax": True}
    scores[3, 2, 1] = torch.nan
    scores[3:, 5] = torch.nan  # padding
    scores[1, 0, 3] = -torch.inf
    solved = solve(CHAIN[loss], scores, *inputs[1:], **options, impl="triton")
    assert solved.loss[1] == torch.inf
    assert solved.loss[2].isnan()
    assert solved.loss[3] == 0
    assert solved.loss[4] == torch.inf
    assert solved.gradient[:, 2].isnan().all()
    for n in (0, 1, 3, 4, 5):
        alone = (scores[:, n : n + 1], *(array[n : n + 1] for array in inputs[1:]))
        expected = truth(CHAIN[loss], *alone, **options)
        assert_within_bounds(Solved(solved.loss[n : n + 1], solved.gradient[:, n : n + 1]), expected, 5)


def test_a_chain_without_a_gradient_has_the_same_loss():
    inputs = chain_inputs(5, 2, 4, 2, seed=6)
    scores = chain_scores(inputs, torch.float32)
    options = {"fused_log_softmax": True, "impl": "triton"}
    expected = solve(CHAIN["ctc"], scores, *inputs[1:], **options).loss
    assert_same_bits(CHAIN["ctc"](scores, *inputs[1:], **options, reduction="none"), expected)


def test_the_gradient_of_torchs_ctc():
    inputs = chain_inputs(5, 3, 6, 3, seed=6)
    log_probs = tensor(inputs.logits, torch.float32).log_softmax(2)
    solved = solve(torch_functional.ctc_loss, log_probs, *inputs[1:], impl="triton")
    assert_within_bounds(solved, truth(torch_functional.ctc_loss, log_probs, *inputs[1:]), 5)
