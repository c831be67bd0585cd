"""Which project goes to which split: no project in two, decided by a hash, weighed by the amount of text.

Pure functions of project names and sizes; touches no file.
"""

import hashlib

from .sources import BuildError

# A project is passed over when it would push a split beyond its share by more than this factor.
MAX_OVERSHOOT = 1.25


def split_projects(
    sizes: dict[str, int],
    validation_fraction: float = 0.1,
    test_fraction: float = 0.0,
    validation_projects: tuple[str, ...] = (),
    test_projects: tuple[str, ...] = (),
    seed: int = 0,
) -> dict[str, str]:
    """Assign projects to "train", "validation" and, where asked for, "test".

    For each held-out split the projects are walked in the order of a hash of (split, seed, name) and taken until the
    split has its share of the characters. A project that would overshoot the share by a quarter is passed over. The
    order of the others does not change when a project is added, so only projects at the edge of a share may move.

    Args:
        sizes: characters per project.
        validation_fraction, test_fraction: shares of all characters, each in [0, 1), together below 1. A fraction of 0
            makes no split unless projects are named.
        validation_projects, test_projects: explicit names, which replace the fraction.
        seed: changes the order.

    Returns:
        The split of each project.

    Raises:
        BuildError: a fraction out of range, an unknown or twice-named project, or a split that would stay empty.
    """
    requests = {
        "validation": (validation_fraction, tuple(validation_projects)),
        "test": (test_fraction, tuple(test_projects)),
    }
    check_fractions(validation_fraction, test_fraction)
    chosen: dict[str, str] = {}
    for split, (_, names) in requests.items():
        for name in names:
            if name not in sizes:
                raise BuildError(f"--{split}-projects: no project {name!r}; the corpus has {_some(sorted(sizes))}")
            if chosen.setdefault(name, split) != split:
                raise BuildError(f"project {name!r} is named for both validation and test")
    for split, (fraction, names) in requests.items():
        if names or fraction == 0:
            continue
        free = sorted((p for p in sizes if p not in chosen), key=lambda p: _rank(split, seed, p))
        target = fraction * sum(sizes.values())
        filled = 0
        for project in free:
            if filled < target and filled + sizes[project] <= MAX_OVERSHOOT * target:
                chosen[project] = split
                filled += sizes[project]
        if filled == 0 and len(free) > 1:
            # Every project is larger than the share: the smallest comes nearest.
            chosen[min(free, key=lambda p: sizes[p])] = split
    assignment = {project: chosen.get(project, "train") for project in sizes}
    wanted = ["train"] + [split for split, (fraction, names) in requests.items() if names or fraction > 0]
    for split in wanted:
        if split not in assignment.values():
            raise BuildError(
                f"the {split} split would be empty: the corpus has {len(sizes)} project(s) ({_some(sorted(sizes))}) and no "
                "project may stand in two splits; add sources, or for a folder of repositories use dir:PATH,project=children"
            )
    return assignment


def check_fractions(validation_fraction: float, test_fraction: float) -> None:
    """Raise `BuildError` unless both fractions lie in [0, 1) and leave something to train on."""
    for name, value in (("--validation-fraction", validation_fraction), ("--test-fraction", test_fraction)):
        if not 0 <= value < 1:
            raise BuildError(f"{name} is {value}; it must be at least 0 and below 1")
    if validation_fraction + test_fraction >= 1:
        raise BuildError(
            "--validation-fraction and --test-fraction leave nothing to train on; together they must be below 1"
        )


def _rank(split: str, seed: int, project: str) -> bytes:
    return hashlib.sha256(f"{split}\0{seed}\0{project}".encode()).digest()


def _some(names: list[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
