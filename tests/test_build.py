"""Builds: splits by project, rows and counts that agree, equal bytes for any number of processes, clear refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from stub_extract import broken_extract, interrupted_extract, killed_extract, stub_extract
from tiny import tiny_tokenizer

from graphmert.chain_graphs import load_chain_graphs
from graphmert.chain_graphs.build import BuildArguments, build_chain_graphs, main, parse_arguments
from graphmert.chain_graphs.manifest import summary
from graphmert.chain_graphs.sources import BuildError
from graphmert.chain_graphs.splitting import split_projects
from graphmert.code_graph.schema import RELATION_IDS, RELATION_NAMES

NUM_PROJECTS = 8


def project_text(index: int) -> str:
    return "".join(
        f"def function_{index}_{i}(argument_{i}):\n    return argument_{i} + {index}\n\n\n" for i in range(30 + index)
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    for index in range(NUM_PROJECTS):
        project = root / f"project{index}"
        project.mkdir()
        (project / "code.py").write_text(project_text(index))
        (project / "same.py").write_text("def shared(everywhere):\n    pass\n")
        (project / "special.py").write_text(f"def mask{index}(token):\n    return '<mask> </s> <s>' # ERROR\n")
    (root / "project0" / "fail.py").write_text("PLEASE_FAIL = 1\n")
    (root / "project0" / "recurse.py").write_text("PLEASE_RECURSE = 1\n")
    (root / "project0" / "null.py").write_bytes(b"x\0")
    return root


def arguments(corpus, output, **changes) -> BuildArguments:
    given = {"source": [f"dir:{corpus}"], "output": str(output), "vocab_size": 400, "test_fraction": 0.15} | changes
    return BuildArguments(**given)


@pytest.fixture(scope="module")
def built(corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("built") / "data"
    manifest = build_chain_graphs(arguments(corpus, output), extract=stub_extract)
    return output, manifest


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_rows_splits_and_manifest_agree(built, corpus):
    output, returned = built
    splits, manifest, tokenizer = load_chain_graphs(output)
    assert manifest == json.loads(json.dumps(returned))
    assert set(splits) == set(manifest["splits"]) == {"train", "validation", "test"}
    seen = Counter()
    for name, rows in splits.items():
        entry = manifest["splits"][name]
        assert set(rows["project"]) <= set(entry["projects"])
        seen.update(entry["projects"])
        assert entry["files"] == len(rows)
        assert entry["characters"] == sum(map(len, rows["code"]))
        assert entry["tokens"] == sum(map(len, rows["input_ids"]))
        assert (
            entry["triples"]["has_parameter"]
            == entry["num_triples"]
            == sum(code.count("def ") for code in rows["code"])
        )
    assert seen == {f"project{i}": 1 for i in range(NUM_PROJECTS)}
    (source,) = manifest["sources"]
    assert source["files"] == sum(map(len, splits.values())) == 2 * NUM_PROJECTS + 1
    assert manifest["relation_names"] == list(RELATION_NAMES)
    assert manifest["extraction"]["syntax_errors"] == {"errors": NUM_PROJECTS, "files": NUM_PROJECTS}
    assert manifest["extraction"]["facts_not_made"] == {"a reason": source["files"]}
    assert manifest["linking"]["tokens"] == source["tokens"]
    # A corpus this small has fewer merges than were asked for.
    assert manifest["tokenizer"]["vocab_size"] == len(tokenizer) <= 400
    assert "has_parameter" in summary(manifest) and f"{source['tokens']:,}" in summary(manifest)


def test_rows_hold_the_code_and_its_tokens(built):
    splits, _, tokenizer = load_chain_graphs(built[0])
    for rows in splits.values():
        for row in rows:
            code = row["code"]
            pieces = [code[a:b] for a, b in zip(row["char_starts"], row["char_ends"], strict=True)]
            assert "".join(pieces) == code
            # "<mask>" in a file is text, not the mask.
            assert not set(row["input_ids"]) & set(tokenizer.all_special_ids)
            assert (row["source"].startswith("dir:"), row["language"]) == (True, "python")


def test_skipped_files_have_reasons(built):
    _, manifest, _ = load_chain_graphs(built[0])
    reasons = {item["path"]: item["reason"] for item in manifest["skipped"]["files"]}
    assert reasons["project0/null.py"] == "null bytes"
    assert reasons["project0/fail.py"] == "extraction failed: ValueError: cannot read this"
    assert reasons["project0/recurse.py"] == "extraction failed: RecursionError"
    # The first of equal files stays, wherever its copies would have gone.
    assert [reasons.get(f"project{i}/same.py") for i in range(NUM_PROJECTS)] == [None] + [
        "duplicate of a file read before"
    ] * 7
    assert sum(manifest["skipped"]["by_reason"].values()) == len(manifest["skipped"]["files"]) == 10


def test_tokenizer_sees_the_training_split_only(built):
    _, manifest, tokenizer = load_chain_graphs(built[0])
    from graphmert.chain_graphs.tokenizer import train_tokenizer

    splits, _, _ = load_chain_graphs(built[0])
    texts = [row["code"] for row in splits["train"]]
    texts += (
        ["PLEASE_FAIL = 1\n", "PLEASE_RECURSE = 1\n"] if "project0" in manifest["splits"]["train"]["projects"] else []
    )
    again = train_tokenizer(texts, 400).backend_tokenizer
    assert again.get_vocab() == tokenizer.backend_tokenizer.get_vocab()


def test_bytes_do_not_depend_on_processes(built, corpus, tmp_path, monkeypatch):
    from graphmert.chain_graphs import staging

    # Small batches, so that several processes have work.
    monkeypatch.setattr(staging, "BATCH_CHARS", 3000)
    build_chain_graphs(arguments(corpus, tmp_path / "one"), extract=stub_extract)
    build_chain_graphs(arguments(corpus, tmp_path / "two", num_proc=2), extract=stub_extract)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


@pytest.mark.parametrize(
    ("extract", "error", "message"),
    [
        (broken_extract, TypeError, "a programming error"),
        (interrupted_extract, KeyboardInterrupt, "in a worker process"),
        (killed_extract, BuildError, "a worker process was killed 8 times in a row"),
    ],
)
def test_other_errors_surface_and_the_same_command_continues(corpus, tmp_path, built, extract, error, message):
    with pytest.raises(error, match=message):
        build_chain_graphs(arguments(corpus, tmp_path / "data"), extract=extract)
    # What has been read stays, unless the mistake shows before any rows are made.
    assert os.listdir(tmp_path) == ([] if error is BuildError else [".data.building"])
    build_chain_graphs(arguments(corpus, tmp_path / "data"), extract=stub_extract)
    assert contents(tmp_path / "data") == contents(built[0]) and os.listdir(tmp_path) == ["data"]


def test_an_error_before_anything_is_read_leaves_nothing(corpus, tmp_path, monkeypatch):
    def full(path):
        raise OSError("no space left")

    monkeypatch.setattr("graphmert.chain_graphs.tokenizer.load_tokenizer", full)
    with pytest.raises(OSError, match="no space left"):
        build_chain_graphs(arguments(corpus, tmp_path / "data", tokenizer="any"), extract=stub_extract)
    assert os.listdir(tmp_path) == []


BUILD = """
import pathlib, sys
from graphmert.chain_graphs import staging
from graphmert.chain_graphs.build import BuildArguments, build_chain_graphs
from stub_extract import slow_extract
staging.BATCH_CHARS = 1500
build_chain_graphs(BuildArguments(source=[f"dir:{sys.argv[1]}"], output=sys.argv[2], vocab_size=400, test_fraction=0.15,
                                  near_duplicates=float(sys.argv[3])), extract=slow_extract)
"""


def start_build(corpus, output, near_duplicates=0.85) -> subprocess.Popen:
    command = [sys.executable, "-c", BUILD, str(corpus), str(output), str(near_duplicates)]
    return subprocess.Popen(command, cwd=Path(__file__).parent, stderr=subprocess.PIPE, text=True)


def test_killed_at_any_moment_the_same_command_continues(corpus, tmp_path, monkeypatch):
    from graphmert.chain_graphs import staging

    monkeypatch.setattr(staging, "BATCH_CHARS", 1500)
    build_chain_graphs(arguments(corpus, tmp_path / "whole"), extract=stub_extract)
    work = tmp_path / ".data.building"
    # Killed as soon as the first part of each phase stands.
    for part in ("staging/*/*.arrow", "staging/*/*.survey", "rows/00000[4-9]*.arrow"):
        process = start_build(corpus, tmp_path / "data")
        deadline = time.monotonic() + 300
        while process.poll() is None and not list(work.glob(part)) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL and not (tmp_path / "data").exists(), part
        for candidate in (work, work / "dataset"):
            with pytest.raises(ValueError, match="build"):
                load_chain_graphs(candidate)
    kept = {path: path.stat().st_mtime_ns for path in work.glob("rows/*.arrow")}
    assert kept
    other = start_build(corpus, tmp_path / "data", near_duplicates=0.9)
    _, message = other.communicate(timeout=300)
    assert other.returncode == 1 and "a build with other arguments or versions was stopped here" in message
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    last = start_build(corpus, tmp_path / "data")
    assert "continuing the build" in last.communicate(timeout=300)[1] and last.returncode == 0
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["data", "whole"]


def test_killed_after_the_dataset_came_to_its_place(corpus, tmp_path, monkeypatch):
    from graphmert.chain_graphs import workplace

    with monkeypatch.context() as patch:
        patch.setattr(workplace.Workplace, "__exit__", lambda self, *exception: self._lock.close())
        manifest = build_chain_graphs(arguments(corpus, tmp_path / "data"), extract=stub_extract)
    assert sorted(os.listdir(tmp_path)) == [".data.building", "data"]
    assert build_chain_graphs(arguments(corpus, tmp_path / "data"), extract=broken_extract) == json.loads(
        json.dumps(manifest)
    )
    assert os.listdir(tmp_path) == ["data"]


def test_two_builds_into_one_place_and_restart(corpus, tmp_path):
    from graphmert.chain_graphs.workplace import Workplace

    with pytest.raises(TypeError):
        build_chain_graphs(arguments(corpus, tmp_path / "data"), extract=broken_extract)
    with pytest.raises(BuildError, match="add --restart"):
        build_chain_graphs(arguments(corpus, tmp_path / "data", seed=5), extract=stub_extract)
    build_chain_graphs(arguments(corpus, tmp_path / "data", seed=5, restart=True), extract=stub_extract)
    with Workplace(tmp_path / "other", {}), pytest.raises(BuildError, match="another build is writing it"):  # noqa: SIM117
        with Workplace(tmp_path / "other", {}):
            pass
    assert os.listdir(tmp_path) == ["data"]


def test_overwrite_replaces_datasets_only(corpus, tmp_path):
    output = tmp_path / "data"
    small = {"test_fraction": 0.0, "min_file_chars": 200}
    build_chain_graphs(arguments(corpus, output, **small), extract=stub_extract)
    (output / "mark").touch()
    with pytest.raises(BuildError, match="exists; choose another directory or add --overwrite"):
        build_chain_graphs(arguments(corpus, output, **small), extract=stub_extract)
    with pytest.raises(TypeError):
        build_chain_graphs(arguments(corpus, output, overwrite=True, **small), extract=broken_extract)
    assert (output / "mark").exists()
    build_chain_graphs(arguments(corpus, output, overwrite=True, **small), extract=stub_extract)
    assert not (output / "mark").exists() and set(load_chain_graphs(output)[0]) == {"train", "validation"}
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").touch()
    with pytest.raises(BuildError, match="--overwrite replaces only datasets"):
        build_chain_graphs(arguments(corpus, other, overwrite=True), extract=stub_extract)


def test_damaged_datasets_are_refused(built, tmp_path):
    import shutil

    def damaged(name, change):
        path = tmp_path / name
        shutil.copytree(built[0], path)
        change(path)
        with pytest.raises(ValueError) as error:
            load_chain_graphs(path)
        return str(error.value)

    def edit(**changes):
        def change(path):
            manifest = json.loads((path / "manifest.json").read_text())
            (path / "manifest.json").write_text(json.dumps(manifest | changes))

        return change

    assert "format version 99, this version reads 1" in damaged("a", edit(format_version=99))
    assert "was built with the relations ['calls']" in damaged("b", edit(relation_names=["calls"]))
    assert "lacks the split(s) extra" in damaged("c", edit(splits={"train": {}, "extra": {}}))
    assert "no manifest.json" in damaged("d", lambda path: (path / "manifest.json").unlink())
    assert "is not JSON" in damaged("e", lambda path: (path / "manifest.json").write_text("{"))
    assert "is incomplete" in damaged("f", lambda path: shutil.rmtree(path / "train"))
    assert "is not the one that made the rows" in damaged(
        "g", lambda path: (path / "tokenizer/tokenizer.json").write_text("{}")
    )
    with pytest.raises(ValueError, match="does not exist; build one with"):
        load_chain_graphs(tmp_path / "nowhere")


def test_split_is_measured_in_characters_and_stable():
    sizes = {f"p{i}": 100 + 37 * (i * i % 29) for i in range(200)}
    first = split_projects(sizes, 0.1, 0.05, seed=3)
    shares = Counter()
    for project, split in first.items():
        shares[split] += sizes[project] / sum(sizes.values())
    assert abs(shares["validation"] - 0.1) < 0.02 and abs(shares["test"] - 0.05) < 0.02
    assert split_projects(dict(reversed(sizes.items())), 0.1, 0.05, seed=3) == first
    assert split_projects(sizes, 0.1, 0.05, seed=4) != first
    more = split_projects(sizes | {"new": 500}, 0.1, 0.05, seed=3)
    assert sum(more[project] != first[project] for project in sizes) <= 3


def test_split_with_few_projects():
    assert sorted(split_projects({"a": 10, "b": 1000}, 0.1).items()) == [("a", "validation"), ("b", "train")]
    three = split_projects({"a": 100, "b": 100, "c": 100}, 0.01, 0.01)
    assert sorted(three.values()) == ["test", "train", "validation"]
    named = split_projects({"a": 1, "b": 1, "c": 9}, validation_projects=("c",), test_projects=("a",))
    assert named == {"a": "test", "b": "train", "c": "validation"}


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ({"a": 5}, {}, r"the validation split would be empty: the corpus has 1 project\(s\) \(a\)"),
        ({"a": 5, "b": 5}, {"test_fraction": 0.1}, "the test split would be empty"),
        ({"a": 5}, {"validation_projects": ("a",)}, "the train split would be empty"),
        ({"a": 5}, {"validation_projects": ("z",)}, "--validation-projects: no project 'z'; the corpus has a"),
        ({"a": 5}, {"validation_projects": ("a",), "test_projects": ("a",)}, "named for both"),
        ({"a": 5}, {"validation_fraction": 1.0}, "--validation-fraction is 1.0; it must be"),
        ({"a": 5}, {"test_fraction": -0.1}, "--test-fraction is -0.1; it must be"),
        ({"a": 5}, {"validation_fraction": 0.6, "test_fraction": 0.5}, "leave nothing to train on"),
    ],
)
def test_impossible_splits(sizes, options, message):
    with pytest.raises(BuildError, match=message):
        split_projects(sizes, **options)


def test_mistakes_are_one_line_and_exit_code_2(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "a.py").write_text("\n")
    (tmp_path / "data.bin").write_bytes(b"\0\1")
    (tmp_path / "bad.py").write_bytes(b"\0\1")
    (tmp_path / "two").mkdir()
    for name in "ab":
        (tmp_path / "two" / name).mkdir()
        (tmp_path / "two" / name / "x.py").write_text(f"{name} = 1\n")
    (tmp_path / "config.yaml").write_text("source: [stdlib]\nlearning_rate: 3\n")
    (tmp_path / "types.yaml").write_text("source: [stdlib]\nvocab_size: many\n")
    output = ["--output", str(tmp_path / "out")]
    cases = {
        "no source; give at least one": output,
        "no output directory": ["--source", "stdlib"],
        "does not exist": ["--source", f"dir:{tmp_path}/nowhere", *output],
        "has no file of code": ["--source", f"dir:{tmp_path}/empty", *output],
        "no file of the sources can be used: 1 empty": ["--source", f"dir:{tmp_path}/blank", *output],
        "is not a directory nor a file of python": ["--source", f"dir:{tmp_path}/data.bin", *output],
        "is not text: null bytes": ["--source", f"dir:{tmp_path}/bad.py", *output],
        "unknown source": ["--source", "ftp:x", *output],
        "pin one version, pypi:flask==VERSION": ["--source", "pypi:flask", *output],
        "exists; choose another": ["--source", "stdlib", "--output", str(tmp_path / "two")],
        "is a file; name a directory": ["--source", "stdlib", "--output", str(tmp_path / "bad.py")],
        "--validation-fraction is 2.0": ["--source", "stdlib", "--validation-fraction", "2", *output],
        "needs a validation split": ["--source", "stdlib", "--validation-fraction", "0", *output],
        "--num-proc is 0": ["--source", "stdlib", "--num-proc", "0", *output],
        "--max-file-seconds is nan": ["--source", "stdlib", "--max-file-seconds", "nan", *output],
        "--max-file-seconds is inf": ["--source", "stdlib", "--max-file-seconds", "inf", *output],
        "--vocab-size is 9": ["--source", "stdlib", "--vocab-size", "9", *output],
        "unknown option 'learning_rate'": ["--config", f"{tmp_path}/config.yaml", *output],
        "vocab_size cannot be 'many'": ["--config", f"{tmp_path}/types.yaml", *output],
        "cannot be read": ["--config", f"{tmp_path}/none.yaml", *output],
    }
    for message, argv in cases.items():
        assert main(argv) == 2, message
        captured = capsys.readouterr()
        errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and message in errors[0] and captured.err.endswith(errors[0] + "\n")
        assert captured.out == "" and not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("option", [["--nonsense"], ["--num-proc", "two"], ["--engine", "x"]])
def test_wrong_options_are_one_line(option, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--source", "stdlib", *option])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert option[0] in error and error.count("\n") == 1


def test_command_line_comes_before_the_configuration_file(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "source: stdlib\noutput: a\nvalidation_fraction: 0.3\nseed: 5\nvalidation-projects: [x, y]\n"
    )
    parsed = parse_arguments(["--config", str(tmp_path / "c.yaml"), "--seed", "6", "--output", "b", "--include-tests"])
    assert parsed == BuildArguments(
        source=["stdlib"],
        output="b",
        validation_fraction=0.3,
        seed=6,
        validation_projects=["x", "y"],
        include_tests=True,
    )


def test_real_code_graphs(tmp_path, capsys):
    for index in range(3):
        (tmp_path / "corpus" / f"p{index}").mkdir(parents=True)
        (tmp_path / "corpus" / f"p{index}" / "m.py").write_text(
            f"import json\n\n\n{project_text(index)}\nclass A{index}(dict):\n    size: int = 0\n"
        )
    argv = ["--source", f"dir:{tmp_path}/corpus", "--output", str(tmp_path / "out"), "--vocab-size", "400"]
    assert main(argv) == 0
    splits, manifest, _ = load_chain_graphs(tmp_path / "out")
    triples = Counter()
    for entry in manifest["splits"].values():
        triples.update(entry["triples"])
    assert triples["inherits"] == triples["imports"] == 3
    relation = RELATION_NAMES.index("has_parameter")
    at_definitions = 0
    for rows in splits.values():
        for row in rows:
            columns = (row["anchor_relation"], row["anchor_reversed"], row["anchor_is_use"])
            at_definitions += sum(anchor == (relation, 0, 0) for anchor in zip(*columns, strict=True))
    assert at_definitions == 30 + 31 + 32
    assert manifest["linking"]["heads_linked"] == manifest["linking"]["heads"]
    assert all(len(row["anchor_start"]) > 30 for row in splits["train"])
    assert "written to" in capsys.readouterr().out


def test_given_tokenizer_is_used_without_its_truncation(corpus, tmp_path):
    from graphmert.chain_graphs.tokenizer import train_tokenizer

    given = train_tokenizer([project_text(3)], 300)
    given.backend_tokenizer.enable_truncation(16)
    given.save_pretrained(tmp_path / "given")
    assert '"max_length": 16' in (tmp_path / "given" / "tokenizer.json").read_text()
    build_chain_graphs(arguments(corpus, tmp_path / "data", tokenizer=str(tmp_path / "given")), extract=stub_extract)
    splits, manifest, tokenizer = load_chain_graphs(tmp_path / "data")
    assert manifest["tokenizer"]["name"] == str(tmp_path / "given")
    assert tokenizer.get_vocab() == given.get_vocab()
    assert all(row["char_ends"][-1] == len(row["code"]) for rows in splits.values() for row in rows)


ANNOTATED = "def size(path: Path, deep: bool = False) -> int:\n    total: int = len(path)\n    return total\n"


def test_annotations_leave_the_text_and_not_the_graph(tmp_path):
    for number in range(12):
        directory = tmp_path / "src" / f"p{number}"
        directory.mkdir(parents=True)
        (directory / "a.py").write_text(ANNOTATED + f"x{number} = {number}\n")
        (directory / "b.py").write_text(f"y{number} = {number}\n")
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")

    def build(name, share, num_proc=1):
        arguments = BuildArguments(
            [f"dir:{tmp_path / 'src'}"],
            str(tmp_path / name),
            0.3,
            tokenizer=str(tmp_path / "tokenizer"),
            near_duplicates=0,
            hide_annotations=share,
            num_proc=num_proc,
        )
        manifest = build_chain_graphs(arguments)
        splits = load_chain_graphs(tmp_path / name)[0]
        return manifest, {row["path"]: row for split in splits.values() for row in split}

    none, plain = build("none", 0.0)
    some, half = build("half", 0.5)
    _, again = build("again", 0.5, num_proc=2)
    every, bare = build("all", 1.0)
    assert half == again
    hidden = [path for path in half if half[path]["code"] != plain[path]["code"]]
    counts = [manifest["extraction"]["files_with_annotations_hidden"] for manifest in (none, some, every)]
    assert counts == [0, len(hidden), 12] and 0 < len(hidden) < 12
    assert all(half[path] == bare[path] for path in hidden)
    types = [RELATION_IDS["has_type"], RELATION_IDS["returns"]]
    for path, row in bare.items():
        if path.endswith("a.py"):
            text = ANNOTATED.replace(": Path", "").replace(": bool ", " ").replace(" -> int", "").replace(": int", "")
            assert row["code"].startswith(text.replace(" = False", " = False")) and "Path" not in row["code"]
            # Each of the four types hangs on its name, and on the name's uses.
            found = [number for number in row["anchor_relation"] if number in types]
            whole = [number for number in plain[path]["anchor_relation"] if number in types]
            assert len(found) >= 6 and set(found) == set(whole)
        else:
            assert row == plain[path]
    assert "has lost its annotations" in summary(some) and "has lost its annotations" not in summary(none)
    assert "has lost its type annotations" in (tmp_path / "half" / "README.md").read_text()
    with pytest.raises(BuildError, match=r"--hide-annotations is 1\.5"):
        build("wrong", 1.5)
