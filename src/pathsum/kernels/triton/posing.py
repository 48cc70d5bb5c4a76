"""The integers of a batch on the GPU: brought into their range, and posed.

A program a sample does what ``torch._bounded`` and ``problems`` say in fifty operations of torch, each of which takes
the host longer than the device. Every length and label is brought into its range; a sample where that changed
something gets -1 frames. Targets are padded (N, width), or FLAT, one after another.
"""

from __future__ import annotations

from functools import partial

import triton
import triton.language as tl

from pathsum.kernels.triton.compilation import kernel


@triton.jit
def _bounded(value, most):
    """A length in its range; whether it was."""
    value = value.to(tl.int64)
    return tl.minimum(tl.maximum(value, 0), most), (value >= 0) & (value <= most)


@triton.jit
def _before(
    n, input_lengths, target_lengths, num_samples, most_frames, most_labels, width, BLOCK: tl.constexpr
):  # fmt: skip
    """The labels, and the rows of a grid, of the samples before one, and of all; whether all lengths are good."""
    labels_before, rows, total = tl.zeros([BLOCK], tl.int64), tl.zeros([BLOCK], tl.int64), tl.zeros([BLOCK], tl.int64)
    all_rows, all_good = tl.zeros([BLOCK], tl.int64), tl.full([BLOCK], 1, tl.int32)
    for first in range(0, num_samples, BLOCK):
        i = first + tl.arange(0, BLOCK)
        mask = i < num_samples
        frames, good = _bounded(tl.load(input_lengths + i, mask=mask, other=0), most_frames)
        labels, good_labels = _bounded(tl.load(target_lengths + i, mask=mask, other=0), most_labels)
        all_good = all_good & (good & good_labels).to(tl.int32)
        own = frames * (tl.minimum(labels, width) + 1)
        labels_before += tl.where(i < n, labels, 0)
        rows += tl.where(i < n, own, 0)
        all_rows += tl.where(mask, own, 0)
        total += labels
    labels_before, rows, total = tl.sum(labels_before, 0), tl.sum(rows, 0), tl.sum(total, 0)
    return labels_before, rows, total, tl.sum(all_rows, 0), tl.min(all_good, 0) > 0


@triton.jit
def _label(targets, first, s, labels, size, num_classes, blank, filler, OTHERS: tl.constexpr):
    """The labels at positions of a target, ``filler`` behind it; whether they are some."""
    used = (s >= 0) & (s < labels)
    label = tl.load(targets + first + s, mask=used & (first + s < size), other=0).to(tl.int64)
    good = (label >= 0) & (label < num_classes) & (label != blank)
    for i in tl.static_range(len(OTHERS)):
        good = good & (label != OTHERS[i])
    return tl.where(used, tl.where(good, label, 0), filler), ~used | good


@partial(kernel, anywhere=("targets", "input_lengths", "target_lengths"))
def pose(
    targets, input_lengths, target_lengths, num_samples: tl.int32, targets_width: tl.int64, width: tl.int32,
    most_frames: tl.int64, most_labels: tl.int64, num_classes: tl.int64, blank: tl.int64, filler: tl.int64, lengths,
    sizes, labels_out, other, another, skips, rows, num_rows: tl.int64, OTHERS: tl.constexpr, LATTICE: tl.constexpr,
    FLAT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pose a sample, of labels that must be neither the ``blank`` nor one of ``OTHERS``; ``filler`` stands behind a
    target. Of a grid all samples must have ``num_rows`` together, unless that is -1.

    ``lengths``, and of LATTICE

    * ``"ctc"``: ``sizes``, the states; ``labels_out`` (N, 2 * width + 1) and ``skips``, of them;
    * ``"simple_ctc"``: ``sizes``; ``labels_out`` (N, width + 1) and ``other``, of the arcs that enter and that stay;
    * ``"asg"``: ``sizes``; ``labels_out`` (N, width); ``other`` and ``another``, the transitions that stay and enter;
    * ``"grid"``: ``sizes``, the labels' number; ``labels_out`` (N, width); ``rows``, where each sample's end.
    """
    n = tl.program_id(0).to(tl.int64)
    frames, good = _bounded(tl.load(input_lengths + n), most_frames)
    labels, good_labels = _bounded(tl.load(target_lengths + n), most_labels)
    good = good & good_labels
    first, size = n * targets_width, num_samples * targets_width
    if FLAT or LATTICE == "grid":
        before, rows_before, total, all_rows, all_good_lengths = _before(
            n, input_lengths, target_lengths, num_samples, most_frames, most_labels, width, BLOCK
        )
        if FLAT:
            # Of another total than they say nobody knows whose labels are whose.
            good, first, size = good & (total == targets_width), before, targets_width
            labels = tl.minimum(labels, width)
        if LATTICE == "grid":
            # Of other rows than there are nobody knows whose are whose.
            unknown = (num_rows >= 0) & ((all_rows != num_rows) | ~all_good_lengths)
            good = good & ~unknown
            labels = tl.where(unknown, -1, labels)
            tl.store(rows + n + 1, tl.where(unknown, 0, rows_before + frames * (labels + 1)))
            tl.store(rows, tl.zeros([], tl.int64), mask=n == 0)
    all_good = tl.full([BLOCK], 1, tl.int32)
    for start in range(0, width, BLOCK):
        s = start + tl.arange(0, BLOCK)
        within = s < width
        label, is_good = _label(targets, first, s, labels, size, num_classes, blank, filler, OTHERS)
        all_good = all_good & is_good.to(tl.int32)
        if LATTICE == "ctc":
            before_it, _ = _label(targets, first, s - 1, labels, size, num_classes, blank, filler, OTHERS)
            places = n * (2 * width + 1) + 2 * s
            tl.store(labels_out + places, tl.zeros([BLOCK], tl.int64) + filler, mask=within)
            tl.store(labels_out + places + 1, label, mask=within)
            tl.store(skips + places, tl.zeros([BLOCK], tl.int1), mask=within)
            tl.store(skips + places + 1, (s == 0) | (label != before_it), mask=within)
        elif LATTICE == "simple_ctc":
            places = n * (width + 1) + s + 1
            tl.store(labels_out + places, label, mask=within)
            tl.store(other + places, tl.zeros([BLOCK], tl.int64) + filler, mask=within)
            tl.store(skips + places, tl.zeros([BLOCK], tl.int1), mask=within)
        else:
            tl.store(labels_out + n * width + s, label, mask=within)
            if LATTICE == "asg":
                before_it, _ = _label(targets, first, s - 1, labels, size, num_classes, blank, filler, OTHERS)
                places = n * width + s
                tl.store(skips + places, tl.zeros([BLOCK], tl.int1), mask=within)
                tl.store(other + places, label * num_classes + label, mask=within)
                entering = tl.where(s > 0, label * num_classes + before_it, -1)
                tl.store(another + places, entering, mask=within)
    nothing = tl.zeros([], tl.int64)
    if LATTICE == "ctc":
        last = n * (2 * width + 1) + 2 * width
        tl.store(labels_out + last, nothing + filler)
        tl.store(skips + last, nothing != 0)
    elif LATTICE == "simple_ctc":
        tl.store(labels_out + n * (width + 1), nothing + filler)
        tl.store(other + n * (width + 1), nothing + filler)
        tl.store(skips + n * (width + 1), nothing != 0)
    good = good & (tl.min(all_good, 0) > 0)
    # The rows of a grid stay those of a sample, which is not defined by its frames alone.
    count = labels if LATTICE == "grid" else tl.where(good, labels, -1)
    if LATTICE == "ctc":
        count = 2 * count + 1
    elif LATTICE == "simple_ctc":
        count = count + 1
    tl.store(lengths + n, tl.where(good, frames, -1))
    tl.store(sizes + n, count)
