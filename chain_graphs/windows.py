"""Windows of a chain-graph dataset: what one training example is.

A dataset on disk has one row per file. Here the rows are cut into windows of at most `num_roots` tokens, each window
gets the facts whose anchors fall into it, and each fact its leaf slots. All of it depends on R and L only, so it is done
once, when the dataset is opened; randomness (masking) belongs to the collator.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ..code_graph.schema import RELATION_NAMES
from .layout import Candidates, find_visible, is_extra, place

# Windows that are placed at once: enough to make arrays pay, few enough to keep them small.
CHUNK_WINDOWS = 2048
_SPACE_MARKS = "Ġ▁"
# Windows of single texts are made again and again with one tokenizer.
_canonical_of_tokenizer: WeakKeyDictionary = WeakKeyDictionary()


def canonical_ids(tokenizer) -> np.ndarray:
    """Map each token id to one id for all spellings that differ only in the space in front (`Ġname` and `name`).

    Args:
        tokenizer: a Hugging Face tokenizer.

    Returns:
        int32 array `(len(tokenizer),)`, read-only; the smallest id of each class.
    """
    known = _canonical_of_tokenizer.get(tokenizer)
    if known is not None and len(known) == len(tokenizer):
        return known
    first: dict[str, int] = {}
    result = np.empty(len(tokenizer), dtype=np.int32)
    for index, token in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
        bare = (token or "").lstrip(_SPACE_MARKS) or token
        result[index] = first.setdefault(bare, index)
    result.setflags(write=False)
    _canonical_of_tokenizer[tokenizer] = result
    return result


def cut_windows(num_tokens: int, boundary_token, boundary_depth, max_tokens: int) -> list[tuple[int, int]]:
    """Cut a file into windows that end at definition or statement starts where they can.

    A window ends at the outermost boundary in its second half, the latest of several; without one, where it is full.

    Args:
        num_tokens: tokens of the file.
        boundary_token: sorted token indices of boundaries.
        boundary_depth: depth of each boundary, 0 = top level.
        max_tokens: longest window, in tokens without `<s>` and `</s>`.

    Returns:
        (start, end) token ranges that partition `0 .. num_tokens`.
    """
    if max_tokens < 1:
        raise ValueError(f"a window needs room for at least one token besides <s> and </s>, got {max_tokens}")
    tokens = np.asarray(boundary_token)
    depths = np.asarray(boundary_depth)
    windows, start = [], 0
    while num_tokens - start > max_tokens:
        low, high = np.searchsorted(tokens, (start + max_tokens // 2, start + max_tokens), side="right")
        if high > low:
            segment = depths[low:high]
            end = int(tokens[low + len(segment) - 1 - int(np.argmin(segment[::-1]))])
        else:
            end = start + max_tokens
        windows.append((start, end))
        start = end
    if num_tokens > start:
        windows.append((start, num_tokens))
    return windows


def _flat_column(dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A list column as (offsets of rows, values), over all its chunks."""
    column = dataset.data.column(name)
    values, offsets, total = [], [np.zeros(1, dtype=np.int64)], 0
    for chunk in column.chunks:
        bounds = chunk.offsets.to_numpy().astype(np.int64)
        values.append(chunk.values.to_numpy(zero_copy_only=False)[bounds[0] : bounds[-1]])
        offsets.append(bounds[1:] - bounds[0] + total)
        total += int(bounds[-1] - bounds[0])
    # Lists that are all empty may have no type.
    return np.concatenate(offsets), np.concatenate(values) if total else np.zeros(0, dtype=np.int32)


def check_relations(exclude_relations: Sequence[str], edge_relations: Sequence[str]) -> None:
    """Refuse relations that do not exist, or that are both left out and edges.

    Raises:
        ValueError: names the relation.
    """
    for option, names in (("exclude_relations", exclude_relations), ("edge_relations", edge_relations)):
        unknown = [name for name in names if name not in RELATION_NAMES]
        if unknown:
            raise ValueError(f"{option} names {unknown[0]!r}; the relations are {', '.join(RELATION_NAMES)}")
    both = [name for name in edge_relations if name in exclude_relations]
    if both:
        raise ValueError(f"{both[0]} is in exclude_relations and in edge_relations: leave it out of one of them")


class WindowDataset(Dataset):
    """The windows of one split as sparse leafy chain graphs, a map-style torch dataset.

    Args:
        dataset: one split written by `python -m graphmert.chain_graphs.build` (a `datasets.Dataset`).
        tokenizer: the dataset's tokenizer.
        num_roots: R, the most roots of a window, `<s>` and `</s>` included.
        leaves_per_root: L, the leaf slots of each root; 0 leaves the graph out.
        include_uses: take facts that hang on uses of a name whose definition is elsewhere.
        include_site_anchors: take anchors at the tail's place, which carry the owner's name.
        exclude_relations: names of relations whose facts are left out.
        edge_relations: names of relations whose facts become edges between roots, from the first root of the head to the
            first of the tail, where both stand in the window; there such a fact has no leaf, elsewhere it has.
        max_windows: keep only so many windows, evenly spread over the split.
        progress: show a progress bar on a terminal while the windows are cut.

    Each item is a dict of numpy arrays: `input_ids` `(n,)` with `<s>` and `</s>`, `word_starts` `(n,)`, and for its M
    placed facts, ordered by root and slot, `head_start`, `head_length`, `relation`, `reversed`, `visible`, `leaf_root`,
    `leaf_slot`, `leaf_length` `(M,)` and `leaf_ids` (their tokens one after the other); also the ints `index` and
    `epoch`, from which the collator derives all its randomness. With `edge_relations` (and a graph) there is `edges`
    `(E, 4)` too: start and length of both spans, in root indices, each pair of spans once.

    Raises:
        ValueError: R or L out of range, a relation that does not exist or is both left out and an edge, or a split without
            a single token.
    """

    # For a run with a head memory: the project of each file, and the fold of each (`known_heads.folds_of`), which items then
    # have.
    projects: Sequence[str] | None = None
    file_fold: np.ndarray | None = None

    def __init__(
        self,
        dataset,
        tokenizer,
        num_roots: int = 128,
        leaves_per_root: int = 7,
        include_uses: bool = True,
        include_site_anchors: bool = True,
        max_windows: int | None = None,
        progress: bool = False,
        exclude_relations: Sequence[str] = (),
        edge_relations: Sequence[str] = (),
    ):
        if num_roots < 3:
            raise ValueError(f"num_roots must be at least 3 (<s>, one token, </s>), got {num_roots}")
        if leaves_per_root < 0:
            raise ValueError(f"leaves_per_root must be 0 or more, got {leaves_per_root}")
        check_relations(exclude_relations, edge_relations)
        self.num_roots, self.leaves_per_root = num_roots, leaves_per_root
        self._excluded = [RELATION_NAMES.index(name) for name in exclude_relations]
        # Without leaf slots there is no graph, edges included.
        self._as_edges = [RELATION_NAMES.index(name) for name in edge_relations if leaves_per_root]
        self.include_uses, self.include_site_anchors = include_uses, include_site_anchors
        self._bos, self._eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        if self._bos is None or self._eos is None:
            self._bos, self._eos = tokenizer.cls_token_id, tokenizer.sep_token_id
        self._canonical = canonical_ids(tokenizer)
        # In shared memory, so that the value reaches DataLoader workers that are already running.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

        self._token_offsets, self._tokens = _flat_column(dataset, "input_ids")
        if len(self._tokens) == 0:
            raise ValueError("the split holds no token: was the dataset built from an empty source?")
        if int(self._tokens.max()) >= len(self._canonical):
            raise ValueError(
                f"the dataset holds token id {int(self._tokens.max())}, but the tokenizer has only {len(self._canonical)} "
                "entries; open the dataset with the tokenizer that it was built with"
            )
        self._word_starts = _flat_column(dataset, "word_starts")[1]
        self._cut(dataset, max_windows)
        self._place_all(dataset, progress)

    def _cut(self, dataset, max_windows: int | None) -> None:
        offsets, tokens = _flat_column(dataset, "boundary_token")
        depths = _flat_column(dataset, "boundary_depth")[1]
        files, ranges = [], []
        for number in range(len(self._token_offsets) - 1):
            part = slice(offsets[number], offsets[number + 1])
            num_tokens = int(self._token_offsets[number + 1] - self._token_offsets[number])
            windows = cut_windows(num_tokens, tokens[part], depths[part], self.num_roots - 2)
            files.extend([number] * len(windows))
            ranges.extend(windows)
        chosen = np.arange(len(files))
        if max_windows is not None and max_windows < len(files):
            chosen = np.linspace(0, len(files) - 1, max_windows).astype(np.int64)
        self.file_index = np.array(files, dtype=np.int32)[chosen]
        self.token_range = np.array(ranges, dtype=np.int64).reshape(-1, 2)[chosen]

    def _place_all(self, dataset, progress: bool) -> None:
        anchors = self._anchors(dataset)
        leaf_tokens = _flat_column(dataset, "leaf_ids")[1]
        canonical_leaves, canonical_tokens = self._canonical[leaf_tokens], self._canonical[self._tokens]
        num_windows = len(self.file_index)
        begins = self._token_offsets[self.file_index] + self.token_range[:, 0]
        ends = begins + self.token_range[:, 1] - self.token_range[:, 0]
        counts = Counter()
        facts, leaves, edges = [], [], []
        fact_counts, token_counts, edge_counts = np.zeros((3, num_windows + 1), dtype=np.int64)
        for low in tqdm(
            range(0, num_windows, CHUNK_WINDOWS), desc="placing facts", disable=None if progress else True, leave=False
        ):
            window_begin, window_end = begins[low : low + CHUNK_WINDOWS], ends[low : low + CHUNK_WINDOWS]
            taken = anchors.between(int(window_begin[0]), int(window_end[-1]))
            window = np.searchsorted(window_begin, taken.token, side="right") - 1
            # With `max_windows` there is text between the windows.
            taken, window = taken.where(taken.token < window_end[window]), window[taken.token < window_end[window]]
            inside = taken.token + taken.length <= window_end[window]
            counts["outside"] += int(np.count_nonzero(~inside))
            keep = inside & (self.include_uses | ~taken.is_use) & (self.include_site_anchors | ~taken.reversed)
            keep &= ~np.isin(taken.relation, self._excluded)
            if self._as_edges:
                found, has_edge = self._edges_among(taken, window, inside, window_begin, window_end)
                edges.append(found[:, 1:].astype(np.int32))
                edge_counts[low + 1 : low + 1 + len(window_begin)] = np.bincount(
                    found[:, 0], minlength=len(window_begin)
                )
                counts["facts_as_edges"] += len(np.unique(_fact_keys(taken, window)[has_edge]))
                keep &= ~has_edge
            taken, window = taken.where(keep), window[keep]
            start, end = window_begin[window], window_end[window]
            shown = (taken.leaf_begin, taken.leaf_length, canonical_leaves, window)
            candidates = Candidates(
                window=window,
                fact=taken.fact,
                # Root 0 is <s>.
                start=taken.token - start + 1,
                length=taken.length,
                relation=taken.relation,
                reversed=taken.reversed,
                visible=find_visible(*shown, canonical_tokens, window_begin, window_end),
                extra=is_extra(
                    taken.relation, taken.reversed, taken.site >= 0, (start <= taken.site) & (taken.site < end)
                ),
                leaf_begin=taken.leaf_begin,
                leaf_length=taken.leaf_length,
            )
            placed = place(candidates, leaf_tokens, self.leaves_per_root)
            chosen = Candidates(*(column[placed.candidate] for column in candidates))
            columns = (chosen.start, chosen.length, chosen.relation, chosen.reversed, chosen.visible)
            facts.append(np.stack([*columns, placed.root, placed.slot, placed.num_tokens], axis=1).astype(np.int32))
            leaves.append(leaf_tokens[_spans(chosen.leaf_begin, placed.num_tokens)])
            here = len(window_begin)
            fact_counts[low + 1 : low + 1 + here] = np.bincount(chosen.window, minlength=here)
            np.add.at(token_counts, low + 1 + chosen.window, placed.num_tokens)
            counts["facts"] += len(placed.candidate) + placed.num_dropped
            counts["dropped"] += placed.num_dropped
            counts["extras_dropped"] += placed.num_extras_dropped
            counts["cut"] += int(np.count_nonzero(placed.num_tokens < chosen.leaf_length))
            counts["extras"] += int(np.count_nonzero(chosen.extra))

        counts["without_fact"] = int(np.count_nonzero(fact_counts[1:] == 0))
        self._counts = counts
        self._fact_offsets = np.cumsum(fact_counts)
        self._leaf_offsets = np.cumsum(token_counts)
        self._facts = np.concatenate(facts)
        self._leaf_ids = np.concatenate(leaves).astype(np.int32)
        if self._as_edges:
            self._edge_offsets, self._edges = np.cumsum(edge_counts), np.concatenate(edges)
        self.lengths = (self.token_range[:, 1] - self.token_range[:, 0]) + 2 + token_counts[1:]

    def _edges_among(self, taken: "_Anchors", window, inside, window_begin, window_end):
        """Edges between the heads and tails of facts that stand in their windows.

        Args:
            taken: anchors.
            window: int (anchors,), the window of each.
            inside: bool (anchors,), whether its span ends in it.
            window_begin, window_end: int (windows,), tokens of each window.

        Returns:
            int64 (edges, 5): window, and start and length of both spans in root indices; bool (anchors,): whether the
            anchor's fact has an edge in the window.
        """
        head, start = taken.head, window_begin[window]
        # An anchor at the tail knows where its head stands. Ends that share their first token make no edge.
        joins = inside & taken.reversed & np.isin(taken.relation, self._as_edges) & (head != taken.token)
        joins &= (head >= start) & (head + taken.head_length <= window_end[window])
        joins &= self.include_uses | ~taken.is_use
        columns = (window, head - start + 1, taken.head_length, taken.token - start + 1, taken.length)
        edges = np.unique(np.stack([column[joins] for column in columns], axis=1).astype(np.int64), axis=0)
        fact = _fact_keys(taken, window)
        return edges, np.isin(fact, fact[joins])

    def _anchors(self, dataset) -> "_Anchors":
        """The anchors of all files, in the order of the text."""
        offsets, start = _flat_column(dataset, "anchor_start")
        file = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        relation = _flat_column(dataset, "anchor_relation")[1]
        is_reversed = _flat_column(dataset, "anchor_reversed")[1].astype(bool)
        row_offsets, bounds = _flat_column(dataset, "leaf_offsets")
        # A row has one bound more than anchors.
        begin = np.delete(bounds, row_offsets[1:] - 1).astype(np.int64) if len(bounds) else bounds
        end = np.delete(bounds, row_offsets[:-1]).astype(np.int64) if len(bounds) else bounds
        token = start + self._token_offsets[file]
        # Where each triple's tail stands, if the anchors at the tails' places are taken. Triples are numbered by file.
        triple = _flat_column(dataset, "anchor_triple")[1].astype(np.int64) + offsets[file]
        site = np.full(int(triple.max(initial=-1)) + 1, -1, dtype=np.int64)
        if self.include_site_anchors:
            site[triple[is_reversed]] = token[is_reversed]
        length = _flat_column(dataset, "anchor_length")[1]
        # Where each triple's head stands, if that matters.
        head = np.full(len(site), -1, dtype=np.int64)
        head_length = np.zeros(len(site), dtype=np.int64)
        if self._as_edges:
            head[triple[~is_reversed]], head_length[triple[~is_reversed]] = token[~is_reversed], length[~is_reversed]
        return _Anchors(
            token=token,
            length=length,
            relation=relation,
            reversed=is_reversed,
            fact=_flat_column(dataset, "anchor_fact")[1],
            is_use=_flat_column(dataset, "anchor_is_use")[1].astype(bool),
            site=site[triple],
            head=head[triple],
            head_length=head_length[triple],
            leaf_begin=begin + _flat_column(dataset, "leaf_ids")[0][file],
            leaf_length=end - begin,
        )

    def __len__(self) -> int:
        return len(self.file_index)

    def tokens(self) -> np.ndarray:
        """All tokens of the windows, one window after the other, without `<s>` and `</s>`: int32 `(tokens,)`."""
        bases = self._token_offsets[self.file_index]
        return np.concatenate([self._tokens[b + s : b + e] for b, (s, e) in zip(bases, self.token_range, strict=True)])

    def heads(self) -> dict[str, np.ndarray]:
        """What all placed facts hang on, one window after the other.

        Returns:
            `window`, `relation`, `reversed`, `length` of the head, and `first`, the tail's first token, the same for all
            spellings with and without a space in front: int64 `(facts,)`; and for each token of a head `fact`, `place` in
            the head and its id `token`: int64 `(tokens,)`.
        """
        window = np.repeat(np.arange(len(self)), np.diff(self._fact_offsets))
        start, length, relation, reversed_ = self._facts[:, :4].astype(np.int64).T
        # Root 0 is <s>.
        begin = self._token_offsets[self.file_index[window]] + self.token_range[window, 0] + start - 1
        fact = np.repeat(np.arange(len(window)), length)
        place = np.arange(len(fact)) - np.repeat(np.cumsum(length) - length, length)
        last = np.cumsum(self._facts[:, 7].astype(np.int64))
        return {
            "window": window,
            "first": self._canonical[self._leaf_ids[last - self._facts[:, 7]]].astype(np.int64),
            "relation": relation,
            "reversed": reversed_,
            "length": length,
            "fact": fact,
            "place": place,
            "token": self._tokens[begin[fact] + place].astype(np.int64),
        }

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the collator's masks are drawn for; reaches live DataLoader workers."""
        self._epoch.fill_(int(epoch))

    def __getitem__(self, index: int) -> dict:
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        index %= len(self)
        base = self._token_offsets[self.file_index[index]]
        start, end = base + self.token_range[index]
        input_ids = np.empty(end - start + 2, dtype=np.int32)
        input_ids[0], input_ids[1:-1], input_ids[-1] = self._bos, self._tokens[start:end], self._eos
        words = np.ones(end - start + 2, dtype=np.int8)
        words[1:-1] = self._word_starts[start:end]
        # A window may begin inside a word.
        words[1] = 1
        facts = self._facts[self._fact_offsets[index] : self._fact_offsets[index + 1]]
        edges = {}
        if self._as_edges:
            edges["edges"] = self._edges[self._edge_offsets[index] : self._edge_offsets[index + 1]]
        fold = {} if self.file_fold is None else {"fold": int(self.file_fold[self.file_index[index]])}
        return {
            "index": index,
            "epoch": int(self._epoch),
            "input_ids": input_ids,
            "word_starts": words,
            "head_start": facts[:, 0],
            "head_length": facts[:, 1],
            "relation": facts[:, 2],
            "reversed": facts[:, 3],
            "visible": facts[:, 4],
            "leaf_root": facts[:, 5],
            "leaf_slot": facts[:, 6],
            "leaf_length": facts[:, 7],
            "leaf_ids": self._leaf_ids[self._leaf_offsets[index] : self._leaf_offsets[index + 1]],
            **edges,
            **fold,
        }

    def statistics(self) -> dict:
        """Counts of what the windows hold and of what did not fit.

        Returns:
            `windows`, `roots`, `leaves`, `nodes_per_window` (mean), `facts` (distinct facts with a place in the window),
            `facts_placed`, `facts_cut`, `facts_dropped_for_room`, `extras_placed` (among the placed: facts whose own
            place is in another window), `extras_without_room` (not among `facts`), `anchors_across_window_edge`,
            `windows_without_fact` (without a leaf), `canonical_slots_used` (share of R(1+L)), `leaves_used` (histogram of
            used slots of roots that have any), `facts_as_edges` (not among `facts`: those with an edge in place of a leaf),
            `edges`, and `relations`: placed facts by relation with the share whose leaf stands in the window.
        """
        lengths = self._facts[:, 7].astype(np.int64)
        window_of = np.repeat(np.arange(len(self)), np.diff(self._fact_offsets))
        per_root = np.zeros(len(self) * self.num_roots, dtype=np.int64)
        np.add.at(per_root, window_of * self.num_roots + self._facts[:, 5], lengths)
        num_roots = int((self.token_range[:, 1] - self.token_range[:, 0] + 2).sum())
        relations = {}
        for relation, name in enumerate(RELATION_NAMES):
            visible = self._facts[self._facts[:, 2] == relation, 4]
            relations[name] = {"facts": len(visible), "visible": float(visible.mean()) if len(visible) else None}
        return {
            "windows": len(self),
            "roots": num_roots,
            "leaves": len(self._leaf_ids),
            "nodes_per_window": float(self.lengths.mean()),
            "facts": self._counts["facts"],
            "facts_placed": len(self._facts),
            "facts_cut": int(self._counts["cut"]),
            "facts_dropped_for_room": int(self._counts["dropped"]),
            "extras_placed": int(self._counts["extras"]),
            "extras_without_room": int(self._counts["extras_dropped"]),
            "anchors_across_window_edge": int(self._counts["outside"]),
            "windows_without_fact": int(self._counts["without_fact"]),
            "canonical_slots_used": float(
                self.lengths.sum() / (len(self) * self.num_roots * (1 + self.leaves_per_root))
            ),
            "facts_as_edges": int(self._counts["facts_as_edges"]),
            "edges": len(self._edges) if self._as_edges else 0,
            "leaves_used": np.bincount(per_root[per_root > 0], minlength=self.leaves_per_root + 1)[1:].tolist(),
            "relations": relations,
        }


class _Anchors(NamedTuple):
    """Anchors as the dataset stores them, an element of each array for each; tokens are counted through all files."""

    token: np.ndarray
    length: np.ndarray
    relation: np.ndarray
    reversed: np.ndarray
    fact: np.ndarray
    is_use: np.ndarray
    site: np.ndarray
    head: np.ndarray
    head_length: np.ndarray
    leaf_begin: np.ndarray
    leaf_length: np.ndarray

    def between(self, low: int, high: int) -> "_Anchors":
        """Those that begin at the tokens from `low` to `high` - 1."""
        bounds = slice(*np.searchsorted(self.token, (low, high)))
        return _Anchors(*(column[bounds] for column in self))

    def where(self, chosen: np.ndarray) -> "_Anchors":
        return _Anchors(*(column[chosen] for column in self))


def _fact_keys(anchors: _Anchors, window: np.ndarray) -> np.ndarray:
    """One number for each fact of each window: int64 (anchors,)."""
    return (window.astype(np.int64) << 32) | anchors.fact


def _spans(begin: np.ndarray, length: np.ndarray) -> np.ndarray:
    """The indices begin .. begin + length - 1 of each span, one span after the other."""
    return np.arange(length.sum()) - np.repeat(np.cumsum(length) - length - begin, length)
