"""The wildcard transducer, for targets that lack words at their ends (Laptev et al., 2023, arXiv 2303.10384).

Beside the arcs of the regular transducer a path may leave out the frames before its first label, and those behind its
last, each by one skip of a fixed score that emits nothing: from (0, 0) to any later frame (t, 0), and from any (t, U)
but those of the last frame to the end. Where that is has two conventions:

``final="blank"``: the last frame, whose blank ends every path (NeMo's "force_final");
``final="any"``: behind the last frame, so that the path ends with the skip ("allow_ignore").
"""

from __future__ import annotations

from dataclasses import replace

from pathsum.lattice import ArcLattice, GridLattice
from pathsum.problems.rnnt_types import pose_rnnt_type


def pose_wildcard(grid: GridLattice, final: str) -> ArcLattice:
    return replace(pose_rnnt_type(grid, "regular"), skips_to=1 if final == "blank" else 0)
