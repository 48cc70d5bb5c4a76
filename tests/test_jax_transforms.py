"""The losses for JAX under JAX's transformations: derivatives of any order, vmap, scans, tracing, several devices."""

import numpy as np
import pytest
import torch

from pathsum.problems.ctc import pose_ctc
from pathsum.problems.simple_ctc import pose_simple_ctc
from pathsum.testing import assert_close
from support import tensor

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

from jax_problems import (  # noqa: E402
    IMPLEMENTATIONS,
    LOSSES,
    function_of,
    hard_batch,
    in_fresh_process,
    problem,
    reference_of,
)
from pathsum.jax import simple_ctc_loss  # noqa: E402


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


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_gradient_that_happens_to_be_zero_has_a_derivative(impl, x64):
    # Of two frames, alike, either emits the label: the posterior is the softmax.
    x = jnp.zeros((1, 2, 2))
    derivative = jax.hessian(lambda x: simple_ctc_loss(x, [[1]], impl=impl).sum())(x)
    block = np.array([[0.25, -0.25], [-0.25, 0.25]])
    assert_close(derivative[0, 0, :, 0, 1], block, absolute=1e-15)
    assert_close(derivative[0, 0, :, 0, 0], np.zeros((2, 2)), absolute=1e-15)


@pytest.mark.parametrize("name", LOSSES)
def test_tangents_of_padding_go_nowhere(name):
    scores, integers = problem(name)
    given = [jnp.asarray(array, jnp.float32) for array in scores]
    function = function_of(name, integers)
    tangents = [jnp.ones_like(array) for array in given]
    expected = jax.jvp(function, given, tangents)[1]
    real = np.arange(given[0].shape[1]) < np.asarray(integers[1])[:, None]
    assert not real.all()
    spoilt = [tangents[0].at[~real].set(jnp.nan), *tangents[1:]]
    assert_close(jax.jvp(function, given, spoilt)[1], expected)


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


def test_problems_are_posed_alike_while_being_traced():
    _, integers = problem("ctc")
    targets, *lengths = (jnp.asarray(array) for array in integers)
    for pose in (pose_ctc, pose_simple_ctc):
        posed = pose(np.asarray(targets), *map(np.asarray, lengths), 0)
        traced = jax.jit(lambda *arrays, pose=pose: {k: v for k, v in vars(pose(*arrays, 0)).items() if v is not None})
        for name, value in traced(targets, *lengths).items():
            assert_close(value, getattr(posed, name), what=name)


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


@pytest.mark.parametrize("name, impl", [*((name, "numba") for name in LOSSES), ("ctc", "jax"), ("rnnt", "jax")])
def test_no_nan_is_made_on_the_way(name, impl):
    # JAX stops at the first NaN of any operation: samples that do not fit, -inf scores and no frames make none.
    scores, (targets, input_lengths, target_lengths) = hard_batch(name)
    sound = [0, 1, 2, 3, 4, 7]
    scores = [np.nan_to_num(scores[0][sound], neginf=-np.inf), *scores[1:]]
    function = function_of(
        name, (targets[sound], input_lengths[sound], target_lengths[sound]), impl=impl, zero_infinity=True
    )
    given = [jnp.asarray(array) for array in scores]
    with jax.debug_nans(True):
        jax.block_until_ready(jax.jit(jax.value_and_grad(lambda *scores: function(*scores).sum()))(*given))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_no_dtype_is_promoted_unasked(name, impl):
    scores, integers = problem(name)
    function = function_of(name, integers, impl=impl, reduction="mean")
    with jax.numpy_dtype_promotion("strict"):
        for dtype in (jnp.float32, jnp.bfloat16):
            shapes = [jax.ShapeDtypeStruct(array.shape, dtype) for array in scores]
            assert jax.eval_shape(jax.hessian(function), *shapes).dtype == dtype


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_recomputation_and_rules_of_others_around_it(impl):
    scores, integers = problem("ctc")
    function = function_of("ctc", integers, impl=impl, reduction="sum")
    x = jnp.asarray(scores[0], jnp.float32)

    @jax.custom_vjp
    def halved(x):
        return function(x)

    halved.defvjp(lambda x: (function(x), jax.grad(function)(x)), lambda gradient, upstream: (gradient * upstream / 2,))

    def both(x):
        return jax.grad(jax.checkpoint(function))(x), jax.grad(halved)(x), jax.grad(function)(x)

    recomputed, half, plain = jax.jit(both)(x)
    assert_close(recomputed, plain, absolute=1e-7)
    assert_close(2 * half, plain, absolute=1e-7)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_logits_may_be_donated(impl):
    scores, integers = problem("ctc")
    function = function_of("ctc", integers, impl=impl, reduction="sum")
    x = jnp.asarray(scores[0], jnp.float32)
    expected = jax.jit(jax.value_and_grad(function))(x)
    donated = jnp.array(x)
    loss, gradient = jax.jit(jax.value_and_grad(function), donate_argnums=0)(donated)
    assert donated.is_deleted()
    assert loss == expected[0]
    assert (gradient == expected[1]).all()


DIVIDED = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from pathsum.compat import optax
from pathsum.jax import asg_loss, ctc_loss, rnnt_loss
jax.config.update("jax_disable_most_optimizations", True)
random = np.random.default_rng(0)
targets = jnp.asarray(random.integers(1, 4, (4, 3)))
table = jnp.asarray(random.normal(size=(5, 5)), jnp.float32)
paddings = jnp.zeros((4, 7)), jnp.zeros((4, 3))
losses = {
    "ctc": lambda x, y, table, **options: ctc_loss(x, y, **options),
    "asg": lambda x, y, table, **options: asg_loss(x, y, table, **options),
    "rnnt": lambda x, y, table, **options: rnnt_loss(x, y, **options),
    "optax": lambda x, y, table, **options: optax.ctc_loss(x, paddings[0][:len(x)], y, paddings[1][:len(x)], **options),
}
mesh = Mesh(np.array(jax.devices()), ("batch",))
for name, impl in (*((name, "numba") for name in losses), ("ctc", "jax")):
    scores = jnp.asarray(random.normal(size=(4, 7, 4, 5) if name == "rnnt" else (4, 7, 5)), jnp.float32)
    divided = [jax.device_put(array, NamedSharding(mesh, P("batch"))) for array in (scores, targets)]
    def gradients(scores, targets, table):
        loss = lambda scores, table: losses[name](scores, targets, table, impl=impl).sum()
        return jax.grad(loss, (0, 1))(scores, table)
    expected = jax.jit(gradients)(scores, targets, table)
    specs = {"in_specs": (P("batch"), P("batch"), P()), "out_specs": (P("batch"), P())}
    found = {"shard_map": jax.jit(jax.shard_map(gradients, mesh=mesh, **specs))(*divided, table)}
    if name == "ctc":
        found["jit"] = jax.jit(gradients)(*divided, table)
    halves = [array.reshape(2, 2, *array.shape[1:]) for array in (scores, targets)]
    own, shared = jax.pmap(gradients, in_axes=(0, 0, None))(*halves, table)
    found["pmap"] = own.reshape(scores.shape), shared.sum(0)
    for way, there in found.items():
        for one, other in zip(there, expected):
            np.testing.assert_allclose(one, other, atol=1e-5, err_msg=f"{name} {impl} {way}")
print("ran")
"""


def test_batches_divided_among_devices():
    assert in_fresh_process(DIVIDED) == ["ran"]
