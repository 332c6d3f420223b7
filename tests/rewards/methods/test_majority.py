"""Majority vote by the numbers of MM-UPT (arXiv:2505.22453), through the mixer of its recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.config import load
from cluster.types import ABSTAINED, Scores
from learner.advantages.estimators import GroupAdvantage
from rewards.aggregation.mixer import Mixer
from rewards.base import Services
from rewards.builtin.majority import Majority
from tests.rewards.groups import group

ROOT = Path(__file__).parents[3]


def answers(*given: str | None):
    made = group(*("" for _ in given))
    return replace(made, rollouts=tuple(replace(r, answer=a) for r, a in zip(made.rollouts, given, strict=True)))


async def score(*given: str | None, **options) -> Scores:
    return await Majority(**options).score(answers(*given), Services())


@pytest.mark.parametrize(
    ("given", "options", "expected"),
    [
        (("12", "7", "12", "12", None), {}, [1, 0, 1, 1, 0]),
        ((None, None, "3"), {}, [0, 0, 1]),
        ((None, None, "3"), {"count_missing": True}, [1, 1, 0]),
        ((None, None, None), {}, [0, 0, 0]),
        (("a", "b"), {}, [1, 0]),
        (("b", "a"), {}, [1, 0]),
    ],
)
async def test_rewards_of_the_recipe(given, options, expected, monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = load("deploy/recipes/methods/mm_upt.toml", [])
    mix = Mixer(settings.rewards, settings.reward_names, 1)
    mixed = mix(answers(*given), {"majority": await score(*given, **options)})
    assert mixed.rewards.tolist() == expected
    assert mixed.drop is None


async def test_a_group_without_answers_is_unknown_in_the_store():
    scores = await score(None, None)
    assert (scores.state == ABSTAINED).all()
    assert np.isnan(scores.values).all()


async def test_advantages():
    rewards = (await score("12", "7", "12", "12", None)).values
    expected = [0.730295, -1.095443, 0.730295, 0.730295, -1.095443]
    assert GroupAdvantage().standard(rewards) == pytest.approx(expected, abs=2e-6)
    assert GroupAdvantage().standard(np.array([0.5, 0.5])).tolist() == [0, 0]
