"""Integers whose sums and products wrap, or that ask for memory: errors of the library's, or no more than is there."""

import sys
import tracemalloc

import numpy as np
import pytest
import torch

from pathsum.compat.optimized_transducer import transducer_loss
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.graphs import ctc_topology
from pathsum.testing import assert_close
from pathsum.torch import (
    ar_rnnt_loss,
    asg_beam_decode,
    ctc_beam_decode,
    ctc_loss,
    multi_blank_rnnt_loss,
    rnnt_beam_decode,
    rnnt_entropy,
    rnnt_expected_risk,
    rnnt_joint_loss,
    rnnt_loss_from_joint,
    rnnt_packed_loss,
    sample_labellings,
    simple_ctc_beam_decode,
    tdt_loss,
    wildcard_rnnt_loss,
)
from pathsum.torch.paths import ctc_paths, graph_paths, rnnt_paths

ROWS = torch.zeros(4, 5)
HUGE = [2**31, 2**32 + 1, 2**61, 2**62 + 1, 2**63 - 1]

PACKED = {
    "rnnt_packed_loss": rnnt_packed_loss,
    "modified": lambda *a: rnnt_packed_loss(*a, rnnt_type="modified"),
    "rnnt_entropy": rnnt_entropy,
    "rnnt_expected_risk": lambda logits, *a: rnnt_expected_risk(logits, torch.zeros(len(logits), 2), *a),
    "tdt_loss": lambda logits, *a: tdt_loss(logits, logits[:, :2], *a, [0, 1]),
    "multi_blank_rnnt_loss": lambda logits, *a: multi_blank_rnnt_loss(logits, *a, [2], [0]),
    "ar_rnnt_loss": lambda logits, *a: ar_rnnt_loss(logits, *a, a[0], 1, 1),
    "wildcard_rnnt_loss": wildcard_rnnt_loss,
    "transducer_loss": lambda *a: transducer_loss(*a, 4, False),
}


@pytest.mark.parametrize("huge", HUGE)
@pytest.mark.parametrize("name", PACKED)
def test_rows_that_wrap_are_not_those_of_packed_logits(name, huge):
    # 2**62 + 1 frames of 4 label positions are 2**64 + 4 rows: in 64 bits they are the 4 that there are.
    for frames, labels in (([huge], [3]), ([1, huge], [1, 1]), ([huge, huge], [3, 3])):
        targets = [[1, 2, 3]] * len(frames)
        with pytest.raises(InvalidValueError, match=r"must have sum\(T_n \* \(U_n \+ 1\)\) = \d+ rows; got 4 rows"):
            PACKED[name](ROWS, targets, frames, labels)


@pytest.mark.parametrize("huge", HUGE)
def test_lengths_that_wrap_are_not_those_of_concatenated_targets(huge):
    scores = torch.zeros(3, 4, 5)
    lengths = [huge, 2**62, 2**62, 2**63 - huge] if huge < 2**62 else [2**62, 2**62, 2**63 - 1, 3]
    with pytest.raises(InvalidValueError, match=r"sum\(target_lengths\) = \d+ entries"):
        ctc_loss(scores, [1, 2], [3] * 4, lengths)
    with pytest.raises(InvalidValueError, match=r"sum\(target_lengths\) = \d+ entries"):
        rnnt_packed_loss(ROWS, [1, 2], [1] * 4, lengths)


@pytest.mark.parametrize("value", [2**63, 2**64, -(2**70)])
def test_integers_of_more_than_64_bits(value):
    with pytest.raises((InvalidTypeError, InvalidValueError)):
        ctc_loss(torch.zeros(3, 1, 5), [[1, value]], [3], [2])
    with pytest.raises((InvalidTypeError, InvalidValueError)):
        rnnt_packed_loss(ROWS, [[1, 2, 3]], [value], [3])
    for argument in ({"blank": value}, {"fastemit_lambda": 10**400}, {"clamp": -(10**400)}):
        with pytest.raises((InvalidTypeError, InvalidValueError)):
            rnnt_packed_loss(ROWS, [[1, 2, 3]], [1], [3], **argument)


@pytest.mark.parametrize("impl", ["numba", "reference"])
@pytest.mark.parametrize("huge", [2**20, 2**31, 2**63, 2**100])
def test_what_goes_further_than_any_sample_fits_nowhere(huge, impl):
    logits = torch.randn(2, 3, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    integers = ([[1], [2]], [3, 2], [1, 0])
    for function in (
        lambda scores, d: multi_blank_rnnt_loss(scores, *integers, [d, 3], [-2, -3], reduction="none", impl=impl),
        lambda scores, d: tdt_loss(scores, scores[..., :3], *integers, [0, 1, d], reduction="none", impl=impl),
    ):
        found = []
        for longest in (7, huge):
            leaf = logits.clone().requires_grad_()
            tracemalloc.start()
            losses = function(leaf, longest)
            (gradient,) = torch.autograd.grad(losses.sum(), leaf, create_graph=True)
            gradient.square().sum().backward()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            found.append((losses.detach(), gradient.detach(), leaf.grad))
        assert peak < 2**24
        assert_close(found[0][0], found[1][0], absolute=1e-14)
        assert_close(found[0][1], found[1][1], absolute=1e-14)
        assert_close(found[0][2], found[1][2], absolute=1e-14)


@pytest.mark.parametrize("huge", [2**40, sys.maxsize, 2**63, 2**100])
def test_a_band_as_wide_as_one_likes_restricts_nothing(huge):
    logits = torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    arguments = (logits, [[1, 2]], [4], [2], [[1, 3]])
    for impl in ("numba", "reference"):
        wide = ar_rnnt_loss(*arguments, huge, huge, impl=impl)
        assert_close(wide, ar_rnnt_loss(*arguments, 4, 4, impl=impl), absolute=1e-6)


def test_tiles_as_large_as_one_likes():
    encoder_out, predictor_out, weight = torch.randn(1, 3, 2), torch.randn(1, 2, 2), torch.randn(5, 2)
    integers = ([[1]], [3], [1])
    for huge in (2**63, 2**100, 1e300):
        arguments = (encoder_out, predictor_out, weight, None, *integers)
        assert_close(rnnt_joint_loss(*arguments, tile_memory=huge), rnnt_joint_loss(*arguments), absolute=1e-6)
        arguments = (lambda e, p: (e + p) @ weight.T, encoder_out, predictor_out, *integers)
        expected = rnnt_loss_from_joint(*arguments)
        assert_close(rnnt_loss_from_joint(*arguments, rows_per_tile=huge), expected, absolute=1e-6)


def test_the_messages_count_without_wrapping():
    with pytest.raises(InvalidValueError, match=f"= {4 * (2**62 + 1)} rows"):
        rnnt_packed_loss(ROWS, np.array([[1, 2, 3]]), np.array([2**62 + 1]), np.array([3]), blank=0)


FRAMES = torch.zeros(1, 3, 4).log_softmax(2)
PATHS = {
    "ctc": lambda: ctc_paths(FRAMES, [[1, 2]], [3], [2], batch_first=True),
    "graphs": lambda: graph_paths(FRAMES, ctc_topology(4), batch_first=True),
    "rnnt": lambda: rnnt_paths(torch.zeros(1, 3, 3, 4), [[1, 2]], [3], [2], blank=0),
}


@pytest.mark.parametrize("huge", [2**31, 2**40, 2**62, 2**63, 10**30])
def test_no_more_is_listed_or_drawn_or_searched_than_memory_holds(huge):
    decoders = {
        "ctc_beam_decode": lambda size: ctc_beam_decode(FRAMES, beam_size=size),
        "simple_ctc_beam_decode": lambda size: simple_ctc_beam_decode(FRAMES, beam_size=size),
        "asg_beam_decode": lambda size: asg_beam_decode(FRAMES, torch.zeros(4, 4), beam_size=size),
        "rnnt_beam_decode": lambda size: rnnt_beam_decode(FRAMES, None, lambda *of: of, torch.add, beam_size=size),
    }
    for name, decode in decoders.items():
        with pytest.raises(InvalidValueError, match=f"^{name}: beam_size must be at most [0-9]+; got {huge}$"):
            decode(huge)
    for name, paths in PATHS.items():
        with pytest.raises(InvalidValueError, match=f"k must be at most [0-9]+; got {huge}$"):
            paths().k_best(huge)
        with pytest.raises(InvalidValueError, match=f"num_samples must be at most [0-9]+; got {huge}$"):
            paths().sample(huge)
        assert paths().k_best(9).log_probs.shape == (1, 9), name
    with pytest.raises(InvalidValueError, match=f"num_samples must be at most [0-9]+; got {huge}$"):
        sample_labellings(FRAMES, huge)
