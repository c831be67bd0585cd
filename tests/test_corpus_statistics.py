"""The corpus statistics: shares against a loop over the windows, overlap and its bounds on hand-made corpora."""

import json

import pytest
from tiny import tiny_tokenizer

from graphmert.benchmarks.corpus_statistics import main, open_corpus, overlap_figures, window_figures, window_table
from graphmert.chain_graphs.build import BuildArguments, build_chain_graphs
from graphmert.chain_graphs.windows import WindowDataset
from graphmert.code_graph import RELATION_NAMES

CODE = """def load_file(path: str, mode):
    text = open(path, mode)
    return parse(text)

class Reader(Base):
    size: int = 0

    def walk(self, node):
        for child in node.children:
            self.walk(child)
"""


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpora")
    tiny_tokenizer().save_pretrained(root / "tokenizer")

    def build(name, texts):
        for project, text in texts.items():
            (root / name / project).mkdir(parents=True)
            (root / name / project / "a.py").write_text(text, encoding="utf-8")
        arguments = BuildArguments(
            [f"dir:{root / name}"], str(root / f"{name}.data"), 0.5, tokenizer=str(root / "tokenizer")
        )
        build_chain_graphs(arguments)
        return str(root / f"{name}.data")

    train = build("train", {"one": CODE, "two": CODE.replace("text", "node")})
    heldout = build("heldout", {"three": CODE + "x = 1\n", "four": "def load_file(path, child):\n    return 1\n"})
    return train, heldout


def test_figures_against_a_loop(corpora):
    dataset, manifest, tokenizer = open_corpus(corpora[0])
    assert len(dataset) == 2
    windows = WindowDataset(dataset, tokenizer, 24, 2)
    figures = window_figures(windows, manifest["linking"])
    used, num_visible, num_facts, empty = {}, 0, 0, 0
    for index in range(len(windows)):
        item = windows[index]
        empty += len(item["relation"]) == 0
        num_facts += len(item["relation"])
        num_visible += int(item["visible"].sum())
        for root, length in zip(item["leaf_root"].tolist(), item["leaf_length"].tolist(), strict=True):
            used[index, root] = used.get((index, root), 0) + length
    shares = figures["shares"]
    assert shares["heads_linked"] == 1.0
    assert shares["windows_without_fact"] == empty / len(windows)
    assert shares["roots_with_leaves"] == pytest.approx(len(used) / figures["roots"])
    assert shares["leaf_visible"] == pytest.approx(num_visible / num_facts)
    assert shares["tails_whole"] == 1 - figures["facts_cut"] / num_facts < 1
    assert figures["leaves_used"] == [list(used.values()).count(n) for n in (1, 2)]
    sizes = [len(windows[i]["input_ids"]) + len(windows[i]["leaf_ids"]) for i in range(len(windows))]
    assert figures["nodes"]["p100"] == max(sizes)
    table = window_table(figures, "title")
    assert "missed" in table  # three tokens of a leaf do not fit into two slots


def test_overlap(corpora):
    train, heldout = open_corpus(corpora[0])[0], open_corpus(corpora[1])[0]
    found = overlap_figures(train, heldout)
    assert tuple(found) == RELATION_NAMES
    # three/a.py repeats one/a.py; four/a.py shares load_file's path, not its child.
    assert found["has_parameter"] == {"distinct": 5, "overlap": 4 / 5}
    assert found["inherits"] == {"distinct": 1, "overlap": 1.0}
    assert found["imports"] == {"distinct": 0, "overlap": None}
    assert overlap_figures(heldout, heldout)["has_parameter"]["overlap"] == 1.0


def test_command_writes_its_record(corpora, tmp_path, capsys):
    record = tmp_path / "record"
    assert main([corpora[0], "--heldout", corpora[1], "--lookup-windows", "4", "--record", str(record)]) == 0
    run = json.loads((record / "run.json").read_text(encoding="utf-8"))
    assert set(run["figures"]["lookups"]) >= {"majority", "(head, tail) tokens"}
    assert run["command"] in (record / "README.md").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert (record / "log.txt").read_text(encoding="utf-8").split() == printed.split()
    other = tmp_path / "other"
    source = tmp_path / "src"
    for name in "ab":
        (source / name).mkdir(parents=True)
        (source / name / "x.py").write_text(f"{name} = 1\n" * 40, encoding="utf-8")
    build_chain_graphs(BuildArguments([f"dir:{source}"], str(other), 0.5, vocab_size=300))
    assert main([corpora[0], "--heldout", str(other)]) == 2
    assert "another tokenizer" in capsys.readouterr().err
