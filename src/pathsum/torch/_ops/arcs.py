"""Operators on arc lattices: rows of scores to planes, and planes to losses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pathsum.kernels.numba import grid_arcs, row_scores
from pathsum.lattice import ArcLattice
from pathsum.torch._ops.arrays import as_rows, empty_like, fake_results
from pathsum.torch._ops.registration import fake, operator


@operator
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Planes (K, rows), zeros (N,) that stand for the samples, softmax maxima and sums, of padded or packed scores."""
    lattice = as_arcs(logit_lengths, target_lengths, targets, row_offsets, first_frames, last_frames)
    planes, maxima, sums = row_scores.forward(
        as_rows(scores, lattice),
        scores.shape[-1],
        lattice,
        row_scores.Wanted(np.array(classes), lone, logits),
        num_threads=torch.get_num_threads(),
    )
    samples = torch.zeros(len(logit_lengths), dtype=torch.float64)
    return torch.from_numpy(planes), samples, torch.from_numpy(maxima), torch.from_numpy(sums)


@fake(row_scores_forward)
def _(scores, logit_lengths, target_lengths, targets, row_offsets, first_frames, last_frames, classes, lone, logits):
    _, maxima, sums, _, _ = fake_results(scores, logit_lengths.shape[0])
    rows = torch.library.get_ctx().new_dynamic_size()
    planes = scores.new_empty((len(classes), rows), dtype=torch.float64)
    return planes, scores.new_empty(logit_lengths.shape[0], dtype=torch.float64), maxima, sums


@operator
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
    maxima: Tensor,
    sums: Tensor,
) -> Tensor:
    """The gradient with respect to the scores, upstream[n] * clamp(that of the planes), in a fresh tensor."""
    lattice = as_arcs(logit_lengths, target_lengths, targets, row_offsets, first_frames, last_frames)
    gradient = empty_like(scores)
    row_scores.backward(
        grad_planes.detach().contiguous().numpy(),
        upstream.detach().contiguous().numpy(),
        as_rows(scores, lattice),
        scores.shape[-1],
        lattice,
        row_scores.Wanted(np.array(classes), lone, logits),
        maxima.numpy(),
        sums.numpy(),
        as_rows(gradient, lattice),
        clamp=clamp,
        num_threads=torch.get_num_threads(),
    )
    return gradient


@fake(row_scores_backward)
def _(grad_planes, upstream, scores, *_):
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


@operator
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
) -> tuple[Tensor, Tensor]:
    """Losses and the posteriors of the arcs, of planes (K, rows) of log-scores."""
    lattice = as_arcs(
        logit_lengths, target_lengths, None, row_offsets, None, None, tuple(zip(frames_on, labels_on, strict=True)),
        label_ends, skips_to,
    )  # fmt: skip
    # A copy: the kernel writes the posteriors over its planes.
    posteriors = np.array(planes.detach().numpy(), np.float64, order="C")
    losses = grid_arcs.solve(
        posteriors, lattice, skip_score, need_gradient=need_gradient, num_threads=torch.get_num_threads()
    )
    return torch.from_numpy(losses), torch.from_numpy(posteriors)


@fake(arcs_forward)
def _(planes, logit_lengths, *_):
    losses = planes.new_empty(logit_lengths.shape[0], dtype=torch.float64)
    return losses, planes.new_empty(planes.shape, dtype=torch.float64)


@operator
def arcs_backward(grad_losses: Tensor, row_offsets: Tensor, losses: Tensor, posteriors: Tensor) -> Tensor:
    """Minus the posteriors, times the upstream gradient of their sample; 0 where no path exists."""
    scale = torch.where(losses == torch.inf, 0.0, -grad_losses).where(~losses.isnan(), torch.nan)
    # By NumPy: for planes this small waking the threads that torch would is most of the time.
    return torch.from_numpy(np.repeat(scale.numpy(), np.diff(row_offsets.numpy())) * posteriors.numpy())


@fake(arcs_backward)
def _(grad_losses, row_offsets, losses, posteriors):
    return torch.empty_like(posteriors)


def as_arcs(
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor | None,
    row_offsets: Tensor,
    first_frames: Tensor | None,
    last_frames: Tensor | None,
    arcs: tuple[tuple[int, int], ...] = (),
    label_ends: bool = True,
    skips_to: int | None = None,
) -> ArcLattice:
    integers = (logit_lengths, target_lengths, targets, first_frames, last_frames)
    frames, labels, classes, first, last = (None if tensor is None else tensor.numpy() for tensor in integers)
    return ArcLattice(frames, labels, classes, -1, row_offsets.numpy(), arcs, (), first, last, label_ends, skips_to)
