"""Updates of a step: mini-batches and passes, losses at temperature 1, groups of equal rewards, names people type."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from cluster.config import LearnerSection, LossSection, SequenceLossSection, ValueSection, parse
from cluster.config.base import Use
from cluster.errors import ConfigError
from cluster.plugins import build
from cluster.types import BatchRecord, Group, MicroBatch, Pair
from learner.advantages.registry import ADVANTAGES
from learner.batch.trained_logprobs import TrainedLogprobs
from learner.losses.policy_losses import LOSSES, log_importance
from learner.losses.value_loss import credit
from learner.pack import mini_batches, pack, whole_batch
from learner.train import Objective, optimize
from tests.learner.groups import estimate, random_groups, random_rewards, record_of
from tests.learner.test_critic import TABLE
from tests.learner.test_train import TableEngine

LENGTHS = [[(2, 3), (1, 5)], [(3, 4), (2, 2)], [(1, 6), (2, 4)], [(4, 1), (2, 3)], [(1, 2), (1, 3)]]


def section_of(**fields) -> LearnerSection:
    return LearnerSection(row_tokens=16, micro_tokens=32, **fields)


def step(section: LearnerSection, groups: list[Group], record: BatchRecord, *, reference=None, plugins=()):
    """The table after one step at learning rate 1, and its metrics."""
    engine = TableEngine(lr=1.0)
    objective = Objective.of(section)
    batches = mini_batches(groups, record, section, append=objective.append)
    metrics = optimize(batches, objective, engine, reference, plugins)
    return engine, metrics


def at(temperature: float, groups: list[Group]) -> list[Group]:
    return [replace(g, rollouts=tuple(replace(r, temperature=temperature) for r in g.rollouts)) for g in groups]


def logprobs_of(table: torch.Tensor, rollout, temperature: float) -> torch.Tensor:
    """Σ log π over the trained tokens."""
    tokens = torch.tensor(np.array(rollout.tokens), dtype=torch.long)
    found = (table[tokens[:-1]] / temperature).log_softmax(-1).gather(-1, tokens[1:, None])[:, 0]
    return (found * torch.tensor(rollout.loss_mask[1:].copy())).sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("coef", [0.0, 1.0])
def test_sft_and_preference_losses_are_at_temperature_one_whatever_the_sampling_temperature(temperature, coef):
    groups = at(temperature, random_groups(LENGTHS))
    rewards = random_rewards(groups)
    pairs = tuple((Pair(0, 1),) for _ in groups)
    record = replace(record_of(groups, rewards), pairs=pairs)
    frozen = torch.randn(TableEngine().table.shape, generator=torch.Generator().manual_seed(3))

    class Frozen:
        def logprobs(self, micro: MicroBatch) -> torch.Tensor:
            engine = TableEngine()
            engine.table = frozen
            return engine.logprobs(micro)[0]

    terms = (SequenceLossSection(use="nll", coef=0.7), SequenceLossSection(use="dpo", coef=0.3))
    engine, metrics = step(
        section_of(loss=LossSection(coef=coef), sequence_losses=terms), groups, record, reference=Frozen()
    )

    table = torch.zeros_like(engine.table, requires_grad=True)
    rollouts = [r for g in groups for r in g.rollouts]
    ones = torch.stack([logprobs_of(table, r, 1.0) for r in rollouts])
    base = torch.stack([logprobs_of(frozen, r, 1.0) for r in rollouts])
    count = sum(r.num_tokens for r in rollouts)
    nll = -ones.sum() / count
    margins = (ones - base)[0::2] - (ones - base)[1::2]
    loss = 0.7 * nll + 0.3 * -torch.nn.functional.logsigmoid(0.1 * margins).mean()
    if coef:  # the policy gradient stays at the temperature that the tokens were sampled at
        plain, _ = step(section_of(loss=LossSection(coef=1.0)), groups, replace(record, pairs=()))
        expected_policy = -plain.table.detach()
    else:
        expected_policy = torch.zeros_like(table)
    (gradient,) = torch.autograd.grad(loss, table)
    torch.testing.assert_close(-engine.table.detach(), gradient + expected_policy, atol=1e-5, rtol=1e-4)
    assert metrics["loss/nll"] == pytest.approx(nll.item(), rel=1e-5)
    assert metrics["loss/total"] == pytest.approx(loss.item() + coef * metrics["loss/policy"], rel=1e-5)


def test_a_margin_to_the_sampling_weights_is_at_the_sampling_temperature_on_both_sides():
    groups = at(0.5, random_groups(LENGTHS))
    record = replace(record_of(groups, random_rewards(groups)), pairs=tuple((Pair(0, 1),) for _ in groups))
    terms = (SequenceLossSection(use="dpo", options={"against": "behaviour"}),)
    engine, metrics = step(section_of(loss=LossSection(coef=0.0), sequence_losses=terms), groups, record)
    table = torch.zeros_like(engine.table, requires_grad=True)
    rollouts = [r for g in groups for r in g.rollouts]
    ratios = torch.stack([logprobs_of(table, r, 0.5) - float((r.logprobs * r.loss_mask).sum()) for r in rollouts])
    loss = -torch.nn.functional.logsigmoid(0.1 * (ratios[0::2] - ratios[1::2])).mean()
    (gradient,) = torch.autograd.grad(loss, table)
    torch.testing.assert_close(-engine.table.detach(), gradient, atol=1e-5, rtol=1e-4)
    assert metrics["loss/dpo"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize(("updates", "passes"), [(1, 1), (3, 1), (1, 3), (5, 2), (99, 1)])
def test_a_step_takes_one_update_per_mini_batch_and_pass(updates, passes):
    groups = random_groups(LENGTHS)
    record = record_of(groups, random_rewards(groups))
    section = section_of(updates_per_batch=updates, passes_per_batch=passes)
    engine, metrics = step(section, groups, record)
    count = min(updates, len(groups))
    assert metrics["learner/num_updates"] == count * passes
    assert metrics["learner/tokens"] == sum(r.num_tokens for g in groups for r in g.rollouts)
    assert engine.step == 1, "several updates are one version"
    by_hand = TableEngine(lr=1.0)
    bounds = [len(groups) * i // count for i in range(count + 1)]
    for _ in range(passes):
        for start, end in pairwise(bounds):
            part = slice(start, end)
            own = replace(
                record, groups=record.groups[part], rewards=record.rewards[part], advantages=record.advantages[part]
            )
            optimize(pack(groups[part], own, section_of()), Objective.of(section_of()), by_hand)
    torch.testing.assert_close(engine.table, by_hand.table)


def test_the_proximal_policy_is_the_one_before_the_first_update():
    groups = random_groups(LENGTHS)
    record = record_of(groups, random_rewards(groups))
    one, _ = step(section_of(loss=LossSection(use="decoupled"), updates_per_batch=1), groups, record)
    several, metrics = step(
        section_of(loss=LossSection(use="decoupled", options={"clip_low": 0.0, "clip_high": 0.0}), passes_per_batch=4),
        groups, record,
    )  # fmt: skip
    assert metrics["loss/clipped_frac"] > 0.1, "the second pass clips against the first one's weights"
    assert not torch.allclose(one.table, several.table)


def test_tokens_are_heard_once_under_the_weights_that_the_step_began_with():
    groups = random_groups(LENGTHS)
    record = record_of(groups, random_rewards(groups))
    section = section_of(updates_per_batch=3, passes_per_batch=2)
    trained = TrainedLogprobs()
    step(section, groups, record, plugins=[trained])
    found = trained.take(groups, record, section)
    uniform = -np.log(TableEngine().table.shape[1])
    for group, values in zip(groups, found, strict=True):
        for rollout, own in zip(group.rollouts, values, strict=True):
            assert own[rollout.loss_mask] == pytest.approx(uniform, abs=1e-5)


def test_mini_batches_have_the_critics_targets_of_the_whole_step():
    groups = random_groups(LENGTHS, vocabulary=4)
    section = section_of(updates_per_batch=3, value=ValueSection())
    record = record_of(groups, random_rewards(groups))
    batches = mini_batches(groups, record, section)
    none = [None for b in batches for _ in b.micros]
    whole = credit(whole_batch(batches), ValueSection(), TABLE, none)
    undivided = pack(groups, record, section)
    alone = credit(undivided, ValueSection(), TABLE, [None] * len(undivided.micros))
    assert whole.metrics == pytest.approx(alone.metrics)
    parts = whole.split(batches)
    assert [len(p.micros) for p in parts] == [len(b.micros) for b in batches]
    together = np.concatenate([m.advantages[m.loss_mask] for p in parts for m in p.micros])
    expected = np.concatenate([m.advantages[m.loss_mask] for m in alone.micros])
    assert np.sort(together) == pytest.approx(np.sort(expected), abs=1e-5)
    assert together.mean() == pytest.approx(0, abs=1e-5), "whitened over the step, not over a mini-batch"
    for part, batch in zip(parts, batches, strict=True):
        for mine, theirs in zip(part.micros, batch.micros, strict=True):
            assert (mine.rollout == theirs.rollout).all()


def test_log_ratios_are_clamped():
    apart = torch.tensor([[-1e4, -25.0, 3.0, 25.0, 1e4]], requires_grad=True)
    found = log_importance(apart, torch.zeros(1, 5), torch.ones(1, 5, dtype=torch.bool))
    assert found.tolist() == [[-20.0, -20.0, 3.0, 20.0, 20.0]]
    assert found.exp().isfinite().all()


@pytest.mark.parametrize(
    ("fields", "dropped"),
    [
        ({}, True),
        ({"loss": LossSection(kl_coef=0.1)}, False),
        ({"loss": LossSection(entropy_coef=-0.01)}, False),
        ({"loss": LossSection(use="turnwise_reinforce")}, False),
        ({"sequence_losses": (SequenceLossSection(use="laser", options={"token": 3}),)}, False),
        ({"sequence_losses": (SequenceLossSection(use="nll"),)}, False),
        ({"sequence_losses": (SequenceLossSection(use="dpo"),)}, True),
        ({"value": ValueSection()}, False),
        ({"advantage": Use(use="reinforce++")}, False),
        ({"advantage": Use(use="reinforce++", options={"group_baseline": True})}, True),
        ({"loss": LossSection(kl_coef=0.1), "drop_zero_variance": True}, True),
        ({"drop_zero_variance": False}, False),
    ],
)
def test_groups_of_equal_rewards_are_dropped_only_where_nothing_acts_on_them(fields, dropped):
    section = LearnerSection(**fields)
    advantage = build(ADVANTAGES, section.advantage.use, section.advantage.options, "learner.advantage")
    assert Objective.of(section).filtering(advantage).drop_zero_variance is dropped


@pytest.mark.parametrize("use", ["grpo", "dr_grpo", "rloo", "reinforce++"])
def test_estimators_go_by_the_names_of_their_papers(use):
    advantages = estimate(build(ADVANTAGES, use, {}, "learner.advantage"), [1.0, 0.0, 0.0, 0.0])[0]
    expected = {"grpo": [1.5, -0.5], "dr_grpo": [0.75, -0.25], "rloo": [1.0, -1 / 3], "reinforce++": [1.5, -0.5]}[use]
    assert advantages[:2] == pytest.approx(expected, abs=1e-5)


def test_losses_go_by_the_names_of_their_papers():
    assert {"ppo", "grpo", "dapo", "dr_grpo", "gspo", "cispo"} <= LOSSES.keys()
    dapo = LOSSES["dapo"]()
    assert (dapo.clip_low, dapo.clip_high) == (0.2, 0.28)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("GRPO", "grpo"), ("Dr. GRPO", "dr_grpo"), ("drgrpo", "dr_grpo"), ("dr-grpo", "dr_grpo"), ("RLOO", "rloo"),
        ("REINFORCE++", "reinforce_plus_plus"), ("reinforce++", "reinforce_plus_plus"), ("Group", "group"),
        ("reinforce-plus-plus", "reinforce_plus_plus"), ("tp_grpo", "tp_grpo"), ("my.module:GRPO", "my.module:GRPO"),
    ],
)  # fmt: skip
def test_an_estimator_is_known_however_its_name_is_written(typed, name):
    assert parse({"learner": {"advantage": {"use": typed, "options": {"eps": 0.5}}}}).learner.advantage == Use(
        use=name, options={"eps": 0.5}
    )


@pytest.mark.parametrize("use", ["reinforce_plus_plus_baseline", "REINFORCE++-baseline"])
def test_reinforce_plus_plus_with_a_baseline_is_an_option_of_it(use):
    found = parse({"learner": {"advantage": {"use": use}}}).learner.advantage
    assert found == Use(use="reinforce_plus_plus", options={"group_baseline": True})
    one, two = estimate(build(ADVANTAGES, found.use, found.options, ""), [1.0, 0.0], [3.0, 0.0])
    scale = np.sqrt((0.5**2 * 2 + 1.5**2 * 2) / 4)  # of what is left when each group's mean is off
    np.testing.assert_allclose([*one, *two], np.array([0.5, -0.5, 1.5, -1.5]) / scale, rtol=0.2)


@pytest.mark.parametrize(
    ("typed", "name"), [("DAPO", "dapo"), ("GSPO", "gspo"), ("CISPO", "cispo"), ("PPO", "ppo"), ("GRPO", "grpo")]
)
def test_a_loss_is_known_however_its_name_is_written(typed, name):
    found = parse({"learner": {"loss": {"use": typed}}}).learner.loss.use
    assert found == name
    assert found in LOSSES


@pytest.mark.parametrize(
    ("learner", "remedy"),
    [
        ({"loss": {"use": "dr_grpo"}}, "learner.loss.aggregate = 'constant'"),
        ({"loss": {"use": "Dr.GRPO"}}, "learner.loss.aggregate = 'constant'"),
        ({"advantage": {"use": "gae"}}, r"\[learner.value\]"),
        ({"advantage": {"use": "GAE"}}, r"\[learner.value\]"),
        ({"advantage": {"use": "DAPO"}}, "learner.loss.use = 'dapo'"),
        ({"loss": {"use": "REINFORCE++"}}, "learner.advantage.use = 'reinforce_plus_plus'"),
        ({"loss": {"use": "rloo"}}, "learner.advantage.use = 'rloo'"),
    ],
)
def test_a_name_that_means_more_than_one_key_is_refused_with_the_others(learner, remedy):
    with pytest.raises(ConfigError, match=remedy):
        parse({"learner": learner})
