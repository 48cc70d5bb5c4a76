"""Posteriors: how probable each node and each arc of a lattice is among all its paths.

Scores have the samples first, (N, T, C), unless ``batch_first=False``; results always have, and lack the axis N where
one sample was given as (T, C). Nothing here is differentiable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathsum import _checks, dispatch
from pathsum.kernels.protocol import Call, ChainOptions, GridOptions
from pathsum.lattice import ChainLattice
from pathsum.problems.asg import pose_asg
from pathsum.problems.ctc import pose_ctc
from pathsum.problems.simple_ctc import pose_simple_ctc
from pathsum.torch._batch_first import check_asg, check_asg_target, check_chain, of_samples, real_frames
from pathsum.torch._inputs import Integers, as_scores, in_batch, pose_logits
from pathsum.torch._operators import kernels_of
from pathsum.torch._ops.arrays import work_dtype


class ChainPosteriors(NamedTuple):
    """Posteriors in a chain of S' states: shares of all paths that spell the target, in the frames of each sample.

    Zero in padding and where no path exists. In every frame the nodes sum to 1, and so do the two kinds of arcs.

    Attributes:
        nodes: (N, T, S') in state s after frame t.
        stays: (N, T, S') in state s before and after frame t.
        entries: (N, T, S') in state s after frame t and in another before. The two arcs together are the node.
    """

    nodes: Tensor
    stays: Tensor
    entries: Tensor


class GridPosteriors(NamedTuple):
    """Posteriors in the grid of a transducer: shares of all walks that spell the target.

    Zero in padding and where no walk exists. The nodes of an anti-diagonal t + u sum to 1, the blanks of a frame too,
    and so do the labels of one u. Without the axis N for one sample given as (T, U+1, V).

    Attributes:
        nodes: (N, T, U+1) the walk passes through (t, u).
        blanks: (N, T, U+1) it leaves (t, u) by the blank, to the next frame.
        labels: (N, T, U) it leaves (t, u) by the label, to the next u.
    """

    nodes: Tensor
    blanks: Tensor
    labels: Tensor


class ASGPosteriors(NamedTuple):
    """Posteriors of both of ASG's lattices. Zero in padding and where no path exists.

    Attributes:
        nodes: (N, T, S) frame t belongs to label s, among all paths that stretch the target.
        stays: (N, T, S) and so does the frame before.
        entries: (N, T, S) and the frame before belongs to another label, or is none.
        classes: (N, T, C) frame t has class c, among all paths.
        transitions: (C, C) how often class j is followed by i, expected among all paths and summed over the frames
            and samples, those with a NaN score left out.
    """

    nodes: Tensor
    stays: Tensor
    entries: Tensor
    classes: Tensor
    transitions: Tensor


def ctc_posteriors(
    log_probs: Tensor | np.ndarray,
    targets: Integers,
    input_lengths: Integers | int | None = None,
    target_lengths: Integers | int | None = None,
    blank: int = 0,
    *,
    fused_log_softmax: bool = False,
    star: str | None = None,
    batch_first: bool = True,
    impl: str = "auto",
) -> ChainPosteriors:
    """How probable each state of CTC's chain is in each frame, among all paths that spell the target.

    Args:
        log_probs: Log-probabilities (N, T, C), or (T, C) for one sample; with ``fused_log_softmax`` logits.
        targets: Labels (N, S) or (sum of target_lengths,).
        input_lengths: Frames of each sample (N,), at most T; T where ``None``. A number for one sample.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``.
        blank: Index of the blank class; negative counts from the end.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        star: What the label C stands for in targets, as in ``forced_align``; ``None``: no such label.
        batch_first: ``log_probs`` are (N, T, C); where False (T, N, C). Results have the samples first in any case.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        ``nodes``, ``stays`` and ``entries`` (N, T, 2S+1), of the states blank y1 blank y2 ... yS blank: the labels are
        ``nodes[..., 1::2]``. float64 for float64 scores and float32 for all others.

    Raises:
        InvalidValueError: As in ``forced_align``.
        InvalidTypeError: As in ``forced_align``.

    Notes:
        Minus the sum of the nodes of a class is the gradient of ``ctc_loss`` with respect to its log-probability.

    Example:
        >>> import torch
        >>> from pathsum.torch import ctc_posteriors
        >>> nodes, stays, entries = ctc_posteriors(torch.zeros(1, 3, 2), [[1]])  # six paths, all as likely
        >>> (nodes[0] * 6).round().int().tolist()
        [[3, 3, 0], [1, 4, 1], [0, 3, 3]]
    """
    arguments = (log_probs, targets, input_lengths, target_lengths, blank, batch_first)
    return _chain_posteriors("ctc_posteriors", pose_ctc, arguments, fused_log_softmax, star, impl)


def simple_ctc_posteriors(
    log_probs: Tensor | np.ndarray,
    targets: Integers,
    input_lengths: Integers | int | None = None,
    target_lengths: Integers | int | None = None,
    blank: int = 0,
    *,
    fused_log_softmax: bool = False,
    batch_first: bool = True,
    impl: str = "auto",
) -> ChainPosteriors:
    """How many labels simplified CTC has emitted after each frame, among all paths that spell the target.

    Args:
        log_probs: Log-probabilities (N, T, C), or (T, C) for one sample; with ``fused_log_softmax`` logits.
        targets: Labels (N, S) or (sum of target_lengths,).
        input_lengths: Frames of each sample (N,), at most T; T where ``None``. A number for one sample.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``.
        blank: Index of the blank class; negative counts from the end.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        batch_first: ``log_probs`` are (N, T, C); where False (T, N, C). Results have the samples first in any case.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        ``nodes``, ``stays`` and ``entries`` (N, T, S+1): s labels emitted after frame t; a blank in frame t after s
        labels; label s in frame t, ``entries[..., 1:]`` being the labels' and ``entries[..., 0]`` 0.

    Raises:
        InvalidValueError: As in ``forced_align``.
        InvalidTypeError: As in ``forced_align``.

    Example:
        >>> import torch
        >>> from pathsum.torch import simple_ctc_posteriors
        >>> nodes, stays, entries = simple_ctc_posteriors(torch.zeros(1, 3, 2), [[1]])  # three paths
        >>> (entries[0, :, 1] * 3).round().int().tolist()
        [1, 1, 1]
    """
    arguments = (log_probs, targets, input_lengths, target_lengths, blank, batch_first)
    return _chain_posteriors("simple_ctc_posteriors", pose_simple_ctc, arguments, fused_log_softmax, None, impl)


def rnnt_posteriors(
    logits: Tensor,
    targets: Integers,
    logit_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int = -1,
    fused_log_softmax: bool = True,
    *,
    impl: str = "auto",
) -> GridPosteriors:
    """How probable each node and arc of the transducer's grid is, among all walks that spell the target.

    Args:
        logits: Output of the joiner (N, T, U+1, V), or (T, U+1, V) for one sample; with ``fused_log_softmax=False``
            log-probabilities.
        targets: Labels (N, U) or (sum of target_lengths,).
        logit_lengths: Frames of each sample (N,), at most T.
        target_lengths: Labels of each sample (N,), at most U.
        blank: Index of the blank class; negative counts from the end.
        fused_log_softmax: Take the log-softmax inside.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        ``nodes`` and ``blanks`` (N, T, U+1) and ``labels`` (N, T, U), float64 for float64 logits and float32 for all
        others.

    Raises:
        InvalidValueError: As in ``rnnt_loss``.
        InvalidTypeError: As in ``rnnt_loss``.

    Example:
        >>> import torch
        >>> from pathsum.torch import rnnt_posteriors
        >>> nodes, blanks, labels = rnnt_posteriors(torch.zeros(1, 3, 2, 2), [[0]], [3], [1])  # three walks
        >>> (labels[0, :, 0] * 3).round().int().tolist()
        [1, 1, 1]
    """
    fused_log_softmax = _checks.check_flag("rnnt_posteriors", "fused_log_softmax", fused_log_softmax)
    logits = as_scores(logits)
    logits, integers, batched = in_batch("rnnt_posteriors", logits, (targets, logit_lengths, target_lengths))
    lattice = pose_logits("rnnt_posteriors", logits, integers, blank)
    chosen = dispatch.select("rnnt_posteriors", logits.device.type, impl)
    call = Call((logits.detach(),), lattice, GridOptions(fused_log_softmax))
    losses, blanks, labels = kernels_of(chosen, "grid").posteriors(call)
    frame = torch.arange(logits.shape[1], device="cpu")
    label = torch.arange(logits.shape[2], device="cpu")
    real = (frame < torch.from_numpy(lattice.logit_lengths)[:, None])[:, :, None]
    real = real & (label <= torch.from_numpy(lattice.target_lengths)[:, None])[:, None, :]
    blanks, labels = (_defined(plane, losses, real, logits) for plane in (blanks, labels))
    return GridPosteriors(*of_samples(batched, blanks + labels, blanks, labels[:, :, :-1]))


def asg_posteriors(
    inputs: Tensor | np.ndarray,
    targets: Integers,
    transitions: Tensor | np.ndarray,
    input_lengths: Integers | int | None = None,
    target_lengths: Integers | int | None = None,
    *,
    start_scores: Tensor | np.ndarray | None = None,
    final_scores: Tensor | np.ndarray | None = None,
    batch_first: bool = True,
    impl: str = "auto",
) -> ASGPosteriors:
    """How probable each label is in each frame, among the paths that stretch the target and among all paths.

    Args:
        inputs: Unnormalised scores (N, T, C), or (T, C) for one sample.
        targets: Labels (N, S) or (sum of target_lengths,).
        transitions: Scores (C, C), ``transitions[i, j]`` from j to i.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``. A number for one sample.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``.
        start_scores: Scores (C,) of the first label.
        final_scores: Scores (C,) of the last label.
        batch_first: ``inputs`` are (N, T, C); where False (T, N, C). Results have the samples first in any case.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        ``nodes``, ``stays`` and ``entries`` (N, T, S), ``classes`` (N, T, C) and ``transitions`` (C, C); float64 for
        float64 inputs and float32 for all others.

    Raises:
        InvalidValueError: As in ``asg_loss``.
        InvalidTypeError: As in ``asg_loss``.

    Notes:
        The gradient of ``asg_loss`` with respect to an input is its class less the nodes of the labels of that class.

    Example:
        >>> import torch
        >>> from pathsum.torch import asg_posteriors
        >>> found = asg_posteriors(torch.zeros(1, 3, 2), [[0, 1]], torch.zeros(2, 2))
        >>> found.nodes[0].tolist(), found.classes[0].tolist()
        ([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    """
    function = "asg_posteriors"
    call = check_asg(function, inputs, transitions, input_lengths, start_scores, final_scores, batch_first, impl)
    scores, transitions, chosen = call.scores, call.transitions, call.impl
    dense, chain = pose_asg(*check_asg_target(function, call, targets, target_lengths), scores.shape[2])
    with torch.no_grad():
        target = _posteriors_of_chain(scores, chain, transitions, False, chosen)
        losses, classes, counts = kernels_of(chosen, "dense").posteriors(Call((scores, transitions), dense))
    classes = _defined(classes, losses, real_frames(call.lengths, scores)[:, :, None], scores)
    nodes, stays, entries, classes = of_samples(call.batched, *target, classes)
    return ASGPosteriors(nodes, stays, entries, classes, counts.to(work_dtype(scores)))


def _chain_posteriors(
    function: str,
    pose: Callable[..., ChainLattice],
    arguments: tuple[Any, Integers, Integers | int | None, Integers | int | None, int, bool],
    fused_log_softmax: bool,
    star: str | None,
    impl: str,
) -> ChainPosteriors:
    fused_log_softmax = _checks.check_flag(function, "fused_log_softmax", fused_log_softmax)
    scores, lattice, batched = check_chain(function, pose, *arguments, star=star, logits=fused_log_softmax)
    chosen = dispatch.select(function, scores.device.type, impl)
    found = _posteriors_of_chain(scores, lattice, None, fused_log_softmax and star is None, chosen)
    return ChainPosteriors(*of_samples(batched, *found))


def _posteriors_of_chain(
    scores: Tensor, lattice: ChainLattice, transitions: Tensor | None, logits: bool, chosen: str
) -> ChainPosteriors:
    call = Call((scores.detach(), transitions), lattice, ChainOptions(logits))
    losses, stays, entries = kernels_of(chosen, "chain").posteriors(call)
    used = torch.arange(stays.shape[2], device="cpu") < torch.from_numpy(lattice.num_states)[:, None]
    real = real_frames(lattice.input_lengths, scores)[:, :, None] & used[:, None].to(scores.device)
    stays, entries = (_defined(plane, losses, real, scores) for plane in (stays, entries))
    return ChainPosteriors(stays + entries, stays, entries)


def _defined(plane: Tensor, losses: Tensor, real: Tensor, scores: Tensor) -> Tensor:
    """Posteriors in the result's dtype, NaN where a sample has a NaN score, 0 in padding and where no path exists."""
    losses = losses.reshape(-1, *[1] * (plane.ndim - 1))
    real = real.to(plane.device)
    plane = torch.where(real & (losses < torch.inf), plane, 0)
    return torch.where(real & losses.isnan(), torch.nan, plane).to(work_dtype(scores))
