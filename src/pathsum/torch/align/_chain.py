"""The best path through a chain, as tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from pathsum.kernels.numba import chain_best_path
from pathsum.kernels.numba.rows import strided
from pathsum.kernels.protocol import ChainPath
from pathsum.kernels.reference import chain_best_path as reference
from pathsum.lattice import ChainLattice
from pathsum.torch._inputs import on_device
from pathsum.torch._ops.arrays import as_array, as_table
from pathsum.torch._ops.registration import launches


def best_path(scores: Tensor, lattice: ChainLattice, transitions: Tensor | None, chosen: str) -> ChainPath:
    """The best path, as tensors on the scores' device."""
    if chosen == "numba":
        found = chain_best_path.best_path(
            strided(*as_array(scores)),
            scores.shape[2],
            lattice,
            None if transitions is None else as_table(transitions, scores),
            num_frames=scores.shape[1],
            num_threads=torch.get_num_threads(),
        )
        return ChainPath(*map(torch.from_numpy, found))
    own = on_device(lattice, scores.device)
    table = None if transitions is None else transitions.detach()
    if chosen == "triton":
        return launches("best_path").chain(scores.detach(), own, table)
    return reference.best_path(scores.detach(), own, table)


def labels_of(states: Tensor, lattice: ChainLattice) -> Tensor:
    """(N, T) class that the arc into each state emits; -1 where there is no state."""
    before = torch.cat([torch.full_like(states[:, :1], lattice.start_state), states[:, :-1]], 1)
    stay, step = (
        torch.from_numpy(labels).to(states.device).gather(1, states.clamp(min=0))
        for labels in (lattice.stay_labels, lattice.step_labels)
    )
    return torch.where(states < 0, -1, torch.where(states == before, stay, step))
