"""Values that other implementations of the variants publish in their documentation and tests."""

import numpy as np
import pytest
import torch

from pathsum.testing import assert_close
from pathsum.torch import ar_rnnt_loss, rnnt_loss, rnnt_packed_loss, tdt_loss
from support import IMPLEMENTATIONS, solve

everywhere = pytest.mark.parametrize("impl", IMPLEMENTATIONS)

# The example of SimBe195/monotonic-rnnt's README: probabilities of 3 classes, blank 0, at t = 1..4 and s = 0..2.
PROBABILITIES = [
    [[0.6, 0.3, 0.1], [0.7, 0.1, 0.2], [0.5, 0.1, 0.4]],
    [[0.5, 0.4, 0.1], [0.5, 0.1, 0.4], [0.8, 0.1, 0.1]],
    [[0.4, 0.3, 0.3], [0.5, 0.1, 0.4], [0.7, 0.2, 0.1]],
    [[0.8, 0.1, 0.1], [0.3, 0.1, 0.6], [0.8, 0.1, 0.1]],
]
# Its gradient by the logits, printed with two decimals.
GRADIENT = [
    [[0.04, -0.14, 0.1], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
    [[0.13, -0.19, 0.06], [-0.04, 0.04, -0.01], [0.0, 0.0, 0.0]],
    [[0.06, -0.1, 0.04], [0.01, 0.07, -0.08], [-0.06, 0.04, 0.02]],
    [[0.0, 0.0, 0.0], [0.14, 0.05, -0.19], [-0.11, 0.05, 0.05]],
]
EXAMPLE = torch.tensor([PROBABILITIES], dtype=torch.float64).log()


@everywhere
def test_monotonic_rnnt_readme(impl):
    solved = solve(rnnt_loss, EXAMPLE, [[1, 2]], [4], [2], blank=0, rnnt_type="modified", impl=impl)
    assert_close(solved.loss, [-np.log(0.363)], absolute=1e-12)
    assert_close(solved.gradient[0], GRADIENT, absolute=0.0051 + 0.005)
    # The batch of its tests: the first two frames of the example with the label 1, then the whole.
    rows = torch.cat([EXAMPLE[0, :2, :2].reshape(4, 3), EXAMPLE[0].reshape(12, 3)])
    losses = rnnt_packed_loss(
        rows, [[1, 0], [1, 2]], [2, 4], [1, 2], blank=0, rnnt_type="modified", reduction="none", impl=impl
    )
    assert_close(losses, [-np.log(0.39), -np.log(0.363)], absolute=1e-12)


@everywhere
def test_monotonic_rnnt_alignment_restriction(impl):
    # Its tests give one entry a frame: [0, 1, 0, 2] with distance 1 costs 1.22, [1, 2, 0, 0] with distance 0 costs 2.7.
    options = {"blank": 0, "rnnt_type": "modified", "impl": impl}
    near = ar_rnnt_loss(EXAMPLE, [[1, 2]], [4], [2], [[1, 3]], 1, 1, **options)
    assert_close(near, 1.22, absolute=1e-2)
    assert_close(near, -np.log(0.363 - 0.0672), absolute=1e-12)  # all of the README's paths but 1 2 . .
    exact = ar_rnnt_loss(EXAMPLE, [[1, 2]], [4], [2], [[0, 1]], 0, 0, **options)
    assert_close(exact, 2.7, absolute=1e-2)
    assert_close(exact, -np.log(0.0672), absolute=1e-12)


@everywhere
def test_nemo_tdt(impl):
    # NeMo, tests/collections/asr/numba/rnnt_loss/test_rnnt_pytorch.py, TestTDTLoss, the fixed case: 3 frames, 1 label,
    # 3 labels and the blank, durations 0 1 2, sigma 0.05, all logits 0. Held to 1e-2 there; the digits are float32's.
    expected = np.array([
        [[-0.64962804, 0.25, 0.25, 0.14962798, 0.2672583, -0.16792619, -0.09933221],
         [0.01651875, 0.01651875, 0.01651875, -0.04955626, 0.022025, -0.01227201, -0.009753]],
        [[-0.04892651, 0.01714851, 0.01714851, 0.01462949, -0.01143234, -0.01143234, 0.02286467],
         [0.12531489, 0.12531489, 0.12531489, -0.37594467, 0.16708651, 0.13027048, -0.29735702]],
        [[-0.02572276, 0.00857425, 0.00857425, 0.00857425, -0.02286468, 0.01143234, 0.01143234],
         [0.13388914, 0.13388914, 0.13388914, -0.40166742, 0.17851885, -0.35703772, 0.17851885]],
    ])  # fmt: skip
    both = torch.zeros(1, 3, 2, 7, dtype=torch.float64, requires_grad=True)
    loss = tdt_loss(both[..., :4], both[..., 4:], [[0]], [3], [1], [0, 1, 2], sigma=0.05, impl=impl)
    loss.backward()
    assert_close(loss, 4.155739, absolute=1e-6)
    assert_close(both.grad[0], expected, absolute=1e-6)
