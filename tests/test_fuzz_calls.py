"""A few malformed calls of the fuzzer's, each of which ends well. ``tests/fuzz/calls.py`` makes many more."""

import inspect
import os
import signal
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

pytest.importorskip("torch")
if not hasattr(os, "fork"):
    pytest.skip("no fork on this system", allow_module_level=True)

import torch

import pathsum.torch
from pathsum.errors import ImplementationError, InvalidTypeError, InvalidValueError
from pathsum.torch import greedy

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
import calls


def test_every_legal_call_is_legal():
    assert not list(calls.legal())


TORCHLESS = ("keras", "optax", "tensorflow", "tf_seq2seq_losses")
OF_TORCH = [name for name in calls.names("compat") if name.split(".")[1] not in TORCHLESS]


def test_every_legal_call_of_a_drop_in_is_legal(monkeypatch):
    monkeypatch.setattr(calls, "names", lambda front: OF_TORCH)
    assert not list(calls.legal("compat"))


def test_the_same_seed_makes_the_same_calls():
    first, again, other = ([str(call) for call in islice(calls.calls(seed), 50)] for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize("seed", [2026, 2027])
def test_malformed_calls_end_well(seed):
    assert not [f"{call}: {outcome}" for call, outcome in calls.fuzz(list(islice(calls.calls(seed), 150)))]


def test_the_fuzzer_sees_signals_and_hangs(monkeypatch):
    ends = (lambda: os.kill(os.getpid(), signal.SIGSEGV), lambda: time.sleep(60))
    monkeypatch.setattr(calls, "run", lambda call: call.nonsense.make(None) or "")
    todo = [
        calls.Call("f", "x", calls.Nonsense(name, lambda _, end=end: end()))
        for name, end in zip("ab", ends, strict=True)
    ]
    outcomes = [outcome for _, outcome in calls.fuzz(todo, seconds=2)]
    assert outcomes == ["signal SIGSEGV", "hangs for 2 s"]


@pytest.mark.parametrize("value", [3, 0.5, None, "34", {"a": 1}, {3, 4}, b"34"], ids=repr)
@pytest.mark.parametrize("argument", ["big_blank_durations", "big_blanks"])
def test_what_is_no_list_of_ints_is_named(argument, value):
    call = calls.Call("multi_blank_rnnt_loss", argument, calls.Nonsense("", lambda _: value, never=True))
    assert calls.run(call) == ""


DECODERS = ["rnnt_greedy_decode", "multi_blank_rnnt_greedy_decode", "tdt_greedy_decode"]


def never_leaves(name):
    """Arguments of a decoder whose joiner scores label 1, of duration 0, best in every node."""
    heads = (torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]))

    def join(frames, outputs):
        logits, steps = (head.expand(len(frames), -1) for head in heads)
        return (logits, steps) if "tdt" in name else logits

    changes = {"big_blanks": [2, 3]} if "multi" in name else {}
    return calls.base(name) | {"join": join, "encoder_lengths": [0, 1]} | changes


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_that_never_leaves_its_frame_raises(name, monkeypatch):
    monkeypatch.setattr(greedy, "ENDLESS", 20)
    function, arguments = getattr(pathsum.torch, name), never_leaves(name)
    assert function(**arguments, max_symbols=20).tokens.tolist() == [[-1] * 20, [1] * 20]
    with pytest.raises(InvalidValueError, match=f"^{name}: join must score .* got 20 labels in a frame at sample 1$"):
        function(**arguments, max_symbols=2**70)


@pytest.mark.parametrize("name", DECODERS)
def test_what_decoders_are_given_and_what_functions_return_is_checked(name):
    function, arguments = getattr(pathsum.torch, name), never_leaves(name)
    nowhere = torch.zeros(2, 5, 3, device="meta")
    lines = {
        "state_axis must be the axis of the N = 2 samples in the tensors of a state; got 1 of shape": {"state_axis": 1},
        "state_axis must be an int; got str": {"state_axis": "x"},
        "blank must be at most 2147483647": {"blank": 2**70},
        "num_classes must be at most 2147483647": {"num_classes": 2**70},
        "predict must return an output and a state; got Tensor": {"predict": lambda tokens, state: tokens},
        r"predict must return a tensor \(N, P\) with N = 2; got shape \(2,\)": {"predict": lambda *of: of},
        r"join must return a tensor \(N, V\) with N = 2; got list": {"join": lambda *of: list(of)},
        "encoder_out must be a tensor that has values; got a meta": {"encoder_out": nowhere},
    }
    for message, wrong in lines.items():
        with pytest.raises((ValueError, TypeError), match=f"^{name}: {message}"):
            function(**{**arguments, **wrong})


SCORED = [name for name in calls.names() if name not in ("edit_distances", "infeasible", "token_spans")]


@pytest.mark.parametrize("name", SCORED)
def test_scores_without_values_are_named(name):
    arguments = calls.base(name)
    arguments |= {
        key: value.to("meta")
        for key, value in arguments.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    with pytest.raises((InvalidTypeError, ImplementationError), match=f"^{name}: .*meta tensor.*values|has values"):
        getattr(pathsum.torch, name)(**arguments)


def test_check_is_an_option_of_every_loss_that_has_it():
    for name in SCORED:
        if "check" in inspect.signature(getattr(pathsum.torch, name)).parameters:
            with pytest.raises(InvalidValueError, match=f"^{name}: check must be one of async, sync; got 'never'$"):
                getattr(pathsum.torch, name)(**calls.base(name), check="never")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_token_spans_reads_one_path_and_real_scores():
    path, scores = torch.tensor([0, 1, 1]), torch.zeros(3)
    for wrong, message in (
        ({"path": 3}, r"path must have shape \(T,\); got shape \(\)"),
        ({"scores": 3.0}, r"scores must have shape \(T,\) = \(3,\)"),
        ({"positions": [1]}, r"positions must have shape \(T,\) = \(3,\)"),
        ({"scores": scores.to_sparse()}, "scores must be floats .*sparse_coo"),
        ({"scores": torch.quantize_per_tensor(scores, 0.1, 0, torch.quint8)}, "scores must be floats .*quantised"),
        ({"scores": scores.to("meta")}, "scores must be a tensor that has values"),
        ({"scores": [1j, 0, 0]}, "scores must be floats"),
        ({"scores": ["a", "b", "c"]}, "scores must be floats"),
    ):
        with pytest.raises((InvalidValueError, InvalidTypeError), match=f"^token_spans: {message}"):
            pathsum.torch.token_spans(**{"path": path, "scores": scores, **wrong})


@pytest.mark.parametrize("name", ["ctc_expected_risk", "rnnt_expected_risk", "asg_expected_risk"])
def test_costs_are_where_the_scores_are(name):
    arguments = calls.base(name)
    arguments["costs"] = arguments["costs"].to("meta")
    with pytest.raises(InvalidTypeError, match=f"^{name}: costs must be on cpu, as the scores are; got meta$"):
        getattr(pathsum.torch, name)(**arguments)


def test_durations_of_no_list_are_named():
    for wrong in (3, 0.5, "2", torch.tensor(2)):
        with pytest.raises(InvalidTypeError, match=r"^infeasible: durations must be a list of ints"):
            pathsum.torch.infeasible("tdt", [[1]], [3], durations=wrong)


def test_hypotheses_of_no_samples_axis_are_named():
    for wrong in (1, [1, 2]):
        with pytest.raises(InvalidValueError, match=r"^edit_distances: hypotheses must have shape \(N, S\) or"):
            pathsum.torch.edit_distances(wrong, [1], [[1]])


def test_a_separator_has_64_bits():
    assert pathsum.torch.edit_distances([[1, 2]], [2], [[1]], separator=2**63 - 1).tolist() == [1]
    with pytest.raises(InvalidValueError, match=r"^edit_distances: separator must be at most 9223372036854775807"):
        pathsum.torch.edit_distances([[1, 2]], [2], [[1]], separator=2**63)


@pytest.mark.parametrize("front", ["torch", "jax"])
def test_kmers_are_bounded_before_their_classes_are_counted(front):
    pytest.importorskip(front)
    name = "crf_ctc_loss" if front == "torch" else "jax.crf_ctc_loss"
    for length in (15, 2**64, 10**30):
        with pytest.raises(InvalidValueError, match=f"^crf_ctc_loss: state_len must be at most 14; got {length}$"):
            calls.function(name)(**calls.base(name) | {"state_len": length})
