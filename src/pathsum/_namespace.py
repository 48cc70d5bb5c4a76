"""The array library an array belongs to, found among the modules already imported."""

from __future__ import annotations

import sys
from typing import Any


def namespace(array: Any) -> Any:
    """Return ``numpy``, ``torch`` or ``jax.numpy``, whichever made ``array``; imports none of them.

    An array of pathsum's own says so itself, as the array API has it.
    """
    library = type(array).__module__.partition(".")[0]
    if library == "pathsum":
        return array.__array_namespace__()
    return sys.modules["jax.numpy" if library in ("jax", "jaxlib") else library]


def device_of(array: Any) -> Any:
    """Where an array lies; ``None``, the framework's choice, while it is being traced and lies nowhere."""
    return getattr(array, "device", None)
