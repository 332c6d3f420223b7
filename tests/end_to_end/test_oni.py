"""ONI in a running job: labels and versions come while it trains, nobody waits for them, and the trainer may die."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cluster.config import load
from cluster.storage import group_archive
from cluster.types import ScoredGroup
from learner.advantages.estimators import GroupAdvantage, advantages_of
from rewards.aggregation.mixer import Mixer
from tests.end_to_end import jobs
from tests.end_to_end.test_failures import FAKE

pytestmark = pytest.mark.job

ALPHA, BETA = 0.4, 1.0
DEATHS = "reward_model.after_fit@2 reward_model.after_model@1 reward_model.after_checkpoint@1"


def recipe_of(tmp_path: Path, latency_s: float) -> str:
    path = tmp_path / "oni.toml"
    quickstart = (jobs.ROOT / "deploy" / "recipes" / "quickstart.toml").read_text()
    sections = f"""[[rewards]]
use = "environment"

[[rewards]]
use = "oni"
options = {{ alpha_ext = 0.0, alpha_int = {ALPHA}, beta = {BETA} }}

[reward_models.oni]
use = "retrieval"
publish_every_s = 0.2
batch_size = 4
max_in_flight = 2

[judges.judge]
kind = "keyword"
options = {{ latency_s = {latency_s} }}

[learner]
turn_discount = 0.5"""
    plain = quickstart.replace('[[rewards]]\nuse = "exact" # 1 for the reference answer, else 0\n', "")
    assert plain != quickstart
    path.write_text(plain.replace("[learner]", sections, 1))
    return str(path)


def overrides_of(tmp_path: Path) -> list[str]:
    return [
        *FAKE, f"run.dir={tmp_path}", "run.name=oni", "engine.use=tests.end_to_end.noticing:Wordy",
        "rollout.environment.use=tests.end_to_end.noticing:Noticing", "rollout.max_turns=3", "rollout.max_tokens=8",
        "engine.options={delay_s = 0.05}", "evaluation.reward=environment", "evaluation.max_tasks=4",
        "evaluation.every_steps=0", "tracking.archived_groups=100000", "checkpoint.record_every_steps=4",
    ]  # fmt: skip


def trained(run: Path) -> list[group_archive.ArchivedGroup]:
    return [
        group_archive.read(path, entry)
        for path in group_archive.files(run / "groups")
        for entry in group_archive.index(path)
    ]


@pytest.mark.verify
def test_versions_come_while_it_trains_and_a_cut_follows_the_one_it_carries(tmp_path):
    log, run, dead = tmp_path / "log", tmp_path / "oni", tmp_path / "dead"
    dead.mkdir()
    overrides = [*overrides_of(tmp_path), "learner.steps=5000"]
    process = jobs.start(
        overrides, recipe=recipe_of(tmp_path, 0.1), log=log, KANABO_FAILPOINT=DEATHS, KANABO_FAILPOINT_DIR=str(dead)
    )
    deadline = time.monotonic() + 300
    told: list[dict] = []
    while len(list(dead.iterdir())) < 3 or not told or told[-1]["reward_model/oni_version"] < 6:
        assert time.monotonic() < deadline, f"died at {[*dead.iterdir()]}, told {told[-1:]}:\n{jobs.tail(log)}"
        assert process.poll() is None, jobs.tail(log)
        time.sleep(0.5)
        told = [r for r in jobs.rows(run) if "reward_model/oni_version" in r]
    process.terminate()
    assert jobs.finish(process, log, 120) == 0, jobs.tail(log)
    summary = jobs.summary(run)
    assert summary["groups_lost"] == summary["groups_trained_twice"] == summary["scores_failed"] == 0
    assert summary["max_staleness_observed"] <= 1
    last = told[-1]
    assert last["reward_model/oni_num_labels"] > 20
    assert 0.2 < last["reward_model/oni_good_frac"] < 0.8
    assert 0 < last["reward_model/oni_coverage_frac"] < 1
    assert last["reward_model/oni_num_outages"] == 0
    steps = [r for r in jobs.rows(run) if "learner/step_s" in r]
    outdated = [r["reward/outdated_frac"] for r in steps]
    assert all(0 <= share <= 1 for share in outdated)
    assert max(outdated) > 0, "no group was cut under the version before, in a run of many versions"
    versions_are_whole(trained(run))
    credit_follows_the_evidence(trained(run), run)
    newest = max(int(p.name.removeprefix("step_")) for p in (run / "replay").glob("step_*"))
    command = [sys.executable, "-m", "cluster.commands.replay", str(run), "--step", str(newest)]
    again = subprocess.run(command, cwd=jobs.ROOT, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stdout + again.stderr


def versions_are_whole(groups: list[group_archive.ArchivedGroup]) -> None:
    """Under one version a caption is worth one thing, whatever group it is in; and versions differ."""
    known: dict[str, dict[str, float]] = {}
    for found in groups:
        scores = found.scores["oni"]
        assert scores.tokens is not None
        for rollout, values in zip(found.group.rollouts, scores.tokens, strict=True):
            ends = [turn.end for turn in rollout.turns if turn.role == "assistant"]
            for event in rollout.events:
                r_hat = round(values[ends[event.turn] - 1] / (ALPHA * event.count**-BETA), 9)
                said = known.setdefault(scores.version, {}).setdefault(event.text, r_hat)
                assert r_hat == said, f"{event.text} is worth {said} and {r_hat} under {scores.version}"
                assert r_hat in (0.0, float(event.text.startswith("good")))
    worth = {version: sum(v > 0 for v in captions.values()) for version, captions in known.items()}
    assert len(worth) > 3, f"groups were cut under {[*worth]} alone"
    assert worth["retrieval.0"] == 0, "before the first version nothing is known"
    assert max(worth.values()) > 5


def credit_follows_the_evidence(groups: list[group_archive.ArchivedGroup], run: Path) -> None:
    config = load(run / "config.toml")
    mixer = Mixer(config.rewards, config.reward_names, config.reward_workers.min_scored_rollouts)
    later = 0
    for found in groups:
        mixed = mixer(found.group, found.scores)
        np.testing.assert_array_equal(mixed.rewards, found.rewards)
        [credit] = advantages_of(GroupAdvantage(), "it", [ScoredGroup(found.group, {}, reward=mixed)], 0.5)
        for ours, recorded in zip(credit, found.advantages, strict=True):
            np.testing.assert_array_equal(ours, recorded)
            later += len(np.unique(ours)) > 2
    assert later > 10, "turns of one rollout had the same credit"


@pytest.mark.verify
def test_with_a_judge_that_never_answers_the_lap_goes_on(tmp_path):
    """And its rewards are 0, not unknown: that is what `missing_label` says."""
    log, run = tmp_path / "log", tmp_path / "oni"
    overrides = [*overrides_of(tmp_path), "learner.steps=12", "checkpoint.record_every_steps=0"]
    assert jobs.run(overrides, recipe=recipe_of(tmp_path, 1e5), log=log, timeout_s=300) == 0, jobs.tail(log)
    steps = [r for r in jobs.rows(run) if "learner/step_s" in r]
    assert [r["step"] for r in steps] == [*range(1, 13)]
    assert {r["reward/oni_mean"] for r in steps} == {0.0}
    assert {r["reward/oni_known_frac"] for r in steps} == {1.0}
    assert any(r["reward/environment_mean"] > 0 for r in steps)
    assert jobs.summary(run)["groups_lost"] == 0
