import os

import pytest
from hypothesis import settings

# The same examples everywhere and always: a failure is a defect, never bad luck. No example is timed.
settings.register_profile("pathsum", deadline=None, derandomize=True, max_examples=30)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "pathsum"))


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
