"""The fused joiner gives what the materialised logits give: losses, and the gradients of all four operands."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.kernels.numba.joint import heavy_nodes
from pathsum.torch import RNNTJointLoss, rnnt_joint_loss, rnnt_loss, rnnt_loss_from_joint

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid, "gelu": torch.nn.functional.gelu}

# Ragged; one frame; no label; no sample reaches both padded sizes. A tile of 11 rows splits frames and samples.
FRAMES, LABELS, TARGETS = [9, 1, 5], [5, 2, 0], [[1, 1, 3, 0, 2], [4, 2, -1, -1, -1], [-1, -1, -1, -1, -1]]
SIZES = {"encoder_out": (3, 9, 7), "predictor_out": (3, 6, 7), "weight": (6, 7), "bias": (6,)}


def operands(dtype=torch.float64, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = (torch.randn(size, generator=generator, dtype=torch.float64) * scale for size in SIZES.values())
    return [tensor.to(dtype).requires_grad_() for tensor in made]


def materialised(encoder_out, predictor_out, weight, bias, activation="tanh", **options):
    hidden = ACTIVATIONS[activation](encoder_out[:, :, None] + predictor_out[:, None])
    return rnnt_loss(hidden @ weight.T + bias, TARGETS, FRAMES, LABELS, reduction="none", **options)


def fused(encoder_out, predictor_out, weight, bias, **options):
    given = (encoder_out, predictor_out, weight, bias, TARGETS, FRAMES, LABELS)
    return rnnt_joint_loss(*given, reduction="none", **options)


def by_callable(encoder_out, predictor_out, weight, bias, activation="tanh", **options):
    def joint(e, p):
        return ACTIVATIONS[activation](e + p) @ weight.T + bias

    return rnnt_loss_from_joint(
        joint, encoder_out, predictor_out, TARGETS, FRAMES, LABELS, reduction="none", rows_per_tile=11, **options
    )


def solved(loss, upstream, given, **options):
    losses = loss(*given, **options)
    gradients = torch.autograd.grad(losses, given, torch.tensor(upstream, dtype=losses.dtype))
    return losses.detach(), gradients


def assert_same(one, other, absolute):
    assert torch.allclose(one[0], other[0], rtol=absolute, atol=absolute)
    for left, right in zip(one[1], other[1], strict=True):
        assert (left - right).abs().max() <= absolute


@pytest.mark.parametrize("options", [{}, {"fastemit_lambda": 0.3}, {"clamp": 0.05}, {"blank": 5}], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("tile_memory", [1, 2000, 2**25])
def test_fused_equals_materialised(activation, tile_memory, options):
    expected = solved(materialised, [1.0, -2.0, 0.0], operands(), activation=activation, **options)
    found = solved(
        fused, [1.0, -2.0, 0.0], operands(), activation=activation, tile_memory=tile_memory, gate=0.0, **options
    )
    assert_same(found, expected, 1e-9)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_reference_equals_numba(activation):
    expected = solved(fused, [1.0, -2.0, 0.5], operands(), activation=activation, impl="reference")
    assert_same(solved(fused, [1.0, -2.0, 0.5], operands(), activation=activation, gate=0.0), expected, 1e-9)


@pytest.mark.parametrize("options", [{}, {"fastemit_lambda": 0.3}], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_any_joiner_equals_materialised(activation, options):
    expected = solved(materialised, [1.0, -2.0, 0.5], operands(), activation=activation, **options)
    assert_same(solved(by_callable, [1.0, -2.0, 0.5], operands(), activation=activation, **options), expected, 1e-9)


def test_gradcheck():
    given = [tensor.detach()[:, :4].requires_grad_() if i < 2 else tensor for i, tensor in enumerate(operands())]

    def loss(*given):
        return rnnt_joint_loss(*given, [[1, 1], [4, 2], [0, 0]], [4, 1, 3], [2, 2, 0], reduction="none", gate=0.0)

    assert torch.autograd.gradcheck(loss, given)


# A unit of mass moves an encoder or predictor entry by at most twice the largest weight, and a weight by 1. In float64,
# where nothing else shows: random, peaky, and nearly certain paths.
@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.1, 1.0, 4.0, 30.0]),
    sharpness=st.sampled_from([1, 10, 300]),
    gate=st.sampled_from([1e-2, 1e-4, float(np.finfo(np.float32).eps) / 2]),
)
def test_the_gate_keeps_its_bound(seed, scale, sharpness, gate):
    given = operands(torch.float64, scale, seed)
    with torch.no_grad():
        given[2].mul_(sharpness)
    upstream = [1.0, 3.0, -1.0]
    gated, whole = (solved(fused, upstream, given, gate=gate) for gate in (gate, 0.0))
    assert torch.equal(gated[0], whole[0])
    dropped = 3.0 * gate
    bounds = [dropped * 2 * float(given[2].detach().abs().max())] * 2 + [dropped * sum(FRAMES)] * 2
    for name, one, other, bound in zip(SIZES, gated[1], whole[1], bounds, strict=True):
        assert (one - other).abs().max() <= bound * (1 + 1e-6), name


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 10**6),
    spread=st.sampled_from([0.0, 1.0, 30.0, 200.0]),
    gate=st.sampled_from([0.0, 1e-7, 1e-3, 0.3]),
)
def test_what_is_dropped_of_any_mass(shape, seed, spread, gate):
    # Not the masses of any lattice: equal ones, and many whose tiny ones lie between large ones.
    mass = np.exp(-spread * np.random.default_rng(seed).random(shape))
    mass[np.random.default_rng(seed + 1).random(shape) < 0.2] = 0.0
    dropped = np.where(heavy_nodes(mass, gate), 0.0, mass)
    assert dropped.sum(0).max() <= gate * (1 + 1e-12)
    assert dropped.sum(1).max() <= gate * (1 + 1e-12)


def test_the_gate_drops_what_it_may():
    mass = np.array([[0.1, 5.0, 0.1, 5.0, 0.1], [5.0, 5.0, 0.0, 0.1, 0.1]])
    # Gone: what holds half the gate at the end of its frame and of its position. The last 0.1 but one is 0.2 with the
    # last; the one between two heavy nodes is no end. A node without mass goes anywhere.
    assert heavy_nodes(mass, 0.2).tolist() == [[False, True, True, True, False], [True, True, False, True, False]]


# In float32, where the gate is open by half an eps: random, peaky, and paths of very different scores.
@pytest.mark.parametrize("scale, sharpness", [(0.1, 1), (1.0, 10), (4.0, 1), (1.0, 100)])
@pytest.mark.parametrize("seed", range(3))
def test_the_gate_costs_less_than_rounding(seed, scale, sharpness):
    def sharp(dtype):
        given = operands(dtype, scale, seed)
        with torch.no_grad():
            given[2].mul_(sharpness)
        return given

    upstream = [1.0, 3.0, -1.0]
    truth = solved(materialised, upstream, sharp(torch.float64))
    plain = solved(materialised, upstream, sharp(torch.float32))
    gated, whole = (solved(fused, upstream, sharp(torch.float32), gate=gate) for gate in (None, 0.0))
    assert torch.equal(gated[0], whole[0])
    for one, other, native, exact in zip(gated[1], whole[1], plain[1], truth[1], strict=True):
        rounding = (native - exact).abs().max() + torch.finfo(torch.float32).eps * exact.abs().max()
        assert (one - exact).abs().max() <= 2 * rounding
        assert (one - other).abs().max() <= 2 * rounding


def test_the_gate_drops_rows():
    given = operands(scale=4.0)
    whole = solved(fused, [1.0, 1.0, 1.0], given, gate=0.0)[1]
    assert not torch.equal(solved(fused, [1.0, 1.0, 1.0], given, gate=1e-3)[1][0], whole[0])
    assert all((gradient == 0).all() for gradient in solved(fused, [1.0, 1.0, 1.0], given, gate=100.0)[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    given = operands(dtype)
    losses, gradients = solved(fused, [1.0, 1.0, 1.0], given)
    expected = solved(materialised, [1.0, 1.0, 1.0], [tensor.detach().double().requires_grad_() for tensor in given])
    assert losses.dtype == torch.float32
    budget = {torch.float32: 1e-5, torch.bfloat16: 0.15, torch.float16: 0.01}[dtype]
    assert torch.allclose(losses.double(), expected[0], rtol=budget, atol=budget)
    for gradient, truth, tensor in zip(gradients, expected[1], given, strict=True):
        assert gradient.dtype == tensor.dtype
        assert (gradient.double() - truth).abs().max() <= budget * max(1.0, float(truth.abs().max()))


def test_an_undefined_sample_spoils_its_own_rows_alone():
    given = operands()
    with torch.no_grad():
        given[0][1, 0, 0] = torch.nan
        given[0][2, 5:] = torch.nan  # padding
    losses = fused(*given)
    assert losses.isnan().tolist() == [False, True, False]
    (gradient,) = torch.autograd.grad(losses[0] + losses[2], given[:1])
    assert gradient[[0, 2]].isfinite().all()


@pytest.mark.parametrize("impl", ["numba", "reference"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_padding_is_not_read(activation, impl):
    encoder_out, predictor_out, *layer = operands()
    clean = fused(encoder_out, predictor_out, *layer, activation=activation, impl=impl)
    expected = torch.autograd.grad(clean.sum(), [encoder_out, predictor_out, *layer])
    with torch.no_grad():
        for n in range(3):
            encoder_out[n, FRAMES[n] :] = torch.nan
            predictor_out[n, LABELS[n] + 1 :] = torch.nan
    losses = fused(encoder_out, predictor_out, *layer, activation=activation, impl=impl)
    gradients = torch.autograd.grad(losses.sum(), [encoder_out, predictor_out, *layer])
    assert torch.equal(losses, clean)
    assert all(map(torch.equal, gradients, expected))


def test_no_frames_is_infeasible_with_gradient_zero():
    given = operands()
    losses = rnnt_joint_loss(*given, TARGETS, [9, 0, 5], LABELS, reduction="none")
    assert losses[1] == torch.inf
    gradients = torch.autograd.grad(losses[1:2], given, torch.ones(1))
    assert all((gradient == 0).all() for gradient in gradients)
    assert rnnt_joint_loss(*operands(), TARGETS, [9, 0, 5], LABELS, reduction="none", zero_infinity=True)[1] == 0


def test_dropout_is_the_same_in_backward():
    torch.manual_seed(3)
    output, dropout = torch.nn.Linear(7, 6).double(), torch.nn.Dropout(0.5)
    encoder_out, predictor_out = operands()[:2]
    masks = []

    def joint(e, p):
        hidden = dropout(torch.tanh(e + p))
        masks.append((hidden == 0).detach())
        return output(hidden)

    loss = rnnt_loss_from_joint(
        joint, encoder_out, predictor_out, TARGETS, FRAMES, LABELS, num_classes=6, rows_per_tile=20
    )
    forward = list(masks)
    loss.backward()
    assert len(masks) == 2 * len(forward)
    assert all(any(torch.equal(mask, again) for again in masks[len(forward) :]) for mask in forward)
    assert output.weight.grad is not None


def test_backward_twice_is_the_same():
    given = operands()
    loss = fused(*given).sum()
    first = torch.autograd.grad(loss, given, retain_graph=True)
    second = torch.autograd.grad(loss, given)
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


def test_the_module_passes_its_options_on():
    module = RNNTJointLoss(reduction="none", fastemit_lambda=0.3, activation="relu")
    expected = fused(*operands(), fastemit_lambda=0.3, activation="relu")
    assert torch.equal(module(*operands(), TARGETS, FRAMES, LABELS), expected)


ERRORS = {
    "predictor_out must have shape (N, U+1, H) = (3, any, 7); got shape (3, 6, 5)": {"predictor_out": (3, 6, 5)},
    "weight must have shape (V, H) = (any, 7); got shape (6, 4)": {"weight": (6, 4)},
    "bias must have shape (V) = (6); got shape (5,)": {"bias": (5,)},
}


@pytest.mark.parametrize("message, sizes", ERRORS.items())
def test_shapes_that_do_not_fit(message, sizes):
    given = [torch.zeros(size) for size in (SIZES | sizes).values()]
    with pytest.raises(InvalidValueError) as raised:
        fused(*given)
    assert str(raised.value) == f"rnnt_joint_loss: {message}"


def test_operands_of_different_dtypes():
    given = [*operands()[:3], operands(torch.float32)[3]]
    with pytest.raises(InvalidTypeError, match="bias must have encoder_out's dtype and device, float64 on cpu"):
        fused(*given)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"activation": "softplus"}, "activation must be one of tanh, relu, sigmoid, gelu; got 'softplus'"),
        ({"gate": -1.0}, "gate must be finite and at least 0; got -1.0"),
        ({"tile_memory": 0}, "tile_memory must be finite and at least 1; got 0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(InvalidValueError) as raised:
        fused(*operands(), **options)
    assert str(raised.value) == f"rnnt_joint_loss: {message}"


def test_a_joiner_of_another_shape():
    given = operands()
    with pytest.raises(InvalidValueError, match=r"joint_fn must return logits of shape \(R, V\)"):
        rnnt_loss_from_joint(lambda e, p: e[:, :3], *given[:2], TARGETS, FRAMES, LABELS, num_classes=6)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to ask for the peak of memory")
def test_memory_is_a_tile_and_a_few_planes():
    # 97 200 nodes; their logits alone would be 185 MiB.
    code = """
        import torch
        from pathlib import Path
        from pathsum.torch import rnnt_joint_loss

        def resident(line):
            return float(Path("/proc/self/status").read_text().partition(line)[2].split()[0]) / 1024

        def solve(num_samples, num_frames, num_labels, hidden, classes):
            rows = (num_samples, num_frames, hidden), (num_samples, num_labels + 1, hidden), (classes, hidden)
            given = [torch.ones(shape, requires_grad=True) for shape in (*rows, (classes,))]
            lengths = [num_frames] * num_samples, [num_labels] * num_samples
            Path("/proc/self/clear_refs").write_text("5")
            before = resident("VmRSS:")
            loss = rnnt_joint_loss(*given, torch.zeros(num_samples, num_labels, dtype=torch.int64), *lengths)
            gradients = torch.autograd.grad(loss, given)
            return resident("VmHWM:") - before - sum(gradient.nbytes for gradient in gradients) / 2**20

        solve(2, 5, 3, 8, 8)
        print(solve(4, 300, 80, 256, 500))
    """
    process = [sys.executable, "-c", textwrap.dedent(code)]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    done = subprocess.run(process, capture_output=True, text=True, check=True, env=variables)
    assert 2 < float(done.stdout) < 64
