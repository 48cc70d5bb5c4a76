"""The drop-in for ``torch.nn.functional.ctc_loss``: torch is always there, so it is asked itself."""

import pytest
import torch

from pathsum.compat.torch_functional import CTCLoss, ctc_loss
from pathsum.errors import NotDifferentiableError
from pathsum.testing import assert_close, chain_inputs

theirs = torch.nn.functional.ctc_loss


def both(log_probs, *arguments, upstream=None, **options):
    """Loss and gradient of the drop-in and of torch."""
    for function in (ctc_loss, theirs):
        leaf = log_probs.clone().requires_grad_()
        loss = function(leaf, *arguments, **options)
        loss.backward(torch.ones_like(loss) if upstream is None else upstream)
        yield loss.detach(), leaf.grad


def assert_same_as_torch(log_probs, *arguments, **options):
    (loss, gradient), (expected_loss, expected_gradient) = both(log_probs, *arguments, **options)
    assert loss.shape == expected_loss.shape
    assert loss.dtype == expected_loss.dtype
    assert_close(loss, expected_loss, relative=1e-12, absolute=1e-12, what="loss")
    assert_close(gradient, expected_gradient, absolute=1e-11, what="gradient")


def case(seed=0, num_samples=3, num_frames=11, num_classes=6, num_labels=4):
    inputs = chain_inputs(num_frames, num_samples, num_classes, num_labels, seed=seed)
    targets = torch.from_numpy(inputs.targets).clamp(min=0)
    integers = targets, torch.from_numpy(inputs.input_lengths), torch.from_numpy(inputs.target_lengths)
    return torch.from_numpy(inputs.logits), integers


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("normalised", [True, False])
def test_values_and_gradients(reduction, normalised):
    # Scores that are no log-probabilities too: users pass logits by mistake, and the peer takes them.
    logits, integers = case()
    assert_same_as_torch(logits.log_softmax(2) if normalised else logits, *integers, reduction=reduction)


def test_any_upstream_gradient():
    logits, integers = case(1)
    upstream = torch.tensor([-2.0, 0.0, 0.5], dtype=torch.float64)
    assert_same_as_torch(logits.log_softmax(2), *integers, reduction="none", upstream=upstream)


def test_concatenated_targets_and_lists():
    logits, (targets, input_lengths, target_lengths) = case(2)
    flat = torch.cat([row[:length] for row, length in zip(targets, target_lengths, strict=True)])
    assert_same_as_torch(logits.log_softmax(2), flat, input_lengths.tolist(), tuple(target_lengths.tolist()))


def test_another_blank():
    logits, (targets, *lengths) = case(3)
    assert_same_as_torch(logits.log_softmax(2), targets - 1, *lengths, blank=5)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_one_sample_without_a_batch(reduction):
    logits, _ = case(4)
    arguments = torch.tensor([1, 2, 2]), torch.tensor(9), torch.tensor(3)
    assert_same_as_torch(logits[:, 0].log_softmax(1), *arguments, reduction=reduction)


@pytest.mark.parametrize("targets", [[1, 2, 2], [[1, 2, 2]], [[1, 2, 2, 5, 0]]], ids=["(S)", "(1, S)", "(1, wider)"])
@pytest.mark.parametrize("lengths", [
    (torch.tensor(9), torch.tensor(3)), (torch.tensor([9]), torch.tensor([3])), ([9], [3]), ((9,), (3,)),
], ids=["0-d", "(1)", "list", "tuple"])  # fmt: skip
def test_one_sample_without_a_batch_in_every_shape_that_torch_takes(targets, lengths):
    logits, _ = case(4)
    for reduction in ("none", "sum", "mean"):
        assert_same_as_torch(logits[:, 0].log_softmax(1), torch.tensor(targets), *lengths, reduction=reduction)


def test_a_batch_of_one_with_lengths_that_have_no_axis():
    logits, _ = case(4)
    arguments = torch.tensor([1, 2, 2]), torch.tensor(9), torch.tensor(3)
    assert_same_as_torch(logits[:, :1].log_softmax(2), *arguments, reduction="none")


SMALL = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32]


@pytest.mark.parametrize("dtype", [*SMALL, torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("concatenated", [False, True])
def test_targets_of_any_dtype(dtype, concatenated):
    logits, (targets, input_lengths, target_lengths) = case(2)
    if concatenated:
        targets = torch.cat([row[:length] for row, length in zip(targets, target_lengths, strict=True)])
    targets = targets.clamp(max=1) if dtype == torch.bool else targets
    assert_same_as_torch(logits.log_softmax(2), targets.to(dtype), input_lengths, target_lengths)


def test_fractions_of_labels_are_cut_off():
    logits, (targets, *lengths) = case(2)
    assert_same_as_torch(logits.log_softmax(2), targets + 0.9, *lengths)


@pytest.mark.parametrize("dtype", [*SMALL, torch.int64])
@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3)])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_lengths_of_any_integer_dtype_and_shape(dtype, shape, reduction):
    logits, (targets, *lengths) = case(2)
    lengths = (length.to(dtype).reshape(shape) for length in lengths)
    assert_same_as_torch(logits.log_softmax(2), targets, *lengths, reduction=reduction)


def test_lengths_in_lists_of_whatever_counts_as_an_int():
    logits, (targets, *lengths) = case(2)
    assert_same_as_torch(logits.log_softmax(2), targets, *map(list, lengths))
    assert_same_as_torch(logits.log_softmax(2), targets, *(list(length.numpy()) for length in lengths))


@pytest.mark.parametrize("targets", [torch.tensor([]), torch.zeros(3, 0), torch.zeros(3, 0).long(), torch.zeros(3, 4)])
def test_a_batch_without_any_label(targets):
    logits, (_, input_lengths, _) = case(2)
    log_probs, none = logits.log_softmax(2), torch.zeros(3, dtype=torch.int64)
    assert_same_as_torch(log_probs, targets, input_lengths, none)
    # Frame by frame the blank.
    within = torch.arange(len(log_probs))[:, None] < input_lengths
    expected = -(log_probs[..., 0] * within).sum(0)
    assert_close(ctc_loss(log_probs, targets, input_lengths, none, reduction="none"), expected, relative=1e-12)


def test_one_sample_without_any_label():
    logits, _ = case(2)
    arguments = torch.tensor([]), torch.tensor(7), torch.tensor(0)
    assert_same_as_torch(logits[:, 0].log_softmax(1), *arguments, reduction="none")


@pytest.mark.parametrize("blank_inside", [False, True])
def test_the_node_of_unreduced_losses_may_be_called(blank_inside):
    # As ESPnet's "builtin2" does, to find the samples that it leaves out: those whose gradient is not finite.
    logits, _ = case(8)
    targets = torch.tensor([[1, 1], [0 if blank_inside else 3, 2], [2, 2]])
    arguments = targets, torch.tensor([2, 5, 9]), torch.tensor([2, 2, 2])
    found = []
    for function in (ctc_loss, theirs):
        log_probs = logits.log_softmax(2).requires_grad_()
        losses = function(log_probs, *arguments, reduction="none")
        upstream = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        found.append(losses.grad_fn(upstream))
        losses[1:].sum().backward()  # and a backward pass is as it was
        found.append(log_probs.grad.nan_to_num())
    ours, gradient, expected, expected_gradient = found
    assert ours[:, 0].isnan().all()
    assert expected[:, 0].sum().isnan()
    assert_close(ours[:, 1:], expected[:, 1:], absolute=1e-11)
    assert_close(gradient, expected_gradient, absolute=1e-11)


def test_the_node_is_not_in_the_way_of_transforms():
    logits, integers = case(8)
    log_probs = logits.log_softmax(2)

    def losses(scores, impl="auto"):
        return ctc_loss(scores, *integers, reduction="none", impl=impl)

    expected = next(both(log_probs, *integers, reduction="none"))
    assert_close(torch.func.grad(lambda scores: losses(scores).sum())(log_probs), expected[1], absolute=1e-11)
    tangent = torch.randn(log_probs.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(log_probs.clone().requires_grad_(), tangent)
        moved = torch.autograd.forward_ad.unpack_dual(losses(dual, "reference")).tangent
    assert_close(moved, (expected[1] * tangent).sum((0, 2)), absolute=1e-11)


def espnet_builtin2(criterion, logits, targets, input_lengths, target_lengths):
    """The mean loss of the samples whose gradient is finite, targets concatenated: the steps of ESPnet's builtin2."""
    log_probs = logits.log_softmax(2)
    losses = criterion(log_probs, targets, input_lengths, target_lengths)
    finite = losses.grad_fn(torch.ones_like(losses)).sum([0, 2]).isfinite()
    kept = torch.repeat_interleave(finite, target_lengths)
    return (
        criterion(log_probs[:, finite], targets[kept], input_lengths[finite], target_lengths[finite]).sum()
        / finite.sum()
    )


def test_espnet_s_builtin2_leaves_out_what_does_not_fit():
    logits, _ = case(8)
    arguments = torch.tensor([1, 1, 3, 2, 2, 2]), torch.tensor([2, 5, 9]), torch.tensor([2, 2, 2])
    results = []
    for criterion in (CTCLoss(reduction="none"), torch.nn.CTCLoss(reduction="none")):
        leaf = logits.clone().requires_grad_()
        loss = espnet_builtin2(criterion, leaf, *arguments)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    (loss, gradient), (expected, expected_gradient) = results
    assert expected.isfinite()
    assert_close(loss, expected, relative=1e-12)
    assert_close(gradient, expected_gradient, absolute=1e-11)


def test_targets_wider_than_need_be_with_anything_in_them():
    logits, (targets, *lengths) = case(5)
    wide = torch.nn.functional.pad(targets, (0, 7), value=0)
    assert_same_as_torch(logits.log_softmax(2), wide, *lengths)


def test_no_frames_and_no_labels():
    # T = 0 with an empty target; an empty target; both beside a plain sample.
    logits, _ = case(6)
    arguments = torch.tensor([[1, 2], [1, 1], [3, 3]]), torch.tensor([0, 5, 8]), torch.tensor([0, 0, 2])
    assert_same_as_torch(logits.log_softmax(2), *arguments, reduction="none")


def test_the_blank_among_the_labels():
    logits, _ = case(7, num_samples=2)
    arguments = torch.tensor([[0, 0, 1], [2, 0, 3]]), torch.tensor([11, 9]), torch.tensor([3, 3])
    assert_same_as_torch(logits.log_softmax(2), *arguments, reduction="none")


def test_the_blank_as_the_last_label():
    # In the last frame torch then counts the label or the blank behind it, not both.
    logits, _ = case(7, num_samples=2)
    arguments = torch.tensor([[0, 1, 0], [1, 0, 1]]), torch.tensor([11, 11]), torch.tensor([3, 3])
    (loss, gradient), (expected_loss, expected) = both(logits.log_softmax(2), *arguments, reduction="none")
    assert_close(loss, expected_loss, relative=1e-12)
    assert (gradient - expected).abs().gt(1e-9).nonzero().tolist() == [[10, 0, 0]]
    # A frame's gradient by the logits sums to 0: ours does.
    assert_close(gradient.sum(2), torch.zeros(11, 2), absolute=1e-12)


def test_infeasible_samples_as_torch_has_them_with_zero_infinity():
    logits, _ = case(8)
    arguments = torch.tensor([[1, 1], [1, 2], [2, 2]]), torch.tensor([2, 2, 9]), torch.tensor([2, 2, 2])
    assert_same_as_torch(logits.log_softmax(2), *arguments, reduction="none", zero_infinity=True)


def test_infeasible_samples_have_no_gradient_where_torch_has_nan():
    logits, _ = case(8)
    arguments = torch.tensor([[1, 1], [1, 2], [2, 2]]), torch.tensor([2, 2, 9]), torch.tensor([2, 2, 2])
    (loss, gradient), (expected_loss, expected) = both(logits.log_softmax(2), *arguments, reduction="none")
    assert torch.equal(loss.isinf(), expected_loss.isinf())
    assert expected[:, 0].isnan().any()
    assert not gradient[:, 0].any()
    assert_close(gradient[:, 1:], expected[:, 1:], absolute=1e-11)


def test_padding_is_not_read():
    logits, (targets, *lengths) = case(9)
    log_probs = logits.log_softmax(2)
    clean = log_probs.clone().requires_grad_()
    padded = torch.arange(len(log_probs))[:, None] >= lengths[0]
    dirty = log_probs.masked_fill(padded[..., None], torch.nan).requires_grad_()
    losses = [ctc_loss(leaf, targets, *lengths, reduction="none") for leaf in (clean, dirty)]
    for loss in losses:
        loss.sum().backward()
    assert torch.equal(*losses)
    assert torch.equal(clean.grad, dirty.grad)


def test_corrected_is_the_true_gradient():
    logits, (targets, *lengths) = case(10)
    log_probs = logits.log_softmax(2).requires_grad_()

    def corrected(scores):
        return ctc_loss(scores, targets, *lengths, reduction="sum", corrected=True)

    assert torch.autograd.gradcheck(corrected, log_probs)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(lambda scores: theirs(scores, targets, *lengths, reduction="sum"), log_probs)


def test_the_module():
    logits, integers = case(11)
    log_probs = logits.log_softmax(2)
    for options in ({}, {"reduction": "sum"}, {"blank": 0, "zero_infinity": True}):
        expected = torch.nn.CTCLoss(**options)(log_probs, *integers)
        assert_close(CTCLoss(**options)(log_probs, *integers), expected, relative=1e-12)


def test_an_unknown_reduction_is_refused():
    logits, integers = case(12)
    with pytest.raises(ValueError, match="ctc_loss: reduction must be one of none, mean, sum; got 'batchmean'"):
        ctc_loss(logits, *integers, reduction="batchmean")


@pytest.mark.parametrize(
    "target_lengths", [torch.tensor([5, 2, 1]), torch.tensor([-1, 2, 1]), torch.tensor([1.0, 2, 1])]
)
def test_what_is_refused_is_a_runtime_error_as_in_torch(target_lengths):
    logits, (targets, input_lengths, _) = case(13)
    for function in (ctc_loss, theirs):
        with pytest.raises(RuntimeError):
            function(logits.log_softmax(2), targets, input_lengths, target_lengths)


@pytest.mark.parametrize("impl", ["numba", "reference"])
def test_implementations_have_the_same_quirk(impl):
    logits, integers = case(13)
    log_probs = logits.log_softmax(2).requires_grad_()
    (ours,) = torch.autograd.grad(ctc_loss(log_probs, *integers, impl=impl), log_probs)
    (expected,) = torch.autograd.grad(theirs(log_probs, *integers), log_probs)
    assert_close(ours, expected, absolute=1e-11)


def test_a_second_derivative_wants_the_true_gradient():
    logits, integers = case(14)
    log_probs = logits.log_softmax(2).requires_grad_()
    with pytest.raises(NotDifferentiableError, match="corrected=True"):
        torch.autograd.grad(ctc_loss(log_probs, *integers), log_probs, create_graph=True)
    loss = ctc_loss(log_probs, *integers, corrected=True)
    (gradient,) = torch.autograd.grad(loss, log_probs, create_graph=True)
    (product,) = torch.autograd.grad(gradient.square().sum(), log_probs)
    assert product.any()
