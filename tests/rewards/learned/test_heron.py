"""HERON (arXiv:2309.02632): what ranked factors decide, as a reward of a group and as labels of a reward model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.config import parse
from cluster.types import FAILED, Event
from rewards.base import Services
from rewards.learned.bradley_terry import BradleyTerry
from rewards.learned.client import RewardModelClient
from rewards.learned.heron import Heron, HeronModel, decided, scaled, win_rates
from rewards.learned.labels import MemoryLabels, pair_of
from rewards.learned.preferences import preference_loss
from rewards.learned.publishing import MemoryBoard
from rewards.registry import build_reward
from tests.rewards.groups import group
from tests.rewards.learned.test_step_models import of, turns

MEAL = {"use": "environment", "margin": 0.5}
KEYS = {"use": "events", "options": {"event": "reached key", "each": 1.0, "most": 9.0}}
FACTORS = [MEAL, KEYS]


def test_the_first_factor_that_differs_by_its_margin_decides():
    one, other, margins = np.array([1.00, 0.2]), np.array([1.05, 0.9]), np.array([0.1, 0.1])
    assert decided(one, other, margins) == (-1, 2)
    assert decided(other, one, margins) == (1, 2)
    assert decided(one, other, margins * 0.1) == (-1, 1)
    assert decided(one, one, margins) == (0, 0)


def test_the_loss_of_a_decided_pair():
    loss = preference_loss(torch.tensor([0.5]), torch.tensor([0.2]), torch.tensor([1.0]))
    assert float(loss) == pytest.approx(0.5543552, abs=1e-6)


def test_margins_are_deviations_and_unknown_factors_are_left_out():
    factors = np.array([[0.0, 1.0], [2.0, 1.0], [np.nan, 5.0]])
    np.testing.assert_allclose(scaled(factors, np.array([0.5, 0.5])), [0.5, 0.0])
    rates = win_rates(factors, np.array([0.5, 0.0]))
    np.testing.assert_array_equal(rates, [0.0, 1.0, np.nan])
    np.testing.assert_array_equal(win_rates(factors[:1], np.zeros(2)), [np.nan])
    np.testing.assert_array_equal(win_rates(np.zeros((3, 2)), np.zeros(2)), [0.5, 0.5, 0.5])


def key(turn=0):
    return Event("reached key", turn)


async def test_a_key_counts_only_between_equal_meals():
    four = of(
        turns("a>b", outcome=1.0),
        turns("a>c", outcome=0.0, events=[key()]),
        turns("a>d", outcome=0.0),
        turns("a>e", outcome=float("nan")),
    )
    scores = await Heron.model_validate({"factors": FACTORS}).score(four, Services())
    np.testing.assert_array_equal(scores.values, [1.0, 0.5, 0.0, np.nan])
    assert scores.state.tolist() == [0, 0, 0, FAILED]


async def test_a_chain_is_one_episode():
    chain = [turns("a>b", outcome=1.0, events=e, chained=True, episode=0) for e in ([key()], [key()], [])]
    whole = of(*chain, turns("a>b", outcome=1.0, events=[key()]))
    scores = await Heron.model_validate({"factors": FACTORS}).score(whole, Services())
    assert scores.values.tolist() == [1.0, 1.0, 1.0, 0.0], "two keys beat one; the meal is counted once"


async def test_the_model_is_told_what_the_tree_decides_and_ties_are_skipped():
    labels = MemoryLabels(version="told")
    client = RewardModelClient("heron", "bradley_terry", BradleyTerry, labels=labels, board=MemoryBoard())
    services = Services(reward_models={"heron": client})
    reward = build_reward(
        parse({"rewards": [{"use": "heron_model", "options": {"factors": FACTORS, "pairs": 3}}]}).rewards[0], "r"
    )
    four = of(*(turns(f"a>{text}", outcome=value) for text, value in zip("bcde", (1.0, 0.0, 0.0, 1.0), strict=True)))
    for _ in range(2):  # scored again it tells nothing new
        with pytest.raises(Exception, match="no version of the reward model"):
            await reward.score(four, services)
    news = labels.news("0", 100, 0.0)
    assert len(news) == 8, "of twelve ordered pairs four are ties"
    for item in news:
        better = [text[-1] in "be" for text in pair_of(item.key)]
        assert item.label.value == float(better[0])
        assert better[0] != better[1]
    services.close()


async def test_single_turns_are_compared_by_their_text():
    labels = MemoryLabels(version="told")
    client = RewardModelClient("heron", "bradley_terry", BradleyTerry, labels=labels, board=MemoryBoard())
    services = Services(reward_models={"heron": client})
    reward = HeronModel.model_validate({"factors": [{"use": "exact"}]})
    with pytest.raises(Exception, match="no version"):
        await reward.score(replace(group("85", "86")), services)
    assert {n.key: n.label.value for n in labels.news("0", 10, 0.0)} == {"85\x1f86": 1.0, "86\x1f85": 0.0}
    services.close()


def test_factors_that_are_no_rewards_are_refused():
    with pytest.raises(Exception, match="at least 1 item"):
        build_reward(parse({"rewards": [{"use": "heron", "options": {"factors": []}}]}).rewards[0], "rewards[0]")
