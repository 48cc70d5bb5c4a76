"""Every loss of ``pathsum.torch`` under every transform of torch: what is called, and what it must give.

A cell is a loss and a transform. What a transform gives is compared with plain first and second derivatives of the
float64 reference, taken by ordinary backward passes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from pathsum.testing import assert_close, chain_inputs, grid_inputs, pack_rows
from pathsum.torch import (
    Joiner,
    ar_rnnt_loss,
    asg_loss,
    ctc_linear_loss,
    ctc_loss,
    multi_blank_rnnt_loss,
    rnnt_joint_loss,
    rnnt_loss,
    rnnt_loss_from_joint,
    rnnt_packed_loss,
    simple_ctc_loss,
    tdt_loss,
    wildcard_rnnt_loss,
)


class Case(NamedTuple):
    """A loss with tiny inputs.

    Attributes:
        tensors: what it is differentiated by, float64.
        integers: targets and lengths, int64 tensors.
        loss: called ``loss(tensors, integers, impl)``; losses (N,).
    """

    tensors: tuple[Tensor, ...]
    integers: tuple[Tensor, ...]
    loss: Callable[..., Tensor]


def _chain(function: Callable[..., Tensor]) -> Case:
    inputs = chain_inputs(4, 2, 3, 2, ragged=False, seed=1)
    integers = (inputs.targets, np.array([4, 3]), np.array([2, 1]))

    def loss(tensors, integers, impl):
        return function(tensors[0], *integers, fused_log_softmax=True, reduction="none", impl=impl)

    return Case(_doubles(inputs.logits), _longs(*integers), loss)


def _linear() -> Case:
    chain, random = _chain(ctc_loss), np.random.default_rng(6)

    def loss(tensors, integers, impl):
        return ctc_linear_loss(*tensors, *integers, reduction="none", chunk=2, impl=impl)

    return Case(_doubles(*(random.standard_normal(s) for s in ((4, 2, 2), (3, 2), (3,)))), chain.integers, loss)


def _asg() -> Case:
    inputs = chain_inputs(4, 2, 3, 2, repeats=0.0, ragged=False, seed=2)
    transitions = np.random.default_rng(0).standard_normal((3, 3))

    def loss(tensors, integers, impl):
        targets, *lengths = integers
        return asg_loss(tensors[0], targets, tensors[1], *lengths, reduction="none", impl=impl)

    return Case(_doubles(inputs.logits, transitions), _longs([[0, 1], [2, 0]], [4, 3], [2, 1]), loss)


_GRID = grid_inputs(2, 3, 2, 4, ragged=False, seed=3)
_LENGTHS = np.array([3, 2]), np.array([2, 1])


def _grid(call: Callable[..., Tensor], *others: np.ndarray, packed: bool = False) -> Case:
    logits = pack_rows(_GRID.logits, *_LENGTHS) if packed else _GRID.logits
    return Case(_doubles(logits, *others), _longs(np.minimum(np.abs(_GRID.targets), 1), *_LENGTHS), call)


def _rnnt(tensors, integers, impl):
    return rnnt_loss(tensors[0], *integers, reduction="none", impl=impl)


def _rnnt_modified(tensors, integers, impl):
    return rnnt_loss(tensors[0], *integers, reduction="none", rnnt_type="modified", impl=impl)


def _rnnt_packed(tensors, integers, impl):
    return rnnt_packed_loss(tensors[0], *integers, reduction="none", impl=impl)


def _tdt(tensors, integers, impl):
    return tdt_loss(*tensors, *integers, [0, 1, 2], reduction="none", impl=impl)


def _multi_blank(tensors, integers, impl):
    return multi_blank_rnnt_loss(tensors[0], *integers, [2], [-2], reduction="none", impl=impl)


def _ar(tensors, integers, impl):
    return ar_rnnt_loss(tensors[0], *integers, [[0, 1], [1, 1]], 1, 1, reduction="none", impl=impl)


def _wildcard(tensors, integers, impl):
    return wildcard_rnnt_loss(tensors[0], *integers, skip_score=-0.5, reduction="none", impl=impl)


def _joint(tensors, integers, impl):
    return rnnt_joint_loss(*tensors, *integers, reduction="none", gate=0.0, impl=impl)


def _of_joiner(tensors, integers, impl):
    return wildcard_rnnt_loss(Joiner(*tensors, gate=0.0), *integers, reduction="none", impl=impl)


def _from_joint(tensors, integers, impl):
    encoder, predictor, weight, bias = tensors

    def joint(e, p):
        return torch.tanh(e + p) @ weight.T + bias

    # It has no other implementation; its own truth is the loss of the joint with the same joiner.
    if impl == "reference":
        return _joint(tensors, integers, impl)
    return rnnt_loss_from_joint(joint, encoder, predictor, *integers, num_classes=4, reduction="none")


def _doubles(*arrays) -> tuple[Tensor, ...]:
    return tuple(torch.as_tensor(np.asarray(array), dtype=torch.float64) for array in arrays)


def _longs(*arrays) -> tuple[Tensor, ...]:
    return tuple(torch.as_tensor(np.asarray(array), dtype=torch.int64) for array in arrays)


def _operands() -> Case:
    random = np.random.default_rng(4)
    shapes = ((2, 3, 2), (2, 3, 2), (4, 2), (4,))
    return Case(_doubles(*(random.standard_normal(s) for s in shapes)), _grid(_joint).integers, _joint)


CASES = {
    "ctc_loss": _chain(ctc_loss),
    "simple_ctc_loss": _chain(simple_ctc_loss),
    "ctc_linear_loss": _linear(),
    "asg_loss": _asg(),
    "rnnt_loss": _grid(_rnnt),
    "rnnt_loss, modified": _grid(_rnnt_modified),
    "rnnt_packed_loss": _grid(_rnnt_packed, packed=True),
    "rnnt_joint_loss": _operands(),
    "rnnt_loss_from_joint": _operands()._replace(loss=_from_joint),
    "tdt_loss": _grid(_tdt, np.random.default_rng(5).standard_normal((2, 3, 3, 3))),
    "multi_blank_rnnt_loss": _grid(_multi_blank),
    "ar_rnnt_loss": _grid(_ar),
    "wildcard_rnnt_loss": _grid(_wildcard),
    "wildcard_rnnt_loss, of a Joiner": _operands()._replace(loss=_of_joiner),
}


class Truth(NamedTuple):
    """What the reference gives for a case.

    Attributes:
        losses: (N,)
        jacobian: for each tensor the derivative of every loss, (N, *shape).
        tangents: a direction, a tensor's shape each.
        pushed: (N,) derivative of the losses in that direction.
        hessian_product: for each tensor the Hessian of the losses' sum times the tangents.
    """

    losses: Tensor
    jacobian: tuple[Tensor, ...]
    tangents: tuple[Tensor, ...]
    pushed: Tensor
    hessian_product: tuple[Tensor, ...]


@functools.cache
def truth(name: str) -> Truth:
    case = CASES[name]
    generator = torch.Generator().manual_seed(0)
    leaves = tuple(tensor.clone().requires_grad_() for tensor in case.tensors)
    tangents = tuple(torch.randn(t.shape, dtype=t.dtype, generator=generator) for t in leaves)
    losses = case.loss(leaves, case.integers, "reference")
    rows = [torch.autograd.grad(loss, leaves, retain_graph=True) for loss in losses]
    jacobian = tuple(torch.stack(column) for column in zip(*rows, strict=True))
    pushed = sum((j * t).flatten(1).sum(1) for j, t in zip(jacobian, tangents, strict=True))
    gradients = torch.autograd.grad(losses.sum(), leaves, create_graph=True)
    product = torch.autograd.grad(gradients, leaves, tangents)
    return Truth(losses.detach(), jacobian, tangents, pushed, product)


class Called(NamedTuple):
    """A case with an implementation, and its truth."""

    case: Case
    impl: str
    truth: Truth

    def losses(self, *tensors: Tensor) -> Tensor:
        return self.case.loss(tensors, self.case.integers, self.impl)

    def total(self, *tensors: Tensor) -> Tensor:
        return self.losses(*tensors).sum()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.case.tensors

    @property
    def every(self) -> tuple[int, ...]:
        return tuple(range(len(self.tensors)))

    def leaves(self) -> tuple[Tensor, ...]:
        return tuple(tensor.clone().requires_grad_() for tensor in self.tensors)


def same(actual, expected, what: str = "") -> None:
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, absolute=1e-9, what=what)


def summed(jacobian: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(j.sum(0) for j in jacobian)


def backward(called: Called) -> None:
    leaves = called.leaves()
    losses = called.losses(*leaves)
    same([losses], [called.truth.losses], "losses")
    same(torch.autograd.grad(losses.sum(), leaves), summed(called.truth.jacobian), "gradient")


def double_backward(called: Called) -> None:
    leaves = called.leaves()
    gradients = torch.autograd.grad(called.total(*leaves), leaves, create_graph=True)
    same(torch.autograd.grad(gradients, leaves, called.truth.tangents), called.truth.hessian_product)


def func_grad(called: Called) -> None:
    same(torch.func.grad(called.total, called.every)(*called.tensors), summed(called.truth.jacobian))


def jacrev(called: Called) -> None:
    same(torch.func.jacrev(called.losses, called.every)(*called.tensors), called.truth.jacobian)


def jvp(called: Called) -> None:
    losses, pushed = torch.func.jvp(called.losses, called.tensors, called.truth.tangents)
    same([losses, pushed], [called.truth.losses, called.truth.pushed])
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(called.tensors, called.truth.tangents, strict=True)]
        tangent = forward_ad.unpack_dual(called.losses(*duals)).tangent
        assert tangent is not None, "the tangent is lost"
        same([tangent], [called.truth.pushed])


def jacfwd(called: Called) -> None:
    same(torch.func.jacfwd(called.losses, called.every)(*called.tensors), called.truth.jacobian)


def forward_over_reverse(called: Called) -> None:
    gradient = torch.func.grad(called.total, called.every)
    _, product = torch.func.jvp(gradient, called.tensors, called.truth.tangents)
    same(product, called.truth.hessian_product)


def hessian(called: Called) -> None:
    rows = torch.func.hessian(called.total, called.every)(*called.tensors)
    _compare_hessian(rows, called)
    rows = torch.autograd.functional.hessian(called.total, called.tensors, vectorize=True)
    _compare_hessian(rows, called)


def _compare_hessian(rows, called: Called) -> None:
    for row, expected in zip(rows, called.truth.hessian_product, strict=True):
        product = sum(
            torch.tensordot(block, tangent, dims=tangent.ndim)
            for block, tangent in zip(row, called.truth.tangents, strict=True)
        )
        same([product], [expected])


def vmap(called: Called) -> None:
    copies = tuple(torch.stack([tensor, 0.5 * tensor]) for tensor in called.tensors)
    losses = torch.func.vmap(called.losses)(*copies)
    same(losses, [called.losses(*(copy[b] for copy in copies)) for b in range(2)])
    same([losses[0]], [called.truth.losses])
    gradients = torch.func.vmap(torch.func.grad(called.total, called.every))(*copies)
    same([gradient[0] for gradient in gradients], summed(called.truth.jacobian))


def _compiled(called: Called, backend: str) -> None:
    loss = torch.compile(called.case.loss, fullgraph=True, backend=backend)
    leaves = called.leaves()
    losses = loss(leaves, called.case.integers, called.impl)
    same([losses], [called.truth.losses], "losses")
    same(torch.autograd.grad(losses.sum(), leaves), summed(called.truth.jacobian), "gradient")
    # Other values of the same shapes: nothing of the first call may have become a constant.
    shorter = tuple(length.clamp(max=2) for length in called.case.integers[1:])
    if "packed" not in called.case.loss.__name__:
        integers = (called.case.integers[0], *shorter)
        same([loss(leaves, integers, called.impl)], [called.case.loss(leaves, integers, "reference")], "again")


def compile_default(called: Called) -> None:
    """With graph breaks, as ``torch.compile`` allows where it is not told otherwise."""
    leaves = called.leaves()
    losses = torch.compile(called.case.loss, backend="aot_eager")(leaves, called.case.integers, called.impl)
    same([losses], [called.truth.losses], "losses")
    same(torch.autograd.grad(losses.sum(), leaves), summed(called.truth.jacobian), "gradient")


def compile_inductor(called: Called) -> None:
    _compiled(called, "inductor")


def compile_aot_eager(called: Called) -> None:
    _compiled(called, "aot_eager")


# The graphs of func.grad and func.jvp go through ahead-of-time autograd for these alone: that every operator passes it
# is seen where the loss is compiled.
LOWERED = ("ctc_loss", "asg_loss", "rnnt_loss", "rnnt_joint_loss", "tdt_loss")


def _backend(called: Called) -> str:
    return "aot_eager" if any(called.case is CASES[name] for name in LOWERED) else "eager"


def compile_grad(called: Called) -> None:
    def gradient(tensors, integers):
        return torch.func.grad(lambda *t: called.case.loss(t, integers, called.impl).sum(), called.every)(*tensors)

    compiled = torch.compile(gradient, fullgraph=True, backend=_backend(called))
    same(compiled(called.tensors, called.case.integers), summed(called.truth.jacobian))


def compile_jvp(called: Called) -> None:
    def pushed(tensors, tangents, integers):
        return torch.func.jvp(lambda *t: called.case.loss(t, integers, called.impl), tensors, tangents)[1]

    compiled = torch.compile(pushed, fullgraph=True, backend=_backend(called))
    same([compiled(called.tensors, called.truth.tangents, called.case.integers)], [called.truth.pushed])


class _Module(torch.nn.Module):
    def __init__(self, called: Called) -> None:
        super().__init__()
        self.called = called

    def forward(self, tensors, integers):
        return self.called.case.loss(tensors, integers, self.called.impl)


def export(called: Called) -> None:
    for strict in (False, True):
        program = torch.export.export(_Module(called), (called.tensors, called.case.integers), strict=strict)
        same([program.module()(called.tensors, called.case.integers)], [called.truth.losses])


def autocast(called: Called) -> None:
    leaves = called.leaves()
    with torch.autocast("cpu", torch.bfloat16):
        losses = called.losses(*leaves)
    same([losses], [called.truth.losses], "losses")
    same(torch.autograd.grad(losses.sum(), leaves), summed(called.truth.jacobian), "gradient")
    # As a model has it: what layers put out is bfloat16, what they own is float32; so are two heads of two dtypes.
    activations = 2 if len(leaves) == 4 else 1
    mixed = tuple(
        tensor.to(torch.bfloat16 if k < activations else torch.float32).requires_grad_()
        for k, tensor in enumerate(called.tensors)
    )
    exact = tuple(tensor.detach().double().requires_grad_() for tensor in mixed)
    truth = called.case.loss(exact, called.case.integers, "reference")
    with torch.autocast("cpu", torch.bfloat16):
        losses = called.losses(*mixed)
    assert losses.dtype == torch.float32
    # Products, or weights, are rounded to bfloat16: five arcs of logits below 4, half a unit of 2**-7 each.
    budget = 0.08 if len(leaves) > 2 else 1e-5
    assert_close(losses, truth, absolute=budget, what="losses")
    gradients = torch.autograd.grad(losses.sum(), mixed)
    expected = torch.autograd.grad(truth.sum(), exact)
    for gradient, wanted, given in zip(gradients, expected, mixed, strict=True):
        assert gradient.dtype == given.dtype
        rounding = 2**-8 if given.dtype == torch.bfloat16 else 0.0
        assert_close(gradient, wanted, relative=rounding, absolute=budget, what="gradient")


def non_contiguous(called: Called) -> None:
    strided = []
    for tensor in called.tensors:
        room = torch.full((*reversed(tensor.shape), 2), torch.nan, dtype=tensor.dtype)
        view = room[..., 0].permute(*reversed(range(tensor.ndim)))
        strided.append(view.copy_(tensor).requires_grad_())
    losses = called.losses(*strided)
    same([losses], [called.truth.losses], "losses")
    same(torch.autograd.grad(losses.sum(), strided), summed(called.truth.jacobian), "gradient")


def checkpointed(called: Called) -> None:
    for use_reentrant in (False, True):
        leaves = called.leaves()
        losses = checkpoint(called.losses, *leaves, use_reentrant=use_reentrant)
        losses.sum().backward()
        same([leaf.grad for leaf in leaves], summed(called.truth.jacobian))


TRANSFORMS = {
    "backward": backward,
    "double backward": double_backward,
    "func.grad": func_grad,
    "func.jacrev": jacrev,
    "func.jvp, forward_ad": jvp,
    "func.jacfwd": jacfwd,
    "func.jvp of func.grad": forward_over_reverse,
    "func.hessian, functional.hessian": hessian,
    "func.vmap, and of func.grad": vmap,
    "compile": compile_default,
    "compile(fullgraph=True), inductor": compile_inductor,
    "compile(fullgraph=True), aot_eager": compile_aot_eager,
    "compile(fullgraph=True) of func.grad": compile_grad,
    "compile(fullgraph=True) of func.jvp": compile_jvp,
    "export, strict or not": export,
    "autocast": autocast,
    "non-contiguous input": non_contiguous,
    "checkpoint, reentrant or not": checkpointed,
}


def call(name: str, transform: str, impl: str) -> None:
    """Run a cell: raises where it is not right."""
    TRANSFORMS[transform](Called(CASES[name], impl, truth(name)))
