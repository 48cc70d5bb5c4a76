"""What each cell of the matrix of losses and transforms has to be, and the page that shows it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from transforms import CASES, TRANSFORMS

PINNED = "2.13"

TRACED = [name for name in TRANSFORMS if name.startswith(("compile", "export"))]
SHORT = {"inductor": "compile(fullgraph=True), inductor", "jvp": "compile(fullgraph=True) of func.jvp"}


class Refusal(NamedTuple):
    """Why torch cannot carry a loss through a transform, and the error that says so, of any of these kinds."""

    reason: str
    errors: tuple[str, ...]


LOOP = Refusal(
    "raises: how often it calls the joiner is a value of the lengths, which a graph does not know; "
    "`compile` without `fullgraph` runs it outside the graph",
    ("UserError", "Unsupported", "TorchRuntimeError", "GuardOnDataDependentSymNode"),
)
SIZES = Refusal(
    "raises: the sizes of its intermediate tensors are values of the lengths, which a graph does not know; "
    '`impl="numba"` hides them in operators, and `compile` without `fullgraph` runs it outside the graph',
    ("UserError", "Unsupported", "TorchRuntimeError", "GuardOnDataDependentSymNode"),
)
JOINER = Refusal(
    "raises `NotDifferentiableError`: of a loss of a `Joiner` there are first derivatives in reverse mode; "
    "give `Joiner.logits()`",
    ("NotDifferentiableError", "TorchRuntimeError"),
)
# Compiling is slow: these losses stand for the others of their lattice, and a whole graph has no breaks to test.
ALSO_BY_INDUCTOR = ("ctc_loss", "rnnt_loss")
ALSO_WITH_GRAPH_BREAKS = {"numba": ("ctc_loss", "asg_loss", "rnnt_loss_from_joint"), "reference": ("rnnt_loss",)}
ALSO_TRACED_BY_REFERENCE = ("ctc_loss", "rnnt_loss")
BEYOND_REVERSE = (
    "double backward",
    "func.jvp, forward_ad",
    "func.jacfwd",
    "func.jvp of func.grad",
    "func.hessian, functional.hessian",
    SHORT["jvp"],
)


def state(name: str, transform: str, impl: str) -> bool | Refusal | None:
    """What a cell has to be: right, refused for a reason, or not tested (``None``)."""
    graph = transform in TRACED and transform != "compile"
    if name == "rnnt_loss_from_joint" and impl == "reference":
        return None
    if transform == "compile" and name not in ALSO_WITH_GRAPH_BREAKS[impl]:
        return None
    if impl == "reference" and transform in TRACED:
        if name not in ALSO_TRACED_BY_REFERENCE or transform == SHORT["inductor"]:
            return None
        return SIZES if graph and name == "rnnt_loss" else True
    if name == "rnnt_loss_from_joint" and graph:
        return None if transform == SHORT["inductor"] else LOOP
    if transform == SHORT["inductor"] and name not in ALSO_BY_INDUCTOR:
        return None
    if name.endswith("Joiner") and impl == "numba" and transform in BEYOND_REVERSE:
        return JOINER
    return True


CELLS = [
    (impl, transform, name)
    for impl in ("numba", "reference")
    for transform in TRANSFORMS
    for name in CASES
    if state(name, transform, impl) is not None
]


def table(impl: str) -> str:
    """The cells of an implementation in Markdown, losses across, with a note for each reason to refuse."""
    names = [name for name in CASES if any(cell[0] == impl and cell[2] == name for cell in CELLS)]
    refusals: list[Refusal] = []

    def mark(name: str, transform: str) -> str:
        found = state(name, transform, impl)
        if not isinstance(found, Refusal):
            return {True: "right", None: ""}[found]
        if found not in refusals:
            refusals.append(found)
        return f"({1 + refusals.index(found)})"

    rows = [[transform, *(mark(name, transform) for name in names)] for transform in TRANSFORMS]
    head = ["", *(f"`{name}`".replace(", ", "`, ").rstrip("`") + "`" * (", " not in name) for name in names)]
    lines = [head, ["---"] * len(head), *rows]
    notes = [f"({number}) {refusal.reason}." for number, refusal in enumerate(refusals, 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + "\n\n".join(notes)


def page() -> str:
    """docs/transforms.md."""
    return f"""# Transforms of torch

What every loss gives under every transform, tested for torch {PINNED} by `tests/test_transforms.py`, from whose cells
`python tests/transform_cells.py` makes this page. *right*: equal to what ordinary backward passes through the float64
reference give, values and derivatives. An empty cell was not tested: compiling is slow, and losses of one lattice stand
for one another. Nothing is silent: what cannot be carried raises.

Targets and lengths are tensors here, whose values a compiled graph does not know; it checks them when it runs, with the
errors of a plain call. Lists of integers are constants of the graph.

## `impl="numba"`

{table("numba")}

## `impl="reference"`

{table("reference")}

## What else raises

* A third derivative by `impl="numba"`: `NotDifferentiableError`. `impl="reference"` has derivatives of any order.
* A second derivative with `fastemit_lambda` or `clamp`: `NotDifferentiableError`; what they make of the gradient is not
  the gradient of anything.
* `overwrite_logits=True` where a graph is traced or a transform of `torch.func` runs: `ValueError`.
* `vmap` inside `torch.compile(fullgraph=True)`: the sizes of what forward keeps are values. Outside it is right.
* `create_graph=True` across the border of a compiled function: torch's own error. `func.grad` inside it is right.

`vmap` calls the kernels once for each slice. It may map over scores, over targets and over lengths.

`torch.library.opcheck` passes for every operator: `test_schema`, `test_autograd_registration`, `test_faketensor` and
`test_aot_dispatch_dynamic`, the latter not for the Hessian-vector products, whose derivatives do not exist.
"""


if __name__ == "__main__":
    path = Path(__file__).parent.parent / "docs" / "transforms.md"
    path.write_text(page())
