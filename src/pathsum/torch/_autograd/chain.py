"""Chains under autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathsum.lattice import ChainLattice
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
from pathsum.torch._ops.chain import chain_backward, chain_forward, chain_hvp


def chain_losses(scores: Tensor, lattice: ChainLattice, transitions: Tensor | None = None, *, logits: bool) -> Tensor:
    """Losses (N,) in float64 of scores (N, T, C) by the numba kernels."""
    tensors = [
        None if array is None else torch.from_numpy(array)
        for array in (
            lattice.input_lengths,
            lattice.num_states,
            lattice.stay_labels,
            lattice.step_labels,
            lattice.skips,
            lattice.stay_transitions,
            lattice.step_transitions,
        )
    ]
    need_gradient = wants_gradient(scores, transitions)
    options = (lattice.start_state, lattice.num_final, lattice.shared_labels, logits, need_gradient)
    return _ChainLosses.apply(scores, transitions, *tensors, *options)[0]


class _ChainLosses(torch.autograd.Function):
    @staticmethod
    def forward(scores: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        return chain_forward(scores, *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, start_state, num_final, shared_labels, logits, _ = inputs
        keep_losses_only(ctx, output)
        ctx.save_for_backward(*tensors, *output)
        ctx.options = (start_state, num_final, shared_labels, logits)

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        tensors, saved = ctx.saved_tensors[:9], constants(ctx.saved_tensors[9:])
        grad_losses = defined(grad_losses, saved[0])
        needed = ctx.needs_input_grad[:2]
        gradients = _ChainGradient.apply(grad_losses, *tensors, *ctx.options, *saved, time_major(tensors[0]), *needed)
        return *only(needed, gradients), *[None] * 12


class _ChainGradient(torch.autograd.Function):
    """Of the scores and of the transitions, each where needed."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return chain_backward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        tensors, options, saved, (ctx.time_major, *needed) = inputs[:10], inputs[10:14], inputs[14:19], inputs[19:]
        keep_needed(ctx, needed, output)
        ctx.save_for_backward(*tensors, *saved)
        ctx.options = options

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors, saved = ctx.saved_tensors[:10], ctx.saved_tensors[10:]
        products = _ChainProduct.apply(*tangents, *tensors, *ctx.options, *saved, ctx.time_major)
        return *only(ctx.needs_input_grad[:3], products), *[None] * 19


class _ChainProduct(HessianProduct):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return chain_hvp(*inputs)
