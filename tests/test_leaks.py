"""Nothing gives away what is predicted: hidden relations, hidden types, projects that were trained on."""

import numpy as np
import pytest
import torch
from tiny_tasks import LEAVES, NUM_ROOTS, ROOT, checkpoint, context, corpora

from graphmert.chain_graphs.manifest import read_manifest
from graphmert.chain_graphs.windows import WindowDataset, canonical_ids
from graphmert.code_graph import extract
from graphmert.code_graph.annotations import annotation_spans, hide_annotations
from graphmert.tasks.corpora import check_nothing_shared, shared_projects
from graphmert.tasks.masked_language_model import MaskedLanguageModel, MaskedLanguageModelOptions, collect_targets
from graphmert.tasks.queries import ask_in_leaf, ask_in_text
from graphmert.tasks.type_queries import find_queries, read_files


@pytest.fixture(scope="module")
def windows() -> WindowDataset:
    opened = context()
    return opened.windows(opened.test)


def examples_of(windows):
    return [windows[i] for i in range(len(windows))]


def test_a_hidden_relation_leaves_no_trace_in_the_input(windows):
    """With other relations in place of the hidden ones, the batch is the same to the bit, but for the labels."""
    collator = context().collator(mnm_probability=0.5, mlm_probability=0.15)
    examples = examples_of(windows)
    batch = collator(examples)
    row, column = (batch["relation_labels"] >= 0).nonzero(as_tuple=True)
    hidden = {
        (int(r), int(batch["root_index"][r, c]), int(batch["leaf_index"][r, c]))
        for r, c in zip(row, column, strict=True)
    }
    assert len(hidden) > 50
    changed = []
    for number, example in enumerate(examples):
        places = zip(example["leaf_root"].tolist(), example["leaf_slot"].tolist(), strict=True)
        is_hidden = np.array([(number, *place) in hidden for place in places], dtype=bool)
        relation = np.where(is_hidden, (example["relation"] + 5) % 12, example["relation"])
        changed.append({**example, "relation": relation.astype(np.int32)})
    other = collator(changed)
    for name in batch:
        assert torch.equal(batch[name], other[name]) == (name != "relation_labels"), name
    # And every token of such a leaf, not its first alone, has the masked relation.
    at_leaf = (batch["leaf_index"] >= 0) & (batch["attention_mask"] > 0)
    first = at_leaf & (batch["fact_place"] == 0)
    fact = torch.cumsum(first.flatten(), 0).view_as(first)
    targets = torch.isin(fact, fact[batch["relation_labels"] >= 0]) & at_leaf
    assert (batch["relation_ids"][targets] == 12).all() and (batch["relation_ids"][at_leaf & ~targets] < 12).all()


def test_no_second_leaf_shows_a_hidden_fact(windows):
    """A fact has one leaf in a window: neither at another place nor from its other end is it told again."""
    opened = context()
    collator, num_hidden = opened.collator(mnm_probability=0.5), 0

    def text_of(tokens) -> str:
        return opened.tokenizer.decode(tokens).strip()

    for example in examples_of(windows):
        ids = example["input_ids"].tolist()
        leaves = np.split(example["leaf_ids"], np.cumsum(example["leaf_length"])[:-1])
        batch = collator([example])
        labelled = {
            (int(batch["root_index"][0, c]), int(batch["leaf_index"][0, c]))
            for c in (batch["relation_labels"][0] >= 0).nonzero()[:, 0]
        }
        hidden, shown = set(), set()
        names = ("head_start", "head_length", "relation", "reversed", "leaf_root", "leaf_slot", "leaf_length")
        for values, leaf in zip(np.stack([example[name] for name in names], axis=1).tolist(), leaves, strict=False):
            start, length, relation, is_reversed, root, slot, size = values
            head = text_of(ids[start : start + length])
            tail = text_of(leaf.tolist())
            # A leaf that is cut short need not be the whole fact's.
            if size == LEAVES:
                continue
            fact = (tail, relation, head) if is_reversed else (head, relation, tail)
            (hidden if (root, slot) in labelled else shown).add(fact)
        num_hidden += len(hidden)
        assert not hidden & shown
    assert num_hidden > 50


def with_sentinels(source: str) -> tuple[str, int]:
    """A file whose every annotation is a name that stands nowhere else."""
    from graphmert.code_graph.syntax import grammar

    spans = sorted(annotation_spans(grammar("python").parse(source)))
    for number, (_, start, end) in reversed(list(enumerate(spans))):
        source = source[:start] + f"Sentinel{number}q" + source[end:]
    return source, len(spans)


SOURCES = ["chain_graphs/layout.py", "chain_graphs/linking.py", "chain_graphs/sources.py"]


@pytest.mark.parametrize("path", SOURCES)
def test_hidden_types_stand_nowhere(path):
    source, number = with_sentinels((ROOT / path).read_text(encoding="utf-8"))
    assert number > 10 and sum(
        f"Sentinel{i}q" in triple.tail for i in range(number) for triple in extract(source).triples
    )
    stripped, hidden, graph = hide_annotations(source)
    assert "Sentinel" not in stripped and len(hidden) > 5
    assert {item.type for item in hidden} <= {f"Sentinel{i}q" for i in range(number)}
    for item in hidden:
        assert stripped[item.start : item.end] == item.name and item.prefix.strip() in (":", "->")
    assert not any("Sentinel" in text for triple in graph.triples for text in (triple.head, triple.tail))
    assert not {"has_type", "returns"} & {triple.relation for triple in graph.triples}


def test_windows_with_a_question_hold_no_type_fact_but_the_question():
    opened = context()
    files, counts = read_files(opened, opened.test.rows, "hiding types")
    every = [(number, hidden) for number, file in enumerate(files) for hidden in file.hidden]
    windows, queries = find_queries(opened, files, every)
    asked = 0
    for query in queries:
        mask = opened.tokenizer.mask_token_id
        for ask, num_facts in ((ask_in_leaf, 1), (ask_in_text, 0)):
            item, _ = ask(windows[query.window], query, [mask, mask], opened.config)
            is_type = np.isin(item["relation"], (5, 8))
            assert (
                is_type.sum() == num_facts
                and (np.repeat(is_type, item["leaf_length"]) <= (item["leaf_ids"] == mask)).all()
            )
            start, length = query.head
            if ask is ask_in_leaf:
                words = opened.tokenizer.decode(item["input_ids"][start : start + length].tolist())
                assert words.strip() == query.hidden.name
            asked += 1
    assert counts["files"] == 5 and asked > 60


def test_a_test_corpus_shares_no_project_with_the_training_corpus():
    training, held_out = map(read_manifest, corpora())
    check_nothing_shared(held_out, ["train", "validation"], training)
    with pytest.raises(ValueError, match="trained on alpha, epsilon, which the test corpus holds too"):
        check_nothing_shared(training, ["train"], training)
    # Its own validation split was not trained on.
    check_nothing_shared(training, ["validation"], training)
    assert shared_projects(["Scikit_Learn", "flask"], ["scikit-learn"]) == ["Scikit_Learn"]


def test_tasks_refuse_a_corpus_that_was_trained_on():
    training, _ = corpora()
    with pytest.raises(ValueError, match="--allow-shared-projects"):
        _ = context(dataset=str(training), splits=["train"]).test
    assert context(dataset=str(training), splits=["train"], allow_shared_projects=True).test.projects == [
        "alpha",
        "epsilon",
    ]
    # Without --splits only what was held out of the training corpus is tested on.
    assert context(dataset=str(training)).test.projects == ["beta"]
    assert context().test.projects == ["delta", "gamma"]


def test_masks_do_not_depend_on_the_graph():
    """The same roots are masked with the same corruption, whatever leaves there are and whatever becomes of them."""
    opened = context(checkpoint())
    with_graph, without = (opened.windows(opened.test, leaves_per_root=n) for n in (LEAVES, 0))
    assert len(with_graph) == len(without) and with_graph.lengths.sum() > without.lengths.sum()
    expected = None
    for windows, settings in (
        (with_graph, {"masked_span_leaves": "drop"}),
        (with_graph, {"masked_span_leaves": "keep", "mask_visible_copies": True}),
        (with_graph, {"mnm_probability": 0.3, "mnm_target": "tail"}),
        (without, {}),
    ):
        batch = opened.collator(mlm_probability=0.15, leaves_per_root=windows.leaves_per_root, **settings)(
            examples_of(windows)
        )
        is_root = (batch["leaf_index"] < 0) & (batch["attention_mask"] > 0)
        found = torch.cat([batch["labels"][is_root], batch["input_ids"][is_root]])
        expected = found if expected is None else expected
        assert torch.equal(found, expected) and batch["input_ids"].shape[1] >= NUM_ROOTS // 2


def test_every_checkpoint_and_control_is_told_the_same_leaf_words():
    """With all words as likely, the loss that excludes leaf words counts them: by the corpus's own graph for everyone."""

    def scored(name, **options):
        opened = context(checkpoint(name, **options))
        flatten(opened.model())
        return MaskedLanguageModel().run(opened, MaskedLanguageModelOptions(NUM_ROOTS, LEAVES))

    both = scored("both")
    # Fewer leaf slots, fewer facts, or none: what the checkpoint is given changes, what is excluded does not.
    others = [
        scored("fewer slots", leaves_per_root=2),
        scored("fewer facts", recipe=(("exclude_relations", ("calls", "has_type")), ("include_uses", False))),
        scored("off", leaves_per_root=0, use_hgat=False, decay_mode=None),
        scored("wide", leaves_per_root=0, num_roots=60, use_hgat=False, decay_mode=None),
    ]
    opened = context()
    windows = opened.windows(opened.test)
    targets = collect_targets(opened, MaskedLanguageModelOptions(NUM_ROOTS, LEAVES), windows)
    canonical = canonical_ids(opened.tokenizer)
    num_left = np.array(
        [
            opened.config.vocab_size - np.isin(canonical, canonical[windows[i]["leaf_ids"]]).sum()
            for i in range(len(windows))
        ]
    )
    expected = np.log(num_left[targets["window"][targets["clean"]]]).mean()
    told = [both.figures, *both.controls.values(), *(other.figures for other in others)]
    told += [figures for other in others for figures in other.controls.values()]
    assert len(told) == 1 + 3 + 4 + 6 and num_left.min() < opened.config.vocab_size - 50
    for figures in told:
        assert figures["loss_clean_excluding"] == pytest.approx(expected, abs=1e-6)
        assert figures["loss_clean"] == pytest.approx(np.log(opened.config.vocab_size), abs=1e-6)
    # Whatever leaves there are, none tells a clean token.
    for window, token in zip(targets["window"][targets["clean"]], targets["token"][targets["clean"]], strict=True):
        assert canonical[token] not in canonical[windows[int(window)]["leaf_ids"]]


def flatten(model) -> None:
    """Make every word as likely as any other, whatever the model reads."""
    with torch.no_grad():
        for parameter in (*model.lm_head.layer_norm.parameters(), model.lm_head.decoder.bias):
            parameter.zero_()
