"""No samples, no frames, no labels: every function of pathsum.torch, its derivatives too, beside the reference."""

import numpy as np
import pytest
import torch

import pathsum.torch
from pathsum.testing import assert_close
from pathsum.torch import second_order
from support import random_like

H, V, C = 3, 5, 4
BLANK = 0
DURATIONS = (0, 1, 3)

# Frames and labels of each sample, and the padded sizes T and U that their scores have.
SHAPES = {
    "no samples": ([], [], 3, 2),
    "no samples, frames nor labels": ([], [], 0, 0),
    "no frames": ([0, 0], [1, 0], 0, 1),
    "no frames but in padding": ([0, 0], [0, 2], 3, 2),
    "no frames in one": ([3, 0, 0], [2, 1, 0], 3, 2),
    "no labels": ([2, 3], [0, 0], 3, 0),
    "no labels in one": ([3, 2], [0, 2], 3, 2),
    "no frames, no labels": ([0, 0], [0, 0], 0, 0),
}


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


class Call:
    """A function on the scores of a shape: its inputs, and what it makes of them.

    The integers are the shape's; labels stand behind the blank, which is 0.
    """

    def __init__(self, shape):
        self.frames, self.labels, self.num_frames, self.num_labels = SHAPES[shape]
        count = len(self.frames)
        generator = np.random.default_rng(1)
        self.targets = torch.from_numpy(generator.integers(1, C, (count, self.num_labels)))
        self.integers = (self.targets, self.frames, self.labels)
        rows = sum(t * (u + 1) for t, u in zip(self.frames, self.labels, strict=True))
        self.chain = randn(self.num_frames, count, C)
        self.grid = randn(count, self.num_frames, self.num_labels + 1, V)
        self.packed = randn(rows, V)
        self.operands = [
            randn(count, self.num_frames, H), randn(count, self.num_labels + 1, H), randn(V, H), randn(V)
        ]  # fmt: skip


def chain(name, **options):
    def make(call, impl):
        function = getattr(pathsum.torch, name)
        return [call.chain], lambda scores: function(scores, *call.integers, reduction="none", impl=impl, **options)

    return make


def linear(call, impl):
    hidden, _, weight, bias = call.operands
    return [hidden, weight, bias], lambda *operands: pathsum.torch.ctc_linear_loss(
        *operands, *call.integers, reduction="none", batch_first=True, chunk=2, impl=impl
    )


def chain_risk(name):
    def make(call, impl):
        function = getattr(pathsum.torch, name)
        costs = torch.randn_like(call.chain)
        return [call.chain, costs], lambda scores, costs: function(
            scores, costs, *call.integers, reduction="none", impl=impl
        )

    return make


def asg(name, costs=(), ends=False, **options):
    def make(call, impl):
        tables = [torch.randn(C, C, dtype=torch.float64, generator=torch.Generator().manual_seed(4))]
        extra = [randn(C), randn(C)] if ends else [torch.randn_like(call.chain), randn(C, C)] if costs else []
        names = ("start_scores", "final_scores") if ends else costs

        def run(scores, transitions, *extra):
            if costs:
                arguments = (scores, extra[0], call.targets, transitions)
                further = {"transition_costs": extra[1]}
            else:
                arguments, further = (scores, call.targets, transitions), dict(zip(names, extra, strict=True))
            return getattr(pathsum.torch, name)(
                *arguments,
                input_lengths=call.frames,
                target_lengths=call.labels,
                reduction="none",
                impl=impl,
                **further,
                **options,
            )

        return [call.chain, *tables, *extra], run

    return make


def grid(name, packed=False, **options):
    def make(call, impl):
        function = getattr(pathsum.torch, name)
        scores = call.packed if packed else call.grid
        return [scores], lambda scores: function(
            scores, *call.integers, blank=BLANK, reduction="none", impl=impl, **options
        )

    return make


def grid_risk(call, impl):
    costs = torch.randn(*call.grid.shape[:-1], 2, dtype=torch.float64)
    return [call.grid, costs], lambda scores, costs: pathsum.torch.rnnt_expected_risk(
        scores, costs, *call.integers, blank=BLANK, reduction="none", impl=impl
    )


def joint(**options):
    def make(call, impl):
        return call.operands, lambda *operands: pathsum.torch.rnnt_joint_loss(
            *operands, *call.integers, blank=BLANK, gate=0.0, reduction="none", impl=impl, **options
        )

    return make


def from_joint(**options):
    def make(call, impl):
        def run(encoder_out, predictor_out, weight, bias):
            def join(encoder_rows, predictor_rows):
                return torch.tanh(encoder_rows + predictor_rows) @ weight.T + bias

            return pathsum.torch.rnnt_loss_from_joint(
                join, encoder_out, predictor_out, *call.integers, blank=BLANK, reduction="none", impl=impl, **options
            )

        return call.operands, run

    return make


def tdt(packed=False):
    def make(call, impl):
        tokens = call.packed if packed else call.grid
        durations = torch.randn(*tokens.shape[:-1], len(DURATIONS), dtype=torch.float64)
        return [tokens, durations], lambda tokens, durations: pathsum.torch.tdt_loss(
            tokens, durations, *call.integers, DURATIONS, blank=BLANK, reduction="none", impl=impl
        )

    return make


def restricted(call, impl):
    alignment = torch.zeros_like(call.targets)
    # Frames of labels that a sample without frames has cannot be told.
    labels = [u if t else 0 for t, u in zip(call.frames, call.labels, strict=True)]
    return [call.grid], lambda scores: pathsum.torch.ar_rnnt_loss(
        scores, call.targets, call.frames, labels, alignment, 1, 1, blank=BLANK, reduction="none", impl=impl
    )


LOSSES = {
    "ctc": chain("ctc_loss"),
    "ctc of logits": chain("ctc_loss", fused_log_softmax=True),
    "simple ctc": chain("simple_ctc_loss", fused_log_softmax=True, zero_infinity=True),
    "asg": asg("asg_loss"),
    "asg with ends": asg("asg_loss", ends=True),
    "rnnt": grid("rnnt_loss"),
    "rnnt of log-probabilities": grid("rnnt_loss", fused_log_softmax=False, zero_infinity=True),
    "rnnt modified": grid("rnnt_loss", rnnt_type="modified", delay_penalty=0.1),
    "rnnt constrained": grid("rnnt_loss", rnnt_type="constrained"),
    "hat": grid("rnnt_loss", hat=True),
    "packed": grid("rnnt_packed_loss", packed=True),
    "packed modified": grid("rnnt_packed_loss", packed=True, rnnt_type="modified"),
    "linear": linear,
    "joint": joint(),
    "joint modified": joint(rnnt_type="modified"),
    "from joint": from_joint(),
    "from joint hat": from_joint(hat=True, num_classes=V),
    "tdt": tdt(),
    "tdt packed": tdt(packed=True),
    "multi-blank": grid("multi_blank_rnnt_loss", big_blank_durations=[2], big_blanks=[-1]),
    "band": restricted,
    "wildcard": grid("wildcard_rnnt_loss", skip_score=-0.3),
    "ctc entropy": chain("ctc_entropy", fused_log_softmax=True),
    "simple ctc entropy": chain("simple_ctc_entropy"),
    "rnnt entropy": grid("rnnt_entropy"),
    "rnnt entropy packed": grid("rnnt_entropy", packed=True, rnnt_type="modified"),
    "asg entropy": asg("asg_entropy"),
    "asg entropy of all": asg("asg_entropy", paths="all"),
    "ctc risk": chain_risk("ctc_expected_risk"),
    "simple ctc risk": chain_risk("simple_ctc_expected_risk"),
    "rnnt risk": grid_risk,
    "asg risk": asg("asg_expected_risk", costs=("transition_costs",)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_derivatives_equal_the_reference(name, shape):
    found = {}
    for impl in ("numba", "reference"):
        torch.manual_seed(2)
        inputs, function = LOSSES[name](Call(shape), impl)
        found[impl] = derivatives(function, inputs, second="entropy" not in name and "risk" not in name)
    assert found["numba"].keys() == found["reference"].keys()
    for what, expected in found["reference"].items():
        for actual, wanted in zip(found["numba"][what], expected, strict=True):
            assert_close(actual, wanted, relative=1e-9, absolute=1e-9, what=f"{name}, {shape}: {what}")


def derivatives(function, inputs, *, second):
    """Values, gradients, second derivatives and Hessian-vector products."""
    losses = function(*inputs)
    leaves = [x.detach().requires_grad_() for x in inputs]
    # What no sample asks for has no gradient or zeros.
    gradients = torch.autograd.grad(function(*leaves).sum(), leaves, allow_unused=True, materialize_grads=True)
    found = {"losses": [losses], "gradients": gradients}
    if second:
        tangents = random_like(inputs)
        upstream = torch.rand(len(losses), dtype=torch.float64, requires_grad=True)
        gradients = torch.autograd.grad(function(*leaves), leaves, upstream, create_graph=True)
        found["second derivatives"] = torch.autograd.grad(gradients, leaves, tangents, retain_graph=True)
        # An index of no rows, torch's own, gives a gradient that knows nothing of what comes from above.
        found["slopes"] = torch.autograd.grad(gradients, upstream, tangents, allow_unused=True, materialize_grads=True)
        found["products"] = second_order.hvp(lambda *x: function(*x).sum(), tuple(inputs), tuple(tangents))
    return found
