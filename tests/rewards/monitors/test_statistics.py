"""Pure figures of monitors: over-optimisation, STARC, the policy cliff, RewardMATH."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rewards.monitors import starc
from rewards.monitors.cliff import (
    degenerate_frac,
    flip_rate,
    fragile_frac,
    greedy_distance,
    softmax_distance,
    top_gap,
)
from rewards.monitors.overoptimisation import (
    OverOptimisation,
    best_of_n_kl,
    fitted_law,
    law,
    length_fit,
    peak_of,
    sampled_kl,
)
from rewards.monitors.rewardmath import STEP_SCORES, best_of_n, rank_from_wins, rank_of_right, summary

NAN = float("nan")


def test_the_hump_of_quality():
    assert peak_of(1.0, 0.5) == pytest.approx((2.718282, 1.359141, 7.389056), abs=1e-6)
    assert peak_of(1.0, -0.1) is None
    assert peak_of(1.0, 1e-17) is None
    distances = np.array([1.0, 2, 4])
    assert law(distances, 1.0, 0.5) == pytest.approx([1, 1.306853, 1.227411], abs=1e-6)
    assert fitted_law(distances, np.array([1, 1.306853, 1.227411])) == pytest.approx((1, 0.5), abs=1e-5)
    assert best_of_n_kl(8) == pytest.approx(1.204442, abs=1e-6)
    assert sampled_kl(np.array([0.3, -0.2])) == pytest.approx((0.05, 0.031110), abs=1e-6)
    fit = length_fit(np.array([10.0, 20, 30]), np.array([1, 2.5, 2.5]))
    assert fit == pytest.approx((0.0964286, 0.964286), abs=1e-6)


def watched(distances, qualities, rewards=None) -> list[int]:
    monitor, alarms = OverOptimisation(), []
    rewards = np.zeros(len(distances)) if rewards is None else rewards
    for i, (d, q, r) in enumerate(zip(distances, qualities, rewards, strict=True)):
        alarms.append(monitor.observe(i, {"loss/kl_nats": d * d, "reward/mean": r}))
        alarms.append(monitor.observe(i, {"eval/accuracy": q}))
    return [a.step for a in alarms if a]


def test_the_alarm_comes_beyond_the_fitted_peak():
    distances = np.linspace(0, 4, 21)
    quality = 0.3 + 0.2 * np.where(distances > 0, law(np.maximum(distances, 1e-9), 1.0, 0.5), 0)
    assert watched(distances, quality) == [int(np.argmax(distances > np.e))]
    assert watched(distances[:13], quality[:13]) == [], "before the peak"
    assert watched(distances, 0.3 + 0.1 * distances) == [], "no hump"


def test_a_quality_that_only_levels_off_is_not_beyond_its_peak():
    # The fitted law has a hump in both, and most of the distances are beyond it.
    rng, distances = np.random.default_rng(0), np.linspace(0, 1.5, 17)
    gains = (0.5 + 0.1 * (1 - np.exp(-4 * distances)), np.full(17, 0.5))
    levelling, flat = (
        np.mean([bool(watched(distances, gain + rng.normal(0, 0.02, 17))) for _ in range(100)]) for gain in gains
    )
    assert levelling == 0
    assert flat <= 0.1
    lost = 0.5 - np.maximum(distances - 0.5, 0) / 2
    assert all(watched(distances, lost + rng.normal(0, 0.02, 17)) for _ in range(20)), "to be told apart from these"


def test_fewer_than_six_distances_are_not_fitted():
    distances = np.array([0.0, 1, 2, 3, 4, 5])
    quality = np.where(distances > 0, law(np.maximum(distances, 1e-9), 1.0, 0.5), 0)
    assert watched(distances, quality) == []
    assert watched(np.append(distances, 6), np.append(quality, law(np.array([6.0]), 1.0, 0.5))) == [6]


def test_quality_that_falls_while_the_reward_rises_is_exploitation():
    near = np.full(6, 0.1)
    falling = [0.5, 0.6, 0.55, 0.5, 0.45, 0.4]
    assert watched(near, falling, [1, 2, 3, 4, 5, 6]) == [4]
    assert watched(near, falling, [1, 2, 3, 2.5, 5, 6]) == []
    assert watched(near, [0.5, 0.6, 0.55, 0.5, 0.55, 0.4], [1, 2, 3, 4, 5, 6]) == []


def test_what_was_not_measured_is_passed_over():
    monitor = OverOptimisation()
    assert monitor.observe(0, {"eval/accuracy": 0.5}) is None
    assert monitor.observe(1, {"loss/kl_nats": None, "reward/mean": NAN, "eval/accuracy": None}) is None


STAY, SWITCH = 0, 1
MOVES = np.zeros((2, 2, 2))
for state in (0, 1):
    MOVES[state, STAY, state] = MOVES[state, SWITCH, 1 - state] = 1
ARRIVE_1 = np.zeros((2, 2, 2))
ARRIVE_1[:, :, 1] = 1


def test_starc_on_two_states():
    a, b, switch = ARRIVE_1, ARRIVE_1[:, :, ::-1], np.zeros((2, 2, 2))
    switch[:, SWITCH, :] = 1
    ca, cb, cc = (starc.canonical(r, MOVES, 0.5) for r in (a, b, switch))
    assert ca == pytest.approx(np.array([[-0.5, 0.5], [0.5, -0.5]]))
    assert cc == pytest.approx(np.array([[-0.5, 0.5], [-0.5, 0.5]]))
    assert starc.distance(ca, cb) == pytest.approx(1)
    assert starc.distance(ca, cc) == pytest.approx(0.7071068, abs=1e-7)


@given(st.integers(0, 10_000))
def test_starc_ignores_what_cannot_change_the_best_policy(seed):
    rng = np.random.default_rng(seed)
    transitions, gamma = rng.dirichlet(np.ones(4), (4, 3)), 0.9
    reward, potential = rng.normal(size=(4, 3, 4)), rng.normal(size=4)
    shaped = 3.7 * reward + gamma * potential - potential[:, None, None]
    noise = rng.normal(size=(4, 3, 4))
    noise -= (transitions * noise).sum(2, keepdims=True)
    c = starc.canonical(reward, transitions, gamma)
    assert starc.distance(c, starc.canonical(shaped, transitions, gamma)) == pytest.approx(0, abs=1e-9)
    assert starc.distance(c, starc.canonical(reward + noise, transitions, gamma)) == pytest.approx(0, abs=1e-9)
    assert starc.distance(c, starc.canonical(-reward, transitions, gamma)) == pytest.approx(1)


def test_starc_of_groups():
    one = [np.array([1.0, 0, NAN]), np.array([0.0, 1, 1])]
    assert starc.group_distance(one, [2 * r + 5 for r in one]) == pytest.approx(0, abs=1e-12)
    assert starc.group_distance(one, [r + i for i, r in enumerate(one)]) == pytest.approx(0, abs=1e-12)
    assert starc.group_distance(one, [-r for r in one]) == pytest.approx(1)
    assert starc.group_distance(one, [np.array([1.0, 0, 9]), one[1]]) == pytest.approx(0), "unknown to one of them"
    assert starc.group_distance(one, [np.full(3, 0.1)] * 2) == pytest.approx(0.5), "a constant tells nothing"
    assert np.isnan(starc.group_distance([np.full(3, NAN)], [np.ones(3)]))


def test_the_policy_cliff():
    before, after = np.array([1, 0.99]), np.array([0.99, 1])
    assert greedy_distance(before, after) == 1
    assert softmax_distance(before, after, 0.1) == pytest.approx(0.0499584, abs=1e-7)
    assert softmax_distance(before, after, 0.1) == pytest.approx(np.tanh(0.05))
    assert top_gap(np.array([1.0, 1, 0])) == 0
    assert top_gap(np.array([1.0, NAN, 0.25])) == 0.75
    assert np.isnan(top_gap(np.array([1.0, NAN])))


PAIRS = arrays(float, (2, 5), elements=st.floats(-2, 2))


@given(PAIRS, st.floats(0.05, 5))
def test_entropy_bounds_the_jump(pair, tau):
    bound = np.tanh(np.abs(pair[0] - pair[1]).max() / (2 * tau))
    assert softmax_distance(pair[0], pair[1], tau) <= bound + 1e-12


def test_flips_fragile_and_degenerate_groups():
    groups = [np.array([1.0, 0.99]), np.array([1.0, 0]), np.array([1.0, 1, 0]), np.array([NAN, 1])]
    after = [np.array([0.99, 1.0]), np.array([0.9, 0]), np.array([1.0, 1, 0]), np.array([0.0, 1])]
    assert flip_rate(groups, after) == pytest.approx(1 / 3)
    assert fragile_frac(groups, 0.01) == pytest.approx(2 / 3)
    assert fragile_frac(groups, 0.001) == pytest.approx(1 / 3)
    assert degenerate_frac([np.zeros(3), np.array([0.0, 1]), np.array([NAN, 1])]) == 0.5
    assert np.isnan(flip_rate([groups[3]], [after[3]]))
    assert np.isnan(degenerate_frac([]))
    assert np.isnan(fragile_frac([], 0.1))


def test_rewardmath():
    tied = rank_of_right(0.5, [0.9, 0.5, *[0.1] * 7])
    assert (tied, 1 / tied) == (3, pytest.approx(1 / 3))
    assert rank_of_right(0.95, [0.9, 0.5, *[0.1] * 7]) == 1
    assert rank_from_wins(7, 9) == 3
    assert summary([tied, 1]) == (0.5, pytest.approx(2 / 3))
    assert summary(range(1, 11)) == pytest.approx((0.1, 0.2929), abs=1e-4)
    steps = np.array([0.9, 0.8, 0.5])
    assert {name: score(steps) for name, score in STEP_SCORES.items()} == pytest.approx(
        {
            "prod": 0.36,
            "geometric": 0.711379,
            "mean": 0.733333,
            "mean_logit": 0.767546,
            "mean_odds": 4.666667,
            "min": 0.5,
            "last": 0.5,
        },
        abs=1e-6,
    )


def test_best_of_n_breaks_ties_by_the_majority_among_the_tied():
    assert best_of_n(np.array([0.9, 0.9, 0.9, 0.1]), ["1", "2", "2", "1"]) == "2"
    assert best_of_n(np.array([0.9, 0.95, 0.9]), ["2", "1", "2"]) == "1"
