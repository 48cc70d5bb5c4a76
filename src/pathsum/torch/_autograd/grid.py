"""Grids under autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathsum.errors import GradientConsumedError
from pathsum.lattice import GridLattice
from pathsum.torch._autograd.common import (
    HessianProduct,
    constants,
    defined,
    grid_tensors,
    keep_losses_only,
    refuse_graph,
    wants_gradient,
)
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
    need_gradient = wants_gradient(scores)
    options = (lattice.blank, logits, need_gradient, fastemit_lambda, clamp, overwrite_logits)
    return _GridLosses.apply(scores, *grid_tensors(lattice), *options)[0]


def plane_losses(blank_scores: Tensor, label_scores: Tensor, lattice: GridLattice) -> Tensor:
    """Losses (N,) in float64 of the two score planes (rows,) of a grid by the numba kernels."""
    need_gradient = wants_gradient(blank_scores, label_scores)
    return _PlaneLosses.apply(blank_scores, label_scores, *grid_tensors(lattice), lattice.blank, need_gradient)[0]


class _GridLosses(torch.autograd.Function):
    @staticmethod
    def forward(scores: Tensor, *lattice_and_options: Any) -> tuple[Tensor, ...]:
        *lattice, blank, logits, need_gradient, _, _, _ = lattice_and_options
        return grid_forward(scores, *lattice, blank, logits, need_gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        scores, *lattice, blank, logits, _, fastemit_lambda, clamp, overwrite_logits = inputs
        keep_losses_only(ctx, output)
        ctx.save_for_backward(None if overwrite_logits else scores, *lattice, *output)
        ctx.options = (blank, logits, fastemit_lambda, clamp)
        # A saved tensor that backward changes would fail its version check; this one is given up at first use.
        ctx.overwritten = scores.detach() if overwrite_logits else None
        ctx.overwrite_logits = overwrite_logits

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        scores, *rest = ctx.saved_tensors
        lattice, saved = rest[:4], constants(rest[4:])
        grad_losses = defined(grad_losses, saved[0])
        if not ctx.overwrite_logits:
            gradient = _GridGradient.apply(grad_losses, scores, *lattice, *ctx.options, *saved)
            return gradient, *[None] * 10
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
        blank, _, fastemit_lambda, clamp = ctx.options
        losses, maxima, sums, *posteriors = saved
        gradient = grid_backward_over_scores(
            grad_losses,
            logits,
            as_grid(lattice[0], lattice[1], lattice[2], lattice[3], blank),
            as_saved(losses, maxima, sums, posteriors[0], posteriors[1]),
            fastemit_lambda,
            clamp,
        )
        return gradient, *[None] * 10


class _GridGradient(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return grid_backward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, blank, logits, _, _, losses, maxima, sums, blank_posteriors, label_posteriors = inputs
        ctx.save_for_backward(*tensors, losses, maxima, sums, blank_posteriors, label_posteriors)
        ctx.options = (blank, logits)

    @staticmethod
    def backward(ctx: Any, tangent: Tensor) -> tuple[Tensor | None, ...]:
        tensors, saved = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
        slopes, product = _GridProduct.apply(tangent, *tensors, *ctx.options, *saved)
        return slopes, product, *[None] * 13


class _GridProduct(HessianProduct):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return grid_hvp(*inputs)


class _PlaneLosses(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return planes_forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        keep_losses_only(ctx, output)
        ctx.save_for_backward(*inputs[:6], *output)

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        planes, lattice, saved = ctx.saved_tensors[:2], ctx.saved_tensors[2:6], constants(ctx.saved_tensors[6:])
        gradients = _PlaneGradient.apply(defined(grad_losses, saved[0]), *planes, *lattice, *saved)
        return *(gradient.to(plane.dtype) for gradient, plane in zip(gradients, planes, strict=True)), *[None] * 6


class _PlaneGradient(torch.autograd.Function):
    @staticmethod
    def forward(grad_losses: Tensor, *planes_lattice_and_saved: Tensor) -> tuple[Tensor, ...]:
        return planes_backward(grad_losses, *planes_lattice_and_saved[5:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        # The planes are inputs for the sake of their derivative: the gradient itself is made of the posteriors alone.
        grad_losses, _, _, *lattice_and_saved = inputs
        ctx.save_for_backward(grad_losses, *lattice_and_saved)

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor) -> tuple[Tensor | None, ...]:
        return *_PlaneProduct.apply(*tangents, *ctx.saved_tensors), *[None] * 7


class _PlaneProduct(HessianProduct):
    @staticmethod
    def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
        return planes_hvp(*inputs)
