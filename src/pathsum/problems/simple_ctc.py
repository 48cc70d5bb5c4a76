"""Simplified CTC: repeats are not merged, each label is emitted on exactly one frame.

    loss = -log sum over pi with remove_blanks(pi) = target of  prod over t of  p(pi[t] | t)

The monotonic topology of the recurrent neural aligner (Sak et al., 2017), called the simple or simplified loss by
tf_seq2seq_losses (Tochin, 2021). Posed on a chain of L+1 states that count the labels emitted so far: a blank stays,
a label steps. There are C(T, L) paths.
"""

from __future__ import annotations

from pathsum._namespace import device_of, namespace
from pathsum.lattice import Array, ChainLattice


def pose_simple_ctc(targets: Array, input_lengths: Array, target_lengths: Array, blank: int) -> ChainLattice:
    """Pose targets (N, S), S >= 1, with lengths (N,); entries beyond a target's length are not used."""
    xp = namespace(targets)
    size = targets.shape[1]
    used = xp.arange(size, device=device_of(targets)) < target_lengths[:, None]
    targets = xp.where(used, targets, blank)
    blanks = xp.full_like(targets[:, :1], blank)

    step_labels = xp.concatenate([blanks, targets], 1)
    return ChainLattice(
        input_lengths=input_lengths,
        num_states=target_lengths + 1,
        stay_labels=xp.full_like(step_labels, blank),
        step_labels=step_labels,
        skips=xp.zeros_like(step_labels, dtype=xp.bool),
        start_state=0,
        num_final=1,
    )
