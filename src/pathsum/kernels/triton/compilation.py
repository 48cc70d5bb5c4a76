"""How kernels are compiled: once for each dtype, layout and block size, never for a value. And how threads wait."""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl

_SCALARS = ("tl.int32", "tl.int64", "tl.float64")


def kernel(function: Any, anywhere: Sequence[str] = ()) -> Any:
    """A kernel whose scalars, annotated with their types, are run-time numbers whatever their values.

    ``anywhere``: tensors of the caller's own, which may begin at any place in memory.
    """
    parameters = inspect.signature(function).parameters.values()
    scalars = [parameter.name for parameter in parameters if parameter.annotation in _SCALARS]
    return triton.jit(function, do_not_specialize=scalars, do_not_specialize_on_alignment=anywhere)


def float_of(size: int) -> Any:
    """Triton's type of floats of so many bytes."""
    return {4: tl.float32, 8: tl.float64}[size]


# Later versions of Triton give the barrier another name.
if hasattr(tl, "debug_barrier"):

    @triton.jit
    def barrier():
        """Threads of a program go on when all have come here, and see what the others have stored."""
        tl.debug_barrier()

else:

    @triton.jit
    def barrier():
        tl.barrier()


def in_order(own: Any, roles: Sequence[str]) -> Any:
    """A kernel of the same body that takes arrays to be read first, then numbers, and arrays to be written last.

    ``roles``: of each parameter but the constants, ``"read"``, ``"write"``, ``"update"`` (written in place: the same
    memory is given twice, among the arrays to be read and among those to be written), ``"number"``, or ``"none"`` if it
    is not there. ``"read float64"`` is memory that is given as words of another type.
    """
    parameters = inspect.signature(own.fn).parameters.values()
    constants = [parameter.name for parameter in parameters if parameter.annotation == "tl.constexpr"]
    given = [parameter for parameter in parameters if parameter.annotation != "tl.constexpr"]
    read, numbers, written, passed = [], [], [], []
    for parameter, role in zip(given, roles, strict=True):
        name, (kind, _, element) = parameter.name, role.partition(" ")
        if kind in ("read", "update"):
            read.append(name)
        if kind in ("write", "update"):
            written.append(name if kind == "write" else f"{name}_out")
        if kind == "number":
            numbers.append(name)
            passed.append(f"tl.cast({name}, {parameter.annotation})")
        elif kind == "none":
            passed.append("None")
        else:
            passed.append(f"{name}.to(tl.pointer_type(tl.{element}), bitcast=True)" if element else name)
    taken = [*read, *numbers, *written, *(f"{name}: tl.constexpr" for name in constants)]
    passed += [f"{name}={name}" for name in constants]
    name = own.fn.__name__
    source = f"def {name}({', '.join(taken)}):\n    own({', '.join(passed)})\n"
    # Triton reads a function's source, which is looked up by the name of a file.
    place = f"<{own.fn.__module__}.{name} of {' '.join(roles)}>"
    linecache.cache[place] = (len(source), None, source.splitlines(keepends=True), place)
    names = {"tl": tl, "own": own, "__name__": own.fn.__module__}
    exec(compile(source, place, "exec"), names)
    return triton.jit(names[name])
