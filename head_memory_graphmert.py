"""What a model has learned of heads by name: rows of a table that a head and a relation are hashed to.

Shape suffixes: B batch, N nodes, S = B*N, M leaves with a relation, E pairs of a leaf and a token of its head, D hidden,
K hashes, W numbers of a row.
"""

import torch
from torch import nn

VIEWS = ("head", "first", "last")
HASHES_PER_VIEW = 2
# Odd numbers of 64 bits (the constants of splitmix64 and of its streams), as signed ones.
_STEP = 0x9E3779B97F4A7C15 - 2**64
_MIXERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


class HeadMemory(nn.Module):
    """A leaf's embedding takes in what was learned of its head's name and its relation together.

        t' = t + P [m_1; ...; m_K],   m_k = table[hash_k(relation, direction, view of the head)]

    The views are all tokens of the head, its first and its last; each has two rows, so that two names share all of theirs
    by rare chance only (hash embeddings, arXiv 1709.03933). Layers learn what is common to many names; what is known of one
    name alone (`nx` is an alias of `networkx`) needs a place that no other name changes. Rows start at 0, so that t' = t.

    Args:
        hidden_size: D.
        num_slots: rows of the table.
        row_size: W.
        num_relations: relations without the masked one.
    """

    def __init__(self, hidden_size: int, num_slots: int, row_size: int, num_relations: int):
        super().__init__()
        self.num_slots, self.num_relations = num_slots, num_relations
        self.table = nn.Parameter(torch.zeros(num_slots, row_size))
        self.projection = nn.Parameter(torch.zeros(hidden_size, len(VIEWS) * HASHES_PER_VIEW * row_size))

    def forward(
        self,
        words: torch.Tensor,
        input_ids: torch.Tensor,
        inputs: dict[str, torch.Tensor],
        leaf_nodes: torch.Tensor,
        head_pairs: torch.Tensor,
    ) -> torch.Tensor:
        """Leaf embeddings with what is known of their heads.

        Args:
            words: float (B, N, D), embeddings before position, type and LayerNorm.
            input_ids: int64 (B, N).
            inputs: `root_index`, `relation_ids`, `relation_reversed`, `head_start` and `head_length`, int64 (B, N).
            leaf_nodes, head_pairs: int64 (M,) and (2, E), as `batch_indices` makes them.

        Returns:
            float (B, N, D): words, changed on nodes with a relation and a head.
        """
        rows_MK, has_head_M = self.rows(input_ids, inputs, leaf_nodes, head_pairs)
        found_MW = nn.functional.embedding(rows_MK, self.table).flatten(1)
        update_MD = (found_MW @ self.projection.t()) * has_head_M[:, None]
        return words.flatten(0, 1).index_add(0, leaf_nodes, update_MD.to(words.dtype)).view_as(words)

    def rows(self, input_ids, inputs, leaf_nodes, head_pairs) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of the table for each leaf, int64 (M, K), and whether it has a head, bool (M,)."""
        pair_leaf_E, pair_node_E = head_pairs
        start_M, length_M = (inputs[name].flatten()[leaf_nodes] for name in ("head_start", "head_length"))
        place_E = inputs["root_index"].flatten()[pair_node_E] - start_M[pair_leaf_E]
        token_E = input_ids.flatten()[pair_node_E] + 1
        none_M = torch.zeros_like(leaf_nodes)
        # Sums of mixed numbers wrap around: 2^64 of them.
        views = (
            _mix(token_E + place_E * _STEP),
            torch.where(place_E == 0, _mix(token_E), 0),
            torch.where(place_E == length_M[pair_leaf_E] - 1, _mix(token_E), 0),
        )
        relation_M, reversed_M = (inputs[name].flatten()[leaf_nodes] for name in ("relation_ids", "relation_reversed"))
        kind_M = relation_M + (self.num_relations + 1) * reversed_M
        rows = []
        for number, view_E in enumerate(views):
            name_M = none_M.index_add(0, pair_leaf_E, view_E)
            for hash_ in range(HASHES_PER_VIEW):
                stream = number * HASHES_PER_VIEW + hash_ + 1
                # Below 0, where no token is: else a token could stand for a relation.
                mixed_M = _mix(name_M + _mix(-(kind_M * len(VIEWS) * HASHES_PER_VIEW + stream)))
                rows.append((mixed_M & (2**62 - 1)) % self.num_slots)
        return torch.stack(rows, dim=1), none_M.index_add(0, pair_leaf_E, torch.ones_like(token_E)) > 0


def _mix(value: torch.Tensor) -> torch.Tensor:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014) after one step: int64 in, well-mixed int64 out."""
    value = value * _STEP
    for shift, mixer in zip((30, 27), _MIXERS, strict=True):
        value = (value ^ _shifted(value, shift)) * mixer
    return value ^ _shifted(value, 31)


def _shifted(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Shifted to the right as an unsigned number."""
    return (value >> bits) & (2 ** (64 - bits) - 1)
