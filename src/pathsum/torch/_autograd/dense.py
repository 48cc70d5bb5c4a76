"""Dense lattices under autograd."""

from __future__ import annotations

from torch import Tensor

from pathsum.lattice import DenseLattice
from pathsum.torch._autograd.lattices import differentiable
from pathsum.torch._ops.arrays import as_tensor
from pathsum.torch._ops.dense import dense_backward, dense_forward, dense_hvp
from pathsum.torch._ops.registration import launched

triton_dense_forward, triton_dense_backward = launched(dense_forward), launched(dense_backward)
triton_dense_hvp = launched(dense_hvp)

differentiable(dense_forward, dense_backward, dense_hvp, num_inputs=2)
differentiable(triton_dense_forward, triton_dense_backward, triton_dense_hvp, num_inputs=2)


def dense_losses(scores: Tensor, lattice: DenseLattice, transitions: Tensor, *, impl: str) -> Tensor:
    """Losses (N,) in float64 of scores (N, T, C) and transitions (C, C) by the kernels of numba, or of Triton."""
    forward = triton_dense_forward if impl == "triton" else dense_forward
    return forward(scores, transitions, as_tensor(lattice.input_lengths), False)[0]
