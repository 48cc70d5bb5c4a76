"""Arc lattices under autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathsum.lattice import ArcLattice
from pathsum.problems.rnnt_types import earliness
from pathsum.torch._autograd.common import (
    HessianProduct,
    constants,
    defined,
    grid_tensors,
    keep_losses_only,
    wants_gradient,
)
from pathsum.torch._ops.arcs import (
    arc_scores_backward,
    arc_scores_forward,
    arcs_backward,
    arcs_forward,
    arcs_hvp,
    row_scores_backward,
    row_scores_forward,
    row_scores_hvp,
)


def row_scores(
    scores: Tensor, lattice: ArcLattice, classes: tuple[int, ...], *, lone: int, logits: bool, clamp: float
) -> tuple[Tensor, Tensor]:
    """Planes (K, rows) of padded or packed scores by the numba kernels, and zeros (N,) that stand for the samples.

    With a clamp the upstream gradient of each loss must come back through the latter: see ``with_upstream``.
    """
    tensors = [*grid_tensors(lattice), *map(torch.from_numpy, (lattice.first_frames, lattice.last_frames))]
    planes, samples, _, _ = _RowScores.apply(scores, *tensors, list(classes), lone, logits, clamp)
    return planes, samples


def arc_scores(
    planes: Sequence[Tensor], lattice: ArcLattice, *, sigma: float, delay_penalty: float, fastemit_lambda: float
) -> Tensor:
    """Scores (kinds, rows) of the lattice's arcs, of the planes (K, rows) of each tensor it reads.

    ``sigma`` is taken from every score; the delay penalty is added to those of labels, whose gradient counts 1 + lambda
    times.
    """
    terms = [number for kind, own in enumerate(lattice.terms) for term in own for number in (kind, *term)]
    labels_on = [labels for _, labels in lattice.arcs]
    label_bonus = torch.from_numpy(delay_penalty * earliness(lattice)) if delay_penalty else None
    return _ArcScores.apply(terms, labels_on, sigma, label_bonus, fastemit_lambda, *planes)


def arc_losses(planes: Tensor, lattice: ArcLattice, skip_score: float = 0.0) -> Tensor:
    """Losses (N,) in float64 of the planes (K, rows) of an arc lattice by the numba kernels."""
    frames_on, labels_on = (list(steps) for steps in zip(*lattice.arcs, strict=True))
    options = (frames_on, labels_on, lattice.label_ends, lattice.skips_to, skip_score, wants_gradient(planes))
    lengths, target_lengths, _, row_offsets = grid_tensors(lattice)
    return _ArcLosses.apply(planes, lengths, target_lengths, row_offsets, *options)[0]


def with_upstream(losses: Tensor, samples: list[Tensor]) -> Tensor:
    """The same losses. In backward what leads to them gets a gradient of one, and the ``samples`` the upstream one:
    a clamp acts on the gradient of a loss before the upstream gradient multiplies it.
    """
    return _Upstream.apply(losses, *samples)


class _RowScores(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return row_scores_forward(*inputs[:-1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, classes, lone, logits, clamp = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output)
        ctx.options = (classes, lone, logits, clamp)

    @staticmethod
    def backward(ctx: Any, grad_planes: Tensor | None, upstream: Tensor | None, *_: Tensor) -> tuple[Any, ...]:
        *tensors, planes, samples, maxima, sums = ctx.saved_tensors
        grad_planes = defined(grad_planes, planes)
        upstream = torch.ones_like(samples) if upstream is None else upstream
        gradient = _RowScoresGradient.apply(grad_planes, upstream, *tensors, *ctx.options, maxima, sums)
        return gradient, *[None] * 10


class _ArcScores(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        terms, labels_on, sigma, label_bonus, _, *planes = inputs
        return arc_scores_forward(planes, terms, labels_on, sigma, label_bonus)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        terms, labels_on, _, _, fastemit_lambda, *planes = inputs
        ctx.options = (terms, labels_on, [len(read) for read in planes], fastemit_lambda)

    @staticmethod
    def backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
        return *[None] * 5, *_ArcScoresGradient.apply(grad_scores, *ctx.options)


class _ArcLosses(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return arcs_forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, frames_on, labels_on, label_ends, skips_to, _, _ = inputs
        keep_losses_only(ctx, output)
        ctx.save_for_backward(*tensors, *output)
        ctx.options = (frames_on, labels_on, label_ends, skips_to)

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        tensors, saved = ctx.saved_tensors[:4], constants(ctx.saved_tensors[4:])
        grad_losses = defined(grad_losses, saved[0])
        return _ArcsGradient.apply(grad_losses, *tensors, *ctx.options, *saved), *[None] * 9


class _Upstream(torch.autograd.Function):
    @staticmethod
    def forward(losses: Tensor, *samples: Tensor) -> Tensor:
        return losses.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.num_samples = len(inputs) - 1

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor, ...]:
        return torch.ones_like(grad_losses), *[grad_losses] * ctx.num_samples


class _RowScoresGradient(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return row_scores_backward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        # Without a clamp, which has no second derivative, the upstream gradient is one.
        grad_planes, _, *tensors, classes, lone, logits, _, maxima, sums = inputs
        ctx.save_for_backward(grad_planes, *tensors, maxima, sums)
        ctx.options = (classes, lone, logits)

    @staticmethod
    def backward(ctx: Any, tangent: Tensor) -> tuple[Tensor | None, ...]:
        tensors, statistics = ctx.saved_tensors[:8], ctx.saved_tensors[8:]
        planes, product = _RowScoresProduct.apply(tangent, *tensors, *ctx.options, *statistics)
        return planes, None, product, *[None] * 12


class _RowScoresProduct(HessianProduct):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return row_scores_hvp(*inputs)


class _ArcScoresGradient(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return tuple(arc_scores_backward(*inputs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, *ctx.options = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # It is linear: its own derivative is the sums of terms, those of labels 1 + lambda times.
        terms, labels_on, _, fastemit_lambda = ctx.options
        scores = _ArcScores.apply(terms, labels_on, 0.0, None, 0.0, *grads)
        return (1.0 + fastemit_lambda * torch.tensor(labels_on)[:, None]) * scores, *[None] * 4


class _ArcsGradient(torch.autograd.Function):
    @staticmethod
    def forward(grad_losses: Tensor, *rest: Any) -> Tensor:
        _, _, _, row_offsets, _, _, _, _, losses, posteriors, _ = rest
        return arcs_backward(grad_losses, row_offsets, losses, posteriors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        # The planes are an input for the sake of their derivative: the gradient is made of the posteriors alone.
        grad_losses, _, *lattice, frames_on, labels_on, label_ends, skips_to, losses, posteriors, skips = inputs
        ctx.save_for_backward(grad_losses, *lattice, losses, posteriors, skips)
        ctx.options = (frames_on, labels_on, label_ends, skips_to)

    @staticmethod
    def backward(ctx: Any, tangent: Tensor) -> tuple[Tensor | None, ...]:
        tensors, saved = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        return *_ArcsProduct.apply(tangent, *tensors, *ctx.options, *saved), *[None] * 10


class _ArcsProduct(HessianProduct):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return arcs_hvp(*inputs)
