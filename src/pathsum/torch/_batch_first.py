"""What aligners, posteriors and decoders do to their arguments alike: to them scores are (N, T, C), samples first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathsum import _checks, dispatch
from pathsum.errors import InvalidValueError
from pathsum.lattice import ChainLattice
from pathsum.torch._inputs import Integers, as_integers, as_scores, check_table, samples_first
from pathsum.torch._ops.arrays import work_dtype
from pathsum.torch._star import append_star, check_star
from pathsum.torch.asg import with_ends


class ChainCall(NamedTuple):
    """The arguments of a function on CTC's chain or its like, checked.

    Attributes:
        scores: (N, T, C), those of the star added.
        lattice: of NumPy arrays.
        batched: whether the caller's scores had a batch axis.
    """

    scores: Tensor
    lattice: ChainLattice
    batched: bool


def check_chain(
    function: str,
    pose: Callable[..., ChainLattice],
    log_probs: Any,
    targets: Integers,
    input_lengths: Integers | int | None,
    target_lengths: Integers | int | None,
    blank: int,
    batch_first: bool,
    *,
    star: str | None = None,
    logits: bool = False,
) -> ChainCall:
    scores, batched = samples_first(function, "log_probs", log_probs, batch_first)
    num_classes = scores.shape[2]
    blank = _checks.check_blank(function, blank, num_classes)
    check_star(function, star)
    integers = (targets, input_lengths, target_lengths)
    size = num_classes if star is None else num_classes + 1
    batch = _check_batch(function, (*scores.shape[:2], size), *integers, blank, batched)
    if star is not None:
        scores = append_star(scores, batch.input_lengths, blank, star, logits=logits)
    return ChainCall(scores, pose(*batch, blank), batched)


class ASGCall(NamedTuple):
    """The arguments of a function on ASG's lattices, checked.

    Attributes:
        scores: (N, T, C), those of the ends added.
        transitions: (C, C)
        lengths: (N,)
        batched: whether the caller's scores had a batch axis.
        impl: the implementation chosen.
    """

    scores: Tensor
    transitions: Tensor
    lengths: np.ndarray
    batched: bool
    impl: str


def check_asg(
    function: str,
    inputs: Any,
    transitions: Any,
    input_lengths: Integers | int | None,
    start_scores: Any,
    final_scores: Any,
    batch_first: bool,
    impl: str,
) -> ASGCall:
    scores, batched = samples_first(function, "inputs", inputs, batch_first)
    transitions, start_scores, final_scores = map(as_scores, (transitions, start_scores, final_scores))
    check_table(function, "transitions", transitions, scores, "(C, C)")
    num_samples, num_frames, _ = scores.shape
    lengths = check_lengths(function, "input_lengths", input_lengths, num_samples, num_frames, batched).numpy()
    for name, ends in (("start_scores", start_scores), ("final_scores", final_scores)):
        if ends is not None:
            check_table(function, name, ends, scores, "(C,)")
    if start_scores is not None or final_scores is not None:
        scores = with_ends(scores.to(work_dtype(scores)), lengths, start_scores, final_scores)
    return ASGCall(scores, transitions, lengths, batched, dispatch.select(function, scores.device.type, impl))


def check_asg_target(
    function: str, call: ASGCall, targets: Integers, target_lengths: Integers | int | None
) -> _checks.Batch:
    return _check_batch(
        function, tuple(call.scores.shape), targets, torch.from_numpy(call.lengths), target_lengths, None, call.batched
    )


def _check_batch(
    function: str,
    shape: tuple[int, ...],
    targets: Integers,
    input_lengths: Integers | int | None,
    target_lengths: Integers | int | None,
    blank: int | None,
    batched: bool,
) -> _checks.Batch:
    """The integers of a call on scores of a shape (N, T, C), checked; lengths not given are the padded sizes."""
    num_samples, num_frames, num_classes = shape
    labels = as_integers(function, "targets", targets)
    if not batched and labels.ndim == 1:
        labels = labels[None]
    if target_lengths is None:
        if labels.ndim < 2:
            raise InvalidValueError(function, "target_lengths", "be given where targets are concatenated", None)
        target_lengths = [labels.shape[1]] * num_samples
    lengths = [
        as_lengths(function, name, value, batched)
        for name, value in (
            ("input_lengths", [num_frames] * num_samples if input_lengths is None else input_lengths),
            ("target_lengths", target_lengths),
        )
    ]
    return _checks.check_batch(
        function,
        labels,
        *lengths,
        lengths_name="input_lengths",
        num_samples=num_samples,
        num_frames=num_frames,
        max_labels=None,
        num_classes=num_classes,
        blank=blank,
    )


def as_lengths(function: str, argument: str, lengths: Integers | int, batched: bool) -> np.ndarray:
    """Lengths as an array; that of one sample without a batch axis may be a number."""
    array = as_integers(function, argument, lengths)
    return array if batched else np.atleast_1d(array)


def check_lengths(
    function: str,
    argument: str,
    lengths: Integers | int | None,
    num_samples: int,
    num_frames: int,
    batched: bool = True,
) -> Tensor:
    """Lengths (N,), checked; ``None`` is the padded size."""
    if lengths is None:
        return torch.full((num_samples,), num_frames, device="cpu")
    checked = _checks.check_integers(function, argument, as_lengths(function, argument, lengths, batched), (1,))
    _checks.check_lengths(function, argument, checked, num_samples, "T", num_frames)
    return torch.from_numpy(checked)


def of_samples(batched: bool, *results: Tensor) -> tuple[Tensor, ...]:
    """Results with the samples first, or those of the one sample that came without a batch axis."""
    return results if batched else tuple(result[0] for result in results)


def real_frames(lengths: np.ndarray, scores: Tensor) -> Tensor:
    """(N, T) whether a frame is one of its sample's."""
    return torch.arange(scores.shape[1], device=scores.device) < torch.from_numpy(lengths).to(scores.device)[:, None]
