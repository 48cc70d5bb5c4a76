"""How kernels are compiled: without the GIL, with the flags that leave -inf and NaN alone, cached on disk.

The cache saves time and nothing else. One that cannot be read or written is a miss: the kernel is compiled, a warning
says so once, and a file that was damaged is written anew. It is opened when a kernel is first called, not when it is
imported. What is private to numba stands here alone; it is the same from numba 0.60 to 0.68.
"""

from __future__ import annotations

import hashlib
import pickle
import platform
import re
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile, NullCache
from numba.core.dispatcher import Dispatcher
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys

from pathsum import numerics
from pathsum.kernels.numba.linking import KernelCompiler, reading
from pathsum.numerics import FASTMATH

COMPILE = {"fastmath": FASTMATH, "nogil": True, "error_model": "numpy"}
# For sums whose terms cancel.
COMPILE_IN_ORDER = COMPILE | {"fastmath": FASTMATH - {"reassoc"}}
# For two sums of the same numbers to be the same wherever they are written.
COMPILE_EXACTLY = COMPILE | {"fastmath": False}

_IMPORT = re.compile(rf"^\s*from ({re.escape(str(__package__))}[\w.]*) import (\([^)]*\)|[^\n]*)", re.MULTILINE)
# What numba's own files begin with, as versions of pathsum before the digests wrote them: a pickle.
_NUMBAS_START = re.compile(rb"\x80[\x02-\x05]\x95")
_DIGEST_SIZE = hashlib.sha256().digest_size
_reported: set[str] = set()


def kernel(function: Callable[..., Any]) -> Any:
    """Compile an entry point of a lattice and keep the result for the next process."""
    return keep(function, COMPILE)


def exact_kernel(function: Callable[..., Any]) -> Any:
    """As ``kernel``, every sum in the order it is written."""
    return keep(function, COMPILE_EXACTLY)


def converts_halves() -> bool:
    """Whether the processor that is compiled for converts float16 by itself: any but an x86 without F16C."""
    intel = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
    return not intel or "+f16c" in cpu_target.target_context.codegen()._tm_features


def keep(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Compile an entry point with these options, and keep the result."""
    compiled = njit(pipeline_class=KernelCompiler, **options)(function)
    if isinstance(compiled, Dispatcher):
        compiled._cache = KernelCache(compiled.py_func)
    return compiled


@cache
def source_stamp(module: str) -> str:
    """A digest of every source that may be inlined into the kernels of a module: its own, and what it imports."""
    files = sorted(str(sys.modules[name].__file__) for name in _inlined(module))
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()


def _inlined(module: str) -> set[str]:
    """The module, and those of this folder that it imports, directly or not; with the numbers that all share."""
    found: set[str] = set()
    waiting = [module, numerics.__name__]
    while waiting:
        name = waiting.pop()
        if name in found or name not in sys.modules:
            continue
        found.add(name)
        for source, names in _IMPORT.findall(Path(str(sys.modules[name].__file__)).read_text(encoding="utf-8")):
            waiting += [source, *(f"{source}.{imported}" for imported in re.findall(r"\w+", names))]
    return found - {__package__}


@cache
def _open(function: Callable[..., Any]) -> FunctionCache | None:
    try:
        opened = FunctionCache(function)
    # numba raises RuntimeError where it finds no folder, and whatever looking for one raises.
    except Exception as error:
        _report("no folder can be used as kernel cache; set NUMBA_CACHE_DIR to one that can be written to", error)
        return None
    opened._cache_file = CheckedFiles(opened.cache_path, opened._impl.filename_base, source_stamp(function.__module__))
    return opened


class KernelCache(NullCache):
    """The compiled variants of one kernel on disk, where numba looks for them."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    @property
    def opened(self) -> FunctionCache | None:
        """numba's cache with files of ours; None where no folder can be written to."""
        return _open(self._function)

    @property
    def cache_path(self) -> str | None:
        return None if self.opened is None else self.opened.cache_path

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        if self.opened is None:
            return None
        try:
            # What numba would import first, to compile by, is most of what a process would take to read its kernels.
            rtsys.initialize(target_context)
            with reading(), self.opened._guard_against_spurious_io_errors():
                return self.opened._load_overload(sig, target_context)
        # What cannot be read as a kernel raises whatever it raises.
        except Exception as error:
            _report("a cached kernel cannot be loaded", error)
            return None

    def save_overload(self, sig: Any, cres: Any) -> None:
        if self.opened is None:
            return
        try:
            self.opened.save_overload(sig, cres)
        except OSError as error:
            _report("compiled kernels cannot be saved", error)

    def count(self, processor: Any) -> int:
        """How many variants are kept for a processor, named as numba's code generator does."""
        index = {} if self.opened is None else self.opened._cache_file._load_index()
        return sum(key[1] == processor for key in index)


class CheckedFiles(IndexDataCacheFile):
    """numba's index and data files, each behind a line that names its kernels and a digest that a damaged one fails."""

    _START = b"pathsum kernels, "

    @property
    def _head(self) -> bytes:
        return self._START + f"numba {numba.__version__}, sources {self._source_stamp}".encode()

    def _load_index(self) -> dict[Any, str]:
        return self._read(self._index_path) or {}

    def _save_index(self, overloads: dict[Any, str]) -> None:
        self._write(self._index_path, overloads)

    def _load_data(self, name: str) -> Any:
        return self._read(self._data_path(name))

    def _save_data(self, name: str, data: Any) -> None:
        self._write(self._data_path(name), data)

    def _read(self, path: str) -> Any:
        """What a file keeps; None where there is no file, where others wrote it, and where it is damaged."""
        try:
            head, _, rest = Path(path).read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            _report("the kernel cache cannot be read", error)
            return None
        if head.startswith(self._START) and head != self._head and len(rest) > _DIGEST_SIZE:
            return None
        if _NUMBAS_START.match(head):
            return None
        digest, data = rest[:_DIGEST_SIZE], rest[_DIGEST_SIZE:]
        if head != self._head or digest != _digest(path, data):
            _report("a file in the kernel cache is damaged", path)
            return None
        return pickle.loads(data)

    def _write(self, path: str, kept: Any) -> None:
        data = self._dump(kept)
        with self._open_for_write(path) as file:
            file.write(self._head + b"\n" + _digest(path, data) + data)


def _digest(path: str, data: bytes) -> bytes:
    # With its name, for a file of one kernel must not pass for another's.
    return hashlib.sha256(Path(path).name.encode() + data).digest()


def _report(trouble: str, detail: object) -> None:
    """Warn, of each trouble once in a process."""
    if trouble not in _reported:
        _reported.add(trouble)
        what = f"{type(detail).__name__}: {detail}" if isinstance(detail, Exception) else detail
        warnings.warn(
            f"pathsum: {trouble} ({what}); kernels are compiled, which takes seconds", RuntimeWarning, stacklevel=2
        )
