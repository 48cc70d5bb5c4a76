"""The words that options take: for checks, and for those who read or check annotations."""

from __future__ import annotations

from typing import Literal, get_args

ReductionName = Literal["none", "mean", "sum"]
ScaleMode = Literal["none", "input_size", "input_size_sqrt", "target_size", "target_size_sqrt"]
RNNTType = Literal["regular", "modified", "one_sym_per_frame", "constrained"]
# How a walk of durations, or one that may skip, ends.
Final = Literal["blank", "any"]
# Which sequences of ASG.
PathSet = Literal["all", "target"]
Star = Literal["any", "label"]
# What is done about integers that are on a GPU.
Check = Literal["async", "sync"]
# What MWER takes from the errors of a hypothesis.
Baseline = Literal["mean", "none", "leave_one_out"]
# What devices share out, and processes, and these of a layer.
Shard = Literal["classes", "frames"]
ProcessShard = Literal["classes", "frames", "samples"]
LayerShard = Literal["classes", "samples"]
Activation = Literal["tanh", "relu", "sigmoid", "gelu"]
# Whose frames are counted.
LossName = Literal["ctc", "simple_ctc", "asg", "rnnt", "tdt", "multi_blank", "wildcard_rnnt", "ar_rnnt"]

TorchImpl = Literal["auto", "reference", "numba", "triton"]
JAXImpl = Literal["auto", "numba", "triton", "jax"]
TensorFlowImpl = Literal["auto", "numba", "tensorflow"]

REDUCTIONS: tuple[ReductionName, ...] = get_args(ReductionName)
SCALE_MODES: tuple[ScaleMode, ...] = get_args(ScaleMode)
RNNT_TYPES: tuple[RNNTType, ...] = get_args(RNNTType)
FINALS: tuple[Final, ...] = get_args(Final)
PATHS: tuple[PathSet, ...] = get_args(PathSet)
STARS: tuple[Star, ...] = get_args(Star)
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
SHARDS: tuple[Shard, ...] = get_args(Shard)
PROCESS_SHARDS: tuple[ProcessShard, ...] = get_args(ProcessShard)
LAYER_SHARDS: tuple[LayerShard, ...] = get_args(LayerShard)
CHECKS: tuple[Check, ...] = get_args(Check)
LOSSES: tuple[LossName, ...] = get_args(LossName)
# Of frameworks that compile programs.
PROGRAMS: dict[str, tuple[str, ...]] = {"jax": get_args(JAXImpl), "tensorflow": get_args(TensorFlowImpl)}
IMPLEMENTATIONS: tuple[str, ...] = get_args(TorchImpl)[1:]
