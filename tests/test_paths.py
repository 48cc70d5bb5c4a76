"""What is asked of the distribution over paths, beside every path of it, one by one."""

from functools import partial

import numpy as np
import pytest
import torch

from pathsum.errors import ImplementationError, InvalidValueError
from pathsum.testing import assert_close, chain_inputs, grid_inputs
from pathsum.torch import ctc_loss, forced_align, rnnt_align, rnnt_loss
from pathsum.torch.paths import asg_paths, ctc_paths, rnnt_paths, simple_ctc_paths, wildcard_rnnt_paths
from support import IMPLEMENTATIONS
from variants import BLANK, NUM_CLASSES, VARIANTS, rnnt

close = partial(assert_close, relative=1e-9, absolute=1e-9)
everywhere = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
# Those of the regular transducer have kernels of their own.
GRIDS = {"regular": rnnt()} | VARIANTS


def walks(out_of, node, end):
    """Every walk as its arcs: the node left, the score, and whether it is a label."""
    if node == end:
        yield ()
        return
    for t, u, score, is_label in out_of(*node):
        if score > -np.inf and ((t < end[0] and u <= end[1]) or (t, u) == end):
            for rest in walks(out_of, (t, u), end):
                yield ((node, float(score), is_label), *rest)


@everywhere
@pytest.mark.parametrize("variant", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("num_frames, num_labels", [(1, 1), (3, 3), (5, 2), (4, 0)])
def test_walks_are_those_that_are_enumerated(variant, impl, num_frames, num_labels):
    inputs = grid_inputs(3, num_frames, num_labels, NUM_CLASSES, blank=BLANK, seed=num_frames)
    random = np.random.default_rng(num_labels)
    shape = (3, num_frames, num_labels + 1)
    heads = [torch.from_numpy(2.0 * random.standard_normal((*shape, size))) for size in variant.heads]
    integers = (inputs.targets, inputs.logit_lengths, inputs.target_lengths)
    paths = variant.paths(heads, *integers, impl=impl)
    losses, (_, blanks, labels), best = paths.losses(), paths.posteriors(), paths.best()
    skips = any(variant is VARIANTS[name] for name in ("wildcard", "wildcard-any"))
    entropies = None if variant is VARIANTS["wildcard"] else paths.entropy()
    risks = paths.expected(torch.ones(*shape, paths.arc_posteriors().shape[1]))
    for n, (target, frames, count) in enumerate(zip(*integers, strict=True)):
        out_of = variant.arcs([head[n] for head in heads], target[:count], int(frames))
        found = list(walks(out_of, (0, 0), (int(frames), int(count))))
        if not found:
            assert losses[n] == torch.inf
            assert best.log_probs[n] == -torch.inf
            assert (best.frames[n] == -1).all()
            assert blanks[n].sum() + labels[n].sum() == 0
            assert risks[n] == 0
            continue
        scores = np.array([sum(score for _, score, _ in walk) for walk in found])
        shares = np.exp(scores - np.logaddexp.reduce(scores))
        close(losses[n], -np.logaddexp.reduce(scores))
        if entropies is not None:
            close(entropies[n], -(shares * np.log(shares)).sum())
        own = np.zeros((2, *shape[1:]))
        for share, walk in zip(shares, found, strict=True):
            for (t, u), _, is_label in walk:
                own[int(is_label), t, u] += share
        close(labels[n], own[1, :, :num_labels])
        if not skips:
            close(blanks[n], own[0])
            close(risks[n], own.sum())
        walk = found[int(scores.argmax())]
        close(best.log_probs[n], scores.max())
        emitted = [(node[0], score) for node, score, is_label in walk if is_label]
        assert best.frames[n, :count].tolist() == [t for t, _ in emitted]
        close(best.scores[n, :count], np.array([score for _, score in emitted]))
        assert (best.frames[n, count:] == -1).all()
        assert (best.scores[n, count:] == 0).all()


@everywhere
def test_of_walks_that_are_as_good_each_label_is_emitted_as_early_as_it_can_be(impl):
    for variant, expected in (("modified", [[0, 1]]), ("regular", [[0, 0]]), ("multi-blank", [[0, 0]])):
        heads = [torch.zeros(1, 4, 3, size, dtype=torch.float64) for size in GRIDS[variant].heads]
        best = GRIDS[variant].paths(heads, [[2, 3]], [4], [2], impl=impl).best()
        assert best.frames.tolist() == expected, variant


@everywhere
def test_a_walk_with_an_undefined_score_is_undefined(impl):
    logits = torch.zeros(2, 3, 2, 3, dtype=torch.float64)
    logits[0, 1, 0, 1] = torch.nan
    best = rnnt_paths(logits, [[1], [1]], [3, 3], [1, 1], 0, rnnt_type="modified", impl=impl).best()
    assert best.log_probs.isnan().tolist() == [True, False]
    assert best.frames.tolist() == [[-1], [0]]


def test_one_call_is_checked_once_and_asked_anything():
    inputs = chain_inputs(6, 3, 4, 2, seed=5)
    scores = torch.from_numpy(inputs.logits).log_softmax(2).requires_grad_()
    arguments = (inputs.targets, inputs.input_lengths, inputs.target_lengths)
    paths = ctc_paths(scores, *arguments)
    close(paths.losses(), ctc_loss(scores, *arguments, reduction="none"))
    close(paths.loss(), ctc_loss(scores, *arguments))
    assert paths.best().paths.tolist() == forced_align(scores, *arguments, batch_first=False).paths.tolist()
    # What is asked of a posterior is the gradient's negative.
    (gradient,) = torch.autograd.grad(paths.losses().sum(), scores)
    close(paths.expected(torch.ones(3, 6, 4)), -gradient.sum((0, 2)))
    assert "N=3, T=6, C=4" in repr(paths)
    assert "numba" in repr(paths)


def test_lengths_that_are_not_given_are_the_padded_sizes():
    scores = torch.zeros(4, 2, 3, dtype=torch.float64)
    for make in (ctc_paths, simple_ctc_paths):
        close(make(scores, [[1], [2]]).losses(), make(scores, [[1], [2]], [4, 4], [1, 1]).losses())
        assert make(scores[:, 0], [1]).loss("none").ndim == 0
    every, target = asg_paths(scores, [[0, 1], [1, 2]], torch.zeros(3, 3).double())
    close(every.losses().exp() * 3.0**4, torch.ones(2))
    close(target.losses().exp() * 3, torch.ones(2))


def test_losses_of_huge_scores_are_whole():
    # A frame's scores and the transitions have so much in common that kernels take it off.
    scores, transitions = torch.zeros(4, 1, 3, dtype=torch.float64) + 5000.0, torch.full((3, 3), -7000.0).double()
    every, target = asg_paths(scores, [[0, 1]], transitions)
    close(every.losses(), [-(4 * 5000.0 - 3 * 7000.0 + 4 * np.log(3))])
    close(target.losses(), [-(4 * 5000.0 - 3 * 7000.0 + np.log(3))])


def test_the_align_of_another_type_is_that_of_its_paths():
    logits = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(3))
    integers = ([[1, 2], [3, 1]], [5, 4], [2, 2], 0)
    best = rnnt_paths(logits, *integers, rnnt_type="modified").best()
    aligned = rnnt_align(logits, *integers, rnnt_type="modified")
    assert aligned.frames.tolist() == best.frames.tolist()
    assert (aligned.frames[:, 0] < aligned.frames[:, 1]).all()
    assert (-aligned.log_probs > rnnt_loss(logits, *integers, rnnt_type="modified", reduction="none")).all()


def test_what_paths_cannot_say_is_an_error():
    logits = torch.zeros(1, 3, 2, 3)
    with pytest.raises(InvalidValueError, match="wildcard_rnnt_paths: skip_score must be 0"):
        wildcard_rnnt_paths(logits, [[1]], [3], [1], 0, skip_score=1.0).entropy()
    with pytest.raises(InvalidValueError, match="logits must have shape"):
        rnnt_paths(torch.zeros(6, 3), [[1]], [3], [1], 0).best()
    with pytest.raises(InvalidValueError, match="reduction"):
        rnnt_paths(logits, [[1]], [3], [1], 0).loss("average")
    with pytest.raises(ImplementationError):
        rnnt_paths(logits, [[1]], [3], [1], 0, impl="triton")
