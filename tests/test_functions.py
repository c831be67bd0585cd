"""Functions cut out of files, CodeSearchNet's filters and files, and excerpts with masked names."""

import gzip
import json
import re

import numpy as np
import pytest
from tiny import tiny_tokenizer

from graphmert.chain_graphs.windows import WindowDataset
from graphmert.code_graph import extract
from graphmert.tasks.excerpts import cut_excerpts, link_excerpts, mask_names
from graphmert.tasks.functions import (
    first_paragraph,
    read_code_search_net,
    read_functions,
    repetitions,
    sample,
    searchable,
)

CODE = '''
import json as loader


def load_file(path: str, mode="r"):
    r"""Load a zebra file: übung.

    >>> frobnicate(1)
    """  # noqa
    def inner(x):
        "Xylophone."
        return x
    data = loader.loads(path)
    return inner(data)


class Reader(Base):
    """Class docstring stays."""

    @property
    async def walk(self, node):
        """Walk over all
        the quagga nodes."""
        self.size = node
        found = load_file(node)
        return found

    def only(self):
        """Nothing else here at all."""


if True:
    def late(): return "no docstring"
'''


def test_functions_without_their_docstrings():
    functions = read_functions(CODE, "project", "a.py")
    assert [function.qualified_name for function in functions] == ["load_file", "Reader.walk", "Reader.only", "late"]
    load_file, walk, only, late = functions
    assert load_file.docstring == "Load a zebra file: übung." and walk.docstring == "Walk over all the quagga nodes."
    assert load_file.code == (
        'def load_file(path: str, mode="r"):\n    # noqa\n    def inner(x):\n        return x\n'
        "    data = loader.loads(path)\n    return inner(data)"
    )
    assert walk.code.startswith("async def walk(self, node):\n        self.size = node\n")
    assert only.code == "def only(self):\n        ..." and late.code == 'def late(): return "no docstring"'
    assert late.docstring == "" and late.key == ("project", "a.py", "late")
    assert "Class docstring stays." in walk.file
    for word in ("zebra", "quagga", "frobnicate", "Xylophone"):
        assert word not in walk.file
    compile(walk.file, "a.py", "exec")


def test_functions_of_broken_files():
    assert [f.name for f in read_functions("def good(a):\n    return a\n\ndef bad(:\n  x = = 1\n")][:1] == ["good"]
    assert read_functions("") == [] and read_functions("lambda x: x\n") == []
    # A byte string or an f-string is no docstring.
    assert read_functions('def f():\n    b"abc def ghi"\n    return 1\n')[0].docstring == ""


def test_first_paragraph():
    assert first_paragraph("\n    One\n    line.\n\n    Two.\n") == "One line." and first_paragraph("  ") == ""


def documented(name: str, docstring: str, body: str) -> str:
    return f'def {name}(a, b):\n    """{docstring}"""\n' + "".join(f"    {line}\n" for line in body.split("; "))


def test_filters_of_code_search_net():
    long = "; ".join(f"x{i} = a + b * {i}" for i in range(20))
    kept, counts = searchable(
        read_functions(
            documented("one", "Adds two numbers.", "c = a + b; return c")
            + documented("__dunder__", "Adds two numbers up.", "c = a + b; return c")
            + documented("run_tests", "Runs all the tests.", "c = a + b; return c")
            + documented("two", "Short text.", "c = a + b; return c")
            + documented("three", "Too short a body.", "return a")
            + documented("four", "adds two numbers", "c = a - b; return c")
            + documented("five", "A long body here.", long)
            + documented("six", "The same body again.", long)
            + "def seven(a):\n    b = a\n    return b\n"
        )
    )
    assert [function.name for function in kept] == ["one", "five"]
    assert counts == {
        "functions": 9,
        "double underscores": 1,
        "test in the name": 1,
        "docstring of fewer than 3 words": 1,
        "fewer than 3 lines of code": 1,
        "repeats another's docstring": 1,
        "no docstring": 1,
        "near-duplicate": 1,
    }


def test_repetitions_and_samples():
    assert repetitions(["a b", "c", "a  b", "c d"]) == {2}
    assert repetitions([]) == set()
    drawn = sample(list(range(100)), 10, 3)
    assert drawn == sorted(drawn) and len(set(drawn)) == 10 and drawn == sample(list(range(100)), 10, 3)
    assert drawn != sample(list(range(100)), 10, 4) and sample([1, 2], None, 0) == [1, 2]


def test_files_of_code_search_net(tmp_path):
    code = '    def load(self, x):\n        """Loads it all.\n\n        More."""\n        y = x\n        return y\n'
    row = {
        "repo": "a/b",
        "path": "c.py",
        "func_name": "Reader.load",
        "code": code,
        "docstring": "Loads it all.\n\nMore.",
    }
    row |= {"language": "python", "partition": "test", "code_tokens": ["def"], "docstring_tokens": ["Loads"]}
    lines = [json.dumps(row), json.dumps({**row, "partition": "train"}), json.dumps({**row, "code": "x = 1"})]
    plain, packed = tmp_path / "plain.jsonl", tmp_path / "packed.jsonl.gz"
    plain.write_text("\n".join(lines) + "\n", encoding="utf-8")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    for path in (plain, packed):
        first, _, none = read_code_search_net([path])
        assert first.name == "load" and first.docstring == "Loads it all." and first.project == "a/b"
        assert first.code == "def load(self, x):\n    y = x\n    return y"
        assert none.code == "" and searchable([none]) == (
            [],
            {"functions": 1, "no function in the line": 1, "near-duplicate": 0},
        )
        assert len(list(read_code_search_net([path], "test"))) == 2
    plain.write_text(lines[0] + "\n{", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2: not JSON"):
        list(read_code_search_net([plain]))
    plain.write_text('{"code": "def f(): pass"}', encoding="utf-8")
    with pytest.raises(ValueError, match="no text in the field"):
        list(read_code_search_net([plain]))
    packed.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="cannot be read"):
        list(read_code_search_net([packed]))
    with pytest.raises(ValueError, match=r"missing\.jsonl cannot be read"):
        list(read_code_search_net([tmp_path / "missing.jsonl"]))


def facts(excerpt) -> set:
    return {(t.head, t.relation, t.tail) for t in excerpt.triples}


def test_excerpt_has_what_the_file_knows_and_not_the_docstring():
    function = read_functions(CODE)[1]
    (excerpt,) = cut_excerpts([function], 10)
    assert excerpt.code == function.code and excerpt.text == function.file[function.start - 10 : function.end + 10]
    # The class and the parameter of another function stand outside the text of the excerpt.
    assert {("Reader", "contains", "walk"), ("walk", "calls", "load_file"), ("Reader", "has_field", "size")} <= facts(
        excerpt
    )
    for t in excerpt.triples:
        if t.head_start >= 0 and t.head_end <= len(excerpt.text) and t.relation != "calls":
            assert excerpt.text[t.head_start : t.head_end] == t.head.rpartition(".")[2]
    # All the facts of the file with an end in the function, and no others.
    inside = [
        t
        for t in extract(function.file).triples
        if function.start <= t.head_start < function.end
        or (t.tail_start is not None and function.start <= t.tail_start < function.end)
    ]
    assert len(inside) == len(excerpt.triples) > 5
    for text in ("zebra", "frobnicate", "quagga", "Xylophone"):
        assert not any(text in t.head + t.tail for e in cut_excerpts(read_functions(CODE)) for t in e.triples)


def leaf_texts(excerpt) -> list[str]:
    tokenizer = tiny_tokenizer()
    row = link_excerpts([excerpt], tokenizer)[0]
    pairs = zip(row["leaf_offsets"], row["leaf_offsets"][1:], strict=False)
    return [tokenizer.decode(row["leaf_ids"][a:b]).strip() for a, b in pairs]


def test_masked_name_stands_nowhere():
    (excerpt,) = cut_excerpts([read_functions(CODE)[1]])
    assert any("walk" in text for text in leaf_texts(excerpt))
    masked = mask_names(excerpt, "name", "walk")
    assert masked.code == excerpt.code.replace("walk", "func")
    assert not any("walk" in text for text in leaf_texts(masked)) and "func" in " ".join(leaf_texts(masked))
    assert ("Reader", "contains", "func") in facts(masked) and len(masked.triples) == len(excerpt.triples)


def test_all_names_masked_alike_in_text_and_facts():
    (excerpt,) = cut_excerpts([read_functions(CODE)[1]], 5)
    masked = mask_names(excerpt, "all")
    assert masked.code == ("async def v0(self, v1):\n        self.v2 = v1\n        v3 = v4(v1)\n        return v3")
    assert {("v0", "calls", "v4"), ("v1", "flows_to", "v3")} <= facts(masked)
    names = {word for text in [masked.code, *leaf_texts(masked)] for word in re.findall(r"[^\W\d]\w*", text)}
    assert names <= {"async", "def", "self", "return", *(f"v{i}" for i in range(9)), "str"}
    for t in masked.triples:
        if t.head_start >= 0 and t.head_end <= len(masked.text):
            assert masked.text[t.head_start : t.head_end] == t.head.rpartition(".")[2]
    assert mask_names(excerpt, "none") is excerpt
    with pytest.raises(ValueError, match="masking must be one of"):
        mask_names(excerpt, "some")


def test_excerpts_become_the_windows_of_their_file():
    """A function that is a file of its own gets the windows that its file has."""
    code = "def load_file(path, mode):\n    text = open(path, mode).read()\n    return parse(text)"
    tokenizer = tiny_tokenizer()
    (excerpt,) = cut_excerpts(read_functions(code))
    windows = WindowDataset(link_excerpts([excerpt], tokenizer), tokenizer, 24, 3)
    whole = cut_excerpts(read_functions(code))[0]._replace(triples=extract(code).triples)
    other = WindowDataset(link_excerpts([whole], tokenizer), tokenizer, 24, 3)
    assert len(windows) == len(other) > 1
    for index in range(len(windows)):
        for name, value in windows[index].items():
            assert np.array_equal(value, other[index][name]), name
