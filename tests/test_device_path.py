"""A training step neither waits for the device nor compiles anew for every batch."""

import numpy as np
import pytest
import torch
from tiny import random_window
from tiny_pretraining import LEAVES, NUM_ROOTS, tiny_arguments, tiny_collator, tiny_model, tiny_trainer
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from graphmert.trainer_graphmert import GraphMertTrainingArguments, mark_dynamic_sizes

WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _windows(count: int, seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [random_window(rng, i, NUM_ROOTS, LEAVES, 30) for i in range(count)]


def _move(value, device):
    return {n: _move(v, device) for n, v in value.items()} if isinstance(value, dict) else value.to(device)


class _Operations(TorchDispatchMode):
    """Names of all operations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function._schema.name.removeprefix("aten::"))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", ["packed", "compact"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_no_operation_of_a_step_waits_for_the_device(tmp_path, layout, implementation):
    """On the meta device nothing has values: whatever asks for one fails. And no operation does that would ask."""
    model = tiny_model(span_boundary=True, mnm_target="both").train().to("meta")
    # Moving to another device unties weights.
    model.tie_weights()
    model.set_attn_implementation(implementation)
    collator = tiny_collator(layout=layout, span_boundary=True, mnm_target="both", with_indices=True)
    batch = collator(_windows(6, 0))
    trainer = tiny_trainer(tmp_path, model=tiny_model(span_boundary=True, mnm_target="both"), collator=collator)
    trainer._check_each_step = False
    trainer._reset_training_sums()
    for name in ("_loss_sums", "_metric_sums", "_step_counts", "_first_bad_step"):
        setattr(trainer, name, getattr(trainer, name).to("meta"))
    batch = _move(batch, "meta")
    with _Operations() as seen:
        _, counts = trainer.get_batch_samples(iter([batch]), 1, torch.device("meta"))
        trainer.compute_loss(model, batch, num_items_in_batch=counts).backward()
    assert len(seen.names) > 300
    assert not set(WAITING) & set(seen.names)
    assert all(p.grad is not None for p in model.parameters())


def test_without_indices_a_step_counts_on_the_device():
    """The test above can fail."""
    model = tiny_model().to("meta")
    batch = tiny_collator()(_windows(4, 0))
    with pytest.raises((RuntimeError, NotImplementedError)):
        model(**_move(batch, "meta"), fused_loss=True)


@pytest.mark.parametrize(("layout", "backend"), [("packed", "aot_eager"), ("compact", "eager")])
def test_one_compilation_for_all_shapes(layout, backend):
    """Batches of other sizes in every respect; no graph break, one graph in all."""
    model = tiny_model(mnm_target="both", num_hidden_layers=1).train()
    collator = tiny_collator(layout=layout, mnm_target="both", with_indices=True)
    torch._dynamo.reset()
    counters.clear()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, backend=counter)
    for count in (5, 7, 3):
        batch = collator(_windows(count, count))
        expected = model(**batch, fused_loss=True)
        mark_dynamic_sizes(batch)
        output = compiled(**batch, fused_loss=True)
        torch.testing.assert_close(output.loss, expected.loss, rtol=1e-5, atol=1e-6)
        output.loss.backward()
    assert dict(counters["graph_break"]) == {}
    assert counter.frame_count == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("implementation", ["flex_attention", "sdpa"])
def test_a_step_on_cuda_does_not_wait(implementation):
    # Heads of 16: the smallest that flex_attention's kernel takes.
    model = tiny_model(hidden_size=32, mnm_target="both").train().cuda()
    model.set_attn_implementation(implementation)
    collator = tiny_collator(layout="packed", mnm_target="both")
    for step in range(3):
        batch = _move(collator(_windows(6, step)), "cuda")
        # The first step compiles kernels.
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            model(**batch, fused_loss=True).loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_workers_and_copies_that_do_not_wait(tmp_path, monkeypatch):
    args = tiny_arguments(tmp_path)
    assert (args.dataloader_num_workers, args.dataloader_persistent_workers) == (0, False)
    assert not args.dataloader_pin_memory and args.optim == "adamw_torch_fused"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    args = GraphMertTrainingArguments(output_dir=str(tmp_path), bf16=False)
    assert (args.dataloader_num_workers, args.dataloader_persistent_workers) == (2, False)
    assert args.dataloader_pin_memory and args.dataloader_prefetch_factor == 4
    assert args.accelerator_config.non_blocking
