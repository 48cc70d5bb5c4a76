"""Lattices of graphs on the CPU: scores (N, T, C) and weights (W,)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathsum.kernels.numba import sparse, sparse_hvp, sparse_paths
from pathsum.kernels.protocol import Call, Kernels, SparsePath, SparseSaved
from pathsum.torch._lattices import SparseOperators
from pathsum.torch._operators import ArrayKernels, from_arrays
from pathsum.torch._ops.arrays import empty_gradient, memory_of, work_dtype


class Sparse(ArrayKernels, SparseOperators):
    name = "sparse"

    def forward(self, call: Call, need_gradient: bool) -> SparseSaved:
        return sparse.forward(**_question(call), options=call.options, need_gradient=need_gradient)

    def backward(
        self, call: Call, saved: SparseSaved, upstream: np.ndarray, needed: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        scores, weights = call.scores
        gradient, weight_gradient = None, None
        if needed[0]:
            gradient = _written(scores, lambda out: sparse.write_gradient(upstream, call.lattice, saved, out))
        if needed[1]:
            counts = sparse.weight_gradient(upstream, call.lattice, saved.counts)
            weight_gradient = torch.from_numpy(counts).to(weights.dtype)
        return gradient, weight_gradient

    def second(
        self,
        call: Call,
        saved: SparseSaved,
        upstream: np.ndarray,
        tangents: Sequence[Tensor | None],
        needed: Sequence[bool],
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        (scores, weights), (along, weights_along) = call.scores, tangents
        found = []

        def write(out: np.ndarray) -> None:
            found.extend(
                sparse_hvp.hvp(
                    upstream,
                    _as_numbers(scores.new_zeros(1).expand(scores.shape) if along is None else along),
                    _as_table(torch.zeros_like(weights) if weights_along is None else weights_along),
                    saved=saved,
                    out=out,
                    need_weights=needed[1],
                    **_question(call),
                )
            )

        product = _written(scores, write)
        slopes, of_weights = map(torch.from_numpy, found)
        return slopes, (product, of_weights.to(weights.dtype))

    def best(self, call: Call) -> SparsePath:
        found = sparse_paths.k_best(**_question(call), k=1)
        return from_arrays(SparsePath(*(values[:, 0] for values in found)))

    def posteriors(self, call: Call) -> tuple[Tensor, Tensor]:
        saved = sparse.forward(**_question(call), options=call.options, need_gradient=True)
        found = np.empty(call.scores[0].shape, saved.gamma.dtype)
        sparse.write_gradient(np.full(len(saved.losses), -1.0), call.lattice, saved, found)
        found[np.isnan(saved.losses)] = 0
        return torch.from_numpy(saved.losses), torch.from_numpy(found)


class Routes(Kernels):
    """Single paths through graphs."""

    def k_best(self, call: Call, k: int, outputs: Tensor | None = None) -> SparsePath:
        strings = None if outputs is None else outputs.numpy()
        return from_arrays(sparse_paths.k_best(**_question(call), k=k, outputs=strings))

    def sample(self, call: Call, draws: Tensor) -> SparsePath:
        return from_arrays(sparse_paths.sample_paths(**_question(call), draws=draws.numpy()))


def _question(call: Call) -> dict[str, Any]:
    """A call as the kernels are asked."""
    scores, weights = call.scores
    return {
        "scores": _as_numbers(scores),
        "lattice": call.lattice,
        "weights": _as_table(weights),
        "num_threads": torch.get_num_threads(),
    }


def _as_numbers(scores: Tensor) -> np.ndarray:
    """The memory of the scores; half precision as float32, of which no kernel takes more than its graph's classes."""
    return memory_of(scores.detach().to(work_dtype(scores)))


def _as_table(weights: Tensor) -> np.ndarray:
    return weights.detach().double().contiguous().numpy()


def _written(scores: Tensor, write: Any) -> Tensor:
    """A gradient (N, T, C) in the layout of the scores, that is written as an array."""
    dtype = work_dtype(scores)
    numbers = empty_gradient(scores) if scores.dtype == dtype else scores.new_empty(scores.shape, dtype=dtype)
    write(numbers.numpy())
    return numbers.to(scores.dtype)
