"""A small project, a tokenizer trained on it and a random model, for the tests of knowledge-graph extraction."""

import functools

import torch

from graphmert.chain_graphs.tokenizer import train_tokenizer
from graphmert.configuration_graphmert import GraphMertConfig
from graphmert.kg_extraction.extraction import Extractor
from graphmert.modeling_graphmert import GraphMertForPreTraining

FILES = {
    "app/__init__.py": "from .tree import Node\n",
    "app/tree.py": '''"""Trees."""
from typing import Iterator, Optional
import os


class Node:
    """A node."""

    def __init__(self, name: str, parent: Optional["Node"] = None):
        self.name = name
        self.parent = parent
        self.children: list["Node"] = []

    def walk(self, depth=0) -> Iterator["Node"]:
        yield self
        for child in self.children:
            yield from child.walk(depth + 1)

    def path_of(self, root):
        return os.path.join(root, self.name)


class Leaf(Node):
    size: int = 0
''',
    "app/load.py": """from . import Node
from .tree import Leaf as L


def read(path, mode="r", limit: int = 10):
    with open(path, mode) as file:
        text = file.read()
    return parse(text)


def parse(text, strict=False) -> "Node":
    node = Node(text.strip())
    for line in text.split():
        node.children.append(L(line))
    return node
""",
}
# One thread: on these sizes a second one only waits.
torch.set_num_threads(1)

PROJECT = [("app", path, "python", text) for path, text in FILES.items()]


@functools.cache
def project_tokenizer():
    return train_tokenizer([text for *_, text in PROJECT] * 3, 420)


def tiny_checkpoint(mnm_target: str = "both", num_roots: int = 48, leaves: int = 7):
    """A random model of one layer and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = project_tokenizer()
    config = GraphMertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_roots=num_roots,
        leaves_per_root=leaves,
        max_position_embeddings=num_roots * (1 + leaves) + 2,
        pad_token_id=tokenizer.pad_token_id,
        mnm_target=mnm_target,
        hidden_dropout_prob=0.0,
    )
    model = GraphMertForPreTraining(config).eval()
    # H-GAT starts without effect, and random logits are all alike.
    torch.nn.init.normal_(model.roberta.hgat.weight, std=0.3)
    torch.nn.init.normal_(model.relation_head.weight, std=1.0)
    return model, tokenizer


def project_extractor(**options) -> Extractor:
    model, tokenizer = tiny_checkpoint(**options)
    return Extractor(model, tokenizer, PROJECT, batch_size=8)
