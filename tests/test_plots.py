"""Pictures hold what they are made of: every arc of a path, every probability, every token in its frame."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib import pyplot

from pathsum import plots
from pathsum.decoding import ctc_beam_decode
from pathsum.errors import InvalidValueError
from pathsum.graphs import linear, over_ctc
from pathsum.testing import enumerate_paths
from pathsum.torch import ctc_posteriors, lattice_score, rnnt_beam_decode
from pathsum.torch.paths import ctc_paths, rnnt_paths, tdt_paths


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


LATTICES = {
    "ctc": lambda: ctc_paths(torch.zeros(5, 2, 4), [[1, 1, 2], [3, 0, 0]], [5, 4], [3, 1]),
    "rnnt": lambda: rnnt_paths(torch.zeros(2, 4, 3, 4), [[1, 2], [1, 0]], [4, 3], [2, 1], blank=0),
    "tdt": lambda: tdt_paths(torch.zeros(2, 4, 3, 4), torch.zeros(2, 4, 3, 3), [[1, 2], [1, 0]], [4, 3], [2, 1],
                             durations=[0, 1, 2], blank=0),
}  # fmt: skip


@pytest.mark.parametrize("name", LATTICES)
@pytest.mark.parametrize("sample", [0, 1])
def test_a_lattice_has_the_arcs_of_its_paths_and_no_others(name, sample):
    paths = LATTICES[name]()
    walked = {(arc.source, arc.target) for path in enumerate_paths(paths.lattice, sample) for arc in path}
    ax = plots.lattice(paths.lattice, sample, posteriors=paths.posteriors())
    drawn = {tuple(map(tuple, line)) for lines in ax.collections[:-1] for line in lines.get_segments()}
    assert len(drawn) == len(walked)
    assert len(ax.collections[-1].get_offsets()) == len({node for arc in walked for node in arc})


def test_posteriors_are_the_picture():
    found = ctc_posteriors(torch.randn(2, 6, 4).log_softmax(2), [[1, 2], [3, 3]])
    ax = plots.posteriors(found, 1, names=["x", "y"])
    np.testing.assert_allclose(ax.images[0].get_array(), found.nodes[1].T)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["x", "y"]
    assert list(ax.get_yticks()) == [1, 3]


def test_a_list_and_all_others_are_the_whole():
    log_probs = np.random.default_rng(0).standard_normal((4, 3))
    log_probs -= np.logaddexp.reduce(log_probs, 1, keepdims=True)
    totals = {}
    for frames in itertools.product(range(3), repeat=4):
        text = tuple(label for label, _ in itertools.groupby(frames) if label)
        totals[text] = totals.get(text, 0.0) + np.exp(log_probs[range(4), frames].sum())
    best = sorted(totals.values(), reverse=True)[:3]
    ax = plots.mass(ctc_beam_decode(log_probs, beam_size=100, n_best=3), names="-ab")
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], [*best, 1 - sum(best)], atol=1e-12)


def test_a_beam_has_its_tokens_in_their_frames():
    found = ctc_beam_decode(np.log([[[0.1, 0.8, 0.1], [0.8, 0.1, 0.1], [0.1, 0.2, 0.7]]]), n_best=2)
    ax = plots.beam(found, names="-ab", frame_seconds=2.0)
    first = [(text.get_text(), *text.get_position()) for text in ax.texts][: int(found.lengths[0, 0])]
    assert first == [("a", 1.0, 0), ("b", 5.0, 0)]


def test_beams_of_transducers_and_of_one_sample_are_drawn():
    joint = torch.randn(6, 3)

    def predict(tokens, state):
        return torch.nn.functional.one_hot(tokens, 3).float(), state

    found = rnnt_beam_decode(joint[None], [6], predict, lambda a, b: a + b, blank=0, beam_size=2, n_best=2)
    assert plots.beam(found).get_yticks().size == plots.mass(found).get_yticks().size - 1
    assert plots.beam(ctc_beam_decode(joint.log_softmax(1).numpy())).texts


def test_a_graph_says_how_often_each_arc_is_taken():
    graph = over_ctc(linear([1]), 2)
    weights = torch.zeros(graph.num_arcs, dtype=torch.float64, requires_grad=True)
    lattice_score(torch.zeros(3, 1, 2), graph, weights=weights).sum().backward()
    texts = [text.get_text() for text in plots.graph(graph, weights.grad, names="-a").texts]
    # All of the 6 labellings that read as the target take the arc that enters it, once.
    assert "a  1" in texts
    with pytest.raises(InvalidValueError, match=r"plots.graph: arcs must be \(\d+,\), a number an arc; got \(1,\)"):
        plots.graph(graph, [1.0])


@pytest.mark.parametrize("call, message", [
    (lambda: plots.posteriors(np.zeros((2, 3, 4)), 2), r"plots.posteriors: sample must be in \[0, 2\); got 2"),
    (lambda: plots.posteriors(np.zeros(3)), "plots.posteriors: posteriors must have 2 axes, or 3 with samples"),
    (lambda: plots.posteriors(np.zeros((3, 5)), names="abc"), "plots.posteriors: names must name the 5 rows, or every"),
    (lambda: plots.alignment(np.zeros(3), []), r"plots.alignment: features must be \(F, M\); got \(3,\)"),
    (lambda: plots.alignment(np.zeros((3, 2)), [], texts="a"), "plots.alignment: texts must be 0, one for each span"),
    (lambda: plots.lattice(LATTICES["ctc"]().lattice, 5), r"plots.lattice: sample must be in \[0, 2\); got 5"),
    (lambda: plots.lattice(ctc_paths(torch.zeros(900, 1, 4), [[1] * 20]).lattice), "plots.lattice: lattice must have"),
])  # fmt: skip
def test_what_cannot_be_drawn_is_named(call, message):
    with pytest.raises(InvalidValueError, match=message):
        call()


def test_without_matplotlib_the_extra_is_named():
    code = "import sys; sys.modules['matplotlib'] = None; import pathsum.plots"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env={"PYTHONPATH": ":".join(sys.path), "PATH": ""})  # fmt: skip
    last = done.stderr.splitlines()[-1]
    assert last == (
        "pathsum.errors.FrameworkMissingError: pathsum.plots needs matplotlib: pip install 'pathsum[plots]'"
    )


def test_rows_of_posteriors_have_colours_of_their_own():
    shares = np.array([[1.0, 0.0], [0.25, 0.5]])
    ax = plots.posteriors(shares, colours=["red", "#0000ff"], frame_seconds=0.5, start_seconds=-0.25)
    (image,) = ax.images
    np.testing.assert_allclose(image.get_array()[0, 0], [1, 0, 0])
    np.testing.assert_allclose(image.get_array()[:, 1], [[1, 0.75, 0.75], [0.5, 0.5, 1]])
    assert list(image.get_extent()) == [-0.25, 0.75, 1.5, -0.5]
    with pytest.raises(InvalidValueError, match="colours must be 2, one for each row; got 1"):
        plots.posteriors(shares, colours=["red"])
