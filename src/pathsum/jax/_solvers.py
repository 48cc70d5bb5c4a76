"""What each loss asks of the kernels: its problem posed, then solved by JAX or by a foreign function.

A solver keeps a call's options. Of scores and integers it makes losses (N,) and, for each array of scores, the
gradient of every sample's loss with respect to it, samples first.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np

from pathsum.graphs import Graph
from pathsum.jax._ops import asg as asg_function
from pathsum.jax._ops import chain as chain_function
from pathsum.jax._ops import grid as grid_function
from pathsum.jax._ops import sparse as sparse_function
from pathsum.kernels.jax import chain, dense, extended, grid, rows, sparse
from pathsum.lattice import Array, ChainLattice, SparseLattice
from pathsum.problems.asg import pose_asg
from pathsum.problems.graphs import pose_graphs, side_by_side
from pathsum.problems.rnnt import pose_rnnt

Scores = tuple[Array, ...]


class Integers(NamedTuple):
    """Targets (N, S), S >= 1, and lengths (N,), all in range."""

    targets: Array
    input_lengths: Array
    target_lengths: Array


class Solver(Protocol):
    @property
    def impl(self) -> str: ...

    @property
    def in_triton(self) -> bool:
        """Whether there are Triton kernels for it: whether ``by_triton`` is there."""
        ...

    @property
    def reweighted(self) -> bool:
        """Whether what it gives for gradients is not the losses' own."""
        ...

    def own(self, scores: Scores, integers: Integers) -> tuple[Array, ...]:
        """Where the gradients are a sample's own and not padding, in shapes that broadcast to theirs."""
        ...

    def by_jax(self, scores: Scores, integers: Integers) -> tuple[Array, Scores]: ...

    def by_numba(self, scores: Scores, integers: Integers, *, need_gradient: bool) -> tuple[Array, Scores]:
        """As ``by_jax``, on the CPU; no gradients where they are not needed."""
        ...

    def by_triton(self, scores: Scores, integers: Integers, *, need_gradient: bool) -> tuple[Array, Scores]:
        """As ``by_numba``, on a CUDA device."""
        ...


@dataclass(frozen=True)
class ChainSolver:
    """CTC and simplified CTC, of scores (N, T, C)."""

    impl: str
    pose: Callable[..., ChainLattice]
    blank: int
    logits: bool
    in_triton = True
    reweighted = False

    def own(self, scores: Scores, integers: Integers) -> tuple[Array, ...]:
        return (_frames(scores[0], integers)[:, :, None],)

    def by_jax(self, scores: Scores, integers: Integers) -> tuple[Array, Scores]:
        losses, gradient = chain.forward(scores[0], self.pose(*integers, self.blank), logits=self.logits)
        return losses, (gradient.astype(scores[0].dtype),)

    def by_numba(self, scores: Scores, integers: Integers, *, need_gradient: bool) -> tuple[Array, Scores]:
        problem = chain_function.PROBLEMS.index(self.pose)
        options = {"problem": problem, "blank": self.blank, "logits": self.logits, "need_gradient": need_gradient}
        losses, *gradients = chain_function.forward(scores[0], *integers, **options)
        return losses, tuple(gradients)

    def by_triton(self, scores: Scores, integers: Integers, *, need_gradient: bool) -> tuple[Array, Scores]:
        # No device is asked to launch no programs.
        if 0 in scores[0].shape:
            return self.by_jax(scores, integers)
        solve = importlib.import_module("pathsum.jax._triton.chain").forward
        lattice = self.pose(*integers, self.blank)
        return solve(scores[0], lattice, logits=self.logits, need_gradient=need_gradient)


@dataclass(frozen=True)
class GridSolver:
    """RNN-T, of scores (N, T, U+1, V)."""

    impl: str
    blank: int
    logits: bool
    fastemit_lambda: float
    clamp: float
    in_triton = True

    @property
    def reweighted(self) -> bool:
        return self.fastemit_lambda > 0 or self.clamp > 0

    def own(self, scores: Scores, integers: Integers) -> tuple[Array, ...]:
        labels = jnp.arange(scores[0].shape[2]) <= integers.target_lengths[:, None]
        return ((_frames(scores[0], integers)[:, :, None] & labels[:, None])[..., None],)

    def by_jax(self, scores: Scores, integers: Integers) -> tuple[Array, Scores]:
        targets, input_lengths, target_lengths = integers
        losses, gradient = grid.forward(
            scores[0],
            pose_rnnt(targets, input_lengths, target_lengths, self.blank),
            logits=self.logits,
            fastemit_lambda=self.fastemit_lambda,
            clamp=self.clamp,
        )
        return losses, (gradient.astype(scores[0].dtype),)

    def by_numba(self, scores: Scores, integers: Integers, *, need_gradient: bool) -> tuple[Array, Scores]:
        losses, *gradients = grid_function.forward(
            scores[0],
            *integers,
            blank=self.blank,
            logits=self.logits,
            fastemit_lambda=self.fastemit_lambda,
            clamp=self.clamp,
            need_gradient=need_gradient,
        )
        return losses, tuple(gradients)

    def by_triton(self, scores: Scores, integers: Integers, *, need_gradient: bool) -> tuple[Array, Scores]:
        if 0 in scores[0].shape:
            return self.by_jax(scores, integers)
        solve = importlib.import_module("pathsum.jax._triton.grid").forward
        return solve(
            scores[0],
            pose_rnnt(*integers, self.blank),
            logits=self.logits,
            fastemit_lambda=self.fastemit_lambda,
            clamp=self.clamp,
            need_gradient=need_gradient,
        )


@dataclass(frozen=True)
class ASGSolver:
    """ASG, of scores (N, T, C) and transitions (C, C).

    Its Triton kernels add up the gradients of all samples by the transitions; JAX is given each sample's.
    """

    impl: str
    in_triton = False
    reweighted = False

    def own(self, scores: Scores, integers: Integers) -> tuple[Array, ...]:
        return _frames(scores[0], integers)[:, :, None], (integers.input_lengths > 1)[:, None, None]

    def by_jax(self, scores: Scores, integers: Integers) -> tuple[Array, Scores]:
        inputs, transitions = scores
        num_classes = inputs.shape[2]
        every, target = pose_asg(*integers, num_classes)
        real = jnp.arange(inputs.shape[1]) < integers.input_lengths[:, None]
        own = rows.real_rows(inputs, real)
        found = rows.statistics(own)
        # Paths of a sample take as many transitions, and what these have in common is no part of the difference.
        relative = transitions - rows.huge(transitions.max())
        factors = dense.factors(own, found.maxima, relative)

        def solved(narrow: bool) -> tuple[Array, ...]:
            exact = dense.Factors(*map(extended.narrow, factors)) if narrow else factors
            all_paths = dense.solve(exact, every)
            target_paths = chain.solve(chain.frames_of(*exact, target), target)
            feasible = target_paths.total.mantissa > 0
            one = extended.ones(feasible.shape, target_paths.total)
            share = [extended.select(feasible, paths.total, one) for paths in (all_paths, target_paths)]
            losses = extended.log(extended.divide(*share)) - target_paths.lost
            gradient = all_paths.gamma - chain.expected_counts(target_paths, target, num_classes)
            counts = all_paths.transitions - chain.expected_transitions(target_paths, target, real, num_classes)
            return feasible, losses, gradient, counts

        reaches = extended.reach(factors.states.high, 2) + extended.reach(factors.arcs.high, (0, 1))
        feasible, losses, gradient, counts = extended.by_range(reaches.sum(0), solved)
        losses = jnp.where(feasible, losses, jnp.inf)
        has_arcs = integers.input_lengths > 1
        defined = found.defined.all(1) & ((transitions < jnp.inf).all() | ~has_arcs)

        gradient = jnp.where((real & feasible[:, None])[:, :, None], gradient, 0)
        gradient = jnp.where((real & ~defined[:, None])[:, :, None], jnp.nan, gradient)
        counts = jnp.where((has_arcs & feasible)[:, None, None], counts, 0)
        counts = jnp.where((has_arcs & ~defined)[:, None, None], jnp.nan, counts)
        return jnp.where(defined, losses, jnp.nan), (gradient, counts)

    def by_numba(self, scores: Scores, integers: Integers, *, need_gradient: bool) -> tuple[Array, Scores]:
        inputs, transitions = scores
        losses, *gradients = asg_function.forward(inputs, transitions, *integers, need_gradient=need_gradient)
        return losses, tuple(gradients)


@dataclass(frozen=True)
class GraphSolver:
    """Graphs, one a sample, of scores (N, T, C) and weights (W,). They are constants of a program."""

    impl: str
    graphs: tuple[Graph, ...]
    by_weights: bool
    in_triton = False
    reweighted = False

    def own(self, scores: Scores, integers: Integers) -> tuple[Array, ...]:
        return _frames(scores[0], integers)[:, :, None], jnp.ones((len(scores[0]), 1), bool)

    def by_jax(self, scores: Scores, integers: Integers) -> tuple[Array, Scores]:
        graphs = side_by_side(self.lattice, scores[0].shape[2])
        return sparse.forward(scores[0], scores[1], graphs, integers.input_lengths)

    def by_numba(self, scores: Scores, integers: Integers, *, need_gradient: bool) -> tuple[Array, Scores]:
        lattice = replace(self.lattice, input_lengths=integers.input_lengths)
        options = {"by_weights": self.by_weights, "need_gradient": need_gradient}
        losses, *gradients = sparse_function.forward(scores[0], scores[1], lattice, **options)
        return losses, tuple(gradients)

    @cached_property
    def _posed(self) -> tuple[SparseLattice, np.ndarray]:
        """The lattice but for the lengths, and the graphs' own weights."""
        different = list(dict.fromkeys(self.graphs)) or [Graph([], [], [], final={})]
        numbers = [different.index(graph) for graph in self.graphs]
        return pose_graphs(different, np.array(numbers, np.int64), np.zeros(len(numbers), np.int64))

    @property
    def lattice(self) -> SparseLattice:
        return self._posed[0]

    @property
    def own_weights(self) -> np.ndarray:
        return self._posed[1]


def _frames(scores: Array, integers: Integers) -> Array:
    """(N, T) whether a frame is its sample's own."""
    return jnp.arange(scores.shape[1]) < integers.input_lengths[:, None]
