"""What the operators of a lattice have alike in every implementation: arguments, results, and their sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from pathsum.kernels.protocol import (
    Call,
    ChainOptions,
    ChainSaved,
    DenseOptions,
    DenseSaved,
    GridOptions,
    GridSaved,
    JointOptions,
    JointSaved,
    RowOptions,
    RowsSaved,
    SparseOptions,
    SparseSaved,
)
from pathsum.lattice import ArcLattice, ChainLattice, DenseLattice, GridLattice, SparseLattice
from pathsum.torch._operators import OperatorKernels, unknown_size
from pathsum.torch._ops.arrays import fake_gradient, fake_like

# What makes the planes of one of an arc lattice's ``reads``, a head: logits, planes, or a joiner's operands.
OPERANDS = 4
ARC_OPERANDS = (
    *("scores", "predictor?", "weight?", "bias?"),
    *("second_scores?", "second_predictor?", "second_weight?", "second_bias?"),
)


class _OfFrames(OperatorKernels):
    """Scores (N, T, C) and, behind them, transitions (C, C)."""

    def sketch_gradient(self, scores: Tensor) -> Tensor:
        return fake_gradient(scores) if scores.ndim == 3 else fake_like(scores)


def _a_sample(call: Call) -> Tensor:
    """(N,) in float64"""
    return call.scores[0].new_empty(call.scores[0].shape[int(call.options.frames_first)], dtype=torch.float64)


class ChainOperators(_OfFrames):
    lattice = ChainLattice
    inputs, options, saved = ("scores", "transitions?"), ChainOptions, ChainSaved

    def sketch(self, call: Call) -> ChainSaved:
        scores = call.scores[0]
        statistics = [unknown_size(scores, axes=1) for _ in range(2)]
        planes = [unknown_size(scores, axes=2) for _ in range(2)]
        return ChainSaved(_a_sample(call), *statistics, *planes)


class DenseOperators(_OfFrames):
    lattice = DenseLattice
    inputs, options, saved = ("scores", "transitions"), DenseOptions, DenseSaved

    def sketch(self, call: Call) -> DenseSaved:
        losses = _a_sample(call)
        planes = [unknown_size(call.scores[0], axes=2) for _ in range(3)]
        return DenseSaved(losses, torch.empty_like(losses, dtype=torch.bool), *planes)


class SparseOperators(_OfFrames):
    """Scores (N, T, C) and the weights (W,) of the graphs."""

    lattice = SparseLattice
    inputs, options, saved = ("scores", "weights"), SparseOptions, SparseSaved

    def sketch(self, call: Call) -> SparseSaved:
        scores = call.scores[0]
        losses = scores.new_empty(len(scores), dtype=torch.float64)
        return SparseSaved(losses, unknown_size(scores, axes=1), unknown_size(scores, axes=1, dtype=torch.float64))


class GridOperators(OperatorKernels):
    lattice = GridLattice
    inputs, options, saved = ("logits",), GridOptions, GridSaved

    def sketch(self, call: Call) -> GridSaved:
        logits = call.scores[0]
        losses = logits.new_empty(len(call.lattice.logit_lengths), dtype=torch.float64)
        statistics = [unknown_size(logits, axes=1) for _ in range(2)]
        return GridSaved(losses, *statistics, *(unknown_size(logits, axes=1, dtype=torch.float64) for _ in range(2)))


class JointOperators(OperatorKernels):
    lattice = ArcLattice
    inputs, options, saved = ("encoder", "predictor", "weight", "bias"), JointOptions, JointSaved

    def sketch(self, call: Call) -> JointSaved:
        weight = call.scores[2]
        losses = weight.new_empty(len(call.lattice.logit_lengths), dtype=torch.float64)
        return JointSaved(losses, unknown_size(weight, axes=2, dtype=torch.float64))


class RowsOperators(OperatorKernels):
    """Scores, padded or packed, to planes: what others call losses are planes here."""

    lattice = ArcLattice
    inputs, options, saved = ("scores",), RowOptions, RowsSaved

    def sketch(self, call: Call) -> RowsSaved:
        scores = call.scores[0]
        size = torch.library.get_ctx().new_dynamic_size()
        planes = scores.new_empty((len(call.options.classes), size), dtype=torch.float64)
        return RowsSaved(planes, *[unknown_size(scores, axes=1) for _ in range(2)])
