"""The losses against loops, and what happens at their edges."""

import naive
import pytest
import torch
from graph_batches import compact_batch, padded_batch
from tiny_model import LEAVES, NUM_ROOTS, RELATIONS, VOCABULARY, batch, graphs, inputs_of, tiny_model
from torch.nn import functional as F

from graphmert.modeling_graphmert import GraphMertForPreTraining


@pytest.mark.parametrize("target", ["relation", "tail", "both"])
def test_losses_and_gradients_equal_the_loops(target):
    model = tiny_model(GraphMertForPreTraining, mnm_target=target, mlm_weight=0.7, mnm_weight=0.2)
    graph_batch = batch(seed=4, sizes=(NUM_ROOTS, 4))
    output = model(**graph_batch)
    mlm, relation, tail = naive.objectives(output.logits, output.relation_logits, graph_batch)
    mnm = {"relation": relation, "tail": tail, "both": (relation + tail) / 2}[target]
    expected = 0.7 * mlm + 0.2 * mnm
    for value, reference in (
        (output.mlm_loss, mlm),
        (output.mnm_loss, mnm),
        (output.relation_loss, relation),
        (output.tail_loss, tail),
        (output.loss, expected),
    ):
        torch.testing.assert_close(value, reference, rtol=1e-10, atol=1e-12)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(output.loss, parameters, retain_graph=True)
    expected_gradients = torch.autograd.grad(expected, parameters, allow_unused=True)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        reference = torch.zeros_like(gradient) if expected_gradient is None else expected_gradient
        torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-11)


def test_sparse_prediction_is_the_same_loss_on_fewer_rows():
    model = tiny_model(GraphMertForPreTraining, mnm_target="both")
    graph_batch = batch(seed=4)
    dense, sparse = model(**graph_batch), model(**graph_batch, sparse_prediction=True)
    labelled = graph_batch["labels"] != -100
    assert sparse.logits.shape == (int(labelled.sum()), VOCABULARY)
    torch.testing.assert_close(sparse.logits, dense.logits[labelled])
    torch.testing.assert_close(sparse.loss, dense.loss)
    with pytest.raises(ValueError, match="sparse_prediction"):
        model(**inputs_of(graph_batch), sparse_prediction=True)


@pytest.mark.parametrize("span_boundary", [False, True])
def test_fused_loss_is_the_same_loss_without_logits(span_boundary):
    model = tiny_model(GraphMertForPreTraining, mnm_target="both", span_boundary=span_boundary)
    graph_batch = batch(seed=4)
    if span_boundary:
        columns = torch.arange(graph_batch["labels"].shape[1]).expand_as(graph_batch["labels"])
        masked_root = (graph_batch["labels"] != -100) & (graph_batch["leaf_index"] < 0)
        graph_batch["span_left"] = torch.where(masked_root, (columns - 1).clamp(min=0), -1)
        graph_batch["span_right"] = torch.where(masked_root, columns + 1, -1)
        graph_batch["span_offset"] = masked_root.long()
    found = []
    for options in ({"sparse_prediction": True}, {"fused_loss": True}):
        model.zero_grad()
        output = model(**graph_batch, **options)
        output.loss.backward()
        found.append((output, [p.grad.clone() for p in model.parameters()]))
    (sparse, expected_gradients), (fused, gradients) = found
    assert fused.logits is None
    labels = graph_batch["labels"][graph_batch["labels"] != -100]
    torch.testing.assert_close(fused.label_losses, F.cross_entropy(sparse.logits, labels, reduction="none"))
    assert torch.equal(fused.label_predictions, sparse.logits.argmax(-1))
    for name in ("loss", "mlm_loss", "mnm_loss", "tail_loss", "relation_loss"):
        torch.testing.assert_close(fused[name], sparse[name], rtol=1e-12, atol=0)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="fused_loss"):
        model(**inputs_of(graph_batch), fused_loss=True)


@pytest.mark.parametrize("how", ["sparse_prediction", "fused_loss"])
@pytest.mark.parametrize("target", ["relation", "tail", "both"])
def test_a_component_without_targets_is_zero_and_keeps_every_parameter(target, how):
    model = tiny_model(GraphMertForPreTraining, mnm_target=target)
    graph_batch = batch(seed=4)
    graph_batch["labels"].fill_(-100)
    graph_batch["relation_labels"].fill_(-100)
    output = model(**graph_batch, **{how: True})
    assert [output[name].item() for name in ("loss", "mlm_loss", "mnm_loss")] == [0.0, 0.0, 0.0]
    output.loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.abs().max() == 0 for p in model.parameters())


def test_labels_on_empty_slots_of_the_padded_layout_are_no_leaves():
    """Only existing leaves count; a batch of roots alone has no tail loss."""
    model = tiny_model(GraphMertForPreTraining, mnm_target="tail")
    graph_batch = padded_batch(graphs(sizes=(3,)), NUM_ROOTS, LEAVES)
    graph_batch["labels"][graph_batch["leaf_index"] >= 0] = -100
    assert model(**graph_batch).tail_loss.item() == 0.0


def test_relation_logits_shape_layouts_and_leaves():
    model = tiny_model(GraphMertForPreTraining)
    examples = graphs(seed=3)
    compact, padded = compact_batch(examples), padded_batch(examples, NUM_ROOTS, LEAVES)
    with torch.no_grad():
        one, other = model(**inputs_of(compact)).relation_logits, model(**inputs_of(padded)).relation_logits
        plain = model(input_ids=torch.arange(4, 9)[None]).relation_logits
    assert one.shape == other.shape == (3, NUM_ROOTS, LEAVES, RELATIONS)
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    used = torch.zeros(one.shape[:3], dtype=torch.bool)
    for b, example in enumerate(examples):
        for anchor in example.anchors:
            used[b, anchor.root, anchor.first_slot : anchor.first_slot + len(anchor.tokens)] = True
    assert used.any() and not used.all()
    assert (one[~used] == 0).all() and (one[used] != 0).all()
    siblings = [(b, i) for b, i in used.sum(-1).ge(2).nonzero().tolist()]
    assert siblings
    for b, i in siblings:
        leaves = one[b, i][used[b, i]]
        assert (leaves[0] - leaves[1]).abs().max() > 1e-3
    assert plain.shape == (1, NUM_ROOTS, LEAVES, RELATIONS) and (plain == 0).all()


def test_span_boundary_objective_equals_the_loops():
    model = tiny_model(GraphMertForPreTraining, span_boundary=True)
    graph_batch = compact_batch(graphs(sizes=(NUM_ROOTS, 5)))
    graph_batch["labels"].fill_(-100)
    shape = graph_batch["labels"].shape
    left, right, offset = (torch.full(shape, value) for value in (-1, -1, 0))
    # Roots 2, 3, 4 of the first example and root 1 of the second are masked spans.
    for b, column, first, last in ((0, 2, 1, 5), (0, 3, 1, 5), (0, 4, 1, 5), (1, 1, 0, 2)):
        graph_batch["labels"][b, column] = 10 + column
        left[b, column], right[b, column], offset[b, column] = first, last, column - first
    output = model(**graph_batch, span_left=left, span_right=right, span_offset=offset, output_hidden_states=True)
    states, head = output.hidden_states[-1], model.span_boundary_head
    losses = []
    for b, column in ((0, 2), (0, 3), (0, 4), (1, 1)):
        place = head.position_embeddings.weight[int(offset[b, column]) - 1]
        state = torch.cat([states[b, left[b, column]], states[b, right[b, column]], place])
        state = head.norm_in(F.gelu(head.dense_in(state)))
        state = head.norm_out(F.gelu(head.dense_out(state)))
        logits = model.roberta.embeddings.word_embeddings.weight @ state + model.lm_head.bias
        losses.append(torch.log(torch.exp(logits).sum()) - logits[10 + column])
    torch.testing.assert_close(output.sbo_loss, sum(losses) / 4, rtol=1e-10, atol=1e-12)
    expected = 0.6 * (output.mlm_loss + output.sbo_loss) + 0.4 * output.mnm_loss
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(ValueError, match="span_left"):
        model(**graph_batch)


@pytest.mark.parametrize(("name", "value"), [("labels", VOCABULARY), ("labels", -1), ("relation_labels", RELATIONS)])
def test_labels_outside_their_range_are_refused(name, value):
    model, graph_batch = tiny_model(GraphMertForPreTraining), batch()
    graph_batch[name][0, 0] = value
    with pytest.raises(ValueError, match=f"{name} holds {value}"):
        model(**graph_batch)
