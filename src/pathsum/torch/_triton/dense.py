"""Dense lattices on a GPU.

Planes over frames are (N, T, C), padding included: their sizes are known without a look at the lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathsum.kernels.protocol import Call, DenseOptions, DensePath, DenseSaved
from pathsum.kernels.triton import best_path, dense, dense_hvp, dense_log
from pathsum.kernels.triton.plan import bucket, cells, programs, table_blocks
from pathsum.lattice import DenseLattice
from pathsum.torch._inputs import on_device
from pathsum.torch._lattices import DenseOperators
from pathsum.torch._triton.launching import empties, empty_gradient, flags, in_rows, launch, nowhere, tiles, warps


class Transitions(NamedTuple):
    """Transitions (C, C) as ``dense.weigh_transitions`` makes them."""

    table: Tensor
    common: Tensor
    matrix: Tensor
    transposed: Tensor
    shift: Tensor
    status: Tensor

    @classmethod
    def room(cls, transitions: Tensor, status: Tensor) -> Transitions:
        """Memory for them; ``status`` is two zeros."""
        empty, shape = empties(transitions), transitions.shape
        return cls(empty(*shape), empty(1), empty(*shape), empty(*shape), empty(1), status)

    @classmethod
    def of(cls, transitions: Tensor) -> Transitions:
        """Of contiguous ones."""
        (status,) = flags(transitions, 2)
        made, (count, block) = cls.room(transitions, status), table_blocks(len(transitions))
        launch(
            dense.prepare_transitions, (count,), transitions,
            transitions, len(transitions), *made, BLOCK=block,
        )  # fmt: skip
        return made


class Dense(DenseOperators):
    name = "triton_dense"
    reads_on_device = True

    def sent(self, lattice: DenseLattice, device: torch.device) -> DenseLattice:
        return on_device(lattice, device)

    def forward(self, call: Call, need_gradient: bool) -> DenseSaved:
        scores, relative = call.scores[0], call.options.relative
        num_samples, num_frames, num_classes = scores.shape
        num_rows = num_samples * num_frames
        input_lengths, transitions = in_rows(call.lattice.input_lengths, call.scores[1])
        lost, status = flags(scores, num_samples, 2)
        arcs = Transitions.room(transitions, status)
        empty, sizes = empties(scores), (num_frames, num_classes)
        references, emits, scales = empty(num_rows), empty(num_rows, num_classes), empty(num_rows)
        alpha, losses = empty(num_rows, num_classes), empty(num_samples)
        beta, entering = (empty(num_rows if need_gradient else 0, num_classes) for _ in range(2))
        (rows, block), (table_count, table_block) = tiles(num_classes, torch.float64), table_blocks(len(transitions))
        row_count = programs(num_rows, rows)
        launch(
            dense.prepare, (max(row_count, table_count), 2), scores,
            scores, *scores.stride(), num_samples, *sizes, input_lengths, references, emits, lost, row_count,
            transitions, *arcs, table_count, ROWS=rows, BLOCK=block, TABLE=table_block,
        )  # fmt: skip
        launch(
            dense.solve, (num_samples, 2 if need_gradient else 1), scores,
            input_lengths, *sizes, references, emits, arcs.matrix, arcs.transposed, arcs.shift, arcs.common, status,
            alpha, scales, beta, entering, losses, lost, RELATIVE=relative, **tile_of_sweep(num_classes),
        )  # fmt: skip
        extended = empty(num_samples, dtype=torch.bool)
        parts = max(programs(num_frames, rows), 1) if need_gradient else 1
        launch(
            dense_log.finish, (num_samples * parts,), scores,
            scores, *scores.stride(), parts, input_lengths, *sizes, arcs.table, arcs.common, arcs.shift, references,
            alpha, scales, beta, entering, losses, lost, extended, RELATIVE=relative, GRADIENT=need_gradient, ROWS=rows,
            BLOCK=block, **tile_of_matrix(num_classes),
        )  # fmt: skip
        return DenseSaved(losses, extended, beta, alpha if need_gradient else beta, entering)

    def backward(
        self, call: Call, saved: DenseSaved, upstream: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor, Tensor]:
        scores = call.scores[0]
        input_lengths, transitions, upstream = in_rows(call.lattice.input_lengths, call.scores[1], upstream)
        gradient, transition_gradient = scores.new_empty(0), scores.new_empty(0)
        if needed[0]:
            gradient = _gradient(upstream, scores, input_lengths, saved.losses, saved.gamma)
        if needed[1]:
            transition_gradient = _transition_gradient(upstream, scores.shape, transitions, input_lengths, saved)
        return gradient, transition_gradient

    def second(
        self, call: Call, saved: DenseSaved, upstream: Tensor, tangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        scores = call.scores[0]
        input_lengths, transitions, constants, upstream = in_rows(
            call.lattice.input_lengths, call.scores[1], tangents[1], upstream
        )
        tangent = scores.new_zeros(1).expand(scores.shape) if tangents[0] is None else tangents[0]
        losses, extended, gamma, alpha, entering = saved
        num_samples, num_frames, num_classes = scores.shape
        before, behind, moved = (torch.empty_like(gamma) for _ in range(3))
        costs, lost = empties(scores)(num_samples), extended.to(torch.int32)
        table, _, matrix, *_ = Transitions.of(transitions)
        frames = (tangent, *tangent.stride(), input_lengths, num_frames, num_classes)
        arcs = (matrix, table, constants)
        launch(
            dense_hvp.solve, (num_samples, 2), scores,
            *frames, *arcs, gamma, alpha, entering, losses, lost, before, behind, costs,
            CONSTANTS=constants is not None, **tile_of_matrix(num_classes),
        )  # fmt: skip
        launch(
            dense_hvp.move_posteriors, (num_samples * num_frames,), scores,
            *frames, gamma, losses, before, behind, costs, moved, **_block(num_classes),
        )  # fmt: skip
        product = _gradient(upstream, scores, input_lengths, losses, moved)
        transition_product = torch.zeros_like(transitions)
        if needed[1]:
            transition_product = _transition_product(
                upstream, scores.shape, arcs, input_lengths, saved, (before, behind)
            ).to(transitions.dtype)
        return -costs, (product, transition_product)

    def best(self, call: Call) -> DensePath:
        scores = call.scores[0]
        num_samples, num_frames, num_classes = scores.shape
        lattice = self.sent(call.lattice, scores.device)
        input_lengths, transitions = in_rows(lattice.input_lengths, call.scores[1])
        empty = empties(scores)
        log_probs, states = empty(num_samples), nowhere(scores, num_samples, num_frames)
        undefined = (~(transitions < torch.inf).all()).to(torch.int32)
        launch(
            best_path.dense, (num_samples,), scores,
            scores, *scores.stride(), input_lengths, transitions, undefined, num_frames, num_classes,
            empty(num_samples, 2, num_classes), empty(num_samples, num_frames, num_classes, dtype=torch.int32),
            log_probs, states, **tile_of_matrix(num_classes),
        )  # fmt: skip
        return DensePath(log_probs, states)

    def posteriors(self, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        """Of each state in each frame, garbage in padding; and how often each arc is expected in all samples but those
        of NaN.
        """
        scores, transitions = call.scores
        call = Call(call.scores, self.sent(call.lattice, scores.device), DenseOptions())
        saved = self.forward(call, need_gradient=True)
        counted = torch.where(saved.losses.isnan(), 0.0, -1.0).to(saved.losses)
        wide = call._replace(scores=(scores, transitions.double()))
        _, counts = self.backward(wide, saved, counted, needed=[False, True])
        return saved.losses, saved.gamma.view(scores.shape), counts


def _gradient(upstream: Tensor, scores: Tensor, input_lengths: Tensor, losses: Tensor, gamma: Tensor) -> Tensor:
    """Minus the upstream gradient times the posteriors of the states, or times how these move."""
    num_samples, num_frames, num_classes = scores.shape
    gradient = empty_gradient(scores)
    rows, block = tiles(num_classes, torch.float64)
    num_rows = num_samples * num_frames
    launch(
        dense.write_gradient, (programs(num_rows, rows),), scores,
        upstream, losses, gamma, input_lengths, num_frames, num_classes, num_rows, gradient, *gradient.stride(),
        ROWS=rows, BLOCK=block,
    )  # fmt: skip
    return gradient


def _transition_gradient(
    upstream: Tensor, shape: torch.Size, transitions: Tensor, input_lengths: Tensor, saved: DenseSaved
) -> Tensor:
    num_samples, num_frames, num_classes = shape
    table, _, matrix, *_ = Transitions.of(transitions)
    enters, sources = torch.empty_like(saved.entering), torch.empty_like(saved.alpha)
    num_rows, (rows, block) = num_samples * num_frames, tiles(num_classes, torch.float64)
    launch(
        dense.weigh_arcs, (programs(num_rows, rows),), transitions,
        upstream, saved.losses, input_lengths, saved.extended, num_frames, num_classes, num_rows, saved.alpha,
        saved.entering, enters, sources, ROWS=rows, BLOCK=block,
    )  # fmt: skip
    gradient, arcs_into_one = torch.empty_like(transitions), cells(num_classes)
    launch(
        dense_log.add_transition_gradient, arcs_into_one.grid, transitions,
        upstream, input_lengths, saved.losses, num_samples, num_frames, num_classes, table, matrix, saved.alpha,
        saved.entering, saved.extended, enters.T @ sources, gradient, TIME=16, FROM=arcs_into_one.block,
    )  # fmt: skip
    return gradient


def _transition_product(
    upstream: Tensor,
    shape: torch.Size,
    arcs: tuple[Tensor, Tensor, Tensor | None],
    input_lengths: Tensor,
    saved: DenseSaved,
    means: tuple[Tensor, Tensor],
) -> Tensor:
    """``arcs``: exponentials of the transitions, these, and their tangent; ``means``: of the costs before and behind
    each state.
    """
    num_samples, num_frames, num_classes = shape
    matrix, transitions, constants = arcs
    before, behind = means
    undefined, (enters, sources) = _linear(upstream, shape, input_lengths, saved)
    passed, left = before.view(shape)[:, :-1].flatten(0, 1), behind.view(shape)[:, 1:].flatten(0, 1)
    product = (enters * left).T @ sources + enters.T @ (sources * passed)
    if constants is not None:
        product += constants * (enters.T @ sources)
    product *= matrix
    tile = tile_of_matrix(num_classes)
    launch(
        dense_hvp.add_transition_product,
        (programs(num_classes, tile["TO"]), programs(num_classes, tile["FROM"])), transitions,
        upstream, input_lengths, saved.losses, num_samples, num_frames, num_classes, *arcs, saved.alpha, saved.entering,
        saved.extended.to(torch.int32), before, behind, product, CONSTANTS=constants is not None, **tile,
    )  # fmt: skip
    return torch.where(undefined, torch.nan, product)


def _linear(
    upstream: Tensor, shape: torch.Size, input_lengths: Tensor, saved: DenseSaved
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Whether a sample that counts is undefined; what enters the frames, times minus the upstream gradient, and alpha
    of the frames before, (rows, C) each, 0 of samples that are lost.
    """
    losses, extended = saved.losses, saved.extended
    has_arcs = (input_lengths > 1) & (upstream != 0)
    weights = torch.where(has_arcs & (losses < torch.inf) & ~extended, -upstream, 0.0)
    # Zeros meet no infinity: the planes are 0 in padding and where there is no path.
    linear = ~extended[:, None, None]
    enters = torch.where(linear, saved.entering.view(shape)[:, 1:], 0.0) * weights[:, None, None]
    sources = torch.where(linear, saved.alpha.view(shape)[:, :-1], 0.0)
    return (has_arcs & losses.isnan()).any(), (enters.flatten(0, 1), sources.flatten(0, 1))


def _block(num_classes: int) -> dict[str, int]:
    """States of a frame that are written over: a lane has them to itself, lest another reads what it has written."""
    block = bucket(num_classes, 32, 1024)
    return {"BLOCK": block, "num_warps": warps(block)}


def tile_of_matrix(num_classes: int) -> dict[str, int]:
    """States that arcs come to and from, of a tile of the matrix: a row of it is a warp's, which adds it up alone."""
    return {"TO": bucket(num_classes, 16, 32), "FROM": 32, "num_warps": 4 if num_classes <= 32 else 8}


def tile_of_sweep(num_classes: int) -> dict[str, Any]:
    """The same of a recursion, which waits for memory once a tile; SINGLE: it is the matrix, and stays in registers."""
    side = 32 if num_classes <= 32 else 64
    tile = {"TO": bucket(num_classes, 16, side), "FROM": side, "SINGLE": num_classes <= side}
    return tile | {"num_warps": 4 if num_classes <= 32 else 16}
