"""Extended-range arithmetic: a positive number as mantissa * 2**exponent, the two kept apart.

A mantissa keeps the relative precision of its dtype whatever the number's size, where a logarithm's absolute error
grows with its size. Numbers of which a loss is made keep in float32 what the mantissa has rounded off as well: what
many frames round alike would be all of a confident model's loss. The exponent is an integer too, in a float of the same
dtype, which is exact up to 2**24 (2**53 in float64). Where more is needed a second one, ``low``, has what the first
cannot hold: exact up to 2**48 then, without 64-bit integers, which JAX has not by default.

Derivatives pass through the mantissas, exponents are constants. An arc's mantissa and its adjoint are both of the size
of 1, so that derivatives of any order have the range of the numbers themselves.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """(mantissa + rest) * 2**(high + low), of any shape; zero has mantissa 0 and an exponent below all others.

    ``low`` is ``None`` where ``high`` holds every exponent. ``rest``, a constant, is beside the mantissa what its
    rounding is; ``None`` where nobody keeps it.
    """

    mantissa: Array
    high: Array
    low: Array | None = None
    rest: Array | None = None


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


def zeros(shape: tuple[int, ...], like: Number) -> Number:
    """Zeros of the parts that another number has."""
    nothing = jax.tree.map(lambda part: jnp.zeros(shape, part.dtype), like)
    return nothing._replace(high=jnp.full_like(nothing.high, _format(like).zero))


def ones(shape: tuple[int, ...], like: Number) -> Number:
    nothing = zeros(shape, like)
    return nothing._replace(mantissa=jnp.ones_like(nothing.mantissa), high=jnp.zeros_like(nothing.high))


def one_where(mask: Array, like: Number) -> Number:
    return select(mask, ones(mask.shape, like), zeros(mask.shape, like))


def with_rest(number: Number) -> Number:
    """The number with a rest of 0, where its dtype is to have one."""
    if number.high.dtype != jnp.float32 or number.rest is not None:
        return number
    # A product, not zeros: under shard_map it differs from device to device as the number does.
    return number._replace(rest=0 * lax.stop_gradient(number.mantissa))


def narrow(number: Number) -> Number:
    """The number with exponents that ``high`` holds alone."""
    return number._replace(low=None)


def reach(sizes: Array, axis: int | tuple[int, ...]) -> Array:
    """The greatest size along an axis, of exponents or logarithms of what is not impossible."""
    sizes = jnp.abs(lax.stop_gradient(sizes))
    return jnp.where(sizes <= _FORMATS[sizes.dtype].limit, sizes, 0).max(axis, initial=0)


def by_range(reaches: Array, solve: Callable[[bool], Any]) -> Any:
    """What ``solve`` makes of narrow numbers (``True``) where their exponents stay exact, and else of others.

    ``reaches``: what no exponent in a sample's recursion exceeds, (N,). A batch goes one way as a whole. Numbers of two
    exponents take a scan three times as long.
    """
    if reaches.dtype != jnp.float32:
        return solve(True)
    return lax.cond((reaches < 2**22).all(), lambda: solve(True), lambda: solve(False))


def rounded(number: Number) -> Number:
    """The number without its rest."""
    return number._replace(rest=None)


def select(mask: Array, chosen: Number, other: Number) -> Number:
    return jax.tree.map(lambda a, b: jnp.where(mask, a, b), chosen, other)


def keep(mask: Array, number: Number) -> Number:
    """The number, or zero where the mask is not set."""
    return Number(
        jnp.where(mask, number.mantissa, 0),
        jnp.where(mask, number.high, _format(number).zero),
        None if number.low is None else jnp.where(mask, number.low, 0),
        None if number.rest is None else jnp.where(mask, number.rest, 0),
    )


def varying_as(start: Any, *sources: Any) -> Any:
    """What a scan starts from, as an array that differs from device to device where a source does.

    Under shard_map JAX asks that a scan ends with the kind of arrays it has begun with. Sums of nothing are added.
    """
    nothing = sum(jnp.ravel(leaf)[:0].sum().astype(jnp.float32) for leaf in jax.tree.leaves(sources))
    return jax.tree.map(lambda part: part + jnp.asarray(nothing).astype(part.dtype), start)


def at(number: Number, index: Any) -> Number:
    return jax.tree.map(lambda part: part[index], number)


def concatenate(numbers: list[Number], axis: int) -> Number:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis), *numbers)


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
    power = fraction * number(LN_2)
    mantissa = jnp.where(possible, jnp.exp(power), 0)
    # Of a score near 0 the digits behind the 1.
    lost = lax.stop_gradient(jnp.expm1(power) - (mantissa - 1))
    lost = jnp.where(possible, lost, 0) if x.dtype == jnp.float32 else None
    high, low = (lax.stop_gradient(part) for part in _renormalise(high, low))
    return Number(mantissa, jnp.where(possible, high, form.zero), jnp.where(possible, low, 0), lost)


def number_of(x: Array, rest: Array | None = None) -> Number:
    """A float that is not negative, as a number, with what the float has rounded off."""
    return _normalise(x, jnp.zeros_like(x), jnp.zeros_like(x), rest if x.dtype == jnp.float32 else None)


def multiply(a: Number, b: Number) -> Number:
    """a * b, with a rest where a has one."""
    product, rest = a.mantissa * b.mantissa, None
    if a.rest is not None:
        one, other = map(lax.stop_gradient, (a.mantissa, b.mantissa))
        rest = _product(one, other)[1] + a.rest * other
        rest += 0 if b.rest is None else b.rest * one
    return _normalise(product, *_exponents(a, b, 1), rest)


def divide(a: Number, b: Number) -> Number:
    """a / b, b not zero; with a rest where a has one."""
    quotient, rest = a.mantissa / b.mantissa, None
    if a.rest is not None:
        one, other, found = map(lax.stop_gradient, (a.mantissa, b.mantissa, quotient))
        product, lost = _product(found, other)
        rest = ((one - product) - lost + a.rest - (0 if b.rest is None else found * b.rest)) / other
    return _normalise(quotient, *_exponents(a, b, -1), rest)


def add(*numbers: Number) -> Number:
    """The sum of a few numbers, whose mantissa a product or a logarithm has yet to bring into [1, 2).

    Of a mantissa that is brought there twice in one loop XLA makes a loop of single numbers.
    """
    high, low = numbers[0].high, numbers[0].low
    for number in numbers[1:]:
        if low is None or number.low is None:
            high = jnp.maximum(high, number.high)
        else:
            later = (number.high > high) | ((number.high == high) & (number.low > low))
            high, low = jnp.where(later, number.high, high), jnp.where(later, number.low, low)
    units = [_units(number, high, low) for number in numbers]
    total, rest = numbers[0].mantissa * units[0], None
    if numbers[0].rest is not None:
        rest = sum(number.rest * unit for number, unit in zip(numbers, units, strict=True) if number.rest is not None)
    for number, unit in zip(numbers[1:], units[1:], strict=True):
        sum_so_far, lost = _sum(total, number.mantissa * unit)
        total, rest = sum_so_far, None if rest is None else rest + lax.stop_gradient(lost)
    return Number(total, high, low, rest)


def product(factors: Array, rests: Array) -> Number:
    """(N,) products of floats (N, T), 1 at least, and of what these have rounded off; constants."""
    factors, rests = lax.stop_gradient((factors, rests))
    start = ones((), number_of(factors, rests))
    parts, tree = jax.tree.flatten(number_of(factors, rests))

    def multiplied(one: tuple[Array, ...], other: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(jax.tree.leaves(multiply(tree.unflatten(one), tree.unflatten(other))))

    return tree.unflatten(lax.reduce(tuple(parts), tuple(jax.tree.leaves(start)), multiplied, (1,)))


def relative_rest(number: Number) -> Array:
    """What the mantissa has rounded off, relative to it; 0 of zero."""
    assert number.rest is not None, "a number whose rest is kept"
    possible = number.mantissa > 0
    return lax.stop_gradient(jnp.where(possible, number.rest, 0) / jnp.where(possible, number.mantissa, 1))


def total(number: Number, axis: int) -> Number:
    """The sum over an axis."""
    if number.high.shape[axis] == 0:
        return zeros(tuple(np.delete(number.high.shape, axis)), number)
    high, low = _largest(number, axis)
    units = _units(number, high, low)
    mantissas, rest = number.mantissa * units, None
    whole = mantissas.sum(axis)
    if number.rest is not None:
        constants = lax.stop_gradient(mantissas)
        # What is rounded to a multiple of 2**-11 adds up without an error, and the rests' errors are small as they are.
        coarse = jnp.round(constants * 2**11) * 2**-11
        rest = ((coarse.sum(axis) - lax.stop_gradient(whole)) + (constants - coarse).sum(axis)) + (
            number.rest * units
        ).sum(axis)
    return _normalise(whole, high.squeeze(axis), None if low is None else low.squeeze(axis), rest)


def only(number: Number, axis: int) -> Number:
    """The one that is not zero along an axis, where there is one at most."""
    here = lax.stop_gradient(number.mantissa) > 0
    sums = jax.tree.map(lambda part: jnp.where(here, part, 0).sum(axis), number)
    return sums._replace(high=number.high.max(axis))


def shares(number: Number, axis: int | tuple[int, ...]) -> Array:
    """Each entry's part in the sum over the axes, as a float; 0 where all are zero."""
    plain = _shift(number, *_largest(number, axis))
    whole = plain.sum(axis, keepdims=True)
    return jnp.where(whole > 0, plain / jnp.where(whole > 0, whole, 1), 0)


def part(a: Number, b: Number, whole: Number) -> Array:
    """About a * b / whole as a float, which is not much above 1: the mantissa of ``whole`` is left out."""
    high, low = _exponents(a, b, 1)
    return a.mantissa * b.mantissa * _units(Number(a.mantissa, high, low), whole.high, whole.low)


def log(x: Number) -> Array:
    """The natural logarithm, -inf of zero."""
    x = _normalise(*x)
    dtype = x.high.dtype.type
    factor = dtype(LN_2)
    factor_rest = dtype((LN_2 - float(factor)) + _LN_2_REST)
    # Of a number near 1 the mantissa is, and its logarithm loses nothing.
    is_large = lax.stop_gradient(x.mantissa) > 1.5
    unit = jnp.where(is_large, dtype(0.5), dtype(1))
    mantissa = x.mantissa * unit
    high, low = _moved(x.high, x.low, is_large.astype(dtype))
    product, rest = _product(high, factor)
    possible = mantissa > 0
    mantissa = jnp.where(possible, mantissa, 1)
    small = jnp.log(mantissa) + (rest + (0 if low is None else low * factor) + high * factor_rest)
    if x.rest is not None:
        small += jnp.where(possible, x.rest * unit / lax.stop_gradient(mantissa), 0)
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


def _exponents(a: Number, b: Number, sign: int) -> tuple[Array, Array | None]:
    """The exponents of a product, or with a sign of -1 of a quotient."""
    if a.low is None or b.low is None:
        return a.high + sign * b.high, None
    high, lost = _sum(a.high, sign * b.high)
    return _renormalise(high, lost + (a.low + sign * b.low))


def _moved(high: Array, low: Array | None, by: Array) -> tuple[Array, Array | None]:
    return (high + by, None) if low is None else _renormalise(high, low + by)


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
    # Beside this number a float's last bits are an integer: a conversion would take more, as it minds what is out of
    # range.
    beside = 1.5 * 2**form.fraction_bits + form.bias
    return _from_bits(_bits(exponent + exponent.dtype.type(beside)) << form.fraction_bits)


def _normalise(mantissa: Array, high: Array, low: Array | None, rest: Array | None = None) -> Number:
    """The same number with its mantissa in [1, 2)."""
    form = _FORMATS[mantissa.dtype]
    constant = lax.stop_gradient(mantissa)
    exponent = _bits(constant) >> form.fraction_bits
    possible = constant > 0
    high, low = _moved(high, low, (exponent - form.bias).astype(mantissa.dtype))
    # Of zero 1: the greatest would make infinities of adjoints, which zero makes NaN.
    unit = jnp.where(possible, _from_bits((2 * form.bias - exponent) << form.fraction_bits), 1)
    return Number(
        mantissa * unit,
        jnp.where(possible, high, form.zero),
        None if low is None else jnp.where(possible, low, 0),
        None if rest is None else jnp.where(possible, rest * unit, 0),
    )


def _shift(number: Number, high: Array, low: Array | None) -> Array:
    """The number in units of 2**(high + low), which is not much smaller; far below it, nearly 0."""
    return number.mantissa * _units(number, high, low)


def _units(number: Number, high: Array, low: Array | None) -> Array:
    """The unit of a number's mantissa in these."""
    distance = number.high - high
    if low is not None:
        distance = distance + (number.low - low)
    # What is nearly the unit may have a larger exponent, by one.
    return _power_of_two(jnp.clip(distance, 1 - _format(number).bias, 4))


def _largest(number: Number, axis: int | tuple[int, ...]) -> tuple[Array, Array | None]:
    """The greatest exponent along the axes, which stay with size 1."""
    high = number.high.max(axis, keepdims=True)
    if number.low is None:
        return high, None
    low = jnp.where(number.high == high, number.low, -jnp.inf).max(axis, keepdims=True)
    return high, low
