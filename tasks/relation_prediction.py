"""Relation prediction: the relation of a leaf is hidden, and the relation head names it, beside lookups.

The text is whole unless `--relation-mlm-probability` masks some of it; tail and head stay in sight. Lookups are told what
the model is told and count on the training corpus (`chain_graphs.baselines`). With `--relation-table` the checkpoint is also
judged together with a table of the training corpus (`relation_table`): figures with `_with_table` in the end.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from ..chain_graphs.baselines import relation_scores
from ..pretraining_metrics import node_relation_logits
from .base import NotApplicable, Task, TaskContext, TaskResult
from .relation_table import EXPERTS, RelationTable, pooled


@dataclass
class RelationPredictionOptions:
    """Options of `relation_prediction`."""

    _argument_group_name: ClassVar[str] = "relation_prediction"

    relation_share: float = field(
        default=0.15, metadata={"help": "Share of a window's facts whose relation is hidden."}
    )
    relation_mlm_probability: float = field(
        default=0.0, metadata={"help": "Share of the window's tokens that are masked."}
    )
    relation_table: bool = field(
        default=True,
        metadata={
            "help": "Also judge the checkpoint together with a table of the training corpus, weighed on the projects that "
            "were held out of it."
        },
    )


class RelationPrediction(Task):
    """Accuracy and macro-F1 of hidden relations, for tails that stand in the window and that do not."""

    name = "relation_prediction"
    options_class = RelationPredictionOptions

    def run(self, context: TaskContext, options: RelationPredictionOptions) -> TaskResult:
        config = context.config
        if not context.use_graph:
            raise NotApplicable("without leaves there is no relation to predict")
        if config.mnm_target == "tail" or "relation_head.weight" in context.missing_parameters:
            raise NotApplicable(f"its relation head was not trained (mnm_target is {config.mnm_target!r})")
        windows = context.windows(context.test, context.arguments.max_examples)
        collator = context.collator(
            mlm_probability=options.relation_mlm_probability,
            mnm_probability=options.relation_share,
            mnm_target="relation",
            masked_span_leaves=context.recipe.get("masked_span_leaves", "drop"),
        )
        found = predict_relations(context, windows, collator)
        log_p, gold, visible = found.pop("log_p"), found["relation"].tolist(), found["visible"].tolist()
        table = RelationTable.count(context, context.training)
        asked = RelationTable.ask(context, windows, collator)
        if asked.facts["relation"].tolist() != gold:
            raise RuntimeError("the lookups were scored on other facts than the model")
        scores = relation_scores(gold, found["predicted"].tolist(), visible)
        number = scores.pop("num_relations_masked")
        baselines, counts, details = table.lookups(asked), {}, {}
        held_out = context.corpus_to_weigh_on("--relation-table") if options.relation_table else None
        if held_out is not None:
            pool = _pool_with_table(context, context.windows(held_out), collator, table, asked, log_p)
            found["predicted_with_table"] = pool.together
            together = relation_scores(gold, pool.together.tolist(), visible)
            del together["num_relations_masked"]
            scores |= {f"{name}_with_table": value for name, value in together.items()}
            baselines["the table"] = relation_scores(gold, pool.table_alone.tolist(), visible)
            counts["relations_to_weigh_on"] = pool.num_weighed_on
            details["weights"] = {"projects": held_out.projects, **pool.weights}
        for figures in baselines.values():
            figures.pop("num_relations_masked")
        by_relation = {
            name: {
                "facts": int((found["relation"] == index).sum()),
                "accuracy": float((found["predicted"] == index)[found["relation"] == index].mean()),
            }
            for index, name in enumerate(config.relation_names)
            if (found["relation"] == index).any()
        }
        return TaskResult(
            figures=scores,
            baselines=baselines,
            counts={
                "windows": len(windows),
                "hidden_relations": number,
                "hidden_relations_visible_tail": int(found["visible"].sum()),
                **counts,
            },
            details={"by_relation": by_relation, **details},
            examples=found,
        )


@dataclass(frozen=True)
class _Pool:
    """What checkpoint and table say together, and the table alone, int64 (facts,); how they are weighed, and on how many."""

    together: np.ndarray
    table_alone: np.ndarray
    weights: dict[str, float]
    num_weighed_on: int


def _pool_with_table(
    context: TaskContext, weighed_on, collator, table: RelationTable, asked: RelationTable, log_p: np.ndarray
) -> _Pool:
    """Pool checkpoint and table.

    Args:
        context: the checkpoint.
        weighed_on: windows of projects that neither has learned from.
        collator: hides the relations.
        table: of the training corpus.
        asked, log_p: the facts, and what the checkpoint says of them (facts, num_relations).
    """
    theirs = predict_relations(context, weighed_on, collator, "weighing")
    known = table.log_p(RelationTable.ask(context, weighed_on, collator), context.config.num_relations)
    asked_known = table.log_p(asked, context.config.num_relations)
    both = np.concatenate([theirs["log_p"][..., None], known], axis=-1)
    together, weights = pooled(both, theirs["relation"], np.concatenate([log_p[..., None], asked_known], axis=-1))
    table_alone, _ = pooled(known, theirs["relation"], asked_known)
    named = dict(zip(("model", *EXPERTS), weights.round(3).tolist(), strict=True))
    return _Pool(together, table_alone, named, len(known))


def predict_relations(
    context: TaskContext, windows, collator, description: str = "relation_prediction"
) -> dict[str, np.ndarray]:
    """What the relation head says of each hidden relation.

    Args:
        context: the checkpoint.
        windows: a `WindowDataset`.
        collator: hides the relations.
        description: of the progress bar.

    Returns:
        `relation`, `predicted`, `visible`, `window`: int64 (facts,), in the order of windows and columns, and `log_p`
        float32 (facts, num_relations).
    """
    parts, scores = [], []
    for indices in context.batches(windows.lengths, description):
        batch = collator([windows[int(i)] for i in indices])
        logits = node_relation_logits(context.predict(batch).relation_logits.cpu(), batch)
        predicted = logits.argmax(-1)
        row, column = (batch["relation_labels"] >= 0).nonzero(as_tuple=True)
        values = (batch["relation_labels"], predicted, batch["leaf_in_window"])
        parts.append(torch.stack([*(value[row, column] for value in values), torch.as_tensor(indices)[row], column]))
        scores.append(torch.log_softmax(logits[row, column].float(), dim=-1))
    table = torch.cat(parts, dim=1).numpy()
    if table.shape[1] == 0:
        raise ValueError(
            f"{description}: no relation was hidden; the corpus has no facts, or too few windows were taken"
        )
    order = np.lexsort((table[4], table[3]))
    names = ("relation", "predicted", "visible", "window")
    return {**dict(zip(names, table[:4, order], strict=True)), "log_p": torch.cat(scores).numpy()[order]}


TASK = RelationPrediction
