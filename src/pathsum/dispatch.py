"""Station 3: which implementation solves a lattice on a device.

``impl="auto"`` is a documented order: on the CPU ``numba``, on a CUDA or ROCm device ``triton`` where it is installed,
elsewhere ``reference``. An implementation asked for by name runs or raises; nothing falls back in silence.

JAX compiles a program for a device that may be known only then: ``"auto"`` is ``numba`` in a program for the CPU,
``triton`` in one for a CUDA device, where the loss has such kernels and jax-triton is installed, and ``jax``, plain
operations, in any other. TensorFlow builds a program for a device that is known then:
``"auto"`` is ``numba`` on the CPU and ``tensorflow``, plain operations, on any other device and in what cannot call
the compiled kernels, programs that XLA compiles and saved models.
"""

from __future__ import annotations

import importlib
import importlib.util
import os

from pathsum.errors import ImplementationError, InvalidValueError
from pathsum.kernels.protocol import Kernels
from pathsum.options import IMPLEMENTATIONS, PROGRAMS

# The classes of kernels, and the module that each is in: of a lattice, and of what its scores are made of.
_LATTICES = {
    "Chain": "chain",
    "Dense": "dense",
    "Grid": "grid",
    "Arcs": "arcs",
    "Rows": "arcs",
    "Joint": "joint",
    "Sparse": "sparse",
    "Routes": "sparse",
    "Linear": "linear",
    "Walks": "walks",
}
# Where the kernels of torch's implementations are: a module a lattice, and a class in it, imported when asked for.
TABLE: dict[tuple[str, str], str] = {
    **{("reference", name.lower()): f"pathsum.torch._reference.{name}" for name in _LATTICES},
    **{("numba", name.lower()): f"pathsum.torch._numba.{_LATTICES[name]}.{name}" for name in _LATTICES},
    **{
        ("triton", name.lower()): f"pathsum.torch._triton.{_LATTICES[name]}.{name}"
        for name in _LATTICES
        if name not in ("Routes", "Walks")
    },
    # Both lattices of a loss at once.
    ("triton", "apart"): "pathsum.torch._triton.asg.Apart",
}
LOADED: dict[tuple[str, str], Kernels] = {}


def load(impl: str, name: str) -> bool:
    """Import kernels where they are not there yet. Always true: a compiler may take it for a constant."""
    key = (impl, name)
    if key not in LOADED:
        module, _, kernels = TABLE[key].rpartition(".")
        LOADED[key] = getattr(importlib.import_module(module), kernels)()
        LOADED[key].impl = impl
    return True


def kernels_of(impl: str, name: str) -> Kernels:
    """The kernels of an implementation, by their name in the table."""
    load(impl, name)
    return LOADED[impl, name]


def choose(function: str, device: str, impl: str, name: str) -> Kernels:
    """The kernels that run ``function`` on a device type, by their name in the table, as ``select`` says."""
    return kernels_of(select(function, device, impl, name), name)


def select(function: str, device: str, impl: str, kernels: str = "chain") -> str:
    """The implementation that runs ``function`` on a device type, as ``impl`` asks for.

    ``kernels`` names in the table what it is to run: ``"auto"`` takes those that are there.
    """
    if device == "meta" and impl in ("auto", "reference"):
        raise ImplementationError(f"{function}: no implementation runs on meta tensors, which have no values")
    if impl == "auto":
        if device == "cpu":
            return "numba"
        written = ("triton", kernels) in TABLE
        return "triton" if device == "cuda" and written and _has_triton() else "reference"
    if impl not in IMPLEMENTATIONS:
        rule = f"be one of auto, {', '.join(IMPLEMENTATIONS)}"
        raise InvalidValueError(function, "impl", rule, repr(impl))
    if impl == "numba" and device != "cpu":
        raise ImplementationError(f"{function}: impl='numba' runs on the CPU; the scores are on {device}")
    if impl == "triton":
        check_written(function, impl, kernels)
        _check_triton(function, device)
    return impl


def check_written(function: str, impl: str, kernels: str) -> None:
    """An implementation must have these kernels."""
    if (impl, kernels) not in TABLE:
        raise ImplementationError(
            f"{function}: impl={impl!r} has no kernels that list or draw single paths; impl='reference' has"
        )


def explain(device: str = "cpu") -> str:
    """Say in a sentence what ``impl="auto"`` runs on a device type, and why."""
    if device == "cpu":
        return f"{device}: numba, compiled for this machine at first use and cached on disk"
    if device != "cuda":
        return f"{device}: reference, plain torch operations in float64; no kernels for this device yet"
    if not _has_triton():
        return f"{device}: reference, plain torch operations in float64; triton is not installed"
    return f"{device}: triton, compiled for this device at first use"


def _check_triton(function: str, device: str) -> None:
    if not _has_triton():
        raise ImplementationError(f"{function}: impl='triton' needs the package triton")
    if device != "cuda" and not (device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        raise ImplementationError(
            f"{function}: impl='triton' runs on CUDA and ROCm devices, and interpreted on the CPU where "
            f"TRITON_INTERPRET=1; the scores are on {device}"
        )


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def select_program(
    function: str, own: str, device: str | None, impl: str, *, numba: bool, no_triton: str | None = "not written"
) -> str:
    """The implementation for a framework that compiles programs, whose device may not be known before.

    ``own`` is the framework's implementation in its own operations, ``numba`` says whether its programs can call the
    compiled kernels, ``no_triton`` why they cannot call the Triton kernels, ``None`` where they can. ``"auto"`` stays
    itself where they call any: numba in a program for the CPU, triton in one for a CUDA device, else ``own``.
    """
    words = PROGRAMS[own]
    if impl not in words:
        raise InvalidValueError(function, "impl", f"be one of {', '.join(words)}", repr(impl))
    if impl == "numba" and not numba:
        raise ImplementationError(f"{function}: impl='numba' cannot be called from this program of {own}'s")
    if impl == "numba" and device not in (None, "cpu"):
        raise ImplementationError(f"{function}: impl='numba' runs on the CPU; the scores are on {device}")
    if impl == "triton" and no_triton is not None:
        raise ImplementationError(f"{function}: impl='triton' cannot be called from programs of {own}'s: {no_triton}")
    if impl == "triton" and device not in (None, "gpu", "cuda"):
        raise ImplementationError(f"{function}: impl='triton' runs on CUDA devices; the scores are on {device}")
    return own if impl == "auto" and not numba and no_triton is not None else impl


def select_placed(function: str, own: str, device: str, impl: str, *, numba: bool) -> str:
    """As ``select_program``, for a framework that knows the device while a program is built: never ``"auto"``."""
    chosen = select_program(function, own, device, impl, numba=numba)
    return ("numba" if device == "cpu" else own) if chosen == "auto" else chosen


def explain_program(own: str, *, numba: bool, no_triton: str | None) -> str:
    """Say in a sentence what ``impl="auto"`` runs in the programs of a framework, and why."""
    runs = ["numba in programs for the CPU"] if numba else []
    runs += ["triton in those for CUDA devices, for CTC and RNN-T"] if no_triton is None else []
    plain = f"{own}, plain operations in extended range"
    said = f"{own}: {'; '.join([*runs, f'elsewhere {plain}' if runs else plain])}"
    if not numba:
        said += f"; numba cannot be called from programs of this {own}"
    return said if no_triton is None else f"{said}; triton is not called: {no_triton}"


def explain_placed(own: str) -> str:
    """Say in a sentence what ``impl="auto"`` runs in a framework that knows the device while a program is built."""
    return f"{own}: numba on the CPU; on other devices, under XLA and in saved models {own}, plain operations"
