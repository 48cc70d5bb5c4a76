"""What ``pathsum bench`` does: the gate, then the measurements, then rows, tables and plots."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import torch
from rich.text import Text

from pathsum.bench import librispeech, measure, report, rows
from pathsum.bench.cases import GROUPS, ON_REQUEST, TIMED, Case, cases
from pathsum.bench.contenders import Contender, Worker, available_memory, gather
from pathsum.bench.measure import TRIAL_MEMORY
from pathsum.bench.peers import OURS
from pathsum.bench.rows import Row, Run
from pathsum.console import Console
from pathsum.errors import CommandError
from pathsum.files import check_folder, replacing


def run(
    groups: Sequence[str] = (),
    *,
    quick: bool = False,
    repeats: int | None = None,
    threads: int | None = None,
    only: Iterable[str] | None = None,
    peer_pythons: Sequence[str] = (),
    batches: int = librispeech.NUM_BATCHES,
    utterances: int = librispeech.BATCH_SIZE,
    out: str | Path = "bench-out",
) -> int:
    """Measure groups of cases.

    Args:
        groups: Names in ``GROUPS``; none takes all but those ``ON_REQUEST``.
        quick: Tiny shapes and few repeats: to see that everything runs, not to learn times.
        repeats: Turns of each contender; None takes 15, or 3 with ``quick``.
        threads: CPU threads of every contender; None takes torch's setting.
        only: Peers to measure; None takes every one installed.
        peer_pythons: Other interpreters, whose peers run in processes of their own and take turns with ours.
        batches: How many batches of the public comparison are measured.
        utterances: How many utterances of each.
        out: Folder that gets ``<group>.jsonl`` (appended) and ``<group>.png``.

    Returns:
        0, or 1 where a result was not near enough to float64.
    """
    # A pipe has no width; tables need one.
    check_folder(out)
    console = Console(width_of_pipe=150)
    chosen = [name for name in GROUPS if (name in groups if groups else name not in ON_REQUEST)]
    todo = {group: cases(group, quick, batches, utterances) for group in chosen}
    repeats = repeats or (3 if quick else 15)
    threads = threads or torch.get_num_threads()
    with ExitStack() as stack:
        stack.enter_context(_limited_to(threads))
        limit = int(TRIAL_MEMORY * available_memory())
        workers = {python: stack.enter_context(Worker(python, threads, memory_bytes=limit)) for python in peer_pythons}
        contenders = gather(workers, None if only is None else frozenset(only))
        console.print(
            Text("pathsum bench", style="bold"),
            f": {', '.join(chosen)}; {threads} CPU threads; {', '.join(contender.name for contender in contenders)}",
            sep="",
        )
        return _measure(todo, repeats, contenders, Run.begin(threads), Path(out), console)


@contextmanager
def _limited_to(threads: int) -> Iterator[None]:
    """So many threads for the losses of torch and of JAX in this process, and in those that it starts."""
    torch_before, jax_before = torch.get_num_threads(), os.environ.get("PATHSUM_NUM_THREADS")
    torch.set_num_threads(threads)
    os.environ["PATHSUM_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        torch.set_num_threads(torch_before)
        if jax_before is None:
            del os.environ["PATHSUM_NUM_THREADS"]
        else:
            os.environ["PATHSUM_NUM_THREADS"] = jax_before


def show(folder: str | Path) -> int:
    """Print the last rows recorded in a folder as Markdown tables and draw its plots anew."""
    recorded = rows.read_latest(Path(folder))
    if not recorded:
        raise CommandError(f"no rows in {folder}")
    recorded.sort(key=lambda row: list(GROUPS).index(row.group))
    with replacing(folder) as beside:
        for group, members in groupby(recorded, lambda row: row.group):
            report.draw(list(members), beside / f"{group}.png")
    for table in report.tables(recorded):
        print(f"{table.title}\n\n{report.as_markdown(table)}\n")
    return 0


def _measure(
    todo: dict[str, list[Case]],
    repeats: int,
    contenders: Sequence[Contender],
    this_run: Run,
    out: Path,
    console: Console,
) -> int:
    # The accuracy group is a gate by itself: its rows are the errors.
    gated = [case for group, listed in todo.items() if group != "accuracy" for case in listed]
    failures = _gate(gated, contenders, this_run.threads, console)
    if failures is None:
        console.print("gate: red. Nothing was measured.", style="red")
        return 1

    inaccurate = False
    for group, listed in todo.items():
        measured: list[Row] = []
        for case in listed:
            with console.status(str(case)):
                failed = failures.get(_input(case), {})
                sound = [contender for contender in contenders if contender.name not in failed]
                measured += _rows(case, sound, this_run, repeats)
                if case.group != "first_call":  # it is of ours alone
                    measured += measure.failed_rows(case, failed, contenders, this_run)
        with replacing(out) as beside:
            rows.append(measured, out, beside)
            report.draw(measured, beside / f"{group}.png")
        for table in report.tables(measured):
            console.print(report.as_rich(table))
        inaccurate |= any(report.misses_bar(row) for row in measured)
    console.print(f"rows and plots: {out}")
    if inaccurate:
        console.print("accuracy: a gradient of pathsum is beyond its bar.", style="red")
    return int(inaccurate)


def _input(case: Case) -> Case:
    """The same for all groups that have it."""
    return replace(case, group="")


def _gate(
    listed: Sequence[Case], contenders: Sequence[Contender], threads: int, console: Console
) -> dict[Case, dict[str, str]] | None:
    """Why contenders cannot be measured, by input and name; None where a result of ours is wrong."""
    failures: dict[Case, dict[str, str]] = {}
    passed = True
    for case in listed:
        if _input(case) in failures:
            continue
        with console.status(str(case)):
            found = measure.errors(case, contenders, threads)
        failed = {verdict.contender.name: verdict.failure for verdict in found if verdict.failure is not None}
        failures[_input(case)] = failed
        for name, reason in failed.items():
            console.print(f"gate: {case}: {name}: {reason}", style="red", soft_wrap=True)
        # A peer that fails is a row; of ours a wrong value is a defect, and nothing is measured beside it.
        passed &= all(verdict.accepted or verdict.errors is None for verdict in found if verdict.contender.name in OURS)
    if passed and failures:
        console.print(f"gate: green, {len(failures)} inputs")
    return failures if passed else None


def _rows(case: Case, contenders: Sequence[Contender], this_run: Run, repeats: int) -> list[Row]:
    if case.group in TIMED:
        return measure.time_rows(case, contenders, this_run, repeats)
    if case.group == "decode":
        return measure.decode_rows(case, contenders, this_run, repeats)
    if case.group == "rnnt-librispeech":
        return measure.step_rows(case, contenders, this_run, min(repeats, 3))
    if case.group == "accuracy":
        return measure.accuracy_rows(case, contenders, this_run)
    if case.group == "memory":
        return measure.memory_rows(case, contenders, this_run)
    return measure.first_call_rows(case, contenders, this_run, min(repeats, 5))
