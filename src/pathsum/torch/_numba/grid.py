"""Grids on the CPU: logits (N, T, U+1, V), or packed (rows, V)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathsum.kernels.numba import grid, grid_hvp, posteriors
from pathsum.kernels.numba.grid_best_path import best_path
from pathsum.kernels.protocol import Call, GridPath, GridSaved
from pathsum.lattice import GridLattice
from pathsum.torch._lattices import GridOperators
from pathsum.torch._operators import as_arrays, from_arrays, to_arrays, upstream_of
from pathsum.torch._ops.arrays import as_rows, empty_like


class Grid(GridOperators):
    name, device = "grid", "CPU"

    def read(self, lattice: GridLattice) -> GridLattice:
        return as_arrays(lattice)

    def forward(self, call: Call, need_gradient: bool) -> GridSaved:
        return from_arrays(grid.forward(**_question(call), need_gradient=need_gradient))

    def backward(self, call: Call, saved: GridSaved, upstream: Tensor, needed: Sequence[bool]) -> tuple[Tensor]:
        gradient = empty_like(call.scores[0])
        self.write_gradient(call, saved, upstream, gradient)
        return (gradient,)

    def write_gradient(self, call: Call, saved: GridSaved, upstream: Tensor, out: Tensor) -> None:
        """The gradient by the logits, written into a tensor of their layout, which may be themselves."""
        question = _question(call)
        grid.backward(
            upstream_of(upstream),
            saved=to_arrays(saved),
            **question,
            out=as_rows(out, call.lattice),
            fastemit_lambda=call.options.fastemit_lambda,
            clamp=call.options.clamp,
        )

    def second(
        self, call: Call, saved: GridSaved, upstream: Tensor, tangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> tuple[Tensor, tuple[Tensor]]:
        (logits,), (tangent,) = call.scores, tangents
        product = empty_like(logits)
        slopes = grid_hvp.hvp(
            as_rows(torch.zeros_like(logits) if tangent is None else tangent, call.lattice),
            upstream_of(upstream),
            saved=to_arrays(saved),
            out=as_rows(product, call.lattice),
            **_question(call),
        )
        return torch.from_numpy(slopes), (product,)

    def best(self, call: Call) -> GridPath:
        return from_arrays(best_path(**_question(call), num_labels=call.scores[0].shape[2] - 1))

    def posteriors(self, call: Call) -> tuple[Tensor, ...]:
        _, num_frames, width, _ = call.scores[0].shape
        found = posteriors.grid_posteriors(**_question(call), num_frames=num_frames, num_labels=width - 1)
        return tuple(map(torch.from_numpy, found))


def _question(call: Call) -> dict[str, Any]:
    """A call as the kernels are asked."""
    logits = call.scores[0]
    return {
        "rows": as_rows(logits, call.lattice),
        "num_classes": logits.shape[-1],
        "lattice": call.lattice,
        "logits": call.options.softmax,
        "num_threads": torch.get_num_threads(),
    }
