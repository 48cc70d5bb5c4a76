"""Prefix beam search on the CPU: labellings grow in a tree, each with the log-mass of the frames that read as it.

Monotonic, by slots (Lemons et al., 2022), which are filled in blocks, each as large as all before: slot 0, slot 1,
slots 2 and 3, 4 to 7 and so on. A block of the next frame is the best of what follows from its own slots of this one
and from those before, and is in none of these, by the mass that comes from there. So a beam of 2^k entries is the first
slots of every wider one, and what it holds a wider one holds too. Blocks of one slot would hold so for every width, and
leave one slot to all that follows from a late entry: with words and a beam of 20 that is tenfold the errors.

Each labelling has one labelling that it grows from, so that no two entries of a beam are the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pathsum.kernels.numba.compilation import COMPILE_EXACTLY, exact_kernel
from pathsum.kernels.numba.linking import part

# What a labelling may grow by: any class; any class, its words looked up in a trie; what a trie spells, nothing else.
FREE, WATCHED, SPELLED = 0, 1, 2
# Where an entry is in the trie, besides its nodes: off it; behind a word that only the separator may follow.
OFF, CLOSED = -1, -2

# What a candidate is that names no class: a labelling of the beam; one more class, by its rank.
_STAYS, _RANKED = -1, -2
_NOTHING = -1


class Automaton(NamedTuple):
    """A back-off automaton over words: state 0 knows no context, and its arcs are those of all words.

    Attributes:
        offsets: (S+1,) first arc of each state.
        labels, targets: (A,) word of each arc, rising within a state, and the state that it leads to.
        scores: (A,) natural logarithm of the word's probability, or its bonus.
        backoffs, weights: (S,) the state to ask where a state lacks the arc, and what that costs.
        missing: (1,) score of a word that no state has an arc for.
    """

    offsets: np.ndarray
    labels: np.ndarray
    targets: np.ndarray
    scores: np.ndarray
    backoffs: np.ndarray
    weights: np.ndarray
    missing: np.ndarray


class Trie(NamedTuple):
    """The spellings of words.

    Attributes:
        offsets: (M+1,) first child of each node.
        tokens, children: class that leads to each child, rising within a node, and the child.
        word_offsets, words: (M+1,) first word that is spelled out at each node, and the words.
        only_words: (M,) the one word of a node without children, else -1.
        potentials: (M+1,) what the best word below a node promises; the last entry is that of what is off the trie.
    """

    offsets: np.ndarray
    tokens: np.ndarray
    children: np.ndarray
    word_offsets: np.ndarray
    words: np.ndarray
    only_words: np.ndarray
    potentials: np.ndarray


class Rules(NamedTuple):
    """What a labelling may be, and what it is worth besides its probability.

    Attributes:
        mode: ``FREE``, ``WATCHED`` or ``SPELLED``.
        blank, separator: classes, -1 for none.
        collapses: whether equal neighbours are one label, as in CTC and ASG; else each is a label on one frame.
        beam_size: how many entries, a power of two: see ``width_of``.
        token_min: least score of a class that a labelling grows by.
        beam_threshold: how far behind the best an entry may be.
        lm_weight, word_score: what a word's log-probability counts, and a word.
        lm_words: (W+1,) number that the language model has for each word of the trie, the last entry that of any
            other; -1 for none.
        lm, hot: the automata of the language model, and of phrases made of the trie's words.
        trie: the words' spellings.
        transitions: (C, C) score of passing to a class (row) from a class, or (0, 0).
    """

    mode: int
    blank: int
    separator: int
    collapses: bool
    beam_size: int
    token_min: float
    beam_threshold: float
    lm_weight: float
    word_score: float
    lm_words: np.ndarray
    lm: Automaton
    hot: Automaton
    trie: Trie
    transitions: np.ndarray


class Search(NamedTuple):
    """Where a search is: the tree of labellings, that of their words, and the beam. Arrays have room to grow.

    Attributes:
        sizes: (2,) how many labellings and how many sequences of words there are.
        parents, tokens, places, histories: of each labelling the one that it grew from, its last class, its node of the
            trie, and its words so far.
        table: where a labelling is found again.
        word_parents, words, lm_states, hot_states, lm_scores, bonuses: of each sequence of words the one that it grew
            from, its last word (or the labelling that ends in it, where words have no numbers), the automata's states,
            the natural log-probability of its words, and all that it is worth.
        word_table: where a sequence of words is found again.
        slots: (B,) the labelling in each slot, -1 for none.
        masses: (B, 4) log-mass of the frames that end in a blank, and in the last label; and of both what counts for
            the order of the slots.
    """

    sizes: np.ndarray
    parents: np.ndarray
    tokens: np.ndarray
    places: np.ndarray
    histories: np.ndarray
    table: np.ndarray
    word_parents: np.ndarray
    words: np.ndarray
    lm_states: np.ndarray
    hot_states: np.ndarray
    lm_scores: np.ndarray
    bonuses: np.ndarray
    word_table: np.ndarray
    slots: np.ndarray
    masses: np.ndarray


def width_of(beam_size: int) -> int:
    """The entries of a beam of at least so many: a whole number of blocks."""
    return 1 << (beam_size - 1).bit_length()


def start(separator: int, lm_state: int) -> Search:
    """The search before the first frame: the empty labelling alone."""
    room, rooms = 64, 128
    integers = [np.zeros(room, np.int32) for _ in range(4)]
    words = [np.zeros(room, np.int32) for _ in range(4)]
    integers[0][0], integers[1][0] = -1, separator
    words[0][0], words[1][0], words[2][0] = -1, -1, lm_state
    table, word_table = np.full(rooms, -1, np.int32), np.full(rooms, -1, np.int32)
    masses = np.array([[0.0, -np.inf, 0.0, -np.inf]])
    return Search(np.ones(2, np.int64), *integers, table, *words, np.zeros(room), np.zeros(room), word_table,
                  np.zeros(1, np.int32), masses)  # fmt: skip


def _softplus() -> np.ndarray:
    """(641, 8) Taylor coefficients of log(1 + exp(-x)) at multiples of 1/16, rising: to 1e-16 halfway to the next."""
    x = np.arange(40 * _PER_UNIT + 1) / _PER_UNIT
    sigmoid = [1 / (1 + np.exp(x))]
    for n in range(6):
        products = sum(sigmoid[i] * sigmoid[n - i] for i in range(n + 1))
        sigmoid.append((sigmoid[n] - products) / (n + 1))  # as its derivative is itself less its square
    return np.stack([np.log1p(np.exp(-x)), *(part / (n + 1) for n, part in enumerate(sigmoid))], 1)


_PER_UNIT = 16
_SOFTPLUS = _softplus()


@part(forceinline=True, **COMPILE_EXACTLY)
def log_add(a, b):
    high, low = (a, b) if a > b else (b, a)
    # What is so much less changes no digit; nor does -inf beside -inf, whose difference is no number.
    if not low > high - 40.0:
        return high
    # Half as long as exp and log take.
    behind = high - low
    i = np.int64(behind * _PER_UNIT + 0.5)
    x = i / _PER_UNIT - behind
    p = _SOFTPLUS[i]
    return high + (p[0] + x * (p[1] + x * (p[2] + x * (p[3] + x * (p[4] + x * (p[5] + x * (p[6] + x * p[7])))))))


@exact_kernel
def step(automaton, state, word):
    """The score of a word behind a state, and the state behind both."""
    owed = 0.0
    while True:
        low, high = automaton.offsets[state], automaton.offsets[state + 1]
        end = high
        while low < high:
            middle = (low + high) >> 1
            if automaton.labels[middle] < word:
                low = middle + 1
            else:
                high = middle
        if low < end and automaton.labels[low] == word:
            return owed + automaton.scores[low], np.int64(automaton.targets[low])
        if state == 0:
            return owed + automaton.missing[0], 0
        owed += automaton.weights[state]
        state = np.int64(automaton.backoffs[state])


@exact_kernel
def worth(rules, word, lm_state, hot_state, lm_score, bonus):
    """What words are worth with one more: its states, their log-probability, all they are worth."""
    if rules.lm.offsets.size > 1:
        known = word if word >= 0 else rules.lm_words.size - 1
        score, lm_state = step(rules.lm, lm_state, np.int64(rules.lm_words[known]))
        lm_score += score
        if rules.lm_weight != 0.0:
            bonus += rules.lm_weight * score if score > -np.inf else -np.inf
    if rules.hot.offsets.size > 1:
        score, hot_state = step(rules.hot, hot_state, np.int64(word))
        bonus += score
    return lm_state, hot_state, lm_score, bonus + rules.word_score


@part(forceinline=True, **COMPILE_EXACTLY)
def _hash(a, b, c, d, room):
    mixed = np.uint64(a) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(b) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed += np.uint64(c) * np.uint64(0x165667B19E3779F9) + np.uint64(d) * np.uint64(0x27D4EB2F165667C5)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    return np.int64(mixed & np.uint64(room - 1))


@part(forceinline=True, **COMPILE_EXACTLY)
def _find(table, firsts, seconds, thirds, fourths, a, b, c, d):
    """Where in a table the entry of four numbers is, or would be."""
    place = _hash(a, b, c, d, table.size)
    while True:
        entry = table[place]
        if entry < 0 or (firsts[entry] == a and seconds[entry] == b and thirds[entry] == c and fourths[entry] == d):
            return place
        place = (place + 1) & (table.size - 1)


@part(**COMPILE_EXACTLY)
def _twice(array):
    larger = np.zeros(2 * array.size, array.dtype)
    for entry in range(array.size):
        larger[entry] = array[entry]
    return larger


@part(**COMPILE_EXACTLY)
def _rehashed(table, firsts, seconds, thirds, fourths, count):
    larger = np.full(2 * table.size, np.int32(-1))
    for entry in range(count):
        a, b, c, d = firsts[entry], seconds[entry], thirds[entry], fourths[entry]
        larger[_find(larger, firsts, seconds, thirds, fourths, a, b, c, d)] = entry
    return larger


@part(forceinline=True, **COMPILE_EXACTLY)
def _before(value, number, other_value, other_number):
    """The order of a heap: falling values, of equal ones the earliest number first."""
    return value > other_value or (value == other_value and number < other_number)


@part(forceinline=True, **COMPILE_EXACTLY)
def _push(values, numbers, size, value, number):
    """Onto a heap of a size, which is then one more."""
    place = size
    while place > 0:
        above = (place - 1) >> 1
        if not _before(value, number, values[above], numbers[above]):
            break
        values[place], numbers[place] = values[above], numbers[above]
        place = above
    values[place], numbers[place] = value, number


@part(forceinline=True, **COMPILE_EXACTLY)
def _pop(values, numbers, size):
    """Take the first of a heap of a size, which is then one less."""
    # The gap sinks to the end, and the last is put there: it mostly belongs so low that asking on the way is vain.
    place, below = 0, 1
    while below + 1 < size:
        below += _before(values[below + 1], numbers[below + 1], values[below], numbers[below])
        values[place], numbers[place] = values[below], numbers[below]
        place, below = below, 2 * below + 1
    _push(values, numbers, place, values[size - 1], numbers[size - 1])


class Order(NamedTuple):
    """The classes of a frame by falling score, of equal ones the lowest first, found as they are asked for.

    Attributes:
        classes: (C,) those that have been asked for.
        scores, others: (C,) a heap of the others.
        sizes: (2,) how many have been asked for, and how many have not.
    """

    classes: np.ndarray
    scores: np.ndarray
    others: np.ndarray
    sizes: np.ndarray


@part(forceinline=True, **COMPILE_EXACTLY)
def _next_class(order, rank, row, token_min, blank, separator, repeated):
    """The first rank from one on whose class a labelling may grow by; -1 for none.

    The separator is a candidate of its own, and so is a repeated class.
    """
    while rank < row.size:
        if rank == order.sizes[0]:
            order.classes[rank] = order.others[0]
            _pop(order.scores, order.others, order.sizes[1])
            order.sizes[0], order.sizes[1] = rank + 1, order.sizes[1] - 1
        c = order.classes[rank]
        if row[c] < token_min or row[c] == -np.inf:
            return -1
        if c != blank and c != separator and c != repeated:
            return rank
        rank += 1
    return -1


@part(forceinline=True, **COMPILE_EXACTLY)
def _leaving(collapses, transitions, masses, totals, i, part, token, c):
    """The mass in slot i that may grow by a class behind ``token``: all of it (part 0), or what ranks it (part 1)."""
    if collapses and c == token:
        return masses[i, 2 * part]
    if transitions.size and token >= 0:
        return log_add(masses[i, 2 * part], masses[i, 2 * part + 1] + transitions[c, token])
    return totals[i, part]


@part(forceinline=True, **COMPILE_EXACTLY)
def _staying(collapses, transitions, separator, blank, label, token, row):
    """The mass in its last class that a labelling keeps over a frame, given its two parts."""
    if token < 0:
        return -np.inf
    stays = -np.inf
    if collapses:
        stays = label + (transitions[token, token] if transitions.size else 0.0)
    if token == separator:
        # Any number of separators reads as one.
        stays = log_add(blank, stays if collapses else label)
    return stays + row[token]


@part(forceinline=True, **COMPILE_EXACTLY)
def _promise(potentials, place):
    if place == CLOSED:
        return 0.0
    return potentials[place if place >= 0 else potentials.size - 1]


class _Room(NamedTuple):
    """What a frame works in: of each slot, and of each candidate.

    Attributes:
        slot_of: the slot of each labelling, -1 where it has none.
        totals, kept, ranked: (B, 2) masses of each slot: those before the frame, all and what ranks it; and after the
            frame, in a blank and in the label, of all slots, and of the blocks so far.
        taken: (B,) whether the labelling of each slot is in the next beam.
        first_child, next_child: (B,) the slots of what a labelling has grown to in the beam, as a list.
        slots, masses: the next beam.
        heap, numbers: the values of candidates, and which.
        candidates: of each the slot it comes from, its kind or class, its place in the trie, the word that ends before
            it.
        child_of: (C,) the child of a place in the trie by class.
        order: the classes of the frame.
    """

    slot_of: np.ndarray
    totals: np.ndarray
    kept: np.ndarray
    ranked: np.ndarray
    taken: np.ndarray
    first_child: np.ndarray
    next_child: np.ndarray
    slots: np.ndarray
    masses: np.ndarray
    heap: np.ndarray
    numbers: np.ndarray
    candidates: np.ndarray
    child_of: np.ndarray
    order: Order


@part(**COMPILE_EXACTLY)
def _make_room(num_slots, num_next, num_candidates, num_nodes, num_classes, child_of):
    return _Room(
        np.full(num_nodes, np.int32(-1)), np.empty((num_slots, 2)), np.empty((num_slots, 2)),
        np.empty((num_slots, 2)), np.empty(num_slots, np.bool_),
        np.empty(num_slots, np.int32), np.empty(num_slots, np.int32), np.empty(num_next, np.int32),
        np.empty((num_next, 4)), np.empty(num_candidates), np.empty(num_candidates, np.int64),
        np.empty((num_candidates, 4), np.int32), child_of,
        Order(
            np.empty(num_classes, np.int64), np.empty(num_classes), np.empty(num_classes, np.int64),
            np.zeros(2, np.int64),
        ),
    )  # fmt: skip


@exact_kernel
def advance(frames, rules, search):
    """The search after some more frames (T, C) of scores.

    Slots are filled by what is known of them from their block and those before: ``ranked``, masses that are the same
    whatever the width of the beam. All that the beam has met of a labelling is in ``kept``.
    """
    num_classes = frames.shape[1]
    child_of = np.full(num_classes, np.int32(OFF))
    room = _make_room(0, 0, 0, search.parents.size, num_classes, child_of)
    for t in range(frames.shape[0]):
        num_slots = search.slots.size
        num_candidates, num_next = _most(frames[t], rules, search)
        search = _with_space(search, num_next)
        if (
            room.totals.shape[0] < num_slots
            or room.slots.size < num_next
            or room.heap.size < num_candidates
            or room.slot_of.size < search.parents.size
        ):
            room = _make_room(
                2 * num_slots, 2 * num_next, 2 * num_candidates, search.parents.size, num_classes, child_of
            )
        level = _fill(frames[t], rules, search, room)
        search = Search(
            search.sizes, search.parents, search.tokens, search.places, search.histories, search.table,
            search.word_parents, search.words, search.lm_states, search.hot_states, search.lm_scores, search.bonuses,
            search.word_table, room.slots[:level].copy(), room.masses[:level].copy(),
        )  # fmt: skip
    return search


@part(**COMPILE_EXACTLY)
def _most(row, rules, search):
    """How many candidates a frame may have at most, and how many slots they may fill."""
    trie, num_slots = rules.trie, search.slots.size
    # A labelling may stay by its own slot, and by that of the labelling it grew from; and there is the separator.
    most = 3 * num_slots
    if rules.mode == SPELLED:
        at_root = trie.offsets[1] if rules.separator < 0 else 0
        for i in range(num_slots):
            place = search.places[search.slots[i]] if search.slots[i] >= 0 else OFF
            if place >= 0:
                most += trie.offsets[place + 1] - trie.offsets[place]
                most += (trie.word_offsets[place + 1] - trie.word_offsets[place]) * (at_root + 1)
    elif rules.mode == FREE and rules.transitions.size == 0:
        # One candidate stands for all classes, by their ranks.
        return most + 2 * num_slots, max(num_slots, min(rules.beam_size, most + num_slots * row.size))
    else:
        for c in range(row.size):
            most += num_slots if row[c] >= rules.token_min else 0
    return most, max(num_slots, min(rules.beam_size, most))


@part(**COMPILE_EXACTLY)
def _with_space(search, num_more):
    """A search that may have so many labellings more, and twice as many sequences of words."""
    num_nodes, num_histories = search.sizes[0], search.sizes[1]
    parents, tokens, places, histories, table = (
        search.parents, search.tokens, search.places, search.histories, search.table,
    )  # fmt: skip
    while parents.size < num_nodes + num_more:
        parents, tokens, places, histories = _twice(parents), _twice(tokens), _twice(places), _twice(histories)
        table = _rehashed(table, parents, tokens, histories, places, num_nodes)
    word_parents, words, lm_states, hot_states, lm_scores, bonuses, word_table = (
        search.word_parents, search.words, search.lm_states, search.hot_states, search.lm_scores, search.bonuses,
        search.word_table,
    )  # fmt: skip
    while words.size < num_histories + 2 * num_more:
        word_parents, words, lm_states = _twice(word_parents), _twice(words), _twice(lm_states)
        hot_states, lm_scores, bonuses = _twice(hot_states), _twice(lm_scores), _twice(bonuses)
        word_table = _rehashed(word_table, word_parents, words, words, words, num_histories)
    return Search(
        search.sizes, parents, tokens, places, histories, table, word_parents, words, lm_states, hot_states, lm_scores,
        bonuses, word_table, search.slots, search.masses,
    )  # fmt: skip


# No array is replaced here by a larger one: numba counts the references to an array that a loop may replace, by atomic
# additions in each of its turns, which would take as long as all the rest.
@part(**COMPILE_EXACTLY)
def _fill(row, rules, search, room):
    """The beam after a frame, into ``room.slots`` and ``room.masses``; how many slots it has."""
    parents, tokens, places, histories, table = (
        search.parents, search.tokens, search.places, search.histories, search.table,
    )  # fmt: skip
    word_parents, words, lm_states, hot_states, lm_scores, bonuses, word_table = (
        search.word_parents, search.words, search.lm_states, search.hot_states, search.lm_scores, search.bonuses,
        search.word_table,
    )  # fmt: skip
    slots, masses = search.slots, search.masses
    num_nodes, num_histories = search.sizes[0], search.sizes[1]
    trie, mode, blank, separator, collapses = rules.trie, rules.mode, rules.blank, rules.separator, rules.collapses
    transitions, token_min, potentials, beam_size = (
        rules.transitions, rules.token_min, rules.trie.potentials, rules.beam_size,
    )  # fmt: skip
    slot_of, totals, kept, ranked, taken = room.slot_of, room.totals, room.kept, room.ranked, room.taken
    first_child, next_child, child_of, order = room.first_child, room.next_child, room.child_of, room.order
    next_slots, next_masses = room.slots, room.masses
    heap, numbers, candidates = room.heap, room.numbers, room.candidates
    by_rank = mode == FREE and transitions.size == 0
    num_classes, num_slots = row.size, slots.size
    still = row[blank] if blank >= 0 else -np.inf
    if by_rank:
        order.sizes[0], order.sizes[1] = 0, num_classes
        for c in range(num_classes):
            _push(order.scores, order.others, c, row[c], c)
    for i in range(num_slots):
        if slots[i] >= 0:
            slot_of[slots[i]] = i
    # What each labelling in the beam has after this frame: ranked by what its own slot and that of the labelling it
    # grew from give it, block by block; and of all slots.
    for i in range(num_slots):
        first_child[i], next_child[i], taken[i] = -1, -1, False
        kept[i, 0], kept[i, 1], ranked[i, 0], ranked[i, 1] = -np.inf, -np.inf, -np.inf, -np.inf
        totals[i, 0] = log_add(masses[i, 0], masses[i, 1])
        totals[i, 1] = log_add(masses[i, 2], masses[i, 3])
    for i in range(num_slots - 1, -1, -1):
        node = slots[i]
        if node < 0:
            taken[i] = True
            continue
        kept[i, 0] = totals[i, 0] + still
        kept[i, 1] = _staying(collapses, transitions, separator, masses[i, 0], masses[i, 1], tokens[node], row)
        # What is in the beam grows under the rules of what is not, or the width would decide what may grow.
        if node > 0 and slot_of[parents[node]] >= 0 and row[tokens[node]] >= token_min:
            j, c = slot_of[parents[node]], tokens[node]
            source = _leaving(collapses, transitions, masses, totals, j, 0, tokens[parents[node]], c)
            kept[i, 1] = log_add(kept[i, 1], source + row[c])
            next_child[i] = first_child[j]
            first_child[j] = i
    heap_size, num_candidates, level, reached, block = 0, 0, 0, 0, 0
    # How far behind an entry may be, by all its mass: what ranks it may lack most of that.
    least = -np.inf
    if rules.beam_threshold < np.inf:
        for i in range(num_slots):
            if slots[i] >= 0:
                extra = bonuses[histories[slots[i]]] + _promise(potentials, places[slots[i]])
                least = max(least, log_add(kept[i, 0], kept[i, 1]) + extra - rules.beam_threshold)

    while level < beam_size and (level < num_slots or heap_size > 0):
        # Where a block begins, all is put forward that follows from its slots.
        if level & (level - 1) == 0:
            block = min(num_slots, max(2 * level, 1))
        while reached < block:
            i, reached = reached, reached + 1
            node = slots[i]
            if node < 0:
                continue
            token, place, history = tokens[node], places[node], histories[node]
            total, ranked_total = totals[i, 0], totals[i, 1]

            # The labelling itself, and what it has grown to in the beam already.
            j = np.int32(i)
            while j >= 0:
                own = slots[j]
                if not taken[j]:
                    if j == i:
                        ranked[j, 0] = ranked_total + still
                        more = _staying(collapses, transitions, separator, masses[j, 2], masses[j, 3], token, row)
                    else:
                        c = tokens[own]
                        more = _leaving(collapses, transitions, masses, totals, i, 1, token, c) + row[c]
                    ranked[j, 1] = log_add(ranked[j, 1], more)
                    extra = bonuses[histories[own]] + _promise(potentials, places[own])
                    mass = log_add(kept[j, 0], kept[j, 1]) + extra
                    if mass > -np.inf and mass >= least:
                        candidates[num_candidates, 0], candidates[num_candidates, 1] = j, _STAYS
                        value = log_add(ranked[j, 0], ranked[j, 1]) + extra
                        _push(heap, numbers, heap_size, value, num_candidates)
                        heap_size += 1
                        num_candidates += 1
                j = first_child[i] if j == i else next_child[j]

            # What else it may grow to: the best class, which brings the next when it is taken ...
            repeated = token if collapses and token >= 0 and token != separator else np.int32(_NOTHING)
            if by_rank:
                rank = _next_class(order, 0, row, token_min, blank, separator, repeated)
                if rank >= 0 and total > -np.inf and total + row[order.classes[rank]] + bonuses[history] >= least:
                    candidates[num_candidates, 0], candidates[num_candidates, 1] = i, _RANKED
                    candidates[num_candidates, 2] = rank
                    value = ranked_total + row[order.classes[rank]] + bonuses[history]
                    _push(heap, numbers, heap_size, value, num_candidates)
                    heap_size += 1
                    num_candidates += 1
            # ... or each by itself.
            num_words = 1
            if mode == SPELLED and place >= 0:
                num_words += trie.word_offsets[place + 1] - trie.word_offsets[place]
            if mode == WATCHED and place >= 0:
                for k in range(trie.offsets[place], trie.offsets[place + 1]):
                    child_of[trie.tokens[k]] = trie.children[k]
            for w in range(num_words):
                # The word that ends first, if one does.
                before = np.int64(_NOTHING)
                more = (np.int64(lm_states[history]), np.int64(hot_states[history]), lm_scores[history],
                        bonuses[history])  # fmt: skip
                if w > 0:
                    before = np.int64(trie.words[trie.word_offsets[place] + w - 1])
                    more = worth(rules, before, *more)
                if mode == SPELLED:
                    here = place if w == 0 else 0
                    open_here = here >= 0 and (w == 0 or separator < 0)
                    begin, end = (trie.offsets[here], trie.offsets[here + 1]) if open_here else (0, 0)
                elif by_rank:
                    begin, end = (repeated, repeated + 1) if repeated >= 0 else (0, 0)
                else:
                    begin, end = 0, num_classes
                # One more turn for the separator, where a word ends in it.
                ends = separator >= 0 and token != separator
                if mode == SPELLED:
                    ends = ends and (w > 0 or place == CLOSED)
                for k in range(begin, end + (1 if ends else 0)):
                    lead, extra = 0, more[3]
                    if k == end:
                        c = separator
                        if mode == WATCHED:
                            before = _word_at(trie, place)
                        if mode != SPELLED:
                            extra = worth(rules, before, *more)[3]
                    elif mode == SPELLED:
                        c, lead = np.int64(trie.tokens[k]), np.int64(trie.children[k])
                    else:
                        c, lead = k, np.int64(child_of[k]) if mode == WATCHED else 0
                        if c == blank or c == separator:
                            continue
                    if row[c] < token_min or row[c] == -np.inf:
                        continue
                    if k < end:
                        if mode == SPELLED and trie.only_words[lead] >= 0:
                            extra = worth(rules, np.int64(trie.only_words[lead]), *more)[3]
                        else:
                            extra += _promise(potentials, lead)
                    mass = _leaving(collapses, transitions, masses, totals, i, 0, token, c) + row[c] + extra
                    if extra == -np.inf or mass == -np.inf or mass < least:
                        continue
                    value = _leaving(collapses, transitions, masses, totals, i, 1, token, c) + row[c] + extra
                    candidates[num_candidates, 0], candidates[num_candidates, 1] = i, c
                    candidates[num_candidates, 2], candidates[num_candidates, 3] = lead, before
                    _push(heap, numbers, heap_size, value, num_candidates)
                    heap_size += 1
                    num_candidates += 1
            if mode == WATCHED and place >= 0:
                for k in range(trie.offsets[place], trie.offsets[place + 1]):
                    child_of[trie.tokens[k]] = OFF

        # The best that is not in the beam yet takes the slot.
        next_slots[level] = -1
        while heap_size > 0:
            number = numbers[0]
            _pop(heap, numbers, heap_size)
            heap_size -= 1
            i, c = np.int64(candidates[number, 0]), np.int64(candidates[number, 1])
            node = slots[i]
            found = node
            if c != _STAYS:
                token, place, history = tokens[node], places[node], histories[node]
                lead, before = np.int64(candidates[number, 2]), np.int64(candidates[number, 3])
                if c == _RANKED:
                    repeated = token if collapses and token >= 0 and token != separator else np.int32(_NOTHING)
                    c = order.classes[lead]
                    rank = _next_class(order, lead + 1, row, token_min, blank, separator, repeated)
                    if rank >= 0 and totals[i, 0] + row[order.classes[rank]] + bonuses[history] >= least:
                        candidates[number, 2] = rank
                        value_after = totals[i, 1] + row[order.classes[rank]] + bonuses[history]
                        _push(heap, numbers, heap_size, value_after, number)
                        heap_size += 1
                    lead, before = 0, np.int64(_NOTHING)
                # Two words at most end here: the one before the class, and the one that it spells out.
                spelled = np.int64(_NOTHING)
                if mode == SPELLED and c != separator:
                    spelled = np.int64(trie.only_words[lead])
                closes = before >= 0 or (mode != SPELLED and separator >= 0 and c == separator)
                for turn in range(2):
                    if (turn == 0 and not closes) or (turn == 1 and spelled < 0):
                        continue
                    word = before if turn == 0 else spelled
                    name = word if mode == SPELLED else np.int64(node)
                    spot = _find(word_table, word_parents, words, words, words, history, name, name, name)
                    if word_table[spot] < 0:
                        more = worth(
                            rules, word, np.int64(lm_states[history]), np.int64(hot_states[history]),
                            lm_scores[history], bonuses[history],
                        )  # fmt: skip
                        word_parents[num_histories], words[num_histories] = history, name
                        lm_states[num_histories], hot_states[num_histories] = more[0], more[1]
                        lm_scores[num_histories], bonuses[num_histories] = more[2], more[3]
                        word_table[spot] = num_histories
                        num_histories += 1
                    history = word_table[spot]
                if spelled >= 0:
                    lead = 0 if separator < 0 else CLOSED
                spot = _find(table, parents, tokens, histories, places, node, c, history, lead)
                if table[spot] < 0:
                    parents[num_nodes], tokens[num_nodes] = node, c
                    places[num_nodes], histories[num_nodes] = lead, history
                    table[spot] = num_nodes
                    num_nodes += 1
                found = table[spot]
            j = slot_of[found]
            if j >= 0:  # in the beam
                if taken[j]:
                    continue
                taken[j] = True
                next_masses[level, 0], next_masses[level, 1] = kept[j, 0], kept[j, 1]
                next_masses[level, 2], next_masses[level, 3] = ranked[j, 0], ranked[j, 1]
            else:
                token = tokens[node]
                next_masses[level, 0], next_masses[level, 2] = -np.inf, -np.inf
                next_masses[level, 1] = _leaving(collapses, transitions, masses, totals, i, 0, token, c) + row[c]
                next_masses[level, 3] = _leaving(collapses, transitions, masses, totals, i, 1, token, c) + row[c]
            next_slots[level] = found
            break
        level += 1

    for i in range(num_slots):
        if slots[i] >= 0:
            slot_of[slots[i]] = -1
    while level > 0 and next_slots[level - 1] < 0:
        level -= 1
    search.sizes[0], search.sizes[1] = num_nodes, num_histories
    return level


@part(forceinline=True, **COMPILE_EXACTLY)
def _word_at(trie, place):
    """The word that is spelled out at a place of a trie; -1 for none."""
    if place >= 0 and trie.word_offsets[place + 1] > trie.word_offsets[place]:
        return np.int64(trie.words[trie.word_offsets[place]])
    return np.int64(_NOTHING)


@exact_kernel
def closed(rules, search, histories, words):
    """Of some sequences of words, each with a word more (unknown -1, none -2), what ``worth`` has of them (K,)."""
    lm_states, hot_states = search.lm_states[histories], search.hot_states[histories]
    lm_scores, bonuses = search.lm_scores[histories], search.bonuses[histories]
    for k in range(histories.size):
        if words[k] > -2:
            after = worth(rules, words[k], np.int64(lm_states[k]), np.int64(hot_states[k]), lm_scores[k], bonuses[k])
            lm_states[k], hot_states[k], lm_scores[k], bonuses[k] = after
    return lm_states, hot_states, lm_scores, bonuses


@exact_kernel
def trace(parents, tokens, ends):
    """The tokens (K, L) from a tree's root to each end, padded with -1, and their numbers (K,)."""
    lengths = np.zeros(ends.size, np.int64)
    for k in range(ends.size):
        node = ends[k]
        while parents[node] >= 0:
            lengths[k] += 1
            node = parents[node]
    longest = 0
    for k in range(ends.size):
        longest = max(longest, lengths[k])
    rows = np.full((ends.size, longest), np.int64(-1))
    for k in range(ends.size):
        node = ends[k]
        for position in range(lengths[k] - 1, -1, -1):
            rows[k, position] = tokens[node]
            node = parents[node]
    return rows, lengths
