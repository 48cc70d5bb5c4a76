"""The transducer's losses that take the joiner's inputs, so that its logits never exist as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.utils.checkpoint import checkpoint

from pathsum import _checks, dispatch
from pathsum.errors import InvalidValueError
from pathsum.kernels.protocol import ArcOptions
from pathsum.kernels.reference import grid as reference_grid
from pathsum.kernels.reference.log_domain import exact, log_softmax
from pathsum.lattice import ArcLattice
from pathsum.options import RNNT_TYPES, Activation, Check, ReductionName, RNNTType, TorchImpl
from pathsum.problems.rnnt_types import pose_rnnt_type
from pathsum.reductions import reduce
from pathsum.torch._inputs import (
    Integers,
    as_given,
    batch_of_one,
    check_shape,
    finish,
    joined_in_batch,
    on_device,
    pose_nodes,
)
from pathsum.torch._private import transformed
from pathsum.torch.joiner import Joiner
from pathsum.torch.paths.grid import arc_call
from pathsum.torch.paths.rnnt import joint_paths


def rnnt_joint_loss(
    encoder_out: Tensor,
    predictor_out: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Integers,
    logit_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int = -1,
    *,
    activation: Activation = "tanh",
    reduction: ReductionName = "mean",
    fastemit_lambda: float = 0.0,
    clamp: float = -1,
    zero_infinity: bool = False,
    rnnt_type: RNNTType = "regular",
    delay_penalty: float = 0.0,
    hat: bool = False,
    gate: float | None = None,
    tile_memory: int | None = None,
    check: Check = "async",
    impl: TorchImpl = "auto",
) -> Tensor:
    """Recurrent neural network transducer loss of a joiner whose logits are never held.

    The loss of ``rnnt_loss`` for ``logits[n, t, u] = activation(encoder_out[n, t] + predictor_out[n, u]) @ weight.T +
    bias``. The logits exist a tile of rows at a time; backward makes them again where the gradient needs them.

    Args:
        encoder_out: Encoder output (N, T, H), or (T, H) for one sample; a tensor or, as all operands, a NumPy array.
            float32, float64, bfloat16 or float16, like the other operands; under autocast in any of them, and taken in
            autocast's but for float64.
        predictor_out: Predictor output (N, U+1, H), or (U+1, H) for one sample.
        weight: Output layer of the joiner (V, H).
        bias: Its bias (V,), or None.
        targets: Labels (N, U) or (sum of target_lengths,).
        logit_lengths: Frames of each sample (N,), at most T.
        target_lengths: Labels of each sample (N,), at most U.
        blank: Index of the blank class; negative counts from the end.
        activation: ``"tanh"``, ``"relu"``, ``"sigmoid"`` or ``"gelu"``.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: the mean over N, lengths not counted.
        fastemit_lambda: As in ``rnnt_loss``.
        clamp: As in ``rnnt_loss``: on the gradient with respect to the logits.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        rnnt_type: As in ``rnnt_loss``.
        delay_penalty: As in ``rnnt_loss``.
        hat: As in ``rnnt_loss``.
        gate: Backward skips nodes (t, u) of next to no posterior: of any frame, and of any label position, at most
            this share of the unit mass that goes through it. None: half an eps of the arithmetic, so that rounding
            costs more. 0 computes every node that has a gradient.
        tile_memory: Bytes for the tile that is held. None: 8 MiB on the CPU, where a larger one is no faster, and 32
            MiB elsewhere, so that products fill a device.
        check: As in ``rnnt_loss``.
        impl: ``"auto"`` (see ``pathsum.dispatch``), ``"numba"``, ``"triton"``, or ``"reference"``, which
            holds all logits.

    Returns:
        The reduced loss, float64 for float64 operands and float32 for all others.

    Raises:
        InvalidValueError: As in ``rnnt_loss``; also where the operands' shapes do not fit.
        InvalidTypeError: A dtype that is not accepted, or operands of different dtypes or devices.

    Notes:
        Only the real nodes of each sample are computed: padding costs nothing, but on a GPU where the lengths are on it
        and not read. Memory beyond the operands and their gradients: 32 bytes a node and the tile. Time: one product
        of (rows, H) by (H, V) in forward, three in backward for the share of the rows that the gate leaves.

        Deterministic for any number of threads up to the matrix products, whose order is the BLAS library's.

        Twice differentiable, a tile at a time as well, in eleven products beside the four of forward and backward; with
        ``hat`` by numba once; to any order by the reference. Not with ``fastemit_lambda`` or ``clamp``:
        ``create_graph=True`` raises NotDifferentiableError then.

    References:
        Graves (2012), arXiv 1211.3711. The tiles: Li et al. (2019), arXiv 1909.12415, without padding.

    Example:
        >>> import torch
        >>> from pathsum.torch import rnnt_joint_loss
        >>> encoder_out = torch.zeros(1, 2, 3, requires_grad=True)
        >>> predictor_out, weight = torch.zeros(1, 2, 3), torch.zeros(2, 3)
        >>> loss = rnnt_joint_loss(encoder_out, predictor_out, weight, None, [[0]], [2], [1])
        >>> round(loss.exp().item(), 4)  # 2 walks of 3 arcs, each arc of probability 1/2
        4.0
    """
    joiner = Joiner(encoder_out, predictor_out, weight, bias, activation=activation, gate=gate, tile_memory=tile_memory)
    paths = joint_paths(
        "rnnt_joint_loss", joiner, targets, logit_lengths, target_lengths, blank, rnnt_type=rnnt_type,
        delay_penalty=delay_penalty, hat=hat, fastemit_lambda=fastemit_lambda, clamp=clamp, check=check, impl=impl,
    )  # fmt: skip
    return paths.loss(reduction, zero_infinity)


def rnnt_loss_from_joint(
    joint_fn: Callable[[Tensor, Tensor], Tensor],
    encoder_out: Tensor,
    predictor_out: Tensor,
    targets: Integers,
    logit_lengths: Integers | int,
    target_lengths: Integers | int,
    blank: int = -1,
    *,
    num_classes: int | None = None,
    reduction: ReductionName = "mean",
    fastemit_lambda: float = 0.0,
    zero_infinity: bool = False,
    rnnt_type: RNNTType = "regular",
    delay_penalty: float = 0.0,
    hat: bool = False,
    rows_per_tile: int = 8192,
    impl: TorchImpl = "auto",
) -> Tensor:
    """Recurrent neural network transducer loss of any joiner, its logits made a tile at a time.

    The joiner is called on tiles of rows and, in backward, called again on each tile with the same random numbers, so
    that dropout is the same both times. Its parameters and whatever else it depends on get their gradients.

    Args:
        joint_fn: Maps encoder rows (R, H1) and predictor rows (R, H2) to logits (R, V), each row
            by itself. A module or function.
        encoder_out: Encoder output (N, T, H1), or (T, H1) for one sample; a tensor or a NumPy array.
        predictor_out: Predictor output (N, U+1, H2), or (U+1, H2) for one sample.
        targets: Labels (N, U) or (sum of target_lengths,).
        logit_lengths: Frames of each sample (N,), at most T.
        target_lengths: Labels of each sample (N,), at most U.
        blank: Index of the blank class; negative counts from the end.
        num_classes: V, the classes that ``joint_fn`` scores. None: ``joint_fn`` is called once more, on a row of
            zeros, to learn it.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: the mean over N, lengths not counted.
        fastemit_lambda: As in ``rnnt_loss``.
        zero_infinity: Make the loss of an infeasible sample 0 instead of infinity.
        rnnt_type: As in ``rnnt_loss``.
        delay_penalty: As in ``rnnt_loss``.
        hat: As in ``rnnt_loss``.
        rows_per_tile: Rows that are held at a time.
        impl: As in ``rnnt_loss``: what sums the paths; the joiner's work is torch's.

    Returns:
        The reduced loss, float64 for float64 encoder output and float32 for all others.

    Raises:
        InvalidValueError: As in ``rnnt_loss``; also where ``joint_fn`` returns another shape than (R, V).
        InvalidTypeError: A dtype that is not accepted.

    Notes:
        Only the real nodes of each sample are computed. Memory: what the joiner holds for one tile, and 48 bytes a
        node. A joiner that mixes rows, as batch normalisation does, sees the rows of a tile. Under the transforms of
        ``torch.func``, which have no checkpoints, all that the joiner holds is kept.

    References:
        Graves (2012), arXiv 1211.3711.

    Example:
        >>> import torch
        >>> from pathsum.torch import rnnt_loss_from_joint
        >>> output = torch.nn.Linear(3, 2)
        >>> encoder_out, predictor_out = torch.randn(1, 2, 3), torch.randn(1, 2, 3)
        >>> loss = rnnt_loss_from_joint(
        ...     lambda e, p: output(torch.tanh(e + p)), encoder_out, predictor_out, [[0]], [2], [1]
        ... )
        >>> loss.backward()
        >>> tuple(output.weight.grad.shape)
        (2, 3)
    """
    function = "rnnt_loss_from_joint"
    encoder_out, predictor_out, batched = joined_in_batch(function, encoder_out, predictor_out)
    check_shape(function, "predictor_out", predictor_out, (len(encoder_out), None, None), "(N, U+1, H)")
    _checks.check_device(function, "predictor_out", str(predictor_out.device), str(encoder_out.device))
    if num_classes is None:
        with torch.no_grad(), torch.random.fork_rng():
            rows = (operand.new_zeros(1, operand.shape[2]) for operand in (encoder_out, predictor_out))
            num_classes = joint_fn(*rows).shape[-1]
    num_classes = _checks.check_num_classes(function, num_classes)
    rows_per_tile = int(min(_checks.check_number(function, "rows_per_tile", rows_per_tile, minimum=1.0), 2**62))
    _checks.check_reduction(function, reduction)
    zero_infinity = _checks.check_flag(function, "zero_infinity", zero_infinity)
    hat = _checks.check_flag(function, "hat", hat)
    fastemit_lambda = _checks.check_number(function, "fastemit_lambda", fastemit_lambda, minimum=0.0)
    _checks.check_option(function, "rnnt_type", rnnt_type, RNNT_TYPES)
    delay_penalty = _checks.check_number(function, "delay_penalty", delay_penalty)
    chosen = dispatch.select(function, encoder_out.device.type, impl)
    integers = (targets, logit_lengths, target_lengths)
    shape = (len(encoder_out), encoder_out.shape[1], predictor_out.shape[1], num_classes)
    integers = integers if batched else batch_of_one(function, integers)
    nodes = Nodes.of(function, shape, integers, blank, rnnt_type, encoder_out.device)

    def score(encoder_rows: Tensor, predictor_rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = joint_fn(encoder_rows, predictor_rows)
        if logits.shape != (len(labels), num_classes):
            rule = f"return logits of shape (R, V) = ({len(labels)}, {num_classes})"
            raise InvalidValueError(function, "joint_fn", rule, f"shape {tuple(logits.shape)}")
        # In float64: a thousand float32 log-scores would cost the gradient three digits.
        logits = exact(logits)
        blank_logit = logits[:, nodes.blank]
        if hat:
            logits = logits.index_fill(1, torch.tensor([nodes.blank], device=logits.device), -torch.inf)
        log_probs = log_softmax(logits)
        label = log_probs.gather(1, labels[:, None])[:, 0]
        if hat:
            return logsigmoid(blank_logit), label + logsigmoid(-blank_logit)
        return log_probs[:, nodes.blank], label

    planes = []
    keep_all = transformed()
    for sample, frame, position, label in zip(*(x.split(rows_per_tile) for x in nodes[2:6]), strict=True):
        rows = encoder_out[sample, frame], predictor_out[sample, position], label
        # A checkpoint knows of backward alone.
        made = score(*rows) if keep_all else checkpoint(score, *rows, use_reentrant=False)
        planes.append(made)
    blank_scores, label_scores = (torch.cat(plane) for plane in zip(*planes, strict=True))
    options = ArcOptions(delay_penalty=delay_penalty, fastemit_lambda=fastemit_lambda)
    losses = nodes.losses(blank_scores, label_scores, options, chosen)
    return as_given(reduce(finish(losses, encoder_out, zero_infinity), reduction), batched, reduction)


class Nodes(NamedTuple):
    """The nodes of a transducer's grids, of which something scores the blank and the next label.

    Attributes:
        lattice: The arcs.
        blank: Index of the blank class.
        sample, frame, position: (rows,) of each node.
        label: (rows,) the next label, that of another node where there is none.
        has_label: (rows,) whether an arc of it is there.
    """

    lattice: ArcLattice
    blank: int
    sample: Tensor
    frame: Tensor
    position: Tensor
    label: Tensor
    has_label: Tensor

    @classmethod
    def of(
        cls, function: str, shape: tuple[int, int, int, int], integers: Sequence[Any], blank: int, rnnt_type: RNNTType,
        device: torch.device,
    ) -> Nodes:  # fmt: skip
        """Those of logits of a shape (N, T, U+1, V), which need not exist."""
        lattice = pose_nodes(function, shape, integers, _checks.check_blank(function, blank, shape[-1]))
        posed = pose_rnnt_type(lattice, rnnt_type)
        placed = on_device(posed, device)
        sample, frame, position = reference_grid._nodes(placed)
        column = position.clamp(max=placed.targets.shape[1] - 1)
        has_label = (position < placed.target_lengths[sample]) & (frame <= placed.last_frames[sample, column])
        return cls(posed, lattice.blank, sample, frame, position, placed.targets[sample, column], has_label)

    def losses(self, blank_scores: Tensor, label_scores: Tensor, options: ArcOptions, impl: str) -> Tensor:
        """Losses (N,) of the log-probabilities (rows,) of blank and label."""
        planes = torch.stack([blank_scores, torch.where(self.has_label, label_scores, -torch.inf)])
        return dispatch.kernels_of(impl, "arcs").losses(arc_call((planes,), self.lattice, options._replace(given=True)))
