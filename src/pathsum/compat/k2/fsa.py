"""k2's acceptors as far as losses read them: made of text, intersected with scores, and summed.

The peer's intersection is a lattice of every frame and arc that its beam lets live; here it is remembered as the
question that it is, and answered when a total is asked for. Kept: labels are columns of the scores, 0 is the blank and
no epsilon; the last state is final. Not kept: ``output_beam``, ``max_states`` and ``max_arcs`` limit nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pathsum import torch as pathsum_torch
from pathsum.compat.conventions import checked
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.graphs import Graph

if TYPE_CHECKING:
    from pathsum.compat.k2.ctc import DenseFsaVec


class Fsa:
    """``k2.Fsa``, one acceptor or a list of them.

    Attributes:
        graphs: The ``pathsum.graphs.Graph`` of each.

    Example:
        >>> import torch
        >>> from pathsum.compat import k2
        >>> fsa = k2.Fsa.from_str("0 0 0 0.0\\n0 1 1 0.0\\n1 2 -1 0.0\\n2")  # blanks and a 1
        >>> scores = k2.DenseFsaVec(torch.zeros(1, 3, 2), torch.tensor([[0, 0, 3]], dtype=torch.int32))
        >>> k2.intersect_dense(fsa, scores, output_beam=10).get_tot_scores(log_semiring=True).tolist()
        [0.0]
    """

    def __init__(self, graphs: list[Graph]) -> None:
        self.graphs = graphs

    @classmethod
    def from_str(
        cls,
        s: str,
        acceptor: bool | None = None,
        num_aux_labels: int | None = None,
        openfst: bool = False,
    ) -> Fsa:
        """Of k2's text, or of OpenFst's where ``openfst``; a second label makes no difference to any sum."""
        if openfst:
            return cls.from_openfst(s, acceptor, num_aux_labels)
        return cls([Graph.parse(s, "k2")])

    @classmethod
    def from_openfst(cls, s: str, acceptor: bool | None = None, num_aux_labels: int | None = None) -> Fsa:
        """Of OpenFst's text, whose numbers are costs."""
        if acceptor is None and num_aux_labels is not None:
            acceptor = num_aux_labels == 0
        return cls([Graph.parse(s, "att", acceptor=acceptor)])

    def to(self, device: Any) -> Fsa:
        """Acceptors are the host's, whatever the device of the scores."""
        return self


def create_fsa_vec(fsas: list[Fsa]) -> Fsa:
    """``k2.create_fsa_vec``."""
    return Fsa([graph for fsa in fsas for graph in fsa.graphs])


class Lattice:
    """What ``intersect_dense`` makes: acceptors and the scores that are to be summed over their paths."""

    def __init__(self, graphs: list[Graph], dense: DenseFsaVec) -> None:
        self._graphs, self._dense = graphs, dense

    @checked
    def get_tot_scores(self, log_semiring: bool, use_double_scores: bool = True) -> Tensor:
        """The log-sum over the paths of each segment (M,), or the score of the best where ``log_semiring`` is False.

        Differentiable; -inf where there is no path. float64 where ``use_double_scores``, else float32.
        """
        scores, lengths = self._dense.scores, self._dense.durations
        dtype = torch.float64 if use_double_scores else torch.float32
        if log_semiring:
            return pathsum_torch.lattice_score(scores, self._graphs, lengths, batch_first=True).to(dtype)
        best = pathsum_torch.lattice_align(scores, self._graphs, lengths, batch_first=True)
        taken = scores.to(dtype).gather(2, best.labels.clamp(min=0)[:, :, None])[:, :, 0]
        own = torch.where(best.labels >= 0, taken, 0.0).sum(1)
        return best.log_probs.to(dtype) + (own - own.detach())


@checked
def intersect_dense(
    a_fsas: Any,
    b_fsas: DenseFsaVec,
    output_beam: float,
    max_states: int = 15_000_000,
    max_arcs: int = 1_073_741_824,
    a_to_b_map: Tensor | None = None,
    seqframe_idx_name: str | None = None,
    frame_idx_name: str | None = None,
) -> Lattice:
    """``k2.intersect_dense`` of acceptors, one or one a segment, and scores.

    Args:
        a_fsas: An ``Fsa``, or what ``ctc_graph``, ``ctc_topo`` or ``compose`` made.
        b_fsas: Scores of segments.
        output_beam: Ignored, as are the next two: nothing is pruned.
        max_states: See there.
        max_arcs: See there.
        a_to_b_map: Which segment each acceptor reads; where not given the first reads the first, and so on, or one all.
        seqframe_idx_name: Ignored, as is the next.
        frame_idx_name: See there.

    Raises:
        InvalidTypeError: No acceptors.
        InvalidValueError: A number of them that is not that of the segments.
    """
    graphs = graphs_of("intersect_dense", a_fsas, b_fsas.scores.shape[2])
    if a_to_b_map is not None:
        b_fsas = b_fsas.select(a_to_b_map.tolist())
    count = len(b_fsas.durations)
    if len(graphs) not in (1, count):
        raise InvalidValueError("intersect_dense", "a_fsas", f"be one or one a segment, {count}", len(graphs))
    return Lattice(graphs * count if len(graphs) == 1 else graphs, b_fsas)


def graphs_of(function: str, fsas: Any, num_classes: int) -> list[Graph]:
    """The graphs of anything that ends up as acceptors."""
    if isinstance(fsas, Fsa):
        return fsas.graphs
    if hasattr(fsas, "over"):
        return fsas.over(num_classes)
    raise InvalidTypeError(function, "a_fsas", "be an Fsa, or come from ctc_graph, ctc_topo or compose", type(fsas))
