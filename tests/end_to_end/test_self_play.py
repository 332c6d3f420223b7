"""Policies that are their own judge, opponent, past and corrector: what each method does to a real run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster import kept
from cluster.kept import KeptGroup
from cluster.types import SCORED
from tests.end_to_end import jobs

FAKE = ["engine.use=tests.fakes:FakeEngine", "tracking.live_table=false", "evaluation.max_tasks=1"]


def lap(tmp_path: Path, recipe: str, overrides: list[str], *, steps: int, name: str = "", **environment: str) -> Path:
    """A run of a method's recipe to its last step; its directory."""
    name = name or recipe
    options = [f"run.dir={tmp_path}", f"run.name={name}", f"learner.steps={steps}", "tracking.live_table=false"]
    log = tmp_path / "log"
    code = jobs.run([*options, *overrides], recipe=f"methods/{recipe}.toml", log=log, timeout_s=580, **environment)
    assert code == 0, jobs.tail(log)
    summary = jobs.summary(tmp_path / name)
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0
    return tmp_path / name


def groups_of(run: Path) -> list[KeptGroup]:
    """Trained groups, in the order of the steps."""
    return [kept.read(path, entry) for path in sorted(kept.files(run / "groups")) for entry in kept.index(path)]


def steps_of(run: Path) -> list[dict]:
    return [row for row in jobs.rows(run) if "learner/step_s" in row]


@pytest.mark.verify
@pytest.mark.timeout(700)
def test_a_policy_learns_from_the_marks_that_it_gives_itself(tmp_path):
    """SSR-Zero: no reference reaches the reward, and accuracy by references rises."""
    run = lap(tmp_path, "ssr_zero", [], steps=20)
    accuracy = {row["step"]: row["heldout/accuracy"] for row in jobs.rows(run) if "heldout/accuracy" in row}
    assert accuracy[0] < 0.8
    assert accuracy[20] > accuracy[0] + 0.1
    versions = []
    for group in groups_of(run):
        scores, texts = group.scores["ssr_zero"], [r.text for r in group.group.rollouts]
        laid_out = np.array([len(t) == 3 and set(t) <= set("abcdefghij") for t in texts])
        assert (scores.values[~laid_out] == 0).all()
        for provenance in np.array(scores.provenance, object)[laid_out & (scores.state == SCORED)]:
            assert provenance.model.startswith("policy@1.")
            versions.append(int(provenance.model.rpartition(".")[2].partition("-")[0]))
    assert versions[-1] >= versions[0] + 15, "the judge must be the policy of now"
