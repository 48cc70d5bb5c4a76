"""The verbs every implementation has for a lattice, and what passes between them.

A verb is per lattice, never per loss. ``reference`` is differentiated by its framework and has ``forward`` alone; an
implementation with kernels of its own has ``forward``, which keeps what the others need, ``backward``, and ``hvp``: how
what backward gives moves along a tangent of the scores. ``Saved`` holds arrays of the implementation's own library, the
scores not among them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pathsum.lattice import Array


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


class ChainSaved(NamedTuple):
    """What the chain's forward keeps, O(N*T*S).

    Attributes:
        losses, maxima, sums: As in ``Saved``.
        stay, step: (sum of T, S') the posterior of the arcs that stay in a state and of those that enter it; of no size
            where they were not asked for. Where the labels are shared all is in ``step`` and ``stay`` has no size.
    """

    losses: Array
    maxima: Array
    sums: Array
    stay: Array
    step: Array

    @property
    def posteriors(self) -> tuple[Array, Array]:
        return self.stay, self.step


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


class ChainOptions(NamedTuple):
    """How a chain's scores are read, and what backward gives.

    Attributes:
        softmax: Whether the scores are logits, whose log-softmax is to be taken.
        by_logits: Whether backward gives, of log-probabilities, the gradient by the logits behind them.
    """

    softmax: bool = False
    by_logits: bool = False

    @property
    def reweights(self) -> bool:
        """Whether what backward gives is another gradient than that of the losses."""
        return self.by_logits


class NoOptions(NamedTuple):
    """Scores that are taken as they are."""

    @property
    def reweights(self) -> bool:
        return False


class Call(NamedTuple):
    """What a verb is asked about.

    Attributes:
        scores: The tensors that the lattice's arcs are scored by, such as (N, T, C) and transitions (C, C) or ``None``.
        lattice: Integers, as arrays of NumPy where they have been looked at, else as tensors.
        options: A NamedTuple of numbers and words.
    """

    scores: tuple[Any, ...]
    lattice: Any
    options: Any = NoOptions()


class Kernels:
    """The verbs of one implementation on one lattice, a method each; samples come first, (N, ...).

    A class inherits this and writes the verbs that it has.
    """

    def losses(self, call: Call, reduction: Any = None) -> Array:
        """(N,) in float64, minus the log-sum over all paths; differentiable. inf where no path exists.

        With a ``reduction`` what becomes of them.
        """
        raise NotImplementedError

    def best(self, call: Call) -> Any:
        """The best path of each sample."""
        raise NotImplementedError

    def posteriors(self, call: Call) -> Any:
        """Losses (N,), and how probable each arc is among all paths; 0 in padding and where no path exists."""
        raise NotImplementedError
