"""Cross-entropy in parts equals the one over all logits, values and gradients."""

import pytest
import torch
from torch.nn import functional as F

from graphmert import lm_loss_graphmert
from graphmert.lm_loss_graphmert import linear_cross_entropy

HIDDEN, VOCABULARY = 8, 50


def operands(num_nodes: int, dtype=torch.float64, scale: float = 1.0):
    generator = torch.Generator().manual_seed(num_nodes)
    states, weight, bias = (
        (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
        for shape in ((num_nodes, HIDDEN), (VOCABULARY, HIDDEN), (VOCABULARY,))
    )
    labels = torch.randint(VOCABULARY, (num_nodes,), generator=generator)
    shares = torch.rand(num_nodes, generator=generator, dtype=torch.float64).to(dtype)
    return (states, weight, bias), labels, shares


def stock(states, weight, bias, labels):
    logits = F.linear(states, weight, bias)
    return F.cross_entropy(logits, labels, reduction="none"), logits.argmax(-1)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "computed again"])
@pytest.mark.parametrize("num_nodes", [0, 1, 15, 16, 17, 70])
def test_equals_the_loss_over_all_logits(num_nodes, kept, monkeypatch):
    # Parts of 16 nodes.
    monkeypatch.setattr(lm_loss_graphmert, "PART_ELEMENTS", {"cpu": 16 * VOCABULARY})
    monkeypatch.setattr(lm_loss_graphmert, "KEEPS_EXPONENTIALS", ("cpu",) if kept else ())
    found = []
    for function in (linear_cross_entropy, stock):
        leaves, labels, shares = operands(num_nodes)
        losses, predictions = function(*leaves, labels)
        (losses * shares).sum().backward()
        found.append([losses, predictions, *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(dtype):
    """In bfloat16, its own and autocast's, losses are float32 and within the rounding of bfloat16 logits."""
    leaves, labels, _ = operands(40)
    exact, _ = stock(*(leaf.float() for leaf in leaves), labels)
    leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
    losses, _ = linear_cross_entropy(*leaves, labels)
    losses.sum().backward()
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, exact.float(), rtol=0, atol=1e-5 if dtype == torch.float32 else 0.1)
    assert all(leaf.grad.dtype == dtype for leaf in leaves)


def test_autocast_multiplies_in_bfloat16():
    leaves, labels, _ = operands(40, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = linear_cross_entropy(*leaves, labels)
    losses.sum().backward()
    rounded = [leaf.detach().bfloat16().float().requires_grad_() for leaf in leaves[:2]]
    logits = (rounded[0] @ rounded[1].t()).bfloat16().float() + leaves[2].detach()
    expected = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-5)
    expected.sum().backward()
    for leaf, reference in zip(leaves, rounded, strict=False):
        assert leaf.grad.dtype == torch.float32
        torch.testing.assert_close(leaf.grad, reference.grad, rtol=0.02, atol=0.02 * reference.grad.abs().max().item())


def test_large_logits_do_not_overflow():
    leaves, labels, _ = operands(20, torch.float32, scale=100.0)
    losses, _ = linear_cross_entropy(*leaves, labels)
    losses.sum().backward()
    assert losses.isfinite().all() and all(leaf.grad.isfinite().all() for leaf in leaves)
    torch.testing.assert_close(losses, stock(*leaves, labels)[0], rtol=1e-5, atol=1e-2)
