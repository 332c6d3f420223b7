"""The trace of a whole run: every worker is in it, spans nest, and their times add up with the run's metrics."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.end_to_end import jobs
from tests.trace_rows import complete_events, overlaps

pytestmark = [pytest.mark.job, pytest.mark.verify]

FAKE = [*jobs.TINY, "engine.use=tests.fakes:FakeEngine", "learner.drop_zero_variance=false"]
STEPS = 30
"""Some seconds: what a worker did in its last second may be missing."""


def test_a_trace_shows_what_every_worker_of_a_run_did(tmp_path):
    log, run = tmp_path / "log", tmp_path / "traced"
    overrides = [*FAKE, f"run.dir={tmp_path}", "run.name=traced", f"learner.steps={STEPS}"]
    assert jobs.run(overrides, log=log, timeout_s=240) == 0, jobs.tail(log)
    command = [sys.executable, "-m", "cluster.commands.trace", str(run)]
    subprocess.run(command, check=True, cwd=jobs.ROOT)
    picture = json.loads((run / "trace.json").read_text())
    pids = {e["pid"]: e["args"]["name"] for e in picture["traceEvents"] if e["name"] == "process_name"}
    assert {"driver", "learner", "rollout-0", "reward-0"} <= set(pids.values())
    events = complete_events(picture)
    assert not overlaps(events)

    def of(worker: str, name: str) -> list[dict]:
        return [e for e in events if pids[e["pid"]].startswith(worker) and e["name"] == name]

    rows = {row["step"]: row for row in jobs.rows(run) if "learner/step_s" in row}
    steps = {event["args"]["about"]: event for event in of("learner", "step")}
    assert set(steps) == {f"step {step}" for step in range(1, STEPS + 1)}
    for step, row in rows.items():
        assert steps[f"step {step}"]["dur"] / 1e6 == pytest.approx(row["learner/step_s"], abs=1e-3)
    stages = [e for name in ("assemble", "pack", "optimize", "publish") for e in of("learner", name)]
    assert sum(e["dur"] for e in stages) == pytest.approx(sum(e["dur"] for e in steps.values()), abs=1e3)
    sampled = {line["args"]["about"] for line in of("rollout", "group")}
    scored = {line["args"]["about"].split()[0] for line in of("reward", "score")}
    summary = jobs.summary(run)
    assert len(sampled & scored) > summary["groups_trained"] / 2
    assert len(sampled | scored) <= summary["groups_claimed"]
    for group in of("rollout", "group"):
        parts = [e for name in ("sample", "put") for e in of("rollout", name) if e["args"] == group["args"]]
        assert sum(e["dur"] for e in parts) <= group["dur"]
    assert of("rollout", "weights"), "the engine took weights"
