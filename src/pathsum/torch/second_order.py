"""Second derivatives of a loss, by products with its Hessian: none holds more than it returns and a block of rows.

They take any function of tensors, as ``torch.autograd.functional`` does, and differentiate twice whatever it calls. The
losses of ``pathsum.torch`` have kernels for it: a product costs about two gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import torch
from torch import Tensor

from pathsum.errors import InvalidValueError

__all__ = [
    "fisher_vector_product",
    "gauss_newton_product",
    "hessian",
    "hessian_blocks",
    "hessian_diagonal",
    "hvp",
]

# A tensor, or several: what comes back has the form of what was given.
Tensors = TypeVar("Tensors", Tensor, tuple[Tensor, ...])

# Entries of the rows that are computed together, where the caller does not say how many.
_BLOCK_ENTRIES = 2**18


def hvp(func: Callable[..., Tensor], inputs: Tensors, vectors: Tensors) -> Tensors:
    """Hessian-vector product: ``sum over j of d2 func / (d inputs[i] d inputs[j]) * vectors[j]``.

    Args:
        func: Maps the inputs to a tensor of one entry, such as a loss.
        inputs: A tensor or a tuple of tensors.
        vectors: One for each input, in its shape; or several at once, (K, *shape).

    Returns:
        The product in the shape of ``vectors``, without a graph.

    Raises:
        InvalidValueError: ``func`` returns more than one entry, or vectors do not have the shapes of the inputs.

    Notes:
        Unlike ``torch.autograd.functional.hvp`` it returns the product alone. Cost: a gradient with its graph, and for
        each vector a backward through it; of a loss of ``pathsum.torch`` that is O(N*T*S) or O(N*T*U) time and memory.

    References:
        Pearlmutter (1994), Fast exact multiplication by the Hessian.

    Example:
        >>> import torch
        >>> from pathsum.torch import ctc_loss
        >>> from pathsum.torch.second_order import hvp
        >>> def loss(logits):
        ...     return ctc_loss(logits, [[1]], [3], [1], fused_log_softmax=True, impl="reference")
        >>> logits = torch.zeros(3, 1, 2)
        >>> hvp(loss, logits, torch.ones(3, 1, 2)).abs().max().item() < 1e-7  # shifting all logits changes nothing
        True
    """
    leaves, gradients = _gradients(func, _as_tuple(inputs))
    given = _as_tuple(vectors)
    wanted, got = ([tuple(tensor.shape) for tensor in tensors] for tensors in (leaves, given))
    several = got != wanted
    if several and [shape[1:] for shape in got] != wanted:
        raise InvalidValueError("hvp", "vectors", f"have the shapes of the inputs, {wanted}, or (K, *shape)", got)
    products = _products(leaves, gradients, given, batched=several)
    return _in_form_of(inputs, products)


def hessian_blocks(
    func: Callable[[Tensor], Tensor], inputs: Tensor, *, rows_per_block: int | None = None
) -> Iterator[Tensor]:
    """The Hessian a block of rows at a time.

    Args:
        func: Maps the input to a tensor of one entry.
        inputs: A tensor of D entries.
        rows_per_block: Rows that are computed together; ``None``: as many as have a quarter of a million entries.

    Returns:
        An iterator over blocks (B, *inputs.shape): rows ``d2 func / (d inputs.flatten()[i] d inputs)``, i ascending;
        the last block may have fewer.

    Raises:
        InvalidValueError: ``func`` returns more than one entry, or ``rows_per_block`` is below 1.

    Notes:
        Cost: a gradient, and D Hessian-vector products. Memory: one block, and what the kernels hold for one product.

    Example:
        >>> import torch
        >>> from pathsum.torch.second_order import hessian_blocks
        >>> blocks = hessian_blocks(lambda x: (x**3).sum(), torch.tensor([1.0, 2.0, 3.0]), rows_per_block=2)
        >>> [block.tolist() for block in blocks]
        [[[6.0, 0.0, 0.0], [0.0, 12.0, 0.0]], [[0.0, 0.0, 18.0]]]
    """
    if rows_per_block is not None and rows_per_block < 1:
        raise InvalidValueError("hessian_blocks", "rows_per_block", "be at least 1", rows_per_block)
    size = inputs.numel()
    rows = rows_per_block or max(1, _BLOCK_ENTRIES // max(size, 1))
    (leaf,), gradients = _gradients(func, (inputs,))

    def blocks() -> Iterator[Tensor]:
        for first in range(0, size, rows):
            count = min(rows, size - first)
            units = leaf.new_zeros(count, size)
            units.diagonal(first).fill_(1.0)
            yield _products((leaf,), gradients, (units.view(count, *leaf.shape),), batched=True)[0]

    return blocks()


def hessian(func: Callable[[Tensor], Tensor], inputs: Tensor, *, rows_per_block: int | None = None) -> Tensor:
    """The Hessian, written a block of rows at a time.

    Args:
        func: Maps the input to a tensor of one entry.
        inputs: A tensor of D entries.
        rows_per_block: Rows that are computed together; ``None``: as many as have a quarter of a million entries.

    Returns:
        (*inputs.shape, *inputs.shape): ``d2 func / (d inputs[i] d inputs[j])``, ordered as torch does.

    Raises:
        InvalidValueError: As ``hessian_blocks``.

    Notes:
        Cost: a gradient, and D Hessian-vector products. Memory: D*D entries, those of a block, and what the kernels
        hold for one product.

    Example:
        >>> import torch
        >>> from pathsum.torch import ctc_loss
        >>> from pathsum.torch.second_order import hessian
        >>> def loss(log_probs):  # its two paths are 1 0 and 1 1, once 0 1 cannot be
        ...     return ctc_loss(log_probs, [[1]], [2], [1], impl="reference")
        >>> log_probs = torch.tensor([[[-torch.inf, 0.0]], [[0.0, 0.0]]])
        >>> hessian(loss, log_probs)[1, 0, :, 1, 0].tolist()
        [[-0.25, 0.25], [0.25, -0.25]]
    """
    matrix = inputs.new_empty(inputs.numel(), *inputs.shape)
    first = 0
    for block in hessian_blocks(func, inputs, rows_per_block=rows_per_block):
        matrix[first : first + len(block)] = block
        first += len(block)
    return matrix.view(*inputs.shape, *inputs.shape)


def hessian_diagonal(func: Callable[[Tensor], Tensor], inputs: Tensor, *, rows_per_block: int | None = None) -> Tensor:
    """The diagonal of the Hessian, exactly.

    Args:
        func: Maps the input to a tensor of one entry.
        inputs: A tensor of D entries.
        rows_per_block: Rows that are computed together; ``None``: as many as have a quarter of a million entries.

    Returns:
        ``d2 func / d inputs[i]2`` in the shape of ``inputs``.

    Raises:
        InvalidValueError: As ``hessian_blocks``.

    Notes:
        Cost: a gradient, and D Hessian-vector products; memory of one block. With respect to log-probabilities the sum
        of CTC's or the transducer's losses needs none of it: an arc is passed once or not at all, its count has
        variance gamma * (1 - gamma), and the diagonal is ``gradient * (1 + gradient)``.

    Example:
        >>> import torch
        >>> from pathsum.torch.second_order import hessian_diagonal
        >>> hessian_diagonal(lambda x: (x**3).sum(), torch.tensor([1.0, 2.0])).tolist()
        [6.0, 12.0]
    """
    diagonal = inputs.new_empty(inputs.numel())
    first = 0
    for block in hessian_blocks(func, inputs, rows_per_block=rows_per_block):
        diagonal[first : first + len(block)] = block.flatten(1).diagonal(first)[: len(block)]
        first += len(block)
    return diagonal.view_as(inputs)


def fisher_vector_product(func: Callable[..., Tensor], scores: Tensors, vectors: Tensors) -> Tensors:
    """Product with the Fisher information of the distribution of paths, with respect to the scores of the arcs.

    Paths have ``q(pi) = exp(x(pi) . scores) / Z``, x(pi) counting how often pi uses each score. The derivative of
    ``log q(pi)`` by the scores is ``x(pi) - E[x]``, so that the Fisher information is the covariance of the counts,
    ``F = E[(x - E[x]) (x - E[x])^T] = d2 log Z``, and with ``loss = -log Z`` it is minus the Hessian.

    Args:
        func: Maps the scores to the sum of losses that are minus the log-sum over paths: ``ctc_loss``,
            ``simple_ctc_loss`` or one of the transducer's with ``reduction="sum"`` and ``fused_log_softmax=False``. Not
            ``asg_loss``, the difference of two log-sums.
        scores: The scores of the arcs, such as log-probabilities. They are taken as they are, rows of any sum.
        vectors: One for each tensor of scores, in its shape; or several at once, (K, *shape).

    Returns:
        F times the vectors, in their shape, without a graph; samples do not mix. F is positive semidefinite.

    Raises:
        InvalidValueError: As ``hvp``.

    Notes:
        Cost: as ``hvp``. With respect to parameters of a network that makes the scores, the Fisher information is
        ``J^T F J``: minus the ``gauss_newton_product``.

    References:
        Amari (1998), Natural gradient works efficiently in learning.

    Example:
        >>> import torch
        >>> from pathsum.torch import ctc_loss
        >>> from pathsum.torch.second_order import fisher_vector_product
        >>> def loss(log_probs):  # three frames, six paths
        ...     return ctc_loss(log_probs, [[1]], [3], [1], reduction="sum", impl="reference")
        >>> log_probs = torch.zeros(3, 1, 2)
        >>> label = torch.tensor([0.0, 1.0]).expand(3, 1, 2)
        >>> round((label * fisher_vector_product(loss, log_probs, label)).sum().item(), 4)  # variance of 1 1 1 2 2 3
        0.5556
    """
    products = _as_tuple(hvp(func, scores, vectors))
    return _in_form_of(scores, tuple(-product for product in products))


def gauss_newton_product(
    func: Callable[..., Tensor], outputs: Tensor | tuple[Tensor, ...], inputs: Tensors, vectors: Tensors
) -> Tensors:
    """Product with the generalised Gauss-Newton matrix.

    ``J^T H J v`` with J = d outputs / d inputs and H = d2 func / d outputs2.

    It leaves out what the second derivatives of the network add to the Hessian. It is positive semidefinite where H
    is; a loss over paths is not convex in its logits, so that a solver has to be ready for negative curvature.

    Args:
        func: Maps ``outputs`` to a tensor of one entry.
        outputs: What a network has made of ``inputs``, with its graph, which is kept.
        inputs: Parameters that require gradients.
        vectors: One for each input, in its shape.

    Returns:
        The product in the shapes of ``inputs``, without a graph.

    Raises:
        InvalidValueError: ``func`` returns more than one entry, or vectors do not have the shapes of the inputs.

    Notes:
        Cost: three backward passes through the network, and a gradient and a Hessian-vector product of ``func``.

    References:
        Schraudolph (2002), Fast curvature matrix-vector products for second-order gradient descent; Martens (2010),
        Deep learning via Hessian-free optimization.

    Example:
        >>> import torch
        >>> from pathsum.torch.second_order import gauss_newton_product
        >>> weight = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> output = (weight * torch.tensor([3.0, 1.0])).sum()
        >>> gauss_newton_product(lambda y: y**2, output, weight, torch.tensor([1.0, 0.0])).tolist()
        [18.0, 6.0]
    """
    made, leaves, given = _as_tuple(outputs), _as_tuple(inputs), _as_tuple(vectors)
    shapes = [tuple(leaf.shape) for leaf in leaves]
    if [tuple(vector.shape) for vector in given] != shapes:
        got = [tuple(vector.shape) for vector in given]
        raise InvalidValueError("gauss_newton_product", "vectors", f"have the shapes of the inputs, {shapes}", got)
    # J v is the derivative of J^T u by u, whatever u is.
    anything = tuple(torch.zeros_like(output, requires_grad=True) for output in made)
    pulled = _grad(made, leaves, anything, create_graph=True)
    pushed = _grad(pulled, anything, given)
    curved = hvp(func, made, pushed)
    products = _grad(made, leaves, _as_tuple(curved), retain_graph=True)
    return _in_form_of(inputs, products)


def _as_tuple(tensors: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)


def _in_form_of(given: Tensors, tensors: tuple[Tensor, ...]) -> Tensors:
    return cast(Tensors, tensors[0] if isinstance(given, Tensor) else tensors)


def _gradients(
    func: Callable[..., Tensor], inputs: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Leaves of the inputs' values, and the gradients with their graph."""
    leaves = tuple(tensor.detach().requires_grad_() for tensor in inputs)
    with torch.enable_grad():
        value = func(*leaves)
        if value.numel() != 1:
            raise InvalidValueError("second_order", "func", "return one entry", f"shape {tuple(value.shape)}")
        return leaves, _grad((value.sum(),), leaves, None, create_graph=True)


def _products(
    leaves: tuple[Tensor, ...], gradients: tuple[Tensor, ...], vectors: tuple[Tensor, ...], *, batched: bool
) -> tuple[Tensor, ...]:
    if not any(gradient.requires_grad for gradient in gradients):
        return tuple(torch.zeros_like(vector) for vector in vectors)
    return _grad(gradients, leaves, vectors, retain_graph=True, is_grads_batched=batched)


def _grad(outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...], vectors: tuple[Tensor, ...] | None, **options: bool):
    """Backward passes, zero where nothing depends on an input."""
    kept = [k for k, output in enumerate(outputs) if output.requires_grad]
    chosen = None if vectors is None else [vectors[k] for k in kept]
    found = torch.autograd.grad(
        [outputs[k] for k in kept], inputs, chosen, allow_unused=True, materialize_grads=True, **options
    )
    return tuple(found)
