"""Dense lattices on the GPU, in plain float64: every frame is one product with the matrix of transitions.

Each row of alpha and of beta is a vector times a power of two of its own. That is sound while no possible state lies
``WATCH`` below the greatest of its row; a sample in which one does is marked as lost, and ``dense_log`` solves it
again, slower and without limits. Nobody has to look at scores before launching.

One launch for the recursion: a program for alpha and one for beta of every sample. A frame's row goes through the plane
that keeps it, tile by tile, so that there is no limit to the number of states.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathsum.kernels.triton.compilation import barrier, kernel
from pathsum.kernels.triton.extended import LN_2, reference_of

# No product of a transition, down to 2**-340, and a state leaves the normal floats.
WATCH = tl.constexpr(2.0**-500)
# A frame's sum of alpha * beta that is further below 1 has lost digits.
LEAST_MASS = tl.constexpr(2.0**-900)


@triton.jit
def load_scores(scores, start, stride_c, c, num_classes):
    x = tl.load(scores + start + c.to(tl.int64) * stride_c, mask=c < num_classes, other=float("-inf"))
    return x.to(tl.float64)


@triton.jit
def greatest_of_frame(scores, start, stride_c, num_classes, BLOCK: tl.constexpr):
    """The greatest score of a frame, 0 of nothing but -inf; whether one is NaN or +inf."""
    greatest, undefined = tl.full([BLOCK], float("-inf"), tl.float64), tl.zeros([BLOCK], tl.int32)
    for first in range(0, num_classes, BLOCK):
        x = load_scores(scores, start, stride_c, first + tl.arange(0, BLOCK), num_classes)
        greatest = tl.maximum(greatest, x)
        undefined = undefined | (~(x < float("inf"))).to(tl.int32)
    largest = tl.max(greatest, 0)
    return tl.where(largest > float("-inf"), largest, 0.0), tl.max(undefined, 0)


@triton.jit
def _product(matrix, vector, to, num_classes, TO: tl.constexpr, FROM: tl.constexpr):
    """sum over i of matrix[to, i] * vector[i]

    Lanes are added up once, behind the last product: contracted into an exchange with another lane, a product is
    rounded in that lane alone, and the lanes of a row would hold different sums.
    """
    total = tl.zeros([TO, FROM], tl.float64)
    for first in range(0, num_classes, FROM):
        i = first + tl.arange(0, FROM)
        mask = (to < num_classes)[:, None] & (i < num_classes)[None, :]
        tile = tl.load(matrix + to.to(tl.int64)[:, None] * num_classes + i[None, :], mask=mask, other=0.0)
        total += tile * tl.load(vector + i, mask=i < num_classes, other=0.0)[None, :]
    return tl.sum(total, 1)


@triton.jit
def _exponent(x):
    """n of the power 2**n that is the greatest not above x > 0; 0 of 0."""
    bits = x.to(tl.int64, bitcast=True)
    return tl.where(x > 0, (bits >> 52) - 1023, 0)


@triton.jit
def _power(n):
    """2.0**n for -1022 <= n <= 1023"""
    return ((n + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _alpha(
    scores, start, stride_t, stride_c, matrix, shift, row, frames, num_classes, alpha, scales, TO: tl.constexpr,
    FROM: tl.constexpr,
):  # fmt: skip
    """Fill alpha, times ``scales`` a frame; the log-sum less what is huge of the frames' greatest, and this; whether a
    score is undefined, whether one is lost.
    """
    in_common = tl.zeros([], tl.float64)
    log_z, scale = tl.zeros([], tl.float64), tl.zeros([], tl.float64) + 1.0
    undefined, lost = tl.zeros([], tl.int32), tl.zeros([], tl.int32)
    for t in range(frames):
        # What other threads have stored of the frame before.
        barrier()
        place = start + t * stride_t
        reference, wrong = greatest_of_frame(scores, place, stride_c, num_classes, FROM)
        undefined = undefined | wrong
        greatest, least = tl.zeros([TO], tl.float64), tl.full([TO], float("inf"), tl.float64)
        mass = tl.zeros([TO], tl.float64)
        before = alpha + (row + t - 1) * num_classes
        for first in range(0, num_classes, TO):
            j = first + tl.arange(0, TO)
            x = load_scores(scores, place, stride_c, j, num_classes)
            arriving = tl.zeros([TO], tl.float64) + 1.0
            if t > 0:
                arriving = scale * _product(matrix, before, j, num_classes, TO, FROM)
            state = arriving * tl.exp(x - reference)
            tl.store(before + num_classes + j, state, mask=j < num_classes)
            greatest, mass = tl.maximum(greatest, state), mass + state
            least = tl.minimum(least, tl.where((arriving > 0) & (x > float("-inf")), state, float("inf")))
        largest = tl.max(greatest, 0)
        lost = lost | ((tl.min(least, 0) < largest * WATCH) | (largest < WATCH)).to(tl.int32)
        exponent = _exponent(largest)
        scale = _power(-exponent)
        tl.store(scales + row + t, scale)
        huge = reference_of(reference)
        in_common += huge
        log_z += (reference - huge) + exponent.to(tl.float64) * LN_2 + tl.where(t > 0, shift, 0.0)
        if t == frames - 1:
            total = tl.sum(mass, 0) * scale
            log_z = tl.where(total > 0, log_z + tl.log(tl.where(total > 0, total, 1.0)), float("-inf"))
    return log_z, in_common, undefined, lost


@triton.jit
def _beta(
    scores, start, stride_t, stride_c, transposed, row, frames, num_classes, beta, entering, TO: tl.constexpr,
    FROM: tl.constexpr,
):  # fmt: skip
    """Fill beta, each row times some power of two, and ``entering``, emit * beta; whether a state is lost."""
    lost, scale = tl.zeros([], tl.int32), tl.zeros([], tl.float64) + 1.0
    last = beta + (row + frames - 1) * num_classes
    for first in range(0, num_classes, TO):
        j = first + tl.arange(0, TO)
        tl.store(last + j, tl.zeros([TO], tl.float64) + 1.0, mask=j < num_classes)
    for behind in range(frames):
        t = frames - 1 - behind
        barrier()
        place = start + t * stride_t
        reference, _ = greatest_of_frame(scores, place, stride_c, num_classes, FROM)
        here, weighed = beta + (row + t) * num_classes, entering + (row + t) * num_classes
        greatest, least = tl.zeros([FROM], tl.float64), tl.full([FROM], float("inf"), tl.float64)
        for first in range(0, num_classes, FROM):
            j = first + tl.arange(0, FROM)
            x = load_scores(scores, place, stride_c, j, num_classes)
            leaving = tl.load(here + j, mask=j < num_classes, other=0.0)
            state = leaving * tl.exp(x - reference)
            tl.store(weighed + j, state, mask=j < num_classes)
            greatest = tl.maximum(greatest, state)
            least = tl.minimum(least, tl.where((leaving > 0) & (x > float("-inf")), state, float("inf")))
        largest = tl.max(greatest, 0)
        lost = lost | ((tl.min(least, 0) < largest * WATCH) | (largest < WATCH)).to(tl.int32)
        scale = _power(-_exponent(largest))
        barrier()
        if t > 0:
            for first in range(0, num_classes, TO):
                i = first + tl.arange(0, TO)
                leaving = scale * _product(transposed, weighed, i, num_classes, TO, FROM)
                tl.store(here - num_classes + i, leaving, mask=i < num_classes)
    return lost


@kernel
def solve(
    scores, stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, input_lengths, num_frames: tl.int32,
    num_classes: tl.int32, matrix, transposed, shift, status, alpha, scales, beta, entering, losses, in_common,
    lost, TO: tl.constexpr, FROM: tl.constexpr,
):  # fmt: skip
    """Alpha and the loss of a sample, or, by the second program of it, beta; the loss lacks what is ``in_common``.

    ``status``: whether a transition is NaN or +inf, and whether the finite ones are too far apart.
    """
    n = tl.program_id(0).to(tl.int64)
    frames = tl.load(input_lengths + n).to(tl.int32)
    row, start = n * num_frames, n * stride_n
    if frames > 0:
        if tl.program_id(1) == 1:
            near_end = _beta(
                scores, start, stride_t, stride_c, transposed, row, frames, num_classes, beta, entering, TO, FROM
            )
            tl.atomic_max(lost + n, near_end)
        else:
            log_z, huge, undefined, near_end = _alpha(
                scores, start, stride_t, stride_c, matrix, tl.load(shift), row, frames, num_classes, alpha, scales, TO,
                FROM,
            )  # fmt: skip
            has_arcs = frames > 1
            undefined = (undefined != 0) | (has_arcs & (tl.load(status) != 0))
            far_apart = has_arcs & (tl.load(status + 1) != 0)
            tl.atomic_max(lost + n, tl.where(undefined, 0, near_end | far_apart.to(tl.int32)))
            tl.store(losses + n, tl.where(undefined, float("nan"), -log_z))
            tl.store(in_common + n, huge)
    else:
        if tl.program_id(1) == 0:
            # There is one path, the empty one; lengths of -1 say that the sample is not defined.
            tl.store(losses + n, tl.where(frames == 0, 0.0, float("nan")).to(tl.float64))
            tl.store(in_common + n, tl.zeros([], tl.float64))


@kernel
def combine(
    input_lengths, losses, num_frames: tl.int32, num_classes: tl.int32, alpha, scales, beta, entering, lost,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Of each frame: beta becomes the posteriors of the states, gamma, and ``entering`` what entering a state is worth:
    entering[t, j] * matrix[j, i] * alpha[t-1, i] is the posterior of an arc. 0 in padding and where there is no path.
    """
    row = tl.program_id(0).to(tl.int64)
    n, t = row // num_frames, row % num_frames
    possible = (t < tl.load(input_lengths + n)) & (tl.load(losses + n) < float("inf"))
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, num_classes, BLOCK):
        c = first + tl.arange(0, BLOCK)
        mask = c < tl.where(possible, num_classes, 0)
        places = row * num_classes + c
        total += tl.load(alpha + places, mask=mask, other=0.0) * tl.load(beta + places, mask=mask, other=0.0)
    mass = tl.sum(total, 0)
    tl.atomic_max(lost + n, (mass < LEAST_MASS).to(tl.int32), mask=possible)
    weight = tl.where(mass > 0, 1.0 / tl.where(mass > 0, mass, 1.0), 0.0)
    scale = tl.load(scales + row, mask=possible, other=0.0)
    for first in range(0, num_classes, BLOCK):
        c = first + tl.arange(0, BLOCK)
        mask, places = c < tl.where(possible, num_classes, 0), row * num_classes + c
        before = tl.load(alpha + places, mask=mask, other=0.0)
        after = tl.load(beta + places, mask=mask, other=0.0)
        enters = tl.load(entering + places, mask=mask, other=0.0)
        tl.store(alpha + places, before * scale, mask=c < num_classes)
        tl.store(beta + places, before * after * weight, mask=c < num_classes)
        tl.store(entering + places, enters * weight, mask=c < num_classes)


@kernel
def write_gradient(
    grad_losses, losses, gamma, input_lengths, num_frames: tl.int32, num_classes: tl.int32, num_rows: tl.int64, out,
    stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """-upstream * posterior of each class, or 0, padding included."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    within = rows < num_rows
    n, t = tl.where(within, rows // num_frames, 0), rows % num_frames
    loss, upstream = tl.load(losses + n), tl.load(grad_losses + n).to(tl.float64)
    real = within & (t < tl.load(input_lengths + n))
    possible, undefined = real & (loss < float("inf")), real & (loss != loss)
    for first in range(0, num_classes, BLOCK):
        c = first + tl.arange(0, BLOCK)
        mask = (c < num_classes)[None, :]
        places = rows[:, None] * num_classes + c[None, :]
        posterior = tl.load(gamma + places, mask=possible[:, None] & mask, other=0.0)
        gradient = tl.where(undefined[:, None], float("nan"), -upstream[:, None] * posterior)
        gradient = tl.where(real[:, None] & ~possible[:, None] & ~undefined[:, None], 0.0, gradient)
        places = out + (n * stride_n + t * stride_t)[:, None] + c.to(tl.int64)[None, :] * stride_c
        tl.store(places, gradient.to(out.dtype.element_ty), mask=within[:, None] & mask)
