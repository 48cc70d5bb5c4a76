"""The matrix of losses and transforms cell by cell, the page that shows it, and torch's own checks of operators."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import transform_cells
import transforms
from pathsum.errors import NotDifferentiableError
from pathsum.testing import assert_close
from pathsum.torch import ctc_loss, rnnt_loss, tdt_loss

pinned = pytest.mark.skipif(
    not torch.__version__.startswith(transform_cells.PINNED),
    reason=f"the matrix is that of torch {transform_cells.PINNED}; this is {torch.__version__}",
)


@pytest.fixture(autouse=True)
def forget_graphs():
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pinned
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("impl, transform, name", transform_cells.CELLS)
def test_cell(impl, transform, name):
    if "inductor" in transform and not shutil.which("g++"):
        pytest.skip("inductor needs g++, which is not installed")
    expected = transform_cells.state(name, transform, impl)
    if expected is True:
        transforms.call(name, transform, impl)
        return
    with pytest.raises(Exception) as caught:
        transforms.call(name, transform, impl)
    assert type(caught.value).__name__ in expected.errors


def test_a_wrong_cell_fails():
    called = transforms.Called(transforms.CASES["ctc_loss"], "numba", transforms.truth("simple_ctc_loss"))
    for transform in ("backward", "func.grad", "func.jvp, forward_ad"):
        with pytest.raises(AssertionError):
            transforms.TRANSFORMS[transform](called)


def test_the_page_is_made_of_the_cells():
    page = Path(__file__).parent.parent / "docs" / "transforms.md"
    assert page.read_text() == transform_cells.page(), "run: python tests/transform_cells.py"


class Recorder(TorchDispatchMode):
    """The arguments with which each operator of pathsum was first called."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "pathsum":
            self.calls.setdefault(function, args)
        return function(*args, **(kwargs or {}))


def test_torch_s_own_checks_pass_for_every_operator():
    recorder = Recorder()
    for name, case in transforms.CASES.items():
        leaves = tuple(tensor.clone().requires_grad_() for tensor in case.tensors)
        twice = transform_cells.state(name, "double backward", "numba") is True
        with recorder:
            losses = case.loss(leaves, case.integers, "numba")
            gradients = torch.autograd.grad(losses.sum(), leaves, create_graph=twice)
            if twice:
                torch.autograd.grad(gradients, leaves, transforms.truth(name).tangents)
    case = transforms.CASES["rnnt_loss"]
    for options in ({"rnnt_type": "modified"}, {"impl": "reference"}):
        logits = case.tensors[0].clone().requires_grad_()
        with recorder:
            rnnt_loss(logits, *case.integers, clamp=0.1, **options).backward()
    assert len(recorder.calls) > 15
    for operator, arguments in recorder.calls.items():
        arguments = tuple(
            argument.detach().clone().requires_grad_(argument.is_floating_point() and position < 4)
            if isinstance(argument, torch.Tensor)
            else argument
            for position, argument in enumerate(arguments)
        )
        # A Hessian-vector product has no derivative, which this last check would take.
        utils = ["test_schema", "test_autograd_registration", "test_faketensor"]
        torch.library.opcheck(operator, arguments, test_utils=utils)


@pytest.mark.filterwarnings("ignore")
def test_compiled_integers_are_checked_when_the_graph_runs():
    loss = torch.compile(ctc_loss, fullgraph=True, backend="aot_eager")
    log_probs, lengths = torch.randn(3, 1, 3), (torch.tensor([3]), torch.tensor([1]))
    expected = ctc_loss(log_probs, torch.tensor([[1]]), *lengths)
    assert_close(loss(log_probs, torch.tensor([[1]]), *lengths), expected, absolute=1e-6)
    with pytest.raises(ValueError, match="ctc_loss: targets must not contain the blank, 0; got 0 at sample 0"):
        loss(log_probs, torch.tensor([[0]]), *lengths)
    with pytest.raises(ValueError, match=r"ctc_loss: input_lengths must lie in \[0, T\] with T = 3; got 4 at sample 0"):
        loss(log_probs, torch.tensor([[1]]), torch.tensor([4]), torch.tensor([1]))


@pytest.mark.filterwarnings("ignore")
def test_lists_and_concatenated_targets_compile():
    log_probs = torch.randn(4, 2, 3)
    integers = ([1, 2, 1], [4, 3], [2, 1])
    expected = ctc_loss(log_probs, *integers)
    for given in (integers, tuple(torch.tensor(value) for value in integers)):
        found = torch.compile(ctc_loss, fullgraph=True, backend="aot_eager")(log_probs, *given)
        assert_close(found, expected, absolute=1e-6)


@pytest.mark.parametrize("name", [name for name, case in transforms.CASES.items() if len(case.tensors) < 4])
def test_vmap_maps_over_targets_and_lengths(name):
    case = transforms.CASES[name]
    if name == "rnnt_packed_loss":
        pytest.skip("slices of other lengths would have other numbers of rows")
    copies = [tuple(tensor + b for tensor in case.tensors) for b in range(2)]
    targets, lengths, target_lengths = case.integers
    # The second slice is shorter, in frames and in labels, and has its samples the other way round.
    slices = [case.integers, (targets.flip(0), (lengths - 1).clamp(min=2), (target_lengths.flip(0) - 1).clamp(min=1))]

    def total(tensors, integers):
        return case.loss(tensors, integers, "numba").sum()

    def both(function):
        tensors, integers = (tuple(map(torch.stack, zip(*parts, strict=True))) for parts in (copies, slices))
        return torch.func.vmap(function)(tensors, integers)

    expected = [total(*pair) for pair in zip(copies, slices, strict=True)]
    assert_close(both(total), torch.stack(expected), absolute=1e-9)
    gradients = [torch.func.grad(total)(*pair) for pair in zip(copies, slices, strict=True)]
    for one, others in zip(both(torch.func.grad(total)), zip(*gradients, strict=True), strict=True):
        assert_close(one, torch.stack(others), absolute=1e-9)


def test_vmap_maps_over_single_samples():
    scores = torch.randn(3, 5, 4)
    targets = torch.tensor([[1, 2], [3, 3], [2, 1]])
    lengths, target_lengths = torch.tensor([5, 4, 5]), torch.tensor([2, 2, 2])

    def one(scores, targets, length, target_length):
        return ctc_loss(scores, targets, length, target_length, fused_log_softmax=True, reduction="sum")

    losses = torch.func.vmap(one)(scores, targets, lengths, target_lengths)
    expected = ctc_loss(
        scores, targets, lengths, target_lengths, fused_log_softmax=True, batch_first=True, reduction="none"
    )
    assert_close(losses, expected, absolute=1e-6)


def test_third_derivatives_and_those_of_reweighted_gradients_raise():
    case = transforms.CASES["rnnt_loss"]
    (logits,) = case.tensors

    def first(logits):
        return torch.func.grad(lambda x: case.loss((x,), case.integers, "numba").sum())(logits).square().sum()

    def third(logits):
        return torch.func.grad(first)(logits).square().sum()

    with pytest.raises(NotDifferentiableError, match="two derivatives"):
        torch.func.grad(third)(logits)
    for options in ({"clamp": 0.1}, {"fastemit_lambda": 0.1}):
        for loss, head in ((rnnt_loss, {}), (rnnt_loss, {"rnnt_type": "modified"}), (tdt_loss, {"durations": [0, 1]})):

            def total(x, loss=loss, options=options, head=head):
                heads = (x, x[..., :2]) if loss is tdt_loss else (x,)
                return loss(*heads, *case.integers, reduction="sum", **head, **options)

            gradient = torch.func.grad(total)
            assert gradient(logits).isfinite().all()
            with pytest.raises(NotDifferentiableError, match="re-weighted"):
                torch.func.jvp(gradient, (logits,), (logits,))
            with pytest.raises(NotDifferentiableError, match="re-weighted"):
                torch.func.jacrev(gradient)(logits)


def test_overwriting_is_refused_inside_a_transform():
    case = transforms.CASES["rnnt_loss"]
    with pytest.raises(ValueError, match=r"overwrite_logits must be False under torch.compile and torch.func"):
        torch.func.grad(lambda x: rnnt_loss(x, *case.integers, overwrite_logits=True))(case.tensors[0])


def test_plain_calls_do_not_import_the_compiler():
    code = """
        import sys, torch
        from pathsum.torch import ctc_entropy, ctc_loss
        from pathsum.torch.second_order import hvp
        def loss(x):
            return ctc_loss(x, [[1]], [3], [1])
        x = torch.zeros(3, 1, 2, requires_grad=True)
        loss(x).backward(create_graph=True)
        hvp(loss, x, x)
        ctc_entropy(x, [[1]], [3], [1]).backward()
        assert not {"torch._dynamo", "torch._inductor"} & sys.modules.keys()
        print("ran")
    """
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(line[8:] for line in code.splitlines())],
        capture_output=True, text=True, check=False, env={"PYTHONPATH": ":".join(sys.path), "PATH": ""},
    )  # fmt: skip
    assert done.stdout.split() == ["ran"], done.stderr
