"""Facts as edges between roots: distances, windows, batches, training and tasks."""

import json
import random

import naive
import numpy as np
import pytest
import torch
from datasets import Dataset
from graph_batches import compact_batch, packed_batch, padded_batch
from test_collator import collator, windows
from test_run_pretraining import SMALL, build_dataset, error_of, run
from test_windows import CODE, graph, triple
from tiny import tiny_tokenizer, window
from tiny_model import LEAVES, NUM_ROOTS, graphs, inputs_of, tiny_model
from tiny_tasks import checkpoint, context

import run_pretraining
from graphmert.chain_graphs import load_chain_graphs
from graphmert.chain_graphs.linking import link_file
from graphmert.chain_graphs.windows import WindowDataset
from graphmert.collator import root_distances
from graphmert.configuration_graphmert import GraphMertConfig
from graphmert.graph_layers_graphmert import graph_distance
from graphmert.modeling_graphmert import GraphMertForPreTraining, GraphMertModel
from graphmert.tasks.masked_language_model import MaskedLanguageModel, MaskedLanguageModelOptions
from graphmert.tasks.queries import ask_in_text, without_facts
from graphmert.tasks.variable_misuse import widened

LAYOUTS = ("compact", "padded", "packed")
SIZES = (NUM_ROOTS, 1, 5)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- distances


@pytest.mark.parametrize("seed", range(12))
def test_distances_are_the_shortest_paths_of_the_whole_graph(seed):
    rng = random.Random(seed)
    num_roots = rng.choice([1, 2, 5, 9])
    used = [(i, j) for i in range(num_roots) for j in range(4) if rng.random() < 0.5]
    edges = [(rng.randrange(num_roots), rng.randrange(num_roots)) for _ in range(rng.randrange(5))]
    nodes, paths = naive.chain_graph_distances(num_roots, used, [edge for edge in edges if edge[0] != edge[1]])
    # More rows than roots, as in a batch with longer windows.
    between = root_distances(num_roots + 3, np.array(edges, dtype=np.int64).reshape(-1, 2))
    root_index = torch.tensor([[root for root, _ in nodes]])
    leaf_index = torch.tensor([[leaf for _, leaf in nodes]])
    found = graph_distance(root_index, leaf_index, torch.from_numpy(between)[None])
    assert found[0].tolist() == [[int(d) for d in row] for row in paths] and found.dtype == torch.int64


def test_an_edge_written_by_hand():
    # 0 - 1 - 2 - 3 - 4 - 5 and 1 - 4.
    assert root_distances(6, np.array([[4, 1]])).tolist() == [
        [0, 1, 2, 3, 2, 3],
        [1, 0, 1, 2, 1, 2],
        [2, 1, 0, 1, 2, 3],
        [3, 2, 1, 0, 1, 2],
        [2, 1, 2, 1, 0, 1],
        [3, 2, 3, 2, 1, 0],
    ]


# ---- the model


def edges_of(seed: int) -> list[np.ndarray]:
    """Some edges for graphs of `SIZES`."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, size, (4 if size > 1 else 0, 2)) for size in SIZES]


def batches(seed: int = 0, edges=None) -> dict[str, dict]:
    """The same graphs in all layouts, with edges or the chain's own distances."""
    examples = graphs(seed, SIZES)
    edges = edges_of(seed) if edges is None else edges
    distance = torch.from_numpy(np.stack([root_distances(NUM_ROOTS, pairs) for pairs in edges]))
    made = (
        compact_batch(examples),
        padded_batch(examples, NUM_ROOTS, LEAVES),
        packed_batch(examples, [1, 0, 0], padding=2),
    )
    return {name: {**inputs, "root_distance": distance} for name, inputs in zip(LAYOUTS, made, strict=True)}


def results(model, inputs) -> list[torch.Tensor]:
    """Losses, relation logits and all gradients."""
    output = model(**inputs)
    gradients = torch.autograd.grad(output.loss, list(model.parameters()))
    return [output.mlm_loss, output.relation_loss, output.tail_loss, output.relation_logits, *gradients]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("mode", ["bias", "multiplicative"])
def test_layouts_and_backends_agree(mode, implementation):
    reference = None
    model = tiny_model(GraphMertForPreTraining, decay_mode=mode, mnm_target="both", attn_implementation="eager")
    for layout, inputs in batches().items():
        model.set_attn_implementation("eager" if reference is None else implementation)
        reference = results(model, inputs) if reference is None else reference
        model.set_attn_implementation(implementation)
        for found, expected in zip(results(model, inputs), reference, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11, msg=layout)
    without = {name: value for name, value in batches()["compact"].items() if name != "root_distance"}
    assert abs(results(model, without)[0] - reference[0]) > 1e-4


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("mode", ["bias", "multiplicative"])
def test_an_attention_layer_equals_pairwise_loops(mode, implementation):
    """Values and gradients of the first layer inside of the model, SegmentAttention included."""
    model = tiny_model(GraphMertModel, decay_mode=mode, attn_implementation=implementation)
    inputs = inputs_of(batches()["compact"])
    layer, caught = model.encoder.layer[0].attention.self, {}

    def hook(module, arguments, output):
        caught.update(states=arguments[0], output=output[0])

    handle = layer.register_forward_hook(hook)
    model(**inputs)
    handle.remove()
    states, output = caught["states"], caught["output"]
    real = inputs["attention_mask"].bool()
    weight = torch.randn(output.shape, dtype=torch.float64) * real[:, :, None]
    expected = naive.self_attention(states, layer, inputs, model.decay.offset, mode, model.config.decay_base)
    torch.testing.assert_close(output[real], expected[real], rtol=1e-9, atol=1e-11)
    wanted = [states, layer.query.weight, layer.value.weight, model.decay.offset]
    gradients = torch.autograd.grad((output * weight).sum(), wanted, retain_graph=True)
    for found, other in zip(gradients, torch.autograd.grad((expected * weight).sum(), wanted), strict=True):
        torch.testing.assert_close(found, other, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_without_edges_the_numbers_are_the_same_to_the_bit(implementation):
    model = tiny_model(GraphMertForPreTraining, mnm_target="both", attn_implementation=implementation)
    none = [np.zeros((0, 2), dtype=np.int64)] * len(SIZES)
    for layout, inputs in batches(edges=none).items():
        plain = {name: value for name, value in inputs.items() if name != "root_distance"}
        for found, expected in zip(results(model, inputs), results(model, plain), strict=True):
            assert torch.equal(found, expected), layout


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_row_of_padding_alone_takes_no_other_rows_edges(implementation):
    model = tiny_model(GraphMertModel, attn_implementation=implementation)
    inputs = inputs_of(batches()["compact"])
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state[2]
        inputs["attention_mask"][1] = 0
        found = model(**inputs).last_hidden_state[2]
    real = inputs["attention_mask"][2].bool()
    torch.testing.assert_close(found[real], expected[real], rtol=1e-12, atol=1e-12)


def test_what_cannot_be_read_is_refused():
    inputs = inputs_of(batches()["compact"])
    distance = inputs["root_distance"]
    model = tiny_model(GraphMertModel)

    def refused(message, which=model, **changed):
        with pytest.raises(ValueError, match=message):
            which(**{**inputs, **changed})

    refused(
        "flex_attention does not take root_distance", tiny_model(GraphMertModel, attn_implementation="flex_attention")
    )
    refused("decay_mode=None", tiny_model(GraphMertModel, decay_mode=None))
    refused("holds 2 graphs, but the input has 3 rows", root_distance=distance[:2])
    refused("must be integers", root_distance=distance[0])
    refused("must be integers", root_distance=distance.double())
    refused("holds 6 roots, but root_index goes up to 6", root_distance=distance[:, :6, :6])
    refused("0 on the diagonal and 1..6 elsewhere", root_distance=distance + 1)
    refused("0 on the diagonal and 1..6 elsewhere", root_distance=distance * 2)
    refused("0 on the diagonal and 1..6 elsewhere", root_distance=distance * 0)
    with pytest.raises(ValueError, match="needs root_index"):
        model(inputs["input_ids"], root_distance=distance)
    packed = inputs_of(batches()["packed"])
    with pytest.raises(ValueError, match="holds 2 graphs, but graph_ids count 3"):
        model(**{**packed, "root_distance": distance[:2]})


# ---- windows


def rows_of(*triples, code=CODE) -> Dataset:
    row, _ = link_file(code, graph(*triples), tiny_tokenizer())
    return Dataset.from_dict({name: [values] for name, values in row.items()})


FLOW = "path = read(mode)\ntext = path\nload(text, path)\n"


def flow(head, tail, head_at=0, tail_at=0, is_use=False):
    return triple(head, "flows_to", tail, FLOW, head_at, tail_at, is_use)


def test_facts_with_both_ends_in_the_window_become_edges():
    tokenizer = tiny_tokenizer()
    calls = triple("text", "calls", "load", FLOW)
    # The same flow twice, at other places: two edges of one fact.
    data = rows_of(flow("mode", "path"), flow("path", "text", 1), flow("path", "text", 0, 1), calls, code=FLOW)
    plain = WindowDataset(data, tokenizer, 40, 4)
    made = WindowDataset(data, tokenizer, 40, 4, edge_relations=["flows_to"])
    item = made[0]
    words = tokenizer.convert_ids_to_tokens(item["input_ids"])

    def text(start, length):
        return "".join(words[start : start + length]).lstrip("Ġ")

    named = [(text(a, n), text(b, m)) for a, n, b, m in item["edges"].tolist()]
    assert named == [("path", "text"), ("mode", "path"), ("path", "text")]
    assert len({tuple(edge) for edge in item["edges"].tolist()}) == 3
    # The call is a leaf as before, the flows are leaves no longer.
    assert item["relation"].tolist() == [0] and sorted(plain[0]["relation"].tolist()) == [0, 11, 11]
    assert "edges" not in plain[0] and plain.statistics()["edges"] == plain.statistics()["facts_as_edges"] == 0
    counts = made.statistics()
    assert (counts["edges"], counts["facts_as_edges"], counts["facts"]) == (3, 2, 1)
    assert made.lengths[0] < plain.lengths[0]
    # Edges need no anchor at the tail's place, and follow the choice of uses; without leaf slots there is no graph.
    off = WindowDataset(data, tokenizer, 40, 4, include_site_anchors=False, edge_relations=["flows_to"])
    assert off[0]["edges"].tolist() == item["edges"].tolist()
    assert "edges" not in WindowDataset(data, tokenizer, 40, 0, edge_relations=["flows_to"])[0]
    used = rows_of(flow("mode", "path", is_use=True), code=FLOW)
    assert len(WindowDataset(used, tokenizer, 40, 4, edge_relations=["flows_to"])[0]["edges"]) == 1
    only = WindowDataset(used, tokenizer, 40, 4, include_uses=False, edge_relations=["flows_to"])
    assert len(only[0]["edges"]) == len(only[0]["relation"]) == 0


def test_facts_whose_tail_is_elsewhere_stay_leaves():
    tokenizer = tiny_tokenizer()
    elsewhere = flow("mode", "path")
    elsewhere.tail_start = elsewhere.tail_end = None
    data = rows_of(elsewhere, flow("path", "text", 1), code=FLOW)
    made = WindowDataset(data, tokenizer, 40, 4, edge_relations=["flows_to"])[0]
    assert made["relation"].tolist() == [11] and len(made["edges"]) == 1
    # And in windows that hold one end only, from the first to the last line.
    far = rows_of(flow("mode", "text", 0, 1), code=FLOW)
    windows = WindowDataset(far, tokenizer, 10, 4, edge_relations=["flows_to"])
    assert len(windows) > 2 and sum(len(windows[i]["edges"]) for i in range(len(windows))) == 0
    assert windows.statistics()["relations"]["flows_to"]["facts"] > 0


def test_relations_that_cannot_be_edges():
    data = rows_of(flow("mode", "path"), code=FLOW)
    with pytest.raises(ValueError, match="edge_relations names 'flows'; the relations are"):
        WindowDataset(data, tiny_tokenizer(), edge_relations=["flows"])
    with pytest.raises(ValueError, match="flows_to is in exclude_relations and in edge_relations"):
        WindowDataset(data, tiny_tokenizer(), exclude_relations=["flows_to"], edge_relations=["flows_to"])


# ---- batches


def with_edges(item: dict, *edges) -> dict:
    return {**item, "edges": np.array(edges, dtype=np.int32).reshape(-1, 4)}


def test_a_batch_holds_the_distances_of_its_windows():
    # A head of two roots: the edge begins at its first.
    one = with_edges(window([0, 10, 11, 12, 13, 2]), (1, 2, 4, 1))
    two = with_edges(window([0, 10, 2], index=1))
    for layout in LAYOUTS:
        make = collator(layout=layout, mlm_probability=0, mnm_probability=0)
        batch = make([two, one])
        assert batch["root_distance"].dtype == torch.int16 and batch["root_distance"].shape == (2, 6, 6)
        assert batch["root_distance"][0].tolist() == root_distances(6, np.zeros((0, 2), dtype=int)).tolist()
        assert batch["root_distance"][1].tolist() == root_distances(6, np.array([[1, 4]])).tolist()
        assert make.statistics["edges"] == 1 and make.statistics["edges_dropped_on_masked_span"] == 0
    plain = collator(mlm_probability=0, mnm_probability=0)
    assert "root_distance" not in plain([window([0, 10, 2])]) and "edges" not in plain.statistics


def test_masks_do_not_depend_on_edges_and_edges_on_masked_spans_are_dropped():
    rng = np.random.default_rng(0)
    rows = []
    for item in windows(40):
        size = len(item["input_ids"])
        starts = rng.integers(1, size - 1, (6, 2))
        lengths = np.minimum(rng.integers(1, 4, (6, 2)), size - 1 - starts)
        rows.append(with_edges(item, *np.stack([starts, lengths], axis=2).reshape(-1, 4).tolist()))
    options = {"num_roots": 40, "leaves_per_root": 7, "mnm_probability": 0.3}
    plain = collator(**options)(windows(40))
    for handling in ("drop", "hide", "keep"):
        make = collator(**options, masked_span_leaves=handling)
        batch = make(rows)
        masked = batch["labels"] >= 0
        masked &= batch["leaf_index"] < 0
        num_dropped = 0
        for row, item in enumerate(rows):
            kept = []
            for start, length, other, other_length in item["edges"].tolist():
                touched = masked[row, start : start + length].any() or masked[row, other : other + other_length].any()
                num_dropped += bool(touched)
                if handling == "keep" or not touched:
                    kept.append((start, other))
            expected = root_distances(40, np.array(kept, dtype=int).reshape(-1, 2))
            assert np.array_equal(batch["root_distance"][row].numpy(), expected)
        assert make.statistics["edges"] == 240 and 50 < num_dropped < 200
        assert make.statistics["edges_dropped_on_masked_span"] == (0 if handling == "keep" else num_dropped)
        if handling == "drop":
            for name, values in plain.items():
                assert torch.equal(values, batch[name]), name


def test_the_batch_of_a_masked_window_says_nothing_of_edges_on_its_masked_spans():
    """Wherever the other end of an edge on a masked word lies, the batch is the same to the bit."""
    item = window(list(range(20)), index=3)
    make = collator(num_roots=20, mlm_probability=0.4)
    masked = make([with_edges(item)])["labels"][0].ge(0).nonzero()[:, 0].tolist()
    shown = [i for i in range(1, 19) if i not in masked]
    reference = make([with_edges(item, (shown[0], 1, shown[-1], 1))])
    for other in (shown[0], shown[-1], masked[-1]):
        batch = make(
            [with_edges(item, (shown[0], 1, shown[-1], 1), (masked[0], 1, other, 1), (other, 1, masked[0], 1))]
        )
        assert batch.keys() == reference.keys()
        assert all(torch.equal(batch[name], reference[name]) for name in batch)


# ---- training and tasks


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    data = build_dataset(tmp_path_factory)
    output = tmp_path_factory.mktemp("run") / "out"
    arguments = ["--dataset", data, "--output_dir", output, *SMALL, "--edge_relations", "flows_to", "--max_steps", "3"]
    assert run(*arguments, "--order_leaves_per_root", "3", "--train_sampling_strategy", "group_by_length") == 0
    return data, output


def test_training_with_edges_and_what_its_checkpoint_is_given(trained):
    data, output = trained
    summary = json.loads((output / "summary.json").read_text())
    counts = summary["windows"]["training"]
    assert counts["edges"] >= counts["facts_as_edges"] > 10
    # Only names that straddle, or whose tail is elsewhere, stay leaves.
    assert counts["relations"]["flows_to"]["facts"] < counts["facts_as_edges"]
    opened = context(output, dataset=str(data), splits=["validation"])
    windows = opened.windows(opened.test)
    assert opened.window_options()["edge_relations"] == ("flows_to",) and opened.recipe["edge_relations"] == [
        "flows_to"
    ]
    batch = opened.collator(mlm_probability=0.15)([windows[i] for i in range(len(windows))])
    assert "edges" in windows[0] and opened.inputs(batch)["root_distance"].shape == (len(windows), 48, 48)
    loaded = GraphMertForPreTraining.from_pretrained(output)
    assert loaded.config.edge_relations == ["flows_to"]
    with torch.no_grad():
        ours = opened.predict(batch).logits
        plain = opened.predict({name: value for name, value in batch.items() if name != "root_distance"}).logits
        again = loaded.eval()(**opened.inputs(batch), labels=batch["labels"], sparse_prediction=True).logits
    torch.testing.assert_close(again, ours)
    assert not torch.allclose(ours, plain)


def test_rows_with_edges_are_pairs_of_rows_without(trained):
    data, _ = trained
    options = ["--dataset", data, "--output_dir", "unused", *SMALL, "--order_leaves_per_root", "3"]
    options += ["--train_sampling_strategy", "group_by_length"]
    sets = []
    for more in ([], ["--edge_relations", "flows_to"]):
        model, data_args, _, training = run_pretraining.parse_arguments([str(o) for o in (*options, *more)])
        sets.append(run_pretraining.open_dataset(model, data_args, training)[0])
    one, other = sets
    assert np.array_equal(one.order_lengths, other.order_lengths) and not np.array_equal(one.lengths, other.lengths)
    tokenizer = load_chain_graphs(data)[2]
    make = run_pretraining.GraphMertCollator(tokenizer, num_roots=48, leaves_per_root=3)
    for indices in (range(5), range(5, 9)):
        first, second = (make([each[i % len(each)] for i in indices]) for each in sets)
        size = min(first["labels"].shape[1], second["labels"].shape[1])
        roots = [(batch["labels"] * (batch["leaf_index"] < 0))[:, :size] for batch in (first, second)]
        assert all(torch.equal(a[a > 0], b[b > 0]) for a, b in zip(*(list(part) for part in roots), strict=True))


def test_options_that_stand_against_edges(tmp_path, capsys):
    def error(*options):
        return error_of(
            capsys, "--dataset", "x", "--output_dir", tmp_path / "o", "--edge_relations", "flows_to", *options
        )

    assert "decay_mode is none" in error("--decay_mode", "none")
    assert "leaves_per_root 0" in error("--leaves_per_root", "0")
    assert "flex_attention knows no edges" in error("--attn_implementation", "flex_attention")
    chosen = []
    model = type("M", (), {"config": GraphMertConfig(attention_probs_dropout_prob=0.0)})()
    model.set_attn_implementation = chosen.append
    for with_edges in (False, True):
        run_pretraining.choose_attention_backend(model, torch.device("cuda"), with_edges)
    assert chosen == ["flex_attention", "sdpa"]


def test_masked_language_model_scores_a_checkpoint_with_edges_at_the_same_tokens():
    options = MaskedLanguageModelOptions(48, 4)
    plain = MaskedLanguageModel().run(context(), options)
    edges = MaskedLanguageModel().run(context(checkpoint("edges", (("edge_relations", ("flows_to",)),))), options)
    assert plain.counts == edges.counts and plain.baselines == edges.baselines
    assert plain.figures["loss"] != edges.figures["loss"]
    # Without its graph, edges included, it is the same checkpoint.
    removed = "leaves removed"
    assert plain.controls[removed]["loss"] == pytest.approx(edges.controls[removed]["loss"], abs=1e-6)


def test_edges_move_with_the_text():
    item = with_edges(window(list(range(12)), [(3, 1, 5, 0, 0, 3, 0, [9])]), (2, 1, 6, 2), (6, 2, 9, 1))
    assert without_facts(item)["edges"].shape == (0, 4)
    assert widened(item, 4, 1, 99, 3)["edges"].tolist() == [[2, 1, 8, 2], [8, 2, 11, 1]]
    query = type("Q", (), {"prefix": [50], "place": 5})()
    config = type("C", (), {"num_roots": 20})()
    asked, _ = ask_in_text(item, query, [99, 99], config)
    assert asked["edges"].tolist() == [[2, 1, 9, 2], [9, 2, 12, 1]]
    # Tokens at the end give way, and with them the edges that end there.
    config.num_roots = 12
    asked, _ = ask_in_text(item, query, [99, 99], config)
    assert asked["edges"].tolist() == [[2, 1, 9, 2]]
    query.place = 9
    asked, (place, _) = ask_in_text(item, query, [99, 99], config)
    assert place == 9 - 3 + 1 and asked["edges"].tolist() == [[3, 2, 9, 1]]
