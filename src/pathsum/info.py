"""What ``pathsum info`` prints: all that a bug report needs. Only what the base install has is taken for granted."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import platform
from collections import Counter
from pathlib import Path
from typing import Any

import pathsum
from pathsum import dispatch

_BASE = ("numpy", "numba", "llvmlite")
_OTHERS = (
    "torch",
    "triton",
    "tensorflow",
    "jax",
    "jaxlib",
    "torchaudio",
    "warprnnt-numba",
    "optax",
    "tf-seq2seq-losses",
    "k2",
    "rich",
    "matplotlib",
    "soundfile",
    "jiwer",
)
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES")
_VECTOR_FEATURES = (
    "sse4.2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512bf16",
    "avx512fp16",
)
_VECTOR_FEATURES += ("neon", "asimd", "sve", "sve2", "bf16", "fullfp16")


def report() -> str:
    """The whole report, as plain text."""
    torch, trouble = _import_torch()
    sections = [
        _versions(trouble),
        _machine(),
        _threads(torch),
        _implementations(torch),
        _kernel_cache(),
        _variables(),
    ]
    return "\n\n".join(sections)


def cpu_name() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _import_torch() -> tuple[Any, str]:
    try:
        importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None, ""
    try:
        return importlib.import_module("torch"), ""
    # A broken installation raises OSError and others, and is what a report has to show.
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def _section(title: str, lines: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in lines)
    return "\n".join([title, *(f"  {name:<{width}}  {value}".rstrip() for name, value in lines)])


def _versions(trouble: str) -> str:
    lines = [("python", f"{platform.python_version()} ({platform.python_implementation()})")]
    lines.append(("pathsum", f"{pathsum.__version__} in {Path(pathsum.__file__).parent}"))
    absent = []
    for name in (*_BASE, *_OTHERS):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            absent.append(name)
            continue
        broken = f" (cannot be imported: {trouble})" if name == "torch" and trouble else ""
        lines.append((name, version + broken))
    if absent:
        lines.append(("not installed", ", ".join(absent)))
    return _section("versions", lines)


def _machine() -> str:
    lines = [("system", f"{platform.system()} {platform.release()} {platform.machine()}"), ("cpu", cpu_name())]
    try:
        from llvmlite import binding
    except ImportError as error:
        lines.append(("llvm", f"cannot be imported: {error}"))
    else:
        features = {name for name, enabled in binding.get_host_cpu_features().items() if enabled}
        lines.append(("llvm target", binding.get_host_cpu_name()))
        lines.append(("vector features", " ".join(name for name in _VECTOR_FEATURES if name in features) or "none"))
    return _section("machine", lines)


def _threads(torch: Any) -> str:
    lines = [("cores", str(os.cpu_count()))]
    if hasattr(os, "sched_getaffinity"):
        lines.append(("cores allowed", str(len(os.sched_getaffinity(0)))))
    if torch is not None:
        lines.append(("torch.get_num_threads()", f"{torch.get_num_threads()} (what pathsum.torch uses)"))
    lines.append(("NUMBA_NUM_THREADS", os.environ.get("NUMBA_NUM_THREADS", "not set")))
    return _section("threads", lines)


def _implementations(torch: Any) -> str:
    devices = ["cpu"]
    lines = []
    if torch is not None and torch.cuda.is_available():
        devices.append("cuda")
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        lines.append(("cuda", f"{', '.join(names)}; runtime {torch.version.cuda or torch.version.hip}"))
    else:
        lines.append(("cuda", "none" if torch is not None else "not asked: torch is not there"))
    try:
        losses = _losses() if torch is not None else []
    # What keeps the losses from being imported is what a report is about.
    except Exception as error:
        losses = []
        lines.append(("pathsum.torch", f"cannot be imported: {type(error).__name__}: {error}"))
    for device in devices:
        lines.append((device, dispatch.explain(device).partition(": ")[2]))
        lines += [(f"  {loss}", dispatch.select(loss, device, "auto")) for loss in losses]
    lines += _jax_implementation() + _tensorflow_implementation()
    return _section("devices and implementations (impl='auto')", lines)


def _jax_implementation() -> list[tuple[str, str]]:
    try:
        importlib.metadata.version("jax")
        numba = importlib.import_module("pathsum.jax._ops.ffi").supported()
        no_triton = importlib.import_module("pathsum.jax._triton.installed").missing()
    except importlib.metadata.PackageNotFoundError:
        return []
    # A broken installation raises OSError and others, and is what a report has to show.
    except Exception as error:
        return [("pathsum.jax", f"cannot be imported: {type(error).__name__}: {error}")]
    return [("jax", dispatch.explain_program("jax", numba=numba, no_triton=no_triton).partition(": ")[2])]


def _tensorflow_implementation() -> list[tuple[str, str]]:
    if importlib.util.find_spec("tensorflow") is None:
        return []
    return [("tensorflow", dispatch.explain_placed("tensorflow").partition(": ")[2])]


def _losses() -> list[str]:
    module = importlib.import_module("pathsum.torch")
    return [name for name in vars(module) if name.endswith("_loss")]


def _kernel_cache() -> str:
    title = "numba kernel cache"
    try:
        from numba import config

        kernels = _cached_kernels()
    # A broken installation raises OSError and others, and is what a report has to show.
    except Exception as error:
        return _section(title, [("unusable", f"{type(error).__name__}: {error}")])
    if config.DISABLE_JIT:  # pyright: ignore[reportAttributeAccessIssue]
        return _section(title, [("state", "not used: NUMBA_DISABLE_JIT is set, kernels run as plain Python")])

    folders = sorted({folder for _, kernel in kernels if (folder := kernel.stats.cache_path) is not None})
    if not folders:
        return _section(title, [("unusable", "no folder can be written to; kernels compile in every process")])
    lines = [("folder", f"{folder} ({_writable(folder)})") for folder in folders]
    variants = {name: _num_variants(kernel) for name, kernel in kernels}
    cached = Counter(name.partition(".")[0] for name, count in variants.items() if count)
    all_kernels = Counter(name.partition(".")[0] for name in variants)
    lines.append(("kernels", f"{cached.total()} of {len(variants)} cached, {sum(variants.values())} variants"))
    if cached == all_kernels:
        lines.append(("state", "warm: first calls read compiled kernels, unless they need a variant not cached yet"))
    elif cached:
        lines.append(("state", "partly warm: first calls compile what is not cached, once"))
        lines += [(f"  {name}", f"{cached[name]} of {count}") for name, count in sorted(all_kernels.items())]
    else:
        lines.append(("state", "cold: first calls compile, up to 20 s for each loss, once"))
    return _section(title, lines)


def num_compiled() -> int:
    """How many variants of kernels this process has compiled, rather than read."""
    return sum(sum(kernel.stats.cache_misses.values()) for _, kernel in _cached_kernels())


def _cached_kernels() -> list[tuple[str, Any]]:
    from numba.core.dispatcher import Dispatcher

    import pathsum.kernels.numba as package
    from pathsum.kernels.numba.compilation import KernelCache

    found = []
    for module_info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        module = importlib.import_module(module_info.name)
        for name, value in vars(module).items():
            own = isinstance(value, Dispatcher) and value.__module__ == module.__name__
            if own and isinstance(getattr(value, "_cache", None), KernelCache):
                found.append((f"{module_info.name.removeprefix(package.__name__ + '.')}.{name}", value))
    return found


def _num_variants(kernel: Any) -> int:
    return kernel._cache.count(kernel.targetdescr.target_context.codegen().magic_tuple())


def _writable(folder: str) -> str:
    # The folder itself may not exist before the first kernel is cached.
    existing = next((path for path in (Path(folder), *Path(folder).parents) if path.exists()), Path("/"))
    return "writable" if os.access(existing, os.W_OK) else "not writable: kernels compile in every process"


def _variables() -> str:
    names = sorted(name for name in os.environ if name.startswith("NUMBA_")) + [
        v for v in _VARIABLES if v in os.environ
    ]
    return _section("environment", [(name, os.environ[name]) for name in names] or [("none", "of those that matter")])
