"""The command that builds a dataset of chain graphs from corpora: `python -m graphmert.chain_graphs.build --help`.

Order of work: read all sources into a staging file (skipping with reasons, dropping exact duplicates), assign projects
to splits, train the tokenizer on the training split or load a given one, extract and link each file in processes, write
the splits and the manifest. Everything is written into a hidden directory beside the output and renamed at the end, so
a build that is killed leaves nothing that loads.
"""

import argparse
import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .sources import DEFAULT_CACHE_DIR, BuildError, ReadOptions, Source, parse_source
from .splitting import check_fractions, split_projects


@dataclass
class BuildArguments:
    """What to build; see `--help` for each.

    Fields marked in `_NOT_RECORDED` shape how a dataset is built, not what is in it, and stay out of the manifest.
    """

    source: list[str]
    output: str
    validation_fraction: float = 0.1
    test_fraction: float = 0.0
    validation_projects: tuple[str, ...] = ()
    test_projects: tuple[str, ...] = ()
    seed: int = 0
    tokenizer: str | None = None
    vocab_size: int = 16_000
    max_file_bytes: int = 1_000_000
    min_file_chars: int = 1
    include_tests: bool = False
    include_tables: bool = False
    across_files: bool = False
    num_proc: int = 1
    cache_dir: str = str(DEFAULT_CACHE_DIR)
    overwrite: bool = False


_NOT_RECORDED = ("output", "num_proc", "cache_dir", "overwrite")

_EPILOG = """sources (repeat --source for each):
  stdlib                              this interpreter's standard library; a project is a top-level module or package
  dir:PATH[,project=RULE]             .py files of a directory, or one file. RULE: children (each first-level directory is
                                      a project), single (all of it is one), auto (the default: single where PATH holds
                                      .git, setup.py, setup.cfg, pyproject.toml or __init__.py, else children)
  pypi:NAME==VERSION                  one release: its wheel is downloaded with pip and read; nothing is installed or run
  hf:PATH_OR_ID,text_column=NAME[,project_column=NAME][,split=NAME][,revision=COMMIT]
                                      a Hugging Face dataset, local (save_to_disk, Parquet, JSON, CSV) or on the hub

examples:
  python -m graphmert.chain_graphs.build --source stdlib --output data/stdlib --num-proc 2
  python -m graphmert.chain_graphs.build --source dir:repositories --test-fraction 0.1 --output data/mine
  python -m graphmert.chain_graphs.build --source pypi:flask==3.1.0 --source pypi:requests==2.32.3 \\
      --validation-projects requests --tokenizer microsoft/codebert-base --output data/web
  python -m graphmert.chain_graphs.build --config corpus.yaml --output data/corpus
where corpus.yaml holds options by their names, for example
  source: [stdlib, "pypi:click==8.1.7"]
  validation_fraction: 0.05
"""


def make_parser() -> argparse.ArgumentParser:
    """The command line; defaults are those of `BuildArguments`."""
    default = BuildArguments(source=[], output="")
    parser = argparse.ArgumentParser(
        prog="python -m graphmert.chain_graphs.build",
        description="Build a dataset of leafy chain graphs from source code.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--source", action="append", metavar="SOURCE", help="a corpus, see below; repeatable")
    add("--output", metavar="DIR", help="directory to make")
    add("--config", metavar="FILE", help="YAML or JSON file of options; options on the command line come before it")
    add(
        "--validation-fraction",
        type=float,
        metavar="F",
        help=f"share of characters held out, default {default.validation_fraction}",
    )
    add("--test-fraction", type=float, metavar="F", help="share of characters for a test split, default 0: none")
    add("--validation-projects", nargs="+", metavar="NAME", help="projects to hold out, instead of a fraction")
    add("--test-projects", nargs="+", metavar="NAME", help="projects for the test split, instead of a fraction")
    add("--seed", type=int, help="seed of the split, default 0")
    add(
        "--tokenizer",
        metavar="PATH_OR_ID",
        help="a fast tokenizer; default: train a byte-level BPE on the training split",
    )
    add(
        "--vocab-size",
        type=int,
        metavar="N",
        help=f"entries of a tokenizer trained here, default {default.vocab_size}",
    )
    add("--max-file-bytes", type=int, metavar="N", help=f"skip larger files, default {default.max_file_bytes}")
    add(
        "--min-file-chars", type=int, metavar="N", help="skip shorter files, default 1; empty files are always skipped"
    )
    add("--include-tests", action=argparse.BooleanOptionalAction, help="keep test directories and files, default no")
    add("--include-tables", action=argparse.BooleanOptionalAction, help="keep files of generated data, default no")
    add(
        "--across-files",
        action=argparse.BooleanOptionalAction,
        help="resolve imports across the files of each project, default no; takes about half as long again",
    )
    add("--num-proc", type=int, metavar="N", help="worker processes, default 1")
    add("--cache-dir", metavar="DIR", help=f"where downloads are kept, default {DEFAULT_CACHE_DIR}")
    add("--overwrite", action=argparse.BooleanOptionalAction, help="replace a dataset that stands in the output")
    return parser


def parse_arguments(argv: list[str] | None = None) -> BuildArguments:
    """Read the command line and the configuration file.

    Raises:
        BuildError: no source or output, or a configuration file that cannot be used.
    """
    given = {name: value for name, value in vars(make_parser().parse_args(argv)).items() if value is not None}
    config = given.pop("config", None)
    values = (read_config(Path(config)) if config else {}) | given
    if not values.get("source"):
        raise BuildError("no source; give at least one, for example --source stdlib")
    if not values.get("output"):
        raise BuildError("no output directory; give --output DIR")
    return BuildArguments(**values)


def read_config(path: Path) -> dict:
    """Options from a YAML or JSON file, checked against the names and types of `BuildArguments`."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise BuildError(f"--config {path}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise BuildError(f"--config {path}: must hold options by name, such as `source: [stdlib]`")
    fields = {field.name: field for field in dataclasses.fields(BuildArguments)}
    checked = {}
    for name, value in values.items():
        name = str(name).replace("-", "_")
        if name not in fields:
            raise BuildError(f"--config {path}: unknown option {name!r}; the options are {', '.join(fields)}")
        default = fields[name].default
        if name in ("source", "validation_projects", "test_projects"):
            value = [value] if isinstance(value, str) else value
            fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
        elif name in ("output", "tokenizer", "cache_dir"):
            fits = isinstance(value, str)
        elif isinstance(default, float):
            fits = isinstance(value, int | float) and not isinstance(value, bool)
        else:
            fits = type(value) is type(default)
        if not fits:
            raise BuildError(f"--config {path}: {name} cannot be {value!r}")
        checked[name] = value
    return checked


def build_chain_graphs(
    arguments: BuildArguments, extract: Callable | None = None, download: Callable | None = None
) -> dict:
    """Build a dataset on disk.

    Args:
        arguments: what to build.
        extract: `(code, language) -> CodeGraph` in place of `graphmert.code_graph.extract`.
        download: `(requirement, directory) -> wheel` in place of pip.

    Returns:
        The manifest that was written.

    Raises:
        BuildError: a `ValueError` whose message names the input and the mend.
    """
    check_arguments(arguments)
    output = Path(arguments.output)
    options = ReadOptions(
        max_file_bytes=arguments.max_file_bytes,
        min_file_chars=arguments.min_file_chars,
        include_tests=arguments.include_tests,
        include_tables=arguments.include_tables,
        cache_dir=Path(arguments.cache_dir).expanduser(),
        **({"download": download} if download else {}),
    )
    specs = list(dict.fromkeys(arguments.source))
    sources = [parse_source(spec, options) for spec in specs]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}.building-", dir=output.parent))
    except OSError as error:
        raise BuildError(f"--output {output}: cannot be made ({error.strerror})") from error
    try:
        manifest = _build_in(scratch, sources, arguments, extract)
        put_in_place(scratch / "dataset", output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return manifest


def check_arguments(arguments: BuildArguments) -> None:
    """Refuse what can be refused before any work is done."""
    check_fractions(arguments.validation_fraction, arguments.test_fraction)
    if arguments.validation_fraction == 0 and not arguments.validation_projects:
        raise BuildError(
            "--validation-fraction is 0; a dataset needs a validation split (a fraction, or --validation-projects)"
        )
    for name, smallest in (("num_proc", 1), ("max_file_bytes", 1), ("min_file_chars", 0)):
        if getattr(arguments, name) < smallest:
            raise BuildError(
                f"--{name.replace('_', '-')} is {getattr(arguments, name)}; it must be at least {smallest}"
            )
    output = Path(arguments.output)
    if output.exists():
        from .manifest import MANIFEST_FILE

        if not output.is_dir():
            raise BuildError(f"--output {output} is a file; name a directory")
        if any(output.iterdir()):
            if not arguments.overwrite:
                raise BuildError(f"--output {output} exists; choose another directory or add --overwrite")
            if not (output / MANIFEST_FILE).exists():
                raise BuildError(
                    f"--output {output} holds something else than a dataset; --overwrite replaces only datasets"
                )


def put_in_place(directory: Path, output: Path) -> None:
    """Move a finished dataset to its place; what stood there goes only when the new one is whole."""
    if output.exists():
        old = directory.with_name("replaced")
        os.replace(output, old)
    os.replace(directory, output)


def _build_in(scratch: Path, sources: list[Source], arguments: BuildArguments, extract: Callable | None) -> dict:
    # Imported here: they load transformers, which --help and early refusals need not wait for.
    from .manifest import TOKENIZER_DIR, Tally, make_manifest, write_manifest
    from .rows import default_extract, stage_files
    from .tokenizer import check_vocab_size, load_tokenizer, tokenizer_sha256

    given_tokenizer = load_tokenizer(arguments.tokenizer) if arguments.tokenizer else None
    check_vocab_size(arguments.vocab_size)
    for source in sources:
        warning = getattr(source, "warning", None)
        if warning:
            say(f"warning: {warning}")
    staging = scratch / "files.arrow"
    sizes, skipped = stage_files(_read_sources(sources), staging)
    _refuse_empty(sources, sizes, skipped)
    assignment = split_projects(
        sizes,
        arguments.validation_fraction,
        arguments.test_fraction,
        tuple(arguments.validation_projects),
        tuple(arguments.test_projects),
        arguments.seed,
    )
    dataset_dir = scratch / "dataset"
    tokenizer_dir = dataset_dir / TOKENIZER_DIR
    tokenizer = given_tokenizer or _train_tokenizer(staging, assignment, arguments.vocab_size)
    tokenizer.save_pretrained(tokenizer_dir)

    if arguments.across_files and extract is None:
        from .projects import index_projects
        from .rows import staged_files

        say("indexing each project for imports across its files")
        extract = index_projects(lambda: staged_files(staging), scratch / "projects")
    tally = Tally()
    tally.skipped.extend(skipped)
    _write_splits(
        scratch, staging, tokenizer_dir, dataset_dir, assignment, arguments, tally, extract or default_extract
    )
    record = {k: v for k, v in dataclasses.asdict(arguments).items() if k not in _NOT_RECORDED}
    manifest = make_manifest(
        tally,
        [{"spec": source.spec} | source.describe() for source in sources],
        assignment,
        record,
        {
            "name": arguments.tokenizer or "byte-level BPE trained on the training split",
            "vocab_size": len(tokenizer),
            "sha256": tokenizer_sha256(tokenizer_dir),
        },
    )
    write_manifest(manifest, dataset_dir)
    return manifest


def _read_sources(sources: list[Source]):
    from tqdm import tqdm

    for source in sources:
        say(f"reading {source.spec}")
        yield from tqdm(source.files(), desc="reading", unit=" files", disable=None, leave=False)


def _refuse_empty(sources: list[Source], sizes: dict[str, int], skipped: list) -> None:
    """A source without any file of code is a mistake of the user's (a wrong path), not an empty dataset."""
    from collections import Counter

    for source in sources:
        if source.num_files == 0:
            raise BuildError(f"source {source.spec} has no file of code; check the path")
    if not sizes:
        reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(item.reason for item in skipped).most_common(4))
        raise BuildError(f"no file of the sources can be used: {reasons}")


def _train_tokenizer(staging: Path, assignment: dict[str, str], vocab_size: int):
    from .rows import staged_texts
    from .tokenizer import train_tokenizer

    say(f"training a tokenizer of {vocab_size} entries on the training split")
    training = {project for project, split in assignment.items() if split == "train"}
    return train_tokenizer(staged_texts(staging, training), vocab_size)


def _write_splits(scratch, staging, tokenizer_dir, dataset_dir, assignment, arguments, tally, extract) -> None:
    """Extract and link every staged file and save the splits as a `DatasetDict`."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import Dataset, DatasetDict
    from tqdm import tqdm

    from .rows import make_rows, num_staged_batches

    say(f"extracting and linking with {arguments.num_proc} process(es)")
    splits = [name for name in ("train", "validation", "test") if name in assignment.values()]
    writers: dict[str, pa.ipc.RecordBatchStreamWriter] = {}
    files = {split: scratch / f"{split}.arrow" for split in splits}
    batches = make_rows(staging, tokenizer_dir, arguments.num_proc, extract)
    for table, reports in tqdm(batches, total=num_staged_batches(staging), desc="linking", disable=None, leave=False):
        for report in reports:
            tally.add(report, assignment[report["project"]])
        where = pa.array([assignment[project.as_py()] for project in table["project"]], pa.string())
        for split in splits:
            if split not in writers:
                writers[split] = pa.ipc.new_stream(str(files[split]), table.schema)
            writers[split].write_table(table.filter(pc.equal(where, split)))
    for writer in writers.values():
        writer.close()
    loaded = {}
    for split in splits:
        if tally.by_split[split]["files"] == 0:
            raise BuildError(
                f"no file of the {split} split could be extracted; the first reasons: {_reasons(tally.skipped)}"
            )
        loaded[split] = Dataset.from_file(str(files[split]))
        # The library's own fingerprint holds file times; this one makes equal builds equal to the byte.
        loaded[split]._fingerprint = _file_sha256(files[split])[:16]
    DatasetDict(loaded).save_to_disk(str(dataset_dir))


def _reasons(skipped: list) -> str:
    return "; ".join(dict.fromkeys(item.reason for item in skipped[-5:]))


def _file_sha256(path: Path) -> str:
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def say(message: str) -> None:
    """A line about the progress; results go to standard output."""
    print(message, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the command; a mistake of the user's is one line on standard error and exit code 2."""
    try:
        arguments = parse_arguments(argv)
        if not sys.stderr.isatty():
            os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        manifest = build_chain_graphs(arguments)
    except BuildError as error:
        say(f"error: {' '.join(str(error).split())}")
        return 2
    from .manifest import summary

    print(summary(manifest))
    print(f"written to {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
