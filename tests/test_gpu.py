"""What only a device can show: that the kernels run there, deterministically, captured, beyond 2**31 elements."""

import pytest
import torch

from pathsum.testing import assert_close, assert_same_bits, chain_inputs, concatenate_targets, grid_inputs, pack_rows
from pathsum.torch import asg_loss, ctc_loss, rnnt_joint_loss, rnnt_loss, rnnt_packed_loss, simple_ctc_loss
from support import Solved, assert_same, assert_within_bounds, random_like, second_derivative, solve, tensor
from test_second_order_grid import inputs_of
from variants import VARIANTS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA or ROCm device"),
    pytest.mark.filterwarnings("ignore:asg_loss. the target"),
]

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# (T, N, C, S) and (N, T, U, V): as the CPU's, and such as fill blocks and strips.
CHAIN_SIZES = [(1, 1, 2, 1), (7, 3, 5, 3), (6, 4, 3, 5), (70, 2, 9, 12), (400, 4, 1100, 150), (5000, 1, 30, 1500)]
GRID_SIZES = [(1, 1, 1, 2), (2, 3, 0, 3), (3, 7, 3, 5), (2, 2, 9, 4), (2, 90, 40, 1100), (1, 40, 3000, 3)]


def asg(scores, targets, lengths, target_lengths, **options):
    generator = torch.Generator().manual_seed(0)
    size = (scores.shape[2],) * 2
    dtype = scores.dtype if scores.dtype == torch.float64 else torch.float32
    transitions = torch.randn(size, generator=generator, dtype=torch.float64).to(scores.device, dtype)
    options.pop("fused_log_softmax", None)
    return asg_loss(scores, targets, transitions, lengths, target_lengths, **options)


CHAIN = {"ctc": ctc_loss, "simple_ctc": simple_ctc_loss, "asg": asg}


def chain_case(size, dtype, **options):
    inputs = chain_inputs(*size, seed=sum(size), **options)
    return tensor(inputs.logits, dtype), [torch.from_numpy(array) for array in inputs[1:]]


def grid_case(size, dtype, **options):
    inputs = grid_inputs(*size, seed=sum(size), **options)
    return tensor(inputs.logits, dtype), [torch.from_numpy(array) for array in inputs[1:]]


def joint(encoder, *integers, **options):
    """The fused joiner's loss of its first operand (N, T, 16); the others are the same each time."""
    width, device = int(integers[0].shape[1]) + 1, encoder.device
    predictor = torch.linspace(-1, 1, len(encoder) * width * 16, device=device).sin().view(-1, width, 16)
    weight = torch.linspace(-3, 3, 7 * 16, device=device).cos().view(7, 16)
    return rnnt_joint_loss(encoder, predictor.to(encoder), weight.to(encoder), None, *integers, **options)


def step_case(loss, chain=(9, 2, 7, 4), grid=(2, 9, 4, 7)):
    """A loss and what a step of it is given, of the size of its lattice; ``joint`` has seven classes."""
    if loss in CHAIN:
        return CHAIN[loss], *chain_case(chain, torch.float32)
    num_samples, num_frames, num_labels, _ = grid
    if loss == "joint":
        _, integers = grid_case((num_samples, num_frames, num_labels, 7), torch.float32)
        return joint, torch.linspace(-1, 1, num_samples * num_frames * 16).view(num_samples, num_frames, 16), integers
    if loss in VARIANTS:
        variant = VARIANTS[loss]
        heads, integers = inputs_of(variant, num_samples, num_frames, num_labels, seed=1)

        def of_slices(scores, *integers, **options):
            return variant.loss(scores.split(variant.heads, -1), *integers, **options)

        return of_slices, torch.cat(heads, -1).float(), [torch.as_tensor(array) for array in integers]
    return rnnt_loss, *grid_case(grid, torch.float32)


def on_gpu(function, scores, integers, **options):
    integers = [integer.cuda() for integer in integers]
    solved = solve(function, scores.cuda(), *integers, **options)
    assert solved.gradient.is_cuda
    return Solved(solved.loss.cpu(), solved.gradient.cpu())


@pytest.mark.parametrize("size", CHAIN_SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loss", CHAIN)
def test_chains(loss, dtype, size):
    scores, integers = chain_case(size, dtype)
    options = {"fused_log_softmax": True}
    expected = solve(CHAIN[loss], scores.double(), *integers, **options)
    assert_within_bounds(on_gpu(CHAIN[loss], scores, integers, **options), expected, size[0])


@pytest.mark.parametrize("size", GRID_SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grids(dtype, size):
    scores, integers = grid_case(size, dtype)
    expected = solve(rnnt_loss, scores.double(), *integers)
    padded = on_gpu(rnnt_loss, scores, integers)
    assert_within_bounds(padded, expected, size[1] + size[2], gradient_bound=5e-6)
    rows = tensor(pack_rows(scores.double().numpy(), *(integer.numpy() for integer in integers[1:])), dtype)
    assert_same_bits(on_gpu(rnnt_packed_loss, rows, integers).loss, padded.loss)


@pytest.mark.parametrize("loss", [*CHAIN, "rnnt", "joint"])
def test_cpu_and_gpu_agree_to_the_rounding(loss):
    function, scores, integers = step_case(loss, (300, 3, 50, 30), (3, 60, 20, 100))
    options = {"fused_log_softmax": True} if loss in CHAIN else {}
    on_cpu = solve(function, scores, *integers, **options)
    # The joint's gradient is a sum over labels and classes.
    bound = 2e-5 if loss == "joint" else 2e-6
    assert_close(on_gpu(function, scores, integers, **options).gradient, on_cpu.gradient, absolute=bound)


@pytest.mark.parametrize("loss", [*CHAIN, "rnnt", "joint"])
def test_the_same_input_gives_the_same_bits(loss):
    function, scores, integers = step_case(loss, (300, 5, 40, 60), (5, 90, 40, 300))
    first = on_gpu(function, scores, integers)
    for _ in range(5):
        assert_same(on_gpu(function, scores, integers), first)


# Those whose case needs no look at the lengths.
UNREAD = ["hat", "tdt", "multi-blank", "wildcard"]


@pytest.mark.parametrize("loss", [*CHAIN, "rnnt", "joint", *UNREAD])
def test_nothing_waits_for_the_device(loss):
    function, scores, integers = step_case(loss)
    scores, integers = scores.cuda().requires_grad_(), [integer.cuda() for integer in integers]
    function(scores, *integers).backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        function(scores, *integers).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("loss", [*CHAIN, "rnnt", "joint", *UNREAD])
def test_a_step_can_be_captured_as_a_graph(loss):
    function, scores, integers = step_case(loss)
    integers = [integer.cuda() for integer in integers]
    static = scores.cuda().requires_grad_()

    def step():
        loss = function(static, *integers, reduction="sum")
        return torch.autograd.grad(loss, static)[0], loss.detach()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gradient, loss_out = step()
    for scale in (1.0, 0.5):
        with torch.no_grad():
            static.copy_(scale * scores.cuda())
        graph.replay()
        expected = solve(function, static, *integers, reduction="sum")
        assert_same_bits(gradient.cpu(), expected.gradient.cpu())
        assert_same_bits(loss_out.cpu(), expected.loss.cpu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("loss", [*CHAIN, "rnnt"])
def test_second_derivatives(loss, dtype):
    if loss == "rnnt":
        function, (scores, integers) = rnnt_loss, grid_case((3, 50, 20, 300), dtype)
    else:
        function, (scores, integers) = CHAIN[loss], chain_case((120, 3, 60, 30), dtype)
    upstream, tangents = [1.0, -2.0, 0.5], random_like([scores])

    def second(device, dtype):
        own = [integer.to(device) for integer in integers]
        given = [[x.to(device, dtype) for x in tensors] for tensors in ([scores], tangents)]
        weights = torch.tensor(upstream, dtype=torch.float64, device=device)
        return second_derivative(lambda x: function(x, *own, reduction="none"), given[0], weights, given[1])

    found, again, expected = second("cuda", dtype), second("cuda", dtype), second("cpu", torch.float64)
    for one, other, wanted in zip(found, again, expected, strict=True):
        assert_same_bits(one.cpu(), other.cpu())
        bound = 1e-4 if dtype == torch.float32 else 1e-10
        assert_close(one.cpu(), wanted, absolute=bound * max(1.0, float(wanted.abs().max())))


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name):
    heads, integers = inputs_of(VARIANTS[name], 3, 40, 12, seed=1)
    solved = []
    for device, dtype in (("cuda", torch.float32), ("cuda", torch.float32), ("cpu", torch.float64)):
        leaves = [head.to(device, dtype).requires_grad_() for head in heads]
        loss = VARIANTS[name].loss(leaves, *integers, reduction="none")
        solved.append([loss.detach().cpu(), *(g.cpu() for g in torch.autograd.grad(loss.sum(), leaves))])
    for found, again, expected in zip(*solved, strict=True):
        assert_same_bits(found, again)
        assert_close(found, expected, absolute=1e-5, relative=1e-6)


def test_a_stream_of_its_own():
    scores, integers = chain_case((300, 5, 40, 60), torch.float32)
    expected = on_gpu(ctc_loss, scores, integers)
    device = [integer.cuda() for integer in integers]
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        late = scores.cuda()
        torch.cuda._sleep(10_000_000)
        solved = solve(ctc_loss, late * 1, *device)
    stream.synchronize()
    assert_same_bits(solved.gradient.cpu(), expected.gradient)


def test_more_than_two_to_the_31_elements():
    num_samples, frames, labels, classes = 2, 300, 70, 51_000  # 2.2e9 elements
    free, _ = torch.cuda.mem_get_info()
    size = num_samples * frames * (labels + 1) * classes
    assert size > 2**31
    if free < 5 * size:
        pytest.skip("the device has too little free memory")
    logits = torch.zeros(num_samples, frames, labels + 1, classes, dtype=torch.bfloat16, device="cuda")
    inputs = grid_inputs(num_samples, frames, labels, 5, ragged=False)
    integers = [torch.from_numpy(array).cuda() for array in inputs[1:]]
    logits.requires_grad_()
    losses = rnnt_loss(logits, *integers, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    # C(T-1+U, U) walks of T + U arcs, each of probability 1/V.
    walks = torch.tensor([float(frames + labels), labels + 1.0, float(frames)], dtype=torch.float64).lgamma()
    expected = (frames + labels) * torch.tensor(float(classes), dtype=torch.float64).log() - (
        walks[0] - walks[1] - walks[2]
    )
    assert_close(losses.cpu(), expected.expand(2), relative=1e-6)
    assert float(gradient[-1, -1, -1, -1]) == pytest.approx(-1.0, abs=0.01)


@pytest.mark.parametrize("function", [ctc_loss, rnnt_loss])
def test_bad_integers_on_the_device(function):
    case = chain_case((9, 3, 5, 3), torch.float32) if function is ctc_loss else grid_case((3, 9, 3, 5), torch.float32)
    scores, integers = case
    good = on_gpu(function, scores, integers, blank=-1 if function is rnnt_loss else 0)
    integers[0][1, 0] = 2**40
    solved = on_gpu(function, scores, integers, blank=-1 if function is rnnt_loss else 0)
    assert solved.loss.isnan().tolist() == [False, True, False]
    assert_same_bits(solved.loss[[0, 2]], good.loss[[0, 2]])
    with pytest.raises(ValueError, match="targets must lie in"):
        on_gpu(function, scores, integers, check="sync")


def test_concatenated_targets_and_integers_of_the_host():
    scores, integers = chain_case((20, 3, 5, 6), torch.float32)
    expected = on_gpu(ctc_loss, scores, integers)
    flat = torch.from_numpy(concatenate_targets(integers[0].numpy(), integers[2].numpy()))
    assert_same(on_gpu(ctc_loss, scores, [flat, *integers[1:]]), expected)
    solved = solve(ctc_loss, scores.cuda(), integers[0].tolist(), integers[1], integers[2].tolist())
    assert_same_bits(solved.gradient.cpu(), expected.gradient)
