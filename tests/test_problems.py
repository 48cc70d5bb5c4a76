"""Posing alone, no kernel: each lattice has exactly the paths its loss is about."""

import itertools
from math import comb

import numpy as np
import pytest

from pathsum.lattice import GridLattice
from pathsum.problems.ctc import pose_ctc
from pathsum.problems.rnnt import pose_rnnt
from pathsum.problems.simple_ctc import pose_simple_ctc
from pathsum.testing import count_paths, enumerate_paths

# Empty, single, distinct, one repeat, all the same, repeats apart and at both ends.
TARGETS = [[], [1], [1, 2], [1, 1], [2, 2, 2], [1, 2, 1], [1, 1, 2, 2], [2, 1, 1, 1, 2]]


def pose(problem, target, num_frames, blank=0):
    padded = np.array([[*target, -1]])  # what is beyond the length must not matter
    return problem(padded, np.array([num_frames]), np.array([len(target)]), blank)


def repeats(target):
    return sum(a == b for a, b in itertools.pairwise(target))


# T = 0 (only the empty target fits), 1, the shortest that fits, one less, and longer.
@pytest.mark.parametrize("num_frames", range(8))
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_path_counts_have_their_closed_forms(target, num_frames):
    count, again = len(target), repeats(target)
    spare = num_frames + count - again
    assert count_paths(pose(pose_ctc, target, num_frames)) == comb(spare, 2 * count)
    assert count_paths(pose(pose_simple_ctc, target, num_frames)) == comb(num_frames, count)
    walks = comb(num_frames - 1 + count, count) if num_frames else 0
    assert count_paths(pose(pose_rnnt, target, num_frames)) == walks


def test_counting_is_exact_where_floats_are_not():
    target = [1 + s % 2 for s in range(100)]
    assert count_paths(pose(pose_ctc, target, 300)) == comb(400, 200)
    assert count_paths(pose(pose_rnnt, target, 300)) == comb(399, 100)


def collapse(labelling, blank):
    return [label for label, _ in itertools.groupby(labelling) if label != blank]


# Blank first, in the middle and last, among three classes; every labelling of up to five frames.
@pytest.mark.parametrize("blank", [0, 1, 2])
@pytest.mark.parametrize("num_frames", [0, 1, 3, 5])
def test_chains_hold_exactly_the_labellings_that_read_as_the_target(num_frames, blank):
    first, second = (label for label in range(3) if label != blank)
    for target in ([], [first], [first, first], [first, second], [second, second, first]):
        labellings = list(itertools.product(range(3), repeat=num_frames))
        for problem, read in (
            (pose_ctc, collapse),
            (pose_simple_ctc, lambda labelling, blank: [label for label in labelling if label != blank]),
        ):
            paths = enumerate_paths(pose(problem, target, num_frames, blank))
            found = [tuple(arc.label for arc in path) for path in paths]
            assert sorted(found) == sorted(pi for pi in labellings if read(pi, blank) == target)


def test_walks_hold_every_order_of_blanks_and_labels_that_ends_in_a_blank():
    paths = enumerate_paths(pose(pose_rnnt, [5, 5, 6], 2, blank=0))
    orders = {tuple(arc.kind for arc in path) for path in paths}
    expected = {order for order in itertools.permutations(["blank"] * 2 + ["label"] * 3) if order[-1] == "blank"}
    assert orders == expected


@pytest.mark.parametrize("problem", [pose_ctc, pose_simple_ctc, pose_rnnt])
def test_a_lattice_depends_only_on_its_own_sample(problem):
    targets = np.array([[1, 2, 2, -1], [3, 3, 3, 3], [1, -1, -1, -1]])
    lengths, target_lengths = np.array([6, 9, 2]), np.array([3, 4, 1])
    batch = problem(targets, lengths, target_lengths, 0)
    for n in range(3):
        alone = problem(targets[n : n + 1, : target_lengths[n]], lengths[n : n + 1], target_lengths[n : n + 1], 0)
        assert list(map(arcs, enumerate_paths(batch, n))) == list(map(arcs, enumerate_paths(alone)))


def arcs(path):
    return [(arc.kind, arc.row, arc.label) for arc in path]


@pytest.mark.parametrize("problem", [pose_ctc, pose_simple_ctc, pose_rnnt])
def test_labels_beyond_a_target_leave_no_trace(problem):
    lengths = np.array([5, 4]), np.array([2, 0])
    clean = problem(np.array([[1, 2, 0], [0, 0, 0]]), *lengths, 0)
    for garbage in (-1, 10**12, 1):
        lattice = problem(np.array([[1, 2, garbage], [garbage] * 3]), *lengths, 0)
        for name, value in vars(clean).items():
            assert np.array_equal(getattr(lattice, name), value), name


@pytest.mark.parametrize("problem", [pose_ctc, pose_simple_ctc, pose_rnnt])
def test_posing_speaks_the_namespace_of_its_input(problem):
    torch = pytest.importorskip("torch")
    arrays = np.array([[1, 2, 2], [3, 1, -1]]), np.array([6, 4]), np.array([3, 2])
    ours, theirs = problem(*arrays, 0), problem(*map(torch.from_numpy, arrays), 0)
    for name, value in vars(ours).items():
        other = getattr(theirs, name)
        assert isinstance(other, torch.Tensor) == isinstance(value, np.ndarray)
        assert np.array_equal(np.asarray(other), value), name


def test_rows_are_numbered_past_32_bits():
    lattice = pose_rnnt(np.ones((3, 1), np.int64), np.full(3, 2**31), np.array([1, 1, 1]), 0)
    assert isinstance(lattice, GridLattice)
    assert lattice.row_offsets.tolist() == [0, 2**32, 2**33, 3 * 2**32]
