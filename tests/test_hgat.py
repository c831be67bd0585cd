"""H-GAT against its reference, values and gradients."""

import random

import naive
import pytest
import torch
from graph_batches import Anchor, Graph, compact_batch, packed_batch, padded_batch
from tiny_model import LEAVES, NUM_ROOTS, RELATIONS, batch, graphs, inputs_of, randomize, tiny_config, tiny_model

from graphmert.batch_indices_graphmert import batch_indices
from graphmert.graph_layers_graphmert import HierarchicalGraphAttention, grouped_linear
from graphmert.modeling_graphmert import GraphMertForPreTraining, GraphMertModel

HIDDEN = 6


def _layer(slope: float = 0.2) -> HierarchicalGraphAttention:
    return randomize(HierarchicalGraphAttention(HIDDEN, RELATIONS, 0.0, slope).double(), seed=3).eval()


def _apply(layer, words, graph_batch):
    indices = batch_indices(graph_batch, RELATIONS)
    places = (indices[name] for name in ("leaf_nodes", "leaf_grid", "head_pairs"))
    return layer(words, graph_batch["relation_reversed"], *places)


@pytest.mark.parametrize("layout", ["compact", "padded", "packed"])
@pytest.mark.parametrize("sizes", [(1,), (NUM_ROOTS, 1, 4)])
@pytest.mark.parametrize("slope", [0.2, 0.0])
def test_values_and_gradients_equal_the_loops(sizes, layout, slope):
    layer = _layer(slope)
    examples = graphs(seed=5, sizes=sizes)
    graph_batch = compact_batch(examples) if layout == "compact" else padded_batch(examples, NUM_ROOTS, LEAVES)
    if layout == "packed":
        graph_batch = packed_batch(examples)
    torch.manual_seed(0)
    words = torch.randn(*graph_batch["input_ids"].shape, HIDDEN, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(words.shape, dtype=torch.float64)
    wanted = [words, layer.weight, layer.direction_gain, layer.attention]

    output = _apply(layer, words, graph_batch)
    if layout == "packed":
        # The reference knows rows of one graph.
        rows = [words[0, graph_batch["graph_ids"][0] == number][None] for number in range(len(sizes))]
        parameters = (layer.weight, layer.direction_gain, layer.attention, slope, NUM_ROOTS)
        parts = [naive.hgat(row, compact_batch([x]), *parameters) for row, x in zip(rows, examples, strict=True)]
        expected = torch.cat(parts, dim=1)
    else:
        expected = naive.hgat(
            words, graph_batch, layer.weight, layer.direction_gain, layer.attention, slope, NUM_ROOTS
        )
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)
    assert not torch.equal(output, words)
    gradients = torch.autograd.grad((output * weight).sum(), wanted)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), wanted)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-11)
    # With one head token alpha is 1, and the attention vectors get no gradient.
    assert all(gradient.abs().max() > 0 for gradient in (gradients if len(sizes) > 1 else gradients[:3]))


def test_one_triple_worked_by_hand():
    """One leaf, two head tokens, W = 2 I, gain 1: t' = t + 2 (alpha h_1 + (1 - alpha) h_2)."""
    layer = HierarchicalGraphAttention(2, 1, 0.0, 0.2).double().eval()
    with torch.no_grad():
        layer.weight[0] = 2 * torch.eye(2)
        layer.attention[0, 0] = torch.tensor([1.0, 0.0, 0.0, 1.0])
    words = torch.tensor([[[1.0, 0.0], [0.0, 3.0], [-4.0, 0.5]]], dtype=torch.float64)
    leaf_nodes, leaf_grid, head_pairs = torch.tensor([2]), torch.tensor([[0], [1]]), torch.tensor([[0, 0], [0, 1]])
    # e_j = LeakyReLU(2 t_0 + 2 h_j1): LeakyReLU(-8 + 0) = -1.6 and LeakyReLU(-8 + 6) = -0.4.
    alpha = torch.softmax(torch.tensor([-1.6, -0.4], dtype=torch.float64), 0)
    expected = words[0, 2] + 2 * (alpha[0] * words[0, 0] + alpha[1] * words[0, 1])
    output = layer(words, torch.zeros(1, 3, dtype=torch.long), leaf_nodes, leaf_grid, head_pairs)
    torch.testing.assert_close(output[0, 2], expected)
    assert torch.equal(output[0, :2], words[0, :2])


def test_roots_and_leaves_without_relation_stay():
    layer, graph_batch = _layer(), batch()
    graph_batch["relation_ids"][0] = -1
    words = torch.randn(*graph_batch["input_ids"].shape, HIDDEN, dtype=torch.float64)
    output = _apply(layer, words, graph_batch)
    assert torch.equal(output[0], words[0])
    roots = graph_batch["leaf_index"] < 0
    assert torch.equal(output[roots], words[roots])


def test_starts_as_the_identity():
    model = GraphMertModel(tiny_config(decay_mode=None)).eval()
    bare = GraphMertModel(tiny_config(decay_mode=None, use_hgat=False)).eval()
    bare.load_state_dict(model.state_dict(), strict=False)
    inputs = inputs_of(batch())
    assert not any(name.startswith("hgat") for name in bare.state_dict())
    assert torch.equal(model(**inputs).last_hidden_state, bare(**inputs).last_hidden_state)


def test_other_starts():
    """ "identity" adds the scaled words of the head's token, "normal" draws W_r with the standard deviation asked for."""
    layer = GraphMertModel(tiny_config(hgat_init="identity", hgat_init_scale=0.1)).hgat.double().eval()
    words = torch.randn(1, 4, layer.weight.shape[1], dtype=torch.float64)
    # Roots 0..2 and a leaf of relation 2 whose head is root 1.
    inputs = {
        "root_index": torch.tensor([[0, 1, 2, 1]]),
        "leaf_index": torch.tensor([[-1, -1, -1, 0]]),
        "relation_ids": torch.tensor([[-1, -1, -1, 2]]),
        "head_start": torch.tensor([[0, 0, 0, 1]]),
        "head_length": torch.tensor([[0, 0, 0, 1]]),
    }
    indices = batch_indices(inputs, layer.weight.shape[0] - 1)
    places = (indices[name] for name in ("leaf_nodes", "leaf_grid", "head_pairs"))
    changed = layer(words, torch.zeros_like(inputs["relation_ids"]), *places)
    torch.testing.assert_close(changed[0, 3], words[0, 3] + 0.1 * words[0, 1])
    torch.manual_seed(0)
    weight = GraphMertModel(tiny_config(hgat_init="normal", hgat_init_scale=0.3)).hgat.weight
    assert weight.std().item() == pytest.approx(0.3, rel=0.05) and abs(weight.mean().item()) < 0.03


def test_every_parameter_moves_away_from_the_start():
    """W gets a gradient at W = 0; gain and attention as soon as W has moved."""
    torch.manual_seed(0)
    model = GraphMertForPreTraining(tiny_config())
    graph_batch = batch(seed=2, sizes=(NUM_ROOTS,) * 6)
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        model(**graph_batch).loss.backward()
        optimizer.step()
    still = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    assert still == []


def test_masked_relation_and_directions_have_their_own_parameters():
    """The same triple as relation 2, as the masked relation, and read backwards gives three results."""
    layer = _layer()
    words = torch.randn(1, 4, HIDDEN, dtype=torch.float64)
    states = []
    for relation, direction in ((2, 0), (RELATIONS, 0), (2, 1), (RELATIONS, 1)):
        graph_batch = compact_batch([Graph([5, 6, 7], [Anchor(1, 0, [8], relation, 0, 2, direction)])])
        states.append(_apply(layer, words, graph_batch)[0, 3])
    for i in range(4):
        for j in range(i):
            assert (states[i] - states[j]).abs().max() > 1e-3


def test_order_of_triples_is_irrelevant():
    model = tiny_model(GraphMertModel)
    examples = graphs(seed=9)
    one, other = compact_batch(examples), compact_batch(examples, permute_leaves=random.Random(1))
    assert not torch.equal(one["input_ids"], other["input_ids"])
    with torch.no_grad():
        states, permuted = (model(**inputs_of(b)).last_hidden_state for b in (one, other))
    for b in range(len(examples)):
        nodes = [
            list(zip(x["root_index"][b].tolist(), x["leaf_index"][b].tolist(), strict=True)) for x in (one, other)
        ]
        for n in range(int(one["attention_mask"][b].sum())):
            torch.testing.assert_close(permuted[b, nodes[1].index(nodes[0][n])], states[b, n], rtol=1e-10, atol=1e-12)


def test_relation_dropout_only_while_training():
    model = tiny_model(GraphMertModel, relation_dropout=0.9)
    inputs = inputs_of(batch())
    with torch.no_grad():
        still = [model(**inputs).last_hidden_state for _ in range(2)]
        model.train()
        moved = [model(**inputs).last_hidden_state for _ in range(2)]
    assert torch.equal(*still)
    assert not torch.equal(*moved)


def test_relation_dropout_acts_on_matrices_and_attention_vectors():
    """Dropped entries get no gradient: about as many as the probability says, none of them in evaluation."""
    layer = randomize(HierarchicalGraphAttention(64, 1, 0.4, 0.2).double(), seed=3)
    words = torch.randn(1, 8, 64, dtype=torch.float64)
    # Four leaves, each on the four roots before them.
    reverse, leaf_nodes = torch.zeros(1, 8, dtype=torch.long), torch.arange(4, 8)
    leaf_grid = torch.tensor([[0, 1, 2, 3], [4] * 4])
    head_pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4)).t()
    for training in (True, False):
        layer.train(training).zero_grad()
        layer(words, reverse, leaf_nodes, leaf_grid, head_pairs).square().sum().backward()
        for gradient in (layer.weight.grad[0], layer.attention.grad[0, 0]):
            dropped = (gradient == 0).double().mean().item()
            assert 0.25 < dropped < 0.55 if training else dropped == 0


def test_relations_count_on_leaves_only():
    """A relation id on a root, or on padding, changes nothing."""
    model, inputs = tiny_model(GraphMertModel), inputs_of(batch())
    other = {name: value.clone() for name, value in inputs.items()}
    no_leaf = (inputs["leaf_index"] < 0) | (inputs["attention_mask"] == 0)
    other["relation_ids"][no_leaf], other["head_length"][no_leaf] = 1, 2
    with torch.no_grad():
        assert torch.equal(model(**inputs).last_hidden_state, model(**other).last_hidden_state)


def test_one_product_for_all_relations_is_the_same():
    """What devices compute, where sizes are not at hand, against what the CPU computes."""
    layer, graph_batch = _layer(), batch(seed=7)
    words = torch.randn(*graph_batch["input_ids"].shape, HIDDEN, dtype=torch.float64, requires_grad=True)
    wanted = [words, layer.weight, layer.direction_gain, layer.attention]
    results = []
    for compiling in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda value=compiling: value)
            output = _apply(layer, words, graph_batch)
        results.append([output, *torch.autograd.grad(output.square().sum(), wanted)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_grouped_linear_with_empty_groups():
    weight = torch.randn(4, 3, 3, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(5, 3, dtype=torch.float64)
    output = grouped_linear(rows, [0, 2, 0, 3], weight)
    expected = torch.stack([rows[m] @ weight[1 if m < 2 else 3].t() for m in range(5)])
    torch.testing.assert_close(output, expected)
    nothing = grouped_linear(rows[:0], [0, 0, 0, 0], weight)
    assert nothing.shape == (0, 3)
    (gradient,) = torch.autograd.grad(nothing.sum(), weight)
    assert gradient.abs().max() == 0
