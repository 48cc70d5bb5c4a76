"""Numbers and arrays seen otherwise: as their bits, and without an owner.

Each is compiled where it stands: as a function, or as a view of numba's, it would take longer to compile than what it
is for. What is private to numba is the same from 0.60 to 0.68.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.core.imputils import impl_ret_borrowed
from numba.extending import lower_builtin, type_callable


def bits(x):
    """The bits of floats, of an array or of one, as integers of the same width."""
    return x.view(np.int32 if x.dtype == np.float32 else np.int64)


def from_bits(x):
    """The float of ``bits``."""
    return x.view(np.float32 if x.dtype == np.int32 else np.float64)


def borrow(array):
    """The same array without its reference count, for a kernel whose caller keeps it alive.

    Every slice of a counted array is an atomic increment and decrement, which threads then fight over row by row.
    """
    return array


@type_callable(bits)
def _type_bits(context):
    return lambda x: _of_numbers(x, {types.float32: types.int32, types.float64: types.int64})


@type_callable(from_bits)
def _type_from_bits(context):
    return lambda x: _of_numbers(x, {types.int32: types.float32, types.int64: types.float64})


def _of_numbers(kind, numbers):
    return kind.copy(dtype=numbers[kind.dtype]) if isinstance(kind, types.Array) else numbers[kind]


@lower_builtin(bits, types.Any)
@lower_builtin(from_bits, types.Any)
def _reinterpret(context, builder, signature, arguments):
    (kind,), target = signature.args, signature.return_type
    if not isinstance(target, types.Array):
        return builder.bitcast(arguments[0], context.get_value_type(target))
    array = context.make_array(kind)(context, builder, arguments[0])
    view = context.make_array(target)(context, builder)
    context.populate_array(
        view, data=builder.bitcast(array.data, view.data.type), shape=array.shape, strides=array.strides,
        itemsize=array.itemsize, meminfo=array.meminfo, parent=array.parent,
    )  # fmt: skip
    return impl_ret_borrowed(context, builder, target, view._getvalue())


@type_callable(borrow)
def _type_borrow(context):
    return lambda array: array


@lower_builtin(borrow, types.Array)
def _without_owner(context, builder, signature, arguments):
    view = context.make_array(signature.args[0])(context, builder, arguments[0])
    view.meminfo = view.meminfo.type(None)
    view.parent = view.parent.type(None)
    return view._getvalue()
