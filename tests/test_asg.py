"""ASG against enumeration, published vectors, finite differences and its own other implementation."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathsum import dispatch
from pathsum.kernels.protocol import Call, DenseOptions
from pathsum.lattice import DenseLattice
from pathsum.problems.asg import pose_asg
from pathsum.testing import assert_close, assert_same_bits, count_paths
from pathsum.torch import ASGLoss, asg_loss
from support import DTYPES, IMPLEMENTATIONS, tensor

pytestmark = pytest.mark.filterwarnings("ignore:asg_loss. the target")


class Batch:
    """Inputs (T, N, C), targets, lengths, transitions, end scores, an upstream gradient of both signs."""

    def __init__(self, num_frames, num_samples, num_classes, num_labels, seed=0, std=1.0, spread=1.0, ragged=True):
        random = np.random.default_rng(seed)
        self.inputs = random.standard_normal((num_frames, num_samples, num_classes)) * std
        self.transitions = random.standard_normal((num_classes, num_classes)) * spread
        self.start, self.final = random.standard_normal((2, num_classes)) * spread
        self.targets = random.integers(0, num_classes, (num_samples, num_labels))
        lowest = 1 if ragged else num_frames
        self.input_lengths = random.integers(lowest, num_frames + 1, num_samples)
        self.target_lengths = random.integers(1 if ragged else num_labels, num_labels + 1, num_samples)
        self.upstream = random.standard_normal(num_samples)

    def solve(self, dtype=torch.float64, impl="auto", upstream=None, ends=True, **options):
        """Losses, and the gradients by inputs, transitions, start and final scores."""
        leaves = [tensor(x, dtype).requires_grad_() for x in (self.inputs, self.transitions, self.start, self.final)]
        named = {"start_scores": leaves[2], "final_scores": leaves[3]} if ends else {}
        loss = asg_loss(
            leaves[0], torch.from_numpy(self.targets), leaves[1], self.input_lengths, self.target_lengths, "none",
            impl=impl, **named, **options,
        )  # fmt: skip
        loss.backward(tensor(self.upstream if upstream is None else upstream, loss.dtype))
        return loss.detach(), [leaf.grad for leaf in leaves[: 4 if ends else 2]]


def path_score(batch, n, path):
    emitted = sum(batch.inputs[t, n, label] for t, label in enumerate(path))
    moved = sum(batch.transitions[after, before] for before, after in itertools.pairwise(path))
    return emitted + moved + batch.start[path[0]] + batch.final[path[-1]]


def alignments(frames, labels):
    """Every stretching of a target: the frames on which a new label starts, the first frame always."""
    for steps in itertools.combinations(range(1, frames), len(labels) - 1):
        yield tuple(labels[sum(t >= step for step in steps)] for t in range(frames))


def log_sum(scores):
    return float(np.logaddexp.reduce(list(scores))) if scores else -np.inf


# One frame; a target as long as the input; shorter; longer.
@pytest.mark.parametrize("num_frames, num_labels", [(1, 1), (4, 4), (5, 2), (3, 4)])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_the_loss_sums_its_paths(impl, num_frames, num_labels):
    batch = Batch(num_frames, 4, 3, num_labels, seed=num_frames, std=2.0, spread=2.0)
    solved, _ = batch.solve(impl=impl)
    for n, (frames, labels) in enumerate(zip(batch.input_lengths, batch.target_lengths, strict=True)):
        everything = [path_score(batch, n, path) for path in itertools.product(range(3), repeat=int(frames))]
        target = [path_score(batch, n, path) for path in alignments(int(frames), batch.targets[n, :labels])]
        assert_close(solved[n], log_sum(everything) - log_sum(target), absolute=1e-12)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_gradients_are_those_of_finite_differences(impl):
    batch = Batch(5, 3, 3, 3, seed=4)
    batch.target_lengths = np.minimum(batch.target_lengths, batch.input_lengths)
    leaves = [tensor(x).requires_grad_() for x in (batch.inputs, batch.transitions, batch.start, batch.final)]

    def loss(inputs, transitions, start, final):
        return asg_loss(
            inputs, torch.from_numpy(batch.targets), transitions, batch.input_lengths, batch.target_lengths, "none",
            start_scores=start, final_scores=final, impl=impl,
        )  # fmt: skip

    assert torch.autograd.gradcheck(loss, leaves)
    if impl == "reference":
        assert torch.autograd.gradgradcheck(loss, leaves)


WAV2LETTER_INPUTS = """
    -0.4340 -0.0254  0.3667  0.4180 -0.3805 -0.1707   0.1060  0.3631 -0.1122 -0.3825 -0.0031 -0.3801
     0.0443 -0.3795  0.3194 -0.3130  0.0094  0.1560   0.1252  0.2877  0.1997 -0.4554  0.2774 -0.2526
    -0.4001 -0.2402  0.1295  0.0172  0.1805 -0.3299
     0.3298 -0.2259 -0.0959  0.4909  0.2996 -0.2543  -0.2863  0.3239 -0.3988  0.0732 -0.2107 -0.4739
    -0.0906  0.0480 -0.1301  0.3975 -0.3317 -0.1967   0.4372 -0.2006  0.0094  0.3281  0.1873 -0.2945
     0.2399  0.0320 -0.3768 -0.2849 -0.2248  0.3186
     0.0225 -0.3867 -0.1929 -0.2904 -0.4958 -0.2533   0.4001 -0.1517 -0.2799 -0.2915  0.4198  0.4506
     0.1446 -0.4753 -0.0711  0.2876 -0.1851 -0.1066   0.2081 -0.1190 -0.3902 -0.1668  0.1911 -0.2848
    -0.3846  0.1175  0.1052  0.2172 -0.0362  0.3055
"""
WAV2LETTER_INPUT_GRADIENT = """
     0.1060  0.1595 -0.7639  0.2485  0.1118  0.1380   0.1915 -0.7524  0.1539  0.1175  0.1717  0.1178
     0.1738  0.1137  0.2288  0.1216  0.1678 -0.8057   0.1766 -0.7923  0.1902  0.0988  0.2056  0.1210
     0.1212  0.1422  0.2059 -0.8160  0.2166  0.1300
     0.2029  0.1164  0.1325  0.2383 -0.8032  0.1131   0.1414  0.2602  0.1263 -0.3441 -0.3009  0.1172
     0.1557  0.1788  0.1496 -0.5498  0.0140  0.0516   0.2306  0.1219  0.1503 -0.4244  0.1796 -0.2579
     0.2149  0.1745  0.1160  0.1271  0.1350 -0.7675
     0.2195  0.1458  0.1770 -0.8395  0.1307  0.1666   0.2148  0.1237 -0.6613 -0.1223  0.2191  0.2259
     0.2002  0.1077 -0.8386  0.2310  0.1440  0.1557   0.2197 -0.1466 -0.5742  0.1510  0.2160  0.1342
     0.1050 -0.8265  0.1714  0.1917  0.1488  0.2094
"""
WAV2LETTER_TRANSITION_GRADIENT = """
     0.3990  0.3396  0.3486  0.3922  0.3504  0.3155   0.3666  0.0116 -1.6678  0.3737  0.3361 -0.7152
     0.3468  0.3163 -1.1583 -0.6803  0.3216  0.2722   0.3694 -0.6688  0.3047 -0.8531 -0.6571  0.2870
     0.3866  0.3321  0.3447  0.3664 -0.2163  0.3039   0.3640 -0.6943  0.2988 -0.6722  0.3215 -0.1860
"""


def numbers(text):
    return np.array(text.split(), np.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_the_published_vector_of_wav2letter(impl, dtype):
    # Printed by wav2letter's Lua criterion, and repeated in torch_asg's tests: inputs and gradients to four digits,
    # so that a loss of ten scores is off by up to 5e-4.
    scores = tensor(numbers(WAV2LETTER_INPUTS).reshape(3, 5, 6), dtype).requires_grad_()
    targets = torch.tensor([[2, 1, 5, 1, 3], [4, 3, 5, 0, 0], [3, 2, 2, 1, 0]])
    criterion = ASGLoss(6, reduction="none", batch_first=True, impl=impl).to(dtype)
    loss = criterion(scores, targets, torch.tensor([5, 5, 5]), torch.tensor([5, 3, 4]))
    loss.sum().backward()
    assert_close(loss, [7.7417464256287, 6.4200420379639, 8.2780694961548], absolute=5e-4)
    assert_close(scores.grad.flatten(), numbers(WAV2LETTER_INPUT_GRADIENT), absolute=1e-4)
    assert_close(criterion.transition.grad.flatten(), numbers(WAV2LETTER_TRANSITION_GRADIENT), absolute=1e-4)


def test_values_that_torch_asg_tests_in_closed_form():
    inputs = torch.tensor([1.0, 0, 0, 1, 0.5, 0.5, 1, 0, 0, 1, 0, 1], dtype=torch.float64).view(2, 3, 2).log()
    zeros = torch.zeros(2, 2, dtype=torch.float64)
    targets = torch.tensor([[0, 1], [0, 1]])
    assert_close(asg_loss(inputs, targets, zeros, reduction="none", batch_first=True), [np.log(2.0), 0], absolute=1e-12)
    uniform = torch.full((3, 1, 4), 0.25).log()
    assert_close(asg_loss(uniform, [[0, 1]], torch.zeros(4, 4)), np.log(32.0), absolute=1e-6)


# 1, odd and more than one vector of classes; one frame; fewer and more samples than read the matrix together.
@pytest.mark.parametrize("num_frames, num_samples, num_classes, num_labels", [
    (1, 1, 1, 1), (9, 3, 5, 4), (23, 5, 17, 9), (40, 9, 33, 12),
])  # fmt: skip
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_implementations_agree(dtype, num_frames, num_samples, num_classes, num_labels):
    batch = Batch(num_frames, num_samples, num_classes, num_labels, seed=num_frames)
    batch.inputs, batch.transitions = (
        tensor(x, DTYPES[dtype]).double().numpy() for x in (batch.inputs, batch.transitions)
    )
    loss, gradients = batch.solve(DTYPES[dtype], ends=False)
    expected, expected_gradients = batch.solve(impl="reference", ends=False)
    exact = dtype == "float64"
    rounding = torch.finfo(DTYPES[dtype]).eps
    assert_close(loss, expected, relative=1e-13 if exact else 1e-7, absolute=1e-11 if exact else 1e-6 * num_frames**0.5)
    scale = np.abs(batch.upstream).max()
    bound = (1e-12 if exact else 2e-6) * max(scale, 1)
    assert_close(gradients[0], expected_gradients[0], relative=rounding, absolute=bound)
    # The transitions' gradient is a difference of two counts of up to all frames.
    counts = num_frames * num_samples
    assert_close(gradients[1], expected_gradients[1], relative=rounding, absolute=bound * max(counts / num_classes, 1))


@given(st.integers(0, 10**6))
def test_random_tiny_batches_agree(seed):
    random = np.random.default_rng(seed)
    batch = Batch(*(int(x) for x in random.integers(1, 7, 4)), seed=seed, std=10.0 ** random.integers(-1, 3))
    batch.input_lengths = random.integers(0, batch.inputs.shape[0] + 1, batch.inputs.shape[1])
    batch.target_lengths = random.integers(0, batch.targets.shape[1] + 1, batch.inputs.shape[1])
    batch.inputs[random.random(batch.inputs.shape) < 0.1] = -np.inf
    batch.transitions[random.random(batch.transitions.shape) < 0.1] = -np.inf
    loss, gradients = batch.solve()
    expected, expected_gradients = batch.solve(impl="reference")
    assert_close(loss, expected, relative=1e-12, absolute=1e-11)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert_close(gradient, expected_gradient, absolute=1e-11)


def test_infeasible_samples_touch_nothing():
    batch = Batch(4, 5, 3, 5, ragged=False)
    batch.input_lengths = np.array([4, 4, 0, 0, 4])
    batch.target_lengths = np.array([5, 0, 0, 1, 3])
    loss, gradients = batch.solve()
    assert loss[:4].tolist() == [np.inf, np.inf, 0.0, np.inf]
    assert not gradients[0][:, :4].any()
    alone = Batch(4, 5, 3, 5, ragged=False)
    for name in ("inputs", "targets", "input_lengths", "target_lengths", "upstream"):
        value = getattr(batch, name)
        setattr(alone, name, value[:, 4:] if name == "inputs" else value[4:])
    expected, expected_gradients = alone.solve()
    assert_same_bits(loss[4:], expected)
    assert_same_bits(gradients[0][:, 4:], expected_gradients[0])
    assert_same_bits(gradients[1], expected_gradients[1])
    zeroed, _ = batch.solve(zero_infinity=True)
    assert zeroed[:4].tolist() == [0.0] * 4


def test_padding_is_never_read():
    batch = Batch(9, 4, 5, 4, seed=1)
    loss, gradients = batch.solve(torch.float32)
    for n in range(4):
        batch.inputs[batch.input_lengths[n] :, n] = np.nan
        batch.targets[n, batch.target_lengths[n] :] = -1
    poisoned, poisoned_gradients = batch.solve(torch.float32)
    assert_same_bits(poisoned, loss)
    for gradient, expected in zip(poisoned_gradients, gradients, strict=True):
        assert_same_bits(gradient, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bad_score_poisons_its_own_sample_only(dtype, bad):
    batch = Batch(7, 3, 4, 3, ragged=False)
    batch.upstream[1] = 0  # else the transitions' gradient, which all samples share, is NaN
    loss, gradients = batch.solve(dtype, ends=False)
    batch.inputs[3, 1, 2] = bad
    poisoned, poisoned_gradients = batch.solve(dtype, ends=False)
    others = [0, 2]
    assert torch.isnan(poisoned[1])
    assert_same_bits(poisoned[others], loss[others])
    assert_same_bits(poisoned_gradients[0][:, others], gradients[0][:, others])
    assert_same_bits(poisoned_gradients[1], gradients[1])
    _, all_gradients = batch.solve(dtype, upstream=np.ones(3), ends=False)
    assert torch.isnan(all_gradients[1]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_transitions_poison_all_samples(bad):
    batch = Batch(5, 2, 4, 3, ragged=False)
    batch.transitions[1, 2] = bad
    loss, gradients = batch.solve(ends=False)
    assert torch.isnan(loss).all()
    assert torch.isnan(gradients[1]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_deterministic_linear_and_repeatable(threads, dtype):
    batch = Batch(60, 7, 20, 9, seed=2)
    threads(1)
    loss, gradients = batch.solve(dtype)
    for count in (2, 3):
        threads(count)
        again, gradients_again = batch.solve(dtype)
        assert_same_bits(again, loss)
        for gradient, expected in zip(gradients_again, gradients, strict=True):
            assert_same_bits(gradient, expected)
    _, doubled = batch.solve(dtype, upstream=-2 * batch.upstream)
    for gradient, expected in zip(doubled, gradients, strict=True):
        assert_same_bits(gradient, -2 * expected)

    inputs, transitions = (tensor(x, dtype).requires_grad_() for x in (batch.inputs, batch.transitions))
    total = asg_loss(inputs, batch.targets, transitions, batch.input_lengths, batch.target_lengths, zero_infinity=True)
    first = torch.autograd.grad(total, (inputs, transitions), retain_graph=True)
    second = torch.autograd.grad(total, (inputs, transitions))
    for a, b in zip(first, second, strict=True):
        assert_same_bits(a, b)


def test_only_the_gradients_asked_for_are_computed():
    batch = Batch(8, 3, 4, 3)
    _, gradients = batch.solve(ends=False)
    arguments = (batch.targets, batch.input_lengths, batch.target_lengths)
    for index in range(2):
        leaves = [tensor(batch.inputs), tensor(batch.transitions)]
        leaves[index].requires_grad_()
        asg_loss(leaves[0], arguments[0], leaves[1], *arguments[1:], "none").backward(tensor(batch.upstream))
        assert_same_bits(leaves[index].grad, gradients[index])
        assert leaves[1 - index].grad is None


def test_value_only_calls_keep_nothing_and_give_the_same():
    batch = Batch(50, 6, 12, 8)
    criterion = ASGLoss(12, reduction="none").double()
    with torch.no_grad():
        criterion.transition.copy_(tensor(batch.transitions))
    call = (tensor(batch.inputs), batch.targets, batch.input_lengths, batch.target_lengths)
    with_gradient = criterion(*call)
    assert with_gradient.requires_grad
    assert criterion.eval()(*call).requires_grad
    with torch.no_grad():
        without = criterion(*call)
    assert not without.requires_grad
    assert_same_bits(without, with_gradient)

    lattice = DenseLattice(batch.input_lengths, 12)
    scores = tensor(batch.inputs).transpose(0, 1), tensor(batch.transitions)
    kept = dispatch.kernels_of("numba", "dense").forward(Call(scores, lattice, DenseOptions()), need_gradient=False)
    assert all(plane.size == 0 for plane in kept[2:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_layout_in_memory_changes_nothing(dtype):
    batch = Batch(9, 3, 6, 4)
    loss, gradients = batch.solve(dtype, ends=False)
    time_major = tensor(batch.inputs, dtype)
    variants = {
        "batch_first": (time_major.transpose(0, 1).contiguous().requires_grad_(), True),
        "strided classes": (time_major.permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_(), False),
    }
    for name, (scores, batch_first) in variants.items():
        transitions = tensor(batch.transitions.T.copy(), dtype).T.requires_grad_()
        other = asg_loss(
            scores, batch.targets, transitions, batch.input_lengths, batch.target_lengths, "none",
            batch_first=batch_first,
        )  # fmt: skip
        other.backward(tensor(batch.upstream, dtype))
        assert_same_bits(other, loss, what=name)
        assert_same_bits(scores.grad.transpose(0, 1) if batch_first else scores.grad, gradients[0], what=name)
        assert_same_bits(transitions.grad, gradients[1], what=name)


def test_targets_and_lengths_in_every_form():
    batch = Batch(6, 3, 5, 3, seed=3)
    loss, _ = batch.solve(ends=False)
    flat = np.concatenate([row[:length] for row, length in zip(batch.targets, batch.target_lengths, strict=True)])
    scores, transitions = tensor(batch.inputs), tensor(batch.transitions)
    lengths = (batch.input_lengths.tolist(), torch.from_numpy(batch.target_lengths).int())
    assert_same_bits(asg_loss(scores, torch.from_numpy(flat), transitions, *lengths, "none"), loss)
    full = asg_loss(scores, batch.targets, transitions, reduction="none")
    assert_same_bits(full, asg_loss(scores, batch.targets, transitions, [6] * 3, [3] * 3, "none"))
    one = asg_loss(scores[:, 0], batch.targets[0], transitions, reduction="none")
    assert one.ndim == 0
    assert_same_bits(one, full[0])


def test_no_samples():
    empty = asg_loss(torch.zeros(4, 0, 3), torch.zeros(0, 2, dtype=torch.int64), torch.zeros(3, 3), reduction="none")
    assert empty.shape == (0,)


def test_scale_modes_and_reductions():
    batch = Batch(9, 4, 5, 4, seed=5)
    batch.target_lengths = np.minimum(batch.target_lengths, batch.input_lengths)
    call = (tensor(batch.inputs), batch.targets, tensor(batch.transitions), batch.input_lengths, batch.target_lengths)
    plain = asg_loss(*call, "none")
    frames, labels = tensor(batch.input_lengths), tensor(batch.target_lengths)
    divisors = {
        "none": torch.ones(4), "input_size": frames, "input_size_sqrt": frames.sqrt(),
        "target_size": labels, "target_size_sqrt": labels.sqrt(),
    }  # fmt: skip
    for mode, divisor in divisors.items():
        assert_close(asg_loss(*call, "none", scale_mode=mode), plain / divisor, relative=1e-15)
        assert_close(asg_loss(*call, "sum", scale_mode=mode), (plain / divisor).sum(), relative=1e-14)
        assert_close(asg_loss(*call, scale_mode=mode), (plain / divisor).mean(), relative=1e-14)
    nothing = asg_loss(torch.zeros(0, 1, 2), [[0]], torch.zeros(2, 2), [0], [0], "none", scale_mode="target_size")
    assert nothing.tolist() == [0.0]


def test_repeats_keep_the_published_value_and_warn_once(monkeypatch):
    # All sequences of two frames, and one label stretched over them counted once a step: log 1 - log 1 and less.
    inputs, transitions = torch.zeros(4, 2, 1), torch.zeros(1, 1)
    monkeypatch.setattr("pathsum.torch.asg._repeats_warned", False)
    with pytest.warns(UserWarning, match="the target at sample 1 has two equal neighbours") as caught:
        loss = asg_loss(inputs, [[0, -1], [0, 0]], transitions, [4, 4], [1, 2], "none")
    assert len(caught) == 1
    assert_close(loss, [0, -np.log(3)], absolute=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asg_loss(inputs, [[0, -1], [0, 0]], transitions, [4, 4], [1, 2], "none")


def test_no_repeat_no_warning(monkeypatch):
    monkeypatch.setattr("pathsum.torch.asg._repeats_warned", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asg_loss(torch.zeros(4, 1, 2), [[0, 1, 1]], torch.zeros(2, 2), [4], [2])


def test_the_lattices_have_as_many_paths_as_the_formulas_say():
    dense, chain = pose_asg(np.array([[0, 1, 2]]), np.array([6]), np.array([3]), 4)
    assert dense.num_states == 4
    assert count_paths(chain, 0) == 10  # C(T-1, L-1)
    zeros = torch.zeros(6, 1, 4, dtype=torch.float64)
    loss = asg_loss(zeros, [[0, 1, 2]], zeros.new_zeros(4, 4))
    assert_close(loss.exp(), 4**6 / 10, relative=1e-12)


def test_the_module_is_trainable_and_shaped_as_torch_asg_has_it():
    criterion = ASGLoss(5)
    assert {name: tuple(p.shape) for name, p in criterion.named_parameters()} == {"transition": (5, 5)}
    assert not criterion.transition.any()
    ends = ASGLoss(5, learn_start=True, learn_final=True, scale_mode="input_size")
    assert [name for name, _ in ends.named_parameters()] == ["transition", "start_scores", "final_scores"]
    assert "scale_mode='input_size'" in repr(ends)
    inputs = torch.zeros(6, 2, 5)
    targets = torch.tensor([[0, 1], [2, 3]])
    optimizer = torch.optim.SGD(ends.parameters(), 1.0)
    before = ends(inputs, targets)
    before.backward()
    optimizer.step()
    assert ends(inputs, targets) < before


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("impl", ["numba", "reference"])
def test_a_transition_of_plus_infinity_reaches_the_samples_that_can_take_it(impl):
    transitions = torch.zeros(4, 4)
    transitions[2, 1] = torch.inf
    lengths = ([2, 5, 1], [2, 2, 1])  # too short to take both labels and more; long enough; no arc at all
    losses = asg_loss(
        torch.zeros(5, 3, 4), [[0, 1], [1, 2], [0, 0]], transitions, *lengths, reduction="none", impl=impl
    )
    assert losses.isnan().tolist() == [True, True, False]


def test_parameters_are_set_again():
    with torch.device("meta"):
        criterion = ASGLoss(5, learn_start=True, learn_final=True)
    criterion = criterion.to_empty(device="cpu")
    for parameter in criterion.parameters():
        torch.nn.init.ones_(parameter)
    criterion.reset_parameters()
    assert [(tuple(p.shape), p.requires_grad, p.any().item()) for p in criterion.parameters()] == [
        ((5, 5), True, False),
        ((5,), True, False),
        ((5,), True, False),
    ]
