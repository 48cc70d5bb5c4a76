"""Prove and measure the losses on this machine's GPU.

    PYTHONPATH=src python benchmarks/device.py check [--seconds 230] [--out DIR] [--dry]
    PYTHONPATH=src python benchmarks/device.py time  [--seconds 285] [--out DIR] [--dry]

``check``: gradients against the reference in float64 on the device itself, bits from run to run, second derivatives,
steps that wait for nothing and steps captured as graphs. ``time``: medians, a replayed graph, the host's share, peak
memory, the share of each kernel, the peers of ``gpu_peers.py`` and a copy of the same bytes.

Inputs are drawn on the device, nothing is compiled but for it, and neither network nor anything built is needed. Each
result is printed and written, a line of DIR/check.jsonl or DIR/gpu.jsonl, as soon as there is one; no failure stops
those that follow, but for a lost context. Exit status 0: all is well. 1: a result was wrong, or failed; DIR/errors.txt
has the traces. 2: no device. 3: the device's context is lost. ``--dry`` goes through everything at tiny sizes without
a device: the kernels are interpreted, and nothing is timed.
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
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gpu_peers
import numpy as np
import torch
from gpu_peers import DURATIONS, Step
from torch import Tensor

import pathsum
from pathsum.bench import librispeech
from pathsum.graphs import linear, over_ctc
from pathsum.torch import (
    ar_rnnt_loss,
    asg_loss,
    ctc_loss,
    lattice_loss,
    multi_blank_rnnt_loss,
    rnnt_joint_loss,
    rnnt_loss,
    simple_ctc_loss,
    tdt_loss,
    wildcard_rnnt_loss,
)

FLOAT32, FLOAT64, BFLOAT16 = torch.float32, torch.float64, torch.bfloat16
HIDDEN = 512
CHAINS = ("ctc", "simple_ctc", "asg", "lattice")
JOINERS = ("joint", "librispeech")
# Graphs are laid out on the host: that waits, and a graph of the device cannot be captured over it.
WAITING = ("lattice",)
LOST = 3


class Case(NamedTuple):
    """One loss on one input; ``size`` is (T, N, C, S), of a transducer (N, T, U, V).

    ``"joint"``: the transducer whose joiner is fused, with ``HIDDEN`` units. ``"librispeech"``: the same on a batch of
    the public comparison, whose number ``size`` begins with, then how many of its utterances, hidden units and
    classes; peers are given the logits. ``precision`` of float32 products as torch names them; ``peaky``: posteriors
    as after training.
    """

    loss: str
    size: tuple[int, int, int, int]
    dtype: torch.dtype = FLOAT32
    std: float = 1.0
    precision: str = "highest"
    peaky: bool = False


# What a program holds, and what takes strips; each row aligned or not; no label at all.
CHECKED: dict[str, list[tuple[int, int, int, int]]] = {
    "rnnt": [(3, 50, 20, 300), (2, 60, 1100, 5), (4, 7, 0, 4)],
    "ctc": [(300, 3, 40, 60), (2600, 2, 9, 1200)],
    "simple_ctc": [(200, 3, 40, 60)],
    "asg": [(120, 3, 30, 40), (60, 2, 300, 20)],
    "lattice": [(120, 3, 40, 20)],
    "tdt": [(3, 40, 20, 50)],
    "joint": [(3, 40, 15, 500)],
    "hat": [(3, 40, 20, 50)],
    "constrained": [(3, 40, 20, 50)],
    "multi_blank": [(3, 40, 20, 50)],
    "wildcard": [(3, 40, 20, 50)],
    "band": [(3, 40, 20, 50)],
}
SECOND = {
    "rnnt": (2, 20, 8, 50), "ctc": (60, 3, 40, 20), "simple_ctc": (60, 3, 40, 20), "asg": (60, 3, 30, 20),
    "tdt": (2, 20, 8, 20), "joint": (2, 20, 8, 50), "lattice": (60, 3, 40, 10),
}  # fmt: skip
DRY_CHECKED: dict[str, list[tuple[int, int, int, int]]] = {
    loss: [(3, 1, 5, 1) if loss in CHAINS else (2, 3, 1, 5)] for loss in CHECKED
}
DRY_SECOND = {"rnnt": (1, 2, 1, 4)}

# Bounds of the gradients that the documentation states, by dtype where they are not float32's.
BARS = dict.fromkeys(CHECKED, 5e-6) | {"ctc": 2e-6, "simple_ctc": 2e-6, "asg": 2e-6, "lattice": 2e-6, "joint": 2e-5}
BAR_FLOAT64 = 1e-10
# Operands in bfloat16 are multiplied in it.
BAR_BFLOAT16_JOINT = 2e-2
BAR_SECOND = 1e-4

LIBRISPEECH = (30, librispeech.HIDDEN_SIZE, librispeech.NUM_CLASSES)
# Those with goals first: the time may run out.
TIMED = [
    Case("rnnt", (4, 200, 40, 8193)),
    Case("ctc", (1000, 32, 5000, 100)),
    Case("rnnt", (8, 100, 20, 1025)),
    Case("tdt", (8, 100, 20, 1025)),
    Case("asg", (800, 16, 30, 108)),
    Case("librispeech", (0, *LIBRISPEECH), BFLOAT16),
    Case("librispeech", (0, *LIBRISPEECH), precision="high"),
    Case("librispeech", (0, *LIBRISPEECH)),
    Case("librispeech", (0, *LIBRISPEECH), peaky=True),
    Case("rnnt", (4, 200, 40, 8193), BFLOAT16),
    Case("tdt", (4, 200, 40, 8193)),
    Case("ctc", (1000, 32, 5000, 100), BFLOAT16),
    Case("rnnt", (8, 400, 100, 500)),
    Case("ctc", (150, 32, 32, 40)),
    Case("ctc", (1500, 8, 128, 400)),
    Case("asg", (400, 16, 500, 60)),
    Case("simple_ctc", (1000, 32, 500, 100)),
]
DRY_TIMED = [Case("ctc", (4, 2, 5, 2)), Case("rnnt", (1, 3, 2, 5)), Case("tdt", (1, 3, 2, 5))]


def make(case: Case, device: str) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Leaves and integers on a device: the first sample about half as long as the others, which are full."""
    if case.loss == "librispeech":
        return _public_batch(case, device)
    generator = torch.Generator(device).manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return case.std * torch.randn(shape, generator=generator, device=device)

    def lengths(number: int, longest: int, first: int) -> Tensor:
        filled = torch.full((number,), longest, device=device)
        filled[:1] = first
        return filled

    if case.loss in CHAINS:
        num_frames, num_samples, num_classes, num_labels = case.size
        targets = torch.randint(1, num_classes, (num_samples, num_labels), generator=generator, device=device)
        if case.loss == "asg":
            # Without repetitions: ASG has no class between two labels that are the same.
            targets = torch.arange(num_labels, device=device).expand(num_samples, -1) * 7 % num_classes
        shortest = max(num_frames // 2, min(num_frames, 2 * num_labels + 1))
        ends = (lengths(num_samples, num_frames, shortest), lengths(num_samples, num_labels, max(num_labels // 2, 1)))
        leaves = [draw(num_frames, num_samples, num_classes)]
        leaves += [draw(num_classes, num_classes)] if case.loss == "asg" else []
    else:
        num_samples, num_frames, num_labels, num_classes = case.size
        width = num_labels + 1
        # Classes 0 and 1 are the big blanks of multi-blank RNN-T, the last one is the blank.
        targets = torch.randint(2, num_classes - 1, (num_samples, num_labels), generator=generator, device=device)
        shortest = max(num_frames // 2, 1)
        ends = (lengths(num_samples, num_frames, shortest), lengths(num_samples, num_labels, num_labels // 2))
        if case.loss == "joint":
            weight = draw(num_classes, HIDDEN) / HIDDEN**0.5
            leaves = [
                draw(num_samples, num_frames, HIDDEN),
                draw(num_samples, width, HIDDEN),
                weight,
                draw(num_classes),
            ]
        else:
            leaves = [draw(num_samples, num_frames, width, num_classes)]
        if case.loss == "tdt":
            leaves.append(draw(num_samples, num_frames, width, len(DURATIONS)))
    return [leaf.to(case.dtype).requires_grad_() for leaf in leaves], (targets.contiguous(), *ends)


def _public_batch(case: Case, device: str) -> tuple[list[Tensor], tuple[Tensor, ...]]:
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
    return leaves, tuple(torch.from_numpy(array).to(device) for array in (targets, frames.copy(), labels.copy()))


def ours(case: Case, leaves: list[Tensor], integers: tuple[Tensor, ...], impl: str = "triton") -> Step:
    """The case's loss, summed, of leaves."""
    options: dict[str, Any] = {"reduction": "sum", "impl": impl}
    targets, *ends = integers

    def forward() -> Tensor:
        scores = leaves[0]
        if case.loss in ("ctc", "simple_ctc"):
            function = ctc_loss if case.loss == "ctc" else simple_ctc_loss
            return function(scores, targets, *ends, fused_log_softmax=True, **options)
        if case.loss == "lattice":
            graphs = [over_ctc(linear(labels), scores.shape[2]) for labels in targets.tolist()]
            return lattice_loss(scores, graphs, ends[0], fused_log_softmax=True, **options)
        if case.loss == "asg":
            return asg_loss(scores, targets, leaves[1], *ends, **options)
        if case.loss == "tdt":
            return tdt_loss(*leaves, targets, *ends, DURATIONS, **options)
        if case.loss in JOINERS:
            return rnnt_joint_loss(*leaves, targets, *ends, **options)
        if case.loss == "multi_blank":
            return multi_blank_rnnt_loss(
                scores, targets, *ends, big_blanks=(0, 1), big_blank_durations=(2, 4), **options
            )
        if case.loss == "wildcard":
            return wildcard_rnnt_loss(scores, targets, *ends, **options)
        if case.loss == "band":
            num_labels = targets.shape[1]
            aligned = torch.arange(num_labels, device=targets.device) * ends[0][:, None] // max(num_labels, 1)
            return ar_rnnt_loss(scores, targets, *ends, aligned, left=3, right=3, **options)
        if case.loss == "hat":
            options["hat"] = True
        if case.loss == "constrained":
            options["rnnt_type"] = "constrained"
        return rnnt_loss(scores, targets, *ends, **options)

    return Step(forward, tuple(leaves))


class Report:
    """Where results go, how much time is left for more, and whether all was well."""

    def __init__(self, path: Path, seconds: float, shared: dict[str, Any]):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.shared, self.start, self.seconds = path, shared, time.monotonic(), seconds
        self.good = True

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.start)

    def say(self, row: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row | self.shared) + "\n")
        print(*(f"{name}={value}" for name, value in row.items() if value is not None), flush=True)

    def tried(self, row: dict[str, Any], function: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Say what a function finds, or how it failed."""
        if self.left < 5:
            self.say(row | {"result": "no time"})
            return None
        begin = time.monotonic()
        try:
            found = {"result": "ok"} | function()
        # Whatever it is: what follows may be well.
        except Exception as error:
            self.good = False
            self.say(row | {"result": "failed", "error": f"{type(error).__name__}: {error}".partition("\n")[0][:400]})
            with self.path.with_name("errors.txt").open("a") as file:
                file.write(f"\n{row}\n{traceback.format_exc()[-4000:]}")
            if _is_lost():
                self.say(row | {"result": "the context is lost"})
                sys.exit(LOST)
            return None
        self.good &= found["result"] == "ok"
        self.say(row | found | {"seconds": round(time.monotonic() - begin, 2)})
        return found


def _is_lost() -> bool:
    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").item()
    except RuntimeError:
        return True
    return False


def verdict(found: list[Tensor], again: list[Tensor], truth: list[Tensor], bar: float) -> dict[str, Any]:
    """Of what all frames share the entries are sums over them: bounds are relative to the greatest, if above 1."""
    off = 0.0
    for one, exact in zip(found, truth, strict=True):
        rounding = torch.finfo(one.dtype).eps / 2 if one.dtype.itemsize == 2 else 0.0
        error = (one.double() - exact).abs() - rounding * exact.abs()
        # A NaN fails, which a maximum of two floats could lose.
        greatest = float(error.max()) / max(1.0, float(exact.abs().max()))
        off = greatest if not greatest <= off else off
    same = all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    return {"result": "ok" if off <= bar and same else "wrong", "off": off, "bar": bar, "same_bits": same}


def gradients(case: Case, device: str) -> dict[str, Any]:
    leaves, integers = make(case, device)
    step = ours(case, leaves, integers)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    truth = ours(case, exact, integers, "reference")
    bar = BAR_FLOAT64 if case.dtype == FLOAT64 else BARS[case.loss]
    bar = BAR_BFLOAT16_JOINT if case.loss == "joint" and case.dtype == BFLOAT16 else bar
    found = verdict(list(step()), list(step()), list(truth()), bar)
    loss, exact_loss = float(step.forward().detach()), float(truth.forward().detach())
    found["loss_off"] = abs(loss - exact_loss) / max(1.0, abs(exact_loss))
    # A loss is a sum of samples, rounded to its dtype.
    return found if found["loss_off"] <= 1e-5 else found | {"result": "wrong"}


def products(case: Case, device: str) -> dict[str, Any]:
    """The Hessian times a random direction."""
    leaves, integers = make(case, device)
    generator = torch.Generator(device).manual_seed(2)
    along = [torch.randn(leaf.shape, generator=generator, device=device) for leaf in leaves]

    def product(impl: str, dtype: torch.dtype) -> list[Tensor]:
        own = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
        first = torch.autograd.grad(ours(case, own, integers, impl).forward(), own, create_graph=True)
        slope = sum((one * way.to(dtype)).sum() for one, way in zip(first, along, strict=True))
        return list(torch.autograd.grad(slope, own))

    return verdict(product("triton", FLOAT32), product("triton", FLOAT32), product("reference", FLOAT64), BAR_SECOND)


def waits_for_nothing(case: Case) -> dict[str, Any]:
    step = ours(case, *make(case, "cuda"))
    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {}


def captured(step: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A step as a graph, and where a replay of it leaves its results."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results


def replays(case: Case) -> dict[str, Any]:
    leaves, integers = make(case, "cuda")
    step = ours(case, leaves, integers)
    graph, results = captured(step)
    with torch.no_grad():
        leaves[0].mul_(0.5)
    graph.replay()
    same = all(torch.equal(one, other) for one, other in zip(results, step(), strict=True))
    return {"result": "ok" if same else "wrong"}


def check(report: Report, device: str) -> None:
    dry = device == "cpu"
    checked, second = (DRY_CHECKED, DRY_SECOND) if dry else (CHECKED, SECOND)
    for loss, sizes in checked.items():
        for size in sizes:
            # Interpreted, bfloat16 is multiplied by its bits.
            kinds = [(FLOAT32, 1.0)] + ([] if dry else [(FLOAT32, 8.0), (BFLOAT16, 1.0)])
            kinds += [] if dry else [(FLOAT64, 1.0)]
            for dtype, std in kinds:
                case = Case(loss, size, dtype, std)
                report.tried(named("gradient", case), lambda case=case: gradients(case, device))
    for loss, size in second.items():
        case = Case(loss, size)
        report.tried(named("second derivative", case), lambda case=case: products(case, device))
    for loss, sizes in checked.items():
        if loss not in WAITING and not dry:
            case = Case(loss, sizes[0])
            report.tried(named("waits for nothing", case), lambda case=case: waits_for_nothing(case))
            report.tried(named("graph", case), lambda case=case: replays(case))


def named(test: str, case: Case) -> dict[str, Any]:
    return {"test": test, "loss": case.loss, "size": case.size, "dtype": str(case.dtype)[6:], "std": case.std}


def milliseconds(step: Callable[[], Any], budget: float) -> dict[str, float]:
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
    low, *_, high = statistics.quantiles(taken, n=5)
    return {"median_ms": statistics.median(taken), "p20_ms": low, "p80_ms": high, "repeats": len(taken)}


def host_milliseconds(step: Callable[[], Any]) -> float:
    """Until the step has been handed over, the device being idle; the median of seven."""
    taken = []
    for _ in range(7):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        step()
        taken.append(1e3 * (time.perf_counter() - begin))
    torch.cuda.synchronize()
    return statistics.median(taken)


def shares(step: Callable[[], Any]) -> dict[str, Any]:
    """Milliseconds of the kernels that a step launches, the longest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    kernels = [(event.key[:48], event.count, event.device_time_total / 1e3) for event in profile.key_averages()]
    kernels.sort(key=lambda kernel: -kernel[2])
    return {
        "kernels": [(name, count, round(spent, 4)) for name, count, spent in kernels[:10]],
        "launches": sum(count for _, count, _ in kernels), "busy_ms": round(sum(spent for *_, spent in kernels), 4),
    }  # fmt: skip


def measured(step: Callable[[], Any], budget: float) -> dict[str, Any]:
    """Peak memory beyond what was held, and times."""
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    return {**milliseconds(step, budget), "peak_mib": round(peak, 1)}


def measure(report: Report, case: Case, device: str, budget: float) -> None:
    """Rows of a case: a copy of the scores, ours, ours as a graph, and the peers."""
    torch.set_float32_matmul_precision(case.precision)
    row = {"loss": case.loss, "size": case.size, "dtype": str(case.dtype), "precision": case.precision}
    row["peaky"] = case.peaky
    leaves, integers = make(case, device)
    step, target = ours(case, leaves, integers), torch.empty_like(leaves[0])
    copy = Step(lambda: target.copy_(leaves[0].detach()), ())

    def timed(run: Callable[[], Any], budget: float = budget) -> dict[str, Any]:
        if device == "cpu":
            run()
            return {}
        return measured(run, budget)

    copied = report.tried(row | {"impl": "copy"}, lambda: timed(copy.forward, budget / 4))

    def own() -> dict[str, Any]:
        begin = time.monotonic()
        step()
        if device == "cpu":
            return {}
        torch.cuda.synchronize()
        first = {"first_call_s": round(time.monotonic() - begin, 2)}
        found = first | timed(step) | {"host_ms": round(host_milliseconds(step), 4)} | shares(step)
        if copied is not None:
            # The floor: the scores read once in each direction and their gradient written, three halves of a copy. Of
            # a joiner, whose logits do not exist, these are the encoder's output and its gradient, and say little.
            found["ratio_to_copy"] = found["median_ms"] / copied["median_ms"]
            found["share_of_floor"] = 1.5 / found["ratio_to_copy"]
        return found

    found = report.tried(row | {"impl": "pathsum"}, own)
    if found is None:
        return
    if device != "cpu" and case.loss not in WAITING:
        report.tried(row | {"impl": "pathsum, graph"}, lambda: milliseconds(captured(step)[0].replay, budget))
    peers = gpu_peers.of(case.loss, leaves, list(integers)) if case.dtype == FLOAT32 else {}
    expected = [gradient.detach() for gradient in step()]
    for name, peer in peers.items():
        report.say(row | {"impl": name} | _beside(peer, expected, timed, found.get("median_ms")))


def _beside(
    peer: Step | str, expected: list[Tensor], timed: Callable[[Step], dict[str, Any]], own: float | None
) -> dict[str, Any]:
    """What a peer takes, and how far its gradients are from ours; or why it is missing, which is no fault of ours."""
    if isinstance(peer, str):
        return {"missing": peer}
    try:
        difference = max(float((a - b).abs().max()) for a, b in zip(peer(), expected, strict=True))
        found = timed(peer)
    # One that runs out of memory, or that this device is too new for, is told of.
    except Exception as error:
        if _is_lost():
            raise
        torch.cuda.empty_cache()
        return {"missing": f"{type(error).__name__}: {error}".partition("\n")[0][:200]}
    return found | {"difference": difference} | ({} if own is None else {"ratio_to_ours": found["median_ms"] / own})


def time_all(report: Report, device: str) -> None:
    cases = DRY_TIMED if device == "cpu" else TIMED
    for i, case in enumerate(cases):
        # A case has up to seven contenders, and half of its time goes to compilation.
        budget = min(1.5, max(report.left, 0.0) / (len(cases) - i) / 14)
        measure(report, case, device, budget)
        if device != "cpu":
            torch.cuda.empty_cache()


def provenance(device: str) -> dict[str, Any]:
    versions = {"pathsum": pathsum.__version__, "torch": torch.__version__, "python": platform.python_version()}
    for package in ("triton", "torchaudio", "warprnnt_numba", "speechbrain", "transformers", "kernels", "jax", "optax"):
        if importlib.util.find_spec(package):
            versions[package] = importlib.metadata.version(package.replace("_", "-"))
    described = None
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
        described = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    # There is no git on that machine.
    except FileNotFoundError:
        described = None
    return {
        "device": "cpu" if device == "cpu" else torch.cuda.get_device_name(),
        "versions": versions,
        "commit": described,
        "timestamp": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["check", "time"])
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT", "bench-out")), help="folder for the rows"
    )
    parser.add_argument("--seconds", type=float, default=240, help="when to begin nothing more")
    parser.add_argument("--dry", action="store_true", help="without a device: everything once, tiny, nothing timed")
    arguments = parser.parse_args()
    device = "cpu" if arguments.dry else "cuda"
    if arguments.dry:
        # Before Triton is imported, which is at the first launch.
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        print("benchmarks/device.py: torch sees no CUDA or ROCm device", file=sys.stderr)
        return 2
    warnings.simplefilter("ignore")
    name = "check" if arguments.what == "check" else "gpu"
    report = Report(arguments.out / f"{name}.jsonl", arguments.seconds, provenance(device))
    (check if arguments.what == "check" else time_all)(report, device)
    print("all is well" if report.good else "not all is well", f"after {time.monotonic() - report.start:.0f} s")
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
