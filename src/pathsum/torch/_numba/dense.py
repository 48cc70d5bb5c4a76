"""Dense lattices on the CPU: scores (N, T, C) and transitions (C, C)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathsum.kernels.numba import dense, dense_hvp, posteriors
from pathsum.kernels.numba.dense_best_path import best_path
from pathsum.kernels.protocol import Call, DensePath, DenseSaved
from pathsum.torch._lattices import DenseOperators
from pathsum.torch._operators import ArrayKernels, from_arrays
from pathsum.torch._ops.arrays import (
    as_frames,
    as_gradient,
    as_table,
    as_tangent,
    empty_gradient,
    num_frames_of,
)


class Dense(ArrayKernels, DenseOperators):
    name, reads_frames_first = "dense", True

    def forward(self, call: Call, need_gradient: bool) -> DenseSaved:
        return dense.forward(**_question(call), need_gradient=need_gradient, relative=call.options.relative)

    def backward(
        self, call: Call, saved: DenseSaved, upstream: np.ndarray, needed: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        scores, transitions = call.scores
        gradient, transition_gradient = None, None
        if needed[1]:
            counts = dense.transition_gradient(upstream, saved=saved, **_question(call))
            transition_gradient = as_gradient(counts, transitions)
        if needed[0]:
            gradient = empty_gradient(scores)
            dense.backward(
                upstream,
                scores.shape[2],
                call.lattice,
                saved,
                as_frames(gradient, call.options.frames_first),
                num_frames_of(call),
                num_threads=torch.get_num_threads(),
            )
        return gradient, transition_gradient

    def second(
        self, call: Call, saved: DenseSaved, upstream: np.ndarray, tangents: Sequence[Tensor | None],
        needed: Sequence[bool],
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # fmt: skip
        (scores, transitions), (tangent, transition_tangent) = call.scores, tangents
        product = empty_gradient(scores)
        question, both = _question(call), transition_tangent is not None and needed[1]
        slopes, transition_product = dense_hvp.hvp(
            upstream,
            as_tangent(tangent, scores, call.options.frames_first),
            None if transition_tangent is None else as_table(transition_tangent, scores),
            saved=saved,
            transition_gradient=dense.transition_gradient(upstream, saved=saved, **question) if both else None,
            out=as_frames(product, call.options.frames_first),
            num_frames=num_frames_of(call),
            need_transitions=needed[1],
            **question,
        )
        return torch.from_numpy(slopes), (product, as_gradient(transition_product, transitions))

    def best(self, call: Call) -> DensePath:
        return from_arrays(best_path(**_question(call), num_frames=call.scores[0].shape[1]))

    def posteriors(self, call: Call) -> tuple[Tensor, ...]:
        found = posteriors.dense_posteriors(**_question(call), num_frames=call.scores[0].shape[1])
        return tuple(map(torch.from_numpy, found))


def _question(call: Call) -> dict[str, Any]:
    """A call as the kernels are asked."""
    scores, transitions = call.scores
    return {
        "scores": as_frames(scores, call.options.frames_first),
        "num_classes": scores.shape[2],
        "lattice": call.lattice,
        "transitions": as_table(transitions, scores),
        "num_threads": torch.get_num_threads(),
    }
