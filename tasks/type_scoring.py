"""How likely a checkpoint thinks each candidate of a hidden type is.

Two ways to score a candidate of n tokens:

    by length  the question has n masks:  log P(n | relation) + sum_i log P(token_i | n masks), a pass for each length
    by end     it has as many masks as the longest candidate, and </s> stands behind the type:
               sum_i log P(token_i | masks) + log P(</s> at n + 1 | masks), one pass; for models that learned it so
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..chain_graphs.windows import WindowDataset
from .base import TaskContext
from .queries import Query, ask_in_leaf, ask_in_text, labels_at
from .type_candidates import Candidates, Own
from .type_signs import TypeSigns

LEAF, TEXT = "asked in a leaf", "asked in the text"


@dataclass(frozen=True)
class Questions:
    """Hidden types with their candidates.

    Attributes:
        windows: of the texts without annotations.
        queries: what is asked.
        candidates: those of the training corpus.
        own: for each query the candidates of its project and file.
        signs: opinions by signs of use, if they are asked for.
    """

    windows: WindowDataset
    queries: list[Query]
    candidates: Candidates
    own: list[Own]
    signs: TypeSigns | None = None

    @classmethod
    def of(
        cls, windows: WindowDataset, queries: list[Query], candidates: Candidates, signs: TypeSigns | None = None
    ) -> "Questions":
        """With the candidates that files and projects have of their own."""
        return cls(windows, queries, candidates, candidates.of_queries(queries), signs)

    def right(self) -> list[int | None]:
        """For each query the place of the hidden type among the candidates, those of the training corpus first."""
        # Queries share their tables.
        tables = {id(table): table for tables in self.tables() for table in tables}
        places = {number: {text: place for place, text in enumerate(table)} for number, table in tables.items()}
        found = []
        for query, tables in zip(self.queries, self.tables(), strict=True):
            first, place = 0, None
            for table in tables:
                if query.hidden.type in table:
                    place = first + places[id(table)][query.hidden.type]
                    break
                first += len(table)
            found.append(place)
        return found

    def tables(self) -> list[tuple[dict[str, list[int]], ...]]:
        """For each query its candidates, text -> tokens, in several tables that other queries share."""
        return [(self.candidates.types, *(part.tokens for part in parts)) for parts in self.own]

    def known(self) -> Iterator[np.ndarray]:
        """What is known of each candidate before a model reads the code: of `Candidates.features`, then of `TypeSigns`."""
        found = self.candidates.features(self.queries, self.own)
        if self.signs is None:
            yield from found
            return
        for table, signs in zip(found, self.signs.features(self.candidates, self.queries, self.own), strict=True):
            yield np.concatenate([table, signs], axis=1)

    def ranks(self, scores: list[np.ndarray]) -> np.ndarray:
        """Rank of each hidden type by its scores, 0 for the first; the number of candidates where it is none of them.

        Ties count against the scores.

        Args:
            scores: for each query float (candidates,).

        Returns:
            int64 (queries,).
        """
        return np.array(
            [
                len(values) if place is None else int((values >= values[place]).sum()) - 1
                for values, place in zip(scores, self.right(), strict=True)
            ]
        )


def score_types(
    context: TaskContext,
    questions: Questions,
    way: str,
    model: torch.nn.Module | None = None,
    by_end: bool = False,
) -> list[np.ndarray]:
    """Score all candidates of each query.

    Args:
        context: the checkpoint.
        questions: what is asked.
        way: `LEAF` or `TEXT`.
        model: a fine-tuned copy of the checkpoint, in evaluation mode; default the checkpoint.
        by_end: score by end; else by length.

    Returns:
        For each query float32 (candidates,), those of the training corpus first.
    """
    ask = ask_in_leaf if way == LEAF else ask_in_text
    collator, mask, end = context.collator(), context.tokenizer.mask_token_id, context.tokenizer.sep_token_id
    windows, queries, candidates = questions.windows, questions.queries, questions.candidates
    texts = questions.tables()
    by_length = {id(table): _by_length(table) for table in {id(t): t for tables in texts for t in tables}.values()}
    scores = [np.full(sum(map(len, tables)), -np.inf, dtype=np.float32) for tables in texts]
    lengths = windows.lengths[[query.window for query in queries]]
    longest = candidates.max_tokens
    for masks in [longest] if by_end else range(1, longest + 1):
        for chosen in context.batches(lengths, f"{way}, {masks} tokens"):
            items, places = zip(
                *(ask(windows[queries[i].window], queries[i], [mask] * masks, context.config) for i in chosen),
                strict=True,
            )
            batch = collator(list(items))
            # Which token a mask's label is does not matter, only where there is one.
            batch["labels"] = labels_at(batch, [[(place, [0] * masks)] for place in places])
            logits = context.predict(batch, model).logits.float()
            log_p = torch.log_softmax(logits, dim=-1).cpu().view(len(chosen), masks, -1)
            for row, index in enumerate(chosen):
                for size in range(1, masks + 1) if by_end else [masks]:
                    if by_end:
                        rest = float(log_p[row, size, end]) if size < masks else 0.0
                    else:
                        rest = candidates.length_prior[queries[index].relation][size - 1]
                    first = 0
                    for table in texts[index]:
                        if size in by_length[id(table)]:
                            at, tokens = by_length[id(table)][size]
                            values = log_p[row, torch.arange(size), tokens].sum(-1) + rest
                            scores[index][first + at] = values.numpy()
                        first += len(table)
    return scores


def _by_length(types: dict[str, list[int]]) -> dict[int, tuple[np.ndarray, torch.Tensor]]:
    """By length: places of the candidates among all, and their tokens, int64 (candidates, length)."""
    places = defaultdict(list)
    for place, tokens in enumerate(types.values()):
        places[len(tokens)].append(place)
    every = list(types.values())
    return {size: (np.array(at), torch.tensor([every[i] for i in at])) for size, at in places.items()}
