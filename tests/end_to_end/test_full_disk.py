"""A job whose disk is full waits, and ends soon when it is asked to."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end import jobs
from tests.end_to_end.test_failures import FAKE

pytestmark = pytest.mark.job


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 MB, which is just enough to start."""
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def fill(path: Path) -> None:
    """Take all the room that there is."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))


@pytest.mark.verify
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_the_wait_for_a_full_disk_within_30_seconds(tmp_path: Path, small_disk: Path, number):
    log, run = tmp_path / "log", small_disk / "full"
    overrides = [*FAKE, f"run.dir={small_disk}", "run.name=full", "learner.steps=100000", "checkpoint.every_steps=0"]
    process = jobs.start([*overrides, "tracking.archived_groups=0", "engine.options={delay_s=0.1}"], log=log)
    try:
        jobs.wait_for_step(run, 2, process, log, timeout_s=200)
        fill(small_disk / "filler")
        until = time.monotonic() + 60
        while "Trying again every" not in log.read_text():
            assert process.poll() is None, jobs.tail(log)
            assert time.monotonic() < until, jobs.tail(log)
            time.sleep(0.2)
        started, asked = jobs.tree(process), time.monotonic()
        process.send_signal(number)
        code = process.wait(60)
        took_s = time.monotonic() - asked
        left = jobs.left_after(started, seconds=20)
    finally:
        jobs.end(process)
    said = " ".join(log.read_text().split())
    assert took_s < 30, said[-2000:]
    assert code == 1
    assert "failed asked to stop while nothing can be saved" in said
    assert "No space left on device" in said
    assert "Traceback" not in said
    assert not left, "processes outlive the job"
