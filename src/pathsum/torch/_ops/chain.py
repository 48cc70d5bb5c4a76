"""Operators on chains."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pathsum.kernels.numba import chain
from pathsum.kernels.numba import chain_hvp as kernels_hvp
from pathsum.kernels.numba.rows import strided
from pathsum.lattice import ChainLattice
from pathsum.torch._ops.arrays import (
    as_array,
    as_saved,
    as_table,
    as_tangent,
    as_tensors,
    empty_gradient,
    fake_gradient,
    fake_like,
    fake_results,
)
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
    by_logits: bool,
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
      step_transitions, start_state, num_final, shared_labels, logits, by_logits,
      need_gradient):  # fmt: skip
    return fake_results(scores, input_lengths.shape[0], axes=2)


@operator
def chain_backward(
    grad_losses: Tensor,
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
    by_logits: bool,
    losses: Tensor,
    maxima: Tensor,
    sums: Tensor,
    stay: Tensor,
    step: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """The gradients (N, T, C), in the order of the scores' memory, and (C, C); of no size where not needed.

    With ``by_logits`` the scores are log-probabilities and the gradient is that by the logits behind them.
    """
    lattice = _chain(
        input_lengths, num_states, stay_labels, step_labels, skips, start_state, num_final, shared_labels,
        stay_transitions, step_transitions,
    )  # fmt: skip
    upstream = grad_losses.detach().numpy()
    saved = as_saved(losses, maxima, sums, stay, step)
    if by_logits:
        rows = step.new_zeros(len(step)), step.new_ones(len(step))
        saved = as_saved(losses, *rows, stay, step)
    gradient, transition_gradient = scores.new_empty(0), scores.new_empty(0)
    if needed[0]:
        array, encoding = as_array(scores)
        gradient = empty_gradient(scores)
        chain.backward(
            upstream,
            strided(array, encoding),
            scores.shape[2],
            lattice,
            saved,
            strided(*as_array(gradient)),
            scores.shape[1],
            logits=logits or by_logits,
            num_threads=torch.get_num_threads(),
        )
    if transitions is not None and needed[1]:
        counts = chain.transition_gradient(upstream, scores.shape[2], lattice, saved)
        transition_gradient = torch.from_numpy(counts).to(transitions.dtype)
    return gradient, transition_gradient


@fake(chain_backward)
def _(grad_losses, scores, transitions, input_lengths, num_states, stay_labels, step_labels, skips, stay_transitions,
      step_transitions, start_state, num_final, shared_labels, logits, by_logits, losses, maxima, sums, stay,
      step, needed):  # fmt: skip
    return (
        fake_gradient(scores) if needed[0] else scores.new_empty(0),
        fake_like(transitions) if transitions is not None and needed[1] else scores.new_empty(0),
    )


@operator
def chain_hvp(
    tangent: Tensor | None,
    transition_tangent: Tensor | None,
    grad_losses: Tensor,
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
    by_logits: bool,
    losses: Tensor,
    maxima: Tensor,
    sums: Tensor,
    stay: Tensor,
    step: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes of the losses (N,) along the tangents, where ``None`` is zeros; the products (N, T, C) and (C, C)."""
    lattice = _chain(
        input_lengths, num_states, stay_labels, step_labels, skips, start_state, num_final, shared_labels,
        stay_transitions, step_transitions,
    )  # fmt: skip
    array, encoding = as_array(scores)
    product = empty_gradient(scores)
    slopes, transition_product = kernels_hvp.hvp(
        grad_losses.detach().numpy(),
        strided(*as_tangent(tangent, scores)),
        None if transition_tangent is None else as_table(transition_tangent, scores),
        strided(array, encoding),
        scores.shape[2],
        lattice,
        None if transitions is None else as_table(transitions, scores),
        as_saved(losses, maxima, sums, stay, step),
        strided(*as_array(product)),
        scores.shape[1],
        logits=logits,
        num_threads=torch.get_num_threads(),
    )
    table = scores if transitions is None else transitions
    return torch.from_numpy(slopes), product, torch.from_numpy(transition_product).to(table.dtype)


@fake(chain_hvp)
def _(tangent, transition_tangent, grad_losses, scores, transitions, input_lengths, num_states, stay_labels,
      step_labels, skips, stay_transitions, step_transitions, start_state, num_final, shared_labels, logits, by_logits,
      losses, maxima, sums, stay, step, needed):  # fmt: skip
    table = scores.new_empty((0, 0)) if transitions is None else fake_like(transitions)
    return torch.empty_like(losses), fake_gradient(scores), table


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
