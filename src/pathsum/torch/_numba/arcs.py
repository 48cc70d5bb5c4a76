"""Arc lattices on the CPU: planes are read from logits, made by a joiner or given; sums of planes score the arcs."""

# Lists of arguments are put together of tuples, whose lengths the checker does not know.
# pyright: reportCallIssue=false

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathsum.kernels.numba import arc_scores, grid_arcs, grid_arcs_hvp, joint, joint_scores, row_scores, row_scores_hvp
from pathsum.kernels.numba.row_scores import Wanted
from pathsum.kernels.protocol import JOINER_ONCE, ArcOptions, ArcSaved, Call, GridPath, RowsSaved
from pathsum.lattice import ArcLattice
from pathsum.problems.rnnt_types import earliness
from pathsum.torch._lattices import ARC_OPERANDS, OPERANDS, RowsOperators
from pathsum.torch._numba.joint import as_joiner, gradients_as_tensors, matmul_of
from pathsum.torch._numba.walks import Walks
from pathsum.torch._operators import OperatorKernels, as_arrays, from_arrays, to_arrays, unknown_size, upstream_of
from pathsum.torch._ops.arrays import as_rows, empty_like

# Softmax maxima and sums of the rows.
Statistics = Sequence[np.ndarray]


class Rows(RowsOperators):
    name, device = "rows", "CPU"

    def read(self, lattice: ArcLattice) -> ArcLattice:
        return as_arrays(lattice)

    def forward(self, call: Call, need_gradient: bool) -> RowsSaved:
        planes, statistics = _read([_rows_of(call)])
        return from_arrays(RowsSaved(planes, *statistics))

    def backward(self, call: Call, saved: RowsSaved, upstream: Tensor, needed: Sequence[bool]) -> list[Tensor | None]:
        ones = np.ones(len(call.lattice.logit_lengths))
        kept = to_arrays(saved)
        return _rows_of(call).gradients(upstream_of(upstream), ones, kept[1:], clamp=-1.0)[:1]

    def second(
        self, call: Call, saved: RowsSaved, upstream: Tensor, tangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> tuple[Tensor, list[Tensor | None]]:
        tangent = torch.zeros_like(call.scores[0]) if tangents[0] is None else tangents[0]
        rows, kept, by_planes = _rows_of(call), to_arrays(saved), upstream_of(upstream)
        planes, means = rows.move(tangent, kept[1:])
        product = rows.product(tangent, by_planes, np.zeros_like(by_planes), kept[1:], means)
        return torch.from_numpy(planes), product[:1]


def _rows_of(call: Call) -> _Logits:
    lone = call.lattice.blank if call.options.hat else -1
    wanted = Wanted(np.array(call.options.classes), lone, call.options.softmax)
    return _Logits(call.scores[0], call.lattice, wanted)


class Arcs(OperatorKernels):
    name, lattice, device = "arcs", ArcLattice, "CPU"
    inputs, options, saved = ARC_OPERANDS, ArcOptions, ArcSaved

    def once_only(self, options: ArcOptions) -> str | None:
        return JOINER_ONCE if any(options.joiners) else options.once_only

    def read(self, lattice: ArcLattice) -> ArcLattice:
        return as_arrays(lattice)

    def forward(self, call: Call, need_gradient: bool) -> ArcSaved:
        lattice, options = call.lattice, call.options
        planes, statistics = _read(heads(call))
        bonus = _bonus(call, planes.shape[1])
        scores = arc_scores.forward(planes, arc_scores.kinds_of(lattice), sigma=options.sigma, label_bonus=bonus)
        skips = np.zeros((0 if lattice.skips_to is None else 2, scores.shape[1]))
        losses = grid_arcs.solve(
            scores,
            lattice,
            options.skip_score,
            need_gradient=need_gradient,
            num_threads=torch.get_num_threads(),
            skips=skips,
        )
        statistics += [_NOTHING] * (4 - len(statistics))
        return from_arrays(ArcSaved(losses, scores if need_gradient else scores[:0], skips, *statistics))

    def backward(
        self, call: Call, saved: ArcSaved, upstream: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        kept, options, clamp = to_arrays(saved), call.options, call.options.clamp
        # A joiner's gate is of the posteriors, which are the gradients of a loss's own planes; a clamp is of a loss's
        # own gradient. Either needs the upstream gradient apart; at infinity a clamp does nothing.
        apart = clamp > 0 or any(options.joiners)
        of_losses = upstream_of(upstream)
        ones = np.ones(len(of_losses))
        scales = _scales(ones if apart else of_losses, call, kept)
        of_losses = of_losses if apart else ones
        grad_planes = self._by_planes(kept.posteriors, scales, call, fastemit_lambda=options.fastemit_lambda)
        gradients: list[Tensor | None] = []
        for k, (head, own) in enumerate(zip(heads(call), grad_planes, strict=True)):
            if any(needed[k * OPERANDS : (k + 1) * OPERANDS]):
                limit = math.inf if apart and clamp <= 0 and not options.joiners[k] else clamp
                gradients += head.gradients(own, of_losses, kept.statistics(k), clamp=limit)
            else:
                gradients += [None] * OPERANDS
        return *gradients, *[None] * (len(self.inputs) - len(gradients))

    def second(
        self, call: Call, saved: ArcSaved, upstream: Tensor, tangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        lattice, kept = call.lattice, to_arrays(saved)
        scales = _scales(upstream_of(upstream), call, kept)
        grad_planes, read = self._by_planes(kept.posteriors, scales, call), heads(call)
        along = [
            torch.zeros_like(head.scores) if tangent is None else tangent
            for head, tangent in zip(read, tangents[::OPERANDS], strict=False)
        ]
        moved, means = zip(
            *(head.move(along[k], kept.statistics(k)) for k, head in enumerate(read)),
            strict=True,
        )
        arcs = arc_scores.forward(np.concatenate(moved), arc_scores.kinds_of(lattice))
        costs = grid_arcs_hvp.hvp(
            arcs, kept.losses, kept.posteriors, lattice, skips=kept.skips, num_threads=torch.get_num_threads()
        )
        products: list[Tensor | None] = []
        moved_planes = self._by_planes(arcs, scales, call)
        for k, head in enumerate(read):
            if needed[k * OPERANDS]:
                products += head.product(along[k], grad_planes[k], moved_planes[k], kept.statistics(k), means[k])
            else:
                products += [None] * OPERANDS
        return torch.from_numpy(-costs), (*products, *[None] * (len(self.inputs) - len(products)))

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

    def _by_planes(
        self, by_arcs: np.ndarray, scales: np.ndarray, call: Call, fastemit_lambda: float = 0.0
    ) -> list[np.ndarray]:
        """From scales (rows,) times a gradient (kinds, rows) by the arcs' scores to that by the planes of each head."""
        kinds, (first, *rest) = arc_scores.kinds_of(call.lattice), map(len, call.lattice.reads)
        count = first + sum(rest)
        found = arc_scores.backward(by_arcs, scales, kinds, count, fastemit_lambda=fastemit_lambda)
        return [found[:first], found[first:]] if rest else [found]


_NOTHING = np.empty(0)


def _read(read: Sequence[Any]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The planes (planes, rows) of some heads, and softmax maxima and sums of each."""
    if isinstance(read[0], _Planes):
        return read[0].scores.detach().double().numpy(), [_NOTHING] * 2
    counts = [len(head.wanted.classes) for head in read]
    planes, first, statistics = np.empty((sum(counts), int(read[0].lattice.row_offsets[-1]))), 0, []
    for head, count in zip(read, counts, strict=True):
        statistics += head.read(planes[first : first + count])
        first += count
    return planes, statistics


def heads(call: Call) -> list[Any]:
    """What makes the planes of each of the lattice's reads."""
    found: list[Any] = []
    for k, classes in enumerate(call.lattice.reads):
        operands = call.scores[k * OPERANDS : (k + 1) * OPERANDS]
        wanted = Wanted(np.array(classes), call.lattice.blank if call.options.hat else -1, call.options.softmax)
        if call.options.given:
            found.append(_Planes(operands[0]))
        elif call.options.joiners[k]:
            found.append(_Joiner(operands, call.lattice, wanted, *call.options.joiners[k]))
        else:
            found.append(_Logits(operands[0], call.lattice, wanted))
    return found


class _Logits(NamedTuple):
    """Logits, padded or packed, whose rows are read."""

    scores: Tensor
    lattice: ArcLattice
    wanted: Wanted

    def read(self, planes: np.ndarray) -> Sequence[np.ndarray]:
        """Fill planes (K, rows); what is kept of the rows."""
        rows = as_rows(self.scores, self.lattice)
        num_classes, num_threads = self.scores.shape[-1], torch.get_num_threads()
        return row_scores.forward(rows, num_classes, self.lattice, self.wanted, planes, num_threads=num_threads)

    def gradients(
        self, grad_planes: np.ndarray, upstream: np.ndarray, statistics: Statistics, *, clamp: float
    ) -> list[Tensor | None]:
        gradient = empty_like(self.scores)
        row_scores.backward(
            grad_planes,
            upstream,
            as_rows(self.scores, self.lattice),
            self.scores.shape[-1],
            self.lattice,
            self.wanted,
            *statistics,
            as_rows(gradient, self.lattice),
            clamp=clamp,
            num_threads=torch.get_num_threads(),
        )
        return [gradient, None, None, None]

    def move(self, tangent: Tensor, statistics: Statistics) -> tuple[np.ndarray, np.ndarray]:
        """How the planes move along a tangent, and each row's mean of it."""
        planes = np.empty((len(self.wanted.classes), int(self.lattice.row_offsets[-1])))
        means = row_scores_hvp.gather(
            as_rows(tangent, self.lattice),
            as_rows(self.scores, self.lattice),
            self.scores.shape[-1],
            self.lattice,
            self.wanted,
            *statistics,
            planes,
            num_threads=torch.get_num_threads(),
        )
        return planes, means

    def product(
        self, tangent: Tensor, grad_planes: np.ndarray, moved_planes: np.ndarray, statistics: Statistics,
        means: np.ndarray,
    ) -> list[Tensor | None]:  # fmt: skip
        """How ``gradients`` move along a tangent, with which the planes' gradients move by ``moved_planes``."""
        product = empty_like(self.scores)
        row_scores_hvp.hvp(
            as_rows(tangent, self.lattice),
            grad_planes,
            moved_planes,
            as_rows(self.scores, self.lattice),
            self.scores.shape[-1],
            self.lattice,
            self.wanted,
            *statistics,
            means,
            as_rows(product, self.lattice),
            num_threads=torch.get_num_threads(),
        )
        return [product, None, None, None]


class _Joiner(NamedTuple):
    """The operands of a joiner, whose logits are made a tile at a time."""

    operands: Sequence[Tensor]
    lattice: ArcLattice
    wanted: Wanted
    activation: str
    tile_memory: int
    gate: float | None

    def read(self, planes: np.ndarray) -> Sequence[np.ndarray]:
        joiner = as_joiner(*self.operands, self.activation)
        planes[:] = joint_scores.forward(
            joiner,
            self.lattice,
            self.wanted,
            matmul_of(self.operands[2].dtype),
            rows_per_tile=joint.tile_rows(joiner, self.tile_memory),
            num_threads=torch.get_num_threads(),
        )
        return [_NOTHING] * 2

    def gradients(
        self, grad_planes: np.ndarray, upstream: np.ndarray, statistics: Statistics, *, clamp: float
    ) -> Sequence[Tensor]:
        joiner, dtype = as_joiner(*self.operands, self.activation), self.operands[2].dtype
        gradients = joint_scores.backward(
            grad_planes,
            upstream,
            joiner,
            self.lattice,
            self.wanted,
            matmul_of(dtype),
            rows_per_tile=joint.tile_rows(joiner, self.tile_memory),
            clamp=clamp,
            gate=self.gate,
            num_threads=torch.get_num_threads(),
        )
        return gradients_as_tensors(gradients, dtype)


class _Planes(NamedTuple):
    """Planes (K, rows) that are given."""

    scores: Tensor

    def gradients(
        self, grad_planes: np.ndarray, upstream: np.ndarray, statistics: Statistics, *, clamp: float
    ) -> list[Tensor | None]:
        return [torch.from_numpy(grad_planes).to(self.scores.dtype), None, None, None]

    def move(self, tangent: Tensor, statistics: Statistics) -> tuple[np.ndarray, np.ndarray]:
        return tangent.detach().double().numpy(), _NOTHING

    def product(
        self, tangent: Tensor, grad_planes: np.ndarray, moved_planes: np.ndarray, statistics: Statistics,
        means: np.ndarray,
    ) -> list[Tensor | None]:  # fmt: skip
        return [torch.from_numpy(moved_planes).to(self.scores.dtype), None, None, None]


def _scales(upstream: np.ndarray, call: Call, kept: ArcSaved) -> np.ndarray:
    """What the posteriors of each row are to count in the gradient."""
    scales = np.empty(kept.posteriors.shape[1])
    arc_scores.fill_scales(upstream, kept.losses, call.lattice.row_offsets, scales)
    return scales


def _bonus(call: Call, num_rows: int) -> np.ndarray | None:
    penalty = call.options.delay_penalty
    return penalty / 2 * earliness(call.lattice, num_rows) if penalty else None
