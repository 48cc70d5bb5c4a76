"""The transducer's variants for the tests: how each is called, and its paths written out from its definition alone."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from pathsum.torch import (
    ar_rnnt_loss,
    multi_blank_rnnt_loss,
    rnnt_loss,
    rnnt_packed_loss,
    tdt_loss,
    wildcard_rnnt_loss,
)
from pathsum.torch.paths import (
    ar_rnnt_paths,
    multi_blank_rnnt_paths,
    rnnt_paths,
    tdt_paths,
    wildcard_rnnt_paths,
)

BLANK, NUM_CLASSES = 1, 6


class Variant(NamedTuple):
    """A loss with its options.

    Attributes:
        heads: how many classes each tensor of logits has.
        loss: called with the tensors, targets, lengths and further options; padded or packed.
        paths: its paths, made of the same.
        arcs: given the tensors of one sample (T, U+1, V), its target and T: a function of (t, u) that lists the arcs
            out of a node, (t after, u after, score, whether it is a label).
    """

    heads: tuple[int, ...]
    loss: Callable
    paths: Callable
    arcs: Callable


def hat_log_probs(logits):
    """log sigmoid for the blank; log(1 - sigmoid) + log-softmax of the rest for the others."""
    others = torch.cat([logits[..., :BLANK], logits[..., BLANK + 1 :]], -1).log_softmax(-1)
    others = others + torch.nn.functional.logsigmoid(-logits[..., BLANK : BLANK + 1])
    blank = torch.nn.functional.logsigmoid(logits[..., BLANK : BLANK + 1])
    return torch.cat([others[..., :BLANK], blank, others[..., BLANK:]], -1)


def rnnt(rnnt_type="regular", delay_penalty=0.0, hat=False, **band):
    options = {"rnnt_type": rnnt_type, "delay_penalty": delay_penalty, "hat": hat}

    def loss(heads, targets, logit_lengths, target_lengths, **further):
        arguments = (heads[0], targets, logit_lengths, target_lengths)
        if band:
            frames = np.stack([spread(t, np.shape(targets)[1]) for t in logit_lengths])
            return ar_rnnt_loss(*arguments, frames, **band, blank=BLANK, **options, **further)
        function = rnnt_loss if heads[0].ndim == 4 else rnnt_packed_loss
        return function(*arguments, blank=BLANK, **options, **further)

    def paths(heads, *integers, **further):
        if not band:
            return rnnt_paths(heads[0], *integers, BLANK, **options, **further)
        frames = np.stack([spread(t, np.shape(integers[0])[1]) for t in integers[1]])
        return ar_rnnt_paths(heads[0], *integers, frames, **band, blank=BLANK, **options, **further)

    def arcs(heads, target, num_frames):
        log_probs = hat_log_probs(heads[0]) if hat else heads[0].log_softmax(-1)
        aligned = spread(num_frames, max(len(target), 1))

        def out_of(t, u):
            yield t + 1, u, log_probs[t, u, BLANK], False
            if u == len(target) or (rnnt_type == "one_sym_per_frame" and t == num_frames - 1):
                return
            if band and not aligned[u] - band["left"] <= t <= aligned[u] + band["right"]:
                return
            score = log_probs[t, u, target[u]] + delay_penalty * ((num_frames - 1) / 2 - t)
            if rnnt_type == "constrained":
                score = score + log_probs[t, u + 1, BLANK]
            yield t + (rnnt_type != "regular"), u + 1, score, True

        return out_of

    return Variant((NUM_CLASSES,), loss, paths, arcs)


def spread(num_frames, num_labels):
    """A frame for each of the labels, evenly over the frames."""
    return np.arange(num_labels) * int(num_frames) // max(num_labels, 1)


def tdt(durations, final, sigma=0.0):
    def loss(heads, *integers, **further):
        return tdt_loss(*heads, *integers, durations, BLANK, final=final, sigma=sigma, **further)

    def paths(heads, *integers, **further):
        return tdt_paths(*heads, *integers, durations, BLANK, final=final, sigma=sigma, **further)

    def arcs(heads, target, num_frames):
        tokens, spans = heads[0].log_softmax(-1) - sigma, heads[1].log_softmax(-1)

        def out_of(t, u):
            for i, duration in enumerate(durations):
                if duration > 0:
                    yield t + duration, u, tokens[t, u, BLANK] + spans[t, u, i], False
                if u < len(target) and (final == "any" or t + duration < num_frames):
                    yield t + duration, u + 1, tokens[t, u, target[u]] + spans[t, u, i], True

        return out_of

    return Variant((NUM_CLASSES, len(durations)), loss, paths, arcs)


def multi_blank(durations, big_blanks, sigma=0.0):
    def loss(heads, *integers, **further):
        return multi_blank_rnnt_loss(heads[0], *integers, durations, big_blanks, BLANK, sigma=sigma, **further)

    def paths(heads, *integers, **further):
        return multi_blank_rnnt_paths(heads[0], *integers, durations, big_blanks, BLANK, sigma=sigma, **further)

    def arcs(heads, target, num_frames):
        log_probs = heads[0].log_softmax(-1) - sigma

        def out_of(t, u):
            yield t + 1, u, log_probs[t, u, BLANK], False
            for duration, big_blank in zip(durations, big_blanks, strict=True):
                yield t + duration, u, log_probs[t, u, big_blank], False
            if u < len(target):
                yield t, u + 1, log_probs[t, u, target[u]], True

        return out_of

    return Variant((NUM_CLASSES + 2,), loss, paths, arcs)


def wildcard(final, skip_score=0.0):
    def loss(heads, *integers, **further):
        return wildcard_rnnt_loss(heads[0], *integers, BLANK, final=final, skip_score=skip_score, **further)

    def paths(heads, *integers, **further):
        return wildcard_rnnt_paths(heads[0], *integers, BLANK, final=final, skip_score=skip_score, **further)

    def arcs(heads, target, num_frames):
        log_probs = heads[0].log_softmax(-1)
        skip = log_probs.new_tensor(skip_score)

        def out_of(t, u):
            yield t + 1, u, log_probs[t, u, BLANK], False
            if u < len(target):
                yield t, u + 1, log_probs[t, u, target[u]], True
            if (t, u) == (0, 0):
                for later in range(1, num_frames):
                    yield later, 0, skip, False
            if u == len(target) and t < num_frames - 1:
                yield num_frames - (final == "blank"), u, skip, False

        return out_of

    return Variant((NUM_CLASSES,), loss, paths, arcs)


VARIANTS = {
    "delayed": rnnt(delay_penalty=0.3),
    "modified": rnnt("modified"),
    "one_sym_per_frame": rnnt("one_sym_per_frame"),
    "constrained": rnnt("constrained"),
    "constrained-delayed": rnnt("constrained", delay_penalty=-0.2),
    "hat": rnnt(hat=True),
    "hat-constrained": rnnt("constrained", hat=True),
    "tdt": tdt((0, 1, 2), "blank"),
    "tdt-any": tdt((0, 1, 2, 4), "any", sigma=0.05),
    "tdt-unordered": tdt((3, 0, 2), "blank", sigma=0.1),
    "tdt-without-0": tdt((1, 2), "any"),
    "multi-blank": multi_blank((2, 4), (-1, -2), sigma=0.05),
    "multi-blank-falling": multi_blank((3, 2), (7, 6)),
    "band": rnnt(left=1, right=1),
    "band-modified": rnnt("modified", left=0, right=2),
    "wildcard": wildcard("blank", skip_score=-0.5),
    "wildcard-any": wildcard("any"),
}


def walks(out_of, node, end):
    """Every path from a node to the end, as the scores of its arcs and whether each is a label."""
    if node == end:
        yield ()
        return
    for t, u, score, is_label in out_of(*node):
        if (t < end[0] and u <= end[1]) or (t, u) == end:
            for rest in walks(out_of, (t, u), end):
                yield ((score, is_label), *rest)


def enumerated(out_of, num_frames, num_labels, fastemit_lambda=0.0):
    """The loss of one sample by its paths, differentiable; None where there is no path that is possible."""
    paths = list(walks(out_of, (0, 0), (num_frames, num_labels))) if num_frames else []
    paths = [path for path in paths if all(score > -np.inf for score, _ in path)]
    if not paths:
        return None
    scores = torch.stack([sum(score for score, _ in path) for path in paths])
    zero = scores.new_zeros(())
    labels = torch.stack([sum((score for score, is_label in path if is_label), zero) for path in paths])
    # FastEmit: each label arc's score has the gradient of minus its posterior once more, times lambda.
    more = -(scores.detach().softmax(0) * labels).sum()
    return -scores.logsumexp(0) + fastemit_lambda * (more - more.detach())
