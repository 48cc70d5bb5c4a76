"""Connectionist temporal classification (Graves et al., 2006).

The log-sum over all labellings of the frames that read as the target once repeats are merged and blanks removed:

    loss = -log sum over pi with collapse(pi) = target of  prod over t of  p(pi[t] | t)

Posed on a chain of 2L+1 states, blank y1 blank y2 ... yL blank, with a virtual state in front. Every arc into a
state emits the state's class. A label can be entered past the blank before it unless it repeats the label before
that. The last label and the last blank are final.
"""

from __future__ import annotations

from pathsum._namespace import device_of, namespace
from pathsum.lattice import Array, ChainLattice


def pose_ctc(targets: Array, input_lengths: Array, target_lengths: Array, blank: int) -> ChainLattice:
    """Pose targets (N, S), S >= 1, with lengths (N,); entries beyond a target's length are not used."""
    xp = namespace(targets)
    size = targets.shape[1]
    used = xp.arange(size, device=device_of(targets)) < target_lengths[:, None]
    targets = xp.where(used, targets, blank)

    state = xp.arange(2 * size + 1, device=device_of(targets))
    is_label = state % 2 == 1
    label_of_state = xp.clip(state // 2, 0, size - 1)
    two_before = xp.clip(state - 2, 0, None)
    labels = xp.where(is_label, targets[:, label_of_state], blank)
    skips = is_label & ((state == 1) | (labels != labels[:, two_before]))
    return ChainLattice(
        input_lengths=input_lengths,
        num_states=2 * target_lengths + 1,
        stay_labels=labels,
        step_labels=labels,
        skips=skips,
        start_state=-1,
        num_final=2,
        shared_labels=True,
    )
