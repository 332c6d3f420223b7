"""A full disk takes no line of a run's records, and loses none."""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.observability.metrics import Lines, Recorder, read


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes: a disk that is full, for every user and file system."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 1, 30, 31, 32, 100])
def test_lines_that_a_full_disk_does_not_take_are_written_later_whole_and_in_order(tmp_path, size, caplog):
    lines = Lines(tmp_path / "rows.jsonl")
    said = [json.dumps({"step": step, "text": "x" * 10}) for step in range(12)]
    for line in said[:2]:
        lines.write(line)
    before = (tmp_path / "rows.jsonl").stat().st_size
    with caplog.at_level(logging.WARNING), limited(before + size):
        for line in said[2:10]:
            lines.write(line)
    warnings = [r.getMessage() for r in caplog.records]
    assert len(warnings) == 1, "it is said once"
    assert "are kept until there is room" in warnings[0]
    for line in said[10:]:
        lines.write(line)
    lines.close()
    assert (tmp_path / "rows.jsonl").read_text().splitlines() == said


def test_another_error_than_a_full_disk_is_raised(tmp_path):
    lines = Lines(tmp_path / "rows.jsonl")
    lines.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        lines.write("{}")


def test_a_recorder_goes_on_while_the_disk_is_full_and_closes(tmp_path):
    """In a process of its own: TensorBoard's thread ends at the first value that is not written."""
    script = """
import resource, sys, time
from pathlib import Path
from cluster.config import TrackingSection
from cluster.observability.metrics import Recorder
recorder = Recorder(Path(sys.argv[1]), TrackingSection(tensorboard=True), "run", {})
recorder.record(0, {"reward/mean": 0.0})
resource.setrlimit(resource.RLIMIT_FSIZE, (60, resource.RLIM_INFINITY))
for step in range(1, 400):
    recorder.record(step, {"reward/mean": 0.5})
    recorder.sample({"step": step, "text": "x" * 50})
    recorder.alarm({"step": step, "message": "x" * 50})
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
recorder.record(400, {"reward/mean": 1.0})
recorder.close()
print("closed")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True, text=True, timeout=120, env=os.environ, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout.split() == ["closed"], done.stderr[-2000:]
    assert [row["step"] for row in read(tmp_path)] == list(range(401))


def test_rows_are_appended_to_those_of_an_earlier_life(tmp_path):
    from cluster.config import TrackingSection

    for life in range(2):
        recorder = Recorder(tmp_path, TrackingSection(tensorboard=False), "run", {})
        recorder.record(life, {"reward/mean": 0.5})
        recorder.close()
    assert [row["step"] for row in read(tmp_path)] == [0, 1]
