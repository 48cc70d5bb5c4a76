"""alpha[t, j] = emit[t, j] * sum over i of alpha[t-1, i] * transition[j, i], in logs."""

from __future__ import annotations

import torch
from torch import Tensor

from pathsum.kernels.reference.log_domain import exact, log_sum
from pathsum.lattice import DenseLattice


def forward(scores: Tensor, lattice: DenseLattice, transitions: Tensor) -> Tensor:
    """Losses (N,) of scores (N, T, C) and transitions (C, C), [to, from]."""
    num_samples, num_frames, _ = scores.shape
    real = torch.arange(num_frames, device=scores.device) < lattice.input_lengths[:, None]
    scores = torch.where(real[:, :, None], exact(scores), 0.0)
    transitions = exact(transitions)

    log_z = scores.new_zeros(num_samples)
    alpha = scores[:, :1].sum(1)
    for t in range(num_frames):
        if t > 0:
            alpha = scores[:, t] + log_sum(alpha[:, None, :] + transitions, 2)
        log_z = torch.where(lattice.input_lengths == t + 1, log_sum(alpha, 1), log_z)
    return -log_z
