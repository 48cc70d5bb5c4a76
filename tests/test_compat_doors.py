"""What drop-ins say of arguments of a wrong type, shape or range: their own error, that names the argument."""

import inspect
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
if not hasattr(os, "fork"):
    pytest.skip("no fork on this system", allow_module_level=True)

import torch

from pathsum.compat import doors, gtn, k2, nemo, warprnnt_numba, whisperx
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.testing import assert_close

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
import calls

WITHOUT_TORCH = ("fast_ctc_decode", "keras", "optax", "tensorflow", "tf_seq2seq_losses")
TORCHS = [name for name in calls.names("compat") if name.split(".")[1] not in WITHOUT_TORCH]
WRONG = {
    "bool": ("False", 2, None, 0.5, torch.tensor([True, False]), np.array([1, 0])),
    "int": ("0", 0.5, None, [0], torch.tensor([0, 1]), np.array([0, 1])),
    "float": ("0", None, [0.0], 1j, torch.tensor([0.0, 1.0])),
    "Tensor": (
        3,
        [[1, 2]],
        None,
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, 2, device="meta"),
        np.array(["a"]),
        np.ma.zeros((2, 2)),
    ),
}
ARGUMENTS = [
    (name, argument, kind)
    for name in TORCHS
    for argument, parameter in inspect.signature(calls.function(name)).parameters.items()
    if (kind := str(parameter.annotation)) in WRONG
]


@pytest.mark.parametrize(("name", "argument", "kind"), ARGUMENTS)
def test_what_an_annotation_says_is_checked(name, argument, kind):
    function, given = calls.function(name), calls.base(name)
    for value in WRONG[kind]:
        with pytest.raises((InvalidTypeError, RuntimeError), match=f"{argument} must "):
            function(**given | {argument: value})


def test_all_kinds_of_arguments_are_among_them():
    assert {kind for _, _, kind in ARGUMENTS} == set(WRONG)
    assert len(ARGUMENTS) > 200


def test_doors_pass_what_peers_pass():
    @doors.checked
    def f(a: "int", b: "float" = 1.0, c: "bool | None" = None, d: "Sequence[int]" = (), *, e: "str" = ""):
        return a, b, c, d, e

    assert f(np.int32(3), 2, np.True_, range(2), e="x") == (3, 2.0, True, [0, 1], "x")
    assert f(a=True, c=1, d=np.array([4, 5])) == (1, 1.0, True, [4, 5], "")
    assert f(1, c=None) == (1, 1.0, None, (), "")
    with pytest.raises(TypeError, match="takes from 1 to 4 positional"):
        f(1, 2, None, (), 5)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'a'"):
        f()
    with pytest.raises(InvalidValueError, match="b must be a number; got nan"):
        f(1, float("nan"))
    with pytest.raises(InvalidValueError, match="b must be a number; got 1000"):
        f(1, 10**400)


BOUNDARY = torch.tensor([[0, 0, 2, 5], [0, 0, 1, 4]])


@pytest.mark.parametrize("name", [name for name in TORCHS if ".k2." in name])
def test_the_planes_of_k2_are_read_within_their_bounds(name):
    function, given = calls.function(name), calls.base(name)
    wrong = {
        "symbols": (torch.full((2, 2), 6), torch.full((2, 2), -1), torch.ones(3, 2).long(), torch.ones(2, 2)),
        "boundary": (BOUNDARY + 1, BOUNDARY - 1, BOUNDARY[:1], BOUNDARY[:, :3], BOUNDARY.float(), BOUNDARY.flip(1)),
        "ranges": (torch.full((2, 5, 2), 3), torch.full((2, 5, 2), -1), torch.zeros(2, 4, 2).long()),
        "termination_symbol": (6, -7, 2**62),
        "rnnt_type": ("Regular", ""),
        "s_range": (0, -1),
    }
    if name.endswith("_graph"):
        del wrong["symbols"]  # a list of lists of any length
    for argument, values in wrong.items():
        if argument in inspect.signature(function).parameters:
            for value in values:
                with pytest.raises((InvalidValueError, InvalidTypeError)):
                    function(**given | {argument: value})


def test_k2_takes_integers_of_any_dtype():
    given = calls.base("compat.k2.rnnt_loss_simple")
    expected = k2.rnnt_loss_simple(**given, boundary=BOUNDARY)
    narrow = given | {"symbols": given["symbols"].int(), "boundary": BOUNDARY.short()}
    assert torch.equal(k2.rnnt_loss_simple(**narrow), expected)


def test_classes_and_counts_are_bounded():
    emission = torch.zeros(4, 3)
    for tokens, blank in (([1, 3], 0), ([1], 3), ([-4], 0)):
        with pytest.raises(InvalidValueError, match=r"lie in \[-C, C\) with C = 3"):
            whisperx.get_trellis(emission, tokens, blank)
    for sizes in ((2**40, 1), (2**20, 2**20), (-1, 3)):
        with pytest.raises(InvalidValueError, match=r"^linear_graph: [MN] must lie in"):
            gtn.linear_graph(*sizes)
    with pytest.raises(InvalidValueError, match="acts must have more columns than the 3 of the durations"):
        nemo.TDTLossNumba(0, [0, 1, 2])(torch.zeros(1, 2, 1, 3), [[]], [2], [0])


def test_a_clamp_beyond_the_floats_is_none():
    given = calls.base("compat.warprnnt_numba.rnnt_loss")
    gradients = []
    for clamp in (0.0, 1e300):
        leaf = given["acts"].clone().requires_grad_()
        warprnnt_numba.rnnt_loss(**given | {"acts": leaf}, clamp=clamp).sum().backward()
        gradients.append(leaf.grad)
    assert_close(*gradients, absolute=0)


def test_labels_in_a_row_cannot_have_the_blank_among_them_where_its_arcs_are_told_apart():
    given = calls.base("compat.warprnnt_numba.rnnt_loss")
    with pytest.raises(InvalidValueError, match=r"^rnnt_loss: targets must have shape \(N, U\) where the blank is"):
        warprnnt_numba.rnnt_loss(**given | {"labels": torch.tensor([1, 0, 2])})
