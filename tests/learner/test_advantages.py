import numpy as np
import pytest

from cluster.errors import PluginError
from cluster.plugins import build
from learner.advantages.estimators import (
    Advantage,
    GroupAdvantage,
    LeaveOneOut,
    ReinforcePlusPlus,
    Undivided,
    checked,
)
from learner.advantages.registry import ADVANTAGES
from tests.learner.groups import estimate, random_groups, scored

NAN = float("nan")

COMPARING = [name for name in ADVANTAGES if name not in ("explors", "role_baseline")]
"""Those that compare rollouts with others of their step; a role compares with its past."""


def test_group_advantages_are_standard_scores_with_the_sample_deviation():
    advantages = GroupAdvantage().standard(np.array([1.0, 0.0, 1.0, 1.0, 0.0]))
    # mean 0.6, sample deviation sqrt(1.2 / 4) = 0.5477226
    np.testing.assert_allclose(advantages, [0.730295, -1.095443, 0.730295, 0.730295, -1.095443], atol=1e-5)


def test_without_normalisation_only_the_mean_is_taken_off():
    advantages = GroupAdvantage(normalize_std=False).standard(np.array([3.0, 0.0, 0.0]))
    np.testing.assert_allclose(advantages, [2.0, -1.0, -1.0])


def test_leave_one_out_compares_with_the_mean_of_the_others():
    advantages = estimate(LeaveOneOut(), [1.0, 0.0, 0.5])[0]
    np.testing.assert_allclose(advantages, [1.0 - 0.25, 0.0 - 0.75, 0.5 - 0.5])


@pytest.mark.parametrize("name", COMPARING)
def test_equal_rewards_have_no_advantage_whatever_their_rounding(name):
    # the mean of ten times 0.1 is not 0.1, and a division by eps would make that an advantage
    advantages = estimate(ADVANTAGES[name](), np.full(10, 0.1))[0]
    assert np.abs(advantages).max() < 1e-12


@pytest.mark.parametrize("name", COMPARING)
def test_an_unknown_reward_moves_nobodys_baseline_and_stays_unknown(name):
    estimator = ADVANTAGES[name]()
    advantages = estimate(estimator, [1.0, NAN, 0.0, 1.0])[0]
    assert np.isnan(advantages[1])
    np.testing.assert_allclose(advantages[[0, 2, 3]], estimate(estimator, [1.0, 0.0, 1.0])[0])


@pytest.mark.parametrize("name", COMPARING)
def test_lonely_and_absent_rewards_give_nothing_to_train_on(name):
    estimator = ADVANTAGES[name]()
    np.testing.assert_array_equal(estimate(estimator, [NAN, 1.0])[0], [NAN, 0.0])
    assert np.isnan(estimate(estimator, [NAN, NAN])[0]).all()


def test_options_come_from_the_recipe():
    assert build(ADVANTAGES, "group", {"normalize_std": False}, "learner.advantage") == GroupAdvantage(
        normalize_std=False
    )


def test_a_step_is_its_groups_one_by_one_where_a_group_is_the_scope():
    rewards = [np.array([1.0, 0.0]), np.array([3.0, NAN, 0.0])]
    for estimator in (GroupAdvantage(), LeaveOneOut()):
        for found, alone in zip(estimate(estimator, *rewards), rewards, strict=True):
            np.testing.assert_array_equal(found, estimate(estimator, alone)[0])


def test_reinforce_plus_plus_standardises_over_the_step():
    found = estimate(ReinforcePlusPlus(), [1.0, 1.0], [0.0], [NAN, 2.0])
    # mean 1, sample deviation sqrt(2 / 3) = 0.8164966
    np.testing.assert_allclose(np.concatenate(found), [0, 0, -1.2247449, NAN, 1.2247449], atol=1e-5)
    assert [len(f) for f in found] == [2, 1, 2]


def test_with_a_group_baseline_deviations_are_compared_over_the_step():
    found = estimate(ReinforcePlusPlus(group_baseline=True), [10.0, 10.2], [3.0, 1.0])
    # −0.1, 0.1, 1, −1: sample deviation sqrt(2.02 / 3) = 0.8205689
    np.testing.assert_allclose(np.concatenate(found), np.array([-0.1, 0.1, 1, -1]) / 0.8205689, atol=1e-5)


def test_a_step_without_groups_has_no_advantages():
    for name, estimator in ADVANTAGES.items():
        assert list(checked(estimator(), name, [], {})) == []


def test_a_group_of_one_has_an_advantage_against_the_step():
    found = estimate(ReinforcePlusPlus(), [1.0], [0.0])
    np.testing.assert_allclose(np.concatenate(found), [0.7071068, -0.7071068], atol=1e-5)


def test_undivided_is_the_reward_itself():
    np.testing.assert_array_equal(estimate(Undivided(), [2.0, NAN, -1.0])[0], [2.0, NAN, -1.0])


class Answers(Advantage):
    """Says of every step what it is told to, or raises it."""

    what: object

    def advantages(self, groups):
        if isinstance(self.what, Exception):
            raise self.what
        return self.what


def check(what: object) -> list[list[np.ndarray]]:
    """Of two groups: rollouts of 5 and 4 tokens, the first of unknown reward, and one of 3."""
    groups = random_groups([[(2, 3), (3, 1)], [(1, 2)]])
    return checked(Answers(what=what), "mine:Answers", [scored(groups[0], [NAN, 0.5]), scored(groups[1], [1.0])])


def test_one_advantage_a_rollout_or_a_token_passes():
    found = check([[NAN, 2.0], [[0.0, 1.0, 2.0]]])
    assert [[c.tolist() for c in g] for g in found][1] == [[0.0, 1.0, 2.0]]
    assert found[0][1].tolist() == [2.0]
    assert np.isnan(found[0][0]).all()
    assert found[0][0].dtype == np.float32
    # on the prompt, where nothing is trained, anything may stand
    assert np.isnan(check([[NAN, 2.0], [[NAN, 1.0, 2.0]]])[1][0][0])


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (ZeroDivisionError("by zero"), ["ZeroDivisionError: by zero.", "1/0: [nan 0.5]", "policy/1/1: [1.]"]),
        ([[0.0, 1.0]], ["1 groups", "has 2"]),
        ([[0.0, 1.0, 2.0], [1.0]], ["group policy/1/0", "shape (3,)", "(2,)"]),
        ([[0.0, 1.0], 1.0], ["group policy/1/1", "shape ()", "(1,)"]),
        ([[0.0, [1.0, 2.0]], [1.0]], ["group policy/1/0, rollout 1", "2 advantages", "4 tokens"]),
        ([[0.0, "much"], [1.0]], ["group policy/1/0, rollout 1", "'much' is no number"]),
        ([[0.0, NAN], [1.0]], ["group policy/1/0, rollout 1", "is nan", "reward 0.5 is known"]),
        ([[0.0, 1.0], [[0.0, 1e39, 0.0]]], ["group policy/1/1, rollout 0", "is inf", "reward 1 is known"]),
    ],
)  # fmt: skip
def test_a_broken_advantage_is_named_with_its_group_and_value(what, words):
    with pytest.raises(PluginError) as caught:
        check(what)
    for word in ["learner.advantage.use = 'mine:Answers'", *words]:
        assert word in str(caught.value)
