"""Posteriors, entropies and expected risks by Triton's kernels, interpreted, against the reference in float64."""

import pytest
import torch

from pathsum.testing import assert_close, chain_inputs, grid_inputs
from pathsum.torch import (
    ctc_entropy,
    ctc_expected_risk,
    ctc_posteriors,
    rnnt_entropy,
    rnnt_expected_risk,
    rnnt_posteriors,
    simple_ctc_entropy,
    simple_ctc_expected_risk,
    simple_ctc_posteriors,
)
from pathsum.torch.paths import tdt_paths
from support import tensor
from triton_targets import interpreted  # noqa: F401

UPSTREAM = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def solved(function, leaves, impl, dtype, second=False):
    """Values, gradients, and where asked for the gradients of what these add up to."""
    leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
    value = function(*leaves, impl=impl)
    gradients = torch.autograd.grad((value * UPSTREAM.to(value)).sum(), leaves, create_graph=second)
    found = [value.detach(), *gradients]
    if second:
        total = sum((gradient * gradient.detach().cos()).sum() for gradient in gradients)
        found += torch.autograd.grad(total, leaves)
    return found


def assert_agrees(function, leaves, dtype=torch.float32, *, absolute, second=False):
    expected = solved(function, leaves, "reference", torch.float64, second)
    found = solved(function, leaves, "triton", dtype, second)
    for actual, wanted in zip(found, expected, strict=True):
        assert_close(actual, wanted, relative=absolute, absolute=absolute)


def grid_case(seed=0):
    """Odd and ragged."""
    inputs = grid_inputs(3, 5, 3, 5, seed=seed)
    inputs.logit_lengths[:], inputs.target_lengths[:] = [5, 4, 3], [3, 2, 1]
    inputs.targets[:] = [[0, 1, 2], [3, 3, 0], [1, 0, 0]]
    logits = tensor(inputs.logits)
    costs = torch.randn(*logits.shape[:3], 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits, costs, inputs[1:]


# (dtype, bound, whether the scores are logits)
GRIDS = [(torch.float32, 2e-5, True), (torch.float64, 1e-11, True), (torch.float64, 1e-11, False)]


@pytest.mark.parametrize("dtype, bound, fused", GRIDS, ids=str)
def test_entropies_and_risks_of_transducers(dtype, bound, fused):
    logits, costs, integers = grid_case()
    logits = logits if fused else logits.log_softmax(-1)
    options = {"reduction": "none", "fused_log_softmax": fused}
    assert_agrees(lambda x, **o: rnnt_entropy(x, *integers, **options, **o), [logits], dtype, absolute=bound)
    both = [logits, costs]
    assert_agrees(lambda x, c, **o: rnnt_expected_risk(x, c, *integers, **options, **o), both, dtype, absolute=bound)


@pytest.mark.parametrize("rnnt_type, dtype, bound", [
    ("modified", torch.float32, 2e-5), ("constrained", torch.float64, 1e-11),
])  # fmt: skip
def test_entropies_and_risks_of_other_transducers(rnnt_type, dtype, bound):
    logits, costs, integers = grid_case(5)
    options = {"reduction": "none", "rnnt_type": rnnt_type}
    assert_agrees(lambda x, **o: rnnt_entropy(x, *integers, **options, **o), [logits], dtype, absolute=bound)
    both = [logits, costs]
    assert_agrees(lambda x, c, **o: rnnt_expected_risk(x, c, *integers, **options, **o), both, dtype, absolute=bound)


def test_entropies_of_transducers_with_durations():
    logits, _, integers = grid_case(6)
    durations = torch.randn(*logits.shape[:3], 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    assert_agrees(
        lambda x, y, **o: tdt_paths(x, y, *integers, (0, 1, 2), **o).entropy(), [logits, durations], torch.float64,
        absolute=1e-11,
    )  # fmt: skip


def test_a_gradient_of_a_transducers_risk_has_a_graph():
    logits, costs, integers = grid_case(1)
    options = {"reduction": "none"}

    def of_costs(c, **o):
        return rnnt_expected_risk(logits.to(c), c, *integers, **options, **o) ** 2

    assert_agrees(of_costs, [costs], torch.float64, absolute=1e-11, second=True)


@pytest.mark.parametrize("rnnt_type", ["regular", "modified"])
def test_transducers_without_paths_or_values(rnnt_type):
    """Of the second sample no blank leaves a frame, the third has a NaN; what no walk passes may cost infinitely."""
    logits, costs, integers = grid_case(2)
    logits[1, 1], logits[2, 1, 0, 0] = -torch.inf, torch.nan
    costs[0, :, 3, 1] = torch.inf
    for entropy in (True, False):
        leaves = [logits.clone().requires_grad_(), costs.clone().requires_grad_()]
        own, given = leaves if not entropy else (leaves[0], None)
        function = rnnt_entropy if entropy else rnnt_expected_risk
        arguments = [own, *integers] if entropy else [own, given, *integers]
        value = function(*arguments, blank=-1, reduction="none", rnnt_type=rnnt_type, impl="triton")
        gradients = torch.autograd.grad(value.sum(), leaves[: 2 - entropy])
        assert value[0].isfinite()
        assert value[1] == 0
        assert value[2].isnan()
        for gradient in gradients:
            assert gradient[0].isfinite().all()
            assert not gradient[1].any()
            assert gradient[2, :3, :2].isnan().all()
            assert not gradient[2, 3:].any()


def test_posteriors_of_transducers():
    logits, _, integers = grid_case(3)
    logits[1, 1, :, -1], logits[2, 1, 0, 0] = -torch.inf, torch.nan
    expected = rnnt_posteriors(logits, *integers, impl="reference")
    for dtype, bound in ((torch.float32, 1e-6), (torch.float64, 1e-12), (torch.bfloat16, 2e-2)):
        found = rnnt_posteriors(logits.to(dtype), *integers, impl="triton")
        for actual, wanted in zip(found, expected, strict=True):
            assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert_close(actual, wanted, relative=0, absolute=bound)


CHAINS = {
    "ctc": (ctc_entropy, ctc_expected_risk, ctc_posteriors),
    "simple_ctc": (simple_ctc_entropy, simple_ctc_expected_risk, simple_ctc_posteriors),
}


def chain_case(seed=0):
    """Odd and ragged, with a label twice in a row."""
    inputs = chain_inputs(5, 3, 5, 3, seed=seed)
    inputs.input_lengths[:], inputs.target_lengths[:] = [5, 4, 3], [3, 2, 1]
    inputs.targets[:] = [[1, 1, 2], [3, 4, 0], [1, 0, 0]]
    logits = tensor(inputs.logits)
    costs = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits, costs, inputs[1:]


@pytest.mark.parametrize("loss", CHAINS)
@pytest.mark.parametrize("dtype, bound, fused", GRIDS, ids=str)
def test_entropies_and_risks_of_chains(loss, dtype, bound, fused):
    logits, costs, integers = chain_case()
    entropy, risk, _ = CHAINS[loss]
    logits = logits if fused else logits.log_softmax(-1) + 1e4
    options = {"reduction": "none", "fused_log_softmax": fused}
    bound = bound if fused else 1e-8
    assert_agrees(lambda x, **o: entropy(x, *integers, **options, **o), [logits], dtype, absolute=bound)
    both = [logits, costs]
    assert_agrees(lambda x, c, **o: risk(x, c, *integers, **options, **o), both, dtype, absolute=bound)


def test_a_gradient_of_a_chains_risk_has_a_graph():
    logits, costs, integers = chain_case(1)
    options = {"reduction": "none", "fused_log_softmax": True}

    def of_costs(c, **o):
        return ctc_expected_risk(logits.to(c), c, *integers, **options, **o) ** 2

    assert_agrees(of_costs, [costs], torch.float64, absolute=1e-11, second=True)


@pytest.mark.parametrize("loss", CHAINS)
def test_chains_without_paths_or_values(loss):
    """Of the second sample a label is impossible, the third has a NaN; what no path takes may cost infinitely."""
    logits, costs, integers = chain_case(2)
    logits[:, 1, 4], logits[1, 2, 0] = -torch.inf, torch.nan
    costs[0, 0, 2] = torch.inf
    for function in CHAINS[loss][:2]:
        given = [logits, costs][: 1 + (function is CHAINS[loss][1])]
        leaves = [leaf.clone().requires_grad_() for leaf in given]
        value = function(*leaves, *integers, reduction="none", fused_log_softmax=True, impl="triton")
        gradients = torch.autograd.grad(value.sum(), leaves)
        assert value[0].isfinite()
        assert value[1] == 0
        assert value[2].isnan()
        for gradient in gradients:
            assert gradient[:, 0].isfinite().all()
            assert not gradient[:, 1].any()
            assert gradient[:3, 2].isnan().all()
            assert not gradient[3:, 2].any()


@pytest.mark.parametrize("loss", CHAINS)
def test_posteriors_of_chains(loss):
    logits, _, integers = chain_case(3)
    logits[:, 1, 4], logits[1, 2, 0] = -torch.inf, torch.nan
    options, function = {"fused_log_softmax": True, "batch_first": False}, CHAINS[loss][2]
    expected = function(logits, *integers, **options, impl="reference")
    for dtype, bound in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        found = function(logits.to(dtype), *integers, **options, impl="triton")
        for actual, wanted in zip(found, expected, strict=True):
            assert actual.dtype == dtype
            assert_close(actual, wanted, relative=0, absolute=bound)


def test_a_long_chains_means_are_swept_in_strips(monkeypatch):
    from pathsum.torch._triton import chain

    logits, costs, integers = chain_case(4)
    options = {"reduction": "none", "fused_log_softmax": True}
    monkeypatch.setattr(chain, "STRIP", 4)
    monkeypatch.setattr(chain, "MEANS_STRIP", 4)
    both = [logits, costs]
    assert_agrees(lambda x, c, **o: ctc_expected_risk(x, c, *integers, **options, **o), both, torch.float64,
                  absolute=1e-11)  # fmt: skip
