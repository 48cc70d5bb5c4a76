"""The losses for JAX: both implementations against the float64 reference in torch, and against optax's answers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import pathsum.torch
from offsets import CASES, alike
from pathsum.errors import ImplementationError, InvalidTypeError, InvalidValueError, NotDifferentiableError
from pathsum.kernels.numba import small
from pathsum.kernels.numba.parallel import worthwhile
from pathsum.kernels.numba.xla import PYTHON
from pathsum.problems.ctc import pose_ctc
from pathsum.problems.rnnt import pose_rnnt
from pathsum.problems.simple_ctc import pose_simple_ctc
from pathsum.testing import assert_close, chain_inputs, grid_inputs, sum_over_paths
from support import solve, tensor

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

import pathsum.jax  # noqa: E402
from jax_problems import (  # noqa: E402
    CHAINS,
    IMPLEMENTATIONS,
    LOSSES,
    differentiated,
    expected,
    function_of,
    hard_batch,
    problem,
    reference_of,
)
from pathsum.jax import asg_loss, ctc_loss, rnnt_loss  # noqa: E402


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


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_no_frames_at_all(impl):
    empty = {"impl": impl, "target_lengths": [0, 1]}
    targets = [[1], [1]]
    for loss in CHAINS.values():
        assert loss(jnp.zeros((2, 0, 3)), targets, **empty).tolist() == [0.0, np.inf]
    assert asg_loss(jnp.zeros((2, 0, 3)), targets, jnp.zeros((3, 3)), **empty).tolist() == [0.0, np.inf]
    assert rnnt_loss(jnp.zeros((2, 0, 2, 3)), targets, **empty).tolist() == [np.inf, np.inf]
    assert ctc_loss(jnp.zeros((0, 4, 3)), np.zeros((0, 2), int), impl=impl).shape == (0,)


# No sample, no frame, no label, of all or of one; the second has a label and no frame.
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("sizes, input_lengths, target_lengths", [
    ((0, 4, 2), [], []), ((2, 0, 2), [0, 0], [0, 1]), ((4, 4, 2), [0, 0, 4, 4], [0, 1, 0, 2]),
])  # fmt: skip
def test_where_there_is_nothing_to_count(name, impl, sizes, input_lengths, target_lengths, x64):
    samples, frames, labels = sizes
    random = np.random.default_rng(0)
    scores = [random.standard_normal((samples, frames, labels + 1, 5) if name == "rnnt" else (samples, frames, 5))]
    scores += [random.standard_normal((5, 5))] * (name == "asg")
    integers = np.tile([1, 2], (samples, 1)), np.array(input_lengths, int), np.array(target_lengths, int)
    function = function_of(name, integers, impl=impl)
    losses, gradients = differentiated(function, list(map(jnp.asarray, scores)), np.ones(samples))
    exact, exact_gradients = expected(name, scores, integers, np.ones(samples))
    assert_close(losses, exact, absolute=1e-12)
    for own, other in zip(gradients, exact_gradients, strict=True):
        assert own.shape == other.shape
        assert_close(own, other, absolute=1e-12)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_undefined_is_nan_where_the_target_does_not_fit(wrong, impl):
    # Of the first sample a label's score, then another class's, then a transition's; the second has one frame.
    run = jax.jit(lambda *scores: differentiated(
        function_of("asg", ([[1, 2, 3]] * 2, [2, 1], [3, 3]), impl=impl, zero_infinity=True), scores, np.ones(2)
    ))  # fmt: skip
    for position, place in ((0, (0, 0, 1)), (0, (0, 1, 4)), (1, (2, 3))):
        scores = [np.zeros((2, 2, 5)), np.zeros((5, 5))]
        scores[position][place] = wrong
        losses, gradients = run(*map(jnp.asarray, scores))
        assert np.isnan(losses).tolist() == [True, False]
        assert np.isnan(gradients[0]).all((1, 2)).tolist() == [True, False]
        assert losses[1] == 0
        assert not np.asarray(gradients[0])[1].any()
        assert np.isnan(gradients[1]).all()


@pytest.mark.parametrize("position, value", [(1, 2**32 + 4), (2, 2**32 + 1), (0, 2**32 + 1), (0, -(2**63)), (1, 2**62)])
def test_integers_of_any_size_are_bounded_before_they_are_narrowed(position, value):
    # 32 bits would read these as 4 frames, 1 label and class 1. What is looked at is what is known while tracing.
    integers = [np.ones((3, 2), int), np.full(3, 4), np.full(3, 1)]
    integers[position][1] = value
    with pytest.raises(InvalidValueError, match="at sample 1"):
        ctc_loss(jnp.zeros((3, 4, 5)), *integers)
    if position == 0:
        losses = jax.jit(lambda lengths: ctc_loss(jnp.zeros((3, 4, 5)), *integers[:2], lengths))(jnp.full(3, 1))
        assert np.isnan(losses).tolist() == [False, True, False]
    else:
        with pytest.raises(InvalidValueError, match="at sample 1"):
            jax.jit(lambda targets: ctc_loss(jnp.zeros((3, 4, 5)), targets, *integers[1:]))(jnp.ones((3, 2), int))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint32"])
def test_integers_have_any_integer_dtype(dtype):
    """More frames and classes than 8 bits count, of which the lengths and labels that are used need fewer."""
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(2, 300, 300)), "float32")
    integers = [[[1, 120], [7, 7]], [100, 90], [2, 1]]
    wanted = ctc_loss(scores, *integers)
    given = [jnp.asarray(array, dtype) for array in integers]
    for run in (ctc_loss, jax.jit(ctc_loss)):
        assert (run(scores, *given) == wanted).all()
    given[1] = given[1].at[1].set(jnp.iinfo(dtype).max)  # of 32 bits without a sign it would be -1 frames
    assert np.isnan(jax.jit(ctc_loss)(scores, *given)).tolist() == [False, int(given[1][1]) > 300]
    wrong = [jnp.ones(array.shape, bool) for array in given]
    for position, name in enumerate(("targets", "logit_lengths", "target_lengths")):
        with pytest.raises(InvalidTypeError, match=f"^ctc_loss: {name} must have an integer dtype; got bool"):
            ctc_loss(scores, *(wrong[k] if k == position else array for k, array in enumerate(integers)))


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
    run = jax.jit(lambda scores: differentiated(function_of(name, integers, impl=impl), [scores], np.ones(3)))
    # Of the latter paths share a sum, far beyond what a float32 counts one by one.
    tied = 1e7 * np.random.default_rng(0).integers(-2, 1, scores[0].shape)
    for given in (scores[0] * 1e10, tied):
        given = given.astype(np.float32)
        losses, (gradient,) = run(jnp.asarray(given))
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
    (lambda: ctc_loss(jnp.zeros((1, 3, 2)), [[1.0]]), InvalidTypeError, "targets must have an integer dtype"),
    (lambda: ctc_loss(jnp.zeros((1, 3, 2)), [[2]]), InvalidValueError, r"targets must lie in \[0, C\).*sample 0"),
    (lambda: ctc_loss(jnp.zeros((1, 3, 2)), jnp.array([[0]])), InvalidValueError, "not contain the blank, 0"),
    (lambda: ctc_loss(jnp.zeros((1, 3, 2)), [[1]], [4]), InvalidValueError, r"logit_lengths must lie in \[0, T\]"),
    (lambda: ctc_loss(jnp.zeros((1, 3, 2)), [[1]], [3], [2]), InvalidValueError, "target_lengths must lie in"),
    (lambda: ctc_loss(jnp.zeros((1, 3, 2)), [[1]], [3, 3]), InvalidValueError, "one entry a sample"),
    (lambda: ctc_loss(jnp.zeros((1, 3, 2)), [[1]], blank=2), InvalidValueError, "blank must lie in"),
    (lambda: ctc_loss(jnp.zeros((1, 3, 2)), [[1]], reduction="avg"), InvalidValueError, "reduction must be one of"),
    (lambda: ctc_loss(jnp.zeros((1, 3, 2)), [[1]], impl="torch"), InvalidValueError, "auto, numba, triton, jax"),
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
    assert "numba in programs for the CPU" in dispatch.explain_program("jax", numba=True, no_triton=None)
    assert "cannot be called" in dispatch.explain_program("jax", numba=False, no_triton="nothing")


def test_the_program_for_the_cpu_calls_the_compiled_kernels_and_no_other():
    logits, targets = jnp.zeros((1, 3, 2)), jnp.array([[1]])
    programs = {impl: jax.jit(lambda x, y, impl=impl: ctc_loss(x, y, impl=impl)).lower(logits, targets).as_text()
                for impl in ("auto", "numba", "jax")}  # fmt: skip
    assert [name for name, program in programs.items() if "custom_call @pathsum(" in program] == ["auto", "numba"]
    assert ["while" in program for program in programs.values()] == [False, False, True]


@pytest.mark.parametrize("name", ["ctc", "simple_ctc", "rnnt"])
def test_small_batches_are_solved_without_python_and_get_its_bits(name, monkeypatch):
    from pathsum.jax._ops import chain, ffi, grid

    loss = getattr(pathsum.jax, f"{name}_loss")
    lattice, asked = "grid" if name == "rnnt" else "chain", []
    run, options = ffi._functions[lattice]
    monkeypatch.setitem(ffi._functions, lattice, (lambda *call: asked.append(call) or run(*call), options))
    # A repeated label, one that does not fit, and one of another length.
    shape = (3, 6, 4, 5) if name == "rnnt" else (3, 6, 5)
    scores = jax.random.normal(jax.random.key(0), (2, *shape))
    integers = [[1, 1, 2], [3, 2, 1], [1, 0, 0]], [6, 3 if name == "rnnt" else 2, 5], [3, 3, 1]
    options = {"blank": 4, "impl": "numba"}

    def solved(scores):
        return jax.vmap(jax.value_and_grad(lambda scores: loss(scores, *integers, **options).sum()))(scores)

    jax.block_until_ready(solved(scores))
    asked.clear()
    jax.clear_caches()
    compiled, alone = jax.block_until_ready((solved(scores), loss(scores[0], *integers, **options)))
    assert not asked
    monkeypatch.setattr(chain, "CHAINS", PYTHON)
    monkeypatch.setattr(grid, "GRIDS", PYTHON)
    jax.clear_caches()
    by_python = jax.block_until_ready((solved(scores), loss(scores[0], *integers, **options)))
    assert len(asked) == 2
    for ours, theirs in zip(jax.tree.leaves((compiled, alone)), jax.tree.leaves(by_python), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_pays_for_a_second_thread_is_left_to_python():
    assert [worthwhile(2, small.FOR_THREADS + more) for more in (-1, 0)] == [1, 2]


def test_what_fails_in_a_foreign_function_is_raised():
    from pathsum.jax._ops import ffi

    def fail(arguments, results, options):
        raise ValueError(f"told {int(options['number'])} of {arguments[0].tolist()}")

    ffi.register("failure", fail, "number")
    result = [jax.ShapeDtypeStruct((2,), jnp.float32)]
    with pytest.raises(Exception, match=r"told 7 of \[0, 1\]"):
        jax.block_until_ready(ffi.call("failure", result, "sequential", jnp.arange(2), number=7))


VECTORS = json.loads((Path(__file__).parent / "vectors" / "optax.json").read_text())["vectors"]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("vector", VECTORS[:2], ids=["ragged", "peaky"])
def test_optax_agrees_on_feasible_targets(vector, impl):
    lengths = [(1 - np.asarray(vector[name])).sum(1).astype(int) for name in ("logit_paddings", "label_paddings")]
    targets = np.asarray(vector["labels"])

    def function(logits):
        return ctc_loss(logits, targets, *lengths, blank=vector["blank"], impl=impl)

    losses, (gradient,) = differentiated(function, [jnp.asarray(vector["logits"], jnp.float32)], np.ones(len(targets)))
    assert_close(losses, vector["losses"], relative=1e-6, absolute=1e-6)
    assert_close(gradient, vector["gradient"], absolute=2e-6)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("name, fused", [("ctc", True), ("ctc", False), ("simple_ctc", False), ("asg", True),
                                         ("rnnt", True), ("rnnt", False)])  # fmt: skip
def test_what_all_paths_have_in_common_moves_nothing(name, fused, impl, x64):
    integers = (np.array([[1, 2]]), np.array([4]), np.array([2]))
    shapes = {"rnnt": [(1, 4, 3, 4)], "asg": [(1, 4, 4), (4, 4)]}.get(name, [(1, 4, 4)])
    options = {} if name == "asg" else {"fused_log_softmax": fused}
    function = function_of(name, integers, impl=impl, **options)
    run = jax.jit(lambda scores: differentiated(function, scores, np.ones(1)))
    for dtype, offset in CASES:
        pairs = [alike(shape, dtype, offset, seed) for seed, shape in enumerate(shapes)]
        (loss, gradients), (shifted, others) = (
            run([jnp.asarray(table) for table in tables]) for tables in zip(*pairs, strict=True)
        )
        bound = 1e-12 if dtype == "float64" else 1e-6
        if fused:
            assert_close(shifted, loss, relative=bound, what=f"loss at {offset}")
        for one, other in zip(gradients, others, strict=True):
            assert_close(other, one, absolute=bound, what=f"gradient at {offset}")


# In float32 alone, as JAX is by default: what a mantissa rounds off in each of a thousand frames.
@pytest.mark.parametrize("name", LOSSES)
def test_a_confident_model_has_a_small_loss_and_not_one_below_zero(name):
    # Runs of a label; for the transducer a blank in each frame of its only row.
    num_frames, num_labels = 2000, 0 if name == "rnnt" else 200
    labels = np.array([1 + i % 3 for i in range(num_labels)], int)
    logits = np.random.default_rng(0).normal(0, 0.25, (1, num_frames, 5)).astype(np.float32)
    logits[0, np.arange(num_frames), np.repeat(labels, 10) if num_labels else 4] += 17
    scores = [logits[:, :, None] if name == "rnnt" else logits]
    scores += [np.random.default_rng(1).normal(0, 1, (5, 5)).astype(np.float32)] if name == "asg" else []
    integers = labels[None], np.array([num_frames]), np.array([num_labels])
    exact = reference_of(name, integers, impl="numba")(*map(tensor, scores))
    losses = jax.jit(function_of(name, integers, impl="jax"))(*map(jnp.asarray, scores))
    assert losses >= 0
    assert_close(losses, exact, relative=1.2e-7, absolute=1e-7)
