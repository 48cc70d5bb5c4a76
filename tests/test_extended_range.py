"""The numbers under the kernels: extended-range arithmetic, half precision by its bits, row statistics."""

import math

import numpy as np
import pytest
from numba import njit

from pathsum.kernels.numba import extended, rows
from pathsum.numerics import MAX_EXPONENT_32, ZERO_EXPONENT_32, ZERO_EXPONENT_64
from pathsum.testing import assert_close, assert_same_bits

PAIRS = {np.float32: (np.int32, ZERO_EXPONENT_32), np.float64: (np.float64, ZERO_EXPONENT_64)}

exp = njit(lambda x: extended.exp(x))
split = njit(lambda x: extended.split(x))
shift = njit(lambda mantissa, exponent: extended.shift(mantissa, exponent))
normalise = njit(lambda mantissa, exponent: extended.normalise(mantissa, exponent))
load_row = njit(lambda *row: rows.load_row(*row))
store_row = njit(lambda *row: rows.store_row(*row))
unit_of = njit(lambda maximum: rows.unit_of(maximum))
softmax_statistics = njit(lambda row: rows.softmax_statistics(row))


# 0, near it, around a multiple of ln 2, deep, where float32 and float64 underflow, impossible.
@pytest.mark.parametrize("x", [0, -1e-7, -0.3465, -0.3466, -1, -10.5, -80, -87, -88, -700, -710, -1e6, -math.inf])
@pytest.mark.parametrize("dtype", PAIRS)
def test_exp_of_what_is_not_positive(dtype, x):
    x, info = dtype(x), np.finfo(dtype)
    exact = math.exp(x)
    # Taking multiples of ln 2 away costs a share of eps for each.
    relative = info.eps * (2 + abs(float(x)) / 4)
    assert_close(exp(x), exact if exact >= info.tiny else 0.0, relative=relative if exact > 0 else 0.0)


@pytest.mark.parametrize("x", [0.0, 1.0, -1.0, 88.0, 1000.0, -87.5, -1e4, -1e5, -3e7, 3e7])
@pytest.mark.parametrize("dtype", PAIRS)
def test_split_is_exp_with_its_exponent_apart(dtype, x):
    mantissa, exponent = split(dtype(x))
    assert 0.5 <= mantissa <= 2
    # A score this large is known to half a unit in its own last place, and no better.
    assert_close(math.log(mantissa) + float(exponent) * math.log(2), float(dtype(x)), relative=1e-7, absolute=2e-7)


@pytest.mark.parametrize("dtype", PAIRS)
def test_an_impossible_score_splits_into_zero_below_all_others(dtype):
    mantissa, exponent = split(dtype(-np.inf))
    assert mantissa == 0
    assert exponent == PAIRS[dtype][1]
    assert normalise(dtype(0), PAIRS[dtype][0](5)) == (0, PAIRS[dtype][1])
    assert extended.log(dtype(0), exponent) == -np.inf
    assert exponent < -2 * MAX_EXPONENT_32


@pytest.mark.parametrize("dtype", PAIRS)
def test_normalise_keeps_the_number(dtype):
    for mantissa in (1.0, 1.5, 2.0, 3.999, 0.25, 1e-30, 1e30):
        unit, exponent = normalise(dtype(mantissa), PAIRS[dtype][0](-7))
        assert 1 <= unit < 2
        assert float(unit) * 2.0 ** (float(exponent) + 7) == float(dtype(mantissa))


@pytest.mark.parametrize("dtype", PAIRS)
def test_shift_scales_by_powers_of_two_and_vanishes_far_below(dtype):
    exponent = PAIRS[dtype][0]
    for distance in (0, 1, 30, 126):
        assert shift(dtype(1.5), exponent(-distance)) == 1.5 * 2.0**-distance
    assert shift(dtype(1.5), exponent(PAIRS[dtype][1])) <= 1.5 * np.finfo(dtype).tiny
    assert shift(dtype(0), exponent(-3)) == 0


# Neighbours in memory, and not.
@pytest.mark.parametrize("stride", [1, 3])
def test_half_precision_is_read_as_torch_reads_it_and_written_to_the_nearest(stride):
    torch = pytest.importorskip("torch")
    every = np.arange(2**16, dtype=np.uint16)
    random = np.random.default_rng(0)
    # Any float32 by its bits; halfway between two neighbours, where ties go to even, and beside it; the ends.
    values = random.integers(0, 2**32, 20000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    for dtype, encoding in ((torch.bfloat16, rows.BFLOAT16), (torch.float16, rows.FLOAT16)):
        read = torch.from_numpy(every.view(np.int16)).view(dtype).float().numpy()
        flat = np.repeat(every, stride)
        assert_same_bits(load_row(flat, 0, stride, encoding, np.empty(2**16, np.float32)), read)
        finite = np.sort(read[np.isfinite(read)])
        halfway = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
        beside = [np.nextafter(halfway, np.float32(side)) for side in (-np.inf, np.inf)]
        info = torch.finfo(dtype)
        edges = np.array([min(info.max * 1.0001, 3.4e38), info.tiny / 3, 0, -0.0, np.inf, -np.inf, np.nan], np.float32)
        for written in (values, halfway, *beside, finite, edges):
            bits = np.zeros(stride * written.size, np.uint16)
            store_row(bits, 0, stride, encoding, written)
            ours = torch.from_numpy(bits[::stride].view(np.int16).copy()).view(dtype)
            assert_same_bits(ours, torch.from_numpy(written).to(dtype))


# A row may be shorter than a block, a whole number of them, or end within one.
@pytest.mark.parametrize("size", [1, rows.BLOCK - 1, rows.BLOCK, rows.BLOCK + 1, 3 * rows.BLOCK - 5])
def test_half_precision_rows_end_where_they_end(size):
    bits = np.arange(1, size + 3, dtype=np.uint16) << 4
    scratch = np.full(size + 2, -1, np.float32)
    row = load_row(bits, 1, 1, rows.FLOAT16, scratch[1:-1])
    assert_same_bits(row, bits[1:-1].view(np.float16).astype(np.float32))
    assert scratch[0] == scratch[-1] == -1
    out = np.zeros(size + 2, np.uint16)
    store_row(out, 1, 1, rows.FLOAT16, row)
    assert_same_bits(out, np.concatenate([[0], bits[1:-1], [0]]).astype(np.uint16))


# One class, one short of a vector, one beyond it.
@pytest.mark.parametrize("size", [1, 7, 8, 17, 100])
@pytest.mark.parametrize("dtype", PAIRS)
def test_row_statistics(dtype, size):
    row = np.random.default_rng(size).standard_normal(size).astype(dtype) - dtype(3)
    for fill in ([], [-np.inf], [0.0], [-0.0]):
        row[: len(fill)] = fill
        maximum, total = softmax_statistics(row)
        assert maximum == row.max()
        # In units of a power of two near the greatest.
        power = unit_of(maximum)[1]
        expected = np.exp(row.astype(np.float64) - power * math.log(2)).sum() if maximum > -np.inf else 0.0
        assert_close(total, expected, relative=size * np.finfo(dtype).eps)
    row[:] = -np.inf
    assert softmax_statistics(row) == (-np.inf, 0)
    for poison in (np.nan, -np.nan, np.inf):
        for place in {0, size // 2, size - 1}:
            poisoned = row.copy()
            poisoned[place] = poison
            assert np.isnan(softmax_statistics(poisoned)[0])
