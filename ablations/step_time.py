"""How many steps one row makes in another row's time, measured with both taking turns in one process."""

import json
import statistics
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..pretraining_arguments import parse_arguments
from ..run_pretraining import build_model, build_trainer, head_votes, open_dataset
from .settings import Run, Setting, options_of, read_row, write_config

NUM_ROUNDS = 40
_FILE = "step_times.json"


def steps_in_the_same_time(
    setting: Setting,
    rows_dir: str | Path,
    output: str | Path,
    dataset: str | Path,
    num_threads: int | None,
    only_known: bool = False,
) -> dict[str, int]:
    """Steps of the rows that are given another row's time, by row.

    A step of a row and a step of the row whose time it gets alternate, on the same windows; the ratio is the median over
    rounds. It is measured once for each output directory and kept in `step_times.json`.

    Args:
        setting: rows and `max_steps`.
        rows_dir: where the rows' files are.
        output: directory of all runs.
        dataset: the training corpus.
        num_threads: CPU threads.
        only_known: measure nothing; rows that are not measured yet are left out.

    Raises:
        ValueError: a row of this kind in a setting that counts epochs.
    """
    wanted = {row.name: row.same_time_as for row in setting.rows.values() if row.same_time_as is not None}
    if not wanted:
        return {}
    file = Path(output) / _FILE
    measured = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    steps = {}
    for name, other in wanted.items():
        runs = []
        for row in (setting.rows[name], read_row(Path(rows_dir) / f"{other}.yaml")):
            # In a folder of its own: the row's own configuration has the number of steps that is looked for here.
            folder = Path(output) / "_step_times" / row.name
            runs.append(Run(row, setting.seeds[0], folder, options_of(setting, row)))
        num_steps = runs[1].options.get("max_steps")
        if not num_steps:
            raise ValueError(f"row {name} gets the time of {other}: set max_steps in the setting")
        key = f"{name} : {other}"
        configs = [run.options for run in runs]
        if measured.get(key, {}).get("options") != configs:
            if only_known:
                continue
            ratio = measure(runs, dataset, num_threads)
            measured[key] = {"ratio": ratio, "rounds": NUM_ROUNDS, "options": configs}
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        steps[name] = round(num_steps / measured[key]["ratio"])
    return steps


def measure(runs: list[Run], dataset: str | Path, num_threads: int | None) -> float:
    """Time of a step of the first run over that of the second, taking turns.

    Args:
        runs: two runs.
        dataset: the training corpus.
        num_threads: CPU threads.
    """
    before = torch.get_num_threads()
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    try:
        steps = [_stepper(run, dataset, num_threads) for run in runs]
        ratios = []
        for turn in tqdm(range(NUM_ROUNDS + 3), desc=f"step times of {runs[0].row.name}", disable=None, leave=False):
            seconds = [0.0, 0.0]
            # Who comes first changes with each round.
            for which in (0, 1) if turn % 2 else (1, 0):
                seconds[which] = steps[which]()
            ratios.append(seconds[0] / seconds[1])
    finally:
        torch.set_num_threads(before)
    return statistics.median(ratios[3:])


def _stepper(run: Run, dataset: str | Path, num_threads: int | None):
    """A function that makes one optimizer step of a run and says how long it took."""
    arguments = parse_arguments([str(write_config(run, dataset, num_threads))])
    model_args, data_args, _, args = arguments
    data_args.max_train_windows = 64 * args.per_device_train_batch_size * args.gradient_accumulation_steps
    data_args.max_eval_windows = 1
    args.disable_tqdm = True
    train, held_out, tokenizer, manifest = open_dataset(model_args, data_args, args)
    memory = head_votes(model_args, train)
    model = build_model(model_args, tokenizer, manifest, verbose=False, seed=args.seed, memory=memory)
    trainer = build_trainer(model, model_args, data_args, args, tokenizer, train, held_out)
    trainer.create_optimizer()
    loader = trainer.get_train_dataloader()
    batches = iter(())

    def step() -> float:
        nonlocal batches
        begin = time.perf_counter()
        samples, counts = trainer.get_batch_samples(batches, args.gradient_accumulation_steps, args.device)
        if len(samples) < args.gradient_accumulation_steps:
            batches = iter(loader)
            samples, counts = trainer.get_batch_samples(batches, args.gradient_accumulation_steps, args.device)
        model.train()
        for sample in samples:
            trainer.training_step(model, sample, counts)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    return step
