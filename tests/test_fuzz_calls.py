"""A few malformed calls of the fuzzer's: none ends by a signal or hangs. ``tests/fuzz/calls.py`` makes many more."""

import os
import signal
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

pytest.importorskip("torch")
if not hasattr(os, "fork"):
    pytest.skip("no fork on this system", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
import calls


def test_every_legal_call_is_legal():
    assert not list(calls.legal())


def test_the_same_seed_makes_the_same_calls():
    first, again, other = ([str(call) for call in islice(calls.calls(seed), 50)] for seed in (3, 3, 4))
    assert first == again != other


def test_no_malformed_call_ends_the_process_or_hangs():
    todo = list(islice(calls.calls(2026), 150))
    found = [f"{call}: {outcome}" for call, outcome in calls.fuzz(todo)]
    assert not [line for line in found if ": signal " in line or ": hangs " in line or ": exit " in line]


def test_the_fuzzer_sees_signals_and_hangs(monkeypatch):
    ends = (lambda: os.kill(os.getpid(), signal.SIGSEGV), lambda: time.sleep(60))
    monkeypatch.setattr(calls, "run", lambda call: call.nonsense.make(None) or "")
    todo = [
        calls.Call("f", "x", calls.Nonsense(name, lambda _, end=end: end()))
        for name, end in zip("ab", ends, strict=True)
    ]
    outcomes = [outcome for _, outcome in calls.fuzz(todo, seconds=2)]
    assert outcomes == ["signal SIGSEGV", "hangs for 2 s"]


@pytest.mark.parametrize("value", [3, 0.5, None, "34", {"a": 1}, {3, 4}, b"34"], ids=repr)
@pytest.mark.parametrize("argument", ["big_blank_durations", "big_blanks"])
def test_what_is_no_list_of_ints_is_named(argument, value):
    call = calls.Call("multi_blank_rnnt_loss", argument, calls.Nonsense("", lambda _: value, never=True))
    assert calls.run(call) == ""
