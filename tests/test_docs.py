"""The pages of docs/: their examples run, their links resolve, and every metric of the sources is explained."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
import types
from pathlib import Path

import pytest

from cluster import metrics
from cluster.commands import metrics_reference
from cluster.config import parse
from cluster.driver import preflight
from cluster.metrics import METRICS
from cluster.types import FAILED, SCORED
from rewards.base import Services
from rewards.judges.metrics import JudgeMetrics
from rewards.registry import build_reward
from tests.metrics_page import unexplained
from tests.rewards.groups import group
from tests.verify import recipes

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "deploy" / "README.md"])
WITH_EXAMPLES = ("rewards", "environments")
MODULE = "docs_example"
"""What the pages call the user's own module."""
AREAS = (
    "reward|rollout|buffer|policy|learner|loss|weights|eval|workers|failures|judge|scorer|reward_model|monitor|value"
    "|advantage|replay|settings|scir|weighted_nll|t_reg"
)
NAMED = re.compile(rf"(?:{AREAS})/[A-Za-z0-9_\0]+(?:/\0)?")
"""A metric in the sources; \\0 stands for what an f-string fills in."""
NOT_EMITTED = {
    "loss/ratio_square": "goes into loss/effective_samples_frac",
    "reward_model/\0": "the name of a thread",
}


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


@pytest.mark.parametrize("page", [*WITH_EXAMPLES, "agents"])
def test_the_examples_of_a_page_run_and_its_recipes_can_start(page, monkeypatch, tmp_path):
    module = types.ModuleType(MODULE)
    monkeypatch.setitem(sys.modules, MODULE, module)
    for number, block in enumerate(blocks(page, "python"), 1):
        exec(compile(block, f"docs/{page}.md, python block {number}", "exec"), vars(module))
    (tmp_path / f"{MODULE}.py").write_text("\n\n".join(blocks(page, "python")))  # for child processes
    monkeypatch.syspath_prepend(tmp_path)
    for block in blocks(page, "toml"):
        settings = parse(tomllib.loads(block), where=block)
        preflight.plugins(settings)
        preflight.judged(settings, preflight.tasks(settings))


@pytest.mark.parametrize("page", WITH_EXAMPLES)
def test_a_page_with_examples_asserts_what_it_says(page):
    """Without asserts in it a page would pass whatever it says."""
    assert len(blocks(page, "toml")) >= 4
    assert sum(block.count("assert ") for block in blocks(page, "python")) >= 4


async def test_the_readmes_reward_scores_and_its_recipe_can_start(monkeypatch):
    text = (ROOT / "README.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    (recipe,) = re.findall(r"^```toml\n(.*?)^```", text, re.S | re.M)
    lines = [line for line in code.splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 8
    module = types.ModuleType("my_rewards")
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    exec(compile(code, "README.md", "exec"), vars(module))
    settings = parse(tomllib.loads(recipe), where="README.md")
    preflight.plugins(settings)
    preflight.judged(settings, preflight.tasks(settings))
    reward = build_reward(settings.rewards[1], "rewards[1]")
    scores = await reward.score(group("Hello!", "Hello.", ""), Services())
    assert scores.values[:2].tolist() == [1.0, 0.0]
    assert scores.state.tolist() == [SCORED, SCORED, FAILED]


def test_the_numbers_of_the_readme_are_those_on_record():
    """Of seed 0 of the quickstart, as `make verify` kept them."""
    (kept,) = [row for row in json.loads((ROOT / "tests" / "verified.json").read_text()) if row["name"] == "quickstart"]
    text = (ROOT / "README.md").read_text("utf-8")
    assert f"at commit `{kept['commit'][:7]}`" in text
    shown = dict(re.findall(r"^(\w+) +([\d.e-]+)$", text, re.M))
    measured = {name: values[0] for name, values in kept.items() if isinstance(values, list)}
    assert len(measured) == 5
    assert {name: shown[name] for name in measured} == {name: f"{value:.4g}" for name, value in measured.items()}
    assert "**GPU: nothing has been run.**" in text


def test_the_ratios_of_the_benchmarks_are_those_on_record():
    text = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    section = text.partition("## Beside other programs")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("| ")]
    shown = [float(ratio) for line in table[1:] for ratio in line.split("|")[2].split(",")]
    kept = {row["name"]: row["ratio"] for row in json.loads((ROOT / "tests" / "bench" / "results.json").read_text())}
    assert len(shown) == len(kept)
    assert sorted(shown) == sorted(round(ratio, 1 if ratio > 1.1 else 2) for ratio in kept.values())
    for row in json.loads((ROOT / "tests" / "bench" / "results.json").read_text()):
        assert row["commit"][:7] in text, row["name"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        there = page.parent / file if file else page
        assert there.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text("utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, target


def test_files_that_the_pages_name_exist():
    for page in PAGES:
        for name in re.findall(
            r"`((?:actors|cluster|deploy|docs|learner|rewards|tests)/[\w/.-]+\.\w+)`", page.read_text("utf-8")
        ):
            assert (ROOT / name).exists(), f"{page.name} names {name}"


def in_the_sources() -> set[str]:
    """Every text of the sources that is a metric's name, with \\0 for what is filled in."""
    found = set()
    for package in ("actors", "cluster", "learner", "rewards"):
        for file in (ROOT / package).rglob("*.py"):
            if file == Path(metrics.__file__):  # declares them all
                continue
            nodes = list(ast.walk(ast.parse(file.read_text("utf-8"))))
            joined = [n for n in nodes if isinstance(n, ast.JoinedStr)]
            parts = {id(p) for n in joined for p in n.values}
            found |= {"".join(str(p.value) if isinstance(p, ast.Constant) else "\0" for p in n.values) for n in joined}
            found |= {n.value for n in nodes if isinstance(n, ast.Constant) and id(n) not in parts}
    return {text for text in found if isinstance(text, str) and NAMED.fullmatch(text) and text not in NOT_EMITTED}


def test_every_metric_of_the_sources_is_explained_and_every_explained_one_is_there():
    sources = in_the_sources()
    assert len(sources) > 50, "the search finds nothing"
    assert not unexplained(name for name in sources if "\0" not in name)
    patterns = {name: re.compile("\\w+".join(map(re.escape, name.split("\0")))) for name in sources}
    idle = [n for n, p in patterns.items() if "\0" in n and not any(p.fullmatch(m) for m in METRICS)]
    assert not idle, "in the sources, and not explained"
    gone = [m for m in METRICS if not any(p.fullmatch(m) for p in patterns.values())]
    assert not gone, "explained, and not in the sources"


def test_what_is_put_together_from_parts_is_explained_part_by_part():
    judge = set(JudgeMetrics("NAME").snapshot())
    assert judge | {"judge/NAME_num_failed_REASON"} == {m for m in METRICS if m.startswith("judge/")}
    learned = ROOT / "rewards" / "learned"
    own = re.findall(r"\{area\}_(\w+)", (learned / "trainer.py").read_text())
    asked = re.findall(r"\"(num_\w+)\":", (learned / "labeler.py").read_text())
    parts = {*own, *asked, "known_frac", "num_seen"}
    assert {f"reward_model/NAME_{part}" for part in parts} == {m for m in METRICS if m.startswith("reward_model/")}
    stages = re.findall(r"clock\.mark\(\"(\w+)\"\)", (ROOT / "learner" / "train.py").read_text())
    assert {f"learner/{stage}_s" for stage in stages} == {m for m in METRICS if re.fullmatch(r"learner/\w+_s", m)} - {
        "learner/step_s",
        "learner/wait_s",
    }


def test_a_metric_is_explained_once_with_a_unit_and_a_meaning():
    for metric in METRICS.values():
        assert metric.unit, metric.name
        assert metric.help, metric.name


def test_the_tables_of_metrics_are_the_declared_ones():
    page = metrics_reference.PAGE.read_text("utf-8")
    assert metrics_reference.written(page) == page, "run python -m cluster.commands.metrics_reference"
    assert len(re.findall(r"^\| `[a-z_]+/", page, re.M)) == len(METRICS), "a row stands outside of the tables"
    line = next(line for line in page.splitlines(keepends=True) if line.startswith("| `loss/policy`"))
    stale = page.replace(line, "| `loss/policy` | reward | something else | |\n")
    assert metrics_reference.written(stale) == page


def test_a_metric_that_nobody_explained_is_noticed():
    assert unexplained(["reward/mean", "reward/exact_mean", "step", "reward/meen"]) == ["reward/meen"]


def test_the_table_of_real_runs_has_every_recipe_and_what_was_kept_of_it():
    shipped = {path.stem for path in (ROOT / "deploy" / "recipes" / "methods").glob("*.toml")}
    assert shipped == recipes.CASES.keys(), "tests/verify/recipes.py says how each recipe is run"
    assert recipes.PAGE.read_text("utf-8") == recipes.page(), "run python -m tests.verify.recipes"
