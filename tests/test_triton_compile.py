"""What needs a device to run, without one: kernels compiled ahead of time, tests collected, the benchmark run dry."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Not imported here: in this process Triton is imported to be interpreted, or not at all.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

HERE = Path(__file__).parent
# Shared memory of a block in bytes; the newer of NVIDIA's devices has more, but kernels run on the older too.
SHARED = {"80": 163 * 1024, "90": 163 * 1024, "gfx942": 64 * 1024}


def environment():
    """Where kernels are not interpreted, and what is imported from where in this process."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [HERE, HERE.parent / "src", HERE.parent / "benchmarks", *sys.path]
    return kept | {"PYTHONPATH": ":".join(map(str, paths))}


def run(script, *arguments, **variables):
    """Lines that a program prints, in a process of its own."""
    command = [sys.executable, "-W", "ignore", *script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment() | variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def in_fork():
    """Call a program; lines that it prints. Each is a fork of one process, which has imported what all of them need."""
    command = [sys.executable, "-W", "ignore", str(HERE / "forks.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}

    with subprocess.Popen(command, text=True, env=environment(), **pipes) as process:

        def call(*program):
            process.stdin.write(json.dumps([str(word) for word in program]) + "\n")
            process.stdin.flush()
            code, output, errors = json.loads(process.stdout.readline())
            assert code == 0, output + errors
            return output.splitlines()

        yield call
        process.stdin.close()


@pytest.mark.parametrize("lattice, kernels", [
    (
        "grid",
        {
            "score_rows", "solve", "find_posteriors", "write_gradient", "gather_tangents", "move_posteriors",
            "write_product",
        },
    ),
    (
        "chain",
        {
            "score_rows", "solve", "find_posteriors", "sort_entries", "write_gradient", "write_entries", "count_arcs",
            "add_counts", "prepare_transitions", "gather_tangents", "tell_arcs_apart", "move_posteriors",
            "write_product",
        },
    ),
    (
        "arcs",
        {
            "score_rows", "write_gradient", "write_product", "differentiate", "solve", "find_posteriors",
            "move_posteriors",
        },
    ),
    ("best_path", {"chain", "dense", "grid", "score_rows"}),
    ("posing", {"pose"}),
    (
        "joint",
        {
            "join_rows", "score_rows", "mark_undefined", "solve", "find_posteriors", "mark_rows", "list_rows",
            "write_gradient", "add_operand_gradients", "write_product", "move_posteriors",
        },
    ),
    (
        "dense",
        {
            "prepare", "prepare_transitions", "solve", "finish", "write_gradient", "weigh_arcs",
            "add_transition_gradient", "move_posteriors", "add_transition_product",
        },
    ),
    (
        "expectations",
        {
            "score_rows", "solve", "expect", "list_posteriors", "move_posteriors", "write_gradient",
            "write_cost_gradient", "begin_expected_gradients", "write_expected_gradients", "differentiate",
        },
    ),
    ("apart", {"prepare", "solve", "finish", "write_gradient", "add_transition_gradient"}),
    (
        "sparse",
        {
            "write_words", "read_frames", "solve", "find_posteriors", "count_arcs", "count_ends", "write_gradient",
            "add_counts", "move_posteriors", "sparse",
        },
    ),
])  # fmt: skip
def test_kernels_compile_for_every_target(lattice, kernels, in_fork):
    lines = in_fork(HERE / "compile_kernels.py", lattice)
    compiled = [json.loads(line) for line in lines]
    assert {(name, target) for name, target, *_ in compiled} == {(name, t) for name in kernels for t in SHARED}
    for name, target, spilled, shared, contracted, scanned in compiled:
        assert spilled <= 64, f"{name} on {target} spills {spilled} bytes a thread"
        assert shared <= SHARED[target], f"{name} on {target} asks for {shared} bytes of shared memory"
        assert contracted == 0, f"{name} on {target} rounds the same sum differently in different lanes"
        # Scans over more than one wavefront may be wrong there.
        assert target != "gfx942" or scanned <= 1, f"{name} on {target} scans over {scanned} wavefronts"


def test_machine_code_is_read(tmp_path, in_fork):
    """Of two small kernels: an accumulation that looks at what it loads at once, and one that looks a step later."""
    program = """
from __future__ import annotations
import json
import torch
import triton.language as tl
import machine_code
from pathsum.kernels.triton.compilation import barrier, kernel

@kernel
def added(x, out, count: tl.int32):
    lanes = tl.arange(0, 64)
    total = tl.zeros([64], tl.float32)
    for i in range(count):
        total = total * 0.5 + tl.load(x + i * 64 + lanes)
        barrier()
        tl.store(out + i * 64 + lanes, total)

@kernel
def added_later(x, out, count: tl.int32):
    lanes = tl.arange(0, 64)
    total, ahead = tl.zeros([64], tl.float32), tl.load(x + lanes)
    for i in range(count):
        total = total * 0.5 + ahead
        ahead = tl.load(x + (i + 1) * 64 + lanes, mask=lanes + i < 128 * count, other=0.0)
        barrier()
        tl.store(out + i * 64 + lanes, total)

for each in (added, added_later):
    given = (torch.empty(0), torch.empty(0), 9)
    ((_, result),) = machine_code.compiled(each, given, {"num_warps": 2}, [machine_code.TARGET])
    (loop,) = machine_code.loops(machine_code.dumped(result, "-sass"))
    print(json.dumps([machine_code.resources(result)._asdict(), loop._asdict()]))
"""
    path = tmp_path / "small.py"
    path.write_text(program)
    (at_once, loop), (_, later) = (json.loads(line) for line in in_fork(path))
    assert 8 <= at_once["registers"] < 64
    assert at_once["spilled"] == at_once["shared"] == 0
    moves = {name: loop[name] for name in ("barriers", "loads", "stores", "shared", "exchanges", "waited")}
    assert moves == {"barriers": 1, "loads": 1, "stores": 1, "shared": 0, "exchanges": 0, "waited": 1}
    assert (later["barriers"], later["loads"], later["waited"]) == (1, 1, 0)


# Functions that ask the host for more than four launches or six operations of torch a direction: graphs are laid out on
# it, tiles are listed, and ASG's expectations are made of its losses.
LAVISH = {"lattice", "joint", "asg_posteriors", "asg_entropy", "asg_expected_risk"}


def test_functions_ask_little_of_the_host_as_the_page_says(tmp_path, in_fork):
    """Of integers on the device; of tensors that have no values, upon which so nothing depends that is launched.

    Its other tables are those of the rows of machine code that are kept, and its predictions are made of them.
    """
    program, docs = tmp_path / "page.py", HERE.parent / "docs" / "gpu.md"
    program.write_text(
        "import json, sys\n"
        "import machine_code as m\n"
        "page, rows = (open(path).read() for path in sys.argv[1:])\n"
        "print(page == m.written(page, [json.loads(line) for line in rows.splitlines()]))\n"
        "print(*m.host_table(), sep='\\n')\n"
    )
    same, *lines = in_fork(program, docs, HERE.parent / "benchmarks" / "data" / "sm_90" / "loops.jsonl")
    assert same == "True"
    assert "\n".join(lines) in docs.read_text()
    cells = (line[2:].split(" | ", 1) for line in lines[2:])
    counted = {name: re.findall(r"(\d+), (\d+)", rest) for name, rest in cells}
    assert {"ctc", "asg", "rnnt", "tdt", "ctc_entropy", "rnnt_expected_risk"} <= counted.keys()
    for name in counted.keys() - LAVISH:
        for launches, operations in counted[name]:
            assert 1 <= int(launches) <= 4, name
            assert int(operations) <= 6, name


def test_a_new_length_compiles_nothing(in_fork):
    counted = [json.loads(line) for line in in_fork(HERE / "specialisations.py")]
    assert {loss for loss, *_ in counted} >= {"ctc", "asg", "rnnt", "joint", "delayed", "tdt", "lattice"}
    for loss, first, beside in counted:
        assert first > 5, f"{loss} launched {first} kernels"
        assert not beside, f"{loss} compiles {beside} once more for another length"


FAKE_DEVICE = """
import sys
from pathlib import Path

import torch

torch.cuda.is_available = lambda: True


def pytest_ignore_collect(collection_path):
    name = collection_path.name
    if name.startswith("test_") and name != "test_gpu.py" and "triton_targets" not in collection_path.read_text():
        return True


def pytest_collection_finish(session):
    from pathsum.torch._triton import chain, grid

    kernels = {name: kernel for module in (chain.chain, grid.grid) for name, kernel in vars(module).items()}
    kinds = {type(kernels[name]).__name__ for name in ("solve", "score_rows", "add", "split")}
    print("kernels:", *sorted(kinds))
    print("collected:", *sorted({Path(item.path).name for item in session.items}))
"""


def test_tests_of_a_device_are_collected_beside_kernels_that_are_compiled(tmp_path):
    (tmp_path / "fake_device.py").write_text(FAKE_DEVICE)
    paths = ":".join([str(tmp_path), str(HERE), str(HERE.parent / "src"), *sys.path])
    lines = run(["-m", "pytest"], "-p", "fake_device", "--collect-only", "-m", "gpu", str(HERE), PYTHONPATH=paths)
    assert "kernels: JITFunction" in lines
    assert "collected: test_gpu.py" in lines


def test_the_benchmark_runs_dry(tmp_path):
    program = (
        "import runpy, sys, triton_targets\n"
        "for place in triton_targets.FASTER: setattr(*place)\n"
        "sys.argv, codes = sys.argv[1:], []\n"
        "for what in ('check', 'time'):\n"
        "    sys.argv[1] = what\n"
        "    try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "    except SystemExit as end: codes.append(end.code)\n"
        "print(codes)\n"
    )
    script = str(HERE.parent / "benchmarks" / "device.py")
    lines = run(["-c", program], script, "", "--dry", "--out", str(tmp_path))
    assert lines[-1] == "[0, 0]"
    assert sum(line.startswith("all is well") for line in lines) == 2
    for file, tests in (("check.jsonl", 13), ("gpu.jsonl", 3)):
        rows = [json.loads(line) for line in (tmp_path / file).read_text().splitlines()]
        own = [row for row in rows if row.get("impl", "pathsum") == "pathsum"]
        assert [row["result"] for row in own] == ["ok"] * tests


def test_the_benchmark_goes_on_after_a_failure(tmp_path, in_fork):
    """And says what was wrong; a value that is wrong is told from a function that fails."""
    program = (
        "import sys, torch, device\n"
        "report = device.Report(device.Path(sys.argv[1]), 60, {})\n"
        "one, nan = [torch.ones(2)], [torch.full((2,), torch.nan)]\n"
        "report.tried({'test': 'fails'}, lambda: 1 / 0)\n"
        "report.tried({'test': 'wrong'}, lambda: device.verdict(nan, nan, one, 1e-6))\n"
        "report.tried({'test': 'right'}, lambda: device.verdict(one, one, one, 1e-6))\n"
        "print(report.good)\n"
    )
    script = tmp_path / "goes_on.py"
    script.write_text(program)
    lines = in_fork(script, tmp_path / "check.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "check.jsonl").read_text().splitlines()]
    assert [(row["test"], row["result"]) for row in rows] == [("fails", "failed"), ("wrong", "wrong"), ("right", "ok")]
    assert "ZeroDivisionError" in (tmp_path / "errors.txt").read_text()
    assert lines[-1] == "False"
