"""The fused joiner under autograd."""

from __future__ import annotations

from torch import Tensor

from pathsum.lattice import GridLattice
from pathsum.torch._autograd.lattices import FIRST_ONLY, differentiable, grid_tensors
from pathsum.torch._ops.joint import joint_backward, joint_forward, joint_hvp
from pathsum.torch._ops.registration import launched

triton_joint_forward, triton_joint_backward = launched(joint_forward), launched(joint_backward)

differentiable(joint_forward, joint_backward, joint_hvp, num_inputs=4)
differentiable(triton_joint_forward, triton_joint_backward, None, num_inputs=4, reason=FIRST_ONLY)


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
    impl: str,
) -> Tensor:
    """Losses (N,) in float64 of encoder, predictor, weight and bias by the kernels of numba, or of Triton."""
    forward = triton_joint_forward if impl == "triton" else joint_forward
    options = (lattice.blank, activation, tile_memory, rnnt_type, delay_penalty, fastemit_lambda, clamp, gate, False)
    return forward(*operands, *grid_tensors(lattice), *options)[0]
