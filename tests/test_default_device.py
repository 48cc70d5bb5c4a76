"""Defaults of torch's that the caller has set for something else: the device and the dtype of new tensors."""

import inspect
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import pathsum.torch
from pathsum.graphs import ctc_topology
from pathsum.torch import second_order
from pathsum.torch.paths import asg_paths, graph_paths, tdt_paths

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
from calls import H, base, names

INTEGERS = ("targets", "alignment", "hypotheses", "references")


@contextmanager
def default(device=None, dtype=None):
    before = torch.get_default_dtype()
    torch.set_default_device(device)
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)


def tensors(result):
    """Every tensor of what a function returns."""
    if isinstance(result, torch.Tensor):
        return [result]
    fields = (
        result if isinstance(result, (tuple, list)) else vars(result).values() if hasattr(result, "__dict__") else ()
    )
    return [tensor for field in fields for tensor in tensors(field)]


def same(one, other):
    one, other = tensors(one), tensors(other)
    assert len(one) == len(other)
    for here, there in zip(one, other, strict=True):
        assert (here.device, here.dtype) == (there.device, there.dtype)
        assert torch.equal(here.nan_to_num(), there.nan_to_num())


def predict(last, state):
    """A caller's function whose tensors follow no default."""
    zeros = torch.zeros(len(last), H, dtype=torch.float32, device="cpu")
    return zeros, zeros[:, :1]


@pytest.mark.parametrize("listed", [False, True], ids=["tensors", "lists"])
@pytest.mark.parametrize("name", names())
def test_defaults_change_no_function(name, listed):
    function = getattr(pathsum.torch, name)
    arguments = base(name)
    if "predict" in arguments:
        arguments["predict"] = predict
    if listed:
        integers = {key for key, value in arguments.items() if key in INTEGERS or "lengths" in key}
        arguments = {key: value.tolist() if key in integers else value for key, value in arguments.items()}
    options = {"impl": "reference"} if "impl" in inspect.signature(function).parameters else {}
    torch.manual_seed(0)
    plain = function(**arguments, **options)
    for defaults in ({"device": "meta"}, {"dtype": torch.float64}):
        with default(**defaults):
            torch.manual_seed(0)
            changed = function(**arguments, **options)
        same(changed, plain)


def test_defaults_change_nothing_of_paths_and_of_listed_errors():
    tokens, durations, logits = torch.randn(1, 3, 3, 4), torch.randn(1, 3, 3, 2), torch.randn(4, 1, 3)

    def results():
        for impl in ("numba", "reference"):
            paths = tdt_paths(tokens, durations, [[1, 2]], [3], [2], [0, 1], 0, impl=impl)
            yield from (paths.losses(), paths.entropy(), *paths.posteriors(), *paths.best())
            yield paths.expected(torch.ones(1, 3, 3, 3, dtype=torch.float32, device="cpu"))
            every, target = asg_paths(logits, [[0, 1]], logits[:3, 0], impl=impl)
            yield from (every.best().paths, every.entropy(), *every.posteriors(), *target.posteriors())
            generator = torch.Generator(device="cpu").manual_seed(0)
            for found in (every, target, paths, graph_paths(logits, ctc_topology(3), impl=impl)):
                yield from (*found.k_best(3), *found.sample(2, generator))
        yield pathsum.torch.ctc_mwer_loss(logits, [[[1, 2], [2, 2]]], [4], [[2, 1]], [[0.0, 1.5]])

    plain = list(results())
    for defaults in ({"device": "meta"}, {"dtype": torch.float64}):
        with default(**defaults):
            changed = list(results())
        for one, other in zip(changed, plain, strict=True):
            same(one, other)


def test_defaults_change_no_gradient_of_the_compiled_kernels():
    arguments = base("ctc_loss")

    def derivatives():
        scores = arguments["log_probs"].clone().requires_grad_()
        loss = pathsum.torch.ctc_loss(**{**arguments, "log_probs": scores}, reduction="sum")
        return loss.detach(), *torch.autograd.grad(loss, scores)

    plain = derivatives()
    for defaults in ({"device": "meta"}, {"dtype": torch.float64}):
        with default(**defaults):
            changed = derivatives()
        same(changed, plain)


def test_defaults_change_no_second_derivative():
    points = torch.tensor([1.0, 2.0, 3.0])

    def results():
        blocks = second_order.hessian_blocks(lambda x: (x**3).sum(), points, rows_per_block=2)
        return [*blocks, second_order.hessian_diagonal(lambda x: (x**3).sum(), points, rows_per_block=2)]

    expected = torch.tensor([[6.0, 0.0, 0.0], [0.0, 12.0, 0.0], [0.0, 0.0, 18.0]])
    for defaults in ({}, {"device": "meta"}, {"dtype": torch.float64}):
        with default(**defaults):
            found = results()
        same(found, [expected[:2], expected[2:], expected.diagonal()])
