"""Arc lattices on a GPU: planes are read from logits or given; sums of planes score the arcs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathsum.errors import ImplementationError
from pathsum.kernels.protocol import ArcOptions, ArcSaved, Call, RowOptions, RowsSaved
from pathsum.kernels.reference import grid_arcs as reference
from pathsum.kernels.triton import grid_arcs, grid_arcs_hvp, grid_hvp
from pathsum.lattice import ArcLattice
from pathsum.torch._inputs import on_device
from pathsum.torch._lattices import RowsOperators
from pathsum.torch._operators import OperatorKernels, Reduction, as_tensors, unknown_size
from pathsum.torch._reference import with_logits
from pathsum.torch._triton.grid import MEANS_STRIP, solve_packed, take_off_common
from pathsum.torch._triton.launching import bucket, empties, even, launch, programs, sent, warps
from pathsum.torch._triton.rows import Reader

# The arcs of a grid that has kernels of its own, in the order of its planes.
_BLANK_AND_LABEL = ((1, 0), (0, 1))
# Label positions that a program of the recursion holds; wider grids are done in strips.
STRIP = 1024
_NODES = 256


class Rows(RowsOperators):
    name = "triton_rows"

    def sent(self, lattice: ArcLattice, device: torch.device) -> ArcLattice:
        return as_tensors(lattice)

    def forward(self, call: Call, need_gradient: bool) -> RowsSaved:
        return Reader(call).read()

    def backward(self, call: Call, saved: RowsSaved, upstream: Tensor, needed: Sequence[bool]) -> tuple[Tensor]:
        ones = upstream.new_ones(len(call.lattice.logit_lengths))
        return (Reader(call).gradient(upstream, ones, saved[1:]),)

    def second(
        self, call: Call, saved: RowsSaved, upstream: Tensor, tangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> tuple[Tensor, tuple[Tensor]]:
        tangent = torch.zeros_like(call.scores[0]) if tangents[0] is None else tangents[0]
        planes, product = Reader(call).move(tangent, upstream, saved[1:])
        return planes, (product,)


class Arcs(OperatorKernels):
    name, lattice = "triton_arcs", ArcLattice
    inputs, options, saved = ("scores", "second?"), ArcOptions, ArcSaved

    def sent(self, lattice: ArcLattice, device: torch.device) -> ArcLattice:
        return as_tensors(lattice)

    def losses(self, call: Call, reduction: Reduction | None = None) -> Tensor:
        call = with_logits(call)
        return super().losses(call._replace(scores=(*call.scores, None)[:2]), reduction)

    def forward(self, call: Call, need_gradient: bool) -> ArcSaved:
        read = [_read(call, k) for k in range(len(call.lattice.reads))]
        scores = _scores([planes for planes, _ in read], call)
        # The log-probabilities of a softmax have nothing huge in common.
        normalised = call.options.softmax and not call.options.given
        in_common = 0.0 if normalised else _take_off_common(scores, call)
        losses, posteriors, skips = solve(scores, call, need_gradient)
        statistics = [tensor for _, own in read for tensor in own]
        statistics += [losses.new_empty(0)] * (4 - len(statistics))
        return ArcSaved(losses - in_common, posteriors, skips, *statistics)

    def backward(
        self, call: Call, saved: ArcSaved, upstream: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        clamped, ones = call.options.clamp > 0, torch.ones_like(upstream)
        by_arcs = _row_scales(ones if clamped else upstream, saved, call) * saved.posteriors
        by_planes = _by_planes(by_arcs, call, call.options.fastemit_lambda)
        gradients = [
            _gradient(call, k, own, upstream if clamped else ones, saved, call.options.clamp) if needed[k] else None
            for k, own in enumerate(by_planes)
        ]
        return *gradients, *[None] * (len(self.inputs) - len(gradients))

    def second(
        self, call: Call, saved: ArcSaved, upstream: Tensor, tangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        ones, scales = torch.ones_like(upstream), _row_scales(upstream, saved, call)
        by_planes = _by_planes(scales * saved.posteriors, call)
        along = [
            torch.zeros_like(head) if tangent is None else tangent
            for head, tangent in zip(call.scores, tangents, strict=True)
            if head is not None
        ]
        moved = [
            _move(call, k, tangent, own, saved) for k, (tangent, own) in enumerate(zip(along, by_planes, strict=True))
        ]
        costs = _scores([planes for planes, _ in moved], call._replace(options=ArcOptions()))
        slopes, by_arcs = move_posteriors(costs, call, saved)
        products: list[Tensor | None] = []
        for k, (own, (_, product)) in enumerate(zip(_by_planes(by_arcs * scales, call), moved, strict=True)):
            gradient = _gradient(call, k, own, ones, saved)
            products.append(gradient if product is None else gradient + product)
        return slopes, (*products, *[None] * (len(self.inputs) - len(products)))

    def best(self, call: Call) -> Any:
        raise ImplementationError(
            "impl='triton' has no best path of other transducers than the regular one; impl='reference' has"
        )

    def sketch(self, call: Call) -> ArcSaved:
        scores = call.scores[0]
        losses = scores.new_empty(len(call.lattice.logit_lengths), dtype=torch.float64)
        planes = [unknown_size(scores, axes=2, dtype=torch.float64) for _ in range(2)]
        second = scores if call.scores[1] is None else call.scores[1]
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
    empty, num_samples, num_nodes = empties(tangent), len(losses), tangent.shape[1]
    before, after, costs = empty(num_nodes), empty(num_nodes), empty(num_samples)
    if _is_regular(own):
        posteriors, moved, block = _even_rows(posteriors), _even_rows(tangent), bucket(_width(own), 32, MEANS_STRIP)
        launch(
            grid_hvp.solve, (num_samples, 2), tangent,
            *posteriors, *moved, losses, *lengths, 1, 0, before, after, costs, PACKED=True, BLOCK=block,
            num_warps=warps(block),
        )  # fmt: skip
        launch(
            grid_hvp.move_posteriors, (programs(num_nodes, _NODES),), tangent,
            *posteriors, losses, before, after, costs, num_nodes, *lengths, num_samples, 1, 0, *moved, PACKED=True,
            ROWS=_NODES,
        )  # fmt: skip
        return -costs, moved
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


def _row_scales(upstream: Tensor, saved: ArcSaved, call: Call) -> Tensor:
    """Minus the upstream gradient of each node's sample; 0 where no path is, NaN where the loss is."""
    losses = saved.losses
    scale = torch.where(losses.isnan(), torch.nan, torch.where(losses < torch.inf, -upstream, 0.0))
    (counts,) = sent(losses.device, call.lattice.row_offsets.diff())
    return scale.repeat_interleave(counts, output_size=saved.posteriors.shape[1])


def _reader(call: Call, head: int) -> Reader:
    read = RowOptions(call.lattice.reads[head], call.options.softmax, call.options.hat)
    return Reader(Call((call.scores[head],), call.lattice, read))


def _read(call: Call, head: int) -> tuple[Tensor, Sequence[Tensor]]:
    """Planes (K, rows) of a head, and its softmax statistics."""
    if call.options.given:
        planes = call.scores[head].double()
        return planes, (planes.new_empty(0), planes.new_empty(0))
    planes, *statistics = _reader(call, head).read()
    return planes, statistics


def _gradient(
    call: Call, head: int, by_planes: Tensor, upstream: Tensor, saved: ArcSaved, clamp: float = -1.0
) -> Tensor:
    """The gradient by a head, upstream[n] * clamp(that of the planes)."""
    if call.options.given:
        return by_planes.to(call.scores[head].dtype)
    return _reader(call, head).gradient(by_planes, upstream, saved.statistics(head), clamp)


def _move(call: Call, head: int, tangent: Tensor, by_planes: Tensor, saved: ArcSaved) -> tuple[Tensor, Tensor | None]:
    """How the planes move along a tangent, and how the gradient does while that of the planes stays."""
    if call.options.given:
        return tangent.double(), None
    return _reader(call, head).move(tangent, by_planes, saved.statistics(head))


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
