"""Replabels: targets without equal neighbours, and back."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pathsum
from pathsum.replabels import decode_replabels, encode_replabels


@pytest.mark.parametrize("labels, num_replabels, encoded", [
    ([], 1, []),
    ([0], 1, [0]),
    ([0, 0, 1], 1, [0, 2, 1]),
    ([0, 0, 0], 1, [0, 2, 0]),
    ([0, 0, 0, 1], 2, [0, 3, 1]),
    ([1, 1, 1, 1, 1, 1, 1], 2, [1, 3, 1, 3, 1]),
])  # fmt: skip
def test_known_targets(labels, num_replabels, encoded):
    assert encode_replabels(labels, 2, num_replabels) == encoded
    assert decode_replabels(encoded, 2, num_replabels) == labels


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(1, 4))
def test_encoding_has_no_equal_neighbours_and_decodes_to_what_it_was(labels, num_replabels):
    encoded = encode_replabels(labels, 3, num_replabels)
    assert all(first != second for first, second in pairwise(encoded))
    assert decode_replabels(encoded, 3, num_replabels) == labels


def test_decoding_takes_what_a_network_puts_out():
    assert decode_replabels([2, 0, 2, 3], 2, 2) == [0, 0, 0, 0]


@pytest.mark.parametrize("call, message", [
    (lambda: encode_replabels([0, 2], 2), "encode_replabels: labels must lie in [0, 2); got 2"),
    (lambda: decode_replabels([0, 3], 2), "decode_replabels: classes must lie in [0, 3); got 3"),
    (lambda: encode_replabels([0], 2, 0), "encode_replabels: num_replabels must be at least 1; got 0"),
])  # fmt: skip
def test_messages(call, message):
    with pytest.raises(pathsum.InvalidValueError) as caught:
        call()
    assert str(caught.value) == message
