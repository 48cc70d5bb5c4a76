"""Arc lattices on a GPU: planes are read from logits or given; sums of planes score the arcs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathsum.errors import ImplementationError
from pathsum.kernels.protocol import ArcOptions, Call, RowOptions, RowsSaved
from pathsum.kernels.reference import grid_arcs as reference
from pathsum.kernels.triton import grid_arcs, grid_arcs_hvp
from pathsum.kernels.triton.plan import bucket, programs
from pathsum.lattice import ArcLattice
from pathsum.torch._inputs import on_device
from pathsum.torch._lattices import ARC_OPERANDS, OPERANDS, RowsOperators
from pathsum.torch._operators import OperatorKernels, unknown_size
from pathsum.torch._ops.arrays import as_tensor
from pathsum.torch._triton.grid import move_packed, solve_packed, take_off_common
from pathsum.torch._triton.launching import empties, even, launch, sent, warps
from pathsum.torch._triton.rows import Reader, room_for
from pathsum.torch._triton.tiles import JoinerTiles

# The arcs of a grid that has kernels of its own, in the order of its planes.
_BLANK_AND_LABEL = ((1, 0), (0, 1))
# Label positions that a program of the recursion holds; wider grids are done in strips.
STRIP = 1024
_NODES = 128

# Softmax maxima and sums of the rows.
Statistics = Sequence[Tensor]


class Rows(RowsOperators):
    name = "triton_rows"
    reads_on_device = True

    def sent(self, lattice: ArcLattice, device: torch.device) -> ArcLattice:
        return sent_arcs(lattice, device)

    def forward(self, call: Call, need_gradient: bool) -> RowsSaved:
        return Reader(call).read()

    def backward(self, call: Call, saved: RowsSaved, upstream: Tensor, needed: Sequence[bool]) -> tuple[Tensor]:
        return (Reader(call).gradient(upstream, None, saved[1:]),)

    def second(
        self, call: Call, saved: RowsSaved, upstream: Tensor, tangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> tuple[Tensor, tuple[Tensor]]:
        tangent = torch.zeros_like(call.scores[0]) if tangents[0] is None else tangents[0]
        planes, product = Reader(call).move(tangent, upstream, None, saved[1:])
        return planes, (product,)


class Kept(NamedTuple):
    """What forward keeps, planes (K, stride) of the nodes at their beginning.

    Attributes:
        losses: (N,)
        planes: What the arcs' scores are made of; of Graves' two arcs their posteriors.
        alpha, beta, totals: As ``grid_arcs.solve`` leaves them; of no size of Graves' two arcs.
        maxima, sums, second_maxima, second_sums: Softmax statistics of each head; of no size where it has none.
    """

    losses: Tensor
    planes: Tensor
    alpha: Tensor
    beta: Tensor
    totals: Tensor
    maxima: Tensor
    sums: Tensor
    second_maxima: Tensor
    second_sums: Tensor

    def statistics(self, head: int) -> Statistics:
        return (self.maxima, self.sums) if head == 0 else (self.second_maxima, self.second_sums)


class Arcs(OperatorKernels):
    name, lattice = "triton_arcs", ArcLattice
    inputs, options, saved = ARC_OPERANDS, ArcOptions, Kept
    reads_on_device = expects = True

    def sent(self, lattice: ArcLattice, device: torch.device) -> ArcLattice:
        return sent_arcs(lattice, device)

    def forward(self, call: Call, need_gradient: bool) -> Kept:
        own, heads, options = _Arcs.of(call), _heads(call), call.options
        undefined = torch.zeros(own.num_samples, dtype=torch.int32, device=call.scores[0].device)
        in_common: Tensor | float = 0.0
        if own.reads_planes:
            planes, first, statistics = own.planes(sum(own.sizes)), 0, []
            numbers = (options.sigma, options.delay_penalty)
            for head, size in zip(heads, own.sizes, strict=True):
                assert isinstance(head, _Logits)
                # Each arc is made of one plane of the first head.
                statistics += head.reader.read_into(planes[first : first + size], undefined, *numbers)
                first, numbers = first + size, (0.0, 0.0)
        else:
            read = [head.read() for head in heads]
            planes = own.wide(_scores([planes for planes, *_ in read], call))
            # The log-probabilities of a softmax have nothing huge in common.
            if not options.softmax or options.given:
                in_common = _take_off_common(planes, own, call.lattice)
            launch(
                grid_arcs.mark_undefined, (programs(own.stride, _NODES),), planes,
                planes, own.stride, *own.lengths, own.num_samples, undefined, NUM_KINDS=len(planes), ROWS=_NODES,
            )  # fmt: skip
            statistics = [tensor for _, *kept in read for tensor in kept]
        at_least = 0.0 if options.share_one(call.lattice) else -math.inf
        losses, *solved = _solve(own, planes, undefined, options.skip_score, at_least, need_gradient)
        if isinstance(in_common, Tensor):
            losses = losses - in_common
        statistics += [losses.new_empty(0) for _ in range(4 - len(statistics))]
        return Kept(losses, planes if need_gradient else planes.new_empty(0, 0), *solved, *statistics)

    def backward(self, call: Call, saved: Kept, upstream: Tensor, needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
        own, options = _Arcs.of(call), call.options
        by_planes, weights = _by_planes(own, call, saved, upstream, options.fastemit_lambda)
        gradients: list[Tensor | None] = []
        for k, (head, planes) in enumerate(zip(_heads(call), by_planes, strict=True)):
            wanted = needed[k * OPERANDS : (k + 1) * OPERANDS]
            gradients += head.gradients(planes, weights, saved.statistics(k), options.clamp, wanted)
        return *gradients, *[None] * (len(self.inputs) - len(gradients))

    def second(
        self, call: Call, saved: Kept, upstream: Tensor, tangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        own, heads = _Arcs.of(call), _heads(call)
        by_planes, weights = _by_planes(own, call, saved, upstream)
        along = [tangents[k * OPERANDS : (k + 1) * OPERANDS] for k in range(len(heads))]
        moved = [
            head.move(tangent, planes, weights, saved.statistics(k))
            for k, (head, tangent, planes) in enumerate(zip(heads, along, by_planes, strict=True))
        ]
        costs = own.wide(_scores([planes for planes, _ in moved], call._replace(options=ArcOptions())))
        slopes, moving = _move_posteriors(own, costs, saved, call.options.skip_score)
        moving = _of_planes(_row_scales(own, saved, None if weights is upstream else upstream) * moving, call)
        products: list[Tensor | None] = []
        for k, head in enumerate(heads):
            wanted = needed[k * OPERANDS : (k + 1) * OPERANDS]
            statistics, (_, product) = saved.statistics(k), moved[k]
            products += head.products(along[k], by_planes[k], moving[k], weights, statistics, product, wanted)
        return slopes, (*products, *[None] * (len(self.inputs) - len(products)))

    def expect(self, call: Call, costs: Tensor | None) -> tuple[Tensor, Sequence[Tensor]]:
        """Of padded logits, of other arcs than Graves' two, of costs (N, T, U+1, K)."""
        own, saved = _Arcs.of(call), self.forward(call, True)
        posteriors, arc_costs = (own.planes(len(own.kinds["ARCS"])) for _ in range(2))
        (expected,), kinds = own.planes(1), {name: own.kinds[name] for name in ("ARCS", "LABEL_ENDS")}
        launch(
            grid_arcs.expect, (programs(own.stride, _NODES),), posteriors,
            saved.planes, saved.alpha, saved.beta, saved.losses, saved.totals, own.stride, *own.lengths,
            own.num_samples, costs, *((0, 0, 0, 0) if costs is None else costs.stride()), posteriors, arc_costs,
            expected, TERMS=own.terms, **kinds, ROWS=_NODES,
        )  # fmt: skip
        values = torch.segment_reduce(expected, "sum", offsets=own.lengths[2], unsafe=True)
        statistics = [saved.statistics(head) for head in range(2)]
        kept = (saved.losses, posteriors, arc_costs, *chain.from_iterable(statistics))
        if costs is None:
            # Less than nothing where there is no path.
            return values - saved.losses, kept
        return torch.where(saved.losses.isnan(), saved.losses, values), kept

    def expect_gradients(
        self, call: Call, costs: Tensor | None, kept: Sequence[Tensor], upstream: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        own, (losses, posteriors, arc_costs, *statistics) = _Arcs.of(call), kept
        gradients: list[Tensor | None] = [None] * len(call.scores)
        if any(needed[1:]):
            _, moved = _moved(own, posteriors, own.planes(0), arc_costs, losses)
            made, kinds = own.planes(sum(own.sizes)), {name: own.kinds[name] for name in ("ARCS", "LABEL_ENDS")}
            # What a loss subtracts of an arc's posterior a mean adds of how it moves.
            launch(
                grid_arcs.differentiate, (programs(own.stride, _NODES),), made,
                moved, moved, moved, losses, losses, -upstream, 0.0, own.stride, *own.lengths, own.num_samples, made,
                TERMS=own.terms, READ=_flat(call.lattice.terms), NUM_PLANES=len(made), SOLVED=True, **kinds,
                ROWS=_NODES,
            )  # fmt: skip
            for k, (head, planes) in enumerate(zip(_heads(call), made.split(own.sizes), strict=True)):
                if needed[1 + k * OPERANDS]:
                    of_head = statistics[2 * k : 2 * k + 2]
                    gradients[k * OPERANDS], *_ = head.gradients(planes, None, of_head, 0.0, [True])
        cost_gradient = None
        if costs is not None and needed[0]:
            cost_gradient = torch.empty_like(costs, memory_format=torch.contiguous_format)
            num_frames, width, kinds_count = costs.shape[1:]
            num_rows = costs.shape[:3].numel()
            launch(
                grid_arcs.write_cost_gradient, (programs(num_rows, _NODES),), costs,
                upstream.contiguous(), posteriors, own.stride, num_rows, *own.lengths, own.num_samples, num_frames,
                width - 1, cost_gradient, KINDS=kinds_count, ROWS=_NODES,
            )  # fmt: skip
        return cost_gradient, *gradients

    def best(self, call: Call) -> Any:
        raise ImplementationError(
            "impl='triton' has no best path of other transducers than the regular one; impl='reference' has"
        )

    def sketch(self, call: Call) -> Kept:
        scores = call.scores[0]
        losses = scores.new_empty(len(call.lattice.logit_lengths), dtype=torch.float64)
        planes = [unknown_size(scores, axes=axes, dtype=torch.float64) for axes in (2, 1, 1, 1)]
        second = scores if call.scores[OPERANDS] is None else call.scores[OPERANDS]
        return Kept(losses, *planes, *[unknown_size(head, axes=1) for head in (scores, scores, second, second)])


class _Arcs(NamedTuple):
    """A lattice as kernels take it.

    Attributes:
        lengths: Frames, labels and offsets of each sample.
        num_nodes: Words of a plane that may be nodes.
        width: Label positions of the widest sample, or more.
        sizes: Planes of each head.
        terms: What each arc's score is made of, of the planes that are solved.
        reads_planes: Whether these are the heads' own; else they are the arcs' scores.
        kinds: The lattice in a kernel's words.
        is_regular: Whether its arcs are Graves' two, which have kernels of their own.
    """

    lengths: tuple[Tensor, Tensor, Tensor]
    num_nodes: int
    width: int
    sizes: tuple[int, ...]
    terms: tuple[tuple[int, ...], ...]
    reads_planes: bool
    kinds: dict[str, Any]
    is_regular: bool

    @classmethod
    def of(cls, call: Call) -> _Arcs:
        own, options, scores = call.lattice, call.options, call.scores[0]
        lengths = sent(scores.device, own.logit_lengths, own.target_lengths, own.row_offsets)
        longest = own.targets.shape[1] + 1
        if options.given:
            num_nodes, width = scores.shape[1], longest
        elif options.joiners[0]:
            predictor = call.scores[1]
            assert predictor is not None
            width = predictor.shape[1]
            num_nodes = room_for(own, scores.shape[:2].numel() * width)
        else:
            num_nodes = room_for(own, scores.shape[:-1].numel())
            width = scores.shape[2] if scores.ndim == 4 else num_nodes
        reads_planes = options.softmax and not options.given and not any(options.joiners)
        terms = _flat(own.terms) if reads_planes else tuple((kind, 0) for kind in range(len(own.arcs)))
        kinds = {"ARCS": own.arcs, "SKIPS": -1 if own.skips_to is None else own.skips_to}
        is_regular = own.arcs == _BLANK_AND_LABEL and own.skips_to is None
        return cls(
            (lengths[0], lengths[1], lengths[2]), num_nodes, min(width, longest), tuple(map(len, own.reads)), terms,
            reads_planes, kinds | {"LABEL_ENDS": own.label_ends}, is_regular,
        )  # fmt: skip

    @property
    def num_samples(self) -> int:
        return len(self.lengths[0])

    @property
    def stride(self) -> int:
        """Words of a plane."""
        return even(self.num_nodes)

    def planes(self, count: int) -> Tensor:
        return empties(self.lengths[0])(count, self.stride)

    def wide(self, planes: Tensor) -> Tensor:
        """A copy of planes, with room for ``stride`` words each."""
        made = self.planes(len(planes))
        made[:, : planes.shape[1]] = planes
        return made


def _flat(terms: tuple[tuple[tuple[int, int], ...], ...]) -> tuple[tuple[int, ...], ...]:
    """The terms of each kind, one behind another."""
    return tuple(tuple(chain.from_iterable(own)) for own in terms)


def sent_arcs(lattice: ArcLattice, device: torch.device) -> ArcLattice:
    """The lattice on a device; how many nodes there are is asked of the offsets, where that waits for nobody."""
    return replace(on_device(lattice, device), row_offsets=as_tensor(lattice.row_offsets))


def _solve(
    own: _Arcs, planes: Tensor, undefined: Tensor, skip_score: float, at_least: float, need_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses, and alpha, beta and totals; the planes of Graves' arcs are overwritten by their posteriors instead."""
    empty = empties(planes)
    if own.is_regular:
        losses = solve_packed((planes[0], planes[1]), undefined, own.lengths, own.width, need_gradient, at_least)
        return losses, empty(0), empty(0), empty(0)
    losses, totals, alpha = empty(own.num_samples), empty(own.num_samples), empty(own.num_nodes)
    beta = empty(own.num_nodes if need_gradient else 0)
    block = bucket(own.width, 32, STRIP)
    launch(
        grid_arcs.solve, (own.num_samples, 2 if need_gradient else 1), planes,
        planes, own.stride, *own.lengths, undefined, skip_score, at_least, alpha, beta, losses, totals, TERMS=own.terms,
        **own.kinds, BLOCK=block, num_warps=warps(block),
    )  # fmt: skip
    return losses, alpha, beta, totals


def _posteriors(own: _Arcs, saved: Kept, skip_score: float) -> tuple[Tensor, Tensor]:
    """Posteriors (kinds, stride) of the arcs, and of leaving frames out (2, stride) where one may."""
    posteriors = own.planes(len(own.kinds["ARCS"]))
    skips = own.planes(2 if own.kinds["SKIPS"] >= 0 else 0)
    launch(
        grid_arcs.find_posteriors, (programs(own.stride, _NODES),), posteriors,
        saved.planes, saved.alpha, saved.beta, saved.losses, saved.totals, own.stride, *own.lengths, own.num_samples,
        skip_score, posteriors, skips, TERMS=own.terms, **own.kinds, ROWS=_NODES,
    )  # fmt: skip
    return posteriors, skips


def _by_planes(
    own: _Arcs, call: Call, saved: Kept, upstream: Tensor, fastemit_lambda: float = 0.0
) -> tuple[list[Tensor], Tensor | None]:
    """The gradient by the planes of each head, and what multiplies, of each sample (N,), what a head makes of it.

    One of them has the upstream gradient. A clamp is of a loss's own gradient, and so is what a joiner's gate is
    compared with: then it is the second.
    """
    options, made = call.options, own.planes(sum(own.sizes))
    apart = options.clamp > 0 or any(options.joiners)
    constants = {name: own.kinds[name] for name in ("ARCS", "LABEL_ENDS")}
    launch(
        grid_arcs.differentiate, (programs(own.stride, _NODES),), made,
        saved.planes, saved.alpha, saved.beta, saved.losses, saved.totals, None if apart else upstream.contiguous(),
        fastemit_lambda, own.stride, *own.lengths, own.num_samples, made, TERMS=own.terms,
        READ=_flat(call.lattice.terms), NUM_PLANES=len(made), SOLVED=own.is_regular, **constants, ROWS=_NODES,
    )  # fmt: skip
    return list(made.split(own.sizes)), upstream if apart else None


def _take_off_common(planes: Tensor, own: _Arcs, lattice: ArcLattice) -> Tensor | float:
    """As that of the grid, where all paths have an arc out of each frame, and one into each label if these are of
    another kind.
    """
    within = [k for k, (frames, _) in enumerate(lattice.arcs) if frames == 0]
    across = [k for k, (frames, _) in enumerate(lattice.arcs) if frames == 1]
    both = within and any(lattice.arcs[k][1] for k in across)
    if lattice.skips_to is not None or both or len(within) + len(across) < len(planes):
        return 0.0
    by_frame, by_label = ([planes[k] for k in kinds] for kinds in (across, within))
    return take_off_common(by_frame, by_label, own.lengths, (own.num_samples, 1, 0), True)


def _move_posteriors(own: _Arcs, tangent: Tensor, saved: Kept, skip_score: float) -> tuple[Tensor, Tensor]:
    """Slopes (N,) of the losses, and how the posteriors move along a tangent (kinds, stride) of the arcs' scores."""
    if own.is_regular:
        return move_packed(saved.planes, tangent, saved.losses, own.lengths, own.width), tangent
    costs, moved = _moved(own, *_posteriors(own, saved, skip_score), tangent, saved.losses)
    return -costs, moved


def _moved(own: _Arcs, posteriors: Tensor, skips: Tensor, costs: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    """Mean costs (N,) of the paths, and how posteriors (kinds, stride) move along the costs of the arcs."""
    empty, kinds = empties(costs), {name: own.kinds[name] for name in ("ARCS", "SKIPS")}
    before, after, means = empty(own.num_nodes), empty(own.num_nodes), empty(own.num_samples)
    block = bucket(own.width, 32, STRIP)
    launch(
        grid_arcs_hvp.solve, (own.num_samples, 2), costs,
        posteriors, skips, costs, losses, own.stride, *own.lengths, before, after, means, **kinds, BLOCK=block,
        num_warps=warps(block),
    )  # fmt: skip
    moved = torch.empty_like(posteriors)
    launch(
        grid_arcs_hvp.move_posteriors, (programs(own.stride, _NODES),), costs,
        posteriors, costs, losses, before, after, means, own.stride, *own.lengths, own.num_samples, moved,
        ARCS=kinds["ARCS"], ROWS=_NODES,
    )  # fmt: skip
    return means, moved


def _row_scales(own: _Arcs, saved: Kept, upstream: Tensor | None) -> Tensor:
    """Minus the upstream gradient of each node's sample; 0 where no path is, NaN where the loss is."""
    losses = saved.losses
    scale = torch.where(losses < torch.inf, -1.0 if upstream is None else -upstream, 0.0)
    scale = torch.where(losses.isnan(), torch.nan, scale)
    rows = torch.arange(own.stride, device=losses.device)
    sample = torch.searchsorted(own.lengths[2][1:], rows, right=True).clamp(max=own.num_samples - 1)
    return torch.where(rows < own.lengths[2][-1], scale[sample], 0.0)


def _heads(call: Call) -> list[_Logits | _Joiner | _Planes]:
    """What makes the planes of each of the lattice's reads."""
    found: list[_Logits | _Joiner | _Planes] = []
    for k, classes in enumerate(call.lattice.reads):
        operands = call.scores[k * OPERANDS : (k + 1) * OPERANDS]
        if call.options.given:
            found.append(_Planes(operands[0]))
        elif call.options.joiners[k]:
            found.append(_Joiner(call, operands, classes, *call.options.joiners[k]))
        else:
            read = RowOptions(classes, call.options.softmax, call.options.hat)
            found.append(_Logits(Call(operands[:1], call.lattice, read)))
    return found


class _Logits:
    """Logits, padded or packed, whose rows are read."""

    def __init__(self, call: Call) -> None:
        self.scores, self.reader = call.scores[0], Reader(call)

    def read(self) -> RowsSaved:
        """Planes (K, nodes), and statistics to be kept."""
        return self.reader.read()

    def gradients(
        self, by_planes: Tensor, upstream: Tensor | None, statistics: Statistics, clamp: float, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """upstream[n] * clamp(the gradient of the planes); ``None`` is ones."""
        gradient = self.reader.gradient(by_planes, upstream, statistics, clamp) if needed[0] else None
        return [gradient, None, None, None]

    def move(
        self, tangents: Sequence[Tensor | None], by_planes: Tensor, upstream: Tensor | None, statistics: Statistics
    ) -> tuple[Tensor, Tensor]:
        """How the planes move along tangents, and how the gradient does while that by the planes stays."""
        tangent = torch.zeros_like(self.scores) if tangents[0] is None else tangents[0]
        return self.reader.move(tangent, by_planes, upstream, statistics)

    def products(
        self, tangents: Sequence[Tensor | None], by_planes: Tensor, moving: Tensor, upstream: Tensor | None,
        statistics: Statistics, product: Tensor | None, needed: Sequence[bool],
    ) -> list[Tensor | None]:  # fmt: skip
        """How ``gradients`` move, that by the planes by ``moving``; ``product`` is what ``move`` said."""
        if not needed[0]:
            return [None] * OPERANDS
        assert product is not None
        return [self.reader.gradient(moving, upstream, statistics).add_(product), None, None, None]


class _Joiner:
    """The operands of a joiner, whose logits are made a tile at a time."""

    def __init__(
        self, call: Call, operands: Sequence[Tensor], classes: tuple[int, ...], activation: str, tile_memory: int,
        gate: float | None,
    ) -> None:  # fmt: skip
        lone = call.lattice.blank if call.options.hat else -1
        self.tiles = JoinerTiles(operands, call.lattice, classes, lone, activation, tile_memory, gate)
        self.factors = operands[0].new_ones(len(classes), dtype=torch.float64)

    def read(self) -> RowsSaved:
        planes, none = self.tiles.read()[:, : self.tiles.num_nodes], self.factors.new_empty(0)
        return RowsSaved(planes, none, none.clone())

    def gradients(
        self, by_planes: Tensor, upstream: Tensor | None, statistics: Statistics, clamp: float, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        assert upstream is not None
        return self.tiles.gradients(by_planes, self.factors, upstream.contiguous(), clamp, needed)

    def move(
        self, tangents: Sequence[Tensor | None], by_planes: Tensor, upstream: Tensor | None, statistics: Statistics
    ) -> tuple[Tensor, None]:
        assert upstream is not None
        ones = torch.ones_like(upstream)
        return self.tiles.slopes(tangents, by_planes, self.factors, ones)[:, : self.tiles.num_nodes], None

    def products(
        self, tangents: Sequence[Tensor | None], by_planes: Tensor, moving: Tensor, upstream: Tensor | None,
        statistics: Statistics, product: Tensor | None, needed: Sequence[bool],
    ) -> list[Tensor | None]:  # fmt: skip
        assert upstream is not None
        return self.tiles.products(tangents, by_planes, moving, self.factors, upstream.contiguous(), needed)


class _Planes:
    """Planes (K, nodes) that are given."""

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores

    def read(self) -> RowsSaved:
        planes = self.scores.double()
        return RowsSaved(planes, planes.new_empty(0), planes.new_empty(0))

    def gradients(
        self, by_planes: Tensor, upstream: Tensor | None, statistics: Statistics, clamp: float, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        return [self._given(by_planes), None, None, None]

    def move(
        self, tangents: Sequence[Tensor | None], by_planes: Tensor, upstream: Tensor | None, statistics: Statistics
    ) -> tuple[Tensor, None]:
        tangent = torch.zeros_like(self.scores) if tangents[0] is None else tangents[0]
        return tangent.double(), None

    def products(
        self, tangents: Sequence[Tensor | None], by_planes: Tensor, moving: Tensor, upstream: Tensor | None,
        statistics: Statistics, product: Tensor | None, needed: Sequence[bool],
    ) -> list[Tensor | None]:  # fmt: skip
        return [self._given(moving), None, None, None]

    def _given(self, planes: Tensor) -> Tensor:
        return planes[:, : self.scores.shape[1]].to(self.scores.dtype).contiguous()


def _scores(planes: list[Tensor], call: Call) -> Tensor:
    """Scores (kinds, nodes) of the arcs."""
    options, placed = call.options, on_device(call.lattice, planes[0].device)
    return reference.arc_scores(
        planes, placed, sigma=options.sigma, delay_penalty=options.delay_penalty, fastemit_lambda=0.0
    )


def _of_planes(by_arcs: Tensor, call: Call) -> list[Tensor]:
    """From what (kinds, stride) is the arcs' to the sums that are each plane's, of each head."""
    sizes = [len(classes) for classes in call.lattice.reads]
    found = by_arcs.new_zeros(sum(sizes), by_arcs.shape[1])
    for own, terms in zip(by_arcs, call.lattice.terms, strict=True):
        for plane, ahead in terms:
            # A NaN is of a sample that has one in its own rows; the row behind its last is another sample's.
            found[plane, ahead:] += own[: len(own) - ahead].nan_to_num() if ahead else own
    return list(found.split(sizes))
