"""Memory that nobody cleaned, threads, forks, kernels run uncompiled, gradients written over their logits."""

import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch

from pathsum.errors import GradientConsumedError
from pathsum.testing import assert_close, assert_same_bits, chain_inputs, grid_inputs, pack_rows
from pathsum.torch import rnnt_loss, rnnt_packed_loss
from support import CHAIN, assert_same, solve, tensor

LOSSES = [*CHAIN, "rnnt", "rnnt_packed"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def case(loss, dtype=torch.float32, seed=0, size=9):
    """Function, scores and integers of three ragged samples, one of them without labels."""
    if loss in CHAIN:
        inputs = chain_inputs(size, 3, 5, 4, seed=seed)
        inputs.target_lengths[2] = 0
        return CHAIN[loss], tensor(inputs.logits, dtype), inputs[1:]
    inputs = grid_inputs(3, size, 4, 5, blank=0, seed=seed)
    inputs.target_lengths[2] = 0
    if loss == "rnnt":
        return rnnt_loss, tensor(inputs.logits, dtype), inputs[1:]
    return rnnt_packed_loss, tensor(pack_rows(inputs.logits, *inputs[2:]), dtype), inputs[1:]


def run(function, scores, integers, **options):
    return solve(function, scores, *integers, **{"blank": 0, "fused_log_softmax": True} | options)


def poisoned(make, fill):
    """An allocator whose memory holds NaN, or where there is none the fill."""

    def allocate(*arguments, **keywords):
        array = make(*arguments, **keywords)
        if array.dtype.kind == "f":
            array.fill(np.nan)
        elif array.dtype.kind in "iu":
            array.fill(fill & np.iinfo(array.dtype).max)
        return array

    return allocate


@pytest.mark.parametrize("fused", [False, True], ids=["log_probs", "logits"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_uninitialised_memory_is_never_read(loss, dtype, fused, monkeypatch):
    function, scores, integers = case(loss, dtype)
    expected = run(function, scores, integers, fused_log_softmax=fused)
    for fill in (-1, 0x5555555555555555):
        with monkeypatch.context() as patch:
            for name in ("empty", "empty_like"):
                patch.setattr(np, name, poisoned(getattr(np, name), fill))
            assert np.isnan(np.empty(3)).all()
            assert_same(run(function, scores, integers, fused_log_softmax=fused), expected)


# The same few calls in this process, compiled, and in another, uncompiled: in the latter the memory that kernels
# themselves take is poisoned too.
UNCOMPILED = """
import json, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import numba
assert numba.config.DISABLE_JIT
import test_robustness
for name in ("empty", "empty_like"):
    setattr(np, name, test_robustness.poisoned(getattr(np, name), -1))
print(json.dumps(test_robustness.tiny_results()))
"""


def tiny_results():
    results = []
    for loss in LOSSES:
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            for fused in (False, True):
                function, scores, integers = case(loss, dtype, size=5)
                solved = run(function, scores, integers, fused_log_softmax=fused, impl="numba")
                results.append([solved.loss.tolist(), solved.gradient.double().flatten().tolist()])
        for extreme in (1e9, float("-inf")):
            function, scores, integers = case(loss, torch.float32, size=5)
            scores.flatten()[:5] = torch.tensor([0.0, extreme, -extreme, 1.0, extreme]).nan_to_num(
                0, 1e9, float("-inf")
            )
            solved = run(function, scores, integers, impl="numba")
            results.append([solved.loss.tolist(), solved.gradient.double().flatten().tolist()])
    for options in ({"fastemit_lambda": 0.5}, {"clamp": 0.125}):
        solved = run(*case("rnnt", torch.float32, size=5), **options)
        results.append([solved.loss.tolist(), solved.gradient.flatten().tolist()])
    return results


def test_uncompiled_kernels_give_the_same_values():
    here = os.path.dirname(__file__)
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", UNCOMPILED, here], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    uncompiled, compiled = json.loads(done.stdout), tiny_results()
    assert len(uncompiled) == len(compiled)
    for ours, theirs in zip(compiled, uncompiled, strict=True):
        # The compiler fuses and reorders: a unit of bfloat16 in the gradient is the most that may come of it.
        assert_close(theirs[0], ours[0], relative=1e-6, absolute=1e-6)
        assert_close(theirs[1], ours[1], relative=2**-7, absolute=1e-6)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_several_python_threads_at_once(num_threads, threads):
    threads(num_threads)
    cases = [case(loss, dtype, seed, size=60) for loss in LOSSES for dtype in DTYPES for seed in range(2)]
    expected = [run(*one) for one in cases]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            for result, alone in zip(pool.map(lambda one: run(*one), cases), expected, strict=True):
                assert_same(result, alone)


def in_child(connection, num_threads):
    torch.set_num_threads(num_threads)
    connection.send([tuple(array.double().numpy() for array in run(*case(loss))) for loss in LOSSES])
    connection.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_forked_child_after_use_in_the_parent(num_threads, threads):
    threads(2)
    expected = [run(*case(loss, size=9)) for loss in LOSSES]
    run(*case("ctc", size=300))  # enough work for the parent to have started its threads
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads is what is tested
        child = context.Process(target=in_child, args=(sender, num_threads))
        child.start()
    assert receiver.poll(60), "the child hangs"
    for (loss, gradient), ours in zip(receiver.recv(), expected, strict=True):
        assert_same_bits(loss, ours.loss.double().numpy())
        assert_same_bits(gradient, ours.gradient.double().numpy())
    child.join(60)
    assert child.exitcode == 0
    assert_same(run(*case("ctc", size=9)), expected[0])  # and the parent goes on


def locks():
    """Every lock that a module of the library holds, by module and name."""
    kinds = (type(threading.Lock()), type(threading.RLock()))
    modules = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "pathsum"}
    return {
        (name, key): value for name, module in modules.items() for key, value in vars(module).items()
        if isinstance(value, kinds)
    }  # fmt: skip


def free_locks(connection):
    connection.send([place for place, lock in locks().items() if lock.acquire(timeout=0.1)])
    connection.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_locks_that_another_thread_holds_are_free_in_a_forked_child():
    held = locks()
    assert len(held) >= 2
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    with contextlib.ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for lock in held.values():
            stack.enter_context(lock)
        child = context.Process(target=free_locks, args=(sender,))
        child.start()
    assert receiver.poll(60), "the child hangs"
    assert set(receiver.recv()) == set(held)
    child.join(60)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_same_call_gives_the_same_bits(loss, dtype):
    expected = run(*case(loss, dtype, size=60))
    for _ in range(5):
        assert_same(run(*case(loss, dtype, size=60)), expected)


def overwritten(function, logits, integers, **options):
    """Loss, gradient, and whether the gradient is in the logits' memory."""
    leaf = logits.clone().requires_grad_()
    joined = leaf * 1  # what a joiner puts out; the logits of a leaf are the caller's parameter
    losses = function(joined, *integers, blank=0, reduction="none", overwrite_logits=True, **options)
    losses.backward(torch.full_like(losses, 2.0))
    return losses.detach(), leaf.grad, joined.detach()


@pytest.mark.parametrize("options", [{}, {"fastemit_lambda": 0.5, "clamp": 0.25}, {"zero_infinity": True}], ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@pytest.mark.parametrize("loss", ["rnnt", "rnnt_packed"])
def test_a_gradient_over_the_logits_is_the_gradient(loss, dtype, options):
    function, scores, integers = case(loss, dtype)
    two = torch.full((3,), 2.0, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    expected = run(function, scores, integers, upstream=two, **options)
    losses, gradient, memory = overwritten(function, scores, integers, **options)
    assert_same_bits(losses, expected.loss)
    assert_same_bits(gradient, expected.gradient)
    assert_same_bits(memory, expected.gradient)


@pytest.mark.parametrize("loss", ["rnnt", "rnnt_packed"])
def test_a_gradient_over_strided_logits_touches_nothing_else(loss):
    function, scores, integers = case(loss)
    expected = run(function, scores, integers)
    for dim in range(scores.ndim):
        neighbours = torch.full_like(scores, 7.0)
        memory = torch.stack([scores, neighbours], dim + 1)
        logits = memory.select(dim + 1, 0).requires_grad_()
        function(logits, *integers, blank=0, reduction="sum", overwrite_logits=True).backward()
        assert_same_bits(logits.grad, expected.gradient)
        assert_same_bits(memory.select(dim + 1, 0), expected.gradient)
        assert_same_bits(memory.select(dim + 1, 1), neighbours)


def test_logits_that_were_overwritten_cannot_be_used_by_mistake():
    function, scores, integers = case("rnnt")
    logits = scores.requires_grad_() * 1
    squares = logits.square().sum()  # its backward needs the logits
    function(logits, *integers, blank=0, overwrite_logits=True).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()


@pytest.mark.parametrize("loss", ["rnnt", "rnnt_packed"])
def test_a_gradient_is_not_taken_of_logits_that_were_written_to(loss):
    function, scores, integers = case(loss)

    def joined():
        return scores.clone().requires_grad_() * 1

    def overwriting(logits):
        return function(logits, *integers, blank=0, overwrite_logits=True)

    logits = joined()
    with pytest.raises(GradientConsumedError, match="used twice need overwrite_logits=False"):
        (overwriting(logits) + overwriting(logits)).backward()
    logits = joined()
    with pytest.raises(GradientConsumedError, match="used twice need overwrite_logits=False"):
        (overwriting(logits) + overwriting(logits.view_as(logits)) + overwriting(logits.detach())).backward()
    logits = joined()
    value = overwriting(logits)
    with torch.no_grad():
        logits.mul_(2)
    with pytest.raises(GradientConsumedError, match="written to after"):
        value.backward()


def test_logits_that_overlap_are_not_overwritten():
    function, scores, integers = case("rnnt")
    memory = torch.zeros(scores.numel())
    n, t, u, v = scores.shape
    for strides in ((t * u, u, 1, 1), (0, u * v, v, 1), (t * u * v, u * v, v - 1, 1), (1, n, n * t, n * t * u - 1)):
        logits = memory.as_strided(scores.shape, strides).requires_grad_()
        with pytest.raises(ValueError, match="overwrite_logits must be False where logits share memory"):
            function(logits, *integers, blank=0, overwrite_logits=True)
        # Without it they are logits as any.
        shared = run(function, logits, integers)
        assert_same(shared, run(function, logits.detach().contiguous(), integers))
    for order in ((3, 2, 1, 0), (1, 0, 3, 2)):
        logits = scores.permute(order).contiguous().permute([order.index(axis) for axis in range(4)])
        assert_same_bits(overwritten(function, logits, integers)[1], 2 * run(function, scores, integers).gradient)


def test_without_backward_the_logits_stay():
    function, scores, integers = case("rnnt")
    before = scores.clone()
    function(scores, *integers, blank=0, overwrite_logits=True)
    with torch.no_grad():
        function(scores.requires_grad_(), *integers, blank=0, overwrite_logits=True)
    assert_same_bits(scores, before)


def test_lengths_may_be_changed_by_their_owner_before_backward():
    function, scores, integers = case("ctc")
    expected = run(function, scores, integers)
    mine = [torch.from_numpy(array.copy()) for array in integers]
    leaf = scores.clone().requires_grad_()
    losses = function(leaf, *mine, blank=0, reduction="none", fused_log_softmax=True)
    for array in mine:
        array.fill_(3)
    losses.sum().backward()
    assert_same_bits(leaf.grad, expected.gradient)
