"""Single walks through an arc lattice on the CPU: the best, in order, and such as are drawn, of planes of scores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pathsum.kernels.numba import parallel
from pathsum.kernels.numba.compilation import COMPILE_EXACTLY, exact_kernel
from pathsum.kernels.numba.linking import part
from pathsum.kernels.numba.merging import merge
from pathsum.kernels.numba.views import borrow
from pathsum.kernels.protocol import GridWalks
from pathsum.lattice import ArcLattice


def k_best(planes: np.ndarray, lattice: ArcLattice, k: int, *, skip_score: float, num_threads: int) -> GridWalks:
    """The k best walks of each sample of planes (kinds, rows), in arrays as wide as the lattice's targets."""

    def solve(sample: int, arcs: np.ndarray, *found: np.ndarray) -> None:
        _list(arcs, *_rules(lattice, skip_score), *found)

    return _of_samples(solve, planes, lattice, k, num_threads)


def sample_walks(
    planes: np.ndarray, lattice: ArcLattice, draws: np.ndarray, *, skip_score: float, num_threads: int
) -> GridWalks:
    """Walks drawn by their posteriors, of ``draws`` (N, K, arcs of the longest walk) in [0, 1), one an arc."""

    def solve(sample: int, arcs: np.ndarray, *found: np.ndarray) -> None:
        _draw(arcs, *_rules(lattice, skip_score), np.ascontiguousarray(draws[sample]), *found)

    return _of_samples(solve, planes, lattice, draws.shape[1], num_threads)


def _rules(lattice: ArcLattice, skip_score: float) -> tuple[np.ndarray, bool, int, float]:
    steps = np.array(lattice.arcs, np.int64).reshape(-1, 2)
    return steps, lattice.label_ends, -1 if lattice.skips_to is None else lattice.skips_to, float(skip_score)


def _of_samples(
    solve: Callable[..., None], planes: np.ndarray, lattice: ArcLattice, count: int, num_threads: int
) -> GridWalks:
    """What solving each sample writes where it finds walks."""
    num_samples, num_labels = lattice.targets.shape
    longest = int(lattice.logit_lengths.max(initial=0)) + num_labels
    log_probs = np.full((num_samples, count), -np.inf)
    frames = np.full((num_samples, count, num_labels), -1, np.int64)
    label_scores = np.zeros((num_samples, count, num_labels))
    kinds = np.full((num_samples, count, longest), -1, np.int64)

    def solve_sample(sample: int) -> None:
        own, labels = slice(*lattice.row_offsets[sample : sample + 2]), int(lattice.target_lengths[sample])
        shape = (len(planes), int(lattice.logit_lengths[sample]), labels + 1)
        arcs = np.ascontiguousarray(planes[:, own]).reshape(shape)
        if not (arcs < np.inf).all():
            log_probs[sample] = np.nan
        elif arcs.shape[1]:
            solve(sample, arcs, log_probs[sample], frames[sample], label_scores[sample], kinds[sample])
        lost = ~(log_probs[sample] > -np.inf)
        label_scores[sample, lost, :labels] = log_probs[sample, lost, None]

    num_threads = parallel.worthwhile(num_threads, planes.size * count)
    order = np.argsort(-np.diff(lattice.row_offsets), kind="stable")
    parallel.run(solve_sample, [(int(n),) for n in order], num_threads)
    return GridWalks(log_probs, frames, label_scores, kinds)


@part(**COMPILE_EXACTLY)
def _ways(t, u, planes, steps, label_ends, skips_to, skip_score, nodes, scores, kinds):
    """How many ways lead into a node: the node that each leaves, its score and its kind, a skip's being the last."""
    num_kinds, num_frames, width = planes.shape
    count = 0
    for k in range(num_kinds):
        source, before = t - steps[k, 0], u - steps[k, 1]
        ends = t < num_frames or steps[k, 1] == 0 or label_ends
        if 0 <= source < num_frames and before >= 0 and ends:
            nodes[count], scores[count], kinds[count] = source * width + before, planes[k, source, before], k
            count += 1
    if skips_to >= 0 and u == 0 and 0 < t < num_frames:
        nodes[count], scores[count], kinds[count] = 0, skip_score, num_kinds
        count += 1
    if skips_to >= 0 and u == width - 1 and t == num_frames - skips_to:
        for source in range(min(num_frames - 1, t)):
            nodes[count], scores[count], kinds[count] = source * width + u, skip_score, num_kinds
            count += 1
    return count


@exact_kernel
def _list(planes, steps, label_ends, skips_to, skip_score, log_probs, frames, label_scores, kinds):
    """The best walks of one sample: log-scores (K,), frame and score of each label (K, U), and kinds of arcs (K, L)."""
    planes = borrow(planes)
    num_kinds, num_frames, width = planes.shape
    size, most = log_probs.size, num_kinds + 1 + num_frames
    nodes, scores, own_kinds = np.empty(most, np.int64), np.empty(most), np.empty(most, np.int64)
    front, ranks = np.empty(most), np.empty(most, np.int64)
    lists = np.full(((num_frames + 1) * width, size), -np.inf)
    codes = np.full(((num_frames + 1) * width, size), -1, np.int64)
    nothing = np.empty((0, 0), np.uint64)
    lists[0, 0] = 0.0
    for node in range(1, (num_frames + 1) * width):
        t, u = node // width, node % width
        count = _ways(t, u, planes, steps, label_ends, skips_to, skip_score, nodes, scores, own_kinds)
        merge(
            lists,
            nodes,
            scores,
            count,
            front,
            ranks,
            lists[node],
            codes[node],
            nothing,
            nothing[0:0, 0],
            nothing[0:0, 0],
        )
    for r in range(size):
        node, rank, length = (num_frames + 1) * width - 1, r, 0
        log_probs[r] = lists[node, r]
        while node > 0 and log_probs[r] > -np.inf:
            way, rank = codes[node, rank] // size, codes[node, rank] % size
            _ways(
                node // width, node % width, planes, steps, label_ends, skips_to, skip_score, nodes, scores, own_kinds
            )
            node = nodes[way]
            _tell(own_kinds[way], node, planes, steps, frames[r], label_scores[r])
            kinds[r, length] = own_kinds[way]
            length += 1
        kinds[r, :length] = kinds[r, :length][::-1].copy()


@part(**COMPILE_EXACTLY)
def _tell(kind, node, planes, steps, frames, label_scores):
    """Write down an arc that leaves a node, where it emits a label."""
    num_kinds, _, width = planes.shape
    if kind < num_kinds and steps[kind, 1]:
        frames[node % width], label_scores[node % width] = node // width, planes[kind, node // width, node % width]


@exact_kernel
def _draw(planes, steps, label_ends, skips_to, skip_score, draws, log_probs, frames, label_scores, kinds):
    """As ``_list``, walks that are drawn: from the end back, each arc as probable as its part of its node."""
    planes = borrow(planes)
    num_kinds, num_frames, width = planes.shape
    most = num_kinds + 1 + num_frames
    nodes, scores, own_kinds = np.empty(most, np.int64), np.empty(most), np.empty(most, np.int64)
    alpha = np.full((num_frames + 1) * width, -np.inf)
    alpha[0] = 0.0
    for node in range(1, alpha.size):
        t, u = node // width, node % width
        count = _ways(t, u, planes, steps, label_ends, skips_to, skip_score, nodes, scores, own_kinds)
        largest = -np.inf
        for h in range(count):
            largest = max(largest, alpha[nodes[h]] + scores[h])
        if largest > -np.inf:
            total = 0.0
            for h in range(count):
                total += np.exp(alpha[nodes[h]] + scores[h] - largest)
            alpha[node] = largest + np.log(total)
    if alpha[-1] == -np.inf:
        return
    for d in range(log_probs.size):
        node, length, log_prob = alpha.size - 1, 0, 0.0
        while node > 0:
            t, u = node // width, node % width
            count = _ways(t, u, planes, steps, label_ends, skips_to, skip_score, nodes, scores, own_kinds)
            left, way = draws[d, length], -1
            # Rounding may leave a little of a number behind the last way, which takes it.
            for h in range(count):
                part = np.exp(alpha[nodes[h]] + scores[h] - alpha[node])
                if part > 0:
                    way = h
                    if left < part:
                        break
                    left -= part
            node = nodes[way]
            log_prob += scores[way]
            _tell(own_kinds[way], node, planes, steps, frames[d], label_scores[d])
            kinds[d, length] = own_kinds[way]
            length += 1
        log_probs[d] = log_prob
        kinds[d, :length] = kinds[d, :length][::-1].copy()
