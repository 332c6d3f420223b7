"""Runs of the whole pipeline: started as a user does, timed by the steps that appear in `metrics.jsonl`."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.end_to_end import jobs

RECIPE = Path(__file__).with_name("pipeline.toml")
SAMPLES_PER_STEP = 32 * 8
WARM_UP = 4
"""Steps that are not counted: until then engine and learner have not found their pace."""
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Run:
    samples_per_s: float
    """After the warm-up."""
    rows: list[dict[str, Any]]
    """Of the steps that count."""
    rollout_s: float
    """Median time from an engine's request to its last token."""

    def mean(self, metric: str) -> float:
        return statistics.mean(row[metric] for row in self.rows)


def run(directory: Path, name: str, lengths: str, *overrides: str, steps: int, recipe: Path = RECIPE) -> Run:
    """Raises AssertionError if the run fails."""
    log, run_dir, notes = directory / f"{name}.log", directory / name, directory / f"{name}.json"
    options = [f"run.dir={directory}", f"run.name={name}", f"learner.steps={steps}", *overrides]
    environment = {"KANABO_BENCH_LENGTHS": lengths, "KANABO_BENCH_NOTES": str(notes)}
    process = jobs.start(options, recipe=str(recipe), log=log, **environment)
    seen: dict[int, float] = {}
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"{name} took longer than {TIMEOUT_S:g} s:\n{jobs.tail(log)}")
            for row in _steps(run_dir):
                seen.setdefault(row["step"], time.monotonic())
            time.sleep(0.05)
    finally:
        jobs.end(process)
    assert process.returncode == 0, f"{name} failed:\n{jobs.tail(log)}"
    assert len(seen) == steps, f"{name}: {len(seen)} steps of {steps} were seen"
    lost = jobs.summary(run_dir)["groups_lost"]
    assert lost == 0, f"{name} lost {lost} groups"
    rate = SAMPLES_PER_STEP * (steps - WARM_UP) / (seen[steps] - seen[WARM_UP])
    rows = [row for row in _steps(run_dir) if row["step"] > WARM_UP]
    return Run(rate, rows, statistics.median(json.loads(notes.read_text())))


def _steps(run_dir: Path) -> list[dict[str, Any]]:
    return [row for row in jobs.rows(run_dir) if "learner/step_s" in row]
