"""Station 3: which implementation solves a lattice on a device.

``impl="auto"`` is a documented order: on the CPU ``numba``, elsewhere ``reference``. An implementation asked for by
name runs or raises; nothing falls back in silence.
"""

from __future__ import annotations

from pathsum.errors import ImplementationError, InvalidValueError

IMPLEMENTATIONS = ("reference", "numba")


def select(function: str, device: str, impl: str) -> str:
    """The implementation that runs ``function`` on a device type, as ``impl`` asks for."""
    if impl == "auto":
        return "numba" if device == "cpu" else "reference"
    if impl not in IMPLEMENTATIONS:
        rule = f"be one of auto, {', '.join(IMPLEMENTATIONS)}"
        raise InvalidValueError(function, "impl", rule, repr(impl))
    if impl == "numba" and device != "cpu":
        raise ImplementationError(f"{function}: impl='numba' runs on the CPU; the scores are on {device}")
    return impl


def explain(device: str = "cpu") -> str:
    """Say in a sentence what ``impl="auto"`` runs on a device type, and why."""
    chosen = select("explain", device, "auto")
    if chosen == "numba":
        return f"{device}: numba, compiled for this machine at first use and cached on disk"
    return f"{device}: reference, plain torch operations in float64; no kernels for this device yet"
