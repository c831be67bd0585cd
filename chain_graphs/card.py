"""The dataset card: README.md of a dataset's directory, in the hub's form, made from the manifest alone."""

from huggingface_hub import DatasetCard, DatasetCardData

_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))

_BODY = """---
{metadata}
---

# Leafy chain graphs of source code

Files of source code with their tokens and the facts of their code graph (who calls, declares, inherits, has which type),
for pretraining GraphMERT on code. One row is one file; windows of 128 tokens with their leaves are cut when it is opened.

## Use

    from datasets import load_dataset, load_from_disk
    rows = load_dataset("PATH_OR_ID")["train"]        # or load_from_disk("PATH")

    from graphmert.chain_graphs import WindowDataset, load_chain_graphs
    splits, manifest, tokenizer = load_chain_graphs("PATH")
    windows = WindowDataset(splits["train"], tokenizer, num_roots=128, leaves_per_root=7)

{annotations}## Splits

No project stands in two splits. "Repeated" is the share of a split's triples (head, relation, tail) that also stand, word
for word, in the training split.

{splits}

## Facts

{relations}

## Sources

Each file keeps the licence of its source.

{sources}

## Left out

{skipped}

`manifest.json` names every file left out, with the reason and, for a duplicate, the file it repeats; the arguments of the
build, the versions of the libraries, and the overlap of the splits by relation.

## Columns

`source`, `project`, `path`, `language`, `code`: where a file comes from, and its text. `input_ids`, `char_starts`,
`char_ends`, `word_starts`: its tokens, their characters, and which begin a word. `boundary_token`, `boundary_depth`: where
it may be cut. `anchor_*`: the token spans that facts hang on, with relation and direction. `leaf_offsets`, `leaf_ids`: the
tokens of each anchor's leaf.
"""


def make_card(manifest: dict) -> DatasetCard:
    """The card of a dataset.

    Args:
        manifest: of the dataset (`manifest.json`).

    Returns:
        A card whose metadata names the data files of each split, so that `load_dataset` reads the directory.
    """
    splits = manifest["splits"]
    num_files = sum(entry["files"] for entry in splits.values())
    data = DatasetCardData(
        pretty_name="Leafy chain graphs of source code",
        language=["code"],
        license="other",
        license_name="of-each-source",
        license_link="#sources",
        size_categories=[next((name for limit, name in _SIZES if num_files < limit), "n>10M")],
        task_categories=["fill-mask", "feature-extraction"],
        tags=["code", "knowledge-graph", "graphmert"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": f"{name}/*.arrow"} for name in splits],
            }
        ],
    )
    overlap = manifest["overlap_with_training"]
    hidden = manifest["extraction"].get("files_with_annotations_hidden", 0)
    content = _BODY.format(
        annotations=f"The text of {hidden:,} files has lost its type annotations; the graph still states them.\n\n"
        if hidden
        else "",
        metadata=data.to_yaml(),
        splits=_table(
            ("split", "projects", "files", "characters", "tokens", "triples", "repeated"),
            [
                (
                    name,
                    len(entry["projects"]),
                    *(entry[field] for field in ("files", "characters", "tokens", "num_triples")),
                    _share(overlap[name]["all"]) if name in overlap else "",
                )
                for name, entry in splits.items()
            ],
        ),
        relations=_table(
            ("relation", *splits, *(f"repeated in {name}" for name in overlap)),
            [
                (
                    relation,
                    *(entry["triples"][relation] for entry in splits.values()),
                    *(_share(overlap[name][relation]) for name in overlap),
                )
                for relation in manifest["relation_names"]
            ],
        ),
        sources=_table(
            ("source", "version", "licence", "files", "tokens"),
            [
                (
                    source["spec"] if source["kind"] != "dir" else "a directory",
                    source.get("version") or source.get("revision") or "",
                    source.get("licence") or "not stated",
                    source["files"],
                    source["tokens"],
                )
                for source in manifest["sources"]
            ],
        ),
        skipped=_table(("reason", "files"), list(manifest["skipped"]["by_reason"].items())),
    )
    return DatasetCard(content)


def _share(counts: dict) -> str:
    return f"{counts['occurrences_in_training'] / counts['occurrences']:.1%}" if counts["occurrences"] else ""


def _table(head: tuple, rows: list[tuple]) -> str:
    def line(cells) -> str:
        texts = (
            f"{cell:,}" if isinstance(cell, int) else " ".join(str(cell).split()).replace("|", "\\|") for cell in cells
        )
        return "| " + " | ".join(texts) + " |"

    return "\n".join([line(head), "|" + " --- |" * len(head), *map(line, rows)])
