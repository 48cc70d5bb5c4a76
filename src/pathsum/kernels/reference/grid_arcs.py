"""alpha[t, u] = sum over k of alpha[t-dt_k, u-du_k] * score_k[t-dt_k, u-du_k], in logs, by anti-diagonals t + u."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pathsum.kernels.reference.grid import _at, _nodes, _zero_with_gradient
from pathsum.kernels.reference.log_domain import IMPOSSIBLE, common, exact, log_add, log_softmax, tied
from pathsum.lattice import LABEL, ArcLattice
from pathsum.problems.rnnt_types import earliness


def row_scores(scores: Tensor, lattice: ArcLattice, classes: tuple[int, ...], *, lone: int, logits: bool) -> Tensor:
    """Planes (K, rows): log-probabilities of the classes of padded or packed scores, ``LABEL`` being the node's label.

    The ``lone`` class, where not -1, has no share in the softmax: its probability is the sigmoid of its score, and the
    others share the rest.
    """
    sample, t, u = _nodes(lattice)
    rows = exact(scores[sample, t, u] if scores.ndim == 4 else scores)
    among = torch.arange(rows.shape[1], device=rows.device) != lone
    normalised = log_softmax(torch.where(among, rows, IMPOSSIBLE)) if logits else rows
    if lone >= 0:
        normalised = torch.where(among, normalised + logsigmoid(-rows[:, lone, None]), logsigmoid(rows))
    position = u.clamp(max=lattice.targets.shape[1] - 1)
    label = lattice.targets[sample, position]
    emitted = (u < lattice.target_lengths[sample]) & (lattice.first_frames[sample, position] <= t)
    emitted &= t <= lattice.last_frames[sample, position]
    planes = []
    for wanted in classes:
        if wanted == LABEL:
            planes.append(torch.where(emitted, normalised.gather(1, label[:, None])[:, 0], IMPOSSIBLE))
        else:
            planes.append(normalised[:, wanted])
    defined = (rows.detach() < torch.inf).all(1) if logits else torch.tensor(True, device=rows.device)
    stacked = torch.stack(planes)
    return torch.where(defined & (stacked < torch.inf), stacked, torch.nan)


def arc_scores(
    planes: Sequence[Tensor], lattice: ArcLattice, *, sigma: float, delay_penalty: float, fastemit_lambda: float
) -> Tensor:
    """Planes (kinds, rows) of the lattice's terms, of the planes (K, rows) of each tensor.

    ``sigma`` is taken from every score; the delay penalty is added to those of labels, whose gradient counts 1 + lambda
    times.
    """
    rows = torch.cat(list(planes))
    scores = []
    for terms, (_, labels_on) in zip(lattice.terms, lattice.arcs, strict=True):
        score = rows[terms[0][0]] - sigma
        for plane, ahead in terms[1:]:
            # One label on is the next row; behind the last label there is none, and no arc that asks for it, be its
            # own score NaN.
            score = torch.where(score > IMPOSSIBLE, score + rows[plane].roll(-ahead), score)
        if labels_on and delay_penalty:
            score = score + delay_penalty / 2 * earliness(lattice, len(score)).to(score)
        if labels_on and fastemit_lambda:
            score = score + fastemit_lambda * _zero_with_gradient(score)
        scores.append(score)
    return torch.stack(scores)


def forward(planes: Tensor, lattice: ArcLattice, skip_score: float = 0.0) -> Tensor:
    """Losses (N,) of planes (K, rows)."""
    sample, t, u = _nodes(lattice)
    num_samples, width = len(lattice.logit_lengths), lattice.targets.shape[1] + 1
    num_frames = int(lattice.logit_lengths.amax() if num_samples else 0) + 1
    arcs = []
    for plane, (frames, labels) in zip(planes, lattice.arcs, strict=True):
        if labels and not lattice.label_ends:
            plane = torch.where(t + frames < lattice.logit_lengths[sample], plane, IMPOSSIBLE)
        impossible = plane.new_full((num_samples, num_frames, width), IMPOSSIBLE)
        arcs.append((impossible.index_put((sample, t, u), plane), frames, labels))
    arcs, offset = _less_common(arcs) if lattice.skips_to is None else (arcs, 0.0)

    u = torch.arange(width, device=planes.device)
    outside = planes.new_full((num_samples, 1), IMPOSSIBLE)
    diagonals = [torch.where(u == 0, 0.0, IMPOSSIBLE).to(planes).expand(num_samples, -1)]
    for d in range(1, num_frames + width - 1):
        terms = [planes.new_full((num_samples, width), IMPOSSIBLE)]
        if lattice.skips_to is not None:
            terms += _skips(diagonals, d, lattice, skip_score)
        for plane, frames, labels in arcs:
            source = d - frames - labels
            if source >= 0:
                leaving = diagonals[source] + _at(plane, source - u, u)
                terms.append(torch.cat([outside, leaving[:, :-1]], 1) if labels else leaving)
        diagonals.append(log_add(*terms))
    # No arc leaves frame T, so that what has entered (T, U) came from the frames before it.
    batch = torch.arange(num_samples, device=planes.device)
    final = lattice.logit_lengths + lattice.target_lengths
    log_z = torch.stack(diagonals, 1)[batch, final, lattice.target_lengths]
    losses = -torch.where(lattice.logit_lengths > 0, log_z + offset, IMPOSSIBLE)
    # Also where the undefined score is on no path.
    rows = (~(planes.detach() < torch.inf).all(0)).to(losses)
    undefined = torch.zeros_like(losses).index_add(0, sample, rows) > 0
    # A factor, so that the gradient is NaN as well.
    return tied(losses * torch.where(undefined, torch.nan, 1.0), planes)


def _less_common(arcs: list[tuple[Tensor, int, int]]) -> tuple[list[tuple[Tensor, int, int]], Tensor | float]:
    """The arcs less what all paths have in common, an arc out of each frame and one into each label; and its sum (N,).

    Nothing where paths have different numbers of arcs.
    """
    within = any(frames == 0 for _, frames, _ in arcs)
    if any(frames > 1 or (frames and labels and within) for _, frames, labels in arcs):
        return arcs, 0.0
    of_frames = common(torch.cat([plane for plane, frames, _ in arcs if frames], 2), 2)
    of_labels = (
        common(torch.cat([plane for plane, frames, _ in arcs if not frames], 1), 1) if within else of_frames[:, :1]
    )
    relative = [(plane - (of_frames if frames else of_labels), frames, labels) for plane, frames, labels in arcs]
    return relative, of_frames.sum((1, 2)) + (of_labels.sum((1, 2)) if within else 0.0)


def _skips(diagonals: list[Tensor], d: int, lattice: ArcLattice, skip_score: float) -> list[Tensor]:
    """What enters the nodes of diagonal d by leaving frames out: a skip's score, and those of the mass before it."""
    width = diagonals[0].shape[1]
    u = torch.arange(width, device=diagonals[0].device)
    frames, labels = lattice.logit_lengths[:, None], lattice.target_lengths[:, None]
    # In the planes' dtype: torch makes float32 of two numbers.
    skip = diagonals[0].new_tensor(skip_score)
    entered = torch.where((u == 0) & (d - u < frames), skip, IMPOSSIBLE)
    target = frames - int(lattice.skips_to or 0)
    left = []
    for source in range(d):
        # From (source - U, U), before the last frame, to (target, U).
        leaves = (u == labels) & (d - u == target) & (source - u >= 0) & (source - u < frames - 1)
        left.append(torch.where(leaves, diagonals[source] + skip, IMPOSSIBLE))
    return [entered, *left]
