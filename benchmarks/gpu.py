"""Measure the losses on this machine's GPU: correctness first, then times, memory and the share of the byte floor.

    PYTHONPATH=src python benchmarks/gpu.py [--quick | --dry] [--out benchmarks/data/<device>]

Needs torch with a CUDA or ROCm device, and neither network nor anything built. The peers of ``gpu_peers.py`` are
measured beside where they are installed; one that is not, or that fails, is a row that says so. Ends within ten
minutes; writes ``gpu.jsonl``, a row a line, and ``gpu.png``. Exit status 1: a result was not near enough to float64 on
the CPU, and nothing was measured. ``--dry`` goes through gate and contenders once, at tiny sizes, without a device: the
kernels are interpreted, nothing is timed and nothing is written.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gpu_peers
import numpy as np
import torch
from gpu_peers import DURATIONS, Step

import pathsum
from pathsum.bench import librispeech
from pathsum.testing import chain_inputs, grid_inputs
from pathsum.torch import asg_loss, ctc_loss, rnnt_joint_loss, rnnt_loss, simple_ctc_loss, tdt_loss

# Where the gate compares: short enough for the reference on the CPU, long enough for digits to get lost.
GATE = {
    "ctc": (1500, 3, 40, 200),
    "simple_ctc": (1500, 3, 40, 200),
    "rnnt": (3, 200, 60, 50),
    "joint": (3, 60, 20, 50),
    "tdt": (3, 100, 30, 50),
    "asg": (300, 3, 30, 40),
}
BARS = {"ctc": 2e-6, "simple_ctc": 2e-6, "rnnt": 5e-6, "joint": 2e-5, "tdt": 5e-6, "asg": 2e-6}
# Operands in bfloat16 are multiplied in it.
BARS_BFLOAT16 = BARS | {"joint": 2e-2}
HIDDEN = 512
SECONDS = 540
# Their integers are checked on the host: a graph cannot be captured over that.
WAITING = ("tdt",)


class Case(NamedTuple):
    """One loss on one input; ``size`` is (T, N, C, S), of a transducer (N, T, U, V).

    ``"joint"``: the transducer whose joiner is fused, with ``HIDDEN`` units, lengths from half the size to all of it.
    ``"librispeech"``: the same on a batch of the public comparison, whose number ``size`` begins with, then how many of
    its utterances, hidden units and classes; peers are given the logits. ``precision`` of float32 products as torch
    names them; ``peaky``: posteriors as after training.
    """

    loss: str
    size: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    precision: str = "highest"
    peaky: bool = False


LIBRISPEECH = (30, librispeech.HIDDEN_SIZE, librispeech.NUM_CLASSES)
CASES = [
    Case("librispeech", (0, *LIBRISPEECH)),
    Case("librispeech", (0, *LIBRISPEECH), precision="high"),
    Case("librispeech", (0, *LIBRISPEECH), torch.bfloat16),
    Case("librispeech", (0, *LIBRISPEECH), peaky=True),
    Case("librispeech", (10, *LIBRISPEECH)),
    Case("rnnt", (4, 200, 40, 8193)),
    Case("rnnt", (4, 200, 40, 8193), torch.bfloat16),
    Case("rnnt", (8, 100, 20, 1025)),
    Case("rnnt", (8, 400, 100, 500)),
    Case("tdt", (8, 100, 20, 1025)),
    Case("tdt", (4, 200, 40, 8193)),
    Case("tdt", (4, 200, 40, 8193), torch.bfloat16),
    Case("ctc", (1000, 32, 5000, 100)),
    Case("ctc", (1000, 32, 5000, 100), torch.bfloat16),
    Case("ctc", (150, 32, 32, 40)),
    Case("ctc", (1500, 8, 128, 400)),
    Case("asg", (800, 16, 30, 108)),
    Case("asg", (400, 16, 500, 60)),
    Case("joint", (30, 400, 100, 500), torch.bfloat16),
    Case("simple_ctc", (1000, 32, 500, 100)),
]
QUICK = [
    Case("ctc", (50, 4, 20, 5)),
    Case("rnnt", (2, 20, 6, 30)),
    Case("tdt", (2, 20, 6, 30)),
    Case("joint", (2, 20, 6, 30)),
    Case("librispeech", (0, 2, 16, 20)),
    Case("asg", (40, 2, 10, 6)),
]
# Kernels that are interpreted go through a program in milliseconds.
DRY_GATE = {
    "ctc": (4, 2, 5, 2), "simple_ctc": (4, 2, 5, 2), "rnnt": (2, 3, 2, 5), "joint": (2, 3, 2, 5), "tdt": (2, 5, 2, 5),
    "asg": (4, 2, 4, 2),
}  # fmt: skip
DRY = [Case("ctc", (4, 2, 5, 2)), Case("rnnt", (2, 3, 2, 5)), Case("tdt", (2, 5, 2, 5))]


def make(case: Case, device: str, *, std: float = 1.0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Scores (and transitions), or a joiner's operands, as leaves, and the integers, on a device."""
    generator = torch.Generator().manual_seed(1)
    if case.loss == "librispeech":
        return _public_batch(case, device)
    if case.loss == "joint":
        num_samples, num_frames, num_labels, num_classes = case.size
        # For lengths and labels; of logits as few as can be are drawn.
        inputs = grid_inputs(num_samples, num_frames, num_labels, 2, seed=1)
        shapes = ((num_samples, num_frames, HIDDEN), (num_samples, num_labels + 1, HIDDEN), (num_classes, HIDDEN))
        leaves = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        leaves = [*leaves[:2], std * leaves[2] / HIDDEN**0.5, torch.zeros(num_classes, dtype=torch.float64)]
    elif case.loss in ("rnnt", "tdt"):
        inputs = grid_inputs(*case.size, seed=1, std=std, ragged=False)
        leaves = [torch.from_numpy(inputs.logits)]
        if case.loss == "tdt":
            shape = (*inputs.logits.shape[:3], len(DURATIONS))
            leaves.append(std * torch.randn(shape, generator=generator, dtype=torch.float64))
    else:
        inputs = chain_inputs(*case.size, seed=1, std=std, ragged=False)
        leaves = [torch.from_numpy(inputs.logits)]
    if case.loss == "asg":
        leaves.append(torch.randn(case.size[2], case.size[2], generator=generator, dtype=torch.float64))
    leaves = [leaf.to(device, case.dtype).requires_grad_() for leaf in leaves]
    return leaves, [torch.from_numpy(array).to(device) for array in inputs[1:]]


def _public_batch(case: Case, device: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    batch, num_samples, size, num_classes = case.size
    random = np.random.default_rng(batch)
    frames, labels = librispeech.batch_lengths(batch, num_samples).T
    targets = random.integers(0, num_classes - 1, (num_samples, labels.max()))
    operands = librispeech.make_operands(random, frames, targets, labels, num_classes, case.peaky)
    cuts = (np.s_[..., :size], np.s_[..., :size], np.s_[..., :size], np.s_[:])
    leaves = [
        torch.from_numpy(np.ascontiguousarray(operand[cut])).to(device, case.dtype).requires_grad_()
        for operand, cut in zip(operands, cuts, strict=True)
    ]
    return leaves, [torch.from_numpy(array).to(device) for array in (targets, frames.copy(), labels.copy())]


def ours(case: Case, leaves: list[torch.Tensor], integers: list[torch.Tensor], **options: Any) -> Step:
    options |= {"reduction": "sum"}
    if case.loss == "asg":
        targets, *lengths = integers
        return Step(lambda: asg_loss(leaves[0], targets, leaves[1], *lengths, **options), tuple(leaves))
    if case.loss == "tdt":
        return Step(lambda: tdt_loss(*leaves, *integers, DURATIONS, **options), tuple(leaves))
    if case.loss in ("joint", "librispeech"):
        return Step(lambda: rnnt_joint_loss(*leaves, *integers, **options), tuple(leaves))
    if case.loss == "rnnt":
        return Step(lambda: rnnt_loss(leaves[0], *integers, **options), tuple(leaves))
    function = {"ctc": ctc_loss, "simple_ctc": simple_ctc_loss}[case.loss]
    options |= {"fused_log_softmax": True}
    return Step(lambda: function(leaves[0], *integers, **options), tuple(leaves))


def gate(
    device: str, sizes: dict[str, tuple[int, int, int, int]], dtypes: list[torch.dtype], stds: list[float]
) -> list[str]:
    """What is wrong: gradients by Triton against float64 on the CPU, and bits from run to run."""
    wrong = []
    for loss, size in sizes.items():
        for std in stds:
            for dtype in dtypes:
                case = Case(loss, size, dtype)
                leaves, integers = make(case, device, std=std)
                step = ours(case, leaves, integers, impl="triton")
                gradients, again = step(), step()
                if any(not torch.equal(a, b) for a, b in zip(gradients, again, strict=True)):
                    wrong.append(f"{loss} {size} {dtype}: two runs differ in bits")
                exact = [leaf.detach().double().cpu().requires_grad_() for leaf in leaves]
                truth = ours(case, exact, [integer.cpu() for integer in integers])()
                # Of what all frames share the entries are sums over them.
                scales = [max(1.0, float(gradient.abs().max())) for gradient in truth]
                bar = (BARS if dtype == torch.float32 else BARS_BFLOAT16)[loss]
                rounding = torch.finfo(dtype).eps / 2 if dtype != torch.float32 else 0.0
                for gradient, expected, scale in zip(gradients, truth, scales, strict=True):
                    error = (gradient.double().cpu() - expected).abs() - rounding * expected.abs()
                    if not float(error.max()) <= bar * scale:
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


def replay(step: Callable[[], Any]) -> Callable[[], None]:
    """The step captured as a CUDA graph: its time without that of the launches."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def copy_of(tensor: torch.Tensor) -> Callable[[], object]:
    target = torch.empty_like(tensor)
    return lambda: target.copy_(tensor.detach())


def contenders(case: Case, device: str) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """What is run of a case, ours first, and the peers that are missing."""
    torch.set_float32_matmul_precision(case.precision)
    leaves, integers = make(case, device)
    running: dict[str, Callable[[], Any]] = {"pathsum": ours(case, leaves, integers, impl="triton")}
    running["copy"] = copy_of(leaves[0])
    peers = gpu_peers.of(case.loss, leaves, integers) if case.dtype == torch.float32 else {}
    running |= {name: peer for name, peer in peers.items() if isinstance(peer, Step)}
    return running, {name: reason for name, reason in peers.items() if isinstance(reason, str)}


def measure(case: Case, budget: float) -> list[dict[str, Any]]:
    """Rows of a case: ours, ours as a graph, the peers, and a copy of the scores."""
    running, missing = contenders(case, "cuda")
    rows: list[dict[str, Any]] = []
    expected = None
    for name, run in running.items():
        try:
            found = run()
            if name == "pathsum":
                expected = [gradient.detach() for gradient in found]
            difference = None if name == "copy" else _difference(found, expected)
            del found
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            taken = milliseconds(run, budget)
        # A peer that runs out of memory, or that this device is too new for, is told of and not waited for.
        except Exception as error:
            if name in ("pathsum", "copy"):
                raise
            missing[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
            torch.cuda.empty_cache()
            continue
        peak = torch.cuda.max_memory_allocated() - before
        rows.append({
            "impl": name, **quantiles(taken), "repeats": len(taken), "peak_mib": peak / 2**20, "difference": difference
        })  # fmt: skip
    if case.loss not in WAITING:
        taken = milliseconds(replay(running["pathsum"]), budget)
        rows.append({"impl": "pathsum, graph", **quantiles(taken), "repeats": len(taken)})
    copy_ms = next(row["median_ms"] for row in rows if row["impl"] == "copy")
    ours_ms = rows[0]["median_ms"]
    for row in rows:
        # The floor: the scores read once in each direction and their gradient written, which is three halves of a copy.
        # Of a joiner, whose logits do not exist, these are the encoder's output and its gradient, and say little.
        row |= {"ratio_to_copy": row["median_ms"] / copy_ms, "share_of_floor": 1.5 * copy_ms / row["median_ms"]}
        row |= {"ratio_to_ours": row["median_ms"] / ours_ms}
    rows += [{"impl": name, "missing": reason} for name, reason in missing.items()]
    own = {"loss": case.loss, "size": case.size, "dtype": str(case.dtype), "precision": case.precision}
    return [own | {"peaky": case.peaky} | row for row in rows]


def _difference(found: tuple[torch.Tensor, ...], expected: list[torch.Tensor] | None) -> float | None:
    """The greatest difference of an entry of the gradients from ours."""
    if expected is None:
        return None
    return max(float((one - other).abs().max()) for one, other in zip(found, expected, strict=True))


def rehearse() -> int:
    """Gate and contenders, each once, interpreted on the CPU."""
    # bfloat16 is left out: the interpreter multiplies its bits.
    wrong = gate("cpu", DRY_GATE, [torch.float32], [1.0])
    print("gate: red" if wrong else "gate: green", *wrong, sep="\n  ")
    for case in DRY:
        running, missing = contenders(case, "cpu")
        for name, run in running.items():
            try:
                run()
            # As on a device, where peers may fail.
            except Exception as error:
                if name in ("pathsum", "copy"):
                    raise
                missing[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
            else:
                print(f"{case.loss:11}{case.size!s:20}{name:28}ran")
        for name, reason in missing.items():
            print(f"{case.loss:11}{case.size!s:20}{name:28}missing: {reason}")
    return int(bool(wrong))


def quantiles(taken: list[float]) -> dict[str, float]:
    low, *_, high = statistics.quantiles(taken, n=5)
    return {"median_ms": statistics.median(taken), "p20_ms": low, "p80_ms": high}


def provenance() -> dict[str, Any]:
    versions = {"pathsum": pathsum.__version__, "torch": torch.__version__, "python": platform.python_version()}
    for package in ("triton", "torchaudio", "warprnnt_numba", "speechbrain", "transformers", "kernels"):
        if importlib.util.find_spec(package):
            versions[package] = importlib.metadata.version(package.replace("_", "-"))
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

    rows = [row for row in rows if "median_ms" in row]
    labels = [f"{row['loss']} {tuple(row['size'])} {row['dtype'][6:]}: {row['impl']}" for row in rows]
    figure, axes = pyplot.subplots(figsize=(9, 0.28 * len(rows) + 1))
    axes.barh(labels, [row["ratio_to_copy"] for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(f"forward and backward, in copies of the scores, {rows[0]['device']}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def told(row: dict[str, Any]) -> str:
    """A row as a line."""
    options = ("" if row["precision"] == "highest" else " tf32") + (" peaky" if row["peaky"] else "")
    case = f"{row['loss']:12}{row['size']!s:22}{row['dtype'][6:] + options:16}{row['impl']:28}"
    if "missing" in row:
        return f"{case}missing: {row['missing']}"
    peak = f"{row['peak_mib']:9.0f} MiB" if "peak_mib" in row else ""
    return (
        f"{case}{row['median_ms']:9.3f} ms  {row['ratio_to_copy']:7.2f} copies  "
        f"{100 * row['share_of_floor']:5.1f} % of the floor{peak}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny shapes: to see that everything runs")
    parser.add_argument("--dry", action="store_true", help="without a device: everything once, nothing timed")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder for gpu.jsonl and gpu.png")
    arguments = parser.parse_args()
    if arguments.dry:
        # Before Triton is imported, which is at the first launch.
        os.environ["TRITON_INTERPRET"] = "1"
        return rehearse()
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py: torch sees no CUDA or ROCm device", file=sys.stderr)
        return 2
    start = time.monotonic()
    wrong = gate("cuda", GATE, [torch.float32, torch.bfloat16], [1.0, 8.0])
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
        # A case has up to seven contenders, and half of its time goes to inputs and compilation.
        for row in measure(case, min(2.0, left / (len(cases) - i) / 14)):
            rows.append(row | shared)
            with (arguments.out / "gpu.jsonl").open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(told(row))
        torch.cuda.empty_cache()
    draw(rows, arguments.out / "gpu.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
