"""Losses on arc lattices: rows of scores are read into planes, torch makes the arcs' scores of them, a kernel sums.

What a variant's scores are is said in torch, by its ``build(read, *tensors)``: ``read`` gives planes (K, rows) of the
log-probabilities of some classes, and what is returned has one plane an arc. Planes are small beside the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from pathsum.kernels.reference import grid_arcs as reference
from pathsum.kernels.reference.grid import _nodes, _zero_with_gradient
from pathsum.kernels.reference.log_domain import exact
from pathsum.lattice import LABEL, ArcLattice
from pathsum.problems.rnnt_types import earliness
from pathsum.torch._autograd.arcs import arc_losses, row_scores, with_upstream
from pathsum.torch._inputs import on_device


class Read(Protocol):
    def __call__(self, scores: Tensor, classes: tuple[int, ...], *, lone: int = -1, logits: bool = True) -> Tensor:
        """Planes (K, rows) of the classes; the ``lone`` one has no share of the softmax and is read as it is."""
        ...


Build = Callable[..., Tensor]


def solve(
    tensors: tuple[Tensor, ...],
    lattice: ArcLattice,
    build: Build,
    chosen: str,
    *,
    clamp: float,
    skip_score: float = 0.0,
) -> Tensor:
    """Losses (N,) of the planes that ``build(read, *tensors)`` makes, by the implementation chosen."""
    if chosen == "numba":
        return _solve_by_kernels(tensors, lattice, build, clamp, skip_score)
    posed = on_device(lattice, tensors[0].device)

    def read(scores: Tensor, classes: tuple[int, ...], *, lone: int = -1, logits: bool = True) -> Tensor:
        return reference.row_scores(scores, posed, classes, lone=lone, logits=logits)

    def losses_of(*tensors: Tensor) -> Tensor:
        return reference.forward(build(read, *tensors), posed, skip_score)

    return _with_clamped_gradient(losses_of, tensors, posed, clamp) if clamp > 0 else losses_of(*tensors)


def _solve_by_kernels(
    tensors: tuple[Tensor, ...], lattice: ArcLattice, build: Build, clamp: float, skip_score: float
) -> Tensor:
    samples = []

    def read(scores: Tensor, classes: tuple[int, ...], *, lone: int = -1, logits: bool = True) -> Tensor:
        planes, sample = row_scores(scores, lattice, classes, lone=lone, logits=logits, clamp=clamp)
        samples.append(sample)
        return planes

    losses = arc_losses(build(read, *tensors), lattice, skip_score)
    return with_upstream(losses, samples) if clamp > 0 else losses


def _with_clamped_gradient(
    losses_of: Callable[..., Tensor], tensors: tuple[Tensor, ...], lattice: ArcLattice, clamp: float
) -> Tensor:
    """The same losses, whose gradient is clamped before the upstream gradient multiplies it."""
    with torch.enable_grad():
        probes = [tensor.detach().requires_grad_() for tensor in tensors]
        losses = losses_of(*probes)
        gradients = torch.autograd.grad(losses.sum(), probes)
    losses = losses.detach()
    for tensor, gradient in zip(tensors, gradients, strict=True):
        linear = (_zero_with_gradient(exact(tensor)) * exact(gradient.clamp(-clamp, clamp))).sum(-1)
        if tensor.ndim == 4:
            losses = losses + linear.sum((1, 2))
        else:
            losses = losses + torch.zeros_like(losses).index_add(0, _nodes(lattice)[0], linear)
    return losses


def rnnt_planes(
    lattice: ArcLattice,
    rnnt_type: str,
    *,
    logits: bool = True,
    hat: bool = False,
    delay_penalty: float = 0.0,
    fastemit_lambda: float = 0.0,
) -> Build:
    """How the blank's and the label's plane of a transducer of a type are made."""

    def build(read: Read, scores: Tensor) -> Tensor:
        classes = (lattice.blank, LABEL)
        if hat:
            blank_logit, label = read(scores, classes, lone=lattice.blank)
            blank = torch.nn.functional.logsigmoid(blank_logit)
            label = label + torch.nn.functional.logsigmoid(-blank_logit)
        else:
            planes = read(scores, classes, logits=logits)
            if rnnt_type != "constrained" and not delay_penalty and not fastemit_lambda:
                return planes
            blank, label = planes
        return finish_planes(blank, label, lattice, rnnt_type, delay_penalty, fastemit_lambda)

    return build


def finish_planes(
    blank: Tensor, label: Tensor, lattice: ArcLattice, rnnt_type: str, delay_penalty: float, fastemit_lambda: float
) -> Tensor:
    """The planes of the arcs, of those of the two symbols."""
    if rnnt_type == "constrained":
        # (t, u+1) is the next row; where there is none there is no label.
        label = torch.where(label == -torch.inf, label, label + torch.cat([blank[1:], blank[:1]]))
    if delay_penalty:
        label = label + delay_penalty * torch.from_numpy(earliness(lattice)).to(label.device)
    return torch.stack([blank, emphasise(label, fastemit_lambda)])


def emphasise(label: Tensor, fastemit_lambda: float) -> Tensor:
    """The same scores, whose arcs' posteriors count 1 + lambda times in the gradient."""
    return label + fastemit_lambda * _zero_with_gradient(label) if fastemit_lambda else label
