"""Tail prediction: all words of a leaf are hidden, its relation and head are shown, and the LM head names them.

Every token of the leaf becomes the mask token, so the number of masks tells the tail's length; lookups are told it too. The
tokens are predicted at once, in one forward pass. Tails are told apart by where else they stand:

    visible     the leaf's words stand one after the other in the window's text
    invisible   they do not
    no_copy     moreover the leaf's first word stands nowhere in the text nor in another leaf that is shown

That a tail is one of the last kind says something of it: what stands in the window is wrong. `_no_copy_excluding` gives
every judge what the choice of these tails gives away, by taking these words out of the answers, as `loss_clean_excluding`
does for masked tokens. With `--tail-table` the checkpoint is also judged on them together with a table of the training
corpus (`tail_table`): figures with `_with_table` in the end; with `_with_project` together with that and with what the
project's other files say of the same relation and head. How much each of them counts is fitted on the tails of the other
projects that are tested on, none of which was trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from transformers.utils import logging

from ..chain_graphs.windows import WindowDataset, canonical_ids
from .base import NotApplicable, Task, TaskContext, TaskResult
from .corpora import Corpus
from .tail_table import COLUMNS, ELSEWHERE, EXPERTS, TOKEN, TOP, Opinions, score_tail_lookups, tails_table, with_files

logger = logging.get_logger(__name__)


@dataclass
class TailPredictionOptions:
    """Options of `tail_prediction`."""

    _argument_group_name: ClassVar[str] = "tail_prediction"

    tail_share: float = field(default=0.15, metadata={"help": "Share of a window's facts whose tail is hidden."})
    tail_table: bool = field(
        default=True,
        metadata={
            "help": "Also judge the checkpoint together with a table of the training corpus and with what the project's "
            "other files say, on tails without a copy in sight, weighed on the other projects that are tested on."
        },
    )


class TailPrediction(Task):
    """First token top-1 and top-5, and the whole tail exactly."""

    name = "tail_prediction"
    options_class = TailPredictionOptions

    def run(self, context: TaskContext, options: TailPredictionOptions) -> TaskResult:
        if not context.use_graph:
            raise NotApplicable("without leaves there is no tail to predict")
        windows = context.windows(context.test, context.arguments.max_examples)
        tails, asked = predict_tails(context, windows, options.tail_share)
        log_p, shown = tails.pop("log_p"), tails.pop("shown")
        groups = {
            "": np.ones_like(tails["visible"]),
            "_visible": tails["visible"],
            "_invisible": ~tails["visible"],
            "_no_copy": tails["no_copy"],
        }
        counted = count_tails(context, context.training)
        lookups = score_tail_lookups(counted, asked)
        by_relation = {}
        for index, name in enumerate(context.config.relation_names):
            chosen = tails["relation"] == index
            if chosen.any():
                figures = figures_of(tails["first_rank"], tails["whole"], {"": chosen})
                by_relation[name] = {"tails": int(chosen.sum()), **figures}
        result = TaskResult(
            figures=figures_of(tails["first_rank"], tails["whole"], groups),
            baselines={name: figures_of(*found, groups) for name, found in lookups.items()},
            counts={
                "windows": len(windows),
                **{"hidden_tails" + suffix: int(chosen.sum()) for suffix, chosen in groups.items()},
            },
            details={
                "trained_to_predict_tails": context.config.mnm_target != "relation",
                "by_relation": by_relation,
            },
            examples=tails,
        )
        if tails["no_copy"].any():
            opinions = _opinions_without_copies(context, windows, tails["no_copy"], log_p, shown, counted, asked)
            _judge_opinions(options, opinions, result)
        return result


def _opinions_without_copies(
    context: TaskContext, windows: WindowDataset, no_copy: np.ndarray, log_p, shown, counted, asked
) -> Opinions:
    """Opinions on the tails of which no copy is in sight, asked for in some windows of the test corpus."""
    projects, places = context.test.rows["project"], np.flatnonzero(no_copy)
    return Opinions.of(
        log_p[places],
        [shown[i] for i in places],
        canonical_ids(context.tokenizer),
        counted,
        with_files(asked.iloc[places], windows, projects),
        count_tails(context, context.test, projects),
    )


def count_tails(context: TaskContext, corpus: Corpus, projects: Sequence[str] | None = None) -> pd.DataFrame:
    """All tails of a corpus (`tails_table`).

    Args:
        context: its windows.
        corpus: `training` or `test`.
        projects: of each file; with them the table has `file` and `project` (`with_files`).
    """
    canonical = canonical_ids(context.tokenizer)

    def count(windows: WindowDataset) -> pd.DataFrame:
        table = tails_table(context.progress(windows, "counting tails", total=len(windows)), canonical)
        return table if projects is None else with_files(table, windows, projects)

    return context.counted("tails" if projects is None else "tails-of-files", corpus, count)


def _judge_opinions(options: TailPredictionOptions, opinions: Opinions, result: TaskResult) -> None:
    """Add what checkpoint and lookups make of tails without a copy, words of the window excluded, alone and together.

    Args:
        options: of the task.
        opinions: on the tails that are asked for.
        result: of the task so far.
    """

    def figures_by(ranks: np.ndarray) -> dict[str, float]:
        return first_figures(ranks, {"_no_copy_excluding": np.ones(len(ranks), dtype=bool)})

    result.figures |= figures_by(opinions.only(0).ranks([1]))
    table = range(1, len(EXPERTS) + 1)
    elsewhere = len(EXPERTS) + 1
    for place, name in zip((*table, elsewhere), (*EXPERTS, ELSEWHERE), strict=True):
        result.baselines.setdefault(name, {}).update(figures_by(opinions.only(place).ranks([1])))
    if not options.tail_table:
        return
    num_projects = len(opinions.projects_to_weigh_on)
    if num_projects < 2:
        logger.warning(
            "--tail-table: checkpoint and table are weighed on the other projects of the test corpus, of which at least two "
            f"must have a tail without a copy that one of them knows, here {num_projects}; the checkpoint is judged alone"
        )
        return
    result.details["weights"] = {"projects": num_projects}
    for suffix, name, places in (
        ("_with_table", "the table", table),
        ("_with_project", "the table and the project's other files", (*table, elsewhere)),
    ):
        ranks, weights = opinions.only(0, *places).cross_fitted()
        result.figures |= {key + suffix: value for key, value in figures_by(ranks).items()}
        result.baselines[name] = figures_by(opinions.only(*places).cross_fitted()[0])
        parts = ("model", *EXPERTS, ELSEWHERE)[: len(weights)]
        result.details["weights"][name] = dict(zip(parts, weights.round(3).tolist(), strict=True))
        # -1 where a copy is in sight.
        every = np.full(len(result.examples["no_copy"]), -1)
        every[result.examples["no_copy"]] = ranks
        result.examples["first_rank" + suffix] = every


def predict_tails(
    context: TaskContext, windows: WindowDataset, share: float, description: str = "tail_prediction"
) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Hide a share of the tails and predict them.

    Args:
        context: the checkpoint.
        windows: with leaves.
        share: of a window's facts.
        description: of the progress bar.

    Returns:
        Arrays (tails,) in the order of windows and columns: `window`, `column`, `relation` int64; `visible`, `no_copy`;
        `first_rank`: other tokens that the model likes at least as well as the tail's first; `whole`: all tokens are the
        model's first choice; `log_p` of the first token, float16 (tails, vocab_size), and `shown`, a list with the
        canonical ids of what stands in the window and its leaves. And the columns of `tails_table` of each tail, with the
        number of its window.

    Raises:
        ValueError: not a single tail was hidden.
    """
    collator = context.collator(mnm_probability=share, mnm_target="tail")
    canonical, mask = canonical_ids(context.tokenizer), context.tokenizer.mask_token_id
    rows, features, opinions, stands = [], [], [], []
    for indices in context.batches(windows.lengths, description):
        batch = collator([windows[int(i)] for i in indices])
        hidden = batch["labels"] >= 0
        # The collator leaves 10 % of the tails as they are and makes 10 % random, which is for training only.
        batch["input_ids"] = torch.where(hidden, mask, batch["input_ids"])
        logits = context.predict(batch).logits.float()
        labels = batch["labels"][hidden].to(logits.device)
        rank = (logits >= logits.gather(1, labels[:, None])).sum(1).cpu().numpy() - 1
        right = (logits.argmax(1) == labels).cpu().numpy()
        row, column = hidden.numpy().nonzero()
        arrays = {name: value.numpy() for name, value in batch.items()}
        begins = np.flatnonzero(arrays["fact_place"][row, column] == 0)
        # Half precision: all of them are kept, a vocabulary for each tail.
        opinions.append(torch.log_softmax(logits[begins], dim=-1).half().cpu().numpy())
        ids_shown = [
            np.unique(canonical[ids[is_node > 0]])
            for ids, is_node in zip(arrays["input_ids"], arrays["attention_mask"], strict=True)
        ]
        for low, high in pairwise([*begins.tolist(), len(row)]):
            r, c = row[low], column[low]
            ids, tail = arrays["input_ids"][r], arrays["labels"][r, column[low:high]].tolist()
            shown = ids_shown[r]
            visible = arrays["leaf_in_window"][r, c] > 0
            no_copy = not visible and canonical[tail[0]] not in shown
            relation = arrays["relation_ids"][r, c]
            rows.append((indices[r], c, relation, visible, no_copy, rank[low], right[low:high].all()))
            start = arrays["head_start"][r, c]
            head = ids[start : start + arrays["head_length"][r, c]]
            ends = canonical[head[0]], canonical[head[-1]]
            words, whole = head.astype(TOKEN).tobytes(), np.array(tail, dtype=TOKEN).tobytes()
            reversed_ = arrays["relation_reversed"][r, c]
            features.append((indices[r], relation, reversed_, words, *ends, len(tail), tail[0], whole))
            stands.append(shown)
    if not rows:
        raise ValueError(f"{description}: no tail was hidden; the corpus has no facts, or too few windows were taken")
    order = sorted(range(len(rows)), key=lambda i: rows[i][:2])
    names = ("window", "column", "relation", "visible", "no_copy", "first_rank", "whole")
    columns = zip(*(rows[i] for i in order), strict=True)
    tails = {name: np.array(values) for name, values in zip(names, columns, strict=True)}
    tails |= {"log_p": np.concatenate(opinions)[order], "shown": [stands[i] for i in order]}
    return tails, pd.DataFrame([features[i] for i in order], columns=["window", *COLUMNS])


def first_figures(rank: np.ndarray, groups: dict[str, np.ndarray]) -> dict[str, float]:
    """Shares of first tokens ranked first and among the first five, by group."""
    figures = {}
    for suffix, chosen in groups.items():
        if chosen.any():
            figures["first_top1" + suffix] = float((rank[chosen] < 1).mean())
            figures[f"first_top{TOP}" + suffix] = float((rank[chosen] < TOP).mean())
    return figures


def figures_of(rank: np.ndarray, whole: np.ndarray, groups: dict[str, np.ndarray]) -> dict[str, float]:
    """Shares of first tokens ranked first and among the first five, and of whole tails, by group."""
    figures = first_figures(rank, groups)
    return figures | {
        "whole" + suffix: float(whole[chosen].mean()) for suffix, chosen in groups.items() if chosen.any()
    }


TASK = TailPrediction
