"""The drop-ins for tf_seq2seq_losses and Keras: the peers' published values, and the peers where they are."""

import os

import numpy as np
import pytest

from pathsum.testing import assert_close

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = pytest.importorskip("tensorflow")

from pathsum import compat  # noqa: E402
from pathsum.compat import tf_seq2seq_losses as ours  # noqa: E402

# The batch of the peer's README: the first label fits its frames in one way, the second in seven.
LABELS = tf.constant([[1, 2, 2, 1], [1, 2, 1, 0]], dtype=tf.int32)
LENGTHS = tf.constant([4, 3], dtype=tf.int32), tf.constant([5, 4], dtype=tf.int32)


def readme(loss):
    """The losses, their gradient and Hessian of the peer's README example."""
    logits = tf.zeros(shape=[2, 5, 3], dtype=tf.float32)
    with tf.GradientTape(persistent=True) as tape1:
        tape1.watch([logits])
        with tf.GradientTape() as tape2:
            tape2.watch([logits])
            losses = loss(labels=LABELS, logits=logits, label_length=LENGTHS[0], logit_length=LENGTHS[1], blank_index=0)
            total = tf.reduce_sum(losses)
        gradient = tape2.gradient(total, sources=logits)
    hessian = tape1.batch_jacobian(gradient, source=logits, experimental_use_pfor=False)
    return losses.numpy(), gradient.numpy(), hessian.numpy()


# What tf_seq2seq_losses 0.3.0 gives: losses, the second sample's gradient in its first frame, the rows of its Hessian
# there by the label's logit, and the sums of squares of both Hessians.
NUMBERS = {
    "classic_ctc_loss": (
        [5.493062, 2.448539],
        [0.190476, -0.523809, 0.333333],
        [
            [0.011338, 0.099773, -0.111111],
            [-0.020408, 0.102041, -0.081633],
            [-0.020408, -0.040816, 0.061224],
            [-0.020408, 0.020408, 0.0],
            [0.0, 0.0, 0.0],
        ],
        [1.111111, 0.646767],
    ),
    "simplified_ctc_loss": (
        [3.883624, 3.008155],
        [0.083333, -0.416667, 0.333333],
        [
            [0.076389, 0.034722, -0.111111],
            [-0.0625, 0.1875, -0.125],
            [-0.0625, -0.0625, 0.125],
            [-0.0625, 0.0625, 0.0],
            [0.0, 0.0, 0.0],
        ],
        [1.010844, 1.180556],
    ),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_the_example_of_second_derivatives_in_the_readme(name):
    losses, gradient, hessian = readme(getattr(ours, name))
    expected_losses, row, rows, squares = NUMBERS[name]
    assert hessian.shape == (2, 5, 3, 5, 3)
    assert_close(losses, np.array(expected_losses), absolute=1e-6)
    assert_close(gradient[1, 0], np.array(row), absolute=1e-6)
    assert_close(hessian[1, 0, 1], np.array(rows), absolute=1e-6)
    assert_close((hessian**2).sum((1, 2, 3, 4)), np.array(squares), absolute=2e-6)


def test_the_example_of_usage_in_the_readme():
    loss = ours.classic_ctc_loss(
        labels=tf.constant([[1, 2, 2, 1]], dtype=tf.int32),
        logits=tf.zeros(shape=[1, 5, 3], dtype=tf.float32),
        label_length=tf.constant([4], dtype=tf.int32),
        logit_length=tf.constant([5], dtype=tf.int32),
        blank_index=0,
    )
    assert_close(loss, np.array([5.493062]), absolute=1e-6)


def batch(num_samples=3, num_frames=5, num_labels=3, num_classes=4):
    random = np.random.default_rng(0)
    logits = random.standard_normal((num_samples, num_frames, num_classes))
    return {
        "labels": tf.constant(random.integers(1, num_classes, (num_samples, num_labels + 1)), tf.int32),
        "logprobas": tf.nn.log_softmax(tf.constant(logits, tf.float32)),
        "label_length": tf.constant(random.integers(0, num_labels + 1, num_samples), tf.int32),
        "logit_length": tf.constant(random.integers(2, num_frames + 1, num_samples), tf.int32),
        "blank_index": 0,
    }


def data_of(name):
    return getattr(ours, f"{name}CtcLossData")(**batch())


@pytest.mark.parametrize("name", ["Classic", "Simplified"])
def test_every_cut_of_the_data_carries_the_loss(name):
    data = data_of(name)
    states = tuple(range(2, len(data.alpha.shape)))
    masses = tf.reduce_logsumexp(data.alpha + data.beta, states)
    whole = np.broadcast_to(-data.loss.numpy()[:, None], masses.shape)
    assert_close(masses, whole, absolute=1e-5)
    # From the first state at the first time on, gamma is alpha.
    first = (slice(None), 0, 0, *[0] * (len(states) - 1))
    assert_close(data.gamma[first], data.alpha, absolute=1e-5)


@pytest.mark.parametrize("name", ["Classic", "Simplified"])
def test_gamma_joins_what_is_before_and_behind(name):
    data = data_of(name)
    axes = len(data.alpha.shape) - 2
    gamma, alpha = data.gamma.numpy(), data.alpha.numpy()
    for start in range(4):
        for end in range(start, 6):
            between = gamma[(slice(None), start)][(slice(None), *[slice(None)] * axes, end)]
            before = alpha[:, start].reshape(*alpha.shape[:1], *alpha.shape[2:], *[1] * axes)
            joined = tf.reduce_logsumexp(before + between, list(range(1, 1 + axes)))
            assert_close(joined, alpha[:, end], absolute=1e-5)
    assert np.isneginf(gamma[:, 1][(slice(None), *[slice(None)] * axes, 0)]).all()


@pytest.mark.parametrize("name", ["Classic", "Simplified"])
def test_derivatives_by_log_probabilities(name):
    data = data_of(name)
    real = tf.cast(tf.sequence_mask(batch()["logit_length"], 5), tf.float32)
    feasible = tf.cast(data.loss < np.inf, tf.float32)[:, None]
    assert_close(-tf.reduce_sum(data.gradient, 2), real * feasible, absolute=1e-6)
    assert_close(tf.exp(data.logarithmic_logproba_gradient), -data.gradient, absolute=1e-7)
    assert_close(tf.transpose(data.hessian, [0, 3, 4, 1, 2]), data.hessian, absolute=1e-6)
    # A path has one class a frame: along a frame's classes the gradient does not change.
    assert_close(tf.reduce_sum(data.hessian, 4), tf.zeros([3, 5, 4, 5]), absolute=1e-6)
    assert_close(data.gradient_fn(batch()["logprobas"]), data.gradient)


def test_no_frames():
    arguments = batch() | {"logprobas": tf.zeros([3, 0, 4]), "logit_length": tf.constant([2, 0, 1])}
    data = ours.ClassicCtcLossData(**arguments)
    assert data.alpha.shape == data.beta.shape == (3, 1, *data.alpha.shape[2:])
    assert np.isinf(data.loss.numpy()).tolist() == (arguments["label_length"].numpy() > 0).tolist()


@pytest.mark.peer
@pytest.mark.parametrize("name", ["Classic", "Simplified"])
def test_all_parts_are_the_peers(name):
    pytest.importorskip("tf_seq2seq_losses")
    import importlib

    peer = importlib.import_module(f"tf_seq2seq_losses.{name.lower()}_ctc_loss")
    own, other = data_of(name), getattr(peer, f"{name}CtcLossData")(**batch())
    parts = ("loss", "alpha", "beta", "gamma", "gradient", "logarithmic_logproba_gradient", "hessian")
    for part in parts:
        assert getattr(own, part).dtype == tf.float32
        assert_close(getattr(own, part), getattr(other, part), absolute=2e-6, what=part)


def test_a_peer_that_is_not_there_is_stood_in_for(monkeypatch):
    monkeypatch.setattr(compat, "_module", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "tf_seq2seq_losses", None)
    monkeypatch.delitem(__import__("sys").modules, "tf_seq2seq_losses")
    with compat.install("tf_seq2seq_losses"):
        from tf_seq2seq_losses.classic_ctc_loss import ClassicCtcLossData
        from tf_seq2seq_losses.tools import logit_to_logproba

        assert ClassicCtcLossData is ours.ClassicCtcLossData
        assert_close(logit_to_logproba(tf.zeros([1, 2]), 1), np.log([[0.5, 0.5]]), absolute=1e-7)


@pytest.fixture(scope="module")
def keras():
    return pytest.importorskip("keras")


def keras_batch():
    random = np.random.default_rng(0)
    labels = random.integers(1, 5, (8, 3))
    labels[3:, 2] = 0
    return random.standard_normal((8, 12, 6)).astype("float32"), labels


def trained(keras, loss, **options):
    """The losses of three epochs."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((12, 6)), keras.layers.Dense(5)])
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss=loss, **options)
    inputs, labels = keras_batch()
    return model.fit(inputs, labels, batch_size=4, epochs=3, shuffle=False, verbose=0).history["loss"]


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"jit_compile": False}, {}])
def test_a_keras_model_trains_as_with_its_own_loss(keras, options):
    from pathsum.compat.keras import CTC

    losses = trained(keras, CTC(), **options)
    assert losses[2] < losses[0]
    assert_close(np.array(losses), np.array(trained(keras, keras.losses.CTC(), **options)), relative=1e-5)


def test_keras_functions_have_their_values(keras):
    from pathsum.compat.keras import CTC, ctc, ctc_loss

    logits = np.random.default_rng(1).standard_normal((8, 12, 5)).astype("float32")
    labels = keras_batch()[1]
    assert_close(ctc(labels, logits), keras.losses.ctc(labels, logits), relative=1e-5)
    lengths = np.full(8, 2), np.full(8, 9)
    assert_close(ctc_loss(labels, logits, *lengths), keras.ops.ctc_loss(labels, logits, *lengths), relative=1e-5)
    for reduction in ("sum_over_batch_size", "sum", None):
        own, other = (loss(reduction=reduction)(labels, logits) for loss in (CTC, keras.losses.CTC))
        assert_close(own, other, relative=1e-5, what=str(reduction))
    half = ctc_loss(labels, logits.astype("float16"), *lengths)
    assert keras.backend.standardize_dtype(half.dtype) == "float32"


def test_keras_losses_are_saved_with_their_options(keras):
    from pathsum.compat.keras import CTC

    loss = keras.losses.deserialize(keras.losses.serialize(CTC(reduction="sum", zero_infinity=True, impl="tensorflow")))
    assert (loss.reduction, loss.zero_infinity, loss.impl) == ("sum", True, "tensorflow")
    assert float(loss(np.array([[1, 1]]), np.zeros((1, 2, 3), "float32"))) == 0.0
    assert np.isinf(float(CTC()(np.array([[1, 1]]), np.zeros((1, 2, 3), "float32"))))


@pytest.mark.parametrize("extension", ["keras", "h5"])
@pytest.mark.parametrize("name", ["CTC", "ctc"])
def test_a_saved_keras_model_is_loaded_with_its_loss(keras, tmp_path, extension, name):
    from pathsum.compat import keras as ours

    given = ours.CTC(zero_infinity=True) if name == "CTC" else ours.ctc
    model = keras.Sequential([keras.Input((12, 6)), keras.layers.Dense(5)])
    model.compile(optimizer="sgd", loss=given)
    inputs, labels = keras_batch()
    expected = model.evaluate(inputs, labels, verbose=0)
    model.save(tmp_path / f"model.{extension}")
    loaded = keras.models.load_model(tmp_path / f"model.{extension}")
    assert type(loaded.loss) is type(given)
    assert name == "ctc" or loaded.loss.zero_infinity
    assert_close(loaded.evaluate(inputs, labels, verbose=0), expected, relative=1e-6)


@pytest.mark.parametrize("name", ["ctc", "CTC"])
def test_keras_finds_the_installed_loss_by_its_name(keras, name):
    from pathsum.compat import install

    own = trained(keras, name, jit_compile=False)
    with install("keras"):
        assert type(keras.losses.get("CTC")).__module__ == keras.losses.get("ctc").__module__ == "pathsum.compat.keras"
        ours = trained(keras, name, jit_compile=False)
    assert_close(np.array(ours), np.array(own), relative=1e-5)
    assert keras.losses.get("ctc") is keras.losses.ctc
    assert keras.losses.ctc.__module__ != "pathsum.compat.keras"
