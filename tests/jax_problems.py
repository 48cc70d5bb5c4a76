"""What the tests of ``pathsum.jax`` share: small batches, losses as functions of scores alone, their answers."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch

import pathsum.torch
from pathsum.jax import asg_loss, ctc_loss, rnnt_loss, simple_ctc_loss
from pathsum.testing import chain_inputs, grid_inputs
from support import tensor

# These programs run once, on next to nothing: it is their compilation that takes the time.
jax.config.update("jax_disable_most_optimizations", True)

IMPLEMENTATIONS = ("numba", "jax")
CHAINS = {"ctc": ctc_loss, "simple_ctc": simple_ctc_loss}
LOSSES = (*CHAINS, "asg", "rnnt")


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
    gradients = torch.autograd.grad(losses, scores, tensor(upstream), materialize_grads=True)
    return losses.detach().numpy(), [gradient.numpy() for gradient in gradients]


def differentiated(function, scores, upstream):
    losses, pull = jax.vjp(jax.jit(function), *scores)
    return losses, pull(jnp.asarray(upstream, losses.dtype))


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


def in_fresh_process(code):
    environment = {name: value for name, value in os.environ.items() if name.startswith("JAX_")}
    environment |= {"PYTHONPATH": ":".join(sys.path), "PATH": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
