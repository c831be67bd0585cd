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
from .type_candidates import Candidates

LEAF, TEXT = "asked in a leaf", "asked in the text"


@dataclass(frozen=True)
class Questions:
    """Hidden types with their candidates.

    Attributes:
        windows: of the texts without annotations.
        queries: what is asked.
        candidates: those of the training corpus.
        own: for each query its own candidates, text -> tokens; queries of one file share one dict.
    """

    windows: WindowDataset
    queries: list[Query]
    candidates: Candidates
    own: list[dict[str, list[int]]]

    @classmethod
    def of(cls, windows: WindowDataset, queries: list[Query], candidates: Candidates) -> "Questions":
        """With the candidates that files and projects have of their own."""
        return cls(windows, queries, candidates, candidates.of_queries(queries))

    def right(self) -> list[int | None]:
        """For each query the place of the hidden type among the candidates, those of the training corpus first."""
        shared = {text: place for place, text in enumerate(self.candidates.types)}
        by_file = {id(names): {text: len(shared) + i for i, text in enumerate(names)} for names in self.own}
        texts = [query.hidden.type for query in self.queries]
        return [shared.get(text, by_file[id(names)].get(text)) for text, names in zip(texts, self.own, strict=True)]

    def known(self) -> Iterator[np.ndarray]:
        """What is known of each candidate before code is read (`Candidates.features`)."""
        return self.candidates.features(self.queries, self.own)

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
    windows, queries, candidates, own = questions.windows, questions.queries, questions.candidates, questions.own
    tables = {id(names): _tables(names) for names in (candidates.types, *own)}
    scores = [np.full(len(candidates.types) + len(names), -np.inf, dtype=np.float32) for names in own]
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
                    for first, names in ((0, candidates.types), (len(candidates.types), own[index])):
                        if size in tables[id(names)]:
                            at, tokens = tables[id(names)][size]
                            values = log_p[row, torch.arange(size), tokens].sum(-1) + rest
                            scores[index][first + at] = values.numpy()
    return scores


def _tables(types: dict[str, list[int]]) -> dict[int, tuple[np.ndarray, torch.Tensor]]:
    """By length: places of the candidates among all, and their tokens, int64 (candidates, length)."""
    places = defaultdict(list)
    for place, tokens in enumerate(types.values()):
        places[len(tokens)].append(place)
    every = list(types.values())
    return {size: (np.array(at), torch.tensor([every[i] for i in at])) for size, at in places.items()}
