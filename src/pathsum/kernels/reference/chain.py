"""alpha[t, s] = alpha[t-1, s] * stay[t, s] + alpha[t-1, s-1] * step[t, s] + alpha[t-1, s-2] * skip[t, s], in logs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathsum.kernels.reference.log_domain import (
    IMPOSSIBLE,
    common,
    exact,
    log_add,
    log_softmax,
    log_sum,
    not_negative,
    tied,
)
from pathsum.lattice import ChainLattice


def forward(scores: Tensor, lattice: ChainLattice, transitions: Tensor | None = None, *, logits: bool) -> Tensor:
    """Losses (N,) of scores (N, T, C) and, where the lattice has any, of its arcs' transitions (C, C)."""
    num_frames, num_states = scores.shape[1], lattice.step_labels.shape[1]
    frame = torch.arange(num_frames, device=scores.device)
    real = frame < lattice.input_lengths[:, None]
    scores = torch.where(real[:, :, None], exact(scores), 0.0)
    log_probs = log_softmax(scores) if logits else scores

    stay, step = arc_scores(log_probs, lattice, transitions)
    # What all arcs of a frame have in common is added at last: beside 1e17 the log of a sum would be lost.
    offset = torch.where(real[:, :, None], common(torch.cat([stay, step], 2), 2), 0.0)
    stay, step = stay - offset, step - offset
    skip = torch.where(lattice.skips[:, None], step, IMPOSSIBLE)

    state = torch.arange(-1, num_states, device=scores.device)
    alpha = torch.where(state == lattice.start_state, 0.0, IMPOSSIBLE).to(log_probs).expand(len(scores), -1)
    alpha = _advance(alpha, stay, step, skip, real)

    last = lattice.num_states[:, None]
    final = (state >= last - lattice.num_final) & (state < last)
    losses = -(log_sum(torch.where(final, alpha, IMPOSSIBLE), 1) + offset.sum((1, 2)))
    losses = not_negative(losses) if logits else losses
    return tied(losses, scores, *([] if transitions is None else [transitions]))


def advance(scores: Tensor, lattice: ChainLattice, alpha: Tensor) -> Tensor:
    """Alpha (N, 1 + S') after frames of scores (N, T, S') of the arcs into each state, of that before them."""
    real = torch.arange(scores.shape[1], device=scores.device) < lattice.input_lengths[:, None]
    skip = torch.where(lattice.skips[:, None], scores, IMPOSSIBLE)
    return _advance(alpha, scores, scores, skip, real)


def _advance(alpha: Tensor, stay: Tensor, step: Tensor, skip: Tensor, real: Tensor) -> Tensor:
    # Two columns in front of state 0: the virtual state -1, and a state that no path visits.
    nowhere = alpha.new_full((len(alpha), 1), IMPOSSIBLE)
    front = nowhere.expand(-1, 2)
    alpha = torch.cat([nowhere, alpha], 1)
    for t in range(real.shape[1]):
        entered = log_add(alpha[:, 2:] + stay[:, t], alpha[:, 1:-1] + step[:, t], alpha[:, :-2] + skip[:, t])
        alpha = torch.where(real[:, t, None], torch.cat([front, entered], 1), alpha)
    return alpha[:, 1:]


def arc_scores(log_probs: Tensor, lattice: ChainLattice, transitions: Tensor | None) -> tuple[Tensor, Tensor]:
    """(N, T, S') scores of the arcs that stay in and that enter each state; 0 in padding."""
    stay, step = _emitted(log_probs, lattice.stay_labels), _emitted(log_probs, lattice.step_labels)
    if transitions is None:
        return stay, step
    # To the first frame no transition leads.
    frame = torch.arange(log_probs.shape[1], device=log_probs.device)
    moves = ((frame > 0) & (frame < lattice.input_lengths[:, None]))[:, :, None]
    constants = [
        _constant(transitions, indices)[:, None] for indices in (lattice.stay_transitions, lattice.step_transitions)
    ]
    return stay + torch.where(moves, constants[0], 0.0), step + torch.where(moves, constants[1], 0.0)


def _emitted(log_probs: Tensor, labels: Tensor) -> Tensor:
    """(N, T, S') score of each state's label in each frame."""
    return log_probs.gather(2, labels[:, None].expand(-1, log_probs.shape[1], -1))


def _constant(transitions: Tensor, indices: Any) -> Tensor:
    """(N, S') score of each state's arc that is the same in all frames."""
    return torch.where(indices >= 0, exact(transitions).flatten()[indices.clamp(min=0)], 0.0)
