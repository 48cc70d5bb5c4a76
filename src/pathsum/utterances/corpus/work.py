"""What is done with each utterance, and who does it: this process, or several beside it."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import torch

from pathsum.errors import CommandError, InvalidTypeError, InvalidValueError
from pathsum.printable import printable

from ..inputs import MAX_REASON
from .journal import line_of
from .manifest import Entry

# For so many seconds a worker holds lines back, to hand them over together: each message costs the first process time
# that the workers could use.
HOLD = 0.05
# So many times the utterances of a worker's last message wait at it, that it need not wait for the next. Those with
# long texts do not: both ends would write into full pipes for ever.
AHEAD = 3
MAX_AHEAD = 4096  # characters


class Job(Protocol):
    """What is done with an utterance."""

    @property
    def name(self) -> str:
        """Of the command."""
        ...

    @property
    def done(self) -> str:
        """What has been done with the utterances."""
        ...

    @property
    def options(self) -> dict[str, Any]:
        """What all runs that write to one file have to agree in."""
        ...

    def try_out(self) -> None:
        """Raise where no utterance could be done, and have kernels compiled, for the processes to come."""
        ...

    def __call__(self, entry: Entry) -> dict[str, Any]:
        """The result, as JSON has it."""
        ...


def outcome(job: Job, entry: Entry) -> bytes:
    """The line of an utterance: its result, or why there is none."""
    try:
        return line_of(entry, job(entry))
    except (CommandError, InvalidValueError, InvalidTypeError, OSError) as error:
        reason = str(error)
    except MemoryError:
        reason = "this needs more memory than there is"
    # Whatever one utterance comes to, there are others.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    return failure(entry, reason.removeprefix(f"{entry.id}: "))


def failure(entry: Entry, reason: str) -> bytes:
    return line_of(entry, {"error": printable(reason)[: 4 * MAX_REASON]})


@contextmanager
def working(job: Job, entries: Iterator[Entry], processes: int) -> Iterator[Iterator[bytes]]:
    """The lines of utterances as they are done, by so many processes; one does the work here."""
    if processes > 1:
        pool = _Pool(job, entries, processes)
        try:
            pool.start()
            yield pool.lines()
        finally:
            pool.end()
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield (outcome(job, entry) for entry in entries)
    finally:
        torch.set_num_threads(threads)


class _Worker:
    """A process with utterances that it has been sent and has not answered.

    Attributes:
        begun: How many utterances it has begun, in memory that it shares.
        answered: How many it has answered.
        wanted: How many it is to have.
    """

    def __init__(self, process: BaseProcess, connection: Connection, begun: Any):
        self.process, self.connection, self.begun = process, connection, begun
        self.sent: deque[Entry] = deque()
        self.answered, self.wanted = 0, 1 + AHEAD


class _Pool:
    def __init__(self, job: Job, entries: Iterator[Entry], processes: int):
        self._job, self._entries, self._processes = job, entries, processes
        self._again: deque[Entry] = deque()  # taken back from a worker that died
        self._workers: dict[Any, _Worker] = {}
        # A forked process has all that is imported and loaded here at once; where forks are not safe it loads it anew.
        self._context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")

    def start(self) -> None:
        for _ in range(self._processes):
            self._start()

    def lines(self) -> Iterator[bytes]:
        while any(worker.sent for worker in self._workers.values()):
            for connection in wait([*self._workers]):
                worker = self._workers[connection]
                try:
                    lines = worker.connection.recv_bytes()
                except (EOFError, OSError):
                    lines = self._bury(worker)
                else:
                    self._answered(worker, lines.count(b"\n"))
                    self._feed(worker)
                if lines:
                    yield lines

    def end(self) -> None:
        for worker in self._workers.values():
            worker.connection.close()
            worker.process.terminate()
        for worker in self._workers.values():
            worker.process.join()

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        # A fork has this process's ends of all pipes: unless it closes them no worker is ever told that this one ended.
        others = [*self._workers, ours] if self._context.get_start_method() == "fork" else []
        begun = self._context.RawValue("Q")
        process = self._context.Process(target=_serve, args=(self._job, theirs, begun, others), daemon=True)
        process.start()
        theirs.close()
        worker = self._workers[ours] = _Worker(process, ours, begun)
        self._feed(worker)

    def _answered(self, worker: _Worker, count: int) -> None:
        worker.answered += count
        worker.wanted = 1 + AHEAD * count
        for _ in range(count):
            worker.sent.popleft()

    def _feed(self, worker: _Worker) -> None:
        entries: list[Entry] = []
        size = sum(map(_size, worker.sent))
        while len(worker.sent) + len(entries) < worker.wanted:
            entry = self._again.popleft() if self._again else next(self._entries, None)
            if entry is None:
                break
            size += _size(entry)
            if size > MAX_AHEAD and (worker.sent or entries):
                self._again.appendleft(entry)
                break
            entries.append(entry)
        if not entries:
            return
        worker.sent += entries
        try:
            worker.connection.send_bytes(pickle.dumps(entries))
        except OSError:
            return  # it has ended, which is seen where its answer is read

    def _bury(self, worker: _Worker) -> bytes:
        """The failure of the utterance at which a worker ended; another takes its place."""
        del self._workers[worker.connection]
        worker.connection.close()
        worker.process.join()
        if not worker.sent:
            return b""
        # What was done before it, and not yet handed over, is done again.
        place = max(worker.begun.value - worker.answered - 1, 0)
        code = worker.process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"status {code}"
        line = failure(worker.sent[place], f"the process that worked on it ended by {how}")
        del worker.sent[place]
        self._again.extendleft(reversed(worker.sent))
        self._start()
        return line


def _size(entry: Entry) -> int:
    return len(entry.id) + len(entry.scores) + len(entry.text or "")


def _serve(job: Job, connection: Connection, begun: Any, others: list[Connection]) -> None:
    """Answer utterances with their lines until the other end is closed."""
    for other in others:
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the first process decides
    torch.set_num_threads(1)
    try:
        while True:
            lines, since = b"", time.monotonic()
            for entry in pickle.loads(connection.recv_bytes()):
                begun.value += 1
                lines += outcome(job, entry)
                if time.monotonic() - since > HOLD:
                    connection.send_bytes(lines)
                    lines, since = b"", time.monotonic()
            if lines:
                connection.send_bytes(lines)
    except (EOFError, OSError):
        return
