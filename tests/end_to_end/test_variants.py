"""Rewards of a model that reads rollouts, and groups of several variants, in real jobs from the methods' recipes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.storage import group_archive
from cluster.storage.group_archive import ArchivedGroup
from rewards.aggregation.selectors.votes import borda_winner
from rewards.builtin.co_reward import majority
from rewards.parsing.answers import final_answer
from tests.end_to_end import jobs

pytestmark = pytest.mark.job

FAKE = [*jobs.TINY, "engine.use=tests.fakes:FakeEngine", "evaluation.max_tasks=1", "rollout.group_size=6"]


def pipeline(tmp_path: Path, method: str, *overrides: str, steps: int = 4) -> tuple[Path, list[dict]]:
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


def groups(run: Path) -> Iterator[ArchivedGroup]:
    for path in group_archive.files(run / "groups"):
        for entry in group_archive.index(path):
            yield group_archive.read(path, entry)


def initial_logprobs(tokens: np.ndarray) -> torch.Tensor:
    """[T, V] fp64, under the weights that training begins with: row t is what token t + 1 was chosen from."""
    from transformers import AutoModelForCausalLM

    from actors.models import prepare
    from cluster.config import ModelSection

    model = AutoModelForCausalLM.from_pretrained(prepare(ModelSection(path="tiny:addition"), 0))
    with torch.no_grad():
        return model(torch.tensor(tokens.astype(np.int64))[None]).logits[0].double().log_softmax(-1)


def first_of(run: Path, reward: str) -> ArchivedGroup:
    """A group that was read under the weights that training begins with."""
    return next(g for g in groups(run) if g.scores[reward].provenance[0].model == "policy@1.0")


def models_of(run: Path, reward: str) -> set[str]:
    return {g.scores[reward].provenance[0].model for g in groups(run)}


@pytest.mark.verify
def test_a_borda_vote_by_self_certainty_trains_on_the_winning_rollout_of_each_group(tmp_path):
    run, rows = pipeline(tmp_path, "self_certainty")
    assert all(r["learner/rollouts"] == r["learner/groups"] == 8 for r in rows)
    assert all(r["reward/self_certainty_known_frac"] == 1 for r in rows)
    above = []
    for found in groups(run):
        answers = [final_answer(r.text) for r in found.group.rollouts]
        winner = borda_winner(found.scores["self_certainty"].values, answers, 0.5)
        assert np.flatnonzero(np.isfinite(found.rewards)).tolist() == [winner]
        above.append(found.rewards[winner] - found.scores["self_certainty"].values.mean())
    assert np.mean(above) > 0, "the winners are surer than their groups"
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
    run, rows = pipeline(tmp_path, "self_aligned")
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


@pytest.mark.verify
def test_the_vote_on_one_wording_rewards_the_answers_to_the_other(tmp_path):
    run, rows = pipeline(tmp_path, "co_reward", "engine.use=vllm", "rollout.group_size=4", steps=3)
    assert all(r["reward/co_reward_mean"] > 0 for r in rows)
    assert all("reward/view_agreement_mean" in r for r in rows)
    crossed = 0
    for found in groups(run):
        variants = [r.variant for r in found.group.rollouts]
        assert variants == ["orig"] * 4 + ["swapped"] * 4, "one claim has both"
        prompts = {r.turns[0].text for r in found.group.rollouts}
        assert len(prompts) == 2 or next(iter(prompts))[:2] * 2 == next(iter(prompts)).replace("+", "")[:4]
        halves = found.group.rollouts[:4], found.group.rollouts[4:]
        votes = [majority([r.text or None for r in half]) for half in halves]
        expected = [r.text == vote for half, vote in zip(halves, reversed(votes), strict=True) for r in half]
        assert found.scores["co_reward"].values.tolist() == expected
        crossed += votes[0] != votes[1]
        credit = np.array([a[0] for a in found.advantages])
        np.testing.assert_allclose([credit[:4].sum(), credit[4:].sum()], 0, atol=1e-5)
    assert crossed, "no two votes differed: the labels might as well have been a variant's own"


SUMS = ["model.path=tiny:addition", "model.dtype=float32", "tasks.use=addition", "tasks.options={}"]
"""The recipe's model and tasks made small."""
EACH = 'separator="(?s:.)"'
"""Every character is a step."""


@pytest.mark.verify
def test_every_token_is_credited_with_its_steps_bounded_worth_and_the_success_to_come(tmp_path):
    judged = f"rewards.1.options={{{EACH},template_options={{highest=1}}}}"
    words = 'judges.judge.options={keywords=["1","2","3"]}'
    run, rows = pipeline(
        tmp_path, "clip_delta", *SUMS, "rollout.max_tokens=12", "rewards.0.use=exact", judged, words, steps=3
    )
    assert all(r["reward/step_scores_known_frac"] == 1 for r in rows)
    assert any(r["learner/groups"] for r in rows)
    for found in groups(run):
        success, said = found.scores["exact"].values, found.scores["step_scores"].tokens
        assert said is not None
        to_go, totals = [], []
        for tokens, right in zip(said, success, strict=True):
            ends = np.flatnonzero(np.isfinite(tokens))
            u = np.minimum(tokens[ends] - 0.5, 0.0)
            u[-1] = 0.0  # nothing but the success is to come from the last step on
            step_of = np.searchsorted(ends, np.arange(len(tokens)))  # the step that a token, its last included, is of
            to_go.append(right + 0.1 * np.append(u, 0.0)[step_of])
            totals.append(right + 0.1 * u[0])
        for credit, rollout, worth in zip(found.advantages, found.group.rollouts, to_go, strict=True):
            expected = (worth - np.mean(totals)) / (np.std(totals, ddof=1) + 1e-6)
            np.testing.assert_allclose(credit[rollout.loss_mask], expected[rollout.loss_mask], atol=1e-4)


@pytest.mark.verify
def test_what_a_right_solution_takes_back_and_a_wrong_one_did_otherwise_is_credited_apart(tmp_path):
    (tmp_path / "reward.py").write_text(
        "def one(prompt, completion, ground_truth):\n    return float('1' in completion)\n"
    )
    use = f"{tmp_path}/reward.py:one"
    labels = f'rewards.1.options={{verifier="{use}",{EACH}}}'
    words = 'judges.judge.options={keywords=["1","2","3","4"]}'
    run, rows = pipeline(
        tmp_path, "tp_grpo", *SUMS, "rollout.max_tokens=12", f"rewards.0.use={use}", labels, words, steps=3
    )
    assert all(r["reward/thoughts_known_frac"] == 1 for r in rows)
    marked = {True: 0, False: 0}
    for found in groups(run):
        outcome, labelled = found.scores["one"].values, found.scores["thoughts"].tokens
        assert labelled is not None
        plain = (outcome - outcome.mean()) / ((outcome.std(ddof=1) or 1.0) + 1e-6)
        for rollout, credit, flags, right, r_hat in zip(
            found.group.rollouts, found.advantages, labelled, outcome == 1, plain, strict=True
        ):
            mine = rollout.loss_mask & (flags == 1)
            np.testing.assert_allclose(credit[rollout.loss_mask & (flags == 0)], r_hat, atol=1e-4)
            np.testing.assert_allclose(credit[mine], r_hat - outcome.mean() if right else 0.0, atol=1e-4)
            marked[bool(right)] += int(mine.sum())
    assert marked[True] > 0
    assert marked[False] > 0
