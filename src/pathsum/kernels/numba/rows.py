"""One row of scores at a time: read in any dtype and stride, softmax statistics, the gradient row written once.

Scores arrive as the flat memory behind a strided array, since a kernel compiled for C-contiguous rows is several
times faster than one for arbitrary strides. Half precision arrives as its bits; arithmetic is float32 there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from pathsum.kernels.numba.compilation import COMPILE, COMPILE_IN_ORDER, converts_halves, kernel
from pathsum.kernels.numba.extended import scaled_exp
from pathsum.kernels.numba.linking import part
from pathsum.kernels.numba.views import bits, from_bits
from pathsum.numerics import LN_2, LOG2_E

NATIVE, BFLOAT16, FLOAT16 = 0, 1, 2
_FLOAT64 = np.dtype(np.float64)

# Elements of a row computed at once: four of the widest vectors of float32.
BLOCK = 64

_i32, _u16, _u32, _f32 = np.int32, np.uint16, np.uint32, np.float32
MAGNITUDE_32, INFINITY_32 = _i32(0x7FFFFFFF), _i32(0x7F800000)
_GREATEST_32, _SIGN_SHIFT_32 = _i32(2**31 - 1), _i32(31)
_NEGATIVE_INFINITY_KEY_32 = _i32(-(2**31) + 0x7FFFFF)
_MAGNITUDE_64, _INFINITY_64 = np.int64(0x7FFFFFFFFFFFFFFF), np.int64(0x7FF0000000000000)
_GREATEST_64, _SIGN_SHIFT_64 = np.int64(2**63 - 1), np.int64(63)
_NEGATIVE_INFINITY_KEY_64 = np.int64(-(2**63) + 0xFFFFFFFFFFFFF)
_QUIET_NAN_16, _QUIET_NAN_BFLOAT = _i32(0x7E00), _i32(0x7FC0)
_LEAST_SUBNORMAL_16 = _f32(2.0**-24)
_LOG2_E_32 = _f32(LOG2_E)
# Logits up to this size are exponentiated as they are.
_ORDINARY_32, _ORDINARY_64 = _f32(1024), np.float64(1024)
# A sum of exponentials, in a row's units, above which no class has more than a quarter of it. A path has three arcs at
# most to go on by, so that such a row costs it a fourth of a nat, and float32 is precise enough. Of rows below, which
# may cost next to nothing, the rounding would be what is left of a loss: the same one, row after row alike.
CONFIDENT = 4 * 2**0.5
# Added and taken away, it rounds a float32 below 64 to a multiple of 2**-16.
_ROUNDING = _f32(1.5 * 2.0**7)
_HALF_32 = _f32(0.5)


class Strided(NamedTuple):
    """Flat memory of an array and where its elements are."""

    flat: np.ndarray
    strides: tuple[int, ...]
    encoding: int


def strided(array: np.ndarray, encoding: int = NATIVE) -> Strided:
    """Look at ``array`` as flat memory; bfloat16 and float16 are given as uint16 with their encoding."""
    strides = tuple(step // array.itemsize for step in array.strides)
    if array.flags.c_contiguous:
        return Strided(array.reshape(-1), strides, encoding)
    extent = 0 if array.size == 0 else 1 + sum((n - 1) * step for n, step in zip(array.shape, strides, strict=True))
    flat = np.lib.stride_tricks.as_strided(array, (extent,), (array.itemsize,))
    return Strided(flat, strides, encoding)


def work_dtype(flat: np.ndarray) -> Any:
    """The dtype of arithmetic on these scores: never below float32."""
    return np.float64 if flat.dtype == _FLOAT64 else np.float32


# The conversions choose among numbers that are all computed: what has no branch is done a vector at a time.


@part(forceinline=True, **COMPILE)
def _decode_bfloat16(half):
    return from_bits(_i32(_i32(half) << _i32(16)))


@part(forceinline=True, **COMPILE)
def _decode_float16(half):
    wide = _i32(half)
    magnitude, sign = _i32(wide & _i32(0x7FFF)), _i32(_i32(wide & _i32(0x8000)) << _i32(16))
    moved = _i32(magnitude << _i32(13))
    ordinary = _i32(moved + _i32(112 << 23))
    # An integer as a float: no subnormal is worked with, which may be slow, or flushed to 0.
    small = bits(_f32(_f32(magnitude) * _LEAST_SUBNORMAL_16))
    finite = ordinary if magnitude >= _i32(0x400) else small
    found = finite if magnitude < _i32(0x7C00) else _i32(moved | INFINITY_32)
    return from_bits(_i32(found | sign))


@part(forceinline=True, **COMPILE)
def _encode_bfloat16(value):
    """The nearest bfloat16, ties to even."""
    word = bits(_f32(value))
    odd = _i32(_i32(word >> _i32(16)) & _i32(1))
    rounded = _i32(_i32(_i32(word + _i32(0x7FFF)) + odd) >> _i32(16))
    return _u16(rounded if _i32(word & MAGNITUDE_32) <= INFINITY_32 else _QUIET_NAN_BFLOAT)


@part(forceinline=True, **COMPILE)
def _encode_float16(value):
    word = bits(_f32(value))
    magnitude, sign = _i32(word & MAGNITUDE_32), _i32(_i32(word >> _i32(16)) & _i32(0x8000))
    odd = _i32(_i32(magnitude >> _i32(13)) & _i32(1))
    ordinary = _i32(_i32(_i32(magnitude - _i32(0x38000000 - 0xFFF)) + odd) >> _i32(13))
    # Adding 0.5 lines a subnormal up with the last bits of the float32, rounding included.
    lined_up = _i32(bits(_f32(from_bits(magnitude) + _HALF_32)) - _i32(0x3F000000))
    finite = ordinary if magnitude >= _i32(0x38800000) else lined_up
    infinite = _i32(0x7C00) if magnitude <= INFINITY_32 else _QUIET_NAN_16
    return _u16((finite if magnitude < _i32(0x47800000) else infinite) | sign)


@intrinsic
def _float_of_half(typing_context, half):
    def generate(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def _half_of_float(typing_context, value):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


def decode_float16(half):
    """A float16 as a float32: an instruction where the processor has one, three times as fast."""
    return _decode_float16(half)


@overload(decode_float16, jit_options=COMPILE)
def _compile_decode_float16(half):
    return (lambda half: _float_of_half(half)) if converts_halves() else (lambda half: _decode_float16(half))


def encode_float16(value):
    """The nearest float16, ties to even."""
    return _encode_float16(value)


@overload(encode_float16, jit_options=COMPILE)
def _compile_encode_float16(value):
    return (lambda value: _half_of_float(value)) if converts_halves() else (lambda value: _encode_float16(value))


@part(**COMPILE)
def _decode_row(source, encoding, out):
    size = out.size
    if size < BLOCK:
        if encoding == BFLOAT16:
            for c in range(size):
                out[c] = _decode_bfloat16(source[c])
        else:
            for c in range(size):
                out[c] = decode_float16(source[c])
        return
    # The last block reaches back into the one before it: there is no rest to go through one element at a time.
    for block in range(-(-size // BLOCK)):
        first = min(block * BLOCK, size - BLOCK)
        own, target = source[first : first + BLOCK], out[first : first + BLOCK]
        if encoding == BFLOAT16:
            for c in range(BLOCK):
                target[c] = _decode_bfloat16(own[c])
        else:
            for c in range(BLOCK):
                target[c] = decode_float16(own[c])


@part(**COMPILE)
def _encode_row(source, encoding, out):
    size = out.size
    if size < BLOCK:
        if encoding == BFLOAT16:
            for c in range(size):
                out[c] = _encode_bfloat16(source[c])
        else:
            for c in range(size):
                out[c] = encode_float16(source[c])
        return
    for block in range(-(-size // BLOCK)):
        first = min(block * BLOCK, size - BLOCK)
        own, target = source[first : first + BLOCK], out[first : first + BLOCK]
        if encoding == BFLOAT16:
            for c in range(BLOCK):
                target[c] = _encode_bfloat16(own[c])
        else:
            for c in range(BLOCK):
                target[c] = encode_float16(own[c])


def load_row(flat, start, stride, encoding, scratch):
    """A row as a contiguous array: the memory itself where it can be, else decoded into ``scratch``."""
    if flat.dtype == np.uint16:
        return _load_half(flat, start, stride, encoding, scratch)
    return _load_native(flat, start, stride, encoding, scratch)


def _load_native(flat, start, stride, encoding, scratch):
    if stride == 1:
        return flat[start : start + scratch.size]
    for c in range(scratch.size):
        scratch[c] = flat[start + c * stride]
    return scratch


def _load_half(flat, start, stride, encoding, scratch):
    if stride == 1:
        _decode_row(flat[start : start + scratch.size], encoding, scratch)
    elif encoding == BFLOAT16:
        for c in range(scratch.size):
            scratch[c] = _decode_bfloat16(flat[start + c * stride])
    else:
        for c in range(scratch.size):
            scratch[c] = decode_float16(flat[start + c * stride])
    return scratch


@overload(load_row, jit_options=COMPILE)
def _compile_load_row(flat, start, stride, encoding, scratch):
    return _load_half if flat.dtype == types.uint16 else _load_native


def store_row(flat, start, stride, encoding, row):
    """Write a row computed in ``row`` back; nothing to do where the row is the memory itself."""
    if flat.dtype == np.uint16:
        _store_half(flat, start, stride, encoding, row)
    else:
        _store_native(flat, start, stride, encoding, row)


def _store_native(flat, start, stride, encoding, row):
    if stride != 1:
        for c in range(row.size):
            flat[start + c * stride] = row[c]


def _store_half(flat, start, stride, encoding, row):
    if stride == 1:
        _encode_row(row, encoding, flat[start : start + row.size])
    elif encoding == BFLOAT16:
        for c in range(row.size):
            flat[start + c * stride] = _encode_bfloat16(row[c])
    else:
        for c in range(row.size):
            flat[start + c * stride] = encode_float16(row[c])


@overload(store_row, jit_options=COMPILE)
def _compile_store_row(flat, start, stride, encoding, row):
    return _store_half if flat.dtype == types.uint16 else _store_native


def target_row(flat, start, stride, scratch):
    """Where to compute a row that ``store_row`` will write: the memory itself where it can be, else ``scratch``."""
    if flat.dtype == np.uint16 or stride != 1:
        return scratch
    return flat[start : start + scratch.size]


@overload(target_row, jit_options=COMPILE)
def _compile_target_row(flat, start, stride, scratch):
    if flat.dtype == types.uint16:
        return lambda flat, start, stride, scratch: scratch

    def native(flat, start, stride, scratch):
        if stride != 1:
            return scratch
        return flat[start : start + scratch.size]

    return native


def _greatest_32(row):
    # Integer keys in the order of the floats: unlike a float maximum, theirs vectorises with NaN kept in sight,
    # at one end of the keys or the other according to its sign bit.
    row_bits = bits(row)
    whole, rest = _in_blocks(row_bits)
    size = rest.size
    highest, lowest = _NEGATIVE_INFINITY_KEY_32, _GREATEST_32
    for c in range(whole.size):
        key = _key_32(whole[c])
        highest = key if key > highest else highest
        lowest = key if key < lowest else lowest
    for c in range(BLOCK):
        key = _key_32(rest[c]) if c < size else _NEGATIVE_INFINITY_KEY_32
        highest = key if key > highest else highest
        lowest = key if key < lowest else lowest
    if highest >= INFINITY_32 or lowest < _NEGATIVE_INFINITY_KEY_32:
        return _f32(np.nan)
    return from_bits(_i32(highest ^ _i32(_i32(highest >> _SIGN_SHIFT_32) & MAGNITUDE_32)))


@part(forceinline=True, **COMPILE)
def _key_32(word):
    return _i32(word ^ _i32(_i32(word >> _SIGN_SHIFT_32) & MAGNITUDE_32))


def _greatest_64(row):
    row_bits = bits(row)
    highest, lowest = _NEGATIVE_INFINITY_KEY_64, _GREATEST_64
    for c in range(row_bits.size):
        key = _key_64(row_bits[c])
        highest = key if key > highest else highest
        lowest = key if key < lowest else lowest
    if highest >= _INFINITY_64 or lowest < _NEGATIVE_INFINITY_KEY_64:
        return np.nan
    return from_bits(_key_64(highest))


@part(forceinline=True, **COMPILE)
def _key_64(word):
    return np.int64(word ^ np.int64(np.int64(word >> _SIGN_SHIFT_64) & _MAGNITUDE_64))


def greatest(row):
    """The greatest score of a row; NaN where the row holds a NaN or +inf, whose softmax is undefined."""
    return _greatest_32(row) if row.dtype == np.float32 else _greatest_64(row)


@overload(greatest, jit_options=COMPILE)
def _compile_greatest(row):
    return _greatest_32 if row.dtype == types.float32 else _greatest_64


@part(forceinline=True, **COMPILE)
def _in_blocks(row):
    """A row as whole blocks and a rest, over which to loop to the block's end with a mask.

    Left to itself the compiler goes through the rest one element at a time, at the cost of all the others.
    """
    first = row.size // BLOCK * BLOCK
    return row[:first], row[first:]


def _unit_32(maximum):
    size = abs(maximum)
    taken_off = maximum if _ORDINARY_32 < size < np.inf else _f32(0)
    relative = maximum - taken_off
    return taken_off, (_i32(np.floor(relative * _LOG2_E_32 + _HALF_32)) if size < np.inf else _i32(0))


def _unit_64(maximum):
    size = abs(maximum)
    taken_off = maximum if _ORDINARY_64 < size < np.inf else 0.0
    relative = maximum - taken_off
    return taken_off, (np.int64(np.floor(relative * LOG2_E + 0.5)) if size < np.inf else np.int64(0))


def unit_of(maximum):
    """What the exponentials of a row with this maximum are in units of, exp(taken_off) * 2**power: about the greatest.

    To be divided by a power of two costs no digit. To be less the maximum does: a score 50 below it would lose 2e-6.
    Nor would the sum of the exponentials round a score as the recursion does, which then adds up over the frames. Only
    huge scores are taken less their maximum, lest the sum of a thousand of them drown the loss.
    """
    return _unit_32(maximum) if isinstance(maximum, np.float32) else _unit_64(maximum)


@overload(unit_of, jit_options=COMPILE)
def _compile_unit_of(maximum):
    return _unit_32 if maximum == types.float32 else _unit_64


@part(**COMPILE_IN_ORDER)
def _halves(x):
    """A float32 as a multiple of 2**-16 and the rest; in another order the rest would be rounded as the whole is."""
    upper = (x + _ROUNDING) - _ROUNDING
    return upper, x - upper


def _sum_of_exp_32(row, maximum):
    if not maximum > -np.inf:
        return 0.0
    taken_off, power = unit_of(maximum)
    whole, rest = _in_blocks(row)
    size = rest.size
    if whole.size == 0:
        return _precise_sum_of_exp(row, taken_off, power)
    impossible, total = _f32(-np.inf), _f32(0)
    for c in range(whole.size):
        total += scaled_exp(whole[c] - taken_off, power)
    for c in range(BLOCK):
        score = rest[c] if c < size else impossible
        total += scaled_exp(score - taken_off, power)
    return _precise_sum_of_exp(row, taken_off, power) if total < CONFIDENT else np.float64(total)


@part(**COMPILE)
def _precise_sum_of_exp(row, taken_off, power):
    """What is rounded to a multiple of 2**-16 adds up without an error, and the rests' errors are small as they are."""
    whole, rest = _in_blocks(row)
    size = rest.size
    impossible = _f32(-np.inf)
    coarse, fine = _f32(0), _f32(0)
    for c in range(whole.size):
        term = scaled_exp(whole[c] - taken_off, power)
        upper, lower = _halves(term)
        coarse += upper
        fine += lower
    for c in range(BLOCK):
        score = rest[c] if c < size else impossible
        term = scaled_exp(score - taken_off, power)
        upper, lower = _halves(term)
        coarse += upper
        fine += lower
    return np.float64(coarse) + np.float64(fine)


def _sum_of_exp_64(row, maximum):
    if not maximum > -np.inf:
        return 0.0
    taken_off, power = unit_of(maximum)
    whole, rest = _in_blocks(row)
    size = rest.size
    total = 0.0
    for c in range(whole.size):
        total += scaled_exp(whole[c] - taken_off, power)
    for c in range(BLOCK):
        score = rest[c] if c < size else -np.inf
        total += scaled_exp(score - taken_off, power)
    return total


def sum_of_exp(row, maximum):
    """In float64 the sum of exp(score) in the units of a row with this maximum; 0 of a row of nothing but -inf."""
    return _sum_of_exp_32(row, maximum) if row.dtype == np.float32 else _sum_of_exp_64(row, maximum)


@overload(sum_of_exp, jit_options=COMPILE)
def _compile_sum_of_exp(row, maximum):
    return _sum_of_exp_32 if row.dtype == types.float32 else _sum_of_exp_64


@part(forceinline=True, **COMPILE)
def softmax_statistics(row):
    """The greatest score of a row, and the sum of its exponentials as ``sum_of_exp``."""
    maximum = greatest(row)
    return maximum, sum_of_exp(row, maximum)


@part(**COMPILE)
def log_total(maximum, total):
    """log(sum of exp(score - taken_off)) in float64, and taken_off; 0 of a row of nothing but -inf, which stays so."""
    taken_off, power = unit_of(maximum)
    return (np.log(total) + power * LN_2 if total > 0 else 0.0), np.float64(taken_off)


@part(**COMPILE_IN_ORDER)
def less_both(score, taken_off, other):
    """score - taken_off - other in float64: in another order the two would be one, and the smaller lost in the huge."""
    return np.float64(score) - taken_off - other


@part(**COMPILE)
def copy_row(source, target):
    # Assigning slices would do the same, and take the compiler seconds: it makes the words of an error in shapes.
    for c in range(source.size):
        target[c] = source[c]


@part(**COMPILE)
def take_off(scores, largest):
    """Take the largest of some scores off all of them where it is huge; what was taken off.

    It would take the small digits of a recursion's exponents, and with them what tells paths apart.
    """
    taken_off, _ = unit_of(largest)
    if taken_off != 0:
        for i in range(scores.size):
            scores[i] -= taken_off
    return taken_off


def less_common(transitions):
    """A table of transitions in float64, less its greatest where that is huge: every path of a sample takes as many."""
    less = np.empty(transitions.shape)
    _take_off_table(transitions, common_of(transitions), less)
    return less


@kernel
def common_of(transitions):
    """What ``less_common`` takes off: the greatest where it is huge, else 0."""
    largest = -np.inf
    for score in transitions.flat:
        largest = score if score > largest or score != score else largest
    return unit_of(np.float64(largest))[0]


@kernel
def _take_off_table(transitions, common, less):
    for j in range(transitions.shape[0]):
        for i in range(transitions.shape[1]):
            less[j, i] = np.float64(transitions[j, i]) - common


def inexactness(score, maximum):
    """What the sum of a row's exponentials lacks for this score's share of it to be exact, in the row's units."""
    return _inexactness(score, maximum) if isinstance(score, np.float32) else 0.0


def _inexactness(score, maximum):
    taken_off, power = unit_of(maximum)
    exact = scaled_exp(np.float64(score) - np.float64(taken_off), np.int64(power))
    return exact - np.float64(scaled_exp(score - taken_off, power))


@overload(inexactness, jit_options=COMPILE)
def _compile_inexactness(score, maximum):
    return _inexactness if score == types.float32 else lambda score, maximum: 0.0


@part(**COMPILE)
def softmax_row(row, maximum, scale, out):
    """out = scale * exp(score) in the row's units; ``out`` may be ``row``."""
    taken_off, power = unit_of(maximum)
    whole, rest = _in_blocks(row)
    whole_out, rest_out = _in_blocks(out)
    size = rest.size
    for c in range(whole.size):
        whole_out[c] = scaled_exp(whole[c] - taken_off, power) * scale
    for c in range(BLOCK):
        if c < size:
            rest_out[c] = scaled_exp(rest[c] - taken_off, power) * scale


@part(**COMPILE)
def softmax_mean(row, maximum, values):
    """The sum of exp(score) * value in the row's units."""
    taken_off, power = unit_of(maximum)
    whole, rest = _in_blocks(row)
    whole_values, rest_values = _in_blocks(values)
    size = rest.size
    total = row.dtype.type(0)
    nothing = row.dtype.type(0)
    for c in range(whole.size):
        total += scaled_exp(whole[c] - taken_off, power) * whole_values[c]
    for c in range(BLOCK):
        total += scaled_exp(rest[c] - taken_off, power) * rest_values[c] if c < size else nothing
    return total


@part(**COMPILE)
def softmax_tangent_row(row, maximum, scale, slope, values, mean, out):
    """out = exp(score) * (scale + slope * (value - mean)) in the row's units."""
    taken_off, power = unit_of(maximum)
    whole, rest = _in_blocks(row)
    whole_values, rest_values = _in_blocks(values)
    whole_out, rest_out = _in_blocks(out)
    size = rest.size
    for c in range(whole.size):
        whole_out[c] = scaled_exp(whole[c] - taken_off, power) * (scale + slope * (whole_values[c] - mean))
    for c in range(BLOCK):
        if c < size:
            rest_out[c] = scaled_exp(rest[c] - taken_off, power) * (scale + slope * (rest_values[c] - mean))
