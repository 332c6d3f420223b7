"""A run that learns nothing says so: warnings with their cause, an end after some steps, and an honest summary."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cluster.config import parse
from cluster.driver.health import Health, NothingLearned
from cluster.observability.summary import in_sentences, summarize
from cluster.types import AssembledBatch, BatchRecord, GroupReward, ScoredGroup, Scores
from cluster.types.events import RewardReport
from learner.rank import samples
from tests.rewards.groups import group


class Said(list):
    def __call__(self, step: int, message: str) -> None:
        self.append(message)


def health_of(**run) -> tuple[Health, Said]:
    said = Said()
    return Health(parse({"run": run, "rewards": [{"use": "exact"}]}), said), said


def empty(**reasons: float) -> dict[str, float]:
    return {"learner/tokens": 0.0, **{f"buffer/num_dropped_{name}": n for name, n in reasons.items()}}


def failing(failed: int, asked: int, cause: str = "KeyError: 'score'") -> RewardReport:
    return RewardReport(
        worker="w", data_failures=0, asked={"mine": asked}, failed={"mine": failed}, causes={"mine": cause}
    )


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
    rows = [{"step": 0, "eval/accuracy": 0.25}, row(1), row(2, **{"eval/accuracy": 0.5}), row(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    why = {"eval_accuracy_final": "the evaluation at step 3 was lost: 3 workers died over it"}
    found = summarize("r.toml", tmp_path, 1.0, {"groups_trained": 3}, not_measured=why)
    assert found["eval_accuracy_initial"] == 0.25
    assert found["eval_accuracy_final"] is None, "that of step 2 is another figure"
    assert found["not_measured"]["eval_accuracy_final"] == why["eval_accuracy_final"]
    assert {key for key, value in found.items() if value is None} == found["not_measured"].keys()
    alone = summarize("r.toml", tmp_path, 1.0, {}, problem="it broke")
    assert "step 3" in alone["not_measured"]["eval_accuracy_final"]
    assert alone["problem"] == "it broke"


def test_a_run_without_any_step_has_no_figure_of_a_step(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 0, "eval/accuracy": 0.25}) + "\n")
    found = summarize("r.toml", tmp_path, 1.0, {})
    assert found["eval_accuracy_final"] == found["eval_accuracy_initial"] == 0.25, "it is the same model"
    assert found["samples_per_s"] is None
    assert found["not_measured"]["samples_per_s"] == "no step was taken"


def test_samples_hold_what_was_dropped_with_the_reason():
    trained, dropped = group("a", "b", seq=0), group("c", "d", seq=1)
    record = BatchRecord("policy", 4, (trained.id,), (np.array([1.0, 0.0]),), ((np.ones(1), -np.ones(1)),))
    failed = Scores.failed(2, "KeyError: 'score'")
    out = ScoredGroup(
        dropped, {"mine": failed}, reward=GroupReward(np.array([np.nan, np.nan])), reason="too_few_scores"
    )
    rows = samples(5, AssembledBatch(record, [trained], left_out=[out] * 9), 2)
    assert [r["trained"] for r in rows] == [True, False, False]
    assert rows[1]["text"] == "c"
    assert rows[1]["reason"] == "too_few_scores"
    assert rows[1]["unscored"] == {"mine": "KeyError: 'score'"}
    assert rows[0]["reason"] == ""
    json.dumps(rows)


def constant(value: float, *, known: float = 1.0, failed: float = 0.0, tokens: float = 0.0, **more: float) -> dict:
    """A step in which every rollout has the same reward."""
    return {
        "learner/tokens": tokens, "reward/mean": value, "reward/std": 0.0, "reward/exact_mean": value,
        "reward/exact_known_frac": known, "reward/exact_failed_frac": failed, **more,
    }  # fmt: skip


def test_a_constant_reward_is_named_with_its_value():
    health, said = health_of(max_empty_steps=3)
    for step in (1, 2):
        health.step(step, constant(0.25, **{"buffer/num_dropped_zero_variance": 8.0}))
    with pytest.raises(NothingLearned, match=r"Every rollout of the step got the reward 0.25 \('exact' has mean 0.25"):
        health.step(3, constant(0.25, **{"buffer/num_dropped_zero_variance": 8.0}))
    assert "got the reward 0.25" in said[0]


def test_a_reward_constant_within_each_group_is_named_with_mean_and_std():
    health, said = health_of()
    health.step(1, constant(0.25, **{"buffer/num_dropped_zero_variance": 8.0}) | {"reward/std": 0.43})
    assert "mean 0.25 and std 0.43, and none within a group" in said[0]


def test_missing_scores_that_became_a_number_are_the_cause():
    said = Said()
    health = Health(parse({"rewards": [{"use": "exact", "missing": 0.0}]}), said)
    row = constant(0.0, known=0.0, failed=1.0, **{"buffer/num_dropped_zero_variance": 8.0})
    health.rewards(
        RewardReport(
            worker="w", data_failures=0, asked={"exact": 4}, failed={"exact": 4}, causes={"exact": "KeyError: 'score'"}
        )
    )
    health.step(1, row)
    assert any("'exact' failed on 100% of the rollouts of step 1" in m and "KeyError: 'score'" in m for m in said)
    assert any("'exact' has no score, so that missing = 0 took the place of all" in m for m in said)


def test_a_reward_that_fails_beside_others_that_train_is_told_of_in_its_first_step():
    said = Said()
    health = Health(parse({"rewards": [{"use": "exact"}, {"use": "numeric", "missing": 0.0}]}), said)
    health.rewards(
        RewardReport(
            worker="w",
            data_failures=0,
            asked={"numeric": 4},
            failed={"numeric": 4},
            causes={"numeric": "ZeroDivisionError"},
        )
    )
    health.step(1, {"learner/tokens": 9.0, "reward/exact_known_frac": 1.0, "reward/numeric_failed_frac": 0.75})
    (message,) = said
    assert "'numeric' failed on 75% of the rollouts of step 1" in message
    assert "ZeroDivisionError" in message
    assert health.warnings == [f"step 1: {message}"]
    assert health.problem() == ""


@pytest.mark.parametrize(("blocking", "told_at"), [(True, 1), (False, 3)])
def test_a_reward_that_has_no_score_at_all_is_named_with_the_reason(blocking, told_at):
    said = Said()
    health = Health(
        parse({"rewards": [{"use": "exact"}, {"use": "numeric", "missing": 0.0, "blocking": blocking}]}), said
    )
    health.rewards(
        RewardReport(
            worker="w", data_failures=0, asked={"numeric": 8}, failed={}, causes={"numeric": "no reference answer"}
        )
    )
    for step in range(1, 4):
        health.step(step, {"learner/tokens": 9.0, "reward/numeric_known_frac": 0.0, "reward/numeric_failed_frac": 0.0})
        assert bool(said) is (step >= told_at)
    assert "'numeric' had no score for any rollout" in said[0]
    assert "no reference answer" in said[0]


def test_what_there_was_no_patience_for_is_told_at_the_end():
    said = Said()
    health = Health(parse({"rewards": [{"use": "exact"}, {"use": "numeric", "missing": 0.0, "blocking": False}]}), said)
    health.step(1, {"learner/tokens": 9.0, "reward/numeric_known_frac": 0.0})
    health.judges({"judge/helpful_invalid_frac": float("nan")}, "judge 'helpful': no replica answers")
    assert not said
    health.finish()
    assert any("no judge has answered so far: judge 'helpful'" in message for message in said)
    assert any("'numeric' had no score" in message for message in said)
    health.finish()
    assert len(said) == 2


def test_a_step_that_leaves_the_weights_as_they_were_is_told_of():
    health, said = health_of()
    health.step(1, constant(1.0, tokens=50.0, **{"learner/grad_norm": 0.0}))
    assert "step 1 trained on 50 tokens and changed nothing" in said[0]
    health.step(2, {"learner/tokens": 50.0, "learner/grad_norm": 0.1, "learner/num_skipped": 1.0})
    assert "the gradient of step 2 was not finite" in said[1]
    resumed = Said()
    again = Health(parse({"rewards": [{"use": "exact"}]}), resumed, [{"learner/tokens": 5, "learner/num_skipped": 1.0}])
    again.step(3, {"learner/tokens": 50.0, "learner/grad_norm": 0.1, "learner/num_skipped": 1.0})
    assert not resumed, "that was the life before"
    again.step(4, {"learner/tokens": 0.0})
    assert again.problem() == "", "the life before trained"


def test_the_summary_tells_what_went_wrong_beside_training(tmp_path):
    rows = [row(1), row(2) | {"learner/tokens": 0}, row(3, **{"learner/num_skipped": 1}), row(4)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    lost = {"eval_accuracy_final": "the evaluation at step 4 was lost: no held-out rollout could be scored"}
    found = summarize("r.toml", tmp_path, 1.0, {"groups_trained": 3}, warnings=["step 1: it fails"], not_measured=lost)
    assert found["warnings"] == [
        "step 1: it fails", "1 of 4 steps trained on nothing.",
        "1 of 4 steps were skipped: their gradient was not finite.",
    ]  # fmt: skip
    said = in_sentences(found)
    assert "eval_accuracy_final is missing: the evaluation at step 4 was lost: no held-out rollout" in said[1]
    assert said[-3:] == found["warnings"]


def test_a_figure_of_nothing_is_no_zero(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row(1) | {"learner/tokens": 0}) + "\n")
    ledger = {"groups_trained": 0, "max_staleness_observed": 0}
    found = summarize("r.toml", tmp_path, 1.0, ledger)
    assert found["max_staleness_observed"] is None
    assert found["not_measured"]["max_staleness_observed"] == "no group was trained"
    (tmp_path / "metrics.jsonl").unlink()
    found = summarize("r.toml", tmp_path, 1.0, ledger)
    assert found["scores_failed"] is None
    assert found["not_measured"]["scores_failed"] == "no step was taken"
    assert {key for key, value in found.items() if value is None} == found["not_measured"].keys()
