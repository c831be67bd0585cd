"""Tables that lookups count in a corpus, kept on disk for the next checkpoint that is judged on the same.

A table depends on corpus and windows, not on the checkpoint; the rows of an ablation count the same again and again.
"""

import hashlib
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_PACKAGE = Path(__file__).resolve().parent.parent


def kept_table(
    cache_dir: str | Path | None, name: str, described_by: dict, count: Callable[[], "pd.DataFrame"]
) -> "pd.DataFrame":
    """A table as an earlier call left it in `cache_dir`, else counted and left there.

    A change of the code that counts starts anew: the name of the file holds a hash of its source.

    Args:
        cache_dir: where tables are kept (Feather files); None keeps nothing.
        name: of the table.
        described_by: what the table depends on, as JSON can hold it.
        count: makes the table; columns of numbers, text or bytes.

    Raises:
        ValueError: the file that is there is no table.
    """
    if cache_dir is None:
        return count()
    import pandas as pd

    described = json.dumps([described_by, _source_sha256()], sort_keys=True)
    path = Path(cache_dir) / f"{name}-{hashlib.sha256(described.encode()).hexdigest()[:16]}.feather"
    if path.is_file():
        try:
            return pd.read_feather(path)
        except (ValueError, OSError) as error:
            raise ValueError(f"{path} is damaged ({error}); remove it, and it is counted again") from error
    table = count()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Under its name only when it is whole; another process may be writing the same.
    part = path.with_suffix(f".{os.getpid()}.part")
    table.to_feather(part)
    part.replace(path)
    return table


@cache
def _source_sha256() -> str:
    """Of the modules that cut windows and count in them."""
    digest = hashlib.sha256()
    for folder in ("chain_graphs", "tasks"):
        for file in sorted((_PACKAGE / folder).glob("*.py")):
            digest.update(f"{folder}/{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()
