"""Graphs without scores: counting, enumeration, files, builders."""

import gzip
import itertools
import math

import numpy as np
import pytest

from pathsum.decoding import NGram
from pathsum.errors import GraphFileError, InvalidTypeError, InvalidValueError
from pathsum.graphs import EPSILON, Graph, ctc_topology, linear, ngram, over_ctc, star, words


def random_graph(seed, *, epsilons=True, num_classes=3):
    """Loops, parallel arcs, epsilon arcs upwards, several starts and ends, states out of reach; at times nothing."""
    rng = np.random.default_rng(seed)
    num_states, num_arcs = int(rng.integers(1, 5)), int(rng.integers(0, 9))
    sources, to = rng.integers(0, num_states, (2, num_arcs))
    labels = rng.integers(0, num_classes, num_arcs)
    if epsilons:
        order = rng.permutation(num_states)
        labels = np.where((order[sources] < order[to]) & (rng.random(num_arcs) < 0.5), EPSILON, labels)
    ends = [np.where(rng.random(num_states) < p, rng.normal(size=num_states), -np.inf) for p in (0.6, 0.6)]
    return Graph(sources, to, labels, rng.normal(size=num_arcs), *ends)


def spelled(graph, num_frames):
    """Every path as what matters of it: labels, outputs but for epsilons', score; in order."""
    found = []
    for path in graph.paths(num_frames):
        outputs = tuple(int(graph.outputs[arc]) for arc in path.arcs if graph.outputs[arc] != EPSILON)
        found.append((path.labels, outputs, round(path.score, 3)))
    return sorted(found)


def strings(graph, num_frames):
    return sorted(path.labels for path in graph.paths(num_frames))


@pytest.mark.parametrize("seed", range(60))
def test_paths_are_walks_and_are_counted(seed):
    graph = random_graph(seed)
    walks = [walk for length in range(8) for walk in itertools.product(range(graph.num_arcs), repeat=length)
             if length < 4 or graph.num_arcs < 4]  # fmt: skip
    for num_frames in range(3):
        paths = list(graph.paths(num_frames))
        assert len(paths) == len({(path.arcs, path.score) for path in paths}) == graph.count_paths(num_frames)
        arcs = {path.arcs for path in paths if len(path.arcs) < 4}
        expected = set()
        for walk in walks:
            joined = all(graph.destinations[a] == graph.sources[b] for a, b in itertools.pairwise(walk))
            if walk and len(walk) < 4 and joined and (graph.labels[list(walk)] != EPSILON).sum() == num_frames:
                if (
                    graph.start[graph.sources[walk[0]]] > -np.inf
                    and graph.final[graph.destinations[walk[-1]]] > -np.inf
                ):
                    expected.add(walk)
        assert arcs - {()} == expected
        assert spelled(graph.trim(), num_frames) == spelled(graph, num_frames)
        both = graph.union(graph)
        assert spelled(both, num_frames) == sorted(spelled(graph, num_frames) * 2)


@pytest.mark.parametrize("format, offset", [("openfst", -1), ("att", -1), ("k2", -2), ("gtn", 0), ("gtn", -3)])
def test_files_give_the_same_paths(format, offset, tmp_path):
    # -2: k2 has no epsilon, so that it is a label of its own there, 1.
    for seed in range(40):
        graph = random_graph(seed)
        if format == "gtn" and not ((graph.start > -np.inf).any() and (graph.final > -np.inf).any()):
            continue
        path = tmp_path / f"{seed}.fst"
        graph.write(path, format, label_offset=offset)
        again = Graph.read(path, format, label_offset=offset)
        for num_frames in range(3):
            assert spelled(again, num_frames) == spelled(graph, num_frames)


def test_a_file_keeps_arcs_outputs_and_ends(tmp_path):
    graph = Graph([0, 0, 1], [1, 1, 1], [2, 0, 1], [0.5, -np.inf, 0.25], final={1: -1.5}, outputs=[7, 8, 9])
    for format in ("openfst", "att", "gtn"):
        graph.write(tmp_path / "g", format)
        again = Graph.read(tmp_path / "g", format)
        for name in ("sources", "destinations", "labels", "outputs", "weights"):
            np.testing.assert_array_equal(getattr(again, name)[:3], getattr(graph, name), err_msg=f"{format} {name}")


def openfst(*, magic=2125659606, kind=b"vector", arcs=b"standard", start=0, final=0.0, to=0, label=1, count=1, flags=0):
    """The bytes of a graph of one state with a loop, as OpenFst lays them out, with one thing changed."""
    from struct import pack

    data = pack("<i", magic) + pack("<i", len(kind)) + kind + pack("<i", len(arcs)) + arcs
    data += pack("<iiQqqq", 2, flags, 3, start, 1, 1)
    if flags & 1:
        data += pack("<i", 2125658996) + pack("<i", 1) + b"s" + pack("<qq", 2, 1) + pack("<i", 1) + b"a" + pack("<q", 1)
    return data + pack("<fq", final, count) + pack("<iifi", label, label, 0.5, to)


def test_openfst_bytes(tmp_path):
    path = tmp_path / "g"
    for data in (openfst(), openfst(flags=1)):
        path.write_bytes(data)
        graph = Graph.read(path)
        assert (graph.labels.tolist(), graph.weights.tolist(), graph.final.tolist()) == ([1], [-0.5], [0.0])
    path.write_bytes(openfst(label=0))
    assert Graph.read(path, label_offset=0).labels.tolist() == [0]
    with pytest.raises(InvalidValueError, match=r"cycle of epsilon arcs; got one through state 0"):
        Graph.read(path, label_offset=-1).count_paths(1)


@pytest.mark.parametrize("data, place, words", [
    (b"", "byte 0", "end of the file"),
    (openfst(magic=1), "byte 0", "OpenFst's number"),
    (openfst(kind=b"const!"), "byte 4", "type vector"),
    (openfst(arcs=b"log64..."), "byte 14", "standard or log"),
    (openfst(start=1), "byte 0", "start in one of the 1 states"),
    (openfst(to=1), "byte 78", "lead to one of the 1 states"),
    (openfst(label=-1), "byte 78", "labels of at least 0"),
    (openfst(count=2), "byte 66", "2 of state 0"),
    (openfst(count=-1), "byte 66", "-1 of state 0"),
    (openfst()[:-1], "byte 66", "1 of state 0"),
    (openfst() + b"x", "byte 94", "1 more bytes"),
    (openfst(final=float("nan")), "byte 0", "final costs"),
])  # fmt: skip
def test_malformed_openfst(data, place, words, tmp_path):
    path = tmp_path / "bad.fst"
    path.write_bytes(data)
    offset = 0
    with pytest.raises(GraphFileError, match=words) as caught:
        Graph.read(path, label_offset=offset)
    assert caught.value.place == place
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("format, text, place, words", [
    ("att", "0 1 1 1 0.5\n0 x 1\n1", "line 2", "integer as a state"),
    ("att", "0 1 1 1 0.5 7", "line 1", "at most 5 columns"),
    ("att", "0 1 1 1 nan\n1", "line 1", "weight"),
    ("att", "0 1 -1 1 1\n1", "line 1", "label of at least 0"),
    ("att", "0 1 1\n1 zero", "line 2", "number as weight"),
    ("att", "0 1 1\n1\n1 2.0", "line 3", "one final cost"),
    ("att", "0 -1 1\n1", "line 1", "a state of at least 0"),
    ("k2", "0 1 1 0.5\n0 1 -1 0", "line 2", "last state alone"),
    ("k2", "0 1 1\n1", "line 1", "have source"),
    ("k2", "0 2 1 0.5\n1", "line 1", "states up to the last"),
    ("k2", "0 0 -1 0.5\n1", "line 1", "label -1 on arcs to the last"),
    ("k2", "0 1 -2 0.5\n1", "line 1", "at least"),
    ("gtn", "0\n", "line 2", "line of starts"),
    ("gtn", "0\n1\n0 1", "line 3", "have source"),
    ("gtn", "0\n1\n0 1 -2", "line 3", "label of at least -1"),
    ("gtn", "0\na\n0 1 1", "line 2", "integer as a state"),
])  # fmt: skip
def test_malformed_text(format, text, place, words, tmp_path):
    path = tmp_path / "bad.txt"
    path.write_text(text)
    with pytest.raises(GraphFileError, match=words) as caught:
        Graph.read(path, format)
    assert caught.value.place == place


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "bad.txt"
    path.write_bytes(b"0 1 1\n\xff")
    with pytest.raises(GraphFileError, match="byte 6"):
        Graph.read(path, "att")


def test_att_columns(tmp_path):
    path = tmp_path / "g"
    path.write_text("0 1 1 0.5\n0 1 2\n1 0.25\n")
    graph = Graph.read(path, "att")
    assert (graph.labels.tolist(), graph.outputs.tolist(), graph.weights.tolist()) == ([1, 2], [1, 2], [-0.5, 0.0])
    assert graph.final.tolist() == [-np.inf, -0.25]
    path.write_text("3 1 1 2\n1\n")
    assert Graph.read(path, "att").outputs.tolist() == [2]
    assert Graph.read(path, "att").start.tolist() == [-np.inf, -np.inf, -np.inf, 0.0]
    assert Graph.read(path, "att", acceptor=True).weights.tolist() == [-2.0]


class Fst:
    """What pynini's graphs answer to."""

    def states(self):
        return range(2)

    def start(self):
        return 0

    def final(self, state):
        return "inf" if state == 0 else "0.25"

    def arcs(self, state):
        class Arc:
            ilabel, olabel, weight, nextstate = 3, 4, "0.5", 1

        return [Arc] if state == 0 else []


def test_objects_of_other_packages():
    graph = Graph.from_fst(Fst(), label_offset=-1)
    assert (graph.labels.tolist(), graph.outputs.tolist(), graph.weights.tolist()) == ([2], [3], [-0.5])
    assert graph.final.tolist() == [-np.inf, -0.25]
    with pytest.raises(InvalidTypeError, match=r"Graph\.from_fst: fst must be an Fst"):
        Graph.from_fst(object())


@pytest.mark.parametrize("arguments, words", [
    ({"sources": [0, -1]}, r"sources must lie in \[0"),
    ({"sources": [[0, 1]]}, "sources must have shape"),
    ({"destinations": [1]}, "destinations must have one entry an arc, A = 2"),
    ({"labels": [0, -2]}, r"labels must lie in \[-1"),
    ({"weights": [0.0]}, "weights must be a number or have 2 entries"),
    ({"weights": [0.0, np.nan]}, "weights must be neither NaN nor"),
    ({"weights": np.inf}, "weights must be neither NaN nor"),
    ({"start": -1}, "start must be a state"),
    ({"final": {0: np.nan}}, "final must be neither NaN"),
    ({"final": {-1: 0.0}}, "final must map states"),
    ({"final": [0.0]}, "final must be a number or have 2 entries"),
    ({"outputs": [1]}, "outputs must have one entry"),
])  # fmt: skip
def test_malformed_graphs(arguments, words):
    with pytest.raises(InvalidValueError, match=words):
        Graph(**{"sources": [0, 0], "destinations": [1, 1], "labels": [0, 1]} | arguments)


def test_types_of_graphs():
    with pytest.raises(InvalidTypeError, match="labels must be integers; got float64"):
        Graph([0], [1], [0.5])
    with pytest.raises(InvalidTypeError, match="weights must be numbers"):
        Graph([0], [1], [0], "heavy")


def test_check_names_what_a_loss_would_not_tell():
    with pytest.raises(InvalidValueError, match=r"got one through state [12]"):
        Graph([0, 1, 2, 0], [1, 2, 1, 1], [0, -1, -1, 0]).check()
    with pytest.raises(InvalidValueError, match=r"labels in \[0, C\) with C = 2; got 2 on arc 1"):
        Graph([0, 0], [1, 1], [1, 2]).check(2)
    graph = Graph([0, 0], [1, 2], [0, 0], final=1)
    with pytest.raises(InvalidValueError, match="be on a path; got state 2"):
        graph.check()
    assert graph.trim().check(1).num_states == 2


def reads_as(frames, blank):
    return tuple(label for label, _ in itertools.groupby(frames) if label != blank)


@pytest.mark.parametrize("blank, tokens", [(0, [1, 2]), (0, [1, 1]), (2, [0, 1, 0]), (1, [])])
def test_ctc_of_a_string_is_its_labellings(blank, tokens):
    for num_frames in range(5):
        frames = list(itertools.product(range(3), repeat=num_frames))
        own = over_ctc(linear(tokens), 3, blank)
        assert strings(own, num_frames) == [f for f in frames if reads_as(f, blank) == tuple(tokens)]
        once = over_ctc(linear(tokens), 3, blank, kind="simple")
        assert strings(once, num_frames) == [f for f in frames if tuple(c for c in f if c != blank) == tuple(tokens)]
        free = over_ctc(linear(tokens), 3, blank, kind="modified")
        # Every token a run, and blanks anywhere: as many as C(T + L, 2L).
        assert free.count_paths(num_frames) == math.comb(num_frames + len(tokens), 2 * len(tokens))


def test_outputs_are_the_tokens():
    graph = ctc_topology(3)
    assert (graph.num_states, graph.num_arcs) == (3, 9)
    for path in graph.paths(4):
        outputs = tuple(int(graph.outputs[arc]) for arc in path.arcs if graph.outputs[arc] != EPSILON)
        assert outputs == reads_as(path.labels, 0)
    for kind, count in (("standard", 81), ("simple", 81)):
        assert ctc_topology(3, kind=kind).count_paths(4) == count


@pytest.mark.parametrize("kind", ["standard", "modified", "simple"])
def test_ctc_over_an_acceptor_is_the_sum_over_its_strings(kind):
    # Epsilon arcs included: a labelling is a path for each path of the acceptor that spells it, and no more.
    for seed in range(25):
        acceptor = random_graph(seed, num_classes=2)
        labels = np.where(acceptor.labels < 0, EPSILON, acceptor.labels + 1)
        columns = (acceptor.sources, acceptor.destinations, labels, acceptor.weights, acceptor.start, acceptor.final)
        acceptor = Graph(*columns)
        for num_frames in range(4):
            expected = sorted(
                (labels, round(path.score, 3))
                for length in range(num_frames + 1)
                for path in acceptor.paths(length)
                for labels in strings(over_ctc(linear(path.labels), 3, kind=kind), num_frames)
            )
            found = sorted((p.labels, round(p.score, 3)) for p in over_ctc(acceptor, 3, kind=kind).paths(num_frames))
            assert found == expected


def test_words_read_alike():
    for spelling in ([[1], [2, 1]], [3, 1, 3, 2, 1]):
        graph = words(spelling, separator=3)
        for length in range(6):
            written = {s: [list(run) for word, run in itertools.groupby(s, lambda c: c != 3) if word]
                       for s in itertools.product((1, 2, 3), repeat=length)}  # fmt: skip
            assert strings(graph, length) == [s for s, read in written.items() if read == [[1], [2, 1]]]
    assert over_ctc(words([[1], [2, 1]], 3), 4).num_states == 11
    assert strings(words([], 3), 2) == [(3, 3)]


def test_stars():
    assert strings(star([1, 2], 3), 3) == [(1, 2, 3), (1, 3, 2), (3, 1, 2)]
    graph = star([1], 3, insertion=None, bypass=-0.5)
    assert [(path.labels, path.score) for path in graph.paths(1)] == [((1,), 0.0), ((3,), -0.5)]


ARPA = """
\\data\\
ngram 1=4
ngram 2=2

\\1-grams:
-99\t<s>\t-0.3
-0.5\ta\t-0.2
-0.7\tb
-0.6\t</s>

\\2-grams:
-0.3\t<s> a
-0.25\ta </s>

\\end\\
"""


def test_ngram(tmp_path):
    plain, packed = tmp_path / "lm.arpa", tmp_path / "lm.arpa.gz"
    plain.write_text(ARPA)
    packed.write_bytes(gzip.compress(ARPA.encode()))
    ten = math.log(10)
    for path in (plain, packed):
        graph = ngram(path, {"a": 1, "b": 2})
        scores = {}
        for found in graph.paths(1):
            scores.setdefault(found.labels, []).append(found.score / ten)
        # Known or backed off to, both for the word and for the end.
        a = [-0.3 - 0.25, -0.3 - 0.2 - 0.6, -0.3 - 0.5 - 0.25, -0.3 - 0.5 - 0.2 - 0.6]
        assert sorted(scores[1,]) == pytest.approx(sorted(a))
        assert scores[2,] == pytest.approx([-0.3 - 0.7 - 0.6] * len(scores[2,]))
    plain.write_text(
        ARPA.replace("a\t-0.2", "11\t-0.2")
        .replace("b\n", "12\n")
        .replace("<s> a", "<s> 11")
        .replace("a </s>", "11 </s>")
    )
    assert strings(ngram(plain), 1)[-1] == (12,)


@pytest.mark.parametrize("old, new, place, words", [
    ("ngram 2=2", "ngram 2=3", "line 16", "have 3 2-grams, as it says; got 2"),
    ("\\end\\", "", "line 17", "end in a line"),
    ("\\data\\", "", "line 17", "data"),
    ("-0.7\tb", "-0.7x\tb", "line 9", "numbers for log-probabilities"),
    ("-0.7\tb", "-0.7\tb c d", "line 9", "1 words"),
    ("-0.7\tb", "-0.7\ta", "line 9", "each n-gram once"),
    ("-0.7\tb", "inf\tb", "line 9", "at most 0"),
    ("ngram 1=4", "grams 1=4", "line 3", "a line 'ngram 1=COUNT'"),
    ("\\2-grams:", "\\3-grams:", "line 12", "2-grams:"),
    ("<s> a", "<s> c", "line 13", "words among its 1-grams"),
])  # fmt: skip
def test_malformed_ngrams(old, new, place, words, tmp_path):
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA.replace(old, new, 1))
    with pytest.raises(GraphFileError, match=words) as caught:
        ngram(path, ["x", "a", "b"])
    assert caught.value.place == place


def test_cut_and_foreign_ngrams(tmp_path):
    path = tmp_path / "lm.arpa"
    for data, rule in (
        (gzip.compress(ARPA.encode())[:-20], "be whole where gzip has packed"),
        (ARPA.replace("a", "\xe4").encode("latin-1"), "be UTF-8"),
    ):
        path.write_bytes(data)
        with pytest.raises(GraphFileError, match=rule):
            ngram(path, ["x"])
        with pytest.raises(InvalidValueError, match=rule):
            NGram.read(path)


def test_words_need_labels(tmp_path):
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA)
    with pytest.raises(GraphFileError, match=r"line \d+: must have numbers as words"):
        ngram(path)


@pytest.mark.parametrize("call, words", [
    (lambda: over_ctc(linear([0]), 3), "not emit the blank, 0; got it on arc 0"),
    (lambda: over_ctc(linear([3]), 3), r"labels in \[0, C\) with C = 3; got 3 on arc 0"),
    (lambda: over_ctc(linear([1]), 3, kind="full"), "kind must be one of standard"),
    (lambda: ctc_topology(3, blank=3), r"blank must lie in \[-3, 3\)"),
    (lambda: ctc_topology(0), "num_classes must be at least 1"),
    (lambda: over_ctc(Graph([0], [0], [-1]), 2), "no cycle of epsilon arcs"),
    (lambda: Graph.read("x", "csv"), "format must be one of openfst"),
    (lambda: Graph([0], [1], [-1]).write("x", "k2"), "label_offset=-1 makes epsilons 0"),
    (lambda: Graph([0], [1], [0]).draw("png"), "format must be one of svg"),
])  # fmt: skip
def test_errors_of_calls(call, words):
    with pytest.raises(InvalidValueError, match=words):
        call()


def test_pictures():
    from xml.etree import ElementTree

    graph = Graph(
        [0, 0, 1, 1, 2],
        [0, 1, 2, 2, 0],
        [1, 2, -1, 2, 0],
        [0, -0.5, 0, 0, 0],
        final={2: -1.0},
        outputs=[1, 3, -1, 2, 0],
    )
    picture = graph.draw(names=["<b>", "a", "b"])
    circles = ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}circle")
    assert len(list(circles)) == 4  # three states, the final one twice
    assert "b:3/-0.5" in picture
    assert "&lt;b&gt;" in picture
    text = graph.draw("dot")
    assert text.count("->") == 4  # parallel arcs share a line
    assert '1 -> 2 [label="ε, 2"]' in text
    assert Graph([], [], [], final={}).draw()
