"""Who takes part: implementations in this process, and peers in processes of other interpreters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pathsum.bench import peers
from pathsum.bench.peers import Problem, Step, Stepper
from pathsum.errors import CommandError
from pathsum.printable import printable


class WorkerError(CommandError):
    """A process that runs a peer failed; the message is the peer's own."""


class Worker:
    """A process that runs implementations on request, in this or another interpreter.

    It may hold ``memory_bytes`` at most, and takes ``seconds`` at most for an answer; then it is ended. One that has
    ended is started again for the next problem.
    """

    def __init__(
        self,
        python: str,
        num_threads: int,
        environment: Mapping[str, str] | None = None,
        *,
        memory_bytes: int | None = None,
        seconds: float | None = None,
    ):
        self._seconds = seconds
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        if python == sys.executable:
            variables["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
        variables |= {"OMP_NUM_THREADS": str(num_threads), "NUMBA_NUM_THREADS": str(num_threads)}
        self._environment = variables | dict(environment or {})
        self._command = [python, str(Path(peers.__file__).parent), str(num_threads)]
        self._command += [] if memory_bytes is None else [str(memory_bytes)]
        self._complaints = tempfile.TemporaryFile("w+")
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            env=self._environment,
            text=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._complaints.close()

    def ask(self, task: str, **details: str) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        if task == "load" and self._process.poll() is not None:
            self._process.communicate()
            self._start()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": task, **details}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the missing answer below says so, with the reason
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self._process.kill()

        timer = threading.Timer(self._seconds or 0, expire)
        if self._seconds is not None:
            timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if expired.is_set():
            raise WorkerError(f"time: no answer within {self._seconds:g} s")
        if not line:
            self._complaints.seek(0)
            last = self._complaints.read().strip().rpartition("\n")[2]
            raise WorkerError(last or "the process ended without an answer")
        try:
            answer = json.loads(line)
        except ValueError:
            raise WorkerError(f"answered {line[:80]!r}, which is not JSON") from None
        if not isinstance(answer, dict):
            raise WorkerError(f"answered {line[:80]!r}, which is no object")
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer


class Contender:
    """An implementation and where it runs: ``worker`` is None for this process."""

    def __init__(
        self,
        name: str,
        versions: Mapping[str, str | None],
        python: str = sys.executable,
        worker: Worker | None = None,
    ):
        self.name = name
        self.versions = versions
        self.python = python
        self.worker = worker

    def can_run(self, op: str, kind: str) -> bool:
        return (op, kind) in peers.PEERS[self.name].runs

    def prepare(self, problem: Problem, folder: Path | None) -> Stepper:
        """Make ready to run; a peer in another process reads the problem from ``folder``."""
        worker = self.worker
        if worker is None:
            return peers.PEERS[self.name].prepare(problem)
        worker.ask("load", peer=self.name, folder=str(folder))
        return lambda: Step(worker.ask("step", peer=self.name)["milliseconds"], 0.0, None)

    def solve(self, problem: Problem, folder: Path | None) -> Step:
        """Run once, with loss and gradient."""
        if self.worker is None:
            return self.prepare(problem, folder)()
        assert folder is not None
        self.prepare(problem, folder)
        gradient = folder / "gradient.npy"
        answer = self.worker.ask("step", peer=self.name, gradient=str(gradient))
        found = np.load(gradient) if gradient.exists() else None
        return Step(answer["milliseconds"], answer["loss"], found, answer["labels"])


def failure(error: Exception) -> str:
    """Why an implementation could not be measured, in one line."""
    text = str(error) if isinstance(error, WorkerError) else f"{type(error).__name__}: {error}"
    line = printable(" ".join(text.split())[:160])
    out_of_memory = ("MemoryError", "bad_alloc", "OOM", "RESOURCE_EXHAUSTED", "allocate", "out of memory")
    if any(sign in text for sign in out_of_memory):
        return f"memory: {line}"
    return line if line.startswith("time: ") else f"error: {line}"


def available_memory() -> int:
    """Bytes that can be had without pushing anything out; a guess of 8 GiB where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 8 * 2**30
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), 8 * 2**30)


def gather(workers: Mapping[str, Worker], only: frozenset[str] | None = None) -> list[Contender]:
    """Ours first, then every peer installed here, then what the workers have besides, and the copy last. A peer that is
    asked for and installed nowhere is tried here, and has a row that says what is missing.

    Args:
        workers: Processes of other interpreters, by interpreter.
        only: Names of the peers to take; None takes all.
    """
    own = peers.versions()
    found = [Contender(name, own) for name in peers.available()]
    for python, worker in workers.items():
        description = worker.ask("describe")
        known = {contender.name for contender in found}
        found += [
            Contender(name, description["versions"], python, worker)
            for name in description["peers"]
            if name not in known and name not in (*peers.OURS, "copy")
        ]
    known = {contender.name for contender in found}
    found += [Contender(name, own) for name in only or () if name not in known]
    kept = [c for c in found if only is None or c.name in only or c.name in (*peers.ALWAYS, "copy")]
    return sorted(kept, key=lambda contender: list(peers.PEERS).index(contender.name))
