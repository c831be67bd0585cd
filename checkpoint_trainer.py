"""Checkpoints that are whole or not there, hold no pickles, and may fail for want of room without ending the run."""

import errno
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils import is_sagemaker_mp_enabled, is_torch_xla_available, logging

from .checkpoint_files import remove_record, write_record
from .hub_training import HubTrainer, short_reason
from .training_state import (
    OPTIMIZER_NAME,
    SCALER_NAME,
    SCHEDULER_NAME,
    load_tree,
    random_state,
    rng_name,
    save_tree,
    set_random_state,
)

logger = logging.get_logger(__name__)


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed because the disk, or the user's share of it, is full."""
    codes = (errno.ENOSPC, errno.EDQUOT)
    # The libraries written in Rust (safetensors, tokenizers) tell of it in words only.
    return getattr(error, "errno", None) in codes or any(f"(os error {code})" in str(error) for code in codes)


class CheckpointTrainer(HubTrainer):
    """`HubTrainer` that knows which of its checkpoints are whole.

    A checkpoint's last file is a record of all others; older checkpoints go, and pushes begin, only after it is there.
    When the disk is full the unfinished checkpoint is removed, a warning says so, and training goes on with the older
    ones kept. Optimizer, scheduler and random generators are saved as safetensors, except with DeepSpeed, FSDP and TPUs.
    """

    _full_disk: BaseException | None = None
    _in_checkpoint = False

    # ---- whole or not there

    def _save_checkpoint(self, model, trial) -> None:
        run_dir = Path(self._get_output_dir(trial=trial))
        checkpoint = run_dir / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            remove_record(checkpoint)
        # Older checkpoints may go only when this one is known to be whole.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        best = self.state.best_model_checkpoint
        self._full_disk, self._in_checkpoint = None, True
        try:
            with self._noting_full_disk():
                super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            with self._noting_full_disk():
                if self.args.should_save and self._full_disk is None:
                    write_record(checkpoint)
        finally:
            self.args.save_total_limit, self._in_checkpoint = limit, False
        if self._any_process(self._full_disk is not None):
            if self.state.best_model_checkpoint == str(checkpoint):
                self.state.best_model_checkpoint = best
            self._drop(checkpoint)
            return
        if self.args.should_save:
            self.push_checkpoint(checkpoint)
            rotate_checkpoints(
                output_dir=str(run_dir),
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    @contextmanager
    def _noting_full_disk(self):
        """Remember that a checkpoint does not fit instead of raising, so that no process waits for one that gave up."""
        try:
            yield
        except Exception as error:
            # Each library raises a type of its own when it cannot write, so the cause decides, not the type.
            if not (self._in_checkpoint and is_disk_full(error)):
                raise
            self._full_disk = error

    def _any_process(self, flag: bool) -> bool:
        if self.args.world_size == 1:
            return flag
        return bool(self.accelerator.gather(torch.tensor([flag], device=self.args.device)).any())

    def _drop(self, checkpoint: Path) -> None:
        if self.args.should_save:
            shutil.rmtree(checkpoint, ignore_errors=True)
        if self.is_world_process_zero():
            reason = "" if self._full_disk is None else f": {short_reason(self._full_disk)}"
            logger.warning(
                f"step {self.state.global_step} could not be saved in {checkpoint}, the disk is full{reason}. Training goes "
                "on; earlier checkpoints are kept. Make room before the next save."
            )

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        with self._noting_full_disk():
            super()._save(output_dir, state_dict)

    # ---- the state to resume from

    @property
    def _own_state_files(self) -> bool:
        return not (
            self.is_fsdp_enabled
            or self.is_deepspeed_enabled
            or is_torch_xla_available()
            or is_sagemaker_mp_enabled()
            or self.args.device.type not in ("cpu", "cuda", "mps")
        )

    def _save_state_tree(self, tree, path: Path) -> None:
        with self._noting_full_disk():
            if self._full_disk is None:
                save_tree(tree, path)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._own_state_files:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            self._save_state_tree(self.optimizer.state_dict(), Path(output_dir) / OPTIMIZER_NAME)
            self._save_state_tree(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self._own_state_files:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None and not (Path(checkpoint) / OPTIMIZER_NAME).is_file():
            logger.warning(f"{checkpoint} has no {OPTIMIZER_NAME}: optimizer and learning rate start anew")
        elif checkpoint is not None:
            self.optimizer.load_state_dict(load_tree(Path(checkpoint) / OPTIMIZER_NAME))
            self.lr_scheduler.load_state_dict(load_tree(Path(checkpoint) / SCHEDULER_NAME))

    def _save_scaler(self, output_dir: str) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if not self._own_state_files:
            super()._save_scaler(output_dir)
        elif scaler is not None and self.args.should_save:
            self._save_state_tree(scaler.state_dict(), Path(output_dir) / SCALER_NAME)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if not self._own_state_files:
            super()._load_scaler(checkpoint)
        elif checkpoint is not None and (Path(checkpoint) / SCALER_NAME).is_file():
            self.accelerator.scaler.load_state_dict(load_tree(Path(checkpoint) / SCALER_NAME))

    def _save_rng_state(self, output_dir: str) -> None:
        if not self._own_state_files:
            super()._save_rng_state(output_dir)
            return
        # Another process may not have made the directory yet.
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        name = rng_name(self.args.process_index, self.args.world_size)
        self._save_state_tree(random_state(), Path(output_dir) / name)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if not self._own_state_files:
            super()._load_rng_state(checkpoint)
            return
        if checkpoint is None:
            return
        path = Path(checkpoint) / rng_name(self.args.process_index, self.args.world_size)
        if path.is_file():
            set_random_state(load_tree(path))
        else:
            logger.warning(
                f"{checkpoint} has no random state for process {self.args.process_index} of {self.args.world_size}: "
                "dropout will differ from a run that was never stopped"
            )
