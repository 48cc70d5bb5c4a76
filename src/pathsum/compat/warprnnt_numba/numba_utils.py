"""``warprnnt_numba.numba_utils``: the checks to make before tensors are moved to a GPU.

The drop-in does not use numba on a GPU, so the answers are about torch's devices and this library's numba.
"""

from __future__ import annotations

import importlib.metadata

import torch

__NUMBA_MINIMUM_VERSION__ = "0.53.0"


def numba_cpu_is_supported(min_version: str) -> bool:
    """Whether numba is there. Its version is not looked at, as in the peer.

    Example:
        >>> from pathsum.compat.warprnnt_numba import numba_utils
        >>> numba_utils.numba_cpu_is_supported("0.53.0")
        True
    """
    try:
        importlib.metadata.version("numba")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def numba_cuda_is_supported(min_version: str) -> bool:
    """Whether the loss can be given tensors on a GPU, which takes a GPU and nothing else."""
    return torch.cuda.is_available()


def skip_numba_cuda_test_if_unsupported(min_version: str) -> None:
    """Skip the running pytest test where there is no GPU."""
    if not numba_cuda_is_supported(min_version):
        import pytest

        pytest.skip(f"Numba cuda test is being skipped. Minimum version required : {min_version}")


NAMES = {
    "__NUMBA_MINIMUM_VERSION__": __NUMBA_MINIMUM_VERSION__,
    "numba_cpu_is_supported": numba_cpu_is_supported,
    "numba_cuda_is_supported": numba_cuda_is_supported,
    "skip_numba_cuda_test_if_unsupported": skip_numba_cuda_test_if_unsupported,
}
