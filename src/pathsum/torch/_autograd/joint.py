"""The fused joiner under autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathsum.lattice import GridLattice
from pathsum.torch._autograd.common import Gradient, defined, grid_tensors, keep_losses_only, wants_gradient
from pathsum.torch._ops.joint import joint_backward, joint_forward


def joint_losses(
    operands: tuple[Tensor, Tensor, Tensor, Tensor],
    lattice: GridLattice,
    *,
    activation: str,
    tile_memory: int,
    rnnt_type: str,
    delay_penalty: float,
    fastemit_lambda: float,
    clamp: float,
    gate: float | None,
    impl: str,
) -> Tensor:
    """Losses (N,) in float64 of encoder, predictor, weight and bias."""
    forward_options = (lattice.blank, activation, tile_memory, rnnt_type, delay_penalty, wants_gradient(*operands))
    options = (*forward_options, fastemit_lambda, clamp, gate, impl)
    return _JointLosses.apply(*operands, *grid_tensors(lattice), *options)[0]


class _JointLosses(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        *operands_lattice_and_options, _, _, _, impl = inputs
        return joint_forward(*operands_lattice_and_options, impl)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, blank, activation, tile_memory, rnnt_type, _, _, fastemit_lambda, clamp, gate, impl = inputs
        keep_losses_only(ctx, output)
        ctx.save_for_backward(*tensors, *output)
        ctx.options = (blank, activation, tile_memory, rnnt_type, fastemit_lambda, clamp, gate)
        ctx.impl = impl

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        tensors, saved = ctx.saved_tensors[:8], ctx.saved_tensors[8:]
        grad_losses = defined(grad_losses, saved[0])
        gradients = _JointGradient.apply(grad_losses, *tensors, *ctx.options, *saved, ctx.impl)
        return *gradients, *[None] * 14


class _JointGradient(Gradient):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return joint_backward(*inputs)
