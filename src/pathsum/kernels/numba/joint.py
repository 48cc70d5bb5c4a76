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

from pathsum.kernels.numba import grid, parallel
from pathsum.kernels.numba.compilation import COMPILE, kernel
from pathsum.kernels.numba.extended import exp
from pathsum.kernels.numba.linking import part
from pathsum.kernels.numba.rows import softmax_statistics
from pathsum.kernels.numba.views import borrow
from pathsum.lattice import ArcLattice, GridLattice

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
) -> tuple[np.ndarray, np.ndarray]:
    """Losses of a batch and, where asked, the posteriors (2, nodes) of the blank and of the label arcs of each node.

    ``solve`` is ``grid.solve`` or one that is called like it, for another lattice.
    """
    solve = solve or grid.solve
    num_nodes = int(lattice.row_offsets[-1])
    num_threads = parallel.worthwhile(num_threads, num_nodes * sum(joiner.weight.shape) // 8)
    maxima = np.empty(num_nodes, joiner.weight.dtype)
    scores = np.empty((2, num_nodes))
    blank_scores, label_scores = scores
    tiles = Tiles(joiner, lattice, matmul, min(rows_per_tile, num_nodes), num_threads)

    for first in range(0, num_nodes, rows_per_tile):
        rows = np.arange(first, min(first + rows_per_tile, num_nodes))
        logits = tiles.logits(rows)

        def score(first_row: int, last_row: int, rows: np.ndarray = rows, logits: np.ndarray = logits) -> None:
            _score_rows(
                logits, rows, first_row, last_row, lattice.row_offsets, lattice.targets, lattice.target_lengths,
                lattice.blank, maxima, blank_scores, label_scores,
            )  # fmt: skip

        parallel.run(score, parallel.split_evenly(len(rows), num_threads), num_threads)

    losses = solve(blank_scores, label_scores, maxima, lattice, need_gradient=need_gradient, num_threads=num_threads)
    return losses, scores if need_gradient else scores[:0]


def backward(
    grad_losses: np.ndarray,
    joiner: Joiner,
    lattice: GridLattice,
    losses: np.ndarray,
    blank_posteriors: np.ndarray,
    label_posteriors: np.ndarray,
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
        blank_posteriors = blank_posteriors.copy()
        blank_posteriors[1:] += (1.0 + fastemit_lambda) * np.nan_to_num(label_posteriors[:-1])
    gate = np.finfo(joiner.weight.dtype).eps / 2 if gate is None else gate
    mass = blank_posteriors + (1.0 + fastemit_lambda) * label_posteriors
    alive = _alive_rows(grad_losses, losses, mass, lattice, gate)
    num_threads = parallel.worthwhile(num_threads, len(alive) * sum(joiner.weight.shape) // 4)
    tiles = GradientTiles(joiner, lattice, matmul, min(rows_per_tile, len(alive)), num_threads)

    for first in range(0, len(alive), rows_per_tile):
        rows = alive[first : first + rows_per_tile]
        logits = tiles.logits(rows)

        def differentiate(first_row: int, last_row: int, rows: np.ndarray = rows, logits: np.ndarray = logits) -> None:
            _differentiate_rows(
                logits, rows, first_row, last_row, lattice.row_offsets, lattice.targets, lattice.target_lengths,
                lattice.blank, grad_losses, losses, blank_posteriors, label_posteriors, fastemit_lambda, clamp,
            )  # fmt: skip

        parallel.run(differentiate, parallel.split_evenly(len(rows), num_threads), num_threads)
        tiles.add(rows, logits)
    return tiles.gradients


def _alive_rows(
    grad_losses: np.ndarray, losses: np.ndarray, mass: np.ndarray, lattice: GridLattice, gate: float
) -> np.ndarray:
    """The nodes whose gradient is computed."""
    alive = np.zeros(len(mass), np.bool_)
    for n in np.flatnonzero((grad_losses != 0) & (losses != np.inf)):
        nodes = slice(lattice.row_offsets[n], lattice.row_offsets[n + 1])
        shape = (int(lattice.logit_lengths[n]), int(lattice.target_lengths[n]) + 1)
        alive[nodes] = True if np.isnan(losses[n]) else heavy_nodes(mass[nodes].reshape(shape), gate).ravel()
    return np.flatnonzero(alive)


def heavy_nodes(mass: np.ndarray, gate: float) -> np.ndarray:
    """All nodes (T, U+1) with mass but those that leave, out of any frame and any label position, at most ``gate``."""
    return (mass > 0) & ~(_light_ends(mass, 0, gate / 2) & _light_ends(mass, 1, gate / 2))


def _light_ends(mass: np.ndarray, axis: int, most: float) -> np.ndarray:
    """The two ends of each line along an axis that hold at most so much each."""
    return (mass.cumsum(axis) <= most) | (np.flip(np.flip(mass, axis).cumsum(axis), axis) <= most)


class Tiles:
    """Room for one tile, and how it is filled."""

    def __init__(
        self,
        joiner: Joiner,
        lattice: GridLattice | ArcLattice,
        matmul: Matmul,
        num_rows: int,
        num_threads: int,
    ):
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


class GradientTiles(Tiles):
    """Also the gradients of the operands, to which those of each tile are added, and room for what leads there."""

    def __init__(
        self,
        joiner: Joiner,
        lattice: GridLattice | ArcLattice,
        matmul: Matmul,
        num_rows: int,
        num_threads: int,
    ):
        super().__init__(joiner, lattice, matmul, num_rows, num_threads)
        self.gradients = Joiner(*(np.zeros_like(operand) for operand in joiner[:4]), joiner.activation)
        self._grad_hidden, self._product = np.empty_like(self.hidden), np.empty_like(joiner.weight)

    def add(self, rows: np.ndarray, grad_logits: np.ndarray) -> None:
        """Add the share of the rows that were filled last, from the gradient of their logits."""
        joiner, gradients, hidden = self.joiner, self.gradients, self.hidden[: len(rows)]
        self.matmul(grad_logits.T, hidden, self._product)
        np.add(gradients.weight, self._product, out=gradients.weight)
        np.add(gradients.bias, grad_logits.sum(0), out=gradients.bias)
        grad_hidden = self._grad_hidden[: len(rows)]
        self.matmul(grad_logits, joiner.weight, grad_hidden)

        def scatter(first_column: int, last_column: int) -> None:
            _scatter_rows(
                grad_hidden, hidden, joiner.encoder, joiner.predictor, rows, first_column, last_column,
                self.lattice.row_offsets, self.lattice.target_lengths, joiner.activation, gradients.encoder,
                gradients.predictor,
            )  # fmt: skip

        # By columns, so that the rows of one frame are added by one thread, in order.
        parallel.run(scatter, parallel.split_evenly(hidden.shape[1], self.num_threads), self.num_threads)


@part(forceinline=True, **COMPILE)
def node_of(row, n, row_offsets, target_lengths):
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
        n, t, u = node_of(rows[r], n, row_offsets, target_lengths)
        _activate(encoder[n, t], predictor[n, u], activation, hidden[r])


@part(**COMPILE)
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
    logits, rows, first, last, row_offsets, targets, target_lengths, blank, maxima, blank_scores, label_scores
):  # fmt: skip
    """The greatest logit of each row, and the log-probabilities of the two arcs out of its node."""
    logits = borrow(logits)
    n = 0
    for r in range(first, last):
        n, _, u = node_of(rows[r], n, row_offsets, target_lengths)
        label = targets[n, u] if u < target_lengths[n] else -1
        node = rows[r]
        maxima[node], _, blank_scores[node], label_scores[node] = grid.score_row(logits[r], blank, label, True)


@kernel
def _differentiate_rows(
    logits, rows, first, last, row_offsets, targets, target_lengths, blank, grad_losses, losses, blank_posteriors,
    label_posteriors, fastemit_lambda, clamp,
):  # fmt: skip
    """Each row of logits replaced by its gradient."""
    logits = borrow(logits)
    # A row of its own: written over what it is read from, a loop is not vectorised.
    gradient = np.empty(logits.shape[1], logits.dtype)
    n = 0
    for r in range(first, last):
        n, _, u = node_of(rows[r], n, row_offsets, target_lengths)
        label = targets[n, u] if u < target_lengths[n] else -1
        node = rows[r]
        if losses[n] != losses[n]:
            gradient[:] = np.nan
        else:
            # Not forward's: a product of other rows rounds its logits otherwise, and a softmax by the statistics of
            # other logits does not sum to 1.
            maximum, total = softmax_statistics(logits[r])
            grid.differentiate_row(
                logits[r], gradient, blank, label, grad_losses[n], maximum, total, blank_posteriors[node],
                label_posteriors[node] * (1.0 + fastemit_lambda), clamp,
            )  # fmt: skip
        logits[r] = gradient


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
        n, t, u = node_of(rows[r], n, row_offsets, target_lengths)
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


@part(**COMPILE)
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
