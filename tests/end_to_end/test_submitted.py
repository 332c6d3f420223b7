"""A job submitted to a cluster of this machine: what Ray shows of it."""

from __future__ import annotations

import time

import pytest
import ray
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.placement.job_metadata import tell_job
from tests.end_to_end import jobs
from tests.end_to_end.test_failures import FAKE
from tests.end_to_end.test_pipeline import free_ports

pytestmark = [pytest.mark.job, pytest.mark.verify]


def test_the_runs_name_recipe_and_console_are_in_the_jobs_metadata(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("PYTHONPATH", str(jobs.ROOT))
    (port,) = free_ports(1)
    head = ray.init("local", num_cpus=4, include_dashboard=True, dashboard_port=port, log_to_driver=False)
    try:
        client = JobSubmissionClient(f"http://{head.dashboard_url}")
        options = [*FAKE, f"run.dir={tmp_path}", "run.name=submitted", "learner.steps=2"]
        command = jobs.command("quickstart.toml", options)
        id = client.submit_job(entrypoint=" ".join(command), metadata={"owner": "me"})
        until = time.monotonic() + 200
        while (status := client.get_job_status(id)) not in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED):
            assert time.monotonic() < until, client.get_job_logs(id)
            time.sleep(1)
        assert status == JobStatus.SUCCEEDED, client.get_job_logs(id)
        told = client.get_job_info(id).metadata
        assert told is not None
        assert (told["owner"], told["run"]) == ("me", "submitted")
        assert told["recipe"].endswith("deploy/recipes/quickstart.toml")
        assert told["console"].startswith("http://127.0.0.1:")
        tell_job({"run": "none"})  # this process is no job: nothing to tell
    finally:
        ray.shutdown()
