"""A run that learns nothing says so: warnings with their cause, an end after some steps, and an honest summary."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cluster.config import parse
from cluster.health import Health, NothingLearned
from cluster.report import summarize
from cluster.types import CutRecord, Scores
from learner.cut import Cut, LeftOut
from learner.start import samples
from tests.rewards.groups import group


class Said(list):
    def __call__(self, step: int, message: str) -> None:
        self.append(message)


def health_of(**run) -> tuple[Health, Said]:
    said = Said()
    return Health(parse({"run": run, "rewards": [{"use": "exact"}]}), said), said


def empty(**reasons: float) -> dict[str, float]:
    return {"learner/tokens": 0.0, **{f"buffer/num_dropped_{name}": n for name, n in reasons.items()}}


def failing(failed: int, asked: int, cause: str = "KeyError: 'score'") -> dict:
    return {"asked": {"mine": asked}, "failed": {"mine": failed}, "causes": {"mine": cause}, "data_failures": 0}


def test_an_empty_step_is_told_at_once_and_the_run_fails_with_the_cause():
    health, said = health_of(max_empty_steps=3)
    health.rewards(failing(64, 64))
    health.step(1, empty(too_few_scores=8))
    assert any("step 1 trained on nothing" in message and "KeyError: 'score'" in message for message in said)
    health.step(2, empty(too_few_scores=8))
    with pytest.raises(NothingLearned, match=r"3 steps in a row[\s\S]*too_few_scores[\s\S]*KeyError: 'score'"):
        health.step(3, empty(too_few_scores=8))
    assert len(said) == 2, "each cause is told once"
    assert health.problem()


def test_one_step_that_trains_begins_the_count_anew():
    health, _ = health_of(max_empty_steps=2)
    for step in range(1, 9, 2):
        health.step(step, empty(zero_variance=4))
        health.step(step + 1, {"learner/tokens": 10.0})
    assert health.problem() == ""


@pytest.mark.parametrize("reason", ["zero_variance", "truncated", "no_pairs", "below_threshold", "something_new"])
def test_the_reason_that_groups_were_dropped_for_is_named(reason):
    health, said = health_of(max_empty_steps=1)
    with pytest.raises(NothingLearned, match=reason):
        health.step(1, empty(**{reason: 4}))
    assert reason in said[0]


@pytest.mark.parametrize(
    ("failed", "asked", "told"), [(8, 8, True), (5, 8, True), (4, 8, False), (3, 3, False), (0, 64, False)]
)
def test_a_reward_that_fails_on_over_half_of_its_calls_is_named_with_its_cause(failed, asked, told):
    health, said = health_of()
    health.rewards(failing(failed, asked))
    assert bool(said) is told
    assert not told or ("'mine'" in said[0] and "KeyError: 'score'" in said[0])


def test_counts_of_several_workers_and_reports_add_up():
    health, said = health_of()
    for _ in range(4):
        health.rewards(failing(1, 4))
    assert not said
    for _ in range(8):
        health.rewards(failing(4, 4))
    assert len(said) == 1


def test_a_judge_without_a_verdict_is_named():
    health, said = health_of()
    health.judges({"judge/helpful_invalid_frac": float("nan")}, "")
    assert not said, "nothing has been asked yet"
    health.judges({"judge/helpful_invalid_frac": 1.0}, "http://127.0.0.1:9 refused the connection")
    assert len(said) == 1
    assert "'helpful'" in said[0]
    assert "127.0.0.1:9" in said[0]


def test_judges_that_are_in_trouble_for_several_reports_are_told_of_before_any_request_has_ended():
    health, said = health_of()
    for _ in range(3):
        health.judges({"judge/helpful_invalid_frac": float("nan")}, "http://127.0.0.1:9 refused the connection")
    assert len(said) == 1
    recovered, quiet = health_of()
    for share in (float("nan"), 0.1, 0.1, 0.1):
        recovered.judges({"judge/helpful_invalid_frac": share}, "one replica of two is down")
    assert not quiet, "verdicts come in"


def test_rollouts_that_are_all_cut_short_are_told_of_with_the_budget():
    health, said = health_of()
    health.step(1, {"learner/tokens": 100.0, "rollout/truncated_frac": 1.0})
    assert "rollout.max_tokens" in said[0]
    health.step(2, {"learner/tokens": 100.0, "rollout/truncated_frac": 1.0})
    assert len(said) == 1


def row(step: int, **more) -> dict:
    return {
        "step": step, "learner/step_s": 1.0, "learner/rollouts": 4, "learner/tokens": 8, "learner/wait_s": 0.5, **more,
    }  # fmt: skip


def test_a_figure_that_was_not_measured_is_absent_and_says_so(tmp_path):
    rows = [{"step": 0, "heldout/accuracy": 0.25}, row(1), row(2, **{"heldout/accuracy": 0.5}), row(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    why = {"heldout_accuracy_final": "the evaluation at step 3 was lost: 3 workers died over it"}
    found = summarize("r.toml", tmp_path, 1.0, {"groups_trained": 3}, not_measured=why)
    assert found["heldout_accuracy_initial"] == 0.25
    assert found["heldout_accuracy_final"] is None, "that of step 2 is another figure"
    assert found["not_measured"]["heldout_accuracy_final"] == why["heldout_accuracy_final"]
    assert {key for key, value in found.items() if value is None} == found["not_measured"].keys()
    alone = summarize("r.toml", tmp_path, 1.0, {}, problem="it broke")
    assert "step 3" in alone["not_measured"]["heldout_accuracy_final"]
    assert alone["problem"] == "it broke"


def test_a_run_without_any_step_has_no_figure_of_a_step(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 0, "heldout/accuracy": 0.25}) + "\n")
    found = summarize("r.toml", tmp_path, 1.0, {})
    assert found["heldout_accuracy_final"] == found["heldout_accuracy_initial"] == 0.25, "it is the same model"
    assert found["samples_per_s"] is None
    assert found["not_measured"]["samples_per_s"] == "no step was taken"


def test_samples_hold_what_was_dropped_with_the_reason():
    trained, dropped = group("a", "b", seq=0), group("c", "d", seq=1)
    record = CutRecord("policy", 4, (trained.id,), (np.array([1.0, 0.0]),), ((np.ones(1), -np.ones(1)),))
    failed = Scores.failed(2, "KeyError: 'score'")
    out = LeftOut(dropped, {"mine": failed}, np.array([np.nan, np.nan]), "too_few_scores")
    rows = samples(5, Cut(record, [trained], left_out=[out] * 9), 2)
    assert [r["trained"] for r in rows] == [True, False, False]
    assert rows[1]["text"] == "c"
    assert rows[1]["reason"] == "too_few_scores"
    assert rows[1]["unscored"] == {"mine": "KeyError: 'score'"}
    assert rows[0]["reason"] == ""
    json.dumps(rows)
