"""Station 5, the only file that says ``ctx``: what forward keeps, and which operator backward calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pathsum.errors import GradientConsumedError, NotDifferentiableError
from pathsum.lattice import ArcLattice, ChainLattice, DenseLattice, GridLattice
from pathsum.torch import _ops


def chain_losses(scores: Tensor, lattice: ChainLattice, transitions: Tensor | None = None, *, logits: bool) -> Tensor:
    """Losses (N,) in float64 of scores (N, T, C) by the numba kernels."""
    tensors = [
        None if array is None else torch.from_numpy(array)
        for array in (
            lattice.input_lengths,
            lattice.num_states,
            lattice.stay_labels,
            lattice.step_labels,
            lattice.skips,
            lattice.stay_transitions,
            lattice.step_transitions,
        )
    ]
    need_gradient = _need_gradient(scores, transitions)
    options = (lattice.start_state, lattice.num_final, lattice.shared_labels, logits, need_gradient)
    return _ChainLosses.apply(scores, transitions, *tensors, *options)[0]


def dense_losses(scores: Tensor, lattice: DenseLattice, transitions: Tensor) -> Tensor:
    """Losses (N,) in float64 of scores (N, T, C) and transitions (C, C) by the numba kernels."""
    input_lengths = torch.from_numpy(lattice.input_lengths)
    return _DenseLosses.apply(scores, transitions, input_lengths, _need_gradient(scores, transitions))[0]


def grid_losses(
    scores: Tensor,
    lattice: GridLattice,
    *,
    logits: bool,
    fastemit_lambda: float,
    clamp: float,
    overwrite_logits: bool,
) -> Tensor:
    """Losses (N,) in float64 of padded or packed scores by the numba kernels."""
    need_gradient = torch.is_grad_enabled() and scores.requires_grad
    tensors = [
        torch.from_numpy(array)
        for array in (lattice.logit_lengths, lattice.target_lengths, lattice.targets, lattice.row_offsets)
    ]
    options = (lattice.blank, logits, need_gradient, fastemit_lambda, clamp, overwrite_logits)
    return _GridLosses.apply(scores, *tensors, *options)[0]


def joint_losses(
    operands: tuple[Tensor, Tensor, Tensor, Tensor],
    lattice: GridLattice,
    *,
    activation: str,
    tile_memory: int,
    rnnt_type: str,
    delay_penalty: float,
    fastemit_lambda: float,
    clamp: float,
    gate: float | None,
) -> Tensor:
    """Losses (N,) in float64 of encoder, predictor, weight and bias by the numba kernels."""
    forward_options = (lattice.blank, activation, tile_memory, rnnt_type, delay_penalty, _need_gradient(*operands))
    options = (*forward_options, fastemit_lambda, clamp, gate)
    return _JointLosses.apply(*operands, *_grid_tensors(lattice), *options)[0]


def plane_losses(blank_scores: Tensor, label_scores: Tensor, lattice: GridLattice) -> Tensor:
    """Losses (N,) in float64 of the two score planes (rows,) of a grid by the numba kernels."""
    need_gradient = _need_gradient(blank_scores, label_scores)
    return _PlaneLosses.apply(blank_scores, label_scores, *_grid_tensors(lattice), lattice.blank, need_gradient)[0]


def row_scores(
    scores: Tensor, lattice: ArcLattice, classes: tuple[int, ...], *, lone: int, logits: bool, clamp: float
) -> tuple[Tensor, Tensor]:
    """Planes (K, rows) of padded or packed scores by the numba kernels, and zeros (N,) that stand for the samples.

    With a clamp the upstream gradient of each loss must come back through the latter: see ``with_upstream``.
    """
    tensors = [*_grid_tensors(lattice), *map(torch.from_numpy, (lattice.first_frames, lattice.last_frames))]
    planes, samples, _, _ = _RowScores.apply(scores, *tensors, list(classes), lone, logits, clamp)
    return planes, samples


def arc_losses(planes: Tensor, lattice: ArcLattice, skip_score: float = 0.0) -> Tensor:
    """Losses (N,) in float64 of the planes (K, rows) of an arc lattice by the numba kernels."""
    frames_on, labels_on = (list(steps) for steps in zip(*lattice.arcs, strict=True))
    options = (frames_on, labels_on, lattice.label_ends, lattice.skips_to, skip_score, _need_gradient(planes))
    lengths, target_lengths, _, row_offsets = _grid_tensors(lattice)
    return _ArcLosses.apply(planes, lengths, target_lengths, row_offsets, *options)[0]


def with_upstream(losses: Tensor, samples: list[Tensor]) -> Tensor:
    """The same losses. In backward what leads to them gets a gradient of one, and the ``samples`` the upstream one:
    a clamp acts on the gradient of a loss before the upstream gradient multiplies it.
    """
    return _Upstream.apply(losses, *samples)


def _grid_tensors(lattice: GridLattice | ArcLattice) -> list[Tensor]:
    arrays = (lattice.logit_lengths, lattice.target_lengths, lattice.targets, lattice.row_offsets)
    return [torch.from_numpy(array) for array in arrays]


def _need_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


class _ChainLosses(torch.autograd.Function):
    @staticmethod
    def forward(scores: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        return _ops.chain_forward(scores, *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        scores, transitions, *lattice, start_state, num_final, shared_labels, logits, _ = inputs
        _keep_losses_only(ctx, output)
        ctx.save_for_backward(scores, transitions, *lattice, *output)
        ctx.options = (start_state, num_final, shared_labels)
        ctx.logits = logits

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        scores, transitions, *rest = ctx.saved_tensors
        lattice, saved = rest[:7], rest[7:]
        grad_losses = _defined(grad_losses, saved[0])
        gradient = transition_gradient = None
        if ctx.needs_input_grad[0]:
            gradient = _ChainGradient.apply(
                grad_losses, scores, *lattice[:5], *ctx.options, ctx.logits, *saved, _time_major(scores)
            )
        if ctx.needs_input_grad[1]:
            transition_gradient = _ChainTransitionGradient.apply(
                grad_losses, transitions, *lattice, *ctx.options, *saved
            )
        return gradient, transition_gradient, *[None] * 12


class _DenseLosses(torch.autograd.Function):
    @staticmethod
    def forward(scores: Tensor, transitions: Tensor, input_lengths: Tensor, need_gradient: bool) -> tuple[Tensor, ...]:
        return _ops.dense_forward(scores, transitions, input_lengths, need_gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _keep_losses_only(ctx, output)
        ctx.save_for_backward(*inputs[:3], *output)

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        scores, transitions, input_lengths, *saved = ctx.saved_tensors
        grad_losses = _defined(grad_losses, saved[0])
        gradient = transition_gradient = None
        if ctx.needs_input_grad[0]:
            gradient = _DenseGradient.apply(grad_losses, scores, input_lengths, *saved, _time_major(scores))
        if ctx.needs_input_grad[1]:
            transition_gradient = _DenseTransitionGradient.apply(
                grad_losses, scores, transitions, input_lengths, *saved
            )
        return gradient, transition_gradient, None, None


def _keep_losses_only(ctx: Any, output: tuple[Tensor, ...]) -> None:
    """Backward is of the losses; for the other outputs it shall not be given planes of zeros, filled for nothing."""
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _defined(grad_losses: Tensor | None, losses: Tensor) -> Tensor:
    """Zeros where nothing depends on the losses."""
    return torch.zeros_like(losses) if grad_losses is None else grad_losses


def _time_major(scores: Tensor) -> bool:
    # The gradient is written in the order of the caller's memory, so that what comes before reads it in order.
    return scores.stride(1) > scores.stride(0)


class _GridLosses(torch.autograd.Function):
    @staticmethod
    def forward(scores: Tensor, *lattice_and_options: Any) -> tuple[Tensor, ...]:
        *lattice, blank, logits, need_gradient, _, _, _ = lattice_and_options
        return _ops.grid_forward(scores, *lattice, blank, logits, need_gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        scores, *lattice, blank, logits, _, fastemit_lambda, clamp, overwrite_logits = inputs
        _keep_losses_only(ctx, output)
        ctx.save_for_backward(None if overwrite_logits else scores, *lattice, *output)
        ctx.options = (blank, logits, fastemit_lambda, clamp)
        # A saved tensor that backward changes would fail its version check; this one is given up at first use.
        ctx.overwritten = scores.detach() if overwrite_logits else None
        ctx.overwrite_logits = overwrite_logits

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        scores, *rest = ctx.saved_tensors
        lattice, saved = rest[:4], rest[4:]
        grad_losses = _defined(grad_losses, saved[0])
        if not ctx.overwrite_logits:
            gradient = _GridGradient.apply(grad_losses, scores, *lattice, *ctx.options, *saved)
            return gradient, *[None] * 10
        logits, ctx.overwritten = ctx.overwritten, None
        if logits is None:
            raise GradientConsumedError(
                "the gradient of this loss was written over its logits (overwrite_logits=True) by an earlier "
                "backward; a second one needs overwrite_logits=False"
            )
        blank, _, fastemit_lambda, clamp = ctx.options
        losses, maxima, sums, *posteriors = saved
        gradient = _ops.grid_backward_over_scores(
            grad_losses,
            logits,
            _ops._grid(lattice[0], lattice[1], lattice[2], lattice[3], blank),
            _ops._saved(losses, maxima, sums, posteriors[0], posteriors[1]),
            fastemit_lambda,
            clamp,
        )
        return gradient, *[None] * 10


class _JointLosses(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        *operands_lattice_and_options, _, _, _ = inputs
        return _ops.joint_forward(*operands_lattice_and_options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, blank, activation, tile_memory, rnnt_type, _, _, fastemit_lambda, clamp, gate = inputs
        _keep_losses_only(ctx, output)
        ctx.save_for_backward(*tensors, *output)
        ctx.options = (blank, activation, tile_memory, rnnt_type, fastemit_lambda, clamp, gate)

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        tensors, saved = ctx.saved_tensors[:8], ctx.saved_tensors[8:]
        grad_losses = _defined(grad_losses, saved[0])
        gradients = _JointGradient.apply(grad_losses, *tensors, *ctx.options, *saved)
        return *gradients, *[None] * 13


class _PlaneLosses(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return _ops.planes_forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _keep_losses_only(ctx, output)
        ctx.save_for_backward(inputs[5], *output)
        ctx.dtypes = [plane.dtype for plane in inputs[:2]]

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_losses = _defined(grad_losses, ctx.saved_tensors[1])
        gradients = _PlaneGradient.apply(grad_losses, *ctx.saved_tensors)
        return *(gradient.to(dtype) for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)), *[None] * 6


class _RowScores(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return _ops.row_scores_forward(*inputs[:-1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, classes, lone, logits, clamp = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output)
        ctx.options = (classes, lone, logits, clamp)

    @staticmethod
    def backward(ctx: Any, grad_planes: Tensor | None, upstream: Tensor | None, *_: Tensor) -> tuple[Any, ...]:
        *tensors, planes, samples, maxima, sums = ctx.saved_tensors
        grad_planes = _defined(grad_planes, planes)
        upstream = torch.ones_like(samples) if upstream is None else upstream
        gradient = _RowScoresGradient.apply(grad_planes, upstream, *tensors, *ctx.options, maxima, sums)
        return gradient, *[None] * 10


class _ArcLosses(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return _ops.arcs_forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _keep_losses_only(ctx, output)
        ctx.save_for_backward(inputs[3], *output)

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_losses = _defined(grad_losses, ctx.saved_tensors[1])
        return _ArcsGradient.apply(grad_losses, *ctx.saved_tensors), *[None] * 9


class _Upstream(torch.autograd.Function):
    @staticmethod
    def forward(losses: Tensor, *samples: Tensor) -> Tensor:
        return losses.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.num_samples = len(inputs) - 1

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor, ...]:
        return torch.ones_like(grad_losses), *[grad_losses] * ctx.num_samples


class _Gradient(torch.autograd.Function):
    """A gradient, whose own derivative the numba kernels do not have."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise NotDifferentiableError(
            "impl='numba' has first derivatives only; impl='reference' is differentiable to any order"
        )


class _ChainGradient(_Gradient):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return _ops.chain_backward(*inputs)


class _ChainTransitionGradient(_Gradient):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return _ops.chain_transition_gradient(*inputs)


class _DenseGradient(_Gradient):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return _ops.dense_backward(*inputs)


class _DenseTransitionGradient(_Gradient):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return _ops.dense_transition_gradient(*inputs)


class _GridGradient(_Gradient):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return _ops.grid_backward(*inputs)


class _JointGradient(_Gradient):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return _ops.joint_backward(*inputs)


class _PlaneGradient(_Gradient):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return _ops.planes_backward(*inputs)


class _RowScoresGradient(_Gradient):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return _ops.row_scores_backward(*inputs)


class _ArcsGradient(_Gradient):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return _ops.arcs_backward(*inputs)
