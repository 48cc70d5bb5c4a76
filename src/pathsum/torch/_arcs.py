"""Losses on arc lattices: scores are read into planes, sums of planes are the arcs' scores, a kernel sums the paths."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pathsum import _checks
from pathsum.kernels.reference import grid_arcs as reference
from pathsum.kernels.reference.grid import _nodes, _zero_with_gradient
from pathsum.kernels.reference.log_domain import exact
from pathsum.lattice import ArcLattice
from pathsum.torch._autograd.arcs import arc_losses, arc_scores, row_scores
from pathsum.torch._autograd.joint_scores import joint_scores
from pathsum.torch._autograd.reweighted import first_derivative_only, upstream_to_samples
from pathsum.torch._inputs import on_device
from pathsum.torch.joiner import Joiner


class Scoring(NamedTuple):
    """How the arcs' scores are made of the classes', and gradients of the arcs' posteriors.

    Attributes:
        logits: whether the log-softmax is to be taken.
        hat: whether the blank has no share in it: its probability is a sigmoid.
        sigma: what is taken from every arc's score.
        delay_penalty: what is added to those of labels: see ``earliness``.
        skip_score: the score of leaving frames out.
        fastemit_lambda: labels' posteriors count 1 + lambda times in the gradient.
        clamp: where positive, the bound of a loss's own gradient.
    """

    logits: bool = True
    hat: bool = False
    sigma: float = 0.0
    delay_penalty: float = 0.0
    skip_score: float = 0.0
    fastemit_lambda: float = 0.0
    clamp: float = -1.0

    @property
    def reweights(self) -> bool:
        """Whether the gradient is another than that of the loss."""
        return self.fastemit_lambda > 0 or self.clamp > 0

    def checked(self, function: str) -> Scoring:
        """The same, its numbers checked."""

        def number(name: str, minimum: float = -math.inf) -> float:
            return _checks.check_number(function, name, getattr(self, name), minimum)

        return Scoring(
            logits=bool(self.logits),
            hat=bool(self.hat),
            sigma=number("sigma"),
            delay_penalty=number("delay_penalty"),
            skip_score=number("skip_score"),
            fastemit_lambda=number("fastemit_lambda", minimum=0.0),
            clamp=number("clamp"),
        )


def solve(heads: tuple[Tensor | Joiner, ...], lattice: ArcLattice, chosen: str, scoring: Scoring) -> Tensor:
    """Losses (N,) of the scores that the lattice reads, or of joiners that make them, by the implementation chosen."""
    reading = {"lone": lattice.blank if scoring.hat else -1, "logits": scoring.logits}
    clamp = scoring.clamp
    if chosen != "numba":
        heads = tuple(head.logits() if isinstance(head, Joiner) else head for head in heads)
    if chosen != "reference":
        # A joiner's gate is of the posteriors, which are the gradients of a loss's own planes. The upstream gradient
        # comes by the samples then, for logits beside a joiner too, as with a clamp: at infinity one clamps nothing.
        by_loss = clamp > 0 or any(isinstance(head, Joiner) for head in heads)
        logits_clamp = math.inf if by_loss and clamp <= 0 else clamp
        if chosen == "triton" and scoring.reweights:
            heads = tuple(first_derivative_only(head) for head in heads if isinstance(head, Tensor))
        read = [
            joint_scores(head, lattice, classes, clamp=clamp, **reading)
            if isinstance(head, Joiner)
            else row_scores(head, lattice, classes, clamp=logits_clamp, impl=chosen, **reading)
            for head, classes in zip(heads, lattice.reads, strict=True)
        ]
        scores = add_planes([planes for planes, _ in read], lattice, scoring, chosen)
        losses = arc_losses(scores, lattice, scoring.skip_score, impl=chosen)
        return upstream_to_samples(losses, torch.stack([samples for _, samples in read])) if by_loss else losses
    tensors = tuple(head for head in heads if isinstance(head, Tensor))
    posed = on_device(lattice, tensors[0].device)
    if scoring.reweights:
        tensors = tuple(map(first_derivative_only, tensors))

    def losses_of(*tensors: Tensor) -> Tensor:
        planes = [
            reference.row_scores(scores, posed, classes, **reading)
            for scores, classes in zip(tensors, posed.reads, strict=True)
        ]
        return reference.forward(add_planes(planes, posed, scoring, chosen), posed, scoring.skip_score)

    return _with_clamped_gradient(losses_of, tensors, posed, clamp) if clamp > 0 else losses_of(*tensors)


def read_planes(scores: Tensor, lattice: ArcLattice, classes: tuple[int, ...], chosen: str, *, logits: bool) -> Tensor:
    """Planes (K, rows) of the classes of padded or packed scores, by the implementation chosen."""
    if chosen != "reference":
        return row_scores(scores, lattice, classes, lone=-1, logits=logits, clamp=-1.0, impl=chosen)[0]
    return reference.row_scores(scores, on_device(lattice, scores.device), classes, lone=-1, logits=logits)


def add_planes(planes: list[Tensor], lattice: ArcLattice, scoring: Scoring, chosen: str) -> Tensor:
    """Scores (kinds, rows) of the arcs, of the planes of each tensor, by the implementation chosen."""
    add = arc_scores if chosen == "numba" else reference.arc_scores
    placed = lattice if chosen == "numba" else on_device(lattice, planes[0].device)
    return add(
        planes,
        placed,
        sigma=scoring.sigma,
        delay_penalty=scoring.delay_penalty,
        fastemit_lambda=scoring.fastemit_lambda,
    )


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
