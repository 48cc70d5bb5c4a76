"""The drop-in for torch_asg: the peer's own numbers, its README's example first, and those of its tests."""

import math

import pytest
import torch

from pathsum.compat.torch_asg import FAC, FCC, ASGLoss
from pathsum.testing import assert_close
from transducer_example import load

# The peer's test_asg_4: 3 samples of 5 frames and 6 labels, the targets of 5, 3 and 4 labels.
INPUTS = [
    [-0.4340, -0.0254, 0.3667, 0.4180, -0.3805, -0.1707, 0.1060, 0.3631, -0.1122, -0.3825, -0.0031, -0.3801,
     0.0443, -0.3795, 0.3194, -0.3130, 0.0094, 0.1560, 0.1252, 0.2877, 0.1997, -0.4554, 0.2774, -0.2526,
     -0.4001, -0.2402, 0.1295, 0.0172, 0.1805, -0.3299],
    [0.3298, -0.2259, -0.0959, 0.4909, 0.2996, -0.2543, -0.2863, 0.3239, -0.3988, 0.0732, -0.2107, -0.4739,
     -0.0906, 0.0480, -0.1301, 0.3975, -0.3317, -0.1967, 0.4372, -0.2006, 0.0094, 0.3281, 0.1873, -0.2945,
     0.2399, 0.0320, -0.3768, -0.2849, -0.2248, 0.3186],
    [0.0225, -0.3867, -0.1929, -0.2904, -0.4958, -0.2533, 0.4001, -0.1517, -0.2799, -0.2915, 0.4198, 0.4506,
     0.1446, -0.4753, -0.0711, 0.2876, -0.1851, -0.1066, 0.2081, -0.1190, -0.3902, -0.1668, 0.1911, -0.2848,
     -0.3846, 0.1175, 0.1052, 0.2172, -0.0362, 0.3055],
]  # fmt: skip
TARGETS = torch.tensor([[2, 1, 5, 1, 3], [4, 3, 5, 0, 0], [3, 2, 2, 1, 0]])
LENGTHS = torch.tensor([5, 5, 5]), torch.tensor([5, 3, 4])
LOSSES = [7.7417464256287, 6.4200420379639, 8.2780694961548]
FIRST_INPUT_GRADIENT = [
    [0.1060, 0.1595, -0.7639, 0.2485, 0.1118, 0.1380], [0.1915, -0.7524, 0.1539, 0.1175, 0.1717, 0.1178],
    [0.1738, 0.1137, 0.2288, 0.1216, 0.1678, -0.8057], [0.1766, -0.7923, 0.1902, 0.0988, 0.2056, 0.1210],
    [0.1212, 0.1422, 0.2059, -0.8160, 0.2166, 0.1300],
]  # fmt: skip
TRANSITION_GRADIENT = [
    [0.3990, 0.3396, 0.3486, 0.3922, 0.3504, 0.3155], [0.3666, 0.0116, -1.6678, 0.3737, 0.3361, -0.7152],
    [0.3468, 0.3163, -1.1583, -0.6803, 0.3216, 0.2722], [0.3694, -0.6688, 0.3047, -0.8531, -0.6571, 0.2870],
    [0.3866, 0.3321, 0.3447, 0.3664, -0.2163, 0.3039], [0.3640, -0.6943, 0.2988, -0.6722, 0.3215, -0.1860],
]  # fmt: skip


def vector():
    return torch.tensor(INPUTS).view(3, 5, 6).transpose(0, 1).requires_grad_()


@pytest.mark.filterwarnings("ignore:asg_loss. the target")
def test_the_numbers_of_wav2letter():
    inputs, criterion = vector(), ASGLoss(6, reduction="none")
    loss = criterion(inputs, TARGETS, *LENGTHS)
    loss.sum().backward()
    # The inputs are printed with four decimals, two of them in each frame's share of the loss; so are the gradients.
    assert_close(loss, LOSSES, absolute=5 * 2 * 5e-5)
    assert_close(inputs.grad[:, 0], FIRST_INPUT_GRADIENT, absolute=6e-5)
    assert_close(criterion.transition.grad, TRANSITION_GRADIENT, absolute=6e-5)


@pytest.mark.filterwarnings("ignore:asg_loss. the target")
def test_reductions():
    losses = ASGLoss(6, reduction="none")(vector(), TARGETS, *LENGTHS)
    expected = {"mean": losses.mean(), "sum": losses.sum(), None: losses}
    for reduction, value in expected.items():
        assert_close(ASGLoss(6, reduction=reduction)(vector(), TARGETS, *LENGTHS), value, relative=1e-6)


# Of the peer itself. The first is the example of its README, the second has samples of less than full length.
@pytest.mark.parametrize("vector", load("torch_asg"))
def test_torch_asg_s_own_numbers(vector):
    inputs, integers = (
        torch.tensor(vector["logits"], requires_grad=True),
        ("targets", "input_lengths", "target_lengths"),
    )
    criterion = ASGLoss(7, gpu_no_stream_impl=False, forward_only=False, **vector["options"])
    assert [name for name, _ in criterion.named_parameters()] == ["transition"]
    loss = criterion.forward(inputs, *(torch.tensor(vector[name]) for name in integers))
    loss.sum().backward()
    assert_close(loss, vector["losses"], relative=1e-6)
    assert_close(inputs.grad, vector["gradient"], absolute=1e-6)
    assert_close(criterion.transition.grad, vector["transition_gradient"], absolute=1e-6)


@pytest.mark.parametrize("options", [{"forward_only": True}, {"gpu_no_stream_impl": True}], ids=str)
def test_on_the_cpu_the_options_change_nothing(options):
    inputs, targets = torch.randn(4, 1, 3, requires_grad=True), torch.tensor([[0, 1]])
    plain, other = ASGLoss(3)(inputs, targets), ASGLoss(3, **options).eval()(inputs, targets)
    assert torch.equal(plain, other)
    assert other.requires_grad


def test_wide_targets_are_cut_for_the_whole_batch():
    inputs = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([[0, 1, 2, 3], [2, 3, 0, 1]])
    criterion = ASGLoss(4, reduction="none")
    expected = criterion(inputs, targets[:, :3])
    assert torch.equal(criterion(inputs, targets), expected)
    assert torch.equal(criterion(inputs, targets, torch.tensor([3, 3]), torch.tensor([4, 4])), expected)
    # By sample nothing is cut: a target that is longer than its own input is infeasible.
    lengths = torch.tensor([3, 2]), torch.tensor([3, 3])
    assert criterion(inputs, targets[:, :3], *lengths).isinf().tolist() == [False, True]


def test_the_two_pathsums():
    # The peer's test_fcc_2 and test_fac_2: 4 labels of probability 1/4 in each of 3 frames; and log 0 among the inputs.
    inputs = torch.full((3, 1, 4), math.log(0.25), dtype=torch.float64)
    transition = torch.zeros(4, 4, dtype=torch.float64)
    arguments = transition, inputs, torch.tensor([[0, 1]]), torch.tensor([3]), torch.tensor([2])
    assert_close(FCC.apply(*arguments), [0.0], absolute=1e-12)
    assert_close(FAC.apply(*arguments), [-math.log(32)], absolute=1e-12)
    certain = torch.eye(2, dtype=torch.float64)[[0, 1, 0]].log()[:, None]
    arguments = (
        torch.zeros(2, 2, dtype=torch.float64),
        certain,
        torch.tensor([[0]]),
        torch.tensor([3]),
        torch.tensor([1]),
    )
    assert_close(FCC.apply(*arguments), [0.0], absolute=1e-12)
    assert FAC.apply(*arguments).tolist() == [-math.inf]


@pytest.mark.parametrize("function", [FCC, FAC])
def test_the_two_pathsums_have_their_gradients(function):
    random = torch.Generator().manual_seed(2)
    inputs = torch.rand(5, 3, 3, dtype=torch.float64, generator=random).requires_grad_()
    transition = torch.rand(3, 3, dtype=torch.float64, generator=random).requires_grad_()
    integers = torch.tensor([[1, 2, 1], [0, 1, 0], [1, 0, 0]]), torch.tensor([5, 4, 5]), torch.tensor([3, 2, 1])
    assert torch.autograd.gradcheck(lambda x, y: function.apply(y, x, *integers), (inputs, transition))
