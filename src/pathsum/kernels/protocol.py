"""The verbs every implementation has for a lattice, and what passes between them.

A verb is per lattice, never per loss. ``reference`` is differentiated by its framework and has ``forward`` alone; an
implementation with kernels of its own has ``forward``, which keeps what the others need, ``backward``, and ``hvp``: how
what backward gives moves along a tangent of the scores. ``Saved`` holds arrays of the implementation's own library, the
scores not among them.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from pathsum.lattice import Array, ChainLattice, GridLattice


class Saved(NamedTuple):
    """What forward keeps for backward, O(N*T*S) or O(N*T*U): never a copy of the scores.

    Attributes:
        losses: (N,) negative log-likelihoods; inf where no path exists, NaN where a score is NaN or +inf.
        maxima, sums: softmax statistics of each row, exp(x - maximum) / sum; of no size where scores are log-probs.
        posteriors: for each node the probability of the arcs of one kind, in the lattice's own layout; two kinds a
            lattice, of no size where they were not asked for or are the same.
    """

    losses: Array
    maxima: Array
    sums: Array
    posteriors: tuple[Array, Array]


class DenseSaved(NamedTuple):
    """What the dense lattice's forward keeps, O(N*T*C).

    Attributes:
        losses: (N,) as in ``Saved``: minus the log-sum over all paths.
        extended: (N,) whether the sample was out of plain floats' reach; it has no alpha and no entering then.
        gamma: (sum of T, C') posterior of each class in each frame.
        alpha, entering: the posterior of an arc is entering[t, to] * exp(transition) * alpha[t-1, from].
    """

    losses: Array
    extended: Array
    gamma: Array
    alpha: Array
    entering: Array


class Product(NamedTuple):
    """A Hessian-vector product, but for its part by the scores, which is written where the caller says.

    Attributes:
        slopes: (N,) derivative of each loss along the tangents.
        transitions: (C, C) the part of the product by the transitions; of no size where the lattice has none.
    """

    slopes: Array
    transitions: Array


class ChainPath(NamedTuple):
    """The best path of each sample of a batch of chains.

    Where several are best it is the one that, traced from its end, ends in the lower of two states and stays rather
    than steps, steps rather than skips.

    Attributes:
        log_probs: (N,) log-score of the path; -inf where there is none, NaN where a score is NaN or +inf.
        states: (N, T) state after each frame; -1 in padding, and everywhere where there is no path.
    """

    log_probs: Array
    states: Array


class GridPath(NamedTuple):
    """The best path of each sample of a batch of grids; of several, the one that emits each label the earliest.

    Attributes:
        log_probs: (N,) as in ``ChainPath``.
        frames: (N, U') frame in which each label is emitted; -1 in padding, and everywhere where there is no path.
        label_scores: (N, U') log-probability of each label where it is emitted; 0 in padding, -inf or NaN where there
            is no path.
    """

    log_probs: Array
    frames: Array
    label_scores: Array


class DensePath(NamedTuple):
    """The best path of each sample of a batch of dense lattices; of several, the one whose last state is the lowest,
    then the one before, and so on.

    Attributes:
        log_probs: (N,) as in ``ChainPath``.
        states: (N, T) state in each frame; -1 in padding, and everywhere where there is no path.
    """

    log_probs: Array
    states: Array


class ChainKernels(Protocol):
    def forward(
        self, scores: Any, lattice: ChainLattice, *, logits: bool, need_gradient: bool, num_threads: int
    ) -> Saved: ...

    def backward(
        self,
        grad_losses: Array,
        scores: Any,
        lattice: ChainLattice,
        saved: Saved,
        *,
        logits: bool,
        num_threads: int,
    ) -> Array: ...

    def hvp(
        self,
        grad_losses: Array,
        tangent: Any,
        transition_tangent: Array | None,
        scores: Any,
        lattice: ChainLattice,
        transitions: Array | None,
        saved: Saved,
        *,
        logits: bool,
        num_threads: int,
        out: Any,
    ) -> Product: ...


class GridKernels(Protocol):
    def forward(
        self, scores: Any, lattice: GridLattice, *, logits: bool, need_gradient: bool, num_threads: int
    ) -> Saved: ...

    def backward(
        self,
        grad_losses: Array,
        scores: Any,
        lattice: GridLattice,
        saved: Saved,
        *,
        logits: bool,
        fastemit_lambda: float,
        clamp: float,
        num_threads: int,
        out: Any,
    ) -> Array: ...

    def hvp(
        self,
        tangent: Any,
        grad_losses: Array,
        scores: Any,
        lattice: GridLattice,
        saved: Saved,
        *,
        logits: bool,
        num_threads: int,
        out: Any,
    ) -> Array: ...
