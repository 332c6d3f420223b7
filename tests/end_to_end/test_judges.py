"""A judge in a running job: a non-blocking one holds up nothing, a blocking one is waited for; both are measured."""

from __future__ import annotations

import pytest

from tests.end_to_end import jobs
from tests.end_to_end.test_failures import FAKE

pytestmark = pytest.mark.job


@pytest.mark.verify
@pytest.mark.parametrize("blocking", ["false", "true"])
def test_a_slow_judge(tmp_path, blocking):
    log, run = tmp_path / "log", tmp_path / "judged"
    recipe = tmp_path / "judged.toml"
    quickstart = (jobs.ROOT / "deploy" / "recipes" / "quickstart.toml").read_text()
    recipe.write_text(
        quickstart.replace(
            "[learner]",
            f"""[[rewards]]
use = "judge"
name = "slow"
blocking = {blocking}
weight = 0.1
missing = 0.0
options = {{ judge = "words" }}

[judges.words]
kind = "keyword"
options = {{ keywords = ["1", "2", "3"], latency_s = 2.0 }}

[learner]""",
            1,
        )
    )
    steps = 100 if blocking == "false" else 6  # long enough for a report of the judges, every 5 s
    overrides = [*FAKE, f"run.dir={tmp_path}", "run.name=judged", f"learner.steps={steps}"]
    assert jobs.run(overrides, recipe=str(recipe), log=log, timeout_s=300) == 0, jobs.tail(log)
    rows = [r for r in jobs.rows(run) if "learner/step_s" in r]
    step_s = sorted(r["learner/step_s"] for r in rows)[len(rows) // 2]
    known = [r["reward/slow_known_frac"] for r in rows]
    if blocking == "false":
        assert step_s < 1.0, "the learner waited for a judge that takes two seconds"
        assert min(known) < 1.0, "something was cut before the judge had answered"
    else:
        assert step_s > 1.0
        assert known == [1.0] * len(known)
    calls = [r["judge/words_num_calls"] for r in jobs.rows(run) if r.get("judge/words_num_calls")]
    assert calls
    assert calls[-1] > 0
    summary = jobs.summary(run)
    assert summary["groups_lost"] == summary["groups_trained_twice"] == summary["scores_failed"] == 0
    assert summary["max_staleness_observed"] <= 1
