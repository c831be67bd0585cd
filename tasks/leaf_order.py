"""Does the order of a root's leaves tell a hidden relation? Two lookups on the same masks answer it.

Both are told the tokens around the head, the tail and the other relations of the root; one as a set, the other in their
order. What the order adds is a leak: nothing about a fact should lie in where its leaf stands among its neighbours.
"""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pandas as pd

from .base import TaskContext

_COLUMNS = ("reversed", "before", "after", "tail", "others", "order", "relation", "visible")
_TEXT = ("reversed", "before", "after")
_LAST = (_TEXT, ("reversed",), ())
NEIGHBOURS = {
    "the set of the root's other relations": (
        (*_TEXT, "tail", "others"),
        (*_TEXT, "tail"),
        (*_TEXT, "others"),
        *_LAST,
    ),
    "the root's other relations in order": (
        (*_TEXT, "tail", "order"),
        (*_TEXT, "tail", "others"),
        (*_TEXT, "tail"),
        (*_TEXT, "order"),
        (*_TEXT, "others"),
        *_LAST,
    ),
}
"""Each lookup's keys, from the most specific to the one it falls back to last."""


def neighbour_table(context: TaskContext, windows) -> pd.DataFrame:
    """All facts of some windows, as the two lookups count them.

    Args:
        context: for its progress bar.
        windows: a `WindowDataset`.
    """
    facts = []
    for item in context.progress(windows, "counting neighbours", total=len(windows)):
        first = np.cumsum(item["leaf_length"]) - item["leaf_length"]
        columns = [
            item["leaf_root"],
            item["relation"],
            item["relation"],
            item["reversed"],
            item["head_start"],
            item["head_length"],
            item["leaf_ids"][first] if len(first) else first,
            item["visible"],
        ]
        facts += _facts(item["input_ids"], np.stack(columns, axis=1))
    return pd.DataFrame(facts, columns=_COLUMNS)


def asked_neighbours(context: TaskContext, windows, collator) -> pd.DataFrame:
    """The relations that `collator` hides, in the order of windows and columns, with the same columns.

    Args:
        context: for its progress bar and the size of its batches.
        windows: a `WindowDataset`.
        collator: hides the relations.
    """
    asked, size = [], context.arguments.batch_size
    for start in context.progress(range(0, len(windows), size), "asking neighbours"):
        examples = [windows[i] for i in range(start, min(start + size, len(windows)))]
        batch = {name: value.numpy() for name, value in collator(examples).items()}
        for row in range(len(examples)):
            at = (batch["leaf_index"][row] >= 0) & (batch["attention_mask"][row] > 0) & (batch["fact_place"][row] == 0)
            names = ("root_index", "relation_ids", "relation_labels", "relation_reversed", "head_start", "head_length")
            columns = [batch[name][row, at] for name in (*names, "input_ids", "leaf_in_window")]
            asked += [
                fact
                for fact in _facts(batch["input_ids"][row], np.stack(columns, axis=1))
                if fact[_COLUMNS.index("relation")] >= 0
            ]
    return pd.DataFrame(asked, columns=_COLUMNS)


def _facts(ids: np.ndarray, facts: np.ndarray) -> Iterator[tuple]:
    """`_COLUMNS` of the facts of a window.

    Args:
        ids: of the window; roots first.
        facts: (facts, 8) in the order of root and slot: root, relation that is shown, relation that is asked for,
            direction, head's start and length, first token of the leaf, whether the leaf stands in the window.
    """
    rows, ids = facts.tolist(), ids.tolist()
    on_root = defaultdict(list)
    for number, row in enumerate(rows):
        on_root[row[0]].append(number)
    for members in on_root.values():
        shown = [rows[number][1] for number in members]
        for place, number in enumerate(members):
            _, _, relation, is_reversed, start, length, tail, visible = rows[number]
            before, after = shown[:place], shown[place + 1 :]
            others, order = str(sorted(before + after)), f"{before}{after}"
            yield is_reversed, ids[start - 1], ids[start + length], tail, others, order, relation, visible
