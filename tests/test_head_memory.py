"""The head memory against a reference in whole numbers, and what a user meets of it."""

import json
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from graph_batches import Anchor, Graph, compact_batch, packed_batch, padded_batch
from test_hub_tampered import change_weights
from test_run_pretraining import SMALL, dataset, run
from tiny_model import LEAVES, NUM_ROOTS, RELATIONS, batch, graphs, inputs_of, randomize, tiny_config, tiny_model

import run_pretraining
from graphmert.batch_indices_graphmert import batch_indices
from graphmert.chain_graphs import WindowDataset, load_chain_graphs
from graphmert.chain_graphs.known_heads import count_votes, folds_of
from graphmert.chain_graphs.windows import canonical_ids
from graphmert.head_memory_graphmert import UNUSED, VIEWS, HeadMemory, head_keys
from graphmert.modeling_graphmert import (
    GraphMertForMaskedLM,
    GraphMertForPreTraining,
    GraphMertModel,
    parameter_counts,
)
from graphmert.pretraining_arguments import parse_arguments

__all__ = ["dataset"]
FOLDS, ANSWERS = 3, 2
LAYOUTS = {
    "compact": compact_batch,
    "padded": lambda examples: padded_batch(examples, NUM_ROOTS, LEAVES),
    "packed": packed_batch,
}


def _mixed(value: int) -> int:
    """splitmix64 of Steele, Lea and Flood, one step."""
    bits = 2**64 - 1
    value = value * 0x9E3779B97F4A7C15 & bits
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & bits
    value = (value ^ value >> 27) * 0x94D049BB133111EB & bits
    return value ^ value >> 31


def _keys(head: list[int], relation: int, is_reversed: int) -> tuple[int, ...]:
    whole = sum(_mixed(token + 1 + place * 0x9E3779B97F4A7C15) for place, token in enumerate(head))
    names = (whole, _mixed(head[0] + 1), _mixed(head[-1] + 1))
    kind = 2 * relation + is_reversed
    mixed = [_mixed(name + _mixed(-(3 * kind + number + 1))) for number, name in enumerate(names)]
    return tuple(value - 2**64 if value >= 2**63 else value for value in mixed)


def _head_of(graph: Graph, anchor: Anchor) -> list[int]:
    return graph.roots[anchor.head_start :][: anchor.head_length]


def _all_keys(examples) -> list[int]:
    """Keys of all facts, each once, in rising order."""
    found = {key for g in examples for a in g.anchors for key in _keys(_head_of(g, a), a.relation, a.reversed)}
    return sorted(found)


def _options(examples=None, **options) -> dict:
    sizes = {"head_memory_folds": FOLDS, "head_memory_answers": ANSWERS}
    return {"head_memory_keys": len(_all_keys(examples or graphs())), **sizes, **options}


def _votes_for(keys: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Votes of nobody knows whom; some folds have none, and some more than are kept."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(keys), FOLDS, ANSWERS)
    answers = torch.randint(4, 90, shape, generator=generator)
    votes = (torch.randint(0, 4, shape, generator=generator) / 2).sort(dim=2, descending=True).values
    more = torch.randint(0, 2, shape[:2], generator=generator) * (votes[:, :, -1] > 0)
    return {"keys": torch.tensor(keys), "answers": answers, "votes": votes, "voters": votes.sum(2) + more}


def _knowing(model, examples):
    memory = model.head_memory if hasattr(model, "head_memory") else model.roberta.head_memory
    memory.remember(_votes_for(_all_keys(examples)))
    return model


def test_keys_equal_the_reference():
    examples = [graph for seed in range(4) for graph in graphs(seed)]
    anchors = [(graph, anchor) for graph in examples for anchor in graph.anchors]
    heads = [_head_of(*found) for found in anchors]
    length = torch.tensor([len(head) for head in heads])
    keys = head_keys(
        torch.tensor([token for head in heads for token in head]),
        torch.cat([torch.arange(len(head)) for head in heads]),
        torch.arange(len(heads)).repeat_interleave(length),
        torch.tensor([anchor.relation for _, anchor in anchors]),
        torch.tensor([anchor.reversed for _, anchor in anchors]),
        length,
    )
    expected = [_keys(head, a.relation, a.reversed) for head, (_, a) in zip(heads, anchors, strict=True)]
    assert list(map(tuple, keys.tolist())) == expected and len(set(expected)) > 10


def test_keys_are_those_of_saved_tables():
    """Other numbers would make every saved table useless."""
    assert _keys([10, 11], 3, 0) == (-273343515091893421, -2736464015516759133, 8966368078535434043)


def test_what_shares_keys():
    whole, first, last = _keys([10, 11], 1, 0)
    assert len({whole, first, last}) == len(VIEWS)
    assert _keys([10, 12, 11], 1, 0)[1:] == (first, last) and _keys([10, 12, 11], 1, 0)[0] != whole
    others = (([11, 10], 1, 0), ([10, 11], 2, 0), ([10, 11], 1, 1), ([10, 11], RELATIONS, 0), ([10], 0, 1))
    for other in others:
        assert not {*_keys(*other)} & {whole, first, last}
    # Small ids of tokens and numbers of relations do not stand for each other.
    short = {key for token in range(60) for relation in range(13) for key in _keys([token], relation, 0)}
    assert len(short) == 60 * 13 * len(VIEWS)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("with_folds", [False, True])
def test_update_worked_out_leaf_by_leaf(layout, with_folds):
    """Half of the keys are known; the second graph is of no project that was counted."""
    examples = graphs(seed=2, sizes=(NUM_ROOTS, 4, NUM_ROOTS - 1))
    votes = _votes_for(_all_keys(examples)[::2])
    rows = {key: row for row, key in enumerate(votes["keys"].tolist())}
    memory = HeadMemory(6, len(rows), FOLDS, ANSWERS).double()
    memory.remember(votes)
    randomize(memory)
    inputs = LAYOUTS[layout](examples)
    torch.manual_seed(0)
    words, embeddings = (torch.randn(*shape, 6).double() for shape in (inputs["input_ids"].shape, (100,)))
    graph_of = inputs.get("graph_ids", torch.arange(len(words))[:, None].expand(words.shape[:2]))
    folds = [0, -1, 2] if with_folds else [-1, -1, -1]
    fold = torch.tensor([*folds, -1])[graph_of] if with_folds else None
    indices = batch_indices(inputs, RELATIONS)
    places = (indices["leaf_nodes"], indices["head_pairs"])
    output = memory(words, embeddings, memory.look_up(inputs["input_ids"], inputs, *places, fold))
    expected, num_known = words.clone(), 0
    for place in map(tuple, ((inputs["relation_ids"] >= 0) & (inputs["attention_mask"] > 0)).nonzero().tolist()):
        number = int(graph_of[place])
        start, length, relation, is_reversed = (
            int(inputs[name][place]) for name in ("head_start", "head_length", "relation_ids", "relation_reversed")
        )
        head = examples[number].roots[start : start + length]
        for view, key in enumerate(_keys(head, relation, is_reversed)):
            if key not in rows:
                continue
            num_known += 1
            seen = [f for f in range(FOLDS) if f != folds[number]]
            voters = sum(float(votes["voters"][rows[key], f]) for f in seen)
            for f in seen:
                for answer, weight in zip(votes["answers"][rows[key], f], votes["votes"][rows[key], f], strict=True):
                    expected[place] += weight / (voters + 1) * (memory.projection[view] @ embeddings[answer])
    torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-7)
    assert num_known > 10 and not torch.equal(output, words)


def _mixed_by_hand(model, inputs) -> torch.Tensor:
    """Probabilities at every node, (B, N, V), leaf by leaf."""
    states = model.roberta(**{name: value for name, value in inputs.items() if "labels" not in name})
    probabilities = model.lm_head(states.last_hidden_state).softmax(-1).detach()
    memory, head = model.roberta.head_memory, model.memory_head
    indices = batch_indices(inputs, RELATIONS)
    found = memory.look_up(inputs["input_ids"], inputs, indices["leaf_nodes"], indices["head_pairs"])
    for node, answers, shares in zip(*found, strict=True):
        place = divmod(int(node), inputs["input_ids"].shape[1])
        views = [view for view in range(len(VIEWS)) if shares[view].sum() > 0]
        scores = (head.weight @ states.last_hidden_state[place] + head.bias)[[0, *(view + 1 for view in views)]]
        gates, lm = scores.softmax(-1).detach(), probabilities[place].clone()
        probabilities[place] = gates[0] * lm
        for gate, view in zip(gates[1:], views, strict=True):
            probabilities[place] += gate * (1 - shares[view].sum()) * lm
            for answer, share in zip(answers[view].tolist(), shares[view], strict=True):
                probabilities[place][answer] += gate * share
    return probabilities


def test_tails_are_named_by_the_lm_head_and_the_memory():
    model = _knowing(tiny_model(GraphMertForPreTraining, **_options(), mnm_target="both"), graphs())
    memory = model.roberta.head_memory.float()
    # Some views of a head have votes, others none.
    memory.votes[::3], memory.voters[::3] = 0, 0
    inputs = batch()
    expected, nodes = _mixed_by_hand(model, inputs), inputs["attention_mask"] > 0
    torch.testing.assert_close(expected.sum(-1), torch.ones_like(expected[:, :, 0]), rtol=1e-6, atol=1e-6)
    whole = model(**inputs)
    torch.testing.assert_close(whole.logits.softmax(-1)[nodes], expected[nodes], rtol=1e-5, atol=1e-7)
    plain = model.lm_head(model.roberta(**inputs_of(inputs)).last_hidden_state).softmax(-1)
    assert ((plain - expected).abs().amax(-1) > 1e-3).sum() > 5
    assert torch.equal(whole.logits[inputs["leaf_index"] < 0].softmax(-1), plain[inputs["leaf_index"] < 0])

    labelled = inputs["labels"] >= 0
    sparse, fused = model(**inputs, sparse_prediction=True), model(**inputs, fused_loss=True)
    torch.testing.assert_close(sparse.logits, whole.logits[labelled], rtol=1e-9, atol=1e-9)
    losses = -expected[labelled].gather(1, inputs["labels"][labelled][:, None]).log()[:, 0]
    torch.testing.assert_close(fused.label_losses, losses, rtol=1e-5, atol=1e-6)
    assert fused.label_predictions.tolist() == expected[labelled].argmax(-1).tolist()
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(output.loss, parameters) for output in (whole, sparse, fused)]
    for other in gradients[1:]:
        for gradient, other_gradient in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(gradient, other_gradient, rtol=1e-5, atol=1e-7)
    named = dict(zip((name for name, _ in model.named_parameters()), gradients[0], strict=True))
    for name in ("memory_head.weight", "memory_head.bias", "roberta.head_memory.projection"):
        assert named[name].abs().max() > 0, name


@pytest.mark.parametrize("with_memory", [False, True])
def test_predictions_change_only_where_the_memory_speaks(with_memory):
    """A memory that is sure of one word names it where the gate is open, and nowhere else."""
    examples = [graph for seed in range(3) for graph in graphs(seed)]
    model = _knowing(tiny_model(GraphMertForPreTraining, **_options(examples), mnm_target="both"), examples)
    memory = model.roberta.head_memory
    with torch.no_grad():
        memory.projection.zero_()
        memory.answers.fill_(33)
        memory.votes.fill_(100.0 if with_memory else 0.0)
        memory.voters.fill_(600.0 if with_memory else 0.0)
        model.memory_head.weight.zero_()
        model.memory_head.bias.copy_(torch.tensor([0.0, 9.0, 9.0, 9.0]))
    inputs = compact_batch(examples)
    predicted = model(**inputs, fused_loss=True).label_predictions
    is_leaf = (inputs["leaf_index"] >= 0)[inputs["labels"] >= 0]
    assert is_leaf.sum() > 2 and (~is_leaf).sum() > 2
    plain = model.lm_head(model.roberta(**inputs_of(inputs)).last_hidden_state)[inputs["labels"] >= 0].argmax(-1)
    assert torch.equal(predicted[~is_leaf], plain[~is_leaf])
    assert (predicted[is_leaf] == 33).all() if with_memory else torch.equal(predicted, plain)


def test_a_probability_that_vanishes_has_a_finite_loss():
    model = _knowing(tiny_model(GraphMertForPreTraining, dtype=torch.float32, **_options()), graphs())
    inputs = batch()
    with torch.no_grad():
        model.lm_head.bias[inputs["labels"].clamp(min=0)] = -1e4
        model.roberta.head_memory.voters.mul_(0).add_(model.roberta.head_memory.votes.sum(2))
    for options in ({}, {"fused_loss": True}):
        model.zero_grad()
        loss = model(**inputs, **options, indices=None).loss
        loss.backward()
        assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_it_starts_as_nothing_and_learns():
    torch.manual_seed(0)
    model = _knowing(GraphMertForPreTraining(tiny_config(**_options(), mnm_target="both", use_hgat=False)), graphs())
    plain = GraphMertForPreTraining(tiny_config(mnm_target="both", use_hgat=False)).eval()
    report = plain.load_state_dict(model.eval().state_dict(), strict=False)
    names = [f"roberta.head_memory.{name}" for name in ("keys", "answers", "votes", "voters", "projection")]
    assert set(report.unexpected_keys) == {*names, "memory_head.weight", "memory_head.bias"}
    inputs = batch()
    # States are the same; what is named at leaves is mixed with votes from the start, by a little.
    states = [each.roberta(**inputs_of(inputs)).last_hidden_state for each in (model, plain)]
    assert torch.equal(*states)
    logits, is_leaf = (model(**inputs).logits, plain(**inputs).logits), inputs["leaf_index"] >= 0
    assert torch.equal(logits[0][~is_leaf], logits[1][~is_leaf]) and not torch.equal(*logits)
    assert parameter_counts(model)["head memory"] == len(VIEWS) * 32 * 32
    assert parameter_counts(model)["memory head"] == (len(VIEWS) + 1) * 33
    model(**inputs).loss.backward()
    assert (model.roberta.head_memory.projection.grad.abs().amax((1, 2)) > 0).all()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]


def test_what_is_not_known_changes_nothing():
    examples = graphs(seed=9)
    model = tiny_model(GraphMertModel, **_options())
    assert (model.head_memory.keys == UNUSED).all()
    states = model(**inputs_of(compact_batch(examples))).last_hidden_state
    # Other heads are known.
    others = _all_keys(graphs())
    assert not {*others} & {*_all_keys(examples)}
    model.head_memory.remember(_votes_for(others))
    assert torch.equal(model(**inputs_of(compact_batch(examples))).last_hidden_state, states)
    known = model(**inputs_of(batch())).last_hidden_state
    with torch.no_grad():
        model.head_memory.keys.fill_(UNUSED)
    assert not torch.equal(model(**inputs_of(batch())).last_hidden_state, known)


def test_a_window_does_not_see_the_votes_of_its_own_fold():
    examples = graphs(seed=3, sizes=(NUM_ROOTS,))
    model = _knowing(tiny_model(GraphMertModel, **_options(examples)), examples)
    inputs = inputs_of(compact_batch(examples))
    fold = torch.ones_like(inputs["input_ids"])
    states = model(**inputs, memory_fold=fold).last_hidden_state
    assert not torch.equal(model(**inputs).last_hidden_state, states)
    model.head_memory.votes[:, 1], model.head_memory.voters[:, 1] = 7, 20
    assert torch.equal(model(**inputs, memory_fold=fold).last_hidden_state, states)
    assert torch.equal(model(**inputs, memory_fold=-fold).last_hidden_state, model(**inputs).last_hidden_state)
    model.head_memory.votes[:, 2] += 1
    assert not torch.equal(model(**inputs, memory_fold=fold).last_hidden_state, states)


def test_what_is_remembered_is_checked():
    memory = HeadMemory(6, 3, FOLDS, ANSWERS)
    for keys in ([1, 2], [1, 2, 3, 4]):
        with pytest.raises(ValueError, match=rf"keys must have the shape \(3,\), got \({len(keys)},\)"):
            memory.remember(_votes_for(keys))
    with pytest.raises(ValueError, match=r"voters must have the shape \(3, 3\), got \(3, 2\)"):
        memory.remember({**_votes_for([1, 2, 3]), "voters": torch.zeros(3, 2)})
    for keys in ([1, 2, 2], [1, 3, 2]):
        with pytest.raises(ValueError, match="keys must rise"):
            memory.remember(_votes_for(keys))


def test_layouts_agree_and_indices_change_nothing():
    examples = graphs(seed=4)
    options = _options(examples)
    model = _knowing(tiny_model(GraphMertForPreTraining, **options, mnm_target="both", use_hgat=False), examples)
    losses = [model(**make(examples)).loss for make in LAYOUTS.values()]
    given = compact_batch(examples)
    losses.append(model(**given, indices=batch_indices(given, RELATIONS)).loss)
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-10, atol=1e-12)
    # No direction given is direction 0.
    del given["relation_reversed"]
    assert not torch.equal(model(**given).loss, losses[0])


def test_compiled_equals_uncompiled():
    options = dict(dtype=torch.float32, num_hidden_layers=1, **_options())
    model = _knowing(tiny_model(GraphMertForPreTraining, **options), graphs())
    compiled = torch.compile(model, backend="aot_eager")
    one, other = model(**batch()), compiled(**batch())
    torch.testing.assert_close(one.loss, other.loss)
    wanted = list(model.roberta.head_memory.parameters())
    for mine, its in zip(*(torch.autograd.grad(o.loss, wanted) for o in (one, other)), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)
        assert mine.abs().max() > 0


def test_without_leaves_it_takes_no_part():
    model = tiny_model(GraphMertModel, **_options())
    ids = torch.tensor([[5, 6, 7]])
    states = model(input_ids=ids).last_hidden_state
    with torch.no_grad():
        model.head_memory.projection.zero_()
    assert torch.equal(model(input_ids=ids).last_hidden_state, states)
    assert tiny_model(GraphMertModel, **_options(), leaves_per_root=0).head_memory is None
    assert tiny_model(GraphMertModel).head_memory is None


def test_heads_are_looked_up_by_their_tokens():
    model = tiny_model(GraphMertModel, **_options(), use_hgat=False)
    inputs = inputs_of(batch())
    embeds = model.embeddings.word_embeddings(inputs["input_ids"])
    with pytest.raises(ValueError, match="head_memory_keys needs input_ids"):
        model(**{**inputs, "input_ids": None}, inputs_embeds=embeds)
    del inputs["head_start"]
    with pytest.raises(ValueError, match="relation_ids need head_start and head_length"):
        model(**inputs)


def test_saved_and_loaded(tmp_path):
    model = _knowing(tiny_model(GraphMertForPreTraining, dtype=torch.float32, **_options()), graphs())
    model.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        memory = GraphMertForPreTraining.from_pretrained(tmp_path, dtype=dtype).roberta.head_memory
        votes = _votes_for(_all_keys(graphs()))
        assert memory.projection.dtype == dtype and all(
            torch.equal(getattr(memory, name), value.to(getattr(memory, name).dtype)) for name, value in votes.items()
        )
    loaded = GraphMertForPreTraining.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**batch()).logits, model(**batch()).logits)
    change_weights(tmp_path, lambda weights: weights.pop("roberta.head_memory.keys"))
    with pytest.raises(ValueError, match=r"1 of \d+ tensors of the encoder are missing, first head_memory.keys"):
        GraphMertModel.from_pretrained(tmp_path)


def test_a_checkpoint_without_one_gets_an_empty_one(tmp_path):
    tiny_model(GraphMertForMaskedLM, dtype=torch.float32).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["head_memory_keys"] == 0
    model = GraphMertForMaskedLM.from_pretrained(tmp_path, head_memory_keys=50)
    memory = model.roberta.head_memory
    assert (memory.keys == UNUSED).all()
    for name in ("answers", "votes", "voters", "projection"):
        assert not getattr(memory, name).any(), name
    # A table of another size is another table.
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"head_memory.keys has shape \(50,\), config.json asks for \(60,\)"):
        GraphMertModel.from_pretrained(tmp_path, head_memory_keys=60)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"head_memory_keys": -1}, "head_memory_keys"),
        ({"head_memory_keys": True}, "head_memory_keys"),
        ({"head_memory_keys": 10, "head_memory_folds": 0}, "head_memory_folds"),
        ({"head_memory_answers": 3.5}, "head_memory_answers"),
    ],
)
def test_impossible_sizes_are_refused(options, field):
    with pytest.raises(ValueError, match=f"{field} is .*, but it must be"):
        tiny_config(**options)


def _counted(dataset, **options) -> dict[int, dict[str, list[int]]]:
    """First tokens of tails by key and project, window by window."""
    splits, _, tokenizer = load_chain_graphs(dataset)
    windows, canonical = WindowDataset(splits["train"], tokenizer, **options), canonical_ids(tokenizer)
    found = defaultdict(lambda: defaultdict(list))
    for number in range(len(windows)):
        item, project = windows[number], splits["train"]["project"][windows.file_index[number]]
        firsts = item["leaf_ids"][item["leaf_length"].cumsum() - item["leaf_length"]].tolist()
        names = ("head_start", "head_length", "relation", "reversed")
        for start, length, relation, is_reversed, first in zip(
            *(item[name].tolist() for name in names), firsts, strict=True
        ):
            for key in _keys(item["input_ids"][start : start + length].tolist(), relation, is_reversed):
                found[key][project].append(int(canonical[first]))
    return found


@pytest.mark.parametrize("max_windows", [None, 5])
def test_votes_are_those_of_projects(dataset, max_windows):
    options = {"num_roots": 24, "leaves_per_root": 3, "max_windows": max_windows}
    counted = _counted(dataset, **options)
    splits, _, tokenizer = load_chain_graphs(dataset)
    windows, projects = WindowDataset(splits["train"], tokenizer, **options), splits["train"]["project"]
    fold_of = dict(zip(projects, folds_of(projects, 2).tolist(), strict=True))
    assert set(fold_of.values()) == {0, 1}
    sizes, num_cut = [], 0
    for least in (1, 2):
        expected = {key: found for key, found in counted.items() if len(found) >= least}
        votes = count_votes(windows, projects, least, num_folds=2, num_answers=2)
        assert votes["keys"].tolist() == sorted(expected)
        assert votes["votes"].shape == votes["answers"].shape == (len(expected), 2, 2)
        for row, key in enumerate(sorted(expected)):
            for fold in range(2):
                shares = Counter()
                for project, firsts in expected[key].items():
                    if fold_of[project] == fold:
                        shares.update({first: firsts.count(first) / len(firsts) for first in set(firsts)})
                assert votes["voters"][row, fold].item() == pytest.approx(sum(shares.values()))
                kept = sorted(shares.values(), reverse=True)[:2]
                num_cut += len(shares) > 2
                assert votes["votes"][row, fold].tolist() == pytest.approx(kept + [0.0] * (2 - len(kept)))
                for answer, share in zip(
                    *(votes[name][row, fold].tolist() for name in ("answers", "votes")), strict=True
                ):
                    assert shares[answer] == pytest.approx(share)
        sizes.append(len(expected))
    assert sizes[0] > sizes[1] > 0 and (num_cut > 0 or max_windows)
    with pytest.raises(
        ValueError, match="head_memory_min_projects is 9, but no head stands in so many of the 4 projects"
    ):
        count_votes(windows, projects, 9)


def test_folds_belong_to_names():
    names = [f"project {number}" for number in range(400)]
    folds = folds_of(names, 4)
    assert folds_of(names[::-1], 4).tolist() == folds[::-1].tolist() and folds_of(["flask", "click"]).tolist() == [
        2,
        0,
    ]
    assert all(70 < count < 130 for count in np.bincount(folds, minlength=4))


def test_pretraining_with_a_memory(dataset, tmp_path, capsys):
    options = ["--dataset", dataset, *SMALL, "--mnm_target", "both"]
    given = ["--head_memory_min_projects", "3"]
    assert run(*options, *given, "--output_dir", tmp_path / "one") == 0
    assert "head memory" in capsys.readouterr().out
    memory = GraphMertForPreTraining.from_pretrained(tmp_path / "one").roberta.head_memory
    counted = _counted(dataset, num_roots=48, leaves_per_root=3)
    assert memory.keys.tolist() == sorted(key for key, found in counted.items() if len(found) >= 3)
    assert memory.projection.abs().amax((1, 2)).min() > 0

    # Training goes on with the memory of the checkpoint; there is no second one.
    more = ["--base_model", tmp_path / "one", "--output_dir", tmp_path / "two"]
    options = ["--dataset", dataset, *SMALL[8:], "--mnm_target", "both"]
    assert run(*options, *more, *given) == 2
    error = capsys.readouterr().err
    assert "has a head memory already, which training goes on with: leave out --head_memory_min_projects" in error
    assert run(*options, *more) == 0
    again = GraphMertForPreTraining.from_pretrained(tmp_path / "two").roberta.head_memory
    assert torch.equal(again.votes, memory.votes) and not torch.equal(again.projection, memory.projection)


def test_a_run_is_not_resumed_with_another_memory(dataset, tmp_path, capsys):
    options = ["--dataset", dataset, "--output_dir", tmp_path / "out", *SMALL, "--mnm_target", "both"]
    options += ["--save_strategy", "steps", "--save_steps", "1"]
    assert run(*options, "--head_memory_min_projects", "3", "--max_steps", "1") == 0
    capsys.readouterr()
    assert run(*options, "--head_memory_min_projects", "1", "--max_steps", "2", "--resume", "auto") == 2
    assert "was trained with head_memory_keys=" in capsys.readouterr().err
    assert run(*options, "--head_memory_min_projects", "3", "--max_steps", "2", "--resume", "auto") == 0


def test_windows_of_training_projects_know_their_fold(dataset, tmp_path):
    def batches(*options):
        arguments = [*SMALL, "--head_memory_min_projects", "1", *options]
        arguments = ["--dataset", str(dataset), "--output_dir", str(tmp_path / "unused"), *arguments]
        model_args, data_args, _, args = parse_arguments(arguments)
        train, held_out, tokenizer, manifest = run_pretraining.open_dataset(model_args, data_args, args)
        model = run_pretraining.build_model(
            model_args, tokenizer, manifest, memory=run_pretraining.head_votes(model_args, train)
        )
        trainer = run_pretraining.build_trainer(model, model_args, data_args, args, tokenizer, train, held_out)
        examples = [train[i] for i in range(len(train))]
        folds = folds_of([train.projects[file] for file in train.file_index])
        assert "memory_fold" not in trainer.eval_data_collator([held_out[0]])
        return trainer.data_collator(examples), folds

    compact, folds = batches("--layout", "compact")
    assert len(set(folds)) > 1
    for row, fold in enumerate(folds):
        is_node = compact["attention_mask"][row] > 0
        assert (compact["memory_fold"][row] == torch.where(is_node, fold, -1)).all()
    packed, _ = batches("--layout", "packed")
    expected = torch.tensor([*folds, -1])[packed["graph_ids"]]
    assert torch.equal(packed["memory_fold"], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--head_memory_min_projects", "-1"], "head_memory_min_projects is -1; it must be 0 or more"),
        (["--head_memory_min_projects", "2", "--leaves_per_root", "0"], "belongs to the graph, but leaves_per_root 0"),
        (["--head_memory_min_projects", "5"], "no head stands in so many of the 4 projects"),
    ],
)
def test_wrong_options(dataset, tmp_path, capsys, options, message):
    assert run("--dataset", dataset, "--output_dir", tmp_path / "out", *SMALL, *options) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
