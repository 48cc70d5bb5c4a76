"""The transducer's variants: their paths one by one, closed forms of their number, the peers' published values."""

import math

import numpy as np
import pytest
import torch

from pathsum.kernels.numba import grid_arcs
from pathsum.options import RNNT_TYPES
from pathsum.problems.alignment_restricted import pose_ar_rnnt
from pathsum.problems.multi_blank import pose_multi_blank
from pathsum.problems.rnnt import pose_rnnt
from pathsum.problems.rnnt_types import pose_rnnt_type
from pathsum.problems.tdt import pose_tdt
from pathsum.problems.wildcard import pose_wildcard
from pathsum.testing import (
    assert_close,
    assert_rows_sum_to_zero,
    assert_same_bits,
    count_paths,
    enumerate_paths,
    grid_inputs,
    pack_rows,
)
from pathsum.torch import (
    RNNTLoss,
    RNNTPackedLoss,
    ar_rnnt_loss,
    multi_blank_rnnt_loss,
    rnnt_loss,
    rnnt_packed_loss,
    tdt_loss,
    wildcard_rnnt_loss,
)
from support import DTYPES, IMPLEMENTATIONS
from variants import BLANK, NUM_CLASSES, VARIANTS, enumerated, spread

variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
everywhere = pytest.mark.parametrize("impl", IMPLEMENTATIONS)


def inputs_of(variant, num_samples, num_frames, num_labels, seed=0, std=1.0, ragged=True):
    """Tensors of logits (N, T, U+1, V) for each head, and the integers of a batch."""
    inputs = grid_inputs(num_samples, num_frames, num_labels, NUM_CLASSES, blank=BLANK, seed=seed, ragged=ragged)
    random = np.random.default_rng(seed + 100)
    shape = (num_samples, num_frames, num_labels + 1)
    heads = [torch.from_numpy(std * random.standard_normal((*shape, size))) for size in variant.heads]
    return heads, (inputs.targets, inputs.logit_lengths, inputs.target_lengths)


def solve(variant, heads, integers, upstream=None, **options):
    """Losses, and the gradients of upstream (ones) times them with respect to the heads."""
    heads = [head.detach().requires_grad_() for head in heads]
    losses = variant.loss(heads, *integers, **{"reduction": "none"} | options)
    losses.backward(torch.ones_like(losses) if upstream is None else upstream)
    return losses.detach(), [head.grad for head in heads]


def by_enumeration(variant, heads, integers, n, fastemit_lambda=0.0):
    """Loss and gradients of sample n, those of the whole padded size."""
    targets, logit_lengths, target_lengths = integers
    heads = [head[n].detach().clone().requires_grad_() for head in heads]
    num_frames, num_labels = int(logit_lengths[n]), int(target_lengths[n])
    out_of = variant.arcs(heads, targets[n, :num_labels], num_frames)
    loss = enumerated(out_of, num_frames, num_labels, fastemit_lambda)
    if loss is None:
        return torch.tensor(torch.inf), [torch.zeros_like(head) for head in heads]
    loss.backward()
    return loss.detach(), [torch.zeros_like(head) if head.grad is None else head.grad for head in heads]


# One frame; more labels than frames; as many; no label at all; room for long arcs.
SIZES = [(1, 1), (2, 3), (3, 3), (4, 0), (5, 2)]


@everywhere
@variants
@pytest.mark.parametrize("num_frames, num_labels", SIZES)
def test_losses_sum_their_paths(variant, impl, num_frames, num_labels):
    heads, integers = inputs_of(variant, 4, num_frames, num_labels, seed=num_frames, std=2.0)
    for fastemit_lambda in (0.0, 0.3):
        losses, gradients = solve(variant, heads, integers, impl=impl, fastemit_lambda=fastemit_lambda)
        for n in range(4):
            loss, expected = by_enumeration(variant, heads, integers, n, fastemit_lambda)
            assert_close(losses[n], loss, absolute=1e-11)
            for gradient, wanted in zip(gradients, expected, strict=True):
                assert_close(gradient[n], wanted, absolute=1e-11)


@everywhere
@variants
def test_the_clamp_is_of_the_gradient_of_each_loss_itself(variant, impl):
    heads, integers = inputs_of(variant, 3, 4, 2, seed=3, std=2.0)
    upstream = torch.tensor([2.0, -3.0, 0.0], dtype=torch.float64)
    losses, gradients = solve(variant, heads, integers, upstream, impl=impl, clamp=0.05, fastemit_lambda=0.5)
    for n in range(3):
        loss, expected = by_enumeration(variant, heads, integers, n, fastemit_lambda=0.5)
        assert_close(losses[n], loss, absolute=1e-11)
        for gradient, wanted in zip(gradients, expected, strict=True):
            assert_close(gradient[n], upstream[n] * wanted.clamp(-0.05, 0.05), absolute=1e-11)


@variants
def test_kernels_agree_with_the_reference(variant):
    heads, integers = inputs_of(variant, 5, 30, 11, seed=7, std=3.0)
    upstream = torch.linspace(-1, 2, 5, dtype=torch.float64)
    for options in ({}, {"fastemit_lambda": 0.2}, {"clamp": 0.01, "zero_infinity": True}):
        ours, ours_gradients = solve(variant, heads, integers, upstream, impl="numba", **options)
        expected, expected_gradients = solve(variant, heads, integers, upstream, impl="reference", **options)
        assert_close(ours, expected, relative=1e-13, absolute=1e-10)
        for gradient, wanted in zip(ours_gradients, expected_gradients, strict=True):
            assert_close(gradient, wanted, absolute=1e-9)


@variants
def test_the_reference_has_second_derivatives(variant):
    heads, integers = inputs_of(variant, 1, 3, 1, seed=6)
    heads = [head.requires_grad_() for head in heads]
    options = {"reduction": "none", "zero_infinity": True, "impl": "reference"}
    assert torch.autograd.gradgradcheck(lambda *heads: variant.loss(heads, *integers, **options), heads)


@everywhere
@variants
def test_packed_logits_are_the_padded_ones(variant, impl):
    heads, integers = inputs_of(variant, 4, 7, 3, seed=8)
    options = {"fastemit_lambda": 0.1, "clamp": 0.2, "zero_infinity": True, "impl": impl}
    losses, gradients = solve(variant, heads, integers, **options)
    packed = [torch.from_numpy(pack_rows(head.numpy(), *integers[1:])) for head in heads]
    packed_losses, packed_gradients = solve(variant, packed, integers, **options)
    compare = assert_same_bits if impl == "numba" else lambda a, b: assert_close(a, b, absolute=1e-12)
    compare(packed_losses, losses)
    for gradient, expected in zip(packed_gradients, gradients, strict=True):
        compare(gradient, torch.from_numpy(pack_rows(expected.numpy(), *integers[1:])))


@everywhere
@variants
def test_reductions(variant, impl):
    heads, integers = inputs_of(variant, 4, 6, 2, seed=9, ragged=False)
    losses = variant.loss(heads, *integers, reduction="none", impl=impl)
    assert_close(variant.loss(heads, *integers, reduction="sum", impl=impl), losses.sum(), relative=1e-14)
    assert_close(variant.loss(heads, *integers, impl=impl), losses.mean(), relative=1e-14)


@everywhere
@variants
def test_infeasible_samples_leave_the_others_alone(variant, impl):
    heads, integers = inputs_of(variant, 3, 5, 2, seed=10, ragged=False)
    expected, expected_gradients = solve(variant, heads, integers, impl=impl)
    impossible = [head.clone() for head in heads]
    impossible[0][1] = -torch.inf  # no arc is possible
    losses, gradients = solve(variant, impossible, integers, impl=impl)
    assert solve(variant, impossible, integers, impl=impl, zero_infinity=True)[0][1] == 0
    without_frames = (integers[0], np.array([5, 0, 5]), np.array([2, 0, 2]))
    for changed, changed_gradients in ((losses, gradients), solve(variant, heads, without_frames, impl=impl)):
        assert changed[1] == torch.inf
        assert_close(changed[[0, 2]], expected[[0, 2]], absolute=1e-12)
        for gradient, wanted in zip(changed_gradients, expected_gradients, strict=True):
            assert not gradient[1].any()
            assert_close(gradient[[0, 2]], wanted[[0, 2]], absolute=1e-12)


@everywhere
@variants
def test_undefined_scores_stay_with_their_sample_and_padding_is_not_read(variant, impl):
    heads, integers = inputs_of(variant, 3, 5, 2, seed=11, ragged=False)
    integers = (integers[0], np.array([5, 4, 5]), np.array([2, 1, 2]))
    expected, expected_gradients = solve(variant, heads, integers, impl=impl)
    poisoned = [head.clone() for head in heads]
    for head in poisoned:
        head[1, 4:] = torch.nan
        head[1, :, 2:] = torch.nan
    losses, gradients = solve(variant, poisoned, integers, impl=impl)
    assert_close(losses, expected, absolute=1e-12)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert_close(gradient, wanted, absolute=1e-12)
    # In the midst of a sample; in its last node, behind which the next sample's first follows.
    for value, node in ((torch.nan, (2, 1)), (torch.inf, (2, 1)), (torch.nan, (3, 1))):
        undefined = [head.clone() for head in heads]
        undefined[-1][1][node] = value
        losses, gradients = solve(variant, undefined, integers, impl=impl)
        assert losses[1].isnan()
        assert_close(losses[[0, 2]], expected[[0, 2]], absolute=1e-12)
        for gradient, wanted in zip(gradients, expected_gradients, strict=True):
            assert_close(gradient[[0, 2]], wanted[[0, 2]], absolute=1e-12)


@everywhere
@variants
def test_impossible_classes(variant, impl):
    heads, integers = inputs_of(variant, 4, 4, 2, seed=12)
    for seed, head in enumerate(heads):
        random = torch.rand(head.shape, generator=torch.Generator().manual_seed(seed))
        head[random < 0.2] = -torch.inf
    losses, gradients = solve(variant, heads, integers, impl=impl)
    for n in range(4):
        loss, _ = by_enumeration(variant, heads, integers, n)
        assert_close(losses[n], loss, absolute=1e-11)
    for gradient in gradients:
        assert gradient.isfinite().all()


@everywhere
@variants
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes(variant, impl, dtype):
    heads, integers = inputs_of(variant, 3, 9, 3, seed=13, ragged=False)
    heads = [head.to(DTYPES[dtype]) for head in heads]
    losses, gradients = solve(variant, heads, integers, impl=impl)
    expected, expected_gradients = solve(variant, [head.double() for head in heads], integers, impl="reference")
    assert losses.dtype == torch.float32
    assert_close(losses, expected, relative=1e-6)
    rounding = 0.0 if dtype == "float32" else torch.finfo(DTYPES[dtype]).eps / 2
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == DTYPES[dtype]
        assert_close(gradient, wanted, relative=rounding, absolute=2e-6)


@variants
def test_strides_integers_and_threads_change_nothing(variant):
    heads, integers = inputs_of(variant, 3, 40, 6, seed=14)
    losses, gradients = solve(variant, heads, integers)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        threaded, threaded_gradients = solve(variant, heads, integers)
    finally:
        torch.set_num_threads(threads)
    strided = [head.transpose(1, 3).contiguous().transpose(1, 3) for head in heads]
    as_tensors = tuple(torch.from_numpy(array.astype(np.int32)) for array in integers)
    other, other_gradients = solve(variant, strided, as_tensors)
    for changed in (threaded, other):
        assert_same_bits(changed, losses)
    for changed in (threaded_gradients, other_gradients):
        for gradient, expected in zip(changed, gradients, strict=True):
            assert_same_bits(gradient, expected)


@variants
def test_backward_twice_is_the_same(variant):
    heads, integers = inputs_of(variant, 2, 5, 2, seed=15)
    heads = [head.requires_grad_() for head in heads]
    loss = variant.loss(heads, *integers, zero_infinity=True, clamp=0.1)
    first = torch.autograd.grad(loss, heads, retain_graph=True)
    second = torch.autograd.grad(loss, heads)
    for a, b in zip(first, second, strict=True):
        assert_same_bits(a, b)


# Both sides of 2**53, beyond which not every whole number is a float64; the ends of float32 and nearly of float64.
@pytest.mark.parametrize("scale", [1e10, 1e15, 1e16, 1e17, 1e30, 3e38, 1e290])
@variants
def test_huge_scores(variant, scale):
    heads, integers = inputs_of(variant, 4, 9, 3, seed=21, std=scale / 4, ragged=False)
    losses, gradients = solve(variant, heads, integers, impl="numba")
    expected, expected_gradients = solve(variant, heads, integers, impl="reference")
    assert expected.isfinite().all()
    assert_close(losses, expected, relative=1e-14)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert_close(gradient, wanted, absolute=1e-12)


def test_posteriors_stay_posteriors_where_scores_are_rounded_away():
    # Small scores beside huge ones: paths that differ by the former alone are told apart by no float64.
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 30, 9, 5, generator=generator, dtype=torch.float64)
    scores *= torch.tensor([1.0, 1e8, 1e17])[torch.randint(3, scores.shape, generator=generator)]
    for rnnt_type in ("regular", "modified"):
        probe = scores.clone().requires_grad_()
        options = {"fused_log_softmax": False, "rnnt_type": rnnt_type, "impl": "numba", "blank": 4}
        rnnt_loss(probe, torch.arange(8)[None] % 4, [30], [8], **options).backward()
        posteriors = -probe.grad[0]
        assert posteriors.min() >= 0
        assert_close(posteriors[..., :4].sum((0, 2))[:8], np.ones(8), absolute=1e-12)  # every label is emitted once
        blanks = 30 if rnnt_type == "regular" else 22
        assert_close(posteriors[..., 4].sum(), blanks, absolute=1e-10)


def test_long_inputs_keep_their_digits():
    # Extended range: T = 3000 frames of peaky logits in float32 beside the same in float64.
    variant = VARIANTS["tdt"]
    heads, integers = inputs_of(variant, 1, 3000, 4, seed=16, std=8.0, ragged=False)
    heads = [head.float() for head in heads]
    losses, gradients = solve(variant, heads, integers)
    exact, exact_gradients = solve(variant, [head.double() for head in heads], integers)
    assert_close(losses, exact, relative=2e-7)
    for gradient, wanted in zip(gradients, exact_gradients, strict=True):
        assert_close(gradient, wanted, absolute=2e-6)
    for gradient in exact_gradients:
        assert_rows_sum_to_zero(gradient, absolute=1e-12)


def grid_of(num_frames, num_labels):
    targets = np.zeros((1, max(num_labels, 1)), np.int64)
    return pose_rnnt(targets, np.array([num_frames]), np.array([num_labels]), BLANK)


COUNTS = {
    "regular": lambda t, u: math.comb(t - 1 + u, u),
    "modified": math.comb,
    "one_sym_per_frame": lambda t, u: math.comb(t - 1, u),
    "constrained": math.comb,
}


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
@pytest.mark.parametrize("num_frames, num_labels", [(1, 0), (1, 1), (7, 3), (20, 9), (4, 6)])
def test_equal_scores_count_the_paths_of_each_type(rnnt_type, num_frames, num_labels):
    count = COUNTS[rnnt_type](num_frames, num_labels)
    assert count_paths(pose_rnnt_type(grid_of(num_frames, num_labels), rnnt_type)) == count
    zeros = torch.zeros(1, num_frames, num_labels + 1, NUM_CLASSES, dtype=torch.float64)
    integers = (np.zeros((1, num_labels), np.int64), [num_frames], [num_labels])
    for impl in IMPLEMENTATIONS:
        loss = rnnt_loss(zeros, *integers, blank=BLANK, fused_log_softmax=False, rnnt_type=rnnt_type, impl=impl)
        assert_close((-loss).exp(), count, relative=1e-12)


def test_lattices_count_their_paths():
    num_frames, num_labels = 9, 3
    grid = grid_of(num_frames, num_labels)
    zeros = torch.zeros(1, num_frames, num_labels + 1, NUM_CLASSES, dtype=torch.float64)
    integers = (np.zeros((1, num_labels), np.int64), [num_frames], [num_labels])
    frames = spread(num_frames, num_labels)[None]

    # Skips score 0 and emit nothing; the arcs of zeros score -log(6) each, so the paths are weighed by their length.
    for final in ("blank", "any"):
        paths = list(lengths_of_paths(pose_wildcard(grid, final)))
        loss = wildcard_rnnt_loss(zeros, *integers, BLANK, final=final)
        assert_close((-loss).exp(), sum((1 / NUM_CLASSES) ** emitted for emitted in paths), relative=1e-12)
        durations = zeros.new_zeros(1, num_frames, num_labels + 1, 4)
        paths = list(lengths_of_paths(pose_tdt(grid, (0, 1, 2, 5), final)))
        loss = tdt_loss(zeros, durations, *integers, (0, 1, 2, 5), BLANK, final=final)
        assert_close((-loss).exp(), sum((1 / NUM_CLASSES / 4) ** emitted for emitted in paths), relative=1e-12)
    paths = list(lengths_of_paths(pose_multi_blank(grid, (2, 4), (4, 5))))
    loss = multi_blank_rnnt_loss(zeros, *integers, (2, 4), (4, 5), BLANK)
    assert_close((-loss).exp(), sum((1 / NUM_CLASSES) ** emitted for emitted in paths), relative=1e-12)
    lattice = pose_ar_rnnt(grid, "modified", frames, 1, 1)
    loss = ar_rnnt_loss(zeros, *integers, frames, 1, 1, BLANK, rnnt_type="modified")
    assert count_paths(lattice) == 2 * 3 * 3  # frames 0 1, 2 3 4 and 5 6 7 can be chosen freely
    assert_close((-loss).exp(), 18 / NUM_CLASSES**num_frames, relative=1e-12)


def lengths_of_paths(lattice):
    """How many symbols each path emits."""
    for path in enumerate_paths(lattice):
        yield sum(arc.kind != "skip" for arc in path)


@pytest.mark.parametrize("final", ["blank", "any"])
def test_posteriors_of_skips(final):
    num_frames, num_labels = 6, 2
    lattice = pose_wildcard(grid_of(num_frames, num_labels), final)
    rows = num_frames * (num_labels + 1)
    planes, skips = -np.random.default_rng(0).exponential(size=(2, rows)), np.zeros((2, rows))
    planes[1, num_labels :: num_labels + 1] = -np.inf
    grid_arcs.solve(planes, lattice, -0.5, need_gradient=True, num_threads=1, skips=skips)
    into, out_of, blank, label = (plane.reshape(num_frames, -1) for plane in (*skips, *planes))
    # A path leaves (0, 0) by an arc or a skip, and comes to the end by one.
    assert_close(into.sum() + blank[0, 0] + label[0, 0], 1.0, absolute=1e-12)
    assert_close(out_of.sum() * (final == "any") + blank[-1, -1], 1.0, absolute=1e-12)
    assert min(into[1:, 0].min(), out_of[:-1, -1].min()) > 0
    assert np.count_nonzero(into) == np.count_nonzero(out_of) == num_frames - 1


@everywhere
def test_a_single_duration_of_1_is_a_symbol_a_frame(impl):
    heads, integers = inputs_of(VARIANTS["modified"], 4, 6, 3, seed=17)
    durations = torch.zeros(4, 6, 4, 1, dtype=torch.float64)
    options = {"reduction": "none", "blank": BLANK, "impl": impl}
    for final, rnnt_type in (("any", "modified"), ("blank", "one_sym_per_frame")):
        one = tdt_loss(heads[0], durations, *integers, durations=[1], final=final, **options)
        assert_close(one, rnnt_loss(heads[0], *integers, rnnt_type=rnnt_type, **options), absolute=1e-12)


@everywhere
def test_variants_that_restrict_nothing_are_the_regular_loss(impl):
    heads, integers = inputs_of(VARIANTS["delayed"], 4, 6, 3, seed=18)
    options = {"reduction": "none", "blank": BLANK, "impl": impl}
    regular = rnnt_loss(heads[0], *integers, **options)
    frames = np.zeros((4, 3), np.int64)
    assert_close(ar_rnnt_loss(heads[0], *integers, frames, 0, 6, **options), regular, absolute=1e-12)
    assert_close(wildcard_rnnt_loss(heads[0], *integers, skip_score=-1e4, **options), regular, absolute=1e-12)
    big = torch.cat([heads[0], torch.full((4, 6, 4, 1), -torch.inf, dtype=torch.float64)], -1)
    assert_close(multi_blank_rnnt_loss(big, *integers, [3], [-1], **options), regular, absolute=1e-12)


@everywhere
def test_the_delay_penalty_is_the_expected_delay(impl):
    # d loss / d lambda = expected sum over labels of t - (T-1)/2: at lambda = 0 by the regular loss's posteriors.
    heads, integers = inputs_of(VARIANTS["delayed"], 1, 6, 2, seed=19, ragged=False)
    options = {"blank": BLANK, "impl": impl}
    step = 1e-5
    ends = [rnnt_loss(heads[0], *integers, delay_penalty=sign * step, **options) for sign in (1, -1)]
    scores = heads[0].log_softmax(-1).requires_grad_()
    rnnt_loss(scores, *integers, fused_log_softmax=False, **options).backward()
    labels = scores.grad.clone()
    labels[..., BLANK] = 0
    early = 2.5 - torch.arange(6.0)
    assert_close((ends[0] - ends[1]) / (2 * step), (labels.sum((0, 2, 3)) * early).sum(), absolute=1e-8)


def test_modules_pass_the_options_on():
    heads, integers = inputs_of(VARIANTS["modified"], 3, 5, 2, seed=20)
    packed = torch.from_numpy(pack_rows(heads[0].numpy(), *integers[1:]))
    for options in ({"rnnt_type": "modified"}, {"delay_penalty": 0.1}, {"hat": True}):
        options |= {"blank": BLANK}
        expected = rnnt_loss(heads[0], *integers, **options)
        assert expected != rnnt_loss(heads[0], *integers, blank=BLANK)
        assert_same_bits(RNNTLoss(**options)(heads[0], *integers), expected)
        assert_same_bits(RNNTPackedLoss(**options)(packed, *integers), expected)
        assert_same_bits(rnnt_packed_loss(packed, *integers, **options), expected)
