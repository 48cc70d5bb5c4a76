"""CTC of a linear layer whose output is not held, and of logits shared out among the devices of a mesh, in JAX."""

from functools import partial

import numpy as np
import pytest
import torch

from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.testing import assert_close

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

import pathsum.torch  # noqa: E402
from jax_problems import in_fresh_process  # noqa: E402
from pathsum.jax import ctc_linear_loss, sharded_ctc_loss  # noqa: E402

# Ragged, with a repeat, no label, no frame, and a target that does not fit.
N, T, H, C = 5, 8, 3, 7
TARGETS = np.array([[2, 2, 5], [0, 0, 0], [6, 1, 3], [1, 0, 0], [3, 3, 3]])
LENGTHS, LABELS = np.array([8, 5, 4, 0, 4]), np.array([3, 0, 3, 0, 3])
INTEGERS = (TARGETS, LENGTHS, LABELS)


def operands():
    random = np.random.default_rng(0)
    return [random.standard_normal(shape) for shape in ((N, T, H), (C, H), (C,))]


def expected_of(arrays, tangents):
    """Losses of torch's reference, gradients of the sum of those that are finite, and a Hessian-vector product."""
    tensors = [torch.from_numpy(array).requires_grad_() for array in arrays]
    logits = torch.nn.functional.linear(*tensors) if len(tensors) == 3 else tensors[0]
    integers = map(torch.from_numpy, INTEGERS)
    losses = pathsum.torch.ctc_loss(
        logits, *integers, 4, "none", fused_log_softmax=True, batch_first=True, impl="reference"
    )
    total = torch.where(losses == torch.inf, 0.0, losses).sum()
    gradients = torch.autograd.grad(total, tensors, create_graph=True)
    products = torch.autograd.grad(gradients, tensors, [torch.from_numpy(t) for t in tangents])
    return [x.detach().numpy() for x in (losses, *gradients, *products)]


def total(losses):
    return jnp.where(losses == jnp.inf, 0, losses).sum()


@partial(jax.jit, static_argnums=0)
def derived(losses, given, tangents):
    """Losses, gradients of the sum of those that are finite and, with tangents, a Hessian-vector product."""
    gradient = jax.grad(lambda given: total(losses(*given)))
    products = [] if tangents is None else jax.jvp(gradient, (given,), (tangents,))[1]
    return [losses(*given), *gradient(given), *products]


@pytest.mark.parametrize("chunk, impl", [(None, "numba"), (3, "jax")])
def test_a_linear_layer_of_logits_not_held(chunk, impl, x64):
    arrays, tangents = operands(), operands()

    def losses(hidden, weight, bias):
        return ctc_linear_loss(hidden, weight, bias, *INTEGERS, blank=4, chunk=chunk, impl=impl)

    found = derived(losses, arrays, tangents if impl == "jax" else None)
    for one, other in zip(found, expected_of(arrays, tangents), strict=impl == "jax"):
        assert_close(np.asarray(one), other, absolute=1e-11)
    arrays[0][1, 5:] = np.nan
    again = derived(losses, arrays, tangents if impl == "jax" else None)  # compiled already
    for one, other in zip(again, found, strict=True):
        assert_close(np.asarray(one), np.asarray(other), absolute=1e-12)


def test_operands_are_checked():
    hidden, weight, bias = (jnp.asarray(array, jnp.float32) for array in operands())
    for given, error, message in (
        ((hidden, weight.astype(jnp.bfloat16), bias), InvalidTypeError, "weight must have hidden's dtype, float32"),
        ((hidden, weight[:, :2], bias), InvalidValueError, r"weight must have shape \(C, H\) with H = 3"),
        ((hidden, weight, bias[:2]), InvalidValueError, r"bias must have shape \(C\) = \(7,\)"),
    ):
        with pytest.raises(error, match=f"^ctc_linear_loss: {message}"):
            ctc_linear_loss(*given, *INTEGERS, blank=4)
    with pytest.raises(InvalidValueError, match=r"^ctc_linear_loss: chunk must be at least 1"):
        ctc_linear_loss(hidden, weight, bias, *INTEGERS, blank=4, chunk=0)


def on_eight_devices():
    """Classes and frames shared out among 8 devices; the derivatives are of the same operations for either."""
    assert len(jax.devices()) == 8
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    random = np.random.default_rng(1)
    logits, tangent = random.standard_normal((N, T, 8)), random.standard_normal((N, T, 8))
    logits[4, 1] = -np.inf
    expected = expected_of([logits], [tangent])
    integers = {"targets": TARGETS, "logit_lengths": LENGTHS, "target_lengths": LABELS}
    places = {"classes": jax.P(None, None, "x"), "frames": jax.P(None, "x")}
    for shard, impl in (("classes", "jax"), ("classes", "numba"), ("frames", "numba")):
        own = partial(sharded_ctc_loss, axis_name="x", shard=shard, blank=4, impl=impl, **integers)
        losses = jax.shard_map(own, mesh=mesh, in_specs=places[shard], out_specs=jax.P())
        found = derived(losses, [logits], [tangent] if impl == "jax" else None)
        for one, other in zip(found, expected, strict=impl == "jax"):
            assert_close(np.asarray(one), other, absolute=1e-11, what=f"{shard}, {impl}")
    own = partial(
        sharded_ctc_loss, axis_name="x", shard="frames", blank=4, reduction="mean", zero_infinity=True, **integers
    )
    mean = jax.jit(jax.shard_map(own, mesh=mesh, in_specs=places["frames"], out_specs=jax.P()))(logits)
    finite = np.where(expected[0] == np.inf, 0, expected[0])
    assert_close(np.asarray(mean), (finite / np.maximum(LABELS, 1)).mean(), absolute=1e-12)


def test_the_axis_must_be_one_of_the_mesh():
    with pytest.raises(InvalidValueError, match=r"^sharded_ctc_loss: axis_name must be an axis of the mesh"):
        sharded_ctc_loss(jnp.zeros((N, T, C)), *INTEGERS, axis_name="x", blank=4)


ON_EIGHT = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
import jax
jax.config.update("jax_enable_x64", True)
import test_jax_sharded
test_jax_sharded.on_eight_devices()
print("ran")
"""


def test_classes_and_frames_on_a_mesh():
    assert in_fresh_process(ON_EIGHT) == ["ran"]
