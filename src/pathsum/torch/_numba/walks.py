"""Single walks through arc lattices on the CPU, of planes (K, rows) that are given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathsum.kernels.numba import grid_arcs_walks
from pathsum.kernels.protocol import Call, GridWalks, Kernels
from pathsum.torch._operators import from_arrays


class Walks(Kernels):
    def k_best(self, call: Call, k: int, outputs: Tensor | None = None) -> GridWalks:
        return from_arrays(grid_arcs_walks.k_best(**_question(call), k=k))

    def sample(self, call: Call, draws: Tensor) -> GridWalks:
        return from_arrays(grid_arcs_walks.sample_walks(**_question(call), draws=draws.numpy()))


def _question(call: Call) -> dict[str, Any]:
    """A call as the kernels are asked."""
    return {
        "planes": call.scores[0].detach().double().numpy(),
        "lattice": call.lattice,
        "skip_score": call.options.skip_score,
        "num_threads": torch.get_num_threads(),
    }
