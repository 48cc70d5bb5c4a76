"""Arc lattices on a GPU: planes are read from logits or given; sums of planes score the arcs.

The integers of these lattices are on the host, where the variants are posed, and are sent from there.
"""

# Lists of arguments are put together of tuples, whose lengths the checker does not know.
# pyright: reportCallIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathsum.errors import ImplementationError
from pathsum.kernels.protocol import ArcOptions, ArcSaved, Call, RowOptions, RowsSaved
from pathsum.kernels.reference import grid_arcs as reference
from pathsum.lattice import ArcLattice
from pathsum.torch._inputs import on_device
from pathsum.torch._lattices import RowsOperators
from pathsum.torch._launch import arcs
from pathsum.torch._operators import OperatorKernels, Reduction, as_tensors, unknown_size
from pathsum.torch._reference import with_logits


class Rows(RowsOperators):
    name = "triton_rows"

    def sent(self, lattice: ArcLattice, device: torch.device) -> ArcLattice:
        return as_tensors(lattice)

    def forward(self, call: Call, need_gradient: bool) -> RowsSaved:
        planes, _, maxima, sums = arcs.row_scores_forward(*_flat(call), -1.0)
        return RowsSaved(planes, maxima, sums)

    def backward(self, call: Call, saved: RowsSaved, upstream: Tensor, needed: Sequence[bool]) -> tuple[Tensor]:
        ones = upstream.new_ones(len(call.lattice.logit_lengths))
        return (arcs.row_scores_backward(upstream, ones, *_flat(call), -1.0, saved.planes, ones, *saved[1:], needed),)

    def second(
        self, call: Call, saved: RowsSaved, upstream: Tensor, tangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> tuple[Tensor, tuple[Tensor]]:
        tangent = torch.zeros_like(call.scores[0]) if tangents[0] is None else tangents[0]
        ones = upstream.new_ones(len(call.lattice.logit_lengths))
        kept = (saved.planes, ones, *saved[1:], needed)
        planes, _, product = arcs.row_scores_hvp(tangent, upstream, ones, *_flat(call), -1.0, *kept)
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
        scores = _scores([planes for planes, _, _ in read], call)
        losses, posteriors, skips = arcs.arcs_forward(scores, *_numbers(call), need_gradient)
        statistics = [tensor for _, *own in read for tensor in own]
        statistics += [losses.new_empty(0)] * (4 - len(statistics))
        return ArcSaved(losses, posteriors, skips, *statistics)

    def backward(
        self, call: Call, saved: ArcSaved, upstream: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        clamped, ones = call.options.clamp > 0, torch.ones_like(upstream)
        by_arcs = _by_arcs(ones if clamped else upstream, call, saved)
        by_planes = _by_planes(by_arcs, call, call.options.fastemit_lambda)
        gradients = [
            _gradient(call, k, own, upstream if clamped else ones, saved, call.options.clamp) if needed[k] else None
            for k, own in enumerate(by_planes)
        ]
        return *gradients, *[None] * (len(self.inputs) - len(gradients))

    def second(
        self, call: Call, saved: ArcSaved, upstream: Tensor, tangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        ones = torch.ones_like(upstream)
        by_planes = _by_planes(_by_arcs(upstream, call, saved), call)
        along = [
            torch.zeros_like(head) if tangent is None else tangent
            for head, tangent in zip(call.scores, tangents, strict=True)
            if head is not None
        ]
        moved = [
            _move(call, k, tangent, own, saved) for k, (tangent, own) in enumerate(zip(along, by_planes, strict=True))
        ]
        scores = _scores([planes for planes, _ in moved], call._replace(options=ArcOptions()))
        slopes, by_arcs = arcs.arcs_hvp(scores, upstream, saved.posteriors, *_numbers(call), *saved[:3], [True])
        products: list[Tensor | None] = []
        for k, (own, (_, product)) in enumerate(zip(_by_planes(by_arcs, call), moved, strict=True)):
            gradient = _gradient(call, k, own, ones, saved, -1.0)
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


def _rows(call: Call, head: int) -> tuple[Any, ...]:
    """What the kernels on rows of a head are given."""
    read = RowOptions(call.lattice.reads[head], call.options.softmax, call.options.hat)
    return _flat(Call((call.scores[head],), call.lattice, read))


def _flat(call: Call) -> tuple[Any, ...]:
    own, options = call.lattice, call.options
    lengths = (own.logit_lengths, own.target_lengths, own.targets, own.row_offsets, own.first_frames, own.last_frames)
    return *call.scores, *lengths, list(options.classes), own.blank if options.hat else -1, options.softmax


def _read(call: Call, head: int) -> tuple[Tensor, Tensor, Tensor]:
    """Planes (K, rows) of a head, and its softmax statistics."""
    if call.options.given:
        planes = call.scores[head].double()
        return planes, planes.new_empty(0), planes.new_empty(0)
    planes, _, maxima, sums = arcs.row_scores_forward(*_rows(call, head), -1.0)
    return planes, maxima, sums


def _gradient(call: Call, head: int, by_planes: Tensor, upstream: Tensor, saved: ArcSaved, clamp: float) -> Tensor:
    """The gradient by a head, upstream[n] * clamp(that of the planes)."""
    if call.options.given:
        return by_planes.to(call.scores[head].dtype)
    unused = saved.losses
    kept = (unused, unused, *saved.statistics(head), [True])
    return arcs.row_scores_backward(by_planes, upstream, *_rows(call, head), clamp, *kept)


def _move(call: Call, head: int, tangent: Tensor, by_planes: Tensor, saved: ArcSaved) -> tuple[Tensor, Tensor | None]:
    """How the planes move along a tangent, and how the gradient does while that of the planes stays."""
    if call.options.given:
        return tangent.double(), None
    kept = (by_planes, saved.losses, *saved.statistics(head), [True])
    planes, _, product = arcs.row_scores_hvp(tangent, by_planes, saved.losses, *_rows(call, head), -1.0, *kept)
    return planes, product


def _scores(planes: list[Tensor], call: Call) -> Tensor:
    """Scores (kinds, rows) of the arcs."""
    options, placed = call.options, on_device(call.lattice, planes[0].device)
    return reference.arc_scores(
        planes, placed, sigma=options.sigma, delay_penalty=options.delay_penalty, fastemit_lambda=0.0
    )


def _numbers(call: Call) -> tuple[Any, ...]:
    own = call.lattice
    frames_on, labels_on = (list(steps) for steps in zip(*own.arcs, strict=True))
    lengths = (own.logit_lengths, own.target_lengths, own.row_offsets)
    return *lengths, frames_on, labels_on, own.label_ends, own.skips_to, call.options.skip_score


def _by_arcs(upstream: Tensor, call: Call, saved: ArcSaved) -> Tensor:
    return arcs.arcs_backward(upstream, saved.posteriors, *_numbers(call), *saved[:3], [True])


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
