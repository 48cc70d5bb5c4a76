"""Extended-range arithmetic: a positive number as mantissa * 2**exponent, the two kept apart.

Sums over paths underflow any float and lose digits as logarithms. A mantissa keeps the relative precision of its dtype
whatever the number's size, and no step of a recursion waits for an exp or a log. Zero has mantissa 0 and an exponent
below all others.

Two pairs, told apart by the dtype of the mantissa: the narrow one, float32 with int32 exponents, and the wide one,
float64 with int64 exponents. A number is kept in memory, and handed from lane to lane, as one word of 64 bits. While it
is computed a number of the wide pair has int32 exponents where the narrow one would hold it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathsum import numerics

LN_2 = tl.constexpr(numerics.LN_2)
LOG2_E = tl.constexpr(numerics.LOG2_E)
# Logits up to this size are exponentiated as they are.
ORDINARY = tl.constexpr(1024.0)
HIGH_32, LOW_32 = tl.constexpr(numerics.LN_2_HIGH_32), tl.constexpr(numerics.LN_2_LOW_32)
HIGH_64, LOW_64 = tl.constexpr(numerics.LN_2_HIGH_64), tl.constexpr(numerics.LN_2_LOW_64)
ZERO_32 = tl.constexpr(numerics.ZERO_EXPONENT_32)
# Three of them add up without leaving int64.
ZERO_64 = tl.constexpr(-(2**60))
LEAST_32 = tl.constexpr(-0.7 * numerics.MAX_EXPONENT_32)
# Beyond this a float64 score has no digit left that a path could be told by: it counts as impossible.
LEAST_64 = tl.constexpr(-(2.0**52))


@triton.jit
def _exp_tail_32(r):
    """exp(r) - 1 for |r| <= ln(2)/2, to 5e-9."""
    high = ((r * (1 / 5040) + (1 / 720)) * r + (1 / 120)) * r + (1 / 24)
    return (((high * r + (1 / 6)) * r + 0.5) * r + 1.0) * r


@triton.jit
def _exp_fraction_64(r):
    """exp(r) for |r| <= ln(2)/2, to 4e-18."""
    high = (((r * (1 / 6227020800) + (1 / 479001600)) * r + (1 / 39916800)) * r + (1 / 3628800)) * r + (1 / 362880)
    middle = (((high * r + (1 / 40320)) * r + (1 / 5040)) * r + (1 / 720)) * r + (1 / 120)
    return ((((middle * r + (1 / 24)) * r + (1 / 6)) * r + 0.5) * r + 1.0) * r + 1.0


@triton.jit
def _split_tail(x):
    """(mantissa - 1, exponent) of exp(x) in float32: of x near 0 the digits that the mantissa would round off."""
    possible = x > LEAST_32
    bounded = tl.where(possible, x, 0.0)
    n = tl.floor(bounded * LOG2_E + 0.5)
    tail = _exp_tail_32(bounded - n * HIGH_32 - n * LOW_32)
    return tl.where(possible, tail, -1.0), tl.where(possible, n.to(tl.int32), ZERO_32)


@triton.jit
def split(x):
    """The extended-range number exp(x); x is a block and neither NaN nor +inf."""
    if x.dtype == tl.float32:
        tail, n = _split_tail(x)
        return 1.0 + tail, n
    else:
        possible = x > LEAST_64
        bounded = tl.where(possible, x, 0.0)
        n = tl.floor(bounded * LOG2_E + 0.5)
        fraction = _exp_fraction_64(bounded - n * HIGH_64 - n * LOW_64)
        return tl.where(possible, fraction, 0.0), tl.where(possible, n.to(tl.int64), ZERO_64)


@triton.jit
def split_exactly(x):
    """The same of a float32, with a mantissa of the wide pair, which has all that the polynomial in float32 knows."""
    tail, n = _split_tail(x)
    return 1.0 + tail.to(tl.float64), n


@triton.jit
def split_wide(x):
    """The same in the wide pair."""
    if x.dtype == tl.float32:
        mantissa, n = split_exactly(x)
        return mantissa, tl.where(n == ZERO_32, ZERO_64, n.to(tl.int64))
    else:
        return split(x)


@triton.jit
def narrowed(mantissa, exponent):
    """A number of the wide pair in the narrow one, which holds it."""
    return mantissa.to(tl.float32), tl.maximum(exponent, ZERO_32).to(tl.int32)


@triton.jit
def reference_of(maximum):
    """What scores with this maximum are taken less before they are exponentiated.

    Nothing, where they are of ordinary size: a score 50 below its row's maximum would lose 2e-6 to the subtraction, and
    extended range needs none. Huge ones are, lest the sum of a thousand of them drown the loss.
    """
    size = tl.abs(maximum)
    return tl.where((size > ORDINARY) & (size < float("inf")), maximum, 0.0)


@triton.jit
def unit_of(maximum):
    """What the exponentials of a row are in units of, exp(reference) * 2**power; and the greatest one itself in it."""
    reference = reference_of(maximum)
    relative = tl.where(tl.abs(maximum) < float("inf"), maximum - reference, 0.0)
    greatest, power = split(relative)
    return reference, greatest, power


@triton.jit
def shift(mantissa, exponent):
    """mantissa * 2**exponent as a plain float, for exponent <= 0; far below the dtype's range, nearly 0."""
    if mantissa.dtype == tl.float32:
        bounded = tl.maximum(exponent, -126).to(tl.int32)
        return mantissa * ((bounded + 127) << 23).to(tl.float32, bitcast=True)
    else:
        bounded = tl.maximum(exponent, -1022).to(tl.int64)
        return mantissa * ((bounded + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def normalise(mantissa, exponent):
    """The same number with its mantissa in [1, 2)."""
    possible = mantissa > 0
    if mantissa.dtype == tl.float32:
        bits = mantissa.to(tl.int32, bitcast=True)
        unit = ((bits & 0x007FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
        return tl.where(possible, unit, 0.0), tl.where(possible, exponent + (bits >> 23) - 127, ZERO_32)
    else:
        bits = mantissa.to(tl.int64, bitcast=True)
        unit = ((bits & 0x000FFFFFFFFFFFFF) | 0x3FF0000000000000).to(tl.float64, bitcast=True)
        zero = ZERO_32 if exponent.dtype == tl.int32 else ZERO_64
        own = ((bits >> 52) - 1023).to(exponent.dtype)
        return tl.where(possible, unit, 0.0), tl.where(possible, exponent + own, zero)


@triton.jit
def add(mantissa, exponent, other, other_exponent):
    """The normalised sum."""
    largest = tl.maximum(exponent, other_exponent)
    return normalise(shift(mantissa, exponent - largest) + shift(other, other_exponent - largest), largest)


@triton.jit
def add_three(one, one_exponent, two, two_exponent, three, three_exponent):
    """The sum, not normalised."""
    largest = tl.maximum(one_exponent, tl.maximum(two_exponent, three_exponent))
    entering = shift(two, two_exponent - largest) + shift(three, three_exponent - largest)
    return shift(one, one_exponent - largest) + entering, largest


@triton.jit
def pack(mantissa, exponent):
    """A normalised number as one word: int64 of the narrow pair, exactly; float64 of the wide one.

    The latter is exponent + mantissa - 1, the logarithm to base 2 but for straight lines between the powers.
    """
    if mantissa.dtype == tl.float32:
        bits = mantissa.to(tl.int32, bitcast=True)
        return (exponent.to(tl.int64) << 32) | bits.to(tl.int64)
    else:
        return tl.where(mantissa > 0, exponent.to(tl.float64) + (mantissa - 1.0), float("-inf"))


@triton.jit
def unpack(word, EXPONENT: tl.constexpr = tl.int64):
    """A word as a number; of one of the wide pair the exponent is of the type asked for."""
    if word.dtype == tl.int64:
        mantissa = (word & 0xFFFFFFFF).to(tl.int32).to(tl.float32, bitcast=True)
        return mantissa, (word >> 32).to(tl.int32)
    else:
        possible = word > float("-inf")
        bounded = tl.where(possible, word, 0.0)
        exponent = tl.floor(bounded)
        mantissa = tl.where(possible, bounded - exponent + 1.0, 0.0)
        return mantissa, tl.where(possible, exponent.to(EXPONENT), ZERO_32 if EXPONENT == tl.int32 else ZERO_64)


@triton.jit
def zeros_like(word):
    """Words of 0."""
    if word.dtype == tl.int64:
        return tl.full(word.shape, ZERO_32, tl.int64) << 32
    else:
        return tl.full(word.shape, float("-inf"), tl.float64)


@triton.jit
def log(mantissa, exponent):
    """Natural logarithm in float64; -inf of 0."""
    wide = mantissa.to(tl.float64)
    logarithm = tl.log(tl.where(wide > 0, wide, 1.0)) + exponent.to(tl.float64) * LN_2
    return tl.where(wide > 0, logarithm, float("-inf"))


@triton.jit
def plain(mantissa, exponent):
    """A posterior as a float: its exponent is at most 1 but for rounding."""
    return 2.0 * shift(mantissa, tl.minimum(exponent - 1, 0))
