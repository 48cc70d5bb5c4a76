"""Arc lattices on a GPU: planes are read from logits or given; sums of planes score the arcs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathsum.errors import ImplementationError
from pathsum.kernels.protocol import ArcOptions, ArcSaved, Call, RowOptions, RowsSaved
from pathsum.kernels.reference import grid_arcs as reference
from pathsum.kernels.triton import grid_arcs, grid_arcs_hvp
from pathsum.lattice import ArcLattice
from pathsum.torch._inputs import on_device
from pathsum.torch._lattices import ARC_OPERANDS, OPERANDS, RowsOperators
from pathsum.torch._operators import OperatorKernels, as_tensors, unknown_size
from pathsum.torch._triton.grid import move_packed, solve_packed, take_off_common
from pathsum.torch._triton.launching import bucket, empties, even, launch, programs, sent, warps
from pathsum.torch._triton.rows import Reader
from pathsum.torch._triton.tiles import JoinerTiles

# The arcs of a grid that has kernels of its own, in the order of its planes.
_BLANK_AND_LABEL = ((1, 0), (0, 1))
# Label positions that a program of the recursion holds; wider grids are done in strips.
STRIP = 1024
_NODES = 256

# Softmax maxima and sums of the rows.
Statistics = Sequence[Tensor]


class Rows(RowsOperators):
    name = "triton_rows"

    def sent(self, lattice: ArcLattice, device: torch.device) -> ArcLattice:
        return as_tensors(lattice)

    def forward(self, call: Call, need_gradient: bool) -> RowsSaved:
        return Reader(call).read()

    def backward(self, call: Call, saved: RowsSaved, upstream: Tensor, needed: Sequence[bool]) -> tuple[Tensor]:
        return (Reader(call).gradient(upstream, _ones(call, upstream), saved[1:]),)

    def second(
        self, call: Call, saved: RowsSaved, upstream: Tensor, tangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> tuple[Tensor, tuple[Tensor]]:
        tangent = torch.zeros_like(call.scores[0]) if tangents[0] is None else tangents[0]
        planes, product = Reader(call).move(tangent, upstream, _ones(call, upstream), saved[1:])
        return planes, (product,)


class Arcs(OperatorKernels):
    name, lattice = "triton_arcs", ArcLattice
    inputs, options, saved = ARC_OPERANDS, ArcOptions, ArcSaved

    def sent(self, lattice: ArcLattice, device: torch.device) -> ArcLattice:
        return as_tensors(lattice)

    def forward(self, call: Call, need_gradient: bool) -> ArcSaved:
        read = [head.read() for head in _heads(call)]
        scores = _scores([planes for planes, *_ in read], call)
        # The log-probabilities of a softmax have nothing huge in common.
        normalised = call.options.softmax and not call.options.given
        in_common = 0.0 if normalised else _take_off_common(scores, call)
        losses, posteriors, skips = solve(scores, call, need_gradient)
        statistics = [tensor for _, *own in read for tensor in own]
        statistics += [losses.new_empty(0)] * (4 - len(statistics))
        return ArcSaved(losses - in_common, posteriors, skips, *statistics)

    def backward(
        self, call: Call, saved: ArcSaved, upstream: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        scales, weights = _weights(call, saved, upstream)
        by_planes = _by_planes(scales * saved.posteriors, call, call.options.fastemit_lambda)
        gradients: list[Tensor | None] = []
        for k, (head, own) in enumerate(zip(_heads(call), by_planes, strict=True)):
            wanted = needed[k * OPERANDS : (k + 1) * OPERANDS]
            gradients += head.gradients(own, weights, saved.statistics(k), call.options.clamp, wanted)
        return *gradients, *[None] * (len(self.inputs) - len(gradients))

    def second(
        self, call: Call, saved: ArcSaved, upstream: Tensor, tangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        scales, weights = _weights(call, saved, upstream)
        by_planes, heads = _by_planes(scales * saved.posteriors, call), _heads(call)
        along = [tangents[k * OPERANDS : (k + 1) * OPERANDS] for k in range(len(heads))]
        moved = [
            head.move(own, planes, weights, saved.statistics(k))
            for k, (head, own, planes) in enumerate(zip(heads, along, by_planes, strict=True))
        ]
        costs = _scores([planes for planes, _ in moved], call._replace(options=ArcOptions()))
        slopes, moving = move_posteriors(costs, call, saved)
        moving = _by_planes(scales * moving, call)
        products: list[Tensor | None] = []
        for k, head in enumerate(heads):
            wanted = needed[k * OPERANDS : (k + 1) * OPERANDS]
            statistics, (_, product) = saved.statistics(k), moved[k]
            products += head.products(along[k], by_planes[k], moving[k], weights, statistics, product, wanted)
        return slopes, (*products, *[None] * (len(self.inputs) - len(products)))

    def best(self, call: Call) -> Any:
        raise ImplementationError(
            "impl='triton' has no best path of other transducers than the regular one; impl='reference' has"
        )

    def sketch(self, call: Call) -> ArcSaved:
        scores = call.scores[0]
        losses = scores.new_empty(len(call.lattice.logit_lengths), dtype=torch.float64)
        planes = [unknown_size(scores, axes=2, dtype=torch.float64) for _ in range(2)]
        second = scores if call.scores[OPERANDS] is None else call.scores[OPERANDS]
        return ArcSaved(losses, *planes, *[unknown_size(head, axes=1) for head in (scores, scores, second, second)])


def solve(planes: Tensor, call: Call, need_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, posteriors of the arcs and of leaving frames out, of the arcs' scores (kinds, rows)."""
    lengths, planes = _lengths(call, planes.device), planes.contiguous()
    empty, (num_samples, num_nodes) = empties(planes), (len(lengths[0]), planes.shape[1])
    undefined = torch.zeros(num_samples, dtype=torch.int32, device=planes.device)
    launch(
        grid_arcs.mark_undefined, (programs(num_nodes, _NODES),), planes,
        planes, num_nodes, *lengths, num_samples, undefined, NUM_KINDS=len(planes), ROWS=_NODES,
    )  # fmt: skip
    own, skip_score = call.lattice, call.options.skip_score
    if _is_regular(own):
        posteriors = _even_rows(planes)
        losses = solve_packed((posteriors[0], posteriors[1]), undefined, lengths, _width(own), need_gradient)
        return losses, posteriors.contiguous(), empty(0, num_nodes)
    losses, totals, alpha = empty(num_samples), empty(num_samples), empty(num_nodes)
    beta = empty(num_nodes if need_gradient else 0)
    options = _kinds(own) | {"LABEL_ENDS": own.label_ends}
    block = bucket(_width(own), 32, STRIP)
    launch(
        grid_arcs.solve, (num_samples, 2 if need_gradient else 1), planes,
        planes, num_nodes, *lengths, undefined, skip_score, alpha, beta, losses, totals, **options, BLOCK=block,
        num_warps=warps(block),
    )  # fmt: skip
    if not need_gradient:
        return losses, empty(0, 0), empty(0, 0)
    posteriors, skips = torch.empty_like(planes), empty(0 if own.skips_to is None else 2, num_nodes)
    launch(
        grid_arcs.find_posteriors, (programs(num_nodes, _NODES),), planes,
        planes, alpha, beta, losses, totals, num_nodes, *lengths, num_samples, skip_score, posteriors, skips,
        **options, ROWS=_NODES,
    )  # fmt: skip
    return losses, posteriors, skips


def _take_off_common(planes: Tensor, call: Call) -> Tensor | float:
    """As that of the grid, where all paths have an arc out of each frame, and one into each label if these are of
    another kind.
    """
    own = call.lattice
    within = [k for k, (frames, _) in enumerate(own.arcs) if frames == 0]
    across = [k for k, (frames, _) in enumerate(own.arcs) if frames == 1]
    both = within and any(own.arcs[k][1] for k in across)
    if own.skips_to is not None or both or len(within) + len(across) < len(planes):
        return 0.0
    by_frame, by_label = ([planes[k] for k in kinds] for kinds in (across, within))
    sizes = (len(own.logit_lengths), 1, 0)
    return take_off_common(by_frame, by_label, _lengths(call, planes.device), sizes, True)


def move_posteriors(tangent: Tensor, call: Call, saved: ArcSaved) -> tuple[Tensor, Tensor]:
    """Slopes (N,) of the losses, and how the posteriors move along a tangent (kinds, rows) of the arcs' scores."""
    losses, posteriors, skips = saved[:3]
    lengths, tangent, own = _lengths(call, tangent.device), tangent.contiguous(), call.lattice
    if _is_regular(own):
        moved = _even_rows(tangent)
        return move_packed(_even_rows(posteriors), moved, losses, lengths, _width(own)), moved
    empty, num_samples, num_nodes = empties(tangent), len(losses), tangent.shape[1]
    before, after, costs = empty(num_nodes), empty(num_nodes), empty(num_samples)
    block = bucket(_width(own), 32, STRIP)
    kinds = _kinds(own)
    launch(
        grid_arcs_hvp.solve, (num_samples, 2), tangent,
        posteriors, skips, tangent, losses, num_nodes, *lengths, before, after, costs, **kinds, BLOCK=block,
        num_warps=warps(block),
    )  # fmt: skip
    moved = torch.empty_like(posteriors)
    launch(
        grid_arcs_hvp.move_posteriors, (programs(num_nodes, _NODES),), tangent,
        posteriors, tangent, losses, before, after, costs, num_nodes, *lengths, num_samples, moved, ARCS=kinds["ARCS"],
        ROWS=_NODES,
    )  # fmt: skip
    return -costs, moved


def _lengths(call: Call, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    own = call.lattice
    frames, labels, offsets = sent(device, own.logit_lengths, own.target_lengths, own.row_offsets)
    return frames, labels, offsets


def _is_regular(own: ArcLattice) -> bool:
    return own.arcs == _BLANK_AND_LABEL and own.skips_to is None


def _kinds(own: ArcLattice) -> dict[str, Any]:
    return {"ARCS": own.arcs, "SKIPS": -1 if own.skips_to is None else own.skips_to}


def _width(own: ArcLattice) -> int:
    """Label positions of the widest sample."""
    return int(own.target_lengths.max()) + 1 if len(own.target_lengths) else 1


def _even_rows(planes: Tensor) -> Tensor:
    """A copy whose planes begin at multiples of 16 bytes each."""
    num_nodes = planes.shape[1]
    return planes.new_empty(len(planes), even(num_nodes))[:, :num_nodes].copy_(planes)


def _weights(call: Call, saved: ArcSaved, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """What multiplies the posteriors of each node (nodes,) in the gradient by the arcs' scores, and what multiplies,
    of each sample (N,), the gradient that a head makes of it.

    One of them has the upstream gradient. A clamp is of a loss's own gradient, and so is what a joiner's gate is
    compared with: then it is the second.
    """
    ones = torch.ones_like(upstream)
    apart = call.options.clamp > 0 or any(call.options.joiners)
    return _row_scales(ones if apart else upstream, saved, call), upstream if apart else ones


def _ones(call: Call, like: Tensor) -> Tensor:
    return like.new_ones(len(call.lattice.logit_lengths))


def _row_scales(upstream: Tensor, saved: ArcSaved, call: Call) -> Tensor:
    """Minus the upstream gradient of each node's sample; 0 where no path is, NaN where the loss is."""
    losses = saved.losses
    scale = torch.where(losses.isnan(), torch.nan, torch.where(losses < torch.inf, -upstream, 0.0))
    (counts,) = sent(losses.device, call.lattice.row_offsets.diff())
    return scale.repeat_interleave(counts, output_size=saved.posteriors.shape[1])


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
        self, by_planes: Tensor, upstream: Tensor, statistics: Statistics, clamp: float, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """upstream[n] * clamp(the gradient of the planes)"""
        gradient = self.reader.gradient(by_planes, upstream, statistics, clamp) if needed[0] else None
        return [gradient, None, None, None]

    def move(
        self, tangents: Sequence[Tensor | None], by_planes: Tensor, upstream: Tensor, statistics: Statistics
    ) -> tuple[Tensor, Tensor]:
        """How the planes move along tangents, and how the gradient does while that by the planes stays."""
        tangent = torch.zeros_like(self.scores) if tangents[0] is None else tangents[0]
        return self.reader.move(tangent, by_planes, upstream, statistics)

    def products(
        self, tangents: Sequence[Tensor | None], by_planes: Tensor, moving: Tensor, upstream: Tensor,
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
        self, by_planes: Tensor, upstream: Tensor, statistics: Statistics, clamp: float, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        return self.tiles.gradients(self._wide(by_planes), self.factors, upstream.contiguous(), clamp, needed)

    def move(
        self, tangents: Sequence[Tensor | None], by_planes: Tensor, upstream: Tensor, statistics: Statistics
    ) -> tuple[Tensor, None]:
        ones = torch.ones_like(upstream)
        return self.tiles.slopes(tangents, self._wide(by_planes), self.factors, ones)[:, : by_planes.shape[1]], None

    def products(
        self, tangents: Sequence[Tensor | None], by_planes: Tensor, moving: Tensor, upstream: Tensor,
        statistics: Statistics, product: Tensor | None, needed: Sequence[bool],
    ) -> list[Tensor | None]:  # fmt: skip
        planes = (self._wide(by_planes), self._wide(moving))
        return self.tiles.products(tangents, *planes, self.factors, upstream.contiguous(), needed)

    def _wide(self, planes: Tensor) -> Tensor:
        """Planes as the tiles have them."""
        return torch.nn.functional.pad(planes, (0, self.tiles.stride - planes.shape[1]))


class _Planes:
    """Planes (K, nodes) that are given."""

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores

    def read(self) -> RowsSaved:
        planes = self.scores.double()
        return RowsSaved(planes, planes.new_empty(0), planes.new_empty(0))

    def gradients(
        self, by_planes: Tensor, upstream: Tensor, statistics: Statistics, clamp: float, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        return [by_planes.to(self.scores.dtype), None, None, None]

    def move(
        self, tangents: Sequence[Tensor | None], by_planes: Tensor, upstream: Tensor, statistics: Statistics
    ) -> tuple[Tensor, None]:
        tangent = torch.zeros_like(self.scores) if tangents[0] is None else tangents[0]
        return tangent.double(), None

    def products(
        self, tangents: Sequence[Tensor | None], by_planes: Tensor, moving: Tensor, upstream: Tensor,
        statistics: Statistics, product: Tensor | None, needed: Sequence[bool],
    ) -> list[Tensor | None]:  # fmt: skip
        return [moving.to(self.scores.dtype), None, None, None]


def _scores(planes: list[Tensor], call: Call) -> Tensor:
    """Scores (kinds, rows) of the arcs."""
    options, placed = call.options, on_device(call.lattice, planes[0].device)
    return reference.arc_scores(
        planes, placed, sigma=options.sigma, delay_penalty=options.delay_penalty, fastemit_lambda=0.0
    )


def _by_planes(by_arcs: Tensor, call: Call, fastemit_lambda: float = 0.0) -> list[Tensor]:
    """From a gradient (kinds, rows) by the arcs' scores to those by the planes of each head."""
    sizes = [len(classes) for classes in call.lattice.reads]
    found = by_arcs.new_zeros(sum(sizes), by_arcs.shape[1])
    for own, terms, (_, is_label) in zip(by_arcs, call.lattice.terms, call.lattice.arcs, strict=True):
        own = own * (1.0 + fastemit_lambda) if is_label and fastemit_lambda else own
        for plane, ahead in terms:
            # A NaN is of a sample that has one in its own rows; the row behind its last is another sample's.
            found[plane, ahead:] += own[: len(own) - ahead].nan_to_num() if ahead else own
    return list(found.split(sizes))
