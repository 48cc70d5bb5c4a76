"""The operators on chains.

Planes over frames are (N, T, S'), padding included: their sizes are known without a look at the lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pathsum.kernels.triton import chain, chain_gradient
from pathsum.torch._launch.common import (
    aligned,
    bucket,
    empties,
    empty_gradient,
    in_rows,
    in_triton,
    launch,
    programs,
    tiles,
    warps,
    work_dtype,
)

# States that a program of the recursion holds; longer chains are done in strips.
STRIP = 2048


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
    input_lengths, num_states, stay_labels, step_labels, *arcs = in_rows(
        input_lengths, num_states, stay_labels, step_labels, skips, stay_transitions, step_transitions, transitions
    )
    num_samples, num_frames, num_classes = scores.shape
    num_rows, width = num_samples * num_frames, step_labels.shape[1]
    empty, work = empties(scores), work_dtype(scores)
    maxima, sums = (empty(num_rows if logits else 0, dtype=work) for _ in range(2))
    step_scores = empty(num_rows, width, dtype=work)
    stay_scores = step_scores if shared_labels else empty(num_rows, width, dtype=work)
    extents = torch.zeros(num_samples, dtype=torch.int32, device=scores.device)
    rows, classes = tiles(num_classes, work)
    launch(
        chain.score_rows, (programs(num_rows, rows),), scores,
        scores, *scores.stride(), num_samples, num_frames, num_classes, input_lengths, num_states, stay_labels,
        step_labels, width, width, maxima, sums, stay_scores, step_scores, extents, LOGITS=logits, SHARED=shared_labels,
        WORK=in_triton(work), ROWS=rows, BLOCK=classes, ALIGNED=aligned(scores),
    )  # fmt: skip

    losses, alpha = empty(num_samples), empty(num_rows, width)
    beta = empty(num_rows if need_gradient else 0, width)
    block = bucket(width, 32, STRIP)
    # Scores of arcs that are the same in all frames have their rounding in all frames too.
    fixed = transitions is not None or work == torch.float64
    for wide in (True,) if fixed else (False, True):
        words = torch.float64 if wide else torch.int64
        launch(
            chain.solve, (num_samples, 2 if need_gradient else 1), scores,
            stay_scores, step_scores, maxima, sums, extents, input_lengths, num_states, *arcs, num_frames, width, width,
            start_state, num_final, alpha.view(words), beta.view(words), losses, LOGITS=logits, SHARED=shared_labels,
            TRANSITIONS=transitions is not None, BLOCK=block, WIDE=wide, FIXED=fixed, num_warps=warps(block),
        )  # fmt: skip
    if not need_gradient:
        return losses, maxima, sums, empty(0, 0, dtype=work), empty(0, 0, dtype=work)
    rows, columns = tiles(width, torch.float64)
    for wide in (True,) if fixed else (False, True):
        words = torch.float64 if wide else torch.int64
        launch(
            chain.find_posteriors, (programs(num_rows, rows),), scores,
            stay_scores, step_scores, extents, losses, input_lengths, num_states, *arcs, alpha.view(words),
            beta.view(words), num_samples, num_frames, width, width, start_state, SHARED=shared_labels,
            TRANSITIONS=transitions is not None, ROWS=rows, BLOCK=columns, WIDE=wide, FIXED=fixed,
        )  # fmt: skip
    stay = empty(0, 0, dtype=work) if shared_labels else stay_scores
    return losses, maxima, sums, stay, step_scores


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
    input_lengths, num_states, grad_losses = in_rows(input_lengths, num_states, grad_losses)
    gradient, transition_gradient = scores.new_empty(0), scores.new_empty(0)
    if by_logits:
        maxima, sums = step.new_zeros(len(step)), step.new_ones(len(step))
    if needed[0]:
        gradient = empty_gradient(scores)
        labels = step_labels if shared_labels else torch.cat([step_labels, stay_labels], 1)
        _write_gradient(
            grad_losses, scores, input_lengths, num_states, labels, logits or by_logits,
            (losses, maxima, sums, stay, step), gradient,
        )  # fmt: skip
    if transitions is not None and step_transitions is not None and stay_transitions is not None and needed[1]:
        arcs = torch.stack([step_transitions, stay_transitions], 1)
        transition_gradient = _transition_gradient(
            grad_losses, transitions, input_lengths, num_states, arcs, losses, step
        )
    return gradient, transition_gradient


def _write_gradient(
    grad_losses: Tensor,
    scores: Tensor,
    input_lengths: Tensor,
    num_states: Tensor,
    labels: Tensor,
    logits: bool,
    saved: tuple[Tensor, ...],
    gradient: Tensor,
) -> None:
    """``labels``: of the arcs that enter a state, then, where they differ, of those that stay."""
    num_samples, num_frames, num_classes = scores.shape
    work, width = work_dtype(scores), saved[-1].shape[1]
    state = torch.arange(labels.shape[1], device=scores.device) % width
    classes, entries = torch.where(state < num_states[:, None], labels, num_classes).sort(dim=1, stable=True)
    rows, block = tiles(num_classes, work)
    launch(
        chain_gradient.write_gradient, (programs(num_samples * num_frames, rows),), scores,
        grad_losses, scores, *scores.stride(), num_samples, num_frames, num_classes, input_lengths, *saved, classes,
        entries, labels.shape[1], width, gradient, *gradient.stride(), LOGITS=logits, WORK=in_triton(work), ROWS=rows,
        BLOCK=block, ALIGNED=aligned(scores, gradient),
    )  # fmt: skip


def _transition_gradient(
    grad_losses: Tensor,
    transitions: Tensor,
    input_lengths: Tensor,
    num_states: Tensor,
    arcs: Tensor,
    losses: Tensor,
    posteriors: Tensor,
) -> Tensor:
    """``arcs`` (N, 2, S'): index of the transition that enters each state, and of that which stays."""
    num_samples, _, width = arcs.shape
    num_frames = len(posteriors) // max(num_samples, 1)
    counts = empties(transitions)(num_samples, 2, width)
    block = bucket(width, 32, 256)
    launch(
        chain_gradient.count_arcs, (num_samples, programs(width, block)), transitions,
        grad_losses, losses, input_lengths, num_states, posteriors, num_frames, width, counts, BLOCK=block,
    )  # fmt: skip
    used = torch.arange(width, device=transitions.device) < num_states[:, None]
    arcs = torch.where(used[:, None] & (arcs >= 0), arcs, transitions.numel())
    keys, entries = arcs.flatten().sort(dim=0, stable=True)
    gradient = torch.zeros_like(transitions, memory_format=torch.contiguous_format)
    launch(
        chain_gradient.add_counts, (1,), transitions,
        counts, keys, entries, keys.numel(), transitions.numel(), gradient, BLOCK=1024,
    )  # fmt: skip
    return gradient
