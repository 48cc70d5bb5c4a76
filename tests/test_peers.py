"""Other implementations: their stored answers (see vectors/generate.py), and torchaudio live where it is installed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pathsum.testing import assert_close, grid_inputs
from pathsum.torch import rnnt_loss, rnnt_packed_loss
from support import CHAIN, Solved, solve

VECTORS = Path(__file__).parent / "vectors"


def load(peer):
    document = json.loads((VECTORS / f"{peer}.json").read_text())
    assert document["peer"]
    assert document["version"]
    return [pytest.param(vector, id=f"{i}-{vector['options']}") for i, vector in enumerate(document["vectors"])]


def scores_of(vector, dtype):
    return torch.tensor(vector["logits"], dtype=dtype)


def integers_of(vector, lengths):
    return vector["targets"], vector[lengths], vector["target_lengths"]


def assert_agrees(solved, vector, loss_scale=1.0):
    # The peers compute in float32 and store rounded logarithms: a few units of 6e-8 times the size of their logs.
    losses = np.asarray(vector["losses"]) * loss_scale
    assert_close(solved.loss.reshape(losses.shape), losses, relative=1e-6, absolute=1e-6, what="losses")
    assert_close(solved.gradient, np.asarray(vector["gradient"]), absolute=3e-6, what="gradient")


everywhere = pytest.mark.parametrize("impl", ["numba", "reference"])
in_both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@everywhere
@in_both
@pytest.mark.parametrize("vector", load("torchaudio"))
def test_torchaudio(vector, dtype, impl):
    options = vector["options"]
    scores = scores_of(vector, dtype)
    if options.get("fused_log_softmax") is False:
        scores = scores.log_softmax(-1)
    arguments = integers_of(vector, "logit_lengths")
    assert_agrees(solve(rnnt_loss, scores, *arguments, blank=vector["blank"], **options, impl=impl), vector)


@everywhere
@in_both
@pytest.mark.parametrize("vector", load("warprnnt_numba"))
def test_warprnnt_numba(vector, dtype, impl):
    # It reports the loss times 1 + lambda, where we report the loss: the gradients are the same.
    options = vector["options"]
    solved = solve(
        rnnt_loss, scores_of(vector, dtype), *integers_of(vector, "logit_lengths"), blank=vector["blank"], **options,
        impl=impl,
    )  # fmt: skip
    assert_agrees(solved, vector, 1 / (1 + options.get("fastemit_lambda", 0.0)))


@everywhere
@in_both
@pytest.mark.parametrize("vector", load("tf_seq2seq_losses"))
def test_tf_seq2seq_losses(vector, dtype, impl):
    function = CHAIN[vector["options"]["function"].removesuffix("_loss")]
    solved = solve(
        function, scores_of(vector, dtype), *integers_of(vector, "input_lengths"), fused_log_softmax=True,
        batch_first=True, impl=impl,
    )  # fmt: skip
    assert_agrees(solved, vector)


@everywhere
@in_both
@pytest.mark.parametrize("vector", load("optimized_transducer"))
def test_optimized_transducer(vector, dtype, impl):
    arguments = integers_of(vector, "logit_lengths")
    options = {"blank": vector["blank"], **vector["options"], "impl": impl}
    assert_agrees(solve(rnnt_packed_loss, scores_of(vector, dtype), *arguments, **options), vector)


@pytest.mark.parametrize("peer", ["torchaudio", "warprnnt_numba", "tf_seq2seq_losses", "optimized_transducer"])
def test_the_vectors_are_not_trivial(peer):
    for vector in json.loads((VECTORS / f"{peer}.json").read_text())["vectors"]:
        assert np.abs(vector["gradient"]).max() > 0.02
        assert np.max(vector["losses"]) > 0.02


@pytest.mark.peer
# Odd and ragged; more labels than frames; the size of a short utterance.
@pytest.mark.parametrize("size", [(3, 7, 3, 5), (2, 3, 6, 4), (2, 60, 15, 30)], ids=str)
@pytest.mark.parametrize("options", [{}, {"clamp": 0.05}, {"fused_log_softmax": False}], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_torchaudio_live(size, options, reduction):
    torchaudio = pytest.importorskip("torchaudio")
    inputs = grid_inputs(*size, seed=sum(size))
    inputs.logit_lengths[0], inputs.target_lengths[0] = size[1], size[2]  # it wants one sample of the padded size
    inputs.targets[inputs.targets < 0] = 0
    scores = torch.from_numpy(inputs.logits).float()
    if options.get("fused_log_softmax") is False:
        scores = scores.log_softmax(-1)
    integers = [torch.from_numpy(array).int() for array in inputs[1:]]
    results = []
    for function in (rnnt_loss, torchaudio.functional.rnnt_loss):
        leaf = scores.clone().requires_grad_()
        loss = function(leaf, *integers, blank=-1, reduction=reduction, **options)
        loss.sum().backward()
        results.append(Solved(loss.detach(), leaf.grad))
    ours, theirs = results
    assert_close(ours.loss, theirs.loss, relative=2e-6, absolute=1e-5)
    assert_close(ours.gradient, theirs.gradient, absolute=5e-5)
