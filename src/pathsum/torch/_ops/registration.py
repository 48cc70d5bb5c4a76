"""Functions as ``torch.ops.pathsum.<name>``.

An operator has one argument more than the function it is registered from: ``impl``, whose kernels run. The function
itself is numba's; Triton's is the function of the same name and arguments in ``pathsum.torch._launch``, in the module
of the same lattice, which is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("pathsum", "DEF")


def operator(function: Callable[..., Any]) -> Any:
    """Register a function as an operator.

    By the plain registration: ``torch.library.custom_op`` imports the compiler at the first call, a second of it.
    """
    name = function.__name__
    arguments, results = torch.library.infer_schema(function, mutates_args=()).rsplit(") ->", 1)
    _LIBRARY.define(f'{name}{arguments}, str impl="numba") ->{results}')
    count = function.__code__.co_argcount

    def run(*arguments: Any) -> Any:
        # An argument that has its default value is not passed on.
        (impl,) = arguments[count:] or ("numba",)
        return implementation(function, impl)(*arguments[:count])

    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, run, key)
    return getattr(torch.ops.pathsum, name)


def implementation(function: Callable[..., Any], impl: str) -> Callable[..., Any]:
    """The function of the implementation asked for that does what a function of ``_ops`` does by numba."""
    if impl == "numba":
        return function
    lattice = function.__module__.rpartition(".")[2]
    return getattr(importlib.import_module(f"pathsum.torch._launch.{lattice}"), function.__name__)


def fake(registered: Any) -> Callable[..., Any]:
    """Register what an operator returns where only shapes are known."""
    count = len(registered.default._schema.arguments) - 1

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        torch.library.register_fake(
            registered._qualified_op_name, lambda *arguments: function(*arguments[:count]), lib=_LIBRARY
        )
        return function

    return register
