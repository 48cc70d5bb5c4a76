"""The compiled check and posing of small batches: the lattices of ``problems``, and the verdict of ``_checks``."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathsum import _checks
from pathsum.kernels.numba.posing import COMPILED
from pathsum.problems.asg import pose_asg


@st.composite
def batches(draw):
    """Mostly legal integers: each length and label may be one step outside its range."""
    count, width, num_frames, num_classes = (draw(st.integers(1, most)) for most in (3, 3, 4, 4))
    blank = draw(st.integers(0, num_classes - 1))
    targets = draw(st.lists(st.integers(-1, num_classes), min_size=count * width, max_size=count * width))
    input_lengths = draw(st.lists(st.integers(-1, num_frames + 1), min_size=count, max_size=count))
    target_lengths = draw(st.lists(st.integers(-1, width + 1), min_size=count, max_size=count))
    arrays = np.array(targets).reshape(count, width), np.array(input_lengths), np.array(target_lengths)
    return arrays, num_frames, num_classes, blank


@pytest.mark.parametrize("pose", COMPILED, ids=lambda pose: pose.__name__)
@given(batches())
def test_it_is_the_lattice_of_the_problem_or_none_where_the_check_raises(pose, batch):
    arrays, num_frames, num_classes, blank = batch
    blank = -1 if pose is pose_asg else blank
    found = COMPILED[pose](*arrays, num_frames, 2, num_classes, blank)
    sizes = {"num_samples": len(arrays[0]), "num_frames": num_frames, "max_labels": 2, "num_classes": num_classes}
    try:
        own = None if pose is pose_asg else blank
        checked = _checks.check_batch("f", *arrays, lengths_name="input_lengths", blank=own, **sizes)
    except ValueError:
        assert found is None
        return
    expected = pose(*checked, num_classes if pose is pose_asg else blank)
    found, expected = (lattices if isinstance(lattices, tuple) else (lattices,) for lattices in (found, expected))
    for one, other in zip(found, expected, strict=True):
        for field in fields(other):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), field.name)


def test_a_length_too_many_is_illegal():
    targets, one = np.ones((2, 1), np.int64), np.ones(1, np.int64)
    for lengths in ((one, np.ones(2, np.int64)), (np.ones(2, np.int64), one)):
        for compiled in COMPILED.values():
            assert compiled(targets, *lengths, 3, 1, 3, 0) is None
