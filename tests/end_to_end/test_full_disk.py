"""A job whose disk is full waits, and ends soon when it is asked to."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.storage import checkpoint
from tests.end_to_end import jobs
from tests.end_to_end.test_failures import FAKE

pytestmark = pytest.mark.job


RANKS = ["learner.ranks=2", "learner.zero_stage=3"]
POLICIES = ["policies.b.workers=1", "evaluation.max_tasks=8"]


@contextlib.contextmanager
def mounted(path: Path, size: str) -> Iterator[Path]:
    """A file system of that size."""
    path.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 MB, which is just enough to start."""
    with mounted(tmp_path / "disk", "256m") as path:
        yield path


@contextlib.contextmanager
def mounted_in_run(path: Path, size: str, process: subprocess.Popen) -> Iterator[Path]:
    """A file system in the directory of a run that has just begun: a run takes no directory that holds anything."""
    run = next(parent for parent in path.parents if parent.name in ("waits", "stops"))
    try:
        until = time.monotonic() + 120
        while not (run / "id").exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        with mounted(path, size) as small:
            yield small
    finally:
        jobs.end(process)


def wait_until_said(log: Path, words: str, process: subprocess.Popen, timeout_s: float = 200) -> None:
    until = time.monotonic() + timeout_s
    while words not in " ".join(log.read_text().split()):
        assert process.poll() is None, jobs.tail(log)
        assert time.monotonic() < until, jobs.tail(log)
        time.sleep(0.2)


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
        wait_until_said(log, "Trying again every", process, 60)
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


@pytest.mark.verify
@pytest.mark.parametrize(
    ("folder", "options", "what"),
    [
        ("checkpoints", RANKS, "the checkpoint of step 2 cannot be written"),
        ("checkpoints", POLICIES, "the checkpoint of step 2 cannot be written"),
        ("groups", [], "the archive of step 2 cannot be written"),
        ("replay", [*RANKS, "checkpoint.record_every_steps=2"], "what replays step 2 cannot be written"),
    ],
    ids=["ranks", "policies", "archive", "replay"],
)
def test_what_a_full_disk_does_not_take_is_written_once_there_is_room(tmp_path: Path, folder, options, what):
    log, run = tmp_path / "log", tmp_path / "waits"
    overrides = [*FAKE, f"run.dir={tmp_path}", "run.name=waits", "learner.steps=4", "checkpoint.every_steps=2"]
    process = jobs.start([*overrides, *options], log=log)
    with mounted_in_run(run / folder, "64k", process) as small:
        try:
            wait_until_said(log, what, process)
            subprocess.run(["mount", "-o", "remount,size=256m", small], check=True)
            assert jobs.finish(process, log, 200) == 0, jobs.tail(log)
        finally:
            jobs.end(process)
        summary = jobs.summary(run)
        assert summary["steps"] == 4
        assert summary["groups_lost"] == summary["groups_trained_twice"] == 0
        last = {name: value for row in jobs.rows(run) for name, value in row.items()}
        assert last["failures/num_infrastructure"] == 0
        assert checkpoint.read(checkpoint.usable(run / "checkpoints")[-1]).step == 4


@pytest.mark.verify
@pytest.mark.parametrize(
    ("folder", "options"),
    [("checkpoints", RANKS), ("checkpoints/saving", POLICIES)],
    ids=["ranks", "part of a policy"],
)
def test_a_stop_ends_the_wait_of_all_ranks_and_policies(tmp_path: Path, folder, options):
    log, run = tmp_path / "log", tmp_path / "stops"
    overrides = [*FAKE, f"run.dir={tmp_path}", "run.name=stops", "learner.steps=1000", "checkpoint.every_steps=2"]
    process = jobs.start([*overrides, *options], log=log)
    with mounted_in_run(run / folder, "64k", process):
        try:
            wait_until_said(log, "of step 2 cannot be written", process)
            started, asked = jobs.tree(process), time.monotonic()
            process.send_signal(signal.SIGINT)
            code = process.wait(60)
            took_s = time.monotonic() - asked
            left = jobs.left_after(started, seconds=20)
        finally:
            jobs.end(process)
    said = " ".join(log.read_text().split())
    assert took_s < 30, said[-2000:]
    assert code == 1
    assert "failed asked to stop while" in said
    assert "Free space" in said
    assert "Traceback" not in said
    assert not left, "processes outlive the job"
