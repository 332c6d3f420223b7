"""Advice in docs and messages names keys that a recipe can have."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from cluster.config import RunConfig
from cluster.process.failpoints import FAILPOINTS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = [
    path for folder in ("cluster", "actors", "rewards", "learner") for path in sorted((ROOT / folder).rglob("*.py"))
]
DOTTED = r"([a-z_]+(?:\.[a-z_]+)+)"
QUOTED = re.compile(rf"`{DOTTED}(?: ?= ?[^`]*)?`")
ADVISED = re.compile(rf"\b(?:[Rr]aise|[Ll]ower|[Ss]et) {DOTTED}")
NAMED = re.compile(rf"(?<![\w./\[])((?:{'|'.join(RunConfig.model_fields)})(?:\.[a-z_]+)+)(?![\w(.])")
"""A key anywhere in a message, whatever the verb."""
FREE = ("options", "verifier_options", "template_options")
"""Keys below which every name is a plug-in's own."""
CODE = ("engine.step", *(point for point in FAILPOINTS if "." in point))
"""Names of objects in docstrings that begin like a section."""


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)


def _exists(key: str) -> bool:
    """Whether a recipe can have it; the names of a table's entries may be left out."""
    found: list[type[BaseModel]] = [RunConfig]
    is_table = False
    for word in key.split("."):
        if word in FREE:
            return True
        if is_table and not any(word in section.model_fields for section in found):
            is_table = False  # an entry's name
            continue
        fields = [section.model_fields[word] for section in found if word in section.model_fields]
        if not fields:
            return False
        found = [section for field in fields for section in _sections(field.annotation)]
        is_table = any(get_origin(field.annotation) in (dict, Mapping) for field in fields)
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
    """Messages and docstrings of a source; `{}` stands for what is filled in."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_name_keys_that_exist(page: Path):
    assert unknown_keys(page.read_text("utf-8")) == []


def unknown_in_message(text: str) -> list[str]:
    """Keys of one message that no recipe can have; a text of one word is a name and no message."""
    anywhere = NAMED.findall(text) if " " in text else []
    return sorted({*unknown_keys(text), *(key for key in anywhere if not _exists(key) and not _of_code(key))})


def test_messages_name_keys_that_exist():
    wrong = [
        (str(path.relative_to(ROOT)), key)
        for path in SOURCES
        for text in _texts(path)
        for key in unknown_in_message(text)
    ]
    assert SOURCES
    assert wrong == []


@pytest.mark.parametrize(
    "text", ["Raise run.stall_seconds.", "lower `learner.max_stale`", "set rollouts.stop", "`engine.max_len = 3`"]
)
def test_advice_with_an_unknown_key_is_found(text: str):
    assert len(unknown_keys(text)) == 1


@pytest.mark.parametrize(
    "text", ["Choose run.directory or wait.", "learner.rate = 3 is too much", "see rollout.max_len"]
)
def test_a_message_with_an_unknown_key_is_found_whatever_its_verb(text: str):
    assert len(unknown_in_message(text)) == 1


@pytest.mark.parametrize(
    "text", ["raise run.progress_timeout_s.", "`rewards.parsing.equality`", "`model.options.anything`"]
)
def test_keys_that_exist_and_modules_are_no_finding(text: str):
    assert unknown_keys(text) == []
