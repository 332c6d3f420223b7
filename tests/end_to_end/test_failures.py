"""What dies, hangs or blows up in a running job, and what the job makes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from cluster.commands.replay import replay
from cluster.placement.ray_errors import CLOSE_S
from cluster.process.failpoints import FAILPOINTS
from cluster.storage import checkpoint
from tests.end_to_end import jobs

pytestmark = pytest.mark.job

FAKE = [*jobs.TINY, "engine.use=tests.fakes:FakeEngine", "learner.drop_zero_variance=false"]

SEVERAL = ("learner.after_part", "rollout.mid_play")
"""Of several policies: test_policies."""
LAP = [name for name in FAILPOINTS if not name.startswith("reward_model") and name not in SEVERAL]


def visit_every_failpoint(tmp_path, overrides: list[str], *, times: int, timeout_s: float, **environment: str) -> dict:
    """A run in which every failpoint kills a process once; its summary."""
    log, dead = tmp_path / "log", tmp_path / "dead"
    dead.mkdir()
    options = [
        *overrides, f"run.dir={tmp_path}", "run.name=killed", "learner.steps=16", "checkpoint.every_steps=1",
        "run.max_infrastructure_failures=20",
    ]  # fmt: skip
    places = " ".join(f"{name}@{times if name.startswith('learner') else 1}" for name in LAP)
    code = jobs.run(
        options, log=log, timeout_s=timeout_s, KANABO_FAILPOINT=places, KANABO_FAILPOINT_DIR=str(dead), **environment
    )
    assert code == 0, jobs.tail(log)
    assert {p.name for p in dead.iterdir()} == set(LAP), "a failpoint was never reached"
    summary = jobs.summary(tmp_path / "killed")
    assert summary["steps"] == 16
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0
    assert summary["groups_trained"] + sum(summary["groups_dropped"].values()) <= summary["groups_claimed"]
    steps = [r["step"] for r in jobs.rows(tmp_path / "killed") if "learner/step_s" in r]
    assert steps == list(range(1, 17)), "a step is missing or was recorded twice"
    return summary


def test_a_death_at_every_failpoint_loses_nothing_and_repeats_nothing(tmp_path):
    summary = visit_every_failpoint(tmp_path, [*FAKE, "rollout.workers=2"], times=2, timeout_s=500)
    assert summary["max_staleness_observed"] <= 1


@pytest.mark.verify
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("max_staleness", [0, 1])
def test_deaths_with_a_real_engine_and_sharded_learners(tmp_path, max_staleness, ranks):
    overrides = [
        *jobs.TINY, "engine.use=tests.fakes:one_real_engine", "rollout.workers=3", "learner.drop_zero_variance=false",
        f"learner.ranks={ranks}", f"learner.zero_stage={3 if ranks > 1 else 0}",
        f"learner.max_staleness={max_staleness}",
    ]  # fmt: skip
    summary = visit_every_failpoint(
        tmp_path, overrides, times=2, timeout_s=1100, KANABO_TEST_MARKER=str(tmp_path / "marker")
    )
    assert summary["max_staleness_observed"] <= max_staleness
    assert summary["logprob_diff_max_nats"] < 1e-3


@pytest.mark.verify
def test_whom_ray_ends_for_lack_of_memory_costs_the_budget_like_any_death(tmp_path):
    log = tmp_path / "log"
    overrides = [*FAKE, f"run.dir={tmp_path}", "run.name=large", "run.max_infrastructure_failures=1"]
    assert jobs.run(overrides, log=log, timeout_s=240, RAY_memory_usage_threshold="0.01") == 1
    assert "2 failures of infrastructure, run.max_infrastructure_failures = 1. The last: " in said(log)
    assert "running low on memory" in said(log)


@pytest.mark.verify
def test_rewards_that_end_or_hang_their_process_cost_their_own_groups_alone(tmp_path):
    """One group's reward calls os._exit, another's never lets go of the interpreter: each is found out and failed."""
    log, run = tmp_path / "log", tmp_path / "deadly"
    (tmp_path / "seen").mkdir()
    overrides = [
        *FAKE, f"run.dir={tmp_path}", "run.name=deadly", "run.max_infrastructure_failures=1", "learner.steps=8",
        'rewards=[{use = "exact"}, {use = "tests.fakes:deadly"}]', "reward_workers.deadline_s=30",
    ]  # fmt: skip
    code = jobs.run(overrides, log=log, timeout_s=280, KANABO_TEST_MARKER=str(tmp_path / "seen"))
    assert code == 0, jobs.tail(log)
    assert (tmp_path / "exits").exists()
    assert (tmp_path / "hangs").exists()
    summary = jobs.summary(run)
    assert summary["steps"] == 8
    assert summary["groups_lost"] == 0
    last = {name: value for row in jobs.rows(run) for name, value in row.items()}
    assert last["failures/num_infrastructure"] == 0, "each death is explained by a group"
    assert last["failures/num_data"] == last["failures/num_condemned"] == 2
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    causes = [sample["error"] for sample in samples if sample.get("reason") == "data_failure"]
    assert len(causes) == 2
    assert all("reward 'deadly' is not asked about this group again: reward-" in cause for cause in causes)


@pytest.mark.verify
def test_an_environment_that_holds_the_interpreter_costs_its_own_group_alone(tmp_path):
    """No thread of its worker can give the group up: a process beside the worker does, and the run goes on."""
    log, run = tmp_path / "log", tmp_path / "held"
    (tmp_path / "seen").mkdir()
    overrides = [
        *FAKE, f"run.dir={tmp_path}", "run.name=held", "run.max_infrastructure_failures=0", "learner.steps=12",
        "rollout.environment.use=tests.fakes:Clutching", "rollout.environment_timeout_s=8", "evaluation.max_tasks=4",
    ]  # fmt: skip
    code = jobs.run(overrides, log=log, timeout_s=280, KANABO_TEST_MARKER=str(tmp_path / "seen"))
    assert code == 0, jobs.tail(log)
    assert (tmp_path / "seen" / "holds").exists()
    summary = jobs.summary(run)
    assert summary["steps"] == 12
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0
    assert summary["groups_dropped"]["data_failure"] == 1
    last = {name: value for row in jobs.rows(run) for name, value in row.items()}
    assert last["failures/num_infrastructure"] == 0, "the death is explained by its group"
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    (cause,) = [sample["error"] for sample in samples if sample.get("reason") == "data_failure"]
    assert "the environment held the interpreter lock of rollout-0 for" in cause


@pytest.mark.verify
def test_a_late_reward_that_ends_its_process_after_its_group_was_assembled_is_named(tmp_path):
    """Nobody can ask about the group again: two deaths over one reward are counted as that reward's."""
    log, run = tmp_path / "log", tmp_path / "late"
    (tmp_path / "seen").mkdir()
    overrides = [
        *FAKE, f"run.dir={tmp_path}", "run.name=late", "run.max_infrastructure_failures=1", "learner.steps=60",
        'rewards=[{use = "exact"}, {use = "tests.fakes:deadly_late", name = "slow", blocking = false}]',
        "engine.options={delay_s = 0.3}",
    ]  # fmt: skip
    code = jobs.run(overrides, log=log, timeout_s=280, KANABO_TEST_MARKER=str(tmp_path / "seen"))
    assert code == 0, jobs.tail(log)
    assert "reward-0 died while it asked 'slow' about group policy/1/" in said(log)
    assert "died while reward 'slow' was asked about groups that wait for no score" in said(log)
    summary = jobs.summary(run)
    assert summary["steps"] == 60
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0
    last = {name: value for row in jobs.rows(run) for name, value in row.items()}
    assert last["failures/num_infrastructure"] == 0, "both deaths are the reward's"
    assert last["failures/num_data"] == 2


@pytest.mark.verify
def test_a_stall_names_what_everybody_waits_for(tmp_path):
    log = tmp_path / "log"
    overrides = [
        *FAKE,
        f"run.dir={tmp_path}",
        "run.name=stalled",
        "run.progress_timeout_s=30",
        "evaluation.max_tasks=1",
    ]
    stuck = [
        "engine.options={delay_s = 0, straggler_frac = 1.0, straggler_s = 500}",
        "engine.use=tests.fakes:FakeEngine",
    ]
    assert jobs.run([*overrides, *stuck], log=log, timeout_s=240) == 1
    assert "no step within run.progress_timeout_s = 30 s" in said(log)
    assert "rollout-0 samples 1 episodes, the oldest for" in said(log)
    assert "learner-0 waits for the groups of step 1 for" in said(log)
    assert "reward-0 waits for groups to score" in said(log)
    # The first evaluation hangs, and nobody claims before it is through.
    assert "the buffer is at version 0: 0 groups are sampled, 0 wait for scores, 0 are ready" in said(log)


@pytest.mark.verify
def test_a_stop_that_something_hangs_on_ends_within_its_grace(tmp_path):
    """The learner is stopped, then the job is asked to leave: exit 1 with a name, and the next start goes on."""
    log, run = tmp_path / "log", tmp_path / "graceful"
    overrides = [
        *FAKE, f"run.dir={tmp_path}", "run.name=graceful", "run.heartbeat_timeout_s=3600", "checkpoint.every_steps=2"
    ]  # fmt: skip
    process = jobs.start([*overrides, "learner.steps=100000", "run.shutdown_timeout_s=12"], log=log)
    try:
        jobs.wait_for_step(run, 3, process, log, timeout_s=200)
        started = jobs.tree(process)
        os.kill(process_named(process, "ray::LearnerActor").pid, signal.SIGSTOP)
        asked = time.monotonic()
        process.terminate()
        assert process.wait(60) == 1, jobs.tail(log)
        took_s = time.monotonic() - asked
        left = jobs.left_after(started, seconds=20)
    finally:
        jobs.end(process)
    assert took_s < 12 + CLOSE_S + 10
    assert not left, "processes outlive the job"
    assert "did not save its step within run.shutdown_timeout_s = 12 s: learner-0 has not answered for 1" in said(log)
    newest = checkpoint.committed(run / "checkpoints")[-1]
    assert f"The next start continues from {newest}" in said(log)
    reached = checkpoint.read(newest).step
    assert jobs.run([*overrides, f"learner.steps={reached + 3}"], log=log, timeout_s=200) == 0, jobs.tail(log)
    summary = jobs.summary(run)
    assert summary["steps"] == reached + 3
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0


@pytest.mark.verify
def test_an_actor_that_is_stopped_is_replaced(tmp_path):
    log = tmp_path / "log"
    overrides = [*FAKE, f"run.dir={tmp_path}", "run.name=silent", "learner.steps=60", "run.heartbeat_timeout_s=6"]
    process = jobs.start(overrides, log=log)
    try:
        jobs.wait_for_step(tmp_path / "silent", 2, process, log, timeout_s=200)
        os.kill(process_named(process, "ray::RewardActor").pid, signal.SIGSTOP)
        assert jobs.finish(process, log, 300) == 0, jobs.tail(log)
    finally:
        jobs.end(process)
    assert "reward-0 has not answered for run.heartbeat_timeout_s = 6 s: killed" in said(log)
    summary = jobs.summary(tmp_path / "silent")
    assert summary["steps"] == 60
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0


@pytest.mark.verify
@pytest.mark.parametrize("zero_stage", [0, 3])
def test_a_collective_that_a_rank_leaves_hanging_ends_by_its_time_out(tmp_path, zero_stage):
    """The rank is stopped before its third step; `run.heartbeat_timeout_s` is an hour, so no watchdog ends it."""
    log, run, dead = tmp_path / "log", tmp_path / "hanging", tmp_path / "dead"
    dead.mkdir()
    overrides = [
        *FAKE, f"run.dir={tmp_path}", "run.name=hanging", "learner.steps=6", "learner.ranks=2",
        f"learner.zero_stage={zero_stage}", "learner.collective_timeout_s=5", "checkpoint.every_steps=2",
        "run.heartbeat_timeout_s=3600", "run.max_infrastructure_failures=1",
    ]  # fmt: skip
    where = {"KANABO_FAILPOINT": "learner.after_assemble@3", "KANABO_FAILPOINT_DIR": str(dead)}
    code = jobs.run(overrides, log=log, timeout_s=150, KANABO_FAILPOINT_SIGNAL="SIGSTOP", **where)
    assert code == 0, jobs.tail(log)
    assert "the learner died (1 of 1): rank" in said(log)
    assert "in a collective for a rank that has died or hangs (learner.collective_timeout_s = 5)" in said(log)
    summary = jobs.summary(run)
    assert summary["steps"] == 6
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0
    assert [r["step"] for r in jobs.rows(run) if "learner/step_s" in r] == list(range(1, 7))
    assert checkpoint.read(run / "checkpoints" / "global_step_6").epoch == 2, "from the checkpoint of step 2, anew"


@pytest.mark.verify
def test_gradients_that_are_not_finite_are_skipped_kept_and_end_the_run(tmp_path):
    """Step 3 alone, then 6, 7 and 8; steps 2, 4 … are kept on request. What was kept runs again bit for bit."""
    log, run = tmp_path / "log", tmp_path / "diverged"
    overrides = [
        *FAKE, f"run.dir={tmp_path}", "run.name=diverged", "checkpoint.record_every_steps=2",
        "learner.advantage.use=tests.fakes:Overflowing",
        "learner.advantage.options={groups_per_step = 8, at_steps = [2, 5, 6, 7]}",
    ]  # fmt: skip
    assert jobs.run(overrides, log=log, timeout_s=240) == 1
    assert "3 steps in a row, the last 8, were not finite" in said(log)
    assert f"python -m cluster.commands.replay {run} --step 8" in said(log)
    skipped = [r["learner/num_skipped"] for r in jobs.rows(run) if "learner/num_skipped" in r]
    assert skipped == [0, 0, 1, 1, 1, 2, 3]
    assert {p.name for p in (run / "replay").iterdir()} == {f"step_{n}" for n in (2, 3, 4, 6, 7, 8)}
    before, after = replay(run, 2)
    assert before["metrics"] == after["metrics"]
    assert before["weights_sha256"] == after["weights_sha256"]
    assert float.fromhex(before["metrics"]["learner/grad_norm"]) > 0
    again = subprocess.run(
        [sys.executable, "-m", "cluster.commands.replay", str(run), "--step", "8", "--json"],
        capture_output=True,
        cwd=jobs.ROOT,
    )
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout)
    assert not told["different"]
    assert len(told["after"]["suspects"]) == 64
    none = subprocess.run(
        [sys.executable, "-m", "cluster.commands.replay", str(run), "--step", "5"], capture_output=True, cwd=jobs.ROOT
    )
    assert none.returncode == 2
    assert b"There are: 2, 3, 4, 6, 7, 8." in none.stderr


@pytest.mark.verify
def test_an_advantage_that_breaks_its_contract_ends_the_run_and_is_named(tmp_path):
    log = tmp_path / "log"
    overrides = [*FAKE, f"run.dir={tmp_path}", "run.name=broken", "learner.advantage.use=tests.fakes:Forgetful"]
    assert jobs.run(overrides, log=log, timeout_s=240) == 1
    assert "failed learner.advantage.use = 'tests.fakes:Forgetful', group policy/1/" in said(log)
    assert "rollout 7: the advantage is nan, though its reward 0 is known" in said(log)
    assert "failures of infrastructure" not in said(log), "it would break again"
    assert jobs.summary(tmp_path / "broken")["steps"] == 0


@pytest.mark.verify
def test_an_engine_that_keeps_old_weights_stops_the_run(tmp_path):
    log = tmp_path / "log"
    overrides = [
        *jobs.TINY,
        f"run.dir={tmp_path}",
        "run.name=deaf",
        "engine.use=tests.fakes:DeafEngine",
        "learner.schedule={lr = 0.001}",
    ]
    assert jobs.run([*overrides, "weights.probe_every=1"], log=log, timeout_s=240) == 1
    assert "engine and learner differ by" in said(log)
    assert jobs.summary(tmp_path / "deaf")["steps"] < 20


def said(log) -> str:
    return " ".join(log.read_text().split())


def process_named(job: subprocess.Popen, title: str) -> psutil.Process:
    return next(p for p in jobs.tree(job) if p.cmdline() and p.cmdline()[0].startswith(title))
