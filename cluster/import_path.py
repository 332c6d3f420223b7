"""The order of sys.path: Kanabo's packages come before the working directory, so that no file there hides one of them.

Python puts the working directory first for `python -m`, and Ray does so in every worker. A user's `rewards.py` beside a
recipe would then take the place of the package `rewards`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGES = ("actors", "cluster", "kanabo", "learner", "rewards")
ROOT = str(Path(__file__).resolve().parents[1])
"""The directory that holds the packages: site-packages, or a checkout."""


def put_packages_first() -> None:
    """Reorder sys.path of this process; `cluster` calls it when a process first imports it."""
    sys.path[:] = reordered(sys.path)


def add_working_directory() -> None:
    """Put the working directory at the end of sys.path: a recipe may name a reward that lies there."""
    here = _working_directory()
    if here and here not in map(_directory, sys.path):
        sys.path.append(here)
    put_packages_first()


def reordered(path: Sequence[str]) -> list[str]:
    """Return the entries of `path` with the working directory, and what hides a package, behind `ROOT`.

    In a checkout that is itself the working directory nothing changes.
    """
    here = _working_directory()
    directories = [_directory(entry) for entry in path]
    before = directories.index(ROOT) if ROOT in directories else len(path)
    moved = [
        entry
        for place, (entry, directory) in enumerate(zip(path, directories, strict=True))
        if directory != ROOT and (directory == here or (place < before and hides(directory)))
    ]
    if not moved:
        return list(path)
    stay = [entry for entry in path if entry not in moved]
    # An editable installation has its packages on no entry: Python would ask for them after every entry.
    return [*stay, *([] if ROOT in directories else [ROOT]), *dict.fromkeys(moved)]


def hides(directory: str, packages: Sequence[str] = PACKAGES) -> bool:
    """Whether a directory has a module or a package with the name of one of Kanabo's."""
    candidates = (Path(directory, name) for name in packages)
    return any(path.with_suffix(".py").is_file() or (path / "__init__.py").is_file() for path in candidates)


def _working_directory() -> str:
    try:
        return os.path.realpath(os.getcwd())
    except FileNotFoundError:  # removed meanwhile
        return ""


def _directory(entry: str) -> str:
    return os.path.realpath(entry) if entry else _working_directory()
