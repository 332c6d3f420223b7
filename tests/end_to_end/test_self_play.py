"""Policies that are their own judge, opponent, past and corrector: what each method does to a real run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster import kept
from cluster.kept import KeptGroup
from cluster.types import SCORED
from tests.end_to_end import jobs

FAKE = ["engine.use=tests.fakes:FakeEngine", "tracking.live_table=false", "evaluation.max_tasks=1"]


def lap(tmp_path: Path, recipe: str, overrides: list[str], *, steps: int, name: str = "", **environment: str) -> Path:
    """A run of a method's recipe to its last step; its directory."""
    name = name or recipe
    options = [f"run.dir={tmp_path}", f"run.name={name}", f"learner.steps={steps}", "tracking.live_table=false"]
    log = tmp_path / "log"
    code = jobs.run([*options, *overrides], recipe=f"methods/{recipe}.toml", log=log, timeout_s=580, **environment)
    assert code == 0, jobs.tail(log)
    summary = jobs.summary(tmp_path / name)
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0
    return tmp_path / name


def groups_of(run: Path) -> list[KeptGroup]:
    """Trained groups, in the order of the steps."""
    return [kept.read(path, entry) for path in sorted(kept.files(run / "groups")) for entry in kept.index(path)]


def steps_of(run: Path) -> list[dict]:
    return [row for row in jobs.rows(run) if "learner/step_s" in row]


@pytest.mark.verify
@pytest.mark.timeout(700)
def test_a_policy_learns_from_the_marks_that_it_gives_itself(tmp_path):
    """SSR-Zero: no reference reaches the reward, and accuracy by references rises."""
    run = lap(tmp_path, "ssr_zero", [], steps=20)
    accuracy = {row["step"]: row["heldout/accuracy"] for row in jobs.rows(run) if "heldout/accuracy" in row}
    assert accuracy[0] < 0.8
    assert accuracy[20] > accuracy[0] + 0.1
    versions = []
    for group in groups_of(run):
        scores, texts = group.scores["ssr_zero"], [r.text for r in group.group.rollouts]
        laid_out = np.array([len(t) == 3 and set(t) <= set("abcdefghij") for t in texts])
        assert (scores.values[~laid_out] == 0).all()
        for provenance in np.array(scores.provenance, object)[laid_out & (scores.state == SCORED)]:
            assert provenance.model.startswith("policy@1.")
            versions.append(int(provenance.model.rpartition(".")[2].partition("-")[0]))
    assert versions[-1] >= versions[0] + 15, "the judge must be the policy of now"


@pytest.mark.verify
@pytest.mark.timeout(700)
def test_both_seats_learn_from_one_policy_and_baselines_outlive_a_killed_learner(tmp_path):
    """SPIRAL: a policy that plays both seats learns not to fold, and each seat keeps a baseline of its own."""
    dead = tmp_path / "dead"
    dead.mkdir()
    run = lap(
        tmp_path, "spiral", ["checkpoint.every_steps=5", "evaluation.max_tasks=200"], steps=20,
        KANABO_FAILPOINT="learner.after_cut@12", KANABO_FAILPOINT_DIR=str(dead),
    )  # fmt: skip
    assert [p.name for p in dead.iterdir()] == ["learner.after_cut"], "the learner was not killed"
    trained, rows = groups_of(run), steps_of(run)
    assert [row["step"] for row in rows] == list(range(1, 21))
    baselines: dict[str, float] = {}
    for row in rows:
        for seat in "01":
            told = row.get(f"advantage/baseline_KuhnPoker-v0-short_{seat}", 0.0)
            assert told == pytest.approx(baselines.get(seat, 0.0), abs=1e-6), f"step {row['step']}"
        for group in (g for g in trained if g.step == row["step"]):
            assert {r.role for r in group.group.rollouts} <= {"0", "1"}
            for rollout, reward, advantage in zip(group.group.rollouts, group.rewards, group.advantages, strict=True):
                before = baselines.get(rollout.role, 0.0)
                assert advantage[0] == pytest.approx(reward - before, abs=1e-5)
                baselines[rollout.role] = 0.95 * before + 0.05 * reward
    assert baselines["0"] != pytest.approx(baselines["1"], abs=1e-3)
    assert folds(trained, range(16, 21)) < 0.6 * folds(trained, range(1, 4))
    accuracy = [row["heldout/accuracy"] for row in jobs.rows(run) if "heldout/accuracy" in row]
    assert accuracy[-1] > accuracy[0]


def folds(groups: list[KeptGroup], steps: range) -> float:
    """Share of the answers to a bet that are folds."""
    rollouts = [r for g in groups if g.step in steps for r in g.group.rollouts]
    answers = [
        said.text
        for r in rollouts
        for asked, said in zip(r.turns[::2], r.turns[1::2], strict=True)
        if asked.text.endswith("b>")
    ]
    assert len(answers) > 20
    return sum("[fold]" in a for a in answers) / len(answers)


ONES = """
def ones(prompt, completion, ground_truth):
    return completion.count("1") / (1 + len(completion))
"""


@pytest.mark.verify
@pytest.mark.timeout(400)
def test_good_rollouts_are_trained_on_again_also_after_the_learner_was_killed(tmp_path):
    """SPEAR: what is replayed is what an independent reading of the trained groups says."""
    (tmp_path / "reward.py").write_text(ONES)
    dead = tmp_path / "dead"
    dead.mkdir()
    overrides = [
        *FAKE, f"rewards.0.use={tmp_path}/reward.py:ones", "evaluation.reward=ones", "learner.groups_per_step=4",
        "learner.drop_truncated=false", "learner.steps=8", "checkpoint.every_steps=2",
        "learner.rehearsal.options={buffer_size=8, tolerate_steps=2, ramp_steps=4}",
    ]  # fmt: skip
    run = lap(
        tmp_path, "spear", overrides, steps=8, KANABO_FAILPOINT="learner.after_cut@5", KANABO_FAILPOINT_DIR=str(dead)
    )
    assert [p.name for p in dead.iterdir()] == ["learner.after_cut"], "the learner was not killed"
    trained, rows = groups_of(run), steps_of(run)
    means: list[float] = []
    buffer: list[tuple[int, float]] = []
    weights = [row["settings/rewards.1.weight"] for row in rows]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] == 1 > weights[-1], "the bonus for tools must fade"
    for row in rows:
        assert row.get("replay/num_kept", 0.0) == len(buffer), f"before step {row['step']}"
        now = [g for g in trained if g.step == row["step"]]
        means += [float(np.nanmean(g.rewards)) for g in now]
        buffer = [(step, r) for step, r in buffer if row["step"] - step <= 2]
        whole = [(g, i) for g in now for i, r in enumerate(g.group.rollouts) if r.finish == "stop"]
        buffer += [(row["step"], float(g.rewards[i])) for g, i in whole if g.advantages[i].mean() > 0]
        good = sum(r > np.median(means) for _, r in buffer)
        expected = min(8, 2 ** int(np.log2(good))) if good > 12 else 0
        assert row["replay/num_rollouts"] == expected, f"step {row['step']}"
        assert row["learner/rollouts"] == sum(np.isfinite(g.rewards).sum() for g in now) + expected
        buffer = [] if expected else buffer
    assert sum(row["replay/num_rollouts"] for row in rows) > 0
    assert any(row["loss/covariance_clip_frac"] > 0 for row in rows)
