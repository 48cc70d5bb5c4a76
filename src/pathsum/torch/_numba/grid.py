"""Grids on the CPU: logits (N, T, U+1, V), or packed (rows, V)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathsum.kernels.numba import grid, grid_hvp, posteriors
from pathsum.kernels.numba.grid_best_path import best_path
from pathsum.kernels.protocol import Call, GridPath, GridSaved
from pathsum.torch._lattices import GridOperators
from pathsum.torch._operators import ArrayKernels, from_arrays
from pathsum.torch._ops.arrays import as_rows, empty_like


class Grid(ArrayKernels, GridOperators):
    name = "grid"

    def forward(self, call: Call, need_gradient: bool) -> GridSaved:
        return grid.forward(**_question(call), need_gradient=need_gradient)

    def backward(self, call: Call, saved: GridSaved, upstream: np.ndarray, needed: Sequence[bool]) -> tuple[Tensor]:
        return (self.write_gradient(call, saved, upstream),)

    def write_gradient(self, call: Call, saved: GridSaved, upstream: np.ndarray, out: Tensor | None = None) -> Tensor:
        """The gradient by the logits, in memory of its own or in a tensor of their layout, which may be themselves."""
        gradient = empty_like(call.scores[0]) if out is None else out
        rows, written = as_rows(call.lattice, call.scores[0], gradient)
        grid.backward(
            upstream,
            rows,
            call.scores[0].shape[-1],
            call.lattice,
            saved,
            written,
            logits=call.options.softmax,
            fastemit_lambda=call.options.fastemit_lambda,
            clamp=call.options.clamp,
            num_threads=torch.get_num_threads(),
        )
        return gradient

    def second(
        self, call: Call, saved: GridSaved, upstream: np.ndarray, tangents: Sequence[Tensor | None],
        needed: Sequence[bool],
    ) -> tuple[Tensor, tuple[Tensor]]:  # fmt: skip
        (logits,), (tangent,) = call.scores, tangents
        product = empty_like(logits)
        tangent = torch.zeros_like(logits) if tangent is None else tangent
        along, written = as_rows(call.lattice, tangent, product)
        slopes = grid_hvp.hvp(along, upstream, saved=saved, out=written, **_question(call))
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
    (rows,) = as_rows(call.lattice, logits)
    return {
        "rows": rows,
        "num_classes": logits.shape[-1],
        "lattice": call.lattice,
        "logits": call.options.softmax,
        "num_threads": torch.get_num_threads(),
    }
