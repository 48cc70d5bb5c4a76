"""Launches as operations of JAX: kernels are given arrays, and what they write is a result.

Without ``jax_enable_x64`` JAX has no numbers of 64 bits. What the kernels keep in them between launches is handed over
as pairs of words of 32 bits: a ``Plane``.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pathsum.jax._triton.installed import capability
from pathsum.kernels.jax.extended import varying_as
from pathsum.kernels.triton.compilation import in_order
from pathsum.lattice import Array


class Plane(NamedTuple):
    """Memory of numbers of 64 bits, (..., 2) words of it, and their type."""

    words: Array
    element: str


class Written(NamedTuple):
    """An array that a kernel is to write: of a dtype, or a plane of numbers of 64 bits."""

    shape: tuple[int, ...]
    dtype: Any = "float64"
    zeroed: bool = False

    @property
    def is_plane(self) -> bool:
        return isinstance(self.dtype, str)


class Updated(NamedTuple):
    """An array that a kernel reads and writes in place."""

    own: Array | Plane


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> list[Any]:
    """What a kernel writes, in the order of its own parameters. A grid has at least one program."""
    read, numbers, results, aliases = [], [], [], {}
    for argument in arguments:
        own = argument.own if isinstance(argument, Updated) else argument
        if isinstance(argument, Updated):
            aliases[len(read)] = len(results)
        if isinstance(argument, (Written, Updated)):
            results.append(own)
        if isinstance(own, (int, float)):
            numbers.append(own)
        elif own is not None and not isinstance(own, Written):
            read.append(own.words if isinstance(own, Plane) else own)
    found = _jax_triton().triton_call(
        *read,
        *numbers,
        kernel=_in_order(kernel, tuple(map(_role, arguments))),
        out_shape=[_shape(result) for result in results],
        grid=grid,
        input_output_aliases=aliases,
        zeroed_outputs=tuple(i for i, result in enumerate(results) if isinstance(result, Written) and result.zeroed),
        compute_capability=capability(),
        **constants,
    )
    return [
        Plane(array, result.dtype if isinstance(result, Written) else result.element) if _is_plane(result) else array
        for array, result in zip(found, results, strict=True)
    ]


def _jax_triton() -> Any:
    # Its import takes away the folder in which Triton keeps what it compiles for others, as for torch, who then raise.
    folder = os.environ.get("TRITON_CACHE_DIR")
    module = importlib.import_module("jax_triton")
    if folder is None:
        os.environ.pop("TRITON_CACHE_DIR", None)
    else:
        os.environ["TRITON_CACHE_DIR"] = folder
    return module


# A kernel is compiled once for each order of its parameters, whoever asks.
_in_order = cache(in_order)


def _is_plane(result: Any) -> bool:
    return result.is_plane if isinstance(result, Written) else isinstance(result, Plane)


def _role(argument: Any) -> str:
    if argument is None:
        return "none"
    if isinstance(argument, (int, float)):
        return "number"
    kind = {Written: "write", Updated: "update"}.get(type(argument), "read")
    own = argument.own if isinstance(argument, Updated) else argument
    if isinstance(own, Plane):
        return f"{kind} {own.element}"
    return f"{kind} {own.dtype}" if isinstance(own, Written) and own.is_plane else kind


def _shape(result: Any) -> jax.ShapeDtypeStruct:
    if isinstance(result, Written) and result.is_plane:
        return jax.ShapeDtypeStruct((*result.shape, 2), jnp.int32)
    own = result.words if isinstance(result, Plane) else result
    return jax.ShapeDtypeStruct(own.shape, own.dtype)


def rounded(plane: Plane, dtype: Any) -> Array:
    """The numbers of a plane in a dtype that JAX has."""
    with jax.enable_x64(True):
        return lax.convert_element_type(lax.bitcast_convert_type(plane.words, plane.element), dtype)


def widened(array: Array, element: str = "float64") -> Plane:
    """A plane of an array's numbers."""
    with jax.enable_x64(True):
        return Plane(lax.bitcast_convert_type(lax.convert_element_type(array, element), jnp.int32), element)


def in_one_batch(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of arrays whose first axis is a batch's, which vmap calls once, with batches put together."""

    @jax.custom_batching.custom_vmap
    def own(*arguments: Any) -> Any:
        # JAX is to be told that the results are divided among devices as the arguments are.
        return varying_as(function(*arguments), arguments)

    @own.def_vmap
    def _(size: int, is_batched: Any, *arguments: Any) -> Any:
        def merged(array: Array, batched: bool) -> Array:
            array = array if batched else jnp.broadcast_to(array, (size, *array.shape))
            return array.reshape(size * array.shape[1], *array.shape[2:])

        results = own(*jax.tree.map(merged, arguments, tuple(is_batched)))
        apart = jax.tree.map(lambda array: array.reshape(size, len(array) // size, *array.shape[1:]), results)
        return apart, jax.tree.map(lambda _: True, results)

    return own
