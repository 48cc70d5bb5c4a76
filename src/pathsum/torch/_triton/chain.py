"""Chains on a GPU.

Planes over frames are (N, T, S'), padding included: their sizes are known without a look at the lengths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pathsum.kernels.protocol import Call, ChainPath, ChainSaved
from pathsum.kernels.triton import best_path, chain, chain_gradient, chain_hvp
from pathsum.kernels.triton.plan import STRIP, bucket, cells, entries, programs
from pathsum.lattice import ChainLattice
from pathsum.torch._inputs import on_device
from pathsum.torch._lattices import ChainOperators
from pathsum.torch._triton.dense import Transitions
from pathsum.torch._triton.launching import (
    aligned,
    empties,
    empty_gradient,
    in_rows,
    in_triton,
    launch,
    nowhere,
    tiles,
    warps,
    work_dtype,
)

# States that a program holds of the means of second derivatives, which need more registers a state.
MEANS_STRIP = 1024
# States, of all rows of a program, whose three arcs are kept in registers.
EXPECTED = 256
# States, and frames at a time, whose posteriors a program adds up.
COUNTED, TIME = 64, 16


class Chain(ChainOperators):
    name = "triton_chain"
    reads_on_device = True
    expects = True

    def sent(self, lattice: ChainLattice, device: torch.device) -> ChainLattice:
        return on_device(lattice, device)

    def forward(self, call: Call, need_gradient: bool) -> ChainSaved:
        own, (scores, transitions), logits = _Chains.of(call), call.scores, call.options.softmax
        relative, empty, work = call.options.relative and transitions is not None, empties(scores), work_dtype(scores)
        scored = _scored(own, scores, work, logits=logits, relative=relative)
        left = ((None, None, None), None) if relative else (scored.statistics, own.common)
        swept = _swept(own, scored.planes, scored.extents, *left, logits=logits, need_beta=need_gradient)
        maxima, sums, _ = scored.statistics
        maxima, sums = maxima if logits else empty(0, dtype=work), sums.to(work)
        if not need_gradient:
            return ChainSaved(swept.losses, maxima, sums, empty(0, 0, dtype=work), empty(0, 0, dtype=work))
        launch(
            chain.find_posteriors, own.grid_of_rows, scores,
            *scored.planes, scored.extents, swept.losses, *own.lengths, *own.arcs, swept.alpha, swept.beta, len(scores),
            own.num_frames, own.width, own.width, own.ends[0], SHARED=own.shared, FIXED=own.fixed,
            TRANSITIONS=own.arcs[-1] is not None, **own.tile,
        )  # fmt: skip
        stay, step = scored.planes
        return ChainSaved(swept.losses, maxima, sums, empty(0, 0, dtype=work) if own.shared else stay, step)

    def backward(
        self, call: Call, saved: ChainSaved, upstream: Tensor, needed: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        # The gradient needs no transitions, but to know where they are.
        own, (scores, transitions), options = _Chains.of(call, prepared=False), call.scores, call.options
        upstream, step = upstream.contiguous(), saved.step
        gradient, transition_gradient = scores.new_empty(0), scores.new_empty(0)
        if options.by_logits:
            saved = saved._replace(maxima=step.new_zeros(len(step)), sums=step.new_ones(len(step)))
        if needed[0]:
            gradient = _gradient(own, upstream, scores, options.softmax or options.by_logits, saved)
        if transitions is not None and needed[1]:
            dtype = transitions.dtype
            transition_gradient = _transition_gradient(own, upstream, saved.losses, step, dtype, entries=1.0)
        return gradient, transition_gradient

    def second(
        self, call: Call, saved: ChainSaved, upstream: Tensor, tangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        own, (scores, transitions), logits = _Chains.of(call), call.scores, call.options.softmax
        upstream, constants = in_rows(upstream, tangents[1])
        tangent = scores.new_zeros(1).expand(scores.shape) if tangents[0] is None else tangents[0]
        losses, maxima, sums = saved[:3]
        num_rows, num_classes = scores.shape[:2].numel(), scores.shape[2]
        empty, work = empties(scores), work_dtype(scores)
        read = (tangent, *tangent.stride(), scores, *scores.stride(), *scores.shape, own.lengths[0])
        means = empty(num_rows if logits else 0, dtype=work)
        step_scores, step_costs = (empty(num_rows, own.width, dtype=work) for _ in range(2))
        stay_scores, stay_costs = step_scores, step_costs
        if not own.shared:
            stay_scores, stay_costs = torch.empty_like(step_scores), torch.empty_like(step_costs)
        # Samples without a path are not gone through.
        extents = torch.where(losses < torch.inf, 0, chain.UNDEFINED.value).to(torch.int32)
        rows, classes = tiles(num_classes, work)
        launch(
            chain_hvp.gather_tangents, (programs(num_rows, rows),), scores,
            *read, own.lengths[1], *own.labels, own.width, losses, maxima, sums, means, stay_scores, step_scores,
            stay_costs, step_costs, extents, LOGITS=logits, SHARED=own.shared, WORK=in_triton(work), ROWS=rows,
            BLOCK=classes, ALIGNED=aligned(scores, tangent),
        )  # fmt: skip
        planes = _tell_arcs_apart(own, (stay_scores, step_scores), saved, extents)
        costs = _move_posteriors(own, planes, (stay_costs, step_costs, constants), losses, planes[:2])
        moved_stay, moved_step, _ = planes
        product = empty_gradient(scores)
        read = (upstream, *read, losses, maxima, sums, means)
        launch(
            chain_hvp.write_product, (programs(num_rows, rows),), scores,
            *read, product, *product.stride(), LOGITS=logits, WORK=in_triton(work), ROWS=rows, BLOCK=classes,
            ALIGNED=aligned(scores, tangent, product),
        )  # fmt: skip
        entries = _Entries(own, num_classes)
        launch(
            chain_hvp.write_entries, (programs(num_rows, entries.rows),), scores,
            *read, moved_stay, moved_step, *entries.listed, own.width, product, *product.stride(), LOGITS=logits,
            WORK=in_triton(work), **entries.constants,
        )  # fmt: skip
        slopes = means.view(scores.shape[:2]).sum(1, dtype=torch.float64) - costs if logits else -costs
        if transitions is None:
            return slopes, (product, scores.new_empty(0, 0))
        moved = _transition_gradient(own, upstream, losses, moved_step, transitions.dtype, entries=0.0)
        return slopes, (product, moved)

    def best(self, call: Call) -> ChainPath:
        scores = call.scores[0]
        own = _Chains.of(Call((scores, None), self.sent(call.lattice, scores.device)))
        # A best path has the transitions as they are.
        arcs = (*own.arcs[:-1], *in_rows(call.scores[1]))
        empty, num_samples = empties(scores), len(scores)
        log_probs, states = empty(num_samples), nowhere(scores, num_samples, own.num_frames)
        edges = empty(num_samples, 2, own.num_frames, 2)
        moves = empty(num_samples, own.num_frames, own.width, dtype=torch.int8)
        block = bucket(own.width, 32, STRIP)
        launch(
            best_path.chain, (num_samples,), scores,
            scores, *scores.stride(), *own.lengths, *own.labels, *arcs, own.num_frames, own.width, *own.ends, edges,
            moves, log_probs, states, TRANSITIONS=arcs[-1] is not None, BLOCK=block, num_warps=warps(block),
        )  # fmt: skip
        return ChainPath(log_probs, states)

    def list_posteriors(self, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        """(N, T, S') each."""
        (scores, _), logits = call.scores, call.options.softmax
        lattice = self.sent(call.lattice, scores.device)
        # As if their labels were not the same, the kernels tell the two arcs apart.
        own = _Chains.of(call._replace(lattice=dataclasses.replace(lattice, shared_labels=False)))
        scored = _scored(own, scores, work_dtype(scores), logits=logits)
        swept = _swept(own, scored.planes, scored.extents, scored.statistics, logits=logits)
        nodes = torch.empty_like(scored.planes[1])
        launch(
            chain.list_posteriors, own.grid_of_rows, scores,
            *scored.planes, scored.extents, swept.losses, *own.lengths, *own.arcs, swept.alpha, swept.beta, len(scores),
            own.num_frames, own.width, own.width, own.ends[0], nodes, FIXED=own.fixed,
            TRANSITIONS=own.arcs[-1] is not None, **own.tile,
        )  # fmt: skip
        shape = (*scores.shape[:2], own.width)
        return nodes.view(shape), scored.planes[0].view(shape), scored.planes[1].view(shape)

    def expect(self, call: Call, costs: Tensor | None) -> tuple[Tensor, Sequence[Tensor]]:
        """Of chains without transitions, of costs (N, T, C)."""
        own, (scores, _), logits = _Chains.of(call)._replace(fixed=True), call.scores, call.options.softmax
        empty, shape = empties(scores), (scores.shape[:2].numel(), own.width)
        # What is made of it is the difference of a log-sum and a mean score, each as large as a loss.
        scored = _scored(own, scores, torch.float64, logits=logits)
        maxima, sums, _ = scored.statistics
        # Without a softmax costs lack what is huge in the frames' scores, as the loss does.
        statistics = scored.statistics if logits else (None, None, None)
        swept = _swept(own, scored.planes, scored.extents, statistics, logits=logits)
        stay, step, skip, step_costs = (empty(*shape) for _ in range(4))
        stay_costs = step_costs if own.shared else empty(*shape)
        entered, expected = step if costs is None else empty(*shape), empty(shape[0])
        block = bucket(own.width, 16, EXPECTED)
        rows = min(EXPECTED // block, 8)
        launch(
            chain.expect, (programs(shape[0], rows),), scores,
            *scored.planes, maxima, sums, swept.losses, *own.lengths, own.arcs[0], *own.labels, swept.alpha, swept.beta,
            len(scores), own.num_frames, own.width, own.ends[0], costs,
            *((0, 0, 0) if costs is None else costs.stride()), stay, step, skip, entered, stay_costs, step_costs,
            expected, LOGITS=logits, SHARED=own.shared, ROWS=rows, BLOCK=block,
        )  # fmt: skip
        kept = (swept.losses, stay, step, skip, entered, stay_costs, step_costs)
        return expected.view(scores.shape[:2]).sum(1), kept

    def expect_gradients(
        self, call: Call, costs: Tensor | None, kept: Sequence[Tensor], upstream: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        own, (scores, _) = _Chains.of(call), call.scores
        losses, stay, step, skip, entered, *arc_costs = kept
        empty, count = empties(scores), own.width if own.shared else 2 * own.width
        outs = [
            empty_gradient(beside) if need and beside is not None else None
            for need, beside in ((needed[1], scores), (needed[0], costs))
        ]
        given = [item for out in outs for item in (out, *((0, 0, 0) if out is None else out.stride()))]
        classes, owners = (empty(len(scores), count, dtype=torch.int32) for _ in range(2))
        rows, block = tiles(scores.shape[2], torch.float64)
        row_count, blocks = programs(scores.shape[:2].numel(), rows), programs(count, 32)
        parts = 1 if costs is None else 2
        launch(
            chain_gradient.begin_expected_gradients, (max(row_count, len(scores) * blocks), 1 + parts), scores,
            losses, *scores.shape, *own.lengths, *own.labels, own.width, count, classes, owners, blocks, row_count,
            *given, ROWS=rows, BLOCK=block, ENTRIES=32,
        )  # fmt: skip
        moved_stay, moved_step = stay, entered
        if needed[1]:
            moved_stay, moved_step = empty(*stay.shape), empty(*stay.shape)
            _move_posteriors(own, (stay, step, skip), (*arc_costs, None), losses, (moved_stay, moved_step))
        constants = entries(count)
        launch(
            chain_gradient.write_expected_gradients, (programs(len(stay), constants["ROWS"]), parts), scores,
            upstream.contiguous(), losses, *scores.shape, own.lengths[0], moved_stay, moved_step, stay, entered,
            classes, owners, count, own.width, *given, **constants,
        )  # fmt: skip
        return outs[1], outs[0], None


class _Chains(NamedTuple):
    """Chains as kernels take them: integers in rows, and what sizes the launches.

    Attributes:
        lengths: Frames and states of each sample.
        labels: Of the arcs that stay, and of those that enter.
        arcs: Skips, indices of the two arcs' transitions, and transitions less what they have in common.
        ends: The state before the first frame, and how many of the last are final.
        fixed: Whether all samples take the wide pair: scores of arcs that are the same in all frames have their
            rounding in all frames too.
        common: What transitions have in common, (1,), of those that have scores.
    """

    lengths: tuple[Tensor, Tensor]
    labels: tuple[Tensor, Tensor]
    arcs: tuple[Tensor | None, ...]
    num_frames: int
    width: int
    ends: tuple[int, int]
    shared: bool
    fixed: bool
    common: Tensor | None

    @classmethod
    def of(cls, call: Call, prepared: bool = True) -> _Chains:
        (scores, transitions), own = call.scores, call.lattice
        lengths = in_rows(own.input_lengths, own.num_states)
        labels = in_rows(own.stay_labels, own.step_labels)
        table, common = transitions, None
        if transitions is not None and prepared:
            table, common, *_ = Transitions.of(transitions.contiguous())
        arcs = in_rows(own.skips, own.stay_transitions, own.step_transitions, table)
        return cls(
            (lengths[0], lengths[1]), (labels[0], labels[1]), tuple(arcs), scores.shape[1], labels[1].shape[1],
            (own.start_state, own.num_final), own.shared_labels,
            transitions is not None or work_dtype(scores) == torch.float64, common,
        )  # fmt: skip

    @property
    def tile(self) -> dict[str, int]:
        """Rows and states that a program of posteriors has at a time."""
        return {"ROWS": (found := tiles(self.width, torch.float64)).rows, "BLOCK": found.classes}

    @property
    def grid_of_rows(self) -> tuple[int, int]:
        """Programs of posteriors, of all rows, and of each of the pairs of extended range that samples take."""
        num_rows = len(self.lengths[0]) * self.num_frames
        return programs(num_rows, self.tile["ROWS"]), 1 if self.fixed else 2


class _Scored(NamedTuple):
    """Scores by state, as the recursion takes them.

    Attributes:
        planes: (rows, S') of the arcs that stay and that enter; the same where these share their labels.
        statistics: Maxima and sums of the rows, and the powers of their units.
        extents: (N,) the bits of the largest score of each sample by size.
    """

    planes: tuple[Tensor, Tensor]
    statistics: tuple[Tensor, Tensor, Tensor]
    extents: Tensor


def _scored(own: _Chains, scores: Tensor, work: torch.dtype, *, logits: bool, relative: bool = False) -> _Scored:
    """``work``: what is computed in; ``relative``: the maxima are of no use, and not written."""
    empty, num_rows = empties(scores), scores.shape[:2].numel()
    maxima, sums = empty(num_rows, dtype=work), empty(num_rows) if logits else empty(0, dtype=work)
    powers = empty(num_rows if logits else 0, dtype=torch.int32)
    step_scores = empty(num_rows, own.width, dtype=work)
    stay_scores = step_scores if own.shared else empty(num_rows, own.width, dtype=work)
    extents = torch.zeros(len(scores), dtype=torch.int32, device=scores.device)
    rows, classes = tiles(scores.shape[2], work)
    launch(
        chain.score_rows, (programs(num_rows, rows),), scores,
        scores, *scores.stride(), *scores.shape, *own.lengths, *own.labels, own.width, own.width,
        None if relative else maxima, sums, powers, stay_scores, step_scores, extents, LOGITS=logits, SHARED=own.shared,
        RELATIVE=relative, WORK=in_triton(work), ROWS=rows, BLOCK=classes, ALIGNED=aligned(scores),
    )  # fmt: skip
    return _Scored((stay_scores, step_scores), (maxima, sums, powers), extents)


class _Swept(NamedTuple):
    """Masses up to and behind each state, and the losses."""

    alpha: Tensor
    beta: Tensor
    losses: Tensor


def _swept(
    own: _Chains,
    planes: tuple[Tensor, Tensor],
    extents: Tensor,
    statistics: tuple[Tensor | None, ...] = (None, None, None),
    common: Tensor | None = None,
    *,
    logits: bool = False,
    need_beta: bool = True,
) -> _Swept:
    """The losses lack what alpha does, unless ``statistics`` are given, and what transitions have in common, unless
    ``common`` is.
    """
    empty, (num_rows, width), block = empties(extents), planes[1].shape, bucket(own.width, 32, STRIP)
    beta = empty(num_rows if need_beta else 0, width, dtype=torch.int64)
    found = _Swept(empty(num_rows, width), beta, empty(len(extents)))
    launch(
        chain.solve, (len(extents), 2 if need_beta else 1), extents,
        *planes, *statistics, extents, *own.lengths, *own.arcs, common, own.num_frames, width, width, *own.ends, *found,
        LOGITS=logits, SHARED=own.shared, FIXED=own.fixed, TRANSITIONS=own.arcs[-1] is not None, BLOCK=block,
        STRIPS=width > block, num_warps=warps(block),
    )  # fmt: skip
    return found


def _tell_arcs_apart(
    own: _Chains, scores: tuple[Tensor, Tensor], saved: ChainSaved, extents: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Posteriors (rows, S') of the arcs that stay, step and skip."""
    num_rows, width = scores[1].shape
    alpha = _swept(own, scores, extents, need_beta=False).alpha
    stay, step, skip = (torch.empty_like(scores[1]) for _ in range(3))
    rows, columns = tiles(width, torch.float64)
    launch(
        chain_hvp.tell_arcs_apart, (programs(num_rows, rows), programs(width, columns)), extents,
        saved.losses, *own.lengths, *own.arcs, alpha, *saved.posteriors, len(extents), own.num_frames, width,
        own.ends[0], stay, step, skip, TRANSITIONS=own.arcs[-1] is not None, ROWS=rows, BLOCK=columns,
        SHARED=own.shared,
    )  # fmt: skip
    return stay, step, skip


def _move_posteriors(
    own: _Chains,
    posteriors: tuple[Tensor, ...],
    costs: tuple[Tensor | None, ...],
    losses: Tensor,
    moved: tuple[Tensor, Tensor],
) -> Tensor:
    """Mean cost (N,) of each sample's paths, and how their posteriors move, in the room given for it.

    ``costs``: of the arcs that stay and that enter, and of transitions. ``moved``: of the arcs that stay, and of those
    that enter, or where they share their labels of all.
    """
    num_rows, num_samples, stay = len(posteriors[0]), len(losses), posteriors[0]
    costly = (*posteriors, *costs, *own.arcs[1:3], losses, *own.lengths, own.num_frames, own.width)
    empty, constants = empties(stay), costs[2] is not None
    before, behind, means = empty(num_rows, own.width), empty(num_rows, own.width), empty(num_samples)
    block = bucket(own.width, 32, MEANS_STRIP)
    launch(
        chain_hvp.solve, (num_samples, 2), stay,
        *costly, own.ends[1], before, behind, means, CONSTANTS=constants, BLOCK=block,
        STRIPS=own.width > block, num_warps=warps(block),
    )  # fmt: skip
    rows, columns = tiles(own.width, torch.float64)
    launch(
        chain_hvp.move_posteriors, (programs(num_rows, rows), programs(own.width, columns)), stay,
        *costly[:-2], before, behind, means, num_samples, *costly[-2:], *moved, ROWS=rows, BLOCK=columns,
        CONSTANTS=constants, SHARED=own.shared,
    )  # fmt: skip
    return means


def _gradient(own: _Chains, upstream: Tensor, scores: Tensor, logits: bool, saved: ChainSaved) -> Tensor:
    num_rows, num_classes = scores.shape[:2].numel(), scores.shape[2]
    gradient, work = empty_gradient(scores), work_dtype(scores)
    read = (upstream, scores, *scores.stride(), *scores.shape, own.lengths[0], *saved[:3])
    rows, block = tiles(num_classes, work)
    launch(
        chain_gradient.write_gradient, (programs(num_rows, rows),), scores,
        *read, gradient, *gradient.stride(), LOGITS=logits, WORK=in_triton(work), ROWS=rows, BLOCK=block,
        ALIGNED=aligned(scores, gradient),
    )  # fmt: skip
    entries = _Entries(own, num_classes)
    launch(
        chain_gradient.write_entries, (programs(num_rows, entries.rows),), scores,
        *read, *saved[3:], *entries.listed, own.width, gradient, *gradient.stride(), LOGITS=logits,
        WORK=in_triton(work), **entries.constants,
    )  # fmt: skip
    return gradient


class _Entries:
    """The entries of a gradient that the states of each sample have: those of the arcs that enter and, where their
    labels differ, of those that stay.
    """

    def __init__(self, own: _Chains, num_classes: int):
        labels, num_samples = own.labels, len(own.lengths[0])
        count = own.width if own.shared else 2 * own.width
        empty = empties(labels[0])
        classes, owners = (empty(num_samples, count, dtype=torch.int32) for _ in range(2))
        launch(
            chain_gradient.sort_entries, (num_samples, programs(count, 32)), classes,
            own.lengths[1], *labels, num_classes, own.width, count, classes, owners, BLOCK=32,
        )  # fmt: skip
        self.listed = (classes, owners, count)
        self.constants = entries(count)
        self.rows = self.constants["ROWS"]


def _transition_gradient(
    own: _Chains, upstream: Tensor, losses: Tensor, posteriors: Tensor, dtype: torch.dtype, *, entries: float
) -> Tensor:
    """``entries``: how often a path enters a state, 0 where the posteriors are tangents."""
    _, stay, step, transitions = own.arcs
    assert stay is not None
    assert step is not None
    assert transitions is not None
    num_samples, width = len(losses), own.width
    num_frames = len(posteriors) // max(num_samples, 1)
    counts = empties(transitions)(num_samples, 2, width)
    block = bucket(width, 32, COUNTED)
    launch(
        chain_gradient.count_arcs, (num_samples, programs(width, block)), transitions,
        upstream, losses, *own.lengths, posteriors, entries, num_frames, width, counts, TIME=TIME, BLOCK=block,
    )  # fmt: skip
    gradient = torch.empty_like(transitions, dtype=dtype, memory_format=torch.contiguous_format)
    arcs_into_one = cells(len(transitions))
    launch(
        chain_gradient.add_counts, arcs_into_one.grid, transitions,
        counts, own.lengths[1], stay, step, num_samples, width, len(transitions), gradient, ENTRIES=32,
        FROM=arcs_into_one.block,
    )  # fmt: skip
    return gradient
