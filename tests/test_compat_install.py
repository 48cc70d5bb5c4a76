"""``pathsum.compat.install``: peers changed in place, peers that are not there stood in for, and all of it undone."""

import importlib
import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest
import torch

from pathsum import compat
from pathsum.compat import install, torch_functional

ABSENT = "optimized_transducer"


@pytest.fixture
def absent(monkeypatch):
    """A peer that cannot be imported, though it may be installed."""

    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == ABSENT:
                raise ModuleNotFoundError(f"{name} is blocked", name=name)

    monkeypatch.delitem(sys.modules, ABSENT, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Block(), *sys.meta_path])


def test_a_peer_is_changed_in_place_and_back():
    original = torch.nn.functional.ctc_loss
    installation = install("torch_functional")
    assert torch.nn.functional.ctc_loss is torch_functional.ctc_loss
    assert installation.replaced == ["torch.nn.functional.ctc_loss"]
    assert installation.stand_ins == []
    installation.uninstall()
    assert torch.nn.functional.ctc_loss is original
    installation.uninstall()
    assert torch.nn.functional.ctc_loss is original


def test_the_modules_of_torch_use_what_is_installed():
    log_probs = torch.zeros(2, 1, 2, dtype=torch.bfloat16).log_softmax(2)
    criterion, arguments = torch.nn.CTCLoss(), (torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1]))
    with pytest.raises(RuntimeError, match="BFloat16"):
        criterion(log_probs, *arguments)
    with install("torch_functional"):
        assert criterion(log_probs, *arguments).isfinite()


def test_a_peer_that_is_not_there_is_stood_in_for(absent):
    with install(ABSENT) as installation:
        peer = importlib.import_module(ABSENT)
        assert peer.transducer_loss is importlib.import_module(f"pathsum.compat.{ABSENT}").transducer_loss
        assert installation.stand_ins == [ABSENT]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(ABSENT)


def test_a_stand_in_says_what_it_has_and_what_it_has_not(monkeypatch):
    monkeypatch.setattr(compat, "_module", lambda name: None)
    monkeypatch.delitem(sys.modules, "k2", raising=False)
    with install("k2"):
        peer = importlib.import_module("k2")
        with pytest.raises(
            AttributeError, match=r"k2 has no connect: it is not installed, .* has put CtcLoss, DenseFsaVec, "
        ):
            peer.connect  # noqa: B018
        with pytest.raises(
            ImportError, match=r"'connect' from 'k2' \(<pathsum.compat stands in for k2, which is not inst"
        ):
            from k2 import connect  # noqa: F401
        assert not hasattr(peer, "connect")
        assert peer.rnnt_loss_pruned is importlib.import_module("pathsum.compat.k2").rnnt_loss_pruned


def test_stand_ins_lie_in_packages_and_have_the_helpers(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "nemo"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(compat, "_module", lambda name: None)
    with install("nemo"):
        from nemo.collections.asr.losses.rnnt import RNNTLoss
        from nemo.core.utils import numba_utils

        assert RNNTLoss.__module__ == "pathsum.compat.nemo"
        assert isinstance(numba_utils, types.ModuleType)
        assert numba_utils.is_numba_cuda_fp16_supported() == torch.cuda.is_available()
    assert not [name for name in sys.modules if name.partition(".")[0] == "nemo"]


@pytest.mark.parametrize("peer", compat.PEERS)
def test_those_who_ask_importlib_find_what_stands_in(monkeypatch, peer):
    drop_in = importlib.import_module(f"pathsum.compat.{peer}")
    # What drop-ins themselves are made of is there.
    wanted = {
        place for place in drop_in.PLACES if place.partition(".")[0] not in ("keras", "optax", "tensorflow", "torch")
    }
    absent = {place.partition(".")[0] for place in wanted}
    for name in [name for name in sys.modules if name.partition(".")[0] in absent]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(compat, "_module", lambda name: None)
    with install(peer) as installation:
        assert wanted <= set(installation.stand_ins)
        for name in installation.stand_ins:
            spec = importlib.util.find_spec(name)
            assert spec is not None
            assert (spec.name, importlib.import_module(name).__package__) == (name, name)
            assert importlib.util.find_spec(f"{name}.another") is None


# NeMo in small: classes that name themselves in super(), and models that import the loss by name as soon as any part of
# the package is imported.
NEMO = {
    "nemo/__init__.py": "",
    "nemo/collections/__init__.py": "",
    "nemo/collections/asr/__init__.py": "from nemo.collections.asr import models",
    "nemo/collections/asr/models.py": """
from nemo.collections.asr.losses.rnnt import RNNTLoss

class Model:
    def __init__(self, reduction="mean_batch"):
        self.loss = RNNTLoss(num_classes=0, reduction=reduction)
""",
    "nemo/collections/asr/losses/__init__.py": "",
    "nemo/collections/asr/losses/rnnt.py": """
import torch
from nemo.collections.asr.parts.numba.rnnt_loss import RNNTLossNumba

class RNNTLoss(torch.nn.Module):
    def __init__(self, num_classes, reduction):
        super(RNNTLoss, self).__init__()
        self._loss = RNNTLossNumba(blank=num_classes, reduction="none", fastemit_lambda=0.0, clamp=-1.0)

    def forward(self, log_probs, targets, input_lengths, target_lengths):
        self._loss.reduction = None
        return self._loss(acts=log_probs, labels=targets, act_lens=input_lengths, label_lens=target_lengths).mean()
""",
    "nemo/collections/asr/parts/__init__.py": "",
    "nemo/collections/asr/parts/numba/__init__.py": "",
    "nemo/collections/asr/parts/numba/rnnt_loss/__init__.py": """
from nemo.collections.asr.parts.numba.rnnt_loss.rnnt_pytorch import RNNTLossNumba
""",
    "nemo/collections/asr/parts/numba/rnnt_loss/rnnt_pytorch.py": """
import torch

class RNNTLossNumba(torch.nn.Module):
    def __init__(self, blank, reduction, fastemit_lambda, clamp):
        super(RNNTLossNumba, self).__init__()
""",
}


@pytest.fixture
def small_nemo(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.partition(".")[0] == "nemo"]:
        monkeypatch.delitem(sys.modules, name)
    for name, text in NEMO.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "nemo"]:
        del sys.modules[name]


@pytest.mark.parametrize("before", [True, False], ids=["before the models", "after the models"])
def test_nemo_s_models_train_by_the_kernels_that_are_put_under_them(small_nemo, before):
    if not before:
        importlib.import_module("nemo.collections.asr.models")
    with install("nemo") as installation:
        assert {name.rpartition(".")[0] for name in installation.replaced} == {"nemo.collections.asr.losses.rnnt"}
        assert "nemo.collections.asr.losses.rnnt.RNNTLoss" not in installation.replaced
        models = importlib.import_module("nemo.collections.asr.models")
        criterion = models.Model().loss
        kernels = importlib.import_module("nemo.collections.asr.parts.numba.rnnt_loss.rnnt_pytorch")
        kernels.RNNTLossNumba(0, "none", 0.0, -1.0)  # the peer's own is still to be had, and sound
    assert type(criterion).__module__ == "nemo.collections.asr.losses.rnnt"
    integers = torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1])
    assert round(criterion(torch.zeros(1, 2, 2, 2), *integers).item(), 4) == 1.3863
    assert models.RNNTLoss(0, None)._loss.__class__ is kernels.RNNTLossNumba


def test_two_installations_are_undone_in_reverse():
    original = torch.nn.functional.ctc_loss
    with install("torch_functional"), install("torch_functional"):
        assert torch.nn.functional.ctc_loss is torch_functional.ctc_loss
    assert torch.nn.functional.ctc_loss is original


def test_an_exception_undoes_it():
    original = torch.nn.functional.ctc_loss
    with pytest.raises(KeyError), install("torch_functional"):
        raise KeyError
    assert torch.nn.functional.ctc_loss is original


def test_a_name_that_is_no_peers_is_refused():
    with pytest.raises(ValueError, match=r"install: peers must be among .* got torchaudo"):
        install("torch_functional", "torchaudo")
    assert torch.nn.functional.ctc_loss is not torch_functional.ctc_loss


@pytest.mark.parametrize("peer", compat.PEERS)
def test_every_peer_has_places_for_what_it_defines(peer):
    module = importlib.import_module(f"pathsum.compat.{peer}")
    for names in module.PLACES.values():
        assert names
        assert all(value.__module__.startswith("pathsum.compat.") for value in names.values())


def names_in(page):
    """(module, name) of every drop-in that a page tells to write."""
    text = (Path(__file__).parents[1] / page).read_text()
    for module, names in re.findall(r"from pathsum\.compat\.(\w+) import ([\w, ]+)", text):
        yield from ((module, name) for name in names.split(", "))
    yield from re.findall(r"pathsum\.compat\.(\w+)\.(\w+)\(", text)


@pytest.mark.parametrize("page", ["README.md", "docs/compat.md"])
def test_the_lines_to_write_exist(page):
    told = [(module, name) for module, name in names_in(page) if module in compat.PEERS]
    assert len(told) >= 9
    for module, name in told:
        assert hasattr(importlib.import_module(f"pathsum.compat.{module}"), name), (module, name)
