"""Entropies and expected risks: beside every path, one by one, beside finite differences, and where no path exists."""

import numpy as np
import pytest
import torch

from pathsum.graphs import ctc_topology
from pathsum.options import RNNT_TYPES
from pathsum.problems.ctc import pose_ctc
from pathsum.problems.simple_ctc import pose_simple_ctc
from pathsum.testing import assert_close, chain_inputs, enumerate_paths, grid_inputs, pack_rows
from pathsum.torch import (
    asg_entropy,
    asg_expected_risk,
    ctc_entropy,
    ctc_expected_risk,
    ctc_loss,
    lattice_entropy,
    rnnt_entropy,
    rnnt_expected_risk,
    simple_ctc_entropy,
    simple_ctc_expected_risk,
)
from support import IMPLEMENTATIONS, tensor

CHAINS = {
    "ctc": (pose_ctc, ctc_entropy, ctc_expected_risk),
    "simple_ctc": (pose_simple_ctc, simple_ctc_entropy, simple_ctc_expected_risk),
}
RANDOM = np.random.default_rng(7)


def entropy_and_risk(scores_and_costs):
    """Of paths given by the sums of their scores and of their costs; 0 where there is none."""
    if not scores_and_costs:
        return 0.0, 0.0
    scores, costs = np.array(scores_and_costs).T
    weights = np.exp(scores - scores.max())
    probabilities = weights / weights.sum()
    logs = np.log(np.where(probabilities > 0, probabilities, 1.0))
    return -(probabilities * logs).sum(), (probabilities * np.where(probabilities > 0, costs, 0.0)).sum()


def of_paths(lattice, sample, log_probs, costs):
    paths = list(enumerate_paths(lattice, sample))
    return entropy_and_risk(
        [[sum(table[(*arc.row, arc.label)] for arc in path) for table in (log_probs, costs)] for path in paths]
    )


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("loss", CHAINS)
@pytest.mark.parametrize("fused", [False, True])
def test_chains_are_as_their_paths_say(loss, impl, fused):
    pose, entropy, risk = CHAINS[loss]
    inputs = chain_inputs(5, 3, 4, 2, seed=1)
    logits, costs = inputs.logits, RANDOM.standard_normal((5, 3, 4))
    logits[1, :, 2] = -np.inf  # a class that frame 1 cannot emit: it costs nothing, whatever its cost
    costs[1, :, 2] = np.inf
    log_probs = tensor(logits).log_softmax(2).numpy()
    lattice = pose(inputs.targets, inputs.input_lengths, inputs.target_lengths, 0)
    expected = [of_paths(lattice, n, log_probs[:, n], costs[:, n]) for n in range(3)]
    arguments = (inputs.targets, inputs.input_lengths, inputs.target_lengths)
    options = {"reduction": "none", "fused_log_softmax": fused, "impl": impl}
    scores = tensor(logits if fused else log_probs)
    for n, length in enumerate(inputs.input_lengths):  # padding is not read
        scores[length:, n] = torch.nan
    assert_close(entropy(scores, *arguments, **options), [e for e, _ in expected], absolute=1e-9)
    assert_close(risk(scores, tensor(costs), *arguments, **options), [r for _, r in expected], absolute=1e-9)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_transducers_are_as_their_paths_say(impl, rnnt_type):
    inputs = grid_inputs(2, 4, 2, 3, seed=2)
    log_probs = tensor(inputs.logits).log_softmax(3).numpy()
    costs = RANDOM.standard_normal((2, 4, 3, 2))
    expected = [
        entropy_and_risk(list(walks(log_probs[n], costs[n], inputs.targets[n], int(frames), int(labels), rnnt_type)))
        for n, (frames, labels) in enumerate(zip(inputs.logit_lengths, inputs.target_lengths, strict=True))
    ]
    lengths = (inputs.logit_lengths, inputs.target_lengths)
    for read in (np.asarray, lambda padded: pack_rows(padded, *lengths)):
        logits, priced = tensor(read(inputs.logits)), tensor(read(costs))
        options = {"reduction": "none", "rnnt_type": rnnt_type, "impl": impl}
        assert_close(rnnt_entropy(logits, inputs.targets, *lengths, **options), [e for e, _ in expected], absolute=1e-9)
        risks = rnnt_expected_risk(logits, priced, inputs.targets, *lengths, **options)
        assert_close(risks, [r for _, r in expected], absolute=1e-9)


def walks(log_probs, costs, target, num_frames, num_labels, rnnt_type, t=0, u=0):
    """Score and cost of every walk from (t, u) to the end, from the types' definitions alone."""
    if (t, u) == (num_frames, num_labels):
        yield 0.0, 0.0
    if t >= num_frames:
        return
    rest = (log_probs, costs, target, num_frames, num_labels, rnnt_type)
    for score, cost in walks(*rest, t + 1, u):
        yield score + log_probs[t, u, 2], cost + costs[t, u, 0]
    last = num_frames - (2 if rnnt_type == "one_sym_per_frame" else 1)
    if u < num_labels and t <= last:
        more = log_probs[t, u + 1, 2] if rnnt_type == "constrained" else 0.0
        for score, cost in walks(*rest, t + (rnnt_type != "regular"), u + 1):
            yield score + log_probs[t, u, target[u]] + more, cost + costs[t, u, 1]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("paths", ["target", "all"])
def test_label_sequences_are_as_their_paths_say(impl, paths):
    scores, costs = (RANDOM.standard_normal((4, 2, 3)) for _ in range(2))
    transitions, transition_costs = (RANDOM.standard_normal((3, 3)) for _ in range(2))
    transitions[2, 0] = -np.inf
    transition_costs[2, 0] = np.inf
    targets, lengths, target_lengths = np.array([[0, 1], [2, 0]]), [4, 3], [2, 1]
    expected = []
    for n in range(2):
        found = []
        for sequence in np.ndindex(*[3] * lengths[n]):
            labels = [c for t, c in enumerate(sequence) if t == 0 or c != sequence[t - 1]]
            if paths == "all" or labels == targets[n, : target_lengths[n]].tolist():
                moves = list(zip(sequence[1:], sequence[:-1], strict=True))
                with np.errstate(invalid="ignore"):
                    found.append([
                        sum(table[t, n, c] for t, c in enumerate(sequence)) + sum(between[move] for move in moves)
                        for table, between in ((scores, transitions), (costs, transition_costs))
                    ])  # fmt: skip
        expected.append(entropy_and_risk(found))
    options = {"reduction": "none", "paths": paths, "impl": impl}
    integers = (targets, tensor(transitions), lengths, target_lengths)
    assert_close(asg_entropy(tensor(scores), *integers, **options), [e for e, _ in expected], absolute=1e-9)
    options["transition_costs"] = tensor(transition_costs)
    risks = asg_expected_risk(tensor(scores), tensor(costs), *integers, **options)
    assert_close(risks, [r for _, r in expected], absolute=1e-9)


def leaf(*shape):
    return tensor(RANDOM.standard_normal(shape)).requires_grad_()


CHAIN = ([[1, 2], [1, 1]], [4, 3], [2, 2])  # the second is the shortest input for its repeat
GRID = ([[1, 2], [1, 0]], [3, 2], [2, 1])
ASG = ([4, 3], [2, 1])
DIFFERENTIATED = {
    "ctc_entropy": (lambda x, o: ctc_entropy(x, *CHAIN, fused_log_softmax=True, **o), [(4, 2, 3)]),
    "simple_ctc_entropy": (lambda x, o: simple_ctc_entropy(x, *CHAIN, **o), [(4, 2, 3)]),
    "rnnt_entropy": (lambda x, o: rnnt_entropy(x, *GRID, **o), [(2, 3, 3, 4)]),
    "asg_entropy": (lambda x, w, o: asg_entropy(x, [[0, 1], [2, 0]], w, *ASG, **o), [(4, 2, 3), (3, 3)]),
    "asg_entropy, all": (
        lambda x, w, o: asg_entropy(x, [[0, 1], [2, 0]], w, *ASG, paths="all", **o),
        [(4, 2, 3), (3, 3)],
    ),
    "ctc_expected_risk": (lambda x, c, o: ctc_expected_risk(x, c, *CHAIN, **o), [(4, 2, 3)] * 2),
    "simple_ctc_expected_risk": (
        lambda x, c, o: simple_ctc_expected_risk(x, c, *CHAIN, fused_log_softmax=True, **o),
        [(4, 2, 3)] * 2,
    ),
    "rnnt_expected_risk": (lambda x, c, o: rnnt_expected_risk(x, c, *GRID, **o), [(2, 3, 3, 4), (2, 3, 3, 2)]),
    "asg_expected_risk": (
        lambda x, c, w, d, o: asg_expected_risk(x, c, [[0, 1], [2, 0]], w, *ASG, transition_costs=d, **o),
        [(4, 2, 3), (4, 2, 3), (3, 3), (3, 3)],
    ),
}


@pytest.mark.parametrize("impl, reduction", [*((impl, "none") for impl in IMPLEMENTATIONS), ("numba", "mean")])
@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_gradients_are_those_of_finite_differences(name, impl, reduction):
    function, shapes = DIFFERENTIATED[name]
    options = {"reduction": reduction, "impl": impl}
    assert torch.autograd.gradcheck(lambda *t: function(*t, options), tuple(leaf(*shape) for shape in shapes))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("fused", [False, True])
def test_impossible_and_undefined_samples_stay_by_themselves(impl, fused):
    # Two labels do not fit in one frame; a class that no path needs is impossible; a score is NaN.
    logits = RANDOM.standard_normal((3, 4, 3))
    logits[:, 2, 2] = -np.inf
    logits[0, 3, 0] = np.nan
    scores = tensor(logits).requires_grad_()
    costs = leaf(3, 4, 3)
    integers = ([[1, 2], [1, 2], [1, 1], [1, 2]], [1, 3, 3, 3], [2, 2, 1, 2])
    for function, arguments in ((ctc_entropy, (scores,)), (ctc_expected_risk, (scores, costs))):
        found = function(*arguments, *integers, fused_log_softmax=fused, reduction="none", impl=impl)
        assert found[0] == 0
        assert found[1:3].isfinite().all()
        assert (found[1:3] != 0).all()
        assert found[3].isnan()
        gradients = torch.autograd.grad(found[:3].sum(), arguments)
        for gradient in gradients:
            assert not gradient[:, 0].any()
            assert gradient[:, 1:3].isfinite().all()
        assert not gradients[0][:, 2, 2].any()


def test_one_path_has_no_entropy_and_equal_paths_have_the_most():
    assert_close(ctc_entropy(torch.randn(3, 1, 3), [[1, 1]], [3], [2]), 0.0, absolute=1e-6)  # 1 blank 1
    for frames in (3, 4):
        paths = len(list(enumerate_paths(pose_ctc(np.array([[1]]), np.array([frames]), np.array([1]), 0))))
        found = ctc_entropy(torch.zeros(frames, 1, 2), [[1]], [frames], [1])
        assert_close(found, np.log(paths), absolute=1e-6)


def test_reductions_batches_and_precisions_are_those_of_the_losses():
    logits = torch.randn(4, 2, 3)
    each = ctc_entropy(logits, *CHAIN, reduction="none", fused_log_softmax=True)
    assert_close(ctc_entropy(logits, *CHAIN, fused_log_softmax=True), (each / 2).mean(), absolute=1e-6)
    one = ctc_entropy(logits[:, 0], [1, 2], 4, 2, reduction="none", fused_log_softmax=True)
    assert one.shape == ()
    assert one.dtype == torch.float32
    assert_close(one, each[0], absolute=1e-6)
    transposed = ctc_entropy(logits.transpose(0, 1), *CHAIN, reduction="none", fused_log_softmax=True, batch_first=True)
    assert_close(transposed, each, absolute=1e-6)
    half = ctc_entropy(logits.bfloat16(), *CHAIN, reduction="none", fused_log_softmax=True)
    exact = ctc_entropy(logits.bfloat16().double(), *CHAIN, reduction="none", fused_log_softmax=True)
    assert half.dtype == torch.float32
    assert_close(half, exact, absolute=2e-5)


def test_there_is_a_graph_only_of_what_has_a_gradient():
    scores, logits, arcs = torch.zeros(4, 2, 3), torch.zeros(2, 3, 3, 4), torch.zeros(3, 3)
    targets = [[0, 1], [2, 0]]
    for impl in IMPLEMENTATIONS:
        for plain in (
            ctc_entropy(scores, *CHAIN, impl=impl),
            ctc_expected_risk(scores, scores, *CHAIN, impl=impl),
            rnnt_entropy(logits, *GRID, impl=impl),
            asg_entropy(scores, targets, arcs, impl=impl),
            lattice_entropy(scores, ctc_topology(3), impl=impl),
        ):
            assert not plain.requires_grad
        leaf = arcs.clone().requires_grad_()
        for differentiable in (
            ctc_expected_risk(scores, scores.clone().requires_grad_(), *CHAIN, impl=impl),
            asg_entropy(scores, targets, leaf, impl=impl),
        ):
            assert differentiable.requires_grad


def test_costs_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="ctc_expected_risk: costs must have shape of log_probs"):
        ctc_expected_risk(torch.zeros(4, 2, 3), torch.zeros(4, 2, 2), *CHAIN)
    with pytest.raises(ValueError, match="rnnt_expected_risk: costs must have shape"):
        rnnt_expected_risk(torch.zeros(2, 3, 3, 4), torch.zeros(2, 3, 3, 4), *GRID)
    with pytest.raises(ValueError, match="asg_entropy: paths must be one of all, target"):
        asg_entropy(torch.zeros(4, 2, 3), [[0, 1], [2, 0]], torch.zeros(3, 3), paths="some")


def test_the_risk_of_the_negative_score_is_the_gradient_s_own():
    # E[-log p] under the posterior: the loss's derivative along its own scores.
    log_probs = torch.randn(4, 2, 3, dtype=torch.float64).log_softmax(2).requires_grad_()
    losses = ctc_loss(log_probs, *CHAIN, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), log_probs)
    risk = ctc_expected_risk(log_probs, -log_probs, *CHAIN, reduction="none")
    assert_close(risk, (gradient * log_probs).sum((0, 2)), absolute=1e-9)


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_transforms_give_what_backward_gives(name):
    function, shapes = DIFFERENTIATED[name]
    options = {"reduction": "none", "impl": "numba"}
    values = tuple(leaf(*shape).detach() for shape in shapes)
    every = tuple(range(len(values)))

    def total(*tensors):
        return function(*tensors, options).sum()

    leaves = tuple(value.clone().requires_grad_() for value in values)
    expected = torch.autograd.grad(total(*leaves), leaves)
    for one, other in zip(torch.func.grad(total, every)(*values), expected, strict=True):
        assert_close(one, other, absolute=1e-9)
    copies = tuple(torch.stack([value, -value]) for value in values)
    mapped = torch.func.vmap(torch.func.grad(total, every))(*copies)
    for one, other in zip(mapped, expected, strict=True):
        assert_close(one[0], other, absolute=1e-9)
