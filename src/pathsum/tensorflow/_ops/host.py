"""Functions on NumPy's arrays as operations of TensorFlow's, on the memory of the tensors themselves."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf

from pathsum.kernels.numba.rows import BFLOAT16, FLOAT16, NATIVE

# TensorFlow takes memory that begins at such an address as it is, and copies other.
_ALIGNMENT = 64
_BFLOAT16 = np.dtype(tf.bfloat16.as_numpy_dtype)
_ENCODINGS = {_BFLOAT16: BFLOAT16, np.dtype(np.float16): FLOAT16}


def call(
    function: Callable[..., list[np.ndarray]],
    arguments: Sequence[Any],
    results: Sequence[tuple[Any, tf.DType]],
    kept: Sequence[tf.DType] = (),
) -> list[Any]:
    """The arrays that a function makes of arrays.

    ``results``, of a shape and a dtype each, become tensors. What is ``kept`` for a later call is passed on to that as
    it is: an array where operations run at once, a tensor in a graph. Arguments that are arrays already are passed as
    they are.
    """
    if tf.executing_eagerly():
        arrays = function(*map(_as_array, arguments))
        return [*map(_as_tensor, arrays[: len(results)]), *arrays[len(results) :]]
    fed = [k for k, argument in enumerate(arguments) if tf.is_tensor(argument)]
    bound = [None if tf.is_tensor(argument) else argument for argument in arguments]

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        given = list(bound)
        for k, array in zip(fed, arrays, strict=True):
            given[k] = array
        return function(*given)

    dtypes = [*(dtype for _, dtype in results), *kept]
    outputs = tf.numpy_function(run, [_constant(arguments[k]) for k in fed], dtypes, stateful=False)
    outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    for output, (shape, _) in zip(outputs, results, strict=False):
        output.set_shape(shape)
    return outputs


def empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Uninitialised memory that can become a tensor without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def aligned(array: np.ndarray, dtype: Any = None) -> np.ndarray:
    """A copy of an array in such memory."""
    copy = empty(array.shape, array.dtype if dtype is None else dtype)
    copy[...] = array
    return copy


def encoded(array: np.ndarray) -> tuple[np.ndarray, int]:
    """The array and its encoding; half precision as its bits."""
    encoding = _ENCODINGS.get(array.dtype, NATIVE)
    return (array if encoding == NATIVE else array.view(np.uint16)), encoding


def num_threads() -> int:
    """``PATHSUM_NUM_THREADS``, or else TensorFlow's own number, or else the processors this process may run on."""
    asked = int(os.environ.get("PATHSUM_NUM_THREADS") or _threads_of_tensorflow())
    if asked:
        return max(1, asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _threads_of_tensorflow() -> int:
    """A number that nobody may change once there is a tensor, which takes as long to be told as a small loss."""
    return tf.config.threading.get_intra_op_parallelism_threads()


def _constant(tensor: Any) -> Any:
    """The tensor, for a function that is not differentiated: what calls it has a gradient of its own.

    In a graph ForwardAccumulator knows of none, and takes the derivative for 0. It shall fail instead.
    """
    reason = "impl='numba' has no forward-mode derivative in a tf.function; reverse mode has, and eager execution"
    return tf.raw_ops.PreventGradient(input=tensor, message=reason) if tensor.dtype.is_floating else tensor


def _as_array(argument: Any) -> np.ndarray:
    """The memory of a tensor, which must outlive the array."""
    if isinstance(argument, np.ndarray):
        return argument
    half = argument.dtype is tf.bfloat16  # a buffer cannot say so
    memory = np.asarray(memoryview(tf.bitcast(argument, tf.uint16) if half else argument))
    if memory.size:
        # Kernels are compiled for arrays that may be written to, and would be once more for others.
        bytes_ = (ctypes.c_byte * memory.nbytes).from_address(memory.ctypes.data)
        memory = np.ndarray(memory.shape, memory.dtype, memoryview(bytes_))
    return memory.view(_BFLOAT16) if half else memory


def _as_tensor(array: np.ndarray) -> Any:
    half = array.dtype == _BFLOAT16
    tensor = tf.experimental.dlpack.from_dlpack((array.view(np.uint16) if half else array).__dlpack__())
    return tf.bitcast(tensor, tf.bfloat16) if half else tensor
