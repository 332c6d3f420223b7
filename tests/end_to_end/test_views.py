"""Rewards of a model that reads rollouts, and groups of several views, in real jobs from the methods' recipes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster import kept
from cluster.kept import KeptGroup
from tests.end_to_end import jobs

FAKE = [*jobs.TINY, "engine.use=tests.fakes:FakeEngine", "evaluation.max_tasks=1", "rollout.group_size=6"]


def lap(tmp_path: Path, method: str, *overrides: str, steps: int = 4) -> tuple[Path, list[dict]]:
    """The method's recipe for a few steps; its directory and its steps' metrics."""
    log = tmp_path / "log"
    options = [*FAKE, f"run.dir={tmp_path}", f"learner.steps={steps}", *overrides]
    assert jobs.run(options, recipe=f"methods/{method}.toml", log=log, timeout_s=270) == 0, jobs.tail(log)
    run = tmp_path / method
    summary = jobs.summary(run)
    assert summary["groups_lost"] == summary["groups_trained_twice"] == 0
    rows = [r for r in jobs.rows(run) if "learner/step_s" in r]
    assert len(rows) == steps
    return run, rows


def groups(run: Path) -> Iterator[KeptGroup]:
    for path in kept.files(run / "groups"):
        for entry in kept.index(path):
            yield kept.read(path, entry)


def initial_logprobs(tokens: np.ndarray) -> torch.Tensor:
    """[T, V] fp64, under the weights that training begins with: row t is what token t + 1 was chosen from."""
    from transformers import AutoModelForCausalLM

    from actors.models import prepare
    from cluster.config import ModelSection

    model = AutoModelForCausalLM.from_pretrained(prepare(ModelSection(path="tiny:addition"), 0))
    with torch.no_grad():
        return model(torch.tensor(tokens.astype(np.int64))[None]).logits[0].double().log_softmax(-1)


def first_of(run: Path, signal: str) -> KeptGroup:
    """A group that was read under the weights that training begins with."""
    return next(g for g in groups(run) if g.scores[signal].version == "1.0")


def models_of(run: Path, signal: str) -> set[str]:
    return {g.scores[signal].provenance[0].model for g in groups(run)}


@pytest.mark.verify
def test_a_borda_vote_by_self_certainty_trains_on_one_rollout_of_a_group_and_makes_it_surer(tmp_path):
    run, rows = lap(tmp_path, "self_certainty", "learner.schedule.lr=1e-3", "learner.schedule.warmup_steps=0", steps=8)
    assert all(r["learner/rollouts"] == r["learner/groups"] == 8 for r in rows)
    assert all(r["reward/self_certainty_known_frac"] == 1 for r in rows)
    assert rows[-1]["reward/self_certainty_mean"] > rows[0]["reward/self_certainty_mean"] + 0.1
    group = first_of(run, "self_certainty")
    for rollout, value in zip(group.group.rollouts, group.scores["self_certainty"].values, strict=True):
        logs = initial_logprobs(rollout.tokens)
        divergence = -logs.mean(1) - np.log(logs.shape[1])
        places = np.flatnonzero(rollout.loss_mask) - 1
        assert value == pytest.approx(float(divergence[places].mean()), abs=1e-4)
    models = models_of(run, "self_certainty")
    assert "policy@1.0" in models
    assert len(models) >= 3, "the scorer follows the policy"


@pytest.mark.verify
def test_what_the_question_removes_of_a_rollouts_perplexity_is_a_fifth_of_its_reward(tmp_path):
    run, rows = lap(tmp_path, "self_aligned")
    for row in rows:
        mixed = row["reward/exact_mean"] + 0.2 * row["reward/self_aligned_mean"]
        assert row["reward/mean"] == pytest.approx(mixed, abs=1e-6)
        assert row["reward/self_aligned_known_frac"] == 1
    group = first_of(run, "self_aligned")
    for rollout, value in zip(group.group.rollouts, group.scores["self_aligned"].values, strict=True):
        start = int(rollout.loss_mask.argmax())
        answer = rollout.tokens[start:]
        means = []
        for prompt in (rollout.tokens[:start], np.array([1])):  # of `47+38=` nothing is left but the first token
            logs = initial_logprobs(np.concatenate([prompt, answer]))
            means.append(float(logs[np.arange(len(answer)) + len(prompt) - 1, answer].mean()))
        with_query, without = np.exp(-np.array(means))
        assert value == pytest.approx(max((without - with_query) / without, -1), abs=1e-4)
    assert len(models_of(run, "self_aligned")) >= 2
