"""The fused joiner under autograd."""

from __future__ import annotations

from torch import Tensor

from pathsum.lattice import GridLattice
from pathsum.torch._autograd.lattices import differentiable, grid_tensors
from pathsum.torch._ops.joint import joint_backward, joint_forward, joint_hvp

differentiable(joint_forward, joint_backward, joint_hvp, num_inputs=4)


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
    options = (lattice.blank, activation, tile_memory, rnnt_type, delay_penalty, fastemit_lambda, clamp, gate, False)
    return joint_forward(*operands, *grid_tensors(lattice), *options)[0]
