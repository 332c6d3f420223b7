"""The environment's reward: of the rollout, and of its turns where it says so."""

from dataclasses import replace

import numpy as np

from cluster.types import Event
from rewards.base import Services
from rewards.builtin.environment import EnvironmentReward
from tests.rewards.learned.test_client import of, played


async def score(*rollouts):
    return await EnvironmentReward().score(of(*rollouts), Services())


async def test_rewards_of_turns_are_at_their_ends_and_the_rest_at_the_last():
    one = replace(played(Event("a", 0, reward=0.25), Event("b", 0), Event("", 1, reward=-0.5)), reward=1.0)
    other = replace(played(), reward=2.0)
    scores = await score(one, other)
    assert scores.values.tolist() == [1.0, 2.0]
    assert scores.tokens is not None
    assert [np.flatnonzero(t).tolist() for t in scores.tokens] == [[4, 9], [9]]
    assert scores.tokens[0][[4, 9]].tolist() == [0.25, 0.75]
    assert scores.tokens[1][9] == 2.0


async def test_where_no_turn_is_rewarded_the_reward_is_the_rollout_s():
    assert (await score(replace(played(Event("a", 0)), reward=1.0))).tokens is None


async def test_an_episode_without_a_reward_stays_unknown():
    scores = await score(replace(played(Event("a", 0, reward=1.0)), reward=float("nan")), replace(played(), reward=1.0))
    assert np.isnan(scores.values[0])
    assert scores.tokens is not None
    assert np.isnan(scores.tokens[0].sum())
    assert scores.tokens[1].sum() == 1.0
