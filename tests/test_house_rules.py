"""The rules of the house, read from the sources: who imports whom, what is compiled how, what importing costs."""

import ast
import pkgutil
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import pathsum
from pathsum.numerics import FASTMATH

ROOT = Path(pathsum.__file__).parent
KERNELS = sorted((ROOT / "kernels" / "numba").glob("*.py"))

# Layers from the ground up, by the longest name that fits. An import goes to a lower layer or stays in its own package.
LAYERS = {
    "pathsum.display": -1,
    "pathsum.errors": 0,
    "pathsum.lattice": 0,
    "pathsum.numerics": 0,
    "pathsum.options": 0,
    "pathsum.reductions": 0,
    "pathsum._namespace": 0,
    "pathsum.printable": 0,
    "pathsum.files": 0,
    "pathsum.arpa": 0,
    "pathsum.graphs": 1,
    "pathsum": 1,  # the package itself: version and errors
    "pathsum._checks": 2,
    "pathsum.replabels": 2,
    "pathsum.problems": 2,
    "pathsum.kernels": 2,
    "pathsum.testing": 2,
    "pathsum.kernels.reference": 3,
    "pathsum.kernels.numba": 3,
    "pathsum.kernels.triton": 3,
    "pathsum.kernels.jax": 3,
    "pathsum.kernels.tensorflow": 3,
    "pathsum.dispatch": 4,
    "pathsum.decoding": 4,
    "pathsum.torch": 5,
    "pathsum.tensorflow": 5,
    "pathsum.jax": 5,
    "pathsum.info": 5,
    "pathsum.plots": 5,
    "pathsum.console": 5,
    "pathsum.compat": 6,
    "pathsum.utterances": 6,
    "pathsum.warmup": 6,
    "pathsum.demo": 6,
    "pathsum.bench": 6,
    "pathsum.cli": 7,
    "pathsum.__main__": 8,
}
FRAMEWORKS = {"torch", "tensorflow", "jax", "triton"}
# What besides the standard library and pathsum a layer may import; the applications may import what they want.
THIRD_PARTY = {
    **{layer: {"numpy"} for layer in range(-1, 3)},
    "pathsum.testing": {"numpy"},
    "pathsum.kernels.reference": {"numpy", "torch"},
    "pathsum.kernels.numba": {"numpy", "numba", "llvmlite"},
    "pathsum.kernels.triton": {"triton"},
    "pathsum.kernels.jax": {"numpy", "jax"},
    "pathsum.kernels.tensorflow": {"tensorflow"},
    "pathsum.dispatch": set(),
    "pathsum.decoding": {"numpy", "kenlm"},
    "pathsum.torch": {"numpy", "torch"},
    "pathsum.tensorflow": {"numpy", "tensorflow"},
    "pathsum.jax": {"numpy", "jax"},
    "pathsum.plots": {"numpy", "matplotlib"},
}


@cache
def tree_of(path):
    """The syntax of a file, which many rules read and none changes."""
    return ast.parse(path.read_text())


def module_of(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module):
    """The longest name of the table that a module is or lies in."""
    return max((name for name in LAYERS if module == name or module.startswith(name + ".")), key=len)


def imports_of(path):
    """Every module imported anywhere in a file, inside functions too."""
    modules = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module_of(path).split(".") if path.stem == "__init__" else module_of(path).split(".")[:-1]
            above = package[: len(package) + 1 - node.level] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                # "from package import module" imports the module.
                place = ROOT.parent / Path(*origin.split("."), alias.name)
                is_module = place.is_dir() or place.with_suffix(".py").exists()
                modules.add(f"{origin}.{alias.name}" if is_module else origin)
    return modules


def offences(path):
    """What a file imports that it may not."""
    module = module_of(path)
    package = package_of(module)
    allowed = THIRD_PARTY.get(package, THIRD_PARTY.get(LAYERS[package]))
    for imported in sorted(imports_of(path)):
        top = imported.partition(".")[0]
        if top == "pathsum":
            other = package_of(imported)
            if other != package and LAYERS[other] >= LAYERS[package]:
                yield f"{module} imports {imported}, which is not below it"
            if LAYERS[package] > 5 and any(part.startswith("_") for part in imported.split(".")):
                yield f"{module} imports {imported}, which is private"
            if package in ("pathsum.utterances", "pathsum.demo", "pathsum.bench") and other.startswith(
                "pathsum.kernels"
            ):
                yield f"{module} imports {imported}: it may use the public functions alone"
        elif allowed is not None and top not in sys.stdlib_module_names and top not in allowed:
            yield f"{module} imports {imported}"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=module_of)
def test_imports_point_down(path):
    assert not list(offences(path))


@pytest.mark.parametrize("line, module", [
    ("import torch", "kernels/numba/chain.py"),
    ("def f():\n    from torch import nn", "problems/ctc.py"),
    ("import numba", "lattice.py"),
    ("from pathsum.kernels.reference import chain", "kernels/numba/chain.py"),
    ("from pathsum.kernels.numba.chain import forward", "kernels/reference/chain.py"),
    ("from pathsum.kernels import numba", "kernels/reference/chain.py"),
    ("from pathsum.kernels.numba import extended", "kernels/jax/chain.py"),
    ("import torch", "jax/ctc.py"),
    ("import jax", "tensorflow/ctc.py"),
    ("from pathsum.kernels.jax import extended", "kernels/tensorflow/chain.py"),
    ("import pathsum.torch", "dispatch.py"),
    ("from pathsum import lattice, dispatch", "problems/ctc.py"),
    ("from pathsum.torch._ops.addition import add", "cli.py"),
    ("from pathsum.kernels.numba import chain", "demo/run.py"),
    ("import numpy", "dispatch.py"),
])  # fmt: skip
def test_the_import_rule_can_fail(line, module, tmp_path, monkeypatch):
    # A copy of the tree's names with one bad line in it.
    root = tmp_path / "pathsum"
    for path in ROOT.rglob("*.py"):
        copy = root / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text("")
    bad = root / module
    bad.write_text(line)
    monkeypatch.setitem(globals(), "ROOT", root)
    assert list(offences(bad))


def test_every_module_has_a_layer_of_its_own_choosing():
    # A new module at the top would otherwise count as part of the package itself.
    for path in ROOT.iterdir():
        if path.suffix == ".py" or (path / "__init__.py").exists():
            assert module_of(path) in LAYERS, path


def test_the_pages_on_the_code_name_what_there_is():
    tree = ROOT.parent.parent
    design, habits = (path.read_text() for path in (tree / "docs" / "design.md", tree / "CONTRIBUTING.md"))
    layout = re.search(r"^src/pathsum/\n(.*?)^tests/", design, re.DOTALL | re.MULTILINE)[1]
    folder = ROOT
    for line in layout.splitlines():
        if entry := re.match(r"  (\S+)", line):
            folder = ROOT / entry[1]
        for name in re.findall(r"\w[\w/]*(?:\.py|/(?= |$))", line):
            assert (ROOT / name).exists() or list(folder.rglob(name.rstrip("/"))), name
    for path in ROOT.iterdir():
        if not path.stem.startswith("_") and (path.suffix == ".py" or (path / "__init__.py").exists()):
            assert re.search(rf"(?<![\w/]){path.name}\b", layout), path
    places = {"dispatch": "pathsum.dispatch", "protocol": "pathsum.kernels.protocol"}
    prose = re.sub(r"^```.*?^```", "", design + habits, flags=re.DOTALL | re.MULTILINE)
    for name in {word for quoted in re.findall(r"`([^`]+)`", prose) for word in quoted.split()} - {"dist/"}:
        if re.fullmatch(r"(?:pathsum|dispatch|protocol)\.[\w.]+", name):
            pkgutil.resolve_name(re.sub("^(dispatch|protocol)", lambda found: places[found[1]], name))
        elif re.fullmatch(r"[\w.]*\w/[\w./]*|\w+\.(?:py|md|cff)", name):
            assert any((place / name).exists() for place in (tree, ROOT, *ROOT.glob("torch/**/"))), name


@cache
def in_fresh_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env={"PYTHONPATH": ":".join(sys.path), "PATH": ""})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("module", ["pathsum", "pathsum.testing", "pathsum.problems.ctc", "pathsum.dispatch"])
def test_importing_costs_numpy_and_nothing_more(module):
    before = in_fresh_process("import sys; print(*sys.modules)")
    after = in_fresh_process(f"import sys, {module}; print(*sys.modules)")
    loaded = {name.partition(".")[0] for name in set(after) - set(before)}
    assert "pathsum" in loaded
    assert not loaded & (FRAMEWORKS | {"numba", "scipy", "rich", "matplotlib"})
    assert loaded - set(sys.stdlib_module_names) <= {"numpy", "pathsum"}


def test_fast_math_never_assumes_away_nan_and_infinity():
    assert not FASTMATH & {"nnan", "ninf", "fast"}
    assert FASTMATH <= {"nsz", "arcp", "contract", "afn", "reassoc"}


DECORATORS = ("part", "njit", "jit", "vectorize", "guvectorize", "stencil")


def compiled(tree):
    """Every use of a compiling decorator: its name and its keywords, ``None`` standing for ``**``."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            for decorator in getattr(node, "decorator_list", []):
                call = decorator if isinstance(decorator, ast.Call) else None
                name = ast.unparse(call.func if call else decorator)
                if name in ("kernel", "exact_kernel", "uncounted_kernel"):
                    yield name, {None: "COMPILE"}
                elif name.rpartition(".")[2] in (*DECORATORS, "overload"):
                    yield name, {word.arg: ast.unparse(word.value) for word in call.keywords} if call else {}


def uncompiled_rules(tree):
    allowed = {"COMPILE", "COMPILE_IN_ORDER", "COMPILE_EXACTLY", "COMPILE_UNCOUNTED"}
    for name, keywords in compiled(tree):
        options = "jit_options" if name.rpartition(".")[2] == "overload" else None
        if keywords.get(options) not in allowed or "fastmath" in keywords:
            yield f"{name} without COMPILE"


@pytest.mark.parametrize("path", KERNELS, ids=module_of)
def test_kernels_are_compiled_by_the_rules_of_numerics(path):
    assert not list(uncompiled_rules(tree_of(path)))


def test_the_rule_for_compiling_can_fail():
    decorators = ("njit", "njit(cache=True)", "numba.njit(fastmath=True, **COMPILE)", "overload(f)", "njit(**OTHER)")
    for bad in (f"@{decorator}\ndef f(): ..." for decorator in decorators):
        assert list(uncompiled_rules(ast.parse(bad))), bad
    assert sum(len(list(compiled(tree_of(path)))) for path in KERNELS) > 20


def test_only_the_glue_says_ctx():
    for path in sorted(ROOT.rglob("*.py")):
        names = {node.id for node in ast.walk(tree_of(path)) if isinstance(node, ast.Name)}
        assert "ctx" not in names or path.parent.name == "_autograd" or path.stem == "_operators", path


# Where what is private to another package is named: torch's, then numba's. A drop-in names the places that it takes.
PRIVATE = {
    "torch/_private.py",
    "kernels/numba/compilation.py",
    "kernels/numba/addresses.py",
    "kernels/numba/linking.py",
    "kernels/numba/uncounted.py",
    "kernels/numba/views.py",
    "info.py",
}


@cache
def our_names():
    """Every name that the sources define, private ones among them, and what namedtuples have."""
    names = {"_replace", "_asdict", "_fields", "_make"}
    for path in ROOT.rglob("*.py"):
        names |= {path.stem, path.parent.name}
        for node in ast.walk(tree_of(path)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
                names |= {node.attr} if isinstance(node.ctx, ast.Store) else set()
    return names


def others_private_names(tree, ours):
    """Names with an underscore that are not ours: imported, looked up on an object, a string of a path or a look-up."""
    looked_up = {ast.unparse(word) for node in ast.walk(tree) if isinstance(node, ast.Call) for word in node.args[1:2]
                 if ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr")}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [name for alias in node.names for name in alias.name.split(".")]
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("pathsum"):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isascii():
            words = node.value.split(".")
            path = len(words) > 1 and all(word.isidentifier() for word in words)
            names = words if path or repr(node.value) in looked_up else []
        else:
            continue
        yield from (name for name in names if re.match("_[^_]", name) and name not in ours)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=module_of)
def test_what_is_private_to_another_package_is_named_in_one_file(path):
    place = path.relative_to(ROOT)
    if str(place) not in PRIVATE and place.parts[0] != "compat":
        assert not list(others_private_names(tree_of(path), our_names()))


@pytest.mark.parametrize("line", [
    "import torch._C",
    "from torch._C._functorch import peek_interpreter_stack",
    "from torch.autograd.function import _SingleLevelFunction",
    "torch.autograd.forward_ad._current_level",
    "'torch._dynamo' in sys.modules",
    "getattr(tensor, '_version')",
    "def f():\n    return x.y._version",
])  # fmt: skip
def test_the_rule_for_private_names_can_fail(line):
    assert list(others_private_names(ast.parse(line), our_names()))


def test_the_oldest_torch_is_the_one_that_is_declared():
    tomllib = pytest.importorskip("tomllib")
    from pathsum.torch import _private

    extras = tomllib.loads((ROOT.parent.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    declared = {requirement for needs in extras.values() for requirement in needs if requirement.startswith("torch")}
    assert declared == {f"torch>={_private.RUN[0]}"}


def test_a_torch_that_lacks_something_is_named():
    code = """
import importlib, torch
from torch.autograd import forward_ad
def fails(version):
    torch.__version__ = version
    try:
        importlib.import_module("pathsum.torch")
    except ImportError as error:
        print(type(error).__name__, error)
fails("2.7.1")
for owner, name in ((torch._C._functorch, "peek_interpreter_stack"), (forward_ad, "_current_level")):
    kept = getattr(owner, name)
    delattr(owner, name)
    fails("2.99.0")
    setattr(owner, name, kept)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env={"PYTHONPATH": ":".join(sys.path), "PATH": ""})  # fmt: skip
    messages = (
        "needs torch 2.8 or newer; this is torch 2.7.1",
        "peek_interpreter_stack.*this is torch 2.99.0",
        "_current_level of .*this is torch 2.99.0",
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(messages), done.stdout + done.stderr
    for line, message in zip(lines, messages, strict=True):
        assert re.match(f"FrameworkVersionError .*{message}", line)


def test_cached_kernels_are_current_only_while_all_that_they_inline_is():
    from pathsum.kernels.numba import chain, compilation, joint_hvp

    stamp = compilation.source_stamp(chain.__name__)
    assert chain._advance._cache.opened._cache_file._source_stamp == stamp
    for module in (chain, joint_hvp):
        called = {value.py_func.__module__ for value in vars(module).values() if hasattr(value, "py_func")}
        assert called | {"pathsum.numerics"} <= compilation._inlined(module.__name__), module


# Functions outside the kernels that take more than 8 positional parameters, and why.
LONG = {
    "compat.k2.pruning.rnnt_loss_pruned": "a peer's signature",
    "compat.k2.transducer.rnnt_loss_simple": "a peer's signature",
    "compat.k2.transducer.rnnt_loss_smoothed": "a peer's signature",
    "compat.torchaudio.ctc_decoder": "a peer's signature",
    "compat.transformers.tdt_loss": "a peer's signature",
    "compat.warp_rnnt.rnnt_loss": "a peer's signature",
    "torch._ops.checks.check_batch": "an operator's, whose schema is read off it",
    "torch._bounded.unread_batch": "as check_batch, which it stands in for on a device",
    "torch.linear.ctc_linear_loss": "public, in the order of torch's CTC",
    "torch.distributed.ctc_linear_loss": "as torch.linear's",
    "jax.ctc._chain_loss": "what the two public losses take, in their order",
    "tensorflow.ctc._chain_loss": "what the two public losses take, in their order",
    "decoding.beam._decode": "one compiled call's arrays, put together",
    "decoding._units.find_units": "what every decoder says of its labels",
    "graphs.formats._graph": "columns of a file",
}


def positional(node):
    """How many positional parameters a function has beside self."""
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def functions(path):
    return [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef)]


def test_few_functions_outside_the_kernels_take_more_than_eight_positional_parameters():
    found = {
        f"{module_of(path).removeprefix('pathsum.')}.{node.name}"
        for path in ROOT.rglob("*.py")
        if path.relative_to(ROOT).parts[0] != "kernels"
        for node in functions(path)
        if positional(node) > 8
    }
    assert found == set(LONG)
    assert len(LONG) <= 15


# Who may ask which implementation it is: the table, and the rule of JAX's and of TensorFlow's that chooses between the
# compiled kernels and the operations of the framework's own.
ASK = {"pathsum.dispatch", "pathsum.jax._derivatives", "pathsum.tensorflow._derivatives"}
IMPLEMENTATIONS = {"numba", "triton", "reference", "jax", "tensorflow"}


def implementations_asked_for(tree):
    """Comparisons with the name of an implementation."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = (node.left, *node.comparators)
            parts = [part for side in sides for part in (side.elts if isinstance(side, ast.Tuple) else [side])]
            if any(isinstance(part, ast.Constant) and part.value in IMPLEMENTATIONS for part in parts):
                yield ast.unparse(node)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=module_of)
def test_no_implementation_is_told_by_its_name_outside_the_table(path):
    module = module_of(path)
    # Keras has backends by some of these names, and arrays have modules.
    if module not in ASK | {"pathsum.compat.keras", "pathsum._namespace"}:
        assert not list(implementations_asked_for(tree_of(path)))


def test_the_rule_for_implementations_can_fail():
    for line in ('impl == "numba"', 'paths.impl != "reference"', 'f(x) in ("jax", own)'):
        assert list(implementations_asked_for(ast.parse(line))), line


# Files and stays of each loss, as benchmarks/walk.py counts them: none may become more.
WALKS = {"ctc": (12, 27), "rnnt": (12, 26), "joint": (15, 42), "tdt": (14, 28), "asg": (14, 51)}


def test_a_call_does_not_walk_further_than_it_did():
    script = ROOT.parent.parent / "benchmarks" / "walk.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False,
                          env={"PYTHONPATH": ":".join(sys.path), "PATH": ""})  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"(\w+): (\d+) files, .* (\d+) stays", done.stdout)
    walked = {name: (int(files), int(stays)) for name, files, stays in lines}
    assert set(walked) == set(WALKS)
    for name, sizes in walked.items():
        assert all(size <= most for size, most in zip(sizes, WALKS[name], strict=True)), (name, sizes)
