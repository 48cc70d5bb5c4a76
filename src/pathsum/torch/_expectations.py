"""Expectations under the distribution of paths, p(path) = exp(score of path) / Z.

The posterior of an arc is the derivative of log Z by the arc's score; so the expectation of a sum of costs over the
arcs is one backward pass and a product, and its own derivative is a Hessian-vector product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathsum import _checks, dispatch
from pathsum.kernels.reference import grid_arcs as reference
from pathsum.kernels.reference.log_domain import exact, log_softmax
from pathsum.lattice import ArcLattice
from pathsum.problems.rnnt_types import RNNT_TYPES, pose_rnnt_type
from pathsum.reductions import reduce
from pathsum.torch._arcs import plane_losses, read_planes
from pathsum.torch._inputs import PACKED, PADDED, SINGLE, Integers, as_given, in_batch, on_device, pose_logits
from pathsum.torch._ops.arrays import as_tensor
from pathsum.torch._private import transformed
from pathsum.torch.asg import PosedASG
from pathsum.torch.ctc import PosedChain


class Expected(NamedTuple):
    """Losses (N,), minus log Z of each sample, and expected costs (N,), 0 where no path exists."""

    losses: Tensor
    costs: Tensor

    def entropies(self) -> Tensor:
        """log Z - E[score] (N,), where the costs are the scores; 0 where no path exists."""
        infeasible = self.losses == torch.inf
        found = torch.where(infeasible, 0.0, -torch.where(infeasible, 0.0, self.losses) - self.costs)
        # What rounding has left below 0 is 0, and has a gradient still.
        return found + (found.clamp(min=0) - found).detach()


def chain_log_probs(posed: PosedChain, logits: bool) -> Tensor:
    """Scores (N, T, C) of the arcs, 0 in padding, which a softmax would have to read.

    In ``exact``'s dtype: what is made of them is the difference of a log-sum and a mean score, each as large as a loss.
    """
    scores = exact(posed.scores)
    return real_log_softmax(scores, posed.lattice.input_lengths) if logits else scores


def real_log_softmax(scores: Tensor, input_lengths: Any) -> Tensor:
    """Log-probabilities of logits (N, T, C), those of padding taken for zeros."""
    lengths = as_tensor(input_lengths).to(scores.device)
    real = torch.arange(scores.shape[1], device=scores.device) < lengths[:, None]
    return log_softmax(torch.where(real[:, :, None], scores, 0.0))


def chain_expectation(posed: PosedChain, log_probs: Tensor, costs: Tensor) -> Expected:
    """Of costs (N, T, C) of emitting a class in a frame."""
    losses, posteriors = _posteriors(lambda scores: posed.solve(scores, logits=False), log_probs)
    return Expected(losses, _product(posteriors, costs).sum((1, 2)))


def asg_expectation(posed: PosedASG, paths: str, costs: Tensor, transition_costs: Tensor | None) -> Expected:
    """Of costs (N, T, C) of a label in a frame, and (C, C) of a transition."""

    def solve(scores: Tensor, transitions: Tensor) -> Tensor:
        return posed.solve(paths, scores, transitions)

    losses, posteriors = _posteriors(lambda scores: solve(scores, posed.transitions), posed.scores)
    expected = _product(posteriors, costs).sum((1, 2))
    if transition_costs is None:
        return Expected(losses, expected)
    # The counts of transitions are summed over the samples of a call, and are wanted of each.
    counts = [_transition_counts(posed, paths, n) for n in range(len(posed.scores))]
    of_transitions = [_product(count, transition_costs).sum() for count in counts]
    return Expected(losses, expected + torch.stack(of_transitions) if counts else expected)


def _transition_counts(posed: PosedASG, paths: str, sample: int) -> Tensor:
    """(C, C) how often each transition is expected in a sample."""
    own = slice(sample, sample + 1)

    one = posed._replace(all_paths=_part(posed.all_paths, own), target_paths=_part(posed.target_paths, own))
    scores = posed.scores[own]
    return _posteriors(lambda transitions: one.solve(paths, scores, transitions), posed.transitions)[1]


def _part(lattice: Any, samples: slice) -> Any:
    """The lattice of some of the samples; what was one array stays one."""
    arrays = {name: value for name, value in vars(lattice).items() if hasattr(value, "ndim")}
    parts = {id(array): array[samples] for array in arrays.values()}
    return replace(lattice, **{name: parts[id(array)] for name, array in arrays.items()})


class PosedRNNT(NamedTuple):
    """The arguments of a function on the transducer's arcs, checked.

    Attributes:
        lattice: of NumPy arrays, or of tensors where values are unknown.
        planes: (2, rows) log-scores of the blank arcs and of the label arcs.
        batched: whether the caller's logits had a batch axis, or were packed.
        impl: the implementation chosen.
    """

    lattice: ArcLattice
    planes: Tensor
    batched: bool
    impl: str

    def read(self, costs: Tensor) -> Tensor:
        """Planes (2, rows) of costs (N, T, U+1, 2) or (rows, 2)."""
        return read_planes(costs, self.lattice, (0, 1), self.impl, softmax=False)

    def solve(self, planes: Tensor) -> Tensor:
        return plane_losses(planes, self.lattice, self.impl)

    def reduce(self, values: Tensor, reduction: str) -> Tensor:
        return as_given(reduce(values, reduction), self.batched, reduction)


def pose_rnnt(
    function: str,
    logits: Tensor,
    targets: Integers,
    logit_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int,
    reduction: str,
    fused_log_softmax: bool,
    rnnt_type: str,
    impl: str,
) -> PosedRNNT:
    fused_log_softmax = _checks.check_flag(function, "fused_log_softmax", fused_log_softmax)
    integers = (targets, logit_lengths, target_lengths)
    logits, integers, batched = in_batch(function, logits, integers, layouts=(PADDED, SINGLE, PACKED))
    grid = pose_logits(function, logits, integers, blank)
    _checks.check_reduction(function, reduction)
    _checks.check_option(function, "rnnt_type", rnnt_type, RNNT_TYPES)
    chosen = dispatch.select(function, logits.device.type, impl)
    lattice = pose_rnnt_type(grid, rnnt_type)
    planes = read_planes(logits, lattice, lattice.reads[0], chosen, softmax=fused_log_softmax)
    if lattice.terms != _OWN_PLANES:
        # Costs are of arcs, so these have planes of their own.
        placed = on_device(lattice, planes.device)
        planes = reference.arc_scores([planes], placed, sigma=0.0, delay_penalty=0.0, fastemit_lambda=0.0)
        lattice = replace(lattice, terms=_OWN_PLANES)
    return PosedRNNT(lattice, planes, batched, chosen)


_OWN_PLANES = (((0, 0),), ((1, 0),))


def rnnt_expectation(posed: PosedRNNT, costs: Tensor) -> Expected:
    """Of costs (2, rows) of the blank arc and of the label arc out of each node."""
    losses, posteriors = _posteriors(posed.solve, posed.planes)
    offsets = as_tensor(posed.lattice.row_offsets).to(losses.device)
    rows = torch.arange(posteriors.shape[1], device=losses.device)
    sample = torch.searchsorted(offsets[1:], rows, right=True)
    return Expected(losses, torch.zeros_like(losses).index_add(0, sample, _product(posteriors, costs).sum(0)))


def directional(
    solve: Callable[..., Tensor], scores: tuple[Tensor, ...], costs: tuple[Tensor | None, ...]
) -> tuple[Tensor, Tensor]:
    """Loss (1,) and expected cost (1,) of one sample: of costs that go with each of its tensors of scores."""
    losses, posteriors = _all_posteriors(solve, scores)
    expected = [_product(found, own).sum() for found, own in zip(posteriors, costs, strict=True) if own is not None]
    return losses, torch.stack(expected).sum().expand(1)


def _all_posteriors(solve: Callable[..., Tensor], scores: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
    """As ``_posteriors``, of several tensors of scores."""
    sizes = [tensor.numel() for tensor in scores]

    def of_one(flat: Tensor) -> Tensor:
        parts = flat.split(sizes)
        return solve(*(part.reshape(own.shape).to(own.dtype) for part, own in zip(parts, scores, strict=True)))

    losses, posteriors = _posteriors(of_one, torch.cat([tensor.double().flatten() for tensor in scores]))
    return losses, [part.reshape(own.shape) for part, own in zip(posteriors.split(sizes), scores, strict=True)]


def _posteriors(solve: Callable[[Tensor], Tensor], scores: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (N,), and minus their gradient in the shape of the scores, both differentiable."""
    if torch.compiler.is_compiling() or transformed():
        losses, pull, *_ = torch.func.vjp(solve, scores)
        (gradient,) = pull(torch.ones_like(losses))
        return losses, -gradient
    # The same without torch.func, whose first use imports the compiler.
    wanted = torch.is_grad_enabled()
    with torch.enable_grad():
        leaf = scores if scores.requires_grad else scores.detach().requires_grad_()
        losses = solve(leaf)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf, create_graph=wanted)
    return (losses if wanted else losses.detach()), -gradient


def _product(posteriors: Tensor, costs: Tensor) -> Tensor:
    """A cost counts where the posterior is not 0, and may be infinite elsewhere."""
    return exact(posteriors) * torch.where(posteriors == 0, 0.0, exact(costs))
