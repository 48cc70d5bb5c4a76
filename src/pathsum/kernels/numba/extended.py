"""Extended-range arithmetic: a positive number as mantissa * 2**exponent, the two kept apart.

Sums over paths underflow any float and lose digits as logarithms: a log-score of -8192 in float32 is rounded to
1e-3. A mantissa keeps the relative precision of its dtype whatever the number's size, and no step of a recursion
needs an exp or a log. Zero has mantissa 0 and an exponent below all others.

Three pairs are used: float32 with int32 exponents, float64 with int64 exponents of the same range, and float64 with
float64 exponents, whose range is that of float64 itself. Functions are told apart by argument type; they also run
uncompiled.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.extending import overload

from pathsum.kernels.numba.compilation import COMPILE, COMPILE_IN_ORDER
from pathsum.kernels.numba.linking import part
from pathsum.kernels.numba.views import bits, from_bits
from pathsum.numerics import (
    LN_2,
    LN_2_HIGH_32,
    LN_2_HIGH_64,
    LN_2_LOW_32,
    LN_2_LOW_64,
    LOG2_E,
    MAX_EXPONENT_32,
    ZERO_EXPONENT_32,
    ZERO_EXPONENT_64,
)

_f32, _i32 = np.float32, np.int32
_BIAS_32, _SHIFT_32, _FRACTION_32, _ONE_32 = _i32(127), _i32(23), _i32(0x007FFFFF), _i32(0x3F800000)
_BIAS_64, _SHIFT_64, _FRACTION_64 = np.int64(1023), np.int64(52), np.int64(0x000FFFFFFFFFFFFF)
_ONE_64 = np.int64(0x3FF0000000000000)
_MIN_EXPONENT_32, _MIN_EXPONENT_64 = _i32(-126), np.float64(-1022.0)
_ZERO_32, _ZERO_64 = _i32(ZERO_EXPONENT_32), np.float64(ZERO_EXPONENT_64)
_LEAST_INTEGER, _ZERO_INTEGER = np.int64(-1022), np.int64(ZERO_EXPONENT_32)

_LOG2_E_32, _HALF_32, _WHOLE_32 = _f32(LOG2_E), _f32(0.5), _f32(1.5 * 2.0**23)
_HIGH_32, _LOW_32, _LN_2_32 = _f32(LN_2_HIGH_32), _f32(LN_2_LOW_32), _f32(LN_2)
_LEAST_SPLIT_32, _LEAST_EXP_32 = _f32(MAX_EXPONENT_32 * -0.7), _f32(-87.33654)
_LEAST_EXP_64 = -708.39641853226408
# Below what any power of a row leads to, and such that its multiple of ln 2 is exact.
_LEAST_WHOLE_32, _LEAST_WHOLE_64 = _f32(-4096), np.float64(-4096)

# exp(r) on |r| <= ln(2)/2 to 4e-9: the coefficients of degree 6 to 2 whose greatest relative error is the least.
_C6_32, _C5_32, _C4_32 = _f32(0.001381453942), _f32(0.008368745446), _f32(0.041668388993)
_C3_32, _C2_32 = _f32(0.16666521132), _f32(0.4999999404)
# Taylor coefficients: the remainder of degree 13 is 4e-18.
_C13, _C12, _C11, _C10, _C9, _C8, _C7, _C6, _C5, _C4, _C3 = (1 / math.factorial(k) for k in range(13, 2, -1))
_UNIT_32, _NONE_32, _NO_POWER_32, _NO_POWER_64 = _f32(1.0), _f32(0.0), _i32(0), np.int64(0)


@part(**COMPILE_IN_ORDER)
def _remainder_32(x, n):
    """x - n ln 2. In another order the two parts of ln 2 would be one, and its missing digits the result's."""
    return x - n * _HIGH_32 - n * _LOW_32


@part(**COMPILE_IN_ORDER)
def _shifted_32(x):
    """x / ln 2 plus a number so large that the sum is a whole one."""
    return x * _LOG2_E_32 + _WHOLE_32


@part(**COMPILE_IN_ORDER)
def _whole_32(shifted):
    """The multiple of ln 2 that is nearest to x."""
    return shifted - _WHOLE_32


@part(**COMPILE)
def _nearest_32(x):
    """The same for scores of any size."""
    near = _whole_32(_shifted_32(x))
    return near if abs(x) < -_LEAST_WHOLE_32 else _f32(np.floor(x * _LOG2_E_32 + _HALF_32))


@part(**COMPILE_IN_ORDER)
def _remainder_64(x, n):
    return x - n * LN_2_HIGH_64 - n * LN_2_LOW_64


@part(**COMPILE_IN_ORDER)
def _exp_tail_32(r):
    """exp(r) - 1 for |r| <= ln(2)/2."""
    high = (_C6_32 * r + _C5_32) * r + _C4_32
    return (((high * r + _C3_32) * r + _C2_32) * r + _UNIT_32) * r


@part(**COMPILE_IN_ORDER)
def _exp_fraction_32(r):
    """exp(r) for |r| <= ln(2)/2, with the same rounding wherever it is written."""
    high = (_C6_32 * r + _C5_32) * r + _C4_32
    return (((high * r + _C3_32) * r + _C2_32) * r + _UNIT_32) * r + _UNIT_32


@part(**COMPILE)
def _exp_fraction_64(r):
    high = ((((_C13 * r + _C12) * r + _C11) * r + _C10) * r + _C9) * r + _C8
    middle = (((high * r + _C7) * r + _C6) * r + _C5) * r + _C4
    return (((middle * r + _C3) * r + 0.5) * r + 1.0) * r + 1.0


def _scaled_exp_32(x, power):
    # Two bounds: the loops need not wait for the power before they begin.
    least = _f32(_f32(power) * _LN_2_32 + _LEAST_EXP_32)
    bounded = max(x, _LEAST_WHOLE_32)
    shifted = _shifted_32(bounded)
    fraction = _exp_fraction_32(_remainder_32(bounded, _whole_32(shifted)))
    # The last bits of the shifted number are n, those in front of them leave the word.
    n = bits(_f32(shifted))
    unit = from_bits(_i32(_i32(n + _i32(_BIAS_32 - power)) << _SHIFT_32))
    return fraction * unit if x > least else _NONE_32


def _scaled_exp_64(x, power):
    least = np.float64(power) * LN_2 + _LEAST_EXP_64
    bounded = max(x, _LEAST_WHOLE_64)
    n = np.floor(bounded * LOG2_E + 0.5)
    fraction = _exp_fraction_64(_remainder_64(bounded, n))
    unit = from_bits(np.int64((np.int64(n) + np.int64(_BIAS_64 - power)) << _SHIFT_64))
    return fraction * unit if x > least else 0.0


def _split_32(x):
    bounded = max(x, _LEAST_SPLIT_32)
    n = _nearest_32(bounded)
    fraction = _exp_fraction_32(_remainder_32(bounded, n))
    possible = x > _LEAST_SPLIT_32
    return (fraction if possible else _NONE_32), (_i32(n) if possible else _ZERO_32)


def _split_tail_32(x):
    bounded = max(x, _LEAST_SPLIT_32)
    n = _nearest_32(bounded)
    tail = _exp_tail_32(_remainder_32(bounded, n))
    possible = x > _LEAST_SPLIT_32
    return (tail if possible else -_UNIT_32), (_i32(n) if possible else _ZERO_32)


def _split_64(x):
    possible = x > -np.inf
    bounded = x if possible else 0.0
    n = np.floor(bounded * LOG2_E + 0.5)
    # Beyond 1e15 the remainder is less than the score's own last place, and what is computed for it is noise.
    remainder = min(max(_remainder_64(bounded, n), -0.5), 0.5)
    fraction = _exp_fraction_64(remainder)
    return (fraction if possible else 0.0), (n if possible else _ZERO_64)


def _shift_32(mantissa, exponent):
    narrow = _i32(exponent)
    bounded = narrow if narrow > _MIN_EXPONENT_32 else _MIN_EXPONENT_32
    return mantissa * from_bits(_i32(_i32(bounded + _BIAS_32) << _SHIFT_32))


def _shift_64(mantissa, exponent):
    bounded = np.int64(max(exponent, _MIN_EXPONENT_64))
    return mantissa * from_bits(np.int64((bounded + _BIAS_64) << _SHIFT_64))


def _shift_by_integer(mantissa, exponent):
    bounded = exponent if exponent > _LEAST_INTEGER else _LEAST_INTEGER
    return mantissa * from_bits(np.int64((bounded + _BIAS_64) << _SHIFT_64))


def _normalise_32(mantissa, exponent):
    word = bits(_f32(mantissa))
    # Widening to int64, as the compiler does for a sum of int32, would halve the speed: every step narrows again.
    moved = _i32(_i32(exponent + _i32(word >> _SHIFT_32)) - _BIAS_32)
    unit = from_bits(_i32(_i32(word & _FRACTION_32) | _ONE_32))
    possible = mantissa > _NONE_32
    return (unit if possible else _NONE_32), (moved if possible else _ZERO_32)


def _normalise_64(mantissa, exponent):
    word = bits(np.float64(mantissa))
    moved = exponent + np.float64((word >> _SHIFT_64) - _BIAS_64)
    unit = from_bits(np.int64((word & _FRACTION_64) | _ONE_64))
    possible = mantissa > 0.0
    return (unit if possible else 0.0), (moved if possible else _ZERO_64)


def _normalise_by_integer(mantissa, exponent):
    word = bits(np.float64(mantissa))
    moved = exponent + (word >> _SHIFT_64) - _BIAS_64
    unit = from_bits(np.int64((word & _FRACTION_64) | _ONE_64))
    possible = mantissa > 0.0
    return (unit if possible else 0.0), (moved if possible else _ZERO_INTEGER)


def exp(x):
    """exp(x) as a plain float, for x below 88, in float64 709; what would be subnormal is 0."""
    return scaled_exp(x, _NO_POWER_32 if isinstance(x, np.float32) else _NO_POWER_64)


def scaled_exp(x, power):
    """exp(x) * 2**-power as ``exp``, for whole numbers; the mantissa is that of ``split``, to the last bit."""
    return _scaled_exp_32(x, power) if isinstance(x, np.float32) else _scaled_exp_64(x, power)


def split(x):
    """The extended-range number exp(x): (mantissa, exponent)."""
    return _split_32(x) if isinstance(x, np.float32) else _split_64(x)


def split_tail(x):
    """(mantissa - 1, exponent) of a float32 score: of one near 0 the digits that the mantissa would round off."""
    return _split_tail_32(x)


def shift(mantissa, exponent):
    """mantissa * 2**exponent as a plain float, for exponent <= 0; far below the dtype's range, nearly 0."""
    if isinstance(mantissa, np.float32):
        return _shift_32(mantissa, exponent)
    return (_shift_by_integer if isinstance(exponent, np.int64) else _shift_64)(mantissa, exponent)


def normalise(mantissa, exponent):
    """The same number with its mantissa in [1, 2)."""
    if isinstance(mantissa, np.float32):
        return _normalise_32(mantissa, exponent)
    return (_normalise_by_integer if isinstance(exponent, np.int64) else _normalise_64)(mantissa, exponent)


@overload(exp, jit_options=COMPILE)
def _compile_exp(x):
    if x == types.float32:
        return lambda x: scaled_exp(x, _NO_POWER_32)
    return lambda x: scaled_exp(x, _NO_POWER_64)


@overload(scaled_exp, jit_options=COMPILE)
def _compile_scaled_exp(x, power):
    return _scaled_exp_32 if x == types.float32 else _scaled_exp_64


@overload(split, jit_options=COMPILE)
def _compile_split(x):
    return _split_32 if x == types.float32 else _split_64


@overload(split_tail, jit_options=COMPILE)
def _compile_split_tail(x):
    return _split_tail_32


@overload(shift, jit_options=COMPILE)
def _compile_shift(mantissa, exponent):
    if mantissa == types.float32:
        return _shift_32
    return _shift_by_integer if exponent == types.int64 else _shift_64


@overload(normalise, jit_options=COMPILE)
def _compile_normalise(mantissa, exponent):
    if mantissa == types.float32:
        return _normalise_32
    return _normalise_by_integer if exponent == types.int64 else _normalise_64


@part(**COMPILE)
def log(mantissa, exponent):
    """Natural logarithm of an extended-range number, in float64."""
    if mantissa > 0:
        return np.log(np.float64(mantissa)) + np.float64(exponent) * LN_2
    return -np.inf
