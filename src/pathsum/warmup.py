"""What ``pathsum warmup`` does: small calls of public functions, so that their kernels are compiled and cached."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

import pathsum.torch
from pathsum.errors import CommandError, NotDifferentiableError
from pathsum.graphs import linear, over_ctc
from pathsum.info import num_compiled

_CLASSES, _FRAMES, _HIDDEN = 5, 6, 4
_TARGETS, _LENGTHS, _LABELS = [[1, 2], [3, 0]], [_FRAMES, _FRAMES - 1], [2, 1]


def _chain(dtype: torch.dtype) -> tuple[Any, ...]:
    return _frames(dtype), _TARGETS, _LENGTHS, _LABELS


def _batches(dtype: torch.dtype) -> tuple[Any, ...]:
    return _frames(dtype).detach().transpose(0, 1), _TARGETS, _LENGTHS, _LABELS


def _grid(dtype: torch.dtype) -> tuple[Any, ...]:
    return _leaf(dtype, 2, _FRAMES, 3, _CLASSES), _TARGETS, _LENGTHS, _LABELS


def _joint(dtype: torch.dtype) -> tuple[Any, ...]:
    operands = (_leaf(dtype, *shape, _HIDDEN) for shape in ((2, _FRAMES), (2, 3), (_CLASSES,)))
    return *operands, None, _TARGETS, _LENGTHS, _LABELS


def _linear(dtype: torch.dtype) -> tuple[Any, ...]:
    operands = (_leaf(dtype, *shape, _HIDDEN) for shape in ((_FRAMES, 2), (_CLASSES,)))
    return *operands, None, _TARGETS, _LENGTHS, _LABELS


def _risk(dtype: torch.dtype) -> tuple[Any, ...]:
    return _frames(dtype), [_TARGETS] * 2, _LENGTHS, [_LABELS] * 2, torch.tensor([[0.0, 1.0]] * 2)


def _frames(dtype: torch.dtype) -> Tensor:
    return _leaf(dtype, _FRAMES, 2, _CLASSES)


def _leaf(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=dtype, requires_grad=True)


# The arguments of a small call of each function.
CALLS: dict[str, Callable[[torch.dtype], tuple[Any, ...]]] = {
    "ctc_loss": _chain,
    "simple_ctc_loss": _chain,
    "asg_loss": lambda dtype: (_frames(dtype), _TARGETS, _leaf(dtype, _CLASSES, _CLASSES), _LENGTHS, _LABELS),
    "rnnt_loss": _grid,
    "rnnt_joint_loss": _joint,
    "tdt_loss": lambda dtype: (
        _grid(dtype)[0], _leaf(dtype, 2, _FRAMES, 3, 2), _TARGETS, _LENGTHS, _LABELS, [0, 1],
    ),
    "multi_blank_rnnt_loss": lambda dtype: (*_grid(dtype), [2], [4], 0),
    "ctc_linear_loss": _linear,
    "lattice_loss": lambda dtype: (_frames(dtype), over_ctc(linear([1, 2]), _CLASSES), _LENGTHS),
    "ctc_mwer_loss": _risk,
    "ctc_entropy": _chain,
    "rnnt_entropy": _grid,
    "forced_align": _batches,
    "ctc_beam_decode": lambda dtype: (_batches(dtype)[0], _LENGTHS),
}  # fmt: skip


def warm_up(names: Sequence[str], dtypes: Sequence[str], second: bool) -> Iterator[tuple[str, str, int, float]]:
    """Call functions and differentiate them: name, dtype, how many kernels that compiled, and seconds of each.

    Args:
        names: Of ``CALLS``; all where there are none.
        dtypes: Names of torch's.
        second: Whether to differentiate twice.

    Raises:
        CommandError: a name that is not of these.
    """
    for name in names:
        if name not in CALLS:
            raise CommandError(f"{name} must be one of {', '.join(CALLS)}")
    for name in names or CALLS:
        for dtype in dtypes:
            before, begin = num_compiled(), time.perf_counter()
            call(name, dtype, second)
            yield name, dtype, num_compiled() - before, time.perf_counter() - begin


def call(name: str, dtype: str, second: bool) -> None:
    """Call a function of ``CALLS`` and differentiate it, twice where asked."""
    arguments = CALLS[name](getattr(torch, dtype))
    result = getattr(pathsum.torch, name)(*arguments)
    leaves = [value for value in arguments if isinstance(value, Tensor) and value.requires_grad]
    if leaves:
        first = torch.autograd.grad(result.sum(), leaves, create_graph=second)
        if second:
            # Entropies have one derivative.
            with suppress(NotDifferentiableError):
                torch.autograd.grad([gradient.sum() for gradient in first], leaves)
