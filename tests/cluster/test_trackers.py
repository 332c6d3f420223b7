"""Trackers beside metrics.jsonl: what they are told, in their own process or this one, and that none ends a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cluster.config import parse
from cluster.errors import ConfigError
from cluster.observability import metrics
from cluster.observability.trackers import Tracker, trackers

TOLD: list[tuple[int, dict]] = []
MLFLOW = """
import json, os
class mlflow: pass
root = None
def set_tracking_uri(uri):
    global root
    root = os.path.dirname(uri.removeprefix("sqlite:///"))
def set_experiment(name): note("experiment", name)
def start_run(run_name): note("run", run_name)
def log_params(values): note("recipe", values)
def log_metrics(values, step):
    if values.get("reward/mean") == 7:
        raise ValueError("no sevens")
    note(step, values)
def end_run(): note("end", None)
def note(*what):
    with open(os.path.join(root, "told"), "a") as file:
        file.write(json.dumps(what) + "\\n")
"""
"""A package of MLflow's name that notes what it is told."""


class Mine(Tracker):
    fails: bool = False

    def open(self, directory, name, config):
        return self

    def log(self, step, values):
        if self.fails:
            raise OSError("gone")
        TOLD.append((step, dict(values)))

    def close(self) -> None:
        TOLD.append((-1, {}))


def recorder(directory: Path, *asked: dict) -> metrics.Recorder:
    settings = parse({"tracking": {"tensorboard": False, "trackers": list(asked)}, "seed": 5})
    return metrics.Recorder(directory, settings.tracking, "run", {"seed": 5, "model": {"path": "smollm2"}})


def test_values_reach_each_tracker_and_one_that_fails_is_left_out(tmp_path, caplog):
    TOLD.clear()
    name = f"{__name__}:Mine"
    written = recorder(tmp_path, {"use": name, "options": {"fails": True}}, {"use": name})
    written.record(1, {"reward/mean": 0.5, "loss/policy": float("nan")})
    written.record(2, {"reward/mean": 0.6})
    written.close()
    assert TOLD == [
        (1, {"reward/mean": 0.5, "critic/rewards/mean": 0.5}),
        (2, {"reward/mean": 0.6, "critic/rewards/mean": 0.6}),
        (-1, {}),
    ]
    assert caplog.text.count("Mine takes no more values") == 1
    assert len(metrics.read(tmp_path)) == 2


def python_with(directory: Path, module: str) -> str:
    """A Python that imports `mlflow` from a directory."""
    (directory / "mlflow.py").write_text(module)
    python = directory / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={directory} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return str(python)


def test_a_package_of_another_python_gets_the_recipe_and_the_values(tmp_path):
    python = python_with(tmp_path, MLFLOW)
    asked = {"use": "mlflow", "options": {"python": python, "project": "sums"}}
    (tracker,) = trackers(parse({"tracking": {"tensorboard": False, "trackers": [asked]}}).tracking)
    tracker.check()
    written = recorder(tmp_path / "run", asked)
    written.record(3, {"reward/mean": 0.5})
    written.close()
    told = [json.loads(line) for line in (tmp_path / "run" / "mlflow" / "told").read_text().splitlines()]
    assert told == [
        ["experiment", "sums"], ["run", "run"], ["recipe", {"seed": "5", "model.path": "smollm2"}],
        [3, {"reward/mean": 0.5, "critic/rewards/mean": 0.5}], ["end", None],
    ]  # fmt: skip


def test_a_package_that_dies_costs_its_values_alone(tmp_path):
    written = recorder(tmp_path / "run", {"use": "mlflow", "options": {"python": python_with(tmp_path, MLFLOW)}})
    written.record(1, {"reward/mean": 7.0})
    for step in range(2, 50):
        written.record(step, {"reward/mean": 0.5})
    written.close()
    assert len(metrics.read(tmp_path / "run")) == 49
    assert "no sevens" in (tmp_path / "run" / "mlflow" / "log").read_text()


def test_a_package_that_is_not_there_or_cannot_begin_is_refused(tmp_path):
    broken = python_with(tmp_path, "def set_tracking_uri(uri): raise SystemExit(3)\n")
    asked = {"use": "mlflow", "options": {"python": broken}}
    with pytest.raises(ConfigError, match=r"mlflow ended with code 3; .*/mlflow/log says why"):
        recorder(tmp_path / "run", asked)
    missing = {"use": "trackio", "options": {"python": sys.executable}}
    (tracker,) = trackers(parse({"tracking": {"tensorboard": False, "trackers": [missing]}}).tracking)
    with pytest.raises(ConfigError, match=r"'trackio' cannot be imported by .*No module named 'trackio'"):
        tracker.check()
