"""The verbs every implementation has for a lattice, and what passes between them.

A verb is per lattice, never per loss. ``reference`` is differentiated by its framework and has ``forward`` alone; an
implementation with kernels of its own has ``forward``, which keeps what the others need, ``backward``, and ``hvp``: how
what backward gives moves along a tangent of the scores. ``Saved`` holds arrays of the implementation's own library, the
scores not among them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pathsum.lattice import ArcLattice, Array


class ChainSaved(NamedTuple):
    """What the chain's forward keeps, O(N*T*S).

    Attributes:
        losses: (N,) negative log-likelihoods; inf where no path exists, NaN where a score is NaN or +inf.
        maxima, sums: Softmax statistics of each row, exp(x - maximum) / sum; of no size where scores are log-probs.
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


class GridSaved(NamedTuple):
    """What the grid's forward keeps, O(N*T*U).

    Attributes:
        losses, maxima, sums: As in ``ChainSaved``.
        blank, label: (rows,) the posterior of the two arcs out of each node; of no size where not asked for.
    """

    losses: Array
    maxima: Array
    sums: Array
    blank: Array
    label: Array

    @property
    def posteriors(self) -> tuple[Array, Array]:
        return self.blank, self.label


class ArcSaved(NamedTuple):
    """What the forward of a lattice with arcs of several kinds keeps, O(N*T*U) a kind.

    Attributes:
        losses: As in ``ChainSaved``.
        posteriors: (kinds, rows) the posterior of each arc.
        skips: (2, rows) those of leaving frames out, into and out of each node; no rows where one may not.
        maxima, sums, second_maxima, second_sums: Softmax statistics of the rows of each head; of no size where a head
            has none.
    """

    losses: Array
    posteriors: Array
    skips: Array
    maxima: Array
    sums: Array
    second_maxima: Array
    second_sums: Array

    def statistics(self, head: int) -> tuple[Array, Array]:
        return (self.maxima, self.sums) if head == 0 else (self.second_maxima, self.second_sums)


class RowsSaved(NamedTuple):
    """Planes (K, rows) of log-probabilities, and the softmax statistics of the rows."""

    planes: Array
    maxima: Array
    sums: Array


class JointSaved(NamedTuple):
    """What the fused joiner's forward keeps: the losses (N,) and the posteriors (2, rows) of blank and label arcs.

    Where it must not be asked how many nodes there are, they are the first of the rows.
    """

    losses: Array
    posteriors: Array


class ColumnsSaved(NamedTuple):
    """What reading columns of a linear layer's log-softmax keeps.

    Attributes:
        columns: (N, T, W) log-probability of each column's class; 0 in padding.
        maxima, sums: (rows,) softmax statistics of the real frames, or of all where lengths have no values.
    """

    columns: Array
    maxima: Array
    sums: Array


class DenseSaved(NamedTuple):
    """What the dense lattice's forward keeps, O(N*T*C).

    Attributes:
        losses: (N,) as in ``ChainSaved``: minus the log-sum over all paths.
        extended: (N,) whether the sample was out of plain floats' reach; it has no alpha and no entering then.
        gamma: (sum of T, C') posterior of each class in each frame.
        alpha, entering: the posterior of an arc is entering[t, to] * exp(transition) * alpha[t-1, from].
    """

    losses: Array
    extended: Array
    gamma: Array
    alpha: Array
    entering: Array


class SparseSaved(NamedTuple):
    """What the forward of a lattice of graphs keeps.

    Attributes:
        losses: (N,) as in ``ChainSaved``.
        gamma: (sum of T times K of its graph,) posterior of each class that a graph emits, in each frame of each
            sample, sample after sample; of no size where not asked for.
        counts: (sum of the weights of its graph,) how often each is expected on a path, sample after sample; of no
            size where the options do not ask for it.
    """

    losses: Array
    gamma: Array
    counts: Array


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


class GridWalks(NamedTuple):
    """K walks of each sample of a batch of grids: the best in falling order, or such as are drawn.

    Of equals that one comes first that, traced from its end, takes the arc of the first kind, a skip last.

    Attributes:
        log_probs: (N, K) log-score of each; -inf where there is none, NaN where a score is NaN or +inf.
        frames, label_scores: (N, K, U') as in ``GridPath``.
        kinds: (N, K, L) the kind of each arc from the first on; behind the last kind is that of skips, -1 is padding.
    """

    log_probs: Array
    frames: Array
    label_scores: Array
    kinds: Array


class SparsePath(NamedTuple):
    """The best path of each sample through a graph; or with an axis K behind N the best, or such as are drawn.

    Of equals that one comes first that ends in the lowest state and, traced from there, takes the arc from the lowest
    state, of those the lowest arc, and an epsilon arc only where it is better; states numbered as in the lattice.

    Attributes:
        log_probs: (N,) as in ``ChainPath``.
        arcs: (N, T) number of the arc that each frame takes; -1 in padding, and everywhere where there is no path.
        labels: (N, T) the class that it emits; -1 as in ``arcs``.
    """

    log_probs: Array
    arcs: Array
    labels: Array


class ChainOptions(NamedTuple):
    """How a chain's scores are read, and what backward gives.

    Attributes:
        softmax: Whether the scores are logits, whose log-softmax is to be taken.
        by_logits: Whether backward gives, of log-probabilities, the gradient by the logits behind them.
        relative, frames_first: As in ``DenseOptions``, the first of scores with transitions.
    """

    softmax: bool = False
    by_logits: bool = False
    relative: bool = False
    frames_first: bool = False

    @property
    def once_only(self) -> str | None:
        """Why what backward gives has no derivative, where it has none."""
        return REWEIGHTED if self.by_logits else None


class DenseOptions(NamedTuple):
    """What the losses are to be.

    Attributes:
        relative: Whether they may lack what huge scores of a frame, and huge transitions, have in common: beside 1e17
            there are no digits left of what a loss is compared with, which has the same in common.
        frames_first: Whether the scores, and what is as they are, have axes (T, N, C).
    """

    relative: bool = False
    frames_first: bool = False

    @property
    def once_only(self) -> str | None:
        return None


class NoOptions(NamedTuple):
    """Scores that are taken as they are."""

    @property
    def once_only(self) -> str | None:
        return None


class SparseOptions(NamedTuple):
    """What a lattice of graphs is asked for beside its losses, and the memory it may take.

    Attributes:
        by_weights: Whether a derivative by the weights may be asked for.
        memory: Bytes for what the sweeps remember of the frames; beyond, some are computed twice.
    """

    by_weights: bool = False
    memory: int = 2**30

    @property
    def once_only(self) -> str | None:
        return None


class GridOptions(NamedTuple):
    """How a transducer's logits are read, and how the posteriors become a gradient.

    Attributes:
        softmax: Whether the scores are logits, whose log-softmax is to be taken.
        fastemit_lambda: Labels' posteriors count 1 + lambda times in the gradient.
        clamp: Where positive, the bound of a loss's own gradient.
    """

    softmax: bool = True
    fastemit_lambda: float = 0.0
    clamp: float = -1.0

    @property
    def once_only(self) -> str | None:
        return REWEIGHTED if self.fastemit_lambda > 0 or self.clamp > 0 else None


class ArcOptions(NamedTuple):
    """How the arcs of a lattice of several kinds are scored, and how their posteriors become a gradient.

    Attributes:
        softmax, fastemit_lambda, clamp: As in ``GridOptions``.
        hat: Whether the blank has no share in the softmax: its probability is a sigmoid.
        sigma: What is taken from every arc's score.
        delay_penalty: What is added to those of labels: see ``earliness``.
        skip_score: The score of leaving frames out.
        given: Whether the scores are the planes themselves.
        joiners: For each head activation, tile memory and gate of the joiner that makes its logits, () where these
            exist.
    """

    softmax: bool = True
    hat: bool = False
    sigma: float = 0.0
    delay_penalty: float = 0.0
    skip_score: float = 0.0
    fastemit_lambda: float = 0.0
    clamp: float = -1.0
    given: bool = False
    joiners: tuple = ((), ())

    def share_one(self, lattice: ArcLattice) -> bool:
        """Whether the paths of a sample share a probability of 1: what rounding has left of a loss below 0 is 0."""
        as_read = self.softmax and not self.given and self.sigma >= 0 and self.delay_penalty == 0
        return as_read and lattice.skips_to is None

    @property
    def once_only(self) -> str | None:
        return REWEIGHTED if self.fastemit_lambda > 0 or self.clamp > 0 else None


class RowOptions(NamedTuple):
    """What is read of each row of scores.

    Attributes:
        classes: The class of each plane; ``LABEL`` for the node's own label, which is -inf where none may be emitted.
        softmax, hat: As in ``ArcOptions``.
    """

    classes: tuple
    softmax: bool = True
    hat: bool = False

    @property
    def once_only(self) -> str | None:
        return None


class LinearOptions(NamedTuple):
    """How the logits of a linear layer are made.

    Attributes:
        chunk: How many classes' logits are held at a time; 0: as many as fill a tile.
        group: The processes among which the classes are shared out, as ``torch.distributed`` names them; "": this one
            has them all.
        first: The first class of this process.
    """

    chunk: int = 0
    group: str = ""
    first: int = 0

    @property
    def once_only(self) -> str | None:
        return None


class JointOptions(NamedTuple):
    """How the joiner's logits are made, and the rest as in ``ArcOptions``.

    Attributes:
        activation: One of tanh, relu, sigmoid, gelu.
        tile_memory: Bytes for the tile that is held.
        gate: What backward may skip; ``None``: what rounding costs anyway.
    """

    activation: str = "tanh"
    tile_memory: int = 2**23
    delay_penalty: float = 0.0
    fastemit_lambda: float = 0.0
    clamp: float = -1.0
    gate: float | None = None

    @property
    def once_only(self) -> str | None:
        return REWEIGHTED if self.fastemit_lambda > 0 or self.clamp > 0 else None


REWEIGHTED = (
    "the gradient of a loss with fastemit_lambda or clamp is re-weighted, and that of torch's CTC is by other scores: "
    "it is not the gradient of anything, and has no second derivative; leave out the first two, or ask for "
    "corrected=True, where create_graph=True is needed"
)
# A gate is of posteriors, which the gradients of a gradient are not.
JOINER_ONCE = (
    "impl='numba' has first derivatives only of a loss of a Joiner; for create_graph=True and forward mode give "
    "its logits, Joiner.logits(), or impl='reference'"
)


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

    Attributes:
        impl: The implementation, as ``dispatch.TABLE`` names it.
        reads_on_device: Whether integers may stay on the scores' device, where nobody looks at their values.
        own_derivatives: Whether derivatives are kernels too, and not the framework's.
        compares_hypotheses: Whether there are kernels of many hypotheses that read a sample's scores once.
        advances: Whether alpha can be handed from one stretch of frames to the next.
        reads_frames_first: Whether they know the option of that name; a transposition is a node of torch's graph.
    """

    impl = ""
    reads_on_device = False
    own_derivatives = False
    compares_hypotheses = False
    advances = False
    reads_frames_first = False

    def fuses(self, dtype: Any, *, regular: bool) -> bool:
        """Of kernels that fuse a joiner: whether for operands of this dtype, and for other than the regular arcs."""
        return True

    def losses(self, call: Call, reduction: Any = None) -> Array:
        """(N,) in float64, minus the log-sum over all paths; differentiable. inf where no path exists.

        With a ``reduction`` what becomes of them.
        """
        raise NotImplementedError

    def advance(self, call: Call, alpha: Array) -> Array:
        """Alpha (N, 1 + S') after the frames of a chain, of that before them: logs in float64, state -1 in front.

        The scores are those of the arcs into each state (N, T, S'), all alike, -inf where there is no state. Twice
        differentiable by both. Where the scores of a frame are NaN alpha is.
        """
        raise NotImplementedError

    def best(self, call: Call) -> Any:
        """The best path of each sample."""
        raise NotImplementedError

    def k_best(self, call: Call, k: int, outputs: Array | None = None) -> Any:
        """The k best paths of each sample, an axis behind N; of those of the same string of outputs the best alone."""
        raise NotImplementedError

    def sample(self, call: Call, draws: Array) -> Any:
        """Paths drawn by their probability, of numbers (N, K, choices) drawn evenly from [0, 1)."""
        raise NotImplementedError

    def posteriors(self, call: Call) -> Any:
        """Losses (N,), and how probable each arc is among all paths; 0 in padding and where no path exists."""
        raise NotImplementedError
