"""A small checkpoint with its processor, for tests of what users do with one."""

from pathlib import Path

import torch
from tiny import tiny_tokenizer
from tiny_model import randomize

from graphmert import GraphMertConfig, GraphMertForPreTraining, GraphMertProcessor

NUM_ROOTS, LEAVES = 24, 3

CODES = [
    "def load_file(path: str, mode):\n    text = open(path, mode).read()\n    return parse(text)\n",
    "def f(x):\n    return x\n",
    "class Reader(Base):\n    size: int = 0\n\n    def walk(self, node):\n        for child in node.children:\n"
    "            self.walk(child)\n        return self.size\n\n    def path(self, mode):\n        return load_file(mode)\n",
    "",
    "import numpy as np\n\ndef mean(rows: list) -> float:\n    return np.mean(rows)\n",
    "def broken(:\n  return",
]


def tiny_checkpoint(seed: int = 0, **options) -> tuple[GraphMertForPreTraining, GraphMertProcessor]:
    """A model with every parameter away from its start, on the tokenizer of `tiny.py`, and its processor."""
    tokenizer = tiny_tokenizer()
    values = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "num_roots": NUM_ROOTS,
        "leaves_per_root": LEAVES,
        "max_position_embeddings": NUM_ROOTS * (1 + LEAVES) + 2,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(seed)
    model = randomize(GraphMertForPreTraining(GraphMertConfig(**{**values, **options})), seed).eval()
    return model, GraphMertProcessor.for_model(tokenizer, model.config)


def save_tiny_checkpoint(directory: Path, **options) -> tuple[GraphMertForPreTraining, GraphMertProcessor]:
    """Saves one."""
    model, processor = tiny_checkpoint(**options)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return model, processor
