"""The multi-blank transducer (Xu et al., 2022, arXiv 2211.03541).

Beside the blank there are big blanks, classes of their own that go several frames on:

    alpha[t, u] = alpha[t-1, u] * blank[t-1, u] + sum over i of alpha[t-d_i, u] * big_blank_i[t-d_i, u]
                + alpha[t, u-1] * label[t, u-1]

A walk ends with a blank of any size that ends exactly behind the last frame.
"""

from __future__ import annotations

from pathsum.lattice import LABEL, ArcLattice, GridLattice
from pathsum.problems.rnnt_types import with_arcs


def pose_multi_blank(grid: GridLattice, durations: tuple[int, ...], big_blanks: tuple[int, ...]) -> ArcLattice:
    """Arcs: the blank, the big blanks of these classes and durations, the label."""
    return with_arcs(
        grid,
        arcs=((1, 0), *((d, 0) for d in durations), (0, 1)),
        reads=((grid.blank, *big_blanks, LABEL),),
        terms=tuple(((plane, 0),) for plane in range(len(durations) + 2)),
    )
