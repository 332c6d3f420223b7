"""An environment that holds the interpreter lock, or ends its process, costs its own group."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from cluster.buffer import Buffer, Limits
from cluster.buffer.witness import Witness
from cluster.process import marks
from cluster.types.events import RolloutReport
from tests.cluster.pipeline import Pipeline

WORKER = """
import asyncio, os, re, sys, time
from pathlib import Path
from cluster.buffer import Buffer
from cluster.process.foreign_loops import ForeignLoops
from cluster.process.marks import Marks

async def main():
    buffer = Buffer(sys.argv[1], sys.argv[2])
    epoch = sys.argv[3]
    loops = ForeignLoops(marks=Marks(Path(sys.argv[4])))
    claims = [buffer.claim("policy", worker="rollout-0", engine=epoch, timeout_s=1) for _ in range(3)]
    how = sys.argv[5]

    async def healthy(call):
        await asyncio.sleep(60)

    async def guilty(call):
        await asyncio.sleep(0.3)
        if how == "loop":
            re.match("(a+)+$", "a" * 40 + "b")
        if how == "thread":
            await asyncio.to_thread(re.match, "(a+)+$", "a" * 40 + "b")
        os._exit(1)

    works = (guilty, healthy, healthy)
    await asyncio.gather(*(loops.run(c, w, 90.0, late="late") for c, w in zip(claims, works)))

asyncio.run(main())
"""


@pytest.fixture
def claims(buffer: Buffer) -> str:
    """Version of an engine that may claim."""
    pipeline = Pipeline(buffer, Limits(groups_per_step=8, max_staleness=0))
    return pipeline.engine


def witnessed(buffer: Buffer, engine: str, tmp_path, how: str) -> subprocess.Popen:
    """Run a worker whose first group misbehaves until its witness returns."""
    file = tmp_path / "marks"
    url, run, _ = buffer.__reduce__()[1]
    worker = subprocess.Popen([sys.executable, "-c", WORKER, url, run, engine, str(file), how])
    while not file.exists():
        time.sleep(0.05)
    try:
        watching = threading.Thread(target=Witness(file, worker.pid, "rollout-0", buffer, 1.0).watch, daemon=True)
        watching.start()
        worker.wait(30)
        watching.join(10)
        assert not watching.is_alive()
    finally:
        worker.kill()
        worker.wait()
    return worker


@pytest.mark.parametrize("how", ["loop", "thread"])
def test_the_group_whose_environment_holds_the_interpreter_is_dropped_and_the_death_explained(
    buffer: Buffer, claims: str, tmp_path, how: str
):
    worker = witnessed(buffer, claims, tmp_path, how)
    assert worker.returncode == -9
    assert buffer.summary("policy")["groups_dropped"] == {"data_failure": 1, "worker_died": 2}
    (report,) = [event for _, event in buffer.events() if isinstance(event, RolloutReport)]
    assert report.data_failures == 1
    assert "held the interpreter lock of rollout-0" in report.last_failure
    assert buffer.forsake("policy", "rollout-0", blame=True) == {"rollout-0"}
    again = [buffer.claim("policy", worker="rollout-1", engine=claims, timeout_s=1) for _ in range(3)]
    assert [claim.task for claim in again if claim] == [1, 2, 3], "the guilty task does not return, the others do"


def test_deaths_inside_a_step_are_counted_by_task(buffer: Buffer, claims: str, tmp_path):
    for deaths in (1, 2):
        worker = witnessed(buffer, claims, tmp_path, "exit")
        assert worker.returncode == 1
        buffer.forsake("policy", "rollout-0", blame=True)
        (tmp_path / "marks").unlink(missing_ok=True)
        first, second = (buffer.claim("policy", worker="rollout-1", engine=claims, timeout_s=1) for _ in range(2))
        assert first is not None
        assert second is not None
        assert (first.task, buffer.deaths_over(first), buffer.deaths_over(second)) == (0, deaths, 0)
        buffer.forsake("policy", "rollout-1")


def test_a_process_that_is_stopped_is_not_ended(buffer: Buffer, claims: str, tmp_path):
    script = (
        "import time, sys; from pathlib import Path; from cluster.process.marks import Marks\n"
        "with Marks(Path(sys.argv[1])).during(b'-'): time.sleep(60)"
    )
    file = tmp_path / "marks"
    worker = subprocess.Popen([sys.executable, "-c", script, str(file)])
    try:
        while not file.exists() or not marks.read(file)[1]:
            time.sleep(0.05)
        os.kill(worker.pid, 19)
        watching = threading.Thread(target=Witness(file, worker.pid, "rollout-0", buffer, 0.3).watch, daemon=True)
        watching.start()
        watching.join(1.5)
        assert watching.is_alive()
        assert worker.poll() is None
    finally:
        worker.kill()
        worker.wait()
    watching.join(5)
    assert not watching.is_alive()
