"""Annotations found, taken out and compared; proposals put in, as a patch that git applies and stubs that parse."""

import ast
import doctest
import subprocess
from types import SimpleNamespace

import pytest

from graphmert.code_graph import annotations, type_names
from graphmert.code_graph.annotations import PARAMETER, RETURN, find_slots, strip_annotations
from graphmert.code_graph.type_names import normalise_type
from graphmert.kg_extraction.facts import PREDICTED, Fact, Place
from graphmert.kg_extraction.stubs import stub_of
from graphmert.kg_extraction.type_proposals import (
    Annotator,
    ModuleNames,
    Proposal,
    unified_diff,
    with_default,
    write_proposals,
)

CODE = '''"""Docs: path (str)."""
from .tree import Node


class Reader(Base):
    size: int = 0
    name: str

    def read(self, path: "str", *rest: int, mode="r", **options) -> Optional[
        bytes
    ]:
        self.last: Node = Node(path)

    @staticmethod
    def make(kind, /, other: list[int] = []):
        return lambda x: x


async def main(é): pass
'''


def test_slots_are_all_parameters_and_returns():
    found = [(s.kind, s.qualified, s.annotation, s.default, s.is_instance, s.is_star) for s in find_slots(CODE)]
    assert found == [
        (RETURN, "Reader.read", "Optional[ bytes ]", None, False, False),
        (PARAMETER, "Reader.read.self", None, None, True, False),
        (PARAMETER, "Reader.read.path", "str", None, False, False),
        (PARAMETER, "Reader.read.rest", "int", None, False, True),
        (PARAMETER, "Reader.read.mode", None, '"r"', False, False),
        (PARAMETER, "Reader.read.options", None, None, False, True),
        (RETURN, "Reader.make", None, None, False, False),
        (PARAMETER, "Reader.make.kind", None, None, False, False),
        (PARAMETER, "Reader.make.other", "list[int]", "[]", False, False),
        (RETURN, "main", None, None, False, False),
        (PARAMETER, "main.é", None, None, False, False),
    ]
    assert all(CODE[s.start : s.end] == s.name for s in find_slots(CODE))


def test_stripped_text_has_no_annotation_and_all_else():
    text, hidden = strip_annotations(CODE)
    assert [s.annotation for s in hidden] == ["Optional[ bytes ]", "str", "int", "list[int]"]
    assert all(text[s.start : s.end] == s.name for s in hidden)
    assert [text[: s.start].count("\n") + 1 for s in hidden] == [s.line for s in hidden]
    expected = CODE.replace(": int = 0", " = 0").replace("name: str", "name").replace(': "str"', "")
    expected = expected.replace("*rest: int", "*rest").replace(" -> Optional[\n        bytes\n    ]", "")
    expected = expected.replace(": Node =", " =").replace("other: list[int]", "other")
    assert text == expected
    ast.parse(text)


def test_comments_with_types_go_and_others_stay():
    code = "def f(a):  # type: (int) -> str\n    x = a  # type: ignore\n    return x  # of type: int\n"
    text, _ = strip_annotations(code)
    assert text == code.replace("# type: (int) -> str", "")


@pytest.mark.parametrize("code", ["def f(a: int", "def (x: int): pass", "class A:\n  def f(self, : pass", ""])
def test_broken_text_gives_no_error(code):
    text, hidden = strip_annotations(code)
    assert isinstance(text, str) and isinstance(hidden, list)


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("Optional[t.List['Node']]", "list[Node] | None", True),
        ("Union[int, None, str]", "str | int | None", True),
        ("typing.Dict[str,Any]", "dict[str, Any]", True),
        ("tuple[int, str]", "tuple[str, int]", False),
        ("Callable[[int | str], None]", "Callable[[str | int], None]", True),
        ("list[int] | str", "list[int | str]", False),
        ("Literal['a']", "Literal['b']", False),
    ],
)
def test_types_that_mean_the_same(left, right, same):
    assert (normalise_type(left) == normalise_type(right)) is same


def test_doctests():
    for module in (annotations, type_names):
        tried = doctest.testmod(module)
        assert tried.failed == 0 and tried.attempted


MODEL = "class Node:\n    pass\n"
LOAD = '''#!/usr/bin/env python
"""Loads."""
import os


def read(path, mode='r', *rest):  # comment
    return later(path)


def later(text, strict = False, limit=None):
    return Late()


class Late:
    pass'''


def propose(types: dict[str, str]) -> list[Proposal]:
    return [
        Proposal(1, slot, types[key], 0.9)
        for slot in find_slots(LOAD)
        for key in (f"{slot.qualified}:{slot.kind[0]}",)
        if key in types
    ]


def test_proposals_resolve_their_names_and_keep_the_format():
    types = {
        "read.path:p": "Node",
        "read.mode:p": "str",
        "read.rest:p": "Any",
        "read:r": "Late",
        "later.text:p": "os.PathLike[str]",
        "later.strict:p": "Unheard",
        "later.limit:p": "Sequence[int]",
    }
    result = Annotator({0: ("app.model", MODEL), 1: ("app.load", LOAD)}).annotate(1, propose(types))
    assert dict(result.skipped) == {"name not resolvable in the file": 1}
    assert result.text.splitlines() == [
        "#!/usr/bin/env python",
        '"""Loads."""',
        "import os",
        "from collections.abc import Sequence",
        "from typing import Any, TYPE_CHECKING",
        "",
        "if TYPE_CHECKING:",
        "    from app.model import Node",
        "",
        "",
        'def read(path: "Node", mode: str = \'r\', *rest: Any) -> "Late":  # comment',
        "    return later(path)",
        "",
        "",
        "def later(text: os.PathLike[str], strict = False, limit: Sequence[int] | None = None):",
        "    return Late()",
        "",
        "",
        "class Late:",
        "    pass",
    ]
    ast.parse(result.text)


def test_patch_applies_with_git(tmp_path):
    annotator = Annotator({0: ("app.model", MODEL), 1: ("app.load", LOAD)})
    new = annotator.annotate(1, propose({"read.path:p": "Node", "later:r": "Late"})).text
    path = tmp_path / "app" / "load.py"
    path.parent.mkdir()
    path.write_text(LOAD, encoding="utf-8")
    (tmp_path / "types.patch").write_text(unified_diff(LOAD, new, "app/load.py"), encoding="utf-8")
    subprocess.run(["git", "apply", "types.patch"], cwd=tmp_path, check=True)
    assert path.read_text(encoding="utf-8") == new


def test_type_aliases_of_another_module_are_imported_and_inner_classes_are_not():
    code = "def f(url): ...\n"
    other = "Target = str | bytes\n\n\nclass Box:\n    class Inner: ...\n"
    annotator = Annotator({0: ("app.a", code), 1: ("app.types", other)})
    (slot,) = [slot for slot in find_slots(code) if slot.name == "url"]
    found = {name: annotator.annotate(0, [Proposal(0, slot, name, 0.9)]) for name in ("Target", "Inner")}
    assert "    from app.types import Target\n" in found["Target"].text and '(url: "Target")' in found["Target"].text
    assert found["Inner"].text == code and found["Inner"].skipped["name not resolvable in the file"] == 1


def test_names_of_a_module():
    names = ModuleNames(
        "from __future__ import annotations\nimport a.b\nif TYPE_CHECKING:\n    from c import D\nX = 1\n"
    )
    assert names.is_lazy and names.bound["D"] is None and names.bound["a"] is not None
    assert "X" not in names.bound and names.import_line == 2


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("sign", ["\x0c", "\x0b", "\x1c", "\x85", "\u2028", "\u2029"])
def test_imports_stand_at_the_line_that_python_counts(sign, end):
    code = f'"""Doc.\n{sign}\na\n{sign}\n"""\nimport os\nText = str\n\n\ndef f(path): ...\n'.replace("\n", end)
    names = ModuleNames(code)
    assert code[: names.bound["Text"]].endswith(f"Text = str{end}")
    (slot,) = [slot for slot in find_slots(code) if slot.name == "path"]
    text = Annotator({0: ("app.a", code)}).annotate(0, [Proposal(0, slot, "Any", 0.9)]).text
    assert text == code.replace("(path)", "(path: Any)").replace(
        f"import os{end}", f"import os{end}from typing import Any\n"
    )
    ast.parse(text)


def test_none_default_makes_optional():
    assert with_default("str", "None") == "str | None"
    assert with_default("Optional[str]", "None") == "Optional[str]"
    assert with_default("str", "''") == "str"


def test_stub_has_signatures_and_fields():
    stub = stub_of(
        "import os\nT = TypeVar('T')\nx = 1\nclass A(B):\n    def f(self, n: int = 3) -> str:\n        self.n = n\n"
    )
    tree = ast.parse(stub)
    assert [type(node).__name__ for node in tree.body] == ["ImportFrom", "Import", "Assign", "AnnAssign", "ClassDef"]
    assert "n: Any" in stub and "def f(self, n: int=...) -> str:" in stub


def written(tmp_path, files: dict[str, str], patch=True):
    """Counts, the patch and the stubs where each parameter of a project is predicted an int."""
    corpus = [SimpleNamespace(project="app", path=path, language="python", code=code) for path, code in files.items()]
    entities = [SimpleNamespace(module=path.removesuffix(".py").replace("/", ".")) for path in files]
    facts = [
        Fact("app", slot.qualified, "has_type", "int", slot.name, "int", "parameter", "type", PREDICTED, "tail", 0.9,
             places=[Place("app", file.path, slot.line, slot.start, slot.end)])
        for file in corpus for slot in find_slots(file.code) if slot.kind == PARAMETER
    ]  # fmt: skip
    extractor = SimpleNamespace(corpus=SimpleNamespace(files=corpus), entities=entities)
    patch = tmp_path / "types.patch" if patch else None
    counts, _ = write_proposals(facts, extractor, {}, patch, tmp_path / "stubs")
    stubs = {path.relative_to(tmp_path / "stubs").as_posix() for path in (tmp_path / "stubs").rglob("*.pyi")}
    return counts, patch and patch.read_text(encoding="utf-8"), stubs


@pytest.mark.parametrize("operator", ["not ", "-", "a."])
def test_files_nested_too_deeply_for_python_are_skipped(tmp_path, operator):
    files = {"deep.py": f"def f(n): ...\nx = {operator * 6000}a\n", "flat.py": "def f(n): ...\n"}
    counts, patch, stubs = written(tmp_path, files)
    assert counts == {"slots": 4, "proposed": 2, "written": 1, "file is nested too deeply": 1}
    assert "deep.py" not in patch and stubs == {"flat.pyi"}


@pytest.mark.parametrize(("patch", "num_written"), [(True, 2), (False, 1)])
def test_files_nested_too_deeply_for_a_stub_are_counted(tmp_path, patch, num_written):
    files = {"deep.py": f"def f(n): ...\nX = a{'.a' * 1000}\n", "flat.py": "def f(n): ...\n"}
    counts, text, stubs = written(tmp_path, files, patch)
    assert counts == {"slots": 4, "proposed": 2, "written": num_written, "file is nested too deeply for a stub": 1}
    assert stubs == {"flat.pyi"} and (text is None or "+def f(n: int): ..." in text)


def test_paths_that_lead_out_of_the_project_are_not_written(tmp_path):
    (tmp_path / "kg").mkdir()
    code = "def f(n): ...\n"
    files = {"../up.py": code, f"{tmp_path}/root.py": code, "a/../../up.py": code, "in.py": code}
    counts, patch, stubs = written(tmp_path / "kg", files)
    assert counts == {"slots": 8, "proposed": 4, "written": 1, "path leads out of the project": 3}
    assert patch.startswith("--- a/in.py") and patch.count("--- ") == 1
    assert stubs == {"in.pyi"} and not [*tmp_path.glob("*.pyi")]
