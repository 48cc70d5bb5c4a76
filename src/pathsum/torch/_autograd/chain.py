"""Chains under autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathsum.lattice import ChainLattice
from pathsum.torch._autograd.common import Gradient, as_tensor, defined, keep_losses_only, time_major, wants_gradient
from pathsum.torch._ops.chain import chain_backward, chain_forward, chain_transition_gradient


def chain_losses(
    scores: Tensor, lattice: ChainLattice, transitions: Tensor | None = None, *, logits: bool, impl: str
) -> Tensor:
    """Losses (N,) in float64 of scores (N, T, C)."""
    tensors = [
        None if array is None else as_tensor(array)
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
    options = (lattice.start_state, lattice.num_final, lattice.shared_labels, logits, need_gradient, impl)
    return _ChainLosses.apply(scores, transitions, *tensors, *options)[0]


class _ChainLosses(torch.autograd.Function):
    @staticmethod
    def forward(scores: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        return chain_forward(scores, *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        scores, transitions, *lattice, start_state, num_final, shared_labels, logits, _, impl = inputs
        keep_losses_only(ctx, output)
        ctx.save_for_backward(scores, transitions, *lattice, *output)
        ctx.options = (start_state, num_final, shared_labels)
        ctx.logits = logits
        ctx.impl = impl

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        scores, transitions, *rest = ctx.saved_tensors
        lattice, saved = rest[:7], rest[7:]
        grad_losses = defined(grad_losses, saved[0])
        gradient = transition_gradient = None
        if ctx.needs_input_grad[0]:
            gradient = _ChainGradient.apply(
                grad_losses, scores, *lattice[:5], *ctx.options, ctx.logits, *saved, time_major(scores), ctx.impl
            )
        if ctx.needs_input_grad[1]:
            transition_gradient = _ChainTransitionGradient.apply(
                grad_losses, transitions, *lattice, *ctx.options, *saved, ctx.impl
            )
        return gradient, transition_gradient, *[None] * 13


class _ChainGradient(Gradient):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return chain_backward(*inputs)


class _ChainTransitionGradient(Gradient):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return chain_transition_gradient(*inputs)
