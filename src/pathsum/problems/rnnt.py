"""The recurrent neural network transducer (Graves, 2012, arXiv 1211.3711).

The log-sum over all monotone walks through frames and labels, the walk's blanks moving to the next frame and its
labels to the next label:

    loss = -log sum over walks of  prod over arcs of  p(class of arc | t, u)

Posed on a grid of T by U+1 nodes. Every walk has T blanks, the last one out of (T-1, U), and U labels: there are
C(T-1+U, U) of them. A sample without frames has none.
"""

from __future__ import annotations

from pathsum._namespace import device_of, namespace
from pathsum.lattice import Array, GridLattice


def pose_rnnt(targets: Array, logit_lengths: Array, target_lengths: Array, blank: int) -> GridLattice:
    """Pose targets (N, U), U >= 1, with lengths (N,); entries beyond a target's length are not used."""
    xp = namespace(targets)
    used = xp.arange(targets.shape[1], device=device_of(targets)) < target_lengths[:, None]
    rows = xp.cumsum(logit_lengths * (target_lengths + 1), 0)
    return GridLattice(
        logit_lengths=logit_lengths,
        target_lengths=target_lengths,
        targets=xp.where(used, targets, blank),
        blank=blank,
        row_offsets=xp.concatenate([xp.zeros(1, dtype=rows.dtype, device=device_of(rows)), rows]),
    )
