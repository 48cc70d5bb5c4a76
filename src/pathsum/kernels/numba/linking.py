"""What a kernel calls is compiled to be linked into it, and for nothing else.

numba makes machine code of every function that it compiles, and a wrapper by which Python can call it. Of what only
kernels call neither is used, and both take as long as all the rest. So while a kernel is compiled the functions that
it calls get neither. What the kernel itself becomes is the same.

What is private to numba is the same from numba 0.60 to 0.68.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from llvmlite import binding
from numba import _dynfunc, njit
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.dispatcher import Dispatcher
from numba.core.registry import CPUDispatcher, cpu_target


class LinkedLibrary(JITCodeLibrary):
    """Code that is linked into other code, and never runs by itself."""

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage == binding.Linkage.external:
                function.linkage = "linkonce_odr"
        self._shared_module = self._final_module
        self._finalized = True


class KernelCompiler(Compiler):
    """A compiler whose machine code is that of the kernel alone."""

    def compile_extra(self, func: Callable[..., Any]) -> Any:
        codegen = cpu_target.target_context.codegen()
        # Not what the generator makes by itself: this may be a kernel that another one calls.
        self.state.library = JITCodeLibrary(codegen, func.__qualname__)
        self.state.library.enable_object_caching()
        with _linking(cpu_target.target_context, codegen), _without_collections():
            result = super().compile_extra(func)
        for environment in result._find_referenced_environments():
            codegen.set_env(environment.env_name, environment)
        return result


class Part(CPUDispatcher):
    """A function for kernels to call. Python calls a copy, as what is linked alone cannot be called."""

    def __call__(self, *arguments: Any) -> Any:
        return self._copy(*arguments)

    @cached_property
    def _copy(self) -> CPUDispatcher:
        return CPUDispatcher(self.py_func, targetoptions=self.targetoptions)


def part(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``njit`` for what kernels call."""

    def compiled(function: Callable[..., Any]) -> Any:
        made = njit(**options)(function)
        if isinstance(made, Dispatcher):
            made.__class__ = Part
        return made

    return compiled


@contextmanager
def _linking(context: Any, codegen: Any) -> Iterator[None]:
    """Have what is compiled meanwhile linked alone. Nobody else compiles: the caller has numba's lock."""

    def unless_linked(make: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
        return lambda library, *arguments, **options: (
            instead if isinstance(library, LinkedLibrary) else make
        )(library, *arguments, **options)  # fmt: skip

    with _changed(
        (codegen, "_library_class", LinkedLibrary),
        (context, "create_cpython_wrapper", unless_linked(context.create_cpython_wrapper, _make_nothing)),
        (context, "create_cfunc_wrapper", unless_linked(context.create_cfunc_wrapper, _make_nothing)),
        (context, "get_executable", unless_linked(context.get_executable, _make_name)),
    ):  # fmt: skip
        yield


@contextmanager
def reading() -> Iterator[None]:
    """Have kernels that are read meanwhile run by themselves, though another one be compiled that calls them."""
    with _changed((cpu_target.target_context.codegen(), "_library_class", JITCodeLibrary)):
        yield


@contextmanager
def _changed(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """Give objects other attributes for a while."""
    before = [vars(owner).get(name) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(changes, before, strict=True):
            if value is None:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def _make_nothing(*arguments: Any, **options: Any) -> None:
    pass


def _make_name(library: Any, fndesc: Any, environment: Any) -> Any:
    """What stands for a function in numba's tables: without an address, it cannot be called."""
    return _dynfunc.make_function(fndesc.lookup_module(), fndesc.qualname, "", 0, environment, (library,))


@contextmanager
def _without_collections() -> Iterator[None]:
    """What a compiler makes it keeps: looking through all objects again and again finds nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
