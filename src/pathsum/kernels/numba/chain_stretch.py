"""A stretch of a chain's frames, in logs: alpha after it, of alpha before it, and two derivatives of that.

    alpha[t, s] = score[t, s] + log(exp alpha[t-1, s] + exp alpha[t-1, s-1] + exp alpha[t-1, s-2])

the last term where the state can be skipped into. Derivatives need no beta: each share of a sum is the exponential of a
term less the sum. Rows have state -1 in front.
"""

from __future__ import annotations

import numpy as np

from pathsum.kernels.numba.compilation import COMPILE, kernel
from pathsum.kernels.numba.linking import part


@kernel
def advance(scores, lengths, num_states, skips, alpha):
    """Alpha (N, T+1, 1 + S') of each frame of scores (N, T, S'), of row 0."""
    for n in range(lengths.size):
        for t in range(lengths[n]):
            before, after = alpha[n, t], alpha[n, t + 1]
            after[:] = -np.inf
            for s in range(num_states[n]):
                stay, step, skip = before[s + 1], before[s], before[s - 1] if s > 0 and skips[n, s] else -np.inf
                largest = _largest(stay, step, skip)
                if largest == -np.inf:
                    after[s + 1] = scores[n, t, s] + largest
                else:
                    total = np.exp(stay - largest) + np.exp(step - largest) + np.exp(skip - largest)
                    after[s + 1] = scores[n, t, s] + largest + np.log(total)


@kernel
def move(alpha, score_tangents, lengths, num_states, skips, tangents):
    """Tangents of alpha's rows along those of the scores and of row 0."""
    for n in range(lengths.size):
        for t in range(lengths[n]):
            tangents[n, t + 1] = 0
            for s in range(num_states[n]):
                if alpha[n, t + 1, s + 1] != -np.inf:
                    shares = _shares(alpha[n, t], s, skips[n, s])
                    tangents[n, t + 1, s + 1] = score_tangents[n, t, s] + _mean(shares, tangents[n, t], s)


@kernel
def retreat(alpha, tangents, lengths, num_states, skips, gradient, tangent_gradient, out):
    """Gradients (N, T, S') by the scores and, in its own memory, by row 0, of that by the last row.

    Where there are ``tangents`` of the rows what is differentiated depends on these, too, by ``tangent_gradient``.
    """
    second = tangents.size > 0
    for n in range(lengths.size):
        total = gradient[n].sum()
        # Where a score is not defined no gradient is, but for that of a loss that nobody asked for.
        if total != total or (alpha[n, lengths[n], 1] != alpha[n, lengths[n], 1] and (gradient[n] != 0).any()):
            out[n, : lengths[n]] = np.nan
            gradient[n] = np.nan
            continue
        for t in range(lengths[n] - 1, -1, -1):
            after, tangents_after = gradient[n].copy(), tangent_gradient[n].copy()
            gradient[n], tangent_gradient[n] = 0, 0
            for s in range(num_states[n]):
                out[n, t, s] = of_state = after[s + 1]
                of_tangent = tangents_after[s + 1]
                if of_state == 0 and of_tangent == 0:
                    continue
                shares = _shares(alpha[n, t], s, skips[n, s])
                mean = _mean(shares, tangents[n, t], s) if second else 0.0
                for k in range(3 if s > 0 else 2):
                    source = s + 1 - k
                    if second:
                        gradient[n, source] += shares[k] * of_tangent * (tangents[n, t, source] - mean)
                        tangent_gradient[n, source] += shares[k] * of_tangent
                    gradient[n, source] += shares[k] * of_state


@part(**COMPILE)
def _largest(stay, step, skip):
    """NaN where staying is: then all is."""
    largest = stay
    if step > largest:
        largest = step
    return skip if skip > largest else largest


@part(**COMPILE)
def _shares(before, s, skips):
    """The shares of staying, stepping and skipping in what enters a state; 0 where nothing does."""
    stay, step, skip = before[s + 1], before[s], before[s - 1] if s > 0 and skips else -np.inf
    largest = _largest(stay, step, skip)
    if largest == -np.inf:
        return 0.0, 0.0, 0.0
    of_stay, of_step, of_skip = np.exp(stay - largest), np.exp(step - largest), np.exp(skip - largest)
    total = of_stay + of_step + of_skip
    return of_stay / total, of_step / total, of_skip / total


@part(**COMPILE)
def _mean(shares, tangents, s):
    mean = shares[0] * tangents[s + 1] + shares[1] * tangents[s]
    return mean + shares[2] * tangents[s - 1] if s > 0 else mean
