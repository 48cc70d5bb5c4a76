"""alpha[t, j] = emit[t, j] + max over i of alpha[t-1, i] + transition[j, i], and the path traced back."""

from __future__ import annotations

import torch
from torch import Tensor

from pathsum.kernels.protocol import DensePath
from pathsum.kernels.reference.log_domain import IMPOSSIBLE, exact
from pathsum.lattice import DenseLattice


def best_path(scores: Tensor, lattice: DenseLattice, transitions: Tensor) -> DensePath:
    """The best path of each sample of scores (N, T, C) and transitions (C, C), [to, from]."""
    num_samples, num_frames, _ = scores.shape
    real = torch.arange(num_frames, device=scores.device) < lattice.input_lengths[:, None]
    scores = torch.where(real[:, :, None], exact(scores), 0.0)
    transitions = exact(transitions)
    undefined = ~(scores < torch.inf).flatten(1).all(1)
    undefined |= (lattice.input_lengths > 1) & ~(transitions < torch.inf).all()

    alpha = scores[:, :1].sum(1)
    sources = []
    for t in range(1, num_frames):
        best, source = (alpha[:, None, :] + transitions).max(2)
        sources.append(source)
        alpha = torch.where(real[:, t, None], scores[:, t] + best, alpha)
    log_probs, current = alpha.max(1)
    log_probs = torch.where(undefined, torch.nan, log_probs)

    states = current.new_full((num_samples, num_frames), -1)
    for t in range(num_frames - 1, -1, -1):
        here = real[:, t] & (log_probs > IMPOSSIBLE)
        states[:, t] = torch.where(here, current, -1)
        if t > 0:
            current = torch.where(here, sources[t - 1].gather(1, current[:, None])[:, 0], current)
    return DensePath(log_probs, states)
