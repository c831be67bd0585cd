"""Small models with the weights of a trained one: nothing at its starting value."""

import random

import torch
from graph_batches import compact_batch, random_graph

from graphmert.configuration_graphmert import GraphMertConfig

NUM_ROOTS, LEAVES, RELATIONS, VOCABULARY = 7, 3, 5, 100


def tiny_config(**options) -> GraphMertConfig:
    """2 layers of 32, 4 heads, 7 roots with 3 leaves, no dropout."""
    values = dict(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        num_roots=NUM_ROOTS,
        leaves_per_root=LEAVES,
        num_relations=RELATIONS,
        max_position_embeddings=42,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        relation_dropout=0.0,
    )
    return GraphMertConfig(**{**values, **options})


@torch.no_grad()
def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter away from its start, H-GAT and the offsets included."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.add_((0.15 * noise).to(parameter.dtype))
    return model


def tiny_model(model_class, seed: int = 0, dtype: torch.dtype = torch.float64, **options):
    """A model in evaluation mode, all of its parameters random."""
    torch.manual_seed(seed)
    return randomize(model_class(tiny_config(**options)), seed).to(dtype).eval()


def graphs(seed: int = 0, sizes=(NUM_ROOTS, 1, 4)):
    """Random graphs with these numbers of roots."""
    return [random_graph(random.Random(f"{seed}-{n}"), n, LEAVES, RELATIONS) for n in sizes]


def batch(seed: int = 0, sizes=(NUM_ROOTS, 1, 4)) -> dict[str, torch.Tensor]:
    """A compact batch of random graphs."""
    return compact_batch(graphs(seed, sizes))


def inputs_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch without labels."""
    return {name: value for name, value in batch.items() if "labels" not in name}
