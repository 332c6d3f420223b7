"""What takes longer than a test may: the quickstart's figure on three seeds, and what evaluation costs the pipeline.

Each result is kept with its commit in `tests/verified.json`.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from tests.end_to_end import jobs
from tests.verify.keep import keep

pytestmark = [pytest.mark.verify, pytest.mark.timeout(3600)]


def quickstart(directory: Path, name: str, *overrides: str) -> dict:
    log = directory / f"{name}.log"
    options = [f"run.dir={directory}", f"run.name={name}", "tracking.live_table=false", *overrides]
    assert jobs.run(options, log=log, timeout_s=900) == 0, jobs.tail(log)
    return jobs.summary(directory / name)


def test_quickstart_reaches_its_figure_on_three_seeds(tmp_path):
    runs = [quickstart(tmp_path, f"seed-{seed}", f"seed={seed}") for seed in range(3)]
    keys = ("eval_accuracy_initial", "eval_accuracy_final", "wall_s", "samples_per_s", "logprob_diff_max_nats")
    keep("quickstart", {key: [run[key] for run in runs] for key in keys})
    finals = [run["eval_accuracy_final"] for run in runs]
    assert max(run["eval_accuracy_initial"] for run in runs) <= 0.55
    assert statistics.median(finals) >= 0.85
    assert min(finals) >= 0.80
    assert max(run["wall_s"] for run in runs) <= 360
    for run in runs:
        assert run["groups_lost"] == run["groups_trained_twice"] == 0
        assert run["max_staleness_observed"] <= 1


def test_evaluation_does_not_hold_up_the_learner(tmp_path):
    """The waiting share of steps, evaluated every tenth or never: less than 5 points apart, median of three pairs."""
    apart = []
    for pair in range(3):
        shares = [
            quickstart(tmp_path, f"{pair}-{every}", "learner.steps=40", f"evaluation.every_steps={every}")[
                "learner_waiting_frac"
            ]
            for every in (10, 0)
        ]
        apart.append(shares[0] - shares[1])
    keep("evaluation", {"waiting_frac_with_minus_without": apart})
    assert abs(statistics.median(apart)) < 0.05
