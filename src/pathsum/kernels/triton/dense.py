"""Dense lattices on the GPU, in plain float64: every frame is one product with the matrix of transitions.

Each row of alpha and of beta is a vector times a power of two of its own. That is sound while no possible state lies
below ``WATCH``, the greatest of the row before being about 1; a sample in which one does is marked as lost, and
``dense_log`` solves it again, slower and without limits. Nobody has to look at scores before launching.

Frames are exponentiated before the recursion, all at once. The recursion is one launch: a program for alpha and one for
beta of every sample. A frame's row goes through the plane that keeps it, tile by tile, so that there is no limit to the
number of states; a frame waits once for other threads, and adds lanes up once for each block of its row.
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
# Transitions that are further apart than this many nats, 340 bits, leave plain floats.
SPREAD = tl.constexpr(235.0)
# A sample that has a score of NaN or +inf; one that is lost has 1.
UNDEFINED = tl.constexpr(2)


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


@kernel
def prepare_transitions(
    transitions, num_classes: tl.int32, table, common, matrix, transposed, shift, status, BLOCK: tl.constexpr
):  # fmt: skip
    """By one program: ``table``, the transitions in float64 less the greatest where that is huge, ``common``, which all
    paths of a sample take as often; ``matrix``, exp(table - shift), and its transpose, 0 of what is not defined; and
    ``status``, whether a transition is NaN or +inf, and whether finite ones lie ``SPREAD`` apart.
    """
    count = num_classes.to(tl.int64) * num_classes
    greatest, undefined = tl.full([BLOCK], float("-inf"), tl.float64), tl.zeros([BLOCK], tl.int32)
    for first in range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        x = tl.load(transitions + i, mask=i < count, other=float("-inf")).to(tl.float64)
        undefined = undefined | (~(x < float("inf"))).to(tl.int32)
        greatest = tl.maximum(greatest, tl.where(x < float("inf"), x, float("-inf")))
    wrong, largest = tl.max(undefined, 0), tl.max(greatest, 0)
    largest = tl.where(largest > float("-inf"), largest, 0.0)
    huge = tl.where(wrong == 0, reference_of(largest), 0.0)
    least = tl.zeros([BLOCK], tl.int32)
    for first in range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        mask = i < count
        x = tl.load(transitions + i, mask=mask, other=float("-inf")).to(tl.float64) - huge
        below = x - (largest - huge)
        finite = tl.abs(x) < float("inf")
        least = least | (finite & (below < -SPREAD)).to(tl.int32)
        weight = tl.where(x < float("inf"), tl.exp(below), 0.0)
        tl.store(table + i, x, mask=mask)
        tl.store(matrix + i, weight, mask=mask)
        tl.store(transposed + i % num_classes * num_classes + i // num_classes, weight, mask=mask)
    tl.store(common, huge)
    tl.store(shift, largest - huge)
    tl.store(status, wrong)
    tl.store(status + 1, tl.max(least, 0))


@kernel
def score_rows(
    scores, stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, input_lengths, num_frames: tl.int32,
    num_classes: tl.int32, references, emits, lost, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each frame's greatest score, 0 of nothing but -inf, and the exponentials of its scores less that.

    ``lost`` of a sample becomes ``UNDEFINED`` where a score is NaN or +inf, 1 where an exponential leaves the range.
    """
    row = tl.program_id(0).to(tl.int64)
    n, t = row // num_frames, row % num_frames
    if t < tl.load(input_lengths + n):
        start = n * stride_n + t * stride_t
        reference, undefined = greatest_of_frame(scores, start, stride_c, num_classes, BLOCK)
        tl.store(references + row, reference)
        far_below = tl.zeros([BLOCK], tl.int32)
        for first in range(0, num_classes, BLOCK):
            c = first + tl.arange(0, BLOCK)
            x = load_scores(scores, start, stride_c, c, num_classes)
            emit = tl.exp(x - reference)
            tl.store(emits + row * num_classes + c, emit, mask=c < num_classes)
            far_below = far_below | ((x > float("-inf")) & (emit < WATCH)).to(tl.int32)
        status = tl.where(undefined != 0, UNDEFINED, tl.max(far_below, 0))
        tl.atomic_max(lost + n, status, mask=status > 0, sem="relaxed")


@triton.jit
def _tile(matrix, to, i, num_classes):
    mask = (to < num_classes)[:, None] & (i < num_classes)[None, :]
    return tl.load(matrix + to.to(tl.int64)[:, None] * num_classes + i[None, :], mask=mask, other=0.0)


@triton.jit
def _product(matrix, tile, vector, to, num_classes, TO: tl.constexpr, FROM: tl.constexpr, SINGLE: tl.constexpr):
    """sum over i of matrix[to, i] * vector[i], and the greatest vector[i]; where SINGLE the matrix is ``tile``.

    Lanes are added up once, behind the last product: contracted into an exchange with another lane, a product is
    rounded in that lane alone, and the lanes of a row would hold different sums.
    """
    total, greatest = tl.zeros([TO, FROM], tl.float64), tl.zeros([1, FROM], tl.float64)
    for first in range(0, FROM if SINGLE else num_classes, FROM):
        i = first + tl.arange(0, FROM)
        own = tl.load(vector + i, mask=i < num_classes, other=0.0)[None, :]
        if not SINGLE:
            tile = _tile(matrix, to, i, num_classes)
        total += tile * own
        greatest = tl.maximum(greatest, own)
    return tl.sum(total, 1), tl.max(greatest, 1)


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
def _sweep(
    matrix, emits, row, frames, num_classes, plane, scales, leaving, BACKWARDS: tl.constexpr, TO: tl.constexpr,
    FROM: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    """Fill a plane, each row times a power of two: alpha, and ``scales`` by which its rows are about 1; or, BACKWARDS,
    emit * beta, and ``leaving`` by beta.

    Whether a state is lost, and the sum of the exponents that alpha's rows but the last lack.
    """
    lost, powers = tl.zeros([TO], tl.int32), tl.zeros([TO], tl.int64)
    # A matrix of one tile stays in registers.
    tile = _tile(matrix, tl.arange(0, TO), tl.arange(0, FROM), num_classes)
    for step in range(frames):
        # What other threads have stored of the frame before.
        barrier()
        t = frames - 1 - step if BACKWARDS else step
        place = (row + t) * num_classes
        before = plane + (place + num_classes if BACKWARDS else place - num_classes)
        for first in range(0, TO if SINGLE else num_classes, TO):
            j = first + tl.arange(0, TO)
            # Asked for before the product, which waits for memory too.
            emit = tl.load(emits + place + j, mask=j < num_classes, other=0.0)
            arriving = tl.zeros([TO], tl.float64) + 1.0
            if step > 0:
                total, greatest = _product(matrix, tile, before, j, num_classes, TO, FROM, SINGLE)
                exponent = _exponent(greatest)
                scale = _power(-exponent)
                arriving = scale * total
                if not BACKWARDS:
                    powers += tl.where(j == 0, exponent, 0)
                    tl.store(scales + row + t - 1 + j, scale, mask=j == 0)
            state = arriving * emit
            tl.store(plane + place + j, state, mask=j < num_classes)
            if BACKWARDS:
                tl.store(leaving + place + j, arriving, mask=j < num_classes)
            lost = lost | ((arriving > 0) & (emit > 0) & (state < WATCH)).to(tl.int32)
    return tl.max(lost, 0), tl.sum(powers, 0)


@triton.jit
def _in_common(references, shift, row, frames, FROM: tl.constexpr):
    """What alpha lacks of the log-sum: what is not huge of it, and the rest."""
    ordinary, huge = tl.zeros([FROM], tl.float64), tl.zeros([FROM], tl.float64)
    for first in range(0, frames, FROM):
        t = first + tl.arange(0, FROM)
        reference = tl.load(references + row + t, mask=t < frames, other=0.0)
        huge += reference_of(reference)
        ordinary += (reference - reference_of(reference)) + tl.where((t > 0) & (t < frames), shift, 0.0)
    return tl.sum(ordinary, 0), tl.sum(huge, 0)


@triton.jit
def _last_mass(last, num_classes, FROM: tl.constexpr):
    """The exponent of the last row's greatest, and what the row adds up to in units of it."""
    total, greatest = tl.zeros([FROM], tl.float64), tl.zeros([FROM], tl.float64)
    for first in range(0, num_classes, FROM):
        i = first + tl.arange(0, FROM)
        state = tl.load(last + i, mask=i < num_classes, other=0.0)
        total, greatest = total + state, tl.maximum(greatest, state)
    exponent = _exponent(tl.max(greatest, 0))
    return exponent, tl.sum(total, 0) * _power(-exponent)


@kernel
def solve(
    input_lengths, num_frames: tl.int32, num_classes: tl.int32, references, emits, matrix, transposed, shift, status,
    alpha, scales, beta, entering, losses, in_common, lost, TO: tl.constexpr, FROM: tl.constexpr,
    SINGLE: tl.constexpr,
):  # fmt: skip
    """Alpha and the loss of a sample, or, by the second program of it, beta; the loss lacks what is ``in_common``.

    SINGLE: the matrix is one tile.

    ``status``: whether a transition is NaN or +inf, and whether the finite ones are too far apart.
    """
    n = tl.program_id(0).to(tl.int64)
    frames = tl.load(input_lengths + n).to(tl.int32)
    row = n * num_frames
    if frames > 0:
        if tl.program_id(1) == 1:
            near_end, _ = _sweep(
                transposed, emits, row, frames, num_classes, entering, scales, beta, True, TO, FROM, SINGLE
            )
            tl.atomic_max(lost + n, near_end, sem="relaxed")
        else:
            near_end, powers = _sweep(
                matrix, emits, row, frames, num_classes, alpha, scales, beta, False, TO, FROM, SINGLE
            )
            barrier()
            log_z, huge = _in_common(references, tl.load(shift), row, frames, FROM)
            last = row + frames - 1
            exponent, mass = _last_mass(alpha + last * num_classes, num_classes, FROM)
            tl.store(scales + last, _power(-exponent))
            log_z += (powers + exponent).to(tl.float64) * LN_2 + tl.log(tl.where(mass > 0, mass, 1.0))
            loss = tl.where(mass > 0, -log_z, float("inf"))
            has_arcs = frames > 1
            undefined = (tl.load(lost + n) >= UNDEFINED) | (has_arcs & (tl.load(status) != 0))
            far_apart = has_arcs & (tl.load(status + 1) != 0)
            tl.atomic_max(lost + n, near_end | far_apart.to(tl.int32), sem="relaxed")
            tl.store(losses + n, tl.where(undefined, float("nan"), loss))
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
    tl.atomic_max(lost + n, (mass < LEAST_MASS).to(tl.int32), mask=possible, sem="relaxed")
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


@kernel
def weigh_arcs(
    grad_losses, losses, input_lengths, extended, num_frames: tl.int32, num_classes: tl.int32, num_rows: tl.int64,
    alpha, entering, enters, sources, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of each frame that arcs enter, what entering a state is worth times minus the upstream gradient, and alpha of the
    frame before; 0 elsewhere, and of samples that are lost. The sum over rows of enters[:, j] * sources[:, i] is the
    gradient by the exponential of a transition, times it.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    within = rows < num_rows
    n, t = tl.where(within, rows // num_frames, 0), rows % num_frames
    upstream = tl.load(grad_losses + n).to(tl.float64)
    real = within & (t > 0) & (t < tl.load(input_lengths + n))
    real = real & (tl.load(losses + n) < float("inf")) & ~tl.load(extended + n) & (upstream != 0)
    for first in range(0, num_classes, BLOCK):
        c = first + tl.arange(0, BLOCK)
        mask = within[:, None] & (c < num_classes)[None, :]
        read, places = real[:, None] & mask, rows[:, None] * num_classes + c[None, :]
        enter = tl.load(entering + places, mask=read, other=0.0)
        tl.store(enters + places, -upstream[:, None] * enter, mask=mask)
        tl.store(sources + places, tl.load(alpha + places - num_classes, mask=read, other=0.0), mask=mask)
