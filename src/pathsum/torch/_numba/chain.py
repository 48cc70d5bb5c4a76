"""Chains on the CPU: scores (N, T, C), and transitions (C, C) where a chain has arcs that read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathsum.kernels.numba import chain, chain_hvp, chain_stretch, posteriors
from pathsum.kernels.numba.chain_best_path import best_path
from pathsum.kernels.protocol import Call, ChainPath, ChainSaved
from pathsum.lattice import ChainLattice
from pathsum.torch._autograd.stretch import advanced
from pathsum.torch._lattices import ChainOperators
from pathsum.torch._operators import ArrayKernels, as_arrays, from_arrays
from pathsum.torch._ops.arrays import (
    as_frames,
    as_gradient,
    as_table,
    as_tangent,
    empty_gradient,
    num_frames_of,
)


class Chain(ArrayKernels, ChainOperators):
    name, compares_hypotheses, advances, reads_frames_first = "chain", True, True, True

    def forward(self, call: Call, need_gradient: bool) -> ChainSaved:
        (scores, transitions), lattice, options = call
        return chain.forward(
            as_frames(scores, options.frames_first), scores.shape[2], lattice,
            None if transitions is None else as_table(transitions, scores),
            logits=options.softmax, need_gradient=need_gradient, num_threads=torch.get_num_threads(),
            relative=options.relative,
        )  # fmt: skip

    def backward(
        self, call: Call, saved: ChainSaved, upstream: np.ndarray, needed: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        (scores, transitions), lattice, options = call
        gradient, transition_gradient = None, None
        if options.by_logits:
            # The softmax of log-probabilities: nothing is subtracted, and the sum is 1.
            rows = len(saved.step)
            saved = saved._replace(maxima=np.zeros(rows, saved.step.dtype), sums=np.ones(rows, saved.step.dtype))
        if needed[0]:
            gradient = empty_gradient(scores)
            chain.backward(
                upstream, as_frames(scores, options.frames_first), scores.shape[2], lattice, saved,
                as_frames(gradient, options.frames_first), num_frames_of(call),
                logits=options.softmax or options.by_logits, num_threads=torch.get_num_threads(),
            )  # fmt: skip
        if transitions is not None and needed[1]:
            counts = chain.transition_gradient(upstream, scores.shape[2], lattice, saved)
            transition_gradient = as_gradient(counts, transitions)
        return gradient, transition_gradient

    def second(
        self, call: Call, saved: ChainSaved, upstream: np.ndarray, tangents: Sequence[Tensor | None],
        needed: Sequence[bool],
    ) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:  # fmt: skip
        (scores, transitions), (tangent, transition_tangent) = call.scores, tangents
        product = empty_gradient(scores)
        slopes, transition_product = chain_hvp.hvp(
            upstream,
            as_tangent(tangent, scores, call.options.frames_first),
            None if transition_tangent is None else as_table(transition_tangent, scores),
            saved=saved,
            out=as_frames(product, call.options.frames_first),
            num_frames=num_frames_of(call),
            logits=call.options.softmax,
            **_question(call),
        )
        moved = None if transitions is None else as_gradient(transition_product, transitions)
        return torch.from_numpy(slopes), (product, moved)

    def advance(self, call: Call, alpha: Tensor) -> Tensor:
        return advanced(call.scores[0], alpha, Stretch(as_arrays(call.lattice)))

    def best(self, call: Call) -> ChainPath:
        return from_arrays(best_path(**_question(call), num_frames=call.scores[0].shape[1]))

    def posteriors(self, call: Call) -> tuple[Tensor, ...]:
        found = posteriors.chain_posteriors(
            **_question(call), logits=call.options.softmax, num_frames=call.scores[0].shape[1]
        )
        return tuple(map(torch.from_numpy, found))


class Stretch(NamedTuple):
    """Some frames of the samples of a lattice, for ``torch._autograd.stretch``."""

    lattice: ChainLattice

    @property
    def _sizes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.lattice.input_lengths, self.lattice.num_states, self.lattice.skips

    def advance(self, scores: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        rows = alpha.new_empty(len(scores), scores.shape[1] + 1, alpha.shape[1])
        rows[:, 0] = alpha
        chain_stretch.advance(scores.contiguous().numpy(), *self._sizes, rows.numpy())
        return self._last(rows), rows

    def retreat(self, rows: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return self._retreat(rows, rows.new_empty(0, 0, 0), gradient.clone(), torch.zeros_like(gradient))

    def move(self, rows: Tensor, gradient: Tensor, *tangents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        of_scores, of_alpha = tangents
        moved = torch.zeros_like(rows)
        moved[:, 0] = of_alpha
        chain_stretch.move(rows.numpy(), of_scores.contiguous().numpy(), *self._sizes, moved.numpy())
        return self._last(moved), *self._retreat(rows, moved, torch.zeros_like(gradient), gradient.clone())

    def _retreat(self, rows: Tensor, moved: Tensor, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        out = rows.new_zeros(len(rows), rows.shape[1] - 1, rows.shape[2] - 1)
        gradient, of_moved = gradients
        chain_stretch.retreat(
            rows.numpy(), moved.numpy(), *self._sizes, gradient.numpy(), of_moved.numpy(), out.numpy()
        )
        return out, gradient

    def _last(self, rows: Tensor) -> Tensor:
        """(N, 1 + S') the row after the last frame of each sample."""
        return rows[torch.arange(len(rows)), torch.from_numpy(self.lattice.input_lengths)]


def _question(call: Call) -> dict[str, Any]:
    """A call as the kernels are asked."""
    scores, transitions = call.scores
    return {
        "scores": as_frames(scores, call.options.frames_first),
        "num_classes": scores.shape[2],
        "lattice": call.lattice,
        "transitions": None if transitions is None else as_table(transitions, scores),
        "num_threads": torch.get_num_threads(),
    }
