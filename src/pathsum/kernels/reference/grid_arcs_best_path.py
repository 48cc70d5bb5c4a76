"""alpha[t, u] = max over k of alpha[t-dt_k, u-du_k] + score_k[t-dt_k, u-du_k], and the path traced back."""

from __future__ import annotations

import torch
from torch import Tensor

from pathsum.kernels.protocol import GridPath
from pathsum.kernels.reference.log_domain import IMPOSSIBLE
from pathsum.lattice import ArcLattice

Node = tuple[int, int]


def best_path(planes: Tensor, lattice: ArcLattice, *, skip_score: float) -> GridPath:
    """The best path of each sample of planes (kinds, rows), in tensors as wide as the lattice's targets."""
    frames = torch.full(lattice.targets.shape, -1, device=planes.device)
    label_scores = torch.zeros(lattice.targets.shape, dtype=planes.dtype, device=planes.device)
    log_probs = planes.new_empty(len(lattice.targets))
    for sample, (num_frames, num_labels) in enumerate(
        zip(lattice.logit_lengths.tolist(), lattice.target_lengths.tolist(), strict=True)
    ):
        first = int(lattice.row_offsets[sample])
        own = planes[:, first : first + num_frames * (num_labels + 1)]
        arcs = own.reshape(len(planes), num_frames, num_labels + 1).tolist()
        if not bool((own < torch.inf).all()):
            log_probs[sample] = label_scores[sample, :num_labels] = torch.nan
            continue
        log_probs[sample], walk = _walk(arcs, lattice, num_frames, num_labels, skip_score)
        if log_probs[sample] == IMPOSSIBLE:
            label_scores[sample, :num_labels] = IMPOSSIBLE
        for kind, (t, u) in walk:
            if kind >= 0 and lattice.arcs[kind][1]:
                frames[sample, u], label_scores[sample, u] = t, arcs[kind][t][u]
    return GridPath(log_probs, frames, label_scores)


def _walk(
    arcs: list[list[list[float]]], lattice: ArcLattice, num_frames: int, num_labels: int, skip_score: float
) -> tuple[float, list[tuple[int, Node]]]:
    """The log-score of the best path, and its arcs from the end: kinds, -1 for a skip, and the nodes they leave."""
    best: dict[Node, float] = {(0, 0): 0.0}
    came: dict[Node, tuple[int, Node]] = {}

    def offer(node: Node, kind: int, source: Node, score: float) -> None:
        # Strictly: of several the first, so that a blank goes before a label and either before a skip.
        if best.get(source, IMPOSSIBLE) + score > best.get(node, IMPOSSIBLE):
            best[node], came[node] = best[source] + score, (kind, source)

    for t in range(num_frames + 1 if num_frames else 0):
        for u in range(num_labels + 1):
            for kind, (frames_on, labels_on) in enumerate(lattice.arcs):
                source = (t - frames_on, u - labels_on)
                ends = t < num_frames or not labels_on or lattice.label_ends
                if source[0] >= 0 and source[0] < num_frames and source[1] >= 0 and ends:
                    offer((t, u), kind, source, arcs[kind][source[0]][source[1]])
            if lattice.skips_to is not None and u == 0 and 0 < t < num_frames:
                offer((t, u), -1, (0, 0), skip_score)
            if lattice.skips_to is not None and u == num_labels and t == num_frames - lattice.skips_to:
                for before in range(min(num_frames - 1, t)):
                    offer((t, u), -1, (before, u), skip_score)
    node, walk = (num_frames, num_labels), []
    if num_frames == 0 or node not in best:
        return IMPOSSIBLE, []
    score = best[node]
    while node != (0, 0):
        walk.append(came[node])
        node = walk[-1][1]
    return score, walk
