"""Monitors of the rewards in a real job: each reports its numbers with the steps, and each is explained."""

from __future__ import annotations

import math

import pytest

from tests.end_to_end import jobs
from tests.end_to_end.test_reward_models import RULE
from tests.metrics_page import unexplained

pytestmark = pytest.mark.verify


def test_every_monitor_reports_in_a_running_job(tmp_path):
    log, run = tmp_path / "log", tmp_path / "monitors"
    overrides = [
        *jobs.TINY, f"run.dir={tmp_path}", "learner.steps=8", "engine.use=tests.fakes:FakeEngine",
        "learner.drop_zero_variance=false", "evaluation.every_steps=1", "evaluation.max_tasks=8",
        f"rewards.0.use={RULE}", "rewards.0.name=low", 'rewards.1.options={pattern=".*[A-Z].*"}',
        f"rewards.2={{use='{RULE}',name='right',weight=0.0}}", 'monitors.0.options={reward="right"}',
        'monitors.2.options={reward="low",verifier="right"}',
    ]  # fmt: skip
    assert jobs.run(overrides, recipe="methods/monitors.toml", log=log, timeout_s=500) == 0, jobs.tail(log)
    rows = jobs.rows(run)
    assert not unexplained(metric for row in rows for metric in row)
    steps = [r for r in rows if "learner/step_s" in r]
    assert len(steps) == 8
    for row in steps:
        # The verifier is one of the two rewards: as a reward it ranks all right ones first, and it is not the mixture.
        assert row["reward/low_one_to_many_accuracy"] == row["reward/low_one_to_many_mrr"] == 1
        assert 0.01 < row["reward/right_starc_distance"] < 0.7
        # 1 against 0.9 for the format: a tenth more of one, or less of the other, decides between them.
        assert row["monitor/cliff_flip_frac"] > 0
        assert 0 < row["monitor/cliff_distance"] < 1
        assert row["monitor/cliff_fragile_frac"] >= row["monitor/cliff_degenerate_frac"] >= 0
    told = [r["monitor/over_optimisation_distance"] for r in rows if "monitor/over_optimisation_distance" in r]
    assert len(told) >= 7
    assert all(math.isfinite(d) and d >= 0 for d in told)
    assert jobs.summary(run)["groups_lost"] == 0
