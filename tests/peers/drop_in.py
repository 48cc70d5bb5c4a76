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


def answer_for_older_test_support():
    """torch's tests, up to those of 2.6, import names that torch 2.11 has moved."""
    from torch.testing._internal import common_cuda, common_mkldnn, common_nn

    common_nn.new_module_tests = common_nn.get_new_module_tests()
    common_cuda.tf32_is_not_fp32 = common_mkldnn.tf32_is_not_fp32
    common_mkldnn.bf32_on_and_off = common_cuda.tf32_on_and_off


def answer_for_nemo():
    """NeMo's tests of its graph losses import k2, and other parts of NeMo, for what these drop-ins do not have."""
    support = {
        "k2": {"with_cuda": False},
        "nemo.collections.asr.models": {"ASRModel": None},
        "nemo.collections.asr.parts.k2.rnnt_logprobs": {"rnnt_logprobs_torch": None},
        "nemo.core.utils.k2_guard": {"k2": None},
        "nemo.core.utils.optional_libs": {"K2_AVAILABLE": True, "TRITON_AVAILABLE": False},
    }
    for name, values in support.items():
        module = sys.modules.setdefault(name, types.ModuleType(name))
        vars(module).update(values)


if PEER == "torchaudio":
    answer_for_missing_extensions()
if PEER == "nemo":
    answer_for_nemo()
if PEER == "torch_functional":
    answer_for_older_test_support()

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
