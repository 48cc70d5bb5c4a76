import ctypes
import gc
import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples everywhere and always: a failure is a defect, never bad luck. No example is timed.
settings.register_profile("pathsum", deadline=None, derandomize=True, max_examples=30)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "pathsum"))

# Threads of torch wait for one another in a loop, unless told to sleep before torch is imported: where another process
# tests on the same cores, that is two thirds of the time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Triton's library and TensorFlow's each have an LLVM of their own: loaded behind TensorFlow's, Triton's ends the
# process. Not the package, which looks at the environment when it is imported.
triton = importlib.util.find_spec("triton")
for folder in (triton and triton.submodule_search_locations) or ():
    for library in Path(folder, "_C").glob("libtriton.*so"):
        ctypes.CDLL(str(library))


# Programs that XLA and Triton compiled are kept beside pytest's own notes, named by what they were compiled from and by
# what compiled them. Where there is a bound in bytes JAX locks its folder, into which more than one process writes.
KEPT = {"JAX_COMPILATION_CACHE_DIR": "jax", "TRITON_CACHE_DIR": "triton"}
JAX_KEEPS = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(2**28),
}


def pytest_configure(config):
    cache = getattr(config, "cache", None)
    if cache is not None:
        for variable, name in KEPT.items():
            os.environ.setdefault(variable, str(cache.mkdir(name)))
        os.environ.update(JAX_KEEPS)


def pytest_collection_finish(session):
    # Two million objects of frameworks, which stay: whoever collects garbage, as the benchmark does between two times,
    # need not go through them once more.
    gc.collect()
    gc.freeze()


@pytest.fixture
def threads():
    """Set the number of torch's threads, and put it back."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def x64():
    """64-bit numbers, which JAX has only where told to."""
    import jax

    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
