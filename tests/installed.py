"""What an installed pathsum does, apart from its checkout.

    python tests/installed.py wheel dist/pathsum-*.whl            what is in a wheel, and what it says of itself
    python tests/installed.py lowest dist/pathsum-*.whl FOLDER    each front end beside the lowest versions it declares
    VENV/bin/python -W error tests/installed.py run               what is installed in VENV
    VENV/bin/python tests/installed.py run --nobody               the same, as a user who may write nowhere (by root)

``lowest`` builds a virtual environment for each front end below a folder and calls its Python with ``run``. ``run``
calls every public function, by the examples of their docstrings, and the blocks of README.md, of the frameworks that
are there; and it compares the derivatives of a loss of each family with differences. All but the first need a registry,
minutes, or another user, and are for a release; the test suite tests the first.
"""

from __future__ import annotations

import argparse
import doctest
import email
import importlib
import importlib.util
import inspect
import os
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

from pages import ROOT, blocks

FRONT_ENDS = ("torch", "jax", "tensorflow")


def check_wheel(path: str) -> list[str]:
    """What is wrong with a wheel, or nothing."""
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        said = email.message_from_bytes(wheel.read(metadata))
        init = wheel.read("pathsum/__init__.py").decode()
    sources = ROOT / "src"
    ignored = {".nbi", ".nbc", ".pyc"}
    expected = {str(file.relative_to(sources)) for file in sources.rglob("*")
                if file.is_file() and file.suffix not in ignored and "egg-info" not in str(file)}  # fmt: skip
    ours = {name for name in names if ".dist-info/" not in name}
    project = (ROOT / "pyproject.toml").read_text()
    declared = {
        re.sub(r"\s", "", found) for found in re.findall(r'"((?:torch|tensorflow|jax|numpy|numba)>=[\d.]+)"', project)
    }
    required = {value.partition(";")[0].strip() for value in said.get_all("Requires-Dist", [])}
    rules = {
        "has the type checkers' mark": "pathsum/py.typed" in names,
        "has the licence": any(name.endswith("/licenses/LICENSE") for name in names),
        "has the sources and no more": ours == expected,
        "has the package's version": f'__version__ = "{said["Version"]}"' in init,
        "asks for Python 3.10": said["Requires-Python"] == ">=3.10",
        "has the bounds of pyproject.toml": bool(declared) and declared <= required,
        "has README.md as its description": "# pathsum" in str(said.get_payload()),
    }
    return [f"{path}: not true: {rule}" for rule, holds in rules.items() if not holds] + [
        f"{path}: {name}" for name in sorted(ours ^ expected)
    ]


def lowest_requirements(wheel: str, front_end: str) -> list[str]:
    """``name==version`` for what a front end declares as ``name>=version``."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        said = email.message_from_bytes(archive.read(metadata))
    needs = said.get_all("Requires-Dist", [])
    wanted = [need for need in needs if "extra" not in need or need.endswith(f"extra == '{front_end}'")]
    return [need.partition(";")[0].strip().replace(">=", "==") for need in wanted]


def run_lowest(wheel: str, folder: Path) -> int:
    status = 0
    for front_end in FRONT_ENDS:
        python = folder / front_end / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder / front_end)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *lowest_requirements(wheel, front_end)], check=True)
        subprocess.run([*pip, "--no-deps", "--force-reinstall", wheel], check=True)
        status |= subprocess.run([str(python), __file__, "run"], check=False, cwd="/").returncode
    return status


def run_as_nobody() -> int:
    """``run`` in a process of a user who owns nothing and has no home. Kernels cannot be kept, so it takes longer."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, __file__, "run"]
    return subprocess.run(command, check=False, cwd="/", env=environment, user="nobody", extra_groups=[]).returncode


def run() -> int:
    import pathsum

    where = Path(pathsum.__file__)
    if ROOT in where.parents:
        raise SystemExit(f"pathsum is the checkout's: {where}; its environment must have a wheel")
    there = [name for name in FRONT_ENDS if importlib.util.find_spec(name)]
    versions = {name: version(name) for name in ("pathsum", "numpy", "numba", *there)}
    writable = [path for path in (where.parent, Path.home()) if os.access(path, os.W_OK)]
    print(f"Python {platform.python_version()}", versions, "may write to:", *writable or ["neither package nor home"])
    failures = 0
    for name in there:
        failures += run_examples(name)
        failures += check_derivatives(name)
    code = [block.code for block in blocks(ROOT / "README.md") if not _frameworks(block.code) - set(there)]
    with tempfile.TemporaryDirectory() as folder:
        for number, block in enumerate(code):
            # In a file, for what looks for its own source, such as tf.function.
            path = Path(folder) / f"readme_{number}.py"
            path.write_text(block)
            exec(compile(block, str(path), "exec"), {"__name__": "__main__"})
    print(f"README.md: {len(code)} blocks ran; {failures} failures in all")
    return int(failures > 0)


def _frameworks(block: str) -> set[str]:
    return {name for name in FRONT_ENDS if re.search(rf"(import|pathsum\.) ?{name}\b", block)}


def run_examples(front_end: str) -> int:
    """The examples of every public function and class."""
    module = importlib.import_module(f"pathsum.{front_end}")
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    called = 0
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            for test in doctest.DocTestFinder(recurse=False).find(value, name, globs={}):
                called += bool(test.examples)
                runner.run(test)
    print(f"pathsum.{front_end}: examples of {called} public names, {runner.failures} of {runner.tries} lines wrong")
    return runner.failures


def check_derivatives(front_end: str) -> int:
    """Gradient and Hessian-vector product of a loss of each family beside differences, in float64."""
    import numpy as np

    generator = np.random.default_rng(0)
    failures = 0
    for name, shape, loss, derivatives in importlib.import_module("installed_losses").families(front_end):
        x, v = generator.standard_normal((2, *shape))
        step = 1e-5
        value, gradient, product = derivatives(loss, x, v)
        (above, up, _), (below, down, _) = (derivatives(loss, x + sign * step * v, v) for sign in (1, -1))
        slope, curve = (above - below) / (2 * step), (up - down) / (2 * step)
        near = abs((gradient * v).sum() - slope) < 1e-6 * abs(value) and np.abs(product - curve).max() < 1e-6
        print(f"pathsum.{front_end}: {name} {value:.6f}, derivatives {'right' if near else 'WRONG'}")
        failures += not near
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    tasks.add_parser("wheel").add_argument("wheel")
    lowest = tasks.add_parser("lowest")
    lowest.add_argument("wheel")
    lowest.add_argument("folder", type=Path)
    tasks.add_parser("run").add_argument("--nobody", action="store_true")
    options = parser.parse_args()
    if options.task == "wheel":
        wrong = check_wheel(options.wheel)
        print(*wrong, sep="\n")
        return int(bool(wrong))
    if options.task == "lowest":
        return run_lowest(options.wheel, options.folder.absolute())
    return run_as_nobody() if options.nobody else run()


if __name__ == "__main__":
    raise SystemExit(main())
