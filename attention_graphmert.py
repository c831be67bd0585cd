"""How nodes attend to the nodes of their own graph: by row, in packed rows, graph by graph, or through flex_attention.

RoBERTa's layers take an attention mask. Where a mask is not enough (packed rows, a bias that must not be stored), the
model hands each layer one of the objects below instead, made once for a forward pass, and `GraphSelfAttention` asks it.

| object | for |
| --- | --- |
| none: the bias is the attention mask | compact and padded rows with `eager` or `sdpa` |
| `PaddedViewAttention` | packed rows with `eager` or `sdpa` |
| `SegmentAttention` | `sdpa` on the CPU, compact and packed rows |
| `FlexAttention` | `flex_attention`, all layouts |

Shape suffixes: B rows, N nodes of a row, S = B*N, G graphs, P nodes of the longest graph, n nodes of one graph, H heads,
K size of a head, D = H*K, T entries of the decay table.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import flex_attention as torch_flex
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.roberta.modeling_roberta import RobertaSelfAttention, eager_attention_forward

from .batch_indices_graphmert import values_at_hand
from .graph_layers_graphmert import GraphDecay, attention_dtype, for_each_head, gather_columns, graph_distance

FLEX_BLOCK = 128


def preferred_attention(device_type: str, attention_dropout: float) -> str:
    """The attention backend to take where none was asked for.

    Args:
        device_type: "cpu", "cuda", ...
        attention_dropout: dropout on attention weights while training, which flex_attention does not have.

    Returns:
        "flex_attention" on CUDA where it can do what is asked, "sdpa" elsewhere.
    """
    return "flex_attention" if device_type == "cuda" and attention_dropout == 0 else "sdpa"


def choose_attention(
    config,
    decay: GraphDecay | None,
    weight,
    shape,
    attention_mask,
    root_index,
    leaf_index,
    graph_ids,
    nodes,
    root_distance=None,
):
    """What the layers attend by.

    Args:
        config: the model's configuration.
        decay: the model's decay, or None.
        weight: the word embeddings, for their device and dtype.
        shape: (B, N) of the input.
        attention_mask, root_index, leaf_index, graph_ids: as in `GraphMertModel.forward`.
        nodes: int64 (G, P), nodes of each graph in packed rows, else None.
        root_distance: as in `GraphMertModel.forward`.

    Returns:
        The attention mask for RoBERTa, and the object for `GraphSelfAttention` where a mask is not enough, or None.

    Raises:
        ValueError: a mask of another shape, or a backend that cannot do what the configuration asks.
    """
    backend, packed = config._attn_implementation, nodes is not None
    if decay is None and not packed:
        return attention_mask, None
    if attention_mask is not None and attention_mask.dim() != 2:
        raise ValueError(
            f"attention_mask has {attention_mask.dim()} dimensions, but with decay_mode={config.decay_mode!r} it "
            "must be (batch, nodes)."
        )
    if backend == "flex_attention":
        if root_distance is not None:
            raise ValueError(
                "flex_attention does not take root_distance (edges between roots); use attn_implementation='sdpa' or "
                "'eager'."
            )
        attention = _flex_attention(decay, weight.device, shape, attention_mask, root_index, leaf_index, graph_ids)
        # Transformers passes a finished block mask on as it is.
        return attention.block_mask, attention
    if backend == "sdpa" and decay is not None and values_at_hand(weight):
        segments = _segments(shape, attention_mask, nodes)
        if segments is not None:
            places = (None, None) if root_index is None else (root_index.flatten(), leaf_index.flatten())
            if root_distance is not None and not packed:
                # Rows of padding alone have no segment.
                root_distance = root_distance[[start // shape[1] for start, _ in segments]]
            return None, SegmentAttention(segments, decay, *places, weight.dtype, root_distance)
    if not packed:
        return decay_mask(decay, weight, shape, attention_mask, root_index, leaf_index, root_distance), None
    visible, view = nodes >= 0, PaddedViewAttention(nodes, shape[0] * shape[1])
    if decay is None:
        dtype = attention_dtype(weight)
        hidden_GP = torch.zeros(nodes.shape, dtype=dtype, device=nodes.device)
        hidden_GP = hidden_GP.masked_fill(~visible, torch.finfo(dtype).min)
        return hidden_GP[:, None, None, :].expand(-1, 1, nodes.shape[1], -1), view
    rows = (index.flatten()[nodes.clamp(min=0)] for index in (root_index, leaf_index))
    return decay_mask(decay, weight, nodes.shape, visible, *rows, root_distance), view


def decay_mask(
    decay: GraphDecay, weight, shape, attention_mask, root_index, leaf_index, root_distance=None
) -> torch.Tensor:
    """Decay and padding in one attention mask, (B or 1, H, N, N); arguments as in `choose_attention`."""
    if root_index is None:
        root_index = torch.arange(shape[1], device=weight.device)[None, :]
        leaf_index = torch.full_like(root_index, -1)
        # One table for the whole batch where nothing is padded; asking costs nothing on the CPU alone.
        if attention_mask is not None and values_at_hand(attention_mask) and bool(attention_mask.all()):
            attention_mask = None
    visible = None if attention_mask is None else attention_mask.to(torch.bool)[:, None, :]
    return decay(graph_distance(root_index, leaf_index, root_distance), visible, attention_dtype(weight))


def _segments(shape, attention_mask, nodes) -> list[tuple[int, int]] | None:
    """(start, end) of each graph in the flattened rows, on the CPU; None where a row's nodes have holes between them."""
    if nodes is not None:
        sizes = (nodes >= 0).sum(1).tolist()
        return [(start, start + size) for start, size in zip(nodes[:, 0].tolist(), sizes, strict=True)]
    starts = range(0, shape[0] * shape[1], shape[1])
    if attention_mask is None:
        return [(start, start + shape[1]) for start in starts]
    real = attention_mask.to(torch.bool)
    if bool((real[:, 1:] & ~real[:, :-1]).any()):
        return None
    return [(start, start + size) for start, size in zip(starts, real.sum(1).tolist(), strict=True) if size]


def _flex_attention(decay, device, shape, attention_mask, root_index, leaf_index, graph_ids) -> "FlexAttention":
    graph_BN = torch.zeros(shape, dtype=torch.int64, device=device) if graph_ids is None else graph_ids
    if attention_mask is not None:
        graph_BN = torch.where(attention_mask.to(torch.bool), graph_BN, -1)
    if root_index is None:
        root_index = torch.arange(shape[1], device=device).expand(shape)
        leaf_index = torch.full_like(root_index, -1)
    return FlexAttention(graph_BN, root_index, leaf_index, decay)


def multiplicative_attention_forward(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **_kwargs):
    """Attention with logits * exp(g(d)), which `scaled_dot_product_attention` does not compute.

    The factor travels in the place of the attention mask, -1 where attention is hidden. Arguments and results are those of
    the functions in `AttentionInterface`.
    """
    scores_BHNN = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        lowest = torch.finfo(scores_BHNN.dtype).min
        scores_BHNN = torch.where(attention_mask < 0, lowest, scores_BHNN * attention_mask)
    weights_BHNN = nn.functional.softmax(scores_BHNN, dim=-1)
    dropped_BHNN = nn.functional.dropout(weights_BHNN, p=dropout, training=module.training)
    return (dropped_BHNN @ value).transpose(1, 2).contiguous(), weights_BHNN


class GraphSelfAttention(RobertaSelfAttention):
    """RoBERTa's self-attention, with the two things that it cannot do: attention within graphs of a packed row, and
    logits that are multiplied by their decay.
    """

    def forward(self, hidden_states, attention_mask=None, past_key_values=None, graph_attention=None, **kwargs):
        multiplicative = getattr(self.config, "decay_mode", None) == "multiplicative"
        if graph_attention is None and not multiplicative:
            return super().forward(hidden_states, attention_mask, past_key_values, **kwargs)
        dropout = self.dropout.p if self.training else 0.0
        query, key, value = self.query(hidden_states), self.key(hidden_states), self.value(hidden_states)
        if graph_attention is not None:
            return graph_attention(self, query, key, value, attention_mask, dropout)
        query, key, value = (_split_heads(x_BND, self.num_attention_heads) for x_BND in (query, key, value))
        output, weights = multiplicative_attention_forward(
            self, query, key, value, attention_mask, dropout, self.scaling
        )
        return output.flatten(2), weights


def _split_heads(x_BND: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(B, N, D) -> (B, H, N, K)."""
    return x_BND.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class _Regroup(torch.autograd.Function):
    """Rows of a matrix in another order, with places that no row goes to and rows that go nowhere.

    The backward of `index_select` adds into rows; a rearrangement has an inverse, so that it too is a gather.
    """

    @staticmethod
    def forward(ctx, rows, source, target):
        ctx.save_for_backward(target)
        # What stands in places without a row does not matter: nothing attends to them.
        return rows.index_select(0, source.clamp(min=0))

    @staticmethod
    def backward(ctx, grad):
        (target,) = ctx.saved_tensors
        grad = grad.index_select(0, target.clamp(min=0))
        return grad.masked_fill((target < 0)[:, None], 0.0), None, None


class PaddedViewAttention:
    """Packed rows for backends that attend within rows: each graph becomes a row of its own, for attention only.

    Everything else in a layer runs on the packed nodes.

    Args:
        graph_nodes: int64 (G, P), flat positions of each graph's nodes, -1 where it has fewer.
        num_positions: S.
    """

    def __init__(self, graph_nodes: torch.Tensor, num_positions: int):
        self.num_graphs, self.longest = graph_nodes.shape
        self.source = graph_nodes.flatten()
        self.place = node_places(graph_nodes, num_positions)

    def __call__(self, module, query, key, value, attention_mask, dropout):
        name = module.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
        if getattr(module.config, "decay_mode", None) == "multiplicative":
            attend = multiplicative_attention_forward
        views = [_split_heads(self._view(x_BND), module.num_attention_heads) for x_BND in (query, key, value)]
        output_GPHK, weights = attend(module, *views, attention_mask, dropout=dropout, scaling=module.scaling)
        output_SD = _Regroup.apply(output_GPHK.reshape(-1, query.shape[-1]), self.place, self.source)
        return output_SD.view_as(query), weights

    def _view(self, x_BND):
        x_D = _Regroup.apply(x_BND.flatten(0, 1), self.source, self.place)
        return x_D.view(self.num_graphs, self.longest, -1)


def node_places(graph_nodes: torch.Tensor, num_positions: int) -> torch.Tensor:
    """Where each node stands in the flattened `graph_nodes`: int64 (S,), -1 for padding."""
    index = graph_nodes.flatten()
    index = torch.where(index < 0, num_positions, index)
    places = torch.full((num_positions + 1,), -1, dtype=torch.int64, device=index.device)
    return places.scatter(0, index, torch.arange(len(index), device=index.device))[:-1]


class SegmentAttention:
    """Attention graph by graph, each at its own length, with a gradient for the decay's offset: for the CPU.

    On the CPU a bias that needs a gradient keeps `scaled_dot_product_attention` from its fused kernel, and the scores of
    a whole batch do not fit a cache. Those of one graph do. Nothing of N x N is kept for the backward pass but the
    decay itself, once for all layers; the attention weights are computed again.

    Args:
        segments: (start, end) of each graph in the flattened rows.
        decay: the model's decay.
        root_index, leaf_index: int64 (S,); None where all rows are the same chain of roots.
        dtype: of the weights of the model.
        root_distance: int (graphs, R, R), as in `graph_distance`, or None.
    """

    def __init__(self, segments, decay: GraphDecay, root_index, leaf_index, dtype: torch.dtype, root_distance=None):
        self.segments, self.offset, self.multiplicative = segments, decay.offset, decay.multiplicative
        value_HT, slope_HT = decay.tables(torch.promote_types(dtype, torch.float32))
        learns = torch.is_grad_enabled() and decay.offset.requires_grad
        self.decays, self.slopes = [], []
        chains: dict[int, tuple] = {}
        for number, (start, end) in enumerate(segments):
            if root_index is None:
                if end - start not in chains:
                    chain = torch.arange(end - start)[None]
                    chains[end - start] = self._pairs(chain, torch.full_like(chain, -1), value_HT, slope_HT, learns)
                pairs, slope = chains[end - start]
            else:
                nodes = (root_index[None, start:end], leaf_index[None, start:end])
                paths = None if root_distance is None else root_distance[number][None]
                pairs, slope = self._pairs(*nodes, value_HT, slope_HT, learns, paths)
            self.decays.append(pairs)
            self.slopes.append(slope)

    @staticmethod
    def _pairs(root_index, leaf_index, value_HT, slope_HT, learns, root_distance=None):
        distance = graph_distance(root_index, leaf_index, root_distance)
        return gather_columns(value_HT, distance)[0], gather_columns(slope_HT, distance)[0] if learns else None

    def __call__(self, module, query, key, value, _attention_mask, dropout):
        flat = (x_BND.reshape(-1, query.shape[-1]) for x_BND in (query, key, value))
        output_SD = _AttendBySegment.apply(*flat, self.offset, self, module.num_attention_heads, dropout)
        return output_SD.view_as(query), None


class _AttendBySegment(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query_SD, key_SD, value_SD, offset_H, graphs, num_heads, dropout):
        output_SD = torch.zeros_like(query_SD)
        kept = []
        with torch.autocast("cpu", enabled=False):
            for (start, end), decay in zip(graphs.segments, graphs.decays, strict=True):
                query, key, value, output = (
                    _heads(x_SD, start, end, num_heads) for x_SD in (query_SD, key_SD, value_SD, output_SD)
                )
                weights = torch.softmax(_scores(query, key, decay, graphs.multiplicative)[0], dim=-1)
                if dropout > 0:
                    kept.append(torch.empty(weights.shape, dtype=torch.bool).bernoulli_(1 - dropout))
                    weights.mul_(kept[-1]).mul_(1 / (1 - dropout))
                output.copy_(torch.bmm(weights.to(value.dtype), value))
        ctx.save_for_backward(query_SD, key_SD, value_SD, output_SD)
        ctx.graphs, ctx.kept, ctx.dropout, ctx.num_heads = graphs, kept, dropout, num_heads
        ctx.offset_dtype = offset_H.dtype
        return output_SD

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_SD):
        inputs = ctx.saved_tensors
        graphs, learns = ctx.graphs, ctx.needs_input_grad[3]
        grads = [torch.zeros_like(x_SD) for x_SD in inputs[:3]]
        grad_offset_H = torch.zeros(ctx.num_heads, dtype=graphs.decays[0].dtype) if learns else None
        with torch.autocast("cpu", enabled=False):
            for number, (start, end) in enumerate(graphs.segments):
                query, key, value, output, grad, *targets = (
                    _heads(x_SD, start, end, ctx.num_heads) for x_SD in (*inputs, grad_SD, *grads)
                )
                scores, logits = _scores(query, key, graphs.decays[number], graphs.multiplicative)
                weights = torch.softmax(scores, dim=-1)
                grad_weights = torch.bmm(grad, value.transpose(1, 2)).to(weights.dtype)
                dropped = weights
                if ctx.dropout > 0:
                    kept, scale = ctx.kept[number], 1 / (1 - ctx.dropout)
                    dropped = weights.mul(kept).mul_(scale)
                    grad_weights.mul_(kept).mul_(scale)
                targets[2].copy_(torch.bmm(dropped.to(grad.dtype).transpose(1, 2), grad))
                # Softmax: the sum over a row of weight * gradient is output . gradient.
                row_sum = (output * grad).to(weights.dtype).sum(-1, keepdim=True)
                grad_scores = grad_weights.sub_(row_sum).mul_(weights)
                if learns:
                    slope = graphs.slopes[number] if logits is None else graphs.slopes[number] * logits
                    slope = slope.view(ctx.num_heads, -1, 1)
                    grad_offset_H += torch.bmm(grad_scores.view(ctx.num_heads, 1, -1), slope).flatten()
                if graphs.multiplicative:
                    grad_scores.mul_(graphs.decays[number])
                grad_scores = grad_scores.mul_(query.shape[-1] ** -0.5).to(query.dtype)
                targets[0].copy_(torch.bmm(grad_scores, key))
                targets[1].copy_(torch.bmm(grad_scores.transpose(1, 2), query))
        if learns:
            grad_offset_H = grad_offset_H.to(ctx.offset_dtype)
        return *grads, grad_offset_H, None, None, None


def _heads(x_SD: torch.Tensor, start: int, end: int, num_heads: int) -> torch.Tensor:
    """The rows of one graph as (H, n, K), a view."""
    return x_SD[start:end].unflatten(-1, (num_heads, -1)).transpose(0, 1)


def _scores(query, key, decay: torch.Tensor, multiplicative: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """q.k / sqrt(K) + decay, in its dtype: (H, n, n); multiplicative: q.k / sqrt(K) * decay, and q.k / sqrt(K) itself."""
    scale = query.shape[-1] ** -0.5
    if query.dtype == decay.dtype and not multiplicative:
        return torch.baddbmm(decay, query, key.transpose(1, 2), alpha=scale), None
    logits = torch.bmm(query, key.transpose(1, 2)).to(decay.dtype).mul_(scale)
    return (logits * decay, logits) if multiplicative else (logits.add_(decay), None)


# ---- flex_attention


def distance_of(root_index_BN: torch.Tensor, leaf_index_BN: torch.Tensor):
    """`graph_distance` for one pair at a time, in the operations that flex_attention compiles.

    Args:
        root_index_BN, leaf_index_BN: int (B, N), as in `graph_distance`.

    Returns:
        A function (row, query node, key node) -> distance.
    """

    def distance(b, q, k):
        leaf_q, leaf_k = leaf_index_BN[b, q], leaf_index_BN[b, k]
        hops = (root_index_BN[b, q] - root_index_BN[b, k]).abs()
        num_leaves = (leaf_q >= 0).to(hops.dtype) + (leaf_k >= 0).to(hops.dtype)
        siblings = (hops == 0) & (num_leaves == 2)
        return torch.where(siblings, (leaf_q - leaf_k).abs().clamp(max=2), hops + num_leaves)

    return distance


def graph_block_mask(graph_BN: torch.Tensor) -> torch_flex.BlockMask:
    """Which nodes see each other, by blocks of 128: only those of one graph.

    No (N, N) tensor is made and nothing waits for the device, unlike in `create_block_mask`. Any order of nodes is
    right; few blocks are computed where the nodes of a graph stand together, graphs in rising order.

    Args:
        graph_BN: int (B, N), graph of each node; padding is -1.
    """
    num_rows, num_nodes = graph_BN.shape
    num_blocks = -(-num_nodes // FLEX_BLOCK)
    # As the largest number, so that graphs and padding are in rising order.
    last = torch.iinfo(torch.int32).max
    graph_BN = torch.where(graph_BN < 0, last, graph_BN).to(torch.int32)
    graph_BN = nn.functional.pad(graph_BN, (0, num_blocks * FLEX_BLOCK - num_nodes), value=last)
    blocks = graph_BN.view(num_rows, 1, num_blocks, FLEX_BLOCK)
    low, high = blocks.amin(-1), blocks.amax(-1)
    touch = (low[..., :, None] <= high[..., None, :]) & (low[..., None, :] <= high[..., :, None])
    single = (low == high) & (high != last)
    full = touch & single[..., :, None] & single[..., None, :]
    part = touch & ~full

    def listed(flags):
        order = flags.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
        return flags.sum(-1, dtype=torch.int32), order.to(torch.int32)

    def same_graph(b, h, q, k):
        return graph_BN[b, q] == graph_BN[b, k]

    return torch_flex.BlockMask.from_kv_blocks(
        *listed(part),
        *listed(full),
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=same_graph,
        seq_lengths=(num_nodes, num_nodes),
    )


class FlexAttention:
    """Attention with the decay computed on the fly from `root_index` and `leaf_index`, for CUDA.

    The decay of a pair is read from a table over heads and distances; no (N, N) tensor exists.

    The offset's gradient. flex_attention would add each pair's share into the table with atomics, onto a few hundred
    addresses. Instead, with P the attention weights, O = P V the output and s(d) = dg(d)/dp, the derivative of the output
    is itself a difference of two attentions:

        dO_i/dp = sum_j P_ij (s_ij - sum_k P_ik s_ik) V_j = r_i (O'_i - O_i)

    where O' has the logits' bias g(d) + ln(s(d) + c), any c that makes s(d) + c positive, and r_i = exp(lse'_i - lse_i)
    from the two log-sum-exps. So one more forward pass, no atomics and the same result on every run. Where the decay
    multiplies the logits x, s(d) x takes the place of s(d). It may have any sign, so that its positive and its negative
    part have a pass each: logits x exp(g(d)) + ln(max(+-s(d) x, 0)), no c.

    Args:
        graph_BN: int64 (B, N), graph of each node, -1 for padding.
        root_index, leaf_index: int64 (B, N).
        decay: the model's decay, or None.
        offset_gradient: "jacobian" as above, or "table" for the gradient that flex_attention makes.
    """

    offset_gradient = "jacobian"

    def __init__(self, graph_BN, root_index, leaf_index, decay: GraphDecay | None):
        self.block_mask = graph_block_mask(graph_BN)
        self.decay = decay
        self.learns = decay is not None and torch.is_grad_enabled() and decay.offset.requires_grad
        if decay is None:
            return
        self.distance = distance_of(root_index.to(torch.int32), leaf_index.to(torch.int32))
        if self.learns and self.offset_gradient == "table":
            self.value_HT = decay.differentiable_table()
            return
        dtype = torch.promote_types(decay.offset.dtype, torch.float32)
        self.value_HT, self.slope_HT = decay.tables(dtype)

    def __call__(self, module, query, key, value, _attention_mask, dropout):
        needs_grad = torch.is_grad_enabled() and query.requires_grad
        if dropout > 0:
            raise ValueError(
                "flex_attention has no dropout on attention weights: set attention_probs_dropout_prob=0, "
                "or train with attn_implementation='sdpa'."
            )
        if needs_grad and query.device.type == "cpu":
            raise ValueError(
                "flex_attention has no backward pass on the CPU: train there with attn_implementation='sdpa' or 'eager'."
            )
        query, key, value = (_split_heads(x_BND, module.num_attention_heads) for x_BND in (query, key, value))
        output, lse = self._attend(query, key, value, None if self.decay is None else self.value_HT)
        if self.learns and self.offset_gradient == "jacobian":
            with torch.no_grad():
                jacobian = self.offset_jacobian(query, key, value, output, lse)
            output = _WithOffsetGradient.apply(output, jacobian, self.decay.offset)
        return output.transpose(1, 2).flatten(2), None

    def offset_jacobian(self, query, key, value, output, lse) -> torch.Tensor:
        """dO/dp, (B, H, N, K) in the dtype of the output."""
        if self.decay.multiplicative:
            passes = [(sign, self._attend(query, key, value, self.value_HT, sign * self.slope_HT)) for sign in (1, -1)]
        else:
            # s(d) is -ln(lambda) times the derivative of GELU, which is never below -0.13. Without decay it is 0.
            shift = for_each_head(tuple(-log_base or 1.0 for log_base in self.decay.log_bases), self.decay.offset)
            shifted_HT = self.value_HT + (self.slope_HT + shift).log()
            passes = [(1, self._attend(query, key, value, shifted_HT))]
        parts = [
            sign * (other - output) * (other_lse - lse).exp()[..., None].to(output.dtype)
            for sign, (other, other_lse) in passes
        ]
        return sum(parts[1:], start=parts[0])

    def _attend(self, query, key, value, table_HT, weight_HT=None):
        """Output and log-sum-exp. `weight_HT`: weigh attention by the positive part of weight * logit (multiplicative)."""
        score_mod = None
        if table_HT is not None:
            distance, multiplicative = self.distance, self.decay.multiplicative

            def score_mod(score, b, h, q, k):
                pair = distance(b, q, k)
                if not multiplicative:
                    return score + table_HT[h, pair]
                if weight_HT is None:
                    return score * table_HT[h, pair]
                return score * table_HT[h, pair] + (score * weight_HT[h, pair]).clamp(min=_SMALLEST_WEIGHT).log()

        return _flex_with_lse(query, key, value, score_mod, self.block_mask)


class _WithOffsetGradient(torch.autograd.Function):
    """The output as it is; backward, the offset gets the output's gradient times the derivative of the output."""

    @staticmethod
    def forward(ctx, output_BHNK, jacobian_BHNK, offset_H):
        ctx.save_for_backward(jacobian_BHNK)
        ctx.offset_dtype = offset_H.dtype
        return output_BHNK.view_as(output_BHNK)

    @staticmethod
    def backward(ctx, grad_BHNK):
        (jacobian_BHNK,) = ctx.saved_tensors
        dtype = torch.promote_types(ctx.offset_dtype, torch.float32)
        grad_H = (grad_BHNK.to(dtype) * jacobian_BHNK.to(dtype)).sum((0, 2, 3))
        return grad_BHNK, None, grad_H.to(ctx.offset_dtype)


# In place of 0, whose logarithm would leave a row without anything to attend to.
_SMALLEST_WEIGHT = 1e-30

_compiled: dict = {}


def _flex_with_lse(query, key, value, score_mod, block_mask):
    """flex_attention and its log-sum-exp, compiled on devices that have a kernel for it."""
    attend = torch_flex.flex_attention
    if query.device.type != "cpu" and not torch.compiler.is_compiling():
        if "flex" not in _compiled:
            _compiled["flex"] = torch.compile(torch_flex.flex_attention)
        attend = _compiled["flex"]
    if not hasattr(torch_flex, "AuxRequest"):
        return attend(query, key, value, score_mod=score_mod, block_mask=block_mask, return_lse=True)
    aux = torch_flex.AuxRequest(lse=True)
    output, extra = attend(query, key, value, score_mod=score_mod, block_mask=block_mask, return_aux=aux)
    return output, extra.lse
