"""Facts that the parser knows and the model is not shown: what calibration is fitted on and precision is measured with."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from ..code_graph.annotations import RELATION_OF, Slot, strip_annotations
from ..code_graph.schema import RELATION_NAMES
from ..code_graph.type_names import normalise_type
from .calibration import Calibration, Example, calibrate
from .candidates import TAIL_LANGUAGES, TAIL_RELATIONS, Head
from .decoding import length_prior
from .entities import CLASS
from .extraction import TYPE_RELATIONS, Answer, Extractor, Options
from .scoring import RELATION_MODE, TAIL_MODE
from .sign_classifier import SignClassifier
from .type_table import TypeTable

File = tuple[str, str, str, str]


def code_of(split) -> list[File]:
    """(project, path, language, code) of each file of a data set's split."""
    rows = split.select_columns(["project", "path", "language", "code"])
    return [(row["project"], row["path"], row["language"], row["code"]) for row in rows]


def choose_files(files: Sequence[File], max_chars: int, seed: int = 0) -> list[File]:
    """Files in random order until their text reaches a size, in the order they had."""
    order = np.random.default_rng(seed).permutation(len(files))
    chosen, total = [], 0
    for number in order.tolist():
        if total and total + len(files[number][3]) > max_chars:
            continue
        chosen.append(number)
        total += len(files[number][3])
    return [files[number] for number in sorted(chosen)]


def without_annotations(files: Iterable[File]) -> tuple[list[File], list[list[Slot]]]:
    """Python files without their annotations, and for each file what was removed (`self` and `cls` aside)."""
    stripped, hidden = [], []
    for project, path, language, code in files:
        text, slots = strip_annotations(code) if language == "python" else (code, [])
        stripped.append((project, path, language, text))
        hidden.append([slot for slot in slots if not slot.is_instance])
    return stripped, hidden


def type_heads(extractor: Extractor, hidden: Sequence[Sequence[Slot]], relation: str) -> list[tuple[int, Head, str]]:
    """(number of the file, head, the type that was removed) for the annotations of one relation."""
    found = []
    for number, slots in enumerate(hidden):
        for slot in slots:
            if RELATION_OF[slot.kind] == relation:
                found.append((number, extractor.names.slot_head(number, slot), slot.annotation))
    return found


def _sample(items: list, limit: int, seed: int) -> list:
    if len(items) <= limit:
        return items
    chosen = np.sort(np.random.default_rng(seed).choice(len(items), limit, replace=False))
    return [items[k] for k in chosen]


def _example(answer: Answer, gold: str, prior: np.ndarray | None = None) -> Example:
    return Example(answer.scores, answer.keys.index(gold) if gold in answer.keys else -1, answer.file, prior)


def type_examples(
    extractor: Extractor, hidden: Sequence[Sequence[Slot]], relation: str, limit: int, seed: int = 0
) -> tuple[list[Example], list[int]]:
    """Hidden annotations with the scores of all types that the model may answer.

    Args:
        extractor: over files without annotations.
        hidden: what was removed from each.
        relation: has_type or returns.
        limit: at most so many, drawn at random.
        seed: of the draw.

    Returns:
        The examples, and how many of all hidden types have 1, 2, ... tokens.
    """
    heads = type_heads(extractor, hidden, relation)
    longest = extractor.corpus.leaves_per_root
    counts = Counter(min(len(extractor.corpus.encode(text)), longest) for *_, text in heads)
    lengths = [counts[k] for k in range(1, longest + 1)]
    asked = _sample(heads, limit, seed)
    gold = {(number, head.start): normalise_type(text) for number, head, text in asked}
    answers = extractor.ask_tails(relation, [(n, head) for n, head, _ in asked], length_prior(lengths, longest))
    examples = [
        _example(answer, gold[answer.file, answer.head.start], extractor.type_prior(relation, answer))
        for answer in answers
    ]
    return examples, lengths


def tail_questions(
    extractor: Extractor, relation: str, limit: int, lengths: Sequence[int] | None = None, seed: int = 0
) -> tuple[list[tuple[Example, Answer]], list[str]]:
    """Facts of a relation that the text shows, each hidden from the graph; and as many heads with nothing hidden.

    For the latter "something else" is right: the parser sees every tail, so a model that names one more is wrong. Other
    tails of a head are known and no answers.

    Args:
        extractor: over the unchanged files.
        relation: name of the relation.
        limit: at most so many questions, drawn at random.
        lengths: how many tails have 1, 2, ... tokens; by default those of the files.
        seed: of the draw.

    Returns:
        The examples with their answers, and the right tail of each, "" where nothing is hidden.
    """
    stated = _stated(extractor, relation)
    prior = length_prior(_lengths(extractor, stated) if lengths is None else lengths, extractor.corpus.leaves_per_root)
    shown, hidden = _sample(stated, limit // 2, seed), _sample(stated, limit // 2, seed + 1)
    # Heads are told apart by identity: one may be asked about twice. Questions that no window holds have no answer.
    asked = [(number, replace(head)) for number, head, _, _ in shown + hidden]
    facts = [frozenset()] * len(shown) + [frozenset([fact]) for *_, fact in hidden]
    gold = {id(head): tail for (_, head), (_, _, tail, _) in zip(asked[len(shown) :], hidden, strict=True)}
    answers, tails = [], []
    for answer in extractor.ask_tails(relation, asked, prior, facts):
        tail = gold.get(id(answer.head), "")
        answer = answer.without(extractor.stated_tails(answer.file, relation, answer.head) - {tail})
        answers.append((_example(answer, tail), answer))
        tails.append(tail)
    return answers, tails


def _stated(extractor: Extractor, relation: str) -> list[tuple[int, Head, str, int]]:
    """(file, head, tail, number of the fact) of each fact at its definition, in languages whose tails are asked for."""
    stated = []
    for number, file in enumerate(extractor.corpus.files):
        if file.language not in TAIL_LANGUAGES:
            continue
        known = extractor.entities[number]
        for triple in file.graph.triples:
            if triple.relation == relation and not triple.is_use:
                span = (triple.head_start, triple.head_end)
                head = Head(triple.head, *span, known.definition(span, triple.head), known.kinds.get(span, CLASS))
                stated.append((number, head, triple.tail, file.facts[triple.head, relation, triple.tail]))
    return stated


def _lengths(extractor: Extractor, stated: list[tuple[int, Head, str, int]]) -> list[int]:
    longest = extractor.corpus.leaves_per_root
    counts = Counter(min(len(extractor.corpus.encode(tail)), longest) for _, _, tail, _ in stated)
    return [counts[k] for k in range(1, longest + 1)]


def tail_examples(extractor: Extractor, relation: str, limit: int, seed: int = 0) -> tuple[list[Example], list[int]]:
    """The examples of `tail_questions`, and how many tails have 1, 2, ... tokens."""
    lengths = _lengths(extractor, _stated(extractor, relation))
    answers, _ = tail_questions(extractor, relation, limit, lengths, seed)
    return [example for example, _ in answers], lengths


def relation_examples(extractor: Extractor, relations: Iterable[str], limit: int, seed: int = 0) -> list[Example]:
    """Leaves with their relation masked, and pairs of names that no fact joins, in the proportion that windows hold them."""
    relations = list(relations)
    leaves = extractor.leaf_questions(relations)
    pairs = extractor.pair_questions(relations, Options())
    asked = [(number, relation, question) for number, _, relation, question in leaves]
    asked += [(number, -1, question) for number, _, question in pairs]
    asked = _sample(asked, limit, seed)
    logits = extractor.scorer.relation_logits([question for *_, question in asked])
    return [Example(row, relation, number) for (number, relation, _), row in zip(asked, logits, strict=True)]


def fit_calibration(
    model,
    tokenizer,
    files: Sequence[File],
    source: str,
    modes: Sequence[str],
    relations: Sequence[str] | None = None,
    max_facts: int = 600,
    max_chars: int = 1_000_000,
    batch_size: int = 32,
    progress: bool = False,
    seed: int = 0,
    types: TypeTable | None = None,
    signs: SignClassifier | None = None,
) -> Calibration:
    """Fit a calibration on facts that are hidden from the model.

    Types are hidden in the text and in the graph (annotations are removed from the files first); other facts are hidden in
    the graph only, because the text that states them is what the question is about.

    Args:
        model, tokenizer: the checkpoint.
        files: files that the model was not trained on: the validation split of its training corpus.
        source: what the files are, for the record.
        modes: "relation", "tail".
        relations: those to fit; by default those that are predicted by default.
        max_facts: hidden facts of each relation at most.
        max_chars: of the files' text, at most; a random choice of files.
        batch_size, progress: as in `Extractor`.
        seed: of all choices.
        types: declared types of the training corpus, to be combined with the model's answers; None to leave them out.
        signs: what types are by signs of use, of the same corpus; None to leave them out.

    Raises:
        ValueError: the files hold not one fact to hide.
    """
    files = choose_files(files, max_chars, seed)
    calibration = Calibration(source=source, types=types, signs=signs)
    examples: dict[str, list[Example]] = {}
    tail_relations = [name for name in (relations or TAIL_RELATIONS) if name in TAIL_RELATIONS]
    type_relations = [name for name in tail_relations if name in TYPE_RELATIONS]
    if TAIL_MODE in modes and type_relations:
        stripped, hidden = without_annotations(files)
        blind = Extractor(model, tokenizer, stripped, batch_size, progress, types, signs)
        for relation in type_relations:
            key = f"{TAIL_MODE}:{relation}"
            examples[key], calibration.length_counts[key] = type_examples(blind, hidden, relation, max_facts, seed)
    others = [name for name in tail_relations if name not in TYPE_RELATIONS] if TAIL_MODE in modes else []
    if others or RELATION_MODE in modes:
        plain = Extractor(model, tokenizer, files, batch_size, progress)
        for relation in others:
            key = f"{TAIL_MODE}:{relation}"
            examples[key], calibration.length_counts[key] = tail_examples(plain, relation, max_facts, seed)
        if RELATION_MODE in modes:
            examples[RELATION_MODE] = relation_examples(plain, relations or RELATION_NAMES, max_facts, seed)
    examples = {key: found for key, found in examples.items() if found}
    if not examples:
        raise ValueError(
            f"--calibrate {source}: its {len(files)} files hold no fact of these relations that could be hidden; give "
            "code with annotations"
        )
    calibrate(examples, calibration)
    return calibration
