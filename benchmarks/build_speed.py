"""Speed of a build and of loading its windows: `python -m graphmert.benchmarks.build_speed --record DIR`.

Everything is measured in CPU seconds, of the command with all its worker processes, so that other work on the machine
changes little; wall-clock times stand beside them. Three sizes of the same corpus show whether time grows linearly.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from ..chain_graphs.build import read_config
from .record import text_table, write_record

# Runs in a process of its own, so that peak memory is of this build alone.
_BUILD = """
import json, resource, sys
from graphmert.chain_graphs.build import BuildArguments, build_chain_graphs
manifest = build_chain_graphs(BuildArguments(**json.loads(sys.argv[1])))
own, workers = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(json.dumps({
    "characters": sum(entry["characters"] for entry in manifest["splits"].values()),
    "files": sum(entry["files"] for entry in manifest["splits"].values()),
    "cpu_s": own.ru_utime + own.ru_stime + workers.ru_utime + workers.ru_stime,
    "parent_cpu_s": own.ru_utime + own.ru_stime,
}))
"""

_LOAD = """
import json, resource, sys, time
import torch
torch.set_num_threads(1)
from graphmert.chain_graphs import WindowDataset, load_chain_graphs
from graphmert.collator import GraphMertCollator
splits, _, tokenizer = load_chain_graphs(sys.argv[1])
codes = splits["train"]["code"][:200]
start = time.process_time()
for code in codes:
    tokenizer.backend_tokenizer.encode(code, add_special_tokens=False)
encoded_per_s = sum(map(len, codes)) / (time.process_time() - start)
collate = GraphMertCollator(tokenizer)
start, begun = time.process_time(), time.monotonic()
splits = load_chain_graphs(sys.argv[1])[0]
windows = WindowDataset(splits["train"], tokenizer)
placed = time.process_time()
count, size = len(windows), 64
for begin in range(0, count, size):
    collate([windows[i] for i in range(begin, min(begin + size, count))])
end = time.process_time()
print(json.dumps({
    "windows": count, "placed_per_s": count / (placed - start), "collated_per_s": count / (end - placed),
    "from_disk_per_s": count / (end - start), "from_disk_wall_s": time.monotonic() - begun,
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "encoded_per_s": encoded_per_s,
}))
"""


def _run(program: str, argument: str, environment: dict[str, str] | None = None) -> dict:
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", program, argument], stdout=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | (environment or {"TOKENIZERS_PARALLELISM": "false"}) | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    peaks: dict[int, int] = {}
    watcher = threading.Thread(target=_watch, args=(process, peaks))
    watcher.start()
    output, _ = process.communicate()
    wall_s = time.monotonic() - start
    watcher.join()
    if process.returncode:
        raise SystemExit(f"a measured process ended with status {process.returncode}")
    parent = peaks.pop(process.pid, 0)
    result = json.loads(output.splitlines()[-1]) | {"wall_s": wall_s}
    return result | {"parent_peak_bytes": parent, "worker_peak_bytes": max(peaks.values(), default=0)}


def _watch(process: subprocess.Popen, peaks: dict[int, int]) -> None:
    """Keep the peak memory of each process of a session. (A child's own report begins with what its parent had.)"""
    while process.poll() is None:
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) == process.pid:
                    status = (entry / "status").read_text()
                    peaks[int(entry.name)] = int(status.partition("VmHWM:")[2].split()[0]) * 1024
            except (OSError, IndexError):
                continue
        time.sleep(0.5)


def measure(source: list[str], tokenizer: str, directory: Path, num_procs: tuple[int, ...]) -> list[dict]:
    """Build one corpus with each number of processes; the datasets stay in `directory`."""
    runs = []
    for num_proc in num_procs:
        output = directory / f"data{num_proc}"
        shutil.rmtree(output, ignore_errors=True)
        arguments = {
            "source": source, "output": str(output), "tokenizer": tokenizer, "num_proc": num_proc,
            "include_tests": True,
        }  # fmt: skip
        run = _run(_BUILD, json.dumps(arguments)) | {"num_proc": num_proc, "tokenizer": "given"}
        run["characters_per_cpu_s"] = run["characters"] / run["cpu_s"]
        runs.append(run)
    return runs


def measure_corpus(config: str, directory: Path, num_procs: tuple[int, ...], repeats: int) -> list[dict]:
    """Build a whole configuration as its command does, the training of the tokenizer among it; the fastest run of each."""
    runs = []
    for num_proc in num_procs:
        output = directory / f"corpus{num_proc}"
        values = read_config(Path(config)) | {"output": str(output), "num_proc": num_proc}
        tries = []
        for _ in range(repeats):
            shutil.rmtree(output, ignore_errors=True)
            tries.append(_run(_BUILD, json.dumps(values), {"RAYON_NUM_THREADS": str(num_proc)}))
        run = min(tries, key=lambda one: one["wall_s"]) | {"all_wall_s": [one["wall_s"] for one in tries]}
        run |= {"num_proc": num_proc, "tokenizer": values.get("tokenizer")}
        run["characters_per_cpu_s"] = run["characters"] / run["cpu_s"]
        runs.append(run)
    return runs


def speed_ups(runs: list[dict]) -> list[list]:
    """For each corpus that was built with one process and with more: its size, processes, and how many times as fast."""
    alone = {(run["characters"], run["tokenizer"]): run["wall_s"] for run in runs if run["num_proc"] == 1}
    return [
        [
            f"{run['characters'] / 1e6:.2f} MB" + (", tokenizer trained" if run["tokenizer"] is None else ""),
            run["num_proc"],
            f"{alone[run['characters'], run['tokenizer']] / run['wall_s']:.2f}",
        ]
        for run in runs
        if run["num_proc"] > 1 and (run["characters"], run["tokenizer"]) in alone
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--source", action="append", help="sources of growing size; default: parts of the standard library"
    )
    parser.add_argument("--tokenizer", help="default: one trained on the smallest corpus, which is not timed")
    parser.add_argument("--num-proc", type=int, nargs="+", default=[1, 2], help="numbers of processes, default 1 2")
    parser.add_argument(
        "--corpus",
        metavar="FILE",
        help="also build this configuration (configs/corpora/training.yaml), tokenizer and all",
    )
    parser.add_argument("--repeats", type=int, default=2, metavar="N", help="builds of --corpus, the fastest counts")
    parser.add_argument("--record", metavar="DIR", help="write a record")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        sources = [[source] for source in arguments.source or _parts_of_the_library(directory)]
        tokenizer = arguments.tokenizer
        if tokenizer is None:
            tokenizer = str(directory / "first" / "tokenizer")
            _run(_BUILD, json.dumps({"source": sources[0], "output": str(directory / "first"), "include_tests": True}))
        rows = []
        for source in sources:
            rows += measure(source, tokenizer, directory, tuple(arguments.num_proc))
        corpus = (
            measure_corpus(arguments.corpus, directory, tuple(arguments.num_proc), arguments.repeats)
            if arguments.corpus
            else []
        )
        loading = _run(_LOAD, str(directory / f"data{arguments.num_proc[0]}"))
    table = "\n\n".join(
        (
            text_table(
                ["MB", "files", "processes", "CPU s", "of it parent", "wall s", "MB per CPU s", "parent MB", "worker MB"],
                [
                    [
                        f"{row['characters'] / 1e6:.2f}", row["files"], row["num_proc"], f"{row['cpu_s']:.1f}",
                        f"{row['parent_cpu_s']:.1f}", f"{row['wall_s']:.1f}", f"{row['characters_per_cpu_s'] / 1e6:.2f}",
                        row["parent_peak_bytes"] // 10**6, row["worker_peak_bytes"] // 10**6,
                    ]
                    for row in rows + corpus
                ],
            ),
            text_table(["wall time of one process beside more", "processes", "times as fast"], speed_ups(rows + corpus)),
            text_table(["loading", "per CPU s"], [["windows cut and placed", int(loading["placed_per_s"])],
                                              ["windows collated", int(loading["collated_per_s"])],
                                              ["windows from disk to batches", int(loading["from_disk_per_s"])],
                                              ["characters encoded, nothing else", int(loading["encoded_per_s"])]]),
        )
    )  # fmt: skip
    print(table)
    if arguments.record:
        write_record(
            arguments.record,
            "Speed of building and loading",
            "python -m graphmert.benchmarks.build_speed"
            + (f" --corpus {arguments.corpus}" if arguments.corpus else ""),
            {"builds": rows, "corpus": corpus, "loading": loading},
            table,
            "A build reads, drops near-duplicates, parses, resolves, tokenises and writes, with a given tokenizer and the "
            "start of all processes; with --corpus the last rows also train the tokenizer and read the test files that they "
            f"skip, and each is the fastest of {arguments.repeats} builds. MB are a million characters of the files kept. "
            "CPU seconds are those of the command and of its workers. "
            "Windows from disk to batches: all of the largest corpus, from opening the dataset to the last compact batch.",
        )
    return 0


def _parts_of_the_library(directory: Path) -> list[str]:
    """Three directories of the standard library's packages: about a tenth, a third, and all of its files."""
    import sysconfig

    library = Path(sysconfig.get_path("stdlib"))
    files = [path for path in sorted(library.glob("*.py")) + sorted(library.glob("*/*.py")) if "test" not in str(path)]
    specs = []
    for name, step in (("tenth", 9), ("third", 3), ("whole", 1)):
        for path in files[::step]:
            target = directory / name / path.relative_to(library)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        specs.append(f"dir:{directory / name},project=children")
    return specs


if __name__ == "__main__":
    sys.exit(main())
