"""The numba kernels as registered operators: tensors and integers in, tensors out.

A lattice crosses as its tensors, so that an operator knows nothing of the loss that posed it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathsum.kernels.numba import chain, dense, grid, grid_arcs, joint, row_scores
from pathsum.kernels.numba.rows import BFLOAT16, FLOAT16, NATIVE, strided
from pathsum.kernels.protocol import DenseSaved, Saved
from pathsum.lattice import ArcLattice, ChainLattice, DenseLattice, GridLattice
from pathsum.problems.rnnt_types import earliness, pose_rnnt_type
from pathsum.torch import _memory

_LIBRARY = torch.library.Library("pathsum", "DEF")
_ENCODINGS = {torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}


def _operator(function: Callable[..., Any]) -> Any:
    """Register a function as ``torch.ops.pathsum.<name>`` on the CPU.

    By the plain registration: ``torch.library.custom_op`` imports the compiler at the first call, a second of it.
    """
    name = function.__name__
    _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))
    _LIBRARY.impl(name, function, "CPU")
    return getattr(torch.ops.pathsum, name)


def _array(tensor: Tensor) -> tuple[np.ndarray, int]:
    """The memory of a tensor as NumPy sees it; half precision as its bits."""
    encoding = _ENCODINGS.get(tensor.dtype, NATIVE)
    tensor = tensor.detach()
    return (tensor if encoding == NATIVE else tensor.view(torch.uint16)).numpy(), encoding


def _empty_like(tensor: Tensor) -> Tensor:
    """Contiguous memory for a gradient."""
    return _memory.empty(tensor.shape, tensor.dtype)


def work_dtype(scores: Tensor) -> torch.dtype:
    """The dtype of softmax statistics, and of losses: never below float32."""
    return torch.float64 if scores.dtype == torch.float64 else torch.float32


@_operator
def chain_forward(
    scores: Tensor,
    transitions: Tensor | None,
    input_lengths: Tensor,
    num_states: Tensor,
    stay_labels: Tensor,
    step_labels: Tensor,
    skips: Tensor,
    stay_transitions: Tensor | None,
    step_transitions: Tensor | None,
    start_state: int,
    num_final: int,
    shared_labels: bool,
    logits: bool,
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses, softmax maxima and sums, stay and step posteriors, of scores (N, T, C) and transitions (C, C)."""
    lattice = _chain(
        input_lengths, num_states, stay_labels, step_labels, skips, start_state, num_final, shared_labels,
        stay_transitions, step_transitions,
    )  # fmt: skip
    array, encoding = _array(scores)
    saved = chain.forward(
        strided(array, encoding),
        scores.shape[2],
        lattice,
        None if transitions is None else _table(transitions, scores),
        logits=logits,
        need_gradient=need_gradient,
        num_threads=torch.get_num_threads(),
    )
    return _tensors(saved)


@_operator
def chain_backward(
    grad_losses: Tensor,
    scores: Tensor,
    input_lengths: Tensor,
    num_states: Tensor,
    stay_labels: Tensor,
    step_labels: Tensor,
    skips: Tensor,
    start_state: int,
    num_final: int,
    shared_labels: bool,
    logits: bool,
    losses: Tensor,
    maxima: Tensor,
    sums: Tensor,
    stay: Tensor,
    step: Tensor,
    time_major: bool,
) -> Tensor:
    """The gradient (N, T, C), laid out in memory as (T, N, C) where ``time_major``."""
    lattice = _chain(input_lengths, num_states, stay_labels, step_labels, skips, start_state, num_final, shared_labels)
    array, encoding = _array(scores)
    gradient = _empty_like(scores.transpose(0, 1)).transpose(0, 1) if time_major else _empty_like(scores)
    chain.backward(
        grad_losses.detach().numpy(),
        strided(array, encoding),
        scores.shape[2],
        lattice,
        _saved(losses, maxima, sums, stay, step),
        strided(*_array(gradient)),
        scores.shape[1],
        logits=logits,
        num_threads=torch.get_num_threads(),
    )
    return gradient


@_operator
def chain_transition_gradient(
    grad_losses: Tensor,
    transitions: Tensor,
    input_lengths: Tensor,
    num_states: Tensor,
    stay_labels: Tensor,
    step_labels: Tensor,
    skips: Tensor,
    stay_transitions: Tensor,
    step_transitions: Tensor,
    start_state: int,
    num_final: int,
    shared_labels: bool,
    losses: Tensor,
    maxima: Tensor,
    sums: Tensor,
    stay: Tensor,
    step: Tensor,
) -> Tensor:
    """The gradient (C, C)."""
    lattice = _chain(
        input_lengths, num_states, stay_labels, step_labels, skips, start_state, num_final, shared_labels,
        stay_transitions, step_transitions,
    )  # fmt: skip
    saved = _saved(losses, maxima, sums, stay, step)
    gradient = chain.transition_gradient(grad_losses.detach().numpy(), transitions.shape[0], lattice, saved)
    return torch.from_numpy(gradient).to(transitions.dtype)


@_operator
def dense_forward(
    scores: Tensor, transitions: Tensor, input_lengths: Tensor, need_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses, and what ``DenseSaved`` names, of scores (N, T, C) and transitions (C, C)."""
    array, encoding = _array(scores)
    saved = dense.forward(
        strided(array, encoding),
        scores.shape[2],
        DenseLattice(input_lengths.numpy(), scores.shape[2]),
        _table(transitions, scores),
        need_gradient=need_gradient,
        num_threads=torch.get_num_threads(),
    )
    losses, extended, gamma, alpha, entering = map(torch.from_numpy, saved)
    return losses, extended, gamma, alpha, entering


@_operator
def dense_backward(
    grad_losses: Tensor,
    scores: Tensor,
    input_lengths: Tensor,
    losses: Tensor,
    extended: Tensor,
    gamma: Tensor,
    alpha: Tensor,
    entering: Tensor,
    time_major: bool,
) -> Tensor:
    """The gradient (N, T, C), laid out in memory as (T, N, C) where ``time_major``."""
    gradient = _empty_like(scores.transpose(0, 1)).transpose(0, 1) if time_major else _empty_like(scores)
    dense.backward(
        grad_losses.detach().numpy(),
        scores.shape[2],
        DenseLattice(input_lengths.numpy(), scores.shape[2]),
        _dense_saved(losses, extended, gamma, alpha, entering),
        strided(*_array(gradient)),
        scores.shape[1],
        num_threads=torch.get_num_threads(),
    )
    return gradient


@_operator
def dense_transition_gradient(
    grad_losses: Tensor,
    scores: Tensor,
    transitions: Tensor,
    input_lengths: Tensor,
    losses: Tensor,
    extended: Tensor,
    gamma: Tensor,
    alpha: Tensor,
    entering: Tensor,
) -> Tensor:
    """The gradient (C, C)."""
    array, encoding = _array(scores)
    gradient = dense.transition_gradient(
        grad_losses.detach().numpy(),
        strided(array, encoding),
        scores.shape[2],
        DenseLattice(input_lengths.numpy(), scores.shape[2]),
        _table(transitions, scores),
        _dense_saved(losses, extended, gamma, alpha, entering),
        num_threads=torch.get_num_threads(),
    )
    return torch.from_numpy(gradient).to(transitions.dtype)


@_operator
def grid_forward(
    scores: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    blank: int,
    logits: bool,
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses, softmax maxima and sums, blank and label posteriors, of padded (4-D) or packed (2-D) scores."""
    lattice = _grid(logit_lengths, target_lengths, targets, row_offsets, blank)
    saved = grid.forward(
        _rows(scores, lattice),
        scores.shape[-1],
        lattice,
        logits=logits,
        need_gradient=need_gradient,
        num_threads=torch.get_num_threads(),
    )
    return _tensors(saved)


@_operator
def grid_backward(
    grad_losses: Tensor,
    scores: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    blank: int,
    logits: bool,
    fastemit_lambda: float,
    clamp: float,
    losses: Tensor,
    maxima: Tensor,
    sums: Tensor,
    blank_posteriors: Tensor,
    label_posteriors: Tensor,
) -> Tensor:
    """The gradient with respect to the scores, in a fresh contiguous tensor."""
    gradient = _empty_like(scores)
    saved = _saved(losses, maxima, sums, blank_posteriors, label_posteriors)
    lattice = _grid(logit_lengths, target_lengths, targets, row_offsets, blank)
    _write_grid_gradient(grad_losses, scores, lattice, saved, gradient, logits, fastemit_lambda, clamp)
    return gradient


def grid_backward_over_scores(
    grad_losses: Tensor,
    scores: Tensor,
    lattice: GridLattice,
    saved: Saved,
    fastemit_lambda: float,
    clamp: float,
) -> Tensor:
    """The gradient written over the logits themselves."""
    _write_grid_gradient(grad_losses, scores, lattice, saved, scores, True, fastemit_lambda, clamp)
    torch.autograd.graph.increment_version(scores)
    return scores.detach()


def _write_grid_gradient(
    grad_losses: Tensor,
    scores: Tensor,
    lattice: GridLattice,
    saved: Saved,
    out: Tensor,
    logits: bool,
    fastemit_lambda: float,
    clamp: float,
) -> None:
    grid.backward(
        grad_losses.detach().numpy(),
        _rows(scores, lattice),
        scores.shape[-1],
        lattice,
        saved,
        _rows(out, lattice),
        logits=logits,
        fastemit_lambda=fastemit_lambda,
        clamp=clamp,
        num_threads=torch.get_num_threads(),
    )


@_operator
def planes_forward(
    blank_scores: Tensor,
    label_scores: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    blank: int,
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, blank and label posteriors, of the two score planes of a grid, one score a row, in float64."""
    scores = [plane.detach().numpy().astype(np.float64) for plane in (blank_scores, label_scores)]
    # NaN and +inf are not defined, and then the sum of the two is not below +inf.
    undefined = np.where(scores[0] + scores[1] < np.inf, 0.0, np.nan)
    losses = grid.solve(
        scores[0],
        scores[1],
        undefined,
        _grid(logit_lengths, target_lengths, targets, row_offsets, blank),
        need_gradient=need_gradient,
        num_threads=torch.get_num_threads(),
    )
    return torch.from_numpy(losses), torch.from_numpy(scores[0]), torch.from_numpy(scores[1])


@_operator
def planes_backward(
    grad_losses: Tensor, row_offsets: Tensor, losses: Tensor, blank_posteriors: Tensor, label_posteriors: Tensor
) -> tuple[Tensor, Tensor]:
    """Minus the posteriors, times the upstream gradient of their sample; 0 where no path exists."""
    scale = torch.where(losses == torch.inf, 0.0, -grad_losses).where(~losses.isnan(), torch.nan)
    scale = torch.repeat_interleave(scale, row_offsets.diff())
    alive = scale != 0
    return (
        torch.where(alive, scale * blank_posteriors, 0.0),
        torch.where(alive, scale * label_posteriors, 0.0),
    )


@_operator
def row_scores_forward(
    scores: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    first_frames: Tensor,
    last_frames: Tensor,
    classes: Sequence[int],
    lone: int,
    logits: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Planes (K, rows), zeros (N,) that stand for the samples, softmax maxima and sums, of padded or packed scores."""
    lattice = _arcs(logit_lengths, target_lengths, targets, row_offsets, first_frames, last_frames)
    planes, maxima, sums = row_scores.forward(
        _rows(scores, lattice),
        scores.shape[-1],
        lattice,
        row_scores.Wanted(np.array(classes), lone, logits),
        num_threads=torch.get_num_threads(),
    )
    samples = torch.zeros(len(logit_lengths), dtype=torch.float64)
    return torch.from_numpy(planes), samples, torch.from_numpy(maxima), torch.from_numpy(sums)


@_operator
def row_scores_backward(
    grad_planes: Tensor,
    upstream: Tensor,
    scores: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    first_frames: Tensor,
    last_frames: Tensor,
    classes: Sequence[int],
    lone: int,
    logits: bool,
    clamp: float,
    maxima: Tensor,
    sums: Tensor,
) -> Tensor:
    """The gradient with respect to the scores, upstream[n] * clamp(that of the planes), in a fresh tensor."""
    lattice = _arcs(logit_lengths, target_lengths, targets, row_offsets, first_frames, last_frames)
    gradient = _empty_like(scores)
    row_scores.backward(
        grad_planes.detach().contiguous().numpy(),
        upstream.detach().contiguous().numpy(),
        _rows(scores, lattice),
        scores.shape[-1],
        lattice,
        row_scores.Wanted(np.array(classes), lone, logits),
        maxima.numpy(),
        sums.numpy(),
        _rows(gradient, lattice),
        clamp=clamp,
        num_threads=torch.get_num_threads(),
    )
    return gradient


@_operator
def arcs_forward(
    planes: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    row_offsets: Tensor,
    frames_on: Sequence[int],
    labels_on: Sequence[int],
    label_ends: bool,
    skips_to: int | None,
    skip_score: float,
    need_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Losses and the posteriors of the arcs, of planes (K, rows) of log-scores."""
    lattice = _arcs(
        logit_lengths, target_lengths, None, row_offsets, None, None, tuple(zip(frames_on, labels_on, strict=True)),
        label_ends, skips_to,
    )  # fmt: skip
    # A copy: the kernel writes the posteriors over its planes.
    posteriors = np.array(planes.detach().numpy(), np.float64, order="C")
    losses = grid_arcs.solve(
        posteriors, lattice, skip_score, need_gradient=need_gradient, num_threads=torch.get_num_threads()
    )
    return torch.from_numpy(losses), torch.from_numpy(posteriors)


@_operator
def arcs_backward(grad_losses: Tensor, row_offsets: Tensor, losses: Tensor, posteriors: Tensor) -> Tensor:
    """Minus the posteriors, times the upstream gradient of their sample; 0 where no path exists."""
    scale = torch.where(losses == torch.inf, 0.0, -grad_losses).where(~losses.isnan(), torch.nan)
    # By NumPy: for planes this small waking the threads that torch would is most of the time.
    return torch.from_numpy(np.repeat(scale.numpy(), np.diff(row_offsets.numpy())) * posteriors.numpy())


@_operator
def joint_forward(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    blank: int,
    activation: str,
    tile_memory: int,
    rnnt_type: str,
    delay_penalty: float,
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses, softmax maxima and sums, blank and label posteriors, of logits made a tile at a time."""
    lattice = _grid(logit_lengths, target_lengths, targets, row_offsets, blank)
    joiner = _joiner(encoder, predictor, weight, bias, activation)
    saved = joint.forward(
        joiner,
        lattice,
        _matmul(weight.dtype),
        rows_per_tile=joint.tile_rows(joiner, tile_memory),
        need_gradient=need_gradient,
        num_threads=torch.get_num_threads(),
        solve=_solve_of(lattice, rnnt_type, delay_penalty),
    )
    return _tensors(saved)


@_operator
def joint_backward(
    grad_losses: Tensor,
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor,
    row_offsets: Tensor,
    blank: int,
    activation: str,
    tile_memory: int,
    rnnt_type: str,
    fastemit_lambda: float,
    clamp: float,
    gate: float | None,
    losses: Tensor,
    maxima: Tensor,
    sums: Tensor,
    blank_posteriors: Tensor,
    label_posteriors: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients with respect to encoder, predictor, weight and bias."""
    joiner = _joiner(encoder, predictor, weight, bias, activation)
    gradients = joint.backward(
        grad_losses.detach().numpy(),
        joiner,
        _grid(logit_lengths, target_lengths, targets, row_offsets, blank),
        _saved(losses, maxima, sums, blank_posteriors, label_posteriors),
        _matmul(weight.dtype),
        rows_per_tile=joint.tile_rows(joiner, tile_memory),
        fastemit_lambda=fastemit_lambda,
        clamp=clamp,
        gate=gate,
        num_threads=torch.get_num_threads(),
        blank_follows=rnnt_type == "constrained",
    )
    first, second, third, fourth = (
        torch.from_numpy(gradient).to(operand.dtype)
        for gradient, operand in zip(gradients[:4], (encoder, predictor, weight, bias), strict=True)
    )
    return first, second, third, fourth


def _joiner(encoder: Tensor, predictor: Tensor, weight: Tensor, bias: Tensor, activation: str) -> joint.Joiner:
    """The operands as contiguous arrays of the dtype of arithmetic: themselves where they can be."""
    dtype = work_dtype(weight)
    operands = [operand.detach().to(dtype).contiguous().numpy() for operand in (encoder, predictor, weight, bias)]
    return joint.Joiner(operands[0], operands[1], operands[2], operands[3], joint.ACTIVATIONS[activation])


def _solve_of(lattice: GridLattice, rnnt_type: str, delay_penalty: float) -> joint.Solve:
    """How the planes of a type of transducer are solved: by the grid of two kinds where that is it."""
    if rnnt_type == "regular" and delay_penalty == 0:
        return grid.solve
    arcs = pose_rnnt_type(lattice, rnnt_type)
    return functools.partial(
        lambda blank, label, maxima, _, **options: grid_arcs.solve_two(blank, label, maxima, arcs, **options),
        label_bonus=delay_penalty * earliness(arcs) if delay_penalty else None,
        blank_follows=rnnt_type == "constrained",
    )


def _matmul(dtype: torch.dtype) -> joint.Matmul:
    """torch's own product; of bfloat16 operands where the input is bfloat16."""

    def product(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
        factors = torch.from_numpy(left), torch.from_numpy(right)
        if dtype == torch.bfloat16:
            torch.from_numpy(out).copy_(torch.mm(factors[0].bfloat16(), factors[1].bfloat16()))
        else:
            torch.mm(*factors, out=torch.from_numpy(out))

    return product


def _table(transitions: Tensor, scores: Tensor) -> np.ndarray:
    """Transitions as the kernels take them: contiguous, in the dtype of arithmetic."""
    return transitions.detach().to(work_dtype(scores)).contiguous().numpy()


def _arcs(
    logit_lengths: Tensor,
    target_lengths: Tensor,
    targets: Tensor | None,
    row_offsets: Tensor,
    first_frames: Tensor | None,
    last_frames: Tensor | None,
    arcs: tuple[tuple[int, int], ...] = (),
    label_ends: bool = True,
    skips_to: int | None = None,
) -> ArcLattice:
    integers = (logit_lengths, target_lengths, targets, first_frames, last_frames)
    frames, labels, classes, first, last = (None if tensor is None else tensor.numpy() for tensor in integers)
    return ArcLattice(frames, labels, classes, -1, row_offsets.numpy(), arcs, (), first, last, label_ends, skips_to)


def _rows(scores: Tensor, lattice: GridLattice | ArcLattice) -> grid.GridRows:
    array, encoding = _array(scores)
    return grid.padded_rows(array, encoding) if array.ndim == 4 else grid.packed_rows(array, encoding, lattice)


def _chain(
    input_lengths: Tensor,
    num_states: Tensor,
    stay_labels: Tensor,
    step_labels: Tensor,
    skips: Tensor,
    start_state: int,
    num_final: int,
    shared_labels: bool,
    stay_transitions: Tensor | None = None,
    step_transitions: Tensor | None = None,
) -> ChainLattice:
    labels = step_labels.numpy()
    return ChainLattice(
        input_lengths=input_lengths.numpy(),
        num_states=num_states.numpy(),
        stay_labels=labels if shared_labels else stay_labels.numpy(),
        step_labels=labels,
        skips=skips.numpy(),
        start_state=start_state,
        num_final=num_final,
        stay_transitions=None if stay_transitions is None else stay_transitions.numpy(),
        step_transitions=None if step_transitions is None else step_transitions.numpy(),
    )


def _grid(
    logit_lengths: Tensor, target_lengths: Tensor, targets: Tensor, row_offsets: Tensor, blank: int
) -> GridLattice:
    return GridLattice(
        logit_lengths=logit_lengths.numpy(),
        target_lengths=target_lengths.numpy(),
        targets=targets.numpy(),
        blank=blank,
        row_offsets=row_offsets.numpy(),
    )


def _tensors(saved: Saved) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    first, second = saved.posteriors
    losses, maxima, sums, first, second = map(torch.from_numpy, (saved.losses, saved.maxima, saved.sums, first, second))
    return losses, maxima, sums, first, second


def _dense_saved(losses: Tensor, extended: Tensor, gamma: Tensor, alpha: Tensor, entering: Tensor) -> DenseSaved:
    return DenseSaved(losses.numpy(), extended.numpy(), gamma.numpy(), alpha.numpy(), entering.numpy())


def _saved(losses: Tensor, maxima: Tensor, sums: Tensor, first: Tensor, second: Tensor) -> Saved:
    return Saved(losses.numpy(), maxima.numpy(), sums.numpy(), (first.numpy(), second.numpy()))


@torch.library.register_fake("pathsum::chain_forward", lib=_LIBRARY)
def _(scores, transitions, input_lengths, num_states, stay_labels, step_labels, skips, stay_transitions,
      step_transitions, start_state, num_final, shared_labels, logits, need_gradient):  # fmt: skip
    return _fake_results(scores, input_lengths.shape[0])


@torch.library.register_fake("pathsum::dense_forward", lib=_LIBRARY)
def _(scores, transitions, input_lengths, need_gradient):
    losses, gamma, alpha, entering, _ = _fake_results(scores, input_lengths.shape[0])
    return losses, losses.new_empty(losses.shape, dtype=torch.bool), gamma, alpha, entering


@torch.library.register_fake("pathsum::grid_forward", lib=_LIBRARY)
def _(scores, logit_lengths, target_lengths, targets, row_offsets, blank, logits, need_gradient):
    return _fake_results(scores, logit_lengths.shape[0])


def _fake_results(scores: Tensor, num_samples: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    # Only backward reads what follows the losses; its sizes depend on the lengths' values.
    context = torch.library.get_ctx()
    sizes = [context.new_dynamic_size() for _ in range(4)]
    work = work_dtype(scores)
    losses = scores.new_empty(num_samples, dtype=torch.float64)
    maxima, sums = (scores.new_empty(size, dtype=work) for size in sizes[:2])
    posteriors = [scores.new_empty(size, dtype=work) for size in sizes[2:]]
    return losses, maxima, sums, posteriors[0], posteriors[1]


@torch.library.register_fake("pathsum::chain_backward", lib=_LIBRARY)
def _(grad_losses, scores, input_lengths, num_states, stay_labels, step_labels, skips, start_state, num_final,
      shared_labels, logits, losses, maxima, sums, stay, step, time_major):  # fmt: skip
    return _fake_gradient(scores, time_major)


def _fake_gradient(scores: Tensor, time_major: bool) -> Tensor:
    if time_major:
        return torch.empty_like(scores.transpose(0, 1), memory_format=torch.contiguous_format).transpose(0, 1)
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


@torch.library.register_fake("pathsum::dense_backward", lib=_LIBRARY)
def _(grad_losses, scores, input_lengths, losses, extended, gamma, alpha, entering, time_major):
    return _fake_gradient(scores, time_major)


@torch.library.register_fake("pathsum::chain_transition_gradient", lib=_LIBRARY)
def _(grad_losses, transitions, *_):
    return torch.empty_like(transitions, memory_format=torch.contiguous_format)


@torch.library.register_fake("pathsum::dense_transition_gradient", lib=_LIBRARY)
def _(grad_losses, scores, transitions, *_):
    return torch.empty_like(transitions, memory_format=torch.contiguous_format)


@torch.library.register_fake("pathsum::grid_backward", lib=_LIBRARY)
def _(grad_losses, scores, logit_lengths, target_lengths, targets, row_offsets, blank, logits, fastemit_lambda, clamp,
      losses, maxima, sums, blank_posteriors, label_posteriors):  # fmt: skip
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


@torch.library.register_fake("pathsum::joint_forward", lib=_LIBRARY)
def _(encoder, predictor, weight, bias, logit_lengths, *_):
    return _fake_results(weight, logit_lengths.shape[0])


@torch.library.register_fake("pathsum::joint_backward", lib=_LIBRARY)
def _(grad_losses, encoder, predictor, weight, bias, *_):
    contiguous = torch.contiguous_format
    return tuple(torch.empty_like(t, memory_format=contiguous) for t in (encoder, predictor, weight, bias))


@torch.library.register_fake("pathsum::planes_forward", lib=_LIBRARY)
def _(blank_scores, label_scores, logit_lengths, *_):
    planes = (plane.new_empty(plane.shape, dtype=torch.float64) for plane in (blank_scores, label_scores))
    return blank_scores.new_empty(logit_lengths.shape[0], dtype=torch.float64), *planes


@torch.library.register_fake("pathsum::planes_backward", lib=_LIBRARY)
def _(grad_losses, row_offsets, losses, blank_posteriors, label_posteriors):
    return torch.empty_like(blank_posteriors), torch.empty_like(label_posteriors)


@torch.library.register_fake("pathsum::row_scores_forward", lib=_LIBRARY)
def _(scores, logit_lengths, target_lengths, targets, row_offsets, first_frames, last_frames, classes, lone, logits):
    _, maxima, sums, _, _ = _fake_results(scores, logit_lengths.shape[0])
    rows = torch.library.get_ctx().new_dynamic_size()
    planes = scores.new_empty((len(classes), rows), dtype=torch.float64)
    return planes, scores.new_empty(logit_lengths.shape[0], dtype=torch.float64), maxima, sums


@torch.library.register_fake("pathsum::row_scores_backward", lib=_LIBRARY)
def _(grad_planes, upstream, scores, *_):
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


@torch.library.register_fake("pathsum::arcs_forward", lib=_LIBRARY)
def _(planes, logit_lengths, *_):
    losses = planes.new_empty(logit_lengths.shape[0], dtype=torch.float64)
    return losses, planes.new_empty(planes.shape, dtype=torch.float64)


@torch.library.register_fake("pathsum::arcs_backward", lib=_LIBRARY)
def _(grad_losses, row_offsets, losses, posteriors):
    return torch.empty_like(posteriors)
