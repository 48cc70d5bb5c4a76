"""The drop-in for k2: sums over its planes against those over logits, each variant's definition, its test's example."""

import itertools

import pytest
import torch

from pathsum.compat import fast_rnnt, k2
from pathsum.testing import assert_close
from pathsum.torch import rnnt_loss

TYPES = ("regular", "modified", "constrained")
BLANK = 4


def batch(seed=0, num_samples=3, num_symbols=3, num_frames=6, num_classes=5):
    random = torch.Generator().manual_seed(seed)
    lm = torch.randn(num_samples, num_symbols + 1, num_classes, dtype=torch.float64, generator=random)
    am = torch.randn(num_samples, num_frames, num_classes, dtype=torch.float64, generator=random)
    symbols = torch.randint(0, BLANK, (num_samples, num_symbols), generator=random)
    # Full, ragged and one without symbols.
    boundary = torch.tensor([[0, 0, 3, 6], [0, 0, 2, 4], [0, 0, 0, 3]])
    return lm, am, symbols, boundary


def logits_of(lm, am):
    return am[:, :, None] + lm[:, None]


@pytest.mark.parametrize("rnnt_type", TYPES)
@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("delay_penalty", [0.0, 0.3])
def test_the_planes_give_what_the_logits_give(rnnt_type, bounded, delay_penalty):
    lm, am, symbols, boundary = batch()
    boundary = boundary if bounded else None
    options = {"rnnt_type": rnnt_type, "delay_penalty": delay_penalty, "reduction": "none"}
    expected = k2.rnnt_loss(logits_of(lm, am), symbols, BLANK, boundary, **options)
    lengths = (torch.full((3,), 6), torch.full((3,), 3)) if boundary is None else (boundary[:, 3], boundary[:, 2])
    assert_close(rnnt_loss(logits_of(lm, am), symbols, *lengths, blank=BLANK, **options), expected, relative=1e-12)
    assert_close(k2.rnnt_loss_simple(lm, am, symbols, BLANK, boundary, **options), expected, relative=1e-12)
    scales = {"lm_only_scale": 0.0, "am_only_scale": 0.0}
    smoothed = k2.rnnt_loss_smoothed(lm, am, symbols, BLANK, **scales, boundary=boundary, **options)
    assert_close(smoothed, expected, relative=1e-12)
    everything = torch.arange(4).expand(3, 6, 4)
    pruned = k2.rnnt_loss_pruned(logits_of(lm, am), symbols, everything, BLANK, boundary, **options)
    assert_close(pruned, expected, relative=1e-12)


def test_the_example_of_its_tests():
    # rnnt_loss_test.py, test_rnnt_loss_basic: adding a constant to any frame or position changes nothing.
    lm = torch.tensor([[[0, 0, 1], [0, 1, 1], [1, 0, 1], [2, 2, 0]]], dtype=torch.float32)
    am = torch.tensor([[[0, 1, 2], [0, 0, 0], [0, 2, 4], [0, 3, 3]]], dtype=torch.float32)
    symbols = torch.tensor([[0, 1, 0]])
    px, py = k2.get_rnnt_logprobs(lm=lm, am=am, symbols=symbols, termination_symbol=2)
    assert px.shape == (1, 3, 5)
    assert py.shape == (1, 4, 4)
    expected = -k2.mutual_information_recursion(px=px, py=py, boundary=None)
    shifted = lm + torch.tensor([3.0, -2.0, 0.5, 1.0])[None, :, None], am - 7.0
    assert_close(k2.rnnt_loss_simple(*shifted, symbols, 2, reduction="none"), expected, relative=1e-5)
    assert_close(k2.rnnt_loss(logits_of(lm, am), symbols, 2, reduction="none"), expected, relative=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions(reduction):
    lm, am, symbols, boundary = batch(1)
    losses = k2.rnnt_loss(logits_of(lm, am), symbols, BLANK, boundary, reduction="none")
    expected = getattr(losses, reduction)()
    assert_close(k2.rnnt_loss(logits_of(lm, am), symbols, BLANK, boundary, reduction=reduction), expected)
    assert_close(k2.rnnt_loss_simple(lm, am, symbols, BLANK, boundary, reduction=reduction), expected, relative=1e-12)


def test_smoothing_by_its_definition():
    lm, am, symbols, boundary = batch(2)
    lm_scale, am_scale = 0.25, 0.15
    joint = logits_of(lm, am).log_softmax(-1)
    unigram = lm.softmax(-1).mean((0, 1)).log()
    mixed = (1 - lm_scale - am_scale) * joint + lm_scale * lm.log_softmax(-1)[:, None]
    mixed = mixed + am_scale * (am + unigram).log_softmax(-1)[:, :, None]
    lengths = boundary[:, 3], boundary[:, 2]
    expected = rnnt_loss(mixed, symbols, *lengths, blank=BLANK, reduction="none", fused_log_softmax=False)
    actual = k2.rnnt_loss_smoothed(lm, am, symbols, BLANK, lm_scale, am_scale, boundary, reduction="none")
    assert_close(actual, expected, relative=1e-12)


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_occupations_are_the_planes_gradient(rnnt_type):
    lm, am, symbols, boundary = batch(3)
    px, py = (plane.requires_grad_() for plane in k2.get_rnnt_logprobs(lm, am, symbols, BLANK, rnnt_type, boundary))
    scores, occupations = k2.mutual_information_recursion(px, py, boundary, return_grad=True)
    expected = torch.autograd.grad(scores.sum(), (px, py))
    for occupation, gradient, plane in zip(occupations, expected, (px, py), strict=True):
        assert occupation.shape == plane.shape
        assert_close(occupation, gradient, absolute=1e-12)
    assert_close(occupations[0].sum((1, 2)), boundary[:, 2].double(), absolute=1e-9)  # each symbol is taken once
    loss, again = k2.rnnt_loss_simple(lm, am, symbols, BLANK, boundary, rnnt_type, return_grad=True)
    assert_close(loss, -scores.mean().detach(), relative=1e-12)
    assert_close(again[1], occupations[1], absolute=1e-12)


def brute_force(px, py, first, last):
    """The log-sum over all orders of the steps from one node of the grid to another."""
    (s0, t0), (s1, t1) = first, last
    total = []
    for labels in itertools.combinations(range(s1 - s0 + t1 - t0), s1 - s0):
        s, t, score = s0, t0, torch.zeros((), dtype=px.dtype)
        for step in range(s1 - s0 + t1 - t0):
            if step in labels:
                score, s = score + px[s, t], s + 1
            else:
                score, t = score + py[s, t], t + 1
        total.append(score)
    return torch.stack(total).logsumexp(0)


def test_a_grid_that_begins_elsewhere_and_ends_with_a_symbol():
    # Finite scores behind the last frame: a walk may end with symbols.
    random = torch.Generator().manual_seed(4)
    px = torch.randn(2, 3, 5, dtype=torch.float64, generator=random)
    py = torch.randn(2, 4, 4, dtype=torch.float64, generator=random)
    boundary = torch.tensor([[0, 0, 3, 4], [1, 2, 3, 4]])
    expected = [brute_force(px[0], py[0], (0, 0), (3, 4)), brute_force(px[1], py[1], (1, 2), (3, 4))]
    assert_close(k2.mutual_information_recursion(px, py, boundary), torch.stack(expected), relative=1e-12)
    assert_close(k2.mutual_information_recursion(px[:1], py[:1]), expected[0][None], relative=1e-12)


def test_maxima_far_apart():
    # 200 nats between the classes that lm and am have their maxima at: float32's exp has nothing left.
    lm, am = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)
    lm[..., 0], am[..., 1] = 200.0, 200.0
    symbols = torch.tensor([[0]])
    expected = k2.rnnt_loss(logits_of(lm, am), symbols, 1)
    assert_close(k2.rnnt_loss_simple(lm, am, symbols, 1), expected, relative=1e-5)


def test_a_band_and_hat():
    lm, am, symbols, boundary = batch(5)
    logits = logits_of(lm, am)
    ranges = torch.tensor([[0, 1], [0, 1], [1, 2], [1, 2], [2, 3], [2, 3]]).expand(3, 6, 2)
    banded = logits.gather(2, ranges[..., None].expand(-1, -1, -1, 5))
    outside = torch.ones(3, 6, 4, dtype=torch.bool).scatter(2, ranges, False)
    full = torch.full((3,), 6), torch.full((3,), 3)
    expected = rnnt_loss(
        logits.log_softmax(-1).masked_fill(outside[..., None], -torch.inf), symbols, *full, blank=BLANK,
        fused_log_softmax=False, reduction="none",
    )  # fmt: skip
    assert_close(k2.rnnt_loss_pruned(banded, symbols, ranges, BLANK, reduction="none"), expected, relative=1e-12)
    everything = torch.arange(4).expand(3, 6, 4)
    symbols = symbols + 1
    hat = k2.rnnt_loss_pruned(logits, symbols, everything, 0, boundary, reduction="none", use_hat_loss=True)
    lengths = boundary[:, 3], boundary[:, 2]
    assert_close(hat, rnnt_loss(logits, symbols, *lengths, blank=0, hat=True, reduction="none"), relative=1e-12)


# The first positions of k2 1.24.4's bands, by its own code, for the occupations of this batch.
BANDS = {
    "regular": [[0, 1, 2, 3, 3, 3, 3], [0, 0, 1, 1, 1, 1, 1]],
    "modified": [[0, 0, 1, 2, 2, 3, 3], [0, 0, 1, 1, 1, 1, 1]],
}


@pytest.mark.parametrize("rnnt_type", BANDS)
def test_bands_are_the_peer_s(rnnt_type):
    lm, am = torch.zeros(2, 5, 3), torch.zeros(2, 7, 3)
    lm[:, [0, 2], 0], am[:, [1, 5], 1], am[1, 2:, 2] = 3.0, 4.0, 1.0
    symbols, boundary = torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0]]), torch.tensor([[0, 0, 4, 7], [0, 0, 2, 5]])
    _, occupations = k2.rnnt_loss_simple(lm, am, symbols, 2, boundary, rnnt_type, return_grad=True)
    ranges = k2.get_rnnt_prune_ranges(*occupations, boundary, 2)
    assert ranges[..., 0].tolist() == BANDS[rnnt_type]
    assert (ranges[..., 1] - ranges[..., 0] == 1).all()


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_the_pruned_recipe(rnnt_type):
    # As icefall trains: the simple loss, its occupations, bands, the joiner's logits in them, the pruned loss.
    lm, am, symbols, boundary = batch(9, num_frames=9)
    options = {"rnnt_type": rnnt_type, "reduction": "none"}
    _, occupations = k2.rnnt_loss_simple(lm, am, symbols, BLANK, boundary, rnnt_type, return_grad=True)
    full = k2.rnnt_loss(logits_of(lm, am), symbols, BLANK, boundary, **options)
    losses = []
    for width in (2, 3, 4):
        ranges = k2.get_rnnt_prune_ranges(*occupations, boundary, width)
        banded = sum(k2.do_rnnt_pruning(am, lm, ranges))
        losses.append(k2.rnnt_loss_pruned(banded, symbols, ranges, BLANK, boundary, **options))
        assert (losses[-1] >= full - 1e-9).all()
    assert losses[0].isfinite().all()
    assert_close(losses[-1], full, relative=1e-12)  # four positions are all there are


def walks_in_a_band(px, py, ranges):
    """The log-sum over all orders of a sample's steps that stay at the positions of their frames' bands."""
    num_symbols, num_frames = px.shape[0], py.shape[1]
    total = []
    for labels in itertools.combinations(range(num_symbols + num_frames - 1), num_symbols):
        s, t, score = 0, 0, torch.zeros((), dtype=px.dtype)
        for step in range(num_symbols + num_frames - 1):
            if s not in ranges[t]:
                score = score - torch.inf
            score, s, t = (score + px[s, t], s + 1, t) if step in labels else (score + py[s, t], s, t + 1)
        total.append(score + py[s, t] if s in ranges[t] else score - torch.inf)
    return torch.stack(total).logsumexp(0)


def test_the_recipe_of_fast_rnnt_s_readme_by_its_walks():
    lm, am, symbols, _ = batch(11, num_samples=2)
    boundary = torch.tensor([[0, 0, 3, 6]] * 2)
    given = {"symbols": symbols, "termination_symbol": BLANK, "boundary": boundary}
    simple, (px_grad, py_grad) = fast_rnnt.rnnt_loss_simple(lm=lm, am=am, **given, reduction="none", return_grad=True)
    ranges = fast_rnnt.get_rnnt_prune_ranges(px_grad=px_grad, py_grad=py_grad, boundary=boundary, s_range=2)
    am_pruned, lm_pruned = fast_rnnt.do_rnnt_pruning(am=am, lm=lm, ranges=ranges)
    logits = torch.tanh(am_pruned + lm_pruned)
    pruned = fast_rnnt.rnnt_loss_pruned(logits=logits, ranges=ranges, **given, reduction="none")
    everything = torch.arange(4).expand(6, 4)
    for n in range(2):
        log_probs = torch.tanh(am[n, None] + lm[n, :, None]).log_softmax(-1)
        px = torch.stack([log_probs[s, :, symbols[n, s]] for s in range(3)])
        assert_close(pruned[n], -walks_in_a_band(px, log_probs[..., BLANK], ranges[n]), relative=1e-12)
        log_probs = (am[n, None] + lm[n, :, None]).log_softmax(-1)
        px = torch.stack([log_probs[s, :, symbols[n, s]] for s in range(3)])
        assert_close(simple[n], -walks_in_a_band(px, log_probs[..., BLANK], everything), relative=1e-12)


def test_the_planes_of_a_band_are_those_of_all_logits_in_it():
    lm, am, symbols, boundary = batch(12)
    ranges = torch.tensor([[0, 1], [0, 1], [1, 2], [1, 2], [2, 3], [2, 3]]).expand(3, 6, 2)
    banded = sum(fast_rnnt.do_rnnt_pruning(am, lm, ranges))
    actual = fast_rnnt.get_rnnt_logprobs_pruned(banded, symbols, ranges, BLANK, boundary)
    full = fast_rnnt.get_rnnt_logprobs_joint(logits_of(lm, am), symbols, BLANK, boundary=boundary)
    inside = torch.zeros(3, 6, 4, dtype=torch.bool).scatter(2, ranges, True).mT
    for plane, expected, kept in zip(
        actual, full, (torch.nn.functional.pad(inside[:, :3], (0, 1)), inside), strict=True
    ):
        assert_close(plane, expected.masked_fill(~kept, -torch.inf))


@pytest.mark.parametrize("loss", ["rnnt_loss", "rnnt_loss_pruned"])
def test_occupations_beside_the_loss_of_logits(loss):
    lm, am, symbols, boundary = batch(13)
    band = (torch.arange(4).expand(3, 6, 4),) if loss == "rnnt_loss_pruned" else ()
    alone, pair = (
        getattr(fast_rnnt, loss)(logits_of(lm, am), symbols, *band, BLANK, boundary, return_grad=return_grad)
        for return_grad in (False, True)
    )
    assert_close(pair[0], alone, relative=1e-12)
    _, occupations = fast_rnnt.rnnt_loss_simple(lm, am, symbols, BLANK, boundary, return_grad=True)
    for actual, expected in zip(pair[1], occupations, strict=True):
        assert_close(actual, expected, absolute=1e-12)


def test_a_band_too_narrow_is_widened():
    _, occupations = k2.rnnt_loss_simple(*batch()[:2], batch()[2], BLANK, return_grad=True)
    with pytest.warns(UserWarning, match="s_range must be 3 at least; got 2; widened"):
        ranges = k2.get_rnnt_prune_ranges(*occupations, torch.tensor([[0, 0, 3, 2]] * 3), 2)
    assert ranges.shape == (3, 6, 3)


def test_the_parts_of_a_joint_recursion():
    lm, am, symbols, boundary = batch(10)
    px, py = (plane.detach().requires_grad_() for plane in k2.get_rnnt_logprobs(lm, am, symbols, BLANK))
    total = k2.mutual_information_recursion(px, py, boundary)
    parts = k2.joint_mutual_information_recursion((0.75 * px, 0.25 * px), (0.25 * py, 0.75 * py), boundary)
    assert parts.shape == (2, 3)
    assert_close(parts.sum(0), total.detach(), relative=1e-12)
    for ours, theirs in zip(*(torch.autograd.grad(x.sum(), (px, py)) for x in (parts, total)), strict=True):
        assert_close(ours, theirs, absolute=1e-12)
    # The second part is its scores as they are expected over the walks.
    _, (labels, blanks) = k2.mutual_information_recursion(px, py, boundary, return_grad=True)
    expected = (labels * px.nan_to_num(neginf=0)).sum((1, 2)) / 4 + (blanks * py).sum((1, 2)) * 3 / 4
    assert_close(parts[1], expected, relative=1e-12)


def test_an_unknown_reduction_is_refused():
    lm, am, symbols, _ = batch(6)
    with pytest.raises(ValueError, match="reduction must be one of none, mean, sum"):
        k2.rnnt_loss_simple(lm, am, symbols, BLANK, reduction="batch")


def segments(*rows):
    return torch.tensor(rows, dtype=torch.int32)


def test_ctc_is_torch_s_on_the_standard_topology():
    log_probs = torch.randn(3, 9, 6, generator=torch.Generator().manual_seed(7)).log_softmax(2).requires_grad_()
    transcripts, lengths = [[1, 1, 2], [5], [3, 4]], torch.tensor([3, 1, 2])
    topology = k2.compose(k2.ctc_topo(5), k2.linear_fsa(transcripts))
    for graph in (topology, k2.ctc_graph(transcripts).to("cpu")):
        scores = k2.DenseFsaVec(log_probs, segments([0, 0, 9], [1, 2, 5], [2, 0, 4])).to("cpu")
        for reduction in ("none", "sum", "mean"):
            actual = k2.ctc_loss(graph, scores, reduction=reduction, target_lengths=lengths)
            # The second segment begins at its frame 2.
            moved = torch.stack([log_probs[0], log_probs[1].roll(-2, 0), log_probs[2]], 1)
            flat = torch.tensor([1, 1, 2, 5, 3, 4])
            expected = torch.nn.functional.ctc_loss(moved, flat, torch.tensor([9, 5, 4]), lengths, reduction=reduction)
            assert_close(actual, expected.detach(), relative=1e-6)
    k2.ctc_loss(topology, scores).backward()
    assert not log_probs.grad[1, :2].any()
    assert not log_probs.grad[1, 7:].any()
    assert_close(log_probs.grad[1].sum(), torch.tensor(-5.0), relative=1e-5)


def test_the_numbers_of_its_ctc_tests():
    # ctc_loss_test.py, test_case4.
    activations = torch.zeros(3, 3, 5)
    activations[0] = torch.tensor([[-5.0, -4, -3, -2, -1], [-10, -9, -8, -7, -6], [-15, -14, -13, -12, -11]])
    activations[1] = torch.arange(1.0, 16).reshape(3, 5)
    graph = k2.compose(k2.ctc_topo(4), k2.linear_fsa([[2, 3], [3, 3], [1]]))
    scores = k2.DenseFsaVec(activations.log_softmax(2), segments([0, 0, 3], [1, 0, 3], [2, 0, 1]))
    losses = k2.ctc_loss(graph, scores, reduction="none")
    assert_close(losses, [4.938850402832, 7.355742931366, 1.6094379425049], relative=1e-6)


def test_the_modified_topology_needs_no_blank_between_equal_labels():
    log_probs = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(8)).log_softmax(2)
    actual = k2.ctc_loss(k2.ctc_graph([[1, 1, 2]], modified=True), k2.DenseFsaVec(log_probs, segments([0, 0, 5])))
    # Each run of frames in order: blanks or not, the first 1, blanks or not, and so on.
    order = (0, 1, 0, 1, 0, 2, 0)
    total = []
    for lengths in itertools.product(range(6), repeat=7):
        if sum(lengths) == 5 and min(lengths[1::2]) > 0:
            path = [label for label, length in zip(order, lengths, strict=True) for _ in range(length)]
            total.append(log_probs[0, torch.arange(5), path].sum())
    assert_close(actual, -torch.stack(total).logsumexp(0), relative=1e-6)


def test_ctc_refuses_what_it_has_not():
    scores = k2.DenseFsaVec(torch.zeros(1, 3, 2), segments([0, 0, 4]), allow_truncate=1)
    assert scores.durations == [3]
    with pytest.raises(ValueError, match="supervision_segments must reach at most 0 frames beyond the 3 there are"):
        k2.DenseFsaVec(torch.zeros(1, 3, 2), segments([0, 0, 4]))
    with pytest.raises(ValueError, match="delay_penalty must not be above 0"):
        k2.ctc_loss(k2.ctc_graph([[1]]), scores, delay_penalty=0.1)
    with pytest.raises(TypeError, match="decoding_graph must be an Fsa, or come from ctc_graph or compose"):
        k2.ctc_loss(k2.linear_fsa([1]), scores)


def test_acceptors_of_text_are_summed_over_their_paths():
    topology = "0 0 0 0.0\n0 1 1 0.0\n1 1 1 0.0\n1 0 0 0.0\n0 2 -1 0.0\n1 2 -1 0.5\n2"
    log_probs = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0)).log_softmax(2)
    scores = k2.DenseFsaVec(log_probs, segments([0, 0, 4], [1, 1, 2]))
    fsa = k2.Fsa.from_str(topology)
    graph = fsa.graphs[0]
    found = k2.intersect_dense(fsa, scores, output_beam=10).get_tot_scores(log_semiring=True)
    for n, (own, length) in enumerate(zip(scores.scores.double(), (4, 2), strict=True)):
        paths = [path.score + sum(own[t, c] for t, c in enumerate(path.labels)) for path in graph.paths(length)]
        assert found[n].item() == pytest.approx(torch.logsumexp(torch.stack(paths), 0).item(), rel=1e-6)
        best = k2.intersect_dense(fsa, scores, 10).get_tot_scores(log_semiring=False, use_double_scores=False)
        assert best[n].item() == pytest.approx(max(paths).item(), rel=1e-6)
    costs = "0 0 0\n0 1 1\n1 1 1\n1 0 0\n0\n1 -0.5\n"
    assert k2.Fsa.from_openfst(costs).graphs[0].final.tolist() == graph.final.tolist()
    assert (k2.ctc_loss(fsa, scores) + found.sum()).item() == pytest.approx(0)


def test_best_paths_are_differentiable():
    log_probs = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(1)).log_softmax(2).requires_grad_()
    scores = k2.DenseFsaVec(log_probs, segments([0, 0, 4]))
    k2.intersect_dense(k2.ctc_topo(2), scores, 10).get_tot_scores(log_semiring=False).sum().backward()
    best = torch.nn.functional.one_hot(log_probs[0].argmax(1), 3)
    assert log_probs.grad[0].tolist() == best.tolist()


def test_graphs_of_transcripts_meet_scores_as_acceptors_too():
    log_probs = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(2)).log_softmax(2)
    scores = k2.DenseFsaVec(log_probs, segments([0, 0, 6], [1, 0, 5]))
    for modified in (False, True):
        graph = k2.ctc_graph([[1, 1], [2, 3]], modified=modified)
        totals = k2.intersect_dense(graph, scores, 10).get_tot_scores(log_semiring=True)
        assert totals.tolist() == pytest.approx((-k2.ctc_loss(graph, scores, reduction="none")).tolist(), rel=1e-5)
    both = k2.create_fsa_vec([k2.Fsa.from_str("0 1 1 0.0\n1 2 -1 0.0\n2")] * 2)
    with pytest.raises(ValueError, match="a_fsas must be one or one a segment, 1; got 2"):
        k2.intersect_dense(both, k2.DenseFsaVec(log_probs, segments([0, 0, 6])), 10)
    every = k2.intersect_dense(
        both, k2.DenseFsaVec(log_probs, segments([0, 0, 1])), 10, a_to_b_map=torch.tensor([0, 0])
    )
    assert every.get_tot_scores(True).tolist() == pytest.approx([log_probs[0, 0, 1].item()] * 2)
    with pytest.raises(TypeError, match="a_fsas must be an Fsa"):
        k2.intersect_dense("graph", scores, 10)
