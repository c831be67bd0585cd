"""Which fact goes into which leaf slot of a window: the greedy allocation of the leafy chain graph.

Done for many windows at once, when a dataset is opened; training only slices its results. What the allocation is, without
the arrays, stands in `tests/naive_layout.py`.
"""

from typing import NamedTuple

import numpy as np

from ..code_graph.schema import RELATION_NAMES

# One head has many tails under these relations, so a name would fill up at its definition: where both ends stand in the
# window the fact hangs on the tail's place and carries the owner's name.
_MANY_TAILS = {"calls", "declares", "instantiates", "contains", "has_field", "has_parameter", "flows_to"}
PREFERS_REVERSED = np.array([name in _MANY_TAILS for name in RELATION_NAMES])

# Leaf tokens that the order of facts looks at in arrays; the few facts that are equal up to there are compared whole.
_COMPARED_TOKENS = 4


class Candidates(NamedTuple):
    """The anchors that lie in some windows, an element of each array for each anchor.

    Attributes:
        window: number of its window, from 0; below 2 ** 24.
        fact: id of the fact (head text, relation, tail text); in a window one anchor at most is chosen for each fact.
        start, length: the span it hangs on, in root indices; below 2 ** 24.
        relation: relation id.
        reversed: whether the leaf carries the owner's name.
        visible: whether the leaf's text also stands among the window's roots.
        extra: the fact has its place in another window of the file (see `is_extra`); it takes only room that is left.
        leaf_begin, leaf_length: its leaf's tokens, in the array given with it.
    """

    window: np.ndarray
    fact: np.ndarray
    start: np.ndarray
    length: np.ndarray
    relation: np.ndarray
    reversed: np.ndarray
    visible: np.ndarray
    extra: np.ndarray
    leaf_begin: np.ndarray
    leaf_length: np.ndarray


class Placements(NamedTuple):
    """Candidates that got leaf slots `slot .. slot + num_tokens - 1` of a root, ordered by window, root and slot.

    Attributes:
        candidate, root, slot, num_tokens: int64 arrays, an element for each placed fact.
        num_dropped, num_extras_dropped: facts dropped for room: their own number and that of extras.
    """

    candidate: np.ndarray
    root: np.ndarray
    slot: np.ndarray
    num_tokens: np.ndarray
    num_dropped: int
    num_extras_dropped: int


def is_extra(relation: np.ndarray, is_reversed: np.ndarray, has_site: np.ndarray, site_in_window: np.ndarray):
    """Whether anchors at the head repeat what another window of the file shows at the tail's own place.

    A class holds any number of methods, a function makes any number of calls: hung on the name, they would crowd out
    facts that have no other place.
    """
    return PREFERS_REVERSED[relation] & ~is_reversed & has_site & ~site_in_window


def place(candidates: Candidates, leaf_tokens: np.ndarray, leaves_per_root: int) -> Placements:
    """Choose one anchor for each fact and give it leaf slots.

    Facts whose leaf the window does not show come first, then the rest, each in the order of the text. Leaves longer than
    a root's slots would fill a root alone and be cut all the same: a fact takes an anchor with a leaf that fits, if it has
    one, and facts without come after the others. A fact takes the first root of its span with room for the whole leaf,
    else of its other anchors; failing that, the first root with any room, and is cut; failing that, it is dropped. Extras
    come last and are dropped rather than cut. Last, the leaves of each root are shuffled by the number of their fact.

    Args:
        candidates: the anchors of any number of windows, in any order.
        leaf_tokens: int array; their leaves' tokens.
        leaves_per_root: L.

    Returns:
        The placed facts and the numbers of those dropped.
    """
    none = np.zeros(0, dtype=np.int64)
    if len(candidates.window) == 0 or leaves_per_root == 0:
        return Placements(none, none, none, none, 0, 0)
    c = Candidates(*(np.asarray(column).astype(np.int64) for column in candidates))
    is_long = (c.leaf_length > leaves_per_root).astype(np.int64)
    against = (c.reversed != PREFERS_REVERSED[c.relation]).astype(np.int64)

    # Anchors of one fact stand together, the preferred one first.
    own = _packed((c.window, 24), (c.fact, 39))
    preference = _packed((c.extra, 1), (is_long, 1), (c.visible, 1), (against, 1), (c.start, 24))
    order = np.lexsort((preference, own))
    group_begin = np.flatnonzero(np.diff(own[order], prepend=own[order[0]] - 1))
    first = order[group_begin]
    earliest = np.minimum.reduceat(order, group_begin)

    keys = [earliest]
    tokens = [_leaf_token(c, leaf_tokens, first, position) for position in range(_COMPARED_TOKENS)]
    keys += [_packed((tokens[i], 31), (tokens[i + 1], 31)) for i in range(_COMPARED_TOKENS - 2, -1, -2)]
    place_in_text = ((c.extra, 1), (is_long, 1), (c.visible, 1), (c.start, 24), (c.relation, 8))
    keys += [_packed((c.window[first], 24), *((column[first], bits) for column, bits in place_in_text))]
    turns = np.lexsort(keys)
    _order_long_leaves(turns, keys[1:], c, first, earliest, leaf_tokens)
    found, dropped, extras_dropped = _allocate(c, order, group_begin, turns, leaves_per_root)
    return Placements(*_shuffled(c, found), dropped, extras_dropped)


def _packed(*fields: tuple[np.ndarray, int]) -> np.ndarray:
    """One number of several, the first weighing most; each with the bits it may take."""
    result = np.zeros(len(fields[0][0]), dtype=np.int64)
    for values, bits in fields:
        result = (result << bits) | values
    return result


def _leaf_token(c: Candidates, leaf_tokens: np.ndarray, which: np.ndarray, position: int) -> np.ndarray:
    """One more than the leaves' tokens at a position; 0 past their end."""
    inside = c.leaf_length[which] > position
    result = np.zeros(len(which), dtype=np.int64)
    result[inside] = leaf_tokens[c.leaf_begin[which[inside]] + position] + 1
    return result


def _order_long_leaves(turns, keys: list[np.ndarray], c: Candidates, first, earliest, leaf_tokens) -> None:
    """Puts groups that are equal in all keys, as far as these look, into the order of their whole leaves."""
    same = np.ones(len(turns), dtype=bool)
    same[0] = False
    for key in keys:
        same[1:] &= key[turns[1:]] == key[turns[:-1]]
    same &= c.leaf_length[first[turns]] >= _COMPARED_TOKENS
    run_ends = np.flatnonzero(same[:-1] & ~same[1:]).tolist() + ([len(same) - 1] if same[-1] else [])
    run_begins = np.flatnonzero(same & ~np.append(False, same[:-1])).tolist()
    for begin, end in zip(run_begins, run_ends, strict=True):
        run = turns[begin - 1 : end + 1].tolist()
        leaves = {
            group: leaf_tokens[c.leaf_begin[first[group]] :][: c.leaf_length[first[group]]].tolist() for group in run
        }
        turns[begin - 1 : end + 1] = sorted(run, key=lambda group: (leaves[group], earliest[group]))


def _allocate(c: Candidates, order, group_begin, turns, leaves_per_root: int) -> tuple[np.ndarray, int, int]:
    """The allocation itself: each group in turn takes the first room that it finds."""
    starts, lengths, sizes = c.start[order].tolist(), c.length[order].tolist(), c.leaf_length[order].tolist()
    begins = group_begin[turns]
    ends = np.append(group_begin[1:], len(order))[turns].tolist()
    windows, extras = c.window[order[begins]].tolist(), c.extra[order[begins]].tolist()
    found: list[tuple[int, int, int, int]] = []
    num_dropped = num_extras_dropped = 0
    current, used = -1, {}
    for begin, end, window, extra in zip(begins.tolist(), ends, windows, extras, strict=True):
        if window != current:
            current, used = window, {}
        for whole in (True,) if extra else (True, False):
            room = _find_room(range(begin, end), starts, lengths, sizes, used, leaves_per_root, whole)
            if room is not None:
                found.append(room)
                used[room[1]] = room[2] + room[3]
                break
        else:
            num_extras_dropped += extra
            num_dropped += not extra
    placed = np.array(found, dtype=np.int64).reshape(-1, 4)
    placed[:, 0] = order[placed[:, 0]]
    return placed, num_dropped, num_extras_dropped


def _shuffled(c: Candidates, placed: np.ndarray) -> np.ndarray:
    """The columns of `Placements`: the same leaves on the same roots, in slots whose order tells nothing.

    Leaves are placed in an order that goes by relation, visibility and place in the text. Left so, a leaf between two
    others would tell its relation where MNM hides it; ordered by their words, they would tell a hidden word.
    """
    candidate, root, num_tokens = placed[:, 0], placed[:, 1], placed[:, 3]
    order = np.lexsort((_scrambled(c.fact[candidate]), root, c.window[candidate]))
    candidate, root, num_tokens = candidate[order], root[order], num_tokens[order]
    window = c.window[candidate]
    before = np.cumsum(num_tokens) - num_tokens
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (root[1:] != root[:-1]) | (window[1:] != window[:-1])
    slot = before - np.maximum.accumulate(np.where(is_first, before, 0))
    return np.stack([candidate, root, slot, num_tokens])


def _scrambled(numbers: np.ndarray) -> np.ndarray:
    """Numbers of 64 bits, each a function of one of `numbers` that keeps nothing of its order (splitmix64's finaliser)."""
    value = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _find_room(anchors: range, starts, lengths, sizes, used: dict[int, int], leaves_per_root: int, whole: bool):
    for anchor in anchors:
        wanted = sizes[anchor]
        for root in range(starts[anchor], starts[anchor] + lengths[anchor]):
            taken = used.get(root, 0)
            room = leaves_per_root - taken
            if room >= wanted or (not whole and room > 0):
                return anchor, root, taken, min(wanted, room)
    return None


def find_visible(
    leaf_begin: np.ndarray,
    leaf_length: np.ndarray,
    leaf_tokens: np.ndarray,
    window: np.ndarray,
    tokens: np.ndarray,
    window_begin: np.ndarray,
    window_end: np.ndarray,
) -> np.ndarray:
    """Whether leaves stand, token after token, in their windows.

    Args:
        leaf_begin, leaf_length: int arrays `(leaves,)`: each leaf's place in `leaf_tokens`.
        leaf_tokens: int array, canonical ids.
        window: int array `(leaves,)`, the window of each.
        tokens: int array, canonical ids of the text.
        window_begin, window_end: int arrays `(windows,)`: each window's tokens; windows do not overlap and are in order.

    Returns:
        bool array `(leaves,)`; False for a leaf without tokens.
    """
    visible = np.zeros(len(leaf_begin), dtype=bool)
    size = window_end - window_begin
    if not len(leaf_begin) or not size.sum():
        return visible
    # Where each token stands in each window, found by its number.
    of_window = np.repeat(np.arange(len(size)), size)
    position = np.arange(len(of_window)) + np.repeat(window_begin - np.cumsum(size) + size, size)
    key = _packed((of_window, 31), (tokens[position], 32))
    order = np.argsort(key, kind="stable")
    key, position = key[order], position[order]

    some = np.flatnonzero(leaf_length > 0)
    wanted = _packed((window[some], 31), (leaf_tokens[leaf_begin[some]], 32))
    low, high = np.searchsorted(key, wanted, "left"), np.searchsorted(key, wanted, "right")
    # Every place where a leaf's first token stands goes on as long as the next tokens agree.
    leaf = np.repeat(some, high - low)
    within = np.arange(len(leaf)) - np.repeat(np.cumsum(high - low) - (high - low), high - low)
    at = position[np.repeat(low, high - low) + within]
    fits = at + leaf_length[leaf] <= window_end[window[leaf]]
    leaf, at = leaf[fits], at[fits]
    depth = 1
    while len(leaf):
        done = leaf_length[leaf] == depth
        visible[leaf[done]] = True
        leaf, at = leaf[~done], at[~done]
        agrees = tokens[at + depth] == leaf_tokens[leaf_begin[leaf] + depth]
        leaf, at = leaf[agrees], at[agrees]
        depth += 1
    return visible
