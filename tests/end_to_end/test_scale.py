"""Workers that join and leave a running job."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.buffer.connection import Connection
from cluster.commands.run_lookup import connected
from tests.end_to_end import jobs
from tests.end_to_end.test_failures import FAKE
from tests.verify.keep import keep

pytestmark = pytest.mark.job


def scale(run: Path, *wishes: str, wait_s: float) -> None:
    command = [sys.executable, "-m", "cluster.commands.scale", str(run), *wishes, "--wait", str(wait_s)]
    done = subprocess.run(command, cwd=jobs.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def workers_of(connection: Connection) -> set[str]:
    """Who has claimed a group that is still stored."""
    keys = connection.redis.keys(f"{connection.prefix}group:*")
    return {(connection.redis.hget(key, "worker") or b"").decode() for key in keys}


def one_two_one(tmp_path: Path, overrides: list[str], *, wait_s: float) -> float:
    """A run whose second engine joins in the middle and leaves again; seconds from the wish to its first claim."""
    log, run = tmp_path / "log", tmp_path / "scaled"
    options = [*overrides, f"run.dir={tmp_path}", "run.name=scaled", "learner.steps=100000"]
    process = jobs.start(options, log=log)
    try:
        jobs.wait_for_step(run, 3, process, log, timeout_s=300)
        begun = time.monotonic()
        scale(run, "rollout=+1", wait_s=wait_s)
        with connected(run) as connection:
            while "rollout-1" not in workers_of(connection):
                assert time.monotonic() < begun + wait_s, jobs.tail(log)
                time.sleep(0.05)
        joined_s = time.monotonic() - begun
        scale(run, "rollout=-1", "reward=2", wait_s=wait_s)
        last = max(r["step"] for r in jobs.rows(run) if "learner/step_s" in r)
        jobs.wait_for_step(run, last + 3, process, log, timeout_s=120)
        process.terminate()
        assert process.wait(60) == 0, jobs.tail(log)
    finally:
        jobs.end(process)
    summary = jobs.summary(run)
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0
    assert not {"lease_expired", "worker_died"} & set(summary["groups_dropped"]), (
        "the one that left had something in hand"
    )
    assert summary["max_staleness_observed"] <= 1
    assert "died" not in log.read_text()
    return joined_s


def wait_for_workers(run: Path, count: int, process: subprocess.Popen, log: Path, timeout_s: float) -> None:
    """Until so many rollout workers were there at the last step."""
    begun = time.monotonic()
    while [r["workers/num_rollout"] for r in jobs.rows(run) if "workers/num_rollout" in r][-1:] != [count]:
        assert process.poll() is None, jobs.tail(log)
        assert time.monotonic() < begun + timeout_s, f"not {count} workers:\n{jobs.tail(log)}"
        time.sleep(0.5)


@pytest.mark.verify
@pytest.mark.timeout(600)
def test_a_starved_learner_gets_workers_and_gives_them_back(tmp_path):
    log, run, slow = tmp_path / "log", tmp_path / "starved", tmp_path / "slow"
    slow.touch()
    process = jobs.start(
        [
            *FAKE, "engine.use=tests.fakes:MoodyEngine", f"engine.options.while_there={slow}", f"run.dir={tmp_path}",
            "run.name=starved", "learner.steps=100000", "rollout.concurrent_groups=4",
            "autoscaling.rollout.max_workers=3", "autoscaling.rollout.times=2",
            "autoscaling.rollout.shrink_below_frac=0.35", "autoscaling.rollout.grow_above_frac=0.45",
        ],
        log=log,
    )  # fmt: skip
    try:
        jobs.wait_for_step(run, 1, process, log, timeout_s=200)
        wait_for_workers(run, 3, process, log, timeout_s=120)
        slow.unlink()
        wait_for_workers(run, 1, process, log, timeout_s=120)
        process.terminate()
        assert process.wait(60) == 0, jobs.tail(log)
    finally:
        jobs.end(process)
    summary = jobs.summary(run)
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0
    assert max(r.get("workers/num_rollout", 0) for r in jobs.rows(run)) == 3, "never more than the most"
    assert "died" not in log.read_text()


@pytest.mark.verify
def test_a_worker_joins_and_leaves(tmp_path):
    one_two_one(tmp_path, FAKE, wait_s=120)


@pytest.mark.verify
@pytest.mark.timeout(900)
def test_a_real_engine_joins_and_leaves(tmp_path):
    joined_s = one_two_one(tmp_path, [*jobs.TINY, "learner.drop_zero_variance=false"], wait_s=240)
    assert jobs.summary(tmp_path / "scaled")["logprob_diff_max_nats"] < 1e-3
    keep("join", {"seconds_from_wish_to_first_claim": joined_s})
