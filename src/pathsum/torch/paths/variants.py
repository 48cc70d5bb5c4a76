"""The walks of the transducer's relatives with arcs or inputs of their own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pathsum import _checks, dispatch
from pathsum.errors import InvalidValueError
from pathsum.kernels.protocol import ArcOptions
from pathsum.options import CHECKS, FINALS, Check, Final, RNNTType, TorchImpl
from pathsum.problems.alignment_restricted import pose_ar_rnnt
from pathsum.problems.multi_blank import pose_multi_blank
from pathsum.problems.tdt import pose_tdt
from pathsum.problems.wildcard import pose_wildcard
from pathsum.torch._bounded import unread_on
from pathsum.torch._inputs import Integers, as_alignment, head_of, pose_head, tdt_durations
from pathsum.torch.joiner import Joiner
from pathsum.torch.paths.grid import GridPaths
from pathsum.torch.paths.rnnt import arc_options


def tdt_paths(
    token_logits: Tensor | Joiner,
    duration_logits: Tensor | Joiner,
    targets: Integers,
    logit_lengths: Integers | int,
    target_lengths: Integers | int,
    durations: Sequence[int],
    blank: int = -1,
    *,
    sigma: float = 0.0,
    final: Final = "blank",
    fastemit_lambda: float = 0.0,
    clamp: float = -1,
    check: Check = "sync",
    impl: TorchImpl = "auto",
    function: str = "tdt_paths",
) -> GridPaths:
    """The walks of a token-and-duration transducer that spell the target.

    Their kinds of arcs, ``lattice.arcs``, are a blank for every duration above 0, then a label for every duration.

    Args:
        token_logits: As in ``tdt_loss``.
        duration_logits: As in ``tdt_loss``.
        targets: Labels (N, U) or (sum of target_lengths,).
        logit_lengths: Frames of each sample (N,), at most T.
        target_lengths: Labels of each sample (N,), at most U.
        durations: As in ``tdt_loss``.
        blank: Index of the blank; negative counts from the end.
        sigma: As in ``tdt_loss``.
        final: As in ``tdt_loss``.
        fastemit_lambda, clamp: As in ``tdt_loss``, of the gradient of ``loss`` and ``losses`` alone.
        check: As in ``tdt_loss``.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.
        function: What errors call the function.

    Returns:
        The ``Paths``, as of ``rnnt_paths``.

    Raises:
        InvalidValueError: As in ``tdt_loss``.
        InvalidTypeError: As in ``tdt_loss``.

    Example:
        >>> import torch
        >>> from pathsum.torch.paths import tdt_paths
        >>> tokens, durations = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 3)
        >>> paths = tdt_paths(tokens, durations, [[0]], [2], [1], durations=[0, 1, 2])
        >>> paths.lattice.arcs
        ((1, 0), (2, 0), (0, 1), (1, 1), (2, 1))
        >>> paths.best().log_probs.exp().mul(36).round().tolist()  # 2 arcs of 1/6
        [1.0]
    """
    integers = (targets, logit_lengths, target_lengths)
    tokens, integers, batched = head_of(function, token_logits, integers, "token_logits")
    lengths, *_ = head_of(function, duration_logits, (), "duration_logits")
    steps = tdt_durations(function, durations)
    wanted = (*tokens.shape[:-1], len(steps))
    if lengths.device != tokens.device:
        _checks.check_device(function, "duration_logits", str(lengths.device), str(tokens.device))
    _checks.check_option(function, "final", final, FINALS)
    blank = _checks.check_blank(function, blank, tokens.shape[-1])
    sigma = _checks.check_number(function, "sigma", sigma)
    options = ArcOptions(sigma=sigma, **_checks.check_shares(function, fastemit_lambda, clamp))
    _checks.check_option(function, "check", check, CHECKS)
    kernels = dispatch.choose(function, tokens.device.type, impl, "arcs")
    device = unread_on(function, check, kernels, tokens, *integers) if kernels.reads_on_device else None
    grid = pose_head(function, tokens, integers, blank, argument="token_logits", device=device)
    if tuple(lengths.shape) != wanted:
        rule = f"have shape (..., D) = {wanted}"
        raise InvalidValueError(function, "duration_logits", rule, f"shape {tuple(lengths.shape)}")
    return GridPaths(function, (tokens, lengths), pose_tdt(grid, steps, final), options, kernels, batched)


def multi_blank_rnnt_paths(
    logits: Tensor | Joiner,
    targets: Integers,
    logit_lengths: Integers | int,
    target_lengths: Integers | int,
    big_blank_durations: Sequence[int],
    big_blanks: Sequence[int],
    blank: int = -1,
    *,
    sigma: float = 0.0,
    fastemit_lambda: float = 0.0,
    clamp: float = -1,
    check: Check = "sync",
    impl: TorchImpl = "auto",
    function: str = "multi_blank_rnnt_paths",
) -> GridPaths:
    """The walks of a transducer with big blanks. Their kinds of arcs are the blank, the big blanks, the label.

    Args:
        logits: As in ``multi_blank_rnnt_loss``.
        targets: Labels (N, U) or (sum of target_lengths,).
        logit_lengths: Frames of each sample (N,), at most T.
        target_lengths: Labels of each sample (N,), at most U.
        big_blank_durations: As in ``multi_blank_rnnt_loss``.
        big_blanks: As in ``multi_blank_rnnt_loss``.
        blank: Index of the blank; negative counts from the end.
        sigma: As in ``multi_blank_rnnt_loss``.
        fastemit_lambda, clamp: As in ``multi_blank_rnnt_loss``, of the gradient of ``loss`` and ``losses`` alone.
        check: As in ``multi_blank_rnnt_loss``.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.
        function: What errors call the function.

    Returns:
        The ``Paths``, as of ``rnnt_paths``.

    Raises:
        InvalidValueError: As in ``multi_blank_rnnt_loss``.
        InvalidTypeError: As in ``multi_blank_rnnt_loss``.

    Example:
        >>> import torch
        >>> from pathsum.torch.paths import multi_blank_rnnt_paths
        >>> paths = multi_blank_rnnt_paths(torch.zeros(1, 2, 1, 4), [[]], [2], [0], [2], [-2])
        >>> [round(share, 2) for share in paths.arc_posteriors()[0, :2, 0, 0].tolist()]  # blank, big blank
        [0.2, 0.8]
    """
    logits, integers, batched = head_of(function, logits, (targets, logit_lengths, target_lengths))
    durations = _checks.check_durations(function, "big_blank_durations", big_blank_durations, minimum=1, distinct=False)
    blank = _checks.check_blank(function, blank, logits.shape[-1])
    classes = _checks.check_classes(function, "big_blanks", big_blanks, logits.shape[-1], blank)
    if len(classes) != len(durations):
        rule = f"have one class a duration, {len(durations)}"
        raise InvalidValueError(function, "big_blanks", rule, list(big_blanks))
    sigma = _checks.check_number(function, "sigma", sigma)
    options = ArcOptions(sigma=sigma, **_checks.check_shares(function, fastemit_lambda, clamp))
    _checks.check_option(function, "check", check, CHECKS)
    kernels = dispatch.choose(function, logits.device.type, impl, "arcs")
    device = unread_on(function, check, kernels, logits, *integers) if kernels.reads_on_device else None
    grid = pose_head(function, logits, integers, blank, big_blanks=classes, device=device)
    return GridPaths(function, (logits,), pose_multi_blank(grid, durations, classes), options, kernels, batched)


def ar_rnnt_paths(
    logits: Tensor | Joiner,
    targets: Integers,
    logit_lengths: Integers | int,
    target_lengths: Integers | int,
    alignment: Integers,
    left: int,
    right: int,
    blank: int = -1,
    *,
    rnnt_type: RNNTType = "regular",
    delay_penalty: float = 0.0,
    hat: bool = False,
    fastemit_lambda: float = 0.0,
    clamp: float = -1,
    check: Check = "sync",
    impl: TorchImpl = "auto",
    function: str = "ar_rnnt_paths",
) -> GridPaths:
    """The walks of a transducer that emit each label near the frame that an alignment gives it.

    Args:
        logits: As in ``ar_rnnt_loss``.
        targets: Labels (N, U) or (sum of target_lengths,).
        logit_lengths: Frames of each sample (N,), at most T.
        target_lengths: Labels of each sample (N,), at most U.
        alignment: As in ``ar_rnnt_loss``.
        left: As in ``ar_rnnt_loss``.
        right: As in ``ar_rnnt_loss``.
        blank: Index of the blank; negative counts from the end.
        rnnt_type: As in ``rnnt_loss``.
        delay_penalty: As in ``rnnt_loss``.
        hat: As in ``rnnt_loss``.
        fastemit_lambda, clamp: As in ``ar_rnnt_loss``, of the gradient of ``loss`` and ``losses`` alone.
        check: As in ``ar_rnnt_loss``.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.
        function: What errors call the function.

    Returns:
        The ``Paths``, as of ``rnnt_paths``.

    Raises:
        InvalidValueError: As in ``ar_rnnt_loss``.
        InvalidTypeError: As in ``ar_rnnt_loss``.

    Example:
        >>> import torch
        >>> from pathsum.torch.paths import ar_rnnt_paths
        >>> paths = ar_rnnt_paths(torch.zeros(1, 4, 2, 2), [[0]], [4], [1], alignment=[[2]], left=1, right=0)
        >>> paths.best().frames.tolist()  # of frames 1 and 2 the earlier
        [[1]]
    """
    integers = (targets, logit_lengths, target_lengths, alignment)
    logits, (*integers, alignment), batched = head_of(function, logits, integers)
    options = arc_options(function, rnnt_type, delay_penalty, hat, fastemit_lambda, clamp)
    buffers = [_checks.check_count(function, name, value) for name, value in (("left", left), ("right", right))]
    blank = _checks.check_blank(function, blank, logits.shape[-1])
    _checks.check_option(function, "check", check, CHECKS)
    kernels = dispatch.choose(function, logits.device.type, impl, "arcs")
    unread = (function, check, kernels, logits, *integers, alignment)
    device = unread_on(*unread) if kernels.reads_on_device else None
    grid = pose_head(function, logits, integers, blank, device=device)
    lattice = pose_ar_rnnt(grid, rnnt_type, as_alignment(function, alignment, grid, device), *buffers)
    return GridPaths(function, (logits,), lattice, options, kernels, batched)


def wildcard_rnnt_paths(
    logits: Tensor | Joiner,
    targets: Integers,
    logit_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int = -1,
    *,
    skip_score: float = 0.0,
    final: Final = "blank",
    fastemit_lambda: float = 0.0,
    clamp: float = -1,
    check: Check = "sync",
    impl: TorchImpl = "auto",
    function: str = "wildcard_rnnt_paths",
) -> GridPaths:
    """The walks of a transducer that may leave out frames before the first label and behind the last.

    Args:
        logits: As in ``wildcard_rnnt_loss``.
        targets: Labels (N, U) or (sum of target_lengths,).
        logit_lengths: Frames of each sample (N,), at most T.
        target_lengths: Labels of each sample (N,), at most U.
        blank: Index of the blank; negative counts from the end.
        skip_score: As in ``wildcard_rnnt_loss``.
        final: As in ``wildcard_rnnt_loss``.
        fastemit_lambda, clamp: As in ``wildcard_rnnt_loss``, of the gradient of ``loss`` and ``losses`` alone.
        check: As in ``wildcard_rnnt_loss``.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.
        function: What errors call the function.

    Returns:
        The ``Paths``, as of ``rnnt_paths``.

    Raises:
        InvalidValueError: As in ``wildcard_rnnt_loss``.
        InvalidTypeError: As in ``wildcard_rnnt_loss``.

    Example:
        >>> import torch
        >>> from pathsum.torch.paths import wildcard_rnnt_paths
        >>> paths = wildcard_rnnt_paths(torch.zeros(1, 2, 2, 2), [[0]], [2], [1])
        >>> round(paths.losses().exp().item(), 4)
        1.3333
    """
    logits, integers, batched = head_of(function, logits, (targets, logit_lengths, target_lengths))
    _checks.check_option(function, "final", final, FINALS)
    blank = _checks.check_blank(function, blank, logits.shape[-1])
    skip_score = _checks.check_number(function, "skip_score", skip_score)
    options = ArcOptions(skip_score=skip_score, **_checks.check_shares(function, fastemit_lambda, clamp))
    _checks.check_option(function, "check", check, CHECKS)
    kernels = dispatch.choose(function, logits.device.type, impl, "arcs")
    device = unread_on(function, check, kernels, logits, *integers) if kernels.reads_on_device else None
    grid = pose_head(function, logits, integers, blank, device=device)
    return GridPaths(function, (logits,), pose_wildcard(grid, final), options, kernels, batched)
