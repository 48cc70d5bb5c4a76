"""Dense lattices on the GPU, in plain float64: every frame is one product with the matrix of transitions.

Each row of alpha and of beta is a vector times a power of two of its own. That is sound while no possible state lies
below ``WATCH``, the greatest of the row before being about 1: a product of two such states is a normal float. A sample
in which one does is marked as lost, and ``dense_log`` solves it again, slower and without limits. Nobody has to look at
scores before launching.

Three launches: frames are exponentiated, all at once, beside the transitions; the recursion has a program for alpha
and one for beta of every sample; ``dense_log.finish`` makes posteriors of the two. A frame's row goes through the plane
that keeps it, tile by tile, so that there is no limit to the number of states; a frame waits once for other threads,
and adds lanes up once for each block of its row. ``asg`` launches the same functions for both lattices of its loss.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathsum.kernels.triton.compilation import barrier, kernel
from pathsum.kernels.triton.extended import LN_2, reference_of

# No product of a transition, down to 2**-340, and a state leaves the normal floats.
WATCH = tl.constexpr(2.0**-500)
# Transitions that are further apart than this many nats, 340 bits, leave plain floats.
SPREAD = tl.constexpr(235.0)
# Whether a sample is lost, or has a score of NaN or +inf.
LOST, UNDEFINED = tl.constexpr(1), tl.constexpr(2)


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
def weigh_transitions(
    transitions, num_classes, program, num_programs, table, common, matrix, transposed, shift, status,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """``table``, the transitions in float64 less the greatest where that is huge, ``common``, which all paths of a
    sample take as often; ``matrix``, exp(table - shift), and its transpose, 0 of what is not defined; and ``status``,
    whether a transition is NaN or +inf, and whether finite ones lie ``SPREAD`` apart: zeros before.

    Each program finds the greatest of all, and writes some.
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
    for first in range(program * BLOCK, count, num_programs * BLOCK):
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
    far_apart = tl.max(least, 0)
    tl.atomic_max(status + 1, far_apart, mask=far_apart > 0, sem="relaxed")
    if program == 0:
        tl.store(common, huge)
        tl.store(shift, largest - huge)
        tl.store(status, wrong)


@kernel
def prepare_transitions(
    transitions, num_classes: tl.int32, table, common, matrix, transposed, shift, status, BLOCK: tl.constexpr
):  # fmt: skip
    """``weigh_transitions`` alone."""
    weigh_transitions(
        transitions, num_classes, tl.program_id(0), tl.num_programs(0), table, common, matrix, transposed, shift,
        status, BLOCK,
    )  # fmt: skip


@triton.jit
def _scores_of_rows(scores, starts, stride_c, c, num_classes, real):
    places = scores + starts[:, None] + c.to(tl.int64)[None, :] * stride_c
    x = tl.load(places, mask=real[:, None] & (c < num_classes)[None, :], other=float("-inf"))
    return x.to(tl.float64)


@triton.jit
def score_rows(
    scores, stride_n, stride_t, stride_c, program, num_samples, num_frames, num_classes, input_lengths, references,
    emits, lost, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each frame's greatest score, 0 of nothing but -inf, and the exponentials of its scores less that.

    ``lost`` of a sample becomes ``UNDEFINED`` where a score is NaN or +inf, ``LOST`` where an exponential leaves the
    range.
    """
    rows = program.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    within = rows < num_samples.to(tl.int64) * num_frames
    n, t = tl.where(within, rows // num_frames, 0), rows % num_frames
    real = within & (t < tl.load(input_lengths + n))
    starts = n * stride_n + t * stride_t
    greatest, status = tl.full([ROWS, BLOCK], float("-inf"), tl.float64), tl.zeros([ROWS, BLOCK], tl.int32)
    for first in range(0, num_classes, BLOCK):
        x = _scores_of_rows(scores, starts, stride_c, first + tl.arange(0, BLOCK), num_classes, real)
        greatest = tl.maximum(greatest, x)
        status = tl.maximum(status, tl.where(x < float("inf"), 0, UNDEFINED))
    largest = tl.max(greatest, 1)
    reference = tl.where(largest > float("-inf"), largest, 0.0)
    tl.store(references + rows, reference, mask=real)
    for first in range(0, num_classes, BLOCK):
        c = first + tl.arange(0, BLOCK)
        x = _scores_of_rows(scores, starts, stride_c, c, num_classes, real)
        emit = tl.exp(x - reference[:, None])
        places = emits + rows[:, None] * num_classes + c[None, :]
        tl.store(places, emit, mask=real[:, None] & (c < num_classes)[None, :])
        status = tl.maximum(status, tl.where((x > float("-inf")) & (emit < WATCH), LOST, 0))
    worst = tl.max(status, 1)
    tl.atomic_max(lost + n, worst, mask=real & (worst > 0), sem="relaxed")


@kernel
def prepare(
    scores, stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, num_samples: tl.int32, num_frames: tl.int32,
    num_classes: tl.int32, input_lengths, references, emits, lost, row_programs: tl.int32, transitions, table, common,
    matrix, transposed, shift, status, table_programs: tl.int32, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    TABLE: tl.constexpr,
):  # fmt: skip
    """Frames, and by programs of their own transitions, as the recursion takes them."""
    program = tl.program_id(0)
    if tl.program_id(1) == 0:
        if program < row_programs:
            score_rows(
                scores, stride_n, stride_t, stride_c, program, num_samples, num_frames, num_classes, input_lengths,
                references, emits, lost, ROWS, BLOCK,
            )  # fmt: skip
    else:
        if program < table_programs:
            weigh_transitions(
                transitions, num_classes, program, table_programs, table, common, matrix, transposed, shift, status,
                TABLE,
            )  # fmt: skip


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
def in_common(references, shift, row, frames, FROM: tl.constexpr):
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


@triton.jit
def solve_sample(
    n, backwards, input_lengths, num_frames, num_classes, references, emits, matrix, transposed, shift, common, status,
    alpha, scales, beta, entering, losses, lost, RELATIVE: tl.constexpr, TO: tl.constexpr, FROM: tl.constexpr,
    SINGLE: tl.constexpr,
):  # fmt: skip
    """``solve`` of a sample."""
    frames = tl.load(input_lengths + n).to(tl.int32)
    row = n * num_frames
    if frames > 0:
        if backwards:
            near_end, _ = _sweep(
                transposed, emits, row, frames, num_classes, entering, scales, beta, True, TO, FROM, SINGLE
            )
            tl.atomic_max(lost + n, near_end, sem="relaxed")
        else:
            near_end, powers = _sweep(
                matrix, emits, row, frames, num_classes, alpha, scales, beta, False, TO, FROM, SINGLE
            )
            barrier()
            log_z, huge = in_common(references, tl.load(shift), row, frames, FROM)
            last = row + frames - 1
            exponent, mass = _last_mass(alpha + last * num_classes, num_classes, FROM)
            tl.store(scales + last, _power(-exponent))
            log_z += (powers + exponent).to(tl.float64) * LN_2 + tl.log(tl.where(mass > 0, mass, 1.0))
            if not RELATIVE:
                log_z += huge + (frames - 1) * tl.load(common)
            loss = tl.where(mass > 0, -log_z, float("inf"))
            has_arcs = frames > 1
            undefined = (tl.load(lost + n) >= UNDEFINED) | (has_arcs & (tl.load(status) != 0))
            far_apart = has_arcs & (tl.load(status + 1) != 0)
            found = tl.where(undefined, UNDEFINED, near_end | far_apart.to(tl.int32))
            tl.atomic_max(lost + n, found, sem="relaxed")
            tl.store(losses + n, tl.where(undefined, float("nan"), loss))
    else:
        if not backwards:
            # There is one path, the empty one; lengths of -1 say that the sample is not defined.
            tl.store(losses + n, tl.where(frames == 0, 0.0, float("nan")).to(tl.float64))


@kernel
def solve(
    input_lengths, num_frames: tl.int32, num_classes: tl.int32, references, emits, matrix, transposed, shift, common,
    status, alpha, scales, beta, entering, losses, lost, RELATIVE: tl.constexpr, TO: tl.constexpr, FROM: tl.constexpr,
    SINGLE: tl.constexpr,
):  # fmt: skip
    """Alpha and the loss of a sample, or, by the second program of it, beta; RELATIVE: less what is huge in it.

    SINGLE: the matrix is one tile.

    ``status``: whether a transition is NaN or +inf, and whether the finite ones are too far apart. ``lost`` becomes
    ``UNDEFINED`` of a sample that is not defined.
    """
    solve_sample(
        tl.program_id(0).to(tl.int64), tl.program_id(1) == 1, input_lengths, num_frames, num_classes, references, emits,
        matrix, transposed, shift, common, status, alpha, scales, beta, entering, losses, lost, RELATIVE, TO, FROM,
        SINGLE,
    )  # fmt: skip


@triton.jit
def combine(
    n, t, input_lengths, losses, num_frames, num_classes, alpha, scales, beta, entering, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Of frames ``t`` of a sample: beta becomes the posteriors of the states, gamma, and ``entering`` what entering a
    state is worth: entering[t, j] * matrix[j, i] * alpha[t-1, i] is the posterior of an arc. 0 in padding and where
    there is no path.
    """
    rows = n * num_frames + t
    within = t < num_frames
    possible = t < tl.where(tl.load(losses + n) < float("inf"), tl.load(input_lengths + n), 0)
    total = tl.zeros([ROWS, BLOCK], tl.float64)
    for first in range(0, num_classes, BLOCK):
        c = first + tl.arange(0, BLOCK)
        mask, places = possible[:, None] & (c < num_classes)[None, :], rows[:, None] * num_classes + c[None, :]
        total += tl.load(alpha + places, mask=mask, other=0.0) * tl.load(beta + places, mask=mask, other=0.0)
    mass = tl.sum(total, 1)
    weight = tl.where(mass > 0, 1.0 / tl.where(mass > 0, mass, 1.0), 0.0)[:, None]
    scale = tl.load(scales + rows, mask=possible, other=0.0)[:, None]
    for first in range(0, num_classes, BLOCK):
        c = first + tl.arange(0, BLOCK)
        mask, places = possible[:, None] & (c < num_classes)[None, :], rows[:, None] * num_classes + c[None, :]
        kept = within[:, None] & (c < num_classes)[None, :]
        before = tl.load(alpha + places, mask=mask, other=0.0)
        after = tl.load(beta + places, mask=mask, other=0.0)
        enters = tl.load(entering + places, mask=mask, other=0.0)
        tl.store(alpha + places, before * scale, mask=kept)
        tl.store(beta + places, before * after * weight, mask=kept)
        tl.store(entering + places, enters * weight, mask=kept)


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


@triton.jit
def weigh_rows(
    grad_losses, losses, input_lengths, extended, program, num_frames, num_classes, num_rows, alpha, entering, enters,
    sources, FACTOR: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of each frame that arcs enter, what entering a state is worth times FACTOR * upstream, and alpha of the frame
    before; 0 elsewhere, and of samples that are lost. The sum over rows of enters[:, j] * sources[:, i] is the
    gradient by the exponential of a transition, times it.
    """
    rows = program.to(tl.int64) * ROWS + tl.arange(0, ROWS)
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
        tl.store(enters + places, FACTOR * upstream[:, None] * enter, mask=mask)
        tl.store(sources + places, tl.load(alpha + places - num_classes, mask=read, other=0.0), mask=mask)


@kernel
def weigh_arcs(
    grad_losses, losses, input_lengths, extended, num_frames: tl.int32, num_classes: tl.int32, num_rows: tl.int64,
    alpha, entering, enters, sources, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``weigh_rows`` alone, times minus the upstream gradient."""
    weigh_rows(
        grad_losses, losses, input_lengths, extended, tl.program_id(0), num_frames, num_classes, num_rows, alpha,
        entering, enters, sources, -1.0, ROWS, BLOCK,
    )  # fmt: skip
