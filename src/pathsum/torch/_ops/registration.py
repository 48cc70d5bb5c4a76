"""Functions as ``torch.ops.pathsum.<name>``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("pathsum", "DEF")


def operator(function: Callable[..., Any]) -> Any:
    """Register a function as an operator on the CPU.

    By the plain registration: ``torch.library.custom_op`` imports the compiler at the first call, a second of it.
    """
    name = function.__name__
    _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))
    _LIBRARY.impl(name, function, "CPU")
    return getattr(torch.ops.pathsum, name)


def fake(registered: Any) -> Callable[..., Any]:
    """Register what an operator returns where only shapes are known."""
    return torch.library.register_fake(registered._qualified_op_name, lib=_LIBRARY)
