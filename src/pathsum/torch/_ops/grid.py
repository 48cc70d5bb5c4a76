"""Operators on grids: of padded or packed scores, and of the two planes of scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pathsum.kernels.numba import grid
from pathsum.kernels.numba import grid_arcs_hvp as of_arcs
from pathsum.kernels.numba import grid_hvp as of_rows
from pathsum.kernels.protocol import Saved
from pathsum.lattice import GridLattice
from pathsum.torch._ops.arrays import (
    as_grid,
    as_rows,
    as_saved,
    as_tensors,
    empty_like,
    fake_like,
    fake_results,
    row_scales,
)
from pathsum.torch._ops.registration import fake, operator


@operator
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
    """Losses, softmax maxima and sums, blank and label posteriors, of padded (4-D) or packed (2-D) scores."""
    lattice = as_grid(logit_lengths, target_lengths, targets, row_offsets, blank)
    saved = grid.forward(
        as_rows(scores, lattice),
        scores.shape[-1],
        lattice,
        logits=logits,
        need_gradient=need_gradient,
        num_threads=torch.get_num_threads(),
    )
    return as_tensors(saved)


@fake(grid_forward)
def _(scores, logit_lengths, *_):
    return fake_results(scores, logit_lengths.shape[0], axes=1)


@operator
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
    """The gradient with respect to the scores, in a fresh contiguous tensor."""
    gradient = empty_like(scores)
    saved = as_saved(losses, maxima, sums, blank_posteriors, label_posteriors)
    lattice = as_grid(logit_lengths, target_lengths, targets, row_offsets, blank)
    _write_grid_gradient(grad_losses, scores, lattice, saved, gradient, logits, fastemit_lambda, clamp)
    return gradient


@fake(grid_backward)
def _(grad_losses, scores, *_):
    return fake_like(scores)


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
    """The gradient written over the logits themselves; no operator, these change none of their arguments."""
    lattice = as_grid(logit_lengths, target_lengths, targets, row_offsets, blank)
    _write_grid_gradient(grad_losses, scores, lattice, as_saved(*saved), scores, True, fastemit_lambda, clamp)


def _write_grid_gradient(
    grad_losses: Tensor,
    scores: Tensor,
    lattice: GridLattice,
    saved: Saved,
    out: Tensor,
    logits: bool,
    fastemit_lambda: float,
    clamp: float,
) -> None:
    grid.backward(
        grad_losses.detach().numpy(),
        as_rows(scores, lattice),
        scores.shape[-1],
        lattice,
        saved,
        as_rows(out, lattice),
        logits=logits,
        fastemit_lambda=fastemit_lambda,
        clamp=clamp,
        num_threads=torch.get_num_threads(),
    )


@operator
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
    """The derivative of <tangent, gradient> with respect to the upstream gradient and to the scores."""
    product = empty_like(scores)
    lattice = as_grid(logit_lengths, target_lengths, targets, row_offsets, blank)
    slopes = of_rows.hvp(
        as_rows(tangent, lattice),
        grad_losses.detach().numpy(),
        as_rows(scores, lattice),
        scores.shape[-1],
        lattice,
        as_saved(losses, maxima, sums, blank_posteriors, label_posteriors),
        as_rows(product, lattice),
        logits=logits,
        num_threads=torch.get_num_threads(),
    )
    return torch.from_numpy(slopes), product


@fake(grid_hvp)
def _(tangent, grad_losses, scores, *_):
    return fake_like(grad_losses), fake_like(scores)


@operator
def planes_forward(
    blank_scores: Tensor,
    label_scores: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    blank: int,
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, blank and label posteriors, of the two score planes of a grid, one score a row, in float64."""
    scores = [plane.detach().numpy().astype(np.float64) for plane in (blank_scores, label_scores)]
    # NaN and +inf are not defined, and then the sum of the two is not below +inf.
    undefined = np.where(scores[0] + scores[1] < np.inf, 0.0, np.nan)
    losses = grid.solve(
        scores[0],
        scores[1],
        undefined,
        as_grid(logit_lengths, target_lengths, targets, row_offsets, blank),
        need_gradient=need_gradient,
        num_threads=torch.get_num_threads(),
    )
    return torch.from_numpy(losses), torch.from_numpy(scores[0]), torch.from_numpy(scores[1])


@fake(planes_forward)
def _(blank_scores, label_scores, logit_lengths, *_):
    planes = (plane.new_empty(plane.shape, dtype=torch.float64) for plane in (blank_scores, label_scores))
    return blank_scores.new_empty(logit_lengths.shape[0], dtype=torch.float64), *planes


@operator
def planes_backward(
    grad_losses: Tensor,
    blank_scores: Tensor,
    label_scores: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    blank: int,
    losses: Tensor,
    blank_posteriors: Tensor,
    label_posteriors: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """Minus the posteriors, times the upstream gradient of their sample; 0 where no path exists."""
    # The planes are inputs for the sake of their derivative: the gradient is made of the posteriors alone.
    scale = row_scales(grad_losses, losses, row_offsets, len(blank_posteriors))
    # Where there is no path the posteriors' memory still holds the scores.
    first, second = (
        torch.from_numpy(np.where(scale == 0, 0.0, scale * posteriors.numpy())).to(plane.dtype)
        for plane, posteriors in ((blank_scores, blank_posteriors), (label_scores, label_posteriors))
    )
    return first, second


@fake(planes_backward)
def _(grad_losses, blank_scores, label_scores, *_):
    return fake_like(blank_scores), fake_like(label_scores)


@operator
def planes_hvp(
    blank_tangent: Tensor | None,
    label_tangent: Tensor | None,
    grad_losses: Tensor,
    blank_scores: Tensor,
    label_scores: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    blank: int,
    losses: Tensor,
    blank_posteriors: Tensor,
    label_posteriors: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """The derivative of <tangent, gradient> with respect to the upstream gradient and to the two planes."""
    planes = ((blank_tangent, blank_scores), (label_tangent, label_scores))
    tangents = np.stack([
        np.zeros(len(plane)) if tangent is None else tangent.detach().double().numpy() for tangent, plane in planes
    ])  # fmt: skip
    posteriors = np.stack([blank_posteriors.numpy(), label_posteriors.numpy()])
    costs = of_arcs.hvp(
        tangents,
        losses.numpy(),
        posteriors,
        as_grid(logit_lengths, target_lengths, targets, row_offsets, blank),
        num_threads=torch.get_num_threads(),
    )
    scale = row_scales(grad_losses, losses, row_offsets, tangents.shape[1])
    # Arrays of their own: no two results of an operator may share memory.
    first, second = (torch.from_numpy(scale * plane) for plane in tangents)
    return torch.from_numpy(-costs), first.to(blank_scores.dtype), second.to(label_scores.dtype)


@fake(planes_hvp)
def _(blank_tangent, label_tangent, grad_losses, blank_scores, label_scores, *_):
    return fake_like(grad_losses), fake_like(blank_scores), fake_like(label_scores)
