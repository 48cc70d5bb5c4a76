"""Who is measured, ours among them, each behind one small adapter; and the process that runs them apart.

``problem`` says what is asked, ``losses``, ``graphs`` and ``decoders`` hold the adapters, ``serving`` the process.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform

from . import decoders, graphs, losses
from .problem import Peer, Problem, Step, Stepper, load, save

__all__ = ["Peer", "Problem", "Step", "Stepper", "load", "save"]

_CTC = frozenset({("ctc_loss", "logits"), ("ctc_loss", "log_probs")})
_JOINT = frozenset({("rnnt_joint_loss", "initial")})
_EITHER_JOINT = _JOINT | {("rnnt_joint_loss", "peaky")}
_RNNT = frozenset({("rnnt_loss", "logits")})
_SCORES = _CTC | _RNNT | {("simple_ctc_loss", "logits"), ("rnnt_packed_loss", "logits")}
_WITH_TABLES = frozenset({("asg_loss", "logits"), ("tdt_loss", "logits")})

_MWER = frozenset({("ctc_mwer_loss", "logits")})
_GRAPHS = frozenset({("lattice_loss", "graph")})
_EITHER_GRAPH = _GRAPHS | {("lattice_loss", "ctc")}
_TEXTS = frozenset({("ctc_beam_decode", "labels"), ("ctc_beam_decode", "words")})
_DECODED = _TEXTS | {("ctc_beam_decode", "list")}


def _prepare_pathsum(problem: Problem) -> Stepper:
    own = {
        "ctc_mwer_loss": losses.prepare_pathsum_mwer,
        "lattice_loss": graphs.prepare_pathsum,
        "ctc_beam_decode": decoders.prepare_pathsum,
    }
    return own.get(problem.op, losses.prepare_pathsum)(problem)


def _prepare_torch(problem: Problem) -> Stepper:
    return (losses.prepare_torch_mwer if problem.op == "ctc_mwer_loss" else losses.prepare_torch)(problem)


PEERS = {
    "pathsum": Peer(
        ("pathsum", "torch"),
        "pathsum",
        _prepare_pathsum,
        _SCORES | _WITH_TABLES | _EITHER_JOINT | _MWER | _EITHER_GRAPH | _DECODED,
    ),
    "pathsum-ctc": Peer(("pathsum", "torch"), "pathsum", losses.prepare_pathsum_ctc, _MWER | {("lattice_loss", "ctc")}),
    "pathsum-pyctcdecode": Peer(("pathsum",), "pathsum", decoders.prepare_pathsum_pyctcdecode, _TEXTS),
    "pathsum-packed": Peer(("pathsum", "torch"), "pathsum", losses.prepare_pathsum_packed, _EITHER_JOINT),
    "pathsum-padded": Peer(("pathsum", "torch"), "pathsum", losses.prepare_pathsum_padded, _JOINT),
    "pathsum-jax": Peer(
        ("pathsum", "jax"), "pathsum", losses.prepare_pathsum_jax, _SCORES - {("rnnt_packed_loss", "logits")}
    ),
    "pathsum-jax-plain": Peer(
        ("pathsum", "jax"), "pathsum", losses.prepare_pathsum_jax_plain, _SCORES - {("rnnt_packed_loss", "logits")}
    ),
    "torch": Peer(("torch",), "torch", _prepare_torch, _CTC | _MWER),
    "torchaudio": Peer(("torch", "torchaudio"), "torchaudio", losses.prepare_torchaudio, _RNNT | _JOINT),
    "warprnnt-numba": Peer(
        ("torch", "warprnnt_numba"), "warprnnt-numba", losses.prepare_warprnnt_numba, _RNNT | _JOINT
    ),
    "optax": Peer(("jax", "optax"), "optax", losses.prepare_optax, _CTC - {("ctc_loss", "log_probs")}),
    "pathsum-tensorflow": Peer(
        ("pathsum", "tensorflow"),
        "pathsum",
        losses.prepare_pathsum_tensorflow,
        _SCORES - {("rnnt_packed_loss", "logits")},
    ),
    "tensorflow": Peer(("tensorflow",), "tensorflow", losses.prepare_tensorflow, _CTC - {("ctc_loss", "log_probs")}),
    "tensorflow-sparse": Peer(
        ("tensorflow",), "tensorflow", losses.prepare_tensorflow_sparse, _CTC - {("ctc_loss", "log_probs")}
    ),
    "tf-seq2seq-losses": Peer(
        ("tensorflow", "tf_seq2seq_losses"),
        "tf-seq2seq-losses",
        losses.prepare_tf_seq2seq_losses,
        frozenset({("ctc_loss", "logits"), ("simple_ctc_loss", "logits")}),
    ),
    "k2": Peer(("torch", "k2"), "k2", graphs.prepare_k2, _EITHER_GRAPH),
    "gtn": Peer(("gtn",), "gtn", graphs.prepare_gtn, _GRAPHS),
    "fast-ctc-decode": Peer(
        ("fast_ctc_decode",),
        "fast-ctc-decode",
        decoders.prepare_fast_ctc_decode,
        _TEXTS - {("ctc_beam_decode", "words")},
    ),
    "flashlight-text": Peer(("flashlight",), "flashlight-text", decoders.prepare_flashlight, _TEXTS),
    "pyctcdecode": Peer(("pyctcdecode",), "pyctcdecode", decoders.prepare_pyctcdecode, _TEXTS),
    "copy": Peer(("torch",), "torch", losses.prepare_copy, _SCORES | _WITH_TABLES | _MWER | _EITHER_GRAPH),
}

# Ours that take part whatever peers are asked for: losses, of a joiner fused and of its logits, a CTC beside what is
# made of several, the decoder in pyctcdecode's place. And those that do as the peers do, installed and asked for. The
# gate holds all of them to what is promised.
ALWAYS = ("pathsum", "pathsum-packed", "pathsum-padded", "pathsum-ctc", "pathsum-pyctcdecode")
OURS = (*ALWAYS, "pathsum-jax", "pathsum-jax-plain", "pathsum-tensorflow")

RECORDED = (
    "numpy",
    "numba",
    "llvmlite",
    "torch",
    "torchaudio",
    "warprnnt-numba",
    "jax",
    "jaxlib",
    "optax",
    "tensorflow",
    "tf-seq2seq-losses",
    "k2",
    "gtn",
    "fast-ctc-decode",
    "flashlight-text",
    "pyctcdecode",
)


def installed(module: str) -> bool:
    """Whether a module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def available() -> list[str]:
    """The names in ``PEERS`` whose modules are installed in this interpreter."""
    return [name for name, peer in PEERS.items() if all(map(installed, peer.modules))]


def versions() -> dict[str, str | None]:
    """Versions of this interpreter and of what decides the numbers in it; None where not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in RECORDED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
