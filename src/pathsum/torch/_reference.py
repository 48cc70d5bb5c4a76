"""The specification on tensors of any device: plain torch, differentiated by torch, to any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pathsum.kernels.protocol import (
    ArcOptions,
    Call,
    ChainPath,
    DensePath,
    GridPath,
    GridWalks,
    Kernels,
    RowOptions,
    SparsePath,
)
from pathsum.kernels.reference import (
    chain,
    chain_best_path,
    dense,
    dense_best_path,
    grid,
    grid_arcs,
    grid_arcs_walks,
    grid_best_path,
    posteriors,
    sparse,
)
from pathsum.kernels.reference.grid import _nodes, _zero_with_gradient
from pathsum.kernels.reference.log_domain import exact, not_negative
from pathsum.lattice import ArcLattice
from pathsum.torch._autograd.reweighted import first_derivative_only
from pathsum.torch._expectations import real_log_softmax
from pathsum.torch._inputs import on_device
from pathsum.torch._operators import Reduction, reduced
from pathsum.torch._ops.arrays import as_tensor
from pathsum.torch.joiner import Joiner


class Chain(Kernels):
    advances = True

    def losses(self, call: Call, reduction: Reduction | None = None) -> Tensor:
        scores, transitions = call.scores
        return reduced(chain.forward(scores, _lattice(call), transitions, logits=call.options.softmax), reduction)

    def advance(self, call: Call, alpha: Tensor) -> Tensor:
        return chain.advance(call.scores[0], _lattice(call), alpha)

    def best(self, call: Call) -> ChainPath:
        scores, transitions = call.scores
        return chain_best_path.best_path(scores, _lattice(call), transitions)

    def posteriors(self, call: Call) -> tuple[Tensor, ...]:
        scores, transitions = call.scores
        return posteriors.chain_posteriors(scores, _lattice(call), transitions, logits=call.options.softmax)


class Dense(Kernels):
    def losses(self, call: Call, reduction: Reduction | None = None) -> Tensor:
        scores, transitions = call.scores
        return reduced(dense.forward(scores, _lattice(call), transitions), reduction)

    def best(self, call: Call) -> DensePath:
        scores, transitions = call.scores
        return dense_best_path.best_path(scores, _lattice(call), transitions)

    def posteriors(self, call: Call) -> tuple[Tensor, ...]:
        scores, transitions = call.scores
        return posteriors.dense_posteriors(scores, _lattice(call), transitions)


class Grid(Kernels):
    def losses(self, call: Call, reduction: Reduction | None = None) -> Tensor:
        options = call.options
        (logits,) = _once(call)
        losses = grid.forward(
            logits,
            _lattice(call),
            logits=options.softmax,
            fastemit_lambda=options.fastemit_lambda,
            clamp=options.clamp,
        )
        return reduced(losses, reduction)

    def best(self, call: Call) -> GridPath:
        (logits,) = call.scores
        num_labels = logits.shape[2] - 1
        return grid_best_path.best_path(logits, _lattice(call), num_labels=num_labels, logits=call.options.softmax)

    def posteriors(self, call: Call) -> tuple[Tensor, ...]:
        return posteriors.grid_posteriors(call.scores[0], _lattice(call), logits=call.options.softmax)


class Sparse(Kernels):
    def losses(self, call: Call, reduction: Reduction | None = None) -> Tensor:
        scores, weights = call.scores
        return reduced(sparse.forward(scores, _lattice(call), weights), reduction)

    def best(self, call: Call) -> SparsePath:
        scores, weights = call.scores
        return sparse.best_path(scores, _lattice(call), weights)

    def posteriors(self, call: Call) -> tuple[Tensor, ...]:
        scores, weights = call.scores
        return sparse.posteriors(scores, _lattice(call), weights)


class Routes(Kernels):
    """Single paths through graphs."""

    def k_best(self, call: Call, k: int, outputs: Tensor | None = None) -> SparsePath:
        scores, weights = call.scores
        return sparse.k_best(scores, _lattice(call), weights, k, outputs)

    def sample(self, call: Call, draws: Tensor) -> SparsePath:
        scores, weights = call.scores
        return sparse.sample_paths(scores, _lattice(call), weights, draws)


class Linear(Kernels):
    def losses(self, call: Call, reduction: Reduction | None = None) -> Tensor:
        hidden, weight, bias = (None if operand is None else exact(operand) for operand in call.scores)
        assert hidden is not None
        assert weight is not None
        columns = as_tensor(call.lattice.classes).to(hidden.device).long()
        # Padding is not read: the weight's gradient would have its NaN.
        logits = torch.nn.functional.linear(_first(hidden, call.lattice.input_lengths), weight, bias)
        log_probs = real_log_softmax(logits, call.lattice.input_lengths)
        return log_probs.gather(2, columns[:, None].expand(-1, hidden.shape[1], -1))


class Rows(Kernels):
    def losses(self, call: Call, reduction: Reduction | None = None) -> Tensor:
        lattice, options = _lattice(call), call.options
        lone = lattice.blank if options.hat else -1
        return grid_arcs.row_scores(call.scores[0], lattice, options.classes, lone=lone, logits=options.softmax)


class Arcs(Kernels):
    def losses(self, call: Call, reduction: Reduction | None = None) -> Tensor:
        call = with_logits(call)
        lattice, options = _lattice(call), call.options

        def losses_of(*heads: Tensor) -> Tensor:
            planes = [
                exact(head)
                if options.given
                else Rows().losses(Call((head,), lattice, RowOptions(classes, options.softmax, options.hat)))
                for head, classes in zip(heads, lattice.reads, strict=True)
            ]
            arcs = grid_arcs.arc_scores(
                planes,
                lattice,
                sigma=options.sigma,
                delay_penalty=options.delay_penalty,
                fastemit_lambda=options.fastemit_lambda,
            )
            losses = grid_arcs.forward(arcs, lattice, options.skip_score)
            return not_negative(losses) if options.share_one(lattice) else losses

        heads = _once(call)
        if options.clamp > 0:
            return reduced(_with_clamped_gradient(losses_of, heads, lattice, options.clamp), reduction)
        return reduced(losses_of(*heads), reduction)

    def best(self, call: Call) -> GridPath:
        """Of planes that are given."""
        log_probs, frames, scores, _ = Walks().k_best(call, 1)
        return GridPath(log_probs[:, 0], frames[:, 0], scores[:, 0])


class Walks(Kernels):
    """Single walks through arc lattices, of planes that are given."""

    def k_best(self, call: Call, k: int, outputs: Tensor | None = None) -> GridWalks:
        return grid_arcs_walks.k_best(exact(call.scores[0]), _lattice(call), k, skip_score=call.options.skip_score)

    def sample(self, call: Call, draws: Tensor) -> GridWalks:
        planes = exact(call.scores[0])
        return grid_arcs_walks.sample_walks(planes, _lattice(call), draws, skip_score=call.options.skip_score)


class Joint(Arcs):
    def losses(self, call: Call, reduction: Reduction | None = None) -> Tensor:
        return super().losses(as_arcs(call), reduction)


def as_arcs(call: Call) -> Call:
    """The call of a fused joiner as one of arcs that a joiner makes the logits of."""
    own = call.options
    joiners = ((own.activation, own.tile_memory, own.gate),)
    numbers = {"delay_penalty": own.delay_penalty, "fastemit_lambda": own.fastemit_lambda, "clamp": own.clamp}
    return Call(call.scores, call.lattice, ArcOptions(joiners=joiners, **numbers))


def with_logits(call: Call) -> Call:
    """The call with the logits of its joiners, made as a whole, one tensor a head."""
    heads = []
    for k, joiner in enumerate(call.options.joiners):
        scores, *operands = call.scores[4 * k : 4 * k + 4]
        if joiner:
            # Padding is not read: the gradients of all operands would have its NaN.
            encoder_out = _first(scores, call.lattice.logit_lengths)
            predictor_out = _first(operands[0], as_tensor(call.lattice.target_lengths) + 1)
            scores = Joiner(encoder_out, predictor_out, *operands[1:], activation=joiner[0]).logits()
        heads.append(scores)
    return Call(tuple(heads[: len(call.lattice.reads)]), call.lattice, call.options._replace(joiners=((), ())))


def _first(rows: Tensor, lengths: Any) -> Tensor:
    """Each sample's first rows (N, R, H), so many as its length says, and zeros."""
    lengths = as_tensor(lengths).to(rows.device)
    real = torch.arange(rows.shape[1], device=rows.device) < lengths[:, None]
    return torch.where(real[:, :, None], rows, 0.0)


def _once(call: Call) -> tuple[Tensor, ...]:
    """The scores, whose gradient refuses to be differentiated where it is another than that of the losses."""
    if call.options.once_only is None:
        return call.scores
    return tuple(map(first_derivative_only, call.scores))


def _with_clamped_gradient(
    losses_of: Callable[..., Tensor], heads: tuple[Tensor, ...], lattice: ArcLattice, clamp: float
) -> Tensor:
    """The same losses, whose gradient is clamped before the upstream gradient multiplies it."""
    with torch.enable_grad():
        probes = [head.detach().requires_grad_() for head in heads]
        losses = losses_of(*probes)
        gradients = torch.autograd.grad(losses.sum(), probes)
    losses = losses.detach()
    for head, gradient in zip(heads, gradients, strict=True):
        linear = (_zero_with_gradient(exact(head)) * exact(gradient.clamp(-clamp, clamp))).sum(-1)
        if head.ndim == 4:
            losses = losses + linear.sum((1, 2))
        else:
            losses = losses + torch.zeros_like(losses).index_add(0, _nodes(lattice)[0], linear)
    return losses


def _lattice(call: Call) -> Any:
    return on_device(call.lattice, call.scores[0].device)
