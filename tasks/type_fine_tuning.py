"""Fine-tuning on hidden types: a copy of a checkpoint learns the annotations of the training corpus from code without them.

Each step reads some windows of files whose annotations are gone and asks for several of a window's types at once, in leaves
or in the text. Every question has as many masks as the longest type that is asked for; a shorter type is followed by `</s>`,
so that the model learns from the window how long a type is:

    loss = - mean over tokens and ends of log P(token | window)
"""

import copy
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..chain_graphs.linking import LeafEncoder
from ..device_support import warn_of_slow_bfloat16
from .base import TaskContext
from .fine_tuning import optimize
from .queries import Answer, Query, ask_in_leaf, ask_in_text, labels_at
from .type_queries import find_queries, read_files

TEXT_ROOM = 24
"""Tokens of a window that are left free for annotations in the text."""
LONGEST_PREFIX = 4
"""Tokens that may stand between a name and its type."""
BF16_PADDING = 32


@dataclass
class TypeTuningSettings:
    """How to fine-tune.

    Attributes:
        steps: optimizer steps.
        batch_size: windows in a step.
        learning_rate: highest; warmed up over a tenth of the steps, then a cosine to 0.
        max_files: files of the training corpus, drawn by the seed; None takes all.
        max_tokens: longer types are not asked for.
        bf16: bfloat16 autocast.
    """

    steps: int
    batch_size: int
    learning_rate: float
    max_files: int | None
    max_tokens: int
    bf16: bool


def fine_tune_types(
    context: TaskContext, in_leaf: bool, settings: TypeTuningSettings, left_out: Collection[str] = ()
) -> tuple[torch.nn.Module, list[float], dict[str, int]]:
    """Fine-tune a copy of the checkpoint on the types of the training corpus.

    Windows, their order and the types that are asked for depend on the seed alone, not on the checkpoint.

    Args:
        context: the checkpoint.
        in_leaf: ask in leaves; else in the text.
        settings: how to train.
        left_out: projects that are not learned from.

    Returns:
        The model in evaluation mode, the loss of each step, and counts: files, windows and types of the training corpus,
        and the types left out, which are too long or reach over a window's edge.

    Raises:
        ValueError: the training corpus has no type to ask for, or the checkpoint's windows are too small.
    """
    if context.config.num_roots <= TEXT_ROOM + 2:
        raise ValueError(
            f"--type-steps needs a checkpoint with more than {TEXT_ROOM + 2} root tokens in a window, this one has "
            f"{context.config.num_roots}; give 0 steps"
        )
    if not in_leaf and settings.max_tokens > TEXT_ROOM - LONGEST_PREFIX:
        raise ValueError(
            f"--type-max-tokens must be at most {TEXT_ROOM - LONGEST_PREFIX} for types that are asked for in the text with "
            f"--type-steps, got {settings.max_tokens}"
        )
    rows = context.training.rows
    if left_out:
        rows = rows.select([i for i, project in enumerate(rows["project"]) if project not in left_out])
    rows = rows.select(context.sample(len(rows), "files to learn types from", settings.max_files or len(rows)))
    files, _ = read_files(context, rows, "hiding types to learn from")
    asked = [(number, hidden) for number, file in enumerate(files) for hidden in file.hidden]
    # Both ways learn from the same windows: shorter ones, so that annotations in the text have room.
    windows, queries = find_queries(context, files, asked, num_roots=context.config.num_roots - TEXT_ROOM)
    encode = LeafEncoder(context.tokenizer)
    by_window: dict[int, list[tuple[Query, list[int]]]] = defaultdict(list)
    for query in queries:
        tokens = encode(query.hidden.type)
        if 1 <= len(tokens) <= settings.max_tokens:
            by_window[query.window].append((query, tokens))
    if not by_window:
        raise ValueError("the training corpus has no annotation to learn types from; give one that has, or 0 steps")
    numbers = sorted(by_window)
    counts = {
        "files_to_learn_from": len(files),
        "windows_to_learn_from": len(numbers),
        "types_to_learn_from": sum(map(len, by_window.values())),
    }
    counts["types_left_out_of_learning"] = len(asked) - counts["types_to_learn_from"]
    masks, end = [context.tokenizer.mask_token_id] * settings.max_tokens, context.tokenizer.sep_token_id
    collator = context.collator(pad_to_multiple_of=BF16_PADDING if settings.bf16 else None)
    if settings.bf16:
        warn_of_slow_bfloat16(context.device)
    order = context.generator("order of types to learn from")
    torch.manual_seed(context.arguments.seed)
    model = copy.deepcopy(context.model()).train()
    waiting: list[int] = []

    def loss_of_step() -> torch.Tensor:
        nonlocal waiting
        while len(waiting) < settings.batch_size:
            waiting = [*waiting, *order.permutation(numbers).tolist()]
        chosen, waiting = waiting[: settings.batch_size], waiting[settings.batch_size :]
        asked = [ask_all(windows[n], by_window[n], masks, end, context.config, in_leaf) for n in chosen]
        batch = collator([item for item, _ in asked])
        labels = labels_at(batch, [answers for _, answers in asked])
        with torch.autocast(context.device.type, torch.bfloat16, enabled=settings.bf16):
            logits_MV = context.predict(batch | {"labels": labels}, model).logits
        return F.cross_entropy(logits_MV.float(), labels[labels >= 0].to(logits_MV.device))

    losses = optimize(context, model, loss_of_step, settings.steps, settings.learning_rate, "learning types")
    return model.eval(), losses, counts


def ask_all(
    item: dict, questions: list[tuple[Query, list[int]]], masks: list[int], end: int, config, in_leaf: bool
) -> tuple[dict, list[Answer]]:
    """Ask for several types in one window.

    Args:
        item: of a `WindowDataset`.
        questions: queries with the tokens of their types, at most as many as there are masks.
        masks: the mask tokens of each question.
        end: the token that belongs behind a type of fewer tokens.
        config: of the model.
        in_leaf: ask in leaves; else in the text, as many as the window has room for, the last places first.

    Returns:
        The item with the masks, and what belongs at them, as `labels_at` takes it.
    """
    questions = [(query, [*tokens, end][: len(masks)]) for query, tokens in questions]
    answers: list[Answer] = []
    if in_leaf:
        for query, tokens in questions:
            item, where = ask_in_leaf(item, query, masks, config)
            answers.append((where, tokens))
        return item, answers
    room = config.num_roots - len(item["input_ids"])
    # A name's place is behind it, so questions put in at later places do not move it.
    for query, tokens in sorted(questions, key=lambda question: -question[0].place):
        size = len(query.prefix) + len(masks)
        if size > room:
            continue
        room -= size
        item, where = ask_in_text(item, query, masks, config)
        answers = [(where, tokens), *(((root + size, slot), words) for (root, slot), words in answers)]
    return item, answers
