"""What pathsum uses of torch that torch does not document: no other file names any of it.

Every part of it holds from torch 2.8, the oldest version that pathsum declares, to 2.13: both were run. Where another
version lacks a part, importing ``pathsum.torch`` says which.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pathsum.errors import FrameworkVersionError

__all__ = [
    "BelowAutograd",
    "SingleLevelFunction",
    "after_autograd",
    "any_requires_grad",
    "arguments_of",
    "compiler_is_loaded",
    "constant_when_traced",
    "dispatch_mode",
    "forward_mode",
    "is_legacy_batchedtensor",
    "peek_interpreter_stack",
    "single_level_functions",
    "store_of_processes",
    "transformed",
    "version_of",
]

RUN = ("2.8", "2.13")
_HAVE = f"this is torch {torch.__version__}; pathsum was tested with torch {RUN[0]} to {RUN[1]}"

if tuple(map(int, torch.__version__.split(".")[:2])) < tuple(map(int, RUN[0].split("."))):
    raise FrameworkVersionError(f"pathsum.torch needs torch {RUN[0]} or newer; {_HAVE}")

try:
    # What an operator's own kernel for autograd does: whether any input asks for a gradient, and calling what is below.
    from torch._C import _after_autograd_keyset as after_autograd
    from torch._C import _any_requires_grad as any_requires_grad
    from torch._C import _AutoDispatchBelowAutograd as BelowAutograd

    # The innermost transform of torch.func that runs, or None; whether a tensor is a batch of the older vmap's, which
    # takes the rows of torch.autograd.functional's derivatives at once.
    from torch._C._functorch import (
        get_single_level_autograd_function_allowed,
        is_legacy_batchedtensor,
        peek_interpreter_stack,
        set_single_level_autograd_function_allowed,
    )
    from torch.autograd import forward_ad

    # Whether operators propagate the tangents of forward mode.
    from torch.autograd.forward_ad import _set_fwd_grad_enabled as forward_mode

    # A torch.autograd.Function for one level of torch.func's transforms, which torch's own are made of.
    from torch.autograd.function import _SingleLevelFunction as SingleLevelFunction

    # The innermost mode that sees every operator (fake tensors, counters), or None.
    from torch.utils._python_dispatch import _get_current_dispatch_mode as dispatch_mode
except ImportError as error:
    raise FrameworkVersionError(
        f"pathsum.torch uses a private part of torch that it did not find: {error}; {_HAVE}"
    ) from error

for _owner, _name in ((forward_ad, "_current_level"), (Tensor, "_version"), (torch.ops.aten.neg.default, "_schema")):
    if not hasattr(_owner, _name):
        raise FrameworkVersionError(f"pathsum.torch uses {_name} of {_owner}, which is not there; {_HAVE}")


def transformed() -> bool:
    """Whether a transform of ``torch.func`` runs, or forward-mode differentiation."""
    return forward_ad._current_level >= 0 or peek_interpreter_stack() is not None


@contextmanager
def single_level_functions() -> Iterator[None]:
    """``SingleLevelFunction.apply`` is allowed."""
    allowed = get_single_level_autograd_function_allowed()
    set_single_level_autograd_function_allowed(True)
    try:
        yield
    finally:
        set_single_level_autograd_function_allowed(allowed)


def arguments_of(overload: Any) -> list[str]:
    """The names of an operator's arguments."""
    return [argument.name for argument in overload._schema.arguments]


def version_of(tensor: Tensor) -> int:
    """How often a tensor's memory has been written to: the count that autograd compares."""
    return tensor._version


def store_of_processes() -> Any:
    """The store by which the processes of ``torch.distributed`` found one another."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def compiler_is_loaded() -> bool:
    """Whether ``torch.compile`` has been imported; asking ``torch.compiler`` would load it."""
    return "torch._dynamo" in sys.modules


def constant_when_traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compiler.assume_constant_result`` without importing the compiler: the mark that it leaves."""
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function
