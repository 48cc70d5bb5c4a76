"""ASG's numbers: long inputs, and both sides of each switch from plain floats to extended range."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from pathsum.kernels.numba import dense, dense_linear
from pathsum.kernels.numba.rows import strided
from pathsum.lattice import DenseLattice
from pathsum.testing import assert_close
from pathsum.torch import asg_loss
from support import tensor

pytestmark = pytest.mark.filterwarnings("ignore:asg_loss. the target")

BIT = np.log(2.0)
# The truth's logarithms, of some 1e4, are themselves off by 1e-12 in float64.
BOUND = {np.float32: 1e-6, np.float64: 1e-11}


def solve(scores, transitions, upstream=1.0):
    """The numba kernels on one sample (T, C): loss, both gradients, whether extended range was used."""
    lattice = DenseLattice(np.array([len(scores)]), scores.shape[1])
    view, out = strided(scores[None]), np.empty_like(scores[None])
    saved = dense.forward(view, scores.shape[1], lattice, transitions, need_gradient=True, num_threads=1)
    grad = np.array([upstream])
    dense.backward(grad, scores.shape[1], lattice, saved, strided(out), len(scores), num_threads=1)
    counts = dense.transition_gradient(grad, view, scores.shape[1], lattice, transitions, saved, num_threads=1)
    return saved.losses[0], out[0], counts, bool(saved.extended[0])


def truth(scores, transitions):
    """The same in float64 by a recursion of logarithms, and autograd."""
    scores, transitions = (tensor(x).requires_grad_() for x in (scores, transitions))
    alpha = scores[0]
    for row in scores[1:]:
        terms = alpha + transitions
        largest = terms.detach().amax(1).clamp(min=-1e300)
        alpha = row + torch.where(terms == -torch.inf, 0.0, (terms - largest[:, None]).exp()).sum(1).log() + largest
    loss = -alpha.logsumexp(0)
    loss.backward()
    return loss.item(), scores.grad.nan_to_num(0.0).numpy(), transitions.grad.nan_to_num(0.0).numpy()


def check(scores, transitions, extended):
    bound = BOUND[scores.dtype.type]
    loss, gradient, counts, was_extended = solve(scores, transitions)
    expected, expected_gradient, expected_counts = truth(scores, transitions)
    assert was_extended == extended
    assert_close(loss, expected, relative=1e-7 if scores.dtype == np.float32 else 1e-13)
    assert_close(gradient, expected_gradient, absolute=bound)
    assert_close(counts, expected_counts, absolute=bound * len(scores))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("share, extended", [(0.99, False), (1.01, True)])
# One transition far up or far down; or the diagonals, which are otherwise taken out of the matrix.
@pytest.mark.parametrize("outlier", ["one up", "one down", "diagonal up", "diagonal down"])
@pytest.mark.parametrize("std", [1.0, 40.0])
def test_both_sides_of_the_limit_on_the_spread_of_transitions(dtype, share, extended, outlier, std):
    random = np.random.default_rng(3)
    scores = (random.standard_normal((40, 6)) * std).astype(dtype)
    reach = share * dense_linear.SPREAD_BITS[dtype] * BIT * (1 if outlier.endswith("up") else -1)
    transitions = np.zeros((6, 6), dtype)
    transitions[(4, 1) if outlier.startswith("one") else np.diag_indices(6)] = reach
    check(scores, transitions, extended)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("share, extended", [(0.95, False), (1.05, True), (3.0, True)])
def test_a_state_far_behind_can_be_all_that_is_left(dtype, share, extended):
    # Two labels without a way between them. The first leads by so many bits half way, the second by one at the end.
    lead = share * dense_linear.WATCH_BITS[dtype] * BIT
    scores = np.zeros((20, 2), dtype)
    scores[:10, 0] = lead / 10
    scores[10:, 1] = lead / 10 + 0.01
    transitions = np.array([[0, -np.inf], [-np.inf, 0]], dtype)
    check(scores, transitions, extended)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("forbidden, extended", [(False, False), (True, True)])
def test_peaked_scores(dtype, forbidden, extended):
    # Scores far apart are harmless where every label can follow every other, and not where one cannot.
    random = np.random.default_rng(5)
    scores = (random.standard_normal((30, 5)) * 1e4).astype(dtype)
    transitions = random.standard_normal((5, 5)).astype(dtype)
    if forbidden:
        transitions[2, 3] = -np.inf
    check(scores, transitions, extended)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_transitions_of_1e4_that_compete(dtype):
    random = np.random.default_rng(7)
    scores = random.standard_normal((25, 4)).astype(dtype)
    transitions = random.choice([-1e4, 0, 1e4], (4, 4)).astype(dtype)
    transitions[0, 1] = -np.inf
    check(scores, transitions, True)


@pytest.mark.parametrize("impl", ["numba", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_transitions_of_1e4_in_the_whole_loss(impl, dtype):
    # All ways have the same transitions. Among all sequences the middle label is 1 with odds of e to 1, and so it is
    # among the two ways through the target, 0 0 1 and 0 1 1; the ends are free in the first case, 0 and 1 here.
    inputs = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=dtype)[:, None].requires_grad_()
    transitions = torch.full((2, 2), 1e4, dtype=dtype)
    loss = asg_loss(inputs, [[0, 1]], transitions, impl=impl)
    loss.backward()
    assert_close(loss, np.log(4), absolute=1e-6 if dtype == torch.float32 else 1e-10)
    assert_close(inputs.grad[:, 0], [[-0.5, 0.5], [0, 0], [0.5, -0.5]], absolute=1e-6)


@pytest.mark.parametrize("impl", ["numba", "reference"])
def test_no_way_at_all(impl):
    inputs = torch.zeros(3, 2, 2).requires_grad_()
    transitions = torch.full((2, 2), -torch.inf).requires_grad_()
    loss = asg_loss(inputs, [[0, 1], [0, -1]], transitions, [3, 1], [2, 1], "none", impl=impl)
    loss.sum().backward()
    assert loss[0] == torch.inf
    assert_close(loss[1], np.log(2.0), absolute=1e-7)
    assert not inputs.grad[:, 0].any()
    assert not transitions.grad.any()


@pytest.mark.parametrize("kind", ["no preference", "random", "stays", "almost always stays", "trained"])
@pytest.mark.parametrize("num_frames", [5000, 10000])
def test_long_inputs_stay_within_the_bounds(kind, num_frames):
    random = np.random.default_rng(num_frames)
    num_classes, num_labels = 30, num_frames // 20
    inputs = random.standard_normal((num_frames, 1, num_classes)).astype(np.float32)
    transitions = random.standard_normal((num_classes, num_classes))
    transitions *= kind != "no preference"
    transitions += np.eye(num_classes) * {"stays": 5, "almost always stays": 12}.get(kind, 0)
    targets = random.integers(0, num_classes, (1, num_labels))
    if kind == "trained":
        inputs[np.arange(num_frames), 0, targets[0, np.arange(num_frames) * num_labels // num_frames]] += 12
    transitions = transitions.astype(np.float32)

    def run(dtype):
        leaves = [tensor(x, dtype).requires_grad_() for x in (inputs, transitions)]
        loss = asg_loss(leaves[0], targets, leaves[1])
        loss.backward()
        return loss.item(), *(leaf.grad for leaf in leaves)

    loss, gradient, counts = run(torch.float32)
    expected, expected_gradient, expected_counts = run(torch.float64)
    assert_close(loss, expected, relative=1e-7, absolute=1e-6 * num_frames**0.5)
    assert_close(gradient, expected_gradient, absolute=2e-6)
    scale = expected_arc_counts(inputs, transitions, targets)
    assert_close(counts.numpy() / scale, expected_counts.numpy() / scale, absolute=2e-6)


def expected_arc_counts(inputs, transitions, targets):
    """How often each arc is passed, by all sequences or by those of the target: at least 1."""
    scores, table = inputs[:, 0].astype(np.float64), transitions.astype(np.float64)
    *_, everything, _ = solve(scores, table)
    leaf = tensor(transitions).requires_grad_()
    asg_loss(tensor(inputs), targets, leaf).backward()
    return np.maximum(np.maximum(-everything, -everything - leaf.grad.numpy()), 1.0)


UNCOMPILED = """
import torch
from pathsum.testing import assert_close
from pathsum.torch import asg_loss
torch.manual_seed(0)
inputs, targets = torch.randn(5, 5, 3), [[0, 1, 2]] * 5
for spread in (1.0, 1e4):
    for dtype in (torch.float32, torch.float64):
        results = []
        for impl in ("numba", "reference"):
            leaves = [x.to(dtype).requires_grad_() for x in (inputs, torch.eye(3) * spread)]
            loss = asg_loss(leaves[0], targets, leaves[1], [5, 4, 1, 0, 3], [3, 1, 1, 0, 2], "none", impl=impl)
            loss.sum().backward()
            results.append([loss, *(leaf.grad for leaf in leaves)])
        for actual, expected in zip(*results):
            assert_close(actual, expected, relative=2e-7, absolute=2e-6)
"""


def test_the_kernels_run_uncompiled():
    # What an index out of bounds or an overflow does is an error there, and silence in compiled code.
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", UNCOMPILED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
