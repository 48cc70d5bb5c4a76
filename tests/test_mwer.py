"""Minimum word error rate: beside the enumeration of all labellings, the vectors of the field, and unbiasedness."""

import itertools

import numpy as np
import pytest
import torch

from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.testing import assert_close
from pathsum.torch import (
    Joiner,
    ctc_loss,
    ctc_mwer_loss,
    edit_distances,
    rnnt_loss,
    rnnt_mwer_loss,
    sample_labellings,
)
from pathsum.torch.paths import ctc_paths, rnnt_paths
from support import IMPLEMENTATIONS

everywhere = pytest.mark.parametrize("impl", IMPLEMENTATIONS)


def collapsed(labelling):
    return tuple(c for c, _ in itertools.groupby(labelling) if c != 0)


def distribution(log_probs):
    """Every label sequence and its probability, differentiable, by all labellings of the frames (T, C)."""
    found = {}
    for labelling in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        score = sum(log_probs[t, c] for t, c in enumerate(labelling)).exp()
        found[collapsed(labelling)] = found.get(collapsed(labelling), 0.0) + score
    return found


def distance(a, b):
    """By its definition, without a table."""
    if not a or not b:
        return len(a) + len(b)
    return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))


def padded(hypotheses, width=4):
    tokens = np.full((1, len(hypotheses), width), -1)
    for k, hypothesis in enumerate(hypotheses):
        tokens[0, k, : len(hypothesis)] = hypothesis
    return tokens, np.array([[len(h) for h in hypotheses]])


def logits_of(num_frames=4, num_classes=3, seed=0):
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.standard_normal((num_frames, 1, num_classes))).requires_grad_()


@everywhere
@pytest.mark.parametrize("fused", [False, True])
def test_among_all_labellings_it_is_the_expected_distance(impl, fused):
    logits, reference = logits_of(), (1, 2)
    found = distribution(logits[:, 0].log_softmax(1))
    expected = sum(share * distance(labels, reference) for labels, share in found.items())
    (wanted,) = torch.autograd.grad(expected, logits)
    scores = logits if fused else logits.log_softmax(2)
    options = {"references": [reference], "baseline": "none", "fused_log_softmax": fused, "impl": impl}
    loss = ctc_mwer_loss(scores, *insert(padded(list(found)), [4]), **options)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert_close(loss, expected, relative=1e-10)
    assert_close(gradient, wanted, absolute=1e-10)


def insert(hypotheses, lengths):
    """Hypotheses, frames and lengths, in the order of the arguments."""
    return hypotheses[0], lengths, hypotheses[1]


@pytest.mark.parametrize("baseline", ["none", "mean", "leave_one_out"])
def test_a_list_is_weighed_by_its_shares(baseline):
    logits, errors = logits_of(), torch.tensor([[0.0, 1.0, 2.5]], dtype=torch.float64)
    hypotheses = padded([(1, 2), (2, 2), (1,)])
    found = distribution(logits[:, 0].log_softmax(1))
    scores = torch.stack([found[labels].log() for labels in ((1, 2), (2, 2), (1,))])
    less = {"none": torch.zeros(3), "mean": errors.mean(), "leave_one_out": (errors.sum() - errors[0]) / 2}[baseline]
    for temperature in (1.0, 2.0):
        expected = ((scores / temperature).softmax(0) * (errors[0] - less)).sum()
        loss = ctc_mwer_loss(
            logits, *insert(hypotheses, [4]), errors, baseline=baseline, temperature=temperature, fused_log_softmax=True
        )
        assert_close(loss, expected, relative=1e-10)
        wanted = torch.autograd.grad(expected, logits, retain_graph=True)[0]
        assert_close(torch.autograd.grad(loss, logits)[0], wanted, absolute=1e-10)
    expected = ((errors[0] - less) * scores).mean()
    loss = ctc_mwer_loss(
        logits, *insert(hypotheses, [4]), errors, baseline=baseline, normalise=False, fused_log_softmax=True
    )
    assert_close(loss, expected, relative=1e-10)


def test_the_mean_as_baseline_changes_no_gradient():
    logits, hypotheses = logits_of(seed=2), padded([(1, 2), (2,), (2, 1)])
    gradients = []
    for baseline in ("none", "mean"):
        loss = ctc_mwer_loss(
            logits, *insert(hypotheses, [4]), [[3.0, 0.0, 1.0]], baseline=baseline, fused_log_softmax=True
        )
        gradients += torch.autograd.grad(loss, logits)
    assert_close(*gradients, absolute=1e-12)


def test_a_drawn_pair_is_unbiased_with_leave_one_out():
    logits, reference = logits_of(num_frames=3), (1,)
    found = distribution(logits[:, 0].log_softmax(1))
    expected = sum(share * distance(labels, reference) for labels, share in found.items())
    (wanted,) = torch.autograd.grad(expected, logits)
    mean = torch.zeros_like(logits)
    shares = {labels: float(share.detach()) for labels, share in found.items()}
    for first, second in itertools.product(shares, repeat=2):
        loss = ctc_mwer_loss(
            logits, *insert(padded([first, second]), [3]), references=[reference], baseline="leave_one_out",
            normalise=False, fused_log_softmax=True,
        )  # fmt: skip
        mean += shares[first] * shares[second] * torch.autograd.grad(loss, logits)[0]
    assert_close(mean, wanted, absolute=1e-10)


@everywhere
def test_what_cannot_be_or_is_there_already_drops_out(impl):
    logits = logits_of()
    good = [(1, 2), (2,)]
    options = {"baseline": "mean", "fused_log_softmax": True, "impl": impl}
    loss = ctc_mwer_loss(logits, *insert(padded(good), [4]), [[1.0, 3.0]], **options)
    # The same once more, one that needs five frames, and one that is not there.
    tokens, lengths = padded([*good, (1, 2), (1, 1, 1), ()])
    lengths[0, 4] = -1
    more = ctc_mwer_loss(logits, tokens, [4], lengths, [[1.0, 3.0, 7.0, 9.0, 5.0]], **options)
    assert_close(more, loss, relative=1e-12)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, more)]
    assert_close(*gradients, absolute=1e-12)


@everywhere
def test_samples_without_a_hypothesis_have_loss_0_and_bad_scores_are_their_own(impl):
    logits = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    tokens = np.array([[[1, 1, 1]], [[1, 2, 0]], [[2, 0, 0]]])
    scores = logits * torch.tensor([1.0, torch.nan, 1.0])[:, None]
    losses = ctc_mwer_loss(
        scores, tokens, [3, 3, 3], [[3], [2], [1]], [[1.0], [1.0], [2.0]], reduction="none", baseline="none",
        fused_log_softmax=True, impl=impl,
    )  # fmt: skip
    assert losses[0] == 0
    assert losses[1].isnan()
    assert losses[2] == 2
    none = ctc_mwer_loss(
        logits, np.zeros((3, 0, 2), int), [3, 3, 3], np.zeros((3, 0), int), np.zeros((3, 0)), impl=impl
    )
    none.backward()
    assert none == 0
    assert (logits.grad == 0).all()


@everywhere
def test_a_frame_in_which_nothing_is_possible_leaves_no_hypothesis(impl):
    logits = torch.zeros(3, 2, 3)
    logits[1, 0] = -torch.inf
    logits.requires_grad_()
    losses = ctc_mwer_loss(
        logits, [[[1, 2], [2, 0]]] * 2, [3, 3], [[2, 1]] * 2, [[0.0, 1.0]] * 2, reduction="none", baseline="none",
        fused_log_softmax=True, impl=impl,
    )  # fmt: skip
    assert_close(losses, torch.tensor([0.0, 6 / 11]), absolute=1e-6)  # 5 labellings and 6
    losses.sum().backward()
    assert not logits.grad[:, 0].any()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scale", [1.0, 400.0])
def test_hypotheses_that_plain_floats_do_not_reach_are_scored_all_the_same(scale, fused, dtype):
    # Of scale 400 a hypothesis has a probability of e**-10000, and alpha and beta hardly meet in float64.
    generator = torch.Generator().manual_seed(3)
    logits = (scale * torch.randn(40, 2, 6, generator=generator)).to(dtype)
    logits[7, 1, 2] = -torch.inf
    scores = (logits if fused else logits.double().log_softmax(2).to(dtype)).requires_grad_()
    tokens = torch.randint(1, 6, (2, 4, 9), generator=generator)
    options = {"errors": torch.rand(2, 4, generator=generator), "fused_log_softmax": fused, "normalise": False}
    lengths = [[9, 5, 0, 7], [9, 9, 1, 2]]
    losses, gradients = [], []
    for impl in ("numba", "reference"):
        loss = ctc_mwer_loss(scores, tokens, [40, 33], lengths, reduction="none", impl=impl, **options)
        losses.append(loss)
        gradients.append(torch.autograd.grad(loss.sum(), scores)[0])
    relative = 1e-10 if dtype == torch.float64 else 2e-6
    assert_close(*losses, relative=relative)
    assert_close(*gradients, absolute={torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 1e-2}[dtype])


@pytest.mark.parametrize("threads", [1, 3])
def test_neighbours_padding_and_threads_change_nothing(threads):
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(9, 130, 40, generator=generator).requires_grad_()
    tokens, errors = torch.randint(1, 40, (9, 5, 20), generator=generator), torch.rand(9, 5, generator=generator)
    frames, lengths = torch.randint(60, 130, (9,), generator=generator), torch.full((9, 5), 20)
    options = {"fused_log_softmax": True, "batch_first": True, "reduction": "none"}
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        losses = ctc_mwer_loss(logits, tokens, frames, lengths, errors, **options)
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
    finally:
        torch.set_num_threads(before)
    for n in range(9):
        own = logits[n : n + 1, : frames[n]].detach().requires_grad_()
        loss = ctc_mwer_loss(own, tokens[n : n + 1], frames[n : n + 1], lengths[:1], errors[n : n + 1], **options)
        (alone,) = torch.autograd.grad(loss.sum(), own)
        assert torch.equal(loss[0], losses[n])
        assert torch.equal(alone[0], gradient[n, : frames[n]])
        assert (gradient[n, frames[n] :] == 0).all()


def test_padding_is_not_read():
    logits = logits_of(num_frames=6).detach()
    logits[4:] = torch.nan
    logits.requires_grad_()
    loss = ctc_mwer_loss(logits, *insert(padded([(1,), (2, 1)]), [4]), [[0.0, 1.0]], fused_log_softmax=True)
    loss.backward()
    assert loss.isfinite()
    assert (logits.grad[4:] == 0).all()


def test_it_can_be_differentiated_twice():
    logits = logits_of()
    for fused in (False, True):

        def loss(scores, fused=fused):
            return ctc_mwer_loss(
                scores, *insert(padded([(1, 1), (2,), (2, 1)]), [4]), [[0.0, 1.0, 4.0]], fused_log_softmax=fused
            )

        torch.autograd.gradcheck(loss, logits)
        torch.autograd.gradgradcheck(loss, logits)


@everywhere
@pytest.mark.parametrize("joiner", [False, True])
def test_transducers(impl, joiner):
    generator = torch.Generator().manual_seed(4)
    hypotheses, lengths = [[[1, 2], [2, 0]], [[2, 2], [0, 0]]], [[2, 1], [2, 0]]
    frames, errors = [3, 2], torch.tensor([[0.0, 1.0], [2.0, 1.0]], dtype=torch.float64)
    encoder, predictor, weight = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((4, 3, 5), (4, 3, 5), (4, 5))
    )
    made = Joiner(encoder, predictor, weight)
    flat = made.logits().requires_grad_()
    losses = rnnt_loss(flat, np.reshape(hypotheses, (4, 2)), [3, 3, 2, 2], np.ravel(lengths), 3, reduction="none")
    expected = ((-losses.view(2, 2)).softmax(1) * (errors - errors.mean(1, keepdim=True))).sum(1).mean()
    given = made if joiner else flat.unflatten(0, (2, 2))
    loss = rnnt_mwer_loss(given, hypotheses, frames, lengths, errors, 3, impl=impl)
    assert_close(loss, expected, relative=1e-9)


def test_distances_are_those_of_the_definition():
    random = np.random.default_rng(3)
    hypotheses, references = random.integers(0, 3, (4, 5, 5)), random.integers(0, 3, (4, 6))
    lengths, sizes = random.integers(0, 6, (4, 5)), np.array([6, 0, 3, 5])
    found = edit_distances(hypotheses, lengths, references, sizes)
    for n, k in np.ndindex(4, 5):
        assert found[n, k] == distance(tuple(hypotheses[n, k, : lengths[n, k]]), tuple(references[n, : sizes[n]]))
    words = edit_distances(hypotheses, lengths, references, sizes, separator=0)
    for n, k in np.ndindex(4, 5):
        pair = (hypotheses[n, k, : lengths[n, k]], references[n, : sizes[n]])
        split = (tuple("".join(map(str, tokens)).replace("0", " ").split()) for tokens in pair)
        assert words[n, k] == distance(*split)


def test_labellings_are_drawn_as_often_as_they_are_probable():
    logits = logits_of(num_frames=3).detach()
    found = distribution(logits[:, 0].log_softmax(1))
    generator = torch.Generator().manual_seed(0)
    tokens, lengths = sample_labellings(
        logits, 20_000, [3], generator=generator, fused_log_softmax=True, batch_first=False
    )
    drawn = {}
    for row, length in zip(tokens[0].tolist(), lengths[0].tolist(), strict=True):
        assert set(row[length:]) <= {-1}
        drawn[tuple(row[:length])] = drawn.get(tuple(row[:length]), 0) + 1
    assert set(drawn) <= set(found)
    for labels, share in found.items():
        # Five deviations of a count.
        assert abs(drawn.get(labels, 0) / 20_000 - share) < 5 * (share * (1 - share) / 20_000) ** 0.5 + 1e-4


def test_half_precision_is_summed_in_float32():
    logits = logits_of().detach().bfloat16().requires_grad_()
    loss = ctc_mwer_loss(logits, *insert(padded([(1,), (2, 1)]), [4]), [[0.0, 1.0]], fused_log_softmax=True)
    loss.backward()
    assert (loss.dtype, logits.grad.dtype) == (torch.float32, torch.bfloat16)
    wide = logits.detach().double()
    expected = ctc_mwer_loss(wide, *insert(padded([(1,), (2, 1)]), [4]), [[0.0, 1.0]], fused_log_softmax=True)
    assert_close(loss, expected, absolute=1e-6)


def test_one_hypothesis_scores_as_the_loss_does():
    logits = logits_of(seed=5)
    loss = ctc_mwer_loss(
        logits, [[[1, 2]]], [4], [[2]], [[1.0]], baseline="none", normalise=False, fused_log_softmax=True
    )
    assert_close(-loss, ctc_loss(logits, [[1, 2]], [4], [2], reduction="sum", fused_log_softmax=True), relative=1e-10)


def test_long_lists_score_as_the_losses_do():
    # 9 hypotheses of 60 labels are solved four at a time; their lengths differ within and between samples.
    generator = torch.Generator().manual_seed(9)
    logits = torch.randn(130, 2, 7, generator=generator, dtype=torch.float64).requires_grad_()
    tokens = torch.randint(1, 7, (2, 9, 60), generator=generator)
    lengths = torch.tensor([[60, 59, 0, 7, 60, 8, 16, 1, 60], [40, 3, 40, 39, 0, 5, 2, 1, 12]])
    errors, frames = torch.rand(2, 9, generator=generator, dtype=torch.float64), [130, 100]
    loss = ctc_mwer_loss(
        logits, tokens, frames, lengths, errors, baseline="none", normalise=False, fused_log_softmax=True
    )
    wanted = sum(
        errors[:, k] @ -ctc_loss(logits, tokens[:, k], frames, lengths[:, k], reduction="none", fused_log_softmax=True)
        for k in range(9)
    )
    assert_close(loss, wanted / 18, relative=1e-12)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, wanted / 18)]
    assert_close(*gradients, absolute=1e-13)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hypotheses": [[1, 2]]}, InvalidValueError, "hypotheses must have shape"),
        ({"hypotheses": [[[1, 0], [2, 0]]]}, InvalidValueError, "hypotheses must"),
        ({"hypothesis_lengths": [[2]]}, InvalidValueError, "hypothesis_lengths must have shape"),
        ({"hypothesis_lengths": [[2, 3]]}, InvalidValueError, "hypothesis_lengths must"),
        ({"hypothesis_lengths": [[2, -2]]}, InvalidValueError, "hypothesis_lengths must"),
        ({"errors": None}, InvalidValueError, "errors must be given"),
        ({"references": [[1]]}, InvalidValueError, "errors must be given, or references"),
        ({"errors": [[1.0]]}, InvalidValueError, "errors must be real numbers of shape"),
        ({"errors": "many"}, InvalidTypeError, "errors must be numbers"),
        ({"baseline": "median"}, InvalidValueError, "baseline must be"),
        ({"temperature": 0.0}, InvalidValueError, "temperature must be above 0"),
        ({"normalise": "yes"}, InvalidTypeError, "normalise must"),
        ({"reduction": "max"}, InvalidValueError, "reduction must"),
        ({"errors": None, "references": [[1], [2]]}, InvalidValueError, "reference_lengths must"),
        ({"errors": None, "references": [1]}, InvalidValueError, "reference_lengths must be given"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {
        "log_probs": torch.zeros(4, 1, 3),
        "hypotheses": [[[1, 2], [2, 1]]],
        "input_lengths": [4],
        "hypothesis_lengths": [[2, 2]],
        "errors": [[0.0, 1.0]],
    }
    with pytest.raises(error, match=f"ctc_mwer_loss: {message}"):
        ctc_mwer_loss(**arguments | change)


def test_a_sample_without_a_distribution_has_no_labellings():
    log_probs = torch.tensor([[[0.1, 0.9]] * 2] * 5).log()
    log_probs[1, 1, 0], log_probs[2, 0, 1], log_probs[3, 1] = torch.nan, torch.inf, -torch.inf
    log_probs[4] += 2.0**31  # not normalised, and of no exponential
    hypotheses, lengths = sample_labellings(log_probs, 3, input_lengths=[2, 2, 1, 2, 2])
    assert (lengths[1:4] == -1).all()
    assert (hypotheses[1:4] == -1).all()
    assert (lengths[[0, 4]] >= 0).all()
    assert (sample_labellings(log_probs, 3, input_lengths=[2, 1, 0, 1, 2])[1] >= 0).all()


@pytest.mark.parametrize("count", [2**60, 2**63 - 1, 2**63, 10**30])
def test_as_many_samples_as_no_memory_holds_are_refused(count):
    scores = torch.zeros(1, 2, 3).log_softmax(2)
    for sample in (
        lambda: sample_labellings(scores, count),
        lambda: ctc_paths(scores, [[1]], [2], [1], batch_first=True).sample(count),
        lambda: rnnt_paths(scores[:, :, None], torch.zeros(1, 0, dtype=torch.int64), [2], [0]).sample(count),
    ):
        with pytest.raises(InvalidValueError, match="num_samples must be at most"):
            sample()


def test_lengths_that_are_no_integers_are_named():
    dates = np.array([[1, 2]], "datetime64[s]")
    with pytest.raises(InvalidTypeError, match="hypothesis_lengths must have an integer dtype"):
        ctc_mwer_loss(torch.zeros(2, 1, 3), [[[1], [2]]], [2], dates, references=[[1]])
