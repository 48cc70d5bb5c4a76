"""A lattice as text: which nodes the paths visit."""

from __future__ import annotations

from pathsum.lattice import ChainLattice
from pathsum.testing.paths import Arc, Lattice, Node, arcs_out_of, count_paths, is_final, start_node


def draw(lattice: Lattice, sample: int = 0) -> str:
    """Draw the nodes of a sample: frames to the right, states or labels downwards.

    ``o`` is a node on a complete path, ``.`` one that is reached but leads nowhere; nodes never reached are left out.
    In a chain each state is headed by the class that entering it emits and, where staying emits another, that one;
    ``>`` marks a state that can be entered by a skip. In a grid each row is headed by the label that leads to the next.

    Args:
        lattice: A chain or a grid.
        sample: Index in the batch.

    Returns:
        Lines of text without a final newline.

    Example:
        >>> import numpy as np
        >>> from pathsum.problems.simple_ctc import pose_simple_ctc
        >>> from pathsum.testing import draw
        >>> print(draw(pose_simple_ctc(np.array([[7, 8]]), np.array([3]), np.array([2]), blank=0)))
        chain: 3 frames, 3 states, 3 paths
           0  0     o o . .
           1  7/0     o o .
           2  8/0       o o
    """
    reached, useful = _visit(lattice, sample)
    is_chain = isinstance(lattice, ChainLattice)
    if is_chain:
        num_frames, num_rows, kind = int(lattice.input_lengths[sample]), int(lattice.num_states[sample]), "states"
    else:
        num_frames, num_rows, kind = int(lattice.logit_lengths[sample]), int(lattice.target_lengths[sample]) + 1, "rows"
    lines = [f"{'chain' if is_chain else 'grid'}: {num_frames} frames, {num_rows} {kind}, "
             f"{count_paths(lattice, sample)} paths"]  # fmt: skip
    for row in range(start_node(lattice)[1], num_rows):
        marks = ("o" if (t, row) in useful else "." if (t, row) in reached else " " for t in range(num_frames + 1))
        lines.append(f"{row:4}  {_heading(lattice, sample, row, num_rows):5} {' '.join(marks)}".rstrip())
    return "\n".join(lines)


def _heading(lattice: Lattice, sample: int, row: int, num_rows: int) -> str:
    if not isinstance(lattice, ChainLattice):
        return str(int(lattice.targets[sample, row])) if row < num_rows - 1 else ""
    if row < 0:
        return ""
    step, stay = int(lattice.step_labels[sample, row]), int(lattice.stay_labels[sample, row])
    return f"{step}{'' if stay == step else f'/{stay}'}{'>' if bool(lattice.skips[sample, row]) else ''}"


def _visit(lattice: Lattice, sample: int) -> tuple[set[Node], set[Node]]:
    """The nodes reached from the start, and those of them from which a path can be completed."""
    start = start_node(lattice)
    reached, arcs, waiting = {start}, list[Arc](), [start]
    while waiting:
        for arc in arcs_out_of(lattice, sample, waiting.pop()):
            arcs.append(arc)
            if arc.target not in reached:
                reached.add(arc.target)
                waiting.append(arc.target)
    # Sorted from the end: every arc raises t or u, so its target has been settled when its source is asked about.
    useful = {node for node in reached if is_final(lattice, sample, node)}
    for arc in sorted(arcs, key=lambda arc: arc.source, reverse=True):
        if arc.target in useful:
            useful.add(arc.source)
    return reached, useful
