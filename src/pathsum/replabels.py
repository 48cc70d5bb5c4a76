"""Replabels: labels that stand for "the label before once more", for losses that cannot tell a repeat from a stay.

ASG has no blank between labels, so that ``a a`` stretched over frames reads as ``a``. With k replabels, numbered
after the C labels, the target is written without equal neighbours: with k = 1, ``a a b`` becomes ``a 1 b``, with
k = 2, ``a a a b`` becomes ``a 2 b``. The network then has C + k classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from pathsum.errors import InvalidValueError


def encode_replabels(labels: Sequence[int], num_labels: int, num_replabels: int = 1) -> list[int]:
    """Write a target with replabels, without equal neighbours.

    After each label, up to ``num_replabels`` repeats become the one class ``num_labels - 1 + repeats``; a longer run
    starts over with the label itself.

    Args:
        labels: Labels in [0, num_labels).
        num_labels: How many labels there are, C.
        num_replabels: How many classes for repeats follow them, k >= 1.

    Returns:
        Classes in [0, num_labels + num_replabels).

    Raises:
        InvalidValueError: (a ValueError) a label out of range, or ``num_replabels`` below 1.

    Example:
        >>> from pathsum.replabels import encode_replabels
        >>> encode_replabels([0, 0, 1, 1, 1, 1], num_labels=2, num_replabels=2)
        [0, 2, 1, 3, 1]
    """
    _check("encode_replabels", labels, num_labels, num_labels, num_replabels)
    labels = [int(label) for label in labels]
    encoded: list[int] = []
    position = 0
    while position < len(labels):
        label = labels[position]
        repeats = 0
        while repeats < num_replabels and labels[position + 1 + repeats : position + 2 + repeats] == [label]:
            repeats += 1
        encoded += [label, num_labels - 1 + repeats] if repeats else [label]
        position += 1 + repeats
    return encoded


def decode_replabels(classes: Sequence[int], num_labels: int, num_replabels: int = 1) -> list[int]:
    """Read a target, or a best path with its repeats merged, back into labels.

    A replabel with no label before it, as a network may put out, is dropped; one after another replabel repeats the
    same label.

    Args:
        classes: Classes in [0, num_labels + num_replabels).
        num_labels: How many labels there are, C.
        num_replabels: How many classes for repeats follow them, k >= 1.

    Returns:
        Labels in [0, num_labels).

    Raises:
        InvalidValueError: (a ValueError) a class out of range, or ``num_replabels`` below 1.

    Example:
        >>> from pathsum.replabels import decode_replabels
        >>> decode_replabels([0, 2, 1, 3, 1], num_labels=2, num_replabels=2)
        [0, 0, 1, 1, 1, 1]
    """
    _check("decode_replabels", classes, num_labels, num_labels + num_replabels, num_replabels)
    decoded: list[int] = []
    for label in classes:
        if label < num_labels:
            decoded.append(label)
        elif decoded:
            decoded += [decoded[-1]] * (label - num_labels + 1)
    return decoded


def _check(function: str, labels: Sequence[int], num_labels: int, limit: int, num_replabels: int) -> None:
    if num_replabels < 1:
        raise InvalidValueError(function, "num_replabels", "be at least 1", num_replabels)
    for label in labels:
        if not 0 <= label < limit:
            argument = "labels" if limit == num_labels else "classes"
            raise InvalidValueError(function, argument, f"lie in [0, {limit})", label)
