"""The auto segmentation criterion (Collobert, Puhrsch, Synnaeve, 2016, arXiv 1609.03193).

Frames have unnormalised scores, and so have transitions from label to label. The log-sum over all label sequences,
one label a frame, less the log-sum over those that stretch the target, every label over at least one frame:

    score(pi) = sum over t of inputs[t, pi[t]]  +  sum over t > 0 of transitions[pi[t], pi[t-1]]
    loss      = log sum over all pi of exp(score(pi))  -  log sum over pi stretching the target of exp(score(pi))

All sequences are posed on a dense lattice, those of the target on a chain of its L labels: to stay is the transition
from a label to itself, to step the transition from the label before. The first frame enters the first label, and the
last one is final. There are C(T-1, L-1) paths. No blank and no merging of repeats: between two equal labels a step
is as good as a stay, so that a target that repeats a label counts sequences more than once.
"""

from __future__ import annotations

from pathsum._namespace import device_of, namespace
from pathsum.lattice import Array, ChainLattice, DenseLattice


def pose_asg(
    targets: Array, input_lengths: Array, target_lengths: Array, num_classes: int
) -> tuple[DenseLattice, ChainLattice]:
    """Pose targets (N, S), S >= 1, with lengths (N,); entries beyond a target's length are not used."""
    xp = namespace(targets)
    used = xp.arange(targets.shape[1], device=device_of(targets)) < target_lengths[:, None]
    labels = xp.where(used, targets, 0)
    nothing_before = xp.full_like(labels[:, :1], -1)

    chain = ChainLattice(
        input_lengths=input_lengths,
        num_states=target_lengths,
        stay_labels=labels,
        step_labels=labels,
        skips=xp.zeros_like(labels, dtype=xp.bool),
        start_state=-1,
        num_final=1,
        stay_transitions=labels * num_classes + labels,
        step_transitions=xp.concatenate([nothing_before, labels[:, 1:] * num_classes + labels[:, :-1]], 1),
        shared_labels=True,
    )
    return DenseLattice(input_lengths=input_lengths, num_states=num_classes), chain
