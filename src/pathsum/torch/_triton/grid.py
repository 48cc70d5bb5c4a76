"""Grids on a GPU: logits (N, T, U+1, V), or packed (rows, V)."""

# Lists of arguments are put together of tuples, whose lengths the checker does not know.
# pyright: reportCallIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathsum.kernels.protocol import Call, GridPath, GridSaved
from pathsum.lattice import GridLattice
from pathsum.torch._inputs import on_device
from pathsum.torch._lattices import GridOperators
from pathsum.torch._launch import best_path, grid, posteriors


class Grid(GridOperators):
    name = "triton_grid"
    reads_on_device = True

    def sent(self, lattice: GridLattice, device: torch.device) -> GridLattice:
        return on_device(lattice, device)

    def forward(self, call: Call, need_gradient: bool) -> GridSaved:
        return GridSaved(*grid.grid_forward(*_flat(call), *call.options, need_gradient))

    def backward(self, call: Call, saved: GridSaved, upstream: Tensor, needed: Sequence[bool]) -> tuple[Tensor]:
        return (grid.grid_backward(upstream, *_flat(call), *call.options, *saved, needed),)

    def write_gradient(self, call: Call, saved: GridSaved, upstream: Tensor, out: Tensor) -> None:
        """The gradient by the logits, written over them."""
        grid.grid_backward_over_scores(upstream, *_flat(call), *call.options[1:], *saved)

    def second(
        self, call: Call, saved: GridSaved, upstream: Tensor, tangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        (tangent,) = tangents
        tangent = torch.zeros_like(call.scores[0]) if tangent is None else tangent
        slopes, *products = grid.grid_hvp(tangent, upstream, *_flat(call), *call.options, *saved, needed)
        return slopes, products

    def best(self, call: Call) -> GridPath:
        (logits,), lattice = call.scores, self.sent(call.lattice, call.scores[0].device)
        return best_path.padded_grid(logits, lattice, num_labels=logits.shape[2] - 1, logits=call.options.softmax)

    def posteriors(self, call: Call) -> tuple[Tensor, ...]:
        lattice = self.sent(call.lattice, call.scores[0].device)
        return posteriors.grid_posteriors(call.scores[0], lattice, logits=call.options.softmax)


def _flat(call: Call) -> tuple[Any, ...]:
    own = call.lattice
    return *call.scores, own.logit_lengths, own.target_lengths, own.targets, own.row_offsets, own.blank
