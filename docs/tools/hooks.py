"""mkdocs hooks: where the types of other packages are described. No inventory is fetched when the site is built."""

from __future__ import annotations

from typing import Any

TORCH = "https://docs.pytorch.org/docs/stable"
TYPES = {
    "torch.Tensor": f"{TORCH}/tensors.html",
    "torch.Generator": f"{TORCH}/generated/torch.Generator.html",
    "torch.dtype": f"{TORCH}/tensor_attributes.html",
    "torch.device": f"{TORCH}/tensor_attributes.html",
    "torch.nn.Module": f"{TORCH}/generated/torch.nn.Module.html",
    "numpy.ndarray": "https://numpy.org/doc/stable/reference/generated/numpy.ndarray.html",
    "numpy.typing.ArrayLike": "https://numpy.org/doc/stable/reference/typing.html",
    "jax.Array": "https://docs.jax.dev/en/latest/_autosummary/jax.Array.html",
    "tensorflow.Tensor": "https://www.tensorflow.org/api_docs/python/tf/Tensor",
    **{
        f"{module}.{name}": f"https://docs.python.org/3/library/{page}.html#{page}.{name}"
        for module, page, names in (
            ("collections.abc", "collections.abc", ("Callable", "Iterable", "Mapping", "Sequence")),
            ("typing", "typing", ("Any", "Literal", "NamedTuple")),
            ("pathlib", "pathlib", ("Path",)),
        )
        for name in names
    },
    **{
        name: f"https://docs.python.org/3/library/{page}"
        for name, page in {
            "int": "functions.html#int", "float": "functions.html#float", "bool": "functions.html#bool",
            "str": "stdtypes.html#str", "list": "stdtypes.html#list", "tuple": "stdtypes.html#tuple",
            "dict": "stdtypes.html#dict", "ValueError": "exceptions.html#ValueError",
            "TypeError": "exceptions.html#TypeError", "RuntimeError": "exceptions.html#RuntimeError",
            "ImportError": "exceptions.html#ImportError",
        }.items()
    },
}  # fmt: skip


def on_pre_build(config: Any) -> None:
    for name, address in TYPES.items():
        config.plugins["autorefs"].register_url(name, address)
