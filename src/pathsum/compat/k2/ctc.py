"""k2's ``ctc_loss`` and ``CtcLoss``, on the graphs of its two CTC topologies and on any acceptor.

Transcripts and a topology, as ``ctc_graph`` or ``compose`` make them, are solved as chains; an ``Fsa`` as the graph
that it is. The peer's quirks that are kept: the blank is 0; scores are float32, and so is the loss; the mean
divides by ``target_lengths`` as they are. Not kept: ``output_beam`` prunes nothing, the sum is over all paths; a
``delay_penalty`` above 0 is refused; segments need not be sorted by their durations.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pathsum import torch as pathsum_torch
from pathsum.compat.conventions import checked, reduced, tensor
from pathsum.compat.doors import integers
from pathsum.compat.k2.fsa import Fsa, intersect_dense
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.graphs import Graph, ctc_topology, linear, over_ctc

if TYPE_CHECKING:
    from typing_extensions import Self


class _OfTheHost:
    """Integers of the host, whatever the device of the scores."""

    def to(self, device: Any) -> Self:
        return self


@dataclass(frozen=True)
class CtcTopology(_OfTheHost):
    """What ``ctc_topo`` makes.

    Attributes:
        modified: Equal neighbours need no blank between them.
        max_token: The highest label.
    """

    modified: bool
    max_token: int = 0

    def over(self, num_classes: int) -> list[Graph]:
        """The graph of all labellings of the tokens."""
        return [ctc_topology(self.max_token + 1, kind=_kind(self.modified))]


@dataclass(frozen=True)
class LinearFsa(_OfTheHost):
    """What ``linear_fsa`` makes.

    Attributes:
        transcripts: The labels of each sample.
    """

    transcripts: list[list[int]]


@dataclass(frozen=True)
class CtcGraph(_OfTheHost):
    """What ``ctc_graph`` and ``compose`` make: the labels of each sample, and ``CtcTopology.modified``."""

    transcripts: list[list[int]]
    modified: bool

    def over(self, num_classes: int) -> list[Graph]:
        """The graph of each transcript."""
        return [over_ctc(linear(labels), num_classes, kind=_kind(self.modified)) for labels in self.transcripts]


class DenseFsaVec:
    """``k2.DenseFsaVec``: the scores of segments.

    Args:
        log_probs: Log-probabilities (N, T, C), float32.
        supervision_segments: (M, 3): sequence, first frame and frames of each segment.
        allow_truncate: How many frames a segment may reach beyond T; they are cut.

    Attributes:
        scores: Log-probabilities (M, longest segment, C), padded with 0.
        durations: Frames of each segment.
    """

    @checked
    def __init__(self, log_probs: Tensor, supervision_segments: Tensor, allow_truncate: int = 0) -> None:
        num_frames = log_probs.shape[1]
        segments = supervision_segments.tolist()
        ends = [first + count for _, first, count in segments]
        if max(ends) > num_frames + allow_truncate:
            rule = f"reach at most {allow_truncate} frames beyond the {num_frames} there are"
            raise InvalidValueError("DenseFsaVec", "supervision_segments", rule, max(ends))
        sequences = log_probs.unbind()
        rows = [sequences[n][first:end] for (n, first, _), end in zip(segments, ends, strict=True)]
        self.scores = pad_sequence(rows, batch_first=True)
        self.durations = [len(row) for row in rows]

    def select(self, segments: list[int]) -> DenseFsaVec:
        """Some of the segments."""
        chosen = copy.copy(self)
        chosen.scores, chosen.durations = self.scores[segments], [self.durations[n] for n in segments]
        return chosen

    def to(self, device: Any) -> DenseFsaVec:
        """The same segments, their scores on a device."""
        moved = copy.copy(self)
        moved.scores = self.scores.to(device)
        return moved


@checked
def ctc_topo(max_token: int, modified: bool = False, device: Any = None) -> CtcTopology:
    """``k2.ctc_topo``; the labels and the device are those of the scores."""
    return CtcTopology(modified, max_token)


def _kind(modified: bool) -> str:
    return "modified" if modified else "standard"


def linear_fsa(labels: Any, device: Any = None) -> LinearFsa:
    """``k2.linear_fsa`` of a list of labels, or of a list of such lists."""
    if isinstance(labels, Tensor):
        labels = tensor("linear_fsa", "labels", labels)
    labels = labels.tolist() if hasattr(labels, "tolist") else labels
    if not isinstance(labels, (list, tuple)):
        raise InvalidTypeError("linear_fsa", "labels", "be a list of labels, or of such lists", type(labels).__name__)
    lists = list(labels) if not labels or isinstance(labels[0], (list, tuple)) else [labels]
    return LinearFsa([integers("linear_fsa", "labels", one) for one in lists])


def compose(a_fsa: CtcTopology, b_fsa: LinearFsa) -> CtcGraph:
    """``k2.compose`` of a CTC topology and transcripts."""
    return CtcGraph(b_fsa.transcripts, a_fsa.modified)


@checked
def ctc_graph(symbols: Any, modified: bool = False, device: Any = "cpu") -> CtcGraph:
    """``k2.ctc_graph`` of a list of transcripts, or of what has them as its ``tolist()``."""
    return compose(ctc_topo(0, modified), linear_fsa(symbols))


class CtcLoss(nn.Module):
    """``k2.CtcLoss``.

    Args:
        output_beam: Ignored: nothing is pruned.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: each loss divided by its target length, then the mean over N.
        use_double_scores: Ignored.

    Example:
        >>> import torch
        >>> from pathsum.compat import k2
        >>> segments = torch.tensor([[0, 0, 3]], dtype=torch.int32)
        >>> scores = k2.DenseFsaVec(torch.zeros(1, 3, 2), segments)
        >>> criterion = k2.CtcLoss(output_beam=10)  # of scores that are all 0 it counts paths
        >>> [round(criterion(k2.ctc_graph([[1, 1]], either), scores).neg().exp().item()) for either in [False, True]]
        [1, 5]
    """

    @checked
    def __init__(self, output_beam: float, reduction: str = "sum", use_double_scores: bool = True) -> None:
        super().__init__()
        self.output_beam = output_beam
        self.reduction = reduction
        self.use_double_scores = use_double_scores

    @checked
    def forward(
        self,
        decoding_graph: CtcGraph | Fsa,
        dense_fsa_vec: DenseFsaVec,
        delay_penalty: float = 0.0,
        target_lengths: Tensor | None = None,
    ) -> Tensor:
        if not isinstance(decoding_graph, (CtcGraph, Fsa)):
            rule = "be an Fsa, or come from ctc_graph or compose"
            raise InvalidTypeError("ctc_loss", "decoding_graph", rule, type(decoding_graph))
        if delay_penalty > 0:
            raise InvalidValueError("ctc_loss", "delay_penalty", "not be above 0", delay_penalty)
        if isinstance(decoding_graph, Fsa):
            lattice = intersect_dense(decoding_graph, dense_fsa_vec, self.output_beam)
            losses = -lattice.get_tot_scores(log_semiring=True, use_double_scores=self.use_double_scores)
        else:
            losses = _of_transcripts(decoding_graph, dense_fsa_vec)
        if self.reduction != "mean":
            return reduced("ctc_loss", losses, self.reduction)
        return (losses / torch.as_tensor(target_lengths).to(losses)).mean()


def _of_transcripts(decoding_graph: CtcGraph, dense_fsa_vec: DenseFsaVec) -> Tensor:
    """Losses (M,) of the chains."""
    scores, transcripts = dense_fsa_vec.scores, decoding_graph.transcripts
    targets = pad_sequence([torch.tensor(labels, dtype=torch.int64) for labels in transcripts], batch_first=True)
    if decoding_graph.modified:
        scores, targets = _columns_apart(scores, targets.to(scores.device))
    return pathsum_torch.ctc_loss(
        scores,
        targets,
        dense_fsa_vec.durations,
        [len(labels) for labels in transcripts],
        reduction="none",
        batch_first=True,
    )


@checked
def ctc_loss(
    decoding_graph: CtcGraph | Fsa,
    dense_fsa_vec: DenseFsaVec,
    output_beam: float = 10,
    delay_penalty: float = 0.0,
    reduction: str = "sum",
    use_double_scores: bool = True,
    target_lengths: Tensor | None = None,
) -> Tensor:
    """``k2.ctc_loss``.

    Args:
        decoding_graph: An ``Fsa``, or what ``ctc_graph`` or ``compose`` made.
        dense_fsa_vec: Scores of its transcripts' segments.
        output_beam: As in ``CtcLoss``; so are the next three.
        delay_penalty: At most 0.
        reduction: See there.
        use_double_scores: See there.
        target_lengths: Labels of each sample (N,), for ``"mean"``.

    Returns:
        The reduced loss.

    Raises:
        InvalidTypeError: Something else.
        InvalidValueError: A ``delay_penalty`` above 0; also as in ``pathsum.torch.ctc_loss``.

    Example:
        >>> import torch
        >>> from pathsum.compat import k2
        >>> scores = k2.DenseFsaVec(torch.zeros(1, 3, 2).log_softmax(2), torch.tensor([[0, 0, 3]], dtype=torch.int32))
        >>> round(k2.ctc_loss(k2.ctc_graph([[1]]), scores).item(), 4)
        0.2877
    """
    return CtcLoss(output_beam, reduction, use_double_scores)(
        decoding_graph, dense_fsa_vec, delay_penalty, target_lengths
    )


def _columns_apart(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (M, T, 1 + S) of the blank and of each label of a target, and targets of as many classes.

    Where no two labels are the same class, none needs a blank before the next.
    """
    labels = scores.gather(2, targets[:, None].expand(-1, scores.shape[1], -1))
    positions = torch.arange(1, targets.shape[1] + 1, device=targets.device).expand_as(targets)
    return torch.cat([scores[..., :1], labels], 2), positions
