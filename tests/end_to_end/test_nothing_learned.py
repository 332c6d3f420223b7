"""A job that learns nothing, or less than it seems, says so: while it runs, in its last lines, and by its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.end_to_end import jobs
from tests.end_to_end.test_failures import FAKE
from tests.end_to_end.test_own_judges import free_port

pytestmark = pytest.mark.job

REWARDS = Path(__file__).with_name("rewards_that_fail.py")
KEEP = "learner.drop_zero_variance=false"


def job(tmp_path: Path, *overrides: str, steps: int = 4) -> tuple[int, str, dict]:
    """Exit code, what the terminal had (whitespace as single spaces), and the summary."""
    log = tmp_path / "log"
    where = [f"run.dir={tmp_path}", "run.name=vain", f"learner.steps={steps}", "evaluation.every_steps=0"]
    code = jobs.run([*FAKE, *where, *overrides], log=log, timeout_s=240)
    return code, log.read_text(), jobs.summary(tmp_path / "vain")


def warned(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("warning ")]


def last_lines(text: str) -> list[str]:
    """What stands below the table of the summary."""
    lines = text.splitlines()
    return lines[max(i for i, line in enumerate(lines) if line.startswith("└")) + 1 :]


def own(function: str, **more) -> str:
    extra = "".join(f",{key}={json.dumps(value)}" for key, value in more.items())
    return f'{{use="{REWARDS}:{function}"{extra}}}'


@pytest.mark.verify
def test_a_reward_that_fails_beside_one_that_trains(tmp_path):
    code, text, summary = job(tmp_path, f'rewards=[{{use="exact"}},{own("key_error", missing=0.0)}]', KEEP)
    assert code == 0, text
    (first, *_) = warned(text)
    assert "reward 'key_error' failed on" in first
    assert "KeyError: 'verdict'" in first
    assert text.index(first) < text.index("kanabo ·"), "while it ran, before the summary"
    (said,) = [w for w in summary["warnings"] if "'key_error' failed" in w]
    assert said.startswith(("step 0:", "step 1:")), "within the first step"
    assert f"warning {said}" in last_lines(text)
    assert summary["problem"] == ""
    assert summary["scores_failed"] > 0


@pytest.mark.verify
def test_every_step_was_empty_before_the_limit(tmp_path):
    code, text, summary = job(tmp_path, f"rewards=[{own('constant')}]", "learner.drop_zero_variance=true", steps=2)
    assert code == 1, text
    assert "none of the 2 steps trained on anything" in summary["problem"]
    assert "got the reward 0.5" in summary["problem"]
    assert any(line.startswith("failed none of the 2 steps") for line in last_lines(text))
    assert (tmp_path / "vain" / "error.txt").exists()
    assert summary["max_staleness_observed"] is None


@pytest.mark.verify
def test_a_constant_reward_ends_the_run_with_its_value(tmp_path):
    code, text, summary = job(tmp_path, f"rewards=[{own('constant')}]", "learner.drop_zero_variance=true", steps=9)
    assert code == 1, text
    assert summary["steps"] == 3
    assert "Every rollout of the step got the reward 0.5" in summary["problem"]


@pytest.mark.verify
def test_scores_that_are_all_missing_and_count_as_a_number(tmp_path):
    options = [f"rewards=[{own('key_error', missing=0.0)}]", "learner.drop_zero_variance=true"]
    code, text, summary = job(tmp_path, *options, steps=9)
    assert code == 1, text
    assert "missing = 0 took the place of all" in summary["problem"]
    assert "KeyError: 'verdict'" in summary["problem"]
    samples = [json.loads(line) for line in (tmp_path / "vain" / "samples.jsonl").read_text().splitlines()]
    assert {s["reason"] for s in samples if not s["trained"]} >= {"zero_variance"}
    assert "KeyError" in samples[0]["unscored"]["key_error"]


@pytest.mark.verify
def test_a_reward_that_always_abstains_beside_one_that_trains(tmp_path):
    code, text, summary = job(tmp_path, f'rewards=[{{use="exact"}},{own("abstains", missing=0.0)}]', KEEP)
    assert code == 0, text
    assert any("'abstains' had no score for any rollout of step 1" in w for w in summary["warnings"])


@pytest.mark.verify
def test_rollouts_that_are_all_cut_short(tmp_path):
    code, text, summary = job(tmp_path, "rollout.max_tokens=1", KEEP, "learner.drop_truncated=false")
    assert code == 0, text
    (said,) = [w for w in summary["warnings"] if "every rollout of the step was cut short" in w]
    assert f"warning {said}" in last_lines(text)


@pytest.mark.verify
def test_a_judge_that_never_answers_after_the_first_question(tmp_path):
    port = free_port()
    server = subprocess.Popen([sys.executable, "-m", "tests.end_to_end.stand_in", str(port), "1"], cwd=jobs.ROOT)
    try:
        judged = '{use="judge",blocking=False,missing=0.0,weight=0.1,options={judge="away"}}'
        section = f'judges.away={{urls=["http://127.0.0.1:{port}/v1"],model="m",deadline_s=2.0}}'
        time.sleep(1)
        code, text, summary = job(tmp_path, f'rewards=[{{use="exact"}},{judged}]', section, KEEP, steps=40)
    finally:
        server.kill()
        server.wait()
    assert code == 0, text
    said = [w for w in summary["warnings"] if "'judge'" in w or "'away'" in w]
    assert said
    assert any("500" in w for w in said), said
    assert all(f"warning {w}" in last_lines(text) for w in said)


@pytest.mark.verify
def test_an_empty_set_of_held_out_tasks(tmp_path):
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps({"prompt": f"{i}+1=", "answer": str(i + 1)}) + "\n" for i in range(64)))
    options = ["tasks.use=jsonl", f'tasks.options={{path="{tasks}",num_evaluation=0}}', KEEP]
    code, text, summary = job(tmp_path, *options)
    assert code == 0, text
    assert summary["eval_accuracy_final"] is None
    for figure in ("eval_accuracy_initial", "eval_accuracy_final"):
        assert "the task source has no evaluation task" in summary["not_measured"][figure]
        assert any(line.startswith(f"warning {figure} is missing:") for line in last_lines(text))
