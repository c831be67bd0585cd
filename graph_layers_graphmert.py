"""The parts of GraphMERT that RoBERTa does not have: distances, attention decay, H-GAT.

Shape suffixes: B batch, N nodes, S = B*N, M leaves with a relation, Q most leaves of one relation, E pairs of a leaf and a
token of its head, H attention heads, D hidden, C relations + 1 (the last one is the masked relation), T entries of the
decay table.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.autograd.function import once_differentiable


def graph_distance(
    root_index: torch.Tensor, leaf_index: torch.Tensor, root_distance: torch.Tensor | None = None
) -> torch.Tensor:
    """Shortest paths between the nodes of leafy chain graphs, in closed form.

    Edges: neighbouring roots, a root and each of its leaves, neighbouring used leaves of one root. Two leaves of one root
    with a gap between them meet at their root, so `min(|j - m|, 2)` holds whichever slots are used.

    Args:
        root_index: int64 (B, N), index of the node's root (its own for a root).
        leaf_index: int64 (B, N), slot of a leaf, -1 for a root.
        root_distance: int (B, R, R), shortest paths between roots where they have further edges; 0 on the diagonal alone.
            Default: the chain's, |i - k|. Paths of leaves lead through their roots, siblings aside.

    Returns:
        int64 (B, N, N).
    """
    if root_distance is None:
        hops_BNN = (root_index[:, :, None] - root_index[:, None, :]).abs()
    else:
        pair_BNN = root_index[:, :, None] * root_distance.shape[-1] + root_index[:, None, :]
        hops_BNN = root_distance.flatten(1).gather(1, pair_BNN.flatten(1)).view_as(pair_BNN).to(root_index.dtype)
    is_leaf_BN = (leaf_index >= 0).to(hops_BNN.dtype)
    distance_BNN = hops_BNN + is_leaf_BN[:, :, None] + is_leaf_BN[:, None, :]
    siblings_BNN = (distance_BNN - hops_BNN == 2) & (hops_BNN == 0)
    slots_BNN = (leaf_index[:, :, None] - leaf_index[:, None, :]).abs().clamp(max=2)
    return torch.where(siblings_BNN, slots_BNN, distance_BNN)


def attention_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype that queries will have: the tensor's own, or autocast's."""
    device_type = tensor.device.type
    known = torch.amp.is_autocast_available(device_type)
    if known and tensor.dtype != torch.float64 and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return tensor.dtype


def for_each_head(values: tuple[float, ...], offset_H: torch.Tensor) -> float | torch.Tensor:
    """Numbers dealt to the heads in turn: (H, 1), or the number itself where there is one."""
    if len(values) == 1:
        return values[0]
    turn_H = torch.arange(offset_H.shape[0], device=offset_H.device) % len(values)
    dealt_H = torch.zeros_like(offset_H, dtype=torch.promote_types(offset_H.dtype, torch.float32))
    # Not torch.tensor(values, device=...), a copy for which the host waits.
    for number, value in enumerate(values):
        dealt_H = torch.where(turn_H == number, value, dealt_H)
    return dealt_H[:, None]


def _decay_tables(
    offset_H: torch.Tensor, num_distances: int, log_bases: tuple[float, ...], multiplicative: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """g(d) = ln(lambda) * GELU(sqrt(d) - p) for d = 0..T-1 and its derivative in p, both (H, T), float32 or better.

    Multiplicative: exp(g(d)) and its derivative.
    """
    log_base = for_each_head(log_bases, offset_H)
    dtype = torch.promote_types(offset_H.dtype, torch.float32)
    root_T = torch.arange(num_distances, device=offset_H.device, dtype=dtype).sqrt()
    x_HT = root_T - offset_H.to(dtype)[:, None]
    cdf_HT = 0.5 * (1 + torch.erf(x_HT * math.sqrt(0.5)))
    density_HT = torch.exp(-0.5 * x_HT * x_HT) * (1 / math.sqrt(2 * math.pi))
    value_HT, slope_HT = log_base * x_HT * cdf_HT, -log_base * (cdf_HT + x_HT * density_HT)
    if multiplicative:
        value_HT = value_HT.exp()
        slope_HT = slope_HT * value_HT
    return value_HT, slope_HT


class _GatherDecay(torch.autograd.Function):
    """Decay of every pair of nodes, read from a table over distances.

    Indexing a (heads, distances) table has a backward that adds B*N*N numbers into a few hundred addresses. But one
    offset per head is all that learns, so its gradient is a sum of products with the derivative's table: a gather and a
    sum, with no atomics.
    """

    @staticmethod
    def forward(ctx, offset_H, index_BNN, num_distances, log_bases, multiplicative, dtype):
        value_HT, slope_HT = _decay_tables(offset_H, num_distances, log_bases, multiplicative)
        # One more entry than there are distances: pairs that must not see each other.
        hidden = -1.0 if multiplicative else torch.finfo(dtype).min
        value_HT = nn.functional.pad(value_HT.to(dtype), (0, 1), value=hidden)
        ctx.save_for_backward(nn.functional.pad(slope_HT, (0, 1)), index_BNN)
        ctx.offset_dtype = offset_H.dtype
        return gather_columns(value_HT, index_BNN)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BHNN):
        slope_HT, index_BNN = ctx.saved_tensors
        grad_H = (gather_columns(slope_HT, index_BNN) * grad_BHNN).sum((0, 2, 3))
        return grad_H.to(ctx.offset_dtype), None, None, None, None, None


def gather_columns(table_HT: torch.Tensor, index_BNN: torch.Tensor) -> torch.Tensor:
    """table_HT[h, index_BNN[b, i, k]] as a contiguous (B, H, N, N)."""
    # Contiguous, which the fused attention kernels want. Plain indexing takes 17.7 ms at 16 x 12 x 160 x 160 on one core,
    # this 4.8 ms.
    num_batch, num_nodes, _ = index_BNN.shape
    num_heads = table_HT.shape[0]
    table_BHT = table_HT.expand(num_batch, -1, -1)
    index_BHP = index_BNN.reshape(num_batch, 1, -1).expand(-1, num_heads, -1)
    return table_BHT.gather(2, index_BHP).view(num_batch, num_heads, num_nodes, num_nodes)


class GraphDecay(nn.Module):
    """Attention decay over graph distances, shared by all layers (paper sec. 4.2).

        g(d) = ln(lambda) * GELU(sqrt(d) - p)        p: one learnable offset for each head

    Args:
        num_heads: attention heads.
        num_distances: distances 0..num_distances-1 occur.
        base: lambda, above 0 and at most 1 (no decay); several are dealt to the heads in turn.
        offset_init: first value of every p.
        multiplicative: return exp(g), a factor of the logits, in place of g, a term of them.
    """

    def __init__(
        self,
        num_heads: int,
        num_distances: int,
        base: float | Sequence[float],
        offset_init: float,
        multiplicative: bool,
    ):
        super().__init__()
        self.offset = nn.Parameter(torch.full((num_heads,), float(offset_init)))
        self.num_distances = num_distances
        bases = (base,) if isinstance(base, int | float) else base
        self.log_bases = tuple(math.log(base) for base in bases)
        self.offset_init = float(offset_init)
        self.multiplicative = multiplicative

    def tables(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """g(d), or exp(g(d)), and its derivative in p for d = 0..num_distances-1, both (H, T), without gradient."""
        value_HT, slope_HT = self._tables(self.offset.detach())
        return value_HT.to(dtype), slope_HT.to(dtype)

    def differentiable_table(self) -> torch.Tensor:
        """The first of `tables`, (H, T), with a gradient to the offset."""
        return self._tables(self.offset)[0]

    def _tables(self, offset_H: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return _decay_tables(offset_H, self.num_distances, self.log_bases, self.multiplicative)

    def forward(self, distance: torch.Tensor, visible: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """Decay of every pair.

        Args:
            distance: int64 (B or 1, N, N), 0..num_distances-1.
            visible: bool, broadcastable to (B, N, N): whether row n may attend to column k. None: all may.
            dtype: dtype of the result.

        Returns:
            (B, H, N, N): g(d), the dtype's lowest number for hidden pairs; or exp(g(d)), -1 for hidden pairs.
        """
        if visible is not None:
            distance = torch.where(visible, distance, self.num_distances)
        return _GatherDecay.apply(
            self.offset, distance, self.num_distances, self.log_bases, self.multiplicative, dtype
        )


def grouped_linear(input_MD: torch.Tensor, group_sizes: list[int], weight_CDD: torch.Tensor) -> torch.Tensor:
    """Rows sorted by group, each group times the transpose of its own matrix: one product for each group that occurs."""
    # unbind, not weight_CDD[c]: the backward of an index is a zero-filled copy of the whole stack for every group.
    weights = weight_CDD.unbind(0)
    if not any(group_sizes):
        return input_MD @ weights[0].t()
    parts = zip(input_MD.split(group_sizes), weights, strict=True)
    return torch.cat([part_MD @ weight_DD.t() for part_MD, weight_DD in parts if part_MD.shape[0]])


class HierarchicalGraphAttention(nn.Module):
    """H-GAT: a leaf's embedding takes in its head's tokens through their relation (paper sec. 2.4.2 and 4.2.1).

        e_j   = LeakyReLU(a_r . [W_r t || W_r h_j])
        alpha = softmax_j(e)                               over the head's tokens
        t'    = t + sum_j alpha_j W_r h_j

    Read in direction dir (1: the leaf carries the owner's name), W_r stands for diag(gain_{dir,r}) W_r, and a_r has one
    vector for each direction. Row `num_relations` is the masked relation. W starts at 0, so that t' = t, unless
    `config.hgat_init` says otherwise.

    Since a . [W t || W h] = (W^T a_1) . t + (W^T a_2) . h, logits need two vectors for each relation and direction; since
    the sum is linear, W_r is applied once to each leaf's weighted head and not to every head token.

    Args:
        hidden_size: D.
        num_relations: relations without the masked one.
        dropout: dropout on `weight` and `attention` while training.
        negative_slope: LeakyReLU's slope below zero.
    """

    def __init__(self, hidden_size: int, num_relations: int, dropout: float, negative_slope: float):
        super().__init__()
        num_rows = num_relations + 1
        self.weight = nn.Parameter(torch.zeros(num_rows, hidden_size, hidden_size))
        self.direction_gain = nn.Parameter(torch.ones(2, num_rows, hidden_size))
        self.attention = nn.Parameter(torch.zeros(2, num_rows, 2 * hidden_size))
        self.dropout = dropout
        self.negative_slope = negative_slope

    def scaled_identities(self, scale: float) -> torch.Tensor:
        """A start for `weight` at which a leaf takes in its head's words as they are: scale * I, (C, D, D)."""
        identity_DD = torch.eye(self.weight.shape[1], dtype=self.weight.dtype, device=self.weight.device)
        return (scale * identity_DD).expand_as(self.weight)

    def forward(
        self,
        words: torch.Tensor,
        relation_reversed: torch.Tensor,
        leaf_nodes: torch.Tensor,
        leaf_grid: torch.Tensor,
        head_pairs: torch.Tensor,
    ) -> torch.Tensor:
        """Leaf embeddings with their heads taken in.

        Args:
            words: float (B, N, D), word embeddings (before position, type and LayerNorm).
            relation_reversed: int64 (B, N), 0 or 1.
            leaf_nodes, leaf_grid, head_pairs: int64 (M,), (C, Q) and (2, E), as `batch_indices` makes them.

        Returns:
            float (B, N, D): words, changed on nodes with a relation and a head.
        """
        num_rows, hidden_size = self.weight.shape[0], self.weight.shape[1]
        weight_CDD = nn.functional.dropout(self.weight, self.dropout, self.training)
        attention = nn.functional.dropout(self.attention, self.dropout, self.training)

        words_SD, num_leaves = words.flatten(0, 1), leaf_nodes.shape[0]
        grid, slot_M = leaf_grid.flatten(), _slots(leaf_grid, num_leaves)
        # Row of the (direction, relation) pair in the tables below.
        row_M = slot_M // max(leaf_grid.shape[1], 1) + num_rows * relation_reversed.flatten()[leaf_nodes]

        # W^T diag(gain) a, for both halves of a: (2 halves, 2 directions * C, D).
        scaled = attention.view(2, num_rows, 2, hidden_size) * self.direction_gain[:, :, None, :]
        pulled = torch.einsum("rchd,cde->hrce", scaled, weight_CDD).reshape(2, 2 * num_rows, hidden_size)
        heads_MD = self._weighted_heads(words_SD, leaf_nodes, row_M, head_pairs, pulled)

        if words.device.type == "cpu" and not torch.compiler.is_compiling():
            # The sizes of the groups are at hand.
            sizes = (leaf_grid < num_leaves).sum(1).tolist()
            order_M = grid[grid < num_leaves]
            update_MD = grouped_linear(heads_MD.index_select(0, order_M), sizes, weight_CDD)
            update_MD = update_MD.index_select(0, order_M.argsort())
        else:
            # One product for all relations, each with room for as many leaves as the largest has.
            heads_CQD = nn.functional.pad(heads_MD, (0, 0, 0, 1)).index_select(0, grid).view(num_rows, -1, hidden_size)
            update_MD = torch.bmm(heads_CQD, weight_CDD.transpose(1, 2)).flatten(0, 1).index_select(0, slot_M)
        gain_MD = nn.functional.embedding(row_M, self.direction_gain.flatten(0, 1))
        update_MD = (update_MD * gain_MD).to(words.dtype)
        return words_SD.index_add(0, leaf_nodes, update_MD).view_as(words)

    def _weighted_heads(self, words_SD, leaf_nodes, row_M, head_pairs, pulled):
        """sum_j alpha_j h_j of each leaf, (M, D); 0 for a leaf without a head."""
        pair_leaf_E, pair_root_E = head_pairs
        tails_MD, heads_ED = words_SD.index_select(0, leaf_nodes), words_SD.index_select(0, pair_root_E)
        # A product with one-hot rows in place of a gather: its backward is a product too.
        one_hot_MS = nn.functional.one_hot(row_M, pulled.shape[1]).to(words_SD.dtype)
        tail_score_M = ((tails_MD @ pulled[0].t()) * one_hot_MS).sum(-1)
        head_score_E = ((heads_ED @ pulled[1].t()) * one_hot_MS.index_select(0, pair_leaf_E)).sum(-1)
        score_E = tail_score_M.index_select(0, pair_leaf_E) + head_score_E
        score_E = nn.functional.leaky_relu(score_E, self.negative_slope)
        score_E = score_E.to(torch.promote_types(score_E.dtype, torch.float32))
        # Softmax over the pairs of each leaf.
        lowest_M = score_E.new_full(leaf_nodes.shape, torch.finfo(score_E.dtype).min)
        largest_M = lowest_M.scatter_reduce(0, pair_leaf_E, score_E.detach(), "amax")
        exp_E = (score_E - largest_M.index_select(0, pair_leaf_E)).exp()
        total_M = torch.zeros_like(lowest_M).index_add(0, pair_leaf_E, exp_E)
        alpha_E = (exp_E / total_M.index_select(0, pair_leaf_E)).to(words_SD.dtype)
        return torch.zeros_like(tails_MD).index_add(0, pair_leaf_E, alpha_E[:, None] * heads_ED)


def _slots(leaf_grid: torch.Tensor, num_leaves: int) -> torch.Tensor:
    """Where each leaf stands in the flattened grid: int64 (M,)."""
    grid = leaf_grid.flatten()
    slots = torch.zeros(num_leaves + 1, dtype=torch.int64, device=grid.device)
    return slots.scatter(0, grid, torch.arange(grid.shape[0], device=grid.device))[:-1]
