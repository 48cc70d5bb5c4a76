"""A pytest plugin: the drop-ins named in PATHSUM_INSTALL are installed before a peer's tests are collected."""

import os

import torch

from pathsum.compat import install

INSTALLATION = install(*os.environ["PATHSUM_INSTALL"].split(","))
print(f"pathsum.compat: {INSTALLATION}")

# torch_asg parametrises its tests by [False, True], without or with CUDA, only where there is a GPU. It is told that
# there is one, and what would use it is left out.
if os.environ.get("PATHSUM_CLAIM_CUDA"):
    torch.cuda.is_available = lambda: True


def pytest_collection_modifyitems(config, items):
    if os.environ.get("PATHSUM_CLAIM_CUDA"):
        on_gpu = [item for item in items if item.callspec.params.get("cuda")]
        config.hook.pytest_deselected(items=on_gpu)
        items[:] = [item for item in items if item not in on_gpu]
