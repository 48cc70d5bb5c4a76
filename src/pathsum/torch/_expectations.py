"""Expectations under the distribution of paths, p(path) = exp(score of path) / Z.

The posterior of an arc is the derivative of log Z by the arc's score; so the expectation of a sum of costs over the
arcs is one backward pass and a product, and its own derivative is a Hessian-vector product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathsum.kernels.reference.log_domain import exact, log_softmax
from pathsum.torch._ops.arrays import as_tensor
from pathsum.torch._private import transformed


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


def real_log_softmax(scores: Tensor, input_lengths: Any) -> Tensor:
    """Log-probabilities of logits (N, T, C), those of padding taken for zeros."""
    lengths = as_tensor(input_lengths).to(scores.device)
    real = torch.arange(scores.shape[1], device=scores.device) < lengths[:, None]
    return log_softmax(torch.where(real[:, :, None], scores, 0.0))


def posteriors_of(
    solve: Callable[..., Tensor], *scores: Tensor, beside: Sequence[Tensor | None] = ()
) -> tuple[Tensor, ...]:
    """Losses (N,), and minus their gradient by each tensor of scores; with a graph where one of them has one.

    ``beside``: what else the losses are made of.
    """
    if torch.compiler.is_compiling() or transformed():
        losses, pull, *_ = torch.func.vjp(solve, *scores)
        return losses, *(-gradient for gradient in pull(torch.ones_like(losses)))
    # The same without torch.func, whose first use imports the compiler.
    made_of = (tensor for tensor in (*scores, *beside) if tensor is not None)
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in made_of)
    with torch.enable_grad():
        leaves = [tensor if tensor.requires_grad else tensor.detach().requires_grad_() for tensor in scores]
        losses = solve(*leaves)
        gradients = torch.autograd.grad(losses.sum(), leaves, create_graph=wanted)
    return losses if wanted else losses.detach(), *(-gradient for gradient in gradients)


def product(posteriors: Tensor, costs: Tensor) -> Tensor:
    """A cost counts where the posterior is not 0, and may be infinite elsewhere."""
    return exact(posteriors) * torch.where(posteriors == 0, 0.0, exact(costs))
