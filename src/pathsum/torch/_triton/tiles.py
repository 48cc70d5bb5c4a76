"""A joiner's logits on a GPU, a tile of nodes at a time: planes of log-probabilities, and gradients of the operands.

The products are torch's: their factors in the operands' dtype, their sums in that of arithmetic. What lies between them
is made by kernels, in memory that all tiles of a call share and that ``tile_memory`` bounds. The weight's gradient is
added up over fixed slices of each tile's rows, tile after tile, so that a product of few outputs occupies a device.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathsum.kernels.triton import joint, row_scores
from pathsum.kernels.triton.plan import bucket, programs
from pathsum.lattice import ArcLattice
from pathsum.torch._triton.launching import (
    empties,
    even,
    in_memory,
    in_rows,
    in_triton,
    launch,
    sent,
    tiles,
    work_dtype,
)

_NODES = 256
# Of the weight's gradient that many elements are made at once, in as many slices as it takes, at most eight.
_ELEMENTS, _SLICES = 2**21, 8
# A tile's rows are a multiple of this in each slice.
_STEP = 8


class List(NamedTuple):
    """Nodes whose gradient is computed.

    Attributes:
        nodes: Their numbers, in order.
        places: The place of each node in it, or -1.
        count: (1,) how many they are, on the device.
        ends: How many come before each sample, and in all; ``None`` where nobody may wait for the device to know.
    """

    nodes: Tensor
    places: Tensor
    count: Tensor
    ends: list[int] | None


class Tile(NamedTuple):
    """Rows of a list: the place of the first in it, how many, and the samples that may have some."""

    begin: int
    count: int
    samples: range
    listed: List


class ByPlanes(NamedTuple):
    """The gradient by the planes, ``planes`` (K, stride) times ``factors`` (K,), and each sample's weight (N,)."""

    planes: Tensor
    factors: Tensor
    weights: Tensor


class JoinerTiles:
    """The joiner of some operands, whose planes are of ``classes``.

    Args:
        operands: Encoder (N, T, H), predictor (N, U+1, H), weight (V, H) and bias (V,), of one dtype.
        lattice: Integers in memory or on the device. Only with ``row_offsets`` in memory the number of nodes is known,
            and that of those in a list, for which the device is waited.
        classes: As in ``RowOptions``.
        lone: The class that has no share in the softmax, or -1.
        activation, tile_memory, gate: As of a ``Joiner``.
    """

    def __init__(
        self,
        operands: Sequence[Tensor],
        lattice: ArcLattice,
        classes: Sequence[int],
        lone: int,
        activation: str,
        tile_memory: int,
        gate: float | None,
    ) -> None:
        self.encoder, self.predictor, weight, bias = in_rows(*(operand.detach() for operand in operands))
        self.dtype, self.work, device = weight.dtype, work_dtype(weight), weight.device
        self.num_samples, self.num_frames, self.size = self.encoder.shape
        self.width, self.num_classes = self.predictor.shape[1], len(weight)
        self.activation, self.lone = activation, lone
        self.gate = torch.finfo(self.work).eps / 2 if gate is None else gate
        self.weight, self.bias = self._padded(weight), self._padded_bias(bias, -torch.inf)
        offsets = lattice.row_offsets
        self.known = in_memory(offsets)
        self.num_nodes = int(offsets[-1]) if self.known else self.num_samples * self.num_frames * self.width
        self.integers = sent(
            device, lattice.logit_lengths, lattice.target_lengths, lattice.targets, offsets, lattice.first_frames,
            lattice.last_frames,
        )  # fmt: skip
        self.classes = tuple(classes)
        self.tile_memory = tile_memory

    @property
    def stride(self) -> int:
        """Words of a plane."""
        return even(self.num_nodes)

    @property
    def lengths(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.integers[0], self.integers[1], self.integers[3]

    def read(self) -> Tensor:
        """Planes (K, stride) of log-probabilities, of the nodes at their beginning."""
        planes = empties(self.weight)(len(self.classes), self.stride)
        room = _Room(self)
        for begin in range(0, self.num_nodes, room.rows):
            count = min(room.rows, self.num_nodes - begin)
            logits = self._logits(self._join(room, begin, count), room)
            launch(
                row_scores.score_rows, self._row_programs(count), self.weight,
                logits, 0, 0, logits.stride(0), 1, *self._rows(count, begin, None), None, None, 0.0, 0.0, None, planes,
                **self._constants,
            )  # fmt: skip
        return planes

    def gradients(
        self, planes: Tensor, factors: Tensor, upstream: Tensor, clamp: float, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """Gradients of the operands, of upstream[n] * clamp(that by the planes, ``planes`` times ``factors``).

        Where ``upstream`` is NaN so is the gradient of a sample's nodes.
        """
        if not any(needed):
            return [None] * 4
        by_planes = ByPlanes(planes, factors, upstream)
        listed, room, sums = self.listed(by_planes), _Room(self, gradient=True), _Sums(self, needed)
        for tile in self._tiles_of(listed, room.rows):
            hidden = self._join(room, tile.begin, tile.count, listed)
            logits, out = self._logits(hidden, room), room.grad_logits[: tile.count]
            self._differentiate(logits, out, by_planes, tile, clamp)
            sums.add(room, hidden, out, tile)
        return sums.done()

    def slopes(self, tangents: Sequence[Tensor | None], planes: Tensor, factors: Tensor, upstream: Tensor) -> Tensor:
        """How the planes move along a tangent of the operands, at the nodes that count as in ``gradients``; else 0."""
        along, slopes, by_planes = self._along(tangents), torch.zeros_like(planes), ByPlanes(planes, factors, upstream)
        listed, room = self.listed(by_planes), _Room(self, moved=along)
        for tile in self._tiles_of(listed, room.rows):
            hidden = self._join(room, tile.begin, tile.count, listed)
            logits, moved = self._logits(hidden, room), self._moved_logits(hidden, room)
            self._differentiate_again(logits, moved, None, slopes, by_planes, tile)
        return slopes

    def products(
        self,
        tangents: Sequence[Tensor | None],
        planes: Tensor,
        moving: Tensor,
        factors: Tensor,
        upstream: Tensor,
        needed: Sequence[bool],
    ) -> list[Tensor | None]:
        """How ``gradients``, unclamped, move along a tangent of the operands, while ``planes`` move by ``moving``."""
        if not any(needed):
            return [None] * 4
        along, by_planes = self._along(tangents), ByPlanes(planes, factors, upstream)
        listed, sums = self.listed(by_planes), _Sums(self, needed)
        room = _Room(self, gradient=True, moved=along)
        for tile in self._tiles_of(listed, room.rows):
            hidden = self._join(room, tile.begin, tile.count, listed)
            logits, moved = self._logits(hidden, room), self._moved_logits(hidden, room)
            gradient, of_planes, product = (
                torch.empty_like(logits, dtype=dtype) for dtype in (self.dtype, self.work, self.work)
            )
            self._differentiate(logits, gradient, by_planes, tile)
            self._differentiate(logits, of_planes, by_planes._replace(planes=moving), tile)
            self._differentiate_again(logits, moved, product, None, by_planes, tile)
            sums.add(room, hidden, (product + of_planes).to(self.dtype), tile, gradient)
        return sums.done()

    def listed(self, by_planes: ByPlanes) -> List:
        """The nodes that count."""
        planes, factors, weights = by_planes
        device, offsets = planes.device, self.integers[3]
        index = torch.int32 if self.num_nodes < 2**31 else torch.int64
        alive = torch.empty(self.num_nodes, dtype=torch.int8, device=device)
        grid = (programs(self.num_nodes, _NODES),)
        launch(
            joint.mark_rows, grid, planes,
            planes, factors, len(self.classes), planes.shape[1], weights, self.gate, self.num_nodes, *self.lengths,
            self.num_samples, alive, ROWS=_NODES,
        )  # fmt: skip
        places, nodes = alive.cumsum(0, dtype=index), torch.empty(self.num_nodes, dtype=index, device=device)
        ends = torch.zeros_like(offsets)
        if self.num_nodes:
            ends = torch.where(offsets > 0, places[(offsets - 1).clamp(min=0)], 0)
        launch(joint.list_rows, grid, planes, alive, places, self.num_nodes, nodes, ROWS=_NODES)
        return List(nodes, places, ends[-1:].clone(), ends.tolist() if self.known else None)

    def _tiles_of(self, listed: List, rows: int) -> Iterator[Tile]:
        step = _STEP * self.slices
        total = self.num_nodes if listed.ends is None else listed.ends[-1]
        for begin in range(0, total, rows):
            count = min(rows, programs(total - begin, step) * step)
            samples = range(self.num_samples)
            if listed.ends is not None:
                end = min(begin + count, total)
                samples = range(bisect_right(listed.ends, begin) - 1, bisect_left(listed.ends, end))
            yield Tile(begin, count, samples, listed)

    @cached_property
    def slices(self) -> int:
        fitting = _ELEMENTS // max(self.weight.numel(), 1)
        return min(_SLICES, 1 << max(fitting.bit_length() - 1, 0))

    def _join(self, room: _Room, begin: int, count: int, listed: List | None = None) -> Tensor:
        along = room.along or (None, None, None, None)
        nodes, number = (None, None) if listed is None else (listed.nodes, listed.count)
        rows = bucket(2048 // room.units, 1, 16)
        hidden, moved = (None if own is None else own[:count] for own in (room.hidden, room.moved_hidden))
        launch(
            joint.join_rows, (programs(count, rows),), self.weight,
            self.encoder, self.predictor, *along[:2], count, *self.lengths, nodes, begin, number, self.num_samples,
            self.num_frames, self.width, self.size, self.weight.shape[1], room.frames, room.positions, hidden, moved,
            **self.units, ROWS=rows, UNITS=room.units,
        )  # fmt: skip
        assert hidden is not None
        return hidden

    def _logits(self, hidden: Tensor, room: _Room) -> Tensor:
        """Logits without their bias."""
        return product(hidden, self.weight.T, room.logits[: len(hidden)])

    def _moved_logits(self, hidden: Tensor, room: _Room) -> Tensor:
        """How the logits of the rows that were joined last move."""
        assert room.along is not None
        assert room.moved_hidden is not None
        moved_hidden, (_, _, weight, bias) = room.moved_hidden[: len(hidden)], room.along
        moved = product(moved_hidden, self.weight.T, torch.empty_like(room.logits[: len(hidden)]))
        return moved.add_(product(hidden, weight.T, torch.empty_like(moved))).add_(bias)

    def _differentiate(
        self, logits: Tensor, out: Tensor, by_planes: ByPlanes, tile: Tile, clamp: float = -1.0
    ) -> None:  # fmt: skip
        launch(
            row_scores.write_gradient, self._row_programs(tile.count), self.weight,
            *by_planes, logits, 0, 0, logits.stride(0), 1, *self._rows(tile.count, tile.begin, tile.listed), None, None,
            clamp, out, 0, 0, out.stride(0), 1, **self._constants,
        )  # fmt: skip

    def _differentiate_again(
        self, logits: Tensor, moved: Tensor, out: Tensor | None, slopes: Tensor | None, by_planes: ByPlanes, tile: Tile
    ) -> None:  # fmt: skip
        launch(
            row_scores.write_product, self._row_programs(tile.count), self.weight,
            moved, 0, 0, moved.stride(0), 1, *by_planes, logits, 0, 0, logits.stride(0), 1,
            *self._rows(tile.count, tile.begin, tile.listed), None, None, slopes, out, 0, 0, logits.stride(0), 1,
            **self._constants,
        )  # fmt: skip

    def _rows(self, count: int, begin: int, listed: List | None) -> tuple[Any, ...]:
        nodes, number = (None, None) if listed is None else (listed.nodes, listed.count)
        return (
            count, *self.integers, nodes, begin, number, self.num_samples, 1, 0, self.integers[2].shape[1],
            len(self.weight), self.lone, self.stride, self.bias,
        )  # fmt: skip

    def _row_programs(self, count: int) -> tuple[int]:
        return (programs(count, self._constants["ROWS"]),)

    @cached_property
    def _constants(self) -> dict[str, Any]:
        rows, block = tiles(len(self.weight), self.work)
        return {
            "CLASSES": self.classes, "LOGITS": True, "LONE": self.lone >= 0, "PACKED": True,
            "WORK": in_triton(self.work), "ROWS": rows, "BLOCK": block, "ALIGNED": self.piece, "RAGGED": False,
        }  # fmt: skip

    @cached_property
    def units(self) -> dict[str, Any]:
        """How hidden units are moved: in pieces where the operands' rows are made of such."""
        aligned = self.piece if self.size % self.piece == 0 else 1
        return {
            "ACTIVATION": self.activation, "WORK": in_triton(self.work), "ALIGNED": aligned, "STEP": self.piece,
        }  # fmt: skip

    @cached_property
    def piece(self) -> int:
        """Elements of the operands in 16 bytes, of which the rows of all factors are made."""
        return 16 // self.dtype.itemsize

    def _padded(self, weight: Tensor) -> Tensor:
        """With zeros beyond its classes and units, where these are not whole pieces: logits of no class, units of 0."""
        shape = [programs(size, self.piece) * self.piece for size in weight.shape]
        if tuple(shape) == tuple(weight.shape):
            return weight.contiguous()
        padded = weight.new_zeros(shape)
        padded[: len(weight), : weight.shape[1]] = weight
        return padded

    def _padded_bias(self, bias: Tensor, beyond: float) -> Tensor:
        return torch.nn.functional.pad(bias.to(self.work), (0, -len(bias) % self.piece), value=beyond)

    def _along(self, tangents: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tangents of the operands as these are held; ``None`` is zeros."""
        own = (self.encoder, self.predictor)
        encoder, predictor = (
            torch.zeros_like(operand) if tangent is None else tangent.detach().contiguous()
            for operand, tangent in zip(own, tangents[:2], strict=True)
        )
        weight, bias = (None if tangent is None else tangent.detach() for tangent in tangents[2:])
        weight = torch.zeros_like(self.weight) if weight is None else self._padded(weight)
        bias = torch.zeros_like(self.bias) if bias is None else self._padded_bias(bias, 0.0)
        return encoder, predictor, weight, bias


class _Room:
    """Memory for a tile."""

    def __init__(self, own: JoinerTiles, *, gradient: bool = False, moved: tuple[Tensor, ...] | None = None) -> None:
        num_classes, size = own.weight.shape
        factor, work = own.dtype.itemsize, own.work.itemsize
        row = size * factor + num_classes * work + 16
        if gradient:
            row += size * work + (num_classes * factor if factor < work else 0)
        if moved is not None:
            # Tangents of hidden rows and logits, another term of these; of gradients three kinds, and their sums.
            row += size * factor + 2 * num_classes * work
            row += size * (work + factor) + num_classes * (3 * work + factor) if gradient else 0
        partial = own.slices * own.weight.numel() * work if gradient else 0
        step = _STEP * own.slices
        fitting = max(own.tile_memory - partial, 0) // row // step * step
        self.rows = min(max(fitting, step), programs(max(own.num_nodes, 1), step) * step)
        self.units, self.along = bucket(size, own.piece, 512), moved

        def empty(width: int, dtype: torch.dtype) -> Tensor:
            return torch.empty((self.rows, width), dtype=dtype, device=own.weight.device)

        # Which row of the encoder and of the predictor each row of the tile is made of.
        self.frames, self.positions = empty(1, torch.int64), empty(1, torch.int64)
        self.hidden, self.logits = empty(size, own.dtype), empty(num_classes, own.work)
        self.moved_hidden = empty(size, own.dtype) if moved is not None else None
        if gradient:
            # Over the logits where it has their dtype.
            in_place = own.dtype == own.work and moved is None
            self.grad_logits = self.logits if in_place else empty(num_classes, own.dtype)
            self.grad_hidden = empty(size, own.work)


class _Sums:
    """Sums over the tiles of what belongs to each operand, in the dtype of arithmetic."""

    def __init__(self, own: JoinerTiles, needed: Sequence[bool]) -> None:
        self.own, self.needed = own, needed
        device, (num_classes, size) = own.weight.device, own.weight.shape

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=own.work, device=device)

        self.operands = None
        if needed[0] or needed[1]:
            self.operands = zeros(*own.encoder.shape), zeros(*own.predictor.shape)
        self.weight = zeros(own.slices, num_classes, size) if needed[2] else None
        self.bias = zeros(num_classes) if needed[3] else None

    def add(
        self,
        room: _Room,
        hidden: Tensor,
        grad_logits: Tensor,
        tile: Tile,
        still: Tensor | None = None,
    ) -> None:
        """The share of the rows that were joined last, from the gradient of their logits.

        With ``still``, which is that gradient, ``grad_logits`` is how it moves.
        """
        own, along, listed = self.own, room.along, tile.listed
        if self.weight is not None:
            self._add_products(self.weight, grad_logits, hidden)
            if still is not None:
                assert room.moved_hidden is not None
                self._add_products(self.weight, still, room.moved_hidden[: len(hidden)])
        if self.bias is not None:
            self.bias += grad_logits.sum(0, dtype=own.work)
        if self.operands is None:
            return
        count = len(hidden)
        grad_hidden = product(grad_logits, own.weight, room.grad_hidden[:count])
        grad_moved, moved = None, (None, None)
        if still is not None:
            assert along is not None
            grad_moved = grad_hidden.add_(product(still, along[2], torch.empty_like(grad_hidden)))
            grad_hidden, moved = product(still, own.weight, torch.empty_like(grad_hidden)), along[:2]
        frame_units, label_units = bucket(own.size, 16, 256), bucket(own.size, 16, 64)
        grid = count * programs(own.size, frame_units) + len(tile.samples) * own.width * programs(own.size, label_units)
        launch(
            joint.add_operand_gradients, (grid,), own.weight,
            grad_hidden, grad_moved, count, *own.lengths, listed.nodes, tile.begin, listed.count, listed.places,
            tile.samples.start, own.width, own.size, own.weight.shape[1], room.frames, room.positions,
            own.encoder, own.predictor, *moved, *self.operands, **own.units, FRAME_ROWS=2048 // frame_units,
            FRAME_UNITS=frame_units, LABEL_ROWS=2048 // label_units, LABEL_UNITS=label_units,
        )  # fmt: skip

    def _add_products(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        """total[slice] += left[slice].T @ right[slice]"""
        left, right = (own.unflatten(0, (len(total), -1)) for own in (left, right))
        if left.dtype == total.dtype:
            total.baddbmm_(left.transpose(1, 2), right)
        elif left.is_cpu:
            total.baddbmm_(left.transpose(1, 2).to(total.dtype), right.to(total.dtype))
        else:
            total += torch.bmm(left.transpose(1, 2), right, out_dtype=total.dtype)

    def done(self) -> list[Tensor | None]:
        own = self.own
        found: list[Tensor | None] = [None] * 4
        if self.operands is not None:
            found[:2] = self.operands
        if self.weight is not None:
            found[2] = self.weight.sum(0)[: own.num_classes, : own.size]
        if self.bias is not None:
            found[3] = self.bias[: own.num_classes]
        return [
            tensor.to(own.dtype) if need and tensor is not None else None
            for need, tensor in zip(self.needed, found, strict=True)
        ]


def product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """left @ right, with sums of the dtype of ``out``."""
    if left.dtype == out.dtype:
        return torch.mm(left, right, out=out)
    if left.is_cpu:
        # Products of halves are exact in float32.
        return torch.mm(left.to(out.dtype), right.to(out.dtype), out=out)
    return torch.mm(left, right, out_dtype=out.dtype, out=out)
