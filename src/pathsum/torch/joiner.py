"""A joiner's operands, given to a loss in place of the logits that it would make of them."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor

from pathsum.options import Activation

ACTIVATIONS = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "gelu": torch.nn.functional.gelu,
}


@dataclass(frozen=True, eq=False)
class Joiner:
    """The operands of a transducer's joiner, for losses that make its logits a tile at a time and never hold them.

    It stands for ``logits[n, t, u] = activation(encoder_out[n, t] + predictor_out[n, u]) @ weight.T + bias`` wherever a
    variant of the transducer's loss takes logits. By numba such a loss has first derivatives only, and
    ``create_graph=True`` raises NotDifferentiableError.

    Attributes:
        encoder_out: Encoder output (N, T, H), or (T, H) for one sample; a tensor or, as all operands, a NumPy array.
            float32, float64, bfloat16 or float16, like the other operands; under autocast in any of them, and taken in
            autocast's but for float64.
        predictor_out: Predictor output (N, U+1, H), or (U+1, H) for one sample.
        weight: Output layer of the joiner (V, H).
        bias: Its bias (V,), or None.
        activation: ``"tanh"``, ``"relu"``, ``"sigmoid"`` or ``"gelu"``.
        gate: What backward may skip, as in ``rnnt_joint_loss``; 0 skips nothing.
        tile_memory: Bytes for the tile that is held; None: 8 MiB on the CPU, 32 MiB elsewhere.

    Example:
        >>> import torch
        >>> from pathsum.torch import Joiner, wildcard_rnnt_loss
        >>> encoder_out, predictor_out, weight = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(2, 3)
        >>> loss = wildcard_rnnt_loss(Joiner(encoder_out, predictor_out, weight), [[0]], [2], [1])
        >>> round(1 / loss.exp().item(), 4)  # 2 walks of 3 arcs, 1 with the first and 1 with the last blank skipped
        0.75
    """

    encoder_out: Tensor
    predictor_out: Tensor
    weight: Tensor
    bias: Tensor | None = None
    _: KW_ONLY
    activation: Activation = "tanh"
    gate: float | None = None
    tile_memory: int | None = None

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encoder, predictor, weight and bias, of zeros where there is none."""
        bias = self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias
        return self.encoder_out, self.predictor_out, self.weight, bias

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, T, U+1, V) of the logits."""
        num_samples, num_frames, _ = self.encoder_out.shape
        return num_samples, num_frames, self.predictor_out.shape[1], self.weight.shape[0]

    @property
    def ndim(self) -> int:
        """4, as of padded logits."""
        return 4

    @property
    def dtype(self) -> torch.dtype:
        """The operands', where they have one."""
        return self.encoder_out.dtype

    @property
    def device(self) -> torch.device:
        """The operands'."""
        return self.encoder_out.device

    @property
    def tile_bytes(self) -> int:
        """``tile_memory`` as an int of 64 bits."""
        if self.tile_memory is None:
            return 2**23 if self.device.type == "cpu" else 2**25
        return int(min(self.tile_memory, 2**62))

    def logits(self) -> Tensor:
        """The logits (N, T, U+1, V) themselves."""
        hidden = ACTIVATIONS[self.activation](self.encoder_out[:, :, None] + self.predictor_out[:, None])
        return torch.nn.functional.linear(hidden, self.weight, self.bias)

    def cast(self) -> Joiner:
        """The same, its operands in the dtypes in which torch would multiply them.

        Under autocast all but float64 are cast, as by ``torch.nn.functional.linear``. Elsewhere encoder and predictor
        get one dtype, as in their sum.
        """
        target = autocast_dtype(self.device.type)

        def as_multiplied(operand: Tensor) -> Tensor:
            return operand if target is None or operand.dtype == torch.float64 else operand.to(target)

        encoder_out, predictor_out, weight = map(as_multiplied, (self.encoder_out, self.predictor_out, self.weight))
        bias = None if self.bias is None else as_multiplied(self.bias)
        dtype = torch.promote_types(encoder_out.dtype, predictor_out.dtype)
        return replace(
            self, encoder_out=encoder_out.to(dtype), predictor_out=predictor_out.to(dtype), weight=weight, bias=bias
        )


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype that products have on a device type under autocast; None where it is not on."""
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else None
