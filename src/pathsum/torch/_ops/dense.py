"""Operators on dense lattices."""

from __future__ import annotations

import torch
from torch import Tensor

from pathsum.kernels.numba import dense
from pathsum.kernels.numba import dense_hvp as kernels_hvp
from pathsum.kernels.numba.rows import strided
from pathsum.kernels.protocol import DenseSaved
from pathsum.lattice import DenseLattice
from pathsum.torch._ops.arrays import (
    as_array,
    as_table,
    as_tangent,
    empty_gradient,
    fake_gradient,
    fake_results,
    fake_table,
)
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
    transitions: Tensor,
    input_lengths: Tensor,
    losses: Tensor,
    extended: Tensor,
    gamma: Tensor,
    alpha: Tensor,
    entering: Tensor,
    time_major: bool,
    need_scores: bool,
    need_transitions: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients (N, T, C), laid out in memory as (T, N, C) where ``time_major``, and (C, C); of no size where not
    needed.
    """
    upstream, num_classes = grad_losses.detach().numpy(), scores.shape[2]
    lattice = DenseLattice(input_lengths.numpy(), num_classes)
    saved = _dense_saved(losses, extended, gamma, alpha, entering)
    gradient, transition_gradient = scores.new_empty(0), scores.new_empty(0)
    if need_scores:
        gradient = empty_gradient(scores, time_major)
        dense.backward(
            upstream,
            num_classes,
            lattice,
            saved,
            strided(*as_array(gradient)),
            scores.shape[1],
            num_threads=torch.get_num_threads(),
        )
    if need_transitions:
        counts = dense.transition_gradient(
            upstream,
            strided(*as_array(scores)),
            num_classes,
            lattice,
            as_table(transitions, scores),
            saved,
            num_threads=torch.get_num_threads(),
        )
        transition_gradient = torch.from_numpy(counts).to(transitions.dtype)
    return gradient, transition_gradient


@fake(dense_backward)
def _(grad_losses, scores, transitions, input_lengths, losses, extended, gamma, alpha, entering, time_major,
      need_scores, need_transitions):  # fmt: skip
    return (
        fake_gradient(scores, time_major) if need_scores else scores.new_empty(0),
        fake_table(transitions) if need_transitions else scores.new_empty(0),
    )


@operator
def dense_hvp(
    tangent: Tensor | None,
    transition_tangent: Tensor | None,
    grad_losses: Tensor,
    scores: Tensor,
    transitions: Tensor,
    input_lengths: Tensor,
    losses: Tensor,
    extended: Tensor,
    gamma: Tensor,
    alpha: Tensor,
    entering: Tensor,
    transition_gradient: Tensor,
    time_major: bool,
    need_transitions: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes of the losses (N,) along the tangents, where ``None`` is zeros; the products (N, T, C) and (C, C).

    The latter is zeros where not needed. Beside a tangent of the transitions goes their gradient.
    """
    product = empty_gradient(scores, time_major)
    slopes, transition_product = kernels_hvp.hvp(
        grad_losses.detach().numpy(),
        strided(*as_tangent(tangent, scores)),
        None if transition_tangent is None else as_table(transition_tangent, scores),
        strided(*as_array(scores)),
        scores.shape[2],
        DenseLattice(input_lengths.numpy(), scores.shape[2]),
        as_table(transitions, scores),
        _dense_saved(losses, extended, gamma, alpha, entering),
        None if transition_tangent is None else as_table(transition_gradient, scores),
        strided(*as_array(product)),
        scores.shape[1],
        need_transitions=need_transitions,
        num_threads=torch.get_num_threads(),
    )
    return torch.from_numpy(slopes), product, torch.from_numpy(transition_product).to(transitions.dtype)


@fake(dense_hvp)
def _(tangent, transition_tangent, grad_losses, scores, transitions, input_lengths, losses, extended, gamma, alpha,
      entering, transition_gradient, time_major, need_transitions):  # fmt: skip
    return torch.empty_like(losses), fake_gradient(scores, time_major), fake_table(transitions)


def _dense_saved(losses: Tensor, extended: Tensor, gamma: Tensor, alpha: Tensor, entering: Tensor) -> DenseSaved:
    return DenseSaved(losses.numpy(), extended.numpy(), gamma.numpy(), alpha.numpy(), entering.numpy())
