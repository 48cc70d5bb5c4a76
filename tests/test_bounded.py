"""Integers that are bounded on the scores' device instead of looked at: the same losses, or NaN for a bad sample.

By the Triton kernels, interpreted, on CPU tensors whose integers are treated as if they were on a GPU.
"""

import pytest
import torch

from pathsum.dispatch import kernels_of
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.problems.asg import pose_asg
from pathsum.problems.ctc import pose_ctc
from pathsum.problems.rnnt import pose_rnnt
from pathsum.problems.simple_ctc import pose_simple_ctc
from pathsum.testing import assert_close, assert_same_bits, chain_inputs, concatenate_targets, grid_inputs, pack_rows
from pathsum.torch import (
    _bounded,
    asg_loss,
    ctc_entropy,
    ctc_loss,
    rnnt_entropy,
    rnnt_joint_loss,
    rnnt_loss,
    rnnt_packed_loss,
    rnnt_posteriors,
)
from pathsum.torch.paths import asg, ctc, rnnt, variants
from support import solve, tensor
from test_second_order_grid import inputs_of
from triton_targets import interpreted  # noqa: F401
from variants import BLANK, VARIANTS

pytestmark = pytest.mark.filterwarnings("ignore:asg_loss. the target")


@pytest.fixture(autouse=True)
def as_on_a_device(monkeypatch):
    def unread_on(function, check, impl, scores, *integers):
        return scores.device if check == "async" else None

    for module in (asg, ctc, rnnt, variants):
        monkeypatch.setattr(module, "unread_on", unread_on)
    monkeypatch.setattr("pathsum.torch._triton.rows.in_memory", lambda _: False)


def zero_transitions(scores, *integers, **options):
    return asg_loss(scores, integers[0], torch.zeros(5, 5, dtype=scores.dtype), *integers[1:], **options)


def of_encoders(scores, *integers, **options):
    """The fused joiner's, of its first operand."""
    predictor, weight = torch.linspace(-1, 1, 12).view(1, 3, 4), torch.linspace(1, -1, 20).view(5, 4).sin()
    predictor = predictor.repeat(len(scores), 1, 1)
    return rnnt_joint_loss(scores[..., :4], predictor, weight, None, *integers, **options)


def case(loss, samples=3):
    if loss in CHAINS:
        inputs = chain_inputs(3, samples, 5, 2, seed=1, ragged=False)
    else:
        inputs = grid_inputs(samples, 4, 2, 5, blank=0, seed=1, ragged=False)
    scores = pack_rows(inputs.logits, *inputs[2:]) if loss is rnnt_packed_loss else inputs.logits
    scores = scores[:, :, 0] if loss is of_encoders else scores
    options = {"impl": "triton"} | ({} if loss is zero_transitions else {"blank": 0})
    return tensor(scores, torch.float32), [torch.from_numpy(array) for array in inputs[1:]], options


CHAINS = [ctc_loss, zero_transitions]
LOSSES = [*CHAINS, rnnt_loss, rnnt_packed_loss, of_encoders]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_good_integers_give_the_same_loss(loss):
    scores, integers, options = case(loss)
    expected = solve(loss, scores, *integers, **options, check="sync")
    flat = torch.from_numpy(concatenate_targets(integers[0].numpy(), integers[2].numpy()))
    for targets in (integers[0], integers[0].int(), flat):
        solved = solve(loss, scores, targets, *integers[1:], **options)
        assert_same_bits(solved.loss, expected.loss)
        assert_same_bits(solved.gradient, expected.gradient)


# Which argument, and what is wrong in it.
BAD = [(0, 5), (0, -1), (0, 2**40), (1, -1), (1, 99), (2, -1), (2, 4)]


def spoiled(integers, n, argument, value):
    integers = [array.clone() for array in integers]
    integers[argument][(n, 0) if argument == 0 else n] = value
    return integers


@pytest.mark.parametrize("loss", [*CHAINS, rnnt_loss, of_encoders], ids=lambda loss: loss.__name__)
def test_a_bad_integer_makes_its_sample_undefined(loss):
    scores, integers, options = case(loss, samples=len(BAD) + 2)
    expected = solve(loss, scores, *integers, **options, check="sync")
    all_bad = integers
    for n, bad in enumerate(BAD, 1):
        all_bad = spoiled(all_bad, n, *bad)
        with pytest.raises(InvalidValueError, match=f"at sample {n}"):
            solve(loss, scores, *spoiled(integers, n, *bad), **options, check="sync")
    solved = solve(loss, scores, *all_bad, **options)
    others, axis = torch.tensor([0, len(BAD) + 1]), int(loss in CHAINS)
    assert solved.loss.isnan().tolist() == [False, *[True] * len(BAD), False]
    assert_same_bits(solved.loss[others], expected.loss[others])
    assert_same_bits(solved.gradient.index_select(axis, others), expected.gradient.index_select(axis, others))


@pytest.mark.parametrize("argument, value", BAD)
def test_a_bad_integer_makes_packed_samples_undefined(argument, value):
    scores, integers, options = case(rnnt_packed_loss)
    expected = solve(rnnt_packed_loss, scores, *integers, **options, check="sync")
    bad = spoiled(integers, 1, argument, value)
    solved = solve(rnnt_packed_loss, scores, *bad, **options)
    if argument > 0:  # which rows are whose cannot be told
        assert solved.loss.isnan().all()
        assert not solved.gradient.any()
    else:
        assert solved.loss[1].isnan()
        assert_same_bits(solved.loss[[0, 2]], expected.loss[[0, 2]])
        for own, wanted in zip(*(x.gradient.split(12)[::2] for x in (solved, expected)), strict=True):
            assert_same_bits(own, wanted)
    with pytest.raises(InvalidValueError):
        solve(rnnt_packed_loss, scores, *bad, **options, check="sync")


@pytest.mark.parametrize("name", ["tdt", "multi-blank", "band"])
def test_integers_of_variants_stay_unread(name):
    """The same losses and gradients, by planes that have room for padding; a bad label has no effect on others."""
    variant = VARIANTS[name]
    heads, integers = inputs_of(variant, 2, 3, 1, seed=5)
    heads = [head.float().requires_grad_() for head in heads]
    integers = [torch.as_tensor(array) for array in integers]
    expected = variant.loss(heads, *integers, reduction="none", impl="triton", check="sync")
    wanted = torch.autograd.grad(expected.sum(), heads)
    losses = variant.loss(heads, *integers, reduction="none", impl="triton")
    assert_same_bits(losses.detach(), expected.detach())
    for found, gradient in zip(torch.autograd.grad(losses.sum(), heads), wanted, strict=True):
        assert_same_bits(found, gradient)
    integers[0][0, 0] = 7 if name == "multi-blank" else BLANK
    losses = variant.loss(heads, *integers, reduction="none", impl="triton")
    assert losses.isnan().tolist() == [True, False]
    assert_same_bits(losses[1:].detach(), expected[1:].detach())
    with pytest.raises(InvalidValueError):
        variant.loss(heads, *integers, impl="triton", check="sync")


@pytest.mark.parametrize("function", [ctc_entropy, rnnt_entropy, rnnt_posteriors])
def test_expectations_and_posteriors_of_integers_unread(function):
    scores, integers, options = case(ctc_loss if function is ctc_entropy else rnnt_loss)
    options |= {} if function is rnnt_posteriors else {"reduction": "none"}
    expected = function(scores, *integers, **options, check="sync")
    integers[0][1, 0] = 5
    found = function(scores, *integers, **options)
    if function is rnnt_posteriors:
        found, expected = found.nodes, expected.nodes
        assert not found[1].any()
    else:
        assert found[1].isnan()
    assert_close(found[::2], expected[::2], absolute=1e-6)


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


@pytest.mark.parametrize("huge", [2**31, 2**62, 2**63 - 1, -(2**63)])
def test_lengths_are_bounded_before_they_are_added(huge):
    device = torch.device("cpu")
    lengths = torch.tensor([2**62, 2**62, 2**63 - 1, huge])
    sizes = (4, 3, None, 5, 0, None)
    flat = _bounded.unread_batch("f", "lengths", torch.tensor([1, 2]), torch.full((4,), 3), lengths, device, *sizes)
    found = _bounded.posed(pose_rnnt, flat, 0)
    assert (found.logit_lengths == -1).all()
    assert found.targets.shape[1] <= 3
    packed = _bounded.unread_batch(
        "f", "lengths", torch.tensor([[1, 2, 3]]), torch.tensor([huge]), torch.tensor([3]), device, None, None, None, 5,
        0, 4,
    )  # fmt: skip
    assert (_bounded.posed(pose_rnnt, packed, 0).logit_lengths == -1).all()


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("size", [1, 3, 70])
def test_a_batch_is_posed_as_it_is_from_the_host(size, flat):
    """By one kernel, in blocks of its own, as by ``problems``; targets without labels among them."""
    labels = torch.tensor([size, 0, size // 2])
    targets = torch.arange(3 * size).view(3, size) // 2 % 4 + 1
    lengths, device, sizes = torch.tensor([9, 4, 2]), torch.device("cpu"), (3, 200, None, 5)
    given = torch.cat([own[:n] for own, n in zip(targets, labels, strict=True)]) if flat else targets
    problems = ((pose_ctc, 0, 0), (pose_simple_ctc, 0, 0), (pose_rnnt, 0, 0), (pose_asg, 5, None))
    for pose, last, blank in problems:
        batch = _bounded.unread_batch("f", "lengths", given, lengths, labels, device, *sizes, blank, None)
        padded = torch.nn.functional.pad(targets, (0, batch.width - size))
        found, expected = _bounded.posed(pose, batch, last), pose(padded, lengths, labels, last)
        pairs = zip(found, expected, strict=True) if pose is pose_asg else [(found, expected)]
        for own, wanted in pairs:
            for name, value in vars(wanted).items():
                assert_same(getattr(own, name), value, name)


def assert_same(found, expected, name):
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype, name
        assert torch.equal(found, expected), name
    else:
        assert found == expected, name


def test_only_integers_on_a_device_that_triton_runs_on_stay_unread():
    scores, integers, _ = case(ctc_loss)
    elsewhere = torch.empty(1, device="meta")
    triton, reference = (kernels_of(impl, "chain") for impl in ("triton", "reference"))
    assert _bounded.unread_on("f", "async", triton, scores, *integers, elsewhere) == scores.device
    assert _bounded.unread_on("f", "async", triton, scores, *integers, [1, 2]) is None
    assert _bounded.unread_on("f", "async", reference, scores, *integers, elsewhere) is None
    assert _bounded.unread_on("f", "sync", triton, scores, *integers, elsewhere) is None
    with pytest.raises(InvalidValueError, match="check must be one of async, sync"):
        _bounded.unread_on("f", "never", triton, scores)
