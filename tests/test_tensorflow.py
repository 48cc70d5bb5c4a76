"""The losses for TensorFlow: both implementations against the float64 reference in torch, eagerly and in graphs."""

import os

import numpy as np
import pytest
import torch

import pathsum.torch
from offsets import alike
from pathsum.errors import ImplementationError, InvalidTypeError, InvalidValueError, NotDifferentiableError
from pathsum.kernels.numba import posing
from pathsum.problems.asg import pose_asg
from pathsum.problems.ctc import pose_ctc
from pathsum.problems.rnnt import pose_rnnt
from pathsum.problems.simple_ctc import pose_simple_ctc
from pathsum.testing import assert_close, chain_inputs, grid_inputs, sum_over_paths
from support import solve, tensor

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = pytest.importorskip("tensorflow")

from pathsum.tensorflow import asg_loss, classic_ctc_loss, ctc_loss, rnnt_loss, simple_ctc_loss  # noqa: E402
from pathsum.tensorflow._posing import Posable  # noqa: E402

IMPLEMENTATIONS = ("numba", "tensorflow")
CHAINS = {"ctc": ctc_loss, "simple_ctc": simple_ctc_loss}
LOSSES = (*CHAINS, "asg", "rnnt")
# In TensorFlow's operations the two chains are one program, which takes seconds to build with its second derivatives.
BUILT = [(name, impl) for impl in IMPLEMENTATIONS for name in LOSSES if (name, impl) != ("simple_ctc", "tensorflow")]

# Retraced on purpose: each of these functions runs once.
tf.get_logger().setLevel("ERROR")
pytestmark = pytest.mark.filterwarnings("ignore:.*equal neighbours")

# Of graphs that TensorFlow rewrites before it runs them, as it does for everybody. To rewrite takes longer than to run
# once, so that the other tests run graphs as they are built.
REWRITTEN = ("values_and_gradients", "long_chains", "long_transducers", "scores_of_any_size", "saved_models")


@pytest.fixture(autouse=True)
def graphs_as_they_are_built(request):
    rewritten = request.function.__name__.removeprefix("test_").startswith(REWRITTEN)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": not rewritten})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})


def problem(name, *, seed=0):
    """A small ragged batch of a loss: scores in float64, samples first, and integers."""
    if name == "rnnt":
        inputs = grid_inputs(3, 6, 3, 5, seed=seed)
        return [inputs.logits], inputs[1:]
    inputs = chain_inputs(8, 3, 5, 3, seed=seed)
    scores = [np.ascontiguousarray(inputs.logits.swapaxes(0, 1))]
    if name == "asg":
        scores.append(np.random.default_rng(seed).standard_normal((5, 5)))
    return scores, inputs[1:]


def function_of(name, integers, **options):
    """The losses as a function of the scores alone."""
    targets, logit_length, label_length = integers
    if name == "asg":
        return lambda inputs, transitions: asg_loss(targets, inputs, transitions, label_length, logit_length, **options)
    loss, blank = (rnnt_loss, -1) if name == "rnnt" else (CHAINS[name], 0)
    return lambda scores: loss(targets, scores, label_length, logit_length, blank, **options)


def reference_of(name, integers, **options):
    """The same in torch, in float64 by plain operations."""
    options = {"reduction": "none", "impl": "reference"} | options
    targets, *lengths = integers
    if name == "rnnt":
        return lambda scores: pathsum.torch.rnnt_loss(scores, targets, *lengths, **options)
    if name == "asg":
        return lambda inputs, transitions: pathsum.torch.asg_loss(
            inputs, targets, transitions, *lengths, batch_first=True, **options
        )
    loss = getattr(pathsum.torch, f"{name}_loss")
    options = {"fused_log_softmax": True} | options
    return lambda scores: loss(scores, targets, *lengths, batch_first=True, **options)


def expected(name, scores, integers, upstream, **options):
    """Losses of the reference, and the gradient of upstream times them."""
    scores = [tensor(array).requires_grad_() for array in scores]
    losses = reference_of(name, integers, **options)(*scores)
    losses.backward(tensor(upstream))
    return losses.detach().numpy(), [array.grad.numpy() for array in scores]


def differentiated(function, scores, upstream):
    """Losses, and the gradient of upstream times them."""
    with tf.GradientTape() as tape:
        tape.watch(scores)
        losses = function(*scores)
    return losses, tape.gradient(losses, scores, tf.cast(upstream, losses.dtype))


def in_graph(function, scores, upstream, **options):
    return tf.function(lambda scores: differentiated(function, scores, upstream), **options)(scores)


def product(function, scores, tangents):
    """The derivatives of <tangents, gradients of the losses' sum>."""
    with tf.GradientTape() as second:
        second.watch(scores)
        with tf.GradientTape() as first:
            first.watch(scores)
            losses = function(*scores)
        gradients = first.gradient(losses, scores)
    return second.gradient(gradients, scores, tangents)


def hessian(function, x, *, pfor=False):
    with tf.GradientTape(persistent=True) as second:
        second.watch(x)
        with tf.GradientTape() as first:
            first.watch(x)
            losses = function(x)
        gradient = first.gradient(losses, x)
    return second.jacobian(gradient, x, experimental_use_pfor=pfor)


@pytest.mark.parametrize("name, impl, run", [
    *((name, "numba", differentiated) for name in LOSSES),
    *((name, impl, in_graph) for name in LOSSES for impl in IMPLEMENTATIONS),
    ("ctc", "tensorflow", differentiated),
])  # fmt: skip
def test_values_and_gradients_are_those_of_the_reference(name, impl, run):
    scores, integers = problem(name)
    upstream = np.array([1.0, -0.5, 2.0])
    options = {"fused_log_softmax": False} if name == "simple_ctc" else {}
    for dtype, bound in (("float64", 1e-12), ("float32", 2e-6))[: 2 if impl == "numba" else 1]:
        given = [tf.constant(array, dtype) for array in scores]
        losses, gradients = run(function_of(name, integers, impl=impl, **options), given, upstream)
        exact, exact_gradients = expected(
            name, [np.array(array, float) for array in given], integers, upstream, **options
        )
        assert losses.dtype == dtype
        assert_close(losses, exact, relative=bound, absolute=bound, what=f"{dtype} loss")
        for gradient, exact_gradient in zip(gradients, exact_gradients, strict=True):
            assert gradient.dtype == dtype
            assert_close(gradient, exact_gradient, absolute=2 * bound, relative=bound, what=f"{dtype} gradient")


@pytest.mark.parametrize("name", LOSSES)
def test_programs_that_xla_compiles_are_tensorflows_own(name):
    scores, integers = problem(name)
    upstream = np.array([1.0, -0.5, 2.0])
    given = [tf.constant(array, tf.float32) for array in scores]
    losses, gradients = in_graph(function_of(name, integers), given, upstream, jit_compile=True)
    exact, exact_gradients = expected(name, [np.array(array, float) for array in given], integers, upstream)
    assert_close(losses, exact, relative=1e-6)
    for gradient, exact_gradient in zip(gradients, exact_gradients, strict=True):
        assert_close(gradient, exact_gradient, absolute=4e-6, relative=2e-6)


@pytest.mark.parametrize("dtype, eps", [("bfloat16", 2.0**-8), ("float16", 2.0**-11)])
@pytest.mark.parametrize("name, impl, run", [
    ("ctc", "numba", differentiated),
    ("rnnt", "numba", in_graph),
    ("asg", "numba", differentiated),
    ("ctc", "tensorflow", in_graph),
])  # fmt: skip
def test_half_precision_is_computed_in_float32(name, impl, run, dtype, eps):
    scores, integers = problem(name)
    given = [tf.cast(array, dtype) for array in scores]
    losses, gradients = run(function_of(name, integers, impl=impl), given, np.ones(3))
    exact, exact_gradients = expected(
        name, [tf.cast(array, tf.float64).numpy() for array in given], integers, np.ones(3)
    )
    assert losses.dtype == tf.float32
    assert_close(losses, exact, relative=1e-6, absolute=1e-6)
    for gradient, exact_gradient in zip(gradients, exact_gradients, strict=True):
        assert gradient.dtype == dtype
        assert_close(tf.cast(gradient, tf.float64), exact_gradient, relative=eps, absolute=4e-6)


@pytest.mark.parametrize("name, impl", [*((name, "numba") for name in LOSSES), ("ctc", "tensorflow")])
def test_hessians_are_those_of_the_reference(name, impl):
    scores, integers = problem(name, seed=1)
    position = len(scores) - 1  # ASG's by its transitions
    rest = [tf.constant(array) for array in scores[:position]]
    function = function_of(name, integers, impl=impl)
    x = tf.constant(scores[position])

    @tf.function
    def in_one_word(last):
        return tf.hessians(tf.reduce_sum(function(*rest, last)), last)[0]

    fixed = [tensor(array) for array in scores[:position]]
    reference = reference_of(name, integers, reduction="sum")
    exact = torch.autograd.functional.hessian(lambda last: reference(*fixed, last), tensor(scores[position]))
    assert_close(in_one_word(x), exact, absolute=1e-11)
    # Operations of TensorFlow's own take seconds to run one by one; they do so for a smaller one below.
    if impl == "numba":
        assert_close(hessian(lambda last: function(*rest, last), x), exact, absolute=1e-11)


# As TensorFlow runs its own graphs they are those of hard samples.
@pytest.mark.parametrize("impl, options", [("numba", {}), ("tensorflow", {"jit_compile": True})])
def test_products_in_graphs_are_those_of_the_reference(impl, options):
    # ASG has all there is: two lattices, and two arrays of scores.
    scores, integers = problem("asg", seed=1)
    random = np.random.default_rng(0)
    tangents = [random.standard_normal(array.shape) for array in scores]
    given, along = [tf.constant(array) for array in scores], [tf.constant(array) for array in tangents]
    products = tf.function(lambda scores: product(function_of("asg", integers, impl=impl), scores, along), **options)
    exact = torch.autograd.functional.hvp(
        reference_of("asg", integers, reduction="sum"), tuple(map(tensor, scores)), tuple(map(tensor, tangents))
    )[1]
    for own, other in zip(products(given), exact, strict=True):
        assert_close(own, other, absolute=1e-11)


def test_jacobians_of_each_sample_alone():
    scores, integers = problem("ctc", seed=1)
    function, x = function_of("ctc", integers), tf.constant(scores[0])
    for pfor in (False, True):
        with tf.GradientTape(persistent=True) as second:
            second.watch(x)
            with tf.GradientTape() as first:
                first.watch(x)
                losses = function(x)
            gradient = first.gradient(losses, x)
        blocks = second.batch_jacobian(gradient, x, experimental_use_pfor=pfor)
        whole = hessian(function, x)
        for n in range(3):
            assert_close(blocks[n], whole[n, :, :, n], absolute=1e-13)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_gradient_that_happens_to_be_zero_has_a_derivative(impl):
    # Of two frames, alike, either emits the label: the posterior is the softmax.
    x = tf.zeros([1, 2, 2], tf.float64)
    derivative = hessian(lambda x: simple_ctc_loss([[1]], x, impl=impl), x)
    block = np.array([[0.25, -0.25], [-0.25, 0.25]])
    assert_close(derivative[0, 0, :, 0, 1], block, absolute=1e-15)
    assert_close(derivative[0, 0, :, 0, 0], np.zeros((2, 2)), absolute=1e-15)


def test_third_derivatives_of_the_compiled_kernels_are_tensorflows():
    scores, integers = problem("ctc", seed=1)
    x, tangent = tf.constant(scores[0]), tf.constant(np.random.default_rng(0).standard_normal(scores[0].shape))

    def third(impl):
        with tf.GradientTape() as tape:
            tape.watch([x, tangent])
            (moved,) = product(function_of("ctc", integers, impl=impl), [x], [tangent])
            squares = tf.reduce_sum(moved**2)
        return tape.gradient(squares, [x, tangent])

    for own, other in zip(third("numba"), third("tensorflow"), strict=True):
        assert_close(own, other, absolute=1e-11)


def test_forward_mode_is_right_or_raises():
    scores, integers = problem("ctc", seed=1)
    x, tangent = tf.constant(scores[0]), tf.constant(np.random.default_rng(0).standard_normal(scores[0].shape))
    function = function_of("ctc", integers)

    def slope(x):
        with tf.autodiff.ForwardAccumulator(x, tangent) as accumulator:
            losses = function(x)
        return accumulator.jvp(losses)

    (gradient,) = differentiated(function, [x], np.ones(3))[1]
    assert_close(slope(x), tf.reduce_sum(gradient * tangent, [1, 2]), absolute=1e-12)
    moved = differentiated(slope, [x], np.ones(3))[1]
    assert_close(moved[0], product(function, [x], [tangent])[0], absolute=1e-12)
    with pytest.raises(LookupError, match="no forward-mode derivative"):
        tf.function(slope, autograph=False)(x)
    with pytest.raises(NotDifferentiableError, match="a second GradientTape can"):
        with tf.autodiff.ForwardAccumulator(x, tangent):
            differentiated(function, [x], np.ones(3))


@pytest.mark.parametrize("name, pose", [("ctc", pose_ctc), ("simple_ctc", pose_simple_ctc), ("rnnt", pose_rnnt)])
def test_every_path_is_counted(name, pose):
    scores, integers = problem(name)
    log_probs = tf.nn.log_softmax(scores[0]).numpy()
    blank = 0 if name != "rnnt" else 4
    lattice = pose(np.maximum(integers[0], 0), *integers[1:], blank)
    function = function_of(name, integers, impl="tensorflow", fused_log_softmax=False)
    losses, (gradient,) = in_graph(function, [tf.constant(log_probs)], np.ones(3))
    for n in range(3):
        paths = sum_over_paths(log_probs[n], lattice, n)
        assert_close(losses[n], -paths.log_z, absolute=1e-12)
        assert_close(gradient[n], -paths.posteriors, absolute=1e-12)


@pytest.mark.parametrize("pose", [pose_ctc, pose_simple_ctc, pose_rnnt, pose_asg])
def test_problems_are_posed_alike_of_tensors(pose):
    arrays = [np.asarray(array, np.int64) for array in problem("ctc")[1]]
    posed, of_tensors = (pose(*integers, 4) for integers in (arrays, [Posable(tf.constant(a)) for a in arrays]))
    for own, other in zip(*((p if isinstance(p, tuple) else (p,)) for p in (of_tensors, posed)), strict=True):
        for name, value in vars(own).items():
            if isinstance(value, Posable):
                assert_close(value.tensor, getattr(other, name), what=name)
            else:
                assert value == getattr(other, name), name
    assert pose is pose_asg or sum(isinstance(value, Posable) for value in vars(of_tensors).values()) >= 4


def hard_batch(name):
    """Samples, one a line, whose answers are known; their padding is NaN."""
    nan, inf = np.nan, np.inf
    scores = np.random.default_rng(0).standard_normal((8, 4, 5)).astype(np.float32)
    targets = np.array([[1, 2, 3]] * 8)
    input_lengths, target_lengths = np.full(8, 4), np.full(8, 3)
    target_lengths[1] = 0  # an empty target
    input_lengths[2] = target_lengths[2] = 0  # no frames, no labels
    input_lengths[3] = 2  # does not fit
    scores[4, 1, 3 if name == "rnnt" else 4] = -inf  # no class of the target, nor the blank
    scores[5, 0, 2] = nan
    scores[6, 0, 3] = inf
    scores[7, 0] = -inf  # a frame without any class
    for n in range(8):
        scores[n, input_lengths[n] :] = nan
        targets[n, target_lengths[n] :] = -7
    if name == "rnnt":
        scores = np.repeat(scores[:, :, None], 4, 2)
        for n in range(8):
            scores[n, :, target_lengths[n] + 1 :] = nan
        targets[targets > 0] -= 1
    transitions = [np.zeros((5, 5), np.float32)] if name == "asg" else []
    return [scores, *transitions], (targets, input_lengths, target_lengths)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_hard_samples_have_their_answers_and_leave_the_others_alone(name, impl):
    scores, integers = hard_batch(name)
    given = [tf.constant(array) for array in scores]
    run = tf.function(lambda scores, upstream: differentiated(function_of(name, integers, impl=impl), scores, upstream))
    losses, gradients = run(given, tf.ones(8))
    exact, exact_gradients = expected(name, scores, integers, np.ones(8))
    assert_close(losses, exact, relative=1e-6, absolute=1e-6)
    infeasible = {"ctc": [3, 7], "simple_ctc": [3, 7], "asg": [1, 3, 7], "rnnt": [2, 7]}[name]
    assert np.flatnonzero(np.isinf(losses)).tolist() == infeasible
    assert np.flatnonzero(np.isnan(losses)).tolist() == [5, 6]
    sound = [n for n in range(8) if n not in (5, 6)]
    gradient = gradients[0].numpy()
    assert_close(gradient[sound], exact_gradients[0][sound], absolute=2e-6)
    assert not gradient[infeasible].any()
    for n in (5, 6):
        assert np.isnan(gradient[n, : integers[1][n]]).all()

    # An infinite upstream gradient, as functions of an infinite loss have, meets a gradient of exactly 0.
    assert not run(given, tf.fill([8], np.inf))[1][0].numpy()[infeasible].any()


@pytest.mark.parametrize("name, impl", BUILT)
def test_hard_samples_have_second_derivatives(name, impl):
    scores, integers = hard_batch(name)
    keep = [0, 1, 2, 3, 4, 7]
    scores[0] = scores[0][keep]
    integers = [array[keep] for array in integers]
    given = [tf.constant(array) for array in scores]
    along = [tf.ones_like(array) * tf.constant([1.0, 2.0, -1.0, 0.5, 0.0]) for array in given]
    products = tf.function(lambda scores: product(function_of(name, integers, impl=impl), scores, along))(given)
    tangents = tuple(tensor(array.numpy()) for array in along)
    exact = torch.autograd.functional.hvp(
        lambda *scores: reference_of(name, integers)(*scores).nan_to_num(posinf=0.0).sum(),
        tuple(map(tensor, scores)),
        tangents,
    )[1]
    for own, other in zip(products, exact, strict=True):
        assert_close(own, other, absolute=1e-5)


def test_infinity_is_made_zero_where_asked():
    scores, integers = hard_batch("ctc")
    losses = function_of("ctc", integers, zero_infinity=True)(tf.constant(scores[0])).numpy()
    assert not losses[[3, 7]].any()
    assert not np.isinf(losses).any()


@pytest.mark.parametrize("name, impl", [*((name, "numba") for name in LOSSES), ("rnnt", "tensorflow")])
def test_what_is_wrong_in_a_graph_is_nan_for_its_sample(name, impl):
    scores, integers = hard_batch(name)
    scores[0] = np.nan_to_num(scores[0], neginf=-1.0, posinf=1.0)
    targets, input_lengths, target_lengths = (array[:4].copy() for array in integers)
    input_lengths[:], target_lengths[:], targets[:] = 4, 2, 1
    targets[0, 1] = 5
    input_lengths[1] = 5
    target_lengths[2] = 4
    scores = [tf.constant(array[:4] if array.ndim > 2 else array) for array in scores]

    @tf.function
    def losses(scores, *integers):
        return function_of(name, integers, impl=impl)(*scores)

    values = losses(scores, *map(tf.constant, (targets, input_lengths, target_lengths))).numpy()
    assert np.isnan(values).tolist() == [True, True, True, False]
    assert np.isfinite(values[3])


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_sizes_that_are_known_when_the_graph_runs(impl):
    for name in ("ctc", "asg", "rnnt"):
        scores, integers = problem(name)
        given = [tf.constant(array) for array in scores]
        integers = [tf.constant(np.maximum(array, 0), tf.int32) for array in integers]
        unknown = [tf.TensorSpec([None] * array.ndim, tf.float64) for array in scores]
        lengths = [tf.TensorSpec([None], tf.int32)] * 2
        if name == "rnnt":
            unknown[0] = tf.TensorSpec([None, None, None, 5], tf.float64)  # its blank counts from the end

        @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32), *lengths, *unknown])
        def run(targets, logit_length, label_length, *scores, name=name):
            function = function_of(name, (targets, logit_length, label_length), impl=impl)
            return differentiated(function, scores, tf.ones(tf.shape(scores[0])[0]))

        losses, gradients = run(*integers, *given)
        exact, exact_gradients = expected(name, scores, integers, np.ones(3))
        assert_close(losses, exact, relative=1e-12)
        assert_close(gradients[0], exact_gradients[0], absolute=1e-12)
        if name == "ctc":
            losses, (gradient,) = run(tf.ones([2, 0], tf.int32), [0, 0], [0, 0], tf.zeros([2, 0, 5], tf.float64))
            assert not losses.numpy().any()
            assert gradient.shape == (2, 0, 5)


def unknown_sizes(name, **options):
    """The losses in a graph of which no size is known while it is built."""
    integers = [tf.TensorSpec([None, None], tf.int64), *[tf.TensorSpec([None], tf.int64)] * 2]
    scores = [tf.TensorSpec([None] * {"rnnt": 4}.get(name, 3)), *[tf.TensorSpec([None, None])] * (name == "asg")]

    def losses(targets, logit_length, label_length, *scores):
        if name == "rnnt":
            return rnnt_loss(targets, *scores, label_length, logit_length, 0, impl=options["impl"])
        return function_of(name, (targets, logit_length, label_length), impl=options["impl"])(*scores)

    return tf.function(losses, input_signature=[*integers, *scores], jit_compile=options.get("jit_compile"))


def fitting(name):
    """Integers and scores that fit one another: 3 samples, 4 frames, 2 labels, 5 classes."""
    integers = [np.ones((3, 2), int), np.full(3, 4), np.full(3, 2)]
    scores = [np.zeros((3, 4, 3, 5) if name == "rnnt" else (3, 4, 5), np.float32)]
    return [*integers, *scores, *[np.zeros((5, 5), np.float32)] * (name == "asg")]


# One sample would go with any number of them.
MISFITS = [("labels must", 0, (1, 2)), ("logit_length must", 1, (1,)), ("label_length must", 2, (4,))]
OWN_MISFITS = {
    "ctc": [("more than 0 classes", 3, (3, 4, 0))],
    "asg": [("transitions must", 4, (7, 7)), ("transitions must", 3, (3, 4, 0))],
    "rnnt": [("more than 0 classes", 3, (3, 4, 3, 0)), ("row for no label", 3, (3, 4, 0, 5))],
}


@pytest.mark.parametrize("name, impl", [("ctc", "numba"), ("asg", "numba"), ("rnnt", "numba"), ("ctc", "tensorflow")])
def test_integers_of_other_samples_than_the_logits_are_refused_in_graphs(name, impl):
    run = unknown_sizes(name, impl=impl)
    assert np.isfinite(run(*map(tf.constant, fitting(name)))).all()
    for message, position, shape in [*MISFITS, *OWN_MISFITS[name]]:
        given = fitting(name)
        given[position] = np.ones(shape, given[position].dtype)
        given = list(map(tf.constant, given))
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            run(*given)
        if position < 3:
            known = tf.function(lambda *given: function_of(name, given[:3], impl=impl)(*given[3:]))
            with pytest.raises(InvalidValueError, match="a sample, N = "):
                known.get_concrete_function(*given)


def test_integers_of_other_samples_than_the_logits_are_refused_by_xla():
    run = unknown_sizes("ctc", impl="tensorflow", jit_compile=True)
    given = fitting("ctc")
    given[1] = given[1][:1]
    with pytest.raises(tf.errors.InvalidArgumentError, match="reshape"):
        run(*map(tf.constant, given))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_integers_of_any_size_are_bounded_before_they_are_counted_with(name, impl):
    run = unknown_sizes(name, impl=impl)
    for position in range(3):
        for value in (2**62 + 1, 2**32 + 1, -(2**63)):
            given = fitting(name)
            given[position][1] = value
            assert np.isnan(run(*map(tf.constant, given))).tolist() == [False, True, False]
            with pytest.raises(InvalidValueError, match="at sample 1"):
                function_of(name, given[:3], impl=impl)(*given[3:])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint32"])
def test_integers_have_any_integer_dtype(dtype):
    """More frames and classes than 8 bits count, of which the lengths and labels that are used need fewer."""
    scores = tf.constant(np.random.default_rng(0).normal(size=(2, 300, 300)), tf.float32)
    integers = [[[1, 120], [7, 7]], [2, 1], [100, 90]]
    wanted = ctc_loss(integers[0], scores, *integers[1:])
    given = [tf.constant(array, dtype) for array in integers]
    for run in (ctc_loss, tf.function(ctc_loss)):
        assert (run(given[0], scores, *given[1:]).numpy() == wanted.numpy()).all()
    wrong = [tf.ones(array.shape, tf.bool) for array in given]
    for position, name in enumerate(("labels", "label_length", "logit_length")):
        labels, *lengths = (wrong[k] if k == position else array for k, array in enumerate(integers))
        with pytest.raises(InvalidTypeError, match=f"^ctc_loss: {name} must have an integer dtype; got bool"):
            ctc_loss(labels, scores, *lengths)
    for value in ("none", ["a"], [None], [np.inf, 1.0], object(), np.array([0, 1], "datetime64[s]")):
        with pytest.raises(InvalidTypeError, match=r"^ctc_loss: label_length must have an integer dtype"):
            ctc_loss(integers[0], scores, value)


def test_what_is_known_while_a_graph_is_built_is_checked_then():
    alone = tf.function(lambda labels: ctc_loss(labels, tf.zeros([1, 3, 2])))  # all lengths are known
    assert_close(tf.exp(alone(tf.constant([[1]]))), [8 / 6], relative=1e-6)
    run = tf.function(lambda labels: ctc_loss(labels, tf.zeros([1, 3, 2]), [1], [2**62 + 1]))
    with pytest.raises(InvalidValueError, match=r"logit_length must lie in \[0, T\].*at sample 0"):
        run.get_concrete_function(tf.constant([[1]]))
    with pytest.raises(InvalidTypeError, match="labels must have an integer dtype"):
        tf.function(lambda lengths: ctc_loss([[1.5]], tf.zeros([1, 3, 2]), lengths))(tf.constant([1]))


@pytest.mark.parametrize("impl, wrong", [("numba", np.nan), ("numba", np.inf), ("tensorflow", np.nan)])
def test_what_is_undefined_is_nan_where_the_label_does_not_fit(wrong, impl):
    # Of the first sample a label's score, of the second another class's, of the third a transition's: too few frames.
    for position, place in ((0, (0, 0, 1)), (0, (0, 1, 4)), (1, (2, 3))):
        scores = [np.zeros((2, 2, 5)), np.zeros((5, 5))]
        scores[position][place] = wrong
        function = function_of("asg", ([[1, 2, 3]] * 2, [2, 1], [3, 3]), impl=impl, zero_infinity=True)
        losses, gradients = in_graph(function, list(map(tf.constant, scores)), np.ones(2))
        assert np.isnan(losses).tolist() == [True, False]
        assert np.isnan(gradients[0]).all((1, 2)).tolist() == [True, False]
        assert losses[1] == 0
        assert not gradients[0][1].numpy().any()
        assert np.isnan(gradients[1]).all()


# No sample, no frame, no label, of all or of one; the second has a label and no frame.
NOTHING = {
    "no samples": ((0, 4, 2), [], []), "nothing at all": ((0, 0, 0), [], []), "no frames": ((2, 0, 2), [0, 0], [0, 1]),
    "no labels": ((2, 4, 0), [4, 3], [0, 0]),
    "one of each": ((4, 4, 2), [0, 0, 4, 4], [0, 1, 0, 2]),
}  # fmt: skip


def of_nothing(name, case):
    (samples, frames, labels), input_lengths, target_lengths = NOTHING[case]
    random = np.random.default_rng(0)
    scores = [random.standard_normal((samples, frames, labels + 1, 5) if name == "rnnt" else (samples, frames, 5))]
    scores += [random.standard_normal((5, 5))] * (name == "asg")
    integers = random.permuted(np.tile([1, 2], (samples, 1)), axis=1)[:, :labels], input_lengths, target_lengths
    return scores, tuple(np.array(array, int) for array in integers)


def sum_and_squares(gradients):
    return sum(gradient.sum() + (gradient**2).sum() for gradient in gradients)


@pytest.mark.parametrize("name, impl", BUILT)
def test_where_there_is_nothing_to_count(name, impl):
    def work(integers, *scores):
        with tf.GradientTape() as second:
            second.watch(scores)
            with tf.GradientTape() as first:
                first.watch(scores)
                losses = function_of(name, integers, impl=impl)(*scores)
            gradients = first.gradient(losses, scores)
            moved = tf.add_n([tf.reduce_sum(g) + tf.reduce_sum(g**2) for g in gradients])
        return losses, gradients, second.gradient(moved, scores)

    if impl == "tensorflow":
        # One graph of sizes that are known when it runs: to build one, or to run without, takes seconds a case.
        shapes = [None] * (3 if name == "rnnt" else 2) + [5], [5, 5]
        integers = tf.TensorSpec([None, None], tf.int64), *[tf.TensorSpec([None], tf.int64)] * 2
        specs = [tf.TensorSpec(shape, tf.float64) for shape in shapes[: 2 if name == "asg" else 1]]
        work = tf.function(work, input_signature=[integers, *specs])
    for case in NOTHING:
        scores, integers = of_nothing(name, case)
        losses, gradients, products = work(tuple(map(tf.constant, integers)), *map(tf.constant, scores))
        given = [tensor(array).requires_grad_() for array in scores]
        exact = reference_of(name, integers)(*given)
        exact_gradients = torch.autograd.grad(exact.sum(), given, create_graph=True, materialize_grads=True)
        moved = sum_and_squares(exact_gradients)
        exact_products = torch.autograd.grad(moved, given, materialize_grads=True) if moved.requires_grad else None
        assert_close(losses, exact.detach(), absolute=1e-12, what=case)
        for found, others in ((gradients, exact_gradients), (products, exact_products or map(torch.zeros_like, given))):
            for own, other in zip(found, others, strict=True):
                assert own.shape == other.shape
                assert_close(own, other.detach(), absolute=1e-11, what=case)


@pytest.mark.parametrize("name", ["ctc", "rnnt"])
def test_xla_compiles_programs_without_frames(name):
    scores, integers = of_nothing(name, "no frames")
    losses, (gradient,) = in_graph(function_of(name, integers), [tf.constant(scores[0])], np.ones(2), jit_compile=True)
    assert losses.numpy().tolist() == [np.inf if name == "rnnt" else 0.0, np.inf]
    assert gradient.shape == scores[0].shape


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_no_frames_and_no_samples(impl):
    empty, targets = {"label_length": [0, 1], "impl": impl}, [[1], [1]]
    for loss in CHAINS.values():
        assert loss(targets, tf.zeros([2, 0, 3]), **empty).numpy().tolist() == [0.0, np.inf]
    assert asg_loss(targets, tf.zeros([2, 0, 3]), tf.zeros([3, 3]), **empty).numpy().tolist() == [0.0, np.inf]
    assert rnnt_loss(targets, tf.zeros([2, 0, 2, 3]), **empty).numpy().tolist() == [np.inf, np.inf]
    assert ctc_loss(np.zeros((0, 2), int), tf.zeros([0, 4, 3]), impl=impl).shape == (0,)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_fastemit_and_clamp_are_those_of_torch(impl):
    scores, integers = problem("rnnt")
    for options in ({"fastemit_lambda": 0.3}, {"fastemit_lambda": 0.3, "clamp": 0.05}):
        function = function_of("rnnt", integers, impl=impl, **options)
        losses, (gradient,) = in_graph(function, [tf.constant(scores[0], tf.float32)], np.array([1.0, 2.0, 3.0]))
        exact, (exact_gradient,) = expected("rnnt", scores, integers, [1.0, 2.0, 3.0], **options)
        assert_close(losses, exact, relative=1e-6)
        assert_close(gradient, exact_gradient, absolute=2e-6)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("option", [{"fastemit_lambda": 0.3}, {"clamp": 0.05}])
def test_reweighted_gradients_have_no_derivative(option, impl):
    scores, integers = problem("rnnt")
    function = function_of("rnnt", integers, impl=impl, **option)
    given = [tf.constant(scores[0], tf.float32)]
    with pytest.raises(NotDifferentiableError, match="re-weighted"):
        tf.function(lambda scores: product(function, scores, scores)).get_concrete_function(given)


# Half a minute of audio, its logits near uniform and peaky, as a training's are first and last: the bounds that are
# documented. The number of frames decides, so the rest is small.
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_long_chains_keep_two_parts_in_a_million(impl):
    inputs = chain_inputs(3000, 2, 10, 20, ragged=False)
    scores = tensor(inputs.logits.swapaxes(0, 1) * np.array([1.0, 8.0])[:, None, None], torch.float32)
    exact = solve(pathsum.torch.ctc_loss, scores.double(), *inputs[1:], fused_log_softmax=True, batch_first=True)
    function = function_of("ctc", inputs[1:], impl=impl)
    losses, (gradient,) = in_graph(function, [tf.constant(scores.numpy())], np.ones(2))
    assert_close(losses, exact.loss, relative=1e-7, absolute=1e-6 * 3000**0.5)
    assert_close(gradient, exact.gradient, absolute=2e-6)


def test_long_transducers_keep_five_parts_in_a_million():
    inputs = grid_inputs(2, 1000, 20, 8, ragged=False)
    scores = tensor(inputs.logits * np.array([1.0, 8.0])[:, None, None, None], torch.float32)
    exact = solve(pathsum.torch.rnnt_loss, scores.double(), *inputs[1:])
    function = function_of("rnnt", inputs[1:], impl="tensorflow")
    losses, (gradient,) = in_graph(function, [tf.constant(scores.numpy())], np.ones(2))
    assert_close(losses, exact.loss, relative=1e-7, absolute=1e-6 * 1000**0.5)
    assert_close(gradient, exact.gradient, absolute=5e-6)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["ctc", "rnnt", "asg"])
def test_scores_of_any_size(name, impl):
    scores, integers = problem(name)
    given = [(array * 1e10).astype(np.float32) for array in scores]
    losses, gradients = in_graph(function_of(name, integers, impl=impl), list(map(tf.constant, given)), np.ones(3))
    exact, exact_gradients = expected(name, given, integers, np.ones(3))
    assert_close(losses, exact, relative=1e-6)
    for gradient, exact_gradient in zip(gradients, exact_gradients, strict=True):
        assert_close(gradient, exact_gradient, absolute=2e-6)


def test_integers_at_hand_are_posed_once(monkeypatch):
    posed, pose = [], posing.COMPILED[pose_ctc]
    monkeypatch.setitem(posing.COMPILED, pose_ctc, lambda *given: posed.append(given) or pose(*given))
    scores = tf.zeros([1, 3, 2])
    with tf.GradientTape() as outer, tf.GradientTape() as inner:
        outer.watch(scores)
        inner.watch(scores)
        losses = ctc_loss([[1]], scores, impl="numba")
        gradient = inner.gradient(losses, scores)
    outer.gradient(gradient, scores)
    assert len(posed) == 1
    assert_close(np.exp(-losses.numpy()), [6 / 8], relative=1e-6)  # labellings that read as the label


def test_a_second_gradient_is_the_first_once_more():
    scores, integers = problem("asg")
    given = [tf.constant(array, tf.float32) for array in scores]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(given)
        losses = function_of("asg", integers)(*given)
    first, second = (tape.gradient(losses, given) for _ in range(2))
    for own, other in zip(first, second, strict=True):
        assert (own.numpy() == other.numpy()).all()
    assert (given[0].numpy() == scores[0].astype(np.float32)).all()


@pytest.mark.parametrize("call, error, message", [
    (lambda: ctc_loss([[1]], tf.zeros([1, 3])), InvalidValueError, r"logits must have shape \(N, T, C\)"),
    (lambda: ctc_loss([[1]], tf.zeros([1, 3, 2], tf.int32)), InvalidTypeError, "logits must have dtype"),
    (lambda: ctc_loss([1], tf.zeros([1, 3, 2])), InvalidValueError, r"labels must have shape \(N, L\)"),
    (lambda: ctc_loss([[1.0]], tf.zeros([1, 3, 2])), InvalidTypeError, "labels must have an integer dtype"),
    (lambda: ctc_loss([[2]], tf.zeros([1, 3, 2])), InvalidValueError, r"labels must lie in \[0, C\).*sample 0"),
    (lambda: ctc_loss(tf.constant([[0]]), tf.zeros([1, 3, 2])), InvalidValueError, "not contain the blank, 0"),
    (lambda: ctc_loss([[1]], tf.zeros([1, 3, 2]), [1], [4]), InvalidValueError, r"logit_length must lie in \[0, T\]"),
    (lambda: ctc_loss([[1]], tf.zeros([1, 3, 2]), [2]), InvalidValueError, "label_length must lie .*width of labels"),
    (lambda: ctc_loss([[1]], tf.zeros([1, 3, 2]), [1, 1]), InvalidValueError, "one entry a sample"),
    (lambda: ctc_loss(tf.sparse.from_dense([[1]]), tf.zeros([1, 3, 2])), InvalidTypeError, "labels must be a dense"),
    (lambda: ctc_loss([[1], [1, 2]], tf.zeros([1, 3, 2])), InvalidValueError, "rectangular array"),
    (lambda: ctc_loss([[1]], tf.zeros([1, 3, 2]), blank_index=2), InvalidValueError, "blank_index must lie in"),
    (lambda: ctc_loss([[1]], tf.zeros([1, 3, 2]), blank_index=0.5), InvalidTypeError, "blank_index must be an int"),
    (lambda: ctc_loss([[1]], tf.zeros([1, 3, 2]), impl="torch"), InvalidValueError, "auto, numba, tensorflow"),
    (lambda: rnnt_loss([[1]], tf.zeros([1, 3, 1, 2])), InvalidValueError, "label_length must lie in"),
    (lambda: rnnt_loss([[1]], tf.zeros([1, 3, 2, 2]), fastemit_lambda=-1), InvalidValueError, "fastemit_lambda"),
    (lambda: asg_loss([[1]], tf.zeros([1, 3, 2]), tf.zeros([2])), InvalidValueError, "transitions must have shape"),
    (lambda: tf.function(ctc_loss)(tf.constant([[1]] * 2), tf.zeros([1, 3, 2])), InvalidValueError, "one row a sample"),
])  # fmt: skip
def test_errors_name_the_rule(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("run", [lambda function: function, tf.function])
def test_labels_may_be_ragged(run):
    scores, (_, lengths, _) = problem("ctc")
    rows = [[1], [], [2, 3, 3]]
    padded = np.array([[1, 0, 0], [0, 0, 0], [2, 3, 3]])
    losses = run(lambda labels: ctc_loss(labels, scores[0], None, lengths))(tf.ragged.constant(rows, tf.int32))
    assert_close(losses, ctc_loss(padded, scores[0], [1, 0, 3], lengths), relative=1e-15)


def test_the_blank_may_be_a_tensor_whose_value_is_known():
    logits = tf.random.stateless_normal([1, 3, 3], [0, 1])
    assert_close(ctc_loss([[0]], logits, blank_index=tf.constant(2)), ctc_loss([[0]], logits, blank_index=-1))
    with pytest.raises(InvalidTypeError, match="be known while the graph is built"):
        tf.function(lambda blank: ctc_loss([[0]], logits, blank_index=blank))(tf.constant(2))


def calls_back(concrete):
    graph = concrete.graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    return any("PyFunc" in node.op for node in nodes)


def test_graphs_call_the_compiled_kernels_where_they_can():
    logits, labels = tf.zeros([1, 3, 2]), tf.constant([[1]])

    def built(impl, **options):
        loss = tf.function(lambda x: ctc_loss(labels, x, impl=impl), **options)
        return calls_back(loss.get_concrete_function(logits))

    assert [built(impl) for impl in ("auto", "numba", "tensorflow")] == [True, True, False]
    assert not built("auto", jit_compile=True)
    with pytest.raises(ImplementationError, match="impl='numba' cannot be called"):
        built("numba", jit_compile=True)


def test_numba_is_not_for_other_devices():
    from pathsum.tensorflow import _placement

    def built(device):
        graph = tf.Graph()
        with graph.as_default(), tf.device(device):
            scores = tf.zeros([1, 3, 2])
            return _placement.device_type(scores)

    assert [built("/GPU:0"), built("/CPU:0"), built(None)] == ["gpu", "cpu", "cpu"]
    with tf.Graph().as_default(), tf.device("/GPU:0"), pytest.raises(ImplementationError, match="on gpu"):
        ctc_loss([[1]], tf.zeros([1, 3, 2]), impl="numba")


class Model(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None, None, None])])
    def loss(self, labels, logits):
        return ctc_loss(labels, logits)


def test_saved_models_need_nothing_of_pathsum(tmp_path):
    model = Model()
    expected = model.loss(tf.constant([[1]]), tf.zeros([1, 3, 2]))
    assert calls_back(model.loss.get_concrete_function())
    tf.saved_model.save(model, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    assert_close(loaded.loss(tf.constant([[1]]), tf.zeros([1, 3, 2])), expected, relative=1e-6)
    # Loading takes the first function that fits, and that is all it takes from this process.
    assert not calls_back(loaded.loss.concrete_functions[0])


@pytest.mark.peer
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_tensorflow_agrees_on_feasible_labels(impl):
    (scores,), (targets, lengths, target_lengths) = problem("ctc", seed=2)
    scores, targets = tf.constant(scores, tf.float32), np.maximum(targets, 0)

    def theirs(x):
        return tf.nn.ctc_loss(targets, x, target_lengths, lengths, logits_time_major=False, blank_index=0)

    losses, (gradient,) = differentiated(
        lambda x: classic_ctc_loss(targets, x, target_lengths, lengths, impl=impl), [scores], np.ones(3)
    )
    their_losses, (their_gradient,) = differentiated(theirs, [scores], np.ones(3))
    assert_close(losses, their_losses, relative=1e-5)
    assert_close(gradient, their_gradient, absolute=1e-5)


# Every loss at one offset, every offset with each lattice: what an offset does to a row does not depend on the loss.
@pytest.mark.parametrize("name, fused, dtype, offset", [
    *((*loss, "float64", 1e15) for loss in (("ctc", True), ("ctc", False), ("simple_ctc", False), ("asg", True),
                                            ("rnnt", True), ("rnnt", False))),
    *((*loss, *offset) for loss in (("ctc", True), ("asg", True), ("rnnt", False))
      for offset in (("float64", -1e17), ("float32", -1e7))),
])  # fmt: skip
def test_what_all_paths_have_in_common_moves_nothing(name, fused, dtype, offset):
    integers = (np.array([[1, 2]]), np.array([4]), np.array([2]))
    shapes = {"rnnt": [(1, 4, 3, 4)], "asg": [(1, 4, 4), (4, 4)]}.get(name, [(1, 4, 4)])
    options = {} if name == "asg" else {"fused_log_softmax": fused}
    function = function_of(name, integers, impl="tensorflow", **options)
    found = [
        differentiated(function, [tf.constant(table) for table in tables], np.ones(1))
        for tables in zip(*(alike(shape, dtype, offset, seed) for seed, shape in enumerate(shapes)), strict=True)
    ]
    bound = 1e-12 if dtype == "float64" else 1e-6
    (loss, gradients), (shifted, others) = found
    if fused:
        assert_close(shifted, loss, relative=bound)
    for one, other in zip(gradients, others, strict=True):
        assert_close(other, one, absolute=bound)


@pytest.mark.parametrize("name", ["ctc", "simple_ctc", "rnnt"])
def test_a_confident_model_has_a_small_loss_and_not_one_below_zero(name):
    # Runs of a label; for the transducer a blank in each frame of its only row.
    num_frames, num_labels = 200, 0 if name == "rnnt" else 20
    labels = np.array([1 + i % 3 for i in range(num_labels)], int)
    logits = np.zeros((1, num_frames, 5), np.float32)
    logits[0, np.arange(num_frames), np.repeat(labels, 10) if num_labels else 4] = 17
    logits = logits[:, :, None] if name == "rnnt" else logits
    integers = labels[None], np.array([num_frames]), np.array([num_labels])
    exact, _ = expected(name, [logits.astype(float)], integers, np.ones(1), impl="numba")
    function = function_of(name, integers, impl="tensorflow")

    @tf.function
    def focal(scores):
        with tf.GradientTape() as tape:
            tape.watch(scores)
            losses = function(scores)
            weighed = (1 - tf.exp(-tf.cast(losses, tf.float64))) ** 0.5 * tf.cast(losses, tf.float64)
        return losses, tape.gradient(weighed, scores)

    losses, gradient = focal(tf.constant(logits))
    assert losses.numpy() >= 0
    assert_close(losses, exact, relative=1.2e-7, absolute=1e-7)
    assert np.isfinite(gradient).all()
