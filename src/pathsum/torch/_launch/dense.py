"""The operators on dense lattices.

Planes over frames are (N, T, C), padding included: their sizes are known without a look at the lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pathsum.kernels.triton import dense, dense_log
from pathsum.kernels.triton import dense_hvp as kernels_hvp
from pathsum.torch._launch.common import bucket, empties, empty_gradient, in_rows, launch, programs, tiles, warps

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
    tile = _tile(num_classes)
    each = (num_samples, 2 if need_gradient else 1)
    launch(
        dense.solve, each, scores,
        *frames, matrix, matrix.T.contiguous(), shift, status, alpha, scales, beta, entering, losses, lost, **tile,
    )  # fmt: skip
    if need_gradient:
        launch(
            dense.combine, (num_rows,), scores,
            input_lengths, losses, num_frames, num_classes, alpha, scales, beta, entering, lost, **_block(num_classes),
        )  # fmt: skip
    nothing = torch.zeros(num_classes, dtype=torch.float64, device=scores.device)
    linear, losses = losses, torch.empty_like(losses)
    launch(
        dense_log.solve, each, scores,
        *frames, transitions, nothing, alpha, beta, entering, linear, lost, losses, **tile,
    )  # fmt: skip
    if not need_gradient:
        return losses, lost != 0, beta, beta, entering
    launch(
        dense_log.combine, (num_rows,), scores,
        input_lengths, losses, num_frames, num_classes, alpha, beta, entering, lost, **_block(num_classes),
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
        gradient = _gradient(grad_losses, scores, input_lengths, losses, gamma)
    if needed[1]:
        transition_gradient = _transition_gradient(
            grad_losses, scores.shape, transitions, input_lengths, losses, extended, alpha, entering
        )
    return gradient, transition_gradient


def dense_hvp(
    tangent: Tensor | None,
    transition_tangent: Tensor | None,
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
) -> tuple[Tensor, Tensor, Tensor]:
    input_lengths, transitions, constants, grad_losses = in_rows(
        input_lengths, transitions, transition_tangent, grad_losses
    )
    tangent = scores.new_zeros(1).expand(scores.shape) if tangent is None else tangent
    num_samples, num_frames, num_classes = scores.shape
    empty = empties(scores)
    before, behind, moved = (torch.empty_like(gamma) for _ in range(3))
    costs, lost = empty(num_samples), extended.to(torch.int32)
    matrix, _, _ = _exponential(transitions)
    frames = (tangent, *tangent.stride(), input_lengths, num_frames, num_classes)
    arcs = (matrix, transitions, constants)
    launch(
        kernels_hvp.solve, (num_samples, 2), scores,
        *frames, *arcs, gamma, alpha, entering, losses, lost, before, behind, costs, CONSTANTS=constants is not None,
        **_tile(num_classes),
    )  # fmt: skip
    launch(
        kernels_hvp.move_posteriors, (num_samples * num_frames,), scores,
        *frames, gamma, losses, before, behind, costs, moved, **_block(num_classes),
    )  # fmt: skip
    product = _gradient(grad_losses, scores, input_lengths, losses, moved)
    transition_product = torch.zeros_like(transitions)
    if needed[1]:
        transition_product = _transition_product(
            grad_losses, scores.shape, arcs, input_lengths, losses, extended, alpha, entering, before, behind
        )
    return -costs, product, transition_product


def _gradient(grad_losses: Tensor, scores: Tensor, input_lengths: Tensor, losses: Tensor, gamma: Tensor) -> Tensor:
    """Minus the upstream gradient times the posteriors of the states, or times how these move."""
    num_samples, num_frames, num_classes = scores.shape
    gradient = empty_gradient(scores)
    rows, block = tiles(num_classes, torch.float64)
    num_rows = num_samples * num_frames
    launch(
        dense.write_gradient, (programs(num_rows, rows),), scores,
        grad_losses, losses, gamma, input_lengths, num_frames, num_classes, num_rows, gradient, *gradient.stride(),
        ROWS=rows, BLOCK=block,
    )  # fmt: skip
    return gradient


def _transition_product(
    grad_losses: Tensor,
    shape: torch.Size,
    arcs: tuple[Tensor, Tensor, Tensor | None],
    input_lengths: Tensor,
    losses: Tensor,
    extended: Tensor,
    alpha: Tensor,
    entering: Tensor,
    before: Tensor,
    behind: Tensor,
) -> Tensor:
    num_samples, num_frames, num_classes = shape
    matrix, transitions, constants = arcs
    undefined, (enters, sources) = _linear(grad_losses, shape, input_lengths, losses, extended, alpha, entering)
    passed, left = before.view(shape)[:, :-1].flatten(0, 1), behind.view(shape)[:, 1:].flatten(0, 1)
    product = (enters * left).T @ sources + enters.T @ (sources * passed)
    if constants is not None:
        product += constants * (enters.T @ sources)
    product *= matrix
    tile = _tile(num_classes)
    launch(
        kernels_hvp.add_transition_product,
        (programs(num_classes, tile["TO"]), programs(num_classes, tile["FROM"])), transitions,
        grad_losses, input_lengths, losses, num_samples, num_frames, num_classes, *arcs, alpha, entering,
        extended.to(torch.int32), before, behind, product, CONSTANTS=constants is not None, **tile,
    )  # fmt: skip
    return torch.where(undefined, torch.nan, product).to(transitions.dtype)


def _linear(
    grad_losses: Tensor,
    shape: torch.Size,
    input_lengths: Tensor,
    losses: Tensor,
    extended: Tensor,
    alpha: Tensor,
    entering: Tensor,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Whether a sample that counts is undefined; what enters the frames, times minus the upstream gradient, and alpha
    of the frames before, (rows, C) each, 0 of samples that are lost.
    """
    has_arcs = (input_lengths > 1) & (grad_losses != 0)
    upstream = torch.where(has_arcs & (losses < torch.inf) & ~extended, -grad_losses, 0.0)
    # Zeros meet no infinity: the planes are 0 in padding and where there is no path.
    linear = ~extended[:, None, None]
    enters = torch.where(linear, entering.view(shape)[:, 1:], 0.0) * upstream[:, None, None]
    sources = torch.where(linear, alpha.view(shape)[:, :-1], 0.0)
    return (has_arcs & losses.isnan()).any(), (enters.flatten(0, 1), sources.flatten(0, 1))


def _block(num_classes: int) -> dict[str, int]:
    """States of a frame that are written over: a lane has them to itself, lest another reads what it has written."""
    block = bucket(num_classes, 32, 1024)
    return {"BLOCK": block, "num_warps": warps(block)}


def _tile(num_classes: int) -> dict[str, int]:
    """States that arcs come to and from, of a tile of the matrix."""
    return {
        "TO": bucket(num_classes, 16, 32),
        "FROM": bucket(num_classes, 16, 64),
        "num_warps": 4 if num_classes <= 32 else 8,
    }


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
    undefined, (enters, sources) = _linear(grad_losses, shape, input_lengths, losses, extended, alpha, entering)
    gradient = matrix * (enters.T @ sources)
    tile = _tile(num_classes)
    launch(
        dense_log.add_transition_gradient,
        (programs(num_classes, tile["TO"]), programs(num_classes, tile["FROM"])), transitions,
        grad_losses, input_lengths, losses, num_samples, num_frames, num_classes, transitions, alpha,
        entering, extended.to(torch.int32), gradient, **tile,
    )  # fmt: skip
    return torch.where(undefined, torch.nan, gradient).to(transitions.dtype)


def _exponential(transitions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(transitions - shift), the shift, and whether one is NaN or +inf, whether the finite ones are far apart."""
    wide = transitions.double()
    finite = wide.isfinite()
    shift = torch.where(finite, wide, -torch.inf).amax()
    shift = torch.where(shift > -torch.inf, shift, 0.0)
    status = torch.stack([~(wide < torch.inf).all(), (finite & (wide - shift < -_SPREAD)).any()])
    return torch.where(wide < torch.inf, (wide - shift).exp(), 0.0), shift, status.to(torch.int32)
