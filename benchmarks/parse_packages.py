"""Reads the code graph of whole packages in each language: counts by relation, syntax errors, crashes and speed.

    python benchmarks/parse_packages.py --output records/NAME java=DIR/guava ruby=DIR/rack ruby=DIR/sinatra ...

Each argument names a language and a folder with a package's sources; all files with the language's endings are read.
Speed is that of `extract` alone, in seconds of one processor, on text that is already in memory.
"""

import argparse
import json
import platform
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import tree_sitter

from graphmert.code_graph import LANGUAGES, RELATION_NAMES, extract, language_of, relations_of


def read_package(language: str, folder: Path) -> dict:
    """Counts over all files of one package."""
    counts, skipped = Counter(), Counter()
    result = {"language": language, "package": folder.name, "files": 0, "megabytes": 0.0, "seconds": 0.0}
    num_errors, broken, crashes, uses, not_text = 0, 0, [], 0, 0
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or language_of(path.name) != language:
            continue
        try:
            source = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            not_text += 1
            continue
        start = time.process_time()
        try:
            graph = extract(source, language)
        except Exception:  # a benchmark of robustness: every kind of failure is what it looks for
            crashes.append({"path": str(path.relative_to(folder)), "error": traceback.format_exc()[-400:]})
            continue
        result["seconds"] += time.process_time() - start
        result["files"] += 1
        result["megabytes"] += len(source.encode()) / 1e6
        num_errors += graph.num_errors
        broken += graph.num_errors > 0
        skipped.update(graph.num_skipped)
        for triple in graph.triples:
            counts[triple.relation] += 1
            uses += triple.is_use
            if source[triple.head_start : triple.head_end] != triple.head:
                crashes.append({"path": str(path.relative_to(folder)), "error": f"span of {triple}"})
    others = sorted(set(counts) - set(relations_of(language)))
    result |= {
        "megabytes_per_second": result["megabytes"] / max(result["seconds"], 1e-9),
        "relations": {name: counts[name] for name in RELATION_NAMES},
        "relations_that_the_language_has_not": others,
        "facts_at_uses": uses,
        "syntax_errors": num_errors,
        "files_with_syntax_errors": broken,
        "files_that_are_not_utf8": not_text,
        "crashes": crashes,
        "skipped": dict(skipped.most_common()),
    }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("packages", nargs="+", metavar="LANGUAGE=DIR")
    parser.add_argument("--output", type=Path, help="folder for run.json")
    arguments = parser.parse_args()
    results = []
    for package in arguments.packages:
        language, _, folder = package.partition("=")
        if language not in LANGUAGES or not Path(folder).is_dir():
            sys.exit(f"{package!r}: expected LANGUAGE=DIR with one of {', '.join(LANGUAGES)} and a folder")
        result = read_package(language, Path(folder))
        results.append(result)
        found = " ".join(f"{name}={count}" for name, count in result["relations"].items() if count)
        print(
            f"{language:10s} {result['package']}: {result['files']} files, {result['megabytes']:.2f} MB, "
            f"{result['megabytes_per_second']:.2f} MB/s, {result['files_with_syntax_errors']} files with syntax errors, "
            f"{len(result['crashes'])} crashes\n           {found}",
            flush=True,
        )
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        about = {"python": platform.python_version(), "tree_sitter": getattr(tree_sitter, "__version__", "0.26"),
                 "machine": platform.processor() or platform.machine()}  # fmt: skip
        text = json.dumps({"about": about, "packages": results}, indent=1, ensure_ascii=False)
        (arguments.output / "run.json").write_text(text + "\n", encoding="utf-8")
    sys.exit(1 if any(result["crashes"] for result in results) else 0)


if __name__ == "__main__":
    main()
