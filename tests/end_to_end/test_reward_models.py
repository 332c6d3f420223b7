"""Reward models that learn in a real job: groups wait for the first version, later ones are scored by the newest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster import kept
from tests.end_to_end import jobs
from tests.metrics_page import unexplained

pytestmark = pytest.mark.verify

RULE = "tests.end_to_end.rules:LowDigits"
LEARN = "lr=1e-3,batch_size=32,early_steps=6"
STEPS = 12


def lap(tmp_path: Path, name: str, overrides: list[str]) -> tuple[list[dict], list[dict], list[kept.KeptGroup]]:
    """Steps, what the distiller said, and the groups that were trained on."""
    log, run = tmp_path / "log", tmp_path / name
    options = [
        *jobs.TINY, f"run.dir={tmp_path}", f"run.name={name}", f"learner.steps={STEPS}", "learner.groups_per_step=16",
        "learner.drop_zero_variance=false", "engine.use=tests.fakes:FakeEngine", "engine.options={delay_s=0.3}",
        "evaluation.max_tasks=1", f"distilled.{name}.publish_every_s=0.5", f"distilled.{name}.min_held_out=3",
        *overrides,
    ]  # fmt: skip
    assert jobs.run(options, recipe=f"methods/{name}.toml", log=log, timeout_s=500) == 0, jobs.tail(log)
    summary = jobs.summary(run)
    assert summary["groups_lost"] == summary["groups_trained_twice"] == summary["scores_failed"] == 0
    rows = jobs.rows(run)
    assert not unexplained(metric for row in rows for metric in row)
    groups = [kept.read(path, entry) for path in kept.files(run / "groups") for entry in kept.index(path)]
    return (
        [r for r in rows if "learner/step_s" in r],
        [r for r in rows if f"distilled/{name}_version" in r],
        groups,
    )


def versions(groups: list[kept.KeptGroup], reward: str) -> dict[int, set[int]]:
    """Step → versions of the model that scored its groups; under one version a text is worth one thing."""
    found: dict[int, set[int]] = {}
    worth: dict[tuple[str, str, str], float] = {}
    for one in groups:
        scores = one.scores[reward]
        assert np.isfinite(scores.values).all(), "a group was trained on that no version had scored"
        kind, _, number = scores.version.rpartition(".")
        assert kind == "bradley_terry"
        found.setdefault(one.step, set()).add(int(number))
        for rollout, value in zip(one.group.rollouts, scores.values, strict=True):
            known = worth.setdefault((scores.version, one.group.task.id, rollout.text), value)
            assert known == pytest.approx(value, abs=1e-5)
    return found


def test_a_reward_model_learns_from_a_judge_with_every_option(tmp_path):
    everything = f"{LEARN},members=2,flip='certain',margin=true,smoothing=0.05,contrast=0.05,meta_lr=1e-3"
    digits = ", ".join(f'"{d}"' for d in range(10))
    overrides = [
        "model.path=tiny:addition", "model.dtype=float32", "tasks.use=addition", "tasks.options={}",
        "learner.dtype=float32", "learner.schedule.lr=1e-4", "rollout.max_tokens=4", "learner.loss.kl_coef=0",
        f"judges.judge.options={{keywords=[{digits}]}}", f"distilled.reward_model.options={{{everything}}}",
        'rewards.0.options={pattern="[0-9]"}',
    ]  # fmt: skip
    steps, told, groups = lap(tmp_path, "reward_model", overrides)
    scored = versions(groups, "reward_model")
    assert min(scored[1]) >= 1
    assert max(max(v) for v in scored.values()) > 1, "no second version was scored with"
    assert max(scored[STEPS]) >= max(scored[1])
    assert told[-1]["distilled/reward_model_agreement_frac"] > 0.6, "of what the judge prefers on held-out pairs"
    # Digits as words are what the judge counts; the trained reward comes to order texts as it does.
    assert np.mean([r["reward/format_agreement"] for r in steps[-4:]]) > 0.2


def test_cooper_learns_right_from_spoilt(tmp_path):
    overrides = [
        f"rewards.0.use={RULE}", "rewards.0.name=rule", f"rewards.1.options.rule={RULE}",
        f"distilled.cooper.options={{{LEARN}}}",
    ]  # fmt: skip
    steps, told, groups = lap(tmp_path, "cooper", overrides)
    scored = versions(groups, "cooper")
    assert max(max(v) for v in scored.values()) > 1
    assert all(0 < value < 1 for one in groups for value in one.scores["cooper"].values)
    last = told[-1]
    assert last["distilled/cooper_num_unreadable"] > 0, "a text with low and high digits cannot be spoilt"
    assert last["distilled/cooper_good_frac"] == 1, "the right one is always the first of its pair"
    assert np.mean([r["reward/rule_agreement"] for r in steps[-4:]]) > 0.2
