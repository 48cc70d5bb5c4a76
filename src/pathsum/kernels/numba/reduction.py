"""What a reduction does to each loss and to each upstream gradient: the elementwise part of ``reductions``, compiled.

Each operation is in the dtype of the result and rounded as a framework's own, without leave to change it.
"""

from __future__ import annotations

import numpy as np

from pathsum.kernels.numba.compilation import exact_kernel


@exact_kernel
def weigh(losses, lengths, zero_infinity, out):
    """out = losses, the infinite ones 0 where asked, each divided by its length, at least 1, where these are."""
    number = out.dtype.type
    for n in range(out.size):
        loss = number(losses[n])
        loss = number(0) if zero_infinity and loss == np.inf else loss
        out[n] = loss / number(max(lengths[n], 1)) if lengths.size > 0 else loss


@exact_kernel
def subtract(own, every, out):
    """out = losses of a part of all paths less those of all, NaN where either is.

    Where the part has no path there may be none at all, and infinities must not meet.
    """
    for n in range(out.size):
        out[n] = np.inf if own[n] == np.inf and every[n] == every[n] else own[n] - every[n]


@exact_kernel
def spread_apart(upstream, losses, own, every):
    """The upstream gradients of both, of that of their difference; 0 where the part has no path."""
    for n in range(losses.size):
        own[n] = 0.0 if losses[n] == np.inf else upstream[n]
        every[n] = -own[n]


@exact_kernel
def spread(gradient, losses, lengths, count, zero_infinity, out):
    """out = the upstream gradient of each loss: its own or that of all, divided by the count and by its length."""
    number = gradient.dtype.type
    for n in range(out.size):
        each = gradient[n if gradient.size > 1 else 0] / number(count)
        each = each / number(max(lengths[n], 1)) if lengths.size > 0 else each
        out[n] = 0.0 if zero_infinity and number(losses[n]) == np.inf else np.float64(each)
