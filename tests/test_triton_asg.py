"""The Triton kernels of dense lattices, and of chains with transitions, interpreted, against the reference."""

import pytest
import torch

from pathsum.testing import assert_close, assert_same_bits, chain_inputs
from pathsum.torch import asg_loss
from support import tensor
from triton_targets import interpreted  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:asg_loss. the target")


def solve(scores, transitions, inputs, impl, dtype=torch.float64, upstream=None, **options):
    """Loss, gradient by the scores and gradient by the transitions."""
    leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in (scores, transitions)]
    targets, lengths, target_lengths = inputs[1:]
    options = {"reduction": "none"} | options
    loss = asg_loss(leaves[0], targets, leaves[1], lengths, target_lengths, impl=impl, **options)
    loss.backward(torch.ones_like(loss) if upstream is None else upstream.to(loss.dtype))
    return loss.detach(), leaves[0].grad, leaves[1].grad


def case(*size, spread=1.0, seed=0):
    inputs = chain_inputs(*size, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    transitions = spread * torch.randn(size[2], size[2], generator=generator, dtype=torch.float64)
    return inputs, tensor(inputs.logits).float(), transitions.float()


def assert_agrees(solved, expected, bound):
    for actual, wanted, what in zip(solved, expected, ("loss", "gradient", "transitions"), strict=True):
        assert_close(actual, wanted, relative=1e-6 if bound > 1e-9 else 1e-12, absolute=bound, what=what)


# (T, N, C, S): one frame; odd and ragged; a matrix of a large tile, and of several.
@pytest.mark.parametrize("size", [(1, 1, 2, 1), (5, 3, 5, 3), (4, 2, 35, 2), (3, 1, 66, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_asg_losses(size, dtype):
    inputs, scores, transitions = case(*size, seed=sum(size))
    solved = solve(scores, transitions, inputs, "triton", dtype)
    expected = solve(scores, transitions, inputs, "reference")
    assert_agrees(solved, expected, 2e-6 if dtype == torch.float32 else 1e-11)
    assert solved[1].dtype == solved[2].dtype == dtype


# Transitions beyond the range of plain floats; scores beyond it, beside transitions that forbid.
@pytest.mark.parametrize("spread, forbidden, size", [(300.0, 0, 1.0), (1.0, 2, 400.0), (1e6, 1, 1e6)])
def test_lost_samples_are_solved_in_logarithms(spread, forbidden, size):
    inputs, scores, transitions = case(5, 3, 4, 2, spread=spread, seed=3)
    scores[:, :2] *= size
    transitions[torch.arange(forbidden), torch.arange(forbidden) + 1] = -torch.inf
    upstream = torch.tensor([1.0, -2.0, 0.5])
    solved = solve(scores, transitions, inputs, "triton", upstream=upstream)
    expected = solve(scores, transitions, inputs, "reference", upstream=upstream)
    assert_agrees(solved, expected, 1e-9)


def test_undefined_infeasible_and_empty_samples():
    inputs, scores, transitions = case(4, 4, 3, 2, seed=4)
    inputs.input_lengths[:] = [4, 1, 4, 0]
    inputs.target_lengths[:] = [2, 2, 1, 0]
    inputs.targets[:, :] = 1
    scores[2, 2, 0] = torch.nan
    upstream = torch.tensor([1.0, 1.0, 0.0, 1.0])
    solved = solve(scores, transitions, inputs, "triton", upstream=upstream)
    expected = solve(scores[:, :1], transitions, [array[:1] for array in inputs], "reference")
    assert_close(solved[0][:2], [float(expected[0][0]), torch.inf], relative=1e-12)
    assert solved[0][2].isnan()
    assert solved[0][3] == 0
    assert_close(solved[1][:, 0], expected[1][:, 0], absolute=1e-11)
    assert not solved[1][:, [1, 3]].any()
    assert_close(solved[2], expected[2], absolute=1e-11)


def test_an_undefined_transition_makes_all_samples_undefined_that_have_arcs():
    inputs, scores, transitions = case(3, 2, 3, 1, seed=5)
    inputs.input_lengths[:] = [3, 1]
    transitions[0, 0] = torch.nan
    loss, _, counts = solve(scores, transitions, inputs, "triton")
    assert loss[0].isnan()
    assert loss[1].isfinite()
    assert counts.isnan().all()


def test_a_long_target_is_done_in_strips(monkeypatch):
    from pathsum.torch._triton import chain

    inputs, scores, transitions = case(9, 2, 3, 7, seed=7)
    whole = solve(scores, transitions, inputs, "triton")
    monkeypatch.setattr(chain, "STRIP", 4)
    # At the seams masses are read back from words of 64 bits.
    assert_agrees(solve(scores, transitions, inputs, "triton"), whole, 1e-11)


def test_without_a_gradient_the_loss_is_the_same():
    inputs, scores, transitions = case(5, 2, 4, 2, seed=6)
    expected = solve(scores, transitions, inputs, "triton", torch.float32)[0]
    loss = asg_loss(scores, inputs[1], transitions, *inputs[2:], reduction="none", impl="triton")
    assert_same_bits(loss, expected)
