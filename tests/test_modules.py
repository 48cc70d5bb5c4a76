"""Modules store the options of their functions and do nothing else."""

import inspect

import pytest
import torch

from pathsum.errors import ImplementationError
from pathsum.testing import assert_same_bits, chain_inputs, grid_inputs, pack_rows
from pathsum.torch import (
    ARRNNTLoss,
    ASGLoss,
    CTCLinearLoss,
    CTCLoss,
    MultiBlankRNNTLoss,
    RNNTJointLoss,
    RNNTLoss,
    RNNTPackedLoss,
    SimpleCTCLoss,
    TDTLoss,
    WildcardRNNTLoss,
    ar_rnnt_loss,
    ctc_linear_loss,
    ctc_loss,
    forced_align,
    multi_blank_rnnt_loss,
    rnnt_joint_loss,
    rnnt_loss,
    rnnt_packed_loss,
    simple_ctc_loss,
    tdt_loss,
    wildcard_rnnt_loss,
)
from support import CHAIN

PAIRS = {
    CTCLoss: ctc_loss, SimpleCTCLoss: simple_ctc_loss, RNNTLoss: rnnt_loss, RNNTPackedLoss: rnnt_packed_loss,
    RNNTJointLoss: rnnt_joint_loss, TDTLoss: tdt_loss, MultiBlankRNNTLoss: multi_blank_rnnt_loss,
    ARRNNTLoss: ar_rnnt_loss, WildcardRNNTLoss: wildcard_rnnt_loss, CTCLinearLoss: ctc_linear_loss,
}  # fmt: skip
modules = pytest.mark.parametrize("module", PAIRS, ids=lambda module: module.__name__)


def inputs_of(module):
    """What the module is called with, by name."""
    return list(inspect.signature(module.forward).parameters)[1:]


@modules
def test_options_have_the_names_defaults_and_kinds_of_the_function(module):
    parameters = list(inspect.signature(PAIRS[module]).parameters.values())
    inputs = inputs_of(module)
    assert [p.name for p in parameters[: len(inputs)]] == inputs
    assert inputs[-1] in ("target_lengths", "alignment")
    stored = list(inspect.signature(module).parameters.values())
    options = parameters[len(inputs) :]
    assert [(p.name, p.default, p.kind) for p in stored] == [(p.name, p.default, p.kind) for p in options]


OTHERS = {
    "blank": 1, "reduction": "sum", "zero_infinity": True, "fused_log_softmax": True, "batch_first": True,
    "impl": "reference", "clamp": 0.1, "fastemit_lambda": 0.5, "overwrite_logits": True, "rnnt_type": "modified",
    "delay_penalty": 0.1, "hat": True, "activation": "relu", "gate": 0.5, "tile_memory": 2**20, "durations": [2, 1],
    "sigma": 0.1, "final": "any", "big_blank_durations": [3], "big_blanks": [4], "left": 2, "right": 3,
    "skip_score": -0.5, "check": "sync", "star": "any",
    "chunk": 3,
}  # fmt: skip


@modules
def test_every_option_reaches_the_function(module, monkeypatch):
    calls = []
    monkeypatch.setattr(f"pathsum.torch.modules.{PAIRS[module].__name__}", lambda *a, **k: calls.append((a, k)))
    names = list(inspect.signature(module).parameters)
    options = {name: OTHERS[name] for name in names}
    criterion = module(**options)
    criterion(*inputs_of(module))
    assert calls == [(tuple(inputs_of(module)), options)]
    for name, value in options.items():
        assert f"{name}={value!r}" in repr(criterion)
    assert not list(criterion.parameters())
    assert not criterion.state_dict()


@pytest.mark.parametrize("module", [CTCLoss, SimpleCTCLoss, RNNTLoss, RNNTPackedLoss])
def test_a_module_gives_the_loss_of_its_function(module):
    if PAIRS[module] in CHAIN.values():
        inputs = chain_inputs(9, 2, 5, 3, blank=-1)
        scores = torch.from_numpy(inputs.logits)
    else:
        inputs = grid_inputs(2, 5, 3, 5)
        scores = torch.from_numpy(inputs.logits)
        if module is RNNTPackedLoss:
            scores = torch.from_numpy(pack_rows(inputs.logits, *inputs[2:]))
    criterion = module(blank=-1, reduction="sum", fused_log_softmax=True)
    expected = PAIRS[module](scores, *inputs[1:], blank=-1, reduction="sum", fused_log_softmax=True)
    assert_same_bits(criterion(scores, *inputs[1:]), expected)


class WithLoss(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.criterion = CTCLoss()

    def forward(self, x):
        return x


@pytest.mark.parametrize("what, name", [
    (CTCLoss(), "CTCLoss"),
    (ASGLoss(3), "ASGLoss"),
    (WithLoss(), "CTCLoss"),
    (rnnt_loss, "rnnt_loss"),
    (forced_align, "forced_align"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_told_what_to_use_instead(what, name):
    with pytest.raises(ImplementationError, match=f"{name}: TorchScript cannot .* torch.compile or torch.export"):
        torch.jit.script(what)
