"""The head memory against a reference in whole numbers, and what a user meets of it."""

import json

import pytest
import torch
from graph_batches import Anchor, Graph, compact_batch, packed_batch, padded_batch
from test_hub_tampered import change_weights
from tiny_model import LEAVES, NUM_ROOTS, RELATIONS, batch, graphs, inputs_of, randomize, tiny_config, tiny_model

from graphmert.batch_indices_graphmert import batch_indices
from graphmert.head_memory_graphmert import HASHES_PER_VIEW, VIEWS, HeadMemory
from graphmert.modeling_graphmert import GraphMertForMaskedLM, GraphMertForPreTraining, GraphMertModel, parameter_counts

SLOTS, ROW = 50, 4
OPTIONS = {"head_memory_slots": SLOTS, "head_memory_size": ROW}


def _rows_of(examples, slots=2**40, make=compact_batch):
    """Rows of each leaf token by (graph, root, slot); a table of such a size is never made."""
    memory = HeadMemory(2, 1, 1, RELATIONS)
    memory.num_slots = slots
    inputs = make(examples)
    indices = batch_indices(inputs, RELATIONS)
    rows, has_head = memory.rows(inputs["input_ids"], inputs, indices["leaf_nodes"], indices["head_pairs"])
    flat = {name: value.flatten()[indices["leaf_nodes"]].tolist() for name, value in inputs.items()}
    graph = flat.get("graph_ids") or (indices["leaf_nodes"] // inputs["root_index"].shape[1]).tolist()
    keys = zip(graph, flat["root_index"], flat["leaf_index"], strict=True)
    return {key: tuple(row) for key, row, found in zip(keys, rows.tolist(), has_head.tolist(), strict=True) if found}


def _mixed(value: int) -> int:
    """splitmix64 of Steele, Lea and Flood, one step."""
    bits = 2**64 - 1
    value = value * 0x9E3779B97F4A7C15 & bits
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & bits
    value = (value ^ value >> 27) * 0x94D049BB133111EB & bits
    return value ^ value >> 31


def _expected(head: list[int], relation: int, is_reversed: int, slots: int) -> tuple[int, ...]:
    whole = sum(_mixed(token + 1 + place * 0x9E3779B97F4A7C15) for place, token in enumerate(head))
    kind = relation + (RELATIONS + 1) * is_reversed
    rows, stream = [], 0
    for name in (whole, _mixed(head[0] + 1), _mixed(head[-1] + 1)):
        for _ in range(2):
            stream += 1
            rows.append((_mixed(name + _mixed(-(kind * 6 + stream))) % 2**62) % slots)
    return tuple(rows)


@pytest.mark.parametrize("slots", [50, 2**40])
def test_rows_equal_the_reference(slots):
    examples = graphs(seed=5, sizes=(NUM_ROOTS, 1, 4, NUM_ROOTS, NUM_ROOTS))
    rows, asked = _rows_of(examples, slots), 0
    for number, graph in enumerate(examples):
        for anchor in graph.anchors:
            head = graph.roots[anchor.head_start :][: anchor.head_length]
            for place in range(len(anchor.tokens)):
                key = (number, anchor.root, anchor.first_slot + place)
                assert rows[key] == _expected(head, anchor.relation, anchor.reversed, slots)
                asked += 1
    assert asked == len(rows) > 10
    for make in (lambda given: padded_batch(given, NUM_ROOTS, LEAVES), packed_batch):
        assert _rows_of(examples, slots, make) == rows


def test_rows_are_those_of_saved_tables():
    """Another hash would make every saved table useless."""
    graph = Graph([10, 11, 12], [Anchor(0, 0, [20], 3, 0, 2)])
    assert _rows_of([graph], 2**18) == {(0, 0, 0): _expected([10, 11], 3, 0, 2**18)}
    assert _expected([10, 11], 3, 0, 2**18) == (164691, 246819, 56137, 202156, 93743, 209034)


def test_what_shares_rows():
    def rows_of(head, relation=1, is_reversed=0, before=()):
        anchor = Anchor(len(before), 0, [20], relation, len(before), len(head), is_reversed)
        (found,) = _rows_of([Graph([*before, *head], [anchor])]).values()
        return [found[2 * number : 2 * number + 2] for number in range(len(VIEWS))]

    whole, first, last = rows_of([10, 11])
    assert len({*whole, *first, *last}) == len(VIEWS) * HASHES_PER_VIEW
    # Neither the window nor the place in it matters.
    assert rows_of([10, 11], before=[30, 10, 31]) == [whole, first, last]
    turned = rows_of([11, 10])
    assert not {*turned[0], *turned[1], *turned[2]} & {*whole, *first, *last}
    longer = rows_of([10, 12, 11])
    assert longer[1:] == [first, last] and longer[0] != whole
    for other in (rows_of([10, 11], relation=2), rows_of([10, 11], is_reversed=1), rows_of([10, 11], RELATIONS)):
        assert not {row for view in other for row in view} & {*whole, *first, *last}


def test_rows_are_spread_over_the_table():
    graph_of = [Graph([10 + i % 90, 10 + i // 90], [Anchor(0, 0, [20], 1, 0, 2)]) for i in range(4000)]
    rows = torch.tensor(list(_rows_of(graph_of, 4000).values()))
    for column in (0, 1):
        # Of n balls in n urns 1 - 1/e of the urns hold one.
        assert rows[:, column].unique().numel() == pytest.approx(4000 * (1 - 2.718281828**-1), rel=0.03)
    assert (rows[:, 0] == rows[:, 1]).float().mean() < 0.005


@pytest.mark.parametrize("layout", ["compact", "padded", "packed"])
def test_update_worked_out_leaf_by_leaf(layout):
    examples = graphs(seed=2)
    inputs = {
        "compact": compact_batch,
        "padded": lambda given: padded_batch(given, NUM_ROOTS, LEAVES),
        "packed": packed_batch,
    }[layout](examples)
    memory = randomize(HeadMemory(6, SLOTS, ROW, RELATIONS).double(), seed=1)
    torch.manual_seed(0)
    words = torch.randn(*inputs["input_ids"].shape, 6, dtype=torch.float64)
    indices = batch_indices(inputs, RELATIONS)
    output = memory(words, inputs["input_ids"], inputs, indices["leaf_nodes"], indices["head_pairs"])
    expected = words.clone()
    for (row, column), leaf in _leaves(inputs):
        roots = examples[leaf["graph"]].roots[leaf["start"] :][: leaf["length"]]
        places = _expected(roots, leaf["relation"], leaf["reversed"], SLOTS)
        expected[row, column] += memory.projection @ torch.cat([memory.table[place] for place in places])
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)
    assert not torch.equal(output, words)


def _leaves(inputs):
    """Leaves of a batch with their head's span."""
    graph = inputs.get("graph_ids", torch.arange(len(inputs["input_ids"]))[:, None].expand_as(inputs["input_ids"]))
    for place in ((inputs["relation_ids"] >= 0) & (inputs["attention_mask"] > 0)).nonzero().tolist():
        names = ("relation_ids", "relation_reversed", "head_start", "head_length")
        values = [int(inputs[name][tuple(place)]) for name in names]
        found = dict(zip(("relation", "reversed", "start", "length"), values, strict=True))
        yield tuple(place), {"graph": int(graph[tuple(place)]), **found}


def test_it_starts_as_nothing_and_learns():
    torch.manual_seed(0)
    model = GraphMertForPreTraining(tiny_config(**OPTIONS, mnm_target="both", use_hgat=False)).eval()
    plain = GraphMertForPreTraining(tiny_config(mnm_target="both", use_hgat=False)).eval()
    report = plain.load_state_dict(model.state_dict(), strict=False)
    assert set(report.unexpected_keys) == {"roberta.head_memory.table", "roberta.head_memory.projection"}
    inputs = batch()
    assert torch.equal(model(**inputs).logits, plain(**inputs).logits)
    assert parameter_counts(model)["head memory"] == SLOTS * ROW + 32 * 6 * ROW
    model(**inputs).loss.backward()
    memory = model.roberta.head_memory
    indices = batch_indices(inputs, RELATIONS)
    rows, _ = memory.rows(inputs["input_ids"], inputs, indices["leaf_nodes"], indices["head_pairs"])
    moved = (memory.table.grad != 0).any(1)
    assert moved.nonzero().flatten().tolist() == rows.unique().tolist()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0] and not torch.equal(model(**inputs).logits, plain(**inputs).logits)


def test_layouts_agree_and_indices_change_nothing():
    model = tiny_model(GraphMertForPreTraining, **OPTIONS, mnm_target="both", use_hgat=False)
    examples = graphs(seed=4)
    losses = [
        model(**inputs).loss
        for inputs in (compact_batch(examples), padded_batch(examples, NUM_ROOTS, LEAVES), packed_batch(examples))
    ]
    given = compact_batch(examples)
    losses.append(model(**given, indices=batch_indices(given, RELATIONS)).loss)
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-10, atol=1e-12)
    # No direction given is direction 0.
    del given["relation_reversed"]
    assert not torch.equal(model(**given).loss, losses[0])


def test_without_leaves_it_takes_no_part():
    model = tiny_model(GraphMertModel, **OPTIONS)
    ids = torch.tensor([[5, 6, 7]])
    states = model(input_ids=ids).last_hidden_state
    with torch.no_grad():
        model.head_memory.table.zero_()
    assert torch.equal(model(input_ids=ids).last_hidden_state, states)
    assert tiny_model(GraphMertModel, **OPTIONS, leaves_per_root=0).head_memory is None
    assert tiny_model(GraphMertModel).head_memory is None


def test_heads_are_looked_up_by_their_tokens():
    model = tiny_model(GraphMertModel, **OPTIONS, use_hgat=False)
    inputs = inputs_of(batch())
    embeds = model.embeddings.word_embeddings(inputs["input_ids"])
    with pytest.raises(ValueError, match="head_memory_slots needs input_ids"):
        model(**{**inputs, "input_ids": None}, inputs_embeds=embeds)
    del inputs["head_start"]
    with pytest.raises(ValueError, match="relation_ids need head_start and head_length"):
        model(**inputs)


def test_saved_and_loaded(tmp_path):
    model = tiny_model(GraphMertForPreTraining, dtype=torch.float32, **OPTIONS)
    model.save_pretrained(tmp_path)
    inputs = batch()
    for dtype in (torch.float32, torch.bfloat16):
        loaded = GraphMertForPreTraining.from_pretrained(tmp_path, dtype=dtype).eval()
        assert loaded.config.head_memory_slots == SLOTS and loaded.roberta.head_memory.table.dtype == dtype
    assert torch.equal(
        GraphMertForPreTraining.from_pretrained(tmp_path).eval()(**inputs).logits, model(**inputs).logits
    )
    change_weights(tmp_path, lambda weights: weights.pop("roberta.head_memory.table"))
    with pytest.raises(ValueError, match=r"1 of \d+ tensors of the encoder are missing, first head_memory"):
        GraphMertModel.from_pretrained(tmp_path)


def test_a_checkpoint_without_one_gets_an_empty_one(tmp_path):
    tiny_model(GraphMertForMaskedLM, dtype=torch.float32).save_pretrained(tmp_path)
    model = GraphMertForMaskedLM.from_pretrained(tmp_path, **OPTIONS)
    memory = model.roberta.head_memory
    assert (memory.table == 0).all()
    assert float(memory.projection.detach().std()) == pytest.approx((6 * ROW) ** -0.5, rel=0.15)
    assert "head_memory_slots" in json.loads((tmp_path / "config.json").read_text())
    # A table of another size is another table.
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"head_memory.table has shape \(50, 4\)"):
        GraphMertModel.from_pretrained(tmp_path, head_memory_slots=60)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"head_memory_slots": -1}, "head_memory_slots"),
        ({"head_memory_slots": True}, "head_memory_slots"),
        ({"head_memory_slots": 10, "head_memory_size": 0}, "head_memory_size"),
        ({"head_memory_size": 3.5}, "head_memory_size"),
    ],
)
def test_impossible_sizes_are_refused(options, field):
    with pytest.raises(ValueError, match=f"{field} is .*, but it must be"):
        tiny_config(**options)
