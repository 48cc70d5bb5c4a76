"""The others that compute a case's loss on a GPU, by name: steps to run, or why one is missing."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

DURATIONS = (0, 1, 2, 3, 4)


class Step(NamedTuple):
    """A contender: what it computes on the device, and the tensors whose gradients it is asked for."""

    forward: Callable[[], Tensor]
    leaves: tuple[Tensor, ...]

    def __call__(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.forward(), self.leaves)


Loss = Callable[..., Tensor]


def torchaudio() -> Loss:
    from torchaudio.functional import rnnt_loss

    return lambda logits, targets, *lengths: rnnt_loss(
        logits, targets.int(), *(length.int() for length in lengths), reduction="sum"
    )


def warprnnt_numba() -> Loss:
    from warprnnt_numba import RNNTLossNumba

    return _by_module(RNNTLossNumba)


def warprnnt_numba_locks() -> Loss:
    """SpeechBrain's kernel as warprnnt-numba carries it: blocks wait for each other by spin locks."""
    from warprnnt_numba.rnnt_loss.rnnt_atomic_locks.rnnt_atomic_locks_pytorch import RNNTLossNumbaAtomicLock

    return _by_module(RNNTLossNumbaAtomicLock)


def _by_module(criterion: Any) -> Loss:
    return lambda logits, targets, *lengths: criterion(logits.shape[-1] - 1, reduction="sum")(
        logits, targets.int(), *(length.int() for length in lengths)
    ).sum()


def speechbrain() -> Loss:
    try:
        from speechbrain.integrations.numba.transducer_loss import TransducerLoss
    except ImportError:
        from speechbrain.nnet.loss.transducer_loss import TransducerLoss
    return lambda logits, targets, *lengths: TransducerLoss(logits.shape[-1] - 1, "sum")(
        logits, targets.int(), *(length.int() for length in lengths)
    ).sum()


def hf_kernel() -> Loss:
    """kernels-community/tdt-loss, where its files are already on this machine."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from kernels import get_kernel

    kernel = get_kernel("kernels-community/tdt-loss", version=1)
    return lambda tokens, spans, *integers: kernel.tdt_loss(
        tokens, spans, *integers, blank_id=tokens.shape[-1] - 1, durations=list(DURATIONS), reduction="sum"
    )


def hf_transformers() -> Loss:
    from transformers.loss.loss_tdt import tdt_loss

    return lambda tokens, spans, *integers: tdt_loss(
        tokens, spans, *integers, blank_token_id=tokens.shape[-1] - 1, durations=list(DURATIONS), reduction="sum"
    )


def torch_native() -> Loss:
    return lambda logits, *integers: functional.ctc_loss(functional.log_softmax(logits, -1), *integers, reduction="sum")


def cudnn() -> Loss:
    """cuDNN's CTC, which torch takes for targets one after another and lengths on the host, all int32."""

    def loss(logits: Tensor, targets: Tensor, *lengths: Tensor) -> Tensor:
        rows, *host = (integer.cpu().int() for integer in (targets, *lengths))
        if int(host[1].max()) >= 256:
            raise ValueError("cuDNN has targets of at most 255 labels")
        flat = torch.cat([row[:length] for row, length in zip(rows, host[1].tolist(), strict=True)])
        return functional.ctc_loss(functional.log_softmax(logits, -1), flat, *host, reduction="sum")

    return loss


def optax() -> Loss:
    """optax's CTC, compiled by JAX for the same device; the step waits for it, for it runs in a stream of its own."""
    import jax
    from jax import numpy as jnp
    from optax import ctc_loss

    def summed(logits: Any, targets: Any, *ends: Any) -> Any:
        sizes = (logits.shape[0], targets.shape[1])
        frames, labels = (
            (jnp.arange(size) >= end[:, None]).astype(logits.dtype) for size, end in zip(sizes, ends, strict=True)
        )
        return ctc_loss(jnp.swapaxes(logits, 0, 1), frames, targets, labels).sum()

    step = jax.jit(jax.value_and_grad(summed))

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits: Tensor, *integers: Tensor) -> Tensor:
            if logits.is_cuda and jax.default_backend() != "gpu":
                raise RuntimeError("JAX sees no GPU")
            torch.cuda.current_stream().synchronize() if logits.is_cuda else None
            given = [jax.dlpack.from_dlpack(x.contiguous()) for x in (logits, *(i.int() for i in integers))]
            found = jax.block_until_ready(step(*given))
            loss, ctx.gradient = (torch.from_dlpack(x) for x in found)
            return loss

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
            return upstream * ctx.gradient, None, None, None

    return lambda logits, *integers: Loss.apply(logits, *integers)


TRANSDUCERS = {
    "torchaudio": torchaudio,
    "warprnnt-numba": warprnnt_numba,
    "warprnnt-numba, locks": warprnnt_numba_locks,
    "speechbrain": speechbrain,
}
PEERS: dict[str, dict[str, Callable[[], Loss]]] = {
    "ctc": {"torch": torch_native, "cudnn": cudnn, "optax": optax},
    "rnnt": TRANSDUCERS,
    "librispeech": TRANSDUCERS,
    "tdt": {"kernels-community/tdt-loss": hf_kernel, "transformers": hf_transformers},
}


def of(loss: str, leaves: list[Tensor], integers: list[Tensor]) -> dict[str, Step | str]:
    """The peers of a loss; of a joiner's operands they are given the logits, which the step makes."""
    found: dict[str, Step | str] = {}
    for name, load in PEERS.get(loss, {}).items():
        try:
            peer = load()
        # Whatever keeps a peer from being imported, it is not here: a broken build, a missing driver, no files.
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
            continue
        found[name] = Step(_step(loss, peer, leaves, integers), tuple(leaves))
    return found


def _step(loss: str, peer: Loss, leaves: list[Tensor], integers: list[Tensor]) -> Callable[[], Tensor]:
    if loss != "librispeech":
        return lambda: peer(*leaves, *integers)

    def joined() -> Tensor:
        encoder, predictor, weight, bias = leaves
        hidden = torch.tanh(encoder[:, :, None] + predictor[:, None])
        return peer(functional.linear(hidden, weight, bias), *integers)

    return joined
