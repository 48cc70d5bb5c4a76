"""Both lattices of the auto segmentation criterion on a GPU, solved in the same launches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathsum.kernels.protocol import Call, ChainSaved, DenseSaved, Kernels
from pathsum.kernels.triton import asg, plan
from pathsum.kernels.triton.plan import bucket, programs
from pathsum.torch._triton import chain
from pathsum.torch._triton.dense import Transitions, tile_of_matrix, tile_of_sweep
from pathsum.torch._triton.launching import (
    empties,
    empty_gradient,
    flags,
    in_rows,
    in_triton,
    launch,
    tiles,
    warps,
    work_dtype,
)


class Solved(NamedTuple):
    """What forward keeps of both lattices.

    Attributes:
        losses: (N,) of the chain less those of the dense lattice; inf where the chain has no path.
        own, every: What each would keep alone, of scores less what all paths have in common.
        table, matrix: (C, C) the transitions, and their exponentials, in units of their own.
    """

    losses: Tensor
    own: ChainSaved
    every: DenseSaved
    table: Tensor
    matrix: Tensor


class Apart(Kernels):
    """The losses of a chain less those of a dense lattice, of the same scores and transitions."""

    def forward(self, own: Call, need_gradient: bool) -> Solved:
        """``own`` is asked of a chain; what all paths have in common is left out."""
        target, (scores, given) = own.lattice, own.scores
        num_samples, num_frames, num_classes = scores.shape
        num_rows, work, empty = num_samples * num_frames, work_dtype(scores), empties(scores)
        lengths, states, labels, skips, stays, steps, transitions = in_rows(
            target.input_lengths, target.num_states, target.step_labels, target.skips, target.stay_transitions,
            target.step_transitions, given,
        )  # fmt: skip
        width, (rows, block), (table_count, table_block) = (
            labels.shape[1], tiles(num_classes, torch.float64), plan.table_blocks(num_classes)
        )  # fmt: skip
        extents, lost, status = flags(scores, num_samples, num_samples, 2)
        arcs, step = Transitions.room(transitions, status), empty(num_rows, width, dtype=work)
        references, emits, scales = empty(num_rows), empty(num_rows, num_classes), empty(num_rows)
        own_rows, own_block = tiles(num_classes, work)
        own_count, row_count = programs(num_rows, own_rows), programs(num_rows, rows)
        launch(
            asg.prepare, (max(own_count, row_count, table_count), 3), scores,
            scores, *scores.stride(), *scores.shape, lengths, states, labels, width, step, extents, own_count,
            references, emits, lost, row_count, transitions, *arcs, table_count, WORK=in_triton(work),
            CHAIN_ROWS=own_rows, CHAIN_BLOCK=own_block, ROWS=rows, BLOCK=block, TABLE=table_block,
        )  # fmt: skip

        kept = num_rows if need_gradient else 0
        alpha, (beta, entering) = empty(num_rows, num_classes), (empty(kept, num_classes) for _ in range(2))
        own_alpha, own_beta = empty(num_rows, width), empty(kept, width, dtype=torch.int64)
        of_own, of_all, losses = (empty(num_samples) for _ in range(3))
        tile, strip = tile_of_sweep(num_classes), bucket(width, 32, chain.STRIP)
        launch(
            asg.solve, (num_samples, 4 if need_gradient else 2), scores,
            lengths, num_frames, num_classes, references, emits, arcs.matrix, arcs.transposed, arcs.shift, arcs.common,
            status, alpha, scales, beta, entering, of_all, lost, step, extents, states, skips, stays, steps, arcs.table,
            width, target.start_state, target.num_final, own_alpha, own_beta, of_own,
            BLOCK=strip, STRIPS=width > strip, **(tile | {"num_warps": max(tile["num_warps"], warps(strip))}),
        )  # fmt: skip

        extended, parts = (
            empty(num_samples, dtype=torch.bool),
            max(programs(num_frames, rows), 1) if need_gradient else 1,
        )
        own_rows, own_block = tiles(width, torch.float64)
        own_count = programs(num_rows, own_rows) if need_gradient else 0
        launch(
            asg.finish, (max(num_samples * parts, own_count), 2 if need_gradient else 1), scores,
            scores, *scores.stride(), parts, num_samples * parts, lengths, *scores.shape, arcs.table, arcs.common,
            arcs.shift, references, alpha, scales, beta, entering, of_all, lost, extended, step, extents, states, skips,
            stays, steps, width, target.start_state, own_alpha, own_beta, of_own, own_count, losses,
            GRADIENT=need_gradient, ROWS=rows, BLOCK=block, CHAIN_ROWS=own_rows, CHAIN_BLOCK=own_block,
            **tile_of_matrix(num_classes),
        )  # fmt: skip
        nothing = empty(0, dtype=work)
        return Solved(
            losses,
            ChainSaved(of_own, nothing, nothing, empty(0, 0, dtype=work), step),
            DenseSaved(of_all, extended, beta, alpha, entering),
            arcs.table,
            arcs.matrix,
        )

    def backward(
        self, own: Call, kept: Sequence[Any], upstream: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """The gradients of the difference by scores and transitions, times the upstream gradient (N,)."""
        solved, target, (scores, transitions) = Solved(*kept), own.lattice, own.scores
        num_samples, num_frames, num_classes = scores.shape
        num_rows, empty = num_samples * num_frames, empties(scores)
        every, (_, _, _, _, step) = solved.every, solved.own
        lengths, states, labels, stays, steps, upstream = in_rows(
            target.input_lengths, target.num_states, target.step_labels, target.stay_transitions,
            target.step_transitions, upstream,
        )  # fmt: skip
        width, (rows, block), strip = labels.shape[1], tiles(num_classes, torch.float64), chain.COUNTED
        gradient, table_gradient = empty_gradient(scores) if needed[0] else None, None
        weighed, counted = (num_rows, num_samples) if needed[1] else (0, 0)
        enters, sources = (empty(weighed, num_classes) for _ in range(2))
        counts, strips, weigh_count = empty(counted, 2, width), programs(width, strip), programs(weighed, rows)
        parts, out = [num_rows] if needed[0] else [], scores if gradient is None else gradient
        parts += [weigh_count, num_samples * strips] if needed[1] else []
        launch(
            asg.write_gradient, (max(parts), len(parts)), scores,
            upstream, solved.losses, solved.own.losses, every.gamma, step, labels, lengths, states, num_rows,
            *scores.shape, width, out, *out.stride(), every.extended, every.alpha, every.entering, enters, sources,
            weigh_count, counts, strips, SCORES=needed[0], STATES=32, CLASSES=bucket(num_classes, 16, 32), ROWS=rows,
            BLOCK=block, TIME=chain.TIME, STRIP=strip,
        )  # fmt: skip
        if needed[1]:
            table_gradient = torch.empty_like(transitions, memory_format=torch.contiguous_format)
            arcs_into_one = plan.cells(num_classes)
            launch(
                asg.add_transition_gradient, arcs_into_one.grid, scores,
                upstream, lengths, solved.losses, *scores.shape, solved.table, solved.matrix, every.alpha,
                every.entering, every.extended, enters.T @ sources, counts, states, stays, steps, width, table_gradient,
                TIME=16, ENTRIES=32, FROM=arcs_into_one.block,
            )  # fmt: skip
        return gradient, table_gradient
