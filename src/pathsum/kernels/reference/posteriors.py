"""The posterior of an arc is the derivative of the log-sum by the arc's score: every arc is given a class of its own.

Functions return losses (N,) and the posteriors of the two kinds of arcs, 0 where no path exists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pathsum.kernels.reference import chain, dense, grid
from pathsum.kernels.reference.log_domain import exact, log_softmax
from pathsum.lattice import ChainLattice, DenseLattice, GridLattice


def chain_posteriors(
    scores: Tensor, lattice: ChainLattice, transitions: Tensor | None = None, *, logits: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the arcs that stay in and of those that enter each state, (N, T, S') each."""
    log_probs = log_softmax(exact(scores)) if logits else exact(scores)
    stay, step = chain.arc_scores(log_probs, lattice, transitions)
    state = torch.arange(stay.shape[2], device=scores.device).expand(len(stay), -1)
    own = replace(
        lattice,
        stay_labels=state,
        step_labels=state + stay.shape[2],
        stay_transitions=None,
        step_transitions=None,
        shared_labels=False,
    )
    losses, posteriors = _differentiate(torch.cat([stay, step], 2), lambda arcs: chain.forward(arcs, own, logits=False))
    stays, entries = posteriors.chunk(2, 2)
    return losses, stays, entries


def grid_posteriors(scores: Tensor, lattice: GridLattice, *, logits: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Of the blank and of the label arcs out of each node of scores (N, T, U+1, V), (N, T, U+1) each."""
    log_probs = log_softmax(exact(scores)) if logits else exact(scores)
    nodes = torch.arange(scores.shape[2], device=scores.device)
    labels = lattice.targets[:, nodes.clamp(max=lattice.targets.shape[1] - 1)]
    label = log_probs.gather(3, labels[:, None, :, None].expand(-1, scores.shape[1], -1, 1))
    arcs = torch.cat([log_probs[..., lattice.blank, None], label], 3)
    own = replace(lattice, blank=0, targets=torch.ones_like(lattice.targets))
    losses, posteriors = _differentiate(arcs, lambda arcs: grid.forward(arcs, own, logits=False))
    return losses, posteriors[..., 0], posteriors[..., 1]


def dense_posteriors(scores: Tensor, lattice: DenseLattice, transitions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each state in each frame, (N, T, C); and how often each arc is expected in all samples but those of NaN."""
    losses, states = _differentiate(exact(scores), lambda scores: dense.forward(scores, lattice, transitions))
    defined = ~losses.isnan()
    own = replace(lattice, input_lengths=lattice.input_lengths[defined])
    _, counts = _differentiate(exact(transitions), lambda arcs: dense.forward(scores[defined], own, arcs))
    return losses, states, counts


def _differentiate(arcs: Tensor, solve: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    arcs = arcs.detach().requires_grad_()
    with torch.enable_grad():
        losses = solve(arcs)
        (gradient,) = torch.autograd.grad(losses.sum(), arcs)
    return losses.detach(), -gradient
