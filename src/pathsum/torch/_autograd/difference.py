"""Losses of a part of all paths less those of all: of two lattices, whose scores are the same."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathsum import dispatch
from pathsum.kernels.numba.reduction import spread_apart, subtract
from pathsum.kernels.protocol import Call, Kernels
from pathsum.torch._operators import ArrayKernels, OperatorKernels, Reduction, solved, traced
from pathsum.torch._ops.addition import add

# Kernels, and what they are asked.
Asked = tuple[Kernels, Call]


def difference(own: Tensor, every: Tensor) -> Tensor:
    """Losses of a part of all paths less those of all, NaN where either is.

    Where the part has no path there may be none at all, and infinities must not meet.
    """
    infeasible = (own == torch.inf) & ~every.isnan()
    return torch.where(infeasible, torch.inf, own - torch.where(infeasible, 0.0, every))


def losses_apart(own: Asked, every: Asked, reduction: Reduction) -> Tensor:
    """``difference`` of what two kernels make of the same scores, reduced; differentiable twice.

    ``own`` is asked of a chain, ``every`` of a dense lattice; what all paths have in common is in neither.
    """
    (of_own, asked), (of_every, asked_every) = own, every
    if traced(asked.scores):
        return reduction.of(difference(of_own.losses(asked), of_every.losses(asked_every)))
    assert isinstance(of_own, OperatorKernels)
    assert isinstance(of_every, OperatorKernels)
    lattices = of_own.placed(asked).lattice, of_every.placed(asked_every).lattice
    both = Call(asked.scores, lattices, (asked.options, asked_every.options))
    return solved(_both(of_own, of_every), both, reduction)


class _Both(OperatorKernels):
    """The kernels of two lattices as those of one, whose losses are the difference: one node of torch's graph in place
    of a dozen. Lattices and options are pairs; what is kept are the losses and what each of the two keeps.
    """

    # What is kept beside.
    tables: tuple[str, ...] = ()

    def __init__(self, own: OperatorKernels, every: OperatorKernels) -> None:
        self.pair, self.inputs = (own, every), own.inputs
        names = (f"{whose}_{name}" for whose, kept in (("own", own), ("every", every)) for name in kept.saved._fields)
        self.saved = namedtuple("Saved", ["losses", *names, *self.tables])

    def once_only(self, options: Any) -> str | None:
        own, every = (kernels.once_only(asked) for kernels, asked in zip(self.pair, options, strict=True))
        return own or every

    def with_graph(
        self, call: Call, kept: Sequence[Tensor], upstream: Tensor, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        weights = upstream.masked_fill(kept[0] == torch.inf, 0.0)
        own, every = (
            kernels.with_graph(asked, part, sign, needed)
            for (kernels, asked), part, sign in self._parts(call, kept, (weights, -weights))
        )
        return [a + b if need else None for a, b, need in zip(own, every, needed, strict=True)]

    def _asked(self, call: Call) -> list[tuple[OperatorKernels, Call]]:
        pairs = zip(self.pair, call.lattice, call.options, strict=True)
        return [(kernels, Call(call.scores, lattice, options)) for kernels, lattice, options in pairs]

    def _parts(self, call: Call, saved: Any, weights: Any) -> Any:
        """Each of the two, with what it kept and with its upstream gradient."""
        first, second = (len(kernels.saved._fields) for kernels in self.pair)
        kept = saved[1 : 1 + first], saved[1 + first : 1 + first + second]
        return zip(self._asked(call), kept, weights, strict=True)


class _BothAtOnce(_Both):
    """Where the implementation has kernels that solve both lattices at once."""

    tables = ("table", "matrix")

    @property
    def _apart(self) -> Any:
        return dispatch.kernels_of(self.pair[0].impl, "apart")

    def forward(self, call: Call, need_gradient: bool) -> Any:
        losses, own, every, *tables = self._apart.forward(self._asked(call)[0][1], need_gradient)
        return (losses, *own, *every, *tables)

    def backward(self, call: Call, saved: Any, upstream: Any, needed: Sequence[bool]) -> Sequence[Tensor | None]:
        kept, (own, every) = iter(saved), self.pair
        losses = next(kept)
        parts = [kernels.saved(*islice(kept, len(kernels.saved._fields))) for kernels in (own, every)]
        return self._apart.backward(self._asked(call)[0][1], (losses, *parts, *kept), upstream, needed)


class _BothOfArrays(ArrayKernels, _Both):
    """Where there are none: both are solved, and their gradients added."""

    def forward(self, call: Call, need_gradient: bool) -> Any:
        (own, asked), (every, asked_every) = self._asked(call)
        found, found_every = own.forward(asked, need_gradient), every.forward(asked_every, need_gradient)
        losses = np.empty(len(found[0]))
        subtract(found[0], found_every[0], losses)
        return (losses, *found, *found_every)

    def backward(self, call: Call, saved: Any, upstream: Any, needed: Sequence[bool]) -> list[Tensor | None]:
        weights = np.empty(len(upstream)), np.empty(len(upstream))
        spread_apart(upstream, saved[0], *weights)
        found = [
            kernels.backward(asked, kernels.saved(*kept), upstream, needed)
            for (kernels, asked), kept, upstream in self._parts(call, saved, weights)
        ]
        return [_added(*both) for both in zip(*found, strict=True)]


@cache
def _both(own: OperatorKernels, every: OperatorKernels) -> _Both:
    return (_BothAtOnce if (own.impl, "apart") in dispatch.TABLE else _BothOfArrays)(own, every)


def _added(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """The sum of two gradients, which nobody else has seen."""
    if first is None or second is None:
        return first
    # By the threads of the kernels, where it is worth it.
    return add(first, second) if first.is_cpu and first.numel() >= _LARGE else first.add_(second)


_LARGE = 2**16
