"""Chains on the GPU: backward, from the posteriors of the arcs.

Rows are written as if no state were there, and then the few entries of the states' classes once more. States may share
a class: their posteriors are added by the one program that owns the row, along a list of the sample's states that is
sorted by class. A kernel for each: together they would need so many registers that few rows are written at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathsum.kernels.triton.compilation import kernel
from pathsum.kernels.triton.rows import in_pieces
from pathsum.kernels.triton.segments import last_column, segment_sums


@triton.jit
def _class_of(stay_labels, step_labels, n, states, num_classes, num_columns, entry, num_entries):
    """Of each entry, the states' entering arcs and behind them, if there are more, their staying ones."""
    is_step = entry < num_columns
    state = tl.where(is_step, entry, entry - num_columns)
    used, places = (entry < num_entries) & (state < states), n * num_columns + state
    step = tl.load(step_labels + places, mask=used & is_step, other=0)
    stay = tl.load(stay_labels + places, mask=used & ~is_step, other=0)
    return tl.where(used, step + stay, num_classes).to(tl.int32)


@triton.jit
def sort_block(
    n, block, num_states, stay_labels, step_labels, num_classes, num_columns, num_entries, classes, entries,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """``sort_entries`` of a block of a sample's."""
    entry = block * BLOCK + tl.arange(0, BLOCK)
    states = tl.load(num_states + n)
    own = _class_of(stay_labels, step_labels, n, states, num_classes, num_columns, entry, num_entries)
    before = tl.zeros([BLOCK, BLOCK], tl.int32)
    for first in range(0, num_entries, BLOCK):
        i = first + tl.arange(0, BLOCK)
        other = _class_of(stay_labels, step_labels, n, states, num_classes, num_columns, i, num_entries)[None, :]
        comes_first = (other < own[:, None]) | ((other == own[:, None]) & (i[None, :] < entry[:, None]))
        before += (comes_first & (i < num_entries)[None, :]).to(tl.int32)
    places, mask = n * num_entries + tl.sum(before, 1), entry < num_entries
    tl.store(classes + places, own, mask=mask)
    tl.store(entries + places, entry, mask=mask)


@kernel
def sort_entries(
    num_states, stay_labels, step_labels, num_classes: tl.int32, num_columns: tl.int32, num_entries: tl.int32, classes,
    entries, BLOCK: tl.constexpr,
):  # fmt: skip
    """The classes (N, num_entries) of each sample's arcs in ascending order, and whose they are, the first of equals
    first; arcs of no state have the class ``num_classes`` and come last.

    Each counts those that come before it: there are a few hundred.
    """
    sort_block(
        tl.program_id(0).to(tl.int64), tl.program_id(1), num_states, stay_labels, step_labels, num_classes, num_columns,
        num_entries, classes, entries, BLOCK,
    )  # fmt: skip


@triton.jit
def _posterior(stay, step, rows, entry, num_columns, mask):
    """Of each entry: of the arcs that enter a state, or, further on, of those that stay in it."""
    places = rows * num_columns + entry
    entering = tl.load(step + places, mask=mask & (entry < num_columns), other=0.0)
    staying = tl.load(stay + places - num_columns, mask=mask & (entry >= num_columns), other=0.0)
    return entering + staying


@triton.jit
def sum_by_class(
    stay, step, rows, n, classes, entries, first, num_entries, num_classes, num_columns, possible, carry,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of each row's entries: their classes, whether one is the last of its class, and the sum up to it.

    The next block takes up the sum of this one's last class, ``carry`` (R, 1).
    """
    i = first + tl.arange(0, BLOCK)[None, :]
    listed = possible[:, None] & (i < num_entries)
    places = n[:, None] * num_entries + i
    own = tl.load(classes + places, mask=listed, other=-1)
    before = tl.load(classes + places - 1, mask=listed & (i > 0), other=-1)
    after = tl.load(classes + places + 1, mask=listed & (i + 1 < num_entries), other=-1)
    entry = tl.load(entries + places, mask=listed, other=0)
    used = listed & (own < num_classes)
    sums = segment_sums(_posterior(stay, step, rows[:, None], entry, num_columns, used), own != before, carry)
    return own.to(tl.int64), used & (own != after), sums, last_column(sums, BLOCK)


@triton.jit
def rows_of_frames(num_samples, num_frames, input_lengths, losses, ROWS: tl.constexpr):
    """This program's rows, whether there are such, sample and frame of each, and whether it has paths, or NaN."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    within = rows < num_samples.to(tl.int64) * num_frames
    n, t = tl.where(within, rows // num_frames, 0), rows % num_frames
    loss = tl.load(losses + n)
    real = within & (t < tl.load(input_lengths + n))
    return rows, within, n, t, real & (loss < float("inf")), real & (loss != loss)


@kernel
def write_gradient(
    grad_losses, scores, stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, num_samples: tl.int32,
    num_frames: tl.int32, num_classes: tl.int32, input_lengths, losses, maxima, sums, out, out_stride_n: tl.int64,
    out_stride_t: tl.int64, out_stride_c: tl.int64, LOGITS: tl.constexpr, WORK: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """upstream * softmax, or 0, padding included."""
    rows, within, n, t, possible, undefined = rows_of_frames(num_samples, num_frames, input_lengths, losses, ROWS)
    upstream = tl.load(grad_losses + n).to(WORK)
    starts, out_starts = n * stride_n + t * stride_t, n * out_stride_n + t * out_stride_t
    if ALIGNED > 1:
        num_classes = in_pieces(num_classes, ALIGNED)
        starts, out_starts = in_pieces(starts, ALIGNED), in_pieces(out_starts, ALIGNED)
        stride_c, out_stride_c = 1, 1
    maximum, scale = tl.zeros([ROWS], WORK), tl.zeros([ROWS], WORK)
    if LOGITS:
        maximum = tl.load(maxima + rows, mask=possible, other=0.0)
        scale = upstream / tl.load(sums + rows, mask=possible, other=1.0)
    for first in range(0, num_classes, BLOCK):
        c = first + tl.arange(0, BLOCK)
        mask = (c < num_classes)[None, :]
        gradient = tl.zeros([ROWS, BLOCK], WORK)
        if LOGITS:
            places = scores + starts[:, None] + c.to(tl.int64)[None, :] * stride_c
            x = tl.load(places, mask=possible[:, None] & mask, other=float("-inf")).to(WORK)
            gradient = scale[:, None] * tl.exp(x - maximum[:, None])
        gradient = tl.where(undefined[:, None], float("nan"), gradient)
        places = out + out_starts[:, None] + c.to(tl.int64)[None, :] * out_stride_c
        tl.store(places, gradient.to(out.dtype.element_ty), mask=within[:, None] & mask)


@kernel
def write_entries(
    grad_losses, scores, stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, num_samples: tl.int32,
    num_frames: tl.int32, num_classes: tl.int32, input_lengths, losses, maxima, sums, stay, step, classes, entries,
    num_entries: tl.int32, num_columns: tl.int32, out, out_stride_n: tl.int64, out_stride_t: tl.int64,
    out_stride_c: tl.int64, LOGITS: tl.constexpr, WORK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """upstream * (softmax - posterior) of the classes that states have, over what ``write_gradient`` has written.

    ``entries`` (N, num_entries) of each sample are in the order of their ``classes``; one of no use has no class.
    """
    rows, _, n, t, possible, _ = rows_of_frames(num_samples, num_frames, input_lengths, losses, ROWS)
    upstream = tl.load(grad_losses + n).to(WORK)
    starts, out_starts = n * stride_n + t * stride_t, n * out_stride_n + t * out_stride_t
    maximum, scale = tl.zeros([ROWS], WORK), tl.zeros([ROWS], WORK)
    if LOGITS:
        maximum = tl.load(maxima + rows, mask=possible, other=0.0)
        scale = upstream / tl.load(sums + rows, mask=possible, other=1.0)
    carry = tl.zeros([ROWS, 1], WORK)
    for first in range(0, num_entries, BLOCK):
        own, ends, posterior, carry = sum_by_class(
            stay, step, rows, n, classes, entries, first, num_entries, num_classes, num_columns, possible, carry, BLOCK
        )
        gradient = -upstream[:, None] * posterior
        if LOGITS:
            x = tl.load(scores + starts[:, None] + own * stride_c, mask=ends, other=float("-inf")).to(WORK)
            gradient += scale[:, None] * tl.exp(x - maximum[:, None])
        tl.store(out + out_starts[:, None] + own * out_stride_c, gradient.to(out.dtype.element_ty), mask=ends)


@triton.jit
def count_arcs_of_states(
    grad_losses, losses, input_lengths, num_states, posteriors, entries, n, s, num_frames, num_columns, counts,
    TIME: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Expected number of times, times minus the upstream gradient, that a sample takes each arc: (N, 2, S').

    Every path enters a state once, and stays in it for the rest of the frames that it spends there; along a tangent,
    where ``posteriors`` are how they move, the one entry (``entries`` is 0 then) does not move.
    """
    loss, upstream = tl.load(losses + n), tl.load(grad_losses + n).to(tl.float64)
    used = s < tl.where(loss < float("inf"), tl.load(num_states + n), 0)
    frames = tl.load(input_lengths + n).to(tl.int32)
    entering = tl.where(used & (frames > 0), entries, 0.0)
    spent = tl.zeros([TIME, BLOCK], tl.float64)
    for first in range(0, frames, TIME):
        t = first + tl.arange(0, TIME)
        places = (n * num_frames + t)[:, None] * num_columns + s[None, :]
        spent += tl.load(posteriors + places, mask=(t < frames)[:, None] & used[None, :], other=0.0).to(tl.float64)
    staying = tl.sum(spent, 0) - entering
    undefined = (loss != loss) & (upstream != 0)
    places = counts + n * 2 * num_columns + s
    tl.store(places, tl.where(undefined, float("nan"), -upstream * entering), mask=s < num_columns)
    tl.store(places + num_columns, tl.where(undefined, float("nan"), -upstream * staying), mask=s < num_columns)


@kernel
def count_arcs(
    grad_losses, losses, input_lengths, num_states, posteriors, entries: tl.float64, num_frames: tl.int32,
    num_columns: tl.int32, counts, TIME: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``count_arcs_of_states`` of all samples."""
    n, s = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    count_arcs_of_states(
        grad_losses, losses, input_lengths, num_states, posteriors, entries, n, s, num_frames, num_columns, counts,
        TIME, BLOCK,
    )  # fmt: skip


@triton.jit
def counts_of_cells(
    counts, num_states, stay, step, num_samples, num_columns, cells, ENTRIES: tl.constexpr, FROM: tl.constexpr
):  # fmt: skip
    """The sum of the ``counts`` (N, 2, S') of the states that have each of some transitions: where they are entered,
    and where one stays in them. All states are gone through in order.
    """
    total = tl.zeros([ENTRIES, FROM], tl.float64)
    for n in range(num_samples):
        sample = tl.zeros([], tl.int64) + n
        states = tl.load(num_states + n)
        for first in range(0, states, ENTRIES):
            s = first + tl.arange(0, ENTRIES)
            used, place = s < states, sample * num_columns + s
            entered = tl.load(step + place, mask=used, other=-1)
            stayed = tl.load(stay + place, mask=used, other=-1)
            places = sample * 2 * num_columns + s
            entering = tl.load(counts + places, mask=entered >= 0, other=0.0)
            staying = tl.load(counts + places + num_columns, mask=stayed >= 0, other=0.0)
            total += tl.where(entered[:, None] == cells[None, :], entering[:, None], 0.0)
            total += tl.where(stayed[:, None] == cells[None, :], staying[:, None], 0.0)
    return tl.sum(total, 0)


@kernel
def add_counts(
    counts, num_states, stay, step, num_samples: tl.int32, num_columns: tl.int32, num_classes: tl.int32, out,
    ENTRIES: tl.constexpr, FROM: tl.constexpr,
):  # fmt: skip
    """out[transition] = ``counts_of_cells``. A program has transitions of one destination."""
    i = tl.program_id(1) * FROM + tl.arange(0, FROM)
    cells = tl.program_id(0).to(tl.int64) * num_classes + i
    total = counts_of_cells(counts, num_states, stay, step, num_samples, num_columns, cells, ENTRIES, FROM)
    tl.store(out + cells, total.to(out.dtype.element_ty), mask=i < num_classes)


@triton.jit
def _write_nothing(
    losses, num_samples, num_frames, num_classes, input_lengths, out, stride_n, stride_t, stride_c, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """0, NaN where a sample is not defined."""
    _, within, n, t, _, undefined = rows_of_frames(num_samples, num_frames, input_lengths, losses, ROWS)
    starts = (n * stride_n + t * stride_t)[:, None]
    for first in range(0, num_classes, BLOCK):
        c = (first + tl.arange(0, BLOCK)).to(tl.int64)[None, :]
        value = tl.where(undefined[:, None] & (c < num_classes), float("nan"), 0.0)
        tl.store(out + starts + c * stride_c, value.to(out.dtype.element_ty), mask=within[:, None] & (c < num_classes))


@kernel
def begin_expected_gradients(
    losses, num_samples: tl.int32, num_frames: tl.int32, num_classes: tl.int32, input_lengths, num_states, stay_labels,
    step_labels, num_columns: tl.int32, num_entries: tl.int32, classes, entries, blocks: tl.int32,
    row_programs: tl.int32, out, stride_n: tl.int64, stride_t: tl.int64, stride_c: tl.int64, cost_out,
    cost_stride_n: tl.int64, cost_stride_t: tl.int64, cost_stride_c: tl.int64, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """Sort the entries of each sample, and write what gradients are without them, of those that there are."""
    program, part = tl.program_id(0), tl.program_id(1)
    if part == 0:
        if program < num_samples * blocks:
            sort_block(
                (program // blocks).to(tl.int64), program % blocks, num_states, stay_labels, step_labels, num_classes,
                num_columns, num_entries, classes, entries, ENTRIES,
            )  # fmt: skip
    elif program < row_programs:
        if part == 1:
            if out is not None:
                _write_nothing(
                    losses, num_samples, num_frames, num_classes, input_lengths, out, stride_n, stride_t, stride_c,
                    ROWS, BLOCK,
                )  # fmt: skip
        else:
            if cost_out is not None:
                _write_nothing(
                    losses, num_samples, num_frames, num_classes, input_lengths, cost_out, cost_stride_n,
                    cost_stride_t, cost_stride_c, ROWS, BLOCK,
                )  # fmt: skip


@triton.jit
def _write_sums(
    grad_values, losses, num_samples, num_frames, num_classes, input_lengths, stay, step, classes, entries, num_entries,
    num_columns, out, stride_n, stride_t, stride_c, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """upstream * the sum of a plane's entries of each class that states have."""
    rows, _, n, t, possible, _ = rows_of_frames(num_samples, num_frames, input_lengths, losses, ROWS)
    upstream, starts = tl.load(grad_values + n)[:, None], (n * stride_n + t * stride_t)[:, None]
    carry = tl.zeros([ROWS, 1], tl.float64)
    for first in range(0, num_entries, BLOCK):
        own, ends, total, carry = sum_by_class(
            stay, step, rows, n, classes, entries, first, num_entries, num_classes, num_columns, possible, carry, BLOCK
        )
        tl.store(out + starts + own * stride_c, (upstream * total).to(out.dtype.element_ty), mask=ends)


@kernel
def write_expected_gradients(
    grad_values, losses, num_samples: tl.int32, num_frames: tl.int32, num_classes: tl.int32, input_lengths, moved_stay,
    moved_step, stay, entered, classes, entries, num_entries: tl.int32, num_columns: tl.int32, out, stride_n: tl.int64,
    stride_t: tl.int64, stride_c: tl.int64, cost_out, cost_stride_n: tl.int64, cost_stride_t: tl.int64,
    cost_stride_c: tl.int64, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """upstream * how the posterior of each class moves, by scores, and upstream * this itself, by costs, of those that
    there are, over what ``begin_expected_gradients`` has written.

    What moves in a frame adds up to nothing: by logits and by log-probabilities the gradients are the same.
    """
    if tl.program_id(1) == 0:
        if out is not None:
            _write_sums(
                grad_values, losses, num_samples, num_frames, num_classes, input_lengths, moved_stay, moved_step,
                classes, entries, num_entries, num_columns, out, stride_n, stride_t, stride_c, ROWS, BLOCK,
            )  # fmt: skip
    else:
        if cost_out is not None:
            _write_sums(
                grad_values, losses, num_samples, num_frames, num_classes, input_lengths, stay, entered, classes,
                entries, num_entries, num_columns, cost_out, cost_stride_n, cost_stride_t, cost_stride_c, ROWS, BLOCK,
            )  # fmt: skip
