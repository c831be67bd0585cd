"""The command that embeds code and searches it: `graphmert-embed --help`, or `python -m graphmert.embed_code --help`."""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .chain_graphs.languages import DEFAULT_LANGUAGES, parse_languages
from .chain_graphs.sources import DEFAULT_CACHE_DIR, ReadOptions, SkippedFile, parse_source
from .code_graph import LANGUAGES
from .command_line import CommandParser, check_output_file

if TYPE_CHECKING:
    import numpy as np

PROGRAM = "graphmert-embed"
UNITS = ("function", "file")
POOLINGS = ("mean", "roots", "cls")
# Under this key the schema of an index says what made it.
METADATA_KEY = b"graphmert"
# So many windows are read before they are encoded: enough to sort by length, few enough to hold.
_WINDOWS_AT_ONCE = 2048


@dataclass
class EmbedArguments:
    """What to embed and what to look for; see `--help` for each."""

    model: str = ""
    source: tuple[str, ...] = ()
    output: str | None = None
    index: str | None = None
    query: str | None = None
    query_language: str | None = None
    top: int = 10
    unit: str = "function"
    pooling: str = "mean"
    batch_size: int = 32
    device: str = "cpu"
    num_threads: int | None = None
    languages: tuple[str, ...] = DEFAULT_LANGUAGES
    include_tests: bool = False
    include_tables: bool = False
    max_file_bytes: int = 1_000_000
    cache_dir: str = str(DEFAULT_CACHE_DIR)
    overwrite: bool = False
    sentence_transformers: bool = False


class Piece(NamedTuple):
    """A function or file: where it stands, lines from 1."""

    source: str
    project: str
    path: str
    name: str
    first_line: int
    last_line: int


_EPILOG = """sources are those of graphmert-build: stdlib, dir:PATH, pypi:NAME==VERSION, hf:PATH_OR_ID,text_column=NAME

examples:
  graphmert-embed --model runs/small --source dir:project --output embeddings.parquet
  graphmert-embed --model runs/small --index embeddings.parquet --query "read a file line by line"
  graphmert-embed --model runs/small --source dir:project --query "def total(rows): return sum(rows)" --query-language python
  graphmert-embed --model runs/small --source dir:project --languages java go --output embeddings.parquet
  graphmert-embed --model runs/small --sentence-transformers

A model that was only pretrained has never seen questions in words: it finds code by code better than by words.
exit status: 0; 2 for wrong input, with one line on standard error; 130 when stopped
"""


def make_parser() -> argparse.ArgumentParser:
    """The command line; defaults are those of `EmbedArguments`."""
    default = EmbedArguments()
    parser = CommandParser(
        prog=PROGRAM,
        description="Embed the functions or files of code with a GraphMERT model, and search them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", metavar="DIR_OR_ID", help="a checkpoint; no code of it is run")
    add("--source", action="append", metavar="SOURCE", help="code to embed, see below; repeatable")
    add("--output", metavar="FILE", help="Parquet file to write: source, project, path, name, lines, vector")
    add("--index", metavar="FILE", help="search in this file of an earlier call, instead of embedding --source")
    add("--query", metavar="TEXT", help="print the nearest rows")
    add("--query-language", metavar="NAME", help="the query is code in this language; default: it is words")
    add("--top", type=int, metavar="N", help=f"rows to print, default {default.top}")
    add("--unit", choices=UNITS, help=f"what a row is, default {default.unit}")
    add("--pooling", choices=POOLINGS, help=f"how states become a vector, default {default.pooling}")
    add("--batch-size", type=int, metavar="N", help=f"windows in a batch, default {default.batch_size}")
    add("--device", help=f"default {default.device}; for instance cuda")
    add("--num-threads", type=int, metavar="N", help="CPU threads of PyTorch, default PyTorch's choice")
    add(
        "--languages",
        nargs="+",
        metavar="NAME",
        help=f"languages to read, of {', '.join(LANGUAGES)}; default {', '.join(default.languages)}",
    )
    add("--include-tests", action=argparse.BooleanOptionalAction, help="embed test code too, default no")
    add("--include-tables", action=argparse.BooleanOptionalAction, help="embed files of data too, default no")
    add("--max-file-bytes", type=int, metavar="N", help=f"skip larger files, default {default.max_file_bytes}")
    add("--cache-dir", metavar="DIR", help=f"where downloads are kept, default {DEFAULT_CACHE_DIR}")
    add("--overwrite", action=argparse.BooleanOptionalAction, help="replace the output")
    add(
        "--sentence-transformers",
        action=argparse.BooleanOptionalAction,
        help="put the files into --model that SentenceTransformer(DIR, trust_remote_code=True) needs; goes with --pooling",
    )
    add("--config", metavar="FILE", help="YAML or JSON file of options; options on the command line come before it")
    return parser


def parse_arguments(argv: list[str] | None = None) -> EmbedArguments:
    """Read the command line and the configuration file.

    Raises:
        ValueError: options that are missing or contradict each other.
    """
    given = {name: value for name, value in vars(make_parser().parse_args(argv)).items() if value is not None}
    config = given.pop("config", None)
    given = (_read_config(Path(config)) if config else {}) | given
    if "languages" in given:
        given["languages"] = parse_languages(given["languages"])
    arguments = EmbedArguments(**given)
    if not arguments.model:
        raise ValueError("no model; give --model DIR_OR_ID")
    if arguments.sentence_transformers:
        others = [name for name in given if name not in ("model", "pooling", "sentence_transformers")]
        if others:
            option = f"--{others[0].replace('_', '-')}"
            raise ValueError(
                f"{option} and --sentence-transformers: the latter goes with --model and --pooling alone; leave {option} out"
            )
        return arguments
    if bool(arguments.source) == bool(arguments.index):
        raise ValueError("give --source to embed code, or --index to search in what was embedded")
    if arguments.index and arguments.output:
        raise ValueError("--output goes with --source; --index is only read")
    if not arguments.output and not arguments.query:
        raise ValueError("nothing to do: give --output FILE to keep the vectors, or --query TEXT to search them")
    for name in ("batch_size", "top", "max_file_bytes", "num_threads"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; it must be at least 1")
    if arguments.output:
        check_output_file("--output", arguments.output)
    if arguments.output and Path(arguments.output).exists() and not arguments.overwrite:
        raise ValueError(f"--output {arguments.output} exists; choose another file or add --overwrite")
    return arguments


def _read_config(path: Path) -> dict:
    """Options from a YAML or JSON file, checked like those of the command line."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ValueError(f"--config {path}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: must hold options by name, such as `model: runs/small`")
    actions = {action.dest: action for action in make_parser()._actions if action.dest not in ("help", "config")}
    checked = {}
    for name, value in values.items():
        name = str(name).replace("-", "_")
        if name not in actions:
            raise ValueError(f"--config {path}: unknown option {name!r}; the options are {', '.join(actions)}")
        action, kind = actions[name], actions[name].type or str
        if name in ("source", "languages"):
            value = [value] if isinstance(value, str) else value
            fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
        elif isinstance(action, argparse.BooleanOptionalAction):
            fits = isinstance(value, bool)
        else:
            fits = isinstance(value, kind) and not isinstance(value, bool)
        if not fits or (action.choices and value not in action.choices):
            raise ValueError(f"--config {path}: {name} cannot be {value!r}")
        checked[name] = value
    return checked


class Embedder:
    """A model with its processor, for pieces of files.

    Args:
        arguments: of the command.
    """

    def __init__(self, arguments: EmbedArguments):
        import torch

        from .embedding_files import load_encoder, weights_sha256

        if arguments.num_threads:
            torch.set_num_threads(arguments.num_threads)
        self.arguments = arguments
        self.model, self.processor = load_encoder(arguments.model)
        sha256 = weights_sha256(self.model)
        try:
            self.model.to(arguments.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).split("\n")[0]
            raise ValueError(f"--device {arguments.device}: cannot be used ({reason})") from error
        self.made_by = {"weights_sha256": sha256, "pooling": arguments.pooling}

    def blocks(self, skipped: Counter) -> Iterator[tuple[list[Piece], "np.ndarray"]]:
        """Pieces of the sources with their vectors of length 1, a block at a time; what is left out is counted."""
        from tqdm import tqdm

        pieces: list[Piece] = []
        windows: list[dict] = []
        num_found = 0
        for spec in dict.fromkeys(self.arguments.source):
            source = parse_source(spec, self._read_options())
            for file in tqdm(source.files(), desc=spec, unit=" files", disable=None, leave=False):
                if isinstance(file, SkippedFile):
                    skipped[file.reason] += 1
                    continue
                try:
                    found, rows = self._read(file)
                except (ValueError, RecursionError, MemoryError) as error:
                    # One file never ends a run: a language that is not read, or a tree too deep.
                    skipped[f"cannot be read ({' '.join(str(error).split())[:80] or type(error).__name__})"] += 1
                    continue
                if not found:
                    skipped[f"no {self.arguments.unit} in it"] += 1
                    continue
                for item in self.processor.reader.windows(rows):
                    windows.append({**item, "text": len(pieces) + item["text"]})
                pieces.extend(found)
                num_found += len(found)
                if len(windows) >= _WINDOWS_AT_ONCE:
                    yield pieces, self._encode(windows)
                    pieces, windows = [], []
            for language, number in sorted(source.num_not_asked.items()):
                skipped[f"written in {language} (--languages {language} reads them)"] += number
            if source.num_files == 0:
                raise ValueError(
                    f"source {spec} has no file of code in {', '.join(self.arguments.languages)}; check the path, or name "
                    "the languages with --languages"
                )
        if pieces:
            yield pieces, self._encode(windows)
        elif not num_found:
            raise ValueError(f"no {self.arguments.unit} was found in {', '.join(self.arguments.source)}")

    def _read_options(self) -> ReadOptions:
        arguments = self.arguments
        return ReadOptions(
            max_file_bytes=arguments.max_file_bytes,
            include_tests=arguments.include_tests,
            include_tables=arguments.include_tables,
            languages=arguments.languages,
            cache_dir=Path(arguments.cache_dir).expanduser(),
        )

    def _read(self, file) -> tuple[list[Piece], list[dict]]:
        """The pieces of a file and their rows: the graph is the whole file's, so that a piece knows its imports."""
        from .chain_graphs.reading import part_of_row
        from .code_graph.functions import list_functions

        row = self.processor.reader.row(file.text, file.language)
        where = (file.source, file.project, file.path)
        if self.arguments.unit == "file":
            # splitlines() would also split at form feeds and the like, which editors do not count.
            num_lines = file.text.removesuffix("\n").count("\n") + 1
            return [Piece(*where, "", 1, num_lines)], [row]
        functions = list_functions(file.text, file.language)
        pieces = [Piece(*where, each.name, each.first_line, each.last_line) for each in functions]
        return pieces, [part_of_row(row, each.start, each.end) for each in functions]

    def _encode(self, windows: list[dict]) -> "np.ndarray":
        arguments = self.arguments
        vectors = self.model.encode_windows(
            windows, self.processor, batch_size=arguments.batch_size, pooling=arguments.pooling, normalize=True
        )
        return vectors.numpy()

    def query(self) -> "np.ndarray":
        """The vector of the query."""
        arguments = self.arguments
        options = {"pooling": arguments.pooling, "normalize": True, "show_progress_bar": False}
        return self.model.encode(arguments.query, self.processor, language=arguments.query_language, **options)


def write_index(path: Path, blocks, made_by: dict, dimension: int) -> Iterator[tuple[list[Piece], "np.ndarray"]]:
    """Write blocks to a Parquet file while they pass, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [(name, pa.int32() if name.endswith("line") else pa.string()) for name in Piece._fields]
    vector = pa.list_(pa.float32(), dimension)
    schema = pa.schema([*fields, ("vector", vector)], metadata={METADATA_KEY: json.dumps(made_by).encode("utf-8")})
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with pq.ParquetWriter(partial, schema) as writer:
            for pieces, vectors in blocks:
                columns = [
                    pa.array(column, field.type)
                    for column, field in zip(zip(*pieces, strict=True), list(schema)[:-1], strict=True)
                ]
                columns.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), dimension))
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
                yield pieces, vectors
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_index(path: Path, made_by: dict) -> tuple[list[Piece], "np.ndarray"]:
    """The pieces and vectors of a file that this model made.

    Raises:
        ValueError: no such file, another file, or vectors of another model or pooling.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"--index {path}: cannot be read ({str(error).splitlines()[0]})") from error
    if METADATA_KEY not in (table.schema.metadata or {}):
        raise ValueError(f"--index {path} was not written by {PROGRAM} --output")
    theirs = json.loads(table.schema.metadata[METADATA_KEY])
    if theirs["pooling"] != made_by["pooling"]:
        raise ValueError(f"--index {path} holds vectors of --pooling {theirs['pooling']}, not {made_by['pooling']}")
    if theirs["weights_sha256"] != made_by["weights_sha256"]:
        raise ValueError(f"--index {path} was made with another model; embed the code again with this one")
    pieces = [Piece(*row) for row in zip(*(table.column(name).to_pylist() for name in Piece._fields), strict=True)]
    vectors = table.column("vector").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return pieces, vectors.astype(np.float32).reshape(len(pieces), -1)


def search(vectors: "np.ndarray", query: "np.ndarray", top: int) -> list[tuple[int, float]]:
    """The nearest rows by cosine.

    Args:
        vectors: float (rows, D), of length 1.
        query: float (D,), of length 1.
        top: how many.

    Returns:
        (row, cosine), the nearest first.
    """
    import numpy as np

    scores = vectors @ query
    order = np.argsort(-scores, kind="stable")[:top]
    return [(int(row), float(scores[row])) for row in order]


def run(arguments: EmbedArguments) -> None:
    """Embed, write, search, print.

    Raises:
        ValueError, OSError: wrong input; the message names it.
    """
    import numpy as np

    if arguments.sentence_transformers:
        from .embedding_files import save_for_sentence_transformers

        for path in save_for_sentence_transformers(arguments.model, arguments.pooling):
            print(f"written {path}")
        return
    embedder = Embedder(arguments)
    query = embedder.query() if arguments.query else None
    if arguments.index:
        pieces, vectors = read_index(Path(arguments.index), embedder.made_by)
    else:
        skipped: Counter = Counter()
        blocks = embedder.blocks(skipped)
        if arguments.output:
            dimension = embedder.model.config.hidden_size
            blocks = write_index(Path(arguments.output), blocks, embedder.made_by, dimension)
        pieces, parts = [], []
        for found, part in blocks:
            pieces.extend(found)
            # Without a query the vectors need not stay in memory.
            parts.append(part if query is not None else part[:0])
        for reason, number in skipped.most_common():
            print(f"skipped {number} files: {reason}", file=sys.stderr)
        vectors = np.concatenate(parts)
        if arguments.output:
            print(f"{len(pieces)} {arguments.unit}s written to {arguments.output}")
    if query is not None:
        for row, score in search(vectors, query, arguments.top):
            piece = pieces[row]
            print(f"{score:.3f}  {piece.path}:{piece.first_line}-{piece.last_line}  {piece.name}".rstrip())


def main(argv: list[str] | None = None) -> int:
    """Run the command; a mistake of the user's is one line on standard error and exit status 2."""
    try:
        arguments = parse_arguments(argv)
        from transformers.utils import logging as hf_logging

        hf_logging.set_verbosity_error()
        hf_logging.disable_progress_bar()
        run(arguments)
    except (ValueError, OSError) as error:
        print(f"{PROGRAM}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
