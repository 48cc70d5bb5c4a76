"""alpha[t, u] = alpha[t-1, u] * blank[t-1, u] + alpha[t, u-1] * label[t, u-1], in logs, by anti-diagonals t + u."""

from __future__ import annotations

import torch
from torch import Tensor

from pathsum.kernels.reference.log_domain import IMPOSSIBLE, common, exact, log_add, log_softmax, not_negative
from pathsum.lattice import ArcLattice, GridLattice


def forward(
    scores: Tensor, lattice: GridLattice, *, logits: bool, fastemit_lambda: float = 0.0, clamp: float = -1.0
) -> Tensor:
    """Losses (N,) of scores (N, T, U+1, V) or packed (sum of T*(U+1), V)."""
    if clamp > 0:
        return _with_clamped_gradient(scores, lattice, logits, fastemit_lambda, clamp)
    sample, t, u = _nodes(lattice)
    rows = exact(scores[sample, t, u] if scores.ndim == 4 else scores)
    log_probs = log_softmax(rows) if logits else rows

    label = lattice.targets[sample, u.clamp(max=lattice.targets.shape[1] - 1)]
    label_scores = log_probs.gather(1, label[:, None])[:, 0]
    label_scores = torch.where(u < lattice.target_lengths[sample], label_scores, IMPOSSIBLE)
    if fastemit_lambda:
        label_scores = label_scores + fastemit_lambda * _zero_with_gradient(label_scores)
    blank_scores = log_probs[:, lattice.blank]

    shape = (
        len(lattice.logit_lengths),
        int(lattice.logit_lengths.amax() if len(lattice.logit_lengths) else 0) + 1,
        lattice.targets.shape[1] + 1,
    )
    impossible = rows.new_full(shape, IMPOSSIBLE)
    blank = impossible.index_put((sample, t, u), blank_scores)
    label = impossible.index_put((sample, t, u), label_scores)
    # What all paths have in common, a blank of each frame and every label, is added at last: beside 1e17 the log of a
    # sum would be lost.
    offsets = common(blank, 2), common(label, 1)
    # The blank out of (T-1, U) enters (T, U), which no other arc does.
    alpha = _alpha(blank - offsets[0], label - offsets[1])
    batch = torch.arange(shape[0], device=scores.device)
    log_z = alpha[batch, lattice.logit_lengths, lattice.target_lengths]
    log_z = log_z + offsets[0].sum((1, 2)) + offsets[1].sum((1, 2))
    losses = -torch.where(lattice.logit_lengths > 0, log_z, IMPOSSIBLE)
    return not_negative(losses) if logits else losses


def _nodes(lattice: GridLattice | ArcLattice) -> tuple[Tensor, Tensor, Tensor]:
    """Sample, t and u of every row of the packed layout."""
    counts = lattice.logit_lengths * (lattice.target_lengths + 1)
    sample = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    node = torch.arange(len(sample), device=counts.device) - lattice.row_offsets[sample]
    width = lattice.target_lengths[sample] + 1
    return sample, node // width, node % width


def _alpha(blank: Tensor, label: Tensor) -> Tensor:
    """(N, T+1, U+1) log mass of the arcs into each node; (0, 0) has mass 1."""
    _, num_frames, width = blank.shape
    u = torch.arange(width, device=blank.device)
    outside = blank.new_full((len(blank), 1), IMPOSSIBLE)
    diagonal = torch.where(u == 0, 0.0, IMPOSSIBLE).to(blank).expand(len(blank), -1)
    diagonals = [diagonal]
    for d in range(1, num_frames + width - 1):
        by_blank = diagonal + _at(blank, d - 1 - u, u)
        by_label = torch.cat([outside, (diagonal + _at(label, d - 1 - u, u))[:, :-1]], 1)
        diagonal = log_add(by_blank, by_label)
        diagonals.append(diagonal)
    stacked = torch.stack(diagonals, 1)
    t = torch.arange(num_frames, device=blank.device)[:, None]
    return stacked[:, t + u, u]


def _at(plane: Tensor, t: Tensor, u: Tensor) -> Tensor:
    """plane[:, t, u], -inf outside."""
    inside = (t >= 0) & (t < plane.shape[1])
    return torch.where(inside, plane[:, t.clamp(0, plane.shape[1] - 1), u], IMPOSSIBLE)


def _zero_with_gradient(x: Tensor) -> Tensor:
    """0 with the derivative of x, 0 where x is not finite."""
    return torch.where(x.isfinite(), x - x.detach(), 0.0)


def _with_clamped_gradient(
    scores: Tensor, lattice: GridLattice, logits: bool, fastemit_lambda: float, clamp: float
) -> Tensor:
    """The same losses, whose gradient is clamped before the upstream gradient multiplies it."""
    with torch.enable_grad():
        probe = scores.detach().requires_grad_()
        losses = forward(probe, lattice, logits=logits, fastemit_lambda=fastemit_lambda)
        (gradient,) = torch.autograd.grad(losses.sum(), probe)
    gradient = exact(gradient.clamp(-clamp, clamp))
    linear = (_zero_with_gradient(exact(scores)) * gradient).sum(-1)
    if scores.ndim == 4:
        return losses.detach() + linear.sum((1, 2))
    sample, _, _ = _nodes(lattice)
    return losses.detach() + torch.zeros_like(losses).index_add(0, sample, linear)
