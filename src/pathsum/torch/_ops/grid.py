"""Operators on grids: of padded or packed scores, and of the two planes of scores."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pathsum.kernels.numba import grid
from pathsum.kernels.protocol import Saved
from pathsum.lattice import GridLattice
from pathsum.torch._ops.arrays import as_grid, as_rows, as_saved, as_tensors, empty_like, fake_results
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
def _(scores, logit_lengths, target_lengths, targets, row_offsets, blank, logits, need_gradient):
    return fake_results(scores, logit_lengths.shape[0])


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
) -> Tensor:
    """The gradient with respect to the scores, in a fresh contiguous tensor."""
    gradient = empty_like(scores)
    saved = as_saved(losses, maxima, sums, blank_posteriors, label_posteriors)
    lattice = as_grid(logit_lengths, target_lengths, targets, row_offsets, blank)
    _write_grid_gradient(grad_losses, scores, lattice, saved, gradient, logits, fastemit_lambda, clamp)
    return gradient


@fake(grid_backward)
def _(grad_losses, scores, logit_lengths, target_lengths, targets, row_offsets, blank, logits, fastemit_lambda, clamp,
      losses, maxima, sums, blank_posteriors, label_posteriors):  # fmt: skip
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


def grid_backward_over_scores(
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
) -> None:
    """The gradient written over the scores themselves; no operator, these change none of their arguments."""
    saved = as_saved(losses, maxima, sums, blank_posteriors, label_posteriors)
    lattice = as_grid(logit_lengths, target_lengths, targets, row_offsets, blank)
    _write_grid_gradient(grad_losses, scores, lattice, saved, scores, logits, fastemit_lambda, clamp)


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
    grad_losses: Tensor, row_offsets: Tensor, losses: Tensor, blank_posteriors: Tensor, label_posteriors: Tensor
) -> tuple[Tensor, Tensor]:
    """Minus the posteriors, times the upstream gradient of their sample; 0 where no path exists."""
    scale = torch.where(losses == torch.inf, 0.0, -grad_losses).where(~losses.isnan(), torch.nan)
    scale = torch.repeat_interleave(scale, row_offsets.diff())
    alive = scale != 0
    return (
        torch.where(alive, scale * blank_posteriors, 0.0),
        torch.where(alive, scale * label_posteriors, 0.0),
    )


@fake(planes_backward)
def _(grad_losses, row_offsets, losses, blank_posteriors, label_posteriors):
    return torch.empty_like(blank_posteriors), torch.empty_like(label_posteriors)
