"""Best paths by the Triton kernels, interpreted, beside the reference's."""

import pytest
import torch

from pathsum.testing import assert_close, assert_same_bits, chain_inputs, grid_inputs
from pathsum.torch import asg_align, asg_viterbi, forced_align, rnnt_align, simple_ctc_align
from support import tensor
from triton_targets import interpreted  # noqa: F401

# (T, N, C, S): all of them one; odd and ragged; more labels than fit.
SIZES = [(1, 1, 2, 1), (7, 3, 5, 3), (4, 3, 3, 5)]


def case(*size, seed=0):
    inputs = chain_inputs(*size, seed=seed)
    scores = tensor(inputs.logits).log_softmax(-1).transpose(0, 1)
    return scores, [torch.from_numpy(array) for array in inputs[1:]]


def assert_agrees(align, *arguments, **options):
    solved, expected = (align(*arguments, **options, impl=impl) for impl in ("triton", "reference"))
    for actual, wanted in zip(solved, expected, strict=True):
        if actual.is_floating_point():
            assert_close(actual, wanted, absolute=1e-12, relative=1e-14)
        else:
            assert_same_bits(actual, wanted)


@pytest.mark.parametrize("align", [forced_align, simple_ctc_align])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_chains(align, size):
    scores, integers = case(*size, seed=sum(size))
    assert_agrees(align, scores, *integers)


def test_of_equally_good_paths_the_documented_one_is_found():
    _, integers = case(9, 2, 4, 3, seed=1)
    assert_agrees(forced_align, torch.zeros(2, 9, 4, dtype=torch.float64), *integers)
    inputs = grid_inputs(2, 4, 3, 4, seed=1)
    assert_agrees(rnnt_align, torch.zeros(inputs.logits.shape, dtype=torch.float64), *inputs[1:])
    assert_agrees(asg_viterbi, torch.zeros(2, 5, 3), torch.zeros(3, 3))


def test_long_chains_and_wide_grids_are_done_in_strips(monkeypatch):
    from pathsum.torch._triton import chain, grid

    for module in (chain, grid):
        monkeypatch.setattr(module, "STRIP", 4)
    scores, integers = case(12, 2, 4, 6, seed=2)
    assert_agrees(forced_align, scores, *integers)
    inputs = grid_inputs(2, 3, 9, 4, seed=2)
    assert_agrees(rnnt_align, tensor(inputs.logits), *inputs[1:])


def test_undefined_infeasible_and_empty_samples():
    scores, integers = case(5, 5, 4, 2, seed=3)
    integers[1][:] = torch.tensor([5, 1, 5, 0, 0])
    integers[2][:] = torch.tensor([2, 2, 2, 0, 1])
    integers[0][:] = torch.tensor([1, 2])
    scores = scores.contiguous()
    scores[2, 3, 1] = torch.nan
    scores[0, 2, 3] = -torch.inf
    assert_agrees(forced_align, scores, *integers)
    assert_agrees(simple_ctc_align, scores, *integers)


@pytest.mark.parametrize("fused", [False, True])
def test_grids(fused):
    for size in ((1, 1, 1, 2), (3, 5, 3, 5), (2, 3, 0, 3)):
        inputs = grid_inputs(*size, seed=sum(size))
        scores = tensor(inputs.logits) if fused else tensor(inputs.logits).log_softmax(-1)
        assert_agrees(rnnt_align, scores, *inputs[1:], fused_log_softmax=fused)


def test_grids_of_undefined_and_infeasible_samples():
    inputs = grid_inputs(4, 3, 2, 4, seed=4, ragged=False)
    inputs.logit_lengths[3] = 0
    scores = tensor(inputs.logits)
    scores[1, 1, 0, 0] = torch.nan
    scores[2, 1, :, -1] = -torch.inf
    assert_agrees(rnnt_align, scores, *inputs[1:], fused_log_softmax=True)


@pytest.mark.parametrize("size", [(1, 1, 2, 1), (5, 3, 5, 3), (4, 2, 70, 2)], ids=str)
def test_asg(size):
    scores, integers = case(*size, seed=sum(size))
    transitions = torch.randn(size[2], size[2], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_agrees(asg_align, scores, integers[0], transitions, *integers[1:])
    transitions[0, 1] = -torch.inf
    assert_agrees(asg_viterbi, scores, transitions, integers[1])


def test_viterbi_of_undefined_and_empty_samples():
    scores, _ = case(4, 3, 3, 1, seed=5)
    lengths = torch.tensor([4, 0, 1])
    scores = scores.contiguous()
    scores[0, 1, 2] = torch.nan
    assert_agrees(asg_viterbi, scores, torch.zeros(3, 3, dtype=torch.float64), lengths)
    arcs = torch.zeros(3, 3, dtype=torch.float64)
    arcs[1, 1] = torch.inf
    assert_agrees(asg_viterbi, scores, arcs, lengths)
