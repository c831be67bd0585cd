"""Names resolved across the files of one project: full sets of what the second pass adds and takes away."""

import pickle

import pytest

from graphmert.code_graph import ProjectIndex, extract
from graphmert.code_graph.project import MAX_DEPTH

SHAPES = {
    "app/__init__.py": "from .shapes import Shape as Form, area\nfrom .all import *\n",
    "app/shapes.py": """import json
from .base.core import Base
class Shape(Base):
    size: int = 0
    def __init__(self, owner: "Base"):
        self.owner: Base = owner
    def grow(self, by: float) -> "Shape":
        return self
def area(shape: Shape) -> float:
    return 1.0
limit: float = 2.0
def plain(): pass
def Maker(): pass
""",
    "app/base/__init__.py": "",
    "app/base/core.py": """from ..tools import Tool
class Base(Tool):
    name: str = ""
    def label(self) -> str:
        return ""
""",
    "app/tools.py": "class Tool: pass\nclass tool: pass\nimport tools\n"
    "class Many(tools.First, Tool): pass\nclass Computed(make()): pass\n",
    "app/all.py": "class Everything(dict): pass\nclass _Hidden(dict): pass\n",
}


def difference(files, path):
    """What the index adds to a file's graph and what it takes away: (head, relation, tail, span's text, is use)."""
    source = files[path]
    index = ProjectIndex(files.items())
    alone, joined = set(extract(source).triples), set(extract(source, project=index, path=path).triples)

    def shown(triples):
        assert all(source[t.head_start : t.head_end] == t.head for t in triples)
        return {(t.head, t.relation, t.tail, t.is_use) for t in triples}

    return shown(joined - alone), shown(alone - joined)


def added_by(text, path="app/use.py", files=SHAPES):
    return difference(files | {path: text}, path)


@pytest.mark.parametrize(
    ("text", "added", "removed"),
    [
        # A class passed on under another name: its first base, as the other file names it.
        ("from . import Form\nForm\n", {("Form", "inherits", "Base", True)}, set()),
        ("from .shapes import Shape\nShape\n", {("Shape", "inherits", "Base", True)}, set()),
        ("import app.shapes\napp.shapes\n", set(), set()),
        ("import app.shapes as s\ns.Shape\n", {("Shape", "inherits", "Base", True)}, set()),
        ("from .tools import Many\nMany\n", {("Many", "inherits", "tools.First", True)}, set()),
        ("from .tools import Computed\nComputed\n", set(), set()),
        # A function's return type, at its calls.
        ("from app import area\narea\narea(1)\n", {("area", "returns", "float", True)}, set()),
        # A variable's type.
        ("from .shapes import limit\nlimit\n", {("limit", "has_type", "float", True)}, set()),
        ("from . import shapes\nshapes.limit\n", {("limit", "has_type", "float", True)}, set()),
        # What is a class and what is not, against what the spelling suggests.
        (
            "from .tools import tool\ndef f(): tool()\n",
            {("f", "instantiates", ".tools.tool", False)},
            {("f", "calls", ".tools.tool", False)},
        ),
        (
            "from .shapes import Maker\ndef f(): Maker()\n",
            {("f", "calls", ".shapes.Maker", False)},
            {("f", "instantiates", ".shapes.Maker", False)},
        ),
        # Everything that a module passes on, but names with an underscore.
        ("from app import Everything\nEverything\n", {("Everything", "inherits", "dict", True)}, set()),
        ("from app import _Hidden\n_Hidden\n", set(), set()),
        # Outside the project, and names that are not there.
        ("from json import dumps\nfrom .shapes import missing\ndumps(missing)\n", set(), set()),
        ("from .nowhere import Shape\nShape()\n", set(), set()),
        ("from ......far import Shape\nShape()\n", set(), set()),
        # Members through a declared type.
        (
            "from . import Form\ndef f(form: Form):\n    form.grow(2).x\n    form.owner.label()\n"
            "    form.size\n    form.no\n",
            {
                ("Form", "inherits", "Base", True),
                ("f", "calls", "Shape.grow", False),
                ("grow", "returns", "Shape", True),
                ("owner", "has_type", "Base", True),
                ("f", "calls", "Base.label", False),
                ("label", "returns", "str", True),
                ("size", "has_type", "int", True),
            },
            {("f", "calls", "grow", False), ("f", "calls", "label", False)},
        ),
        # Inherited members: they hang on the base's name in the class statement, if it holds them itself.
        (
            "from . import shapes\nclass Circle(shapes.Shape):\n    def draw(self):\n        self.size\n"
            "        self.grow(1)\n        self.name\n        super().label()\n",
            {
                ("Shape", "inherits", "Base", True),
                ("shapes.Shape", "has_field", "size", True),
                ("size", "has_type", "int", True),
                ("shapes.Shape", "contains", "grow", True),
                ("draw", "calls", "Shape.grow", False),
                ("grow", "returns", "Shape", True),
                ("name", "has_type", "str", True),
                ("draw", "calls", "Base.label", False),
                ("label", "returns", "str", True),
            },
            {("draw", "calls", "grow", False), ("draw", "calls", "label", False)},
        ),
    ],
)
def test_what_other_files_say(text, added, removed):
    assert added_by(text) == (added, removed)


def test_members_through_a_declared_type_in_one_file():
    source = "class A:\n    size: int = 0\n    def go(self): pass\ndef f(a: A, b: 'A'):\n    a.size\n    b.go\n"
    found = {(t.head, t.relation, t.tail) for t in extract(source).triples if t.is_use and t.head_start != 0}
    assert {("A", "has_field", "size"), ("size", "has_type", "int"), ("A", "contains", "go")} <= found


def test_names_of_modules():
    paths = ["src/app/__init__.py", "src/app/part/deep.py", "src/app/x.py", "tool.py", "docs/conf.py"]
    index = ProjectIndex((path, "") for path in paths)
    assert [index.module_of(p) for p in paths] == ["app", "app.part.deep", "app.x", "tool", "docs.conf"]
    assert index.absolute("app", ".x.Y") == "app.x.Y"
    assert index.absolute("app.x", ".") == "app"
    assert index.absolute("app.part.deep", "..x") == "app.x"
    assert len(index) == 5


def test_packages_under_a_source_directory():
    files = {"src/app/__init__.py": "", "src/app/x.py": "class Y(B): pass\n", "src/app/sub/z.py": ""}
    assert added_by("from ..x import Y\nY\n", "src/app/sub/z.py", files)[0] == {("Y", "inherits", "B", True)}
    assert added_by("from app.x import Y\nY\n", "src/app/z.py", files)[0] == {("Y", "inherits", "B", True)}


def test_packages_without_an_init_file():
    files = {"src/a/b/x.py": "class Y(B): pass\n", "src/a/c/d/z.py": ""}
    assert added_by("from ...b.x import Y\nY\n", "src/a/c/d/z.py", files)[0] == {("Y", "inherits", "B", True)}
    assert added_by("import a.b.x as x\nx.Y\n", "src/main.py", files)[0] == {("Y", "inherits", "B", True)}
    assert added_by("from a import b\nb.x.Y()\nb\n", "src/main.py", files)[0] == set()


def test_function_named_like_its_module():
    files = {"p/__init__.py": "from .run import run\n", "p/run.py": "def run() -> int: pass\n"}
    assert added_by("from p import run\nrun()\n", "p/use.py", files)[0] == {("run", "returns", "int", True)}


def test_circles_end():
    files = {
        "p/__init__.py": "from . import a\nfrom .a import X\n",
        "p/a.py": "from .b import *\nfrom .b import X\n",
        "p/b.py": "from .a import *\nfrom .a import X\nclass Loop(Loop): pass\n",
    }
    text = (
        "from p import X, a\nfrom p.b import Loop\nX()\na.X()\nLoop().x\nclass L(Loop):\n    def f(self): self.g()\n"
    )
    assert added_by(text, "p/use.py", files)[0] == {("Loop", "inherits", "Loop", True)}


def test_depth_of_passing_on_is_limited():
    def chain(length):
        files = {f"m{i}.py": f"from m{i + 1} import X\n" for i in range(length)}
        files[f"m{length}.py"] = "class X(B): pass\n"
        return added_by("from m0 import X\nX\n", "use.py", files)[0]

    assert chain(MAX_DEPTH) == {("X", "inherits", "B", True)}
    assert chain(MAX_DEPTH + 1) == set()
    assert chain(500) == set()


def test_index_survives_pickling_and_order():
    files = SHAPES | {"app/use.py": "from . import Form\ndef f(form: Form): return form.owner.label()\n"}
    expected = extract(files["app/use.py"], project=ProjectIndex(files.items()), path="app/use.py")
    index = pickle.loads(pickle.dumps(ProjectIndex(reversed(files.items()))))
    assert extract(files["app/use.py"], project=index, path="app/use.py") == expected


def test_broken_files_do_not_break_the_index():
    broken = {"p/a.py": "class (:\n  def\nfrom . import\nclass Y(B: x = \n", "p/b.py": "\0\0(((", "p/e.py": ""}
    whole = {"p/c.py": "def size() -> int: ...\n"}
    use = "from .a import Y\nfrom .b import *\nfrom .c import size\ndef f():\n    Y()\n    size()\n"
    # What a whole file says reaches the use all the same.
    assert added_by(use, "p/d.py", broken | whole) == ({("size", "returns", "int", True)}, set())
