"""The operators on grids.

Planes have a word for every row of the scores, padding included where these are padded: their sizes are known without
a look at the lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathsum.kernels.triton import grid
from pathsum.kernels.triton import grid_hvp as kernels_hvp
from pathsum.torch._launch.common import (
    aligned,
    bucket,
    empties,
    in_rows,
    in_triton,
    launch,
    programs,
    tiles,
    warps,
    work_dtype,
)

# Label positions that a program of the recursion holds; wider grids are done in strips.
STRIP = 2048
# The same of the means of second derivatives, which need more registers a node.
MEANS_STRIP = 1024
_NODES = 256


class Layout:
    """Where the rows of scores, padded (N, T, U+1, V) or packed (rows, V), are."""

    def __init__(
        self, scores: Tensor, logit_lengths: Tensor, target_lengths: Tensor, targets: Tensor, row_offsets: Tensor
    ):
        self.packed = scores.ndim == 2
        self.num_rows = scores.shape[:-1].numel()
        self.num_classes = scores.shape[-1]
        self.strides = (0, 0, *scores.stride()) if self.packed else scores.stride()
        frames, labels = (1, 0) if self.packed else (scores.shape[1], scores.shape[2] - 1)
        self.integers = in_rows(logit_lengths, target_lengths, targets, row_offsets)
        self.lengths = (*self.integers[:2], self.integers[3])
        self.sizes = (len(logit_lengths), frames, labels)
        # Of packed rows only the number is known: a grid cannot be wider than that.
        self.width = min(self.num_rows if self.packed else labels + 1, targets.shape[1] + 1)


def grid_forward(
    scores: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    blank: int,
    logits: bool,
    fastemit_lambda: float,
    clamp: float,
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    layout = Layout(scores, logit_lengths, target_lengths, targets, row_offsets)
    empty, work = empties(scores), work_dtype(scores)
    maxima, sums = (empty(layout.num_rows if logits else 0, dtype=work) for _ in range(2))
    planes = empty(layout.num_rows), empty(layout.num_rows)
    undefined = torch.zeros(len(logit_lengths), dtype=torch.int32, device=scores.device)
    rows, classes = tiles(layout.num_classes, work)
    launch(
        grid.score_rows, (programs(layout.num_rows, rows),), scores,
        scores, *layout.strides, layout.num_rows, *layout.integers, *layout.sizes, targets.shape[1],
        layout.num_classes, blank, maxima, sums, *planes, undefined,
        LOGITS=logits, PACKED=layout.packed, WORK=in_triton(work), ROWS=rows, BLOCK=classes, ALIGNED=aligned(scores),
    )  # fmt: skip
    sizes, width = layout.sizes, layout.width
    losses = _solve(planes, undefined, layout.lengths, sizes, width, layout.packed, need_gradient)
    blank_posteriors, label_posteriors = planes if need_gradient else (empty(0), empty(0))
    return losses, maxima, sums, blank_posteriors, label_posteriors


def solve_packed(
    planes: tuple[Tensor, Tensor],
    undefined: Tensor,
    lengths: tuple[Tensor, Tensor, Tensor],
    width: int,
    need_gradient: bool,
) -> Tensor:
    """``solve`` of the planes of packed rows, of samples with at most ``width - 1`` labels."""
    return _solve(planes, undefined, lengths, (len(undefined), 1, 0), width, True, need_gradient)


def _solve(
    planes: tuple[Tensor, Tensor],
    undefined: Tensor,
    lengths: tuple[Tensor, ...],
    sizes: tuple[int, int, int],
    width: int,
    packed: bool,
    need_gradient: bool,
) -> Tensor:
    """Losses of the two score planes, which are overwritten by the posteriors where asked."""
    empty = empties(undefined)
    num_samples, num_frames, num_labels = sizes
    num_rows = len(planes[0])
    losses, totals, alpha = empty(num_samples), empty(num_samples), empty(num_rows)
    beta = empty(num_rows if need_gradient else 0)
    block = bucket(width, 32, STRIP)
    launch(
        grid.solve, (num_samples, 2 if need_gradient else 1), undefined,
        *planes, *lengths, num_frames, num_labels, undefined, alpha, beta, losses, totals,
        PACKED=packed, BLOCK=block, num_warps=warps(block),
    )  # fmt: skip
    if need_gradient:
        launch(
            grid.find_posteriors, (programs(num_rows, _NODES),), undefined,
            *planes, alpha, beta, losses, totals, num_rows, *lengths, *sizes, PACKED=packed, ROWS=_NODES,
        )  # fmt: skip
    return losses


def grid_backward(
    grad_losses: Tensor,
    scores: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    blank: int,
    logits: bool,
    fastemit_lambda: float,
    clamp: float,
    losses: Tensor,
    maxima: Tensor,
    sums: Tensor,
    blank_posteriors: Tensor,
    label_posteriors: Tensor,
    needed: Sequence[bool],
) -> Tensor:
    gradient = torch.empty_like(scores, memory_format=torch.contiguous_format)
    _write_gradient(
        grad_losses, scores, logit_lengths, target_lengths, targets, row_offsets, blank, logits, fastemit_lambda, clamp,
        (losses, maxima, sums, blank_posteriors, label_posteriors), gradient,
    )  # fmt: skip
    return gradient


def grid_backward_over_scores(
    grad_losses: Tensor,
    scores: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    blank: int,
    fastemit_lambda: float,
    clamp: float,
    *saved: Tensor,
) -> None:
    """The gradient written over the logits themselves."""
    _write_gradient(
        grad_losses, scores, logit_lengths, target_lengths, targets, row_offsets, blank, True, fastemit_lambda, clamp,
        saved, scores,
    )  # fmt: skip


def _write_gradient(
    grad_losses: Tensor,
    scores: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    blank: int,
    logits: bool,
    fastemit_lambda: float,
    clamp: float,
    saved: tuple[Tensor, ...],
    out: Tensor,
) -> None:
    layout = Layout(scores, logit_lengths, target_lengths, targets, row_offsets)
    target = Layout(out, logit_lengths, target_lengths, targets, row_offsets)
    work = work_dtype(scores)
    rows, classes = tiles(layout.num_classes, work)
    options: dict[str, Any] = {"LOGITS": logits, "PACKED": layout.packed, "WORK": in_triton(work)}
    launch(
        grid.write_gradient, (programs(layout.num_rows, rows),), scores,
        grad_losses.contiguous(), scores, *layout.strides, layout.num_rows, *layout.integers, *layout.sizes,
        targets.shape[1], layout.num_classes, blank, *saved, fastemit_lambda, clamp, out,
        *target.strides, **options, ROWS=rows, BLOCK=classes, ALIGNED=aligned(scores, out),
    )  # fmt: skip


def grid_hvp(
    tangent: Tensor,
    grad_losses: Tensor,
    scores: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    blank: int,
    logits: bool,
    fastemit_lambda: float,
    clamp: float,
    losses: Tensor,
    maxima: Tensor,
    sums: Tensor,
    blank_posteriors: Tensor,
    label_posteriors: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    product = torch.empty_like(scores, memory_format=torch.contiguous_format)
    layout, moved, target = (
        Layout(tensor, logit_lengths, target_lengths, targets, row_offsets) for tensor in (scores, tangent, product)
    )
    empty, work = empties(scores), work_dtype(scores)
    rows, classes = tiles(layout.num_classes, work)
    integers = (layout.num_rows, *layout.integers, *layout.sizes, targets.shape[1], layout.num_classes, blank)
    read = (tangent, *moved.strides, scores, *layout.strides, *integers)
    options: dict[str, Any] = {"LOGITS": logits, "PACKED": layout.packed, "WORK": in_triton(work), "ROWS": rows}
    posteriors = (blank_posteriors, label_posteriors)
    means = empty(layout.num_rows if logits else 0, dtype=work)
    arc_costs = empty(layout.num_rows), empty(layout.num_rows)
    launch(
        kernels_hvp.gather_tangents, (programs(layout.num_rows, rows),), scores,
        *read, maxima, sums, *posteriors, means, *arc_costs, **options, BLOCK=classes, ALIGNED=aligned(scores, tangent),
    )  # fmt: skip
    before, after, costs = empty(layout.num_rows), empty(layout.num_rows), empty(len(losses))
    block = bucket(layout.width, 32, MEANS_STRIP)
    launch(
        kernels_hvp.solve, (len(losses), 2), scores,
        *posteriors, *arc_costs, losses, *layout.lengths, *layout.sizes[1:], before, after, costs,
        PACKED=layout.packed, BLOCK=block, num_warps=warps(block),
    )  # fmt: skip
    launch(
        kernels_hvp.move_posteriors, (programs(layout.num_rows, _NODES),), scores,
        *posteriors, losses, before, after, costs, layout.num_rows, *layout.lengths, *layout.sizes, *arc_costs,
        PACKED=layout.packed, ROWS=_NODES,
    )  # fmt: skip
    tangents = arc_costs
    launch(
        kernels_hvp.write_product, (programs(layout.num_rows, rows),), scores,
        grad_losses.contiguous(), *read, losses, maxima, sums, *posteriors, means, *tangents, product, *target.strides,
        **options, BLOCK=classes, ALIGNED=aligned(scores, tangent, product),
    )  # fmt: skip
    return -costs, product
