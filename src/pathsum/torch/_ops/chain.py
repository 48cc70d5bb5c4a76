"""Operators on chains."""

from __future__ import annotations

import torch
from torch import Tensor

from pathsum.kernels.numba import chain
from pathsum.kernels.numba.rows import strided
from pathsum.lattice import ChainLattice
from pathsum.torch._ops.arrays import as_array, as_saved, as_table, as_tensors, empty_like, fake_gradient, fake_results
from pathsum.torch._ops.registration import fake, operator


@operator
def chain_forward(
    scores: Tensor,
    transitions: Tensor | None,
    input_lengths: Tensor,
    num_states: Tensor,
    stay_labels: Tensor,
    step_labels: Tensor,
    skips: Tensor,
    stay_transitions: Tensor | None,
    step_transitions: Tensor | None,
    start_state: int,
    num_final: int,
    shared_labels: bool,
    logits: bool,
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses, softmax maxima and sums, stay and step posteriors, of scores (N, T, C) and transitions (C, C)."""
    lattice = _chain(
        input_lengths, num_states, stay_labels, step_labels, skips, start_state, num_final, shared_labels,
        stay_transitions, step_transitions,
    )  # fmt: skip
    array, encoding = as_array(scores)
    saved = chain.forward(
        strided(array, encoding),
        scores.shape[2],
        lattice,
        None if transitions is None else as_table(transitions, scores),
        logits=logits,
        need_gradient=need_gradient,
        num_threads=torch.get_num_threads(),
    )
    return as_tensors(saved)


@fake(chain_forward)
def _(scores, transitions, input_lengths, num_states, stay_labels, step_labels, skips, stay_transitions,
      step_transitions, start_state, num_final, shared_labels, logits, need_gradient):  # fmt: skip
    return fake_results(scores, input_lengths.shape[0])


@operator
def chain_backward(
    grad_losses: Tensor,
    scores: Tensor,
    input_lengths: Tensor,
    num_states: Tensor,
    stay_labels: Tensor,
    step_labels: Tensor,
    skips: Tensor,
    start_state: int,
    num_final: int,
    shared_labels: bool,
    logits: bool,
    losses: Tensor,
    maxima: Tensor,
    sums: Tensor,
    stay: Tensor,
    step: Tensor,
    time_major: bool,
) -> Tensor:
    """The gradient (N, T, C), laid out in memory as (T, N, C) where ``time_major``."""
    lattice = _chain(input_lengths, num_states, stay_labels, step_labels, skips, start_state, num_final, shared_labels)
    array, encoding = as_array(scores)
    gradient = empty_like(scores.transpose(0, 1)).transpose(0, 1) if time_major else empty_like(scores)
    chain.backward(
        grad_losses.detach().numpy(),
        strided(array, encoding),
        scores.shape[2],
        lattice,
        as_saved(losses, maxima, sums, stay, step),
        strided(*as_array(gradient)),
        scores.shape[1],
        logits=logits,
        num_threads=torch.get_num_threads(),
    )
    return gradient


@fake(chain_backward)
def _(grad_losses, scores, input_lengths, num_states, stay_labels, step_labels, skips, start_state, num_final,
      shared_labels, logits, losses, maxima, sums, stay, step, time_major):  # fmt: skip
    return fake_gradient(scores, time_major)


@operator
def chain_transition_gradient(
    grad_losses: Tensor,
    transitions: Tensor,
    input_lengths: Tensor,
    num_states: Tensor,
    stay_labels: Tensor,
    step_labels: Tensor,
    skips: Tensor,
    stay_transitions: Tensor,
    step_transitions: Tensor,
    start_state: int,
    num_final: int,
    shared_labels: bool,
    losses: Tensor,
    maxima: Tensor,
    sums: Tensor,
    stay: Tensor,
    step: Tensor,
) -> Tensor:
    """The gradient (C, C)."""
    lattice = _chain(
        input_lengths, num_states, stay_labels, step_labels, skips, start_state, num_final, shared_labels,
        stay_transitions, step_transitions,
    )  # fmt: skip
    saved = as_saved(losses, maxima, sums, stay, step)
    gradient = chain.transition_gradient(grad_losses.detach().numpy(), transitions.shape[0], lattice, saved)
    return torch.from_numpy(gradient).to(transitions.dtype)


@fake(chain_transition_gradient)
def _(grad_losses, transitions, *_):
    return torch.empty_like(transitions, memory_format=torch.contiguous_format)


def _chain(
    input_lengths: Tensor,
    num_states: Tensor,
    stay_labels: Tensor,
    step_labels: Tensor,
    skips: Tensor,
    start_state: int,
    num_final: int,
    shared_labels: bool,
    stay_transitions: Tensor | None = None,
    step_transitions: Tensor | None = None,
) -> ChainLattice:
    labels = step_labels.numpy()
    return ChainLattice(
        input_lengths=input_lengths.numpy(),
        num_states=num_states.numpy(),
        stay_labels=labels if shared_labels else stay_labels.numpy(),
        step_labels=labels,
        skips=skips.numpy(),
        start_state=start_state,
        num_final=num_final,
        stay_transitions=None if stay_transitions is None else stay_transitions.numpy(),
        step_transitions=None if step_transitions is None else step_transitions.numpy(),
    )
