"""What needs a device to run, without one: kernels compiled ahead of time, and the benchmark's dry run."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Not imported here: in this process Triton is imported to be interpreted, or not at all.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

HERE = Path(__file__).parent
# Shared memory of a block in bytes.
SHARED = {"80": 163 * 1024, "90": 227 * 1024, "gfx942": 64 * 1024}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("triton")


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
            "score_rows", "solve", "find_posteriors", "write_gradient", "count_arcs", "add_counts", "gather_tangents",
            "tell_arcs_apart", "move_posteriors", "write_product",
        },
    ),
    (
        "arcs",
        {
            "score_rows", "write_gradient", "write_product", "mark_undefined", "solve", "find_posteriors",
            "move_posteriors",
        },
    ),
    ("best_path", {"chain", "dense", "grid", "score_rows"}),
    (
        "joint",
        {
            "score_rows", "list_rows", "differentiate_logits", "differentiate_hidden", "add_weight_gradient",
            "add_operand_gradients", "solve", "find_posteriors",
        },
    ),
    (
        "dense",
        {
            "solve", "combine", "write_gradient", "add_transition_gradient", "move_posteriors",
            "add_transition_product",
        },
    ),
])  # fmt: skip
def test_kernels_compile_for_every_target(lattice, kernels, cache):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": ":".join([str(HERE), *sys.path])}
    done = subprocess.run(
        [sys.executable, str(HERE / "compile_kernels.py"), lattice],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(name, target) for name, target, *_ in compiled} == {(name, t) for name in kernels for t in SHARED}
    for name, target, spilled, shared, _ in compiled:
        assert spilled <= 64, f"{name} on {target} spills {spilled} bytes a thread"
        assert shared <= SHARED[target], f"{name} on {target} asks for {shared} bytes of shared memory"


def test_the_benchmark_runs_dry():
    script = HERE.parent / "benchmarks" / "gpu.py"
    environment = os.environ | {"PYTHONPATH": ":".join([str(HERE.parent / "src"), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), "--dry"],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "gate: green"
    assert [line.split()[0] for line in lines if "pathsum" in line and line.endswith("ran")] == ["ctc", "rnnt", "tdt"]
