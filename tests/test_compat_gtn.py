"""The drop-in for gtn: its README's example, and the CTC and ASG recipes with the numbers that its tests have."""

import importlib
import math

import numpy as np
import pytest
import torch

from pathsum.compat import gtn, install
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.torch import asg_loss, ctc_loss
from test_compat_asg import FIRST_INPUT_GRADIENT, INPUTS, LOSSES, TRANSITION_GRADIENT


def accepts(nodes, arcs, calc_grad=True):
    graph = gtn.Graph(calc_grad)
    for ends in nodes:
        graph.add_node(*ends)
    for arc in arcs:
        graph.add_arc(*arc)
    return graph


def test_readme():
    g1 = accepts([(True,), (), (False, True)], [(0, 1, 1), (0, 1, 2), (1, 2, 1), (1, 2, 0)])
    g2 = accepts([(True, True)], [(0, 0, 1), (0, 0, 0)])
    intersection = gtn.intersect(g1, g2)
    score = gtn.forward_score(intersection)
    gtn.backward(score)
    assert g1.grad().weights_to_list() == [1.0, 0.0, 0.5, 0.5]
    assert g2.grad().weights_to_list() == [1.5, 0.5]
    assert (intersection.num_nodes(), intersection.num_arcs()) == (3, 3)


def frames_of(scores):
    graph = gtn.linear_graph(*scores.shape)
    graph.set_weights(scores.ravel().tolist())
    return graph


def ctc_graph(target, blank):
    size = 2 * len(target) + 1
    graph = accepts([(s == 0, s >= size - 2) for s in range(size)], [])
    for s in range(size):
        label = target[s // 2] if s % 2 else blank
        graph.add_arc(s, s, label)
        if s > 0:
            graph.add_arc(s - 1, s, label)
        if s % 2 and s > 1 and label != target[s // 2 - 1]:
            graph.add_arc(s - 2, s, label)
    graph.arc_sort()
    return graph


@pytest.mark.parametrize("target, blank, loss", [([0, 1, 2, 1, 0], 5, 3.34211), ([0, 1, 1, 0], 5, 5.42262)])
def test_ctc(target, blank, loss):
    shares = {
        3.34211: [
            [0.633766, 0.221185, 0.0917319, 0.0129757, 0.0142857, 0.0260553],
            [0.111121, 0.588392, 0.278779, 0.0055756, 0.00569609, 0.010436],
            [0.0357786, 0.633813, 0.321418, 0.00249248, 0.00272882, 0.0037688],
            [0.0663296, 0.643849, 0.280111, 0.00283995, 0.0035545, 0.00331533],
            [0.458235, 0.396634, 0.123377, 0.00648837, 0.00903441, 0.00623107],
        ],
        5.42262: [
            [0.30176, 0.28562, 0.0831517, 0.0862751, 0.0816851, 0.161508],
            [0.24082, 0.397533, 0.0557226, 0.0546814, 0.0557528, 0.19549],
            [0.230246, 0.450868, 0.0389607, 0.038309, 0.0391602, 0.202456],
            [0.280884, 0.429522, 0.0326593, 0.0339046, 0.0326856, 0.190345],
            [0.423286, 0.315517, 0.0338439, 0.0393744, 0.0339315, 0.154046],
        ],
    }[loss]
    scores = np.log(shares)
    frames = frames_of(scores)
    normaliser = gtn.forward_score(frames)
    assert abs(normaliser.item()) < 1e-5
    found = gtn.subtract(normaliser, gtn.forward_score(gtn.compose(ctc_graph(target, blank), frames)))
    assert found.item() == pytest.approx(loss, abs=1e-4)
    gtn.backward(found)
    logits = torch.from_numpy(scores)[:, None].requires_grad_()
    expected = ctc_loss(logits, [target], [5], [len(target)], blank, fused_log_softmax=True, reduction="sum")
    (wanted,) = torch.autograd.grad(expected, logits)
    gradient = frames.grad().weights_to_numpy()
    assert gradient.dtype == np.float32
    np.testing.assert_allclose(gradient.reshape(5, 6), wanted[:, 0], atol=1e-6)


def transitions_graph(size, weights=None):
    graph = accepts([(True,), *[(False, True)] * size], [(0, i, i - 1) for i in range(1, size + 1)])
    for i in range(size):
        for j in range(size):
            graph.add_arc(j + 1, i + 1, i, i, 0.0 if weights is None else float(weights[i][j]))
    return graph


def stretch(target):
    nodes = [(True,), *[(False, place == len(target)) for place in range(1, len(target) + 1)]]
    arcs = [(place + move, place + 1, c) for place, c in enumerate(target) for move in (0, 1)]
    return accepts(nodes, arcs)


def test_asg():
    transitions = transitions_graph(6)
    for n, (inputs, target) in enumerate(zip(INPUTS, [[2, 1, 5, 1, 3], [4, 3, 5], [3, 2, 2, 1]], strict=True)):
        frames = frames_of(np.reshape(inputs, (5, 6)))
        every = gtn.forward_score(gtn.compose(frames, transitions))
        own = gtn.forward_score(gtn.compose(gtn.compose(stretch(target), transitions), frames))
        loss = gtn.subtract(every, own)
        assert loss.item() == pytest.approx(LOSSES[n], abs=1e-3)
        gtn.backward(loss)
        if n == 0:
            np.testing.assert_allclose(frames.grad().weights_to_numpy().reshape(5, 6), FIRST_INPUT_GRADIENT, atol=1e-4)
    gradient = transitions.grad().weights_to_numpy()[6:].reshape(6, 6)
    np.testing.assert_allclose(gradient, TRANSITION_GRADIENT, atol=1e-4)


def test_asg_of_any_transitions():
    generator = torch.Generator().manual_seed(0)
    inputs, table = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    table, frames = table[:3], frames_of(inputs.numpy())
    transitions = transitions_graph(3, table)
    both = gtn.compose(gtn.compose(stretch([2, 0]), transitions), frames)
    loss = gtn.negate(gtn.forward_score(both))
    every = gtn.forward_score(gtn.compose(frames, transitions))
    expected = asg_loss(inputs[:, None], [[2, 0]], table, reduction="sum")
    assert gtn.add(loss, every).item() == pytest.approx(expected.item(), abs=1e-12)
    # The lattice itself, whose paths take the weights of all three.
    assert gtn.forward_score(both).item() == pytest.approx(-loss.item(), abs=1e-12)
    both.num_arcs()
    assert gtn.forward_score(both).item() == pytest.approx(-loss.item(), abs=1e-12)


def test_best_path_of_asg():
    inputs = np.array([[0.0, 0, 7], [5, 4, 3], [5, 8, 5], [5, 4, 3]])
    transitions = transitions_graph(3, [[0, 2, 0], [0, 0, 2], [2, 0, 0]])
    path = gtn.viterbi_path(gtn.compose(frames_of(inputs), transitions))
    assert path.labels_to_list() == [2, 1, 1, 0]
    assert gtn.forward_score(path).item() == pytest.approx(7 + 2 + 4 + 8 + 2 + 5)


def test_the_loss_function_of_its_examples():
    inputs = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(2))
    losses, graphs = [0.0, 0.0], [gtn.linear_graph(4, 3) for _ in range(2)]

    def one(b):
        data = inputs[b].contiguous()
        graphs[b].set_weights(data.data_ptr())
        target = stretch([1, 2])
        loss = gtn.subtract(gtn.forward_score(graphs[b]), gtn.forward_score(gtn.intersect(target, graphs[b])))
        losses[b] = loss.item()
        gtn.backward(loss)

    gtn.parallel_for(one, range(2))
    given = inputs.transpose(0, 1).double().requires_grad_()
    # All sequences are as many as the softmax of each frame has.
    log_probs = given.log_softmax(2)
    expected = asg_loss(log_probs, [[1, 2], [1, 2]], torch.zeros(3, 3).double(), reduction="none")
    assert losses == pytest.approx(expected.tolist(), abs=1e-6)
    (wanted,) = torch.autograd.grad(expected.sum(), given)
    for b, graph in enumerate(graphs):
        np.testing.assert_allclose(graph.grad().weights_to_numpy().reshape(4, 3), wanted[:, b], atol=1e-6)


def test_epsilons_ends_and_what_is_refused():
    frames = frames_of(np.zeros((2, 3)))
    hop = accepts([(True,), (), (False, True)], [(0, 1, gtn.epsilon, None, 0.5), (0, 0, 1), (1, 2, 1), (2, 2, 7)])
    assert gtn.forward_score(gtn.intersect(frames, hop)).item() == pytest.approx(0.5)
    nothing = accepts([(True,), (False, True)], [])
    assert gtn.forward_score(nothing).item() == -math.inf
    assert gtn.viterbi_path(gtn.intersect(frames, nothing)).num_arcs() == 0
    assert gtn.scalar_graph(2.5).item() == 2.5
    with pytest.raises(InvalidValueError, match="cycle"):
        gtn.forward_score(accepts([(True, True)], [(0, 0, 1)]))
    with pytest.raises(InvalidValueError, match="no epsilons where they are read"):
        gtn.forward_score(gtn.compose(hop, hop))
    with pytest.raises(InvalidValueError, match=r"dst_node must lie in \[0, 1\)"):
        accepts([(True,)], [(0, 1, 1)])
    with pytest.raises(InvalidValueError, match="one entry an arc, 6; got 5"):
        frames.set_weights([0.0] * 5)
    with pytest.raises(InvalidValueError, match="have a gradient"):
        gtn.Graph().grad()
    with pytest.raises(InvalidValueError, match="have one arc"):
        gtn.negate(frames)
    with pytest.raises(InvalidTypeError, match="viterbi_path: graph must be linear"):
        gtn.viterbi_path(hop)
    constant = gtn.linear_graph(2, 3, False)
    score = gtn.forward_score(gtn.intersect(constant, stretch([1])))
    gtn.backward(score)
    with pytest.raises(InvalidValueError):
        constant.grad()


def test_what_the_peers_own_tests_look_at():
    # No node: no path. New weights leave a gradient alone. A composition has no arcs that lead nowhere.
    assert gtn.forward_score(gtn.Graph()).item() == -math.inf
    first, second = gtn.Graph(), gtn.Graph()
    for graph, last in ((first, (1, 2)), (second, (1,))):
        for node in range(3):
            graph.add_node(node == 0, node in last)
        graph.add_arc(0, 1, 1, 1, 1.0)
        graph.add_arc(0, 2, 2, 2, 2.0)
    gtn.backward(gtn.forward_score(first))
    gradient = first.grad().weights_to_list()
    first.set_weights([0.0, 0.0])
    assert first.grad().weights_to_list() == gradient
    composed = gtn.compose(first, second)
    assert (composed.num_nodes(), composed.num_arcs(), composed.weights_to_list()) == (2, 1, [1.0])


def test_installed():
    with install("gtn"):
        peer = importlib.import_module("gtn")
        assert peer.Graph is gtn.Graph
        assert peer.epsilon == -1
