"""The relations of a code graph: the only place that knows relation names and ids."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """One relation of the schema.

    Attributes:
        name: the relation's name, as in a `Triple`.
        definition: what "head relation tail" asserts.
        example: a line of Python that states the fact.
        example_triple: (head, tail) that the example yields under this relation.
    """

    name: str
    definition: str
    example: str
    example_triple: tuple[str, str]


# The order is the order of the setup sheet; a relation's index is its id in datasets and checkpoints.
RELATIONS: tuple[Relation, ...] = (
    Relation(
        "calls",
        "The function named by the head contains, in its own body, a call of the function named by the tail; the tail is "
        "qualified as far as the file resolves it. Calls of classes are `instantiates`.",
        "def load(path):\n    return parse(path)\n",
        ("load", "parse"),
    ),
    Relation(
        "declares",
        "The function named by the head binds the local variable named by the tail in its body; parameters, comprehension "
        "variables and names of imports and definitions are not meant.",
        "def load(path):\n    text = 1\n",
        ("load", "text"),
    ),
    Relation(
        "instantiates",
        "The function named by the head contains, in its own body, a call of the class named by the tail.",
        "class Node:\n    pass\ndef make():\n    return Node()\n",
        ("make", "Node"),
    ),
    Relation(
        "contains",
        "The class or function named by the head directly holds the definition of the method, function or class named by "
        "the tail.",
        "class Node:\n    def walk(self):\n        pass\n",
        ("Node", "walk"),
    ),
    Relation(
        "has_field",
        "Instances of the class named by the head, or the class itself, carry the attribute named by the tail, bound in "
        "the class body or through the instance parameter of one of its methods.",
        "class Node:\n    size = 0\n",
        ("Node", "size"),
    ),
    Relation(
        "has_type",
        "The parameter, variable or field named by the head is annotated with the type written in the tail.",
        "size: int = 0\n",
        ("size", "int"),
    ),
    Relation(
        "inherits",
        "The class named by the head has the class named by the tail among its bases.",
        "class Leaf(Node):\n    pass\n",
        ("Leaf", "Node"),
    ),
    Relation(
        "has_parameter",
        "The function named by the head has the parameter named by the tail, `self` and `cls` included.",
        "def load(path):\n    pass\n",
        ("load", "path"),
    ),
    Relation(
        "returns",
        "The function named by the head is annotated to return the type written in the tail.",
        "def size() -> int:\n    return 1\n",
        ("size", "int"),
    ),
    Relation(
        "imported_from",
        "The local name in the head was brought in by `from M import ...`; the tail is M.",
        "from json import dumps\n",
        ("dumps", "json"),
    ),
    Relation(
        "imports",
        "The local name in the head was bound by `import M` or `import M as name`; the tail is the module's full dotted "
        "name.",
        "import numpy as np\n",
        ("np", "numpy"),
    ),
    Relation(
        "flows_to",
        "The value bound to the variable in the head (at a definition that reaches the read) is read to compute the value "
        "bound to the variable in the tail, in the same scope. A field of the instance may be a tail, never a head.",
        "def double(x):\n    y = x + x\n",
        ("x", "y"),
    ),
)

RELATION_NAMES: tuple[str, ...] = tuple(relation.name for relation in RELATIONS)
RELATION_IDS: dict[str, int] = {name: index for index, name in enumerate(RELATION_NAMES)}

# One name for each relation, in the order above, so that a misspelt relation is an error when a module is imported.
(
    CALLS,
    DECLARES,
    INSTANTIATES,
    CONTAINS,
    HAS_FIELD,
    HAS_TYPE,
    INHERITS,
    HAS_PARAMETER,
    RETURNS,
    IMPORTED_FROM,
    IMPORTS,
    FLOWS_TO,
) = RELATION_NAMES
