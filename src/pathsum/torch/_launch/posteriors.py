"""Posteriors as the forward kernels leave them, of lattices on the scores' device; garbage in padding.

Functions return losses (N,) first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pathsum.lattice import ChainLattice, DenseLattice, GridLattice
from pathsum.torch._launch.chain import chain_forward
from pathsum.torch._launch.dense import dense_backward, dense_forward
from pathsum.torch._launch.grid import grid_forward


def chain_posteriors(
    scores: Tensor, lattice: ChainLattice, transitions: Tensor | None = None, *, logits: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the arcs that stay in and of those that enter each state of scores (N, T, C), (N, T, S') each."""
    # As if their labels were not the same, the kernels tell the two arcs apart.
    shared_labels, by_logits, need_gradient = False, False, True
    losses, _, _, stays, entries = chain_forward(
        scores, transitions, lattice.input_lengths, lattice.num_states, lattice.stay_labels, lattice.step_labels,
        lattice.skips, lattice.stay_transitions, lattice.step_transitions, lattice.start_state, lattice.num_final,
        shared_labels, logits, by_logits, need_gradient,
    )  # fmt: skip
    shape = (*scores.shape[:2], lattice.step_labels.shape[1])
    return losses, stays.view(shape), entries.view(shape)


def grid_posteriors(scores: Tensor, lattice: GridLattice, *, logits: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Of the blank and of the label arcs out of each node of scores (N, T, U+1, V), (N, T, U+1) each."""
    losses, _, _, blanks, labels = grid_forward(
        scores, lattice.logit_lengths, lattice.target_lengths, lattice.targets, lattice.row_offsets, lattice.blank,
        logits, 0.0, -1.0, True,
    )  # fmt: skip
    return losses, blanks.view(scores.shape[:3]), labels.view(scores.shape[:3])


def dense_posteriors(scores: Tensor, lattice: DenseLattice, transitions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each state in each frame (N, T, C); and how often each arc is expected in all samples but those of NaN."""
    saved = dense_forward(scores, transitions, lattice.input_lengths, True)
    losses, _, states, *_ = saved
    counted = torch.where(losses.isnan(), 0.0, -1.0).to(losses)
    _, counts = dense_backward(
        counted, scores, transitions.double(), lattice.input_lengths, *saved, needed=[False, True]
    )
    return losses, states.view(scores.shape), counts
