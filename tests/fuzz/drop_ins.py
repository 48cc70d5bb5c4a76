"""Legal calls of the drop-ins' functions and losses, for ``calls.py``: names as ``compat.warp_rnnt.rnnt_loss``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch

N, T, U, V = 2, 5, 2, 6
# Functions of scores and integers, and losses that are classes, called here as functions of their options and of both.
NAMES = {
    "ctc_forced_aligner": ["forced_align"],
    "espnet": ["MultiblankRNNTLossNumba", "RNNTLossNumba"],
    "fast_ctc_decode": ["beam_search", "viterbi_search"],
    "gtn": ["linear_graph", "scalar_graph"],
    "k2": [
        "ctc_graph", "ctc_topo", "do_rnnt_pruning", "get_rnnt_logprobs", "get_rnnt_logprobs_joint",
        "get_rnnt_logprobs_pruned", "get_rnnt_logprobs_smoothed", "get_rnnt_prune_ranges", "linear_fsa",
        "mutual_information_recursion", "rnnt_loss", "rnnt_loss_pruned", "rnnt_loss_simple", "rnnt_loss_smoothed",
    ],
    "keras": ["ctc", "ctc_batch_cost", "ctc_loss"],
    "nemo": [
        "GraphRnntLoss", "GraphWTransducerLoss", "MultiblankRNNTLossNumba", "MultiblankRNNTLossPytorch", "RNNTLoss",
        "RNNTLossNumba", "RNNTLossNumpy", "RNNTLossPytorch", "TDTLossNumba", "TDTLossPytorch",
    ],
    "optax": ["ctc_loss", "ctc_loss_with_forward_probs"],
    "optimized_transducer": ["TransducerLoss", "transducer_loss"],
    "speechbrain": ["TransducerLoss", "transducer_loss"],
    "tensorflow": ["ctc_loss"],
    "tf_seq2seq_losses": ["classic_ctc_loss", "simplified_ctc_loss"],
    "torch_asg": ["ASGLoss", "force_align", "full_connect"],
    "torch_functional": ["CTCLoss", "ctc_loss"],
    "torchaudio": ["RNNTLoss", "forced_align", "rnnt_loss"],
    "transformers": ["tdt_loss"],
    "warp_rnnt": ["rnnt_loss"],
    "warp_transducer": ["RNNTLoss", "rnnt_loss"],
    "warpctc_pytorch": ["CTCLoss"],
    "warprnnt_numba": ["RNNTLossNumba", "rnnt_loss"],
    "whisperx": ["backtrack", "get_trellis"],
}  # fmt: skip
LABELS = ("labels", "symbols", "targets", "tokens", "target", "y_true")


def names() -> list[str]:
    return [f"compat.{peer}.{name}" for peer, own in NAMES.items() for name in own]


def function(name: str) -> Callable[..., Any]:
    """The function, or a class as a function of its options and its call's arguments."""
    module, _, own = name.rpartition(".")
    found = getattr(importlib.import_module(f"pathsum.{module}"), own)
    if not inspect.isclass(found):
        return found
    options = inspect.signature(found).parameters
    method = found.forward if issubclass(found, torch.nn.Module) else found.__call__
    arguments = list(inspect.signature(method).parameters.values())[1:]

    def loss(**given: Any) -> Any:
        own = {key: given.pop(key) for key in options if key in given}
        return found(**own)(**given)

    together = {p.name: p.replace(kind=p.KEYWORD_ONLY) for p in (*options.values(), *arguments)}
    loss.__signature__ = inspect.Signature(list(together.values()))
    loss.__name__ = own
    return loss


def base(name: str) -> dict[str, Any]:
    """The required arguments of a legal call, tensors of torch's."""
    torch.manual_seed(0)
    _, peer, own = name.split(".")
    grid, chain = torch.randn(N, T, U + 1, V), torch.randn(T, N, V).log_softmax(2)
    labels, frames, counts = torch.tensor([[1, 2], [3, 4]]), torch.tensor([5, 4]), torch.tensor([2, 1])
    boundary = torch.tensor([[0, 0, 2, 5], [0, 0, 1, 4]])
    ranges = torch.arange(2).expand(N, T, 2) + (torch.arange(T) > 2)[:, None]
    packed = torch.randn(int((frames * (counts + 1)).sum()), V)
    values = {
        **dict.fromkeys(LABELS, labels),
        **dict.fromkeys(("act_lens", "logit_lengths", "frames_lengths", "input_lengths", "logit_length", "T"), frames),
        **dict.fromkeys(("label_lens", "target_lengths", "labels_lengths", "label_length", "U"), counts),
        **dict.fromkeys(("acts", "logits", "log_probs", "token_logits"), grid),
        **dict.fromkeys(("blank", "blank_token_id", "termination_symbol"), 0),
        "duration_logits": torch.randn(N, T, U + 1, 2), "durations": [0, 1], "big_blank_durations": [2],
        "inputs": chain, "transition": torch.randn(V, V), "num_labels": V, "num_classes": 0, "reduction": "mean",
        "from_log_softmax": False, "boundary": boundary, "ranges": ranges, "s_range": 2,
        "am": torch.randn(N, T, V), "lm": torch.randn(N, U + 1, V), "px": torch.randn(N, U, T + 1),
        "py": torch.randn(N, U + 1, T), "px_grad": torch.rand(N, U, T + 1), "py_grad": torch.rand(N, U + 1, T),
        "M": 2, "N": 3, "weight": 0.5, "max_token": 3, "emission": torch.randn(T, V).log_softmax(1),
        "network_output": torch.rand(T, V).numpy(), "alphabet": "Nabcde",
    }  # fmt: skip
    values |= _of_peer(peer, own, chain, labels, frames, counts, packed)
    return {key: values[key] for key in (*_required(name), *(("durations",) if own.startswith("TDT") else ()))}


def _required(name: str) -> list[str]:
    return [p for p, of in inspect.signature(function(name)).parameters.items() if of.default is of.empty]


def _of_peer(
    peer: str, own: str, chain: torch.Tensor, labels: torch.Tensor, frames: torch.Tensor, counts: torch.Tensor,
    packed: torch.Tensor,
) -> dict[str, Any]:  # fmt: skip
    """What a peer takes otherwise."""
    batch_first = chain.transpose(0, 1).contiguous()
    one = {"log_probs": batch_first[:1], "targets": labels[:1]}
    paddings = (torch.arange(T) >= frames[:, None]).float(), (torch.arange(U) >= counts[:, None]).float()
    keras = {"target_length": counts, "output_length": frames, "output": batch_first}
    trellis = {"trellis": torch.zeros(T, U), "tokens": [1, 2]}
    otherwise: dict[str, dict[str, Any]] = {
        "ctc_forced_aligner": one,
        "torchaudio": one if own == "forced_align" else {"targets": labels.int()},
        "optimized_transducer": {"logits": packed},
        "optax": {
            "logits": batch_first, "logit_paddings": paddings[0], "labels": labels, "label_paddings": paddings[1],
        },
        "tensorflow": {"logits": chain},
        "tf_seq2seq_losses": {"logits": batch_first},
        "torch_functional": {"log_probs": chain},
        "warpctc_pytorch": {"acts": chain, "labels": torch.tensor([1, 2, 3])},
        "keras": {
            "ctc": {"y_true": labels, "y_pred": batch_first},
            "ctc_loss": {"target": labels, **keras},
            "ctc_batch_cost": {
                "y_true": labels, "y_pred": batch_first.exp(), "input_length": frames[:, None],
                "label_length": counts[:, None],
            },
        }.get(own, {}),
        "whisperx": {"tokens": [1, 2]} | (trellis if own == "backtrack" else {}),
        "k2": {"symbols": [[1, 2], [3]]} if own == "ctc_graph" else {"labels": [1, 2]} if own == "linear_fsa" else {},
    }  # fmt: skip
    if own in ("get_rnnt_logprobs_pruned", "rnnt_loss_pruned"):
        return {"logits": torch.randn(N, T, 2, V)}
    if peer in ("nemo", "espnet") and own.startswith("Multiblank"):
        return {"blank": 5, "acts": torch.randn(N, T, U + 1, 7)} if peer == "nemo" else {"blank": 5}
    return otherwise.get(peer, {})
