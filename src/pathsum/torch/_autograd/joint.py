"""The fused joiner under autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathsum.lattice import GridLattice
from pathsum.torch._autograd.common import (
    HessianProduct,
    constants,
    defined,
    grid_tensors,
    keep_losses_only,
    wants_gradient,
)
from pathsum.torch._ops.joint import joint_backward, joint_forward, joint_hvp


def joint_losses(
    operands: tuple[Tensor, ...],
    lattice: GridLattice,
    *,
    activation: str,
    tile_memory: int,
    rnnt_type: str,
    delay_penalty: float,
    fastemit_lambda: float,
    clamp: float,
    gate: float | None,
) -> Tensor:
    """Losses (N,) in float64 of encoder, predictor, weight and bias by the numba kernels."""
    forward_options = (lattice.blank, activation, tile_memory, rnnt_type, delay_penalty, wants_gradient(*operands))
    options = (*forward_options, fastemit_lambda, clamp, gate)
    return _JointLosses.apply(*operands, *grid_tensors(lattice), *options)[0]


class _JointLosses(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        *operands_lattice_and_options, _, _, _ = inputs
        return joint_forward(*operands_lattice_and_options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, blank, activation, tile_memory, rnnt_type, _, _, fastemit_lambda, clamp, gate = inputs
        keep_losses_only(ctx, output)
        ctx.save_for_backward(*tensors, *output)
        ctx.options = (blank, activation, tile_memory, rnnt_type, fastemit_lambda, clamp, gate)

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        tensors, saved = ctx.saved_tensors[:8], constants(ctx.saved_tensors[8:])
        grad_losses = defined(grad_losses, saved[0])
        gradients = _JointGradient.apply(grad_losses, *tensors, *ctx.options, *saved)
        return *gradients, *[None] * 13


class _JointGradient(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return joint_backward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        tensors, (blank, activation, tile_memory, rnnt_type, _, _, gate), saved = inputs[:9], inputs[9:16], inputs[16:]
        ctx.save_for_backward(*tensors, *saved)
        ctx.options = (blank, activation, tile_memory, rnnt_type, gate)

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor) -> tuple[Tensor | None, ...]:
        tensors, saved = ctx.saved_tensors[:9], ctx.saved_tensors[9:]
        return *_JointProduct.apply(*tangents, *tensors, *ctx.options, *saved), *[None] * (11 + len(saved))


class _JointProduct(HessianProduct):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return joint_hvp(*inputs)
