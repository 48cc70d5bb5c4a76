"""Grids under autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathsum.errors import GradientConsumedError
from pathsum.lattice import GridLattice
from pathsum.torch._autograd.lattices import differentiable, grid_tensors
from pathsum.torch._autograd.operators import refuse_graph
from pathsum.torch._ops.grid import (
    grid_backward,
    grid_backward_over_scores,
    grid_forward,
    grid_hvp,
    planes_backward,
    planes_forward,
    planes_hvp,
)
from pathsum.torch._ops.registration import launched, launches

triton_grid_forward, triton_grid_backward = launched(grid_forward), launched(grid_backward)
triton_grid_hvp = launched(grid_hvp)

differentiable(grid_forward, grid_backward, grid_hvp, num_inputs=1)
differentiable(triton_grid_forward, triton_grid_backward, triton_grid_hvp, num_inputs=1)
differentiable(planes_forward, planes_backward, planes_hvp, num_inputs=2)


def grid_losses(
    scores: Tensor,
    lattice: GridLattice,
    *,
    logits: bool,
    fastemit_lambda: float,
    clamp: float,
    overwrite_logits: bool,
    impl: str,
) -> Tensor:
    """Losses (N,) in float64 of padded or packed scores by the kernels of numba, or of Triton."""
    options = (lattice.blank, logits, fastemit_lambda, clamp)
    need_gradient = overwrite_logits and torch.is_grad_enabled() and scores.requires_grad
    forward = triton_grid_forward if impl == "triton" else grid_forward
    if overwrite_logits:
        return _OverwritingLosses.apply(forward, scores, *grid_tensors(lattice), *options, need_gradient)[0]
    return forward(scores, *grid_tensors(lattice), *options, False)[0]


def plane_losses(blank_scores: Tensor, label_scores: Tensor, lattice: GridLattice) -> Tensor:
    """Losses (N,) in float64 of the two score planes (rows,) of a grid by the numba kernels."""
    return planes_forward(blank_scores, label_scores, *grid_tensors(lattice), lattice.blank, False)[0]


class _OverwritingLosses(torch.autograd.Function):
    """Not the operator's own derivative: an operator may not write to what it was not given to write to."""

    @staticmethod
    def forward(ctx: Any, operator: Any, scores: Tensor, *lattice_and_options: Any) -> tuple[Tensor, ...]:
        *lattice, blank, _, fastemit_lambda, clamp, _ = lattice_and_options
        output = operator(scores, *lattice_and_options)
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*lattice, *output)
        ctx.options = (blank, fastemit_lambda, clamp)
        ctx.over_scores = grid_backward_over_scores
        if operator is triton_grid_forward:
            ctx.over_scores = launches("grid").grid_backward_over_scores
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
        tensors = [tensor.detach() for tensor in ctx.saved_tensors]
        ctx.over_scores(grad_losses, logits, *tensors[:4], *ctx.options, *tensors[4:])
        torch.autograd.graph.increment_version(logits)
        return None, logits.detach(), *[None] * 9
