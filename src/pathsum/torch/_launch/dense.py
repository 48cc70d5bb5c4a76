"""The operators on dense lattices.

Planes over frames are (N, T, C), padding included: their sizes are known without a look at the lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pathsum.kernels.triton import dense, dense_log
from pathsum.torch._launch.common import bucket, empties, empty_gradient, in_rows, launch, programs, tiles

# Transitions that are further apart than this many nats, 340 bits, leave plain floats.
_SPREAD = 235.0


def dense_forward(
    scores: Tensor, transitions: Tensor, input_lengths: Tensor, need_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    num_samples, num_frames, num_classes = scores.shape
    num_rows = num_samples * num_frames
    input_lengths, transitions = in_rows(input_lengths, transitions)
    empty = empties(scores)
    matrix, shift, status = _exponential(transitions)
    losses, scales = empty(num_samples), empty(num_rows)
    alpha = empty(num_rows, num_classes)
    beta, entering = (empty(num_rows if need_gradient else 0, num_classes) for _ in range(2))
    lost = torch.zeros(num_samples, dtype=torch.int32, device=scores.device)
    frames = (scores, *scores.stride(), input_lengths, num_frames, num_classes)
    tile = {"TO": bucket(num_classes, 16, 32), "FROM": bucket(num_classes, 16, 64)}
    tile["num_warps"] = 4 if num_classes <= 32 else 8
    block = bucket(num_classes, 16, 1024)
    each = (num_samples, 2 if need_gradient else 1)
    launch(
        dense.solve, each, scores,
        *frames, matrix, matrix.T.contiguous(), shift, status, alpha, scales, beta, entering, losses, lost, **tile,
    )  # fmt: skip
    if need_gradient:
        launch(
            dense.combine, (num_rows,), scores,
            input_lengths, losses, num_frames, num_classes, alpha, scales, beta, entering, lost, BLOCK=block,
        )  # fmt: skip
    nothing = torch.zeros(num_classes, dtype=torch.float64, device=scores.device)
    launch(
        dense_log.solve, each, scores,
        *frames, transitions, nothing, alpha, beta, entering, losses, lost, **tile,
    )  # fmt: skip
    if not need_gradient:
        return losses, lost != 0, beta, beta, entering
    launch(
        dense_log.combine, (num_rows,), scores,
        input_lengths, losses, num_frames, num_classes, alpha, beta, entering, lost, BLOCK=block,
    )  # fmt: skip
    return losses, lost != 0, beta, alpha, entering


def dense_backward(
    grad_losses: Tensor,
    scores: Tensor,
    transitions: Tensor,
    input_lengths: Tensor,
    losses: Tensor,
    extended: Tensor,
    gamma: Tensor,
    alpha: Tensor,
    entering: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    input_lengths, transitions, grad_losses = in_rows(input_lengths, transitions, grad_losses)
    gradient, transition_gradient = scores.new_empty(0), scores.new_empty(0)
    if needed[0]:
        num_samples, num_frames, num_classes = scores.shape
        gradient = empty_gradient(scores)
        rows, block = tiles(num_classes, torch.float64)
        num_rows = num_samples * num_frames
        launch(
            dense.write_gradient, (programs(num_rows, rows),), scores,
            grad_losses, losses, gamma, input_lengths, num_frames, num_classes, num_rows, gradient,
            *gradient.stride(), ROWS=rows, BLOCK=block,
        )  # fmt: skip
    if needed[1]:
        transition_gradient = _transition_gradient(
            grad_losses, scores.shape, transitions, input_lengths, losses, extended, alpha, entering
        )
    return gradient, transition_gradient


def _transition_gradient(
    grad_losses: Tensor,
    shape: torch.Size,
    transitions: Tensor,
    input_lengths: Tensor,
    losses: Tensor,
    extended: Tensor,
    alpha: Tensor,
    entering: Tensor,
) -> Tensor:
    num_samples, num_frames, num_classes = shape
    matrix, _, _ = _exponential(transitions)
    has_arcs = (input_lengths > 1) & (grad_losses != 0)
    upstream = torch.where(has_arcs & (losses < torch.inf) & ~extended, -grad_losses, 0.0)
    # Zeros meet no infinity: the planes are 0 in padding and where there is no path.
    linear = ~extended[:, None, None]
    enters = torch.where(linear, entering.view(shape)[:, 1:], 0.0) * upstream[:, None, None]
    before = torch.where(linear, alpha.view(shape)[:, :-1], 0.0)
    gradient = matrix * (enters.flatten(0, 1).T @ before.flatten(0, 1))
    tile = {"TO": bucket(num_classes, 16, 32), "FROM": bucket(num_classes, 16, 64)}
    launch(
        dense_log.add_transition_gradient,
        (programs(num_classes, tile["TO"]), programs(num_classes, tile["FROM"])), transitions,
        grad_losses, input_lengths, losses, num_samples, num_frames, num_classes, transitions, alpha,
        entering, extended.to(torch.int32), gradient, **tile,
    )  # fmt: skip
    undefined = (has_arcs & losses.isnan()).any()
    return torch.where(undefined, torch.nan, gradient).to(transitions.dtype)


def _exponential(transitions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(transitions - shift), the shift, and whether one is NaN or +inf, whether the finite ones are far apart."""
    wide = transitions.double()
    finite = wide.isfinite()
    shift = torch.where(finite, wide, -torch.inf).amax()
    shift = torch.where(shift > -torch.inf, shift, 0.0)
    status = torch.stack([~(wide < torch.inf).all(), (finite & (wide - shift < -_SPREAD)).any()])
    return torch.where(wide < torch.inf, (wide - shift).exp(), 0.0), shift, status.to(torch.int32)
