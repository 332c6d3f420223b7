"""Mixing is a weighted sum, and unknown is what the recipe says."""

import numpy as np
import pytest

from cluster.config import RewardSection
from cluster.types import Scores
from rewards.mix import Mixer
from tests.rewards.groups import group

GROUP = group("a", "b", "c", "d")
KNOWN = Scores.of([1.0, 0.0, 1.0, 0.0])
PARTLY = Scores.of([1.0, None, 3.0, None])
NAN = float("nan")


def mix(*rewards: RewardSection, min_valid: int = 2, **scores: Scores):
    names = [r.name for r in rewards]
    return Mixer(rewards, names, min_valid)(GROUP, scores)


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
    assert mix(section("x"), section("y", on_missing=policy), x=KNOWN, y=PARTLY).drop == reason
    assert mix(section("x"), section("y", on_missing=policy), x=KNOWN).drop == reason
    assert mix(section("x"), section("y", on_missing=policy), x=KNOWN, y=KNOWN).drop is None


def test_weight_zero_is_recorded_and_decides_nothing():
    mixed = mix(section("x"), section("y", weight=0.0, on_missing="drop_group"), x=KNOWN, y=PARTLY)
    assert mixed.rewards.tolist() == KNOWN.values.tolist()
    assert mixed.drop is None
    assert mixed.metrics["reward/y_mean"] == 2.0


def test_too_few_known_rewards_drop_the_group():
    assert mix(section("y"), min_valid=3, y=PARTLY).drop == "too_few_scores"
    assert mix(section("y"), min_valid=2, y=PARTLY).drop is None
    assert mix(section("y"), y=Scores.abstained(4)).drop == "too_few_scores"


def test_a_group_of_one_needs_one():
    one = group("a")
    assert Mixer([section("x")], ["x"], 2)(one, {"x": Scores.of([1.0])}).drop is None
    assert Mixer([section("x")], ["x"], 2)(one, {"x": Scores.of([None])}).drop == "too_few_scores"


def test_a_signal_that_never_answered_is_unknown_and_not_failed():
    mixed = mix(section("x"), section("y", missing=0.5), x=KNOWN)
    assert mixed.rewards.tolist() == [1.5, 0.5, 1.5, 0.5]
    assert mixed.metrics["reward/y_known_frac"] == 0
    assert mixed.metrics["reward/failed_scores"] == 0


def test_mixing_changes_no_evidence():
    before = PARTLY.values.copy()
    mix(section("y", missing=0.0), y=PARTLY)
    np.testing.assert_array_equal(PARTLY.values, before)
