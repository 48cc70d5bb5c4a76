"""Edit distances between sequences of tokens, or between the words that a separator makes of them."""

from __future__ import annotations

import numpy as np

from pathsum.kernels.numba import parallel
from pathsum.kernels.numba.compilation import COMPILE, kernel
from pathsum.kernels.numba.linking import part


def edit_distances(
    hypotheses: np.ndarray,
    hypothesis_lengths: np.ndarray,
    references: np.ndarray,
    reference_lengths: np.ndarray,
    *,
    separator: int | None,
    num_threads: int,
) -> np.ndarray:
    """(N, K) of hypotheses (N, K, S) from the reference (N, L) of their sample; by words where there is a separator."""
    num_samples, num_hypotheses, size = hypotheses.shape
    distances = np.empty((num_samples, num_hypotheses), np.int64)
    by_words = separator is not None

    def measure(first: int, last: int) -> None:
        _measure(
            hypotheses, hypothesis_lengths, references, reference_lengths, by_words, separator or 0, first, last,
            distances,
        )  # fmt: skip

    work = num_samples * num_hypotheses * size * references.shape[1]
    num_threads = parallel.worthwhile(num_threads, work)
    parallel.run(measure, parallel.split_evenly(num_samples, num_threads), num_threads)
    return distances


@kernel
def _measure(
    hypotheses, hypothesis_lengths, references, reference_lengths, by_words, separator, first, last, distances
):  # fmt: skip
    for n in range(first, last):
        reference = references[n, : reference_lengths[n]]
        wanted = _starts_of_units(reference, by_words, separator)
        for k in range(hypotheses.shape[1]):
            hypothesis = hypotheses[n, k, : hypothesis_lengths[n, k]]
            given = _starts_of_units(hypothesis, by_words, separator)
            distances[n, k] = _distance(hypothesis, given, reference, wanted)


@part(**COMPILE)
def _starts_of_units(tokens, by_words, separator):
    """(units, 2) where each token begins and ends, or each word; separators that follow one another part once."""
    bounds = np.empty((tokens.size, 2), np.int64)
    count, inside = 0, False
    for i in range(tokens.size):
        if not by_words:
            bounds[count, 0], bounds[count, 1] = i, i + 1
            count += 1
        elif tokens[i] == separator:
            inside = False
        elif inside:
            bounds[count - 1, 1] = i + 1
        else:
            bounds[count, 0], bounds[count, 1] = i, i + 1
            count, inside = count + 1, True
    return bounds[:count]


@part(**COMPILE)
def _distance(hypothesis, given, reference, wanted):
    """The fewest insertions, deletions and substitutions of units, row by row over those of the hypothesis."""
    row = np.arange(len(wanted) + 1)
    for i in range(len(given)):
        diagonal, row[0] = row[0], i + 1
        for j in range(len(wanted)):
            change = diagonal + (0 if _equal(hypothesis, given[i], reference, wanted[j]) else 1)
            diagonal = row[j + 1]
            row[j + 1] = min(change, row[j] + 1, diagonal + 1)
    return row[-1]


@part(**COMPILE)
def _equal(hypothesis, given, reference, wanted):
    size = given[1] - given[0]
    if size != wanted[1] - wanted[0]:
        return False
    for i in range(size):
        if hypothesis[given[0] + i] != reference[wanted[0] + i]:
            return False
    return True
