"""The process that runs peers on request."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from . import PEERS, available, versions
from .problem import Problem, Stepper, load


def _resident_kib(peak: bool) -> float:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest / 1024 if sys.platform == "darwin" else largest
    line = status.partition("VmHWM:" if peak else "VmRSS:")[2]
    return float(line.split()[0])


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # the peak so far then counts as well, which is no more than what is held once large inputs are loaded


def serve(num_threads: int) -> None:
    """Answer requests, one JSON object a line, until the input ends.

    ``load`` makes a peer ready, ``step`` runs it once, ``peak`` runs it once and tells the memory it took beyond what
    was held before.
    """
    # A library may print; nothing but answers may reach the one who asked.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    if hasattr(os, "sched_setaffinity"):
        # XLA has no setting for the number of threads: it takes the cores it may run on.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:num_threads])
    problems: dict[str, Problem] = {}
    steppers: dict[str, Stepper] = {}
    for line in sys.stdin:
        try:
            answer = _answer(json.loads(line), problems, steppers)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


def _answer(request: dict[str, Any], problems: dict[str, Problem], steppers: dict[str, Stepper]) -> dict[str, Any]:
    task, peer = request["do"], request.get("peer", "")
    if task == "describe":
        return {"peers": available(), "versions": versions()}
    if task == "load":
        folder = request["folder"]
        if folder not in problems:
            problems.clear()
            steppers.clear()
            problems[folder] = load(Path(folder))
        steppers[peer] = PEERS[peer].prepare(problems[folder])
        return {}
    if task == "step":
        milliseconds, loss, gradient, labels = steppers[peer]()
        if "gradient" in request and gradient is not None:
            np.save(request["gradient"], gradient)
        return {"milliseconds": milliseconds, "loss": loss, "labels": labels}
    if task == "peak":
        _forget_peak()
        held = _resident_kib(peak=False)
        result = steppers[peer]()
        return {"peak_kib": _resident_kib(peak=True) - held, "milliseconds": result.milliseconds}
    raise ValueError(f"unknown request {task!r}")
