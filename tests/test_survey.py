"""The first look at a batch: pieces and signatures on disk, what a tokenizer may learn from, parts that were cut short."""

import re
from collections import Counter

import numpy as np
import pytest

from graphmert.chain_graphs import survey as survey_module
from graphmert.chain_graphs.duplicates import signature
from graphmert.chain_graphs.encoding import cut_into_pieces
from graphmert.chain_graphs.sources import SkippedFile, SourceFile
from graphmert.chain_graphs.staging import Staging, is_whole, write_part
from graphmert.chain_graphs.survey import count_pieces, has_long_run, read_survey, survey_path, write_survey

CODE = "def load_path(path):\n    return open(path, 'ä')\n" * 9
DATA = f"KEY = '{'A1' * 900}'\nvalue = 1\n"


class AllFiles:
    def files(self, files):
        return enumerate(files)


def staged(directory, texts) -> Staging:
    staging = Staging(directory)
    files = [SourceFile("s", f"p{i % 3}", f"{i}.py", "python", text) for i, text in enumerate(texts)]
    for batch in staging.add(0, lambda: files):
        write_survey(batch.path, survey_path(batch.path), AllFiles(), {})
    return staging


def test_what_a_survey_holds(tmp_path):
    staging = staged(tmp_path, [CODE, DATA, "x = 1\n"])
    path = survey_path(staging.batches[0].path)
    found = read_survey(path)
    distinct = found.distinct.to_pylist()
    assert len(set(distinct)) == len(distinct)
    for code, row, signed in zip([CODE, DATA, "x = 1\n"], found.pieces, found.signatures, strict=True):
        assert [distinct[number] for number in row] == cut_into_pieces(code)
        assert np.array_equal(signed, signature(code))
    # The long string is data, not something to learn words from.
    assert [row is None for row in found.learned] == [True, False, True]
    assert [distinct[number] for number in found.learned[1]] == cut_into_pieces("KEY =  \nvalue = 1\n")
    write_survey(staging.batches[0].path, path, AllFiles(), {0: "it hangs"})
    found = read_survey(path)
    assert found.pieces[0] is None and not found.signatures[0].any() and found.pieces[1] is not None


@pytest.mark.parametrize("merged", [1, 2, 64])
def test_pieces_of_chosen_files_are_counted(tmp_path, monkeypatch, merged):
    monkeypatch.setattr("graphmert.chain_graphs.staging.BATCH_CHARS", 100)
    monkeypatch.setattr(survey_module, "_MERGED_BATCHES", merged)
    texts = [f"{CODE[: 40 + 20 * i]}\nname{i} = {i}\n" for i in range(12)] + [DATA]
    staging = staged(tmp_path, texts)
    assert len(staging.batches) > 4
    expected = Counter()
    for number in (1, 4, 5, 12):
        expected.update(cut_into_pieces(re.sub(r"\S{1000,}", " ", texts[number])))
    assert count_pieces(staging, [1, 4, 5, 12]) == expected
    assert staging.of_projects({"p1"}, {4: 1}) == [1, 7, 10]
    assert staging.of_projects({"p0", "p1"}, {}, every=3) == [3, 7, 12]
    assert staging.sizes({0}) == {
        f"p{k}": sum(len(text) for i, text in enumerate(texts) if i % 3 == k and i) for k in (1, 2, 0)
    }
    assert {number: place["path"] for number, place in staging.places([11, 2, 12]).items()} == {
        2: "2.py",
        11: "11.py",
        12: "12.py",
    }


@pytest.mark.parametrize("filler", ["a", " ", "\n", "é"])
def test_long_runs_are_never_overlooked(filler):
    other = "ab " if filler != "a" else "b c "
    for begin in range(0, 700, 37):
        text = other * (begin // 3) + "c d"[: begin % 3] + filler * 1000 + other * 100
        assert has_long_run(text)
    assert not has_long_run("word and word\n" * 500) and not has_long_run("a" * 499)


def test_a_source_that_was_not_staged_whole_is_read_again_with_its_surveys(tmp_path, monkeypatch):
    monkeypatch.setattr("graphmert.chain_graphs.staging.BATCH_CHARS", 10)

    def files(texts, fail=False):
        for number, text in enumerate(texts):
            yield SourceFile("s", "p", f"{number}.py", "python", text)
        yield SkippedFile("s", "big.py", "too big")
        if fail:
            raise KeyboardInterrupt

    first = Staging(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        for batch in first.add(0, lambda: files(["a = 1\nb = 2\n", "c = 3\nd = 4\n"], fail=True)):
            write_part(survey_path(batch.path), b"of the old text")
    second = Staging(tmp_path)
    batches = list(second.add(0, lambda: files(["a = 1\nb = 2\n", "changed = 1\n", "a = 1\nb = 2\n"])))
    assert not any(survey_path(batch.path).exists() for batch in batches)
    assert [file["code"] for file in second.files()] == ["a = 1\nb = 2\n", "changed = 1\n"]
    assert second.num_found == [4]
    # Taken up without reading the source.
    third = Staging(tmp_path)
    assert list(third.add(0, lambda: 1 / 0)) == batches and third.skipped == second.skipped
    assert (third.num_found, third.num_files, third.sizes({})) == ([4], 2, second.sizes({}))
    repeated = list(third.add(1, lambda: files(["changed = 1\n"])))
    assert repeated == [] and third.skipped[-2].repeats == "1.py"


def test_parts_cut_short_are_not_taken_for_whole(tmp_path):
    path = tmp_path / "part"
    assert not is_whole(path)
    write_part(path, b"content" * 10)
    assert is_whole(path)
    whole = path.read_bytes()
    for cut in (b"", whole[:5], whole[:-1], whole[:-9], bytes(len(whole))):
        path.write_bytes(cut)
        assert not is_whole(path)
