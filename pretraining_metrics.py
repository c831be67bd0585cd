"""Sums from which losses, accuracies and macro-F1 are made, so that they are exact however the data was split.

Every figure of a data set is a ratio of sums over its examples. The sums are kept for each example, so that processes
can drop the examples that were added to even out their last batch.

Shape legend: B rows, N nodes, G examples (B unless rows are packed), R roots, L leaf slots, C relations, V vocabulary,
T labelled nodes, S columns of sums.
"""

import numpy as np
import torch
import torch.nn.functional as F

# Added to batches by the collator's `diagnostics`; not for the model.
DIAGNOSTIC_INPUTS = ("label_in_leaf", "leaf_in_window", "fact_place")

# For each kind of prediction three columns: sum of losses, number correct, number of targets. "in_leaf": masked tokens
# that also stand in a leaf of the input. "visible": tails that also stand in the window's text.
_KINDS = ("mlm", "mlm_in_leaf", "tail", "tail_visible")
COLUMNS = (
    *(f"{kind}_{what}" for kind in _KINDS for what in ("loss", "correct", "count")),
    "relation_loss",
    "relation_visible_loss",
    "sbo_loss",
    "sbo_count",
)


def num_columns(num_relations: int) -> int:
    """S: the named columns and two confusion matrices (tails that the window does not show, tails that it shows)."""
    return len(COLUMNS) + 2 * num_relations**2


def labelled_positions(labels: torch.Tensor, num_labelled: int) -> torch.Tensor:
    """Flat indices of the labelled nodes in row-major order, without waiting for the device.

    Args:
        labels: int64 (B, N), -100 where there is no label.
        num_labelled: how many nodes have one.

    Returns:
        int64 (num_labelled,).
    """
    return (labels.flatten() == -100).to(torch.uint8).argsort(stable=True)[:num_labelled]


def node_relation_logits(relation_logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Relation logits of each node from the canonical layout.

    Args:
        relation_logits: (G, R, L, C).
        inputs: batch with `root_index` and `leaf_index` (B, N), and `graph_ids` where rows are packed.

    Returns:
        (B, N, C); at nodes that are no leaves, those of their root's first slot.
    """
    graphs = graph_of_node(inputs).clamp(min=0)
    return relation_logits[graphs, inputs["root_index"], inputs["leaf_index"].clamp(min=0)]


def graph_of_node(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The number of each node's example in the batch: (B, N) or, where rows are examples, (B, 1)."""
    if "graph_ids" in inputs:
        return inputs["graph_ids"]
    return torch.arange(len(inputs["root_index"]), device=inputs["root_index"].device)[:, None]


def num_examples(inputs: dict[str, torch.Tensor]) -> int:
    """G: the examples of a batch, one for each row unless rows are packed."""
    if "graph_ids" not in inputs:
        return len(inputs["root_index"])
    return inputs["indices"]["graph_nodes"].shape[0]


def example_sums(
    losses: torch.Tensor | None,
    predictions: torch.Tensor | None,
    relation_logits: torch.Tensor | None,
    inputs: dict[str, torch.Tensor],
    num_relations: int,
    with_losses: bool = True,
) -> torch.Tensor:
    """Sums for each example of a batch, computed without waiting for the device.

    Args:
        losses, predictions: float (T,) and int64 (T,), loss and likeliest token of the labelled nodes in row-major order.
        relation_logits: (G, R, L, C).
        inputs: the collator's batch; with `DIAGNOSTIC_INPUTS`, the figures are also split by them.
        num_relations: C.
        with_losses: leave the loss columns 0 where only counts are wanted.

    Returns:
        float32 (G, S), columns as in `COLUMNS` and `num_columns`.
    """
    labels, relation_labels = inputs["labels"], inputs["relation_labels"]
    sums = torch.zeros(num_examples(inputs), num_columns(num_relations), device=labels.device)
    # Padding has no labels; it may count as part of the first example.
    graph = graph_of_node(inputs).expand_as(labels).clamp(min=0).flatten()

    if predictions is not None and len(predictions):
        known = inputs.get("indices", {}).get("labelled_nodes")
        position = labelled_positions(labels, len(predictions)) if known is None else known
        target = labels.flatten()[position]
        loss = losses.float() if with_losses else torch.zeros_like(target, dtype=torch.float32)
        values = torch.stack([loss, (predictions == target).float(), torch.ones_like(loss)], dim=1)
        is_leaf = inputs["leaf_index"].flatten()[position] >= 0
        kinds = [~is_leaf, _flag(inputs, "label_in_leaf", position) & ~is_leaf]
        kinds += [is_leaf, _flag(inputs, "leaf_in_window", position) & is_leaf]
        columns = torch.cat([values * kind[:, None] for kind in kinds], dim=1)
        sums[:, : columns.shape[1]].index_add_(0, graph[position], columns)

    # Without leaf slots there is no relation to predict.
    if relation_logits is not None and relation_logits.shape[2]:
        logits_BNC = node_relation_logits(relation_logits, inputs).float()
        has_label = relation_labels != -100
        target = relation_labels.clamp(min=0)
        visible = inputs["leaf_in_window"] > 0 if "leaf_in_window" in inputs else torch.zeros_like(has_label)
        cell = (visible * num_relations + target) * num_relations + logits_BNC.argmax(-1)
        # Unlabelled nodes fall into one more cell, which is cut off.
        cell = torch.where(has_label, cell, 2 * num_relations**2).flatten()
        confusion = torch.zeros(len(sums), 2 * num_relations**2 + 1, device=labels.device)
        cell = graph * confusion.shape[1] + cell
        confusion.view(-1).index_add_(0, cell, torch.ones_like(cell, dtype=confusion.dtype))
        sums[:, len(COLUMNS) :] = confusion[:, :-1]
        if with_losses:
            loss = F.cross_entropy(logits_BNC.flatten(0, 1), target.flatten(), reduction="none")
            for name, counted in (("relation_loss", has_label), ("relation_visible_loss", has_label & visible)):
                sums[:, COLUMNS.index(name)].index_add_(0, graph, loss * counted.flatten())
    return sums


def _flag(inputs: dict[str, torch.Tensor], name: str, position: torch.Tensor) -> torch.Tensor:
    if name not in inputs:
        return torch.zeros_like(position, dtype=torch.bool)
    return inputs[name].flatten()[position] > 0


def macro_f1(confusion: np.ndarray) -> float:
    """Mean F1 of the classes that occur among the labels.

    The same as `sklearn.metrics.f1_score(labels, predictions, labels=numpy.unique(labels), average="macro")`: a class
    that is predicted but never occurs is not averaged in; the predictions are still misses of their own classes.

    Args:
        confusion: (C, C) counts, rows are labels, columns predictions.

    Returns:
        A number in [0, 1]; NaN without any label.
    """
    confusion = np.asarray(confusion, dtype=np.float64)
    present = confusion.sum(1) > 0
    if not present.any():
        return float("nan")
    f1 = 2 * np.diag(confusion) / np.maximum(confusion.sum(0) + confusion.sum(1), 1)
    return float(f1[present].mean())


def figures_from_sums(
    totals: np.ndarray, num_relations: int, mnm_target: str, mlm_weight: float, mnm_weight: float, split: bool
) -> dict[str, float]:
    """Losses, accuracies and macro-F1 from sums over a data set.

    Args:
        totals: (S,) sums of `example_sums` over all examples.
        num_relations: C.
        mnm_target: "relation", "tail" or "both", as in the model's configuration.
        mlm_weight, mnm_weight: weights of the two losses.
        split: also give the figures that the collator's diagnostics split.

    Returns:
        Figures by name; a figure without targets is left out.
    """
    value = dict(zip(COLUMNS, np.asarray(totals, dtype=np.float64), strict=False))
    confusions = np.asarray(totals, dtype=np.float64)[len(COLUMNS) :].reshape(2, num_relations, num_relations)
    result: dict[str, float] = {"loss": 0.0}

    def add(name: str, loss: float, correct: float, count: float, suffix: str = "") -> None:
        if count:
            result[f"{name}_loss{suffix}"] = loss / count
            result[f"{name}_accuracy{suffix}"] = correct / count
            result[f"{name}_count{suffix}"] = int(count)

    def add_relation(name: str, loss: float, confusion: np.ndarray, suffix: str = "") -> None:
        add(name, loss, np.trace(confusion), confusion.sum(), suffix)
        if confusion.sum():
            result[f"{name}_macro_f1{suffix}"] = macro_f1(confusion)

    add("mlm", *(value[f"mlm_{what}"] for what in ("loss", "correct", "count")))
    if split:
        inside = [value[f"mlm_in_leaf_{what}"] for what in ("loss", "correct", "count")]
        add("mlm", *inside, suffix="_in_leaf")
        rest = [value[f"mlm_{what}"] - part for what, part in zip(("loss", "correct", "count"), inside, strict=True)]
        add("mlm", *rest, suffix="_not_in_leaf")
    if mnm_target != "tail":
        relation = "mnm" if mnm_target == "relation" else "mnm_relation"
        add_relation(relation, value["relation_loss"], confusions.sum(0))
        if split:
            visible_loss = value["relation_visible_loss"]
            add_relation(relation, visible_loss, confusions[1], "_visible")
            add_relation(relation, value["relation_loss"] - visible_loss, confusions[0], "_invisible")
    if mnm_target != "relation":
        tail = "mnm" if mnm_target == "tail" else "mnm_tail"
        whole = [value[f"tail_{what}"] for what in ("loss", "correct", "count")]
        add(tail, *whole)
        if split:
            visible = [value[f"tail_visible_{what}"] for what in ("loss", "correct", "count")]
            add(tail, *visible, suffix="_visible")
            add(tail, *(a - b for a, b in zip(whole, visible, strict=True)), suffix="_invisible")
    if mnm_target == "both":
        parts = [result.get("mnm_relation_loss", 0.0), result.get("mnm_tail_loss", 0.0)]
        result["mnm_loss"] = sum(parts) / 2
    result["loss"] = mlm_weight * result.get("mlm_loss", 0.0) + mnm_weight * result.get("mnm_loss", 0.0)
    if value["sbo_count"]:
        result["sbo_loss"] = value["sbo_loss"] / value["sbo_count"]
        result["loss"] += mlm_weight * result["sbo_loss"]
    return result
