"""How each group is measured; the protocol is told in docs/bench.md."""

from __future__ import annotations

import gc
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pathsum.bench import peers
from pathsum.bench.cases import Case, make_problem
from pathsum.bench.contenders import Contender, Worker, available_memory, failure
from pathsum.bench.gate import Errors, Truth
from pathsum.bench.peers import Problem
from pathsum.bench.rows import Row, Run

# A contender that needs longer than this for a case takes fewer turns, at least one.
BUDGET_MS = 60_000

# Below this a turn begins with a step that is not timed: caches cool down while the others take their turns, and a
# virtual machine's host takes back the memory freed a few seconds ago.
COOLS_DOWN_MS = 2_000

# A peer is tried with this share of the available memory, and this long for each of import and step.
TRIAL_MEMORY, TRIAL_SECONDS = 0.5, 300.0

# What runs in this process untried: ours, and torch, which they run on.
TRUSTED = (*peers.OURS, "torch")

_MIB = 2**20
_WARM_UP_SHAPE = (2, 12, 3, 8)


@contextmanager
def handed_over(problem: Problem, contenders: Sequence[Contender]) -> Iterator[Path | None]:
    """A folder that holds the problem, where any of the contenders is in another process."""
    if all(contender.worker is None for contender in contenders):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="pathsum-bench-") as name:
        peers.save(problem, Path(name))
        yield Path(name)


def solvers(case: Case, contenders: Sequence[Contender]) -> list[Contender]:
    """Those that compute the loss of a case, the copy not among them."""
    return [c for c in contenders if c.name != "copy" and c.can_run(case.op, case.kind)]


class Verdict(NamedTuple):
    """Of a contender on a case: its distance from float64, or why there is none; and whether it is near enough."""

    contender: Contender
    errors: Errors | None
    accepted: bool
    failure: str | None


@contextmanager
def noting(contender: Contender, failures: dict[str, str]) -> Iterator[None]:
    """What a peer raises is noted by its name. Ours on torch and the copy, which all is compared with, end the run."""
    try:
        yield
    # A peer may raise whatever it wants.
    except Exception as reason:
        if contender.name in ("pathsum", "copy"):
            raise
        failures[contender.name] = failure(reason)


def errors(case: Case, contenders: Sequence[Contender], threads: int = 1) -> list[Verdict]:
    """How far each contender is from float64, and whether that is near enough.

    A peer of this process runs in a process of its own before, where it may fail in any way: one that takes all memory,
    or ends its process, would end the run.
    """
    problem = make_problem(case)
    truth = Truth(problem)
    found = []
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="pathsum-bench-") as name:
        folder = Path(name)
        peers.save(problem, folder)
        for contender in solvers(case, contenders):
            error = None
            with noting(contender, failures):
                if contender.worker is None and contender.name not in TRUSTED:
                    _try(contender, folder, threads)
                error = truth.errors(contender.name, contender.solve(problem, folder))
            if error is None:
                found.append(Verdict(contender, None, False, failures[contender.name]))
                continue
            accepted = truth.accepts(contender.name, error)
            found.append(Verdict(contender, error, accepted, None if accepted else f"wrong value: {error}"))
    return found


def _apart(contender: Contender, threads: int) -> Worker:
    """A process for one contender, in which a peer can take neither all memory nor for ever."""
    if contender.name in TRUSTED:
        return Worker(contender.python, threads)
    memory_bytes = int(TRIAL_MEMORY * available_memory())
    return Worker(contender.python, threads, memory_bytes=memory_bytes, seconds=TRIAL_SECONDS)


def _try(contender: Contender, folder: Path, threads: int) -> None:
    with _apart(contender, threads) as worker:
        worker.ask("load", peer=contender.name, folder=str(folder))
        worker.ask("step", peer=contender.name)


def accuracy_rows(case: Case, contenders: Sequence[Contender], run: Run) -> list[Row]:
    found = errors(case, contenders, run.threads)
    ours = found[0].errors.gradient if found[0].errors else None
    return [
        run.row(
            case,
            contender.name,
            contender.versions,
            _process(contender),
            **(  # pyright: ignore[reportArgumentType]
                {"failure": reason}
                if error is None
                else {
                    "max_abs_error": error.gradient,
                    "relative_error": error.norm,
                    "ratio_to_ours": error.gradient / ours if ours else None,
                }
            ),
        )
        for contender, error, _, reason in found
    ]


def failed_rows(case: Case, failures: Mapping[str, str], contenders: Sequence[Contender], run: Run) -> list[Row]:
    """A row for each contender that cannot be measured on the case, which says why."""
    return [
        run.row(case, contender.name, contender.versions, _process(contender), failure=failures[contender.name])
        for contender in contenders
        if contender.name in failures
    ]


def time_rows(case: Case, contenders: Sequence[Contender], run: Run, repeats: int) -> list[Row]:
    """Forward, backward and both of every contender, taking turns."""
    turns, failures = _turns(case, contenders, repeats)
    rows = [
        run.row(
            case,
            contender.name,
            contender.versions,
            _process(contender),
            direction=direction,
            **_spread(taken, direction),
            ratio_to_copy=_median(taken, direction) / _median(turns[-1][1], "both"),
            ratio_to_ours=_median(taken, direction) / _median(turns[0][1], direction),
        )
        for contender, taken in turns
        for direction in taken[0]
    ]
    return rows + failed_rows(case, failures, contenders, run)


def decode_rows(case: Case, contenders: Sequence[Contender], run: Run, repeats: int) -> list[Row]:
    """Times of every contender, taking turns, and the share of words that its texts have wrong."""
    turns, failures = _turns(case, contenders, repeats)
    wrong = {
        verdict.contender.name: verdict.errors for verdict in errors(case, [each for each, _ in turns], run.threads)
    }
    rows = []
    for contender, taken in turns:
        found = wrong.get(contender.name)
        rows.append(
            run.row(
                case,
                contender.name,
                contender.versions,
                _process(contender),
                **_spread(taken, "both"),
                ratio_to_ours=_median(taken, "both") / _median(turns[0][1], "both"),
                word_error_rate=None if found is None else found.words,
            )
        )
    return rows + failed_rows(case, failures, contenders, run)


def memory_rows(case: Case, contenders: Sequence[Contender], run: Run) -> list[Row]:
    """Peak memory beyond the inputs, each contender in a fresh process that has already run a tiny case."""
    peaks, size, failures = _peaks(case, contenders, run.threads)
    ours = peaks["pathsum"] if "pathsum" in peaks else next(iter(peaks.values()))
    rows = [
        run.row(
            case,
            contender.name,
            contender.versions,
            "fresh",
            peak_mib=peaks[contender.name] / _MIB,
            share_beyond_gradient=(peaks[contender.name] - size) / size,
            ratio_to_ours=peaks[contender.name] / ours if ours else None,
        )
        for contender in solvers(case, contenders)
        if contender.name in peaks
    ]
    return rows + failed_rows(case, failures, contenders, run)


def step_rows(case: Case, contenders: Sequence[Contender], run: Run, repeats: int) -> list[Row]:
    """Times as of ``time_rows``; on the rows of both directions, peak memory as of ``memory_rows``."""
    turns, failures = _turns(case, contenders, repeats)
    peaks, size, without_peak = _peaks(case, [contender for contender, _ in turns], run.threads)
    rows = []
    for contender, taken in turns:
        memory: dict[str, Any] = {}
        if contender.name in peaks:
            peak = peaks[contender.name]
            memory = {"peak_mib": peak / _MIB, "share_beyond_gradient": (peak - size) / size}
        rows += [
            run.row(
                case,
                contender.name,
                contender.versions,
                _process(contender),
                direction=direction,
                **_spread(taken, direction),
                **(memory if direction == "both" else {}),
                ratio_to_ours=_median(taken, direction) / _median(turns[0][1], direction),
            )
            for direction in taken[0]
        ]
    return rows + failed_rows(case, failures | without_peak, contenders, run)


def _turns(
    case: Case, contenders: Sequence[Contender], repeats: int
) -> tuple[list[tuple[Contender, list[dict[str, float]]]], dict[str, str]]:
    """What every contender that can run took in its turns, in milliseconds by direction; and why others have none."""
    problem = make_problem(case)
    failures: dict[str, str] = {}
    taking_part = [contender for contender in contenders if contender.can_run(case.op, case.kind)]
    times: dict[str, list[dict[str, float]]] = {contender.name: [] for contender in taking_part}
    steps, durations = {}, {}
    with handed_over(problem, taking_part) as folder:
        for contender in taking_part:
            with noting(contender, failures):
                steps[contender.name] = contender.prepare(problem, folder)
                durations[contender.name] = steps[contender.name]().milliseconds["both"]
        for turn in range(repeats):
            for contender in taking_part:
                name = contender.name
                if name in failures or (turn > 0 and turn >= BUDGET_MS / durations[name]):
                    continue
                with noting(contender, failures):
                    # Before the warm step: a collection goes through every object and leaves the caches cold.
                    gc.collect()
                    if durations[name] < COOLS_DOWN_MS:
                        steps[name]()
                    times[name].append(steps[name]().milliseconds)
    return [(contender, times[contender.name]) for contender in taking_part if contender.name not in failures], failures


def _median(taken: list[dict[str, float]], direction: str) -> float:
    return float(np.median([milliseconds[direction] for milliseconds in taken]))


def _spread(taken: list[dict[str, float]], direction: str) -> dict[str, Any]:
    low, high = np.percentile([milliseconds[direction] for milliseconds in taken], [20, 80])
    return {
        "repeats": len(taken),
        "median_ms": _median(taken, direction),
        "p20_ms": float(low),
        "p80_ms": float(high),
    }


def _peaks(case: Case, contenders: Sequence[Contender], threads: int) -> tuple[dict[str, float], int, dict[str, str]]:
    """Bytes that each contender held at most beyond its inputs, by name; those of the gradients among them; and why
    others have none.
    """
    problem, warm_up = make_problem(case), make_problem(replace(case, shape=_WARM_UP_SHAPE, lengths="full"))
    peaks: dict[str, float] = {}
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="pathsum-bench-") as name:
        folders = [Path(name) / "warm-up", Path(name) / "problem"]
        for folder, each in zip(folders, (warm_up, problem), strict=True):
            folder.mkdir()
            peers.save(each, folder)
        for contender in solvers(case, contenders):
            with noting(contender, failures), _apart(contender, threads) as worker:
                worker.ask("load", peer=contender.name, folder=str(folders[0]))
                worker.ask("step", peer=contender.name)
                worker.ask("load", peer=contender.name, folder=str(folders[1]))
                peaks[contender.name] = 1024 * worker.ask("peak", peer=contender.name)["peak_kib"]
    return peaks, sum(operand.nbytes for operand in problem.operands), failures


def first_call_rows(case: Case, contenders: Sequence[Contender], run: Run, repeats: int) -> list[Row]:
    """Our first forward and backward after imports, kernels compiled (cold) or read from disk (warm)."""
    ours = contenders[0]
    rows = []
    with tempfile.TemporaryDirectory(prefix="pathsum-bench-") as name:
        folder = Path(name) / "problem"
        folder.mkdir()
        peers.save(make_problem(case), folder)
        for cache, count in (("cold", 1), ("warm", repeats)):
            environment = {"NUMBA_CACHE_DIR": str(Path(name) / "cache")}
            taken = []
            for _ in range(count):
                with Worker(sys.executable, run.threads, environment) as worker:
                    worker.ask("load", peer=ours.name, folder=str(folder))
                    taken.append(worker.ask("step", peer=ours.name)["milliseconds"]["both"])
            low, median, high = map(float, np.percentile(taken, [20, 50, 80]))
            rows.append(
                run.row(
                    case,
                    ours.name,
                    ours.versions,
                    "fresh",
                    repeats=count,
                    median_ms=median,
                    p20_ms=low,
                    p80_ms=high,
                    cache=cache,
                    ratio_to_ours=1.0,
                )
            )
    return rows


def _process(contender: Contender) -> str:
    return "shared" if contender.worker is None else "separate"
