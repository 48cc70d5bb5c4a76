"""What the public functions do to their arguments alike, and to the losses at last.

Values are checked where that is free: integers given as lists, NumPy's arrays, or JAX's on the CPU. Those of a function
being traced have no values yet, those on another device would have to be waited for: there a bad label or length gives
its sample NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from pathsum import _checks, dispatch
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.jax import _derivatives
from pathsum.jax._ops import ffi
from pathsum.jax._solvers import Integers, Scores, Solver
from pathsum.jax._triton.installed import missing
from pathsum.lattice import Array
from pathsum.reductions import reduce

IntegersLike = Array | np.ndarray | Sequence[int] | Sequence[Sequence[int]]
# Several a sample, (N, K, U).
Hypotheses = IntegersLike | Sequence[Sequence[Sequence[int]]]
_NAMES = ("targets", "{}_lengths", "target_lengths")


class Batch(NamedTuple):
    """The integers of a call, and of each sample whether they are in range (N,); ``None`` where all are."""

    integers: Integers
    valid: Array | None


def as_array(function: str, argument: str, value: Any) -> Array:
    """What JAX makes an array of, an array."""
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        rule = "be an array, or what JAX makes one of"
        raise InvalidTypeError(function, argument, rule, type(value).__name__) from error


def check_scores(function: str, argument: str, scores: Any, axes: str) -> Array:
    """The scores as an array of JAX's."""
    array = as_array(function, argument, scores)
    _checks.check_scores(function, argument, array.dtype.name, array.shape, (axes,))
    return array


def check_impl(function: str, impl: str, scores: Array, *, in_triton: bool = True) -> str:
    """``in_triton``: whether there are Triton kernels for the function's lattice."""
    device = None if isinstance(scores, Tracer) else next(iter(scores.devices())).platform
    no_triton = missing() if in_triton else f"{function} has no such kernels"
    return dispatch.select_program(function, "jax", device, impl, numba=ffi.supported(), no_triton=no_triton)


def check_batch(
    function: str,
    targets: Any,
    input_lengths: Any,
    target_lengths: Any,
    *,
    lengths_name: str,
    shape: tuple[int, ...],
    max_labels: int | None,
    blank: int | None,
    names: tuple[str, str] = ("targets", "target_lengths"),
) -> Batch:
    """Check the integers against scores of a shape (N, T, ..., C); lengths that are ``None`` are the padded sizes."""
    num_samples, num_frames, num_classes = shape[0], shape[1], shape[-1]
    targets = as_integers(function, names[0], targets)
    if targets.ndim != 2:
        raise InvalidValueError(function, names[0], "have shape (N, S)", f"shape {targets.shape}")
    input_lengths = _lengths(function, lengths_name, input_lengths, num_samples, num_frames)
    target_lengths = _lengths(function, names[1], target_lengths, num_samples, targets.shape[1])
    given = (targets, input_lengths, target_lengths)
    # Without values there still are shapes and dtypes to check: zeros pass for lengths, and for labels but the blank.
    checked = _checks.check_batch(
        function,
        *(array if readable(array) else np.zeros(array.shape, array.dtype) for array in given),
        lengths_name=lengths_name,
        targets_name=names[0],
        target_lengths_name=names[1],
        num_samples=num_samples,
        num_frames=num_frames,
        max_labels=max_labels,
        num_classes=num_classes,
        blank=blank if readable(targets) else None,
    )
    if all(map(readable, given)):
        return Batch(Integers(*(jnp.asarray(array.astype(np.int32)) for array in checked)), None)
    # What int32 cannot hold would come back within its range.
    bounds = np.iinfo(np.int32)
    integers = Integers(*(
        jnp.asarray(array.clip(bounds.min, bounds.max).astype(np.int32)) if readable(array) else array
        for array in given
    ))  # fmt: skip
    if targets.shape[1] == 0:
        integers = integers._replace(targets=jnp.zeros((num_samples, 1), jnp.int32))
    widest = targets.shape[1] if max_labels is None else min(targets.shape[1], max_labels)
    return _in_range(integers, num_frames, widest, num_classes, blank)


def readable(array: Any) -> bool:
    return isinstance(array, np.ndarray)


@partial(jax.jit, static_argnames=("solver", "reduction", "zero_infinity", "weigh"))
def solve(
    solver: Solver, scores: Scores, batch: Batch, *, reduction: str, zero_infinity: bool, weigh: bool = False
) -> Array:
    """The reduced losses; ``weigh``: a mean in which each has been divided by its target length first."""
    losses = _derivatives.losses(solver, scores, batch.integers)
    return finished(losses, batch, reduction=reduction, zero_infinity=zero_infinity, weigh=weigh)


def finished(losses: Array, batch: Batch, *, reduction: str, zero_infinity: bool, weigh: bool = False) -> Array:
    """What ``solve`` makes of the losses (N,): NaN where a sample's integers are out of range, and reduced."""
    if zero_infinity:
        losses = jnp.where(losses == jnp.inf, 0, losses)
    if batch.valid is not None:
        losses = losses * jnp.where(batch.valid, 1, jnp.nan).astype(losses.dtype)
    weights = jnp.maximum(batch.integers.target_lengths, 1).astype(losses.dtype) if weigh else None
    return reduce(losses, reduction, weights)


def as_integers(function: str, argument: str, value: Any) -> Any:
    """An array of NumPy's where the values are at hand, else one of JAX's."""
    if isinstance(value, jax.Array):
        if not jnp.issubdtype(value.dtype, jnp.integer):
            raise InvalidTypeError(function, argument, "have an integer dtype", value.dtype.name)
        traced = isinstance(value, Tracer)
        at_hand = not traced and all(device.platform == "cpu" for device in value.devices())
        if not (at_hand and value.is_fully_addressable):
            # An unsigned number that a signed one of its size cannot hold becomes negative, which is out of range.
            return value.astype(jnp.int64 if value.dtype.itemsize == 8 else jnp.int32)
    array = _checks.integers_as_array(function, argument, value)
    return _checks.check_integers(function, argument, array, (array.ndim,))


def _lengths(function: str, argument: str, value: Any, num_samples: int, size: int) -> Any:
    return np.full(num_samples, size) if value is None else as_integers(function, argument, value)


def _in_range(integers: Integers, num_frames: int, max_labels: int, num_classes: int, blank: int | None) -> Batch:
    """The integers of samples whose own are in range; harmless ones in place of the others'."""
    targets, input_lengths, target_lengths = integers
    used = jnp.arange(targets.shape[1]) < target_lengths[:, None]
    wrong = (targets < 0) | (targets >= num_classes)
    if blank is not None:
        wrong |= targets == blank
    valid = (input_lengths >= 0) & (input_lengths <= num_frames)
    valid &= (target_lengths >= 0) & (target_lengths <= max_labels) & ~(used & wrong).any(1)
    kept = Integers(
        jnp.where(valid[:, None] & used, targets, 0),
        jnp.where(valid, input_lengths, 0),
        jnp.where(valid, target_lengths, 0),
    )
    return Batch(kept, valid)
