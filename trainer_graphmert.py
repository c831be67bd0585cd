"""Pretraining with Hugging Face's Trainer: arguments and their defaults, losses exact under any split of a batch.

MLM and MNM losses are each divided by their own number of targets in the whole batch, over accumulation steps and
processes, and logged apart from each other in training and evaluation.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.utils import is_torch_bf16_gpu_available, logging

from .checkpoint_trainer import CheckpointTrainer
from .device_support import warn_of_slow_bfloat16
from .pretraining_metrics import (
    COLUMNS,
    DIAGNOSTIC_INPUTS,
    example_sums,
    figures_from_sums,
    macro_f1,
    num_columns,
)

logger = logging.get_logger(__name__)

# Targets that are counted apart: masked root tokens, hidden relations, hidden tail tokens.
_MLM, _RELATION, _TAIL = range(3)


class NonFiniteLossError(ArithmeticError):
    """The training loss is NaN or infinite; the message names the step."""


def check_at_least(smallest: int, arguments, *names: str) -> None:
    """Refuse numbers that are too small; None, which leaves an option out, is none.

    Args:
        smallest: what is still taken.
        arguments: a dataclass of options.
        names: of its fields.

    Raises:
        ValueError: names the option.
    """
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < smallest:
            raise ValueError(f"{name} must be at least {smallest}, got {value}")


@dataclass
class GraphMertTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the schedule of the setup sheet (configs/setup_sheet.yaml) as defaults.

    Unlike there the weight of masked facts falls to 0 over the training (docs/PAPER.md).

    The warm-up is `warmup_steps`: below 1 a share of all steps, from 1 on a number of steps.
    """

    output_dir: str | None = field(
        default="runs/pretraining",
        metadata={"help": "Where checkpoints, the final model and the summary are written."},
    )
    num_train_epochs: float = field(default=25.0, metadata={"help": "Passes over the training windows."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Windows per device and forward pass."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Windows per device when evaluating."})
    gradient_accumulation_steps: int = field(default=2, metadata={"help": "Forward passes per optimizer step."})
    learning_rate: float = field(default=4e-4, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(
        default="cosine_with_min_lr", metadata={"help": "Learning rate schedule; any name that Transformers knows."}
    )
    min_learning_rate: float = field(
        default=1e-5, metadata={"help": "Learning rate at the end; used by schedules with `min_lr` in their name."}
    )
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Linear warm-up: below 1 a share of all steps, from 1 on a number of steps."}
    )
    weight_decay: float = field(
        default=0.01, metadata={"help": "AdamW's decay of matrices; biases, norms, gains and other vectors have none."}
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped to this norm."})
    final_mnm_weight: float | None = field(
        default=0.0,
        metadata={
            "help": "Weight of the MNM loss at the last step: it changes linearly from the model's `mnm_weight`, and the "
            "weight of the MLM loss takes up the difference. The value of `mnm_weight`, or null in a file: both stay as "
            "they are."
        },
    )
    bf16: bool | None = field(
        default=None, metadata={"help": "bfloat16 mixed precision. Left out: on where a CUDA device supports it."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: 'no', 'steps' or 'epoch'."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: 'no', 'steps', 'epoch' or 'best'."})
    save_every_epochs: int = field(
        default=1, metadata={"help": "With save_strategy 'epoch': save every so many epochs, and after the last one."}
    )
    logging_steps: float = field(
        default=50, metadata={"help": "Log every so many optimizer steps; below 1 a share of all steps."}
    )
    logging_first_step: bool = field(default=True, metadata={"help": "Log the first optimizer step too."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide NaN losses in the logs. Off: training stops at the first one anyway."}
    )
    dataloader_num_workers: int | None = field(
        default=None,
        metadata={"help": "Processes that prepare batches. Left out: 2 for each accelerator, none on the CPU."},
    )
    dataloader_persistent_workers: bool = field(
        default=False,
        metadata={
            "help": "Keep them from epoch to epoch. A resumed run then draws other dropout than one that was never stopped."
        },
    )
    dataloader_prefetch_factor: int | None = field(
        default=None, metadata={"help": "Batches that each of them keeps ready. Left out: 4, where there are any."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay off: the collator needs all columns."}
    )
    label_names: list[str] | None = field(
        default_factory=lambda: ["labels", "relation_labels"], metadata={"help": "The batch's label tensors."}
    )
    # Every parameter of GraphMertForPreTraining takes part in every batch, so DDP need not look for those that do not.
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Let DistributedDataParallel look for parameters without gradient."}
    )

    def __post_init__(self):
        names = ("save_every_epochs", "gradient_accumulation_steps", "dataloader_prefetch_factor")
        check_at_least(1, self, *names, "per_device_train_batch_size", "per_device_eval_batch_size")
        check_at_least(0, self, "dataloader_num_workers")
        # Not `<= 0`, which NaN would pass.
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        # Trainer makes one step where 0 are asked for, and saves an untrained model where no epoch is.
        if self.max_steps != -1 and self.max_steps < 1:
            raise ValueError(
                f"max_steps must be at least 1, or -1 to train for num_train_epochs, got {self.max_steps}"
            )
        if self.max_steps == -1 and not self.num_train_epochs > 0:
            raise ValueError(f"num_train_epochs must be above 0, or max_steps be given, got {self.num_train_epochs}")
        # Trainer would ignore these without a word; 500 is what it takes for "not given". With "no" that is what was asked.
        for what, given in (("save", self.save_steps != 500), ("eval", self.eval_steps is not None)):
            if given and getattr(self, f"{what}_strategy") == "epoch":
                raise ValueError(
                    f"{what}_steps is given, but {what}_strategy is 'epoch': give --{what}_strategy steps too"
                )
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be False: it would remove the collator's inputs")
        if self.lr_scheduler_kwargs is None and "min_lr" in str(self.lr_scheduler_type):
            if not 0 <= self.min_learning_rate <= self.learning_rate:
                raise ValueError(
                    f"min_learning_rate must lie between 0 and learning_rate ({self.learning_rate}), "
                    f"got {self.min_learning_rate}"
                )
            self.lr_scheduler_kwargs = {"min_lr": self.min_learning_rate}
        if self.bf16 is None:
            self.bf16 = (
                not self.use_cpu and not self.fp16 and torch.cuda.is_available() and is_torch_bf16_gpu_available()
            )
        on_cpu = self.use_cpu or not torch.accelerator.is_available()
        if on_cpu:
            self.dataloader_pin_memory = False
            if self.bf16:
                warn_of_slow_bfloat16("cpu")
        if self.dataloader_num_workers is None:
            self.dataloader_num_workers = 0 if on_cpu else 2
        if self.dataloader_prefetch_factor is None and self.dataloader_num_workers > 0:
            self.dataloader_prefetch_factor = 4
        if self.accelerator_config is None and self.dataloader_pin_memory:
            # Otherwise the copy of every batch to the device waits for all that runs there.
            self.accelerator_config = {"non_blocking": True}
        if self.data_seed is None:
            self.data_seed = self.seed
        super().__post_init__()


def mark_dynamic_sizes(inputs: dict) -> None:
    """Tell the compiler which sizes of a batch change from step to step, so that it compiles once and not for each size.

    Args:
        inputs: the collator's batch, with `indices`; changed in place only in what the compiler knows of its tensors.
    """
    for name, value in inputs.items():
        if name == "indices":
            mark_dynamic_sizes(value)
        elif isinstance(value, torch.Tensor):
            for dimension in range(value.ndim):
                # The relations and the two rows of pairs are as many in every batch.
                if not (dimension == 0 and name in ("leaf_grid", "head_pairs")):
                    torch._dynamo.maybe_mark_dynamic(value, dimension)


class EpochSampler(Sampler):
    """A new order of the examples each epoch, a pure function of (seed, epoch), so that a resumed run sees the same.

    Args:
        num_examples: size of the data set.
        seed: of the order.
        lengths: with them, examples of similar length come together, in random mega-batches of 50 batches.
        batch_size: examples of one optimizer step over all devices; used with `lengths`.
    """

    def __init__(self, num_examples: int, seed: int, lengths=None, batch_size: int = 1):
        self.num_examples, self.seed, self.batch_size = num_examples, seed, batch_size
        self.lengths = None if lengths is None else [int(length) for length in lengths]
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_examples

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if self.lengths is None:
            yield from torch.randperm(self.num_examples, generator=generator).tolist()
        else:
            yield from get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)


class _SortedSampler(Sampler):
    """Longest examples first: evaluation pads little, and a batch that is too large fails at once."""

    def __init__(self, lengths):
        self.order = np.argsort(-np.asarray(lengths), kind="stable").tolist()

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self):
        return iter(self.order)


class _EpochCallback(TrainerCallback):
    """Hands the epoch to the sampler and the data set, and saves every N epochs."""

    def __init__(self, trainer: "GraphMertTrainer"):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.hand_over_epoch()

    def on_epoch_end(self, args, state, control, **kwargs):
        if args.save_strategy == "epoch" and state.global_step < state.max_steps:
            control.should_save = round(state.epoch) % args.save_every_epochs == 0
        return control


class GraphMertTrainer(CheckpointTrainer):
    """Trainer for `GraphMertForPreTraining` on `WindowDataset` with `GraphMertCollator`.

    Args:
        model: a `GraphMertForPreTraining`.
        args: `GraphMertTrainingArguments`.
        eval_data_collator: collator for evaluation, for instance with `diagnostics=True`; default `data_collator`.
        Others as for `transformers.Trainer`; `compute_metrics` is its own.

    A data set that has `set_epoch` is told each epoch; one that has `lengths` can be grouped by length
    (`train_sampling_strategy="group_by_length"`), or by `order_lengths` where it has them.
    Evaluation always uses the masks of epoch 0.

    Raises:
        NonFiniteLossError: while training, when the loss is NaN or infinite. On CPU at once; on other devices when it
            is next logged or saved, so that no step waits for the device.
    """

    def __init__(self, model=None, args=None, eval_data_collator=None, **kwargs):
        if kwargs.get("compute_metrics") is not None:
            raise ValueError("GraphMertTrainer computes its own metrics; compute_metrics must not be given")
        if args is None:
            args = GraphMertTrainingArguments()
        if args.n_gpu > 1:
            logger.warning(f"{args.n_gpu} GPUs are visible, one is used; start with `accelerate launch` to use all.")
            args._n_gpu = 1
        kwargs["compute_metrics"] = self._figures_of_predictions
        super().__init__(model=model, args=args, **kwargs)
        # Tells Trainer that compute_loss divides by the targets of the whole batch (all of 5.17 to 5.23 read it).
        self.model_accepts_loss_kwargs = True
        total = self._config.mlm_weight + self._config.mnm_weight
        if args.final_mnm_weight is not None and not 0 <= args.final_mnm_weight <= total:
            raise ValueError(
                f"final_mnm_weight must lie between 0 and the sum of mlm_weight and mnm_weight ({total:g}), got "
                f"{args.final_mnm_weight}"
            )
        self.eval_data_collator = eval_data_collator
        self.add_callback(_EpochCallback(self))
        self._train_sampler = None
        self._has_diagnostics = False
        # Elsewhere the check would make every step wait for the device.
        self._check_each_step = self.args.device.type == "cpu"
        self._reset_training_sums()

    @property
    def _config(self):
        return self.model.config

    # ---- data

    def hand_over_epoch(self) -> None:
        """Tell the training data set and sampler which epoch begins.

        Accelerate does so for one or the other, depending on the number of processes and on resuming.
        """
        epoch = int(self.state.epoch or 0)
        for receiver in (self.train_dataset, self._train_sampler):
            if hasattr(receiver, "set_epoch"):
                receiver.set_epoch(epoch)

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        strategy = self.args.train_sampling_strategy
        if strategy not in ("random", "group_by_length") or not hasattr(dataset, "__len__"):
            return super()._get_train_sampler(train_dataset)
        lengths = None
        if strategy == "group_by_length":
            lengths = getattr(dataset, "order_lengths", getattr(dataset, "lengths", None))
            if lengths is None:
                raise ValueError("train_sampling_strategy='group_by_length' needs a data set with `lengths`")
        batch_size = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        self._train_sampler = EpochSampler(len(dataset), self.args.data_seed, lengths, batch_size)
        return self._train_sampler

    def _get_eval_sampler(self, eval_dataset):
        if getattr(eval_dataset, "lengths", None) is not None:
            return _SortedSampler(eval_dataset.lengths)
        return torch.utils.data.SequentialSampler(eval_dataset)

    def get_eval_dataloader(self, eval_dataset=None):
        training_collator = self.data_collator
        self.data_collator = self.eval_data_collator or training_collator
        try:
            loader = super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training_collator
        # A loader counts its passes and tells its data set; a kept one would change the masks at each evaluation.
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(0)
        if hasattr(loader.dataset, "set_epoch"):
            loader.dataset.set_epoch(0)
        return loader

    # ---- optimizer

    def get_decay_parameter_names(self, model) -> list[str]:
        """Names of the parameters with weight decay: matrices.

        Biases, norms and the decay offset are vectors. The direction gains start at 1 and the attention vectors of
        H-GAT are vectors too, stacked by direction and relation.
        """
        dimensions = {name: parameter.ndim for name, parameter in model.named_parameters(remove_duplicate=False)}
        return [
            name
            for name in super().get_decay_parameter_names(model)
            if dimensions[name] > 1 and not name.endswith(("hgat.attention", "hgat.direction_gain"))
        ]

    # ---- loss

    def _target_counts(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Masked roots, hidden relations and hidden tail tokens of a batch: float32 (3,)."""
        has_label, is_leaf = inputs["labels"] != -100, inputs["leaf_index"] >= 0
        counts = (has_label & ~is_leaf, inputs["relation_labels"] != -100, has_label & is_leaf)
        return torch.stack([count.sum() for count in counts]).float()

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of one optimizer step, and their targets counted over all of them and all processes."""
        batches = []
        for _ in range(num_batches):
            try:
                batches.append(next(epoch_iterator))
            except StopIteration:
                break
        if not batches:
            return batches, None
        counts = torch.stack([self._target_counts(batch) for batch in batches]).sum(0).to(device)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        self._step_counts += (counts > 0).float()
        return batches, counts

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Loss of a micro-batch as its share of the whole batch's loss (paper eq. for L, docs/PAPER.md).

        Each component is (sum over this micro-batch's targets) / (number of targets in the whole batch).
        """
        config = self._config
        outputs = self._forward(model, inputs)
        counts = self._target_counts(inputs)
        total = counts if num_items_in_batch is None else num_items_in_batch
        share = counts / total.clamp(min=1)
        mlm = outputs.mlm_loss * share[_MLM]
        relation, tail = outputs.relation_loss * share[_RELATION], outputs.tail_loss * share[_TAIL]
        mnm = {"relation": relation, "tail": tail, "both": (relation + tail) / 2}[config.mnm_target]
        # Every masked root is a target of the span-boundary objective too.
        sbo = outputs.mlm_loss * 0 if outputs.sbo_loss is None else outputs.sbo_loss * share[_MLM]
        mlm_weight, mnm_weight = self.loss_weights(self.state.global_step)
        loss = mlm_weight * (mlm + sbo) + mnm_weight * mnm
        if model.training:
            self._check_finite(loss)
            with torch.no_grad():
                self._loss_sums += torch.stack([mlm, mnm, relation, tail, sbo]).float()
                self._metric_sums += self._example_sums(outputs, inputs, with_losses=False).sum(0).double()
            # DistributedDataParallel averages gradients over processes.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def loss_weights(self, step: int) -> tuple[float, float]:
        """Weights of the MLM and the MNM loss in a training step.

        Args:
            step: optimizer steps that were made before it.
        """
        config, final = self._config, self.args.final_mnm_weight
        if final is None:
            return config.mlm_weight, config.mnm_weight
        share = min(1.0, step / max(1, self.state.max_steps - 1))
        mnm_weight = config.mnm_weight + share * (final - config.mnm_weight)
        return config.mlm_weight + config.mnm_weight - mnm_weight, mnm_weight

    def _forward(self, model, inputs):
        inputs = {name: value for name, value in inputs.items() if name not in DIAGNOSTIC_INPUTS}
        if self.args.torch_compile:
            mark_dynamic_sizes(inputs)
        return model(**inputs, fused_loss=True)

    def _example_sums(self, outputs, inputs, with_losses: bool) -> torch.Tensor:
        predicted = (outputs.label_losses, outputs.label_predictions, outputs.relation_logits)
        return example_sums(*predicted, inputs, self._config.num_relations, with_losses)

    def _check_finite(self, loss: torch.Tensor) -> None:
        step = self.state.global_step + 1
        bad = torch.where(torch.isfinite(loss.detach()), math.inf, float(step))
        self._first_bad_step = torch.minimum(self._first_bad_step, bad)
        if self._check_each_step:
            self._stop_if_not_finite(self._first_bad_step)

    def _stop_if_not_finite(self, first_bad_step: torch.Tensor) -> None:
        step = first_bad_step.item()
        if math.isfinite(step):
            raise NonFiniteLossError(
                f"the loss is NaN or infinite at step {int(step)}; lower learning_rate or lengthen the warm-up, "
                "and look at the batch of that step"
            )

    # ---- logging

    def _reset_training_sums(self) -> None:
        device = self.args.device
        self._loss_sums = torch.zeros(5, device=device)
        self._step_counts = torch.zeros(3, device=device)
        # A plain sum in float32 would stop counting at 2**24.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._metric_sums = torch.zeros(num_columns(self._config.num_relations), device=device, dtype=dtype)
        self._first_bad_step = torch.tensor(math.inf, device=device)

    def _reduced_training_figures(self) -> dict[str, float]:
        losses, sums = self._loss_sums, self._metric_sums
        if self.args.world_size > 1:
            losses = self.accelerator.reduce(losses, reduction="sum")
            sums = self.accelerator.reduce(sums, reduction="sum")
        mlm, mnm, relation, tail, sbo = losses.tolist()
        steps = dict(zip(("mlm", "relation", "tail"), self._step_counts.tolist(), strict=True))
        value = dict(zip(COLUMNS, sums.tolist(), strict=False))
        num_relations, target = self._config.num_relations, self._config.mnm_target
        confusion = sums[len(COLUMNS) :].view(2, num_relations, num_relations).sum(0).cpu().numpy()
        figures: dict[str, float] = {}
        if steps["mlm"]:
            figures["mlm_loss"] = mlm / steps["mlm"]
            figures["mlm_accuracy"] = value["mlm_correct"] / value["mlm_count"]
            if self._config.span_boundary:
                figures["sbo_loss"] = sbo / steps["mlm"]
        mnm_steps = steps["tail"] if target == "tail" else steps["relation"]
        if mnm_steps:
            figures["mnm_loss"] = mnm / mnm_steps
        if target != "tail" and confusion.sum():
            name = "mnm" if target == "relation" else "mnm_relation"
            figures[f"{name}_accuracy"] = float(np.trace(confusion) / confusion.sum())
            figures[f"{name}_macro_f1"] = macro_f1(confusion)
        if target != "relation" and value["tail_count"]:
            name = "mnm_accuracy" if target == "tail" else "mnm_tail_accuracy"
            figures[name] = value["tail_correct"] / value["tail_count"]
        if target == "both" and steps["relation"] and steps["tail"]:
            figures["mnm_relation_loss"] = relation / steps["relation"]
            figures["mnm_tail_loss"] = tail / steps["tail"]
        return figures

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the training components since the last log to Trainer's own figures."""
        if "loss" in logs and "learning_rate" in logs:
            self._stop_if_not_finite(self.accelerator.gather(self._first_bad_step[None]).min())
            logs = {**logs, **self._reduced_training_figures()}
            if self.args.final_mnm_weight is not None:
                logs["mnm_weight"] = self.loss_weights(self.state.global_step - 1)[1]
            self._reset_training_sums()
        super().log(logs, start_time)

    # ---- evaluation

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Sums for each example instead of logits: exact over any split, and small (see `example_sums`)."""
        inputs = self._prepare_inputs(inputs)
        self._has_diagnostics = "leaf_in_window" in inputs
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = self._forward(model, inputs)
            sums = self._example_sums(outputs, inputs, with_losses=True)
            if outputs.sbo_loss is not None:
                num_masked = sums[:, COLUMNS.index("mlm_count")]
                sums[:, COLUMNS.index("sbo_loss")] = outputs.sbo_loss * num_masked
                sums[:, COLUMNS.index("sbo_count")] = num_masked
        return None, sums, torch.zeros_like(sums[:, :1])

    def _figures_of_predictions(self, prediction) -> dict[str, float]:
        config = self._config
        return figures_from_sums(
            np.asarray(prediction.predictions, dtype=np.float64).sum(0),
            config.num_relations,
            config.mnm_target,
            config.mlm_weight,
            config.mnm_weight,
            split=self._has_diagnostics,
        )

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Evaluate with the masks of epoch 0, exact over the whole set; see `figures_from_sums` for the figures."""
        metrics = super().evaluate(*args, **kwargs)
        if self.is_in_train:
            # The evaluated set may be the training set.
            self.hand_over_epoch()
        return metrics

    # ---- checkpoints

    def _save_checkpoint(self, model, trial) -> None:
        self._stop_if_not_finite(self.accelerator.gather(self._first_bad_step[None]).min())
        super()._save_checkpoint(model, trial)

    def _issue_warnings_after_load(self, load_result) -> None:
        """Refuse to resume weights that are not the model's; tied weights are saved once and are not missing."""
        tied = self.model.all_tied_weights_keys
        wrong = [name for name in load_result.missing_keys if name not in tied] + load_result.unexpected_keys
        if wrong:
            raise ValueError(
                f"the checkpoint is of another model: {', '.join(wrong[:5])} stand in one of the two only"
            )
