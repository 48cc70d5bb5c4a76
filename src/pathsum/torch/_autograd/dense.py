"""Dense lattices under autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathsum.lattice import DenseLattice
from pathsum.torch._autograd.common import Gradient, as_tensor, defined, keep_losses_only, time_major, wants_gradient
from pathsum.torch._ops.dense import dense_backward, dense_forward, dense_transition_gradient


def dense_losses(scores: Tensor, lattice: DenseLattice, transitions: Tensor, *, impl: str) -> Tensor:
    """Losses (N,) in float64 of scores (N, T, C) and transitions (C, C)."""
    need_gradient = wants_gradient(scores, transitions)
    return _DenseLosses.apply(scores, transitions, as_tensor(lattice.input_lengths), need_gradient, impl)[0]


class _DenseLosses(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return dense_forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        keep_losses_only(ctx, output)
        ctx.save_for_backward(*inputs[:3], *output)
        ctx.impl = inputs[4]

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        scores, transitions, input_lengths, *saved = ctx.saved_tensors
        grad_losses = defined(grad_losses, saved[0])
        gradient = transition_gradient = None
        if ctx.needs_input_grad[0]:
            gradient = _DenseGradient.apply(grad_losses, scores, input_lengths, *saved, time_major(scores), ctx.impl)
        if ctx.needs_input_grad[1]:
            transition_gradient = _DenseTransitionGradient.apply(
                grad_losses, scores, transitions, input_lengths, *saved, ctx.impl
            )
        return gradient, transition_gradient, None, None, None


class _DenseGradient(Gradient):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return dense_backward(*inputs)


class _DenseTransitionGradient(Gradient):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return dense_transition_gradient(*inputs)
