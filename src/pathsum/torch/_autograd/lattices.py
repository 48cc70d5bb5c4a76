"""First and second derivatives of the operators of a lattice, in every mode of differentiation, said once for all.

A lattice has three operators. ``inputs`` begin with what is differentiated, such as scores and transitions, and end
with ``need_gradient``, which the latter two lack; ``saved`` is what ``forward`` returns, the losses first.

    forward(*inputs)                                           ->  *saved
    backward(upstream, *inputs, *saved, needed)                ->  *gradients, of no size where not needed
    second(*tangents, upstream, *inputs, *saved, needed)       ->  slopes, *products

A slope is the derivative of a loss along the tangents; a product is that of the gradients, at their upstream gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pathsum.errors import NotDifferentiableError
from pathsum.torch._autograd.operators import differentiates, recall, refuse_graph, save
from pathsum.torch._private import arguments_of

_THIRD = "impl='numba' and impl='triton' have two derivatives; impl='reference' is differentiable to any order"


def differentiable(
    forward: Any, backward: Any, second: Any, *, num_inputs: int, once_only: Callable[[Sequence[Any]], str | None]
) -> None:
    """Register the derivatives of a lattice's operators.

    Args:
        forward, backward, second: Operators as above.
        num_inputs: How many inputs are differentiated.
        once_only: Why a call, of which it is given the inputs, has first derivatives alone, where it has.
    """
    count = sum(name != "need_gradient" for name in arguments_of(forward.default))

    def check_twice(inputs: Sequence[Any]) -> None:
        reason = once_only(inputs)
        if reason is not None:
            raise NotDifferentiableError(reason)

    @differentiates(forward)
    class _Losses:
        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            # Backward is of the losses; for the others it shall not be given planes of zeros, filled for nothing.
            ctx.mark_non_differentiable(*output[1:])
            ctx.set_materialize_grads(False)
            save(ctx, *inputs[:count], *output)
            ctx.num_given = len(inputs)

        @staticmethod
        def backward(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
            values = recall(ctx)
            inputs, saved = values[:count], _constants(values[count:])
            reason = once_only(inputs)
            if reason is not None:
                refuse_graph(reason)
            needed = ctx.needs_input_grad[:num_inputs]
            gradients = _tuple(backward(_defined(upstream, saved[0]), *inputs, *saved, list(needed)))
            return *_only(needed, gradients), *[None] * (ctx.num_given - num_inputs)

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
            values = recall(ctx)
            inputs, saved = values[:count], _constants(values[count:])
            check_twice(inputs)
            upstream, needed = torch.ones_like(saved[0]), [False] * num_inputs
            slopes, *_ = second(*tangents[:num_inputs], upstream, *inputs, *saved, needed)
            return slopes, *[None] * (len(saved) - 1)

    @differentiates(backward)
    class _Gradients:
        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            needed, output = inputs[-1], _tuple(output)
            ctx.mark_non_differentiable(*(gradient for gradient, need in zip(output, needed, strict=True) if not need))
            ctx.set_materialize_grads(False)
            save(ctx, *inputs[:-1])
            ctx.needed = needed

        @staticmethod
        def backward(ctx: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
            values = recall(ctx)
            if all(tangent is None for tangent in tangents):
                return (None,) * (len(values) + 1)
            check_twice(values[1 : 1 + count])
            needed = ctx.needs_input_grad[: 1 + num_inputs]
            derivatives = second(*tangents, *values, list(needed[1:]))
            return *_only(needed, derivatives), *[None] * (len(values) + 1 - len(needed))

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
            values = recall(ctx)
            upstream, along = tangents[0], tangents[1 : 1 + num_inputs]
            total: list[Any] = [None] * num_inputs
            if upstream is not None:
                total = list(_tuple(backward(upstream, *values[1:], list(ctx.needed))))
            if any(tangent is not None for tangent in along):
                check_twice(values[1 : 1 + count])
                _, *products = second(*along, *values, list(ctx.needed))
                total = [_add(*pair) for pair in zip(total, _only(ctx.needed, products), strict=True)]
            found = tuple(_only(ctx.needed, total))
            return found if num_inputs > 1 else found[0]

    @differentiates(second)
    class _Products:
        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            ctx.set_materialize_grads(False)
            save(ctx, *inputs[:-1])

        @staticmethod
        def backward(ctx: Any, of_slopes: Tensor | None, *of_products: Tensor | None) -> tuple[Any, ...]:
            if any(gradient is not None for gradient in of_products):
                raise NotDifferentiableError(_THIRD)
            # A slope is <gradient, tangents> with an upstream gradient of one.
            values = recall(ctx)
            tangents, inputs_and_saved = values[:num_inputs], values[num_inputs + 1 :]
            upstream = _defined(of_slopes, values[num_inputs])
            needed = ctx.needs_input_grad[:num_inputs]
            by_tangents = _tuple(backward(upstream, *inputs_and_saved, list(needed)))
            first = num_inputs + 1
            needed_inputs = ctx.needs_input_grad[first : first + num_inputs]
            _, *products = second(*tangents, upstream, *inputs_and_saved, list(needed_inputs))
            by_inputs = _only(needed_inputs, products)
            rest = len(values) + 1 - first - num_inputs
            return *_only(needed, by_tangents), None, *by_inputs, *[None] * rest

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
            raise NotDifferentiableError(_THIRD)


def _constants(saved: Sequence[Tensor]) -> list[Tensor]:
    """What forward has kept, as inputs of a gradient that knows by itself how they depend on the scores.

    The engine would run the whole backward once more, for nothing, were the losses still tied to their graph.
    """
    return [tensor.detach() for tensor in saved]


def _tuple(result: Any) -> tuple[Tensor, ...]:
    """What an operator returns: of one tensor it makes no tuple."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _add(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return first if second is None else second if first is None else first + second


def _defined(upstream: Tensor | None, like: Tensor) -> Tensor:
    """Zeros where nothing depends on the losses."""
    return torch.zeros_like(like) if upstream is None else upstream


def _only(needed: Sequence[bool], tensors: Sequence[Any]) -> list[Any]:
    return [tensor if need else None for tensor, need in zip(tensors, needed, strict=True)]
