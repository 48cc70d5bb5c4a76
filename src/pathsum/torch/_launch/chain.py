"""The operators on chains.

Planes over frames are (N, T, S'), padding included: their sizes are known without a look at the lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pathsum.kernels.triton import chain, chain_gradient
from pathsum.kernels.triton import chain_hvp as kernels_hvp
from pathsum.torch._launch.common import (
    aligned,
    bucket,
    empties,
    empty_gradient,
    in_rows,
    in_triton,
    launch,
    programs,
    scan,
    tiles,
    warps,
    work_dtype,
)

# States that a program of the recursion holds; longer chains are done in strips.
STRIP = 2048
# The same of the means of second derivatives, which need more registers a state.
MEANS_STRIP = 1024


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
    fixed = _is_fixed(transitions, work)
    _solve(
        (stay_scores, step_scores), (maxima, sums), extents, input_lengths, num_states, arcs, (num_frames, width),
        (start_state, num_final), alpha, beta, losses, LOGITS=logits, SHARED=shared_labels, FIXED=fixed,
    )  # fmt: skip
    if not need_gradient:
        return losses, maxima, sums, empty(0, 0, dtype=work), empty(0, 0, dtype=work)
    rows, columns = tiles(width, torch.float64)
    for wide, words in _pairs(fixed):
        launch(
            chain.find_posteriors, (programs(num_rows, rows),), scores,
            stay_scores, step_scores, extents, losses, input_lengths, num_states, *arcs, alpha.view(words),
            beta.view(words), num_samples, num_frames, width, width, start_state, SHARED=shared_labels,
            TRANSITIONS=transitions is not None, ROWS=rows, BLOCK=columns, WIDE=wide, FIXED=fixed,
        )  # fmt: skip
    stay = empty(0, 0, dtype=work) if shared_labels else stay_scores
    return losses, maxima, sums, stay, step_scores


def _is_fixed(transitions: Tensor | None, work: torch.dtype) -> bool:
    """Whether all samples take the wide pair: scores of arcs that are the same in all frames have their rounding in
    all frames too.
    """
    return transitions is not None or work == torch.float64


def _pairs(fixed: bool) -> list[tuple[bool, torch.dtype]]:
    """The pairs of extended range, whether it is the wide one, and its words; each launch leaves the other's alone."""
    return [(True, torch.float64)] if fixed else [(False, torch.int64), (True, torch.float64)]


def _solve(
    scores: tuple[Tensor, Tensor],
    statistics: tuple[Tensor, Tensor],
    extents: Tensor,
    input_lengths: Tensor,
    num_states: Tensor,
    arcs: Sequence[Tensor | None],
    sizes: tuple[int, int],
    ends: tuple[int, int],
    alpha: Tensor,
    beta: Tensor,
    losses: Tensor,
    **constants: bool,
) -> None:
    """Alpha and the losses, and beta where it has room, of scores gathered by state."""
    num_frames, width = sizes
    block = bucket(width, 32, STRIP)
    for wide, words in _pairs(constants["FIXED"]):
        launch(
            chain.solve, (len(losses), 2 if len(beta) else 1), alpha,
            *scores, *statistics, extents, input_lengths, num_states, *arcs, num_frames, width, width, *ends,
            alpha.view(words), beta.view(words), losses, **constants, TRANSITIONS=arcs[-1] is not None, BLOCK=block,
            WIDE=wide, num_warps=warps(block),
        )  # fmt: skip


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
            grad_losses, transitions, input_lengths, num_states, arcs, losses, step, entries=1.0
        )
    return gradient, transition_gradient


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
    input_lengths, num_states, stay_labels, step_labels, *arcs, constants, grad_losses = in_rows(
        input_lengths, num_states, stay_labels, step_labels, skips, stay_transitions, step_transitions, transitions,
        transition_tangent, grad_losses,
    )  # fmt: skip
    tangent = scores.new_zeros(1).expand(scores.shape) if tangent is None else tangent
    num_samples, num_frames, num_classes = scores.shape
    num_rows, width = num_samples * num_frames, step_labels.shape[1]
    empty, work = empties(scores), work_dtype(scores)
    read = (tangent, *tangent.stride(), scores, *scores.stride(), num_samples, num_frames, num_classes, input_lengths)
    means = empty(num_rows if logits else 0, dtype=work)
    step_scores, step_costs = empty(num_rows, width, dtype=work), empty(num_rows, width, dtype=work)
    stay_scores, stay_costs = step_scores, step_costs
    if not shared_labels:
        stay_scores, stay_costs = torch.empty_like(step_scores), torch.empty_like(step_costs)
    # Samples without a path are not gone through.
    extents = torch.where(losses < torch.inf, 0, chain.UNDEFINED.value).to(torch.int32)
    rows, classes = tiles(num_classes, work)
    launch(
        kernels_hvp.gather_tangents, (programs(num_rows, rows),), scores,
        *read, num_states, stay_labels, step_labels, width, losses, maxima, sums, means, stay_scores, step_scores,
        stay_costs, step_costs, extents, LOGITS=logits, SHARED=shared_labels, WORK=in_triton(work), ROWS=rows,
        BLOCK=classes, ALIGNED=aligned(scores, tangent),
    )  # fmt: skip
    own = (losses, input_lengths, num_states)
    planes = _tell_arcs_apart(
        (stay_scores, step_scores), (stay, step), extents, own, arcs, (num_frames, width), (start_state, num_final),
        SHARED=shared_labels, FIXED=_is_fixed(transitions, work),
    )  # fmt: skip
    costly = (*planes, stay_costs, step_costs, constants, *arcs[1:3], *own)
    costs = _move_posteriors(costly, (num_frames, width), num_final, SHARED=shared_labels)
    moved_stay, moved_step, _ = planes
    product = empty_gradient(scores)
    labels = step_labels if shared_labels else torch.cat([step_labels, stay_labels], 1)
    entries = _entries_by_class(labels, num_states, width, num_classes)
    launch(
        kernels_hvp.write_product, (programs(num_rows, rows),), scores,
        grad_losses, *read, losses, maxima, sums, means, moved_stay, moved_step, *entries, labels.shape[1], width,
        product, *product.stride(), LOGITS=logits, WORK=in_triton(work), ROWS=rows, BLOCK=classes,
        ALIGNED=aligned(scores, tangent, product), **scan(),
    )  # fmt: skip
    slopes = means.view(num_samples, num_frames).sum(1, dtype=torch.float64) - costs if logits else -costs
    if transitions is None or step_transitions is None or stay_transitions is None:
        return slopes, product, scores.new_empty(0, 0)
    transition_product = _transition_gradient(
        grad_losses, transitions, input_lengths, num_states, torch.stack([step_transitions, stay_transitions], 1),
        losses, moved_step, entries=0.0,
    )  # fmt: skip
    return slopes, product, transition_product


def _tell_arcs_apart(
    scores: tuple[Tensor, Tensor],
    posteriors: tuple[Tensor, Tensor],
    extents: Tensor,
    own: tuple[Tensor, Tensor, Tensor],
    arcs: Sequence[Tensor | None],
    sizes: tuple[int, int],
    ends: tuple[int, int],
    **constants: bool,
) -> list[Tensor]:
    """Posteriors (rows, S') of the arcs that stay, step and skip; ``own``: losses and lengths of the samples."""
    (num_rows, width), num_samples = scores[1].shape, len(extents)
    empty = empties(extents)
    alpha, nothing = empty(num_rows, width), empty(0, width)
    _solve(
        scores, (nothing, nothing), extents, *own[1:], arcs, sizes, ends, alpha, nothing, empty(num_samples),
        LOGITS=False, **constants,
    )  # fmt: skip
    planes = [torch.empty_like(scores[1]) for _ in range(3)]
    rows, columns = tiles(width, torch.float64)
    for wide, words in _pairs(constants["FIXED"]):
        launch(
            kernels_hvp.tell_arcs_apart, (programs(num_rows, rows), programs(width, columns)), extents,
            extents, *own, *arcs, alpha.view(words), *posteriors, num_samples, *sizes, ends[0], *planes,
            TRANSITIONS=arcs[-1] is not None, ROWS=rows, BLOCK=columns, WIDE=wide, **constants,
        )  # fmt: skip
    return planes


def _move_posteriors(
    costly: tuple[Tensor | None, ...], sizes: tuple[int, int], num_final: int, **constants: bool
) -> Tensor:
    """Mean cost (N,) of each sample's paths; the posteriors, the first of ``costly``, become how they move."""
    stay, losses = costly[0], costly[-3]
    assert stay is not None
    assert losses is not None
    (num_rows, width), num_samples = stay.shape, len(losses)
    empty = empties(stay)
    before, behind, costs = empty(num_rows, width), empty(num_rows, width), empty(num_samples)
    constants["CONSTANTS"] = costly[5] is not None
    block = bucket(width, 32, MEANS_STRIP)
    launch(
        kernels_hvp.solve, (num_samples, 2), stay,
        *costly, *sizes, num_final, before, behind, costs, CONSTANTS=constants["CONSTANTS"], BLOCK=block,
        num_warps=warps(block),
    )  # fmt: skip
    rows, columns = tiles(width, torch.float64)
    launch(
        kernels_hvp.move_posteriors, (programs(num_rows, rows), programs(width, columns)), stay,
        *costly, before, behind, costs, num_samples, *sizes, ROWS=rows, BLOCK=columns, **constants,
    )  # fmt: skip
    return costs


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
    entries = _entries_by_class(labels, num_states, width, num_classes)
    rows, block = tiles(num_classes, work)
    launch(
        chain_gradient.write_gradient, (programs(num_samples * num_frames, rows),), scores,
        grad_losses, scores, *scores.stride(), num_samples, num_frames, num_classes, input_lengths, *saved, *entries,
        labels.shape[1], width, gradient, *gradient.stride(), LOGITS=logits, WORK=in_triton(work), ROWS=rows,
        BLOCK=block, ALIGNED=aligned(scores, gradient), **scan(),
    )  # fmt: skip


def _entries_by_class(labels: Tensor, num_states: Tensor, width: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Classes of each sample's arcs in ascending order, and whose they are; arcs of no state come last."""
    state = torch.arange(labels.shape[1], device=labels.device) % width
    classes, entries = torch.where(state < num_states[:, None], labels, num_classes).sort(dim=1, stable=True)
    return classes, entries


def _transition_gradient(
    grad_losses: Tensor,
    transitions: Tensor,
    input_lengths: Tensor,
    num_states: Tensor,
    arcs: Tensor,
    losses: Tensor,
    posteriors: Tensor,
    *,
    entries: float,
) -> Tensor:
    """``arcs`` (N, 2, S'): index of the transition that enters each state, and of that which stays.

    ``entries``: how often a path enters a state, 0 where the posteriors are tangents.
    """
    num_samples, _, width = arcs.shape
    num_frames = len(posteriors) // max(num_samples, 1)
    counts = empties(transitions)(num_samples, 2, width)
    block = bucket(width, 32, 256)
    launch(
        chain_gradient.count_arcs, (num_samples, programs(width, block)), transitions,
        grad_losses, losses, input_lengths, num_states, posteriors, entries, num_frames, width, counts, BLOCK=block,
    )  # fmt: skip
    used = torch.arange(width, device=transitions.device) < num_states[:, None]
    arcs = torch.where(used[:, None] & (arcs >= 0), arcs, transitions.numel())
    keys, listed = arcs.flatten().sort(dim=0, stable=True)
    gradient = torch.zeros_like(transitions, memory_format=torch.contiguous_format)
    launch(
        chain_gradient.add_counts, (1,), transitions,
        counts, keys, listed, keys.numel(), transitions.numel(), gradient, BLOCK=1024, **scan(),
    )  # fmt: skip
    return gradient
