"""Dense lattices in extended range: one sample whose transitions or scores are out of plain floats' reach.

Mantissas and exponents are float64, and the exponents hold anything a float64 log-score can. Where ``dense_linear``
has one multiplication for each pair of states, a frame costs a sum and a shift of exponents here.
"""

from __future__ import annotations

import numpy as np

from pathsum.kernels.numba.compilation import COMPILE, kernel
from pathsum.kernels.numba.extended import log, normalise, shift, split
from pathsum.kernels.numba.linking import part
from pathsum.numerics import ZERO_EXPONENT_64


@kernel
def solve(scores, transitions, need_gradient, gamma):
    """The loss of scores (T, C), T >= 1; with ``need_gradient`` the posteriors of the classes go to gamma."""
    arcs, arc_exponents = _split_all(transitions)
    alpha, exponents = _alpha(scores, arcs, arc_exponents, scores.shape[0] if need_gradient else 1)
    total, exponent = _total(alpha[-1], exponents[-1])
    loss = -log(total, exponent)
    if need_gradient:
        gamma[:] = 0
    if need_gradient and loss < np.inf:
        beta, beta_exponents = _last_beta(scores.shape[1])
        for t in range(scores.shape[0] - 1, -1, -1):
            mass, mass_exponents = alpha[t] * beta, exponents[t] + beta_exponents
            total, exponent = _total(mass, mass_exponents)
            for c in range(beta.size):
                gamma[t, c] = shift(mass[c] / total, mass_exponents[c] - exponent)
            entering, entering_exponents = _entering(scores[t], beta, beta_exponents)
            beta, beta_exponents = _step_back(arcs, arc_exponents, entering, entering_exponents)
    return loss


@kernel
def add_transition_gradient(scores, transitions, upstream, gradient):
    """gradient[j, i] += upstream * expected number of arcs from i to j, where there is a path."""
    arcs, arc_exponents = _split_all(transitions)
    alpha, exponents = _alpha(scores, arcs, arc_exponents, scores.shape[0])
    beta, beta_exponents = _last_beta(scores.shape[1])
    for t in range(scores.shape[0] - 1, 0, -1):
        total, exponent = _total(alpha[t] * beta, exponents[t] + beta_exponents)
        entering, entering_exponents = _entering(scores[t], beta, beta_exponents)
        before, before_exponents = alpha[t - 1], exponents[t - 1]
        for j in range(beta.size):
            share, share_exponent = upstream * entering[j] / total, entering_exponents[j] - exponent
            for i in range(beta.size):
                mass, mass_exponent = arcs[j, i] * before[i], arc_exponents[j, i] + before_exponents[i]
                gradient[j, i] += shift(share * mass, share_exponent + mass_exponent)
        beta, beta_exponents = _step_back(arcs, arc_exponents, entering, entering_exponents)


@kernel
def move(
    scores, transitions, tangent, transition_tangent, upstream, gamma, moved_gamma, means, gradient
):  # fmt: skip
    """The tangent of gamma, the mean cost of each frame, and gradient[j, i] += upstream * what the expected number of
    arcs from i to j moves by, beside their own scores' part. The derivation is that of ``chain_hvp``.
    """
    arcs, arc_exponents = _split_all(transitions)
    alpha, exponents = _alpha(scores, arcs, arc_exponents, scores.shape[0])
    num_frames, num_classes = scores.shape
    before = np.empty((num_frames, num_classes))
    for t in range(num_frames):
        for j in range(num_classes):
            before[t, j] = tangent[t, j]
            if t > 0:
                masses, mass_exponents = arcs[j] * alpha[t - 1], arc_exponents[j] + exponents[t - 1]
                before[t, j] += _mean(masses, mass_exponents, before[t - 1] + transition_tangent[j])
        means[t] = _take_mean_off(before[t], gamma[t])

    behind = np.zeros(num_classes)
    beta, beta_exponents = _last_beta(num_classes)
    for t in range(num_frames - 1, -1, -1):
        for c in range(num_classes):
            moved_gamma[t, c] = gamma[t, c] * (before[t, c] + behind[c])
        if t > 0:
            ahead = tangent[t] + behind - means[t]
            total, exponent = _total(alpha[t] * beta, exponents[t] + beta_exponents)
            entering, entering_exponents = _entering(scores[t], beta, beta_exponents)
            for i in range(num_classes):
                masses, mass_exponents = arcs[:, i] * entering, arc_exponents[:, i] + entering_exponents
                behind[i] = _mean(masses, mass_exponents, transition_tangent[:, i] + ahead)
                for j in range(num_classes):
                    share, share_exponent = masses[j] / total, mass_exponents[j] - exponent + exponents[t - 1, i]
                    posterior = shift(share * alpha[t - 1, i], share_exponent)
                    gradient[j, i] += upstream * posterior * (before[t - 1, i] + ahead[j])
            _take_mean_off(behind, gamma[t - 1])
            beta, beta_exponents = _step_back(arcs, arc_exponents, entering, entering_exponents)


@part(**COMPILE)
def _mean(masses, exponents, values):
    """The mean of values weighted by masses; 0 where there is none."""
    largest = ZERO_EXPONENT_64
    for c in range(masses.size):
        largest = exponents[c] if masses[c] > 0 and exponents[c] > largest else largest
    total, weighted = 0.0, 0.0
    for c in range(masses.size):
        if masses[c] > 0:
            mass = shift(masses[c], exponents[c] - largest)
            total += mass
            weighted += mass * values[c]
    return weighted / total if total > 0 else 0.0


@part(**COMPILE)
def _take_mean_off(values, gamma):
    """Subtract the mean under gamma from values; that mean."""
    total, weighted = 0.0, 0.0
    for c in range(values.size):
        total += gamma[c]
        weighted += gamma[c] * values[c]
    for c in range(values.size):
        values[c] -= weighted / total
    return weighted / total


@part(**COMPILE)
def _split_all(transitions):
    mantissas, exponents = np.empty_like(transitions), np.empty_like(transitions)
    for j in range(transitions.shape[0]):
        for i in range(transitions.shape[1]):
            mantissas[j, i], exponents[j, i] = split(transitions[j, i])
    return mantissas, exponents


@part(**COMPILE)
def _alpha(scores, arcs, arc_exponents, num_rows):
    """The mass that arrives in each state of each frame, or with one row, of the last frame."""
    num_frames, num_classes = scores.shape
    alpha, exponents = np.empty((num_rows, num_classes)), np.empty((num_rows, num_classes))
    before, before_exponents = np.zeros(num_classes), np.zeros(num_classes)
    for t in range(num_frames):
        row = min(t, num_rows - 1)
        for j in range(num_classes):
            arriving, exponent = 1.0, 0.0
            if t > 0:
                arriving, exponent = _arriving(before, before_exponents, arcs[j], arc_exponents[j])
            weight, weight_exponent = split(scores[t, j])
            alpha[row, j], exponents[row, j] = normalise(arriving * weight, exponent + weight_exponent)
        before[:] = alpha[row]
        before_exponents[:] = exponents[row]
    return alpha, exponents


@part(forceinline=True, **COMPILE)
def _arriving(before, before_exponents, arcs, arc_exponents):
    largest = ZERO_EXPONENT_64
    for i in range(before.size):
        exponent = before_exponents[i] + arc_exponents[i]
        largest = exponent if exponent > largest else largest
    total = 0.0
    for i in range(before.size):
        total += shift(before[i] * arcs[i], before_exponents[i] + arc_exponents[i] - largest)
    return total, largest


@part(**COMPILE)
def _last_beta(num_classes):
    return np.ones(num_classes), np.zeros(num_classes)


@part(**COMPILE)
def _entering(scores, beta, beta_exponents):
    """emit * beta of one frame."""
    entering, exponents = np.empty_like(beta), np.empty_like(beta)
    for j in range(beta.size):
        weight, weight_exponent = split(scores[j])
        entering[j], exponents[j] = normalise(beta[j] * weight, beta_exponents[j] + weight_exponent)
    return entering, exponents


@part(**COMPILE)
def _step_back(arcs, arc_exponents, entering, entering_exponents):
    """The mass that leaves each state towards the frame after."""
    largest = np.full(entering.size, ZERO_EXPONENT_64)
    leaving = np.zeros(entering.size)
    for j in range(entering.size):
        for i in range(leaving.size):
            exponent = arc_exponents[j, i] + entering_exponents[j]
            largest[i] = exponent if exponent > largest[i] else largest[i]
    for j in range(entering.size):
        for i in range(leaving.size):
            leaving[i] += shift(arcs[j, i] * entering[j], arc_exponents[j, i] + entering_exponents[j] - largest[i])
    for i in range(leaving.size):
        leaving[i], largest[i] = normalise(leaving[i], largest[i])
    return leaving, largest


@part(**COMPILE)
def _total(mass, exponents):
    """Their sum, with a mantissa in [1, 2)."""
    largest = ZERO_EXPONENT_64
    for c in range(mass.size):
        largest = exponents[c] if exponents[c] > largest else largest
    total = 0.0
    for c in range(mass.size):
        total += shift(mass[c], exponents[c] - largest)
    return normalise(total, largest)
