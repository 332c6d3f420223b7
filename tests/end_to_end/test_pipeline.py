"""The whole pipeline in processes of its own: what a user starts, kills and continues."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.buffer import ReplicaCounts
from cluster.buffer.scaling import apply
from cluster.commands.run_lookup import live_url, run_id
from cluster.observability.summary import SUMMARY_KEYS
from cluster.storage import group_archive
from tests.end_to_end import jobs
from tests.metrics_page import unexplained

pytestmark = pytest.mark.job

REAL = [*jobs.TINY, "learner.drop_zero_variance=false", "weights.probe_every=1"]
SEVERAL = (
    'evaluations=[{name = "several", every_steps = 2, max_tasks = 8, samples = 4, tasks = {use = "addition", options = '
    '{num_evaluation = 12}}, rewards = [{use = "numeric"}], vote = "self_prm", by = "numeric", reward = "exact"}]'
)
FAKE = [*jobs.TINY, "engine.use=tests.fakes:FakeEngine", "learner.drop_zero_variance=false"]


def archived_groups(directory) -> list[group_archive.GroupSummary]:
    """What the console shows of trained groups once they are trimmed."""
    return [glance for path in group_archive.files(directory / "groups") for glance in group_archive.index(path)]


def test_a_run_with_a_real_engine_leaves_what_it_promises(tmp_path):
    log = tmp_path / "log"
    overrides = [
        *REAL, f"run.dir={tmp_path}", "run.name=pipeline", "learner.steps=6", "evaluation.every_steps=3", SEVERAL
    ]  # fmt: skip
    assert jobs.run(overrides, log=log, timeout_s=240) == 0, jobs.tail(log)
    directory = tmp_path / "pipeline"
    summary = jobs.summary(directory)
    assert tuple(summary) == SUMMARY_KEYS
    assert summary["steps"] == 6
    assert summary["groups_lost"] == 0
    assert summary["groups_trained_twice"] == 0
    assert summary["groups_trained"] + sum(summary["groups_dropped"].values()) <= summary["groups_claimed"]
    assert 0 <= summary["max_staleness_observed"] <= 1
    assert 0 < summary["learner_waiting_frac"] < 1
    assert summary["versions_published"] == 7, "the initial weights and six more"
    assert summary["logprob_diff_max_nats"] < 1e-3, "the engine samples with the learner's weights"
    for name in ("config.toml", "metrics.jsonl", "samples.jsonl", "curves.png", "tensorboard"):
        assert (directory / name).exists(), name
    sample = json.loads((directory / "samples.jsonl").read_text().splitlines()[0])
    assert {"step", "task", "text", "scores", "reward", "advantage"} <= set(sample)
    named = {r["step"]: r for r in jobs.rows(directory) if "eval/several/accuracy" in r}
    assert set(named) == {0, 2, 4, 6}
    for row in named.values():
        assert 0 <= row["eval/several/accuracy"] <= row["eval/several/vote_accuracy"] == row["eval/several/pass_at_k"]
        assert row["eval/several/num_without_vote"] == 0
    assert {r["step"] for r in jobs.rows(directory) if "eval/accuracy" in r} == {0, 3, 6}
    assert "console: http://127.0.0.1:" in log.read_text()
    assert not unexplained(name for row in jobs.rows(directory) for name in row), "docs/metrics.md lacks them"
    assert len(archived_groups(directory)) == summary["groups_trained"]
    path = group_archive.files(directory / "groups")[-1]
    opened = group_archive.read(path, group_archive.index(path)[0])
    for rollout, learners in zip(opened.group.rollouts, opened.logprobs, strict=True):
        np.testing.assert_array_equal(np.isfinite(learners), rollout.loss_mask, "the learner's own log-probs are kept")
    checkpoint = directory / "checkpoints" / "global_step_6"
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    ids = AutoTokenizer.from_pretrained(checkpoint)("12+34=", return_tensors="pt", add_special_tokens=False)
    assert model(**ids).logits.shape[1] == 6


def request(run: Path, *wishes: str) -> None:
    """As `kanabo scale RUN …`, without the seconds that a command takes to start."""
    url = live_url(run)
    assert url is not None
    counts = ReplicaCounts(url, run_id(run))
    apply(counts, list(wishes))
    counts.close()


def kill_the_driver(tmp_path, overrides: list[str], *, at_step: int) -> dict:
    """SIGKILL in mid-run, nothing left behind, then the same command again: the summary of the whole."""
    log = tmp_path / "log"
    overrides = [*overrides, f"run.dir={tmp_path}", "run.name=killed", "tracking.live_table=false"]
    process = jobs.start(overrides, log=log)
    try:
        jobs.wait_for_step(tmp_path / "killed", at_step, process, log, timeout_s=400)
        started = jobs.tree(process)
        memory = jobs.shared_memory(started, tmp_path / "killed")
        request(tmp_path / "killed", "reward=2")
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
        left = jobs.left_after(started, seconds=20)
        left_in_memory = jobs.left_of(memory)
    finally:
        jobs.end(process)
    assert not left, "processes outlive a killed driver"
    assert len(memory) >= 2, "weights are published, and fetched, in shared memory"
    assert not left_in_memory, "shared memory outlives a killed driver"
    process = jobs.start(overrides, log=log)
    try:
        jobs.wait_for_step(tmp_path / "killed", at_step + 1, process, log, timeout_s=400)
        memory = jobs.shared_memory(jobs.tree(process), tmp_path / "killed")
    finally:
        code = jobs.finish(process, log, timeout_s=600)
    assert code == 0, jobs.tail(log)
    assert "reward=2 was requested in an earlier life of this run and is applied again" in log.read_text()
    assert not jobs.left_of(memory), "shared memory outlives a job that ended well"
    summary = jobs.summary(tmp_path / "killed")
    assert summary["groups_lost"] == 0
    assert summary["groups_trained_twice"] == 0
    assert summary["max_staleness_observed"] <= 1
    steps = [r["step"] for r in jobs.rows(tmp_path / "killed") if "learner/step_s" in r]
    assert steps == list(range(1, summary["steps"] + 1)), "a step is missing or was recorded twice"
    seen = archived_groups(tmp_path / "killed")
    assert len({g.id for g in seen}) == len(seen) == min(summary["groups_trained"], 2000)
    assert all(g.means for g in seen), "the evidence of a repeated cut is kept too"
    return summary


def test_a_run_whose_driver_is_killed_continues(tmp_path):
    summary = kill_the_driver(tmp_path, [*FAKE, "learner.steps=12", "checkpoint.every_steps=2"], at_step=5)
    assert summary["steps"] == 12


@pytest.mark.verify
@pytest.mark.timeout(1200)
def test_the_quickstart_reaches_its_figure_though_its_driver_is_killed(tmp_path):
    summary = kill_the_driver(tmp_path, ["checkpoint.every_steps=20"], at_step=50)
    assert summary["eval_accuracy_initial"] <= 0.55
    assert summary["eval_accuracy_final"] >= 0.80
    assert summary["logprob_diff_max_nats"] < 1e-3


@pytest.mark.verify
def test_two_learner_ranks_with_zero3_and_three_engines_of_which_one_is_real(tmp_path):
    log = tmp_path / "log"
    overrides = [
        *jobs.TINY,
        f"run.dir={tmp_path}",
        "run.name=ranks",
        "engine.use=tests.fakes:one_real_engine",
        "rollout.workers=3",
        "learner.ranks=2",
        "learner.zero_stage=3",
        "learner.steps=4",
    ]
    code = jobs.run(overrides, log=log, timeout_s=400, KANABO_TEST_MARKER=str(tmp_path / "marker"))
    assert code == 0, jobs.tail(log)
    summary = jobs.summary(tmp_path / "ranks")
    assert summary["steps"] == 4
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0
    assert summary["logprob_diff_max_nats"] < 1e-3, "the real engine must follow the gathered weights"
    AutoModelForCausalLM.from_pretrained(tmp_path / "ranks" / "checkpoints" / "global_step_4")


def test_a_mistake_is_named_before_anything_starts(tmp_path):
    """One of those in tests/cluster/test_check.py, by a process: its exit code, and no trace."""
    log = tmp_path / "log"
    code = jobs.run([f"run.dir={tmp_path}", "run.name=bad", "rewards.0.use=exactt"], log=log, timeout_s=60)
    assert code == 2
    said = " ".join(log.read_text().split())
    assert "rewards[0].use" in said
    assert "Did you mean 'exact'" in said
    assert "Traceback" not in said
    assert not (tmp_path / "bad").exists()


REWARD = '''
from cluster.types import Scores
from rewards.base import Reward


class FirstDigit(Reward):
    """Arrives with the job, from outside the repository."""

    async def score(self, group, services):
        return Scores.of([float(r.text[:1] == group.task.answer[:1]) for r in group.rollouts])
'''


@pytest.mark.verify
def test_ray_job_submit_runs_with_a_reward_from_outside_the_repository(tmp_path):
    from ray.job_submission import JobStatus, JobSubmissionClient

    module = tmp_path / "outside_reward"
    module.mkdir()
    (module / "__init__.py").write_text(REWARD)
    ray = os.path.join(os.path.dirname(sys.executable), "ray")
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": tempfile.mkdtemp(prefix="ray")}
    port, dashboard = free_ports(2)  # and a short folder: a socket's path may have 107 bytes
    head = subprocess.Popen(
        [ray, "start", "--head", "--block", "--num-cpus=8", f"--port={port}", f"--dashboard-port={dashboard}",
         "--disable-usage-stats"],
        env=environment, stdout=(tmp_path / "head.log").open("w"), stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        client = _client(JobSubmissionClient, f"http://127.0.0.1:{dashboard}")
        overrides = [*FAKE, "run.name=submitted", "learner.steps=4", "rewards.0.use=outside_reward:FirstDigit"]
        job = client.submit_job(
            entrypoint="python -m cluster.run deploy/recipes/quickstart.toml " + " ".join(f"'{o}'" for o in overrides),
            runtime_env={
                "working_dir": str(jobs.ROOT),
                "py_modules": [str(module)],
                "excludes": [".venv", ".git", "runs"],
                "env_vars": {
                    "KANABO_RUNS": str(tmp_path),
                    "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}",
                },
            },
        )
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            status = client.get_job_status(job)
            if status.is_terminal():
                break
            time.sleep(1)
        assert status == JobStatus.SUCCEEDED, client.get_job_logs(job)[-3000:]
    finally:
        jobs.end(head)
        shutil.rmtree(environment["RAY_TMPDIR"], ignore_errors=True)
    assert jobs.summary(tmp_path / "submitted")["steps"] == 4


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _client(factory, address):
    deadline = time.monotonic() + 60
    while True:
        try:
            return factory(address)
        except (ConnectionError, RuntimeError):
            assert time.monotonic() < deadline, "the head node's dashboard did not come up"
            time.sleep(1)
