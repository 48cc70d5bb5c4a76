"""The same work on a cluster, through Ray Data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from typing import Any

import torch

from .manifest import Entry
from .work import Job, outcome

# Utterances that are handed out, and come back, together.
BLOCK = 64


class _Worker:
    """Does the work of a block of utterances."""

    def __init__(self, job: Job):
        torch.set_num_threads(1)
        self._job = job

    def __call__(self, block: Any) -> dict[str, Any]:
        return {"line": [outcome(self._job, Entry(**row)) for row in block.to_pylist()]}


@contextmanager
def working_on_ray(job: Job, entries: Iterator[Entry], processes: int | None) -> Iterator[Iterator[bytes]]:
    """The line of each utterance, in blocks as they are done, on the cluster that Ray finds or starts here.

    Scores are read where the work is done: all machines need the files under the same names. The manifest is held in
    memory.

    Args:
        job: What is done.
        entries: The utterances.
        processes: How many processes work; as many as the cluster has cores where ``None``.
    """
    # Both come with the extra alone, checkers of types have none of their declarations.
    pyarrow, ray = import_module("pyarrow"), import_module("ray")
    import_module("ray.data")
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, logging_level="error")
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        fields = [(name, pyarrow.string()) for name in Entry._fields]
        blocks = [pyarrow.Table.from_pylist(rows, pyarrow.schema(fields)) for rows in _blocks(entries)]
        yield _lines(job, blocks, processes or int(ray.cluster_resources()["CPU"])) if blocks else iter(())
    finally:
        if ours:
            ray.shutdown()


def _blocks(entries: Iterator[Entry]) -> Iterator[list[dict[str, Any]]]:
    while block := [entry._asdict() for entry in islice(entries, BLOCK)]:
        yield block


def _lines(job: Job, blocks: list[Any], processes: int) -> Iterator[bytes]:
    made = (
        import_module("ray.data")
        .from_arrow(blocks)
        .map_batches(
            _Worker,
            fn_constructor_args=(job,),
            batch_size=None,
            batch_format="pyarrow",
            concurrency=min(processes, len(blocks)),
        )
    )
    for block in made.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from block.column("line").to_pylist()
