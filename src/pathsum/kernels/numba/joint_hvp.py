"""The second derivative of the transducer's joiner fused with the loss, a tile of rows at a time.

The operands move along a tangent; with a dot for what follows of it, z = encoder + predictor and h = activation(z),

    h. = activation'(z) z.      logits. = h. @ weight.T + h @ weight..T + bias.

Two passes over the tiles with the sweep over the nodes between them, as for logits that exist: the first makes the
tangents of the arcs, the second the logits' gradient g with its tangent g., and of these the products

    weight: g..T @ h + g.T @ h.         hidden: g. @ weight + g @ weight.         bias: sum of g.
    before the activation: hidden * activation'(z) + (g @ weight) * activation''(z) z.

Nodes are gated as in backward, in both passes.
"""

from __future__ import annotations

import math

import numpy as np

from pathsum.kernels.numba import grid, grid_arcs_hvp, grid_hvp, parallel
from pathsum.kernels.numba.compilation import COMPILE, kernel
from pathsum.kernels.numba.extended import exp
from pathsum.kernels.numba.joint import (
    RELU,
    SIGMOID,
    TANH,
    GradientTiles,
    Joiner,
    Matmul,
    _alive_rows,
    _chain_rule,
    node_of,
)
from pathsum.kernels.numba.linking import part
from pathsum.kernels.numba.rows import softmax_mean, softmax_statistics
from pathsum.kernels.numba.views import borrow
from pathsum.lattice import ArcLattice, GridLattice


def tile_rows(joiner: Joiner, memory: int) -> int:
    """Rows of a tile whose logits, hidden rows, their tangents and what is made of them take about ``memory`` bytes."""
    num_classes, hidden_size = joiner.weight.shape
    return max(64, memory // ((3 * num_classes + 5 * hidden_size) * joiner.weight.itemsize))


def hvp(
    tangent: Joiner,
    grad_losses: np.ndarray,
    joiner: Joiner,
    lattice: GridLattice,
    losses: np.ndarray,
    blank_posteriors: np.ndarray,
    label_posteriors: np.ndarray,
    matmul: Matmul,
    *,
    arcs: GridLattice | ArcLattice,
    rows_per_tile: int,
    gate: float | None,
    num_threads: int,
    blank_follows: bool = False,
) -> tuple[np.ndarray, Joiner]:
    """How the gradients with respect to the operands move along a tangent of these, and (N,) how each loss does.

    ``arcs`` is the lattice that was solved. With ``blank_follows`` each label arc has also emitted the blank of the
    next row.
    """
    posteriors = np.stack([blank_posteriors, label_posteriors])
    emitted = np.nan_to_num(posteriors)
    if blank_follows:
        emitted[0, 1:] += emitted[1, :-1]
    gate = np.finfo(joiner.weight.dtype).eps / 2 if gate is None else gate
    # How a loss moves is asked for also where nothing depends on it yet.
    alive, weighed = (
        _alive_rows(upstream, losses, emitted.sum(0), lattice, gate)
        for upstream in (np.ones_like(grad_losses), grad_losses)
    )
    threads = parallel.worthwhile(num_threads, len(alive) * sum(joiner.weight.shape) // 4)
    tiles = MovingTiles(tangent, joiner, lattice, matmul, min(rows_per_tile, len(alive)), threads)

    tangents = np.zeros_like(posteriors)
    for first in range(0, len(alive), rows_per_tile):
        rows = alive[first : first + rows_per_tile]
        logits, moved = tiles.logits(rows), tiles.moved_logits(rows)

        def score(
            first_row: int, last_row: int, rows: np.ndarray = rows, logits: np.ndarray = logits,
            moved: np.ndarray = moved,
        ) -> None:  # fmt: skip
            _gather_tangents(
                logits, moved, rows, first_row, last_row, lattice.row_offsets, lattice.targets,
                lattice.target_lengths, lattice.blank, tangents,
            )  # fmt: skip

        parallel.run(score, parallel.split_evenly(len(rows), threads), threads)

    if blank_follows:
        tangents[1, :-1] += tangents[0, 1:]
    costs = grid_arcs_hvp.hvp(tangents, losses, posteriors, arcs, num_threads=num_threads)
    if blank_follows:
        tangents[0, 1:] += np.nan_to_num(tangents[1, :-1])

    for first in range(0, len(weighed), rows_per_tile):
        rows = weighed[first : first + rows_per_tile]
        logits, moved = tiles.logits(rows), tiles.moved_logits(rows)

        def differentiate(
            first_row: int, last_row: int, rows: np.ndarray = rows, logits: np.ndarray = logits,
            moved: np.ndarray = moved,
        ) -> None:  # fmt: skip
            _differentiate_rows(
                logits, moved, rows, first_row, last_row, lattice.row_offsets, lattice.targets,
                lattice.target_lengths, lattice.blank, grad_losses, losses, emitted, tangents,
            )  # fmt: skip

        parallel.run(differentiate, parallel.split_evenly(len(rows), threads), threads)
        tiles.add_moved(rows, logits, moved)
    return -costs, tiles.gradients


class MovingTiles(GradientTiles):
    """Also the tangent of the tile along one of the operands; ``gradients`` are how the operands' gradients move."""

    def __init__(
        self,
        tangent: Joiner,
        joiner: Joiner,
        lattice: GridLattice | ArcLattice,
        matmul: Matmul,
        num_rows: int,
        num_threads: int,
    ):
        super().__init__(joiner, lattice, matmul, num_rows, num_threads)
        self.tangent = tangent
        self._moved_hidden, self._grad_moved = np.empty_like(self.hidden), np.empty_like(self.hidden)
        self._moved = np.empty_like(self._logits)
        # Second terms of sums, of each shape.
        self._hidden_term, self._logits_term = np.empty_like(self.hidden), np.empty_like(self._logits)
        self._weight_term = np.empty_like(joiner.weight)

    def moved_logits(self, rows: np.ndarray) -> np.ndarray:
        """The tangents of the logits of the rows that were filled last."""
        joiner, tangent, count = self.joiner, self.tangent, len(rows)
        hidden, moved_hidden, moved = self.hidden[:count], self._moved_hidden[:count], self._moved[:count]

        def move(first_row: int, last_row: int) -> None:
            _move_rows(
                tangent.encoder, tangent.predictor, hidden, joiner.encoder, joiner.predictor, rows, first_row, last_row,
                self.lattice.row_offsets, self.lattice.target_lengths, joiner.activation, moved_hidden,
            )  # fmt: skip

        parallel.run(move, parallel.split_evenly(count, self.num_threads), self.num_threads)
        self._sum_of_products(
            (moved_hidden, joiner.weight.T), (hidden, tangent.weight.T), moved, self._logits_term[:count]
        )
        np.add(moved, tangent.bias, out=moved)
        return moved

    def add_moved(self, rows: np.ndarray, grad_logits: np.ndarray, moved_gradient: np.ndarray) -> None:
        """Add the share of the rows that were filled last, from the gradient of their logits and its tangent."""
        joiner, tangent, products, count = self.joiner, self.tangent, self.gradients, len(rows)
        hidden, moved_hidden = self.hidden[:count], self._moved_hidden[:count]
        self._sum_of_products(
            (moved_gradient.T, hidden), (grad_logits.T, moved_hidden), self._product, self._weight_term
        )
        np.add(products.weight, self._product, out=products.weight)
        np.add(products.bias, moved_gradient.sum(0), out=products.bias)
        grad_hidden, grad_moved = self._grad_hidden[:count], self._grad_moved[:count]
        self._sum_of_products(
            (moved_gradient, joiner.weight), (grad_logits, tangent.weight), grad_moved, self._hidden_term[:count]
        )
        self.matmul(grad_logits, joiner.weight, grad_hidden)

        def scatter(first_column: int, last_column: int) -> None:
            _scatter_rows(
                grad_hidden, grad_moved, hidden, tangent.encoder, tangent.predictor, joiner.encoder, joiner.predictor,
                rows, first_column, last_column, self.lattice.row_offsets, self.lattice.target_lengths,
                joiner.activation, products.encoder, products.predictor,
            )  # fmt: skip

        # By columns, so that the rows of one frame are added by one thread, in order.
        parallel.run(scatter, parallel.split_evenly(hidden.shape[1], self.num_threads), self.num_threads)

    def _sum_of_products(
        self,
        one: tuple[np.ndarray, np.ndarray],
        other: tuple[np.ndarray, np.ndarray],
        out: np.ndarray,
        scratch: np.ndarray,
    ) -> None:
        self.matmul(*one, out)
        self.matmul(*other, scratch)
        np.add(out, scratch, out=out)


@kernel
def _move_rows(
    moved_encoder, moved_predictor, hidden, encoder, predictor, rows, first, last, row_offsets, target_lengths,
    activation, out,
):  # fmt: skip
    """The tangents of the hidden rows."""
    moved_encoder, moved_predictor, hidden = borrow(moved_encoder), borrow(moved_predictor), borrow(hidden)
    encoder, predictor, out = borrow(encoder), borrow(predictor), borrow(out)
    moved = np.empty(hidden.shape[1], hidden.dtype)
    n = 0
    for r in range(first, last):
        n, t, u = node_of(rows[r], n, row_offsets, target_lengths)
        left, right = moved_encoder[n, t], moved_predictor[n, u]
        for h in range(moved.size):
            moved[h] = left[h] + right[h]
        _chain_rule(moved, hidden[r], encoder[n, t], predictor[n, u], activation, out[r])


@kernel
def _gather_tangents(
    logits, moved, rows, first, last, row_offsets, targets, target_lengths, blank, tangents
):  # fmt: skip
    logits, moved, tangents = borrow(logits), borrow(moved), borrow(tangents)
    n = 0
    for r in range(first, last):
        n, _, u = node_of(rows[r], n, row_offsets, target_lengths)
        maximum, total = softmax_statistics(logits[r])
        mean = softmax_mean(logits[r], maximum, moved[r]) / logits.dtype.type(total)
        tangents[0, rows[r]] = moved[r, blank] - mean
        if u < target_lengths[n]:
            tangents[1, rows[r]] = moved[r, targets[n, u]] - mean


@kernel
def _differentiate_rows(
    logits, moved, rows, first, last, row_offsets, targets, target_lengths, blank, grad_losses, losses, posteriors,
    tangents,
):  # fmt: skip
    """Each row of logits replaced by its gradient, and its tangent by that of the gradient."""
    logits, moved, posteriors, tangents = borrow(logits), borrow(moved), borrow(posteriors), borrow(tangents)
    gradient, moved_gradient = np.empty(logits.shape[1], logits.dtype), np.empty(logits.shape[1], logits.dtype)
    n = 0
    for r in range(first, last):
        n, _, u = node_of(rows[r], n, row_offsets, target_lengths)
        node = rows[r]
        if losses[n] != losses[n]:
            logits[r] = np.nan
            moved[r] = np.nan
            continue
        label = targets[n, u] if u < target_lengths[n] else -1
        maximum, total = softmax_statistics(logits[r])
        mean = softmax_mean(logits[r], maximum, moved[r]) / logits.dtype.type(total)
        grid.differentiate_row(
            logits[r], gradient, blank, label, grad_losses[n], maximum, total, posteriors[0, node],
            posteriors[1, node], -1.0,
        )  # fmt: skip
        grid_hvp.differentiate_row_again(
            logits[r], moved_gradient, blank, label, grad_losses[n], maximum, total, moved[r], mean,
            posteriors[0, node] + posteriors[1, node], tangents[0, node], tangents[1, node],
        )  # fmt: skip
        logits[r] = gradient
        moved[r] = moved_gradient


@kernel
def _scatter_rows(
    grad_hidden, grad_moved, hidden, moved_encoder, moved_predictor, encoder, predictor, rows, first_column,
    last_column, row_offsets, target_lengths, activation, out_encoder, out_predictor,
):  # fmt: skip
    """Through the activation, and added to the frame's and to the label position's row."""
    grad_hidden, grad_moved, hidden = borrow(grad_hidden), borrow(grad_moved), borrow(hidden)
    moved_encoder, moved_predictor = borrow(moved_encoder), borrow(moved_predictor)
    encoder, predictor = borrow(encoder), borrow(predictor)
    out_encoder, out_predictor = borrow(out_encoder), borrow(out_predictor)
    size = last_column - first_column
    change, curvature = np.empty(size, hidden.dtype), np.empty(size, hidden.dtype)
    n = 0
    for r in range(rows.size):
        n, t, u = node_of(rows[r], n, row_offsets, target_lengths)
        value = hidden[r, first_column:last_column]
        left, right = encoder[n, t, first_column:last_column], predictor[n, u, first_column:last_column]
        _chain_rule(grad_moved[r, first_column:last_column], value, left, right, activation, change)
        _curve(value, left, right, activation, curvature)
        by_value = grad_hidden[r, first_column:last_column]
        moved_left = moved_encoder[n, t, first_column:last_column]
        moved_right = moved_predictor[n, u, first_column:last_column]
        for h in range(size):
            change[h] += by_value[h] * curvature[h] * (moved_left[h] + moved_right[h])
        by_frame = out_encoder[n, t, first_column:last_column]
        for h in range(size):
            by_frame[h] += change[h]
        by_label = out_predictor[n, u, first_column:last_column]
        for h in range(size):
            by_label[h] += change[h]


@part(**COMPILE)
def _curve(value, left, right, activation, out):
    """The activation's second derivative, from its value."""
    one, two, half = value.dtype.type(1), value.dtype.type(2), value.dtype.type(0.5)
    density = value.dtype.type(1 / math.sqrt(2 * math.pi))
    if activation == TANH:
        for h in range(out.size):
            out[h] = -two * value[h] * (one - value[h] * value[h])
    elif activation == RELU:
        out[:] = 0
    elif activation == SIGMOID:
        for h in range(out.size):
            out[h] = value[h] * (one - value[h]) * (one - two * value[h])
    else:
        for h in range(out.size):
            x = left[h] + right[h]
            out[h] = density * exp(-half * x * x) * (two - x * x)
