"""Paths through a grid of frames by labels: those of the transducer and of its relatives."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathsum import dispatch
from pathsum.display import arrays, shown, walks
from pathsum.errors import InvalidValueError
from pathsum.kernels.protocol import ArcOptions, Call, GridOptions, GridWalks, JointOptions, Kernels, RowOptions
from pathsum.kernels.reference import grid_arcs
from pathsum.lattice import ArcLattice, GridLattice
from pathsum.options import ReductionName
from pathsum.problems.rnnt_types import pose_rnnt_type
from pathsum.torch._autograd.expectations import expectation, expects, listed_posteriors
from pathsum.torch._expectations import Expected, posteriors_of, product
from pathsum.torch._inputs import PADDED, of_samples, on_device, values_unknown
from pathsum.torch._operators import OperatorKernels, OverwritingLosses
from pathsum.torch._ops.arrays import as_tensor, work_dtype
from pathsum.torch.joiner import Joiner
from pathsum.torch.paths.base import Paths


@shown(walks)
class RNNTAlignment(NamedTuple):
    """The best walk of each sample.

    Attributes:
        frames: (N, U) frame in which each label is emitted; -1 in padding, and throughout where there is no walk.
        scores: (N, U) log-probability of each label where it is emitted; 0 in padding, -inf where there is no walk.
        log_probs: (N,) log-probability of the whole walk, its blanks included.
    """

    frames: Tensor
    scores: Tensor
    log_probs: Tensor


@shown(arrays)
class WalkList(NamedTuple):
    """K walks of each sample. Without the axis N for one sample given as (T, U+1, V).

    Attributes:
        log_probs: (N, K) log-probability of each walk; -inf where there is no such walk, NaN where a score is.
        frames: (N, K, U) frame in which each label is emitted; -1 in padding, and throughout where there is no walk.
        scores: (N, K, U) log-probability of each label where it is emitted; 0 in padding, -inf where there is no walk.
        kinds: (N, K, T+U) kind of each arc, in order: its place in ``lattice.arcs``, of the regular transducer 0 for a
            blank and 1 for a label; the number behind the last kind where frames are left out, -1 behind the last arc.
    """

    log_probs: Tensor
    frames: Tensor
    scores: Tensor
    kinds: Tensor


@shown(arrays)
class GridPosteriors(NamedTuple):
    """Posteriors in the grid of a transducer: shares of all walks that spell the target.

    Zero in padding and where no walk exists. Of the regular transducer the nodes of an anti-diagonal t + u sum to 1,
    the blanks of a frame too, and of any the labels of one u.

    Attributes:
        nodes: (N, T, U+1) the walk leaves (t, u) by an arc.
        blanks: (N, T, U+1) it leaves (t, u) by a blank, to a later frame.
        labels: (N, T, U) it leaves (t, u) by the label, to the next u.
    """

    nodes: Tensor
    blanks: Tensor
    labels: Tensor


class GridPaths(Paths):
    """Walks through frames and labels.

    Attributes:
        heads: Logits, padded (N, T, U+1, V) or packed (rows, V), or the ``Joiner`` that makes them; a second for the
            durations where these have one.
        options: How the arcs are scored.
        overwrite: Whether ``overwriting_loss`` is wanted, and may be.
    """

    overwrite = False

    def __init__(
        self,
        function: str,
        heads: tuple[Tensor | Joiner, ...],
        lattice: GridLattice | ArcLattice,
        options: GridOptions | ArcOptions | JointOptions,
        kernels: Kernels,
        batched: bool = True,
    ) -> None:
        super().__init__(function, lattice, kernels, work_dtype(heads[0]), batched)
        self.heads, self.options = heads, options

    def overwriting_loss(self, reduction: ReductionName, zero_infinity: bool) -> Tensor:
        """As ``loss``, its gradient written over the logits."""
        (logits, *_), kernels = self.heads, self.kernels
        if not (torch.is_grad_enabled() and isinstance(logits, Tensor) and logits.requires_grad):
            return self.loss(reduction, zero_infinity)
        assert isinstance(kernels, OperatorKernels)
        lattice, wanted = kernels.sent(self.lattice, logits.device), self.wanted(reduction, zero_infinity)
        return OverwritingLosses.apply(kernels, lattice, self.options, wanted, logits)

    def entropy(self) -> Tensor:
        """``log Z - E[score of walk]`` (N,), in nats, differentiable; 0 where no walk exists.

        Raises:
            InvalidValueError: Skips have a score other than 0.
        """
        if self._scored.skip_score:
            raise InvalidValueError(self.function, "skip_score", "be 0 for an entropy", self._scored.skip_score)
        return self._expect(None).to(self.dtype)

    def expected(self, costs: Tensor) -> Tensor:
        """The expected sum of the costs of a walk's arcs, differentiable by costs and scores.

        Args:
            costs: (N, T, U+1, K) or packed (rows, K), of an arc of each kind out of a node: of a blank and a label,
                or of the kinds of ``lattice.arcs``. Where an arc is on no walk its cost is not read.

        Returns:
            (N,), 0 where no walk exists.
        """
        return self._expect(costs).to(self.dtype)

    def _expect(self, costs: Tensor | None) -> Tensor:
        """(N,) in float64, expected costs or, without any, entropies."""
        if self._has_kernels_of_means() and expects(self.kernels, *self.call().scores, costs):
            return expectation(self.kernels, self.call(), costs, self._composed)
        return self._composed(self.heads, costs)

    def _has_kernels_of_means(self) -> bool:
        """Whether they are padded logits, of Graves' arcs or of others none of which leaves frames out."""
        if not all(isinstance(head, Tensor) and head.ndim == 4 for head in self.heads):
            return False
        if isinstance(self.options, GridOptions):
            return True
        own = self.lattice
        scored = isinstance(self.options, ArcOptions) and self.options.softmax and not self.options.given
        return scored and own.skips_to is None and own.arcs != ((1, 0), (0, 1))

    def _composed(self, scores: Sequence[Any], costs: Tensor | None) -> Tensor:
        """The same as a Hessian-vector product, of other heads."""
        own = copy(self)
        own.heads = tuple(head for head in scores if head is not None)
        planes, lattice = own._arcs()
        if costs is None:
            return own._expectation(planes, lattice, planes).entropies()
        read = read_planes(costs, lattice, tuple(range(len(lattice.arcs))), self.impl, softmax=False)
        return own._expectation(planes, lattice, read).costs

    def posteriors(self) -> GridPosteriors:
        """How probable each node and arc is, arcs of all durations together."""
        if isinstance(self.options, GridOptions):
            call = self._detached()
            found = listed_posteriors(self.kernels, call)
            if found is not None:
                nodes, blanks, labels = found
                return GridPosteriors(*of_samples(self.batched, nodes, blanks, labels[:, :, :-1]))
            losses, blanks, labels = self.kernels.posteriors(call)
            blanks, labels = (self._defined(plane, losses, self._real(plane.device)) for plane in (blanks, labels))
        else:
            arcs = self._by_arcs()
            kinds = ([k for k, (_, labels) in enumerate(self.lattice.arcs) if labels == on] for on in (0, 1))
            blanks, labels = (arcs[:, own].sum(1) for own in kinds)
        return GridPosteriors(*of_samples(self.batched, blanks + labels, blanks, labels[:, :, :-1]))

    def arc_posteriors(self) -> Tensor:
        """(N, K, T, U+1) how probable it is to leave (t, u) by an arc of each kind of ``lattice.arcs``.

        Of the regular transducer: by the blank, by the label. 0 in padding and where no walk exists.
        """
        return of_samples(self.batched, self._by_arcs())[0]

    def _by_arcs(self) -> Tensor:
        """(N, K, T, U+1) as ``arc_posteriors``."""
        with torch.no_grad():
            planes, lattice = self._arcs()
            losses, found = posteriors_of(lambda planes: self._solve(planes, lattice), planes)
        real = self._real(found.device)
        arcs = found.new_zeros(*real.shape, len(found))
        arcs[real] = found.T
        return self._defined(arcs, losses, real[:, :, :, None]).movedim(3, 1)

    def best(self) -> RNNTAlignment:
        """The best walk: the frame of every label, and the score of the arc that emits it."""
        if isinstance(self.options, GridOptions):
            log_probs, frames, scores = self.kernels.best(self._detached())
        else:
            with torch.no_grad():
                planes, lattice = self._arcs()
                log_probs, frames, scores = dispatch.kernels_of(self.impl, "arcs").best(
                    self._of_planes(planes, lattice)
                )
            if self.heads[0].ndim == 4:
                frames, scores = (values[:, : self.heads[0].shape[2] - 1] for values in (frames, scores))
        return RNNTAlignment(*of_samples(self.batched, frames, scores.to(self.dtype), log_probs.to(self.dtype)))

    def k_best(self, k: int) -> WalkList:
        """The k best walks of each sample in falling order, without a graph.

        Args:
            k: At least 1.

        Returns:
            A ``WalkList``. Of equals that one comes first that ``best`` takes.
        """
        count = self._count(k, int(self.lattice.row_offsets[-1]))
        return self._told(self._lister("walks").k_best(self._planes_alone(), count))

    def sample(self, num_samples: int = 1, generator: torch.Generator | None = None) -> WalkList:
        """Walks drawn at random, independently, each as probable as its share in the sum over all walks.

        Args:
            num_samples: K, how many are drawn of each sample.
            generator: What draws, on the CPU; ``None``: torch's own.

        Returns:
            A ``WalkList``.
        """
        lister, (size, num_labels) = self._lister("walks"), self.lattice.targets.shape
        longest = int(self.lattice.logit_lengths.max()) + num_labels if size else 0
        draws = self._draws(num_samples, generator, size, longest)
        return self._told(lister.sample(self._planes_alone(), draws))

    def _planes_alone(self) -> Call:
        with torch.no_grad():
            planes, lattice = self._arcs()
        return self._of_planes(planes.detach(), lattice)

    def _told(self, found: GridWalks) -> WalkList:
        frames, scores = found.frames, found.label_scores
        if self.heads[0].ndim == 4:
            frames, scores = (values[:, :, : self.heads[0].shape[2] - 1] for values in (frames, scores))
        log_probs, scores = found.log_probs.to(self.dtype), scores.to(self.dtype)
        return WalkList(*of_samples(self.batched, log_probs, frames, scores, found.kinds))

    def _size(self) -> str:
        return ", ".join(f"scores {tuple(head.shape)}" for head in self.heads)

    @property
    def _scored(self) -> ArcOptions:
        """How the arcs are scored, whatever makes their planes."""
        own = self.options
        if isinstance(own, ArcOptions):
            return own
        if isinstance(own, GridOptions):
            return ArcOptions(softmax=own.softmax)
        return ArcOptions(delay_penalty=own.delay_penalty)

    def call(self) -> Call:
        if isinstance(self.options, ArcOptions):
            return arc_call(self.heads, self.lattice, self.options)
        (head,) = self.heads
        scores = head.operands if isinstance(head, Joiner) else (head,)
        return Call(scores, self.lattice, self.options)

    def _detached(self) -> Call:
        """Of logits, whose padded axes the kernels read; their paths are asked for and not their gradient."""
        (logits,) = self.heads
        if logits.ndim != 4:
            raise InvalidValueError(self.function, "logits", f"have shape {PADDED}", f"shape {tuple(logits.shape)}")
        assert isinstance(logits, Tensor)
        return Call((logits.detach(),), self.lattice, self.options)

    def _arcs(self) -> tuple[Tensor, ArcLattice]:
        """Planes (K, rows) of the scores of the arcs, one for each kind, and the lattice that reads them so."""
        lattice, scored = self.lattice, self._scored
        if isinstance(lattice, GridLattice):
            lattice = pose_rnnt_type(lattice, "regular")
        planes = []
        for head, classes in zip(self.heads, lattice.reads, strict=True):
            logits = head.logits() if isinstance(head, Joiner) else head
            planes.append(read_planes(logits, lattice, classes, self.impl, softmax=scored.softmax, hat=scored.hat))
        own = tuple(((kind, 0),) for kind in range(len(lattice.arcs)))
        if len(planes) == 1 and lattice.terms == own and not (scored.sigma or scored.delay_penalty):
            return planes[0], lattice
        placed = on_device(lattice, planes[0].device)
        numbers = {"sigma": scored.sigma, "delay_penalty": scored.delay_penalty}
        arcs = grid_arcs.arc_scores(planes, placed, **numbers, fastemit_lambda=0.0)
        return arcs, replace(lattice, reads=(lattice.emits,), terms=own)

    def _of_planes(self, planes: Tensor, lattice: ArcLattice) -> Call:
        return arc_call((planes,), lattice, ArcOptions(given=True, skip_score=self._scored.skip_score))

    def _solve(self, planes: Tensor, lattice: ArcLattice) -> Tensor:
        return dispatch.kernels_of(self.impl, "arcs").losses(self._of_planes(planes, lattice))

    def _expectation(self, planes: Tensor, lattice: ArcLattice, costs: Tensor) -> Expected:
        losses, posteriors = posteriors_of(lambda planes: self._solve(planes, lattice), planes)
        offsets = as_tensor(lattice.row_offsets).to(losses.device)
        rows = torch.arange(posteriors.shape[1], device=losses.device)
        # There may be rows behind the last node, without a posterior.
        sample = torch.searchsorted(offsets[1:], rows, right=True).clamp(max=len(losses) - 1)
        return Expected(losses, torch.zeros_like(losses).index_add(0, sample, product(posteriors, costs).sum(0)))

    def _real(self, device: torch.device) -> Tensor:
        """(N, T, U+1) whether a node is one of its sample's."""
        lengths, labels = (
            as_tensor(values).to(device) for values in (self.lattice.logit_lengths, self.lattice.target_lengths)
        )
        if self.heads[0].ndim == 4:
            _, num_frames, width, _ = self.heads[0].shape
        else:
            num_frames, width = int(lengths.amax()) if len(lengths) else 0, self.lattice.targets.shape[1] + 1
        frame, label = torch.arange(num_frames, device=device), torch.arange(width, device=device)
        return (frame < lengths[:, None])[:, :, None] & (label <= labels[:, None])[:, None, :]


def check_overwrite(paths: GridPaths) -> None:
    """Nothing may stand in the way of a gradient that is written over the logits."""

    def refuse(where: str) -> InvalidValueError:
        return InvalidValueError(paths.function, "overwrite_logits", f"be False {where}", True)

    if not isinstance(paths.options, GridOptions):
        raise refuse("with another rnnt_type than regular, with delay_penalty and with hat")
    if values_unknown():
        raise refuse("under torch.compile and torch.func")
    if not paths.kernels.own_derivatives:
        raise refuse("with impl='reference'")
    if not paths.options.softmax:
        raise refuse("with fused_log_softmax=False")
    (logits,) = paths.heads
    assert isinstance(logits, Tensor)
    # Each axis must step over all that lies below it.
    extent = 0
    for step, size in sorted(zip(logits.stride(), logits.shape, strict=True)):
        if size > 1:
            if step <= extent:
                raise refuse("where logits share memory")
            extent += step * (size - 1)


def arc_call(heads: Sequence[Tensor | Joiner], lattice: ArcLattice, options: ArcOptions) -> Call:
    """A call on arcs: what scores them is logits, or joiners that make these a tile at a time."""
    scores: list[Tensor | None] = []
    for head in heads:
        scores += head.operands if isinstance(head, Joiner) else (head, None, None, None)
    missing = 2 - len(heads)
    if any(isinstance(head, Joiner) for head in heads):
        joiners = [(head.activation, head.tile_bytes, head.gate) if isinstance(head, Joiner) else () for head in heads]
        options = options._replace(joiners=(*joiners, *[()] * missing))
    return Call((*scores, *[None] * (4 * missing)), lattice, options)


def read_planes(
    scores: Tensor, lattice: ArcLattice, classes: tuple[int, ...], impl: str, *, softmax: bool, hat: bool = False
) -> Tensor:
    """Planes (K, rows) of the classes of padded or packed scores, differentiable."""
    return dispatch.kernels_of(impl, "rows").losses(Call((scores,), lattice, RowOptions(classes, softmax, hat)))
