"""Advice in docs and messages names keys that a recipe can have."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from cluster.config import RunConfig

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = [
    path for folder in ("cluster", "actors", "rewards", "learner") for path in sorted((ROOT / folder).rglob("*.py"))
]
DOTTED = r"([a-z_]+(?:\.[a-z_]+)+)"
QUOTED = re.compile(rf"`{DOTTED}(?: ?= ?[^`]*)?`")
ADVISED = re.compile(rf"\b(?:[Rr]aise|[Ll]ower|[Ss]et) {DOTTED}")
FREE = ("options", "verifier_options", "template_options")
"""Keys below which every name is a plug-in's own."""
CODE = ("engine.step",)
"""Names of objects in docstrings that begin like a section."""


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)


def _exists(key: str) -> bool:
    """Whether a recipe can have it; the names of a table's entries may be left out."""
    found: list[type[BaseModel]] = [RunConfig]
    for word in key.split("."):
        if word in FREE:
            return True
        fields = [section.model_fields[word] for section in found if word in section.model_fields]
        if not fields:
            return False
        found = [section for field in fields for section in _sections(field.annotation)]
    return True


def _of_code(name: str) -> bool:
    """A module, what one has, or a file."""
    words = name.split(".")
    beginnings = [ROOT.joinpath(*words[:n]) for n in range(2, len(words) + 1)]
    return (
        name in CODE
        or words[-1] in ("md", "py", "toml", "jsonl", "json", "png", "txt")
        or any(path.is_dir() or path.with_suffix(".py").exists() for path in beginnings)
    )


def unknown_keys(text: str) -> list[str]:
    """Keys that the text names and no recipe can have."""
    quoted = [name for name in QUOTED.findall(text) if name.split(".")[0] in RunConfig.model_fields]
    named = {*quoted, *ADVISED.findall(text)}
    return sorted(name for name in named if not _exists(name) and not _of_code(name))


def _texts(path: Path) -> Iterator[str]:
    """Messages and docstrings of a source; what is filled in is left out."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_name_keys_that_exist(page: Path):
    assert unknown_keys(page.read_text("utf-8")) == []


def test_messages_name_keys_that_exist():
    wrong = [
        (str(path.relative_to(ROOT)), key) for path in SOURCES for text in _texts(path) for key in unknown_keys(text)
    ]
    assert SOURCES
    assert wrong == []


@pytest.mark.parametrize(
    "text", ["Raise run.stall_seconds.", "lower `learner.max_stale`", "set rollouts.stop", "`engine.max_len = 3`"]
)
def test_advice_with_an_unknown_key_is_found(text: str):
    assert len(unknown_keys(text)) == 1


@pytest.mark.parametrize(
    "text", ["raise run.progress_timeout_s.", "`rewards.parsing.equality`", "`model.options.anything`"]
)
def test_keys_that_exist_and_modules_are_no_finding(text: str):
    assert unknown_keys(text) == []
