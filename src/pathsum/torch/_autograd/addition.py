"""Scores that go into two lattices, under autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathsum.torch._ops.addition import add
from pathsum.torch._private import transformed

_LARGE = 2**16


def fork(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The scores twice; the two gradients of large ones, on the CPU, are added by ``add`` and not by torch.

    Where a graph is traced or a transform runs torch adds them: it knows more about its own sums.
    """
    by_torch = not scores.is_cpu or scores.numel() < _LARGE or torch.compiler.is_compiling() or transformed()
    return (scores, scores) if by_torch else _Fork.apply(scores)


class _Fork(torch.autograd.Function):
    @staticmethod
    def forward(scores: Tensor) -> tuple[Tensor, Tensor]:
        return scores.view_as(scores), scores.view_as(scores)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, first: Tensor | None, second: Tensor | None) -> Tensor | None:
        if first is None or second is None:
            return second if first is None else first
        return first + second if transformed() else _Sum.apply(first, second)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(first: Tensor, second: Tensor) -> Tensor:
        return add(first, second)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient
