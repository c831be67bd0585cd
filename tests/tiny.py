"""A small tokenizer and small windows that several tests share."""

import functools

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = """
def load_file(path, mode):
    text = open(path, mode).read()
    return parse(text)

class Reader(Base):
    size: int = 0

    def walk(self, node):
        for child in node.children:
            self.walk(child)
"""


@functools.cache
def tiny_tokenizer(vocab_size: int = 360) -> PreTrainedTokenizerFast:
    """A byte-level BPE over `TEXT`, with RoBERTa's special tokens and ids."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+|\d+|\n *|\S|\s"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def window(input_ids, facts=(), word_starts=None, index=0, epoch=0) -> dict:
    """One item as `WindowDataset` gives it.

    Args:
        input_ids: with `<s>` and `</s>`.
        facts: tuples (head_start, head_length, relation, reversed, visible, root, slot, leaf ids).
        word_starts: by default every token is a word.
        index, epoch: what the masks depend on.
    """
    table = np.array([(*fact[:7], len(fact[7])) for fact in facts], dtype=np.int32).reshape(-1, 8)
    names = ("head_start", "head_length", "relation", "reversed", "visible", "leaf_root", "leaf_slot", "leaf_length")
    return {
        "index": index,
        "epoch": epoch,
        "input_ids": np.array(input_ids, dtype=np.int32),
        "word_starts": np.ones(len(input_ids), np.int8) if word_starts is None else np.array(word_starts, np.int8),
        **{name: table[:, column] for column, name in enumerate(names)},
        "leaf_ids": np.array([token for fact in facts for token in fact[7]], dtype=np.int32),
    }


def random_window(rng: np.random.Generator, index: int, num_roots: int, leaves_per_root: int, vocab_size: int) -> dict:
    """A window of random tokens with random facts that fill some roots' slots, words of one to three tokens."""
    size = int(rng.integers(3, num_roots + 1))
    ids = np.concatenate([[0], rng.integers(5, vocab_size, size - 2), [2]])
    words = (rng.random(size) < 0.6).astype(np.int8)
    words[[0, 1, size - 1]] = 1
    facts = []
    for root in range(1, size - 1):
        slot = 0
        while leaves_per_root and rng.random() < 0.3 and slot < leaves_per_root:
            length = int(rng.integers(1, min(3, leaves_per_root - slot) + 1))
            head_length = int(rng.integers(1, min(3, size - 1 - root) + 1))
            leaf = rng.integers(5, vocab_size, length).tolist()
            facts.append(
                (
                    root,
                    head_length,
                    int(rng.integers(12)),
                    int(rng.integers(2)),
                    int(rng.integers(2)),
                    root,
                    slot,
                    leaf,
                )
            )
            slot += length
    return window(ids, facts, words, index=index)
