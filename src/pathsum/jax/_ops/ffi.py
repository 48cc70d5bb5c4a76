"""Functions of NumPy arrays as foreign functions of XLA on the CPU, called without a copy of an array.

XLA calls a C function with a frame of pointers, whose layout is the stable interface of ``xla/ffi/api/c_api.h``. Small
batches are solved by compiled code that reads it (``kernels.numba.xla``). For all else there is a function made here by
``ctypes``: it reads the frame, looks at XLA's own memory as NumPy arrays and calls Python, which writes the results
where XLA wants them. A callback of JAX's would hand over copies, and may wait for the very threads that it runs on.
"""

from __future__ import annotations

import ctypes
import math
import re
import traceback
from collections.abc import Callable
from ctypes import POINTER, Structure, c_char_p, c_double, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pathsum.kernels.jax.extended import varying_as
from pathsum.kernels.numba.xla import PYTHON, Handler
from pathsum.lattice import Array

# What a function is given: arrays to read, arrays to write, and its options by name.
Function = Callable[[list[Any], list[Any], dict[str, Any]], None]

_TARGET = "pathsum"
# A function of each lattice, and the names of its options.
_functions: dict[str, tuple[Function, tuple[str, ...]]] = {}

_MAJOR = 0
_INTERNAL = 13  # the error code for what is nobody's argument's fault
_METADATA = 1  # the kind of extension that asks a handler for its version

_DTYPES = {
    1: np.dtype(np.bool_),
    4: np.dtype(np.int32),
    5: np.dtype(np.int64),
    10: np.dtype(np.float16),
    11: np.dtype(np.float32),
    12: np.dtype(np.float64),
    16: np.dtype(jnp.bfloat16),
}


class _Extension(Structure):
    _fields_ = (("struct_size", c_size_t), ("kind", c_int), ("next", c_void_p))


class _Version(Structure):
    _fields_ = (("struct_size", c_size_t), ("extension", c_void_p), ("major", c_int), ("minor", c_int))


class _Metadata(Structure):
    _fields_ = (("struct_size", c_size_t), ("version", _Version))


class _MetadataExtension(Structure):
    _fields_ = (("base", _Extension), ("metadata", POINTER(_Metadata)))


class _Buffer(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("dtype", c_int),
        ("data", c_void_p),
        ("rank", c_int64),
        ("dims", POINTER(c_int64)),
    )


class _Buffers(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("size", c_int64),
        ("types", POINTER(c_int)),
        ("buffers", POINTER(POINTER(_Buffer))),
    )


class _Text(Structure):
    _fields_ = (("data", c_void_p), ("size", c_size_t))


class _Numbers(Structure):
    _fields_ = (("dtype", c_int), ("size", c_size_t), ("data", POINTER(c_double)))


class _Attributes(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("size", c_int64),
        ("types", POINTER(c_int)),
        ("names", POINTER(POINTER(_Text))),
        ("values", POINTER(c_void_p)),
    )


class _Error(Structure):
    _fields_ = (("struct_size", c_size_t), ("extension", c_void_p), ("message", c_char_p), ("code", c_int))


class _Api(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("version", _Version),
        ("internal", c_void_p),
        ("create_error", ctypes.CFUNCTYPE(c_void_p, POINTER(_Error))),
    )


class _Frame(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", POINTER(_Extension)),
        ("api", POINTER(_Api)),
        ("context", c_void_p),
        ("stage", c_int),
        ("arguments", _Buffers),
        ("results", _Buffers),
        ("attributes", _Attributes),
    )


_Handler = ctypes.CFUNCTYPE(c_void_p, POINTER(_Frame))


@cache
def version() -> tuple[int, int]:
    """Major and minor version of the interface that the installed jaxlib speaks."""
    header = (Path(jax.ffi.include_dir()) / "xla/ffi/api/c_api.h").read_text()
    major, minor = (re.search(rf"#define XLA_FFI_API_{part} (\d+)", header) for part in ("MAJOR", "MINOR"))
    return (int(major[1]), int(minor[1])) if major and minor else (-1, -1)


def supported() -> bool:
    """Whether the interface is one whose layout is known here; within a major version structures only grow."""
    return version()[0] == _MAJOR


def register(lattice: str, function: Function, *options: str) -> None:
    """Make ``function`` what is called for a lattice on the CPU, with these options."""
    _functions[lattice] = function, options


def call(
    lattice: str,
    results: list[jax.ShapeDtypeStruct],
    vmap_method: str,
    *arguments: Array,
    compiled: int = PYTHON,
    **options: float,
) -> Any:
    """The results of a lattice's function, for arguments that shard_map may have divided among devices.

    ``compiled`` is the number of a compiled one that does the same for small batches.
    """
    if len({_division(argument) for argument in arguments}) > 1:
        arguments = varying_as(arguments, arguments)
    # JAX is to be told that the results are divided as the arguments are.
    results = jax.eval_shape(
        lambda *sources: varying_as([jnp.zeros(result.shape, result.dtype) for result in results], sources),
        *arguments,
    )
    numbers = np.array([compiled, *(options[name] for name in _functions[lattice][1])], np.float64)
    return jax.ffi.ffi_call(_TARGET, results, vmap_method=vmap_method)(*arguments, lattice=lattice, numbers=numbers)


def _handle(frame: Any) -> int | None:
    if frame[0].extension and frame[0].extension[0].kind == _METADATA:
        _tell_version(frame[0].extension)
        return None
    try:
        lattice, (compiled, *options) = _attributes(frame[0].attributes)
        function, names = _functions[lattice]
        arguments = _arrays(frame[0].arguments)
        function(arguments, _arrays(frame[0].results), dict(zip(names, options, strict=True)))
        # As kernels are: when first called.
        _handler.prepare(int(compiled), arguments[0].size)
    # Nothing may pass through C as an exception: XLA raises the message as an error of its own.
    except Exception:
        return _error(frame[0].api, traceback.format_exc())
    return None


def _attributes(attributes: _Attributes) -> tuple[str, list[float]]:
    """A lattice and numbers, which XLA has put in the order of their names."""
    text = ctypes.cast(attributes.values[0], POINTER(_Text))[0]
    numbers = ctypes.cast(attributes.values[1], POINTER(_Numbers))[0]
    return ctypes.string_at(text.data, text.size).decode(), numbers.data[: numbers.size]


def _division(argument: Array) -> Any:
    """The axes of devices along which shard_map has divided an array; newer versions of JAX say it in another word."""
    kind = jax.typeof(argument)
    return getattr(kind, "manual_axis_type", None) or getattr(kind, "vma", None)


def _tell_version(extension: Any) -> None:
    asked = ctypes.cast(extension, POINTER(_MetadataExtension))[0].metadata[0]
    asked.version.major, asked.version.minor = version()


def _arrays(buffers: _Buffers) -> list[np.ndarray]:
    return [_array(buffers.buffers[i][0]) for i in range(buffers.size)]


def _array(buffer: _Buffer) -> np.ndarray:
    dtype, shape = _DTYPES[buffer.dtype], buffer.dims[: buffer.rank]
    size = math.prod(shape) * dtype.itemsize
    return np.ndarray(shape, dtype, (ctypes.c_byte * size).from_address(buffer.data) if size else None)


def _error(api: Any, message: str) -> int | None:
    error = _Error(ctypes.sizeof(_Error), None, message.encode(), _INTERNAL)
    return api[0].create_error(ctypes.byref(error))


# XLA keeps the address alone.
_python = _Handler(_handle)
_handler = Handler(ctypes.cast(_python, c_void_p).value or 0)
jax.ffi.register_ffi_target(_TARGET, jax.ffi.pycapsule(_handler.address), platform="cpu")
