"""Options that are no bools, and tensors that are no dense tensors of values, at every public function."""

import inspect
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
if not hasattr(os, "fork"):
    pytest.skip("no fork on this system", allow_module_level=True)

import torch
from torch._subclasses import FakeTensorMode

import pathsum.torch
from pathsum.errors import ImplementationError, InvalidTypeError

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
import calls

KINDS = {
    "nested tensor": lambda x: torch.nested.nested_tensor([x, x]),
    "sparse_coo tensor": lambda x: x.to_sparse(),
    "sparse_csr tensor": lambda x: x.reshape(len(x), -1).to_sparse_csr(),
    "mkldnn tensor": lambda x: x.float().to_mkldnn(),
    "quantised tensor": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.quint8),
}
SCORES = ("log_probs", "logits", "token_logits", "inputs", "transitions", "costs", "encoder_out", "hidden", "weight")
LENGTHS = ("input_lengths", "logit_lengths", "target_lengths", "hypothesis_lengths")
INTEGERS = ("targets", "hypotheses", "references", *LENGTHS)
TENSORS = [
    (name, argument, kind)
    for name in calls.names()
    if name != "infeasible"
    for argument in inspect.signature(getattr(pathsum.torch, name)).parameters
    if argument in SCORES + INTEGERS and argument in calls.base(name)
    for kind in (*KINDS, *(["meta tensor"] if argument in INTEGERS else []))
]


@pytest.mark.parametrize(("name", "argument", "kind"), TENSORS)
def test_a_tensor_that_is_not_dense_is_named(name, argument, kind):
    arguments = calls.base(name)
    make = KINDS.get(kind, lambda x: x.to("meta"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's of nested and quantised tensors
        arguments[argument] = make(arguments[argument])
    with pytest.raises(InvalidTypeError, match=f"^{name}: {argument} must .*; got a {kind}"):
        getattr(pathsum.torch, name)(**arguments)


@pytest.mark.parametrize("name", ["forced_align", "lattice_align", "ctc_beam_decode", "asg_viterbi", "rnnt_posteriors"])
def test_fake_tensors_have_no_values(name):
    mode, arguments = FakeTensorMode(), calls.base(name)
    scores = next(key for key in ("log_probs", "inputs", "logits") if key in arguments)
    with pytest.raises((InvalidTypeError, ImplementationError), match=r"fake tensor|FakeTensor"):
        getattr(pathsum.torch, name)(**arguments | {scores: mode.from_tensor(arguments[scores])})


@pytest.mark.parametrize("name", ["ctc_loss", "rnnt_loss", "asg_loss"])
def test_fake_integers_have_no_values(name):
    mode, arguments = FakeTensorMode(allow_non_fake_inputs=True), calls.base(name)
    fake = {"targets": mode.from_tensor(arguments["targets"])}
    with pytest.raises(
        InvalidTypeError, match=f"^{name}: targets must be integers that have values; got a fake tensor$"
    ):
        getattr(pathsum.torch, name)(**arguments | fake)


@pytest.mark.parametrize("name", ["ctc_loss", "forced_align"])
def test_a_sign_of_its_own_is_resolved(name):
    function, arguments = getattr(pathsum.torch, name), calls.base(name)
    expected = function(**arguments)
    for argument in ("log_probs", "targets"):
        turned = torch._neg_view(-arguments[argument])
        found = function(**{**arguments, argument: turned})
        assert torch.equal(*(x if name == "ctc_loss" else x.paths for x in (found, expected)))


FLAGS = [
    (name, argument)
    for name in calls.names()
    for argument, parameter in inspect.signature(getattr(pathsum.torch, name)).parameters.items()
    if parameter.annotation == "bool"
]


@pytest.mark.parametrize(("name", "flag"), FLAGS, ids=lambda text: text)
def test_an_option_that_is_no_bool_is_named(name, flag):
    for value in ("False", None, 2, 0, 1.0, torch.tensor(True), [True], np.array([True, False])):
        with pytest.raises(InvalidTypeError, match=f"^{name}: {flag} must be a bool; got {type(value).__name__}$"):
            getattr(pathsum.torch, name)(**calls.base(name), **{flag: value})


def test_there_are_flags_of_all_kinds():
    assert len(FLAGS) > 40
    kinds = {
        "batch_first",
        "exact_scores",
        "fused_log_softmax",
        "hat",
        "normalise",
        "overwrite_logits",
        "zero_infinity",
    }
    assert {flag for _, flag in FLAGS} == kinds


@pytest.mark.parametrize("name", ["ctc_loss", "rnnt_loss", "rnnt_entropy", "rnnt_posteriors"])
def test_numpys_bools_are_bools(name):
    function, arguments = getattr(pathsum.torch, name), calls.base(name)
    found, expected = (function(**arguments, fused_log_softmax=value) for value in (np.True_, True))
    if not isinstance(found, torch.Tensor):
        found, expected = found[0], expected[0]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("flag", ["learn_start", "learn_final"])
def test_asgs_module_names_its_flags(flag):
    with pytest.raises(InvalidTypeError, match=f"^ASGLoss: {flag} must be a bool; got str$"):
        pathsum.torch.ASGLoss(3, **{flag: "no"})


@pytest.mark.parametrize("front", ["jax", "tensorflow"])
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_other_front_ends_name_what_is_no_bool_and_no_array(front):
    pytest.importorskip(front)
    for name in calls.names(front):
        function = calls.function(name)
        own = function.__name__  # classic_ctc_loss is another name
        parameters = inspect.signature(function).parameters
        for flag in (key for key, parameter in parameters.items() if parameter.annotation == "bool"):
            with pytest.raises(InvalidTypeError, match=f"^{own}: {flag} must be a bool; got str$"):
                function(**calls.base(name), **{flag: "False"})
        arguments = calls.base(name)
        for argument in (key for key, value in arguments.items() if isinstance(value, torch.Tensor)):
            foreign = torch.quantize_per_tensor(arguments[argument].float(), 0.1, 0, torch.quint8)
            with pytest.raises(InvalidTypeError, match=f"^{own}: {argument} must be an? "):
                function(**{**arguments, argument: foreign})


@pytest.mark.parametrize("front", ["jax", "tensorflow"])
def test_scores_with_a_mask_are_refused_by_other_front_ends(front):
    pytest.importorskip(front)
    for name in calls.names(front):
        arguments = {key: calls._as_front_has_it(name, value) for key, value in calls.base(name).items()}
        for key, value in arguments.items():
            if key in (*SCORES, "scores") and hasattr(value, "dtype"):
                masked = np.ma.masked_array(np.asarray(value), mask=True)
                with pytest.raises(InvalidTypeError, match=f"{key} must "):
                    calls.function(name)(**arguments | {key: masked})
