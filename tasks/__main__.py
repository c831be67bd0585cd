"""The command `python -m graphmert.tasks NAME [NAME ...] --model DIR [--dataset DIR] [--output FILE.json] ...`."""

import sys
from argparse import ArgumentError, RawDescriptionHelpFormatter
from dataclasses import fields

from . import TASKS

PROGRAM = "python -m graphmert.tasks"
USAGE = f"{PROGRAM} NAME [NAME ...] --model DIR [--dataset DIR] [--output FILE.json] [--option value ...]"


def list_of_tasks() -> str:
    """The tasks, one on a line."""
    width = max(map(len, TASKS))
    return "\n".join(f"  {name:{width}}  {about}" for name, about in TASKS.items())


def parse_arguments(argv: list[str]):
    """Names of tasks, then options: the common ones and those of the named tasks.

    Args:
        argv: command line without the program's name.

    Returns:
        The names, `TaskArguments`, and the tasks' options by field.

    Raises:
        SystemExit: wrong arguments (status 2, one line) or --help.
    """
    names = []
    while argv and not argv[0].startswith("-"):
        names.append(argv[0])
        argv = argv[1:]
    if not names and ({"-h", "--help"} & set(argv) or not argv):
        # Answered here, before anything heavy is loaded.
        print(f"usage: {USAGE}\n\ntasks:\n{list_of_tasks()}\n\nAll options: {PROGRAM} NAME --help")
        raise SystemExit(0 if argv else 2)
    if not names:
        raise SystemExit(_fail(f"name a task first: {', '.join(TASKS)}"))

    from transformers import HfArgumentParser

    from .base import TaskArguments, task_class

    class Parser(HfArgumentParser):
        def error(self, message):
            raise SystemExit(_fail(message))

    try:
        classes = [cls for cls in (task_class(name).options_class for name in dict.fromkeys(names)) if cls is not None]
        parser = Parser(
            [TaskArguments, *classes],
            prog=PROGRAM,
            usage=USAGE,
            description="Evaluate a checkpoint.",
            epilog=f"tasks:\n{list_of_tasks()}",
            formatter_class=RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        common, *options, unknown = parser.parse_args_into_dataclasses(
            argv, look_for_args_file=False, return_remaining_strings=True
        )
    except (ValueError, ArgumentError) as error:
        raise SystemExit(_fail(error)) from error
    if unknown:
        owners = _tasks_with(unknown[0])
        if owners:
            raise SystemExit(
                _fail(
                    f"{unknown[0]} is an option of {', '.join(owners)}, which is not among the tasks asked for "
                    f"({', '.join(dict.fromkeys(names))}); name that task too, or leave the option out"
                )
            )
        raise SystemExit(_fail(f"unknown option {unknown[0]}; {PROGRAM} {names[0]} --help lists them all"))
    return list(dict.fromkeys(names)), common, {key: value for item in options for key, value in vars(item).items()}


def _tasks_with(option: str) -> list[str]:
    """The tasks that have an option, as it stands on the command line (`--name`, `--name=value`, `--no_name`)."""
    from .base import task_class

    name = option.partition("=")[0].lstrip("-").replace("-", "_")
    names = {name, name.removeprefix("no_")}
    options = {task: task_class(task).options_class for task in TASKS}
    return [task for task, cls in options.items() if cls is not None and names & {item.name for item in fields(cls)}]


def format_report(report: dict) -> str:
    """The report as tables: one for each task, its figures in columns, model, controls and baselines in rows."""
    blocks = []
    for name, task in report["tasks"].items():
        if "not_applicable" in task:
            blocks.append(f"{name}: not done, {task['not_applicable']}")
            continue
        rows = [("model", task["figures"])]
        rows += [(f"model, {who}", figures) for who, figures in task["controls"].items()]
        rows += list(task["baselines"].items())
        columns = list(dict.fromkeys(figure for _, figures in rows for figure in figures))
        width = max(len(who) for who, _ in rows)
        lines = [f"{name} ({task['seconds']:.0f} s)"]
        # A table of more columns than a terminal holds is cut into several.
        for start in range(0, len(columns), 6):
            part = columns[start : start + 6]
            lines.append(" " * width + "".join(f"  {column:>16}" for column in part))
            for who, figures in rows:
                if any(column in figures for column in part):
                    lines.append(
                        f"{who:{width}}" + "".join(f"  {_cell(figures.get(c)):>{max(16, len(c))}}" for c in part)
                    )
        counts = ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in task["counts"].items())
        blocks.append("\n".join([*lines, counts]))
    return "\n\n".join(blocks)


def _cell(value) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def _fail(error) -> int:
    print(f"{PROGRAM}: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return 2


def main(argv: list[str] | None = None) -> int:
    """Run the command; a mistake of the user's is one line on standard error and exit status 2."""
    try:
        names, arguments, options = parse_arguments(sys.argv[1:] if argv is None else argv)

        from transformers.utils import logging as hf_logging

        from .base import run_tasks

        hf_logging.disable_progress_bar()
        report = run_tasks(names, arguments, options)
    except (ValueError, OSError) as error:
        return _fail(error)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped; no report was written", file=sys.stderr, flush=True)
        return 130
    print(format_report(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
