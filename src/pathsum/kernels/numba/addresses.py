"""Compiled code that is called by its address: functions by C, and kernels by these functions.

Linked the usual way a kernel is compiled once more in each function that calls it, which takes seconds. Here a
function calls the one there is, as Python does, and gives the same bits. What is private to numba for it stands here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils, sigutils, typing
from numba.core.ccallback import CFunc
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import intrinsic, lower_builtin
from numba.np.arrayobj import populate_array

from pathsum.kernels.numba.compilation import COMPILE, KernelCache

_WORD = ir.IntType(64)


class ByAddress:
    """What compiled code calls in place of a kernel, with arguments of just these types."""

    def __init__(self, kernel: Any, signature: str, calls: tuple[Any, ...]) -> None:
        self._kernel, self._calls = kernel, calls
        arguments, result = sigutils.normalize_signature(signature)
        self._signature = typing.signature(result, *arguments)
        self._symbol = f"{kernel.__module__}.{kernel.__name__}"

    def link(self) -> None:
        """Have the kernel compiled, and its address known; before, of those that it calls by theirs."""
        for call in self._calls:
            call.link()
        self._kernel.compile(self._signature.args)
        found = self._kernel.overloads[self._signature.args]
        llvm.add_symbol(self._symbol, found.library.get_pointer_to_function(found.fndesc.llvm_func_name))

    def type_of(self, arguments: tuple[Any, ...]) -> Any:
        return self._signature if tuple(map(types.unliteral, arguments)) == self._signature.args else None

    def lower(self, context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        convention, result, kinds = context.call_conv, signature.return_type, signature.args
        kind = convention.get_function_type(result, kinds)
        function = cgutils.get_or_insert_function(builder.module, kind, self._symbol)
        status, value = convention.call_function(builder, function, result, kinds, arguments)
        with cgutils.if_unlikely(builder, status.is_error):
            convention.return_status_propagate(builder, status)
        return value


def by_address(kernel: Any, signature: str, *calls: Any) -> Any:
    """A function for compiled code, which calls a kernel for arguments of this signature.

    ``calls`` are such functions, which the kernel calls itself.
    """
    target = ByAddress(kernel, signature, calls)

    def call(*arguments: Any) -> Any:
        return kernel(*arguments)

    class Template(AbstractTemplate):
        key = call

        def generic(self, args: Any, kws: Any) -> Any:
            return target.type_of(args)

    infer_global(call, types.Function(Template))
    lower_builtin(call, types.VarArg(types.Any))(target.lower)
    call.link = target.link  # pyright: ignore
    return call


@intrinsic
def word_at(typing_context, address):
    """The int64, or the address, at an address."""

    def generate(context, builder, signature, arguments):
        return builder.load(builder.inttoptr(arguments[0], _WORD.as_pointer()))

    return types.int64(types.int64), generate


@intrinsic
def array_at(typing_context, address, size, dtype):
    """Flat memory of others' as an array."""

    def generate(context, builder, signature, arguments):
        kind, number = signature.return_type, context.get_data_type(signature.return_type.dtype)
        width = context.get_constant(types.intp, context.get_abi_sizeof(number))
        array = context.make_array(kind)(context, builder)
        data = builder.inttoptr(arguments[0], number.as_pointer())
        populate_array(array, data, [arguments[1]], [width], width, meminfo=None)
        return array._getvalue()

    return types.Array(dtype.dtype, 1, "C")(types.int64, types.int64, dtype), generate


def for_c(function: Callable[..., Any], *calls: Any) -> CFunc:
    """A function of an address for C to call, kept for the next process. ``calls`` are functions of ``by_address``."""
    for call in calls:
        call.link()
    options = {name: COMPILE[name] for name in ("fastmath", "error_model")}
    compiled = CFunc(function, ((types.int64,), types.int64), locals={}, options=options)
    compiled._cache = KernelCache(function)
    compiled.compile()
    return compiled
