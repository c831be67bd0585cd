"""The configuration: what it refuses, what it keeps, and that its relations are the schema's."""

import json

import pytest

from graphmert.code_graph.schema import RELATION_NAMES
from graphmert.configuration_graphmert import AUTO_MAP, DEFAULT_RELATION_NAMES, GraphMertConfig


def test_relation_names_are_the_schemas():
    assert list(DEFAULT_RELATION_NAMES) == list(RELATION_NAMES)
    assert GraphMertConfig().relation_names == list(RELATION_NAMES)


def test_defaults_are_the_setup_sheets_but_where_evidence_departs():
    config = GraphMertConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 12, 12)
    assert (config.intermediate_size, config.vocab_size, config.num_relations) == (3072, 50265, 12)
    assert (config.num_roots, config.leaves_per_root, config.num_nodes) == (128, 7, 1024)
    assert (config.max_position_embeddings, config.num_usable_positions, config.type_vocab_size) == (1026, 1024, 2)
    assert (config.decay_mode, config.decay_base, config.decay_offset_init) == ("bias", [0.1, 1.0], 1.0)
    assert (config.mlm_weight, config.mnm_weight) == (0.6, 0.4)
    assert (config.use_hgat, config.relation_dropout, config.hidden_dropout_prob) == (True, 0.3, 0.1)
    # Why: docs/PAPER.md.
    assert (config.leaf_position, config.mnm_target) == ("root_slot", "both")


@pytest.mark.parametrize(
    "options",
    [
        {"num_roots": 0},
        {"num_roots": 1.5},
        {"num_roots": "many"},
        {"leaves_per_root": -1},
        {"num_relations": 0},
        {"relation_names": ["calls"]},
        {"relation_names": ["calls"] * 12},
        {"use_hgat": "yes"},
        {"hgat_init": "random"},
        {"hgat_init_scale": 0},
        {"relation_dropout": 1.0},
        {"relation_dropout": -0.1},
        {"hidden_dropout_prob": 1.5},
        {"decay_mode": "linear"},
        {"decay_base": 0.0},
        {"decay_base": 1.0},
        {"decay_base": []},
        {"decay_base": [0.1, 1.1]},
        {"decay_base": [0.1, "1"]},
        # Twelve heads.
        {"decay_base": [0.5] * 13},
        {"decay_offset_init": None},
        {"leaf_position": "leaf"},
        {"mnm_target": "head"},
        {"mlm_weight": -0.1},
        {"mnm_weight": "0.4"},
        {"type_vocab_size": 1},
        {"hidden_size": 100},
        {"hidden_size": 0},
        {"num_attention_heads": 0},
        {"num_hidden_layers": 0},
        {"intermediate_size": -1},
        {"vocab_size": 0},
        {"pad_token_id": None},
        {"is_decoder": True},
        {"span_boundary": 1},
        {"span_boundary_length": 0},
        {"max_position_embeddings": 129},
    ],
    ids=str,
)
def test_impossible_values_are_refused_by_name(options):
    with pytest.raises(ValueError, match=f"GraphMertConfig: {next(iter(options))} is "):
        GraphMertConfig(**options)


def test_positions_needed_follow_the_graph():
    with pytest.raises(
        ValueError, match=r"num_roots = 256, leaves_per_root = 7, leaf_position = 'slot'.* at least 2050"
    ):
        GraphMertConfig(num_roots=256, leaf_position="slot")
    for position in ("root", "root_slot"):
        assert GraphMertConfig(num_roots=256, leaf_position=position).num_usable_positions == 1024
    assert (
        GraphMertConfig(pad_token_id=0, max_position_embeddings=1025, leaf_position="slot").num_usable_positions
        == 1024
    )


@pytest.mark.parametrize("mode", ["multiplicative", "bias", None])
def test_saved_and_loaded_is_the_same(mode, tmp_path):
    names = ["a", "b", "c"]
    base = 0.5 if mode is None else [0.1, 1.0]
    config = GraphMertConfig(num_relations=3, relation_names=names, decay_mode=mode, decay_base=base, num_roots=16)
    config.save_pretrained(tmp_path)
    assert GraphMertConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["auto_map"] == AUTO_MAP
    # Written out even where it is the default, which may change: a checkpoint keeps the one that it was trained with.
    assert saved["decay_mode"] == mode
    assert saved["decay_base"] == base
    assert (tmp_path / "configuration_graphmert.py").exists()


def test_auto_map_is_always_whole():
    given = {"AutoModel": "user/repo--modeling_graphmert.GraphMertModel", "AutoTokenizer": ["a.B", None]}
    assert GraphMertConfig(auto_map=given).auto_map == {**AUTO_MAP, "AutoTokenizer": ["a.B", None]}


def test_other_relation_counts_get_names():
    assert GraphMertConfig(num_relations=2).relation_names == ["relation_0", "relation_1"]
