"""Integers that are bounded on the scores' device instead of looked at: the same losses, or NaN for a bad sample."""

import pytest
import torch

from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.testing import assert_same_bits, chain_inputs, concatenate_targets, grid_inputs, pack_rows
from pathsum.torch import _bounded, _inputs, asg_loss, ctc_loss, rnnt_loss, rnnt_packed_loss
from support import solve, tensor

pytestmark = pytest.mark.filterwarnings("ignore:asg_loss. the target")


@pytest.fixture(autouse=True)
def as_on_a_device(monkeypatch):
    """The reference on CPU tensors, their integers treated as if they were on a GPU."""
    monkeypatch.setattr(_inputs, "stay_unread", lambda integers, scores, check: check == "async")


def asg(scores, *integers, **options):
    return asg_loss(scores, integers[0], torch.zeros(5, 5, dtype=scores.dtype), *integers[1:], **options)


def case(loss):
    if loss in (ctc_loss, asg):
        inputs = chain_inputs(9, 3, 5, 3, seed=1, ragged=False)
    else:
        inputs = grid_inputs(3, 6, 3, 5, blank=0, seed=1, ragged=False)
    scores = pack_rows(inputs.logits, *inputs[2:]) if loss is rnnt_packed_loss else inputs.logits
    options = {"impl": "reference"} | ({} if loss is asg else {"blank": 0})
    return tensor(scores), [torch.from_numpy(array) for array in inputs[1:]], options


LOSSES = [ctc_loss, asg, rnnt_loss, rnnt_packed_loss]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_good_integers_give_the_same_loss(loss):
    scores, integers, options = case(loss)
    expected = solve(loss, scores, *integers, **options, check="sync")
    flat = torch.from_numpy(concatenate_targets(integers[0].numpy(), integers[2].numpy()))
    for targets in (integers[0], integers[0].int(), flat):
        solved = solve(loss, scores, targets, *integers[1:], **options)
        assert_same_bits(solved.loss, expected.loss)
        assert_same_bits(solved.gradient, expected.gradient)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("argument, value", [(0, 5), (0, -1), (0, 2**40), (1, -1), (1, 99), (2, -1), (2, 4)])
def test_a_bad_integer_makes_its_sample_undefined(loss, argument, value):
    if loss is rnnt_packed_loss and argument > 0:
        pytest.skip("the reference takes as many rows as the lengths say; the kernels are tested with test_triton.py")
    scores, integers, options = case(loss)
    expected = solve(loss, scores, *integers, **options, check="sync")
    integers[argument] = integers[argument].clone()
    integers[argument][(1, 0) if argument == 0 else 1] = value
    solved = solve(loss, scores, *integers, **options)
    assert solved.loss[1].isnan()
    assert_same_bits(solved.loss[[0, 2]], expected.loss[[0, 2]])
    with pytest.raises(InvalidValueError):
        solve(loss, scores, *integers, **options, check="sync")


def test_a_blank_among_the_labels_makes_its_sample_undefined():
    scores, integers, options = case(ctc_loss)
    integers[0][2, 1] = 0
    assert solve(ctc_loss, scores, *integers, **options).loss.isnan().tolist() == [False, False, True]


def test_concatenated_targets_of_another_total_make_all_samples_undefined():
    scores, integers, options = case(ctc_loss)
    flat = torch.from_numpy(concatenate_targets(integers[0].numpy(), integers[2].numpy()))[:-1]
    assert solve(ctc_loss, scores, flat, *integers[1:], **options).loss.isnan().all()


@pytest.mark.parametrize("argument, value, error", [
    (0, torch.zeros(3, 3), InvalidTypeError),
    (0, torch.zeros(2, 3, dtype=torch.int64), InvalidValueError),
    (0, torch.zeros(3, 3, 1, dtype=torch.int64), InvalidValueError),
    (1, torch.zeros(2, dtype=torch.int64), InvalidValueError),
    (2, torch.zeros(3, 1, dtype=torch.int64), InvalidValueError),
])  # fmt: skip
def test_shapes_and_dtypes_are_checked(argument, value, error):
    scores, integers, options = case(ctc_loss)
    integers[argument] = value
    with pytest.raises(error):
        ctc_loss(scores, *integers, **options)


def test_only_integers_on_a_gpu_are_left_unread():
    scores, integers, _ = case(ctc_loss)
    meta = torch.empty(1, device="meta")
    assert not _bounded.stay_unread(integers, scores, "async")
    assert not _bounded.stay_unread([meta], scores, "async")
    with pytest.raises(InvalidValueError, match="check must be one of async, sync"):
        ctc_loss(scores, *integers, check="never")
