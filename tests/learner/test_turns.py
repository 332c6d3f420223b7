"""Credit per turn: closed forms, and that a reward reaches the turns before it and no later one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.buffer import Limits
from cluster.config import LearnerSection
from cluster.types import BatchRecord as Record
from cluster.types import Group, GroupReward, ScoredGroup, Turn, decode, encode
from learner.advantages.estimators import (
    GroupAdvantage,
    LeaveOneOut,
    ReinforcePlusPlus,
    advantages_of,
    all_equal,
    returns_of,
    returns_to_go,
    tells_nothing,
    turn_starts,
)
from learner.pack import pack
from tests.cluster.pipeline import Pipeline
from tests.learner.groups import each, estimate, group, rollout, scored
from tests.learner.runs import assembler

NAN = float("nan")
CENTRED = GroupAdvantage(normalize_std=False)


def episode(turns: int):
    """A prompt of 2 tokens; then turns of 2 tokens of the policy and, but for the last, 1 of the environment."""
    made, spoken, at = rollout(2, 3 * turns - 1, np.random.default_rng(0)), [Turn("user", 0, 2, "")], 2
    mask = np.zeros(len(made.tokens), bool)
    for _ in range(turns):
        spoken += [Turn("assistant", at, at + 2, ""), Turn("user", at + 2, at + 3, "")]
        mask[at : at + 2] = True
        at += 3
    return replace(made, turns=tuple(spoken[:-1]), loss_mask=mask, logprobs=np.where(mask, -1.0, 0.0).astype("f4"))


def at_turns(made, rewards: list[float]) -> np.ndarray:
    """Token values: each turn's reward at its last token."""
    values = np.zeros(len(made.tokens))
    ends = [turn.end for turn in made.turns if turn.role == "assistant"]
    values[[end - 1 for end in ends]] = rewards
    return values


def mixed_of(found, rewards: list[list[float]], whole: list[float] | None = None) -> GroupReward:
    tokens = tuple(map(at_turns, found.rollouts, rewards))
    return GroupReward(np.array([t.sum() for t in tokens]) + np.array(whole or [0.0] * len(tokens)), tokens=tokens)


def returned(found, mixed: GroupReward, discount: float = 1.0) -> np.ndarray:
    return returns_of(ScoredGroup(found, {}, reward=mixed), discount)


def test_turns_without_tokens_return_what_follows_them():
    values = np.array([1.0, 2.0, 4.0])
    assert returns_to_go(values, np.array([0, 2, 2, 3]), 1.0).tolist() == [7.0, 4.0, 4.0, 0.0]
    assert returns_to_go(np.zeros(0), np.array([0]), 1.0).tolist() == [0.0]


def test_discounted_returns_to_go():
    values = np.array([0.0, 1.0, 0.0, 2.0, 4.0])
    np.testing.assert_array_equal(returns_to_go(values, np.array([0, 2, 4]), 0.5), [1 + 0.5 * (2 + 0.5 * 4), 4.0, 4.0])


def test_what_the_environment_answers_belongs_to_the_turn_before_and_a_prompt_to_the_first():
    made = episode(2)
    values = np.zeros(len(made.tokens))
    values[4] = 1.0  # the environment's answer to turn 0
    values[0] = 8.0
    assert turn_starts(made).tolist() == [2, 5]
    assert returns_to_go(values, turn_starts(made), 1.0).tolist() == [9.0, 0.0]


def test_a_reward_reaches_the_turns_before_it_and_no_later_one():
    found = group(0, [episode(3), episode(3)])
    mixed = mixed_of(found, [[0, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(returned(found, mixed, 0.5), [[0.5, 1, 0], [0, 0, 0]])
    [[first, second]] = advantages_of(CENTRED, "it", [ScoredGroup(found, {}, reward=mixed)], 0.5)
    # tokens: prompt, prompt, turn 0 ×2, answer, turn 1 ×2, answer, turn 2 ×2
    np.testing.assert_allclose(first, [0, 0, 0.25, 0.25, 0, 0.5, 0.5, 0, 0, 0])
    np.testing.assert_allclose(second, -first)


def test_a_turn_is_compared_with_the_same_turn_of_those_that_have_it():
    found = group(0, [episode(1), episode(2), episode(2)])
    mixed = mixed_of(found, [[3], [0, 1], [0, 0]])
    np.testing.assert_array_equal(returned(found, mixed), [[3, NAN], [1, 1], [0, 0]])
    one = ScoredGroup(found, {}, reward=mixed)
    [credit] = advantages_of(CENTRED, "it", [one])
    mean = 4 / 3
    assert credit[0][2:4].tolist() == pytest.approx([3 - mean] * 2)
    assert credit[1][[2, 5]].tolist() == pytest.approx([1 - mean, 0.5])
    assert credit[2][[2, 5]].tolist() == pytest.approx([-mean, -0.5])
    [other] = advantages_of(LeaveOneOut(), "it", [one])
    assert other[1][[2, 5]].tolist() == pytest.approx([1 - 1.5, 1.0])


def test_a_whole_rollout_s_reward_is_in_every_turn_s_return_undiscounted():
    found = group(0, [episode(2), episode(2)])
    returns = returned(found, mixed_of(found, [[0, 1], [0, 0]], whole=[10.0, 20.0]), 0.5)
    np.testing.assert_allclose(returns, [[10.5, 11], [20, 20]])


def test_without_token_values_nothing_changes():
    found = group(0, [episode(1), episode(3), episode(2)])
    rewards = np.array([1.0, NAN, 4.0])
    assert returned(found, GroupReward(rewards)).shape == (3, 1)
    for estimator in (GroupAdvantage(), LeaveOneOut(), ReinforcePlusPlus()):
        credit = np.concatenate(advantages_of(estimator, "it", [scored(found, rewards)])[0])
        np.testing.assert_array_equal(credit, estimate(estimator, rewards)[0].astype(np.float32))


def test_values_within_a_single_turn_are_what_their_sum_is():
    found = group(0, [episode(1), episode(1)])
    values = [np.array([0.0, 0, 1, 2]), np.array([0.0, 0, 0, 1])]
    mixed = GroupReward(np.array([3.0, 1.0]), tokens=tuple(values))
    credit = advantages_of(CENTRED, "it", [ScoredGroup(found, {}, reward=mixed)])[0]
    assert [c.tolist() for c in credit] == [[1.0], [-1.0]]


def test_a_rollout_that_is_left_out_moves_no_baseline():
    found = group(0, [episode(2), episode(2), episode(2)])
    mixed = mixed_of(found, [[0, 1], [0, NAN], [0, 0]])
    [credit] = advantages_of(CENTRED, "it", [ScoredGroup(found, {}, reward=mixed)])
    assert np.isnan(credit[1]).all()
    assert credit[0][5] == 0.5
    assert credit[2][5] == -0.5


def test_equal_sums_at_different_turns_have_a_gradient():
    found = group(0, [episode(2), episode(2)])
    assert not all_equal(returned(found, mixed_of(found, [[1, 0], [0, 1]])))
    assert all_equal(returned(found, mixed_of(found, [[0, 1], [0, 1]])))
    assert all_equal(np.full((2, 1), NAN))


def test_an_estimator_of_the_whole_step_sees_the_same_turn_of_every_group():
    groups = [group(0, [episode(2), episode(2)]), group(1, [episode(1), episode(1)])]
    mixed = [mixed_of(groups[0], [[3, 1], [0, 0]]), mixed_of(groups[1], [[2], [2]])]
    both = [ScoredGroup(g, {}, reward=m) for g, m in zip(groups, mixed, strict=True)]
    credit = advantages_of(ReinforcePlusPlus(), "it", both)
    spread = np.std([4, 0, 2, 2], ddof=1) + 1e-6
    assert credit[0][0][2] == pytest.approx(2 / spread)
    assert credit[0][0][5] == pytest.approx(0.5 / (np.std([1, 0], ddof=1) + 1e-6))
    assert credit[1][0].tolist() == [0.0]


def test_a_cut_records_credit_per_turn_and_it_is_trained_on(buffer):
    pipeline = Pipeline(buffer, Limits(1, 1))
    found = None
    for claim in pipeline.claim_all():
        found = replace(group(0, [episode(2), episode(2)]), claim=claim)
        buffer.put(found)

    def mix(stored, scores):
        return mixed_of(stored, [[1, 0], [0, 1]])

    section = LearnerSection(groups_per_step=1, turn_discount=0.5)
    now = assembler(buffer, pipeline.epoch, each(mix), CENTRED).assemble(0, section)
    assert now is not None
    assert now.record.metrics["reward/zero_variance_frac"] == 0
    record = decode(encode(now.record), Record)
    first, second = record.advantages[0]
    # returns: (1, 0) and (0.5, 1)
    np.testing.assert_allclose(first, [0, 0, 0.25, 0.25, 0, -0.5, -0.5])
    np.testing.assert_allclose(second, -first)
    batch = pack(now.groups, record, section, epoch=pipeline.epoch)
    trained = np.concatenate([m.advantages[m.loss_mask] for m in batch.micros])
    assert sorted(trained.tolist()) == [-0.5, -0.5, -0.25, -0.25, 0.25, 0.25, 0.5, 0.5]


def of_variants(*variants: str) -> Group:
    found = group(0, [episode(1) for _ in variants])
    return replace(found, rollouts=tuple(replace(r, variant=v) for r, v in zip(found.rollouts, variants, strict=True)))


def test_rollouts_are_compared_with_those_of_the_same_view():
    found = of_variants("a", "b", "a", "b", "b")
    returns = np.array([[1.0], [5.0], [0.0], [5.0], [NAN]])
    [credit] = advantages_of(CENTRED, "it", [scored(found, returns[:, 0])])
    assert [float(c[0]) for c in credit[:4]] == [0.5, 0, -0.5, 0]
    assert np.isnan(credit[4]).all()
    assert not tells_nothing(found, returns)
    assert tells_nothing(found, np.array([[1.0], [5.0], [1.0], [5.0], [NAN]])), "two baselines, and nothing beside them"
