"""What retrieval tasks share: texts as windows with or without their leaves, embeddings, pools, metrics and baselines.

A text is embedded as the mean of its tokens' final states over all of its windows, of length 1. Leaves take part through
attention only, so that a text with leaves and one without are means over the same tokens.

Shape suffixes: B batch, N nodes, D hidden, T texts.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import bm25s
import evaluate
import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer
from torch.nn import functional as F

from ..chain_graphs.windows import WindowDataset
from .base import TaskContext
from .excerpts import Excerpt, link_excerpts
from .queries import without_facts

EXTRAS = ("graph", "context", "none")
METRICS = Path(__file__).resolve().parent.parent / "metrics"

_SUBWORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_A-Za-z]+")


def load_metric(name: str) -> evaluate.EvaluationModule:
    """A module of `metrics/`, loaded from its path."""
    return evaluate.load(str(METRICS / name), keep_in_memory=True)


class _FirstWindows(WindowDataset):
    """The first windows of each row; the others are not even given their leaves."""

    def __init__(self, rows, tokenizer, per_row: int, **options):
        self._per_row = per_row
        super().__init__(rows, tokenizer, **options)

    def _cut(self, dataset, max_windows: int | None) -> None:
        super()._cut(dataset, max_windows)
        begins = np.searchsorted(self.file_index, np.arange(len(dataset)))
        self.windows_of_row = np.diff(np.append(begins, len(self.file_index)))
        kept = np.arange(len(self.file_index)) - begins[self.file_index] < self._per_row
        self.file_index, self.token_range = self.file_index[kept], self.token_range[kept]


class TextWindows:
    """Texts as windows that an encoder takes, each with its leaves, with raw context, or with neither.

    Args:
        context: whose checkpoint says how windows are made.
        excerpts: the texts.
        max_windows: windows taken of each text, from its beginning.
        extra: "graph" gives each window its leaves; "context" gives it as many tokens of the text around the function
            as the graph has leaves for it, half of them before and half after as far as there are; "none" nothing.
        num_roots: size of the windows; by default the checkpoint's.
        pad_to_multiple_of: pad batches to a multiple of so many nodes.

    Attributes:
        num_texts: T.
        text_of: int array `(windows,)`, sorted: the text of each window.
        first: int array `(T,)`, the first window of each text.
        lengths: int array `(windows,)`, nodes with the extra.
        num_extra: tokens that the extra adds, over all windows.
        num_cut: texts that have more windows than are taken.

    Raises:
        ValueError: `extra` is none of these, or a text has no token.
    """

    def __init__(
        self,
        context: TaskContext,
        excerpts: Sequence[Excerpt],
        max_windows: int = 1,
        extra: str = "none",
        num_roots: int | None = None,
        pad_to_multiple_of: int | None = None,
    ):
        if extra not in EXTRAS:
            raise ValueError(f"extra must be one of {', '.join(EXTRAS)}, got {extra!r}")
        options = context.window_options(graph=extra == "graph")
        if extra == "context":
            # As many tokens as the leaves of the configuration that this one is compared with.
            options["leaves_per_root"] = context.config.leaves_per_root or 7
        options["num_roots"] = num_roots or options["num_roots"]
        rows = link_excerpts(excerpts, context.tokenizer)
        self._windows = _FirstWindows(rows, context.tokenizer, max_windows, **options)
        self._collator = context.collator(
            diagnostics=False, num_roots=options["num_roots"], pad_to_multiple_of=pad_to_multiple_of
        )
        self._context, self.extra = context, extra
        self.num_texts = len(excerpts)
        counts = self._windows.windows_of_row
        if (counts == 0).any():
            raise ValueError(f"text {int(np.flatnonzero(counts == 0)[0])} has no token")
        self.num_cut = int((counts > max_windows).sum())
        self.text_of = self._windows.file_index.astype(np.int64)
        self.first = np.searchsorted(self.text_of, np.arange(self.num_texts))
        own = np.diff(self._windows.token_range, axis=1)[:, 0] + 2
        self.lengths = self._windows.lengths
        if extra == "context":
            self._pieces = [self._surrounded(window, rows, excerpts) for window in range(len(self))]
            self.lengths = np.array([len(ids) for ids, _, _ in self._pieces])
        self.num_extra = int((self.lengths - own).sum())

    def __len__(self) -> int:
        return len(self._windows)

    def _surrounded(self, window: int, rows, excerpts: Sequence[Excerpt]) -> tuple[np.ndarray, int, int]:
        """Token ids of a window with raw context, and where its own tokens begin and end among them."""
        item, text = self._windows[window], int(self._windows.file_index[window])
        own, wanted = item["input_ids"], len(item["leaf_ids"])
        wanted = min(wanted, self._context.config.num_usable_positions - len(own))
        start, end = self._windows.token_range[window]
        if text != getattr(self, "_around", (-1,))[0]:
            excerpt = excerpts[text]
            encode = self._context.tokenizer.backend_tokenizer.encode
            before, after = (
                encode(piece, add_special_tokens=False).ids
                for piece in (excerpt.text[: excerpt.start], excerpt.text[excerpt.end :])
            )
            self._around = (text, before, np.array(rows[text]["input_ids"], dtype=np.int32), after)
        _, before, inside, after = self._around
        left, right = [*before, *inside[:start]], [*inside[end:], *after]
        num_left = min(len(left), max(wanted // 2, wanted - len(right)))
        num_right = min(len(right), wanted - num_left)
        ids = [own[0], *left[len(left) - num_left :], *own[1:-1], *right[:num_right], own[-1]]
        return np.array(ids, dtype=np.int64), 1 + num_left, num_left + len(own) - 1

    def batch(
        self, indices: np.ndarray, with_extra: bool | np.ndarray
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The encoder's inputs for some windows.

        Args:
            indices: of windows.
            with_extra: whether windows keep leaves or context; one for all, or `(B,)`.

        Returns:
            `forward`'s inputs `(B, N)`, and a float mask `(B, N)` of the tokens that the embedding is the mean of.
        """
        keep = np.broadcast_to(np.asarray(with_extra, dtype=bool), len(indices))
        device = self._context.device
        if self.extra != "context":
            items = [self._windows[int(index)] for index in indices]
            items = [item if kept else without_facts(item) for item, kept in zip(items, keep, strict=True)]
            inputs = self._context.inputs(self._collator(items))
            return inputs, ((inputs["leaf_index"] < 0) & inputs["attention_mask"].bool()).float()
        pieces = []
        for index, kept in zip(indices, keep, strict=True):
            ids, begin, end = self._pieces[index]
            if not kept:
                ids, begin, end = np.concatenate([ids[:1], ids[begin:end], ids[-1:]]), 1, end - begin + 1
            pieces.append((ids, begin, end))
        size = max(len(ids) for ids, _, _ in pieces)
        input_ids = np.full((len(pieces), size), self._context.tokenizer.pad_token_id, dtype=np.int64)
        real, pooled = np.zeros((len(pieces), size), dtype=np.int64), np.zeros((len(pieces), size), dtype=np.float32)
        for row, (ids, begin, end) in enumerate(pieces):
            input_ids[row, : len(ids)], real[row, : len(ids)] = ids, 1
            # The two ends count as in a window without context.
            pooled[row, begin:end] = pooled[row, 0] = pooled[row, len(ids) - 1] = 1
        inputs = {"input_ids": input_ids, "attention_mask": real}
        tensors = {name: torch.from_numpy(value).to(device) for name, value in inputs.items()}
        return tensors, torch.from_numpy(pooled).to(device)


def plain_excerpt(text: str) -> Excerpt:
    """A text without a graph, for instance a question."""
    return Excerpt(text, 0, len(text), [], [], [])


def pooled_states(encoder, inputs: dict[str, torch.Tensor], pooled_BN: torch.Tensor) -> torch.Tensor:
    """Sum of the final states of the pooled tokens, float (B, D)."""
    states_BND = encoder(**inputs).last_hidden_state
    return torch.einsum("bnd,bn->bd", states_BND.float(), pooled_BN)


@torch.no_grad()
def embed(
    context: TaskContext, encoder, texts: TextWindows, with_extra: bool = True, description: str = "encoding"
) -> torch.Tensor:
    """Embed texts.

    Args:
        context: gives batches and progress bars.
        encoder: a `GraphMertModel` in evaluation mode.
        texts: as windows.
        with_extra: whether the windows keep their leaves or context.
        description: of the progress bar.

    Returns:
        float (T, D) on the CPU, rows of length 1.
    """
    sums_TD = torch.zeros(texts.num_texts, encoder.config.hidden_size)
    for indices in context.batches(texts.lengths, description):
        states_BD = pooled_states(encoder, *texts.batch(indices, with_extra)).cpu()
        sums_TD.index_add_(0, torch.from_numpy(texts.text_of[indices]), states_BD)
    return F.normalize(sums_TD, dim=-1)


def deal_pools(number: int, size: int, rounds: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Deal queries into pools of candidates: in each round each query stands in one pool at most.

    Args:
        number: of queries.
        size: of a pool; a smaller number of queries is one pool of them all.
        rounds: how often to deal anew.
        generator: of the random order.

    Returns:
        Sorted index arrays of equal size, `rounds * (number // size)` of them.
    """
    size = min(size, number)
    pools = []
    for _ in range(rounds):
        order = generator.permutation(number)
        pools += [np.sort(order[start : start + size]) for start in range(0, number - size + 1, size)]
    return pools


def score_pools(
    scores: Callable[[np.ndarray], np.ndarray], pools: list[np.ndarray], number: int
) -> tuple[dict[str, float], dict[str, float], np.ndarray]:
    """Rank each query's own text among its pool.

    Args:
        scores: gives for a pool (index array of P) its scores, float (P, P): queries by texts.
        pools: from `deal_pools`.
        number: of queries in all.

    Returns:
        Mean of `mrr`, `recall_at_1`, `recall_at_10` over pools; their standard deviation (0 for one pool); and the
        reciprocal rank of each query, float (number,), the mean over the pools it stands in, NaN where it is in none.
    """
    metric = load_metric("reciprocal_rank")
    found, total, seen = [], np.zeros(number), np.zeros(number)
    for pool in pools:
        result = metric.compute(predictions=scores(pool), references=np.arange(len(pool)))
        total[pool] += 1 / np.array(result.pop("ranks"))
        seen[pool] += 1
        found.append(result)
    means = {name: float(np.mean([figures[name] for figures in found])) for name in found[0]}
    spread = {name: float(np.std([figures[name] for figures in found], ddof=int(len(found) > 1))) for name in found[0]}
    return means, spread, np.where(seen > 0, total / np.maximum(seen, 1), np.nan)


def chance(size: int) -> dict[str, float]:
    """Expectation of the figures of `score_pools` for a random order of `size` candidates."""
    mrr = float(np.mean(1 / np.arange(1, size + 1)))
    return {"mrr": mrr, "recall_at_1": 1 / size, "recall_at_10": min(10, size) / size}


def subwords(text: str) -> list[str]:
    """The words of code or prose in small letters, names taken apart at underscores and capitals.

    >>> subwords("def loadFile(self, file_name): # HTTP2Server")
    ['def', 'load', 'file', 'self', 'file', 'name', 'http', '2', 'server']
    """
    return [word.lower() for word in _SUBWORD.findall(text)]


def bm25_scores(texts: list[str], queries: list[str]) -> np.ndarray:
    """BM25 (Lucene's form, k1 = 1.5, b = 0.75) over subwords, float32 (queries, texts)."""
    index = bm25s.BM25()
    index.index([subwords(text) or [""] for text in texts], show_progress=False)
    return np.stack([index.get_scores(subwords(query) or [""]) for query in queries]).astype(np.float32)


def jaccard_scores(texts: list[str]) -> np.ndarray:
    """Jaccard similarity of the texts' sets of subwords, float32 (texts, texts)."""
    present: csr_matrix = CountVectorizer(analyzer=subwords, binary=True, dtype=np.float32).fit_transform(texts)
    common = (present @ present.T).toarray()
    sizes = np.asarray(present.sum(axis=1)).ravel()
    return common / np.maximum(sizes[:, None] + sizes[None, :] - common, 1)
