"""A build over files that no reader likes: `python -m graphmert.benchmarks.hostile_files --count 1000 --record DIR`.

Makes the files from the standard library (damaged, truncated, in other encodings, with other line ends, with null bytes,
deeply nested, Python 2, very large expressions), builds a dataset of them, and checks that each is in the manifest with a
reason or in a split with its row.
"""

import argparse
import random
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from pathlib import Path

from ..chain_graphs.build import BuildArguments, build_chain_graphs
from .record import text_table, write_record

_PYTHON_2 = "def f(a, (b, c)):\n    print 'x', `a`\n    exec 'y = 1' in d\n    raise E, 'z'\n    return 0777 <> 10L\n"


def _truncated(text: str, rng: random.Random) -> bytes:
    return text.encode()[: rng.randrange(len(text) + 1)]


def _shuffled_bytes(text: str, rng: random.Random) -> bytes:
    data = bytearray(text.encode())
    for _ in range(max(1, len(data) // 50)):
        data[rng.randrange(len(data))] = rng.randrange(1, 256)
    return bytes(data)


def _shuffled_characters(text: str, rng: random.Random) -> bytes:
    characters = list(text)
    for _ in range(max(1, len(characters) // 50)):
        characters[rng.randrange(len(characters))] = rng.choice("()[]{}:'\"\\\n\t =.,@#é中😀\u200b\u2028\x0c")
    return "".join(characters).encode()


def _shuffled_lines(text: str, rng: random.Random) -> bytes:
    lines = text.split("\n")
    rng.shuffle(lines)
    return "\n".join(lines).encode()


def _one_line(text: str, rng: random.Random) -> bytes:
    return " ".join(text.split()).encode()


def _with_nulls(text: str, rng: random.Random) -> bytes:
    where = rng.randrange(len(text) + 1)
    return (text[:where] + "\0" + text[where:]).encode()


def _nested(rng: random.Random, depth: int) -> str:
    kind = rng.randrange(5)
    if kind == 0:
        return "x = " + "(" * depth + "1" + ")" * depth + "\n"
    if kind == 1:
        return "x = " + "[" * depth + "\n"
    if kind == 2:
        return "x = " + "not " * depth + "y\n"
    if kind == 3:
        return "".join(" " * level + "if x:\n" for level in range(min(depth, 900))) + " " * min(depth, 900) + "y = x\n"
    return "x = " + "f(" * depth + "a.b" + ")" * depth + "\n"


KINDS = {
    "truncated": _truncated,
    "damaged bytes": _shuffled_bytes,
    "damaged characters": _shuffled_characters,
    "shuffled lines": _shuffled_lines,
    "one line": _one_line,
    "null bytes": _with_nulls,
    "UTF-16": lambda text, rng: text.encode("utf-16"),
    "Latin-1, not declared": lambda text, rng: ("# naïve café\n" + text).encode("latin-1", "replace"),
    "Latin-1, declared": lambda text, rng: ("# coding: latin-1\nname = 'café'\n" + text).encode("latin-1", "replace"),
    "unknown encoding": lambda text, rng: b"# coding: klingon\n" + text.encode(),
    "CR line ends": lambda text, rng: text.replace("\n", "\r").encode(),
    "mixed line ends": lambda text, rng: "".join(
        line + rng.choice(("\n", "\r\n", "\r")) for line in text.split("\n")
    ).encode(),
    "byte order mark": lambda text, rng: b"\xef\xbb\xbf" + text.encode(),
    "Python 2": lambda text, rng: (_PYTHON_2 * rng.randrange(1, 30)).encode(),
    "nested 5,000 deep": lambda text, rng: _nested(rng, 5000).encode(),
    "random bytes": lambda text, rng: rng.randbytes(len(text)),
    "no text": lambda text, rng: rng.choice((b"", b"\n", b" \t\n" * 50, b"#\n", b"\xef\xbb\xbf", b"\x0c")),
    "special tokens": lambda text, rng: text.replace(" ", rng.choice(("<mask>", "</s>", "<s>", "<pad>"))).encode(),
}


def write_hostile_files(directory: Path, count: int, seed: int = 0, max_chars: int = 40_000) -> Counter:
    """Write files, the same ones for the same arguments and Python, in four projects.

    Args:
        directory: where; a folder of projects.
        count: how many.
        seed: of the damage.
        max_chars: larger files of the standard library are not used.

    Returns:
        Number of files of each kind.
    """
    rng = random.Random(seed)
    library = Path(sysconfig.get_path("stdlib"))
    originals = [path for path in sorted(library.glob("*.py")) if 1000 < path.stat().st_size < max_chars]
    kinds = Counter()
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        text = rng.choice(originals).read_text(encoding="utf-8", errors="replace")
        path = directory / f"project{number % 4}" / f"file{number:04d}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(KINDS[kind](text, rng))
        kinds[kind] += 1
    return kinds


def write_large_files(directory: Path, size: int) -> Counter:
    """Three files of `size` bytes: one expression, one nested expression, one long string."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "expression.py").write_text("x = " + "a + " * (size // 4) + "a\n")
    (directory / "nested.py").write_text("x = " + "(" * (size // 2) + ")" * (size // 2) + "\n")
    (directory / "string.py").write_text("x = '" + "a" * size + "'\n")
    return Counter({f"{size:,} bytes of one expression": 2, f"{size:,} bytes of one string": 1})


def missing_files(source: Path, output: Path, manifest: dict) -> list[str]:
    """Files of a source directory that are neither in a split nor in the manifest."""
    from datasets import load_from_disk

    known = {item["path"] for item in manifest["skipped"]["files"]}
    for rows in load_from_disk(str(output)).values():
        known |= set(rows["path"])
    return sorted(path.relative_to(source).as_posix() for path in source.rglob("*.py") if
                  path.relative_to(source).as_posix() not in known)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=1000, metavar="N", help="files, default 1000")
    parser.add_argument("--num-proc", type=int, default=2, metavar="N", help="worker processes, default 2")
    parser.add_argument("--max-file-seconds", type=float, default=60, metavar="S", help="as in a build, default 60")
    parser.add_argument("--large-bytes", type=int, default=10_000_000, metavar="N", help="size of the large files")
    parser.add_argument("--record", metavar="DIR", help="write a record")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        source, output = Path(scratch, "hostile"), Path(scratch, "data")
        kinds = write_hostile_files(source, arguments.count) + write_large_files(
            source / "large", arguments.large_bytes
        )
        start = time.monotonic()
        manifest = build_chain_graphs(
            BuildArguments(
                source=[f"dir:{source},project=children"],
                output=str(output),
                vocab_size=2000,
                num_proc=arguments.num_proc,
                max_file_bytes=2 * arguments.large_bytes,
                max_file_seconds=arguments.max_file_seconds,
                near_duplicates=0,
                include_tables=True,
            )
        )
        figures = {
            "files": sum(kinds.values()),
            "rows": sum(entry["files"] for entry in manifest["splits"].values()),
            "skipped": sum(manifest["skipped"]["by_reason"].values()),
            "missing": len(missing_files(source, output, manifest)),
            "wall_s": round(time.monotonic() - start, 1),
            "kinds": dict(kinds),
            "by_reason": manifest["skipped"]["by_reason"],
        }
    table = "\n\n".join(
        (
            text_table(["", "files"], [[name, figures[name]] for name in ("files", "rows", "skipped", "missing")]),
            text_table(["kind", "files"], [list(item) for item in kinds.items()]),
            text_table(["reason", "files"], [list(item) for item in figures["by_reason"].items()]),
        )
    )
    print(table)
    if arguments.record:
        options = f"--count {arguments.count} --max-file-seconds {arguments.max_file_seconds:g}"
        command = f"python -m graphmert.benchmarks.hostile_files {options}"
        write_record(arguments.record, "A build over hostile files", command, figures, table,
                     "Every file is either a row or in the manifest with its reason; none stopped the build.")  # fmt: skip
    return int(figures["missing"] > 0)


if __name__ == "__main__":
    sys.exit(main())
