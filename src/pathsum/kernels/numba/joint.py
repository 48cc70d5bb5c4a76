"""The transducer's joiner fused with the loss: logits exist a tile of rows at a time.

    logits[n, t, u] = activation(encoder[n, t] + predictor[n, u]) @ weight.T + bias

Forward turns each tile into the two score planes of a grid; backward makes the tiles again, but only for the nodes
whose posterior is above the rounding of the result (posterior gating), and each tile's gradients are added to the four
results in the order of the rows. Rows are the real nodes (t, u) of the samples, one after another: padding costs
nothing. The matrix products are the caller's: ``matmul(a, b, out)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit

from pathsum.kernels.numba import grid, parallel
from pathsum.kernels.numba.compilation import COMPILE, kernel
from pathsum.kernels.numba.extended import exp
from pathsum.kernels.numba.rows import borrow
from pathsum.kernels.protocol import Saved
from pathsum.lattice import GridLattice

TANH, RELU, SIGMOID, GELU = range(4)
ACTIVATIONS = {"tanh": TANH, "relu": RELU, "sigmoid": SIGMOID, "gelu": GELU}

Matmul = Callable[[np.ndarray, np.ndarray, np.ndarray], object]
Solve = Callable[..., np.ndarray]


class Joiner(NamedTuple):
    """The operands, contiguous and of one dtype: encoder (N, T, H), predictor (N, U+1, H), weight (V, H), bias (V,)."""

    encoder: np.ndarray
    predictor: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    activation: int


def tile_rows(joiner: Joiner, memory: int) -> int:
    """Rows of a tile whose hidden rows, logits and hidden gradients take about ``memory`` bytes."""
    num_classes, hidden_size = joiner.weight.shape
    return max(64, memory // ((num_classes + 2 * hidden_size) * joiner.weight.itemsize))


def forward(
    joiner: Joiner,
    lattice: GridLattice,
    matmul: Matmul,
    *,
    rows_per_tile: int,
    need_gradient: bool,
    num_threads: int,
    solve: Solve | None = None,
) -> Saved:
    """Losses of a batch and, where asked, the posteriors of the blank and of the label arcs.

    ``solve`` is ``grid.solve`` or one that is called like it, for another lattice.
    """
    solve = solve or grid.solve
    num_nodes = int(lattice.row_offsets[-1])
    dtype = joiner.weight.dtype
    maxima, sums = np.empty(num_nodes, dtype), np.empty(num_nodes, dtype)
    blank_scores, label_scores = np.empty(num_nodes), np.empty(num_nodes)
    tiles = _Tiles(joiner, lattice, matmul, min(rows_per_tile, num_nodes), num_threads)

    for first in range(0, num_nodes, rows_per_tile):
        rows = np.arange(first, min(first + rows_per_tile, num_nodes))
        logits = tiles.logits(rows)

        def score(first_row: int, last_row: int, rows: np.ndarray = rows, logits: np.ndarray = logits) -> None:
            _score_rows(
                logits, rows, first_row, last_row, lattice.row_offsets, lattice.targets, lattice.target_lengths,
                lattice.blank, maxima, sums, blank_scores, label_scores,
            )  # fmt: skip

        parallel.run(score, parallel.split_evenly(len(rows), num_threads), num_threads)

    losses = solve(blank_scores, label_scores, maxima, lattice, need_gradient=need_gradient, num_threads=num_threads)
    none = np.empty(0)
    posteriors = (blank_scores, label_scores) if need_gradient else (none, none)
    return Saved(losses, maxima, sums, posteriors)


def backward(
    grad_losses: np.ndarray,
    joiner: Joiner,
    lattice: GridLattice,
    saved: Saved,
    matmul: Matmul,
    *,
    rows_per_tile: int,
    fastemit_lambda: float,
    clamp: float,
    gate: float | None,
    num_threads: int,
    blank_follows: bool = False,
) -> Joiner:
    """The gradients with respect to the four operands.

    With ``blank_follows`` each label arc has also emitted the blank of the next row.
    """
    if blank_follows:
        blank, label = saved.posteriors[0].copy(), np.nan_to_num(saved.posteriors[1])
        blank[1:] += (1.0 + fastemit_lambda) * label[:-1]
        saved = saved._replace(posteriors=(blank, saved.posteriors[1]))
    gradients = Joiner(*(np.zeros_like(operand) for operand in joiner[:4]), joiner.activation)
    alive = _alive_rows(grad_losses, lattice, saved, fastemit_lambda, gate, joiner.weight.dtype)
    tiles = _Tiles(joiner, lattice, matmul, min(rows_per_tile, len(alive)), num_threads)
    grad_hidden = np.empty_like(tiles.hidden)
    product = np.empty_like(joiner.weight)

    for first in range(0, len(alive), rows_per_tile):
        rows = alive[first : first + rows_per_tile]
        logits = tiles.logits(rows)
        hidden, grad_rows = tiles.hidden[: len(rows)], grad_hidden[: len(rows)]

        def differentiate(first_row: int, last_row: int, rows: np.ndarray = rows, logits: np.ndarray = logits) -> None:
            _differentiate_rows(
                logits, rows, first_row, last_row, lattice.row_offsets, lattice.targets, lattice.target_lengths,
                lattice.blank, grad_losses, saved.losses, saved.maxima, saved.sums, *saved.posteriors, fastemit_lambda,
                clamp,
            )  # fmt: skip

        parallel.run(differentiate, parallel.split_evenly(len(rows), num_threads), num_threads)
        matmul(logits.T, hidden, product)
        np.add(gradients.weight, product, out=gradients.weight)
        np.add(gradients.bias, logits.sum(0), out=gradients.bias)
        matmul(logits, joiner.weight, grad_rows)

        def scatter(
            first_column: int, last_column: int, rows: np.ndarray = rows, hidden: np.ndarray = hidden,
            grad_rows: np.ndarray = grad_rows,
        ) -> None:  # fmt: skip
            _scatter_rows(
                grad_rows, hidden, joiner.encoder, joiner.predictor, rows, first_column, last_column,
                lattice.row_offsets, lattice.target_lengths, joiner.activation, gradients.encoder,
                gradients.predictor,
            )  # fmt: skip

        # By columns, so that the rows of one frame are added by one thread, in order.
        parallel.run(scatter, parallel.split_evenly(hidden.shape[1], num_threads), num_threads)
    return gradients


def _alive_rows(
    grad_losses: np.ndarray,
    lattice: GridLattice,
    saved: Saved,
    fastemit_lambda: float,
    gate: float | None,
    dtype: np.dtype,
) -> np.ndarray:
    """The nodes whose gradient is computed.

    A node is dropped where its posterior is at most eps / 2 / max(T, U+1), eps being the dtype's: what is dropped from
    any frame, or from any label position, is then at most half an eps of the unit mass that goes through it.
    """
    blank, label = saved.posteriors
    alive = np.zeros(len(blank), np.bool_)
    for n in np.flatnonzero((grad_losses != 0) & (saved.losses != np.inf)):
        nodes = slice(lattice.row_offsets[n], lattice.row_offsets[n + 1])
        if np.isnan(saved.losses[n]):
            alive[nodes] = True
            continue
        longest = max(int(lattice.logit_lengths[n]), int(lattice.target_lengths[n]) + 1)
        threshold = np.finfo(dtype).eps / 2 / longest if gate is None else gate
        alive[nodes] = blank[nodes] + (1.0 + fastemit_lambda) * label[nodes] > threshold
    return np.flatnonzero(alive)


class _Tiles:
    """Room for one tile, and how it is filled."""

    def __init__(self, joiner: Joiner, lattice: GridLattice, matmul: Matmul, num_rows: int, num_threads: int):
        num_classes, hidden_size = joiner.weight.shape
        self.joiner, self.lattice, self.matmul, self.num_threads = joiner, lattice, matmul, num_threads
        self.hidden = np.empty((num_rows, hidden_size), joiner.weight.dtype)
        self._logits = np.empty((num_rows, num_classes), joiner.weight.dtype)

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """The logits of some rows; their hidden rows are left in ``hidden``."""
        joiner, hidden, logits = self.joiner, self.hidden[: len(rows)], self._logits[: len(rows)]

        def join(first_row: int, last_row: int) -> None:
            _join_rows(
                joiner.encoder, joiner.predictor, rows, first_row, last_row, self.lattice.row_offsets,
                self.lattice.target_lengths, joiner.activation, hidden,
            )  # fmt: skip

        parallel.run(join, parallel.split_evenly(len(rows), self.num_threads), self.num_threads)
        self.matmul(hidden, joiner.weight.T, logits)
        np.add(logits, joiner.bias, out=logits)
        return logits


@njit(forceinline=True, **COMPILE)
def _node(row, n, row_offsets, target_lengths):
    """Sample, frame and label position of a row, given the sample of a row before it."""
    while row >= row_offsets[n + 1]:
        n += 1
    node = row - row_offsets[n]
    width = target_lengths[n] + 1
    return n, node // width, node % width


@kernel
def _join_rows(encoder, predictor, rows, first, last, row_offsets, target_lengths, activation, hidden):
    encoder, predictor, hidden = borrow(encoder), borrow(predictor), borrow(hidden)
    n = 0
    for r in range(first, last):
        n, t, u = _node(rows[r], n, row_offsets, target_lengths)
        _activate(encoder[n, t], predictor[n, u], activation, hidden[r])


@njit(**COMPILE)
def _activate(left, right, activation, out):
    zero, one = out.dtype.type(0), out.dtype.type(1)
    half = out.dtype.type(0.5)
    root_half = out.dtype.type(math.sqrt(0.5))
    if activation == TANH:
        for h in range(out.size):
            x = left[h] + right[h]
            # exp(-2|x|) cannot overflow, and its rounding is far below that of a result near 1.
            small = exp(-abs(x + x))
            value = (one - small) / (one + small)
            # A NaN, of which exp knows nothing, stays one.
            out[h] = value if x > 0 else -value if x <= 0 else x
    elif activation == RELU:
        for h in range(out.size):
            x = left[h] + right[h]
            out[h] = zero if x <= 0 else x
    elif activation == SIGMOID:
        for h in range(out.size):
            x = left[h] + right[h]
            small = exp(-abs(x))
            value = one / (one + small)
            out[h] = value if x > 0 else small * value if x <= 0 else x
    else:
        for h in range(out.size):
            x = left[h] + right[h]
            out[h] = half * x * (one + math.erf(x * root_half))


@kernel
def _score_rows(
    logits, rows, first, last, row_offsets, targets, target_lengths, blank, maxima, sums, blank_scores, label_scores
):  # fmt: skip
    """Softmax statistics of each row, and the log-probabilities of the two arcs out of its node."""
    logits = borrow(logits)
    n = 0
    for r in range(first, last):
        n, _, u = _node(rows[r], n, row_offsets, target_lengths)
        label = targets[n, u] if u < target_lengths[n] else -1
        node = rows[r]
        maxima[node], sums[node], blank_scores[node], label_scores[node] = grid.score_row(logits[r], blank, label, True)


@kernel
def _differentiate_rows(
    logits, rows, first, last, row_offsets, targets, target_lengths, blank, grad_losses, losses, maxima, sums,
    blank_posteriors, label_posteriors, fastemit_lambda, clamp,
):  # fmt: skip
    """Each row of logits replaced by its gradient."""
    logits = borrow(logits)
    n = 0
    for r in range(first, last):
        n, _, u = _node(rows[r], n, row_offsets, target_lengths)
        label = targets[n, u] if u < target_lengths[n] else -1
        node = rows[r]
        row = logits[r]
        if losses[n] != losses[n]:
            row[:] = np.nan
        else:
            grid.differentiate_row(
                row, row, blank, label, grad_losses[n], maxima[node], sums[node], blank_posteriors[node],
                label_posteriors[node] * (1.0 + fastemit_lambda), clamp,
            )  # fmt: skip


@kernel
def _scatter_rows(
    grad_hidden, hidden, encoder, predictor, rows, first_column, last_column, row_offsets, target_lengths, activation,
    grad_encoder, grad_predictor,
):  # fmt: skip
    """Through the activation, and added to the frame's and to the label position's row."""
    grad_hidden, hidden, encoder, predictor = borrow(grad_hidden), borrow(hidden), borrow(encoder), borrow(predictor)
    grad_encoder, grad_predictor = borrow(grad_encoder), borrow(grad_predictor)
    columns = last_column - first_column
    change = np.empty(columns, hidden.dtype)
    n = 0
    for r in range(rows.size):
        n, t, u = _node(rows[r], n, row_offsets, target_lengths)
        _chain_rule(
            grad_hidden[r, first_column:last_column], hidden[r, first_column:last_column],
            encoder[n, t, first_column:last_column], predictor[n, u, first_column:last_column], activation, change,
        )  # fmt: skip
        by_frame = grad_encoder[n, t, first_column:last_column]
        for h in range(columns):
            by_frame[h] += change[h]
        by_label = grad_predictor[n, u, first_column:last_column]
        for h in range(columns):
            by_label[h] += change[h]


@njit(**COMPILE)
def _chain_rule(grad, value, left, right, activation, out):
    """The gradient before the activation, from the one after it and the activation's value."""
    one = value.dtype.type(1)
    half = value.dtype.type(0.5)
    root_half = value.dtype.type(math.sqrt(0.5))
    density = value.dtype.type(1 / math.sqrt(2 * math.pi))
    if activation == TANH:
        for h in range(out.size):
            out[h] = grad[h] * (one - value[h] * value[h])
    elif activation == RELU:
        for h in range(out.size):
            out[h] = grad[h] if value[h] > 0 else grad[h] - grad[h]
    elif activation == SIGMOID:
        for h in range(out.size):
            out[h] = grad[h] * value[h] * (one - value[h])
    else:
        for h in range(out.size):
            x = left[h] + right[h]
            slope = half * (one + math.erf(x * root_half)) + x * density * exp(-half * x * x)
            out[h] = grad[h] * slope
