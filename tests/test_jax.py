"""The losses for JAX: both implementations against the float64 reference in torch, under JAX's transformations."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pathsum.torch
from pathsum.errors import ImplementationError, InvalidTypeError, InvalidValueError, NotDifferentiableError
from pathsum.problems.ctc import pose_ctc
from pathsum.problems.rnnt import pose_rnnt
from pathsum.problems.simple_ctc import pose_simple_ctc
from pathsum.testing import assert_close, chain_inputs, grid_inputs, sum_over_paths
from support import solve, tensor

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

import pathsum.jax  # noqa: E402
from pathsum.jax import asg_loss, ctc_loss, rnnt_loss, simple_ctc_loss  # noqa: E402

# These programs run once, on next to nothing: it is their compilation that takes the time.
jax.config.update("jax_disable_most_optimizations", True)

IMPLEMENTATIONS = ("numba", "jax")
CHAINS = {"ctc": ctc_loss, "simple_ctc": simple_ctc_loss}
LOSSES = (*CHAINS, "asg", "rnnt")


@pytest.fixture
def x64():
    """64-bit numbers, which JAX has only where told to."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


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
    targets, *lengths = integers
    if name == "asg":
        return lambda inputs, transitions: asg_loss(inputs, targets, transitions, *lengths, **options)
    loss = rnnt_loss if name == "rnnt" else CHAINS[name]
    return lambda scores: loss(scores, targets, *lengths, **options)


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
    losses, pull = jax.vjp(jax.jit(function), *scores)
    return losses, pull(jnp.asarray(upstream, losses.dtype))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.filterwarnings("ignore:.*equal neighbours")
def test_values_and_gradients_are_those_of_the_reference(name, impl, x64):
    scores, integers = problem(name)
    upstream = np.array([1.0, -0.5, 2.0])
    options = {"fused_log_softmax": False} if name == "simple_ctc" else {}
    for dtype, bound in (("float64", 1e-12), ("float32", 2e-6))[: 2 if impl == "numba" else 1]:
        given = [jnp.asarray(array, dtype) for array in scores]
        losses, gradients = differentiated(function_of(name, integers, impl=impl, **options), given, upstream)
        exact, exact_gradients = expected(
            name, [np.array(array, float) for array in given], integers, upstream, **options
        )
        assert losses.dtype == dtype
        assert_close(losses, exact, relative=bound, absolute=bound, what=f"{dtype} loss")
        for gradient, exact_gradient in zip(gradients, exact_gradients, strict=True):
            assert gradient.dtype == dtype
            assert_close(gradient, exact_gradient, absolute=2 * bound, relative=bound, what=f"{dtype} gradient")


@pytest.mark.parametrize("name, impl", [*((name, "numba") for name in LOSSES), ("ctc", "jax")])
@pytest.mark.filterwarnings("ignore:.*equal neighbours")
def test_half_precision_is_computed_in_float32(name, impl):
    scores, integers = problem(name)
    given = [jnp.asarray(array, jnp.bfloat16) for array in scores]
    losses, gradients = differentiated(function_of(name, integers, impl=impl), given, np.ones(3))
    exact, exact_gradients = expected(name, [np.array(array, float) for array in given], integers, np.ones(3))
    assert losses.dtype == jnp.float32
    assert_close(losses, exact, relative=1e-6, absolute=1e-6)
    for gradient, exact_gradient in zip(gradients, exact_gradients, strict=True):
        assert gradient.dtype == jnp.bfloat16
        assert_close(gradient, exact_gradient, relative=2.0**-8, absolute=4e-6)


# The second derivative is JAX's in both implementations.
@pytest.mark.parametrize("name, impl", [*((name, "jax") for name in LOSSES), ("ctc", "numba")])
@pytest.mark.filterwarnings("ignore:.*equal neighbours")
def test_hessians_are_those_of_the_reference(name, impl, x64):
    scores, integers = problem(name, seed=1)
    position = len(scores) - 1  # ASG's by its transitions
    rest = [jnp.asarray(array) for array in scores[:position]]
    function = function_of(name, integers, impl=impl, reduction="sum")
    hessian = jax.jit(jax.hessian(lambda last: function(*rest, last)))(jnp.asarray(scores[position]))

    fixed = [tensor(array) for array in scores[:position]]
    reference = reference_of(name, integers, reduction="sum")
    exact = torch.autograd.functional.hessian(lambda last: reference(*fixed, last), tensor(scores[position]))
    assert_close(hessian, exact, absolute=1e-11)


def test_derivatives_agree_whichever_way_they_are_taken(x64):
    scores, integers = problem("ctc")
    function = function_of("ctc", integers, reduction="sum")
    x = jnp.asarray(scores[0])
    direction = jnp.asarray(np.random.default_rng(0).standard_normal(x.shape))

    @jax.jit
    def derivatives(x):
        gradient = jax.grad(function)
        slopes = (gradient(x) * direction).sum(), jax.jvp(function, (x,), (direction,))[1]
        products = (
            jax.jvp(gradient, (x,), (direction,))[1],
            jax.grad(lambda x: (gradient(x) * direction).sum())(x),
            jax.grad(lambda x: jax.jvp(function, (x,), (direction,))[1])(x),
        )
        return slopes, products

    for first, *others in derivatives(x):
        for other in others:
            assert_close(other, first, absolute=1e-12)


def test_a_scan_over_the_loss_has_derivatives(x64):
    scores, integers = problem("ctc")
    x = jnp.asarray(scores[0])
    direction = jnp.ones_like(x).at[:, ::2].set(-1.0)

    def scanned(x, impl):
        function = function_of("ctc", integers, impl=impl, reduction="sum")
        return jax.lax.scan(lambda total, scale: (total + function(scale * x), None), 0.0, jnp.array([1.0, 0.5]))[0]

    def product(x, impl):
        return jax.jvp(jax.grad(lambda x: scanned(x, impl)), (x,), (direction,))[1]

    once = jax.grad(function_of("ctc", integers, reduction="sum"))
    expected = once(x) + 0.5 * once(0.5 * x)
    assert_close(jax.grad(lambda x: scanned(x, "numba"))(x), expected, absolute=1e-12)

    step = 1e-5
    slope = [once(scale * (x + sign * step * direction)) * scale for scale in (1, 0.5) for sign in (1, -1)]
    slope = (slope[0] - slope[1] + slope[2] - slope[3]) / (2 * step)
    assert_close(jax.jit(lambda x: product(x, "jax"))(x), slope, absolute=1e-8)
    # JAX forgets the rules of functions in a scan that it differentiates twice: an error, not a wrong number.
    with pytest.raises(ValueError, match="cannot be differentiated"):
        product(x, "numba")


@pytest.mark.parametrize("name, impl", [*((name, "numba") for name in LOSSES), ("ctc", "jax")])
def test_vmap_is_a_loop(name, impl):
    scores = [jnp.stack([jnp.asarray(problem(name, seed=s)[0][i], jnp.float32) for s in range(2)])
              for i in range(len(problem(name)[0]))]  # fmt: skip
    integers = [jnp.stack([jnp.asarray(np.asarray(problem(name, seed=s)[1][i])) for s in range(2)]) for i in range(3)]

    def gradients(scores, integers):
        return jax.value_and_grad(lambda scores: function_of(name, integers, impl=impl)(*scores).sum())(scores)

    mapped = jax.jit(jax.vmap(gradients))(scores, integers)
    one = jax.jit(gradients)
    for i in range(2):
        alone = one([array[i] for array in scores], [array[i] for array in integers])
        for own, other in zip(jax.tree.leaves(mapped), jax.tree.leaves(alone), strict=True):
            assert_close(own[i], other, absolute=2e-6)


@pytest.mark.parametrize("name, pose", [("ctc", pose_ctc), ("simple_ctc", pose_simple_ctc), ("rnnt", pose_rnnt)])
def test_every_path_is_counted(name, pose, x64):
    scores, integers = problem(name)
    log_probs = np.asarray(jax.nn.log_softmax(jnp.asarray(scores[0])))
    blank = 0 if name != "rnnt" else 4
    lattice = pose(np.maximum(integers[0], 0), *integers[1:], blank)
    losses, (gradient,) = differentiated(
        function_of(name, integers, impl="jax", fused_log_softmax=False), [jnp.asarray(log_probs)], np.ones(3)
    )
    for n in range(3):
        paths = sum_over_paths(log_probs[n], lattice, n)
        assert_close(losses[n], -paths.log_z, absolute=1e-12)
        assert_close(gradient[n], -paths.posteriors, absolute=1e-12)


def test_problems_are_posed_alike_while_being_traced():
    _, integers = problem("ctc")
    targets, *lengths = (jnp.asarray(array) for array in integers)
    for pose in (pose_ctc, pose_simple_ctc):
        posed = pose(np.asarray(targets), *map(np.asarray, lengths), 0)
        traced = jax.jit(lambda *arrays, pose=pose: {k: v for k, v in vars(pose(*arrays, 0)).items() if v is not None})
        for name, value in traced(targets, *lengths).items():
            assert_close(value, getattr(posed, name), what=name)


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
    function = function_of(name, integers, impl=impl)
    losses, pull = jax.vjp(jax.jit(function), *map(jnp.asarray, scores))
    gradients = pull(jnp.ones(8))
    exact, exact_gradients = expected(name, scores, integers, np.ones(8))
    assert_close(losses, exact, relative=1e-6, absolute=1e-6)
    infeasible = {"ctc": [3, 7], "simple_ctc": [3, 7], "asg": [1, 3, 7], "rnnt": [2, 7]}[name]
    assert np.flatnonzero(np.isinf(losses)).tolist() == infeasible
    assert np.flatnonzero(np.isnan(losses)).tolist() == [5, 6]
    sound = [n for n in range(8) if n not in (5, 6)]
    gradient = np.asarray(gradients[0])
    assert_close(gradient[sound], exact_gradients[0][sound], absolute=2e-6)
    assert not gradient[infeasible].any()
    for n in (5, 6):
        assert np.isnan(gradient[n, : integers[1][n]]).all()

    # An infinite upstream gradient, as functions of an infinite loss have, meets a gradient of exactly 0.
    assert not np.asarray(pull(jnp.full(8, np.inf))[0])[infeasible].any()


def test_infinity_is_made_zero_where_asked():
    scores, integers = hard_batch("ctc")
    losses = function_of("ctc", integers, zero_infinity=True)(jnp.asarray(scores[0]))
    assert not np.asarray(losses)[[3, 7]].any()
    assert not np.isinf(losses).any()


@pytest.mark.parametrize("name, impl", [*((name, "numba") for name in LOSSES), ("ctc", "jax")])
def test_what_is_wrong_while_tracing_is_nan_for_its_sample(name, impl):
    scores, integers = hard_batch(name)
    scores[0] = np.nan_to_num(scores[0], neginf=-1.0, posinf=1.0)
    targets, input_lengths, target_lengths = (array[:4].copy() for array in integers)
    input_lengths[:], target_lengths[:], targets[:] = 4, 2, 1
    targets[0, 1] = 5
    input_lengths[1] = 5
    target_lengths[2] = 4
    scores = [jnp.asarray(array[:4]) if array.ndim > 2 else jnp.asarray(array) for array in scores]

    def losses(scores, *integers):
        return function_of(name, integers, impl=impl)(*scores)

    values = jax.jit(losses)(scores, *map(jnp.asarray, (targets, input_lengths, target_lengths)))
    assert np.isnan(values).tolist() == [True, True, True, False]
    assert np.isfinite(values[3])


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_no_frames_at_all(impl):
    empty = {"impl": impl, "target_lengths": [0, 1]}
    targets = [[1], [1]]
    for loss in CHAINS.values():
        assert loss(jnp.zeros((2, 0, 3)), targets, **empty).tolist() == [0.0, np.inf]
    assert asg_loss(jnp.zeros((2, 0, 3)), targets, jnp.zeros((3, 3)), **empty).tolist() == [0.0, np.inf]
    assert rnnt_loss(jnp.zeros((2, 0, 2, 3)), targets, **empty).tolist() == [np.inf, np.inf]
    assert ctc_loss(jnp.zeros((0, 4, 3)), np.zeros((0, 2), int), impl=impl).shape == (0,)


def test_reductions_are_those_of_torch():
    scores, integers = problem("ctc")
    for reduction in ("none", "sum", "mean"):
        ours = function_of("ctc", integers, reduction=reduction)(jnp.asarray(scores[0], jnp.float32))
        assert_close(ours, reference_of("ctc", integers, reduction=reduction)(tensor(scores[0])), relative=1e-6)
    scores, integers = problem("rnnt")
    ours = function_of("rnnt", integers, reduction="mean")(jnp.asarray(scores[0], jnp.float32))
    assert_close(ours, reference_of("rnnt", integers, reduction="mean")(tensor(scores[0])), relative=1e-6)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_fastemit_and_clamp_are_those_of_torch(impl):
    scores, integers = problem("rnnt")
    for options in ({"fastemit_lambda": 0.3}, {"fastemit_lambda": 0.3, "clamp": 0.05}):
        function = function_of("rnnt", integers, impl=impl, **options)
        losses, (gradient,) = differentiated(function, [jnp.asarray(scores[0], jnp.float32)], np.array([1.0, 2.0, 3.0]))
        exact, (exact_gradient,) = expected("rnnt", scores, integers, [1.0, 2.0, 3.0], **options)
        assert_close(losses, exact, relative=1e-6)
        assert_close(gradient, exact_gradient, absolute=2e-6)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("option", [{"fastemit_lambda": 0.3}, {"clamp": 0.05}])
def test_reweighted_gradients_have_no_derivative(option, impl):
    scores, integers = problem("rnnt")
    function = function_of("rnnt", integers, impl=impl, reduction="sum", **option)
    with pytest.raises(NotDifferentiableError, match="re-weighted"):
        jax.eval_shape(jax.hessian(function), jnp.asarray(scores[0], jnp.float32))


# A minute and more of audio, its logits near uniform and peaky, as a training's are first and last: the bounds that are
# documented. The number of frames decides, so the rest is small.
def test_long_chains_keep_two_parts_in_a_million():
    inputs = chain_inputs(10000, 2, 10, 50, ragged=False)
    scores = tensor(inputs.logits.swapaxes(0, 1) * np.array([1.0, 8.0])[:, None, None], torch.float32)
    exact = solve(pathsum.torch.ctc_loss, scores.double(), *inputs[1:], fused_log_softmax=True, batch_first=True)
    function = function_of("ctc", inputs[1:], impl="jax")
    losses, (gradient,) = differentiated(function, [jnp.asarray(scores.numpy())], np.ones(2))
    assert_close(losses, exact.loss, relative=1e-7, absolute=1e-6 * 10000**0.5)
    assert_close(gradient, exact.gradient, absolute=2e-6)


def test_long_transducers_keep_five_parts_in_a_million():
    inputs = grid_inputs(2, 1500, 50, 8, ragged=False)
    scores = tensor(inputs.logits * np.array([1.0, 8.0])[:, None, None, None], torch.float32)
    exact = solve(pathsum.torch.rnnt_loss, scores.double(), *inputs[1:])
    function = function_of("rnnt", inputs[1:], impl="jax")
    losses, (gradient,) = differentiated(function, [jnp.asarray(scores.numpy())], np.ones(2))
    assert_close(losses, exact.loss, relative=1e-7, absolute=1e-6 * 1500**0.5)
    assert_close(gradient, exact.gradient, absolute=5e-6)
    error = np.asarray(gradient, np.float64) - exact.gradient.numpy()
    assert np.linalg.norm(error) <= 1e-5 * np.linalg.norm(exact.gradient)


def test_long_asg_keeps_two_parts_in_a_million():
    inputs = chain_inputs(3000, 1, 6, 100, ragged=False, repeats=0.0)
    scores = inputs.logits.swapaxes(0, 1).astype(np.float32)
    transitions = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
    function = function_of("asg", inputs[1:], impl="jax")
    losses, gradients = differentiated(function, [jnp.asarray(scores), jnp.asarray(transitions)], np.ones(1))
    exact = [tensor(array).requires_grad_() for array in (scores, transitions)]
    loss = reference_of("asg", inputs[1:], impl="numba")(*exact)
    loss.sum().backward()
    assert_close(losses, loss, relative=1e-7, absolute=1e-6 * 3000**0.5)
    assert_close(gradients[0], exact[0].grad, absolute=2e-6)
    # The bound is for each time that an arc is expected, of which the gradient is the difference of two.
    assert_close(gradients[1], exact[1].grad, absolute=2e-6, relative=2e-6)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["ctc", "rnnt"])
def test_scores_of_any_size(name, impl):
    scores, integers = problem(name)
    given = (scores[0] * 1e10).astype(np.float32)
    losses, (gradient,) = differentiated(function_of(name, integers, impl=impl), [jnp.asarray(given)], np.ones(3))
    exact, (exact_gradient,) = expected(name, [given], integers, np.ones(3))
    assert_close(losses, exact, relative=1e-6)
    assert_close(gradient, exact_gradient, absolute=2e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_same_bits_again(name):
    scores, integers = problem(name)
    function = function_of(name, integers, reduction="sum")
    given = [jnp.asarray(array, jnp.float32) for array in scores]
    first, second = (jax.value_and_grad(function)(*given) for _ in range(2))
    assert first[0] == second[0]
    assert (first[1] == second[1]).all()


@pytest.mark.parametrize("call, error, message", [
    (lambda: ctc_loss(jnp.zeros((1, 3)), [[1]]), InvalidValueError, r"logits must have shape \(N, T, C\)"),
    (lambda: ctc_loss(jnp.zeros((1, 3, 2), int), [[1]]), InvalidTypeError, "logits must have dtype"),
    (lambda: ctc_loss(jnp.zeros((1, 3, 2)), [1]), InvalidValueError, r"targets must have shape \(N, S\)"),
    (lambda: ctc_loss(jnp.zeros((1, 3, 2)), [[1.0]]), InvalidTypeError, "targets must have dtype int32 or int64"),
    (lambda: ctc_loss(jnp.zeros((1, 3, 2)), [[2]]), InvalidValueError, r"targets must lie in \[0, C\).*sample 0"),
    (lambda: ctc_loss(jnp.zeros((1, 3, 2)), jnp.array([[0]])), InvalidValueError, "not contain the blank, 0"),
    (lambda: ctc_loss(jnp.zeros((1, 3, 2)), [[1]], [4]), InvalidValueError, r"logit_lengths must lie in \[0, T\]"),
    (lambda: ctc_loss(jnp.zeros((1, 3, 2)), [[1]], [3], [2]), InvalidValueError, "target_lengths must lie in"),
    (lambda: ctc_loss(jnp.zeros((1, 3, 2)), [[1]], [3, 3]), InvalidValueError, "one entry a sample"),
    (lambda: ctc_loss(jnp.zeros((1, 3, 2)), [[1]], blank=2), InvalidValueError, "blank must lie in"),
    (lambda: ctc_loss(jnp.zeros((1, 3, 2)), [[1]], reduction="avg"), InvalidValueError, "reduction must be one of"),
    (lambda: ctc_loss(jnp.zeros((1, 3, 2)), [[1]], impl="torch"), InvalidValueError, "auto, numba, jax"),
    (lambda: rnnt_loss(jnp.zeros((1, 3, 1, 2)), [[0]]), InvalidValueError, "target_lengths must lie in"),
    (lambda: rnnt_loss(jnp.zeros((1, 3, 2, 2)), [[0]], fastemit_lambda=-1), InvalidValueError, "fastemit_lambda"),
    (lambda: asg_loss(jnp.zeros((1, 3, 2)), [[1]], jnp.zeros(2)), InvalidValueError, r"transitions must have shape"),
    (lambda: jax.jit(ctc_loss)(jnp.zeros((1, 3, 2)), jnp.array([[1], [1]])), InvalidValueError, "one row a sample"),
])  # fmt: skip
def test_errors_name_the_rule(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_numba_is_not_for_other_devices():
    from pathsum import dispatch

    assert dispatch.select_program("ctc_loss", "jax", "gpu", "auto", numba=True) == "auto"
    assert dispatch.select_program("ctc_loss", "jax", "cpu", "auto", numba=False) == "jax"
    for device, available in (("gpu", True), ("cpu", False)):
        with pytest.raises(ImplementationError, match="impl='numba'"):
            dispatch.select_program("ctc_loss", "jax", device, "numba", numba=available)
    assert "numba in programs for the CPU" in dispatch.explain_program("jax", numba=True)
    assert "cannot be called" in dispatch.explain_program("jax", numba=False)


def test_the_program_for_the_cpu_calls_the_compiled_kernels_and_no_other():
    logits, targets = jnp.zeros((1, 3, 2)), jnp.array([[1]])
    programs = {impl: jax.jit(lambda x, y, impl=impl: ctc_loss(x, y, impl=impl)).lower(logits, targets).as_text()
                for impl in ("auto", "numba", "jax")}  # fmt: skip
    assert [name for name, program in programs.items() if "pathsum_chain" in program] == ["auto", "numba"]
    assert ["while" in program for program in programs.values()] == [False, False, True]


def test_what_fails_in_a_foreign_function_is_raised():
    from pathsum.jax._ops import ffi

    def fail(arguments, results, attributes):
        raise ValueError(f"told {attributes['number']} of {arguments[0].tolist()}")

    ffi.register("pathsum_test_failure", fail)
    result = [jax.ShapeDtypeStruct((2,), jnp.float32)]
    with pytest.raises(Exception, match=r"told 7 of \[0, 1\]"):
        jax.block_until_ready(ffi.call("pathsum_test_failure", result, "sequential", jnp.arange(2), number=np.int32(7)))


@pytest.mark.peer
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_optax_agrees_on_feasible_targets(impl):
    optax = pytest.importorskip("optax")
    (scores,), (targets, lengths, target_lengths) = problem("ctc", seed=2)
    scores, targets = jnp.asarray(scores, jnp.float32), jnp.asarray(np.maximum(targets, 0))
    paddings = [jnp.asarray(np.arange(size) >= of[:, None], jnp.float32)
                for size, of in ((scores.shape[1], lengths), (targets.shape[1], target_lengths))]  # fmt: skip

    def theirs(x):
        return optax.ctc_loss(x, paddings[0], targets, paddings[1])

    losses, (gradient,) = differentiated(
        lambda x: ctc_loss(x, targets, lengths, target_lengths, impl=impl), [scores], np.ones(3)
    )
    their_losses, (their_gradient,) = differentiated(theirs, [scores], np.ones(3))
    assert_close(losses, their_losses, relative=1e-5)
    assert_close(gradient, their_gradient, absolute=1e-5)


def in_fresh_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env={"PYTHONPATH": ":".join(sys.path), "PATH": "", "JAX_PLATFORMS": "cpu"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_batches_divided_among_devices():
    code = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from pathsum.jax import asg_loss, ctc_loss
random = np.random.default_rng(0)
scores = jnp.asarray(random.normal(size=(4, 7, 5)), jnp.float32)
targets = jnp.asarray(random.integers(1, 5, (4, 3)))
table = jnp.asarray(random.normal(size=(5, 5)), jnp.float32)
mesh = Mesh(np.array(jax.devices()), ("batch",))
divided = [jax.device_put(array, NamedSharding(mesh, P("batch"))) for array in (scores, targets)]
for impl in ("numba", "jax"):
    def ctc(scores, targets):
        return jax.grad(lambda scores: ctc_loss(scores, targets, impl=impl).sum())(scores)
    def asg(scores, targets, table):
        return jax.grad(lambda *scores: asg_loss(scores[0], targets, scores[1], impl=impl).sum(), (0, 1))(scores, table)
    there = jax.shard_map(ctc, mesh=mesh, in_specs=P("batch"), out_specs=P("batch"))(*divided)
    np.testing.assert_allclose(there, ctc(scores, targets), atol=1e-6)
    np.testing.assert_allclose(jax.jit(ctc)(*divided), ctc(scores, targets), atol=1e-6)
    specs = {"in_specs": (P("batch"), P("batch"), P()), "out_specs": (P("batch"), P())}
    there = jax.shard_map(asg, mesh=mesh, **specs)(*divided, table)
    for own, other in zip(there, asg(scores, targets, table)):
        np.testing.assert_allclose(own, other, atol=1e-5)
print("ran")
"""
    assert in_fresh_process(code) == ["ran"]


def test_the_examples_of_the_documentation_run():
    page = Path(__file__).parent.parent / "docs" / "jax.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, str(page), "exec"), {})
