"""What an extractor gives back: triples with character spans, cut points, and counts of what was left out."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Triple(NamedTuple):
    """One fact: "head relation tail", with the places in the text that it hangs on.

    Offsets are indices into the Python string that was read. `source[head_start:head_end]` is the head's text. The
    tail's span is None where the tail is not written in the text; where it is, the text may differ from `tail`, which
    is resolved as far as the file allows (the span reads `dumps`, the tail `json.dumps`).

    Attributes:
        head: the head's text.
        head_start: first character of the head.
        head_end: one past the last character of the head.
        relation: name of the relation, one of `RELATION_NAMES`.
        tail: the tail's text, resolved.
        tail_start: first character of the tail in the text, or None.
        tail_end: one past the last character of the tail, or None.
        is_use: the fact hangs on a use of a name, not on its definition.
    """

    head: str
    head_start: int
    head_end: int
    relation: str
    tail: str
    tail_start: int | None
    tail_end: int | None
    is_use: bool = False


@dataclass
class CodeGraph:
    """The graph of one file.

    Attributes:
        triples: the facts, without duplicates, ordered by where they stand in the text.
        boundaries: (character offset, depth) of each statement and definition, sorted, one for each offset. Depth 0
            is a top-level statement or definition, 1 a definition inside another statement, 2 a statement directly in
            a body, 3 a statement deeper than that. A decorated definition starts at its first decorator.
        num_errors: syntax errors that the parser saw.
        num_skipped: number of facts that were not made, by reason.
    """

    triples: list[Triple] = field(default_factory=list)
    boundaries: list[tuple[int, int]] = field(default_factory=list)
    num_errors: int = 0
    num_skipped: dict[str, int] = field(default_factory=dict)
