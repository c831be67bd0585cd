"""Fully sharded data parallelism: two processes with sharded parameters take the step that one process takes.

On a CPU accelerate runs DDP whatever its configuration says, so the model is sharded here by PyTorch itself, along the
lines of configs/accelerate/one_node_fsdp.yaml: each RobertaLayer by itself, the rest together.
"""

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from tiny import random_window, tiny_tokenizer
from tiny_pretraining import tiny_model
from torch import distributed as dist

from graphmert.collator import GraphMertCollator

SHARDED = "RobertaLayer"


def _batch():
    rng = np.random.default_rng(0)
    examples = [random_window(rng, i, 24, 3, 30) for i in range(4)]
    return GraphMertCollator(tiny_tokenizer(), num_roots=24, leaves_per_root=3, layout="packed")(examples)


def _step(model, optimizer, batch) -> float:
    loss = model(**batch, sparse_prediction=True).loss
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def _sharded_steps(rank: int, port: int, directory: str) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model = tiny_model().train()
    num_layers = 0
    for module in model.modules():
        if type(module).__name__ == SHARDED:
            fully_shard(module)
            num_layers += 1
    fully_shard(model)
    # Momentum-free, so that a difference in the gradients is one in the weights.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = [_step(model, optimizer, _batch()) for _ in range(2)]
    split = all(isinstance(parameter, DTensor) for parameter in model.parameters())
    weights = {name: value.full_tensor().clone() for name, value in model.state_dict().items()}
    if rank == 0:
        save_file(weights, f"{directory}/weights.safetensors")
        Path(directory, "run.json").write_text(json.dumps([num_layers, split, losses]))
    dist.barrier()
    dist.destroy_process_group()


def test_sharded_steps_equal_those_of_one_process(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_sharded_steps, args=(port, str(tmp_path)), nprocs=2)
    num_layers, split, losses = json.loads((tmp_path / "run.json").read_text())
    weights = load_file(tmp_path / "weights.safetensors")
    model = tiny_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = [_step(model, optimizer, _batch()) for _ in range(2)]
    assert num_layers == model.config.num_hidden_layers and split
    assert losses == pytest.approx(expected, rel=1e-5)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)
