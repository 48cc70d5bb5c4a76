"""What each loss asks of the kernels: its problem posed, then solved by TensorFlow's operations or on arrays.

A solver keeps a call's options. ``plain`` makes losses (N,) of tensors, which TensorFlow differentiates. The others are
on arrays of NumPy's: ``forward`` makes losses and what is kept for the other two, ``backward`` the gradient of the
upstream one times them, ``hvp`` how that moves along tangents of the scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from pathsum.graphs import Graph
from pathsum.kernels.numba.posing import NO_BOUND, NO_CLASS, in_range, pose_in_range
from pathsum.kernels.tensorflow import chain, dense, grid, sparse
from pathsum.kernels.tensorflow.log_domain import common, losses, rows, sizes, undefined
from pathsum.lattice import Array, ChainLattice, GridLattice, SparseLattice
from pathsum.problems.asg import pose_asg
from pathsum.problems.graphs import pose_graphs, side_by_side
from pathsum.problems.rnnt import pose_rnnt
from pathsum.tensorflow._ops import asg as asg_arrays
from pathsum.tensorflow._ops import chain as chain_arrays
from pathsum.tensorflow._ops import grid as grid_arrays
from pathsum.tensorflow._ops import sparse as sparse_arrays
from pathsum.tensorflow._posing import Posable

Arrays = Sequence[Any]  # of NumPy's


class Integers(NamedTuple):
    """Targets (N, S), S >= 1, and lengths (N,), int64, all in range where nothing else is said; all arrays or all
    tensors.
    """

    targets: Array
    input_lengths: Array
    target_lengths: Array


class Batch(NamedTuple):
    """The integers of a call, as they were given and with harmless ones in place of those out of range; which samples'
    are in range (N,), ``None`` where all are; and the lattice, where they have been posed already.
    """

    given: Integers
    integers: Integers
    valid: Array | None
    posed: Any = None

    @property
    def fed(self) -> tuple[Array, ...]:
        """The integers that are yet to be posed."""
        return () if self.posed is not None else self.given

    def lattice(self, solver: Solver, scores: Arrays, fed: Arrays) -> tuple[Any, np.ndarray | None]:
        """As ``solver.posed``."""
        return solver.posed(scores, Integers(*fed)) if fed else (self.posed, None)


class Solver(Protocol):
    @property
    def impl(self) -> str: ...

    @property
    def reweighted(self) -> bool:
        """Whether what it gives for gradients is not the losses' own."""
        ...

    @property
    def kept(self) -> tuple[Any, ...]:
        """The dtypes of what ``forward`` keeps, ``None`` for that of arithmetic."""
        ...

    def plain(self, scores: Sequence[Array], integers: Integers) -> Array: ...

    def posed(self, scores: Arrays, integers: Integers) -> tuple[Any, np.ndarray | None]:
        """The lattice of integers that may be out of range, and which samples' are not (N,); ``None`` where none is."""
        ...

    def forward(self, scores: Arrays, lattice: Any) -> list[np.ndarray]: ...

    def backward(self, upstream: np.ndarray, scores: Arrays, lattice: Any, kept: Arrays) -> list[np.ndarray]: ...

    def hvp(
        self, tangents: Arrays, upstream: np.ndarray, scores: Arrays, lattice: Any, kept: Arrays
    ) -> list[np.ndarray]: ...


@dataclass(frozen=True)
class ChainSolver:
    """CTC and simplified CTC, of scores (N, T, C)."""

    impl: str
    pose: Callable[..., ChainLattice]
    blank: int
    logits: bool
    reweighted = False
    kept = (tf.float64, None, None, None, None)

    def plain(self, scores: Sequence[Array], integers: Integers) -> Array:
        return chain.forward(scores[0], _posed(self.pose, integers, self.blank), logits=self.logits)

    def posed(self, scores: Arrays, integers: Integers) -> tuple[ChainLattice, np.ndarray | None]:
        _, num_frames, num_classes = scores[0].shape
        return pose_in_range(self.pose, *integers, num_frames, NO_BOUND, num_classes, self.blank)

    def forward(self, scores: Arrays, lattice: ChainLattice) -> list[np.ndarray]:
        return chain_arrays.forward(scores[0], lattice, logits=self.logits)

    def backward(self, upstream: np.ndarray, scores: Arrays, lattice: ChainLattice, kept: Arrays) -> list[np.ndarray]:
        return chain_arrays.backward(upstream, scores[0], lattice, kept, logits=self.logits)

    def hvp(
        self, tangents: Arrays, upstream: np.ndarray, scores: Arrays, lattice: ChainLattice, kept: Arrays
    ) -> list[np.ndarray]:
        return chain_arrays.hvp(tangents[0], upstream, scores[0], lattice, kept, logits=self.logits)


@dataclass(frozen=True)
class GridSolver:
    """RNN-T, of scores (N, T, U+1, V)."""

    impl: str
    blank: int
    logits: bool
    fastemit_lambda: float
    clamp: float
    kept = (tf.float64, None, None, tf.float64, tf.float64)

    @property
    def reweighted(self) -> bool:
        return self.fastemit_lambda > 0 or self.clamp > 0

    @property
    def _weights(self) -> dict[str, float]:
        return {"fastemit_lambda": self.fastemit_lambda, "clamp": self.clamp}

    def plain(self, scores: Sequence[Array], integers: Integers) -> Array:
        lattice = _posed(pose_rnnt, integers, self.blank)
        return grid.forward(scores[0], lattice, logits=self.logits, **self._weights)

    def posed(self, scores: Arrays, integers: Integers) -> tuple[GridLattice, np.ndarray | None]:
        _, num_frames, rows, num_classes = scores[0].shape
        return pose_in_range(pose_rnnt, *integers, num_frames, rows - 1, num_classes, self.blank)

    def forward(self, scores: Arrays, lattice: GridLattice) -> list[np.ndarray]:
        return grid_arrays.forward(scores[0], lattice, logits=self.logits)

    def backward(self, upstream: np.ndarray, scores: Arrays, lattice: GridLattice, kept: Arrays) -> list[np.ndarray]:
        return grid_arrays.backward(upstream, scores[0], lattice, kept, logits=self.logits, **self._weights)

    def hvp(
        self, tangents: Arrays, upstream: np.ndarray, scores: Arrays, lattice: GridLattice, kept: Arrays
    ) -> list[np.ndarray]:
        return grid_arrays.hvp(tangents[0], upstream, scores[0], lattice, kept, logits=self.logits)


@dataclass(frozen=True)
class ASGSolver:
    """ASG, of scores (N, T, C) and transitions (C, C) of one dtype, float32 or float64."""

    impl: str
    reweighted = False
    kept = (tf.float64, tf.bool, None, None, None, tf.float64, None, None, None, None)

    def plain(self, scores: Sequence[Array], integers: Integers) -> Array:
        inputs, transitions = scores
        num_classes = sizes(inputs)[2]
        every, target = _posed(pose_asg, integers, num_classes)
        found = rows(inputs, tf.sequence_mask(integers.input_lengths, sizes(inputs)[1]))
        nothing = tf.zeros([], transitions.dtype)
        # Samples with one frame do not look at the transitions, which may not spoil their derivatives either.
        defined = tf.where(transitions < math.inf, transitions, nothing)
        # Paths of a sample take as many transitions, and what these have in common is no part of the difference.
        relative = tf.cast(defined, tf.float64)
        relative -= common(relative, [0, 1])
        of_target, _ = chain.solve(found, target, relative)
        of_all = dense.solve(found, every, relative)
        table = tf.where((integers.input_lengths > 1)[:, None, None], transitions, nothing)
        return losses(of_all, of_target, undefined(found.scores, table))

    def posed(self, scores: Arrays, integers: Integers) -> tuple[asg_arrays.Posed, np.ndarray | None]:
        inputs, transitions = scores
        return pose_in_range(pose_asg, *integers, inputs.shape[1], NO_BOUND, len(transitions), NO_CLASS)

    def forward(self, scores: Arrays, lattice: asg_arrays.Posed) -> list[np.ndarray]:
        return asg_arrays.forward(scores[0], scores[1], lattice)

    def backward(
        self, upstream: np.ndarray, scores: Arrays, lattice: asg_arrays.Posed, kept: Arrays
    ) -> list[np.ndarray]:
        return asg_arrays.backward(upstream, scores[0], scores[1], lattice, kept)

    def hvp(
        self, tangents: Arrays, upstream: np.ndarray, scores: Arrays, lattice: asg_arrays.Posed, kept: Arrays
    ) -> list[np.ndarray]:
        return asg_arrays.hvp(tangents[0], tangents[1], upstream, scores[0], scores[1], lattice, kept)


@dataclass(frozen=True)
class GraphSolver:
    """Graphs, one a sample, of scores (N, T, C) and weights (W,)."""

    impl: str
    graphs: tuple[Graph, ...]
    reweighted = False
    kept = (tf.float64, None, tf.float64)

    def plain(self, scores: Sequence[Array], integers: Integers) -> Array:
        inputs, weights = scores
        return sparse.forward(inputs, weights, side_by_side(self._posed[0], inputs.shape[2]), integers.input_lengths)

    def posed(self, scores: Arrays, integers: Integers) -> tuple[SparseLattice, np.ndarray | None]:
        lengths = integers.input_lengths.astype(np.int64)
        valid = in_range(lengths, scores[0].shape[1])
        return replace(self._posed[0], input_lengths=np.where(valid, lengths, 0)), None if valid.all() else valid

    def forward(self, scores: Arrays, lattice: SparseLattice) -> list[np.ndarray]:
        return sparse_arrays.forward(scores[0], scores[1], lattice)

    def backward(self, upstream: np.ndarray, scores: Arrays, lattice: SparseLattice, kept: Arrays) -> list[np.ndarray]:
        return sparse_arrays.backward(upstream, scores[0], scores[1], lattice, kept)

    def hvp(
        self, tangents: Arrays, upstream: np.ndarray, scores: Arrays, lattice: SparseLattice, kept: Arrays
    ) -> list[np.ndarray]:
        return sparse_arrays.hvp(tangents, upstream, scores[0], scores[1], lattice, kept)

    @property
    def own_weights(self) -> np.ndarray:
        return self._posed[1]

    @cached_property
    def _posed(self) -> tuple[SparseLattice, np.ndarray]:
        """The lattice but for the lengths, and the graphs' own weights."""
        different = list(dict.fromkeys(self.graphs)) or [Graph([], [], [], final={})]
        numbers = [different.index(graph) for graph in self.graphs]
        return pose_graphs(different, np.array(numbers, np.int64), np.zeros(len(numbers), np.int64))


def _posed(pose: Callable[..., Any], integers: Integers, option: Any) -> Any:
    """A lattice, or a tuple of them, of tensors."""
    posed = pose(*map(Posable, integers), option)
    return tuple(map(_of_tensors, posed)) if isinstance(posed, tuple) else _of_tensors(posed)


def _of_tensors(lattice: Any) -> Any:
    parts = {field.name: getattr(lattice, field.name) for field in fields(lattice)}
    return type(lattice)(**{
        name: part.tensor if isinstance(part, Posable) else part for name, part in parts.items()
    })  # fmt: skip
