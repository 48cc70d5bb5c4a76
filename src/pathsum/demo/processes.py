"""The demo in several processes, which torchrun starts; or whoever has started this one with torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch.distributed as dist

from pathsum.files import check_folder

from .data import load_recording


def launch(count: int, arguments: Sequence[str], out: str, wav: str | None) -> int:
    """Run the demo in so many processes, by torchrun; returns its exit status.

    What can be wrong with files is said here, once.
    """
    check_folder(out)
    if wav is not None:
        load_recording(wav)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    # Without it torchrun says at length that it sets the variable itself.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    return subprocess.run([*torchrun, "-m", "pathsum", "demo", *arguments], env=environment, check=False).returncode


@contextmanager
def together() -> Iterator[None]:
    """A process that torchrun has started meets the others."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not dist.is_torchelastic_launched():
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
