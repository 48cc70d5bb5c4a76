"""What paths through a chain emit."""

from __future__ import annotations

import torch
from torch import Tensor

from pathsum.lattice import ChainLattice


def labels_of(states: Tensor, lattice: ChainLattice) -> Tensor:
    """(N, T) class that the arc into each state emits; -1 where there is no state."""
    before = torch.cat([torch.full_like(states[:, :1], lattice.start_state), states[:, :-1]], 1)
    stay, step = (
        torch.from_numpy(labels).to(states.device).gather(1, states.clamp(min=0))
        for labels in (lattice.stay_labels, lattice.step_labels)
    )
    return torch.where(states < 0, -1, torch.where(states == before, stay, step))
