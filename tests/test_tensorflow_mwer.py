"""Minimum word error rate for TensorFlow, beside torch's, which is beside the enumeration."""

import os

import numpy as np
import pytest
import torch

import pathsum.torch
from pathsum.errors import InvalidTypeError, InvalidValueError

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = pytest.importorskip("tensorflow")

from pathsum.tensorflow import ctc_mwer_loss  # noqa: E402


def problem(seed=0):
    random = np.random.default_rng(seed)
    logits = random.standard_normal((2, 7, 4))
    tokens = random.integers(1, 4, (2, 5, 3))
    tokens[0, 1] = tokens[0, 0]
    # The same twice, one that is not there, an empty one; five labels do not fit in four frames.
    lengths = np.array([[3, 3, 2, -1, 0], [1, 2, 3, 3, 2]])
    return logits, tokens, np.array([7, 4]), lengths, random.random((2, 5))


def differentiated(logits, *given, **options):
    """Losses, the gradient of their sum, and its derivative along the logits themselves."""
    with tf.GradientTape() as second:
        second.watch(logits)
        with tf.GradientTape() as first:
            first.watch(logits)
            losses = ctc_mwer_loss(logits, *given, **options)
        gradient = first.gradient(losses, logits)
    return losses, gradient, second.gradient(gradient, logits, tf.stop_gradient(logits))


@pytest.mark.parametrize("impl, options", [
    ("numba", {}),
    ("numba", {"baseline": "none", "normalise": False, "references": [[1, 2, 3], [2, 2, 1]], "separator": 2}),
    ("tensorflow", {"baseline": "leave_one_out", "temperature": 2.0, "fused_log_softmax": False}),
])  # fmt: skip
def test_values_and_derivatives_are_torchs(impl, options):
    logits, *integers, errors = problem()
    errors = None if "references" in options else errors
    scores = torch.from_numpy(logits).requires_grad_()
    expected = pathsum.torch.ctc_mwer_loss(
        scores, *integers, errors, reduction="none", batch_first=True, **{"fused_log_softmax": True} | options
    )
    (gradient,) = torch.autograd.grad(expected.sum(), scores, create_graph=True)
    (product,) = torch.autograd.grad(gradient, scores, scores.detach())
    wanted = [expected.detach(), gradient.detach(), product]

    def close(found):
        for actual, tensor in zip(found, wanted, strict=True):
            np.testing.assert_allclose(actual, tensor, atol=1e-9)

    close(differentiated(tf.constant(logits), *integers, errors, impl=impl, **options))
    shapes = [tf.TensorSpec([None] * np.ndim(array), tf.int64) for array in integers]
    step = tf.function(
        lambda scores, *integers: differentiated(scores, *integers, errors, impl=impl, **options),
        input_signature=[tf.TensorSpec([None, None, 4], tf.float64), *shapes], autograph=False,
    )  # fmt: skip
    close(step(logits, *integers))


def test_padding_is_not_read_and_bad_scores_are_their_own():
    logits, *given = problem(1)
    logits, given = np.repeat(logits, 2, 0), [np.repeat(array, 2, 0) for array in given]
    clean, padded = logits.copy(), logits.copy()
    padded[2, 4:] = np.nan
    padded[0, 0, 1] = np.nan
    expected, gradient, _ = differentiated(tf.constant(clean), *given)
    found, own, _ = differentiated(tf.constant(padded), *given)
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:], expected[1:], atol=1e-12)
    np.testing.assert_allclose(own[1:], gradient[1:], atol=1e-12)
    assert not own[2, 4:].numpy().any()


@pytest.mark.parametrize("impl", ["numba", "tensorflow"])
def test_a_frame_in_which_nothing_is_possible_leaves_no_hypothesis(impl):
    logits = np.zeros((2, 3, 3))
    logits[0, 1] = -np.inf
    given = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(given)
        losses = ctc_mwer_loss(
            given, [[[1, 2], [2, 0]]] * 2, None, [[2, 1]] * 2, [[0.0, 1.0]] * 2, baseline="none", impl=impl
        )
    np.testing.assert_allclose(losses, [0, 6 / 11], atol=1e-12)  # 5 labellings and 6
    gradient = tape.gradient(losses, given).numpy()
    assert not gradient[0].any()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("num_samples, size", [(0, 2), (2, 0)])
def test_without_samples_or_hypotheses(num_samples, size):
    given = np.zeros((num_samples, size, 2), int), None, np.zeros((num_samples, size), int)
    losses = ctc_mwer_loss(np.zeros((num_samples, 3, 3)), *given, np.zeros((num_samples, size)))
    np.testing.assert_array_equal(losses, np.zeros(num_samples))


def test_half_precision_is_summed_in_float32():
    logits, *given = problem(2)
    half = tf.cast(logits, tf.bfloat16)
    losses = ctc_mwer_loss(half, *given)
    assert losses.dtype == tf.float32
    np.testing.assert_allclose(losses, ctc_mwer_loss(tf.cast(half, tf.float32), *given), rtol=1e-6)


def test_integers_of_a_graph_out_of_range_are_their_own_samples():
    logits, tokens, frames, lengths, errors = problem(3)
    expected = ctc_mwer_loss(logits, tokens, frames, lengths, errors)
    tokens[0, 0, 0] = 99
    found = tf.function(ctc_mwer_loss)(*map(tf.constant, (logits, tokens, frames, lengths, errors)))
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1], expected[1], atol=1e-12)


def test_a_program_of_xlas_is_given_the_errors():
    logits, *given, errors = problem(4)
    expected = ctc_mwer_loss(logits, *given, errors)
    program = tf.function(ctc_mwer_loss, jit_compile=True)
    np.testing.assert_allclose(program(logits, *given, tf.constant(errors)), expected, atol=1e-9)
    references = tf.constant([[1, 2], [2, 1]])
    with pytest.raises(InvalidValueError, match=r"^ctc_mwer_loss: errors must be given in a program"):
        program(logits, *given, references=references)


@pytest.mark.parametrize("change, message", [
    ({"hypotheses": [[1, 2]]}, "hypotheses must have shape"),
    ({"errors": "ab"}, "errors must be real numbers"),
    ({"errors": None, "references": [[1.5]]}, "references must have an integer dtype; got float64"),
    ({"errors": None, "references": [[1]], "reference_lengths": [0.5]}, "reference_lengths must have an integer dtype"),
    ({"errors": None, "references": [[1]], "reference_lengths": [2]}, "reference_lengths must lie in"),
    ({"errors": None, "references": [[1]], "separator": 2**70}, "separator must be at most"),
    ({"hypotheses": [[[1, 0], [2, 0]]]}, "hypotheses must"),
    ({"hypothesis_lengths": [[2]]}, "hypothesis_lengths must have shape"),
    ({"hypothesis_lengths": [[2, 3]]}, "hypothesis_lengths must"),
    ({"logit_lengths": [3, 3]}, "logit_lengths must have shape"),
    ({"errors": None}, "errors must be given"),
    ({"references": [[1]]}, "errors must be given"),
    ({"errors": [[1.0]]}, "errors must have shape"),
    ({"errors": None, "references": [[1], [1]]}, "references must have shape"),
    ({"baseline": "median"}, "baseline must be one of"),
    ({"temperature": 0.0}, "temperature must be above 0"),
    ({"blank": 3}, "blank must lie in"),
])  # fmt: skip
def test_bad_arguments_are_named(change, message):
    arguments = {
        "logits": np.zeros((1, 3, 3)),
        "hypotheses": [[[1, 2], [2, 1]]],
        "logit_lengths": [3],
        "hypothesis_lengths": [[2, 2]],
        "errors": [[0.0, 1.0]],
    }
    with pytest.raises((InvalidValueError, InvalidTypeError), match=f"^ctc_mwer_loss: {message}"):
        ctc_mwer_loss(**arguments | change)
