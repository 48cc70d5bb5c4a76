"""Each front end and each drop-in runs with the other frameworks blocked."""

import importlib.util
import os
import subprocess
import sys

import pytest

FRAMEWORKS = {"torch", "tensorflow", "jax"}
OTHERS = {
    "triton",
    "keras",
    "flax",
    "optax",
    "torchaudio",
    "tf_seq2seq_losses",
    "rich",
    "matplotlib",
    "soundfile",
    "jiwer",
}

# What a framework brings along by itself.
BROUGHT = {"torch": {"triton"}, "tensorflow": {"keras", "rich"}, "jax": set()}

TORCH = """
import torch
from pathsum.torch import asg_loss, ctc_loss, rnnt_loss, rnnt_packed_loss, simple_ctc_loss
def gradient(loss, shape, *arguments):
    scores = torch.zeros(shape, requires_grad=True)
    loss(scores, *arguments, impl=impl).backward()
    return scores.grad
for impl in ("numba", "reference"):
    for loss in (ctc_loss, simple_ctc_loss):
        assert gradient(loss, (3, 1, 2), [[1]], [3], [1]).any()
    assert gradient(rnnt_loss, (1, 2, 2, 2), [[0]], [2], [1]).any()
    assert gradient(rnnt_packed_loss, (4, 2), [[0]], [2], [1]).any()
    assert gradient(asg_loss, (3, 1, 2), [[1]], torch.zeros(2, 2)).any()
"""
TENSORFLOW = """
import tensorflow as tf
from pathsum.tensorflow import asg_loss, ctc_loss, rnnt_loss, simple_ctc_loss
def gradient(loss, shape, *arguments):
    scores = tf.zeros(shape)
    with tf.GradientTape() as tape:
        tape.watch(scores)
        losses = loss([[1]], scores, *arguments, impl=impl)
    return tape.gradient(losses, scores).numpy()
for impl in ("numba", "tensorflow"):
    for loss in (ctc_loss, simple_ctc_loss):
        assert gradient(loss, (1, 3, 2)).any()
    assert gradient(rnnt_loss, (1, 2, 2, 2)).any()
    assert gradient(asg_loss, (1, 3, 2), tf.zeros([2, 2])).any()
"""
JAX = """
import jax, jax.numpy as jnp
from pathsum.jax import asg_loss, ctc_loss, rnnt_loss, simple_ctc_loss
def gradient(loss, shape, *arguments):
    return jax.grad(lambda scores: loss(scores, *arguments, impl=impl).sum())(jnp.zeros(shape))
for impl in ("numba", "jax"):
    for loss in (ctc_loss, simple_ctc_loss):
        assert gradient(loss, (1, 3, 2), [[1]]).any()
    assert gradient(rnnt_loss, (1, 2, 2, 2), [[0]]).any()
    assert gradient(asg_loss, (1, 3, 2), [[1]], jnp.zeros((2, 2))).any()
"""
OF_TORCH = (
    "espnet",
    "transformers",
    "warpctc_pytorch",
    "ctc_forced_aligner",
    "fast_rnnt",
    "gtn",
    "k2",
    "nemo",
    "optimized_transducer",
    "speechbrain",
    "torch_asg",
    "torch_functional",
    "torchaudio",
    "warp_rnnt",
    "warp_transducer",
    "warprnnt_numba",
    "whisperx",
)
OF_TENSORFLOW = ("tensorflow", "tf_seq2seq_losses", "keras")
OF_JAX = ("optax",)
OF_NUMPY = ("fast_ctc_decode", "pyctcdecode")


def runs(framework, code):
    """The code in a process of its own that has no framework but this one, and nothing optional."""
    blocked = (FRAMEWORKS | OTHERS) - {framework} - BROUGHT.get(framework, set())
    program = f"""
import sys
blocked = {sorted(blocked)}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)
sys.meta_path.insert(0, Block())
{code}
assert not set(blocked) & sys.modules.keys()
print("ran")
"""
    environment = {name: value for name, value in os.environ.items() if name.startswith("JAX_")}
    environment |= {"PYTHONPATH": ":".join(sys.path), "PATH": "", "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    return done.stdout.split(), done.stderr


@pytest.mark.parametrize("framework, code, peers", [
    ("torch", TORCH, OF_TORCH),
    ("tensorflow", TENSORFLOW, OF_TENSORFLOW),
    ("jax", JAX, OF_JAX),
    ("numpy", "", OF_NUMPY),
])  # fmt: skip
def test_a_front_end_needs_its_own_framework_alone_and_a_drop_in_not_even_its_peer(framework, code, peers):
    """In one process, most of which is the framework's import."""
    pytest.importorskip(framework)
    output, errors = runs(framework, code + "".join(f"import pathsum.compat.{peer}\n" for peer in peers))
    assert output == ["ran"], errors


def test_every_drop_in_is_among_them():
    from pathsum.compat import PEERS

    assert sorted((*OF_TORCH, *OF_TENSORFLOW, *OF_JAX, *OF_NUMPY)) == sorted(PEERS)


def test_nothing_at_all_is_needed_to_import_the_package():
    output, errors = runs(None, "import pathsum, pathsum.compat, pathsum.dispatch, pathsum.testing")
    assert output == ["ran"], errors


@pytest.mark.parametrize("framework", sorted(FRAMEWORKS))
def test_a_front_end_without_its_framework_names_the_extra(framework):
    code = f"""
import pathsum
try:
    import pathsum.{framework}
except ModuleNotFoundError as error:
    assert isinstance(error, pathsum.FrameworkMissingError) and error.name == {framework!r}
    assert str(error) == "pathsum.{framework} needs {framework}: pip install 'pathsum[{framework}]'", error
    print("said", end=" ")
try:
    import pathsum.{framework}.ctc
except pathsum.FrameworkMissingError:
    print("again", end=" ")
"""
    output, errors = runs(None, code)
    assert output == ["said", "again", "ran"], errors


def test_another_missing_module_keeps_its_own_message():
    pytest.importorskip("jax")
    code = """
sys.modules["jaxlib"] = None
try:
    import pathsum.jax
except ModuleNotFoundError as error:
    assert "pip install" not in str(error), error
    print("said", end=" ")
"""
    output, errors = runs("jax", code)
    assert output == ["said", "ran"], errors


def test_the_block_can_fail():
    assert importlib.util.find_spec("numpy")
    output, errors = runs("torch", "import jax")
    assert not output
    assert "jax is blocked" in errors
