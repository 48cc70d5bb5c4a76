"""Processes that compute one loss together, on ``torch.distributed``.

Every process makes the same calls in the same order. A loss begins with one exchange of a few numbers: whether the
arguments are legal, how large the process's share is, and fingerprints of what has to be the same everywhere. So a
mistake on one process raises on all.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pathsum.errors import InvalidTypeError, InvalidValueError, ProcessesError
from pathsum.torch._private import store_of_processes

# Seconds that a process waits, where the others could not be reached, for signs of those that could not either.
_GRACE = 2.0
# How often the processes of a group have spoken, by the group's name.
_spoken: Counter[str] = Counter()

Made = TypeVar("Made")


class Share(NamedTuple):
    """How much of what is shared out each process has.

    Attributes:
        sizes: Classes or frames of each.
        rank: This process.
    """

    sizes: list[int]
    rank: int

    @property
    def first(self) -> int:
        """The first of this process's own."""
        return sum(self.sizes[: self.rank])

    @property
    def total(self) -> int:
        return sum(self.sizes)


class Processes:
    """The processes of a group, in a call of a function.

    Args:
        function: The function that errors name.
        group: A ``ProcessGroup``, a ``DeviceMesh`` of one axis, or ``None``: all processes.
    """

    def __init__(self, function: str, group: Any) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            rule = "be processes of torch.distributed, once init_process_group has been called"
            raise InvalidValueError(function, "group", rule, "no such processes")
        if hasattr(group, "get_group"):
            if group.ndim != 1:
                raise InvalidValueError(function, "group", "be a DeviceMesh of one axis", f"{group.ndim} axes")
            group = group.get_group()
        group = dist.group.WORLD if group is None else group
        if not isinstance(group, dist.ProcessGroup):
            rule = "be a ProcessGroup of this process, or a DeviceMesh"
            raise InvalidTypeError(function, "group", rule, type(group).__name__)
        self.function, self.group = function, group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        NAMED[self.name] = self

    @property
    def name(self) -> str:
        return f"{self.function} {self.group.group_name}"

    def agreed(self, make: Callable[[], tuple[Made, int, Mapping[str, Any]]], device: Any) -> tuple[Made, Share]:
        """What ``make`` makes of this process's arguments, and how large the share of each process is.

        Beside it, it returns the size of this process's share, and by name what must be the same everywhere.

        Raises:
            InvalidValueError: On every process where ``make`` raises on one; there what it raised.
        """
        made, size, facts, error = None, 0, {}, None
        try:
            made, size, facts = make()
        except Exception as raised:
            error = raised
        prints = [_fingerprint(value) for value in facts.values()]
        prints += [0] * (_FACTS - len(prints))
        header = torch.tensor([error is not None, size, *prints], dtype=torch.int64, device=device)
        gathered = [torch.empty_like(header) for _ in range(self.size)]
        self._together(lambda: dist.all_gather(gathered, header, group=self.group))
        rows = torch.stack(gathered).tolist()
        wrong = [rank for rank, row in enumerate(rows) if row[0]]
        if wrong:
            said: list[Any] = [None] * self.size
            self._together(lambda: dist.all_gather_object(said, str(error), group=self.group))
            if error is not None:
                raise error
            raise InvalidValueError(self.function, f"the call of rank {wrong[0]}", "be legal", said[wrong[0]])
        for place, name in enumerate(facts):
            for rank, row in enumerate(rows):
                if row[2 + place] != rows[0][2 + place]:
                    rule, got = "be the same on every rank", f"others on rank {rank} than on rank 0"
                    raise InvalidValueError(self.function, name, rule, got)
        assert made is not None
        return made, Share([row[1] for row in rows], self.rank)

    def largest(self, tensor: Tensor) -> Tensor:
        """The greatest of each element among the processes, in the tensor's memory."""
        self._together(lambda: dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group))
        return tensor

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of each element over the processes, in the tensor's memory."""
        self._together(lambda: dist.all_reduce(tensor, group=self.group))
        return tensor

    def send(self, tensor: Tensor, rank: int) -> None:
        """Hand a tensor to a process, if there is one of this rank, which calls ``receive``."""
        there = 0 <= rank < self.size
        self._together(lambda: dist.send(tensor, group=self.group, group_dst=rank) if there else None)

    def receive(self, tensor: Tensor, rank: int) -> Tensor:
        """What a process sends, in the tensor's memory; the tensor as it is where there is no such process."""
        there = 0 <= rank < self.size
        self._together(lambda: dist.recv(tensor, group=self.group, group_src=rank) if there else None)
        return tensor

    def exchange(self, sent: Tensor, sizes: list[int], received_sizes: list[int]) -> Tensor:
        """What all processes have for this one, of so many elements each, of what each has for all."""
        received = sent.new_empty(sum(received_sizes))
        self._together(lambda: dist.all_to_all_single(received, sent, received_sizes, sizes, group=self.group))
        return received

    def _together(self, collective: Callable[[], Any]) -> None:
        _spoken[self.group.group_name] += 1
        try:
            collective()
        except RuntimeError as error:
            said = str(error).strip().splitlines()
            raise ProcessesError(
                f"{self.function}: rank {self.rank} of {self.size} waited for the others in vain: {self._silent()}; "
                f"torch.distributed says: {said[0] if said else type(error).__name__}"
            ) from error

    def _silent(self) -> str:
        """Which processes give no sign that they could not reach the others either."""
        key = f"pathsum {self.group.group_name} {_spoken[self.group.group_name]}"
        try:
            store = store_of_processes()
            store.set(f"{key} {self.rank}", "waited")
            missing, end = list(range(self.size)), time.monotonic() + _GRACE
            while missing and time.monotonic() < end:
                missing = [rank for rank in missing if not store.check([f"{key} {rank}"])]
                time.sleep(0.02)
        except (RuntimeError, ValueError):
            return "nor is there a sign of the process that introduced them to one another, which most often is rank 0"
        if not missing:
            return "all of them did"
        return f"no sign of rank {' and '.join(map(str, missing))}"


# So that operators, which take numbers and words, find theirs.
NAMED: dict[str, Processes] = {}
_of_parents: list[Processes] = []


def _forget() -> None:
    # A group of the parent's waits, when it ends, for threads that no child has. So it is kept, and never ends.
    _of_parents.extend(NAMED.values())
    NAMED.clear()
    _spoken.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
_FACTS = 5


def _fingerprint(value: Any) -> int:
    data = value.tobytes() + repr(value.shape).encode() if hasattr(value, "tobytes") else repr(value).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=7).digest(), "big")
