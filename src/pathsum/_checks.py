"""Station 1: one message a rule, naming function, argument, rule, value and sample. Raises; copies no score.

Shapes and dtypes are given as plain tuples and names, integers as NumPy arrays, so that every front-end shares these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.lattice import BEYOND, Array
from pathsum.options import REDUCTIONS

SCORE_DTYPES = ("float32", "float64", "bfloat16", "float16")


class Batch(NamedTuple):
    """The integers of a call, checked: targets (N, S) with S >= 1 as int64, lengths (N,) as int64."""

    targets: Array
    input_lengths: Array
    target_lengths: Array


def check_scores(function: str, argument: str, dtype: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> None:
    """Scores must have one of the float dtypes, the rank of one of the axis texts, and at least one class."""
    if dtype not in SCORE_DTYPES:
        raise InvalidTypeError(function, argument, f"have dtype {', '.join(SCORE_DTYPES)}", dtype)
    if len(shape) not in {text.count(",") + 1 for text in axes}:
        raise InvalidValueError(function, argument, f"have shape {' or '.join(axes)}", f"shape {shape}")
    if shape[-1] < 1:
        raise InvalidValueError(function, argument, "have at least one class", f"shape {shape}")


def check_table(
    function: str, argument: str, dtype: str, shape: tuple[int, ...], axes: str, expected: tuple[int, ...], beside: str
) -> None:
    """Scores that are the same in all frames must have their shape, and the dtype of the scores beside them.

    Half-precision scores may have float32 beside them.
    """
    allowed = (beside, "float32") if beside in ("bfloat16", "float16") else (beside,)
    if dtype not in allowed:
        raise InvalidTypeError(function, argument, f"have dtype {' or '.join(allowed)} beside {beside} scores", dtype)
    if shape != expected:
        raise InvalidValueError(function, argument, f"have shape {axes} = {expected}", f"shape {shape}")


def check_device(function: str, argument: str, device: str, beside: str) -> None:
    if device != beside:
        raise InvalidTypeError(function, argument, f"be on {beside}, as the scores are", device)


def check_option(function: str, argument: str, value: Any, options: tuple[str, ...]) -> None:
    if value not in options:
        raise InvalidValueError(function, argument, f"be one of {', '.join(options)}", repr(value))


def as_array(function: str, argument: str, value: Any) -> np.ndarray:
    """What NumPy makes an array of, an array: not of other frameworks' kinds of tensors that are no memory."""
    check_unmasked(function, argument, value)
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        rule = "be an array, or what NumPy makes one of"
        raise InvalidTypeError(function, argument, rule, type(value).__name__) from error


def check_flag(function: str, argument: str, value: Any) -> bool:
    """A bool, of Python's or of NumPy's."""
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidTypeError(function, argument, "be a bool", type(value).__name__)
    return bool(value)


def check_blank(function: str, blank: Any, num_classes: int) -> int:
    """The blank index, counted from the end where negative, as an index in [0, C)."""
    if isinstance(blank, bool) or not isinstance(blank, (int, np.integer)):
        raise InvalidTypeError(function, "blank", "be an int", type(blank).__name__)
    if not -num_classes <= blank < num_classes:
        raise InvalidValueError(function, "blank", f"lie in [{-num_classes}, {num_classes})", blank)
    return int(blank) % num_classes


def check_reduction(function: str, reduction: Any) -> None:
    check_option(function, "reduction", reduction, REDUCTIONS)


def check_number(function: str, argument: str, value: Any, minimum: float = -math.inf) -> float:
    """A finite real number, not below the minimum."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InvalidTypeError(function, argument, "be a number", type(value).__name__)
    try:
        number = float(value)
    except OverflowError:  # an int beyond all floats
        number = math.inf
    if not math.isfinite(number) or number < minimum:
        rule = "be finite" if minimum == -math.inf else f"be finite and at least {minimum:g}"
        raise InvalidValueError(function, argument, rule, value)
    return number


def check_shares(function: str, fastemit_lambda: Any, clamp: Any) -> dict[str, Any]:
    """What a loss's gradient is made of in place of the arcs' own shares: see ``rnnt_loss``."""
    weight = check_number(function, "fastemit_lambda", fastemit_lambda, minimum=0.0)
    return {"fastemit_lambda": weight, "clamp": check_number(function, "clamp", clamp)}


def check_unmasked(function: str, argument: str, value: Any) -> None:
    """What a mask hides would be read."""
    if isinstance(value, np.ma.MaskedArray):
        raise InvalidTypeError(function, argument, "have no mask", "a NumPy MaskedArray")


def integers_as_array(function: str, argument: str, value: Any) -> np.ndarray:
    """A list or an array of integers, of whatever framework, as an array of NumPy's."""
    check_unmasked(function, argument, value)
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InvalidValueError(function, argument, "be a rectangular array of integers", value) from error
    except (TypeError, RuntimeError) as error:
        raise InvalidTypeError(function, argument, "be an array of integers", type(value).__name__) from error


def check_integers(function: str, argument: str, value: np.ndarray, ranks: tuple[int, ...]) -> np.ndarray:
    """Integers of any integer dtype and of an allowed rank, as int64."""
    if value.size == 0 and value.dtype.kind == "f":
        value = value.astype(np.int64)  # an empty list has no dtype of its own
    if value.dtype.kind not in "iu":
        raise InvalidTypeError(function, argument, "have an integer dtype", value.dtype.name)
    if value.ndim not in ranks:
        rule = f"have rank {' or '.join(map(str, ranks))}"
        raise InvalidValueError(function, argument, rule, f"shape {value.shape}")
    largest = np.iinfo(np.int64).max
    if value.dtype == np.uint64 and value.size and value.max() > largest:
        raise InvalidValueError(function, argument, f"be at most {largest}", int(value.max()))
    return value.astype(np.int64, order="C")  # a copy: backward must not see the caller change its lengths


def check_batch(
    function: str,
    targets: np.ndarray,
    input_lengths: np.ndarray,
    target_lengths: np.ndarray,
    *,
    lengths_name: str,
    targets_name: str = "targets",
    target_lengths_name: str = "target_lengths",
    num_samples: int | None,
    num_frames: int | None,
    max_labels: int | None,
    num_classes: int,
    blank: int | None,
    big_blanks: Sequence[int] = (),
    num_rows: int | None = None,
    scores: str = "logits",
) -> Batch:
    """Check the integers of a batch against the sizes of its scores, and pad concatenated targets.

    A size of ``None`` is not bounded by the scores (packed rows have no padded shape); packed scores have ``num_rows``.
    ``blank=None``: every class may occur in a target.
    """
    targets = check_integers(function, targets_name, targets, (1, 2))
    input_lengths = check_integers(function, lengths_name, input_lengths, (1,))
    target_lengths = check_integers(function, target_lengths_name, target_lengths, (1,))

    count = len(input_lengths) if num_samples is None else num_samples
    check_lengths(function, lengths_name, input_lengths, count, "T", num_frames)
    check_lengths(function, target_lengths_name, target_lengths, count, "the number of labels scored", max_labels)

    if targets.ndim == 1:
        _check_concatenated(function, targets_name, targets, target_lengths, target_lengths_name)
        targets = _pad(targets, target_lengths)
    else:
        if len(targets) != count:
            rule = f"have one row a sample, N = {count}"
            raise InvalidValueError(function, targets_name, rule, f"{len(targets)} rows")
        check_range(function, target_lengths_name, target_lengths, f"the width of {targets_name}", targets.shape[1])
    if targets.shape[1] == 0:
        targets = np.zeros((count, 1), np.int64)

    used = np.arange(targets.shape[1]) < target_lengths[:, None]
    _check_labels(function, targets_name, targets, used, num_classes, blank, big_blanks)
    if num_rows is not None:
        _check_packed_rows(function, num_rows, input_lengths, target_lengths, scores)
    return Batch(targets, input_lengths, target_lengths)


def _check_concatenated(
    function: str, argument: str, values: np.ndarray, lengths: np.ndarray, lengths_name: str
) -> None:
    """There must be as many values as the samples have together, no sample having less than none."""
    total = sum(lengths.tolist())  # Python's, which cannot wrap
    if len(values) != total:
        rule = f"have sum({lengths_name}) = {total} entries when concatenated"
        raise InvalidValueError(function, argument, rule, f"{len(values)} entries")


def _check_packed_rows(function: str, num_rows: int, frames: np.ndarray, labels: np.ndarray, argument: str) -> None:
    """Packed logits must have exactly the rows of their samples."""
    # In Python's integers: a product that wraps could be the number of rows, and the kernels would read beyond them.
    expected = sum(t * (u + 1) for t, u in zip(frames.tolist(), labels.tolist(), strict=True))
    if num_rows != expected:
        rule = f"have sum(T_n * (U_n + 1)) = {expected} rows"
        raise InvalidValueError(function, argument, rule, f"{num_rows} rows")


def check_lengths(
    function: str, argument: str, lengths: np.ndarray, count: int, size_name: str, size: int | None
) -> None:
    """Lengths must be one a sample and none longer than the size."""
    if len(lengths) != count:
        raise InvalidValueError(function, argument, f"have one entry a sample, N = {count}", f"{len(lengths)} entries")
    check_range(function, argument, lengths, size_name, size)


def check_range(function: str, argument: str, lengths: np.ndarray, size_name: str, size: int | None) -> None:
    wrong = lengths < 0 if size is None else (lengths < 0) | (lengths > size)
    if wrong.any():
        sample = int(wrong.argmax())
        rule = "be at least 0" if size is None else f"lie in [0, {size_name}] with {size_name} = {size}"
        raise InvalidValueError(function, argument, rule, int(lengths[sample]), sample)


def _pad(concatenated: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    width = int(lengths.max(initial=0))
    padded = np.zeros((len(lengths), width), np.int64)
    padded[np.arange(width) < lengths[:, None]] = concatenated
    return padded


def _check_labels(
    function: str,
    argument: str,
    targets: np.ndarray,
    used: np.ndarray,
    num_classes: int,
    blank: int | None,
    big_blanks: Sequence[int],
) -> None:
    outside = used & ((targets < 0) | (targets >= num_classes))
    if outside.any():
        sample, position = np.argwhere(outside)[0]
        rule = f"lie in [0, C) with C = {num_classes}"
        raise InvalidValueError(function, argument, rule, int(targets[sample, position]), int(sample))
    if blank is not None and (used & (targets == blank)).any():
        sample = int(np.argwhere(used & (targets == blank))[0, 0])
        raise InvalidValueError(function, argument, f"not contain the blank, {blank}", blank, sample)
    wrong = used & np.isin(targets, big_blanks) if big_blanks else used[:0]
    if wrong.any():
        sample, position = (int(i) for i in np.argwhere(wrong)[0])
        raise InvalidValueError(function, argument, "not contain a big blank", int(targets[sample, position]), sample)


def check_count(function: str, argument: str, value: Any, minimum: int = 0, maximum: int | None = None) -> int:
    """An int, not below the minimum, and not above the maximum where there is one."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InvalidTypeError(function, argument, "be an int", type(value).__name__)
    if value < minimum:
        raise InvalidValueError(function, argument, f"be at least {minimum}", value)
    if maximum is not None and value > maximum:
        raise InvalidValueError(function, argument, f"be at most {maximum}", value)
    return int(value)


def check_copies(function: str, argument: str, value: Any, minimum: int, size: int) -> int:
    """How many copies of something of a size are made: in all no more than 2**31 numbers, where they are many."""
    return check_count(function, argument, value, minimum, max(2**31 // max(size, 1), minimum, 1))


def check_beam_size(function: str, value: Any, maximum: int = 2**20) -> int:
    """How many hypotheses are kept. Where as many are met they are in memory, so there is a largest number."""
    return check_count(function, "beam_size", value, 1, maximum)


def check_num_classes(function: str, num_classes: Any) -> int:
    """A number of classes, which 32 bits hold."""
    return check_count(function, "num_classes", num_classes, 1, 2**31 - 1)


def check_counts(function: str, argument: str, values: Any, minimum: int) -> list[int]:
    """Ints, none below the minimum: a list, a tuple or a range, or an array of rank 1."""
    if isinstance(values, np.ndarray) and values.ndim == 1:
        values = values.tolist()
    if not isinstance(values, (list, tuple, range)):
        raise InvalidTypeError(function, argument, "be a list of ints", type(values).__name__)
    return [check_count(function, argument, value, minimum) for value in values]


def check_durations(
    function: str, argument: str, durations: Any, *, minimum: int, distinct: bool = True
) -> tuple[int, ...]:
    """One or more ints, not below the minimum; ``BEYOND`` in place of what is more."""
    values = check_counts(function, argument, durations, minimum)
    if not values:
        raise InvalidValueError(function, argument, "have one or more entries", [])
    if distinct and len(set(values)) < len(values):
        raise InvalidValueError(function, argument, "be different from one another", values)
    return tuple(min(value, BEYOND) for value in values)


def check_classes(function: str, argument: str, classes: Any, num_classes: int, blank: int) -> tuple[int, ...]:
    """Classes other than the blank and than one another, as indices in [0, V)."""
    given = check_counts(function, argument, classes, -num_classes)
    if any(value >= num_classes for value in given):
        raise InvalidValueError(function, argument, f"lie in [{-num_classes}, {num_classes})", given)
    values = tuple(value % num_classes for value in given)
    if len({blank, *values}) < 1 + len(values):
        raise InvalidValueError(function, argument, f"differ from the blank, {blank}, and from one another", given)
    return values


def check_alignment(
    function: str, alignment: np.ndarray, targets: np.ndarray, input_lengths: np.ndarray, target_lengths: np.ndarray
) -> np.ndarray:
    """A frame in [0, T_n) for each label, padded or concatenated, in the shape of the padded targets."""
    alignment = check_integers(function, "alignment", alignment, (1, 2))
    if alignment.ndim == 1:
        _check_concatenated(function, "alignment", alignment, target_lengths, "target_lengths")
        alignment = _pad(alignment, target_lengths)
    longest = int(target_lengths.max(initial=0))
    if len(alignment) != len(targets) or alignment.shape[1] < longest:
        rule = f"have a row a sample, N = {len(targets)}, with a frame for each of its labels"
        raise InvalidValueError(function, "alignment", rule, f"shape {alignment.shape}")
    frames = np.zeros_like(targets)
    frames[:, :longest] = alignment[:, :longest]
    outside = np.arange(targets.shape[1]) < target_lengths[:, None]
    outside &= (frames < 0) | (frames >= input_lengths[:, None])
    if outside.any():
        sample, position = (int(i) for i in np.argwhere(outside)[0])
        rule = f"lie in [0, T_n) with T_n = {int(input_lengths[sample])}"
        raise InvalidValueError(function, "alignment", rule, int(frames[sample, position]), sample)
    return frames
