"""What the documentation says of the public functions: their arguments are theirs, and their examples run."""

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import pathsum

ROOT = Path(pathsum.__file__).parent
FRONT_ENDS = [
    "pathsum.torch",
    *(f"pathsum.{framework}" for framework in ("jax", "tensorflow") if importlib.util.find_spec(framework)),
]
MODULES = [
    "pathsum",
    "pathsum.decoding",
    *FRONT_ENDS,
    "pathsum.torch.paths",
    "pathsum.torch.distributed",
    "pathsum.torch.second_order",
    "pathsum.graphs",
    "pathsum.plots",
    "pathsum.testing",
]


def public(module):
    module = importlib.import_module(module)
    return {
        f"{module.__name__}.{name}": value
        for name, value in ((name, vars(module)[name]) for name in getattr(module, "__all__", vars(module)))
        if not name.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value))
    }


PUBLIC = {name: value for module in MODULES for name, value in public(module).items()}
LOSSES = {name: value for name, value in PUBLIC.items() if name.rpartition(".")[0] in FRONT_ENDS and callable(value)}


def documented_arguments(docstring):
    """The names in the section Args, in order; ``a, b: text`` names two."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)*)", docstring + "\n", re.MULTILINE)
    if section is None:
        return None
    entries = re.findall(r"^    (\S[^:\n]*):", section.group(1), re.MULTILINE)
    return [name.strip() for entry in entries for name in entry.split(",")]


def mismatch(function):
    documented = documented_arguments(inspect.getdoc(function) or "")
    actual = list(inspect.signature(function).parameters)
    return None if documented is None or documented == actual else (documented, actual)


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if inspect.isfunction(value)])
def test_documented_arguments_are_those_of_the_signature(name):
    assert mismatch(PUBLIC[name]) is None


def test_the_comparison_of_arguments_can_fail():
    def good(a, b=1, *, c):
        """One line.

        Args:
            a, b: Two.
            c: With text: and a colon,
                over two lines.

        Returns:
            d: Nothing.
        """

    assert documented_arguments(inspect.getdoc(good)) == ["a", "b", "c"]
    assert mismatch(good) is None

    def bad(a, c, b=1):
        pass

    bad.__doc__ = good.__doc__
    assert mismatch(bad)


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_is_documented(name):
    assert (inspect.getdoc(PUBLIC[name]) or "").strip()


@pytest.mark.parametrize("name", LOSSES)
def test_losses_document_arguments_and_show_an_example(name):
    loss = LOSSES[name]
    if inspect.isclass(loss) and issubclass(loss, tuple):
        return
    assert ">>> " in inspect.getdoc(loss)
    if inspect.isfunction(loss):
        assert documented_arguments(inspect.getdoc(loss))
        for section in ("Returns:", "Example:"):
            assert section in inspect.getdoc(loss)


def test_everything_public_has_its_place_among_the_pages_of_the_api():
    placed = []
    for page in (ROOT.parent.parent / "docs" / "api").glob("*.md"):
        for name in re.findall(r"^::: ([\w.]+)", page.read_text(), re.MULTILINE):
            value = pkgutil.resolve_name(name)
            placed += public(name).values() if inspect.ismodule(value) else [value]
    places = {id(value) for value in placed}
    assert not [name for name, value in PUBLIC.items() if id(value) not in places and "testing" not in name]


def modules_with_examples():
    """Those of whatever package; what is made for a framework only where that is."""
    absent = {name for name in ("jax", "tensorflow") if importlib.util.find_spec(name) is None}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        if ">>> " in path.read_text() and not absent & set(parts):
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_examples_run(name):
    module = importlib.import_module(name)
    failed, attempted = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert attempted
    assert failed == 0
