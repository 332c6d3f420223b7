"""Words of version 0.1 that went away do not come back, and pages and docstrings name files that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("actors", "cluster", "learner", "rewards")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])
SOURCES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
GLOSSARY_OF_OLD_WORDS = "## Words that went away"

IDENTIFIERS = {
    "Cast": "Participants",
    "CutRecord": "BatchRecord",
    "Gang": "LearnerGroup",
    "Glance": "archived group",
    "Keeper": "GroupArchive",
    "Masters": "OptimizerState",
    "Meeting": "MultiPolicyEnvironment",
    "Micro": "MicroBatch",
    "Mixed": "GroupReward",
    "Passage": "TokenSequence",
    "Players": "PeerPolicyClient",
    "Signal": "Reward",
    "Site": "RunContext",
    "Staff": "WorkerPool",
    "Sums": "SequenceStats",
    "Thermostat": "HysteresisController",
    "Tokens": "TokenBatch",
    "Trained": "TrainedRollouts",
    "Troupe": "MultiPolicySampler",
    "_dismiss": "_remove",
    "gang": "learner group",
    "grace_s": "shutdown_timeout_s",
    "hire": "add",
    "kept_groups": "archived_groups",
    "masters": "optimizer_state",
    "max_drift_nats": "max_logprob_diff_nats",
    "plugged": "preflight_plugins",
    "probing": "evaluation",
    "scraped": "prometheus",
    "silent_s": "heartbeat_timeout_s",
    "stall_s": "progress_timeout_s",
    "submitted": "job_metadata",
    "supervise": "supervisor",
    "topology": "workers",
    "troupe": "multi_policy",
    "vitals": "doctor_checks",
    "zoo": "registry",
}
"""Identifier → what to say instead: names, attributes, arguments, classes, functions and parts of modules' names."""

PROSE = {
    "broker": "request queue",
    "gang": "learner group, or all ranks",
    "homeless": "unschedulable",
    "lap": "pipeline, or training iteration",
    "laps": "pipeline, or training iterations",
    "thermostat": "hysteresis controller",
    "troupe": "all policies of a group",
    "zoo": "registry",
}
"""Word → what to say instead, in pages, docstrings and comments."""

FOREIGN_FILES = {
    "actors.py", "co_reward.py", "confidence_list.py", "efficiency_reward.py", "file.py", "lora.py", "my_rewards.py",
    "program.py", "rewarding.py", "tests.py",
}  # fmt: skip
"""Files of other projects, of users' own and of the sandbox that pages and docstrings name."""


def identifiers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.keyword(arg=str(name)):
                yield name
            case ast.alias(name=name):
                yield from name.split(".")
            case ast.ImportFrom(module=str(name)):
                yield from name.split(".")


def prose_of(source: str) -> str:
    """Return docstrings and comments of a Python source."""
    texts = [
        node.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    return "\n".join([*texts, *re.findall(r"# (.*)$", source, re.M)])


def page_text(page: Path) -> str:
    return page.read_text("utf-8").partition(GLOSSARY_OF_OLD_WORDS)[0]


def banned(words: Iterable[str]) -> list[str]:
    return sorted(f"'{word}': say {IDENTIFIERS[word]}" for word in set(words) & IDENTIFIERS.keys())


def banned_prose(text: str) -> list[str]:
    words = set(re.findall(r"(?<![\w/.`-])[a-z]+(?![\w/.`(-])", text.lower()))
    return sorted(f"'{word}': say {PROSE[word]}" for word in words & PROSE.keys())


def missing_files(text: str) -> list[str]:
    """Return the Python files that a text names and nothing here is called."""
    known = {
        str(file.relative_to(ROOT)) for top in (*PACKAGES, "tests", "deploy") for file in (ROOT / top).rglob("*.py")
    }
    named = {name.lstrip("/") for name in re.findall(r"[\w./-]*\w\.py\b", text)}
    return sorted(
        name
        for name in named
        if Path(name).name not in FOREIGN_FILES and not any(f"/{file}".endswith(f"/{name}") for file in known)
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_no_identifier_is_a_word_that_went_away(package: str):
    names: set[str] = set()
    for file in (ROOT / package).rglob("*.py"):
        names |= {*file.relative_to(ROOT).with_suffix("").parts, *identifiers(ast.parse(file.read_text("utf-8")))}
    assert banned(names) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_says_a_word_that_went_away(page: Path):
    text = page_text(page)
    assert banned_prose(text) == []
    assert banned(re.findall(r"`(\w+)`", text)) == []


def test_no_docstring_says_a_word_that_went_away():
    found = {str(f.relative_to(ROOT)): banned_prose(prose_of(f.read_text("utf-8"))) for f in SOURCES}
    assert {file: words for file, words in found.items() if words} == {}


def test_pages_and_docstrings_name_files_that_exist():
    texts = {page: page_text(page) for page in PAGES} | {file: prose_of(file.read_text("utf-8")) for file in SOURCES}
    found = {str(path.relative_to(ROOT)): missing_files(text) for path, text in texts.items()}
    assert {path: names for path, names in found.items() if names} == {}


def test_the_list_is_short_and_the_glossary_shows_all_of_it():
    assert len(IDENTIFIERS) + len(PROSE) <= 60
    old = (ROOT / "docs" / "glossary.md").read_text("utf-8").partition(GLOSSARY_OF_OLD_WORDS)[2]
    assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", old, re.M)) == IDENTIFIERS | PROSE


def test_a_word_that_comes_back_is_found_wherever_it_stands():
    source = "from a.zoo import x as y\nclass Gang:\n    def hire(self, silent_s): self.stall_s = f(grace_s=1)"
    assert [line.split("'")[1] for line in banned(identifiers(ast.parse(source)))] == [
        "Gang", "grace_s", "hire", "silent_s", "stall_s", "zoo",
    ]  # fmt: skip
    assert banned_prose("One lap of the gang; `clock.lap(x)`, lap.js, /lap and overlap are none.") == [
        "'gang': say learner group, or all ranks",
        "'lap': say pipeline, or training iteration",
    ]
    assert prose_of('"""A lap."""\nx = "zoo"  # a gang\n') == "A lap.\na gang"
    assert missing_files("`buffer/client.py`, `buffer/buffer.py`, `my_rewards.py`") == ["buffer/buffer.py"]
