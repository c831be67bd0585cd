"""Fine-tuning in a task: its loop, and the contrastive one of a bi-encoder, each question against its batch's functions.

A plain loop and not a trainer of another library: the batches are graphs, which the project's own collator lays out, and
what decides a comparison of checkpoints (pairs, order, dropped leaves) must be a function of the seed alone.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from transformers import get_cosine_schedule_with_warmup

from ..device_support import warn_of_slow_bfloat16
from .base import TaskContext
from .retrieval import TextWindows, pooled_states

CLIP_NORM = 1.0
WARMUP_SHARE = 0.1
WEIGHT_DECAY = 0.01
PART = 8


@dataclass
class ContrastiveSettings:
    """How to fine-tune.

    Attributes:
        steps: optimizer steps.
        batch_size: pairs in a step; the other functions of the batch are the negatives.
        learning_rate: highest; warmed up over a tenth of the steps, then a cosine to 0.
        temperature: divides the cosines.
        extra_dropout: share of the functions that are given without their leaves (or context).
        bf16: bfloat16 autocast.
    """

    steps: int = 160
    batch_size: int = 32
    learning_rate: float = 1e-3
    temperature: float = 0.05
    extra_dropout: float = 0.3
    bf16: bool = False

    def __post_init__(self):
        for name, valid, text in (
            ("steps", self.steps >= 0, "0 or more"),
            (
                "batch_size",
                self.batch_size >= 2,
                "at least 2, because the other functions of a batch are the negatives",
            ),
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("temperature", self.temperature > 0, "above 0"),
            ("extra_dropout", 0 <= self.extra_dropout <= 1, "in [0, 1]"),
        ):
            if not valid:
                raise ValueError(f"{name} of the fine-tuning must be {text}, got {getattr(self, name)}")


def contrastive_loss(questions_BD: torch.Tensor, texts_BD: torch.Tensor, temperature: float) -> torch.Tensor:
    """InfoNCE with the batch's other texts as negatives (van den Oord et al. 2018, eq. 4).

    Args:
        questions_BD, texts_BD: float (B, D), of any length; row i of one belongs to row i of the other.
        temperature: divides the cosines.

    Returns:
        float (), mean over questions.
    """
    scores_BB = F.normalize(questions_BD, dim=-1) @ F.normalize(texts_BD, dim=-1).T / temperature
    return F.cross_entropy(scores_BB, torch.arange(len(scores_BB), device=scores_BB.device))


def first_states(encoder, texts: TextWindows, chosen: np.ndarray, with_extra: np.ndarray) -> torch.Tensor:
    """Summed states of the first windows of some texts, float (B, D), read in parts of similar length to save padding."""
    windows = texts.first[chosen]
    order = np.argsort(texts.lengths[windows], kind="stable")
    parts = [order[start : start + PART] for start in range(0, len(order), PART)]
    states_BD = torch.cat([pooled_states(encoder, *texts.batch(windows[part], with_extra[part])) for part in parts])
    return states_BD[torch.from_numpy(np.argsort(np.concatenate(parts))).to(states_BD.device)]


def fine_tune(
    context: TaskContext, questions: TextWindows, texts: TextWindows, settings: ContrastiveSettings
) -> tuple[torch.nn.Module, list[float]]:
    """Fine-tune a copy of the checkpoint's encoder on pairs of a question and a text; one encoder reads both.

    The first window of each is read. The order of the pairs and the choice of texts without leaves depend on the seed
    alone, not on the checkpoint.

    Args:
        context: the checkpoint.
        questions, texts: pair i is text i of both.
        settings: how to train.

    Returns:
        The encoder in evaluation mode, and the loss of each step.

    Raises:
        ValueError: fewer pairs than a batch holds.
    """
    number, size = texts.num_texts, settings.batch_size
    if number < size:
        raise ValueError(
            f"fine-tuning has {number} pairs, fewer than a batch of {size}; give a larger training corpus"
        )
    if settings.bf16:
        warn_of_slow_bfloat16(context.device)
    order, keeps = context.generator("fine-tuning order"), context.generator("fine-tuning leaves")
    torch.manual_seed(context.arguments.seed)
    encoder = copy.deepcopy(context.model().roberta).train()
    waiting = np.zeros(0, dtype=np.int64)

    def loss_of_step() -> torch.Tensor:
        nonlocal waiting
        if len(waiting) < size:
            waiting = order.permutation(number)
        pairs, waiting = waiting[:size], waiting[size:]
        with_extra = keeps.random(size) >= settings.extra_dropout
        with torch.autocast(context.device.type, torch.bfloat16, enabled=settings.bf16):
            asked_BD = first_states(encoder, questions, pairs, np.zeros(size, dtype=bool))
            texts_BD = first_states(encoder, texts, pairs, with_extra)
        return contrastive_loss(asked_BD.float(), texts_BD.float(), settings.temperature)

    losses = optimize(context, encoder, loss_of_step, settings.steps, settings.learning_rate, "fine-tuning")
    return encoder.eval(), losses


def optimize(
    context: TaskContext,
    model: torch.nn.Module,
    loss_of_step: Callable[[], torch.Tensor],
    steps: int,
    learning_rate: float,
    description: str,
) -> list[float]:
    """AdamW with a warm-up over a tenth of the steps, then a cosine to 0, and clipped gradients.

    Args:
        context: for its progress bar.
        model: what is trained, in place. Parameters without a gradient in a step are passed over (H-GAT without leaves).
        loss_of_step: draws a batch and gives its loss, float ().
        steps: optimizer steps.
        learning_rate: highest.
        description: of the bar.

    Returns:
        The loss of each step.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = get_cosine_schedule_with_warmup(optimizer, int(steps * WARMUP_SHARE), steps)
    losses: list[float] = []
    for _ in context.progress(range(steps), description):
        loss = loss_of_step()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses
