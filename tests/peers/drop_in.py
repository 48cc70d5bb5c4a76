"""A pytest plugin: the drop-in named in PATHSUM_INSTALL is installed before a peer's tests are collected."""

import os
import sys
import types

from pathsum.compat import install

PEER = os.environ["PATHSUM_INSTALL"]
INSTALLATION = install(PEER)
print(f"pathsum.compat: {INSTALLATION}")


def answer_for_missing_extensions():
    """torchaudio's tests look, before any runs, for media extensions that its releases have lost: there are none."""
    import torchaudio

    absent = types.SimpleNamespace(is_available=lambda: False)
    torchaudio._extension.lazy_import_sox_ext = lambda: absent
    torchaudio._extension._IS_RIR_AVAILABLE = False
    torio = types.ModuleType("torio")
    torio._extension = types.SimpleNamespace(lazy_import_ffmpeg_ext=lambda: absent)
    ffmpeg_utils = types.ModuleType("torchaudio.utils.ffmpeg_utils")
    ffmpeg_utils.get_video_decoders = ffmpeg_utils.get_video_encoders = list
    for module in (torio, ffmpeg_utils):
        sys.modules.setdefault(module.__name__, module)


if PEER == "torchaudio":
    answer_for_missing_extensions()

# torch_asg parametrises its tests by [False, True], without or with CUDA, only where there is a GPU. It is told that
# there is one, and what would use it is left out.
ONLY_BESIDE_CUDA = PEER == "torch_asg"
if ONLY_BESIDE_CUDA:
    import torch

    torch.cuda.is_available = lambda: True


def pytest_collection_modifyitems(config, items):
    if ONLY_BESIDE_CUDA:
        on_gpu = [item for item in items if item.callspec.params.get("cuda")]
        config.hook.pytest_deselected(items=on_gpu)
        items[:] = [item for item in items if item not in on_gpu]
