"""alpha[t, s] = max(alpha[t-1, s] + stay, alpha[t-1, s-1] + step, alpha[t-1, s-2] + skip), and the path traced back."""

from __future__ import annotations

import torch
from torch import Tensor

from pathsum.kernels.protocol import ChainPath
from pathsum.kernels.reference.chain import arc_scores
from pathsum.kernels.reference.log_domain import IMPOSSIBLE, exact
from pathsum.lattice import ChainLattice


def best_path(scores: Tensor, lattice: ChainLattice, transitions: Tensor | None = None) -> ChainPath:
    """The best path of each sample of scores (N, T, C) and, where the lattice has any, of its arcs' transitions."""
    num_samples, num_frames, _ = scores.shape
    num_states = lattice.step_labels.shape[1]
    real = torch.arange(num_frames, device=scores.device) < lattice.input_lengths[:, None]
    scores = torch.where(real[:, :, None], exact(scores), 0.0)

    stay, step = arc_scores(scores, lattice, transitions)
    used = torch.arange(num_states, device=scores.device) < lattice.num_states[:, None]
    undefined = (used[:, None] & ~((stay < torch.inf) & (step < torch.inf))).flatten(1).any(1)
    skip = torch.where(lattice.skips[:, None], step, IMPOSSIBLE)

    # Two columns in front of state 0: the virtual state -1, and a state that no path visits.
    front = scores.new_full((num_samples, 2), IMPOSSIBLE)
    state = torch.arange(-2, num_states, device=scores.device)
    alpha = torch.where(state == lattice.start_state, 0.0, IMPOSSIBLE).to(scores).expand(num_samples, -1)
    moves = []
    for t in range(num_frames):
        arriving = torch.stack([alpha[:, 2:] + stay[:, t], alpha[:, 1:-1] + step[:, t], alpha[:, :-2] + skip[:, t]])
        # The first of equals: to stay, to step, to skip.
        best, move = arriving.max(0)
        moves.append(move)
        alpha = torch.where(real[:, t, None], torch.cat([front, best], 1), alpha)

    last = lattice.num_states[:, None]
    final = (state >= -1) & (state >= last - lattice.num_final) & (state < last)
    log_probs, column = torch.where(final, alpha, IMPOSSIBLE).max(1)
    log_probs = torch.where(undefined, torch.nan, log_probs)

    current = column - 2
    states = current.new_full((num_samples, num_frames), -1)
    for t in range(num_frames - 1, -1, -1):
        here = real[:, t] & (log_probs > IMPOSSIBLE)
        states[:, t] = torch.where(here, current, -1)
        moved = moves[t].gather(1, current.clamp(min=0)[:, None])[:, 0]
        current = torch.where(here, current - moved, current)
    return ChainPath(log_probs, states)
