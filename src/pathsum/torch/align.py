"""Best paths, posteriors and greedy decoding: the same lattices as the losses, asked other questions.

Everything here has samples first, ``(N, T, C)``, as ``forced_align`` has them. Of several best paths one is returned
by a fixed rule: traced from its end, a path stays where it is as long as it can, so that every label begins as early
as the best score allows (``forced_align`` has the details). Nothing here is differentiable but the scores that
``forced_align`` and ``simple_ctc_align`` return.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathsum import _checks, dispatch
from pathsum.errors import InvalidValueError
from pathsum.kernels.numba import chain_best_path, dense_best_path, grid_best_path, posteriors
from pathsum.kernels.numba.rows import strided
from pathsum.kernels.protocol import ChainPath
from pathsum.kernels.reference import chain_best_path as reference_chain
from pathsum.kernels.reference import dense_best_path as reference_dense
from pathsum.kernels.reference import grid_best_path as reference_grid
from pathsum.kernels.reference import posteriors as reference_posteriors
from pathsum.lattice import ChainLattice, DenseLattice, GridLattice
from pathsum.problems.asg import pose_asg
from pathsum.problems.ctc import pose_ctc
from pathsum.problems.simple_ctc import pose_simple_ctc
from pathsum.torch._ops import _array, _rows, _table
from pathsum.torch._ops import work_dtype as _work_dtype
from pathsum.torch.losses import (
    Integers,
    _check_table,
    _dtype,
    _integers,
    _on_device,
    _pose_grid,
    _shape,
    _with_ends,
)


class Alignment(NamedTuple):
    """A path through the frames of each sample.

    Attributes:
        paths: (N, T) class of each frame; -1 in padding, and in all frames of a sample that has no path.
        scores: (N, T) score of that class in that frame; 0 in padding, -inf in the frames of a sample that has no
            path and NaN in those of a sample with a NaN score, so that the sum over frames is the path's own score.
    """

    paths: Tensor
    scores: Tensor


class TokenSpan(NamedTuple):
    """A token and the frames it takes.

    Attributes:
        token: Its class.
        start: Its first frame.
        end: The frame after its last.
        score: Mean over its frames of the scores given.
    """

    token: int
    start: int
    end: int
    score: float

    def seconds(self, seconds_per_frame: float) -> tuple[float, float]:
        """Start and end in seconds, frame t lasting from t to t + 1 times ``seconds_per_frame``."""
        return self.start * seconds_per_frame, self.end * seconds_per_frame


class RNNTAlignment(NamedTuple):
    """The best walk of each sample.

    Attributes:
        frames: (N, U) frame in which each label is emitted; -1 in padding, and throughout where there is no walk.
        scores: (N, U) log-probability of each label where it is emitted; 0 in padding, -inf where there is no walk.
        log_probs: (N,) log-probability of the whole walk, its blanks included.
    """

    frames: Tensor
    scores: Tensor
    log_probs: Tensor


class ASGAlignment(NamedTuple):
    """The best path of each sample that stretches its target.

    Attributes:
        paths: (N, T) class of each frame; -1 in padding, and in all frames of a sample that has no path.
        scores: (N, T) score of that class in that frame and of the transition to it, start and final scores
            included; 0 in padding, -inf or NaN where there is no path. The sum over frames is the path's score.
        positions: (N, T) which of the target's labels the frame belongs to, from 0; -1 as in ``paths``.
    """

    paths: Tensor
    scores: Tensor
    positions: Tensor


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
    and so do the labels of one u.

    Attributes:
        nodes: (N, T, U+1) the walk passes through (t, u).
        blanks: (N, T, U+1) it leaves (t, u) by the blank, to the next frame.
        labels: (N, T, U) it leaves (t, u) by the label, to the next u.
    """

    nodes: Tensor
    blanks: Tensor
    labels: Tensor


class Decoded(NamedTuple):
    """What was decoded.

    Attributes:
        tokens: (N, L) classes, -1 in padding; L is the greatest length.
        lengths: (N,) how many tokens.
        frames: (N, L) frame in which each begins; -1 in padding.
        scores: (N, L) log-probability of each in that frame; 0 in padding.
    """

    tokens: Tensor
    lengths: Tensor
    frames: Tensor
    scores: Tensor


def forced_align(
    log_probs: Tensor,
    targets: Integers,
    input_lengths: Integers | None = None,
    target_lengths: Integers | None = None,
    blank: int = 0,
    *,
    impl: str = "auto",
) -> Alignment:
    """The most probable CTC path that spells the target: the class of every frame.

    Args:
        log_probs: Log-probabilities (N, T, C). float32, float64, bfloat16 or float16, any strides.
        targets: Labels (N, S), or (sum of target_lengths,) one target after another. int32 or int64, a tensor on any
            device or a list. Entries beyond a target's length are never read.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``.
        blank: Index of the blank class; negative counts from the end.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"reference"``.

    Returns:
        ``paths`` (N, T), in the integer dtype of ``targets`` where they are a tensor, and ``scores`` (N, T), in the
        dtype of ``log_probs``, differentiable with respect to them.

    Raises:
        InvalidValueError: (a ValueError) a label out of range or equal to the blank, a length out of range, shapes
            that do not match; the message names argument, rule, value and sample.
        InvalidTypeError: (a TypeError) a dtype that is not accepted.

    Notes:
        Signature and results are torchaudio's, for any number of samples of any lengths. Two differences. A target
        that does not fit in its frames, or fits only at -inf, is no error: its path is -1 and its scores -inf, the
        other samples are untouched. And where several paths are best, torchaudio may return one that is not: below.

        Ties: of the two states in which a path may end, the last label and the blank behind it, the label. Then,
        going back from the end, the path stays in its state rather than having stepped from the one before, and
        stepped rather than skipped over a blank. This is torchaudio's rule but for one case: where the step and the
        skip are equal and better than to stay, torchaudio 2.11 stays, and its path is not a best one.

        Cost: O(T*L) time in float64 and O((T*L)^(2/3)) memory: no back-pointers are kept, but the scores of all
        states every so many frames, from which each stretch of frames is solved again around the path.
        Deterministic for any number of threads.

    Example:
        >>> import torch
        >>> from pathsum.torch import forced_align
        >>> probs = torch.tensor([[[0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.1, 0.7]]])
        >>> paths, scores = forced_align(probs.log(), [[1, 2]])
        >>> paths.tolist(), round(scores.sum().exp().item(), 3)
        ([[1, 0, 2]], 0.336)
    """
    return _align("forced_align", pose_ctc, log_probs, targets, input_lengths, target_lengths, blank, impl)


def simple_ctc_align(
    log_probs: Tensor,
    targets: Integers,
    input_lengths: Integers | None = None,
    target_lengths: Integers | None = None,
    blank: int = 0,
    *,
    impl: str = "auto",
) -> Alignment:
    """The most probable path of simplified CTC: each label on one frame of its own, blanks elsewhere.

    Args:
        log_probs: Log-probabilities (N, T, C).
        targets: Labels (N, S) or (sum of target_lengths,).
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``.
        blank: Index of the blank class; negative counts from the end.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"reference"``.

    Returns:
        ``paths`` and ``scores`` (N, T) as in ``forced_align``.

    Raises:
        InvalidValueError: As in ``forced_align``.
        InvalidTypeError: As in ``forced_align``.

    Notes:
        Ties, cost and the treatment of targets that do not fit are those of ``forced_align``: every label is emitted
        as early as the best score allows.

    Example:
        >>> import torch
        >>> from pathsum.torch import simple_ctc_align
        >>> probs = torch.tensor([[[0.1, 0.9], [0.3, 0.7], [0.8, 0.2]]])
        >>> simple_ctc_align(probs.log(), [[1, 1]]).paths.tolist()
        [[1, 1, 0]]
    """
    return _align("simple_ctc_align", pose_simple_ctc, log_probs, targets, input_lengths, target_lengths, blank, impl)


def token_spans(path: Tensor, scores: Tensor, blank: int | None = 0) -> list[TokenSpan]:
    """The tokens of one path with their frames: runs of a class merged, blanks left out.

    Args:
        path: (T,) class of each frame, such as ``forced_align(...).paths[n]``. Frames of -1 belong to no token.
        scores: (T,) score of each frame, such as ``forced_align(...).scores[n]``.
        blank: The class to leave out; ``None`` leaves none out.

    Returns:
        A ``TokenSpan`` for each token, in order: token, start, end (the frame after the last) and score, the mean of
        ``scores`` over its frames. Of log-probabilities it is the logarithm of their geometric mean: ``exp(score)``
        is a confidence in [0, 1]. Given ``scores.exp()`` it is the mean probability, as torchaudio's tutorials have
        it.

    Raises:
        InvalidValueError: (a ValueError) path or scores are not (T,), or not of the same length.

    Notes:
        The blank is written as in the path, not counted from the end. ``TokenSpan.seconds`` turns frames to seconds.

    Example:
        >>> import torch
        >>> from pathsum.torch import token_spans
        >>> path, scores = torch.tensor([0, 3, 3, 0, 3, -1]), torch.tensor([-0.1, -0.5, -0.25, 0.0, -1.0, 0.0])
        >>> for span in token_spans(path, scores):
        ...     print(span.token, span.seconds(0.02), span.score)
        3 (0.02, 0.06) -0.375
        3 (0.08, 0.1) -1.0
    """
    for name, value in (("path", path), ("scores", scores)):
        if value.ndim != 1 or len(value) != len(path):
            raise InvalidValueError("token_spans", name, f"have shape (T,) = ({len(path)},)", tuple(value.shape))
    classes = path.detach().cpu().numpy()
    values = scores.detach().to("cpu", torch.float64).numpy()
    bounds = [0, *(np.flatnonzero(np.diff(classes)) + 1), len(classes)]
    return [
        TokenSpan(int(classes[start]), int(start), int(end), float(values[start:end].mean()))
        for start, end in pairwise(bounds)
        if start < end and classes[start] not in (-1, blank)
    ]


def rnnt_align(
    logits: Tensor,
    targets: Integers,
    logit_lengths: Integers,
    target_lengths: Integers,
    blank: int = -1,
    fused_log_softmax: bool = True,
    *,
    impl: str = "auto",
) -> RNNTAlignment:
    """The most probable walk of a transducer that spells the target: the frame of every label.

    Args:
        logits: Output of the joiner (N, T, U+1, V); with ``fused_log_softmax=False`` log-probabilities.
        targets: Labels (N, U), or (sum of target_lengths,) one target after another.
        logit_lengths: Frames of each sample (N,), at most T.
        target_lengths: Labels of each sample (N,), at most U.
        blank: Index of the blank class; negative counts from the end.
        fused_log_softmax: Take the log-softmax inside.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"reference"``.

    Returns:
        ``frames`` (N, U), ``scores`` (N, U) and ``log_probs`` (N,), the scores float64 for float64 logits and float32
        for all others.

    Raises:
        InvalidValueError: As in ``rnnt_loss``.
        InvalidTypeError: As in ``rnnt_loss``.

    Notes:
        Ties: every label is emitted in the earliest frame that the best score allows. A sample without frames, or
        whose every walk is impossible, has frames -1 and scores -inf.

        Where the joiner's blank and label log-probabilities are at hand as two planes (N, T, U+1), give
        ``torch.stack([blanks, labels], 3)`` with targets of ones, ``blank=0`` and ``fused_log_softmax=False``.

    Example:
        >>> import torch
        >>> from pathsum.torch import rnnt_align
        >>> probs = torch.tensor([[[[0.9, 0.1], [0.5, 0.5]], [[0.2, 0.8], [0.7, 0.3]]]])  # 2 frames, 1 label
        >>> frames, scores, log_probs = rnnt_align(probs.log(), [[1]], [2], [1], blank=0)
        >>> frames.tolist(), [round(p, 3) for p in log_probs.exp().tolist()]
        ([[1]], [0.504])
    """
    lattice = _pose_padded_grid("rnnt_align", logits, targets, logit_lengths, target_lengths, blank)
    chosen = dispatch.select("rnnt_align", logits.device.type, impl)
    num_labels = logits.shape[2] - 1
    if chosen == "numba":
        found = grid_best_path.best_path(
            _rows(logits, lattice),
            logits.shape[3],
            lattice,
            num_labels=num_labels,
            logits=fused_log_softmax,
            num_threads=torch.get_num_threads(),
        )
        log_probs, frames, scores = map(torch.from_numpy, found)
    else:
        own = _on_device(lattice, logits.device)
        with torch.no_grad():
            found = reference_grid.best_path(logits.detach(), own, num_labels=num_labels, logits=fused_log_softmax)
        log_probs, frames, scores = found
    return RNNTAlignment(frames, scores.to(_work_dtype(logits)), log_probs.to(_work_dtype(logits)))


def asg_align(
    inputs: Tensor,
    targets: Integers,
    transitions: Tensor,
    input_lengths: Integers | None = None,
    target_lengths: Integers | None = None,
    *,
    start_scores: Tensor | None = None,
    final_scores: Tensor | None = None,
    impl: str = "auto",
) -> ASGAlignment:
    """The best path of ASG that stretches the target: the label of every frame.

    Args:
        inputs: Unnormalised scores (N, T, C).
        targets: Labels (N, S) or (sum of target_lengths,).
        transitions: Scores (C, C), ``transitions[i, j]`` from j to i.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``.
        start_scores: Scores (C,) of the first label.
        final_scores: Scores (C,) of the last label.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"reference"``.

    Returns:
        ``paths``, ``scores`` and ``positions`` (N, T).

    Raises:
        InvalidValueError: As in ``asg_loss``.
        InvalidTypeError: As in ``asg_loss``.

    Notes:
        Note that the samples come first, as everywhere here, and not the frames as in ``asg_loss``. Ties: every label
        begins as early as the best score allows. A target longer than its input has no path, as has an empty one with
        an input that is not. Cost: as of ``forced_align``.

    Example:
        >>> import torch
        >>> from pathsum.torch import asg_align
        >>> inputs = torch.tensor([[[2.0, 0.0], [1.0, 0.0], [0.0, 2.0]]])
        >>> asg_align(inputs, [[0, 1]], torch.zeros(2, 2)).paths.tolist()
        [[0, 0, 1]]
    """
    scores, batch, chosen = _check_asg(
        "asg_align", inputs, targets, transitions, input_lengths, target_lengths, start_scores, final_scores, impl
    )
    lattice = pose_asg(*batch, scores.shape[2])[1]
    found = _chain_best_path(scores, lattice, transitions, chosen)
    paths = _labels(found.states, lattice)
    dtype = targets.dtype if isinstance(targets, Tensor) else torch.int64
    frame_scores = _with_transitions(scores, transitions, paths, found.log_probs, lattice.input_lengths)
    return ASGAlignment(paths.to(dtype), frame_scores, found.states)


def asg_viterbi(
    inputs: Tensor,
    transitions: Tensor,
    input_lengths: Integers | None = None,
    *,
    start_scores: Tensor | None = None,
    final_scores: Tensor | None = None,
    impl: str = "auto",
) -> Alignment:
    """The best path of ASG among all: decoding without a target, lexicon or language model.

    Args:
        inputs: Unnormalised scores (N, T, C).
        transitions: Scores (C, C), ``transitions[i, j]`` from j to i.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        start_scores: Scores (C,) of the first label.
        final_scores: Scores (C,) of the last label.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"reference"``.

    Returns:
        ``paths`` (N, T), and ``scores`` (N, T) of each class in its frame and of the transition to it.

    Raises:
        InvalidValueError: (a ValueError) a length out of range, a wrong shape.
        InvalidTypeError: (a TypeError) a dtype or a device that is not accepted.

    Notes:
        Note that the samples come first, and not the frames as in ``asg_loss``. ``token_spans(path, scores,
        blank=None)`` merges the runs. Of several best paths the one whose last class is the lowest, then the one
        before it, and so on. Cost: O(T*C*C) time and O(T*C) memory a sample.

    Example:
        >>> import torch
        >>> from pathsum.torch import asg_viterbi
        >>> inputs = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [2.0, 0.0]]])
        >>> asg_viterbi(inputs, torch.tensor([[0.0, -1.0], [-1.0, 0.0]])).paths.tolist()
        [[0, 0, 0]]
    """
    scores, lengths, chosen = _check_dense(
        "asg_viterbi", inputs, transitions, input_lengths, start_scores, final_scores, impl
    )
    lattice = DenseLattice(input_lengths=lengths, num_states=scores.shape[2])
    if chosen == "numba":
        found = dense_best_path.best_path(
            strided(*_array(scores)),
            scores.shape[2],
            lattice,
            _table(transitions, scores),
            num_frames=scores.shape[1],
            num_threads=torch.get_num_threads(),
        )
        log_probs, paths = map(torch.from_numpy, found)
    else:
        with torch.no_grad():
            log_probs, paths = reference_dense.best_path(
                scores.detach(), _on_device(lattice, scores.device), transitions.detach()
            )
    return Alignment(paths, _with_transitions(scores, transitions, paths, log_probs, lengths))


def asg_posteriors(
    inputs: Tensor,
    targets: Integers,
    transitions: Tensor,
    input_lengths: Integers | None = None,
    target_lengths: Integers | None = None,
    *,
    start_scores: Tensor | None = None,
    final_scores: Tensor | None = None,
    impl: str = "auto",
) -> ASGPosteriors:
    """How probable each label is in each frame, among the paths that stretch the target and among all paths.

    Args:
        inputs: Unnormalised scores (N, T, C).
        targets: Labels (N, S) or (sum of target_lengths,).
        transitions: Scores (C, C), ``transitions[i, j]`` from j to i.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``.
        start_scores: Scores (C,) of the first label.
        final_scores: Scores (C,) of the last label.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"reference"``.

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
    scores, batch, chosen = _check_asg(
        "asg_posteriors", inputs, targets, transitions, input_lengths, target_lengths, start_scores, final_scores, impl
    )
    dense, chain = pose_asg(*batch, scores.shape[2])
    with torch.no_grad():
        target = _posteriors_of_chain(scores, chain, transitions, False, chosen)
        if chosen == "numba":
            found = posteriors.dense_posteriors(
                strided(*_array(scores)),
                scores.shape[2],
                dense,
                _table(transitions, scores),
                num_frames=scores.shape[1],
                num_threads=torch.get_num_threads(),
            )
            losses, classes, counts = map(torch.from_numpy, found)
        else:
            own = _on_device(dense, scores.device)
            losses, classes, counts = reference_posteriors.dense_posteriors(scores.detach(), own, transitions.detach())
    classes = _defined(classes, losses, _real(batch.input_lengths, scores)[:, :, None], scores)
    return ASGPosteriors(*target, classes, counts.to(_work_dtype(scores)))


def ctc_posteriors(
    log_probs: Tensor,
    targets: Integers,
    input_lengths: Integers | None = None,
    target_lengths: Integers | None = None,
    blank: int = 0,
    *,
    fused_log_softmax: bool = False,
    impl: str = "auto",
) -> ChainPosteriors:
    """How probable each state of CTC's chain is in each frame, among all paths that spell the target.

    Args:
        log_probs: Log-probabilities (N, T, C); with ``fused_log_softmax`` logits.
        targets: Labels (N, S) or (sum of target_lengths,).
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``.
        blank: Index of the blank class; negative counts from the end.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"reference"``.

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
    arguments = (log_probs, targets, input_lengths, target_lengths, blank, fused_log_softmax, impl)
    return _chain_posteriors("ctc_posteriors", pose_ctc, *arguments)


def simple_ctc_posteriors(
    log_probs: Tensor,
    targets: Integers,
    input_lengths: Integers | None = None,
    target_lengths: Integers | None = None,
    blank: int = 0,
    *,
    fused_log_softmax: bool = False,
    impl: str = "auto",
) -> ChainPosteriors:
    """How many labels simplified CTC has emitted after each frame, among all paths that spell the target.

    Args:
        log_probs: Log-probabilities (N, T, C); with ``fused_log_softmax`` logits.
        targets: Labels (N, S) or (sum of target_lengths,).
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        target_lengths: Labels of each sample (N,), at most S; S where ``None``.
        blank: Index of the blank class; negative counts from the end.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"reference"``.

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
    arguments = (log_probs, targets, input_lengths, target_lengths, blank, fused_log_softmax, impl)
    return _chain_posteriors("simple_ctc_posteriors", pose_simple_ctc, *arguments)


def rnnt_posteriors(
    logits: Tensor,
    targets: Integers,
    logit_lengths: Integers,
    target_lengths: Integers,
    blank: int = -1,
    fused_log_softmax: bool = True,
    *,
    impl: str = "auto",
) -> GridPosteriors:
    """How probable each node and arc of the transducer's grid is, among all walks that spell the target.

    Args:
        logits: Output of the joiner (N, T, U+1, V); with ``fused_log_softmax=False`` log-probabilities.
        targets: Labels (N, U) or (sum of target_lengths,).
        logit_lengths: Frames of each sample (N,), at most T.
        target_lengths: Labels of each sample (N,), at most U.
        blank: Index of the blank class; negative counts from the end.
        fused_log_softmax: Take the log-softmax inside.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"`` or ``"reference"``.

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
    lattice = _pose_padded_grid("rnnt_posteriors", logits, targets, logit_lengths, target_lengths, blank)
    chosen = dispatch.select("rnnt_posteriors", logits.device.type, impl)
    if chosen == "numba":
        losses, blanks, labels = map(
            torch.from_numpy,
            posteriors.grid_posteriors(
                _rows(logits, lattice),
                logits.shape[3],
                lattice,
                num_frames=logits.shape[1],
                num_labels=logits.shape[2] - 1,
                logits=fused_log_softmax,
                num_threads=torch.get_num_threads(),
            ),
        )
    else:
        own = _on_device(lattice, logits.device)
        losses, blanks, labels = reference_posteriors.grid_posteriors(logits.detach(), own, logits=fused_log_softmax)
    frame = torch.arange(logits.shape[1])
    label = torch.arange(logits.shape[2])
    real = (frame < torch.from_numpy(lattice.logit_lengths)[:, None])[:, :, None]
    real = real & (label <= torch.from_numpy(lattice.target_lengths)[:, None])[:, None, :]
    blanks, labels = (_defined(plane, losses, real, logits) for plane in (blanks, labels))
    return GridPosteriors(blanks + labels, blanks, labels[:, :, :-1])


def ctc_greedy_decode(log_probs: Tensor, input_lengths: Integers | None = None, blank: int = 0) -> Decoded:
    """The most probable class of every frame, runs merged and blanks removed.

    Args:
        log_probs: Log-probabilities, or any scores, (N, T, C).
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        blank: Index of the blank class; negative counts from the end.

    Returns:
        ``tokens``, ``lengths``, ``frames`` and ``scores``, on the device of ``log_probs``.

    Raises:
        InvalidValueError: (a ValueError) a length or the blank out of range, a wrong shape.
        InvalidTypeError: (a TypeError) a dtype that is not accepted.

    Notes:
        Of equal classes the lowest. This is the best path of CTC, which need not spell the most probable target.

    Example:
        >>> import torch
        >>> from pathsum.torch import ctc_greedy_decode
        >>> probs = torch.tensor([[[0.2, 0.8], [0.3, 0.7], [0.9, 0.1], [0.4, 0.6]]])
        >>> tokens, lengths, frames, scores = ctc_greedy_decode(probs.log())
        >>> tokens.tolist(), frames.tolist()
        ([[1, 1]], [[0, 3]])
    """
    function = "ctc_greedy_decode"
    _checks.check_scores(function, "log_probs", _dtype(log_probs), _shape(log_probs), ("(N, T, C)",))
    num_samples, num_frames, num_classes = log_probs.shape
    blank = _checks.check_blank(function, blank, num_classes)
    lengths = _lengths(function, "input_lengths", input_lengths, num_samples, num_frames).to(log_probs.device)
    scores, classes = log_probs.detach().max(2)
    before = torch.cat([torch.full_like(classes[:, :1], blank), classes[:, :-1]], 1)
    real = torch.arange(num_frames, device=log_probs.device) < lengths[:, None]
    begins = real & (classes != blank) & (classes != before)
    sample, frame = begins.nonzero(as_tuple=True)
    return _pack(sample, classes[sample, frame], frame, scores[sample, frame], num_samples)


def rnnt_greedy_decode(
    encoder_out: Tensor,
    encoder_lengths: Integers | None,
    predict: Callable[[Tensor, Any], tuple[Tensor, Any]],
    join: Callable[[Tensor, Tensor], Tensor],
    blank: int,
    *,
    max_symbols: int = 10,
    state_axis: int = 0,
) -> Decoded:
    """Greedy decoding of a transducer, all samples at once: in every node the most probable class.

    Args:
        encoder_out: Output of the encoder (N, T, H).
        encoder_lengths: Frames of each sample (N,), at most T; T where ``None``.
        predict: The predictor, one step: ``predict(tokens, state) -> (output, state)``, of tokens (N,), int64, to an
            output (N, P). The first call has the blank for tokens and ``None`` for state. A state is a tensor, or
            tuples, lists and dicts of tensors.
        join: The joiner: ``join(frames, outputs) -> logits``, of (N, H) and (N, P) to (N, V).
        blank: Index of the blank among the V classes, from 0: how many there are is not known at the first call.
        max_symbols: After so many labels in one frame the next frame is taken without a blank.
        state_axis: Axis of the samples in the tensors of a state: 1 for ``torch.nn.LSTM`` and ``GRU``.

    Returns:
        ``tokens``, ``lengths``, ``frames`` and ``scores`` (log-softmax of the logits), on the encoder's device.

    Raises:
        InvalidValueError: (a ValueError) a length or the blank out of range, a wrong shape.
        InvalidTypeError: (a TypeError) a dtype that is not accepted.

    Notes:
        Every step advances each sample by a frame or by a label: at most ``T + (labels)`` calls of ``join``, and as
        many of ``predict`` as there are steps in which some sample emits a label. Runs without gradients.

    Example:
        >>> import torch
        >>> from pathsum.torch import rnnt_greedy_decode
        >>> heard = torch.tensor([[[0.0, 3.0, 0.0], [9.0, 0.0, 0.0], [0.0, 0.0, 3.0]]])  # blank is 0
        >>> def predict(tokens, state):  # a label is not said twice
        ...     return -9.0 * torch.nn.functional.one_hot(tokens, 3) * (tokens > 0)[:, None], state
        >>> tokens, lengths, frames, scores = rnnt_greedy_decode(heard, None, predict, torch.add, blank=0)
        >>> tokens.tolist(), frames.tolist()
        ([[1, 2]], [[0, 2]])
    """
    function = "rnnt_greedy_decode"
    _checks.check_scores(function, "encoder_out", _dtype(encoder_out), _shape(encoder_out), ("(N, T, H)",))
    for name, value, least in (("blank", blank, 0), ("max_symbols", max_symbols, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidValueError(function, name, f"be an int, at least {least}", value)
    num_samples, num_frames, _ = encoder_out.shape
    lengths = _lengths(function, "encoder_lengths", encoder_lengths, num_samples, num_frames).to(encoder_out.device)
    batch = torch.arange(num_samples, device=encoder_out.device)
    frame, in_frame = torch.zeros_like(lengths), torch.zeros_like(lengths)
    emitted = [(batch[:0], batch[:0], batch[:0], encoder_out.new_empty(0))]
    with torch.no_grad():
        output, state = predict(torch.full_like(lengths, blank), None)
        while bool((frame < lengths).any()):
            logits = join(encoder_out[batch, frame.clamp(max=num_frames - 1)], output)
            scores, classes = logits.log_softmax(1).max(1)
            writes = (frame < lengths) & (classes != blank)
            emitted.append((batch[writes], classes[writes], frame[writes], scores[writes].to(encoder_out.dtype)))
            in_frame = torch.where(writes, in_frame + 1, 0)
            advances = ~writes | (in_frame == max_symbols)
            frame, in_frame = torch.where(advances, frame + 1, frame), torch.where(advances, 0, in_frame)
            if bool(writes.any()):
                new_output, new_state = predict(torch.where(writes, classes, blank), state)
                output = torch.where(writes[:, None], new_output, output)
                state = _choose(writes, new_state, state, state_axis)
    sample, tokens, frames, scores = map(torch.cat, zip(*emitted, strict=True))
    return _pack(sample, tokens, frames, scores, num_samples)


def _choose(mask: Tensor, new: Any, old: Any, axis: int) -> Any:
    """The new state for the samples of the mask, the old one for the others."""
    if isinstance(new, Tensor):
        shape = [1] * new.ndim
        shape[axis] = -1
        return torch.where(mask.reshape(shape), new, old)
    if isinstance(new, dict):
        return {name: _choose(mask, value, old[name], axis) for name, value in new.items()}
    if isinstance(new, (tuple, list)):
        chosen = [_choose(mask, *values, axis) for values in zip(new, old, strict=True)]
        return type(new)(*chosen) if hasattr(new, "_fields") else type(new)(chosen)
    return new


def _pack(sample: Tensor, tokens: Tensor, frames: Tensor, scores: Tensor, num_samples: int) -> Decoded:
    """Tokens in the order in which each sample has them, the samples in any order, as padded rows."""
    order = torch.sort(sample, stable=True).indices
    sample, tokens, frames, scores = sample[order], tokens[order], frames[order], scores[order]
    lengths = torch.bincount(sample, minlength=num_samples)
    position = torch.arange(len(sample), device=sample.device) - (lengths.cumsum(0) - lengths)[sample]
    shape = (num_samples, int(lengths.max()) if num_samples else 0)
    padded = [tokens.new_full(shape, -1), frames.new_full(shape, -1), scores.new_zeros(shape)]
    for row, values in zip(padded, (tokens, frames, scores), strict=True):
        row[sample, position] = values
    return Decoded(padded[0], lengths, padded[1], padded[2])


def _align(
    function: str,
    pose: Callable[..., ChainLattice],
    log_probs: Tensor,
    targets: Integers,
    input_lengths: Integers | None,
    target_lengths: Integers | None,
    blank: int,
    impl: str,
) -> Alignment:
    lattice = _pose_chain(function, pose, log_probs, targets, input_lengths, target_lengths, blank)
    found = _chain_best_path(log_probs, lattice, None, dispatch.select(function, log_probs.device.type, impl))
    dtype = targets.dtype if isinstance(targets, Tensor) else torch.int64
    return Alignment(_labels(found.states, lattice).to(dtype), _frame_scores(log_probs, found, lattice))


def _chain_best_path(scores: Tensor, lattice: ChainLattice, transitions: Tensor | None, chosen: str) -> ChainPath:
    """The best path, as tensors on the scores' device."""
    if chosen == "numba":
        found = chain_best_path.best_path(
            strided(*_array(scores)),
            scores.shape[2],
            lattice,
            None if transitions is None else _table(transitions, scores),
            num_frames=scores.shape[1],
            num_threads=torch.get_num_threads(),
        )
        return ChainPath(*map(torch.from_numpy, found))
    with torch.no_grad():
        return reference_chain.best_path(scores.detach(), _on_device(lattice, scores.device), transitions)


def _labels(states: Tensor, lattice: ChainLattice) -> Tensor:
    """(N, T) class that the arc into each state emits; -1 where there is no state."""
    before = torch.cat([torch.full_like(states[:, :1], lattice.start_state), states[:, :-1]], 1)
    stay, step = (
        torch.from_numpy(labels).to(states.device).gather(1, states.clamp(min=0))
        for labels in (lattice.stay_labels, lattice.step_labels)
    )
    return torch.where(states < 0, -1, torch.where(states == before, stay, step))


def _frame_scores(scores: Tensor, found: ChainPath, lattice: ChainLattice) -> Tensor:
    """(N, T) score of each frame's class, or what stands for it, differentiable by the scores."""
    labels = _labels(found.states, lattice)
    own = scores.gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0]
    instead = torch.where(_real(lattice.input_lengths, scores), found.log_probs[:, None].to(scores.dtype), 0)
    return torch.where(labels >= 0, own, instead)


def _chain_posteriors(
    function: str,
    pose: Callable[..., ChainLattice],
    log_probs: Tensor,
    targets: Integers,
    input_lengths: Integers | None,
    target_lengths: Integers | None,
    blank: int,
    fused_log_softmax: bool,
    impl: str,
) -> ChainPosteriors:
    lattice = _pose_chain(function, pose, log_probs, targets, input_lengths, target_lengths, blank)
    return _posteriors_of_chain(
        log_probs, lattice, None, fused_log_softmax, dispatch.select(function, log_probs.device.type, impl)
    )


def _posteriors_of_chain(
    scores: Tensor, lattice: ChainLattice, transitions: Tensor | None, logits: bool, chosen: str
) -> ChainPosteriors:
    if chosen == "numba":
        found = posteriors.chain_posteriors(
            strided(*_array(scores)),
            scores.shape[2],
            lattice,
            None if transitions is None else _table(transitions, scores),
            num_frames=scores.shape[1],
            logits=logits,
            num_threads=torch.get_num_threads(),
        )
        losses, stays, entries = map(torch.from_numpy, found)
    else:
        own = _on_device(lattice, scores.device)
        losses, stays, entries = reference_posteriors.chain_posteriors(scores.detach(), own, transitions, logits=logits)
    used = torch.arange(stays.shape[2]) < torch.from_numpy(lattice.num_states)[:, None]
    real = _real(lattice.input_lengths, scores)[:, :, None] & used[:, None].to(scores.device)
    stays, entries = (_defined(plane, losses, real, scores) for plane in (stays, entries))
    return ChainPosteriors(stays + entries, stays, entries)


def _check_asg(
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
    scores, lengths, chosen = _check_dense(
        function, inputs, transitions, input_lengths, start_scores, final_scores, impl
    )
    return scores, _batch(function, scores, targets, torch.from_numpy(lengths), target_lengths, None), chosen


def _check_dense(
    function: str,
    inputs: Tensor,
    transitions: Tensor,
    input_lengths: Integers | None,
    start_scores: Tensor | None,
    final_scores: Tensor | None,
    impl: str,
) -> tuple[Tensor, np.ndarray, str]:
    """The scores with those of the ends added, the lengths, and the implementation."""
    _checks.check_scores(function, "inputs", _dtype(inputs), _shape(inputs), ("(N, T, C)",))
    _check_table(function, "transitions", transitions, inputs, "(C, C)")
    lengths = _lengths(function, "input_lengths", input_lengths, *inputs.shape[:2]).numpy()
    for name, ends in (("start_scores", start_scores), ("final_scores", final_scores)):
        if ends is not None:
            _check_table(function, name, ends, inputs, "(C,)")
    if start_scores is not None or final_scores is not None:
        inputs = _with_ends(inputs.to(_work_dtype(inputs)), lengths, start_scores, final_scores)
    return inputs, lengths, dispatch.select(function, inputs.device.type, impl)


def _with_transitions(
    scores: Tensor, transitions: Tensor, paths: Tensor, log_probs: Tensor, input_lengths: np.ndarray
) -> Tensor:
    """(N, T) score of each frame's class and of the transition to it, differentiable by both."""
    labels = paths.clamp(min=0)
    own = scores.to(_work_dtype(scores)).gather(2, labels[:, :, None])[:, :, 0]
    moves = transitions.to(own.dtype)[labels[:, 1:], labels[:, :-1]]
    moves = torch.cat([torch.zeros_like(own[:, :1]), moves], 1)
    instead = torch.where(_real(input_lengths, scores), log_probs[:, None].to(own.dtype), 0)
    return torch.where(paths >= 0, own + moves, instead)


def _defined(plane: Tensor, losses: Tensor, real: Tensor, scores: Tensor) -> Tensor:
    """Posteriors in the result's dtype, NaN where a sample has a NaN score, 0 in padding and where no path exists."""
    losses = losses.reshape(-1, *[1] * (plane.ndim - 1))
    real = real.to(plane.device)
    plane = torch.where(real & (losses < torch.inf), plane, 0)
    return torch.where(real & losses.isnan(), torch.nan, plane).to(_work_dtype(scores))


def _pose_chain(
    function: str,
    pose: Callable[..., ChainLattice],
    log_probs: Tensor,
    targets: Integers,
    input_lengths: Integers | None,
    target_lengths: Integers | None,
    blank: int,
) -> ChainLattice:
    _checks.check_scores(function, "log_probs", _dtype(log_probs), _shape(log_probs), ("(N, T, C)",))
    blank = _checks.check_blank(function, blank, log_probs.shape[2])
    return pose(*_batch(function, log_probs, targets, input_lengths, target_lengths, blank), blank)


def _batch(
    function: str,
    scores: Tensor,
    targets: Integers,
    input_lengths: Integers | None,
    target_lengths: Integers | None,
    blank: int | None,
) -> _checks.Batch:
    """The integers of a call on scores (N, T, C), checked; lengths not given are the padded sizes."""
    num_samples, num_frames, num_classes = scores.shape
    labels = _integers(function, "targets", targets)
    if target_lengths is None:
        if labels.ndim < 2:
            raise InvalidValueError(function, "target_lengths", "be given where targets are concatenated", None)
        target_lengths = [labels.shape[1]] * num_samples
    return _checks.check_batch(
        function,
        labels,
        _integers(function, "input_lengths", [num_frames] * num_samples if input_lengths is None else input_lengths),
        _integers(function, "target_lengths", target_lengths),
        lengths_name="input_lengths",
        num_samples=num_samples,
        num_frames=num_frames,
        max_labels=None,
        num_classes=num_classes,
        blank=blank,
    )


def _pose_padded_grid(
    function: str, logits: Tensor, targets: Integers, logit_lengths: Integers, target_lengths: Integers, blank: int
) -> GridLattice:
    _checks.check_scores(function, "logits", _dtype(logits), _shape(logits), ("(N, T, U+1, V)",))
    num_samples, num_frames, width, _ = logits.shape
    if width < 1:
        raise InvalidValueError(function, "logits", "have shape (N, T, U+1, V)", f"shape {tuple(logits.shape)}")
    return _pose_grid(
        function,
        targets,
        logit_lengths,
        target_lengths,
        blank,
        num_samples=num_samples,
        num_frames=num_frames,
        max_labels=width - 1,
        num_classes=logits.shape[3],
    )


def _lengths(function: str, argument: str, lengths: Integers | None, num_samples: int, num_frames: int) -> Tensor:
    """Lengths (N,), checked; ``None`` is the padded size."""
    if lengths is None:
        return torch.full((num_samples,), num_frames)
    checked = _checks.check_integers(function, argument, _integers(function, argument, lengths), (1,))
    if len(checked) != num_samples:
        rule = f"have one entry a sample, N = {num_samples}"
        raise InvalidValueError(function, argument, rule, f"{len(checked)} entries")
    _checks._check_range(function, argument, checked, "T", num_frames)
    return torch.from_numpy(checked)


def _real(lengths: np.ndarray, scores: Tensor) -> Tensor:
    """(N, T) whether a frame is one of its sample's."""
    return torch.arange(scores.shape[1], device=scores.device) < torch.from_numpy(lengths).to(scores.device)[:, None]
