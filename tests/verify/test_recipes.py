"""Shipped recipes in real runs: each trains on groups in each of its stages. `tests/verified.json` keeps the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config import load
from tests.end_to_end import jobs
from tests.verify.keep import keep

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1200)]

RECIPES = sorted(path.stem for path in (jobs.ROOT / "deploy/recipes/methods").glob("*.toml"))
STEPS = 20
STAGES = {"score": 10}
"""Step at which a recipe's second stage begins, in the shortened run."""
SHORTENED = {"score": ["controllers.0.options.at=10"]}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_on_groups_in_each_of_its_stages(tmp_path: Path, recipe: str):
    log = tmp_path / "log"
    options = [
        f"run.dir={tmp_path}", "tracking.live_table=false", f"learner.steps={STEPS}", "evaluation.every_steps=10",
        *SHORTENED.get(recipe, []),
    ]  # fmt: skip
    code = jobs.run(options, recipe=f"methods/{recipe}.toml", log=log, timeout_s=1100)
    run = tmp_path / load(jobs.ROOT / f"deploy/recipes/methods/{recipe}.toml").run.name
    rows = [row for row in jobs.rows(run) if "learner/step_s" in row]
    assert code == 0 or (run / "alarm.md").exists(), jobs.tail(log)  # a monitor may end a run: that is its effect
    summary = jobs.summary(run)
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0
    stages = [rows[: STAGES[recipe]], rows[STAGES[recipe] :]] if recipe in STAGES else [rows]
    for stage in stages:
        assert sum(row["learner/groups"] for row in stage if row["learner/tokens"]) > 0, "the stage trained on nothing"
        assert max(row.get("learner/grad_norm", 0.0) for row in stage) > 0, "the stage had no gradient"
    keep(
        f"recipe_{recipe}",
        {
            "steps": len(rows),
            "groups_trained": summary["groups_trained"],
            "heldout_accuracy_initial": summary["heldout_accuracy_initial"],
            "heldout_accuracy_final": summary["heldout_accuracy_final"],
            "reward_mean_first": rows[0].get("reward/mean"),
            "reward_mean_last": rows[-1].get("reward/mean"),
            "wall_s": summary["wall_s"],
        },
    )
