"""The Triton kernels, interpreted, where digits are few: scores far from zero, and losses near it."""

import numpy as np
import pytest
import torch

from offsets import alike
from pathsum.testing import assert_close
from pathsum.torch import asg_loss, ctc_loss, rnnt_joint_loss, rnnt_loss, simple_ctc_loss, tdt_loss
from test_offsets import INVARIANT, POSTERIORS, derivatives
from triton_targets import interpreted  # noqa: F401

# Entropies are what these are made of; those of a joiner whose bias is huge are rounded with its products.
LOSSES = [name for name in INVARIANT if not name.endswith("entropy")]
# What twenty thousand frames may be off, a frame's share of it.
A_FRAME = 1e-7 / 20_000


@pytest.mark.parametrize("kind, name, dtype, offset", [
    *(("loss", name, "float64", 1e15) for name in LOSSES),
    *(("arcs", name, "float64", -1e15) for name in POSTERIORS),
    *(("loss", name, "float32", -1e7) for name in ("ctc", "asg", "rnnt")),
    ("arcs", "ctc", "float32", 1e30),
])  # fmt: skip
def test_an_offset_moves_nothing(kind, name, dtype, offset):
    shapes, function = (INVARIANT if kind == "loss" else POSTERIORS)[name]
    pairs = [alike(shape, dtype, offset, seed) for seed, shape in enumerate(shapes)]
    twice = name in ("ctc", "asg")
    (loss, expected), (shifted, found) = (
        derivatives(function, tables, "triton", twice=twice) for tables in zip(*pairs, strict=True)
    )
    bound = 1e-13 if dtype == "float64" else 1e-6
    if kind == "loss":
        assert_close(shifted, loss, relative=bound, absolute=bound)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, relative=10 * bound, absolute=10 * bound)


def test_arcs_of_asg_too_far_apart_for_plain_floats_have_their_offset_taken_off():
    scores, transitions = (torch.tensor(alike(shape, "float64", 1e15)[0]) for shape in ((5, 1, 3), (3, 3)))
    scores[2, 0, 1], transitions[0, 2] = -2000.0, -1500.0
    call = ([[1, 2]], transitions)
    found = asg_loss(scores + 1e15, call[0], transitions - 1e15, reduction="none", impl="triton")
    assert_close(found, asg_loss(scores, *call, reduction="none", impl="reference"), relative=1e-13)


@pytest.mark.parametrize("loss", [ctc_loss, simple_ctc_loss])
@pytest.mark.parametrize("num_classes, margin, offset", [(4, 25.0, 0.0), (4, 17.0, 77.7), (70, 12.0, -3.3)])
def test_chains_of_confident_rows(loss, num_classes, margin, offset):
    # 70 classes are more than a block of them; every frame is sure of a label of its own.
    num_frames = 6
    labels = [1 + i % 3 for i in range(num_frames)]
    logits = np.random.default_rng(0).normal(0, 0.25, (num_frames, 1, num_classes)) + offset
    logits[range(num_frames), 0, labels] += margin
    logits = torch.tensor(logits, dtype=torch.float32)
    for scores, fused in ((logits, True), (logits.double().log_softmax(-1).float(), False)):
        call = ([labels], [num_frames], [num_frames])
        options = {"fused_log_softmax": fused, "reduction": "none"}
        found = loss(scores, *call, **options, impl="triton")
        exact = loss(scores.double(), *call, **options, impl="reference")
        assert_close(found, exact, relative=1.2e-7, absolute=num_frames * A_FRAME)
        assert found.item() >= 0 or not fused


@pytest.mark.parametrize("loss", [rnnt_loss, tdt_loss])
def test_transducers_of_confident_rows(loss):
    # A label in the second frame; its row and every other of the path are sure of it.
    logits, labels = torch.zeros(1, 4, 2, 6), [[3]]
    logits[0, :, :, 0] = 17.0
    logits[0, 1, 0, [0, 3]] = torch.tensor([0.0, 17.0])
    call, options = (labels, [4], [1]), {"blank": 0, "reduction": "none"}
    if loss is tdt_loss:
        durations = torch.zeros(1, 4, 2, 2)
        durations[..., 1] = torch.where(logits[..., 0] > 0, 17.0, 0.0)
        durations[..., 0] = 17.0 - durations[..., 1]
        scores, options = (logits, durations), options | {"durations": [0, 1]}
    else:
        scores = (logits,)
    found = loss(*scores, *call, **options, impl="triton")
    exact = loss(*(own.double() for own in scores), *call, **options, impl="reference")
    assert found.item() >= 0
    assert_close(found, exact, relative=1.2e-7, absolute=6 * A_FRAME)


def test_a_joiner_of_confident_rows():
    # All frames are sure of the blank, and nothing is to be emitted.
    bias = torch.tensor([17.0, 0.3, 0.1, -0.2])
    sums = torch.log(torch.exp(bias.double() - 17.0).sum())
    zeros = (torch.zeros(1, 4, 2), torch.zeros(1, 1, 2), torch.zeros(4, 2), bias)
    found = rnnt_joint_loss(*zeros, torch.empty(1, 0, dtype=torch.int64), [4], [0], blank=0, reduction="none",
                            impl="triton")  # fmt: skip
    assert_close(found, [4 * sums], relative=1.2e-7, absolute=4 * A_FRAME)
