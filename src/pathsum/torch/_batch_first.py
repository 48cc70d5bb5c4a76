"""What the functions on scores (N, T, C), samples first, do to their arguments alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pathsum import _checks, dispatch
from pathsum.errors import InvalidValueError
from pathsum.lattice import ChainLattice
from pathsum.torch._inputs import Integers, as_integers, check_table, dtype_of, shape_of
from pathsum.torch._ops.arrays import work_dtype
from pathsum.torch.asg import with_ends


def pose_chain(
    function: str,
    pose: Callable[..., ChainLattice],
    log_probs: Tensor,
    targets: Integers,
    input_lengths: Integers | None,
    target_lengths: Integers | None,
    blank: int,
) -> ChainLattice:
    _checks.check_scores(function, "log_probs", dtype_of(log_probs), shape_of(log_probs), ("(N, T, C)",))
    blank = _checks.check_blank(function, blank, log_probs.shape[2])
    return pose(*_check_batch(function, log_probs, targets, input_lengths, target_lengths, blank), blank)


def check_asg(
    function: str,
    inputs: Tensor,
    targets: Integers,
    transitions: Tensor,
    input_lengths: Integers | None,
    target_lengths: Integers | None,
    start_scores: Tensor | None,
    final_scores: Tensor | None,
    impl: str,
) -> tuple[Tensor, _checks.Batch, str]:
    """The scores with those of the ends added, the integers, and the implementation."""
    scores, lengths, chosen = check_dense(
        function, inputs, transitions, input_lengths, start_scores, final_scores, impl
    )
    return scores, _check_batch(function, scores, targets, torch.from_numpy(lengths), target_lengths, None), chosen


def check_dense(
    function: str,
    inputs: Tensor,
    transitions: Tensor,
    input_lengths: Integers | None,
    start_scores: Tensor | None,
    final_scores: Tensor | None,
    impl: str,
) -> tuple[Tensor, np.ndarray, str]:
    """The scores with those of the ends added, the lengths, and the implementation."""
    _checks.check_scores(function, "inputs", dtype_of(inputs), shape_of(inputs), ("(N, T, C)",))
    check_table(function, "transitions", transitions, inputs, "(C, C)")
    lengths = check_lengths(function, "input_lengths", input_lengths, *inputs.shape[:2]).numpy()
    for name, ends in (("start_scores", start_scores), ("final_scores", final_scores)):
        if ends is not None:
            check_table(function, name, ends, inputs, "(C,)")
    if start_scores is not None or final_scores is not None:
        inputs = with_ends(inputs.to(work_dtype(inputs)), lengths, start_scores, final_scores)
    return inputs, lengths, dispatch.select(function, inputs.device.type, impl)


def _check_batch(
    function: str,
    scores: Tensor,
    targets: Integers,
    input_lengths: Integers | None,
    target_lengths: Integers | None,
    blank: int | None,
) -> _checks.Batch:
    """The integers of a call on scores (N, T, C), checked; lengths not given are the padded sizes."""
    num_samples, num_frames, num_classes = scores.shape
    labels = as_integers(function, "targets", targets)
    if target_lengths is None:
        if labels.ndim < 2:
            raise InvalidValueError(function, "target_lengths", "be given where targets are concatenated", None)
        target_lengths = [labels.shape[1]] * num_samples
    return _checks.check_batch(
        function,
        labels,
        as_integers(function, "input_lengths", [num_frames] * num_samples if input_lengths is None else input_lengths),
        as_integers(function, "target_lengths", target_lengths),
        lengths_name="input_lengths",
        num_samples=num_samples,
        num_frames=num_frames,
        max_labels=None,
        num_classes=num_classes,
        blank=blank,
    )


def check_lengths(function: str, argument: str, lengths: Integers | None, num_samples: int, num_frames: int) -> Tensor:
    """Lengths (N,), checked; ``None`` is the padded size."""
    if lengths is None:
        return torch.full((num_samples,), num_frames)
    checked = _checks.check_integers(function, argument, as_integers(function, argument, lengths), (1,))
    if len(checked) != num_samples:
        rule = f"have one entry a sample, N = {num_samples}"
        raise InvalidValueError(function, argument, rule, f"{len(checked)} entries")
    _checks._check_range(function, argument, checked, "T", num_frames)
    return torch.from_numpy(checked)


def real_frames(lengths: np.ndarray, scores: Tensor) -> Tensor:
    """(N, T) whether a frame is one of its sample's."""
    return torch.arange(scores.shape[1], device=scores.device) < torch.from_numpy(lengths).to(scores.device)[:, None]
