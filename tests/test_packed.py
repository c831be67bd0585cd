"""Packed rows: many graphs in a row give what each gives alone, in the model, the collator and the trainer."""

import numpy as np
import pytest
import torch
from graph_batches import Graph, compact_batch, packed_batch, padded_batch
from test_collator import NO_FACTS, TWO_FACTS, collator, windows
from test_trainer import assert_same_logs, history, plain_figures
from tiny_model import LEAVES, NUM_ROOTS, batch, graphs, inputs_of, tiny_model
from tiny_pretraining import tiny_collator, tiny_trainer
from tiny_pretraining import tiny_model as tiny_pretraining_model

from graphmert.batch_indices_graphmert import batch_indices, graph_nodes
from graphmert.collator import first_fit_decreasing
from graphmert.modeling_graphmert import (
    GraphMertForMaskedLM,
    GraphMertForPreTraining,
    GraphMertForSequenceClassification,
    GraphMertModel,
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _graphs(sizes, seed=1):
    examples = graphs(seed, sizes)
    if len(examples) > 2:
        examples[1] = Graph(examples[1].roots, [], examples[1].root_labels)
    return examples


# One graph; a graph without leaves between others, in one row, in two rows, with padding.
CASES = [
    ((NUM_ROOTS,), None, 0),
    ((1,), None, 3),
    ((NUM_ROOTS, 4, 1, 5), None, 0),
    ((NUM_ROOTS, 4, 1, 5), [1, 0, 0, 1], 5),
]


@pytest.mark.parametrize(("sizes", "rows", "padding"), CASES)
@pytest.mark.parametrize("mode", ["bias", "multiplicative", None])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_equals_padded_and_compact(sizes, rows, padding, mode, implementation):
    model = tiny_model(GraphMertForPreTraining, decay_mode=mode, mnm_target="both", attn_implementation=implementation)
    examples = _graphs(sizes)
    batches = [
        packed_batch(examples, rows, padding),
        padded_batch(examples, NUM_ROOTS, LEAVES),
        compact_batch(examples),
    ]
    outputs = [model(**inputs, output_hidden_states=True) for inputs in batches]
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(output.loss, parameters) for output in outputs]
    for other in (1, 2):
        for name in ("loss", "mlm_loss", "relation_loss", "tail_loss", "relation_logits"):
            torch.testing.assert_close(outputs[0][name], outputs[other][name], rtol=1e-10, atol=1e-12)
        for gradient, other_gradient in zip(gradients[0], gradients[other], strict=True):
            torch.testing.assert_close(gradient, other_gradient, rtol=1e-8, atol=1e-11)
    for name in ("logits", "states"):
        values = [o.logits if name == "logits" else o.hidden_states[-1] for o in outputs]
        real = batches[0]["graph_ids"] >= 0
        where = [batches[0][key][real] for key in ("graph_ids", "root_index", "leaf_index")]
        slot = torch.where(where[2] < 0, where[1], NUM_ROOTS + LEAVES * where[1] + where[2])
        torch.testing.assert_close(values[0][real], values[1][where[0], slot], rtol=1e-9, atol=1e-11)


def test_indices_change_nothing():
    """Given or made in the model, for every layout; with the span-boundary objective."""
    model = tiny_model(GraphMertForPreTraining, span_boundary=True, mnm_target="both")
    for layout in ("compact", "packed", "padded"):
        options = {"num_roots": NUM_ROOTS, "leaves_per_root": LEAVES, "num_relations": 12, "mlm_probability": 0.5}
        rows = windows(6, NUM_ROOTS, LEAVES)
        for row in rows:
            row["relation"] = row["relation"] % 5
            row["input_ids"][1:-1] = row["input_ids"][1:-1] % 90 + 5
            row["leaf_ids"] = row["leaf_ids"] % 90 + 5
        make = collator(
            **{**options, "num_relations": 5}, layout=layout, span_boundary=True, mnm_target="both", with_indices=True
        )
        made = make(rows)
        made["input_ids"] = made["input_ids"].clamp(max=99)
        made["labels"] = made["labels"].clamp(max=99)
        given = model(**made, sparse_prediction=True)
        indices = made.pop("indices")
        again = model(**made, sparse_prediction=True)
        for name in ("loss", "sbo_loss", "logits", "relation_logits"):
            assert torch.equal(given[name], again[name]), (layout, name)
        assert {"leaf_nodes", "leaf_grid", "head_pairs", "labelled_nodes"} <= set(indices)
        if layout == "compact":
            reference = given
        torch.testing.assert_close(given.loss, reference.loss, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(given.sbo_loss, reference.sbo_loss, rtol=1e-10, atol=1e-12)


def test_indices_of_a_batch_written_by_hand():
    batch_of_two = collator(layout="packed", mlm_probability=0, mnm_probability=0, pad_to_multiple_of=4)(
        [NO_FACTS, TWO_FACTS]
    )
    assert batch_of_two["graph_ids"].tolist() == [[0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, -1]]
    assert batch_of_two["input_ids"].tolist() == [[0, 13, 2, 0, 10, 11, 12, 2, 20, 21, 22, 1]]
    assert batch_of_two["root_index"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 1, 1, 2, 0]]
    indices = batch_of_two["indices"]
    assert indices["graph_nodes"].tolist() == [[0, 1, 2, -1, -1, -1, -1, -1], list(range(3, 11))]
    # Two leaves of relation 3 (nodes 8 and 9, on root 1 of the second graph), one of relation 7 on its roots 2 and 3.
    assert indices["leaf_nodes"].tolist() == [8, 9, 10]
    expected = torch.full((13, 2), 3)
    expected[3], expected[7, 0] = torch.tensor([0, 1]), 2
    assert indices["leaf_grid"].tolist() == expected.tolist()
    assert indices["head_pairs"].tolist() == [[0, 1, 2, 2], [4, 4, 5, 6]]
    assert indices["labelled_nodes"].tolist() == []


def test_head_spans_end_with_their_graph():
    """A span that reaches beyond its graph's roots is cut there, in packed rows as in rows of one graph."""
    examples = _graphs((4, NUM_ROOTS, 5))
    for anchor in examples[0].anchors:
        anchor.head_start, anchor.head_length = 2, 5
    assert examples[0].anchors
    model = tiny_model(GraphMertForPreTraining)
    one, other = model(**packed_batch(examples)), model(**compact_batch(examples))
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_and_dropout(dropout):
    """Recomputed layers see the same dropout: gradients are equal with and without checkpointing."""
    inputs = packed_batch(_graphs((NUM_ROOTS, 4, 1, 5)))
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(GraphMertForPreTraining, attention_probs_dropout_prob=dropout).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(5)
        model(**inputs).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", ["bias", "multiplicative"])
def test_dropout_gradient_is_that_of_the_same_mask(mode):
    """With the dropout masks of one pass, the segments' gradient is that of the explicit formula."""
    from graphmert.attention_graphmert import SegmentAttention, decay_mask

    model = tiny_model(GraphMertModel, decay_mode=mode)
    inputs, module = compact_batch(_graphs((NUM_ROOTS, 4))), model.encoder.layer[0].attention.self
    place = (inputs["root_index"].flatten(), inputs["leaf_index"].flatten())
    sizes = inputs["attention_mask"].sum(1).tolist()
    num_nodes = inputs["input_ids"].shape[1]
    segments = [(row * num_nodes, row * num_nodes + size) for row, size in enumerate(sizes)]
    torch.manual_seed(0)
    states = [torch.randn(2, num_nodes, 32, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    torch.manual_seed(3)
    output, _ = SegmentAttention(segments, model.decay, *place, torch.float64)(module, *states, None, 0.4)
    weight = torch.randn_like(output)
    wanted = [*states, model.decay.offset]
    gradients = torch.autograd.grad((output * weight).sum(), wanted)

    torch.manual_seed(3)
    expected = torch.zeros_like(output)
    weights = model.embeddings.word_embeddings.weight
    shape, mask = inputs["input_ids"].shape, inputs["attention_mask"]
    decay = decay_mask(model.decay, weights, shape, mask, inputs["root_index"], inputs["leaf_index"])
    for row, size in enumerate(sizes):
        query, key, value = (x[row, :size].unflatten(-1, (4, 8)).transpose(0, 1) for x in states)
        logits, part = query @ key.transpose(1, 2) / 8**0.5, decay[row, :, :size, :size]
        weights = torch.softmax(logits + part if mode == "bias" else logits * part, -1)
        kept = torch.empty(weights.shape, dtype=torch.bool).bernoulli_(0.6)
        mixed = (weights * kept / 0.6) @ value
        expected = expected.index_put((torch.tensor(row), torch.arange(size)), mixed.transpose(0, 1).flatten(1))
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)
    for one, other in zip(gradients, torch.autograd.grad((expected * weight).sum(), wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_other_heads_and_the_pooler():
    examples = _graphs((NUM_ROOTS, 4, 1, 5))
    packed, compact = inputs_of(packed_batch(examples, [1, 0, 0, 1], 2)), inputs_of(compact_batch(examples))
    model = tiny_model(GraphMertModel)
    with torch.no_grad():
        one, other = model(**packed, unpacked=True), model(**compact)
        real = compact["attention_mask"].bool()
        torch.testing.assert_close(one.last_hidden_state[real], other.last_hidden_state[real], rtol=1e-9, atol=1e-11)
        assert (one.last_hidden_state[~real] == 0).all()
        torch.testing.assert_close(one.pooler_output, other.pooler_output, rtol=1e-9, atol=1e-11)
    classifier, labels = tiny_model(GraphMertForSequenceClassification, num_labels=3), torch.tensor([0, 2, 1, 1])
    one, other = classifier(**packed, labels=labels), classifier(**compact, labels=labels)
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-10, atol=1e-12)
    masked = tiny_model(GraphMertForMaskedLM)
    assert masked(**packed).logits.shape[:2] == packed["input_ids"].shape


def test_contradicting_graph_ids_are_refused():
    model, inputs = tiny_model(GraphMertModel), inputs_of(packed_batch(_graphs((4, 3))))
    with pytest.raises(ValueError, match="need root_index"):
        model(inputs["input_ids"], graph_ids=inputs["graph_ids"])
    swapped = {**inputs, "graph_ids": inputs["graph_ids"].flip(1)}
    swapped["graph_ids"][0, 0] = 0
    with pytest.raises(ValueError, match="neighbours"):
        model(**swapped)
    with pytest.raises(ValueError, match="0, 1, 2"):
        graph_nodes(torch.tensor([[0, 0, 2, 2]]))


# ---- collator


def test_packed_layout_holds_the_same_nodes_and_labels():
    rows = windows()
    options = {
        "num_roots": 40,
        "leaves_per_root": 7,
        "mnm_target": "both",
        "mnm_probability": 0.3,
        "span_boundary": True,
    }
    compact = collator(**options, diagnostics=True)(rows)
    for more in ({}, {"max_nodes_per_row": 320}, {"pad_to_multiple_of": 64}):
        packed = collator(**options, layout="packed", diagnostics=True, **more)(rows)
        nodes, real = packed["indices"]["graph_nodes"], compact["attention_mask"].bool()
        assert torch.equal(nodes >= 0, real[:, : nodes.shape[1]])
        assert int(packed["attention_mask"].sum()) == int(real.sum())
        width = packed["input_ids"].shape[1]
        assert width == 320 if "max_nodes_per_row" in more else width % more.get("pad_to_multiple_of", 1) == 0
        for name in compact:
            values = packed[name].flatten()[nodes[nodes >= 0]]
            if name in ("span_left", "span_right"):
                # Columns of the row: those of the window and its first column.
                values = torch.where(values < 0, -1, values - (nodes[:, :1] % width).expand_as(nodes)[nodes >= 0])
            assert torch.equal(values, compact[name][real]), (name, more)
        assert (packed["labels"][packed["graph_ids"] < 0] == -100).all()


def test_rows_are_filled_first_fit_decreasing():
    assert first_fit_decreasing(np.array([3, 7, 5, 2, 4]), 10).tolist() == [0, 0, 1, 2, 1]
    with pytest.raises(ValueError, match="must hold the largest window, 24 nodes"):
        collator(layout="packed", max_nodes_per_row=23)
    with pytest.raises(ValueError, match="for the layout 'packed'"):
        collator(max_nodes_per_row=100)


# ---- trainer


def test_split_of_a_packed_batch_changes_nothing(tmp_path):
    """Eight examples in a step: in one row, in rows of one window's room, in parts; and the compact layout."""
    logs, metrics = [], []
    for layout, size, steps in (("compact", 8, 1), ("packed", 8, 1), ("packed", 2, 4), ("rows", 4, 2)):
        options = {"max_nodes_per_row": 200} if layout == "rows" else {}
        make = tiny_collator(layout="packed" if layout == "rows" else layout, mnm_target="both", **options)
        trainer = tiny_trainer(
            tmp_path,
            num_windows=28,
            model=tiny_pretraining_model(mnm_target="both"),
            collator=make,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            per_device_eval_batch_size=3,
        )
        trainer.train()
        logs.append(history(trainer))
        metrics.append(trainer.evaluate())
    for other in logs[1:]:
        assert_same_logs(logs[0], other)
    for other in metrics[1:]:
        for name, value in metrics[0].items():
            if "runtime" not in name and "second" not in name:
                assert other[name] == pytest.approx(value, rel=2e-6), name


def test_sums_of_packed_examples_are_those_of_the_examples(tmp_path):
    """Per example, in the order of the examples, with the diagnostics."""
    model, results = tiny_pretraining_model(), []
    for layout in ("compact", "packed"):
        make = tiny_collator(
            layout=layout, diagnostics=True, **({"max_nodes_per_row": 200} if layout == "packed" else {})
        )
        trainer = tiny_trainer(tmp_path, model=model, collator=make)
        inputs = make([trainer.eval_dataset[i] for i in range(9)])
        results.append(trainer.prediction_step(trainer.model.eval(), inputs, False)[1])
    assert results[0].shape == results[1].shape and len(results[0]) == 9
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)
    expected = plain_figures(model, trainer.eval_dataset, tiny_collator(diagnostics=True), split=True)
    trainer.eval_data_collator = make
    found = trainer.evaluate()
    for name, value in expected.items():
        assert found[f"eval_{name}"] == pytest.approx(value, rel=1e-5), name


def test_batch_without_any_leaf():
    examples = [Graph(graph.roots, [], graph.root_labels) for graph in graphs(0, (4, 3))]
    model = tiny_model(GraphMertForPreTraining)
    output = model(**packed_batch(examples))
    output.loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert model(**packed_batch(examples)).relation_logits.eq(0).all()
    assert set(batch_indices(batch(), 5)) == {"leaf_nodes", "leaf_grid", "head_pairs", "labelled_nodes"}
