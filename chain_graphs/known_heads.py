"""What the projects of a corpus say of heads: the contents of a model's head memory."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from ..head_memory_graphmert import VIEWS, head_keys
from .windows import WindowDataset

NUM_FOLDS = 4
NUM_ANSWERS = 2


def folds_of(projects: Sequence[str], num_folds: int = NUM_FOLDS) -> np.ndarray:
    """Groups of projects: the same project is in the same one, whatever the corpus.

    Args:
        projects: names of projects, for instance of each file of a corpus.
        num_folds: F.

    Returns:
        int64 (projects,), in [0, F).
    """
    fold = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % num_folds for name in set(projects)}
    return np.array([fold[name] for name in projects], dtype=np.int64)


def count_votes(
    windows: WindowDataset,
    projects: Sequence[str],
    min_projects: int,
    num_folds: int = NUM_FOLDS,
    num_answers: int = NUM_ANSWERS,
) -> dict[str, torch.Tensor]:
    """The first word pieces of tails that projects have for a key (relation, direction and view of the head).

    A project has one vote for each key, split over its facts with this key. Of the pieces of a key and fold those with
    the most votes are kept.

    Args:
        windows: with leaves.
        projects: of each file of the corpus that the windows are from.
        min_projects: how many projects must have a key.
        num_folds: F.
        num_answers: A.

    Returns:
        As `HeadMemory.remember` takes it.

    Raises:
        ValueError: no key is known to so many projects.
    """
    heads = windows.heads()
    file = windows.file_index[heads["window"]]
    project, fold = pd.factorize(np.asarray(projects, dtype=object))[0][file], folds_of(projects, num_folds)[file]
    parts = (heads[name] for name in ("token", "place", "fact", "relation", "reversed", "length"))
    every = head_keys(*map(torch.from_numpy, parts)).numpy()
    counted = pd.concat(
        [_votes(every[:, view], project, fold, heads["first"], min_projects) for view in range(len(VIEWS))]
    )
    if not len(counted):
        raise ValueError(
            f"head_memory_min_projects is {min_projects}, but no head stands in so many of the {len(set(projects))} "
            "projects that are trained on; give a lower number, 0 for no memory, or a corpus of more projects"
        )
    keys, row = np.unique(counted["key"].to_numpy(), return_inverse=True)
    counted = counted.assign(row=row.reshape(-1)).sort_values(["row", "fold", "votes"], ascending=[True, True, False])
    group = ["row", "fold"]
    voters = counted.groupby(group, sort=False)["votes"].sum()
    kept = counted[counted.groupby(group, sort=False).cumcount() < num_answers]
    place = kept.groupby(group, sort=False).cumcount().to_numpy()
    result = {
        "keys": torch.from_numpy(keys),
        "answers": torch.zeros(len(keys), num_folds, num_answers, dtype=torch.int64),
        "votes": torch.zeros(len(keys), num_folds, num_answers),
        "voters": torch.zeros(len(keys), num_folds),
    }
    where = tuple(torch.tensor(values) for values in (kept["row"].to_numpy(), kept["fold"].to_numpy(), place))
    result["answers"][where] = torch.tensor(kept["answer"].to_numpy())
    result["votes"][where] = torch.tensor(kept["votes"].to_numpy(dtype=np.float32))
    where = tuple(torch.tensor(voters.index.get_level_values(name).to_numpy()) for name in group)
    result["voters"][where] = torch.tensor(voters.to_numpy(dtype=np.float32))
    return result


def _votes(keys, project, fold, answer, min_projects: int) -> pd.DataFrame:
    """Votes by key, fold and answer for the keys that so many projects have."""
    facts = pd.DataFrame({"key": keys, "project": project, "fold": fold, "answer": answer})
    counted = facts.groupby(["key", "project", "fold", "answer"], sort=True).size().rename("facts").reset_index()
    by_project = counted.groupby(["key", "project"], sort=False)["facts"].transform("sum")
    counted["votes"] = counted["facts"] / by_project
    num_projects = counted.groupby("key", sort=False)["project"].transform("nunique")
    counted = counted[num_projects >= min_projects]
    return counted.groupby(["key", "fold", "answer"], sort=True)["votes"].sum().reset_index()
