"""Dense lattices under autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathsum.lattice import DenseLattice
from pathsum.torch._autograd.common import (
    HessianProduct,
    constants,
    defined,
    keep_losses_only,
    keep_needed,
    only,
    time_major,
    wants_gradient,
)
from pathsum.torch._ops.dense import dense_backward, dense_forward, dense_hvp


def dense_losses(scores: Tensor, lattice: DenseLattice, transitions: Tensor) -> Tensor:
    """Losses (N,) in float64 of scores (N, T, C) and transitions (C, C) by the numba kernels."""
    input_lengths = torch.from_numpy(lattice.input_lengths)
    return _DenseLosses.apply(scores, transitions, input_lengths, wants_gradient(scores, transitions))[0]


class _DenseLosses(torch.autograd.Function):
    @staticmethod
    def forward(scores: Tensor, transitions: Tensor, input_lengths: Tensor, need_gradient: bool) -> tuple[Tensor, ...]:
        return dense_forward(scores, transitions, input_lengths, need_gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        keep_losses_only(ctx, output)
        ctx.save_for_backward(*inputs[:3], *output)

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        tensors, saved = ctx.saved_tensors[:3], constants(ctx.saved_tensors[3:])
        grad_losses = defined(grad_losses, saved[0])
        needed = ctx.needs_input_grad[:2]
        gradients = _DenseGradient.apply(grad_losses, *tensors, *saved, time_major(tensors[0]), *needed)
        return *only(needed, gradients), None, None


class _DenseGradient(torch.autograd.Function):
    """Of the scores and of the transitions, each where needed."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return dense_backward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.time_major, need_scores, need_transitions = inputs
        keep_needed(ctx, (need_scores, need_transitions), output)
        ctx.save_for_backward(*tensors, output[1])

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, transition_gradient = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        products = _DenseProduct.apply(
            *tangents, *tensors, *constants([transition_gradient]), ctx.time_major, needed[2]
        )
        return *only(needed, products), *[None] * 9


class _DenseProduct(HessianProduct):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return dense_hvp(*inputs)
