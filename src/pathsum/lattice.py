"""The lattices: integers only, on the input's device, readable by every implementation.

One convention holds in every lattice: scores live on arcs; ``alpha`` counts the arcs *into* a node and ``beta`` the
arcs *out of* it, so that ``alpha + beta`` is the log mass of the paths through the node. Nothing here holds a score.
The arrays may be NumPy's, torch's or JAX's.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

from pathsum.display import arrays, shown

Array = Any
Made = TypeVar("Made")

# What an arc of an ``ArcLattice`` emits where it is no one class: the label that comes next, or nothing.
LABEL, NOTHING = -1, -2

# More frames than any sample has, and little enough to be added to a frame in 32 bits.
BEYOND = 2**30


def set_at_once(kind: type[Made]) -> type[Made]:
    """Have a frozen dataclass set its fields at once: one by one, past what freezes it, takes five times as long."""
    own = fields(kind)  # pyright: ignore[reportArgumentType]
    arguments = (name.name if name.default is MISSING else f"{name.name}={name.default!r}" for name in own)
    values = ", ".join(f"{name.name}={name.name}" for name in own)
    made: dict[str, Any] = {}
    exec(f"def __init__(self, {', '.join(arguments)}):\n self.__dict__.update({values})", made)
    kind.__init__ = made["__init__"]
    return kind


@shown(arrays)
@set_at_once
@dataclass(frozen=True)
class ChainLattice:
    """States in a row, one arc a frame: stay, step to the next state, or skip one.

        alpha[t, s] = alpha[t-1, s]   * stay[t, s]
                    + alpha[t-1, s-1] * step[t, s]
                    + alpha[t-1, s-2] * skip[t, s]      where skips[s]

    Before the first frame all mass is on ``start_state`` (-1 is a virtual state in front of the first). A path is
    complete in any state ``s >= num_states - num_final`` after the last frame; with -1 counted, so that the empty
    path is complete where the target is empty.

    Attributes:
        input_lengths: (N,) frames of each sample.
        num_states: (N,) states of each sample, at most the padded number S'.
        stay_labels: (N, S') class emitted by the arc that stays in a state.
        step_labels: (N, S') class emitted by the arcs that enter a state from another one.
        skips: (N, S') whether the state can be entered from two states before.
        start_state: -1 or 0.
        num_final: how many of the last states are final.
        stay_transitions, step_transitions: (N, S') where the arcs that stay and that enter also have a score that is
            the same in all frames: its index in a flat table given beside the scores, or -1 for none. ``None``
            where no arc has. A chain that has them has no skips, starts in -1 and ends in its last state: each of
            its paths takes every step once.
        shared_labels: whether ``stay_labels`` are ``step_labels``, so that one plane of scores serves all arcs.
    """

    input_lengths: Array
    num_states: Array
    stay_labels: Array
    step_labels: Array
    skips: Array
    start_state: int
    num_final: int
    stay_transitions: Array | None = None
    step_transitions: Array | None = None
    shared_labels: bool = False


@shown(arrays)
@set_at_once
@dataclass(frozen=True)
class GridLattice:
    """Frames by labels: a blank arc goes to the next frame, a label arc to the next label.

        alpha[t, u] = alpha[t-1, u] * blank[t-1, u] + alpha[t, u-1] * label[t, u-1]

    A path starts in (0, 0) and ends with the blank arc out of (T-1, U).

    Attributes:
        logit_lengths: (N,) frames T of each sample.
        target_lengths: (N,) labels U of each sample.
        targets: (N, U') class emitted by each label arc.
        blank: class emitted by the blank arcs.
        row_offsets: (N+1,) first row of each sample when the T*(U+1) rows of the samples are laid one after another.
    """

    logit_lengths: Array
    target_lengths: Array
    targets: Array
    blank: int
    row_offsets: Array


@shown(arrays)
@set_at_once
@dataclass(frozen=True)
class ArcLattice:
    """Frames by labels with arcs of several kinds: kind k goes ``arcs[k] = (frames, labels)`` on.

        alpha[t, u] = sum over k of alpha[t - frames_k, u - labels_k] * score_k[t - frames_k, u - labels_k]

    A path starts in (0, 0) and ends where an arc lands exactly on (T, U). No arc passes T, nor lands on T beside U.
    Labels are 0 or 1 and frames at least 0, not both 0; one kind at most goes 0 frames.

    Attributes:
        logit_lengths, target_lengths, targets, blank, row_offsets: As in ``GridLattice``.
        arcs: (frames, labels) that each kind goes on.
        reads: the classes of each tensor of scores whose scores the arcs are made of, a plane each; ``LABEL``: the
            label that comes next.
        terms: what each kind scores, a sum: (plane, labels) is that plane's score so many labels on in the same frame,
            the planes of all tensors counted one after another.
        first_frames, last_frames: (N, U') the frames between which, both included, a label may be emitted.
        label_ends: whether a label may land on (T, U).
        skips_to: where a path may also leave frames out, at the cost of one skip each: from (0, 0) to any later frame
            with u = 0, and with all labels emitted to frame T - ``skips_to``, 0 or 1. ``None``: nowhere.
    """

    logit_lengths: Array
    target_lengths: Array
    targets: Array
    blank: int
    row_offsets: Array
    arcs: tuple[tuple[int, int], ...]
    reads: tuple[tuple[int, ...], ...]
    terms: tuple[tuple[tuple[int, int], ...], ...]
    first_frames: Array
    last_frames: Array
    label_ends: bool = True
    skips_to: int | None = None

    @property
    def emits(self) -> tuple[int, ...]:
        """The class that each kind emits, or ``LABEL``: its first term's."""
        classes = [c for read in self.reads for c in read]
        return tuple(classes[terms[0][0]] for terms in self.terms)


@shown(arrays)
@set_at_once
@dataclass(frozen=True)
class DenseLattice:
    """Every state can follow every state, one arc a frame; the score of a transition is the same in all frames.

        alpha[t, j] = emit[t, j] * sum over i of alpha[t-1, i] * transition[j, i]      alpha[0, j] = emit[0, j]

    A path starts and ends in any state. Without frames there is one path, the empty one.

    Attributes:
        input_lengths: (N,) frames of each sample.
        num_states: how many states there are; state j emits class j.
    """

    input_lengths: Array
    num_states: int


@shown(arrays)
@dataclass(frozen=True)
class SparseLattice:
    """Any graphs: states, arcs that emit a class each and take a frame, and epsilon arcs, which do neither.

        alpha[t, j] = sum over arcs k into j         of alpha[t-1, source[k]] * weight[k] * score[t, class[k]]
                    + sum over epsilon arcs k into j of alpha[t,   source[k]] * weight[k]

    G graphs are laid one after another; a sample runs on one of them. Their states are numbered from 0 each, so that
    epsilon arcs lead to higher numbers; what is on no path is left out. Weights are scores given beside those of the
    frames, W of them: of each graph its arcs', in the order of their numbers, then the states' start scores, then their
    final scores, -inf where there are none.

    Attributes:
        input_lengths: (N,) frames of each sample.
        graph_of_sample: (N,) the graph that each runs on.
        state_offsets, class_offsets, weight_offsets: (G+1,) the first state, class and weight of each graph.
        classes: (K,) the classes that each graph emits, in rising order.
        in_offsets: (S+1,) first arc into each state, by source then number.
        in_sources, in_labels, in_arcs: (A,) the arcs into each state: source, place of the class among those of the
            graph, and number.
        out_offsets, out_destinations, out_labels, out_arcs: The same arcs by the state that they leave.
        epsilon_offsets, epsilon_sources, epsilon_arcs: (S+1,), (E,) the epsilon arcs into each state.
        epsilon_levels: (E,) how many epsilon arcs there can be at most up to each, itself included.
    """

    input_lengths: Array
    graph_of_sample: Array
    state_offsets: Array
    class_offsets: Array
    weight_offsets: Array
    classes: Array
    in_offsets: Array
    in_sources: Array
    in_labels: Array
    in_arcs: Array
    out_offsets: Array
    out_destinations: Array
    out_labels: Array
    out_arcs: Array
    epsilon_offsets: Array
    epsilon_sources: Array
    epsilon_arcs: Array
    epsilon_levels: Array


@dataclass(frozen=True)
class Columns:
    """The classes whose scores a lattice reads, where not all have to be held.

    Attributes:
        input_lengths: (N,) frames of each sample.
        classes: (N, W) the class of each column.
    """

    input_lengths: Array
    classes: Array
