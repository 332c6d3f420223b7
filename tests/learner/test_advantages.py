import numpy as np
import pytest

from cluster.plugins import build
from learner.advantages import ADVANTAGES, GroupAdvantage, LeaveOneOut

NAN = float("nan")


def test_group_advantages_are_standard_scores_with_the_sample_deviation():
    advantages = GroupAdvantage().advantages(np.array([1.0, 0.0, 1.0, 1.0, 0.0]))
    # mean 0.6, sample deviation sqrt(1.2 / 4) = 0.5477226
    np.testing.assert_allclose(advantages, [0.730295, -1.095443, 0.730295, 0.730295, -1.095443], atol=1e-5)


def test_without_normalisation_only_the_mean_is_taken_off():
    advantages = GroupAdvantage(normalize_std=False).advantages(np.array([3.0, 0.0, 0.0]))
    np.testing.assert_allclose(advantages, [2.0, -1.0, -1.0])


def test_leave_one_out_compares_with_the_mean_of_the_others():
    advantages = LeaveOneOut().advantages(np.array([1.0, 0.0, 0.5]))
    np.testing.assert_allclose(advantages, [1.0 - 0.25, 0.0 - 0.75, 0.5 - 0.5])


@pytest.mark.parametrize("name", ADVANTAGES)
def test_equal_rewards_have_no_advantage_whatever_their_rounding(name):
    # the mean of ten times 0.1 is not 0.1, and a division by eps would make that a signal
    advantages = ADVANTAGES[name]().advantages(np.full(10, 0.1))
    assert np.abs(advantages).max() < 1e-12


@pytest.mark.parametrize("name", ADVANTAGES)
def test_an_unknown_reward_moves_nobodys_baseline_and_stays_unknown(name):
    estimator = ADVANTAGES[name]()
    advantages = estimator.advantages(np.array([1.0, NAN, 0.0, 1.0]))
    assert np.isnan(advantages[1])
    np.testing.assert_allclose(advantages[[0, 2, 3]], estimator.advantages(np.array([1.0, 0.0, 1.0])))


@pytest.mark.parametrize("name", ADVANTAGES)
def test_lonely_and_absent_rewards_give_nothing_to_train_on(name):
    estimator = ADVANTAGES[name]()
    np.testing.assert_array_equal(estimator.advantages(np.array([NAN, 1.0])), [NAN, 0.0])
    assert np.isnan(estimator.advantages(np.array([NAN, NAN]))).all()


def test_options_come_from_the_recipe():
    assert build(ADVANTAGES, "group", {"normalize_std": False}, "learner.advantage") == GroupAdvantage(
        normalize_std=False
    )
