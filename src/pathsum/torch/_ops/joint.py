"""Operators on grids whose scores a joiner makes."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pathsum.kernels.numba import grid, grid_arcs, joint
from pathsum.kernels.numba import joint_hvp as of_tiles
from pathsum.lattice import GridLattice
from pathsum.problems.rnnt_types import earliness, pose_rnnt_type
from pathsum.torch._ops.arrays import as_grid, fake_like, work_dtype
from pathsum.torch._ops.registration import fake, operator


@operator
def joint_forward(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    blank: int,
    activation: str,
    tile_memory: int,
    rnnt_type: str,
    delay_penalty: float,
    fastemit_lambda: float,
    clamp: float,
    gate: float | None,
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, blank and label posteriors, of logits made a tile at a time."""
    lattice = as_grid(logit_lengths, target_lengths, targets, row_offsets, blank)
    joiner = as_joiner(encoder, predictor, weight, bias, activation)
    losses, *posteriors = joint.forward(
        joiner,
        lattice,
        matmul_of(weight.dtype),
        rows_per_tile=joint.tile_rows(joiner, tile_memory),
        need_gradient=need_gradient,
        num_threads=torch.get_num_threads(),
        solve=_solve_of(lattice, rnnt_type, delay_penalty),
    )
    return torch.from_numpy(losses), torch.from_numpy(posteriors[0]), torch.from_numpy(posteriors[1])


@fake(joint_forward)
def _(encoder, predictor, weight, bias, logit_lengths, *_):
    losses = weight.new_empty(logit_lengths.shape[0], dtype=torch.float64)
    # Only backward reads what follows; its size depends on the lengths' values.
    context = torch.library.get_ctx()
    blank, label = (weight.new_empty(context.new_dynamic_size(), dtype=torch.float64) for _ in range(2))
    return losses, blank, label


@operator
def joint_backward(
    grad_losses: Tensor,
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    blank: int,
    activation: str,
    tile_memory: int,
    rnnt_type: str,
    delay_penalty: float,
    fastemit_lambda: float,
    clamp: float,
    gate: float | None,
    losses: Tensor,
    blank_posteriors: Tensor,
    label_posteriors: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients with respect to encoder, predictor, weight and bias."""
    joiner = as_joiner(encoder, predictor, weight, bias, activation)
    gradients = joint.backward(
        grad_losses.detach().numpy(),
        joiner,
        as_grid(logit_lengths, target_lengths, targets, row_offsets, blank),
        losses.numpy(),
        blank_posteriors.numpy(),
        label_posteriors.numpy(),
        matmul_of(weight.dtype),
        rows_per_tile=joint.tile_rows(joiner, tile_memory),
        fastemit_lambda=fastemit_lambda,
        clamp=clamp,
        gate=gate,
        num_threads=torch.get_num_threads(),
        blank_follows=rnnt_type == "constrained",
    )
    return gradients_as_tensors(gradients, weight.dtype)


@fake(joint_backward)
def _(grad_losses, encoder, predictor, weight, bias, *_):
    return tuple(map(fake_like, (encoder, predictor, weight, bias)))


@operator
def joint_hvp(
    encoder_tangent: Tensor | None,
    predictor_tangent: Tensor | None,
    weight_tangent: Tensor | None,
    bias_tangent: Tensor | None,
    grad_losses: Tensor,
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    blank: int,
    activation: str,
    tile_memory: int,
    rnnt_type: str,
    delay_penalty: float,
    fastemit_lambda: float,
    clamp: float,
    gate: float | None,
    losses: Tensor,
    blank_posteriors: Tensor,
    label_posteriors: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The derivative of <tangent, gradient> with respect to the upstream gradient and to the operands."""
    operands = (encoder, predictor, weight, bias)
    joiner = as_joiner(*operands, activation)
    given = (encoder_tangent, predictor_tangent, weight_tangent, bias_tangent)
    tangents = [
        torch.zeros_like(operand) if tangent is None else tangent
        for tangent, operand in zip(given, operands, strict=True)
    ]
    lattice = as_grid(logit_lengths, target_lengths, targets, row_offsets, blank)
    slopes, products = of_tiles.hvp(
        as_joiner(tangents[0], tangents[1], tangents[2], tangents[3], activation),
        grad_losses.detach().numpy(),
        joiner,
        lattice,
        losses.numpy(),
        blank_posteriors.numpy(),
        label_posteriors.numpy(),
        matmul_of(weight.dtype),
        arcs=lattice if rnnt_type == "regular" else pose_rnnt_type(lattice, rnnt_type),
        rows_per_tile=of_tiles.tile_rows(joiner, tile_memory),
        gate=gate,
        num_threads=torch.get_num_threads(),
        blank_follows=rnnt_type == "constrained",
    )
    return torch.from_numpy(slopes), *gradients_as_tensors(products, weight.dtype)


@fake(joint_hvp)
def _(encoder_tangent, predictor_tangent, weight_tangent, bias_tangent, grad_losses, *operands_and_rest):
    return fake_like(grad_losses), *map(fake_like, operands_and_rest[:4])


def gradients_as_tensors(gradients: joint.Joiner, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Those of encoder, predictor, weight and bias in the operands' dtype."""
    encoder, predictor, weight, bias = (torch.from_numpy(gradient).to(dtype) for gradient in gradients[:4])
    return encoder, predictor, weight, bias


def as_joiner(encoder: Tensor, predictor: Tensor, weight: Tensor, bias: Tensor, activation: str) -> joint.Joiner:
    """The operands as contiguous arrays of the dtype of arithmetic: themselves where they can be."""
    dtype = work_dtype(weight)
    operands = [operand.detach().to(dtype).contiguous().numpy() for operand in (encoder, predictor, weight, bias)]
    return joint.Joiner(operands[0], operands[1], operands[2], operands[3], joint.ACTIVATIONS[activation])


def _solve_of(lattice: GridLattice, rnnt_type: str, delay_penalty: float) -> joint.Solve:
    """How the planes of a type of transducer are solved: by the grid of two kinds where that is it."""
    if rnnt_type == "regular" and delay_penalty == 0:
        return grid.solve
    arcs = pose_rnnt_type(lattice, rnnt_type)
    return functools.partial(
        lambda blank, label, maxima, _, **options: grid_arcs.solve_two(blank, label, maxima, arcs, **options),
        label_bonus=delay_penalty * earliness(arcs, int(arcs.row_offsets[-1])) if delay_penalty else None,
    )


def matmul_of(dtype: torch.dtype) -> joint.Matmul:
    """torch's own product; of bfloat16 operands where the input is bfloat16."""

    def product(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
        factors = torch.from_numpy(left), torch.from_numpy(right)
        if dtype == torch.bfloat16:
            torch.from_numpy(out).copy_(torch.mm(factors[0].bfloat16(), factors[1].bfloat16()))
        else:
            torch.mm(*factors, out=torch.from_numpy(out))

    return product
