"""Losses whose classes, frames or samples are shared out among processes, on ``torch.distributed``.

Every process of the group makes the same calls in the same order, with its own share of the scores and the same whole
integers, and gets the same loss. A mistake on one process raises on all of them; a process that does not come ends the
others' wait with an error when the group's time is out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pathsum import _checks, dispatch
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.kernels.protocol import ArcOptions, LinearOptions
from pathsum.options import (
    LAYER_SHARDS,
    PROCESS_SHARDS,
    RNNT_TYPES,
    Activation,
    LayerShard,
    ProcessShard,
    ReductionName,
    RNNTType,
    TorchImpl,
)
from pathsum.reductions import reduce
from pathsum.torch import ctc, joint, linear
from pathsum.torch._autograd.planes import OwnNodes, planes_of_joiner
from pathsum.torch._autograd.shared import averaged
from pathsum.torch._inputs import (
    LOCAL,
    Integers,
    as_given,
    as_integers,
    as_scores,
    batch_of_one,
    check_joiner,
    dtype_of,
    finish,
    shape_of,
)
from pathsum.torch._linear import columns_of
from pathsum.torch._operators import Reduction
from pathsum.torch._processes import Processes
from pathsum.torch._sharded import columns_of_classes, losses_of_frames
from pathsum.torch.joiner import Joiner
from pathsum.torch.joint import Nodes
from pathsum.torch.linear import check_operands, linear_paths
from pathsum.torch.paths.ctc import CTC, chain_paths

__all__ = ["ctc_linear_loss", "ctc_loss", "global_mean", "rnnt_joint_loss"]


def ctc_loss(
    local_logits: Tensor,
    targets: Integers,
    input_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int = 0,
    reduction: ReductionName = "mean",
    zero_infinity: bool = False,
    *,
    group: Any = None,
    shard: ProcessShard | None = None,
    fused_log_softmax: bool = True,
    batch_first: bool = False,
    impl: TorchImpl = "auto",
) -> Tensor:
    """CTC loss of scores whose classes, frames or samples are shared out among processes.

    The loss of ``pathsum.torch.ctc_loss`` for the scores of all processes put together. The shares may differ in size,
    and a process may have none.

    Args:
        local_logits: This process's logits, (T, N, C_r) of its classes or (T_r, N, C) of its frames, which stand in the
            order of the ranks; (T, C_r) or (T_r, C) for one sample. A tensor, a NumPy array, or a ``DTensor`` that is
            ``Shard``-ed along one of these axes. Of its samples (T, N_r, C), with their own T and integers.
        targets: Labels (N, S) or (sum of target_lengths,), numbered among all classes; the same on every process.
        input_lengths: Frames of each sample (N,), counted over all processes.
        target_lengths: Labels of each sample (N,).
        blank: Index of the blank among all classes; negative counts from the end.
        reduction: As in ``pathsum.torch.ctc_loss``.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        group: A ``ProcessGroup``, or a ``DeviceMesh`` of one axis. ``None``: a ``DTensor``'s own, or all processes.
        shard: What is shared out: ``"classes"``, ``"frames"`` or, as under DDP and FSDP2, ``"samples"``. ``None``: what
            a ``DTensor`` says, or classes.
        fused_log_softmax: Their log-softmax over all classes is taken inside; where False they are log-probabilities.
        batch_first: ``local_logits`` are (N, T, C).
        impl: As in ``pathsum.torch.ctc_loss``, for what sums the paths.

    Returns:
        The reduced loss, the same on every process.

    Raises:
        InvalidValueError: As in ``pathsum.torch.ctc_loss``, on every process where it is raised on one; and where
            processes were given different integers, options or sizes.
        InvalidTypeError: A dtype that is not accepted.
        ProcessesError: (a RuntimeError) a process has gone, or did not come before the group's time was out.

    Notes:
        Each process calls ``backward`` of the loss with the same upstream gradient, and gets the gradient by its own
        share. For classes backward says nothing to the others; for frames every process has to call it. For samples it
        says nothing, and gives the gradient times the number of processes: DDP and FSDP2 average what these have, and
        so come to the gradient of the mean, or sum, over the samples of all. With ``"none"`` there are no others.

        What a process is sent: for classes, the maxima and sums of the rows and the columns of the blank and the S
        labels, ``(S + 3) * T * N`` numbers, where gathering the logits would take ``C * T * N``. For frames each
        process solves ``N / R`` of the samples and is sent their columns, and in backward the posteriors of its frames:
        ``2 * T * N * (S + 1) / R`` numbers, and a loss a sample. Of fewer samples than processes each solves its own
        frames, after the process before it and in backward before it: ``N * (2 * S + 2)`` numbers pass each boundary
        either way. The kernels for GPUs do not do that, and share out samples always.

        Twice differentiable where every process asks for it.

    Example:
        >>> import torch, tempfile
        >>> import torch.distributed as dist
        >>> from pathsum.torch.distributed import ctc_loss
        >>> with tempfile.TemporaryDirectory() as folder:  # a group of one; torchrun starts more
        ...     dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        ...     loss = ctc_loss(torch.zeros(3, 1, 2), [[1]], [3], [1], reduction="none")
        ...     dist.destroy_process_group()
        >>> round(loss.exp().item(), 4)
        1.3333
    """
    function = "ctc_loss"
    if shard == "samples":

        def of_own() -> Tensor:
            return ctc.ctc_loss(
                local_logits, targets, input_lengths, target_lengths, blank, "none", zero_infinity,
                fused_log_softmax=fused_log_softmax, batch_first=batch_first, impl=impl,
            )  # fmt: skip

        return _of_samples(function, group, of_own, target_lengths, reduction, _device(local_logits))
    local, group, shard = _of_dtensor(function, "local_logits", local_logits, group, shard, batch_first)
    processes = Processes(function, group)

    def check() -> tuple[tuple[Tensor, bool, bool], int, Mapping[str, Any]]:
        _checks.check_option(function, "shard", shard, PROCESS_SHARDS)
        _checks.check_reduction(function, reduction)
        flags = [
            _checks.check_flag(function, name, value)
            for name, value in (
                ("zero_infinity", zero_infinity), ("fused_log_softmax", fused_log_softmax), ("batch_first", batch_first)
            )
        ]  # fmt: skip
        scores = as_scores(local)
        axes, single = ("C_r", "(T, C_r)") if shard == "classes" else ("C", "(T_r, C)")
        time = "T" if shard == "classes" else "T_r"
        full = f"(N, {time}, {axes})" if batch_first else f"({time}, N, {axes})"
        shape = shape_of(scores)
        # A process may have no classes.
        shape = (*shape[:-1], max(shape[-1], 1)) if shape and shard == "classes" else shape
        _checks.check_scores(function, "local_logits", dtype_of(scores), shape, (full, single))
        dispatch.select(function, scores.device.type, impl)
        batched = scores.ndim == 3
        first = scores[None] if not batched else scores if batch_first else scores.transpose(0, 1)
        size, others = (2, first.shape[:2]) if shard == "classes" else (1, first.shape[::2])
        options = (function, shard, reduction, flags, blank, impl, batched, dtype_of(scores), _asks(scores))
        integers = _integers(function, targets, input_lengths, target_lengths)
        return (
            (first, batched, flags[0]),
            first.shape[size],
            {"the shape": tuple(others), "options": options} | integers,
        )

    (scores, batched, zero), share = processes.agreed(check, _device(local))
    size = (*scores.shape[:2], share.total) if shard == "classes" else (len(scores), share.total, scores.shape[2])
    stand_in = _stand_in(scores, size, batched)
    integers = (targets, input_lengths, target_lengths)
    paths = chain_paths(function, CTC, stand_in, *integers, blank, batch_first=True, impl=impl)
    columns, paths.lattice = columns_of(paths.lattice)
    logits = bool(fused_log_softmax)
    if shard == "classes":
        paths.scores = columns_of_classes(scores, columns, share, processes, logits=logits)
        return paths.loss(reduction, zero)
    losses = losses_of_frames(paths, columns, scores, share, processes, logits=logits)
    lengths = paths.target_lengths if reduction == "mean" else None
    return as_given(Reduction(paths.dtype, reduction, lengths, zero).of(losses), batched, reduction)


def ctc_linear_loss(
    hidden: Tensor,
    local_weight: Tensor,
    local_bias: Tensor | None,
    targets: Integers,
    input_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int = 0,
    reduction: ReductionName = "mean",
    zero_infinity: bool = False,
    *,
    group: Any = None,
    shard: LayerShard = "classes",
    batch_first: bool = False,
    chunk: int | None = None,
    impl: TorchImpl = "auto",
) -> Tensor:
    """CTC loss of a linear layer's output that is never held, the layer's classes being shared out among processes.

    The loss of ``pathsum.torch.ctc_linear_loss`` for the weights of all processes put together.

    Args:
        hidden: What the layer is given (T, N, H), or (T, H) for one sample; the same on every process.
        local_weight: This process's rows of the weight (C_r, H), in the order of the ranks; or a ``DTensor`` that is
            ``Shard(0)``. It may have none.
        local_bias: This process's part of the bias (C_r,), or a ``DTensor``; or ``None``.
        targets: As in ``ctc_loss``, and so are the integers below.
        input_lengths: Frames of each sample (N,).
        target_lengths: Labels of each sample (N,).
        blank: Index of the blank among all classes; negative counts from the end.
        reduction: As in ``pathsum.torch.ctc_loss``.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        group: As in ``ctc_loss``.
        shard: ``"classes"``, or ``"samples"``: then weight and bias are whole, all else is of this process's samples,
            and the loss is as in ``ctc_loss``.
        batch_first: ``hidden`` is (N, T, H).
        chunk: As in ``pathsum.torch.ctc_linear_loss``.
        impl: As there.

    Returns:
        The reduced loss, the same on every process.

    Raises:
        InvalidValueError: As in ``ctc_loss``.
        InvalidTypeError: As in ``ctc_loss``.
        ProcessesError: As in ``ctc_loss``.

    Notes:
        Every process gets the whole gradient by ``hidden``, which backward sums over the processes, ``T * N * H``
        numbers, and that by its own weight and bias. In forward ``(S + 3) * T * N`` numbers are summed. So all
        processes have to call backward. Twice differentiable.

    Example:
        >>> import torch, tempfile
        >>> import torch.distributed as dist
        >>> from pathsum.torch.distributed import ctc_linear_loss
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        ...     loss = ctc_linear_loss(torch.zeros(3, 1, 4), torch.zeros(2, 4), None, [[1]], [3], [1], reduction="none")
        ...     dist.destroy_process_group()
        >>> round(loss.exp().item(), 4)
        1.3333
    """
    function = "ctc_linear_loss"
    if shard == "samples":

        def of_own() -> Tensor:
            return linear.ctc_linear_loss(
                hidden, local_weight, local_bias, targets, input_lengths, target_lengths, blank, "none", zero_infinity,
                batch_first=batch_first, chunk=chunk, impl=impl,
            )  # fmt: skip

        return _of_samples(function, group, of_own, target_lengths, reduction, _device(hidden))
    weight, group = _rows_of_dtensor(function, "local_weight", local_weight, group)
    bias, group = _rows_of_dtensor(function, "local_bias", local_bias, group)
    processes = Processes(function, group)

    def check() -> tuple[Any, int, Mapping[str, Any]]:
        _checks.check_option(function, "shard", shard, LAYER_SHARDS)
        _checks.check_reduction(function, reduction)
        _checks.check_flag(function, "zero_infinity", zero_infinity)
        size = 0 if chunk is None else _checks.check_count(function, "chunk", chunk, 1)
        operands, batched = check_operands(function, hidden, weight, bias, batch_first, LOCAL)
        dispatch.select(function, operands[0].device.type, impl)
        flags = (zero_infinity, batch_first, batched, bias is None, dtype_of(operands[0]), _asks(operands[0]))
        options = (function, reduction, blank, impl, flags)
        integers = _integers(function, targets, input_lengths, target_lengths)
        facts = {"the shape": tuple(operands[0].shape), "options": options} | integers
        return (operands, batched, min(size, 2**31 - 1)), len(operands[1]), facts

    (operands, batched, size), share = processes.agreed(check, _device(weight))
    integers = (targets, input_lengths, target_lengths)
    options = LinearOptions(size, processes.name, share.first)
    paths = linear_paths(
        function, operands, batched, integers, blank, options, num_classes=share.total, check="sync", impl=impl
    )
    return paths.loss(reduction, zero_infinity)


def rnnt_joint_loss(
    encoder_out: Tensor,
    predictor_out: Tensor,
    local_weight: Tensor,
    local_bias: Tensor | None,
    targets: Integers,
    logit_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int = -1,
    *,
    activation: Activation = "tanh",
    reduction: ReductionName = "mean",
    fastemit_lambda: float = 0.0,
    zero_infinity: bool = False,
    rnnt_type: RNNTType = "regular",
    delay_penalty: float = 0.0,
    group: Any = None,
    shard: LayerShard = "classes",
    impl: TorchImpl = "auto",
) -> Tensor:
    """Transducer loss of a joiner whose logits are never held, its classes being shared out among processes.

    The loss of ``pathsum.torch.rnnt_joint_loss`` for the weights of all processes put together.

    Args:
        encoder_out: Encoder output (N, T, H), or (T, H) for one sample; the same on every process.
        predictor_out: Predictor output (N, U+1, H), or (U+1, H); the same on every process.
        local_weight: This process's rows of the output layer (V_r, H), in the order of the ranks; or a ``DTensor`` that
            is ``Shard(0)``. It may have none.
        local_bias: This process's part of its bias (V_r,), or a ``DTensor``; or ``None``.
        targets: Labels (N, U) or (sum of target_lengths,), numbered among all classes; the same on every process.
        logit_lengths: Frames of each sample (N,).
        target_lengths: Labels of each sample (N,).
        blank: Index of the blank among all classes; negative counts from the end.
        activation: As in ``pathsum.torch.rnnt_joint_loss``, and so are the options below.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: the mean over N, lengths not counted.
        fastemit_lambda: Labels' posteriors count 1 + lambda times in the gradient.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        rnnt_type: The type of transducer.
        delay_penalty: What is added to the scores of labels that come early.
        group: As in ``ctc_loss``.
        shard: ``"classes"``, or ``"samples"``: then weight and bias are whole, all else is of this process's samples,
            and the loss is as in ``ctc_loss``.
        impl: What sums the paths; the products are torch's.

    Returns:
        The reduced loss, the same on every process.

    Raises:
        InvalidValueError: As in ``ctc_loss``.
        InvalidTypeError: As in ``ctc_loss``.
        ProcessesError: As in ``ctc_loss``.

    Notes:
        Forward sums four numbers a node (t, u) over the processes; backward the gradients by encoder and predictor,
        ``N * (T + U + 1) * H`` numbers, which every process gets whole. So all processes have to call backward. Once
        differentiable.

    Example:
        >>> import torch, tempfile
        >>> import torch.distributed as dist
        >>> from pathsum.torch.distributed import rnnt_joint_loss
        >>> encoder_out, predictor_out, weight = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(2, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        ...     loss = rnnt_joint_loss(encoder_out, predictor_out, weight, None, [[0]], [2], [1])
        ...     dist.destroy_process_group()
        >>> round(loss.exp().item(), 4)
        4.0
    """
    function = "rnnt_joint_loss"
    if shard == "samples":

        def of_own() -> Tensor:
            return joint.rnnt_joint_loss(
                encoder_out, predictor_out, local_weight, local_bias, targets, logit_lengths, target_lengths, blank,
                activation=activation, reduction="none", fastemit_lambda=fastemit_lambda, zero_infinity=zero_infinity,
                rnnt_type=rnnt_type, delay_penalty=delay_penalty, impl=impl,
            )  # fmt: skip

        return _of_samples(function, group, of_own, None, reduction, _device(encoder_out))
    weight, group = _rows_of_dtensor(function, "local_weight", local_weight, group)
    bias, group = _rows_of_dtensor(function, "local_bias", local_bias, group)
    processes = Processes(function, group)

    def check() -> tuple[Any, int, Mapping[str, Any]]:
        _checks.check_option(function, "shard", shard, LAYER_SHARDS)
        _checks.check_reduction(function, reduction)
        _checks.check_flag(function, "zero_infinity", zero_infinity)
        _checks.check_option(function, "rnnt_type", rnnt_type, RNNT_TYPES)
        numbers = (
            _checks.check_number(function, "fastemit_lambda", fastemit_lambda, minimum=0.0),
            _checks.check_number(function, "delay_penalty", delay_penalty),
        )
        joiner = Joiner(encoder_out, predictor_out, weight, bias, activation=activation)
        joiner, batched = check_joiner(function, joiner, LOCAL)
        chosen = dispatch.select(function, joiner.device.type, impl)
        shapes = (tuple(joiner.encoder_out.shape), tuple(joiner.predictor_out.shape))
        flags = (zero_infinity, batched, bias is None, _asks(joiner.encoder_out), _asks(joiner.predictor_out))
        dtype = dtype_of(joiner.encoder_out)
        options = (function, activation, reduction, numbers, rnnt_type, blank, impl, dtype, flags)
        integers = _integers(function, targets, logit_lengths, target_lengths, "logit_lengths")
        facts = {"the shape": shapes, "options": options} | integers
        return (joiner, batched, chosen, numbers), len(joiner.weight), facts

    (joiner, batched, chosen, (fastemit, delay)), share = processes.agreed(check, _device(weight))
    integers: Any = (targets, logit_lengths, target_lengths)
    integers = integers if batched else batch_of_one(function, integers)
    shape = (*joiner.shape[:3], share.total)
    nodes = Nodes.of(function, shape, integers, blank, rnnt_type, joiner.device)
    size, place, labels = share.sizes[share.rank], nodes.blank - share.first, nodes.label - share.first
    inside = nodes.has_label & (labels >= 0) & (labels < size)
    own = OwnNodes(
        nodes.sample, nodes.frame, nodes.position, torch.where(inside, labels, 0), inside,
        place if 0 <= place < size else None,
    )  # fmt: skip
    operands = (joiner.encoder_out, joiner.predictor_out, joiner.weight, joiner.bias)
    blank_scores, label_scores = planes_of_joiner(operands, own, activation, processes)
    options = ArcOptions(delay_penalty=delay, fastemit_lambda=fastemit)
    losses = nodes.losses(blank_scores, label_scores, options, chosen)
    return as_given(reduce(finish(losses, joiner, zero_infinity), reduction), batched, reduction)


def global_mean(losses: Tensor, target_lengths: Integers | None = None, *, group: Any = None) -> Tensor:
    """The mean over the samples of all processes, of any loss, for DDP and FSDP2.

    What ``ctc_loss(shard="samples")`` does, for the losses that no function here has. The mean of each process's own
    mean is not that of all samples where one has more samples than another.

    Args:
        losses: This process's losses (N_r,), of any loss with ``reduction="none"``. There may be none.
        target_lengths: What each loss is divided by first, at least 1, as CTC's ``"mean"`` does it. ``None``: 1.
        group: As in ``ctc_loss``: the processes among which the samples are shared out.

    Returns:
        A tensor of no axis, the same on every process. Its gradient is that of the mean times the number of processes,
        by which DDP and FSDP2 divide.

    Raises:
        InvalidValueError: Another shape, on every process where it is raised on one.
        InvalidTypeError: No tensor of floats, or no integers.
        ProcessesError: As in ``ctc_loss``.

    Example:
        >>> import torch, tempfile
        >>> import torch.distributed as dist
        >>> from pathsum.torch.distributed import global_mean
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        ...     mean = global_mean(torch.tensor([4.0, 6.0]), [2, 3])
        ...     dist.destroy_process_group()
        >>> mean.item()
        2.0
    """
    function = "global_mean"

    def checked() -> Tensor:
        if not isinstance(losses, Tensor) or not losses.is_floating_point():
            raise InvalidTypeError(function, "losses", "be a tensor of floats", dtype_of(losses))
        if losses.ndim != 1:
            raise InvalidValueError(function, "losses", "have shape (N)", f"shape {tuple(losses.shape)}")
        return losses

    return _of_samples(function, group, checked, target_lengths, "mean", _device(losses))


def _of_samples(
    function: str, group: Any, losses: Callable[[], Tensor], target_lengths: Any, reduction: ReductionName, device: Any
) -> Tensor:
    """What becomes of the losses of this process's samples beside those of the others; a mean divides by lengths."""
    processes = Processes(function, group)

    def check() -> tuple[Tensor, int, Mapping[str, Any]]:
        _checks.check_reduction(function, reduction)
        own = losses()
        if reduction == "mean" and target_lengths is not None:
            given = as_integers(function, "target_lengths", target_lengths)
            lengths = _checks.check_integers(function, "target_lengths", given, (1,) if own.ndim else (0, 1)).ravel()
            _checks.check_lengths(function, "target_lengths", lengths, own.numel(), "L", None)
            own = own / torch.from_numpy(lengths).view(own.shape).clamp(min=1).to(own.device)
        return own, own.numel(), {"options": (function, "samples", reduction)}

    own, share = processes.agreed(check, device)
    if reduction == "none":
        return own
    return averaged(own.sum() * (processes.size / (max(share.total, 1) if reduction == "mean" else 1)), processes)


def _of_dtensor(
    function: str, argument: str, value: Any, group: Any, shard: Any, batch_first: Any
) -> tuple[Any, Any, Any]:
    """The tensor of this process, the group and what is shared out; of a ``DTensor`` what it says itself."""
    if not _is_dtensor(value):
        return value, group, "classes" if shard is None else shard
    axis = _sharded_axis(function, argument, value)
    frames = 0 if value.ndim == 2 or not batch_first else 1
    own = {value.ndim - 1: "classes", frames: "frames"}.get(axis)
    if own is None or shard not in (None, own):
        rule = f"be a DTensor whose {shard or 'classes or frames'} are shared out"
        raise InvalidValueError(function, argument, rule, f"Shard({axis})")
    return value.to_local(), value.device_mesh.get_group() if group is None else group, own


def _rows_of_dtensor(function: str, argument: str, value: Any, group: Any) -> tuple[Any, Any]:
    """As ``_of_dtensor``, of what has a row a class."""
    if not _is_dtensor(value):
        return value, group
    axis = _sharded_axis(function, argument, value)
    if axis != 0:
        raise InvalidValueError(function, argument, "be a DTensor whose classes are shared out", f"Shard({axis})")
    return value.to_local(), value.device_mesh.get_group() if group is None else group


def _is_dtensor(value: Any) -> bool:
    return isinstance(value, Tensor) and hasattr(value, "device_mesh") and hasattr(value, "placements")


def _sharded_axis(function: str, argument: str, value: Any) -> int:
    mesh, placements = value.device_mesh, value.placements
    if mesh.ndim != 1 or not placements[0].is_shard():
        rule = "be a DTensor that is Shard-ed over a mesh of one axis"
        raise InvalidValueError(function, argument, rule, f"{placements} over {mesh.ndim} axes")
    return placements[0].dim % value.ndim


def _device(value: Any) -> Any:
    """Where the few numbers of an agreement travel: on the device of the scores."""
    return value.device if isinstance(value, Tensor) and not value.is_meta else "cpu"


def _integers(
    function: str, targets: Any, input_lengths: Any, target_lengths: Any, lengths_name: str = "input_lengths"
) -> dict[str, Any]:
    """The integers by name, as far as they can be compared."""
    given = {"targets": targets, lengths_name: input_lengths, "target_lengths": target_lengths}
    arrays = {name: as_integers(function, name, value) for name, value in given.items()}
    return {name: array.astype("int64") if array.dtype.kind in "iu" else array for name, array in arrays.items()}


def _asks(tensor: Tensor) -> bool:
    """Whether a gradient may be asked for: backward is together, too."""
    return torch.is_grad_enabled() and tensor.requires_grad


def _stand_in(scores: Tensor, shape: tuple[int, ...], batched: bool) -> Tensor:
    """Of the shape of all scores, and of one element: what the arguments are checked against."""
    whole = scores.detach().new_zeros(1).expand(shape)
    return whole if batched else whole[0]
