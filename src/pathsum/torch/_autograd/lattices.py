"""First and second derivatives of the operators of a lattice, in every mode of differentiation, said once for all.

A lattice has three operators. ``inputs`` begin with what is differentiated, such as scores and transitions, and end
with ``need_gradient``, which the latter two lack; ``saved`` is what ``forward`` returns, the losses first.

    forward(*inputs)                                            ->  *saved
    backward(*upstream, *inputs, *saved, needed)                ->  *gradients, of no size where not needed
    second(*tangents, *upstream, *inputs, *saved, needed)       ->  *slopes, *products

A slope is the derivative of a loss along the tangents; a product is that of the gradients, at their upstream gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathsum.errors import NotDifferentiableError
from pathsum.lattice import ArcLattice, GridLattice
from pathsum.torch._autograd.operators import differentiates, recall, refuse_graph, save
from pathsum.torch._autograd.reweighted import REWEIGHTED
from pathsum.torch._ops.arrays import as_tensor

FIRST_ONLY = "impl='triton' has first derivatives only; impl='reference' is differentiable to any order"
_THIRD = "impl='numba' and impl='triton' have two derivatives; impl='reference' is differentiable to any order"


def differentiable(
    forward: Any, backward: Any, second: Any, *, num_inputs: int, num_losses: int = 1, reason: str = REWEIGHTED
) -> None:
    """Register the derivatives of a lattice's operators.

    Args:
        forward, backward, second: Operators as above; where ``second`` is None there are first derivatives alone.
        num_inputs: How many inputs are differentiated.
        num_losses: How many of ``saved`` are what is differentiated, each with an upstream gradient of its own.
        reason: Why there are no second derivatives, without ``second`` or where what is asked for is not the losses'
            own gradient.
    """
    names = [argument.name for argument in forward.default._schema.arguments if argument.name != "need_gradient"]
    weights = [k for k, name in enumerate(names) if name in ("fastemit_lambda", "clamp", "by_logits")]
    count = len(names)

    def once_only(inputs: Sequence[Any]) -> bool:
        return second is None or any(inputs[k] > 0 for k in weights)

    @differentiates(forward)
    class _Losses:
        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            # Backward is of the losses; for the others it shall not be given planes of zeros, filled for nothing.
            ctx.mark_non_differentiable(*output[num_losses:])
            ctx.set_materialize_grads(False)
            save(ctx, *inputs[:count], *output)
            ctx.num_given = len(inputs)

        @staticmethod
        def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
            values = recall(ctx)
            inputs, saved = values[:count], _constants(values[count:])
            if once_only(inputs):
                refuse_graph(reason)
            needed = ctx.needs_input_grad[:num_inputs]
            gradients = _tuple(backward(*_defined(upstream[:num_losses], saved), *inputs, *saved, list(needed)))
            return *_only(needed, gradients), *[None] * (ctx.num_given - num_inputs)

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
            values = recall(ctx)
            inputs, saved = values[:count], _constants(values[count:])
            if once_only(inputs):
                raise NotDifferentiableError(reason)
            upstream = [torch.ones_like(loss) for loss in saved[:num_losses]]
            slopes = second(*tangents[:num_inputs], *upstream, *inputs, *saved, [False] * num_inputs)[:num_losses]
            return *slopes, *[None] * (len(saved) - num_losses)

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
            if once_only(values[num_losses : num_losses + count]):
                raise NotDifferentiableError(reason)
            needed = ctx.needs_input_grad[: num_losses + num_inputs]
            derivatives = second(*tangents, *values, list(needed[num_losses:]))
            return *_only(needed, derivatives), *[None] * (len(values) + 1 - len(needed))

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
            values = recall(ctx)
            upstream, along = tangents[:num_losses], tangents[num_losses : num_losses + num_inputs]
            total: list[Any] = [None] * num_inputs
            if any(tangent is not None for tangent in upstream):
                total = list(_tuple(backward(*_defined(upstream, values), *values[num_losses:], list(ctx.needed))))
            if any(tangent is not None for tangent in along):
                if once_only(values[num_losses : num_losses + count]):
                    raise NotDifferentiableError(reason)
                products = second(*along, *values, list(ctx.needed))[num_losses:]
                total = [_add(*pair) for pair in zip(total, _only(ctx.needed, products), strict=True)]
            found = tuple(_only(ctx.needed, total))
            return found if num_inputs > 1 else found[0]

    if second is None:
        return

    @differentiates(second)
    class _Products:
        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            ctx.set_materialize_grads(False)
            save(ctx, *inputs[:-1])

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
            of_slopes, of_products = gradients[:num_losses], gradients[num_losses:]
            if any(gradient is not None for gradient in of_products):
                raise NotDifferentiableError(_THIRD)
            # A slope is <gradient, tangents> with an upstream gradient of one.
            values = recall(ctx)
            tangents, inputs_and_saved = values[:num_inputs], values[num_inputs + num_losses :]
            upstream = _defined(of_slopes, values[num_inputs:])
            needed = ctx.needs_input_grad[:num_inputs]
            by_tangents = _tuple(backward(*upstream, *inputs_and_saved, list(needed)))
            first = num_inputs + num_losses
            needed_inputs = ctx.needs_input_grad[first : first + num_inputs]
            products = second(*tangents, *upstream, *inputs_and_saved, list(needed_inputs))[num_losses:]
            by_inputs = _only(needed_inputs, products)
            rest = len(values) + 1 - first - num_inputs
            return *_only(needed, by_tangents), *[None] * num_losses, *by_inputs, *[None] * rest

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
            raise NotDifferentiableError(_THIRD)


def grid_tensors(lattice: GridLattice | ArcLattice) -> list[Tensor]:
    return list(map(as_tensor, (lattice.logit_lengths, lattice.target_lengths, lattice.targets, lattice.row_offsets)))


def _constants(saved: Sequence[Tensor]) -> list[Tensor]:
    """What forward has kept, as inputs of a gradient that knows by itself how they depend on the scores.

    The losses' graph, left on, would have the engine run the whole backward once more, on nothing.
    """
    return [tensor.detach() for tensor in saved]


def _tuple(result: Any) -> tuple[Tensor, ...]:
    """What an operator returns: of one tensor it makes no tuple."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _add(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return first if second is None else second if first is None else first + second


def _defined(upstream: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Zeros where nothing depends on the losses."""
    return [torch.zeros_like(like[k]) if given is None else given for k, given in enumerate(upstream)]


def _only(needed: Sequence[bool], tensors: Sequence[Any]) -> list[Any]:
    return [tensor if need else None for tensor, need in zip(tensors, needed, strict=True)]
