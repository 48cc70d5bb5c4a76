"""Alpha after a stretch of frames, of alpha before it, under autograd."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Stretch(Protocol):
    """Sweeps over the frames of a stretch, of scores (N, T, S') and alpha (N, 1 + S')."""

    def advance(self, scores: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha after the frames, and the rows that lead there."""
        ...

    def retreat(self, rows: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients by scores and alpha, of that by alpha after the frames."""
        ...

    def move(self, rows: Tensor, gradient: Tensor, *tangents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Along tangents of scores and alpha: how alpha after the frames moves, and how these gradients do."""
        ...


def advanced(scores: Tensor, alpha: Tensor, stretch: Stretch) -> Tensor:
    """Alpha (N, 1 + S') after the frames."""
    return _Advance.apply(scores, alpha, stretch)


class _Advance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, alpha: Tensor, stretch: Stretch) -> Tensor:
        after, rows = stretch.advance(scores.detach(), alpha.detach())
        ctx.save_for_backward(scores, alpha, rows)
        ctx.stretch = stretch
        return after

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return *_Retreat.apply(gradient, *ctx.saved_tensors, ctx.stretch), None


class _Retreat(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gradient: Tensor, scores: Tensor, alpha: Tensor, rows: Tensor, stretch: Stretch
    ) -> tuple[Tensor, Tensor]:
        # The gradients depend on scores and alpha, by way of the rows.
        ctx.save_for_backward(gradient, rows)
        ctx.stretch = stretch
        return stretch.retreat(rows, gradient.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *tangents: Tensor) -> tuple[Tensor | None, ...]:
        gradient, rows = ctx.saved_tensors
        moved, of_scores, of_alpha = ctx.stretch.move(rows, gradient.detach(), *tangents)
        return moved, of_scores, of_alpha, None, None
