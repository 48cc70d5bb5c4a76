"""The shipped helpers: what they make, and that they fail when they should."""

import itertools

import numpy as np
import pytest

from pathsum.problems.ctc import pose_ctc
from pathsum.problems.rnnt import pose_rnnt
from pathsum.testing import (
    assert_close,
    assert_rows_sum_to_zero,
    assert_same_bits,
    chain_inputs,
    concatenate_targets,
    draw,
    enumerate_paths,
    grid_inputs,
    pack_rows,
    sum_over_paths,
    unpack_rows,
)


@pytest.mark.parametrize("expected", [0.0, 1.0, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("actual", [0.0, 1.0, np.inf, -np.inf, np.nan])
def test_assert_close_tells_every_kind_of_number_from_every_other(actual, expected):
    same = actual == expected or (np.isnan(actual) and np.isnan(expected))
    if same:
        assert_close([1.0, actual], [1.0, expected])
    else:
        with pytest.raises(AssertionError, match=r"1 of 2 entries differ; worst at \[1\]"):
            assert_close([1.0, actual], [1.0, expected], absolute=0.5)


def test_assert_close_adds_its_two_bounds():
    assert_close([10.25], [10.0], relative=0.02, absolute=0.0625)
    with pytest.raises(AssertionError, match=r"words.*distance 0\.25, bound 0\.2"):
        assert_close([10.25], [10.0], relative=0.02, what="words")
    with pytest.raises(AssertionError, match=r"bound 0\.0625"):
        assert_close([10.25], [10.0], absolute=0.0625)


def test_assert_close_names_the_worst_entry():
    with pytest.raises(AssertionError, match=r"2 of 4 entries differ; worst at \[1, 0\]: 5, expected 3"):
        assert_close([[1.0, 2.5], [5.0, 4.0]], [[1.0, 2.0], [3.0, 4.0]])


def test_assert_close_compares_shapes_without_broadcasting():
    with pytest.raises(AssertionError, match="shape"):
        assert_close([1.0], 1.0)
    with pytest.raises(AssertionError, match="shape"):
        assert_close(np.zeros((0, 2)), np.zeros((0, 3)))


def test_assert_same_bits_fails_on_the_last_bit_on_dtype_and_on_shape():
    one = np.float32(1)
    assert_same_bits(np.array([one, np.nan, 0.0]), np.array([one, np.nan, -0.0]))
    with pytest.raises(AssertionError, match=r"first at \[1\]"):
        assert_same_bits(np.array([one, one]), np.array([one, np.nextafter(one, np.float32(2))]))
    with pytest.raises(AssertionError, match="dtype float32, expected float64"):
        assert_same_bits(np.ones(1, np.float32), np.ones(1))
    with pytest.raises(AssertionError, match="shape"):
        assert_same_bits(np.ones(1), np.ones((1, 1)))


def test_assert_helpers_read_every_dtype_of_torch():
    torch = pytest.importorskip("torch")
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        scores = torch.ones(2, dtype=dtype, requires_grad=True)
        assert_same_bits(scores, torch.ones(2, dtype=dtype))
        assert_close(scores, [1.0, 1.0])
        with pytest.raises(AssertionError):
            assert_close(scores, [1.0, 1.25])


def test_assert_rows_sum_to_zero_fails_on_one_row():
    rows = np.array([[1.0, -1.0], [0.5, -0.5]])
    assert_rows_sum_to_zero(rows, absolute=0)
    with pytest.raises(AssertionError, match=r"worst at \[1\]"):
        assert_rows_sum_to_zero(rows + np.array([[0, 0], [0, 1e-3]]), absolute=1e-4)
    with pytest.raises(AssertionError):
        assert_rows_sum_to_zero(np.array([[np.nan, 0.0]]), absolute=1.0)


@pytest.mark.parametrize("blank", [0, 2, -1])
def test_factories_draw_legal_inputs_from_a_seed(blank):
    chain = chain_inputs(9, 50, 4, 6, blank=blank, seed=1)
    grid = grid_inputs(50, 9, 6, 4, blank=blank, seed=1)
    assert chain.logits.shape == (9, 50, 4)
    assert grid.logits.shape == (50, 9, 7, 4)
    for targets, lengths in ((chain.targets, chain.target_lengths), (grid.targets, grid.target_lengths)):
        used = np.arange(6) < lengths[:, None]
        assert set(targets[used]) == {0, 1, 2, 3} - {blank % 4}
        assert set(targets[~used]) == {-1}
        assert lengths.min() == 3
        assert lengths.max() == 6
    assert (chain.targets[:, 1:] == chain.targets[:, :-1])[chain.targets[:, 1:] >= 0].mean() > 0.4
    assert_same_bits(chain.logits, chain_inputs(9, 50, 4, 6, blank=blank, seed=1).logits)
    assert (chain.logits != chain_inputs(9, 50, 4, 6, blank=blank, seed=2).logits).all()


def test_factories_fill_the_padded_size_when_told():
    chain = chain_inputs(9, 3, 4, 6, ragged=False)
    assert set(chain.input_lengths) == {9}
    assert set(chain.target_lengths) == {6}


def test_packing_lays_the_samples_one_after_another_and_back():
    padded = np.arange(2 * 3 * 2 * 1.0).reshape(2, 3, 2, 1)
    packed = pack_rows(padded, [1, 3], [1, 0])
    assert packed[:, 0].tolist() == [0, 1, 6, 8, 10]
    unpacked = unpack_rows(packed, padded.shape, [1, 3], [1, 0])
    assert unpacked[:, :, :, 0].tolist() == [[[0, 1], [0, 0], [0, 0]], [[6, 0], [8, 0], [10, 0]]]
    assert concatenate_targets(np.array([[1, 2], [3, -1]]), [2, 1]).tolist() == [1, 2, 3]


def test_enumerated_paths_are_walks_from_start_to_end():
    lattice = pose_ctc(np.array([[1, 1]]), np.array([4]), np.array([2]), blank=0)
    paths = list(enumerate_paths(lattice))
    readings = {tuple(arc.label for arc in path) for path in paths}
    assert readings == {(1, 0, 1, 1), (1, 1, 0, 1), (1, 0, 0, 1), (0, 1, 0, 1), (1, 0, 1, 0)}
    for path in paths:
        assert [arc.row for arc in path] == [(0,), (1,), (2,), (3,)]
        assert all(before.target == after.source for before, after in itertools.pairwise(path))


def test_sum_over_paths_of_one_path_is_its_score_and_its_arcs():
    lattice = pose_rnnt(np.array([[1]]), np.array([1]), np.array([1]), blank=0)
    log_probs = np.log([[[0.25, 0.75], [0.5, 0.5]]])
    log_z, posteriors = sum_over_paths(log_probs, lattice)
    assert_close(log_z, np.log(0.375), absolute=1e-15)
    assert posteriors.tolist() == [[[0, 1], [1, 0]]]
    impossible = sum_over_paths(np.full_like(log_probs, -np.inf), lattice)
    assert impossible.log_z == -np.inf
    assert not impossible.posteriors.any()


def test_a_drawing_shows_the_nodes_on_paths_and_the_dead_ends():
    ctc = pose_ctc(np.array([[5, 5]]), np.array([3]), np.array([2]), blank=0)
    assert draw(ctc).splitlines() == [
        "chain: 3 frames, 5 states, 1 paths",
        "  -1        o",
        "   0  0       . . .",
        "   1  5>      o . .",
        "   2  0         o .",
        "   3  5           o",
        "   4  0",
    ]
    rnnt = pose_rnnt(np.array([[7, 8]]), np.array([2]), np.array([2]), blank=0)
    assert draw(rnnt).splitlines() == [
        "grid: 2 frames, 3 rows, 3 paths",
        "   0  7     o o .",
        "   1  8     o o .",
        "   2        o o o",
    ]
