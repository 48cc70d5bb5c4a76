"""Assertions about arrays of any library, each saying where and by how much it failed."""

from __future__ import annotations

from typing import Any

import numpy as np


def as_array(value: Any) -> np.ndarray:
    """A NumPy array of an array, number or tensor; bfloat16, which NumPy lacks, as float32 of the same values."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    return np.asarray(value)


def assert_close(actual: Any, expected: Any, *, relative: float = 0.0, absolute: float = 0.0, what: str = "") -> None:
    """Every entry within ``absolute + relative * |expected|``; infinities and NaN in the same places.

    Args:
        actual: What was computed.
        expected: What it should be.
        relative: Bound in units of the expected entry.
        absolute: Bound added to it.
        what: Words for the failure message.

    Raises:
        AssertionError: Names the worst entry, both values, and their distance beside the bound.
    """
    actual, expected = as_array(actual).astype(np.float64), as_array(expected).astype(np.float64)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    if actual.size == 0:
        return
    finite = np.isfinite(expected)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.where(finite, np.abs(actual - expected), 0.0)
        same_special = np.isnan(actual) & np.isnan(expected) | (actual == expected)
        bound = np.where(finite, absolute + relative * np.abs(expected), 0.0)
    # Not `error > bound`: that is False for NaN, which must fail.
    failed = np.where(finite, ~(error <= bound), ~same_special)
    if failed.any():
        excess = np.where(failed, np.where(np.isnan(error) | ~finite, np.inf, error - bound), -np.inf)
        worst = np.unravel_index(int(excess.argmax()), excess.shape)
        where = ", ".join(str(int(i)) for i in worst)
        raise AssertionError(
            f"{what or 'arrays'}: {int(failed.sum())} of {failed.size} entries differ; worst at [{where}]: "
            f"{actual[worst]:.9g}, expected {expected[worst]:.9g}, "
            f"distance {error[worst]:.3g}, bound {bound[worst]:.3g}"
        )


def assert_same_bits(actual: Any, expected: Any, *, what: str = "") -> None:
    """The same shape, dtype and values to the last bit; NaN equals NaN and 0 equals -0.

    Args:
        actual: What was computed.
        expected: What it should be.
        what: Words for the failure message.

    Raises:
        AssertionError: Names the first entry that differs.
    """
    names = [str(getattr(value, "dtype", type(value).__name__)) for value in (actual, expected)]
    assert names[0] == names[1], f"{what}: dtype {names[0]}, expected {names[1]}"
    actual, expected = as_array(actual), as_array(expected)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    with np.errstate(invalid="ignore"):
        differ = np.atleast_1d(~((actual == expected) | ((actual != actual) & (expected != expected))))
    if differ.any():
        first = tuple(int(i) for i in np.argwhere(differ)[0])
        values = [float(np.atleast_1d(array)[first]) for array in (actual, expected)]
        raise AssertionError(
            f"{what or 'arrays'}: {int(differ.sum())} of {differ.size} entries differ; first at "
            f"[{', '.join(map(str, first))}]: {values[0]!r}, expected {values[1]!r}"
        )


def assert_rows_sum_to_zero(gradient: Any, *, absolute: float, what: str = "") -> None:
    """Sums over the last axis within ``absolute`` of 0, as softmax makes those of a gradient by logits.

    Args:
        gradient: (..., C), in any float dtype.
        absolute: Bound of each sum.
        what: Words for the failure message.

    Raises:
        AssertionError: Names the worst row.
    """
    sums = as_array(gradient).astype(np.float64).sum(-1)
    assert_close(sums, np.zeros_like(sums), absolute=absolute, what=what or "row sums of a gradient")
