"""The collator: literal batches, seeded rates, and independence of how a batch is put together."""

import numpy as np
import pytest
import torch
from tiny import random_window, tiny_tokenizer, window

from graphmert.collator import GraphMertCollator, counter_uniform, example_keys

VOCAB = len(tiny_tokenizer())
MASK = tiny_tokenizer().mask_token_id


def collator(**options) -> GraphMertCollator:
    options = {"num_roots": 6, "leaves_per_root": 3, "mnm_target": "relation"} | options
    return GraphMertCollator(tiny_tokenizer(), **options)


def windows(count=64, num_roots=40, leaves_per_root=7, seed=0, start=0):
    rng = np.random.default_rng(seed)
    return [random_window(rng, start + i, num_roots, leaves_per_root, VOCAB) for i in range(count)]


# Root 1 carries a leaf of two tokens (relation 3), root 2 one of one token, read backwards, on a span of two roots.
TWO_FACTS = window([0, 10, 11, 12, 2], [(1, 1, 3, 0, 0, 1, 0, [20, 21]), (2, 2, 7, 1, 1, 2, 1, [22])])
NO_FACTS = window([0, 13, 2], index=1)


def test_compact_layout_is_the_expected_batch():
    batch = collator(mlm_probability=0, mnm_probability=0)([TWO_FACTS, NO_FACTS])
    expected = {
        "input_ids": [[0, 10, 11, 12, 2, 20, 21, 22], [0, 13, 2, 1, 1, 1, 1, 1]],
        "attention_mask": [[1] * 8, [1, 1, 1, 0, 0, 0, 0, 0]],
        "token_type_ids": [[0, 0, 0, 0, 0, 1, 1, 1], [0] * 8],
        "root_index": [[0, 1, 2, 3, 4, 1, 1, 2], [0, 1, 2, 0, 0, 0, 0, 0]],
        "leaf_index": [[-1, -1, -1, -1, -1, 0, 1, 1], [-1] * 8],
        "relation_ids": [[-1, -1, -1, -1, -1, 3, 3, 7], [-1] * 8],
        "relation_reversed": [[0, 0, 0, 0, 0, 0, 0, 1], [0] * 8],
        "head_start": [[0, 0, 0, 0, 0, 1, 1, 2], [0] * 8],
        "head_length": [[0, 0, 0, 0, 0, 1, 1, 2], [0] * 8],
        "labels": [[-100] * 8] * 2,
        "relation_labels": [[-100] * 8] * 2,
    }
    assert {name: tensor.tolist() for name, tensor in batch.items()} == expected
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_padded_layout_is_the_expected_batch():
    batch = collator(layout="padded", mlm_probability=0, mnm_probability=0)([TWO_FACTS])
    assert batch["input_ids"].shape == (1, 6 * 4)
    roots, leaves = [0, 10, 11, 12, 2, 1], [1, 1, 1, 20, 21, 1, 1, 22, 1] + [1] * 9
    assert batch["input_ids"][0].tolist() == roots + leaves
    used = [6 + 3 * 1, 6 + 3 * 1 + 1, 6 + 3 * 2 + 1]
    assert batch["attention_mask"][0].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, *used]
    assert batch["root_index"][0].tolist() == list(range(6)) + [root for root in range(6) for _ in range(3)]
    assert batch["leaf_index"][0].tolist() == [-1] * 6 + [0, 1, 2] * 6
    assert batch["relation_ids"][0, used].tolist() == [3, 3, 7]
    assert batch["head_length"][0].sum() == 1 + 1 + 2


def test_layouts_hold_the_same_nodes_and_labels():
    rows = windows()
    options = {"num_roots": 40, "leaves_per_root": 7, "mnm_target": "both", "mnm_probability": 0.3}
    padded = collator(layout="padded", **options)(rows)
    compact = collator(**options)(rows)
    for row in range(len(rows)):
        slots = compact["root_index"][row].clone()
        is_leaf = compact["leaf_index"][row] >= 0
        slots[is_leaf] = 40 + 7 * compact["root_index"][row][is_leaf] + compact["leaf_index"][row][is_leaf]
        used = compact["attention_mask"][row].bool()
        assert used.sum() == padded["attention_mask"][row].sum()
        for name in compact:
            assert torch.equal(padded[name][row, slots[used]], compact[name][row, used]), name


@pytest.mark.parametrize("target", ["relation", "tail", "both"])
def test_masks_do_not_depend_on_the_batch(target):
    rows = windows()
    options = {"num_roots": 40, "leaves_per_root": 7, "mnm_target": target, "layout": "padded", "span_boundary": True}
    # Tiny windows too: their spans reach </s>.
    rows += windows(200, num_roots=8, seed=1, start=1000)
    whole = collator(**options)(rows)
    shuffled = np.random.default_rng(1).permutation(len(rows))
    parts = [collator(**options)([rows[i] for i in part]) for part in np.array_split(shuffled, 90)]
    for name, tensor in whole.items():
        assert torch.equal(tensor[shuffled], torch.cat([part[name] for part in parts])), name


@pytest.mark.parametrize("leaves", ["drop", "keep"])
def test_masks_of_the_text_do_not_depend_on_the_graph(leaves):
    """Runs with and without the graph, or with other targets, see the same masked text: ablations are paired."""
    rows = windows()
    bare = [
        row | {name: row[name][:0] for name in row if name.startswith(("head", "rel", "rev", "vis", "leaf"))}
        for row in rows
    ]
    reference = collator(num_roots=40, leaves_per_root=0)(bare)
    assert (reference["labels"] != -100).sum() > 100
    for target, copies in (("relation", False), ("both", True)):
        options = {"mnm_target": target, "masked_span_leaves": leaves, "mask_visible_copies": copies}
        batch = collator(num_roots=40, leaves_per_root=7, mnm_probability=0.3, **options)(rows)
        for row, window_of_row in enumerate(rows):
            size = len(window_of_row["input_ids"])
            for name in ("input_ids", "labels"):
                assert torch.equal(batch[name][row, :size], reference[name][row, :size]), (target, name)


def test_epoch_and_seed_change_the_masks():
    rows = windows(8)
    first = collator(num_roots=40, leaves_per_root=7)(rows)["labels"]
    later = collator(num_roots=40, leaves_per_root=7)([row | {"epoch": 1} for row in rows])["labels"]
    other = collator(num_roots=40, leaves_per_root=7, seed=1)(rows)["labels"]
    again = collator(num_roots=40, leaves_per_root=7)(rows)["labels"]
    assert torch.equal(first, again)
    assert not torch.equal(first, later) and not torch.equal(first, other) and not torch.equal(later, other)


def test_counter_uniform_is_uniform_and_uncorrelated():
    keys = np.repeat(example_keys(0, np.arange(200) % 3, np.arange(200)), 500)
    index = np.tile(np.arange(500), 200)
    values = counter_uniform(keys, "span_order", index)
    assert values.min() >= 0 and values.max() < 1
    counts = np.bincount((values * 20).astype(int), minlength=20)
    # 100,000 draws in 20 bins: chi-square with 19 degrees of freedom exceeds 43.8 once in a thousand times.
    assert ((counts - 5000) ** 2 / 5000).sum() < 43.8
    assert abs(np.corrcoef(values, counter_uniform(keys, "replace", index))[0, 1]) < 0.015
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.015


def test_mask_rates_over_a_hundred_thousand_tokens():
    mask = collator(num_roots=128, leaves_per_root=7, mnm_target="both")
    masked = replaced = kept = total = relations = tails = facts = 0
    for seed in range(10):
        # Short windows always mask one span, which lifts their share; it is measured on the others.
        rows = [row for row in windows(256, 128, seed=seed, start=256 * seed) if len(row["input_ids"]) >= 50]
        batch = mask(rows)
        root = (batch["leaf_index"] < 0) & batch["attention_mask"].bool()
        labelled = root & (batch["labels"] != -100)
        total += sum(len(row["input_ids"]) - 2 for row in rows)
        masked += int(labelled.sum())
        replaced += int((batch["input_ids"][labelled] == MASK).sum())
        kept += int((batch["input_ids"][labelled] == batch["labels"][labelled]).sum())
    stats = mask.statistics
    relations, tails = stats["relations_masked"], stats["tails_masked"]
    facts = stats["facts"] - stats["facts_dropped_on_masked_span"]
    assert total > 100_000
    # The shortest windows always mask one span, so the share lies a little above 15 %.
    assert masked / total == pytest.approx(0.15, abs=0.003)
    assert replaced / masked == pytest.approx(0.8, abs=0.01)
    assert kept / masked == pytest.approx(0.1, abs=0.01)
    assert relations / facts == pytest.approx(0.3, abs=0.004)
    assert tails / facts == pytest.approx(0.3, abs=0.004)


def test_spans_are_whole_words_of_at_most_seven_tokens_and_geometric():
    rng = np.random.default_rng(0)
    # One span only: a budget of one span's first token.
    lengths = []
    for index in range(4000):
        row = window([0, *rng.integers(5, VOCAB, 60), 2], index=index)
        labels = collator(num_roots=64, mlm_probability=0.0166)([row])["labels"][0]
        masked = (labels != -100).nonzero().flatten()
        assert len(masked) and masked[-1] - masked[0] + 1 == len(masked) <= 7
        # Near the end of the window spans are cut.
        if masked[0] < 53:
            lengths.append(len(masked))
    weights = 0.2 * 0.8 ** np.arange(7)
    expected = weights / weights.sum()
    observed = np.bincount(lengths, minlength=8)[1:] / len(lengths)
    assert np.abs(observed - expected).max() < 0.03

    words = np.tile([1, 0, 0], 20)
    row = window([0, *range(5, 65), 2], word_starts=[1, *words, 1])
    for epoch in range(50):
        labels = collator(num_roots=64)([row | {"epoch": epoch}])["labels"][0, 1:61] != -100
        assert torch.equal(labels.view(20, 3).any(1), labels.view(20, 3).all(1))


def test_special_tokens_are_never_masked_and_random_tokens_never_special():
    batch = collator(num_roots=40, leaves_per_root=7, mlm_probability=0.9)(windows(200))
    root = batch["leaf_index"] < 0
    labelled = root & (batch["labels"] != -100)
    assert not (labelled & (batch["labels"] < 5)).any()
    changed = batch["input_ids"][labelled]
    assert set(changed[changed < 5].tolist()) <= {MASK}


def test_labels_hold_the_original_tokens():
    rows = windows(32)
    batch = collator(num_roots=40, leaves_per_root=7, mlm_probability=0.5)(rows)
    for number, row in enumerate(rows):
        labels = batch["labels"][number, : len(row["input_ids"])]
        where = labels != -100
        assert where.any() and torch.equal(labels[where], torch.tensor(row["input_ids"]).long()[where])
        assert torch.equal(
            batch["input_ids"][number, : len(row["input_ids"])][~where], torch.tensor(row["input_ids"]).long()[~where]
        )


def leaves_on_masked_spans(batch) -> torch.Tensor:
    """(B, N): leaves whose head span holds a masked root."""
    masked = (batch["labels"] != -100) & (batch["leaf_index"] < 0)
    before = torch.nn.functional.pad(masked.long().cumsum(1), (1, 0))
    start, end = batch["head_start"], batch["head_start"] + batch["head_length"]
    return (batch["leaf_index"] >= 0) & (before.gather(1, end) > before.gather(1, start))


def test_leaves_on_masked_spans_do_not_tell():
    rows = windows(128)
    options = {"num_roots": 40, "leaves_per_root": 7}
    keep = collator(masked_span_leaves="keep", **options)(rows)
    assert leaves_on_masked_spans(keep).any()
    drop_collator = collator(masked_span_leaves="drop", **options)
    drop = drop_collator(rows)
    assert not (leaves_on_masked_spans(drop) & drop["attention_mask"].bool()).any()
    hide_collator = collator(masked_span_leaves="hide", **options)
    hide = hide_collator(rows)
    hidden = leaves_on_masked_spans(hide) & hide["attention_mask"].bool()
    assert (hide["relation_ids"][hidden] == 12).all() and (hide["relation_labels"][hidden] == -100).all()
    # Nothing is lost silently: the same facts are counted in both.
    assert (
        drop_collator.statistics["facts_dropped_on_masked_span"]
        == hide_collator.statistics["facts_hidden_on_masked_span"]
        > 0
    )
    num_leaves = int((keep["leaf_index"] >= 0).sum())
    assert int((hide["leaf_index"] >= 0).sum()) == num_leaves > int((drop["leaf_index"] >= 0).sum())


def test_relation_targets_are_hidden_on_all_leaves_of_the_fact_and_labelled_once():
    fact = (2, 1, 5, 0, 0, 2, 0, [20, 21, 22])
    row = window([0, 10, 11, 12, 2], [fact])
    batch = collator(mlm_probability=0, mnm_probability=1 - 1e-12)([row])
    assert batch["relation_ids"][0, 5:].tolist() == [12, 12, 12]
    assert batch["relation_labels"][0, 5:].tolist() == [5, -100, -100]
    assert batch["input_ids"][0, 5:].tolist() == [20, 21, 22]


def test_tail_targets_hide_all_their_tokens_but_not_the_relation():
    rows = [window([0, 10, 11, 12, 2], [(2, 1, 5, 0, 0, 2, 0, [20, 21, 22])], index=i) for i in range(300)]
    batch = collator(mlm_probability=0, mnm_probability=1 - 1e-12, mnm_target="tail")(rows)
    assert (batch["labels"][:, 5:] == torch.tensor([20, 21, 22])).all()
    assert (batch["relation_ids"][:, 5:] == 5).all() and (batch["relation_labels"] == -100).all()
    masked = (batch["input_ids"][:, 5:] == MASK).sum(1)
    # By tail, not by token: all three or none (a random token is never the mask).
    assert set(masked.tolist()) == {0, 3} and (masked == 3).float().mean() == pytest.approx(0.8, abs=0.07)


def test_both_targets_take_different_facts():
    batch = collator(num_roots=40, leaves_per_root=7, mnm_target="both", mnm_probability=0.5)(windows(64))
    leaf = batch["leaf_index"] >= 0
    relation = leaf & (batch["relation_ids"] == 12)
    tail = leaf & (batch["labels"] != -100)
    assert relation.any() and tail.any() and not (relation & tail).any()


@pytest.mark.parametrize("layout", ["compact", "packed"])
def test_facts_are_masked_in_a_share_of_the_windows_only(layout):
    rows = [window([0, 10, 11, 12, 2], [(2, 1, 5, 0, 0, 2, 0, [20, 21])], index=i) for i in range(400)]
    options = {"mlm_probability": 0, "mnm_probability": 1 - 1e-12, "layout": layout}
    hidden = {
        share: collator(mnm_window_probability=share, **options)(rows)["relation_labels"].flatten() != -100
        for share in (0.0, 0.3, 1.0)
    }
    assert [hidden[share].sum().item() for share in (0.0, 1.0)] == [0, 400]
    assert hidden[0.3].sum().item() == pytest.approx(120, abs=30)
    # Which windows these are has nothing to do with how their share of facts is rounded.
    fewer = collator(mnm_window_probability=0.5, **{**options, "mnm_probability": 0.4})(rows)
    assert (fewer["relation_labels"] != -100).sum().item() == pytest.approx(80, abs=30)
    # The other windows are masked as they would be without it.
    rows = windows(64)
    options = {"num_roots": 40, "leaves_per_root": 7, "mnm_target": "both", "mnm_probability": 0.4, "layout": "padded"}
    every, some = (collator(mnm_window_probability=share, **options)(rows) for share in (1.0, 0.5))
    chosen = (some["relation_labels"] != -100).any(1)
    assert 10 < chosen.sum() < (every["relation_labels"] != -100).any(1).sum()
    for name in ("input_ids", "labels", "relation_labels", "relation_ids"):
        assert torch.equal(some[name][chosen], every[name][chosen]), name
    is_leaf = every["leaf_index"] >= 0
    assert torch.equal(some["labels"][~is_leaf], every["labels"][~is_leaf])


def test_copies_of_masked_words_can_be_hidden():
    row = window([0, 10, 11, 12, 2], [(3, 1, 5, 0, 1, 3, 0, [10, 30])])
    plain = collator(diagnostics=True)
    hiding = collator(mask_visible_copies=True, diagnostics=True)
    for epoch in range(200):
        example = row | {"epoch": epoch}
        batch = plain([example])
        masked = batch["labels"][0, :5] != -100
        if masked.tolist() == [False, True, False, False, False]:
            assert batch["input_ids"][0, 5:].tolist() == [10, 30] and batch["label_in_leaf"][0, :5].tolist() == [
                0,
                1,
                0,
                0,
                0,
            ]
            batch = hiding([example])
            assert batch["input_ids"][0, 5:].tolist() == [MASK, MASK] and not batch["label_in_leaf"].any()
            assert hiding.statistics["facts_hidden_as_copies"] == 1
            return
    raise AssertionError("no epoch masked root 1 alone")


def test_only_tails_without_a_copy_are_asked_for():
    facts = [
        (1, 1, 3, 0, 0, 1, 0, [11, 30]),  # 11 stands in the text
        (1, 1, 4, 0, 0, 1, 2, [20]),
        (2, 1, 5, 0, 0, 2, 0, [20, 21]),  # hidden together with the one before
        (3, 1, 6, 0, 0, 3, 0, [22]),
        (3, 1, 6, 0, 0, 3, 1, [23, 22]),
    ]
    options = {"mlm_probability": 0, "mnm_target": "tail", "mnm_skip_copied_tails": True}
    row = window([0, 10, 11, 12, 2], facts)
    seen = set()
    hiding = collator(mnm_probability=0.5, **options)
    for epoch in range(400):
        batch = hiding([row | {"epoch": epoch}])
        asked, ids = (batch["labels"][0, 5:] != -100).tolist(), batch["input_ids"][0, 5:].tolist()
        assert not any(asked[:2]) and ids[:2] == [11, 30]
        first, *both = asked[2:5]
        assert both == [first, first]
        if first:
            # Replaced alike: one that is left as it is would show the other's word.
            assert (ids[2] == MASK) == (ids[3] == MASK) and (ids[2] == 20) == (ids[3] == 20)
        single, *pair = asked[5:8]
        if single:
            # The word stands in the other leaf too, which must then be hidden.
            assert pair == [True, True]
        elif ids[5] == MASK:
            assert pair == [False, False]
        seen.add((first, single, pair[0]))
    assert seen == {(a, b and c, c) for a in (False, True) for b in (False, True) for c in (False, True)}
    assert hiding.statistics["facts_hidden_as_copies"] == pytest.approx(100, abs=30)
    assert hiding.statistics["tails_masked"] == pytest.approx(400 * (2 * 0.5 + 0.25 + 0.5), rel=0.1)


def test_tails_without_a_copy_are_left_to_relations_that_are_asked_for():
    rows = windows(64)
    options = {"num_roots": 40, "leaves_per_root": 7, "mnm_target": "both", "mnm_probability": 0.5}
    batch = collator(mnm_skip_copied_tails=True, **options)(rows)
    every = collator(**options)(rows)
    assert torch.equal(batch["relation_labels"], every["relation_labels"])
    is_leaf = batch["leaf_index"] >= 0
    tail = is_leaf & (batch["labels"] != -100)
    assert tail.any() and not (tail & (batch["relation_ids"] == 12)).any()
    none = collator(mnm_skip_copied_tails=True, mnm_window_probability=0.0, **options)(rows)
    assert not (none["labels"][is_leaf] != -100).any()


def test_span_boundaries_are_the_nodes_beside_each_run():
    batch = collator(num_roots=40, leaves_per_root=7, span_boundary=True, mlm_probability=0.4)(windows(32))
    labels = (batch["labels"] != -100) & (batch["leaf_index"] < 0)
    for row in range(32):
        flags = labels[row].tolist()
        for column, flag in enumerate(flags):
            if not flag:
                assert batch["span_left"][row, column] == batch["span_right"][row, column] == -1
                assert batch["span_offset"][row, column] == 0
                continue
            left, right = column, column
            while flags[left]:
                left -= 1
            while flags[right]:
                right += 1
            assert (batch["span_left"][row, column], batch["span_right"][row, column]) == (left, right)
            assert batch["span_offset"][row, column] == min(column - left, 7)


def test_pad_to_multiple_of():
    assert collator(pad_to_multiple_of=8)([TWO_FACTS, NO_FACTS])["input_ids"].shape[1] % 8 == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "dense"}, "layout must be one of padded, compact"),
        ({"mnm_target": "heads"}, "mnm_target must be one of"),
        ({"masked_span_leaves": "forget"}, "masked_span_leaves must be one of"),
        ({"mnm_window_probability": 1.5}, r"mnm_window_probability must be in \[0, 1\], got 1.5"),
        ({"pad_to_multiple_of": -3}, "pad_to_multiple_of must be at least 1, got -3"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of must be at least 1, got 0"),
        ({"mlm_probability": 1.0}, r"mlm_probability must be in \[0, 1\)"),
        ({"mnm_target": "both", "mnm_probability": 0.6}, "at most 0.5"),
        ({"mnm_target": "relation", "mnm_skip_copied_tails": True}, "no tail is hidden"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        collator(**options)


def test_windows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="beyond leaves_per_root=2"):
        collator(leaves_per_root=2)([window([0, 5, 2], [(1, 1, 0, 0, 0, 1, 0, [6, 7, 8])])])
    with pytest.raises(ValueError, match="does not fit num_roots=6"):
        collator()([window([0, 5, 6, 7, 8, 9, 2])])
    with pytest.raises(ValueError, match="relation id 7, but num_relations is 4"):
        collator(num_relations=4)([TWO_FACTS])
