"""What the tests share: the losses by name, one way to call them, and the documented bounds of their errors."""

from typing import NamedTuple

import numpy as np
import torch

from pathsum.testing import assert_close, assert_same_bits
from pathsum.torch import ctc_loss, simple_ctc_loss

CHAIN = {"ctc": ctc_loss, "simple_ctc": simple_ctc_loss}
IMPLEMENTATIONS = ("numba", "reference")
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Solved(NamedTuple):
    loss: torch.Tensor
    gradient: torch.Tensor


def solve(function, scores, *integers, upstream=None, **options):
    """The loss, unreduced unless told otherwise, and the gradient of upstream (ones) times it."""
    scores = torch.as_tensor(scores).detach().requires_grad_()
    loss = function(scores, *integers, **{"reduction": "none"} | options)
    loss.backward(torch.ones_like(loss) if upstream is None else upstream)
    return Solved(loss.detach(), scores.grad)


def tensor(array, dtype=torch.float64):
    return torch.from_numpy(np.asarray(array)).to(dtype)


def chain_scores(inputs, dtype=torch.float64, fused=True):
    """Scores (T, N, C): logits, or their log-softmax, rounded to a dtype."""
    logits = tensor(inputs.logits)
    return (logits if fused else logits.log_softmax(-1)).to(dtype)


def truth(function, scores, *integers, **options):
    """The float64 reference on the very values that a lower precision was given."""
    return solve(function, scores.double(), *integers, **options | {"impl": "reference"})


def random_like(inputs, seed=1):
    """Random numbers of the shapes and dtypes of some tensors."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in inputs]


def second_derivative(loss, inputs, upstream, tangents):
    """The derivatives of <tangents, gradients> with respect to the upstream gradient and to the inputs."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    upstream = torch.as_tensor(upstream, dtype=torch.float64).requires_grad_()
    losses = loss(*inputs)
    gradients = torch.autograd.grad(losses, inputs, upstream.to(losses.dtype), create_graph=True)
    return torch.autograd.grad(gradients, [upstream, *inputs], tangents)


def assert_within_bounds(actual, expected, num_frames, *, gradient_bound=2e-6, what=""):
    """The bounds that the documentation states, by dtype of the scores.

    Loss: 1e-7 of itself plus 1e-6 * sqrt(T). Gradient: the bound, plus half a unit in the last place where it is
    returned in half precision. float64 beside float64: both are exact but for rounding, which grows with T.
    """
    dtype = actual.gradient.dtype
    if dtype == torch.float64:
        assert_close(
            actual.loss, expected.loss, relative=1e-13 * (10 + num_frames), absolute=1e-12, what=f"{what} loss"
        )
        assert_close(actual.gradient, expected.gradient, absolute=1e-11 * (1 + num_frames), what=f"{what} gradient")
        return
    assert_close(actual.loss, expected.loss, relative=1e-7, absolute=1e-6 * num_frames**0.5, what=f"{what} loss")
    rounding = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    assert_close(
        actual.gradient, expected.gradient, relative=rounding, absolute=gradient_bound, what=f"{what} gradient"
    )


def assert_same(actual, expected, what=""):
    """Two results equal to the last bit."""
    assert_same_bits(actual.loss, expected.loss, what=f"{what} loss")
    assert_same_bits(actual.gradient, expected.gradient, what=f"{what} gradient")
