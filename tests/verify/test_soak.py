"""Half an hour of iterations: what every process does with its memory. `KANABO_SOAK_S` picks another length."""

from __future__ import annotations

import os
import time
from collections import defaultdict

import numpy as np
import psutil
import pytest

from tests.end_to_end import jobs
from tests.verify.keep import keep

pytestmark = [pytest.mark.verify, pytest.mark.timeout(3600)]

PARTS = {
    "driver": "",
    "rollout actor": "ray::RolloutActor",
    "engine": "VLLM::EngineCore",
    "reward worker": "ray::RewardActor",
    "learner": "ray::LearnerActor",
    "redis-server": "redis-server",
}
SAMPLE_S = 5.0
MOST_MB_PER_HOUR = 150.0


def resident(job) -> dict[str, float]:
    """MB of each part; a part that is being replaced is absent."""
    found: dict[str, float] = {}
    for process in jobs.tree(job):
        try:
            title = os.path.basename((process.cmdline() or [""])[0])
            for part, start in PARTS.items():
                if process.pid == job.pid if part == "driver" else title.startswith(start):
                    found[part] = found.get(part, 0.0) + process.memory_info().rss / 1e6
        except psutil.NoSuchProcess:
            continue
    return found


def test_memory_does_not_grow(tmp_path):
    """The slope of the second half; the first is caches that fill."""
    seconds, log = float(os.environ.get("KANABO_SOAK_S", "1800")), tmp_path / "log"
    overrides = [
        *jobs.TINY, f"run.dir={tmp_path}", "run.name=soak", "learner.steps=1000000", "checkpoint.every_steps=50",
        "learner.schedule={lr = 1e-6}", "learner.drop_zero_variance=false", "tracking.archived_groups=500",
    ]  # fmt: skip
    job = jobs.start(overrides, log=log)
    seen: dict[str, list[tuple[float, float]]] = defaultdict(list)
    try:
        jobs.wait_for_step(tmp_path / "soak", 2, job, log, timeout_s=300)
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            time.sleep(SAMPLE_S)
            assert job.poll() is None, jobs.tail(log)
            for part, megabytes in resident(job).items():
                seen[part].append((time.monotonic() - begun, megabytes))
        job.terminate()
        assert job.wait(90) == 0, jobs.tail(log)
    finally:
        jobs.end(job)
    late = {part: np.array([row for row in rows if row[0] > seconds / 2]) for part, rows in seen.items()}
    slopes = {part: float(np.polyfit(rows[:, 0], rows[:, 1], 1)[0] * 3600) for part, rows in late.items()}
    summary = jobs.summary(tmp_path / "soak")
    keep(
        "soak",
        {
            "seconds": seconds,
            "steps": summary["steps"],
            "mb_per_hour": {part: round(slope, 1) for part, slope in slopes.items()},
            "mb_at_the_end": {part: round(rows[-1][1], 1) for part, rows in seen.items()},
        },
    )
    assert set(slopes) == set(PARTS), "a part was never seen"
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0
    assert max(slopes.values()) < MOST_MB_PER_HOUR, slopes
