"""Operators on dense lattices."""

from __future__ import annotations

import torch
from torch import Tensor

from pathsum.kernels.numba import dense
from pathsum.kernels.numba.rows import strided
from pathsum.kernels.protocol import DenseSaved
from pathsum.lattice import DenseLattice
from pathsum.torch._ops.arrays import as_array, as_table, empty_gradient, fake_gradient, fake_results, fake_table
from pathsum.torch._ops.registration import fake, operator


@operator
def dense_forward(
    scores: Tensor, transitions: Tensor, input_lengths: Tensor, need_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses, and what ``DenseSaved`` names, of scores (N, T, C) and transitions (C, C)."""
    array, encoding = as_array(scores)
    saved = dense.forward(
        strided(array, encoding),
        scores.shape[2],
        DenseLattice(input_lengths.numpy(), scores.shape[2]),
        as_table(transitions, scores),
        need_gradient=need_gradient,
        num_threads=torch.get_num_threads(),
    )
    losses, extended, gamma, alpha, entering = map(torch.from_numpy, saved)
    return losses, extended, gamma, alpha, entering


@fake(dense_forward)
def _(scores, transitions, input_lengths, need_gradient):
    losses, gamma, alpha, entering, _ = fake_results(scores, input_lengths.shape[0])
    return losses, losses.new_empty(losses.shape, dtype=torch.bool), gamma, alpha, entering


@operator
def dense_backward(
    grad_losses: Tensor,
    scores: Tensor,
    input_lengths: Tensor,
    losses: Tensor,
    extended: Tensor,
    gamma: Tensor,
    alpha: Tensor,
    entering: Tensor,
    time_major: bool,
) -> Tensor:
    """The gradient (N, T, C), laid out in memory as (T, N, C) where ``time_major``."""
    gradient = empty_gradient(scores, time_major)
    dense.backward(
        grad_losses.detach().numpy(),
        scores.shape[2],
        DenseLattice(input_lengths.numpy(), scores.shape[2]),
        _dense_saved(losses, extended, gamma, alpha, entering),
        strided(*as_array(gradient)),
        scores.shape[1],
        num_threads=torch.get_num_threads(),
    )
    return gradient


@fake(dense_backward)
def _(grad_losses, scores, input_lengths, losses, extended, gamma, alpha, entering, time_major):
    return fake_gradient(scores, time_major)


@operator
def dense_transition_gradient(
    grad_losses: Tensor,
    scores: Tensor,
    transitions: Tensor,
    input_lengths: Tensor,
    losses: Tensor,
    extended: Tensor,
    gamma: Tensor,
    alpha: Tensor,
    entering: Tensor,
) -> Tensor:
    """The gradient (C, C)."""
    array, encoding = as_array(scores)
    gradient = dense.transition_gradient(
        grad_losses.detach().numpy(),
        strided(array, encoding),
        scores.shape[2],
        DenseLattice(input_lengths.numpy(), scores.shape[2]),
        as_table(transitions, scores),
        _dense_saved(losses, extended, gamma, alpha, entering),
        num_threads=torch.get_num_threads(),
    )
    return torch.from_numpy(gradient).to(transitions.dtype)


@fake(dense_transition_gradient)
def _(grad_losses, scores, transitions, *_):
    return fake_table(transitions)


def _dense_saved(losses: Tensor, extended: Tensor, gamma: Tensor, alpha: Tensor, entering: Tensor) -> DenseSaved:
    return DenseSaved(losses.numpy(), extended.numpy(), gamma.numpy(), alpha.numpy(), entering.numpy())
