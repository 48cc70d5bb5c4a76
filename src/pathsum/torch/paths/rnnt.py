"""The walks of the transducer and of its relatives."""

from __future__ import annotations

from torch import Tensor

from pathsum import _checks, dispatch
from pathsum.errors import InvalidValueError
from pathsum.kernels.protocol import ArcOptions, GridOptions, JointOptions
from pathsum.options import CHECKS, RNNT_TYPES, Check, RNNTType, TorchImpl
from pathsum.problems.rnnt_types import pose_rnnt_type
from pathsum.torch._bounded import unread_on
from pathsum.torch._inputs import (
    PACKED,
    PADDED,
    SINGLE,
    Integers,
    as_scores,
    batch_of_one,
    check_joiner,
    in_batch,
    pose_logits,
    pose_nodes,
)
from pathsum.torch.joiner import Joiner
from pathsum.torch.paths.grid import GridPaths, check_overwrite


def rnnt_paths(
    logits: Tensor,
    targets: Integers,
    logit_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int = -1,
    *,
    fused_log_softmax: bool = True,
    rnnt_type: RNNTType = "regular",
    delay_penalty: float = 0.0,
    hat: bool = False,
    fastemit_lambda: float = 0.0,
    clamp: float = -1,
    impl: TorchImpl = "auto",
) -> GridPaths:
    """The walks of a transducer through frames and labels that spell the target.

    Args:
        logits: Output of the joiner (N, T, U+1, V), or packed as in ``rnnt_packed_loss`` (rows, V); with
            ``fused_log_softmax=False`` log-probabilities.
        targets: Labels (N, U) or (sum of target_lengths,).
        logit_lengths: Frames of each sample (N,), at most T.
        target_lengths: Labels of each sample (N,), at most U.
        blank: Index of the blank class; negative counts from the end.
        fused_log_softmax: Take the log-softmax inside.
        rnnt_type: As in ``rnnt_loss``.
        delay_penalty: As in ``rnnt_loss``.
        hat: As in ``rnnt_loss``.
        fastemit_lambda, clamp: As in ``rnnt_loss``, of the gradient of ``loss`` and ``losses`` alone.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"`` or ``"reference"``.

    Returns:
        The ``Paths``: ``losses``, ``loss``, ``entropy``, ``expected``, ``posteriors``, ``best``, ``k_best`` and
        ``sample`` of them.

    Raises:
        InvalidValueError: As in ``rnnt_loss``.
        InvalidTypeError: As in ``rnnt_loss``.

    Example:
        >>> import torch
        >>> from pathsum.torch.paths import rnnt_paths
        >>> paths = rnnt_paths(torch.zeros(1, 3, 2, 2), [[0]], [3], [1], rnnt_type="modified")
        >>> round(paths.entropy().exp().item(), 4)  # the label in one of three frames
        3.0
        >>> paths.best().frames.tolist()
        [[0]]
    """
    return grid_paths(
        "rnnt_paths", logits, targets, logit_lengths, target_lengths, blank, fused_log_softmax=fused_log_softmax,
        rnnt_type=rnnt_type, delay_penalty=delay_penalty, hat=hat, fastemit_lambda=fastemit_lambda, clamp=clamp,
        impl=impl,
    )  # fmt: skip


def grid_paths(
    function: str,
    logits: Tensor,
    targets: Integers,
    logit_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int,
    *,
    layouts: tuple[str, ...] = (PADDED, SINGLE, PACKED),
    fused_log_softmax: bool,
    rnnt_type: RNNTType = "regular",
    delay_penalty: float = 0.0,
    hat: bool = False,
    fastemit_lambda: float = 0.0,
    clamp: float = -1.0,
    overwrite_logits: bool = False,
    check: Check = "sync",
    impl: str,
) -> GridPaths:
    """The paths that a function of a transducer's logits is made of."""
    integers = (targets, logit_lengths, target_lengths)
    logits, integers, batched = in_batch(function, as_scores(logits), integers, layouts=layouts)
    options = arc_options(function, rnnt_type, delay_penalty, hat, fastemit_lambda, clamp)
    _checks.check_option(function, "check", check, CHECKS)
    softmax = _checks.check_flag(function, "fused_log_softmax", fused_log_softmax)
    overwrite = _checks.check_flag(function, "overwrite_logits", overwrite_logits)
    blank = _checks.check_blank(function, blank, logits.shape[-1])
    if options.hat and not softmax:
        raise InvalidValueError(function, "hat", "be False with fused_log_softmax=False", True)
    plain = rnnt_type == "regular" and not options.hat and not options.delay_penalty
    kernels = dispatch.choose(function, logits.device.type, impl, "grid" if plain else "arcs")
    device = unread_on(function, check, kernels, logits, *integers) if kernels.reads_on_device else None
    lattice = pose_logits(function, logits, integers, blank, device=device)
    if plain:
        options = GridOptions(softmax, options.fastemit_lambda, options.clamp)
    else:
        lattice, options = pose_rnnt_type(lattice, rnnt_type), options._replace(softmax=softmax)
    paths = GridPaths(function, (logits,), lattice, options, kernels, batched)
    paths.overwrite = overwrite
    if overwrite:
        check_overwrite(paths)
    return paths


def joint_paths(
    function: str,
    joiner: Joiner,
    targets: Integers,
    logit_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int,
    *,
    rnnt_type: RNNTType,
    delay_penalty: float,
    hat: bool,
    fastemit_lambda: float = 0.0,
    clamp: float = -1.0,
    check: Check,
    impl: str,
) -> GridPaths:
    """The paths of a joiner whose logits are never held, where its kernels can do so."""
    options = arc_options(function, rnnt_type, delay_penalty, hat, fastemit_lambda, clamp)
    _checks.check_option(function, "check", check, CHECKS)
    joiner, batched = check_joiner(function, joiner)
    dtype, shape, tile_bytes = joiner.dtype, joiner.shape, joiner.tile_bytes
    blank = _checks.check_blank(function, blank, shape[-1])
    kernels = dispatch.choose(function, joiner.device.type, impl, "joint")
    regular = rnnt_type == "regular" and options.delay_penalty == 0 and not options.hat
    fused = not options.hat and kernels.fuses(dtype, regular=regular)
    if not fused:
        kernels = dispatch.kernels_of(kernels.impl, "arcs")
    integers = (targets, logit_lengths, target_lengths)
    integers = integers if batched else batch_of_one(function, integers)
    device = unread_on(function, check, kernels, joiner, *integers) if kernels.reads_on_device else None
    lattice = pose_rnnt_type(pose_nodes(function, shape, integers, blank, device=device), rnnt_type)
    if fused:
        numbers = {"delay_penalty": options.delay_penalty, "gate": joiner.gate}
        shares = {"fastemit_lambda": options.fastemit_lambda, "clamp": options.clamp}
        options = JointOptions(joiner.activation, tile_bytes, **numbers, **shares)
    return GridPaths(function, (joiner,), lattice, options, kernels, batched)


def arc_options(
    function: str,
    rnnt_type: RNNTType,
    delay_penalty: float,
    hat: bool,
    fastemit_lambda: float = 0.0,
    clamp: float = -1.0,
) -> ArcOptions:
    """What a type of transducer scores its arcs by, and makes its gradient of, checked."""
    _checks.check_option(function, "rnnt_type", rnnt_type, RNNT_TYPES)
    return ArcOptions(
        hat=_checks.check_flag(function, "hat", hat),
        delay_penalty=_checks.check_number(function, "delay_penalty", delay_penalty),
        **_checks.check_shares(function, fastemit_lambda, clamp),
    )
