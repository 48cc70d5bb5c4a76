"""The alignment-restricted transducer (Mahadeokar et al., 2020, arXiv 2011.03072).

An alignment a gives each label a frame; label u may be emitted from ``left`` frames before it to ``right`` frames after
it, and the sum goes over the walks that keep to this:

    a[u] - left <= frame of label u <= a[u] + right

Blanks need no rule: those that lead out of the band are on no complete walk.
"""

from __future__ import annotations

from dataclasses import replace

from pathsum._namespace import namespace
from pathsum.lattice import BEYOND, ArcLattice, Array


def restrict(lattice: ArcLattice, alignment: Array, left: int, right: int) -> ArcLattice:
    """The lattice with its labels kept near their frames (N, U'); what stands behind a target's length is not read."""
    xp = namespace(alignment)
    left, right = min(left, BEYOND), min(right, BEYOND)
    return replace(
        lattice,
        first_frames=xp.maximum(lattice.first_frames, alignment - left),
        last_frames=xp.minimum(lattice.last_frames, alignment + right),
    )
