"""The model as a whole: RoBERTa without a graph, layouts, backends, precision, saving, limits."""

import random

import pytest
import torch
from graph_batches import compact_batch, padded_batch, random_graph
from tiny_model import LEAVES, NUM_ROOTS, RELATIONS, VOCABULARY, batch, graphs, inputs_of, tiny_config, tiny_model
from transformers import RobertaConfig, RobertaForMaskedLM, RobertaForSequenceClassification, RobertaModel

from graphmert.configuration_graphmert import GraphMertConfig
from graphmert.modeling_graphmert import (
    GraphMertForMaskedLM,
    GraphMertForPreTraining,
    GraphMertForSequenceClassification,
    GraphMertModel,
    parameter_counts,
)

ALL_CLASSES = [GraphMertModel, GraphMertForPreTraining, GraphMertForMaskedLM, GraphMertForSequenceClassification]


def _plain_inputs(dtype=torch.long):
    torch.manual_seed(0)
    input_ids = torch.randint(4, VOCABULARY, (3, 9))
    mask = torch.ones_like(input_ids)
    mask[1, 5:] = 0
    input_ids[1, 5:] = 1
    return {"input_ids": input_ids, "attention_mask": mask}


def _twin(model_class, roberta_class, implementation):
    model = tiny_model(model_class, dtype=torch.float32, decay_mode=None, attn_implementation=implementation)
    names = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "type_vocab_size",
    )
    values = {name: getattr(model.config, name) for name in (*names, "max_position_embeddings", "layer_norm_eps")}
    roberta = roberta_class(RobertaConfig(**values, attn_implementation=implementation)).eval()
    missing = roberta.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert missing == []
    return model, roberta


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("model_class", "roberta_class"),
    [
        (GraphMertModel, RobertaModel),
        (GraphMertForMaskedLM, RobertaForMaskedLM),
        (GraphMertForPreTraining, RobertaForMaskedLM),
        (GraphMertForSequenceClassification, RobertaForSequenceClassification),
    ],
)
def test_without_graph_and_decay_it_is_roberta_to_the_last_bit(model_class, roberta_class, implementation):
    model, roberta = _twin(model_class, roberta_class, implementation)
    inputs = _plain_inputs()
    as_graph = {**inputs, "root_index": torch.arange(9).expand(3, 9)[:, :NUM_ROOTS]}
    short = {name: value[:, :NUM_ROOTS] for name, value in as_graph.items()}
    attentions = {"output_attentions": True} if implementation == "eager" else {}
    with torch.no_grad():
        for ours, theirs in ((inputs, inputs), (short, {k: v for k, v in short.items() if k != "root_index"})):
            one = model(**ours, output_hidden_states=True, **attentions)
            other = roberta(**theirs, output_hidden_states=True, **attentions)
            assert len(one.hidden_states) == len(other.hidden_states) == 3
            for name in ("last_hidden_state", "pooler_output", "logits"):
                if name in other and name in one:
                    assert torch.equal(one[name], other[name])
            for name in ("hidden_states", "attentions"):
                for mine, its in zip(one.get(name, ()), other.get(name, ()), strict=True):
                    assert torch.equal(mine, its)


def test_training_loss_without_graph_is_robertas():
    model, roberta = _twin(GraphMertForMaskedLM, RobertaForMaskedLM, "eager")
    inputs = _plain_inputs()
    labels = torch.where(torch.rand(3, 9) < 0.5, inputs["input_ids"], -100)
    one, other = model(**inputs, labels=labels), roberta(**inputs, labels=labels)
    assert torch.equal(one.loss, other.loss)
    one.loss.backward()
    other.loss.backward()
    gradients = dict(model.named_parameters())
    for name, parameter in roberta.named_parameters():
        assert torch.equal(gradients[name].grad, parameter.grad)


@pytest.mark.parametrize("leaf_position", ["slot", "root", "root_slot"])
@pytest.mark.parametrize("mode", ["bias", "multiplicative", None])
def test_padded_equals_compact(mode, leaf_position):
    model = tiny_model(GraphMertForPreTraining, decay_mode=mode, leaf_position=leaf_position, mnm_target="both")
    examples = graphs(seed=1)
    compact, padded = compact_batch(examples), padded_batch(examples, NUM_ROOTS, LEAVES)
    one, other = model(**compact, output_hidden_states=True), model(**padded, output_hidden_states=True)
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-10, atol=1e-12)
    states, padded_states = one.hidden_states[-1], other.hidden_states[-1]
    for b, n in (compact["attention_mask"] == 1).nonzero().tolist():
        root, leaf = int(compact["root_index"][b, n]), int(compact["leaf_index"][b, n])
        column = root if leaf < 0 else NUM_ROOTS + LEAVES * root + leaf
        torch.testing.assert_close(states[b, n], padded_states[b, column], rtol=1e-9, atol=1e-11)
    parameters = list(model.parameters())
    gradients, padded_gradients = (torch.autograd.grad(o.loss, parameters) for o in (one, other))
    for gradient, padded_gradient in zip(gradients, padded_gradients, strict=True):
        torch.testing.assert_close(gradient, padded_gradient, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("mode", ["bias", "multiplicative", None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_eager_equals_sdpa(mode, dtype):
    graph_batch = batch(seed=2)
    results = []
    for implementation in ("eager", "sdpa"):
        model = tiny_model(GraphMertForPreTraining, dtype=dtype, decay_mode=mode, attn_implementation=implementation)
        output = model(**graph_batch)
        gradients = torch.autograd.grad(output.loss, list(model.parameters()))
        results.append([output.loss, output.logits, output.relation_logits, *gradients])
    tolerance = 1e-10 if dtype == torch.float64 else 3e-5
    real = graph_batch["attention_mask"].bool()
    results = [[r[0], r[1][real], *r[2:]] for r in results]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_an_example_does_not_depend_on_its_batch():
    model = tiny_model(GraphMertModel)
    examples = graphs(seed=6)
    together = compact_batch(examples)
    with torch.no_grad():
        states = model(**inputs_of(together)).last_hidden_state
        for b, example in enumerate(examples):
            alone = inputs_of(compact_batch([example]))
            expected = model(**alone).last_hidden_state[0]
            torch.testing.assert_close(states[b, : expected.shape[0]], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", ["bias", "multiplicative", None])
def test_bfloat16_is_close_and_autocast_too(mode):
    graph_batch = batch(seed=3)
    reference = tiny_model(GraphMertForPreTraining, decay_mode=mode)
    expected = reference(**graph_batch).loss
    reference.zero_grad()
    expected.backward()
    direction = torch.cat([p.grad.flatten() for p in reference.parameters()])
    model = tiny_model(GraphMertForPreTraining, dtype=torch.float32, decay_mode=mode)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(**graph_batch).loss
    half = tiny_model(GraphMertForPreTraining, dtype=torch.bfloat16, decay_mode=mode)
    low = half(**graph_batch).loss
    for module, loss in ((model, mixed), (half, low)):
        torch.testing.assert_close(loss.double(), expected, rtol=0.03, atol=0.0)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in module.parameters()]).double()
        assert torch.cosine_similarity(gradient, direction, dim=0) > 0.98


@pytest.mark.parametrize("mode", ["bias", "multiplicative"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_gradient_checkpointing_changes_nothing(mode, reentrant):
    graph_batch = batch(seed=3)
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(GraphMertForPreTraining, decay_mode=mode).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(**graph_batch).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_tuples_and_attentions():
    model = tiny_model(GraphMertForPreTraining, attn_implementation="eager", dtype=torch.float32)
    graph_batch = batch()
    output = model(**graph_batch, output_attentions=True)
    assert len(output.attentions) == 2
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(output.attentions[0].shape[:-1]))
    values = model(**graph_batch, return_dict=False)
    assert isinstance(values, tuple) and torch.equal(values[0], output.loss)
    assert isinstance(tiny_model(GraphMertModel)(**inputs_of(graph_batch), return_dict=False), tuple)


def test_classification_learns_from_its_labels():
    model = tiny_model(GraphMertForSequenceClassification, num_labels=3)
    output = model(**inputs_of(batch()), labels=torch.tensor([0, 2, 1]))
    assert output.logits.shape == (3, 3)
    output.loss.backward()
    assert model.roberta.hgat.weight.grad.abs().max() > 0


@pytest.mark.parametrize("model_class", ALL_CLASSES)
@pytest.mark.parametrize("mode", ["bias", "multiplicative", None])
def test_saved_and_loaded_is_the_same(model_class, mode, tmp_path):
    model = tiny_model(
        model_class, dtype=torch.float32, decay_mode=mode, span_boundary=model_class is GraphMertForPreTraining
    )
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert loaded.config.decay_mode == mode
    for (name, one), (_, other) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    for (name, one), (_, other) in zip(model.named_buffers(), loaded.named_buffers(), strict=True):
        assert torch.equal(one, other), name
    inputs = inputs_of(batch())
    assert torch.equal(model(**inputs)[0], loaded(**inputs)[0])
    assert set(loaded.config.auto_map) >= {
        "AutoConfig",
        "AutoModel",
        "AutoModelForPreTraining",
        "AutoModelForMaskedLM",
    }


def test_missing_parameters_are_initialised(tmp_path):
    """A plain RoBERTa directory loaded as GraphMERT leaves no uninitialised memory behind."""
    config = tiny_config()
    GraphMertForMaskedLM(tiny_config(use_hgat=False, decay_mode=None)).save_pretrained(tmp_path)
    model = GraphMertForPreTraining.from_pretrained(tmp_path, config=config)
    assert (model.roberta.hgat.weight == 0).all() and (model.roberta.hgat.direction_gain == 1).all()
    assert (model.roberta.decay.offset == 1).all()
    assert 0 < model.roberta.hgat.attention.std() < 0.1
    assert (model.relation_head.bias == 0).all() and 0 < model.relation_head.weight.std() < 0.1


@pytest.mark.parametrize("model_class", [GraphMertForPreTraining, GraphMertForMaskedLM])
def test_lm_head_is_tied_and_resizes(model_class, tmp_path):
    model = tiny_model(model_class, dtype=torch.float32)
    assert model.lm_head.decoder.weight is model.roberta.embeddings.word_embeddings.weight
    assert model.lm_head.decoder.bias is model.lm_head.bias
    before = model(**inputs_of(batch())).logits
    model.resize_token_embeddings(VOCABULARY + 11)
    logits = model(**inputs_of(batch())).logits
    assert logits.shape[-1] == VOCABULARY + 11 == model.config.vocab_size
    torch.testing.assert_close(logits[..., :VOCABULARY], before)
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path)
    assert loaded.lm_head.decoder.weight is loaded.roberta.embeddings.word_embeddings.weight
    assert torch.equal(loaded(**inputs_of(batch())).logits, logits)


def test_untied_lm_head(tmp_path):
    model = tiny_model(GraphMertForPreTraining, dtype=torch.float32, tie_word_embeddings=False)
    assert model.lm_head.decoder.weight is not model.roberta.embeddings.word_embeddings.weight
    model.save_pretrained(tmp_path)
    inputs = inputs_of(batch())
    assert torch.equal(GraphMertForPreTraining.from_pretrained(tmp_path)(**inputs).logits, model(**inputs).logits)


def test_compiled_equals_uncompiled():
    model = tiny_model(GraphMertForPreTraining, dtype=torch.float32, num_hidden_layers=1)
    compiled = torch.compile(model, backend="aot_eager")
    graph_batch = batch()
    one, other = model(**graph_batch), compiled(**graph_batch)
    torch.testing.assert_close(one.loss, other.loss)
    parameters = list(model.parameters())
    for mine, its in zip(*(torch.autograd.grad(o.loss, parameters) for o in (one, other)), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)


def test_positions_of_both_kinds():
    graph_batch = compact_batch(graphs(sizes=(NUM_ROOTS, 2)))
    root, leaf, mask = (graph_batch[name] for name in ("root_index", "leaf_index", "attention_mask"))
    for kind in ("slot", "root", "root_slot"):
        model = tiny_model(GraphMertModel, leaf_position=kind)
        positions = model._graph_positions(root, leaf, mask.bool())
        for b, n in torch.cartesian_prod(*map(torch.arange, root.shape)).tolist():
            i, j = int(root[b, n]), int(leaf[b, n])
            expected = 2 + (NUM_ROOTS + LEAVES * i + j if kind == "slot" and j >= 0 else i)
            assert int(positions[b, n]) == (expected if mask[b, n] else 1)


def test_leaves_of_a_root_are_told_apart_by_their_slots():
    """Two leaves of the same word at one root: one state at the root's position, two with an embedding of the slot."""
    inputs = inputs_of(batch())
    leaves = (inputs["leaf_index"][0] == 0).nonzero()[:, 0].tolist()
    first = next(n for n in leaves if int(inputs["leaf_index"][0, n + 1]) == 1)
    for name, values in inputs.items():
        if name != "leaf_index":
            values[0, first + 1] = values[0, first]
    for kind, is_same in (("root", True), ("root_slot", False)):
        model = tiny_model(GraphMertModel, leaf_position=kind, decay_mode=None)
        with torch.no_grad():
            states = model(**inputs).last_hidden_state[0]
        assert torch.allclose(states[first], states[first + 1], rtol=1e-9, atol=1e-12) == is_same
    # What is added is the slot's row, and to leaves only.
    with torch.no_grad():
        embeds, plain = [], tiny_model(GraphMertModel, leaf_position="root", decay_mode=None, use_hgat=False)
        model = tiny_model(GraphMertModel, leaf_position="root_slot", decay_mode=None, use_hgat=False)
        plain.load_state_dict({k: v for k, v in model.state_dict().items() if "leaf_slots" not in k})
        for each in (model, plain):
            hook = each.embeddings.register_forward_pre_hook(
                lambda module, args, kwargs: embeds.append(kwargs["inputs_embeds"]), with_kwargs=True
            )
            each(**inputs)
            hook.remove()
    is_leaf = (inputs["leaf_index"] >= 0) & (inputs["attention_mask"] > 0)
    added = embeds[0] - embeds[1]
    assert not added[~is_leaf].any()
    torch.testing.assert_close(added[is_leaf], model.leaf_slots.weight[inputs["leaf_index"][is_leaf]])


def test_token_types_default_to_root_and_leaf():
    model, inputs = tiny_model(GraphMertModel), inputs_of(batch())
    types = inputs.pop("token_type_ids")
    with torch.no_grad():
        given, derived = model(**inputs, token_type_ids=types), model(**inputs)
        all_roots = model(**inputs, token_type_ids=torch.zeros_like(types))
    real = inputs["attention_mask"].bool()
    assert torch.equal(given.last_hidden_state[real], derived.last_hidden_state[real])
    assert not torch.allclose(given.last_hidden_state[real], all_roots.last_hidden_state[real])


def test_1024_tokens_are_accepted_and_1025_refused():
    model = GraphMertModel(tiny_config(num_roots=128, leaves_per_root=7, max_position_embeddings=1026)).eval()
    with torch.no_grad():
        assert model(torch.full((1, 1024), 5)).last_hidden_state.shape[1] == 1024
        with pytest.raises(ValueError, match="1025 tokens, but the model has positions for 1024"):
            model(torch.full((1, 1025), 5))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("relation_ids", RELATIONS + 1, "relation_ids holds 6, outside -1..5: the model has num_relations = 5"),
        ("relation_ids", -2, "relation_ids holds -2"),
        ("leaf_index", LEAVES, "leaf_index holds 3, outside -1..2: the model has leaves_per_root = 3"),
        ("root_index", NUM_ROOTS, "root_index holds 7, outside 0..6"),
        ("head_start", -1, "head_start holds -1"),
        ("head_length", 99, "head_length holds 99"),
    ],
)
def test_graph_values_outside_their_range_are_refused(name, value, message):
    model, inputs = tiny_model(GraphMertModel), inputs_of(batch())
    inputs[name][0, 1] = value
    with pytest.raises(ValueError, match=message):
        model(**inputs)


def test_contradicting_inputs_are_refused():
    model, inputs = tiny_model(GraphMertModel), inputs_of(batch())
    with pytest.raises(ValueError, match="need root_index"):
        model(**{name: value for name, value in inputs.items() if name != "root_index"})
    with pytest.raises(ValueError, match="head_start and head_length"):
        model(**{name: value for name, value in inputs.items() if name != "head_length"})
    with pytest.raises(ValueError, match="leaf_index has shape"):
        model(**{**inputs, "leaf_index": inputs["leaf_index"][:, :-1]})
    with pytest.raises(ValueError, match="exactly one"):
        model()
    with pytest.raises(ValueError, match="must be \\(batch, nodes\\)"):
        model(inputs["input_ids"], attention_mask=torch.zeros(1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"(?i)flash"):
        GraphMertModel._from_config(tiny_config(), attn_implementation="flash_attention_2")


def test_embeddings_in_place_of_tokens():
    model, inputs = tiny_model(GraphMertModel), inputs_of(batch())
    words = model.get_input_embeddings()(inputs["input_ids"])
    other = {name: value for name, value in inputs.items() if name != "input_ids"}
    assert torch.equal(model(**inputs).last_hidden_state, model(inputs_embeds=words, **other).last_hidden_state)


def test_default_size_and_one_training_step():
    """CodeBERT-base's size: 120 to 135 M parameters, and a step of batch 2."""
    torch.manual_seed(0)
    model = GraphMertForPreTraining(GraphMertConfig()).train()
    counts = parameter_counts(model)
    assert counts["total"] == sum(p.numel() for p in model.parameters()) == sum(counts.values()) - counts["total"]
    assert 120e6 <= counts["total"] <= 135e6
    assert counts["H-GAT"] == 13 * 768 * 768 + 2 * 13 * 768 + 2 * 13 * 2 * 768
    assert counts["decay"] == 12 and counts["relation head"] == 12 * 769
    examples = [random_graph(random.Random(i), 128, 7, 12, vocab_size=50265, density=0.12) for i in range(2)]
    graph_batch = compact_batch(examples)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    output = model(**graph_batch, sparse_prediction=True)
    assert output.relation_logits.shape == (2, 128, 7, 12)
    output.loss.backward()
    optimizer.step()
    assert torch.isfinite(output.loss)
    # At W = 0 the loss does not depend on gain and attention.
    still = {name for name, value in model.named_parameters() if not value.grad.any()}
    assert still == {"roberta.hgat.direction_gain", "roberta.hgat.attention"}
    assert all(torch.isfinite(value).all() for value in model.parameters())
