"""Distances and attention decay against their references."""

import random

import naive
import pytest
import torch
from graph_batches import Anchor, Graph, compact_batch, padded_batch
from tiny_model import LEAVES, NUM_ROOTS, batch, graphs, inputs_of, tiny_config, tiny_model
from torch.nn import functional as F

from graphmert.attention_graphmert import decay_mask
from graphmert.graph_layers_graphmert import GraphDecay, graph_distance
from graphmert.modeling_graphmert import GraphMertModel


@pytest.mark.parametrize("seed", range(8))
def test_closed_form_is_the_shortest_path(seed):
    rng = random.Random(seed)
    num_roots = rng.choice([1, 2, 5, 7])
    used = [(i, j) for i in range(num_roots) for j in range(4) if rng.random() < 0.6]
    nodes, paths = naive.chain_graph_distances(num_roots, used)
    root_index = torch.tensor([[root for root, _ in nodes]])
    leaf_index = torch.tensor([[leaf for _, leaf in nodes]])
    assert graph_distance(root_index, leaf_index)[0].tolist() == [[int(d) for d in row] for row in paths]


def test_distances_written_by_hand():
    # Roots 0, 1; leaves (0, 0), (0, 1), (0, 3), (1, 0).
    root_index = torch.tensor([[0, 1, 0, 0, 0, 1]])
    leaf_index = torch.tensor([[-1, -1, 0, 1, 3, 0]])
    assert graph_distance(root_index, leaf_index)[0].tolist() == [
        [0, 1, 1, 1, 1, 2],
        [1, 0, 2, 2, 2, 1],
        [1, 2, 0, 1, 2, 3],
        [1, 2, 1, 0, 2, 3],
        [1, 2, 2, 2, 0, 3],
        [2, 1, 3, 3, 3, 0],
    ]


@pytest.mark.parametrize("bases", [[0.6], [0.1, 1.0]])
@pytest.mark.parametrize("multiplicative", [False, True])
def test_decay_table_and_its_gradient(multiplicative, bases):
    torch.manual_seed(0)
    decay = GraphDecay(3, 12, base=bases, offset_init=1.0, multiplicative=multiplicative).double()
    with torch.no_grad():
        decay.offset.copy_(torch.tensor([1.0, 0.3, -2.0]))
    distance = torch.randint(0, 12, (2, 5, 5))
    visible = torch.rand(2, 5, 5) < 0.7
    weight = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    result = decay(distance, visible, torch.float64)
    (gradient,) = torch.autograd.grad((result * weight).sum(), decay.offset)

    offset = decay.offset.detach().clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for b, h, i, k in torch.cartesian_prod(*map(torch.arange, (2, 3, 5, 5))).tolist():
        if not visible[b, i, k]:
            assert result[b, h, i, k] == (-1 if multiplicative else torch.finfo(torch.float64).min)
            continue
        expected = naive.decay(int(distance[b, i, k]), offset[h], bases[h % len(bases)])
        expected = torch.exp(expected) if multiplicative else expected
        torch.testing.assert_close(result[b, h, i, k], expected, rtol=1e-12, atol=1e-12)
        total = total + expected * weight[b, h, i, k]
    (expected_gradient,) = torch.autograd.grad(total, offset)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-12)


def test_decay_is_exact_gelu_at_its_ends():
    decay = GraphDecay(1, 1027, base=0.6, offset_init=1.0, multiplicative=False)
    distance = torch.tensor([[[0, 1, 4, 1026]]])
    log_base = torch.tensor(0.6).log()
    expected = log_base * F.gelu(distance[0].double().sqrt() - 1)
    torch.testing.assert_close(decay(distance.expand(1, 4, 4), None, torch.float32)[0, 0, :1], expected.float())
    decay(distance.expand(1, 4, 4), None, torch.float32).sum().backward()
    assert torch.isfinite(decay.offset.grad).all()


def _attention_inputs(model, graph_batch):
    torch.manual_seed(1)
    states = torch.randn(*graph_batch["input_ids"].shape, model.config.hidden_size, dtype=torch.float64)
    return states.requires_grad_()


def _attention_module(model, states, graph_batch):
    """The first layer's self-attention, called as the model calls it."""
    mask = graph_batch["attention_mask"]
    if model.decay is not None:
        weight = model.embeddings.word_embeddings.weight
        mask = decay_mask(model.decay, weight, mask.shape, mask, graph_batch["root_index"], graph_batch["leaf_index"])
    else:
        mask = (
            torch.zeros(mask.shape).double().masked_fill(mask == 0, torch.finfo(torch.float64).min)[:, None, None, :]
        )
    return model.encoder.layer[0].attention.self(states, mask)[0]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("base", [0.6, [0.1, 1.0]], ids=str)
@pytest.mark.parametrize("mode", ["bias", "multiplicative", None])
def test_attention_layer_equals_pairwise_loops(mode, base, implementation):
    model = tiny_model(GraphMertModel, decay_mode=mode, decay_base=base, attn_implementation=implementation)
    graph_batch = batch(sizes=(3, 1, 2))
    states = _attention_inputs(model, graph_batch)
    layer = model.encoder.layer[0].attention.self
    offset = model.decay.offset if mode else None
    wanted = [states, layer.query.weight, layer.key.bias, layer.value.weight] + ([offset] if mode else [])
    real = graph_batch["attention_mask"].bool()
    torch.manual_seed(2)
    weight = torch.randn(states.shape, dtype=torch.float64) * real[:, :, None]

    output = _attention_module(model, states, graph_batch)
    expected = naive.self_attention(states, layer, graph_batch, offset, mode, model.config.decay_base)
    torch.testing.assert_close(output[real], expected[real], rtol=1e-9, atol=1e-11)
    gradients = torch.autograd.grad((output * weight).sum(), wanted)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), wanted)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-11)
    assert torch.isfinite(output).all()


@pytest.mark.parametrize("mode", ["bias", "multiplicative"])
def test_decay_applies_to_plain_tokens(mode):
    """Without graph inputs all tokens are roots, whether or not the batch is padded."""
    model = tiny_model(GraphMertModel, decay_mode=mode)
    input_ids = torch.randint(4, 90, (2, 6))
    input_ids[1, 4:] = 1
    mask = (input_ids != 1).long()
    root_index = torch.arange(6).expand(2, 6)
    with torch.no_grad():
        plain = model(input_ids, attention_mask=mask).last_hidden_state
        as_graph = model(input_ids, attention_mask=mask, root_index=root_index).last_hidden_state
        alone = model(input_ids[1:, :4]).last_hidden_state
        near = model(input_ids[:1]).last_hidden_state
    torch.testing.assert_close(plain[mask.bool()], as_graph[mask.bool()], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(plain[1:, :4], alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(plain[:1], near, rtol=1e-12, atol=1e-12)


def test_the_table_reaches_the_longest_distance():
    """Leaves at both ends of a graph that fills all positions are two steps farther apart than there are roots."""
    roomy = tiny_model(GraphMertModel, leaf_position="root")
    tight = GraphMertModel(tiny_config(leaf_position="root", max_position_embeddings=NUM_ROOTS + 2)).double().eval()
    weights = roomy.state_dict()
    positions = "embeddings.position_embeddings.weight"
    tight.load_state_dict({**weights, positions: weights[positions][: NUM_ROOTS + 2]})
    ends = [Anchor(root, 0, [5 + root], 1, root, 1) for root in (0, NUM_ROOTS - 1)]
    inputs = inputs_of(compact_batch([Graph(list(range(10, 10 + NUM_ROOTS)), ends)]))
    with torch.no_grad():
        one, other = (model(**inputs).last_hidden_state for model in (roomy, tight))
    assert graph_distance(inputs["root_index"], inputs["leaf_index"]).max() == NUM_ROOTS + 1
    assert torch.equal(one, other)


def test_far_nodes_lose_attention_to_an_added_decay():
    options = {"attn_implementation": "eager", "dtype": torch.float32, "decay_base": 0.1, "decay_mode": "bias"}
    model = tiny_model(GraphMertModel, **options)
    with torch.no_grad():
        for layer in model.encoder.layer:
            layer.attention.self.query.weight.zero_()
            layer.attention.self.query.bias.zero_()
        weights = model(torch.arange(4, 34)[None], output_attentions=True).attentions[0][0, 0, 0]
    assert (weights[2:-1] > weights[3:]).all()


def test_far_nodes_are_averaged_by_a_multiplied_decay():
    options = {"attn_implementation": "eager", "dtype": torch.float32, "decay_base": 0.01}
    model = tiny_model(GraphMertModel, decay_mode="multiplicative", **options)
    with torch.no_grad():
        weights = model(torch.arange(4, 40)[None], output_attentions=True).attentions[0][0, :, 0]
    near, far = weights[:, :4], weights[:, 28:]
    # The same weight for all of them, which is neither the smallest nor nothing.
    torch.testing.assert_close(far, far[:, :1].expand_as(far), rtol=1e-4, atol=0)
    assert (near.std(-1) > 100 * far.std(-1)).all() and (near.min(-1)[0] < far[:, 0]).any()


def test_padding_stays_finite_and_without_effect():
    model = tiny_model(GraphMertModel, dtype=torch.float32)
    graph_batch = inputs_of(compact_batch(graphs(sizes=(2, 7))))
    other = {name: value.clone() for name, value in graph_batch.items()}
    padding = other["attention_mask"] == 0
    other["input_ids"][padding] = 50
    other["root_index"][padding] = 3
    other["leaf_index"][padding] = 1
    other["relation_ids"][padding] = 2
    other["head_length"][padding] = 4
    with torch.no_grad():
        one, two = (model(**inputs).last_hidden_state for inputs in (graph_batch, other))
    assert torch.isfinite(one).all() and torch.isfinite(two).all()
    torch.testing.assert_close(one[~padding], two[~padding])


@pytest.mark.parametrize("mode", ["bias", "multiplicative", None])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_an_example_of_padding_only_is_finite(mode, implementation):
    model = tiny_model(GraphMertModel, dtype=torch.float32, decay_mode=mode, attn_implementation=implementation)
    graph_batch = inputs_of(padded_batch(graphs(sizes=(3, 2)), NUM_ROOTS, LEAVES))
    graph_batch["attention_mask"][1] = 0
    output = model(**graph_batch).last_hidden_state
    output.sum().backward()
    assert torch.isfinite(output).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_single_head_takes_the_first_base():
    two, one = (GraphDecay(1, 9, base=base, offset_init=1.0, multiplicative=False) for base in ([0.1, 1.0], 0.1))
    torch.testing.assert_close(two.tables(torch.float32), one.tables(torch.float32))
    assert (
        GraphMertModel(tiny_config(num_attention_heads=1)).decay.log_bases
        == GraphMertModel(tiny_config()).decay.log_bases
    )
