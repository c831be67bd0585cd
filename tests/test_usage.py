"""What code does with parameters and what functions return, read from a file and put together for a project."""

import doctest
import warnings

import pytest

from graphmert.code_graph import project_usage, usage
from graphmert.code_graph.annotations import strip_annotations
from graphmert.code_graph.project_usage import ProjectUsage
from graphmert.code_graph.usage import read_usage, words_of

SOURCE = '''
import ast


class Base:
    limit = 3

    def close(self):
        pass


class Reader(Base):
    def __init__(self, path, *, size=0):
        """Read a Path."""
        self.path = path
        self.size: int = size

    @property
    def name(self):
        return self.path.stem if self.path else None

    def open(self, mode="r", *args, **options):
        """Open it.

        :param mode: as of ``open``
        :type mode: str
        :rtype: Reader
        """
        handle = open(self.path, mode)
        for argument in args:
            handle.seek(argument[0])
        if isinstance(mode, (str, ast.Name)) and mode == "r" and not options:
            return self
        return cls()

    async def lines(self, count):
        def inner(line):
            return count + line

        async for line in self.rows(count=count):
            yield inner(line)


def make(reader, names, default=Reader("x")):
    names[0] = f"{reader!r}"
    result = []
    while names:
        result.append(reader.limit)
        reader(names)
    return result


make(Reader("a"), ["b"])
make(names=(), reader=Reader("c", size=1))
'''


def found(name: str, relation: str = "has_type", function: str | None = None) -> usage.Usage:
    usages = [one for one in read_usage(SOURCE).usages if (one.name, one.relation) == (name, relation)]
    (one,) = [one for one in usages if function in (None, one.function)]
    return one


def test_examples():
    for module in (usage, project_usage):
        assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("name", "function", "expected", "missing"),
    [
        (
            "path",
            "__init__",
            {"required", "stored:path", "method", "base:Base", "way:place", "place:0"},
            {"attribute:stem"},
        ),
        ("size", "__init__", {"default:const:int", "way:keyword", "function:__init__"}, {"required"}),
        (
            "mode",
            "open",
            {"argument:open:1", "isinstance:str", "isinstance:Name", "documented:str", "compared:Eq:left:const:str"},
            set(),
        ),
        ("args", "open", {"iterated", "iterated:name:argument", "way:*"}, set()),
        ("options", "open", {"in:UnaryOp", "way:**"}, {"tested"}),
        # Read in a function of the function, where the name is the same.
        ("count", "lines", {"operand:Add:left:", "keyword:count", "async"}, set()),
        ("line", "inner", {"operand:Add:right:", "function"}, {"method"}),
        ("reader", "make", {"attribute:limit", "called", "in:FormattedValue", "place:0"}, set()),
        ("names", "make", {"element:const:int", "element set", "tested", "argument:reader:0"}, set()),
        ("default", "make", {"default:call:Reader"}, {"required"}),
    ],
)
def test_signs_of_parameters(name, function, expected, missing):
    one = found(name, function=function)
    assert expected <= set(one.signs) and not missing & set(one.signs)
    assert len(one.signs) == len(set(one.signs)) and SOURCE[one.start :].startswith(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "name",
            {
                "returns:attr:stem",
                "returns:const:None",
                "kinds returned:2",
                "decorator:property",
                "returns attr, last word:stem",
            },
        ),
        ("open", {"returns:self", "returns:call:cls", "documented:Reader"}),
        ("lines", {"yields:call:inner", "no value", "async"}),
        ("inner", {"returns:Add:name:count", "always returns:Add:name:count"}),
        ("make", {"returns:variable:list", "always returns:variable:list"}),
        ("close", {"only pass"}),
    ],
)
def test_signs_of_results(name, expected):
    one = found(name, "returns")
    assert expected <= set(one.signs) and SOURCE[one.start :].startswith(f"{name}(")


def test_classes_that_code_names():
    assert found("open", "returns").made == ("Reader", "Reader") and found("open", "returns").owner == "Reader"
    assert found("default").made == ("Reader",) and set(found("path").mentioned) == {"Read", "Path"}
    assert found("reader").attributes == ("limit",)


def test_every_annotated_name_is_found_where_it_stands():
    code = "# é\nclass A:\n    def f(self, é: int, *b: str, c: A = None) -> A:\r\n        async  def  g(): ...\n"
    code += "        return x\nasync  def h(a: int, /) -> str: ...\n"
    text, slots = strip_annotations(code)
    assert len(slots) == 6
    places = {(one.relation, one.start, one.name) for one in read_usage(text).usages}
    relations = {"parameter": "has_type", "return": "returns"}
    assert {(relations[slot.kind], slot.start, slot.name) for slot in slots} <= places


def test_what_python_cannot_parse_has_no_signs():
    empty = read_usage("print 'hello'\ndef f(x): return x\n")
    assert not empty.usages and not empty.members and not empty.calls
    # A Latin-1 form feed or a NUL is no reason to stop.
    assert not read_usage("x = 1\x00").usages


def test_lines_end_as_python_says():
    code = "x = 1\rdef f(é):\r\n    return é  # \x0c a form feed and \u2028 end no line\ndef g(a): ..."
    places = {(one.name, code[one.start :][: len(one.name)]) for one in read_usage(code).usages}
    assert places == {(name, name) for name in ("f", "é", "g", "a")}


def test_unknown_escapes_are_read_in_silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_usage("def f(a):\n    return '\\d'\n").usages) == 2


def test_members_and_calls():
    file = read_usage(SOURCE)
    assert file.members["Base"] == {"limit", "close"} and file.bases == {"Base": [], "Reader": ["Base"]}
    assert file.members["Reader"] == {"__init__", "path", "size", "name", "open", "lines"}
    assert file.calls["make"] == [(["call:Reader", "list"], {}), ([], {"names": "tuple:0", "reader": "call:Reader"})]


def project(*sources: str) -> ProjectUsage:
    return ProjectUsage([read_usage(source) for source in sources])


def test_a_project_knows_members_of_bases_and_what_calls_give():
    whole = project(SOURCE, "class Late(Reader):\n    def tell(self): ...\n")
    assert {"limit", "path", "tell"} <= whole.members["Late"]
    assert set(whole.owners["limit"]) == {"Base", "Reader", "Late"}
    assert whole.rarity["tell"] > whole.rarity["path"] > whole.rarity["limit"]
    assert whole.given(found("reader")) == {"call:Reader": 2}
    assert whole.given(found("names")) == {"list": 1, "tuple:0": 1}
    # A class is made by what its __init__ takes.
    assert whole.given(found("path")) == {"const:str": 3} and whole.given(found("size")) == {"const:int": 1}
    assert whole.given(found("make", "returns")) == {}
    signs = whole.signs(found("reader"))
    assert {"given:call:Reader", "given, last word:reader", "relation:has_type"} <= set(signs)


def test_bases_in_a_circle():
    whole = project("class A(B):\n    x = 1\nclass B(A):\n    y = 1\n")
    assert whole.members == {"A": {"x", "y"}, "B": {"x", "y"}}


def test_what_is_common_for_a_name_in_a_project():
    functions = [f"def f{i}(node):\n    node.walk()\n" for i in range(4)]
    whole = project(
        "".join([*functions, "def g(node):\n    return node.rare\n"]), "def h(node): node.walk(); node + 1\n"
    )
    usages = [one for one in read_usage("def new(node):\n    pass\n").usages if one.relation == "has_type"]
    signs = whole.signs(usages[0])
    assert "in the project, method:walk" in signs and "in the project, attribute:rare" not in signs
    assert not any(sign.startswith("in the project, name:") for sign in signs)
    assert whole.attributes("has_type", "node") == {"walk": 5, "rare": 1}


def test_classes_fit_by_the_attributes_they_have():
    whole = project(
        "class A:\n    def close(self): ...\n    def walk(self): ...\n",
        "class B:\n    def close(self): ...\n",
        "class C:\n    def other(self): ...\n",
    )
    fit = whole.fitting({"walk": 1, "close": 1, "unknown": 5})
    assert fit["A"] == pytest.approx(1.0) and 0 < fit["B"] < 0.5 and "C" not in fit
    assert whole.fitting({"unknown": 1}) == {}


def test_words():
    assert (
        words_of("HTTPServer") == ["http", "server"] and words_of("_") == [] and words_of("getX2") == ["get", "x", "2"]
    )
