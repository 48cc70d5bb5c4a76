"""The paths of CTC and of simplified CTC."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathsum import _checks, dispatch
from pathsum.lattice import ChainLattice
from pathsum.options import CHECKS, STARS, Check, Star, TorchImpl
from pathsum.problems.ctc import pose_ctc
from pathsum.problems.simple_ctc import pose_simple_ctc
from pathsum.torch._bounded import posed, unread_on
from pathsum.torch._inputs import Integers, in_frames, plain_integers, posed_at_once
from pathsum.torch._star import append_star
from pathsum.torch.paths.frames import ChainPaths, frame_batch, label_dtype


class Problem(NamedTuple):
    """A loss on a chain whose steps have no scores of their own.

    Attributes:
        pose: Makes the lattice, of targets, lengths and the blank.
        positions: Maps states (N, T) to the label of the target that their frame belongs to, -1 of none.
    """

    pose: Callable[..., ChainLattice]
    positions: Callable[[Tensor], Tensor]


def _positions_in_ctc(states: Tensor) -> Tensor:
    """The labels' states are the odd ones."""
    return torch.where(states % 2 == 1, states // 2, -1)


def _positions_in_simple_ctc(states: Tensor) -> Tensor:
    """States count the labels so far: a frame belongs to one where it makes the count greater."""
    before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)
    return torch.where(states != before, states - 1, -1)


CTC = Problem(pose_ctc, _positions_in_ctc)
SIMPLE_CTC = Problem(pose_simple_ctc, _positions_in_simple_ctc)


def ctc_paths(
    log_probs: Tensor | np.ndarray,
    targets: Integers,
    input_lengths: Integers | int | None = None,
    target_lengths: Integers | int | None = None,
    blank: int = 0,
    *,
    fused_log_softmax: bool = False,
    star: Star | None = None,
    batch_first: bool = False,
    impl: TorchImpl = "auto",
) -> ChainPaths:
    """The labellings of the frames that read as the target, once repeats are merged and blanks removed.

    Args:
        log_probs: Log-probabilities (T, N, C), or (T, C) for one sample; with ``fused_log_softmax`` logits.
        targets: Labels (N, S) or (sum of target_lengths,); (S,) for one sample.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``. A number for one sample.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``. A number for one sample.
        blank: Index of the blank class; negative counts from the end.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        star: As in ``ctc_loss``.
        batch_first: ``log_probs`` are (N, T, C).
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        The ``Paths``: ``losses``, ``loss``, ``entropy``, ``expected``, ``posteriors``, ``best``, ``k_best`` and
        ``sample`` of them.

    Raises:
        InvalidValueError: As in ``ctc_loss``.
        InvalidTypeError: As in ``ctc_loss``.

    Example:
        >>> import torch
        >>> from pathsum.torch.paths import ctc_paths
        >>> paths = ctc_paths(torch.zeros(3, 1, 2), [[1]], fused_log_softmax=True)
        >>> round(paths.entropy().exp().item(), 4)  # six, all as likely
        6.0
        >>> round(paths.best().scores.sum().exp().item(), 4)  # the probability of one
        0.125
    """
    integers = (targets, input_lengths, target_lengths)
    return chain_paths(
        "ctc_paths", CTC, log_probs, *integers, blank, fused_log_softmax=fused_log_softmax, star=star,
        batch_first=batch_first, impl=impl,
    )  # fmt: skip


def simple_ctc_paths(
    log_probs: Tensor | np.ndarray,
    targets: Integers,
    input_lengths: Integers | int | None = None,
    target_lengths: Integers | int | None = None,
    blank: int = 0,
    *,
    fused_log_softmax: bool = False,
    star: Star | None = None,
    batch_first: bool = False,
    impl: TorchImpl = "auto",
) -> ChainPaths:
    """The ways of placing the labels of a target on frames, each on one, with blanks elsewhere.

    Args:
        log_probs: As in ``ctc_paths``.
        targets: As in ``ctc_paths``.
        input_lengths: As in ``ctc_paths``.
        target_lengths: As in ``ctc_paths``.
        blank: Index of the blank class; negative counts from the end.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        star: What the label C stands for in targets, as in ``ctc_loss``: here one frame; ``None``: no such label.
        batch_first: ``log_probs`` are (N, T, C).
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        The ``Paths``, as of ``ctc_paths``.

    Raises:
        InvalidValueError: As in ``ctc_loss``.
        InvalidTypeError: As in ``ctc_loss``.

    Example:
        >>> import torch
        >>> from pathsum.torch.paths import simple_ctc_paths
        >>> paths = simple_ctc_paths(torch.zeros(3, 1, 2), [[1]], fused_log_softmax=True)
        >>> round(paths.entropy().exp().item(), 4)
        3.0
    """
    integers = (targets, input_lengths, target_lengths)
    return chain_paths(
        "simple_ctc_paths", SIMPLE_CTC, log_probs, *integers, blank, fused_log_softmax=fused_log_softmax,
        star=star, batch_first=batch_first, impl=impl,
    )  # fmt: skip


def chain_paths(
    function: str,
    problem: Problem,
    log_probs: Tensor | np.ndarray,
    targets: Integers,
    input_lengths: Integers | int | None,
    target_lengths: Integers | int | None,
    blank: int,
    *,
    fused_log_softmax: bool = False,
    star: Star | None = None,
    batch_first: bool,
    check: Check = "sync",
    known: bool = False,
    impl: str,
) -> ChainPaths:
    """The paths that a function of the chain is made of; ``known``: the integers must have values."""
    scores, frames_first, batched = in_frames(function, "log_probs", log_probs, batch_first)
    num_samples, num_frames = (scores.shape[1], scores.shape[0]) if frames_first else (scores.shape[0], scores.shape[1])
    if star is not None:
        _checks.check_option(function, "star", star, STARS)
    _checks.check_option(function, "check", check, CHECKS)
    fused_log_softmax = _checks.check_flag(function, "fused_log_softmax", fused_log_softmax)
    blank = _checks.check_blank(function, blank, scores.shape[2])
    kernels = dispatch.choose(function, scores.device.type, impl, "chain")
    num_classes = scores.shape[2] + (star is not None)
    integers = (targets, input_lengths, target_lengths)
    # A target of any length is legal; one that does not fit is infeasible.
    arrays = plain_integers(*integers, num_frames) if batched and scores.is_cpu else None
    lattice = posed_at_once(problem.pose, arrays, num_samples, num_frames, 2**62, num_classes, blank)
    if arrays is None or lattice is None:
        device = unread_on(function, check, kernels, scores, *integers)
        classes = {"num_classes": num_classes, "blank": blank}
        sizes = (num_samples, num_frames)
        batch = frame_batch(function, sizes, batched, *integers, **classes, known=known, device=device)
        arrays, lattice = batch, posed(problem.pose, batch, blank)
    labels = label_dtype(targets)
    paths = ChainPaths(function, scores, None, lattice, kernels, batched, frames_first)
    if star is not None:
        paths.scores = append_star(paths.scores, lattice.input_lengths, blank, star, logits=fused_log_softmax)
    paths.softmax, paths.label_dtype = fused_log_softmax and star is None, labels
    paths.target_lengths, paths.positions = arrays[2], problem.positions
    return paths
