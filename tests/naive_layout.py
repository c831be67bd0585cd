"""The allocation of leaf slots in plain Python, one window at a time: what `chain_graphs/layout.py` does in arrays."""

from typing import NamedTuple

from graphmert.chain_graphs.layout import PREFERS_REVERSED


class Candidate(NamedTuple):
    """An anchor that lies in a window.

    Attributes:
        fact: id of the fact (head text, relation, tail text); one anchor at most is chosen for each fact.
        start, length: the span it hangs on, in root indices.
        relation: relation id.
        reversed: 1 if the leaf carries the owner's name.
        visible: whether the leaf's text also stands among the window's roots.
        extra: the fact has its place in another window of the file (see `is_extra`); it takes only room that is left.
        leaf: the leaf's token ids.
    """

    fact: int
    start: int
    length: int
    relation: int
    reversed: int
    visible: bool
    extra: bool
    leaf: list[int]


class Placed(NamedTuple):
    """A candidate that got leaf slots: `slot .. slot + num_tokens - 1` of root `root`."""

    candidate: Candidate
    root: int
    slot: int
    num_tokens: int


def place(candidates: list[Candidate], leaves_per_root: int) -> tuple[list[Placed], int, int]:
    """Choose one anchor for each fact and give it leaf slots.

    Facts whose leaf the window does not show come first, then the rest, each in the order of the text. Leaves longer than
    a root's slots would fill a root alone and be cut all the same: a fact takes an anchor with a leaf that fits, if it has
    one, and facts without come after the others. A fact takes the first root of its span with room for the whole leaf,
    else of its other anchors; failing that, the first root with any room, and is cut; failing that, it is dropped. Extras
    come last and are dropped rather than cut. Last, the leaves of each root are shuffled by the number of their fact.

    Args:
        candidates: the window's anchors in any order.
        leaves_per_root: L.

    Returns:
        The placed facts, ordered by root and slot, and the facts dropped for room: their own number and that of extras.
    """
    by_fact: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        by_fact.setdefault(candidate.fact, []).append(candidate)

    def is_long(candidate: Candidate) -> bool:
        return len(candidate.leaf) > leaves_per_root

    def preference(candidate: Candidate) -> tuple:
        against = bool(candidate.reversed) != PREFERS_REVERSED[candidate.relation]
        return candidate.extra, is_long(candidate), candidate.visible, against, candidate.start

    def order(group: list[Candidate]) -> tuple:
        first = group[0]
        return first.extra, is_long(first), first.visible, first.start, first.relation, first.leaf

    groups = sorted((sorted(group, key=preference) for group in by_fact.values()), key=order)

    used: dict[int, int] = {}
    placed: list[Placed] = []
    num_dropped = num_extras_dropped = 0
    for group in groups:
        found = _find_room(group, used, leaves_per_root, whole=True)
        if found is None and not group[0].extra:
            found = _find_room(group, used, leaves_per_root, whole=False)
        if found is None:
            num_extras_dropped += group[0].extra
            num_dropped += not group[0].extra
            continue
        placed.append(found)
        used[found.root] = found.slot + found.num_tokens
    return _shuffled(placed), num_dropped, num_extras_dropped


def _shuffled(placed: list[Placed]) -> list[Placed]:
    """The same leaves on the same roots, in slots whose order tells nothing.

    Leaves are placed in an order that goes by relation, visibility and place in the text. Left so, a leaf between two
    others would tell its relation where MNM hides it; ordered by their words, they would tell a hidden word.
    """
    result: list[Placed] = []
    for item in sorted(placed, key=lambda item: (item.root, _scrambled(item.candidate.fact))):
        last = result[-1] if result and result[-1].root == item.root else None
        result.append(item._replace(slot=last.slot + last.num_tokens if last else 0))
    return result


def _scrambled(number: int) -> int:
    """A number of 64 bits that depends on `number` alone and keeps nothing of its order (the finaliser of splitmix64)."""
    value = (number + 1) * 0x9E3779B97F4A7C15 % 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


def _find_room(group: list[Candidate], used: dict[int, int], leaves_per_root: int, whole: bool) -> Placed | None:
    for candidate in group:
        wanted = len(candidate.leaf)
        for root in range(candidate.start, candidate.start + candidate.length):
            room = leaves_per_root - used.get(root, 0)
            if room >= wanted or (not whole and room > 0):
                return Placed(candidate, root, used.get(root, 0), min(wanted, room))
    return None


def stands_in(leaf: list[int], roots: list[int]) -> bool:
    """Whether the leaf's tokens stand one after the other among the roots."""
    return bool(leaf) and any(roots[i : i + len(leaf)] == leaf for i in range(len(roots)))
