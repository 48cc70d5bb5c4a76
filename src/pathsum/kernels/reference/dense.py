"""alpha[t, j] = emit[t, j] * sum over i of alpha[t-1, i] * transition[j, i], in logs."""

from __future__ import annotations

import torch
from torch import Tensor

from pathsum.kernels.reference.log_domain import common, exact, log_sum, tied
from pathsum.lattice import DenseLattice


def forward(scores: Tensor, lattice: DenseLattice, transitions: Tensor) -> Tensor:
    """Losses (N,) of scores (N, T, C) and transitions (C, C), [to, from]."""
    num_frames, lengths = scores.shape[1], lattice.input_lengths
    real = (torch.arange(num_frames, device=scores.device) < lengths[:, None])[:, :, None]
    scores, table = torch.where(real, exact(scores), 0.0), exact(transitions)
    # What all paths have in common is added at last: beside 1e17 the log of a sum would be lost.
    offset, move_offset = common(scores, 2), common(table, 0, 1)
    emit, move = scores - offset, table - move_offset

    log_z = scores.new_zeros(len(scores))
    alpha = emit[:, :1].sum(1)
    for t in range(num_frames):
        if t > 0:
            # Only of the samples that take it: a NaN shall not be in the gradient of one that has ended.
            taken = torch.where(real[:, t, :, None], move, 0.0)
            alpha = emit[:, t] + log_sum(alpha[:, None, :] + taken, 2)
        log_z = torch.where(lengths == t + 1, log_sum(alpha, 1), log_z)
    moves = (lengths - 1).clamp(min=0)
    losses = -(log_z + offset.sum((1, 2)) + torch.where(moves > 0, moves * move_offset[0], 0.0))
    return tied(losses, scores, transitions)
