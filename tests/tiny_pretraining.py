"""A tiny model on random windows, for the trainer's tests; as a script, one run in a process of its own."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from tiny import random_window, tiny_tokenizer
from torch.utils.data import Dataset

from graphmert.collator import GraphMertCollator
from graphmert.configuration_graphmert import GraphMertConfig
from graphmert.modeling_graphmert import GraphMertForPreTraining
from graphmert.trainer_graphmert import GraphMertTrainer, GraphMertTrainingArguments

NUM_ROOTS, LEAVES = 24, 3
# PyTorch waits so many seconds for a kept worker to end before it ends it.
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.2


class RandomWindows(Dataset):
    """Windows of random tokens whose masks depend on the epoch, as `WindowDataset` gives them."""

    def __init__(self, num_windows: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        # Few different tokens, so that there is something to learn.
        vocab_size = 30
        self.windows = [random_window(rng, i, NUM_ROOTS, LEAVES, vocab_size) for i in range(num_windows)]
        self.lengths = np.array([len(w["input_ids"]) + len(w["leaf_ids"]) for w in self.windows])
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.epochs_told = []

    def __len__(self):
        return len(self.windows)

    def __getitem__(self, index):
        return {**self.windows[index], "epoch": int(self.epoch)}

    def set_epoch(self, epoch):
        self.epochs_told.append(epoch)
        self.epoch.fill_(epoch)


def tiny_model(seed: int = 0, **options) -> GraphMertForPreTraining:
    torch.manual_seed(seed)
    values = {
        "vocab_size": len(tiny_tokenizer()),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_roots": NUM_ROOTS,
        "leaves_per_root": LEAVES,
        "max_position_embeddings": 128,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "relation_dropout": 0.0,
        "pad_token_id": tiny_tokenizer().pad_token_id,
        "mnm_target": "relation",
    }
    return GraphMertForPreTraining(GraphMertConfig(**{**values, **options}))


def tiny_collator(**options) -> GraphMertCollator:
    values = {"num_roots": NUM_ROOTS, "leaves_per_root": LEAVES, "mlm_probability": 0.3, "mnm_probability": 0.4}
    values |= {"masked_span_leaves": "keep", "mnm_target": "relation"}
    return GraphMertCollator(tiny_tokenizer(), **{**values, **options})


def tiny_arguments(output_dir, **options) -> GraphMertTrainingArguments:
    values = {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "eval_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "final_mnm_weight": None,
    }
    return GraphMertTrainingArguments(output_dir=str(output_dir), **{**values, **options})


def tiny_trainer(output_dir, num_windows=32, model=None, collator=None, trainer_class=GraphMertTrainer, **options):
    collator = collator or tiny_collator(mnm_target=(model or tiny_model()).config.mnm_target)
    model = model or tiny_model()
    return trainer_class(
        model=model,
        args=tiny_arguments(output_dir, **options),
        data_collator=collator,
        train_dataset=RandomWindows(num_windows),
        eval_dataset=RandomWindows(11, seed=1),
        processing_class=tiny_tokenizer(),
    )


def main() -> None:
    """Train as the JSON on the command line says, resume from the first checkpoint; process 0 writes what came out."""
    options = json.loads(sys.argv[1])
    output_dir, model_options = options.pop("output_dir"), options.pop("model", {})
    torch.set_num_threads(1)

    def make(directory):
        collator = tiny_collator(mnm_target=model_options.get("mnm_target", "relation"))
        return tiny_trainer(directory, model=tiny_model(**model_options), collator=collator, **options)

    trainer = make(output_dir)
    trainer.train()
    trainer.evaluate()
    first = min(Path(output_dir).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    resumed = make(os.path.join(output_dir, "resumed"))
    resumed.train(resume_from_checkpoint=str(first))
    weights, again = trainer.model.state_dict(), resumed.model.state_dict()
    if trainer.is_world_process_zero():
        result = {
            "num_processes": trainer.args.world_size,
            "history": trainer.state.log_history,
            "resumed_from": first.name,
            "resumed_equal": all(torch.equal(weights[name], again[name]) for name in weights),
        }
        Path(output_dir, "result.json").write_text(json.dumps(result))
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
