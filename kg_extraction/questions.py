"""A question is a leaf: a window of code with its known facts, and one leaf more whose relation or tail is masked.

Shape legend as in the collator: B batch, N nodes, R roots, L leaf slots, K tokens of the question's leaf.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from .project import Corpus

IGNORED = -100


@dataclass(frozen=True)
class Question:
    """One leaf to answer.

    Attributes:
        window: number of the window in its corpus.
        head_start, head_length: the span that the leaf hangs on, in root indices.
        relation: relation id, or `num_relations` where the relation is asked.
        leaf: token ids; mask tokens where the tail is asked.
        is_reversed: 1 where the leaf carries the owner's name.
        hidden: facts (numbers in `CodeFile.facts`) whose leaves are taken out of the window first.
    """

    window: int
    head_start: int
    head_length: int
    relation: int
    leaf: tuple[int, ...]
    is_reversed: int = 0
    hidden: frozenset[int] = field(default_factory=frozenset)


class QuestionCollator:
    """Lays questions out as the compact batches that the model takes.

    The leaf takes the first root of its head span with room. Where none has, the last leaves of the span's first root
    make room and are left out of this question.

    Args:
        corpus: the windows.
        pad_token_id: of the tokenizer.
    """

    def __init__(self, corpus: Corpus, pad_token_id: int):
        self.corpus, self.pad_token_id = corpus, pad_token_id
        self._leaves: dict[int, np.ndarray] = {}

    def num_nodes(self, question: Question) -> int:
        """About how many nodes the question's graph has; for batches of similar sizes."""
        window = self.corpus.windows[question.window]
        return len(window.input_ids) + sum(item.num_tokens for item in window.placed) + len(question.leaf)

    def _window_leaves(self, number: int) -> np.ndarray:
        """Leaf tokens of a window: columns root, slot, token, relation, reversed, head start, head length, fact."""
        found = self._leaves.get(number)
        if found is None:
            rows = [
                (item.root, item.slot + place, token, c.relation, c.reversed, c.start, c.length, c.fact)
                for item in self.corpus.windows[number].placed
                for c in (item.candidate,)
                for place, token in enumerate(c.leaf[: item.num_tokens])
            ]
            found = np.array(rows, dtype=np.int64).reshape(-1, 8)
            # Questions come window by window; a large project's windows need not all be kept.
            if len(self._leaves) > 4096:
                self._leaves.clear()
            self._leaves[number] = found
        return found

    def _with_question(self, question: Question) -> tuple[np.ndarray, int, int]:
        """The leaves with the question's last, its root, and its first slot.

        Which slots a leaf takes among its root's says nothing (`chain_graphs.layout` shuffles them), so it takes the last.
        """
        leaves = self._window_leaves(question.window)
        if question.hidden:
            leaves = leaves[~np.isin(leaves[:, 7], list(question.hidden))]
        limit, wanted = self.corpus.leaves_per_root, len(question.leaf)
        roots = range(question.head_start, question.head_start + question.head_length)
        used = [int((leaves[:, 0] == root).sum()) for root in roots]
        root = roots[next((k for k, count in enumerate(used) if limit - count >= wanted), 0)]
        here = leaves[:, 0] == root
        facts = list(dict.fromkeys(leaves[here, 7].tolist()))
        # Whole facts, the last first: half a name would be another name.
        while here.sum() > limit - wanted:
            leaves = leaves[~(here & (leaves[:, 7] == facts.pop()))]
            here = leaves[:, 0] == root
        leaves = leaves.copy()
        # Slots without the gaps that hidden leaves leave.
        slot = int(here.sum())
        leaves[here, 1] = np.arange(slot)
        span = (question.head_start, question.head_length)
        added = [
            (root, slot + k, token, question.relation, question.is_reversed, *span, -1)
            for k, token in enumerate(question.leaf)
        ]
        return np.concatenate([leaves, np.array(added, dtype=np.int64).reshape(-1, 8)]), root, slot

    def __call__(self, questions: list[Question]) -> tuple[dict[str, torch.Tensor], np.ndarray]:
        """A batch and where its questions are.

        Args:
            questions: at least one.

        Returns:
            int64 tensors `(B, N)` under the names that the model takes, `labels` among them: 0 at each token of a question
            whose tail is asked (nothing is learned here; it says where the LM head has to run), -100 elsewhere. And an int
            array `(B, 2)` with the root and first slot of each question's leaf.
        """
        graphs = [self._with_question(question) for question in questions]
        texts = [self.corpus.windows[question.window].input_ids for question in questions]
        num_nodes = max(len(text) + len(leaves) for text, (leaves, _, _) in zip(texts, graphs, strict=True))
        names = ("token_type_ids", "attention_mask", "root_index", "relation_reversed", "head_start", "head_length")
        batch = {name: np.zeros((len(questions), num_nodes), dtype=np.int64) for name in names}
        batch["input_ids"] = np.full((len(questions), num_nodes), self.pad_token_id, dtype=np.int64)
        batch["leaf_index"] = np.full((len(questions), num_nodes), -1, dtype=np.int64)
        batch["relation_ids"] = batch["leaf_index"].copy()
        batch["labels"] = np.full((len(questions), num_nodes), IGNORED, dtype=np.int64)
        for row, (question, text, (leaves, _, _)) in enumerate(zip(questions, texts, graphs, strict=True)):
            size, end = len(text), len(text) + len(leaves)
            batch["input_ids"][row, :size], batch["input_ids"][row, size:end] = text, leaves[:, 2]
            batch["attention_mask"][row, :end] = 1
            batch["token_type_ids"][row, size:end] = 1
            batch["root_index"][row, :size], batch["root_index"][row, size:end] = np.arange(size), leaves[:, 0]
            columns = (
                ("leaf_index", 1),
                ("relation_ids", 3),
                ("relation_reversed", 4),
                ("head_start", 5),
                ("head_length", 6),
            )
            for name, column in columns:
                batch[name][row, size:end] = leaves[:, column]
            batch["labels"][row, end - len(question.leaf) : end] = 0
        places = np.array([(root, slot) for _, root, slot in graphs])
        return {name: torch.from_numpy(array) for name, array in batch.items()}, places
