"""Arc lattices under autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathsum.errors import NotDifferentiableError
from pathsum.lattice import ArcLattice
from pathsum.problems.rnnt_types import earliness
from pathsum.torch._autograd.lattices import differentiable, grid_tensors
from pathsum.torch._autograd.operators import differentiates, recall, refuse_graph, save
from pathsum.torch._autograd.reweighted import REWEIGHTED
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
from pathsum.torch._ops.arrays import as_tensor
from pathsum.torch._ops.registration import launched

triton_row_scores_forward, triton_row_scores_backward = launched(row_scores_forward), launched(row_scores_backward)
triton_row_scores_hvp = launched(row_scores_hvp)
triton_arcs_forward, triton_arcs_backward = launched(arcs_forward), launched(arcs_backward)
triton_arcs_hvp = launched(arcs_hvp)

differentiable(row_scores_forward, row_scores_backward, row_scores_hvp, num_inputs=1, num_losses=2)
differentiable(triton_row_scores_forward, triton_row_scores_backward, triton_row_scores_hvp, num_inputs=1, num_losses=2)
differentiable(arcs_forward, arcs_backward, arcs_hvp, num_inputs=1)
differentiable(triton_arcs_forward, triton_arcs_backward, triton_arcs_hvp, num_inputs=1)


def row_scores(
    scores: Tensor,
    lattice: ArcLattice,
    classes: tuple[int, ...],
    *,
    lone: int,
    logits: bool,
    clamp: float,
    impl: str = "numba",
) -> tuple[Tensor, Tensor]:
    """Planes (K, rows) of padded or packed scores by the kernels of numba, or of Triton, and zeros (N,) that stand for
    the samples.

    With a clamp the upstream gradient of each loss must come back through the latter: see ``upstream_to_samples``.
    """
    tensors = [*grid_tensors(lattice), *map(as_tensor, (lattice.first_frames, lattice.last_frames))]
    forward = triton_row_scores_forward if impl == "triton" else row_scores_forward
    planes, samples, _, _ = forward(scores, *tensors, list(classes), lone, logits, clamp)
    return planes, samples


def arc_scores(
    planes: Sequence[Tensor], lattice: ArcLattice, *, sigma: float, delay_penalty: float, fastemit_lambda: float
) -> Tensor:
    """Scores (kinds, rows) of the lattice's arcs, of the planes (K, rows) of each tensor it reads, one or two.

    ``sigma`` is taken from every score; the delay penalty is added to those of labels, whose gradient counts 1 + lambda
    times.
    """
    terms = [number for kind, own in enumerate(lattice.terms) for term in own for number in (kind, *term)]
    labels_on = [labels for _, labels in lattice.arcs]
    rows = planes[0].shape[1]
    label_bonus = as_tensor(delay_penalty * earliness(lattice, rows)).double() if delay_penalty else None
    second = planes[1] if len(planes) > 1 else None
    return arc_scores_forward(planes[0], second, terms, labels_on, sigma, label_bonus, fastemit_lambda)


def arc_losses(planes: Tensor, lattice: ArcLattice, skip_score: float = 0.0, *, impl: str = "numba") -> Tensor:
    """Losses (N,) in float64 of the planes (K, rows) of an arc lattice by the kernels of numba, or of Triton."""
    frames_on, labels_on = (list(steps) for steps in zip(*lattice.arcs, strict=True))
    options = (frames_on, labels_on, lattice.label_ends, lattice.skips_to, skip_score, False)
    lengths, target_lengths, _, row_offsets = grid_tensors(lattice)
    forward = triton_arcs_forward if impl == "triton" else arcs_forward
    return forward(planes, lengths, target_lengths, row_offsets, *options)[0]


@differentiates(arc_scores_forward)
class _ArcScores:
    """Sums of terms, linear in the planes."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        first, second, terms, labels_on, _, _, fastemit_lambda = inputs
        sizes = [len(first), 0 if second is None else len(second)]
        save(ctx, first, second, terms, labels_on, sizes, fastemit_lambda)

    @staticmethod
    def backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
        _, _, *options = recall(ctx)
        if options[-1] > 0:
            refuse_graph(REWEIGHTED)
        first, second = arc_scores_backward(grad_scores, *options)
        return first, second if options[2][1] else None, *[None] * 5

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        first, second, terms, labels_on, _, fastemit_lambda = recall(ctx)
        if fastemit_lambda > 0:
            raise NotDifferentiableError(REWEIGHTED)
        along = [
            torch.zeros_like(plane) if tangent is None and plane is not None else tangent
            for tangent, plane in zip(tangents[:2], (first, second), strict=True)
        ]
        return arc_scores_forward(*along, terms, labels_on, 0.0, None, 0.0)


@differentiates(arc_scores_backward)
class _ArcScoresGradient:
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, *ctx.options = inputs

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor) -> tuple[Tensor | None, ...]:
        terms, labels_on, sizes, fastemit_lambda = ctx.options
        if fastemit_lambda > 0:
            raise NotDifferentiableError(REWEIGHTED)
        first, second = tangents
        scores = arc_scores_forward(first, second if sizes[1] else None, terms, labels_on, 0.0, None, 0.0)
        return scores, *[None] * 4

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> tuple[Tensor, ...]:
        if ctx.options[-1] > 0:
            raise NotDifferentiableError(REWEIGHTED)
        return arc_scores_backward(tangents[0], *ctx.options)
