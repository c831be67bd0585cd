"""Vectors of texts: against a slow computation, in any batch and order, by sentence-transformers and by the command."""

import json
import pickle
import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny import tiny_tokenizer
from tiny_checkpoint import CODES, NUM_ROOTS, save_tiny_checkpoint, tiny_checkpoint
from tiny_model import tiny_model

from graphmert import GraphMertModel, embedding_graphmert, load_encoder, save_for_sentence_transformers
from graphmert.code_graph.functions import list_functions
from graphmert.embed_code import main


# Where several tests share two cores, more threads wait for each other longer than they compute.
@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


QUERY = "read the text of a file"


@pytest.fixture(scope="module")
def parts():
    model, processor = tiny_checkpoint()
    return model.roberta, processor


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    save_tiny_checkpoint(directory)
    return directory


@torch.no_grad()
def slow_vector(model, processor, code: str, pooling: str) -> np.ndarray:
    """Each window alone, without padding; the mean of what is pooled over all of them."""
    states = []
    for window in processor.read_windows(code):
        inputs = processor.collate([window])
        state = model(**inputs).last_hidden_state[0]
        is_root = inputs["leaf_index"][0] < 0
        if pooling == "cls":
            state = state[0].expand(int(is_root.sum()), -1)
        states.append(state[is_root] if pooling == "roots" else state)
    return torch.cat(states).mean(0).numpy()


@pytest.mark.parametrize("pooling", ["mean", "roots", "cls"])
def test_vectors_are_means_over_all_windows(parts, pooling):
    model, processor = parts
    expected = np.stack([slow_vector(model, processor, code, pooling) for code in CODES])
    vectors = model.encode(CODES, processor, pooling=pooling)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 0.05
    unit = model.encode(CODES, processor, pooling=pooling, normalize=True)
    np.testing.assert_allclose(unit, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


def test_batch_size_and_order_change_nothing(parts, monkeypatch):
    model, processor = parts
    codes = CODES * 3
    vectors = model.encode(codes, processor, batch_size=64)
    order = np.random.default_rng(0).permutation(len(codes))
    # Texts are read in several blocks.
    monkeypatch.setattr(embedding_graphmert, "_BATCHES_READ_AHEAD", 3)
    for batch_size in (1, 5):
        again = model.encode([codes[i] for i in order], processor, batch_size=batch_size)
        np.testing.assert_allclose(again, vectors[order], atol=1e-5)
    np.testing.assert_array_equal(model.encode(codes[0], processor), model.encode(codes[:1], processor)[0])


def test_a_plain_tokenizer_gives_the_vectors_without_a_graph(parts):
    model, processor = parts
    words = model.encode(CODES, processor, language=None)
    np.testing.assert_allclose(model.encode(CODES, tiny_tokenizer()), words, atol=1e-5)
    # Linking encodes with the same tokenizer, and would lose what a truncation left on cuts off.
    assert tiny_tokenizer().backend_tokenizer.truncation is None
    graph = model.encode(CODES, processor)
    assert np.abs(graph - words)[0].max() > 1e-2
    mixed = model.encode(CODES[:2], processor, language=["python", None])
    np.testing.assert_allclose(mixed, np.stack([graph[0], words[1]]), atol=1e-5)


def test_line_ends_change_no_vector(parts):
    model, processor = parts
    windows = [code.replace("\n", "\r\n") for code in CODES]
    for reader in (processor, tiny_tokenizer()):
        np.testing.assert_array_equal(model.encode(windows, reader), model.encode(CODES, reader))


def test_encode_leaves_the_model_as_it_was(parts):
    model, processor = parts
    model.train()
    first, second = model.encode(CODES, processor), model.encode(CODES, processor)
    assert model.training
    model.eval()
    np.testing.assert_array_equal(first, second)
    tensor = model.encode(CODES, processor, convert_to_numpy=False)
    assert isinstance(tensor, torch.Tensor)
    assert not tensor.requires_grad
    assert model.encode([], processor).shape == (0, model.config.hidden_size)


def test_what_encode_refuses(parts):
    model, processor = parts
    with pytest.raises(ValueError, match="pooling must be one of mean, cls, roots"):
        model.encode(CODES, processor, pooling="max")
    with pytest.raises(ValueError, match="batch_size"):
        model.encode(CODES, processor, batch_size=0)
    with pytest.raises(ValueError, match="6 texts, but 1 languages"):
        model.encode(CODES, processor, language=["python"])
    with pytest.raises(ValueError, match="a GraphMertProcessor or a fast tokenizer, got str"):
        model.encode(CODES, "runs/small")
    for reader in (processor, tiny_tokenizer()):
        with pytest.raises(ValueError, match="a lone surrogate"):
            model.encode('x = "\ud800"', reader)
        with pytest.raises(ValueError, match=r"must be a str \(decode bytes first\), not bytes"):
            model.encode([b"x = 1"], reader)
    other = tiny_model(GraphMertModel, dtype=torch.float32)
    with pytest.raises(ValueError, match="the processor has relation_names"):
        other.encode(CODES, processor)
    with pytest.raises(ValueError, match="vocab_size = 100"):
        other.encode(CODES, tiny_tokenizer())


# sentence-transformers


def test_sentence_transformers_gives_the_same_vectors(parts, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    save_tiny_checkpoint(tmp_path / "one")
    model, processor = load_encoder(tmp_path / "one")
    written = save_for_sentence_transformers(tmp_path / "one", pooling="roots", normalize=True)
    assert all(path.exists() for path in written)
    with pytest.raises(ValueError, match="trust_remote_code"):
        sentence_transformers.SentenceTransformer(str(tmp_path / "one"))
    loaded = sentence_transformers.SentenceTransformer(str(tmp_path / "one"), trust_remote_code=True, device="cpu")
    assert loaded.get_embedding_dimension() == 32
    options = {"pooling": "roots", "normalize": True}
    expected = model.encode(CODES, processor, **options)
    np.testing.assert_allclose(loaded.encode(CODES, batch_size=2), expected, atol=1e-5)
    np.testing.assert_allclose(loaded.encode_document(CODES), expected, atol=1e-5)
    words = model.encode(CODES, processor, language=None, **options)
    np.testing.assert_allclose(loaded.encode_query(CODES), words, atol=1e-5)
    assert np.abs(words - expected).max() > 1e-3
    loaded.save(str(tmp_path / "two"))
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "two"), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(again.encode(CODES), expected, atol=1e-5)
    # Gradients reach the encoder, as its training needs.
    loaded.train()
    loaded(loaded.preprocess(CODES))["sentence_embedding"].sum().backward()
    assert all(p.grad is not None for n, p in loaded.named_parameters() if "encoder.layer" in n)


def test_what_save_for_sentence_transformers_refuses(tmp_path, checkpoint):
    with pytest.raises(ValueError, match="is no saved GraphMERT model"):
        save_for_sentence_transformers(tmp_path)
    with pytest.raises(ValueError, match="pooling must be"):
        save_for_sentence_transformers(checkpoint, pooling="max")
    with pytest.raises(ValueError, match="'cobol' is not supported"):
        save_for_sentence_transformers(checkpoint, language="cobol")
    assert not (checkpoint / "modules.json").exists()


# Tampered checkpoints


class Bomb:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def test_tampered_weights_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    directory, marker = tmp_path / "checkpoint", tmp_path / "marker"
    save_tiny_checkpoint(directory)
    weights = load_file(directory / "model.safetensors")
    name = "roberta.encoder.layer.0.output.dense.weight"
    save_file({**weights, name: weights[name][:, :3].contiguous()}, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"config\.json"):
        load_encoder(directory)
    del weights[name]
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 tensors|missing"):
        load_encoder(directory)
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(marker)))
    (directory / "extra.py").write_text(f"open({str(marker)!r}, 'w')")
    with pytest.raises(OSError, match="safetensors"):
        load_encoder(directory)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("model.safetensors", "", "are damaged, copy them again"),
        ("config.json", "{not json", "config.json of"),
        ("config.json", ("hidden_size", "32"), "'hidden_size' expected int, got str"),
        ("config.json", ("hidden_act", "x"), "do not fit its config.json: 'x'"),
        ("config.json", ("num_roots", 32), "the processor has num_roots = 24"),
        ("tokenizer.json", '{"a": 1}', "cannot be loaded (KeyError: 'added_tokens')"),
        ("tokenizer.json", '{"added_tokens": [], "model": 1}', "cannot be loaded (Exception: data did not match"),
        ("tokenizer.json", "{not json", "cannot be loaded (JSONDecodeError"),
    ],
)
def test_damaged_checkpoints_are_named(tmp_path, file, text, message):
    save_tiny_checkpoint(tmp_path)
    if isinstance(text, tuple):
        text = json.dumps({**json.loads((tmp_path / file).read_text()), text[0]: text[1]})
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_encoder(tmp_path)
    assert str(tmp_path) in str(caught.value)


# Functions of files


@pytest.mark.parametrize(
    ("language", "code", "expected"),
    [
        ("python", "class A:\n  @p\n  def f(s):\n    def g(): 1\nasync def h(): 2\n", [("A.f", 2, 4), ("h", 5, 5)]),
        ("python", "def é(): return 'é'\ndef (:\ndef g(): 1\n", [("é", 1, 1), ("g", 3, 3)]),
        ("java", "class A {\n A() {}\n int f() { return 1; }\n}\n", [("A.A", 2, 2), ("A.f", 3, 3)]),
        (
            "javascript",
            "const f = () => 1;\nclass B { g() {} }\nfunction h() {}\n",
            [("f", 1, 1), ("B.g", 2, 2), ("h", 3, 3)],
        ),
        ("go", "package p\nfunc (a A) f() {}\nfunc g() {}\n", [("f", 2, 2), ("g", 3, 3)]),
        ("ruby", "module M\n def f\n end\n def self.g\n end\nend\n", [("M.f", 2, 3), ("M.g", 4, 5)]),
        ("php", "<?php\nclass A {\n function f() {}\n}\nfunction g() {}\n", [("A.f", 3, 3), ("g", 5, 5)]),
    ],
)
def test_functions_of_a_file(language, code, expected):
    functions = list_functions(code, language)
    found = [(f.name, f.first_line, f.last_line) for f in functions]
    assert [f for f in found if f[0] != "(unnamed)"] == expected
    for function in functions:
        text = code[function.start : function.end]
        assert text.split("\n")[0] in code.splitlines()[function.first_line - 1]
        assert function.name.rpartition(".")[2] in text


def test_deep_code_has_functions_too():
    assert list_functions("x = " + "(" * 20_000 + ")" * 20_000 + "\ndef f(): 1\n")[-1].name == "f"


# The command


@pytest.fixture
def project(tmp_path):
    directory = tmp_path / "project"
    (directory / "tests").mkdir(parents=True)
    (directory / "files.py").write_text("import os\n\n\n" + CODES[0] + "\n\n" + CODES[2])
    (directory / "numbers.py").write_text(CODES[4])
    (directory / "nothing.py").write_text("x = 1\n")
    (directory / "empty.py").write_text("")
    (directory / "tests" / "test_files.py").write_text(CODES[1])
    return directory


def test_embedding_and_searching_a_project(project, checkpoint, tmp_path, capsys):
    output = tmp_path / "out" / "embeddings.parquet"
    source = f"dir:{project},project=single"
    assert main(["--model", str(checkpoint), "--source", source, "--output", str(output)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"4 functions written to {output}\n"
    assert "skipped 1 files: empty" in printed.err
    assert "skipped 1 files: no function in it" in printed.err
    assert "test code" in printed.err
    rows = pq.read_table(output).to_pylist()
    assert [(row["path"], row["name"], row["first_line"], row["last_line"]) for row in rows] == [
        ("files.py", "load_file", 4, 6),
        ("files.py", "Reader.walk", 12, 15),
        ("files.py", "Reader.path", 17, 18),
        ("numbers.py", "mean", 3, 4),
    ]
    assert {row["project"] for row in rows} == {"project"}
    vectors = np.array([row["vector"] for row in rows])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)

    model, processor = load_encoder(checkpoint)
    query = ["--query", QUERY, "--top", "2"]
    assert main(["--model", str(checkpoint), "--index", str(output), *query]) == 0
    from_index = capsys.readouterr().out.splitlines()
    scores = vectors @ model.encode(QUERY, processor, language=None, normalize=True)
    order = np.argsort(-scores)[:2]
    expected = [rows[i] for i in order]
    assert from_index == [
        f"{scores[i]:.3f}  {row['path']}:{row['first_line']}-{row['last_line']}  {row['name']}"
        for i, row in zip(order, expected, strict=True)
    ]
    assert main(["--model", str(checkpoint), "--source", source, *query]) == 0
    assert capsys.readouterr().out.splitlines() == from_index


def test_files_as_rows_and_options_from_a_file(project, checkpoint, tmp_path, capsys):
    config = tmp_path / "embed.yaml"
    values = {
        "model": str(checkpoint),
        "source": f"dir:{project}",
        "unit": "file",
        "include_tests": True,
        "pooling": "cls",
    }
    config.write_text(json.dumps(values))
    query = ["--query", CODES[4], "--query-language", "python", "--top", "9"]
    assert main(["--config", str(config), *query]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1.000  numbers.py:1-4"
    assert len(lines) == 4


@pytest.mark.parametrize("is_in_file", [False, True])
def test_other_languages_are_embedded_on_request(is_in_file, checkpoint, tmp_path, capsys):
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.py").write_text(CODES[0])
    (tmp_path / "mixed" / "A.java").write_text("class A {\n int f(int x) { return x; }\n}\n")
    (tmp_path / "mixed" / "g.go").write_text("package p\nfunc g(x int) int { return x }\n")
    output, config = tmp_path / "x.parquet", tmp_path / "embed.yaml"
    config.write_text("languages: [go, java]\n")
    languages = ["--config", str(config)] if is_in_file else ["--languages", "java", "golang"]
    command = [
        "--model",
        str(checkpoint),
        "--source",
        f"dir:{tmp_path / 'mixed'},project=single",
        "--output",
        str(output),
    ]
    assert main([*command, *languages]) == 0
    assert "skipped 1 files: written in python (--languages python reads them)\n" in capsys.readouterr().err
    rows = pq.read_table(output).to_pylist()
    assert [(row["path"], row["name"], row["first_line"]) for row in rows] == [("A.java", "A.f", 2), ("g.go", "g", 2)]
    # A file is read as what it is.
    model, processor = load_encoder(checkpoint)
    assert main([*command, *languages, "--unit", "file", "--overwrite"]) == 0
    codes = [(tmp_path / "mixed" / row["path"]).read_text() for row in rows]
    expected = model.encode(codes, processor, language=["java", "go"], normalize=True)
    np.testing.assert_allclose(pq.read_table(output).column("vector").to_pylist(), expected, atol=1e-5)


def test_the_command_refuses_in_one_line(project, checkpoint, tmp_path, capsys):
    output, other = tmp_path / "a.parquet", tmp_path / "other.parquet"
    common = ["--model", str(checkpoint)]
    assert main([*common, "--source", f"dir:{project}", "--output", str(output)]) == 0
    pq.write_table(pq.read_table(output).replace_schema_metadata(None), other)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.py").write_text("x = 1\n")
    config = tmp_path / "wrong.yaml"
    config.write_text("unit: class\n")
    (tmp_path / "java").mkdir()
    (tmp_path / "java" / "A.java").write_text("class A { int f() { return 1; } }\n")
    java = ["--source", f"dir:{tmp_path / 'java'}", "--query", "x"]
    both = tmp_path / "both.yaml"
    both.write_text("query: x\npooling: roots\nsentence_transformers: true\n")
    capsys.readouterr()
    for options, message in [
        ([], "no model"),
        (common, "give --source to embed code, or --index"),
        ([*common, "--source", "stdlib"], "nothing to do"),
        ([*common, "--source", "stdlib", "--output", str(output)], "exists; choose another file or add --overwrite"),
        (
            [*common, "--source", "stdlib", "--output", str(project), "--overwrite"],
            "project is a directory; name a file",
        ),
        ([*common, "--source", "stdlib", "--output", str(config / "x.parquet")], "wrong.yaml is not a directory"),
        ([*common, "--source", "ftp:x", "--query", "x"], "unknown source"),
        ([*common, "--source", f"dir:{tmp_path / 'gone'}", "--query", "x"], "does not exist"),
        ([*common, "--source", f"dir:{tmp_path / 'none'}", "--output", str(tmp_path / "x")], "no function was found"),
        (["--model", str(tmp_path / "gone"), "--source", "stdlib", "--query", "x"], "gone"),
        ([*common, "--index", str(output), "--query", "x", "--pooling", "cls"], "vectors of --pooling mean, not cls"),
        ([*common, "--index", str(other), "--query", "x"], "was not written by graphmert-embed"),
        ([*common, "--index", str(config), "--query", "x"], "cannot be read"),
        ([*common, "--index", str(output), "--query", "x", "--query-language", "cobol"], "'cobol' is not supported"),
        ([*common, "--config", str(config), "--source", "stdlib", "--query", "x"], "unit cannot be 'class'"),
        ([*common, "--index", str(output), "--query", "x", "--top", "0"], "--top is 0"),
        ([*common, "--index", str(output), "--query", "x", "--num-threads", "0"], "--num-threads is 0"),
        ([*common, *java], "has no file of code in python; check the path, or name the languages with --languages"),
        ([*common, *java, "--languages", "klingon"], "klingon"),
        ([*common, "--sentence-transformers", "--source", "stdlib"], "--source and --sentence-transformers"),
        ([*common, "--sentence-transformers", "--batch-size", "0"], "--batch-size and --sentence-transformers"),
        ([*common, "--sentence-transformers", "--config", str(both)], "--query and --sentence-transformers"),
    ]:
        assert main(options) == 2, options
        printed = capsys.readouterr()
        assert message in printed.err, (options, printed.err)
        assert printed.err.count("\n") == 1
        assert printed.out == ""
    assert not (tmp_path / "x").exists()
    assert not list(tmp_path.glob(".*partial"))
    save_tiny_checkpoint(tmp_path / "another", seed=1)
    assert main(["--model", str(tmp_path / "another"), "--index", str(output), "--query", "x"]) == 2
    assert "made with another model" in capsys.readouterr().err


@pytest.mark.parametrize(("code", "last_line"), [("x = 1\n\x0cy = '\u2028'\n", 2), ("x = 1\ny = 2", 2), ("x = 1", 1)])
def test_lines_of_a_file_end_at_line_ends(code, last_line, checkpoint, tmp_path, capsys):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_bytes(code.encode())
    assert (
        main(["--model", str(checkpoint), "--source", f"dir:{tmp_path / 'code'}", "--unit", "file", "--query", "x"])
        == 0
    )
    assert capsys.readouterr().out.endswith(f"a.py:1-{last_line}\n")


@pytest.mark.parametrize("option", [["--nonsense"], ["--top", "many"], ["--unit", "class"]])
def test_wrong_options_are_one_line(option, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--model", "x", "--source", "stdlib", "--query", "x", *option])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert option[0] in error
    assert error.count("\n") == 1


def test_an_output_that_cannot_be_written_is_refused_before_any_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    for output in (tmp_path / "x.parquet", tmp_path / "new" / "x.parquet", tmp_path / ("x" * 300)):
        assert main(["--model", "nowhere", "--source", "stdlib", "--output", str(output)]) == 2
        error = capsys.readouterr().err
        assert f"--output {output}: cannot be written" in error
        assert error.count("\n") == 1


HELP = """
import sys
from graphmert.embed_code import main
try:
    main(["--help"])
except SystemExit:
    print("torch" in sys.modules)
"""


def test_help_loads_no_torch():
    run = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True)
    assert run.stdout.endswith("False\n"), run.stderr
    assert "exit status" in run.stdout


def test_window_size_is_that_of_the_checkpoint(checkpoint):
    _, processor = load_encoder(checkpoint)
    assert max(len(row) for row in processor(CODES, language=None, padding=False)["input_ids"]) == NUM_ROOTS


def test_batches_hold_so_many_windows_and_on_a_cpu_so_many_nodes():
    from graphmert.embedding_graphmert import cut_batches

    lengths = [900, 300, 300, 290, 10, 10, 10, 10, 10]
    assert list(cut_batches(lengths, 4, None)) == [(0, 4), (4, 8), (8, 9)]
    assert list(cut_batches(lengths, 4, 600)) == [(0, 1), (1, 3), (3, 5), (5, 9)]
    assert list(cut_batches([], 4, 600)) == []
