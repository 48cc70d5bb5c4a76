"""The planes of a joiner whose classes are shared out among processes, under autograd."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathsum.torch._autograd.operators import refuse_graph
from pathsum.torch._ops.arrays import work_dtype
from pathsum.torch._processes import Processes
from pathsum.torch.joiner import ACTIVATIONS

# Elements of a tile of the joiner's logits.
_ELEMENTS = 2**21


class OwnNodes(NamedTuple):
    """The nodes of a transducer's grids, and which of this process's classes they read.

    Attributes:
        sample, frame, position: (rows,) of each node.
        labels, inside: (rows,) place of the next label among the process's classes, and whether it is among them.
        blank: Place of the blank, or ``None``.
    """

    sample: Tensor
    frame: Tensor
    position: Tensor
    labels: Tensor
    inside: Tensor
    blank: int | None


def planes_of_joiner(
    operands: tuple[Tensor, Tensor, Tensor, Tensor | None], nodes: OwnNodes, activation: str, processes: Processes
) -> Tensor:
    """Log-probabilities (2, rows) of blank and label, whole, of a joiner whose weight and bias are of some classes."""
    return _Planes.apply(*operands, nodes, activation, processes)


class _Planes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, encoder: Tensor, predictor: Tensor, weight: Tensor, bias: Tensor | None, nodes: OwnNodes,
        activation: str, processes: Processes,
    ) -> Tensor:  # fmt: skip
        work = work_dtype(weight)
        maxima = torch.full_like(nodes.sample, torch.finfo(work).min, dtype=work)
        own = maxima.new_zeros(3, len(maxima))  # sum, blank, label
        for rows, _, _, logits in _tiles(encoder, predictor, weight, bias, nodes, activation):
            largest = logits.amax(1)
            maxima[rows] = torch.maximum(maxima[rows], largest)
            if nodes.blank is not None:
                own[1, rows] = logits[:, nodes.blank]
            label = logits.gather(1, nodes.labels[rows, None])[:, 0]
            own[2, rows] = torch.where(nodes.inside[rows], label, 0.0)
            own[0, rows] = logits.sub_(maxima[rows, None]).exp_().sum(1)
        largest = processes.largest(maxima.clone())
        own[0] *= (maxima - largest).exp()
        sums, blank, label = processes.sum(own)
        ctx.save_for_backward(encoder, predictor, weight, bias, largest, sums)
        ctx.nodes, ctx.activation, ctx.processes = nodes, activation, processes
        return torch.stack([blank, label]).double() - largest - torch.where(sums == 0, 1.0, sums).log()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        refuse_graph(
            f"{ctx.processes.function}: the joiner of several processes has first derivatives only; for "
            "create_graph=True give all classes to one process, as pathsum.torch.rnnt_joint_loss takes them"
        )
        encoder, predictor, weight, bias, maxima, sums = ctx.saved_tensors
        nodes, work = ctx.nodes, work_dtype(weight)
        gradient = gradient.to(work)
        of_encoder, of_predictor = (torch.zeros_like(x, dtype=work) for x in (encoder, predictor))
        of_weight = torch.zeros_like(weight, dtype=work)
        of_bias = None if bias is None else torch.zeros_like(bias, dtype=work)
        scales = torch.where(sums == 0, 0.0, -gradient.sum(0) / sums)
        operands = (encoder, predictor, weight, bias)
        for rows, joined, hidden, logits in _tiles(*operands, nodes, ctx.activation, differentiable=True):
            logits.sub_(maxima[rows, None]).exp_().mul_(scales[rows, None])
            if nodes.blank is not None:
                logits[:, nodes.blank] += gradient[0, rows]
            label = torch.where(nodes.inside[rows], gradient[1, rows], 0.0)
            logits.scatter_add_(1, nodes.labels[rows, None], label[:, None])
            of_weight.addmm_(logits.T, hidden.detach())
            if of_bias is not None:
                of_bias += logits.sum(0)
            (of_joined,) = torch.autograd.grad(hidden, joined, logits @ weight.to(work))
            of_encoder.index_put_((nodes.sample[rows], nodes.frame[rows]), of_joined, accumulate=True)
            of_predictor.index_put_((nodes.sample[rows], nodes.position[rows]), of_joined, accumulate=True)
        both = ctx.processes.sum(torch.cat([of_encoder.flatten(), of_predictor.flatten()]))
        of_encoder, of_predictor = both.split([of_encoder.numel(), of_predictor.numel()])
        found = (of_encoder.view_as(encoder), of_predictor.view_as(predictor), of_weight)
        found = (x.to(weight.dtype) for x in found)
        return *found, None if of_bias is None else of_bias.to(weight.dtype), None, None, None


def _tiles(
    encoder: Tensor, predictor: Tensor, weight: Tensor, bias: Tensor | None, nodes: OwnNodes, activation: str,
    *, differentiable: bool = False,
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:  # fmt: skip
    """Rows, what the joiner has joined, its hidden rows and their logits, a tile at a time."""
    work = work_dtype(weight)
    step = max(_ELEMENTS // max(len(weight), weight.shape[1], 1), 1)
    for first in range(0, len(nodes.sample) if len(weight) else 0, step):
        rows = slice(first, min(first + step, len(nodes.sample)))
        joined = encoder.detach()[nodes.sample[rows], nodes.frame[rows]]
        joined = (joined + predictor.detach()[nodes.sample[rows], nodes.position[rows]]).to(work)
        with torch.set_grad_enabled(differentiable):
            hidden = ACTIVATIONS[activation](joined.requires_grad_(differentiable))
        with torch.no_grad():
            logits = hidden @ weight.detach().to(work).T
            if bias is not None:
                logits += bias.detach()
        yield rows, joined, hidden, logits
