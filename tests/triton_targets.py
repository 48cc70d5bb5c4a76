"""Triton as the tests have it: interpreted in this process, whatever else runs in it.

Not where torch sees a device: there ``test_gpu.py`` is collected into the same process, and wants the kernels compiled.
"""

import pytest

torch = pytest.importorskip("torch")
if torch.cuda.is_available():
    pytest.skip("kernels are compiled for the device in this process", allow_module_level=True)

# Whether kernels are interpreted is decided when they, and Triton itself, are first imported.
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton", reason="triton is not installed")
    from pathsum.torch._triton import tiles  # noqa: F401


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
