"""Best paths: the same lattices as the losses, asked which path is the best instead of what all sum to.

Everything here has samples first, ``(N, T, C)``, as ``forced_align`` has them. Of several best paths one is returned
by a fixed rule: traced from its end, a path stays where it is as long as it can, so that every label begins as early
as the best score allows (``forced_align`` has the details). The scores returned for frames are differentiable.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathsum import _checks, dispatch
from pathsum.errors import InvalidValueError
from pathsum.kernels.numba import chain_best_path, dense_best_path, grid_best_path
from pathsum.kernels.numba.rows import strided
from pathsum.kernels.protocol import ChainPath
from pathsum.kernels.reference import chain_best_path as reference_chain
from pathsum.kernels.reference import dense_best_path as reference_dense
from pathsum.kernels.reference import grid_best_path as reference_grid
from pathsum.lattice import ChainLattice, DenseLattice, GridLattice
from pathsum.problems.asg import pose_asg
from pathsum.problems.ctc import pose_ctc
from pathsum.problems.simple_ctc import pose_simple_ctc
from pathsum.torch._inputs import Integers, as_integers, check_table, dtype_of, on_device, pose_grid, shape_of
from pathsum.torch._ops.arrays import as_array, as_rows, as_table, work_dtype
from pathsum.torch.asg import with_ends


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
            as_rows(logits, lattice),
            logits.shape[3],
            lattice,
            num_labels=num_labels,
            logits=fused_log_softmax,
            num_threads=torch.get_num_threads(),
        )
        log_probs, frames, scores = map(torch.from_numpy, found)
    else:
        own = on_device(lattice, logits.device)
        with torch.no_grad():
            found = reference_grid.best_path(logits.detach(), own, num_labels=num_labels, logits=fused_log_softmax)
        log_probs, frames, scores = found
    return RNNTAlignment(frames, scores.to(work_dtype(logits)), log_probs.to(work_dtype(logits)))


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
            strided(*as_array(scores)),
            scores.shape[2],
            lattice,
            as_table(transitions, scores),
            num_frames=scores.shape[1],
            num_threads=torch.get_num_threads(),
        )
        log_probs, paths = map(torch.from_numpy, found)
    else:
        with torch.no_grad():
            log_probs, paths = reference_dense.best_path(
                scores.detach(), on_device(lattice, scores.device), transitions.detach()
            )
    return Alignment(paths, _with_transitions(scores, transitions, paths, log_probs, lengths))


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
            strided(*as_array(scores)),
            scores.shape[2],
            lattice,
            None if transitions is None else as_table(transitions, scores),
            num_frames=scores.shape[1],
            num_threads=torch.get_num_threads(),
        )
        return ChainPath(*map(torch.from_numpy, found))
    with torch.no_grad():
        return reference_chain.best_path(scores.detach(), on_device(lattice, scores.device), transitions)


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
    _checks.check_scores(function, "inputs", dtype_of(inputs), shape_of(inputs), ("(N, T, C)",))
    check_table(function, "transitions", transitions, inputs, "(C, C)")
    lengths = _lengths(function, "input_lengths", input_lengths, *inputs.shape[:2]).numpy()
    for name, ends in (("start_scores", start_scores), ("final_scores", final_scores)):
        if ends is not None:
            check_table(function, name, ends, inputs, "(C,)")
    if start_scores is not None or final_scores is not None:
        inputs = with_ends(inputs.to(work_dtype(inputs)), lengths, start_scores, final_scores)
    return inputs, lengths, dispatch.select(function, inputs.device.type, impl)


def _with_transitions(
    scores: Tensor, transitions: Tensor, paths: Tensor, log_probs: Tensor, input_lengths: np.ndarray
) -> Tensor:
    """(N, T) score of each frame's class and of the transition to it, differentiable by both."""
    labels = paths.clamp(min=0)
    own = scores.to(work_dtype(scores)).gather(2, labels[:, :, None])[:, :, 0]
    moves = transitions.to(own.dtype)[labels[:, 1:], labels[:, :-1]]
    moves = torch.cat([torch.zeros_like(own[:, :1]), moves], 1)
    instead = torch.where(_real(input_lengths, scores), log_probs[:, None].to(own.dtype), 0)
    return torch.where(paths >= 0, own + moves, instead)


def _pose_chain(
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


def _pose_padded_grid(
    function: str, logits: Tensor, targets: Integers, logit_lengths: Integers, target_lengths: Integers, blank: int
) -> GridLattice:
    _checks.check_scores(function, "logits", dtype_of(logits), shape_of(logits), ("(N, T, U+1, V)",))
    num_samples, num_frames, width, _ = logits.shape
    if width < 1:
        raise InvalidValueError(function, "logits", "have shape (N, T, U+1, V)", f"shape {tuple(logits.shape)}")
    return pose_grid(
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
    checked = _checks.check_integers(function, argument, as_integers(function, argument, lengths), (1,))
    if len(checked) != num_samples:
        rule = f"have one entry a sample, N = {num_samples}"
        raise InvalidValueError(function, argument, rule, f"{len(checked)} entries")
    _checks._check_range(function, argument, checked, "T", num_frames)
    return torch.from_numpy(checked)


def _real(lengths: np.ndarray, scores: Tensor) -> Tensor:
    """(N, T) whether a frame is one of its sample's."""
    return torch.arange(scores.shape[1], device=scores.device) < torch.from_numpy(lengths).to(scores.device)[:, None]
