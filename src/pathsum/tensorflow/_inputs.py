"""What the public functions do to their arguments alike, and to the losses at last.

Values are checked where that is free: integers given as lists, NumPy's arrays, or tensors on the CPU outside of a
graph. In a graph they are not known before it runs, those on another device would have to be waited for: there a bad
label or length gives its sample NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from pathsum import _checks, dispatch
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.kernels.numba.posing import COMPILED, NO_BOUND, NO_CLASS
from pathsum.kernels.tensorflow.log_domain import sizes
from pathsum.lattice import Array
from pathsum.tensorflow import _derivatives, _placement
from pathsum.tensorflow._solvers import Batch, Integers, Solver

IntegersLike = Array | np.ndarray | Sequence[int] | Sequence[Sequence[int]]
# Several a sample, (N, K, U).
Hypotheses = IntegersLike | Sequence[Sequence[Sequence[int]]]


Function = TypeVar("Function", bound=Callable[..., Any])


def outside_autograph(function: Function) -> Function:
    """The function as plain Python in a ``tf.function`` too, not rewritten as the graph's own control flow."""

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except (ValueError, TypeError, RuntimeError) as error:
            # Or else AutoGraph puts an error of its own in its place.
            error.ag_pass_through = True  # pyright: ignore
            raise

    in_graphs = tf.autograph.experimental.do_not_convert(call)

    # With the mark by which AutoGraph knows what it shall leave alone. Elsewhere there is nothing to keep it from.
    @wraps(in_graphs)
    def either(*arguments: Any, **options: Any) -> Any:
        return (function if tf.executing_eagerly() else in_graphs)(*arguments, **options)

    return either  # pyright: ignore


def as_tensor(function: str, argument: str, value: Any) -> Array:
    """What TensorFlow makes a tensor of, a tensor."""
    if isinstance(value, tf.Tensor):
        return value
    _checks.check_unmasked(function, argument, value)
    try:
        return tf.convert_to_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        rule = "be a tensor, or what TensorFlow makes one of"
        raise InvalidTypeError(function, argument, rule, type(value).__name__) from error


def check_scores(function: str, argument: str, scores: Any, axes: str) -> Array:
    """The scores as a tensor."""
    tensor = as_tensor(function, argument, scores)
    if tensor.shape.rank is None:
        raise InvalidValueError(function, argument, f"have shape {axes}", "a tensor of unknown rank")
    # A size that is not known yet passes.
    shape = tuple(1 if size is None else size for size in tensor.shape.as_list())
    _checks.check_scores(function, argument, tensor.dtype.name, shape, (axes,))
    return tensor


def check_blank(function: str, blank: Any, num_classes: int | None, argument: str = "blank_index") -> int:
    """The blank index as a number; negative it counts from the end, where that is known."""
    value = tf.get_static_value(blank) if not isinstance(blank, int) and tf.is_tensor(blank) else blank
    if value is None:
        raise InvalidTypeError(function, argument, "be known while the graph is built", "a tensor")
    number = value.item() if isinstance(value, (np.ndarray, np.generic)) and np.ndim(value) == 0 else value
    if isinstance(number, bool) or not isinstance(number, int):
        raise InvalidTypeError(function, argument, "be an int", type(value).__name__)
    least, end = (0, math.inf) if num_classes is None else (-num_classes, num_classes)
    if not least <= number < end:
        raise InvalidValueError(function, argument, f"lie in [{least}, {end})", number)
    return number if num_classes is None else number % num_classes


def check_impl(function: str, impl: str, scores: Array) -> str:
    """``"numba"`` or ``"tensorflow"``."""
    device, numba = _placement.device_type(scores), _placement.can_call_back()
    return dispatch.select_placed(function, "tensorflow", device, impl, numba=numba)


def check_batch(
    function: str,
    labels: Any,
    label_length: Any,
    logit_length: Any,
    *,
    shape: tuple[Any, ...],
    blank: int | None,
    problem: Callable[..., Any] | None = None,
    names: tuple[str, str, str] = ("labels", "label_length", "logit_length"),
) -> Batch:
    """Check the integers against scores of ``sizes`` (N, T, C) or (N, T, U+1, C); lengths that are ``None`` are the
    padded sizes. ``problem``: which of ``problems`` poses them, if one does.

    Sizes that are known only when the graph runs are compared then, by assertions in the graph.
    """
    if isinstance(labels, tf.RaggedTensor):
        label_length = labels.row_lengths() if label_length is None else label_length
        labels = labels.to_tensor()
    labels = as_integers(function, names[0], labels)
    if len(labels.shape) != 2:
        raise InvalidValueError(function, names[0], "have shape (N, L)", f"shape {tuple(labels.shape)}")
    num_samples, num_frames, *rows, num_classes = shape
    width = sizes(labels)[1]
    label_length = lengths_of(function, names[1], label_length, num_samples, width)
    logit_length = lengths_of(function, names[2], logit_length, num_samples, num_frames)
    given = (labels, logit_length, label_length)
    max_labels = rows[0] - 1 if rows else None
    at_hand = all(isinstance(array, np.ndarray) for array in given) and all(known(size) is not None for size in shape)
    posed = pose_obeyed(problem, given, shape, max_labels, blank) if at_hand and problem is not None else None
    if posed is not None:
        return Batch(Integers(*given), Integers(*given), None, posed)
    checked = _checks.check_batch(
        function,
        *_stand_ins(given, known(num_samples)),
        lengths_name=names[2],
        targets_name=names[0],
        target_lengths_name=names[1],
        num_samples=known(num_samples),
        num_frames=known(num_frames),
        max_labels=known(max_labels),
        num_classes=2**62 if known(num_classes) is None else num_classes,
        blank=blank if isinstance(labels, np.ndarray) else None,
    )
    if at_hand:
        return Batch(Integers(*checked), Integers(*checked), None)
    with tf.control_dependencies(assertions(function, _claims(given, shape, blank, names))):
        integers = Integers(*(_of_size(array, num_samples) for array in given))
    widest = width if max_labels is None else tf.minimum(tf.cast(width, tf.int64), max_labels)
    return _in_range(integers, num_frames, widest, num_classes, blank)


def pose_obeyed(
    problem: Callable[..., Any], given: Sequence[np.ndarray], shape: tuple[int, ...], max_labels: int | None,
    blank: int | None,
) -> Any:  # fmt: skip
    """The lattice, by one compiled call; ``None`` where targets and lengths break a rule."""
    targets, input_lengths, target_lengths = given
    if input_lengths.ndim != 1 or target_lengths.ndim != 1 or len(targets) != shape[0] or targets.shape[1] == 0:
        return None
    sizes = (shape[1], NO_BOUND if max_labels is None else max_labels, shape[-1], NO_CLASS if blank is None else blank)
    return COMPILED[problem](*given, *sizes)


def solve(solver: Solver, scores: Sequence[Array], batch: Batch, *, zero_infinity: bool) -> Array:
    """The losses (N,)."""
    losses = _derivatives.losses(solver, scores, batch)
    return tf.where(losses == math.inf, tf.zeros([], losses.dtype), losses) if zero_infinity else losses


def as_integers(function: str, argument: str, value: Any) -> Any:
    """An array of NumPy's where the values are at hand, else a tensor."""
    if isinstance(value, (tf.SparseTensor, tf.RaggedTensor)):
        raise InvalidTypeError(function, argument, "be a dense tensor", type(value).__name__)
    if tf.is_tensor(value):
        if not value.dtype.is_integer:
            raise InvalidTypeError(function, argument, "have an integer dtype", value.dtype.name)
        if value.shape.rank is None:
            raise InvalidValueError(function, argument, "have a known rank", "a tensor of unknown shape")
        if not tf.executing_eagerly() or _placement.device_type(value) != "cpu":
            return value
    array = _checks.integers_as_array(function, argument, value)
    return _checks.check_integers(function, argument, array, (array.ndim,))


def known(size: Any) -> int | None:
    """A size of ``sizes``, where it is known beforehand."""
    return size if isinstance(size, int) else None


def lengths_of(function: str, argument: str, value: Any, num_samples: Any, size: Any) -> Any:
    if value is not None:
        return as_integers(function, argument, value)
    at_hand = known(num_samples) is not None and known(size) is not None
    return np.full(num_samples, size) if at_hand else tf.fill([num_samples], tf.cast(size, tf.int64))


def _stand_ins(given: Sequence[Any], num_samples: int | None) -> list[np.ndarray]:
    """The integers as far as they are known, else zeros, which pass for lengths, and for labels but the blank.

    Sizes that are not known are made to agree.
    """
    found = [num_samples, *(array.shape[0] for array in given if len(array.shape)), 1]
    count = next(size for size in found if size is not None)
    label_length, width = given[2], 1
    if isinstance(label_length, np.ndarray) and label_length.dtype.kind in "iu":
        width = min(int(label_length.max(initial=1)), 2**20)  # no more is made of a length that cannot be
    return [
        array
        if isinstance(array, np.ndarray)
        else np.zeros([(count, width)[k] if size is None else size for k, size in enumerate(array.shape)], np.int64)
        for array in given
    ]


def assertions(function: str, claims: Sequence[tuple[Any, str]]) -> list[Any]:
    """Operations that fail where a claim does not hold once the graph runs; what is known now has been checked."""
    return [tf.debugging.Assert(holds, [f"{function}: {rule}"]) for holds, rule in claims if tf.is_tensor(holds)]


def _claims(
    given: Sequence[Any], shape: tuple[Any, ...], blank: int | None, names: tuple[str, str, str]
) -> list[tuple[Any, str]]:
    num_samples, _, *rows, num_classes = shape
    arguments = names[0], names[2], names[1]
    return [
        (num_classes > (blank or 0), f"logits must have more than {blank or 0} classes"),
        *((size > 0, "logits must have a row for no label") for size in rows),
        *(
            (sizes(array)[0] == num_samples, f"{argument} must have one entry a sample, as the logits have")
            for argument, array in zip(arguments, given, strict=True)
        ),
    ]


def _of_size(array: Any, num_samples: Any) -> Array:
    """The integers as int64; of another number of samples they are refused in programs of XLA's too.

    XLA leaves assertions out, but not the sizes of a reshaping.
    """
    tensor = tf.cast(array, tf.int64)
    return tf.reshape(tensor, tf.stack([tf.cast(num_samples, tf.int64), *sizes(tensor)[1:]]))


def _in_range(integers: Integers, num_frames: Any, max_labels: Any, num_classes: Any, blank: int | None) -> Batch:
    """The integers of samples whose own are in range; harmless ones in place of the others'."""
    targets, input_lengths, target_lengths = integers
    used = tf.sequence_mask(target_lengths, sizes(targets)[1])
    wrong = (targets < 0) | (targets >= num_classes)
    if blank is not None:
        wrong |= targets == blank
    valid = (input_lengths >= 0) & (input_lengths <= num_frames)
    valid &= (target_lengths >= 0) & (target_lengths <= max_labels) & ~tf.reduce_any(used & wrong, 1)
    kept = tf.where(valid[:, None] & used, targets, 0)
    # A column at least for the kernels to read.
    kept = tf.pad(kept, tf.stack([[0, 0], [0, tf.maximum(1 - tf.shape(kept)[1], 0)]]))
    kept = Integers(kept, tf.where(valid, input_lengths, 0), tf.where(valid, target_lengths, 0))
    return Batch(integers, kept, valid)
