"""Embeddings of code: `model.encode(texts, processor)`. Travels with a checkpoint.

Shape suffixes: B windows, N nodes, D hidden.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.utils.logging import tqdm

if TYPE_CHECKING:
    import numpy as np

POOLINGS = ("mean", "cls", "roots")
# So many batches of texts are read ahead and sorted by length; more would only take memory.
_BATCHES_READ_AHEAD = 64
# 16 windows of 110 nodes: on two CPUs 10 % faster than batches of 32.
_CPU_NODES = 1792


def pool_windows(
    states: torch.Tensor, inputs: dict[str, torch.Tensor], pooling: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted states of windows and their weights; a text's vector is the sum of the former over that of the latter.

    Args:
        states: float (B, N, D), final states.
        inputs: the model's inputs; `attention_mask` and, for graphs, `leaf_index`, both (B, N).
        pooling: "mean" over all nodes, "roots" over the tokens of the text alone, "cls" the state of the first root.

    Returns:
        float (B, D): sums over the pooled nodes ("cls": the state times the window's number of roots); float (B,), their
        numbers.

    Raises:
        ValueError: another pooling.
    """
    check_pooling(pooling)
    states_BND = states.to(torch.promote_types(states.dtype, torch.float32))
    mask_BN = inputs["attention_mask"].to(torch.bool)
    if pooling != "mean" and inputs.get("leaf_index") is not None:
        mask_BN = mask_BN & (inputs["leaf_index"] < 0)
    weights_B = mask_BN.sum(1).to(states_BND.dtype)
    if pooling == "cls":
        return states_BND[:, 0] * weights_B[:, None], weights_B
    return (states_BND * mask_BN[:, :, None].to(states_BND.dtype)).sum(1), weights_B


def cut_batches(lengths: Sequence[int], batch_size: int, most_nodes: int | None) -> Iterator[tuple[int, int]]:
    """Cut windows, the longest first, into batches: (first, one past the last).

    Args:
        lengths: nodes of each window, falling.
        batch_size: windows in a batch at most.
        most_nodes: nodes of a batch with its padding at most, but at least one window; None for no bound.
    """
    start = 0
    while start < len(lengths):
        size = batch_size if most_nodes is None else max(1, min(batch_size, most_nodes // max(1, lengths[start])))
        yield start, min(start + size, len(lengths))
        start += size


def check_pooling(pooling: str) -> None:
    """Refuse an unknown pooling."""
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")


class CodeEmbeddingMixin:
    """Gives a GraphMERT encoder the method `encode`."""

    def encode(
        self,
        texts: str | Sequence[str],
        processor,
        *,
        batch_size: int = 32,
        pooling: str = "mean",
        normalize: bool = False,
        language: str | Sequence[str | None] | None = "python",
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
    ) -> "np.ndarray | torch.Tensor":
        """One vector for each text, whatever its length.

        Texts longer than a window become several windows; the vector is the mean over the nodes of all of them. Windows are
        batched by length; neither batch size nor order changes a vector by more than rounding.

        Args:
            texts: one text or many.
            processor: a `GraphMertProcessor`; or a plain fast tokenizer, which gives no graph.
            batch_size: windows in a batch at most; on a CPU batches are cut smaller where that is faster.
            pooling: "mean" over all nodes of the graph, "roots" over the text's own tokens, "cls" the first token's state.
            normalize: scale vectors to length 1.
            language: of all texts or of each, as in `GraphMertProcessor`; None for a text without a graph, such as a query
                in words. Without meaning for a plain tokenizer.
            show_progress_bar: None shows one on a terminal.
            convert_to_numpy: a numpy array, else a tensor; both on the CPU.

        Returns:
            float32 (texts, D), or (D,) for one text.

        Raises:
            ValueError: an argument out of range, a text with a lone surrogate, or a processor that is not of this model.

        Example:

            >>> vectors = model.encode(["def load(path): ..."], processor, normalize=True)
        """
        check_pooling(pooling)
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
        reader = _Reader(processor, self.config)
        is_single = isinstance(texts, str)
        texts = [texts] if is_single else list(texts)
        languages = [language] * len(texts) if language is None or isinstance(language, str) else list(language)
        if len(languages) != len(texts):
            raise ValueError(f"{len(texts)} texts, but {len(languages)} languages: give one for each, or one for all")
        size = batch_size * _BATCHES_READ_AHEAD
        parts = []
        # tqdm takes None for "on a terminal".
        hidden = None if show_progress_bar is None else not show_progress_bar
        with tqdm(total=len(texts), desc="encoding", unit=" texts", disable=hidden) as bar:
            for start in range(0, len(texts), size):
                windows, text_of = reader.read(texts[start : start + size], languages[start : start + size])
                parts.append(self._encode_windows(windows, text_of, reader, batch_size, pooling, bar))
        vectors = torch.cat(parts) if parts else torch.zeros(0, self.config.hidden_size)
        if normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        vectors = vectors[0] if is_single else vectors
        return vectors.numpy() if convert_to_numpy else vectors

    @torch.no_grad()
    def encode_windows(
        self,
        windows: Sequence[dict],
        processor,
        *,
        batch_size: int = 32,
        pooling: str = "mean",
        normalize: bool = False,
    ) -> torch.Tensor:
        """One vector for each text from windows that were read before (`GraphMertProcessor.read_windows`).

        Args:
            windows: items; `item["text"]` numbers their texts from 0 without a gap.
            processor, batch_size, pooling, normalize: as in `encode`.

        Returns:
            float32 (texts, D), on the CPU.
        """
        check_pooling(pooling)
        reader = _Reader(processor, self.config)
        vectors = self._encode_windows(windows, [item["text"] for item in windows], reader, batch_size, pooling)
        return torch.nn.functional.normalize(vectors, dim=-1) if normalize else vectors

    def _encode_windows(self, windows, text_of, reader, batch_size, pooling, bar=None) -> torch.Tensor:
        num_texts = max(text_of) + 1
        sums = torch.zeros(num_texts, self.config.hidden_size)
        weights = torch.zeros(num_texts)
        unfinished = torch.bincount(torch.tensor(text_of), minlength=num_texts)
        # The longest first: what does not fit in memory shows at once.
        order = sorted(range(len(windows)), key=lambda index: -reader.length(windows[index]))
        was_training = self.training
        self.eval()
        # On a CPU what a batch's layers hold must stay in the caches; beyond that a larger batch is slower.
        most_nodes = _CPU_NODES if self.device.type == "cpu" else None
        lengths = [reader.length(windows[index]) for index in order]
        try:
            for start, end in cut_batches(lengths, batch_size, most_nodes):
                chosen = order[start:end]
                inputs = reader.collate([windows[index] for index in chosen])
                inputs = {name: value.to(self.device) for name, value in inputs.items()}
                with torch.no_grad():
                    pooled, weight = pool_windows(self(**inputs).last_hidden_state, inputs, pooling)
                place = torch.tensor([text_of[index] for index in chosen])
                sums.index_add_(0, place, pooled.to("cpu", torch.float32))
                weights.index_add_(0, place, weight.to("cpu", torch.float32))
                before = int((unfinished == 0).sum())
                unfinished.index_add_(0, place, torch.full_like(place, -1))
                if bar is not None:
                    bar.update(int((unfinished == 0).sum()) - before)
        finally:
            self.train(was_training)
        return sums / weights[:, None]


class _Reader:
    """Windows of texts from a `GraphMertProcessor`, or from a plain tokenizer: the same cuts, no graph."""

    def __init__(self, processor, config):
        self.processor, self.config = processor, config
        self.has_graph = hasattr(processor, "read_windows")
        if self.has_graph:
            processor.check_config(config)
        elif not getattr(processor, "is_fast", False):
            raise ValueError(
                f"processor must be a GraphMertProcessor or a fast tokenizer, got {type(processor).__name__}"
            )
        elif len(processor) > config.vocab_size:
            raise ValueError(
                f"the tokenizer has {len(processor)} entries, but the model has vocab_size = {config.vocab_size}: "
                "load the model's own tokenizer"
            )
        else:
            ends = (processor.bos_token_id, processor.eos_token_id)
            self.begin, self.end = (processor.cls_token_id, processor.sep_token_id) if None in ends else ends

    def read(self, texts: list[str], languages: list[str | None]) -> tuple[list, list[int]]:
        if self.has_graph:
            windows = self.processor.read_windows(texts, languages)
            return windows, [window["text"] for window in windows]
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"a text must be a str (decode bytes first), not {type(text).__name__}")
        # Line ends as the processor, and a dataset before it, reads them.
        texts = [text.replace("\r\n", "\n").replace("\r", "\n") for text in texts]
        try:
            encoded = self.processor(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        except TypeError as error:
            raise ValueError("a text holds a lone surrogate, which no tokenizer reads; take it out") from error
        # As long as the windows of pretraining, though the model has more positions: the later ones were leaves'.
        size = self.config.num_roots - 2
        windows, text_of = [], []
        for number, ids in enumerate(encoded["input_ids"]):
            for start in range(0, max(len(ids), 1), size):
                windows.append([self.begin, *ids[start : start + size], self.end])
                text_of.append(number)
        return windows, text_of

    def length(self, window) -> int:
        return len(window["input_ids"]) + len(window["leaf_ids"]) if self.has_graph else len(window)

    def collate(self, windows: list) -> dict[str, torch.Tensor]:
        if self.has_graph:
            return self.processor.collate(windows)
        rows = [torch.tensor(window) for window in windows]
        mask = [torch.ones_like(row) for row in rows]
        return {
            "input_ids": pad_sequence(rows, batch_first=True, padding_value=self.config.pad_token_id),
            "attention_mask": pad_sequence(mask, batch_first=True),
        }


__all__ = ["POOLINGS", "CodeEmbeddingMixin", "pool_windows"]
