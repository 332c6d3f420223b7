"""Pairs and loss terms in a real job: what they train on, and that a learner killed after a cut repeats it."""

from __future__ import annotations

import math
from statistics import median

import pytest

from tests.end_to_end import jobs

pytestmark = pytest.mark.job

LAP = [*jobs.TINY, "engine.use=tests.fakes:FakeEngine", "learner.schedule.lr=1e-3", "evaluation.max_tasks=1"]
REWARD = """
def ones(prompt, completion, ground_truth):
    return completion.count("1") / (1 + len(completion))
"""


def pipeline(tmp_path, name: str, overrides: list[str], *, steps: int, **environment: str) -> list[dict]:
    """A job rewarded for ones; its steps' metrics."""
    (tmp_path / "reward.py").write_text(REWARD)
    options = [
        *LAP, f"run.dir={tmp_path}", f"run.name={name}", f"learner.steps={steps}",
        f"rewards.0.use={tmp_path}/reward.py:ones", *overrides,
    ]  # fmt: skip
    log = tmp_path / "log"
    assert jobs.run(options, log=log, timeout_s=280, **environment) == 0, jobs.tail(log)
    summary = jobs.summary(tmp_path / name)
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0
    return [r for r in jobs.rows(tmp_path / name) if "learner/step_s" in r]


@pytest.mark.verify
def test_pairs_alone_are_trained_on_and_a_killed_learner_repeats_its_pairs(tmp_path):
    """DPO and SELM without a policy loss."""
    dead = tmp_path / "dead"
    dead.mkdir()
    overrides = [
        "learner.loss.coef=0", 'selectors=[{use="best_worst"},{use="likeliest"}]', "checkpoint.every_steps=1",
        'learner.sequence_losses=[{use="dpo",options={beta=0.5}},{use="selm",coef=1e-4,options={beta=0.5}}]',
    ]  # fmt: skip
    rows = pipeline(
        tmp_path,
        "pairs",
        overrides,
        steps=5,
        KANABO_FAILPOINT="learner.after_assemble@2",
        KANABO_FAILPOINT_DIR=str(dead),
    )
    assert [p.name for p in dead.iterdir()] == ["learner.after_assemble"], "the learner was not killed"
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5]
    assert rows[0]["loss/dpo"] == pytest.approx(math.log(2), abs=1e-6), "at first the policy is the reference"
    assert rows[0]["selm/third_log_ratio_nats"] == pytest.approx(0, abs=1e-6)
    for row in rows:
        assert row["pairs/num_pairs"] == row["learner/groups"] > 0
        assert 2 * row["pairs/num_pairs"] <= row["learner/rollouts"] <= 3 * row["pairs/num_pairs"]
        assert row["pairs/margin_mean"] > 0
    last = rows[-1]
    assert last["pairs/chosen_log_ratio_nats"] > last["pairs/rejected_log_ratio_nats"] + 0.01
    # A step has three to five pairs, so that one of them says little.
    assert median(row["loss/dpo"] for row in rows[1:]) < rows[0]["loss/dpo"]


@pytest.mark.verify
def test_a_policy_loss_pairs_and_a_judging_token_train_together(tmp_path):
    overrides = [
        'selectors=[{use="best_worst"}]',
        'learner.sequence_losses=[{use="ipo",coef=0.01},{use="laser",options={token=5,correct=0.1,mix_after_steps=0,'
        "reference_logprob=0,min_std=1e-9}}]",
    ]  # fmt: skip
    rows = pipeline(tmp_path, "both", overrides, steps=6)
    assert rows[0]["loss/ipo"] == pytest.approx(25, rel=1e-4), "(0 − 1 / 2β)²"
    assert rows[0]["loss/laser"] == pytest.approx(0.5, abs=0.01), "a self-reward of 0 at first"
    assert rows[-1]["loss/laser"] < rows[0]["loss/laser"] - 0.01
    assert all(r["learner/rollouts"] > 2 * r["pairs/num_pairs"] for r in rows)


@pytest.mark.verify
def test_labels_fade_where_two_scorers_disagree(tmp_path):
    """CREAM: the second scorer ranks the other way round."""
    other = f"rewards=[{{use='{tmp_path}/reward.py:ones'}},{{use='{tmp_path}/other.py:zeros',name='zeros',weight=0.0}}]"
    (tmp_path / "other.py").write_text(REWARD.replace("def ones", "def zeros").replace("return ", "return -1 * "))
    overrides = [
        other, "learner.loss.coef=0", 'selectors=[{use="consistency",options={first="ones",second="zeros"}}]',
        'learner.sequence_losses=[{use="dpo"}]',
    ]  # fmt: skip
    rows = pipeline(tmp_path, "cream", overrides, steps=4)
    assert all(r["pairs/label_mean"] == pytest.approx(0) for r in rows)
    assert rows[-1]["pairs/chosen_log_ratio_nats"] < rows[-1]["pairs/rejected_log_ratio_nats"]


@pytest.mark.verify
def test_a_step_presses_its_best_groups_for_brevity(tmp_path):
    """GRPO-λ: with a reward that all are right by, one group of eight in five has lengths in its reward."""
    shape = [
        "rewards.0.shape.use=step_length_switch", "rewards.0.shape.options={correct=0.0,top_frac=0.2}",
        "learner.drop_zero_variance=false",
    ]  # fmt: skip
    rows = pipeline(tmp_path, "brief", shape, steps=3)
    for row in rows:
        # Two of eight groups (⌈0.2 · 8⌉) are worth about 1 − α/2 = 0.7, the others 1.
        assert row["reward/ones_shaped_mean"] == pytest.approx(1 - 0.3 / 4, abs=0.05)
        assert row["reward/zero_variance_frac"] == pytest.approx(6 / 8, abs=0.01)
