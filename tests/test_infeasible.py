"""What is said of samples that do not fit, beside the losses themselves: they are infinite there and nowhere else."""

import itertools

import numpy as np
import pytest
import torch

from pathsum.torch import (
    ar_rnnt_loss,
    asg_loss,
    ctc_loss,
    infeasible,
    multi_blank_rnnt_loss,
    rnnt_loss,
    simple_ctc_loss,
    tdt_loss,
    wildcard_rnnt_loss,
)

MOST = 9
TARGETS = [[], [1], [1, 1], [1, 2], [1, 1, 1], [2, 1, 1], [1, 2, 1]]
GRIDS = {
    **{("rnnt", kind): {"rnnt_type": kind} for kind in ("regular", "modified", "one_sym_per_frame", "constrained")},
    ("wildcard_rnnt", "blank"): {},
    ("multi_blank", "2"): {},
    **{
        ("tdt", f"{durations} {final}"): {"durations": durations, "final": final}
        for durations in ([0, 1, 2], [0, 2], [2], [1, 2], [3, 2], [0, 3, 5], [4, 6])
        for final in ("blank", "any")
    },
}


def losses(name, options, batch):
    """Of scores of zeros, by the loss itself; so every loss that has a path is finite."""
    targets, lengths, sizes = batch
    options = options | {"reduction": "none", "impl": "reference"}
    chain = torch.zeros(MOST, len(lengths), 3)
    grid = torch.zeros(len(lengths), MOST, 4, 5)
    if name in ("ctc", "simple_ctc"):
        return {"ctc": ctc_loss, "simple_ctc": simple_ctc_loss}[name](chain, targets, lengths, sizes, **options)
    if name == "asg":
        return asg_loss(chain, targets, torch.zeros(3, 3), lengths, sizes, **options)
    if name == "tdt":
        return tdt_loss(grid, grid[..., : len(options["durations"])], targets, lengths, sizes, **options)
    if name == "multi_blank":
        return multi_blank_rnnt_loss(grid, targets, lengths, sizes, [2], [3], **options)
    return {"rnnt": rnnt_loss, "wildcard_rnnt": wildcard_rnnt_loss}[name](grid, targets, lengths, sizes, **options)


@pytest.mark.filterwarnings("ignore:asg_loss")
@pytest.mark.parametrize(
    "name, options",
    [("ctc", {}), ("simple_ctc", {}), ("asg", {}), *((name, options) for (name, _), options in GRIDS.items())],
)
def test_infinite_losses_are_those_that_are_named(name, options):
    cases = list(itertools.product(TARGETS, range(MOST + 1)))
    targets = torch.tensor([target + [0] * (3 - len(target)) for target, _ in cases])
    lengths, sizes = [frames for _, frames in cases], [len(target) for target, _ in cases]
    found = {each.sample: each for each in infeasible(name, targets, lengths, sizes, **options)}
    infinite = losses(name, options, (targets, lengths, sizes)) == torch.inf
    assert infinite.any()
    assert sorted(found) == infinite.nonzero()[:, 0].tolist()
    # The number needed is the least that fits, from what there is on.
    fits = {(tuple(target), frames) for n, (target, frames) in enumerate(cases) if not infinite[n]}
    for n, each in found.items():
        target, frames = cases[n]
        more = [t for t in range(frames, MOST + 1) if (tuple(target), t) in fits]
        assert each.frames == frames
        if more:
            assert each.needed == more[0]
        else:
            assert each.needed is None or each.needed > MOST


@pytest.mark.parametrize("kind", ["regular", "modified", "one_sym_per_frame", "constrained"])
@pytest.mark.parametrize("left, right", [(0, 0), (1, 0), (0, 2)])
def test_infinite_losses_of_alignments_are_those_that_are_named(left, right, kind):
    cases = [
        (frames, size, a, b)
        for frames in range(1, 5)
        for size in range(3)
        for a in range(frames)
        for b in range(frames)
    ]
    lengths, sizes, alignment = [case[0] for case in cases], [case[1] for case in cases], [case[2:] for case in cases]
    targets = [[1, 2]] * len(cases)

    def fits(num_frames):
        logits, buffers = torch.zeros(len(cases), 9, 3, 4), {"left": left, "right": right, "rnnt_type": kind}
        options = {"reduction": "none", "impl": "reference", **buffers}
        return ar_rnnt_loss(logits, targets, num_frames, sizes, alignment, **options) < torch.inf

    arguments = {"alignment": alignment, "left": left, "right": right, "rnnt_type": kind}
    found = {each.sample: each for each in infeasible("ar_rnnt", targets, lengths, sizes, **arguments)}
    assert sorted(found) == (~fits(lengths)).nonzero()[:, 0].tolist()
    ever = torch.stack([fits([max(length, frames) for length in lengths]) for frames in range(10)])
    for n, each in found.items():
        if each.needed is None:
            assert not ever[:, n].any()
        else:
            assert each.needed == max(int(ever[:, n].int().argmax()), each.frames)


def test_why():
    (found,) = infeasible("ctc", [1, 1, 2], 3, 3)
    assert found == (
        0,
        3,
        4,
        "needs 4 frames, has 3: a frame for each of 3 labels, and a blank between equal neighbours 1 time",
    )
    (found,) = infeasible("asg", [[]], [2])
    assert (found.needed, found.reason) == (
        None,
        "fits no number of frames but 0, has 2: an empty target spells no frame at all",
    )
    (found,) = infeasible("rnnt", [[1, 2]], np.array([0], np.uint8))
    assert found.reason == "needs 1 frame, has 0: a walk has at least one frame"
    (found,) = infeasible("tdt", [[1, 2]], [5], durations=[2, 4])
    assert (
        found.reason
        == "needs 6 frames, has 5: a sum of 3 or more of the durations 2, 4, for 2 labels and the last blank"
    )
    assert infeasible("ctc", [1, 2, 3, 3], [2, 3], [2, 2]) == []
    bands = {"alignment": [3, 0], "left": 1, "right": 1}
    (found,) = infeasible("ar_rnnt", [1, 2], 4, **bands)
    assert found.reason == (
        "fits no number of frames, has 4: label 1 is to be in frames 0 to 1, and behind those before it"
    )
    (found,) = infeasible("ar_rnnt", [[1, 2]], [2], alignment=[[1, 1]], left=0, right=1, rnnt_type="modified")
    assert found.reason == "needs 3 frames, has 2: the last label is in frame 2 at the earliest"


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: infeasible("hmm", [[1]], [1]), "infeasible: loss must be one of ctc"),
        (lambda: infeasible("ctc", [1], [1]), "infeasible: target_lengths must be given"),
        (lambda: infeasible("ctc", [[1]], [-1]), "infeasible: input_lengths must be at least 0; got -1 at sample 0"),
        (lambda: infeasible("ctc", [[1]], [1, 2]), "infeasible: target_lengths must have one entry a sample, N = 2"),
        (lambda: infeasible("ar_rnnt", [[1]], [1]), "infeasible: alignment must be given with loss='ar_rnnt'"),
        (lambda: infeasible("rnnt", [[1]], [1], right=1), "infeasible: right must be given with loss='ar_rnnt'"),
        (
            lambda: infeasible("ar_rnnt", [[1]], [1], alignment=[[1]], left=0, right=0),
            r"infeasible: alignment must lie in \[0, T_n\)",
        ),
        (
            lambda: infeasible("ar_rnnt", [[1]], [1], alignment=[[0]], left=-1, right=0),
            "infeasible: left must be at least 0",
        ),
        (lambda: infeasible("tdt", [[1]], [1]), "infeasible: durations must be given with loss='tdt'"),
        (lambda: infeasible("ctc", [[1]], [1], durations=[1]), "infeasible: durations must be given with loss='tdt'"),
        (lambda: infeasible("rnnt", [[1]], [1], rnnt_type="x"), "infeasible: rnnt_type must be one of"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
