"""Measure the losses on this machine's GPU: correctness first, then times, memory and the share of the byte floor.

    PYTHONPATH=src python benchmarks/gpu.py [--quick] [--out benchmarks/data/<device>]

Needs torch with a CUDA or ROCm device, and neither network nor anything built. torchaudio is measured beside where it
is installed. Ends within ten minutes; writes ``gpu.jsonl``, a row a line, and ``gpu.png``. Exit status 1: a result was
not near enough to float64 on the CPU, and nothing was measured.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional

import pathsum
from pathsum.testing import chain_inputs, grid_inputs
from pathsum.torch import asg_loss, ctc_loss, rnnt_joint_loss, rnnt_loss, simple_ctc_loss

# Where the gate compares: short enough for the reference on the CPU, long enough for digits to get lost.
GATE = {
    "ctc": (1500, 3, 40, 200),
    "simple_ctc": (1500, 3, 40, 200),
    "rnnt": (3, 200, 60, 50),
    "joint": (3, 60, 20, 50),
    "asg": (300, 3, 30, 40),
}
BARS = {"ctc": 2e-6, "simple_ctc": 2e-6, "rnnt": 5e-6, "joint": 2e-5, "asg": 2e-6}
# Operands in bfloat16 are multiplied in it.
BARS_BFLOAT16 = BARS | {"joint": 2e-2}
HIDDEN = 512
SECONDS = 540


class Case(NamedTuple):
    """One loss on one input; ``size`` is (T, N, C, S), of a transducer (N, T, U, V).

    ``"joint"``: the transducer whose joiner is fused, with ``HIDDEN`` units, lengths from half the size to all of it.
    """

    loss: str
    size: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32


CASES = [
    Case("ctc", (1000, 32, 5000, 100)),
    Case("ctc", (1000, 32, 5000, 100), torch.bfloat16),
    Case("ctc", (150, 32, 32, 40)),
    Case("ctc", (1500, 8, 128, 400)),
    Case("simple_ctc", (1000, 32, 500, 100)),
    Case("rnnt", (4, 200, 40, 8193)),
    Case("rnnt", (4, 200, 40, 8193), torch.bfloat16),
    Case("rnnt", (8, 100, 20, 1025)),
    Case("rnnt", (8, 400, 100, 500)),
    Case("joint", (30, 400, 100, 500)),
    Case("joint", (30, 400, 100, 500), torch.bfloat16),
    Case("asg", (800, 16, 30, 108)),
    Case("asg", (400, 16, 500, 60)),
]
QUICK = [
    Case("ctc", (50, 4, 20, 5)),
    Case("rnnt", (2, 20, 6, 30)),
    Case("joint", (2, 20, 6, 30)),
    Case("asg", (40, 2, 10, 6)),
]


class Step(NamedTuple):
    """A contender: what it computes on the device, and the tensors whose gradients it is asked for."""

    forward: Callable[[], torch.Tensor]
    leaves: tuple[torch.Tensor, ...]

    def __call__(self) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(self.forward(), self.leaves)


def make(case: Case, device: str, *, std: float = 1.0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Scores (and transitions), or a joiner's operands, as leaves, and the integers, on a device."""
    generator = torch.Generator().manual_seed(1)
    if case.loss == "joint":
        num_samples, num_frames, num_labels, num_classes = case.size
        # For lengths and labels; of logits as few as can be are drawn.
        inputs = grid_inputs(num_samples, num_frames, num_labels, 2, seed=1)
        shapes = ((num_samples, num_frames, HIDDEN), (num_samples, num_labels + 1, HIDDEN), (num_classes, HIDDEN))
        leaves = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        leaves = [*leaves[:2], std * leaves[2] / HIDDEN**0.5, torch.zeros(num_classes, dtype=torch.float64)]
    elif case.loss == "rnnt":
        inputs = grid_inputs(*case.size, seed=1, std=std, ragged=False)
        leaves = [torch.from_numpy(inputs.logits)]
    else:
        inputs = chain_inputs(*case.size, seed=1, std=std, ragged=False)
        leaves = [torch.from_numpy(inputs.logits)]
    if case.loss == "asg":
        leaves.append(torch.randn(case.size[2], case.size[2], generator=generator, dtype=torch.float64))
    leaves = [leaf.to(device, case.dtype).requires_grad_() for leaf in leaves]
    return leaves, [torch.from_numpy(array).to(device) for array in inputs[1:]]


def ours(case: Case, leaves: list[torch.Tensor], integers: list[torch.Tensor], **options: Any) -> Step:
    if case.loss == "asg":
        targets, *lengths = integers
        return Step(lambda: asg_loss(leaves[0], targets, leaves[1], *lengths, "sum", **options), tuple(leaves))
    if case.loss == "joint":
        return Step(lambda: rnnt_joint_loss(*leaves, *integers, reduction="sum", **options), tuple(leaves))
    if case.loss == "rnnt":
        return Step(lambda: rnnt_loss(leaves[0], *integers, reduction="sum", **options), tuple(leaves))
    function = {"ctc": ctc_loss, "simple_ctc": simple_ctc_loss}[case.loss]
    options |= {"reduction": "sum", "fused_log_softmax": True}
    return Step(lambda: function(leaves[0], *integers, **options), tuple(leaves))


def peers(case: Case, leaves: list[torch.Tensor], integers: list[torch.Tensor]) -> dict[str, Step]:
    """The others that compute the same on the device, and are installed."""
    found = {}
    if case.loss == "ctc" and case.dtype == torch.float32:

        def native(*lengths: torch.Tensor) -> torch.Tensor:
            return functional.ctc_loss(functional.log_softmax(leaves[0], -1), *lengths, reduction="sum")

        found["torch"] = Step(lambda: native(*integers), tuple(leaves))
        targets, *lengths = (integer.cpu().int() for integer in integers)
        if int(lengths[1].max()) < 256:
            flat = torch.cat([row[:length] for row, length in zip(targets, lengths[1].tolist(), strict=True)])
            found["cudnn"] = Step(lambda: native(flat, *lengths), tuple(leaves))
    if case.loss == "rnnt" and case.dtype == torch.float32 and importlib.util.find_spec("torchaudio"):
        from torchaudio.functional import rnnt_loss as peer

        narrow = [integer.int() for integer in integers]
        found["torchaudio"] = Step(lambda: peer(leaves[0], *narrow, reduction="sum"), tuple(leaves))
    return found


def gate(device: str) -> list[str]:
    """What is wrong: gradients on the device against float64 on the CPU, and bits from run to run."""
    wrong = []
    for loss, size in GATE.items():
        for std in (1.0, 8.0):
            for dtype in (torch.float32, torch.bfloat16):
                case = Case(loss, size, dtype)
                leaves, integers = make(case, device, std=std)
                step = ours(case, leaves, integers)
                gradients, again = step(), step()
                if any(not torch.equal(a, b) for a, b in zip(gradients, again, strict=True)):
                    wrong.append(f"{loss} {size} {dtype}: two runs differ in bits")
                exact = [leaf.detach().double().cpu().requires_grad_() for leaf in leaves]
                truth = ours(case, exact, [integer.cpu() for integer in integers])()
                # Of what all frames share the entries are sums over them.
                scales = [1.0, *(float(counts.abs().max()) for counts in truth[1:])]
                bar = (BARS if dtype == torch.float32 else BARS_BFLOAT16)[loss]
                rounding = torch.finfo(dtype).eps / 2 if dtype != torch.float32 else 0.0
                for gradient, expected, scale in zip(gradients, truth, scales, strict=True):
                    error = (gradient.double().cpu() - expected).abs() - rounding * expected.abs()
                    if not float(error.max()) <= bar * max(scale, 1.0):
                        wrong.append(f"{loss} {size} {dtype} std {std:g}: off by {float(error.max()):.1e}")
    return wrong


def milliseconds(step: Callable[[], Any], budget: float) -> list[float]:
    """Times of single runs by the device's own clock, after three that do not count."""
    for _ in range(3):
        step()
    taken: list[float] = []
    end_at = time.monotonic() + budget
    while len(taken) < 50 and (len(taken) < 5 or time.monotonic() < end_at):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end))
    return taken


def replay(step: Step) -> Callable[[], None]:
    """The step captured as a CUDA graph: its time without that of the launches."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def copy_of(tensor: torch.Tensor) -> Callable[[], object]:
    target = torch.empty_like(tensor)
    return lambda: target.copy_(tensor.detach())


def measure(case: Case, budget: float) -> list[dict[str, Any]]:
    """Rows of a case: ours, ours as a graph, the peers, and a copy of the scores."""
    leaves, integers = make(case, "cuda")
    step = ours(case, leaves, integers)
    contenders: dict[str, Callable[[], Any]] = {"pathsum": step, "copy": copy_of(leaves[0])}
    contenders |= peers(case, leaves, integers)
    rows = []
    for name, run in contenders.items():
        run()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        taken = milliseconds(run, budget)
        peak = torch.cuda.max_memory_allocated() - before
        rows.append({"impl": name, **quantiles(taken), "repeats": len(taken), "peak_mib": peak / 2**20})
    taken = milliseconds(replay(step), budget)
    rows.append({"impl": "pathsum, graph", **quantiles(taken), "repeats": len(taken), "peak_mib": None})
    copy_ms = next(row["median_ms"] for row in rows if row["impl"] == "copy")
    ours_ms = rows[0]["median_ms"]
    for row in rows:
        # The floor: the scores read once in each direction and their gradient written, which is three halves of a copy.
        # Of a joiner, whose logits do not exist, these are the encoder's output and its gradient, and say little.
        row |= {"ratio_to_copy": row["median_ms"] / copy_ms, "share_of_floor": 1.5 * copy_ms / row["median_ms"]}
        row |= {"ratio_to_ours": row["median_ms"] / ours_ms}
    return [{"loss": case.loss, "size": case.size, "dtype": str(case.dtype), **row} for row in rows]


def quantiles(taken: list[float]) -> dict[str, float]:
    low, *_, high = statistics.quantiles(taken, n=5)
    return {"median_ms": statistics.median(taken), "p20_ms": low, "p80_ms": high}


def provenance() -> dict[str, Any]:
    versions = {"pathsum": pathsum.__version__, "torch": torch.__version__, "python": platform.python_version()}
    for package in ("triton", "torchaudio"):
        if importlib.util.find_spec(package):
            versions[package] = importlib.import_module(package).__version__
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    described = subprocess.run(command, capture_output=True, text=True, check=False)
    return {
        "device": torch.cuda.get_device_name(),
        "versions": versions,
        "commit": described.stdout.strip() or None,
        "timestamp": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A bar for each contender of each case, in copies of the scores."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no plot: matplotlib is not installed")
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = [f"{row['loss']} {tuple(row['size'])} {row['dtype'][6:]}: {row['impl']}" for row in rows]
    figure, axes = pyplot.subplots(figsize=(9, 0.28 * len(rows) + 1))
    axes.barh(labels, [row["ratio_to_copy"] for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(f"forward and backward, in copies of the scores, {rows[0]['device']}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny shapes: to see that everything runs")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder for gpu.jsonl and gpu.png")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py: torch sees no CUDA or ROCm device", file=sys.stderr)
        return 2
    start = time.monotonic()
    wrong = gate("cuda")
    if wrong:
        print("gate: red. Nothing was measured.", *wrong, sep="\n  ")
        return 1
    print(f"gate: green in {time.monotonic() - start:.0f} s")
    arguments.out.mkdir(parents=True, exist_ok=True)
    cases, shared, rows = QUICK if arguments.quick else CASES, provenance(), []
    for i, case in enumerate(cases):
        left = SECONDS - (time.monotonic() - start)
        if left < 0:
            print(f"out of time: {len(cases) - i} cases not measured")
            break
        # A case has up to five contenders, and half of its time goes to inputs and compilation.
        for row in measure(case, min(2.0, left / (len(cases) - i) / 10)):
            rows.append(row | shared)
            with (arguments.out / "gpu.jsonl").open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(
                f"{row['loss']:11}{row['size']!s:24}{row['dtype'][6:]:9}{row['impl']:16}{row['median_ms']:9.3f} ms  "
                f"{row['ratio_to_copy']:7.2f} copies  {100 * row['share_of_floor']:5.1f} % of the floor"
            )
    draw(rows, arguments.out / "gpu.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
