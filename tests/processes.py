"""What each of four processes does in the tests of ``pathsum.torch.distributed``: python tests/processes.py FOLDER.

Groups of 1, 2, 3 and 4 of them compare what they find together with what each finds alone, in float64. The numbers that
travel are counted where torch.distributed is called. At last one process does not come, and one is killed.
"""

import datetime
import importlib
import os
import re
import signal
import sys
import time
import traceback

import pytest
import torch
import torch.distributed as dist

import pathsum.torch as alone
import pathsum.torch.distributed as together
from pathsum.errors import InvalidTypeError, InvalidValueError, ProcessesError
from pathsum.testing import assert_close

T, N, C, H, U = 7, 5, 6, 3, 3
# Of each number of processes, the classes and the frames of each: some have none.
CLASSES = {1: [6], 2: [5, 1], 3: [0, 4, 2], 4: [2, 0, 3, 1]}
FRAMES = {1: [7], 2: [3, 4], 3: [5, 0, 2], 4: [1, 2, 0, 4]}
# Ragged, with a repeat, no label, no frame, and a target that does not fit.
LENGTHS, LABELS = torch.tensor([7, 5, 3, 0, 6]), torch.tensor([3, 0, 3, 0, 2])
TIMEOUT = datetime.timedelta(seconds=60)
SENT = {"all_reduce": 0, "all_to_all_single": 0, "send": 0}


def count(name):
    original = getattr(dist, name)

    def counted(*arguments, **options):
        SENT[name] += arguments[1 if name == "all_to_all_single" else 0].numel()
        return original(*arguments, **options)

    setattr(dist, name, counted)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


def targets_beside(blank, width=3):
    labels = torch.tensor([[1, 1, 2], [3, 4, 5], [1, 3, 3], [2, 2, 2], [5, 4, 1]])[:, :width]
    return (labels + blank) % C


def own_part(tensor, sizes, rank, dim):
    return tensor.split(sizes, dim)[rank].clone().requires_grad_()


def compare(found, expected, found_inputs, expected_inputs, what, *, twice=True):
    """Losses, gradients, and the derivatives of the gradients' product with tangents."""
    upstream = torch.arange(1.0, len(expected) + 1, dtype=torch.float64)
    assert_close(found, expected, absolute=1e-12, what=f"{what}: losses")
    results = []
    for losses, inputs in ((found, found_inputs[0]), (expected, expected_inputs[0])):
        losses = torch.where(losses == torch.inf, 0.0, losses)
        results.append(torch.autograd.grad(losses, inputs, upstream, create_graph=twice))
    for own, whole, cut in zip(*results, found_inputs[1], strict=True):
        assert_close(own, cut(whole), absolute=1e-12, what=f"{what}: gradient")
    if not twice:
        return
    tangents = [randn(*x.shape, seed=9) for x in expected_inputs[0]]
    found = torch.autograd.grad(
        results[0], found_inputs[0], [cut(t) for cut, t in zip(found_inputs[1], tangents, strict=True)]
    )
    expected = torch.autograd.grad(results[1], expected_inputs[0], tangents)
    for own, whole, cut in zip(found, expected, found_inputs[1], strict=True):
        assert_close(own, cut(whole), absolute=1e-11, what=f"{what}: second derivative")


def cutting(sizes, rank, dim):
    return lambda tensor: tensor.split(sizes, dim)[rank]


def ctc(group, rank, size):
    logits = randn(T, N, C)
    for shard, dim, sizes in (("classes", 2, CLASSES[size]), ("frames", 0, FRAMES[size])):
        for blank in (0, 3, C - 1):
            for fused in (True, False) if blank == 3 else (True,):
                scores = logits if fused else logits.log_softmax(2)
                integers = (targets_beside(blank), LENGTHS, LABELS, blank)
                whole, own = scores.clone().requires_grad_(), own_part(scores, sizes, rank, dim)
                options = {"reduction": "none", "fused_log_softmax": fused}
                expected = alone.ctc_loss(whole, *integers, **options)
                SENT.update(dict.fromkeys(SENT, 0))
                found = together.ctc_loss(own, *integers, group=group, shard=shard, **options)
                sent = dict(SENT)
                SENT.update(dict.fromkeys(SENT, 0))
                torch.autograd.grad(found[found < torch.inf].sum(), own, retain_graph=True)
                sent_back = dict(SENT)
                cut = cutting(sizes, rank, dim)
                compare(found, expected, ([own], [cut]), ([whole], None), f"{shard}, {size}, blank {blank}, {fused}")
                width = 3 + 1
                if shard == "classes":
                    assert sent["all_to_all_single"] == 0
                    assert sent["all_reduce"] <= (width + 2) * T * N, sent
                    assert not any(sent_back.values())
                else:
                    # Columns of its own frames, and losses; back, gradients of its own samples' columns.
                    assert sent == {"all_to_all_single": sizes[rank] * N * width, "all_reduce": N, "send": 0}
                    assert sent_back["all_to_all_single"] <= -(-N // size) * T * width
                    assert sent_back["all_reduce"] == 0
    # Means, and batch_first; one sample without a batch axis.
    for shard, dim, sizes in (("classes", 2, CLASSES[size]), ("frames", 1, FRAMES[size])):
        whole = logits.transpose(0, 1).clone().requires_grad_()
        own = own_part(whole.detach(), sizes, rank, dim)
        integers = (targets_beside(0), LENGTHS, LABELS, 0, "mean", True)
        expected = alone.ctc_loss(whole, *integers, fused_log_softmax=True, batch_first=True)
        found = together.ctc_loss(own, *integers, group=group, shard=shard, batch_first=True)
        assert_close(found, expected, absolute=1e-12)
        found.backward()
        expected.backward()
        assert_close(own.grad, cutting(sizes, rank, dim)(whole.grad), absolute=1e-12)
        one = own.detach()[0]
        found = together.ctc_loss(one, [1, 2], 7, 2, reduction="none", group=group, shard=shard)
        assert found.shape == ()
        expected = alone.ctc_loss(whole.detach()[0], [1, 2], 7, 2, reduction="none", fused_log_softmax=True)
        assert_close(found, expected, absolute=1e-12)
    # Padding is not read, on any process; impossible classes and rows and undefined scores are as alone.
    scores = logits.clone()
    scores[5:, 1], scores[3:, 2], scores[:, 3] = torch.nan, torch.nan, torch.inf
    scores[2, 0, 1], scores[:, 0, 5], scores[1, 4, 2], scores[1, 2] = -torch.inf, -torch.inf, torch.nan, -torch.inf
    for shard, dim, sizes in (("classes", 2, CLASSES[size]), ("frames", 0, FRAMES[size])):
        whole, own = scores.clone().requires_grad_(), own_part(scores, sizes, rank, dim)
        integers = (targets_beside(0), LENGTHS, LABELS)
        expected = alone.ctc_loss(whole, *integers, reduction="none", fused_log_softmax=True)
        found = together.ctc_loss(own, *integers, reduction="none", group=group, shard=shard)
        assert found[:4].isfinite().tolist() == [True, True, False, True]
        assert found[4].isnan()
        assert_close(found[:4], expected[:4], absolute=1e-12)
        found[:4].sum().backward()
        expected[:4].sum().backward()
        assert_close(own.grad, cutting(sizes, rank, dim)(whole.grad), absolute=1e-12)


def stages(group, rank, size):
    """Fewer samples than processes: what passes a boundary does not grow with the frames."""
    logits, width = randn(T, N, C), 2 * 3 + 2
    undefined = logits.clone()
    undefined[5:, 1], undefined[1, 4, 2] = torch.nan, torch.nan
    undefined[2, 0, 1], undefined[1, 2] = -torch.inf, -torch.inf
    for few in ([0], [4, 3], [1, 0, 2]):
        if len(few) >= size:
            continue
        integers = (targets_beside(0)[few], LENGTHS[few], LABELS[few])
        cut = cutting(FRAMES[size], rank, 0)
        for impl, scores, fused in (("auto", logits, True), ("auto", undefined, True), ("reference", logits, False)):
            what = f"stages, {size}, samples {few}, {impl}"
            wrong = 4 in few and scores is undefined
            scores = scores[:, few] if fused else scores[:, few].log_softmax(2)
            whole, own = scores.clone().requires_grad_(), own_part(scores, FRAMES[size], rank, 0)
            options = {"reduction": "none", "fused_log_softmax": fused}
            expected = alone.ctc_loss(whole, *integers, **options)
            SENT.update(dict.fromkeys(SENT, 0))
            found = together.ctc_loss(own, *integers, group=group, shard="frames", impl=impl, **options)
            boundary = len(few) * width
            assert SENT == {"send": boundary * (rank < size - 1), "all_reduce": len(few), "all_to_all_single": 0}
            SENT.update(dict.fromkeys(SENT, 0))
            torch.autograd.grad(found[found < torch.inf].sum(), own, retain_graph=True)
            assert SENT == {"send": boundary * (rank > 0), "all_reduce": 0, "all_to_all_single": 0}
            if wrong:
                assert found.isnan().tolist() == [n == 4 for n in few], what
                (back,), (wanted,) = (torch.autograd.grad(x.sum(), y) for x, y in ((found, own), (expected, whole)))
                assert torch.equal(back.isnan(), cut(wanted).isnan()), what
                continue
            assert (found < torch.inf).tolist() == (expected < torch.inf).tolist(), what
            twice = scores.isfinite().all()
            compare(found, expected, ([own], [cut]), ([whole], None), what, twice=twice)


def linear(group, rank, size):
    sizes = CLASSES[size]
    operands = randn(T, N, H), randn(C, H), randn(C)
    for bias in (True, False):
        for blank in (0, 3, C - 1):
            integers = (targets_beside(blank), LENGTHS, LABELS, blank)
            whole = [x.clone().requires_grad_() for x in operands[: 2 + bias]]
            own = [whole[0].detach().clone().requires_grad_(), *(own_part(x, sizes, rank, 0) for x in whole[1:])]
            own = [x.detach().requires_grad_() for x in own]
            nothing = [] if bias else [None]
            expected = alone.ctc_linear_loss(*whole, *nothing, *integers, reduction="none")
            SENT.update(dict.fromkeys(SENT, 0))
            found = together.ctc_linear_loss(*own, *nothing, *integers, reduction="none", chunk=2, group=group)
            assert SENT["all_reduce"] <= (3 + 3) * T * N
            cuts = [lambda x: x, *[cutting(sizes, rank, 0)] * (1 + bias)]
            compare(found, expected, (own, cuts), (whole, None), f"linear, {size}, blank {blank}")


def joint(group, rank, size):
    sizes = CLASSES[size]
    operands = randn(N, 4, H), randn(N, U + 1, H, seed=1), randn(C, H), randn(C)
    frames, labels = torch.tensor([4, 3, 2, 1, 4]), torch.tensor([3, 1, 0, 2, 2])
    for blank in (0, 3, C - 1):
        for options in ({}, {"rnnt_type": "modified", "delay_penalty": 0.1, "activation": "relu"}):
            integers = (targets_beside(blank), frames, labels, blank)
            whole = [x.clone().requires_grad_() for x in operands]
            own = [x.clone().requires_grad_() for x in operands[:2]]
            own += [own_part(x, sizes, rank, 0) for x in operands[2:]]
            expected = alone.rnnt_joint_loss(*whole, *integers, reduction="none", gate=0.0, **options)
            SENT.update(dict.fromkeys(SENT, 0))
            found = together.rnnt_joint_loss(*own, *integers, reduction="none", group=group, **options)
            assert SENT["all_reduce"] == 4 * int((frames * (labels + 1)).sum())
            cuts = [lambda x: x] * 2 + [cutting(sizes, rank, 0)] * 2
            compare(found, expected, (own, cuts), (whole, None), f"joint, {size}, {blank}", twice=False)


def samples(group, rank, size):
    """Each process has samples of its own: the mean is that of all, and the mean of their gradients is its."""
    counts = {1: [5], 2: [4, 1], 3: [3, 0, 2], 4: [1, 2, 0, 2]}[size]
    integers = (targets_beside(0), torch.full((N,), T), torch.tensor([3, 2, 1, 0, 2]))
    cut = cutting(counts, rank, 0)
    own_integers = [cut(x) for x in integers]
    layer = randn(C, H), randn(C)
    hidden, joined = randn(N, T, H), (randn(N, T, H), randn(N, U + 1, H, seed=1))

    def ctc(module, hidden, weight, bias, integers, **options):
        logits = torch.nn.functional.linear(hidden, weight, bias)
        fused = {"fused_log_softmax": True} if module is alone else {}
        return module.ctc_loss(logits, *integers, batch_first=True, **fused, **options)

    def linear(module, hidden, weight, bias, integers, **options):
        return module.ctc_linear_loss(hidden, weight, bias, *integers, batch_first=True, **options)

    def joint(module, encoder_out, predictor_out, weight, bias, integers, **options):
        return module.rnnt_joint_loss(encoder_out, predictor_out, weight, bias, *integers, 0, **options)

    def any_loss(module, hidden, weight, bias, integers, reduction, **options):
        losses = ctc(alone, hidden, weight, bias, integers, reduction=reduction if module is alone else "none")
        return losses if module is alone else together.global_mean(losses, integers[2], group=group)

    for loss, inputs in ((ctc, (hidden,)), (linear, (hidden,)), (joint, joined), (any_loss, (hidden,))):
        for reduction in ("mean",) if loss is any_loss else ("mean", "sum", "none"):
            whole, own = ([x.clone().requires_grad_() for x in layer] for _ in range(2))
            expected = loss(alone, *inputs, *whole, integers, reduction=reduction)
            options = {"reduction": reduction, "group": group, "shard": "samples"}
            found = loss(together, *map(cut, inputs), *own, own_integers, **options)
            if reduction == "none":
                assert_close(found, cut(expected), absolute=1e-12)
                continue
            assert_close(found, expected, absolute=1e-12)
            found.backward()
            expected.backward()
            for mine, all_of_it in zip(own, whole, strict=True):
                dist.all_reduce(mine.grad, group=group)
                assert_close(mine.grad / size, all_of_it.grad, absolute=1e-12)
    # And so it is where DDP does the averaging.
    torch.manual_seed(0)
    network, copy = torch.nn.Linear(H, C).double(), torch.nn.Linear(H, C).double()
    copy.load_state_dict(network.state_dict())
    spread = torch.nn.parallel.DistributedDataParallel(network, process_group=group)
    options = {"reduction": "mean", "batch_first": True}
    together.ctc_loss(spread(cut(hidden)), *own_integers, shard="samples", group=group, **options).backward()
    alone.ctc_loss(copy(hidden), *integers, fused_log_softmax=True, **options).backward()
    for mine, all_of_it in zip(network.parameters(), copy.parameters(), strict=True):
        assert_close(mine.grad, all_of_it.grad, absolute=1e-12)


def dtensors(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (4,))
    logits, integers = randn(T, N, C), (targets_beside(0), LENGTHS, LABELS)
    for dim in (2, 0):  # 6 classes by four: the last has none
        whole = logits.clone().requires_grad_()
        spread = distribute_tensor(logits, mesh, [Shard(dim)]).requires_grad_()
        expected = alone.ctc_loss(whole, *integers, 0, "mean", True, fused_log_softmax=True)
        found = together.ctc_loss(spread, *integers, 0, "mean", True)
        assert_close(found, expected, absolute=1e-12)
        found.backward()
        expected.backward()
        assert_close(spread.grad.full_tensor(), whole.grad, absolute=1e-12)
    weight = distribute_tensor(randn(C, H), mesh, [Shard(0)])
    hidden = randn(T, N, H)
    expected = alone.ctc_linear_loss(hidden, randn(C, H), None, *integers, 0, "mean", True)
    assert_close(together.ctc_linear_loss(hidden, weight, None, *integers, 0, "mean", True), expected, absolute=1e-12)
    for value, shard, message in (
        (distribute_tensor(logits, mesh, [Shard(1)]), None, r"whose classes or frames are shared out; got Shard(1)"),
        (distribute_tensor(logits, mesh, [Shard(2)]), "frames", "whose frames are shared out; got Shard(2)"),
    ):
        raises(InvalidValueError, message, lambda v=value, s=shard: together.ctc_loss(v, *integers, shard=s))
    # A mesh is a group, too.
    own = own_part(logits, CLASSES[4], rank, 2)
    assert together.ctc_loss(own, *integers, group=mesh, reduction="none")[0].isfinite()


def raises(kind, message, call):
    with pytest.raises(kind, match=re.escape(message)):
        call()


def mistakes(rank):
    """Made on one process they raise on all: there what it is, elsewhere whose it was."""
    own = own_part(randn(T, N, C), CLASSES[4], rank, 2)
    right = (targets_beside(0), LENGTHS, LABELS)

    def said(own_message):
        return own_message if rank == 2 else f"the call of rank 2 must be legal; got ctc_loss: {own_message}"

    if rank == 2:
        raises(InvalidTypeError, "have dtype", lambda: together.ctc_loss(own.long(), *right))
        raises(InvalidValueError, "reduction must be", lambda: together.ctc_loss(own, *right, reduction="all"))
        raises(InvalidValueError, "be a rectangular", lambda: together.ctc_loss(own, [[1], [1, 2]], *right[1:]))
    else:
        for message in ("local_logits must have dtype", "reduction must be", "targets must be a rectangular"):
            raises(InvalidValueError, said(message), lambda: together.ctc_loss(own, *right))
    other = LENGTHS.clone()
    other[0] = 6 if rank == 1 else 7
    message = "input_lengths must be the same on every rank; got others on rank 1 than on rank 0"
    raises(InvalidValueError, message, lambda: together.ctc_loss(own, right[0], other, LABELS))
    message = "options must be the same on every rank; got others on rank 3"
    raises(InvalidValueError, message, lambda: together.ctc_loss(own, *right, blank=rank // 3))
    message = "the shape must be the same on every rank"
    raises(InvalidValueError, message, lambda: together.ctc_loss(own[: 7 - rank // 3], *right))
    # What is wrong everywhere is said everywhere, of all classes.
    wrong = torch.where(right[0] == 1, C, right[0])
    message = "ctc_loss: targets must lie in [0, C) with C = 6; got 6 at sample 0"
    raises(InvalidValueError, message, lambda: together.ctc_loss(own, wrong, LENGTHS, LABELS))
    hidden, layer = randn(T, N, H), randn(1, H + 1)
    message = f"ctc_linear_loss: local_weight must have shape (C, H) = (any, {H})"
    raises(InvalidValueError, message, lambda: together.ctc_linear_loss(hidden, layer, None, *right))
    message = f"rnnt_joint_loss: local_weight must have shape (V, H) = (any, {H})"
    joined = hidden.transpose(0, 1), randn(N, U + 1, H)
    raises(InvalidValueError, message, lambda: together.rnnt_joint_loss(*joined, layer, None, *right))
    raises(InvalidValueError, "shard must be one of", lambda: together.ctc_loss(own, *right, shard="labels"))
    raises(InvalidTypeError, "group must be a ProcessGroup", lambda: together.ctc_loss(own, *right, group="all"))
    # And all go on from there.
    assert together.ctc_loss(own, *right, reduction="none")[0].isfinite()


def missing(rank, group, seconds):
    """One does not come: the others say which."""
    if rank == 3:
        time.sleep(seconds + 1)
        return
    own = own_part(randn(T, N, C), CLASSES[4], rank, 2)
    raises(
        ProcessesError,
        f"ctc_loss: rank {rank} of 4 waited for the others in vain: no sign of rank 3; torch.distributed says",
        lambda: together.ctc_loss(own, targets_beside(0), LENGTHS, LABELS, group=group),
    )


def killed(rank, group):
    """One is killed in backward: the others do not wait for ever."""
    sizes = CLASSES[4]
    hidden = randn(T, N, H).requires_grad_()
    weight = own_part(randn(C, H), sizes, rank, 0)
    loss = together.ctc_linear_loss(
        hidden, weight, None, targets_beside(0), LENGTHS, LABELS, 0, "mean", True, group=group
    )
    if rank == 2:
        loss.register_hook(lambda _: os.kill(os.getpid(), signal.SIGKILL))
    raises(ProcessesError, "ctc_linear_loss: rank", loss.backward)


def main(rank, store):
    torch.set_num_threads(1)
    address = f"file://{store}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=4, timeout=TIMEOUT)
    for name in SENT:
        count(name)
    for size in (1, 2, 3, 4):
        group = dist.new_group(list(range(size)))
        for check in (ctc, stages, linear, joint, samples):
            if rank < size:
                check(group, rank, size)
    dtensors(rank)
    mistakes(rank)
    seconds = 6
    groups = [dist.new_group(timeout=datetime.timedelta(seconds=seconds)) for _ in range(2)]
    dist.barrier()
    missing(rank, groups[0], seconds)
    dist.barrier()
    killed(rank, groups[1])


def forked(rank, folder):
    """The process of a rank, whose words go to a file."""
    process = os.fork()
    if process:
        return process
    log = os.open(f"{folder}/{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    try:
        main(rank, f"{folder}/store")
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # the group has lost a member: nothing is left to be ended in order


if __name__ == "__main__":
    # Forked where all is imported, which takes as long as what each has to do; torch's data parallelism imports more.
    importlib.import_module("torch._dynamo")
    ranks = {forked(rank, sys.argv[1]): rank for rank in range(4)}
    while ranks:
        process, status = os.wait()
        rank, code = ranks.pop(process), os.waitstatus_to_exitcode(status)
        print(rank, code)
        # Where one fails the others wait for it in vain.
        for other in ranks if code != (-signal.SIGKILL if rank == 2 else 0) else ():
            os.kill(other, signal.SIGKILL)
