"""Chains under autograd."""

from __future__ import annotations

from torch import Tensor

from pathsum.lattice import ChainLattice
from pathsum.torch._autograd.lattices import differentiable
from pathsum.torch._ops.arrays import as_tensor
from pathsum.torch._ops.chain import chain_backward, chain_forward, chain_hvp
from pathsum.torch._ops.registration import launched

triton_chain_forward, triton_chain_backward = launched(chain_forward), launched(chain_backward)
triton_chain_hvp = launched(chain_hvp)

differentiable(chain_forward, chain_backward, chain_hvp, num_inputs=2)
differentiable(triton_chain_forward, triton_chain_backward, triton_chain_hvp, num_inputs=2)


def chain_losses(
    scores: Tensor,
    lattice: ChainLattice,
    transitions: Tensor | None = None,
    *,
    logits: bool,
    by_logits: bool = False,
    impl: str,
) -> Tensor:
    """Losses (N,) in float64 of scores (N, T, C) by the kernels of numba, or of Triton.

    With ``by_logits`` backward gives, of log-probabilities, the gradient by the logits behind them.
    """
    forward = triton_chain_forward if impl == "triton" else chain_forward
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
    options = (lattice.start_state, lattice.num_final, lattice.shared_labels, logits, by_logits, False)
    return forward(scores, transitions, *tensors, *options)[0]
