"""The operators on arc lattices.

Integers come from the host, whose lattices the variants are posed there, and are sent without waiting for it: so the
sizes of the planes, a word for each node, are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathsum.kernels.triton import grid_arcs, grid_arcs_hvp, grid_hvp, row_scores
from pathsum.torch._launch.common import (
    aligned,
    bucket,
    empties,
    even,
    in_triton,
    launch,
    programs,
    sent,
    tiles,
    warps,
    work_dtype,
)
from pathsum.torch._launch.grid import MEANS_STRIP, solve_packed

# The arcs of a grid that has kernels of its own, in the order of its planes.
_BLANK_AND_LABEL = ((1, 0), (0, 1))
# Label positions that a program of the recursion holds; wider grids are done in strips.
STRIP = 1024
_NODES = 256


class _Rows:
    """What kernels on rows of scores, padded (N, T, U+1, V) or packed (rows, V), are given of the lattice."""

    def __init__(
        self, scores: Tensor, lengths: Sequence[Tensor], row_offsets: Tensor, classes: Sequence[int], lone: int,
        logits: bool,
    ):  # fmt: skip
        packed = scores.ndim == 2
        self.num_rows, self.num_nodes = scores.shape[:-1].numel(), int(row_offsets[-1])
        logit_lengths, target_lengths, targets, first_frames, last_frames = sent(scores.device, *lengths)
        (offsets,) = sent(scores.device, row_offsets)
        frames, labels = (1, 0) if packed else (scores.shape[1], scores.shape[2] - 1)
        # Written there: a copy from here would have to outlive a graph that is captured.
        wanted = [torch.full((1,), c, dtype=torch.int32, device=scores.device) for c in classes]
        self.integers = (
            self.num_rows, logit_lengths, target_lengths, targets, offsets, first_frames, last_frames,
            len(logit_lengths), frames, labels, targets.shape[1], scores.shape[-1], torch.cat(wanted), len(classes),
            lone, self.num_nodes,
        )  # fmt: skip
        work = work_dtype(scores)
        rows, block = tiles(scores.shape[-1], work)
        self.grid = (programs(self.num_rows, rows),)
        self.constants: dict[str, Any] = {
            "LOGITS": logits, "LONE": lone >= 0, "PACKED": packed, "WORK": in_triton(work), "ROWS": rows,
            "BLOCK": block,
        }  # fmt: skip


def _strides(scores: Tensor) -> tuple[int, ...]:
    return (0, 0, *scores.stride()) if scores.ndim == 2 else scores.stride()


def row_scores_forward(
    scores: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    first_frames: Tensor,
    last_frames: Tensor,
    classes: Sequence[int],
    lone: int,
    logits: bool,
    clamp: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    lengths = (logit_lengths, target_lengths, targets, first_frames, last_frames)
    rows = _Rows(scores, lengths, row_offsets, classes, lone, logits)
    empty, work = empties(scores), work_dtype(scores)
    planes = empty(len(classes), rows.num_nodes)
    maxima, sums = (empty(rows.num_nodes if logits else 0, dtype=work) for _ in range(2))
    launch(
        row_scores.score_rows, rows.grid, scores,
        scores, *_strides(scores), *rows.integers, maxima, sums, planes, **rows.constants, ALIGNED=aligned(scores),
    )  # fmt: skip
    return planes, torch.zeros(len(logit_lengths), dtype=torch.float64, device=scores.device), maxima, sums


def row_scores_backward(
    grad_planes: Tensor,
    upstream: Tensor,
    scores: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    first_frames: Tensor,
    last_frames: Tensor,
    classes: Sequence[int],
    lone: int,
    logits: bool,
    clamp: float,
    planes: Tensor,
    samples: Tensor,
    maxima: Tensor,
    sums: Tensor,
    needed: Sequence[bool],
) -> Tensor:
    lengths = (logit_lengths, target_lengths, targets, first_frames, last_frames)
    rows = _Rows(scores, lengths, row_offsets, classes, lone, logits)
    upstream = upstream.contiguous() if clamp > 0 else torch.ones_like(upstream)
    gradient = torch.empty_like(scores, memory_format=torch.contiguous_format)
    launch(
        row_scores.write_gradient, rows.grid, scores,
        grad_planes.contiguous(), upstream, scores, *_strides(scores), *rows.integers, maxima, sums, clamp, gradient,
        *_strides(gradient), **rows.constants, ALIGNED=aligned(scores, gradient),
    )  # fmt: skip
    return gradient


def row_scores_hvp(
    tangent: Tensor,
    grad_planes: Tensor,
    upstream: Tensor,
    scores: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    first_frames: Tensor,
    last_frames: Tensor,
    classes: Sequence[int],
    lone: int,
    logits: bool,
    clamp: float,
    planes: Tensor,
    samples: Tensor,
    maxima: Tensor,
    sums: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    lengths = (logit_lengths, target_lengths, targets, first_frames, last_frames)
    rows = _Rows(scores, lengths, row_offsets, classes, lone, logits)
    slopes, grad_planes = torch.empty_like(planes), grad_planes.contiguous()
    product = torch.empty_like(scores, memory_format=torch.contiguous_format)
    launch(
        row_scores.write_product, rows.grid, scores,
        tangent, *_strides(tangent), grad_planes, scores, *_strides(scores), *rows.integers, maxima, sums, slopes,
        product, *_strides(product), **rows.constants, ALIGNED=aligned(scores, tangent, product),
    )  # fmt: skip
    return slopes, torch.zeros_like(upstream), product


def arcs_forward(
    planes: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    row_offsets: Tensor,
    frames_on: Sequence[int],
    labels_on: Sequence[int],
    label_ends: bool,
    skips_to: int | None,
    skip_score: float,
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    lengths = sent(planes.device, logit_lengths, target_lengths, row_offsets)
    planes = planes.contiguous()
    empty = empties(planes)
    num_samples, num_nodes = len(logit_lengths), planes.shape[1]
    undefined = torch.zeros(num_samples, dtype=torch.int32, device=planes.device)
    launch(
        grid_arcs.mark_undefined, (programs(num_nodes, _NODES),), planes,
        planes, num_nodes, *lengths, num_samples, undefined, NUM_KINDS=len(planes), ROWS=_NODES,
    )  # fmt: skip
    arcs = tuple(zip(frames_on, labels_on, strict=True))
    if arcs == _BLANK_AND_LABEL and skips_to is None:
        posteriors = _even_rows(planes)
        losses = solve_packed(
            (posteriors[0], posteriors[1]), undefined, (lengths[0], lengths[1], lengths[2]), _width(target_lengths),
            need_gradient,
        )  # fmt: skip
        return losses, posteriors.contiguous(), empty(0, num_nodes)
    losses, totals, alpha = empty(num_samples), empty(num_samples), empty(num_nodes)
    beta = empty(num_nodes if need_gradient else 0)
    options = {
        "ARCS": arcs,
        "LABEL_ENDS": label_ends,
        "SKIPS": -1 if skips_to is None else skips_to,
    }
    block = bucket(_width(target_lengths), 32, STRIP)
    launch(
        grid_arcs.solve, (num_samples, 2 if need_gradient else 1), planes,
        planes, num_nodes, *lengths, undefined, skip_score, alpha, beta, losses, totals, **options, BLOCK=block,
        num_warps=warps(block),
    )  # fmt: skip
    if not need_gradient:
        return losses, empty(0, 0), empty(0, 0)
    posteriors, skips = torch.empty_like(planes), empty(0 if skips_to is None else 2, num_nodes)
    launch(
        grid_arcs.find_posteriors, (programs(num_nodes, _NODES),), planes,
        planes, alpha, beta, losses, totals, num_nodes, *lengths, num_samples, skip_score, posteriors, skips,
        **options, ROWS=_NODES,
    )  # fmt: skip
    return losses, posteriors, skips


def arcs_backward(
    grad_losses: Tensor,
    planes: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    row_offsets: Tensor,
    frames_on: Sequence[int],
    labels_on: Sequence[int],
    label_ends: bool,
    skips_to: int | None,
    skip_score: float,
    losses: Tensor,
    posteriors: Tensor,
    skips: Tensor,
    needed: Sequence[bool],
) -> Tensor:
    return _row_scales(grad_losses, losses, row_offsets, posteriors.shape[1]) * posteriors


def arcs_hvp(
    tangent: Tensor,
    grad_losses: Tensor,
    planes: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    row_offsets: Tensor,
    frames_on: Sequence[int],
    labels_on: Sequence[int],
    label_ends: bool,
    skips_to: int | None,
    skip_score: float,
    losses: Tensor,
    posteriors: Tensor,
    skips: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    lengths = sent(planes.device, logit_lengths, target_lengths, row_offsets)
    empty, tangent = empties(planes), tangent.contiguous()
    num_samples, num_nodes = len(losses), planes.shape[1]
    before, after, costs = empty(num_nodes), empty(num_nodes), empty(num_samples)
    scales = _row_scales(grad_losses, losses, row_offsets, num_nodes)
    arcs, width = tuple(zip(frames_on, labels_on, strict=True)), _width(target_lengths)
    if arcs == _BLANK_AND_LABEL and skips_to is None:
        posteriors, moved, block = _even_rows(posteriors), _even_rows(tangent), bucket(width, 32, MEANS_STRIP)
        launch(
            grid_hvp.solve, (num_samples, 2), planes,
            *posteriors, *moved, losses, *lengths, 1, 0, before, after, costs, PACKED=True, BLOCK=block,
            num_warps=warps(block),
        )  # fmt: skip
        launch(
            grid_hvp.move_posteriors, (programs(num_nodes, _NODES),), planes,
            *posteriors, losses, before, after, costs, num_nodes, *lengths, num_samples, 1, 0, *moved, PACKED=True,
            ROWS=_NODES,
        )  # fmt: skip
        return -costs, moved * scales
    block = bucket(width, 32, STRIP)
    launch(
        grid_arcs_hvp.solve, (num_samples, 2), planes,
        posteriors, skips, tangent, losses, num_nodes, *lengths, before, after, costs, ARCS=arcs,
        SKIPS=-1 if skips_to is None else skips_to, BLOCK=block, num_warps=warps(block),
    )  # fmt: skip
    moved = torch.empty_like(posteriors)
    launch(
        grid_arcs_hvp.move_posteriors, (programs(num_nodes, _NODES),), planes,
        posteriors, tangent, losses, before, after, costs, num_nodes, *lengths, num_samples, moved, ARCS=arcs,
        ROWS=_NODES,
    )  # fmt: skip
    return -costs, moved * scales


def _even_rows(planes: Tensor) -> Tensor:
    """A copy whose planes begin at multiples of 16 bytes each."""
    num_nodes = planes.shape[1]
    return planes.new_empty(len(planes), even(num_nodes))[:, :num_nodes].copy_(planes)


def _width(target_lengths: Tensor) -> int:
    """Label positions of the widest sample."""
    return int(target_lengths.max()) + 1 if len(target_lengths) else 1


def _row_scales(grad_losses: Tensor, losses: Tensor, row_offsets: Tensor, num_nodes: int) -> Tensor:
    """Minus the upstream gradient of each node's sample; 0 where no path is, NaN where the loss is."""
    scale = torch.where(losses.isnan(), torch.nan, torch.where(losses < torch.inf, -grad_losses, 0.0))
    (counts,) = sent(losses.device, row_offsets.diff())
    return scale.repeat_interleave(counts, output_size=num_nodes)
