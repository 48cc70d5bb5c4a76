"""The command: what `info` tells, and what wrong calls and missing packages say."""

import os
import re
import subprocess
import sys

import pytest

import pathsum
from pathsum import cli

# None in sys.modules makes an import fail as if the package were not there.
BLOCKED = """
import importlib.metadata, sys
for name in {names!r}:
    sys.modules[name] = None
version = importlib.metadata.version
def hidden(name):
    if name in {names!r}:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = hidden
from pathsum.cli import main
sys.exit(main({arguments!r}))
"""


def run(*arguments, blocked=(), **variables):
    """The command in a fresh process in which some packages cannot be found."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables}
    code = BLOCKED.format(names=tuple(blocked), arguments=list(arguments))
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120, check=False
    )


def test_module_runs_the_command():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-m", "pathsum", "--version"], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == f"pathsum {pathsum.__version__}\n"


def test_info_tells_what_a_report_needs(tmp_path):
    pytest.importorskip("torch")
    done = run("info", NUMBA_CACHE_DIR=str(tmp_path), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    text = done.stdout
    for name in ("python", "pathsum", "numpy", "numba", "llvmlite", "cpu", "cores"):
        assert re.search(rf"^  {name} +\S", text, re.MULTILINE), name
    for loss in ("ctc_loss", "simple_ctc_loss", "rnnt_loss", "rnnt_packed_loss"):
        assert re.search(rf"^    {loss} +numba$", text, re.MULTILINE), loss
    assert re.search(rf"^  folder +{re.escape(str(tmp_path))}\S* \(writable\)$", text, re.MULTILINE)
    assert re.search(r"^  kernels +0 of [1-9]\d* cached", text, re.MULTILINE)
    assert "cold: first calls compile" in text
    assert re.search(r"^  OMP_NUM_THREADS +1$", text, re.MULTILINE)
    assert re.search(rf"^  NUMBA_CACHE_DIR +{re.escape(str(tmp_path))}$", text, re.MULTILINE)


def test_info_needs_the_base_install_only(tmp_path):
    absent = ("torch", "tensorflow", "jax", "rich", "matplotlib", "soundfile", "jiwer")
    done = run("info", blocked=absent, NUMBA_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "not installed" in line]
    assert set(absent) <= set(re.findall(r"[\w-]+", line))
    assert "get_num_threads" not in done.stdout
    assert re.search(r"^  cpu +numba, compiled", done.stdout, re.MULTILINE)


def test_info_reports_a_torch_that_cannot_be_imported(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libtorch.so: no such file')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from pathsum.cli import main; sys.exit(main(['info']))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "cannot be imported: OSError: libtorch.so: no such file" in done.stdout


def test_info_counts_the_kernels_that_are_cached(tmp_path):
    pytest.importorskip("torch")
    code = """
import torch
from pathsum import info
from pathsum.torch import rnnt_loss
rnnt_loss(torch.zeros(1, 2, 2, 2), [[0]], [2], [1])
print(info.report())
"""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    found = re.search(r"^  kernels +(\d+) of (\d+) cached, (\d+) variants$", done.stdout, re.MULTILINE)
    assert found is not None
    cached, all_kernels, variants = map(int, found.groups())
    assert 0 < cached < all_kernels
    assert variants >= cached
    assert "partly warm: first calls compile chain." in done.stdout


def test_info_says_that_kernels_run_uncompiled():
    done = run("info", NUMBA_DISABLE_JIT="1")
    assert done.returncode == 0, done.stderr
    assert "NUMBA_DISABLE_JIT is set" in done.stdout


@pytest.mark.parametrize("command", ["bench", "demo"])
@pytest.mark.parametrize("absent", ["torch", "rich", "matplotlib"])
def test_a_missing_package_is_one_line_that_names_the_extra(command, absent):
    done = run(command, blocked=[absent])
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"pathsum {command}: ")
    assert absent in line
    assert f"pip install 'pathsum[{command}]'" in line


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["train"], "invalid choice: 'train'"),
        (
            ["bench", "ctcc"],
            "group: must be some of ctc, simple_ctc, rnnt, rnnt-librispeech, accuracy, memory, first_call; got ctcc",
        ),
        (["bench", "--repeats", "0"], "--repeats: must be positive; got 0"),
        (["bench", "--repeats", "many"], "--repeats: invalid int value: 'many'"),
        (["bench", "--threads", "-1"], "--threads: must be positive; got -1"),
        (["bench", "--peers", "warpctc"], "--peers: must be some of"),
        (["bench", "--peer-python", "/no/such/python"], "--peer-python: must be an interpreter that can be run"),
        (["demo", "--losses", "mmi"], "invalid choice: 'mmi'"),
        (["demo", "--seconds", "nan"], "--seconds: must be positive; got nan"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, complaint, capsys):
    for module in ("torch", "rich", "matplotlib", "soundfile", "jiwer"):
        pytest.importorskip(module)
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert complaint in last


def test_demo_gets_what_was_asked_for(monkeypatch):
    demo = pytest.importorskip("pathsum.demo")
    asked = {}
    monkeypatch.setattr(demo, "run", lambda **options: asked.update(options))
    assert cli.main(["demo", "--losses", "rnnt", "--steps", "3", "--threads", "1", "--out", "here"]) == 0
    assert asked == {
        "losses": ["rnnt"],
        "out": "here",
        "steps": 3,
        "seconds": 180,
        "seed": 0,
        "num_threads": 1,
    }
