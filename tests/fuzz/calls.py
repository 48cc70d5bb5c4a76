"""Malformed calls of every public function of a front end, one argument at a time, in forked children.

    python tests/fuzz/calls.py --count 20000 --seed 0
    python tests/fuzz/calls.py --front jax --count 2000 --seed 0    or tensorflow, or compat: the drop-ins

A call ends well where it returns, or raises an error of the library's. What is reported: a signal, a hang, an error of
anybody else's, and nonsense that is accepted. The same seed makes the same calls.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import json
import os
import random
import resource
import select
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    # torch loads Triton for some calls of meta tensors, and its library crashes where TensorFlow's was loaded before.
    # The tests load the library alone: whether kernels are interpreted is decided when Triton is imported.
    with contextlib.suppress(ImportError):
        import triton as triton

import drop_ins
import numpy as np
import torch

import pathsum
from pathsum import errors
from pathsum.graphs import ctc_topology, linear, over_ctc

N, T, U, V, H = 2, 5, 2, 6, 3
SECONDS = 60  # a call that takes longer hangs: the sizes are tiny, and the longest is to compile a kernel
MEMORY = 6 * 2**30
OWN = (
    errors.InvalidValueError,
    errors.InvalidTypeError,
    errors.ImplementationError,
    errors.NotDifferentiableError,
    errors.GradientConsumedError,
)
# Functions of no scores, and of several devices.
LEFT_OUT = {"word_spans", "jax.sharded_ctc_loss"}
CALLED = {"joint_fn", "predict", "join"}


def base(name: str) -> dict[str, Any]:
    """The required arguments of a legal call, tensors of torch's; ``jax.ctc_loss`` is JAX's."""
    if name.startswith("compat."):
        return drop_ins.base(name)
    front, _, name = name.rpartition(".")
    if front:
        return _base_of(front, name)
    torch.manual_seed(0)
    grid = torch.randn(N, T, U + 1, V)
    chain = torch.randn(T, N, V).log_softmax(2)
    targets = torch.tensor([[1, 2], [3, 4]])
    lengths, labels = torch.tensor([5, 4]), torch.tensor([2, 1])
    rows = int((lengths * (labels + 1)).sum())
    graph = over_ctc(linear([1, 2]), V)
    batch_first = (
        "align" in name or "posteriors" in name or "decode" in name or "viterbi" in name or "labellings" in name
    )
    if batch_first and not name.startswith("lattice"):
        chain = chain.transpose(0, 1).contiguous()
    values = {
        "log_probs": chain,
        "inputs": chain,
        "logits": _logits(name, rows, grid),
        "token_logits": grid,
        "duration_logits": torch.randn(N, T, U + 1, 3),
        "durations": [0, 1, 2],
        "big_blank_durations": [2, 3],
        "big_blanks": [1, 2],
        "targets": torch.tensor([[3, 4], [4, 3]]) if "multi_blank" in name else targets,
        "input_lengths": lengths,
        "logit_lengths": lengths,
        "encoder_lengths": lengths,
        "target_lengths": labels,
        "hypotheses": torch.tensor([[[1, 2], [2, 0]], [[3, 4], [1, 1]]]),
        "hypothesis_lengths": torch.tensor([[2, 1], [1, 2]]),
        "references": targets,
        "num_samples": 3,
        "transitions": torch.randn(V, V),
        "costs": _costs(name),
        "alignment": torch.tensor([[1, 3], [2, 2]]),
        "left": 2,
        "right": 2,
        "encoder_out": torch.randn(N, T, H),
        "predictor_out": torch.randn(N, U + 1, H),
        "weight": torch.randn(V, H),
        "bias": torch.randn(V),
        "hidden": torch.randn(T, N, H),
        "joint_fn": lambda encoder, predictor: torch.cat([encoder + predictor] * 2, -1),
        "predict": _predict,
        "join": _join("tdt" in name),
        "blank": 0,
        "loss": "ctc",
        "path": torch.tensor([0, 1, 1, 0, 2]),
        "scores": {"lfmmi_loss": chain, "crf_ctc_loss": torch.randn(T, N, 20)}.get(name, torch.zeros(5)),
        "graphs": graph,
        "numerators": [graph] * N,
        "denominator": ctc_topology(V),
        "state_len": 1,
    }
    required = [p for p, of in inspect.signature(function(name)).parameters.items() if of.default is of.empty]
    if "mwer" in name:
        required.append("references")  # or the errors
    return {p: values[p] for p in required}


def _base_of(front: str, name: str) -> dict[str, Any]:
    """The same of JAX's or TensorFlow's, whose scores are batch-major and whose lengths may be left out."""
    own = base("ctc_loss" if name == "classic_ctc_loss" else name)
    scores = own.get("inputs", own.get("log_probs", own.get("logits", own.get("scores", own.get("hidden")))))
    if "rnnt" not in name and "decode" not in name:
        scores = scores.transpose(0, 1).contiguous()
    required = inspect.signature(function(f"{front}.{name}")).parameters
    lengths = {"logit_lengths": own.get("input_lengths"), "labels": own.get("targets")}
    lengths |= {"label_length": own.get("target_lengths"), "logit_length": own.get("logit_lengths")}
    values = own | lengths | dict.fromkeys(("inputs", "log_probs", "logits", "scores", "hidden"), scores)
    wanted = [p for p, of in required.items() if of.default is of.empty]
    return {p: values[p] for p in (*wanted, *(("references",) if "mwer" in name else ()))}


def _logits(name: str, rows: int, grid: torch.Tensor) -> torch.Tensor:
    if "packed" in name:
        return torch.randn(rows, V)
    return torch.stack([grid, grid.flip(1)], 1) if "mwer" in name else grid  # of 2 hypotheses


def _costs(name: str) -> torch.Tensor:
    if "rnnt" in name:
        return torch.rand(N, T, U + 1, 2)
    if "lattice" in name:
        return torch.rand(over_ctc(linear([1, 2]), V).num_arcs)
    return torch.rand(T, N, V)


def _predict(last: torch.Tensor, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Behind three labels there is nothing but blanks: however many a frame may have, decoding ends."""
    said = torch.zeros(len(last), 1) if state is None else state + 1
    return torch.where(said > 2, 99.0, 0.0) * torch.tensor([1.0, 0.0, 0.0]), said


def _join(with_durations: bool) -> Callable[..., Any]:
    def join(encoder: torch.Tensor, predictor: torch.Tensor) -> Any:
        logits = torch.cat([encoder + predictor, encoder], -1)
        return (logits, logits[..., :3]) if with_durations else logits

    return join


def function(name: str) -> Callable[..., Any]:
    if name.startswith("compat."):
        return drop_ins.function(name)
    front, _, own = name.rpartition(".")
    return getattr(importlib.import_module(f"pathsum.{front or 'torch'}"), own)


def names(front: str = "torch") -> list[str]:
    if front == "compat":
        return drop_ins.names()
    prefix = "" if front == "torch" else f"{front}."
    everything = [prefix + name for name in importlib.import_module(f"pathsum.{front}").__all__]
    return sorted(name for name in everything if inspect.isfunction(function(name)) and name not in LEFT_OUT)


def _as_front_has_it(name: str, value: Any) -> Any:
    """Tensors of torch's as another front end's users have them; what NumPy has not either stays torch's."""
    front = name.split(".")[-2] if "." in name else ""
    if front not in ("jax", "tensorflow", "optax", "keras", "tf_seq2seq_losses") or not isinstance(value, torch.Tensor):
        return value
    try:
        array = value.detach().numpy()
        return importlib.import_module("jax.numpy").asarray(array) if front in ("jax", "optax") else array
    except (RuntimeError, TypeError):
        return value


class Nonsense(NamedTuple):
    """A value, and whether no argument of any function may be it."""

    text: str
    make: Callable[[Any], Any]
    never: bool = False


def _integers(value: Any) -> Any:
    return torch.as_tensor(value) if isinstance(value, (torch.Tensor, list)) else torch.tensor(0)


def _filled(number: float) -> Callable[[Any], Any]:
    def fill(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return torch.full_like(value, number) if value.is_floating_point() else torch.full(value.shape, int(number))
        return [number] * len(value) if isinstance(value, list) else number

    return fill


def _one_of(number: int) -> Callable[[Any], Any]:
    """One entry of many is the number."""

    def put(value: Any) -> Any:
        changed = _integers(value).clone()
        if changed.numel() == 0 or changed.is_complex():
            return number
        changed = changed.double() if changed.is_floating_point() else changed.long()
        changed.view(-1)[-1] = number
        return changed.tolist() if isinstance(value, list) else changed

    return put


def _tensor(change: Callable[[torch.Tensor], Any]) -> Callable[[Any], Any]:
    return lambda value: change(value if isinstance(value, torch.Tensor) else _integers(value))


def _pool() -> list[Nonsense]:
    constants: list[tuple[str, Any]] = [
        (repr(value), value)
        for value in (
            None, True, False, 0, 1, -1, 2, 3, -2, 7, 99, -99, 2**31 - 1, 2**31, -(2**31), 2**62, 2**63 - 1, 2**63,
            -(2**63), 2**64, 10**30, 0.0, 0.5, -0.5, 1.0, 1e-300, 1e300, -1e300, float("nan"), float("inf"),
            -float("inf"), "", "auto", "none", "mean", "cpu", [], [[]], [[[]]], (), [None], ["a"], [1, "a"], [1.5, 2],
            [[1], [2, 3]], [[1, 2], [3]], [[1, 2], [3, 4], [5, 1]], [1, 2], [1, 2, 3], [2**62, 2**62], [2**63, 1],
            [-1, -1], [float("nan")] * 2, [True, False], range(2), {1, 2},
        )
    ]  # fmt: skip
    never = ["nonsense", b"bytes", 1j, {"a": 1}, object(), Ellipsis, int, NotImplemented]
    numbers = [0, -1, 1, 99, 2**31, 2**62, 2**63 - 1, -(2**63)]
    pool = [Nonsense(text, lambda _, value=value: value) for text, value in constants]
    pool += [Nonsense(f"never {type(value).__name__}", lambda _, value=value: value, True) for value in never]
    pool += [Nonsense(f"filled {x}", _filled(x)) for x in (0, 1, -1, 99, 1e30, float("inf"), -float("inf"))]
    pool += [Nonsense(f"one {x}", _one_of(x)) for x in numbers]
    dtypes = (
        "float16 bfloat16 float32 float64 int8 int16 int32 int64 uint8 bool complex64 float8_e4m3fn uint16"
    ).split()
    pool += [Nonsense(f"dtype {d}", _tensor(lambda x, d=d: x.to(getattr(torch, d)))) for d in dtypes]
    changes: dict[str, Callable[[torch.Tensor], Any]] = {
        "meta": lambda x: x.to("meta"),
        "sparse": lambda x: x.to_sparse(),
        "csr": lambda x: x.reshape(len(x), -1).to_sparse_csr(),
        "nested": lambda x: torch.nested.nested_tensor([x, x]),
        "quantised": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.quint8),
        "mkldnn": lambda x: x.float().to_mkldnn(),
        "negative bit": lambda x: torch._neg_view(x.float()),
        "conjugate": lambda x: x.to(torch.complex64).conj(),
        "grad": lambda x: x.detach().float().requires_grad_(),
        "transposed": lambda x: x.transpose(0, -1),
        "flipped": lambda x: x.flip(0),
        "strided": lambda x: x.repeat_interleave(2, -1)[..., ::2],
        "expanded": lambda x: x[:1].expand(x.shape),
        "empty": lambda x: x[:0],
        "shorter": lambda x: x[:-1],
        "narrower": lambda x: x[..., :-1],
        "no last": lambda x: x[..., :0],
        "longer": lambda x: torch.cat([x, x]),
        "one more axis": lambda x: x[None],
        "last axis": lambda x: x[..., None],
        "first": lambda x: x[0],
        "scalar": lambda x: x.reshape(-1)[0],
        "flat": lambda x: x.reshape(-1),
        "numpy": lambda x: x.numpy(),
        "numpy objects": lambda x: x.numpy().astype(object),
        "numpy text": lambda x: x.numpy().astype(str),
        "numpy dates": lambda x: x.numpy().astype("int64").astype("datetime64[s]"),
        "numpy longdouble": lambda x: x.numpy().astype(np.longdouble),
        "numpy big-endian": lambda x: x.numpy().astype(x.numpy().dtype.newbyteorder(">")),
        "numpy unsigned": lambda x: x.numpy().astype("int64").astype(np.uint64) - np.uint64(9),
        "list": lambda x: x.tolist(),
        "tuple": lambda x: tuple(x),
        "parameter": lambda x: torch.nn.Parameter(x.float()),
        "nan": lambda x: torch.full(x.shape, float("nan")),
    }
    return pool + [Nonsense(text, _tensor(change)) for text, change in changes.items()]


class Call(NamedTuple):
    function: str
    argument: str
    nonsense: Nonsense

    def __str__(self) -> str:
        return f"{self.function}({self.argument}={self.nonsense.text})"


def calls(seed: int, front: str = "torch") -> Iterator[Call]:
    """Every function, argument and value, in an order of the seed's, again and again."""
    rng = random.Random(seed)
    pool, everything = _pool(), []
    for name in names(front):
        for argument in inspect.signature(function(name)).parameters:
            if argument not in CALLED:
                everything += [Call(name, argument, nonsense) for nonsense in pool]
    while True:
        rng.shuffle(everything)
        yield from everything


def run(call: Call) -> str:
    """How a call ends: "" where it ends well."""
    arguments = base(call.function)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            default = inspect.signature(function(call.function)).parameters[call.argument].default
            usual = arguments.get(call.argument, None if default is inspect.Parameter.empty else default)
            arguments[call.argument] = call.nonsense.make(usual)
    except Exception:
        return ""  # this value cannot be made of that argument
    for name in ("log_probs", "inputs", "logits", "token_logits", "encoder_out", "hidden", "acts"):
        scores = arguments.get(name)
        if name != call.argument and isinstance(scores, torch.Tensor) and ("loss" in call.function.lower()):
            arguments[name] = scores.clone().requires_grad_()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = {name: _as_front_has_it(call.function, value) for name, value in arguments.items()}
            result = function(call.function)(**given)
            if isinstance(result, torch.Tensor) and result.requires_grad and not result.is_meta:
                result.sum().backward()
    except OWN:
        return ""
    except Exception as error:
        if isinstance(error, (TypeError, ValueError)) and str(error).startswith(
            f"{function(call.function).__name__}: "
        ):
            return ""
        place = traceback.extract_tb(error.__traceback__)[-1]
        if place.filename == __file__:
            return ""  # of a function that was passed in
        if call.function.startswith("compat.") and _raised_by_us(place):
            return ""  # an error of the peer's kind
        message = (str(error).strip() or "no message").splitlines()[0][:120]
        return f"{type(error).__name__}: {message} [{os.path.basename(place.filename)}:{place.lineno} {place.name}]"
    return "accepted" if call.nonsense.never and not _taken(call) else ""


def _taken(call: Call) -> bool:
    """What drop-ins take as their peers do: what changes nothing, and words that are no reduction, for "none"."""
    return call.argument in ("device", "unique") or (call.argument == "reduction" and call.nonsense.text == "never str")


def _raised_by_us(place: traceback.FrameSummary) -> bool:
    return Path(place.filename).is_relative_to(Path(pathsum.__file__).parent) and str(place.line).startswith(
        ("raise ", "assert ")
    )


def _serve(todo: list[Call], first: int, output: int) -> None:
    """In a child: run calls, telling of each that it begins and how it ends, a line each."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    for index in range(first, len(todo)):
        os.write(output, f"{json.dumps([index, None])}\n".encode())
        os.write(output, f"{json.dumps([index, run(todo[index])])}\n".encode())


def fuzz(todo: list[Call], seconds: float = SECONDS) -> Iterator[tuple[Call, str]]:
    """What went wrong, call by call; a child that dies or hangs is followed by another for the calls after it."""
    first = 0
    while first < len(todo):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(reader)
                _serve(todo, first, writer)
                status = 0
            finally:
                os._exit(status)
        os.close(writer)
        running, hangs = None, False
        pending = b""
        while True:
            if not select.select([reader], [], [], seconds)[0]:
                hangs = True
                os.kill(child, signal.SIGKILL)
            received = os.read(reader, 65536)
            if not received:
                break
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                index, outcome = json.loads(line)
                running, first = (index if outcome is None else None), index + 1
                if outcome:
                    yield todo[index], outcome
        os.close(reader)
        status = os.waitpid(child, 0)[1]
        if running is not None:
            end = f"signal {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else f"exit {status}"
            yield todo[running], f"hangs for {seconds:g} s" if hangs else end


def legal(front: str = "torch") -> Iterator[tuple[str, str]]:
    """Functions whose legal call fails: a fuzzer of those finds nothing. Run in this process."""
    for name in names(front):
        try:
            function(name)(**{key: _as_front_has_it(name, value) for key, value in base(name).items()})
        except Exception as error:
            yield name, f"{type(error).__name__}: {error}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--front", choices=["torch", "jax", "tensorflow", "compat"], default="torch")
    parser.add_argument("--only", default="", help="functions whose name contains this")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="a call that takes longer hangs")
    options = parser.parse_args()
    todo: list[Call] = []
    for call in calls(options.seed, options.front):
        if len(todo) == options.count:
            break
        if options.only in call.function:
            todo.append(call)
    kinds: Counter[str] = Counter()
    for call, outcome in fuzz(todo, options.seconds):
        kinds[outcome.partition(" ")[0]] += 1
        print(f"{call}: {outcome}", flush=True)
    print(f"{len(todo)} calls, seed {options.seed}: {dict(kinds) or 'all end well'}")
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
