"""What must hold for any input: hypothesis draws the sizes, the lengths, the scale and the seed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathsum.testing import ChainInputs, GridInputs, assert_close, assert_rows_sum_to_zero, assert_same_bits
from pathsum.torch import rnnt_loss
from support import CHAIN, assert_same, solve, tensor

LOSSES = [*CHAIN, "rnnt"]
FUNCTIONS = {**CHAIN, "rnnt": rnnt_loss}
# float64, so that rounding hides nothing; float32, since it has kernels of its own.
DTYPES = st.sampled_from([torch.float64, torch.float32])


@st.composite
def batches(draw, loss):
    """A ragged batch of one to four samples: some infeasible, some of empty targets, of few classes or peaky."""
    num_samples, num_frames, num_labels = draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(0, 4))
    num_classes = draw(st.integers(2, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    std = draw(st.sampled_from([0.0, 1.0, 8.0]))
    lengths = random.integers(1, num_frames + 1, num_samples)
    target_lengths = random.integers(0, num_labels + 1, num_samples)
    targets = random.integers(1, num_classes, (num_samples, num_labels))
    if loss == "rnnt":
        shape, make = (num_samples, num_frames, num_labels + 1, num_classes), GridInputs
    else:
        shape, make = (num_frames, num_samples, num_classes), ChainInputs
    return make(std * random.standard_normal(shape), targets, lengths, target_lengths)


def run(loss, inputs, dtype, **options):
    return solve(FUNCTIONS[loss], tensor(inputs.logits, dtype), *inputs[1:],
                 **{"blank": 0, "fused_log_softmax": True} | options)  # fmt: skip


def samples_first(loss, array):
    return array if loss == "rnnt" else array.swapaxes(0, 1)


def per_loss(test):
    return pytest.mark.parametrize("loss", LOSSES)(given(data=st.data(), dtype=DTYPES)(test))


@per_loss
def test_rows_of_a_gradient_by_logits_sum_to_zero(loss, data, dtype):
    inputs = data.draw(batches(loss))
    fastemit = {"fastemit_lambda": data.draw(st.sampled_from([0.0, 0.5]))} if loss == "rnnt" else {}
    solved = run(loss, inputs, dtype, **fastemit)
    assert_rows_sum_to_zero(solved.gradient, absolute=20 * torch.finfo(dtype).eps)


@per_loss
def test_every_cut_of_a_lattice_carries_the_pathsum(loss, data, dtype):
    inputs = data.draw(batches(loss))
    gradient = samples_first(loss, -run(loss, inputs, dtype, fused_log_softmax=False).gradient.double().numpy())
    losses = run(loss, inputs, dtype, fused_log_softmax=False).loss
    tolerance = 20 * torch.finfo(dtype).eps
    for n in range(len(losses)):
        frames, labels = inputs[2][n], inputs.target_lengths[n]
        if losses[n].isinf():
            assert not gradient[n].any()
            continue
        if loss != "rnnt":
            # A path has one arc in each frame.
            assert_close(gradient[n, :frames].sum(-1), np.ones(frames), absolute=tolerance)
            if loss == "simple_ctc":
                counts = [(inputs.targets[n, :labels] == label).sum() for label in range(inputs.logits.shape[-1])]
                emitted = gradient[n].sum(0)
                assert_close(emitted[1:], counts[1:], absolute=tolerance * frames)
            continue
        # A walk leaves each frame by one blank, and each row by one label.
        blanks = gradient[n, :frames, : labels + 1, 0]
        assert_close(blanks.sum(1), np.ones(frames), absolute=tolerance)
        for u in range(labels):
            assert_close(gradient[n, :frames, u, inputs.targets[n, u]].sum(), 1.0, absolute=tolerance * frames)


@per_loss
def test_padding_batch_order_and_neighbours_change_no_bit(loss, data, dtype):
    inputs = data.draw(batches(loss))
    order = data.draw(st.permutations(range(len(inputs.targets))))
    batch = run(loss, inputs, dtype)
    logits = samples_first(loss, inputs.logits)

    shuffled = samples_first(loss, logits[order])
    again = run(loss, inputs._replace(logits=shuffled, **rows_of(inputs, order)), dtype)
    assert_same_bits(again.loss, batch.loss[order])
    assert_same_bits(samples_first(loss, again.gradient), samples_first(loss, batch.gradient)[order])

    for n in order[:2]:
        frames, labels = inputs[2][n], inputs.target_lengths[n]
        inside = (slice(frames), slice(labels + 1)) if loss == "rnnt" else (slice(frames),)
        alone = inputs._replace(
            logits=samples_first(loss, logits[[n]][(slice(None), *inside)]), **rows_of(inputs, [n], labels)
        )
        solved = run(loss, alone, dtype)
        assert_same_bits(solved.loss, batch.loss[[n]])
        whole = samples_first(loss, batch.gradient)[n]
        assert_same_bits(samples_first(loss, solved.gradient)[0], whole[inside])
        assert whole.count_nonzero() == whole[inside].count_nonzero()


def rows_of(inputs, order, width=None):
    return {name: getattr(inputs, name)[order][..., :width] if name == "targets" else getattr(inputs, name)[order]
            for name in inputs._fields[1:]}  # fmt: skip


@per_loss
def test_the_upstream_gradient_multiplies_the_gradient(loss, data, dtype):
    inputs = data.draw(batches(loss))
    count = len(inputs.targets)
    upstream = data.draw(st.lists(st.sampled_from([0.0, 1.0, -1.0, 0.5, -4.0, 1024.0]), min_size=count, max_size=count))
    clamp = {"clamp": data.draw(st.sampled_from([-1.0, 0.125]))} if loss == "rnnt" else {}
    unit = run(loss, inputs, dtype, **clamp)
    scaled = run(loss, inputs, dtype, upstream=torch.tensor(upstream, dtype=dtype), **clamp)
    assert_same_bits(scaled.loss, unit.loss)
    # Powers of two and signs: not a bit is lost, but of what is subnormal.
    by_sample = samples_first(loss, unit.gradient) * torch.tensor(upstream, dtype=dtype).reshape(
        -1, *[1] * (unit.gradient.ndim - 1)
    )
    tiny = 2048 * torch.finfo(dtype).tiny
    assert_close(samples_first(loss, scaled.gradient), by_sample, absolute=tiny)


@per_loss
def test_backward_twice_is_backward_once(loss, data, dtype):
    inputs = data.draw(batches(loss))
    scores = tensor(inputs.logits, dtype).requires_grad_()
    losses = FUNCTIONS[loss](scores, *inputs[1:], blank=0, reduction="none", fused_log_softmax=True)
    before = scores.detach().clone()
    upstreams = [torch.ones_like(losses), -2 * torch.ones_like(losses), torch.ones_like(losses)]
    first, other, again = (torch.autograd.grad(losses, scores, up, retain_graph=True)[0] for up in upstreams)
    assert_same_bits(again, first)
    assert_close(other, -2 * first, absolute=8 * torch.finfo(dtype).tiny)
    assert_same_bits(scores, before)


@per_loss
def test_a_constant_added_to_a_row_of_logits_changes_nothing(loss, data, dtype):
    inputs = data.draw(batches(loss))
    solved = run(loss, inputs, torch.float64)
    shift = np.random.default_rng(0).integers(-8, 9, inputs.logits.shape[:-1])[..., None]
    shifted = run(loss, inputs._replace(logits=inputs.logits + shift), torch.float64)
    assert_close(shifted.loss, solved.loss, relative=1e-12, absolute=1e-12)
    assert_close(shifted.gradient, solved.gradient, absolute=1e-11)


# Eight samples for two, three and five threads; one sample, whose frames are shared out.
@pytest.mark.parametrize("num_samples", [1, 8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_number_of_threads_changes_no_bit(loss, dtype, num_samples, threads):
    random = np.random.default_rng(1)
    lengths, target_lengths = random.integers(20, 41, num_samples), random.integers(1, 8, num_samples)
    targets = random.integers(1, 12, (num_samples, 7))
    shape = (num_samples, 40, 8, 12) if loss == "rnnt" else (40, num_samples, 12)
    scores = tensor(random.standard_normal(shape), dtype)
    results = []
    for count in (1, 2, 3, 5, 2):
        threads(count)
        results.append(solve(FUNCTIONS[loss], scores, targets, lengths, target_lengths, blank=0,
                             fused_log_softmax=True))  # fmt: skip
    for result in results[1:]:
        assert_same(result, results[0])
