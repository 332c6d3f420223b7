"""Preferences as rewards, advantages and pairs: the numbers of SPO, Think-RM and DNO."""

from __future__ import annotations

import numpy as np
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import RewardSection
from cluster.types import Pair
from learner.advantages.estimators import GroupAdvantage
from rewards.aggregation.preferences import (
    large_margin_pairs,
    pairs_of,
    rate_against,
    replay_caps,
    self_play_update,
    strength_advantages,
)
from rewards.base import Services
from rewards.judges.backends.http import HttpClient
from rewards.judges.pool.pool import JudgePool
from rewards.judges.statistics import win_rates
from rewards.judges.templates import TEMPLATES, Item
from rewards.registry import build_reward
from tests.rewards.groups import group
from tests.rewards.judges.servers import chat, serving

NAN = float("nan")
CYCLE = np.array([[0.5, 1, 0, 1], [0, 0.5, 1, 1], [1, 0, 0.5, 1], [0, 0, 0, 0.5]])
"""A beats B beats C beats A, and all beat D."""
ORDERED = np.array([[0.0, 1, 1], [-1, 0, 1], [-1, -1, 0]])


def test_spo_does_not_break_a_cycle():
    rates = win_rates(CYCLE)
    assert rates == pytest.approx([2 / 3, 2 / 3, 2 / 3, 0])
    assert 2 * rates - 1 == pytest.approx([1 / 3, 1 / 3, 1 / 3, -1])
    assert rates != pytest.approx([0.625, 0.625, 0.625, 0.125]), "nobody plays against itself"
    assert rates[:3].mean() * 3 / 4 == pytest.approx(0.5), "win rates of a group have the mean one half"


def test_spo_queue_and_exact_update():
    queue = [2, 2, 3]
    assert rate_against(CYCLE[0, queue]) == pytest.approx(1 / 3)
    assert rate_against(np.array([1.0, NAN, 0, 0])) == pytest.approx(1 / 3)
    assert np.isnan(rate_against(np.array([NAN])))
    rewards, policy = self_play_update(np.array([0.5, 0.25, 0.25]), CYCLE[:3, :3], 0.5)
    assert rewards == pytest.approx([0.5, 0.375, 0.625])
    assert policy == pytest.approx([0.492268, 0.191689, 0.316042], abs=1e-6)


@pytest.mark.parametrize(
    ("strengths", "eps", "expected"),
    [
        ([[0, 2, 1], [-2, 0, -1], [-1, 1, 0]], 1e-6, [1, -1, 0]),
        (ORDERED, 1e-6, [0.942808, 0, -0.942808]),
        (ORDERED * 2e-4, 1e-6, [0.132020, 0, -0.132020]),
        (ORDERED * 2e-4, 0.0, [0.942809, 0, -0.942809]),
        (np.subtract.outer([3.0, 1, 2], [3.0, 1, 2]), 1e-6, [1, -1, 0]),
        (np.zeros((3, 3)), 0.0, [0, 0, 0]),
        ([[0, 1, NAN], [-1, 0, NAN], [NAN, NAN, 0]], 0.0, [0.5 / 0.5**0.5, -0.5 / 0.5**0.5, NAN]),
    ],
)
def test_advantages_of_a_matrix(strengths, eps, expected):
    """Think-RM, arXiv:2505.16265."""
    found = strength_advantages(np.array(strengths, float), eps)
    assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=8).filter(lambda r: len(set(r)) > 1))
def test_differences_of_rewards_give_the_groups_own_advantage(rewards):
    r = np.array(rewards, float)
    expected = GroupAdvantage(eps=0.0).standard(r)
    assert strength_advantages(np.subtract.outer(r, r), 0.0) == pytest.approx(expected)


def test_a_verdict_on_strength():
    template, item = TEMPLATES["pairwise_strength"](), Item("q", ("a", "b"))
    read = {v: 2 * template.parse(f"B lacks detail.\nVerdict: {v}", item, "text").values[0] - 1 for v in (-3, -2, 1)}
    assert read == pytest.approx({-3: 1, -2: 2 / 3, 1: -1 / 3}), "a negative verdict is for the first: d[i, j] = −v"


async def test_a_judge_of_strengths_gives_advantages():
    worth = {"three": 3, "one": 1, "two": 2}

    async def judges(request):
        lines = (await request.json())["messages"][1]["content"].splitlines()
        first, second = (worth[lines[lines.index(f"<<<RESPONSE {x}>>>") + 1]] for x in "AB")
        return web.json_response(chat(f"I compared.\nVerdict: {second - first}"))

    section = RewardSection(use="judge", options={"template": "pairwise_strength", "pairwise": "advantage"})
    async with serving(judges) as url:
        made = Services(judges={"judge": JudgePool("judge", [HttpClient(url)])})
        try:
            reward = build_reward(section, "rewards[0]")
            await reward.prepare(made)
            scores = await reward.score(group("three", "one", "two"), made)
        finally:
            await made.close_judges()
            made.close()
    assert scores.values == pytest.approx([1, -1, 0], abs=1e-5)


def test_dno_takes_large_margins_only():
    """Students s1 to s3 and a teacher; (g, s1) has a margin of 1, too little for a teacher."""
    scores = np.array([5.0, 3, 4, 6])
    student = np.array([True, True, True, False])
    assert set(large_margin_pairs(scores, student)) == {(0, 1), (0, 2), (3, 1), (3, 2)}
    assert set(large_margin_pairs(np.array([5.0, NAN, 4, NAN]), student)) == {(0, 2)}
    assert large_margin_pairs(np.array([4.0, 1, 1, 1]), student) == []


def test_dno_pairs_carry_margin_and_origin():
    (first, second) = pairs_of([(0, 1), (0, 2)], np.array([5.0, 3, 4]), "large_margin")
    assert first == Pair(0, 1, margin=2.0, origin="large_margin")
    assert (second.rejected, second.margin, second.label) == (2, 1.0, 1.0)


def test_dno_mixes_old_pairs_in_ever_smaller_shares():
    assert replay_caps(100, 4) == [30, 15, 7, 3]
    assert replay_caps(100, 0) == []


def test_dno_keeps_a_student_one_point_apart_where_points_are_shares_of_the_scale():
    scores, student = np.array([5, 4, 6, 3]) / 6, np.array([True, True, False, True])
    for student_margin in (1 / 6, 0.16):
        found = large_margin_pairs(scores, student, floor=5 / 6, margin=2 / 6, student_margin=student_margin)
        assert set(found) == {(0, 1), (0, 3), (2, 1), (2, 3)}
