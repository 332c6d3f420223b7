"""Reward models that learn in a real job, and monitors of the rewards: one job with two of them, each tested apart."""

from __future__ import annotations

import math
import string
from typing import NamedTuple

import numpy as np
import pytest

from cluster.storage import group_archive
from tests.end_to_end import jobs
from tests.metrics_page import unexplained

pytestmark = [pytest.mark.job, pytest.mark.verify]

RULE = "tests.end_to_end.rules:LowDigits"
LEARN = "lr=1e-3,batch_size=16,early_steps=4"
EVERYTHING = f"{LEARN},members=2,flip='certain',margin=true,smoothing=0.05,contrast=0.05,meta_lr=1e-3"
LETTERS = ",".join(f'"{c}"' for c in string.digits + string.ascii_lowercase)
STEPS = 16
OVERRIDES = [
    *jobs.TINY, "run.name=learnt", f"learner.steps={STEPS}", "learner.groups_per_step=16",
    "learner.drop_zero_variance=false", "engine.use=tests.fakes:FakeEngine", "engine.options={delay_s=0.3}",
    "evaluation.max_tasks=4", "evaluation.every_steps=1", "tracking.tensorboard=false", "console.enabled=false",
    # Cooper's recipe, with a rule that untrained rollouts keep now and then,
    f"rewards=[{{use='{RULE}',name='rule',weight=0.0}},{{use='cooper',missing='wait',options={{rule='{RULE}'}}}},"
    "{use='reward_model',missing='wait',weight=0.1}]",
    f"reward_models.cooper.options={{{LEARN}}}", "reward_models.cooper.publish_every_s=0.5",
    "reward_models.cooper.min_held_out=3",
    # and beside it a reward model that learns from a judge who counts words of a letter, with every option.
    f"judges.judge={{kind='keyword',options={{keywords=[{LETTERS}]}}}}",
    "reward_models.reward_model={use='bradley_terry',publish_every_s=0.5,min_held_out=5,min_agreement=0.0,options={"
    f"{EVERYTHING}}}}}",
    "monitors=[{use='starc',options={reward='rule'}},{use='policy_cliff'},{use='over_optimisation'},"
    "{use='one_to_many',options={reward='cooper',verifier='rule'}}]",
]  # fmt: skip


class Job(NamedTuple):
    rows: list[dict]
    groups: list[group_archive.ArchivedGroup]
    """What was trained on."""

    @property
    def steps(self) -> list[dict]:
        return [row for row in self.rows if "learner/step_s" in row]

    def last(self, name: str) -> float:
        return [row[name] for row in self.rows if row.get(name) is not None][-1]


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    directory = tmp_path_factory.mktemp("learnt")
    log, run = directory / "log", directory / "learnt"
    code = jobs.run([*OVERRIDES, f"run.dir={directory}"], recipe="methods/cooper.toml", log=log, timeout_s=500)
    assert code == 0, jobs.tail(log)
    summary = jobs.summary(run)
    assert summary["groups_lost"] == summary["groups_trained_twice"] == summary["scores_failed"] == 0
    return Job(
        jobs.rows(run),
        [group_archive.read(p, entry) for p in group_archive.files(run / "groups") for entry in group_archive.index(p)],
    )


def versions(groups: list[group_archive.ArchivedGroup], reward: str) -> dict[int, set[int]]:
    """Step → versions of the model that scored its groups; under one version a text is worth one thing."""
    found: dict[int, set[int]] = {}
    worth: dict[tuple[str, str, str], float] = {}
    for one in groups:
        scores = one.scores[reward]
        assert np.isfinite(scores.values).all(), "a group was trained on that no version had scored"
        kind, _, number = scores.version.rpartition(".")
        assert kind == "bradley_terry"
        found.setdefault(one.step, set()).add(int(number))
        for rollout, value in zip(one.group.rollouts, scores.values, strict=True):
            known = worth.setdefault((scores.version, one.group.task.id, rollout.text), value)
            assert known == pytest.approx(value, abs=1e-5)
    return found


def test_a_reward_model_learns_from_a_judge_with_every_option(job):
    scored = versions(job.groups, "reward_model")
    assert sorted(scored) == list(range(1, STEPS + 1))
    assert min(scored[1]) >= 1, "groups waited for the first version"
    assert max(scored[STEPS]) > min(scored[1]), "later groups are scored by a later version"
    assert 0 <= job.last("reward_model/reward_model_agreement_frac") <= 1
    assert 0 < job.last("reward_model/reward_model_starc_distance") < 1, "versions differ"
    assert 0 <= job.last("reward_model/reward_model_flip_frac") <= 1


def test_cooper_learns_right_from_spoilt(job):
    scored = versions(job.groups, "cooper")
    assert min(scored[1]) >= 1
    assert max(scored[STEPS]) > min(scored[1])
    values = np.concatenate([one.scores["cooper"].values for one in job.groups])
    assert values.min() >= 0
    assert values.max() <= 1
    assert ((values > 0) & (values < 1)).mean() > 0.5, "a chance, not a verdict"
    assert job.last("reward_model/cooper_num_unreadable") > 0, "a text with low and high digits cannot be spoilt"
    assert job.last("reward_model/cooper_good_frac") == 1, "the right one is always the first of its pair"
    assert job.last("reward_model/cooper_agreement_frac") > 0.6


def test_every_monitor_reports_in_a_running_job(job):
    assert not unexplained(metric for row in job.rows for metric in row)
    assert len(job.steps) == STEPS
    for row in job.steps:
        assert 0 < row["reward/rule_starc_distance"] <= 1
        assert 0 <= row["reward/cooper_one_to_many_accuracy"] <= row["reward/cooper_one_to_many_mrr"] <= 1
        assert 0 <= row["monitor/cliff_flip_frac"] <= 1
        assert 0 < row["monitor/cliff_distance"] < 1
        assert row["monitor/cliff_fragile_frac"] >= row["monitor/cliff_degenerate_frac"] >= 0
        assert row["monitor/cliff_top_gap"] >= 0
    told = [r["monitor/over_optimisation_distance"] for r in job.rows if "monitor/over_optimisation_distance" in r]
    assert len(told) >= 3
    assert all(math.isfinite(d) and d >= 0 for d in told)
    random = 0.1  # what a reward that knows nothing reaches, less
    assert np.mean([row["reward/cooper_one_to_many_accuracy"] for row in job.steps]) > random
