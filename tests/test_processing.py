"""The processor: the same windows as a dataset's, what it saves, what it refuses, and where it works."""

import json
import os
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import tiny_tokenizer
from tiny_checkpoint import CODES, LEAVES, NUM_ROOTS, save_tiny_checkpoint, tiny_checkpoint
from torch.utils.data import DataLoader
from transformers import AutoProcessor

from graphmert import GraphMertCollator, GraphMertProcessor, WindowDataset, extract
from graphmert.chain_graphs.linking import link_file
from graphmert.chain_graphs.reading import part_of_row
from graphmert.chain_graphs.rows import rows_to_table
from graphmert.code_graph import RELATION_NAMES


# Where several tests share two cores, more threads wait for each other longer than they compute.
@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


GRAPH = ("root_index", "leaf_index", "relation_ids", "relation_reversed", "head_start", "head_length")


def make(**options) -> GraphMertProcessor:
    return GraphMertProcessor(tiny_tokenizer(), **{"num_roots": NUM_ROOTS, "leaves_per_root": LEAVES, **options})


OPTIONS = [
    {},
    {"include_uses": False},
    {"include_site_anchors": False},
    {"exclude_relations": ["flows_to", "has_parameter"]},
    {"edge_relations": ["flows_to"]},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_windows_are_those_of_a_dataset(options):
    """What a build and the collator make of the same files, to the last number."""
    tokenizer = tiny_tokenizer()
    codes = [code for code in CODES if code]
    columns = [link_file(code, extract(code), tokenizer)[0] for code in codes]
    facts = {"fact_hash": [], "fact_relation": [], "fact_count": []}
    files = [{"source": "s", "project": "p", "path": "a.py", "language": "python", "code": code} for code in codes]
    table = rows_to_table(files, [{**row, **{k: np.array(v) for k, v in facts.items()}} for row in columns])
    windows = WindowDataset(SimpleNamespace(data=table), tokenizer, NUM_ROOTS, LEAVES, **options)
    collator = GraphMertCollator(tokenizer, NUM_ROOTS, LEAVES, mlm_probability=0, mnm_probability=0)
    expected = collator([windows[index] for index in range(len(windows))])
    inputs = make(**options)(codes, return_tensors="pt")
    assert int((inputs["leaf_index"] >= 0).sum()) > 20
    names = [
        "input_ids",
        "attention_mask",
        "token_type_ids",
        *GRAPH,
        *(["root_distance"] if "edges" in windows[0] else []),
    ]
    for name in names:
        assert torch.equal(inputs[name], expected[name]), name
    assert options == {} or not torch.equal(inputs["relation_ids"], make()(codes, return_tensors="pt")["relation_ids"])
    assert inputs["overflow_to_sample_mapping"].tolist() == windows.file_index.tolist()


def test_facts_of_a_snippet():
    processor = make(num_roots=40)
    inputs = processor("def f(x: int):\n    return x\n")
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    leaves = {
        (RELATION_NAMES[relation], tokens[start].strip("Ġ"), is_reversed)
        for leaf, relation, start, is_reversed in zip(
            *(inputs[name][0] for name in ("leaf_index", "relation_ids", "head_start", "relation_reversed")),
            strict=True,
        )
        if leaf >= 0
    }
    assert leaves == {("has_parameter", "x", 1), ("has_type", "x", 0)}


def test_a_text_without_language_has_no_graph():
    processor = make()
    plain = processor(CODES[2], language=None, return_tensors="pt")
    assert int(plain["leaf_index"].max()) == -1
    assert int(plain["relation_ids"].max()) == -1
    # The same tokens as the tokenizer's, cut where the window is full.
    whole = tiny_tokenizer()(CODES[2])["input_ids"][1:-1]
    rows = [row[mask.bool()][1:-1] for row, mask in zip(plain["input_ids"], plain["attention_mask"], strict=True)]
    assert torch.cat(rows).tolist() == whole
    assert [len(row) for row in rows[:-1]] == [NUM_ROOTS - 2] * (len(rows) - 1)


@pytest.mark.parametrize("language", ["python", "java", None])
def test_line_ends_are_those_of_a_dataset(language):
    processor = make()
    code = (
        "def f(x: int):\n\n    return g(x)\n"
        if language == "python"
        else "class A {\n int f(int x) { return x; }\n}\n"
    )
    for line_end in ("\r\n", "\r"):
        assert processor(code.replace("\n", line_end), language) == processor(code, language)


@pytest.mark.parametrize("language", ["python", None])
def test_a_lone_surrogate_is_refused(language):
    with pytest.raises(ValueError, match=r"'x = \"\\ud800\"' holds a lone surrogate at character 5"):
        make()(["x = 1", 'x = "\ud800"'], language)


def test_special_tokens_in_code_are_text_and_the_tokenizer_stays_as_it_was():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(5)
    try:
        processor = make()
        inputs = processor("x = '<mask></s>'\n")
        assert inputs["input_ids"][0].count(tokenizer.mask_token_id) == 0
        assert inputs["input_ids"][0].count(tokenizer.eos_token_id) == 1
        assert len(inputs["input_ids"][0]) > 10
        assert tokenizer.backend_tokenizer.truncation["max_length"] == 5
        assert not tokenizer.backend_tokenizer.encode_special_tokens
    finally:
        tokenizer.backend_tokenizer.no_truncation()


def test_padding_layouts_and_formats():
    processor = make()
    compact = processor(CODES, return_tensors="pt")
    width = int(compact["attention_mask"].sum(1).max())
    assert compact["input_ids"].shape[1] == width
    full = NUM_ROOTS * (1 + LEAVES)
    slots = processor(CODES, return_tensors="pt", padding="max_length")
    assert slots["input_ids"].shape[1] == full
    assert torch.equal(slots["relation_ids"][:, :width], compact["relation_ids"])
    assert slots["attention_mask"][:, width:].sum() == 0
    assert processor(CODES, return_tensors="pt", layout="padded")["input_ids"].shape[1] == full
    assert processor(CODES, return_tensors="np", pad_to_multiple_of=8)["input_ids"].shape[1] % 8 == 0
    lists = processor(CODES, padding=False)
    assert [len(row) for row in lists["input_ids"]] == compact["attention_mask"].sum(1).tolist()
    for index, row in enumerate(lists["relation_ids"]):
        assert row == compact["relation_ids"][index, : len(row)].tolist()
    with pytest.raises(ValueError, match="different lengths"):
        processor(CODES, padding=False, return_tensors="pt")


def test_every_layout_gives_the_model_the_same_graph():
    model, processor = tiny_checkpoint()
    with torch.no_grad():
        states = [
            model.roberta(**processor(CODES, return_tensors="pt", layout=layout)).last_hidden_state[:, 0]
            for layout in ("compact", "padded")
        ]
        graphless = model.roberta(**processor(CODES, language=None, return_tensors="pt")).last_hidden_state[:, 0]
    torch.testing.assert_close(*states)
    assert len(graphless) != len(states[0]) or not torch.allclose(graphless, states[0], atol=1e-3)


def test_languages_one_for_all_or_one_for_each():
    processor = make()
    codes = ["def f(x: int): pass\n", "class A { int f(int x) { return x; } }\n", "sum of numbers"]
    inputs = processor(codes, ["python", "java", None], return_tensors="pt")
    mapping = inputs["overflow_to_sample_mapping"]
    has_leaves = [bool((inputs["leaf_index"][mapping == text] >= 0).any()) for text in range(3)]
    assert has_leaves == [True, True, False]
    with pytest.raises(ValueError, match="3 texts, but 2 languages"):
        processor(codes, ["python", "java"])
    with pytest.raises(ValueError, match="'cobol' is not supported"):
        processor(codes, "cobol")
    with pytest.raises(ValueError, match="must be a str"):
        processor([b"def f(): pass"])
    with pytest.raises(ValueError, match="empty list"):
        processor([])


def test_long_code_says_that_it_became_windows(caplog):
    from transformers.utils import logging

    logging.enable_propagation()
    logging.warning_once.cache_clear()
    processor = make()
    inputs = processor([CODES[1], CODES[2]])
    assert inputs["overflow_to_sample_mapping"] == [0, *[1] * (len(inputs["input_ids"]) - 1)]
    processor([CODES[2], CODES[2]])
    logging.disable_propagation()
    assert sum("overflow_to_sample_mapping" in record.message for record in caplog.records) == 1
    assert processor.statistics["texts"] == 4
    assert processor.statistics["windows"] == 2 * len(inputs["input_ids"]) + len(inputs["input_ids"]) - 2
    assert processor.statistics["facts_placed"] > 10


def test_relations_by_name():
    """A model that knows fewer relations, in another order, gets its own ids; the others are left out and counted."""
    order = ["returns", "has_type"]
    code = "def f(x: int) -> str:\n    return g(x)\n"
    processor = make(relation_names=order)
    everything, some = make()(code, return_tensors="pt"), processor(code, return_tensors="pt")
    for name in order:
        wanted = everything["input_ids"][everything["relation_ids"] == RELATION_NAMES.index(name)]
        assert some["input_ids"][some["relation_ids"] == order.index(name)].tolist() == wanted.tolist()
        assert len(wanted)
    assert int(some["relation_ids"].max()) == 1
    assert processor.statistics["triples_of_other_relations"] >= 2


def test_part_of_a_file_keeps_the_facts_of_the_rest():
    code = "import numpy as np\n\n\ndef mean(rows):\n    return np.mean(rows)\n"
    processor = make(num_roots=64)
    row = processor.reader.row(code, "python")
    start = code.index("def")
    part = part_of_row(row, start, len(code))
    rows = (part, processor.reader.row(code[start:], "python"))
    inside, alone = (processor.collate(processor.reader.windows([row])) for row in rows)
    assert "imports" in {RELATION_NAMES[i] for i in inside["relation_ids"].unique().tolist() if i >= 0}
    assert "imports" not in {RELATION_NAMES[i] for i in alone["relation_ids"].unique().tolist() if i >= 0}
    # The whole file as a part of itself is the whole file.
    whole = part_of_row(row, 0, len(code))
    assert all(np.array_equal(whole[name], row[name]) for name in row)
    roots = [
        b["input_ids"][0][(b["leaf_index"][0] < 0) & b["attention_mask"][0].bool()].tolist() for b in (inside, alone)
    ]
    assert roots[0] == roots[1]


def as_inputs(processor: GraphMertProcessor, codes: list[str]) -> dict:
    return dict(processor(codes, return_tensors="pt"))


class Collate:
    def __init__(self, processor):
        self.processor = processor

    def __call__(self, codes):
        return os.getpid(), as_inputs(self.processor, codes)


def test_data_loader_workers():
    processor = make()
    expected = [as_inputs(processor, CODES[i : i + 2]) for i in range(0, len(CODES), 2)]
    loader = DataLoader(CODES, 2, collate_fn=Collate(processor), num_workers=1)
    got = list(loader)
    assert all(process != os.getpid() for process, _ in got)
    for (_, batch), other in zip(got, expected, strict=True):
        assert all(torch.equal(batch[name], other[name]) for name in other)


def test_pickle_keeps_nothing_of_the_process():
    processor = make()
    processor(CODES)
    twin = pickle.loads(pickle.dumps(processor))
    assert twin.statistics["texts"] == 0
    assert twin(CODES) == processor(CODES)


def test_saved_and_loaded(tmp_path):
    processor = make(layout="padded", relation_names=["returns", "has_type"])
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["auto_map"] == {"AutoProcessor": "processing_graphmert.GraphMertProcessor"}
    again = GraphMertProcessor.from_pretrained(tmp_path)
    for name in ("num_roots", "leaves_per_root", "layout", "relation_names", "vocabulary_sha256"):
        assert getattr(again, name) == getattr(processor, name)
    assert again(CODES) == processor(CODES)
    assert GraphMertProcessor.from_pretrained(tmp_path, layout="compact").layout == "compact"


def test_a_checkpoint_without_a_processor_gets_that_of_its_config(tmp_path):
    _, processor = save_tiny_checkpoint(tmp_path, num_relations=2, relation_names=["returns", "has_type"])
    (tmp_path / "processor_config.json").unlink()
    again = GraphMertProcessor.from_pretrained(tmp_path)
    assert again.relation_names == ["returns", "has_type"]
    assert again(CODES) == processor(CODES)


def test_auto_processor_without_and_with_the_package(tmp_path, monkeypatch):
    processor = make()
    processor.save_pretrained(tmp_path)
    with monkeypatch.context() as absent:
        absent.setitem(sys.modules, "graphmert.chain_graphs.reading", None)
        with pytest.raises(ImportError, match=r"the package graphmert and tree-sitter, but .* pip install graphmert"):
            AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    loaded = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(loaded).__module__.startswith("transformers_modules.")
    assert loaded(CODES) == processor(CODES)
    # Without the permission its file does not run, and AutoProcessor falls back to the tokenizer or refuses.
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoProcessor.from_pretrained(tmp_path, trust_remote_code=False)


# What is in a directory is not trusted further than the caller says.

EVIL = "open({marker!r}, 'w').write('ran')\nclass GraphMertProcessor:\n    pass\n"


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def edit(path, change) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("processor_config.json", lambda v: v.pop("relation_names"), "lacks relation_names"),
        ("processor_config.json", lambda v: v.update(relation_names=[]), "at least one"),
        ("processor_config.json", lambda v: v.update(relation_names="calls"), "must be a list of names"),
        ("processor_config.json", lambda v: v["relation_names"].pop(), "but the model has"),
        ("processor_config.json", lambda v: v["relation_names"].reverse(), "but the model has"),
        (
            "processor_config.json",
            lambda v: v["relation_names"].__setitem__(0, "runs"),
            "'runs' is not read from code",
        ),
        ("processor_config.json", lambda v: v.update(num_roots=2**20), "num_roots = 1048576, but the model has 24"),
        ("processor_config.json", lambda v: v.update(num_roots="24"), "num_roots must be an integer"),
        ("processor_config.json", lambda v: v.update(leaves_per_root=-1), "leaves_per_root must be an integer"),
        ("processor_config.json", lambda v: v.update(layout="../x"), "layout must be one of"),
        (
            "processor_config.json",
            lambda v: v.update(audio_tokenizer={"audio_tokenizer_class": "X"}),
            "'audio_tokenizer'",
        ),
        ("processor_config.json", lambda v: v.update(vocabulary_sha256="0"), "not the one that this processor"),
        ("config.json", lambda v: v.update(vocab_size=100), "vocab_size = 100"),
        ("config.json", lambda v: v.pop("relation_names"), "but the model has None"),
        ("tokenizer.json", lambda v: v["model"]["vocab"].update({"zzz": 360}), "not the one that this processor"),
    ],
)
def test_tampered_files_are_refused(tmp_path, file, change, message):
    save_tiny_checkpoint(tmp_path)
    edit(tmp_path / file, change)
    with pytest.raises(ValueError, match=message):
        GraphMertProcessor.from_pretrained(tmp_path)


def test_damaged_json_is_named(tmp_path):
    make().save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"processor_config.json of .* is not valid JSON"):
        GraphMertProcessor.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="holds neither"):
        GraphMertProcessor.from_pretrained(tmp_path / "..")


def test_extra_code_and_pickles_are_not_run(tmp_path):
    directory, marker = tmp_path / "checkpoint", tmp_path / "marker"
    save_tiny_checkpoint(directory)
    (directory / "evil.py").write_text(EVIL.format(marker=str(marker)))
    for name in ("processor.pkl", "pytorch_model.bin", "tokenizer.pkl", "training_args.bin", "vocab.bin"):
        (directory / name).write_bytes(pickle.dumps(Bomb(marker)))
    GraphMertProcessor.from_pretrained(directory)
    edit(
        directory / "processor_config.json", lambda v: v.update(auto_map={"AutoProcessor": "evil.GraphMertProcessor"})
    )
    GraphMertProcessor.from_pretrained(directory)
    assert not marker.exists()
    edit(
        directory / "tokenizer_config.json",
        lambda v: v.update(auto_map={"AutoTokenizer": [None, "evil.GraphMertProcessor"]}),
    )
    # Without trust_remote_code the library's own class reads the tokenizer.
    assert GraphMertProcessor.from_pretrained(directory)(CODES)
    assert not marker.exists()


@pytest.mark.parametrize("options", OPTIONS[1:], ids=str)
def test_a_processor_reads_what_its_model_was_trained_on(options, tmp_path):
    model, _ = save_tiny_checkpoint(tmp_path, **options)
    loaded = GraphMertProcessor.from_pretrained(tmp_path)
    assert all(getattr(loaded, name) == value == getattr(model.config, name) for name, value in options.items())
    (tmp_path / "processor_config.json").unlink()
    assert GraphMertProcessor.from_pretrained(tmp_path)(CODES) == loaded(CODES)
    with pytest.raises(ValueError, match=f"the processor has {next(iter(options))}"):
        make().check_config(model.config)
    codes = [code for code in CODES if code]
    together, alone = model.roberta.encode([*codes, ""], loaded), model.roberta.encode(codes[0], loaded)
    assert torch.allclose(torch.as_tensor(together[0]), torch.as_tensor(alone), atol=1e-5)
    assert len(loaded(codes, padding="max_length")["input_ids"][0]) == NUM_ROOTS * (1 + LEAVES)
    text = loaded(codes[0], return_tensors=None, padding=False)
    assert ("root_distance" in text) == bool(loaded.edge_relations)
    with pytest.raises(ValueError, match="exclude_relations names 'moves'"):
        make(exclude_relations=["moves"])


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="must be an integer of at least 3"):
        make(num_roots=2)
    model, processor = tiny_checkpoint()
    with pytest.raises(ValueError, match="leaves_per_root = 3, but the model has 2"):
        processor.check_config({**model.config.to_dict(), "leaves_per_root": 2})
