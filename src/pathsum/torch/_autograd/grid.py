"""Grids under autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathsum.errors import GradientConsumedError
from pathsum.lattice import GridLattice
from pathsum.torch._autograd.common import Gradient, defined, grid_tensors, keep_losses_only, wants_gradient
from pathsum.torch._ops.grid import (
    grid_backward,
    grid_backward_over_scores,
    grid_forward,
    planes_backward,
    planes_forward,
)
from pathsum.torch._ops.registration import implementation


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
    """Losses (N,) in float64 of padded or packed scores."""
    options = (lattice.blank, logits, wants_gradient(scores), fastemit_lambda, clamp, overwrite_logits, impl)
    return _GridLosses.apply(scores, *grid_tensors(lattice), *options)[0]


def plane_losses(blank_scores: Tensor, label_scores: Tensor, lattice: GridLattice) -> Tensor:
    """Losses (N,) in float64 of the two score planes (rows,) of a grid by the numba kernels."""
    need_gradient = wants_gradient(blank_scores, label_scores)
    return _PlaneLosses.apply(blank_scores, label_scores, *grid_tensors(lattice), lattice.blank, need_gradient)[0]


class _GridLosses(torch.autograd.Function):
    @staticmethod
    def forward(scores: Tensor, *lattice_and_options: Any) -> tuple[Tensor, ...]:
        *lattice, blank, logits, need_gradient, _, _, _, impl = lattice_and_options
        return grid_forward(scores, *lattice, blank, logits, need_gradient, impl)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        scores, *lattice, blank, logits, _, fastemit_lambda, clamp, overwrite_logits, impl = inputs
        keep_losses_only(ctx, output)
        ctx.save_for_backward(None if overwrite_logits else scores, *lattice, *output)
        ctx.options = (blank, logits, fastemit_lambda, clamp)
        # A saved tensor that backward changes would fail its version check; this one is given up at first use.
        ctx.overwritten = scores.detach() if overwrite_logits else None
        ctx.overwrite_logits = overwrite_logits
        ctx.impl = impl

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        scores, *rest = ctx.saved_tensors
        lattice, saved = rest[:4], rest[4:]
        grad_losses = defined(grad_losses, saved[0])
        if not ctx.overwrite_logits:
            gradient = _GridGradient.apply(grad_losses, scores, *lattice, *ctx.options, *saved, ctx.impl)
            return gradient, *[None] * 11
        logits, ctx.overwritten = ctx.overwritten, None
        if logits is None:
            raise GradientConsumedError(
                "the gradient of this loss was written over its logits (overwrite_logits=True) by an earlier "
                "backward; a second one needs overwrite_logits=False"
            )
        write = implementation(grid_backward_over_scores, ctx.impl)
        write(grad_losses, logits, *lattice, *ctx.options, *saved)
        torch.autograd.graph.increment_version(logits)
        return logits.detach(), *[None] * 11


class _GridGradient(Gradient):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return grid_backward(*inputs)


class _PlaneLosses(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return planes_forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        keep_losses_only(ctx, output)
        ctx.save_for_backward(inputs[5], *output)
        ctx.dtypes = [plane.dtype for plane in inputs[:2]]

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_losses = defined(grad_losses, ctx.saved_tensors[1])
        gradients = _PlaneGradient.apply(grad_losses, *ctx.saved_tensors)
        return *(gradient.to(dtype) for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)), *[None] * 6


class _PlaneGradient(Gradient):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return planes_backward(*inputs)
