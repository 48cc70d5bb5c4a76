"""Triton as the tests have it: interpreted in this process, whatever else runs in it."""

import pytest

# Whether kernels are interpreted is decided when they, and Triton itself, are first imported.
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton", reason="triton is not installed")
    from pathsum.torch._launch import grid  # noqa: F401


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
