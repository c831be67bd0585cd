"""Lookup baselines and unigram cross-entropy against loops and hand-made cases."""

import math

import numpy as np
import pytest
from sklearn.metrics import f1_score
from tiny import random_window, tiny_tokenizer, window

from graphmert.chain_graphs.baselines import (
    RELATION_BASELINES,
    relation_baselines,
    relation_scores,
    unigram_cross_entropy,
)
from graphmert.collator import GraphMertCollator


class Windows(list):
    """A list of items with the one method of `WindowDataset` that the baselines use."""

    def tokens(self):
        return np.concatenate([item["input_ids"][1:-1] for item in self])


def collator(**options):
    return GraphMertCollator(tiny_tokenizer(), num_roots=40, mnm_target="relation", diagnostics=True, **options)


def test_lookups_answer_from_their_own_keys():
    def item(index, before, head, after, tail, relation):
        return window([0, before, head, after, 2], [(2, 1, relation, 0, 0, 2, 0, [tail])], index=index)

    train = Windows(
        [item(i, 10, 20, 11, 30, 1) for i in range(5)]  # relation 1 is the majority
        + [item(i, 12, 20, 11, 31, 2) for i in range(3)]  # tail 31 tells relation 2 ...
        + [item(i, 13, 21, 11, 31, 3) for i in range(2)]  # ... except after head 21
        + [item(i, 14, 20, 11, 31, 4) for i in range(2)]  # ... and after token 14
    )
    test = Windows(
        [
            item(100, 10, 20, 11, 30, 1),
            item(101, 12, 20, 11, 31, 2),
            item(102, 13, 21, 11, 31, 3),
            item(103, 14, 20, 11, 31, 4),
        ]
    )
    scores = relation_baselines(train, test, collator(mlm_probability=0, mnm_probability=1 - 1e-12))
    accuracies = {name: score["accuracy"] for name, score in scores.items()}
    assert accuracies == {
        "majority": 0.25,
        "tail's first token": 0.5,
        "(head, tail) tokens": 0.75,
        "tokens around the head with the tail": 1.0,
    }
    assert list(accuracies) == list(RELATION_BASELINES) and scores["majority"]["num_relations_masked"] == 4


def test_unseen_keys_fall_back_to_the_majority():
    train = Windows([window([0, 10, 11, 12, 2], [(2, 1, 6, 0, 0, 2, 0, [30])])])
    test = Windows([window([0, 40, 41, 42, 2], [(2, 1, 6, 0, 0, 2, 0, [50])])])
    scores = relation_baselines(train, test, collator(mlm_probability=0, mnm_probability=1 - 1e-12))
    assert all(score["accuracy"] == score["macro_f1"] == 1.0 for score in scores.values())


def test_lookups_against_a_naive_loop():
    rng = np.random.default_rng(0)
    # Few tokens, so that keys meet again and counts tie.
    train, test = (Windows(random_window(rng, k + i, 40, 7, 25) for i in range(40)) for k in (0, 100))
    mask = collator(mlm_probability=0.2, mnm_probability=0.4)

    def features(ids, start, length, is_reversed, tail):
        end = start + length
        words = {"head": tuple(ids[start:end]), "before": ids[start - 1], "after": ids[end], "tail": tail}
        return words | {"before2": ids[start - 2] if start > 1 else -1, "reversed": is_reversed}

    counted = []
    for item in train:
        place = 0
        for fact in range(len(item["relation"])):
            start, length, is_reversed = (int(item[name][fact]) for name in ("head_start", "head_length", "reversed"))
            told = features(item["input_ids"].tolist(), start, length, is_reversed, int(item["leaf_ids"][place]))
            counted.append((told, int(item["relation"][fact])))
            place += int(item["leaf_length"][fact])
    right = dict.fromkeys(RELATION_BASELINES, 0)
    number = 0
    for item in test:
        batch = {name: value[0].tolist() for name, value in mask([item]).items()}
        for column in np.flatnonzero(np.array(batch["relation_labels"]) >= 0):
            number += 1
            head = batch["head_start"][column], batch["head_length"][column], batch["relation_reversed"][column]
            told = features(batch["input_ids"], *head, batch["input_ids"][column])
            for name, keys in RELATION_BASELINES.items():
                for key in keys:
                    found = [r for other, r in counted if all(other[part] == told[part] for part in key)]
                    if found:
                        best = min(set(found), key=lambda relation: (-found.count(relation), relation))
                        right[name] += best == batch["relation_labels"][column]
                        break
    scores = relation_baselines(train, test, mask, batch_size=7)
    assert number > 100 and {score["num_relations_masked"] for score in scores.values()} == {number}
    assert {name: score["accuracy"] for name, score in scores.items()} == pytest.approx(
        {name: value / number for name, value in right.items()}
    )


def test_lookups_without_a_fact_to_count():
    empty = Windows([window([0, 10, 11, 12, 2], [])])
    test = Windows([window([0, 40, 41, 42, 2], [(2, 1, 0, 0, 0, 2, 0, [50])])])
    mask = collator(mlm_probability=0, mnm_probability=1 - 1e-12)
    assert all(score["accuracy"] == 1.0 for score in relation_baselines(empty, test, mask).values())
    assert relation_baselines(test, empty, mask)["majority"] == {"num_relations_masked": 0}


def test_relation_scores_split_by_visibility():
    rng = np.random.default_rng(0)
    gold, predicted, visible = rng.integers(0, 5, 300), rng.integers(0, 7, 300), rng.integers(0, 2, 300)
    scores = relation_scores(gold, predicted, visible)
    for suffix, keep in (("", visible >= 0), ("_visible", visible == 1), ("_invisible", visible == 0)):
        pairs = [(g, p) for g, p, k in zip(gold, predicted, keep, strict=True) if k]
        assert scores["accuracy" + suffix] == pytest.approx(sum(g == p for g, p in pairs) / len(pairs))
        f1 = []
        for relation in sorted({g for g, _ in pairs}):
            hits = sum(g == p == relation for g, p in pairs)
            given, found = sum(g == relation for g, _ in pairs), sum(p == relation for _, p in pairs)
            f1.append(2 * hits / (given + found))
        assert scores["macro_f1" + suffix] == pytest.approx(sum(f1) / len(f1))
    assert f1_score([0, 1], [0, 0], average="macro", zero_division=0) == pytest.approx(
        relation_scores([0, 1], [0, 0], [1, 1])["macro_f1"]
    )
    assert "accuracy_invisible" not in relation_scores([0], [0], [1])


def test_unigram_cross_entropy_equals_a_loop():
    rng = np.random.default_rng(0)
    vocab = len(tiny_tokenizer())
    train = Windows(random_window(rng, i, 40, 7, vocab) for i in range(30))
    test = Windows(random_window(rng, 100 + i, 40, 7, vocab) for i in range(30))
    mask = collator()
    counts = {}
    for item in train:
        for token in item["input_ids"][1:-1].tolist():
            counts[token] = counts.get(token, 0) + 1
    total = sum(counts.values()) + vocab
    losses, in_leaf = [], []
    for item in test:
        batch = mask([item])
        for column in range(len(item["input_ids"])):
            label = int(batch["labels"][0, column])
            if label != -100:
                losses.append(-math.log((counts.get(label, 0) + 1) / total))
                in_leaf.append(int(batch["label_in_leaf"][0, column]))
    result = unigram_cross_entropy(train, test, mask, batch_size=7)
    assert result["num_tokens_masked"] == len(losses)
    assert result["loss"] == pytest.approx(sum(losses) / len(losses))
    copied = [loss for loss, copy in zip(losses, in_leaf, strict=True) if copy]
    assert copied and result["loss_in_leaf"] == pytest.approx(sum(copied) / len(copied))
