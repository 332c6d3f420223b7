"""The collapse guard on a real collapse and on a healthy run: majority vote as the only reward, and the quickstart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.storage import checkpoint
from tests.end_to_end import jobs
from tests.verify.keep import keep

pytestmark = [pytest.mark.verify, pytest.mark.timeout(3600)]

FIVE = np.ones(5) / 5
WATCHED = (
    'rewards=[{use="exact"},{use="majority",missing=0.0,weight=0.0},{use="answer_entropy",weight=0.0},'
    '{use="duplicate",weight=0.0}]',
    'monitors=[{use="collapse"}]',
)


def accuracy(rows: list[dict]) -> dict[int, float]:
    return {row["step"]: row["eval/accuracy"] for row in rows if "eval/accuracy" in row}


def job(directory: Path, name: str, recipe: str, *overrides: str) -> tuple[Path, int, str]:
    log = directory / f"{name}.log"
    options = [f"run.dir={directory}", f"run.name={name}", "tracking.live_table=false", *overrides]
    code = jobs.run(options, recipe=recipe, log=log, timeout_s=900)
    return directory / name, code, jobs.tail(log)


def alarms(run: Path) -> list[dict]:
    return [row for row in jobs.rows(run) if "monitor/collapse_alarms" in row]


def test_a_collapse_is_seen_before_a_quarter_of_the_accuracy_is_lost_and_the_run_goes_back(tmp_path):
    left, code, said = job(tmp_path, "left_alone", "methods/collapse.toml", 'monitors.0.on_alarm="warn"')
    assert code == 0, said
    assert len(alarms(left)) == 1
    free = accuracy(jobs.rows(left))
    rewards = [row["reward/mean"] for row in jobs.rows(left) if "reward/mean" in row]
    assert free[max(free)] < 0.5 * max(free.values()), "nothing collapsed: there is nothing to see"
    assert rewards[-1] > rewards[0], "the reward knows nothing of it"

    guarded, code, said = job(tmp_path, "guarded", "methods/collapse.toml")
    assert code == 1, said
    report = (guarded / "alarm.md").read_text()
    seen = accuracy(jobs.rows(guarded))
    at_alarm = seen[max(seen)]
    assert "Given away by `eval/accuracy`" in report
    assert (guarded / "alarm.png").stat().st_size > 10_000
    assert at_alarm > 0.75 * max(seen.values())
    back_to = checkpoint.read(checkpoint.committed(guarded / "checkpoints")[-1]).step
    assert seen[back_to] >= 0.95 * max(seen.values())

    # Without references: what is held out is judged by a vote of one, which is always right.
    blind, code, said = job(tmp_path, "blind", "methods/collapse.toml", 'evaluation.reward="majority"')
    assert code == 1, said
    assert "Given away by `eval/anchor_agreement`" in (blind / "alarm.md").read_text()
    # True all the same: references are recorded on the side, of what is sampled.
    right = np.convolve(
        [row["reward/exact_mean"] for row in jobs.rows(blind) if "reward/exact_mean" in row], FIVE, "valid"
    )
    keep(
        "collapse",
        {
            "left_alone": {"best": max(free.values()), "last": free[max(free)], "reward": [rewards[0], rewards[-1]]},
            "guarded": {"alarm_step": max(seen), "accuracy": at_alarm, "back_to": back_to},
            "without_references": {"step": len(right) + 4, "sampled_accuracy": [right.max(), right[-1]]},
        },
    )
    assert right[-1] > 0.7 * right.max()


def test_the_guard_is_silent_in_a_healthy_run(tmp_path):
    found = {}
    for seed in range(3):
        name = f"healthy-{seed}"
        run, code, said = job(
            tmp_path, name, "quickstart.toml", *WATCHED, f"seed={seed}", "evaluation.every_steps=5"
        )  # fmt: skip
        assert code == 0, said
        rows = jobs.rows(run)
        drift = [row["eval/anchor_agreement"] for row in rows if "eval/anchor_agreement" in row]
        assert len(drift) > 20
        assert len([row for row in rows if "reward/answer_entropy_mean" in row]) == 120
        found[seed] = {
            "alarms": len(alarms(run)),
            "lowest_agreement": min(drift),
            "final": max(accuracy(rows).values()),
        }
    keep("guard_on_the_quickstart", {str(seed): one for seed, one in found.items()})
    assert [one["alarms"] for one in found.values()] == [0, 0, 0]
