"""A linear layer's log-softmax, of which a few columns are read: its logits exist a tile at a time.

    column[n, t, w] = z[n, t, class[n, w]] - log sum over c of exp z[n, t, c]        z = hidden . weight^T + bias

Forward makes the tiles once; backward makes them again and multiplies what becomes of them by weight and hidden. The
products are torch's own, so that this is the same on every device. Where the classes are shared out among processes
each makes the tiles of its own; row sums, the columns and what goes back to ``hidden`` are summed over all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pathsum.kernels.protocol import Call, ColumnsSaved, LinearOptions
from pathsum.lattice import ChainLattice, Columns
from pathsum.torch._operators import OperatorKernels
from pathsum.torch._ops.arrays import as_tensor, fake_gradient, fake_like, time_major, work_dtype
from pathsum.torch._processes import NAMED, Processes

# Rows of a tile, and its elements: more of them would cost memory, less a wait of all threads for the last more often.
_ROWS = 2048
_ELEMENTS = {"cpu": 2**22}
_ELEMENTS_ELSEWHERE = 2**25
# Classes of a tile are a multiple: products over rows that do not begin on whole vectors take a fifth longer.
_ALIGNED = 64


class Tile(NamedTuple):
    """Some rows by some classes."""

    rows: slice
    classes: slice


class LinearOperators(OperatorKernels):
    lattice = Columns
    inputs, options, saved = ("hidden", "weight", "bias?"), LinearOptions, ColumnsSaved

    def forward(self, call: Call, need_gradient: bool) -> ColumnsSaved:
        layer = Layer.of(call)
        maxima = torch.full_like(layer.rows[:, 0], torch.finfo(layer.work).min, dtype=layer.work)
        sums = torch.zeros_like(maxima, dtype=torch.float64)
        columns = maxima.new_zeros(len(maxima), layer.columns.shape[1])
        memory = layer.memory()
        for tile in layer.tiles():
            self.read_tile(layer, tile, layer.logits(tile, memory), maxima, sums, columns)
        processes = layer.processes
        if processes is not None:
            largest = processes.largest(maxima.clone())
            sums *= (maxima - largest).exp()
            maxima, sums, columns = largest, processes.sum(sums), processes.sum(columns)
        self.normalise(columns, maxima, sums)
        return ColumnsSaved(layer.in_batch(columns), maxima, sums)

    def backward(
        self, call: Call, saved: ColumnsSaved, upstream: Tensor, needed: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        layer = Layer.of(call)
        saved = layer.own(saved)
        of_columns = layer.of_rows(upstream.detach()).contiguous()
        scales = _scales(of_columns, saved)
        gradients, memory = _Gradients(layer, needed), layer.memory()
        for tile in layer.tiles():
            logits = layer.logits(tile, memory)
            self.differentiate(layer, tile, logits, saved.maxima, scales, of_columns)
            gradients.add(tile, logits)
        return gradients.done()

    def second(
        self,
        call: Call,
        saved: ColumnsSaved,
        upstream: Tensor,
        tangents: Sequence[Tensor | None],
        needed: Sequence[bool],
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        layer = Layer.of(call)
        along, saved = _Tangents(layer, tangents), layer.own(saved)
        of_columns = layer.of_rows(upstream.detach())
        # The mean by which the log of each row's sum moves, and how its columns move.
        means = torch.zeros_like(saved.sums)
        slopes = of_columns.new_zeros(of_columns.shape)
        for tile in layer.tiles():
            moved = along.logits(tile)
            slopes[tile.rows] += layer.read(tile, moved)
            shares = layer.logits(tile).sub_(saved.maxima[tile.rows, None]).exp_()
            means[tile.rows] += shares.mul_(moved).sum(1)
        if layer.processes is not None:
            means, slopes = layer.processes.sum(means), layer.processes.sum(slopes)
        means = torch.where(saved.sums == 0, 0.0, means / saved.sums).to(layer.work)
        scales = _scales(of_columns, saved).to(layer.work)
        products = _Gradients(layer, needed)
        for tile in layer.tiles() if any(needed) else ():
            first = layer.logits(tile).sub_(saved.maxima[tile.rows, None]).exp_().mul_(scales[tile.rows, None])
            products.add(tile, first * (along.logits(tile) - means[tile.rows, None]))
            layer.add_columns(tile, first, of_columns)
            products.add_moved(tile, first, along)
        return layer.in_batch(slopes - means[:, None]), products.done()

    def read_tile(
        self, layer: Layer, tile: Tile, logits: Tensor, maxima: Tensor, sums: Tensor, columns: Tensor
    ) -> None:
        """Bring the statistics of a tile's rows up to date, and read what columns it has."""
        rows = tile.rows
        columns[rows] += layer.read(tile, logits)
        largest = torch.maximum(maxima[rows], logits.amax(1))
        total = logits.sub_(largest[:, None]).exp_().sum(1, dtype=torch.float64)
        sums[rows] = sums[rows] * (maxima[rows] - largest).exp() + total
        maxima[rows] = largest

    def normalise(self, columns: Tensor, maxima: Tensor, sums: Tensor) -> None:
        """Logits to log-probabilities; a row of nothing but -inf stays so."""
        columns.sub_(maxima[:, None]).sub_(torch.where(sums == 0, 0.0, sums.log())[:, None])

    def differentiate(
        self, layer: Layer, tile: Tile, logits: Tensor, maxima: Tensor, scales: Tensor, of_columns: Tensor
    ) -> None:
        """Replace a tile's logits by their gradient."""
        logits.sub_(maxima[tile.rows, None]).exp_().mul_(scales[tile.rows, None])
        layer.add_columns(tile, logits, of_columns)

    def sketch(self, call: Call) -> ColumnsSaved:
        hidden, classes = call.scores[0], call.lattice.classes
        axes = (1, 0) if time_major(hidden) else (0, 1)
        shape = (*(hidden.shape[axis] for axis in axes), classes.shape[1])
        columns = hidden.new_empty(shape, dtype=work_dtype(hidden)).permute(*axes, 2)
        maxima = columns.new_empty(torch.library.get_ctx().new_dynamic_size())
        return ColumnsSaved(columns, maxima, torch.empty_like(maxima, dtype=torch.float64))

    def sketch_gradient(self, scores: Tensor) -> Tensor:
        return fake_gradient(scores) if scores.ndim == 3 else fake_like(scores)


def _scales(of_columns: Tensor, saved: ColumnsSaved) -> Tensor:
    """(rows,) what the exponential of each logit is multiplied by in the gradient, in float64."""
    return torch.where(saved.sums == 0, 0.0, -of_columns.sum(1, dtype=torch.float64) / saved.sums)


class Layer(NamedTuple):
    """The operands, and their real frames as rows in the order of memory.

    Attributes:
        rows: (rows, H) hidden, in the dtype of a product's factors: on the CPU not below float32, in which products of
            halves are exact.
        weight, bias: (C, H), (C,) or ``None``.
        index: (rows,) which frame of all each is; ``None``: every frame is a row.
        shape: (N, T), and whether time comes first in memory.
        samples: (rows,) the sample of each row.
        columns: (N, W) classes.
        options: As of the call.
        work: The dtype of arithmetic.
    """

    rows: Tensor
    weight: Tensor
    bias: Tensor | None
    index: Tensor | None
    shape: tuple[int, int, bool]
    samples: Tensor
    columns: Tensor
    options: LinearOptions
    work: torch.dtype

    @classmethod
    def of(cls, call: Call) -> Layer:
        hidden, weight, bias = (None if tensor is None else tensor.detach() for tensor in call.scores)
        assert hidden is not None
        assert weight is not None
        num_samples, num_frames, _ = hidden.shape
        device, by_time = hidden.device, time_major(hidden)
        lengths = as_tensor(call.lattice.input_lengths)
        real = torch.arange(num_frames, device=lengths.device) < lengths[:, None]
        real = (real.T if by_time else real).flatten()
        rows = (hidden.transpose(0, 1) if by_time else hidden).flatten(0, 1)
        frames = torch.arange(len(rows), device=device)
        samples = frames % num_samples if by_time else frames // num_frames
        index = None
        if lengths.device.type != "cpu":  # nobody looks at them
            rows = torch.where(real.to(device)[:, None], rows, 0.0)
        elif not real.all():
            index = real.nonzero()[:, 0].to(device)
            rows, samples = rows[index], samples[index]
        rows = rows.to(work_dtype(rows) if device.type == "cpu" else rows.dtype)
        columns = as_tensor(call.lattice.classes).to(device).long() - call.options.first
        shape = (num_samples, num_frames, by_time)
        return cls(rows, weight, bias, index, shape, samples, columns, call.options, work_dtype(hidden))

    @property
    def processes(self) -> Processes | None:
        """Those among which the classes are shared out."""
        return NAMED[self.options.group] if self.options.group else None

    def own(self, saved: ColumnsSaved) -> ColumnsSaved:
        """What forward has kept of the rows; ``vmap`` leaves something behind them."""
        count = len(self.rows)
        return saved._replace(maxima=saved.maxima[:count], sums=saved.sums[:count])

    def sizes(self) -> tuple[int, int]:
        """How many rows and how many classes a tile has."""
        num_rows = min(_ROWS, max(len(self.rows), 1))
        elements = _ELEMENTS.get(self.rows.device.type, _ELEMENTS_ELSEWHERE)
        chunk = self.options.chunk or elements // num_rows // _ALIGNED * _ALIGNED
        return num_rows, min(chunk, max(len(self.weight), 1))

    def tiles(self) -> Iterator[Tile]:
        """All tiles, those of the same classes one after another."""
        (num_rows, chunk), num_classes = self.sizes(), len(self.weight)
        for first in range(0, num_classes, chunk):
            for row in range(0, len(self.rows), num_rows):
                rows = slice(row, min(row + num_rows, len(self.rows)))
                yield Tile(rows, slice(first, min(first + chunk, num_classes)))

    def memory(self) -> Tensor:
        """Memory for the logits of a tile, one after another."""
        num_rows, chunk = self.sizes()
        return self.rows.new_empty(num_rows * chunk, dtype=self.work)

    def logits(self, tile: Tile, memory: Tensor | None = None) -> Tensor:
        return self.product(tile, self.rows, self.weight, self.bias, memory)

    def product(
        self, tile: Tile, rows: Tensor, weight: Tensor, bias: Tensor | None, memory: Tensor | None = None
    ) -> Tensor:
        found = self.matmul(rows[tile.rows], weight[tile.classes].T, memory)
        return found if bias is None else found.add_(bias[tile.classes])

    def matmul(self, left: Tensor, right: Tensor, memory: Tensor | None = None) -> Tensor:
        """A product whose sums are in the dtype of arithmetic."""
        dtype = self.rows.dtype
        left, right = left.to(dtype), right.to(dtype)
        shape = (len(left), right.shape[1])
        out = None if memory is None else memory[: shape[0] * shape[1]].view(shape)
        if dtype == self.work:
            return torch.mm(left, right, out=out)
        return torch.mm(left, right, out_dtype=self.work, out=out)

    def add_product(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        dtype = self.rows.dtype
        if dtype == total.dtype:
            total.addmm_(left.to(dtype), right.to(dtype))
        else:
            total += self.matmul(left, right)

    def read(self, tile: Tile, logits: Tensor) -> Tensor:
        """(rows, W) the columns' logits, 0 where the class is of another tile."""
        places, inside = self._places(tile)
        return torch.where(inside, logits.gather(1, places), 0.0)

    def add_columns(self, tile: Tile, logits: Tensor, columns: Tensor) -> None:
        """Add to each logit what belongs to its column; of equal columns all but one are 0."""
        places, inside = self._places(tile)
        logits.scatter_add_(1, places, torch.where(inside, columns[tile.rows], 0.0))

    def _places(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """(rows, W) the place among the tile's classes of what each column reads, and whether it is among them."""
        places = self.columns[self.samples[tile.rows]] - tile.classes.start
        inside = (places >= 0) & (places < tile.classes.stop - tile.classes.start)
        return torch.where(inside, places, 0), inside

    def of_rows(self, batch: Tensor) -> Tensor:
        """(rows, ...) of (N, T, ...)."""
        flat = (batch.transpose(0, 1) if self.shape[2] else batch).flatten(0, 1)
        return flat if self.index is None else flat[self.index]

    def in_batch(self, rows: Tensor) -> Tensor:
        """(N, T, ...) of (rows, ...), 0 in padding."""
        num_samples, num_frames, by_time = self.shape
        if self.index is not None:
            rows = rows.new_zeros(num_samples * num_frames, *rows.shape[1:]).index_copy_(0, self.index, rows)
        if by_time:
            return rows.unflatten(0, (num_frames, num_samples)).transpose(0, 1)
        return rows.unflatten(0, (num_samples, num_frames))


class _Tangents:
    """Tangents of the operands; ``None`` is zeros."""

    def __init__(self, layer: Layer, tangents: Sequence[Tensor | None]) -> None:
        hidden, self.weight, self.bias = (None if tensor is None else tensor.detach() for tensor in tangents)
        self.layer, self.rows = layer, None if hidden is None else layer.of_rows(hidden)

    def logits(self, tile: Tile) -> Tensor:
        """How the logits of a tile move."""
        layer = self.layer
        size = (tile.rows.stop - tile.rows.start, tile.classes.stop - tile.classes.start)
        moved = layer.rows.new_zeros(size, dtype=layer.work)
        if self.rows is not None:
            moved += layer.product(tile, self.rows, layer.weight, None)
        if self.weight is not None:
            moved += layer.product(tile, layer.rows, self.weight, None)
        return moved if self.bias is None else moved.add_(self.bias[tile.classes])


class _Gradients:
    """Sums over the tiles of what belongs to hidden, weight and bias, in the dtype of arithmetic."""

    def __init__(self, layer: Layer, needed: Sequence[bool]) -> None:
        self.layer = layer
        weight, bias = layer.weight, layer.bias
        self.hidden = torch.zeros_like(layer.rows, dtype=layer.work) if needed[0] else None
        self.weight = weight.new_empty(weight.shape) if needed[1] else None
        self.bias = torch.zeros_like(bias, dtype=layer.work) if needed[2] and bias is not None else None
        # The sum of the classes that the tiles are at: the gradient itself where it has that dtype.
        self.classes, self.of_classes = slice(0, 0), None

    def add(self, tile: Tile, logits: Tensor) -> None:
        """Of the gradient of a tile's logits."""
        layer = self.layer
        if self.hidden is not None:
            layer.add_product(self.hidden[tile.rows], logits, layer.weight[tile.classes])
        if self.weight is not None:
            layer.add_product(self._of_classes(tile), logits.T, layer.rows[tile.rows])
        if self.bias is not None:
            self.bias[tile.classes] += logits.sum(0)

    def add_moved(self, tile: Tile, logits: Tensor, along: _Tangents) -> None:
        """Of the gradient of how a tile's logits move along tangents."""
        layer = self.layer
        if self.hidden is not None and along.weight is not None:
            layer.add_product(self.hidden[tile.rows], logits, along.weight[tile.classes])
        if self.weight is not None and along.rows is not None:
            layer.add_product(self._of_classes(tile), logits.T, along.rows[tile.rows])

    def _of_classes(self, tile: Tile) -> Tensor:
        if self.of_classes is None or tile.classes != self.classes:
            self._write()
            assert self.weight is not None
            own = self.weight[tile.classes]
            self.classes, self.of_classes = (
                tile.classes,
                own if own.dtype == self.layer.work else own.to(self.layer.work),
            )
            self.of_classes.zero_()
        return self.of_classes

    def _write(self) -> None:
        if self.weight is not None and self.of_classes is not None and self.weight.dtype != self.layer.work:
            self.weight[self.classes] = self.of_classes.to(self.weight.dtype)

    def done(self) -> tuple[Tensor | None, ...]:
        layer = self.layer
        self._write()
        if self.weight is not None and self.of_classes is None:  # there was no row
            self.weight.zero_()
        if self.hidden is not None and layer.processes is not None:
            self.hidden = layer.processes.sum(self.hidden)
        dtype = layer.weight.dtype
        hidden = None if self.hidden is None else layer.in_batch(self.hidden).to(dtype)
        return hidden, self.weight, None if self.bias is None else self.bias.to(dtype)


def columns_of(lattice: ChainLattice) -> tuple[Columns, ChainLattice]:
    """The columns that a chain of CTC reads, the blank's and one a label; and the chain of these columns.

    Equal labels read the first column that is theirs.
    """
    given = lattice.step_labels
    labels = as_tensor(given)
    classes = torch.cat([labels[:, :1], labels[:, 1::2]], 1)
    state = torch.arange(labels.shape[1], device=labels.device)
    places = _first_places(classes)[:, torch.where(state % 2 == 1, (state + 1) // 2, 0)].to(labels.dtype)
    if not isinstance(given, Tensor):
        places, classes = places.numpy(), classes.numpy()
    chain = replace(lattice, stay_labels=places, step_labels=places)
    return Columns(lattice.input_lengths, classes), chain


def _first_places(classes: Tensor) -> Tensor:
    """(N, W) the first column of the same class."""
    ordered, order = torch.sort(classes, dim=1, stable=True)
    place = torch.arange(classes.shape[1], device=classes.device)
    begins = torch.where(ordered[:, 1:] != ordered[:, :-1], place[1:], 0)
    begins = torch.cat([torch.zeros_like(order[:, :1]), begins], 1).cummax(1).values
    return torch.zeros_like(order).scatter(1, order, order.gather(1, begins))
