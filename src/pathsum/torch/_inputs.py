"""What the public functions do to their arguments alike, and to the losses at last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathsum import _checks
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.kernels.numba.posing import COMPILED
from pathsum.lattice import GridLattice
from pathsum.options import ReductionName
from pathsum.problems.rnnt import pose_rnnt
from pathsum.torch._bounded import (
    Unread,
    check_integer_dtype,
    posed,
    special_kind,
    unread_alignment,
    unread_batch,
    valueless_kind,
)
from pathsum.torch._ops.arrays import as_tensor, work_dtype
from pathsum.torch._ops.checks import check_alignment, check_batch
from pathsum.torch._private import peek_interpreter_stack
from pathsum.torch.joiner import ACTIVATIONS, Joiner

Integers = Tensor | np.ndarray | Sequence[int] | Sequence[Sequence[int]]
# Several a sample, (N, K, U).
Hypotheses = Integers | Sequence[Sequence[Sequence[int]]]

# How the names of weight and bias begin where they are one process's own.
LOCAL = "local_"
# The layouts of a transducer's logits.
PADDED, SINGLE, PACKED = "(N, T, U+1, V)", "(T, U+1, V)", "(rows, V)"


def as_scores(value: Any) -> Any:
    """A NumPy array as a tensor, of the same memory where torch can share it. All else comes back as it is.

    A tensor whose sign is a bit of its own, which no kernel looks at, comes back with its values.
    """
    if isinstance(value, Tensor):
        return value if values_unknown() or not value.is_neg() or special_kind(value) else value.resolve_neg()
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        return value
    dtype = value.dtype
    if dtype.name not in _checks.SCORE_DTYPES:
        return value
    # torch has no negative strides, no foreign byte order, and no memory that must not be written.
    whole = all(step >= 0 and step % dtype.itemsize == 0 for step in value.strides)
    if not (whole and dtype.isnative and value.flags.writeable):
        value = value.astype(dtype.newbyteorder("="), order="C")
    if dtype.name == "bfloat16":  # no dtype of NumPy's own
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)


_SCORE_DTYPES = {getattr(torch, name) for name in _checks.SCORE_DTYPES}


def are_scores(value: Any, ranks: tuple[int, ...]) -> bool:
    """Whether ``_checks.check_scores`` has nothing to say, as it mostly has not: its words take longer than a loss."""
    if type(value) not in (Tensor, torch.nn.Parameter) or value.layout is not torch.strided or value.is_nested:
        return False
    return value.dtype in _SCORE_DTYPES and value.ndim in ranks and value.shape[-1] > 0


def dtype_of(scores: Any) -> str:
    if isinstance(scores, np.ndarray):
        return f"a NumPy {type(scores).__name__} of {scores.dtype.name}"
    if not isinstance(scores, Tensor):
        return type(scores).__name__
    dtype, kind = str(scores.dtype).removeprefix("torch."), special_kind(scores)
    return dtype if kind is None else f"a {kind} of {dtype}"


def shape_of(scores: Any) -> tuple[int, ...]:
    if isinstance(scores, Tensor) and scores.is_nested:
        return ()
    return tuple(scores.shape) if isinstance(scores, (Tensor, np.ndarray)) else ()


def samples_first(
    function: str, argument: str, scores: Any, batch_first: bool, classes: str = "C"
) -> tuple[Tensor, bool]:
    """Scores (N, T, C), checked, and whether the caller's had a batch axis; one sample may come without, as (T, C)."""
    scores, frames_first, batched = in_frames(function, argument, scores, batch_first, classes)
    return (scores.transpose(0, 1) if frames_first else scores), batched


def in_frames(
    function: str, argument: str, scores: Any, batch_first: bool, classes: str = "C"
) -> tuple[Tensor, bool, bool]:
    """The same as they are, and whether their axes are (T, N, C)."""
    batch_first = _checks.check_flag(function, "batch_first", batch_first)
    scores = as_scores(scores)
    if not are_scores(scores, (2, 3)):
        axes = f"(N, T, {classes})" if batch_first else f"(T, N, {classes})"
        _checks.check_scores(function, argument, dtype_of(scores), shape_of(scores), (axes, f"(T, {classes})"))
    if scores.ndim == 2:
        return scores.unsqueeze(0), False, False
    return scores, not batch_first, True


def own_blank(function: str, blank: Any, num_classes: int | None) -> int:
    """The blank as a class; a negative one counts from the end of the classes, which have to be known then."""
    if num_classes is not None:
        return _checks.check_blank(function, blank, _checks.check_num_classes(function, num_classes))
    if isinstance(blank, (int, np.integer)) and blank < 0:
        raise InvalidValueError(function, "blank", "be at least 0 where num_classes is not given", blank)
    return _checks.check_count(function, "blank", blank, maximum=2**31 - 1)


def check_generator(function: str, generator: Any) -> None:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InvalidTypeError(function, "generator", "be a torch.Generator", type(generator).__name__)


def check_values(function: str, argument: str, scores: Tensor) -> None:
    """Scores must have values to look at."""
    kind = valueless_kind(scores)
    if kind is not None:
        raise InvalidTypeError(function, argument, "be a tensor that has values", f"a {kind} of {dtype_of(scores)}")


def tdt_durations(function: str, durations: Any) -> tuple[int, ...]:
    """The durations of a token-and-duration transducer, checked."""
    if type(durations) in (list, tuple) and set(map(type, durations)) == {int}:
        return _known_durations(function, tuple(durations))
    return _durations(function, durations)


def _durations(function: str, durations: Any) -> tuple[int, ...]:
    steps = _checks.check_durations(function, "durations", durations, minimum=0)
    if max(steps) == 0:
        raise InvalidValueError(function, "durations", "have one above 0", list(steps))
    return steps


# A model's are the same at every call.
_known_durations = lru_cache(maxsize=64)(_durations)


def as_integers(function: str, argument: str, value: Any) -> np.ndarray:
    """A tensor, array or list of integers as an array, its memory shared where it can be."""
    if isinstance(value, Tensor):
        check_integer_dtype(function, argument, value)
        kind = valueless_kind(value)
        if kind is not None:
            raise InvalidTypeError(function, argument, "be integers that have values", f"a {kind}")
        return value.cpu().resolve_neg().numpy()
    return _checks.integers_as_array(function, argument, value)


def as_integer_tensor(function: str, argument: str, value: Any) -> Tensor:
    """A tensor or list of integers as a tensor."""
    if isinstance(value, Tensor):
        check_integer_dtype(function, argument, value)
        return value
    _checks.check_unmasked(function, argument, value)
    try:
        return torch.as_tensor(value, device="cpu")
    except (RuntimeError, TypeError, ValueError) as error:
        raise InvalidValueError(function, argument, "be a rectangular array of 64-bit integers", value) from error


def values_unknown() -> bool:
    """Whether a graph is traced or a transform of ``torch.func`` runs: then integers may have no values to look at, and
    are checked by an operator.
    """
    return torch.compiler.is_compiling() or peek_interpreter_stack() is not None


def as_values(function: str, argument: str, value: Any) -> Any:
    """Integers as an array, or as a tensor where their values are unknown."""
    return (as_integer_tensor if values_unknown() else as_integers)(function, argument, value)


def as_batch(
    function: str,
    targets: Integers,
    input_lengths: Integers | int,
    target_lengths: Integers | int,
    *,
    lengths_name: str = "input_lengths",
    batched: bool = True,
    num_samples: int | None,
    num_frames: int | None,
    max_labels: int | None,
    num_classes: int,
    blank: int | None,
    big_blanks: Sequence[int] = (),
    num_rows: int | None = None,
    scores: str = "logits",
    known: bool = False,
    device: torch.device | None = None,
) -> _checks.Batch | Unread:
    """The integers of a call, checked: NumPy arrays, or tensors where their values are unknown.

    ``known``: they must have values, whoever traces. Where a ``device`` is given they stay there, unread.
    """
    given = {"targets": targets, lengths_name: input_lengths, "target_lengths": target_lengths}
    if device is not None:
        labels, *lengths = (as_integer_tensor(function, name, value) for name, value in given.items())
        lengths = lengths if batched else [tensor.reshape(-1) for tensor in lengths]
        sizes = (num_samples, num_frames, max_labels, num_classes, blank, num_rows, big_blanks)
        return unread_batch(function, lengths_name, labels, lengths[0], lengths[1], device, *sizes)
    if values_unknown() and not known:
        tensors = [as_integer_tensor(function, name, value) for name, value in given.items()]
        tensors = tensors if batched else [tensors[0], *(tensor.reshape(-1) for tensor in tensors[1:])]
        sizes = (num_samples, num_frames, max_labels, num_classes, blank, list(big_blanks), num_rows, scores)
        return _checks.Batch(*check_batch(*tensors, function, lengths_name, *sizes))
    arrays = [as_integers(function, name, value) for name, value in given.items()]
    return _checks.check_batch(
        function,
        *(arrays if batched else [arrays[0], *map(np.atleast_1d, arrays[1:])]),
        lengths_name=lengths_name,
        num_samples=num_samples,
        num_frames=num_frames,
        max_labels=max_labels,
        num_classes=num_classes,
        blank=blank,
        big_blanks=big_blanks,
        num_rows=num_rows,
        scores=scores,
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
    return torch.from_numpy(length_array(function, argument, lengths, num_samples, num_frames, batched))


def length_array(
    function: str,
    argument: str,
    lengths: Integers | int | None,
    num_samples: int,
    num_frames: int,
    batched: bool = True,
) -> np.ndarray:
    """As ``check_lengths``, for those who may be traced or transformed."""
    if lengths is None:
        return np.full(num_samples, num_frames)
    checked = _checks.check_integers(function, argument, as_lengths(function, argument, lengths, batched), (1,))
    _checks.check_lengths(function, argument, checked, num_samples, "T", num_frames)
    return checked


def of_samples(batched: bool, *results: Tensor) -> tuple[Tensor, ...]:
    """Results with the samples first, or those of the one sample that came without a batch axis."""
    return results if batched else tuple(result[0] for result in results)


def check_table(function: str, argument: str, table: Any, scores: Tensor, axes: str) -> None:
    expected = (scores.shape[2],) * (axes.count("C"))
    if are_scores(table, (len(expected),)) and table.shape == expected and table.dtype == scores.dtype:
        if table.device == scores.device:
            return
    _checks.check_table(function, argument, dtype_of(table), shape_of(table), axes, expected, dtype_of(scores))
    _checks.check_device(function, argument, str(table.device), str(scores.device))


def check_operand(function: str, argument: str, operand: Any, axes: str) -> None:
    """A layer's weight or bias; a bias named as a process's own may be of no classes, as its weight may."""
    if are_scores(operand, (axes.count(",") + 1,)):
        return
    shape = shape_of(operand)
    if argument.startswith(LOCAL) and len(shape) == 1:
        shape = (max(shape[0], 1),)
    _checks.check_scores(function, argument, dtype_of(operand), shape, (axes,))


def check_joiner(function: str, joiner: Joiner, prefix: str = "") -> tuple[Joiner, bool]:
    """The joiner with its operands cast, all checked, and whether encoder and predictor had a batch axis.

    ``prefix``: of the names that errors give to weight and bias, ``LOCAL`` where these are a process's own.
    """
    given = {name: as_scores(getattr(joiner, name)) for name in ("encoder_out", "predictor_out", "weight", "bias")}
    given["encoder_out"], given["predictor_out"], batched = joined_in_batch(
        function, given["encoder_out"], given["predictor_out"]
    )
    for name, axes in (("weight", "(V, H)"), ("bias", "(V)")):
        if name != "bias" or given[name] is not None:
            check_operand(function, prefix + name, given[name], axes)
    joiner = replace(joiner, **given).cast()
    operands, weight, bias = joiner.operands, prefix + "weight", prefix + "bias"
    for name, operand in zip(("encoder_out", "predictor_out", weight, bias), operands, strict=True):
        if operand.dtype != joiner.dtype or operand.device != joiner.device:
            rule = f"have encoder_out's dtype and device, {dtype_of(joiner.encoder_out)} on {joiner.device}"
            raise InvalidTypeError(function, name, rule, f"{dtype_of(operand)} on {operand.device}")
    num_samples, _, size = joiner.encoder_out.shape
    check_shape(function, "predictor_out", operands[1], (num_samples, None, size), "(N, U+1, H)")
    check_shape(function, weight, operands[2], (None, size), "(V, H)")
    check_shape(function, bias, operands[3], (len(operands[2]),), "(V)")
    _checks.check_option(function, "activation", joiner.activation, tuple(ACTIVATIONS))
    if joiner.gate is not None:
        _checks.check_number(function, "gate", joiner.gate, minimum=0.0)
    if joiner.tile_memory is not None:
        _checks.check_number(function, "tile_memory", joiner.tile_memory, minimum=1.0)
    return joiner, batched


def joined_in_batch(function: str, encoder_out: Any, predictor_out: Any) -> tuple[Tensor, Tensor, bool]:
    """What a joiner joins, (N, T, H) and (N, U+1, H), checked; and whether both had a batch axis."""
    layouts = ("(N, T, H) or (T, H)", "(N, U+1, H) or (U+1, H)")
    operands = [as_scores(operand) for operand in (encoder_out, predictor_out)]
    for name, operand, axes in zip(("encoder_out", "predictor_out"), operands, layouts, strict=True):
        if not are_scores(operand, (2, 3)):
            _checks.check_scores(function, name, dtype_of(operand), shape_of(operand), tuple(axes.split(" or ")))
    encoder_out, predictor_out = operands
    if encoder_out.ndim != predictor_out.ndim:
        rule = f"have as many axes as encoder_out, {encoder_out.ndim}"
        raise InvalidValueError(function, "predictor_out", rule, f"shape {tuple(predictor_out.shape)}")
    if encoder_out.ndim == 3:
        return encoder_out, predictor_out, True
    return encoder_out[None], predictor_out[None], False


def check_shape(function: str, argument: str, tensor: Tensor, sizes: tuple[int | None, ...], axes: str) -> None:
    """The sizes that are given must be the tensor's."""
    if any(size is not None and size != actual for size, actual in zip(sizes, tensor.shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in sizes)
        raise InvalidValueError(function, argument, f"have shape {axes} = ({wanted})", f"shape {tuple(tensor.shape)}")


def pose_grid(
    function: str,
    integers: Sequence[Any],
    blank: int,
    *,
    num_samples: int | None,
    num_frames: int | None,
    max_labels: int | None,
    num_classes: int,
    big_blanks: Sequence[int] = (),
    num_rows: int | None = None,
    scores: str = "logits",
    device: torch.device | None = None,
) -> GridLattice:
    """The grid of a batch, its integers checked; the blank is a class that has been."""
    targets, logit_lengths, target_lengths = integers
    if num_samples is not None and num_frames is not None and max_labels is not None and device is None:
        arrays = None if big_blanks else plain_integers(targets, logit_lengths, target_lengths)
        lattice = posed_at_once(pose_rnnt, arrays, num_samples, num_frames, max_labels, num_classes, blank)
        if lattice is not None:
            return lattice
    batch = as_batch(
        function,
        targets,
        logit_lengths,
        target_lengths,
        lengths_name="logit_lengths",
        num_samples=num_samples,
        num_frames=num_frames,
        max_labels=max_labels,
        num_classes=num_classes,
        blank=blank,
        big_blanks=big_blanks,
        num_rows=num_rows,
        scores=scores,
        device=device,
    )
    return posed(pose_rnnt, batch, blank)


def pose_nodes(
    function: str,
    shape: tuple[int, int, int, int],
    integers: Sequence[Any],
    blank: int,
    *,
    big_blanks: Sequence[int] = (),
    device: torch.device | None = None,
) -> GridLattice:
    """The grid of logits of a shape (N, T, U+1, V), which need not exist."""
    num_samples, num_frames, width, num_classes = shape
    return pose_grid(
        function,
        integers,
        blank,
        num_samples=num_samples,
        num_frames=num_frames,
        max_labels=width - 1,
        num_classes=num_classes,
        big_blanks=big_blanks,
        device=device,
    )


def in_batch(
    function: str,
    logits: Tensor,
    integers: Sequence[Any],
    argument: str = "logits",
    layouts: tuple[str, ...] = (PADDED, SINGLE),
) -> tuple[Tensor, list[Any], bool]:
    """Logits and integers, those of one sample without a batch axis with it; and whether they had it.

    The integers are targets, logit_lengths and target_lengths, and an alignment where there is one.
    """
    if not are_scores(logits, tuple(text.count(",") + 1 for text in layouts)):
        _checks.check_scores(function, argument, dtype_of(logits), shape_of(logits), layouts)
    if logits.ndim > 2 and logits.shape[-2] < 1:
        axes = PADDED if logits.ndim == 4 else SINGLE
        raise InvalidValueError(function, argument, f"have shape {axes}", f"shape {tuple(logits.shape)}")
    if logits.ndim != 3:
        return logits, list(integers), True
    return logits[None], batch_of_one(function, integers), False


def batch_of_one(function: str, integers: Sequence[Any]) -> list[Tensor]:
    """The integers of one sample, those that lack the batch axis with it."""
    names, axes = ("targets", "logit_lengths", "target_lengths", "alignment"), (2, 1, 1, 2)
    tensors = [as_integer_tensor(function, name, value) for name, value in zip(names, integers, strict=False)]
    return [tensor[None] if tensor.ndim == own - 1 else tensor for tensor, own in zip(tensors, axes, strict=False)]


def pose_logits(
    function: str,
    logits: Tensor,
    integers: Sequence[Any],
    blank: int,
    *,
    argument: str = "logits",
    big_blanks: tuple[int, ...] = (),
    device: torch.device | None = None,
) -> GridLattice:
    """The grid of logits, padded or packed, of which ``in_batch`` has been asked."""
    padded = logits.ndim == 4
    return pose_grid(
        function,
        integers,
        blank,
        num_samples=logits.shape[0] if padded else None,
        num_frames=logits.shape[1] if padded else None,
        max_labels=logits.shape[2] - 1 if padded else None,
        num_classes=logits.shape[-1],
        big_blanks=big_blanks,
        num_rows=None if padded else logits.shape[0],
        scores=argument,
        device=device,
    )


def head_of(
    function: str, head: Tensor | Joiner, integers: Sequence[Any], argument: str = "logits"
) -> tuple[Tensor | Joiner, Sequence[Any], bool]:
    """Logits as a tensor, or a joiner with its operands cast, and integers as of ``in_batch``, checked."""
    if isinstance(head, Joiner):
        joiner, batched = check_joiner(function, head)
        return joiner, integers if batched else batch_of_one(function, integers), batched
    return in_batch(function, as_scores(head), integers, argument, (PADDED, SINGLE, PACKED))


def pose_head(
    function: str,
    head: Tensor | Joiner,
    integers: Sequence[Any],
    blank: int,
    *,
    argument: str = "logits",
    big_blanks: tuple[int, ...] = (),
    device: torch.device | None = None,
) -> GridLattice:
    """The grid of logits, padded or packed, or of a joiner's, all checked."""
    if isinstance(head, Joiner):
        return pose_nodes(function, head.shape, integers, blank, big_blanks=big_blanks, device=device)
    return pose_logits(function, head, integers, blank, argument=argument, big_blanks=big_blanks, device=device)


def posed_at_once(
    pose: Callable[..., Any],
    arrays: Sequence[np.ndarray] | None,
    num_samples: int,
    num_frames: int,
    most_labels: int,
    num_classes: int,
    blank: int,
) -> Any:
    """What a function of ``problems`` poses of ``plain_integers``, checked and posed by one compiled call.

    ``None`` where a rule is broken, and where there are no arrays.
    """
    compiled = COMPILED.get(pose)
    if compiled is None or arrays is None or arrays[0].shape[1] == 0 or len(arrays[0]) != num_samples:
        return None
    return compiled(*arrays, num_frames, most_labels, num_classes, blank)


def plain_integers(
    targets: Any, input_lengths: Any, target_lengths: Any, num_frames: int | None = None
) -> list[np.ndarray] | None:
    """Padded targets (N, S) and lengths (N,) as int64 in memory; ``None`` where it takes more than a look at them.

    With ``num_frames`` lengths may be left out, and are the padded sizes then.
    """
    if values_unknown():
        return None
    arrays: list[np.ndarray] = []
    for value, axes in ((targets, 2), (input_lengths, 1), (target_lengths, 1)):
        array = None
        if value is None and arrays and num_frames is not None:
            array = np.full(len(arrays[0]), num_frames if len(arrays) == 1 else arrays[0].shape[1])
        elif type(value) is Tensor:
            if value.dtype not in _SIGNED or value.layout is not torch.strided or value.is_nested or not value.is_cpu:
                return None
            array = value.resolve_neg().numpy()
        elif isinstance(value, (list, np.ndarray)) and not isinstance(value, np.ma.MaskedArray):
            try:
                array = np.asarray(value)
            except ValueError:  # no rectangle
                return None
        if array is None or array.ndim != axes or array.dtype.kind != "i":
            return None
        arrays.append(np.ascontiguousarray(array, np.int64))
    return arrays


_SIGNED = (torch.int64, torch.int32, torch.int16, torch.int8)


def as_alignment(function: str, alignment: Integers, grid: GridLattice, device: torch.device | None = None) -> Any:
    """A frame for each label, checked, in the shape of the padded targets: an array, or a tensor as in ``as_batch``."""
    integers = (grid.targets, grid.logit_lengths, grid.target_lengths)
    if device is not None:
        return unread_alignment(function, as_integer_tensor(function, "alignment", alignment), grid, device)
    if values_unknown():
        return check_alignment(as_integer_tensor(function, "alignment", alignment), *integers, function)
    return _checks.check_alignment(function, as_integers(function, "alignment", alignment), *integers)


def as_given(losses: Tensor, batched: bool, reduction: ReductionName) -> Tensor:
    """Losses reduced, that of one sample which came without a batch axis without axes."""
    return losses if batched or reduction != "none" else losses[0]


def on_device(lattice: Any, device: torch.device) -> Any:
    """The lattice with its arrays as tensors of a device, those that are one array still one."""
    moved: dict[int, Any] = {}
    for value in vars(lattice).values():
        if id(value) not in moved:
            moved[id(value)] = _sent(as_tensor(value), device)
    return type(lattice)(**{name: moved[id(value)] for name, value in vars(lattice).items()})


def _sent(value: Any, device: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.device.type == "cpu" and device.type == "cuda" and not values_unknown():
        # From pinned memory the copy waits in the device's queue, and nobody here waits for it.
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def finish(losses: Tensor, scores: Tensor | Joiner, zero_infinity: bool) -> Tensor:
    """Losses in the dtype of the result, infeasible ones as asked for."""
    losses = losses.to(work_dtype(scores))
    return torch.where(losses == torch.inf, 0.0, losses) if zero_infinity else losses
