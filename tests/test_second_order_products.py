"""Products with the Hessian of any function, beside torch's own Hessian and beside the covariance over all paths."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from pathsum.problems.ctc import pose_ctc
from pathsum.problems.rnnt import pose_rnnt
from pathsum.testing import assert_close, chain_inputs, enumerate_paths, grid_inputs
from pathsum.torch import ctc_loss, rnnt_loss
from pathsum.torch.second_order import (
    fisher_vector_product,
    gauss_newton_product,
    hessian,
    hessian_blocks,
    hessian_diagonal,
    hvp,
)
from support import IMPLEMENTATIONS, tensor

INTEGERS = ([[1, 2], [1, 1]], [4, 3], [2, 2])


def loss_by(impl, fused=True):
    return lambda scores: ctc_loss(scores, *INTEGERS, reduction="sum", fused_log_softmax=fused, impl=impl)


def expected_hessian(scores, fused=True):
    return torch.autograd.functional.hessian(loss_by("reference", fused), scores)


@pytest.fixture
def scores():
    return tensor(np.random.default_rng(3).standard_normal((4, 2, 3)))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("rows_per_block", [None, 1, 5, 100])  # all at once; each; a last block that is short; more
def test_hessian_is_torch_s(scores, impl, rows_per_block):
    expected = expected_hessian(scores)
    found = hessian(loss_by(impl), scores, rows_per_block=rows_per_block)
    assert_close(found, expected, absolute=1e-9)
    diagonal = hessian_diagonal(loss_by(impl), scores, rows_per_block=rows_per_block)
    assert_close(diagonal.flatten(), expected.view(24, 24).diagonal(), absolute=1e-9)
    blocks = list(hessian_blocks(loss_by(impl), scores, rows_per_block=rows_per_block))
    assert max(map(len, blocks)) <= (rows_per_block or 24)
    assert_close(torch.cat(blocks).view_as(expected), expected, absolute=1e-9)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_products_of_one_vector_and_of_several(scores, impl):
    expected = expected_hessian(scores).view(24, 24)
    vectors = torch.randn(3, 4, 2, 3, dtype=torch.float64)
    several = hvp(loss_by(impl), scores, vectors)
    assert_close(several.flatten(1), vectors.flatten(1) @ expected, absolute=1e-9)
    one = hvp(loss_by(impl), scores, vectors[0])
    assert_close(one, several[0], absolute=1e-12)
    assert not one.requires_grad


def test_products_of_several_inputs():
    weight, bias = torch.randn(3, 2, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    features = torch.randn(4, 2, 2, dtype=torch.float64)

    def loss(weight, bias):
        return ctc_loss(features @ weight.T + bias, *INTEGERS, fused_log_softmax=True, impl="reference")

    vectors = (torch.randn_like(weight), torch.randn_like(bias))
    expected = torch.autograd.functional.hvp(loss, (weight, bias), vectors)[1]
    for one, other in zip(hvp(loss, (weight, bias), vectors), expected, strict=True):
        assert_close(one, other, absolute=1e-9)


def test_what_the_loss_does_not_depend_on_has_no_curvature():
    x, y = torch.ones(2), torch.ones(3)
    products = hvp(lambda x, y: (x**3).sum(), (x, y), (x, y))
    assert products[0].tolist() == [6.0, 6.0]
    assert not products[1].any()
    assert not hvp(lambda x: 2 * x.sum(), x, x).any()


def test_questions_without_an_answer_are_refused(scores):
    with pytest.raises(ValueError, match="func must return one entry"):
        hvp(lambda x: x**2, scores, scores)
    with pytest.raises(ValueError, match="vectors must have the shapes"):
        hvp(loss_by("reference"), scores, scores[0])
    with pytest.raises(ValueError, match="rows_per_block must be at least 1"):
        hessian_blocks(loss_by("reference"), scores, rows_per_block=0)
    with pytest.raises(ValueError, match="vectors must have the shapes"):
        gauss_newton_product(loss_by("reference"), scores, scores, scores[0])


def covariance(lattice, sample, log_probs):
    """Of how often the paths of a sample use each score, (D, D), from the paths one by one."""
    paths = list(enumerate_paths(lattice, sample))
    counts = np.zeros((len(paths), *log_probs.shape))
    for path, count in zip(paths, counts, strict=True):
        for arc in path:
            count[(*arc.row, arc.label)] += 1
    counts = counts.reshape(len(paths), -1)
    weights = np.exp(counts @ log_probs.reshape(-1))
    return np.cov(counts, rowvar=False, aweights=weights, ddof=0)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("loss", ["ctc", "rnnt"])
def test_fisher_information_is_the_covariance_over_all_paths(impl, loss):
    if loss == "ctc":
        inputs = chain_inputs(4, 2, 3, 2, seed=2)
        scores = tensor(inputs.logits)
        lattice = pose_ctc(inputs.targets, inputs.input_lengths, inputs.target_lengths, 0)
        function, by_sample = ctc_loss, scores.transpose(0, 1)
    else:
        inputs = grid_inputs(2, 3, 2, 3, seed=2)
        scores = by_sample = tensor(inputs.logits)
        lattice = pose_rnnt(inputs.targets, inputs.logit_lengths, inputs.target_lengths, 2)
        function = rnnt_loss

    def total(scores):
        return function(scores, *inputs[1:], reduction="sum", fused_log_softmax=False, impl=impl)

    vector = torch.randn(scores.shape, dtype=torch.float64)
    found = fisher_vector_product(total, scores, vector)
    found, vector = (x.transpose(0, 1) if loss == "ctc" else x for x in (found, vector))
    for n in range(2):
        expected = covariance(lattice, n, by_sample[n].numpy()) @ vector[n].numpy().reshape(-1)
        assert_close(found[n].flatten(), expected, absolute=1e-9)
    assert (found * vector).sum() > 0


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_diagonal_of_log_probs_is_made_of_the_gradient(scores, impl):
    # As the documentation says: an arc is passed once or not at all.
    log_probs = scores.log_softmax(2)
    gradient = torch.func.grad(loss_by(impl, fused=False))(log_probs)
    assert_close(hessian_diagonal(loss_by(impl, fused=False), log_probs), gradient * (1 + gradient), absolute=1e-9)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_gauss_newton_leaves_out_the_network_s_own_curvature(impl):
    features = torch.randn(4, 2, 2, dtype=torch.float64)
    weights = torch.randn(3, 2, dtype=torch.float64, requires_grad=True), torch.randn(3, dtype=torch.float64)
    weights[1].requires_grad_()

    def network(weight, bias):
        return torch.tanh(features @ weight.T) + bias

    vectors = tuple(torch.randn_like(weight) for weight in weights)
    logits = network(*weights)
    found = gauss_newton_product(loss_by(impl), logits, weights, vectors)
    pushed = torch.func.jvp(network, weights, vectors)[1].detach()
    curved = torch.tensordot(expected_hessian(logits.detach()), pushed, dims=3)
    for one, other in zip(found, torch.autograd.grad(network(*weights), weights, curved), strict=True):
        assert_close(one, other, absolute=1e-9)


@pytest.fixture
def example():
    pytest.importorskip("soundfile")
    path = Path(__file__).parent.parent / "examples" / "hessian_free.py"
    spec = importlib.util.spec_from_file_location("hessian_free", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_lowers_its_loss(example):
    taken = example.train(steps=2, batch_size=2, width=8, iterations=3)
    assert all(step.after <= step.before for step in taken)
    assert taken[-1].after < taken[0].before
    assert taken[1].before == pytest.approx(taken[0].after, rel=1e-5)


def test_conjugate_gradients_solve_and_stop_at_negative_curvature(example):
    matrix = torch.tensor([[4.0, 1.0], [1.0, 3.0]])
    solution, products = example.conjugate_gradients(lambda x: matrix @ x, torch.tensor([1.0, 2.0]), 5)
    assert_close(matrix @ solution, [1.0, 2.0], absolute=1e-4)
    assert products == 2
    target = torch.tensor([1.0, 1.0])
    solution, products = example.conjugate_gradients(lambda x: -x, target, 5)
    assert solution.tolist() == target.tolist()
    assert products == 1
