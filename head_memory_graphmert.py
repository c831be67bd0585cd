"""What a model knows of heads by name: what tails they have in the projects that it was trained on.

Shape suffixes: B batch, N nodes, M leaves with a relation, E pairs of a leaf and a token of its head, D hidden, V views,
K keys, F folds, A answers.
"""

import torch
from torch import nn

VIEWS = ("head", "first", "last")
UNUSED = -1
"""Stands in `HeadMemory.keys` where there is no key."""
# Odd numbers of 64 bits (the constants of splitmix64), as signed ones.
_STEP = 0x9E3779B97F4A7C15 - 2**64
_MIXERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


def head_keys(
    token: torch.Tensor,
    place: torch.Tensor,
    pair_leaf: torch.Tensor,
    relation: torch.Tensor,
    reversed_: torch.Tensor,
    length: torch.Tensor,
) -> torch.Tensor:
    """Numbers that stand for what a leaf hangs on: its relation, its direction and a view of its head.

    The views are all tokens of the head, its first and its last (`VIEWS`). Of the 2^64 numbers two share one by rare chance.

    Args:
        token, place, pair_leaf: int64 (E,), for each token of a head its id, its place in the head, and its leaf.
        relation, reversed_, length: int64 (M,), for each leaf its relation, its direction and the length of its head.

    Returns:
        int64 (M, V).
    """
    named = token + 1
    views = (
        # Sums wrap around.
        _mix(named + place * _STEP),
        torch.where(place == 0, _mix(named), 0),
        torch.where(place == length[pair_leaf] - 1, _mix(named), 0),
    )
    kind = 2 * relation + reversed_
    keys = []
    for number, view in enumerate(views):
        name = torch.zeros_like(relation).index_add(0, pair_leaf, view)
        # Below 0, where no token is: else a token could stand for a relation.
        keys.append(_mix(name + _mix(-(kind * len(VIEWS) + number + 1))))
    return torch.stack(keys, dim=1)


class HeadMemory(nn.Module):
    """A leaf's embedding takes in what other projects say of its head under its relation.

        t' = t + sum_v P_v m_v,    m_v = sum_w votes_v(w) E(w) / (votes_v + 1)

    votes_v(w): how many training projects have a fact whose key (relation, direction, view v of the head) is the leaf's and
    whose tail begins with the word piece w; a project with several such pieces splits its vote. E are the word embeddings.
    Layers learn what is common to many names; what is known of one name alone (`nx` is an alias of `networkx`) needs a
    place that no other name changes.

    What is looked up while training must be worth what it is worth on projects that are not trained on, or the model learns
    to trust it too much. So votes are kept by fold, a group of projects, and a window of a training project sees those of
    the other folds (`fold`). P starts at 0, so that t' = t.

    Args:
        hidden_size: D.
        num_keys: K.
        num_folds: F.
        num_answers: A, the most pieces that are kept for a key and fold.
    """

    def __init__(self, hidden_size: int, num_keys: int, num_folds: int, num_answers: int):
        super().__init__()
        shape = (num_keys, num_folds, num_answers)
        self.register_buffer("keys", torch.full((num_keys,), UNUSED, dtype=torch.int64))
        self.register_buffer("answers", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("votes", torch.zeros(shape, dtype=torch.float32))
        self.register_buffer("voters", torch.zeros(shape[:2], dtype=torch.float32))
        self.projection = nn.Parameter(torch.zeros(len(VIEWS), hidden_size, hidden_size))

    @torch.no_grad()
    def remember(self, votes: dict[str, torch.Tensor]) -> None:
        """Take in what was counted.

        Args:
            votes: `keys` int64 (K,), each once, rising; `answers` int64 (K, F, A), `votes` float (K, F, A), 0 where a fold
                has fewer pieces, and `voters` float (K, F), all of a fold's votes (`known_heads.count_votes`).

        Raises:
            ValueError: other shapes, or keys that do not rise.
        """
        for name in ("keys", "answers", "votes", "voters"):
            ours, given = getattr(self, name), votes[name]
            if ours.shape != given.shape:
                raise ValueError(f"{name} must have the shape {tuple(ours.shape)}, got {tuple(given.shape)}")
        if not (votes["keys"][1:] > votes["keys"][:-1]).all():
            raise ValueError("keys must rise: row k of the table belongs to the k-th smallest")
        for name, given in votes.items():
            getattr(self, name).copy_(given)

    def forward(
        self,
        words: torch.Tensor,
        embeddings: torch.Tensor,
        input_ids: torch.Tensor,
        inputs: dict[str, torch.Tensor],
        leaf_nodes: torch.Tensor,
        head_pairs: torch.Tensor,
        fold: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Leaf embeddings with what is known of their heads.

        Args:
            words: float (B, N, D), embeddings before position, type and LayerNorm.
            embeddings: float (vocab_size, D), E.
            input_ids: int64 (B, N).
            inputs: `root_index`, `relation_ids`, `relation_reversed`, `head_start` and `head_length`, int64 (B, N).
            leaf_nodes, head_pairs: int64 (M,) and (2, E), as `batch_indices` makes them.
            fold: int64 (B, N), the fold of each node's project, whose votes do not count; -1 for none. Default: none.

        Returns:
            float (B, N, D): words, changed on nodes whose relation and head are known.
        """
        rows_MV, is_known_MV = self.rows(input_ids, inputs, leaf_nodes, head_pairs)
        counts_MVF = is_known_MV[:, :, None].expand(-1, -1, self.voters.shape[1])
        if fold is not None:
            other = fold.flatten()[leaf_nodes][:, None] != torch.arange(self.voters.shape[1], device=fold.device)
            counts_MVF = counts_MVF & other[:, None, :]
        voters_MV = (self.voters[rows_MV] * counts_MVF).sum(-1)
        share_MVFA = self.votes[rows_MV] * counts_MVF[..., None] / (voters_MV[..., None, None] + 1)
        found_MVFAD = nn.functional.embedding(self.answers[rows_MV], embeddings)
        known_MVD = (share_MVFA[..., None].to(found_MVFAD.dtype) * found_MVFAD).sum((2, 3))
        update_MD = torch.einsum("mve,vde->md", known_MVD, self.projection.to(known_MVD.dtype))
        return words.flatten(0, 1).index_add(0, leaf_nodes, update_MD.to(words.dtype)).view_as(words)

    def rows(self, input_ids, inputs, leaf_nodes, head_pairs) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of the table for each leaf, int64 (M, V), and whether its keys are known, bool (M, V)."""
        pair_leaf_E, pair_node_E = head_pairs
        flat = {name: value.flatten()[leaf_nodes] for name, value in inputs.items()}
        place_E = inputs["root_index"].flatten()[pair_node_E] - flat["head_start"][pair_leaf_E]
        token_E = input_ids.flatten()[pair_node_E]
        names = ("relation_ids", "relation_reversed", "head_length")
        keys_MV = head_keys(token_E, place_E, pair_leaf_E, *(flat[name] for name in names))
        rows_MV = torch.searchsorted(self.keys, keys_MV).clamp(max=len(self.keys) - 1)
        return rows_MV, self.keys[rows_MV] == keys_MV


def _mix(value: torch.Tensor) -> torch.Tensor:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014) after one step: int64 in, well-mixed int64 out."""
    value = value * _STEP
    for shift, mixer in zip((30, 27), _MIXERS, strict=True):
        value = (value ^ _shifted(value, shift)) * mixer
    return value ^ _shifted(value, 31)


def _shifted(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Shifted to the right as an unsigned number."""
    return (value >> bits) & (2 ** (64 - bits) - 1)
