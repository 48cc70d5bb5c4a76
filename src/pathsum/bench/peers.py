"""The losses that are measured, ours among them, each behind one small adapter; and the process that runs them apart.

This file is also a script for interpreters in which pathsum is not installed (``pathsum bench --peer-python``), so it
imports NumPy alone and every library where its adapter is called.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np


class Problem(NamedTuple):
    """One input, in pathsum's own layout.

    Attributes:
        op: Name of pathsum's function.
        kind: ``"logits"`` or ``"log_probs"``; of a joiner, ``"initial"`` or ``"peaky"``.
        scores: float32; (T, N, C) for the CTC losses, (N, T, U+1, V) or packed (rows, V) for RNN-T; an encoder's output
            (N, T, H) for RNN-T with its joiner.
        targets: (N, S) labels, int64.
        input_lengths: (N,) frames.
        target_lengths: (N,) labels.
        blank: Index of the blank class.
        joiner: Predictor's output (N, U+1, H), weight (V, H) and bias (V,) of the joiner, where there is one.
    """

    op: str
    kind: str
    scores: np.ndarray
    targets: np.ndarray
    input_lengths: np.ndarray
    target_lengths: np.ndarray
    blank: int
    joiner: tuple[np.ndarray, ...] = ()

    @property
    def operands(self) -> tuple[np.ndarray, ...]:
        """What gradients are taken of, the scores first."""
        return self.scores, *self.joiner

    @property
    def integers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Targets and lengths, in the order in which every loss takes them."""
        return self.targets, self.input_lengths, self.target_lengths


class Step(NamedTuple):
    """One forward and backward: milliseconds by direction, the summed loss, and the gradient laid out as the scores.

    The gradients of a joiner's own operands are computed with it, and not kept.
    """

    milliseconds: dict[str, float]
    loss: float
    gradient: np.ndarray | None


Stepper = Callable[[], Step]


class Peer(NamedTuple):
    """An implementation: what must be installed for it, and what it can run."""

    modules: tuple[str, ...]
    distribution: str
    prepare: Callable[[Problem], Stepper]
    runs: frozenset[tuple[str, str]]


def _autograd_step(problem: Problem, loss_of: Callable[..., Any]) -> Stepper:
    import torch

    leaves = [torch.from_numpy(operand).requires_grad_() for operand in problem.operands]

    def step() -> Step:
        start = perf_counter()
        loss = loss_of(*leaves)
        middle = perf_counter()
        gradients = torch.autograd.grad(loss, leaves)
        end = perf_counter()
        return Step(_milliseconds(start, middle, end), loss.item(), gradients[0].numpy())

    return step


def _milliseconds(start: float, middle: float, end: float) -> dict[str, float]:
    spans = {"forward": middle - start, "backward": end - middle, "both": end - start}
    return {direction: 1e3 * seconds for direction, seconds in spans.items()}


def _padded_logits(scores: Any, *joiner: Any) -> Any:
    """The logits (N, T, U+1, V) that a joiner makes; without one the scores are logits."""
    import torch

    if not joiner:
        return scores
    predictor, weight, bias = joiner
    return torch.nn.functional.linear(torch.tanh(scores[:, :, None] + predictor[:, None]), weight, bias)


def _packed_logits(encoder: Any, predictor: Any, weight: Any, bias: Any, *, problem: Problem) -> Any:
    """The logits (rows, V) of the real nodes of each sample, one after another."""
    import torch

    sizes = zip(problem.input_lengths.tolist(), problem.target_lengths.tolist(), strict=True)
    nodes = [
        (encoder[n, :frames, None] + predictor[n, : labels + 1]).flatten(0, 1)
        for n, (frames, labels) in enumerate(sizes)
    ]
    return torch.nn.functional.linear(torch.tanh(torch.cat(nodes)), weight, bias)


def prepare_pathsum(problem: Problem) -> Stepper:
    import torch

    import pathsum.torch

    function = getattr(pathsum.torch, problem.op)
    integers = [torch.from_numpy(array) for array in problem.integers]
    options: dict[str, Any] = {"blank": problem.blank, "reduction": "sum"}
    if not problem.joiner:
        options["fused_log_softmax"] = problem.kind == "logits"
    return _autograd_step(problem, lambda *operands: function(*operands, *integers, **options))


def prepare_pathsum_padded(problem: Problem) -> Stepper:
    import torch

    from pathsum.torch import RNNTLoss

    integers = [torch.from_numpy(array) for array in problem.integers]
    loss = RNNTLoss(problem.blank, reduction="sum")
    return _autograd_step(problem, lambda *operands: loss(_padded_logits(*operands), *integers))


def prepare_pathsum_packed(problem: Problem) -> Stepper:
    import torch

    from pathsum.torch import RNNTPackedLoss

    integers = [torch.from_numpy(array) for array in problem.integers]
    loss = RNNTPackedLoss(problem.blank, reduction="sum")
    return _autograd_step(problem, lambda *operands: loss(_packed_logits(*operands, problem=problem), *integers))


def prepare_torch(problem: Problem) -> Stepper:
    import torch
    from torch.nn import functional

    integers = [torch.from_numpy(array) for array in problem.integers]

    def loss_of(scores: Any) -> Any:
        log_probs = functional.log_softmax(scores, -1) if problem.kind == "logits" else scores
        return functional.ctc_loss(log_probs, *integers, blank=problem.blank, reduction="sum")

    return _autograd_step(problem, loss_of)


def prepare_torchaudio(problem: Problem) -> Stepper:
    import torch
    from torchaudio.functional import rnnt_loss  # pyright: ignore[reportMissingImports]

    integers = [torch.from_numpy(array).int() for array in problem.integers]
    options: dict[str, Any] = {"blank": problem.blank, "reduction": "sum"}
    return _autograd_step(problem, lambda *operands: rnnt_loss(_padded_logits(*operands), *integers, **options))


def prepare_warprnnt_numba(problem: Problem) -> Stepper:
    import torch
    from warprnnt_numba.rnnt_loss.rnnt_pytorch import rnnt_loss  # pyright: ignore[reportMissingImports]

    integers = [torch.from_numpy(array).int() for array in problem.integers]
    options: dict[str, Any] = {"blank": problem.blank, "reduction": "sum"}
    return _autograd_step(problem, lambda *operands: rnnt_loss(_padded_logits(*operands), *integers, **options).sum())


def prepare_pathsum_jax(problem: Problem) -> Stepper:
    import pathsum.jax

    function = getattr(pathsum.jax, problem.op)
    options: dict[str, Any] = {
        "blank": problem.blank,
        "reduction": "sum",
        "fused_log_softmax": problem.kind == "logits",
    }
    integers = [array.astype(np.int32) for array in problem.integers]
    return _compiled_step(problem, lambda scores, *integers: function(scores, *integers, **options), *integers)


def prepare_optax(problem: Problem) -> Stepper:
    import optax  # pyright: ignore[reportMissingImports]

    frames, num_labels = problem.scores.shape[0], problem.targets.shape[1]
    logit_paddings = np.arange(frames) >= problem.input_lengths[:, None]
    label_paddings = np.arange(num_labels) >= problem.target_lengths[:, None]
    arguments = (logit_paddings.astype(np.float32), problem.targets.astype(np.int32), label_paddings.astype(np.float32))
    return _compiled_step(problem, lambda *all: optax.ctc_loss(*all, blank_id=problem.blank).sum(), *arguments)


def _compiled_step(problem: Problem, loss_of: Callable[..., Any], *arguments: np.ndarray) -> Stepper:
    """A step of JAX's for a function of the scores, samples first, and of further arguments."""
    import jax  # pyright: ignore[reportMissingImports]

    time_first = problem.op in ("ctc_loss", "simple_ctc_loss")
    scores = np.ascontiguousarray(problem.scores.swapaxes(0, 1)) if time_first else problem.scores
    given = jax.device_put((scores, *arguments), jax.devices("cpu")[0])
    forward = jax.jit(loss_of).lower(*given).compile()
    both = jax.jit(jax.value_and_grad(loss_of)).lower(*given).compile()

    # Forward and backward are one compiled function: backward alone cannot be timed.
    def step() -> Step:
        start = perf_counter()
        jax.block_until_ready(forward(*given))
        middle = perf_counter()
        loss, gradient = jax.block_until_ready(both(*given))
        end = perf_counter()
        milliseconds = {"forward": 1e3 * (middle - start), "both": 1e3 * (end - middle)}
        gradient = np.asarray(gradient)
        return Step(milliseconds, float(loss), gradient.swapaxes(0, 1) if time_first else gradient)

    return step


def prepare_pathsum_tensorflow(problem: Problem) -> Stepper:
    import pathsum.tensorflow

    function = getattr(pathsum.tensorflow, problem.op)
    options: dict[str, Any] = {"blank_index": problem.blank, "fused_log_softmax": problem.kind == "logits"}
    return _graph_step(problem, lambda labels, *given: function(labels, *given, **options))


def prepare_tensorflow(problem: Problem) -> Stepper:
    import tensorflow as tf  # pyright: ignore[reportMissingImports]

    options: dict[str, Any] = {"logits_time_major": False, "blank_index": problem.blank}
    return _graph_step(problem, lambda *given: tf.nn.ctc_loss(*given, **options))


def prepare_tensorflow_sparse(problem: Problem) -> Stepper:
    import tensorflow as tf  # pyright: ignore[reportMissingImports]

    used = np.arange(problem.targets.shape[1]) < problem.target_lengths[:, None]
    labels: Any = tf.SparseTensor(np.argwhere(used), problem.targets[used].astype(np.int32), problem.targets.shape)
    options: dict[str, Any] = {"label_length": None, "logits_time_major": False, "blank_index": problem.blank}
    return _graph_step(
        problem, lambda _, logits, __, lengths: tf.nn.ctc_loss(labels, logits, logit_length=lengths, **options)
    )


def prepare_tf_seq2seq_losses(problem: Problem) -> Stepper:
    import tf_seq2seq_losses  # pyright: ignore[reportMissingImports]

    names = {"ctc_loss": "classic_ctc_loss", "simple_ctc_loss": "simplified_ctc_loss"}
    function = getattr(tf_seq2seq_losses, names[problem.op])
    return _graph_step(problem, lambda *given: function(*given, blank_index=problem.blank))


def _graph_step(problem: Problem, loss_of: Callable[..., Any]) -> Stepper:
    """A step of TensorFlow's for a function of labels, scores, samples first, and lengths of both."""
    import tensorflow as tf  # pyright: ignore[reportMissingImports]

    time_first = problem.op in ("ctc_loss", "simple_ctc_loss")
    scores = np.ascontiguousarray(problem.scores.swapaxes(0, 1)) if time_first else problem.scores
    labels, frames, num_labels = (tf.constant(array.astype(np.int32)) for array in problem.integers)
    given = (labels, tf.constant(scores), num_labels, frames)

    def differentiate(labels: Any, scores: Any, *lengths: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(scores)
            loss = tf.reduce_sum(loss_of(labels, scores, *lengths))
        return loss, tape.gradient(loss, scores)

    forward = tf.function(lambda *given: tf.reduce_sum(loss_of(*given))).get_concrete_function(*given)
    both = tf.function(differentiate).get_concrete_function(*given)

    # A graph's forward and backward are one function, as JAX's are.
    def step() -> Step:
        start = perf_counter()
        forward(*given).numpy()
        middle = perf_counter()
        loss, gradient = both(*given)
        loss = float(loss)
        end = perf_counter()
        milliseconds = {"forward": 1e3 * (middle - start), "both": 1e3 * (end - middle)}
        gradient = gradient.numpy()
        return Step(milliseconds, loss, gradient.swapaxes(0, 1) if time_first else gradient)

    return step


def prepare_copy(problem: Problem) -> Stepper:
    import torch

    source = torch.from_numpy(problem.scores)
    buffer = torch.from_numpy(np.zeros_like(problem.scores))
    buffer.fill_(1)  # zeros are not in memory until they are written to

    def step() -> Step:
        start = perf_counter()
        buffer.copy_(source)
        return Step({"both": 1e3 * (perf_counter() - start)}, 0.0, None)

    return step


_CTC = frozenset({("ctc_loss", "logits"), ("ctc_loss", "log_probs")})
_JOINT = frozenset({("rnnt_joint_loss", "initial")})
_EITHER_JOINT = _JOINT | {("rnnt_joint_loss", "peaky")}
_RNNT = frozenset({("rnnt_loss", "logits")})
_SCORES = _CTC | _RNNT | {("simple_ctc_loss", "logits"), ("rnnt_packed_loss", "logits")}

PEERS = {
    "pathsum": Peer(("pathsum", "torch"), "pathsum", prepare_pathsum, _SCORES | _EITHER_JOINT),
    "pathsum-packed": Peer(("pathsum", "torch"), "pathsum", prepare_pathsum_packed, _EITHER_JOINT),
    "pathsum-padded": Peer(("pathsum", "torch"), "pathsum", prepare_pathsum_padded, _JOINT),
    "pathsum-jax": Peer(("pathsum", "jax"), "pathsum", prepare_pathsum_jax, _SCORES - {("rnnt_packed_loss", "logits")}),
    "torch": Peer(("torch",), "torch", prepare_torch, _CTC),
    "torchaudio": Peer(("torch", "torchaudio"), "torchaudio", prepare_torchaudio, _RNNT | _JOINT),
    "warprnnt-numba": Peer(("torch", "warprnnt_numba"), "warprnnt-numba", prepare_warprnnt_numba, _RNNT | _JOINT),
    "optax": Peer(("jax", "optax"), "optax", prepare_optax, _CTC - {("ctc_loss", "log_probs")}),
    "pathsum-tensorflow": Peer(
        ("pathsum", "tensorflow"), "pathsum", prepare_pathsum_tensorflow, _SCORES - {("rnnt_packed_loss", "logits")}
    ),
    "tensorflow": Peer(("tensorflow",), "tensorflow", prepare_tensorflow, _CTC - {("ctc_loss", "log_probs")}),
    "tensorflow-sparse": Peer(
        ("tensorflow",), "tensorflow", prepare_tensorflow_sparse, _CTC - {("ctc_loss", "log_probs")}
    ),
    "tf-seq2seq-losses": Peer(
        ("tensorflow", "tf_seq2seq_losses"),
        "tf-seq2seq-losses",
        prepare_tf_seq2seq_losses,
        frozenset({("ctc_loss", "logits"), ("simple_ctc_loss", "logits")}),
    ),
    "copy": Peer(("torch",), "torch", prepare_copy, _SCORES),
}

# Our losses, of a joiner fused and of its logits, that take part whatever peers are asked for; and those that do as the
# peers do, installed and asked for. The gate holds all of them to what is promised.
ALWAYS = ("pathsum", "pathsum-packed", "pathsum-padded")
OURS = (*ALWAYS, "pathsum-jax", "pathsum-tensorflow")

RECORDED = (
    "numpy",
    "numba",
    "llvmlite",
    "torch",
    "torchaudio",
    "warprnnt-numba",
    "jax",
    "jaxlib",
    "optax",
    "tensorflow",
    "tf-seq2seq-losses",
)


def installed(module: str) -> bool:
    """Whether a module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def available() -> list[str]:
    """The names in ``PEERS`` whose modules are installed in this interpreter."""
    return [name for name, peer in PEERS.items() if all(map(installed, peer.modules))]


def versions() -> dict[str, str | None]:
    """Versions of this interpreter and of what decides the numbers in it; None where not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in RECORDED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def save(problem: Problem, folder: Path) -> None:
    """Write a problem for another process."""
    for name in ("scores", "targets", "input_lengths", "target_lengths"):
        np.save(folder / f"{name}.npy", getattr(problem, name))
    for index, operand in enumerate(problem.joiner):
        np.save(folder / f"joiner-{index}.npy", operand)
    (folder / "problem.json").write_text(json.dumps([problem.op, problem.kind, problem.blank]))


def load(folder: Path) -> Problem:
    """Read what ``save`` wrote; the arrays are read into memory, not mapped."""
    op, kind, blank = json.loads((folder / "problem.json").read_text())
    arrays = [np.load(folder / f"{name}.npy") for name in ("scores", "targets", "input_lengths", "target_lengths")]
    joiner = tuple(np.load(path) for path in sorted(folder.glob("joiner-*.npy")))
    return Problem(op, kind, *arrays, blank=blank, joiner=joiner)


def _resident_kib(peak: bool) -> float:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest / 1024 if sys.platform == "darwin" else largest
    line = status.partition("VmHWM:" if peak else "VmRSS:")[2]
    return float(line.split()[0])


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # the peak so far then counts as well, which is no more than what is held once large inputs are loaded


def serve(num_threads: int) -> None:
    """Answer requests, one JSON object a line, until the input ends.

    ``load`` makes a peer ready, ``step`` runs it once, ``peak`` runs it once and tells the memory it took beyond what
    was held before.
    """
    # A library may print; nothing but answers may reach the one who asked.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    if hasattr(os, "sched_setaffinity"):
        # XLA has no setting for the number of threads: it takes the cores it may run on.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:num_threads])
    problems: dict[str, Problem] = {}
    steppers: dict[str, Stepper] = {}
    for line in sys.stdin:
        try:
            answer = _answer(json.loads(line), problems, steppers)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


def _answer(request: dict[str, Any], problems: dict[str, Problem], steppers: dict[str, Stepper]) -> dict[str, Any]:
    task, peer = request["do"], request.get("peer", "")
    if task == "describe":
        return {"peers": available(), "versions": versions()}
    if task == "load":
        folder = request["folder"]
        if folder not in problems:
            problems.clear()
            steppers.clear()
            problems[folder] = load(Path(folder))
        steppers[peer] = PEERS[peer].prepare(problems[folder])
        return {}
    if task == "step":
        milliseconds, loss, gradient = steppers[peer]()
        if "gradient" in request and gradient is not None:
            np.save(request["gradient"], gradient)
        return {"milliseconds": milliseconds, "loss": loss}
    if task == "peak":
        _forget_peak()
        held = _resident_kib(peak=False)
        result = steppers[peer]()
        return {"peak_kib": _resident_kib(peak=True) - held, "milliseconds": result.milliseconds}
    raise ValueError(f"unknown request {task!r}")


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its modules are not to be found under their bare names
    if len(sys.argv) > 2:
        import resource

        # Of data, not of addresses: frameworks reserve more of those than there is memory.
        resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[2]), int(sys.argv[2])))
    serve(int(sys.argv[1]))
