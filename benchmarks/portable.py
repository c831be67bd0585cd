"""A training split as one Parquet file with its tokenizer: for machines without `datasets`, and small enough to carry.

python -m graphmert.benchmarks.portable --dataset data/training --output DIR
"""

import argparse
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

TRAIN_FILE, TOKENIZER_DIR = "train.parquet", "tokenizer"
# What `WindowDataset` reads; the code itself, which takes most room, is not among it.
COLUMNS = (
    "input_ids",
    "word_starts",
    "boundary_token",
    "boundary_depth",
    "anchor_start",
    "anchor_length",
    "anchor_relation",
    "anchor_reversed",
    "anchor_triple",
    "anchor_fact",
    "anchor_is_use",
    "leaf_offsets",
    "leaf_ids",
)


def export(dataset: str | Path, output: str | Path, max_rows: int | None = None) -> int:
    """Write the training split of a dataset to `output`.

    Args:
        dataset: directory built by `python -m graphmert.chain_graphs.build`.
        output: directory to make.
        max_rows: keep only the first rows (files).

    Returns:
        Bytes of the Parquet file.
    """
    import pyarrow.parquet as pq

    from ..chain_graphs import load_chain_graphs

    splits, _, _ = load_chain_graphs(dataset)
    table = splits["train"].data.table.select(list(COLUMNS))
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.slice(0, max_rows), output / TRAIN_FILE, compression="zstd")
    shutil.copytree(Path(dataset) / TOKENIZER_DIR, output / TOKENIZER_DIR, dirs_exist_ok=True)
    return (output / TRAIN_FILE).stat().st_size


def open_training_split(path: str | Path) -> tuple:
    """The training split for `WindowDataset`, and the tokenizer, of a dataset or of what `export` wrote.

    Raises:
        ValueError: the directory is neither.
    """
    path = Path(path)
    if not (path / TRAIN_FILE).exists():
        from ..chain_graphs import load_chain_graphs

        splits, _, tokenizer = load_chain_graphs(path)
        return splits["train"], tokenizer
    import pyarrow.parquet as pq

    from ..chain_graphs.tokenizer import load_tokenizer

    return SimpleNamespace(data=pq.read_table(path / TRAIN_FILE)), load_tokenizer(str(path / TOKENIZER_DIR))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m graphmert.benchmarks.portable", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--dataset", required=True, help="directory built by `python -m graphmert.chain_graphs.build`")
    parser.add_argument("--output", required=True, help="directory to make")
    parser.add_argument("--max-rows", type=int, help="keep only the first so many files")
    args = parser.parse_args(argv)
    try:
        size = export(args.dataset, args.output, args.max_rows)
    except (ValueError, OSError) as error:
        print(f"portable: error: {error}", file=sys.stderr)
        return 2
    print(f"{args.output}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
