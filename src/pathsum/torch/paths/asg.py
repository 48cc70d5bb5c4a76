"""The paths of the auto segmentation criterion: all label sequences, and those that stretch a target."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathsum import _checks, dispatch
from pathsum.kernels.reference.log_domain import tied
from pathsum.lattice import DenseLattice
from pathsum.options import CHECKS, Check, TorchImpl
from pathsum.problems.asg import pose_asg
from pathsum.torch._bounded import posed, unread_on
from pathsum.torch._inputs import (
    Integers,
    as_scores,
    check_table,
    in_frames,
    length_array,
    plain_integers,
    posed_at_once,
)
from pathsum.torch._ops.arrays import as_tensor, work_dtype
from pathsum.torch.paths.frames import ChainPaths, DensePaths, centred, frame_batch, label_dtype


def asg_paths(
    inputs: Tensor | np.ndarray,
    targets: Integers,
    transitions: Tensor | np.ndarray,
    input_lengths: Integers | int | None = None,
    target_lengths: Integers | int | None = None,
    *,
    start_scores: Tensor | np.ndarray | None = None,
    final_scores: Tensor | np.ndarray | None = None,
    batch_first: bool = False,
    impl: TorchImpl = "auto",
) -> tuple[DensePaths, ChainPaths]:
    """All label sequences, one label a frame, and those that stretch the target, each label over one frame or more.

    Args:
        inputs: Unnormalised scores (T, N, C), or (T, C) for one sample.
        targets: Labels (N, S) or (sum of target_lengths,); (S,) for one sample.
        transitions: Scores (C, C), ``transitions[i, j]`` from j to i.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``. A number for one sample.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``. A number for one sample.
        start_scores: Scores (C,) of the first label.
        final_scores: Scores (C,) of the last label.
        batch_first: ``inputs`` are (N, T, C).
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        The ``Paths`` of all sequences, and those of the target's. ``asg_loss`` is the second's losses less the first's.

    Raises:
        InvalidValueError: As in ``asg_loss``.
        InvalidTypeError: As in ``asg_loss``.

    Example:
        >>> import torch
        >>> from pathsum.torch.paths import asg_paths
        >>> every, target = asg_paths(torch.zeros(3, 1, 2), [[0, 1]], torch.zeros(2, 2))
        >>> [round(paths.entropy().exp().item(), 4) for paths in (every, target)]
        [8.0, 2.0]
    """
    ends = (start_scores, final_scores)
    return both_paths(
        "asg_paths", inputs, targets, transitions, input_lengths, target_lengths, *ends,
        batch_first=batch_first, impl=impl,
    )  # fmt: skip


def both_paths(
    function: str,
    inputs: Tensor | np.ndarray,
    targets: Integers,
    transitions: Tensor | np.ndarray,
    input_lengths: Integers | int | None,
    target_lengths: Integers | int | None,
    start_scores: Tensor | np.ndarray | None = None,
    final_scores: Tensor | np.ndarray | None = None,
    *,
    batch_first: bool,
    check: Check = "sync",
    known: bool = False,
    centre: bool = False,
    impl: str,
) -> tuple[DensePaths, ChainPaths]:
    """The paths that a function of both lattices is made of.

    ``known``: the integers must have values. ``centre``: a path's score may lack what all paths have in common.
    """
    scores, table, ends, (frames_first, batched) = _scores(
        function, inputs, transitions, start_scores, final_scores, batch_first
    )
    _checks.check_option(function, "check", check, CHECKS)
    of_all = dispatch.choose(function, scores.device.type, impl, "dense")
    of_target = dispatch.kernels_of(of_all.impl, "chain")
    integers = (targets, input_lengths, target_lengths)
    first, second, num_classes = scores.shape
    num_samples, num_frames = (second, first) if frames_first else (first, second)
    arrays = plain_integers(*integers, num_frames) if batched and scores.is_cpu else None
    # A target of any length is legal, and so is every label; one that does not fit is infeasible.
    lattices = posed_at_once(pose_asg, arrays, num_samples, num_frames, 2**62, num_classes, -1)
    if lattices is None:
        device = unread_on(function, check, of_all, scores, *integers)
        batch = frame_batch(
            function, (num_samples, num_frames), batched, *integers, num_classes=num_classes, blank=None, known=known,
            device=device,
        )  # fmt: skip
        lattices = posed(pose_asg, batch, num_classes)
    dense, chain = lattices
    if centre and ends != (None, None):
        scores, ends = centred(scores, 2), tuple(None if end is None else centred(end, 0) for end in ends)
    if ends != (None, None):
        scores = with_ends(scores.transpose(0, 1) if frames_first else scores, dense.input_lengths, *ends)
        frames_first = False
    labels = label_dtype(targets)
    every = DensePaths(function, scores, table, dense, of_all, batched, frames_first)
    target = ChainPaths(function, scores, table, chain, of_target, batched, frames_first)
    target.label_dtype = labels
    every.relative = target.relative = centre
    return every, target


def every_path(
    function: str,
    inputs: Tensor | np.ndarray,
    transitions: Tensor | np.ndarray,
    input_lengths: Integers | int | None,
    start_scores: Tensor | np.ndarray | None,
    final_scores: Tensor | np.ndarray | None,
    *,
    batch_first: bool,
    impl: str,
) -> DensePaths:
    """All label sequences, where there is no target."""
    scores, table, ends, (frames_first, batched) = _scores(
        function, inputs, transitions, start_scores, final_scores, batch_first
    )
    scores = scores.transpose(0, 1) if frames_first else scores
    kernels = dispatch.choose(function, scores.device.type, impl, "dense")
    num_samples, num_frames, num_classes = scores.shape
    lengths = length_array(function, "input_lengths", input_lengths, num_samples, num_frames, batched)
    lattice = DenseLattice(input_lengths=lengths, num_states=num_classes)
    return DensePaths(function, with_ends(scores, lengths, *ends), table, lattice, kernels, batched)


def _scores(
    function: str, inputs: Any, transitions: Any, start_scores: Any, final_scores: Any, batch_first: bool
) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None], tuple[bool, bool]]:
    """Scores, transitions (C, C) and those of the ends (C,), and of ``in_frames`` what is told of the scores.

    None is in half precision any more: a gradient is the difference of two posteriors, which are not to be rounded
    before it is taken.
    """
    scores, *told = in_frames(function, "inputs", inputs, batch_first)
    found: list[Tensor | None] = []
    given = {"transitions": transitions, "start_scores": start_scores, "final_scores": final_scores}
    for name, table in given.items():
        if table is None and name != "transitions":
            found.append(None)
            continue
        found.append(as_scores(table))
        check_table(function, name, found[-1], scores, "(C,)" if found[1:] else "(C, C)")
    dtype, (table, start, final) = work_dtype(scores), found
    assert table is not None
    if scores.dtype != dtype or table.dtype != dtype:
        scores, table = scores.to(dtype), table.to(dtype)
    ends = (None if start is None else start.to(dtype), None if final is None else final.to(dtype))
    return scores, table, ends, (told[0], told[1])


def with_ends(scores: Tensor, input_lengths: Any, start_scores: Tensor | None, final_scores: Tensor | None) -> Tensor:
    """Scores (N, T, C), the start's added to each first frame and the final ones to each last frame, in a copy."""
    if start_scores is None and final_scores is None:
        return scores
    if scores.shape[1] == 0:
        return tied(scores, *(ends for ends in (start_scores, final_scores) if ends is not None))
    lengths = as_tensor(input_lengths).to(scores.device)
    sample = torch.arange(len(lengths), device=scores.device)
    for ends, frame in ((start_scores, torch.zeros_like(lengths)), (final_scores, (lengths - 1).clamp(min=0))):
        if ends is not None:
            values = torch.where((lengths > 0)[:, None], ends.to(scores.dtype), 0.0)
            scores = scores.index_put((sample, frame), values, accumulate=True)
    return scores
