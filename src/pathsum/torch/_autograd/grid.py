"""Grids under autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathsum.errors import GradientConsumedError
from pathsum.lattice import GridLattice
from pathsum.torch._autograd.lattices import differentiable, grid_tensors
from pathsum.torch._autograd.operators import refuse_graph
from pathsum.torch._ops.arrays import as_grid, as_saved
from pathsum.torch._ops.grid import (
    grid_backward,
    grid_backward_over_scores,
    grid_forward,
    grid_hvp,
    planes_backward,
    planes_forward,
    planes_hvp,
)

differentiable(grid_forward, grid_backward, grid_hvp, num_inputs=1)
differentiable(planes_forward, planes_backward, planes_hvp, num_inputs=2)


def grid_losses(
    scores: Tensor,
    lattice: GridLattice,
    *,
    logits: bool,
    fastemit_lambda: float,
    clamp: float,
    overwrite_logits: bool,
) -> Tensor:
    """Losses (N,) in float64 of padded or packed scores by the numba kernels."""
    options = (lattice.blank, logits, fastemit_lambda, clamp)
    need_gradient = overwrite_logits and torch.is_grad_enabled() and scores.requires_grad
    solve = _OverwritingLosses.apply if overwrite_logits else grid_forward
    return solve(scores, *grid_tensors(lattice), *options, need_gradient)[0]


def plane_losses(blank_scores: Tensor, label_scores: Tensor, lattice: GridLattice) -> Tensor:
    """Losses (N,) in float64 of the two score planes (rows,) of a grid by the numba kernels."""
    return planes_forward(blank_scores, label_scores, *grid_tensors(lattice), lattice.blank, False)[0]


class _OverwritingLosses(torch.autograd.Function):
    """Not the operator's own derivative: an operator may not write to what it was not given to write to."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, *lattice_and_options: Any) -> tuple[Tensor, ...]:
        *lattice, blank, _, fastemit_lambda, clamp, _ = lattice_and_options
        output = grid_forward(scores, *lattice_and_options)
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*lattice, *output)
        ctx.options = (blank, fastemit_lambda, clamp)
        # A saved tensor that backward changes would fail its version check; this one is given up at first use.
        ctx.overwritten = scores.detach()
        return output

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        refuse_graph(
            "the gradient of a loss with overwrite_logits=True is written over the logits, which a second derivative "
            "needs; create_graph=True needs overwrite_logits=False"
        )
        logits, ctx.overwritten = ctx.overwritten, None
        if logits is None:
            raise GradientConsumedError(
                "the gradient of this loss was written over its logits (overwrite_logits=True) by an earlier "
                "backward; a second one needs overwrite_logits=False"
            )
        logit_lengths, target_lengths, targets, row_offsets, *saved = ctx.saved_tensors
        blank, fastemit_lambda, clamp = ctx.options
        lattice = as_grid(logit_lengths, target_lengths, targets, row_offsets, blank)
        losses, maxima, sums, first, second = (tensor.detach() for tensor in saved)
        kept = as_saved(losses, maxima, sums, first, second)
        gradient = grid_backward_over_scores(grad_losses, logits, lattice, kept, fastemit_lambda, clamp)
        return gradient, *[None] * 9
