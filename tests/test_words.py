"""Words of version 0.1 that went away do not come back, and pages and docstrings name files that exist."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Set
from functools import cache
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
    "TermSection": "SequenceLossSection",
    "Thermostat": "HysteresisController",
    "Tokens": "TokenBatch",
    "Trained": "TrainedRollouts",
    "Troupe": "MultiPolicySampler",
    "Stored": "ScoredGroup",
    "_dismiss": "_remove",
    "build_terms": "build_sequence_losses",
    "distilled": "reward_models",
    "distiller": "reward_model",
    "elastic": "autoscaling",
    "gang": "learner group",
    "grace_s": "shutdown_timeout_s",
    "heldout": "evaluation",
    "hire": "add",
    "kept_groups": "archived_groups",
    "lap": "pipeline, or training iteration",
    "masters": "optimizer_state",
    "max_drift_nats": "max_logprob_diff_nats",
    "on_missing": "missing",
    "parity": "logprob_diff",
    "parity_probe": "logprob_probe",
    "plugged": "preflight_plugins",
    "probing": "evaluation",
    "rehearsal": "experience_replay",
    "scraped": "prometheus",
    "seat": "agent",
    "seats": "agents",
    "signals": "rewards",
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


@cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


@cache
def known_files() -> Mapping[str, Set[str]]:
    """Return the Python files here, by their last part."""
    known: dict[str, set[str]] = {}
    for top in (*PACKAGES, "tests", "deploy"):
        for file in (ROOT / top).rglob("*.py"):
            known.setdefault(file.name, set()).add(str(file.relative_to(ROOT)))
    return known


@cache
def prose_of(source: str) -> str:
    """Return docstrings and comments of a Python source."""
    texts = [
        node.value.value
        for node in ast.walk(parsed(source))
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

    def exists(name: str) -> bool:
        return any(f"/{file}".endswith(f"/{name}") for file in known_files().get(Path(name).name, ()))

    named = {name.lstrip("/") for name in re.findall(r"[\w./-]*\w\.py\b", text)}
    return sorted(name for name in named if Path(name).name not in FOREIGN_FILES and not exists(name))


@pytest.mark.parametrize("package", [*PACKAGES, "tests"])
def test_no_identifier_is_a_word_that_went_away(package: str):
    names: set[str] = set()
    for file in (ROOT / package).rglob("*.py"):
        names |= {*file.relative_to(ROOT).with_suffix("").parts, *identifiers(parsed(file.read_text("utf-8")))}
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


# ── sentences ──────────────────────────────────────────────────────────────────────────────────────────────────────

FRAGMENT = re.compile(r"(?:Of|The same|Who|Whoever|Whose|Nobody|Somebody|Anybody)\b")
"""A docstring that begins so is a fragment, or its subject is nobody that a reader could find in the code."""
PERSONS = re.compile(r"\b(?:who|whoever|nobody|somebody|anybody|mend)\b|\bfor one\b(?! )|\bas it likes\b", re.I)
"""Words whose subject is no component: an error or a log line says which worker, judge or file it is."""
LOGGED = ("debug", "info", "warning", "error", "exception", "critical")
SUBJECT = re.compile(r"[a-z][a-z0-9_.-]*: [a-z]\S+ .*[^.]")
"""`component: verb …`."""


def docstrings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value.strip()


def messages(tree: ast.AST) -> Iterator[str]:
    """Texts of errors and log lines."""
    for node in ast.walk(tree):
        match node:
            case ast.Raise(exc=ast.Call(args=arguments)):
                pass
            case ast.Call(func=ast.Attribute(attr=name), args=arguments) if name in LOGGED:
                pass
            case _:
                continue
        for part in (part for argument in arguments for part in ast.walk(argument)):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield part.value


def fragments(tree: ast.AST) -> list[str]:
    return [text.splitlines()[0] for text in docstrings(tree) if FRAGMENT.match(text)]


def persons(tree: ast.AST) -> list[str]:
    return [text for text in messages(tree) if PERSONS.search(text)]


def subject_faults(subject: str) -> list[str]:
    """What is wrong with a commit's subject, in words."""
    faults = [] if len(subject) <= 60 else [f"{len(subject)} characters, 60 are the most"]
    faults += [] if SUBJECT.fullmatch(subject) else ["not 'component: verb …' without a full stop"]
    return faults + banned_prose(subject)


def test_docstrings_begin_with_a_noun_or_an_imperative():
    found = {str(f.relative_to(ROOT)): fragments(parsed(f.read_text("utf-8"))) for f in SOURCES}
    assert {file: lines for file, lines in found.items() if lines} == {}


def test_errors_and_log_lines_name_a_component():
    found = {str(f.relative_to(ROOT)): persons(parsed(f.read_text("utf-8"))) for f in SOURCES}
    assert {file: lines for file, lines in found.items() if lines} == {}


def test_fragments_and_persons_are_found():
    source = '''def f():
    """Of a group."""
    log.info("nobody answers")
    raise ValueError(f"{x} is wrong. Mend it.")
class A:
    """The offence counts."""
    x = 1
    """Who asks."""
'''
    tree = ast.parse(source)
    assert sorted(fragments(tree)) == ["Of a group.", "Who asks."]
    assert sorted(persons(tree)) == [" is wrong. Mend it.", "nobody answers"]


def test_commit_subjects_of_this_branch_name_a_component_and_a_verb():
    git = ["git", "-C", str(ROOT), "log", "--no-merges", "--format=%s", "main..HEAD"]
    done = subprocess.run(git, capture_output=True, text=True)
    if done.returncode:  # no repository here, or no branch main
        pytest.skip(done.stderr.strip()[:100])
    assert {s: f for s in done.stdout.splitlines() if (f := subject_faults(s))} == {}


@pytest.mark.parametrize(
    ("subject", "faults"),
    [
        ("endpoint: record tokens as they leave the engine", 0),
        ("Record tokens", 1),
        ("endpoint: record tokens.", 1),
        ("run: speed up a lap", 1),
        ("endpoint: " + "record tokens " * 5 + "now", 1),
    ],
)
def test_a_subject_that_is_long_or_names_no_component_is_found(subject, faults):
    assert len(subject_faults(subject)) == faults
