"""What the scores of all paths have in common is no part of what tells them apart, be it 1e17."""

import pytest
import torch

from offsets import CASES, alike
from pathsum.testing import assert_close
from pathsum.torch import (
    asg_entropy,
    asg_loss,
    ctc_entropy,
    ctc_loss,
    multi_blank_rnnt_loss,
    rnnt_entropy,
    rnnt_joint_loss,
    rnnt_loss,
    simple_ctc_loss,
    tdt_loss,
)

CHAIN, GRID, TABLE = (4, 1, 4), (1, 4, 3, 4), (4, 4)
INTEGERS = ([[1, 2]], [4], [2])


def joint(bias, **options):
    nothing = torch.zeros(1, 4, 2, dtype=bias.dtype), torch.zeros(1, 3, 2, dtype=bias.dtype)
    return rnnt_joint_loss(*nothing, torch.zeros(4, 2, dtype=bias.dtype), bias, *INTEGERS, **options)


# Shapes of the scores, and the loss of them: a softmax, or a difference, takes off what they have in common.
INVARIANT = {
    "ctc": ([CHAIN], lambda x, **o: ctc_loss(x, *INTEGERS, fused_log_softmax=True, **o)),
    "simple_ctc": ([CHAIN], lambda x, **o: simple_ctc_loss(x, *INTEGERS, fused_log_softmax=True, **o)),
    "asg": ([CHAIN, TABLE], lambda x, table, **o: asg_loss(x, [[1, 2]], table, **o)),
    "rnnt": ([GRID], lambda x, **o: rnnt_loss(x, *INTEGERS, **o)),
    "rnnt of one symbol a frame": ([GRID], lambda x, **o: rnnt_loss(x, *INTEGERS, rnnt_type="modified", **o)),
    "tdt": (
        [GRID, (1, 4, 3, 2)],
        lambda x, durations, **o: tdt_loss(x, durations, *INTEGERS, durations=[0, 1], **o),
    ),
    "multi_blank": ([GRID], lambda x, **o: multi_blank_rnnt_loss(x, *INTEGERS, [2], [3], blank=0, **o)),
    "joint": ([(4,)], joint),
    "ctc_entropy": ([CHAIN], lambda x, **o: ctc_entropy(x, *INTEGERS, fused_log_softmax=True, **o)),
    "asg_entropy": ([CHAIN, TABLE], lambda x, table, **o: asg_entropy(x, [[1, 2]], table, paths="all", **o)),
    "rnnt_entropy": ([GRID], lambda x, **o: rnnt_entropy(x, *INTEGERS, **o)),
}
# Of scores that are no log-probabilities the loss moves by the offset of each arc of a path, the posteriors do not.
POSTERIORS = {
    "ctc": ([CHAIN], lambda x, **o: ctc_loss(x, *INTEGERS, **o)),
    "simple_ctc": ([CHAIN], lambda x, **o: simple_ctc_loss(x, *INTEGERS, **o)),
    "rnnt": ([GRID], lambda x, **o: rnnt_loss(x, *INTEGERS, fused_log_softmax=False, **o)),
    "rnnt of one symbol a frame": (
        [GRID],
        lambda x, **o: rnnt_loss(x, *INTEGERS, rnnt_type="modified", fused_log_softmax=False, **o),
    ),
}


def derivatives(function, tables, impl, *, twice):
    """The loss, its gradients, and how these move along the squares of their places."""
    scores = [torch.from_numpy(table).requires_grad_() for table in tables]
    loss = function(*scores, reduction="sum", impl=impl)
    gradients = torch.autograd.grad(loss, scores, create_graph=twice)
    if not twice:
        return loss.detach(), gradients
    along = [torch.linspace(-1, 2, x.numel(), dtype=x.dtype).reshape(x.shape) ** 2 for x in scores]
    moved = torch.autograd.grad(gradients, scores, along)
    return loss.detach(), [*(gradient.detach() for gradient in gradients), *moved]


@pytest.mark.parametrize("impl", ["numba", "reference"])
@pytest.mark.parametrize("dtype, offset", CASES)
@pytest.mark.parametrize("kind, name", [*(("loss", name) for name in INVARIANT), *(("arcs", n) for n in POSTERIORS)])
def test_an_offset_moves_nothing(kind, name, dtype, offset, impl):
    shapes, function = (INVARIANT if kind == "loss" else POSTERIORS)[name]
    pairs = [alike(shape, dtype, offset, seed) for seed, shape in enumerate(shapes)]
    # An entropy is a derivative itself.
    twice = not name.endswith("entropy")
    (loss, expected), (shifted, found) = (
        derivatives(function, tables, impl, twice=twice) for tables in zip(*pairs, strict=True)
    )
    bound = 1e-13 if dtype == "float64" else 1e-6
    if kind == "loss":
        assert_close(shifted, loss, relative=bound, absolute=bound)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, relative=10 * bound, absolute=10 * bound)
