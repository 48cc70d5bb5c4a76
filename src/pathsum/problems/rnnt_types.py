"""Transducers with another label arc than Graves'.

``"regular"``: a label stays in its frame (Graves, 2012, arXiv 1211.3711): C(T-1+U, U) walks.
``"modified"``: a label takes its frame, as a blank does, so that a frame has one symbol; it may be emitted in the last
    frame. C(T, U) walks. The monotonic transducer (Tripathi et al., 2019), k2's "modified", SimBe195/monotonic-rnnt.
``"one_sym_per_frame"``: the same, but the last frame's symbol is the blank: C(T-1, U) walks. optimized_transducer's.
``"constrained"``: as modified, and what a label leads to must be able to go on with a blank in the same frame: the
    arc's probability is p(label | t, u) * p(blank | t, u+1) (k2; Kang et al., 2022, arXiv 2211.00484).

    alpha[t, u] = alpha[t-1, u] * blank[t-1, u] + alpha[t-d, u-1] * label[t-d, u-1]      d = 0 if regular, else 1

Frames in which a label may be emitted can be narrowed further: see ``alignment_restricted``.
"""

from __future__ import annotations

from pathsum._namespace import namespace
from pathsum.lattice import BEYOND, LABEL, ArcLattice, Array, GridLattice


def pose_rnnt_type(grid: GridLattice, rnnt_type: str, band: tuple[Array, Array] | None = None) -> ArcLattice:
    """The grid of a batch with the arcs of one of ``RNNT_TYPES``: blank, then label; ``band`` as of ``with_arcs``."""
    blank, label, next_blank = (0, 0), (1, 0), (0, 1)
    return with_arcs(
        grid,
        arcs=((1, 0), (int(rnnt_type != "regular"), 1)),
        reads=((grid.blank, LABEL),),
        terms=((blank,), (label, next_blank) if rnnt_type == "constrained" else (label,)),
        last_but=int(rnnt_type == "one_sym_per_frame"),
        band=band,
    )


def with_arcs(
    grid: GridLattice,
    *,
    arcs: tuple[tuple[int, int], ...],
    reads: tuple[tuple[int, ...], ...],
    terms: tuple[tuple[tuple[int, int], ...], ...],
    last_but: int = 0,
    band: tuple[Array, Array] | None = None,
    label_ends: bool = True,
    skips_to: int | None = None,
) -> ArcLattice:
    """The grid of a batch with arcs of any kinds; labels in all frames but so many of the last.

    ``band``: the frames (N, U') between which each label may be emitted; they may be such as a sample has not.
    """
    if band is None:
        first = 0 * grid.targets
        last = first + (grid.logit_lengths[:, None] - (1 + last_but) if last_but else BEYOND)
    else:
        first, last = band
        if last_but:
            last = namespace(last).minimum(last, grid.logit_lengths[:, None] - (1 + last_but))
    return ArcLattice(
        logit_lengths=grid.logit_lengths,
        target_lengths=grid.target_lengths,
        targets=grid.targets,
        blank=grid.blank,
        row_offsets=grid.row_offsets,
        arcs=arcs,
        reads=reads,
        terms=terms,
        first_frames=first,
        last_frames=last,
        label_ends=label_ends,
        skips_to=skips_to,
    )


def earliness(lattice: GridLattice | ArcLattice, num_rows: int) -> Array:
    """T-1 - 2t of every row, an integer: a penalty l on delay adds l/2 times it to the score of a label (Kang et al.,
    2022, arXiv 2211.00490). All rows must be counted in ``num_rows``: a graph that is traced does not know the last
    offset. There may be more, whose values mean nothing.
    """
    xp = namespace(lattice.row_offsets)
    rows = xp.arange(num_rows, device=lattice.row_offsets.device)
    sample = xp.searchsorted(lattice.row_offsets[1:], rows, side="right").clip(None, len(lattice.logit_lengths) - 1)
    t = (rows - lattice.row_offsets[sample]) // (lattice.target_lengths[sample] + 1)
    return lattice.logit_lengths[sample] - 1 - 2 * t
