"""Best paths: the Triton kernels of the three lattices, their integers on the scores' device."""

from __future__ import annotations

import torch
from torch import Tensor

from pathsum.kernels.protocol import ChainPath, DensePath, GridPath
from pathsum.kernels.triton import best_path, grid
from pathsum.lattice import ChainLattice, DenseLattice, GridLattice
from pathsum.torch._launch.common import (
    aligned,
    bucket,
    empties,
    in_rows,
    in_triton,
    launch,
    programs,
    tiles,
    warps,
    work_dtype,
)
from pathsum.torch._launch.grid import Layout

# States, or label positions, that a program holds; what is longer is done in strips.
STRIP = 2048


def chain(scores: Tensor, lattice: ChainLattice, transitions: Tensor | None = None) -> ChainPath:
    """The best path of each sample of scores (N, T, C) and, where the lattice has any, of its arcs' transitions."""
    num_samples, num_frames, _ = scores.shape
    arrays = (lattice.input_lengths, lattice.num_states, lattice.stay_labels, lattice.step_labels, lattice.skips)
    integers = in_rows(*arrays, lattice.stay_transitions, lattice.step_transitions, transitions)
    width = lattice.step_labels.shape[1]
    empty = empties(scores)
    log_probs, states = empty(num_samples), _nowhere(scores, num_samples, num_frames)
    edges = empty(num_samples, 2, num_frames, 2)
    moves = empty(num_samples, num_frames, width, dtype=torch.int8)
    block = bucket(width, 32, STRIP)
    launch(
        best_path.chain, (num_samples,), scores,
        scores, *scores.stride(), *integers, num_frames, width, lattice.start_state, lattice.num_final, edges, moves,
        log_probs, states, TRANSITIONS=transitions is not None, BLOCK=block, num_warps=warps(block),
    )  # fmt: skip
    return ChainPath(log_probs, states)


def padded_grid(scores: Tensor, lattice: GridLattice, *, num_labels: int, logits: bool) -> GridPath:
    """The best path of each sample of scores (N, T, U+1, V), in arrays as wide as ``num_labels``, its U."""
    layout = Layout(scores, lattice.logit_lengths, lattice.target_lengths, lattice.targets, lattice.row_offsets)
    empty, work = empties(scores), work_dtype(scores)
    statistics = [empty(layout.num_rows, dtype=work) for _ in range(2)]
    planes = [empty(layout.num_rows) for _ in range(2)]
    num_samples, num_frames, _ = layout.sizes
    undefined = torch.zeros(num_samples, dtype=torch.int32, device=scores.device)
    rows, classes = tiles(layout.num_classes, work)
    launch(
        grid.score_rows, (programs(layout.num_rows, rows),), scores,
        scores, *layout.strides, layout.num_rows, *layout.integers, *layout.sizes, lattice.targets.shape[1],
        layout.num_classes, lattice.blank, *statistics, *planes, undefined,
        LOGITS=logits, PACKED=False, WORK=in_triton(work), ROWS=rows, BLOCK=classes, ALIGNED=aligned(scores),
    )  # fmt: skip
    log_probs, frames = empty(num_samples), _nowhere(scores, num_samples, num_labels)
    label_scores = torch.zeros(num_samples, num_labels, dtype=torch.float64, device=scores.device)
    block = bucket(layout.width, 32, STRIP)
    launch(
        best_path.grid, (num_samples,), scores,
        *planes, undefined, *layout.lengths[:2], num_frames, num_labels, empty(num_samples, 2, num_frames),
        empty(layout.num_rows, dtype=torch.int8), log_probs, frames, label_scores, BLOCK=block, num_warps=warps(block),
    )  # fmt: skip
    return GridPath(log_probs, frames, label_scores)


def dense(scores: Tensor, lattice: DenseLattice, transitions: Tensor) -> DensePath:
    """The best path of each sample of scores (N, T, C) and transitions (C, C), [to, from]."""
    num_samples, num_frames, num_classes = scores.shape
    input_lengths, transitions = in_rows(lattice.input_lengths, transitions)
    empty = empties(scores)
    log_probs, states = empty(num_samples), _nowhere(scores, num_samples, num_frames)
    undefined = (~(transitions < torch.inf).all()).to(torch.int32)
    launch(
        best_path.dense, (num_samples,), scores,
        scores, *scores.stride(), input_lengths, transitions, undefined, num_frames, num_classes,
        empty(num_samples, 2, num_classes), empty(num_samples, num_frames, num_classes, dtype=torch.int32), log_probs,
        states, TO=bucket(num_classes, 16, 32), FROM=bucket(num_classes, 16, 64),
        num_warps=4 if num_classes <= 32 else 8,
    )  # fmt: skip
    return DensePath(log_probs, states)


def _nowhere(beside: Tensor, *shape: int) -> Tensor:
    return torch.full(shape, -1, dtype=torch.int64, device=beside.device)
