"""NeMo's ``RNNTLoss`` with its ``loss_name`` and ``loss_kwargs``, and the modules behind the names.

The peer's quirks that are kept: ``"mean"`` divides by target lengths, so that an empty target makes it infinite; with
FastEmit the numba losses report the negative log-likelihood times ``1 + fastemit_lambda``; TDT's FastEmit and clamp
leave the durations' gradient alone; ``omega`` draws from Python's ``random`` whether a batch is scored as plain RNN-T;
arguments that a loss does not take are warned of and ignored. Not kept: TDT and multi-blank run on the CPU too, any
durations do, and -inf takes the place of the peer's -1000.

Where NeMo is installed, ``install("nemo")`` replaces the kernels that ``losses.rnnt`` has by name, and no more: the
peer's own ``RNNTLoss``, which models have imported by then, looks its kernels up there when a model is made.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pathsum.compat import warp_transducer
from pathsum.compat.conventions import Integers, as_one, check_floats, checked, report, transducer_losses
from pathsum.compat.warprnnt_numba import RNNTLossNumba, numba_utils
from pathsum.compat.warprnnt_numba.rnnt_numpy import RNNTLoss as RNNTLossNumpy
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.torch import multi_blank_rnnt_loss, tdt_loss, wildcard_rnnt_loss

REDUCTIONS = (None, "mean", "sum", "mean_batch", "mean_volume")


@checked
def reduce(
    losses: Tensor | Sequence[Tensor], target_lengths: Tensor | Sequence[Tensor], reduction: str | None
) -> Tensor:
    """NeMo's reductions of losses (N,), or of a list of those of its parts.

    mean_batch:  sum over n of losses[n] / N
    mean:        sum over n of losses[n] / target_lengths[n] / N
    mean_volume: sum over n of losses[n] / sum over n of target_lengths[n]
    sum:         sum over n of losses[n]
    """
    losses, target_lengths = (
        values if isinstance(values, Tensor) else torch.cat(list(values)) for values in (losses, target_lengths)
    )
    if reduction == "mean_batch":
        return losses.mean()
    if reduction == "mean":
        return (losses / target_lengths).mean()
    if reduction == "mean_volume":
        return losses.sum() / target_lengths.sum()
    return losses.sum() if reduction == "sum" else losses


class MultiblankRNNTLossNumba(nn.Module):
    """``MultiblankRNNTLossNumba``: the big blanks are the classes before the blank, the first duration's nearest to it.

    Example:
        >>> import torch
        >>> from pathsum.compat.nemo import MultiblankRNNTLossNumba
        >>> criterion = MultiblankRNNTLossNumba(blank=3, big_blank_durations=[2])  # 2 labels, a big blank, the blank
        >>> integers = torch.zeros(1, 0).long(), torch.tensor([2]), torch.tensor([0])
        >>> [round(x, 4) for x in criterion(torch.zeros(1, 2, 1, 4), *integers).neg().exp().tolist()]
        [0.3125]
    """

    @checked
    def __init__(
        self,
        blank: int,
        big_blank_durations: Sequence[int],
        reduction: str | None = "mean",
        fastemit_lambda: float = 0.0,
        clamp: float = -1,
        sigma: float = 0.0,
    ) -> None:
        super().__init__()
        self.blank = blank
        self.big_blank_durations = big_blank_durations
        self.reduction = reduction
        self.fastemit_lambda = fastemit_lambda
        self.clamp = clamp
        self.sigma = sigma

    def losses(self, acts: Tensor, labels: Integers, act_lens: Integers, label_lens: Integers) -> Tensor:
        return multi_blank_rnnt_loss(
            acts,
            labels,
            act_lens,
            label_lens,
            self.big_blank_durations,
            [self.blank - 1 - i for i in range(len(self.big_blank_durations))],
            blank=self.blank,
            sigma=self.sigma,
            fastemit_lambda=self.fastemit_lambda,
            clamp=self.clamp,
            reduction="none",
        )

    @checked
    def forward(self, acts: Tensor, labels: Integers, act_lens: Integers, label_lens: Integers) -> Tensor:
        losses = self.losses(acts, labels, act_lens, label_lens)
        return as_one(report(losses * (1 + self.fastemit_lambda), losses), self.reduction)


class TDTLossNumba(nn.Module):
    """``TDTLossNumba``: the last columns are the durations'.

    Example:
        >>> import torch
        >>> from pathsum.compat.nemo import TDTLossNumba
        >>> criterion = TDTLossNumba(blank=3, durations=[0, 1, 2], sigma=0.05)
        >>> loss = criterion(torch.zeros(1, 3, 2, 7), torch.tensor([[0]]), torch.tensor([3]), torch.tensor([1]))
        >>> [round(x, 6) for x in loss.tolist()]
        [4.155739]
    """

    @checked
    def __init__(
        self,
        blank: int,
        durations: Sequence[int] | None = None,
        reduction: str | None = "mean",
        fastemit_lambda: float = 0.0,
        clamp: float = -1,
        sigma: float = 0.0,
        omega: float = 0.0,
    ) -> None:
        super().__init__()
        self.blank = blank
        self.durations = durations or []
        self.reduction = reduction
        self.fastemit_lambda = fastemit_lambda
        self.clamp = clamp
        self.sigma = sigma
        self.omega = omega

    def losses(self, acts: Tensor, labels: Integers, act_lens: Integers, label_lens: Integers) -> Tensor:
        check_floats("TDTLoss", "acts", acts, "(N, T, U+1, V)")
        if len(self.durations) >= acts.shape[-1]:
            rule = f"have more columns than the {len(self.durations)} of the durations"
            raise InvalidValueError("TDTLoss", "acts", rule, f"shape {tuple(acts.shape)}")
        tokens, spans = acts.split([acts.shape[-1] - len(self.durations), len(self.durations)], -1)
        integers = labels, act_lens, label_lens
        emphasis: dict[str, Any] = {"fastemit_lambda": self.fastemit_lambda, "clamp": self.clamp}
        if self.omega > 0 and random.uniform(0, 1) < self.omega:
            return transducer_losses(tokens, *integers, self.blank, **emphasis)
        options = (*integers, self.durations, self.blank)
        common: dict[str, Any] = {"sigma": self.sigma, "reduction": "none"}
        if self.fastemit_lambda == 0 and self.clamp <= 0:
            return tdt_loss(tokens, spans, *options, **common)
        # The gradients of the two heads from a loss each: what is for the labels is not for the durations.
        by_labels = tdt_loss(tokens, spans.detach(), *options, **common, **emphasis)
        by_durations = tdt_loss(tokens.detach(), spans, *options, **common)
        return report(by_labels, by_labels + by_durations)

    @checked
    def forward(self, acts: Tensor, labels: Integers, act_lens: Integers, label_lens: Integers) -> Tensor:
        losses = self.losses(acts, labels, act_lens, label_lens)
        return as_one(report(losses * (1 + self.fastemit_lambda), losses), self.reduction)


class RNNTLossPytorch(nn.Module):
    """``RNNTLossPytorch``, with NeMo's own reductions.

    Example:
        >>> import torch
        >>> from pathsum.compat.nemo import RNNTLossPytorch
        >>> integers = torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1])
        >>> round(RNNTLossPytorch(0, "mean_volume")(torch.zeros(1, 2, 2, 2), *integers).item(), 4)
        1.3863
    """

    @checked
    def __init__(self, blank: int, reduction: str | None) -> None:
        super().__init__()
        self.blank = blank
        self.reduction = reduction

    @checked
    def forward(self, acts: Tensor, labels: Integers, act_lens: Tensor, label_lens: Tensor) -> Tensor:
        losses = transducer_losses(acts, labels, act_lens, label_lens, self.blank)
        return reduce(losses, label_lens, self.reduction)


class MultiblankRNNTLossPytorch(MultiblankRNNTLossNumba):
    """``MultiblankRNNTLossPytorch``: ``MultiblankRNNTLossNumba`` with NeMo's own reductions."""

    @checked
    def __init__(
        self, blank: int, big_blank_durations: Sequence[int], reduction: str | None = "sum", sigma: float = 0.0
    ) -> None:
        super().__init__(blank, big_blank_durations, reduction, sigma=sigma)

    @checked
    def forward(self, acts: Tensor, labels: Integers, act_lens: Tensor, label_lens: Tensor) -> Tensor:
        return reduce(self.losses(acts, labels, act_lens, label_lens), label_lens, self.reduction)


class TDTLossPytorch(TDTLossNumba):
    """``TDTLossPytorch``: ``TDTLossNumba`` with NeMo's own reductions."""

    @checked
    def __init__(
        self, blank: int, durations: Sequence[int] = (), reduction: str | None = "sum", sigma: float = 0.0
    ) -> None:
        super().__init__(blank, durations, reduction, sigma=sigma)

    @checked
    def forward(self, acts: Tensor, labels: Integers, act_lens: Tensor, label_lens: Tensor) -> Tensor:
        return reduce(self.losses(acts, labels, act_lens, label_lens), label_lens, self.reduction)


class GraphRnntLoss(nn.Module):
    """``GraphRnntLoss``: losses (N,). How the peer would build its graph is ignored; it cannot be returned.

    Example:
        >>> import torch
        >>> from pathsum.compat.nemo import GraphRnntLoss
        >>> integers = torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1])
        >>> [round(x, 4) for x in GraphRnntLoss(blank=0)(torch.zeros(1, 2, 2, 2), *integers).tolist()]
        [1.3863]
    """

    @checked
    def __init__(
        self,
        blank: int,
        use_grid_implementation: bool = True,
        connect_composed: bool = False,
        double_scores: bool = False,
        cast_to_float32: bool = False,
        return_graph: bool = False,
        use_triton: bool = True,
    ) -> None:
        super().__init__()
        if return_graph:
            raise InvalidValueError("GraphRnntLoss", "return_graph", "be False: there is no graph", return_graph)
        self.blank = blank
        self.reduction: str | None = None

    @checked
    def forward(self, acts: Tensor, labels: Integers, act_lens: Integers, label_lens: Integers) -> Tensor:
        return transducer_losses(acts, labels, act_lens, label_lens, self.blank)


class GraphWTransducerLoss(nn.Module):
    """``GraphWTransducerLoss``: losses (N,) of ``pathsum.torch.wildcard_rnnt_loss``.

    Example:
        >>> import torch
        >>> from pathsum.compat.nemo import GraphWTransducerLoss
        >>> integers = torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1])
        >>> loss = GraphWTransducerLoss(blank=0)(torch.zeros(1, 2, 2, 2), *integers)
        >>> [round(x, 4) for x in loss.neg().exp().tolist()]  # 1/4, and 1/4 for each frame skipped
        [0.75]
    """

    @checked
    def __init__(
        self,
        blank: int,
        eps_weight: float = 0.0,
        last_blank_mode: str = "force_final",
        use_grid_implementation: bool = True,
        connect_composed: bool = False,
        double_scores: bool = False,
        cast_to_float32: bool = False,
    ) -> None:
        super().__init__()
        self.blank = blank
        self.eps_weight = eps_weight
        modes = {"force_final": "blank", "allow_ignore": "any"}
        if last_blank_mode not in modes:
            raise InvalidValueError(
                "GraphWTransducerLoss", "last_blank_mode", f"be one of {', '.join(modes)}", last_blank_mode
            )
        self.final = modes[last_blank_mode]
        self.reduction: str | None = None

    @checked
    def forward(self, acts: Tensor, labels: Integers, act_lens: Integers, label_lens: Integers) -> Tensor:
        options: dict[str, Any] = {"skip_score": self.eps_weight, "final": self.final, "reduction": "none"}
        return wildcard_rnnt_loss(acts, labels, act_lens, label_lens, self.blank, **options)


# Each loss by its names, and the keywords that it takes.
_NUMBA = ("fastemit_lambda", "clamp")
_GRAPH = ("use_grid_implementation", "connect_composed", "double_scores", "cast_to_float32")
_LOSSES: dict[str, tuple[Callable[..., nn.Module], tuple[str, ...]]] = {
    "default": (RNNTLossNumba, _NUMBA),
    "warprnnt_numba": (RNNTLossNumba, _NUMBA),
    "warprnnt": (warp_transducer.RNNTLoss, ()),
    "pytorch": (RNNTLossPytorch, ()),
    "multiblank_rnnt": (MultiblankRNNTLossNumba, (*_NUMBA, "big_blank_durations", "sigma")),
    "multiblank_rnnt_pytorch": (MultiblankRNNTLossPytorch, ("big_blank_durations", "sigma")),
    "tdt": (TDTLossNumba, (*_NUMBA, "durations", "sigma", "omega")),
    "tdt_pytorch": (TDTLossPytorch, ("durations", "sigma")),
    "graph_rnnt": (GraphRnntLoss, (*_GRAPH, "return_graph", "use_triton")),
    "graph_w_transducer": (GraphWTransducerLoss, (*_GRAPH, "eps_weight", "last_blank_mode")),
}


class RNNTLoss(nn.Module):
    """``nemo.collections.asr.losses.rnnt.RNNTLoss``.

    Args:
        num_classes: Index of the blank.
        reduction: ``"mean_batch"``, ``"mean"``, ``"mean_volume"``, ``"sum"`` or ``None``: see ``reduce``.
        loss_name: One of the peer's names of losses.
        loss_kwargs: The loss's own options, such as ``fastemit_lambda``, ``clamp``, ``durations``, ``sigma``.

    Raises:
        ValueError: An unknown reduction or name.

    Example:
        >>> import torch
        >>> from pathsum.compat.nemo import RNNTLoss
        >>> criterion = RNNTLoss(num_classes=3, loss_name="tdt", loss_kwargs={"durations": [0, 1, 2], "sigma": 0.05})
        >>> integers = torch.tensor([[0]]), torch.tensor([3]), torch.tensor([1])
        >>> round(criterion(log_probs=torch.zeros(1, 3, 2, 7), targets=integers[0], input_lengths=integers[1],
        ...                 target_lengths=integers[2]).item(), 6)
        4.155739
    """

    @checked
    def __init__(
        self,
        num_classes: int,
        reduction: str | None = "mean_batch",
        loss_name: str = "default",
        loss_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError("`reduction` must be one of [mean, sum, mean_batch, mean_volume]")
        if loss_name not in _LOSSES:
            raise ValueError(f"Provided `loss_name` {loss_name} not in list of available RNNT losses {list(_LOSSES)}")
        make, taken = _LOSSES[loss_name]
        if loss_kwargs is not None and not isinstance(loss_kwargs, Mapping):
            raise InvalidTypeError("RNNTLoss", "loss_kwargs", "be a dict", type(loss_kwargs).__name__)
        given = dict(loss_kwargs or {})
        ignored = {name: value for name, value in given.items() if name not in taken}
        if ignored:
            warnings.warn(f"RNNTLoss: the loss {loss_name!r} takes no {', '.join(ignored)}; ignored.", stacklevel=2)
        graph = {} if loss_name.startswith("graph") else {"reduction": None}
        self._loss = make(blank=num_classes, **graph, **{name: given[name] for name in given if name in taken})
        self.reduction = reduction

    @checked
    def reduce(self, losses: Tensor | Sequence[Tensor], target_lengths: Tensor | Sequence[Tensor]) -> Tensor:
        """The losses of a batch reduced, or those of its parts in a list: NeMo's fused joint calls it."""
        return reduce(losses, target_lengths, self.reduction)

    @checked
    def forward(self, log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor) -> Tensor:
        losses = self._loss(acts=log_probs, labels=targets, act_lens=input_lengths, label_lens=target_lengths)
        return self.reduce(losses, target_lengths)


def is_numba_cuda_fp16_supported(return_reason: bool = False) -> bool | tuple[bool, str]:
    """Whether the peer's kernels run in half precision: here all dtypes run, in float32 and above inside."""
    supported = torch.cuda.is_available()
    return (supported, "a GPU is all it takes") if return_reason else supported


_ASR = "nemo.collections.asr"
_KERNELS = {
    "RNNTLossNumba": RNNTLossNumba,
    "MultiblankRNNTLossNumba": MultiblankRNNTLossNumba,
    "TDTLossNumba": TDTLossNumba,
}
_GRAPH_LOSS, _GRAPH_W_LOSS = {"GraphRnntLoss": GraphRnntLoss}, {"GraphWTransducerLoss": GraphWTransducerLoss}
# The peer's RNNTLoss finds its kernels by the names in its own module. A class is not replaced in the module that
# defines it: whoever has imported it would call super(Name, self) with the drop-in's Name.
PLACES = {
    f"{_ASR}.losses.rnnt": {
        **_KERNELS,
        "RNNTLossPytorch": RNNTLossPytorch,
        "MultiblankRNNTLossPytorch": MultiblankRNNTLossPytorch,
        "TDTLossPytorch": TDTLossPytorch,
        **_GRAPH_LOSS,
        **_GRAPH_W_LOSS,
    },
}
HELPERS = {
    f"{_ASR}.losses.rnnt": {"RNNTLoss": RNNTLoss},
    f"{_ASR}.parts.numba.rnnt_loss.rnnt_pytorch": _KERNELS,
    f"{_ASR}.parts.numba.rnnt_loss.rnnt_numpy": {"RNNTLoss": RNNTLossNumpy},
    f"{_ASR}.parts.k2.graph_transducer": _GRAPH_LOSS,
    f"{_ASR}.parts.k2.w_transducer": _GRAPH_W_LOSS,
    "nemo.core.utils.numba_utils": {
        **numba_utils.NAMES,
        "is_numba_cuda_fp16_supported": is_numba_cuda_fp16_supported,
    },
}
