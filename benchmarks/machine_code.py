"""Read what the GPU kernels will cost out of their machine code, without a device.

    PYTHONPATH=src python benchmarks/machine_code.py [--only LOSS ...] [--out FILE] [--show FILE] [--page PAGE]

Forward and backward of each case are called on tensors that have shapes and no memory. What they launch is caught on
its way to the device and compiled for sm_90; torch's own operations are counted. Of each kernel the table says
registers, bytes of them spilled, and shared memory; of its innermost loops that move memory or wait, per iteration:
instructions, barriers, loads and stores of global and of shared memory, exchanges between lanes, and how many loads are
looked at within 64 instructions, too soon. ``--out`` appends the rows to a file of JSON lines, whose last run
``--show`` shows, and ``--page`` writes into a page of the documentation, that of each version of Triton: with what a
step is predicted to take, and what each function asks of the host, which is counted anew.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import device
import torch
import triton
from device import Case
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import pathsum.torch
from pathsum import dispatch

TARGET = GPUTarget("cuda", 90, 32)
TYPES = {
    torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64",
    torch.int32: "i32", torch.int8: "i8", torch.bool: "i1",
}  # fmt: skip
SCALARS = {"tl.int32": "i32", "tl.int64": "i64", "tl.float64": "fp64"}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

# An H200: cycles a second, and cycles that a barrier takes, and a load out of the second cache. A warp issues an
# instruction every other cycle, where each needs the one before, and four warps issue at a time.
CLOCK, BARRIER, LOAD, ISSUE, SCHEDULERS = 1.755e9, 30, 270, 2, 4
# Microseconds of the host: a launch by Triton, and an operation of torch; and of the device, a launch at least.
LAUNCH, OPERATION, SHORTEST = 10.0, 4.0, 2.0
# Bytes a second out of the 4.8 TB/s that the memory has.
RATE = 4.0e12


# Instructions that keep a warp busy while a load is under way.
SOON = 64


class Launch(NamedTuple):
    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


def compiled(
    kernel: Any, arguments: Sequence[Any], constants: dict[str, Any], targets: Sequence[GPUTarget]
) -> Iterator[tuple[GPUTarget, Any]]:
    """A kernel as it is launched, compiled for each target."""
    constants = dict(constants)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants}
    names = list(inspect.signature(kernel.fn).parameters)
    values = dict(zip(names, arguments, strict=False)) | constants
    assert values.keys() == set(names), f"{kernel.__name__}: {set(names) ^ set(values)}"
    signature, attributes, fixed = {}, {}, {}
    for i, name in enumerate(names):
        value = values[name]
        annotation = inspect.signature(kernel.fn).parameters[name].annotation
        if isinstance(value, Tensor):
            signature[name] = "*" + TYPES[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif annotation in SCALARS:
            signature[name] = SCALARS[annotation]
        else:
            assert annotation == "tl.constexpr" or value is None, f"{kernel.__name__}: {name} is specialised"
            signature[name], fixed[(i,)] = "constexpr", value
    for target in targets:
        source = ASTSource(kernel, signature, fixed, attributes)
        yield target, triton.compile(source, target=target, options=options)


def dumped(result: Any, *options: str) -> str:
    """What NVIDIA's tool says of compiled code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        command = [TOOLS / "cuobjdump", *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class Resources(NamedTuple):
    registers: int
    spilled: int
    shared: int


def resources(result: Any) -> Resources:
    """Of a kernel for NVIDIA's devices: registers of a thread, bytes of them in memory, shared memory in bytes."""
    usage = dumped(result, "-res-usage")
    registers, stack, local = (int(re.findall(rf"{word}:(\d+)", usage)[0]) for word in ("REG", "STACK", "LOCAL"))
    return Resources(registers, stack + local, result.metadata.shared)


class Loop(NamedTuple):
    """An innermost loop, per iteration.

    Attributes:
        waited: Loads whose result is read within ``SOON`` instructions.
        soonest: How many instructions behind a load its iteration reads the result, of the soonest; 0 if none does.
    """

    instructions: int
    barriers: int
    loads: int
    stores: int
    shared: int
    exchanges: int
    waited: int
    soonest: int


_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")


def loops(sass: str) -> list[Loop]:
    """The innermost loops of machine code that move memory or wait, in its order."""
    code = [(int(at, 16), operation, operands) for at, operation, operands in _LINE.findall(sass)]
    index = {at: i for i, (at, _, _) in enumerate(code)}
    spans = []
    for i, (at, operation, operands) in enumerate(code):
        target = re.search(r"0x([0-9a-f]+)", operands) if operation.startswith("BRA") else None
        # Behind the end the code jumps to itself.
        if target and int(target[1], 16) < at and int(target[1], 16) in index:
            spans.append((index[int(target[1], 16)], i))
    ends: dict[int, int] = {}
    for first, last in spans:
        ends[first] = max(last, ends.get(first, 0))
    inner = [
        (first, last)
        for first, last in sorted(ends.items())
        if not any(first <= other and end <= last and (other, end) != (first, last) for other, end in ends.items())
    ]
    found = [_loop([(operation, operands) for _, operation, operands in code[a : b + 1]]) for a, b in inner]
    return [loop for loop in found if loop.loads + loop.stores + loop.shared + loop.barriers]


def _loop(code: list[tuple[str, str]]) -> Loop:
    def count(*words: str) -> int:
        return sum(operation.split(".")[0] in words for operation, _ in code)

    loads = [i for i, (operation, _) in enumerate(code) if operation.split(".")[0] == "LDG"]
    distances = [distance for i in loads if (distance := _read_behind(*code[i], code[i + 1 :]))]
    return Loop(
        len(code), count("BAR"), count("LDG"), count("STG", "ATOMG", "RED"), count("LDS", "STS", "LDSM", "STSM"),
        count("SHFL"), sum(distance <= SOON for distance in distances), min(distances, default=0),
    )  # fmt: skip


def _read_behind(operation: str, operands: str, behind: list[tuple[str, str]]) -> int:
    """How many instructions behind a load what it has loaded is read; 0 if it is not, or written over first."""
    target = re.match(r"R\d+", operands)
    if target is None:
        return 0
    size = 4 if ".128" in operation else 2 if ".64" in operation else 1
    loaded = {f"R{int(target[0][1:]) + k}" for k in range(size)}
    for distance, (_, operands) in enumerate(behind, 1):
        first, _, rest = operands.partition(",")
        reads = rest if re.match(r"U?[RP]\w+(\.\w+)*$", first.strip()) else operands
        if loaded & set(re.findall(r"\bR\d+\b", reads)):
            return distance
        if first.strip() in loaded:
            return 0
    return 0


class Observed(TorchDispatchMode):
    """Launches caught, and torch's operations: those that work on the device, and ``views``, which with memory that is
    asked for do not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []
        self.operations: Counter[str] = Counter()
        self.views: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix("aten::")
        is_view = any(
            value.alias_info is not None and not value.alias_info.is_write for value in function._schema.returns
        )
        if is_view or name in ("empty", "empty_like", "empty_strided", "new_empty", "detach", "_unsafe_view"):
            self.views[name] += 1
        else:
            self.operations[name] += 1
            moved = (*args, *(result if isinstance(result, tuple) else (result,)))
            self.bytes += sum(_bytes(value) for value in moved if isinstance(value, Tensor))
        return result


def _bytes(tensor: Tensor) -> int:
    """What a tensor takes in memory: of one that is expanded once."""
    sizes = [size for size, step in zip(tensor.shape, tensor.stride(), strict=True) if step]
    return tensor.itemsize * int(torch.tensor(sizes).prod()) if tensor.numel() else 0


@contextlib.contextmanager
def observed() -> Iterator[Observed]:
    """Catch what goes to the device."""
    found = Observed()

    def catch(kernel: Any, grid: tuple[int, ...], beside: Tensor, *arguments: Any, **constants: Any) -> None:
        if 0 not in grid:
            found.launches.append(Launch(kernel, grid, arguments, constants))

    package = importlib.import_module("pathsum.torch._triton")
    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(dispatch, "_check_triton", return_value=None))
        # Under a mode losses would be operators of torch, whose insides it does not see.
        stack.enter_context(mock.patch("pathsum.torch._operators.dispatch_mode", return_value=None))
        for module in modules:
            if hasattr(module, "launch"):
                stack.enter_context(mock.patch.object(module, "launch", catch))
        stack.enter_context(found)
        yield found


def make(case: Case) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Leaves and integers of a case that have shapes and no memory."""

    def leaf(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=case.dtype, device="meta", requires_grad=True)

    def integers(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int64, device="meta")

    if case.loss in device.CHAINS:
        num_frames, num_samples, num_classes, num_labels = case.size
        leaves = [leaf(num_frames, num_samples, num_classes)]
        leaves += [leaf(num_classes, num_classes)] if case.loss == "asg" else []
    else:
        num_samples, num_frames, num_labels, num_classes = case.size
        leaves = [leaf(num_samples, num_frames, num_labels + 1, num_classes)]
        if case.loss == "joint":
            shapes = ((num_samples, num_frames), (num_samples, num_labels + 1), (num_classes,))
            leaves = [*(leaf(*shape, device.HIDDEN) for shape in shapes), leaf(num_classes)]
        if case.loss == "tdt":
            leaves.append(leaf(*leaves[0].shape[:3], len(device.DURATIONS)))
    if case.loss in device.WAITING:
        # Their values are looked at.
        ends = (torch.full((num_samples,), num_frames), torch.full((num_samples,), num_labels))
        return leaves, (torch.ones(num_samples, num_labels, dtype=torch.int64), *ends)
    return leaves, (integers(num_samples, num_labels), integers(num_samples), integers(num_samples))


def measure(case: Case) -> list[dict[str, Any]]:
    """Rows of a case: one a direction, and one a kernel of it."""
    leaves, given = make(case)
    step = device.ours(case, leaves, given)
    rows = []
    with observed() as forward:
        loss = step.forward()
    with observed() as backward:
        torch.autograd.grad(loss, leaves)
    for name, found in (("forward", forward), ("backward", backward)):
        moved = sum(_bytes(v) for one in found.launches for v in _tensors(one)) + found.bytes
        rows.append(_of(case) | {
            "direction": name, "launches": len(found.launches), "operations": sum(found.operations.values()),
            "views": sum(found.views.values()), "bytes": moved, "scores": sum(map(_bytes, leaves)),
            "names": dict(found.operations),
        })  # fmt: skip
        for one in found.launches:
            ((_, result),) = compiled(one.kernel, one.arguments, one.constants, [TARGET])
            own = resources(result)
            rows.append(_of(case) | {
                "direction": name, "kernel": f"{one.kernel.fn.__module__.rpartition('.')[2]}.{one.kernel.__name__}",
                "wide": one.constants.get("WIDE"), "warps": result.metadata.num_warps, **own._asdict(),
                "instructions": len(_LINE.findall(sass := dumped(result, "-sass"))),
                "loops": [loop._asdict() for loop in loops(sass)],
                "bytes": sum(map(_bytes, _tensors(one))), "steps": steps(case, one),
            })  # fmt: skip
    return rows


def steps(case: Case, launch: Launch) -> int:
    """How often a recursion goes through its slowest loop, 0 of other kernels: a frame or diagonal at a time, or, of a
    matrix that no program holds, a tile of it.
    """
    if launch.kernel.__name__ != "solve":
        return 0
    if case.loss not in device.CHAINS:
        return case.size[1] + case.size[2]
    num_frames, _, num_classes, _ = case.size
    if launch.constants.get("SINGLE", True):
        return num_frames
    return num_frames * -(-num_classes // launch.constants["TO"]) * -(-num_classes // launch.constants["FROM"])


def _of(case: Case) -> dict[str, Any]:
    return {"loss": case.loss, "size": list(case.size), "dtype": str(case.dtype).removeprefix("torch.")}


def _tensors(launch: Launch) -> list[Tensor]:
    """The tensors of a launch, each once."""
    given = {id(value): value for value in launch.arguments if isinstance(value, Tensor)}
    return list(given.values())


def step_time(loop: dict[str, int], warps: int) -> float:
    """Nanoseconds that an iteration is predicted to take: at least as long as a load that is looked at in the next."""
    issue = max(warps / SCHEDULERS, ISSUE)
    waiting = max(0.0, LOAD - issue * loop["soonest"]) if loop["soonest"] else 0.0
    busy = issue * loop["instructions"] + BARRIER * loop["barriers"] * (warps > 1) + waiting
    return 1e9 / CLOCK * max(busy, LOAD * (loop["loads"] > 0))


def in_words(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows as lines of Markdown tables."""
    lines = ["| loss, input | direction | launches | operations of torch | GB given, least | host, microseconds |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        if "kernel" not in row:
            # Scores are read in both directions, and their gradient written in the second.
            least = row["scores"] * (1 if row["direction"] == "forward" else 2) / 1e9
            host = LAUNCH * row["launches"] + OPERATION * row["operations"]
            lines.append(
                f"| {_name(row)} | {row['direction']} | {row['launches']} | {row['operations']} | "
                f"{row['bytes'] / 1e9:.3g}, {least:.3g} | {host:.0f} |"
            )
    lines += ["", "| loss, input | kernel | warps | registers, spilled, shared | loop: instructions, barriers, loads, "
              "stores, shared, exchanges, waited for, soonest | predicted |", "|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        if "kernel" in row:
            told = [f"{', '.join(str(value) for value in loop.values())}" for loop in row["loops"]]
            times = [f"{step_time(loop, row['warps']):.0f} ns" for loop in row["loops"]]
            wide = {None: "", True: ", wide", False: ", narrow"}[row["wide"]]
            lines.append(
                f"| {_name(row)} | `{row['kernel']}`{wide} | {row['warps']} | "
                f"{row['registers']}, {row['spilled']}, {row['shared']} | {'; '.join(told)} | {', '.join(times)} |"
            )
    return lines


# What a page has of a run: tables between these two lines, of predictions, of the host's part, and of the machine code.
BEGIN, END = "<!-- machine_code.py writes {} from here -->", "<!-- to here -->"
# Milliseconds that a step is to take, and where they are not our own, whose they are.
GOALS = {
    ("rnnt", (4, 200, 40, 8193), "float32"): "1.5 ms",
    ("rnnt", (8, 100, 20, 1025), "float32"): "0.35 ms",
    ("tdt", (4, 200, 40, 8193), "float32"): "5.0 ms, the public kernel's",
    ("tdt", (8, 100, 20, 1025), "float32"): "1.0 ms, the public kernel's",
    ("ctc", (1000, 32, 5000, 100), "float32"): "0.9 ms",
    ("asg", (800, 16, 30, 108), "float32"): "1 ms",
}


def written(page: str, rows: Sequence[dict[str, Any]]) -> str:
    """A page with the tables of the last run by each version of Triton."""
    latest = {row["triton"]: row["run"] for row in rows}
    versions = sorted(latest)
    runs = [[row for row in rows if (row["triton"], row["run"]) == (v, latest[v])] for v in versions]
    for name, lines in (("predictions", predictions(runs[-1])), ("loops", _told(versions, runs))):
        page = filled(page, name, lines)
    return page


def filled(page: str, name: str, lines: Sequence[str]) -> str:
    """A page with other lines in a place that has a name."""
    before, rest = page.split(BEGIN.format(name))
    _, _, after = rest.partition(END)
    return "\n".join([before + BEGIN.format(name), *lines, "", END + after])


def kernel_time(row: dict[str, Any]) -> float:
    """Milliseconds that the device is predicted to take for a launch: for its bytes, or for its steps, each of them as
    slow as the slowest loop that goes through a tile, or if there is none, that stores what it has found.
    """
    through_tiles = [loop for loop in row["loops"] if loop["loads"] > 8]
    swept_by = through_tiles or [loop for loop in row["loops"] if loop["stores"]]
    slowest = [step_time(loop, row["warps"]) for loop in swept_by]
    swept = row["steps"] * max(slowest, default=0.0) / 1e6
    return max(row["bytes"] / RATE * 1e3, swept, SHORTEST / 1e3)


def predictions(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What steps are predicted to take, as lines of a table: of each direction the device's time or, if that is more,
    the host's.
    """
    lines = ["| a step of | least bytes | recursions | device | host | predicted | captured | goal |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in dict.fromkeys(map(_name, rows)):
        own = [row for row in rows if _name(row) == name]
        asked = [row for row in own if "kernel" not in row]
        kernels = [row for row in own if "kernel" in row]
        least = sum(row["scores"] * (1 if row["direction"] == "forward" else 2) for row in asked) / RATE * 1e3
        swept = sum(kernel_time(row) for row in kernels if row["steps"])
        on_device = [sum(kernel_time(k) for k in kernels if k["direction"] == row["direction"]) for row in asked]
        host = [(LAUNCH * row["launches"] + OPERATION * row["operations"]) / 1e3 for row in asked]
        step = sum(map(max, on_device, host))
        goal = GOALS.get((own[0]["loss"], tuple(own[0]["size"]), own[0]["dtype"]), "")
        times = (least, swept, sum(on_device), sum(host), step, sum(on_device))
        lines.append(f"| {name} | {' | '.join(f'{time:.2f} ms' for time in times)} | {goal} |")
    return lines


# Functions beside those of ``device``, and what they are given before targets and lengths.
EXPECTED = {
    **{f"{loss}_{what}": ("scores",) for loss in ("ctc", "simple_ctc") for what in ("posteriors", "entropy")},
    **{f"{loss}_expected_risk": ("scores", "costs") for loss in ("ctc", "simple_ctc")},
    "rnnt_posteriors": ("logits",),
    "rnnt_entropy": ("logits",),
    "rnnt_expected_risk": ("logits", "arc_costs"),
    "asg_posteriors": ("scores", "transitions"),
    "asg_entropy": ("scores", "transitions"),
    "asg_expected_risk": ("scores", "costs", "transitions"),
}
# Operations of the case's own: an alignment is made.
OWN = {"band": 3}


def asked() -> Iterator[tuple[str, list[Observed]]]:
    """What each function asks of the host forward and, where it has a gradient, backward, of integers on the device."""
    for loss in device.CHECKED:
        size = (50, 3, 20, 9) if loss in device.CHAINS else (3, 20, 9, 20)
        leaves, integers = make(Case(loss, size))
        found = _observed(device.ours(Case(loss, size), leaves, integers).forward, leaves)
        found[0].operations["arange"] -= OWN.get(loss, 0)
        yield loss, found
    ((scores,), integers), ((logits,), _) = make(Case("ctc", (50, 3, 20, 9))), make(Case("rnnt", (3, 20, 9, 20)))
    transitions, costs, arc_costs = (
        torch.empty(shape, device="meta", requires_grad=True)
        for shape in ((20, 20), scores.shape, (*logits.shape[:3], 2))
    )
    tensors = {"scores": scores, "costs": costs, "transitions": transitions, "logits": logits, "arc_costs": arc_costs}
    for name, given in EXPECTED.items():
        leaves = [tensors[one] for one in given]
        function, options = getattr(pathsum.torch, name), {"impl": "triton"}
        options |= {} if name.startswith("rnnt") else {"batch_first": False}
        options |= {} if name.endswith("posteriors") else {"reduction": "sum"}
        before, behind = (leaves[:-1], leaves[-1:]) if name.startswith("asg") else (leaves, [])
        targets, *lengths = integers
        yield name, _observed(partial(function, *before, targets, *behind, *lengths, **options), leaves)


def _observed(function: Callable[[], Any], leaves: Sequence[Tensor]) -> list[Observed]:
    with observed() as forward:
        value = function()
    if not isinstance(value, Tensor):
        return [forward]
    with observed() as backward:
        torch.autograd.grad(value, leaves)
    return [forward, backward]


def host_table() -> list[str]:
    """What functions ask of the host, as lines of a table."""
    lines = ["| function | forward: launches, torch's operations | backward |", "|---|---|---|"]
    for name, found in asked():
        cells = [f"{len(one.launches)}, {sum(one.operations.values())}" for one in found]
        lines.append(f"| {name} | {' | '.join([*cells, ''][:2])} |")
    return lines


def _told(versions: Sequence[str], runs: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    lines = ["| a step of | direction | launches | operations of torch | GB moved, least |", "|---|---|---|---|---|"]
    for row in runs[-1]:
        if "kernel" not in row:
            least = row["scores"] * (1 if row["direction"] == "forward" else 2) / 1e9
            lines.append(
                f"| {_name(row)} | {row['direction']} | {row['launches']} | {row['operations']} | "
                f"{row['bytes'] / 1e9:.3g}, {least:.3g} |"
            )
    told = "a step of each loop: instructions, barriers, moves of memory"
    columns = (
        f"kernel, by Triton {' and '.join(versions)}",
        "warps",
        "registers",
        "spilled",
        "shared",
        told,
        "predicted",
    )
    lines += ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    name = None
    for same in zip(*([row for row in run if "kernel" in row] for run in runs), strict=True):
        row = same[-1]
        if name != (name := _name(row)):
            lines.append(f"| **{name}** | | | | | | |")
        wide = {None: "", True: ", wide", False: ", narrow"}[row["wide"]]
        each = [", ".join(str(own[word]) for own in same) for word in ("registers", "spilled", "shared")]
        told = [
            "; ".join(f"{x['instructions']}, {x['barriers']}, {x['loads'] + x['stores']}" for x in own["loops"])
            for own in same
        ]
        times = ", ".join(f"{step_time(loop, row['warps']):.0f} ns" for loop in row["loops"])
        steps = " / ".join(dict.fromkeys(told)) or "none"
        lines.append(f"| `{row['kernel']}`{wide} | {row['warps']} | {' | '.join(each)} | {steps} | {times} |")
    return lines


def _name(row: dict[str, Any]) -> str:
    return f"{row['loss']} ({', '.join(map(str, row['size']))}) {row['dtype']}"


CASES = [
    Case("ctc", (1000, 32, 5000, 100)),
    Case("simple_ctc", (1000, 32, 500, 100)),
    Case("asg", (800, 16, 30, 108)),
    Case("asg", (400, 16, 500, 60)),
    Case("rnnt", (4, 200, 40, 8193)),
    Case("rnnt", (4, 200, 40, 8193), torch.bfloat16),
    Case("rnnt", (8, 100, 20, 1025)),
    Case("tdt", (4, 200, 40, 8193)),
    Case("tdt", (8, 100, 20, 1025)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description="Read what the GPU kernels will cost out of their machine code.")
    parser.add_argument("--out", type=Path, help="append the rows to a file of JSON lines")
    parser.add_argument("--only", nargs="+", metavar="LOSS", help="measure these losses alone")
    parser.add_argument("--show", type=Path, help="measure nothing, and show the last rows of a file")
    parser.add_argument("--page", type=Path, help="measure nothing, and write the last rows of a file into a page")
    given = parser.parse_args()
    if given.page:
        rows = [json.loads(line) for line in given.show.read_text().splitlines()]
        given.page.write_text(filled(written(given.page.read_text(), rows), "host", host_table()))
        return
    if given.show:
        rows = [json.loads(line) for line in given.show.read_text().splitlines()]
        rows = [row for row in rows if row["run"] == rows[-1]["run"]]
    else:
        run = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        cases = [case for case in CASES if not given.only or case.loss in given.only]
        rows = [row | {"run": run, "triton": triton.__version__} for case in cases for row in measure(case)]
    if given.out:
        with given.out.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    print("\n".join(in_words(rows)))


if __name__ == "__main__":
    main()
