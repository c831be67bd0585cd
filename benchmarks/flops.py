"""Model FLOPs of a training step: multiplications and additions that the equations ask for, whatever code computes them."""

import numpy as np


def forward_flops(config, nodes_per_graph: np.ndarray, num_labelled: int, num_leaves: int, head_rows: int = 0) -> int:
    """FLOPs of one forward pass; a multiplication with an addition counts as two.

    Counted are matrix products: the four projections and the feed-forward layers of every node, attention within each
    graph (2 products of n x n x D), the LM head at labelled nodes, H-GAT's W_r at leaves and the relation head at every
    node. Not counted: embeddings, norms, activations, the decay.

    Args:
        config: a GraphMertConfig or RobertaConfig.
        nodes_per_graph: int (G,), existing nodes of each graph; padding is not work.
        num_labelled: nodes that the LM head runs on.
        num_leaves: leaves that H-GAT changes.
        head_rows: nodes that the relation head runs on.

    Returns:
        The number of operations.
    """
    nodes = np.asarray(nodes_per_graph, dtype=np.int64)
    hidden, inner = config.hidden_size, config.intermediate_size
    by_node = 8 * hidden**2 + 4 * hidden * inner
    attention = 4 * hidden * int((nodes**2).sum())
    layers = config.num_hidden_layers * (by_node * int(nodes.sum()) + attention)
    lm_head = num_labelled * (2 * hidden**2 + 2 * hidden * config.vocab_size)
    graph = num_leaves * 2 * hidden**2 + head_rows * 2 * hidden * getattr(config, "num_relations", 0)
    return layers + lm_head + graph


def training_flops(*args, **kwargs) -> int:
    """FLOPs of forward and backward: three times `forward_flops`, the usual count."""
    return 3 * forward_flops(*args, **kwargs)
