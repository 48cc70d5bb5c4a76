"""Tiles of a linear layer's logits on the CPU: softmax statistics row by row, a few columns read, the gradient written.

A tile is some rows by the classes from ``first_class`` on. The sum of a row's exponentials, in float64 and less the
row's maximum, grows from tile to tile.
"""

from __future__ import annotations

import numpy as np

from pathsum.kernels.numba.compilation import COMPILE, kernel
from pathsum.kernels.numba.extended import scaled_exp
from pathsum.kernels.numba.linking import part
from pathsum.kernels.numba.rows import less_both, softmax_row, softmax_statistics, unit_of
from pathsum.kernels.numba.views import borrow
from pathsum.numerics import LN_2


@part(**COMPILE)
def _unit(maximum):
    """The logarithm of a row's unit, less the maximum."""
    taken_off, power = unit_of(maximum)
    return (np.float64(taken_off) - np.float64(maximum)) + power * LN_2


@kernel
def read_rows(logits, first, last, first_class, classes, samples, maxima, sums, columns):
    """Rows [first, last) of a tile: maxima and sums brought up to date, the columns (rows, W) of its classes read."""
    logits, classes, columns = borrow(logits), borrow(classes), borrow(columns)
    for r in range(first, last):
        row = logits[r]
        maximum, total = softmax_statistics(row)
        before = maxima[r]
        largest = before if maximum <= before else maximum
        if total != 0:
            # Over the very exponential that was summed: a confident row's sum is then 1 and what its other classes add.
            taken_off, power = unit_of(maximum)
            own = total / np.float64(scaled_exp(maximum - taken_off, power))
            own *= np.exp(np.float64(maximum) - np.float64(largest))
            sums[r] = sums[r] * np.exp(np.float64(before) - np.float64(largest)) + own
            maxima[r] = largest
        own_classes = classes[samples[r]]
        for w in range(own_classes.size):
            place = own_classes[w] - first_class
            if 0 <= place < row.size:
                columns[r, w] = row[place]


@kernel
def normalise_columns(columns, maxima, sums):
    """Logits to log-probabilities; a row of nothing but -inf stays so."""
    for r in range(columns.shape[0]):
        log_sum = np.log(sums[r]) if sums[r] != 0 else 0.0
        for w in range(columns.shape[1]):
            columns[r, w] = less_both(columns[r, w], np.float64(maxima[r]), log_sum)


@kernel
def differentiate_rows(logits, first, last, first_class, classes, samples, maxima, scales, of_columns):
    """Rows [first, last) of a tile of logits replaced by their gradient: scale * exp(logit - maximum), and what belongs
    to the columns.
    """
    logits, classes, of_columns = borrow(logits), borrow(classes), borrow(of_columns)
    for r in range(first, last):
        row, own_classes = logits[r], classes[samples[r]]
        softmax_row(row, maxima[r], row.dtype.type(scales[r] * np.exp(_unit(maxima[r]))), row)
        for w in range(own_classes.size):
            place = own_classes[w] - first_class
            if 0 <= place < row.size:
                row[place] += of_columns[r, w]
