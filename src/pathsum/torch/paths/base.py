"""What distributions over paths have alike, whatever their lattice."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathsum import _checks, dispatch
from pathsum.display import arrays, as_html
from pathsum.kernels.protocol import Call, Kernels
from pathsum.options import ReductionName
from pathsum.reductions import reduce
from pathsum.torch._inputs import check_generator
from pathsum.torch._operators import Reduction


class Paths:
    """The distribution over the paths of a lattice, given scores: ``p(path) = exp(score of path) / Z``.

    ``ctc_paths``, ``asg_paths``, ``rnnt_paths``, ``graph_paths`` and their relatives make one. They check the
    arguments, pose the lattice and choose the kernels, once for all that is asked then. Every loss, aligner, posterior,
    entropy and risk of ``pathsum.torch`` is made of one.

    Attributes:
        function: The function that errors name.
        lattice: The integers, as arrays of NumPy, or as tensors where their values are unknown.
        impl: The implementation chosen.
        kernels: Its kernels.
        dtype: The results': float64 for float64 scores and float32 for all others.
        batched: Whether the caller's scores had a batch axis.
        target_lengths: (N,) by which a mean divides each loss, at least by 1; ``None`` where it does not.

    Example:
        >>> import torch
        >>> from pathsum.torch.paths import ctc_paths
        >>> paths = ctc_paths(torch.zeros(3, 1, 2), [[1]], fused_log_softmax=True)
        >>> paths
        ChainPaths(ctc_paths: N=1, T=3, C=2, float32, impl='numba')
        >>> round(paths.loss("sum").exp().item(), 4)  # 6 of the 8 labellings read as the target
        1.3333
    """

    target_lengths: Any = None

    def __init__(self, function: str, lattice: Any, kernels: Kernels, dtype: torch.dtype, batched: bool = True) -> None:
        self.function, self.lattice, self.kernels, self.impl = function, lattice, kernels, kernels.impl
        self.dtype, self.batched = dtype, batched

    def losses(self) -> Tensor:
        """Minus the log-sum over the paths, ``-log Z`` (N,), differentiable twice; inf where no path exists."""
        return self.kernels.losses(self.call(), Reduction(self.dtype, "none"))

    def exact_losses(self) -> Tensor:
        """The losses before they are rounded to the dtype of the result, of which differences are made."""
        return self.kernels.losses(self.call())

    def loss(self, reduction: ReductionName = "mean", zero_infinity: bool = False) -> Tensor:
        """The losses reduced, as the function named after the loss does it.

        Args:
            reduction: ``"none"``, ``"sum"`` or ``"mean"``; CTC's mean divides by the target lengths first.
            zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.

        Returns:
            A tensor of no axis, or losses (N,) with ``"none"``.

        Raises:
            InvalidValueError: Another reduction.
            InvalidTypeError: ``zero_infinity`` is not a bool.
        """
        wanted = self.wanted(reduction, zero_infinity)
        return self.kernels.losses(self.call(), wanted)

    def wanted(self, reduction: ReductionName, zero_infinity: bool = False) -> Reduction:
        """What is to become of the losses, checked. That of one sample without a batch axis is the sum of one."""
        lengths = self.target_lengths if reduction == "mean" else None
        if lengths is not None:  # a copy: backward must not see the caller change them
            lengths = lengths.copy() if isinstance(lengths, np.ndarray) else lengths.clone()
        _checks.check_reduction(self.function, reduction)
        zero_infinity = _checks.check_flag(self.function, "zero_infinity", zero_infinity)
        if reduction == "none" and not self.batched:
            reduction = "sum"
        return Reduction(self.dtype, reduction, lengths, zero_infinity)

    def entropy(self) -> Tensor:
        """``-sum over paths of p log p`` (N,), in nats, differentiable; 0 where no path exists."""
        raise NotImplementedError

    def expected(self, costs: Tensor) -> Tensor:
        """The expected sum (N,) of the costs of a path's arcs, differentiable by costs and scores; 0 without paths."""
        raise NotImplementedError

    def posteriors(self) -> Any:
        """How probable each node and arc is among all paths; 0 in padding and where no path exists, without a graph."""
        raise NotImplementedError

    def best(self) -> Any:
        """The most probable path of each sample."""
        raise NotImplementedError

    def k_best(self, k: int) -> Any:
        """The k most probable paths of each sample in falling order, the first of which is ``best``'s.

        Args:
            k: At least 1. Of a sample with fewer paths the others have the log-score -inf, and -1 in all frames.

        Raises:
            ImplementationError: ``impl`` has no kernels that list paths.
        """
        raise NotImplementedError

    def sample(self, num_samples: int = 1, generator: torch.Generator | None = None) -> Any:
        """Paths drawn at random, independently, each as probable as its share in the sum over all paths.

        Args:
            num_samples: How many are drawn of each sample.
            generator: What draws, on the CPU; ``None``: torch's own.

        Returns:
            What ``k_best`` does.

        Raises:
            ImplementationError: ``impl`` has no kernels that draw paths.
        """
        raise NotImplementedError

    def reduce(self, values: Tensor, reduction: ReductionName) -> Tensor:
        """Values (N,) reduced as the losses are."""
        wanted = self.wanted(reduction)
        return reduce(values, wanted.reduction, wanted.weights_beside(values))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.function}: {self._size()}, {str(self.dtype)[6:]}, impl={self.impl!r})"

    def _repr_html_(self) -> str:
        return as_html(arrays(self.lattice)._replace(title=repr(self)))

    def _lister(self, kernels: str) -> Kernels:
        """What lists and draws single paths, by its name in the table."""
        dispatch.check_written(self.function, self.impl, kernels)
        return dispatch.kernels_of(self.impl, kernels)

    def _count(self, k: int, places: int) -> int:
        """How many paths are listed, as many of them kept in each of some places."""
        return _checks.check_copies(self.function, "k", k, 1, places)

    def _draws(self, num_samples: int, generator: torch.Generator | None, size: int, choices: int) -> Tensor:
        """(N, K, choices) numbers drawn evenly from [0, 1)."""
        count = _checks.check_copies(self.function, "num_samples", num_samples, 0, size * choices)
        check_generator(self.function, generator)
        return torch.rand(size, count, choices, generator=generator, dtype=torch.float64, device="cpu")

    def call(self) -> Call:
        """What the kernels are asked about."""
        raise NotImplementedError

    def _size(self) -> str:
        """The sizes of the scores, in words."""
        raise NotImplementedError

    def _defined(self, plane: Tensor, losses: Tensor, real: Tensor) -> Tensor:
        """Posteriors in the result's dtype, NaN where a sample has a NaN score, 0 in padding and where no path is."""
        losses = losses.reshape(-1, *[1] * (plane.ndim - 1))
        real = real.to(plane.device)
        plane = torch.where(real & (losses < torch.inf), plane, 0)
        return torch.where(real & losses.isnan(), torch.nan, plane).to(self.dtype)
