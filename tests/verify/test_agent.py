"""The shipped agent on OpenAI's client, on a real engine: its reward rises, and what is trained on was sampled."""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import pytest

from cluster.config import load
from cluster.storage import group_archive
from tests.actors.test_endpoint import check_sampled
from tests.end_to_end import jobs
from tests.verify.keep import keep

MOST = int(os.environ.get("KANABO_VERIFY_STEPS", "1000"))
pytestmark = [pytest.mark.verify, pytest.mark.timeout(1800)]


def test_an_agent_with_a_tool_earns_more_and_trains_on_what_the_engine_sampled(tmp_path: Path):
    log, record = tmp_path / "log", tmp_path / "record"
    steps = min(MOST, load(jobs.ROOT / "deploy/recipes/agent.toml").learner.steps)
    options = [
        f"learner.steps={steps}",
        f"run.dir={tmp_path}", "tracking.live_table=false", "evaluation.max_tasks=64",
        "rollout.environment.options.function=tests.verify.recorded_agent:solve",
    ]  # fmt: skip
    code = jobs.run(options, recipe="agent.toml", log=log, timeout_s=1500, KANABO_ENGINE_RECORD=str(record))
    assert code == 0, jobs.tail(log)
    run = tmp_path / "agent"
    summary, rows = jobs.summary(run), [row for row in jobs.rows(run) if "learner/step_s" in row]
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0

    samples = [tuple(map(tuple, line)) for line in map(json.loads, record.read_text().splitlines())]
    archive = group_archive.files(run / "groups")
    groups = [group_archive.read(path, entry).group for path in archive for entry in group_archive.index(path)]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    check_sampled(rollouts, SimpleNamespace(record=samples))  # type: ignore[arg-type]

    rewards = [row["reward/mean"] for row in rows if row.get("reward/mean") is not None]
    several = sum(rollout.episode is not None for rollout in rollouts)
    keep(
        "agent",
        {
            "steps": len(rows),
            "reward_first_five": fmean(rewards[:5]),
            "reward_last_five": fmean(rewards[-5:]),
            "eval_accuracy_initial": summary["eval_accuracy_initial"],
            "eval_accuracy_final": summary["eval_accuracy_final"],
            "tokens_compared": sum(rollout.num_tokens for rollout in rollouts),
            "rollouts": len(rollouts),
            "wall_s": summary["wall_s"],
        },
    )
    assert several, "no episode began its conversation anew"
    assert any(turn.role == "tool" for rollout in rollouts for turn in rollout.turns)
    assert fmean(rewards[-5:]) > fmean(rewards[:5]) + 0.1
