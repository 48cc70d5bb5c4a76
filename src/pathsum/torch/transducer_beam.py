"""Beam decoding of transducers, frame by frame, all samples at once."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathsum import _checks
from pathsum.decoding import Beams, NGram
from pathsum.errors import InvalidTypeError, InvalidValueError
from pathsum.kernels.numba.prefix_beam import step, width_of
from pathsum.lattice import BEYOND
from pathsum.options import RNNTType
from pathsum.torch._inputs import Integers, check_lengths, check_values, own_blank, samples_first, tdt_durations
from pathsum.torch.greedy import ENDLESS
from pathsum.torch.rnnt import rnnt_loss
from pathsum.torch.variants import multi_blank_rnnt_loss, tdt_loss

# A hypothesis holds the predictor's output and state, and is Python's: some thousand bytes each.
MOST_HYPOTHESES = 2**16

_TYPES = ("regular", "modified", "one_sym_per_frame")


def rnnt_beam_decode(
    encoder_out: Tensor | np.ndarray,
    encoder_lengths: Integers | int | None,
    predict: Callable[[Tensor, Any], tuple[Tensor, Any]],
    join: Callable[[Tensor, Tensor], Any],
    blank: int = 0,
    *,
    beam_size: int = 4,
    n_best: int = 1,
    max_symbols: int = 10,
    durations: Sequence[int] | None = None,
    rnnt_type: RNNTType = "regular",
    big_blanks: Sequence[int] | None = None,
    big_blank_durations: Sequence[int] | None = None,
    lm: NGram | None = None,
    lm_weight: float = 0.0,
    word_score: float = 0.0,
    labels: Sequence[str] | None = None,
    beam_threshold: float = math.inf,
    exact_scores: bool = True,
    state_axis: int = 0,
    batch_first: bool = True,
    num_classes: int | None = None,
) -> Beams:
    """The most probable texts of a transducer, alignments that read the same added up.

    ``score = log P(tokens | x) + lm_weight * ln P(tokens, "</s>") + word_score * tokens``

    Args:
        encoder_out: Output of the encoder (N, T, H), or (T, H) for one sample.
        encoder_lengths: Frames of each sample (N,), at most T; T where ``None``. A number for one sample.
        predict: The predictor, one step, as in ``rnnt_greedy_decode``.
        join: The joiner, as in ``rnnt_greedy_decode``: ``join(frames, outputs)`` are logits (N, V), and logits (N, D)
            of the durations beside them where there are durations.
        blank: As in ``rnnt_greedy_decode``.
        beam_size: How many hypotheses are kept at least, in each frame and after each label of a frame: the next power
            of two. At most 2**16.
        n_best: How many hypotheses are returned at most, and ``beam_size`` at most.
        max_symbols: How many labels a frame has at most while hypotheses are looked for. Above 1000 a frame of 1000
            labels raises.
        durations: The D durations of a token-and-duration transducer.
        rnnt_type: ``"regular"``; ``"modified"`` and ``"one_sym_per_frame"``, where a label takes its frame.
        big_blanks: Classes of a multi-blank transducer's big blanks; negative counts from the end.
        big_blank_durations: Frames of each of them, in the same order.
        lm: Language model of the tokens, whose words are ``labels``.
        lm_weight: What ln P of the language model counts.
        word_score: What each token counts.
        labels: The classes' texts; their numbers where ``None``.
        beam_threshold: A hypothesis goes no further that is so much less than the best.
        exact_scores: Each hypothesis is scored anew by the loss, over all its alignments, which takes T * (U+1) rows of
            the joiner. Else by those that the search met.
        state_axis: Axis of the samples in the tensors of a state: 1 for ``torch.nn.LSTM`` and ``GRU``.
        batch_first: ``encoder_out`` is (N, T, H); where False (T, N, H). Results have the samples first in any case.
        num_classes: V, of which a negative blank counts from the end.

    Returns:
        ``Beams``, as ``ctc_beam_decode``, on the encoder's device; ``ctc_scores`` are log P(tokens | x), ``words`` is
        ``None``, and ``frames`` are of the best alignment that the search met.

    Raises:
        InvalidValueError: (a ValueError) an argument out of range, a wrong shape.
        InvalidTypeError: (a TypeError) an argument of a wrong type.

    Notes:
        In a frame hypotheses grow by a label at a time, ``max_symbols`` at most, each time those of all samples in one
        call of ``join`` and ``predict``; then those that are the same are merged. A wider beam holds all that a
        narrower one holds, as in ``ctc_beam_decode``. Runs without gradients. ``beam_threshold=10`` saves most of the
        calls.

    Example:
        >>> import torch
        >>> from pathsum.torch import rnnt_beam_decode
        >>> heard = torch.tensor([[[0.0, 3.0, 0.0], [9.0, 0.0, 0.0], [0.0, 0.0, 3.0]]])  # blank is 0
        >>> def predict(tokens, state):  # a label is not said twice
        ...     return -9.0 * torch.nn.functional.one_hot(tokens, 3) * (tokens > 0)[:, None], state
        >>> found = rnnt_beam_decode(heard, None, predict, torch.add, blank=0, max_symbols=3)
        >>> found.tokens.tolist(), found.lengths.tolist(), found.frames[0, 0].tolist()
        ([[[1, 2]]], [[2]], [0, 2])
    """
    function = "rnnt_beam_decode"
    blank = own_blank(function, blank, num_classes)
    _checks.check_option(function, "rnnt_type", rnnt_type, _TYPES)
    steps = None if durations is None else tdt_durations(function, durations)
    bigs = _big_blanks(function, big_blanks, big_blank_durations)
    if (steps is not None) + bool(bigs) + (rnnt_type != "regular") > 1:
        rule = "be of one kind: durations, big_blanks or rnnt_type"
        raise InvalidValueError(function, "rnnt_type", rule, rnnt_type)
    if lm is not None and not isinstance(lm, NGram):
        raise InvalidTypeError(function, "lm", "be an NGram", type(lm).__name__)
    if not (isinstance(beam_threshold, float) and beam_threshold == math.inf):
        beam_threshold = _checks.check_number(function, "beam_threshold", beam_threshold, 0.0)
    kind = _Kind(function, blank, steps, rnnt_type, bigs, join)
    beam_size = _checks.check_beam_size(function, beam_size, MOST_HYPOTHESES)
    search = _Search(
        kind,
        predict,
        width_of(beam_size),
        _checks.check_count(function, "max_symbols", max_symbols, 1),
        beam_threshold,
        _checks.check_count(function, "state_axis", state_axis, -BEYOND, BEYOND),
        _Words(
            lm,
            _checks.check_number(function, "lm_weight", lm_weight),
            _checks.check_number(function, "word_score", word_score),
            _labels(function, labels),
        ),
    )
    n_best = min(_checks.check_count(function, "n_best", n_best, 1), beam_size)
    exact_scores = _checks.check_flag(function, "exact_scores", exact_scores)
    encoder_out, batched = samples_first(function, "encoder_out", encoder_out, batch_first, "H")
    check_values(function, "encoder_out", encoder_out)
    num_samples, num_frames, _ = encoder_out.shape
    lengths = check_lengths(function, "encoder_lengths", encoder_lengths, num_samples, num_frames, batched).tolist()
    with torch.no_grad():
        endings = search.run(encoder_out, lengths)
        found = [
            _listed(search, encoder_out[n, : lengths[n]], ending, n_best, exact_scores)
            for n, ending in enumerate(endings)
        ]
    beams = _packed(found, encoder_out.device)
    return beams if batched else Beams(*(None if each is None else each[0] for each in beams))


def _labels(function: str, labels: Any) -> tuple[str, ...] | None:
    if labels is None:
        return None
    if not isinstance(labels, (list, tuple, str)) or not all(isinstance(label, str) for label in labels):
        raise InvalidTypeError(function, "labels", "be a list of texts", repr(labels))
    return tuple(labels)


def _big_blanks(function: str, classes: Any, durations: Any) -> tuple[tuple[int, int], ...]:
    """Class and frames of each big blank."""
    if classes is None and durations is None:
        return ()
    if classes is None or durations is None:
        missing = "big_blanks" if classes is None else "big_blank_durations"
        raise InvalidValueError(function, missing, "be given, as the other is", None)
    frames = _checks.check_durations(function, "big_blank_durations", durations, minimum=1, distinct=False)
    if not isinstance(classes, (list, tuple)):
        raise InvalidTypeError(function, "big_blanks", "be a list of ints", type(classes).__name__)
    if len(classes) != len(frames):
        raise InvalidValueError(function, "big_blanks", f"have one class a duration, {len(frames)}", classes)
    return tuple(zip(classes, frames, strict=True))


class _Rows(NamedTuple):
    """What nodes emit, as arrays: a row a node.

    Attributes:
        blanks: frames and log-probabilities (R,) of each kind of blank.
        labels: (R, V) log-probability of each label, -inf for what is none.
        label_steps: frames and log-probabilities (R,) of what a label may go on by.
    """

    blanks: list[tuple[int, np.ndarray]]
    labels: np.ndarray
    label_steps: list[tuple[int, np.ndarray]]


class _Kind(NamedTuple):
    """A kind of transducer: what its nodes emit, and its loss."""

    function: str
    blank: int
    durations: tuple[int, ...] | None
    rnnt_type: RNNTType
    big_blanks: tuple[tuple[int, int], ...]
    join: Callable[[Tensor, Tensor], Any]

    @property
    def label_ends(self) -> bool:
        """Whether a label may go to the end of the frames."""
        return self.rnnt_type == "modified"

    def joined(self, frames: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (R, V), and (R, D) of durations, in float64."""
        logits = self.join(frames, outputs)
        if self.durations is None:
            if not isinstance(logits, Tensor) or logits.ndim != 2:
                got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise InvalidValueError(self.function, "join", "return logits (N, V)", got)
            return logits.double(), None
        if not isinstance(logits, tuple) or len(logits) != 2 or logits[1].shape[-1] != len(self.durations):
            got = [tuple(part.shape) for part in logits] if isinstance(logits, tuple) else type(logits).__name__
            rule = f"return logits (N, V) and (N, D), D = {len(self.durations)}"
            raise InvalidValueError(self.function, "join", rule, got)
        return logits[0].double(), logits[1].double()

    def rows(self, frames: Tensor, outputs: Tensor) -> _Rows:
        logits, steps = self.joined(frames, outputs)
        num_classes = logits.shape[1]
        blank = _checks.check_blank(self.function, self.blank, num_classes)
        scores = logits.log_softmax(1).cpu().numpy()
        labels = scores.copy()
        labels[:, blank] = -np.inf
        nothing = np.zeros(len(scores))
        if self.durations is not None and steps is not None:
            columns = steps.log_softmax(1).cpu().numpy()
            on = [(d, columns[:, place]) for place, d in enumerate(self.durations)]
            return _Rows([(d, scores[:, blank] + column) for d, column in on if d > 0], labels, on)
        classes = _checks.check_classes(
            self.function, "big_blanks", [c for c, _ in self.big_blanks], num_classes, blank
        )  # fmt: skip
        blanks = [(1, scores[:, blank])]
        for c, (_, duration) in zip(classes, self.big_blanks, strict=True):
            blanks.append((duration, scores[:, c]))
            labels[:, c] = -np.inf
        return _Rows(blanks, labels, [(int(self.rnnt_type != "regular"), nothing)])

    def log_prob(self, frames: Tensor, outputs: Tensor, tokens: tuple[int, ...]) -> float:
        """log P of tokens, all alignments of the frames (T, H) with the predictor's outputs (U+1, P)."""
        num_frames, num_nodes = len(frames), len(outputs)
        logits, steps = self.joined(frames.repeat_interleave(num_nodes, 0), outputs.repeat(num_frames, 1))
        grid = logits.reshape(1, num_frames, num_nodes, -1)
        integers = ([list(tokens)] if tokens else np.zeros((1, 0), np.int64), [num_frames], [len(tokens)])
        if self.durations is not None and steps is not None:
            columns = steps.reshape(1, num_frames, num_nodes, -1)
            loss = tdt_loss(grid, columns, *integers, self.durations, self.blank, reduction="none")
        elif self.big_blanks:
            classes, own = zip(*self.big_blanks, strict=True)
            loss = multi_blank_rnnt_loss(grid, *integers, own, classes, self.blank, reduction="none")
        else:
            loss = rnnt_loss(grid, *integers, self.blank, reduction="none", rnnt_type=self.rnnt_type)
        return -float(loss)


class _Words(NamedTuple):
    """What tokens are worth besides their probability."""

    lm: NGram | None
    weight: float
    word_score: float
    labels: tuple[str, ...] | None

    def check(self, function: str, num_classes: int) -> None:
        if self.labels is not None and len(self.labels) != num_classes:
            raise InvalidValueError(function, "labels", f"be a text for each class, V = {num_classes}", self.labels)

    def grown(self, before: _Prefix, token: int) -> tuple[int, float, float]:
        """State, ln P and worth of a prefix with one more token."""
        state, lm_score, bonus = before.lm_state, before.lm_score, before.bonus + self.word_score
        if self.lm is not None:
            name = str(token) if self.labels is None else self.labels[token]
            score, state = step(self.lm.automaton, state, self.lm.number(name))
            lm_score += score
            bonus += self._weighed(score)
        return int(state), lm_score, bonus

    def ended(self, prefix: _Prefix) -> tuple[float, float]:
        """ln P and worth of a prefix with the end behind it."""
        if self.lm is None:
            return prefix.lm_score, prefix.bonus
        end = self.lm.end(prefix.lm_state)
        return prefix.lm_score + end, prefix.bonus + self._weighed(end)

    def _weighed(self, score: float) -> float:
        if self.weight == 0.0:
            return 0.0
        return self.weight * score if score > -math.inf else -math.inf


class _Prefix:
    """Tokens, and what the predictor and the language model say of them; the prefixes of a sample are a tree."""

    __slots__ = ("bonus", "children", "lm_score", "lm_state", "output", "parent", "state", "token")

    def __init__(self, parent: _Prefix | None, token: int, lm_state: int, lm_score: float, bonus: float):
        self.parent, self.token = parent, token
        self.lm_state, self.lm_score, self.bonus = lm_state, lm_score, bonus
        self.children: dict[int, _Prefix] = {}
        self.output: Tensor | None = None
        self.state: Any = None

    def child(self, token: int, words: _Words) -> _Prefix:
        if token not in self.children:
            self.children[token] = _Prefix(self, token, *words.grown(self, token))
        return self.children[token]

    def line(self) -> list[_Prefix]:
        """From the empty prefix to this one."""
        prefixes, prefix = [], self
        while prefix is not None:
            prefixes.append(prefix)
            prefix = prefix.parent
        return prefixes[::-1]


class _Entry(NamedTuple):
    """A prefix in a beam.

    Attributes:
        slot: Its place, by which narrower beams are parts of wider ones; of a part that is added up, its source's.
        prefix: Its tokens.
        mass: Log-probability of the alignments that the search has met.
        ranked: The same of those that its block of slots and those before have met: what beams are ordered by.
        best: Log-probability of the best of them.
        frames: The frame of each token in that one.
    """

    slot: int
    prefix: _Prefix
    mass: float
    ranked: float
    best: float
    frames: tuple[int, ...]


class _Search(NamedTuple):
    kind: _Kind
    predict: Callable[[Tensor, Any], tuple[Tensor, Any]]
    beam_size: int
    max_symbols: int
    threshold: float
    state_axis: int
    words: _Words

    def run(self, encoder_out: Tensor, lengths: list[int]) -> list[list[_Entry]]:
        """The beam of each sample behind its last frame."""
        roots = [_Prefix(None, -1, 0 if self.words.lm is None else self.words.lm.start, 0.0, 0.0) for _ in lengths]
        # What arrives in the frames to come, sample by sample.
        coming: list[dict[int, list[_Entry]]] = [{0: [_Entry(0, root, 0.0, 0.0, 0.0, ())]} for root in roots]
        if roots:
            self._predict(roots, encoder_out.device)
        for t in range(max(lengths, default=0)):
            beams = {n: self._beam(coming[n].pop(t, [])) for n in range(len(lengths)) if t < lengths[n]}
            for symbols in range(self.max_symbols + 1):
                todo = [(n, entry) for n, beam in beams.items() for entry in beam]
                if not todo:
                    break
                if symbols >= ENDLESS and self.max_symbols > ENDLESS:
                    rule = "leave each frame at last; a beam_threshold drops what does not"
                    raise InvalidValueError(
                        self.kind.function, "join", rule, f"{ENDLESS} labels in a frame", todo[0][0]
                    )
                self._predict([entry.prefix for _, entry in todo if entry.prefix.output is None], encoder_out.device)
                samples = torch.tensor([n for n, _ in todo], device=encoder_out.device)
                outputs = torch.stack([entry.prefix.output for _, entry in todo if entry.prefix.output is not None])
                rows = self.kind.rows(encoder_out[samples, t], outputs)
                self.words.check(self.kind.function, rows.labels.shape[1])
                growing: dict[int, list[_Entry]] = {n: [] for n in beams}
                for row, (n, entry) in enumerate(todo):
                    for frames, target, part in self._leaving(rows, row, entry, t, lengths[n]):
                        if frames > 0:
                            coming[n].setdefault(target, []).append(part)
                        elif symbols < self.max_symbols:
                            growing[n].append(part)
                beams = {n: self._beam(parts) for n, parts in growing.items()}
        return [
            self._beam(coming[n].get(length, [])) if length else [] for n, length in enumerate(lengths)
        ]  # fmt: skip

    def _leaving(self, rows: _Rows, row: int, entry: _Entry, t: int, length: int) -> Iterable[tuple[int, int, _Entry]]:
        """Where the arcs out of a node lead: frames on, the frame, and what arrives there."""
        for frames, scores in rows.blanks:
            if t + frames <= length and not scores[row] == -np.inf:
                yield frames, t + frames, self._part(entry, entry.prefix, scores[row], entry.frames)
        labels = rows.labels[row]
        for frames, scores in rows.label_steps:
            end = t + frames
            if end > length or (end == length and not self.kind.label_ends):
                continue
            for token in self._best_tokens(entry, labels):
                score = labels[token] + scores[row]
                if not score == -np.inf:
                    prefix = entry.prefix.child(token, self.words)
                    if prefix.bonus > -math.inf:
                        yield frames, end, self._part(entry, prefix, score, (*entry.frames, t))

    def _best_tokens(self, entry: _Entry, labels: np.ndarray) -> list[int]:
        """Those that can be in a beam: what one entry adds to it is among the best that it has."""
        if len(labels) <= self.beam_size or self.words.lm is not None:
            return np.flatnonzero(labels != -np.inf).tolist()
        return np.argsort(-labels, kind="stable")[: self.beam_size].tolist()

    def _part(self, entry: _Entry, prefix: _Prefix, score: float, frames: tuple[int, ...]) -> _Entry:
        return _Entry(
            entry.slot, prefix, entry.mass + score, entry.ranked + score, entry.best + score, frames
        )  # fmt: skip

    def _beam(self, parts: list[_Entry]) -> list[_Entry]:
        """The beam of what arrives in a place, the same prefixes added up, by blocks of slots as in ``prefix_beam``."""
        by_slot: dict[int, list[_Entry]] = {}
        whole: dict[_Prefix, tuple[float, float, tuple[int, ...]]] = {}
        for part in parts:
            by_slot.setdefault(part.slot, []).append(part)
            mass, best, frames = whole.get(part.prefix, (-math.inf, -math.inf, ()))
            if not part.best <= best:
                best, frames = part.best, part.frames
            whole[part.prefix] = (_log_add(mass, part.mass), best, frames)
        ranked: dict[_Prefix, float] = {}
        heap: list[tuple[float, int, float, _Prefix]] = []
        taken: set[_Prefix] = set()
        beam: list[_Entry] = []
        order, highest, last = 0, -math.inf, max(by_slot, default=-1)
        for slot in range(self.beam_size):
            begins = slot & (slot - 1) == 0
            block = range(slot, max(2 * slot, 1)) if begins else ()
            for part in (part for each in block for part in by_slot.get(each, [])):
                if part.prefix not in taken:
                    value = _log_add(ranked.get(part.prefix, -math.inf), part.ranked)
                    ranked[part.prefix] = value
                    heapq.heappush(heap, (-(value + part.prefix.bonus), order, value, part.prefix))
                    order += 1
            while heap and heap[0][3] in taken:
                heapq.heappop(heap)
            if heap and not -heap[0][0] < highest - self.threshold:
                negated, _, value, prefix = heapq.heappop(heap)
                highest = max(highest, -negated)
                taken.add(prefix)
                mass, best, frames = whole[prefix]
                beam.append(_Entry(slot, prefix, mass, value, best, frames))
            elif slot > last:
                break
        return beam

    def _predict(self, prefixes: list[_Prefix], device: torch.device) -> None:
        """The predictor's output and state of prefixes that have none yet."""
        prefixes = list(dict.fromkeys(prefixes))
        if not prefixes:
            return
        roots = prefixes[0].parent is None
        tokens = [self.kind.blank if prefix.parent is None else prefix.token for prefix in prefixes]
        states = [prefix.parent.state for prefix in prefixes if prefix.parent is not None]
        state = None if roots else _together(states, self.state_axis)
        outputs, state = self.predict(torch.tensor(tokens, device=device), state)
        _check_axis(self.kind.function, state, self.state_axis, len(prefixes))
        for row, prefix in enumerate(prefixes):
            prefix.output = outputs[row]
            prefix.state = _one(state, row, self.state_axis)


def _check_axis(function: str, state: Any, axis: int, count: int) -> None:
    """The tensors of a state must have so many samples on the axis."""
    if isinstance(state, Tensor):
        if not -state.ndim <= axis < state.ndim or state.shape[axis] != count:
            rule = f"be the axis of the N = {count} samples in the tensors of a state"
            raise InvalidValueError(function, "state_axis", rule, f"{axis} of shape {tuple(state.shape)}")
    elif isinstance(state, (dict, tuple, list)):
        for value in state.values() if isinstance(state, dict) else state:
            _check_axis(function, value, axis, count)


def _one(state: Any, row: int, axis: int) -> Any:
    """The state of one sample."""
    if isinstance(state, Tensor):
        return state.narrow(axis, row, 1)
    if isinstance(state, dict):
        return {name: _one(value, row, axis) for name, value in state.items()}
    if isinstance(state, (tuple, list)):
        return _as(state, [_one(value, row, axis) for value in state])
    return state


def _together(states: list[Any], axis: int) -> Any:
    """The states of some samples as one."""
    first = states[0]
    if isinstance(first, Tensor):
        return torch.cat(states, axis)
    if isinstance(first, dict):
        return {name: _together([state[name] for state in states], axis) for name in first}
    if isinstance(first, (tuple, list)):
        return _as(first, [_together(list(values), axis) for values in zip(*states, strict=True)])
    return first


def _as(kind: Any, values: list[Any]) -> Any:
    return type(kind)(*values) if hasattr(kind, "_fields") else type(kind)(values)


def _log_add(a: float, b: float) -> float:
    high, low = (a, b) if a > b else (b, a)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


class _Hypothesis(NamedTuple):
    tokens: tuple[int, ...]
    frames: tuple[int, ...]
    score: float
    mass: float
    lm_score: float


def _listed(search: _Search, frames: Tensor, ending: list[_Entry], n_best: int, exact: bool) -> list[_Hypothesis]:
    """The hypotheses of a sample in order; one of NaN alone where its scores have a NaN."""
    found = []
    for entry in ending:
        line = entry.prefix.line()
        tokens = tuple(prefix.token for prefix in line[1:])
        mass = entry.mass
        if exact:
            search._predict([prefix for prefix in line if prefix.output is None], frames.device)
            outputs = torch.stack([prefix.output for prefix in line if prefix.output is not None])
            mass = search.kind.log_prob(frames, outputs, tokens)
        lm_score, bonus = search.words.ended(entry.prefix)
        if math.isnan(mass):
            return [_Hypothesis((), (), math.nan, math.nan, math.nan)]
        if mass > -math.inf and bonus > -math.inf:
            found.append(_Hypothesis(tokens, entry.frames, mass + bonus, mass, lm_score))
    return sorted(found, key=lambda hypothesis: -hypothesis.score)[:n_best]


def _packed(found: list[list[_Hypothesis]], device: torch.device) -> Beams:
    most = max(map(len, found), default=0)
    longest = max((len(hypothesis.tokens) for each in found for hypothesis in each), default=0)
    shape = (len(found), most)
    tokens, frames = (torch.full((*shape, longest), -1, device="cpu") for _ in range(2))
    lengths = torch.zeros(shape, dtype=torch.int64, device="cpu")
    scores, masses = (torch.full(shape, -math.inf, dtype=torch.float64, device="cpu") for _ in range(2))
    lm_scores = torch.zeros(shape, dtype=torch.float64, device="cpu")
    for n, each in enumerate(found):
        for k, hypothesis in enumerate(each):
            size = len(hypothesis.tokens)
            tokens[n, k, :size], frames[n, k, :size] = (
                torch.tensor(row, dtype=torch.int64, device="cpu") for row in (hypothesis.tokens, hypothesis.frames)
            )
            lengths[n, k] = size
            scores[n, k], masses[n, k], lm_scores[n, k] = hypothesis.score, hypothesis.mass, hypothesis.lm_score
        if each and math.isnan(each[0].score):
            scores[n], masses[n], lm_scores[n] = math.nan, math.nan, math.nan
    beams = Beams(tokens, lengths, scores, masses, lm_scores, frames, None, masses.logsumexp(1))
    return Beams(*(None if part is None else part.to(device) for part in beams))
