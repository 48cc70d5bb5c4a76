"""The token-and-duration transducer (Xu et al., 2023, arXiv 2304.06795, equation 7).

Every symbol is emitted with a duration, of probability p(duration | t, u), and goes that many frames on. A label may
have any of the durations, a blank those above 0, not renormalised:

    alpha[t, u] = sum over d > 0 of alpha[t-d, u] * blank[t-d, u] * duration[d, t-d, u]
                + sum over d of alpha[t-d, u-1] * label[t-d, u-1] * duration[d, t-d, u-1]

No symbol passes the last frame. With ``final="blank"`` the walk ends with a blank whose duration ends exactly there
(NeMo); with ``final="any"`` a label may end there too.
"""

from __future__ import annotations

from pathsum.lattice import LABEL, ArcLattice, GridLattice
from pathsum.problems.rnnt_types import with_arcs


def pose_tdt(grid: GridLattice, durations: tuple[int, ...], final: str) -> ArcLattice:
    """Arcs: a blank for every duration above 0, then a label for every duration, in the order given."""
    blank, label = 0, 1
    steps = list(enumerate(durations, start=2))
    return with_arcs(
        grid,
        arcs=(*((d, 0) for d in durations if d > 0), *((d, 1) for d in durations)),
        reads=((grid.blank, LABEL), tuple(range(len(durations)))),
        terms=(
            *(((blank, 0), (duration, 0)) for duration, frames in steps if frames > 0),
            *(((label, 0), (duration, 0)) for duration, _ in steps),
        ),
        label_ends=final == "any",
    )
