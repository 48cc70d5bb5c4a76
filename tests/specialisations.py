"""Count how often the kernels of a loss would be compiled, over shapes whose lengths are odd and even; a program.

    python specialisations.py <loss> ...

Triton's own launcher decides, on a driver that does nothing, and nothing is compiled or run. Prints a JSON list a line:
loss, kernels that the first shape asks for, and those that the other shapes ask for beside.
"""

import json
import sys
from unittest import mock

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from pathsum import dispatch
from pathsum.graphs import linear, over_ctc
from pathsum.testing import chain_inputs, grid_inputs, pack_rows
from pathsum.torch import (
    asg_loss,
    ctc_loss,
    lattice_loss,
    rnnt_joint_loss,
    rnnt_loss,
    rnnt_packed_loss,
    simple_ctc_loss,
)
from pathsum.torch._triton import tiles
from variants import VARIANTS

# Every combination of an odd and an even number of samples, frames and labels, of the same powers of two.
SHAPES = [(n, t, s) for n in (2, 3) for t in (18, 19) for s in (5, 6)]
CLASSES = 7


class Driver:
    """A device that is not there."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def chains(function, num_samples, num_frames, num_labels):
    inputs = chain_inputs(num_frames, num_samples, CLASSES, num_labels, seed=1)
    leaves = [torch.from_numpy(inputs.logits).float()]
    integers = [torch.from_numpy(array) for array in inputs[1:]]
    if function is not asg_loss:
        return lambda x: function(x, *integers, impl="triton"), leaves
    leaves.append(torch.zeros(CLASSES, CLASSES))
    targets, lengths, labels = integers
    return lambda x, y: asg_loss(x, targets, y, lengths, labels, impl="triton"), leaves


def grids(function, num_samples, num_frames, num_labels):
    inputs = grid_inputs(num_samples, num_frames, num_labels, CLASSES, seed=1)
    logits, integers = torch.from_numpy(inputs.logits).float(), [torch.from_numpy(array) for array in inputs[1:]]
    if function is rnnt_packed_loss:
        logits = torch.from_numpy(pack_rows(inputs.logits, *inputs[2:])).float()
    if function is not rnnt_joint_loss:
        return lambda x: function(x, *integers, impl="triton"), [logits]
    shapes = ((num_samples, num_frames, 5), (num_samples, num_labels + 1, 5), (CLASSES, 5), (CLASSES,))
    return lambda *x: rnnt_joint_loss(*x, *integers, impl="triton"), [torch.zeros(shape) for shape in shapes]


def variants(variant, num_samples, num_frames, num_labels):
    inputs = grid_inputs(num_samples, num_frames, num_labels, 6, blank=1, seed=1)
    heads = [torch.zeros(*inputs.logits.shape[:3], size) for size in variant.heads]
    return lambda *x: variant.loss(x, *inputs[1:], impl="triton"), heads


def graphs(function, num_samples, num_frames, num_labels):
    graph = over_ctc(linear([1 + i % 2 for i in range(num_labels)]), CLASSES)
    leaves = [torch.zeros(num_frames, num_samples, CLASSES), torch.tensor(graph.weights)]
    return lambda x, y: function(x, graph, weights=y, impl="triton"), leaves


LOSSES = {
    "ctc": (chains, ctc_loss),
    "simple_ctc": (chains, simple_ctc_loss),
    "asg": (chains, asg_loss),
    "rnnt": (grids, rnnt_loss),
    "rnnt_packed": (grids, rnnt_packed_loss),
    "joint": (grids, rnnt_joint_loss),
    "lattice": (graphs, lattice_loss),
} | {name: (variants, variant) for name, variant in VARIANTS.items()}


def asked_for(loss, shape):
    """The specialisations that forward, backward and, where there are any, second derivatives are launched as."""
    found = set()

    def told(*, key, fn, **_):
        found.add((fn.module, fn.name, str(key)))
        # As if it were at hand already.
        return True

    make, function = LOSSES[loss]
    step, leaves = make(function, *shape)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    with mock.patch.object(knobs.runtime, "jit_cache_hook", told):
        gradients = torch.autograd.grad(step(*leaves), leaves, create_graph=True)
        torch.autograd.grad(torch.stack([(gradient * 0.5).sum() for gradient in gradients]).sum(), leaves)
    return found


def main(losses):
    driver.set_active(Driver())
    # What is listed is not known, as no kernel runs.
    unknown = mock.patch.object(tiles, "in_memory", return_value=False)
    with mock.patch.object(dispatch, "_check_triton", return_value=None), unknown:
        for loss in losses or LOSSES:
            first, *others = (asked_for(loss, shape) for shape in SHAPES)
            beside = set().union(*others) - first
            print(json.dumps([loss, len(first), sorted(f"{module}.{name}" for module, name, _ in beside)]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
