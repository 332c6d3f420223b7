"""Advantages of single tokens: Clip and Delta's returns (arXiv:2410.15115), TP-GRPO's thoughts (arXiv:2507.23317)."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest

from cluster.errors import PluginError
from cluster.types import GroupReward, ScoredGroup
from learner.advantages.estimators import (
    GroupAdvantage,
    MultiAdvantage,
    ThoughtCredit,
    TokenReturns,
    TokenRewards,
    advantages_of,
    normalized,
)
from learner.advantages.multi_policy import AdvantagesByPolicy
from tests.learner.groups import group, rollout

NAN = float("nan")
OUTCOMES = np.array([1.0, 1, -1, -1])
RNG = np.random.default_rng(0)


def made(count: int, tokens: int):
    """A prompt of 1 token, and this many of the policy's."""
    return group(0, [rollout(1, tokens, RNG) for _ in range(count)])


def credit_of(estimator, found, mixed: GroupReward) -> list[np.ndarray]:
    return list(advantages_of(estimator, "it", [ScoredGroup(found, {}, reward=mixed)])[0])


def merged(labels: str) -> list[tuple[str, int]]:
    return [(label, len(list(run))) for label, run in groupby(labels)]


def accumulated(labels: str, r_c: float) -> list[float]:
    """The process term of each thought in the other form: what it and those behind it are worth, but for the last."""
    worth = [r_c if label == "C" else -r_c for label in labels[:-1]] + [0.0]
    return np.cumsum(worth[::-1])[::-1].tolist()


def test_thoughts_of_right_and_wrong_solutions():
    flags = [[0, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    mixed = GroupReward(OUTCOMES, token_weights=tuple(np.array([0.0, *f]) for f in flags))
    credit = credit_of(ThoughtCredit(), made(4, 3), mixed)
    assert credit[0][1:] == pytest.approx([0.866025, 0.366025, 0.866025], abs=1e-6)
    assert credit[1][1:] == pytest.approx([0.866025] * 3, abs=1e-6)
    assert credit[2][1:] == pytest.approx([-0.866025, 0, -0.866025], abs=1e-6)
    assert credit[3][1:] == pytest.approx([-0.866025] * 3, abs=1e-6)


def test_merged_thoughts_are_the_papers_sums_and_single_steps_are_not():
    assert merged("CCIIC") == [("C", 2), ("I", 2), ("C", 1)]
    assert accumulated("CIIIIIC", 0.5)[0] == -2.0, "dense step rewards flip the sign"
    thoughts = "".join(label for label, _ in merged("CIIIIIC"))
    assert accumulated(thoughts, 0.5) == [0, -0.5, 0]
    flags = tuple(np.array([0.0] + [float(c == "I") for c in "CIIIIIC"]) for _ in OUTCOMES)
    credit = credit_of(ThoughtCredit(), made(4, 7), GroupReward(OUTCOMES, token_weights=flags))
    assert credit[0][1:] - 0.866025 == pytest.approx([0] + [-0.5] * 5 + [0], abs=1e-6), "the closed form is the merged"


def test_what_cannot_be_solved_yet_is_not_corrected_and_unknown_labels_change_nothing():
    hopeless = GroupReward(np.array([-1.0, -1, NAN, -1]), token_weights=tuple(np.array([0, 1.0]) for _ in range(4)))
    credit = credit_of(ThoughtCredit(), made(4, 1), hopeless)
    assert [float(c[1]) for c in credit[:2]] == [0, 0]
    assert np.isnan(credit[2]).all()
    unlabelled = GroupReward(OUTCOMES, token_weights=tuple(np.full(2, NAN) for _ in OUTCOMES))
    plain = GroupAdvantage().standard(OUTCOMES)
    assert [float(c[1]) for c in credit_of(ThoughtCredit(), made(4, 1), unlabelled)] == pytest.approx(plain.tolist())
    nobody_asked = credit_of(ThoughtCredit(), made(4, 1), GroupReward(OUTCOMES))
    assert np.concatenate(nobody_asked) == pytest.approx(plain)


def test_all_right_and_one_takes_back_a_step():
    mixed = GroupReward(np.ones(2), token_weights=(np.array([0, 1.0, 0]), np.zeros(3)))
    credit = credit_of(ThoughtCredit(alpha=0.3), made(2, 2), mixed)
    assert credit[0].tolist() == pytest.approx([0, -0.3, 0])
    assert credit[1].tolist() == [0, 0, 0]


def test_a_token_is_credited_with_what_is_still_to_come():
    """Clip-Delta of q = [0.9, 0.8, 0.3, 0.95] with α = 1: from step k on, u_k and the success are to come."""
    d = np.array([0, 0, 0.2, -0.2, 0])
    mixed = GroupReward(np.array([1.0, 0.0]), tokens=(d, np.zeros(5)))
    right, wrong = credit_of(TokenReturns(normalize_std=False), made(2, 4), mixed)
    assert right + 0.5 == pytest.approx([1, 1, 1, 0.8, 1])
    assert wrong + 0.5 == pytest.approx([0] * 5)
    spread = np.std([1, 0], ddof=1) + 1e-6
    assert credit_of(TokenReturns(), made(2, 4), mixed)[0] == pytest.approx(right / spread)


def test_without_token_rewards_it_is_the_groups_advantage_and_views_have_their_own():
    rewards = np.array([1.0, 0.0, 3.0, NAN])
    plain = [c.tolist() for c in credit_of(TokenReturns(), made(4, 2), GroupReward(rewards))]
    expected = GroupAdvantage().standard(rewards).astype(np.float32)
    np.testing.assert_array_equal(np.concatenate(plain), expected)
    found = made(4, 2)
    variants = replace(
        found, rollouts=tuple(replace(r, variant=v) for r, v in zip(found.rollouts, "abab", strict=True))
    )
    tokens = tuple(np.array([0, 0.5, 0]) for _ in range(4))
    credit = credit_of(
        TokenReturns(normalize_std=False), variants, GroupReward(np.array([2.0, 0, 1, 0]), tokens=tokens)
    )
    assert [c.tolist() for c in credit] == [[0.5, 0.5, 0], [0, 0, -0.5], [-0.5, -0.5, -1], [0, 0, -0.5]]


def test_policies_in_one_group_have_each_their_own():
    found = made(4, 2)
    two = replace(found, rollouts=tuple(replace(r, policy=p) for r, p in zip(found.rollouts, "abab", strict=True)))
    mixed = GroupReward(np.array([2.0, 0, 1, 0]), tokens=tuple(np.array([0, 0.5, 0]) for _ in range(4)))
    estimator = TokenReturns(normalize_std=False)
    [credit] = AdvantagesByPolicy(estimator, "it", policies=("a", "b")).of([ScoredGroup(two, {}, reward=mixed)], 1.0)
    assert [c.tolist() for c in credit] == [[0.5, 0.5, 0], [0, 0, -0.5], [-0.5, -0.5, -1], [0, 0, -0.5]]


def test_a_tokens_own_reward_is_its_advantage_beside_the_groups_of_the_rest():
    tokens = (np.array([0, 0.1, -0.3]), np.array([0, 0.7, 0.1]))
    by_teacher = GroupReward(np.array([t.sum() for t in tokens]), tokens=tokens)
    assert np.concatenate(credit_of(TokenRewards(), made(2, 2), by_teacher)) == pytest.approx(np.concatenate(tokens))
    both = GroupReward(by_teacher.rewards + np.array([1.0, 0.0]), tokens=tokens)
    right, wrong = credit_of(TokenRewards(normalize_std=False), made(2, 2), both)
    assert right == pytest.approx(tokens[0] + 0.5)
    assert wrong == pytest.approx(tokens[1] - 0.5)
    assert np.concatenate(credit_of(TokenRewards(), made(2, 2), GroupReward(np.array([1.0, 0.0])))) == pytest.approx(
        GroupAdvantage().standard(np.array([1.0, 0.0]))
    )
    assert TokenRewards().uses_equal_rewards


def test_rounding_of_sums_is_no_difference_between_rollouts():
    tokens = tuple(RNG.normal(size=6) * 1e3 for _ in range(4))
    rewards = np.array([float(np.float64(t[::-1].sum())) for t in tokens]) + np.array([1e-13, 0, -1e-13, 0])
    credit = credit_of(TokenRewards(), made(4, 5), GroupReward(rewards, tokens=tokens))
    np.testing.assert_allclose(np.concatenate(credit), np.concatenate(tokens), rtol=1e-5)


SMALL, LARGE = np.array([1.0, -1, 0]), np.array([100.0, -50, -50])


def test_rewards_of_all_scales_are_heard_where_each_is_normalised_first():
    mixed = GroupReward(SMALL + LARGE, parts={"small": SMALL, "large": LARGE, "constant": np.full(3, 7.0)})
    assert normalized(SMALL) + normalized(LARGE) == pytest.approx([2.6389584, -1.9318516, -0.7071068], abs=1e-7)
    assert normalized(SMALL + LARGE) == pytest.approx([1.4141905, -0.7140962, -0.7000943], abs=1e-7)
    credit = np.concatenate(credit_of(MultiAdvantage(), made(3, 2), mixed))
    assert credit == pytest.approx([2.6389584, -1.9318516, -0.7071068], abs=1e-6)
    half = np.concatenate(credit_of(MultiAdvantage(weights={"large": 0.5}), made(3, 2), mixed))
    assert half == pytest.approx(normalized(SMALL) + 0.5 * normalized(LARGE), abs=1e-6)


def test_an_unknown_reward_is_in_no_mean_and_a_reward_that_is_not_there_is_named():
    values = np.array([1.0, -1, NAN, 0])
    mixed = GroupReward(values, parts={"small": values})
    credit = np.concatenate(credit_of(MultiAdvantage(), made(4, 2), mixed))
    assert credit[[0, 1, 3]] == pytest.approx(normalized(SMALL), abs=1e-6)
    assert np.isnan(credit[2])
    with pytest.raises(PluginError, match=r"weights\.smal: the trained rewards are small"):
        credit_of(MultiAdvantage(weights={"smal": 1.0}), made(4, 2), mixed)
