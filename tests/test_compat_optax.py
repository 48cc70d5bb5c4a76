"""The drop-in for optax: its stored answers, its quirks and what turns them off, a client that is trained with it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.testing import assert_close

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

import jax_client  # noqa: E402
import pathsum.jax  # noqa: E402
from pathsum import compat  # noqa: E402
from pathsum.compat.optax import ctc_loss, ctc_loss_with_forward_probs  # noqa: E402

# These programs run once, on next to nothing: it is their compilation that takes the time.
jax.config.update("jax_disable_most_optimizations", True)

VECTORS = json.loads((Path(__file__).parent / "vectors" / "optax.json").read_text())["vectors"]
CASES = {"ragged": 0, "peaky": 1, "infeasible": 2, "gaps": 3, "labels": 4, "log_epsilon": 5, "beyond": 6}


def arguments_of(vector):
    names = {"logits": float, "logit_paddings": float, "labels": int, "label_paddings": float}
    return [jnp.asarray(np.asarray(vector[name], dtype), jnp.float32 if dtype is float else None)
            for name, dtype in names.items()]  # fmt: skip


def options_of(vector):
    return vector["options"]


def rounding_of(vector):
    """What a loss of the peer's may be off by: its float32 logarithms are at least of the size of log_epsilon's."""
    return 4 * np.finfo(np.float32).eps * max(10, np.abs(vector["losses"]).max())


@pytest.mark.parametrize("impl", ["numba", "jax"])
@pytest.mark.parametrize("name", CASES)
def test_the_peers_losses_and_gradients(name, impl):
    vector = VECTORS[CASES[name]]
    logits, *rest = arguments_of(vector)

    def losses(logits):
        return ctc_loss(logits, *rest, **options_of(vector), impl=impl)

    found, pull = jax.vjp(losses, logits)
    assert_close(found, vector["losses"], absolute=rounding_of(vector), what="losses")
    # Where no target fits the peer's gradient is made of differences of logarithms of 1e5, 8e-3 apart in float32.
    bound = {"infeasible": 8e-3}.get(name, 2e-6)
    assert_close(pull(jnp.ones_like(found))[0], vector["gradient"], absolute=bound, what="gradient")


@pytest.mark.parametrize("name", CASES)
def test_the_peers_forward_probabilities(name):
    vector = VECTORS[CASES[name]]
    losses, blanks, labels = ctc_loss_with_forward_probs(*arguments_of(vector), **options_of(vector))
    for own, key in ((losses, "losses"), (blanks, "forward_blanks"), (labels, "forward_labels")):
        expected = np.asarray(vector[key])
        assert own.shape == expected.shape
        assert_close(own, expected, relative=4 * np.finfo(np.float32).eps, absolute=1e-5, what=key)


def test_losses_beyond_log_epsilon_where_corrected():
    logits, _, labels, label_paddings = arguments_of(VECTORS[CASES["beyond"]])
    found = ctc_loss(logits, jnp.zeros(logits.shape[:2]), labels, label_paddings, corrected=True)
    assert_close(found, pathsum.jax.ctc_loss(logits, labels, None, [2, 1]), relative=0)
    assert (found > 1.2e5).all()


def test_what_is_impossible_where_corrected():
    logits, frame_paddings, *labels = arguments_of(VECTORS[CASES["infeasible"]])

    def losses(logits):
        return ctc_loss(logits, frame_paddings, *labels, corrected=True)

    found, pull = jax.vjp(losses, logits)
    assert np.isposinf(found).all()
    # An infinite upstream gradient, as functions of an infinite loss have, meets a gradient of exactly 0.
    assert not pull(jnp.full(3, jnp.inf))[0].any()

    _, blanks, ends = ctc_loss_with_forward_probs(logits, frame_paddings, *labels, corrected=True)
    assert np.isneginf(blanks[0, :, 1:]).all()
    assert np.isneginf(ends[0, :, 1:]).all()

    def possible(logits):
        forward = ctc_loss_with_forward_probs(logits, frame_paddings, *labels, corrected=True)[1]
        return jnp.where(jnp.isfinite(forward), forward, 0).sum()

    assert np.isfinite(jax.grad(possible)(logits)).all()


def test_bad_labels_where_corrected():
    found = ctc_loss(*arguments_of(VECTORS[CASES["labels"]]), corrected=True)
    assert np.isnan(found).all()


def test_padding_between_frames_where_corrected():
    logits, paddings, labels, label_paddings = arguments_of(VECTORS[CASES["gaps"]])

    def losses(logits):
        return ctc_loss(logits, paddings, labels, label_paddings, corrected=True)

    found, pull = jax.vjp(losses, logits.at[0, 1].set(jnp.nan))
    gradient = pull(jnp.ones(2))[0]
    for n, length in enumerate((3, 1)):
        kept = np.flatnonzero(np.asarray(paddings[n]) == 0)

        def alone(frames, n=n, length=length):
            return pathsum.jax.ctc_loss(frames[None], labels[n : n + 1], None, [length])[0]

        value, expected = jax.value_and_grad(alone)(logits[n, kept])
        assert_close(found[n], value, relative=1e-6)
        assert_close(gradient[n, kept], expected, absolute=1e-6)
        assert not np.delete(gradient[n], kept, 0).any()


def test_second_derivatives_are_those_of_the_forward_probabilities(x64):
    # One sample by the kernels; others whose target does not fit, whose frames have a gap, whose label is out of range.
    labels, lengths = np.array([[1, 2], [1, 1], [2, 1], [1, 5]]), np.array([2, 2, 1, 2])
    paddings = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]])
    rest = paddings, labels, np.arange(2) >= lengths[:, None]

    def losses(logits):
        return ctc_loss(logits, *rest, impl="jax").sum()

    def by_forward_probs(logits):
        blanks = ctc_loss_with_forward_probs(logits, *rest)[1]
        return -blanks[-1, jnp.arange(4), lengths].sum()

    logits = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3, 3)))
    own, expected = (
        jax.jit(lambda logits, f=f: (f(logits), jax.grad(f)(logits), jax.hessian(f)(logits)))(logits)
        for f in (losses, by_forward_probs)
    )
    for found, other in zip(own, expected, strict=True):
        # The logarithms are of the size of 1e5.
        assert_close(found, other, absolute=1e-9)


def test_vmap_is_a_loop():
    # Paddings of two kinds, with one of which the target does not fit.
    logits, paddings, labels, label_paddings = arguments_of(VECTORS[CASES["ragged"]])
    paddings = jnp.stack([paddings, paddings.at[:, 1:].set(1)])

    def gradients(paddings):
        return jax.value_and_grad(lambda logits: ctc_loss(logits, paddings, labels, label_paddings).sum())(logits)

    for own, other in zip(
        jax.jit(jax.vmap(gradients))(paddings), zip(*map(gradients, paddings), strict=True), strict=True
    ):
        assert_close(own, jnp.stack(other), relative=1e-6, absolute=2e-6)


@pytest.mark.parametrize("corrected", [False, True])
def test_no_dtype_is_promoted_unasked(corrected):
    logits, *rest = arguments_of(VECTORS[CASES["ragged"]])

    def losses(logits):
        return sum(part.sum() for part in ctc_loss_with_forward_probs(logits, *rest, corrected=corrected))

    with jax.numpy_dtype_promotion("strict"):
        for dtype in (jnp.float32, jnp.bfloat16):
            assert jax.eval_shape(jax.hessian(losses), logits.astype(dtype)).dtype == dtype


def test_what_the_peer_takes():
    logits = jnp.zeros((1, 4, 3))
    expected = ctc_loss(logits, jnp.zeros((1, 4)), jnp.array([[1]]), jnp.zeros((1, 1)))
    others = (
        (np.zeros((1, 4, 3)), np.zeros((1, 4), bool), [[1]], [[False]]),
        (logits.astype(jnp.bfloat16), [[0] * 4], jnp.array([[1.0]]), np.zeros((1, 1), np.int8)),
        (jnp.zeros((1, 6, 3)), [[0, 0, 0, 0, 1, 1]], [[1, 1, 2]], [[0, 1, 1]]),
    )
    for arguments in others:
        assert_close(ctc_loss(*arguments), expected, relative=1e-6)
        assert ctc_loss(*arguments).dtype == jnp.float32
    none = jnp.zeros((1, 0)), jnp.array([[1, 2]])
    assert_close(ctc_loss(jnp.zeros((1, 0, 3)), *none, jnp.ones((1, 2))), [0.0])
    assert_close(ctc_loss(jnp.zeros((1, 0, 3)), *none, jnp.zeros((1, 2)), corrected=True), [np.inf])
    assert ctc_loss(jnp.zeros((0, 4, 3)), jnp.zeros((0, 4)), jnp.zeros((0, 2)), jnp.zeros((0, 2))).shape == (0,)
    for arguments in ((logits, [[0] * 4], np.zeros((1, 0)), np.zeros((1, 0))), (jnp.zeros((1, 0, 3)), *none, [[1, 1]])):
        _, blanks, labels = ctc_loss_with_forward_probs(*arguments)
        assert (len(blanks), len(labels)) == (arguments[0].shape[1],) * 2


@pytest.mark.parametrize("arguments, options, error, message", [
    (((1, 4), (1, 4), (1, 1), (1, 1)), {}, InvalidValueError, r"logits must have shape \(N, T, C\)"),
    (((1, 4, 3), (1, 3), (1, 1), (1, 1)), {}, InvalidValueError, r"logit_paddings must have shape \(1, 4\)"),
    (((1, 4, 3), (1, 4), (2, 1), (2, 1)), {}, InvalidValueError, r"labels must have shape \(N, S\) with N = 1"),
    (((1, 4, 3), (1, 4), (1, 2), (1, 1)), {}, InvalidValueError, r"label_paddings must have shape \(1, 2\)"),
    (((1, 4, 3), (1, 4), (1, 1), (1, 1)), {"blank_id": 3}, InvalidValueError, r"blank_id must lie in \[-C, C\)"),
    (((1, 4, 3), (1, 4), (1, 1), (1, 1)), {"impl": "torch"}, InvalidValueError, "auto, numba, triton, jax"),
])  # fmt: skip
def test_errors_name_the_rule(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ctc_loss(*map(np.zeros, arguments), **options)


def test_integers_are_no_logits():
    with pytest.raises(InvalidTypeError, match="ctc_loss: logits must be floats"):
        ctc_loss(np.zeros((1, 4, 3), int), np.zeros((1, 4)), [[1]], [[0]])


@pytest.mark.parametrize("function", [ctc_loss, lambda *arguments: ctc_loss_with_forward_probs(*arguments)[0]])
def test_a_client_is_trained_as_with_the_peer(function):
    own = jax_client.train(function)
    assert_close(own, VECTORS[-1]["losses"], relative=1e-5)
    assert own[-1] < own[0]


def test_it_is_installed_in_the_peers_place():
    with compat.install("optax"):
        import optax

        assert optax.ctc_loss is optax.losses.ctc_loss is ctc_loss
        assert optax.losses.ctc_loss_with_forward_probs is ctc_loss_with_forward_probs
    assert sys.modules.get("optax") is not optax or optax.ctc_loss is not ctc_loss
