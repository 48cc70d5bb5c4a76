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
from pathsum.kernels.tensorflow import chain, dense, grid, sparse
from pathsum.kernels.tensorflow.log_domain import common, losses, rows, sizes, undefined
from pathsum.lattice import Array, ChainLattice, SparseLattice
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
    """Targets (N, S), S >= 1, and lengths (N,), int64, all in range; all arrays or all tensors."""

    targets: Array
    input_lengths: Array
    target_lengths: Array


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

    def forward(self, scores: Arrays, integers: Integers) -> list[np.ndarray]: ...

    def backward(self, upstream: np.ndarray, scores: Arrays, integers: Integers, kept: Arrays) -> list[np.ndarray]: ...

    def hvp(
        self, tangents: Arrays, upstream: np.ndarray, scores: Arrays, integers: Integers, kept: Arrays
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

    def forward(self, scores: Arrays, integers: Integers) -> list[np.ndarray]:
        return chain_arrays.forward(scores[0], self.pose(*integers, self.blank), logits=self.logits)

    def backward(self, upstream: np.ndarray, scores: Arrays, integers: Integers, kept: Arrays) -> list[np.ndarray]:
        lattice = self.pose(*integers, self.blank)
        return chain_arrays.backward(upstream, scores[0], lattice, kept, logits=self.logits)

    def hvp(
        self, tangents: Arrays, upstream: np.ndarray, scores: Arrays, integers: Integers, kept: Arrays
    ) -> list[np.ndarray]:
        lattice = self.pose(*integers, self.blank)
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

    def forward(self, scores: Arrays, integers: Integers) -> list[np.ndarray]:
        return grid_arrays.forward(scores[0], pose_rnnt(*integers, self.blank), logits=self.logits)

    def backward(self, upstream: np.ndarray, scores: Arrays, integers: Integers, kept: Arrays) -> list[np.ndarray]:
        lattice = pose_rnnt(*integers, self.blank)
        return grid_arrays.backward(upstream, scores[0], lattice, kept, logits=self.logits, **self._weights)

    def hvp(
        self, tangents: Arrays, upstream: np.ndarray, scores: Arrays, integers: Integers, kept: Arrays
    ) -> list[np.ndarray]:
        lattice = pose_rnnt(*integers, self.blank)
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

    def forward(self, scores: Arrays, integers: Integers) -> list[np.ndarray]:
        inputs, transitions = scores
        return asg_arrays.forward(inputs, transitions, pose_asg(*integers, len(transitions)))

    def backward(self, upstream: np.ndarray, scores: Arrays, integers: Integers, kept: Arrays) -> list[np.ndarray]:
        inputs, transitions = scores
        return asg_arrays.backward(upstream, inputs, transitions, pose_asg(*integers, len(transitions)), kept)

    def hvp(
        self, tangents: Arrays, upstream: np.ndarray, scores: Arrays, integers: Integers, kept: Arrays
    ) -> list[np.ndarray]:
        (tangent, other), (inputs, transitions) = tangents, scores
        posed = pose_asg(*integers, len(transitions))
        return asg_arrays.hvp(tangent, other, upstream, inputs, transitions, posed, kept)


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

    def forward(self, scores: Arrays, integers: Integers) -> list[np.ndarray]:
        return sparse_arrays.forward(scores[0], scores[1], self._lattice(integers))

    def backward(self, upstream: np.ndarray, scores: Arrays, integers: Integers, kept: Arrays) -> list[np.ndarray]:
        return sparse_arrays.backward(upstream, scores[0], scores[1], self._lattice(integers), kept)

    def hvp(
        self, tangents: Arrays, upstream: np.ndarray, scores: Arrays, integers: Integers, kept: Arrays
    ) -> list[np.ndarray]:
        return sparse_arrays.hvp(tangents, upstream, scores[0], scores[1], self._lattice(integers), kept)

    @property
    def own_weights(self) -> np.ndarray:
        return self._posed[1]

    def _lattice(self, integers: Integers) -> SparseLattice:
        return replace(self._posed[0], input_lengths=integers.input_lengths)

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
