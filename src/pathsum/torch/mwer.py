"""Training on the error rate itself: the expected errors of hypotheses, whatever decoder they come from."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathsum import _checks, dispatch
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.kernels.numba import edit_distance
from pathsum.options import BASELINES, Baseline, ReductionName, RNNTType, TorchImpl
from pathsum.reductions import reduce
from pathsum.torch._autograd.columns import columns_of
from pathsum.torch._autograd.hypotheses import Question, log_probs_of
from pathsum.torch._inputs import (
    Hypotheses,
    Integers,
    as_integers,
    as_scores,
    check_generator,
    check_lengths,
    check_values,
    dtype_of,
    of_samples,
    samples_first,
    shape_of,
)
from pathsum.torch._operators import traced
from pathsum.torch._ops.arrays import work_dtype
from pathsum.torch.joiner import Joiner
from pathsum.torch.paths.ctc import CTC, chain_paths
from pathsum.torch.paths.rnnt import grid_paths, joint_paths


def ctc_mwer_loss(
    log_probs: Tensor | np.ndarray,
    hypotheses: Hypotheses,
    input_lengths: Integers,
    hypothesis_lengths: Integers,
    errors: Tensor | np.ndarray | Any = None,
    blank: int = 0,
    reduction: ReductionName = "mean",
    *,
    references: Integers | None = None,
    reference_lengths: Integers | None = None,
    separator: int | None = None,
    baseline: Baseline = "mean",
    normalise: bool = True,
    temperature: float = 1.0,
    fused_log_softmax: bool = False,
    batch_first: bool = False,
    impl: TorchImpl = "auto",
) -> Tensor:
    """Minimum word error rate loss of CTC: the expected errors of some hypotheses under the model.

    ``loss[n] = sum over k of q[k] * (errors[n, k] - b)``, q being the softmax over k of ``log P(hypothesis k) /
    temperature``. P sums over all labellings of the frames, as in ``ctc_loss``.

    Args:
        log_probs: As in ``ctc_loss``: (T, N, C), log-probabilities or, with ``fused_log_softmax``, logits.
        hypotheses: Labels (N, K, S) of K hypotheses a sample, from any decoder. Entries beyond a length are not read.
        input_lengths: Frames of each sample (N,), at most T.
        hypothesis_lengths: Labels of each hypothesis (N, K), at most S; -1 where there is no such hypothesis.
        errors: (N, K) what each hypothesis costs, such as its number of wrong words. ``None``: its edit distance from
            the reference.
        blank: Index of the blank class; negative counts from the end.
        reduction: ``"none"``: losses (N,). ``"sum"``: their sum. ``"mean"``: their mean over N.
        references: Labels (N, L), where no errors are given.
        reference_lengths: Labels of each reference (N,), at most L; L where ``None``.
        separator: The label that parts words: errors are counted by words then, and by labels where ``None``.
        baseline: What is taken from the errors: ``"mean"``: their mean over the sample's hypotheses, ``"none"``, or
            ``"leave_one_out"``: for each the mean over the others. With ``normalise`` a baseline that is the same for
            all hypotheses changes the value and not the gradient.
        normalise: Weigh hypotheses by their share among those given (an N-best list). False: ``loss[n] = mean over k of
            (errors[n, k] - b[k]) * log P(hypothesis k)``, whose gradient is the score-function estimate from
            hypotheses that were drawn from the model, unbiased with ``"leave_one_out"`` and with ``"none"``.
        temperature: Divides log P with ``normalise``.
        fused_log_softmax: ``log_probs`` are logits; their log-softmax is taken inside.
        batch_first: ``log_probs`` are (N, T, C).
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        The reduced loss, float64 for float64 scores and float32 for all others. 0 for a sample without a possible
        hypothesis, and NaN for one with a NaN score.

    Raises:
        InvalidValueError: As in ``ctc_loss``; also where errors or references do not fit the hypotheses.
        InvalidTypeError: As in ``ctc_loss``.

    Notes:
        Hypotheses that do not fit in their frames drop out, and with ``normalise`` so does one that is there before.
        Twice differentiable. Cost: the softmax of each row once, a gradient that is written once, and a recursion for
        each hypothesis, which keeps (T, S+1) numbers. On a CPU eight hypotheses take 1.6 to 3.0 times one
        ``ctc_loss``, the more the fewer classes there are. On other devices, under transforms and for second
        derivatives each hypothesis reads a copy of its own columns of scores.

    References:
        Prabhavalkar et al. (2018), Minimum word error rate training for attention-based sequence-to-sequence models,
        arXiv 1712.01818. Leave-one-out: Kool, van Hoof, Welling (2019), Buy 4 REINFORCE samples, get a baseline free.

    Example:
        >>> import torch
        >>> from pathsum.torch import ctc_mwer_loss
        >>> logits = torch.zeros(3, 1, 3, requires_grad=True)
        >>> hypotheses, lengths = [[[1, 2], [2, 0]]], [[2, 1]]  # 1 2, in 5 labellings, and 2, in 6
        >>> loss = ctc_mwer_loss(
        ...     logits, hypotheses, [3], lengths, references=[[1, 2]], baseline="none", fused_log_softmax=True
        ... )
        >>> round(loss.item(), 4)  # one label is missing from the second
        0.5455
    """
    function = "ctc_mwer_loss"
    fused_log_softmax = _checks.check_flag(function, "fused_log_softmax", fused_log_softmax)
    scores, batched = samples_first(function, "log_probs", log_probs, batch_first)
    if not batched:
        raise InvalidValueError(function, "log_probs", "have a batch axis", f"shape {tuple(scores.shape)}")
    num_samples, num_frames, num_classes = scores.shape
    blank = _checks.check_blank(function, blank, num_classes)
    lengths = check_lengths(function, "input_lengths", input_lengths, num_samples, num_frames)
    given = _hypotheses(function, hypotheses, hypothesis_lengths, num_samples, num_classes, blank)
    costs = _errors(function, given, errors, references, reference_lengths, separator, scores)
    options = _options(function, baseline, normalise, temperature)

    def composed(scores: Tensor) -> Tensor:
        """(N, K) log-probabilities, by operations that all implementations have, differentiable twice."""
        labels, columns = _own_columns(given, blank)
        read = columns_of(scores, torch.from_numpy(columns), lengths, fused_log_softmax)
        size = given.lengths.shape[1]
        paths = chain_paths(
            function, CTC, read, labels, lengths.repeat_interleave(size), given.lengths.clip(0).ravel(), 0,
            batch_first=True, known=True, impl=impl,
        )  # fmt: skip
        return -paths.solve(read, None).view(num_samples, size)

    if dispatch.choose(function, scores.device.type, impl, "chain").compares_hypotheses and not traced((scores,)):
        question = Question(
            lengths.numpy(), np.ascontiguousarray(given.tokens), given.lengths.clip(0), blank, fused_log_softmax
        )
        log_probs = log_probs_of(scores, question, composed)
    else:
        log_probs = composed(scores)
    return _risk(function, log_probs, given, costs, options, reduction).to(work_dtype(scores))


def rnnt_mwer_loss(
    logits: Tensor | Joiner,
    hypotheses: Hypotheses,
    logit_lengths: Integers,
    hypothesis_lengths: Integers,
    errors: Tensor | np.ndarray | Any = None,
    blank: int = -1,
    reduction: ReductionName = "mean",
    *,
    references: Integers | None = None,
    reference_lengths: Integers | None = None,
    separator: int | None = None,
    baseline: Baseline = "mean",
    normalise: bool = True,
    temperature: float = 1.0,
    fused_log_softmax: bool = True,
    rnnt_type: RNNTType = "regular",
    impl: TorchImpl = "auto",
) -> Tensor:
    """Minimum word error rate loss of the transducer: see ``ctc_mwer_loss``, with P of ``rnnt_loss``.

    Args:
        logits: Output of the joiner for every hypothesis (N, K, T, U+1, V), which depends on it by the predictor. Or a
            ``Joiner`` of N*K samples, the hypotheses of a sample one after another: ``encoder_out`` (N*K, T, H) and
            ``predictor_out`` (N*K, U+1, H).
        hypotheses: Labels (N, K, U). Entries beyond a length are not read.
        logit_lengths: Frames of each sample (N,), at most T.
        hypothesis_lengths: Labels of each hypothesis (N, K), at most U; -1 where there is no such hypothesis.
        errors: As in ``ctc_mwer_loss``.
        blank: Index of the blank class; negative counts from the end.
        reduction: ``"none"``: losses (N,). ``"sum"``: their sum. ``"mean"``: their mean over N.
        references: As in ``ctc_mwer_loss``.
        reference_lengths: As in ``ctc_mwer_loss``.
        separator: As in ``ctc_mwer_loss``.
        baseline: As in ``ctc_mwer_loss``.
        normalise: As in ``ctc_mwer_loss``.
        temperature: As in ``ctc_mwer_loss``.
        fused_log_softmax: Take the log-softmax inside.
        rnnt_type: As in ``rnnt_loss``.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        The reduced loss, as of ``ctc_mwer_loss``.

    Raises:
        InvalidValueError: As in ``rnnt_loss``; also where errors or references do not fit the hypotheses.
        InvalidTypeError: As in ``rnnt_loss``.

    Notes:
        Cost: that of ``rnnt_loss``, or of ``rnnt_joint_loss`` for a ``Joiner``, of N*K samples.

    References:
        Guo et al. (2020), Efficient minimum word error rate training of RNN-transducer, arXiv 2007.13802.

    Example:
        >>> import torch
        >>> from pathsum.torch import rnnt_mwer_loss
        >>> logits = torch.zeros(1, 2, 2, 2, 3)  # 2 hypotheses, 2 frames, 1 label at most, 3 classes
        >>> loss = rnnt_mwer_loss(logits, [[[0], [1]]], [2], [[1, 0]], references=[[0]], baseline="none")
        >>> round(loss.item(), 4)  # 0, in 2 walks of 3 arcs of 1/3, and nothing, in 1 of 2
        0.6
    """
    function = "rnnt_mwer_loss"
    joiner = isinstance(logits, Joiner)
    logits = logits if isinstance(logits, Joiner) else as_scores(logits)
    if not joiner:
        _checks.check_scores(function, "logits", dtype_of(logits), shape_of(logits), ("(N, K, T, U+1, V)",))
    shape = tuple(logits.shape)
    frames = as_integers(function, "logit_lengths", logit_lengths)
    num_samples = len(np.atleast_1d(frames)) if joiner else shape[0]
    blank = _checks.check_blank(function, blank, shape[-1])
    given = _hypotheses(function, hypotheses, hypothesis_lengths, num_samples, shape[-1], blank)
    size = given.lengths.shape[1]
    wanted = num_samples * size if joiner else (num_samples, size)
    if (shape[0] if joiner else shape[:2]) != wanted:
        rule = f"have {num_samples} samples of {size} hypotheses"
        raise InvalidValueError(function, "logits", rule, f"shape {shape}")
    costs = _errors(function, given, errors, references, reference_lengths, separator, logits)
    options = _options(function, baseline, normalise, temperature)
    integers = (
        given.tokens.reshape(num_samples * size, given.tokens.shape[2]),
        np.repeat(frames, size),
        given.lengths.clip(0).ravel(),
    )
    if isinstance(logits, Joiner):
        paths = joint_paths(
            function,
            logits,
            *integers,
            blank,
            rnnt_type=rnnt_type,
            delay_penalty=0.0,
            hat=False,
            check="sync",
            impl=impl,
        )
    else:
        paths = grid_paths(
            function, logits.flatten(0, 1), *integers, blank, fused_log_softmax=fused_log_softmax, rnnt_type=rnnt_type,
            impl=impl,
        )  # fmt: skip
    return _risk(function, -paths.losses().view(num_samples, size), given, costs, options, reduction)


def edit_distances(
    hypotheses: Hypotheses,
    hypothesis_lengths: Integers,
    references: Integers,
    reference_lengths: Integers | None = None,
    separator: int | None = None,
) -> Tensor:
    """The fewest insertions, deletions and substitutions that make the reference of a hypothesis.

    Args:
        hypotheses: Labels (N, K, S) of K hypotheses a sample, or (N, S) of one.
        hypothesis_lengths: Labels of each hypothesis (N, K) or (N,).
        references: Labels (N, L).
        reference_lengths: Labels of each reference (N,), at most L; L where ``None``.
        separator: The label that parts words: words are inserted, deleted and substituted then, where several
            separators part as one does and those at an end part nothing. Labels where ``None``.

    Returns:
        Distances (N, K), or (N,), int64.

    Raises:
        InvalidValueError: (a ValueError) lengths out of range, shapes that do not match.
        InvalidTypeError: (a TypeError) no integers.

    Notes:
        Cost: O(S*L) for each hypothesis, compiled, on the CPU.

    References:
        Levenshtein (1966), Binary codes capable of correcting deletions, insertions and reversals.

    Example:
        >>> from pathsum.torch import edit_distances
        >>> edit_distances([[[1, 2, 3], [1, 3, 0]]], [[3, 2]], [[1, 2, 4]]).tolist()
        [[1, 2]]
        >>> edit_distances([[7, 7, 0, 8]], [4], [[7, 7, 0, 9, 0, 8]], separator=0).tolist()  # a word is missing
        [1]
    """
    function = "edit_distances"
    tokens = as_integers(function, "hypotheses", hypotheses)
    lengths = as_integers(function, "hypothesis_lengths", hypothesis_lengths)
    if tokens.ndim not in (2, 3):
        raise InvalidValueError(function, "hypotheses", "have shape (N, S) or (N, K, S)", f"shape {tokens.shape}")
    single = tokens.ndim == 2
    if single:
        tokens, lengths = tokens[:, None], lengths[:, None] if lengths.ndim == 1 else lengths
    given = _hypotheses(function, tokens, lengths, len(tokens), np.iinfo(np.int64).max, None)
    distances = torch.from_numpy(_distances(function, given, references, reference_lengths, separator))
    return distances[:, 0] if single else distances


def sample_labellings(
    log_probs: Tensor | np.ndarray,
    num_samples: int,
    input_lengths: Integers | int | None = None,
    blank: int = 0,
    *,
    generator: torch.Generator | None = None,
    fused_log_softmax: bool = False,
    batch_first: bool = True,
) -> tuple[Tensor, Tensor]:
    """Label sequences drawn from CTC's distribution: every frame by itself, then repeats merged and blanks removed.

    Args:
        log_probs: Log-probabilities (N, T, C); with ``fused_log_softmax`` logits.
        num_samples: K, how many sequences are drawn for each sample.
        input_lengths: Frames of each sample (N,), at most T; T where ``None``.
        blank: Index of the blank class; negative counts from the end.
        generator: Where the random numbers come from; torch's own where ``None``.
        fused_log_softmax: ``log_probs`` are logits.
        batch_first: ``log_probs`` are (N, T, C); where False (T, N, C).

    Returns:
        ``hypotheses`` (N, K, S), padded with -1, and their ``lengths`` (N, K), int64, independent of one another: what
        ``ctc_mwer_loss`` takes with ``normalise=False``. A sample has none, lengths of -1, where a frame has no
        distribution: with a NaN or +inf, or where all are -inf.

    Raises:
        InvalidValueError: (a ValueError) a length, the blank or the number out of range, a wrong shape.
        InvalidTypeError: (a TypeError) a dtype that is not accepted.

    Example:
        >>> import torch
        >>> from pathsum.torch import sample_labellings
        >>> certain = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]]).log()
        >>> hypotheses, lengths = sample_labellings(certain, 2)
        >>> hypotheses.tolist(), lengths.tolist()
        ([[[1, 1], [1, 1]]], [[2, 2]])
    """
    function = "sample_labellings"
    _checks.check_flag(function, "fused_log_softmax", fused_log_softmax)
    scores, batched = samples_first(function, "log_probs", log_probs, batch_first)
    check_generator(function, generator)
    count = _checks.check_copies(function, "num_samples", num_samples, 1, scores.shape[0] * scores.shape[1])
    check_values(function, "log_probs", scores)
    size, num_frames, num_classes = scores.shape
    blank = _checks.check_blank(function, blank, num_classes)
    lengths = check_lengths(function, "input_lengths", input_lengths, size, num_frames, batched).to(scores.device)
    real = torch.arange(num_frames, device=scores.device) < lengths[:, None]
    scores = torch.where(real[:, :, None], scores.detach().to(work_dtype(scores)), 0.0)
    # Of log-probabilities too, whose exponentials may be beyond all floats; NaN where a frame has no distribution.
    shares = scores.softmax(2)
    drawable = shares.isfinite().all(2).all(1)
    shares = torch.where(drawable[:, None, None], shares, 1.0)
    drawn = torch.multinomial(shares.reshape(-1, num_classes), count, replacement=True, generator=generator)
    drawn = drawn.view(size, num_frames, count).movedim(2, 1)
    before = torch.cat([torch.full_like(drawn[:, :, :1], blank), drawn[:, :, :-1]], 2)
    kept = (drawn != blank) & (drawn != before) & (real & drawable[:, None])[:, None]
    found = kept.sum(2)
    hypotheses = drawn.new_full((size, count, int(found.amax()) if found.numel() else 0), -1)
    sample, draw, frame = kept.nonzero(as_tuple=True)
    hypotheses[sample, draw, (kept.cumsum(2) - 1)[sample, draw, frame]] = drawn[sample, draw, frame]
    hypotheses, found = of_samples(batched, hypotheses, torch.where(drawable[:, None], found, -1))
    return hypotheses, found


class _Hypotheses(NamedTuple):
    """Tokens (N, K, S), S >= 1, of any value behind a length; lengths (N, K), -1 where there is no hypothesis."""

    tokens: np.ndarray
    lengths: np.ndarray


class _Options(NamedTuple):
    baseline: Baseline
    normalise: bool
    temperature: float


def _options(function: str, baseline: Baseline, normalise: bool, temperature: float) -> _Options:
    _checks.check_option(function, "baseline", baseline, BASELINES)
    normalise = _checks.check_flag(function, "normalise", normalise)
    temperature = _checks.check_number(function, "temperature", temperature)
    if not temperature > 0:
        raise InvalidValueError(function, "temperature", "be above 0", temperature)
    return _Options(baseline, normalise, temperature)


def _hypotheses(
    function: str, hypotheses: Any, lengths: Any, num_samples: int, num_classes: int, blank: int | None
) -> _Hypotheses:
    tokens = as_integers(function, "hypotheses", hypotheses)
    counts = as_integers(function, "hypothesis_lengths", lengths)
    counts = _checks.check_integers(function, "hypothesis_lengths", counts, (2,))
    if tokens.ndim != 3 or len(tokens) != num_samples:
        rule = f"have shape (N, K, S), N = {num_samples}"
        raise InvalidValueError(function, "hypotheses", rule, f"shape {tokens.shape}")
    if counts.shape != tokens.shape[:2]:
        rule = f"have shape (N, K) = {tokens.shape[:2]}"
        raise InvalidValueError(function, "hypothesis_lengths", rule, f"shape {counts.shape}")
    flat = tokens.reshape(tokens.shape[0] * tokens.shape[1], tokens.shape[2])
    checked = _checks.check_batch(
        function,
        flat,
        np.zeros(len(flat), np.int64),
        np.where(counts.ravel() == -1, 0, counts.ravel()),
        lengths_name="input_lengths",
        targets_name="hypotheses",
        target_lengths_name="hypothesis_lengths",
        num_samples=len(flat),
        num_frames=None,
        max_labels=None,
        num_classes=num_classes,
        blank=blank,
    )
    padded = checked.targets.reshape(*tokens.shape[:2], checked.targets.shape[1])
    return _Hypotheses(padded, np.where(counts == -1, -1, checked.target_lengths.reshape(counts.shape)))


def _errors(
    function: str,
    given: _Hypotheses,
    errors: Any,
    references: Integers | None,
    reference_lengths: Integers | None,
    separator: int | None,
    scores: Tensor | Joiner,
) -> Tensor:
    """(N, K) in the dtype of the result."""
    if (errors is None) == (references is None):
        raise InvalidValueError(function, "errors", "be given, or references in their place", None)
    if errors is None:
        costs = torch.from_numpy(_distances(function, given, references, reference_lengths, separator))
    else:
        try:
            costs = errors if isinstance(errors, Tensor) else torch.as_tensor(errors, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidTypeError(function, "errors", "be numbers (N, K)", type(errors).__name__) from error
        if tuple(costs.shape) != given.lengths.shape or costs.is_complex():
            rule = f"be real numbers of shape (N, K) = {given.lengths.shape}"
            raise InvalidValueError(function, "errors", rule, f"shape {tuple(costs.shape)}")
    return costs.to(scores.device, work_dtype(scores))


def _distances(
    function: str,
    given: _Hypotheses,
    references: Any,
    reference_lengths: Integers | None,
    separator: int | None,
) -> np.ndarray:
    if separator is not None:
        separator = _checks.check_count(function, "separator", separator, 0, 2**63 - 1)
    num_samples = len(given.tokens)
    wanted = as_integers(function, "references", references)
    if reference_lengths is None and wanted.ndim == 2:
        reference_lengths = [wanted.shape[1]] * len(wanted)
    if reference_lengths is None:
        raise InvalidValueError(function, "reference_lengths", "be given where references are concatenated", None)
    batch = _checks.check_batch(
        function,
        wanted,
        np.zeros(num_samples, np.int64),
        as_integers(function, "reference_lengths", reference_lengths),
        lengths_name="input_lengths",
        targets_name="references",
        target_lengths_name="reference_lengths",
        num_samples=num_samples,
        num_frames=None,
        max_labels=None,
        num_classes=np.iinfo(np.int64).max,
        blank=None,
    )
    return edit_distance.edit_distances(
        np.ascontiguousarray(given.tokens),
        np.ascontiguousarray(given.lengths.clip(0)),
        np.ascontiguousarray(batch.targets),
        batch.target_lengths,
        separator=separator,
        num_threads=torch.get_num_threads(),
    )


def _own_columns(given: _Hypotheses, blank: int) -> tuple[np.ndarray, np.ndarray]:
    """Hypotheses (N*K, S) of the columns of scores that each reads, and the class (N, K, S+1) of every column.

    Column 0 is the blank's, and equal labels have one column.
    """
    tokens, lengths = given
    size = tokens.shape[2]
    used = np.arange(size) < lengths[:, :, None]
    classes = np.where(used, tokens, blank)
    labels = np.empty_like(classes)
    for place in range(size):
        # The first place where the label stands; behind a hypothesis nothing is read.
        labels[:, :, place] = (classes[:, :, : place + 1] == classes[:, :, place, None]).argmax(2) + 1
    columns = np.concatenate([np.full_like(classes[:, :, :1], blank), classes], 2)
    return labels.reshape(len(tokens) * tokens.shape[1], size), columns


def _risk(
    function: str, log_probs: Tensor, given: _Hypotheses, errors: Tensor, options: _Options, reduction: ReductionName
) -> Tensor:
    """The reduced loss of log P (N, K) of the hypotheses and their errors (N, K)."""
    _checks.check_reduction(function, reduction)
    present = given.lengths >= 0
    if options.normalise:
        present &= ~_repeated(given)
    possible = torch.from_numpy(present).to(log_probs.device) & (log_probs > -torch.inf)
    undefined = log_probs.isnan().any(1)
    count = possible.sum(1, keepdim=True)
    costs = torch.where(possible, errors, 0.0)
    if options.baseline == "mean":
        costs = costs - costs.sum(1, keepdim=True) / count.clamp(min=1)
    elif options.baseline == "leave_one_out":
        costs = costs - torch.where(count > 1, costs.sum(1, keepdim=True) - costs, 0.0) / (count - 1).clamp(min=1)
    costs = torch.where(possible, costs, 0.0)
    scores = torch.where(possible, log_probs, 0.0)
    if options.normalise:
        scores = torch.where(possible | (count == 0), scores / options.temperature, -torch.inf)
        losses = (scores.softmax(1) * costs).sum(1)
    else:
        losses = (scores * costs).sum(1) / count[:, 0].clamp(min=1)
    return reduce(torch.where(undefined, torch.nan, losses), reduction)


def _repeated(given: _Hypotheses) -> np.ndarray:
    """(N, K) whether the same hypothesis stands before."""
    tokens, lengths = given
    used = np.arange(tokens.shape[2]) < lengths[:, :, None]
    classes = np.where(used, tokens, -1)
    equal = (classes[:, :, None] == classes[:, None]).all(3) & (lengths[:, :, None] == lengths[:, None])
    return np.tril(equal, -1).any(2)
