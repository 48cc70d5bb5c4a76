"""Arc lattices on the CPU: planes are read from logits, made by a joiner or given; sums of planes score the arcs."""

# Lists of arguments are put together of tuples, whose lengths the checker does not know.
# pyright: reportCallIssue=false

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathsum.kernels.numba import heads, joint
from pathsum.kernels.numba.row_scores import Wanted
from pathsum.kernels.protocol import JOINER_ONCE, ArcOptions, ArcSaved, Call, GridPath, RowsSaved
from pathsum.lattice import ArcLattice
from pathsum.problems.rnnt_types import earliness
from pathsum.torch._lattices import ARC_OPERANDS, OPERANDS, RowsOperators
from pathsum.torch._numba.joint import matmul_of
from pathsum.torch._numba.walks import Walks
from pathsum.torch._operators import ArrayKernels, unknown_size
from pathsum.torch._ops.arrays import as_joiner, as_rows, empty_like, gradients_as_tensors


class Rows(ArrayKernels, RowsOperators):
    name = "rows"

    def forward(self, call: Call, need_gradient: bool) -> RowsSaved:
        planes = np.empty((len(call.options.classes), int(call.lattice.row_offsets[-1])))
        return RowsSaved(planes, *_rows_of(call).read(planes))

    def backward(self, call: Call, saved: RowsSaved, upstream: np.ndarray, needed: Sequence[bool]) -> tuple[Tensor]:
        gradient, ones = empty_like(call.scores[0]), np.ones(len(call.lattice.logit_lengths))
        _rows_of(call, gradient).differentiate(upstream, ones, saved[1:], -1.0)
        return (gradient,)

    def second(
        self, call: Call, saved: RowsSaved, upstream: np.ndarray, tangents: Sequence[Tensor | None],
        needed: Sequence[bool],
    ) -> tuple[Tensor, tuple[Tensor]]:  # fmt: skip
        product, tangent = empty_like(call.scores[0]), tangents[0]
        rows = _rows_of(call, product, torch.zeros_like(call.scores[0]) if tangent is None else tangent)
        planes, means = rows.move(saved[1:])
        rows.multiply(upstream, np.zeros_like(upstream), saved[1:], means)
        return torch.from_numpy(planes), (product,)


def _rows_of(call: Call, out: Tensor | None = None, tangent: Tensor | None = None) -> heads.Logits:
    lone = call.lattice.blank if call.options.hat else -1
    wanted = Wanted(np.array(call.options.classes), lone, call.options.softmax)
    (rows, *beside), num_classes = as_rows(call.lattice, call.scores[0], out, tangent), call.scores[0].shape[-1]
    assert rows is not None
    return heads.Logits(rows, num_classes, call.lattice, wanted, torch.get_num_threads(), *beside)


class Arcs(ArrayKernels):
    name, lattice, inputs, options, saved = "arcs", ArcLattice, ARC_OPERANDS, ArcOptions, ArcSaved

    def once_only(self, options: ArcOptions) -> str | None:
        return JOINER_ONCE if any(options.joiners) else options.once_only

    def forward(self, call: Call, need_gradient: bool) -> ArcSaved:
        lattice, options = call.lattice, call.options
        penalty, (made, _) = options.delay_penalty, _heads(call)
        bonus = penalty / 2 * earliness(lattice, int(lattice.row_offsets[-1])) if penalty else None
        return heads.forward(
            made,
            lattice,
            sigma=options.sigma,
            label_bonus=bonus,
            skip_score=options.skip_score,
            need_gradient=need_gradient,
            num_threads=torch.get_num_threads(),
        )

    def backward(
        self, call: Call, saved: ArcSaved, upstream: np.ndarray, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        asked = _asked(call, needed)
        made, outs = _heads(call, asked)
        numbers = {"fastemit_lambda": call.options.fastemit_lambda, "clamp": call.options.clamp}
        found = heads.backward(upstream, made, call.lattice, saved, asked, **numbers)
        return _as_tensors(call, outs, found)

    def second(
        self, call: Call, saved: ArcSaved, upstream: np.ndarray, tangents: Sequence[Tensor | None],
        needed: Sequence[bool],
    ) -> tuple[Tensor, list[Tensor | None]]:  # fmt: skip
        asked = _asked(call, needed)
        made, outs = _heads(call, asked, tangents[::OPERANDS])
        slopes, products = heads.hvp(upstream, made, call.lattice, saved, asked, num_threads=torch.get_num_threads())
        return torch.from_numpy(slopes), _as_tensors(call, outs, products)

    def best(self, call: Call) -> GridPath:
        """Of planes that are given."""
        log_probs, frames, scores, _ = Walks().k_best(call, 1)
        return GridPath(log_probs[:, 0], frames[:, 0], scores[:, 0])

    def sketch(self, call: Call) -> ArcSaved:
        scores = call.scores[0]
        losses = scores.new_empty(len(call.lattice.logit_lengths), dtype=torch.float64)
        planes = [unknown_size(scores, axes=2, dtype=torch.float64) for _ in range(2)]
        second = scores if call.scores[OPERANDS] is None else call.scores[OPERANDS]
        return ArcSaved(losses, *planes, *[unknown_size(head, axes=1) for head in (scores, scores, second, second)])


def _heads(
    call: Call, needed: Sequence[bool] | None = None, tangents: Sequence[Tensor | None] | None = None
) -> tuple[list[Any], list[Tensor | None]]:
    """What makes the planes of each of the lattice's reads; memory for the gradients by logits that are needed.

    Tangents that are not there are zeros.
    """
    lattice, options, threads = call.lattice, call.options, torch.get_num_threads()
    scores, count = call.scores[::OPERANDS], len(lattice.reads)
    along: list[Tensor | None] = [None] * count
    if tangents is not None:
        along = [torch.zeros_like(scores[k]) if tangents[k] is None else tangents[k] for k in range(count)]
    if options.given:
        moved = None if along[0] is None else along[0].detach().double().numpy()
        return [heads.Given(scores[0].detach().double().numpy(), moved)], [None]
    outs: list[Tensor | None] = [None] * count
    beside: list[Tensor | None] = []
    for k in range(count):
        if needed is not None and needed[k] and not options.joiners[k]:
            outs[k] = empty_like(scores[k])
        beside += [None] * 3 if options.joiners[k] else [scores[k], outs[k], along[k]]
    memory, made = as_rows(lattice, *beside), []
    for k, classes in enumerate(lattice.reads):
        wanted = Wanted(_array(classes), lattice.blank if options.hat else -1, options.softmax)
        if options.joiners[k]:
            activation, tile_memory, gate = options.joiners[k]
            operands = call.scores[k * OPERANDS : (k + 1) * OPERANDS]
            joiner, matmul = as_joiner(*operands, activation), matmul_of(operands[2].dtype)
            size = joint.tile_rows(joiner, tile_memory)
            made.append(heads.Joined(joiner, lattice, wanted, matmul, size, gate, threads))
        else:
            rows, *written = memory[3 * k : 3 * k + 3]
            made.append(heads.Logits(rows, scores[k].shape[-1], lattice, wanted, threads, *written))
    return made, outs


_array = lru_cache(maxsize=64)(np.array)


def _asked(call: Call, needed: Sequence[bool]) -> list[bool]:
    """Of each head whether its gradient is needed."""
    return [True in needed[k * OPERANDS : (k + 1) * OPERANDS] for k in range(len(call.lattice.reads))]


def _as_tensors(call: Call, outs: Sequence[Tensor | None], found: Sequence[Any]) -> list[Tensor | None]:
    """Gradients by all operands of what the heads gave, or wrote."""
    gradients: list[Tensor | None] = []
    for k, own in enumerate(found):
        if isinstance(own, joint.Joiner):
            gradients += gradients_as_tensors(own, call.scores[k * OPERANDS + 2].dtype)
        else:
            planes = torch.from_numpy(own).to(call.scores[0].dtype) if isinstance(own, np.ndarray) else outs[k]
            gradients += [planes, *[None] * (OPERANDS - 1)]
    return gradients + [None] * (len(ARC_OPERANDS) - len(gradients))
