"""Tensors between processes, under autograd.

A tensor is *whole*, the same on every process, as its gradient then is; or each process has its *own*, and the gradient
by it. A sum of what processes own is whole; its transpose hands the same tensor to each. What is passed along the ranks
comes back the other way as a gradient; a *token*, a tensor of no elements, ties what is sent to what is computed here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathsum.torch._processes import Processes


def sum_of(own: Tensor, processes: Processes) -> Tensor:
    """The sum over the processes: whole. Its gradient goes back to each without a word between them."""
    return _Sum.apply(own, processes)


def averaged(own: Tensor, processes: Processes) -> Tensor:
    """The mean over the processes: whole. Its gradient goes back to each as it is.

    Whoever averages gradients over the processes, as DDP does, divides by how many they are.
    """
    return _Averaged.apply(own, processes)


def exchanged(own: Tensor, sizes: list[int], received_sizes: list[int], processes: Processes) -> Tensor:
    """Of a flat tensor so many elements to each process, and so many of each."""
    return _Exchange.apply(own, sizes, received_sizes, processes)


def received(token: Tensor, otherwise: Tensor, step: int, processes: Processes) -> Tensor:
    """What the process ``step`` ranks before this one has ``sent``; of the shape of ``otherwise``, which it is of none.

    Its gradient goes back there. A differentiable token asks for it.
    """
    return _Received.apply(token, otherwise, step, processes)


def sent(own: Tensor, step: int, processes: Processes) -> Tensor:
    """Send a tensor so many ranks on, if there is such a process; a token, which the loss has to depend on."""
    return _Sent.apply(own, step, processes)


def shares_of(scores: Tensor, places: Tensor, inside: Tensor, real: Tensor, maxima: Tensor | None) -> Tensor:
    """(N, T, 1 + W) of scores (N, T, C) of some of the classes: the sum of exp(score - maximum), and W columns less it.

    A column that is not ``inside`` (N, W) the classes is 0, and so is all that is not ``real`` (N, T). Without maxima
    (N, T, 1) the columns alone, as they are.
    """
    return _Shares.apply(scores, places, inside, real, maxima)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        return processes.sum(own.detach().clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Handed.apply(gradient, ctx.processes), None


class _Averaged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, processes: Processes) -> Tensor:
        return processes.sum(own.detach().clone()) / processes.size

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Handed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(gradient, ctx.processes), None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: list[int], received_sizes: list[int], processes: Processes) -> Tensor:
        ctx.sizes, ctx.received_sizes, ctx.processes = sizes, received_sizes, processes
        return processes.exchange(own.detach().contiguous(), sizes, received_sizes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _Exchange.apply(gradient, ctx.received_sizes, ctx.sizes, ctx.processes), None, None, None


class _Received(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, otherwise: Tensor, step: int, processes: Processes) -> Tensor:
        ctx.step, ctx.processes = step, processes
        return processes.receive(otherwise.detach().clone(), processes.rank - step)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _Sent.apply(gradient, -ctx.step, ctx.processes), None, None, None


class _Sent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, step: int, processes: Processes) -> Tensor:
        ctx.shape, ctx.step, ctx.processes = own.shape, step, processes
        processes.send(own.detach().contiguous(), processes.rank + step)
        token = own.new_empty(0)
        ctx.save_for_backward(token)
        return token

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (token,) = ctx.saved_tensors
        # What comes back depends on what was sent, which nothing here but the token tells autograd.
        nothing = token.new_zeros(ctx.shape)
        return _Received.apply(gradient + token, nothing, -ctx.step, ctx.processes), None, None


class _Shares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        scores, places, inside, real, maxima = inputs
        ctx.save_for_backward(*inputs)
        columns = scores.new_zeros((*scores.shape[:2], places.shape[1]), dtype=_work(scores))
        if scores.shape[2]:
            index = places[:, None].expand(-1, scores.shape[1], -1)
            columns = torch.where(inside[:, None] & real[..., None], scores.gather(2, index).to(columns.dtype), 0.0)
        if maxima is None:
            return columns
        sums = columns.new_zeros((*scores.shape[:2], 1))
        for n in range(len(scores)):  # a sample's exponentials at a time
            own = real[n]
            sums[n, own] = (scores[n, own].to(sums.dtype) - maxima[n, own]).exp().sum(1, keepdim=True)
        return torch.cat([sums, torch.where(inside[:, None] & real[..., None], columns - maxima, 0.0)], 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scores, places, inside, real, maxima = ctx.saved_tensors
        num_columns = places.shape[1]
        if not scores.shape[2]:
            # Of nothing, and a part of the graph: what differentiates it asks the other processes, too.
            return gradient[..., :0].to(scores.dtype), None, None, None, None
        spread = torch.where(inside[:, None] & real[..., None], gradient[..., -num_columns:], 0.0)
        if maxima is None:
            written = gradient.new_zeros(scores.shape)
        else:
            shares = (torch.where(real[..., None], scores.to(gradient.dtype), -torch.inf) - maxima).exp()
            written = shares * gradient[..., :1]
        index = places[:, None].expand(-1, scores.shape[1], -1)
        written = written.scatter_add(2, index, spread)
        return written.to(scores.dtype), None, None, None, None


def _work(scores: Tensor) -> torch.dtype:
    return torch.float64 if scores.dtype == torch.float64 else torch.float32
