"""Kill a build again and again and compare: `python -m graphmert.benchmarks.killed_builds --kills 10 --record DIR`.

A build with all its processes is killed by SIGKILL at random moments and the same command started again, until it has been
killed so often; then it may finish. Its dataset must be equal, file by file and byte by byte, to that of a build that was
never stopped.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .record import text_table, write_record


def _start(arguments: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", f"{__package__.rpartition('.')[0]}.chain_graphs.build", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def _contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def _progress(work: Path) -> str:
    """What stands in the working directory of a stopped build."""
    if not work.exists():
        return "nothing"
    patterns = {"staged": "staging/*/*.arrow", "surveyed": "staging/*/*.survey", "rows": "rows/*.arrow"}
    counts = {name: len(list(work.glob(pattern))) for name, pattern in patterns.items()}
    names = [name for name in ("tokenizer", "dataset") if (work / name).exists()]
    return ", ".join([*(f"{count} {name}" for name, count in counts.items() if count), *names])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", nargs="+", default=["stdlib"], help="default stdlib")
    parser.add_argument("--kills", type=int, default=10, metavar="N", help="default 10")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--num-proc", type=int, default=2, metavar="N", help="worker processes, default 2")
    parser.add_argument("--record", metavar="DIR", help="write a record")
    options = parser.parse_args(argv)
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)

        def arguments(name: str) -> list[str]:
            given = [part for source in options.source for part in ("--source", source)]
            given += ["--num-proc", str(options.num_proc), "--vocab-size", "4000"]
            return [*given, "--output", str(directory / name)]

        start = time.monotonic()
        if _start(arguments("whole")).wait() != 0:
            raise SystemExit("the undisturbed build failed")
        duration = time.monotonic() - start
        rows, kills = [], 0
        while kills < options.kills:
            # A run that takes up earlier work is shorter, so some finish before their moment: those begin anew.
            moment = rng.uniform(0, duration)
            process = _start(arguments("killed"))
            try:
                process.wait(moment)
                shutil.rmtree(directory / "killed")
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
                rows.append([kills, f"{moment:.1f}", _progress(directory / ".killed.building")])
        finished = _start(arguments("killed")).wait()
        whole, killed = _contents(directory / "whole"), _contents(directory / "killed")
        is_equal = finished == 0 and whole == killed
        left = sorted(path.name for path in directory.iterdir())
    figures = {
        "kills": kills,
        "duration_s": round(duration, 1),
        "files": len(whole),
        "is_equal": is_equal,
        "left": left,
    }
    table = text_table(["kill", "after s", "what then stood"], rows)
    size = sum(map(len, whole.values()))
    table += f"\n\nundisturbed {duration:.1f} s; {len(whole)} files, {size:,} bytes; equal: {is_equal}"
    print(table)
    if options.record:
        write_record(
            options.record,
            "Builds killed at random moments",
            f"python -m graphmert.benchmarks.killed_builds --source {' '.join(options.source)} --kills {options.kills}",
            figures,
            table,
            "The dataset of the killed and restarted build is compared with an undisturbed one byte by byte.",
        )
    return int(not is_equal)


if __name__ == "__main__":
    sys.exit(main())
