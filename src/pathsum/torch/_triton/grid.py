"""Grids on a GPU: logits (N, T, U+1, V), or packed (rows, V).

Planes have a word for every row of the scores, padding included where these are padded: their sizes are known without
a look at the lengths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathsum.kernels.protocol import Call, GridOptions, GridPath, GridSaved
from pathsum.kernels.triton import best_path, grid, grid_hvp
from pathsum.kernels.triton.extended import ORDINARY
from pathsum.kernels.triton.plan import NODES, STRIP, bucket, programs
from pathsum.lattice import GridLattice
from pathsum.torch._inputs import on_device
from pathsum.torch._lattices import GridOperators
from pathsum.torch._triton.launching import (
    empties,
    in_rows,
    in_triton,
    launch,
    layout,
    nowhere,
    row_tiles,
    warps,
    work_dtype,
)

# Label positions that a program holds of the means of second derivatives, which need more registers a node.
MEANS_STRIP = 1024


class Grid(GridOperators):
    name = "triton_grid"
    reads_on_device = True
    expects = True

    def sent(self, lattice: GridLattice, device: torch.device) -> GridLattice:
        return on_device(lattice, device)

    def forward(self, call: Call, need_gradient: bool) -> GridSaved:
        rows, (maxima, sums), planes, undefined = _scored(call)
        question = _Question(planes, undefined, rows.lengths, rows.sizes, rows.width, rows.packed)
        if call.options.softmax:
            # Their paths share a probability of 1: what rounding has left below 0 is 0.
            losses = _solve(question, need_gradient, 0.0)
        else:
            in_common = take_off_common(planes[:1], planes[1:], rows.lengths, rows.sizes, rows.packed)
            losses = _solve(question, need_gradient) - in_common
        if not need_gradient:
            planes = (planes[0].new_empty(0), planes[1].new_empty(0))
        return GridSaved(losses, maxima, sums, *planes)

    def backward(self, call: Call, saved: GridSaved, upstream: Tensor, needed: Sequence[bool]) -> tuple[Tensor]:
        gradient = torch.empty_like(call.scores[0], memory_format=torch.contiguous_format)
        self.write_gradient(call, saved, upstream, gradient)
        return (gradient,)

    def write_gradient(self, call: Call, saved: GridSaved, upstream: Tensor, out: Tensor) -> None:
        """The gradient by the scores, into memory that may be theirs."""
        (scores,), options = call.scores, call.options
        rows = _Rows(scores, call)
        launch(
            grid.write_gradient, rows.grid, scores,
            upstream.contiguous(), *rows.read, *saved, options.fastemit_lambda, options.clamp, out, *rows.strides(out),
            **rows.constants, **layout(scores, out),
        )  # fmt: skip

    def second(
        self, call: Call, saved: GridSaved, upstream: Tensor, tangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> tuple[Tensor, tuple[Tensor]]:
        (scores,), (tangent,) = call.scores, tangents
        tangent = torch.zeros_like(scores) if tangent is None else tangent
        losses, maxima, sums, *posteriors = saved
        product = torch.empty_like(scores, memory_format=torch.contiguous_format)
        rows, empty = _Rows(scores, call), empties(scores)
        read = (tangent, *rows.strides(tangent), *rows.read)
        means = empty(rows.num_rows if call.options.softmax else 0, dtype=work_dtype(scores))
        arc_costs = empty(rows.num_rows), empty(rows.num_rows)
        launch(
            grid_hvp.gather_tangents, rows.grid, scores,
            *read, maxima, sums, *posteriors, means, *arc_costs, **rows.constants, **layout(scores, tangent),
        )  # fmt: skip
        costs, moved = _moved(rows, losses, posteriors, arc_costs, arc_costs)
        launch(
            grid_hvp.write_product, rows.grid, scores,
            upstream.contiguous(), *read, losses, maxima, sums, *posteriors, means, *moved, product,
            *rows.strides(product), **rows.constants, **layout(scores, tangent, product),
        )  # fmt: skip
        return -costs, (product,)

    def best(self, call: Call) -> GridPath:
        """Of padded scores."""
        scores = call.scores[0]
        rows, _, planes, undefined = _scored(call._replace(lattice=self.sent(call.lattice, scores.device)))
        num_samples, num_frames, num_labels = rows.sizes
        empty, block = empties(scores), bucket(rows.width, 32, STRIP)
        log_probs, frames = empty(num_samples), nowhere(scores, num_samples, num_labels)
        label_scores = torch.zeros(num_samples, num_labels, dtype=torch.float64, device=scores.device)
        launch(
            best_path.grid, (num_samples,), scores,
            *planes, undefined, *rows.lengths[:2], num_frames, num_labels, empty(num_samples, 2, num_frames),
            empty(rows.num_rows, dtype=torch.int8), log_probs, frames, label_scores, BLOCK=block,
            num_warps=warps(block),
        )  # fmt: skip
        return GridPath(log_probs, frames, label_scores)

    def list_posteriors(self, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        """Of padded scores, (N, T, U+1) each."""
        (scores,), lattice = call.scores, self.sent(call.lattice, call.scores[0].device)
        rows, planes, swept = _of_all_paths(Call((scores,), lattice, call.options))
        found = [torch.empty(scores.shape[:3], dtype=work_dtype(scores), device=scores.device) for _ in range(3)]
        launch(
            grid.list_posteriors, (programs(rows.num_rows, NODES),), scores,
            *planes, *swept, rows.num_rows, *rows.lengths, *rows.sizes, *found, ROWS=NODES,
        )  # fmt: skip
        return found[0], found[1], found[2]

    def expect(self, call: Call, costs: Tensor | None) -> tuple[Tensor, Sequence[Tensor]]:
        """Of padded scores, of costs (N, T, U+1, 2)."""
        (scores,) = call.scores
        rows, planes, swept = _of_all_paths(call)
        empty, (num_samples, *sizes) = empties(scores), scores.shape[:3]
        blank_costs, label_costs, expected = (empty(rows.num_rows) for _ in range(3))
        launch(
            grid.expect, (programs(rows.num_rows, NODES),), scores,
            *planes, *swept, rows.num_rows, *rows.lengths, *rows.sizes, costs,
            *((0, 0, 0, 0) if costs is None else costs.stride()), blank_costs, label_costs, expected, ROWS=NODES,
        )  # fmt: skip
        kept = (swept.losses, *rows.statistics, *planes, blank_costs, label_costs)
        return expected.view(num_samples, math.prod(sizes)).sum(1), kept

    def expect_gradients(
        self, call: Call, costs: Tensor | None, kept: Sequence[Tensor], upstream: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        (scores,) = call.scores
        losses, maxima, sums, *posteriors = kept[:5]
        rows, gradient, cost_gradient = _Rows(scores, call), None, None
        if needed[1]:
            room = torch.empty_like(kept[5]), torch.empty_like(kept[6])
            _, moved = _moved(rows, losses, posteriors, kept[5:], room)
            gradient = torch.empty_like(scores, memory_format=torch.contiguous_format)
            plain = call._replace(options=GridOptions(call.options.softmax))
            # What a loss subtracts of an arc's posterior a mean adds of how it moves.
            self.write_gradient(plain, GridSaved(losses, maxima, sums, *moved), -upstream, gradient)
        if costs is not None and needed[0]:
            cost_gradient = torch.empty_like(costs, memory_format=torch.contiguous_format)
            launch(
                grid.write_cost_gradient, (programs(rows.num_rows, NODES),), scores,
                upstream.contiguous(), losses, *posteriors, rows.num_rows, *rows.lengths, *rows.sizes, cost_gradient,
                ROWS=NODES,
            )  # fmt: skip
        return cost_gradient, gradient


class _Rows:
    """Where the rows of scores, padded (N, T, U+1, V) or packed (rows, V), are; and their softmax statistics."""

    statistics: tuple[Tensor, Tensor]

    def __init__(self, scores: Tensor, call: Call):
        own, work = call.lattice, work_dtype(scores)
        self.packed = scores.ndim == 2
        self.num_rows, num_classes = scores.shape[:-1].numel(), scores.shape[-1]
        frames, labels = (1, 0) if self.packed else (scores.shape[1], scores.shape[2] - 1)
        integers = in_rows(own.logit_lengths, own.target_lengths, own.targets, own.row_offsets)
        self.lengths = (integers[0], integers[1], integers[3])
        self.sizes = (len(own.logit_lengths), frames, labels)
        longest = own.targets.shape[1]
        # Of packed rows only the number is known: a grid cannot be wider than that.
        self.width = min(self.num_rows if self.packed else labels + 1, longest + 1)
        self.read = (
            scores, *self.strides(scores), self.num_rows, *integers, *self.sizes, longest, num_classes, own.blank,
        )  # fmt: skip
        rows, block = row_tiles(num_classes, work)
        self.grid = (programs(self.num_rows, rows),)
        self.constants: dict[str, Any] = {
            "LOGITS": call.options.softmax, "PACKED": self.packed, "WORK": in_triton(work), "ROWS": rows,
            "BLOCK": block,
        }  # fmt: skip

    def strides(self, tensor: Tensor) -> tuple[int, ...]:
        return (0, 0, *tensor.stride()) if self.packed else tensor.stride()


def _scored(call: Call) -> tuple[_Rows, tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    """The rows, their softmax statistics, the planes of blank and label scores, and which samples are undefined."""
    (scores,), rows = call.scores, _Rows(call.scores[0], call)
    empty, work = empties(scores), work_dtype(scores)
    num_statistics = rows.num_rows if call.options.softmax else 0
    statistics = empty(num_statistics, dtype=work), empty(num_statistics, dtype=work)
    planes = empty(rows.num_rows), empty(rows.num_rows)
    undefined = torch.zeros(rows.sizes[0], dtype=torch.int32, device=scores.device)
    launch(
        grid.score_rows, rows.grid, scores,
        *rows.read, *statistics, *planes, undefined, **rows.constants, **layout(scores),
    )  # fmt: skip
    return rows, statistics, planes, undefined


def take_off_common(
    by_frame: Sequence[Tensor],
    by_label: Sequence[Tensor],
    lengths: tuple[Tensor, ...],
    sizes: tuple[int, int, int],
    packed: bool,
) -> Tensor:
    """Take what all paths have in common, a score out of each frame and one of each label, off planes of contiguous
    nodes where it is huge; its sum (N,). It would take the small digits of a recursion's exponents.
    """
    logit_lengths, target_lengths, row_offsets = lengths
    num_samples, num_frames, num_labels = sizes
    (plane, *_), device = by_frame, logit_lengths.device
    rows = torch.arange(len(plane), device=device)
    offsets = row_offsets if packed else torch.arange(num_samples + 1, device=device) * num_frames * (num_labels + 1)
    # Of packed planes there may be words behind the last node.
    n = torch.searchsorted(offsets[1:], rows, right=True).clamp(max=num_samples - 1)
    width = (target_lengths[n] + 1).clamp(min=1) if packed else num_labels + 1
    t, u = (rows - offsets[n]) // width, (rows - offsets[n]) % width
    real = (t < logit_lengths[n]) & (u <= target_lengths[n])
    totals = torch.zeros(num_samples, dtype=plane.dtype, device=device)
    # Nodes are grouped by the first of them.
    for planes, first in ((by_frame, rows - u), (by_label, (offsets[n] + u).clamp(max=len(plane) - 1))):
        greatest = torch.full_like(plane, -torch.inf)
        for own in planes:
            greatest.scatter_reduce_(0, first, torch.where(real, own, -torch.inf), "amax")
        common = torch.where((greatest.abs() > ORDINARY.value) & greatest.isfinite(), greatest, 0.0)
        totals += torch.segment_reduce(common, "sum", offsets=offsets, unsafe=True)
        for own in planes:
            own -= common[first]
    return totals


def solve_packed(
    planes: tuple[Tensor, Tensor],
    undefined: Tensor,
    lengths: tuple[Tensor, Tensor, Tensor],
    width: int,
    need_gradient: bool,
    at_least: float = -math.inf,
) -> Tensor:
    """Losses of the planes of packed rows, of samples with at most ``width - 1`` labels; the planes are overwritten."""
    question = _Question(planes, undefined, lengths, (len(undefined), 1, 0), width, True)
    return _solve(question, need_gradient, at_least)


def move_packed(
    posteriors: Tensor, costs: Tensor, losses: Tensor, lengths: tuple[Tensor, Tensor, Tensor], width: int
) -> Tensor:
    """Slopes (N,) of the losses, of the planes (2, rows) of packed rows that ``solve_packed`` has left; what the arcs
    cost becomes how their posteriors move. Both planes of each begin at multiples of 16 bytes.
    """
    empty, (num_samples, num_nodes) = empties(losses), (len(losses), costs.shape[1])
    before, after, means = empty(num_nodes), empty(num_nodes), empty(num_samples)
    block = bucket(width, 32, MEANS_STRIP)
    launch(
        grid_hvp.solve, (num_samples, 2), losses,
        *posteriors, *costs, losses, *lengths, 1, 0, before, after, means, PACKED=True, BLOCK=block,
        num_warps=warps(block),
    )  # fmt: skip
    launch(
        grid_hvp.move_posteriors, (programs(num_nodes, NODES),), losses,
        *posteriors, losses, before, after, means, num_nodes, *lengths, num_samples, 1, 0, *costs, *costs, PACKED=True,
        ROWS=NODES,
    )  # fmt: skip
    return -means


class _Question(NamedTuple):
    """Score planes of the two kinds of arcs, and the rows that they are of, with at most ``width - 1`` labels."""

    planes: tuple[Tensor, Tensor]
    undefined: Tensor
    lengths: tuple[Tensor, ...]
    sizes: tuple[int, int, int]
    width: int
    packed: bool


class _Swept(NamedTuple):
    """Masses up to and from each node, losses and masses of all paths."""

    alpha: Tensor
    beta: Tensor
    losses: Tensor
    totals: Tensor


def _sweep(question: _Question, need_gradient: bool, at_least: float = -math.inf) -> _Swept:
    """Beta where asked alone."""
    planes, undefined, lengths, sizes, width, packed = question
    empty, (num_samples, num_frames, num_labels), num_rows = empties(undefined), sizes, len(planes[0])
    found = _Swept(empty(num_rows), empty(num_rows if need_gradient else 0), empty(num_samples), empty(num_samples))
    block = bucket(width, 32, STRIP)
    launch(
        grid.solve, (num_samples, 2 if need_gradient else 1), undefined,
        *planes, *lengths, num_frames, num_labels, undefined, at_least, *found, PACKED=packed, BLOCK=block,
        num_warps=warps(block),
    )  # fmt: skip
    return found


def _of_all_paths(call: Call) -> tuple[_Rows, tuple[Tensor, Tensor], _Swept]:
    """Rows, score planes and sweeps of padded scores, without what all paths have in common where it is huge."""
    rows, rows.statistics, planes, undefined = _scored(call)
    if not call.options.softmax:
        take_off_common(planes[:1], planes[1:], rows.lengths, rows.sizes, rows.packed)
    question = _Question(planes, undefined, rows.lengths, rows.sizes, rows.width, rows.packed)
    return rows, planes, _sweep(question, True)


def _moved(
    rows: _Rows, losses: Tensor, posteriors: Sequence[Tensor], costs: Sequence[Tensor], moved: tuple[Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Mean costs (N,) of the paths, and how posteriors move along the costs of the arcs, in the room given for it."""
    empty = empties(losses)
    before, after, means = empty(rows.num_rows), empty(rows.num_rows), empty(len(losses))
    block = bucket(rows.width, 32, MEANS_STRIP)
    launch(
        grid_hvp.solve, (len(losses), 2), losses,
        *posteriors, *costs, losses, *rows.lengths, *rows.sizes[1:], before, after, means, PACKED=rows.packed,
        BLOCK=block, num_warps=warps(block),
    )  # fmt: skip
    launch(
        grid_hvp.move_posteriors, (programs(rows.num_rows, NODES),), losses,
        *posteriors, losses, before, after, means, rows.num_rows, *rows.lengths, *rows.sizes, *costs, *moved,
        PACKED=rows.packed, ROWS=NODES,
    )  # fmt: skip
    return means, moved


def _solve(question: _Question, need_gradient: bool, at_least: float = -math.inf) -> Tensor:
    """Losses of the two score planes, which are overwritten by the posteriors where asked."""
    swept = _sweep(question, need_gradient, at_least)
    if need_gradient:
        planes, undefined, lengths, sizes, _, packed = question
        num_rows = len(planes[0])
        launch(
            grid.find_posteriors, (programs(num_rows, NODES),), undefined,
            *planes, *swept, num_rows, *lengths, *sizes, PACKED=packed, ROWS=NODES,
        )  # fmt: skip
    return swept.losses
