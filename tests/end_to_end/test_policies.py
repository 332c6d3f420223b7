"""Several policies in one job: each has its own engines, learner, weights and checkpoints, and none its own history."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from actors.models import prepare
from cluster.config import ModelSection
from cluster.storage import group_archive
from rewards.builtin.comas import interaction_rewards, read_score
from rewards.builtin.crowd import consistency, weighted_votes
from rewards.parsing.answers import votes_of
from tests.end_to_end import jobs
from tests.metrics_page import unexplained

pytestmark = pytest.mark.job

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


def changes(checkpoint: Path, *others: str) -> list[float]:
    """How far the weights of `policy` and of the others are from where all began."""
    first = weights(prepare(ModelSection(path="tiny:addition"), seed=0))
    parts = [checkpoint, *(checkpoint / "policies" / name for name in others)]
    return [float(np.abs(weights(part) - first).max()) for part in parts]


def archived_groups(directory: Path) -> list[group_archive.ArchivedGroup]:
    return [
        group_archive.read(path, glance)
        for path in group_archive.files(directory / "groups")
        for glance in group_archive.index(path)
    ]


def check_groups(directory: Path, size: int) -> None:
    """Every trained group has all policies' rollouts, sampled within the bound."""
    groups = [found.group for found in archived_groups(directory)]
    assert groups
    for group in groups:
        assert [r.policy for r in group.rollouts] == ["policy"] * size + ["b"] * size
        for rollout in group.rollouts:
            for span in rollout.spans:
                epoch, step = map(int, span.version.split("."))
                assert (epoch, step) >= (group.claim.epoch, group.version), "older weights than the claim's"


@pytest.mark.verify
def test_two_policies_of_which_a_learner_and_an_engine_are_killed_and_the_run_is_continued_and_stopped(tmp_path):
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
    # Synchronously from here on, and with two ranks that follow the cuts of one.
    changed = ["learner.steps=1000", "learner.max_staleness=0", "policies.b.learner.ranks=2"]
    process = jobs.start([*options, *changed], log=log)
    try:
        jobs.wait_for_step(directory, 6, process, log, timeout_s=200)
        process.terminate()
    finally:
        code = jobs.finish(process, log, timeout_s=100)
    assert code == 0, jobs.tail(log)
    summary, rows = jobs.summary(directory), jobs.rows(directory)
    last = summary["steps"]
    assert 6 <= last < 1000
    assert (summary["groups_lost"], summary["groups_trained_twice"]) == (0, 0)
    assert summary["max_staleness_observed"] <= 1
    for prefix in ("", "b/"):
        steps = [r["step"] for r in rows if f"{prefix}learner/step_s" in r]
        assert steps == list(range(1, last + 1)), prefix
        assert sum(f"{prefix}eval/accuracy" in r for r in rows) >= 2
    mine, theirs = (sum(r.get(f"{p}learner/rollouts", 0) for r in rows) for p in ("", "b/"))
    assert mine == theirs == last * 8 * 8, "each learner trains on its own rollouts, all of them"
    check_groups(directory, 8)
    ours, theirs = changes(directory / "checkpoints" / f"global_step_{last}", "b")
    assert 0 < ours < theirs, "b has three times the learning rate"
    assert not unexplained((name for row in rows for name in row), policies=["b"]), "docs/metrics.md lacks them"
    assert not list(Path("/dev/shm").glob(f"kanabo-*{(directory / 'id').read_text()[-6:]}*"))


def pipeline(tmp_path: Path, method: str, overrides: list[str], *, steps: int) -> Path:
    """The directory of a job of a method's recipe on fake engines, of whose policies all begin with one model."""
    log = tmp_path / "log"
    options = [
        *jobs.TINY, "engine.use=tests.fakes:FakeEngine", f"run.dir={tmp_path}", f"learner.steps={steps}",
        "learner.schedule.warmup_steps=0", "evaluation.max_tasks=4", "evaluation.every_steps=0", *overrides,
    ]  # fmt: skip
    assert jobs.run(options, recipe=f"methods/{method}.toml", log=log, timeout_s=270) == 0, jobs.tail(log)
    summary = jobs.summary(tmp_path / method)
    assert (summary["steps"], summary["groups_lost"], summary["groups_trained_twice"]) == (steps, 0, 0)
    return tmp_path / method


@pytest.mark.verify
def test_rlccf_trains_two_policies_on_the_vote_that_their_consistency_weighs(tmp_path):
    overrides = [
        "policies.second.model.options={}", "learner.drop_zero_variance=false",
        "rollout.max_tokens=1",  # answers of one character: some agree
    ]  # fmt: skip
    directory = pipeline(tmp_path, "rlccf", overrides, steps=4)
    assert min(changes(directory / "checkpoints" / "global_step_4", "second")) > 0
    unlike, across = 0, 0
    for found in archived_groups(directory):
        rollouts = found.group.rollouts
        answers = {
            name: [v for v, r in zip(votes_of(rollouts), rollouts, strict=True) if r.policy == name]
            for name in ("policy", "second")
        }
        votes = weighted_votes(answers)
        winner = max(votes, key=lambda answer: votes[answer])
        given = [*answers["policy"], *answers["second"]]
        assert found.scores["crowd"].values.tolist() == [a == winner for a in given]
        unlike += consistency(answers["policy"]) != consistency(answers["second"])
        across += all(winner in of_one for of_one in answers.values())
        advantages = np.array([a[0] for a in found.advantages]).reshape(2, -1)
        assert advantages.sum(1) == pytest.approx([0, 0], abs=1e-5), "each policy is compared with itself"
    assert unlike, "no vote was weighed differently"
    assert across, "no vote was of both"


@pytest.mark.verify
def test_comas_trains_two_policies_on_what_they_say_to_each_other(tmp_path):
    """Character-level models, whose score is a lone digit."""
    solve, evaluate, score = (f"{word}{{question}}" for word in ("", "{solution}", "{solution}{evaluation}"))
    overrides = [
        "model.path=tiny:addition", "tasks={use='addition'}", "evaluation.reward=exact", "rollout.max_tokens=1",
        "rewards=[{use='comas',options={tag=''}},{use='exact',weight=0.0},"
        "{use='comas',name='comas_solution',weight=0.0,options={tag='',of='solution'}}]",
        "learner.schedule.lr=1e-3", "policies.second.learner.schedule={lr=1e-3}",
        f"rollout.environment={{use='comas',options={{solve='{solve}',evaluate='{evaluate}',score='{score}'}}}}",
    ]  # fmt: skip
    directory = pipeline(tmp_path, "comas", overrides, steps=4)
    assert min(changes(directory / "checkpoints" / "global_step_4", "second")) > 0
    advantages: dict[tuple[int, str], list[float]] = defaultdict(list)
    read, across = 0, 0
    for found in archived_groups(directory):
        rollouts = found.group.rollouts
        assert [r.variant for r in rollouts] == ["solution", "evaluation", "score"] * 4
        for first in range(0, 12, 3):
            solution, evaluation, scorer = found.rewards[first : first + 3]
            expected = interaction_rewards(read_score(rollouts[first + 2].text, ""))
            assert (solution, evaluation, scorer) == pytest.approx(expected, nan_ok=True)
            read += scorer == 0
            across += scorer == 0 and len({r.policy for r in rollouts[first : first + 3]}) > 1
        for rollout, reward, advantage in zip(rollouts, found.rewards, found.advantages, strict=True):
            if np.isfinite(reward):
                advantages[found.step, rollout.policy].append(float(advantage[0]))
    assert read, "no score could be read"
    assert across, "nobody was judged by another policy"
    assert len(advantages) == 2 * 4, "each policy has a part of every step"
    for step, policy in advantages:
        assert np.mean(advantages[step, policy]) == pytest.approx(0, abs=1e-4), (
            "normalised over a policy's own rollouts"
        )
    rows = jobs.rows(directory)
    counts = [sum(r.get(f"{p}learner/rollouts", 0) for r in rows) for p in ("", "second/")]
    known = [sum(len(a) for (_, p), a in advantages.items() if p == name) for name in ("policy", "second")]
    assert counts == known, "each learner trains on what is its own, once"
