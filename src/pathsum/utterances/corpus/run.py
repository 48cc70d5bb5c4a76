"""From a manifest to its results."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from pathsum.console import Console
from pathsum.printable import printable

from . import manifest
from .journal import Journal, claimed, drop_failures
from .manifest import Entry
from .work import Job, working

_COLUMNS = (
    TextColumn("[bold]{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("{task.fields[rate]}"),
    TimeRemainingColumn(),
    TextColumn("{task.fields[failed]}"),
)


def run(
    job: Job,
    source: str,
    out: str,
    *,
    processes: int | None = None,
    engine: str = "local",
    retry: bool = False,
    console: RichConsole | None = None,
) -> int:
    """Do a job with each utterance of a corpus, and write a line for each into a file of ``out`` as it is done.

    What has a line there already is not done again.

    Args:
        job: What is done.
        source: A manifest, or a folder of scores.
        out: Folder of the results.
        processes: How many work; as many as this process has cores where ``None``.
        engine: ``"local"``, or ``"ray"``: on the cluster that Ray finds, or starts here.
        retry: Do again what has failed before.
        console: Where to print; by default on standard output.

    Returns:
        0, or 1 where utterances have failed.

    Raises:
        UtteranceError: (a ValueError) a manifest or results that cannot be read.
        InvalidValueError: (a ValueError) an option that no utterance could be done with.
    """
    console = console or Console()
    path, folder = Path(source), Path(out)
    results = folder / f"{job.name}.jsonl"
    count = manifest.check(path)
    job.try_out()
    folder.mkdir(parents=True, exist_ok=True)
    with claimed(folder / f"{job.name}.settings.json", {"corpus": os.path.abspath(source)} | job.options):
        if retry and results.exists():
            drop_failures(results)
        with Journal(results) as journal:
            before = journal.lines
            began = time.perf_counter()
            work = remaining(path, journal)
            if engine == "ray":
                from .cluster import working_on_ray

                at_work = working_on_ray(job, work, processes)
            else:
                at_work = working(job, work, processes or available_cores())
            # The processes are forked before the bar has a thread.
            with at_work as lines, Progress(*_COLUMNS, console=console) as bar:
                task = bar.add_task(job.name, total=count, completed=before, rate="", failed="")
                for some in lines:
                    journal.add(some)
                    rate = (journal.lines - before) / (time.perf_counter() - began)
                    failed = f"{journal.failed} failed" if journal.failed else ""
                    bar.update(task, completed=journal.lines, rate=f"{rate:.4g} a second", failed=failed)
            seconds = time.perf_counter() - began
    done = journal.lines - before
    told = f"{job.done} {done} utterances in {seconds:.1f} s"
    if done:
        told += f", {done / seconds:.4g} a second"
    if before:
        told += f"; {before} had been done before"
    console.print(Text(f"{told}; wrote {printable(str(results))}"), soft_wrap=True)
    if journal.failed:
        why = "" if journal.first_failure is None else f", the first: {printable(journal.first_failure)}"
        told = f"{journal.failed} of {journal.lines} failed{why}"
        console.print(Text(told), soft_wrap=True)
    return int(journal.failed > 0)


def remaining(source: Path, journal: Journal) -> Iterator[Entry]:
    """The utterances that have no line yet."""
    return (entry for entry in manifest.entries(source) if entry.id not in journal.done)


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
