"""Losses of several processes, on gloo: what each process checks is in ``processes.py``."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
import torch.distributed as dist

import pathsum.torch.distributed as together
from pathsum.errors import InvalidValueError

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this torch has no gloo", allow_module_level=True)

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs forks")


@forks
def test_four_processes_find_what_one_finds(tmp_path):
    # Four processes on a few cores have no use for threads, which wait busily for each other.
    run = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "processes.py"), str(tmp_path)],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip
    try:
        found, _ = run.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        raise
    logs = "\n\n".join(log.read_text() for log in sorted(tmp_path.glob("*.log")))
    assert sorted(found.splitlines()) == ["0 0", "1 0", f"2 -{int(signal.SIGKILL)}", "3 0"], logs


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


@forks
def test_a_forked_child_lets_its_parents_groups_be(tmp_path):
    of_one_process(0, tmp_path / "parent")
    context = torch.multiprocessing.start_processes(
        of_one_process, (tmp_path / "child",), 1, join=False, start_method="fork"
    )
    assert context.join(timeout=60)
