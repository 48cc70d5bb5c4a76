"""Posteriors: how probable each node and each arc of a lattice is among all its paths.

Scores have the samples first, (N, T, C), unless ``batch_first=False``; results always have, and lack the axis N where
one sample was given as (T, C). Nothing here is differentiable.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from pathsum.display import arrays, shown
from pathsum.options import Check, Star, TorchImpl
from pathsum.torch._inputs import PADDED, SINGLE, Integers
from pathsum.torch.paths.asg import both_paths
from pathsum.torch.paths.ctc import CTC, SIMPLE_CTC, chain_paths
from pathsum.torch.paths.frames import ChainPosteriors
from pathsum.torch.paths.grid import GridPosteriors
from pathsum.torch.paths.rnnt import grid_paths


@shown(arrays)
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
    star: Star | None = None,
    batch_first: bool = True,
    check: Check = "async",
    impl: TorchImpl = "auto",
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
        check: What is done about the values of integers that are on a GPU. ``"async"``: nothing waits for them; a label
            or length out of its range makes the posteriors of its sample 0. ``"sync"``: they raise, as elsewhere.
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
    paths = chain_paths(
        "ctc_posteriors", CTC, log_probs, targets, input_lengths, target_lengths, blank,
        fused_log_softmax=fused_log_softmax, star=star, batch_first=batch_first, known=True, check=check, impl=impl,
    )  # fmt: skip
    return paths.posteriors()


def simple_ctc_posteriors(
    log_probs: Tensor | np.ndarray,
    targets: Integers,
    input_lengths: Integers | int | None = None,
    target_lengths: Integers | int | None = None,
    blank: int = 0,
    *,
    fused_log_softmax: bool = False,
    star: Star | None = None,
    batch_first: bool = True,
    check: Check = "async",
    impl: TorchImpl = "auto",
) -> ChainPosteriors:
    """How many labels simplified CTC has emitted after each frame, among all paths that spell the target.

    Args:
        log_probs: Log-probabilities (N, T, C), or (T, C) for one sample; with ``fused_log_softmax`` logits.
        targets: Labels (N, S) or (sum of target_lengths,).
        input_lengths: Frames of each sample (N,), at most T; T where ``None``. A number for one sample.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``.
        blank: Index of the blank class; negative counts from the end.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        star: What the label C stands for in targets, as in ``forced_align``: here one frame; ``None``: no such label.
        batch_first: ``log_probs`` are (N, T, C); where False (T, N, C). Results have the samples first in any case.
        check: What is done about the values of integers that are on a GPU. ``"async"``: nothing waits for them; a label
            or length out of its range makes the posteriors of its sample 0. ``"sync"``: they raise, as elsewhere.
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
    paths = chain_paths(
        "simple_ctc_posteriors", SIMPLE_CTC, log_probs, targets, input_lengths, target_lengths, blank,
        fused_log_softmax=fused_log_softmax, star=star, batch_first=batch_first, known=True, check=check, impl=impl,
    )  # fmt: skip
    return paths.posteriors()


def rnnt_posteriors(
    logits: Tensor,
    targets: Integers,
    logit_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int = -1,
    fused_log_softmax: bool = True,
    *,
    check: Check = "async",
    impl: TorchImpl = "auto",
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
        check: What is done about the values of integers that are on a GPU. ``"async"``: nothing waits for them; a label
            or length out of its range makes the posteriors of its sample 0. ``"sync"``: they raise, as elsewhere.
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
    paths = grid_paths(
        "rnnt_posteriors", logits, targets, logit_lengths, target_lengths, blank, layouts=(PADDED, SINGLE),
        fused_log_softmax=fused_log_softmax, check=check, impl=impl,
    )  # fmt: skip
    return paths.posteriors()


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
    check: Check = "async",
    impl: TorchImpl = "auto",
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
        check: What is done about the values of integers that are on a GPU. ``"async"``: nothing waits for them; a label
            or length out of its range makes the posteriors of its sample 0. ``"sync"``: they raise, as elsewhere.
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
    every, target = both_paths(
        "asg_posteriors", inputs, targets, transitions, input_lengths, target_lengths, start_scores, final_scores,
        batch_first=batch_first, known=True, check=check, impl=impl,
    )  # fmt: skip
    return ASGPosteriors(*target.posteriors(), *every.posteriors())
