"""Datasets of six languages: what is read and left out in each, rows and windows of all, counts by language."""

from collections import Counter

import datasets
import pytest
from test_languages import read_cases
from test_sources import read, write

from graphmert.chain_graphs import WindowDataset, load_chain_graphs
from graphmert.chain_graphs.build import BuildArguments, BuildError, build_chain_graphs, main, parse_arguments
from graphmert.chain_graphs.languages import (
    decode,
    is_minified,
    is_table,
    is_test_path,
    language_of_file,
    parse_languages,
)
from graphmert.chain_graphs.manifest import summary
from graphmert.chain_graphs.show import view_file
from graphmert.code_graph import EXTENSIONS, LANGUAGES, RELATION_NAMES, extract
from graphmert.collator import GraphMertCollator

NUM_PROJECTS = 4
PYTHON = "class Stack:\n    def push(self, item: int) -> None:\n        self.items = [item]\n        self.push(item)\n"


def project_files(language: str, project: int) -> dict[str, str]:
    """A part of the language's snippets, other words in each project."""
    snippets = [PYTHON] * 8 if language == "python" else [source for _, source, _ in read_cases(language)]
    return {
        f"{language}{number}{EXTENSIONS[language][0]}": f"{source}\n{comment} {project} {number}\n"
        for number, source in enumerate(snippets)
        if number % NUM_PROJECTS == project
        for comment in ("#" if language in ("python", "ruby") else "//",)
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("languages")
    for project in range(NUM_PROJECTS):
        for language in LANGUAGES:
            write(root / f"project{project}", project_files(language, project))
    extra = {
        "app.min.js": "var a=1\n",
        "bundle.js": "function f(a,b){return a+b};" * 300,
        "src/test/java/StackTest.java": "class StackTest {}\n",
        "stack_test.go": "package stack\n",
        "spec/stack_spec.rb": "describe Stack do end\n",
        "__tests__/stack.js": "test('push', () => {})\n",
        "tests/StackTest.php": "<?php class StackTest {}\n",
        "latin.php": "<?php $x = 'ä';".encode("latin-1"),
        "stubs.pyi": "def f(x: int) -> int: ...\n",
        "notes.txt": "no code\n",
    }
    write(root / "project0", extra)
    return root


@pytest.fixture(scope="module")
def built(corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("built") / "data"
    arguments = BuildArguments(
        source=[f"dir:{corpus}"], output=str(output), languages=LANGUAGES, vocab_size=500, near_duplicates=0
    )
    return output, build_chain_graphs(arguments)


def test_rows_of_every_language_with_their_own_graphs(built):
    output, manifest = built
    splits, stored, _ = load_chain_graphs(output)
    rows = [row for split in splits.values() for row in split]
    files, characters, tokens = Counter(), Counter(), Counter()
    triples = {language: Counter() for language in LANGUAGES}
    for row in rows:
        files[row["language"]] += 1
        characters[row["language"]] += len(row["code"])
        tokens[row["language"]] += len(row["input_ids"])
        assert language_of_file(row["path"]) == row["language"]
        triples[row["language"]].update(t.relation for t in extract(row["code"], row["language"]).triples)
    assert list(stored["languages"]) == list(LANGUAGES)
    for language, counts in manifest["languages"].items():
        assert counts["files"] == files[language] >= 6
        assert (counts["characters"], counts["tokens"]) == (characters[language], tokens[language])
        assert counts["triples"] == {name: triples[language][name] for name in RELATION_NAMES}
        assert counts["num_triples"] > 20
        assert f"tree-sitter-{language}" in manifest["created_by"]
        assert f"\n{language} " in summary(manifest)


def test_what_is_left_out_of_each_language(built):
    reasons = {item["path"]: item["reason"].partition(" (")[0] for item in built[1]["skipped"]["files"]}
    assert reasons == {
        "project0/app.min.js": "minified",
        "project0/bundle.js": "minified",
        "project0/src/test/java/StackTest.java": "test code",
        "project0/stack_test.go": "test code",
        "project0/spec/stack_spec.rb": "test code",
        "project0/__tests__/stack.js": "test code",
        "project0/tests/StackTest.php": "test code",
        "project0/latin.php": "not utf-8 text",
    }


def test_windows_and_batches_of_all_languages(built):
    splits, _, tokenizer = load_chain_graphs(built[0])
    windows = WindowDataset(splits["train"], tokenizer, num_roots=64)
    languages = Counter(splits["train"]["language"][file] for file in windows.file_index)
    assert set(languages) == set(LANGUAGES)
    batch = GraphMertCollator(tokenizer, num_roots=64)([windows[index] for index in range(len(windows))])
    assert batch["input_ids"].shape[0] == len(windows)
    with_leaves = (batch["leaf_index"] >= 0).any(dim=1).numpy()
    assert {splits["train"]["language"][windows.file_index[i]] for i in with_leaves.nonzero()[0]} == set(LANGUAGES)


def test_only_the_languages_asked_for(corpus):
    assert {path.rpartition(".")[2] for path in read(f"dir:{corpus}")[0]} == {"py"}
    kept, _ = read(f"dir:{corpus}", languages=("java", "go"))
    assert {path.rpartition(".")[2] for path in kept} == {"java", "go"}
    script = f"dir:{corpus}/project0/javascript0.js"
    assert list(read(script, languages=("javascript",))[0]) == ["javascript0.js"]
    with pytest.raises(BuildError, match="nor a file of python"):
        read(script)


def test_names_of_languages(tmp_path, capsys):
    output = ["--output", str(tmp_path / "data")]
    assert parse_languages(["PHP,js", "golang"]) == ("javascript", "go", "php")
    assert parse_arguments(["--source", "stdlib", "--languages", "go", "java", *output]).languages == ("java", "go")
    (tmp_path / "c.yaml").write_text("source: stdlib\nlanguages: ruby, php\n")
    assert parse_arguments(["--config", str(tmp_path / "c.yaml"), *output]).languages == ("ruby", "php")
    assert main(["--source", "stdlib", "--languages", "cobol", *output]) == 2
    assert "cobol; choose from python, java" in capsys.readouterr().err
    assert main(["--source", f"dir:{tmp_path}", "--languages", "ruby", *output]) == 2
    assert "has no file of code in ruby" in capsys.readouterr().err


def test_hugging_face_rows_of_several_languages(tmp_path):
    rows = {
        "code": ["class A {}\n", "def f\nend\n", "x = 1\n", "fn main() {}\n"],
        "repo": list("abcd"),
        "language": ["Java", "Ruby", "Python", "Rust"],
    }
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "named.parquet")
    del rows["language"]
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "plain.parquet")
    datasets.Dataset.from_dict(rows | {"path": ["A.java", "f.rb", "x.py", "m.rs"]}).to_parquet(
        tmp_path / "path.parquet"
    )
    both = {"languages": ("java", "ruby")}
    kept, skipped = read(f"hf:{tmp_path / 'named.parquet'},text_column=code", **both)
    assert kept == {"row-0.java": "a", "row-1.rb": "b"}
    assert skipped == {"row-2": "language python is not read", "row-3": "language rust is not read"}
    kept, skipped = read(f"hf:{tmp_path / 'path.parquet'},text_column=code", **both)
    assert kept == {"A.java": "a", "f.rb": "b"}
    assert skipped == {"x.py": "language python is not read", "m.rs": "language unknown is not read"}
    with pytest.raises(BuildError, match="add ,language=NAME"):
        read(f"hf:{tmp_path / 'plain.parquet'},text_column=code", **both)
    with pytest.raises(BuildError, match="language go is not asked for; add --languages go"):
        read(f"hf:{tmp_path / 'plain.parquet'},text_column=code,language=go", **both)
    kept, _ = read(f"hf:{tmp_path / 'plain.parquet'},text_column=code,language=js", languages=("go", "javascript"))
    assert set(kept) == {f"row-{i}.js" for i in range(4)}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("src/test/java/a/Stack.java", True),
        ("a/StackTest.java", True),
        ("a/TestStack.java", True),
        ("a/Testament.java", False),
        ("a/Latest.java", False),
        ("a/SPLIT.java", False),
        ("lib/__tests__/a.js", True),
        ("lib/a.spec.mjs", True),
        ("lib/a-test.js", True),
        ("lib/latest.js", False),
        ("lib/inspec.js", False),
        ("a/stack_test.go", True),
        ("a/testdata/x.go", True),
        ("a/testing.go", False),
        ("lib/stack_spec.rb", True),
        ("test/stack.rb", True),
        ("lib/inspect.rb", False),
        ("src/StackTest.php", True),
        ("Tests/Stack.php", True),
        ("src/Contest.php", False),
        ("src/Latest.php", False),
    ],
)
def test_test_paths(path, expected):
    assert is_test_path(path, language_of_file(path)) is expected


def test_tables_and_minified_files():
    assert is_table("var t = [\n" + "  0x1f, 'a key', `text\nof lines`,\n" * 300 + "]\n", "javascript")
    assert not is_table(
        "/* Words about the code. */\n" * 300 + "int add(int a, int b) { return a + b; }\n" * 40, "java"
    )
    assert is_table("# words\n" + "LIST = [\n" + "'a key', # name of it\n" * 400 + "]\n", "ruby")
    code = "function add(a, b) {\n  return a + b\n}\n"
    assert not is_minified(code * 100, "lib/add.js", "javascript")
    assert is_minified(code.replace("\n", " ") * 100, "lib/add.js", "javascript")
    assert is_minified(code, "lib/add-min.js", "javascript") and is_minified(code, "lib/add.min.js", "javascript")
    assert not is_minified(code.replace("\n", " ") * 100, "lib/Add.java", "java")


def test_encodings():
    assert decode("\ufeffclass Ä {}\r\n".encode(), "java") == "class Ä {}\n"
    assert decode("# encoding: latin-1\nx = 'ä'\n".encode("latin-1"), "ruby") == "# encoding: latin-1\nx = 'ä'\n"
    with pytest.raises(UnicodeError, match="not utf-8 text"):
        decode("# encoding: latin-1\n// 'ä'\n".encode("latin-1"), "java")


def test_viewer_of_another_language(tmp_path):
    (tmp_path / "Stack.java").write_text("class Stack extends Base {\n  int push(int item) { return item; }\n}\n")
    view = view_file(tmp_path / "Stack.java", None)
    assert "inherits" in {fact.relation for window in view.windows for fact in window.facts}
