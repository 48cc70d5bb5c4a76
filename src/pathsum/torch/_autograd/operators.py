"""Derivatives of operators, where every transform of torch finds them.

A ``torch.autograd.Function`` around an operator is not seen in a graph that is traced, and what
``torch.library.register_autograd`` registers drops the tangents of forward mode; both give zeros then and say nothing.
So the rules are the operator's own kernel for autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from pathsum.errors import NotDifferentiableError
from pathsum.torch._ops.registration import LIBRARY, uncompiled
from pathsum.torch._private import (
    BelowAutograd,
    SingleLevelFunction,
    after_autograd,
    any_requires_grad,
    arguments_of,
    forward_mode,
    peek_interpreter_stack,
    single_level_functions,
    transformed,
)


def differentiates(registered: Any) -> Callable[[type], type]:
    """Make a class of ``setup_context``, ``backward`` and ``jvp`` the derivatives of an operator.

    They are as in ``torch.autograd.Function``, and may call operators and torch. An input ``need_gradient`` becomes
    True where there is somebody to ask for a derivative.
    """
    overload = registered.default
    names = arguments_of(overload)
    asked = names.index("need_gradient") if "need_gradient" in names else None

    def register(rules: Any) -> Any:
        def forward(ctx: Any, *inputs_and_keys: Any) -> Any:
            *inputs, keys = inputs_and_keys
            with ExitStack() as stack:
                stack.enter_context(BelowAutograd())
                if peek_interpreter_stack() is not None:
                    # The transforms outside this one have derivatives of their own to take.
                    stack.enter_context(torch.enable_grad())
                    stack.enter_context(forward_mode(True))
                output = overload.redispatch(keys & after_autograd, *inputs)
            rules.setup_context(ctx, tuple(inputs), output)
            return output

        def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
            return *rules.backward(ctx, *gradients), None

        def jvp(ctx: Any, *tangents: Any) -> Any:
            return rules.jvp(ctx, *tangents[:-1])

        methods = {"forward": forward, "backward": backward, "jvp": jvp}
        function = type(
            rules.__name__, (SingleLevelFunction,), {name: staticmethod(method) for name, method in methods.items()}
        )

        def kernel(keys: Any, *inputs: Any) -> Any:
            if not transformed() and not (torch.is_grad_enabled() and any_requires_grad(*inputs)):
                with BelowAutograd():
                    return overload.redispatch(keys & after_autograd, *inputs)
            if asked is not None:
                inputs = (*inputs[:asked], True, *inputs[asked + 1 :])
            with single_level_functions():
                return function.apply(*inputs, keys)

        LIBRARY.impl(overload.name(), uncompiled(kernel), "Autograd", with_keyset=True)
        return rules

    return register


def save(ctx: Any, *values: Any) -> None:
    """Keep inputs and outputs, tensors and others, for ``backward`` and for ``jvp``."""
    tensors = [value if isinstance(value, Tensor) else None for value in values]
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.others = [None if isinstance(value, Tensor) else value for value in values]


def recall(ctx: Any) -> list[Any]:
    """What ``save`` kept."""
    # Looked at once: a checkpoint does not give them twice.
    return [other if tensor is None else tensor for tensor, other in zip(ctx.saved_tensors, ctx.others, strict=True)]


def refuse_graph(reason: str) -> None:
    """Raise where a backward that is running has been asked for a graph of itself (``create_graph=True``).

    Not under ``torch.func``, whose transforms always ask, nor while compiling: there, differentiating again raises.
    """
    if torch.compiler.is_compiling() or peek_interpreter_stack() is not None:
        return
    if torch.is_grad_enabled():
        raise NotDifferentiableError(reason)
