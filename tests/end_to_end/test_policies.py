"""Several policies in one job: each has its own engines, learner, weights and checkpoints, and none its own history."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from actors.models import prepare
from cluster import kept
from cluster.config import ModelSection
from tests.end_to_end import jobs
from tests.metrics_page import unexplained

REWARD = """
def ones(prompt, completion, ground_truth):
    return completion.count("1") / (1 + len(completion))
"""
TWO = [
    *jobs.TINY, "engine.use=tests.fakes:FakeEngine", "learner.drop_zero_variance=false", "evaluation.max_tasks=8",
    "learner.schedule.lr=1e-3", "policies.b.learner.schedule.lr=3e-3", "policies.b.workers=2",
]  # fmt: skip


def weights(directory: Path) -> np.ndarray:
    found = load_file(directory / "model.safetensors")
    return np.concatenate([found[name].astype(np.float64).ravel() for name in sorted(found)])


def check_groups(directory: Path, size: int) -> None:
    """Every trained group has all policies' rollouts, sampled within the bound."""
    groups = [kept.read(path, glance).group for path in kept.files(directory / "groups") for glance in kept.index(path)]
    assert groups
    for group in groups:
        assert [r.policy for r in group.rollouts] == ["policy"] * size + ["b"] * size
        for rollout in group.rollouts:
            for span in rollout.spans:
                epoch, step = map(int, span.version.split("."))
                assert (epoch, step) >= (group.claim.epoch, group.version), "older weights than the claim's"


@pytest.mark.verify
def test_two_policies_of_which_a_learner_and_an_engine_are_killed_and_the_run_is_continued(tmp_path):
    dead = tmp_path / "dead"
    dead.mkdir()
    log, directory = tmp_path / "log", tmp_path / "two"
    (tmp_path / "reward.py").write_text(REWARD)
    options = [
        *TWO, f"run.dir={tmp_path}", "run.name=two", "checkpoint.every_steps=1", "evaluation.every_steps=2",
        f"rewards.0.use={tmp_path}/reward.py:ones",
    ]  # fmt: skip
    killed = {"KANABO_FAILPOINT": "learner.after_part@2 rollout.mid_play@20", "KANABO_FAILPOINT_DIR": str(dead)}
    assert jobs.run([*options, "learner.steps=4"], log=log, timeout_s=270, **killed) == 0, jobs.tail(log)
    assert {p.name for p in dead.iterdir()} == {"learner.after_part", "rollout.mid_play"}
    assert jobs.run([*options, "learner.steps=6"], log=log, timeout_s=200) == 0, jobs.tail(log)
    summary, rows = jobs.summary(directory), jobs.rows(directory)
    assert (summary["steps"], summary["groups_lost"], summary["groups_trained_twice"]) == (6, 0, 0)
    assert summary["max_staleness_observed"] <= 1
    for prefix in ("", "b/"):
        steps = [r["step"] for r in rows if f"{prefix}learner/step_s" in r]
        assert steps == [1, 2, 3, 4, 5, 6], prefix
        assert sum(f"{prefix}heldout/accuracy" in r for r in rows) >= 3
    mine, theirs = (sum(r.get(f"{p}learner/rollouts", 0) for r in rows) for p in ("", "b/"))
    assert mine == theirs == 6 * 8 * 8, "each learner trains on its own rollouts, all of them"
    check_groups(directory, 8)
    last = directory / "checkpoints" / "global_step_6"
    first = weights(prepare(ModelSection(path="tiny:addition"), seed=0))
    changes = [np.abs(weights(at) - first).max() for at in (last, last / "policies" / "b")]
    assert 0 < changes[0] < changes[1], "b has three times the learning rate"
    assert not unexplained((name for row in rows for name in row), policies=["b"]), "docs/metrics.md lacks them"
    assert not list(Path("/dev/shm").glob(f"kanabo-*{(directory / 'id').read_text()[-6:]}*"))
