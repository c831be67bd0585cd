"""Linking, window cutting, leaf placement: hand-written cases, and invariants over a real corpus slice."""

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from naive_layout import Candidate, Placed, stands_in
from naive_layout import place as naive_place
from tiny import TEXT, tiny_tokenizer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from graphmert.chain_graphs import layout
from graphmert.chain_graphs.linking import ROW_COLUMNS, LeafEncoder, link_file
from graphmert.chain_graphs.windows import WindowDataset, canonical_ids, cut_windows

CODE = "def load(path):\n    return parse(path)\n"


def triple(head, relation, tail, text=CODE, head_at=0, tail_at=0, is_use=False):
    """A triple whose spans are the `*_at`-th occurrences of its names; `tail_at=None` leaves the tail out of the text."""

    def find(name, count):
        position = -1
        for _ in range(count + 1):
            position = text.index(name, position + 1)
        return position, position + len(name)

    head_start, head_end = find(head, head_at)
    tail_start, tail_end = (None, None) if tail_at is None else find(tail, tail_at)
    return SimpleNamespace(
        head=head, head_start=head_start, head_end=head_end, relation=relation, is_use=is_use,
        tail=tail, tail_start=tail_start, tail_end=tail_end,
    )  # fmt: skip


def graph(*triples, boundaries=((0, 0),)):
    return SimpleNamespace(triples=list(triples), boundaries=list(boundaries))


def test_link_file_hangs_each_triple_at_both_ends():
    tokenizer = tiny_tokenizer()
    row, stats = link_file(
        CODE, graph(triple("load", "has_parameter", "path"), triple("load", "calls", "parse")), tokenizer
    )
    assert {name: array.dtype for name, array in row.items()} == {name: np.dtype(t) for name, t in ROW_COLUMNS.items()}
    texts = []
    for start, length in zip(row["anchor_start"], row["anchor_length"], strict=True):
        texts.append(CODE[row["char_starts"][start] : row["char_ends"][start + length - 1]].strip())
    leaves = [
        tokenizer.decode(row["leaf_ids"][a:b]).strip()
        for a, b in zip(row["leaf_offsets"], row["leaf_offsets"][1:], strict=False)
    ]
    found = set(zip(texts, row["anchor_relation"].tolist(), row["anchor_reversed"].tolist(), leaves, strict=True))
    assert found == {("load", 7, 0, "path"), ("path", 7, 1, "load"), ("load", 0, 0, "parse"), ("parse", 0, 1, "load")}
    assert stats["triples"] == stats["triples_linked"] == stats["heads_linked"] == 2 and stats["anchors"] == 4
    assert stats["anchors_straddling"] == 0 and stats["tokens"] == len(row["input_ids"])
    assert (np.diff(row["anchor_start"]) >= 0).all()


def test_link_file_counts_names_that_straddle_tokens_and_keeps_them():
    # This tokenizer knows " path" and "path", so a span inside a word is what straddles.
    inner = triple("pat", "flows_to", "parse")
    _, stats = link_file(CODE, graph(inner), tiny_tokenizer())
    assert stats["anchors"] == 2 and stats["anchors_straddling"] == 1 and stats["triples_linked"] == 1


@pytest.mark.parametrize(
    ("language", "code", "name", "tokens", "straddling"),
    [
        ("php", "f($path, 1)", "$path", ["path"], 0),
        ("ruby", "load.parse!(path)", "parse!", ["parse"], 0),
        ("javascript", "f('./path')", "./path", ["path"], 0),
        ("java", "load<?> path", "load<?>", ["load"], 0),
        # The sign beside it is its own, or the name has nothing but signs, or the token holds letters of it.
        ("php", "f( $path )", "$path", ["$", "path"], 0),
        ("php", "x(+)", "+", ["(+)"], 1),
        ("php", "f(pathology)", "path", ["pathology"], 1),
        # Python's anchors are the tokens that overlap the name.
        ("python", "f($path, 1)", "$path", ["($", "path"], 1),
    ],
)
def test_signs_that_share_a_token_with_others_are_no_part_of_an_anchor(language, code, name, tokens, straddling):
    tokenizer = Signs()
    row, stats = link_file(
        code, graph(triple(name, "flows_to", "value", tail_at=None, text=code)), tokenizer, language=language
    )
    start = row["anchor_start"][0]
    spans = range(start, start + row["anchor_length"][0])
    assert [code[row["char_starts"][i] : row["char_ends"][i]].strip() for i in spans] == tokens
    assert stats["anchors"] == 1 and stats["anchors_straddling"] == straddling


class Signs:
    """A tokenizer of whole words and whole runs of signs."""

    is_fast = True

    def __init__(self):
        backend = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]+ ?|\s"), behavior="isolated")
        self.backend_tokenizer = backend


def test_link_file_offsets_hold_for_text_beyond_ascii():
    code = 's = "naïve — 中文 😀"\nvalue = s\n'
    row, _ = link_file(code, graph(triple("s", "flows_to", "value", text=code)), tiny_tokenizer())
    for start, length, is_reversed in zip(
        row["anchor_start"], row["anchor_length"], row["anchor_reversed"], strict=True
    ):
        text = code[row["char_starts"][start] : row["char_ends"][start + length - 1]].strip()
        assert text == ("value" if is_reversed else "s")


def test_word_starts_join_the_pieces_of_an_identifier():
    row, _ = link_file("load_file(x)\nabcdefghijklmnop\n", graph(), tiny_tokenizer())
    pieces = [
        "load_file(x)\nabcdefghijklmnop\n"[a:b] for a, b in zip(row["char_starts"], row["char_ends"], strict=True)
    ]
    words, starts = [], row["word_starts"].tolist()
    for piece, start in zip(pieces, starts, strict=True):
        if start:
            words.append("")
        words[-1] += piece
    assert words[:4] == ["load_file", "(", "x", ")"]
    # A long word is cut into pieces of at most seven tokens.
    assert max(np.diff(np.flatnonzero(np.append(starts, 1)))) <= 7


def test_leaf_encoder_gives_the_word_after_a_space():
    tokenizer = tiny_tokenizer()
    encode = LeafEncoder(tokenizer)
    assert tokenizer.convert_ids_to_tokens(encode("child")) == ["Ġchild"]
    # Where the tokenizer keeps the space apart, the space is left out.
    assert tokenizer.convert_ids_to_tokens(tokenizer(" path", add_special_tokens=False)["input_ids"]) == ["Ġ", "path"]
    assert tokenizer.convert_ids_to_tokens(encode("path")) == ["path"]


def test_canonical_ids_join_spellings_with_and_without_space():
    tokenizer = tiny_tokenizer()
    canonical = canonical_ids(tokenizer)
    bare, spaced = tokenizer.convert_tokens_to_ids(["walk", "Ġwalk"])
    assert tokenizer.unk_token_id not in (bare, spaced) and bare != spaced and canonical[bare] == canonical[spaced]
    assert (
        len(set(canonical)) < len(canonical) and canonical[tokenizer.convert_tokens_to_ids("Ġ")] not in canonical[5:9]
    )


def test_cut_windows_prefers_outer_then_late_boundaries():
    assert cut_windows(25, [0, 6, 8, 9, 17], [0, 1, 0, 2, 2], 10) == [(0, 8), (8, 17), (17, 25)]
    assert cut_windows(10, [0], [0], 10) == [(0, 10)]
    assert cut_windows(0, [], [], 10) == []
    # No boundary in reach: cut where the window is full.
    assert cut_windows(25, [0, 3], [0, 0], 10) == [(0, 10), (10, 20), (20, 25)]
    with pytest.raises(ValueError, match="at least one token"):
        cut_windows(5, [], [], 0)


@pytest.mark.parametrize("seed", range(20))
def test_cut_windows_partition_the_file(seed):
    rng = np.random.default_rng(seed)
    size, limit = int(rng.integers(1, 500)), int(rng.integers(1, 60))
    boundaries = np.unique(rng.integers(0, size, 40))
    windows = cut_windows(size, boundaries, rng.integers(0, 4, len(boundaries)), limit)
    assert windows[0][0] == 0 and windows[-1][1] == size
    assert all(a[1] == b[0] for a, b in pairwise(windows))
    assert all(0 < end - start <= limit for start, end in windows)


def candidate(fact, start, leaf, relation=5, length=1, is_reversed=0, visible=False, extra=False):
    return Candidate(fact, start, length, relation, is_reversed, visible, extra, leaf)


def place_windows(windows, leaves_per_root):
    """`layout.place` on lists of candidates, one for each window: placed facts of each window, and numbers dropped."""
    every = [(number, item) for number, window in enumerate(windows) for item in window]
    sizes = np.array([len(item.leaf) for _, item in every], dtype=np.int64)
    names = ("fact", "start", "length", "relation", "reversed", "visible", "extra")
    columns = {name: np.array([getattr(item, name) for _, item in every], dtype=np.int64) for name in names}
    candidates = layout.Candidates(
        window=np.array([number for number, _ in every], dtype=np.int64),
        **columns,
        leaf_begin=np.cumsum(sizes) - sizes,
        leaf_length=sizes,
    )
    tokens = np.array([token for _, item in every for token in item.leaf], dtype=np.int32)
    found = layout.place(candidates, tokens, leaves_per_root)
    placed = [[] for _ in windows]
    for index, *where in zip(*(column.tolist() for column in found[:4]), strict=True):
        placed[every[index][0]].append(Placed(every[index][1], *where))
    return placed, found.num_dropped, found.num_extras_dropped


def place(candidates, leaves_per_root):
    """One window placed, the same in arrays as in plain Python."""
    [placed], *dropped = place_windows([candidates], leaves_per_root)
    assert (placed, *dropped) == naive_place(candidates, leaves_per_root)
    return placed, *dropped


@pytest.mark.parametrize("seed", range(4))
def test_many_windows_at_once_are_placed_as_one_by_one(seed):
    rng = np.random.default_rng(seed)

    def random_candidate(_):
        # Few starts, relations and tokens, so that facts compete and leaves begin alike.
        leaf = [0] * int(rng.integers(0, 9)) + [int(rng.integers(2))]
        fact, start, length, relation = (int(rng.integers(*bounds)) for bounds in ((0, 30), (1, 4), (1, 4), (6, 9)))
        return Candidate(fact, start, length, relation, *(bool(rng.integers(4) == 0) for _ in range(3)), leaf)

    windows = [list(map(random_candidate, range(rng.integers(0, 50)))) for _ in range(60)]
    for leaves_per_root in (1, 3, 7):
        placed, *dropped = place_windows(windows, leaves_per_root)
        expected = [naive_place(window, leaves_per_root) for window in windows]
        assert placed == [one[0] for one in expected]
        assert dropped == [sum(one[1] for one in expected), sum(one[2] for one in expected)]
    assert min(dropped) > 0


def test_leaves_that_stand_in_their_windows():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4, 400)
    ends = np.sort(rng.choice(np.arange(1, 401), 20, replace=False))
    begins = np.concatenate([[0], ends[:-1]]) + rng.integers(0, 2, 20)
    leaves = [rng.integers(0, 4, rng.integers(0, 6)) for _ in range(600)]
    window = rng.integers(0, 20, len(leaves))
    sizes = np.array(list(map(len, leaves)))
    found = layout.find_visible(
        np.cumsum(sizes) - sizes, sizes, np.concatenate(leaves), window, tokens, begins, ends
    ).tolist()
    expected = [
        stands_in(leaf.tolist(), tokens[begins[number] : ends[number]].tolist())
        for leaf, number in zip(leaves, window, strict=True)
    ]
    assert found == expected and 100 < sum(expected) < 500


def rooms(placed):
    """Fact, root and number of slots of each placed leaf."""
    return {(item.candidate.fact, item.root, item.num_tokens) for item in placed}


def test_place_takes_the_first_root_with_room_and_cuts_or_drops_the_rest():
    first = candidate(0, 1, [1, 2], length=2)
    second = candidate(1, 1, [3, 4], length=2)
    third = candidate(2, 1, [5, 6], length=2)
    fourth = candidate(3, 1, [7], length=2)
    fifth = candidate(4, 1, [8], length=2)
    placed, dropped, _ = place([first, second, third, fourth, fifth], leaves_per_root=3)
    # The one-token leaf finds room beside the first before the third is cut to what is left.
    assert rooms(placed) == {(0, 1, 2), (2, 1, 1), (1, 2, 2), (3, 2, 1)}
    # The slots of a root are filled without gaps, in any order.
    assert [item.slot for item in placed] == [0, placed[0].num_tokens, 0, placed[2].num_tokens]
    assert dropped == 1


def test_place_prefers_facts_that_the_window_does_not_show():
    shown = [candidate(i, 1, [i], visible=True) for i in range(3)]
    hidden = candidate(9, 1, [7, 8])
    placed, dropped, _ = place([*shown, hidden], leaves_per_root=3)
    assert {item.candidate.fact for item in placed} == {9, 0} and dropped == 2


def test_place_takes_one_anchor_of_a_fact():
    # A parameter (many per function) hangs on its own place and carries the function's name ...
    at_function, at_parameter = candidate(0, 1, [9], relation=7), candidate(0, 4, [8], relation=7, is_reversed=1)
    assert place([at_function, at_parameter], 7) == ([Placed(at_parameter, 4, 0, 1)], 0, 0)
    # ... a type (one per name) hangs on the name and carries the type.
    at_name, at_type = candidate(0, 1, [9], relation=5), candidate(0, 4, [8], relation=5, is_reversed=1)
    assert place([at_type, at_name], 7) == ([Placed(at_name, 1, 0, 1)], 0, 0)
    # Without room at the preferred place it goes to the other.
    full = candidate(1, 4, [1] * 7, relation=5)
    assert Placed(at_function, 1, 0, 1) in place([full, at_function, at_parameter], 7)[0]


def test_place_gives_extras_only_room_that_is_left():
    extras = [candidate(i, 1, [i, i], relation=0, extra=True) for i in range(2)]
    own = candidate(9, 1, [7, 8], relation=2, visible=True)
    placed, dropped, extras_dropped = place([*extras, own], leaves_per_root=4)
    assert {item.candidate.fact for item in placed} == {9, 0} and (dropped, extras_dropped) == (0, 1)


def test_place_drops_extras_rather_than_cut_them():
    own = candidate(0, 1, [1, 2])
    extra = candidate(1, 1, [3, 4], extra=True)
    assert place([own, extra], leaves_per_root=3) == ([Placed(own, 1, 0, 2)], 0, 1)
    assert rooms(place([own, extra], leaves_per_root=4)[0]) == {(0, 1, 2), (1, 1, 2)}


def test_the_order_of_leaves_tells_nothing_of_relations_and_words():
    # In the order of placing, a leaf whose relation or words are hidden would have them betrayed by its neighbours.
    rng = np.random.default_rng(0)
    orders = Counter()
    for number in range(400):
        facts = list(range(3 * number, 3 * number + 3))

        def order_of(facts=facts):
            leaves, visible = rng.integers(4, size=(3, 1)).tolist(), rng.integers(0, 2, 3).tolist()
            candidates = [
                candidate(fact, 1, leaf, relation=int(rng.integers(12)), visible=bool(shown))
                for fact, leaf, shown in zip(facts, leaves, visible, strict=True)
            ]
            return tuple(item.candidate.fact - facts[0] for item in place(candidates, 7)[0])

        first = order_of()
        assert all(order_of() == first for _ in range(5))
        orders[first] += 1
    # Nor of the order in the text, which the numbers of facts follow: 400 / 6 = 67 of each are expected.
    assert len(orders) == 6 and min(orders.values()) > 40


def test_place_takes_the_anchor_whose_leaf_fits():
    # has_parameter prefers the parameter's place, but the function's name is longer than a root has slots.
    at_parameter = candidate(0, 4, [1, 2, 3, 4], relation=7, is_reversed=1)
    at_function = candidate(0, 1, [5], relation=7, visible=True)
    assert place([at_parameter, at_function], 3) == ([Placed(at_function, 1, 0, 1)], 0, 0)
    assert place([at_parameter, at_function], 4) == ([Placed(at_parameter, 4, 0, 4)], 0, 0)


def test_place_gives_leaves_that_are_cut_anyway_the_room_of_the_others_last():
    long = candidate(0, 1, [1, 2, 3, 4])
    short = candidate(1, 1, [5], visible=True)
    placed, *dropped = place([long, short], 3)
    assert rooms(placed) == {(1, 1, 1), (0, 1, 2)} and dropped == [0, 0]


def test_a_fact_with_its_place_in_another_window_is_an_extra():
    text = "def load():\n" + "    x = 1\n" * 30 + "    return parse(x)\n"
    row, _ = link_file(text, graph(triple("load", "calls", "parse", text=text)), tiny_tokenizer())
    windows = WindowDataset(stored(row), tiny_tokenizer(), num_roots=60)
    placed = [(i, rev) for i in range(len(windows)) for rev in windows[i]["reversed"].tolist()]
    assert len(windows) > 1 and placed == [(0, 0), (len(windows) - 1, 1)]
    assert windows.statistics()["extras_placed"] == 1
    alone = WindowDataset(stored(row), tiny_tokenizer(), num_roots=60, include_site_anchors=False)
    assert alone.statistics()["extras_placed"] == 0 and alone.statistics()["facts_placed"] == 1


def test_place_cuts_a_leaf_longer_than_all_slots():
    assert place([candidate(0, 2, list(range(9)))], 7)[0][0].num_tokens == 7


def stored(*rows) -> datasets.Dataset:
    return datasets.Dataset.from_list([{name: array.tolist() for name, array in row.items()} for row in rows])


def test_window_dataset_item_is_the_expected_one():
    row, _ = link_file(
        CODE,
        graph(triple("load", "has_parameter", "path"), triple("path", "has_type", "str", tail_at=None)),
        tiny_tokenizer(),
    )
    windows = WindowDataset(stored(row), tiny_tokenizer())
    assert len(windows) == 1 and windows.lengths.tolist() == [len(row["input_ids"]) + 2 + len(windows[0]["leaf_ids"])]
    item = windows[0]
    assert item["input_ids"].tolist() == tiny_tokenizer()(CODE)["input_ids"]
    path = int(item["head_start"][0])
    assert tiny_tokenizer().decode(item["input_ids"][path : path + 1]).strip() == "path"
    assert (
        item["relation"].tolist() == [5, 7]
        and item["reversed"].tolist() == [0, 1]
        and item["visible"].tolist() == [0, 1]
    )
    assert item["leaf_root"].tolist() == [path, path] and item["leaf_slot"].tolist() == [0, item["leaf_length"][0]]
    assert tiny_tokenizer().decode(item["leaf_ids"]).split() == ["str", "load"]
    statistics = windows.statistics()
    assert statistics["facts"] == statistics["facts_placed"] == 2 and statistics["windows_without_fact"] == 0
    assert statistics["relations"]["has_type"] == {"facts": 1, "visible": 0.0}
    assert statistics["relations"]["has_parameter"] == {"facts": 1, "visible": 1.0}
    assert sum(statistics["leaves_used"]) == 1
    assert np.array_equal(windows.tokens(), row["input_ids"])


def test_windows_cover_each_token_once_and_keep_facts_inside():
    tokenizer = tiny_tokenizer()
    text = TEXT * 3
    row, _ = link_file(
        text, graph(*(triple("walk", "calls", "walk", text=text, tail_at=i) for i in range(5))), tokenizer
    )
    windows = WindowDataset(stored(row, row), tokenizer, num_roots=24, leaves_per_root=3)
    assert np.array_equal(
        np.concatenate([windows[i]["input_ids"][1:-1] for i in range(len(windows))]), np.tile(row["input_ids"], 2)
    )
    for i in range(len(windows)):
        item = windows[i]
        assert len(item["input_ids"]) <= 24 and item["index"] == i
        assert (item["head_start"] >= 1).all() and (
            item["head_start"] + item["head_length"] < len(item["input_ids"])
        ).all()
        assert (item["leaf_slot"] + item["leaf_length"] <= 3).all() and item["leaf_length"].sum() == len(
            item["leaf_ids"]
        )
    no_graph = WindowDataset(stored(row, row), tokenizer, num_roots=24, leaves_per_root=0)
    assert len(no_graph) == len(windows) and no_graph.statistics()["facts_placed"] == 0
    some = WindowDataset(stored(row, row), tokenizer, num_roots=24, max_windows=4)
    assert len(some) == 4


def test_a_window_that_begins_inside_a_word_begins_a_word():
    text = "q" * 40
    row, _ = link_file(text, graph(), tiny_tokenizer())
    assert row["word_starts"].tolist() == [1 - bool(i % 7) for i in range(40)]
    windows = WindowDataset(stored(row), tiny_tokenizer(), num_roots=12)
    assert windows.token_range[1].tolist() == [10, 20]
    assert windows[1]["word_starts"].tolist() == [1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]


def test_switches_leave_out_uses_and_site_anchors():
    use = triple("path", "has_type", "str", head_at=1, tail_at=None, is_use=True)
    row, _ = link_file(CODE, graph(triple("load", "has_parameter", "path"), use), tiny_tokenizer())
    everything = WindowDataset(stored(row), tiny_tokenizer())
    assert sorted(everything[0]["relation"].tolist()) == [5, 7]
    assert WindowDataset(stored(row), tiny_tokenizer(), include_uses=False)[0]["relation"].tolist() == [7]
    assert 1 not in WindowDataset(stored(row), tiny_tokenizer(), include_site_anchors=False)[0]["reversed"]


def test_relations_can_be_left_out():
    row, _ = link_file(
        CODE, graph(triple("load", "has_parameter", "path"), triple("load", "calls", "parse")), tiny_tokenizer()
    )
    windows = WindowDataset(stored(row), tiny_tokenizer(), exclude_relations=["calls"])
    assert set(windows[0]["relation"].tolist()) == {7} and windows.statistics()["facts"] == 1
    with pytest.raises(ValueError, match="exclude_relations names 'call'"):
        WindowDataset(stored(row), tiny_tokenizer(), exclude_relations=["call"])


def test_set_epoch_is_part_of_the_item():
    row, _ = link_file(CODE, graph(), tiny_tokenizer())
    windows = WindowDataset(stored(row), tiny_tokenizer())
    windows.set_epoch(3)
    assert windows[0]["epoch"] == 3


def test_unusable_input_is_named():
    row, _ = link_file(CODE, graph(), tiny_tokenizer())
    with pytest.raises(ValueError, match="tokenizer has only"):
        WindowDataset(stored(row | {"input_ids": row["input_ids"] + 10_000}), tiny_tokenizer())
    with pytest.raises(ValueError, match="holds no token"):
        WindowDataset(stored(link_file("", graph(boundaries=()), tiny_tokenizer())[0]), tiny_tokenizer())
    with pytest.raises(ValueError, match="num_roots must be at least 3"):
        WindowDataset(stored(row), tiny_tokenizer(), num_roots=2)
    with pytest.raises(IndexError):
        WindowDataset(stored(row), tiny_tokenizer())[1]
