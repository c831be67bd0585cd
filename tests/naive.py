"""Slow, obvious references for the model's mechanisms: Python loops, one number at a time.

Tensors go in as float64 and stay torch scalars, so that gradients can be compared as well as values.
"""

import math

import torch


def gelu(x: torch.Tensor) -> torch.Tensor:
    """x times the normal distribution's probability of being below x."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def decay(distance: int, offset: torch.Tensor, base: float) -> torch.Tensor:
    """g(d) = ln(lambda) * GELU(sqrt(d) - p)."""
    return math.log(base) * gelu(math.sqrt(distance) - offset)


def chain_graph_distances(
    num_roots: int, used_leaves: list[tuple[int, int]], root_edges: list[tuple[int, int]] = ()
) -> tuple[list[tuple[int, int]], list[list[float]]]:
    """Nodes (root, leaf or -1) and their shortest paths, by Floyd-Warshall on the explicit edges."""
    nodes = [(i, -1) for i in range(num_roots)] + sorted(used_leaves)
    edges = [((i, -1), (i + 1, -1)) for i in range(num_roots - 1)]
    edges += [((one, -1), (other, -1)) for one, other in root_edges]
    for root, leaf in used_leaves:
        edges.append(((root, -1), (root, leaf)))
        if (root, leaf + 1) in used_leaves:
            edges.append(((root, leaf), (root, leaf + 1)))
    index = {node: n for n, node in enumerate(nodes)}
    paths = [[0.0 if a == b else math.inf for b in range(len(nodes))] for a in range(len(nodes))]
    for one, other in edges:
        paths[index[one]][index[other]] = paths[index[other]][index[one]] = 1.0
    for via in range(len(nodes)):
        for a in range(len(nodes)):
            for b in range(len(nodes)):
                paths[a][b] = min(paths[a][b], paths[a][via] + paths[via][b])
    return nodes, paths


def hgat(words, batch, weight, direction_gain, attention, negative_slope, num_roots):
    """H-GAT leaf by leaf, head token by head token, with the matrices of the equations written out."""
    output = []
    hidden_size = words.shape[-1]
    for b in range(words.shape[0]):
        rows = []
        for n in range(words.shape[1]):
            tail = words[b, n]
            relation = int(batch["relation_ids"][b, n])
            is_leaf = int(batch["leaf_index"][b, n]) >= 0 and int(batch["attention_mask"][b, n]) == 1
            heads = []
            if is_leaf and relation >= 0:
                start, length = int(batch["head_start"][b, n]), int(batch["head_length"][b, n])
                for root in range(start, start + length):
                    for k in range(words.shape[1]):
                        is_root = int(batch["leaf_index"][b, k]) < 0 and int(batch["attention_mask"][b, k]) == 1
                        if is_root and int(batch["root_index"][b, k]) == root:
                            heads.append(words[b, k])
            if not heads:
                rows.append(tail)
                continue
            direction = int(batch["relation_reversed"][b, n])
            matrix = torch.diag(direction_gain[direction, relation]) @ weight[relation]
            vector = attention[direction, relation]
            energies = []
            for head in heads:
                both = torch.cat([matrix @ tail, matrix @ head])
                energy = sum(vector[i] * both[i] for i in range(2 * hidden_size))
                energies.append(energy if energy > 0 else negative_slope * energy)
            exponentials = [torch.exp(energy) for energy in energies]
            update = torch.zeros_like(tail)
            for exponential, head in zip(exponentials, heads, strict=True):
                update = update + exponential / sum(exponentials) * (matrix @ head)
            rows.append(tail + update)
        output.append(torch.stack(rows))
    return torch.stack(output)


def self_attention(states, layer, batch, offset, mode, base):
    """One self-attention layer, pair by pair, with the decay of each pair's distance; bases are dealt to the heads."""
    bases = base if isinstance(base, list) else [base]
    num_heads, head_size = layer.num_attention_heads, layer.attention_head_size
    query, key, value = layer.query(states), layer.key(states), layer.value(states)
    output = []
    for b in range(states.shape[0]):
        rows = []
        for n in range(states.shape[1]):
            parts = []
            for h in range(num_heads):
                part = slice(h * head_size, (h + 1) * head_size)
                columns = [k for k in range(states.shape[1]) if int(batch["attention_mask"][b, k])]
                logits = []
                for k in columns:
                    logit = (query[b, n, part] * key[b, k, part]).sum() / math.sqrt(head_size)
                    distance = pair_distance(batch, b, n, k)
                    if mode == "bias":
                        logit = logit + decay(distance, offset[h], bases[h % len(bases)])
                    elif mode == "multiplicative":
                        logit = logit * torch.exp(decay(distance, offset[h], bases[h % len(bases)]))
                    logits.append(logit)
                weights = [torch.exp(logit) for logit in logits]
                parts.append(sum(w / sum(weights) * value[b, k, part] for w, k in zip(weights, columns, strict=True)))
            rows.append(torch.cat(parts))
        output.append(torch.stack(rows))
    return torch.stack(output)


def pair_distance(batch, b: int, n: int, k: int) -> int:
    """The table of distances, case by case."""
    root_n, leaf_n = int(batch["root_index"][b, n]), int(batch["leaf_index"][b, n])
    root_k, leaf_k = int(batch["root_index"][b, k]), int(batch["leaf_index"][b, k])
    hops = abs(root_n - root_k)
    if "root_distance" in batch:
        hops = int(batch["root_distance"][b, root_n, root_k])
    if leaf_n < 0 and leaf_k < 0:
        return hops
    if leaf_n < 0 or leaf_k < 0:
        return hops + 1
    if root_n != root_k:
        return hops + 2
    return min(abs(leaf_n - leaf_k), 2)


def objectives(logits, relation_logits, batch):
    """Means of -log p over the targets of each kind: (mlm, relation, tail)."""
    sums = {"mlm": [], "relation": [], "tail": []}
    for b in range(logits.shape[0]):
        for n in range(logits.shape[1]):
            label, relation = int(batch["labels"][b, n]), int(batch["relation_labels"][b, n])
            is_leaf = int(batch["leaf_index"][b, n]) >= 0
            if label != -100:
                loss = torch.log(torch.exp(logits[b, n]).sum()) - logits[b, n, label]
                sums["tail" if is_leaf else "mlm"].append(loss)
            if relation != -100:
                scores = relation_logits[b, int(batch["root_index"][b, n]), int(batch["leaf_index"][b, n])]
                sums["relation"].append(torch.log(torch.exp(scores).sum()) - scores[relation])
    return tuple(sum(values) / len(values) if values else torch.zeros(()) for values in sums.values())
