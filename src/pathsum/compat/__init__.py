"""Drop-in modules, one for each peer: its names, argument order, defaults, reductions and values.

Either change the import line, to ``from pathsum.compat.<peer> import ...``, or leave the code as it is and ``install``
the peer's drop-in. Importing this package imports no framework.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from types import ModuleType
from typing import Any

PEERS = (
    "ctc_forced_aligner",
    "espnet",
    "fast_ctc_decode",
    "fast_rnnt",
    "gtn",
    "k2",
    "keras",
    "nemo",
    "optax",
    "optimized_transducer",
    "pyctcdecode",
    "speechbrain",
    "tensorflow",
    "tf_seq2seq_losses",
    "torch_asg",
    "torch_functional",
    "torchaudio",
    "transformers",
    "warp_rnnt",
    "warp_transducer",
    "warpctc_pytorch",
    "warprnnt_numba",
    "whisperx",
)


class Installation:
    """What ``install`` has changed, and the way back. A context manager.

    Attributes:
        replaced: Dotted names that now stand for a drop-in.
        stand_ins: Modules that were not there and now are.
    """

    def __init__(self) -> None:
        self.replaced: list[str] = []
        self.stand_ins: list[str] = []
        self._originals: list[tuple[dict[str, Any], str, Any]] = []

    def uninstall(self) -> None:
        """Put everything back as it was. A second time does nothing."""
        while self._originals:
            names, name, original = self._originals.pop()
            if original is _ABSENT:
                del names[name]
            else:
                names[name] = original
        for name in self.stand_ins:
            sys.modules.pop(name, None)
        self.replaced, self.stand_ins = [], []

    def __enter__(self) -> Installation:
        return self

    def __exit__(self, *_: object) -> None:
        self.uninstall()

    def __repr__(self) -> str:
        return f"Installation(replaced={self.replaced}, stand_ins={self.stand_ins})"

    def _put(self, names: dict[str, Any], name: str, value: Any) -> None:
        self._originals.append((names, name, names.get(name, _ABSENT)))
        names[name] = value

    def _fill(self, found: dict[str, dict[str, Any]], places: dict[str, dict[str, Any]]) -> None:
        for place, names in found.items():
            for name, value in places[place].items():
                self._put(names, name, value)
                self.replaced.append(f"{place}.{name}")

    def _stand_in(self, name: str) -> ModuleType:
        """The module of a name, made with the packages above it where there is none."""
        if name in sys.modules:
            return sys.modules[name]
        # A package: stand-ins may lie in it. By its spec those who ask importlib whether a library is there find it.
        module = module_from_spec(ModuleSpec(name, None, is_package=True))
        module.__doc__ = "Made by pathsum.compat.install."
        # Python names the file of a module from which it cannot import a name.
        module.__file__ = f"<pathsum.compat stands in for {name}, which is not installed>"
        module.__getattr__ = _missing_from(module)  # pyright: ignore[reportAttributeAccessIssue]
        sys.modules[name] = module
        self.stand_ins.append(name)
        parent, _, leaf = name.rpartition(".")
        if parent:
            self._put(vars(self._stand_in(parent)), leaf, module)
        return module


_ABSENT = object()


def install(*peers: str) -> Installation:
    """Put the drop-ins of peers where the peers' own functions are, until ``uninstall``.

    Args:
        peers: Names among ``pathsum.compat.PEERS``.

    Returns:
        What was changed: ``replaced`` and ``stand_ins``. Its ``uninstall()`` undoes it, as leaving a ``with`` does.

    Raises:
        ValueError: A name that is not a peer's.

    Notes:
        Where a peer cannot be imported at all, modules of its names are made that hold the drop-ins, so that code which
        imports it runs without it; asked for another name they say what they have. A peer that is there is changed in
        place; code that has imported a function by name before keeps the peer's own. Of several installations the last
        is to be undone first.

    Example:
        >>> import torch
        >>> from pathsum.compat import install
        >>> from pathsum.compat.torch_functional import ctc_loss
        >>> with install("torch_functional"):
        ...     torch.nn.functional.ctc_loss is ctc_loss
        True
        >>> torch.nn.functional.ctc_loss is ctc_loss
        False
    """
    unknown = [peer for peer in peers if peer not in PEERS]
    if unknown:
        raise ValueError(f"install: peers must be among {', '.join(PEERS)}; got {', '.join(unknown)}")
    installation = Installation()
    for peer in peers:
        drop_in = importlib.import_module(f"pathsum.compat.{peer}")
        found = {place: names for place in drop_in.PLACES if (names := _names(place)) is not None}
        if found:
            installation._fill(found, drop_in.PLACES)
            continue
        # What a peer has beside its losses is needed only where the peer is not.
        for places in (drop_in.PLACES, getattr(drop_in, "HELPERS", {})):
            installation._fill({place: vars(installation._stand_in(place)) for place in places}, places)
    return installation


def _missing_from(module: ModuleType) -> Callable[[str], Any]:
    """What a stand-in answers when it is asked for a name that it does not have."""

    def missing(name: str) -> Any:
        there = ", ".join(sorted(known for known in vars(module) if not known.startswith("__")))
        what = f"{module.__name__} has no {name}: it is not installed"
        raise AttributeError(f"{what}, and pathsum.compat.install has put {there} in its place")

    return missing


def _names(place: str) -> dict[str, Any] | None:
    """What a module, or a dictionary in a module, has by name; None where the module cannot be imported."""
    module = _module(place)
    if module is not None:
        return vars(module)
    above, _, name = place.rpartition(".")
    names = getattr(_module(above), name, None) if above else None
    return names if isinstance(names, dict) else None


def _module(name: str) -> ModuleType | None:
    """The module of a name; None where it cannot be imported, for want of itself or of a library that it loads."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):
        return None
