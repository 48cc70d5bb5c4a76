"""The losses that are measured, ours among them, each behind one small adapter."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from .problem import Problem, Step, Stepper, milliseconds_of


def autograd_step(problem: Problem, loss_of: Callable[..., Any]) -> Stepper:
    import torch

    dtype = getattr(torch, problem.dtype)
    kept = torch.promote_types(dtype, torch.float32)  # NumPy has not all that are smaller
    leaves = [torch.from_numpy(operand).to(dtype).requires_grad_() for operand in problem.operands]

    def step() -> Step:
        start = perf_counter()
        loss = loss_of(*leaves)
        middle = perf_counter()
        gradients = torch.autograd.grad(loss, leaves)
        end = perf_counter()
        return Step(milliseconds_of(start, middle, end), loss.item(), gradients[0].to(kept).numpy())

    return step


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
    options: dict[str, Any] = {"reduction": "sum"}
    if problem.op == "asg_loss":
        labels, *lengths = integers
        return autograd_step(problem, lambda scores, table: function(scores, labels, table, *lengths, **options))
    options["blank"] = problem.blank
    if problem.op == "tdt_loss":
        options["durations"] = range(problem.beside[0].shape[-1])
    elif not problem.beside:
        options["fused_log_softmax"] = problem.kind == "logits"
    return autograd_step(problem, lambda *operands: function(*operands, *integers, **options))


def prepare_pathsum_padded(problem: Problem) -> Stepper:
    import torch

    from pathsum.torch import RNNTLoss

    integers = [torch.from_numpy(array) for array in problem.integers]
    loss = RNNTLoss(problem.blank, reduction="sum")
    return autograd_step(problem, lambda *operands: loss(_padded_logits(*operands), *integers))


def prepare_pathsum_packed(problem: Problem) -> Stepper:
    import torch

    from pathsum.torch import RNNTPackedLoss

    integers = [torch.from_numpy(array) for array in problem.integers]
    loss = RNNTPackedLoss(problem.blank, reduction="sum")
    return autograd_step(problem, lambda *operands: loss(_packed_logits(*operands, problem=problem), *integers))


def prepare_pathsum_ctc(problem: Problem) -> Stepper:
    """``ctc_loss`` of what another loss is given: of the first hypotheses, or of a graph's labels."""
    import torch

    from pathsum.torch import ctc_loss

    targets, frames, lengths = (torch.from_numpy(array) for array in problem.integers)
    if targets.ndim == 3:
        targets, lengths = targets[:, 0], lengths[:, 0]
    options: dict[str, Any] = {"blank": problem.blank, "reduction": "sum"}
    options["fused_log_softmax"] = problem.kind == "logits"
    return autograd_step(problem, lambda scores: ctc_loss(scores, targets, frames, lengths, **options))


def prepare_pathsum_mwer(problem: Problem) -> Stepper:
    import torch

    from pathsum.torch import ctc_mwer_loss

    integers, errors = [torch.from_numpy(array) for array in problem.integers], torch.from_numpy(problem.errors)
    options: dict[str, Any] = {"blank": problem.blank, "reduction": "sum", "fused_log_softmax": True}
    return autograd_step(problem, lambda scores: ctc_mwer_loss(scores, *integers, errors=errors, **options))


def prepare_torch_mwer(problem: Problem) -> Stepper:
    """As torch has it: the loss of each hypothesis, whose scores are a copy of the sample's."""
    return autograd_step(problem, lambda scores: mwer_by_torch(problem, scores))


def mwer_by_torch(problem: Problem, scores: Any) -> Any:
    """The sum over samples of the expected errors less their mean."""
    import torch
    from torch.nn import functional

    targets, frames, lengths, errors = (torch.from_numpy(array) for array in (*problem.integers, problem.errors))
    num_samples, size = lengths.shape
    log_probs = functional.log_softmax(scores, -1).repeat_interleave(size, 1)
    losses = functional.ctc_loss(
        log_probs, targets.flatten(0, 1), frames.repeat_interleave(size), lengths.flatten(), problem.blank, "none"
    )
    shares = (-losses.view(num_samples, size)).softmax(1)
    return (shares * (errors - errors.to(shares).mean(1, keepdim=True))).sum()


def prepare_torch(problem: Problem) -> Stepper:
    import torch
    from torch.nn import functional

    integers = [torch.from_numpy(array) for array in problem.integers]

    def loss_of(scores: Any) -> Any:
        log_probs = functional.log_softmax(scores, -1) if problem.kind == "logits" else scores
        return functional.ctc_loss(log_probs, *integers, blank=problem.blank, reduction="sum")

    return autograd_step(problem, loss_of)


def prepare_torchaudio(problem: Problem) -> Stepper:
    import torch
    from torchaudio.functional import rnnt_loss  # pyright: ignore[reportMissingImports]

    integers = [torch.from_numpy(array).int() for array in problem.integers]
    options: dict[str, Any] = {"blank": problem.blank, "reduction": "sum"}
    return autograd_step(problem, lambda *operands: rnnt_loss(_padded_logits(*operands), *integers, **options))


def prepare_warprnnt_numba(problem: Problem) -> Stepper:
    import torch
    from warprnnt_numba.rnnt_loss.rnnt_pytorch import rnnt_loss  # pyright: ignore[reportMissingImports]

    integers = [torch.from_numpy(array).int() for array in problem.integers]
    options: dict[str, Any] = {"blank": problem.blank, "reduction": "sum"}
    return autograd_step(problem, lambda *operands: rnnt_loss(_padded_logits(*operands), *integers, **options).sum())


def prepare_pathsum_jax_plain(problem: Problem) -> Stepper:
    return prepare_pathsum_jax(problem, impl="jax")


def prepare_pathsum_jax(problem: Problem, impl: str = "auto") -> Stepper:
    import pathsum.jax

    function = getattr(pathsum.jax, problem.op)
    options: dict[str, Any] = {
        "blank": problem.blank,
        "reduction": "sum",
        "fused_log_softmax": problem.kind == "logits",
        "impl": impl,
    }
    integers = [array.astype(np.int32) for array in problem.integers]
    return compiled_step(problem, lambda scores, *integers: function(scores, *integers, **options), *integers)


def prepare_optax(problem: Problem) -> Stepper:
    import optax  # pyright: ignore[reportMissingImports]

    frames, num_labels = problem.scores.shape[0], problem.targets.shape[1]
    logit_paddings = np.arange(frames) >= problem.input_lengths[:, None]
    label_paddings = np.arange(num_labels) >= problem.target_lengths[:, None]
    arguments = (logit_paddings.astype(np.float32), problem.targets.astype(np.int32), label_paddings.astype(np.float32))
    return compiled_step(problem, lambda *all: optax.ctc_loss(*all, blank_id=problem.blank).sum(), *arguments)


def compiled_step(problem: Problem, loss_of: Callable[..., Any], *arguments: np.ndarray) -> Stepper:
    """A step of JAX's for a function of the scores, samples first, and of further arguments."""
    import jax  # pyright: ignore[reportMissingImports]

    time_first = problem.op in ("ctc_loss", "simple_ctc_loss")
    scores = np.ascontiguousarray(problem.scores.swapaxes(0, 1)) if time_first else problem.scores
    scores = jax.numpy.asarray(scores, problem.dtype)
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
        gradient = np.asarray(gradient, np.float32)
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
    given = (labels, tf.cast(scores, problem.dtype), num_labels, frames)

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
        gradient = tf.cast(gradient, tf.float32).numpy()
        return Step(milliseconds, loss, gradient.swapaxes(0, 1) if time_first else gradient)

    return step


def prepare_copy(problem: Problem) -> Stepper:
    import torch

    source = torch.from_numpy(problem.scores).to(getattr(torch, problem.dtype))
    buffer = torch.empty_like(source)
    buffer.fill_(1)  # it is not in memory until it is written to

    def step() -> Step:
        start = perf_counter()
        buffer.copy_(source)
        return Step({"both": 1e3 * (perf_counter() - start)}, 0.0, None)

    return step
