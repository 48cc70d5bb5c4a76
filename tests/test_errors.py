"""One test a message: what it says, of which class it is, and that no kernel has run by then."""

from unittest import mock

import numpy as np
import pytest
import torch

import pathsum
from pathsum.kernels.protocol import Kernels
from pathsum.torch import ctc_loss, rnnt_loss, rnnt_packed_loss, simple_ctc_loss
from support import IMPLEMENTATIONS

CHAINS = {"ctc_loss": ctc_loss, "simple_ctc_loss": simple_ctc_loss}
GRIDS = {"rnnt_loss": rnnt_loss, "rnnt_packed_loss": rnnt_packed_loss}
FUNCTIONS = CHAINS | GRIDS
ALL = list(FUNCTIONS)


def arguments(function):
    """A legal call with two samples of 4 and 3 frames, 2 and 1 labels, five classes, blank 0."""
    named = {"targets": torch.tensor([[1, 2], [3, 4]]), "target_lengths": torch.tensor([2, 1]), "blank": 0}
    lengths = torch.tensor([4, 3])
    if function in CHAINS:
        return {"log_probs": torch.zeros(4, 2, 5), "input_lengths": lengths} | named
    shape = (2, 4, 3, 5) if function == "rnnt_loss" else (4 * 3 + 3 * 2, 5)
    return {"logits": torch.zeros(shape), "logit_lengths": lengths} | named


def scores_of(function):
    return "log_probs" if function in CHAINS else "logits"


def lengths_of(function):
    return "input_lengths" if function in CHAINS else "logit_lengths"


@pytest.fixture
def kernels_run():
    """For the tests of what is raised by kernels, or behind them."""


@pytest.fixture(autouse=True)
def no_kernel_runs(monkeypatch, request):
    if "kernels_run" in request.fixturenames:
        return
    from pathsum import dispatch

    def ran(*_, **__):
        pytest.fail("a kernel ran before the check")

    told = {"losses": ran, "reads_on_device": False}
    monkeypatch.setattr(
        dispatch,
        "kernels_of",
        lambda impl, _: mock.Mock(Kernels, impl=impl, own_derivatives=impl != "reference", **told),
    )


def raises(error, function, message, **changes):
    """The call with the changes raises the error, with exactly this message."""
    for impl in ("auto", *IMPLEMENTATIONS):
        with pytest.raises(error) as caught:
            FUNCTIONS[function](**arguments(function) | {"impl": impl} | changes)
        assert str(caught.value) == f"{function}: {message}"
        builtin = TypeError if error is pathsum.InvalidTypeError else ValueError
        assert isinstance(caught.value, builtin)
        assert caught.value.function == function
        assert caught.value.argument == message.split()[0]
    return caught.value


VALUE, TYPE = pathsum.InvalidValueError, pathsum.InvalidTypeError


def test_the_legal_call_reaches_a_kernel():
    # Else the tests below would prove nothing about the order.
    for function, call in FUNCTIONS.items():
        for impl in IMPLEMENTATIONS:
            with pytest.raises(pytest.fail.Exception, match="a kernel ran"):
                call(**arguments(function), impl=impl)


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("scores, got", [(torch.zeros(4, 2, 5, dtype=torch.int64), "int64"),
                                         (torch.zeros(4, 2, 5, dtype=torch.complex64), "complex64"),
                                         ([[[0.0]]], "list"),
                                         (np.zeros((4, 2, 5), int), "a NumPy ndarray of int64")])  # fmt: skip
def test_dtype_of_scores(function, scores, got):
    name = scores_of(function)
    raises(TYPE, function, f"{name} must have dtype float32, float64, bfloat16, float16; got {got}", **{name: scores})


@pytest.mark.parametrize("function, shape, rule", [
    ("ctc_loss", (5,), "(T, N, C) or (T, C)"),
    ("simple_ctc_loss", (4, 2, 5, 1), "(T, N, C) or (T, C)"),
    ("rnnt_loss", (4, 2, 2, 2, 5), "(N, T, U+1, V) or (T, U+1, V)"),
    ("rnnt_loss", (2, 4, 0, 5), "(N, T, U+1, V)"),
    ("rnnt_packed_loss", (2, 4, 3, 5), "(rows, V)"),
])  # fmt: skip
def test_rank_of_scores(function, shape, rule):
    name = scores_of(function)
    message = f"{name} must have shape {rule}; got shape {shape}"
    raises(VALUE, function, message, **{name: torch.zeros(shape)})


def test_rank_of_scores_batch_first():
    message = "log_probs must have shape (N, T, C) or (T, C); got shape (5,)"
    raises(VALUE, "ctc_loss", message, log_probs=torch.zeros(5), batch_first=True)


@pytest.mark.parametrize("function", ALL)
def test_no_classes(function):
    name = scores_of(function)
    empty = arguments(function)[name][..., :0]
    raises(VALUE, function, f"{name} must have at least one class; got shape {tuple(empty.shape)}", **{name: empty})


@pytest.mark.parametrize("function", ALL)
def test_blank_is_an_int_in_range(function):
    raises(VALUE, function, "blank must lie in [-5, 5); got 5", blank=5)
    raises(VALUE, function, "blank must lie in [-5, 5); got -6", blank=-6)
    raises(TYPE, function, "blank must be an int; got float", blank=0.0)
    raises(TYPE, function, "blank must be an int; got bool", blank=True)


@pytest.mark.parametrize("function", ALL)
def test_reduction_is_known(function):
    raises(VALUE, function, "reduction must be one of none, mean, sum; got 'average'", reduction="average")
    raises(VALUE, function, "reduction must be one of none, mean, sum; got None", reduction=None)


@pytest.mark.parametrize("function", GRIDS)
def test_numbers_are_finite_numbers(function):
    raises(TYPE, function, "clamp must be a number; got str", clamp="1")
    raises(TYPE, function, "fastemit_lambda must be a number; got bool", fastemit_lambda=True)
    raises(VALUE, function, "clamp must be finite; got nan", clamp=float("nan"))
    raises(VALUE, function, "clamp must be finite; got inf", clamp=float("inf"))
    raises(VALUE, function, "fastemit_lambda must be finite and at least 0; got -0.5", fastemit_lambda=-0.5)
    raises(VALUE, function, "fastemit_lambda must be finite and at least 0; got inf", fastemit_lambda=float("inf"))


@pytest.mark.parametrize("make", [torch.tensor, np.array, list], ids=["tensor", "array", "list"])
@pytest.mark.parametrize("function", ALL)
def test_dtype_of_integers(function, make):
    for name, value in (("targets", [[1.0, 2.0], [3.0, 4.0]]), (lengths_of(function), [4.0, 3.0]),
                        ("target_lengths", [2.0, 1.0])):  # fmt: skip
        got = "float32" if make is torch.tensor else "float64"
        raises(TYPE, function, f"{name} must have an integer dtype; got {got}", **{name: make(value)})
        raises(TYPE, function, f"{name} must have an integer dtype; got bool", **{name: make([True, False])})


@pytest.mark.parametrize("function", ALL)
def test_rank_of_integers(function):
    name = lengths_of(function)
    raises(VALUE, function, "targets must have rank 1 or 2; got shape (1, 2, 2)", targets=torch.ones(1, 2, 2).long())
    raises(VALUE, function, f"{name} must have rank 1; got shape (2, 1)", **{name: torch.tensor([[4], [3]])})
    raises(VALUE, function, "target_lengths must have rank 1; got shape ()", target_lengths=torch.tensor(2))


@pytest.mark.parametrize("function", ALL)
def test_lists_of_lists_are_rectangular(function):
    message = "targets must be a rectangular array of integers; got [[1, 2], [3]]"
    raises(VALUE, function, message, targets=[[1, 2], [3]])


@pytest.mark.parametrize("function", ALL)
def test_one_length_a_sample(function):
    name = lengths_of(function)
    if function != "rnnt_packed_loss":  # there the lengths say how many samples there are
        message = f"{name} must have one entry a sample, N = 2; got 3 entries"
        raises(VALUE, function, message, **{name: torch.tensor([4, 3, 3])})
    message = "target_lengths must have one entry a sample, N = 2; got 1 entries"
    raises(VALUE, function, message, target_lengths=torch.tensor([2]))
    message = "targets must have one row a sample, N = 2; got 3 rows"
    raises(VALUE, function, message, targets=torch.ones(3, 2, dtype=torch.int64))


@pytest.mark.parametrize("function", ["ctc_loss", "simple_ctc_loss", "rnnt_loss"])
def test_lengths_lie_within_the_frames(function):
    name = lengths_of(function)
    for length in (5, -1):
        message = f"{name} must lie in [0, T] with T = 4; got {length} at sample 1"
        error = raises(VALUE, function, message, **{name: torch.tensor([4, length])})
        assert error.sample == 1


def test_lengths_of_packed_rows_are_not_negative():
    message = "logit_lengths must be at least 0; got -3 at sample 1"
    raises(VALUE, "rnnt_packed_loss", message, logit_lengths=torch.tensor([4, -3]))
    message = "target_lengths must be at least 0; got -1 at sample 0"
    raises(VALUE, "rnnt_packed_loss", message, target_lengths=torch.tensor([-1, 1]))


@pytest.mark.parametrize("function", CHAINS)
def test_target_lengths_are_not_negative(function):
    message = "target_lengths must be at least 0; got -1 at sample 1"
    raises(VALUE, function, message, target_lengths=torch.tensor([2, -1]))


def test_target_lengths_lie_within_the_rows_of_the_logits():
    size = "the number of labels scored"
    message = f"target_lengths must lie in [0, {size}] with {size} = 2; got 3 at sample 0"
    raises(VALUE, "rnnt_loss", message, targets=torch.ones(2, 3).long(), target_lengths=torch.tensor([3, 1]))


@pytest.mark.parametrize("function", ALL)
def test_target_lengths_lie_within_the_targets(function):
    message = "target_lengths must lie in [0, the width of targets] with the width of targets = 1; got 2 at sample 0"
    raises(VALUE, function, message, targets=torch.tensor([[1], [2]]))


@pytest.mark.parametrize("function", ALL)
def test_concatenated_targets_add_up(function):
    message = "targets must have sum(target_lengths) = 3 entries when concatenated; got 4 entries"
    raises(VALUE, function, message, targets=torch.tensor([1, 2, 3, 4]))


@pytest.mark.parametrize("function", ALL)
def test_labels_are_classes(function):
    for label in (5, -1):
        message = f"targets must lie in [0, C) with C = 5; got {label} at sample 1"
        error = raises(VALUE, function, message, targets=torch.tensor([[1, 2], [label, 0]]))
        assert error.sample == 1


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("blank", [2, -3])
def test_labels_are_no_blanks(function, blank):
    message = "targets must not contain the blank, 2; got 2 at sample 0"
    raises(VALUE, function, message, blank=blank)


@pytest.mark.parametrize("num_rows", [17, 19, 0])
def test_packed_rows_add_up(num_rows):
    message = f"logits must have sum(T_n * (U_n + 1)) = 18 rows; got {num_rows} rows"
    raises(VALUE, "rnnt_packed_loss", message, logits=torch.zeros(num_rows, 5))


@pytest.mark.parametrize("function", ALL)
def test_an_unknown_implementation(function):
    with pytest.raises(VALUE) as caught:
        FUNCTIONS[function](**arguments(function), impl="cuda")
    assert str(caught.value) == f"{function}: impl must be one of auto, reference, numba, triton; got 'cuda'"
    assert caught.value.argument == "impl"


@pytest.mark.parametrize("function", ALL)
def test_an_implementation_that_cannot_run_there_raises_and_nothing_falls_back(function):
    changes = {scores_of(function): arguments(function)[scores_of(function)].to("meta")}
    with pytest.raises(pathsum.ImplementationError) as caught:
        FUNCTIONS[function](**arguments(function) | changes, impl="numba")
    assert str(caught.value) == f"{function}: impl='numba' runs on the CPU; the scores are on meta"
    assert isinstance(caught.value, RuntimeError)


@pytest.mark.parametrize("function", GRIDS)
def test_overwriting_logits_needs_logits_of_their_own_memory_and_the_kernels(function):
    def refuses(message, **changes):
        with pytest.raises(VALUE) as caught:
            FUNCTIONS[function](**arguments(function) | changes, overwrite_logits=True)
        assert str(caught.value) == f"{function}: overwrite_logits must {message}; got True"

    refuses("be False with impl='reference'", impl="reference")
    refuses("be False with fused_log_softmax=False", fused_log_softmax=False)
    logits = arguments(function)["logits"]
    refuses("be False where logits share memory", logits=logits[..., :1].expand(logits.shape))


@pytest.mark.usefixtures("kernels_run")
@pytest.mark.parametrize("function", GRIDS)
def test_a_gradient_that_was_written_over_the_logits_is_gone(function):
    inputs = arguments(function)
    logits = inputs.pop("logits").requires_grad_()
    loss = FUNCTIONS[function](logits, **inputs, overwrite_logits=True)
    loss.backward(retain_graph=True)
    with pytest.raises(pathsum.GradientConsumedError, match="overwrite_logits") as caught:
        loss.backward()
    assert isinstance(caught.value, RuntimeError)


@pytest.mark.usefixtures("kernels_run")
@pytest.mark.parametrize("function", [*CHAINS, *GRIDS])
def test_a_third_derivative_of_the_kernels_raises_and_is_never_zero(function):
    inputs = arguments(function)
    name = scores_of(function)
    scores = inputs.pop(name).requires_grad_()
    loss = FUNCTIONS[function](**{name: scores}, **inputs, impl="numba")
    (gradient,) = torch.autograd.grad(loss, scores, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), scores, create_graph=True)
    with pytest.raises(pathsum.NotDifferentiableError, match="two derivatives; impl='reference'") as caught:
        second.square().sum().backward()
    assert isinstance(caught.value, RuntimeError)


@pytest.mark.usefixtures("kernels_run")
@pytest.mark.parametrize("function", ALL)
def test_the_reference_differentiates_what_the_kernels_refuse(function):
    inputs = arguments(function)
    name = scores_of(function)
    scores = inputs.pop(name).requires_grad_()
    loss = FUNCTIONS[function](**{name: scores}, **inputs, impl="reference", fused_log_softmax=True)
    (gradient,) = torch.autograd.grad(loss, scores, create_graph=True)
    gradient.square().sum().backward()
    assert scores.grad.isfinite().all()
    assert scores.grad.any()
