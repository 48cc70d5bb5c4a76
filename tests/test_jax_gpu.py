"""What only a device can show of JAX: that the Triton kernels run there, alone and beside the plain operations."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

from jax_problems import differentiated, expected, function_of, hard_batch  # noqa: E402
from pathsum.jax import ctc_loss  # noqa: E402
from pathsum.jax._triton.installed import missing  # noqa: E402
from pathsum.testing import assert_close, assert_same_bits, chain_inputs, grid_inputs  # noqa: E402

pytestmark = pytest.mark.gpu

# (T, N, C, S) and (N, T, U, V): one of each, odd, strips of states, more classes than a tile.
SIZES = {
    "ctc": [(1, 1, 2, 1), (7, 3, 5, 3), (400, 4, 1100, 150), (2500, 1, 30, 1100)],
    "simple_ctc": [(6, 4, 3, 5), (70, 2, 9, 12)],
    "rnnt": [(1, 1, 1, 2), (3, 7, 3, 5), (2, 90, 40, 1100), (1, 40, 2100, 3)],
}


@pytest.fixture(autouse=True)
def on_a_device():
    """Programs are optimised as users' are; the other tests' are not."""
    if jax.default_backend() != "gpu":
        pytest.skip("JAX sees no CUDA device")
    assert missing() is None
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def case(name, size):
    inputs = (grid_inputs if name == "rnnt" else chain_inputs)(*size, seed=sum(size))
    scores = inputs.logits if name == "rnnt" else inputs.logits.swapaxes(0, 1)
    return np.ascontiguousarray(scores), inputs[1:]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name, size", [(name, size) for name, sizes in SIZES.items() for size in sizes])
def test_values_and_gradients_are_those_of_the_reference(name, size, dtype):
    scores, integers = case(name, size)
    given = jnp.asarray(scores, dtype)
    upstream = np.linspace(0.5, 2, len(scores))
    loss = jax.jit(function_of(name, integers, impl="triton"))
    losses, (gradient,) = differentiated(loss, [given], upstream)
    exact, (exact_gradient,) = expected(name, [np.array(given, float)], integers, upstream)
    bound = 2e-6 if dtype == "float32" else 2**-8
    assert_close(losses, exact, relative=2e-6, absolute=2e-6, what="loss")
    assert_close(np.asarray(gradient, float), exact_gradient, absolute=2 * bound, relative=bound, what="gradient")
    again = differentiated(loss, [given], upstream)
    assert_same_bits(np.asarray(gradient, np.float32), np.asarray(again[1][0], np.float32))


@pytest.mark.parametrize("name", ["ctc", "rnnt"])
def test_hard_samples_are_those_of_plain_operations(name):
    scores, integers = hard_batch(name)
    found, plain = (
        differentiated(function_of(name, integers, impl=impl), scores, np.ones(8)) for impl in ("auto", "jax")
    )
    assert_close(found[0], np.asarray(plain[0]), relative=2e-6, absolute=2e-6, what="loss")
    assert_close(found[1][0], np.asarray(plain[1][0]), relative=4e-6, absolute=4e-6, what="gradient")


@pytest.mark.parametrize("name", ["ctc", "rnnt"])
def test_vmap_of_gradients(name):
    scores, integers = case(name, (2, 3, 3, 5) if name == "rnnt" else (7, 2, 5, 3))
    both = np.stack([scores, -scores]).astype(np.float32)
    found, plain = (
        jax.vmap(jax.grad(lambda x, impl=impl: function_of(name, integers, impl=impl)(x).sum()))(both)
        for impl in ("auto", "jax")
    )
    assert_close(found, np.asarray(plain), relative=4e-6, absolute=4e-6, what="gradient")


def test_auto_is_triton():
    scores, integers = case("ctc", (7, 3, 5, 3))
    assert "triton_kernel_call" in jax.jit(function_of("ctc", integers)).lower(scores).as_text()


def test_another_device_is_not_asked_to_run_them():
    on_cpu = jax.device_put(np.zeros((1, 3, 2), np.float32), jax.devices("cpu")[0])
    assert ctc_loss(on_cpu, [[1]]).devices() == on_cpu.devices()
