"""What a model knows of heads by name: what tails they have in the projects that it was trained on.

Shape suffixes: B batch, N nodes, M leaves with a relation, E pairs of a leaf and a token of its head, D hidden, V views,
K keys, F folds, A answers, C = F*A.
"""

from typing import NamedTuple

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
    Layers learn what is common to many names; what is known of one name alone needs a place that no other name changes.

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

    def look_up(
        self,
        input_ids: torch.Tensor,
        inputs: dict[str, torch.Tensor],
        leaf_nodes: torch.Tensor,
        head_pairs: torch.Tensor,
        fold: torch.Tensor | None = None,
    ) -> "Found":
        """What is known of the heads of leaves.

        Args:
            input_ids: int64 (B, N).
            inputs: `root_index`, `relation_ids`, `relation_reversed`, `head_start` and `head_length`, int64 (B, N).
            leaf_nodes, head_pairs: int64 (M,) and (2, E), as `batch_indices` makes them.
            fold: int64 (B, N), the fold of each node's project, whose votes do not count; -1 for none. Default: none.
        """
        rows_MV, is_known_MV = self.rows(input_ids, inputs, leaf_nodes, head_pairs)
        counts_MVF = is_known_MV[:, :, None].expand(-1, -1, self.voters.shape[1])
        if fold is not None:
            other = fold.flatten()[leaf_nodes][:, None] != torch.arange(self.voters.shape[1], device=fold.device)
            counts_MVF = counts_MVF & other[:, None, :]
        voters_MV = (self.voters[rows_MV] * counts_MVF).sum(-1)
        share_MVFA = self.votes[rows_MV] * counts_MVF[..., None] / (voters_MV[..., None, None] + 1)
        return Found(leaf_nodes, self.answers[rows_MV].flatten(2), share_MVFA.flatten(2))

    def forward(self, words: torch.Tensor, embeddings: torch.Tensor, found: "Found") -> torch.Tensor:
        """Leaf embeddings with what is known of their heads.

        Args:
            words: float (B, N, D), embeddings before position, type and LayerNorm.
            embeddings: float (vocab_size, D), E.
            found: of `look_up`.

        Returns:
            float (B, N, D): words, changed on nodes whose relation and head are known.
        """
        found_MVCD = nn.functional.embedding(found.answers, embeddings)
        known_MVD = (found.shares[..., None].to(found_MVCD.dtype) * found_MVCD).sum(2)
        update_MD = torch.einsum("mve,vde->md", known_MVD, self.projection.to(known_MVD.dtype))
        return words.flatten(0, 1).index_add(0, found.leaf_nodes, update_MD.to(words.dtype)).view_as(words)

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


class Found(NamedTuple):
    """What a head memory says of leaves.

    Attributes:
        leaf_nodes: int64 (M,), the leaves, as positions in the flattened rows.
        answers: int (M, V, C), word pieces; one may stand there for several folds.
        shares: float (M, V, C), votes for them over all votes and one; 0 where there are none.
    """

    leaf_nodes: torch.Tensor
    answers: torch.Tensor
    shares: torch.Tensor

    def at(self, nodes: torch.Tensor, num_nodes: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Answers and shares of some nodes, (X, V, C); shares of 0 for nodes that are no leaves.

        Args:
            nodes: int64 (X,), positions in the flattened rows.
            num_nodes: S, of these rows.
        """
        num_leaves = len(self.leaf_nodes)
        places = self.leaf_nodes.new_full((num_nodes,), num_leaves)
        places = places.scatter(0, self.leaf_nodes, torch.arange(num_leaves, device=places.device))[nodes]
        answers, shares = (nn.functional.pad(value, (0, 0, 0, 0, 0, 1)) for value in (self.answers, self.shares))
        return answers[places].long(), shares[places]


class MemoryHead(nn.Module):
    """Word pieces as the LM head and the memory name them together, at leaves.

        p(w) = g_0 p_LM(w) + sum_v g_v (share_v(w) + (1 - sum_w' share_v(w')) p_LM(w))

    g, a softmax over the LM head and the views that have votes, is read from the leaf's final state (as in pointer-generator
    networks, arXiv 1704.04368). What no vote is for is left to the LM head.

    Args:
        hidden_size: D.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1 + len(VIEWS), hidden_size))
        self.bias = nn.Parameter(torch.zeros(1 + len(VIEWS)))

    def gates(self, states: torch.Tensor, shares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities that the memory gives.

        Args:
            states: float (X, D), final states.
            shares: float (X, V, C), of `Found.at`.

        Returns:
            float (X, V * C), g_v share_v of each answer, and float (X,), what is left for the LM head.
        """
        scores = (states @ self.weight.t().to(states.dtype) + self.bias.to(states.dtype)).to(shares.dtype)
        has_votes = shares.sum(-1) > 0
        scores = torch.cat([scores[:, :1], scores[:, 1:].masked_fill(~has_votes, float("-inf"))], dim=1)
        given = (scores.softmax(-1)[:, 1:, None] * shares).flatten(1)
        return given, 1 - given.sum(-1)

    def mix_logits(self, logits: torch.Tensor, answers: torch.Tensor, given: torch.Tensor, left: torch.Tensor):
        """Logarithms of the mixed probabilities, (X, vocab_size), float32 or better; logits where the memory gives nothing.

        Args:
            logits: float (X, vocab_size), of the LM head.
            answers: int64 (X, V, C).
            given, left: of `gates`.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        shares = torch.zeros_like(logits).scatter_add(1, answers.flatten(1), given.to(logits.dtype))
        mixed = left[:, None].to(logits.dtype) * logits.softmax(-1) + shares
        return torch.where((given > 0).any(1)[:, None], _log(mixed), logits)

    def mix_losses(self, losses, labels, answers, given) -> torch.Tensor:
        """Losses of labels under the mixed probabilities, (X,), from those under the LM head's."""
        named = (given * (answers.flatten(1) == labels[:, None])).sum(1)
        mixed = -_log((1 - given.sum(1)) * (-losses).exp() + named)
        return torch.where((given > 0).any(1), mixed, losses)

    @torch.no_grad()
    def mix_predictions(self, states, weight, bias, losses, labels, predictions, answers, given) -> torch.Tensor:
        """The likeliest tokens under the mixed probabilities, int64 (X,): the LM head's own, or one of the memory's.

        Args:
            states: float (X, D), what the decoder reads.
            weight, bias: of the decoder.
            losses, labels, predictions: of the LM head, (X,).
            answers, given: of `gates`.
        """
        answers = answers.flatten(1)
        candidates = torch.cat([predictions[:, None], labels[:, None], answers], dim=1)
        scores = (weight[candidates].to(states.dtype) @ states[:, :, None])[..., 0] + bias[candidates].to(states.dtype)
        scores = scores.to(losses.dtype)
        # The label's loss tells the sum of all.
        shares = (scores - scores[:, 1:2] - losses[:, None]).exp() * (1 - given.sum(1))[:, None]
        shares = shares + (given[:, None, :] * (candidates[:, :, None] == answers[:, None, :])).sum(-1)
        best = candidates.gather(1, shares.argmax(1, keepdim=True))[:, 0]
        return torch.where((given > 0).any(1), best, predictions)


def _log(probability: torch.Tensor) -> torch.Tensor:
    """Logarithm that is finite, with a gradient, where a probability has vanished."""
    return probability.clamp(min=torch.finfo(probability.dtype).tiny).log()


def _mix(value: torch.Tensor) -> torch.Tensor:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014) after one step: int64 in, well-mixed int64 out."""
    value = value * _STEP
    for shift, mixer in zip((30, 27), _MIXERS, strict=True):
        value = (value ^ _shifted(value, shift)) * mixer
    return value ^ _shifted(value, 31)


def _shifted(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Shifted to the right as an unsigned number."""
    return (value >> bits) & (2 ** (64 - bits) - 1)
