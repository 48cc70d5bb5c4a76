"""Triton as the tests have it: interpreted in this process, whatever else runs in it.

Not where torch sees a device: there ``test_gpu.py`` is collected into the same process, and wants the kernels compiled.
"""

import functools

import pytest

torch = pytest.importorskip("torch")
if torch.cuda.is_available():
    pytest.skip("kernels are compiled for the device in this process", allow_module_level=True)

# Whether kernels are interpreted is decided when they, and Triton itself, are first imported.
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton", reason="triton is not installed")
    import triton.language as tl
    from triton.runtime import interpreter

    from pathsum.torch._triton import tiles  # noqa: F401

patch_language = interpreter._patch_lang


def patch_language_once(function):
    """The interpreter's own, where it changes something: it is called in every call of a function by a kernel."""
    seen = [value for value in function.__globals__.values() if value is tl or value is tl.core]
    if seen and not any(tl.core.is_builtin(language.load) for language in seen):
        return None
    return patch_language(function)


numpy_dtype = interpreter._get_np_dtype


@functools.cache
def numpy_dtype_of_scalars(kind):
    return numpy_dtype(kind)


def numpy_dtype_once(kind):
    """The interpreter's own, which makes a table of all dtypes to look one up."""
    scalar = kind.element_ty if isinstance(kind, tl.block_type) else kind
    return numpy_dtype(kind) if isinstance(scalar, tl.pointer_type) else numpy_dtype_of_scalars(scalar)


FASTER = {"_patch_lang": patch_language_once, "_get_np_dtype": numpy_dtype_once}


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for name, function in FASTER.items():
        monkeypatch.setattr(interpreter, name, function)
