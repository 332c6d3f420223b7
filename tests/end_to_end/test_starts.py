"""Starts that cannot succeed end at once with their cause, and the smallest run fits on two CPUs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from ray.cluster_utils import Cluster

from tests.end_to_end import jobs
from tests.end_to_end.test_failures import said

pytestmark = pytest.mark.job


def test_a_worker_that_fails_in_its_constructor_ends_the_run_with_its_own_trace(tmp_path):
    log, run = tmp_path / "log", tmp_path / "unmade"
    overrides = [*jobs.TINY, f"run.dir={tmp_path}", "run.name=unmade", "engine.use=tests.fakes:UnmakeableEngine"]
    begun = time.monotonic()
    assert jobs.run(overrides, log=log, timeout_s=240) == 1
    assert "failed an actor could not be made: KeyError: 'the weights have no such name'" in said(log)
    assert "failures of infrastructure" not in said(log), "it would fail again"
    trace = (run / "error.txt").read_text()
    assert "fakes.py" in trace
    assert "in _load" in trace
    assert "KeyError: 'the weights have no such name'" in trace
    print(f"SEEN {time.monotonic() - begun:.0f} s")


@pytest.fixture(params=[1, 2])
def head(request: pytest.FixtureRequest) -> Iterator[tuple[int, Cluster]]:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    arguments = {"num_cpus": request.param, "env_vars": {"PYTHONPATH": str(jobs.ROOT)}}
    made = Cluster(initialize_head=True, head_node_args=arguments)
    try:
        yield request.param, made
    finally:
        made.shutdown()


@pytest.mark.verify
def test_the_quickstart_runs_on_a_head_with_two_cpus_and_one_is_refused_with_the_remedy(head, tmp_path):
    cpus, cluster = head
    log, run = tmp_path / "log", tmp_path / "small"
    overrides = [f"run.dir={tmp_path}", "run.name=small", "learner.steps=2", "evaluation.max_tasks=16"]
    code = jobs.run(overrides, log=log, timeout_s=400, RAY_ADDRESS=cluster.address)
    if cpus == 2:
        assert code == 0, jobs.tail(log)
        assert jobs.summary(run)["steps"] == 2
        return
    assert code == 2, jobs.tail(log)
    assert "the cluster cannot hold the run" in said(log)
    assert "Lower rollout.workers" in said(log)
    assert not (run / "metrics.jsonl").exists()
