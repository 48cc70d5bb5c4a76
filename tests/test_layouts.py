"""Layouts and types of arguments: frames or samples first, one sample alone, NumPy's arrays, small integers."""

import inspect

import numpy as np
import pytest
import torch

import pathsum.torch
from pathsum.torch import (
    asg_align,
    asg_entropy,
    asg_expected_risk,
    asg_loss,
    asg_posteriors,
    asg_viterbi,
    ctc_entropy,
    ctc_expected_risk,
    ctc_greedy_decode,
    ctc_loss,
    ctc_posteriors,
    forced_align,
    simple_ctc_align,
    simple_ctc_entropy,
    simple_ctc_expected_risk,
    simple_ctc_loss,
    simple_ctc_posteriors,
)

SAMPLES, FRAMES, CLASSES = 3, 7, 4
TABLE = torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(2))
COSTS = torch.rand(FRAMES, SAMPLES, CLASSES, generator=torch.Generator().manual_seed(3))
TARGETS = torch.tensor([[1, 2, 1], [3, 1, 0], [2, 0, 0]])
LENGTHS, LABELS = torch.tensor([7, 5, 4]), torch.tensor([3, 2, 1])


def scores_first(function):
    return lambda scores, costs, table, *integers, **options: function(scores, *integers, **options)


def with_costs(function):
    return lambda scores, costs, table, *integers, **options: function(scores, costs, *integers, **options)


def with_table(function):
    def call(scores, costs, table, targets, *lengths, **options):
        return function(scores, targets, table, *lengths, **options)

    return call


def asg_risk(scores, costs, table, targets, *lengths, **options):
    return asg_expected_risk(scores, costs, targets, table, *lengths, **options)


def viterbi(scores, costs, table, targets, lengths, labels, **options):
    return asg_viterbi(scores, table, lengths, **options)


def greedy(scores, costs, table, targets, lengths, labels, **options):
    return ctc_greedy_decode(scores, lengths, **options)


REDUCED = {
    "ctc_loss": scores_first(ctc_loss),
    "simple_ctc_loss": scores_first(simple_ctc_loss),
    "asg_loss": with_table(asg_loss),
    "ctc_entropy": scores_first(ctc_entropy),
    "simple_ctc_entropy": scores_first(simple_ctc_entropy),
    "asg_entropy": with_table(asg_entropy),
    "ctc_expected_risk": with_costs(ctc_expected_risk),
    "simple_ctc_expected_risk": with_costs(simple_ctc_expected_risk),
    "asg_expected_risk": asg_risk,
}
SAMPLE_BY_SAMPLE = {
    "forced_align": scores_first(forced_align),
    "simple_ctc_align": scores_first(simple_ctc_align),
    "asg_align": with_table(asg_align),
    "asg_viterbi": viterbi,
    "ctc_posteriors": scores_first(ctc_posteriors),
    "simple_ctc_posteriors": scores_first(simple_ctc_posteriors),
    "asg_posteriors": with_table(asg_posteriors),
    "ctc_greedy_decode": greedy,
}
ALL = REDUCED | SAMPLE_BY_SAMPLE


def call(name, scores, costs=COSTS, table=TABLE, integers=(TARGETS, LENGTHS, LABELS), **options):
    """All that a function returns, as a tuple of tensors."""
    if name in REDUCED:
        options["reduction"] = "none"
    found = ALL[name](scores, costs, table, *integers, **options)
    if isinstance(found, torch.Tensor):
        return (found,)
    return (*found, found.positions) if hasattr(found, "positions") and len(found) == 2 else tuple(found)


@pytest.fixture
def scores():
    """(T, N, C)"""
    return torch.randn(FRAMES, SAMPLES, CLASSES, generator=torch.Generator().manual_seed(1)).log_softmax(2)


def assert_equal(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ALL)
def test_batch_first_says_which_axis_the_samples_are_on(name, scores):
    """Losses have the frames first unless told otherwise, as torch's; all else the samples, as torchaudio's."""
    frames_first = call(name, scores, batch_first=False)
    samples_first = call(name, scores.transpose(0, 1), COSTS.transpose(0, 1), batch_first=True)
    assert_equal(frames_first, samples_first)
    plain = call(name, scores if name in REDUCED else scores.transpose(0, 1))
    assert_equal(plain, frames_first)


@pytest.mark.parametrize("name", ALL)
def test_one_sample_may_come_without_a_batch_axis(name, scores):
    for n, (length, labels) in enumerate(zip(LENGTHS.tolist(), LABELS.tolist(), strict=True)):
        own = scores[:length, n], COSTS[:length, n]
        integers = (TARGETS[n : n + 1, :labels], [length], [labels])
        expected = call(name, *(part[:, None] for part in own), integers=integers, batch_first=False)
        number_of_axes = [part.ndim - 1 for part in expected]
        if name == "asg_posteriors":
            number_of_axes[-1] = 2  # the transitions are of all samples
        for target in (TARGETS[n, :labels], TARGETS[n : n + 1, :labels]):
            found = call(name, *own, integers=(target, length, labels))
            assert [part.ndim for part in found] == number_of_axes
            assert_equal([part.reshape(other.shape) for part, other in zip(found, expected, strict=True)], expected)
        if name in SAMPLE_BY_SAMPLE:
            assert_equal(call(name, *own, integers=(TARGETS[n, :labels], None, None)), found)


@pytest.mark.parametrize("name", ALL)
def test_numpys_arrays_are_scores_and_integers_as_tensors_are(name, scores):
    expected = call(name, scores, batch_first=False)
    integers = tuple(part.numpy() for part in (TARGETS, LENGTHS, LABELS))
    array, costs, table = scores.numpy(), COSTS.numpy(), TABLE.numpy()
    assert_equal(call(name, array, costs, table, integers, batch_first=False), expected)
    frozen = array.copy()
    frozen.flags.writeable = False
    for other in (np.ascontiguousarray(array[::-1])[::-1], array.astype(">f4"), frozen):
        assert_equal(call(name, other, costs, table, integers, batch_first=False), expected)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("name", ALL)
def test_integers_may_be_of_any_integer_dtype(name, dtype, scores):
    expected = call(name, scores, batch_first=False)
    for make in (lambda part: part.to(getattr(torch, dtype)), lambda part: part.numpy().astype(dtype)):
        found = call(name, scores, integers=tuple(map(make, (TARGETS, LENGTHS, LABELS))), batch_first=False)
        if dtype == "int32" and name.endswith("align") and make(LABELS).dtype == torch.int32:
            assert found[0].dtype == torch.int32
            found = (found[0].long(), *found[1:])
        assert_equal(found, expected)


def test_scores_share_the_memory_of_an_array():
    array = np.zeros((1, 2, 3), np.float32)
    assert pathsum.torch._inputs.as_scores(array).data_ptr() == array.ctypes.data


@pytest.mark.parametrize(
    "wrong, message",
    [
        (np.zeros((2, 3), np.longdouble), "must have dtype float32, .*; got a NumPy ndarray of (float128|longdouble)"),
        (np.zeros((2, 3), int), "got a NumPy ndarray of int64"),
        (np.ma.zeros((2, 3)), "got a NumPy MaskedArray of float64"),
        (np.zeros((2, 3), "U1"), "got a NumPy ndarray of str"),
        (np.zeros(3), r"must have shape \(N, T, C\) or \(T, C\); got shape \(3,\)"),
    ],
)
def test_arrays_that_are_no_scores_are_refused(wrong, message):
    with pytest.raises(
        (TypeError, ValueError), match=f"forced_align: log_probs {message}" if "must" in message else message
    ):
        forced_align(wrong, [1])


@pytest.mark.parametrize("place", range(3))
def test_integers_that_a_mask_hides_are_not_read(place):
    integers: list = [np.array([[1, 2]]), np.array([7]), np.array([2])]
    integers[place] = np.ma.array(integers[place], mask=True)
    name = ("targets", "input_lengths", "target_lengths")[place]
    with pytest.raises(TypeError, match=f"ctc_loss: {name} must have no mask; got a NumPy MaskedArray"):
        ctc_loss(torch.zeros(7, 1, 4), *integers)


def test_integers_beyond_64_bits_are_refused():
    lengths = np.array([2**63], np.uint64)
    with pytest.raises(ValueError, match=f"forced_align: input_lengths must .* got {2**63}"):
        forced_align(torch.zeros(1, 2, 3), [[1]], lengths)


def test_every_function_of_scores_by_frames_says_how_they_lie():
    """But those of the transducer's logits (N, T, U+1, V), which have one layout."""
    names = {"log_probs", "inputs", "encoder_out"}
    for name, function in vars(pathsum.torch).items():
        if inspect.isfunction(function) and names & set(inspect.signature(function).parameters):
            takes_logits = "predictor_out" in inspect.signature(function).parameters
            assert takes_logits or "batch_first" in inspect.signature(function).parameters, name


NODES = torch.randn(2, 5, 3, 6, generator=torch.Generator().manual_seed(4))
WALKS = {
    "rnnt_loss": {},
    "rnnt_packed_loss": {},
    "multi_blank_rnnt_loss": {"big_blank_durations": [2], "big_blanks": [4]},
    "ar_rnnt_loss": {"alignment": [[1, 2], [0, 1]], "left": 2, "right": 2},
    "wildcard_rnnt_loss": {},
    "tdt_loss": {"durations": [0, 1, 2]},
    "rnnt_entropy": {},
    "rnnt_expected_risk": {},
    "rnnt_align": {},
    "rnnt_posteriors": {},
}


@pytest.mark.parametrize("name", WALKS)
def test_a_transducers_logits_may_be_numpys(name):
    function, extra = getattr(pathsum.torch, name), WALKS[name]
    heads = {"tdt_loss": (NODES, NODES[..., :3].clone()), "rnnt_expected_risk": (NODES, NODES[..., :2].clone())}
    given = heads.get(name, (NODES.reshape(-1, 6),) if name == "rnnt_packed_loss" else (NODES,))
    integers = torch.tensor([[1, 2], [3, 0]]), torch.tensor([5, 5]), torch.tensor([2, 2])
    expected = function(*given, *integers, **extra)
    found = function(*(head.numpy() for head in given), *(each.numpy().astype(np.int16) for each in integers), **extra)
    expected, found = ((each,) if isinstance(each, torch.Tensor) else tuple(each) for each in (expected, found))
    assert_equal(found, expected)
