"""Data flow inside one scope: reaching definitions over a control-flow graph.

A language's reader builds a `FlowGraph` while it walks a body: basic blocks, the edges between them, and in each
block the reads and definitions in the order in which they happen. `FlowGraph.flows` then says which definitions reach
which reads, and so which values are computed from which. Nothing here knows a language.
"""

from collections.abc import Callable, Hashable
from typing import NamedTuple

# Bounds that only machine-made or hostile files meet; what they cut off is counted.
MAX_STATE_BITS = 500_000_000  # definitions x blocks of one scope
MAX_REACHING = 64  # definitions followed for one read
MAX_CLONED_BLOCKS = 2_000  # size of a clean-up body that is copied for its exceptional path


class Read(NamedTuple):
    """A name read inside an expression whose value is bound to something."""

    name: str
    start: int
    end: int
    scope: object


class Definition(NamedTuple):
    """A variable that gets a value computed from the reads numbered first_read to end_read - 1.

    `start` is -1 where the name stops being a variable (deleted, or bound to a function, class or module).
    """

    name: str
    start: int
    end: int
    scope: object
    first_read: int
    end_read: int


class FlowGraph:
    """Control flow of one scope, built in the order of the text.

    Attributes:
        reads: the reads, by number.
        definitions: the definitions, by number.
        events: for each block, what happens in it, in order: read r as r, definition d as ~d.
        predecessors: for each block, the blocks it follows.
        handler_of: for each block, the block that control goes to when something in it raises; -1 for none.
        current: the block that is being filled.
        handler: the handler for new blocks.
        field_targets: (object name, definition) of each value bound to an attribute; a target, never a source.
        num_cut: reads whose flows were left out because of a bound.
    """

    def __init__(self):
        self.reads: list[Read] = []
        self.definitions: list[Definition] = []
        self.events: list[list[int]] = [[]]
        self.predecessors: list[list[int]] = [[]]
        self.handler_of: list[int] = [-1]
        self.current = 0
        self.handler = -1
        self.field_targets: list[tuple[str, Definition]] = []
        self.num_cut = 0

    def define(self, definition: Definition) -> None:
        """Adds a definition at the end of the current block."""
        self.events[self.current].append(~len(self.definitions))
        self.definitions.append(definition)

    def block(self, *predecessors: int) -> int:
        """Starts a new current block after the given ones and returns its number."""
        self.events.append([])
        self.predecessors.append(list(predecessors))
        self.handler_of.append(self.handler)
        self.current = len(self.events) - 1
        return self.current

    def edge(self, source: int, target: int) -> None:
        """Lets control go from the end of block `source` to the start of block `target`."""
        self.predecessors[target].append(source)

    def clone(self, first: int, end: int, entry: int) -> int | None:
        """Copies blocks first to end - 1 as a second path that is entered from block `entry` only.

        Block `first` must not be the head of a loop.

        Returns:
            The offset between a block and its copy, or None (and nothing copied) where the range is too large.
        """
        if end - first > MAX_CLONED_BLOCKS:
            return None
        offset = len(self.events) - first
        for block in range(first, end):
            inner = [p + offset if first <= p < end else p for p in self.predecessors[block]]
            handler = self.handler_of[block]
            self.events.append(self.events[block])
            self.predecessors.append([entry] if block == first else inner)
            self.handler_of.append(handler + offset if first <= handler < end else handler)
        return offset

    def reaching(self, key_of: Callable[[str, object], Hashable]) -> list[tuple[Definition, ...]]:
        """For each read, the definitions that may have given the value read.

        Args:
            key_of: function of (name, scope) -> identity of the variable, or None where it is no variable of this
                scope.

        Returns:
            One tuple of definitions for each read, empty where none reaches it.
        """
        read_keys = [key_of(read.name, read.scope) for read in self.reads]
        keys = [key_of(definition.name, definition.scope) for definition in self.definitions]
        if len(self.events) == 1:
            return self._reaching_straight(read_keys, keys)
        if len(keys) * len(self.events) > MAX_STATE_BITS:
            self.num_cut += len(self.reads)
            return [()] * len(self.reads)
        gives = [1 << d if self.definitions[d].start >= 0 else 0 for d in range(len(keys))]
        mask_of: dict[Hashable, int] = {}
        for key, bit in zip(keys, gives, strict=True):
            mask_of[key] = mask_of.get(key, 0) | bit
        keeps = [~mask_of[key] for key in keys]
        mask_of.pop(None, None)
        entering = self._solve(gives, keeps)

        reached = [0] * len(read_keys)
        for state, events in zip(entering, self.events, strict=True):
            for event in events:
                if event >= 0:
                    reached[event] |= state & mask_of.get(read_keys[event], 0)
                else:
                    state = state & keeps[~event] | gives[~event]
        decoded = {mask: tuple(self._decode(mask)) for mask in set(reached)}
        return [decoded[mask] for mask in reached]

    def _reaching_straight(self, read_keys: list[Hashable], keys: list[Hashable]) -> list[tuple[Definition, ...]]:
        """`reaching` for a scope without branches, where the last definition is the one."""
        state: dict[Hashable, tuple[Definition, ...]] = {}
        result: list[tuple[Definition, ...]] = [()] * len(read_keys)
        for event in self.events[0]:
            if event >= 0:
                result[event] = state.get(read_keys[event], ())
                continue
            definition, key = self.definitions[~event], keys[~event]
            if key is None:
                continue
            if definition.start < 0:
                state.pop(key, None)
            else:
                state[key] = (definition,)
        return result

    def _solve(self, gives: list[int], keeps: list[int]) -> list[int]:
        """Sets of definitions (as bit masks) that may hold where each block begins: the usual fixed point."""
        num_blocks = len(self.events)
        kept, made, seen = [-1] * num_blocks, [0] * num_blocks, [0] * num_blocks
        raising: dict[int, list[int]] = {}
        for block, events in enumerate(self.events):
            for event in events:
                if event < 0:
                    kept[block] &= keeps[~event]
                    made[block] = made[block] & keeps[~event] | gives[~event]
                    seen[block] |= gives[~event]
            if self.handler_of[block] >= 0:
                raising.setdefault(self.handler_of[block], []).append(block)
        entering, leaving = [0] * num_blocks, made[:]
        changed = True
        while changed:
            changed = False
            for block in range(num_blocks):
                state = 0
                for previous in self.predecessors[block]:
                    state |= leaving[previous]
                # Anything in a guarded block may raise: before its first definition or after any of them.
                for previous in raising.get(block, ()):
                    state |= entering[previous] | seen[previous]
                if state != entering[block]:
                    entering[block] = state
                    leaving[block] = state & kept[block] | made[block]
                    changed = True
        return entering

    def _decode(self, mask: int) -> list[Definition]:
        found = []
        while mask:
            if len(found) == MAX_REACHING:
                self.num_cut += 1
                break
            low = mask & -mask
            found.append(self.definitions[low.bit_length() - 1])
            mask ^= low
        return found
