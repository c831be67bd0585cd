"""The command that turns code into a knowledge graph: `python -m graphmert.kg_extraction --help`."""

import argparse
import json
import os
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..chain_graphs.languages import DEFAULT_LANGUAGES, parse_languages
from ..chain_graphs.sources import (
    DEFAULT_CACHE_DIR,
    DirectorySource,
    ReadOptions,
    SkippedFile,
    looks_local,
    parse_source,
)
from ..code_graph import LANGUAGES
from ..command_line import CommandParser, check_output_file
from .export import FORMATS, check_formats, write_formats

PROGRAM = "graphmert-extract"
RUN_FILE, CALIBRATION_FILE = "run.json", "calibration.json"
_REQUIRED = ("model", "source", "output")


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = CommandParser(
        prog=PROGRAM,
        description="Read the knowledge graph of source code: facts that the parser sees, and facts that a trained "
        "GraphMERT fills in, each with its probability and its places. docs/KNOWLEDGE_GRAPH.md explains both.",
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help="YAML or JSON file of options; options on the command line come before it")
    add("--model", metavar="DIR_OR_ID", help="a checkpoint: a directory, or its name on the Hub; no code of it is run")
    add("--source", action="append", metavar="SPEC", help="code to read; may be given several times: "
        "dir:PATH, pypi:NAME==VERSION, stdlib, hf:PATH_OR_ID,text_column=NAME")  # fmt: skip
    add("--output", metavar="DIR", help="where the graph goes")
    add("--relations", metavar="A,B", help="only these relations, for example has_type,returns; default: all")
    add("--modes", metavar="A,B", help="relation: which relation do two names have that stand near each other; tail: "
        "which name completes head and relation. Default: what the checkpoint was trained for")  # fmt: skip
    add(
        "--threshold",
        type=float,
        default=0.5,
        metavar="P",
        help="least probability of a prediction (default %(default)s)",
    )
    add("--top-k", type=int, default=3, metavar="K", help="most predictions for one question (default %(default)s)")
    add("--formats", default="jsonl", metavar="A,B", help=f"of {', '.join(FORMATS)} (default %(default)s)")
    add("--calibrate", metavar="DIR_OR_SPEC", help="fit the probabilities on facts hidden from the model: the validation "
        "split of this dataset, or a source of code that was not trained on")  # fmt: skip
    add(
        "--calibration",
        metavar="FILE",
        help="use a calibration.json made before; default: the one beside the model, if any",
    )
    add("--type-signs", action=argparse.BooleanOptionalAction, default=True, help="with --calibrate DIR: learn from its "
        "training split what types are by what code does with them, and weigh that with the model (default: yes; minutes "
        "for a large corpus)")  # fmt: skip
    add(
        "--calibration-facts",
        type=int,
        default=600,
        metavar="N",
        help="hidden facts of each relation (default %(default)s)",
    )
    add("--write-patch", metavar="FILE", help="write missing type annotations as a patch that `git apply` takes in "
        "the directory of the source; refused where several sources have a file of the same path")  # fmt: skip
    add("--write-stubs", metavar="DIR", help="write missing type annotations as .pyi stub files; refused likewise")
    add(
        "--max-pairs",
        type=int,
        default=16,
        metavar="N",
        help="pairs of names asked in each window (default %(default)s)",
    )
    add("--no-verify", action="store_true", help="do not ask the model about the facts that the parser sees")
    add("--languages", nargs="+", default=DEFAULT_LANGUAGES, metavar="NAME", help="languages to read, of "
        f"{', '.join(LANGUAGES)}; default {', '.join(DEFAULT_LANGUAGES)}; tails are asked for in python alone")  # fmt: skip
    add("--include-tests", action="store_true", help="read test files too")
    add("--include-tables", action="store_true", help="read files of data too")
    add(
        "--max-file-bytes",
        type=int,
        default=ReadOptions.max_file_bytes,
        metavar="N",
        help="skip larger files (default %(default)s)",
    )
    add("--cache-dir", type=Path, default=DEFAULT_CACHE_DIR, help="where downloaded wheels are kept")
    add("--batch-size", type=int, default=32, metavar="N", help="questions in one forward pass (default %(default)s)")
    add("--device", default="cpu", help="cpu, cuda, ... (default %(default)s)")
    add("--num-threads", type=int, metavar="N", help="threads of torch (default: its own choice)")
    add(
        "--max-page-edges",
        type=int,
        default=2000,
        metavar="N",
        help="facts that graph.html shows (default %(default)s)",
    )
    return parser


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line and the configuration file, whose values are the parser's defaults.

    Raises:
        ValueError: a file that cannot be used, or an option that is missing.
    """
    parser = make_parser()
    config = parser.parse_args(argv).config
    if config:
        parser.set_defaults(**_read_config(Path(config), parser))
        # Sources of the command line come in place of the file's, not on top of them.
        sources = parser.get_default("source")
        parser.set_defaults(source=None)
        arguments = parser.parse_args(argv)
        arguments.source = arguments.source or sources
    else:
        arguments = parser.parse_args(argv)
    missing = [f"--{name}" for name in _REQUIRED if not getattr(arguments, name)]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing; {PROGRAM} --help explains every option")
    arguments.languages = parse_languages(arguments.languages)
    return arguments


def _read_config(path: Path, parser: argparse.ArgumentParser) -> dict:
    """Options from a YAML or JSON file, checked like those of the command line; lists may be written as lists."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ValueError(f"--config {path}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: must hold options by name, such as `model: runs/small`")
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    checked = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in actions:
            raise ValueError(f"--config {path}: unknown option {key!r}; the options are {', '.join(actions)}")
        action = actions[name]
        if name in ("source", "languages"):
            value = value if isinstance(value, list) else [value]
            fits = bool(value) and all(isinstance(item, str) for item in value)
        elif action.nargs == 0:
            fits = isinstance(value, bool)
        else:
            value = ",".join(map(str, value)) if isinstance(value, list) else value
            kind = action.type if action.type in (int, float) else str
            fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
            value = action.type(value) if fits and action.type else value
        if not fits:
            raise ValueError(f"--config {path}: {name} cannot be {value!r}")
        checked[name] = value
    return checked


def _split(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _flag(name: str) -> str:
    """An option as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is loaded."""
    from ..code_graph.schema import RELATION_IDS, RELATION_NAMES
    from .scoring import MODES

    for relation in arguments.relations or ():
        if relation not in RELATION_IDS:
            raise ValueError(f"--relations: unknown relation {relation!r}; relations are {', '.join(RELATION_NAMES)}")
    for mode in arguments.modes or ():
        if mode not in MODES:
            raise ValueError(f"--modes: unknown mode {mode!r}; modes are {', '.join(MODES)}")
    check_formats(arguments.formats)
    if arguments.calibrate and arguments.calibration:
        raise ValueError("--calibrate makes a calibration, --calibration uses one: give one of them")
    for name in ("batch_size", "calibration_facts", "max_page_edges", "max_file_bytes", "num_threads"):
        number = getattr(arguments, name)
        if number is not None and number < 1:
            raise ValueError(f"{_flag(name)} must be at least 1, got {number}")
    _check_directory("--output", arguments.output)
    if arguments.write_patch:
        check_output_file("--write-patch", arguments.write_patch)
    if arguments.write_stubs:
        _check_directory("--write-stubs", arguments.write_stubs)


def _check_directory(option: str, path: str) -> None:
    """Refuse a directory that cannot be written to, as `check_output_file` does a file."""
    if Path(path).is_file():
        raise ValueError(f"{option} {path}: is a file; give a directory")
    if not Path(path).is_dir():
        # What is to be made has to meet the same conditions, whatever it is.
        check_output_file(option, path)
    elif not os.access(path, os.W_OK):
        raise ValueError(f"{option} {path}: cannot be written (no permission); choose another directory")


@dataclass
class _Code:
    """What some sources hold.

    Attributes:
        files: (project, path, language, text) of each file.
        skipped: files that were left out.
        on_disk: where files of directory sources lie, by (project, path).
        num_not_asked: files of languages that were not asked for.
    """

    files: list[tuple[str, str, str, str]] = field(default_factory=list)
    skipped: list[SkippedFile] = field(default_factory=list)
    on_disk: dict[tuple[str, str], Path] = field(default_factory=dict)
    num_not_asked: Counter = field(default_factory=Counter)

    @property
    def left_out(self) -> str:
        """What the user may have wanted as well, or nothing."""
        if not self.num_not_asked:
            return ""
        counts = ", ".join(f"{language} ({number})" for language, number in sorted(self.num_not_asked.items()))
        return f"left out: files of {counts}; add --languages"


def _read(specs: list[str], options: ReadOptions) -> _Code:
    code = _Code()
    for spec in dict.fromkeys(specs):
        source = parse_source(spec, options)
        for file in source.files():
            if isinstance(file, SkippedFile):
                code.skipped.append(file)
                continue
            code.files.append((file.project, file.path, file.language, file.text))
            if isinstance(source, DirectorySource):
                root = source.root if source.root.is_dir() else source.root.parent
                code.on_disk[file.project, file.path] = root / file.path
        code.num_not_asked += source.num_not_asked
    if not code.files:
        reasons = Counter(item.reason for item in code.skipped)
        why = [f"{count} skipped: {reason}" for reason, count in reasons.most_common(3)]
        why += [code.left_out] if code.left_out else []
        raise ValueError(
            f"--source {', '.join(specs)}: no file of code in {', '.join(options.languages)} there"
            + (f" ({'; '.join(why)})" if why else "")
        )
    return code


def _calibration(arguments: argparse.Namespace, model, tokenizer, modes, options: ReadOptions):
    from .calibration import Calibration
    from .extraction import TYPE_RELATIONS
    from .held_out import code_of, fit_calibration
    from .scoring import TAIL_MODE
    from .sign_classifier import learn_signs
    from .type_table import TypeTable

    if arguments.calibrate:
        spec, types, signs = arguments.calibrate, None, None
        if looks_local(spec) and (Path(spec) / "manifest.json").is_file():
            from ..chain_graphs.manifest import load_chain_graphs

            splits, _, _ = load_chain_graphs(spec)
            if "validation" not in splits:
                raise ValueError(
                    f"--calibrate {spec}: the dataset has no validation split; give one that was built with one"
                )
            files = code_of(splits["validation"])
            if "train" in splits:
                declared = code_of(splits["train"])
                types = TypeTable.of(declared)
                asks_types = TAIL_MODE in modes and not {*TYPE_RELATIONS}.isdisjoint(
                    arguments.relations or TYPE_RELATIONS
                )
                if arguments.type_signs and asks_types:
                    signs = learn_signs(declared, progress=True)
        else:
            files = _read([spec if ":" in spec or spec == "stdlib" else f"dir:{spec}"], options).files
        return fit_calibration(
            model,
            tokenizer,
            files,
            spec,
            modes,
            arguments.relations,
            max_facts=arguments.calibration_facts,
            batch_size=arguments.batch_size,
            progress=True,
            types=types,
            signs=signs,
        )
    beside = Path(arguments.checkpoint) / CALIBRATION_FILE
    path = arguments.calibration or (beside if beside.is_file() else None)
    if path is None:
        print(
            "warning: no calibration (--calibrate or --calibration): probabilities are the model's own and mostly too high",
            file=sys.stderr,
        )
        return Calibration()
    return Calibration.load(Path(path))


def _summary(facts: list, written: list[Path]) -> str:
    counts = Counter((fact.relation, fact.status) for fact in facts)
    lines = [f"{'relation':<16}{'extracted':>12}{'predicted':>12}"]
    for relation in sorted({relation for relation, _ in counts}):
        lines.append(f"{relation:<16}{counts[relation, 'extracted']:>12,}{counts[relation, 'predicted']:>12,}")
    total = Counter(fact.status for fact in facts)
    lines.append(f"{'all':<16}{total['extracted']:>12,}{total['predicted']:>12,}")
    return "\n".join([*lines, *(f"wrote {path}" for path in written)])


def run(arguments: argparse.Namespace) -> list[Path]:
    """Everything that the command does; returns what it wrote."""
    import torch

    from .extraction import Extractor, Options
    from .scoring import check_modes, fetch_checkpoint, load_checkpoint, modes_of
    from .type_proposals import check_paths, write_proposals

    _check(arguments)
    options = Options(
        threshold=arguments.threshold,
        top_k=arguments.top_k,
        max_pairs=arguments.max_pairs,
        verify=not arguments.no_verify,
    )
    if arguments.num_threads is not None:
        torch.set_num_threads(arguments.num_threads)
    reading = ReadOptions(
        max_file_bytes=arguments.max_file_bytes,
        include_tests=arguments.include_tests,
        include_tables=arguments.include_tables,
        languages=arguments.languages,
        cache_dir=arguments.cache_dir,
    )
    code = _read(arguments.source, reading)
    for option in ("write_patch", "write_stubs"):
        if getattr(arguments, option):
            check_paths((path for _, path, language, _ in code.files if language == "python"), _flag(option))
    arguments.checkpoint = fetch_checkpoint(arguments.model)
    model, tokenizer = load_checkpoint(arguments.checkpoint, arguments.device)
    modes = tuple(arguments.modes or modes_of(model.config.mnm_target))
    wants_types = bool(arguments.write_patch or arguments.write_stubs)
    check_modes([*modes, *(["tail"] if wants_types else [])], model.config.mnm_target)
    calibration = _calibration(arguments, model, tokenizer, modes, reading)
    begin = time.perf_counter()
    extractor = Extractor(
        model, tokenizer, code.files, arguments.batch_size, True, calibration.types, calibration.signs
    )
    facts = extractor.extract(arguments.relations, modes, calibration, options)
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    record = {
        "arguments": {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(arguments).items()
            if key != "checkpoint"
        },
        "options": asdict(options),
        "modes": modes,
        "files": len(code.files),
        "files_by_language": dict(Counter(language for _, _, language, _ in code.files)),
        "files_of_other_languages": dict(code.num_not_asked),
        "skipped": [{"path": item.path, "reason": item.reason} for item in code.skipped],
        "facts": dict(Counter(fact.status for fact in facts)),
        "counts": {
            **extractor.corpus.counts,
            **extractor.counts,
        },
        "calibration": calibration.figures,
        "seconds": round(time.perf_counter() - begin, 3),
    }
    written = write_formats(facts, output, arguments.formats, arguments.max_page_edges)
    calibration.save(output / CALIBRATION_FILE)
    if wants_types:
        record["type_proposals"], more = write_proposals(
            facts, extractor, code.on_disk, arguments.write_patch, arguments.write_stubs
        )
        written += more
    (output / RUN_FILE).write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")
    print(_summary(facts, [*written, output / CALIBRATION_FILE, output / RUN_FILE]))
    if code.left_out:
        print(code.left_out)
    for key, figures in calibration.figures.items():
        print(
            f"calibration {key}: {figures['examples']} hidden facts, expected calibration error {figures['ece']:.3f}"
        )
    if wants_types:
        print("type proposals: " + ", ".join(f"{key} {value}" for key, value in record["type_proposals"].items()))
        if not record["type_proposals"]["written"]:
            print(
                f"nothing was proposed: no parameter or return lacks an annotation, or no type reached --threshold "
                f"{options.threshold}"
            )
    return written


def main(argv: list[str] | None = None) -> int:
    """Run the command; a mistake of the user's is one line on standard error and exit code 2."""
    try:
        arguments = parse_arguments(argv)
        for name in ("relations", "modes", "formats"):
            setattr(arguments, name, _split(getattr(arguments, name)))
        # Here, so that --help does not wait for it.
        from transformers.utils import logging as hf_logging

        # Of loading a small model; it would stand before the one line of an error.
        hf_logging.disable_progress_bar()
        run(arguments)
    except (ValueError, OSError) as error:
        print(f"{PROGRAM}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
