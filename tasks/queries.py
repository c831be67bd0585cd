"""Windows with a question in them: masked words in a leaf, or masked tokens in the text."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..code_graph.annotations import HiddenType
from ..code_graph.project_usage import ProjectUsage
from ..code_graph.usage import Usage

Answer = tuple[tuple[int, int], Sequence[int]]
"""Root and slot of a question's first mask, and the tokens that belong at its masks."""

_FACT_ARRAYS = (
    "head_start",
    "head_length",
    "relation",
    "reversed",
    "visible",
    "leaf_root",
    "leaf_slot",
    "leaf_length",
)


@dataclass(frozen=True)
class Query:
    """A hidden type and where it is asked for.

    Attributes:
        window: index of the window that holds the name.
        file: number of the file.
        project: that it belongs to.
        hidden: the type.
        head: first root and number of roots of the name.
        place: root before which the annotation stood.
        prefix: tokens between the place and the type.
        relation: id of the relation that is asked for.
        classes: names of classes in the file.
        project_classes: names of classes that any file of the project defines.
        project_uses: which classes the project's code makes or checks under a name (`type_queries.uses_of_names`).
        usage: what the code does with it; None if that was not read.
        project_usage: what all files of the project say together; likewise.
    """

    window: int
    file: int
    project: str
    hidden: HiddenType
    head: tuple[int, int]
    place: int
    prefix: list[int]
    relation: int
    classes: list[str]
    project_classes: Sequence[str] = ()
    project_uses: Mapping[str, Counter] = field(default_factory=dict)
    usage: Usage | None = None
    project_usage: ProjectUsage | None = None


def ask_in_leaf(item: dict, query: Query, words: list[int], config) -> tuple[dict, tuple[int, int]]:
    """Hang a leaf with the relation that is asked for on the name.

    It goes to the root of the name with the most room; where that is too little, the root's last leaves make room.

    Args:
        item: of a `WindowDataset`.
        query: what is asked.
        words: the leaf's tokens (masks).
        config: of the model.

    Returns:
        The item with the leaf, and (root, slot) of its first token.
    """
    start, length = query.head
    used = np.zeros(len(item["input_ids"]), dtype=np.int64)
    np.add.at(used, item["leaf_root"], item["leaf_length"])
    root = start + int(np.argmin(used[start : start + length]))
    room = config.leaves_per_root - len(words)
    end_of_leaf = item["leaf_slot"] + item["leaf_length"]
    item = keep_facts(item, (item["leaf_root"] != root) | (end_of_leaf <= room))
    on_root = item["leaf_root"] == root
    slot = int((item["leaf_slot"] + item["leaf_length"])[on_root].max(initial=0))
    # Facts are ordered by root and slot.
    position = int(np.searchsorted(item["leaf_root"], root, side="right"))
    values = (start, length, query.relation, 0, 0, root, slot, len(words))
    arrays = {name: np.insert(item[name], position, value) for name, value in zip(_FACT_ARRAYS, values, strict=True)}
    before = int(item["leaf_length"][:position].sum())
    return {**item, **arrays, "leaf_ids": np.insert(item["leaf_ids"], before, words)}, (root, slot)


def ask_in_text(item: dict, query: Query, words: list[int], config) -> tuple[dict, tuple[int, int]]:
    """Put an annotation into the text where it stood.

    Where the window is full, tokens at its end give way, or at its beginning if the place is in its second half.

    Args:
        item: of a `WindowDataset`.
        query: what is asked.
        words: the annotation's tokens (masks).
        config: of the model.

    Returns:
        The item with the annotation, and (root, -1) of its first mask.
    """
    new, place = [*query.prefix, *words], query.place
    size = len(item["input_ids"])

    def shift(item: dict, first: int, by: int) -> dict:
        moved = {
            name: np.where(item[name] >= first, item[name] + by, item[name]) for name in ("head_start", "leaf_root")
        }
        return {**item, **moved, **moved_edges(item, first, by)}

    item = shift(item, place, len(new))
    item["input_ids"] = np.insert(item["input_ids"], place, new)
    item["word_starts"] = np.insert(item["word_starts"], place, [1] * len(new))
    excess = size + len(new) - config.num_roots
    if excess > 0:
        total = len(item["input_ids"])
        from_begin = place > size // 2
        gone = slice(1, 1 + excess) if from_begin else slice(total - 1 - excess, total - 1)
        last = np.maximum(item["head_start"] + item["head_length"] - 1, item["leaf_root"])
        first = np.minimum(item["head_start"], item["leaf_root"])
        item = keep_facts(item, first >= gone.stop if from_begin else last < gone.start)
        if "edges" in item:
            begins, ends = item["edges"][:, ::2], item["edges"][:, ::2] + item["edges"][:, 1::2]
            kept = (begins >= gone.stop).all(1) if from_begin else (ends <= gone.start).all(1)
            item["edges"] = item["edges"][kept]
        for name in ("input_ids", "word_starts"):
            item[name] = np.delete(item[name], gone)
        if from_begin:
            item, place = shift(item, 1, -excess), place - excess
    return item, (place + len(query.prefix), -1)


def labels_at(batch: dict[str, torch.Tensor], asked: Sequence[Sequence[Answer]]) -> torch.Tensor:
    """Labels at the masks of questions.

    Args:
        batch: of a collator, compact.
        asked: for each row its questions: where the first mask is, (root, slot), and the tokens that belong there; slot
            -1: the masks are roots from `root` on.

    Returns:
        int64 (B, N), the tokens at their masks, -100 elsewhere.
    """
    labels = torch.full_like(batch["input_ids"], -100)
    for row, answers in enumerate(asked):
        for (root, slot), tokens in answers:
            if slot < 0:
                columns = torch.arange(root, root + len(tokens))
            else:
                index = batch["leaf_index"][row]
                at_root = (batch["root_index"][row] == root) & (batch["attention_mask"][row] > 0)
                # Columns are in the order of root and slot.
                columns = (at_root & (index >= slot) & (index < slot + len(tokens))).nonzero()[:, 0]
            labels[row, columns] = torch.as_tensor(tokens, dtype=labels.dtype)
    return labels


def keep_facts(item: dict, kept: np.ndarray) -> dict:
    """A window's item with some of its facts."""
    tokens = np.repeat(kept, item["leaf_length"])
    return {**item, **{name: item[name][kept] for name in _FACT_ARRAYS}, "leaf_ids": item["leaf_ids"][tokens]}


def moved_edges(item: dict, first: int, by: int) -> dict:
    """The edges between roots of an item, ends from root `first` on moved with the text; nothing where it has none."""
    if "edges" not in item:
        return {}
    edges = item["edges"].copy()
    edges[:, ::2] += by * (edges[:, ::2] >= first)
    return {"edges": edges}


def without_facts(example: dict) -> dict:
    """A window's item without its graph: no leaves, and no edges between roots."""
    example = keep_facts(example, np.zeros(len(example["relation"]), dtype=bool))
    return {**example, "edges": example["edges"][:0]} if "edges" in example else example
