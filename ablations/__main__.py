"""The command `python -m graphmert.ablations`: run the rows of a setting, write a record of them, write the results page.

python -m graphmert.ablations --config SETTING.yaml --dataset DIR --heldout DIR --output DIR [--rows A,B] [--seeds 0,1]
python -m graphmert.ablations report --config SETTING.yaml --runs DIR --record DIR
python -m graphmert.ablations results [--check]
"""

import argparse
import signal
import sys
from pathlib import Path

from ..command_line import CommandParser

PROGRAM = "python -m graphmert.ablations"
_ROOT = Path(__file__).resolve().parent.parent


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _seeds(text: str) -> list[int]:
    if not all(part.isdigit() for part in _names(text)) or not _names(text):
        raise argparse.ArgumentTypeError(f"expected whole numbers with commas between them, got {text!r}")
    return [int(part) for part in _names(text)]


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


def _add_setting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help="the setting, for instance configs/ablations/small.yaml")
    parser.add_argument("--rows", type=_names, help="rows with commas between them (default: the setting's)")
    parser.add_argument("--seeds", type=_seeds, help="seeds with commas between them (default: the setting's)")


def run_parser() -> argparse.ArgumentParser:
    """The options of the command without a subcommand."""
    parser = CommandParser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="Train the rows of a setting with each seed and judge every checkpoint by the tasks. What is there "
        "already is kept; a run that was stopped goes on. Other commands: "
        f"`{PROGRAM} report --help`, `{PROGRAM} results --help`. Exit status: 0; 1 when a run failed; 2 for wrong "
        "input; 130 when stopped from the keyboard.",
    )
    _add_setting(parser)
    parser.add_argument("--dataset", required=True, help="corpus to train on, built by graphmert.chain_graphs.build")
    parser.add_argument("--heldout", help="corpus that the tasks test on; it shares no project with --dataset")
    parser.add_argument(
        "--training-dataset",
        help="corpus that the tasks' lookups count in and fine-tuning reads (--dataset); another build of its projects, "
        "where --dataset has lost what the lookups need (--hide-annotations)",
    )
    parser.add_argument("--output", required=True, help="directory of all runs: OUTPUT/ROW/seed-N")
    parser.add_argument("--jobs", type=_at_least_one, default=1, help="runs at a time (1)")
    parser.add_argument("--num-threads", type=_at_least_one, help="CPU threads of each run (PyTorch's choice)")
    parser.add_argument(
        "--tasks",
        type=_names,
        help="tasks with commas between them, or none (default: the setting's, or all there are)",
    )
    parser.add_argument(
        "--adopt", nargs="+", default=[], metavar="DIR", help="finished runs to take for those that are still to do"
    )
    parser.add_argument(
        "--accept-differences",
        type=_names,
        default=[],
        metavar="NAMES",
        help="options in which an adopted run may differ; the record says so",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and end")
    return parser


def run(argv: list[str]) -> int:
    """Plan and do the runs."""
    parsed = run_parser().parse_args(argv)

    from ..chain_graphs import load_chain_graphs
    from .driver import Driver, DriverArguments, format_plan, plan
    from .matching import adopt
    from .settings import ROWS_DIR, read_setting, runs_of
    from .step_time import steps_in_the_same_time

    setting = read_setting(parsed.config, parsed.rows, parsed.seeds)
    for directory in filter(None, (parsed.dataset, parsed.heldout, parsed.training_dataset)):
        load_chain_graphs(directory)
    tasks = [] if parsed.tasks == ["none"] else parsed.tasks
    arguments = DriverArguments(
        Path(parsed.dataset),
        None if parsed.heldout is None else Path(parsed.heldout),
        parsed.jobs,
        parsed.num_threads,
        tasks,
        None if parsed.training_dataset is None else Path(parsed.training_dataset),
    )
    rows_dir = Path(parsed.config).parent / ROWS_DIR
    num_steps = steps_in_the_same_time(
        setting, rows_dir, parsed.output, parsed.dataset, parsed.num_threads, only_known=parsed.dry_run
    )
    runs = runs_of(setting, parsed.output, num_steps)
    if parsed.adopt:
        for line in adopt(runs, parsed.adopt, parsed.dataset, set(parsed.accept_differences), parsed.dry_run):
            print(line)
    states = plan(setting, runs, arguments, parsed.dry_run)
    print(format_plan(setting, states, num_steps), flush=True)
    if parsed.dry_run:
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    failed = Driver(setting, states, arguments).execute()
    for state in failed:
        print(f"{PROGRAM}: {state.run.name} failed: {'; '.join(state.failures)}", file=sys.stderr)
    return 1 if failed else 0


def report(argv: list[str]) -> int:
    """Write a record of the runs that are there."""
    parser = CommandParser(
        prog=f"{PROGRAM} report", allow_abbrev=False, description="Write a record: tables, run.json, log.txt, figures."
    )
    _add_setting(parser)
    parser.add_argument("--runs", required=True, help="directory that the runs were written to (--output)")
    parser.add_argument("--record", required=True, help="directory to write, records/DATE-NAME")
    parser.add_argument("--resamples", type=_at_least_one, default=5000, help="of the bootstrap (5000)")
    parsed = parser.parse_args(argv)

    from .report import write_report
    from .settings import read_setting

    setting = read_setting(parsed.config, parsed.rows, parsed.seeds)
    command = f"{PROGRAM} report {' '.join(argv)}"
    print(write_report(setting, parsed.runs, parsed.record, command, parsed.resamples))
    return 0


def results(argv: list[str]) -> int:
    """Write docs/RESULTS.md and the README's table from the records, or say that they drifted."""
    parser = CommandParser(
        prog=f"{PROGRAM} results",
        allow_abbrev=False,
        description="Write docs/RESULTS.md from the records of ablations, and the README's table between its markers.",
    )
    parser.add_argument("--root", default=str(_ROOT), help="directory with records/, docs/ and README.md")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page is out of date")
    parsed = parser.parse_args(argv)

    from .results import write_results

    changed = write_results(Path(parsed.root), write=not parsed.check)
    for path in changed:
        print(f"{path} is out of date; run `{PROGRAM} results`" if parsed.check else f"wrote {path}")
    return 1 if parsed.check and changed else 0


def main(argv: list[str] | None = None) -> int:
    """Run the command; a mistake of the user's is one line on standard error and exit status 2."""
    argv = sys.argv[1:] if argv is None else argv
    commands = {"run": run, "report": report, "results": results}
    command = commands.get(argv[0]) if argv else None
    try:
        return command(argv[1:]) if command else run(argv)
    except (ValueError, OSError) as error:
        print(f"{PROGRAM}: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        how = "" if command in (report, results) else "; the same command goes on"
        print(f"{PROGRAM}: stopped{how}", file=sys.stderr, flush=True)
        return 130


if __name__ == "__main__":
    sys.exit(main())
