"""The examples of training on several processes and in Lightning."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def load(name):
    if not EXAMPLES.exists():
        pytest.skip("the examples are not part of the installed package")
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_process(rank, world, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/{world}", rank=rank, world_size=world)
    torch.save(load("fsdp").train(steps=20), f"{folder}/{world}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available() or sys.platform != "linux", reason="needs gloo and forks")
def test_fsdp_trains_as_one_process(tmp_path):
    for world in (1, 3):  # eight samples: not the same number for each of three
        torch.multiprocessing.start_processes(in_process, (world, str(tmp_path)), world, start_method="fork")
    one, *three = (torch.load(tmp_path / name) for name in ("1-0.pt", "3-0.pt", "3-1.pt", "3-2.pt"))
    assert len(one) == 20
    assert one[-1] < 0.5 * one[0]
    for losses in three:
        assert losses == pytest.approx(one, rel=1e-5)


def test_lightning_learns(monkeypatch):
    pytest.importorskip("lightning")
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    assert load("lightning_ctc").main() < 0.1
