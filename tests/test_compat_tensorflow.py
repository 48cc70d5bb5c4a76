"""The drop-ins for tf_seq2seq_losses and Keras: the peers' published values, and the peers where they are."""

import itertools
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


NN_LOGITS = np.random.default_rng(2).standard_normal((6, 3, 5)).astype("float32")
# Repeats, an empty label, and a label of all frames but the blank between its equals.
NN_LABELS, NN_LENGTHS = np.array([[1, 1, 2], [0, 0, 0], [4, 3, 3]]), (np.array([3, 0, 3]), np.array([6, 4, 4]))


def of_blank(labels, blank):
    """The labels of NN_LABELS where the blank is another class than 0."""
    return np.where((labels > 0) & (labels <= blank), labels - 1, labels) if blank else labels


def sparse(labels, lengths):
    """A sparse tensor of the labels, in TensorFlow's order."""
    indices = [(n, k) for n in range(len(labels)) for k in range(lengths[n])]
    values = [labels[index] for index in indices]
    return tf.SparseTensor(indices, tf.constant(values, tf.int32), labels.shape)


def losses_by_enumeration(logits, labels, lengths, blank):
    """Losses (N,) of logits (N, T, C), in float64."""
    log_probs = tf.nn.log_softmax(logits.astype("float64")).numpy()
    losses = []
    for n, (label_length, logit_length) in enumerate(zip(*lengths, strict=True)):
        total = -np.inf
        for path in itertools.product(range(logits.shape[2]), repeat=int(logit_length)):
            merged = [label for label, _ in itertools.groupby(path) if label != blank]
            if merged == labels[n, :label_length].tolist():
                total = np.logaddexp(total, log_probs[n, range(int(logit_length)), path].sum())
        losses.append(-total)
    return np.array(losses)


@pytest.mark.parametrize("blank", [None, 0, 2, -1])
@pytest.mark.parametrize("time_major", [True, False])
def test_tf_nn_by_enumeration(blank, time_major):
    from pathsum.compat.tensorflow import ctc_loss

    lengths = NN_LENGTHS[0], np.array([5, 4, 4])
    labels = of_blank(NN_LABELS, (blank or 0) % 5)
    by_samples = NN_LOGITS.transpose(1, 0, 2)
    expected = losses_by_enumeration(by_samples, labels, lengths, (blank or 0) % 5)
    given = NN_LOGITS if time_major else by_samples
    assert_close(ctc_loss(labels, given, *lengths, time_major, None, blank), expected, relative=1e-6)
    if blank is not None:
        actual = ctc_loss(sparse(labels, lengths[0]), given, None, lengths[1], time_major, blank_index=blank)
        assert_close(actual, expected, relative=1e-6)


@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("blank", [None, 3, -1])
def test_tf_nn_is_the_peer_s_with_its_gradient(is_sparse, blank):
    from pathsum.compat import install
    from pathsum.compat.tensorflow import ctc_loss

    # With sparse labels the peer asks for the blank, and for a label at least.
    blank = blank or 0 if is_sparse else blank
    label_length = np.array([3, 1, 3]) if is_sparse else NN_LENGTHS[0]
    labels = of_blank(NN_LABELS, (blank or 0) % 5).astype("int32")
    labels[1] = 1
    arguments = {"logit_length": NN_LENGTHS[1].astype("int32"), "blank_index": blank}
    arguments |= {"labels": sparse(labels, label_length) if is_sparse else labels}
    arguments |= {"label_length": None if is_sparse else label_length.astype("int32")}

    def both(function):
        logits = tf.constant(NN_LOGITS)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            losses = function(logits=logits, **arguments)
        return losses, tape.gradient(losses, logits)

    theirs = both(tf.nn.ctc_loss)
    with install("tensorflow") as installation:
        assert installation.replaced == ["tensorflow.nn.ctc_loss"]
        assert tf.nn.ctc_loss is ctc_loss
        in_a_graph = tf.function(lambda: both(tf.nn.ctc_loss))
        for own in (both(tf.nn.ctc_loss), in_a_graph()):
            for actual, expected in zip(own, theirs, strict=True):
                assert_close(actual, expected, absolute=2e-5)


def test_tf_nn_s_dtypes_and_what_it_refuses():
    from pathsum.compat.tensorflow import ctc_loss

    for dtype in ("float16", "bfloat16", "float32", "float64"):
        losses = ctc_loss(NN_LABELS, tf.cast(NN_LOGITS, dtype), *NN_LENGTHS, impl="tensorflow")
        assert losses.dtype.name == dtype
        assert_close(losses, ctc_loss(NN_LABELS, NN_LOGITS, *NN_LENGTHS), relative=3e-2)
    unique = tf.nn.ctc_unique_labels(tf.constant(NN_LABELS))
    expected = ctc_loss(NN_LABELS, NN_LOGITS, *NN_LENGTHS)
    assert_close(ctc_loss(NN_LABELS, NN_LOGITS, *NN_LENGTHS, unique=unique), expected)
    with pytest.raises(ValueError, match="ctc_loss: blank_index must be given where labels are sparse; got None"):
        ctc_loss(sparse(NN_LABELS, NN_LENGTHS[0]), NN_LOGITS, None, NN_LENGTHS[1])
    # One frame too few.
    assert np.isinf(ctc_loss([[1, 1]], NN_LOGITS[:, :1], [2], [2])).all()


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


def test_keras_batch_cost_by_enumeration_and_by_its_peer(keras):
    from pathsum.compat import install
    from pathsum.compat.keras import ctc_batch_cost

    # The peer asks for a label at least.
    lengths = np.array([3, 1, 3]), np.array([5, 4, 4])
    probabilities = tf.nn.softmax(NN_LOGITS.transpose(1, 0, 2)).numpy()
    labels = of_blank(NN_LABELS, 4)
    arguments = labels.astype("float32"), probabilities, lengths[1][:, None], lengths[0][:, None]
    actual = ctc_batch_cost(*arguments)
    assert actual.shape == (3, 1)
    expected = losses_by_enumeration(np.log(probabilities + 1e-7), labels, lengths, 4)
    assert_close(actual[:, 0], expected, relative=1e-6)

    def both(function):
        given = tf.constant(probabilities)
        with tf.GradientTape() as tape:
            tape.watch(given)
            losses = function(arguments[0], given, *arguments[2:])
        return losses, tape.gradient(losses, given)

    theirs = both(tf.keras.backend.ctc_batch_cost)
    with install("keras"):
        assert keras.backend.ctc_batch_cost is tf.keras.backend.ctc_batch_cost is ctc_batch_cost
        for own, other in zip(both(tf.keras.backend.ctc_batch_cost), theirs, strict=True):
            assert_close(own, other, absolute=2e-5)
    assert not hasattr(keras.backend, "ctc_batch_cost")
