"""Operators on dense lattices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
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
    fake_like,
    work_dtype,
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
    context, work = torch.library.get_ctx(), work_dtype(scores)
    losses = scores.new_empty(input_lengths.shape[0], dtype=torch.float64)
    planes = (scores.new_empty([context.new_dynamic_size() for _ in range(2)], dtype=work) for _ in range(3))
    return losses, torch.empty_like(losses, dtype=torch.bool), *planes


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
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """The gradients (N, T, C), in the order of the scores' memory, and (C, C); of no size where not
    needed.
    """
    upstream, num_classes = grad_losses.detach().numpy(), scores.shape[2]
    lattice = DenseLattice(input_lengths.numpy(), num_classes)
    saved = _dense_saved(losses, extended, gamma, alpha, entering)
    gradient, transition_gradient = scores.new_empty(0), scores.new_empty(0)
    if needed[0]:
        gradient = empty_gradient(scores)
        dense.backward(
            upstream,
            num_classes,
            lattice,
            saved,
            strided(*as_array(gradient)),
            scores.shape[1],
            num_threads=torch.get_num_threads(),
        )
    if needed[1]:
        counts = _transition_gradient(grad_losses, scores, transitions, lattice, saved)
        transition_gradient = torch.from_numpy(counts).to(transitions.dtype)
    return gradient, transition_gradient


@fake(dense_backward)
def _(grad_losses, scores, transitions, input_lengths, losses, extended, gamma, alpha, entering, needed):
    return (
        fake_gradient(scores) if needed[0] else scores.new_empty(0),
        fake_like(transitions) if needed[1] else scores.new_empty(0),
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
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes of the losses (N,) along the tangents, where ``None`` is zeros; the products (N, T, C) and (C, C).

    The latter is zeros where not needed.
    """
    product = empty_gradient(scores)
    lattice = DenseLattice(input_lengths.numpy(), scores.shape[2])
    saved = _dense_saved(losses, extended, gamma, alpha, entering)
    both = transition_tangent is not None and needed[1]
    slopes, transition_product = kernels_hvp.hvp(
        grad_losses.detach().numpy(),
        strided(*as_tangent(tangent, scores)),
        None if transition_tangent is None else as_table(transition_tangent, scores),
        strided(*as_array(scores)),
        scores.shape[2],
        lattice,
        as_table(transitions, scores),
        saved,
        _transition_gradient(grad_losses, scores, transitions, lattice, saved) if both else None,
        strided(*as_array(product)),
        scores.shape[1],
        need_transitions=needed[1],
        num_threads=torch.get_num_threads(),
    )
    return torch.from_numpy(slopes), product, torch.from_numpy(transition_product).to(transitions.dtype)


@fake(dense_hvp)
def _(tangent, transition_tangent, grad_losses, scores, transitions, *_):
    return fake_like(grad_losses), fake_gradient(scores), fake_like(transitions)


def _transition_gradient(
    grad_losses: Tensor, scores: Tensor, transitions: Tensor, lattice: DenseLattice, saved: DenseSaved
) -> np.ndarray:
    return dense.transition_gradient(
        grad_losses.detach().numpy(),
        strided(*as_array(scores)),
        scores.shape[2],
        lattice,
        as_table(transitions, scores),
        saved,
        num_threads=torch.get_num_threads(),
    )


def _dense_saved(losses: Tensor, extended: Tensor, gamma: Tensor, alpha: Tensor, entering: Tensor) -> DenseSaved:
    return DenseSaved(losses.numpy(), extended.numpy(), gamma.numpy(), alpha.numpy(), entering.numpy())
