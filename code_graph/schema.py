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
        direction: which end is which, and where the fact hangs at uses.
        excluded: what might be taken for the relation and is not.
    """

    name: str
    definition: str
    example: str
    example_triple: tuple[str, str]
    direction: str
    excluded: str


# The order is the order of the setup sheet; a relation's index is its id in datasets and checkpoints.
RELATIONS: tuple[Relation, ...] = (
    Relation(
        "calls",
        "The function named by the head contains, in its own body, a call of the function named by the tail; the tail is "
        "qualified as far as the file resolves it. Calls of classes are `instantiates`.",
        "def load(path):\n    return parse(path)\n",
        ("load", "parse"),
        "From the caller, at its definition, to the place of the call.",
        "Calls of classes (`instantiates`), of what is no name (`f()()`), of operators; calls outside every "
        "function. Functions without a name are read as part of the function around them.",
    ),
    Relation(
        "declares",
        "The function named by the head binds the local variable named by the tail in its body; parameters, comprehension "
        "variables and names of imports and definitions are not meant.",
        "def load(path):\n    text = 1\n",
        ("load", "text"),
        "From the function to the first place that binds the variable.",
        "Parameters, variables of comprehensions, names of imports, functions and classes; variables of functions "
        "without a name; variables of a module or class.",
    ),
    Relation(
        "instantiates",
        "The function named by the head contains, in its own body, a call of the class named by the tail.",
        "class Node:\n    pass\n\n\ndef make():\n    return Node()\n",
        ("make", "Node"),
        "From the function to the place where the instance is made.",
        "Instances made outside every function, or of what is no name. In Python a call makes an instance where "
        "the callee is a class of the file, a builtin class, or an unknown name that is written like a class; "
        "elsewhere the language says it (`new`, a composite literal, `Name.new`).",
    ),
    Relation(
        "contains",
        "The class or function named by the head directly holds the definition of the method, function or class named by "
        "the tail.",
        "class Node:\n    def walk(self):\n        pass\n",
        ("Node", "walk"),
        "From the holder to what it holds. At a use: from the class to the place where the member is read from its "
        "instance.",
        "What a module holds; members that are inherited (they belong to the base).",
    ),
    Relation(
        "has_field",
        "Instances of the class named by the head, or the class itself, carry the attribute named by the tail, bound in "
        "the class body or through the instance parameter of one of its methods.",
        "class Node:\n    size = 0\n",
        ("Node", "size"),
        "From the class to the place that binds the field; where the class body declares it, there. At a use: from "
        "the class that holds it to the place where it is read from the instance.",
        "Methods (`contains`); attributes of other objects; elements (`self.rows[0]`).",
    ),
    Relation(
        "has_type",
        "The parameter, variable or field named by the head is annotated with the type written in the tail.",
        "size: int = 0\n",
        ("size", "int"),
        "From the name to its type. At a use: from the name read to the type at its declaration.",
        "Types that are inferred; results of functions (`returns`).",
    ),
    Relation(
        "inherits",
        "The class named by the head has the class named by the tail among its bases.",
        "class Leaf(Node):\n    pass\n",
        ("Leaf", "Node"),
        "From the class to the place that names its base. At a use: from the name of a class of the file to each "
        "of its bases.",
        "Bases that are no names; metaclasses; bases of bases.",
    ),
    Relation(
        "has_parameter",
        "The function named by the head has the parameter named by the tail, `self` and `cls` included.",
        "def load(path):\n    pass\n",
        ("load", "path"),
        "From the function to its parameter. At a use: from the function to the place where the parameter is read.",
        "Parameters of functions without a name.",
    ),
    Relation(
        "returns",
        "The function named by the head is annotated to return the type written in the tail.",
        "def size() -> int:\n    return 1\n",
        ("size", "int"),
        "From the function to the type. At a use: from the name in a call to the type that the function of the "
        "file declares.",
        "Types of the values that are returned, where none is declared.",
    ),
    Relation(
        "imported_from",
        "The local name in the head was brought in by `from M import ...`; the tail is M.",
        "from json import dumps\n",
        ("dumps", "json"),
        "From the local name to the module. At a use: from the name read to the module in the import.",
        "Imports of everything; imports that bind no name.",
    ),
    Relation(
        "imports",
        "The local name in the head was bound by `import M` or `import M as name`; the tail is the module's full dotted "
        "name.",
        "import numpy as np\n",
        ("np", "numpy"),
        "From the local name to the module. At a use: from the name read to the module in the import, where the "
        "two differ.",
        "Imports of members (`imported_from`); imports that bind no name.",
    ),
    Relation(
        "flows_to",
        "The value bound to the variable in the head (at a definition that reaches the read) is read to compute the value "
        "bound to the variable in the tail, in the same scope. A field of the instance may be a tail, never a head.",
        "def double(x):\n    y = x + x\n",
        ("x", "y"),
        "From the variable at the definition that reaches the read to the variable that is bound. At a use: from "
        "the place of the read to the variable that is bound.",
        "Flow through fields, elements, returned values and calls of other functions; flow between a function and "
        "the scopes around it; conditions that only decide whether a value is bound.",
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
