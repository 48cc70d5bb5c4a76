"""The verbs every implementation has for a lattice, and what passes between them.

A verb is per lattice, never per loss. ``reference`` is differentiated by its framework and has ``forward`` alone; an
implementation with kernels of its own has ``forward``, which keeps what ``backward`` needs, and ``backward``. ``Saved``
holds arrays of the implementation's own library, the scores not among them.
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
