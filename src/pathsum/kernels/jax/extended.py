"""Extended-range arithmetic: a positive number as mantissa * 2**exponent, the two kept apart.

A mantissa keeps the relative precision of its dtype whatever the number's size, where a logarithm's absolute error
grows with its size. The exponent is an integer too, in two floats of the same dtype, the low one what the high one
cannot hold: exact up to 2**48 (2**106 in float64), without 64-bit integers, which JAX has not by default.

Derivatives pass through the mantissas, exponents are constants. An arc's mantissa and its adjoint are both of the size
of 1, so that derivatives of any order have the range of the numbers themselves.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathsum.lattice import Array
from pathsum.numerics import LN_2, LOG2_E

# What float64 cannot hold of log2(e) and ln(2).
_LOG2_E_REST, _LN_2_REST = 2.0355273740931033e-17, 2.3190468138462996e-17


class Number(NamedTuple):
    """mantissa * 2**(high + low), of any shape; zero has mantissa 0 and an exponent below all others."""

    mantissa: Array
    high: Array
    low: Array


class _Format(NamedTuple):
    """The layout of a float, the exponent of zero, and the greatest log that ``exp`` tells from an impossible one."""

    integer: Any
    fraction_bits: int
    bias: int
    upper_half: int
    zero: float
    limit: float


_FORMATS = {
    np.dtype(np.float32): _Format(np.int32, 23, 127, ~0xFFF, -(2.0**120), 1e30),
    np.dtype(np.float64): _Format(np.int64, 52, 1023, ~0x7FFFFFF, -(2.0**1000), 1e290),
}


def zeros(shape: tuple[int, ...], dtype: Any) -> Number:
    nothing = jnp.zeros(shape, dtype)
    return Number(nothing, jnp.full_like(nothing, _FORMATS[nothing.dtype].zero), nothing)


def ones(shape: tuple[int, ...], dtype: Any) -> Number:
    return Number(jnp.ones(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def one_where(mask: Array, dtype: Any) -> Number:
    return select(mask, ones(mask.shape, dtype), zeros(mask.shape, dtype))


def select(mask: Array, chosen: Number, other: Number) -> Number:
    return Number(*(jnp.where(mask, a, b) for a, b in zip(chosen, other, strict=True)))


def keep(mask: Array, number: Number) -> Number:
    """The number, or zero where the mask is not set."""
    return Number(
        jnp.where(mask, number.mantissa, 0),
        jnp.where(mask, number.high, _format(number).zero),
        jnp.where(mask, number.low, 0),
    )


def varying_as(start: Any, *sources: Any) -> Any:
    """What a scan starts from, as an array that differs from device to device where a source does.

    Under shard_map JAX asks that a scan ends with the kind of arrays it has begun with. Sums of nothing are added.
    """
    nothing = sum(jnp.ravel(leaf)[:0].sum().astype(jnp.float32) for leaf in jax.tree.leaves(sources))
    return jax.tree.map(lambda part: part + jnp.asarray(nothing).astype(part.dtype), start)


def at(number: Number, index: Any) -> Number:
    return Number(*(part[index] for part in number))


def concatenate(numbers: list[Number], axis: int) -> Number:
    return Number(*(jnp.concatenate(parts, axis) for parts in zip(*numbers, strict=True)))


def exp(x: Array, rest: Array) -> Number:
    """exp(x + rest), ``rest`` far smaller than x; what is further than ``limit`` below 0 is impossible.

    JAX differentiates these operations as they stand: it forgets a rule of a function's own where it differentiates a
    scan over the function twice.
    """
    form = _FORMATS[x.dtype]
    possible = x >= -form.limit
    x = jnp.where(possible & (x <= form.limit), x, 0)
    rest = jnp.where(possible, rest, 0)
    number = x.dtype.type
    factor = number(LOG2_E)
    factor_rest = number((LOG2_E - float(factor)) + _LOG2_E_REST)

    product, product_rest = _product(x, factor)
    high = jnp.round(product)
    fraction = (product - high) + (product_rest + (x * factor_rest + rest * factor))
    low = jnp.round(fraction)
    fraction = fraction - low
    mantissa = jnp.where(possible, jnp.exp(fraction * number(LN_2)), 0)
    high, low = (lax.stop_gradient(part) for part in _renormalise(high, low))
    return Number(mantissa, jnp.where(possible, high, form.zero), jnp.where(possible, low, 0))


def number_of(x: Array) -> Number:
    """A float that is not negative, as a number."""
    return _normalise(x, jnp.zeros_like(x), jnp.zeros_like(x))


def multiply(a: Number, b: Number) -> Number:
    high, rest = _sum(a.high, b.high)
    return _normalise(a.mantissa * b.mantissa, *_renormalise(high, rest + (a.low + b.low)))


def divide(a: Number, b: Number) -> Number:
    """a / b, b not zero."""
    return multiply(a, Number(1 / b.mantissa, -b.high, -b.low))


def add(*numbers: Number) -> Number:
    high, low = numbers[0].high, numbers[0].low
    for number in numbers[1:]:
        later = (number.high > high) | ((number.high == high) & (number.low > low))
        high, low = jnp.where(later, number.high, high), jnp.where(later, number.low, low)
    return _normalise(sum(_shift(number, high, low) for number in numbers), high, low)


def total(number: Number, axis: int) -> Number:
    """The sum over an axis."""
    if number.high.shape[axis] == 0:
        shape = tuple(np.delete(number.high.shape, axis))
        return zeros(shape, number.high.dtype)
    high, low = _largest(number, axis)
    mantissas = _shift(number, high, low)
    return _normalise(mantissas.sum(axis), high.squeeze(axis), low.squeeze(axis))


def shares(number: Number, axis: int | tuple[int, ...]) -> Array:
    """Each entry's part in the sum over the axes, as a float; 0 where all are zero."""
    plain = _shift(number, *_largest(number, axis))
    whole = plain.sum(axis, keepdims=True)
    return jnp.where(whole > 0, plain / jnp.where(whole > 0, whole, 1), 0)


def log(x: Number) -> Array:
    """The natural logarithm, -inf of zero."""
    dtype = x.high.dtype.type
    factor = dtype(LN_2)
    factor_rest = dtype((LN_2 - float(factor)) + _LN_2_REST)
    product, rest = _product(x.high, factor)
    possible = x.mantissa > 0
    small = jnp.log(jnp.where(possible, x.mantissa, 1)) + (rest + x.low * factor + x.high * factor_rest)
    return jnp.where(possible, product + small, -jnp.inf)


def exact_sum(x: Array, y: Array) -> tuple[Array, Array]:
    """x + y, and what the float cannot hold of it; 0 of that where the sum is not finite."""
    rounded, rest = _sum(x, y)
    return rounded, jnp.where(jnp.isfinite(rounded), lax.stop_gradient(rest), 0)


def _format(number: Number) -> _Format:
    return _FORMATS[number.high.dtype]


def _sum(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b and its rounding error (Knuth)."""
    rounded = a + b
    part = rounded - a
    return rounded, (a - (rounded - part)) + (b - part)


def _renormalise(high: Array, low: Array) -> tuple[Array, Array]:
    """The same sum with all in ``high`` that fits, so that numbers compare by high, then low."""
    rounded = high + low
    return rounded, low - (rounded - high)


def _product(x: Array, factor: Any) -> tuple[Array, Array]:
    """x * factor and its rounding error (Dekker), in halves whose products are exact."""
    form = _FORMATS[x.dtype]
    product = x * factor
    constant, factor = lax.stop_gradient(x), jnp.asarray(factor)
    x_upper, factor_upper = (_from_bits(_bits(y) & form.integer(form.upper_half)) for y in (constant, factor))
    x_lower, factor_lower = constant - x_upper, factor - factor_upper
    rest = (x_upper * factor_upper - lax.stop_gradient(product)) + (x_upper * factor_lower + x_lower * factor_upper)
    return product, rest + x_lower * factor_lower


def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, _FORMATS[x.dtype].integer)


def _from_bits(bits: Array) -> Array:
    return lax.bitcast_convert_type(bits, np.float32 if bits.dtype == np.int32 else np.float64)


def _power_of_two(exponent: Array) -> Array:
    """2**exponent for an integer in the range of the normal floats, exactly."""
    form = _FORMATS[exponent.dtype]
    return _from_bits((exponent.astype(form.integer) + form.bias) << form.fraction_bits)


def _normalise(mantissa: Array, high: Array, low: Array) -> Number:
    """The same number with its mantissa in [1, 2)."""
    form = _FORMATS[mantissa.dtype]
    constant = lax.stop_gradient(mantissa)
    moved = ((_bits(constant) >> form.fraction_bits) - form.bias).astype(mantissa.dtype)
    possible = constant > 0
    high, low = _renormalise(high, low + moved)
    return Number(
        jnp.where(possible, mantissa * _power_of_two(jnp.where(possible, -moved, 0)), 0),
        jnp.where(possible, high, form.zero),
        jnp.where(possible, low, 0),
    )


def _shift(number: Number, high: Array, low: Array) -> Array:
    """The number in units of 2**(high + low), which is not smaller; far below it, nearly 0."""
    distance = (number.high - high) + (number.low - low)
    least = 1 - _format(number).bias
    return number.mantissa * _power_of_two(jnp.clip(distance, least, 0))


def _largest(number: Number, axis: int | tuple[int, ...]) -> tuple[Array, Array]:
    """The greatest exponent along the axes, which stay with size 1."""
    high = number.high.max(axis, keepdims=True)
    low = jnp.where(number.high == high, number.low, -jnp.inf).max(axis, keepdims=True)
    return high, low
