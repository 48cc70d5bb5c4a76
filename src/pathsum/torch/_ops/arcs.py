"""Operators on arc lattices: rows of scores to planes, and planes to losses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pathsum.kernels.numba import arc_scores, grid_arcs, row_scores
from pathsum.kernels.numba import grid_arcs_hvp as of_arcs
from pathsum.kernels.numba import row_scores_hvp as of_rows
from pathsum.lattice import ArcLattice
from pathsum.torch._ops.arrays import as_rows, empty_like, fake_like, row_scales, work_dtype
from pathsum.torch._ops.registration import fake, operator


@operator
def row_scores_forward(
    scores: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    first_frames: Tensor,
    last_frames: Tensor,
    classes: Sequence[int],
    lone: int,
    logits: bool,
    clamp: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Planes (K, rows), zeros (N,) that stand for the samples, softmax maxima and sums, of padded or packed scores."""
    lattice = as_arcs(logit_lengths, target_lengths, targets, row_offsets, first_frames, last_frames)
    planes, maxima, sums = row_scores.forward(
        as_rows(scores, lattice),
        scores.shape[-1],
        lattice,
        row_scores.Wanted(np.array(classes), lone, logits),
        num_threads=torch.get_num_threads(),
    )
    samples = torch.zeros(len(logit_lengths), dtype=torch.float64)
    return torch.from_numpy(planes), samples, torch.from_numpy(maxima), torch.from_numpy(sums)


@fake(row_scores_forward)
def _(scores, logit_lengths, target_lengths, targets, row_offsets, first_frames, last_frames, classes, *_):
    rows, num_maxima, num_sums = (torch.library.get_ctx().new_dynamic_size() for _ in range(3))
    maxima, sums = (scores.new_empty(size, dtype=work_dtype(scores)) for size in (num_maxima, num_sums))
    planes = scores.new_empty((len(classes), rows), dtype=torch.float64)
    return planes, scores.new_empty(logit_lengths.shape[0], dtype=torch.float64), maxima, sums


@operator
def row_scores_backward(
    grad_planes: Tensor,
    upstream: Tensor,
    scores: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    first_frames: Tensor,
    last_frames: Tensor,
    classes: Sequence[int],
    lone: int,
    logits: bool,
    clamp: float,
    planes: Tensor,
    samples: Tensor,
    maxima: Tensor,
    sums: Tensor,
    needed: Sequence[bool],
) -> Tensor:
    """The gradient with respect to the scores in a fresh tensor: that of the planes, or upstream[n] * clamp(it)."""
    upstream = upstream if clamp > 0 else torch.ones_like(upstream)
    lattice = as_arcs(logit_lengths, target_lengths, targets, row_offsets, first_frames, last_frames)
    gradient = empty_like(scores)
    row_scores.backward(
        grad_planes.detach().contiguous().numpy(),
        upstream.detach().contiguous().numpy(),
        as_rows(scores, lattice),
        scores.shape[-1],
        lattice,
        row_scores.Wanted(np.array(classes), lone, logits),
        maxima.numpy(),
        sums.numpy(),
        as_rows(gradient, lattice),
        clamp=clamp,
        num_threads=torch.get_num_threads(),
    )
    return gradient


@fake(row_scores_backward)
def _(grad_planes, upstream, scores, *_):
    return fake_like(scores)


@operator
def row_scores_hvp(
    tangent: Tensor,
    grad_planes: Tensor,
    upstream: Tensor,
    scores: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    first_frames: Tensor,
    last_frames: Tensor,
    classes: Sequence[int],
    lone: int,
    logits: bool,
    clamp: float,
    planes: Tensor,
    samples: Tensor,
    maxima: Tensor,
    sums: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """The derivative of <tangent, gradient> with respect to the gradients of the planes, the upstream one (which acts
    only with a clamp, where there is no such derivative) and the scores.
    """
    lattice = as_arcs(logit_lengths, target_lengths, targets, row_offsets, first_frames, last_frames)
    product = empty_like(scores)
    slopes = of_rows.hvp(
        as_rows(tangent, lattice),
        grad_planes.detach().contiguous().numpy(),
        as_rows(scores, lattice),
        scores.shape[-1],
        lattice,
        row_scores.Wanted(np.array(classes), lone, logits),
        maxima.numpy(),
        sums.numpy(),
        as_rows(product, lattice),
        num_threads=torch.get_num_threads(),
    )
    return torch.from_numpy(slopes), torch.zeros_like(upstream), product


@fake(row_scores_hvp)
def _(tangent, grad_planes, upstream, scores, *_):
    return fake_like(grad_planes), fake_like(upstream), fake_like(scores)


@operator
def arc_scores_forward(
    first: Tensor,
    second: Tensor | None,
    terms: Sequence[int],
    labels_on: Sequence[int],
    sigma: float,
    label_bonus: Tensor | None,
    fastemit_lambda: float,
) -> Tensor:
    """Scores (kinds, rows) of the arcs, of the planes (K, rows) of one tensor or of two; terms are (kind, plane, labels
    on).
    """
    scores = arc_scores.forward(
        [plane for read in (first, second) if read is not None for plane in read.detach().numpy()],
        _by_kind(terms, labels_on),
        labels_on,
        sigma=sigma,
        label_bonus=None if label_bonus is None else label_bonus.numpy(),
    )
    return torch.from_numpy(scores)


@fake(arc_scores_forward)
def _(first, second, terms, labels_on, *_):
    return first.new_empty(len(labels_on), first.shape[1])


@operator
def arc_scores_backward(
    grad_scores: Tensor,
    terms: Sequence[int],
    labels_on: Sequence[int],
    sizes: Sequence[int],
    fastemit_lambda: float,
) -> tuple[Tensor, Tensor]:
    """The gradients with respect to the planes of the one tensor and of the other, ``sizes`` of them."""
    gradients = arc_scores.backward(
        grad_scores.detach().numpy(),
        _by_kind(terms, labels_on),
        labels_on,
        sum(sizes),
        fastemit_lambda=fastemit_lambda,
    )
    first, second = (torch.from_numpy(part) for part in np.split(gradients, [sizes[0]]))
    # Not two views of one memory, which an operator may not return.
    return (first, second.clone()) if len(second) else (first, first.new_empty((0, first.shape[1])))


@fake(arc_scores_backward)
def _(grad_scores, terms, labels_on, sizes, fastemit_lambda):
    first, second = (grad_scores.new_empty(size, grad_scores.shape[1]) for size in sizes)
    return first, second


def _by_kind(terms: Sequence[int], labels_on: Sequence[int]) -> list[list[tuple[int, int]]]:
    """(plane, labels on) of each kind, of triples one after another."""
    found: list[list[tuple[int, int]]] = [[] for _ in labels_on]
    for kind, plane, ahead in zip(terms[::3], terms[1::3], terms[2::3], strict=True):
        found[kind].append((plane, ahead))
    return found


@operator
def arcs_forward(
    planes: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    row_offsets: Tensor,
    frames_on: Sequence[int],
    labels_on: Sequence[int],
    label_ends: bool,
    skips_to: int | None,
    skip_score: float,
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, the posteriors of the arcs, and those of leaving frames out where one may, of planes (K, rows)."""
    lattice = as_arcs(
        logit_lengths, target_lengths, None, row_offsets, None, None, tuple(zip(frames_on, labels_on, strict=True)),
        label_ends, skips_to,
    )  # fmt: skip
    # A copy: the kernel writes the posteriors over its planes.
    posteriors = np.array(planes.detach().numpy(), np.float64, order="C")
    skips = np.zeros((0 if skips_to is None else 2, planes.shape[1]))
    losses = grid_arcs.solve(
        posteriors, lattice, skip_score, need_gradient=need_gradient, num_threads=torch.get_num_threads(), skips=skips
    )
    return torch.from_numpy(losses), torch.from_numpy(posteriors), torch.from_numpy(skips)


@fake(arcs_forward)
def _(planes, logit_lengths, target_lengths, row_offsets, frames_on, labels_on, label_ends, skips_to, *_):
    losses = planes.new_empty(logit_lengths.shape[0], dtype=torch.float64)
    skips = planes.new_empty((0 if skips_to is None else 2, planes.shape[1]), dtype=torch.float64)
    return losses, planes.new_empty(planes.shape, dtype=torch.float64), skips


@operator
def arcs_backward(
    grad_losses: Tensor,
    planes: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    row_offsets: Tensor,
    frames_on: Sequence[int],
    labels_on: Sequence[int],
    label_ends: bool,
    skips_to: int | None,
    skip_score: float,
    losses: Tensor,
    posteriors: Tensor,
    skips: Tensor,
    needed: Sequence[bool],
) -> Tensor:
    """Minus the posteriors, times the upstream gradient of their sample; 0 where no path exists."""
    # The planes are an input for the sake of their derivative: the gradient is made of the posteriors alone.
    return torch.from_numpy(row_scales(grad_losses, losses, row_offsets, posteriors.shape[1]) * posteriors.numpy())


@fake(arcs_backward)
def _(grad_losses, planes, *_):
    return fake_like(planes)


@operator
def arcs_hvp(
    tangent: Tensor,
    grad_losses: Tensor,
    planes: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    row_offsets: Tensor,
    frames_on: Sequence[int],
    labels_on: Sequence[int],
    label_ends: bool,
    skips_to: int | None,
    skip_score: float,
    losses: Tensor,
    posteriors: Tensor,
    skips: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """The derivative of <tangent, gradient> with respect to the upstream gradient and to the planes."""
    lattice = as_arcs(
        logit_lengths, target_lengths, None, row_offsets, None, None, tuple(zip(frames_on, labels_on, strict=True)),
        label_ends, skips_to,
    )  # fmt: skip
    # A copy: the kernel writes over it.
    tangents = np.array(tangent.detach().numpy(), np.float64, order="C")
    costs = of_arcs.hvp(
        tangents,
        losses.numpy(),
        posteriors.numpy(),
        lattice,
        skips=skips.numpy(),
        num_threads=torch.get_num_threads(),
    )
    tangents *= row_scales(grad_losses, losses, row_offsets, tangents.shape[1])
    return torch.from_numpy(-costs), torch.from_numpy(tangents)


@fake(arcs_hvp)
def _(tangent, grad_losses, *_):
    return fake_like(grad_losses), fake_like(tangent)


def as_arcs(
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor | None,
    row_offsets: Tensor,
    first_frames: Tensor | None,
    last_frames: Tensor | None,
    arcs: tuple[tuple[int, int], ...] = (),
    label_ends: bool = True,
    skips_to: int | None = None,
) -> ArcLattice:
    integers = (logit_lengths, target_lengths, targets, first_frames, last_frames)
    frames, labels, classes, first, last = (None if tensor is None else tensor.numpy() for tensor in integers)
    return ArcLattice(frames, labels, classes, -1, row_offsets.numpy(), arcs, (), (), first, last, label_ends, skips_to)
