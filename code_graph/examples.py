"""One example of each relation in each language besides Python, whose examples stand in the schema.

A language has the relations that it has an example of, and no others. `docs/RELATIONS.md` is made from these examples,
and a test runs every one.
"""

from .schema import (
    CALLS,
    CONTAINS,
    DECLARES,
    FLOWS_TO,
    HAS_FIELD,
    HAS_PARAMETER,
    HAS_TYPE,
    IMPORTED_FROM,
    IMPORTS,
    INHERITS,
    INSTANTIATES,
    RELATIONS,
    RETURNS,
)

# language -> relation -> (code, (head, tail))
EXAMPLES: dict[str, dict[str, tuple[str, tuple[str, str]]]] = {
    "python": {relation.name: (relation.example, relation.example_triple) for relation in RELATIONS},
    "java": {
        CALLS: ("class Files {\n    void load(String path) {\n        parse(path);\n    }\n}\n", ("load", "parse")),
        DECLARES: ("class Files {\n    void load() {\n        int size = 1;\n    }\n}\n", ("load", "size")),
        INSTANTIATES: (
            "class Node {\n    static Node make() {\n        return new Node();\n    }\n}\n",
            ("make", "Node"),
        ),
        CONTAINS: ("class Node {\n    void walk() {}\n}\n", ("Node", "walk")),
        HAS_FIELD: ("class Node {\n    int size = 0;\n}\n", ("Node", "size")),
        HAS_TYPE: ("class Node {\n    List<Node> children;\n}\n", ("children", "List<Node>")),
        INHERITS: ("class Leaf extends Node implements Named {}\n", ("Leaf", "Named")),
        HAS_PARAMETER: ("interface Files {\n    void load(String path);\n}\n", ("load", "path")),
        RETURNS: ("interface Sized {\n    int size();\n}\n", ("size", "int")),
        IMPORTED_FROM: ("import java.util.List;\n", ("List", "java.util")),
        FLOWS_TO: (
            "class A {\n    int twice(int x) {\n        int y = x + x;\n        return y;\n    }\n}\n",
            ("x", "y"),
        ),
    },
    "javascript": {
        CALLS: ("function load(path) {\n  return parse(path);\n}\n", ("load", "parse")),
        DECLARES: ("function load() {\n  const text = 1;\n}\n", ("load", "text")),
        INSTANTIATES: ("class Node {}\nconst make = () => new Node();\n", ("make", "Node")),
        CONTAINS: ("class Node {\n  walk() {}\n}\n", ("Node", "walk")),
        HAS_FIELD: ("class Node {\n  constructor(size) {\n    this.size = size;\n  }\n}\n", ("Node", "size")),
        INHERITS: ("class Leaf extends Node {}\n", ("Leaf", "Node")),
        HAS_PARAMETER: ("const load = ({ path }) => path;\n", ("load", "path")),
        IMPORTED_FROM: ('import { readFile } from "fs";\n', ("readFile", "fs")),
        IMPORTS: ('const fs = require("fs");\n', ("fs", "fs")),
        FLOWS_TO: ("function twice(x) {\n  const y = x + x;\n}\n", ("x", "y")),
    },
    "go": {
        CALLS: ("package p\n\nfunc load(path string) {\n\tparse(path)\n}\n", ("load", "parse")),
        DECLARES: ("package p\n\nfunc load() {\n\ttext := 1\n}\n", ("load", "text")),
        INSTANTIATES: ("package p\n\nfunc create() *Node {\n\treturn &Node{}\n}\n", ("create", "Node")),
        CONTAINS: ("package p\n\ntype Node struct{}\n\nfunc (n *Node) Walk() {}\n", ("Node", "Walk")),
        HAS_FIELD: ("package p\n\ntype Node struct {\n\tsize int\n}\n", ("Node", "size")),
        HAS_TYPE: ("package p\n\nvar nodes []Node\n", ("nodes", "[]Node")),
        INHERITS: ("package p\n\ntype Leaf struct {\n\tNode\n}\n", ("Leaf", "Node")),
        HAS_PARAMETER: ("package p\n\nfunc load(path string) {}\n", ("load", "path")),
        RETURNS: ("package p\n\nfunc size() (int, error)\n", ("size", "(int, error)")),
        IMPORTS: ('package p\n\nimport "net/http"\n', ("http", "net/http")),
        FLOWS_TO: ("package p\n\nfunc twice(x int) {\n\ty := x + x\n}\n", ("x", "y")),
    },
    "ruby": {
        CALLS: ("def load(path)\n  parse path\nend\n", ("load", "parse")),
        DECLARES: ("def load\n  text = 1\nend\n", ("load", "text")),
        INSTANTIATES: ("def make\n  Node.new\nend\n", ("make", "Node")),
        CONTAINS: ("class Node\n  def walk\n  end\nend\n", ("Node", "walk")),
        HAS_FIELD: ("class Node\n  def initialize(size)\n    @size = size\n  end\nend\n", ("Node", "@size")),
        INHERITS: ("class Leaf < Node\n  include Comparable\nend\n", ("Leaf", "Comparable")),
        HAS_PARAMETER: ("def load(path:, mode: 1)\nend\n", ("load", "path")),
        FLOWS_TO: ("def twice(x)\n  y = x + x\nend\n", ("x", "y")),
    },
    "php": {
        CALLS: ("<?php\nfunction load($path) {\n    return parse($path);\n}\n", ("load", "parse")),
        DECLARES: ("<?php\nfunction load() {\n    $text = 1;\n}\n", ("load", "$text")),
        INSTANTIATES: ("<?php\nfunction make() {\n    return new Node();\n}\n", ("make", "Node")),
        CONTAINS: ("<?php\nclass Node {\n    function walk() {}\n}\n", ("Node", "walk")),
        HAS_FIELD: ("<?php\nclass Node {\n    public $size = 0;\n}\n", ("Node", "size")),
        HAS_TYPE: ("<?php\nfunction load(?string $path) {}\n", ("$path", "?string")),
        INHERITS: ("<?php\nclass Leaf extends Node {\n    use Named;\n}\n", ("Leaf", "Named")),
        HAS_PARAMETER: ("<?php\nfunction load($path) {}\n", ("load", "$path")),
        RETURNS: ("<?php\nfunction size(): int {\n    return 1;\n}\n", ("size", "int")),
        IMPORTED_FROM: ("<?php\nuse App\\Tree\\Node;\n", ("Node", "App\\Tree")),
        FLOWS_TO: ("<?php\nfunction twice($x) {\n    $y = $x + $x;\n}\n", ("$x", "$y")),
    },
}


def relations_of(language: str) -> tuple[str, ...]:
    """Names of the relations that the code graph of a language can have, in the order of the schema."""
    return tuple(relation.name for relation in RELATIONS if relation.name in EXAMPLES[language])
