"""flex_attention: its distances, masks and values on the CPU, its gradients where there is a CUDA device."""

import naive
import pytest
import torch
from graph_batches import compact_batch, packed_batch, padded_batch
from tiny_model import LEAVES, NUM_ROOTS, graphs, inputs_of, tiny_model

from graphmert.attention_graphmert import FLEX_BLOCK, FlexAttention, distance_of, graph_block_mask, preferred_attention
from graphmert.graph_layers_graphmert import graph_distance
from graphmert.modeling_graphmert import GraphMertForPreTraining, GraphMertModel

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="flex_attention has no backward pass on the CPU")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _packed():
    return packed_batch(graphs(sizes=(NUM_ROOTS, 4, 1, 5)), [0, 1, 1, 0], 3)


def test_distances_of_all_pairs():
    inputs = compact_batch(graphs(sizes=(NUM_ROOTS, 3)))
    root, leaf = inputs["root_index"], inputs["leaf_index"]
    distance, expected = distance_of(root, leaf), graph_distance(root, leaf)
    for b, i, k in torch.cartesian_prod(*map(torch.arange, expected.shape)):
        assert distance(b, i, k) == expected[b, i, k]


BASES = pytest.mark.parametrize("base", [0.6, [0.1, 1.0]], ids=str)


@BASES
@pytest.mark.parametrize("mode", ["bias", "multiplicative"])
def test_scores_are_the_decay_of_the_equation(mode, base):
    """score_mod in float64 for all pairs and heads, against the equation."""
    inputs, model = packed_batch(graphs(sizes=(3, 2))), tiny_model(GraphMertModel, decay_mode=mode, decay_base=base)
    bases = base if isinstance(base, list) else [base]
    attention = FlexAttention(inputs["graph_ids"], inputs["root_index"], inputs["leaf_index"], model.decay)
    num_rows, num_nodes = inputs["graph_ids"].shape
    zero, heads = torch.zeros((), dtype=torch.float64), range(4)
    for b, i, k in torch.cartesian_prod(torch.arange(num_rows), torch.arange(num_nodes), torch.arange(num_nodes)):
        for h in heads:
            score = zero + attention.value_HT[h, attention.distance(b, i, k)]
            distance = naive.pair_distance(inputs, int(b), int(i), int(k))
            expected = naive.decay(distance, model.decay.offset[h], bases[h % len(bases)])
            expected = expected.exp() if mode == "multiplicative" else expected
            torch.testing.assert_close(score, expected.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("num_nodes", [1, FLEX_BLOCK, FLEX_BLOCK + 1, 5 * FLEX_BLOCK - 3])
def test_block_mask_covers_all_pairs_of_a_graph_and_no_others(num_nodes):
    generator = torch.Generator().manual_seed(num_nodes)
    graph = (torch.rand(2, num_nodes, generator=generator) < 0.01).cumsum(1)
    graph[0, num_nodes - num_nodes // 5 :] = -1
    # Any order is right.
    graph[1] = graph[1][torch.randperm(num_nodes, generator=generator)]
    mask = graph_block_mask(graph)
    seen = torch.zeros(2, num_nodes, num_nodes, dtype=torch.bool)
    columns = torch.arange(num_nodes)
    for b in range(2):
        same = mask.mask_mod(torch.tensor(b), torch.tensor(0), columns[:, None], columns[None, :])
        for kind, everything in ((mask.kv_num_blocks, False), (mask.full_kv_num_blocks, True)):
            indices = mask.full_kv_indices if everything else mask.kv_indices
            for i in range(kind.shape[2]):
                rows = slice(i * FLEX_BLOCK, (i + 1) * FLEX_BLOCK)
                for j in indices[b, 0, i, : int(kind[b, 0, i])].tolist():
                    place = (b, rows, slice(j * FLEX_BLOCK, (j + 1) * FLEX_BLOCK))
                    seen[place] |= torch.ones_like(seen[place]) if everything else same[place[1:]]
    real = graph >= 0
    expected = graph[:, :, None] == graph[:, None, :]
    assert torch.equal(seen[real], expected[real])


def test_far_graphs_cost_no_blocks():
    """Graphs of one block each: a block attends to itself alone, padding at the end included."""
    graph = torch.arange(8).repeat_interleave(FLEX_BLOCK)[None]
    graph = torch.cat([graph, torch.full((1, 2 * FLEX_BLOCK), -1)], dim=1)
    mask = graph_block_mask(graph)
    assert mask.full_kv_num_blocks[0, 0].tolist() == [1] * 8 + [0, 0]
    assert mask.kv_num_blocks[0, 0].tolist() == [0] * 8 + [2, 2]


@BASES
@pytest.mark.parametrize("mode", ["bias", "multiplicative", None])
def test_flex_forward_equals_eager(mode, base):
    examples = graphs(sizes=(NUM_ROOTS, 4, 1, 5))
    options = {"decay_mode": mode, "decay_base": base}
    eager = tiny_model(GraphMertForPreTraining, attn_implementation="eager", **options)
    flex = tiny_model(GraphMertForPreTraining, attn_implementation="flex_attention", **options)
    batches = [_packed()]
    if mode is not None:
        # Without decay, rows of one graph go Transformers' own way.
        batches += [compact_batch(examples), padded_batch(examples, NUM_ROOTS, LEAVES)]
        batches.append({"input_ids": torch.arange(4, 11)[None], "labels": torch.arange(4, 11)[None]})
    for inputs in batches:
        with torch.no_grad():
            one, other = eager(**inputs), flex(**inputs)
        torch.testing.assert_close(one.loss, other.loss, rtol=1e-10, atol=1e-12)
        real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
        torch.testing.assert_close(one.logits[real], other.logits[real], rtol=1e-9, atol=1e-11)


@BASES
@pytest.mark.parametrize("mode", ["bias", "multiplicative"])
def test_derivative_of_the_output_by_the_offset(mode, base):
    """The differences of attentions against a difference quotient, float64."""
    inputs, model = _packed(), tiny_model(GraphMertModel, decay_mode=mode, decay_base=base)
    arguments = (inputs["graph_ids"], inputs["root_index"], inputs["leaf_index"], model.decay)
    torch.manual_seed(0)
    states = [torch.randn(2, 4, inputs["graph_ids"].shape[1], 8, dtype=torch.float64) for _ in range(3)]

    def attend(shift):
        with torch.no_grad():
            model.decay.offset.add_(shift)
            attention = FlexAttention(*arguments)
            model.decay.offset.sub_(shift)
            return attention._attend(*states, attention.value_HT)[0]

    attention = FlexAttention(*arguments)
    assert attention.learns
    jacobian = attention.offset_jacobian(*states, *attention._attend(*states, attention.value_HT))
    expected = (attend(1e-6) - attend(-1e-6)) / 2e-6
    real = (inputs["graph_ids"] >= 0)[:, None].expand(-1, 4, -1)
    assert jacobian[real].abs().max() > 0.05
    torch.testing.assert_close(jacobian[real], expected[real], rtol=1e-6, atol=1e-8)


def test_what_flex_attention_cannot_do_is_refused():
    inputs = inputs_of(_packed())
    with pytest.raises(ValueError, match="no backward pass on the CPU: train there with attn_implementation='sdpa'"):
        tiny_model(GraphMertModel, attn_implementation="flex_attention")(**inputs)
    dropping = tiny_model(GraphMertModel, attn_implementation="flex_attention", attention_probs_dropout_prob=0.1)
    with torch.no_grad(), pytest.raises(ValueError, match="attention_probs_dropout_prob=0"):
        dropping.train()(**inputs)
    with torch.no_grad():
        dropping.eval()(**inputs)


def test_backend_that_suits_the_device():
    assert preferred_attention("cuda", 0.0) == "flex_attention"
    for other in (("cpu", 0.0), ("cuda", 0.1)):
        assert preferred_attention(*other) == "sdpa"


@needs_cuda
@pytest.mark.parametrize("offset_gradient", ["jacobian", "table"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["bias", "multiplicative"])
def test_flex_gradients_equal_float64_eager(mode, offset_gradient, dtype, monkeypatch):
    """Values and all gradients on CUDA against eager in float64, for every layout."""
    monkeypatch.setattr(FlexAttention, "offset_gradient", offset_gradient)
    # Heads of 16: the smallest that the kernel takes.
    sizes = {"hidden_size": 64, "intermediate_size": 96, "mnm_target": "both", "decay_mode": mode}
    examples = graphs(sizes=(NUM_ROOTS, 4, 1, 5))
    reference = tiny_model(GraphMertForPreTraining, attn_implementation="eager", **sizes).cuda()
    model = tiny_model(GraphMertForPreTraining, dtype=dtype, attn_implementation="flex_attention", **sizes).cuda()
    for inputs in (_packed(), compact_batch(examples), padded_batch(examples, NUM_ROOTS, LEAVES)):
        inputs = {name: value.cuda() for name, value in inputs.items()}
        results = []
        for one in (reference, model):
            one.zero_grad()
            loss = one(**inputs).loss
            loss.backward()
            results.append((loss, [p.grad.double() for p in one.parameters()]))
        rough = dtype == torch.bfloat16
        torch.testing.assert_close(results[1][0].double(), results[0][0], rtol=0.03 if rough else 1e-4, atol=0.0)
        for (name, _), exact, found in zip(model.named_parameters(), results[0][1], results[1][1], strict=True):
            norm = exact.norm()
            assert (found - exact).norm() <= (0.15 if rough else 1e-3) * norm + 1e-6, name
