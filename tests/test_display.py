"""Results show themselves as tables, in text and in notebooks, also where they have no values yet."""

import numpy as np
import pytest
import torch

from pathsum import display
from pathsum.decoding import ctc_beam_decode
from pathsum.graphs import Graph, linear, over_ctc
from pathsum.torch import (
    Alignment,
    asg_align,
    asg_posteriors,
    ctc_greedy_decode,
    ctc_posteriors,
    forced_align,
    lattice_align,
    lattice_sample,
    rnnt_align,
    rnnt_posteriors,
)
from pathsum.torch.paths import ctc_paths, rnnt_paths

FRAMES = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.1, 0.9], [0.8, 0.2]]).log()  # (T, C): - a a -


def test_an_alignment_says_its_score_and_path():
    assert repr(forced_align(FRAMES[None], [[1]])) == (
        "Alignment: 1 sample\n"
        "  sample  frames    score  path: class×frames\n"
        "       0       4  -0.5392  0 1×2 0"
    )  # fmt: skip


def test_a_sample_without_a_path_says_so():
    assert repr(forced_align(FRAMES[None], [[1, 1, 1]])).splitlines()[-1].split() == ["0", "0", "-inf", "none"]


def test_beams_say_rank_probability_and_mass():
    found = ctc_beam_decode(np.log([[[0.2, 0.8], [0.3, 0.7], [0.9, 0.1], [0.4, 0.6]]]), n_best=2)
    assert repr(found) == (
        "Beams: 1 sample\n"
        "  sample  rank    score    log P  mass of the list  tokens\n"
        "       0     1  -0.6319  -0.6319             0.978  1 1\n"
        "       0     2  -0.8056  -0.8056                    1"
    )  # fmt: skip


RESULTS = {
    "positions": lambda: forced_align(FRAMES, [1]),
    "chain posteriors": lambda: ctc_posteriors(FRAMES, [1]),
    "grid posteriors": lambda: rnnt_posteriors(torch.zeros(1, 2, 2, 2), [[1]], [2], [1], blank=0),
    "asg posteriors": lambda: asg_posteriors(FRAMES, [1], torch.zeros(2, 2)),
    "asg path": lambda: asg_align(FRAMES, [1], torch.zeros(2, 2)),
    "walk": lambda: rnnt_align(torch.zeros(1, 2, 2, 2), [[1]], [2], [1], blank=0),
    "decoded": lambda: ctc_greedy_decode(FRAMES),
    "path of a graph": lambda: lattice_align(FRAMES[:, None], over_ctc(linear([1]), 2)),
    "samples of a graph": lambda: lattice_sample(FRAMES[:, None], over_ctc(linear([1]), 2), num_samples=2),
    "chain": lambda: ctc_paths(FRAMES[:, None], [[1]]).lattice,
    "grid": lambda: rnnt_paths(torch.zeros(1, 2, 2, 2), [[1]], [2], [1], blank=0).lattice,
    "paths": lambda: ctc_paths(FRAMES[:, None], [[1]]),
    "graph": lambda: over_ctc(linear([1]), 2),
    "large graph": lambda: linear([1] * 200),
    "many rows": lambda: forced_align(FRAMES.expand(30, 4, 2), [[1]] * 30),
    "no rows": lambda: forced_align(FRAMES[None][:0], torch.zeros(0, 1, dtype=torch.long)),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_short_in_text_and_in_notebooks(name):
    result = RESULTS[name]()
    assert max(map(len, repr(result).splitlines())) < 130
    assert len(repr(result).splitlines()) < 25
    html = result._repr_html_()
    assert html.startswith(("<table><caption>", "<img alt=", "<code>"))
    assert "tensor(" not in repr(result) + html


def test_what_is_traced_has_shapes_and_no_values():
    texts = []

    def show(scores):
        texts.append(repr(Alignment(scores.argmax(1), scores.amax(1), scores.argmax(1))))
        return scores

    torch.func.vmap(show)(FRAMES.expand(3, 4, 2))
    assert "not known yet" in texts[0]


def test_html_is_escaped():
    assert "<b>" not in display.as_html(display.Table("<b>", ("<b>",), [("<b>",)]))


def test_the_graph_of_a_notebook_is_an_image_of_its_own():
    assert "<style>" not in Graph([0], [1], [1])._repr_html_()
