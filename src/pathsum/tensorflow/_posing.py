"""Tensors as ``pathsum.problems`` takes arrays: with the part of the array API that posing a lattice needs.

Sizes may be tensors themselves, known only when the program runs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from pathsum.kernels.tensorflow.log_domain import sizes


class Posable:
    """A tensor of integers (int64) or truth values."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    @property
    def shape(self) -> tuple[Any, ...]:
        return sizes(self.tensor)

    @property
    def dtype(self) -> Any:
        return self.tensor.dtype

    def __getitem__(self, index: Any) -> Posable:
        """Slices, new axes, and ``[:, positions]``."""
        if isinstance(index, tuple) and isinstance(index[-1], Posable):
            return Posable(tf.gather(self.tensor, index[-1].tensor, axis=len(index) - 1))
        return Posable(self.tensor[index])

    @staticmethod
    def __array_namespace__() -> Any:
        return _Namespace


def _binary(function: Callable[[Any, Any], Any]) -> Callable[[Posable, Any], Posable]:
    return lambda first, second: Posable(function(first.tensor, _of(second)))


for _name in ("add", "sub", "mul", "floordiv", "mod", "and_", "or_", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Posable, f"__{_name.rstrip('_')}__", _binary(getattr(operator, _name)))
Posable.__rmul__ = Posable.__mul__  # pyright: ignore


class _Namespace:
    """The functions of the array API, on tensors."""

    bool = tf.bool

    @staticmethod
    def arange(start: Any, stop: Any = None, device: None = None) -> Posable:
        start, stop = (0, start) if stop is None else (start, stop)
        return Posable(tf.range(*(tf.cast(bound, tf.int64) for bound in (start, stop))))

    @staticmethod
    def where(mask: Posable, chosen: Any, other: Any) -> Posable:
        return Posable(tf.where(mask.tensor, *(tf.cast(_of(value), tf.int64) for value in (chosen, other))))

    @staticmethod
    def clip(array: Posable, low: Any, high: Any) -> Posable:
        clipped = tf.maximum(array.tensor, tf.cast(low, tf.int64))
        return Posable(clipped if high is None else tf.minimum(clipped, tf.cast(high, tf.int64)))

    @staticmethod
    def concatenate(arrays: list[Posable], axis: int = 0) -> Posable:
        return Posable(tf.concat([array.tensor for array in arrays], axis))

    @staticmethod
    def full_like(array: Posable, value: Any) -> Posable:
        return Posable(tf.fill(tf.shape(array.tensor), tf.cast(value, array.tensor.dtype)))

    @staticmethod
    def zeros_like(array: Posable, dtype: Any = None) -> Posable:
        return Posable(tf.zeros_like(array.tensor, dtype))

    @staticmethod
    def zeros(size: int, dtype: Any = None, device: None = None) -> Posable:
        return Posable(tf.zeros([size], tf.int64 if dtype is None else dtype))

    @staticmethod
    def cumsum(array: Posable, axis: int) -> Posable:
        return Posable(tf.cumsum(array.tensor, axis))


def _of(value: Any) -> Any:
    return value.tensor if isinstance(value, Posable) else value
