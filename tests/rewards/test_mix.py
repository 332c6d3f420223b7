"""Mixing is a weighted sum, and unknown is what the recipe says."""

from dataclasses import replace

import numpy as np
import pytest

from cluster.config import RewardSection
from cluster.types import Scores
from rewards.aggregation.mixer import Mixer
from tests.rewards.groups import group

GROUP = group("a", "b", "c", "d")
KNOWN = Scores.of([1.0, 0.0, 1.0, 0.0])
PARTLY = Scores.of([1.0, None, 3.0, None])
NAN = float("nan")


def mix(*rewards: RewardSection, min_scored: int = 2, **scores: Scores):
    names = [r.name for r in rewards]
    return Mixer(rewards, names, min_scored)(GROUP, scores)


def section(name: str, **fields) -> RewardSection:
    return RewardSection(use="exact", name=name, **fields)


def test_a_weighted_sum():
    mixed = mix(section("x", weight=2.0), section("y", weight=-0.5), x=KNOWN, y=Scores.of([1, 2, 3, 4]))
    assert mixed.rewards.tolist() == [1.5, -1.0, 0.5, -2.0]
    assert mixed.drop is None


def test_an_unknown_score_leaves_its_rollout_out():
    mixed = mix(section("x"), section("y"), x=KNOWN, y=PARTLY)
    np.testing.assert_array_equal(mixed.rewards, [2.0, NAN, 4.0, NAN])
    assert mixed.drop is None


def test_a_defined_value_fills_what_is_unknown_but_not_its_coverage():
    mixed = mix(section("x"), section("y", missing=0.0, weight=2.0), x=KNOWN, y=PARTLY)
    assert mixed.rewards.tolist() == [3.0, 0.0, 7.0, 0.0]
    assert mixed.metrics["reward/y_known_frac"] == 0.5
    assert mixed.metrics["reward/y_failed_frac"] == 0.5
    assert mixed.metrics["reward/y_mean"] == 2.0
    assert mixed.metrics["reward/failed_scores"] == 2


@pytest.mark.parametrize(("policy", "reason"), [("drop_group", "missing:y"), ("wait", "waited:y")])
def test_one_unknown_score_may_cost_the_group(policy, reason):
    assert mix(section("x"), section("y", missing=policy), x=KNOWN, y=PARTLY).drop == reason
    assert mix(section("x"), section("y", missing=policy), x=KNOWN).drop == reason
    assert mix(section("x"), section("y", missing=policy), x=KNOWN, y=KNOWN).drop is None


def test_weight_zero_is_recorded_and_decides_nothing():
    mixed = mix(section("x"), section("y", weight=0.0, missing="drop_group"), x=KNOWN, y=PARTLY)
    assert mixed.rewards.tolist() == KNOWN.values.tolist()
    assert mixed.drop is None
    assert mixed.metrics["reward/y_mean"] == 2.0


def test_too_few_known_rewards_drop_the_group():
    assert mix(section("y"), min_scored=3, y=PARTLY).drop == "too_few_scores"
    assert mix(section("y"), min_scored=2, y=PARTLY).drop is None
    assert mix(section("y"), y=Scores.abstained(4)).drop == "too_few_scores"


def test_a_group_of_one_needs_one():
    one = group("a")
    assert Mixer([section("x")], ["x"], 2)(one, {"x": Scores.of([1.0])}).drop is None
    assert Mixer([section("x")], ["x"], 2)(one, {"x": Scores.of([None])}).drop == "too_few_scores"


def test_a_reward_that_never_answered_is_unknown_and_not_failed():
    mixed = mix(section("x"), section("y", missing=0.5), x=KNOWN)
    assert mixed.rewards.tolist() == [1.5, 0.5, 1.5, 0.5]
    assert mixed.metrics["reward/y_known_frac"] == 0
    assert mixed.metrics["reward/failed_scores"] == 0


def test_mixing_changes_no_evidence():
    before = PARTLY.values.copy()
    mix(section("y", missing=0.0), y=PARTLY)
    np.testing.assert_array_equal(PARTLY.values, before)


def placed(*values: float) -> tuple[np.ndarray, ...]:
    """Token values of the four rollouts: each value at the last token."""
    rows = [np.zeros(len(r.tokens)) for r in GROUP.rollouts]
    for row, value in zip(rows, values, strict=True):
        row[-1] = value
    return tuple(rows)


def at_tokens(*values: float) -> Scores:
    return replace(Scores.of(values), tokens=placed(*values))


def test_token_values_are_weighed_and_added_up_beside_what_is_the_rollout_s():
    found = mix(
        section("x", weight=2.0), section("y", weight=0.5), section("z", weight=-1.0),
        x=at_tokens(1, 0, 3, 0), y=KNOWN, z=at_tokens(0, 4, 1, 0),
    )  # fmt: skip
    assert found.tokens is not None
    assert [t[-1] for t in found.tokens] == [2.0, -4.0, 5.0, 0.0]
    assert found.rewards.tolist() == [2.5, -4.0, 5.5, 0.0]


def test_without_token_values_there_are_none():
    assert mix(section("x"), x=KNOWN).tokens is None
    assert mix(section("x"), section("y", weight=0.0), x=KNOWN, y=at_tokens(1, 2, 3, 4)).tokens is None


def test_an_unknown_token_is_an_unknown_score_unless_it_has_a_value():
    partly = at_tokens(1, NAN, 3, NAN)
    np.testing.assert_array_equal(mix(section("x"), x=partly).rewards, [1.0, NAN, 3.0, NAN])
    filled = mix(section("x", missing=0.25, weight=2.0), x=partly)
    assert filled.rewards.tolist() == [2.0, 0.5, 6.0, 0.5]
    assert filled.tokens is not None
    assert filled.tokens[1][-1] == 0.5
    assert mix(section("x", missing="drop_group"), x=partly).drop == "missing:x"


def test_a_shaped_reward_counts_for_the_rollout_as_a_whole():
    found = mix(section("x", shape={"use": "concise"}), x=at_tokens(1, 0, 3, 0))
    assert found.tokens is None
    assert found.rewards.tolist() == [1.0, 0.0, 1.0, 0.0]


def test_a_reward_that_failed_beside_one_with_token_values_leaves_its_rollouts_out():
    found = mix(section("x"), section("y"), x=at_tokens(1, 2, 3, 4), y=PARTLY)
    np.testing.assert_array_equal(found.rewards, [2.0, NAN, 6.0, NAN])
