"""Builds over hostile and repeated files: each is a row or has a reason; the card; pushing; the Ray engine."""

import dataclasses
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hub_server import TOKEN, HubServer
from stub_extract import hostile_extract, stub_extract

from graphmert.benchmarks.hostile_files import KINDS, missing_files, write_hostile_files
from graphmert.chain_graphs import load_chain_graphs
from graphmert.chain_graphs.build import BuildArguments, build_chain_graphs
from graphmert.chain_graphs.duplicates import near_duplicates, signature
from graphmert.chain_graphs.sources import BuildError

WORDS = [f"name{i * 7919 % 1013}" for i in range(600)]


def module(words) -> str:
    return "".join(f"def {a}({b}):\n    return {b}\n" for a, b in zip(words[::2], words[1::2], strict=True))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Hostile files of all kinds beside three projects that repeat each other."""
    root = tmp_path_factory.mktemp("hostile")
    source, output = root / "corpus", root / "data"
    write_hostile_files(source, 3 * len(KINDS), max_chars=6000)
    (source / "copies").mkdir()
    (source / "originals").mkdir()
    (source / "zebra").mkdir()
    (source / "originals" / "a.py").write_text(module(WORDS))
    (source / "originals" / "b.py").write_text(module(WORDS[300:] + WORDS[:300][::-1]))
    edited = [*WORDS]
    edited[10] = edited[400] = "other"
    # Sorted by name, `copies` comes first, so what repeats it goes.
    (source / "copies" / "a.py").write_text("# A licence.\n" + module(edited).replace("    ", "  "))
    (source / "zebra" / "a.py").write_text("import zebra\n" + module(WORDS[:590]))
    arguments = BuildArguments(
        source=[f"dir:{source},project=children"], output=str(output), vocab_size=500, include_tables=True,
        validation_projects=("copies", "project1"),
    )  # fmt: skip
    return source, output, build_chain_graphs(arguments), arguments


def test_every_hostile_file_is_a_row_or_has_a_reason(hostile):
    source, output, manifest, _ = hostile
    assert missing_files(source, output, manifest) == []
    reasons = Counter(manifest["skipped"]["by_reason"])
    assert {"null bytes", "empty", "unknown or contradictory encoding"} <= reasons.keys()
    assert sum(entry["files"] for entry in manifest["splits"].values()) > 2 * len(KINDS) * 0.5


def test_near_duplicates_are_left_out_and_named(hostile):
    _, _, manifest, _ = hostile
    found = {item["path"]: item for item in manifest["skipped"]["files"] if "near-duplicate" in item["reason"]}
    assert {"originals/a.py": "copies/a.py", "zebra/a.py": "copies/a.py"}.items() <= {
        path: item["repeats"] for path, item in found.items()
    }.items()
    assert "originals/b.py" not in found
    counts = manifest["near_duplicates"]
    assert counts["files"] == len(found) and counts["threshold"] == 0.85
    # `copies` is held out, `originals` is not; nothing else of `zebra` is left.
    assert counts["across_splits"] >= 1 and counts["of_projects_without_other_files"] == 1


def test_signatures_estimate_the_share_of_common_shingles():
    rng = np.random.default_rng(0)
    first = [f"w{n}" for n in rng.integers(0, 500, 2000)]

    def shingles(words):
        return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}

    for edits in (0, 10, 40, 150):
        second = list(first)
        for place in rng.choice(len(first), edits, replace=False):
            second[place] = "edited"
        a, b = shingles(first), shingles(second)
        estimate = np.mean(signature(" ".join(first)) == signature("(" + "\n\n".join(second) + ")"))
        # Three standard errors of 128 hashes.
        assert abs(estimate - len(a & b) / len(a | b)) <= 0.133 * (edits > 0)


def test_signatures_agree_with_datasketch():
    from datasketch import MinHash

    first, second = WORDS * 2, WORDS[:450] + [f"y{i}" for i in range(400)] + WORDS[450:]
    ours = np.mean(signature(" ".join(first)) == signature(" ".join(second)))
    sketches = []
    for words in (first, second):
        sketches.append(MinHash(512))
        sketches[-1].update_batch([" ".join(words[i : i + 5]).encode() for i in range(len(words) - 4)])
    assert abs(ours - sketches[0].jaccard(sketches[1])) < 0.15


def test_near_duplicates_keep_the_first_and_forget_short_texts():
    other = [f"x{i}" for i in range(500)]
    texts = [" ".join(WORDS), "a b", " ".join(other), "a b", " ".join([*WORDS, "end"]), " ".join(["begin", *other])]
    signatures = np.stack([signature(text) for text in texts])
    assert near_duplicates(signatures, 0.85) == {4: 0, 5: 2}
    assert near_duplicates(signatures[::-1], 0.85) == {3: 0, 5: 1}


@pytest.mark.parametrize(("edits", "similarity"), [(5, 0.92), (10, 0.83), (15, 0.76), (30, 0.6)])
def test_near_duplicates_are_found_from_their_threshold_on(edits, similarity):
    edited = list(WORDS)
    for number in range(edits):
        edited[number * len(WORDS) // edits] = "edited"
    signatures = np.stack([signature(" ".join(WORDS)), signature(" ".join(edited))])
    assert near_duplicates(signatures, similarity - 0.02) == {1: 0}
    assert near_duplicates(signatures, similarity + 0.02) == {}


def test_overlap_of_the_splits_is_counted(hostile):
    _, output, manifest, _ = hostile
    splits, _, _ = load_chain_graphs(output)
    from graphmert.code_graph import extract

    facts = {name: Counter() for name in splits}
    for name, rows in splits.items():
        for code in rows["code"]:
            facts[name].update((t.relation, t.head, t.tail) for t in extract(code).triples)
    (split,) = manifest["overlap_with_training"]
    report = manifest["overlap_with_training"][split]
    assert split == "validation" and report["all"]["facts_in_training"] > 0
    for relation in ("all", "calls", "has_parameter", "flows_to"):
        held_out = {f: n for f, n in facts["validation"].items() if relation in ("all", f[0])}
        common = {f: n for f, n in held_out.items() if f in facts["train"]}
        assert report[relation] == {
            "facts": len(held_out),
            "facts_in_training": len(common),
            "occurrences": sum(held_out.values()),
            "occurrences_in_training": sum(common.values()),
        }


def test_card_lets_load_dataset_read_the_directory(hostile, tmp_path):
    from datasets import load_dataset, load_from_disk
    from huggingface_hub import DatasetCard

    _, output, manifest, _ = hostile
    card = DatasetCard.load(output / "README.md")
    assert card.data.license == "other" and {s["split"] for s in card.data.configs[0]["data_files"]} == {
        "train",
        "validation",
    }
    assert "near-duplicate of a file" in card.text and f"{manifest['splits']['train']['tokens']:,}" in card.text
    loaded, from_disk = load_dataset(str(output), cache_dir=str(tmp_path)), load_from_disk(str(output))
    for split, rows in from_disk.items():
        assert rows.features == loaded[split].features
        assert rows.to_dict() == loaded[split].to_dict()


def test_push_takes_the_whole_directory(hostile, tmp_path):
    _, output, _, _ = hostile
    push = [sys.executable, "-m", "graphmert.chain_graphs.push", str(output), "someone/graphs"]
    with HubServer() as hub:
        import os

        environment = os.environ | {
            "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        done = subprocess.run(push, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "someone/graphs" in done.stdout, done.stderr
    pushed = {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert {name: hub.files.get(name) for name in pushed} == pushed
    # Offline, one line says why.
    done = subprocess.run(push, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: push of") and "ffline" in done.stderr


def test_files_that_hang_or_crash_are_lost_alone(tmp_path):
    for name in "abcd":
        (tmp_path / "corpus" / name).mkdir(parents=True)
        (tmp_path / "corpus" / name / "good.py").write_text(f"def {name}(argument):\n    pass\n")
    (tmp_path / "corpus" / "a" / "hang.py").write_text("PLEASE_HANG\n")
    (tmp_path / "corpus" / "b" / "crash.py").write_text("PLEASE_CRASH\n")
    start = time.monotonic()
    manifest = build_chain_graphs(
        BuildArguments(
            source=[f"dir:{tmp_path}/corpus"], output=str(tmp_path / "data"), vocab_size=300, max_file_seconds=1.5
        ),
        extract=hostile_extract,
    )
    assert time.monotonic() - start < 120
    assert {item["path"]: item["reason"] for item in manifest["skipped"]["files"]} == {
        "a/hang.py": "took longer than 1.5 seconds (--max-file-seconds)",
        "b/crash.py": "reading it ended the process (SIGSEGV)",
    }
    assert sum(entry["files"] for entry in manifest["splits"].values()) == 4


@pytest.mark.parametrize("threshold", [0.3, 1.5, -1])
def test_impossible_thresholds(threshold, tmp_path):
    with pytest.raises(BuildError, match="--near-duplicates is"):
        build_chain_graphs(BuildArguments(source=["stdlib"], output=str(tmp_path / "x"), near_duplicates=threshold))


def test_ray_makes_the_same_bytes(hostile, tmp_path):
    pytest.importorskip("ray.data")
    _, output, _, arguments = hostile
    changed = dataclasses.replace(arguments, engine="ray", output=str(tmp_path / "data"))
    build_chain_graphs(changed)
    for path in output.rglob("*"):
        if path.is_file():
            assert (tmp_path / "data" / path.relative_to(output)).read_bytes() == path.read_bytes(), path


def test_near_duplicates_can_stay(tmp_path):
    for name in "ab":
        (tmp_path / "corpus" / name).mkdir(parents=True)
        (tmp_path / "corpus" / name / "x.py").write_text(f"import {name}\n" + module(WORDS))
    arguments = BuildArguments(
        source=[f"dir:{tmp_path}/corpus"], output=str(tmp_path / "data"), vocab_size=300, near_duplicates=0
    )
    manifest = build_chain_graphs(arguments, extract=stub_extract)
    assert manifest["near_duplicates"]["files"] == 0 and manifest["skipped"]["files"] == []
    assert json.loads(Path(tmp_path, "data", "manifest.json").read_text())["arguments"]["near_duplicates"] == 0
