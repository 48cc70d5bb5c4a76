"""Losses of models that are sure: what is left of two large numbers is right, and not below zero."""

import numpy as np
import pytest
import torch

from pathsum.graphs import ctc_topology, linear, over_ctc
from pathsum.testing import assert_close
from pathsum.torch import (
    ar_rnnt_loss,
    asg_loss,
    ctc_entropy,
    ctc_linear_loss,
    ctc_loss,
    lfmmi_loss,
    multi_blank_rnnt_loss,
    rnnt_loss,
    simple_ctc_loss,
    tdt_loss,
)

LONG = 20_000


def confident(num_frames, num_classes, num_labels, margin, *, offset=0.0, undecided=0.0, seed=0):
    """Logits (T, 1, C) and targets of a model that gives every frame to a label of its own run.

    Every fifth frame is given to the blank as well, with so much less.
    """
    labels = [1 + i % (num_classes - 1) for i in range(num_labels)]
    frames = np.arange(num_frames)
    own = np.array(labels)[frames * num_labels // num_frames]
    logits = np.random.default_rng(seed).normal(0, 0.25, (num_frames, 1, num_classes)) + offset
    logits[frames, 0, own] += margin
    if undecided:
        logits[frames[2::5], 0, 0] += margin - undecided
    return torch.tensor(logits, dtype=torch.float32), [labels]


def assert_as_exact(found, exact):
    assert found.item() >= 0
    assert_close(found.detach(), exact, relative=1.2e-7, absolute=1e-7)


# One kind of row: the same rounding in each of twenty thousand frames. 4 classes are less than a vector, 100 more.
@pytest.mark.parametrize(
    "num_classes, margin, offset, undecided",
    [(4, 25.0, 0.0, 0.0), (4, 17.0, 77.7, 0.0), (30, 14.0, 0.0, 0.0), (100, 12.0, -3.3, 0.0), (30, 20.0, 0.0, 0.7)],
)
def test_ctc_of_long_confident_audio(num_classes, margin, offset, undecided):
    logits, targets = confident(LONG, num_classes, 200, margin, offset=offset, undecided=undecided)
    call = (targets, [LONG], [200])
    options = {"fused_log_softmax": True, "reduction": "none", "impl": "numba"}
    assert_as_exact(ctc_loss(logits, *call, **options), ctc_loss(logits.double(), *call, **options))


def test_log_probabilities_near_zero_keep_their_digits():
    logits, targets = confident(LONG, 10, 200, 17.0)
    log_probs = logits.double().log_softmax(-1).float()
    call = (targets, [LONG], [200])
    options = {"reduction": "none", "impl": "numba"}
    for loss in (ctc_loss, simple_ctc_loss):
        assert_close(
            loss(log_probs, *call, **options),
            loss(log_probs.double(), *call, **options),
            relative=1.2e-7,
            absolute=1e-7,
        )


# Without transitions the matrix is exact in any dtype; with them its entries are rounded.
@pytest.mark.parametrize(
    "num_classes, margin, undecided, deviation",
    [(4, 25.0, 0.0, 0.0), (4, 17.0, 0.0, 1.0), (30, 14.0, 0.0, 1.0), (30, 20.0, 0.7, 0.3), (100, 20.0, 0.0, 1.0)],
)
def test_asg_of_long_confident_audio(num_classes, margin, undecided, deviation):
    logits, targets = confident(LONG, num_classes, 200, margin, undecided=undecided)
    transitions = np.random.default_rng(1).normal(0, deviation, (num_classes, num_classes))
    transitions = torch.tensor(transitions, dtype=torch.float32)
    options = {"reduction": "none", "impl": "numba"}
    found = asg_loss(logits, targets, transitions, **options)
    assert_as_exact(found, asg_loss(logits.double(), targets, transitions.double(), **options))


@pytest.mark.parametrize("margin", [25.0, 12.0])
def test_the_focal_weight_of_a_confident_batch_has_a_gradient(margin):
    labels = [1 + i % 3 for i in range(1000)]
    logits = torch.zeros(1000, 1, 4)
    logits[torch.arange(1000), 0, torch.tensor(labels)] = margin
    logits.requires_grad_()
    loss = ctc_loss(logits, [labels], [1000], [1000], fused_log_softmax=True, reduction="none")
    # Every frame has to be its label: no other path reads as the target.
    assert_as_exact(loss, torch.tensor([1000 * np.log1p(3 * np.exp(-margin))]))
    ((1 - torch.exp(-loss.double())) ** 0.5 * loss).sum().backward()
    assert logits.grad.isfinite().all()


def test_entropies_of_long_audio():
    one = ([[1]], [LONG], [1])
    # T of the first frame of the label and the last: as many paths, all as likely.
    undecided = ctc_entropy(torch.zeros(LONG, 1, 3), *one, fused_log_softmax=True)
    assert_close(undecided, np.log(LONG * (LONG + 1) / 2), relative=1e-7)
    for margin in (25.0, 3.0):
        # A label in each frame: there is one path, and nothing to be undecided about.
        logits, targets = confident(1000, 12, 1000, margin)
        assert ctc_entropy(logits, targets, [1000], [1000], fused_log_softmax=True, reduction="sum") <= 1e-7
        logits, targets = confident(LONG, 12, 200, margin)
        logits.requires_grad_()
        entropy = ctc_entropy(logits, targets, [LONG], [200], fused_log_softmax=True, reduction="sum")
        exact = ctc_entropy(logits.double(), targets, [LONG], [200], fused_log_softmax=True, reduction="sum")
        assert_as_exact(entropy, exact.detach())
        (entropy.double() ** 0.5).backward()
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", [rnnt_loss, tdt_loss])
def test_transducers_of_confident_rows(loss):
    # A label in every tenth frame, its row and every other of the path sure of it.
    num_frames, num_labels = 2000, 200
    logits = torch.zeros(1, num_frames, num_labels + 1, 6)
    labels = [1 + i % 4 for i in range(num_labels)]
    for u in range(num_labels + 1):
        frames = torch.arange(num_frames)
        emits = frames == 10 * u + 5
        logits[0, :, u, 0] = torch.where(emits, 0.0, 17.0)
        if u < num_labels:
            logits[0, emits, u, labels[u]] = 17.0
    call = ([labels], [num_frames], [num_labels])
    options = {"blank": 0, "reduction": "none", "impl": "numba"}
    if loss is tdt_loss:
        durations = torch.zeros(1, num_frames, num_labels + 1, 2)
        durations[..., 0] = 17.0
        durations[..., 0] = torch.where(logits[..., 0] > 0, 0.0, 17.0)
        durations[..., 1] = 17.0 - durations[..., 0]
        found, exact = (
            tdt_loss(logits.to(d), durations.to(d), *call, durations=[0, 1], **options)
            for d in (torch.float32, torch.float64)
        )
    else:
        found, exact = (loss(logits.to(d), *call, **options) for d in (torch.float32, torch.float64))
    assert_as_exact(found, exact)


def test_a_loss_without_a_gradient_is_made_in_strips_and_the_same_bits(monkeypatch):
    from pathsum.kernels.numba import chain

    logits, targets = confident(300, 12, 40, 3.0)
    for loss in (ctc_loss, simple_ctc_loss):
        for scale in (1.0, 1e6):
            call = (scale * logits, targets, [300], [40])
            options = {"fused_log_softmax": True, "reduction": "none", "impl": "numba"}
            whole = loss(call[0].requires_grad_(), *call[1:], **options)
            monkeypatch.setattr(chain, "_STRIP", 7 * 81)
            with torch.no_grad():
                assert torch.equal(loss(*call, **options), whole.detach())
            monkeypatch.undo()


@pytest.mark.parametrize("margin", [25.0, 14.0])
def test_a_linear_layer_of_long_confident_audio(margin):
    logits, labels = confident(4000, 30, 400, margin)
    found, exact = (
        ctc_linear_loss(logits.to(dtype), torch.eye(30, dtype=dtype), None, labels, [4000], [400], reduction="none")
        for dtype in (torch.float32, torch.float64)
    )
    assert_as_exact(found, exact)


@pytest.mark.parametrize("margin", [25.0, 14.0])
def test_graphs_of_long_confident_audio(margin):
    logits, (labels,) = confident(1500, 4, 300, margin)
    call = [over_ctc(linear(labels), 4)], ctc_topology(4), [1500]
    found, exact = (lfmmi_loss(logits.to(d), *call, reduction="none") for d in (torch.float32, torch.float64))
    assert_close(found, exact, relative=1.2e-7, absolute=1e-7)


@pytest.mark.parametrize("impl", ["numba", "reference"])
def test_losses_of_probabilities_are_not_below_zero(impl):
    num_frames, num_labels = (200, 60) if impl == "numba" else (20, 6)
    logits = torch.randn(1, num_frames, num_labels + 1, 5, generator=torch.Generator().manual_seed(0)) * 0.3
    labels = torch.tensor([[1 + i % 3 for i in range(num_labels)]])
    for u in range(num_labels):
        logits[0, 3 * u :, u, labels[0, u]] += 40.0
        logits[0, : 3 * u, u, 0] += 40.0
    logits[0, :, num_labels, 0] += 40.0
    call = (labels, [num_frames], [num_labels])
    options = {"blank": 0, "reduction": "none", "impl": impl}
    halves = torch.randn(1, num_frames, num_labels + 1, 3, generator=torch.Generator().manual_seed(1)) * 0.3
    for dtype in (torch.float32, torch.float64):
        given = logits.to(dtype)
        losses = {
            kind: rnnt_loss(given, *call, rnnt_type=kind, **options)
            for kind in ("regular", "modified", "one_sym_per_frame", "constrained")
        }
        losses["restricted"] = ar_rnnt_loss(given, *call, 3 * torch.arange(num_labels)[None], 5, 5, **options)
        losses["multi_blank"] = multi_blank_rnnt_loss(given, *call, [2], [4], **options)
        losses["tdt"] = tdt_loss(given, halves.to(dtype), *call, [0, 1, 2], **options)
        for kind, loss in losses.items():
            assert loss.item() >= 0, (kind, dtype)
            assert ((1 - (-loss.double()).exp()) ** 0.5).isfinite(), kind
