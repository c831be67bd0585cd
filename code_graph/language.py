"""The description of a language: what the shared reader (`tree_reader`, `tree_statements`) has to know about it.

A description names node kinds and fields of the language's tree-sitter grammar. What cannot be said by names is a method
of the language's own reader, a subclass of `TreeReader`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from .syntax import Grammar, grammar

Names = tuple[str, ...]
ANY_DOTTED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*\Z")


@dataclass(frozen=True)
class Description:
    """A language in the words of its grammar.

    Attributes:
        name: the language, as in `LANGUAGES`.
        variables: kinds that read or bind a variable.
        mentions: kinds that name a type, class or package: a use, but no data flow.
        instances: kinds of the instance a method runs on (`this`).
        instance: the text of the instance.
        parents: kinds that mean the parent class (`super`).
        members: kind -> fields of the owner and of the member's name; None: first and last child.
        calls: kind -> fields of the owner, the name and the arguments; an owner of None: the callee is one expression.
        creations: kind -> field of the class that is instantiated; None: its first child.
        generics: kinds that stand for their first child, a name.
        patterns: kinds whose children are bound when they are assigned to.
        pairs: kind -> field of the part of such a pattern that is bound.
        sequences: kinds whose elements are matched one by one when a written-out list is assigned to a list.
        splats: kinds that stop such matching.
        parentheses: kinds that only wrap.
        leaves: kinds that hold no name.
        parameters: kind -> fields of name, type and default.
        functions: kinds of functions that are values; `arrows`: those that keep the `this` around them.
        classes: kinds of classes that are values.
        blocks: kinds with variables of their own; `lists`: kinds that only hold statements.
        definitions: kinds that begin a definition, for cut points.
        conditionals: kinds of `if` and its `else if` clauses; `elses`: kinds that wrap an `else`.
        cases: kinds of the cases of a `switch`; `tests`: fields and kinds of what a case tests.
        falls: kinds of cases that run on into the next one.
        catches, finallies: clauses of `try`; `try_elses`: what runs when nothing was raised.
        endless: conditions that are always true.
        untyped: texts in the place of a type that say nothing.
        method_mark: added to the names of functions and methods where variables have a name space of their own.
        is_open: members of a class can be named without an owner inside it.
        has_blocks: blocks have variables of their own.
        assignment_declares: an assignment to a name makes it a variable of the function.
        defaults_inside: defaults of parameters are made when the function is called, and see its parameters.
        type_name: finds in the text of a type the class whose members its values have (group 1, dotted).
        builtin_names, builtin_types: names that need no binding; calls of the latter convert.
    """

    name: str
    variables: Names
    mentions: Names = ()
    instances: Names = ()
    instance: str = "this"
    parents: Names = ()
    members: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)
    calls: dict[str, tuple[str | None, str, str]] = field(default_factory=dict)
    creations: dict[str, str | None] = field(default_factory=dict)
    generics: Names = ()
    patterns: Names = ()
    pairs: dict[str, str] = field(default_factory=dict)
    sequences: Names = ()
    splats: Names = ()
    parentheses: Names = ()
    leaves: Names = ()
    parameters: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    functions: Names = ()
    arrows: Names = ()
    classes: Names = ()
    blocks: Names = ()
    lists: Names = ()
    definitions: Names = ()
    conditionals: Names = ()
    elses: Names = ()
    cases: Names = ()
    tests: Names = ()
    falls: Names = ()
    catches: Names = ()
    finallies: Names = ()
    try_elses: Names = ()
    comments: Names = ("comment",)
    endless: frozenset[str] = frozenset({"true", "(true)"})
    untyped: frozenset[str] = frozenset()
    method_mark: str = ""
    is_open: bool = False
    has_blocks: bool = True
    assignment_declares: bool = False
    defaults_inside: bool = False
    type_name: re.Pattern = ANY_DOTTED
    builtin_names: frozenset[str] = frozenset()
    builtin_types: frozenset[str] = frozenset()


class Tables:
    """A description with the numbers of its kinds, and the handlers of statements and expressions by number."""

    def __init__(self, about: Description, statements: dict[str, Callable], expressions: dict[str, Callable]):
        self.about = about
        self.grammar: Grammar = grammar(about.name)
        kinds = self.grammar.kinds
        for name in (
            "variables", "mentions", "instances", "parents", "generics", "patterns", "sequences", "splats",
            "parentheses", "leaves", "functions", "arrows", "classes", "blocks", "lists", "definitions",
            "conditionals", "elses", "cases", "falls", "catches", "finallies", "try_elses", "comments",
        ):  # fmt: skip
            setattr(self, name, kinds(*getattr(about, name)))
        for name in ("members", "calls", "creations", "pairs", "parameters"):
            described = getattr(about, name)
            setattr(self, name, {number: described[kind] for kind in described for number in kinds(kind)})
        self.statements = {number: handler for kind in statements for number in kinds(kind)
                           for handler in (statements[kind],)}  # fmt: skip
        self.expressions = {number: handler for kind in expressions for number in kinds(kind)
                            for handler in (expressions[kind],)}  # fmt: skip
