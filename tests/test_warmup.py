"""What ``pathsum warmup`` calls, and that a second process then compiles nothing."""

import inspect
import os
import re
import subprocess
import sys

import pytest
import torch

import pathsum.torch
from pathsum.errors import CommandError
from pathsum.warmup import CALLS, warm_up


@pytest.mark.parametrize("name", sorted(CALLS))
def test_every_call_is_right(name):
    inspect.signature(getattr(pathsum.torch, name)).bind(*CALLS[name](torch.float32))
    ((found, dtype, count, seconds),) = warm_up([name], ["float32"], second=False)
    assert (found, dtype) == (name, "float32")
    assert count >= 0
    assert seconds > 0


def test_second_derivatives_are_taken_where_asked_for(monkeypatch):
    asked = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *given, **named: asked.append(named) or grad(*given, **named))
    list(warm_up(["ctc_loss"], ["float64"], second=True))
    assert asked == [{"create_graph": True}, {}]


def test_what_has_one_derivative_is_warmed_up_with_the_others():
    ((name, *_),) = warm_up(["rnnt_entropy"], ["float32"], second=True)
    assert name == "rnnt_entropy"


def test_a_function_that_is_not_known_is_named_before_any_is_called():
    with pytest.raises(CommandError, match=r"^nothing must be one of ctc_loss, "):
        next(warm_up(["ctc_loss", "nothing"], ["float32"], second=False))


def test_a_second_process_compiles_nothing(tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "pathsum", "warmup", "forced_align"]
    counts = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        found = re.fullmatch(r"forced_align of float32: (\d+) kernels compiled in [\d.]+ s\n", done.stdout)
        assert found is not None, done.stdout
        counts.append(int(found[1]))
    assert counts[0] > 0
    assert counts[1] == 0
