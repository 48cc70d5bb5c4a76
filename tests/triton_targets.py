"""Triton as the tests have it: interpreted in this process, whatever else runs in it.

Not where torch sees a device: there ``test_gpu.py`` is collected into the same process, and wants the kernels compiled.
"""

import dataclasses
import functools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if torch.cuda.is_available():
    pytest.skip("kernels are compiled for the device in this process", allow_module_level=True)

# Whether kernels are interpreted is decided when they, and Triton itself, are first imported.
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton", reason="triton is not installed")
    import triton.language as tl
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    from pathsum.torch._triton import tiles  # noqa: F401

# The interpreter goes through Python for every operation of a block. What it makes anew each time, and what it computes
# and looks at no more, is most of the time of these tests; the kernels' own arithmetic is NumPy's either way.
patch_language, numpy_dtype = interpreter._patch_lang, interpreter._get_np_dtype
make_block_type, make_tensor = tl.block_type.__init__, tl.tensor.__init__
paired, broadcast = TritonSemantic.binary_op_type_checking_impl, TritonSemantic.broadcast_impl_value


@functools.cache
def languages_of(function):
    return [value for value in function.__globals__.values() if value is tl or value is tl.core]


def patch_language_once(function):
    """The interpreter's own, where it changes something: it is called in every call of a function by a kernel."""
    seen = languages_of(function)
    if seen and not any(tl.core.is_builtin(language.load) for language in seen):
        return None
    return patch_language(function)


@functools.cache
def numpy_dtype_of_scalars(kind):
    return numpy_dtype(kind)


def numpy_dtype_once(kind):
    """The interpreter's own, which makes a table of all dtypes to look one up."""
    scalar = kind.element_ty if isinstance(kind, tl.block_type) else kind
    return numpy_dtype(kind) if isinstance(scalar, tl.pointer_type) else numpy_dtype_of_scalars(scalar)


@functools.cache
def checked_shape(*sizes):
    """What the type of a block keeps of its shape, and what a tensor of that type does."""
    kind = object.__new__(tl.block_type)
    make_block_type(kind, tl.int32, list(sizes))
    tensor = object.__new__(tl.tensor)
    make_tensor(tensor, None, kind)
    return kind.shape, kind.numel, tensor.shape, tensor.numel


def make_block_type_once(self, element_ty, shape):
    """The type's own, which checks the shape and makes constants of it."""
    sizes = tuple(shape)
    if not sizes or any(type(size) is not int for size in sizes):
        make_block_type(self, element_ty, shape)
        return
    self.element_ty = element_ty
    self.shape, self.numel, *_ = checked_shape(*sizes)
    self.name = f"<{self.shape}, {element_ty}>"


def make_tensor_once(self, handle, type):
    """The tensor's own, which makes constants of the shape."""
    if not type.is_block():
        make_tensor(self, handle, type)
        return
    self.handle, self.type, self.dtype = handle, type, type.element_ty
    *_, self.shape, self.numel = checked_shape(*type.shape.values)


def sizes_of(tensor):
    return tuple(tensor.type.shape.values) if tensor.type.is_block() else ()


def same_type(lhs, rhs):
    return lhs.dtype is rhs.dtype and sizes_of(lhs) == sizes_of(rhs)


@functools.cache
def constant_beside(dtype, sizes, kind, text, is_right, options):
    """A number as it is paired with a tensor; None where the tensor does not stay as it is."""
    handle = interpreter.TensorHandle(np.zeros(sizes or 1, numpy_dtype(dtype)), dtype)
    given = tl.tensor(handle, tl.block_type(dtype, sizes) if sizes else dtype)
    operands = (given, kind(text)) if is_right else (kind(text), given)
    pair = paired(interpreter.interpreter_semantic, *operands, **dict(options))
    return pair[is_right] if pair[not is_right] is given else None


def pair_what_differs(self, lhs, rhs, *allowed, **options):
    """Triton's own, for operands that are not of one type already, or a number seen beside that type before."""
    tensor, other, is_right = (lhs, rhs, True) if isinstance(lhs, tl.tensor) else (rhs, lhs, False)
    # Quotients have rules of their own.
    if isinstance(tensor, tl.tensor) and not tensor.dtype.is_ptr() and len(allowed) < 4:
        if type(other) in (int, float):
            about = type(other), repr(other), is_right, tuple(options.items())
            constant = constant_beside(tensor.dtype, sizes_of(tensor), *about)
            if constant is not None:
                return (lhs, constant) if is_right else (constant, rhs)
        elif isinstance(other, tl.tensor) and same_type(lhs, rhs):
            return lhs, rhs
    return paired(self, lhs, rhs, *allowed, **options)


def broadcast_where_sizes_differ(self, lhs, rhs):
    """Triton's own, where there is something to do."""
    return (lhs, rhs) if sizes_of(lhs) == sizes_of(rhs) else broadcast(self, lhs, rhs)


# It asks whether a sum of integers has overflown, and, unless told to debug, forgets the answer.
UNCHECKED = dataclasses.replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
FASTER = (
    (interpreter, "_patch_lang", patch_language_once),
    (interpreter, "_get_np_dtype", numpy_dtype_once),
    (tl.block_type, "__init__", make_block_type_once),
    (tl.tensor, "__init__", make_tensor_once),
    (TritonSemantic, "binary_op_type_checking_impl", pair_what_differs),
    (TritonSemantic, "broadcast_impl_value", broadcast_where_sizes_differ),
    (interpreter.interpreter_builder, "options", UNCHECKED),
)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for place in FASTER:
        monkeypatch.setattr(*place)
