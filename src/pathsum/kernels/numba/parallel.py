"""Threads for kernels that release the GIL.

A plain thread pool: it may be entered from several Python threads at once, and a forked child starts a new one.
Results do not depend on the number of threads, since no two tasks write to the same place.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()


def _forget_pool() -> None:
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _get_pool() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="pathsum")
        return _pool


def worthwhile(num_threads: int, work: int) -> int:
    """As many threads as pay for being woken, for so many elements of work (a few nanoseconds each).

    A thread may have to wait for a processor on which another library's threads still spin after their own work.
    """
    return max(1, min(num_threads, work // 150_000))


def run(function: Callable[..., None], tasks: Iterable[tuple[Any, ...]], num_threads: int) -> None:
    """Call ``function(*task)`` for every task, the calling thread taking its share.

    Tasks are handed out one at a time, so that put in order of falling cost they even out.
    """
    if num_threads == 1:
        for task in tasks:
            function(*task)
        return
    tasks = list(tasks)
    helpers = min(num_threads, len(tasks)) - 1
    remaining = iter(tasks)
    futures = [_get_pool().submit(_work, function, remaining) for _ in range(helpers)]
    _work(function, remaining)
    for future in futures:
        future.result()


def _work(function: Callable[..., None], remaining: Iterator[tuple[Any, ...]]) -> None:
    # next() on a list iterator is one step under the GIL: no two threads get the same task.
    for task in remaining:
        function(*task)


def split_evenly(total: int, num_threads: int) -> list[tuple[int, int]]:
    """[0, total) as contiguous ranges, a few for each thread; none of nothing."""
    if num_threads == 1:
        return [(0, total)] if total else []
    count = min(total, 4 * num_threads)
    bounds = [total * i // max(count, 1) for i in range(count + 1)]
    return list(pairwise(bounds))


def of_falling_cost(offsets: np.ndarray, num_threads: int) -> list[tuple[int, int]]:
    """Ranges of samples, of which each has a range of nodes: all at once for one thread, else the largest first."""
    if num_threads == 1:
        return [(0, len(offsets) - 1)]
    return [(int(n), int(n) + 1) for n in np.argsort(-np.diff(offsets), kind="stable")]


class Memory:
    """Arrays for one task after another: fresh memory costs its page faults, which here would be most of the time."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """An uninitialised array, over memory given back earlier where that is large enough."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        buffer = self._free.pop() if self._free else np.empty(0, np.uint8)
        if buffer.size < size:
            buffer = np.empty(size, np.uint8)
        return buffer[:size].view(dtype).reshape(shape)

    def give(self, *arrays: np.ndarray) -> None:
        """Give arrays back that no one reads any more."""
        for array in arrays:
            while isinstance(array.base, np.ndarray):
                array = array.base
            self._free.append(array)
