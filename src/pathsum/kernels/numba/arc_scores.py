"""Planes of classes' scores to planes of arcs' scores, one a kind: sums, and the way back for gradients."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from pathsum.kernels.numba.compilation import exact_kernel
from pathsum.lattice import ArcLattice


class Kinds(NamedTuple):
    """The kinds of arcs of a lattice as arrays.

    Attributes:
        frames_on, labels_on: (K,) how far each kind goes.
        offsets: (K+1,) the first term of each kind.
        planes, aheads: of each term, as in ``ArcLattice.terms``.
    """

    frames_on: np.ndarray
    labels_on: np.ndarray
    offsets: np.ndarray
    planes: np.ndarray
    aheads: np.ndarray


def kinds_of(lattice: ArcLattice) -> Kinds:
    return _kinds(lattice.arcs, lattice.terms)


@lru_cache(maxsize=64)
def _kinds(arcs: tuple[tuple[int, int], ...], terms: tuple[tuple[tuple[int, int], ...], ...]) -> Kinds:
    frames_on, labels_on = np.array(arcs, np.int64).T.copy()
    counts = [0, *map(len, terms)]
    planes, aheads = np.array([term for own in terms for term in own], np.int64).T.copy()
    return Kinds(frames_on, labels_on, np.cumsum(counts), planes, aheads)


def forward(
    planes: np.ndarray, kinds: Kinds, *, sigma: float = 0.0, label_bonus: np.ndarray | None = None
) -> np.ndarray:
    """Scores (kinds, rows), of planes (planes, rows): the terms less sigma, those of labels with the bonus (rows,)."""
    scores = np.empty((len(kinds.frames_on), planes.shape[1]))
    bonus = np.empty(0) if label_bonus is None else label_bonus
    _add_terms(planes, sigma, bonus, *kinds[1:], scores)
    return scores


def backward(
    grad_scores: np.ndarray, scales: np.ndarray, kinds: Kinds, num_planes: int, *, fastemit_lambda: float = 0.0
) -> np.ndarray:
    """The gradient (planes, rows) with respect to the planes, of scales (rows,) times that with respect to the scores;
    the labels' counts 1 + lambda times.
    """
    gradients = np.zeros((num_planes, grad_scores.shape[1]))
    _spread_terms(grad_scores, scales, fastemit_lambda, *kinds[1:], gradients)
    return gradients


@exact_kernel
def _add_terms(planes, sigma, bonus, labels_on, offsets, of_planes, aheads, scores):
    num_rows = scores.shape[1]
    for k in range(labels_on.size):
        score = scores[k]
        for row in range(num_rows):
            score[row] = (bonus[row] if labels_on[k] > 0 and bonus.size > 0 else 0.0) - sigma
        for term in range(offsets[k], offsets[k + 1]):
            plane, ahead = planes[of_planes[term]], aheads[term]
            # One label on is the next row; behind the last label there is none, and no arc that asks for it.
            for row in range(num_rows - ahead):
                if ahead == 0 or score[row] > -np.inf:
                    score[row] += plane[row + ahead]


@exact_kernel
def _spread_terms(grad_scores, scales, fastemit_lambda, labels_on, offsets, of_planes, aheads, gradients):
    num_rows = grad_scores.shape[1]
    for k in range(labels_on.size):
        weight = 1.0 + fastemit_lambda if labels_on[k] > 0 else 1.0
        for term in range(offsets[k], offsets[k + 1]):
            gradient, ahead = gradients[of_planes[term]], aheads[term]
            for row in range(num_rows - ahead):
                value = scales[row] * grad_scores[k, row] * weight
                # A NaN is of a sample that has one in its own rows; the row behind its last is another sample's.
                gradient[row + ahead] += value if ahead == 0 or value == value else 0.0


@exact_kernel
def fill_scales(upstream, losses, row_offsets, scales):
    """Minus the upstream gradient of each row's sample; 0 where no path or no sample is, NaN where the loss is."""
    for n in range(losses.size):
        loss = losses[n]
        scale = np.nan if loss != loss else 0.0 if loss == np.inf else -upstream[n]
        for row in range(row_offsets[n], row_offsets[n + 1]):
            scales[row] = scale
    for row in range(row_offsets[losses.size], scales.size):
        scales[row] = 0.0
