"""The cache of compiled kernels: what is wrong with it costs a compilation and one warning, and is mended."""

import importlib.util
import os
import pickle
import subprocess
import sys
import warnings

import numba
import numpy as np
import pytest
from numba.core.registry import cpu_target

from pathsum.kernels.numba import compilation

FRONT_ENDS = [name for name in ("torch", "jax", "tensorflow") if importlib.util.find_spec(name)]
SOURCE = """
from pathsum.kernels.numba.compilation import kernel

@kernel
def double(x):
    return 2 * x

@kernel
def halve(x):
    return x // 2
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Execute the kernels' module as a fresh process would: with nothing opened, compiled or reported."""
    path = tmp_path / "kernels_of_a_test.py"
    path.write_text(SOURCE)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))

    def fresh():
        compilation._reported.clear()
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield fresh
    compilation._reported.clear()


def called(module):
    """How many of the kernels were read from the cache, and the warnings that calling them gave."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert (module.double(21), module.halve(42)) == (42, 21)
    hits = sum(sum(kernel.stats.cache_hits.values()) for kernel in (module.double, module.halve))
    return hits, [str(warning.message) for warning in caught]


def files(tmp_path, suffix):
    return sorted((tmp_path / "cache").rglob("*" + suffix))


def emptied(path, other):
    path.write_bytes(b"")


def truncated(path, other):
    path.write_bytes(path.read_bytes()[:-1])


def cut_to_its_head(path, other):
    path.write_bytes(path.read_bytes()[:40])


def garbled(path, other):
    path.write_bytes(os.urandom(1000))


def of_another_program(path, other):
    path.write_bytes(b"\x7fELF" + path.read_bytes())


def with_another_bit(path, other):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def of_another_kernel(path, other):
    path.write_bytes(other.read_bytes())


DAMAGES = [emptied, truncated, cut_to_its_head, garbled, of_another_program, with_another_bit, of_another_kernel]


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_files_are_misses_and_mended(damage, suffix, load, tmp_path):
    assert called(load()) == (0, [])
    assert called(load()) == (2, [])
    double, halve = files(tmp_path, suffix)
    copy = tmp_path / "copy"
    copy.write_bytes(halve.read_bytes())
    damage(halve, double)
    damage(double, copy)
    hits, reports = called(load())
    assert hits == 0
    (report,) = reports
    assert "damaged" in report
    assert str(double) in report
    assert called(load()) == (2, [])
    assert len(files(tmp_path, suffix)) == 2


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_files_that_are_folders_are_misses(suffix, load, tmp_path):
    called(load())
    for path in files(tmp_path, suffix):
        path.unlink()
        path.mkdir()
    hits, reports = called(load())
    assert hits == 0
    assert any("cannot be saved" in report for report in reports)


def test_other_sources_and_another_numba_are_misses_without_a_word(load, monkeypatch):
    called(load())
    with monkeypatch.context() as patch:
        patch.setattr(compilation, "source_stamp", lambda module: "other sources")
        assert called(load()) == (0, [])
        assert called(load()) == (2, [])
    monkeypatch.setattr(numba, "__version__", "0.0")
    assert called(load()) == (0, [])
    assert called(load()) == (2, [])


def test_files_that_numba_itself_wrote_are_misses_without_a_word(load, tmp_path):
    # As an older pathsum left them, which had numba's own cache: an index, and kernels under the names it gives.
    source = tmp_path / "kernels_of_a_test.py"
    ours = source.read_text()
    source.write_text(
        ours.replace("@kernel", "@njit(cache=True)").replace("compilation import kernel", "compilation import njit")
    )
    older = load()
    assert (older.double(21), older.halve(42)) == (42, 21)
    assert len(files(tmp_path, ".nbi")) == 2
    before = os.stat(source)
    source.write_text(ours)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert called(load()) == (0, [])
    assert called(load()) == (2, [])
    assert len(files(tmp_path, ".nbi")) == 2


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_each_of_numbas_own_files_is_a_miss(suffix, load, tmp_path):
    called(load())
    for path in files(tmp_path, suffix):
        path.write_bytes(pickle.dumps(numba.__version__) + pickle.dumps(("stamp", {})))
    assert called(load()) == (0, [])
    assert called(load()) == (2, [])


def test_without_a_folder_kernels_are_compiled(load, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "__pycache__").touch()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "file" / "cache"))
    for variable in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "file" / "home"))
    for _ in range(2):
        hits, (report,) = called(load())
        assert hits == 0
        assert "set NUMBA_CACHE_DIR" in report
    module = load()
    called(module)
    assert module.double.stats.cache_path is None


def test_a_full_disk_is_no_error(load, tmp_path):
    resource = pytest.importorskip("resource")
    module = load()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    try:
        hits, reports = called(module)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert hits == 0
    (report,) = reports
    assert "cannot be saved" in report
    assert not files(tmp_path, "")[1:]  # the folder alone: nothing half-written
    assert called(load()) == (0, [])
    assert called(load()) == (2, [])


def test_a_kernel_that_cannot_be_rebuilt_is_a_miss(load, monkeypatch):
    called(load())
    module = load()
    for kernel in (module.double, module.halve):
        monkeypatch.setattr(kernel._cache.opened._impl, "rebuild", lambda *_: 1 / 0)
    hits, (report,) = called(module)
    assert hits == 0
    assert "ZeroDivisionError" in report


IMPORT = """
import sys
import pathsum.{front_end}
from numba.core.dispatcher import Dispatcher
kernels = {{value for module in list(sys.modules.values()) if module.__name__.startswith("pathsum.kernels.numba")
           for value in vars(module).values() if isinstance(value, Dispatcher)}}
assert len(kernels) > 10
print([kernel.__name__ for kernel in kernels if kernel.signatures])
"""


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_importing_compiles_nothing_and_touches_no_cache(front_end, tmp_path):
    folder = tmp_path / "cache"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    code = IMPORT.format(front_end=front_end)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
    assert not folder.exists()


def test_what_kernels_call_can_be_called_from_python_too(load, tmp_path):
    source = SOURCE.replace("import kernel", "import COMPILE, kernel\nfrom pathsum.kernels.numba.linking import part")
    source = source.replace("@kernel\ndef double", "@part(**COMPILE)\ndef double").replace("x // 2", "double(x) // 4")
    (tmp_path / "kernels_of_a_test.py").write_text(source)
    module = load()
    assert module.halve(42) == 21
    # For these types it has been compiled, but not for Python: calling that would end the process.
    assert module.double(21) == 42
    assert module.halve(42.0) == 21
    assert module.double.py_func(21) == 42
    # One whose kernel is read from the cache.
    assert load().halve(42) == 21


def test_numba_compiles_as_before_after_a_kernel_is_compiled(load):
    context = cpu_target.target_context
    codegen = context.codegen()
    before = dict(vars(context)), dict(vars(codegen))
    module = load()
    with pytest.raises(numba.TypingError):
        module.double(None)
    assert module.double(21) == 42
    assert (dict(vars(context)), dict(vars(codegen))) == before
    assert numba.njit(lambda x: np.zeros(x).sum())(3) == 0


def test_a_kernel_that_is_read_while_another_is_compiled_runs_by_itself_too(load, tmp_path):
    calling = SOURCE.replace("x // 2", "double(x) // 4")
    (tmp_path / "kernels_of_a_test.py").write_text(calling)
    first = load()
    assert first.double(21) == 42
    second = load()
    assert second.halve(42) == 21
    assert sum(second.double.stats.cache_hits.values()) == 1
    assert second.double(21) == 42
    third = load()
    assert (third.halve(42), third.double(21)) == (21, 42)
    assert not sum(third.halve.stats.cache_misses.values()) + sum(third.double.stats.cache_misses.values())


def test_kernels_are_read_without_what_numba_compiles_by(tmp_path):
    (tmp_path / "kernels_of_a_test.py").write_text(SOURCE)
    code = "import sys, kernels_of_a_test; kernels_of_a_test.double(21); print('numba.np.linalg' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    environment |= {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code]
    said = [subprocess.run(command, capture_output=True, text=True, env=environment, check=True) for _ in range(2)]
    assert [done.stdout for done in said] == ["True\n", "False\n"]
