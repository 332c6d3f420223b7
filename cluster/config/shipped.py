"""The recipes that come with Kanabo: `deploy/recipes` of a checkout, `kanabo/recipes` of an installed package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.import_path import ROOT

IN_CHECKOUT = Path("deploy", "recipes")
"""How the recipes name their data files, from the root of a checkout."""


def directory() -> Path:
    """Return the directory that holds the recipes."""
    checkout = Path(ROOT) / IN_CHECKOUT
    return checkout if checkout.is_dir() else Path(ROOT, "kanabo", "recipes")


def names() -> dict[str, Path]:
    """Return the file of every recipe by its name: for a start, of published methods, without rollouts."""
    folder = directory()
    patterns = ("*.toml", "methods/*.toml", "offline/*.toml")
    return {path.stem: path for pattern in patterns for path in sorted(folder.glob(pattern))}


def find(name: str) -> Path | None:
    """Return the file of a recipe, None if no recipe has that name."""
    return names().get(name)


def summary(path: Path) -> str:
    """Return the first sentence of the comment that a recipe begins with."""
    comment: list[str] = []
    for line in path.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    first, stop, _ = " ".join(comment).partition(". ")
    return f"{first}." if stop else first


def with_data_files(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's tree with the path of every data file that the working directory lacks made absolute."""
    return {key: _with_data_files(value) for key, value in tree.items()}


def _with_data_files(value: Any) -> Any:
    if isinstance(value, dict):
        return with_data_files(value)
    if isinstance(value, list):
        return [_with_data_files(item) for item in value]
    if isinstance(value, str) and value.startswith(f"{IN_CHECKOUT}/") and not Path(value).exists():
        return str(directory() / Path(value).relative_to(IN_CHECKOUT))
    return value
