"""Losses of several processes, on gloo: what each process checks is in ``processes.py``."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
import torch.distributed as dist

import pathsum.torch.distributed as together
from pathsum.errors import InvalidValueError

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this torch has no gloo", allow_module_level=True)


def test_four_processes_find_what_one_finds(tmp_path):
    script, logs = str(Path(__file__).parent / "processes.py"), [tmp_path / f"{rank}.log" for rank in range(4)]
    # Four processes on a few cores have no use for threads, which wait busily for each other.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    runs = []
    for rank, log in enumerate(logs):
        with log.open("w") as file:
            command = [sys.executable, script, str(rank), str(tmp_path / "store")]
            runs.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment))
    wanted, end = [0, 0, -signal.SIGKILL, 0], time.monotonic() + 300
    try:
        # Where one fails the others wait for it in vain.
        while (codes := [run.poll() for run in runs]) != wanted:
            assert all(code in (None, right) for code, right in zip(codes, wanted, strict=True)), _texts(logs)
            assert time.monotonic() < end, _texts(logs)
            time.sleep(0.1)
    finally:
        for run in runs:
            run.kill()
            run.wait()


def _texts(logs):
    return "\n\n".join(log.read_text() for log in logs)


def test_without_processes_it_says_so():
    call = torch.zeros(3, 1, 2), [[1]], [3], [1]
    with pytest.raises(InvalidValueError, match=r"^ctc_loss: group must be processes of torch.distributed"):
        together.ctc_loss(*call)
    with pytest.raises(InvalidValueError, match=r"^global_mean: group must be processes of torch.distributed"):
        together.global_mean(torch.zeros(2))


def of_one_process(rank, path):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=1)
    losses = torch.tensor([4.0, 6.0])
    assert together.global_mean(losses, [2, 3]).item() == 2.0
    dist.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs forks")
def test_a_forked_child_lets_its_parents_groups_be(tmp_path):
    of_one_process(0, tmp_path / "parent")
    context = torch.multiprocessing.start_processes(
        of_one_process, (tmp_path / "child",), 1, join=False, start_method="fork"
    )
    assert context.join(timeout=60)
