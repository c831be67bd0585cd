"""A checkpoint and files in, facts out; and the calibration that makes their probabilities honest.

extractor = Extractor(model, tokenizer, [("app", "app/x.py", "python", text)])
facts = extractor.extract(relations=["has_type", "returns"])
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..code_graph.schema import RELATION_IDS, RELATION_NAMES
from ..code_graph.type_names import normalise_type
from .calibration import Calibration
from .candidates import HEAD_KINDS, TAIL_RELATIONS, Head, Names, Pair
from .decoding import TailTrie, length_prior
from .entities import FileEntities
from .facts import EXTRACTED, PARSER, PREDICTED, Fact, Place, merge
from .project import Corpus
from .questions import Question
from .scoring import RELATION_MODE, TAIL_MODE, Scorer, check_modes, modes_of
from .sign_classifier import SignClassifier
from .type_evidence import TypeEvidence
from .type_table import TypeTable

TYPE_RELATIONS = ("has_type", "returns")
MAX_PLACES = 3
"""Most windows in which one head is asked about."""


@dataclass(frozen=True)
class Options:
    """What to ask and what to keep.

    Attributes:
        threshold: least probability of a predicted fact.
        top_k: most predicted facts for one question.
        max_pairs: pairs asked in one window, the nearest first.
        max_distance: characters between the two names of a pair at most.
        verify: ask the model about extracted facts too, each hidden from it.
    """

    threshold: float = 0.5
    top_k: int = 3
    max_pairs: int = 16
    max_distance: int = 300
    verify: bool = True

    def __post_init__(self):
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"--threshold must lie between 0 and 1, got {self.threshold}")
        for name in ("top_k", "max_pairs", "max_distance"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")


@dataclass
class Answer:
    """All answers to one question about a tail.

    Attributes:
        file: number of the file.
        head: what was asked about.
        texts: the best spelling of each answer.
        scores: float `(answers,)`, log-probabilities; spellings of one type are one answer.
        keys: what makes answers equal (`type_names.normalise_type` for types).
    """

    file: int
    head: Head
    texts: list[str]
    scores: np.ndarray
    keys: list[str] = field(repr=False)

    def without(self, texts: Iterable[str]) -> "Answer":
        """The same without some answers: tails that are known already."""
        dropped = set(texts)
        kept = [k for k, text in enumerate(self.texts) if text not in dropped] if dropped else []
        if not kept or len(kept) == len(self.texts):
            return self
        return replace(
            self, texts=[self.texts[k] for k in kept], scores=self.scores[kept], keys=[self.keys[k] for k in kept]
        )


class Grouping:
    """Which names of a trie are one answer: for types, all spellings of the same type."""

    def __init__(self, names: Sequence[str], relation: str):
        spelling = normalise_type if relation in TYPE_RELATIONS else str
        numbers: dict[str, int] = {}
        self.group = np.array([numbers.setdefault(spelling(name), len(numbers)) for name in names])
        self.keys = list(numbers)
        self._names = list(names)

    def fold(self, scores: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """Log-sum of the scores of each group, and the best name of each."""
        top = float(scores.max())
        sums = np.bincount(self.group, weights=np.exp(scores - top), minlength=len(self.keys))
        order = np.argsort(scores, kind="stable")
        best = np.zeros(len(self.keys), dtype=np.int64)
        best[self.group[order]] = order
        # Below the smallest number that exp can tell from 0 all are equally improbable.
        return np.log(np.maximum(sums, 1e-300)) + top, best.tolist()


class Extractor:
    """Asks one checkpoint about one set of files.

    Args:
        model: `GraphMertForPreTraining` in evaluation mode.
        tokenizer: its tokenizer.
        files: (project, path, language, text) of each file.
        batch_size: questions in one forward pass.
        progress: show progress bars on a terminal.
        types: declared types of the training corpus: more types to choose from, and a prior over them.
        signs: what types are by signs of use, learned from the same corpus; only together with `types`.

    Attributes:
        counts: what was asked, and what was left out and why.
    """

    def __init__(
        self,
        model,
        tokenizer,
        files: Iterable[tuple[str, str, str, str]],
        batch_size: int = 32,
        progress: bool = False,
        types: TypeTable | None = None,
        signs: SignClassifier | None = None,
    ):
        config = model.config
        self.mnm_target, self.types = config.mnm_target, types
        self.corpus = Corpus(
            files,
            tokenizer,
            config.num_roots,
            config.leaves_per_root,
            config.include_uses,
            config.include_site_anchors,
            config.exclude_relations,
        )
        self.entities = [FileEntities(file, self.corpus.index_of(file)) for file in self.corpus.files]
        self.names = Names(self.corpus, self.entities)
        self._evidence = None if types is None else TypeEvidence(self.corpus, types, signs)
        self.scorer = Scorer(model, tokenizer, self.corpus, batch_size, progress)
        self.counts: Counter = Counter()
        self._tries: dict[tuple[int, str], tuple[TailTrie, Grouping]] = {}
        self._stated: dict[tuple[int, str], dict[tuple[int, int], set[str]]] = {}

    # Extracted facts

    def extracted(self, relations: Iterable[str] = RELATION_NAMES) -> list[Fact]:
        """What the parser saw, merged over definitions and uses; a use adds a place to the fact that it repeats."""
        wanted = set(relations)
        stated: list[Fact] = []
        uses: list[Fact] = []
        for number, file in enumerate(self.corpus.files):
            known = self.entities[number]
            for triple in file.graph.triples:
                if triple.relation not in wanted:
                    continue
                fact = self._fact(number, triple.head_start, triple.head_end, known.head(triple), triple.head)
                fact.relation, fact.tail, fact.tail_name = triple.relation, known.tail(triple), triple.tail
                fact.head_kind = self._head_kind(number, triple)
                fact.tail_kind = self._tail_kind(number, triple)
                (uses if triple.is_use else stated).append(fact)
        keys = {fact.key for fact in stated}
        joined = [fact for fact in uses if fact.key in keys]
        self.counts["uses_not_joined"] += len(uses) - len(joined)
        return merge([*stated, *joined])

    def _fact(self, number: int, start: int, end: int, entity: str, name: str) -> Fact:
        file = self.corpus.files[number]
        place = Place(file.project, file.path, file.line_of(start), start, end)
        return Fact(file.project, entity, "", "", name, "", "", "", EXTRACTED, PARSER, 1.0, places=[place])

    def _head_kind(self, number: int, triple) -> str:
        kind = self.entities[number].kinds.get((triple.head_start, triple.head_end))
        return kind or HEAD_KINDS[triple.relation][0]

    def _tail_kind(self, number: int, triple) -> str:
        fixed = {
            "has_type": "type",
            "returns": "type",
            "imports": "module",
            "imported_from": "module",
            "inherits": "class",
            "instantiates": "class",
            "calls": "function",
        }.get(triple.relation)
        if fixed is not None:
            return fixed
        return self.entities[number].kinds.get((triple.tail_start, triple.tail_end), "name")

    # Tails

    def trie(self, number: int, relation: str) -> tuple[TailTrie, Grouping]:
        """The names that a tail may be in a file."""
        key = (number, relation)
        if key not in self._tries:
            if len(self._tries) > 64:
                self._tries.clear()
            names = self.names.tails(number, relation)
            if self.types is not None:
                names = [*names, *self.types.spellings.get(relation, ())]
            trie = TailTrie(names, self.corpus.encode, self.corpus.leaves_per_root)
            self._tries[key] = (trie, Grouping(trie.names, relation))
        return self._tries[key]

    def type_prior(self, relation: str, answer: Answer) -> np.ndarray | None:
        """What is known of each answer without the model, float `(answers, K)`; None without a table, and of no type."""
        if self._evidence is None or relation not in TYPE_RELATIONS:
            return None
        return self._evidence(relation, answer)

    def question_at(
        self, number: int, start: int, end: int, relation: int, leaf=(), hidden=frozenset()
    ) -> Question | None:
        """A question that hangs on a span of characters; None where no window holds the span whole."""
        file = self.corpus.files[number]
        first, last = file.tokens_of(start, end)
        window = self.corpus.window_at(number, first) if last > first else None
        if window is None or last > self.corpus.windows[window].end:
            self.counts["spans_across_windows"] += 1
            return None
        root = first - self.corpus.windows[window].start + 1
        return Question(window, root, last - first, relation, tuple(leaf), 0, frozenset(hidden))

    def _tail_questions(self, number: int, head: Head, relation: int, hidden: frozenset[int]) -> list[Question]:
        """The questions about one head: at its uses, one in a window, or at its definition where it has none.

        A declared type stands beside its name, so where names are defined a model learns to copy it, and finds nothing to
        copy where it is missing. Uses mostly show no type, in training as here.
        """
        found: dict[int, Question] = {}
        for file, start, end in head.uses:
            question = self.question_at(file, start, end, relation)
            if question is not None and len(found) < MAX_PLACES:
                found.setdefault(question.window, question)
        if not found:
            question = self.question_at(number, head.start, head.end, relation, (), hidden)
            return [] if question is None else [question]
        return list(found.values())

    def ask_tails(
        self,
        relation: str,
        heads: Sequence[tuple[int, Head]],
        log_prior: np.ndarray,
        hidden: Sequence[frozenset[int]] | None = None,
    ) -> list[Answer]:
        """Ask for the tails of some heads.

        Args:
            relation: name of the relation.
            heads: (number of the file, head).
            log_prior: `decoding.length_prior`.
            hidden: for each head facts that the model is not shown.

        Returns:
            An answer for each head that a window holds; over several places the mean of the log-probabilities.
        """
        asked: list[tuple[int, Head, list[Question]]] = []
        for index, (number, head) in enumerate(heads):
            facts = frozenset() if hidden is None else hidden[index]
            questions = self._tail_questions(number, head, RELATION_IDS[relation], facts)
            if questions:
                asked.append((number, head, questions))
        answers = []
        # In parts, so that the scores of all names at all places are held for a few heads only.
        for begin in range(0, len(asked), 256):
            part = asked[begin : begin + 256]
            flat = [(question, number) for number, _, questions in part for question in questions]
            tries = [self.trie(number, relation)[0] for _, number in flat]
            scored = iter(self.scorer.tail_scores([question for question, _ in flat], tries, log_prior))
            for number, head, questions in part:
                trie, grouping = self.trie(number, relation)
                # The mean of the logarithms: a name must be possible at every place.
                scores = np.mean([next(scored) for _ in questions], axis=0)
                folded, best = grouping.fold(scores)
                answers.append(Answer(number, head, [trie.names[k] for k in best], folded, grouping.keys))
        self.counts[f"tail_questions:{relation}"] += len(asked)
        return answers

    def predicted_tails(self, relation: str, calibration: Calibration, options: Options) -> list[Fact]:
        """Facts that the model fills in at the heads whose tail is not known."""
        heads = [(k, head) for k in range(len(self.corpus.files)) for head in self.names.heads(k, relation)]
        prior = length_prior(calibration.length_counts.get(f"{TAIL_MODE}:{relation}"), self.corpus.leaves_per_root)
        scaling = calibration.scaling(TAIL_MODE, relation)
        facts = []
        for answer in self.ask_tails(relation, heads, prior):
            known = self.entities[answer.file]
            answer = answer.without(self.stated_tails(answer.file, relation, answer.head))
            probabilities = scaling.probabilities(answer.scores, self.type_prior(relation, answer))
            for rank, best in enumerate(np.argsort(-probabilities, kind="stable")[: options.top_k].tolist(), 1):
                if probabilities[best] < options.threshold:
                    break
                text = answer.texts[best]
                fact = self._fact(
                    answer.file, answer.head.start, answer.head.end, answer.head.entity, answer.head.name
                )
                fact.relation, fact.tail_name = relation, text
                is_type = relation in TYPE_RELATIONS
                fact.tail = known.type_name(text) if is_type else known.named(text)
                fact.head_kind = answer.head.kind
                fact.tail_kind = "type" if is_type else "function" if relation == "calls" else "class"
                fact.status, fact.mode, fact.rank = PREDICTED, TAIL_MODE, rank
                fact.probability = float(probabilities[best])
                facts.append(fact)
        return facts

    def stated_tails(self, number: int, relation: str, head: Head) -> set[str]:
        """The tails that a head is known to have."""
        if (number, relation) not in self._stated:
            stated: dict[tuple[int, int], set[str]] = defaultdict(set)
            for triple in self.corpus.files[number].graph.triples:
                if triple.relation == relation:
                    stated[triple.head_start, triple.head_end].add(triple.tail)
            self._stated[number, relation] = stated
        return self._stated[number, relation].get((head.start, head.end), set())

    # Relations

    def pair_questions(self, relations: Iterable[str], options: Options) -> list[tuple[int, Pair, Question]]:
        """(number of the file, pair, question) for the pairs of names of every window."""
        relations = list(relations)
        asked = []
        for number, window in enumerate(self.corpus.windows):
            pairs, left = self.names.pairs(number, relations, options.max_pairs, options.max_distance)
            self.counts["pairs_beyond_max_pairs"] += left
            for pair in pairs:
                leaf = self.corpus.encode(pair.tail_name)[: self.corpus.leaves_per_root]
                question = self.question_at(
                    window.file, pair.head_start, pair.head_end, self.scorer.masked_relation, leaf
                )
                if question is not None and leaf:
                    asked.append((window.file, pair, question))
        return asked

    def predicted_relations(self, relations: Sequence[str], calibration: Calibration, options: Options) -> list[Fact]:
        """Facts between names that stand near each other and that the parser does not join."""
        asked = self.pair_questions(relations, options)
        self.counts["relation_questions"] += len(asked)
        logits = self.scorer.relation_logits([question for _, _, question in asked])
        probabilities = calibration.scaling(RELATION_MODE, "").probabilities(logits) if len(asked) else logits
        facts = []
        for (number, pair, _), row in zip(asked, probabilities, strict=True):
            for rank, best in enumerate(np.argsort(-row, kind="stable")[: options.top_k].tolist(), 1):
                relation = RELATION_NAMES[best]
                allowed = relation in relations and pair.head_kind in HEAD_KINDS[relation]
                if row[best] < options.threshold or not allowed:
                    continue
                fact = self._fact(number, pair.head_start, pair.head_end, pair.head, pair.head_name)
                fact.relation, fact.tail, fact.tail_name = relation, pair.tail, pair.tail_name
                fact.head_kind, fact.tail_kind = pair.head_kind, "name"
                fact.status, fact.mode, fact.rank = PREDICTED, RELATION_MODE, rank
                fact.probability = float(row[best])
                facts.append(fact)
        return facts

    def leaf_questions(self, relations: Iterable[str], limit: int | None = None, seed: int = 0) -> list[tuple]:
        """(file, anchor's triple, relation id, question) for leaves of the windows, each asked with its relation masked."""
        wanted = {RELATION_IDS[name] for name in relations}
        placed = [
            (number, item)
            for number, window in enumerate(self.corpus.windows)
            for item in window.placed
            if item.candidate.relation in wanted
        ]
        if limit is not None and len(placed) > limit:
            chosen = np.sort(np.random.default_rng(seed).choice(len(placed), limit, replace=False))
            placed = [placed[k] for k in chosen]
        return [
            (
                self.corpus.windows[number].file,
                item.candidate.fact,
                item.candidate.relation,
                Question(
                    number,
                    item.candidate.start,
                    item.candidate.length,
                    self.scorer.masked_relation,
                    tuple(item.candidate.leaf[: item.num_tokens]),
                    item.candidate.reversed,
                    frozenset([item.candidate.fact]),
                ),
            )
            for number, item in placed
        ]

    def verify(self, facts: Sequence[Fact], relations: Sequence[str], calibration: Calibration) -> None:
        """Set `model_probability` of extracted facts: what the model says of each leaf when its relation is masked."""
        asked = self.leaf_questions(relations)
        self.counts["verified_leaves"] += len(asked)
        logits = self.scorer.relation_logits([question for *_, question in asked])
        if not asked:
            return
        probabilities = calibration.scaling(RELATION_MODE, "").probabilities(logits)
        said: dict[tuple[int, int], float] = {}
        for (number, fact, relation, _), row in zip(asked, probabilities, strict=True):
            said[number, fact] = max(said.get((number, fact), 0.0), float(row[relation]))
        by_key: dict[tuple, float] = {}
        for number, file in enumerate(self.corpus.files):
            known = self.entities[number]
            for triple in file.graph.triples:
                value = said.get((number, file.facts[triple.head, triple.relation, triple.tail]))
                if value is not None and not triple.is_use:
                    key = (file.project, known.head(triple), triple.relation, known.tail(triple))
                    by_key[key] = max(by_key.get(key, 0.0), value)
        for fact in facts:
            fact.model_probability = by_key.get(fact.key)

    # All together

    def extract(
        self,
        relations: Sequence[str] | None = None,
        modes: Sequence[str] | None = None,
        calibration: Calibration | None = None,
        options: Options | None = None,
    ) -> list[Fact]:
        """The knowledge graph of the files.

        Args:
            relations: names of relations; by default all are extracted and those of `TAIL_RELATIONS` predicted.
            modes: "relation", "tail"; by default what the checkpoint was trained for.
            calibration: by default none: probabilities are the model's own.
            options: by default `Options()`.

        Returns:
            Merged facts, extracted ones first, predicted ones by falling probability.

        Raises:
            ValueError: an unknown relation, or a mode that the checkpoint was not trained for.
        """
        for relation in relations or ():
            if relation not in RELATION_IDS:
                raise ValueError(f"unknown relation {relation!r}; relations are {', '.join(RELATION_NAMES)}")
        modes = tuple(modes or modes_of(self.mnm_target))
        check_modes(modes, self.mnm_target)
        calibration, options = calibration or Calibration(), options or Options()
        findings = self.extracted(relations or RELATION_NAMES)
        if RELATION_MODE in modes:
            if options.verify:
                self.verify(findings, relations or RELATION_NAMES, calibration)
            findings += self.predicted_relations(relations or RELATION_NAMES, calibration, options)
        if TAIL_MODE in modes:
            for relation in relations or TAIL_RELATIONS:
                if relation in TAIL_RELATIONS:
                    findings += self.predicted_tails(relation, calibration, options)
        return merge(findings)
