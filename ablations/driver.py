"""Trains and evaluates the runs of a setting, several at a time, and goes on where it was stopped.

Each run is `run_pretraining.py` on its own `config.yaml`, in a process of its own, with `--resume auto`: a run that was
killed goes on from its newest checkpoint. Then the tasks judge its checkpoint, and their reports are kept one by one. What
is there already is not done again.
"""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

from tqdm.auto import tqdm

from .matching import describe_differences, why_not_this_run
from .settings import CONFIG_NAME, Run, Setting, arguments_of, write_config

_PROGRAM = Path(__file__).resolve().parent.parent / "run_pretraining.py"
_STEP = re.compile(r"^training +step +([\d,]+)/([\d,]+)", re.M)
_POLL_S = 0.5


@dataclass
class DriverArguments:
    """How the runs are done.

    Attributes:
        dataset: the training corpus.
        heldout: corpus of the tasks; None: no tasks.
        jobs: runs at a time.
        num_threads: CPU threads of each; None: PyTorch's choice.
        tasks: names, in place of the setting's; None: the setting's, or every task that there is.
        training_dataset: what the tasks' lookups count in and their fine-tuning reads; None: `dataset`.
    """

    dataset: Path
    heldout: Path | None = None
    jobs: int = 1
    num_threads: int | None = None
    tasks: list[str] | None = None
    training_dataset: Path | None = None


@dataclass
class State:
    """What is to be done for one run."""

    run: Run
    train: bool
    tasks: list[str]
    failures: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """For the plan."""
        run = self.run
        if not self.train:
            trained = "adopted" if run.adopted else "trained"
        elif any((run.directory / "model").glob("checkpoint-*")):
            trained = "goes on from its newest checkpoint"
        else:
            trained = "to train"
        return trained + (f", then {', '.join(self.tasks)}" if self.tasks else "")


def installed_tasks() -> list[str]:
    """Names of the tasks that this version has."""
    from ..tasks import TASKS

    return list(TASKS)


def chosen_tasks(setting: Setting, arguments: DriverArguments) -> list[str]:
    """Which tasks judge the checkpoints.

    Raises:
        ValueError: a task that does not exist, or tasks without a held-out corpus.
    """
    names = arguments.tasks if arguments.tasks is not None else list(setting.tasks) or None
    if names == []:
        return []
    if arguments.heldout is None:
        raise ValueError("give --heldout DIR, the corpus that the tasks test on, or --tasks none")
    try:
        known = installed_tasks()
    except ModuleNotFoundError:
        known = []
    missing = [name for name in names or [] if name not in known]
    if missing:
        raise ValueError(f"there is no task {missing[0]!r}; there are {', '.join(known) or 'none'}")
    return known if names is None else names


def plan(setting: Setting, runs: list[Run], arguments: DriverArguments, dry_run: bool = False) -> list[State]:
    """Write the runs' configurations and find out what is left to do.

    Args:
        setting, runs, arguments: what is wanted, and how.
        dry_run: check the configurations, write nothing.

    Raises:
        ValueError: a run's directory holds a run with other arguments.
        SystemExit: an option that `run_pretraining.py` does not take (status 2, one line).
    """
    tasks = chosen_tasks(setting, arguments)
    states = []
    for run in runs:
        (arguments_of if dry_run else write_config)(run, arguments.dataset, arguments.num_threads)
        summary = run.summary
        if summary is not None and run.adopted is None:
            other = why_not_this_run(run, arguments.dataset, summary)
            if other:
                raise ValueError(
                    f"{run.directory} holds another run: {describe_differences(other)}; choose another --output or "
                    "remove it"
                )
        done = {path.stem for path in (run.directory / "tasks").glob("*.json")}
        states.append(State(run, summary is None, [name for name in tasks if name not in done]))
    return states


def format_plan(setting: Setting, states: list[State], num_steps: dict[str, int]) -> str:
    """The plan as text.

    Args:
        setting, states: what is to be done.
        num_steps: steps of the rows that are given another row's time, as far as they are measured.
    """
    width = max(len(state.run.name) for state in states)
    lines = [f"{len(setting.rows)} rows, seeds {', '.join(map(str, setting.seeds))}; baseline {setting.baseline}"]
    for state in states:
        steps = state.run.options.get("max_steps")
        length = f"{steps:,} steps" if steps else "by epochs"
        if state.run.row.same_time_as is not None and state.run.row.name not in num_steps:
            length = f"as long as {state.run.row.same_time_as}"
        lines.append(f"  {state.run.name:{width}}  {length:>18}  {state.text}")
    left = sum(state.train for state in states)
    lines.append(f"{left} of {len(states)} runs to train, {sum(len(state.tasks) for state in states)} reports to make")
    return "\n".join(lines)


class Driver:
    """Works through the plan.

    Args:
        setting: for the tasks' options.
        states: of `plan`.
        arguments: how.
        say: prints a line.
    """

    def __init__(
        self,
        setting: Setting,
        states: list[State],
        arguments: DriverArguments,
        say: Callable[[str], None] = tqdm.write,
    ):
        self.setting, self.states, self.arguments, self.say = setting, states, arguments, say
        self.training_command = [sys.executable, str(_PROGRAM)]
        self.tasks_command = [sys.executable, "-m", "graphmert.tasks"]
        self._children: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._pace = Pace()

    def execute(self) -> list[State]:
        """Do all that is left.

        Returns:
            The states of which something failed, with the reasons.
        """
        work = [state for state in self.states if state.train or state.tasks]
        bar = tqdm(total=len(work), desc="runs", unit="run", disable=None)
        pool = ThreadPoolExecutor(max_workers=self.arguments.jobs)
        try:
            pending = {pool.submit(self._work, state): state for state in work}
            told = False
            while pending:
                done, _ = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                for future in done:
                    state = pending.pop(future)
                    future.result()
                    bar.update()
                    outcome = "; ".join(state.failures) or "done"
                    self.say(f"{state.run.name}: {outcome}")
                training = [state.run for state in pending.values() if state.train]
                estimate = self._pace.seconds_left(training, self.arguments.jobs)
                if estimate is not None and training:
                    bar.set_postfix_str(f"about {estimate / 60:.0f} min left", refresh=False)
                    if not told:
                        told = True
                        self.say(f"training needs about {estimate / 60:.1f} more minutes; tasks come on top")
        except BaseException:
            self.stop()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            bar.close()
        return [state for state in self.states if state.failures]

    def stop(self) -> None:
        """End the processes that are running; what they saved is kept."""
        self._stopped.set()
        with self._lock:
            for child in self._children:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGTERM)

    # ---- one run

    def _work(self, state: State) -> None:
        with _claimed(state.run.directory) as claim:
            if claim is None:
                state.failures.append("another process works on it")
                return
            if state.train and not self._train(state, claim):
                return
            if state.tasks and not self._stopped.is_set():
                self._evaluate(state, claim)

    def _train(self, state: State, claim: int) -> bool:
        run = state.run
        log = run.directory / "log.txt"
        begin = log.stat().st_size if log.exists() else 0
        command = [*self.training_command, str(run.directory / CONFIG_NAME), "--resume", "auto"]

        def watch() -> None:
            with log.open("rb") as file:
                file.seek(begin)
                self._pace.note(run.name, file.read().decode(errors="replace"), time.monotonic())

        status = self._run(command, log, claim, watch)
        if status == 0 and run.summary is not None:
            return True
        state.failures.append(f"training ended with status {status}, see {log}: {_last_line(log)}")
        return False

    def _evaluate(self, state: State, claim: int) -> None:
        # Together, so that checkpoint and corpus are opened once; one by one if that fails, so that one task that cannot
        # be done does not take the others with it.
        for names in self._task_groups(state):
            if self._run_tasks(state, names, claim) and len(names) > 1:
                for name in [name for name in names if not self._report(state.run, name).exists()]:
                    if self._stopped.is_set():
                        return
                    self._run_tasks(state, [name], claim)
        for name in state.tasks:
            if not self._report(state.run, name).exists():
                log = state.run.directory / "tasks" / "log.txt"
                state.failures.append(f"no report of {name}, see {log}")

    def _task_options(self, run: Run, name: str) -> dict:
        return {**self.setting.tasks.get(name, {}), **run.row.tasks.get(name, {})}

    def _task_groups(self, state: State) -> list[list[str]]:
        """The tasks of a run that can be run by one command: those whose options for all tasks are the same."""
        from ..tasks.base import TaskArguments

        common = {field.name for field in fields(TaskArguments)}
        groups: dict[str, list[str]] = {}
        for name in state.tasks:
            chosen = {key: value for key, value in self._task_options(state.run, name).items() if key in common}
            groups.setdefault(json.dumps(chosen, sort_keys=True), []).append(name)
        return list(groups.values())

    def _run_tasks(self, state: State, names: list[str], claim: int) -> int:
        run, folder = state.run, state.run.directory / "tasks"
        folder.mkdir(exist_ok=True)
        whole = folder / f".{'+'.join(names)}.json"
        options = dict(self.setting.task_arguments)
        for name in names:
            options.update(self._task_options(run, name))
        if self.arguments.num_threads is not None:
            options["num_threads"] = self.arguments.num_threads
        command = [*self.tasks_command, *names, "--model", str(run.model_dir)]
        training = self.arguments.training_dataset or self.arguments.dataset
        command += ["--dataset", str(self.arguments.heldout), "--training-dataset", str(training)]
        # Beside the runs of all rows, which are judged beside the same lookups.
        command += ["--cache-dir", str(run.directory.parent.parent / "_counted")]
        command += ["--output", str(whole), "--save-examples"]
        for name, value in options.items():
            values = value if isinstance(value, list) else [value]
            texts = [str(item).lower() if isinstance(item, bool) else str(item) for item in values]
            command += [f"--{name.replace('_', '-')}", *texts]
        status = self._run(command, folder / "log.txt", claim)
        if status == 0:
            self._keep_reports(run, names, whole)
        return status

    def _report(self, run: Run, name: str) -> Path:
        return run.directory / "tasks" / f"{name}.json"

    def _keep_reports(self, run: Run, names: list[str], whole: Path) -> None:
        """One file for each task; a report counts as there once its file has its name."""
        report = json.loads(whole.read_text(encoding="utf-8"))
        parts = report.pop("tasks")
        for name in names:
            examples = whole.with_suffix(f".{name}.npz")
            if examples.exists():
                examples.replace(self._report(run, name).with_suffix(".npz"))
            part = self._report(run, name).with_suffix(".part")
            part.write_text(json.dumps({**report, **parts[name]}, indent=1) + "\n", encoding="utf-8")
            part.replace(self._report(run, name))
        whole.unlink()

    # ---- processes

    def _run(self, command: list[str], log: Path, claim: int, watch: Callable[[], None] | None = None) -> int:
        """Run a command with its output added to a log; ends with its exit status."""
        environment = dict(os.environ)
        if self.arguments.num_threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.arguments.num_threads)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {' '.join(command)}\n")
            file.flush()
            with self._lock:
                if self._stopped.is_set():
                    return -signal.SIGTERM
                # The child inherits the claim: should this driver be killed, the run stays claimed until the child ends.
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                    pass_fds=[claim],
                )
                self._children.add(child)
            while True:
                try:
                    status = child.wait(timeout=_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    if watch is not None:
                        watch()
            with self._lock:
                self._children.discard(child)
        return status


class Pace:
    """Seconds per training step, read from the logs of the runs, and how long the rest will take."""

    def __init__(self):
        # Run -> first step seen and when, last step seen and when, steps in all.
        self._marks: dict[str, tuple[int, float, int, float, int]] = {}
        self._lock = threading.Lock()

    def note(self, name: str, text: str, now: float) -> None:
        """Take in what a run has logged so far."""
        found = _STEP.findall(text)
        if not found:
            return
        step, total = (int(number.replace(",", "")) for number in found[-1])
        with self._lock:
            first_step, first_time, last_step, last_time, _ = self._marks.get(name, (step, now, step, now, total))
            last_time = now if step > last_step else last_time
            self._marks[name] = (first_step, first_time, step, last_time, total)

    def seconds_left(self, runs: list[Run], jobs: int) -> float | None:
        """How long the training of these runs will take; None before two logs of one run are seen."""
        with self._lock:
            marks = dict(self._marks)
        steps = sum(last - first for first, _, last, _, _ in marks.values())
        if not steps or not marks:
            return None
        seconds = sum(end - begin for _, begin, _, end, _ in marks.values()) / steps
        usual = max(total for *_, total in marks.values())
        left = 0
        for run in runs:
            _, _, last, _, total = marks.get(run.name, (0, 0, 0, 0, run.options.get("max_steps") or usual))
            left += total - last
        return seconds * left / jobs


@contextmanager
def _claimed(directory: Path) -> Iterator[int | None]:
    """Claim a run's directory; gives the claim's file descriptor, or None where another process has it."""
    with (directory / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file.fileno()


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
