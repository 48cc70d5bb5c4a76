"""The transducer drop-ins: the peers' published numbers and README examples, and the peers themselves where installed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pathsum.compat import nemo, optimized_transducer, speechbrain, torchaudio, warp_rnnt, warp_transducer
from pathsum.compat import warprnnt_numba as wn
from pathsum.testing import assert_close, grid_inputs
from pathsum.torch import rnnt_loss

VECTORS = Path(__file__).parent / "vectors"

# The example that warp-transducer's README and tests have, and after it those of torchaudio, warprnnt_numba,
# SpeechBrain and NeMo: 2 frames, 2 labels, 5 classes, the blank 0.
ACTS = [
    [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.6, 0.1, 0.1], [0.1, 0.1, 0.2, 0.8, 0.1]],
    [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.2, 0.1, 0.1], [0.7, 0.1, 0.2, 0.1, 0.1]],
]
COST = 4.495666
GRADIENT = [
    [
        [-0.13116688, -0.3999269, 0.17703125, 0.17703125, 0.17703125],
        [-0.18572757, 0.12247056, -0.18168412, 0.12247056, 0.12247056],
        [-0.32091254, 0.06269141, 0.06928472, 0.12624499, 0.06269141],
    ],
    [
        [0.05456069, -0.21824276, 0.05456069, 0.05456069, 0.05456069],
        [0.12073959, 0.12073959, -0.48295835, 0.12073959, 0.12073959],
        [-0.6925882, 0.16871116, 0.18645467, 0.16871116, 0.16871116],
    ],
]
INTEGERS = torch.tensor([[1, 2]]).int(), torch.tensor([2]).int(), torch.tensor([2]).int()


def example():
    return torch.tensor([ACTS], requires_grad=True)


def load(peer):
    vectors = json.loads((VECTORS / f"{peer}.json").read_text())["vectors"]
    return [pytest.param(vector, id=f"{i}-{vector['options']}") for i, vector in enumerate(vectors)]


def integers_of(vector):
    names = ("targets", "logit_lengths", "target_lengths")
    return [torch.tensor(vector[name], dtype=torch.int32) for name in names]


@pytest.mark.parametrize("criterion", [
    torchaudio.RNNTLoss(blank=0), warp_transducer.RNNTLoss(), wn.RNNTLossNumba(), wn.rnnt_numpy.RNNTLoss(),
    nemo.RNNTLoss(0, loss_name="pytorch"), nemo.RNNTLoss(0, loss_name="warprnnt"), nemo.RNNTLoss(0),
    nemo.RNNTLoss(0, loss_name="graph_rnnt"), nemo.RNNTLossPytorch(0, "sum"),
], ids=lambda criterion: type(criterion).__module__)  # fmt: skip
def test_the_example_of_them_all(criterion):
    acts = example()
    loss = criterion(acts, *INTEGERS)
    loss.backward()
    assert_close(loss.sum(), COST, absolute=1e-6)
    assert_close(acts.grad[0], GRADIENT, absolute=1e-6)


# --- warprnnt_numba ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", load("warprnnt_numba"))
def test_warprnnt_numba_reports_what_the_peer_does(vector):
    acts = torch.tensor(vector["logits"], requires_grad=True)
    losses = wn.RNNTLossNumba(blank=vector["blank"], reduction="none", **vector["options"])(acts, *integers_of(vector))
    losses.sum().backward()
    assert_close(losses, vector["losses"], relative=1e-6, absolute=1e-6)
    assert_close(acts.grad, vector["gradient"], absolute=3e-6)


# The example of the README, its scores rounded, with the numbers of the peer 0.4.1 on the CPU.
README = json.loads((VECTORS / "warprnnt_numba_readme.json").read_text())["vectors"][0]


def test_warprnnt_numba_readme():
    # The blank, 4, is each sample's first label. And the labels are wider than U: on the CPU the peer goes U entries to
    # the next sample, and so reads the second's from the end of the first's. Given what it reads, its numbers are ours.
    acts, (labels, *lengths) = torch.tensor(README["logits"], requires_grad=True), integers_of(README)
    read = labels.flatten()[:8].view(2, 4)
    criterion = wn.RNNTLossNumba(blank=4, reduction="none", fastemit_lambda=0.0, clamp=0.0)
    loss = criterion(acts, read, *lengths)
    loss.sum().backward()
    assert_close(loss, README["losses"], relative=1e-6)
    assert_close(acts.grad, README["gradient"], absolute=2e-6)
    # As the README says: nothing in the padding of T and of U.
    assert not acts.grad[0, 5:].any()
    assert not acts.grad[0, :, 4:].any()
    as_given = criterion(acts, labels, *lengths)
    assert torch.equal(as_given, criterion(acts, labels[:, :4].contiguous(), *lengths))
    assert torch.equal(as_given[0], loss[0])
    first = wn.RNNTLossNumba(blank=4, reduction="sum", fastemit_lambda=0.001)(acts, labels, *lengths)
    assert first.shape == (1,)
    assert_close(first[0], 1.001 * as_given.sum().detach(), relative=1e-6)


def test_a_label_that_is_the_blank_loses_an_arc_s_gradient_unless_corrected():
    acts, integers = torch.tensor(README["logits"], dtype=torch.float64), integers_of(README)

    def corrected(scores):
        return wn.rnnt_loss(scores, *integers, blank=4, corrected=True)

    def quirk(scores):
        return wn.rnnt_loss(scores, *integers, blank=4)

    assert_close(corrected(acts), quirk(acts), relative=1e-12)
    assert torch.autograd.gradcheck(corrected, acts.requires_grad_())
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(quirk, acts)


def test_fastemit_corrected_reports_the_likelihood():
    acts = example()
    losses = [wn.rnnt_loss(acts, *INTEGERS, fastemit_lambda=0.5, corrected=flag) for flag in (False, True)]
    gradients = [torch.autograd.grad(loss, acts)[0] for loss in losses]
    assert_close(losses[0], 1.5 * losses[1].detach(), relative=1e-6)
    assert_close(gradients[0], gradients[1], relative=1e-6)


def test_the_clamp_of_the_cpu_comes_behind_the_upstream_gradient():
    acts = example()
    (late,) = torch.autograd.grad(10 * wn.rnnt_loss(acts, *INTEGERS, clamp=0.1), acts)
    (early,) = torch.autograd.grad(10 * wn.rnnt_loss(acts, *INTEGERS, clamp=0.1, corrected=True), acts)
    assert_close(late[0], np.clip(10 * np.array(GRADIENT), -0.1, 0.1), absolute=1e-6)
    assert_close(early[0], 10 * np.clip(GRADIENT, -0.1, 0.1), absolute=1e-5)


def test_warprnnt_numba_refuses_what_the_peer_refuses():
    with pytest.raises(ValueError, match="clamp"):
        wn.rnnt_loss(example(), *INTEGERS, clamp=-1.0)
    with pytest.raises(ValueError, match="clamp must be off where the blank is among the labels"):
        wn.rnnt_loss(example(), torch.tensor([[1, 0]]), *INTEGERS[1:], clamp=0.1, corrected=True)


def test_numba_utils():
    minimum = wn.__NUMBA_MINIMUM_VERSION__
    assert wn.numba_utils.numba_cpu_is_supported(minimum)
    assert wn.numba_utils.numba_cuda_is_supported(minimum) == torch.cuda.is_available()


# --- torchaudio -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", load("torchaudio"))
def test_torchaudio_vectors(vector):
    logits = torch.tensor(vector["logits"])
    if vector["options"].get("fused_log_softmax") is False:
        logits = logits.log_softmax(-1)
    logits.requires_grad_()
    losses = torchaudio.RNNTLoss(vector["blank"], reduction="none", **vector["options"])(logits, *integers_of(vector))
    losses.sum().backward()
    assert_close(losses, vector["losses"], relative=1e-6, absolute=1e-6)
    assert_close(logits.grad, vector["gradient"], absolute=3e-6)


def test_torchaudio_half_precision_has_its_own_dtype():
    acts = example().detach().half()
    assert torchaudio.rnnt_loss(acts, *INTEGERS, blank=0).item() == 4.49609375  # what the peer returns
    assert torchaudio.rnnt_loss(acts, *INTEGERS, blank=0, corrected=True).dtype == torch.float32


@pytest.mark.peer
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_torchaudio_itself(reduction):
    peer = pytest.importorskip("torchaudio").functional
    inputs = grid_inputs(3, 7, 3, 5, seed=1)
    inputs.logit_lengths[0], inputs.target_lengths[0] = 7, 3  # it wants one sample of the padded size
    # The last label becomes the blank: neither complains.
    inputs.targets[inputs.targets < 0] = 0
    inputs.targets[0, 2] = 4
    logits = torch.from_numpy(inputs.logits).float()
    integers = [torch.from_numpy(array).int() for array in inputs[1:]]
    ours, theirs = (f(logits, *integers, reduction=reduction) for f in (torchaudio.rnnt_loss, peer.rnnt_loss))
    assert_close(ours, theirs, relative=2e-6)


def test_forced_align_stops_where_the_peer_does():
    log_probs = torch.zeros(2, 3, 4).log_softmax(2)
    targets = torch.tensor([[1, 2], [3, 3]])
    assert torchaudio.forced_align(log_probs, targets)[0].shape == (2, 3)
    lengths = torch.tensor([3, 2])
    with pytest.raises(RuntimeError, match="targets length is too long for CTC, at sample 1"):
        torchaudio.forced_align(log_probs, targets, lengths)
    paths, _ = torchaudio.forced_align(log_probs, targets, lengths, corrected=True)
    assert paths[1].tolist() == [-1, -1, -1]


# --- optimized_transducer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", load("optimized_transducer"))
def test_optimized_transducer_vectors(vector):
    logits = torch.tensor(vector["logits"], requires_grad=True)
    options = {"from_log_softmax": False, "reduction": vector["options"]["reduction"]}
    loss = optimized_transducer.transducer_loss(logits, *integers_of(vector), vector["blank"], **options)
    loss.backward()
    assert_close(loss, vector["losses"], relative=1e-6, absolute=1e-6)
    assert_close(logits.grad, vector["gradient"], absolute=3e-6)


def readme_joiner(seed=0):
    """The two halves of the README's example: a joiner over padded frames, and over the real ones alone."""
    random = torch.Generator().manual_seed(seed)
    num_samples, num_frames, num_labels, width = 2, 6, 3, 4
    encoder_out = torch.rand(num_samples, num_frames, width, generator=random)
    decoder_out = torch.rand(num_samples, num_labels + 1, width, generator=random)
    linear = torch.nn.Linear(width, 5)
    logit_lengths, target_lengths = torch.tensor([6, 4]), torch.tensor([2, 3])
    targets = torch.tensor([[1, 2, 0], [4, 4, 3]])
    padded = linear(torch.tanh(encoder_out.unsqueeze(2) + decoder_out.unsqueeze(1)))
    rows = [
        (encoder_out[i, :t].unsqueeze(1) + decoder_out[i, : u + 1].unsqueeze(0)).reshape(-1, width)
        for i, (t, u) in enumerate(zip(logit_lengths, target_lengths, strict=True))
    ]
    packed = linear(torch.tanh(torch.cat(rows)))
    return linear, padded, packed, (targets, logit_lengths, target_lengths)


def test_optimized_transducer_readme():
    linear, padded, packed, integers = readme_joiner()
    options = {"blank": 0, "reduction": "mean"}
    before = torchaudio.rnnt_loss(padded, *integers, **options)
    after = optimized_transducer.transducer_loss(packed, *integers, from_log_softmax=False, **options)
    normalised = optimized_transducer.transducer_loss(
        packed.log_softmax(-1), *integers, from_log_softmax=True, **options
    )
    gradients = [torch.autograd.grad(loss, linear.weight, retain_graph=True)[0] for loss in (before, after, normalised)]
    for loss, gradient in ((after, gradients[1]), (normalised, gradients[2])):
        assert_close(loss, before, relative=1e-6)
        assert_close(gradient, gradients[0], absolute=1e-6)


def test_optimized_transducer_one_symbol_a_frame():
    # The last frame is a blank: of T - 1 frames any U have a label.
    loss = optimized_transducer.transducer_loss(
        torch.zeros(5 * 3, 2), torch.tensor([[1, 1]]), torch.tensor([5]), torch.tensor([2]), 0, False, True, "sum"
    )
    assert_close(2**5 / loss.exp(), 6.0, relative=1e-6)


def test_optimized_transducer_has_no_reduction_none_and_keeps_the_logits():
    _, _, packed, integers = readme_joiner()
    with pytest.raises(AssertionError):
        optimized_transducer.transducer_loss(packed, *integers, 0, False, reduction="none")
    criterion = optimized_transducer.TransducerLoss(blank=0, reduction="sum")
    logits = packed.detach().requires_grad_()
    before = logits.detach().clone()
    criterion(logits, *integers, from_log_softmax=False).backward()
    assert torch.equal(logits.detach(), before)
    gradient = logits.grad
    overwritten = before.clone().requires_grad_()
    options = {"from_log_softmax": False, "reduction": "sum", "overwrite_logits": True}
    optimized_transducer.transducer_loss(overwritten, *integers, 0, **options).backward()
    assert torch.equal(overwritten.grad, gradient)
    assert torch.equal(overwritten.detach(), gradient)


# --- warp_rnnt --------------------------------------------------------------------------------------------------------

# warp-rnnt's test_forward_batch: the example above, and it again with a frame more; gradients by log-probabilities.
WARP_RNNT_COSTS = [4.495666773770733, 5.7367250428101615]
WARP_RNNT_FIRST = [
    [[-0.308198071906, -0.6918019280939998, 0, 0, 0], [-0.308198071906, 0, -0.3836038561880001, 0, 0],
     [-0.3836038561880001, 0, 0, 0, 0]],
    [[0, -0.308198071906, 0, 0, 0], [0, 0, -0.6163961438119995, 0, 0], [-1, 0, 0, 0, 0]],
]  # fmt: skip


def warp_rnnt_batch():
    logits = torch.zeros(2, 3, 3, 5)
    logits[:, :2] = torch.tensor(ACTS)
    logits[1, 2] = torch.tensor(ACTS[0])
    labels, frames = torch.tensor([[1, 2], [1, 2]]).int(), torch.tensor([2, 3]).int()
    return logits.log_softmax(-1).requires_grad_(), labels, frames, torch.tensor([2, 2]).int()


@pytest.mark.parametrize("options", [{}, {"gather": True}, {"reduction": None}], ids=str)
def test_warp_rnnt(options):
    log_probs, *integers = warp_rnnt_batch()
    costs = warp_rnnt.rnnt_loss(log_probs, *integers, **options)
    costs.sum().backward()
    assert_close(costs, WARP_RNNT_COSTS, absolute=1e-6)
    assert_close(log_probs.grad[0, :2], WARP_RNNT_FIRST, absolute=1e-6)
    assert not log_probs.grad[0, 2].any()


def test_warp_rnnt_options():
    log_probs, labels, frames, lengths = warp_rnnt_batch()
    packed = torch.cat([log_probs[0, :2].reshape(-1, 5), log_probs[1].reshape(-1, 5)])
    compact = warp_rnnt.rnnt_loss(packed.double(), labels.flatten(), frames, lengths, compact=True)
    assert compact.dtype == torch.float32
    assert_close(compact, WARP_RNNT_COSTS, absolute=1e-6)
    mean = warp_rnnt.rnnt_loss(log_probs, labels, frames, lengths, average_frames=True, reduction="mean")
    assert_close(mean, np.mean(np.array(WARP_RNNT_COSTS) / [2, 3]), absolute=1e-6)
    plain, emphasised = (
        torch.autograd.grad(warp_rnnt.rnnt_loss(log_probs, labels, frames, lengths, **o).sum(), log_probs)[0]
        for o in ({}, {"fastemit_lambda": 1.0})
    )
    assert_close(emphasised[..., 0], plain[..., 0], relative=1e-6)
    assert_close(emphasised[..., 1:], 2 * plain[..., 1:], relative=1e-6)


# --- warp_transducer --------------------------------------------------------------------------------------------------


def test_warp_transducer_has_one_number_in_a_row():
    acts, integers = example(), INTEGERS
    assert warp_transducer.rnnt_loss(acts, *integers, reduction="none").shape == (1,)
    for reduction in ("mean", "sum"):
        assert warp_transducer.rnnt_loss(acts.expand(2, -1, -1, -1), *(x.repeat(2, *[1] * (x.ndim - 1)) for x in integers),
                                         reduction=reduction).shape == (1,)  # fmt: skip
    espnet = warp_transducer.RNNTLoss(fastemit_lambda=0.001)
    assert_close(espnet(acts, *integers), [COST], absolute=1e-6)  # the gradient alone is emphasised


# --- SpeechBrain ------------------------------------------------------------------------------------------------------


def test_speechbrain_docstring():
    # The example of TransducerLoss, without its .cuda().
    loss = speechbrain.TransducerLoss(blank=0)
    logits = torch.randn((1, 2, 3, 5)).requires_grad_()
    labels, act_length, label_length = torch.Tensor([[1, 2]]).int(), torch.Tensor([2]).int(), torch.Tensor([2]).int()
    out = loss(logits, labels, act_length, label_length)
    out.backward()
    assert_close(out, rnnt_loss(logits, labels, act_length, label_length, blank=0) / 2, relative=1e-6)
    assert logits.grad.isfinite().all()


def test_speechbrain_s_own_number_and_its_gradient():
    # Its test_transducer_loss: 2.2478. The gradient is that of the loss not divided by the frames.
    acts = example()
    loss = speechbrain.TransducerLoss(blank=0)(acts, *INTEGERS)
    loss.backward()
    assert_close(loss, 2.2478, absolute=1e-4)
    assert_close(acts.grad[0], GRADIENT, absolute=1e-6)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_speechbrain_s_gradient_is_divided_by_nothing(reduction):
    inputs = grid_inputs(3, 5, 3, 4, seed=2, blank=0)
    log_probs = torch.from_numpy(inputs.logits).log_softmax(-1).requires_grad_()
    integers = [torch.from_numpy(array) for array in inputs[1:]]
    losses = rnnt_loss(log_probs, *integers, blank=0, reduction="none", fused_log_softmax=False)
    (expected,) = torch.autograd.grad(losses.sum(), log_probs)
    value = speechbrain.Transducer.apply(log_probs, *integers, 0, reduction)
    (gradient,) = torch.autograd.grad(value.sum(), log_probs)
    divided = (losses / integers[1]).detach()
    reduced = {"none": divided, "sum": divided.sum(), "mean": divided.mean()}[reduction]
    assert_close(value, reduced, relative=1e-12)
    assert_close(gradient, expected, absolute=1e-12)
    assert torch.autograd.gradcheck(
        lambda scores: speechbrain.transducer_loss(scores, *integers, 0, reduction, corrected=True), log_probs
    )


def test_an_infeasible_sample_costs_only_itself():
    log_probs = torch.zeros(2, 3, 2, 2).log_softmax(-1).requires_grad_()
    integers = torch.tensor([[1], [1]]), torch.tensor([0, 3]), torch.tensor([1, 1])
    loss = speechbrain.transducer_loss(log_probs, *integers, 0, "sum")
    loss.backward()
    assert loss.isinf()
    assert not log_probs.grad[0].any()
    assert log_probs.grad[1].any()
    assert log_probs.grad.isfinite().all()


# --- NeMo -------------------------------------------------------------------------------------------------------------


def nemo_batch():
    inputs = grid_inputs(3, 6, 3, 5, seed=3)
    logits = torch.from_numpy(inputs.logits).requires_grad_()
    return (
        logits,
        *(torch.from_numpy(array) for array in (inputs.targets, inputs.logit_lengths)),
        torch.tensor([3, 1, 2]),
    )


@pytest.mark.parametrize("reduction, expected", [
    (None, lambda x, u: x), ("sum", lambda x, u: x.sum()), ("mean_batch", lambda x, u: x.mean()),
    ("mean", lambda x, u: (x / u).mean()), ("mean_volume", lambda x, u: x.sum() / u.sum()),
], ids=str)  # fmt: skip
def test_nemo_reductions(reduction, expected):
    logits, _, frames, lengths = nemo_batch()
    targets = torch.tensor([[0, 1, 2], [3, 0, 0], [1, 1, 0]])
    losses = rnnt_loss(logits, targets, frames, lengths, reduction="none")
    actual = nemo.RNNTLoss(4, reduction)(
        log_probs=logits, targets=targets, input_lengths=frames, target_lengths=lengths
    )
    assert_close(actual, expected(losses, lengths), relative=1e-12)


def test_nemo_loss_kwargs():
    acts = example()
    emphasised = nemo.RNNTLoss(0, loss_kwargs={"fastemit_lambda": 0.01})(acts, *INTEGERS)
    assert_close(emphasised, 1.01 * COST, absolute=1e-5)
    with pytest.warns(UserWarning, match="takes no fastemit_lambda; ignored"):
        plain = nemo.RNNTLoss(0, loss_name="pytorch", loss_kwargs={"fastemit_lambda": 0.01})
    assert_close(plain(acts, *INTEGERS), COST, absolute=1e-6)
    with pytest.raises(ValueError, match="reduction"):
        nemo.RNNTLoss(0, reduction="batchmean")
    with pytest.raises(ValueError, match="loss_name"):
        nemo.RNNTLoss(0, loss_name="flash")


# NeMo, TestTDTLoss, the fixed case: 3 frames, 1 label, 3 labels and the blank, durations 0 1 2, all logits 0.
TDT = torch.zeros(1, 3, 2, 7, dtype=torch.float64), torch.tensor([[0]]), torch.tensor([3]), torch.tensor([1])
TDT_OPTIONS = {"blank": 3, "durations": [0, 1, 2], "sigma": 0.05}


@pytest.mark.parametrize("criterion", [
    nemo.TDTLossNumba(**TDT_OPTIONS), nemo.TDTLossPytorch(**TDT_OPTIONS),
    nemo.RNNTLoss(3, loss_name="tdt", loss_kwargs={"durations": [0, 1, 2], "sigma": 0.05}),
], ids=lambda criterion: type(criterion).__name__)  # fmt: skip
def test_nemo_tdt(criterion):
    assert_close(criterion(*TDT).sum(), 4.155739, absolute=1e-6)


def test_nemo_tdt_emphasises_and_clamps_the_labels_alone():
    def gradient(**options):
        acts = TDT[0].clone().requires_grad_()
        loss = nemo.TDTLossNumba(**TDT_OPTIONS, **options)(acts, *TDT[1:])
        loss.backward()
        return loss.detach(), acts.grad[..., :4], acts.grad[..., 4:]

    loss, labels, durations = gradient()
    emphasised = gradient(fastemit_lambda=0.5)
    assert_close(emphasised[0], 1.5 * loss, relative=1e-9)
    assert (emphasised[1] - labels).abs().max() > 0.1
    assert_close(emphasised[2], durations, absolute=1e-12)
    clamped = gradient(clamp=0.05)
    assert_close(clamped[1], labels.clamp(-0.05, 0.05), absolute=1e-12)
    assert_close(clamped[2], durations, absolute=1e-12)


def test_nemo_omega_scores_as_plain_rnnt():
    always = nemo.TDTLossNumba(**TDT_OPTIONS, omega=1.1)
    acts = torch.randn(1, 3, 2, 7, generator=torch.Generator().manual_seed(0))
    assert_close(always(acts, *TDT[1:]), [rnnt_loss(acts[..., :4], *TDT[1:])], relative=1e-6)


def test_nemo_multi_blank():
    # NeMo's layout: labels, big blanks, the blank last; the duration 2 belongs to the column next to the blank.
    acts = torch.randn(2, 5, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    integers = torch.tensor([[0, 1], [3, 2]]), torch.tensor([5, 4]), torch.tensor([2, 1])
    options = {"big_blank_durations": [2, 4], "sigma": 0.1}
    numba = nemo.MultiblankRNNTLossNumba(6, reduction="sum", **options)(acts, *integers)
    assert numba.shape == (1,)
    assert_close(nemo.MultiblankRNNTLossPytorch(6, **options)(acts, *integers), numba[0], relative=1e-12)
    closed = acts.clone()
    closed[..., 4:6] = -torch.inf  # without big blanks it is RNN-T, an arc costing sigma more
    arcs = (integers[1] + integers[2]).double()
    expected = rnnt_loss(closed, *integers, reduction="none") + 0.1 * arcs
    actual = nemo.MultiblankRNNTLossNumba(6, reduction="none", **options)(closed, *integers)
    assert_close(actual, expected, relative=1e-12)


def test_nemo_graph_w_transducer():
    logits, _, frames, lengths = nemo_batch()
    targets = torch.tensor([[0, 1, 2], [3, 0, 0], [1, 1, 0]])
    plain = rnnt_loss(logits, targets, frames, lengths, reduction="none")
    options = {"eps_weight": -1e9, "last_blank_mode": "allow_ignore"}
    criterion = nemo.RNNTLoss(4, None, "graph_w_transducer", options)
    assert_close(criterion(logits, targets, frames, lengths), plain, relative=1e-9)
    assert (nemo.GraphWTransducerLoss(4)(logits, targets, frames, lengths) < plain).all()
