"""Shipped recipes in real runs: each trains on groups in each of its stages and shows its effect."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.config import load
from tests.end_to_end import jobs
from tests.verify.keep import keep
from tests.verify.recipes import CASES, figure, stages_of

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1500)]

MOST = int(os.environ.get("KANABO_VERIFY_STEPS", "1000"))


@pytest.mark.parametrize("recipe", CASES)
def test_a_recipe_trains_on_groups_in_each_of_its_stages_and_shows_its_effect(tmp_path: Path, recipe: str):
    case, log = CASES[recipe].capped(MOST), tmp_path / "log"
    options = [
        f"run.dir={tmp_path}", "tracking.live_table=false", "evaluation.max_tasks=1000", "evaluation.every_steps=0",
        *case.options(),
    ]  # fmt: skip
    code = jobs.run(options, recipe=f"methods/{recipe}.toml", log=log, timeout_s=1200)
    run = tmp_path / load(jobs.ROOT / f"deploy/recipes/methods/{recipe}.toml").run.name
    every = jobs.rows(run)
    rows = [row for row in every if "learner/step_s" in row]
    assert code == 0 or (run / "alarm.md").exists(), jobs.tail(log)  # a monitor may end a run: that is its effect
    summary = jobs.summary(run)
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0
    stages = stages_of(case, rows)
    trained = [sum(row["learner/groups"] for row in stage if row["learner/tokens"]) for stage in stages]
    shown = figure(case, every)
    keep(
        f"recipe_{recipe}",
        {
            "steps": len(rows),
            "groups_by_stage": trained,
            "grad_norm_by_stage": [max((row.get("learner/grad_norm", 0.0) for row in s), default=0.0) for s in stages],
            "effect": case.effect,
            "figure": shown,
            "eval_accuracy_initial": summary["eval_accuracy_initial"],
            "eval_accuracy_final": summary["eval_accuracy_final"],
            "wall_s": summary["wall_s"],
        },
    )
    assert min(trained) > 0, f"groups trained by stage: {trained}"
    for stage in stages:
        assert max(row.get("learner/grad_norm", 0.0) for row in stage) > 0, "the stage had no gradient"
    assert shown is not None, f"no row has {case.effect}"
    if case.direction:
        assert (shown[1] > shown[0]) == (case.direction == "rises"), f"{case.effect}: {shown}"
    if case.within:
        low, high = case.within
        assert all(low <= value <= high for value in shown), f"{case.effect}: {shown}"
