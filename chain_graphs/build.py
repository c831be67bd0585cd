"""The command that builds a dataset of chain graphs from corpora: `python -m graphmert.chain_graphs.build --help`.

Order of work: read all sources into staging files (skipping with reasons, dropping exact duplicates) and survey each
batch of files in processes, find near-duplicates, assign projects to splits, train the tokenizer on the training split or
load a given one, extract and link each batch in processes and put the rows together, write the manifest. All of it goes
into a hidden directory beside the output, each file whole or not at all, and the dataset is renamed into its place at the
end. So a build that is killed leaves nothing that loads, and the same command continues it; what it makes is the same to
the byte.
"""

import argparse
import dataclasses
import importlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..code_graph import LANGUAGES
from ..command_line import CommandParser
from .languages import DEFAULT_LANGUAGES, parse_languages
from .sources import DEFAULT_CACHE_DIR, BuildError, ReadOptions, Source, parse_source
from .splitting import check_fractions, split_projects
from .workplace import Workplace


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
    languages: tuple[str, ...] = DEFAULT_LANGUAGES
    include_tests: bool = False
    include_tables: bool = False
    across_files: bool = False
    hide_annotations: float = 0.0
    num_proc: int = 1
    near_duplicates: float = 0.85
    max_file_seconds: float = 60.0
    engine: str = "processes"
    cache_dir: str = str(DEFAULT_CACHE_DIR)
    overwrite: bool = False
    restart: bool = False


ENGINES = ("processes", "ray")
_NOT_RECORDED = ("output", "num_proc", "engine", "cache_dir", "overwrite", "restart")
# More than eleven days; a timer of the system takes no number without a bound.
MAX_FILE_SECONDS = 1_000_000
# A tokenizer is trained on at most so many characters: each n-th file of a larger training split.
TOKENIZER_CHARS = 100_000_000


def recorded(arguments: BuildArguments) -> dict:
    """The arguments that shape the dataset."""
    return {name: value for name, value in dataclasses.asdict(arguments).items() if name not in _NOT_RECORDED}


_EPILOG = """sources (repeat --source for each):
  stdlib                              this interpreter's standard library; a project is a top-level module or package
  dir:PATH[,project=RULE]             code in a directory, or one file. RULE: children (each first-level directory is
                                      a project), single (all of it is one), auto (the default: single where PATH holds
                                      .git, setup.py, setup.cfg, pyproject.toml or __init__.py, else children)
  pypi:NAME==VERSION                  one release: its wheel is downloaded with pip and read; nothing is installed or run
  hf:PATH_OR_ID,text_column=NAME[,project_column=NAME][,split=NAME][,revision=COMMIT][,language=NAME]
                                      a Hugging Face dataset, local (save_to_disk, Parquet, JSON, CSV) or on the hub

examples:
  python -m graphmert.chain_graphs.build --source stdlib --output data/stdlib --num-proc 2
  python -m graphmert.chain_graphs.build --source dir:repositories --test-fraction 0.1 --output data/mine
  python -m graphmert.chain_graphs.build --source pypi:flask==3.1.0 --source pypi:requests==2.32.3 \\
      --validation-projects requests --tokenizer microsoft/codebert-base --output data/web
  python -m graphmert.chain_graphs.build --config corpus.yaml --output data/corpus
  python -m graphmert.chain_graphs.build --source dir:repositories --languages java go --output data/java-and-go
where corpus.yaml holds options by their names, for example
  source: [stdlib, "pypi:click==8.1.7"]
  validation_fraction: 0.05
"""


def make_parser() -> argparse.ArgumentParser:
    """The command line; defaults are those of `BuildArguments`."""
    default = BuildArguments(source=[], output="")
    parser = CommandParser(
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
    add(
        "--languages",
        nargs="+",
        metavar="NAME",
        help=f"languages to read, of {', '.join(LANGUAGES)}; default {', '.join(default.languages)}",
    )
    add("--include-tests", action=argparse.BooleanOptionalAction, help="keep test directories and files, default no")
    add(
        "--include-tables",
        action=argparse.BooleanOptionalAction,
        help="keep files of generated data and minified JavaScript, default no",
    )
    add(
        "--across-files",
        action=argparse.BooleanOptionalAction,
        help="resolve imports across the files of each project, default no; takes about half as long again",
    )
    add(
        "--hide-annotations",
        type=float,
        metavar="SHARE",
        help="take the type annotations out of the text of this share of the Python files that have any, and keep what they "
        "state in the graph, for a model that is to infer types; default 0",
    )
    add(
        "--near-duplicates",
        type=float,
        metavar="SIMILARITY",
        help="leave out files whose word 5-grams resemble an earlier file's so much (Jaccard, estimated by MinHash), "
        f"default {default.near_duplicates}; 0 keeps them",
    )
    add(
        "--max-file-seconds",
        type=float,
        metavar="S",
        help=f"give up a file that takes longer, default {default.max_file_seconds:g}",
    )
    add("--engine", choices=ENGINES, help="processes of this machine, or Ray Data (pip install graphmert[ray])")
    add("--num-proc", type=int, metavar="N", help="worker processes, and threads that train the tokenizer, default 1")
    add("--cache-dir", metavar="DIR", help=f"where downloads are kept, default {DEFAULT_CACHE_DIR}")
    add("--overwrite", action=argparse.BooleanOptionalAction, help="replace a dataset that stands in the output")
    add(
        "--restart",
        action=argparse.BooleanOptionalAction,
        help="begin anew, even where a build was stopped that could be continued",
    )
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
    if "languages" in values:
        try:
            values["languages"] = parse_languages(values["languages"])
        except ValueError as error:
            raise BuildError(str(error)) from error
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
        if name == "engine" and value not in ENGINES:
            raise BuildError(f"--config {path}: engine {value!r} is not one of {', '.join(ENGINES)}")
        if name in ("source", "languages", "validation_projects", "test_projects"):
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
    work = Workplace(Path(arguments.output), recorded(arguments), arguments.restart)
    finished = work.finished_manifest()
    if finished is not None:
        return finished
    check_output(arguments)
    options = ReadOptions(
        max_file_bytes=arguments.max_file_bytes,
        min_file_chars=arguments.min_file_chars,
        include_tests=arguments.include_tests,
        include_tables=arguments.include_tables,
        languages=tuple(arguments.languages),
        cache_dir=Path(arguments.cache_dir).expanduser(),
        **({"download": download} if download else {}),
    )
    specs = list(dict.fromkeys(arguments.source))
    sources = [parse_source(spec, options) for spec in specs]
    with work:
        if not (work.path / "dataset" / "manifest.json").exists():
            _build_in(work.path, sources, arguments, extract)
        return work.put_in_place()


def check_arguments(arguments: BuildArguments) -> None:
    """Refuse what can be refused before any work is done."""
    check_fractions(arguments.validation_fraction, arguments.test_fraction)
    if tuple(arguments.languages) != parse_languages(arguments.languages):
        raise BuildError(f"--languages: write {', '.join(parse_languages(arguments.languages))}, in this order")
    if arguments.validation_fraction == 0 and not arguments.validation_projects:
        raise BuildError(
            "--validation-fraction is 0; a dataset needs a validation split (a fraction, or --validation-projects)"
        )
    for name, smallest in (("num_proc", 1), ("max_file_bytes", 1), ("min_file_chars", 0), ("max_file_seconds", 0.1)):
        # Not `<`, which is False for NaN.
        if not getattr(arguments, name) >= smallest:
            raise BuildError(
                f"--{name.replace('_', '-')} is {getattr(arguments, name)}; it must be at least {smallest}"
            )
    if arguments.max_file_seconds > MAX_FILE_SECONDS:
        raise BuildError(f"--max-file-seconds is {arguments.max_file_seconds}; it must be at most {MAX_FILE_SECONDS}")
    if not 0 <= arguments.hide_annotations <= 1:
        raise BuildError(f"--hide-annotations is {arguments.hide_annotations}; it must be a share from 0 to 1")
    if arguments.near_duplicates != 0 and not 0.5 <= arguments.near_duplicates <= 1:
        raise BuildError(
            f"--near-duplicates is {arguments.near_duplicates}; it must be a similarity from 0.5 to 1, or 0 to keep "
            "near-duplicates"
        )


def check_output(arguments: BuildArguments) -> None:
    """Refuse an output that holds something else than a dataset to be replaced."""
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


def _build_in(work: Path, sources: list[Source], arguments: BuildArguments, extract: Callable | None) -> None:
    """Make the dataset in `work / "dataset"`; what an earlier run has left in `work` is taken up."""
    # Imported here: they load libraries that --help and early refusals need not wait for.
    from .assembly import Assembly, count_duplicates
    from .manifest import TOKENIZER_DIR, Tally
    from .pool import WorkerPool
    from .sources import SkippedFile
    from .staging import Staging
    from .tokenizer import check_vocab_size, load_tokenizer

    given_tokenizer = load_tokenizer(arguments.tokenizer) if arguments.tokenizer else None
    check_vocab_size(arguments.vocab_size)
    for source in sources:
        warning = getattr(source, "warning", None)
        if warning:
            say(f"warning: {warning}")
    staging = Staging(work / "staging")
    with WorkerPool(arguments.num_proc, arguments.max_file_seconds) as pool:
        _stage(staging, sources, pool, must_survey=arguments.near_duplicates > 0 or given_tokenizer is None)
        repeats = _find_near_duplicates(staging, arguments.near_duplicates)
        sizes = staging.sizes(repeats)
        assignment = split_projects(
            sizes,
            arguments.validation_fraction,
            arguments.test_fraction,
            tuple(arguments.validation_projects),
            tuple(arguments.test_projects),
            arguments.seed,
        )
        tokenizer_dir = work / TOKENIZER_DIR
        if not tokenizer_dir.exists():
            partial = work / "tokenizer.partial"
            shutil.rmtree(partial, ignore_errors=True)
            if given_tokenizer is not None:
                given_tokenizer.save_pretrained(partial)
            else:
                _train(staging, sizes, assignment, repeats, arguments.vocab_size, partial)
            os.replace(partial, tokenizer_dir)
        if arguments.across_files and extract is None:
            from .projects import index_projects

            say("indexing each project for imports across its files")
            extract = index_projects(staging.files, work / "projects")
        tally = Tally()
        tally.skipped.extend(staging.skipped)
        places = staging.places({*repeats, *repeats.values()})
        for number, other in repeats.items():
            place = places[number]
            tally.skipped.append(SkippedFile(place["source"], place["path"], NEAR_DUPLICATE, places[other]["path"]))
        dataset = work / "dataset"
        shutil.rmtree(dataset, ignore_errors=True)
        assembly = Assembly(assignment, tally, dataset)
        _make_rows(work, staging, pool, repeats, tokenizer_dir, arguments, extract, assembly)
    near_duplicates = {"threshold": arguments.near_duplicates} | count_duplicates(repeats, places, assignment)
    _finish(dataset, assembly, tally, sources, arguments, assignment, tokenizer_dir, near_duplicates)


def _finish(dataset, assembly, tally, sources, arguments, assignment, tokenizer_dir, near_duplicates: dict) -> None:
    """What stands beside the rows: tokenizer, card and, last, the manifest."""
    from .assembly import SPLITS, write_dataset_files
    from .card import make_card
    from .manifest import TOKENIZER_DIR, make_manifest, write_manifest
    from .tokenizer import num_entries, tokenizer_sha256

    say("writing the splits")
    data_files, overlap = assembly.finish()
    write_dataset_files(data_files, dataset)
    shutil.copytree(tokenizer_dir, dataset / TOKENIZER_DIR)
    manifest = make_manifest(
        tally,
        [{"spec": source.spec} | source.describe() for source in sources],
        assignment,
        recorded(arguments),
        {
            "name": arguments.tokenizer or "byte-level BPE trained on the training split",
            "vocab_size": num_entries(tokenizer_dir),
            "sha256": tokenizer_sha256(tokenizer_dir),
        },
        near_duplicates,
        {split: overlap.get(split) for split in SPLITS if split in overlap},
    )
    make_card(manifest).save(dataset / "README.md")
    write_manifest(manifest, dataset)


NEAR_DUPLICATE = "near-duplicate of a file read before (--near-duplicates)"


def _stage(staging, sources: list[Source], pool, must_survey: bool) -> None:
    """Read all sources; each batch is surveyed by a worker while the next are read."""
    from .pool import Task
    from .staging import is_whole
    from .survey import survey_path

    def tasks() -> Iterator[Task]:
        for number, source in enumerate(sources):
            for batch in staging.add(number, lambda source=source: _read(source)):
                out = survey_path(batch.path)
                if must_survey and not is_whole(out):
                    yield Task(f"{__package__}.survey:write_survey", (batch.path, out))

    pool.run(tasks())
    _refuse_empty(sources, staging)


def _find_near_duplicates(staging, threshold: float) -> dict[int, int]:
    """For each file that repeats another nearly, by its number, the number of that other."""
    if not threshold:
        return {}
    import numpy as np

    from .duplicates import near_duplicates
    from .survey import read_survey, survey_path

    parts = [read_survey(survey_path(batch.path)).signatures for batch in staging.batches]
    return near_duplicates(np.concatenate(parts), threshold)


def _make_rows(work, staging, pool, repeats, tokenizer_dir, arguments, extract, assembly) -> None:
    """Make the rows of all batches and put them together in the order of the corpus."""
    from .pool import Task
    from .rows import default_extract
    from .staging import is_whole

    say(f"extracting and linking with {arguments.num_proc} process(es)")
    directory = work / "rows"
    directory.mkdir(exist_ok=True)
    outputs = [directory / f"{number:06d}.arrow" for number in range(len(staging.batches))]
    tokenizer_file = tokenizer_dir / "tokenizer.json"

    def task(index: int) -> Task:
        batch = staging.batches[index]
        dropped = {number - batch.first for number in staging.numbers_of(index) if number in repeats}
        how = (tokenizer_file, extract or default_extract, arguments.hide_annotations)
        arguments_of_rows = (batch.path, outputs[index], dropped, *how)
        return Task(f"{__package__}.rows:write_rows", arguments_of_rows)

    waiting = [index for index, path in enumerate(outputs) if not is_whole(path)]
    # What the end of a build needs is loaded piece by piece while workers are busy, so that none waits long.
    libraries = [f"{__package__}.card", "datasets", "huggingface_hub.hf_api", "pandas"]
    following = iter(outputs)
    path = next(following, None)

    def put_together() -> None:
        nonlocal path
        if libraries:
            importlib.import_module(libraries.pop())
        while path is not None and is_whole(path):
            assembly.add(path)
            path = next(following, None)

    if arguments.engine == "ray":
        from .ray_engine import run_with_ray

        run_with_ray([task(index) for index in waiting], arguments.num_proc, arguments.max_file_seconds)
    else:
        _run(pool, "linking", list(map(task, waiting)), put_together)
    put_together()


def _run(pool, title: str, tasks: list, done: Callable[[], None]) -> None:
    """Run tasks with a bar; `done` is called after each."""
    from tqdm import tqdm

    with tqdm(total=len(tasks), desc=title, disable=None, leave=False) as bar:

        def one_done() -> None:
            bar.update()
            done()

        pool.run(tasks, one_done)


def _read(source: Source):
    from tqdm import tqdm

    say(f"reading {source.spec}")
    return tqdm(source.files(), desc="reading", unit=" files", disable=None, leave=False)


def _refuse_empty(sources: list[Source], staging) -> None:
    """A source without any file of code is a mistake of the user's (a wrong path), not an empty dataset."""
    from collections import Counter

    for source, count in zip(sources, staging.num_found, strict=True):
        if count == 0:
            raise BuildError(
                f"source {source.spec} has no file of code in {', '.join(source.options.languages)}; check the path, or "
                "name the languages with --languages"
            )
    if staging.num_files == 0:
        common = Counter(item.reason for item in staging.skipped).most_common(4)
        raise BuildError(
            f"no file of the sources can be used: {', '.join(f'{number} {reason}' for reason, number in common)}"
        )


def _train(
    staging, sizes: dict, assignment: dict[str, str], repeats: dict[int, int], vocab_size: int, out: Path
) -> None:
    from .survey import count_pieces
    from .tokenizer import save_backend, train_on_pieces

    say(f"training a tokenizer of {vocab_size} entries on the training split")
    training = {project for project, split in assignment.items() if split == "train"}
    every = -(-sum(sizes[project] for project in training) // TOKENIZER_CHARS)
    counts = count_pieces(staging, staging.of_projects(training, repeats, every))
    save_backend(train_on_pieces(counts, vocab_size), out)


def say(message: str) -> None:
    """A line about the progress; results go to standard output."""
    print(message, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the command; a mistake of the user's is one line on standard error and exit code 2."""
    try:
        arguments = parse_arguments(argv)
        if not sys.stderr.isatty():
            os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        # Threads that train the tokenizer, so that a build on one core is one.
        os.environ.setdefault("RAYON_NUM_THREADS", str(arguments.num_proc))
        manifest = build_chain_graphs(arguments)
    except BuildError as error:
        say(f"error: {' '.join(str(error).split())}")
        return 2
    except KeyboardInterrupt:
        say("stopped; the same command continues")
        return 130
    from .manifest import summary

    print(summary(manifest))
    print(f"written to {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
