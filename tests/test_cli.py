"""The command: what `info` tells, and what wrong calls and missing packages say."""

import os
import re
import subprocess
import sys

import pytest

import pathsum
from pathsum import cli, dispatch, errors, info

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


# Importing them is most of a process's time: what they have no part in is asked without them.
FRAMEWORKS = ("torch", "tensorflow", "jax")


def run(*arguments, blocked=(), stdout=subprocess.PIPE, **variables):
    """The command in a fresh process in which some packages cannot be found."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables}
    code = BLOCKED.format(names=tuple(blocked), arguments=list(arguments))
    return subprocess.run(
        [sys.executable, "-c", code],
        stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, timeout=120, check=False,
    )  # fmt: skip


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


def test_info_tells_what_runs_on_a_gpu(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a card")
    monkeypatch.setattr(dispatch, "_has_triton", lambda: True)
    of_gpu = info.report().partition("\n  cuda   ")[2].partition("\n  cuda   ")[2]
    for loss, impl in (("ctc_loss", "triton"), ("rnnt_mwer_loss", "triton"), ("lattice_loss", "triton"),
                       ("crf_ctc_loss", "triton")):  # fmt: skip
        assert re.search(rf"^    {loss} +{impl}$", of_gpu, re.MULTILINE), loss


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
from pathsum.torch import edit_distances
edit_distances([[[1]]], [[1]], [[1]], [1])
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
    assert "partly warm: first calls compile what is not cached, once" in done.stdout
    modules = re.findall(r"^    (\w+) +(\d+) of (\d+)$", done.stdout, re.MULTILINE)
    assert ("edit_distance", "1", "1") in modules
    assert [sum(int(counts[k]) for counts in modules) for k in (1, 2)] == [cached, all_kernels]


def test_info_says_that_kernels_run_uncompiled():
    done = run("info", blocked=FRAMEWORKS, NUMBA_DISABLE_JIT="1")
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
            "group: must be some of ctc, simple_ctc, rnnt, mwer, graphs, decode, small, half, rnnt-librispeech, "
            "accuracy, memory, first_call; got ctcc",
        ),
        (["bench", "--repeats", "0"], "--repeats: must be positive; got 0"),
        (["bench", "--repeats", "many"], "--repeats: invalid int value: 'many'"),
        (["bench", "--threads", "-1"], "--threads: must be positive; got -1"),
        (["bench", "--peers", "warpctc"], "--peers: must be some of"),
        (["bench", "--peer-python", "/no/such/python"], "--peer-python: must be an interpreter that can be run"),
        (["demo", "--losses", "mmi"], "invalid choice: 'mmi'"),
        (["demo", "--seconds", "nan"], "--seconds: must be positive; got nan"),
        (["demo", "--seconds", "inf"], "--seconds: must be at most 1e+09; got inf"),
        (["demo", "--seed", "-1"], "--seed: must lie in [0, 2**63); got -1"),
        (["demo", "--seed", str(2**63)], "--seed: must lie in [0, 2**63); got 9223372036854775808"),
        (["demo", "--steps", "1e3"], "--steps: invalid int value: '1e3'"),
        (["demo", "--threads", "1000000"], "--threads: must be at most"),
        (["demo", "--mwer-steps", "-1"], "--mwer-steps: must be positive; got -1"),
        (["bench", "--threads", str(2**70)], "--threads: must be at most"),
        (["bench", "--repeats", str(2**70)], "--repeats: must be at most"),
        (["bench", "--out", ""], "--out: must be a path; got an empty text"),
        (["bench", "--show", "a\0b"], "--show: must be a path; got 'a\\x00b'"),
        (["bench", "[/bold]", "new\nline"], "got [/bold], new\\nline"),
        (["demo", "--extra\nline"], "unrecognized arguments: --extra\\nline"),
        (["align", "x.npy", "--frame-seconds", "inf"], "--frame-seconds: must be at most 1e+06; got inf"),
        (["align", "x.npy", "--frame-seconds", "0"], "--frame-seconds: must be positive; got 0"),
        (["align", "x.npy", "--formats", "png"], "--formats: needs --out"),
        (["align", "x.npy", "--blank", "none"], "--blank: invalid int value: 'none'"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, complaint, capsys):
    for module in ("torch", "rich", "matplotlib", "soundfile", "jiwer"):
        pytest.importorskip(module)
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pathsum")
    assert complaint in line


def broken(error):
    def run(_):
        raise error

    return run


@pytest.mark.parametrize(
    "error, line",
    [
        (errors.CommandError("[/bold]\nand \x1b[31m more"), r"[/bold]\nand \x1b[31m more"),
        (errors.InvalidTypeError("f", "x", "be an int", "float"), "f: x must be an int; got float"),
        (errors.InvalidValueError("f", "x", "be odd", 2), "f: x must be odd; got 2"),
        (PermissionError(13, "Permission denied", "a\nb"), r"a\nb: Permission denied"),
        (OSError("no such device"), "no such device"),
        (MemoryError(), "this needs more memory than there is"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "this needs more memory than there is"),
        (BrokenPipeError(), "standard output was closed before all was written"),
    ],
)
def test_what_the_user_has_to_put_right_is_one_line(error, line, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_info", broken(error))
    monkeypatch.setattr(cli, "_give_up_output", lambda: None)
    assert cli.main(["info"]) == 2
    assert capsys.readouterr() == ("", f"pathsum info: {line}\n")


@pytest.mark.parametrize("error", [ValueError("a defect"), RuntimeError("a defect"), KeyError("a defect")])
def test_a_defect_has_its_traceback(error, monkeypatch):
    monkeypatch.setattr(cli, "_info", broken(error))
    with pytest.raises(type(error)):
        cli.main(["info"])


def test_an_interrupted_command_says_so(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_info", broken(KeyboardInterrupt()))
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "pathsum info: interrupted\n"


@pytest.mark.parametrize("arguments", [["info"], ["--version"], ["--help"], ["bench", "--help"]])
@pytest.mark.parametrize("full", [False, True], ids=["closed", "full"])
def test_output_that_cannot_be_written_is_one_line(arguments, full):
    if full:
        if not os.path.exists("/dev/full"):
            pytest.skip("no /dev/full on this system")
        output = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, output = os.pipe()
        os.close(reader)
    # Uncompiled: no warning about anybody's kernel cache.
    done = run(*arguments, blocked=FRAMEWORKS, stdout=output, NUMBA_DISABLE_JIT="1")
    os.close(output)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("pathsum")
    assert ("No space left" if full else "was closed") in line


def test_characters_that_the_output_lacks_are_escaped():
    done = run("info", blocked=FRAMEWORKS, PYTHONIOENCODING="ascii", NUMBA_ODD="ü")
    assert done.returncode == 0, done.stderr
    assert r"NUMBA_ODD" in done.stdout
    assert r"\xfc" in done.stdout


@pytest.mark.parametrize("command", ["bench", "demo"])
def test_a_folder_that_takes_no_files_is_said_before_anything_runs(command, tmp_path, capsys):
    pytest.importorskip(f"pathsum.{command}.run" if command == "bench" else "pathsum.demo")
    (tmp_path / "file").write_text("")
    for out in ("file", "file/below"):
        assert cli.main([command, "--out", str(tmp_path / out)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"pathsum {command}: {tmp_path / out}: ")
        assert captured.err.count("\n") == 1


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
        "mwer_steps": 40,
        "wav": None,
    }
