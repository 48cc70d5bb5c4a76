"""The alignment-restricted transducer (Mahadeokar et al., 2020, arXiv 2011.03072).

An alignment a gives each label a frame; label u may be emitted from ``left`` frames before it to ``right`` frames after
it, and the sum goes over the walks that keep to this:

    a[u] - left <= frame of label u <= a[u] + right

Blanks need no rule: those that lead out of the band are on no complete walk.
"""

from __future__ import annotations

from pathsum.lattice import BEYOND, ArcLattice, Array, GridLattice
from pathsum.problems.rnnt_types import pose_rnnt_type


def pose_ar_rnnt(grid: GridLattice, rnnt_type: str, alignment: Array, left: int, right: int) -> ArcLattice:
    """The lattice of a type, its labels kept near their frames (N, U'); what stands behind a target is not read."""
    return pose_rnnt_type(grid, rnnt_type, (alignment - min(left, BEYOND), alignment + min(right, BEYOND)))
