"""Minimum word error rate for JAX, beside torch's, which is beside the enumeration."""

import numpy as np
import pytest

from pathsum.errors import InvalidTypeError, InvalidValueError

jax = pytest.importorskip("jax")
torch = pytest.importorskip("torch")

import pathsum.torch  # noqa: E402
from pathsum.jax import ctc_mwer_loss  # noqa: E402

jnp = jax.numpy
pytestmark = pytest.mark.usefixtures("x64")


def problem(seed=0):
    random = np.random.default_rng(seed)
    logits = random.standard_normal((2, 7, 4))
    tokens = random.integers(1, 4, (2, 5, 3))
    tokens[0, 1] = tokens[0, 0]
    # The same twice, one that is not there, an empty one; five labels do not fit in four frames.
    lengths = np.array([[3, 3, 2, -1, 0], [1, 2, 3, 3, 2]])
    return logits, tokens, [7, 4], lengths, random.random((2, 5))


@pytest.mark.parametrize("impl, options", [
    ("numba", {}),
    ("numba", {"baseline": "none", "normalise": False, "references": [[1, 2, 3], [2, 2, 1]], "separator": 2}),
    ("jax", {"baseline": "leave_one_out", "temperature": 2.0, "fused_log_softmax": False}),
])  # fmt: skip
def test_values_and_gradients_are_torchs(impl, options):
    logits, tokens, frames, lengths, errors = problem()
    errors = None if "references" in options else errors
    options = {"fused_log_softmax": True} | options
    scores = torch.from_numpy(logits).requires_grad_()
    expected = pathsum.torch.ctc_mwer_loss(
        scores, tokens, frames, lengths, errors, reduction="none", batch_first=True, **options
    )
    (wanted,) = torch.autograd.grad(expected.sum(), scores)

    def loss(logits, tokens, frames, lengths):
        return ctc_mwer_loss(logits, tokens, frames, lengths, errors, impl=impl, **options)

    np.testing.assert_allclose(loss(logits, tokens, frames, lengths), expected.detach(), atol=1e-9)

    def summed(*given):
        losses = loss(*given)
        return losses.sum(), losses

    (_, found), gradient = jax.jit(jax.value_and_grad(summed, has_aux=True))(
        logits, jnp.asarray(tokens), jnp.asarray(frames), jnp.asarray(lengths)
    )
    np.testing.assert_allclose(found, expected.detach(), atol=1e-9)
    np.testing.assert_allclose(gradient, wanted, atol=1e-9)


def test_padding_is_not_read_and_bad_scores_are_their_own():
    logits, tokens, frames, lengths, errors = problem(1)
    logits = np.repeat(logits, 2, 0)
    clean, padded = logits.copy(), logits.copy()
    padded[2, 4:] = np.nan
    padded[0, 0, 1] = np.nan
    arguments = (np.repeat(tokens, 2, 0), np.repeat(frames, 2), np.repeat(lengths, 2, 0), np.repeat(errors, 2, 0))

    def loss(logits):
        losses = ctc_mwer_loss(logits, *arguments)
        return losses[1:].sum(), losses

    (_, expected), gradient = jax.value_and_grad(loss, has_aux=True)(clean)
    (_, found), own = jax.value_and_grad(loss, has_aux=True)(padded)
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:], expected[1:], atol=1e-12)
    np.testing.assert_allclose(own[1:], gradient[1:], atol=1e-12)
    assert (own[2, 4:] == 0).all()


def test_a_frame_in_which_nothing_is_possible_leaves_no_hypothesis():
    logits = np.zeros((2, 3, 3))
    logits[0, 1] = -np.inf

    def loss(logits):
        losses = ctc_mwer_loss(
            logits, [[[1, 2], [2, 0]]] * 2, None, [[2, 1]] * 2, jnp.array([[0.0, 1.0]] * 2), baseline="none"
        )
        return losses.sum(), losses

    (_, losses), gradient = jax.value_and_grad(loss, has_aux=True)(logits)
    np.testing.assert_allclose(losses, [0, 6 / 11], atol=1e-12)  # 5 labellings and 6
    assert not gradient[0].any()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("num_samples, size", [(0, 2), (2, 0)])
def test_without_samples_or_hypotheses(num_samples, size):
    given = np.zeros((num_samples, size, 2), int), None, np.zeros((num_samples, size), int)
    losses = ctc_mwer_loss(np.zeros((num_samples, 3, 3)), *given, np.zeros((num_samples, size)))
    np.testing.assert_array_equal(losses, np.zeros(num_samples))


def test_half_precision_is_summed_in_float32_and_reduced():
    logits, *arguments = problem(2)
    logits = jnp.asarray(logits, jnp.bfloat16)
    losses = ctc_mwer_loss(logits, *arguments)
    assert losses.dtype == jnp.float32
    for reduction, value in (("sum", losses.sum()), ("mean", losses.mean())):
        np.testing.assert_allclose(ctc_mwer_loss(logits, *arguments, reduction=reduction), value, rtol=1e-6)


def test_traced_integers_out_of_range_are_their_own_samples():
    logits, tokens, frames, lengths, errors = problem(3)
    tokens = tokens.copy()
    tokens[0, 0, 0] = 0  # the blank
    found = jax.jit(lambda *given: ctc_mwer_loss(logits, *given, errors))(tokens, jnp.asarray(frames), lengths)
    assert np.isnan(found[0])
    assert np.isfinite(found[1])


@pytest.mark.parametrize("change, message", [
    ({"hypotheses": [[1, 2]]}, "hypotheses must have shape"),
    ({"errors": "ab"}, "errors must be an array"),
    ({"errors": None, "references": [[1.5]]}, "references must have an integer dtype; got float64"),
    ({"errors": None, "references": [[1]], "reference_lengths": [0.5]}, "reference_lengths must have an integer dtype"),
    ({"errors": None, "references": [[1]], "separator": 2**70}, "separator must be at most"),
    ({"hypotheses": [[[1, 0], [2, 0]]]}, "hypotheses must"),
    ({"hypothesis_lengths": [[2]]}, "hypothesis_lengths must have shape"),
    ({"hypothesis_lengths": [[2, 3]]}, "hypothesis_lengths must"),
    ({"logit_lengths": [4, 4]}, "logit_lengths must have shape"),
    ({"errors": None}, "errors must be given"),
    ({"errors": [[1.0]]}, "errors must be real numbers of shape"),
    ({"temperature": 0.0}, "temperature must be above 0"),
    ({"baseline": "median"}, "baseline must be"),
    ({"errors": None, "references": [[1], [2]]}, "references must have shape"),
    ({"errors": None, "references": [[1]], "reference_lengths": [2]}, "reference_lengths must"),
])  # fmt: skip
def test_bad_arguments_are_named(change, message):
    arguments = {
        "logits": jnp.zeros((1, 4, 3)),
        "hypotheses": [[[1, 2], [2, 1]]],
        "logit_lengths": [4],
        "hypothesis_lengths": [[2, 2]],
        "errors": [[0.0, 1.0]],
    }
    with pytest.raises((InvalidValueError, InvalidTypeError), match=f"^ctc_mwer_loss: {message}"):
        ctc_mwer_loss(**arguments | change)
