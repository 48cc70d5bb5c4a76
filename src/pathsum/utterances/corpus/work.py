"""What is done with each utterance, and who does it: this process, or several beside it."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import sys
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

# So many utterances wait at a worker besides the one it has, that it need not wait for the next. Longer ones do not
# wait there: both ends would write into full pipes for ever.
AHEAD = 3
MAX_AHEAD = 4096  # bytes


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
    """The line of each utterance as it is done, by so many processes; one does the work here."""
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
    """A process with utterances that it has been sent and has not answered."""

    def __init__(self, process: BaseProcess, connection: Connection):
        self.process, self.connection = process, connection
        self.sent: deque[Entry] = deque()


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
                    line = worker.connection.recv_bytes()
                except (EOFError, OSError):
                    line = self._bury(worker)
                else:
                    worker.sent.popleft()
                    self._feed(worker)
                if line is not None:
                    yield line

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
        process = self._context.Process(target=_serve, args=(self._job, theirs, others), daemon=True)
        process.start()
        theirs.close()
        worker = self._workers[ours] = _Worker(process, ours)
        self._feed(worker)

    def _feed(self, worker: _Worker) -> None:
        while len(worker.sent) <= AHEAD:
            entry = self._again.popleft() if self._again else next(self._entries, None)
            if entry is None:
                return
            message = pickle.dumps(entry)
            if worker.sent and len(message) > MAX_AHEAD:
                self._again.appendleft(entry)
                return
            worker.sent.append(entry)
            try:
                worker.connection.send_bytes(message)
            except OSError:
                return  # it has ended, which is seen where its answer is read

    def _bury(self, worker: _Worker) -> bytes | None:
        """The failure of the utterance at which a worker ended; another takes its place."""
        del self._workers[worker.connection]
        worker.connection.close()
        worker.process.join()
        line = None
        if worker.sent:
            code = worker.process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"status {code}"
            line = failure(worker.sent.popleft(), f"the process that worked on it ended by {how}")
            self._again.extendleft(reversed(worker.sent))
            self._start()
        return line


def _serve(job: Job, connection: Connection, others: list[Connection]) -> None:
    """Answer each utterance with its line until the other end is closed."""
    for other in others:
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the first process decides
    torch.set_num_threads(1)
    try:
        while True:
            connection.send_bytes(outcome(job, pickle.loads(connection.recv_bytes())))
    except (EOFError, OSError):
        return
