"""Pushing a run to the Hub: checkpoints in the background while training, the finished model at its end.

What is pushed loads from its commit alone: weights as safetensors, config, the code that its `auto_map` names, tokenizer or
processor, and a model card. Files that Python would have to unpickle are never pushed. A push that fails while training is
a warning; training and the checkpoint on disk do not depend on it.
"""

import os
import shlex
import shutil
from concurrent.futures import CancelledError, Future
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from transformers import Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import logging

from .checkpoint_files import PICKLES
from .model_card import CARD_NAME, ModelFacts, model_card
from .training_state import is_training_state

logger = logging.get_logger(__name__)

TRAINING_ARGUMENTS_NAME = "training_args.json"
# What Trainer writes under this name is a pickle.
_PICKLED_ARGUMENTS_NAME = "training_args.bin"
# Names starting with an underscore stay on this machine: the data set, logs, pushes under way.
STAGING_DIR = "_push"
NOT_PUSHED = ("_*", "checkpoint-*", *PICKLES)
# What a push may raise: the network, the Hub's refusals, the disk, and names that are no repository's.
PUSH_ERRORS = (HTTPError, OSError, ValueError)


class HubAccessError(OSError):
    """The Hub cannot be reached or does not let this token write; the message says which and what to do."""


def short_reason(error: BaseException) -> str:
    """An error's message in one line."""
    return " ".join(str(error).split())[:400] or type(error).__name__


def check_hub_access(args) -> None:
    """Find out before any work is done whether the token may write.

    Args:
        args: `TrainingArguments`; nothing is asked without `push_to_hub`.

    Raises:
        HubAccessError: no token, one that the Hub refuses or that may only read, or no connection.
    """
    if not args.push_to_hub or args.process_index != 0:
        return
    try:
        user = HfApi(token=args.hub_token).whoami()
    except (HTTPError, OSError) as error:
        raise _access_error(error) from error
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise HubAccessError(
            f"the Hub token of {user['name']} may only read, --push_to_hub needs one that may write; make one at "
            "https://huggingface.co/settings/tokens and give it as HF_TOKEN or with `hf auth login`"
        )


def _access_error(error: Exception) -> HubAccessError:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, LocalTokenNotFoundError):
        text = "--push_to_hub needs a Hub token; give it as HF_TOKEN or with `hf auth login`"
    elif isinstance(error, OfflineModeIsEnabled):
        text = "--push_to_hub cannot work while HF_HUB_OFFLINE is set"
    elif status in (401, 403):
        text = f"the Hub refuses the token ({status}): {short_reason(error)}"
    else:
        text = f"the Hub cannot be used: {short_reason(error)}"
    return HubAccessError(text)


def upload_command(directory: str | os.PathLike, repo_id: str, revision: str | None = None) -> str:
    """The command that pushes a finished run's directory later, with the Hub's own tool."""
    command = ["hf", "upload", repo_id, str(directory), "."]
    command += ["--revision", revision] if revision else []
    for pattern in NOT_PUSHED:
        command += ["--exclude", pattern]
    return shlex.join(command)


def link_files(source: Path, target: Path, leave_out) -> None:
    """Give a directory's files a second name, so that a push reads them even after the checkpoint was removed.

    Hard links cost no space; where the file system has none, the files are copied.

    Args:
        source: directory to read, with subdirectories.
        target: directory to make.
        leave_out: called with each relative path; True leaves the file out.
    """
    target.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if not path.is_file() or leave_out(name):
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target / name)
        except OSError:
            shutil.copyfile(path, target / name)


def is_pickle(path: Path) -> bool:
    """Whether a file has a name that pickles have."""
    return any(path.match(pattern) for pattern in PICKLES)


class HubTrainer(Trainer):
    """`Trainer` whose pushes to the Hub carry code and card, hold no pickles, and cannot stop training.

    `hub_strategy`, after each save: "every_save" pushes the model (the default); "checkpoint" also the state to resume from,
    as `last-checkpoint/`, and "all_checkpoints" that of every save, as `checkpoint-<step>/`; "end" pushes nothing before the
    end. Model and checkpoint are one commit. While a push is under way the next is left out, unless `hub_always_push` or
    "all_checkpoints" asks for all. `card_facts` holds what the model card should say that Trainer does not know; see
    `ModelFacts`.
    """

    def __init__(self, *args, **kwargs):
        self.card_facts: dict = {}
        self._pushes: list[Future] = []
        super().__init__(*args, **kwargs)

    # ---- what is written

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            directory = Path(output_dir if output_dir is not None else self.args.output_dir)
            (directory / _PICKLED_ARGUMENTS_NAME).unlink(missing_ok=True)
            (directory / TRAINING_ARGUMENTS_NAME).write_text(self.args.to_json_string() + "\n", encoding="utf-8")

    def create_model_card(
        self,
        language=None,
        license=None,
        tags=None,
        model_name=None,
        finetuned_from=None,
        tasks=None,
        dataset_tags=None,
        dataset=None,
        dataset_args=None,
    ) -> None:
        """Write the model card into `output_dir`; the arguments are Trainer's, and add to what the run knows."""
        if not self.is_world_process_zero():
            return
        given = {"model_name": model_name, "license": license, "base_model": finetuned_from}
        facts = self._model_facts({name: value for name, value in given.items() if value is not None})
        listed = {"language": language, "tags": tags, "datasets": dataset}
        model_card(facts, **{name: value for name, value in listed.items() if value}).save(
            Path(self.args.output_dir) / CARD_NAME
        )

    def _model_facts(self, given: dict) -> ModelFacts:
        name = (self.args.hub_model_id or Path(self.args.output_dir).absolute().name).split("/")[-1]
        evaluation = next((entry for entry in reversed(self.state.log_history) if "eval_loss" in entry), None)
        known = {
            "model_name": name,
            "load_name": self.hub_model_id or str(self.args.output_dir),
            "config": self.model.config.to_dict(),
            "num_parameters": self.model.num_parameters(),
            "training_arguments": self.args.to_dict(),
            "num_processes": self.args.world_size,
            "step": self.state.global_step,
            "num_steps": self.state.max_steps,
            "evaluation": evaluation,
        }
        return ModelFacts(**{**known, **self.card_facts, **given})

    # ---- the repository

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository, if it is not there, and see that the token may write to it.

        Raises:
            HubAccessError: it cannot be made or written to.
        """
        if not self.is_world_process_zero():
            return
        name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        private = self.args.hub_private_repo if private is None else private
        self._hub = HfApi(token=token or self.args.hub_token)
        try:
            repo_id = self._hub.create_repo(name, private=private, exist_ok=True).repo_id
        except PUSH_ERRORS as error:
            raise _access_error(error) from error
        try:
            self._hub.auth_check(repo_id, write=True)
        except HfHubHTTPError as error:
            # A server that does not know the question has not refused.
            if error.response.status_code in (401, 403):
                raise _access_error(error) from error
        self.hub_model_id = repo_id
        shutil.rmtree(Path(self.args.output_dir) / STAGING_DIR, ignore_errors=True)

    # ---- pushes while training

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Trainer asks for a push before the checkpoint is whole; `push_checkpoint` does it afterwards."""

    def push_checkpoint(self, checkpoint: str | os.PathLike) -> None:
        """Push a whole checkpoint in the background, as `hub_strategy` says; failures are warnings.

        Args:
            checkpoint: its directory; it may be removed while the push is under way.
        """
        strategy = self.args.hub_strategy
        if not self.args.push_to_hub or not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        step, always = self.state.global_step, self.args.hub_always_push or strategy == HubStrategy.ALL_CHECKPOINTS
        self._pushes = [push for push in self._pushes if not push.done()]
        if self._pushes and not always:
            logger.warning(f"step {step} is not pushed to {self.hub_model_id}: an earlier push is still under way")
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        checkpoint, staging = Path(checkpoint), Path(self.args.output_dir) / STAGING_DIR / f"step-{step}"
        message = f"Training in progress, step {step}"
        if self.args.save_strategy == SaveStrategy.EPOCH:
            message = f"Training in progress, epoch {round(self.state.epoch)}"
        try:
            shutil.rmtree(staging, ignore_errors=True)
            link_files(checkpoint, staging, lambda name: is_pickle(name) or is_training_state(name))
            model_card(self._model_facts({})).save(staging / CARD_NAME)
            if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
                folder = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
                link_files(checkpoint, staging / folder, is_pickle)
                message += ", checkpoint"
        except OSError as error:
            shutil.rmtree(staging, ignore_errors=True)
            self._warn(step, checkpoint, error)
            return
        push = self._hub.run_as_future(self._upload_staged, staging, message)
        push.add_done_callback(lambda done: self._report(done, step, checkpoint))
        self._pushes.append(push)

    def _upload_staged(self, staging: Path, message: str) -> None:
        try:
            self._hub.upload_folder(
                repo_id=self.hub_model_id,
                folder_path=staging,
                commit_message=message,
                revision=self.args.hub_revision,
            )
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _report(self, push: Future, step: int, checkpoint: Path) -> None:
        error = CancelledError("cancelled") if push.cancelled() else push.exception()
        if error is not None:
            self._warn(step, checkpoint, error)

    def _warn(self, step: int, checkpoint: Path, error: BaseException) -> None:
        logger.warning(
            f"the push of step {step} to {self.hub_model_id} failed: {short_reason(error)}. Training goes on, the "
            f"checkpoint is in {checkpoint}; the next push carries a newer model."
        )

    def _finish_current_push(self) -> None:
        """Wait for the pushes under way; what failed has been reported."""
        for push in self._pushes:
            if not push.done():
                logger.info("Waiting for the push to the Hub that is under way.")
            push.exception()
        self._pushes = []
        staging = Path(self.args.output_dir) / STAGING_DIR
        if staging.is_dir() and not any(staging.iterdir()):
            staging.rmdir()

    # ---- the push at the end

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ):
        """Save model, processing class and model card in `output_dir` and push them, with all else that lies there.

        Names with a leading underscore, checkpoints and pickles are left out.

        Args:
            commit_message: of the commit.
            blocking: wait for the end of the push.
            token: instead of `hub_token`.
            revision: branch, instead of `hub_revision`.
            private: of a repository made here.
            **kwargs: for `create_model_card`.

        Returns:
            `CommitInfo`, or its `Future` if not blocking; None on other processes than the first.

        Raises:
            HubAccessError: the repository cannot be made or written to.
            HfHubHTTPError: the Hub did not take the commit.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None or token is not None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        left_out = [path.name for path in Path(self.args.output_dir).iterdir() if is_pickle(path)]
        if left_out:
            logger.warning(f"not pushed, because reading them would run code: {', '.join(sorted(left_out))}")
        return self._hub.upload_folder(
            repo_id=self.hub_model_id,
            folder_path=self.args.output_dir,
            commit_message=commit_message,
            run_as_future=not blocking,
            ignore_patterns=list(NOT_PUSHED),
            revision=revision or self.args.hub_revision,
        )
