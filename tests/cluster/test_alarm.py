"""An alarm that ends a run leaves the last good checkpoint as the newest, and a report with the curves."""

from __future__ import annotations

import json

import pytest

from cluster.observability import alarm_report
from cluster.observability.alarm_report import Alarmed
from cluster.storage import checkpoint
from cluster.types import Manifest
from rewards.monitors import Alarm


@pytest.fixture
def run(tmp_path):
    rows = [{"step": s, "reward/mean": 0.6 + s / 200, "eval/accuracy": 0.5 - s / 400} for s in range(0, 60, 5)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in (10, 20, 30):
        target = tmp_path / "checkpoints" / f"global_step_{step}"
        target.mkdir(parents=True)
        checkpoint.commit(target, Manifest("policy", step, 0, step, (), (), ()))
    return tmp_path


def alarmed(good: int, *, roll_back: bool = True) -> Alarmed:
    said = Alarm("collapse", 35, "eval/accuracy", "accuracy fell.", good)
    return Alarmed(said, ["reward/mean", "reward/none_mean"], roll_back=roll_back)


def steps(run) -> list[int]:
    return [checkpoint.read(path).step for path in checkpoint.committed(run / "checkpoints")]


def test_a_run_goes_back_to_the_last_good_checkpoint(run):
    said = alarm_report.close(run, alarmed(good=25))
    assert steps(run) == [10, 20]
    assert (run / "checkpoints" / "abandoned_step_30").is_dir()
    assert "went back to step 20" in said
    assert "steps 30 are called abandoned_step_N" in said
    assert str(run / "alarm.md") in said


def test_without_a_good_one_it_starts_anew_and_says_so(run):
    assert "no checkpoint of step 5 or before" in alarm_report.close(run, alarmed(good=5))
    assert steps(run) == []


def test_stop_keeps_all(run):
    assert "All checkpoints stay" in alarm_report.close(run, alarmed(good=0, roll_back=False))
    assert steps(run) == [10, 20, 30]


def test_the_report_names_the_metric_and_shows_what_was_watched(run):
    alarm_report.close(run, alarmed(good=20))
    report = (run / "alarm.md").read_text()
    assert "Given away by `eval/accuracy`: accuracy fell." in report
    assert "| `eval/accuracy` | 0.45 | 0.4125 |" in report
    assert "| `reward/mean` | 0.7 | 0.775 |" in report
    assert "none_mean" not in report, "a metric that was never measured has no curve"
    assert (run / "alarm.png").read_bytes().startswith(b"\x89PNG")
