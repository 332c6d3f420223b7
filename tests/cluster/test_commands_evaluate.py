"""`kanabo evaluate`: the same tasks, environment and reward as in a run, on one engine and without the run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from cluster.commands.evaluate import figures, resolve
from cluster.errors import ConfigError
from rewards.base import Reward
from rewards.parsing.answers import answer_of
from tests.rewards.groups import group, rollout


class Broken(Reward):
    async def score(self, group, services):
        raise RuntimeError("no idea")


FAST = ["engine.use=tests.fakes:FakeEngine", "engine.max_model_len=320", "rollout.max_tokens=4"]


def test_a_model_is_graded_on_held_out_tasks(kanabo, tmp_path):
    file = tmp_path / "rollouts.jsonl"
    told = kanabo(
        "evaluate", "tiny:addition", "--tasks", "addition", "--limit", 12, "--samples", 2, "--to", file, "--json", *FAST
    )
    assert told.code == 0, told.err
    result = told.document
    assert (result["held_out"], result["reward"], result["num_tasks"], result["num_graded"]) == (True, "exact", 12, 24)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 24
    by_task: dict[str, list[float]] = {}
    for row in rows:
        assert row["reward"] == float(row["text"] == row["reference"])
        by_task.setdefault(row["task"], []).append(row["reward"])
    assert result["accuracy"] == pytest.approx(np.mean([np.mean(values) for values in by_task.values()]))
    assert result["pass_at_k"] == pytest.approx(np.mean([max(values) > 0.5 for values in by_task.values()]))


def test_a_file_without_held_out_tasks_is_used_whole_and_says_so(kanabo, tmp_path):
    data = tmp_path / "tasks.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i}+1=", "answer": str(i + 1)}) + "\n" for i in range(3)))
    told = kanabo("evaluate", "tiny:addition", "--tasks", data, "--json", *FAST)
    assert told.code == 0, told.err
    assert (told.document["held_out"], told.document["num_tasks"]) == (False, 3)


def test_rows_longer_than_the_context_are_left_out_and_counted(kanabo, tmp_path):
    data = tmp_path / "tasks.jsonl"
    prompts = ["1+1=", "1" * 400, "2+1=", "1" * 320, "1" * 319]
    data.write_text("".join(json.dumps({"prompt": p, "answer": "2"}) + "\n" for p in prompts))
    told = kanabo("evaluate", "tiny:addition", "--tasks", data, "--json", *FAST)
    assert told.code == 0, told.err
    counts = {name: told.document[name] for name in ("num_left_out", "num_failed", "num_tasks")}
    assert counts == {"num_left_out": 2, "num_failed": 0, "num_tasks": 3}


def test_what_cannot_be_graded_is_counted_and_is_no_number(kanabo):
    told = kanabo("evaluate", "tiny:addition", "--tasks", "addition", "--limit", 3, "--json", "--reward",
                  f"{__name__}:Broken", *FAST)  # fmt: skip
    assert told.code == 1
    assert (told.document["accuracy"], told.document["num_graded"], told.document["num_failed"]) == (None, 0, 3)


RECIPE = str(Path(__file__).parents[2] / "deploy" / "recipes" / "methods" / "self_certainty.toml")


@pytest.mark.parametrize("kind", ["majority", "weighted", "borda", "self_prm"])
def test_a_vote_chooses_one_sample_a_task(kanabo, tmp_path, kind):
    """Self-Certainty is read with the model that is evaluated; the vote is counted here once more, by hand."""
    file = tmp_path / "rollouts.jsonl"
    by = [] if kind == "majority" else ["--by", "self_certainty"]
    told = kanabo(
        "evaluate", "tiny:addition", "--tasks", RECIPE, "--limit", 6, "--samples", 5, "--vote", kind, *by,
        "--power", 2, "--to", file, "--json", *FAST,
    )  # fmt: skip
    assert told.code == 0, told.err
    tasks: dict[str, list[dict]] = {}
    for line in file.read_text().splitlines():
        tasks.setdefault(json.loads(line)["task"], []).append(json.loads(line))
    assert len(tasks) == 6
    chosen, without = [], 0
    for rows in tasks.values():
        ranked = sorted(rows, key=lambda row: -row.get("vote_value", 0))
        weights = {
            "majority": lambda row: 1,
            "weighted": lambda row: min(1, max(0, row["vote_value"])),
            "borda": lambda row, ranked=ranked: (5 - ranked.index(row)) ** 2,
            "self_prm": lambda row: 1,
        }
        answers = [answer_of(rollout(row["text"])) for row in rows]
        votes: dict[str, float] = {}
        for row, answer in zip(rows, answers, strict=True):
            if answer:
                votes[answer] = votes.get(answer, 0) + weights[kind](row)
        best = max(votes.values(), default=0)
        winner = next((row for row, a in zip(rows, answers, strict=True) if a and votes[a] == best and best), None)
        if kind == "self_prm":
            winner = ranked[0]
        without += winner is None
        chosen.append((winner or rows[0])["reward"])
    assert told.document["vote_accuracy"] == pytest.approx(np.mean(chosen))
    assert told.document["num_without_vote"] == without
    assert ("verdict_precision" in told.document) == (kind == "self_prm")
    assert (told.document["vote"], told.document["vote_by"]) == (kind, by[1] if by else None)


def test_a_scorer_that_only_a_run_knows_is_refused(kanabo):
    told = kanabo("evaluate", "tiny:addition", "--tasks", RECIPE, "--samples", 2, "--vote", "borda", "--by",
                  "self_certainty", "scorers.live.model=previous", "engine.use=tests.fakes:NoEngine")  # fmt: skip
    assert told.code == 2
    assert "scorers.live.model = 'previous' is known in a run alone" in told.err


def test_figures_of_unknown_rewards():
    groups = [group("a"), group("b")]
    found = figures(groups, [math.nan, 1.0])
    assert (found["accuracy"], found["num_graded"], found["accuracy_ci95"]) == (1.0, 1, None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tiny:addition"], "--tasks is missing"),
        (["tiny:addition", "--tasks", "adition"], "Did you mean 'addition'"),
        (["tiny:addition", "--tasks", "addition", "--reward", "exat"], "Did you mean 'exact'"),
        (["no/such/model", "--tasks", "addition"], "no/such/model"),
        (["tiny:addition", "--tasks", "addition", "--to", "x.parquet"], "does not end in .jsonl"),
        (["tiny:addition", "--tasks", "nowhere.toml"], "does not exist"),
        (["tiny:addition", "--tasks", "addition", "rollout.tokens=3"], "unknown key 'rollout.tokens'"),
        (["tiny:addition", "--tasks", "addition", "--vote", "majority"], "Add --samples"),
        (["tiny:addition", "--tasks", "addition", "--samples", 4, "--vote", "borde"], "Did you mean 'borda'"),
        (["tiny:addition", "--tasks", "addition", "--samples", 4, "--vote", "borda"], "wants --by NAME"),
        (["tiny:addition", "--tasks", "addition", "--samples", 4, "--by", "exact"], "there is no --vote"),
    ],
)
def test_mistakes_are_told_before_an_engine_starts(kanabo, arguments, words):
    told = kanabo("evaluate", *arguments, "engine.use=tests.fakes:NoEngine")
    assert (told.code, told.out) == (2, "")
    assert words in told.err


def test_a_recipe_gives_everything_but_the_model(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('[model]\npath = "tiny:calculator"\n[rollout]\nmax_tokens = 7\n[[rewards]]\nuse = "numeric"\n')
    settings = resolve("tiny:addition", str(recipe), "", ["rollout.max_turns=2"])
    assert (settings.model.path, settings.rollout.max_tokens, settings.rollout.max_turns) == ("tiny:addition", 7, 2)
    assert list(settings.reward_names) == ["numeric"]
    with pytest.raises(ConfigError, match="unknown"):
        resolve("tiny:addition", str(recipe), "", ["nothing.at=all"])
