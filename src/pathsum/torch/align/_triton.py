"""The Triton kernels of best paths, imported where they are asked for: Triton is no requirement."""

from __future__ import annotations

from typing import Any


def best_paths() -> Any:
    """``pathsum.torch._launch.best_path``, which has a function a lattice."""
    from pathsum.torch._launch import best_path

    return best_path
