"""Chains under autograd."""

from __future__ import annotations

from torch import Tensor

from pathsum.lattice import ChainLattice
from pathsum.torch._autograd.lattices import differentiable
from pathsum.torch._ops.arrays import as_tensor
from pathsum.torch._ops.chain import chain_backward, chain_forward, chain_hvp

differentiable(chain_forward, chain_backward, chain_hvp, num_inputs=2)


def chain_losses(scores: Tensor, lattice: ChainLattice, transitions: Tensor | None = None, *, logits: bool) -> Tensor:
    """Losses (N,) in float64 of scores (N, T, C) by the numba kernels."""
    tensors = [
        as_tensor(array)
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
    options = (lattice.start_state, lattice.num_final, lattice.shared_labels, logits, False)
    return chain_forward(scores, transitions, *tensors, *options)[0]
