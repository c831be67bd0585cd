"""Relation prediction: the relation of a leaf is hidden, and the relation head names it, beside lookups.

The text is whole unless `--relation-mlm-probability` masks some of it; tail and head stay in sight. Lookups are told what
the model is told and count on the training corpus (`chain_graphs.baselines`).
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from ..chain_graphs.baselines import relation_baselines, relation_scores
from ..pretraining_metrics import node_relation_logits
from .base import NotApplicable, Task, TaskContext, TaskResult
from .leaf_order import neighbour_lookups


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
        scores = relation_scores(found["relation"].tolist(), found["predicted"].tolist(), found["visible"].tolist())
        number = scores.pop("num_relations_masked")
        trained = context.windows(context.training)
        baselines = relation_baselines(trained, windows, collator)
        baselines |= neighbour_lookups(context, trained, windows, collator)
        for figures in baselines.values():
            if figures.pop("num_relations_masked") != number:
                raise RuntimeError("the lookups were scored on other facts than the model")
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
            },
            details={"by_relation": by_relation},
            examples=found,
        )


def predict_relations(context: TaskContext, windows, collator) -> dict[str, np.ndarray]:
    """What the relation head says of each hidden relation.

    Args:
        context: the checkpoint.
        windows: a `WindowDataset`.
        collator: hides the relations.

    Returns:
        `relation`, `predicted`, `visible`, `window`: int64 (facts,), in the order of windows and columns.
    """
    parts = []
    for indices in context.batches(windows.lengths, "relation_prediction"):
        batch = collator([windows[int(i)] for i in indices])
        logits = context.predict(batch).relation_logits.cpu()
        predicted = node_relation_logits(logits, batch).argmax(-1)
        row, column = (batch["relation_labels"] >= 0).nonzero(as_tuple=True)
        values = (batch["relation_labels"], predicted, batch["leaf_in_window"])
        parts.append(torch.stack([*(value[row, column] for value in values), torch.as_tensor(indices)[row], column]))
    table = torch.cat(parts, dim=1).numpy()
    if table.shape[1] == 0:
        raise ValueError("no relation was hidden: the corpus has no facts, or too few windows were taken")
    table = table[:, np.lexsort((table[4], table[3]))]
    return dict(zip(("relation", "predicted", "visible", "window"), table[:4], strict=True))


TASK = RelationPrediction
