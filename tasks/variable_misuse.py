"""Variable misuse: at one use of a local name, which of the names in scope belongs there? Zero-shot, by the LM head.

The use is hidden and every name that is bound before it is scored by the masked tokens' mean log-probability, masks of
the name's own length in its place; "calibrated" takes off the log of each token's mean probability over all sites, so
that words which a model likes everywhere gain nothing. Two readings of the scores (Allamanis et al. 2018, arXiv
1711.00740; Vasic et al. 2019, arXiv 1904.01720): which name fits best (repair), and, with another name written there,
whether the written one is wrong (detection; the place is told, not what should stand there).

The graph must not tell the answer: `x flows_to y` at the place where `y` is computed names the very name that is read
there. So the use is replaced by a name that the file does not know *before* the graph is read, and facts that touch that
name are left out: what is left was made from a text that does not hold the answer.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from ..chain_graphs.windows import WindowDataset
from ..code_graph import Triple, outline_scopes
from ..code_graph.scopes import CLASS, FUNCTION, PARAMETER, VARIABLE, Scope
from .base import NotApplicable, Task, TaskContext, TaskResult
from .excerpts import Excerpt, cut_excerpts, link_excerpts
from .functions import Function, read_functions
from .queries import moved_edges, without_facts
from .retrieval import load_metric

# No file of a corpus holds this name; where one does, its functions are left out.
HOLE = "hole_in_the_text"
# Room for a name that has more tokens than the hole.
MARGIN = 8

_DEF = re.compile(r"(?:async\s+)?def\s+")
_HOLE = re.compile(rf"\b{HOLE}\b")


class Site(NamedTuple):
    """One use of a local name.

    Attributes:
        function: the function it is in; `function.file` has the hole in place of the name.
        start: the hole, in characters from the function's beginning.
        names: the names in scope, in the order in which they are bound; the right one is `names[right]`.
        right, wrong: the name that the text has, and the one that is written in its place to be detected.
        frequency: how often the function has each name elsewhere.
        last: where each name stands last before the hole, -1 for nowhere.
    """

    function: Function
    start: int
    names: list[str]
    right: int
    wrong: int
    frequency: list[int]
    last: list[int]


@dataclass
class VariableMisuseOptions:
    """Options of `variable_misuse`."""

    _argument_group_name: ClassVar[str] = "variable_misuse"

    misuse_sites: int = field(
        default=600, metadata={"help": "Uses to be judged, one for each function (--max-examples lowers it)."}
    )
    misuse_min_names: int = field(default=3, metadata={"help": "Fewest names in scope at a use."})

    def __post_init__(self):
        if self.misuse_sites < 1 or self.misuse_min_names < 2:
            raise ValueError("--misuse-sites must be at least 1 and --misuse-min-names at least 2")


class VariableMisuse(Task):
    """Repair accuracy and detection of a wrong name at a given use."""

    name = "variable_misuse"
    options_class = VariableMisuseOptions

    def run(self, context: TaskContext, options: VariableMisuseOptions) -> TaskResult:
        if any(
            name.startswith("lm_head.") and not name.startswith("lm_head.decoder")
            for name in context.missing_parameters
        ):
            raise NotApplicable("its LM head was not trained")
        limit = min(options.misuse_sites, context.arguments.max_examples or options.misuse_sites)
        sites, counts = find_sites(context, options.misuse_min_names, limit)
        windows, places = site_windows(context, sites)
        scores: dict[str, list[np.ndarray]] = {}
        scores["model"], scores["calibrated"] = name_scores(context, sites, windows, places)
        if context.use_graph:
            without = name_scores(context, sites, windows, places, with_leaves=False)
            scores["without graph"], scores["without graph, calibrated"] = without
        controls = [name for name in scores if name != "model"]
        scores["most frequent name"] = [
            # The nearer one where two are equally frequent.
            np.array(site.frequency) + (np.array(site.last) + 1) / (site.start + 2)
            for site in sites
        ]
        scores["nearest name before"] = [np.array(site.last, dtype=np.float64) for site in sites]
        figures, examples = {}, {}
        for who, found in scores.items():
            figures[who], ranks = judge(sites, found)
            examples[f"{who}: reciprocal_rank"] = 1 / ranks
        numbers = np.array([len(site.names) for site in sites])
        chance = {
            "accuracy": float(np.mean(1 / numbers)),
            "mrr": float(np.mean([np.mean(1 / np.arange(1, n + 1)) for n in numbers])),
            "prefers_right_to_wrong": 0.5,
            "detection_auc": 0.5,
        }
        baselines = {name: figures[name] for name in ("most frequent name", "nearest name before")} | {
            "random": chance
        }
        leaves = np.mean([len(windows[int(window)]["leaf_ids"]) for window, _, _ in places])
        return TaskResult(
            figures=figures["model"],
            baselines=baselines,
            controls={name: figures[name] for name in controls},
            counts={"sites": len(sites), "names": int(numbers.sum())},
            details={"left_out": counts, "leaves_per_window": float(leaves)},
            examples=examples,
        )


def local_scopes(module: Scope) -> dict[int, tuple[list[tuple[str, int]], list[tuple[str, int, int]]]]:
    """Names and reads of the functions and methods of a file, by the place of the function's name.

    Args:
        module: the file's scope.

    Returns:
        For each: its parameters and variables with the place that binds them first, in that order (the instance's own
        name and names of underscores only are left out), and the reads of them as (name, start, end).
    """
    found, waiting = {}, [module]
    while waiting:
        scope = waiting.pop()
        for symbol in scope.names.values():
            waiting += [inner for inner in symbol.definitions if inner.kind == CLASS or scope.kind != FUNCTION]
        if scope.kind != FUNCTION:
            continue
        places = {span[0]: span[1] for span, _ in reversed(scope.parameters)}
        bound = []
        for name, symbol in scope.names.items():
            if symbol.kind in (PARAMETER, VARIABLE) and symbol.instance_of is None and name.strip("_"):
                place = places.get(name, symbol.variable[1] if symbol.variable else None)
                if place is not None:
                    bound.append((name, place))
        names = {name for name, _ in bound}
        found[scope.name[1]] = (
            sorted(bound, key=lambda pair: pair[1]),
            [use for use in scope.uses if use[0] in names],
        )
    return found


def find_sites(context: TaskContext, min_names: int, limit: int) -> tuple[list[Site], dict[str, int]]:
    """Draw one use from each of `limit` functions of the test corpus.

    Returns:
        The sites in the order of the corpus, and the number of functions left out by reason.

    Raises:
        ValueError: there is none.
    """
    rows = context.test.rows.select_columns(["project", "path", "code"])
    generator, counts = context.generator("variable_misuse"), Counter()
    found: list[tuple[Function, list, list]] = []
    for row in context.progress(rows, "reading functions"):
        functions = read_functions(row["code"], row["project"], row["path"])
        if not functions:
            continue
        counts["functions"] += len(functions)
        file = functions[0].file
        if HOLE in file:
            counts["the name of the hole stands in the file"] += len(functions)
            continue
        scopes = outline_scopes(file, local_scopes)
        for function in functions:
            place = _DEF.match(file, function.start)
            names, uses = scopes.get(place.end() if place else -1, ([], []))
            uses = [use for use in uses if function.start <= use[1] < function.end]
            uses = [use for use in uses if sum(at < use[1] for _, at in names) >= min_names]
            uses = [use for use in uses if dict(names)[use[0]] < use[1]]
            if uses:
                found.append((function, names, uses))
            else:
                counts[f"no use with {min_names} names in scope"] += 1
    if not found:
        raise ValueError(f"the corpus to test on has no function with a use of one of {min_names} local names")
    chosen = context.sample(len(found), "variable_misuse functions", limit)
    drawn = [_draw(*found[int(index)], generator) for index in chosen]
    return _with_holes(drawn), dict(counts)


def _draw(function: Function, names: list, uses: list, generator: np.random.Generator):
    name, start, end = uses[int(generator.integers(len(uses)))]
    candidates = [candidate for candidate, at in names if at < start]
    right = candidates.index(name)
    wrong = int(generator.integers(len(candidates) - 1))
    wrong += wrong >= right
    frequency, last = [], []
    for candidate in candidates:
        places = [
            match.start()
            for match in re.finditer(rf"(?<![\w.]){re.escape(candidate)}(?!\w)", function.code)
            if match.start() != start - function.start
        ]
        frequency.append(len(places))
        last.append(max((place for place in places if place < start - function.start), default=-1))
    return function, (start, end), Site(function, start - function.start, candidates, right, wrong, frequency, last)


def _with_holes(drawn: list) -> list[Site]:
    """Make the holes of each file at once, and move the functions to where they stand then."""
    sites, begin = [], 0
    while begin < len(drawn):
        file = drawn[begin][0].file
        end = next((i for i in range(begin, len(drawn)) if drawn[i][0].file is not file), len(drawn))
        holes = sorted(span for _, span, _ in drawn[begin:end])
        pieces, position = [], 0
        for start, stop in holes:
            pieces += [file[position:start], HOLE]
            position = stop
        holed = "".join([*pieces, file[position:]])

        def moved(offset: int, holes=holes) -> int:
            return offset + sum(len(HOLE) - (stop - start) for start, stop in holes if stop <= offset)

        for function, _, site in drawn[begin:end]:
            there = function._replace(file=holed, start=moved(function.start), end=moved(function.end))
            sites.append(site._replace(function=there))
        begin = end
    return sites


def without_hole(excerpt: Excerpt) -> Excerpt:
    """An excerpt without the facts that hang on a hole or name it."""

    def touches(triple: Triple) -> bool:
        spans = [(triple.head_start, triple.head_end), (triple.tail_start, triple.tail_end)]
        texts = [excerpt.text[a:b] for a, b in spans if a is not None and 0 <= a <= len(excerpt.text)]
        return any(_HOLE.search(text) for text in (triple.head, triple.tail, *texts))

    return excerpt._replace(triples=[triple for triple in excerpt.triples if not touches(triple)])


def site_windows(context: TaskContext, sites: list[Site]) -> tuple[WindowDataset, list[tuple[int, int, int]]]:
    """The windows of the sites' functions, and for each site its window, the root where the hole begins, and its length."""
    excerpts = cut_excerpts(
        [site.function for site in sites], progress=lambda items: context.progress(items, "reading graphs")
    )
    rows = link_excerpts([without_hole(excerpt) for excerpt in excerpts], context.tokenizer)
    options = context.window_options()
    options["num_roots"] -= MARGIN
    windows = WindowDataset(rows, context.tokenizer, **options)
    first_window = np.searchsorted(windows.file_index, np.arange(len(sites)))
    places = []
    for number, site in enumerate(sites):
        first, last = token_span(
            rows[number]["char_starts"], rows[number]["char_ends"], site.start, site.start + len(HOLE)
        )
        window = int(first_window[number])
        while windows.token_range[window][1] <= first:
            window += 1
        start, end = windows.token_range[window]
        # A hole across the edge of two windows is judged by what the first has of it. Root 0 is <s>.
        places.append((window, first - int(start) + 1, min(last, int(end)) - first))
    return windows, places


def token_span(starts, ends, start: int, end: int) -> tuple[int, int]:
    """First token, and one past the last, of those that overlap the characters `start:end`."""
    return int(np.searchsorted(ends, start, side="right")), int(np.searchsorted(starts, end, side="left"))


def widened(item: dict, root: int, length: int, mask_token_id: int, number: int) -> dict:
    """An item of `WindowDataset` with `number` mask tokens in place of `length` roots; later facts move with the text."""
    shift = number - length
    ids, words = item["input_ids"], item["word_starts"]
    masks = np.full(number, mask_token_id, dtype=ids.dtype)
    begins = np.zeros(number, dtype=words.dtype)
    begins[0] = 1
    return {
        **item,
        "input_ids": np.concatenate([ids[:root], masks, ids[root + length :]]),
        "word_starts": np.concatenate([words[:root], begins, words[root + length :]]),
        "head_start": item["head_start"] + shift * (item["head_start"] > root),
        "leaf_root": item["leaf_root"] + shift * (item["leaf_root"] > root),
        **moved_edges(item, root + 1, shift),
    }


@torch.no_grad()
def name_scores(
    context: TaskContext, sites: list[Site], windows: WindowDataset, places: list, with_leaves: bool = True
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Mean log-probability of the tokens of each name at each site, and the same calibrated; float64 arrays `(names,)`.

    Names of equal length share a forward pass. A name that is too long for the window's margin scores minus infinity.
    """
    model, collator = context.model(), context.collator(diagnostics=False)
    encode = context.tokenizer.backend_tokenizer.encode
    scores, calibrated = ([np.full(len(site.names), -np.inf) for site in sites] for _ in range(2))
    # Mean probability of each token over all masks, and the tokens whose share of it is still to be taken off.
    prior, num_masks, waiting = np.zeros(context.config.vocab_size), 0, []
    passes: list[tuple[int, int, list[int], list[list[int]]]] = []
    for number, site in enumerate(sites):
        by_length: dict[int, list[tuple[int, list[int]]]] = {}
        text = site.function.code
        for index, name in enumerate(site.names):
            # Tokenised where it stands, because a byte-level token may hold the space before a name.
            tokens = encode(text[: site.start] + name + text[site.start + len(HOLE) :], add_special_tokens=False)
            starts, ends = np.array(tokens.offsets).reshape(-1, 2).T
            first, last = token_span(starts, ends, site.start, site.start + len(name))
            by_length.setdefault(last - first, []).append((index, tokens.ids[first:last]))
        for length, found in by_length.items():
            if length - places[number][2] <= MARGIN:
                passes.append((number, length, [index for index, _ in found], [ids for _, ids in found]))
    lengths = [windows.lengths[places[number][0]] + length for number, length, _, _ in passes]
    for indices in context.batches(lengths, "scoring names"):
        items = []
        for index in indices:
            number, length, _, _ = passes[int(index)]
            window, root, hole = places[number]
            item = windows[window] if with_leaves else without_facts(windows[window])
            items.append(widened(item, root, hole, context.tokenizer.mask_token_id, length))
        states_BND = model.roberta(**context.inputs(collator(items))).last_hidden_state
        for row, index in enumerate(indices):
            number, length, names, ids = passes[int(index)]
            root = places[number][1]
            logits = model.lm_head(states_BND[row, root : root + length])
            logs = torch.log_softmax(logits.float(), dim=-1).cpu().numpy().astype(np.float64)
            scores[number][names] = logs[np.arange(length), np.array(ids)].mean(axis=1)
            prior, num_masks = prior + np.exp(logs).sum(axis=0), num_masks + length
            waiting.append((number, names, ids))
    log_prior = np.log(prior / max(num_masks, 1))
    for number, names, ids in waiting:
        calibrated[number][names] = scores[number][names] - log_prior[np.array(ids)].mean(axis=1)
    return scores, calibrated


def judge(sites: list[Site], scores: list[np.ndarray]) -> tuple[dict[str, float], np.ndarray]:
    """Figures of one scorer, and the rank of the right name at each site.

    `accuracy` and `mrr` rank the right name among all names; `prefers_right_to_wrong` is the share of sites where the right
    name scores above the one that was put in its place (ties count half); `detection_auc` is the area under the ROC curve
    of "the written name is wrong", scored by how far the best other name lies above the written one, over each site once
    with the right and once with the wrong name.
    """
    # Names that could not be scored come last, but are numbers.
    scores = [np.nan_to_num(found, neginf=-1e9) for found in scores]
    result = load_metric("reciprocal_rank").compute(
        predictions=scores, references=[site.right for site in sites], ks=[1]
    )
    pairs = np.array([(found[site.right], found[site.wrong]) for site, found in zip(sites, scores, strict=True)])
    doubts = [
        [np.delete(found, written).max() - found[written] for written in (site.right, site.wrong)]
        for site, found in zip(sites, scores, strict=True)
    ]
    right, wrong = pairs.T
    figures = {
        "accuracy": result["recall_at_1"],
        "mrr": result["mrr"],
        "prefers_right_to_wrong": float(np.mean((right > wrong) + 0.5 * (right == wrong))),
        "detection_auc": float(roc_auc_score([0, 1] * len(sites), np.array(doubts).ravel())),
    }
    return figures, np.array(result["ranks"])


TASK = VariableMisuse
