"""The Triton kernels in JAX's programs: interpreted, by a stand-in for jax-triton, and lowered for CUDA where it is."""

import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

import jax_triton_stand_in  # noqa: E402
from jax_problems import differentiated, expected, function_of, hard_batch, problem  # noqa: E402
from pathsum import dispatch  # noqa: E402
from pathsum.errors import ImplementationError  # noqa: E402
from pathsum.jax import _derivatives, asg_loss, ctc_loss  # noqa: E402
from pathsum.jax._triton import installed  # noqa: E402
from pathsum.testing import assert_close  # noqa: E402
from triton_targets import interpreted  # noqa: E402, F401


@pytest.fixture
def present(monkeypatch):
    """As if jax-triton were installed, and a CUDA device to be compiled for."""
    monkeypatch.setitem(sys.modules, "jax_triton", jax_triton_stand_in.module())
    monkeypatch.setenv(installed.CAPABILITY, "90")
    installed.missing.cache_clear()
    yield
    installed.missing.cache_clear()


@pytest.fixture
def on_cuda(present, monkeypatch):
    """As if this were that device: programs for the CPU take what is meant for CUDA."""

    def chosen(*arguments, default=None, **kernels):
        return kernels.get("cuda", kernels.get("cpu", default))(*arguments)

    monkeypatch.setattr(_derivatives, "lax", SimpleNamespace(platform_dependent=chosen))


def triton_of(name, integers, **options):
    # In a program the device is not known: nobody asks whether it is the CPU.
    return jax.jit(function_of(name, integers, impl="triton", **options))


@pytest.mark.parametrize("name, dtype, options", [
    ("ctc", "float32", {}),
    ("simple_ctc", "float32", {"fused_log_softmax": False}),
    ("rnnt", "float32", {"fastemit_lambda": 1.0, "clamp": 0.25}),
    ("rnnt", "float32", {"fused_log_softmax": False}),
    ("rnnt", "bfloat16", {}),
])  # fmt: skip
def test_values_and_gradients_are_those_of_the_reference(name, dtype, options, on_cuda):
    scores, integers = problem(name)
    upstream = np.array([1.0, -0.5, 2.0])
    given = [jnp.asarray(array, dtype) for array in scores]
    losses, gradients = differentiated(triton_of(name, integers, **options), given, upstream)
    exact, exact_gradients = expected(name, [np.array(array, float) for array in given], integers, upstream, **options)
    # The interpreter cuts a bfloat16 where a device rounds it.
    bound = 2e-6 if dtype == "float32" else 2**-7
    assert losses.dtype == "float32"
    assert gradients[0].dtype == dtype
    assert_close(losses, exact, relative=2e-6, absolute=2e-6, what="loss")
    assert_close(
        np.asarray(gradients[0], float), exact_gradients[0], absolute=2 * bound, relative=bound, what="gradient"
    )


def test_float64_is_kept(on_cuda, x64):
    scores, integers = problem("ctc")
    losses, gradients = differentiated(triton_of("ctc", integers), [jnp.asarray(scores[0])], np.ones(3))
    exact, exact_gradients = expected("ctc", scores, integers, np.ones(3))
    assert_close(losses, exact, relative=1e-12, absolute=1e-12, what="loss")
    assert_close(gradients[0], exact_gradients[0], relative=1e-12, absolute=1e-12, what="gradient")


@pytest.mark.parametrize("name", ["ctc", "rnnt"])
def test_hard_samples_are_those_of_the_compiled_kernels(name, on_cuda):
    scores, integers = hard_batch(name)
    found = differentiated(triton_of(name, integers), scores, np.ones(8))
    exact = differentiated(function_of(name, integers, impl="numba"), scores, np.ones(8))
    assert_close(found[0], np.asarray(exact[0]), relative=2e-6, absolute=2e-6, what="loss")
    assert_close(found[1][0], np.asarray(exact[1][0]), relative=2e-6, absolute=4e-6, what="gradient")


def test_vmap_makes_one_batch_and_what_comes_after_the_gradient_is_plain(on_cuda):
    scores, integers = problem("ctc")
    both = np.stack([scores[0], scores[0][::-1] * 0.5]).astype(np.float32)
    loss = triton_of("ctc", integers)
    losses, pull = jax.vjp(jax.vmap(loss), both)
    (gradients,) = pull(jnp.ones_like(losses))
    for n, own in enumerate(both):
        exact, (exact_gradient,) = expected("ctc", [own.astype(float)], integers, np.ones(3))
        assert_close(losses[n], exact, relative=2e-6, absolute=2e-6, what="loss")
        assert_close(gradients[n], exact_gradient, relative=2e-6, absolute=4e-6, what="gradient")
    second = jax.make_jaxpr(jax.vmap(jax.hessian(lambda x: loss(x).sum())))(both)
    # The gradient that is differentiated is not that of a kernel, which JAX could not differentiate.
    assert second.out_avals[0].shape == (*both.shape, *both.shape[1:])


def test_without_frames_nothing_is_launched(on_cuda):
    no_frames = jax.jit(lambda x: ctc_loss(x, [[1], [1]], target_lengths=[0, 1], impl="triton"))
    assert no_frames(jnp.zeros((2, 0, 3))).tolist() == [0, np.inf]


def test_triton_runs_where_it_can_or_says_why_not(present, monkeypatch):
    logits, targets = jnp.zeros((1, 3, 2)), [[1]]
    assert installed.missing() is None
    with pytest.raises(ImplementationError, match="runs on CUDA devices; the scores are on cpu"):
        ctc_loss(logits, targets, impl="triton")
    with pytest.raises(ImplementationError, match="asg_loss has no such kernels"):
        asg_loss(logits, targets, jnp.zeros((2, 2)), impl="triton")
    assert "triton in those for CUDA devices" in dispatch.explain_program("jax", numba=True, no_triton=None)
    monkeypatch.delenv(installed.CAPABILITY)
    installed.missing.cache_clear()
    if all(device.platform == "cpu" for device in jax.devices()):
        with pytest.raises(ImplementationError, match="there is no CUDA device"):
            ctc_loss(logits, targets, impl="triton")
    monkeypatch.delitem(sys.modules, "jax_triton")
    installed.missing.cache_clear()
    if importlib.util.find_spec("jax_triton") is None:
        with pytest.raises(ImplementationError, match="jax-triton is not installed"):
            ctc_loss(logits, targets, impl="triton")
        explained = dispatch.explain_program("jax", numba=True, no_triton=installed.missing())
        assert explained.endswith("triton is not called: jax-triton is not installed")


def test_auto_takes_triton_in_programs_for_cuda_alone(present, monkeypatch):
    asked = []
    monkeypatch.setattr(
        _derivatives,
        "lax",
        SimpleNamespace(platform_dependent=lambda *_, default, **kernels: asked.append({*kernels}) or default(*_)),
    )
    # Shapes of their own: a program that was traced before is not traced again.
    logits, table = jnp.zeros((1, 3, 11)), jnp.zeros((11, 11))
    jax.eval_shape(lambda x: ctc_loss(x, [[1]]), logits)
    jax.eval_shape(lambda x: asg_loss(x, [[1]], table), logits)
    assert asked == [{"cpu", "cuda"}, {"cpu"}]


LOWERED = """
import os, jax, jax.numpy as jnp, numpy as np
from pathsum.jax import ctc_loss, rnnt_loss, simple_ctc_loss
targets = np.array([[1, 2], [3, 0]])
def steps(loss, **options):
    return jax.value_and_grad(lambda x: loss(x, targets, target_lengths=[2, 1], **options).sum())
for loss, shape in ((ctc_loss, (2, 5, 7)), (simple_ctc_loss, (2, 5, 7)), (rnnt_loss, (2, 4, 3, 7))):
    for impl in ("auto", "triton"):
        program = jax.jit(steps(loss, impl=impl)).trace(jnp.zeros(shape)).lower(lowering_platforms=("cuda",))
        print(program.as_text().count("@triton_kernel_call"))
print(os.environ["TRITON_CACHE_DIR"])
"""


@pytest.mark.skipif(importlib.util.find_spec("jax_triton") is None, reason="jax-triton is not installed")
def test_programs_for_cuda_are_lowered_without_a_device(monkeypatch):
    """In a process of its own, where kernels are compiled. Those of others are kept where they were."""
    needed = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": "elsewhere", "PYTHONPATH": ":".join(sys.path)}
    for name, value in {installed.CAPABILITY: "90", **needed}.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", LOWERED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [*["6"] * 4, *["4"] * 2, "elsewhere"]
