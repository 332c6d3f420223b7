"""Choices of the recipe that change what a pipeline is made of, in a real job: the user's Redis, a function as reward,
a reference model, recomputed activations, a named checkpoint; a critic.
"""

from __future__ import annotations

import pytest
from safetensors import safe_open

from cluster.commands.replay import replay
from tests.end_to_end import jobs
from tests.end_to_end.test_failures import FAKE, said

pytestmark = pytest.mark.job

REWARD = """
def first_digit(prompt, completion, ground_truth):
    assert prompt.endswith("=")
    return float(completion[:1] == ground_truth[:1])
"""


@pytest.mark.verify
def test_a_run_on_the_users_redis_goes_back_to_a_named_checkpoint(tmp_path, redis_url):
    log, run = tmp_path / "log", tmp_path / "chosen"
    (tmp_path / "reward.py").write_text(REWARD)
    overrides = [
        *FAKE, f"run.dir={tmp_path}", "run.name=chosen", f"buffer.url={redis_url}", "learner.loss.kl_coef=0.05",
        "learner.gradient_checkpointing=true", f"rewards.0.use={tmp_path}/reward.py:first_digit",
        "checkpoint.every_steps=2", "checkpoint.keep_last=5",
    ]  # fmt: skip
    assert jobs.run([*overrides, "learner.steps=4"], log=log, timeout_s=240) == 0, jobs.tail(log)
    assert "warning" in said(log)
    assert "appendfsync is everysec" in said(log)
    assert redis_url not in (run / "config.toml").read_text()
    kl = [r["loss/kl_nats"] for r in jobs.rows(run) if "loss/kl_nats" in r]
    assert kl[0] < 1e-9 < kl[-1], "the reference is the initial model, and the policy leaves it"
    assert {r["reward/first_digit_mean"] for r in jobs.rows(run) if "learner/step_s" in r} != {0.0}
    first = jobs.summary(run)

    code = jobs.run([*overrides, "learner.steps=6", f"resume={run}/checkpoints/global_step_2"], log=log, timeout_s=240)
    assert code == 0, jobs.tail(log)
    summary = jobs.summary(run)
    assert (run / "checkpoints" / "abandoned_step_4").exists()
    assert [r["step"] for r in jobs.rows(run) if "learner/step_s" in r] == [1, 2, 3, 4, 5, 6]
    assert summary["groups_dropped"]["rolled_back"] >= 16, "what was trained after the checkpoint did not happen"
    assert summary["groups_trained"] == 48
    assert summary["groups_claimed"] > first["groups_claimed"]
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0

    assert jobs.run([*overrides, "resume=off"], log=log, timeout_s=60) == 2
    assert 'already holds a run and resume = "off"' in said(log)


@pytest.mark.verify
def test_ppo_with_a_critic_learns_values_and_runs_again_bit_for_bit(tmp_path):
    """Rewards are far below 0: a head that starts there has that to learn before anything else."""
    log, run = tmp_path / "log", tmp_path / "ppo"
    overrides = [
        *FAKE, f"run.dir={tmp_path}", "run.name=ppo", "learner.steps=8", "checkpoint.record_every_steps=6",
        "learner.value={lr = 5e-4, coef = 0.5, reward_kl_coef = 0.01}", "learner.schedule={lr = 1e-4}",
        "rewards.0.use=length_penalty", "rewards.0.options={max_tokens = 4, cache_tokens = 4}",
    ]  # fmt: skip
    assert jobs.run(overrides, log=log, timeout_s=240) == 0, jobs.tail(log)
    rows = [r for r in jobs.rows(run) if "learner/step_s" in r]
    assert [r["step"] for r in rows] == list(range(1, 9))
    losses = [r["loss/value"] for r in rows]
    assert max(losses[-2:]) < 0.7 * losses[0], losses
    assert rows[0]["value/mean"] == 0.0 > rows[-1]["value/mean"]
    assert all("value/explained_variance" in r for r in rows)
    before, after = replay(run, 6)
    assert before == {k: v for k, v in after.items() if k != "suspects"}
    assert {"loss/value", "value/explained_variance"} <= set(before["metrics"])
    with safe_open(run / "checkpoints" / "global_step_8" / "model.safetensors", "pt") as exported:
        assert not any("value" in name for name in set(exported.keys()))
