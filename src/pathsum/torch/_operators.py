"""Kernels as operators of torch, made from the dataclass of their lattice.

``torch.library`` takes flat lists of tensors and numbers. A call is packed into one, and unpacked behind it, by the
fields of its lattice and of its options, so that nobody writes such a list. The kernels of a lattice have three
operators: ``torch.ops.pathsum.<name>_forward``, ``_backward`` and ``_second``.

Where nothing traces or transforms a call, the kernels are called at once and their results differentiated by the same
rules: an operator's dispatch takes longer than a small loss.
"""

from __future__ import annotations

import functools
from ast import literal_eval
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from pathsum import dispatch
from pathsum.errors import GradientConsumedError
from pathsum.kernels.numba.reduction import spread as spread_plain
from pathsum.kernels.numba.reduction import weigh
from pathsum.kernels.protocol import Call, Kernels
from pathsum.reductions import reduce, spread
from pathsum.torch._autograd.lattices import differentiable
from pathsum.torch._autograd.operators import refuse_graph
from pathsum.torch._ops.arrays import as_tensor, fake_like, work_dtype
from pathsum.torch._ops.registration import define
from pathsum.torch._private import (
    constant_when_traced,
    dispatch_mode,
    is_legacy_batchedtensor,
    transformed,
    version_of,
)

# What a field of a dataclass is in a schema. Nested tuples of integers travel as their text.
_SCHEMA = {Any: "Tensor", int: "int", bool: "bool", float: "float", str: "str", tuple: "str"}


class OperatorKernels(Kernels):
    """Kernels that write their own derivatives.

    Attributes:
        name: What the operators' names begin with.
        lattice: The dataclass of integers.
        inputs: Names of the tensors of scores that are differentiated; those that end in "?" may be ``None``.
        options: A NamedTuple of numbers and words.
        saved: The NamedTuple of tensors that forward keeps; the losses (N,) come first.
        device: The dispatch key of the operators, or ``"any"``.
        expects: Whether there are ``expect``, ``expect_gradients`` and ``list_posteriors``.
    """

    name: str
    lattice: type
    inputs: tuple[str, ...]
    options: type
    saved: type
    device = "any"
    own_derivatives = True
    expects = False
    operators: _Operators

    def __init__(self) -> None:
        self.fields = _names(self.lattice)
        _Operators(self)

    def forward(self, call: Call, need_gradient: bool) -> Any:
        """The losses (N,) in float64 and, where a gradient will be asked for, what the other two need: ``saved``."""
        raise NotImplementedError

    def backward(self, call: Call, saved: Any, upstream: Tensor, needed: Sequence[bool]) -> Sequence[Tensor | None]:
        """The gradients by the scores, times the upstream gradient (N,); where not needed ``None`` will do."""
        raise NotImplementedError

    def second(
        self, call: Call, saved: Any, upstream: Tensor, tangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """Slopes of the losses (N,) along the tangents, where ``None`` is zeros; how ``backward``'s gradients move."""
        raise NotImplementedError

    def list_posteriors(self, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        """Those of nodes and of two kinds of arcs as a caller gets them: in the results' dtype, 0 in padding and where
        no path exists, NaN where a sample has a NaN score.
        """
        raise NotImplementedError

    def expect(self, call: Call, costs: Tensor | None) -> tuple[Tensor, Sequence[Tensor]]:
        """The expected costs (N,) of the paths, or, without any, their entropies, and what the other needs."""
        raise NotImplementedError

    def expect_gradients(
        self, call: Call, costs: Tensor | None, kept: Sequence[Tensor], upstream: Tensor, needed: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """The gradients of those by the costs, and by each of the scores, times the upstream gradient (N,)."""
        raise NotImplementedError

    def once_only(self, options: Any) -> str | None:
        """Why what backward gives has no derivative, where it has none."""
        return options.once_only

    def sketch(self, call: Call) -> Any:
        """What forward returns where only shapes are known."""
        raise NotImplementedError

    def sketch_gradient(self, scores: Tensor) -> Tensor:
        """The gradient by one of the scores where only shapes are known."""
        return fake_like(scores)

    def sent(self, lattice: Any, device: torch.device) -> Any:
        """The lattice where the operators are to find it."""
        return lattice

    def placed(self, call: Call) -> Call:
        """A call with its lattice there."""
        return call._replace(lattice=self.sent(call.lattice, call.scores[0].device))

    def read(self, lattice: Any) -> Any:
        """The lattice of an operator, of tensors, as the kernels read it."""
        return lattice

    def kept(self, found: Any) -> Any:
        """What forward gives, as tensors."""
        return found

    def held(self, found: Any) -> tuple[Sequence[Any], Any]:
        """What forward gives, as tensors that are to be saved and what takes no memory, in whose place is ``None``."""
        return self.kept(found), None

    def whole(self, saved: Sequence[Tensor | None], rest: Any) -> Sequence[Tensor]:
        """What forward kept, of ``held``, as the operators take it."""
        return [tensor.detach() for tensor in saved if tensor is not None]

    def given(
        self, saved: Sequence[Any], upstream: Tensor, reduction: Reduction | None = None, rest: Any = None
    ) -> tuple[Any, Any]:
        """What forward kept, and an upstream gradient, of what the losses were reduced to, as the verbs take them."""
        kept = self.saved(*saved)
        return kept, upstream if reduction is None else reduction.upstream(upstream, kept[0].detach())

    def with_graph(
        self, call: Call, kept: Sequence[Tensor], upstream: Tensor, needed: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """As ``backward`` by the operators, whose results have a graph."""
        return _as_tuple(self.operators.backward(upstream, *self.packed(call), *kept, list(needed)))

    def reduced(self, found: Any, reduction: Reduction) -> Tensor:
        """What becomes of the losses that forward gives."""
        return reduction.of(found[0])

    def packed(self, call: Call) -> list[Any]:
        """A call as an operator takes it."""
        lattice = (_packed(getattr(call.lattice, name)) for name in self.fields)
        return [*call.scores, *lattice, *map(_packed, call.options)]

    def losses(self, call: Call, reduction: Reduction | None = None) -> Tensor:
        """(N,) in float64, or what is made of them; differentiable twice."""
        call = self.placed(call)
        if traced(call.scores):
            return reduced(self.operators.forward(*self.packed(call), False)[0], reduction)
        return solved(self, call, reduction)


class ArrayKernels(OperatorKernels):
    """Kernels of the CPU, to which all but scores and gradients are arrays of NumPy: lattice, ``saved``, upstream."""

    device = "CPU"

    def placed(self, call: Call) -> Call:
        return call

    def read(self, lattice: Any) -> Any:
        return as_arrays(lattice)

    def kept(self, found: Any) -> Any:
        return from_arrays(found)

    def held(self, found: Any) -> tuple[Sequence[Any], Any]:
        # The losses may be a result themselves.
        saved = [torch.from_numpy(array) if array.size or array is found[0] else None for array in found]
        return saved, [array if tensor is None else None for array, tensor in zip(found, saved, strict=True)]

    def whole(self, saved: Sequence[Tensor | None], rest: Any) -> Sequence[Tensor]:
        pairs = zip(saved, rest, strict=True)
        return [torch.from_numpy(array) if tensor is None else tensor.detach() for tensor, array in pairs]

    def given(
        self, saved: Sequence[Any], upstream: Tensor, reduction: Reduction | None = None, rest: Any = None
    ) -> tuple[Any, Any]:
        rest = [None] * len(saved) if rest is None else rest
        kept = self.saved(
            *[array if tensor is None else tensor.numpy() for tensor, array in zip(saved, rest, strict=True)]
        )
        return kept, upstream_of(upstream) if reduction is None else reduction.spread_array(upstream, kept[0])

    def reduced(self, found: Any, reduction: Reduction) -> Tensor:
        return reduction.of_array(found[0])


# A compiler cannot look into an import; it calls this while it traces.
constant_when_traced(dispatch.load)


class Reduction(NamedTuple):
    """What becomes of the losses (N,) in float64.

    Attributes:
        dtype: The result's.
        reduction: One of ``REDUCTIONS``.
        lengths: (N,) a mean divides each loss by its own, at least 1; an array or a tensor; ``None``: it does not.
        zero_infinity: Whether infinite losses become 0.
    """

    dtype: torch.dtype
    reduction: str
    lengths: Any = None
    zero_infinity: bool = False

    def of(self, losses: Tensor) -> Tensor:
        losses = losses.to(self.dtype)
        if self.zero_infinity:
            losses = torch.where(losses == torch.inf, 0.0, losses)
        return reduce(losses, self.reduction, self.weights_beside(losses))

    def of_array(self, losses: np.ndarray) -> Tensor:
        """The same of an array, in one compiled call but for the sum."""
        lone = len(losses) == 1 and self.reduction != "none"  # the sum and the mean of one
        out = np.empty(() if lone else len(losses), np.float64 if self.dtype == torch.float64 else np.float32)
        weigh(losses, self._array_lengths, self.zero_infinity, out.reshape(-1))
        return torch.from_numpy(out) if lone else reduce(torch.from_numpy(out), self.reduction)

    def upstream(self, gradient: Tensor, losses: Tensor) -> Tensor:
        """The upstream gradient of each of the losses, of that of the result."""
        gradient = spread(gradient, self.reduction, len(losses), self.weights_beside(losses))
        if self.zero_infinity:
            gradient = torch.where(losses.to(self.dtype) == torch.inf, 0.0, gradient)
        return gradient.to(losses.dtype)

    def spread_array(self, gradient: Tensor, losses: np.ndarray) -> np.ndarray:
        """The same as an array, of a gradient without a graph."""
        count, upstream = len(losses) if self.reduction == "mean" else 1, np.empty(len(losses))
        of_result = np.ascontiguousarray((gradient.detach() if gradient.requires_grad else gradient).numpy())
        spread_plain(of_result.reshape(-1), losses, self._array_lengths, count, self.zero_infinity, upstream)
        return upstream

    def weights_beside(self, losses: Tensor) -> Tensor | None:
        """What a mean divides each loss by, where the losses are."""
        return None if self.lengths is None else as_tensor(self.lengths).clamp(min=1).to(losses.device)

    @property
    def _array_lengths(self) -> np.ndarray:
        """Of no size where there are none."""
        if isinstance(self.lengths, Tensor):
            return self.lengths.numpy()
        return _NO_LENGTHS if self.lengths is None else self.lengths


_NO_LENGTHS = np.empty(0, np.int64)


def reduced(losses: Tensor, reduction: Reduction | None) -> Tensor:
    return losses if reduction is None else reduction.of(losses)


def solved(kernels: OperatorKernels, call: Call, reduction: Reduction | None) -> Tensor:
    """The losses of kernels that are called at once, or what is made of them: one node of torch's graph."""
    if torch.is_grad_enabled() and asks_gradient(call.scores):
        return _Losses.apply(kernels, call, reduction, *call.scores)
    found = kernels.forward(call, False)
    return kernels.kept(found)[0] if reduction is None else kernels.reduced(found, reduction)


def asks_gradient(scores: Sequence[Tensor | None]) -> bool:
    for tensor in scores:
        if tensor is not None and tensor.requires_grad:
            return True
    return False


class _Losses(torch.autograd.Function):
    """The kernels called at once; a gradient that is to have a graph is the operators'.

    The reduction is part of it: each of its operations, differentiated by torch, would take as long as a small loss.
    """

    @staticmethod
    def forward(
        ctx: Any, kernels: OperatorKernels, call: Call, reduction: Reduction | None, *scores: Tensor | None
    ) -> Tensor:
        found = kernels.forward(call, True)
        saved, rest = kernels.held(found)
        ctx.save_for_backward(*scores, *saved)
        ctx.asked = kernels, call.lattice, call.options, reduction, rest
        return saved[0] if reduction is None else kernels.reduced(found, reduction)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        (kernels, lattice, options, reduction, rest), tensors = ctx.asked, ctx.saved_tensors
        count = len(kernels.inputs)
        call, needed = Call(tensors[:count], lattice, options), ctx.needs_input_grad[3:]
        return None, None, None, *gradients_of(kernels, call, tensors[count:], upstream, needed, reduction, rest)


def is_plain(upstream: Tensor) -> bool:
    """Whether a gradient needs no graph, and its upstream gradient is no batch of many, as of a Hessian's rows."""
    return not torch.is_grad_enabled() and not is_legacy_batchedtensor(upstream)


def gradients_of(
    kernels: OperatorKernels,
    call: Call,
    saved: Sequence[Tensor | None],
    upstream: Tensor,
    needed: Sequence[bool],
    reduction: Reduction | None = None,
    rest: Any = None,
) -> Sequence[Tensor | None]:
    """The gradients by the scores, of that of what the losses were reduced to; those that are to have a graph by the
    operators.
    """
    if is_plain(upstream):
        found = kernels.backward(call, *kernels.given(saved, upstream, reduction, rest), needed)
    else:
        reason = kernels.once_only(call.options)
        if reason is not None:
            refuse_graph(reason)
        constants = kernels.whole(saved, rest)
        if reduction is not None:
            upstream = reduction.upstream(upstream, constants[0])
        found = kernels.with_graph(call, constants, upstream, needed)
    gradients: list[Tensor | None] = [*found]
    for k, need in enumerate(needed):
        if not need:
            gradients[k] = None
    return gradients


class OverwritingLosses(torch.autograd.Function):
    """As ``_Losses`` of one tensor of logits, over which backward writes the gradient.

    No operator does: one may not write to what it was not given to write to.
    """

    @staticmethod
    def forward(ctx: Any, kernels: Any, lattice: Any, options: Any, reduction: Reduction, logits: Tensor) -> Tensor:
        found = kernels.forward(Call((logits,), lattice, options), True)
        ctx.save_for_backward(*kernels.kept(found))
        ctx.kernels, ctx.lattice, ctx.options, ctx.reduction = kernels, lattice, options, reduction
        # Not saved as the others are: a saved tensor that backward changes would fail its version check at a second
        # backward, of which there is more to say. So the check is made here.
        ctx.overwritten, ctx.version = logits.detach(), version_of(logits)
        return kernels.reduced(found, reduction)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        refuse_graph(
            "the gradient of a loss with overwrite_logits=True is written over the logits, which a second derivative "
            "needs; create_graph=True needs overwrite_logits=False"
        )
        logits, ctx.overwritten = ctx.overwritten, None
        if logits is None:
            raise GradientConsumedError(
                "the gradient of this loss was written over its logits (overwrite_logits=True) by an earlier "
                "backward; a second one needs overwrite_logits=False"
            )
        if version_of(logits) != ctx.version:
            raise GradientConsumedError(
                "the logits of this loss (overwrite_logits=True) were written to after it was computed, by an in-place "
                "operation or by another such loss of the same memory: their values are lost, and with them the "
                "gradient; logits that are used twice need overwrite_logits=False"
            )
        given = ctx.kernels.given(ctx.saved_tensors, upstream, ctx.reduction)
        ctx.kernels.write_gradient(Call((logits,), ctx.lattice, ctx.options), *given, logits)
        torch.autograd.graph.increment_version(logits)
        # Of the kernels, the lattice, the options and the reduction.
        return *(None,) * 4, logits.detach()


def traced(scores: Sequence[Tensor | None]) -> bool:
    """Whether somebody looks at operators: a compiler, a transform, a mode, tensors with rules of their own."""
    for tensor in scores:
        if type(tensor) not in _PLAIN:
            return True
    return torch.compiler.is_compiling() or dispatch_mode() is not None or transformed()


_PLAIN = (Tensor, torch.nn.Parameter, NoneType)


class _Operators:
    """The three operators of an implementation's kernels of one lattice."""

    def __init__(self, kernels: OperatorKernels) -> None:
        scores = [f"{'Tensor?' if name.endswith('?') else 'Tensor'} {name.rstrip('?')}" for name in kernels.inputs]
        question = [*scores, *_declared(kernels.lattice), *_declared(kernels.options)]
        count, planes = len(scores), list(_names(kernels.saved))
        kept = [f"Tensor saved_{name}" for name in planes]
        upstream, needed = f"Tensor grad_{planes[0]}", "bool[] needed"
        tangents = [f"Tensor? {name.rstrip('?')}_tangent" for name in kernels.inputs]

        def unpack(values: Sequence[Any]) -> Call:
            call = _unpack(kernels, values)
            return call._replace(lattice=kernels.read(call.lattice))

        def forward(*given: Any) -> Any:
            return tuple(kernels.kept(kernels.forward(unpack(given[:-1]), given[-1])))

        def backward(grad: Tensor, *given: Any) -> Any:
            *asked, needed = given
            call = unpack(asked[: len(question)])
            found = kernels.backward(call, *kernels.given(asked[len(question) :], grad.detach()), needed)
            return _results(found, call)

        def second(*given: Any) -> Any:
            *asked, needed = given
            along, (grad, *asked) = asked[:count], asked[count:]
            call = unpack(asked[: len(question)])
            saved, upstream = kernels.given(asked[len(question) :], grad.detach())
            slopes, products = kernels.second(call, saved, upstream, along, needed)
            return slopes, *_as_tuple(_results(products, call))

        def sketch_forward(*given: Any) -> Any:
            return tuple(kernels.sketch(_unpack(kernels, given[:-1])))

        def sketch_backward(grad: Tensor, *given: Any) -> Any:
            call = _unpack(kernels, given[: len(question)])
            found = [
                kernels.sketch_gradient(tensor) if need and tensor is not None else None
                for tensor, need in zip(call.scores, given[-1], strict=True)
            ]
            return _results(found, call)

        def sketch_second(*given: Any) -> Any:
            grad, *asked = given[count:]
            return torch.empty_like(grad), *_as_tuple(sketch_backward(grad, *asked))

        def register(verb: str, given: Sequence[str], results: int, function: Callable, sketch: Callable) -> Any:
            returned = "Tensor" if results == 1 else f"({', '.join(['Tensor'] * results)})"
            schema = f"{kernels.name}_{verb}({', '.join(given)}) -> {returned}"
            return define(schema, function, sketch, kernels.device)

        self.forward = register("forward", [*question, "bool need_gradient"], len(kept), forward, sketch_forward)
        given = [upstream, *question, *kept, needed]
        self.backward = register("backward", given, count, backward, sketch_backward)
        self.second = register("second", [*tangents, *given], 1 + count, second, sketch_second)
        kernels.operators = self

        def once_only(given: Sequence[Any]) -> str | None:
            return kernels.once_only(_unpack(kernels, given[: len(question)]).options)

        differentiable(self.forward, self.backward, self.second, num_inputs=count, once_only=once_only)


def _unpack(kernels: OperatorKernels, values: Sequence[Any]) -> Call:
    scores, rest = values[: len(kernels.inputs)], values[len(kernels.inputs) :]
    hints, names = _hints(kernels.lattice), _names(kernels.lattice)
    read = [_unpacked(value) if hints[name] is tuple else value for name, value in zip(names, rest, strict=False)]
    hints, options = _hints(kernels.options), rest[len(names) :]
    told = zip(_names(kernels.options), options, strict=True)
    return Call(
        tuple(scores),
        kernels.lattice(*read),
        kernels.options(*(_unpacked(value) if hints[name] is tuple else value for name, value in told)),
    )


def _packed(value: Any) -> Any:
    return repr(value) if isinstance(value, tuple) else as_tensor(value)


_unpacked = functools.lru_cache(maxsize=256)(literal_eval)


def _declared(record: type) -> list[str]:
    """The fields of a dataclass or a NamedTuple as a schema has them."""
    hints = _hints(record)
    return [f"{_SCHEMA[hints[name]]}{'?' if _optional(record, name) else ''} {name}" for name in _names(record)]


@functools.cache
def _names(record: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(record)) if is_dataclass(record) else record._fields


@functools.cache
def _hints(record: type) -> dict[str, Any]:
    """The type of each field: of ``int | None`` it is int, of ``tuple[int, ...]`` tuple."""
    found = {}
    for name, hint in get_type_hints(record).items():
        if get_origin(hint) in (Union, UnionType):
            (hint,) = (kind for kind in get_args(hint) if kind is not NoneType)
        found[name] = get_origin(hint) or hint
    return found


def _optional(record: type, name: str) -> bool:
    return NoneType in get_args(get_type_hints(record)[name])


def _results(found: Sequence[Tensor | None], call: Call) -> Any:
    """An operator returns tensors alone: of no size where nothing was asked for; of one tensor no tuple."""
    results = [call.scores[0].new_empty(0) if tensor is None else tensor for tensor in found]
    return results[0] if len(results) == 1 else tuple(results)


def _as_tuple(results: Any) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else results


def unknown_size(scores: Tensor, axes: int, dtype: torch.dtype | None = None) -> Tensor:
    """A plane of the dtype of arithmetic whose sizes depend on the lengths' values."""
    context = torch.library.get_ctx()
    return scores.new_empty([context.new_dynamic_size() for _ in range(axes)], dtype=dtype or work_dtype(scores))


def as_arrays(lattice: Any) -> Any:
    """A lattice whose tensors are NumPy arrays of the same memory."""
    values = {name: getattr(lattice, name) for name in _names(type(lattice))}
    return type(lattice)(**{k: v.numpy() if isinstance(v, Tensor) else v for k, v in values.items()})


def as_tensors(lattice: Any) -> Any:
    """A lattice whose NumPy arrays are tensors of the same memory."""
    return type(lattice)(*(as_tensor(getattr(lattice, name)) for name in _names(type(lattice))))


def from_arrays(saved: Any) -> Any:
    """A NamedTuple of NumPy arrays as tensors of the same memory, and back by ``to_arrays``."""
    return type(saved)(*map(torch.from_numpy, saved))


def to_arrays(saved: Any) -> Any:
    return type(saved)(*[tensor.numpy() for tensor in saved])


def upstream_of(gradient: Tensor) -> np.ndarray:
    return gradient.detach().contiguous().numpy()
