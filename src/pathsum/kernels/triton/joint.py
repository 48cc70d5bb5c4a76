"""What lies between the products of a transducer's joiner, whose logits exist a tile of nodes at a time.

    logits[n, t, u] = activation(encoder[n, t] + predictor[n, u]) @ weight.T + bias

Nodes (t, u) are the real ones of the samples, one after another: padding costs nothing. ``join_rows`` makes the hidden
rows of a tile, ``row_scores`` reads its logits and differentiates them, and ``add_operand_gradients`` brings what comes
back to the rows of encoder and predictor; every entry of these has one program that adds to it, in the order of the
nodes. Backward goes through a list of the nodes whose posterior counts (``mark_rows``, ``list_rows``).
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathsum.kernels.triton.compilation import kernel
from pathsum.kernels.triton.rows import NOWHERE, in_pieces, locate, nodes_of_tile


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "tanh":
        # exp(-2|x|) cannot overflow; a NaN stays one.
        small = tl.exp(-2.0 * tl.abs(x))
        value = (1.0 - small) / (1.0 + small)
        return tl.where(x > 0, value, tl.where(x <= 0, -value, x))
    elif ACTIVATION == "sigmoid":
        return 1.0 / (1.0 + tl.exp(-x))
    elif ACTIVATION == "relu":
        return tl.where(x <= 0, 0.0, x)
    else:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _slope(x, ACTIVATION: tl.constexpr):
    """The derivative of the activation."""
    value = _activate(x, ACTIVATION)
    if ACTIVATION == "tanh":
        return 1.0 - value * value
    elif ACTIVATION == "sigmoid":
        return value * (1.0 - value)
    elif ACTIVATION == "relu":
        return tl.where(x <= 0, 0.0, 1.0)
    else:
        return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def _curvature(x, ACTIVATION: tl.constexpr):
    """The activation's second derivative."""
    value = _activate(x, ACTIVATION)
    if ACTIVATION == "tanh":
        return -2.0 * value * (1.0 - value * value)
    elif ACTIVATION == "sigmoid":
        return value * (1.0 - value) * (1.0 - 2.0 * value)
    elif ACTIVATION == "relu":
        return tl.zeros_like(x)
    else:
        return 0.3989422804014327 * tl.exp(-0.5 * x * x) * (2.0 - x * x)


@triton.jit
def _sum_of_rows(encoder, predictor, left, right, h, size, mask, WORK: tl.constexpr):
    """encoder + predictor, rows by hidden units; rows are numbered, and both operands contiguous."""
    of_encoder = tl.load(encoder + (left * size)[:, None] + h[None, :], mask=mask, other=0.0)
    of_predictor = tl.load(predictor + (right * size)[:, None] + h[None, :], mask=mask, other=0.0)
    return of_encoder.to(WORK) + of_predictor.to(WORK)


@kernel
def join_rows(
    encoder, predictor, moved_encoder, moved_predictor, num_rows: tl.int64, logit_lengths, target_lengths, row_offsets,
    listed, begin: tl.int64, count, num_samples: tl.int32, num_frames: tl.int32, width: tl.int32, size: tl.int32,
    stride: tl.int32, frames, positions, hidden, moved, ACTIVATION: tl.constexpr, WORK: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr, ALIGNED: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Hidden rows of a tile, zeros where it has no node and beyond the units; and which row of the encoder and of the
    predictor each is made of, -1 where of none. With tangents of both, how the hidden rows move.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    node = nodes_of_tile(rows, num_rows, listed, begin, count)
    n, t, u, _, _, real = locate(
        node, NOWHERE, logit_lengths, target_lengths, row_offsets, num_samples, num_frames, width, True
    )
    left, right, written = n * num_frames + t, n * width + u, rows < num_rows
    tl.store(frames + rows, tl.where(real, left, -1), mask=written)
    tl.store(positions + rows, tl.where(real, right, -1), mask=written)
    size, stride = in_pieces(size, ALIGNED), in_pieces(stride, STEP)
    for first in range(0, stride, UNITS):
        h = first + tl.arange(0, UNITS)
        mask = real[:, None] & (h < size)[None, :]
        joined = _sum_of_rows(encoder, predictor, left, right, h, size, mask, WORK)
        places, kept = (rows * stride)[:, None] + h[None, :], written[:, None] & (h < stride)[None, :]
        value = tl.where(mask, _activate(joined, ACTIVATION), 0.0)
        tl.store(hidden + places, value.to(hidden.dtype.element_ty), mask=kept)
        if moved is not None:
            along = _sum_of_rows(moved_encoder, moved_predictor, left, right, h, size, mask, WORK)
            value = tl.where(mask, _slope(joined, ACTIVATION) * along, 0.0)
            tl.store(moved + places, value.to(moved.dtype.element_ty), mask=kept)


@kernel
def mark_rows(
    planes, factors, num_planes: tl.int32, stride: tl.int64, upstream, gate: tl.float64, num_rows: tl.int64,
    logit_lengths, target_lengths, row_offsets, num_samples: tl.int32, alive, ROWS: tl.constexpr,
):  # fmt: skip
    """alive[node] = 1 where its share of the planes' gradients counts.

    A node is left out where that is at most gate / max(T, U+1): what any frame, or any label position, then loses is at
    most ``gate``. Of an undefined sample none is left out, of one without an upstream gradient every one.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n, _, _, frames, labels, real = locate(
        rows, num_rows, logit_lengths, target_lengths, row_offsets, num_samples, 1, 0, True
    )
    mass = tl.zeros([ROWS], tl.float64)
    for k in range(num_planes):
        mass += tl.abs(tl.load(planes + k * stride + rows, mask=real, other=0.0) * tl.load(factors + k))
    weight = tl.load(upstream + n, mask=real, other=0.0)
    least = gate / tl.maximum(frames, labels + 1).to(tl.float64)
    counts = (mass > least) | (mass != mass) | (weight != weight)
    tl.store(alive + rows, (real & (weight != 0) & counts).to(tl.int8), mask=rows < num_rows)


@kernel
def list_rows(alive, places, num_rows: tl.int64, listed, ROWS: tl.constexpr):
    """listed[place] = node where it is alive. ``places``, how many are alive up to each node, becomes each one's place,
    -1 where it has none.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    within = rows < num_rows
    real = within & (tl.load(alive + rows, mask=within, other=0) != 0)
    place = tl.load(places + rows, mask=real, other=0) - 1
    tl.store(listed + place, rows.to(listed.dtype.element_ty), mask=real)
    tl.store(places + rows, place, mask=within)


@triton.jit
def _through_activation(
    grad_hidden, grad_moved, rows, inside, h, size, stride, frames, positions, encoder, predictor, moved_encoder,
    moved_predictor, ACTIVATION: tl.constexpr, WORK: tl.constexpr,
):  # fmt: skip
    """The gradient with respect to encoder + predictor of a tile's rows, or, with ``grad_moved``, how it moves."""
    mask = inside[:, None] & (h < size)[None, :]
    left = tl.load(frames + rows, mask=inside, other=0)
    right = tl.load(positions + rows, mask=inside, other=0)
    joined = _sum_of_rows(encoder, predictor, left, right, h, size, mask, WORK)
    places = (rows * stride)[:, None] + h[None, :]
    gradient = tl.load(grad_hidden + places, mask=mask, other=0.0)
    if grad_moved is None:
        return gradient * _slope(joined, ACTIVATION)
    else:
        along = _sum_of_rows(moved_encoder, moved_predictor, left, right, h, size, mask, WORK)
        moving = tl.load(grad_moved + places, mask=mask, other=0.0)
        return moving * _slope(joined, ACTIVATION) + gradient * (_curvature(joined, ACTIVATION) * along)


@triton.jit
def _add_frame(
    row, h, grad_hidden, grad_moved, num_rows, size, stride, frames, positions, encoder, predictor, moved_encoder,
    moved_predictor, grad_encoder, ACTIVATION: tl.constexpr, WORK: tl.constexpr, ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):  # fmt: skip
    """What the tile has of a frame, if the row is the first of it there."""
    frame = tl.load(frames + row)
    before = tl.load(frames + row - 1, mask=row > 0, other=-1)
    if (frame >= 0) & (frame != before):
        total = tl.zeros([ROWS, UNITS], WORK)
        found = tl.full([], ROWS, tl.int32)
        while found == ROWS:
            rows = row + tl.arange(0, ROWS)
            inside = tl.load(frames + rows, mask=rows < num_rows, other=-1) == frame
            total += _through_activation(
                grad_hidden, grad_moved, rows, inside, h, size, stride, frames, positions, encoder, predictor,
                moved_encoder, moved_predictor, ACTIVATION, WORK,
            )  # fmt: skip
            found = tl.sum(inside.to(tl.int32), 0)
            row += ROWS
        own = grad_encoder + frame * size + h
        tl.store(own, tl.load(own, mask=h < size, other=0.0) + tl.sum(total, 0), mask=h < size)


@triton.jit
def _add_position(
    n, u, h, grad_hidden, grad_moved, num_rows, logit_lengths, target_lengths, row_offsets, listed, begin, count,
    places, width, size, stride, frames, positions, encoder, predictor, moved_encoder, moved_predictor, grad_predictor,
    ACTIVATION: tl.constexpr, WORK: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """What the tile has of a label position."""
    line = tl.load(target_lengths + n) + 1
    last = tl.minimum(begin + num_rows, tl.load(count)) - 1
    if (begin <= last) & (u < line):
        origin = tl.load(row_offsets + n)
        # Frames that the tile has nodes of.
        t = tl.maximum(tl.load(listed + begin).to(tl.int64) - origin, 0) // line
        reach = tl.load(listed + last).to(tl.int64) - origin
        end = tl.where(reach >= 0, tl.minimum(reach // line + 1, tl.load(logit_lengths + n)), 0)
        if t < end:
            total = tl.zeros([ROWS, UNITS], WORK)
            while t < end:
                lines = t + tl.arange(0, ROWS)
                place = tl.load(places + origin + lines * line + u, mask=lines < end, other=-1).to(tl.int64)
                rows = place - begin
                inside = (place >= 0) & (rows >= 0) & (rows < num_rows)
                total += _through_activation(
                    grad_hidden, grad_moved, rows, inside, h, size, stride, frames, positions, encoder, predictor,
                    moved_encoder, moved_predictor, ACTIVATION, WORK,
                )  # fmt: skip
                t += ROWS
            own = grad_predictor + (n * width + u) * size + h
            tl.store(own, tl.load(own, mask=h < size, other=0.0) + tl.sum(total, 0), mask=h < size)


@kernel
def add_operand_gradients(
    grad_hidden, grad_moved, num_rows: tl.int64, logit_lengths, target_lengths, row_offsets, listed, begin: tl.int64,
    count, places, first_sample: tl.int64, width: tl.int32, size: tl.int32, stride: tl.int32,
    frames, positions, encoder, predictor, moved_encoder, moved_predictor, grad_encoder, grad_predictor,
    ACTIVATION: tl.constexpr, WORK: tl.constexpr, FRAME_ROWS: tl.constexpr, FRAME_UNITS: tl.constexpr,
    LABEL_ROWS: tl.constexpr, LABEL_UNITS: tl.constexpr, ALIGNED: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Rows of the encoder's gradient += that of the tile's nodes in their frame, of the predictor's in their label
    position.

    For each row of the tile there is a program that adds up its frame if the row is the first of it, then, from
    ``first_sample`` on, one for each label position. All of them do it for a block of units.
    """
    size, stride = in_pieces(size, ALIGNED), in_pieces(stride, STEP)
    program, frame_blocks = tl.program_id(0).to(tl.int64), tl.cdiv(size, FRAME_UNITS)
    beyond = program - num_rows * frame_blocks
    if beyond < 0:
        _add_frame(
            program // frame_blocks, program % frame_blocks * FRAME_UNITS + tl.arange(0, FRAME_UNITS), grad_hidden,
            grad_moved, num_rows, size, stride, frames, positions, encoder, predictor, moved_encoder, moved_predictor,
            grad_encoder, ACTIVATION, WORK, FRAME_ROWS, FRAME_UNITS,
        )  # fmt: skip
    else:
        label_blocks = tl.cdiv(size, LABEL_UNITS)
        place = beyond // label_blocks
        _add_position(
            first_sample + place // width, place % width, beyond % label_blocks * LABEL_UNITS
            + tl.arange(0, LABEL_UNITS), grad_hidden, grad_moved, num_rows, logit_lengths, target_lengths, row_offsets,
            listed, begin, count, places, width, size, stride, frames, positions, encoder, predictor, moved_encoder,
            moved_predictor, grad_predictor, ACTIVATION, WORK, LABEL_ROWS, LABEL_UNITS,
        )  # fmt: skip
