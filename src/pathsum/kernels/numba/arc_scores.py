"""Planes of classes' scores to planes of arcs' scores, one a kind: sums, and the way back for gradients.

By NumPy: for planes this small compiled loops are no faster, and waking a framework's threads is most of the time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# What each kind of arc scores, as in ``ArcLattice.terms``.
Terms = Sequence[Sequence[tuple[int, int]]]


def forward(
    planes: Sequence[np.ndarray],
    terms: Terms,
    labels_on: Sequence[int],
    *,
    sigma: float = 0.0,
    label_bonus: np.ndarray | None = None,
) -> np.ndarray:
    """Scores (kinds, rows), of planes (rows,): the terms less sigma, those of labels with the bonus (rows,)."""
    scores = np.empty((len(terms), len(planes[0])))
    for score, own_terms, is_label in zip(scores, terms, labels_on, strict=True):
        score[:] = label_bonus if is_label and label_bonus is not None else 0.0
        score -= sigma
        for plane, ahead in own_terms:
            # One label on is the next row; behind the last label there is none, and no arc that asks for it.
            into = score[: len(score) - ahead]
            np.add(into, planes[plane][ahead:], out=into, where=into > -np.inf if ahead else True)
    return scores


def backward(
    grad_scores: np.ndarray, terms: Terms, labels_on: Sequence[int], num_planes: int, *, fastemit_lambda: float = 0.0
) -> np.ndarray:
    """The gradient (planes, rows) with respect to the planes; that of the labels' scores counts 1 + lambda times."""
    gradients = np.zeros((num_planes, grad_scores.shape[1]))
    for gradient, own_terms, is_label in zip(grad_scores, terms, labels_on, strict=True):
        gradient = gradient * (1.0 + fastemit_lambda) if is_label and fastemit_lambda else gradient
        for plane, ahead in own_terms:
            # A NaN is of a sample that has one in its own rows; the row behind its last is another sample's.
            gradients[plane, ahead:] += np.nan_to_num(gradient[: len(gradient) - ahead]) if ahead else gradient
    return gradients
