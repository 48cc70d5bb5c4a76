"""A stand-in for jax-triton: a module whose ``triton_call`` interprets the kernel on the CPU, in a callback.

It keeps to what jax-triton does with memory: arrays to read come first, then numbers, then arrays to write. Some of
these are the memory of an array read, some are zeroed; the others are NaN here.
"""

import importlib.machinery
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import torch

# XLA makes calls that do not need each other side by side; the interpreter is one.
_INTERPRETING = threading.Lock()


def triton_call(
    *arguments, kernel, out_shape, grid, input_output_aliases, zeroed_outputs, compute_capability, **constants
):
    arrays = [argument for argument in arguments if not isinstance(argument, (int, float))]
    numbers = arguments[len(arrays) :]

    def run(*values):
        read = [_tensor(np.array(value)) for value in values]
        of_results = {result: read[argument] for argument, result in input_output_aliases.items()}
        written = [
            of_results[i] if i in of_results else _fresh(shape, zeroed=i in zeroed_outputs)
            for i, shape in enumerate(out_shape)
        ]
        with _INTERPRETING:
            kernel[grid](*read, *numbers, *written, **constants)
        return [_array(own, shape.dtype) for own, shape in zip(written, out_shape, strict=True)]

    return jax.pure_callback(run, out_shape, *arrays)


def module():
    made = types.ModuleType("jax_triton")
    made.__spec__ = importlib.machinery.ModuleSpec("jax_triton", None)
    made.triton_call = triton_call
    return made


def _tensor(array):
    if array.dtype == jnp.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _fresh(shape, *, zeroed):
    array = np.zeros(shape.shape, shape.dtype)
    if not zeroed:
        array.view(np.uint8)[...] = 0xFF
    return _tensor(array)


def _array(own, dtype):
    return own.view(torch.int16).numpy().view(dtype) if own.dtype == torch.bfloat16 else own.numpy()
