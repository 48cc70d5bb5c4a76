"""alpha[t, u] = max(alpha[t-1, u] + blank[t-1, u], alpha[t, u-1] + label[t, u-1]), and the path traced back."""

from __future__ import annotations

import torch
from torch import Tensor

from pathsum.kernels.protocol import GridPath
from pathsum.kernels.reference.grid import _nodes
from pathsum.kernels.reference.log_domain import IMPOSSIBLE, exact, log_softmax
from pathsum.lattice import GridLattice


def best_path(scores: Tensor, lattice: GridLattice, *, num_labels: int, logits: bool) -> GridPath:
    """The best path of each sample of scores (N, T, U+1, V), in arrays as wide as ``num_labels``."""
    blank, label, undefined = _planes(scores, lattice, num_labels, logits)
    num_samples, num_frames, width = blank.shape
    batch = torch.arange(num_samples, device=scores.device)
    after = torch.arange(num_frames, device=scores.device) == lattice.logit_lengths[:, None] - 1

    arriving = blank.new_full((num_samples, width), IMPOSSIBLE)
    arriving[:, 0] = 0.0
    by_label, log_probs = [], blank.new_full((num_samples,), IMPOSSIBLE)
    for t in range(num_frames):
        written, flags, columns = torch.full_like(log_probs, IMPOSSIBLE), [], []
        for u in range(width):
            flags.append(written > arriving[:, u])
            best = torch.where(flags[-1], written, arriving[:, u])
            written = best + label[:, t, u]
            columns.append(best + blank[:, t, u])
        arriving = torch.stack(columns, 1)
        by_label.append(torch.stack(flags, 1))
        log_probs = torch.where(after[:, t], arriving[batch, lattice.target_lengths], log_probs)
    log_probs = torch.where(undefined, torch.nan, log_probs)

    found = log_probs > IMPOSSIBLE
    frames = torch.full((num_samples, num_labels), -1, dtype=torch.int64, device=scores.device)
    label_scores = torch.zeros((num_samples, num_labels), dtype=blank.dtype, device=scores.device)
    used = torch.arange(num_labels, device=scores.device) < lattice.target_lengths[:, None]
    label_scores = torch.where(used & ~found[:, None], log_probs[:, None], label_scores)
    u = lattice.target_lengths.clone()
    for t in range(num_frames - 1, -1, -1):
        for _ in range(width - 1):
            emits = found & (t < lattice.logit_lengths) & by_label[t][batch, u]
            n, before = batch[emits], u[emits] - 1
            frames[n, before] = t
            label_scores[n, before] = label[n, t, before]
            u = torch.where(emits, u - 1, u)
    return GridPath(log_probs, frames, label_scores)


def _planes(scores: Tensor, lattice: GridLattice, num_labels: int, logits: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (N, T, U+1) of the blank and of the label arcs, -inf outside a sample; whether one is not defined."""
    sample, t, u = _nodes(lattice)
    rows = exact(scores[sample, t, u])
    # A row is defined as a whole where its softmax is taken, and else where its arcs are.
    defined = (rows < torch.inf).all(1) if logits else torch.ones_like(sample, dtype=torch.bool)
    rows = log_softmax(rows) if logits else rows
    labels = lattice.targets[sample, u.clamp(max=lattice.targets.shape[1] - 1)]
    label_scores = rows.gather(1, labels[:, None])[:, 0]
    label_scores = torch.where(u < lattice.target_lengths[sample], label_scores, IMPOSSIBLE)
    blank_scores = rows[:, lattice.blank]
    defined &= (blank_scores < torch.inf) & (label_scores < torch.inf)

    impossible = rows.new_full((scores.shape[0], scores.shape[1], num_labels + 1), IMPOSSIBLE)
    undefined = torch.zeros(scores.shape[0], dtype=torch.bool, device=scores.device)
    undefined = undefined.index_put((sample[~defined],), torch.tensor(True, device=scores.device))
    planes = [impossible.index_put((sample, t, u), plane) for plane in (blank_scores, label_scores)]
    return planes[0], planes[1], undefined
