"""From windows to batches: masking for MLM and MNM, and the node layouts that the model takes.

Everything random is a pure function of (seed, epoch, example index, position): how a batch is split over accumulation
steps, processes and workers changes nothing, and a resumed run sees the masks that it would have seen.

Shape legend: B rows, N nodes of a row, G windows, R roots per window, L leaf slots per root. Arrays called `*_flat` run
over the whole batch without padding: over all root tokens, all facts, or all leaf tokens.
"""

import copy
from collections import Counter

import numpy as np
import torch

from .batch_indices_graphmert import batch_indices
from .chain_graphs.linking import MAX_WORD_TOKENS
from .chain_graphs.windows import canonical_ids

SPAN_GEOMETRIC_P = 0.2
MASKED_SPAN_LEAVES = ("drop", "hide", "keep")
LAYOUTS = ("padded", "compact", "packed")
MNM_TARGETS = ("relation", "tail", "both")

_STREAMS = {
    name: np.uint64(number)
    for number, name in enumerate(
        (
            "budget",
            "span_order",
            "span_length",
            "replace",
            "replacement",
            "fact_order",
            "fact_budget",
            "tail",
            "tail_token",
            "fact_window",
            "fact_word",
        )
    )
}


def _mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): uint64 in, well-mixed uint64 out."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def counter_uniform(keys: np.ndarray, stream: str, index: np.ndarray | int = 0) -> np.ndarray:
    """Uniform numbers in [0, 1) that depend on nothing but their arguments.

    Args:
        keys: uint64 array, one key for each number (for instance of its example).
        stream: which of the collator's decisions the numbers are for.
        index: position inside the example, of the shape of `keys` or a scalar.

    Returns:
        float64 array of the shape of `keys`.
    """
    with np.errstate(over="ignore"):
        step = np.uint64(0x9E3779B97F4A7C15)
        index = np.asarray(index).astype(np.uint64)
        mixed = _mix(_mix(keys + (_STREAMS[stream] + np.uint64(1)) * step) + (index + np.uint64(1)) * step)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def example_keys(seed: int, epoch: np.ndarray, index: np.ndarray) -> np.ndarray:
    """One uint64 key for each (seed, epoch, example index)."""
    with np.errstate(over="ignore"):
        key = _mix(np.full(len(index), seed & 0xFFFFFFFFFFFFFFFF, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15))
        key = _mix(key ^ (np.asarray(epoch).astype(np.uint64) + np.uint64(0xD1B54A32D192ED03)))
        return _mix(key ^ (np.asarray(index).astype(np.uint64) + np.uint64(0x8CB92BA72F3D8DD7)))


def _concatenate(examples: list[dict], name: str) -> np.ndarray:
    return np.concatenate([example[name] for example in examples]).astype(np.int64)


def _ranks_within(groups: np.ndarray, offsets: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Rank of each value among those of its group; `groups` is sorted and `offsets` are the groups' starts."""
    order = np.lexsort((values, groups))
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[order] = np.arange(len(values)) - offsets[groups]
    return ranks


class GraphMertCollator:
    """Masks windows and lays them out as node-aligned tensors.

    MLM: SpanBERT spans (geometric p = 0.2 in words, at most 7 tokens, whole words) until `mlm_probability` of a window's
    tokens are covered, 80/10/10 by span. MNM: `mnm_probability` of a window's facts; "relation" hides the relation,
    "tail" hides all tail tokens (80/10/10 by tail), "both" does each on its own facts. Shares of a window are rounded
    at random so that their expectation is exact.

    Args:
        tokenizer: the dataset's tokenizer, with a mask token.
        num_roots, leaves_per_root, num_relations: as in the model's configuration; they must fit the windows.
        layout: "compact" (a row for each window, existing nodes only), "packed" (existing nodes only, many windows in a row,
            no padding but what the next two arguments ask for) or "padded" (all R(1+L) slots).
        mlm_probability, mnm_probability: shares in [0, 1).
        mnm_window_probability: share of the windows whose facts are masked, in [0, 1]; the others show every fact.
        mnm_target: "relation", "tail" or "both".
        masked_span_leaves: what happens to a leaf that hangs on a masked span, whose syntactic role it would tell:
            "drop" it from the input, "hide" its relation, or "keep" it. Edges with an end on a masked span have nothing to
            hide but themselves: they are kept with "keep" alone.
        mask_visible_copies: also hide leaves that repeat a masked word (their tokens become mask tokens, unlabelled).
        mnm_skip_copied_tails: ask for no tail whose first word could be copied: words that stand in the text are never asked
            for, and all tails of a window that begin with the same word are hidden together, or none. `mnm_probability` is
            then the share of such words. A tail whose first word is still shown inside another leaf is hidden, unlabelled.
        span_boundary: add `span_left`, `span_right`, `span_offset` for the span-boundary objective.
        seed: of the masks.
        pad_to_multiple_of: pad N up to a multiple (compact, packed).
        max_nodes_per_row: for "packed": rows of exactly so many nodes, as few as will do. Default: one row for all.
        with_indices: add `indices` (see `batch_indices`), so that the model never waits for a device to count what the
            collator knows; "packed" always has them.
        diagnostics: add `label_in_leaf` (B, N): 1 at a masked root whose word stands in a leaf of the input,
            `leaf_in_window` (B, N): 1 at a leaf whose text stands among the window's roots, and `fact_place` (B, N): a
            leaf token's place in its fact's leaf. They are for evaluation; the model does not take them.

    `__call__(examples)` takes items of `WindowDataset` and returns a dict of int64 tensors `(B, N)`: `input_ids`,
    `attention_mask`, `token_type_ids`, `root_index`, `leaf_index`, `relation_ids`, `relation_reversed`, `head_start`,
    `head_length`, `labels`, `relation_labels`; "packed" adds `graph_ids`, the number of the node's window among the
    examples, -1 for padding. Root i of a window is its i-th node: in column i, where rows are windows. `relation_labels`
    holds one label for each hidden relation, at the first leaf of its fact. Windows that know their project's `fold` add
    `memory_fold`, -1 for padding. Windows with edges between roots (`WindowDataset`'s `edge_relations`) add `root_distance`,
    int16 `(G, R, R)`, shortest paths between roots. `statistics` counts what was masked, hidden and dropped.

    Raises:
        ValueError: an argument out of range, a tokenizer without mask or pad token, or a window that does not fit.
    """

    def __init__(
        self,
        tokenizer,
        num_roots: int = 128,
        leaves_per_root: int = 7,
        num_relations: int = 12,
        layout: str = "compact",
        mlm_probability: float = 0.15,
        mnm_probability: float = 0.3,
        mnm_target: str = "both",
        masked_span_leaves: str = "drop",
        mask_visible_copies: bool = False,
        span_boundary: bool = False,
        seed: int = 0,
        pad_to_multiple_of: int | None = None,
        diagnostics: bool = False,
        max_nodes_per_row: int | None = None,
        with_indices: bool = False,
        mnm_window_probability: float = 1.0,
        mnm_skip_copied_tails: bool = False,
    ):
        for name, value, allowed in (
            ("layout", layout, LAYOUTS),
            ("mnm_target", mnm_target, MNM_TARGETS),
            ("masked_span_leaves", masked_span_leaves, MASKED_SPAN_LEAVES),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        for name, value in (("mlm_probability", mlm_probability), ("mnm_probability", mnm_probability)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
        if mnm_skip_copied_tails and mnm_target == "relation":
            raise ValueError(
                "mnm_skip_copied_tails is about hidden tails, but mnm_target is 'relation': no tail is hidden"
            )
        if not 0 <= mnm_window_probability <= 1:
            raise ValueError(f"mnm_window_probability must be in [0, 1], got {mnm_window_probability}")
        if mnm_target == "both" and mnm_probability > 0.5:
            raise ValueError(
                f"mnm_target 'both' masks two sets of facts: mnm_probability must be at most 0.5, got {mnm_probability}"
            )
        if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
            raise ValueError(f"pad_to_multiple_of must be at least 1, got {pad_to_multiple_of}")
        if max_nodes_per_row is not None and layout != "packed":
            raise ValueError(f"max_nodes_per_row is for the layout 'packed', not {layout!r}")
        largest = num_roots * (1 + leaves_per_root)
        if max_nodes_per_row is not None and max_nodes_per_row < largest:
            raise ValueError(
                f"max_nodes_per_row must hold the largest window, {largest} nodes for num_roots={num_roots} and "
                f"leaves_per_root={leaves_per_root}, got {max_nodes_per_row}"
            )
        if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer needs a mask token and a padding token for masked language modelling")
        self.num_roots, self.leaves_per_root, self.num_relations = num_roots, leaves_per_root, num_relations
        self.layout, self.mnm_target = layout, mnm_target
        self.mlm_probability, self.mnm_probability = mlm_probability, mnm_probability
        self.mnm_window_probability, self.mnm_skip_copied_tails = mnm_window_probability, mnm_skip_copied_tails
        self.masked_span_leaves, self.mask_visible_copies = masked_span_leaves, mask_visible_copies
        self.span_boundary, self.seed, self.pad_to_multiple_of = span_boundary, seed, pad_to_multiple_of
        self.diagnostics = diagnostics
        self.max_nodes_per_row, self.with_indices = max_nodes_per_row, with_indices or layout == "packed"
        self.mask_token_id, self.pad_token_id = tokenizer.mask_token_id, tokenizer.pad_token_id
        special = np.zeros(len(tokenizer), dtype=bool)
        special[tokenizer.all_special_ids] = True
        self._ordinary_ids = np.flatnonzero(~special)
        self._is_special = special
        self._canonical = canonical_ids(tokenizer).astype(np.int64)
        lengths = np.arange(1, MAX_WORD_TOKENS + 1)
        weights = SPAN_GEOMETRIC_P * (1 - SPAN_GEOMETRIC_P) ** (lengths - 1)
        self._span_length_cdf = np.cumsum(weights / weights.sum())
        self.statistics: Counter = Counter()

    @property
    def vocab_size(self) -> int:
        """Entries of the tokenizer."""
        return len(self._canonical)

    def as_compact(self) -> "GraphMertCollator":
        """A copy with the same masks in the compact layout, tensors (B, N) only; it counts into the same statistics."""
        twin = copy.copy(self)
        twin.layout, twin.max_nodes_per_row, twin.with_indices = "compact", None, False
        return twin

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor | dict[str, torch.Tensor]]:
        sizes = np.array([len(example["input_ids"]) for example in examples])
        if sizes.max() > self.num_roots:
            raise ValueError(
                f"a window of {sizes.max()} roots does not fit num_roots={self.num_roots}; "
                "open the WindowDataset with the collator's num_roots"
            )
        keys = example_keys(
            self.seed,
            np.array([example["epoch"] for example in examples]),
            np.array([example["index"] for example in examples]),
        )
        roots = _Roots(examples, sizes)
        facts = _Facts(examples, roots)
        if len(facts.relation) and int(facts.relation.max()) >= self.num_relations:
            raise ValueError(
                f"the windows hold relation id {int(facts.relation.max())}, but num_relations is {self.num_relations}"
            )
        if len(facts.root) and int((facts.slot + facts.length).max()) > self.leaves_per_root:
            raise ValueError(
                f"a leaf lies in slot {int((facts.slot + facts.length).max()) - 1}, "
                f"beyond leaves_per_root={self.leaves_per_root}; "
                "open the WindowDataset with the collator's leaves_per_root"
            )

        covered, span = self._choose_spans(roots, keys)
        root_ids = self._corrupt(roots.ids, covered, keys[roots.row], span, "replace", "replacement")
        self._choose_facts(facts, roots, covered, keys)
        folds = np.array([example["fold"] for example in examples]) if "fold" in examples[0] else None
        batch = self._lay_out(roots, root_ids, covered, facts, keys, folds)
        self._count(examples, roots, covered, facts)
        if "edges" in examples[0]:
            batch["root_distance"] = self._root_distances(examples, roots, covered)
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        if self.with_indices:
            tensors["indices"] = batch_indices(tensors, self.num_relations)
        return tensors

    def _choose_spans(self, roots: "_Roots", keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """SpanBERT masking: which root tokens are covered, and by the span of which rank in its window."""
        maskable = ~self._is_special[roots.ids]
        num_maskable = np.bincount(roots.row, weights=maskable, minlength=len(keys))
        wanted = num_maskable * self.mlm_probability
        budget = np.floor(wanted + counter_uniform(keys, "budget")).astype(np.int64)
        budget = np.where((wanted > 0) & (budget == 0), 1, budget)

        word_begin = np.flatnonzero(roots.word_start.astype(bool) & maskable)
        word_row = roots.row[word_begin]
        # A window's last root is </s>, which ends its last word.
        word_end = np.minimum(np.append(word_begin[1:], len(roots.ids)), roots.offset[word_row + 1] - 1)
        word_offsets = np.searchsorted(word_row, np.arange(len(keys)))
        within = np.arange(len(word_begin)) - word_offsets[word_row]
        rank = _ranks_within(word_row, word_offsets, counter_uniform(keys[word_row], "span_order", within))
        # Enough spans for any budget, overlaps included: the rest can never be reached.
        useful = np.flatnonzero(rank < 2 * budget[word_row] + 4)
        rank, word_row, within = rank[useful], word_row[useful], within[useful]

        drawn = (
            np.searchsorted(
                self._span_length_cdf, counter_uniform(keys[word_row], "span_length", within), side="right"
            )
            + 1
        )
        begin = word_begin[useful]
        last_whole = np.searchsorted(word_end, begin + MAX_WORD_TOKENS, side="right") - 1
        last_of_window = np.append(word_offsets, len(word_begin))[word_row + 1] - 1
        last = np.minimum(np.minimum(useful + drawn - 1, last_whole), last_of_window)
        end = word_end[np.maximum(last, useful)]

        lengths = end - begin
        token = np.repeat(begin - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
        never = np.iinfo(np.int64).max
        span = np.full(len(roots.ids), never)
        np.minimum.at(span, token, np.repeat(rank, lengths))

        reached = np.flatnonzero(span != never)
        order = reached[np.lexsort((span[reached], roots.row[reached]))]
        row, tokens_rank = roots.row[order], span[order]
        row_offset = np.searchsorted(row, np.arange(len(keys)))
        new_group = np.ones(len(order), dtype=bool)
        new_group[1:] = (row[1:] != row[:-1]) | (tokens_rank[1:] != tokens_rank[:-1])
        group = np.cumsum(new_group) - 1
        group_start = np.flatnonzero(new_group)
        group_size = np.diff(np.append(group_start, len(order)))
        before = (group_start - row_offset[row[group_start]])[group]
        size, limit = group_size[group], budget[row]
        # The span that crosses the budget is taken so often that the expected share is exact; the first always.
        chance = counter_uniform(keys[row], "budget", 1)
        take = (before + size <= limit) | (before == 0) | ((before < limit) & (chance * size < limit - before))
        covered = np.zeros(len(roots.ids), dtype=bool)
        covered[order[take & (limit > 0)]] = True
        return covered, span

    def _corrupt(self, ids, chosen, keys, group, choice: str, token: str) -> np.ndarray:
        """80 % mask token, 10 % random token, 10 % unchanged, decided once for each group (span or tail)."""
        result = ids.copy()
        where = np.flatnonzero(chosen)
        decision = counter_uniform(keys[where], choice, group[where])
        result[where[decision < 0.8]] = self.mask_token_id
        random = where[(decision >= 0.8) & (decision < 0.9)]
        draw = counter_uniform(keys[random], token, random - _group_starts(keys)[random])
        result[random] = self._ordinary_ids[(draw * len(self._ordinary_ids)).astype(np.int64)]
        return result

    def _choose_facts(self, facts: "_Facts", roots: "_Roots", covered: np.ndarray, keys: np.ndarray) -> None:
        """Set the facts' states: dropped or hidden because of masked roots, and the MNM targets."""
        masked_before = np.concatenate([[0], np.cumsum(covered)])
        first = roots.offset[facts.row] + facts.head_start
        on_masked = masked_before[first + facts.head_length] > masked_before[first]
        if self.masked_span_leaves == "drop":
            facts.kept = ~on_masked
        elif self.masked_span_leaves == "hide":
            facts.relation_hidden = on_masked.copy()
        # Canonical token of each leaf, together with its row: one number that can be looked up.
        vocabulary = len(self._canonical)
        facts.leaf_key = facts.row[facts.fact_of_leaf] * vocabulary + self._canonical[facts.leaf_ids]
        facts.masked_root_key = roots.row * vocabulary + self._canonical[roots.ids]
        if self.mask_visible_copies:
            copied = np.isin(facts.leaf_key, facts.masked_root_key[covered])
            facts.tail_hidden[np.unique(facts.fact_of_leaf[copied])] = True

        eligible = np.flatnonzero(facts.kept & ~on_masked & ~facts.tail_hidden)
        row = facts.row[eligible]
        offsets = np.searchsorted(row, np.arange(len(keys)))
        position = eligible - np.searchsorted(facts.row, np.arange(len(keys)))[row]
        rank = _ranks_within(row, offsets, counter_uniform(keys[row], "fact_order", position))
        wanted = np.bincount(row, minlength=len(keys)) * self.mnm_probability
        budget = np.floor(wanted + counter_uniform(keys, "fact_budget")).astype(np.int64)
        budget = np.where(counter_uniform(keys, "fact_window") < self.mnm_window_probability, budget, 0)[row]
        by_relation = by_tail = np.zeros(len(eligible), dtype=bool)
        if self.mnm_target in ("relation", "both"):
            by_relation = rank < budget
        if self.mnm_skip_copied_tails:
            asks = counter_uniform(keys, "fact_window") < self.mnm_window_probability
            by_tail = self._draw_words_without_copies(facts, eligible, asks[row] & ~by_relation, keys)
        elif self.mnm_target in ("tail", "both"):
            shift = budget if self.mnm_target == "both" else 0
            by_tail = (rank >= shift) & (rank < shift + budget)
        facts.relation_target[eligible[by_relation]] = True
        facts.tail_target[eligible[by_tail]] = True
        facts.relation_hidden |= facts.relation_target

    def _draw_words_without_copies(
        self, facts: "_Facts", eligible: np.ndarray, allowed: np.ndarray, keys: np.ndarray
    ) -> np.ndarray:
        """Which eligible facts' tails are asked for where none may have a copy: bool (eligible,).

        Tails that cannot be asked since another leaf still shows their first word are set to `tail_hidden`.
        """
        first_word = facts.leaf_key[facts.first_leaf[eligible]]
        drawn = (
            counter_uniform(keys[facts.row[eligible]], "fact_word", first_word % self.vocab_size)
            < self.mnm_probability
        )
        drawn &= allowed & ~np.isin(first_word, facts.masked_root_key)
        hidden = facts.tail_hidden.copy()
        hidden[eligible[drawn]] = True
        shown = facts.leaf_key[(facts.kept & ~hidden)[facts.fact_of_leaf]]
        asked = drawn & ~np.isin(first_word, shown)
        facts.tail_hidden[eligible[drawn & ~asked]] = True
        return asked

    def _lay_out(self, roots, root_ids, covered, facts, keys, folds) -> dict[str, np.ndarray]:
        kept = np.flatnonzero(facts.kept[facts.fact_of_leaf])
        fact = facts.fact_of_leaf[kept]
        window, slot = facts.row[fact], facts.slot[fact] + facts.place_in_leaf[kept]
        leaf_count = np.bincount(window, minlength=len(roots.size))
        if self.layout == "padded":
            row = np.arange(len(roots.size))
            start, shape = np.zeros_like(row), (len(row), self.num_roots * (1 + self.leaves_per_root))
            leaf_column = self.num_roots + self.leaves_per_root * facts.root[fact] + slot
        else:
            row, start, shape = self._place_windows(roots.size + leaf_count)
            within = np.arange(len(kept)) - (np.cumsum(leaf_count) - leaf_count)[window]
            leaf_column = start[window] + roots.size[window] + within
        at_root, at_leaf = (row[roots.row], start[roots.row] + roots.column), (row[window], leaf_column)

        def grid(fill: int) -> np.ndarray:
            return np.full(shape, fill, dtype=np.int64)

        batch = self._empty(grid)
        if self.layout == "packed":
            batch["graph_ids"][at_root], batch["graph_ids"][at_leaf] = roots.row, window
        tail_chosen = facts.tail_target[facts.fact_of_leaf]
        # Tails that begin with the same word and are hidden together are replaced alike: one left as it is would show it.
        group = facts.leaf_key[facts.first_leaf] % self.vocab_size if self.mnm_skip_copied_tails else facts.position
        leaf_ids = self._corrupt(
            facts.leaf_ids,
            tail_chosen,
            keys[facts.row[facts.fact_of_leaf]],
            group[facts.fact_of_leaf],
            "tail",
            "tail_token",
        )
        leaf_ids = np.where(facts.tail_hidden[facts.fact_of_leaf], self.mask_token_id, leaf_ids)
        if folds is not None:
            batch["memory_fold"] = grid(-1)
            batch["memory_fold"][at_root], batch["memory_fold"][at_leaf] = folds[roots.row], folds[window]
        batch["input_ids"][at_root] = root_ids
        batch["input_ids"][at_leaf] = leaf_ids[kept]
        batch["attention_mask"][at_root] = 1
        batch["attention_mask"][at_leaf] = 1
        batch["token_type_ids"][at_leaf] = 1
        batch["root_index"][at_root] = roots.column
        batch["root_index"][at_leaf] = facts.root[fact]
        batch["leaf_index"][at_leaf] = slot
        batch["relation_ids"][at_leaf] = np.where(facts.relation_hidden, self.num_relations, facts.relation)[fact]
        batch["relation_reversed"][at_leaf] = facts.reversed[fact]
        batch["head_start"][at_leaf] = facts.head_start[fact]
        batch["head_length"][at_leaf] = facts.head_length[fact]
        batch["labels"][at_root[0][covered], at_root[1][covered]] = roots.ids[covered]
        labelled = tail_chosen[kept]
        batch["labels"][at_leaf[0][labelled], leaf_column[labelled]] = facts.leaf_ids[kept][labelled]
        labelled = facts.relation_target[fact] & (facts.place_in_leaf[kept] == 0)
        batch["relation_labels"][at_leaf[0][labelled], leaf_column[labelled]] = facts.relation[fact][labelled]
        if self.span_boundary:
            self._add_span_boundaries(batch, at_root, covered, grid)
        if self.diagnostics:
            shown = facts.leaf_key[kept][~(tail_chosen | facts.tail_hidden[facts.fact_of_leaf])[kept]]
            batch["label_in_leaf"] = grid(0)
            copied = np.isin(facts.masked_root_key, shown) & covered
            batch["label_in_leaf"][at_root[0][copied], at_root[1][copied]] = 1
            batch["leaf_in_window"], batch["fact_place"] = grid(0), grid(0)
            batch["leaf_in_window"][at_leaf] = facts.visible[fact]
            batch["fact_place"][at_leaf] = facts.place_in_leaf[kept]
        return batch

    def _root_distances(self, examples: list[dict], roots: "_Roots", covered: np.ndarray) -> np.ndarray:
        """Shortest paths between the roots of each window, int16 (G, R, R), without edges that tell a masked span's role."""
        counts = [len(example["edges"]) for example in examples]
        window = np.repeat(np.arange(len(examples)), counts)
        edges = _concatenate(examples, "edges")
        masked_before = np.concatenate([[0], np.cumsum(covered)])
        kept = np.ones(len(edges), dtype=bool)
        if self.masked_span_leaves != "keep":
            for start, length in (edges[:, :2].T, edges[:, 2:].T):
                first = roots.offset[window] + start
                kept &= masked_before[first + length] == masked_before[first]
        distances = np.stack(
            [root_distances(self.num_roots, edges[kept & (window == row)][:, ::2]) for row in range(len(examples))]
        )
        self.statistics.update(edges=len(edges), edges_dropped_on_masked_span=int((~kept).sum()))
        return distances

    def _place_windows(self, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """Row and first column of each window of `sizes` nodes, and the shape of the batch."""
        row = np.zeros(len(sizes), dtype=np.int64) if self.layout == "packed" else np.arange(len(sizes))
        start, multiple = np.zeros(len(sizes), dtype=np.int64), self.pad_to_multiple_of or 1
        if self.layout == "compact":
            num_nodes = int(sizes.max())
        elif self.max_nodes_per_row is None:
            start, num_nodes = np.cumsum(sizes) - sizes, int(sizes.sum())
        else:
            row, num_nodes = first_fit_decreasing(sizes, self.max_nodes_per_row), self.max_nodes_per_row
            order = np.argsort(row, kind="stable")
            before = np.cumsum(sizes[order]) - sizes[order]
            start[order] = before - before[np.searchsorted(row[order], row[order])]
        return row, start, (int(row.max()) + 1, -(-num_nodes // multiple) * multiple)

    def _empty(self, grid) -> dict[str, np.ndarray]:
        """A batch of padding; `grid` makes an array of the batch's shape."""
        batch = {
            "input_ids": grid(self.pad_token_id),
            "attention_mask": grid(0),
            "token_type_ids": grid(0),
            "root_index": grid(0),
            "leaf_index": grid(-1),
            "relation_ids": grid(-1),
            "relation_reversed": grid(0),
            "head_start": grid(0),
            "head_length": grid(0),
            "labels": grid(-100),
            "relation_labels": grid(-100),
        }
        if self.layout == "packed":
            batch["graph_ids"] = grid(-1)
        if self.layout == "padded":
            slots = np.arange(self.num_roots * self.leaves_per_root)
            batch["root_index"][:, : self.num_roots] = np.arange(self.num_roots)
            batch["root_index"][:, self.num_roots :] = slots // max(self.leaves_per_root, 1)
            batch["leaf_index"][:, self.num_roots :] = slots % max(self.leaves_per_root, 1)
            batch["token_type_ids"][:, self.num_roots :] = 1
        return batch

    def _add_span_boundaries(self, batch, at_root, covered, grid) -> None:
        """SpanBERT's boundaries: for each masked root the columns beside its run of masked roots, and its place in it."""
        # <s> and </s> are never covered, so a run never crosses windows and always has both neighbours.
        begins = covered & ~np.concatenate([[False], covered[:-1]])
        ends = covered & ~np.concatenate([covered[1:], [False]])
        run = np.cumsum(begins)[covered] - 1
        where = (at_root[0][covered], at_root[1][covered])
        start, end = at_root[1][begins][run], at_root[1][ends][run]
        for name, fill, values in (
            ("span_left", -1, start - 1),
            ("span_right", -1, end + 1),
            ("span_offset", 0, np.minimum(where[1] - start + 1, MAX_WORD_TOKENS)),
        ):
            batch[name] = grid(fill)
            batch[name][where] = values

    def _count(self, examples, roots, covered, facts) -> None:
        self.statistics.update(
            windows=len(examples),
            roots=len(roots.ids),
            roots_masked=int(covered.sum()),
            facts=len(facts.relation),
            facts_dropped_on_masked_span=int((~facts.kept).sum()),
            facts_hidden_on_masked_span=int((facts.relation_hidden & ~facts.relation_target).sum()),
            facts_hidden_as_copies=int((facts.tail_hidden & facts.kept).sum()),
            relations_masked=int(facts.relation_target.sum()),
            tails_masked=int(facts.tail_target.sum()),
            tail_tokens_masked=int(facts.length[facts.tail_target].sum()),
        )


def root_distances(num_roots: int, edges: np.ndarray) -> np.ndarray:
    """Shortest paths between the roots of a chain with further edges.

    A shortest path walks along the chain between ends of edges: Floyd and Warshall's recursion over these ends, begun
    with the chain's own distances, is exact.

    Args:
        num_roots: R.
        edges: int (E, 2), pairs of roots.

    Returns:
        int16 (R, R).
    """
    index = np.arange(num_roots, dtype=np.int16)
    distance = np.abs(index[:, None] - index)
    # Neighbours are joined already.
    edges = edges[np.abs(edges[:, 0] - edges[:, 1]) > 1]
    distance[edges[:, 0], edges[:, 1]] = distance[edges[:, 1], edges[:, 0]] = 1
    for via in np.unique(edges):
        np.minimum(distance, distance[:, via, None] + distance[via], out=distance)
    return distance


def first_fit_decreasing(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """Rows for things of these sizes: the largest first, each into the first row with room.

    At most 11/9 of the fewest rows and two thirds of one more (Dosa 2007).

    Args:
        sizes: int (G,), none above `capacity`.
        capacity: of a row.

    Returns:
        int64 (G,): the row of each, rows numbered from 0.
    """
    rows, room = np.zeros(len(sizes), dtype=np.int64), []
    for index, size in sorted(enumerate(sizes.tolist()), key=lambda item: -item[1]):
        row = next((row for row, free in enumerate(room) if free >= size), len(room))
        if row == len(room):
            room.append(capacity)
        room[row] -= size
        rows[index] = row
    return rows


def _group_starts(keys: np.ndarray) -> np.ndarray:
    """For runs of equal keys, the index at which each element's run starts."""
    index = np.arange(len(keys))
    new = np.ones(len(keys), dtype=bool)
    new[1:] = keys[1:] != keys[:-1]
    return np.maximum.accumulate(np.where(new, index, 0))


class _Roots:
    """All root tokens of a batch, one after the other."""

    def __init__(self, examples: list[dict], sizes: np.ndarray):
        self.size = sizes
        self.offset = np.concatenate([[0], np.cumsum(sizes)])
        self.ids = _concatenate(examples, "input_ids")
        self.word_start = _concatenate(examples, "word_starts")
        self.row = np.repeat(np.arange(len(sizes)), sizes)
        self.column = np.arange(len(self.ids)) - self.offset[self.row]


class _Facts:
    """All facts of a batch, one after the other, with their state; leaf tokens point to their fact."""

    def __init__(self, examples: list[dict], roots: _Roots):
        counts = np.array([len(example["relation"]) for example in examples])
        self.row = np.repeat(np.arange(len(examples)), counts)
        self.position = np.arange(len(self.row)) - np.repeat(np.cumsum(counts) - counts, counts)
        self.head_start = _concatenate(examples, "head_start")
        self.head_length = _concatenate(examples, "head_length")
        self.relation = _concatenate(examples, "relation")
        self.reversed = _concatenate(examples, "reversed")
        self.visible = _concatenate(examples, "visible")
        self.root = _concatenate(examples, "leaf_root")
        self.slot = _concatenate(examples, "leaf_slot")
        self.length = _concatenate(examples, "leaf_length")
        self.leaf_ids = _concatenate(examples, "leaf_ids")
        self.fact_of_leaf = np.repeat(np.arange(len(self.row)), self.length)
        self.first_leaf = np.cumsum(self.length) - self.length
        self.place_in_leaf = np.arange(len(self.leaf_ids)) - np.repeat(self.first_leaf, self.length)
        self.kept = np.ones(len(self.row), dtype=bool)
        self.relation_hidden = np.zeros(len(self.row), dtype=bool)
        self.relation_target = np.zeros(len(self.row), dtype=bool)
        self.tail_target = np.zeros(len(self.row), dtype=bool)
        self.tail_hidden = np.zeros(len(self.row), dtype=bool)
